//! Does every kind of bad input end in one sentence that names the thing, and leave what was durable?

use std::path::Path;
use std::process::Command;

use fs_err as fs;
use tempfile::TempDir;

use crate::support::{
    end, fails, fixture, polariscope, refused, small_run, succeeds, text, tiny_model, token_corpus, tree,
};

fn temp() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// A copy of the tiny model whose weight file went through `change`.
fn broken_model(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let (from, to) = (fixture("gemma3/text"), dir.join("model"));
    fs::create_dir(&to).expect("a folder");
    fs::copy(from.join("config.json"), to.join("config.json")).expect("a copy");
    let mut bytes = fs::read(from.join("model.safetensors")).expect("the weights");
    change(&mut bytes);
    fs::write(to.join("model.safetensors"), bytes).expect("a copy");
    text(&to)
}

/// Tries to record and wants it refused before anything is written.
#[track_caller]
fn cannot_record(dir: &Path, model: &str, corpus: &str, more: &[&str]) -> String {
    let out = text(&dir.join("out"));
    let mut args = vec!["record", model, "--corpus", corpus, "--out", &out];
    args.extend(more);
    let error = fails(&args);
    assert!(!dir.join("out/manifest.json").exists(), "a manifest is there after: {error}");
    error
}

#[track_caller]
fn assert_names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn gguf_header_cut_short_or_absurd() {
    let dir = temp();
    let corpus = token_corpus(&dir.path().join("c.jsonl"), 1);
    let mut oversized = b"GGUF\x03\0\0\0".to_vec();
    oversized.extend(u64::MAX.to_le_bytes());
    oversized.extend(u64::MAX.to_le_bytes());
    let cases: [(&str, &[u8]); 4] = [
        ("empty", b""),
        ("cut", b"GGUF\x03\0\0\0\x07"),
        ("oversized", &oversized),
        ("other", b"PK\x03\x04 not a model"),
    ];
    for (name, bytes) in cases {
        let path = dir.path().join(format!("{name}.gguf"));
        fs::write(&path, bytes).unwrap();
        let error = cannot_record(dir.path(), &text(&path), &corpus, &[]);
        assert_names(&error, &[&format!("{name}.gguf")]);
        assert_names(&fails(&["inspect", &text(&path)]), &[&format!("{name}.gguf")]);
    }
}

#[test]
fn safetensors_header_cut_short_or_absurd() {
    let changes: [fn(&mut Vec<u8>); 4] = [
        // In the header, in the data, everything, and a header of 2^60 bytes.
        |bytes| bytes.truncate(100),
        |bytes| bytes.truncate(bytes.len() - 1),
        Vec::clear,
        |bytes| bytes[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes()),
    ];
    for change in changes {
        let dir = temp();
        let corpus = token_corpus(&dir.path().join("c.jsonl"), 1);
        let model = broken_model(dir.path(), change);
        let error = cannot_record(dir.path(), &model, &corpus, &[]);
        assert_names(&error, &["model.safetensors"]);
    }
}

#[test]
fn architecture_and_tensors_that_are_not_known() {
    let dir = temp();
    let corpus = token_corpus(&dir.path().join("c.jsonl"), 1);
    let model = broken_model(dir.path(), |bytes| {
        let name = b"model.norm.weight";
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        bytes[at..at + name.len()].copy_from_slice(b"model.nerm.weight");
    });
    let error = cannot_record(dir.path(), &model, &corpus, &[]);
    assert_names(&error, &["model.nerm.weight", "hint: "]);

    let config = dir.path().join("model/config.json");
    let json = fs::read_to_string(&config).unwrap();
    let json = json.replace("Gemma3ForCausalLM", "LlamaForCausalLM").replace("gemma3_text", "llama");
    fs::write(&config, json).unwrap();
    let error = cannot_record(dir.path(), &model, &corpus, &[]);
    assert!(error.contains("`LlamaForCausalLM`") || error.contains("`llama`"), "{error}");
    assert_names(&error, &["config.json"]);
}

#[test]
fn hook_points_that_do_not_exist() {
    let dir = temp();
    let corpus = token_corpus(&dir.path().join("c.jsonl"), 1);
    let record = |list: &str| cannot_record(dir.path(), &tiny_model(), &corpus, &["--hook-points", list]);
    assert_names(&record("blocks.*.hook_resid_pots"), &["hook_resid_pots", "hint: ", "hook_resid_post"]);
    assert_names(&record("blocks.7.hook_resid_post"), &["7", "blocks.7.hook_resid_post"]);
    assert_names(&record("blocks.0.attn.hook_pattern"), &["blocks.0.attn.hook_pattern", "hint: "]);
    assert_names(&record(" , "), &["hint: "]);
}

#[test]
fn corpora_that_hold_nothing_or_are_not_text() {
    let dir = temp();
    let record = |corpus: &Path| cannot_record(dir.path(), &tiny_model(), &text(corpus), &[]);
    let missing = dir.path().join("missing.txt");
    assert_names(&record(&missing), &["missing.txt"]);

    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    assert_names(&record(&folder), &["folder"]);

    let empty = dir.path().join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    assert_names(&record(&empty), &["corpus", "hint: "]);

    let latin = dir.path().join("latin.txt");
    fs::write(&latin, b"caf\xe9").unwrap();
    assert_names(&record(&latin), &["latin.txt", "UTF-8"]);

    let lines = dir.path().join("lines.jsonl");
    fs::write(&lines, "{\"tokens\": [5, 6]}\n{\"tokens\": \n").unwrap();
    let out = text(&dir.path().join("lines-out"));
    let error = fails(&["record", &tiny_model(), "--corpus", &text(&lines), "--out", &out]);
    assert_names(&error, &["lines.jsonl", "2"]);

    let ids = dir.path().join("ids.jsonl");
    fs::write(&ids, "{\"tokens\": [5, 320]}\n").unwrap();
    let out = text(&dir.path().join("ids-out"));
    let error = fails(&["record", &tiny_model(), "--corpus", &text(&ids), "--out", &out]);
    assert_names(&error, &["ids.jsonl", "320"]);
}

#[test]
fn text_for_a_model_without_tokenizer() {
    let dir = temp();
    let corpus = dir.path().join("news.txt");
    fs::write(&corpus, "Some news.").unwrap();
    let error = cannot_record(dir.path(), &tiny_model(), &text(&corpus), &[]);
    assert_names(&error, &["tokenizer", "news.txt", "hint: "]);
    assert_names(&fails(&["run", &tiny_model(), "--prompt", "Hello"]), &["tokenizer", "hint: "]);
}

#[test]
fn a_run_of_a_newer_version() {
    let dir = temp();
    let run = small_run(dir.path());
    let path = run.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    manifest["version"] = 99.into();
    fs::write(&path, manifest.to_string()).unwrap();
    let run = text(&run);
    let sae = text(&dir.path().join("sae"));
    let commands: [&[&str]; 4] = [
        &["inspect", &run],
        &["verify", &run],
        &["train", &run, "--hook-point", "blocks.2.hook_resid_post", "--out", &sae],
        &["encode", &run, "--sae", &sae],
    ];
    for command in commands {
        assert_names(&fails(command), &["99", "hint: "]);
    }
    assert!(!Path::new(&sae).exists());
}

#[test]
fn a_shard_that_is_missing_or_damaged() {
    let dir = temp();
    let run = small_run(dir.path());
    succeeds(&["verify", &text(&run)]);
    let shard = run.join("acts/hook_point=blocks.2.hook_resid_post/shard-00001.parquet");
    let whole = fs::read(&shard).unwrap();

    let mut damaged = whole.clone();
    damaged[whole.len() / 3] ^= 1;
    fs::write(&shard, damaged).unwrap();
    assert_names(&fails(&["verify", &text(&run)]), &["blocks.2.hook_resid_post", "shard-00001.parquet"]);

    fs::remove_file(&shard).unwrap();
    let name = "shard-00001.parquet";
    assert_names(&fails(&["verify", &text(&run)]), &[name]);
    let sae = text(&run.join("saes/a"));
    let train = ["train", &text(&run), "--hook-point", "blocks.2.hook_resid_post", "--d-sae", "64", "--out", &sae];
    assert_names(&fails(&train), &[name, "hint: "]);
    assert!(!run.join("saes/a/cfg.json").exists());
}

#[test]
fn a_run_that_is_there_already_is_not_overwritten() {
    let dir = temp();
    let run = small_run(dir.path());
    let before = tree(&run, &[]);
    let corpus = token_corpus(&dir.path().join("other.jsonl"), 3);
    let error = fails(&["record", &tiny_model(), "--corpus", &corpus, "--out", &text(&run)]);
    assert_names(&error, &["run", "hint: ", "--resume"]);
    assert!(tree(&run, &[]) == before);
}

/// A limit on the size of files stands for a disk that is full: both refuse a write in the middle of a shard.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full() {
    let dir = temp();
    let corpus = token_corpus(&dir.path().join("c.jsonl"), 40);
    let out = dir.path().join("run");
    let mut limited = Command::new("sh");
    // Without the trap the system would kill the program instead of refusing the write.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_polariscope")]);
    let shards = ["--shard-tokens", "500", "--hook-points", "blocks.2.hook_resid_post"];
    limited.args(["record", &tiny_model(), "--corpus", &corpus, "--out", &text(&out)]).args(shards);
    let error = refused(&end(&mut limited));
    assert_names(&error, &["run"]);

    // Nothing half-written has a final name, and with room the same command goes on.
    let left = tree(&out, &["manifest.json"]);
    let unfinished: Vec<&String> =
        left.iter().map(|(name, _)| name).filter(|name| name.ends_with(".parquet")).collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
    let mut args = vec!["record", "--resume", "--corpus", &corpus, "--out"];
    let (out, model) = (text(&out), tiny_model());
    args.extend([&out, &model].map(String::as_str));
    args.extend(shards);
    succeeds(&args);
    succeeds(&["verify", &out]);
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = temp();
    let corpus = token_corpus(&dir.path().join("c.jsonl"), 1);
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o555)).unwrap();
    // The permissions mean nothing to root, but nobody makes folders in /proc.
    let folder = if fs::write(folder.join("probe"), "").is_ok() { Path::new("/proc").to_owned() } else { folder };
    let out = text(&folder.join("polariscope-run"));
    let error = fails(&["record", &tiny_model(), "--corpus", &corpus, "--out", &out]);
    assert_names(&error, &["polariscope-run"]);

    let run = small_run(dir.path());
    let train = ["train", &text(&run), "--hook-point", "blocks.2.hook_resid_post", "--d-sae", "64", "--out", &out];
    assert_names(&fails(&train), &["polariscope-run"]);
}

#[test]
fn what_is_no_run_and_no_coder() {
    let dir = temp();
    let path = text(dir.path());
    assert_names(&fails(&["verify", &path]), &["manifest.json", &path]);
    assert_names(&fails(&["inspect", &path]), &[&path]);
    let run = text(&small_run(dir.path()));
    assert_names(&fails(&["encode", &run, "--sae", &path]), &[&path]);
    let train = ["train", &run, "--hook-point", "blocks.3.hook_resid_post", "--out", &path];
    assert_names(&fails(&train), &["blocks.3.hook_resid_post"]);
    let ended = end(&mut polariscope(&["view", &path, "--headless", "--shot", "/nonexistent/a.png"]));
    assert_names(&refused(&ended), &["manifest.json"]);
}
