//! Does a spliced coder leave the pass alone where it should, and change it by what its features say?

use engine::gemma::model::{Batch, Forward, Logits, Model, Precision};
use engine::intervention::{Interventions, Pick, parse};

use std::error::Error as _;

use super::*;
use crate::{Activation, Matrix, random::Random};

const IDS: [u32; 7] = [2, 17, 90, 9, 44, 31, 100];
const D_MODEL: usize = 32;
const D_SAE: usize = 96;
const LAYER: &str = "blocks.3.hook_resid_post";

fn model(precision: Precision) -> Model {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gemma3/text");
    Model::load(fixture, precision).unwrap()
}

fn coder(activation: Activation) -> Sae {
    let mut random = Random::new(5);
    let mut matrix = |rows: usize, cols: usize| {
        let values: Vec<f32> = (0..rows * cols).map(|_| random.normal() as f32 / 8.0).collect();
        Matrix::from_slice(rows, cols, &values)
    };
    let (w_enc, w_dec) = (matrix(D_MODEL, D_SAE), matrix(D_SAE, D_MODEL));
    let bias = matrix(1, D_MODEL).row(0).to_vec();
    Sae {
        w_enc,
        w_dec,
        b_enc: vec![0.01; D_SAE],
        b_dec: bias,
        activation,
        apply_b_dec_to_input: true,
        ..Sae::default()
    }
}

fn point() -> HookPoint {
    LAYER.parse().unwrap()
}

/// The logits, and what the hook point holds.
fn run(model: &Model, mut hooks: Hooks<'_>) -> (Vec<f32>, Vec<f32>) {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let found = Rc::clone(&seen);
    hooks.read(point(), move |_, value| *found.borrow_mut() = values(value));
    let options = Forward { logits: Logits::All, ..Forward::default() };
    let output = model.forward(&Batch::one(&IDS), None, &mut hooks, options).unwrap();
    drop(hooks);
    (values(&output.logits.unwrap()), seen.take())
}

fn bare(model: &Model) -> (Vec<f32>, Vec<f32>) {
    run(model, Hooks::none())
}

fn spliced(model: &Model, splice: &Splice, tokens: &Selection) -> (Vec<f32>, Vec<f32>) {
    let mut hooks = Hooks::none();
    splice.attach([point(), point()], &model.shape(), tokens, &mut hooks).unwrap();
    run(model, hooks)
}

fn largest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn with_the_error_kept_and_no_edits_nothing_changes() {
    for precision in [Precision::F32, Precision::Bf16] {
        let model = model(precision);
        for activation in [Activation::TopK { k: 8 }, Activation::JumpRelu { threshold: vec![0.1; D_SAE] }] {
            let splice = Splice::new(Rc::new(coder(activation)), &[], true).unwrap();
            let (logits, resid) = spliced(&model, &splice, &Selection::ALL);
            let (bare_logits, bare_resid) = bare(&model);
            assert!(largest(&logits, &bare_logits) < 1e-5 && largest(&resid, &bare_resid) < 1e-5);
        }
    }
}

#[test]
fn without_the_error_the_reconstruction_stands_in_its_place() {
    let model = model(Precision::F32);
    let sae = coder(Activation::TopK { k: 8 });
    let (_, resid) = bare(&model);
    let mut acts = SparseRows::new();
    sae.encode(&resid, &mut Scratch::default(), &mut acts);
    let mut expected = vec![0.0; resid.len()];
    sae.decode(&acts, &resid, &mut expected);
    let splice = Splice::new(Rc::new(sae), &[], false).unwrap();
    assert!(largest(&spliced(&model, &splice, &Selection::ALL).1, &expected) < 1e-5);
    // Only where it is asked for.
    let tokens = Selection(vec![Pick::Range { from: 2, to: Some(3) }]);
    let (_, some) = spliced(&model, &splice, &tokens);
    assert!(some[..2 * D_MODEL] == resid[..2 * D_MODEL] && some[4 * D_MODEL..] == resid[4 * D_MODEL..]);
    assert!(largest(&some[2 * D_MODEL..4 * D_MODEL], &expected[2 * D_MODEL..4 * D_MODEL]) < 1e-5);
}

#[test]
fn edits_move_the_stream_along_the_decoder() {
    let model = model(Precision::F32);
    let sae = Rc::new(coder(Activation::TopK { k: 8 }));
    let (_, resid) = bare(&model);
    let mut acts = SparseRows::new();
    sae.encode(&resid, &mut Scratch::default(), &mut acts);
    let (latents, found) = acts.row(4);
    let (feature, act) = (latents[0] as usize, found[0]);
    let silent = (0..D_SAE).find(|&latent| !latents.contains(&(latent as u32))).unwrap();
    let edits = [(feature, FeatureEdit::Ablate), (silent, FeatureEdit::Clamp(2.0))];
    let moved = |keep_error: bool| {
        let splice = Splice::new(Rc::clone(&sae) as Rc<dyn SparseCoder>, &edits, keep_error).unwrap();
        spliced(&model, &splice, &Selection::ALL).1[4 * D_MODEL..5 * D_MODEL].to_vec()
    };
    let along = |i: usize| 2.0 * sae.w_dec.row(silent)[i] - act * sae.w_dec.row(feature)[i];
    let expected: Vec<f32> = (0..D_MODEL).map(|i| resid[4 * D_MODEL + i] + along(i)).collect();
    assert!(largest(&moved(true), &expected) < 1e-5);
    let mut reconstruction = vec![0.0; resid.len()];
    sae.decode(&acts, &resid, &mut reconstruction);
    let expected: Vec<f32> = (0..D_MODEL).map(|i| reconstruction[4 * D_MODEL + i] + along(i)).collect();
    assert!(largest(&moved(false), &expected) < 1e-5);
    let splice = Splice::new(Rc::clone(&sae) as Rc<dyn SparseCoder>, &[], true).unwrap();
    let wide = "blocks.1.mlp.hook_post".parse().unwrap();
    assert!(splice.attach([wide, point()], &model.shape(), &Selection::ALL, &mut Hooks::none()).is_err());
    assert!(Splice::new(sae, &[(D_SAE, FeatureEdit::Ablate)], true).is_err());
}

#[test]
fn coders_are_named_by_their_folders() {
    let model = model(Precision::F32);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("a coder");
    let sae = coder(Activation::TopK { k: 8 });
    sae.save(&folder).unwrap();
    let name = format!("sae:{:?}", folder.display().to_string());
    let by_text = |text: &str| {
        let parsed = parse(text).unwrap();
        let interventions = Interventions::resolve(&parsed, &model, None, &mut Coders::default()).unwrap();
        let mut hooks = Hooks::none();
        interventions.attach(&mut hooks);
        run(&model, hooks)
    };
    let edits = [(3, FeatureEdit::Ablate), (5, FeatureEdit::Clamp(2.0))];
    let splice = Splice::new(Rc::new(sae.clone()), &edits, false).unwrap();
    let text = format!("ablate {LAYER} {name}#3; clamp {LAYER} {name}#5 2; reconstruct {LAYER} {name}");
    assert!(largest(&by_text(&text).0, &spliced(&model, &splice, &Selection::ALL).0) < 1e-5);

    // Adding a multiple of the decoder's row.
    let (_, resid) = bare(&model);
    let (_, steered) = by_text(&format!("add {LAYER} @4- {name}#7 * 3"));
    assert!(steered[..4 * D_MODEL] == resid[..4 * D_MODEL]);
    let expected: Vec<f32> = (0..D_MODEL).map(|i| resid[4 * D_MODEL + i] + 3.0 * sae.w_dec.row(7)[i]).collect();
    assert!(largest(&steered[4 * D_MODEL..5 * D_MODEL], &expected) < 1e-5);

    let refused = |text: &str| {
        let error = Interventions::resolve(&parse(text).unwrap(), &model, None, &mut Coders::default()).unwrap_err();
        format!("{error}: {}", error.source().unwrap())
    };
    assert!(refused(&format!("ablate {LAYER} {name}#96")).contains("expected a feature below 96, found 96"));
    assert!(refused(&format!("ablate blocks.1.mlp.hook_post {name}#1")).contains("blocks.1.mlp.hook_post"));
    assert!(refused(&format!("add {LAYER} sae:nowhere#1")).contains("nowhere"));
}
