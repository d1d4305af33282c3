//! How much of the variance do as many principal components explain as latents fire?

use serde::Serialize;
use tch::{Kind, Tensor};

use crate::error::Result;

/// Rows are taken into the covariance in f64 so many at a time.
const BLOCK: usize = 1024;

/// The covariance of rows, summed up in f64 in one pass.
pub(super) struct Covariance {
    width: usize,
    n: u64,
    /// The mean of the first rows: it is subtracted from all of them, so that little is lost in the difference of squares.
    shift: Option<Tensor>, // [width]
    sum: Tensor,      // [width]
    products: Tensor, // [width, width]
}

impl Covariance {
    pub(super) fn new(width: usize) -> Self {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Double, tch::Device::Cpu));
        let d = width as i64;
        Self { width, n: 0, shift: None, sum: zeros(&[d]), products: zeros(&[d, d]) }
    }

    /// Adds rows (`[n, width]`); those with a value that is not finite are left out.
    pub(super) fn add(&mut self, rows: &[f32]) -> Result<()> {
        for block in rows.chunks(BLOCK * self.width) {
            let finite: Vec<f32> = block
                .chunks_exact(self.width)
                .filter(|row| row.iter().all(|x| x.is_finite()))
                .flatten()
                .copied()
                .collect();
            let n = finite.len() / self.width;
            if n == 0 {
                continue;
            }
            let rows = Tensor::from_slice(&finite).to_kind(Kind::Double).f_view([n as i64, self.width as i64])?;
            let shift = self.shift.get_or_insert_with(|| rows.mean_dim(0, false, Kind::Double));
            let rows = rows.f_sub(shift)?; // [n, width]
            self.sum = self.sum.f_add(&rows.sum_dim_intlist(0, false, Kind::Double))?;
            self.products = self.products.f_addmm(&rows.tr(), &rows)?;
            self.n += n as u64;
        }
        Ok(())
    }

    /// The principal components.
    pub(super) fn components(&self) -> Result<Pca> {
        let n = self.n.max(1) as f64;
        let offset = self.sum.f_div_scalar(n)?; // [width]
        let covariance = self.products.f_div_scalar(n)?.f_sub(&offset.f_outer(&offset)?)?;
        let (values, vectors) = covariance.f_linalg_eigh("L")?;
        let mean = self.shift.as_ref().map_or_else(|| Ok(offset.copy()), |shift| shift.f_add(&offset))?;
        // Ascending; a variance below zero is rounding.
        let variances: Vec<f64> = numbers(&values)?.into_iter().rev().map(|value| value.max(0.0)).collect();
        let directions = vectors.tr().f_flip([0])?; // [component, width]
        Ok(Pca { mean: numbers(&mean)?, variances, directions: numbers(&directions)? })
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(tensor.f_contiguous()?.f_view([-1])?)?)
}

/// Principal components.
#[derive(Clone, Debug)]
pub(super) struct Pca {
    /// E x.
    pub(super) mean: Vec<f64>,
    /// The variance along each component, descending.
    pub(super) variances: Vec<f64>,
    /// The components, `[component, width]`; empty of several sites that were taken alone.
    pub(super) directions: Vec<f64>,
}

/// What [`Pca`] explains at some rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PcaMetrics {
    /// Components that are kept, for every token the same: the coder's mean L0, rounded.
    pub rank: usize,
    /// The part of the variance along them.
    pub explained_variance: f64,
    /// The variance along the others.
    pub mse: f64,
    /// Components that are needed to explain as much as the coder does.
    pub rank_of_equal_explained_variance: usize,
}

impl Pca {
    /// The components of several sites, each taken alone, in one order. Their directions are not kept.
    pub(super) fn together(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.swap_remove(0);
        }
        let mut variances: Vec<f64> = parts.iter().flat_map(|part| &part.variances).copied().collect();
        variances.sort_unstable_by(|a, b| b.total_cmp(a));
        Self { mean: parts.into_iter().flat_map(|part| part.mean).collect(), variances, directions: Vec::new() }
    }

    pub(super) fn total(&self) -> f64 {
        self.variances.iter().sum()
    }

    pub(super) fn metrics(&self, rank: usize, explained_variance: f64) -> PcaMetrics {
        let rank = rank.min(self.variances.len());
        let total = self.total();
        let mut kept = 0.0;
        let enough = self.variances.iter().position(|variance| {
            kept += variance;
            kept >= explained_variance * total
        });
        PcaMetrics {
            rank,
            explained_variance: self.variances[..rank].iter().sum::<f64>() / total,
            mse: self.variances[rank..].iter().sum(),
            rank_of_equal_explained_variance: enough.map_or(self.variances.len(), |at| at + 1),
        }
    }

    /// The fewest bits with which rows as many dimensions wide and as spread could be told with the mean error `mse`, if
    /// they were normal: the rate–distortion function, by reverse water-filling.
    pub(super) fn gaussian_bits(&self, mse: f64) -> f64 {
        if mse >= self.total() {
            return 0.0;
        }
        // Every component has the error `level`, or its variance where that is less.
        let (mut low, mut high) = (0.0, self.variances.first().copied().unwrap_or(0.0));
        for _ in 0..200 {
            let level = f64::midpoint(low, high);
            let error: f64 = self.variances.iter().map(|variance| variance.min(level)).sum();
            if error < mse {
                low = level;
            } else {
                high = level;
            }
        }
        let level = f64::midpoint(low, high);
        self.variances
            .iter()
            .filter(|&&variance| variance > level)
            .map(|variance| (variance / level).log2() / 2.0)
            .sum()
    }

    /// Rows on the plane of the first `rank` components.
    pub(super) fn project(&self, rank: usize, rows: &[f32], out: &mut [f32]) {
        let width = self.mean.len();
        for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let centered: Vec<f64> = row.iter().zip(&self.mean).map(|(&x, mean)| f64::from(x) - mean).collect();
            let mut sum = self.mean.clone();
            for direction in self.directions.chunks_exact(width).take(rank) {
                let along: f64 = direction.iter().zip(&centered).map(|(a, b)| a * b).sum();
                for (sum, direction) in sum.iter_mut().zip(direction) {
                    *sum += along * direction;
                }
            }
            for (out, sum) in out.iter_mut().zip(sum) {
                *out = sum as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Far from the origin, with standard deviations 3 along (0.6, 0.8, 0), 1 along (−0.8, 0.6, 0), 0.1 along the third.
    fn rows(n: usize) -> Vec<f32> {
        let mut random = Random::new(3);
        let mut rows = Vec::new();
        for _ in 0..n {
            let [a, b, c] = [3.0, 1.0, 0.1].map(|deviation| deviation * random.normal());
            rows.extend([500.0 + 0.6 * a - 0.8 * b, 0.8 * a + 0.6 * b, -70.0 + c].map(|x| x as f32));
        }
        rows
    }

    #[test]
    fn components_are_the_axes_of_the_cloud() {
        let mut covariance = Covariance::new(3);
        let rows = rows(20_000);
        covariance.add(&rows[..3]).unwrap();
        covariance.add(&[f32::NAN, 0.0, 0.0]).unwrap();
        covariance.add(&rows[3..]).unwrap();
        let pca = covariance.components().unwrap();
        for (variance, expected) in pca.variances.iter().zip([9.0, 1.0, 0.01]) {
            assert!((variance / expected - 1.0).abs() < 0.05, "{:?}", pca.variances);
        }
        assert!((pca.directions[0] * 0.6 + pca.directions[1] * 0.8).abs() > 0.999, "{:?}", pca.directions);
        assert!((pca.mean[0] - 500.0).abs() < 0.1 && (pca.mean[2] + 70.0).abs() < 0.1);
        let metrics = pca.metrics(1, 0.95);
        assert_eq!((metrics.rank, metrics.rank_of_equal_explained_variance), (1, 2));
        assert!((metrics.explained_variance - 9.0 / 10.01).abs() < 0.01);
        // What it says is what projecting leaves.
        let mut out = vec![0.0; rows.len()];
        pca.project(1, &rows, &mut out);
        let errors = rows.iter().zip(&out).map(|(x, y)| f64::from(x - y).powi(2));
        let mse = errors.sum::<f64>() / 20_000.0;
        assert!((mse / metrics.mse - 1.0).abs() < 1e-3, "{mse} {}", metrics.mse);
    }

    #[test]
    fn components_of_sites_are_put_in_one_order() {
        let part = |variances: &[f64], mean: f64| Pca {
            mean: vec![mean; 2],
            variances: variances.to_vec(),
            directions: vec![1.0; 4],
        };
        let all = Pca::together(vec![part(&[5.0, 1.0], 0.5), part(&[3.0, 2.0], 0.25)]);
        assert_eq!((&all.variances[..], &all.mean[..]), (&[5.0, 3.0, 2.0, 1.0][..], &[0.5, 0.5, 0.25, 0.25][..]));
        assert!((all.metrics(2, 0.9).explained_variance - 8.0 / 11.0).abs() < 1e-12);
        assert_eq!(Pca::together(vec![part(&[5.0, 1.0], 0.5)]).directions.len(), 4);
    }

    #[test]
    fn bits_of_a_normal_distribution_by_hand() {
        let pca = Pca { mean: Vec::new(), variances: vec![16.0, 4.0, 0.25], directions: Vec::new() };
        // Level 1: two bits for the first, one for the second; the third is left out and costs its variance.
        assert!((pca.gaussian_bits(2.25) - 3.0).abs() < 1e-9);
        assert_eq!(pca.gaussian_bits(30.0), 0.0);
    }
}
