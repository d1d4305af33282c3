//! Does `ple` show a token's rows and gates, and refuse what has none?

use std::path::Path;

use fs_err as fs;
use serde_json::{Value, json};

use crate::support::{fails, fixture, succeeds, text, tiny_model, token_corpus};

/// A tiny model with a vocabulary of letters, of which only ` gold` is more than one.
fn model(dir: &Path, name: &str) -> String {
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture(name).join(file), dir.join(file)).expect("a copy");
    }
    let special = ["<pad>", "<eos>", "<bos>", "<unk>"];
    let merges = [["g", "o"], ["l", "d"], ["go", "ld"], ["▁", "gold"]];
    let letters = std::iter::once("▁".to_owned()).chain(('a'..='z').map(String::from));
    let tokens = special.map(str::to_owned).into_iter().chain(letters).chain(merges.iter().map(|pair| pair.concat()));
    let vocab: serde_json::Map<String, Value> = tokens.zip((0..).map(Value::from)).collect();
    let added = special.iter().enumerate().map(|(id, token)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges}
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer is written");
    text(dir)
}

#[test]
fn rows_and_gates_of_a_token() {
    for (name, snapshot) in [("gemma4/e", "gemma4"), ("gemma3n/text", "gemma3n")] {
        let dir = tempfile::tempdir().unwrap();
        let model = model(dir.path(), name);
        let args = ["ple", &model, "--token", " gold", "--layers", "0,5-6", "--top", "3"];
        let context = ["--context", "a ring of gold is gold"];
        let said = succeeds(&[&args[..], &context].concat());
        insta::assert_snapshot!(format!("ple-{snapshot}"), said);

        let value: Value = serde_json::from_str(&succeeds(&[&args[..], &context, &["--json"]].concat())).unwrap();
        let token = &value["tokens"][0];
        assert_eq!((&token["id"], &token["text"], &token["row"]), (&json!(34), &json!(" gold"), &json!(34)));
        let layers = |rows: &Value| rows.as_array().unwrap().iter().map(|row| row["layer"].clone()).collect::<Vec<_>>();
        assert_eq!(layers(&token["layers"]), [0, 5, 6]);
        assert_eq!(token["layers"][1]["nearest"].as_array().unwrap().len(), 3);
        let places = token["occurrences"].as_array().unwrap();
        assert_eq!(places.len(), 2);
        assert!(places.iter().all(|place| layers(&place["layers"]) == [0, 5, 6]), "{places:?}");
        // Where the table lies changes nothing.
        for placement in ["cpu", "device"] {
            assert_eq!(succeeds(&[&args[..], &context, &["--ple", placement]].concat()), said);
        }
    }
}

#[test]
fn tokens_by_number_need_no_tokenizer() {
    let model = text(&fixture("gemma3n/text"));
    // The table of a Gemma 3n ends before its vocabulary.
    insta::assert_snapshot!("ple-by-number", succeeds(&["ple", &model, "--token-id", "150", "--layers", "2"]));
    let norms = succeeds(&["ple", &model, "--token-id", "7", "--token-id", "7", "--top", "0"]);
    assert!(norms.starts_with("token #7\nlayer  norm\n    0") && norms.lines().count() == 12, "{norms}");
}

#[test]
fn what_has_no_rows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), "gemma4/e");
    let refused = |args: &[&str]| fails(&[&["ple", &model], args].concat());
    insta::assert_snapshot!("ple-several-tokens", refused(&["--token", " goldy"]));
    insta::assert_snapshot!("ple-not-in-context", refused(&["--token", " gold", "--context", "a ring"]));
    assert!(succeeds(&["ple", &model, "--token", "id:34", "--top", "0"]).starts_with("token ` gold` 34\n"));
    let cases = [
        (refused(&["--token", "id:160"]), "expected a token id below 160, found 160"),
        (refused(&["--token", ""]), "expected a text that is one token, found an empty one"),
        (refused(&["--token-id", "160"]), "expected a token id below 160, found 160"),
        (refused(&["--token", " gold", "--layers", "8"]), "layers below 8"),
        (refused(&[]), "--token"),
        (fails(&["ple", &tiny_model(), "--token-id", "7"]), "expected a model with per-layer embeddings"),
        (fails(&["ple", &text(&fixture("gemma4/e")), "--token", "gold"]), "no tokenizer in "),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
    }
}

#[test]
fn inspect_and_the_manifest_tell_the_size_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let model = text(&fixture("gemma4/e"));
    let told: Value = serde_json::from_str(&succeeds(&["inspect", &model, "--json"])).unwrap();
    assert_eq!(told["ple"], json!({"rows": 160, "table_bytes": 160 * 128, "bytes_per_token": 128}));
    let sheet = succeeds(&["inspect", &model]);
    assert!(sheet.contains("160 rows of embeddings, 20.5 kB, of which a token reads 128 B"), "{sheet}");

    let corpus = dir.path().join("corpus.jsonl");
    fs::write(&corpus, "{\"tokens\": [2, 9, 30, 41, 9]}\n").unwrap();
    let run = text(&dir.path().join("run"));
    let hooks = ["--hook-points", "hook_ple_token", "--ple", "cpu"];
    succeeds(&[&["record", &model, "--corpus", &text(&corpus), "--out", &run], &hooks[..]].concat());
    let told: Value = serde_json::from_str(&succeeds(&["inspect", &run, "--json"])).unwrap();
    let table = json!({"placement": "cpu", "table_bytes": 160 * 128, "bytes_per_token": 128});
    assert_eq!(told["model"]["ple"], table);
    let parameters = |name: &str| told["model"][name].as_u64().unwrap();
    assert_eq!(parameters("n_params") - parameters("n_params_effective"), 160 * 64);
    let sheet = succeeds(&["inspect", &run]);
    assert!(sheet.contains("embeddings: 20.5 kB on cpu, 128 B a token"), "{sheet}");

    let other = text(&dir.path().join("other"));
    let corpus = token_corpus(&dir.path().join("other.jsonl"), 2);
    succeeds(&["record", &tiny_model(), "--corpus", &corpus, "--out", &other]);
    let told: Value = serde_json::from_str(&succeeds(&["inspect", &other, "--json"])).unwrap();
    assert_eq!(told["model"]["ple"], Value::Null);
}
