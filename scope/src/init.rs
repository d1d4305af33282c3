//! Where does training begin: what are activations multiplied with, and what are the first weights?

use crate::{error::Result, optimizer::make_unit, random::Random, step::Weights};

/// Tokens from which the scale is estimated, at most. Its relative error is then below 1e-3 for any spread of norms that
/// occurs; SAELens takes 1,000 batches, four times as many.
const SCALE_TOKENS: usize = 1 << 20;
/// Rows from which the first `b_dec` is computed, at most (dictionary_learning takes its first batch).
const BIAS_ROWS: usize = 8192;
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
    Ok(Some(Estimate { scale: scale as f32, center }))
}

/// The first weights: decoder rows in random directions with norm 1, the encoder its transpose.
pub(crate) fn weights(d_sae: usize, center: Vec<f32>, seed: u64) -> Weights {
    let mut weights = Weights::zeros(center.len(), d_sae);
    let mut random = Random::new(seed);
    for latent in 0..d_sae {
        let row = weights.decoder.row_mut(latent);
        row.fill_with(|| random.normal() as f32);
        make_unit(row);
    }
    weights.encoder = weights.decoder.clone();
    weights.b_dec = center;
    weights
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

    #[test]
    fn the_median_is_not_moved_by_an_outlier() {
        let mut rows: Vec<f32> = (0..100).flat_map(|i| [1.0 + (i % 5) as f32 * 0.01, -2.0]).collect();
        rows.extend([1e6, 1e6]);
        let median = geometric_median(&rows, 2);
        assert!((median[0] - 1.02).abs() < 0.02 && (median[1] + 2.0).abs() < 0.02, "{median:?}");
    }

    #[test]
    fn first_weights_are_tied_unit_rows_of_the_seed() {
        let first = weights(7, vec![0.5; 5], 3);
        assert_eq!(first.encoder, first.decoder);
        for latent in 0..7 {
            assert!((crate::sae::norm(first.decoder.row(latent)) - 1.0).abs() < 1e-6);
        }
        assert_eq!(first, weights(7, vec![0.5; 5], 3));
        assert_ne!(first, weights(7, vec![0.5; 5], 4));
    }
}
