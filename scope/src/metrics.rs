//! How good is a coder on recorded activations? Definitions of `reference/sae.md` §5.1, accumulated in f64 over all tokens.

use std::ops::ControlFlow;

use data::{BatchOptions, BatchReader, HookPoint, Run};
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    sae::{BLOCK_ROWS, Scratch, SparseCoder},
    sparse::SparseRows,
    train::{BATCH, BUFFER},
    workers::Workers,
};

/// Bins of [`Metrics::density`]: half a decade each, from 10⁻⁸ to 1.
pub const DENSITY_BINS: usize = 16;

/// How a coder reconstructs `x`, the activations that it speaks of: of an autoencoder those that it reads, of a transcoder
/// those of its second hook point. Special tokens are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Tokens that were looked at.
    pub n_tokens: u64,
    /// E[number of latents that fire].
    pub l0: f64,
    /// E‖f‖₁.
    pub l1: f64,
    /// E‖x − x̂‖².
    pub mse: f64,
    /// 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²).
    pub explained_variance: f64,
    /// 1 − explained variance.
    pub fvu: f64,
    /// E[cos(x, x̂)].
    pub cosine: f64,
    /// E[‖x̂‖ / ‖x‖].
    pub l2_ratio: f64,
    /// E‖x̂‖² / E[x·x̂], below 1 where reconstructions shrink (Rajamanoharan et al., arXiv 2404.16014, eq. 10; SAELens).
    pub relative_reconstruction_bias: f64,
    /// Latents that never fired on these tokens.
    pub dead_features: usize,
    /// Their part of all latents.
    pub dead_fraction: f64,
    /// How many living latents fire on 10⁻⁸–10⁻⁷·⁵, …, 10⁻⁰·⁵–1 of the tokens.
    pub density: [u64; DENSITY_BINS],
}

/// What to evaluate on.
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// At most so many tokens, drawn by `seed`; `None` takes all.
    pub max_tokens: Option<u64>,
    /// Tokens whose norm exceeds this multiple of the median are left out; `None` keeps all.
    pub max_norm_multiple: Option<f64>,
    /// Which tokens, if not all.
    pub seed: u64,
    /// Threads; 0 is one for every core.
    pub threads: usize,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self { max_tokens: None, max_norm_multiple: Some(crate::train::MAX_NORM_MULTIPLE), seed: 0, threads: 0 }
    }
}

/// Measures a coder on a run: it reads the first hook point and speaks of the second, which for an autoencoder is the same.
/// `progress` is given the tokens done and breaks off with what was measured so far.
pub fn evaluate(
    run: &Run,
    hooks: [HookPoint; 2],
    coder: &dyn SparseCoder,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Metrics> {
    let [input, output] = hooks;
    for (hook, expected) in [(input, coder.d_in()), (output, coder.d_out())] {
        let width = run.hook_point(hook)?.width;
        if width != expected {
            return Err(Error::Width { expected, width, hook: hook.to_string() });
        }
    }
    let workers = Workers::new(options.threads)?;
    let batches = BatchOptions {
        batch_rows: BATCH,
        buffer_rows: BUFFER,
        seed: options.seed,
        epochs: 1,
        skip_special: true,
        max_norm_multiple: options.max_norm_multiple,
    };
    let mut sums = Sums::new(coder.d_out(), coder.d_sae());
    let read = if input == output { vec![input] } else { vec![input, output] };
    for batch in BatchReader::new(run, &read, batches)? {
        let batch = batch?;
        let (rows, targets) = (&batch.acts[0], &batch.acts[read.len() - 1]);
        let left = options.max_tokens.map_or(u64::MAX, |max| max - sums.n.min(max));
        let n = usize::try_from(left).map_or(batch.len(), |left| left.min(batch.len()));
        sums.add_rows(coder, &rows[..n * coder.d_in()], &targets[..n * coder.d_out()], &workers);
        if left == 0 || progress(sums.n).is_break() {
            break;
        }
    }
    if sums.n == 0 {
        return Err(Error::NoActivations { hook: input.to_string() });
    }
    Ok(sums.metrics())
}

/// Sums over tokens, from which the metrics follow.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    n: u64,
    l0: f64,
    l1: f64,
    x: Vec<f64>,
    x_square: f64,
    y_square: f64,
    x_dot_y: f64,
    error_square: f64,
    cosine: f64,
    ratio: f64,
    fired: Vec<u64>,
}

impl Sums {
    pub(crate) fn new(d_out: usize, d_sae: usize) -> Self {
        Self {
            n: 0,
            l0: 0.0,
            l1: 0.0,
            x: vec![0.0; d_out],
            x_square: 0.0,
            y_square: 0.0,
            x_dot_y: 0.0,
            error_square: 0.0,
            cosine: 0.0,
            ratio: 0.0,
            fired: vec![0; d_sae],
        }
    }

    /// Adds rows (`[n, d_in]`) with what they should become (`[n, d_out]`); those with a value that is not finite are left
    /// out.
    pub(crate) fn add_rows(&mut self, coder: &dyn SparseCoder, rows: &[f32], targets: &[f32], workers: &Workers) {
        let (d_in, d_out) = (coder.d_in(), coder.d_out());
        let parts: Vec<(Self, SparseRows)> = workers.install(|| {
            rows.par_chunks(BLOCK_ROWS * d_in)
                .zip(targets.par_chunks(BLOCK_ROWS * d_out))
                .map_init(Scratch::default, |scratch, (rows, targets)| {
                    let mut acts = SparseRows::new();
                    coder.encode(rows, scratch, &mut acts);
                    let mut out = vec![0.0; targets.len()];
                    coder.decode(&acts, rows, &mut out);
                    let mut part = Self::new(d_out, 0);
                    for (row, (x, y)) in targets.chunks_exact(d_out).zip(out.chunks_exact(d_out)).enumerate() {
                        part.add_row(x, y, acts.row(row).1);
                    }
                    (part, acts)
                })
                .collect()
        });
        for (part, acts) in parts {
            self.merge(&part);
            for &latent in acts.latents() {
                self.fired[latent as usize] += 1;
            }
        }
    }

    fn add_row(&mut self, x: &[f32], y: &[f32], acts: &[f32]) {
        let (mut xx, mut yy, mut xy, mut ee) = (0.0, 0.0, 0.0, 0.0);
        for (&x, &y) in x.iter().zip(y) {
            let (x, y) = (f64::from(x), f64::from(y));
            xx += x * x;
            yy += y * y;
            xy += x * y;
            ee += (x - y) * (x - y);
        }
        if !(xx.is_finite() && yy.is_finite()) {
            return;
        }
        self.n += 1;
        self.l0 += acts.len() as f64;
        self.l1 += acts.iter().map(|&act| f64::from(act.abs())).sum::<f64>();
        for (sum, &x) in self.x.iter_mut().zip(x) {
            *sum += f64::from(x);
        }
        self.x_square += xx;
        self.y_square += yy;
        self.x_dot_y += xy;
        self.error_square += ee;
        // A zero vector has no direction; it counts as cosine 0 and ratio 0.
        if xx > 0.0 {
            self.ratio += (yy / xx).sqrt();
            if yy > 0.0 {
                self.cosine += xy / (xx * yy).sqrt();
            }
        }
    }

    fn merge(&mut self, part: &Self) {
        self.n += part.n;
        self.l0 += part.l0;
        self.l1 += part.l1;
        for (sum, part) in self.x.iter_mut().zip(&part.x) {
            *sum += part;
        }
        self.x_square += part.x_square;
        self.y_square += part.y_square;
        self.x_dot_y += part.x_dot_y;
        self.error_square += part.error_square;
        self.cosine += part.cosine;
        self.ratio += part.ratio;
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let n = self.n as f64;
        let mean_square: f64 = self.x.iter().map(|sum| (sum / n) * (sum / n)).sum();
        let fvu = (self.error_square / n) / (self.x_square / n - mean_square);
        let dead_features = self.fired.iter().filter(|&&fired| fired == 0).count();
        let mut density = [0; DENSITY_BINS];
        for &fired in self.fired.iter().filter(|&&fired| fired > 0) {
            let bin = ((fired as f64 / n).log10() * 2.0).floor() + DENSITY_BINS as f64;
            density[(bin.max(0.0) as usize).min(DENSITY_BINS - 1)] += 1;
        }
        Metrics {
            n_tokens: self.n,
            l0: self.l0 / n,
            l1: self.l1 / n,
            mse: self.error_square / n,
            explained_variance: 1.0 - fvu,
            fvu,
            cosine: self.cosine / n,
            l2_ratio: self.ratio / n,
            relative_reconstruction_bias: self.y_square / self.x_dot_y,
            dead_features,
            dead_fraction: dead_features as f64 / self.fired.len() as f64,
            density,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Matrix, Sae};

    /// Two latents along the axes of the plane; what is negative is not reconstructed.
    fn axes() -> Sae {
        let unit = Matrix::from_slice(2, 2, &[1.0, 0.0, 0.0, 1.0]);
        Sae {
            w_enc: unit.clone(),
            w_dec: unit,
            b_enc: vec![0.0; 2],
            b_dec: vec![0.0; 2],
            activation: Activation::JumpRelu { threshold: vec![0.5; 2] },
            apply_b_dec_to_input: true,
            ..Sae::default()
        }
    }

    fn measured(rows: &[f32]) -> Metrics {
        let mut sums = Sums::new(2, 2);
        sums.add_rows(&axes(), rows, rows, &Workers::new(1).unwrap());
        sums.metrics()
    }

    #[test]
    fn by_hand() {
        // Reconstructed as (3, 4), (1, 0), (0, 0); the variance is 61/3 … with mean (4/3, 4/3).
        let metrics = measured(&[3.0, 4.0, 1.0, -1.0, 0.0, 1.0 / 4.0]);
        let (square, error) = (25.0 + 2.0 + 1.0 / 16.0, 1.0 + 1.0 / 16.0);
        let mean = [4.0 / 3.0, 3.25 / 3.0];
        let variance = square / 3.0 - mean[0] * mean[0] - mean[1] * mean[1];
        assert_eq!(metrics.n_tokens, 3);
        assert_eq!((metrics.l0, metrics.l1), (1.0, 8.0 / 3.0));
        assert!((metrics.mse - error / 3.0).abs() < 1e-12);
        assert!((metrics.explained_variance - (1.0 - error / 3.0 / variance)).abs() < 1e-12);
        assert!((metrics.cosine - (1.0 + 0.5_f64.sqrt()) / 3.0).abs() < 1e-12);
        assert!((metrics.relative_reconstruction_bias - 1.0).abs() < 1e-12);
        assert_eq!(metrics.dead_features, 0);
        assert_eq!(metrics.density[DENSITY_BINS - 1], 2, "2/3 and 1/3 are above 10^-0.5");
    }

    #[test]
    fn rows_that_are_not_finite_and_dead_latents() {
        let metrics = measured(&[3.0, 0.0, f32::NAN, 1.0, 1.0, 0.0]);
        assert_eq!(metrics.n_tokens, 2);
        assert_eq!((metrics.dead_features, metrics.dead_fraction), (1, 0.5));
        assert_eq!(metrics.explained_variance, 1.0);
    }
}
