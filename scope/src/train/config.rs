//! What is trained, and how? Every default is a constant with its source.

use data::{BatchOptions, HookPoint};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    jump_relu::Price,
    layout::Layout,
    rule::Objective,
    sites::Sites,
};

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

/// λ of `standard` coders; with this one and the next three, some 30 latents fire for a token at the residual stream of the
/// 270M (1,024 latents, a few hundred steps).
pub const L1_COEFFICIENT: f64 = 0.1;
/// λ of `gated` coders.
pub const GATED_COEFFICIENT: f64 = 0.15;
/// λ of a JumpReLU that is driven to a number of latents. (Gemma Scope 2 does not publish its own; with 0.002 a training of a
/// few hundred steps ends above it, with 0.2 it explains no more.)
pub const TARGET_COEFFICIENT: f64 = 0.05;
/// λ of a JumpReLU that pays for every latent.
pub const COUNT_COEFFICIENT: f64 = 2e-3;
/// λ of a JumpReLU that pays by tanh, and c (the latter Anthropic's of January 2025).
pub const TANH_COEFFICIENT: f64 = 5e-4;
/// See [`TANH_COEFFICIENT`].
pub const TANH_SCALE: f64 = 4.0;
/// ε of JumpReLU, for inputs with a mean square of 1; ours have d_in times that, and pre-activations √d_in times (Gemma Scope).
pub const BANDWIDTH: f64 = 1e-3;
/// ε with tanh, in our units (SAELens's preset after Anthropic's).
pub const TANH_BANDWIDTH: f64 = 2.0;
/// λ_p of dead latents with tanh (Anthropic).
pub const PRE_ACT_WEIGHT: f64 = 3e-6;
/// The share of tokens from which firing more often costs twice as much, in the frequency penalty (OpenMOSS).
pub const FREQUENCY_SCALE: f64 = 0.01;
/// The part of the training over which λ rises to its value …
pub const SPARSITY_WARMUP_FRACTION: f64 = 0.2;
/// … and the most steps that it takes (Gemma Scope 2's 50,000); with tanh, all of them (Anthropic).
pub const SPARSITY_WARMUP_STEPS: u64 = 50_000;
/// Ends of the levels of a Matryoshka coder, as parts of its width (dictionary_learning's demo).
pub const LEVELS: [f64; 5] = [1.0 / 32.0, 3.0 / 32.0, 7.0 / 32.0, 15.0 / 32.0, 1.0];
/// Adam's first decay rate for JumpReLU (Gemma Scope): gradients of thresholds are rare, and what they say is soon outdated.
pub const JUMP_RELU_BETA1: f64 = 0.0;

/// How latents are chosen in training, by SAELens's names. What is not there has a name made in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// All positive ones, at a price for their size; saved as `standard`.
    Standard,
    /// Those whose gate is open; saved as `gated`.
    Gated,
    /// The `k` largest of each token; saved as `topk`.
    TopK,
    /// The `k` times batch largest of each batch; saved as `jumprelu` with one threshold.
    #[default]
    BatchTopK,
    /// Those above a threshold of their own; saved as `jumprelu`.
    JumpRelu,
    /// As `batchtopk`, cut into levels that reconstruct alone too.
    #[serde(rename = "matryoshka_batchtopk")]
    MatryoshkaBatchTopK,
    /// As `jumprelu`, cut into levels.
    #[serde(rename = "matryoshka_jumprelu")]
    MatryoshkaJumpRelu,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Standard,
        Self::Gated,
        Self::TopK,
        Self::BatchTopK,
        Self::JumpRelu,
        Self::MatryoshkaBatchTopK,
        Self::MatryoshkaJumpRelu,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Gated => "gated",
            Self::TopK => "topk",
            Self::BatchTopK => "batchtopk",
            Self::JumpRelu => "jumprelu",
            Self::MatryoshkaBatchTopK => "matryoshka_batchtopk",
            Self::MatryoshkaJumpRelu => "matryoshka_jumprelu",
        }
    }

    /// Whether it is cut into levels.
    pub fn has_levels(self) -> bool {
        matches!(self, Self::MatryoshkaBatchTopK | Self::MatryoshkaJumpRelu)
    }

    /// Whether its latents have thresholds that learn.
    pub fn has_thresholds(self) -> bool {
        matches!(self, Self::JumpRelu | Self::MatryoshkaJumpRelu)
    }

    /// Whether `k` says how many latents fire, and not a coefficient.
    pub fn has_k(self, price: SparsityLoss) -> bool {
        match self {
            Self::Standard | Self::Gated => false,
            Self::JumpRelu | Self::MatryoshkaJumpRelu => price == SparsityLoss::Quadratic,
            _ => true,
        }
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|architecture| architecture.name() == name);
        found.ok_or_else(|| setting("architecture", list(&Self::ALL.map(Self::name)), name))
    }
}

/// What a JumpReLU coder pays for latents that fire, by SAELens's names (`jumprelu_sparsity_loss_mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SparsityLoss {
    /// A token's distance from `k` latents, squared (Gemma Scope 2).
    #[default]
    Quadratic,
    /// Each the same (Gemma Scope 1).
    Step,
    /// tanh of the activation (Anthropic).
    Tanh,
}

impl SparsityLoss {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Quadratic, Self::Step, Self::Tanh];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quadratic => "quadratic",
            Self::Step => "step",
            Self::Tanh => "tanh",
        }
    }
}

impl std::fmt::Display for SparsityLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for SparsityLoss {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| setting("sparsity_loss", list(&Self::ALL.map(Self::name)), name))
    }
}

/// `a`, `b` or `c`.
fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => quoted.join(""),
    }
}

/// What a coder reads, and what it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// One hook point.
    Autoencoder(HookPoint),
    /// Another hook point than it reads, perhaps with a matrix beside the latents.
    Transcoder {
        /// What it reads.
        input: HookPoint,
        /// What it writes.
        output: HookPoint,
        /// Whether there is a matrix beside the latents.
        skip: bool,
    },
    /// Several hook points at once.
    Crosscoder {
        /// In the order of the layers.
        sites: Vec<HookPoint>,
        /// Whether each latent reads one of them, and writes that and every later one; otherwise it reads and writes all.
        causal: bool,
    },
    /// Several hook points and others: each latent reads one, and writes that of the same place and every later one.
    CrossLayer {
        /// In the order of the layers.
        inputs: Vec<HookPoint>,
        /// As many.
        outputs: Vec<HookPoint>,
        /// Whether there is a matrix between each pair beside the latents.
        skip: bool,
    },
}

impl From<HookPoint> for Wiring {
    fn from(hook: HookPoint) -> Self {
        Self::Autoencoder(hook)
    }
}

impl Wiring {
    /// The hook points that are read, and those that are written.
    pub fn sites(&self) -> Sites {
        match self {
            Self::Autoencoder(hook) => (*hook).into(),
            Self::Transcoder { input, output, .. } => [*input, *output].into(),
            Self::Crosscoder { sites, .. } => Sites { inputs: sites.clone(), outputs: sites.clone() },
            Self::CrossLayer { inputs, outputs, .. } => Sites { inputs: inputs.clone(), outputs: outputs.clone() },
        }
    }

    /// Whether it is between several hook points.
    pub fn is_several(&self) -> bool {
        matches!(self, Self::Crosscoder { .. } | Self::CrossLayer { .. })
    }

    /// Whether latents are in groups, one for each hook point that is read.
    pub fn has_groups(&self) -> bool {
        matches!(self, Self::Crosscoder { causal: true, .. } | Self::CrossLayer { .. })
    }

    /// Where latents read and write in rows of sites of these widths.
    pub(crate) fn layout(&self, [inputs, outputs]: [&[usize]; 2], d_sae: usize) -> Layout {
        match self {
            Self::Autoencoder(_) => Layout::autoencoder(inputs[0], d_sae),
            Self::Transcoder { skip, .. } => Layout::all_to_all(inputs, outputs, d_sae, *skip),
            Self::Crosscoder { causal, .. } => Layout::crosscoder(inputs, d_sae, *causal),
            Self::CrossLayer { skip, .. } => Layout::causal(inputs, outputs, d_sae, *skip),
        }
    }

    /// That there are several hook points where there should be, each once, in the order of the layers.
    pub(super) fn check(&self, config: &TrainConfig) -> Result<()> {
        let Sites { inputs, outputs } = self.sites();
        let names = |hooks: &[HookPoint]| hooks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if config.per_group && !self.has_groups() {
            return Err(setting("per_group", "false where there is one group of latents", true));
        }
        if !self.is_several() {
            return Ok(());
        }
        for (name, hooks) in [("hook_point", &inputs), ("hook_point_out", &outputs)] {
            if hooks.len() < 2 || !hooks.is_sorted_by(|a, b| a.layer < b.layer) {
                return Err(setting(
                    name,
                    "two hook points or more in the order of the layers, one in each",
                    names(hooks),
                ));
            }
        }
        if inputs.len() != outputs.len() {
            return Err(setting(
                "hook_point_out",
                format!("{} hook points, as many as are read", inputs.len()),
                outputs.len(),
            ));
        }
        if self.has_groups() && config.d_sae < inputs.len() {
            return Err(setting(
                "d_sae",
                format!("at least one for each of {} hook points", inputs.len()),
                config.d_sae,
            ));
        }
        if self.has_groups() && config.per_group && config.k > config.d_sae / inputs.len() {
            return Err(setting(
                "k",
                format!("at most the {} latents of each hook point", config.d_sae / inputs.len()),
                config.k,
            ));
        }
        if self.has_groups() && config.architecture.has_levels() {
            let expected = "one without levels where latents are in groups";
            return Err(setting("architecture", expected, config.architecture));
        }
        Ok(())
    }
}

/// What to train and how. The defaults are the constants of this module.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own, by its name")]
pub struct TrainConfig {
    /// How latents are chosen.
    pub architecture: Architecture,
    /// Latents.
    pub d_sae: usize,
    /// Latents that fire for a token, in the mean, where the architecture is told so ([`Architecture::has_k`]); the others
    /// begin with so many.
    pub k: usize,
    /// Whether `k` is that of each group of latents, which are then chosen among those of their group alone; otherwise it is
    /// that of all together. Of [`Wiring::has_groups`].
    pub per_group: bool,
    /// What a JumpReLU coder pays for latents that fire.
    pub sparsity_loss: SparsityLoss,
    /// λ; `None` is [`L1_COEFFICIENT`], [`GATED_COEFFICIENT`], [`TARGET_COEFFICIENT`], [`COUNT_COEFFICIENT`] or
    /// [`TANH_COEFFICIENT`].
    pub sparsity: Option<f64>,
    /// Steps over which λ rises; `None` is [`SPARSITY_WARMUP_FRACTION`] of the training, at most [`SPARSITY_WARMUP_STEPS`],
    /// and with tanh all of it.
    pub sparsity_warmup_steps: Option<u64>,
    /// ε of JumpReLU, in units of the scaled pre-activations; `None` is [`BANDWIDTH`] · √d_in, or [`TANH_BANDWIDTH`].
    pub bandwidth: Option<f64>,
    /// λ_p of a JumpReLU's dead latents; `None` is [`PRE_ACT_WEIGHT`] with tanh, otherwise 0.
    pub pre_act_weight: Option<f64>,
    /// The weight of a JumpReLU's penalty on latents that fire often, `Σ p̂·(1 + p̂/s)` with s = [`FREQUENCY_SCALE`].
    pub frequency_weight: f64,
    /// Where a Matryoshka coder is cut, ascending up to `d_sae`; `None` is [`LEVELS`].
    pub level_widths: Option<Vec<usize>>,
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
    /// Whether the encoder's product is taken in bf16, which is faster where the processor has an instruction for it. What may
    /// fire is computed again in f32, so nothing else is rounded but the activations of dead latents in AuxK. Not for
    /// `standard` and `gated` coders, of whose latents too many may fire.
    pub bf16: bool,
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
    /// The weight of AuxK; 0 turns it off. `None` is [`AUX_WEIGHT`], and 0 for `standard` and `gated` coders, whose dead latents
    /// have no positive pre-activations.
    pub aux_weight: Option<f64>,
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
            per_group: false,
            sparsity_loss: SparsityLoss::default(),
            sparsity: None,
            sparsity_warmup_steps: None,
            bandwidth: None,
            pre_act_weight: None,
            frequency_weight: 0.0,
            level_widths: None,
            lr: None,
            batch: BATCH,
            tokens: None,
            epochs: 1,
            seed: 0,
            bf16: false,
            threads: 0,
            buffer: BUFFER,
            warmup_steps: None,
            decay_fraction: DECAY_FRACTION,
            normalize: true,
            max_norm_multiple: Some(MAX_NORM_MULTIPLE),
            aux_weight: None,
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

    pub(super) fn check(&self) -> Result<()> {
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
        let weights = [
            ("aux_weight", self.aux_weight),
            ("sparsity", self.sparsity),
            ("pre_act_weight", self.pre_act_weight),
            ("frequency_weight", Some(self.frequency_weight)),
        ];
        for (name, weight) in weights {
            if let Some(weight) = weight.filter(|weight| !(weight.is_finite() && *weight >= 0.0)) {
                return Err(setting(name, "0 or more", weight));
            }
        }
        if let Some(bandwidth) = self.bandwidth.filter(|epsilon| !(epsilon.is_finite() && *epsilon > 0.0)) {
            return Err(setting("bandwidth", "a positive number", bandwidth));
        }
        let of_thresholds =
            [("frequency_weight", self.frequency_weight), ("pre_act_weight", self.pre_act_weight.unwrap_or(0.0))];
        for (name, weight) in of_thresholds {
            if weight > 0.0 && !self.architecture.has_thresholds() {
                return Err(setting(name, format!("0 for `{}`, which has no thresholds", self.architecture), weight));
            }
        }
        if self.bf16 && matches!(self.architecture, Architecture::Standard | Architecture::Gated) {
            let expected = format!("false for `{}`, of whose latents too many may fire", self.architecture);
            return Err(setting("bf16", expected, true));
        }
        if let Some(widths) = &self.level_widths {
            let ascend = widths.first() > Some(&0) && widths.is_sorted_by(|a, b| a < b);
            if !self.architecture.has_levels() || !ascend || widths.last() != Some(&self.d_sae) {
                let expected = format!("numbers that ascend to d_sae = {}, of a Matryoshka coder", self.d_sae);
                return Err(setting("level_widths", expected, format!("{widths:?} for `{}`", self.architecture)));
            }
        }
        if self.tokens == Some(0) || (self.tokens.is_none() && self.epochs == 0) {
            return Err(setting("tokens", "at least 1", 0));
        }
        Ok(())
    }

    /// What the architecture is told, for inputs of `d_in` values.
    pub(crate) fn objective(&self, d_in: usize) -> Objective {
        match self.architecture {
            Architecture::Standard => Objective::L1,
            Architecture::Gated => Objective::Gated,
            Architecture::TopK => Objective::TopK { k: self.k },
            Architecture::BatchTopK | Architecture::MatryoshkaBatchTopK => Objective::BatchTopK { k: self.k },
            Architecture::JumpRelu | Architecture::MatryoshkaJumpRelu => {
                let is_tanh = self.sparsity_loss == SparsityLoss::Tanh;
                let bandwidth = if is_tanh { TANH_BANDWIDTH } else { BANDWIDTH * (d_in as f64).sqrt() };
                let price = match self.sparsity_loss {
                    SparsityLoss::Quadratic => Price::Target { l0: self.k as f64 },
                    SparsityLoss::Step => Price::Count,
                    SparsityLoss::Tanh => Price::Tanh { scale: TANH_SCALE },
                };
                Objective::JumpRelu {
                    bandwidth: self.bandwidth.unwrap_or(bandwidth) as f32,
                    price,
                    pre_act: self.pre_act_weight.unwrap_or(if is_tanh { PRE_ACT_WEIGHT } else { 0.0 }),
                    frequency: (self.frequency_weight > 0.0).then_some((self.frequency_weight, FREQUENCY_SCALE)),
                }
            }
        }
    }

    /// λ that is meant; 0 where nothing is charged.
    pub(crate) fn coefficient(&self) -> f64 {
        let default = match self.architecture {
            Architecture::Standard => L1_COEFFICIENT,
            Architecture::Gated => GATED_COEFFICIENT,
            Architecture::TopK | Architecture::BatchTopK | Architecture::MatryoshkaBatchTopK => return 0.0,
            Architecture::JumpRelu | Architecture::MatryoshkaJumpRelu => match self.sparsity_loss {
                SparsityLoss::Quadratic => TARGET_COEFFICIENT,
                SparsityLoss::Step => COUNT_COEFFICIENT,
                SparsityLoss::Tanh => TANH_COEFFICIENT,
            },
        };
        self.sparsity.unwrap_or(default)
    }

    /// The weight of AuxK that is meant.
    pub(crate) fn aux(&self) -> f64 {
        let none = matches!(self.architecture, Architecture::Standard | Architecture::Gated);
        self.aux_weight.unwrap_or(if none { 0.0 } else { AUX_WEIGHT })
    }

    /// Where the coder is cut; empty if it is not.
    pub(crate) fn levels(&self) -> Vec<usize> {
        match &self.level_widths {
            Some(widths) => widths.clone(),
            None if self.architecture.has_levels() => {
                let mut widths: Vec<usize> =
                    LEVELS.iter().map(|part| ((part * self.d_sae as f64).round() as usize).max(1)).collect();
                widths.dedup();
                widths
            }
            None => Vec::new(),
        }
    }
}

pub(super) fn setting(name: &'static str, expected: impl Into<String>, found: impl std::fmt::Display) -> Error {
    Error::Setting { name, expected: expected.into(), found: found.to_string() }
}
