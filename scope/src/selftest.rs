//! Does a coder see what it was made for? On a run's activations: L0 against the label, explained variance, dead share, norm
//! ratio; and where they do not fit, which other reading of its files does.
//!
//! What goes wrong with coders from elsewhere is always the same few things: another site (in front of a norm and behind it),
//! a norm's weight folded or not, a scale that was never folded or was folded twice, a bias subtracted or not. Each is tried.

use std::{borrow::Cow, ops::ControlFlow};

use data::{BatchOptions, BatchReader, HookPoint, Run};

use crate::{
    activation::Activation,
    crosscoder::Crosscoder,
    error::{Error, Result},
    matrix::Matrix,
    metrics::{EvaluateOptions, Metrics, evaluate},
    sae::{Sae, Scratch, SparseCoder},
    sites::Sites,
    sparse::SparseRows,
};

/// How far L0 may be from its label.
pub const L0_TOLERANCE: f64 = 0.2;
/// The least explained variance of a coder that fits.
pub const MIN_EXPLAINED_VARIANCE: f64 = 0.5;
/// Between what the mean norm ratio of reconstructions of a coder that fits lies.
pub const L2_RATIO: [f64; 2] = [0.7, 1.3];
/// Tokens of each trial.
pub const TOKENS: u64 = 4096;
/// Sites on which scales and biases are tried too, beside the one that the coder names.
const SITES_TRIED_CLOSELY: usize = 3;

/// What activations are multiplied by before they are encoded, and reconstructions divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As they are.
    One,
    /// To the mean norm √d (SAELens).
    RootWidth,
    /// To the mean square norm 1 (Gemma Scope).
    Unit,
    /// The inverse of the first: it was folded once too often.
    InverseRootWidth,
    /// The inverse of the second.
    InverseUnit,
}

impl Scale {
    const ALL: [Self; 5] = [Self::One, Self::RootWidth, Self::Unit, Self::InverseRootWidth, Self::InverseUnit];

    fn factor(self, norms: Norms) -> f32 {
        let factor = match self {
            Self::One => 1.0,
            Self::RootWidth => norms.root_width / norms.mean,
            Self::Unit => 1.0 / norms.root_mean_square,
            Self::InverseRootWidth => norms.mean / norms.root_width,
            Self::InverseUnit => norms.root_mean_square,
        };
        factor as f32
    }
}

/// One way to read a coder's files, and what comes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// What it reads, and what it speaks of.
    pub hooks: [HookPoint; 2],
    /// What the activations are scaled by.
    pub scale: Scale,
    /// The number that this is here.
    pub factor: f32,
    /// Whether `b_dec` is subtracted first.
    pub subtracts_bias: bool,
    /// On [`TOKENS`] tokens.
    pub metrics: Metrics,
}

/// What the trials found.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfTest {
    /// The L0 that its maker gives.
    pub label: Option<f64>,
    /// As its files say; `None` where the run does not hold its hook points.
    pub as_labelled: Option<Reading>,
    /// The reading that fits best: that of its files, if it fits.
    pub best: Reading,
    /// Whether the best one fits.
    pub fits: bool,
    /// Readings tried.
    pub tried: usize,
}

impl SelfTest {
    /// Whether the coder fits as its files say.
    pub fn passed(&self) -> bool {
        self.fits && self.as_labelled.as_ref() == Some(&self.best)
    }

    /// In what the best reading differs from that of the files, in words.
    pub fn differences(&self, sae: &Sae) -> Vec<String> {
        let best = &self.best;
        let mut words = Vec::new();
        for (i, (said, what)) in
            [(sae.hook_name(), "reads"), (sae.hook_name_out(), "speaks of")].into_iter().enumerate()
        {
            let found = best.hooks[i].to_string();
            if said != Some(found.as_str()) && (i == 0 || sae.transcoder) {
                let gain = said.and_then(|said| gain(said, &found)).unwrap_or_default();
                words.push(format!("it {what} `{found}`, not `{}`{gain}", said.unwrap_or("what it does not say")));
            }
        }
        match best.scale {
            Scale::One => {}
            Scale::RootWidth | Scale::Unit => {
                words.push(format!("its scale is not folded: activations are wanted times {:.4e}", best.factor));
            }
            Scale::InverseRootWidth | Scale::InverseUnit => {
                words.push(format!(
                    "its scale is folded once too often: activations are wanted times {:.4e}",
                    best.factor
                ));
            }
        }
        match (best.subtracts_bias, sae.apply_b_dec_to_input) {
            (true, false) => {
                words.push("`b_dec` is subtracted from its input, and its files say that it is not".into());
            }
            (false, true) => {
                words.push("`b_dec` is not subtracted from its input, and its files say that it is".into());
            }
            _ => {}
        }
        words
    }
}

/// What to add where two sites differ by the weight of a norm.
fn gain(said: &str, found: &str) -> Option<&'static str> {
    let same_layer = said.rsplit_once("ln2.hook_normalized").or_else(|| said.rsplit_once("mlp.hook_in"))?.0;
    match found.strip_prefix(same_layer)? {
        "mlp.hook_in" if said.ends_with("ln2.hook_normalized") => Some(": with the weight of the norm"),
        "ln2.hook_normalized" if said.ends_with("mlp.hook_in") => Some(": without the weight of the norm"),
        _ => None,
    }
}

/// Tries a coder on a run. `progress` is given the readings tried, and breaks off.
pub fn selftest(
    run: &Run,
    sae: &Sae,
    threads: usize,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<SelfTest> {
    let mut trials = Trials { run, sae: sae.clone(), threads, progress, tried: 0, norms: Vec::new() };
    let label = label(sae);
    let said = [sae.hook_name(), sae.hook_name_out()].map(|name| name?.parse::<HookPoint>().ok());
    let holds = |hook: HookPoint, width: usize| run.hook_point(hook).is_ok_and(|entry| entry.width == width);
    let [input, output] = said;
    let labelled = input.zip(output).filter(|&(i, o)| holds(i, sae.d_in()) && holds(o, sae.d_out()));
    let as_labelled = match labelled {
        Some((input, output)) => Some(trials.try_one([input, output], Scale::One, sae.apply_b_dec_to_input)?),
        None => None,
    };
    if let Some(reading) = as_labelled.as_ref().filter(|reading| fits(reading, label)) {
        let best = reading.clone();
        return Ok(SelfTest { label, as_labelled, best, fits: true, tried: 1 });
    }
    let mut readings: Vec<Reading> = as_labelled.iter().cloned().collect();
    // Another site, all else as it is said.
    for hooks in sites(run, sae, said) {
        if labelled.map(|(i, o)| [i, o]) != Some(hooks) {
            readings.push(trials.try_one(hooks, Scale::One, sae.apply_b_dec_to_input)?);
        }
    }
    let mut close: Vec<[HookPoint; 2]> = as_labelled.iter().map(|reading| reading.hooks).collect();
    readings.sort_by(|a, b| score(b, label).total_cmp(&score(a, label)));
    for reading in readings.iter().take(SITES_TRIED_CLOSELY) {
        if !close.contains(&reading.hooks) {
            close.push(reading.hooks);
        }
    }
    // Where a site alone makes it fit, nothing else is wanted.
    if !readings.first().is_some_and(|reading| fits(reading, label)) {
        for hooks in close {
            for scale in Scale::ALL {
                for bias in biases(sae) {
                    if (scale, bias) != (Scale::One, sae.apply_b_dec_to_input) {
                        readings.push(trials.try_one(hooks, scale, bias)?);
                    }
                }
            }
        }
    }
    let tried = trials.tried;
    let best = readings.into_iter().max_by(|a, b| score(a, label).total_cmp(&score(b, label)));
    let best =
        best.ok_or_else(|| Error::NothingToTest { d_in: sae.d_in(), d_out: sae.d_out(), path: run.dir().into() })?;
    let fits = fits(&best, label);
    Ok(SelfTest { label, as_labelled, best, fits, tried })
}

/// The L0 that the files give: what stands there, or `k`.
fn label(sae: &Sae) -> Option<f64> {
    match sae.activation {
        Activation::TopK { k } | Activation::AbsTopK { k } => Some(k as f64),
        _ => said(&sae.metadata),
    }
}

fn biases(sae: &Sae) -> Vec<bool> {
    if sae.d_in() == sae.d_out() && !sae.transcoder { vec![true, false] } else { vec![sae.apply_b_dec_to_input] }
}

/// Pairs of hook points of the run that have the coder's widths; of a transcoder, one of the two is what it says if the run
/// has that.
fn sites(run: &Run, sae: &Sae, [input, output]: [Option<HookPoint>; 2]) -> Vec<[HookPoint; 2]> {
    let of_width =
        |width: usize| run.hook_points().iter().filter(move |entry| entry.width == width).map(|entry| entry.name);
    if !sae.transcoder {
        return of_width(sae.d_in()).map(|hook| [hook, hook]).collect();
    }
    let holds = |hook: &HookPoint, width: usize| of_width(width).any(|other| other == *hook);
    let input = input.filter(|hook| holds(hook, sae.d_in()));
    let output = output.filter(|hook| holds(hook, sae.d_out()));
    let mut pairs: Vec<[HookPoint; 2]> = Vec::new();
    for from in of_width(sae.d_in()) {
        for to in of_width(sae.d_out()) {
            let said = input == Some(from) || output == Some(to);
            // A transcoder stays in its layer.
            if said || (input.is_none() && output.is_none() && from.layer == to.layer) {
                pairs.push([from, to]);
            }
        }
    }
    pairs
}

/// What a coder between several sites does as its files say; nothing else is tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// The L0 that its maker gives.
    pub label: Option<f64>,
    /// On [`TOKENS`] tokens.
    pub metrics: Metrics,
    /// Whether it fits.
    pub fits: bool,
}

/// Tries a coder between several sites on a run that holds all of them.
pub fn trial(run: &Run, coder: &Crosscoder, sites: &Sites, threads: usize) -> Result<Trial> {
    let label = match coder.activation {
        Activation::TopK { k } | Activation::AbsTopK { k } => {
            Some((k * if coder.per_group { coder.groups.len() } else { 1 }) as f64)
        }
        _ => said(&coder.metadata),
    };
    let options = EvaluateOptions { max_tokens: Some(TOKENS), threads, ..EvaluateOptions::default() };
    let metrics = evaluate(run, sites, coder, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(Trial { label, fits: fit(&metrics, label), metrics })
}

fn said(metadata: &serde_json::Map<String, serde_json::Value>) -> Option<f64> {
    metadata.get("l0").and_then(serde_json::Value::as_f64).filter(|l0| *l0 > 0.0)
}

fn fits(reading: &Reading, label: Option<f64>) -> bool {
    fit(&reading.metrics, label)
}

fn fit(metrics: &Metrics, label: Option<f64>) -> bool {
    let l0 = label.is_none_or(|label| (metrics.l0 / label - 1.0).abs() <= L0_TOLERANCE);
    let ratio = (L2_RATIO[0]..=L2_RATIO[1]).contains(&metrics.l2_ratio);
    l0 && ratio && metrics.explained_variance >= MIN_EXPLAINED_VARIANCE
}

/// What fits comes first; then what explains most.
fn score(reading: &Reading, label: Option<f64>) -> f64 {
    let variance = reading.metrics.explained_variance;
    let variance = if variance.is_finite() { variance } else { f64::MIN / 2.0 };
    variance + if fits(reading, label) { 2.0 } else { 0.0 }
}

#[derive(Clone, Copy, Debug)]
struct Norms {
    mean: f64,
    root_mean_square: f64,
    root_width: f64,
}

struct Trials<'a> {
    run: &'a Run,
    /// Of which only the bias is treated otherwise from trial to trial.
    sae: Sae,
    threads: usize,
    progress: &'a mut dyn FnMut(usize) -> ControlFlow<()>,
    tried: usize,
    /// Of the hook points that were looked at.
    norms: Vec<(HookPoint, Norms)>,
}

impl Trials<'_> {
    fn try_one(&mut self, hooks: [HookPoint; 2], scale: Scale, subtracts_bias: bool) -> Result<Reading> {
        if (self.progress)(self.tried).is_break() {
            return Err(Error::Interrupted);
        }
        self.tried += 1;
        let scales = if scale == Scale::One {
            [1.0; 2]
        } else {
            [scale.factor(self.norms(hooks[0])?), scale.factor(self.norms(hooks[1])?)]
        };
        self.sae.apply_b_dec_to_input = subtracts_bias;
        let scaled = Scaled { sae: &self.sae, scales };
        let options = EvaluateOptions { max_tokens: Some(TOKENS), threads: self.threads, ..EvaluateOptions::default() };
        let metrics = evaluate(self.run, &hooks.into(), &scaled, &options, &mut |_| ControlFlow::Continue(()))?;
        Ok(Reading { hooks, scale, factor: scales[0], subtracts_bias, metrics })
    }

    /// Of a first batch, special tokens and outliers left out.
    fn norms(&mut self, hook: HookPoint) -> Result<Norms> {
        if let Some((_, known)) = self.norms.iter().find(|(known, _)| *known == hook) {
            return Ok(*known);
        }
        let options =
            BatchOptions { batch_rows: TOKENS as usize, buffer_rows: TOKENS as usize, ..BatchOptions::default() };
        let width = self.run.hook_point(hook)?.width;
        let none = || Error::NoActivations { hook: hook.to_string() };
        let batch = BatchReader::new(self.run, &[hook], options)?.next().ok_or_else(none)??;
        let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for row in batch.acts[0].chunks_exact(width) {
            let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            if square.is_finite() {
                (n, sum, squares) = (n + 1.0, sum + square.sqrt(), squares + square);
            }
        }
        let norms = Norms { mean: sum / n, root_mean_square: (squares / n).sqrt(), root_width: (width as f64).sqrt() };
        if norms.mean <= 0.0 || norms.mean.is_nan() {
            return Err(none());
        }
        self.norms.push((hook, norms));
        Ok(norms)
    }
}

/// A coder whose input is scaled as it comes and whose output is scaled back: its weights stay where they are.
struct Scaled<'a> {
    sae: &'a Sae,
    scales: [f32; 2],
}

impl Scaled<'_> {
    fn input(&self, rows: &[f32]) -> Vec<f32> {
        rows.iter().map(|x| self.scales[0] * x).collect()
    }
}

impl SparseCoder for Scaled<'_> {
    fn d_in(&self) -> usize {
        self.sae.d_in()
    }

    fn d_out(&self) -> usize {
        self.sae.d_out()
    }

    fn d_sae(&self) -> usize {
        self.sae.d_sae()
    }

    fn encode(&self, rows: &[f32], scratch: &mut Scratch, out: &mut SparseRows) {
        self.sae.encode(&self.input(rows), scratch, out);
    }

    fn decode(&self, acts: &SparseRows, rows: &[f32], out: &mut [f32]) {
        self.sae.decode(acts, &self.input(rows), out);
        crate::kernels::scale(out, 1.0 / self.scales[1]);
    }

    fn decoder(&self) -> Option<&Matrix> {
        self.sae.decoder()
    }

    fn decoder_row(&self, latent: usize) -> Cow<'_, [f32]> {
        self.sae.decoder_row(latent)
    }
}

#[cfg(test)]
mod tests;
