//! Where does training begin: what are activations multiplied with, and what are the first weights?

use crate::{
    error::Result,
    kernels::{center, dot, scale, weighted_sum},
    matrix::{Matrix, Right, matmul},
    optimizer::make_unit,
    random::Random,
    sparse::SparseRows,
    step::Weights,
    topk::TopK,
    workers::Workers,
};

/// Tokens from which the scale is estimated, at most. Its relative error is then below 1e-3 for any spread of norms that
/// occurs; SAELens takes 1,000 batches, four times as many.
const SCALE_TOKENS: usize = 1 << 20;
/// Rows from which the first `b_dec` is computed, at most (dictionary_learning takes its first batch).
const BIAS_ROWS: usize = 8192;
/// Rows on which the encoder's first scale is chosen, at most.
const ENCODER_ROWS: usize = 512;
/// Iterations of Weiszfeld's algorithm at most, and the relative change at which it ends (dictionary_learning).
const WEISZFELD_ITERATIONS: usize = 100;
const WEISZFELD_TOLERANCE: f64 = 1e-5;

/// What was measured before the first step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Estimate {
    /// `√d_in / mean‖x‖`: SAELens's `expected_average_only_in`.
    pub(crate) scale: f32,
    /// The rows' geometric median, scaled: the first `b_dec`.
    pub(crate) center: Vec<f32>,
    /// A few of the rows, as they came: `[n, d_in]`.
    pub(crate) rows: Vec<f32>,
}

/// Reads a sample of rows (`[n, width]` each); `None` if there are none. Rows with a value that is not finite are passed over.
pub(crate) fn estimate(
    batches: impl Iterator<Item = Result<Vec<f32>>>,
    width: usize,
    normalize: bool,
) -> Result<Option<Estimate>> {
    let mut norms = 0.0_f64;
    let mut n = 0_usize;
    let mut sample: Vec<f32> = Vec::new();
    for rows in batches {
        for row in rows?.chunks_exact(width) {
            let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            if !norm.is_finite() {
                continue;
            }
            norms += norm;
            n += 1;
            if n <= BIAS_ROWS {
                sample.extend_from_slice(row);
            }
        }
        if n >= SCALE_TOKENS {
            break;
        }
    }
    if norms == 0.0 {
        return Ok(None);
    }
    let scale = if normalize { (width as f64).sqrt() / (norms / n as f64) } else { 1.0 };
    let center = geometric_median(&sample, width).into_iter().map(|x| (x * scale) as f32).collect();
    sample.truncate(ENCODER_ROWS * width);
    Ok(Some(Estimate { scale: scale as f32, center, rows: sample }))
}

/// The first weights: decoder rows in random directions with norm 1; the encoder its transpose, times the factor with which
/// the `k` largest activations of each row reconstruct the sample best.
pub(crate) fn weights(estimate: &Estimate, d_sae: usize, k: usize, seed: u64, workers: &Workers) -> Weights {
    let mut weights = Weights::zeros(estimate.center.len(), d_sae);
    let mut random = Random::new(seed);
    for latent in 0..d_sae {
        let row = weights.decoder.row_mut(latent);
        row.fill_with(|| random.normal() as f32);
        make_unit(row);
    }
    weights.encoder = weights.decoder.clone();
    weights.b_dec.clone_from(&estimate.center);
    // In the pool, so that the product does not depend on how many threads libtorch has outside.
    let factor = workers.install(|| best_factor(estimate, &weights, k));
    for latent in 0..d_sae {
        scale(weights.encoder.row_mut(latent), factor);
    }
    weights
}

/// `Σ⟨x − b_dec, y⟩ / Σ‖y‖²` over the sample, where `y` is what the activations reconstruct of `x − b_dec`.
fn best_factor(estimate: &Estimate, weights: &Weights, k: usize) -> f32 {
    let (d_in, d_sae) = (weights.d_in(), weights.d_sae());
    let n = estimate.rows.len() / d_in;
    let mut centered = Matrix::from_slice(n, d_in, &estimate.rows);
    for row in 0..n {
        let x = &estimate.rows[row * d_in..][..d_in];
        center(x, estimate.scale, &weights.b_dec, centered.row_mut(row));
    }
    let mut pre_acts = Matrix::zeros(n, d_sae);
    let (left, right) = (centered.as_slice(), weights.encoder.as_slice());
    matmul(left, right, Right::Transposed, pre_acts.as_mut_slice(), [n, d_in, d_sae]);
    let mut acts = SparseRows::new();
    let mut top_k = TopK::new(k);
    let (mut with_input, mut with_itself) = (0.0_f64, 0.0_f64);
    let mut y = vec![0.0; d_in];
    for row in 0..n {
        top_k.select(pre_acts.row(row), &mut acts);
        let (latents, values) = acts.row(row);
        y.fill(0.0);
        weighted_sum(latents, values, weights.decoder.as_slice(), &mut y);
        with_input += f64::from(dot(centered.row(row), &y));
        with_itself += f64::from(dot(&y, &y));
    }
    let factor = (with_input / with_itself) as f32;
    if factor.is_finite() && factor > 0.0 { factor } else { 1.0 }
}

/// The point with the smallest mean distance from the rows (Weiszfeld): unlike the mean, it is not moved by a few large rows.
fn geometric_median(rows: &[f32], width: usize) -> Vec<f64> {
    let n = (rows.len() / width) as f64;
    let mut median = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (sum, &x) in median.iter_mut().zip(row) {
            *sum += f64::from(x) / n;
        }
    }
    for _ in 0..WEISZFELD_ITERATIONS {
        let mut sum = vec![0.0; width];
        let mut weights = 0.0;
        for row in rows.chunks_exact(width) {
            let square: f64 = row.iter().zip(&median).map(|(&x, m)| (f64::from(x) - m).powi(2)).sum();
            // A row at the median itself would have infinite weight.
            let weight = 1.0 / square.sqrt().max(1e-10);
            weights += weight;
            for (sum, &x) in sum.iter_mut().zip(row) {
                *sum += weight * f64::from(x);
            }
        }
        let (mut moved, mut length) = (0.0, 0.0);
        for (median, sum) in median.iter_mut().zip(sum) {
            let next = sum / weights;
            moved += (next - *median).powi(2);
            length += next * next;
            *median = next;
        }
        if moved.sqrt() <= WEISZFELD_TOLERANCE * length.sqrt() {
            break;
        }
    }
    median
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::structured_rows;

    #[test]
    fn the_median_is_not_moved_by_an_outlier() {
        let mut rows: Vec<f32> = (0..100).flat_map(|i| [1.0 + (i % 5) as f32 * 0.01, -2.0]).collect();
        rows.extend([1e6, 1e6]);
        let median = geometric_median(&rows, 2);
        assert!((median[0] - 1.02).abs() < 0.02 && (median[1] + 2.0).abs() < 0.02, "{median:?}");
    }

    #[test]
    fn first_weights_are_tied_unit_rows_of_the_seed() {
        let workers = Workers::new(1).unwrap();
        let rows = structured_rows(100, 5, 8, 1);
        let sample = std::iter::once(Ok(rows.clone()));
        let estimate = estimate(sample, 5, true).unwrap().unwrap();
        let norms: f32 = rows.chunks_exact(5).map(crate::sae::norm).sum();
        assert!((estimate.scale * norms / 100.0 - 5.0_f32.sqrt()).abs() < 1e-5, "the mean norm is √d_in");
        let first = weights(&estimate, 7, 3, 3, &workers);
        let factor = first.encoder.row(0)[0] / first.decoder.row(0)[0];
        for latent in 0..7 {
            assert!((crate::sae::norm(first.decoder.row(latent)) - 1.0).abs() < 1e-6);
            for (encoder, decoder) in first.encoder.row(latent).iter().zip(first.decoder.row(latent)) {
                assert!((encoder - factor * decoder).abs() < 1e-6);
            }
        }
        // The best factor for one direction alone is 1; for several that are not orthogonal it is less.
        assert!(factor > 0.1 && factor < 1.1, "{factor}");
        assert!((best_factor(&estimate, &first, 3) - 1.0).abs() < 1e-4, "nothing is left to gain");
        assert_eq!(first, weights(&estimate, 7, 3, 3, &workers));
        assert_ne!(first, weights(&estimate, 7, 3, 4, &workers));
    }
}
