//! Which random numbers does a seed give? Spelled out, so that a seed gives the same weights with every version of a dependency.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    generator: Pcg64,
    spare: Option<f64>,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { generator: Pcg64::seed_from_u64(seed), spare: None }
    }

    /// Uniform in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.generator.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// From the normal distribution, by Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // 1 − u is in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_mean_0_and_variance_1() {
        let mut random = Random::new(1);
        let normals: Vec<f64> = (0..100_000).map(|_| random.normal()).collect();
        let mean = normals.iter().sum::<f64>() / 1e5;
        let square = normals.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "{mean} {square}");
        assert_eq!(
            normals[..9],
            (0..9)
                .map({
                    let mut random = Random::new(1);
                    move |_| random.normal()
                })
                .collect::<Vec<_>>()
        );
    }
}
