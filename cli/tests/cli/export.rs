//! Does `export` write every format, say what it left out, and refuse what it cannot do?

use crate::support::{end, fails, polariscope, small_run, succeeds, text};

#[test]
fn every_format() {
    let dir = tempfile::tempdir().unwrap();
    let run = text(&small_run(dir.path()));
    for (format, inside) in [
        ("parquet", ""),
        ("npy", "blocks.2.hook_resid_post.npy"),
        ("safetensors", ""),
        ("datasets", "state.json"),
        ("sae-lens", "dataset_info.json"),
    ] {
        let out = dir.path().join(format);
        let export =
            ["export", &run, "--format", format, "--out", &text(&out), "--hook-points", "blocks.*.hook_resid_post"];
        let ended = end(&mut polariscope(&[&export[..], &["--tokens", "10..1010", "--json"]].concat()));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let left_over = if format == "sae-lens" { 1000 % 128 } else { 0 };
        assert_eq!((&report["tokens"], &report["left_over"]), (&(1000 - left_over).into(), &left_over.into()));
        assert_eq!(ended.stderr.contains("104 tokens at the end fill no sequence"), format == "sae-lens", "{ended:?}");
        assert!(if inside.is_empty() { out.is_file() } else { out.join(inside).is_file() });
        assert!(fails(&export).contains("exists already"));
    }
}

#[test]
fn what_cannot_be_exported() {
    let dir = tempfile::tempdir().unwrap();
    let run = text(&small_run(dir.path()));
    let out = text(&dir.path().join("out"));
    let export = |more: &[&str]| fails(&[&["export", &run, "--out", &out], more].concat());
    insta::assert_snapshot!("export-no-format", export(&["--format", "zarr"]));
    insta::assert_snapshot!("export-bf16", export(&["--format", "npy", "--dtype", "bf16"]));
    insta::assert_snapshot!("export-tokens", export(&["--format", "npy", "--tokens", "10"]));
    let error = export(&["--format", "npy", "--tokens", "10..100000"]);
    assert!(error.contains("expected tokens within 0.."), "{error}");
    let error = export(&["--format", "npy", "--hook-points", "blocks.0.hook_resid_post"]);
    assert!(error.contains("hint: there are `blocks.2.hook_resid_post`, `blocks.4.hook_mlp_out`"), "{error}");
    assert!(!dir.path().join("out").exists());
    succeeds(&["export", &run, "--out", &out, "--format", "npy"]);
}
