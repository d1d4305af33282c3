//! Does the real Gemma 3 270M compute what the reference implementation computes with it?
//!
//! Runs when the model is in the cache, and says that it was left out otherwise.
#![expect(clippy::print_stdout, reason = "a test says what it measured or left out")]

use std::path::Path;

use data::hook_point::{HookPoint, Site};
use engine::gemma::model::{Batch, Forward, Model, Precision};
use engine::generate::{Generate, Sampling};
use engine::hook::Hooks;
use engine::weights::Weights;
use serde::Deserialize;
use tch::{Kind, Tensor};

#[derive(Deserialize)]
struct Reference {
    text: String,
    ids: Vec<u32>,
    resid_post_norm: Vec<f64>,
    resid_post_head: Vec<Vec<f32>>,
    nll: Vec<f32>,
    greedy: Option<Vec<u32>>,
}

#[test]
fn the_real_270m() {
    let Some(path) = engine::testing::cached_model() else {
        println!(
            "left out: the model is not in the cache (`cargo xtask test` fetches it where the registry can be reached)"
        );
        return;
    };
    let json = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gemma3/270m.json");
    let references: Vec<Reference> = serde_json::from_str(&fs_err::read_to_string(json).unwrap()).unwrap();
    let weights = Weights::open(path).unwrap();
    let tokenizer = weights.tokenizer().unwrap();
    let model = Model::from_weights(&weights, Precision::F32).unwrap();
    for reference in &references {
        let ids = tokenizer.ids(&reference.text, true);
        assert_eq!(ids, reference.ids);
        let n_layers = model.config().n_layers;
        let points: Vec<HookPoint> = (0..n_layers).map(|layer| HookPoint::block(Site::ResidPost, layer)).collect();
        let (output, cache) = model.forward_with_cache(&Batch::one(&ids), &points, Forward::default()).unwrap();
        for (layer, (norm, head)) in reference.resid_post_norm.iter().zip(&reference.resid_post_head).enumerate() {
            let last = cache.get(points[layer]).unwrap().get(ids.len() as i64 - 1);
            let found = last.norm().double_value(&[]);
            assert!((found / norm - 1.0).abs() < 1e-4, "layer {layer}: norm {found}, expected {norm}");
            let difference = (last.narrow(0, 0, 8) - Tensor::from_slice(head)).abs().max().double_value(&[]);
            assert!(difference < 1e-4 * norm, "layer {layer}: {difference}");
        }
        let nll = model.nll(&output.resid.narrow(0, 0, ids.len() as i64 - 1), &ids[1..]);
        let difference = (Tensor::from_slice(&nll) - Tensor::from_slice(&reference.nll))
            .abs()
            .max()
            .to_kind(Kind::Double)
            .double_value(&[]);
        assert!(difference < 1e-3, "nll: {difference}");
    }
    let options = Generate { max_tokens: 20, sampling: Sampling::GREEDY, stop: vec![] };
    let mut never_stop = |_| std::ops::ControlFlow::Continue(());
    let greedy = model.generate(&references[0].ids, &options, &mut Hooks::none(), &mut never_stop).unwrap();
    assert_eq!(Some(&greedy), references[0].greedy.as_ref());
    assert_eq!(
        tokenizer.decode(&greedy),
        " the capital of the country of France. It is the largest city in France and the second largest city"
    );
}
