//! How many bits tell what a coder says of a token? The description length of its activations.
//!
//! As in SAEBench's `mdl` (Ayonrinde et al., arXiv 2410.11179): each latent has an ideal code of its own, first for whether it
//! fires, then for the bin of its activation among `2^depth` of equal width between 0 and the largest:
//! Σ_latents H(fires) + p(fires) · H(bin | fires). With the bins' middles in place of the activations, reconstructions
//! are a little worse; the depth is the smallest at which explained variance falls by no more than [`TOLERANCE`]. Beside it
//! stands what normally distributed rows of the same covariance would need for the same error, the rate–distortion bound:
//! a coder below it has found structure that second moments do not show. Entropies are those of the frequencies in the sample,
//! and the codebook (the decoder) is not counted.

use serde::Serialize;

use super::pca::Pca;
use crate::{sae::SparseCoder, sparse::SparseRows};

/// Tokens of the sample, at most.
pub const TOKENS: usize = 1 << 14;
/// Bins are halved so often at most.
pub const MAX_DEPTH: u32 = 8;
/// How much explained variance may be lost to the bins.
pub const TOLERANCE: f64 = 0.005;

/// The description length of a coder's activations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DescriptionLength {
    /// Tokens of the sample.
    pub n_tokens: u64,
    /// The smallest depth at which little is lost, or [`MAX_DEPTH`].
    pub depth: u32,
    /// Bits for a token at that depth.
    pub bits: f64,
    /// Of those, bits for which latents fire.
    pub bits_for_support: f64,
    /// The explained variance with the activations as the code tells them.
    pub explained_variance: f64,
    /// The least bits for a token with which rows of this covariance, if they were normal, could be told as exactly.
    pub gaussian_bits: f64,
    /// Every depth that was tried.
    pub by_depth: Vec<CodeAtDepth>,
}

/// A code with `2^depth` bins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CodeAtDepth {
    /// Halvings.
    pub depth: u32,
    /// Bits for a token.
    pub bits: f64,
    /// The explained variance with the bins' middles.
    pub explained_variance: f64,
}

/// Rows that are kept in memory, with what fires there.
#[derive(Debug, Default)]
pub(super) struct Sample {
    /// `[n, d_in]`.
    pub(super) rows: Vec<f32>,
    /// `[n, d_out]`.
    pub(super) targets: Vec<f32>,
    pub(super) acts: SparseRows,
}

impl Sample {
    pub(super) fn new() -> Self {
        Self { acts: SparseRows::new(), ..Self::default() }
    }

    /// Keeps the rows of a batch, while there is room for all of them.
    pub(super) fn add(&mut self, rows: &[f32], targets: &[f32], acts: &SparseRows) {
        if self.acts.n_rows() + acts.n_rows() > TOKENS && self.acts.n_rows() > 0 {
            return;
        }
        self.rows.extend_from_slice(rows);
        self.targets.extend_from_slice(targets);
        self.acts.append(acts);
    }

    /// `pca`: of what the coder speaks of.
    pub(super) fn description_length(&self, coder: &dyn SparseCoder, pca: &Pca) -> DescriptionLength {
        let n = self.acts.n_rows();
        let code = Code::of(&self.acts, coder.d_sae());
        let support = code.support_bits(n);
        let (_, exact) = self.error(coder, &self.acts);
        let mut by_depth = Vec::new();
        let mut chosen = (0, f64::NAN);
        for depth in 0..=MAX_DEPTH {
            let (mse, explained_variance) = self.error(coder, &code.quantized(&self.acts, depth));
            let bits = support + code.bin_bits(&self.acts, depth, n);
            by_depth.push(CodeAtDepth { depth, bits, explained_variance });
            chosen = (by_depth.len() - 1, mse);
            if explained_variance >= exact - TOLERANCE {
                break;
            }
        }
        let (at, mse) = chosen;
        DescriptionLength {
            n_tokens: n as u64,
            depth: by_depth[at].depth,
            bits: by_depth[at].bits,
            bits_for_support: support,
            explained_variance: by_depth[at].explained_variance,
            gaussian_bits: pca.gaussian_bits(mse),
            by_depth,
        }
    }

    /// E‖x − x̂‖² and the explained variance.
    fn error(&self, coder: &dyn SparseCoder, acts: &SparseRows) -> (f64, f64) {
        let width = coder.d_out();
        let mut out = vec![0.0; self.targets.len()];
        coder.decode(acts, &self.rows, &mut out);
        let mut sums = super::sums::Moments::new(width);
        for (x, y) in self.targets.chunks_exact(width).zip(out.chunks_exact(width)) {
            sums.add(x, y, &[]);
        }
        (sums.mse(), 1.0 - sums.fvu())
    }
}

/// What is known of the activations of each latent.
struct Code {
    fired: Vec<u32>,
    /// The activation farthest from zero, of either sign.
    largest: Vec<f32>,
}

impl Code {
    fn of(acts: &SparseRows, d_sae: usize) -> Self {
        let mut code = Self { fired: vec![0; d_sae], largest: vec![0.0; d_sae] };
        for (latents, values) in acts.iter() {
            for (&latent, &value) in latents.iter().zip(values) {
                code.fired[latent as usize] += 1;
                let largest = &mut code.largest[latent as usize];
                *largest = largest.max(value.abs());
            }
        }
        code
    }

    fn support_bits(&self, n: usize) -> f64 {
        let bits = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
        self.fired.iter().map(|&fired| f64::from(fired) / n as f64).map(|p| bits(p) + bits(1.0 - p)).sum()
    }

    /// Which bin an activation is in; a negative one has bins of its own.
    fn bin(&self, latent: u32, value: f32, depth: u32) -> (bool, u32) {
        let bins = 1 << depth;
        let at = f64::from(value.abs()) / f64::from(self.largest[latent as usize]) * f64::from(bins);
        (value < 0.0, (at as u32).min(bins - 1))
    }

    fn quantized(&self, acts: &SparseRows, depth: u32) -> SparseRows {
        let mut out = SparseRows::new();
        for (latents, values) in acts.iter() {
            out.push_row(latents.iter().zip(values).map(|(&latent, &value)| {
                let (_, bin) = self.bin(latent, value, depth);
                let middle = self.largest[latent as usize] * (bin as f32 + 0.5) / (1 << depth) as f32;
                (middle.copysign(value), latent)
            }));
        }
        out
    }

    /// Σ p(fires) · H(bin | fires), for a token.
    fn bin_bits(&self, acts: &SparseRows, depth: u32, n: usize) -> f64 {
        let mut bins: Vec<(u32, (bool, u32))> = Vec::with_capacity(acts.n_entries());
        for (latents, values) in acts.iter() {
            bins.extend(latents.iter().zip(values).map(|(&latent, &value)| (latent, self.bin(latent, value, depth))));
        }
        bins.sort_unstable();
        let same = bins.chunk_by(|a, b| a == b);
        let bits = same.map(|same| {
            let share = same.len() as f64 / f64::from(self.fired[same[0].0 as usize]);
            -(same.len() as f64) * share.log2()
        });
        bits.sum::<f64>() / n as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Matrix, Sae, metrics::pca::Covariance};

    #[test]
    fn bits_by_hand() {
        // Latent 0 fires on 2 of 4 tokens, in both bins of two; latent 1 on all of them, in one bin.
        let unit = Matrix::from_slice(2, 2, &[1.0, 0.0, 0.0, 1.0]);
        let coder = Sae {
            w_enc: unit.clone(),
            w_dec: unit,
            b_enc: vec![0.0; 2],
            b_dec: vec![0.0; 2],
            activation: Activation::Relu,
            ..Sae::default()
        };
        let rows = [4.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0];
        let mut acts = SparseRows::new();
        coder.encode(&rows, &mut crate::sae::Scratch::default(), &mut acts);
        let mut sample = Sample::new();
        sample.add(&rows, &rows, &acts);
        let mut covariance = Covariance::new(2);
        covariance.add(&rows).unwrap();
        let found = sample.description_length(&coder, &covariance.components().unwrap());
        assert_eq!(found.n_tokens, 4);
        assert!((found.bits_for_support - 1.0).abs() < 1e-12, "one bit for latent 0, none for latent 1");
        assert!((found.by_depth[0].bits - 1.0).abs() < 1e-12, "with one bin nothing is told of the value");
        assert!((found.by_depth[1].bits - 1.5).abs() < 1e-12, "half a bit more: it fires on half of the tokens");
        // With one bin, latent 0 is told as 2, 2, 0, 0 and latent 1 as 0.5.
        let (error, variance) = ((4.0 + 1.0 + 4.0 * 0.25) / 4.0, (16.0 + 1.0) / 4.0 - 1.25 * 1.25);
        assert!((found.by_depth[0].explained_variance - (1.0 - error / variance)).abs() < 1e-6);
        assert!(found.explained_variance > 0.99 && found.depth > 2);
        assert!(found.bits < 2.0 + 1e-9, "two values of a latent are never more than a bit apart");
    }
}
