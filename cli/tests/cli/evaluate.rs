//! Does `evaluate` put baselines beside every number, and everything into one page?

use std::path::Path;

use fs_err as fs;
use serde_json::Value;

use crate::support::{fails, fixture, succeeds, text};

const HOOK_POINT: &str = "blocks.4.hook_resid_post";

/// The mini model's run of two of our own texts, a line being a document, and coders of two layers. The first coder has a name
/// that would be markup.
fn run(dir: &Path) -> (String, String, [String; 2]) {
    let model = text(&fixture("../../data/mini"));
    let sources = ["README.md", "data/mini/README.md"];
    let corpus = sources.map(|source| {
        let lines = fs::read_to_string(fixture("../..").join(source)).expect("a text of ours");
        let path = dir.join(source.replace('/', "-"));
        fs::write(&path, lines).expect("a corpus is written");
        text(&path)
    });
    let run = text(&dir.join("run"));
    let record = ["record", &model, "--corpus", &corpus[0], &corpus[1], "--lines", "--out", &run, "--hook-points"];
    succeeds(&[&record[..], &["blocks.2.hook_resid_post,blocks.4.hook_resid_post", "--threads", "2"]].concat());
    let coders = [(HOOK_POINT, "a<b>&c"), ("blocks.2.hook_resid_post", "plain")].map(|(hook_point, name)| {
        let sae = text(&dir.join("run/saes").join(name));
        let train = ["train", &run, "--hook-point", hook_point, "--out", &sae, "--d-sae", "256", "--k", "8"];
        succeeds(&[&train[..], &["--batch-tokens", "512", "--steps", "60", "--lr", "1e-3", "--threads", "2"]].concat());
        sae
    });
    (run, model, coders)
}

#[test]
fn everything_beside_its_baselines_in_one_page() {
    let dir = tempfile::tempdir().unwrap();
    let (run, model, [sae, other]) = run(dir.path());
    let report = text(&dir.path().join("report.html"));
    let evaluate = ["evaluate", &run, "--sae", &sae, "--model", &model, "--model-tokens", "600", "--report", &report];
    let found: Value = serde_json::from_str(&succeeds(&[&evaluate[..], &["--json"]].concat())).unwrap();
    let number =
        |path: &str| found.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {found}"));
    assert!(number("/explained_variance") > number("/baselines/random_dictionary/explained_variance"));
    assert!(number("/baselines/pca/rank") >= 1.0 && number("/description_length/bits") > 0.0);
    assert_eq!(found["positions"][0]["first"], 1, "BOS is special");
    assert_eq!(found["sources"].as_array().unwrap().len(), 2);
    let cosine = number("/encoder/decoder_cosine/mean");
    assert!(cosine > 0.3 && cosine <= 1.0 && number("/encoder/mean_norm") > 0.0, "it began as the transpose: {cosine}");
    assert!(number("/encoder/mean_max_cosine") > 0.0);
    assert!(number("/recovered/zero/ce_loss") > number("/recovered/ce_loss"));
    let predictions = |at: &Value| at["n_predictions"].as_u64().unwrap();
    let positions = found["recovered"]["positions"].as_array().unwrap();
    assert_eq!(positions.iter().map(predictions).sum::<u64>(), predictions(&found["recovered"]));
    assert!(positions.len() > 4 && positions[0]["first"] == 1, "{positions:?}");
    assert!(positions.iter().all(|at| at["zero"]["kl_div"].as_f64().unwrap() > 0.0));
    assert!(number("/recovered/coder/kl_div") > 0.0 && number("/recovered/zero/ce_loss_score") == 0.0);
    assert!(number("/probing/mean/dense/auc") > 0.6, "a dense probe sees what tokens look like");
    assert!(number("/probing/n_tokens") > 1000.0);

    let page = fs::read_to_string(&report).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
    for outside in ["<script", "<link", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("a&lt;b&gt;&amp;c") && !page.contains("a<b>"));
    for part in [
        "Explained variance",
        "Random dictionary",
        "Principal components",
        "CE score",
        "dense",
        "How it was measured",
        "ΔCE by position",
        "Cosine of encoder and decoder",
        "(192 dimensions)",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(page.matches("<svg").count() >= 6 && !page.contains("NaN"));

    let words = succeeds(&["evaluate", &run, "--sae", &sae]);
    assert!(words.contains("encoder_norm") && words.contains("encoder_decoder_cosine"), "{words}");
    let words = succeeds(&["evaluate", &run, "--sae", &sae, "--sae", &other]);
    let lines: Vec<&str> = words.lines().collect();
    assert_eq!(lines.len(), 3, "{words}");
    assert!(
        lines[0].contains("EV random") && lines[2].starts_with("plain") && lines[2].contains("blocks.2"),
        "{words}"
    );
    let refused = fails(&["evaluate", &run, "--sae", &sae, "--sae", &other, "--hook-point", HOOK_POINT]);
    assert!(refused.contains("expected one `--sae` beside a hook point, found 2"), "{refused}");
    let refused =
        fails(&["evaluate", &run, "--sae", &sae, "--model", &text(&fixture("gemma3/text")), "--model-tokens", "50"]);
    assert!(refused.contains("expected activations of width 192"), "{refused}");
}
