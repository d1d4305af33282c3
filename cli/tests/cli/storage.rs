//! What does `--store-dtype i8` save, does everything still work on it, and is its cost told?

use fs_err as fs;
use serde_json::Value;

use crate::support::{succeeds, text, tiny_model, token_corpus};

const HOOK_POINT: &str = "blocks.3.hook_resid_post";

/// As wide as the tiny model has one, so that the scale and the index of a row weigh little.
const WIDE: &str = "blocks.3.attn.hook_result";

#[test]
fn eight_bits() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = token_corpus(&dir.path().join("corpus.jsonl"), 60);
    let sae = text(&dir.path().join("run-f32/saes/a"));
    let mut sizes = Vec::new();
    let mut costs = Vec::new();
    for dtype in ["f32", "bf16", "i8"] {
        let run_dir = dir.path().join(format!("run-{dtype}"));
        let run = text(&run_dir);
        let points = format!("{HOOK_POINT},{WIDE}");
        let record = ["record", &tiny_model(), "--corpus", &corpus, "--out", &run, "--hook-points", &points];
        succeeds(&[&record[..], &["--store-dtype", dtype, "--threads", "1"]].concat());
        succeeds(&["verify", &run]);
        let folder = run_dir.join(format!("acts/hook_point={WIDE}"));
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
        sizes.push(files.sum::<u64>() as f64);

        if dtype == "f32" {
            let train = ["train", &run, "--hook-point", HOOK_POINT, "--out", &sae, "--d-sae", "64", "--k", "8"];
            succeeds(&[&train[..], &["--batch-tokens", "256", "--steps", "60", "--threads", "1"]].concat());
        }
        let metrics: Value = serde_json::from_str(&succeeds(&["evaluate", &run, "--sae", &sae, "--json"])).unwrap();
        assert_eq!(metrics["store_dtype"], dtype);
        costs.push((
            1.0 - metrics["storage_explained_variance"].as_f64().unwrap(),
            metrics["explained_variance"].as_f64().unwrap(),
        ));
    }
    assert!(sizes[2] < 0.58 * sizes[1] && sizes[1] < 0.56 * sizes[0], "{sizes:?}");
    assert_eq!(costs[0].0, 0.0);
    assert!(costs[1].0 > 0.0 && costs[1].0 < 1e-4, "{costs:?}");
    assert!(costs[2].0 > 0.0 && costs[2].0 < 1e-2, "{costs:?}");
    // What the coder explains hardly changes, which the cost of storing foretells.
    assert!((costs[2].1 - costs[0].1).abs() < 3.0 * costs[2].0.max(1e-3), "{costs:?}");

    let run = text(&dir.path().join("run-i8"));
    let own = text(&dir.path().join("run-i8/saes/own"));
    let train = ["train", &run, "--hook-point", HOOK_POINT, "--out", &own, "--d-sae", "64", "--k", "8"];
    succeeds(&[&train[..], &["--batch-tokens", "256", "--steps", "60", "--threads", "1"]].concat());
    succeeds(&["encode", &run, "--sae", &own, "--threads", "1"]);
    let sql = "SELECT max(f.act) AS x FROM features_own_acts f JOIN blocks_3_hook_resid_post a USING (token_idx)";
    let rows = succeeds(&["query", &run, sql, "--json"]);
    assert!(serde_json::from_str::<Value>(&rows).unwrap()["x"].as_f64().unwrap() > 0.0, "{rows}");
    succeeds(&["export", &run, "--format", "npy", "--out", &text(&dir.path().join("npy"))]);
    let shown = succeeds(&["evaluate", &run, "--sae", &own]);
    assert!(shown.contains("store_dtype") && shown.contains("storage_explained_variance"), "{shown}");
}
