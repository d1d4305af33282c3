//! Which sums over tokens, in f64, do the metrics of `reference/sae.md` §5.1 follow from?

use std::ops::Range;

use data::HookPoint;
use rayon::prelude::*;
use serde::Serialize;

use super::SiteMetrics;
use crate::{
    sae::{BLOCK_ROWS, Scratch, SparseCoder},
    sparse::SparseRows,
    workers::Workers,
};

/// Bins of [`Metrics::density`]: half a decade each, from 10⁻⁸ to 1.
pub const DENSITY_BINS: usize = 16;

/// How a coder reconstructs `x`, the activations that it speaks of: of an autoencoder those that it reads, of a transcoder
/// those of its second hook point. Special tokens are left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Tokens that were looked at.
    pub n_tokens: u64,
    /// Tokens left out because a value of theirs, or of their reconstruction, is not finite.
    pub not_finite: u64,
    /// E[number of latents that fire].
    pub l0: f64,
    /// E‖f‖₁.
    pub l1: f64,
    /// E‖x − x̂‖², summed over the dimensions.
    pub mse: f64,
    /// 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²): the variance is about the mean vector, and the quotient is that of two means over
    /// all tokens. Not the mean of quotients of single tokens ("legacy" in SAEBench), nor the variance about zero.
    pub explained_variance: f64,
    /// 1 − explained variance.
    pub fvu: f64,
    /// E[cos(x, x̂)].
    pub cosine: f64,
    /// E[‖x̂‖ / ‖x‖].
    pub l2_ratio: f64,
    /// E‖x̂‖² / E[x·x̂], below 1 where reconstructions shrink (Rajamanoharan et al., arXiv 2404.16014, eq. 10; SAELens).
    pub relative_reconstruction_bias: f64,
    /// E[x·x̂] / E‖x̂‖², the inverse: what reconstructions are best multiplied by.
    pub best_scale: f64,
    /// Latents that never fired on these tokens.
    pub dead_features: usize,
    /// Their part of all latents.
    pub dead_fraction: f64,
    /// The part of all latents that fire on more than 1 % of the tokens.
    pub above_1_percent: f64,
    /// The part of all latents that fire on more than 10 % of the tokens.
    pub above_10_percent: f64,
    /// How many living latents fire on 10⁻⁸–10⁻⁷·⁵, …, 10⁻⁰·⁵–1 of the tokens.
    pub density: [u64; DENSITY_BINS],
}

/// Sums over rows, without what is counted for each latent.
#[derive(Clone, Debug, Default)]
pub(super) struct Moments {
    pub(super) n: u64,
    not_finite: u64,
    l0: f64,
    l1: f64,
    x: Vec<f64>,
    y: Vec<f64>,
    x_square: f64,
    y_square: f64,
    x_dot_y: f64,
    error_square: f64,
    cosine: f64,
    ratio: f64,
}

impl Moments {
    pub(super) fn new(width: usize) -> Self {
        Self { x: vec![0.0; width], y: vec![0.0; width], ..Self::default() }
    }

    /// Adds a row, its reconstruction, and the activations of the latents that fire. Whether all of it is finite; if not,
    /// it is only counted.
    pub(super) fn add(&mut self, x: &[f32], y: &[f32], acts: &[f32]) -> bool {
        let (mut xx, mut yy, mut xy, mut ee) = (0.0, 0.0, 0.0, 0.0);
        for (&x, &y) in x.iter().zip(y) {
            let (x, y) = (f64::from(x), f64::from(y));
            xx += x * x;
            yy += y * y;
            xy += x * y;
            ee += (x - y) * (x - y);
        }
        if !(xx.is_finite() && yy.is_finite()) {
            self.not_finite += 1;
            return false;
        }
        self.n += 1;
        self.l0 += acts.len() as f64;
        self.l1 += acts.iter().map(|&act| f64::from(act.abs())).sum::<f64>();
        for (sum, &x) in self.x.iter_mut().zip(x) {
            *sum += f64::from(x);
        }
        for (sum, &y) in self.y.iter_mut().zip(y) {
            *sum += f64::from(y);
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
        true
    }

    pub(super) fn merge(&mut self, part: &Self) {
        for (sums, parts) in [(&mut self.x, &part.x), (&mut self.y, &part.y)] {
            if sums.is_empty() {
                sums.resize(parts.len(), 0.0);
            }
            for (sum, part) in sums.iter_mut().zip(parts) {
                *sum += part;
            }
        }
        self.n += part.n;
        self.not_finite += part.not_finite;
        self.l0 += part.l0;
        self.l1 += part.l1;
        self.x_square += part.x_square;
        self.y_square += part.y_square;
        self.x_dot_y += part.x_dot_y;
        self.error_square += part.error_square;
        self.cosine += part.cosine;
        self.ratio += part.ratio;
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.n as f64
    }

    pub(super) fn l0(&self) -> f64 {
        self.mean(self.l0)
    }

    pub(super) fn mse(&self) -> f64 {
        self.mean(self.error_square)
    }

    pub(super) fn cosine(&self) -> f64 {
        self.mean(self.cosine)
    }

    /// E x.
    pub(super) fn mean_x(&self) -> Vec<f64> {
        self.x.iter().map(|&sum| self.mean(sum)).collect()
    }

    /// E‖x‖² − ‖E x‖².
    pub(super) fn variance(&self) -> f64 {
        self.mean(self.x_square) - self.x.iter().map(|&sum| self.mean(sum).powi(2)).sum::<f64>()
    }

    pub(super) fn fvu(&self) -> f64 {
        self.mse() / self.variance()
    }

    /// The best number `s` and constant vector `c` of `c + s·x̂`, by least squares.
    pub(super) fn refit(&self) -> (f64, Vec<f64>) {
        let (covariance, of_y) = self.covariance();
        let scale = if of_y > 0.0 { covariance / of_y } else { 0.0 };
        let means = self.x.iter().zip(&self.y).map(|(&x, &y)| self.mean(x) - scale * self.mean(y));
        (scale, means.collect())
    }

    /// The explained variance of `c + s·x̂` with the best constant vector `c` and number `s`: cov(x, x̂)² / (var x · var x̂).
    /// It is never negative: a dictionary is not blamed for how long its vectors are.
    pub(super) fn refitted_explained_variance(&self) -> f64 {
        let (covariance, of_y) = self.covariance();
        if of_y > 0.0 { covariance * covariance / (self.variance() * of_y) } else { 0.0 }
    }

    /// cov(x, x̂) and var x̂, summed over the dimensions.
    fn covariance(&self) -> (f64, f64) {
        let means = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(&a, &b)| self.mean(a) * self.mean(b)).sum() };
        let of_y = self.mean(self.y_square) - means(&self.y, &self.y);
        // A reconstruction that never changes explains nothing; what is left of its variance is rounding.
        if of_y <= self.mean(self.y_square) * 1e-14 {
            return (0.0, 0.0);
        }
        (self.mean(self.x_dot_y) - means(&self.x, &self.y), of_y)
    }
}

/// Which of several groups each row belongs to, if to any.
pub(super) type Grouping<'a> = &'a (dyn Fn(usize) -> Option<usize> + Sync);

/// Sums over tokens, from which the metrics follow.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    pub(super) all: Moments,
    /// The columns of each hook point that is written and its sums, where there are several.
    sites: Vec<(Range<usize>, Moments)>,
    fired: Vec<u64>,
}

impl Sums {
    /// For hook points of these widths that are written.
    pub(super) fn new(outputs: &[usize], d_sae: usize) -> Self {
        let mut end = 0;
        let site = |&width: &usize| {
            end += width;
            (end - width..end, Moments::new(width))
        };
        let sites: Vec<_> = outputs.iter().map(site).collect();
        let all = Moments::new(end);
        Self { all, sites: if sites.len() > 1 { sites } else { Vec::new() }, fired: vec![0; d_sae] }
    }

    /// Of each hook point, where there are several.
    pub(super) fn sites(&self, hooks: &[HookPoint]) -> Vec<SiteMetrics> {
        let of = |(&hook_point, (_, sums)): (&HookPoint, &(Range<usize>, Moments))| SiteMetrics {
            hook_point,
            mse: sums.mse(),
            explained_variance: 1.0 - sums.fvu(),
            cosine: sums.cosine(),
        };
        hooks.iter().zip(&self.sites).map(of).collect()
    }

    /// Adds rows (`[n, d_in]`) with what they should become (`[n, d_out]`), and adds them to the group of each as well.
    /// Returns the activations.
    pub(super) fn add_rows(
        &mut self,
        coder: &dyn SparseCoder,
        rows: &[f32],
        targets: &[f32],
        groups: &mut [(&mut Vec<Moments>, Grouping<'_>)],
        workers: &Workers,
    ) -> SparseRows {
        let (d_in, d_out) = (coder.d_in(), coder.d_out());
        let groupings: Vec<Grouping<'_>> = groups.iter().map(|(_, grouping)| *grouping).collect();
        let sites: Vec<Range<usize>> = self.sites.iter().map(|(columns, _)| columns.clone()).collect();
        let parts: Vec<Part> = workers.install(|| {
            rows.par_chunks(BLOCK_ROWS * d_in)
                .zip(targets.par_chunks(BLOCK_ROWS * d_out))
                .enumerate()
                .map_init(Scratch::default, |scratch, (block, (rows, targets))| {
                    let mut acts = SparseRows::new();
                    coder.encode(rows, scratch, &mut acts);
                    let mut out = vec![0.0; targets.len()];
                    coder.decode(&acts, rows, &mut out);
                    Part::of(acts, targets, &out, d_out, block * BLOCK_ROWS, &groupings, &sites)
                })
                .collect()
        });
        let mut all = SparseRows::new();
        for part in parts {
            self.all.merge(&part.all);
            for ((_, sums), part) in self.sites.iter_mut().zip(&part.sites) {
                sums.merge(part);
            }
            for ((sums, _), parts) in groups.iter_mut().zip(&part.groups) {
                for (group, part) in parts.iter().enumerate().filter(|(_, part)| part.n > 0) {
                    if sums.len() <= group {
                        sums.resize_with(group + 1, Moments::default);
                    }
                    sums[group].merge(part);
                }
            }
            for (row, (latents, _)) in part.acts.iter().enumerate() {
                if part.finite[row] {
                    for &latent in latents {
                        self.fired[latent as usize] += 1;
                    }
                }
            }
            all.append(&part.acts);
        }
        all
    }

    pub(super) fn metrics(&self) -> Metrics {
        let sums = &self.all;
        let n = sums.n as f64;
        let part = |chosen: &dyn Fn(u64) -> bool| self.fired.iter().filter(|&&fired| chosen(fired)).count();
        let share = |count: usize| count as f64 / self.fired.len() as f64;
        let dead_features = part(&|fired| fired == 0);
        let mut density = [0; DENSITY_BINS];
        for &fired in self.fired.iter().filter(|&&fired| fired > 0) {
            let bin = ((fired as f64 / n).log10() * 2.0).floor() + DENSITY_BINS as f64;
            density[(bin.max(0.0) as usize).min(DENSITY_BINS - 1)] += 1;
        }
        Metrics {
            n_tokens: sums.n,
            not_finite: sums.not_finite,
            l0: sums.l0(),
            l1: sums.l1 / n,
            mse: sums.mse(),
            explained_variance: 1.0 - sums.fvu(),
            fvu: sums.fvu(),
            cosine: sums.cosine(),
            l2_ratio: sums.ratio / n,
            relative_reconstruction_bias: sums.y_square / sums.x_dot_y,
            best_scale: sums.x_dot_y / sums.y_square,
            dead_features,
            dead_fraction: share(dead_features),
            above_1_percent: share(part(&|fired| fired as f64 > 0.01 * n)),
            above_10_percent: share(part(&|fired| fired as f64 > 0.1 * n)),
            density,
        }
    }
}

/// The sums of a block of rows.
struct Part {
    all: Moments,
    /// By hook point, where there are several.
    sites: Vec<Moments>,
    /// By grouping, then by group.
    groups: Vec<Vec<Moments>>,
    acts: SparseRows,
    finite: Vec<bool>,
}

impl Part {
    fn of(
        acts: SparseRows,
        targets: &[f32],
        out: &[f32],
        d_out: usize,
        first_row: usize,
        groupings: &[Grouping<'_>],
        columns: &[Range<usize>],
    ) -> Self {
        let mut all = Moments::new(d_out);
        let mut sites: Vec<Moments> = columns.iter().map(|columns| Moments::new(columns.len())).collect();
        let mut groups = vec![Vec::new(); groupings.len()];
        let mut finite = Vec::with_capacity(acts.n_rows());
        for (row, (x, y)) in targets.chunks_exact(d_out).zip(out.chunks_exact(d_out)).enumerate() {
            let values = acts.row(row).1;
            finite.push(all.add(x, y, values));
            for (sums, columns) in sites.iter_mut().zip(columns).filter(|_| finite[row]) {
                sums.add(&x[columns.clone()], &y[columns.clone()], &[]);
            }
            for (sums, grouping) in groups.iter_mut().zip(groupings) {
                if let Some(group) = grouping(first_row + row) {
                    if sums.len() <= group {
                        sums.resize_with(group + 1, Moments::default);
                    }
                    if sums[group].x.is_empty() {
                        sums[group] = Moments::new(d_out);
                    }
                    sums[group].add(x, y, values);
                }
            }
        }
        Self { all, sites, groups, acts, finite }
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
        let mut sums = Sums::new(&[2], 2);
        sums.add_rows(&axes(), rows, rows, &mut [], &Workers::new(1).unwrap());
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
        assert!((metrics.l2_ratio - (1.0 + 0.5_f64.sqrt()) / 3.0).abs() < 1e-12);
        assert!((metrics.relative_reconstruction_bias - 1.0).abs() < 1e-12);
        assert_eq!(metrics.dead_features, 0);
        assert_eq!(metrics.density[DENSITY_BINS - 1], 2, "2/3 and 1/3 are above 10^-0.5");
        assert_eq!((metrics.above_1_percent, metrics.above_10_percent), (1.0, 1.0));
    }

    #[test]
    fn shrinking_shows_in_the_bias_and_its_inverse() {
        let mut coder = axes();
        crate::kernels::scale(coder.w_dec.as_mut_slice(), 0.5);
        let rows = [3.0, 4.0, 1.0, 2.0];
        let mut sums = Sums::new(&[2], 2);
        sums.add_rows(&coder, &rows, &rows, &mut [], &Workers::new(1).unwrap());
        let metrics = sums.metrics();
        assert!((metrics.relative_reconstruction_bias - 0.5).abs() < 1e-12);
        assert!((metrics.best_scale - 2.0).abs() < 1e-12);
        assert!((metrics.l2_ratio - 0.5).abs() < 1e-7);
        assert!(metrics.explained_variance < 0.0, "far off, because the mean is shrunk too");
        assert!((sums.all.refitted_explained_variance() - 1.0).abs() < 1e-9, "right but for scale and constant");
    }

    #[test]
    fn rows_that_are_not_finite_and_dead_latents() {
        let metrics = measured(&[3.0, 0.0, f32::INFINITY, 1.0, 1.0, 0.0]);
        assert_eq!((metrics.n_tokens, metrics.not_finite), (2, 1));
        assert_eq!((metrics.dead_features, metrics.dead_fraction), (1, 0.5), "what fires on such a row does not count");
        assert_eq!(metrics.explained_variance, 1.0);
    }

    #[test]
    fn groups_are_the_parts_of_the_whole() {
        let rows: Vec<f32> = (0..1200).map(|i| ((i * 37 % 101) as f32 - 30.0) / 20.0).collect();
        let mut sums = Sums::new(&[2], 2);
        let mut groups = Vec::new();
        let workers = Workers::new(2).unwrap();
        sums.add_rows(&axes(), &rows, &rows, &mut [(&mut groups, &|row| Some(row % 3))], &workers);
        assert_eq!(groups.iter().map(|group| group.n).sum::<u64>(), 600);
        let mut whole = Moments::default();
        for group in &groups {
            whole.merge(group);
        }
        assert!((whole.fvu() - sums.all.fvu()).abs() < 1e-12);
        // Of the second group alone.
        let alone: Vec<f32> = rows.chunks_exact(2).skip(1).step_by(3).flatten().copied().collect();
        let alone = measured(&alone);
        assert!((1.0 - groups[1].fvu() - alone.explained_variance).abs() < 1e-12);
        assert_eq!(groups[1].l0(), alone.l0);
    }
}
