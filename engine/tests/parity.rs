//! Does the network compute what the reference implementation computes?
//!
//! The fixtures are tiny random checkpoints and every activation of the reference on them; the scripts that made them lie beside them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "a test says what it measured or left out")]

use std::collections::BTreeMap;

use data::hook_point::{HookPoint, Site};
use engine::cache::ActivationCache;
use engine::device::Device;
use engine::gemma::model::{Batch, Forward, LoadOptions, Logits, Model, Numerics, Precision};
use engine::generate::{Generate, Sampling};
use engine::hook::Hooks;
use engine::testing::{device, fixture, largest_difference, model};
use fs_err as fs;
use tch::{Kind, Tensor};

/// Gemma 3 with linear rope and a softcap, and in the shape of the 27B; Gemma 3n with everything that releases have, and with
/// what none has; Gemma 4 like E2B, the 31B, the 26B-A4B, with experts and per-layer embeddings together, and with values
/// that are shared keys.
const SHAPES: [&str; 9] = [
    "gemma3/text",
    "gemma3/shaped_like_27b",
    "gemma3n/text",
    "gemma3n/other",
    "gemma4/e",
    "gemma4/dense",
    "gemma4/moe",
    "gemma4/moe_ple",
    "gemma4/kv_eq_shared",
];
const BOTH_WAYS: [&str; 3] = ["gemma3/text", "gemma3/shaped_like_27b", "gemma4/dense"];
const TOLERANCE: f64 = 1e-4;

/// What the reference computed, by name; on the device of the tests.
fn reference(name: &str, dtype: &str) -> BTreeMap<String, Tensor> {
    let path = fixture(&format!("{name}.{dtype}.safetensors"));
    let to_device = |(name, tensor): (String, Tensor)| (name, tensor.to_device(device().into()));
    Tensor::read_safetensors(path).unwrap().into_iter().map(to_device).collect()
}

fn ids(tensor: &Tensor) -> Vec<u32> {
    Vec::<i64>::try_from(tensor).unwrap().into_iter().map(|id| id as u32).collect()
}

/// The largest difference, where a masked score is as low as the dtype goes in both.
fn masked_difference(a: &Tensor, b: &Tensor) -> f64 {
    let clamp = |x: &Tensor| x.to_kind(Kind::Double).clamp_min(-1e4);
    largest_difference(&clamp(a), &clamp(b))
}

fn everything(model: &Model, batch: &Batch, numerics: Numerics) -> (Tensor, ActivationCache) {
    let points = HookPoint::all(&model.shape());
    let options = Forward { logits: Logits::All, numerics, ..Forward::default() };
    let (output, cache) = model.forward_with_cache(batch, &points, options).unwrap();
    (output.logits.unwrap(), cache)
}

fn logits(model: &Model, batch: &Batch, hooks: &mut Hooks<'_>) -> Tensor {
    let options = Forward { logits: Logits::All, ..Forward::default() };
    model.forward(batch, None, hooks, options).unwrap().logits.unwrap()
}

/// Compares every hook point and the logits; returns the largest difference relative to the largest value there.
fn compare_everything(name: &str, precision: Precision, numerics: Numerics) -> f64 {
    let expected = reference(name, if precision == Precision::F32 { "f32" } else { "bf16" });
    let model = model(name, precision);
    let (logits, cache) = everything(&model, &Batch::one(&ids(&expected["one/ids"])), numerics);
    let mut worst = (0.0, String::new());
    let mut compare = |what: String, found: &Tensor, expected: &Tensor| {
        // A layer's number is counted by us in f32, by the fixtures in whole numbers.
        assert!(found.kind() == expected.kind() || what.ends_with("hook_kv_source"), "{what}");
        let unmasked = expected.masked_select(&expected.gt(-1e4));
        let size = unmasked.to_kind(Kind::Double).abs().max().double_value(&[]).max(1.0);
        let difference = masked_difference(found, expected) / size;
        if numerics == Numerics::Reference && device() == Device::Cpu && what.ends_with("hook_scale") {
            // In f32 always; the reference takes a root, we the inverse of an inverse root.
            assert!(difference < 1e-6, "{what}: {difference}");
        } else if difference >= worst.0 {
            worst = (difference, what);
        }
    };
    let points = HookPoint::all(&model.shape());
    for point in &points {
        let found = cache.get(*point).unwrap_or_else(|| panic!("`{point}` was not captured"));
        compare(point.to_string(), found, &expected[&format!("one/{point}")]);
    }
    compare("logits".to_owned(), &logits, &expected["one/logits"]);
    println!(
        "{name} {precision:?} {numerics:?}: {} points, largest difference {:.2e} at {}",
        points.len(),
        worst.0,
        worst.1
    );
    worst.0
}

/// Step by step the same operations run in the same order, and on the libtorch that made the fixtures not a bit differs;
/// another device sums in another order.
fn on_a_cpu_or(elsewhere: f64, on_a_cpu: f64) -> f64 {
    if device() == Device::Cpu { on_a_cpu } else { elsewhere }
}

#[test]
fn every_hook_point_in_f32() {
    for name in SHAPES {
        assert!(compare_everything(name, Precision::F32, Numerics::Reference) < on_a_cpu_or(TOLERANCE, 1e-6));
        assert!(compare_everything(name, Precision::F32, Numerics::Fast) < TOLERANCE);
    }
}

#[test]
fn every_hook_point_in_bf16() {
    for name in SHAPES {
        // Rounded at the same places: no more than one rounding (2⁻⁸) on another processor.
        assert!(compare_everything(name, Precision::Bf16, Numerics::Reference) < on_a_cpu_or(0.1, 4e-3));
        // Sums in another order: a few roundings (2⁻⁸ each).
        assert!(compare_everything(name, Precision::Bf16, Numerics::Fast) < 0.1);
    }
}

#[test]
fn sequences_of_different_lengths() {
    for name in SHAPES {
        let expected = reference(name, "f32");
        let model = model(name, Precision::F32);
        let lengths = ids(&expected["batch/lengths"]).into_iter().map(|length| length as usize).collect();
        let (logits, cache) = everything(&model, &Batch { ids: ids(&expected["batch/ids"]), lengths }, Numerics::Fast);
        assert!(largest_difference(&logits, &expected["batch/logits"]) < TOLERANCE);
        for layer in 0..model.config().n_layers {
            let point = HookPoint::block(Site::ResidPost, layer);
            let Some(expected) = expected.get(&format!("batch/{point}")) else { continue };
            assert!(largest_difference(cache.get(point).unwrap(), expected) < TOLERANCE);
        }
    }
}

#[test]
fn packed_equals_alone() {
    let sequences: [&[u32]; 3] = [&[2, 17, 150, 9, 44, 31, 130], &[8], &[2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]];
    for name in SHAPES {
        let model = model(name, Precision::F32);
        let mut packed = Batch::default();
        for sequence in sequences {
            packed.push(sequence);
        }
        let together = logits(&model, &packed, &mut Hooks::none());
        let alone = sequences.map(|sequence| logits(&model, &Batch::one(sequence), &mut Hooks::none()));
        let size = together.abs().max().double_value(&[]).max(1.0);
        let difference = largest_difference(&together, &Tensor::cat(&alone, 0)) / size;
        assert!(difference < 2e-5, "{name}: {difference:.2e}");
    }
}

#[test]
fn cached_equals_uncached() {
    for name in SHAPES {
        let model = model(name, Precision::F32);
        let tokens = ids(&reference(name, "f32")["one/ids"]);
        let whole = logits(&model, &Batch::one(&tokens), &mut Hooks::none());
        // All at once, one by one, and in pieces shorter and longer than the window.
        for pieces in [vec![19], vec![1; 19], vec![2, 1, 9, 7], vec![12, 3, 3, 1]] {
            let mut cache = model.kv_cache(1);
            let mut rows = Vec::new();
            let mut start = 0;
            for piece in pieces {
                let batch = Batch::one(&tokens[start..start + piece]);
                let options = Forward { logits: Logits::All, ..Forward::default() };
                rows.push(
                    model.forward(&batch, Some(&mut cache), &mut Hooks::none(), options).unwrap().logits.unwrap(),
                );
                start += piece;
            }
            let difference = largest_difference(&whole, &Tensor::cat(&rows, 0));
            let size = whole.abs().max().double_value(&[]).max(1.0);
            println!("{name}: cached differs by {difference:.2e} of {size:.0}");
            assert!(difference / size < 2e-5, "{name}");
        }
    }
}

#[test]
fn two_sequences_in_one_cache() {
    let (a, b): ([u32; 9], [u32; 6]) = ([2, 17, 150, 9, 44, 31, 130, 8, 3], [2, 5, 6, 7, 8, 9]);
    for name in ["gemma3/text", "gemma3n/text", "gemma4/moe_ple"] {
        let model = model(name, Precision::F32);
        let mut cache = model.kv_cache(2);
        let mut step = |a: &[u32], b: &[u32]| {
            let mut batch = Batch::one(a);
            batch.push(b);
            let options = Forward { logits: Logits::Last, ..Forward::default() };
            model.forward(&batch, Some(&mut cache), &mut Hooks::none(), options).unwrap().logits.unwrap()
        };
        drop(step(&a[..5], &b[..1]));
        drop(step(&a[5..6], &b[1..5]));
        let last = step(&a[6..], &b[5..]);
        for (row, sequence) in [&a[..], &b[..]].into_iter().enumerate() {
            let alone = logits(&model, &Batch::one(sequence), &mut Hooks::none());
            assert!(
                largest_difference(&last.get(row as i64), &alone.get(sequence.len() as i64 - 1)) < TOLERANCE,
                "{name}"
            );
        }
    }
}

#[test]
fn nll_and_greedy_generation() {
    for name in SHAPES {
        let expected = reference(name, "f32");
        let model = model(name, Precision::F32);
        let tokens = ids(&expected["one/ids"]);
        let output = model.forward(&Batch::one(&tokens), None, &mut Hooks::none(), Forward::default()).unwrap();
        let nll = model.nll(&output.resid.narrow(0, 0, tokens.len() as i64 - 1), &tokens[1..]);
        assert!(largest_difference(&Tensor::from_slice(&nll), &expected["one/nll"]) < TOLERANCE);

        let options = Generate { max_tokens: 16, sampling: Sampling::GREEDY, stop: vec![] };
        let mut seen = Vec::new();
        let greedy = model
            .generate(&ids(&expected["generate/prompt"]), &options, &mut Hooks::none(), &mut |id| {
                seen.push(id);
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(greedy, ids(&expected["generate/greedy"]), "{name}");
        assert_eq!(greedy, seen);
    }
}

#[test]
fn bidirectional_attention() {
    for name in BOTH_WAYS {
        let folder = tempfile::tempdir().unwrap();
        let source = fixture(name);
        fs::copy(source.join("config.bidirectional.json"), folder.path().join("config.json")).unwrap();
        fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let options = LoadOptions { device: device(), ..Precision::F32.into() };
        let model = Model::load(folder.path(), options).unwrap();
        let expected = reference(name, "f32");
        let weight = Tensor::read_safetensors(source.join("model.safetensors"))
            .unwrap()
            .into_iter()
            .find_map(|(name, tensor)| (name == "model.norm.weight").then_some(tensor))
            .unwrap()
            .to_device(device().into());
        for numerics in [Numerics::Reference, Numerics::Fast] {
            let (_, cache) = everything(&model, &Batch::one(&ids(&expected["one/ids"])), numerics);
            let normalized = cache.get(HookPoint::whole(Site::LnFinalNormalized)).unwrap();
            let gain = weight.to_kind(Kind::Float) + if name.starts_with("gemma3/") { 1.0 } else { 0.0 };
            let hidden = normalized * gain;
            assert!(largest_difference(&hidden, &expected["bidirectional/hidden"]) < TOLERANCE, "{name} {numerics:?}");
        }
    }
}

#[test]
fn capturing_does_not_change_a_bit() {
    for name in ["gemma3/text", "gemma3n/text", "gemma4/moe_ple"] {
        for precision in [Precision::F32, Precision::Bf16] {
            let model = model(name, precision);
            let batch = Batch { ids: vec![2, 17, 150, 9, 44, 31, 130, 2, 5, 6], lengths: vec![7, 3] };
            let bare = logits(&model, &batch, &mut Hooks::none());
            let (captured, _) = everything(&model, &batch, Numerics::Fast);
            assert!(bare.equal(&captured), "reading every hook point of {name}");

            // Putting back what was there: the identity. Scores and patterns leave the fast path for this,
            // scales and single heads are put together anew.
            let mut hooks = Hooks::none();
            let recomputed =
                [Site::AttnScores, Site::Pattern, Site::Ln1Scale, Site::Ln2Scale, Site::LnFinalScale, Site::Result];
            let points = HookPoint::all(&model.shape());
            for &point in points.iter().filter(|point| !recomputed.contains(&point.site)) {
                hooks.add(point, |_, value| Some(value.copy()));
            }
            assert!(bare.equal(&logits(&model, &batch, &mut hooks)), "replacing every value of {name} with itself");

            let mut hooks = Hooks::none();
            for &point in &points {
                hooks.add(point, |_, value| Some(value.copy()));
            }
            let tolerance = if precision == Precision::F32 { 1e-3 } else { 2.0 };
            let difference = largest_difference(&bare, &logits(&model, &batch, &mut hooks));
            assert!(difference < tolerance, "{name} {precision:?}: {difference:.2e}");
        }
    }
}

#[test]
fn replacing_follows_the_sum() {
    let model = model("gemma3/text", Precision::F32);
    let batch = Batch::one(&[2, 17, 250, 9, 44, 31, 300]);
    let at = |site| HookPoint::block(site, 3);
    let sums = std::cell::RefCell::new(BTreeMap::new());
    let mut hooks = Hooks::none();
    hooks.add(at(Site::AttnOut), |_, value| Some(value.zeros_like()));
    for site in [Site::ResidPre, Site::ResidMid, Site::MlpOut, Site::ResidPost] {
        hooks.read(at(site), |place, value| {
            sums.borrow_mut().insert(place.point.site, value.copy());
        });
    }
    let changed = logits(&model, &batch, &mut hooks);
    drop(hooks);
    let sums = sums.into_inner();
    assert!(sums[&Site::ResidMid].equal(&sums[&Site::ResidPre]), "nothing was added");
    assert!(sums[&Site::ResidPost].equal(&(&sums[&Site::ResidMid] + &sums[&Site::MlpOut])));
    assert!(!changed.equal(&logits(&model, &batch, &mut Hooks::none())));
}

#[test]
fn every_replacement_reaches_the_logits() {
    // Which layer's keys are read is a matter of the weights: that point is only looked at.
    let looked_at = [Site::KvSource];
    for name in ["gemma3/text", "gemma3n/text", "gemma4/dense", "gemma4/moe_ple"] {
        let model = model(name, Precision::F32);
        let batch = Batch::one(&[2, 17, 150, 9, 44, 31, 130]);
        let bare = logits(&model, &batch, &mut Hooks::none());
        for point in HookPoint::all(&model.shape()).into_iter().filter(|point| !looked_at.contains(&point.site)) {
            let mut hooks = Hooks::none();
            hooks.add(point, |_, value| {
                Some(match point.site {
                    // Other experts.
                    Site::TopkIdx => (value + 1).remainder(model.shape().n_experts as i64),
                    // Still probabilities, in other proportions.
                    Site::RouterProbs => value.square(),
                    // Not a multiple: norms and the softmax do not see those.
                    _ => value * 0.5 + value.square().clamp_max(4.0) * 0.3,
                })
            });
            assert!(!bare.equal(&logits(&model, &batch, &mut hooks)), "`{point}` of {name}");
        }
    }
}

#[test]
fn a_pass_stops_where_it_is_told() {
    let model = model("gemma3/text", Precision::F32);
    let batch = Batch::one(&[2, 17, 250]);
    let reached = std::cell::Cell::new(0);
    let mut hooks = Hooks::none();
    for layer in 0..7 {
        let reached = &reached;
        hooks.read(HookPoint::block(Site::ResidPost, layer), move |_, _| reached.set(layer));
    }
    let options = Forward { stop_after: Some(2), ..Forward::default() };
    let output = model.forward(&batch, None, &mut hooks, options).unwrap();
    assert_eq!(reached.get(), 2);
    assert!(output.logits.is_none());
}

#[test]
fn bad_batches_are_errors() {
    let model = model("gemma3/text", Precision::F32);
    for batch in [
        Batch::default(),
        Batch::one(&[]),
        Batch::one(&[320]),
        Batch { ids: vec![2, 3], lengths: vec![3] },
        Batch { ids: vec![2, 3], lengths: vec![2, 0] },
    ] {
        assert!(model.forward(&batch, None, &mut Hooks::none(), Forward::default()).is_err(), "{batch:?}");
    }
}

#[test]
fn logit_effects_are_the_direct_path() {
    let model = model("gemma3/shaped_like_27b", Precision::F32);
    let d_model = model.config().d_model;
    let directions: Vec<f32> = (0..2 * d_model).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 25.0).collect();
    let effects = model.logit_effects(&directions, 5);
    // A direction of unit scale through the final norm has the same order of logits.
    for (row, effects) in effects.iter().enumerate() {
        let direction = Tensor::from_slice(&directions[row * d_model..(row + 1) * d_model]).to_device(device().into());
        let scale = direction.square().mean(Kind::Float).sqrt();
        let lens = (model.logit_lens(&direction.unsqueeze(0)) * scale).squeeze();
        let (values, ids) = lens.topk(5, 0, true, true);
        let found: Vec<i64> = effects.top.iter().map(|(id, _)| i64::from(*id)).collect();
        assert_eq!(found, Vec::<i64>::try_from(ids).unwrap());
        let found: Vec<f32> = effects.top.iter().map(|(_, value)| *value).collect();
        assert!(largest_difference(&Tensor::from_slice(&found), &values) < 1e-4);
        assert!(effects.bottom[0].1 <= effects.bottom[4].1 && effects.bottom[4].1 < effects.top[4].1);
    }
    // The same of every token.
    let (all, d_vocab) = (model.all_logit_effects(&directions), model.config().d_vocab);
    assert_eq!(all.len(), 2 * d_vocab);
    for (row, effects) in effects.iter().enumerate() {
        for &(id, value) in effects.top.iter().chain(&effects.bottom) {
            assert!((all[row * d_vocab + id as usize] - value).abs() < 1e-5);
        }
    }
}
