//! Does `join` print what it found, and refuse what it cannot join?

use std::path::{Path, PathBuf};

use crate::support::{end, fails, polariscope, small_run, succeeds, text};

/// A run with a small coder that was trained and encoded.
fn encoded(dir: &Path) -> PathBuf {
    let run = small_run(dir);
    let (arg, sae) = (text(&run), text(&run.join("saes/c")));
    let size = ["--d-sae", "48", "--k", "6", "--batch-tokens", "256", "--steps", "40", "--threads", "1"];
    let hook = ["--hook-point", "blocks.2.hook_resid_post"];
    succeeds(&[&["train", &arg, "--out", &sae][..], &hook, &size].concat());
    succeeds(&["encode", &arg, "--sae", &sae, "--threads", "1"]);
    run
}

#[test]
fn tables_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let run = text(&encoded(dir.path()));
    // The model has no tokenizer, so its tokens have no letters; their documents have a source.
    let out = dir.path().join("source.parquet");
    let join = ["join", &run, "--sae", "c", "--with", "source", "--min-count", "5"];
    let words = succeeds(&[&join[..], &["--out", &text(&out)]].concat());
    assert!(words.starts_with("features of `c` with source: 40 documents by what is recorded, 0 unknown\n"), "{words}");
    assert!(words.contains("no feature tells more of a label than of shuffled labels"), "{words}");
    assert!(out.is_file());
    assert!(fails(&[&join[..], &["--out", &text(&out)]].concat()).contains("expected a file that does not exist yet"));
    let found: serde_json::Value = serde_json::from_str(&succeeds(&[&join[..], &["--json"]].concat())).unwrap();
    assert_eq!((found["with"].as_str(), found["layers"].as_array().map(Vec::len)), (Some("source"), Some(1)));

    let own = succeeds(&["join", &run, "--sae", "c", "--with", "features-c", "--min-count", "2", "--show", "3"]);
    assert!(own.contains("features of `c` have a partner in `c`") && own.lines().count() <= 5, "{own}");
    assert!(succeeds(&["query", &run]).contains("features_c_joins_source"));
    succeeds(&["verify", &run]);
}

#[test]
fn what_cannot_be_joined() {
    let dir = tempfile::tempdir().unwrap();
    let run = text(&encoded(dir.path()));
    let join = |more: &[&str]| fails(&[&["join", &run, "--sae", "c", "--with"], more].concat());
    assert!(join(&["experts"]).contains("no routing:"));
    assert!(join(&["ple"]).contains("`blocks.N.ple.hook_gate_pre` was not recorded"));
    assert!(join(&["source", "--layer", "2"]).contains("expected no layers"));
    assert!(join(&["source", "--other-run", &run]).contains("expected no `--other-run`"));
    assert!(join(&["features-d"]).contains("expected a feature table of the run, found `d`"));
    insta::assert_snapshot!("join-unknown", join(&["colour"]));
    let other = fails(&["join", &run, "--sae", "runs/d", "--with", "source"]);
    assert!(other.contains("found `d`") && other.contains("there is `c`"), "{other}");

    let out = text(&dir.path().join("out"));
    let export = |more: &[&str]| fails(&[&["export", &run, "--out", &out, "--format", "sae-dashboard"], more].concat());
    assert!(export(&[]).contains("expected `--sae` with `--format sae-dashboard`"));
    assert!(export(&["--sae", "c", "--features", "5"]).contains("expected features as `A..B` within 0..48"));
    assert!(export(&["--sae", "c", "--tokens", "..5"]).contains("expected no `--hook-points`"));
    assert!(export(&["--sae", "c", "--source-set", "a/b"]).contains("cannot be the name of a source set"));
    let ended = end(&mut polariscope(&["export", &run, "--out", &out, "--format", "npy", "--sae", "c"]));
    assert!(ended.code == Some(1) && ended.stderr.contains("expected no `--sae`"), "{ended:?}");
    // The coder lies in the run, under the name that the table has of it.
    let said = succeeds(&["export", &run, "--out", &out, "--format", "sae-dashboard", "--sae", "c"]);
    assert!(said.contains(": 48 features, "), "{said}");
}

#[test]
fn what_was_not_encoded() {
    let dir = tempfile::tempdir().unwrap();
    let run = text(&small_run(dir.path()));
    let error = fails(&["join", &run, "--sae", "saes/c", "--with", "source"]);
    assert!(error.contains("no feature table is in") && error.contains("hint: `polariscope encode"), "{error}");
}
