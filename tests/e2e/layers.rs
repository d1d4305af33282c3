//! Do coders between layers go the whole way: trained in a sweep, encoded, evaluated in the model, joined, and opened again?

use data::Run;
use fs_err as fs;

use crate::support::{fixture, polariscope, text, token_corpus};

#[test]
fn coders_between_layers_go_the_whole_way() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, run_dir) = (dir.path().join("corpus.jsonl"), dir.path().join("run"));
    token_corpus(&corpus, 80);
    let (model, corpus, run_arg) = (text(&fixture("gemma3/text")), text(&corpus), text(&run_dir));
    let points = "blocks.*.mlp.hook_in,blocks.*.hook_mlp_out,blocks.*.hook_resid_post";
    polariscope(&["record", &model, "--corpus", &corpus, "--out", &run_arg, "--hook-points", points]);
    let n_layers = Run::open(&run_dir).unwrap().manifest().model.shape.n_layers;

    let sweep = dir.path().join("sweep.toml");
    let settings = "d_sae = 84\nbatch_tokens = 512\nsteps = 80\n\
                    [[coders]]\nhook_point = \"blocks.1-3.hook_resid_post\"\ncausal = [false, true]\nk = 12\n\
                    [[coders]]\nhook_point = \"blocks.*.mlp.hook_in\"\nhook_point_out = \"blocks.*.hook_mlp_out\"\n\
                    per_layer = true\nk = 3\n";
    fs::write(&sweep, settings).unwrap();
    let saes = text(&run_dir.join("saes"));
    polariscope(&["train", &run_arg, "--sweep", &text(&sweep), "--out", &saes]);
    let run = Run::open(&run_dir).unwrap();
    let names = run.saes().unwrap();
    assert_eq!(names.len(), 3, "{names:?}");

    for name in &names {
        let sae = format!("{saes}/{name}");
        let report = text(&dir.path().join(format!("{name}.html")));
        polariscope(&["encode", &run_arg, "--sae", &sae, "--model", &model]);
        polariscope(&[
            "evaluate",
            &run_arg,
            "--sae",
            &sae,
            "--model",
            &model,
            "--model-tokens",
            "512",
            "--report",
            &report,
        ]);
        assert!(fs::read_to_string(&report).unwrap().contains("By hook point that is written"));
        polariscope(&["join", &run_arg, "--sae", name, "--with", "token-class"]);
        polariscope(&["inspect", &sae]);
        let table = run.feature_table(name).unwrap();
        let summary = table.summary().unwrap();
        assert!(summary.n_active.iter().sum::<u64>() > 1000, "{name}");
        let stats = table.stats(0..84).unwrap();
        assert!(stats.iter().all(|stats| !stats.top_logits.is_empty()), "{name}");
    }
    // A cross-layer transcoder has latents at every layer, and lies as circuit-tracer's do.
    let clt = names.iter().find(|name| name.contains("mlp")).unwrap();
    let info = run.feature_table(clt).unwrap().info().clone();
    assert_eq!(info.groups.len(), n_layers);
    assert_eq!(info.hook_point_of(83).to_string(), format!("blocks.{}.mlp.hook_in", n_layers - 1));
    let folder = run_dir.join("saes").join(clt);
    assert!(fs::read_to_string(folder.join("config.yaml")).unwrap().contains("cross_layer_transcoder"));
    fs::remove_file(folder.join("cfg.json")).unwrap();
    let again = text(&dir.path().join("again"));
    polariscope(&["import", &text(&folder), "--out", &again, "--check", &run_arg]);
    let read = |folder: &std::path::Path| fs::read(folder.join("W_dec_0.safetensors")).unwrap();
    assert_eq!(read(&folder), read(again.as_ref()));
}
