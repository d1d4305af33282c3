//! How is a coder trained from the shards of a run?

mod session;

use std::{ops::ControlFlow, path::Path};

use data::{BatchOptions, BatchReader, HookPoint, Place, Run, files, metrics::Metrics, sums};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    checkpoint::{self, State},
    error::{Error, Result},
    init,
    loss::Selection,
    pretrained::sae_lens,
};

use session::Plan;
pub use session::Session;

/// Tokens in a batch (SAELens's and GDM's 4,096).
pub const BATCH: usize = 4096;
/// Latents (the width of the quick loop, `reference/sae.md` §4.12).
pub const D_SAE: usize = 4096;
/// Latents that fire for a token, in the mean (OpenAI's, SAEBench's range is 20–200).
pub const K: usize = 32;
/// The learning rate at [`LR_WIDTH`] latents; it falls with the square root of the width (dictionary_learning, sparsify).
pub const LR: f64 = 2e-4;
/// See [`LR`].
pub const LR_WIDTH: f64 = (1 << 14) as f64;
/// Steps over which the learning rate rises (dictionary_learning, OpenMOSS).
pub const WARMUP_STEPS: u64 = 1000;
/// … but not more than this part of the training, which is short on small corpora.
pub const WARMUP_FRACTION: f64 = 0.05;
/// The last part of the training, over which the learning rate falls to 0 (dictionary_learning: from 80 % on).
pub const DECAY_FRACTION: f64 = 0.2;
/// Adam's decay rates and ε (SAELens, torch).
pub const BETAS: (f64, f64) = (0.9, 0.999);
/// See [`BETAS`].
pub const EPSILON: f64 = 1e-8;
/// The norm to which larger gradients are scaled down (SAELens, dictionary_learning).
pub const MAX_GRADIENT_NORM: f64 = 1.0;
/// α, the weight of AuxK (OpenAI).
pub const AUX_WEIGHT: f64 = 1.0 / 32.0;
/// Tokens without firing after which a latent is dead (OpenAI).
pub const DEAD_WINDOW: u64 = 10_000_000;
/// … but not more than this part of the training, so that a short one revives them too.
pub const DEAD_WINDOW_FRACTION: f64 = 0.1;
/// How far the threshold's estimate moves with each batch (SAELens).
pub const THRESHOLD_RATE: f64 = 0.01;
/// … but at least so far that it looks back over no more than this part of the training: the smallest kept value falls
/// throughout, and an estimate that lags behind leaves too few latents.
pub const THRESHOLD_FRACTION: f64 = 0.05;
/// Tokens whose norm exceeds this multiple of the median are left out (dictionary_learning, SAEDashboard).
pub const MAX_NORM_MULTIPLE: f64 = 10.0;
/// Rows among which the reader shuffles.
pub const BUFFER: usize = 1 << 16;
/// Steps between rows of `metrics.parquet`.
pub const LOG_EVERY: u64 = 10;
/// Steps between checkpoints: a few minutes on two cores at the default width.
pub const CHECKPOINT_EVERY: u64 = 1000;

/// The columns of `metrics.parquet`.
const COLUMNS: [&str; 9] =
    ["step", "tokens", "loss", "aux_loss", "explained_variance", "l0", "dead", "lr", "threshold"];

/// How latents are chosen in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// The `k` largest of each token; saved as `topk`.
    TopK,
    /// The `k` times batch largest of each batch; saved as `jumprelu` with one threshold.
    #[default]
    BatchTopK,
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TopK => "topk",
            Self::BatchTopK => "batchtopk",
        })
    }
}

impl std::str::FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "topk" => Ok(Self::TopK),
            "batchtopk" => Ok(Self::BatchTopK),
            _ => Err(setting("architecture", "`topk` or `batchtopk`", name)),
        }
    }
}

/// What to train and how. The defaults are the constants of this module.
#[derive(Clone, Debug)]
pub struct TrainConfig {
    /// How latents are chosen.
    pub architecture: Architecture,
    /// Latents.
    pub d_sae: usize,
    /// Latents that fire for a token, in the mean.
    pub k: usize,
    /// Learning rate; `None` is [`LR`] · √([`LR_WIDTH`] / `d_sae`).
    pub lr: Option<f64>,
    /// Tokens in a batch.
    pub batch: usize,
    /// Tokens to train on; `None` is `epochs` times what the run has.
    pub tokens: Option<u64>,
    /// Passes over the run, if `tokens` does not say.
    pub epochs: u32,
    /// Of the first weights and of the order of tokens.
    pub seed: u64,
    /// Threads; 0 is one for every core. The result does not depend on it.
    pub threads: usize,
    /// Rows among which a run is mixed that is not shuffled.
    pub buffer: usize,
    /// Steps over which the learning rate rises; `None` is [`WARMUP_STEPS`], or [`WARMUP_FRACTION`] of a short training.
    pub warmup_steps: Option<u64>,
    /// The last part of the training, over which the learning rate falls.
    pub decay_fraction: f64,
    /// Whether activations are scaled so that their mean norm is √d_in.
    pub normalize: bool,
    /// Tokens with a larger multiple of the median norm are left out; `None` keeps all.
    pub max_norm_multiple: Option<f64>,
    /// The weight of AuxK; 0 turns it off.
    pub aux_weight: f64,
    /// Dead latents that may fire for a token in AuxK; `None` is `d_in / 2` (SAELens, sparsify).
    pub aux_k: Option<usize>,
    /// Tokens without firing after which a latent is dead; `None` is [`DEAD_WINDOW`], or [`DEAD_WINDOW_FRACTION`] of a short
    /// training.
    pub dead_window: Option<u64>,
    /// Steps between rows of `metrics.parquet`.
    pub log_every: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Whether to go on from the last checkpoint, if there is one.
    pub resume: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            architecture: Architecture::default(),
            d_sae: D_SAE,
            k: K,
            lr: None,
            batch: BATCH,
            tokens: None,
            epochs: 1,
            seed: 0,
            threads: 0,
            buffer: BUFFER,
            warmup_steps: None,
            decay_fraction: DECAY_FRACTION,
            normalize: true,
            max_norm_multiple: Some(MAX_NORM_MULTIPLE),
            aux_weight: AUX_WEIGHT,
            aux_k: None,
            dead_window: None,
            log_every: LOG_EVERY,
            checkpoint_every: CHECKPOINT_EVERY,
            resume: false,
        }
    }
}

impl TrainConfig {
    /// The learning rate that is meant.
    pub fn learning_rate(&self) -> f64 {
        self.lr.unwrap_or_else(|| LR * (LR_WIDTH / self.d_sae as f64).sqrt())
    }

    /// What is read from the shards, this many times.
    pub(crate) fn batches(&self, epochs: u32) -> BatchOptions {
        BatchOptions {
            batch_rows: self.batch,
            buffer_rows: self.buffer,
            seed: self.seed,
            epochs,
            skip_special: true,
            max_norm_multiple: self.max_norm_multiple,
        }
    }

    fn check(&self) -> Result<()> {
        if self.d_sae == 0 || self.d_sae > u32::MAX as usize {
            return Err(setting("d_sae", "between 1 and 2³²", self.d_sae));
        }
        if self.k == 0 || self.k > self.d_sae {
            return Err(setting("k", format!("between 1 and d_sae = {}", self.d_sae), self.k));
        }
        if self.batch == 0 {
            return Err(setting("batch", "at least 1", self.batch));
        }
        let lr = self.learning_rate();
        if !(lr.is_finite() && lr > 0.0) {
            return Err(setting("lr", "a positive number", lr));
        }
        if !(0.0..=1.0).contains(&self.decay_fraction) {
            return Err(setting("decay_fraction", "between 0 and 1", self.decay_fraction));
        }
        if !(self.aux_weight.is_finite() && self.aux_weight >= 0.0) {
            return Err(setting("aux_weight", "0 or more", self.aux_weight));
        }
        if self.tokens == Some(0) || (self.tokens.is_none() && self.epochs == 0) {
            return Err(setting("tokens", "at least 1", 0));
        }
        Ok(())
    }

    fn selection(&self) -> Selection {
        match self.architecture {
            Architecture::TopK => Selection::TopK { k: self.k },
            Architecture::BatchTopK => Selection::BatchTopK { k: self.k },
        }
    }
}

fn setting(name: &'static str, expected: impl Into<String>, found: impl std::fmt::Display) -> Error {
    Error::Setting { name, expected: expected.into(), found: found.to_string() }
}

/// How far training is, after every step. The caller has the clock.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainProgress {
    /// Steps done.
    pub step: u64,
    /// Steps that there will be.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Both parts of the loss of the last batches: the unexplained part of the variance, and AuxK.
    pub loss: f64,
    /// AuxK's part.
    pub aux_loss: f64,
    /// 1 − Σ‖x − x̂‖² / (Σ‖x‖² − ‖Σx‖²/n) over the last batches, in f64.
    pub explained_variance: f64,
    /// Latents that fire for a token, in the mean over the last batches.
    pub l0: f64,
    /// Latents that have not fired within the window.
    pub dead: usize,
    /// The learning rate of the last step.
    pub lr: f64,
    /// The running estimate of the smallest kept activation.
    pub threshold: f64,
    /// The norm of the last gradient, before it was limited.
    pub gradient_norm: f64,
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

/// Trains a coder on one hook point of a run, into the folder `out` (see [`Run::sae_dir`]) or a place in an object store.
///
/// `progress` is called after every step; when it breaks, a checkpoint is written, and the same call with `resume` goes on
/// exactly. `out` gets its `cfg.json` at the very end.
pub fn train(
    run: &Run,
    hook: HookPoint,
    config: &TrainConfig,
    out: impl Into<Place>,
    progress: &mut dyn FnMut(&TrainProgress) -> ControlFlow<()>,
) -> Result<TrainSummary> {
    config.check()?;
    let place = out.into();
    let out = place.bring(|_| true)?;
    if out.join(sae_lens::CONFIG_FILE).exists() {
        return Err(Error::CoderExists { path: out.into() });
    }
    let mut training = match checkpoint::latest(out)? {
        Some(_) if !config.resume => return Err(Error::TrainingBegun { path: out.into() }),
        Some(path) => {
            checkpoint::prune(out)?;
            Training::resume(run, hook, config, &path)?
        }
        None => Training::begin(run, hook, config)?,
    };
    let mut log = training.open_log(out)?;
    let (mut last, mut complete) = (None, true);
    while training.session.step < training.session.steps() {
        let Some(at) = training.advance()? else { break };
        let more = at.step < at.steps;
        if at.step % config.log_every.max(1) == 0 || !more {
            log.push(&at.columns())?;
        }
        complete = progress(&at).is_continue() || !more;
        let checkpoint = more && (!complete || at.step % config.checkpoint_every.max(1) == 0);
        last = Some(at);
        if checkpoint {
            // A log that is ahead of its checkpoint is cut when the training goes on; one that is behind has a hole.
            files::create_dir(out)?;
            log.write(&out.join(METRICS_FILE))?;
            training.checkpoint(out)?;
            place.publish("", &VOUCHERS)?;
        }
        if !complete {
            break;
        }
    }
    let (scale, not_finite) = (training.session.scale, training.not_finite);
    if complete {
        if training.session.step == 0 {
            return Err(Error::NoActivations { hook: hook.to_string() });
        }
        files::create_dir(out)?;
        log.write(&out.join(METRICS_FILE))?;
        let metadata = training.metadata(run, hook, config);
        training.session.into_sae(metadata).save(out)?;
        place.publish("", &VOUCHERS)?;
    }
    Ok(TrainSummary { complete, last, scale, not_finite })
}

/// What vouches for the other files of a coder, and goes last into a store.
const VOUCHERS: [&str; 2] = [sums::FILE, sae_lens::CONFIG_FILE];

/// The metrics' file name.
pub(crate) const METRICS_FILE: &str = "metrics.parquet";

/// A session with what it reads from.
struct Training {
    session: Session,
    reader: BatchReader,
    settings: Map<String, Value>,
    not_finite: u64,
    width: usize,
}

impl Training {
    fn begin(run: &Run, hook: HookPoint, config: &TrainConfig) -> Result<Self> {
        let width = run.hook_point(hook)?.width;
        let none = || Error::NoActivations { hook: hook.to_string() };
        let sample = BatchReader::new(run, &[hook], config.batches(1))?;
        let sample = sample.map(|batch| Ok(batch?.acts.swap_remove(0)));
        let estimate = init::estimate(sample, width, config.normalize)?.ok_or_else(none)?;
        let reader = BatchReader::new(run, &[hook], config.batches(u32::MAX))?;
        let plan = Plan::new(width, tokens(run, hook, config)?, config);
        let settings = settings(hook, &plan, config);
        let session = Session::from_estimate(&estimate, plan, config)?;
        Ok(Self { session, reader, settings, not_finite: 0, width })
    }

    fn resume(run: &Run, hook: HookPoint, config: &TrainConfig, path: &Path) -> Result<Self> {
        let width = run.hook_point(hook)?.width;
        let plan = Plan::new(width, tokens(run, hook, config)?, config);
        let settings = settings(hook, &plan, config);
        let (state, weights, adam) = checkpoint::load(path, &settings, [width, config.d_sae])?;
        let reader = BatchReader::resume(run, &[hook], config.batches(u32::MAX), state.cursor.clone())?;
        let session = Session::from_state(&state, weights, adam, plan, config)?;
        Ok(Self { session, reader, settings, not_finite: state.not_finite, width })
    }

    /// One step; `None` when there is nothing more to read.
    fn advance(&mut self) -> Result<Option<TrainProgress>> {
        loop {
            let Some(batch) = self.reader.next() else { return Ok(None) };
            let mut batch = batch?;
            let rows = &mut batch.acts[0];
            let before = rows.len();
            keep_finite(rows, self.width);
            self.not_finite += ((before - rows.len()) / self.width) as u64;
            if !rows.is_empty() {
                let progress = self.session.step(rows)?;
                self.reader.recycle(batch);
                return Ok(Some(progress));
            }
        }
    }

    /// The metrics up to where the training stands.
    fn open_log(&self, out: &Path) -> Result<Metrics> {
        let path = out.join(METRICS_FILE);
        if self.session.step == 0 || !path.is_file() {
            return Ok(Metrics::new(&COLUMNS));
        }
        let mut log = Metrics::read(&path)?;
        let steps = log.column("step").unwrap_or_default();
        let kept = steps.iter().take_while(|&&step| step <= self.session.step as f64).count();
        log.truncate(kept);
        Ok(log)
    }

    fn checkpoint(&self, out: &Path) -> Result<()> {
        let session = &self.session;
        let state = State {
            version: State::VERSION,
            settings: self.settings.clone(),
            step: session.step,
            tokens: session.tokens,
            not_finite: self.not_finite,
            cursor: self.reader.cursor().clone(),
            scale: session.scale,
            threshold: session.threshold,
            window: session.window.clone(),
            silent: session.silent.clone(),
        };
        checkpoint::save(out, &state, &session.weights, &session.adam)
    }

    /// What SAELens and we write down about the making of a coder.
    fn metadata(&self, run: &Run, hook: HookPoint, config: &TrainConfig) -> Map<String, Value> {
        let manifest = run.manifest();
        let excluded = self.reader.excluded();
        let mut settings = self.settings.clone();
        for (name, value) in [
            ("norm_convention", json!("expected_average_only_in")),
            ("norm_scale", json!(self.session.scale)),
            ("tokens", json!(self.session.tokens)),
            ("not_finite", json!(self.not_finite)),
            ("excluded", json!({"special": excluded.special, "outliers": excluded.outliers})),
        ] {
            settings.insert(name.into(), value);
        }
        object(json!({
            "sae_lens_version": sae_lens::LAYOUT_VERSION,
            "sae_lens_training_version": null,
            "model_name": manifest.model.id,
            "hook_name": hook.to_string(),
            "hook_head_index": null,
            "model_from_pretrained_kwargs": {},
            "prepend_bos": true,
            "exclude_special_tokens": true,
            "dataset_path": manifest.corpus.sources.first(),
            "training_architecture": config.architecture,
            "training_architecture_details": {
                "k": config.k,
                "aux_loss_coefficient": config.aux_weight,
                "topk_threshold_lr": self.settings["threshold_rate"],
                "rescale_acts_by_decoder_norm": false,
                "decoder_init_norm": 1.0,
            },
            "polariscope": settings,
        }))
    }
}

/// The settings that decide the result.
fn settings(hook: HookPoint, plan: &Plan, config: &TrainConfig) -> Map<String, Value> {
    let mut settings = plan.settings(config);
    settings.insert("hook_point".into(), json!(hook.to_string()));
    settings.insert("buffer".into(), json!(config.buffer));
    settings.insert("max_norm_multiple".into(), json!(config.max_norm_multiple));
    settings
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
        ]
    }
}

/// Removes rows with a value that is not finite.
fn keep_finite(rows: &mut Vec<f32>, width: usize) {
    // 0 times anything finite is 0, and times anything else NaN.
    let finite = |row: &[f32]| row.iter().map(|x| x * 0.0).sum::<f32>() == 0.0;
    if rows.chunks_exact(width).all(finite) {
        return;
    }
    let kept: Vec<f32> = rows.chunks_exact(width).filter(|row| finite(row)).flatten().copied().collect();
    *rows = kept;
}

#[cfg(test)]
mod tests;
