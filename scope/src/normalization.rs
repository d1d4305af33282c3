//! What is done to each token before it is encoded, and undone behind it?

use crate::sae::norm;

/// Added to the standard deviation (SAELens, OpenAI).
const EPSILON: f64 = 1e-5;

/// SAELens's `normalize_activations` that cannot be folded into weights, because each token has a scale of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalization {
    /// Tokens are taken as they are.
    #[default]
    None,
    /// Tokens are given the norm √d_in.
    ConstantNorm,
    /// Tokens are given the mean 0 and the standard deviation 1.
    LayerNorm,
}

impl Normalization {
    /// SAELens's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ConstantNorm => "constant_norm_rescale",
            Self::LayerNorm => "layer_norm",
        }
    }

    /// Norms a token.
    pub(crate) fn apply(self, row: &mut [f32]) {
        let (mean, factor) = match self {
            Self::None => return,
            Self::ConstantNorm => (0.0, (row.len() as f32).sqrt() / norm(row)),
            Self::LayerNorm => {
                let (mean, deviation) = moments(row);
                (mean as f32, (1.0 / (deviation + EPSILON)) as f32)
            }
        };
        for value in row {
            *value = (*value - mean) * factor;
        }
    }

    /// What a unit in the normed space is in the space of `row`.
    pub(crate) fn scale(self, row: &[f32]) -> f32 {
        match self {
            Self::None => 1.0,
            Self::ConstantNorm => norm(row) / (row.len() as f32).sqrt(),
            // Without the ε: so does SAELens.
            Self::LayerNorm => moments(row).1 as f32,
        }
    }

    /// Brings a reconstruction of `row` back.
    pub(crate) fn undo(self, row: &[f32], out: &mut [f32]) {
        if self == Self::None {
            return;
        }
        let scale = self.scale(row);
        let mean = if self == Self::LayerNorm { moments(row).0 as f32 } else { 0.0 };
        for value in out {
            *value = *value * scale + mean;
        }
    }
}

/// The mean and the standard deviation with n − 1 below.
fn moments(row: &[f32]) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares: f64 = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}
