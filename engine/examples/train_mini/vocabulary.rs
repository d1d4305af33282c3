//! How is the vocabulary made, in the format in which Gemma's lies?
//!
//! Byte-pair encoding as in Gemma's `tokenizer.json`: a space becomes `▁`, nothing is put in front, a character that the
//! vocabulary lacks falls back to its bytes, and the text is not cut before the merges. While the merges are learned it
//! *is* cut, before each space and where letters, digits and other marks meet. So no merge crosses such a place, and the
//! merges give the same tokens without the cut.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::tokenizer::Trainer as _;

/// Tokens in all.
pub(crate) const SIZE: usize = 4096;
/// The ids that Gemma gives them.
const ROLES: [&str; 4] = ["<pad>", "<eos>", "<bos>", "<unk>"];
pub(crate) const EOS: u32 = 1;
pub(crate) const BOS: u32 = 2;
/// Characters that get a token of their own; rarer ones are spelled in bytes.
const ALPHABET: usize = 120;
/// Longest token, in characters.
const MAX_LENGTH: usize = 16;

/// A `tokenizer.json` for these texts.
pub(crate) fn train<'a>(texts: impl Iterator<Item = &'a str> + Send) -> tokenizers::Result<Value> {
    let special = |text: String| AddedToken::from(text, true);
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let first: Vec<AddedToken> = ROLES.map(str::to_owned).into_iter().chain(bytes).map(special).collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(SIZE)
        .limit_alphabet(ALPHABET)
        .special_tokens(first)
        .max_token_length(Some(MAX_LENGTH))
        .min_frequency(2)
        .show_progress(false)
        .build();
    trainer.feed(texts, |text| Ok(words(&text.replace(' ', "▁"))))?;
    let mut learned = BPE::default();
    trainer.train(&mut learned)?;
    let model = serde_json::to_value(&learned)?;

    let mut tokens: Vec<(String, u32)> = learned.get_vocab().into_iter().collect();
    tokens.sort_unstable_by_key(|(_, id)| *id);
    let vocab: serde_json::Map<String, Value> = tokens.into_iter().map(|(token, id)| (token, json!(id))).collect();
    let role = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
               "special": true})
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": ROLES.iter().enumerate().map(role).collect::<Vec<_>>(),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<bos>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": model["merges"],
        },
    }))
}

/// Writes it, on one line.
pub(crate) fn write(tokenizer: &Value, path: &Path) -> std::io::Result<()> {
    fs_err::write(path, serde_json::to_string(tokenizer)? + "\n")
}

/// What kind of run a character belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Digit,
    Mark,
}

/// Pieces that merges stay within: a space goes with what follows it, and letters, digits and marks are apart.
/// Digits, line breaks and marks stand alone, but for marks of one kind.
fn words(text: &str) -> Vec<String> {
    let class = |c: char| match c {
        '▁' => Class::Space,
        c if c.is_alphabetic() => Class::Letter,
        c if c.is_numeric() => Class::Digit,
        _ => Class::Mark,
    };
    let mut words: Vec<String> = Vec::new();
    let mut last = None;
    for c in text.chars() {
        let joins = match (last, class(c)) {
            (Some('▁'), now) => now != Class::Space,
            (Some(before), Class::Letter) => class(before) == Class::Letter,
            (Some(before), Class::Mark) => before == c,
            _ => false,
        };
        match words.last_mut().filter(|_| joins) {
            Some(word) => word.push(c),
            None => words.push(c.to_string()),
        }
        last = Some(c);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_where_kinds_meet() {
        let cut = words("It's▁12%--▁▁two▁(words).\n\n");
        assert_eq!(cut, ["It", "'", "s", "▁1", "2", "%", "--", "▁", "▁two", "▁(", "words", ")", ".", "\n\n"]);
    }

    /// The engine opens what is written, and its tokens are those that the cut text has.
    #[test]
    fn the_engine_reads_it() {
        let text = "the cat sat on the mat. The cat's mats, the cats! ".repeat(40);
        let made = train([text.as_str(), "42 cats"].into_iter()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        write(&made, &dir.path().join("tokenizer.json")).unwrap();
        let tokenizer = engine::tokenizer::Tokenizer::from_hf_dir(dir.path()).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.id_of("<eos>")), (Some(BOS), Some(EOS)));
        let said = "the mats — and 4 cats\n";
        let ids = tokenizer.ids(said, true);
        assert_eq!(ids[0], BOS);
        assert!(ids.contains(&tokenizer.id_of("▁cats").unwrap()), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids[1..]), said);
        // The dash is in no text: three bytes.
        let bytes = ids.iter().filter(|&&id| (4..260).contains(&id)).count();
        assert!(bytes >= 3, "{ids:?}");
    }
}
