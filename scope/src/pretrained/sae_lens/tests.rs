//! Do we compute what SAELens computes, and is what is damaged named?

use super::*;
use crate::{
    SparseRows,
    sae::Scratch,
    testing::{EXPECTED_ROWS, check_expected},
};

/// What SAELens computed, see `tests/fixtures/make_sae_fixtures.py`.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/sae");
const D_IN: usize = 12;
const D_SAE: usize = 40;
const ROWS: usize = EXPECTED_ROWS;

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

/// The fixtures and the names under which we save them.
const CODERS: [(&str, &str); 18] = [
    ("topk", "topk"),
    ("topk_rescaled", "topk"),
    ("topk_trained", "topk"),
    ("topk_flat", "topk"),
    ("batchtopk", "jumprelu"),
    ("jumprelu", "jumprelu"),
    ("jumprelu_bf16", "jumprelu"),
    ("standard", "standard"),
    ("gated", "gated"),
    ("abstopk", "abstopk"),
    ("matching_pursuit", "matching_pursuit"),
    ("constant_norm", "standard"),
    ("layer_norm", "topk"),
    ("hook_z", "jumprelu"),
    ("transcoder", "transcoder"),
    ("skip_transcoder", "skip_transcoder"),
    ("jumprelu_transcoder", "jumprelu_transcoder"),
    ("jumprelu_skip_transcoder", "jumprelu_skip_transcoder"),
];

/// Checkpoints from the middle of a training, with what is not folded yet beside the weights.
const CHECKPOINTS: [(&str, &str); 4] = [
    ("topk_checkpoint", "topk"),
    ("batchtopk_checkpoint", "jumprelu"),
    ("whitened_topk_checkpoint", "topk"),
    ("whitened_gated_checkpoint", "gated"),
];

#[test]
fn coders_that_saelens_saved_give_what_saelens_computes() {
    for (name, architecture) in CODERS.into_iter().chain(CHECKPOINTS) {
        let sae = Sae::load(fixture(name)).unwrap();
        assert_eq!((sae.d_in(), sae.d_sae(), sae.architecture().as_str()), (D_IN, D_SAE, architecture), "{name}");
        let (input, output) = match name {
            "hook_z" => ("blocks.9.attn.hook_z", "blocks.9.attn.hook_z"),
            _ if architecture.ends_with("transcoder") => ("blocks.9.mlp.hook_in", "blocks.9.hook_mlp_out"),
            _ => ("blocks.9.hook_resid_post", "blocks.9.hook_resid_post"),
        };
        assert_eq!((sae.hook_name(), sae.hook_name_out()), (Some(input), Some(output)), "{name}");
        check_expected(&sae, &fixture(name), D_SAE);
    }
    let trained = Sae::load(fixture("batchtopk")).unwrap();
    assert_eq!(trained.metadata["training_architecture"], "batchtopk");
    let Activation::JumpRelu { threshold } = trained.activation else { panic!("a BatchTopK is saved as a JumpReLU") };
    // Folded with scale 0.5 while ranking by decoder norm: 1.1 / 0.5.
    assert!(threshold.iter().all(|&threshold| (threshold - 2.2).abs() < 1e-6));
}

#[test]
fn saving_and_loading_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (name, _) in CODERS.into_iter().chain(CHECKPOINTS) {
        let sae = Sae::load(fixture(name)).unwrap();
        let dir = folder.path().join(name);
        sae.save(&dir).unwrap();
        let again = Sae::load(&dir).unwrap();
        assert_eq!(sae, again);
        check_expected(&again, &fixture(name), D_SAE);
        let mut files: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, [CONFIG_FILE, WEIGHTS_FILE, "sums.json"], "no temporary file is left");
    }
}

/// `check_saelens_opens.py` asks SAELens itself; here its own files say which names, shapes and settings it wants.
#[test]
fn what_is_saved_has_the_names_that_saelens_gives() {
    let folder = tempfile::tempdir().unwrap();
    let read = |dir: &Path| {
        let config = read_object(&dir.join(CONFIG_FILE)).unwrap();
        let path = dir.join(WEIGHTS_FILE);
        let bytes = fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut shapes: Vec<_> =
            tensors.tensors().into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())).collect();
        shapes.sort();
        (config, shapes)
    };
    for (name, _) in CODERS.into_iter().filter(|(name, _)| *name != "topk_flat") {
        let sae = Sae::load(fixture(name)).unwrap();
        let dir = folder.path().join(name);
        sae.save(&dir).unwrap();
        let ((ours, our_shapes), (mut theirs, their_shapes)) = (read(&dir), read(&fixture(name)));
        assert_eq!(our_shapes, their_shapes, "{name}");
        // The rescaling by decoder norms is folded, and weights are written in f32.
        for (key, value) in [("rescale_acts_by_decoder_norm", json!(false)), ("dtype", json!("float32"))] {
            if theirs.contains_key(key) {
                theirs.insert(key.into(), value);
            }
        }
        for (key, value) in &ours {
            let (a, b) = (value.as_f64(), theirs[key].as_f64());
            let close = a.zip(b).is_some_and(|(a, b)| (a - b).abs() < 1e-6);
            assert!(value == &theirs[key] || close, "{name}: `{key}` is {value}, SAELens has {}", theirs[key]);
        }
        assert_eq!(ours.len(), theirs.len(), "{name}: {:?} and {:?}", ours.keys(), theirs.keys());
    }
}

#[test]
fn weights_stay_in_their_file() {
    // Nothing is folded into this one.
    let sae = Sae::load(fixture("jumprelu")).unwrap();
    assert!(sae.w_enc.is_mapped() && sae.w_dec.is_mapped());
    assert!(!Sae::load(fixture("jumprelu_bf16")).unwrap().w_dec.is_mapped());
    let mut changed = sae.clone();
    changed.fold_input_scale(2.0);
    assert_eq!(changed.w_enc.row(3)[5], 2.0 * sae.w_enc.row(3)[5]);
    assert!(!changed.w_enc.is_mapped() && sae.w_enc.is_mapped());
}

#[test]
fn folding_the_scale_keeps_activations_and_scales_reconstructions() {
    const SCALE: f32 = 0.125;
    for name in ["topk", "batchtopk", "jumprelu"] {
        let mut sae = Sae::load(fixture(name)).unwrap();
        sae.apply_b_dec_to_input = true;
        let scaled: Vec<f32> = (0..ROWS * D_IN).map(|i| ((i * 37) % 23) as f32 / 6.0 - 1.5).collect();
        let raw: Vec<f32> = scaled.iter().map(|x| x / SCALE).collect();
        let run = |sae: &Sae, x: &[f32]| {
            let (mut acts, mut out) = (SparseRows::new(), vec![0.0; ROWS * D_IN]);
            sae.encode(x, &mut Scratch::default(), &mut acts);
            sae.decode(&acts, x, &mut out);
            (acts, out)
        };
        let before = run(&sae, &scaled);
        sae.fold_input_scale(SCALE);
        let after = run(&sae, &raw);
        // The scale is a power of two, so nothing is rounded.
        assert_eq!(before.0, after.0, "{name}");
        for (before, after) in before.1.iter().zip(&after.1) {
            assert!((before - after * SCALE).abs() < 1e-6, "{name}");
        }
        sae.fold_input_scale(1.0 / SCALE);
        assert_eq!(run(&sae, &scaled), before, "and back");
    }
}

#[test]
fn the_old_logarithmic_threshold() {
    let folder = tempfile::tempdir().unwrap();
    let sae = Sae::load(fixture("jumprelu")).unwrap();
    sae.save(folder.path()).unwrap();
    let logs = vec![0.5_f32.ln(); D_SAE];
    let named = [
        Named { name: "W_enc".into(), shape: vec![D_IN, D_SAE], values: sae.w_enc.as_slice() },
        Named { name: "W_dec".into(), shape: vec![D_SAE, D_IN], values: sae.w_dec.as_slice() },
        Named { name: "b_enc".into(), shape: vec![D_SAE], values: &sae.b_enc },
        Named { name: "b_dec".into(), shape: vec![D_IN], values: &sae.b_dec },
        Named { name: "log_threshold".into(), shape: vec![D_SAE], values: &logs },
    ];
    tensors::write(&folder.path().join(WEIGHTS_FILE), &named, None).unwrap();
    let Activation::JumpRelu { threshold } = Sae::load(folder.path()).unwrap().activation else { panic!() };
    assert!(threshold.iter().all(|&threshold| (threshold - 0.5).abs() < 1e-6));
}

/// A copy of a fixture with its configuration changed, and the message with which it is refused.
fn refused(change: impl FnOnce(&mut Value)) -> String {
    let folder = tempfile::tempdir().unwrap();
    Sae::load(fixture("topk")).unwrap().save(folder.path()).unwrap();
    let path = folder.path().join(CONFIG_FILE);
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    let message = Sae::load(folder.path()).unwrap_err().to_string();
    message.replace(&folder.path().display().to_string(), "DIR")
}

#[test]
fn a_configuration_that_is_wrong_is_named() {
    assert_eq!(
        refused(|config| config["d_in"] = json!(13)),
        "expected `W_enc` of shape [13, 40], found [12, 40] in `DIR/sae_weights.safetensors`"
    );
    assert_eq!(
        refused(|config| config["d_sae"] = json!("many")),
        "expected `d_sae` as a positive number, found `\"many\"` in `DIR/cfg.json`"
    );
    assert_eq!(
        refused(|config| config["architecture"] = json!("temporal")),
        "expected an architecture `standard`, `topk`, `abstopk`, `jumprelu`, `gated`, `matching_pursuit`, or a \
         transcoder, found `temporal` in `DIR/cfg.json`"
    );
    assert_eq!(
        refused(|config| config["architecture"] = json!("jumprelu")),
        "expected a tensor `threshold`, found [\"W_dec\", \"W_enc\", \"b_dec\", \"b_enc\"] in `DIR/sae_weights.safetensors`"
    );
    assert_eq!(
        refused(|config| config["k"] = json!(41)),
        "expected `k` between 0 and `d_sae` = 40, found `41` in `DIR/cfg.json`"
    );
    let normalized = refused(|config| config["normalize_activations"] = json!("by hand"));
    assert!(normalized.starts_with("expected `normalize_activations` as `none`, "), "{normalized}");
    let unscaled = refused(|config| config["normalize_activations"] = json!("expected_average_only_in"));
    assert!(unscaled.contains("in `activation_scaler.json`, found none\nhint: "), "{unscaled}");
    let unwhitened = refused(|config| config["normalize_activations"] = json!("covariance_whitening"));
    assert!(unwhitened.starts_with("expected `activation_whitening.safetensors` beside"), "{unwhitened}");
    let array = refused(|config| *config = json!([1]));
    assert_eq!(array, "expected a JSON object, found another value in `DIR/cfg.json`");
}

#[test]
fn a_folder_that_is_not_a_coder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| Sae::load(path).unwrap_err().to_string();
    assert!(message(&folder.path().join("nowhere")).starts_with("no sparse coder: `cfg.json` is missing in `"));
    assert!(message(folder.path()).contains("\nhint: "));

    fs::write(folder.path().join("ae.pt"), b"PK").unwrap();
    let pickled = message(folder.path());
    assert!(pickled.contains("a pickled file") && pickled.contains("\nhint: convert it in Python"), "{pickled}");
    assert_eq!(pickled, message(&folder.path().join("ae.pt")));
}

#[test]
fn weights_that_are_cut_short_are_named() {
    let folder = tempfile::tempdir().unwrap();
    Sae::load(fixture("topk")).unwrap().save(folder.path()).unwrap();
    let path = folder.path().join(WEIGHTS_FILE);
    let whole = fs::read(&path).unwrap();
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for damaged in [&whole[..whole.len() - 4], &whole[..100], &whole[..3], &[], &huge[..]] {
        fs::write(&path, damaged).unwrap();
        let message = Sae::load(folder.path()).unwrap_err().to_string();
        assert!(message.starts_with("not a whole safetensors file: ") && message.contains("\nhint: "), "{message}");
    }
    fs::remove_file(&path).unwrap();
    let message = Sae::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("sae_weights.safetensors"), "{message}");
}
