//! What is a training between two steps, whoever brings the rows?

use std::{collections::VecDeque, ops::Range};

use data::HookPoint;

use serde_json::{Map, Value, json};

use super::{
    Architecture, TrainConfig, TrainProgress, Wiring,
    config::{
        BETAS, DEAD_WINDOW, DEAD_WINDOW_FRACTION, EPSILON, JUMP_RELU_BETA1, MAX_GRADIENT_NORM,
        SPARSITY_WARMUP_FRACTION, SPARSITY_WARMUP_STEPS, SparsityLoss, THRESHOLD_FRACTION, THRESHOLD_RATE,
        WARMUP_FRACTION, WARMUP_STEPS,
    },
    notice::Notice,
    object,
};
use crate::{
    activation::Activation,
    batch_topk::RunningThreshold,
    checkpoint::State,
    crosscoder::{Crosscoder, LatentGroup, Site},
    error::{Error, Result},
    gated::{B_MAG, R_MAG},
    init::{self, Estimate, Sample},
    jump_relu::THRESHOLD,
    layout::Layout,
    loss::AuxK,
    optimizer::{Adam, AdamSettings, Schedule},
    rule::{Objective, Rule},
    sae::Sae,
    sites::Sites,
    step::{Input, Outcome, Step, Weights},
    workers::Workers,
};

/// Batches over which [`TrainProgress::explained_variance`] and its neighbours are taken.
const WINDOW: usize = 16;

/// What follows from the settings, the widths and the length of a training.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) layout: Layout,
    objective: Objective,
    per_group: bool,
    levels: Vec<usize>,
    schedule: Schedule,
    sparsity: f64,
    sparsity_warmup_steps: u64,
    dead_window: u64,
    aux_k: usize,
    threshold_rate: f64,
    beta1: f64,
}

impl Plan {
    /// For `tokens` rows of sites of these widths: those that are read, and those that are written.
    pub(super) fn new(wiring: &Wiring, [inputs, outputs]: [&[usize]; 2], tokens: u64, config: &TrainConfig) -> Self {
        let layout = wiring.layout([inputs, outputs], config.d_sae);
        let steps = tokens.div_ceil(config.batch as u64);
        let part = |fraction: f64, of: u64| (fraction * of as f64) as u64;
        let dead_window = part(DEAD_WINDOW_FRACTION, tokens).min(DEAD_WINDOW).max(config.batch as u64);
        let warmup_steps = part(WARMUP_FRACTION, steps).min(WARMUP_STEPS);
        let has_thresholds = config.architecture.has_thresholds();
        let sparsity_warmup = if has_thresholds && config.sparsity_loss == SparsityLoss::Tanh {
            steps
        } else {
            part(SPARSITY_WARMUP_FRACTION, steps).min(SPARSITY_WARMUP_STEPS)
        };
        Self {
            objective: config.objective(layout.groups[0].reads.len()),
            per_group: config.per_group,
            levels: config.levels(),
            schedule: Schedule {
                lr: config.learning_rate(),
                warmup_steps: config.warmup_steps.unwrap_or(warmup_steps),
                decay_steps: part(config.decay_fraction, steps),
                steps,
            },
            sparsity: config.coefficient(),
            sparsity_warmup_steps: config.sparsity_warmup_steps.unwrap_or(sparsity_warmup),
            dead_window: config.dead_window.unwrap_or(dead_window),
            aux_k: config.aux_k.unwrap_or(layout.d_out() / 2),
            threshold_rate: (1.0 / (THRESHOLD_FRACTION * steps as f64)).clamp(THRESHOLD_RATE, 1.0),
            beta1: if has_thresholds { JUMP_RELU_BETA1 } else { BETAS.0 },
            layout,
        }
    }

    /// The settings that decide the result, with the defaults filled in. What an architecture does not have is left out.
    pub(super) fn settings(&self, config: &TrainConfig) -> Map<String, Value> {
        let mut settings = object(json!({
            "architecture": config.architecture,
            "d_in": self.layout.d_in(),
            "d_sae": config.d_sae,
            "k": config.k,
            "lr": self.schedule.lr,
            "beta1": self.beta1,
            "batch": config.batch,
            "steps": self.schedule.steps,
            "warmup_steps": self.schedule.warmup_steps,
            "decay_steps": self.schedule.decay_steps,
            "seed": config.seed,
            "normalize": config.normalize,
            "aux_weight": config.aux(),
            "aux_k": self.aux_k,
            "dead_window": self.dead_window,
            "threshold_rate": self.threshold_rate,
        }));
        if !self.layout.is_autoencoder {
            settings.insert("d_out".into(), json!(self.layout.d_out()));
            settings.insert("skip".into(), json!(!self.layout.skips.is_empty()));
        }
        if config.bf16 {
            settings.insert("bf16".into(), json!(true));
        }
        if self.per_group {
            settings.insert("per_group".into(), json!(true));
        }
        if self.sparsity > 0.0 {
            settings.insert("sparsity".into(), json!(self.sparsity));
            settings.insert("sparsity_warmup_steps".into(), json!(self.sparsity_warmup_steps));
        }
        if !self.levels.is_empty() {
            settings.insert("level_widths".into(), json!(self.levels));
        }
        if let Objective::JumpRelu { bandwidth, pre_act, .. } = self.objective {
            settings.insert("sparsity_loss".into(), json!(config.sparsity_loss));
            settings.insert("bandwidth".into(), json!(bandwidth));
            settings.insert("pre_act_weight".into(), json!(pre_act));
            settings.insert("frequency_weight".into(), json!(config.frequency_weight));
        }
        settings
    }

    /// How many numbers the architecture learns of each latent beside weights and bias.
    pub(super) fn own(&self) -> usize {
        self.rule().own()
    }

    fn rule(&self) -> Box<dyn Rule> {
        self.objective.rule(&self.layout, self.per_group)
    }

    /// λ of a step, counted from 0.
    fn sparsity(&self, step: u64) -> f64 {
        self.sparsity * ((step + 1) as f64 / (self.sparsity_warmup_steps + 1) as f64).min(1.0)
    }
}

/// A training that is given its rows batch by batch: what [`super::train`] runs on the shards of a run.
pub struct Session {
    workers: Workers,
    pub(super) weights: Weights,
    pub(super) adam: Adam,
    work: Step,
    rule: Box<dyn Rule>,
    plan: Plan,
    /// Of all latents, or of each group.
    pub(super) thresholds: Vec<RunningThreshold>,
    /// For each latent, rows since it last fired.
    pub(super) silent: Vec<u64>,
    pub(super) window: VecDeque<Outcome>,
    /// What each site that is read is multiplied with, and each that is written.
    pub(super) scales: [Vec<f32>; 2],
    pub(super) step: u64,
    pub(super) tokens: u64,
    aux_weight: f64,
    architecture: Architecture,
    k: usize,
    log_every: u64,
}

impl Session {
    /// Begins a training of an autoencoder on `tokens` rows of `width` values. The scale and the first `b_dec` come from
    /// `sample`, some rows (`[n, width]`) like those that will come.
    pub fn new(width: usize, tokens: u64, sample: &[f32], config: &TrainConfig) -> Result<Self> {
        config.check()?;
        let none = || Error::NoActivations { hook: "the sample".into() };
        let estimates = init::estimate(std::iter::once(Ok(vec![sample.to_vec()])), &[width], config.normalize)?;
        let hook = "blocks.0.hook_resid_post".parse().map_err(Error::Data)?;
        let plan = Plan::new(&Wiring::Autoencoder(hook), [&[width]; 2], tokens, config);
        let estimates = estimates.ok_or_else(none)?;
        Self::begin(&[&estimates[0]], &[&estimates[0]], plan, config)
    }

    pub(super) fn begin(inputs: &[&Estimate], outputs: &[&Estimate], plan: Plan, config: &TrainConfig) -> Result<Self> {
        let workers = Workers::new(config.threads)?;
        let own = plan.own();
        let sample = Sample { inputs, outputs };
        let (weights, start) = init::weights(&plan.layout, own, sample, config.k, config.seed, &workers);
        let adam = Adam::new(&plan.layout, own);
        let scales = [inputs, outputs].map(|sites| sites.iter().map(|site| site.scale).collect());
        let mut session = Self::with(workers, weights, adam, scales, plan, config);
        for group in &mut session.weights.groups {
            session.rule.start(group, start);
        }
        Ok(session)
    }

    pub(super) fn resume(
        state: &State,
        weights: Weights,
        adam: Adam,
        plan: Plan,
        config: &TrainConfig,
    ) -> Result<Self> {
        let workers = Workers::new(config.threads)?;
        let mut session = Self::with(workers, weights, adam, state.scales.clone(), plan, config);
        session.step = state.step;
        session.tokens = state.tokens;
        session.thresholds.clone_from(&state.thresholds);
        session.window.clone_from(&state.window);
        session.silent.clone_from(&state.silent);
        Ok(session)
    }

    fn with(
        workers: Workers,
        weights: Weights,
        adam: Adam,
        scales: [Vec<f32>; 2],
        plan: Plan,
        config: &TrainConfig,
    ) -> Self {
        let rule = plan.rule();
        let n_thresholds = if plan.per_group { plan.layout.groups.len() } else { 1 };
        Self {
            work: Step::new(&plan.layout, rule.own(), config.bf16, &workers),
            workers,
            adam,
            rule,
            thresholds: vec![RunningThreshold::default(); n_thresholds],
            silent: vec![0; plan.layout.d_sae()],
            plan,
            weights,
            window: VecDeque::with_capacity(WINDOW),
            scales,
            step: 0,
            tokens: 0,
            aux_weight: config.aux(),
            architecture: config.architecture,
            k: config.k,
            log_every: config.log_every.max(1),
        }
    }

    pub(super) fn log_every(&self) -> u64 {
        self.log_every
    }

    /// Steps that there will be.
    pub fn steps(&self) -> u64 {
        self.plan.schedule.steps
    }

    /// One step of an autoencoder on `rows` (`[n, width]`, all finite).
    pub fn step(&mut self, rows: &[f32]) -> Result<TrainProgress> {
        self.step_between(rows, rows)
    }

    /// One step on rows that are read (`[n, d_in]`) and rows that are to be written (`[n, d_out]`), all finite.
    pub fn step_between(&mut self, x: &[f32], y: &[f32]) -> Result<TrainProgress> {
        let dead: Vec<u32> = (0_u32..)
            .zip(&self.silent)
            .filter(|&(_, &silent)| silent >= self.plan.dead_window)
            .map(|(latent, _)| latent)
            .collect();
        let aux = (self.aux_weight > 0.0).then_some(AuxK { k: self.plan.aux_k, weight: self.aux_weight });
        let lr = self.plan.schedule.lr(self.step);
        let input = Input {
            x,
            y,
            scales: [&self.scales[0], &self.scales[1]],
            levels: &self.plan.levels,
            sparsity: self.plan.sparsity(self.step),
            dead: &dead,
            aux,
        };
        let outcome = self.work.run(&self.workers, &self.weights, self.rule.as_mut(), input);
        if !(outcome.loss.is_finite() && outcome.gradient_norm.is_finite()) {
            return Err(Error::Diverged { step: self.step + 1, lr });
        }
        let adam = AdamSettings {
            beta1: self.plan.beta1,
            beta2: BETAS.1,
            epsilon: EPSILON,
            max_gradient_norm: MAX_GRADIENT_NORM,
        };
        let rates = [lr, self.rule.own_rate(&self.plan.layout)];
        self.adam.step(&self.workers, &mut self.weights, &self.work, outcome.gradient_norm, rates, adam);
        self.rule.project(&mut self.weights);
        if let [threshold] = &mut self.thresholds[..] {
            let smallest = outcome.smallest.iter().flatten().copied().min_by(f32::total_cmp);
            threshold.update(smallest, self.plan.threshold_rate);
        } else {
            for (threshold, &smallest) in self.thresholds.iter_mut().zip(&outcome.smallest) {
                threshold.update(smallest, self.plan.threshold_rate);
            }
        }
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
        let mut sum = vec![0.0; self.plan.layout.d_out()];
        for outcome in &self.window {
            for (sum, part) in sum.iter_mut().zip(&outcome.sum) {
                *sum += part;
            }
        }
        let mean_square: f64 = sum.iter().map(|sum| sum * sum).sum::<f64>() / n;
        let variance = total(|outcome| outcome.sum_square.iter().sum()) - mean_square;
        let batches = self.window.len() as f64;
        let aux_loss = total(|outcome| outcome.aux_loss) / batches;
        let sparsity_loss = total(|outcome| outcome.sparsity_loss) / batches;
        let mut progress = TrainProgress {
            step: self.step,
            steps: self.plan.schedule.steps,
            tokens: self.tokens,
            loss: total(|outcome| outcome.loss) / batches + aux_loss + sparsity_loss,
            aux_loss,
            sparsity_loss,
            explained_variance: 1.0 - total(|outcome| outcome.sum_square_error.iter().sum()) / variance,
            l0: total(|outcome| outcome.n_kept as f64) / n,
            dead: self.silent.iter().filter(|&&silent| silent >= self.plan.dead_window).count(),
            lr,
            threshold: self.threshold(),
            gradient_norm: self.window.back().map_or(0.0, |outcome| outcome.gradient_norm),
            notices: Vec::new(),
        };
        let rows = self.window.back().map_or(0, |outcome| outcome.n_rows);
        let wanted = match self.plan.objective {
            Objective::JumpRelu { price: crate::jump_relu::Price::Target { l0 }, .. } => {
                Some(if self.plan.per_group { l0 * self.plan.layout.groups.len() as f64 } else { l0 })
            }
            _ => None,
        };
        progress.notices = Notice::of(&progress, self.work.fired().0, rows, wanted);
        progress
    }

    /// Of thresholds that learn, the mean; otherwise the running estimate of the smallest activation.
    fn threshold(&self) -> f64 {
        if !self.architecture.has_thresholds() {
            return self.thresholds.iter().map(|threshold| threshold.get()).sum::<f64>() / self.thresholds.len() as f64;
        }
        let all = self.weights.groups.iter().flat_map(|group| &group.own[THRESHOLD]);
        all.map(|&threshold| f64::from(threshold)).sum::<f64>() / self.weights.d_sae() as f64
    }

    /// The coder as it stands, for activations that are not scaled: scales are folded into its weights.
    ///
    /// # Panics
    /// If it is one between several sites, which [`super::train`] writes.
    pub fn into_sae(mut self, metadata: Map<String, Value>) -> Sae {
        assert_eq!(self.weights.groups.len(), 1, "an autoencoder or a transcoder");
        let activation = self.activation();
        let group = self.weights.groups.swap_remove(0);
        let mut sae = Sae {
            w_enc: group.encoder.transposed(),
            w_dec: group.decoder,
            b_enc: group.b_enc,
            b_dec: self.weights.b_dec,
            w_skip: self.weights.skips.pop(),
            activation,
            apply_b_dec_to_input: self.plan.layout.is_autoencoder,
            transcoder: !self.plan.layout.is_autoencoder,
            metadata,
            ..Sae::default()
        };
        sae.fold_scales(self.scales[0][0], self.scales[1][0]);
        sae
    }

    /// The same of a coder between several sites, whose hook points these are.
    pub(super) fn into_crosscoder(mut self, sites: &Sites, metadata: Map<String, Value>) -> Crosscoder {
        let activation = self.activation();
        let layout = &self.plan.layout;
        let site = |(hook, columns): (&HookPoint, &Range<usize>)| Site {
            hook_name: Some(hook.to_string()),
            width: columns.len(),
        };
        // The sites that columns belong to.
        let among = |all: &[Range<usize>], columns: &Range<usize>| {
            all.partition_point(|site| site.start < columns.start)..all.partition_point(|site| site.end <= columns.end)
        };
        let mut coder = Crosscoder {
            inputs: sites.inputs.iter().zip(&layout.inputs).map(site).collect(),
            outputs: sites.outputs.iter().zip(&layout.outputs).map(site).collect(),
            b_enc: self.weights.groups.iter().flat_map(|group| &group.b_enc).copied().collect(),
            b_dec: self.weights.b_dec,
            w_skip: self.weights.skips,
            activation,
            per_group: self.plan.per_group,
            metadata,
            groups: Vec::new(),
        };
        for group in self.weights.groups {
            coder.groups.push(LatentGroup {
                w_enc: group.encoder.transposed(),
                reads: among(&layout.inputs, &group.layout.reads),
                writes: among(&layout.outputs, &group.layout.writes),
                w_dec: group.decoder,
            });
        }
        coder.fold_scales(&self.scales[0], &self.scales[1]);
        coder
    }

    /// Which latents fire once it is trained.
    fn activation(&mut self) -> Activation {
        let groups = &mut self.weights.groups;
        let mut own =
            |which: usize| groups.iter_mut().flat_map(|group| std::mem::take(&mut group.own[which])).collect();
        match self.architecture {
            Architecture::Standard => Activation::Relu,
            Architecture::Gated => Activation::Gated { b_mag: own(B_MAG), r_mag: own(R_MAG) },
            Architecture::TopK => Activation::TopK { k: self.k },
            Architecture::BatchTopK | Architecture::MatryoshkaBatchTopK => {
                let of_group = |at: usize| self.thresholds[at.min(self.thresholds.len() - 1)].get() as f32;
                let groups = self.plan.layout.groups.iter().enumerate();
                let threshold = groups.flat_map(|(at, group)| std::iter::repeat_n(of_group(at), group.latents.len()));
                Activation::JumpRelu { threshold: threshold.collect() }
            }
            Architecture::JumpRelu | Architecture::MatryoshkaJumpRelu => {
                Activation::JumpRelu { threshold: own(THRESHOLD) }
            }
        }
    }
}
