//! Where does training begin: what are activations multiplied with, and what are the first weights?

use crate::{
    error::Result,
    kernels::{add, center, dot, scale},
    layout::Layout,
    matrix::{Matrix, Right, matmul_between},
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

/// How many times the wanted number of latents fire before thresholds have learned anything, where there are thresholds …
const START_L0: usize = 8;
/// … but not more than this part of all latents. (Gemma Scope begins with a threshold near 0, where half of all latents fire,
/// which costs the sparse products all that they save.)
const START_FRACTION: f64 = 0.25;
/// How long the first reconstructions of a coder are that does not write what it reads, beside what they should be: its
/// encoder knows nothing of its decoder.
const UNTIED_NORM: f64 = 0.5;

/// What was measured at one hook point before the first step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Estimate {
    /// `√width / mean‖x‖`: SAELens's `expected_average_only_in`.
    pub(crate) scale: f32,
    /// The rows' geometric median, scaled: the first `b_dec`.
    pub(crate) center: Vec<f32>,
    /// A few of the rows, as they came: `[n, width]`.
    pub(crate) rows: Vec<f32>,
}

/// Measures a sample of rows at each of some hook points of these widths; `None` if there are none. Rows with a value that is
/// not finite at any of them are passed over.
pub(crate) fn estimate(
    batches: impl Iterator<Item = Result<Vec<Vec<f32>>>>,
    widths: &[usize],
    normalize: bool,
) -> Result<Option<Vec<Estimate>>> {
    let mut norms = vec![0.0_f64; widths.len()];
    let mut samples: Vec<Vec<f32>> = vec![Vec::new(); widths.len()];
    let mut n = 0_usize;
    for batch in batches {
        let batch = batch?;
        let n_rows = batch.first().map_or(0, |rows| rows.len() / widths[0]);
        for row in 0..n_rows {
            let row = |site: usize| &batch[site][row * widths[site]..][..widths[site]];
            let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            let of_row: Vec<f64> = (0..widths.len()).map(|site| norm(row(site))).collect();
            if !of_row.iter().all(|norm| norm.is_finite()) {
                continue;
            }
            n += 1;
            for (site, (total, norm)) in norms.iter_mut().zip(of_row).enumerate() {
                *total += norm;
                if n <= BIAS_ROWS {
                    samples[site].extend_from_slice(row(site));
                }
            }
        }
        if n >= SCALE_TOKENS {
            break;
        }
    }
    if norms.iter().all(|&norm| norm == 0.0) {
        return Ok(None);
    }
    let of_site = |((mut rows, norms), &width): ((Vec<f32>, f64), &usize)| {
        let scale = if normalize && norms > 0.0 { (width as f64).sqrt() / (norms / n as f64) } else { 1.0 };
        let center = geometric_median(&rows, width).into_iter().map(|x| (x * scale) as f32).collect();
        rows.truncate(ENCODER_ROWS * width);
        Estimate { scale: scale as f32, center, rows }
    };
    Ok(Some(samples.into_iter().zip(norms).zip(widths).map(of_site).collect()))
}

/// What an architecture's own numbers begin with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Start {
    /// A threshold above which about [`START_L0`] times the wanted number of latents fire.
    pub(crate) threshold: f32,
}

/// The estimates of the sites that a coder reads, and of those that it writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample<'a> {
    pub(crate) inputs: &'a [&'a Estimate],
    pub(crate) outputs: &'a [&'a Estimate],
}

impl Sample<'_> {
    fn n_rows(&self) -> usize {
        self.inputs.first().map_or(0, |site| site.rows.len() / site.center.len())
    }

    /// A row of some sites, scaled, less `center` if that is wanted.
    fn row(sites: &[&Estimate], row: usize, centered: bool) -> Vec<f32> {
        let mut out = Vec::new();
        for site in sites {
            let (width, first) = (site.center.len(), out.len());
            let zeros = vec![0.0; if centered { 0 } else { width }];
            out.resize(first + width, 0.0);
            let bias = if centered { &site.center } else { &zeros };
            center(&site.rows[row * width..][..width], site.scale, bias, &mut out[first..]);
        }
        out
    }
}

/// The first weights: decoder rows in random directions with norm 1. Where what is written is what is read, the encoder reads
/// the same directions, otherwise random ones; times the factor with which the `k` largest activations of each row reconstruct the sample
/// best. `b_dec` is the geometric median, and where that is not subtracted from the input, `b_enc` makes the mean
/// pre-activation 0.
pub(crate) fn weights(
    layout: &Layout,
    own: usize,
    sample: Sample<'_>,
    k: usize,
    seed: u64,
    workers: &Workers,
) -> (Weights, Start) {
    let mut weights = Weights::zeros(layout, own);
    let mut random = Random::new(seed);
    for group in &mut weights.groups {
        for latent in 0..group.decoder.rows() {
            let row = group.decoder.row_mut(latent);
            row.fill_with(|| random.normal() as f32);
            make_unit(row);
        }
    }
    for group in &mut weights.groups {
        // Where the columns that are read stand among those that are written.
        let read = group.layout.reads.start.saturating_sub(group.layout.writes.start);
        for latent in 0..group.encoder.rows() {
            let row = group.encoder.row_mut(latent);
            if layout.tied {
                row.copy_from_slice(&group.decoder.row(latent)[read..][..row.len()]);
            } else {
                row.fill_with(|| random.normal() as f32);
            }
            if !layout.is_autoencoder {
                make_unit(row);
            }
        }
    }
    weights.b_dec = sample.outputs.iter().flat_map(|site| &site.center).copied().collect();
    // In the pool, so that the product does not depend on how many threads libtorch has outside.
    let start = workers.install(|| scale_encoder(layout, sample, &mut weights, k));
    (weights, start)
}

/// `Σ⟨y − b_dec, ŷ⟩ / Σ‖ŷ‖²` over the sample, where `ŷ` is what the activations write, is what the encoder is multiplied with.
fn scale_encoder(layout: &Layout, sample: Sample<'_>, weights: &mut Weights, k: usize) -> Start {
    let (n, d_sae) = (sample.n_rows(), layout.d_sae());
    let mut inputs = Matrix::zeros(n, layout.d_in());
    for row in 0..n {
        inputs.row_mut(row).copy_from_slice(&Sample::row(sample.inputs, row, layout.is_autoencoder));
    }
    let mut pre_acts = Matrix::zeros(n, d_sae);
    for group in weights.groups.iter_mut().filter(|group| !group.layout.latents.is_empty()) {
        let (reads, latents) = (group.layout.reads.clone(), group.layout.latents.clone());
        let out = (pre_acts.as_mut_slice(), d_sae, latents.clone());
        let left = (inputs.as_slice(), layout.d_in(), reads);
        matmul_between(left, group.encoder.as_slice(), Right::Transposed, out);
        if !layout.is_autoencoder {
            for row in 0..n {
                for (bias, z) in group.b_enc.iter_mut().zip(&pre_acts.row(row)[latents.clone()]) {
                    *bias -= z / n as f32;
                }
            }
            for row in 0..n {
                add(&group.b_enc, &mut pre_acts.row_mut(row)[latents.clone()]);
            }
        }
    }
    let mut acts = SparseRows::new();
    let mut top_k = TopK::new(k);
    let mut of_group = Vec::new();
    let (mut with_target, mut with_itself, mut targets) = (0.0_f64, 0.0_f64, 0.0_f64);
    for row in 0..n {
        top_k.select(pre_acts.row(row), &mut acts);
        let (latents, values) = acts.row(row);
        let mut y = vec![0.0; layout.d_out()];
        weights.decode(latents, values, &mut of_group, &mut y);
        let target = Sample::row(sample.outputs, row, true);
        with_target += f64::from(dot(&target, &y));
        with_itself += f64::from(dot(&y, &y));
        targets += f64::from(dot(&target, &target));
    }
    let best = if layout.tied { with_target / with_itself } else { UNTIED_NORM * (targets / with_itself).sqrt() };
    let factor = if best.is_finite() && best > 0.0 { best as f32 } else { 1.0 };
    for group in &mut weights.groups {
        scale(group.encoder.as_mut_slice(), factor);
        scale(&mut group.b_enc, factor);
    }
    scale(pre_acts.as_mut_slice(), factor);
    let most = (START_FRACTION * d_sae as f64) as usize;
    let rank = n * k.saturating_mul(START_L0).min(most.max(1));
    let mut positive: Vec<f32> = pre_acts.as_slice().iter().copied().filter(|&z| z > 0.0).collect();
    let threshold =
        if rank < positive.len() { *positive.select_nth_unstable_by(rank, |a, b| b.total_cmp(a)).1 } else { 0.0 };
    Start { threshold }
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
        let sample = std::iter::once(Ok(vec![rows.clone()]));
        let estimate = estimate(sample, &[5], true).unwrap().unwrap().swap_remove(0);
        let norms: f32 = rows.chunks_exact(5).map(crate::sae::norm).sum();
        assert!((estimate.scale * norms / 100.0 - 5.0_f32.sqrt()).abs() < 1e-5, "the mean norm is √d_in");
        let layout = Layout::autoencoder(5, 7);
        let sample = Sample { inputs: &[&estimate], outputs: &[&estimate] };
        let first = |seed| weights(&layout, 0, sample, 3, seed, &workers);
        let (group, start) = (&first(3).0.groups[0], first(3).1);
        let factor = group.encoder.row(0)[0] / group.decoder.row(0)[0];
        for latent in 0..7 {
            assert!((crate::sae::norm(group.decoder.row(latent)) - 1.0).abs() < 1e-6);
            for (encoder, decoder) in group.encoder.row(latent).iter().zip(group.decoder.row(latent)) {
                assert!((encoder - factor * decoder).abs() < 1e-6);
            }
        }
        // The best factor for one direction alone is 1; for several that are not orthogonal it is less.
        assert!(factor > 0.1 && factor < 1.1, "{factor}");
        assert!(start.threshold > 0.0);
        assert_eq!(first(3), first(3));
        assert_ne!(first(3).0, first(4).0);
    }

    #[test]
    fn a_coder_between_sites_begins_without_a_mean_and_with_half_the_norm() {
        let workers = Workers::new(1).unwrap();
        let (x, y) = (structured_rows(200, 5, 8, 1), structured_rows(200, 6, 8, 2));
        let sites = estimate(std::iter::once(Ok(vec![x, y])), &[5, 6], true).unwrap().unwrap();
        let layout = Layout::transcoder([5, 6], 20, true);
        let sample = Sample { inputs: &[&sites[0]], outputs: &[&sites[1]] };
        let (weights, _) = weights(&layout, 0, sample, 3, 1, &workers);
        let group = &weights.groups[0];
        let mean = |latent: usize| {
            let z = |row| dot(&Sample::row(sample.inputs, row, false), group.encoder.row(latent)) + group.b_enc[latent];
            (0..200).map(z).sum::<f32>() / 200.0
        };
        assert!((0..20).all(|latent| mean(latent).abs() < 1e-4));
        assert_eq!((weights.b_dec.len(), weights.skips[0].rows(), weights.skips[0].cols()), (6, 6, 5));
        assert!(weights.skips[0].as_slice().iter().all(|&x| x == 0.0));
    }
}
