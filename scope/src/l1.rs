//! What does L1 charge, and what does it keep? (Bricken et al. 2023; with the decoder's norms as in Anthropic's update of April
//! 2024)
//!
//! All positive pre-activations fire, and `λ·Σ f·‖d‖/√V` is charged for a token, where V is the variance of what is
//! reconstructed: the same λ does for sites of any scale. (SAELens's coefficient is `λ·√V`.) Decoder rows are kept at norm 1 here, which gives the same coders: what a longer row would do, a larger activation does.

use crate::{
    kernels::scan_above,
    rule::{Charges, Gradients, Kept, Row, Rule, SelectScratch, Terms},
    step::Weights,
};

/// The rule of `standard` coders.
pub(crate) struct L1;

impl Rule for L1 {
    fn select(&self, pre_acts: &[f32], _weights: &Weights, scratch: &mut SelectScratch, out: &mut Kept) {
        scratch.found.clear();
        scan_above(pre_acts, 0, 0.0, usize::MAX, &mut scratch.found);
        out.rows.push_row(scratch.found.iter().copied());
    }

    fn charges(&self) -> Charges {
        Charges { norms: true, ..Charges::default() }
    }

    fn differentiate(&self, terms: &Terms<'_>, row: &Row<'_>, out: &mut Gradients<'_>) -> f64 {
        let price = terms.sparsity * terms.per_deviation();
        let mut charged = 0.0;
        for (i, (&latent, &act)) in row.latents.iter().zip(row.acts).enumerate() {
            let norm = terms.norm(latent);
            out.dz[i] = (terms.factor * f64::from(row.d_act[i]) + price * norm) as f32;
            if let Some(d_norm) = out.d_norm.get_mut(i) {
                *d_norm = (price * f64::from(act)) as f32;
            }
            charged += price * norm * f64::from(act);
        }
        charged
    }
}
