//! What does JumpReLU keep, and what does it charge?
//!
//! A latent fires where its pre-activation is above its threshold, `f = z·H(z − θ)`. Thresholds learn through a rectangle of
//! width ε about the jump (Rajamanoharan et al., arXiv 2407.14435): with `K = [|z − θ| < ε/2]`, `∂f/∂θ = −(θ/ε)·K` and
//! `∂H/∂θ = −K/ε`. Three prices for what fires:
//!
//! - a target (Gemma Scope 2): `λ·(2/L0*)·(L0 − L0*)²` of each token's number of latents, of all or of each group;
//! - its number (Gemma Scope 1): `λ·L0`;
//! - Anthropic's of January 2025: `λ·Σ tanh(c·f·‖d‖)`, with gradients through the jump to the pre-activations too, and
//!   `λ_p·Σ ReLU(θ − z)/√V` of dead latents, so that they come back.
//!
//! λ is in fractions of the variance: what a latent must explain to be worth firing.

use std::ops::Range;

use crate::{
    init::Start,
    kernels::scan_above,
    layout::Layout,
    rule::{Charges, Gradients, Kept, Rounded, Row, Rule, SelectScratch, Terms},
    step::{Group, Weights},
};

/// The place of thresholds in [`Group::own`].
pub(crate) const THRESHOLD: usize = 0;

/// What is charged for latents that fire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Price {
    /// Every token's distance from a number of latents, squared.
    Target {
        /// L0*.
        l0: f64,
    },
    /// The number of latents.
    Count,
    /// `tanh(scale · f)`.
    Tanh {
        /// c.
        scale: f64,
    },
}

/// The rule of `jumprelu` coders.
#[derive(Clone, Debug)]
pub(crate) struct JumpRelu {
    /// ε, in the units of the pre-activations.
    pub(crate) bandwidth: f32,
    pub(crate) price: Price,
    /// λ_p.
    pub(crate) pre_act: f64,
    /// See [`Charges::frequency`].
    pub(crate) frequency: Option<(f64, f64)>,
    /// Latents whose number has a target of its own.
    scopes: Vec<Range<usize>>,
    /// No pre-activation at or below it has a gradient.
    floor: f32,
}

impl JumpRelu {
    pub(crate) fn new(
        bandwidth: f32,
        price: Price,
        pre_act: f64,
        frequency: Option<(f64, f64)>,
        scopes: Vec<Range<usize>>,
    ) -> Self {
        Self { bandwidth, price, pre_act, frequency, scopes, floor: 0.0 }
    }

    fn is_tanh(&self) -> bool {
        matches!(self.price, Price::Tanh { .. })
    }
}

impl Rule for JumpRelu {
    fn own(&self) -> usize {
        1
    }

    fn start(&self, group: &mut Group, start: Start) {
        group.own[THRESHOLD].fill(start.threshold);
    }

    /// As if inputs had a mean square of 1, for which the published rates are meant: the scale of inputs is in thresholds, not
    /// in weights.
    fn own_rate(&self, layout: &Layout) -> f64 {
        layout.groups.first().map_or(1.0, |group| (group.reads.len() as f64).sqrt())
    }

    fn project(&self, weights: &mut Weights) {
        for group in &mut weights.groups {
            for threshold in &mut group.own[THRESHOLD] {
                *threshold = threshold.max(0.0);
            }
        }
    }

    fn prepare(&mut self, weights: &Weights) {
        let thresholds = weights.groups.iter().flat_map(|group| &group.own[THRESHOLD]);
        self.floor = thresholds.copied().fold(f32::INFINITY, f32::min) - self.bandwidth / 2.0;
    }

    fn select(&self, pre_acts: &[f32], weights: &Weights, scratch: &mut SelectScratch, out: &mut Kept) {
        scratch.found.clear();
        scan_above(pre_acts, 0, self.floor, usize::MAX, &mut scratch.found);
        let half = self.bandwidth / 2.0;
        out.push_row(scratch.found.iter().filter_map(|&(z, latent)| {
            let (group, at) = weights.find(latent as usize);
            let threshold = group.own[THRESHOLD][at];
            let act = if z > threshold { z } else { 0.0 };
            (z > threshold || (z - threshold).abs() < half).then_some((act, z, latent))
        }));
    }

    fn candidates(&self, row: &Rounded<'_>, weights: &Weights, scratch: &mut SelectScratch) {
        scratch.found.clear();
        row.append_above(&(0..row.pre_acts.len()), self.floor, &mut scratch.found);
        let half = self.bandwidth / 2.0;
        scratch.found.retain(|&(z, latent)| {
            let (group, at) = weights.find(latent as usize);
            z + row.error * row.norms[latent as usize] > group.own[THRESHOLD][at] - half
        });
    }

    fn charges(&self) -> Charges {
        Charges { pre_act: self.pre_act, frequency: self.frequency, norms: self.is_tanh() }
    }

    fn differentiate(&self, terms: &Terms<'_>, row: &Row<'_>, out: &mut Gradients<'_>) -> f64 {
        let n = terms.n_rows as f64;
        let (epsilon, half) = (f64::from(self.bandwidth), self.bandwidth / 2.0);
        let (mut charged, mut start) = (0.0, 0);
        for scope in &self.scopes {
            let end = start + row.latents[start..].partition_point(|&latent| (latent as usize) < scope.end);
            let l0 = row.acts[start..end].iter().filter(|&&act| act > 0.0).count() as f64;
            // What one latent more costs, and what the row is charged for those that fire.
            let (d_count, price) = match self.price {
                Price::Target { l0: target } => {
                    let missed = l0 - target;
                    (terms.sparsity * 4.0 / target * missed / n, terms.sparsity * 2.0 / target * missed * missed / n)
                }
                Price::Count => (terms.sparsity / n, terms.sparsity / n * l0),
                Price::Tanh { .. } => (0.0, 0.0),
            };
            charged += price;
            for i in start..end {
                let (latent, act) = (row.latents[i], row.acts[i]);
                let (group, at) = terms.weights.find(latent as usize);
                let (threshold, z) = (group.own[THRESHOLD][at], row.pre_acts[i]);
                let mut d_act = terms.factor * f64::from(row.d_act[i]);
                if let Price::Tanh { scale } = self.price {
                    let norm = terms.norm(latent);
                    let price = terms.sparsity / n;
                    let tanh = (scale * norm * f64::from(act)).tanh();
                    let slope = price * scale * (1.0 - tanh * tanh);
                    d_act += slope * norm;
                    if let Some(d_norm) = out.d_norm.get_mut(i) {
                        *d_norm = (slope * f64::from(act)) as f32;
                    }
                    charged += price * tanh;
                }
                let mut d_fires = d_count;
                if let Some((weight, scale)) = self.frequency {
                    let share = f64::from(terms.fired[latent as usize]) / n;
                    d_fires += weight * (1.0 + 2.0 * share / scale) / n;
                }
                let mut dz = if act > 0.0 { d_act } else { 0.0 };
                let mut d_threshold = 0.0;
                if (z - threshold).abs() < half {
                    let through_jump = (f64::from(threshold) * d_act + d_fires) / epsilon;
                    d_threshold -= through_jump;
                    if self.is_tanh() {
                        dz += through_jump;
                    }
                }
                if act > 0.0 && terms.dead.get(latent as usize) == Some(&true) {
                    // What the step adds for every row of a dead latent is not meant for those in which it fires.
                    let price = self.pre_act * terms.per_deviation();
                    dz += price;
                    d_threshold -= price;
                }
                out.dz[i] = dz as f32;
                out.set_own(THRESHOLD, i, d_threshold);
            }
            start = end;
        }
        charged
    }
}
