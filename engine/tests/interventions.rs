//! Do interventions obey their laws, on every architecture?
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;

use data::hook_point::{HookPoint, Site};
use engine::attribution::Detail;
use engine::cache::{ActivationCache, CacheFile, Capture};
use engine::gemma::model::{Batch, Forward, Logits, Model, Precision};
use engine::generate::{Generate, Sampling};
use engine::hook::Hooks;
use engine::intervention::{Interventions, NoCoders, Part, parse};
use engine::patching::{Direction, Patching};
use engine::testing::{largest_difference, model};
use tch::{Kind, Tensor};

const MODELS: [&str; 7] = [
    "gemma3/text",
    "gemma3/shaped_like_27b",
    "gemma3n/text",
    "gemma4/e",
    "gemma4/dense",
    "gemma4/moe",
    "gemma4/kv_eq_shared",
];
const ROUTED: [&str; 2] = ["gemma4/moe", "gemma4/moe_ple"];
const IDS: [u32; 8] = [2, 17, 90, 9, 44, 31, 100, 17];
const OTHER: [u32; 8] = [2, 18, 91, 10, 45, 32, 101, 18];

fn resolve(model: &Model, text: &str) -> Interventions {
    Interventions::resolve(&parse(text).unwrap(), model, None, &mut NoCoders).unwrap()
}

fn refused(model: &Model, text: &str) -> String {
    Interventions::resolve(&parse(text).unwrap(), model, None, &mut NoCoders).unwrap_err().to_string()
}

fn point(name: &str) -> HookPoint {
    name.parse().unwrap()
}

/// Logits of every token, and what `points` hold, under interventions.
fn run(model: &Model, ids: &[u32], text: &str, points: &[HookPoint]) -> (Tensor, ActivationCache) {
    let interventions = if text.is_empty() { Interventions::default() } else { resolve(model, text) };
    let capture = Capture::default();
    let mut hooks = Hooks::none();
    interventions.attach(&mut hooks);
    capture.attach(points, &mut hooks);
    let options = Forward { logits: Logits::All, ..Forward::default() };
    let output = model.forward(&Batch::one(ids), None, &mut hooks, options).unwrap();
    drop(hooks);
    (output.logits.unwrap(), capture.finish())
}

fn logits(model: &Model, ids: &[u32], text: &str) -> Tensor {
    run(model, ids, text, &[]).0
}

/// Every hook point at which a replaced value is obeyed and put in place bit for bit: scales and single heads are put together
/// anew, scores and patterns leave the fast path, and a KV source is only told.
fn plain_points(model: &Model) -> Vec<HookPoint> {
    const OTHERS: [Site; 9] = [
        Site::AttnScores,
        Site::Pattern,
        Site::Ln1Scale,
        Site::Ln2Scale,
        Site::LnFinalScale,
        Site::Result,
        Site::KvSource,
        Site::TopkIdx,
        Site::SparsityCutoff,
    ];
    HookPoint::all(&model.shape()).into_iter().filter(|point| !OTHERS.contains(&point.site)).collect()
}

#[test]
fn neutral_interventions_change_nothing() {
    for name in MODELS.into_iter().chain(ROUTED) {
        for precision in [Precision::F32, Precision::Bf16] {
            let model = model(name, precision);
            let bare = logits(&model, &IDS, "");
            let points: Vec<String> = plain_points(&model).iter().map(ToString::to_string).collect();
            let points = points.join(",");
            let ids = IDS.map(|id| id.to_string()).join(",");
            for text in [
                format!("scale {points} 1"),
                format!("add {points} 0"),
                format!("patch {points} from ids:{ids}"),
                format!("zero {points} @99; zero {points} @generated; zero {points} @id:1"),
            ] {
                assert!(bare.equal(&logits(&model, &IDS, &text)), "{name} {precision:?}: {}", &text[..40]);
            }
        }
    }
}

#[test]
fn zeroing_an_addend_removes_it_from_the_sum() {
    for name in MODELS.into_iter().filter(|name| !name.contains("3n")) {
        let model = model(name, Precision::F32);
        let layer = 2;
        let at = |site| HookPoint::block(site, layer);
        let points = [Site::ResidPre, Site::ResidMid, Site::MlpOut, Site::ResidPost].map(at);
        let (changed, cache) = run(&model, &IDS, "zero blocks.2.hook_attn_out @3-5", &points);
        let mid = cache.get(at(Site::ResidMid)).unwrap().narrow(0, 3, 3);
        let pre = cache.get(at(Site::ResidPre)).unwrap().narrow(0, 3, 3);
        assert!(mid.equal(&pre), "{name}: nothing was added");
        assert!(largest_difference(&changed.narrow(0, 0, 3), &logits(&model, &IDS, "").narrow(0, 0, 3)) < 1e-5);
        assert!(largest_difference(&changed, &logits(&model, &IDS, "")) > 1e-4);

        // Without attention and MLP only Gemma 4's scalar and per-layer embedding are left.
        let text = "zero blocks.2.hook_attn_out; zero blocks.2.hook_mlp_out";
        let text =
            if model.shape().d_ple > 0 { format!("{text}; zero blocks.2.ple.hook_out") } else { text.to_owned() };
        let mut points = points.to_vec();
        points.extend(model.shape().layer_scalar.then(|| at(Site::LayerScalar)));
        let (_, cache) = run(&model, &IDS, &text, &points);
        let mut expected = cache.get(at(Site::ResidPre)).unwrap().shallow_clone();
        if let Some(scalar) = cache.get(at(Site::LayerScalar)) {
            expected *= scalar;
        }
        assert!(cache.get(at(Site::ResidPost)).unwrap().equal(&expected), "{name}");
    }
}

#[test]
fn everything_of_another_text_gives_its_logits() {
    for name in MODELS.into_iter().chain(ROUTED) {
        let model = model(name, Precision::F32);
        let shape = model.shape();
        let mut points = vec!["blocks.0.hook_resid_pre"];
        if shape.n_altup > 0 {
            points.push("blocks.0.hook_resid_pre.streams");
        }
        if shape.d_ple > 0 {
            points.extend(["hook_ple_token", "hook_ple_context"]);
        }
        let other = OTHER.map(|id| id.to_string()).join(",");
        let text = format!("patch {} from ids:{other}", points.join(","));
        let (patched, expected) = (logits(&model, &IDS, &text), logits(&model, &OTHER, ""));
        assert!(patched.equal(&expected), "{name}");
        // At one position only, the tokens in front of it do not change.
        let text = format!("patch {} @5 from ids:{other}", points.join(","));
        let (patched, bare) = (logits(&model, &IDS, &text), logits(&model, &IDS, ""));
        // An expert's product over other rows may differ in the last bit of these, too.
        assert!(largest_difference(&patched.narrow(0, 0, 5), &bare.narrow(0, 0, 5)) < 1e-5, "{name}");
        assert!(largest_difference(&patched.narrow(0, 5, 3), &bare.narrow(0, 5, 3)) > 1e-4, "{name}");
    }
}

#[test]
fn parts_tokens_and_vectors() {
    let model = model("gemma3/text", Precision::F32);
    let z = point("blocks.3.attn.hook_z");
    let (_, bare) = run(&model, &IDS, "", &[z]);
    let (_, cache) = run(&model, &IDS, "scale blocks.3.attn.hook_z[2] @1,id:44 0.5", &[z]);
    let (bare, changed) = (bare.get(z).unwrap(), cache.get(z).unwrap());
    let expected = bare.copy();
    for row in [1, 4] {
        let _ = expected.get(row).get(2).g_mul_scalar_(0.5);
    }
    assert!(changed.equal(&expected));

    let resid = point("blocks.3.hook_resid_pre");
    let read = |text: &str| run(&model, &IDS, text, &[resid]).1.get(resid).unwrap().shallow_clone();
    let bare = read("");
    // A list as long as the part goes into the part.
    let listed = read("replace blocks.3.hook_resid_pre[1,4-5] @2 [7, 8, 9]");
    let expected = bare.copy();
    for (at, value) in [(1, 7.0), (4, 8.0), (5, 9.0)] {
        let _ = expected.get(2).get(at).fill_(value);
    }
    assert!(listed.equal(&expected));
    // Positions of other texts, means, sums of terms.
    let other = run(&model, &OTHER, "", &[resid]).1.get(resid).unwrap().shallow_clone();
    let other_ids = OTHER.map(|id| id.to_string()).join(",");
    let text = format!("add blocks.3.hook_resid_pre @-1 ids:{other_ids}@-1 * 2 - ids:{other_ids} * 0.5 + 1");
    let expected = bare.get(7) + other.get(7) * 2.0 - other.mean_dim(0_i64, false, Kind::Float) * 0.5 + 1.0;
    assert!(largest_difference(&read(&text).get(7), &expected) < 1e-4);
    assert!(read(&text).narrow(0, 0, 7).equal(&bare.narrow(0, 0, 7)));
    let text = format!("mean blocks.3.hook_resid_pre from ids:{other_ids}");
    assert!(largest_difference(&read(&text), &other.mean_dim(0_i64, true, Kind::Float).expand_as(&bare)) < 1e-5);
}

#[test]
fn a_files_tensor_and_a_cache() {
    let model = model("gemma3/text", Precision::Bf16);
    let dir = tempfile::tempdir().unwrap();
    let (resid, pattern) = (point("blocks.3.hook_resid_pre"), point("blocks.1.attn.hook_pattern"));
    let (_, cache) = run(&model, &OTHER, "", &[resid, pattern]);
    let path = dir.path().join("a cache.safetensors");
    let texts: Vec<String> = OTHER.iter().map(|id| format!("<{id}>")).collect();
    let about = [("model".to_owned(), "tiny".to_owned())].into();
    cache.save(&path, &[resid, pattern], &CacheFile { texts: Some(texts), about }).unwrap();

    let loaded = ActivationCache::load(&path).unwrap();
    assert_eq!(loaded.tokens(), cache.tokens());
    for point in [resid, pattern] {
        assert_eq!(largest_difference(loaded.get(point).unwrap(), cache.get(point).unwrap()), 0.0);
        assert_eq!(loaded.get(point).unwrap().kind(), Kind::BFloat16);
    }
    // Others can open it.
    let bytes = fs_err::read(&path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["ids"], "[2,18,91,10,45,32,101,18]");
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 2);

    let from = format!("cache:{:?}", path.display().to_string());
    let (_, patched) = run(&model, &IDS, &format!("patch {resid} @3- from {from}"), &[resid]);
    let expected = cache.get(resid).unwrap();
    assert!(patched.get(resid).unwrap().narrow(0, 3, 5).equal(&expected.narrow(0, 3, 5)));
    let (_, patched) = run(&model, &IDS, &format!("patch {pattern} from {from}"), &[pattern]);
    assert!(patched.get(pattern).unwrap().equal(cache.get(pattern).unwrap()));

    let file = format!("file:{:?}#{resid}", path.display().to_string());
    let wrong = refused(&model, &format!("add {resid} {file}"));
    assert!(wrong.contains("expected 1 or 32 numbers"), "{wrong}");
    let wrong = refused(&model, &format!("patch blocks.4.hook_mlp_out from {from}"));
    assert!(wrong.contains("expected `blocks.4.hook_mlp_out`"), "{wrong}");
    fs_err::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    assert!(ActivationCache::load(&path).is_err());
    fs_err::write(&path, b"{}").unwrap();
    assert!(ActivationCache::load(&path).is_err());
}

#[test]
fn one_rounding_where_two_would_swallow_the_change() {
    let model = model("gemma3/text", Precision::Bf16);
    let resid = point("blocks.3.hook_resid_pre");
    let read = |text: &str| run(&model, &IDS, text, &[resid]).1.get(resid).unwrap().to_kind(Kind::Double);
    let base = "replace blocks.3.hook_resid_pre 1";
    // 0.003 is less than half of bf16's step at 1, which is 2⁻⁷; twice as much is more.
    let once = read(&format!("{base}; add blocks.3.hook_resid_pre 0.003"));
    assert!(once.eq(1.0).all().int64_value(&[]) == 1);
    let twice = read(&format!("{base}; add blocks.3.hook_resid_pre 0.003; add blocks.3.hook_resid_pre 0.003"));
    assert!(twice.eq(1.0 + 2.0_f64.powi(-7)).all().int64_value(&[]) == 1);
}

#[test]
fn attention_by_head_and_key() {
    for name in ["gemma3/text", "gemma4/e"] {
        let model = model(name, Precision::F32);
        let (pattern, z) = (point("blocks.1.attn.hook_pattern"), point("blocks.1.attn.hook_z"));
        let (_, cache) = run(&model, &IDS, "zero blocks.1.attn.hook_pattern[2] @6", &[pattern, z]);
        let zeroed = cache.get(z).unwrap().get(6).get(2).abs().max().double_value(&[]);
        assert_eq!(zeroed, 0.0, "{name}: head 2 mixes nothing at token 6");
        assert!(cache.get(z).unwrap().get(6).get(1).abs().max().double_value(&[]) > 0.0);
        let (_, cache) = run(&model, &IDS, "scale blocks.1.attn.hook_pattern[*][5] 0", &[pattern]);
        let column = cache.get(pattern).unwrap().select(2, 5);
        assert_eq!(column.abs().max().double_value(&[]), 0.0, "{name}: nobody attends to key 5");
        assert!(cache.get(pattern).unwrap().select(2, 4).abs().max().double_value(&[]) > 0.0);
    }
}

#[test]
fn a_layers_embedding_of_a_token() {
    for name in ["gemma4/e", "gemma3n/text"] {
        let model = model(name, Precision::F32);
        let rows = point("hook_ple_token");
        let (_, of_other) = run(&model, &[2, 101], "", &[rows]);
        let (_, bare) = run(&model, &IDS, "", &[rows]);
        let (_, cache) = run(&model, &IDS, "replace hook_ple_token[5] @4 ids:2,101@-1", &[rows]);
        let expected = bare.get(rows).unwrap().copy();
        expected.get(4).get(5).copy_(&of_other.get(rows).unwrap().get(1).get(5));
        assert!(cache.get(rows).unwrap().equal(&expected), "{name}");
        assert!(
            largest_difference(&logits(&model, &IDS, "zero blocks.5.hook_ple_input @4"), &logits(&model, &IDS, ""))
                > 1e-5
        );
    }
}

#[test]
fn experts_are_forbidden_and_forced() {
    for name in ROUTED {
        let model = model(name, Precision::F32);
        let shape = model.shape();
        let at = |site| HookPoint::block(site, 1);
        let points = [Site::RouterProbs, Site::TopkIdx, Site::TopkWeightNorm].map(at);
        let (bare_logits, bare) = run(&model, &IDS, "", &points);
        let read = |cache: &ActivationCache, row: i64| -> (Vec<i64>, Vec<f64>, Vec<f64>) {
            let of = |site| cache.get(at(site)).unwrap().get(row);
            (
                Vec::try_from(of(Site::TopkIdx)).unwrap(),
                Vec::try_from(of(Site::TopkWeightNorm).to_kind(Kind::Double)).unwrap(),
                Vec::try_from(of(Site::RouterProbs).to_kind(Kind::Double)).unwrap(),
            )
        };
        let (chosen, _, probs) = read(&bare, 3);
        let forbidden = chosen[0];
        let (changed, cache) = run(&model, &IDS, &format!("forbid blocks.1 @3 experts {forbidden}"), &points);
        let (idx, weights, new_probs) = read(&cache, 3);
        assert!(!idx.contains(&forbidden) && new_probs[forbidden as usize] == 0.0, "{name}");
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        // What is left keeps its proportions.
        let left: f64 = idx.iter().map(|&e| probs[e as usize]).sum();
        for (&expert, weight) in idx.iter().zip(&weights) {
            assert!((weight - probs[expert as usize] / left).abs() < 1e-5, "{name}");
        }
        assert_eq!(read(&cache, 2).0, read(&bare, 2).0);
        // The others' rows of a product are summed in another company, which moves the last bit.
        assert!(largest_difference(&changed.narrow(0, 0, 3), &bare_logits.narrow(0, 0, 3)) < 1e-5);

        let worst =
            (0..shape.n_experts as i64).min_by(|a, b| probs[*a as usize].total_cmp(&probs[*b as usize])).unwrap();
        let (_, cache) = run(&model, &IDS, &format!("force blocks.* @3 experts {worst}"), &points);
        let (idx, weights, _) = read(&cache, 3);
        assert_eq!(idx.last(), Some(&worst), "{name}: slots are by descending probability");
        assert_eq!(idx[..idx.len() - 1], chosen[..chosen.len() - 1], "{name}");
        assert!(weights.is_sorted_by(|a, b| a >= b) && (weights.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        assert_eq!(read(&cache, 2).0, read(&bare, 2).0);
        // What is chosen anyway may be forced without a difference.
        assert!(bare_logits.equal(&logits(&model, &IDS, &format!("force blocks.1 @3 experts {forbidden}"))));

        assert!(refused(&model, "forbid blocks.1 experts 99").contains("expected experts below 8"));
        assert!(refused(&model, "force blocks.1 experts 0-7").contains("expected at most"));
        assert!(refused(&model, "forbid blocks.1 experts 0-6").contains("expected at most"));
        assert!(refused(&model, "zero blocks.1.moe.hook_topk_idx").contains("numbers of experts"));
    }
    assert!(refused(&model("gemma3/text", Precision::F32), "forbid blocks.1 experts 0").contains("no experts"));
}

#[test]
fn generation_sees_the_same_as_one_pass() {
    for name in ["gemma3/text", "gemma4/e", "gemma4/moe", "gemma3n/text"] {
        let model = model(name, Precision::F32);
        let points = [point("blocks.2.hook_resid_post"), point("blocks.2.attn.hook_pattern"), point("hook_logits")];
        let interventions = resolve(&model, "scale blocks.1.hook_mlp_out @3- -2; zero blocks.2.attn.hook_z[1] @last");
        let capture = Capture::default();
        let mut hooks = Hooks::none();
        interventions.attach(&mut hooks);
        capture.attach(&points, &mut hooks);
        let options = Generate { max_tokens: 6, sampling: Sampling::GREEDY, stop: vec![] };
        let ids = model.generate(&IDS, &options, &mut hooks, &mut |_| ControlFlow::Continue(())).unwrap();
        drop(hooks);
        let cache = capture.finish();
        let all: Vec<u32> = IDS.iter().chain(&ids[..ids.len() - 1]).copied().collect();
        assert_eq!(cache.tokens().ids, all);
        assert_eq!(cache.tokens().lengths, [all.len()]);

        // In one pass `last` is only the last token; the positions from the prompt's last on are the same ones.
        let text = "scale blocks.1.hook_mlp_out @3- -2; zero blocks.2.attn.hook_z[1] @7-";
        let (_, whole) = run(&model, &all, text, &points);
        for point in points {
            let size = whole.get(point).unwrap().size();
            assert_eq!(cache.get(point).unwrap().size(), size, "{name} {point}");
            // Gemma 3n's streams are large, and rounding grows with them.
            let size = whole.get(point).unwrap().abs().max().double_value(&[]).max(1.0);
            let difference = largest_difference(cache.get(point).unwrap(), whole.get(point).unwrap());
            assert!(difference / size < 1e-4, "{name} {point}: {difference} of {size}");
        }
        assert!(
            largest_difference(cache.get(point("hook_logits")).unwrap(), &logits(&model, &all, "")) > 1e-3,
            "{name}"
        );
    }
}

#[test]
fn each_sequence_of_a_batch_has_its_own_positions() {
    let model = model("gemma3/text", Precision::F32);
    let mut batch = Batch::one(&IDS[..5]);
    batch.push(&OTHER[..3]);
    let resid = point("blocks.2.hook_resid_pre");
    let interventions = resolve(&model, "zero blocks.2.hook_resid_pre @-1; zero blocks.2.hook_resid_pre @1");
    let capture = Rc::new(RefCell::new(None));
    let mut hooks = Hooks::none();
    interventions.attach(&mut hooks);
    let seen = Rc::clone(&capture);
    hooks.read(resid, move |_, value| *seen.borrow_mut() = Some(value.abs().sum_dim_intlist(-1, false, Kind::Float)));
    model.forward(&batch, None, &mut hooks, Forward::default()).unwrap();
    drop(hooks);
    let sums = Vec::<f32>::try_from(capture.take().unwrap()).unwrap();
    let zeros: Vec<usize> = (0..8).filter(|&row| sums[row] == 0.0).collect();
    assert_eq!(zeros, [1, 4, 6, 7]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = model("gemma3/text", Precision::F32);
    for (text, expected) in [
        ("zero blocks.1.hook_resid_pots", "blocks.1.hook_resid_post"),
        ("zero blocks.99.hook_resid_post", "99"),
        ("zero blocks.1.attn.hook_z[9]", "expected an index below"),
        ("zero blocks.1.hook_resid_post[1][1]", "expected at most 1 brackets"),
        ("add blocks.1.hook_resid_post [1, 2]", "expected 1 or 32 numbers"),
        ("add blocks.1.attn.hook_pattern [1, 2]", "expected a number"),
        ("add blocks.1.hook_resid_post \"text\"", "no tokenizer"),
        ("zero blocks.1.hook_resid_post @\" gold\"", "no tokenizer"),
        ("patch blocks.1.hook_resid_post @12 from ids:2,3", "expected a position below 2"),
        ("replace blocks.1.hook_resid_post ids:2,3@5", "expected a position from -2 to 1"),
        ("patch blocks.1.hook_resid_post from run:nowhere", "nowhere"),
        ("ablate blocks.1.hook_resid_post sae:nowhere#1", "cannot use the coder `nowhere`"),
        ("forbid blocks.1.hook_resid_post experts 1", "expected layers"),
        ("add blocks.1.hook_resid_post file:nowhere#a", "nowhere"),
    ] {
        let error = refused(&model, text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn the_lens_at_the_end_is_the_model() {
    for name in MODELS {
        let model = model(name, Precision::F32);
        let (logits, cache) = run(&model, &IDS, "", &model.lens_points());
        let rows = model.lens(&cache, 3).unwrap();
        assert_eq!(rows.len(), model.shape().n_layers + 1);
        let last = &rows.last().unwrap().tokens;
        let probabilities = logits.softmax(-1, Kind::Float);
        for (row, token) in last.iter().enumerate() {
            let (p, id) = probabilities.get(row as i64).max_dim(0, false);
            assert_eq!(i64::from(token.top[0].0), id.int64_value(&[]), "{name}");
            assert!((f64::from(token.top[0].1) - p.double_value(&[])).abs() < 1e-5, "{name}");
            assert!(token.top.is_sorted_by(|a, b| a.1 >= b.1) && token.entropy > 0.0);
            match token.next {
                Some(next) => {
                    assert_eq!(next.id, IDS[row + 1]);
                    let p = probabilities.double_value(&[row as i64, i64::from(next.id)]);
                    let above = probabilities.get(row as i64).gt(p).sum(Kind::Int64).int64_value(&[]);
                    assert!((f64::from(next.probability) - p).abs() < 1e-5 && next.rank as i64 == above + 1);
                }
                None => assert_eq!(row, IDS.len() - 1),
            }
        }
    }
}

#[test]
fn contributions_add_up_to_the_logit() {
    for name in MODELS.into_iter().chain(ROUTED) {
        let model = model(name, Precision::F32);
        for detail in [Detail::default(), Detail { heads: true, experts: true }] {
            let mut points = model.attribution_points(detail);
            points.push(point("hook_logits_precap"));
            let (_, cache) = run(&model, &IDS, "", &points);
            let precap = cache.get(point("hook_logits_precap")).unwrap();
            for (row, answer, wrong) in [(7, 31, None), (3, 5, Some(90))] {
                let found = model.attribution(&cache, row, answer, wrong, detail).unwrap();
                let logit = |id: u32| precap.double_value(&[row as i64, i64::from(id)]);
                let expected = logit(answer) - wrong.map_or(0.0, logit);
                assert!((found.logit - expected).abs() < 1e-4, "{name}: {} for {expected}", found.logit);
                assert!(found.rest.abs() < 1e-4, "{name} {detail:?}: {}", found.rest);
                let parts = found.contributions.len();
                assert!(parts > 2 * model.shape().n_layers, "{name}: {parts} parts");
                if detail.heads {
                    let plain = model.attribution_points(Detail::default());
                    let (_, cache) = run(&model, &IDS, "", &plain);
                    let whole = model.attribution(&cache, row, answer, wrong, Detail::default()).unwrap();
                    let of = |attribution: &engine::attribution::Attribution, sites: [Site; 2]| -> f64 {
                        let parts = attribution.contributions.iter();
                        parts
                            .filter(|c| c.point.layer == Some(1) && sites.contains(&c.point.site))
                            .map(|c| c.value)
                            .sum()
                    };
                    let (heads, attention) =
                        (of(&found, [Site::Result, Site::AttnOut]), of(&whole, [Site::AttnOut; 2]));
                    assert!((heads - attention).abs() < 1e-4, "{name}: {heads} for {attention}");
                }
            }
        }
    }
}

#[test]
fn patching_position_by_position() {
    for (name, whole) in [("gemma3/text", true), ("gemma4/moe", true), ("gemma4/e", false)] {
        let model = model(name, Precision::F32);
        let (mut clean, corrupt) = (OTHER, OTHER);
        clean[2] = 55;
        clean[6] = 7;
        let resid = point("blocks.0.hook_resid_pre");
        let last = point(&format!("blocks.{}.hook_resid_post", model.shape().n_layers - 1));
        let mut patching = Patching {
            clean: clean.to_vec(),
            corrupt: corrupt.to_vec(),
            answer: 31,
            wrong: Some(90),
            at: vec![(resid, Part::default()), (last, Part::default())],
            direction: Direction::Denoise,
            batch_tokens: 30,
        };
        let mut steps = Vec::new();
        let table = model
            .patching(&patching, &mut |done, total| {
                steps.push((done, total));
                ControlFlow::Continue(())
            })
            .unwrap()
            .unwrap();
        assert_eq!(steps, [(0, 12), (3, 12), (6, 12), (9, 12)], "three copies of 8 tokens at a time");
        let metric = |logits: &Tensor| (logits.get(7).get(31) - logits.get(7).get(90)).double_value(&[]) as f32;
        assert!((table.clean - metric(&logits(&model, &clean, ""))).abs() < 1e-5);
        assert!((table.corrupt - metric(&logits(&model, &corrupt, ""))).abs() < 1e-5);
        // One position at a time is the text form's patch.
        let ids = clean.map(|id| id.to_string()).join(",");
        for position in 0..8 {
            let one = logits(&model, &corrupt, &format!("patch {resid} @{position} from ids:{ids}"));
            assert!((table.metric[0][position] - metric(&one)).abs() < 1e-4, "{name} {position}");
        }
        // Behind the last layer only the last position counts, and there it is everything.
        for position in 0..7 {
            assert!((table.metric[1][position] - table.corrupt).abs() < 1e-4);
        }
        assert!((table.normalised(table.metric[1][7]).unwrap() - 1.0).abs() < 1e-3 || !whole);

        patching.direction = Direction::Noise;
        let noised = model.patching(&patching, &mut |_, _| ControlFlow::Continue(())).unwrap().unwrap();
        assert_eq!((noised.clean, noised.corrupt), (table.clean, table.corrupt));
        assert!((noised.metric[1][7] - table.corrupt).abs() < 1e-4);
        assert!(model.patching(&patching, &mut |_, _| ControlFlow::Break(())).unwrap().is_none());
        patching.clean.pop();
        let error = model.patching(&patching, &mut |_, _| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(error.contains("found 7 and 8"), "{error}");
    }
}
