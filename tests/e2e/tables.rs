//! Do the tables of features tell of a small real model what is known to be so, and do others read them?
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write as _;
use std::path::Path;

use data::Run;
use data::join::JoinRow;
use fs_err as fs;

use crate::support::{polariscope, text};

const HOOK_POINT: &str = "blocks.4.hook_resid_post";
const D_SAE: u32 = 256;

/// Text of our own, in two languages that a document's `meta` names; lines repeat, so that features have something to find.
fn corpus(path: &Path) {
    let english =
        ["The king of England came to the house.", "She was very old in 1812, and he was not.", "It is 4 o'clock!"];
    let german = ["Der König von England kam in das Haus.", "Sie war sehr alt, und er war es nicht.", "Es ist 4 Uhr!"];
    let mut file = fs::File::create(path).unwrap();
    for document in 0..60 {
        let (language, lines) = if document % 3 == 0 { ("de", german) } else { ("en", english) };
        let words: Vec<&str> = (0..6).map(|line| lines[(document * 7 + line * 5) % 3]).collect();
        writeln!(file, "{}", serde_json::json!({ "text": words.join(" "), "language": language })).unwrap();
    }
}

#[test]
fn features_of_a_model_with_experts_and_gates() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus_path, run_dir) = (dir.path().join("corpus.jsonl"), dir.path().join("run"));
    corpus(&corpus_path);
    let mini = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/mini"));
    let (corpus, run_arg, sae_arg) = (text(&corpus_path), text(&run_dir), text(&run_dir.join("saes/resid-4")));
    let points = format!("{HOOK_POINT},blocks.*.ple.hook_gate_pre");
    polariscope(&["record", &mini, "--corpus", &corpus, "--out", &run_arg, "--hook-points", &points]);
    let size = ["--d-sae", "256", "--k", "12", "--batch-tokens", "512", "--steps", "150"];
    polariscope(&[&["train", &run_arg, "--hook-point", HOOK_POINT, "--out", &sae_arg][..], &size].concat());
    polariscope(&["encode", &run_arg, "--sae", &sae_arg, "--model", &mini, "--memory", "100KB"]);

    let run = Run::open(&run_dir).unwrap();
    let table = run.feature_table("resid-4").unwrap();
    let stats = table.stats(0..D_SAE).unwrap();
    let groups = table.groups(0..D_SAE).unwrap();
    for stats in stats.iter().filter(|stats| stats.n_active > 0) {
        for kind in ["interval", "quantile"] {
            let of = groups.iter().filter(|group| group.feature == stats.feature && group.group.starts_with(kind));
            assert_eq!(of.map(|group| group.n_active).sum::<u64>(), stats.n_active, "{kind} of {}", stats.feature);
        }
    }
    let pairs = table.coactivation(0..D_SAE).unwrap().unwrap();
    assert!(pairs.iter().any(|pair| pair.phi > 0.5) && pairs.iter().all(|pair| pair.n_both >= 10));

    for with in ["experts", "ple", "token-class", "language"] {
        polariscope(&["join", &run_arg, "--sae", &sae_arg, "--with", with]);
    }
    let rows = |with: &str| table.join(with).unwrap();
    let best = |rows: &[JoinRow]| {
        let best = rows.iter().max_by(|a, b| a.mutual_information.total_cmp(&b.mutual_information)).unwrap();
        (best.mutual_information / best.threshold, best.label.clone())
    };
    // A stream knows the token that it stands at, and which expert takes it: far more than shuffled labels tell.
    for with in ["experts", "ple", "token-class"] {
        let (times, label) = best(&rows(with));
        assert!(times > 5.0, "{with}: {label} {times}");
    }
    // Every layer of the model has its rows, and the layer of the stream is among those that know its expert.
    let experts = rows("experts");
    let layers: std::collections::BTreeSet<_> = experts.iter().filter_map(|row| row.layer).collect();
    assert_eq!(layers.len(), run.routing_info().unwrap().layers.len());
    assert!(rows("language").iter().any(|row| row.label == "de" && row.mutual_information > row.threshold));

    // Another coder is compared with this one: with itself under another name, feature for feature.
    polariscope(&["encode", &run_arg, "--sae", &sae_arg, "--name", "again", "--coactivation", "0"]);
    let pairs_file = text(&dir.path().join("pairs.parquet"));
    polariscope(&["join", &run_arg, "--sae", "resid-4", "--with", "features-again", "--out", &pairs_file]);
    let found = table.correlation("again").unwrap();
    let first: Vec<_> = found.iter().filter(|pair| pair.rank == 0 && pair.n_both > 20).collect();
    assert!(first.len() > 20 && first.iter().all(|pair| pair.pearson > 0.999), "{:?}", first.first());
    assert_eq!(fs::read(&pairs_file).unwrap(), fs::read(table.join_file("features-again").unwrap()).unwrap());

    let query = "SELECT layer, label, feature FROM features_resid_4_joins_experts WHERE rank = 0 AND mutual_information > threshold";
    polariscope(&["query", &run_arg, query]);
    for format in ["neuronpedia", "sae-dashboard"] {
        let out = text(&dir.path().join(format));
        polariscope(&["export", &run_arg, "--format", format, "--sae", &sae_arg, "--model", &mini, "--out", &out]);
    }
    assert!(dir.path().join("sae-dashboard/batch-1.json").is_file());
    let source = dir.path().join("neuronpedia/mini/4-resid-4");
    assert!(source.join("features/batch-1.jsonl.gz").is_file() && source.join("source.jsonl").is_file());
    let batch = fs::read(dir.path().join("sae-dashboard/batch-0.json")).unwrap();
    let batch: serde_json::Value = serde_json::from_slice(&batch).unwrap();
    let feature = &batch["features"][0];
    // Every token of the vocabulary is in the histogram of logits.
    let heights = feature["logits_hist_data_bar_heights"].as_array().unwrap();
    assert_eq!(heights.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), run.vocab().unwrap().unwrap().len() as u64);
    polariscope(&["verify", &run_arg]);
}
