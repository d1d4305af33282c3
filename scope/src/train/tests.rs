//! Does training learn, resume exactly, and refuse what it cannot do?

use super::*;
use crate::{
    Activation, Sae, SparseCoder,
    metrics::{EvaluateOptions, evaluate},
    sae::norm,
    testing::{DOC_TOKENS, LAYERS, WIDTH, hook, shuffled, structured_rows, write_layers, write_run},
};

fn config(architecture: Architecture) -> TrainConfig {
    TrainConfig {
        architecture,
        d_sae: 48,
        k: 4,
        // So few steps want a price that tells at once.
        sparsity: Some(if architecture.has_thresholds() { 0.15 } else { 0.1 }),
        lr: Some(3e-3),
        batch: 128,
        tokens: Some(128 * 60),
        buffer: 512,
        threads: 2,
        log_every: 5,
        dead_window: Some(1000),
        ..TrainConfig::default()
    }
}

fn go_on(_: &TrainProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn training_explains_the_variance_and_keeps_norms() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 80, true);
    for architecture in Architecture::ALL {
        let out = run.sae_dir(&architecture.to_string()).unwrap();
        let mut seen = Vec::new();
        let summary = train(&run, hook(), &config(architecture), &out, &mut |progress| {
            seen.push(progress.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(summary.complete);
        assert_eq!(seen.len(), 60);
        assert_eq!(summary.last.as_ref(), seen.last());
        let (first, last) = (&seen[0], &seen[59]);
        assert!(last.explained_variance > 0.55 && last.explained_variance > first.explained_variance, "{last:?}");
        assert!(last.loss - last.sparsity_loss < first.loss - first.sparsity_loss, "{first:?} {last:?}");
        if architecture.has_k(SparsityLoss::Quadratic) {
            let most = if architecture.has_thresholds() { 7.0 } else { 4.0 + 1e-9 };
            assert!(last.l0 <= most && last.l0 > 2.0, "{architecture} {last:?}");
        } else {
            assert!(last.l0 < first.l0, "{architecture} {first:?} {last:?}");
        }

        let sae = Sae::load(&out).unwrap();
        let scale = f64::from(summary.scale);
        for latent in 0..sae.d_sae() {
            let norm = f64::from(norm(sae.w_dec.row(latent)));
            assert!((norm * scale - 1.0).abs() < 1e-5, "a unit row before the scale was folded in");
        }
        assert_eq!(sae.hook_name(), Some("blocks.0.hook_resid_post"));
        let measured =
            evaluate(&run, &hook().into(), &sae, &EvaluateOptions::default(), &mut |_| ControlFlow::Continue(()));
        let measured = measured.unwrap();
        // Of 80 documents, without special tokens, the outlier and the row that is not finite.
        assert_eq!(measured.n_tokens, 80 * (DOC_TOKENS - 1) - 2);
        assert!((measured.explained_variance - last.explained_variance).abs() < 0.1, "{measured:?} {last:?}");
        assert!((measured.l0 - last.l0).abs() < 0.15 * last.l0 + 0.1, "{architecture} {measured:?} {last:?}");

        let metrics = Metrics::read(&out.join("metrics.parquet")).unwrap();
        assert_eq!(metrics.n_rows(), 12);
        assert_eq!(metrics.column("step").unwrap()[11], 60.0);
        assert_eq!(metrics.column("explained_variance").unwrap()[11], last.explained_variance);
    }
}

#[test]
fn resuming_continues_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let ordered = write_run(&folder.path().join("run"), 40, false);
    let shuffled = shuffled(&ordered, &folder.path().join("shuffled"));
    assert!(shuffled.shards().len() > 1);
    for (architecture, run) in
        [(Architecture::TopK, &ordered), (Architecture::BatchTopK, &ordered), (Architecture::BatchTopK, &shuffled)]
    {
        let config = TrainConfig { checkpoint_every: 20, ..config(architecture) };
        let whole = run.sae_dir(&format!("{architecture}-whole")).unwrap();
        train(run, hook(), &config, &whole, &mut go_on).unwrap();

        // Stopped after 30 steps, then killed after 53: the last checkpoint is that of step 40.
        let parts = run.sae_dir(&format!("{architecture}-parts")).unwrap();
        let summary = train(run, hook(), &config, &parts, &mut |progress| {
            if progress.step == 30 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(!summary.unwrap().complete);
        assert!(!parts.join("cfg.json").exists());
        let begun = train(run, hook(), &config, &parts, &mut go_on).unwrap_err();
        assert!(matches!(begun, Error::TrainingBegun { .. }));
        let resumed = TrainConfig { resume: true, threads: 1, ..config.clone() };
        let checkpoint = parts.join("checkpoints/step-000000030.safetensors");
        let bytes = fs_err::read(&checkpoint).unwrap();
        let mut damaged = bytes.clone();
        *damaged.last_mut().unwrap() ^= 1;
        fs_err::write(&checkpoint, damaged).unwrap();
        let error = train(run, hook(), &resumed, &parts, &mut go_on).unwrap_err();
        assert!(matches!(error, Error::BadCheckpoint { .. }), "{error}");
        fs_err::write(&checkpoint, bytes).unwrap();
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            train(run, hook(), &resumed, &parts, &mut |progress| {
                assert!(progress.step < 53, "killed");
                ControlFlow::Continue(())
            })
        }));
        assert!(killed.is_err());
        let mut first = None;
        train(run, hook(), &resumed, &parts, &mut |progress| {
            first.get_or_insert(progress.step);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(first, Some(41));

        let read = |dir: &Path| fs_err::read(dir.join("sae_weights.safetensors")).unwrap();
        assert_eq!(read(&whole), read(&parts), "{architecture}: bit for bit");
        let steps = |dir: &Path| Metrics::read(&dir.join("metrics.parquet")).unwrap().column("step").unwrap().to_vec();
        assert_eq!(steps(&whole), steps(&parts));
        assert_eq!(steps(&whole).len(), 12);
        assert!(!parts.join("checkpoints").exists(), "a whole coder needs none");
        let again = train(run, hook(), &resumed, &parts, &mut go_on).unwrap();
        assert!(again.complete && again.last.is_none());
    }
}

fn hooks(site: &str) -> Vec<HookPoint> {
    (0..LAYERS).map(|at| format!("blocks.{at}.{site}").parse().unwrap()).collect()
}

/// Every way to wire several hook points.
fn several() -> Vec<(&'static str, Wiring)> {
    let stream = || hooks("hook_resid_post");
    let (inputs, outputs) = (hooks("mlp.hook_in"), hooks("hook_mlp_out"));
    vec![
        ("crosscoder", Wiring::Crosscoder { sites: stream(), causal: false }),
        ("causal_crosscoder", Wiring::Crosscoder { sites: stream(), causal: true }),
        ("cross_layer_transcoder", Wiring::CrossLayer { inputs, outputs, skip: false }),
    ]
}

#[test]
fn coders_between_layers_learn_and_write_no_earlier_layer() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_layers(&folder.path().join("run"), 60);
    for (name, wiring) in several() {
        for architecture in Architecture::ALL {
            if wiring.has_groups() && architecture.has_levels() {
                let error =
                    train(&run, wiring.clone(), &config(architecture), &run.sae_dir("levels").unwrap(), &mut go_on);
                assert!(error.unwrap_err().to_string().starts_with("expected one without levels"));
                continue;
            }
            let per_group = wiring.has_groups() && architecture != Architecture::TopK;
            let k = if per_group { 3 } else { 6 };
            let config = TrainConfig { d_sae: 60, k, per_group, ..config(architecture) };
            let out = run.sae_dir(&format!("{name}-{architecture}")).unwrap();
            let mut first = None;
            let summary = train(&run, wiring.clone(), &config, &out, &mut |progress| {
                first.get_or_insert(progress.explained_variance);
                ControlFlow::Continue(())
            })
            .unwrap();
            let last = summary.last.unwrap();
            // What pays for the size of activations learns to use few, and then to use them well.
            let has_price = !matches!(architecture, Architecture::TopK | Architecture::BatchTopK);
            let least = if has_price { 0.2 } else { 0.35 };
            assert!(last.explained_variance > first.unwrap().max(least), "{name} {architecture} {last:?}");
            let coder = crate::Coder::load(&out).unwrap();
            assert_eq!(coder.architecture(), name);
            assert_eq!(coder.sites().unwrap(), Some(wiring.sites()));
            let measured = evaluate(&run, &wiring.sites(), &*coder, &EvaluateOptions::default(), &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap();
            // Sites are of other scales there, and the last weights are not those of the mean step.
            assert!((measured.explained_variance - last.explained_variance).abs() < 0.25, "{measured:?} {last:?}");
            assert!(
                (measured.l0 - last.l0).abs() < 0.25 * last.l0 + 0.2,
                "{name} {architecture} {measured:?} {last:?}"
            );
            let crate::Coder::Crosscoder(coder) = coder else { panic!("a coder between layers") };
            assert_eq!((coder.is_causal(), coder.per_group), (name != "crosscoder", per_group));
            if coder.is_causal() {
                let later = coder.decoder_row(coder.d_sae() - 1);
                assert!(later[..2 * WIDTH].iter().all(|&x| x == 0.0) && later[2 * WIDTH..].iter().any(|&x| x != 0.0));
            }
        }
    }
}

#[test]
fn what_cannot_be_wired_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_layers(&folder.path().join("run"), 4);
    let refused = |wiring: Wiring, config: TrainConfig| {
        train(&run, wiring, &config, &run.sae_dir("none").unwrap(), &mut go_on).unwrap_err().to_string()
    };
    let config = config(Architecture::BatchTopK);
    let mut backwards = hooks("hook_resid_post");
    backwards.reverse();
    let crosscoder = |sites, causal| Wiring::Crosscoder { sites, causal };
    assert!(
        refused(crosscoder(backwards, true), config.clone())
            .starts_with("expected two hook points or more in the order")
    );
    let per_group = TrainConfig { per_group: true, ..config.clone() };
    assert!(refused(crosscoder(hooks("hook_resid_post"), false), per_group.clone()).contains("`per_group` = true"));
    assert!(refused(hook().into(), per_group.clone()).contains("`per_group` = true"));
    let many = TrainConfig { k: 17, ..per_group };
    assert!(refused(crosscoder(hooks("hook_resid_post"), true), many).starts_with("expected at most the 16 latents"));
    let fewer =
        Wiring::CrossLayer { inputs: hooks("mlp.hook_in"), outputs: hooks("hook_mlp_out")[1..].to_vec(), skip: false };
    assert!(refused(fewer, config).starts_with("expected 3 hook points, as many as are read"));
}

#[test]
fn coders_between_layers_resume_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_layers(&folder.path().join("run"), 40);
    for (name, wiring) in several() {
        let per_group = wiring.has_groups();
        let config = TrainConfig { d_sae: 31, checkpoint_every: 20, per_group, ..config(Architecture::BatchTopK) };
        let [whole, parts] = ["whole", "parts"].map(|part| run.sae_dir(&format!("{name}-{part}")).unwrap());
        train(&run, wiring.clone(), &config, &whole, &mut go_on).unwrap();
        let summary = train(&run, wiring.clone(), &config, &parts, &mut |progress| {
            if progress.step == 33 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(!summary.unwrap().complete);
        let resumed = TrainConfig { resume: true, threads: 1, ..config };
        train(&run, wiring.clone(), &resumed, &parts, &mut go_on).unwrap();
        for entry in fs_err::read_dir(&whole).unwrap() {
            let file = entry.unwrap().file_name();
            let read = |dir: &Path| fs_err::read(dir.join(&file)).unwrap();
            assert_eq!(read(&whole), read(&parts), "{name}: {file:?}");
        }
        let again = train(&run, wiring, &resumed, &parts, &mut go_on).unwrap();
        assert!(again.complete && again.last.is_none());
    }
}

#[test]
fn dead_latents_come_back() {
    let rows = structured_rows(1024, WIDTH, 24, 11);
    let after_training = |aux_weight: f64| {
        let config = TrainConfig { aux_weight: Some(aux_weight), d_sae: 32, ..config(Architecture::TopK) };
        let mut session = Session::new(WIDTH, 128 * 400, &rows, &config).unwrap();
        // Half of the latents answer so weakly that they are never among the largest.
        for latent in 16..32 {
            session.weights.groups[0].encoder.row_mut(latent).iter_mut().for_each(|x| *x *= 1e-3);
        }
        let batches = rows.chunks_exact(128 * WIDTH).cycle();
        batches.take(400).map(|batch| session.step(batch).unwrap()).last().unwrap()
    };
    let (without, with) = (after_training(0.0), after_training(AUX_WEIGHT));
    assert!(without.dead >= 16, "no gradient reaches them: {without:?}");
    assert_eq!(without.aux_loss, 0.0);
    assert!(with.dead <= 4, "{with:?}");
    assert!(with.explained_variance > without.explained_variance, "{with:?} {without:?}");
}

#[test]
fn rows_that_are_not_finite_are_counted_and_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 20, true);
    let config = TrainConfig { max_norm_multiple: None, tokens: Some(1280), ..config(Architecture::TopK) };
    let summary = train(&run, hook(), &config, &run.sae_dir("sae").unwrap(), &mut go_on).unwrap();
    assert!(summary.complete && summary.last.unwrap().loss.is_finite());
    // 479 rows an epoch: the damaged one came by two or three times.
    assert!((2..=3).contains(&summary.not_finite), "{}", summary.not_finite);
}

#[test]
fn the_seed_decides() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 20, false);
    let weights = |name: &str, seed: u64| {
        let config = TrainConfig { seed, tokens: Some(512), ..config(Architecture::BatchTopK) };
        let out = run.sae_dir(name).unwrap();
        train(&run, hook(), &config, &out, &mut go_on).unwrap();
        Sae::load(out).unwrap().w_enc
    };
    let first = weights("a", 1);
    assert_eq!(first, weights("b", 1));
    assert_ne!(first, weights("c", 2));
}

#[test]
fn epochs_count_tokens_that_are_not_special() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 20, false);
    let config = TrainConfig { tokens: None, epochs: 3, batch: 48, ..config(Architecture::TopK) };
    let mut last = None;
    train(&run, hook(), &config, &run.sae_dir("sae").unwrap(), &mut |progress| {
        last = Some(progress.clone());
        ControlFlow::Continue(())
    })
    .unwrap();
    let last = last.unwrap();
    let tokens = 3 * 20 * (DOC_TOKENS - 1);
    assert_eq!((last.tokens, last.steps), (tokens, tokens / 48));
}

#[test]
fn bad_settings_and_places_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 4, false);
    let out = run.sae_dir("sae").unwrap();
    let error = |config: TrainConfig| train(&run, hook(), &config, &out, &mut go_on).unwrap_err().to_string();
    let good = || TrainConfig { tokens: Some(128), ..config(Architecture::TopK) };
    assert_eq!(error(TrainConfig { k: 49, ..good() }), "expected between 1 and d_sae = 48, found `k` = 49");
    assert_eq!(error(TrainConfig { batch: 0, ..good() }), "expected at least 1, found `batch` = 0");
    assert_eq!(error(TrainConfig { lr: Some(f64::NAN), ..good() }), "expected a positive number, found `lr` = NaN");
    let other: HookPoint = "blocks.0.hook_mlp_out".parse().unwrap();
    assert!(train(&run, other, &good(), &out, &mut go_on).is_err());
    assert!(!out.exists(), "nothing was written");

    train(&run, hook(), &good(), &out, &mut go_on).unwrap();
    assert!(error(good()).starts_with("a sparse coder exists already in `"));

    let stopped = run.sae_dir("stopped").unwrap();
    let long = TrainConfig { tokens: Some(1280), ..config(Architecture::TopK) };
    train(&run, hook(), &long, &stopped, &mut |_| ControlFlow::Break(())).unwrap();
    let changed = TrainConfig { resume: true, k: 5, ..long };
    let message = train(&run, hook(), &changed, &stopped, &mut go_on).unwrap_err().to_string();
    assert!(message.starts_with("expected `k` = 4, with which the training began, found 5, in `"), "{message}");
}

#[test]
fn a_rate_that_is_far_too_high_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 20, false);
    let config = TrainConfig { lr: Some(1e30), warmup_steps: Some(0), ..config(Architecture::TopK) };
    let error = train(&run, hook(), &config, &run.sae_dir("sae").unwrap(), &mut go_on).unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
    assert_eq!(Architecture::TopK, "topk".parse().unwrap());
    assert_eq!(
        "gate".parse::<Architecture>().unwrap_err().to_string(),
        "expected `standard`, `gated`, `topk`, `batchtopk`, `jumprelu`, `matryoshka_batchtopk` or `matryoshka_jumprelu`, found \
         `architecture` = gate"
    );
    assert_eq!(WIDTH, run.hook_point(hook()).unwrap().width);
}

#[test]
fn a_jump_relu_comes_to_the_number_that_is_wanted() {
    let rows = structured_rows(2048, WIDTH, 24, 11);
    let config = TrainConfig { sparsity: Some(0.05), ..config(Architecture::JumpRelu) };
    let mut session = Session::new(WIDTH, 128 * 500, &rows, &config).unwrap();
    let batches = rows.chunks_exact(128 * WIDTH).cycle();
    let last = batches.take(500).map(|batch| session.step(batch).unwrap()).last().unwrap();
    assert!((last.l0 - 4.0).abs() < 0.5, "{last:?}");
    let sae = session.into_sae(Map::new());
    let Activation::JumpRelu { threshold } = &sae.activation else { panic!("{:?}", sae.activation) };
    assert!(threshold.iter().any(|x| (x - threshold[0]).abs() > 1e-3), "each has its own");
}

#[test]
fn a_transcoder_writes_another_site_and_a_skip_takes_the_linear_part() {
    let x = structured_rows(2048, WIDTH, 24, 11);
    // Twice the input turned round, and the first number's square.
    let y: Vec<f32> =
        x.chunks_exact(WIDTH).flat_map(|x| x.iter().rev().map(|v| 2.0 * v).chain([x[0] * x[0]])).collect();
    let estimates = init::estimate(std::iter::once(Ok(vec![x.clone(), y.clone()])), &[WIDTH, WIDTH + 1], true);
    let estimates = estimates.unwrap().unwrap();
    let train = |skip: bool, architecture| {
        let config = config(architecture);
        let wiring = Wiring::Transcoder { input: hook(), output: hook(), skip };
        let plan = Plan::new(&wiring, [&[WIDTH], &[WIDTH + 1]], 128 * 300, &config);
        let mut session = Session::begin(&[&estimates[0]], &[&estimates[1]], plan, &config).unwrap();
        let mut last = None;
        for step in 0..300 {
            let at = step % 16 * 128;
            let [x, y] = [&x[at * WIDTH..][..128 * WIDTH], &y[at * (WIDTH + 1)..][..128 * (WIDTH + 1)]];
            last = Some(session.step_between(x, y).unwrap());
        }
        (last.unwrap(), session.into_sae(Map::new()))
    };
    for architecture in [Architecture::BatchTopK, Architecture::JumpRelu, Architecture::Gated] {
        let (without, plain) = train(false, architecture);
        let (with, skipping) = train(true, architecture);
        assert!(without.explained_variance > 0.3, "{architecture} {without:?}");
        if architecture == Architecture::BatchTopK {
            assert!(with.explained_variance > without.explained_variance + 0.02, "{with:?} {without:?}");
        }
        assert!(plain.transcoder && plain.w_skip.is_none() && skipping.w_skip.is_some());
        // Folded, it writes rows as they are.
        let rows = &x[..256 * WIDTH];
        let mut acts = crate::SparseRows::new();
        skipping.encode(rows, &mut crate::sae::Scratch::default(), &mut acts);
        let mut out = vec![0.0; 256 * (WIDTH + 1)];
        skipping.decode(&acts, rows, &mut out);
        let (mut missed, mut all) = (0.0, 0.0);
        for (out, y) in out.iter().zip(&y) {
            missed += f64::from(out - y).powi(2);
            all += f64::from(*y).powi(2);
        }
        assert!(missed < 0.5 * all, "{architecture} {missed} {all}");
    }
}

#[test]
fn a_sweep_trains_each_as_if_alone_and_goes_on_from_one_place() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(&folder.path().join("run"), 40, false);
    let jobs = |prefix: &str, resume: bool| -> Vec<Job> {
        let architectures = [Architecture::BatchTopK, Architecture::JumpRelu, Architecture::Standard];
        let job = |(i, &architecture): (usize, &Architecture)| Job {
            wiring: hook().into(),
            // The last one is done before the others.
            config: TrainConfig {
                checkpoint_every: 20,
                tokens: Some(if i == 2 { 128 * 30 } else { 128 * 60 }),
                resume,
                ..config(architecture)
            },
            out: (&run.sae_dir(&format!("{prefix}-{architecture}")).unwrap()).into(),
        };
        architectures.iter().enumerate().map(job).collect()
    };
    let alone = jobs("alone", false);
    for job in &alone {
        train(&run, hook(), &job.config, job.out.clone(), &mut go_on).unwrap();
    }
    let mut batches = 0;
    let stopped = sweep(&run, &jobs("sweep", false), &mut |at| {
        batches += 1;
        assert_eq!(at.len(), 3);
        if batches == 47 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let complete: Vec<bool> = stopped.unwrap().into_iter().map(|one| one.unwrap().complete).collect();
    assert_eq!(complete, [false, false, true]);
    // As if it had been killed between two checkpoints: one coder is behind.
    let ahead = jobs("sweep", true)[0].out.dir().join("checkpoints/step-000000047.safetensors");
    fs_err::remove_file(ahead).unwrap();
    let mut first = None;
    let ended = sweep(&run, &jobs("sweep", true), &mut |at| {
        first.get_or_insert_with(|| at[0].as_ref().map(|at| at.step));
        ControlFlow::Continue(())
    });
    assert!(ended.unwrap().into_iter().all(|one| one.unwrap().complete));
    assert_eq!(first, Some(Some(41)));
    for (one, other) in alone.iter().zip(jobs("sweep", false)) {
        let read = |job: &Job| fs_err::read(job.out.dir().join("sae_weights.safetensors")).unwrap();
        assert!(read(one) == read(&other), "{}", other.out.dir().display());
    }
}
