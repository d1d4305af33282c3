//! What does a step find out, and how does a checkpoint keep it to the last bit?

use serde::{Deserialize, Serialize};

/// What a step found out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Bits", into = "Bits")]
pub(crate) struct Outcome {
    /// The fraction of the batch's variance that is not reconstructed; of several levels, in the mean.
    pub(crate) loss: f64,
    /// AuxK's part.
    pub(crate) aux_loss: f64,
    /// What is charged for activations, and the second reconstruction of a gated coder.
    pub(crate) sparsity_loss: f64,
    pub(crate) n_rows: usize,
    /// Entries that fire.
    pub(crate) n_kept: usize,
    /// The smallest activation of each group of latents, where anything fires.
    pub(crate) smallest: Vec<Option<f32>>,
    /// Σy `[d_out]`, of the scaled rows.
    pub(crate) sum: Vec<f64>,
    /// Σ‖y‖² of each site that is written.
    pub(crate) sum_square: Vec<f64>,
    /// Σ‖y − ŷ‖² of each.
    pub(crate) sum_square_error: Vec<f64>,
    /// L2 norm of all gradients, after the decoder's parallel part was removed.
    pub(crate) gradient_norm: f64,
}

/// An [`Outcome`] in a checkpoint: decimal digits do not always come back as the same number.
#[derive(Serialize, Deserialize)]
struct Bits {
    rows: [usize; 2],
    smallest: Vec<Option<u32>>,
    sum: Vec<u64>,
    sites: [Vec<u64>; 2],
    others: [u64; 4],
}

impl From<Outcome> for Bits {
    fn from(x: Outcome) -> Self {
        let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect();
        Self {
            rows: [x.n_rows, x.n_kept],
            smallest: x.smallest.into_iter().map(|value| value.map(f32::to_bits)).collect(),
            sum: bits(x.sum),
            sites: [bits(x.sum_square), bits(x.sum_square_error)],
            others: [x.loss, x.aux_loss, x.sparsity_loss, x.gradient_norm].map(f64::to_bits),
        }
    }
}

impl From<Bits> for Outcome {
    fn from(bits: Bits) -> Self {
        let values = |bits: Vec<u64>| bits.into_iter().map(f64::from_bits).collect();
        let [n_rows, n_kept] = bits.rows;
        let [sum_square, sum_square_error] = bits.sites.map(values);
        let [loss, aux_loss, sparsity_loss, gradient_norm] = bits.others.map(f64::from_bits);
        Self {
            loss,
            aux_loss,
            sparsity_loss,
            n_rows,
            n_kept,
            smallest: bits.smallest.into_iter().map(|bits| bits.map(f32::from_bits)).collect(),
            sum: values(bits.sum),
            sum_square,
            sum_square_error,
            gradient_norm,
        }
    }
}
