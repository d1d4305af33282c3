//! How are coders trained from the shards of a run? Any number of them from one reading.

mod config;
mod notice;
mod session;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use data::{BatchReader, HookPoint, Place, Run, files, metrics::Metrics, sums};
use serde_json::{Map, Value, json};

use crate::{
    checkpoint::{self, State},
    error::{Error, Result},
    init::{self, Estimate},
    pretrained::sae_lens,
    sites::{Sites, side_by_side},
};

use config::setting;
pub use config::*;
pub use notice::Notice;
use session::Plan;
pub use session::Session;

/// The columns of `metrics.parquet`.
const COLUMNS: [&str; 10] =
    ["step", "tokens", "loss", "aux_loss", "explained_variance", "l0", "dead", "lr", "threshold", "sparsity_loss"];

/// How far training is, after every step. The caller has the clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainProgress {
    /// Steps done.
    pub step: u64,
    /// Steps that there will be.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// All parts of the loss of the last batches: the unexplained part of the variance, AuxK, and what is charged for
    /// activations.
    pub loss: f64,
    /// AuxK's part.
    pub aux_loss: f64,
    /// What is charged for activations, and the second reconstruction of a gated coder.
    pub sparsity_loss: f64,
    /// 1 − Σ‖y − ŷ‖² / (Σ‖y‖² − ‖Σy‖²/n) over the last batches, in f64.
    pub explained_variance: f64,
    /// Latents that fire for a token, in the mean over the last batches.
    pub l0: f64,
    /// Latents that have not fired within the window.
    pub dead: usize,
    /// The learning rate of the last step.
    pub lr: f64,
    /// The running estimate of the smallest activation; where thresholds learn, their mean.
    pub threshold: f64,
    /// The norm of the last gradient, before it was limited.
    pub gradient_norm: f64,
    /// What looks like trouble.
    pub notices: Vec<Notice>,
}

/// What came of training.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSummary {
    /// Whether it came to its end: only then there is a coder. Otherwise there is a checkpoint.
    pub complete: bool,
    /// As after the last step, if there was one in this call.
    pub last: Option<TrainProgress>,
    /// What activations were multiplied with.
    pub scale: f32,
    /// Rows left out because a value was not finite.
    pub not_finite: u64,
}

/// One coder of a sweep.
#[derive(Clone, Debug)]
pub struct Job {
    /// What it reads and writes.
    pub wiring: Wiring,
    /// How it is trained. What says how rows are read must be the same in all jobs of a sweep: `batch`, `buffer`,
    /// `max_norm_multiple`. Rows come in the order of the first job's seed.
    pub config: TrainConfig,
    /// The coder's folder (see [`Run::sae_dir`]), or a place in an object store.
    pub out: Place,
}

/// Trains a coder on one hook point of a run, or from one to another, into the folder `out` (see [`Run::sae_dir`]) or a place in
/// an object store.
///
/// `progress` is called after every step; when it breaks, a checkpoint is written, and the same call with `resume` goes on
/// exactly. `out` gets its `cfg.json` at the very end, and its checkpoints are removed. Of a coder that is whole, `resume` finds
/// nothing left to do.
pub fn train(
    run: &Run,
    wiring: impl Into<Wiring>,
    config: &TrainConfig,
    out: impl Into<Place>,
    progress: &mut dyn FnMut(&TrainProgress) -> ControlFlow<()>,
) -> Result<TrainSummary> {
    let job = Job { wiring: wiring.into(), config: config.clone(), out: out.into() };
    let mut summaries = sweep(run, &[job], &mut |at| match at {
        [Some(at)] => progress(at),
        _ => ControlFlow::Continue(()),
    })?;
    summaries.swap_remove(0)
}

/// Trains many coders from one reading of the run. Each gets its own folder, as [`train`] makes it; one that diverges ends
/// alone, with its error.
///
/// `progress` is called after every batch with how far each coder is; `None` are those that ended before this call, or have not
/// had a batch yet. When it breaks, every coder gets a checkpoint, and the same call with `resume` goes on exactly.
pub fn sweep(
    run: &Run,
    jobs: &[Job],
    progress: &mut dyn FnMut(&[Option<TrainProgress>]) -> ControlFlow<()>,
) -> Result<Vec<Result<TrainSummary>>> {
    let resume = check(jobs)?;
    let mut ended: Vec<Option<Result<TrainSummary>>> = jobs.iter().map(|_| None).collect();
    let mut open = Vec::new();
    for (at, job) in jobs.iter().enumerate() {
        let out = job.out.bring(|_| true)?.to_owned();
        if !out.join(sae_lens::CONFIG_FILE).exists() {
            if !resume && checkpoint::latest(&out)?.is_some() {
                return Err(Error::TrainingBegun { path: out });
            }
            open.push((at, out));
        } else if resume && is_ours(&out, &job.wiring) {
            // It was ended when it had just come to its end.
            close(&out, &job.out)?;
            ended[at] = Some(Ok(TrainSummary { complete: true, last: None, scale: 1.0, not_finite: 0 }));
        } else {
            return Err(Error::CoderExists { path: out });
        }
    }
    if open.is_empty() {
        return Ok(ended.into_iter().flatten().collect());
    }
    let mut training = Training::open(run, jobs, open)?;
    let mut last: Vec<Option<TrainProgress>> = vec![None; jobs.len()];
    let mut go_on = true;
    while go_on && !training.coders.is_empty() {
        if !training.advance(&mut last, &mut ended)? {
            break;
        }
        go_on = progress(&last).is_continue();
        // Those that are done are written even if the others are to stop.
        training.close_done(run, jobs, &last, &mut ended)?;
        let due = |coder: &Coder| coder.session.step.is_multiple_of(coder.every(jobs));
        if training.coders.iter().any(|coder| !go_on || due(coder)) {
            // All at the same step, so that they go on from one place in the shards.
            training.checkpoint(jobs)?;
        }
    }
    for coder in training.coders {
        let nothing = coder.session.step == 0;
        let summary = TrainSummary {
            complete: false,
            last: last[coder.job].take(),
            scale: coder.session.scales[0][0],
            not_finite: training.not_finite,
        };
        let hook = || jobs[coder.job].wiring.sites().name();
        ended[coder.job] = Some(if nothing { Err(Error::NoActivations { hook: hook() }) } else { Ok(summary) });
    }
    Ok(ended.into_iter().flatten().collect())
}

/// Whether a whole coder reads and writes what it should.
fn is_ours(out: &Path, wiring: &Wiring) -> bool {
    crate::Coder::load(out).is_ok_and(|coder| coder.sites().is_ok_and(|sites| sites == Some(wiring.sites())))
}

/// A coder that is whole needs no checkpoints any more, which are three times its size.
fn close(out: &Path, place: &Place) -> Result<()> {
    checkpoint::remove_all(out)?;
    Ok(place.publish("", &VOUCHERS)?)
}

/// That the jobs make sense alone and together; whether they go on with what was begun.
fn check(jobs: &[Job]) -> Result<bool> {
    let Some(first) = jobs.first() else { return Err(setting("coders", "at least one", 0)) };
    for job in jobs {
        job.config.check()?;
        job.wiring.check(&job.config)?;
        let (one, other) = (&first.config, &job.config);
        if one.batch != other.batch {
            return Err(setting("batch", format!("{} as for the first coder of the sweep", one.batch), other.batch));
        }
        let same = (one.buffer, one.max_norm_multiple) == (other.buffer, other.max_norm_multiple);
        if !same || one.resume != other.resume {
            return Err(setting("buffer", "the same reading for all coders of a sweep", other.buffer));
        }
    }
    Ok(first.config.resume)
}

/// What vouches for the other files of a coder, and goes last into a store.
pub(crate) const VOUCHERS: [&str; 2] = [sums::FILE, sae_lens::CONFIG_FILE];

/// The metrics' file name.
pub(crate) const METRICS_FILE: &str = "metrics.parquet";

/// Coders in training, with what they read from.
struct Training {
    reader: BatchReader,
    widths: Vec<usize>,
    coders: Vec<Coder>,
    not_finite: u64,
    /// Rows of several sites side by side: that are read, that are written.
    rows: [Vec<f32>; 2],
}

/// One of them.
struct Coder {
    /// Which job.
    job: usize,
    session: Session,
    settings: Map<String, Value>,
    log: Metrics,
    out: PathBuf,
    /// Where its sites are among the reader's: those that are read, and those that are written.
    sites: [Vec<usize>; 2],
}

impl Coder {
    fn every(&self, jobs: &[Job]) -> u64 {
        jobs[self.job].config.checkpoint_every.max(1)
    }
}

impl Training {
    /// Begins all coders, or goes on with all of them from the last step of which each has a checkpoint.
    fn open(run: &Run, jobs: &[Job], open: Vec<(usize, PathBuf)>) -> Result<Self> {
        let mut hooks: Vec<HookPoint> = Vec::new();
        let sites = jobs.iter().map(|job| job.wiring.sites());
        for hook in sites.flat_map(|sites| sites.inputs.into_iter().chain(sites.outputs)) {
            if !hooks.contains(&hook) {
                hooks.push(hook);
            }
        }
        let widths = hooks.iter().map(|&hook| Ok(run.hook_point(hook)?.width)).collect::<Result<Vec<_>>>()?;
        let config = &jobs[0].config;
        let from = common_step(&open)?;
        let mut estimates: Option<Vec<Estimate>> = None;
        let (mut cursor, mut not_finite) = (None, 0);
        let mut coders = Vec::new();
        for (job, out) in open {
            let Job { wiring, config, .. } = &jobs[job];
            let find = |hook: HookPoint| hooks.iter().position(|&known| known == hook).unwrap_or(0);
            let Sites { inputs, outputs } = wiring.sites();
            let sites = [inputs, outputs].map(|sites| sites.into_iter().map(find).collect::<Vec<_>>());
            let [inputs, outputs] =
                [&sites[0], &sites[1]].map(|sites| sites.iter().map(|&at| widths[at]).collect::<Vec<_>>());
            let plan = Plan::new(wiring, [&inputs, &outputs], tokens(run, hooks[sites[0][0]], config)?, config);
            let settings = settings(wiring, &plan, config, &jobs[0].config);
            let session = if let Some(step) = from {
                checkpoint::forget_after(&out, step)?;
                let path = checkpoint::path(&out, step);
                let (state, weights, adam) = checkpoint::load(&path, &settings, &plan.layout, plan.own())?;
                not_finite = state.not_finite;
                let session = Session::resume(&state, weights, adam, plan, config)?;
                cursor = Some(state.cursor);
                session
            } else {
                checkpoint::forget_after(&out, 0)?;
                let estimates = if let Some(estimates) = &estimates {
                    estimates
                } else {
                    let none = || Error::NoActivations { hook: hooks[0].to_string() };
                    let sample = BatchReader::new(run, &hooks, jobs[0].config.batches(1))?;
                    let sample = sample.map(|batch| Ok(batch?.acts));
                    estimates.insert(init::estimate(sample, &widths, config.normalize)?.ok_or_else(none)?)
                };
                let [inputs, outputs] =
                    [&sites[0], &sites[1]].map(|sites| sites.iter().map(|&at| &estimates[at]).collect::<Vec<_>>());
                Session::begin(&inputs, &outputs, plan, config)?
            };
            let log = open_log(&out, session.step)?;
            coders.push(Coder { job, session, settings, log, out, sites });
        }
        let reader = match cursor {
            Some(cursor) => BatchReader::resume(run, &hooks, config.batches(u32::MAX), cursor)?,
            None => BatchReader::new(run, &hooks, config.batches(u32::MAX))?,
        };
        Ok(Self { reader, widths, coders, not_finite, rows: Default::default() })
    }

    /// One step of every coder; `false` when there is nothing more to read. A coder that diverges is among the ended.
    fn advance(
        &mut self,
        last: &mut [Option<TrainProgress>],
        ended: &mut [Option<Result<TrainSummary>>],
    ) -> Result<bool> {
        let batch = loop {
            let Some(batch) = self.reader.next() else { return Ok(false) };
            let mut batch = batch?;
            let before = batch.acts[0].len() / self.widths[0];
            keep_finite(&mut batch.acts, &self.widths);
            self.not_finite += (before - batch.acts[0].len() / self.widths[0]) as u64;
            if !batch.acts[0].is_empty() {
                break batch;
            }
        };
        let mut failed = Vec::new();
        for (at, coder) in self.coders.iter_mut().enumerate() {
            let same = coder.sites[0] == coder.sites[1];
            for (which, rows) in self.rows.iter_mut().enumerate().filter(|&(which, _)| which == 0 || !same) {
                if let sites @ [_, _, ..] = &coder.sites[which][..] {
                    let parts: Vec<_> = sites.iter().map(|&site| (&batch.acts[site][..], self.widths[site])).collect();
                    side_by_side(&parts, rows);
                }
            }
            let rows = |which: usize| match coder.sites[which][..] {
                [one] => &batch.acts[one][..],
                _ => &self.rows[which][..],
            };
            let (x, y) = (rows(0), rows(usize::from(!same)));
            match coder.session.step_between(x, y) {
                Ok(progress) => last[coder.job] = Some(progress),
                Err(error) => {
                    ended[coder.job] = Some(Err(error));
                    failed.push(at);
                }
            }
        }
        for at in failed.into_iter().rev() {
            self.coders.remove(at);
        }
        self.reader.recycle(batch);
        for coder in &mut self.coders {
            let Some(at) = &last[coder.job] else { continue };
            if at.step % coder.session.log_every() == 0 || at.step == at.steps {
                coder.log.push(&at.columns())?;
            }
        }
        Ok(true)
    }

    /// Writes the coders that have come to their end.
    fn close_done(
        &mut self,
        run: &Run,
        jobs: &[Job],
        last: &[Option<TrainProgress>],
        ended: &mut [Option<Result<TrainSummary>>],
    ) -> Result<()> {
        let (done, open) =
            std::mem::take(&mut self.coders).into_iter().partition(|it| it.session.step >= it.session.steps());
        self.coders = open;
        let done: Vec<Coder> = done;
        for coder in done {
            files::create_dir(&coder.out)?;
            coder.log.write(&coder.out.join(METRICS_FILE))?;
            let scale = coder.session.scales[0][0];
            let metadata = self.metadata(&coder, run, &jobs[coder.job]);
            let wiring = &jobs[coder.job].wiring;
            if wiring.is_several() {
                coder.session.into_crosscoder(&wiring.sites(), metadata).save(&coder.out)?;
            } else {
                coder.session.into_sae(metadata).save(&coder.out)?;
            }
            close(&coder.out, &jobs[coder.job].out)?;
            let last = last[coder.job].clone();
            ended[coder.job] = Some(Ok(TrainSummary { complete: true, last, scale, not_finite: self.not_finite }));
        }
        Ok(())
    }

    fn checkpoint(&mut self, jobs: &[Job]) -> Result<()> {
        for coder in &mut self.coders {
            // A log that is ahead of its checkpoint is cut when the training goes on; one that is behind has a hole.
            files::create_dir(&coder.out)?;
            coder.log.write(&coder.out.join(METRICS_FILE))?;
            let session = &coder.session;
            let state = State {
                version: State::VERSION,
                settings: coder.settings.clone(),
                step: session.step,
                tokens: session.tokens,
                not_finite: self.not_finite,
                cursor: self.reader.cursor().clone(),
                scales: session.scales.clone(),
                thresholds: session.thresholds.clone(),
                window: session.window.clone(),
                silent: session.silent.clone(),
            };
            checkpoint::save(&coder.out, &state, &session.weights, &session.adam)?;
            jobs[coder.job].out.publish("", &VOUCHERS)?;
        }
        Ok(())
    }

    /// What SAELens and we write down about the making of a coder.
    fn metadata(&self, coder: &Coder, run: &Run, job: &Job) -> Map<String, Value> {
        let manifest = run.manifest();
        let config = &job.config;
        let excluded = self.reader.excluded();
        let mut settings = coder.settings.clone();
        for (name, value) in [
            ("norm_convention", json!("expected_average_only_in")),
            ("norm_scale", one_or_all(&coder.session.scales[0])),
            ("norm_scale_out", one_or_all(&coder.session.scales[1])),
            ("tokens", json!(coder.session.tokens)),
            ("not_finite", json!(self.not_finite)),
            ("excluded", json!({"special": excluded.special, "outliers": excluded.outliers})),
        ] {
            settings.insert(name.into(), value);
        }
        let mut metadata = object(json!({
            "sae_lens_version": sae_lens::LAYOUT_VERSION,
            "sae_lens_training_version": null,
            "model_name": manifest.model.id,
            "hook_name": job.wiring.sites().name(),
            "hook_head_index": null,
            "model_from_pretrained_kwargs": {},
            "prepend_bos": true,
            "exclude_special_tokens": true,
            "dataset_path": manifest.corpus.sources.first(),
            "training_architecture": config.architecture,
            "training_architecture_details": {
                "k": config.k,
                "aux_loss_coefficient": config.aux(),
                "topk_threshold_lr": coder.settings["threshold_rate"],
                "rescale_acts_by_decoder_norm": false,
                "decoder_init_norm": 1.0,
            },
            "polariscope": settings,
        }));
        if let Wiring::Transcoder { output, .. } = &job.wiring {
            metadata.insert("hook_name_out".into(), json!(output.to_string()));
        }
        metadata
    }
}

/// The last step of which every coder has a checkpoint; `None` if there is none, and all begin.
fn common_step(open: &[(usize, PathBuf)]) -> Result<Option<u64>> {
    let mut common: Option<Vec<u64>> = None;
    for (_, out) in open {
        checkpoint::prune(out)?;
        let steps = checkpoint::steps(out)?;
        common = Some(match common {
            Some(common) => common.into_iter().filter(|step| steps.contains(step)).collect(),
            None => steps,
        });
    }
    Ok(common.and_then(|steps| steps.into_iter().max()))
}

/// The metrics up to a step.
fn open_log(out: &Path, step: u64) -> Result<Metrics> {
    let path = out.join(METRICS_FILE);
    if step == 0 || !path.is_file() {
        return Ok(Metrics::new(&COLUMNS));
    }
    let mut log = Metrics::read(&path)?;
    let steps = log.column("step").unwrap_or_default();
    let kept = steps.iter().take_while(|&&known| known <= step as f64).count();
    log.truncate(kept);
    Ok(log)
}

/// The settings that decide the result.
fn settings(wiring: &Wiring, plan: &Plan, config: &TrainConfig, first: &TrainConfig) -> Map<String, Value> {
    let mut settings = plan.settings(config);
    let sites = wiring.sites();
    settings.insert("hook_point".into(), one_or_all(&sites.inputs));
    if !sites.same() {
        settings.insert("hook_point_out".into(), one_or_all(&sites.outputs));
    }
    if let Wiring::Crosscoder { causal, .. } = wiring {
        settings.insert("causal".into(), json!(causal));
    }
    settings.insert("order_seed".into(), json!(first.seed));
    settings.insert("buffer".into(), json!(config.buffer));
    settings.insert("max_norm_multiple".into(), json!(config.max_norm_multiple));
    settings
}

/// The value of one site, or a list of those of several.
fn one_or_all<T: serde::Serialize>(values: &[T]) -> Value {
    if let [one] = values { json!(one) } else { json!(values) }
}

/// How many tokens the training takes: passes count those that are not special.
fn tokens(run: &Run, hook: HookPoint, config: &TrainConfig) -> Result<u64> {
    match config.tokens {
        Some(tokens) => Ok(tokens),
        None => Ok(run.statistics(hook)?.n.saturating_mul(u64::from(config.epochs)).max(1)),
    }
}

/// The object that a `json!({…})` is.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

impl TrainProgress {
    /// The row of `metrics.parquet`, in the order of [`COLUMNS`].
    fn columns(&self) -> [f64; COLUMNS.len()] {
        [
            self.step as f64,
            self.tokens as f64,
            self.loss,
            self.aux_loss,
            self.explained_variance,
            self.l0,
            self.dead as f64,
            self.lr,
            self.threshold,
            self.sparsity_loss,
        ]
    }
}

/// Removes the rows that have a value that is not finite at any of the sites.
fn keep_finite(sites: &mut [Vec<f32>], widths: &[usize]) {
    // 0 times anything finite is 0, and times anything else NaN.
    let finite = |row: &[f32]| row.iter().map(|x| x * 0.0).sum::<f32>() == 0.0;
    let n = sites[0].len() / widths[0];
    let columns = |site: usize, row: usize| row * widths[site]..(row + 1) * widths[site];
    let keep: Vec<bool> = (0..n).map(|i| (0..sites.len()).all(|site| finite(&sites[site][columns(site, i)]))).collect();
    if keep.iter().all(|&keep| keep) {
        return;
    }
    for (rows, &width) in sites.iter_mut().zip(widths) {
        let kept = rows.chunks_exact(width).zip(&keep).filter(|(_, keep)| **keep);
        *rows = kept.flat_map(|(row, _)| row.iter().copied()).collect();
    }
}

#[cfg(test)]
mod tests;
