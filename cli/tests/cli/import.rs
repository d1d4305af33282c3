//! Does `import` bring every layout, say where a coder does not fit a run, and refuse what it should?

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde_json::{Value, json};

use crate::support::{end, fails, fixture, polariscope, refused, small_run, succeeds, text};

const HOOK_POINT: &str = "blocks.2.hook_resid_post";
const OTHER: &str = "blocks.4.hook_mlp_out";

fn imported(source: &Path, out: &Path, more: &[&str]) -> Value {
    let (source, out) = (text(source), text(out));
    let said = succeeds(&[&["import", &source, "--out", &out, "--json"], more].concat());
    serde_json::from_str(&said).expect("JSON")
}

#[test]
fn every_layout() {
    let dir = tempfile::tempdir().unwrap();
    let residual = |layer: u32| json!(format!("blocks.{layer}.hook_resid_post"));
    let of: [(&str, &str, Value, Value); 8] = [
        ("dictionaries/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "jumprelu", residual(20), residual(20)),
        (
            "dictionaries/gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_5/params.npz",
            "jumprelu_transcoder",
            json!("blocks.3.ln2.hook_normalized"),
            json!("blocks.3.hook_mlp_out"),
        ),
        (
            "dictionaries/gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_medium",
            "jumprelu",
            residual(9),
            residual(9),
        ),
        ("dictionaries/sparsify/layers.6", "abstopk", residual(6), residual(6)),
        ("dictionaries/llama_scope", "jumprelu", residual(7), residual(7)),
        (
            "dictionaries/circuit_tracer/relu_skip/layer_4.safetensors",
            "skip_transcoder",
            json!("blocks.4.mlp.hook_in"),
            json!("blocks.4.hook_mlp_out"),
        ),
        ("sae/gated", "gated", Value::Null, Value::Null),
        ("sae/topk", "topk", Value::Null, Value::Null),
    ];
    for (i, (name, architecture, hook, hook_out)) in of.into_iter().enumerate() {
        let out = dir.path().join(i.to_string());
        let found = imported(&fixture(name), &out, &[]);
        assert_eq!(found["architecture"], architecture, "{name}");
        assert_eq!(found["sae"], text(&out));
        assert!(found["d_sae"].as_u64().unwrap() > 20 && found["check"].is_null(), "{name}: {found}");
        if !name.starts_with("sae/") {
            assert_eq!((&found["hook_name"], &found["hook_name_out"]), (&hook, &hook_out), "{name}");
        }
        // It is one of ours, and stays what it is.
        let shown = succeeds(&["inspect", &text(&out)]);
        assert!(shown.contains(architecture), "{name}: {shown}");
        let again = fails(&["import", &text(&fixture(name)), "--out", &text(&out)]);
        assert!(again.contains("a sparse coder exists already") && again.contains("\nhint: "), "{again}");
    }
    let out = dir.path().join("named");
    let found = imported(&fixture("dictionaries/sparsify/layers.5.mlp"), &out, &["--hook-point-out", OTHER]);
    assert_eq!((&found["hook_name_out"], &found["metadata"]["hook_name_out"]), (&json!(OTHER), &json!(OTHER)));
    let out = text(&dir.path().join("words"));
    let words = succeeds(&["import", &text(&fixture("dictionaries/sparsify/layers.5")), "--out", &out]);
    assert_eq!(words, format!("topk with 37 latents, reads blocks.5.hook_resid_post\ncoder in `{out}`\n"));
}

/// A run of the tiny model, and a coder that was trained on [`HOOK_POINT`].
fn trained(dir: &Path) -> (String, PathBuf) {
    let (run, sae) = (text(&small_run(dir)), dir.join("sae"));
    let train = ["train", &run, "--hook-point", HOOK_POINT, "--out", &text(&sae), "--architecture", "topk"];
    let how = ["--d-sae", "128", "--k", "4", "--batch-tokens", "256", "--steps", "400", "--lr", "2e-3"];
    succeeds(&[&train[..], &how, &["--threads", "2"]].concat());
    (run, sae)
}

#[test]
fn what_does_not_fit_a_run_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let (run, sae) = trained(dir.path());
    let out = |name: &str| dir.path().join(name);
    let found = imported(&sae, &out("fits"), &["--check", &run]);
    assert_eq!((&found["check"]["passed"], &found["check"]["tried"]), (&json!(true), &json!(1)), "{found}");
    assert_eq!(found["check"]["as_labelled"]["hook_name"], HOOK_POINT);
    let words = succeeds(&["import", &text(&sae), "--out", &text(&out("fits-too")), "--check", &run]);
    assert!(words.contains("as its files say: L0 4.0 (label 4)") && words.ends_with("check: it fits\n"), "{words}");

    // Its files say another site.
    let config = sae.join("cfg.json");
    let said = fs::read_to_string(&config).unwrap();
    assert!(said.contains(HOOK_POINT));
    fs::write(&config, said.replace(HOOK_POINT, OTHER)).unwrap();
    let found = imported(&sae, &out("elsewhere"), &["--check", &run]);
    let check = &found["check"];
    assert_eq!((&check["passed"], &check["fits"]), (&json!(false), &json!(true)), "{found}");
    assert_eq!((&check["as_labelled"]["hook_name"], &check["best"]["hook_name"]), (&json!(OTHER), &json!(HOOK_POINT)));
    assert_eq!(check["differences"], json!([format!("it reads `{HOOK_POINT}`, not `{OTHER}`")]));
    let number = |reading: &str| check[reading]["explained_variance"].as_f64().unwrap();
    assert!(number("best") > 0.5 && number("as_labelled") < 0.5, "{check}");
    let words = succeeds(&["import", &text(&sae), "--out", &text(&out("elsewhere-too")), "--check", &run]);
    let diagnosis =
        format!("check: it does not fit so, but it does where it reads `{HOOK_POINT}`, not `{OTHER}`\nthen: ");
    assert!(words.contains(&diagnosis), "{words}");

    // A site that the run does not have, and widths that it does not have.
    let named = ["--hook-point", "blocks.6.hook_resid_post", "--check", &run];
    let found = imported(&sae, &out("absent"), &named);
    assert!(found["check"]["as_labelled"].is_null() && found["check"]["best"]["hook_name"] == HOOK_POINT, "{found}");
    let source = text(&fixture("sae/topk"));
    let error = fails(&["import", &source, "--out", &text(&out("narrow")), "--check", &run]);
    assert!(error.contains("expected a hook point of width") && error.contains("\nhint: record"), "{error}");
}

#[test]
fn what_is_refused_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let refuse = |source: &Path| {
        let error = fails(&["import", &text(source), "--out", &text(&out)]);
        assert!(!out.exists(), "{error}");
        error.replace(&text(dir.path()), "DIR")
    };
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    };
    let pickled = file("pickled/ae.pt", b"PK");
    for source in [pickled.as_path(), pickled.parent().unwrap()] {
        let error = refuse(source);
        assert!(error.contains("found a pickled file, which is never opened here"), "{error}");
        assert!(
            error.contains("\nhint: convert it in Python where you trust it: `safetensors.torch.save_file("),
            "{error}"
        );
    }
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(refuse(&empty).contains("expected a coder of SAELens (`cfg.json`), Gemma Scope"));
    let missing = refuse(&dir.path().join("missing"));
    assert!(
        missing.starts_with("error: no coder `DIR/missing`: neither a folder or file, nor one within"),
        "{missing}"
    );
    for name in ["../up/or/else", "owner/repository", "nobody"] {
        let error = fails(&["import", name, "--out", &text(&out)]);
        assert!(error.contains(&format!("no coder `{name}`")) && error.contains("\nhint: "), "{error}");
    }

    let cut = |from: &str, to: &str| {
        let whole = fs::read(fixture(from)).unwrap();
        file(to, &whole[..whole.len() / 2])
    };
    let npz = cut("dictionaries/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz", "cut.npz");
    let error = refuse(&npz);
    assert!(
        error.contains("not an `.npz` of numbers") && error.contains("`DIR/cut.npz`\nhint: copy or download"),
        "{error}"
    );
    let weights = cut("sae/topk/sae_weights.safetensors", "broken/sae_weights.safetensors");
    let error = refuse(weights.parent().unwrap());
    // Its `cfg.json` is missing too, without which the weights mean nothing.
    assert!(error.contains("cfg.json"), "{error}");
    fs::copy(fixture("sae/topk/cfg.json"), dir.path().join("broken/cfg.json")).unwrap();
    let error = refuse(weights.parent().unwrap());
    assert!(
        error.contains("not a whole safetensors file") && error.contains("sae_weights.safetensors`\nhint: "),
        "{error}"
    );
    file("broken/cfg.json", b"{\"architecture\": ");
    assert!(refuse(weights.parent().unwrap()).contains("DIR/broken/cfg.json"));

    // A run that is none is said before the coder is written.
    let source = text(&fixture("sae/topk"));
    let error = fails(&["import", &source, "--out", &text(&out), "--check", &text(&empty)]);
    assert!(error.contains("manifest.json") && !out.exists(), "{error}");
}

/// The program of the hub, as far as its exit and the folder go: what it brings is tried end to end with the real one.
#[cfg(unix)]
#[test]
fn the_hub_gives_nothing_or_is_not_there() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let source = "google/gemma-scope-2-270m-pt/resid_post/layer_9";
    let import = |path: &Path| {
        let mut command = polariscope(&["import", source, "--out", &text(&out)]);
        end(command.env("PATH", path).env("POLARISCOPE_CACHE", dir.path().join("cache")))
    };
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let error = refused(&import(&bin));
    assert!(
        error.contains("`hf` is not to be found") && error.contains("\nhint: pip install huggingface_hub"),
        "{error}"
    );
    let hf = bin.join("hf");
    fs::write(&hf, "#!/bin/sh\necho \"asked $*\" >&2\nexit 1\n").unwrap();
    fs::set_permissions(&hf, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ended = import(&bin);
    let error = refused(&ended);
    assert!(error.contains(&format!("the hub gave nothing for `{source}`")) && error.contains("\nhint: "), "{error}");
    let asked = "asked download google/gemma-scope-2-270m-pt --local-dir";
    assert!(ended.stderr.contains(asked) && ended.stderr.contains("--include resid_post/layer_9/*"), "{ended:?}");
    assert!(!out.exists() && ended.stdout.is_empty());
}
