//! Does one pass give what passes of its own would, and do baselines stay below a coder that learnt?

use super::*;
use crate::{
    Architecture, Sae, TrainConfig, Wiring,
    testing::{DOC_TOKENS, LAYERS, WIDTH, hook, shuffled, write_layers, write_run},
    train,
};

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn trained(run: &Run) -> Sae {
    let config = TrainConfig {
        architecture: Architecture::TopK,
        d_sae: 48,
        k: 4,
        lr: Some(3e-3),
        batch: 128,
        tokens: Some(128 * 120),
        buffer: 512,
        threads: 2,
        ..TrainConfig::default()
    };
    let out = run.sae_dir("trained").unwrap();
    train(run, hook(), &config, &out, &mut |_| ControlFlow::Continue(())).unwrap();
    Sae::load(&out).unwrap()
}

#[test]
fn everything_in_one_pass() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 80, true);
    let sae = trained(&run);
    let options = EvaluateOptions { threads: 2, ..EvaluateOptions::default() };
    let (found, _) = measure(&run, &hook().into(), &sae, &options, &mut go_on).unwrap();
    let alone = evaluate(&run, &hook().into(), &sae, &options, &mut go_on).unwrap();
    assert_eq!(found.metrics, alone);
    assert!(alone.explained_variance > 0.6);

    // Positions 1 to 24 of each document; two rows were left out.
    let tokens: u64 = found.positions.iter().map(|position| position.metrics.n_tokens).sum();
    assert_eq!(tokens, 80 * (DOC_TOKENS - 1) - 2);
    assert_eq!((found.positions[0].first, found.positions.last().unwrap().first), (1, 24));
    let l0: f64 = found.positions.iter().map(|at| at.metrics.l0 * at.metrics.n_tokens as f64).sum();
    assert!((l0 / tokens as f64 - alone.l0).abs() < 1e-9);
    let mse: f64 = found.positions.iter().map(|at| at.metrics.mse * at.metrics.n_tokens as f64).sum();
    assert!((mse / tokens as f64 - alone.mse).abs() < 1e-9);
    assert!(found.sources.is_empty(), "there is one source");

    let baselines = &found.baselines;
    let (decoder, dictionary) =
        (baselines.random_decoder.as_ref().unwrap(), baselines.random_dictionary.as_ref().unwrap());
    assert!(baselines.refitted_explained_variance >= alone.explained_variance - 1e-9);
    for random in [decoder, dictionary] {
        assert!((0.0..0.75 * alone.explained_variance).contains(&random.explained_variance), "{baselines:?}");
        assert!((random.l0 - alone.l0).abs() < 0.6, "{baselines:?}");
    }
    assert!(baselines.shuffled_activations.explained_variance < alone.explained_variance - 0.1, "{baselines:?}");
    assert_eq!(baselines.pca.rank, alone.l0.round() as usize);
    assert!((0.0..1.0).contains(&baselines.pca.explained_variance));

    let length = &found.description_length;
    assert!(length.bits > length.bits_for_support && length.explained_variance <= alone.explained_variance + 0.01);
    assert!(found.decoder.mean_max_cosine > 0.0 && found.decoder.n == 48);
}

#[test]
fn each_hook_point_of_several_has_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_layers(&folder.path().join("run"), 30);
    let hooks: Vec<HookPoint> = (0..LAYERS).map(|at| format!("blocks.{at}.hook_resid_post").parse().unwrap()).collect();
    let wiring = Wiring::Crosscoder { sites: hooks.clone(), causal: true };
    let config = TrainConfig {
        d_sae: 60,
        k: 8,
        lr: Some(3e-3),
        batch: 128,
        tokens: Some(128 * 40),
        threads: 2,
        ..TrainConfig::default()
    };
    let out = run.sae_dir("several").unwrap();
    train(&run, wiring.clone(), &config, &out, &mut |_| ControlFlow::Continue(())).unwrap();
    let coder = crate::Coder::load(&out).unwrap();
    let options = EvaluateOptions { threads: 2, max_norm_multiple: None, ..EvaluateOptions::default() };
    let (found, _) = measure(&run, &wiring.sites(), &*coder, &options, &mut go_on).unwrap();
    assert_eq!(found.sites.iter().map(|site| site.hook_point).collect::<Vec<_>>(), hooks);
    let mse: f64 = found.sites.iter().map(|site| site.mse).sum();
    assert!((mse / found.metrics.mse - 1.0).abs() < 1e-9, "errors of sites add up");
    // By hand, of the second one.
    let n = run.n_tokens();
    let rows: Vec<Vec<f32>> = hooks.iter().map(|&hook| run.acts(hook, 0..n).unwrap().to_f32()).collect();
    let special = run.special(0..n).unwrap();
    let (mut error, mut square, mut sum, mut n_rows) = (0.0, 0.0, vec![0.0_f64; WIDTH], 0.0);
    for at in (0..n as usize).filter(|&at| !special[at]) {
        let row: Vec<f32> = rows.iter().flat_map(|rows| &rows[at * WIDTH..][..WIDTH]).copied().collect();
        let mut acts = crate::SparseRows::new();
        coder.encode(&row, &mut crate::sae::Scratch::default(), &mut acts);
        let mut out = vec![0.0; LAYERS * WIDTH];
        coder.decode(&acts, &row, &mut out);
        for i in 0..WIDTH {
            let (x, y) = (f64::from(row[WIDTH + i]), f64::from(out[WIDTH + i]));
            error += (x - y) * (x - y);
            square += x * x;
            sum[i] += x;
        }
        n_rows += 1.0;
    }
    let variance = square / n_rows - sum.iter().map(|x| (x / n_rows).powi(2)).sum::<f64>();
    let by_hand = 1.0 - error / n_rows / variance;
    assert!((found.sites[1].explained_variance - by_hand).abs() < 1e-6, "{by_hand} {:?}", found.sites);
}

#[test]
fn max_tokens_and_shuffled_runs() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 40, false);
    let sae = trained(&run);
    let options = EvaluateOptions { max_tokens: Some(500), threads: 1, ..EvaluateOptions::default() };
    let (found, _) = measure(&run, &hook().into(), &sae, &options, &mut go_on).unwrap();
    assert_eq!(found.metrics.n_tokens, 500);
    assert_eq!(found.description_length.n_tokens, 500);
    let mixed = shuffled(&run, &folder.path().join("mixed"));
    let options = EvaluateOptions { threads: 1, ..EvaluateOptions::default() };
    let (found, _) = measure(&mixed, &hook().into(), &sae, &options, &mut go_on).unwrap();
    let (in_order, _) = measure(&run, &hook().into(), &sae, &options, &mut go_on).unwrap();
    assert!(found.positions.is_empty(), "a shuffled run does not say where a token stood");
    assert!((found.metrics.explained_variance - in_order.metrics.explained_variance).abs() < 1e-9);
    assert!((found.baselines.pca.explained_variance - in_order.baselines.pca.explained_variance).abs() < 1e-9);
}
