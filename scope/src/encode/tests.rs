//! Is what is written about features what counting by hand gives?

use std::collections::BTreeMap;

use super::*;
use crate::{
    Activation, Crosscoder, Sae, SparseRows, Wiring,
    random::Random,
    sae::norm,
    testing::{DOC_TOKENS, LAYERS, WIDTH, hook, write_layers, write_run},
    train::{TrainConfig, train},
};

const D_SAE: usize = 300;

fn sae() -> Sae {
    let mut random = Random::new(4);
    let mut w_dec = Matrix::zeros(D_SAE, WIDTH);
    w_dec.as_mut_slice().fill_with(|| random.normal() as f32);
    let mut b_dec = vec![0.0; WIDTH];
    b_dec.fill_with(|| random.normal() as f32);
    let mut sae = Sae {
        w_enc: w_dec.transposed(),
        w_dec,
        b_enc: vec![-4.0; D_SAE],
        b_dec,
        activation: Activation::TopK { k: 6 },
        apply_b_dec_to_input: true,
        ..Sae::default()
    };
    // One feature never fires.
    sae.b_enc[5] = f32::NEG_INFINITY;
    sae.metadata.insert("hook_name".into(), hook().to_string().into());
    sae
}

/// A vocabulary of four tokens along the first four axes, and their opposites' order at the bottom.
struct Axes;

impl LogitLens for Axes {
    fn d_model(&self) -> usize {
        WIDTH
    }

    fn logit_effects(&self, directions: &[f32], top: usize) -> Vec<LogitEffect> {
        directions
            .chunks_exact(WIDTH)
            .map(|direction| {
                let mut effects: Vec<(u32, f32)> = (0..4).map(|id| (id, direction[id as usize])).collect();
                effects.sort_by(|a, b| b.1.total_cmp(&a.1));
                let bottom = effects.iter().rev().take(top).copied().collect();
                effects.truncate(top);
                LogitEffect { top: effects, bottom }
            })
            .collect()
    }
}

fn go_on(_: &EncodeProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn options() -> EncodeOptions {
    EncodeOptions { context: 6, threads: 2, logits: 2, neighbours: 3, ..EncodeOptions::default() }
}

/// All activations, by token.
fn brute_force(run: &Run, sae: &Sae) -> Vec<(u64, u32, f32)> {
    let rows = run.acts(hook(), 0..run.n_tokens()).unwrap().to_f32();
    let mut acts = SparseRows::new();
    sae.encode(&rows, &mut crate::sae::Scratch::default(), &mut acts);
    let mut all = Vec::new();
    for (token, (latents, values)) in (0..).zip(acts.iter()) {
        all.extend(latents.iter().zip(values).map(|(&latent, &value)| (token, latent, value)));
    }
    all
}

#[test]
fn statistics_equal_brute_force() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 30, false);
    let dir = run.sae_dir("sae").unwrap();
    let sae = sae();
    sae.save(&dir).unwrap();
    let mut phases = Vec::new();
    let summary = encode(&run, &dir, Some(&Axes), &options(), &mut |progress| {
        phases.push(progress.phase);
        ControlFlow::Continue(())
    })
    .unwrap();
    let all = brute_force(&run, &sae);
    assert_eq!((summary.n_tokens, summary.n_special, summary.not_finite), (30 * DOC_TOKENS, 30, 0));
    assert_eq!(summary.n_acts, all.len() as u64);
    assert_eq!(phases.last(), Some(&EncodePhase::Pair));

    let table = run.feature_table("sae").unwrap();
    let found = table.features_at(0..run.n_tokens()).unwrap();
    let found: Vec<_> =
        found.token_idx.iter().zip(&found.feature).zip(&found.act).map(|((&t, &f), &a)| (t, f, a)).collect();
    assert_eq!(found, all, "special tokens are encoded too");

    let mut by_feature: BTreeMap<u32, Vec<(u64, f32)>> = BTreeMap::new();
    for &(token, feature, act) in all.iter().filter(|(token, ..)| token % DOC_TOKENS != 0) {
        by_feature.entry(feature).or_default().push((token, act));
    }
    let regular = 30 * (DOC_TOKENS - 1);
    let stats = table.stats(0..D_SAE as u32).unwrap();
    assert_eq!(stats.len(), D_SAE);
    let mut dead = 0;
    for stats in &stats {
        let acts = by_feature.get(&stats.feature).cloned().unwrap_or_default();
        dead += usize::from(acts.is_empty());
        assert_eq!(stats.n_active, acts.len() as u64);
        assert_eq!(stats.frac_nonzero, acts.len() as f64 / regular as f64);
        let sum: f64 = acts.iter().map(|&(_, act)| f64::from(act)).sum();
        let mean = if acts.is_empty() { 0.0 } else { sum / acts.len() as f64 };
        assert!((stats.mean_act - mean).abs() < 1e-9);
        assert_eq!(stats.max_act, acts.iter().map(|&(_, act)| act).fold(0.0, f32::max));
        assert_eq!(stats.first_fired, acts.iter().map(|&(token, _)| token).min());
        assert_eq!(stats.last_fired, acts.iter().map(|&(token, _)| token).max());
        let mut hist = vec![0; 64];
        for &(_, act) in &acts {
            hist[data::features::act_bin(act)] += 1;
        }
        assert_eq!(stats.act_hist, hist);
        let row = sae.w_dec.row(stats.feature as usize);
        assert!((stats.decoder_norm - norm(row)).abs() < 1e-5);
        assert_eq!(stats.top_logits, Axes.logit_effects(row, 2)[0].top);
        assert_eq!(stats.bottom_logits, Axes.logit_effects(row, 2)[0].bottom);
        let mut cosines: Vec<(u32, f32)> = (0..D_SAE as u32)
            .filter(|&other| other != stats.feature)
            .map(|other| {
                let other_row = sae.w_dec.row(other as usize);
                let dot: f32 = row.iter().zip(other_row).map(|(a, b)| a * b).sum();
                (other, dot / norm(row) / norm(other_row))
            })
            .collect();
        cosines.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (found, expected) in stats.neighbours.iter().zip(&cosines[..3]) {
            assert!((found.1 - expected.1).abs() < 1e-5, "{:?} {:?}", stats.neighbours, &cosines[..3]);
        }
        assert_eq!(stats.neighbours.len(), 3);
        assert!((stats.encoder_norm.unwrap() - stats.decoder_norm).abs() < 1e-4, "the encoder is the decoder");
        assert!((stats.encoder_decoder_cosine.unwrap() - 1.0).abs() < 1e-5);
    }
    assert!(dead > 0 && stats[5].n_active == 0);
    assert_eq!(summary.dead_features, dead);
    let l0 = by_feature.values().map(Vec::len).sum::<usize>() as f64 / regular as f64;
    assert!((summary.l0 - l0).abs() < 1e-12);

    for feature in 0..D_SAE as u32 {
        check_examples(&table.examples(feature..feature + 1).unwrap(), by_feature.get(&feature));
    }
}

#[test]
fn a_coder_between_layers_is_encoded_too() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_layers(&folder.path().join("run"), 20);
    let hooks = |site: &str| (0..LAYERS).map(|at| format!("blocks.{at}.{site}").parse().unwrap()).collect::<Vec<_>>();
    let wiring = Wiring::CrossLayer { inputs: hooks("mlp.hook_in"), outputs: hooks("hook_mlp_out"), skip: false };
    let config = TrainConfig { d_sae: 30, k: 4, batch: 64, tokens: Some(640), threads: 1, ..TrainConfig::default() };
    let dir = run.sae_dir("clt").unwrap();
    train(&run, wiring, &config, &dir, &mut |_| ControlFlow::Continue(())).unwrap();
    let coder = Crosscoder::load(&dir).unwrap();
    encode(&run, &dir, Some(&Axes), &options(), &mut go_on).unwrap();
    let table = run.feature_table("clt").unwrap();

    let site = |at: usize| run.acts(hooks("mlp.hook_in")[at], 0..run.n_tokens()).unwrap();
    let sites: Vec<_> = (0..LAYERS).map(site).collect();
    let mut token = 0;
    for at in 0..run.n_tokens() as usize {
        let row: Vec<f32> = sites.iter().flat_map(|acts| acts.row_f32(at)).collect();
        let mut acts = SparseRows::new();
        coder.encode(&row, &mut crate::sae::Scratch::default(), &mut acts);
        let found = table.features_at(at as u64..at as u64 + 1).unwrap();
        assert_eq!(found.feature, acts.row(0).0);
        assert!(found.act.iter().zip(acts.row(0).1).all(|(a, b)| (a - b).abs() < 1e-4 * b.abs().max(1.0)));
        token += found.feature.len();
    }
    assert!(token > 1000, "{token}");
    let info = table.info();
    assert_eq!(info.hook_point, hooks("mlp.hook_in")[0]);
    assert_eq!([0, 9, 10, 29].map(|feature| info.hook_point_of(feature).layer.unwrap()), [0, 0, 1, 2]);
    // What a latent of the first layer adds to the stream in all, and one of the last.
    let stats = table.stats(0..30).unwrap();
    for latent in [3, 25] {
        let row = coder.decoder_row(latent);
        let sum: Vec<f32> = (0..WIDTH).map(|i| (0..LAYERS).map(|site| row[site * WIDTH + i]).sum()).collect();
        assert_eq!(stats[latent].top_logits, Axes.logit_effects(&sum, 2)[0].top);
        assert!((stats[latent].decoder_norm - norm(&row)).abs() < 1e-5);
    }
}

fn check_examples(examples: &[data::features::Example], acts: Option<&Vec<(u64, f32)>>) {
    let Some(acts) = acts else {
        assert!(examples.is_empty());
        return;
    };
    let max = acts.iter().map(|&(_, act)| act).fold(0.0, f32::max);
    let mut groups: BTreeMap<&str, Vec<&data::features::Example>> = BTreeMap::new();
    for example in examples {
        groups.entry(&example.group).or_default().push(example);
    }
    assert_eq!(groups["top"][0].act, max, "the strongest is shown first");
    for (name, group) in groups {
        for (rank, example) in group.iter().enumerate() {
            assert_eq!(example.rank as usize, rank);
            assert!(acts.contains(&(example.token_idx, example.act)), "it is one of the feature's activations");
            let passage = example.context_start..example.context_start + u64::from(example.context_len);
            assert!(passage.contains(&example.token_idx));
            assert!(example.context_len <= 6);
            let document = example.token_idx / DOC_TOKENS;
            assert_eq!((passage.start / DOC_TOKENS, (passage.end - 1) / DOC_TOKENS), (document, document));
            if let Some(interval) = name.strip_prefix("interval-") {
                let interval: usize = interval.parse().unwrap();
                let share = f64::from(example.act) / f64::from(max) * 5.0;
                assert_eq!((share as usize).min(4), interval);
            }
        }
        assert!(group.windows(2).all(|pair| pair[0].act >= pair[1].act));
        let mut peaks: Vec<u64> = group.iter().map(|example| example.token_idx).collect();
        peaks.sort_unstable();
        peaks.dedup();
        assert_eq!(peaks.len(), group.len(), "contexts are distinct");
    }
}

#[test]
fn little_memory_and_other_thread_counts_give_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 30, true);
    let dir = run.sae_dir("sae").unwrap();
    sae().save(&dir).unwrap();
    let small = EncodeOptions { name: Some("small".into()), sort_memory: 1, threads: 1, ..options() };
    let summary = encode(&run, &dir, None, &small, &mut go_on).unwrap();
    assert_eq!(summary.not_finite, 1);
    encode(&run, &dir, None, &options(), &mut go_on).unwrap();
    let (a, b) = (run.feature_table("small").unwrap(), run.feature_table("sae").unwrap());
    let all = 0..D_SAE as u32;
    assert_eq!(a.stats(all.clone()).unwrap(), b.stats(all.clone()).unwrap());
    assert_eq!(a.examples(all.clone()).unwrap(), b.examples(all).unwrap());
    assert!(a.stats(0..1).unwrap()[0].top_logits.is_empty(), "no model, no logits");
}

#[test]
fn an_interrupted_encode_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 10, false);
    let dir = run.sae_dir("sae").unwrap();
    sae().save(&dir).unwrap();
    for phase in [EncodePhase::Encode, EncodePhase::Sort, EncodePhase::Describe, EncodePhase::Pair] {
        let result = encode(&run, &dir, None, &options(), &mut |progress| {
            if progress.phase == phase { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(result, Err(Error::Interrupted)));
        assert!(run.feature_tables().unwrap().is_empty());
        let left: Vec<_> = fs_err::read_dir(run.dir().join("features")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_coder_for_another_width_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 4, false);
    let dir = run.sae_dir("sae").unwrap();
    let mut narrow = sae();
    narrow.w_enc = Matrix::zeros(8, 3);
    narrow.w_dec = Matrix::zeros(3, 8);
    narrow.b_enc.truncate(3);
    narrow.b_dec.truncate(8);
    narrow.activation = Activation::TopK { k: 2 };
    narrow.save(&dir).unwrap();
    let message = encode(&run, &dir, None, &options(), &mut go_on).unwrap_err().to_string();
    let expected =
        "expected activations of width 8, for which the coder was made, found 16 at `blocks.0.hook_resid_post`";
    assert!(message.starts_with(expected), "{message}");

    narrow.metadata.clear();
    narrow.save(&dir).unwrap();
    let message = encode(&run, &dir, None, &options(), &mut go_on).unwrap_err().to_string();
    assert!(message.starts_with("expected `metadata.hook_name`, found none\nhint: "), "{message}");
}
