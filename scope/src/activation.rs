//! Which pre-activations become activations?

use std::ops::Range;

use crate::{batch_topk::jump_relu, kernels::scan_above, sparse::SparseRows, topk::TopK};

/// Which pre-activations become activations.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Activation {
    /// The positive ones.
    #[default]
    Relu,
    /// The `k` largest positive ones of a row.
    TopK {
        /// How many.
        k: usize,
    },
    /// The `k` of a row that are farthest from 0, with their signs.
    AbsTopK {
        /// How many.
        k: usize,
    },
    /// Those that are positive and above their latent's threshold, `[d_sae]`. A trained BatchTopK is one of these.
    JumpRelu {
        /// In units of the pre-activation.
        threshold: Vec<f32>,
    },
    /// Of those that are positive, `(z − b_enc)·exp(r_mag) + b_mag` where that is positive (Rajamanoharan et al., arXiv
    /// 2404.16014).
    Gated {
        /// `[d_sae]`.
        b_mag: Vec<f32>,
        /// `[d_sae]`.
        r_mag: Vec<f32>,
    },
    /// No pre-activations: latent after latent, that which fits best what is left.
    MatchingPursuit {
        /// What is left may be this long; 0 for never.
        residual_threshold: f32,
        /// At most so many times; `None` is `d_in`.
        max_iterations: Option<usize>,
        /// Whether it ends when no latent is new.
        stop_on_duplicate_support: bool,
    },
}

impl Activation {
    /// SAELens's name of an autoencoder with it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Relu => "standard",
            Self::TopK { .. } => "topk",
            Self::AbsTopK { .. } => "abstopk",
            Self::JumpRelu { .. } => "jumprelu",
            Self::Gated { .. } => "gated",
            Self::MatchingPursuit { .. } => "matching_pursuit",
        }
    }
}

/// An [`Activation`] at work on rows, or on bands of rows.
pub(crate) struct Select<'a> {
    activation: &'a Activation,
    b_enc: &'a [f32],
    /// Nothing at or below it fires.
    floor: f32,
    top_k: TopK,
}

impl<'a> Select<'a> {
    pub(crate) fn new(activation: &'a Activation, b_enc: &'a [f32]) -> Self {
        let floor = match activation {
            Activation::JumpRelu { threshold } => threshold.iter().copied().fold(f32::INFINITY, f32::min).max(0.0),
            _ => 0.0,
        };
        let top_k = match activation {
            Activation::TopK { k } => TopK::new(*k),
            Activation::AbsTopK { k } => TopK::signed(*k),
            _ => TopK::new(0),
        };
        Self { activation, b_enc, floor, top_k }
    }

    /// Appends a row with what fires of `latents`, whose pre-activations these are; counted from the first of them.
    pub(crate) fn select(
        &mut self,
        pre_acts: &[f32],
        latents: Range<usize>,
        found: &mut Vec<(f32, u32)>,
        out: &mut SparseRows,
    ) {
        match self.activation {
            Activation::TopK { .. } | Activation::AbsTopK { .. } => self.top_k.select(pre_acts, out),
            Activation::JumpRelu { threshold } => jump_relu(pre_acts, &threshold[latents], self.floor, found, out),
            Activation::Relu => {
                found.clear();
                scan_above(pre_acts, 0, 0.0, usize::MAX, found);
                out.push_row(found.iter().copied());
            }
            Activation::Gated { b_mag, r_mag } => {
                found.clear();
                scan_above(pre_acts, 0, 0.0, usize::MAX, found);
                let magnitude = |&(z, at): &(f32, u32)| {
                    let latent = latents.start + at as usize;
                    ((z - self.b_enc[latent]) * r_mag[latent].exp() + b_mag[latent], at)
                };
                out.push_row(found.iter().map(magnitude).filter(|&(value, _)| value > 0.0));
            }
            Activation::MatchingPursuit { .. } => out.push_row(std::iter::empty()),
        }
    }

    /// Appends `n` rows that were selected in bands of latents, each with the number of its first one. What only a few of may
    /// fire is chosen once more among the bands of each of `together`.
    pub(crate) fn merge(
        &mut self,
        bands: &[(usize, SparseRows)],
        together: &[Range<usize>],
        n: usize,
        out: &mut SparseRows,
    ) {
        let few = matches!(self.activation, Activation::TopK { .. } | Activation::AbsTopK { .. });
        let (mut latents, mut values, mut chosen) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..n {
            chosen.clear();
            for bands in together.iter().map(|range| &bands[range.clone()]) {
                latents.clear();
                values.clear();
                for (first, rows) in bands {
                    let (found, acts) = rows.row(row);
                    latents.extend(found.iter().map(|latent| latent + *first as u32));
                    values.extend_from_slice(acts);
                }
                if few && bands.len() > 1 {
                    self.top_k.append_among(&latents, &values, &mut chosen);
                } else {
                    chosen.extend(values.iter().copied().zip(latents.iter().copied()));
                }
            }
            out.push_row(chosen.iter().copied());
        }
    }
}
