//! Does `routing` tell of a small run what can be counted by hand?
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use data::manifest::{Corpus, Manifest, Model};
use data::{Counts, DocumentRow, Routing, RoutingColumns, RunWriter, TokenColumns};
use serde_json::{Value, json};

use crate::support::{fails, small_run, succeeds, text};

/// Words of a made-up text; each begins a document at every tenth token.
const WORDS: [(u32, &str); 4] = [(5, " gold"), (6, " price"), (7, "\n"), (8, " the")];

/// Four experts, two a token, in the layers 0 and 2 of three. ` gold` always goes to expert 3 first.
fn run(dir: &Path) {
    let shape = json!({
        "n_layers": 3, "n_heads": 2, "n_kv_heads": 1, "d_model": 8, "d_head": 4, "d_mlp": 16, "d_vocab": 9, "n_ctx": 16,
    });
    let model = Model::new("tiny-moe", serde_json::from_value(shape).unwrap());
    let mut manifest = Manifest::new(model, Corpus::default(), Vec::new());
    manifest.routing = Some(Routing { n_experts: 4, top_k: 2, layers: vec![0, 2], router_logits: false });
    let writer = RunWriter::create(dir, manifest).unwrap();
    let mut shard = writer.shard(0, 0).unwrap();
    let (mut tokens, mut layers) = (TokenColumns::default(), [RoutingColumns::default(), RoutingColumns::default()]);
    let mut documents = Vec::new();
    for token in 0..200_u64 {
        let (doc, pos) = (token / 10, token % 10);
        let special = pos == 0;
        let (id, word) = if special { (2, "<bos>") } else { WORDS[(token * token % 7 % 4) as usize] };
        tokens.push(doc, pos as u32, id, word, None, special, None);
        if special {
            documents.push(DocumentRow { doc_id: doc, n_tokens: 10, first_token_idx: token, ..DocumentRow::default() });
        }
        for (layer, columns) in layers.iter_mut().enumerate() {
            let first = if id == 5 { 3 } else { (token + layer as u64) % 3 } as u16;
            let second = u16::from(first == 0);
            columns.expert_ids.extend([first, second]);
            columns.weights.extend([0.75, 0.25]);
            columns.probs.extend([0.6, 0.2]);
            columns.entropy.push(1.0);
            columns.dense_norm.push(2.0);
            columns.moe_norm.push(0.5);
        }
    }
    shard.write_tokens(&tokens).unwrap();
    shard.write_documents(&documents).unwrap();
    shard.write_routing(0, &layers[0]).unwrap();
    shard.write_routing(2, &layers[1]).unwrap();
    shard.commit(Value::Null, Counts::captured(20, 200)).unwrap();
    writer.finish("").unwrap();
}

#[test]
fn tables_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    run(&path);
    let path = text(&path);
    succeeds(&["verify", &path]);
    let said = |args: &[&str]| succeeds(&[&["routing", &path], args].concat()).replace(&path, "RUN");
    insta::assert_snapshot!("routing", said(&[]));
    insta::assert_snapshot!("routing-layer", said(&["--layer", "2", "--top", "3", "--special"]));
    insta::assert_snapshot!("routing-expert", said(&["--expert", "3", "--min-count", "100"]));

    let value: Value = serde_json::from_str(&said(&["--json"])).unwrap();
    assert_eq!((&value["run"], &value["n_tokens"], &value["n_special"]), (&json!("RUN"), &json!(180), &json!(20)));
    assert_eq!(value["layers"].as_array().unwrap().len(), 2);
    assert_eq!(value["layers"][0]["experts"].as_array().unwrap().len(), 4);
    assert_eq!(value["layers"][0].get("co_selected"), None);
    let gold = &value["layers"][1]["experts"][3]["top_tokens"][0];
    assert_eq!((&gold["token"], &gold["count"]), (&json!(" gold"), &gold["occurrences"]));

    let value: Value = serde_json::from_str(&said(&["--json", "--layer", "0", "--expert", "3"])).unwrap();
    let layer = &value["layers"][0];
    assert_eq!(layer["experts"].as_array().unwrap().len(), 1);
    assert_eq!(layer["co_selected"][3][0], layer["experts"][0]["tokens"]);
    assert_eq!(layer["top_pairs"][0]["a"], json!(3));
}

#[test]
fn what_cannot_be_told() {
    let dir = tempfile::tempdir().unwrap();
    let dense = text(&small_run(dir.path()));
    insta::assert_snapshot!("routing-dense", fails(&["routing", &dense]).replace(&dense, "RUN"));
    let path = dir.path().join("moe");
    run(&path);
    let path = text(&path);
    insta::assert_snapshot!("routing-no-layer", fails(&["routing", &path, "--layer", "1"]).replace(&path, "RUN"));
    let error = fails(&["routing", &path, "--expert", "4"]);
    assert!(error.contains("below 4, found `4`"), "{error}");
}
