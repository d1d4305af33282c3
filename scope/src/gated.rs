//! What does a gated coder keep, and what does it charge? (Rajamanoharan et al., arXiv 2404.16014)
//!
//! With `u = x·w_enc`, the gate `π = u + b_gate` says whether a latent fires, and `exp(r_mag)·u + b_mag` how strongly. Only the
//! gate is charged, `λ·Σ ReLU(π)/√V`, and it alone is asked to reconstruct once more, with the decoder held fixed, so that it has
//! a gradient.

use crate::{
    kernels::scan_above,
    rule::{Gradients, Kept, Row, Rule, SelectScratch, Terms},
    step::Weights,
};

/// The places of what it learns of each latent in [`crate::step::Group::own`]; the bias of the gate is `b_enc`.
pub(crate) const B_MAG: usize = 0;
pub(crate) const R_MAG: usize = 1;

/// The rule of `gated` coders.
pub(crate) struct Gated;

impl Rule for Gated {
    fn own(&self) -> usize {
        2
    }

    fn select(&self, pre_acts: &[f32], weights: &Weights, scratch: &mut SelectScratch, out: &mut Kept) {
        scratch.found.clear();
        scan_above(pre_acts, 0, 0.0, usize::MAX, &mut scratch.found);
        out.push_row(scratch.found.iter().map(|&(gate, latent)| {
            let (group, at) = weights.find(latent as usize);
            let magnitude = group.own[R_MAG][at].exp() * (gate - group.b_enc[at]) + group.own[B_MAG][at];
            (magnitude.max(0.0), gate, latent)
        }));
    }

    fn has_gates(&self) -> bool {
        true
    }

    fn differentiate(&self, terms: &Terms<'_>, row: &Row<'_>, out: &mut Gradients<'_>) -> f64 {
        let price = terms.sparsity * terms.per_deviation();
        let mut charged = 0.0;
        for (i, (&latent, &act)) in row.latents.iter().zip(row.acts).enumerate() {
            let (group, at) = terms.weights.find(latent as usize);
            let gate = f64::from(row.pre_acts[i]);
            let (u, scale) = (gate - f64::from(group.b_enc[at]), f64::from(group.own[R_MAG][at]).exp());
            let d_act = if act > 0.0 { terms.factor * f64::from(row.d_act[i]) } else { 0.0 };
            let d_gate = terms.factor * f64::from(row.d_gate[i]) + price;
            out.dz[i] = (d_act * scale + d_gate) as f32;
            out.set_own(B_MAG, i, d_act);
            out.set_own(R_MAG, i, d_act * scale * u);
            out.set_own(2, i, d_gate);
            charged += price * gate;
        }
        charged
    }
}
