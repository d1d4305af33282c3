//! What can be changed and seen of the activations from the command line?
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use fs_err as fs;
use serde_json::{Value, json};

use crate::support::{fails, fixture, small_run, succeeds, text};

const PROMPT: &str = "w5 w6 w90 w8 w44";

/// A tiny Gemma 3 with a tokenizer whose words are `w3`, ` w4`, `w5`, ` w6` and so on, each with the id of its number.
fn model(dir: &Path) -> String {
    let folder = dir.join("model");
    fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture("gemma3/text").join(file), folder.join(file)).unwrap();
    }
    let special = ["<pad>", "<eos>", "<bos>"];
    let word = |id: usize| match id {
        0..3 => special[id].to_owned(),
        id if id.is_multiple_of(2) => format!("▁w{id}"),
        id => format!("w{id}"),
    };
    let vocab: serde_json::Map<String, Value> = (0..320).map(|id| (word(id), json!(id))).collect();
    let added = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": special.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w3"},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    text(&folder)
}

fn run(model: &str, args: &[&str]) -> String {
    succeeds(&[&["run", model, "--prompt", PROMPT, "--threads", "1"], args].concat())
}

fn run_json(model: &str, args: &[&str]) -> Value {
    serde_json::from_str(&run(model, &[&["--json"], args].concat())).unwrap()
}

#[test]
fn interventions_change_what_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let said = |specs: &[&str]| {
        let args: Vec<&str> = specs.iter().flat_map(|spec| ["--intervene", *spec]).collect();
        run_json(&model, &[&["--max-tokens", "6"], args.as_slice()].concat())["tokens"].clone()
    };
    let bare = said(&[]);
    assert_eq!(said(&["scale blocks.*.hook_mlp_out 1"]), bare);
    let both = said(&["zero blocks.2.hook_mlp_out @2-; scale blocks.4.hook_resid_post @\" w8\",last -3"]);
    assert_ne!(both, bare);
    assert_eq!(said(&["zero blocks.2.hook_mlp_out @2-", "scale blocks.4.hook_resid_post @\" w8\",last -3"]), both);
    let file = dir.path().join("edits.json");
    let edits = json!([
        {"do": "zero", "at": "blocks.2.hook_mlp_out", "tokens": "2-"},
        "scale blocks.4.hook_resid_post @\" w8\",last -3",
    ]);
    fs::write(&file, edits.to_string()).unwrap();
    assert_eq!(said(&[&format!("@{}", text(&file))]), both);
    // Everything of another text is that text.
    let other = run_json(&model, &["--max-tokens", "0", "--logit-lens"]);
    let args =
        ["--max-tokens", "0", "--logit-lens", "--intervene", "patch blocks.0.hook_resid_pre from \"w5 w6 w90 w8 w44\""];
    assert_eq!(run_json(&model, &args), other);
}

#[test]
fn interventions_that_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let refused = |spec: &str| fails(&["run", &model, "--prompt", PROMPT, "--intervene", spec]);
    let all = [
        "zero blocks.3.hook_mlp_uot",
        "zero blocks.3.hook_mlp_out @",
        "add blocks.3.hook_mlp_out sae:nowhere#3",
        "add blocks.3.hook_mlp_out [1, 2, 3]",
        "scale blocks.3.attn.hook_z[17] 0",
        "patch blocks.3.hook_mlp_out @17 from \"w5 w6\"",
        "zero blocks.3.hook_mlp_out @\" two words\"",
        "forbid blocks.3 experts 1",
        "@nowhere.json",
    ];
    insta::assert_snapshot!("interventions-refused", all.map(refused).join("\n"));
}

#[test]
fn the_lens_shows_layers_and_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let found = run_json(&model, &["--max-tokens", "2", "--logit-lens", "--at", "0-"]);
    let rows = found["logit_lens"].as_array().unwrap();
    assert_eq!(rows.len(), 8, "before the first of seven layers and behind each");
    let last = rows[7]["tokens"].as_array().unwrap();
    assert_eq!(last.len(), 7, "five words with their beginning, and a token that was generated");
    // The most probable token behind the prompt is what greedy generation says, and it has rank 1.
    assert_eq!(last[5]["top"][0]["id"], found["tokens"][0]);
    assert_eq!((&last[5]["next"]["rank"], &last[5]["next"]["id"]), (&json!(1), &found["tokens"][0]));

    let one = run(&model, &["--max-tokens", "1", "--logit-lens"]);
    assert!(one.contains("logit lens behind \" w44\" at 5") && one.contains("blocks.6.hook_resid_post"), "{one}");
    let grid = run(&model, &["--max-tokens", "1", "--logit-lens", "--at", "1,3-4"]);
    assert!(grid.contains("1 \"w5\"") && grid.contains("4 \" w8\"") && !grid.contains("5 \" w44\""), "{grid}");
    let error = fails(&["run", &model, "--prompt", PROMPT, "--attribution", "id:320"]);
    assert!(error.contains("expected a token id below 320, found 320"), "{error}");
    let error = fails(&["run", &model, "--prompt", PROMPT, "--logit-lens", "--at", "99"]);
    assert!(error.contains("no token at `99`") && error.contains("hint: "), "{error}");
}

#[test]
fn attribution_adds_up() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    for detail in [&[][..], &["--detail", "heads"]] {
        let args = [&["--max-tokens", "0", "--attribution", " w8", "--against", "id:31"], detail].concat();
        let found = run_json(&model, &args)["attribution"][0].clone();
        let parts = found["contributions"].as_array().unwrap();
        let sum: f64 = parts.iter().map(|part| part["value"].as_f64().unwrap()).sum();
        let logit = found["logit"].as_f64().unwrap();
        assert!((sum - logit).abs() < 1e-3, "{sum} for {logit}");
        assert_eq!(found["position"], 5);
    }
    let shown = run(&model, &["--max-tokens", "0", "--attribution", "--at", "2"]);
    assert!(shown.contains(" at 2\nhook_embed") && shown.contains("logit, before any softcap"), "{shown}");
}

#[test]
fn a_cache_is_written_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let file = text(&dir.path().join("acts.safetensors"));
    let points = "blocks.*.hook_resid_pre,blocks.1.attn.hook_pattern";
    let found =
        run_json(&model, &["--max-tokens", "3", "--cache", &file, "--cache-points", points, "--patterns", "blocks.1"]);
    assert_eq!(found["cache"], json!(file));
    let heads = found["patterns"].as_array().unwrap();
    let weights: f64 = heads[0]["keys"].as_array().unwrap().iter().map(|key| key["weight"].as_f64().unwrap()).sum();
    assert!(heads.len() >= 2 && weights <= 1.0001 && weights > 0.3, "{heads:?}");

    let bytes = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header["blocks.6.hook_resid_pre"]["shape"][0], 8, "six tokens of the prompt, two that were generated");
    assert_eq!(header["blocks.1.attn.hook_pattern"]["shape"][2], 8);
    assert!(header["__metadata__"]["texts"].as_str().unwrap().starts_with("[\"<bos>\",\"w5\",\" w6\""));

    // The cache of a text is as good as the text.
    let lens = |spec: &str| {
        run_json(&model, &["--max-tokens", "0", "--logit-lens", "--intervene", spec])["logit_lens"].clone()
    };
    let by_cache = lens(&format!("patch blocks.3.hook_resid_pre @2-4 from cache:{file}"));
    assert_eq!(by_cache, lens("patch blocks.3.hook_resid_pre @2-4 from \"w5 w6 w90 w8 w44\""));

    // What is shown beside it does not get into the file.
    let only = ["--cache-points", "blocks.2.hook_mlp_out", "--patterns", "blocks.1", "--logit-lens"];
    run(&model, &[&["--max-tokens", "0", "--cache", &file], &only[..]].concat());
    let bytes = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let names: Vec<&String> = header.as_object().unwrap().keys().filter(|name| name.starts_with("blocks.")).collect();
    assert_eq!(names, ["blocks.2.hook_mlp_out"]);
    let shown = run(&model, &["--max-tokens", "1", "--patterns", "blocks.1"]);
    assert!(shown.contains("blocks.1.attn.hook_pattern\nhead 0") && shown.contains("\" w44\" at 5"), "{shown}");
}

#[test]
fn a_mean_over_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let recorded = small_run(dir.path());
    let manifest: Value = serde_json::from_slice(&fs::read(recorded.join("manifest.json")).unwrap()).unwrap();
    let statistics = &manifest["statistics"]["blocks.4.hook_mlp_out"];
    let n = statistics["n"].as_f64().unwrap();
    let mean: Vec<f32> =
        statistics["sum"].as_array().unwrap().iter().map(|sum| (sum.as_f64().unwrap() / n) as f32).collect();

    let file = text(&dir.path().join("acts.safetensors"));
    let spec = format!("mean blocks.4.hook_mlp_out @2-3 from run:{}", text(&recorded));
    let args = ["--max-tokens", "0", "--cache", &file, "--cache-points", "blocks.4.hook_mlp_out", "--intervene", &spec];
    run(&model, &args);
    let bytes = fs::read(&file).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let values: Vec<f32> =
        bytes[start..].chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    let rows: Vec<&[f32]> = values.chunks_exact(mean.len()).collect();
    assert_eq!(rows.len(), 6);
    assert!(rows[2] == mean && rows[3] == mean && rows[1] != mean && rows[4] != mean);

    let error = fails(&["run", &model, "--prompt", PROMPT, "--intervene", &spec.replace("blocks.4", "blocks.3")]);
    assert!(error.contains("it has no statistics of `blocks.3.hook_mlp_out`"), "{error}");
    let error = fails(&["run", &model, "--prompt", PROMPT, "--intervene", &spec.replace("mean", "patch")]);
    assert!(error.contains("a run has no positions"), "{error}");
}

#[test]
fn patching_gives_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let args =
        ["patch", &model, "--clean", "w5 w6 w90 w8", "--corrupt", "w5 w6 w92 w8", "--answer", " w44", "--wrong", "w31"];
    let points =
        ["--hook-points", "blocks.0.hook_resid_pre,blocks.6.hook_resid_post,blocks.*.attn.hook_z[1]", "--threads", "1"];
    let all = [&args[..], &points[..], &["--direction", "both"]].concat();
    let found: Value = serde_json::from_str(&succeeds(&[&all[..], &["--json"]].concat())).unwrap();
    for (table, there) in found["tables"].as_array().unwrap().iter().zip([1.0, 0.0]) {
        let at = |row: usize, position: usize| table["rows"][row]["normalised"][position].as_f64().unwrap();
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-3, "{table}");
        // At the bottom only the token that differs matters, at the top only the last one.
        for position in [0, 1, 2, 4] {
            near(at(0, position), 1.0 - there);
        }
        near(at(0, 3), there);
        near(at(1, 3), 1.0 - there);
        near(at(1, 4), there);
    }
    let shown = succeeds(&all);
    assert!(shown.contains("3 \" w90\"/\" w92\"") && shown.contains("blocks.6.attn.hook_z[1]"), "{shown}");
    assert!(shown.contains("denoise: ") && shown.contains("noise: ") && !shown.contains("2 \" w6\""), "{shown}");

    let mut unequal = args;
    unequal[5] = "w5 w6 w92";
    let error = fails(&unequal);
    assert!(
        error.contains("expected two texts of equally many tokens, found 5 and 4") && error.contains("hint: "),
        "{error}"
    );
    let error = fails(&[&args[..], &["--hook-points", "blocks.0.attn.hook_pattern"]].concat());
    assert!(error.contains("expected a hook point with an activation for each token"), "{error}");
}
