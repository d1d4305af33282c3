use std::path::PathBuf;

use fs_err as fs;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::testing::cached_model;
use crate::weights::gguf::{Header, Value};

/// A vocabulary of a dozen tokens, as a converter would write it.
fn tiny() -> Tokenizer {
    Tokenizer::from_gguf(&tiny_metadata(&[])).unwrap()
}

const NORMAL: i64 = 1;
const BYTE: i64 = 6;

fn tiny_metadata(change: &[(&str, Value)]) -> Metadata {
    let rows: Vec<(String, f32, i64)> = [
        ("<pad>", -1000.0, 3),
        ("<eos>", -1000.0, 3),
        ("<bos>", -1000.0, 3),
        ("<unk>", -1000.0, 3),
        ("<turn>", -1000.0, 3),
        ("\n", -1000.0, 4),
        ("\n\n", -1000.0, 4),
        ("  ", -1000.0, 4),
        ("   ", -1000.0, 4),
        // 9 on: pieces, best first, then single characters.
        ("▁t", 0.0, NORMAL),
        ("he", -1.0, NORMAL),
        ("▁the", -2.0, NORMAL),
        ("ab", -3.0, NORMAL),
        ("bc", -4.0, NORMAL),
        ("abc", -5.0, NORMAL),
        ("▁", -6.0, NORMAL),
        ("t", -7.0, NORMAL),
        ("h", -8.0, NORMAL),
        ("e", -9.0, NORMAL),
        ("a", -10.0, NORMAL),
        ("b", -11.0, NORMAL),
        ("c", -12.0, NORMAL),
        // "é" is no token, so nothing merges with it.
        ("éa", -2.5, NORMAL),
    ]
    .into_iter()
    .map(|(token, score, kind)| (token.to_owned(), score, kind))
    .chain((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, BYTE)))
    .collect();
    let mut values = vec![
        ("tokenizer.ggml.model".to_owned(), Value::Text("llama".to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Texts(rows.iter().map(|row| row.0.clone()).collect())),
        ("tokenizer.ggml.scores".to_owned(), Value::Floats(rows.iter().map(|row| row.1).collect())),
        ("tokenizer.ggml.token_type".to_owned(), Value::Ints(rows.iter().map(|row| row.2).collect())),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::Int(2)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::Int(1)),
        ("tokenizer.ggml.padding_token_id".to_owned(), Value::Int(0)),
        ("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(false)),
    ];
    values.extend(change.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    Metadata::new(Path::new("x.gguf"), values)
}

/// The tokens of a text by their strings; a byte's token is `<0xE2>`.
fn cut(text: &str) -> Vec<String> {
    let tokenizer = tiny();
    let pieces = tokenizer.encode(text, false);
    check_spans(&tokenizer, text, &pieces);
    pieces.iter().map(|piece| tokenizer.token_text(piece.id).unwrap()).collect()
}

/// The spans lie end to end, and each is the text of its token.
fn check_spans(tokenizer: &Tokenizer, text: &str, pieces: &[Piece]) {
    let mut at = 0;
    for piece in pieces {
        let (start, end) = piece.span.unwrap();
        assert_eq!(start, at, "{text:?}");
        let bytes = &text.as_bytes()[start..end];
        match tokenizer.vocab.byte(piece.id) {
            Some(byte) if end - start == 1 => assert_eq!(bytes, [byte]),
            // In the text, `▁` may be itself or a space.
            _ => {
                assert_eq!(String::from_utf8_lossy(bytes).replace(SPACE, " "), tokenizer.token_text(piece.id).unwrap());
            }
        }
        at = end;
    }
    assert_eq!(at, text.len(), "{text:?}");
}

#[test]
fn the_best_score_merges_first() {
    // "bc" is there before "ab" is tried on the second b; "ab" is better, so "abc" is not reached through "bc".
    assert_eq!(cut("abc"), ["abc"]);
    assert_eq!(cut("abbc"), ["ab", "bc"]);
    assert_eq!(cut(" the the"), [" the", " the"]);
    assert_eq!(cut("the"), ["t", "he"]);
    assert_eq!(cut(""), Vec::<String>::new());
}

#[test]
fn runs_of_spaces_come_before_words() {
    assert_eq!(cut("  the"), ["  ", "t", "he"]);
    assert_eq!(cut("    "), ["   ", " "]);
    assert_eq!(cut("     the"), ["   ", "  ", "t", "he"]);
}

#[test]
fn whole_tokens_are_taken_out_first_and_the_longest_wins() {
    assert_eq!(cut("\n\n\n"), ["\n\n", "\n"]);
    assert_eq!(cut("a<turn>b<turn"), ["a", "<turn>", "b", "<0x3C>", "t", "<0x75>", "<0x72>", "<0x6E>"]);
    // Spelled with the vocabulary's own sign for a space.
    assert_eq!(cut("▁▁t"), ["  ", "t"]);
}

#[test]
fn a_character_that_is_no_token_is_its_bytes() {
    assert_eq!(cut("éa"), ["<0xC3>", "<0xA9>", "a"]);
    assert_eq!(cut("a😀b"), ["a", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "b"]);
}

#[test]
fn the_beginning_of_a_sequence_has_no_place_in_the_text() {
    let tokenizer = tiny();
    let pieces = tokenizer.encode("a<bos>", true);
    let expected = [
        Piece { id: 2, span: None, special: true },
        Piece { id: 19, span: Some((0, 1)), special: false },
        Piece { id: 2, span: Some((1, 6)), special: true },
    ];
    assert_eq!(pieces, expected);
    assert_eq!(tokenizer.encode("", true), expected[..1]);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.pad_id()), (Some(2), [1].as_slice(), Some(0)));
}

#[test]
fn decoding_gives_the_text_back() {
    let tokenizer = tiny();
    for text in ["", " the abc", "a😀b\n\n\n  the", "<turn>é", "\u{0}"] {
        let ids = tokenizer.ids(text, false);
        assert_eq!(tokenizer.decode(&ids), text);
    }
    let byte = |byte: u32| 23 + byte;
    assert_eq!(tokenizer.decode(&[byte(0xc3), 19, 9999]), "\u{fffd}a\u{fffd}", "half a character, and no token");
    assert_eq!(tokenizer.token_text(9999), None);
}

#[test]
fn a_stream_gives_whole_characters_and_what_decoding_gives() {
    let tokenizer = tiny();
    let byte = |byte: u32| 23 + byte;
    let mut stream = TextStream::new(&tokenizer);
    let ids = [9, byte(0xf0), byte(0x9f), byte(0x98), byte(0x80), byte(0xc3), byte(0xa9), byte(0xff), byte(0xc3), 19];
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(pieces, [" t", "", "", "", "😀", "", "é", "\u{fffd}", "", "\u{fffd}a"]);
    assert_eq!(
        (stream.push(byte(0xe2)), stream.push(byte(0x82)), stream.finish()),
        (String::new(), String::new(), "\u{fffd}\u{fffd}".to_owned())
    );
    assert_eq!(stream.finish(), "");

    // Every run of up to four of these.
    let alphabet = [9, 12, 9999, byte(0x41), byte(0x80), byte(0xc3), byte(0xe2), byte(0x98), byte(0xf0), byte(0x9f)];
    let mut runs = vec![Vec::new()];
    for _ in 0..4 {
        runs = runs.iter().flat_map(|run: &Vec<u32>| alphabet.map(|next| [&run[..], &[next]].concat())).collect();
        for run in &runs {
            let mut stream = TextStream::new(&tokenizer);
            let mut text: String = run.iter().map(|&id| stream.push(id)).collect();
            text.push_str(&stream.finish());
            assert_eq!(text, tokenizer.decode(run), "{run:?}");
            let bytes: Vec<u8> = run.iter().filter_map(|&id| tokenizer.vocab.byte(id)).collect();
            if bytes.len() == run.len() && std::str::from_utf8(&bytes).is_ok() {
                assert_eq!(text.as_bytes(), bytes);
            }
        }
    }
}

#[derive(Deserialize)]
struct Cases {
    texts: Vec<Case>,
}

/// A vocabulary of 500 with the control tokens of Gemma 4, as a folder and as its converter writes it.
#[test]
fn merges_in_a_gguf_cut_as_tokenizer_json_does() {
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/chat"));
    let hf = Tokenizer::from_hf_dir(&fixtures.join("tiny")).unwrap();
    let path = fixtures.join("tiny.gguf");
    let gguf = Tokenizer::from_gguf(&Header::parse(&fs::read(&path).unwrap(), &path).unwrap().metadata).unwrap();
    let cases: Cases = serde_json::from_slice(&fs::read(fixtures.join("tokens.json")).unwrap()).unwrap();
    for tokenizer in [&hf, &gguf] {
        assert_eq!(tokenizer.vocab_size(), 500);
        assert_eq!((tokenizer.bos_id(), tokenizer.pad_id(), tokenizer.eos_ids()[0]), (Some(2), Some(0), 1));
        assert!(
            ["<bos>", "<|turn>", "<|channel>", "<|\"|>"]
                .iter()
                .all(|mark| tokenizer.is_special(tokenizer.id_of(mark).unwrap()))
        );
        assert!(
            !["\n\n", "<b>", "a", "<0x41>"].iter().any(|token| tokenizer.is_special(tokenizer.id_of(token).unwrap()))
        );
        for case in &cases.texts {
            let pieces = tokenizer.encode(&case.text, false);
            let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
            assert_eq!(ids, case.ids, "{:?}", case.text);
            check_spans(tokenizer, &case.text, &pieces);
            for (piece, &(start, end)) in pieces.iter().zip(&case.spans) {
                let span = piece.span.unwrap();
                assert!(span.0 >= start && span.1 <= end, "{:?}", case.text);
            }
            assert_eq!(tokenizer.decode(&ids), case.text.replace(SPACE, " "));
        }
    }
    // Every text of up to four of these.
    let alphabet = ["t", "he", " ", "  ", "r", "ain", "s", "\n", "\t", "<b>", "<|turn>", "▁", "é"];
    let mut texts = vec![String::new()];
    for _ in 0..4 {
        texts = texts.iter().flat_map(|text| alphabet.map(|next| format!("{text}{next}"))).collect();
        for text in &texts {
            assert_eq!(hf.encode(text, true), gguf.encode(text, true), "{text:?}");
        }
    }
    for id in 0..500 {
        assert_eq!(hf.token_text(id), gguf.token_text(id));
        assert_eq!(hf.is_special(id), gguf.is_special(id), "{:?}", hf.token_text(id));
    }
}

#[test]
fn metadata_that_is_no_tokenizer() {
    let message =
        |key: &str, value: Value| Tokenizer::from_gguf(&tiny_metadata(&[(key, value)])).unwrap_err().to_string();
    assert_eq!(
        message("tokenizer.ggml.model", Value::Text("gpt2".to_owned())),
        "expected the tokenizer model `llama` or `gemma4`, found `gpt2` in the tokenizer of `x.gguf`"
    );
    assert_eq!(
        message("tokenizer.ggml.scores", Value::Floats(vec![0.0])),
        "expected tokens with a score each, found 279 tokens and 1 scores in the tokenizer of `x.gguf`"
    );
    assert_eq!(
        message("tokenizer.ggml.bos_token_id", Value::Int(279)),
        "expected ids below 279 for the tokens with a role, found 279 in the tokenizer of `x.gguf`"
    );
    assert!(message("tokenizer.ggml.add_space_prefix", Value::Bool(true)).starts_with("expected no space prefix"));
    let none = Metadata::new(Path::new("x.gguf"), []);
    assert!(Tokenizer::from_gguf(&none).unwrap_err().to_string().starts_with("no tokenizer in `x.gguf`\nhint: "));
}

/// The tiny vocabulary as a `tokenizer.json`, with merges derived as the reference derives them.
fn tiny_hf(dir: &Path) -> Tokenizer {
    let metadata = tiny_metadata(&[]);
    let tokens: Vec<String> =
        metadata.texts("tokenizer.ggml.tokens").unwrap().unwrap().iter().map(|token| token.replace(' ', "▁")).collect();
    let scores = metadata.floats("tokenizer.ggml.scores").unwrap().unwrap();
    let types = metadata.ints("tokenizer.ggml.token_type").unwrap().unwrap();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let score = if types[id] == NORMAL { scores[id] } else { 0.0 };
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if tokens.iter().any(|token| token == left) && tokens.iter().any(|token| token == right) {
                merges.push((score, left.to_owned(), right.to_owned()));
            }
        }
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        b.0.total_cmp(&a.0).then_with(|| (length(&b.1), length(&b.2)).cmp(&(length(&a.1), length(&a.2))))
    });
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<serde_json::Value> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| matches!(types[*id], 3 | 4))
        .map(|(id, token)| json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": types[id] == 3}))
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
            "merges": merges.into_iter().map(|(_, left, right)| [left, right]).collect::<Vec<_>>()
        }
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::from_hf_dir(dir).unwrap()
}

#[test]
fn tokenizer_json_and_gguf_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (hf, gguf) = (tiny_hf(dir.path()), tiny());
    assert_eq!(hf.vocab_size(), gguf.vocab_size());
    assert_eq!((hf.bos_id(), hf.eos_ids(), hf.pad_id()), (gguf.bos_id(), gguf.eos_ids(), gguf.pad_id()));
    // Every text of up to five of these characters.
    let alphabet = [" ", "t", "h", "e", "a", "b", "c", "é", "▁", "\n", "<turn>", "😀"];
    let mut texts = vec![String::new()];
    for _ in 0..4 {
        texts = texts.iter().flat_map(|text| alphabet.map(|next| format!("{text}{next}"))).collect();
        for text in &texts {
            assert_eq!(hf.encode(text, true), gguf.encode(text, true), "{text:?}");
        }
    }
    for id in 0..hf.vocab_size() as u32 {
        assert_eq!(hf.token_text(id), gguf.token_text(id));
        assert_eq!(hf.is_special(id), gguf.is_special(id));
    }
}

#[test]
fn roles_come_from_the_files_beside_tokenizer_json() {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf(dir.path());
    fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 1}"#).unwrap();
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [1, 4]}"#).unwrap();
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"bos_token": {"content": "<turn>"}, "pad_token": "<eos>"}"#,
    )
    .unwrap();
    let tokenizer = Tokenizer::from_hf_dir(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.pad_id()), (Some(4), [1, 4].as_slice(), Some(1)));

    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": 4000}"#).unwrap();
    let message = Tokenizer::from_hf_dir(dir.path()).unwrap_err().to_string();
    assert!(
        message.starts_with("expected ids below 279 for the tokens with a role, found 4000 in the tokenizer of `"),
        "{message}"
    );
    fs::write(dir.path().join("tokenizer.json"), r#"{"version": "1.0"}"#).unwrap();
    let message = Tokenizer::from_hf_dir(dir.path()).unwrap_err().to_string();
    assert!(message.starts_with("expected the format of the `tokenizers` library"), "{message}");
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(Tokenizer::from_hf_dir(dir.path()).unwrap_err().to_string().starts_with("no tokenizer in `"));
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    spans: Vec<(usize, usize)>,
}

fn real() -> Option<Tokenizer> {
    let path: PathBuf = cached_model()?;
    let header = Header::parse(&fs::read(&path).unwrap(), &path).unwrap();
    Some(Tokenizer::from_gguf(&header.metadata).unwrap())
}

#[expect(clippy::print_stderr, reason = "a test that leaves itself out says so")]
fn left_out() {
    eprintln!("left out: the real 270M is not in the cache");
}

#[test]
fn the_real_vocabulary_gives_the_ids_of_the_reference() {
    let Some(tokenizer) = real() else { return left_out() };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizer/awkward.json");
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let pieces = tokenizer.encode(&case.text, false);
        let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
        assert_eq!(ids, case.ids, "{:?}", case.text);
        check_spans(&tokenizer, &case.text, &pieces);
        for (piece, (start, end)) in pieces.iter().zip(case.spans) {
            let span = piece.span.unwrap();
            // The reference gives a byte token its whole character.
            let same = if tokenizer.vocab.byte(piece.id).is_some() {
                span.0 >= start && span.1 <= end
            } else {
                span == (start, end)
            };
            assert!(same, "{:?}: expected {:?}, found {span:?}", case.text, (start, end));
        }
        // The reference too takes the vocabulary's own sign for a space.
        assert_eq!(tokenizer.decode(&ids), case.text.replace(SPACE, " "));
    }
    let prompt = tokenizer.ids("The capital of France is", true);
    assert_eq!(prompt, [2, 818, 5279, 529, 7001, 563]);
}

#[test]
fn the_real_vocabulary_is_lossless() {
    let Some(tokenizer) = real() else { return left_out() };
    assert_eq!(tokenizer.vocab_size(), 262_144);
    let texts: std::collections::HashSet<String> = (0..262_144).map(|id| tokenizer.token_text(id).unwrap()).collect();
    assert_eq!(texts.len(), 262_144, "different ids have different texts");
    assert_eq!(tokenizer.token_text(7001).as_deref(), Some(" France"));
    assert!(tokenizer.is_special(105) && !tokenizer.is_special(107));
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.pad_id()), (Some(2), [1].as_slice(), Some(0)));
}

/// Found by changed bytes: the library panics at a decoder of a kind that it does not know.
#[test]
fn a_part_that_the_library_does_not_know_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let source = crate::testing::fixture("chat/tiny");
    let text = fs::read_to_string(source.join("tokenizer.json")).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
    file["decoder"] = json!({"type": "Nobody"});
    fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let error = Tokenizer::from_hf_dir(folder.path()).unwrap_err().to_string();
    assert!(error.contains("expected the format of the `tokenizers` library"), "{error}");
}
