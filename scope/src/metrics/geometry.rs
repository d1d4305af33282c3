//! How alike are the directions of a dictionary?

use rayon::prelude::*;
use serde::Serialize;

use crate::{
    matrix::{Matrix, Right, matmul},
    random::Random,
    sae::norm,
    workers::Workers,
};

/// Latents whose nearest neighbour is looked for, at most; of a wider coder, so many drawn by the seed. Each is compared with
/// all latents.
pub const MAX_LATENTS: usize = 1 << 14;
/// Bins of [`Geometry::histogram`]: 0.05 each, from 0 to 1.
pub const COSINE_BINS: usize = 20;
/// From this cosine on, two latents are as good as the same.
pub const DUPLICATE: f64 = 0.95;

/// Rows that one thread multiplies at a time.
const BLOCK_ROWS: usize = 32;
/// Columns that they are multiplied with at a time: the product stays in the cache.
const BLOCK_COLUMNS: usize = 4096;

/// The largest cosine of each direction to another one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Geometry {
    /// Directions that were looked at, of those that are not zero.
    pub n: usize,
    /// Their mean largest cosine to another direction.
    pub mean_max_cosine: f64,
    /// The median of it.
    pub median_max_cosine: f64,
    /// The largest.
    pub max_cosine: f64,
    /// The part of directions that have another one within [`DUPLICATE`].
    pub duplicates: f64,
    /// How many have their largest cosine in 0–0.05, …, 0.95–1; those below 0 are in the first bin.
    pub histogram: [u64; COSINE_BINS],
    /// The mean that as many random directions of this width would have.
    pub random_mean_max_cosine: f64,
}

/// Looks at the rows of a matrix.
pub(super) fn geometry(directions: &Matrix, seed: u64, workers: &Workers) -> Geometry {
    let mut found = largest(directions, seed, workers);
    found.sort_by(f64::total_cmp);
    let n = found.len();
    let mut histogram = [0; COSINE_BINS];
    for &cosine in &found {
        histogram[((cosine * COSINE_BINS as f64).max(0.0) as usize).min(COSINE_BINS - 1)] += 1;
    }
    Geometry {
        n,
        mean_max_cosine: found.iter().sum::<f64>() / n as f64,
        median_max_cosine: found.get(n / 2).copied().unwrap_or(f64::NAN),
        max_cosine: found.last().copied().unwrap_or(f64::NAN),
        duplicates: found.iter().filter(|&&cosine| cosine >= DUPLICATE).count() as f64 / n as f64,
        histogram,
        random_mean_max_cosine: of_random_directions(directions.rows(), directions.cols()),
    }
}

/// The largest cosine of each of some rows to another one. Rows of zeros are left out.
fn largest(directions: &Matrix, seed: u64, workers: &Workers) -> Vec<f64> {
    let (n, width) = (directions.rows(), directions.cols());
    let norms: Vec<f32> = (0..n).map(|row| norm(directions.row(row))).collect();
    let mut chosen: Vec<usize> = (0..n).filter(|&row| norms[row] > 0.0).collect();
    if chosen.len() > MAX_LATENTS {
        let mut random = Random::new(seed);
        for i in 0..MAX_LATENTS {
            let other = i + random.below((chosen.len() - i) as u64) as usize;
            chosen.swap(i, other);
        }
        chosen.truncate(MAX_LATENTS);
        chosen.sort_unstable();
    }
    workers.install(|| {
        chosen
            .par_chunks(BLOCK_ROWS)
            .flat_map_iter(|chosen| {
                let rows: Vec<f32> = chosen.iter().flat_map(|&row| directions.row(row)).copied().collect();
                let mut largest = vec![f64::NEG_INFINITY; chosen.len()];
                let mut products = vec![0.0; chosen.len() * BLOCK_COLUMNS.min(n)];
                for first in (0..n).step_by(BLOCK_COLUMNS) {
                    let others = first..(first + BLOCK_COLUMNS).min(n);
                    let right = &directions.as_slice()[others.start * width..others.end * width];
                    let products = &mut products[..chosen.len() * others.len()];
                    matmul(&rows, right, Right::Transposed, products, [chosen.len(), width, others.len()]);
                    for ((&row, largest), products) in
                        chosen.iter().zip(&mut largest).zip(products.chunks_exact(others.len()))
                    {
                        for (other, &product) in others.clone().zip(products) {
                            if other != row && norms[other] > 0.0 {
                                let cosine = f64::from(product) / f64::from(norms[row]) / f64::from(norms[other]);
                                *largest = largest.max(cosine);
                            }
                        }
                    }
                }
                // A direction that is alone has no neighbour.
                largest.into_iter().filter(|cosine| cosine.is_finite())
            })
            .collect()
    })
}

/// The mean largest cosine of `n` independent random directions in `width` dimensions:
/// E[max] = 1 − ∫ F(t)ⁿ⁻¹ dt over [−1, 1], with F the distribution of the cosine of two of them, whose density in the angle
/// is ∝ cosʷ⁻² of it.
fn of_random_directions(n: usize, width: usize) -> f64 {
    /// Steps of both integrals.
    const STEPS: usize = 20_000;
    if width < 2 || n < 2 {
        return f64::NAN;
    }
    let step = std::f64::consts::PI / STEPS as f64;
    let angle = |i: usize| (i as f64 + 0.5) * step - std::f64::consts::FRAC_PI_2;
    let density = |i: usize| ((width - 2) as f64 * angle(i).cos().ln()).exp();
    let total: f64 = (0..STEPS).map(density).sum();
    let (mut below, mut integral) = (0.0, 0.0);
    for i in 0..STEPS {
        let at = density(i) / total;
        let distribution: f64 = below + at / 2.0;
        integral += distribution.powf((n - 1) as f64) * angle(i).cos() * step;
        below += at;
    }
    1.0 - integral
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_of_a_few_directions_by_hand() {
        let matrix = Matrix::from_slice(5, 2, &[2.0, 0.0, 3.0, 4.0, 0.0, 1.0, 0.0, 0.0, -1.0, 0.0]);
        let found = geometry(&matrix, 0, &Workers::new(1).unwrap());
        // 0.6, 0.8, 0.8, and the last one's nearest is at a right angle; zeros have no direction.
        assert_eq!(found.n, 4);
        assert!((found.mean_max_cosine - 2.2 / 4.0).abs() < 1e-6 && (found.max_cosine - 0.8).abs() < 1e-6);
        assert_eq!(found.duplicates, 0.0);
        assert_eq!((found.histogram[0], found.histogram[12] + found.histogram[11]), (1, 1));
    }

    #[test]
    fn random_directions_are_as_alike_as_the_formula_says_and_twins_are_found() {
        let mut random = Random::new(4);
        let mut matrix = Matrix::zeros(6000, 24);
        matrix.as_mut_slice().fill_with(|| random.normal() as f32);
        let workers = Workers::new(2).unwrap();
        let found = geometry(&matrix, 0, &workers);
        assert_eq!(found.n, 6000);
        assert!((found.mean_max_cosine - found.random_mean_max_cosine).abs() < 0.005, "{found:?}");
        let twin = matrix.row(17).to_vec();
        for (to, from) in matrix.row_mut(5000).iter_mut().zip(twin) {
            *to = 3.0 * from;
        }
        assert!((geometry(&matrix, 0, &workers).duplicates - 2.0 / 6000.0).abs() < 1e-9);
    }
}
