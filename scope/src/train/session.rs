//! What is a training between two steps, whoever brings the rows?

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::{
    Architecture, BETAS, DEAD_WINDOW, DEAD_WINDOW_FRACTION, EPSILON, MAX_GRADIENT_NORM, THRESHOLD_FRACTION,
    THRESHOLD_RATE, TrainConfig, TrainProgress, WARMUP_FRACTION, WARMUP_STEPS, object,
};
use crate::{
    activation::Activation,
    batch_topk::RunningThreshold,
    checkpoint::State,
    error::{Error, Result},
    init::{self, Estimate},
    loss::AuxK,
    optimizer::{Adam, AdamSettings, Schedule},
    sae::Sae,
    step::{Input, Outcome, Selector, Step, Weights},
    workers::Workers,
};

/// Batches over which [`TrainProgress::explained_variance`] and its neighbours are taken.
const WINDOW: usize = 16;

/// What follows from the settings, the width and the length of a training.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    width: usize,
    schedule: Schedule,
    dead_window: u64,
    aux_k: usize,
    threshold_rate: f64,
}

impl Plan {
    /// For `tokens` rows of `width` values.
    pub(super) fn new(width: usize, tokens: u64, config: &TrainConfig) -> Self {
        let steps = tokens.div_ceil(config.batch as u64);
        let part = |fraction: f64, of: u64| (fraction * of as f64) as u64;
        let dead_window = part(DEAD_WINDOW_FRACTION, tokens).min(DEAD_WINDOW).max(config.batch as u64);
        let warmup_steps = part(WARMUP_FRACTION, steps).min(WARMUP_STEPS);
        Self {
            width,
            schedule: Schedule {
                lr: config.learning_rate(),
                warmup_steps: config.warmup_steps.unwrap_or(warmup_steps),
                decay_steps: part(config.decay_fraction, steps),
                steps,
            },
            dead_window: config.dead_window.unwrap_or(dead_window),
            aux_k: config.aux_k.unwrap_or(width / 2),
            threshold_rate: (1.0 / (THRESHOLD_FRACTION * steps as f64)).clamp(THRESHOLD_RATE, 1.0),
        }
    }

    /// The settings that decide the result, with the defaults filled in.
    pub(super) fn settings(&self, config: &TrainConfig) -> Map<String, Value> {
        object(json!({
            "architecture": config.architecture,
            "d_in": self.width,
            "d_sae": config.d_sae,
            "k": config.k,
            "lr": self.schedule.lr,
            "batch": config.batch,
            "steps": self.schedule.steps,
            "warmup_steps": self.schedule.warmup_steps,
            "decay_steps": self.schedule.decay_steps,
            "seed": config.seed,
            "normalize": config.normalize,
            "aux_weight": config.aux_weight,
            "aux_k": self.aux_k,
            "dead_window": self.dead_window,
            "threshold_rate": self.threshold_rate,
        }))
    }
}

/// A training that is given its rows batch by batch: what [`super::train`] runs on the shards of a run.
pub struct Session {
    workers: Workers,
    pub(super) weights: Weights,
    pub(super) adam: Adam,
    work: Step,
    selector: Selector,
    plan: Plan,
    pub(super) threshold: RunningThreshold,
    /// For each latent, rows since it last fired.
    pub(super) silent: Vec<u64>,
    pub(super) window: VecDeque<Outcome>,
    pub(super) scale: f32,
    pub(super) step: u64,
    pub(super) tokens: u64,
    aux_weight: f64,
    architecture: Architecture,
    k: usize,
}

impl Session {
    /// Begins a training of `tokens` rows of `width` values. The scale and the first `b_dec` come from `sample`, some rows
    /// (`[n, width]`) like those that will come.
    pub fn new(width: usize, tokens: u64, sample: &[f32], config: &TrainConfig) -> Result<Self> {
        config.check()?;
        let none = || Error::NoActivations { hook: "the sample".into() };
        let estimate = init::estimate(std::iter::once(Ok(sample.to_vec())), width, config.normalize)?;
        Self::from_estimate(&estimate.ok_or_else(none)?, Plan::new(width, tokens, config), config)
    }

    pub(super) fn from_estimate(estimate: &Estimate, plan: Plan, config: &TrainConfig) -> Result<Self> {
        let workers = Workers::new(config.threads)?;
        let weights = init::weights(estimate, config.d_sae, config.k, config.seed, &workers);
        let adam = Adam::new(weights.d_in(), config.d_sae);
        Ok(Self::with(workers, weights, adam, estimate.scale, plan, config))
    }

    pub(super) fn from_state(
        state: &State,
        weights: Weights,
        adam: Adam,
        plan: Plan,
        config: &TrainConfig,
    ) -> Result<Self> {
        let workers = Workers::new(config.threads)?;
        let mut session = Self::with(workers, weights, adam, state.scale, plan, config);
        session.step = state.step;
        session.tokens = state.tokens;
        session.threshold = state.threshold;
        session.window.clone_from(&state.window);
        session.silent.clone_from(&state.silent);
        Ok(session)
    }

    fn with(workers: Workers, weights: Weights, adam: Adam, scale: f32, plan: Plan, config: &TrainConfig) -> Self {
        Self {
            work: Step::new(weights.d_in(), weights.d_sae(), &workers),
            workers,
            adam,
            selector: Selector::new(config.selection()),
            plan,
            threshold: RunningThreshold::default(),
            silent: vec![0; weights.d_sae()],
            weights,
            window: VecDeque::with_capacity(WINDOW),
            scale,
            step: 0,
            tokens: 0,
            aux_weight: config.aux_weight,
            architecture: config.architecture,
            k: config.k,
        }
    }

    /// Steps that there will be.
    pub fn steps(&self) -> u64 {
        self.plan.schedule.steps
    }

    /// One step on `rows` (`[n, width]`, all finite).
    pub fn step(&mut self, rows: &[f32]) -> Result<TrainProgress> {
        let dead: Vec<u32> = (0_u32..)
            .zip(&self.silent)
            .filter(|&(_, &silent)| silent >= self.plan.dead_window)
            .map(|(latent, _)| latent)
            .collect();
        let aux = (self.aux_weight > 0.0).then_some(AuxK { dead: &dead, k: self.plan.aux_k, weight: self.aux_weight });
        let lr = self.plan.schedule.lr(self.step);
        let input = Input { rows, scale: self.scale, aux };
        let outcome = self.work.run(&self.workers, &self.weights, &mut self.selector, input);
        if !(outcome.loss.is_finite() && outcome.gradient_norm.is_finite()) {
            return Err(Error::Diverged { step: self.step + 1, lr });
        }
        let adam =
            AdamSettings { beta1: BETAS.0, beta2: BETAS.1, epsilon: EPSILON, max_gradient_norm: MAX_GRADIENT_NORM };
        self.adam.step(&self.workers, &mut self.weights, &self.work, outcome.gradient_norm, lr, adam);
        self.threshold.update(outcome.smallest, self.plan.threshold_rate);
        for (silent, &fired) in self.silent.iter_mut().zip(self.work.fired().0) {
            *silent = if fired > 0 { 0 } else { *silent + outcome.n_rows as u64 };
        }
        self.step += 1;
        self.tokens += outcome.n_rows as u64;
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(outcome);
        Ok(self.progress(lr))
    }

    fn progress(&self, lr: f64) -> TrainProgress {
        let total = |value: fn(&Outcome) -> f64| self.window.iter().map(value).sum::<f64>();
        let n = total(|outcome| outcome.n_rows as f64);
        let mut sum = vec![0.0; self.weights.d_in()];
        for outcome in &self.window {
            for (sum, part) in sum.iter_mut().zip(&outcome.sum) {
                *sum += part;
            }
        }
        let mean_square: f64 = sum.iter().map(|sum| sum * sum).sum::<f64>() / n;
        let variance = total(|outcome| outcome.sum_square) - mean_square;
        let batches = self.window.len() as f64;
        let aux_loss = total(|outcome| outcome.aux_loss) / batches;
        TrainProgress {
            step: self.step,
            steps: self.plan.schedule.steps,
            tokens: self.tokens,
            loss: total(|outcome| outcome.loss) / batches + aux_loss,
            aux_loss,
            explained_variance: 1.0 - total(|outcome| outcome.sum_square_error) / variance,
            l0: total(|outcome| outcome.n_kept as f64) / n,
            dead: self.silent.iter().filter(|&&silent| silent >= self.plan.dead_window).count(),
            lr,
            threshold: self.threshold.get(),
            gradient_norm: self.window.back().map_or(0.0, |outcome| outcome.gradient_norm),
        }
    }

    /// The coder as it stands, for activations that are not scaled: the scale is folded into its weights.
    pub fn into_sae(self, metadata: Map<String, Value>) -> Sae {
        let activation = match self.architecture {
            Architecture::TopK => Activation::TopK { k: self.k },
            Architecture::BatchTopK => {
                Activation::JumpRelu { threshold: vec![self.threshold.get() as f32; self.silent.len()] }
            }
        };
        let mut sae = Sae {
            w_enc: self.weights.encoder.transposed(),
            w_dec: self.weights.decoder,
            b_enc: self.weights.b_enc,
            b_dec: self.weights.b_dec,
            activation,
            apply_b_dec_to_input: true,
            metadata,
            ..Sae::default()
        };
        sae.fold_input_scale(self.scale);
        sae
    }
}
