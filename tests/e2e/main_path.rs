//! Record, train, encode, evaluate, look: does each step find what the one before it wrote?

use data::Run;
use fs_err as fs;

use crate::support::{fixture, polariscope, text, token_corpus};

const HOOK_POINT: &str = "blocks.3.hook_resid_post";

#[test]
fn from_a_checkpoint_to_a_picture() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, run_dir) = (dir.path().join("corpus.jsonl"), dir.path().join("run"));
    let tokens = token_corpus(&corpus, 120);
    let (model, corpus, run_arg) = (text(&fixture("gemma3/text")), text(&corpus), text(&run_dir));

    let points = "blocks.*.hook_resid_post,blocks.2-3.hook_mlp_out";
    let record = ["record", &model, "--corpus", &corpus, "--out", &run_arg, "--hook-points", points];
    polariscope(&[&record[..], &["--shard-tokens", "2000", "--nll"]].concat());
    let run = Run::open(&run_dir).unwrap();
    assert!(run.manifest().complete);
    assert_eq!(run.n_tokens(), tokens);
    assert_eq!(run.n_documents(), 120);
    assert_eq!(run.hook_points().len(), 9);
    assert!(run.shards().len() > 2);
    let hook_point = HOOK_POINT.parse().unwrap();
    let acts = run.acts(hook_point, 0..tokens).unwrap();
    assert_eq!((acts.n_rows(), acts.width), (tokens as usize, 32));
    // A document's meta is what its line said besides the tokens.
    let document = run.document(7).unwrap();
    assert_eq!(document.meta.as_deref(), Some("{\"number\":7}"));
    assert!(run.tokens(0..3).unwrap().nll[1].is_some_and(|nll| nll > 0.0));

    let sae_dir = run_dir.join("saes/resid-3");
    let sae_arg = text(&sae_dir);
    let size = ["--d-sae", "96", "--k", "8", "--batch-tokens", "512", "--steps", "200"];
    polariscope(&[&["train", &run_arg, "--hook-point", HOOK_POINT, "--out", &sae_arg][..], &size].concat());
    assert!(sae_dir.join("sae_weights.safetensors").is_file());
    let metrics = data::metrics::Metrics::read(&sae_dir.join("metrics.parquet")).unwrap();
    let variance = metrics.column("explained_variance").unwrap();
    let (first, last) = (variance[0], *variance.last().unwrap());
    assert!(last > first && last > 0.5, "explained variance went from {first} to {last}");

    polariscope(&["encode", &run_arg, "--sae", &sae_arg, "--model", &model]);
    let run = Run::open(&run_dir).unwrap();
    assert_eq!(run.saes().unwrap(), ["resid-3"]);
    assert_eq!(run.feature_tables().unwrap(), ["resid-3"]);
    let table = run.feature_table("resid-3").unwrap();
    let summary = table.summary().unwrap();
    assert_eq!(summary.feature.len(), 96);
    let alive: u64 = summary.n_active.iter().sum();
    assert!(alive > 0);
    let strongest = (0..96).max_by(|&a, &b| summary.max_act[a].total_cmp(&summary.max_act[b])).unwrap() as u32;
    let acts = table.acts_of_feature(strongest, 10).unwrap();
    let example = &table.examples(strongest..strongest + 1).unwrap()[0];
    assert_eq!((example.token_idx, example.act), acts[0]);
    assert!(!table.stats(strongest..strongest + 1).unwrap()[0].top_logits.is_empty());

    let report = text(&dir.path().join("report.html"));
    polariscope(&[
        "evaluate",
        &run_arg,
        "--sae",
        &sae_arg,
        "--model",
        &model,
        "--model-tokens",
        "500",
        "--report",
        &report,
    ]);
    assert!(fs::read_to_string(&report).unwrap().contains("<svg"));
    polariscope(&["verify", &run_arg]);
    polariscope(&["inspect", &run_arg]);
    polariscope(&["inspect", &sae_arg]);

    if !viewer::has_adapter() {
        eprintln!("left out: no graphics adapter, so no picture");
        return;
    }
    let shot = dir.path().join("shot.png");
    let shot_arg = text(&shot);
    polariscope(&["view", &run_arg, "--headless", "--shot", &shot_arg]);
    assert_eq!(&fs::read(&shot).unwrap()[..8], b"\x89PNG\r\n\x1a\n");
}
