//! How large are the activations of a hook point?
//!
//! Sums over rows are float64 and do not grow with the corpus. Special tokens are kept apart:
//! the norm of a beginning-of-sequence token is often a thousand times that of the others, and would be all that a sum shows.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Dtype, convert};

/// Bins of the norm histogram per octave: the median norm is exact to a factor of 2^(1/64), about 1.1 %.
pub const NORM_BINS_PER_OCTAVE: usize = 64;

/// The least norm that has a bin of its own, as a power of two; zero and less goes to the first bin.
const LEAST_OCTAVE: i32 = -40;
const N_OCTAVES: usize = 80;
const N_BINS: usize = N_OCTAVES * NORM_BINS_PER_OCTAVE;

/// Statistics of one hook point over the whole run, of the numbers as they are stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Rows that count: tokens that are not special, with finite numbers only.
    pub n: u64,
    /// `[width]`, over those rows.
    pub sum: Vec<f64>,
    /// Σ‖x‖²
    pub sum_sq_norm: f64,
    /// Exact to about 1 %, see [`NORM_BINS_PER_OCTAVE`].
    pub median_norm: f64,
    pub max_abs: f64,
    /// Rows of special tokens, which are left out of everything above.
    #[serde(default)]
    pub n_special: u64,
    #[serde(default)]
    pub max_abs_special: f64,
    /// Numbers that did not fit the stored format, of all rows.
    #[serde(default)]
    pub saturated: u64,
    /// Rows with a NaN or an infinity, which are left out of everything above.
    #[serde(default)]
    pub nonfinite: u64,
    /// Σ‖x − x̂‖² over the rows that count, x as computed and x̂ as stored: 0 where both have the same dtype.
    /// `None` where an older recorder did not sum it up.
    #[serde(default)]
    pub sum_sq_error: Option<f64>,
}

/// What a shard contributes to [`Statistics`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardStatistics {
    pub n: u64,
    pub sum: Vec<f64>,
    pub sum_sq_norm: f64,
    /// `(bin, rows)` of the bins that are not empty.
    pub norm_histogram: Vec<(u16, u64)>,
    pub max_abs: f64,
    pub n_special: u64,
    pub max_abs_special: f64,
    pub saturated: u64,
    pub nonfinite: u64,
    #[serde(default)]
    pub sum_sq_error: Option<f64>,
}

impl Statistics {
    /// The mean of the rows that count, `[width]`; zeros where there are none.
    pub fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.n.max(1) as f64).collect()
    }

    /// How much of the variance of the rows as computed the rows as stored explain:
    /// 1 − E‖x − x̂‖² / (E‖x̂‖² − ‖E x̂‖²), which is 1 where nothing was rounded.
    ///
    /// The variance is that of the stored rows, which differs from that of the computed ones by less than their error.
    /// `None` where it is not known, or nothing varies.
    pub fn storage_explained_variance(&self) -> Option<f64> {
        let n = self.n.max(1) as f64;
        let variance = self.sum_sq_norm - self.sum.iter().map(|sum| sum * sum).sum::<f64>() / n;
        let error = self.sum_sq_error?;
        if error == 0.0 { Some(1.0) } else { (variance > 0.0).then(|| 1.0 - error / variance) }
    }
}

impl ShardStatistics {
    /// Statistics of no rows.
    pub fn new(width: usize) -> Self {
        Self { sum: vec![0.0; width], sum_sq_error: Some(0.0), ..Self::default() }
    }

    /// Adds the rows of another shard of the same width.
    pub fn merge(&mut self, other: &Self) {
        self.n += other.n;
        self.sum.iter_mut().zip(&other.sum).for_each(|(sum, x)| *sum += x);
        self.sum_sq_norm += other.sum_sq_norm;
        let mut histogram = dense(&self.norm_histogram);
        for &(bin, rows) in &other.norm_histogram {
            histogram[usize::from(bin).min(N_BINS - 1)] += rows;
        }
        self.norm_histogram = sparse(&histogram);
        self.max_abs = self.max_abs.max(other.max_abs);
        self.n_special += other.n_special;
        self.max_abs_special = self.max_abs_special.max(other.max_abs_special);
        self.saturated += other.saturated;
        self.nonfinite += other.nonfinite;
        self.sum_sq_error = self.sum_sq_error.zip(other.sum_sq_error).map(|(sum, part)| sum + part);
    }
}

/// What is said of a run, out of what its shards contributed.
pub(crate) fn finish(total: &ShardStatistics) -> Statistics {
    Statistics {
        n: total.n,
        sum: total.sum.clone(),
        sum_sq_norm: total.sum_sq_norm,
        median_norm: median(&total.norm_histogram, total.n),
        max_abs: total.max_abs,
        n_special: total.n_special,
        max_abs_special: total.max_abs_special,
        saturated: total.saturated,
        nonfinite: total.nonfinite,
        sum_sq_error: total.sum_sq_error,
    }
}

/// Adds up rows as they are written.
#[derive(Debug)]
pub(crate) struct Accumulator {
    width: usize,
    dtype: Dtype,
    histogram: Vec<u64>,
    total: ShardStatistics,
    /// Numbers of a row that is not stored as f32.
    numbers: Vec<f32>,
    /// Numbers of a row as it was computed, where it was computed in another format.
    computed: Vec<f32>,
}

/// What rows were before they were stored.
#[derive(Debug)]
pub(crate) enum Before {
    /// The same numbers.
    Same,
    /// Numbers in another format.
    Computed { dtype: Dtype, rows: Bytes },
    /// Rows of another run, which knows Σ‖x − x̂‖² or not.
    Stored { sum_sq_error: Option<f64> },
}

impl Accumulator {
    pub(crate) fn new(width: usize, dtype: Dtype) -> Self {
        Self {
            width,
            dtype,
            histogram: vec![0; N_BINS],
            total: ShardStatistics::new(width),
            numbers: Vec::with_capacity(width),
            computed: Vec::with_capacity(width),
        }
    }

    /// Adds stored rows; `special` tells of each row whether its token is special.
    pub(crate) fn add(&mut self, bytes: &[u8], scales: &[f32], special: &[bool], before: &Before) {
        let computed = match before {
            Before::Same => None,
            Before::Computed { dtype, rows } => Some((*dtype, rows)),
            Before::Stored { sum_sq_error } => {
                let known = self.total.sum_sq_error;
                self.total.sum_sq_error = known.zip(*sum_sq_error).map(|(sum, part)| sum + part);
                None
            }
        };
        let row_bytes = self.width * self.dtype.size();
        if self.dtype == Dtype::F32
            && computed.is_none()
            && cfg!(target_endian = "little")
            && let Ok(numbers) = bytemuck::try_cast_slice::<u8, f32>(bytes)
        {
            // Nothing to convert and nothing to copy; a buffer that is not aligned takes the other way.
            for (i, row) in numbers.chunks_exact(self.width).enumerate() {
                self.add_row(row, special.get(i).copied().unwrap_or(false));
            }
            return;
        }
        let mut numbers = std::mem::take(&mut self.numbers);
        let mut original = std::mem::take(&mut self.computed);
        for (i, row) in bytes.chunks_exact(row_bytes).enumerate() {
            numbers.clear();
            convert::append_f32(self.dtype, self.width, row, scales.get(i..=i).unwrap_or_default(), &mut numbers);
            let counts = self.add_row(&numbers, special.get(i).copied().unwrap_or(false));
            if let Some((dtype, rows)) = computed.filter(|_| counts) {
                let row_bytes = self.width * dtype.size();
                let row = rows.get(i * row_bytes..(i + 1) * row_bytes).unwrap_or_default();
                original.clear();
                convert::append_f32(dtype, self.width, row, &[], &mut original);
                self.add_error(&original, &numbers);
            }
        }
        self.numbers = numbers;
        self.computed = original;
    }

    /// Adds ‖x − x̂‖². What was not finite has no distance; it is counted as saturated.
    fn add_error(&mut self, computed: &[f32], stored: &[f32]) {
        let error: f64 = computed.iter().zip(stored).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
        if let Some(sum) = self.total.sum_sq_error.as_mut().filter(|_| error.is_finite()) {
            *sum += error;
        }
    }

    pub(crate) fn add_saturated(&mut self, numbers: u64) {
        self.total.saturated += numbers;
    }

    pub(crate) fn finish(mut self) -> ShardStatistics {
        self.total.norm_histogram = sparse(&self.histogram);
        self.total
    }

    /// Says whether the row counts.
    fn add_row(&mut self, row: &[f32], special: bool) -> bool {
        let (sq_norm, max_abs) = sq_norm_and_max(row);
        if !sq_norm.is_finite() {
            self.total.nonfinite += 1;
        } else if special {
            self.total.n_special += 1;
            self.total.max_abs_special = self.total.max_abs_special.max(f64::from(max_abs));
        } else {
            self.total.n += 1;
            self.total.sum_sq_norm += sq_norm;
            self.total.max_abs = self.total.max_abs.max(f64::from(max_abs));
            self.histogram[bin_of(sq_norm)] += 1;
            self.total.sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            return true;
        }
        false
    }
}

/// ‖x‖² in float32, for the reader that leaves out outliers; infinite above 10³⁸ and for NaN.
pub(crate) fn sq_norm(row: &[f32]) -> f32 {
    let (sum, _) = fast_sq_norm_and_max(row);
    if sum.is_nan() { f32::INFINITY } else { sum }
}

/// ‖x‖², to a few parts in 10⁷, and max|x|. A NaN or an infinity anywhere makes the first one NaN or infinite.
fn sq_norm_and_max(row: &[f32]) -> (f64, f32) {
    // Where no square of a number that matters leaves the range of float32.
    const SAFE: std::ops::Range<f32> = 1e-20..1e36;
    let (sum, max) = fast_sq_norm_and_max(row);
    if SAFE.contains(&sum) { (f64::from(sum), max) } else { (exact_sq_norm(row), max) }
}

fn exact_sq_norm(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}

/// In float32 and sixteen lanes, so that the compiler can use vectors.
fn fast_sq_norm_and_max(row: &[f32]) -> (f32, f32) {
    let mut sums = [0.0f32; 16];
    let mut maxima = [0.0f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            sums[lane] += chunk[lane] * chunk[lane];
            let magnitude = chunk[lane].abs();
            maxima[lane] = if magnitude > maxima[lane] { magnitude } else { maxima[lane] };
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        sums[lane] += x * x;
        maxima[lane] = maxima[lane].max(x.abs());
    }
    (sums.iter().sum(), maxima.iter().fold(0.0, |max, &x| max.max(x)))
}

fn bin_of(sq_norm: f64) -> usize {
    let octaves = 0.5 * sq_norm.log2() - f64::from(LEAST_OCTAVE);
    // `as` takes what is below zero (and the logarithm of zero) to 0.
    ((octaves * NORM_BINS_PER_OCTAVE as f64) as usize).min(N_BINS - 1)
}

/// The geometric interpolation, within its bin, of the middle row.
fn median(histogram: &[(u16, u64)], n: u64) -> f64 {
    let middle = n as f64 / 2.0;
    let mut below = 0.0;
    for &(bin, rows) in histogram {
        if below + rows as f64 >= middle && rows > 0 {
            let within = ((middle - below) / rows as f64).clamp(0.0, 1.0);
            let octaves = (f64::from(bin) + within) / NORM_BINS_PER_OCTAVE as f64;
            return (octaves + f64::from(LEAST_OCTAVE)).exp2();
        }
        below += rows as f64;
    }
    0.0
}

fn sparse(histogram: &[u64]) -> Vec<(u16, u64)> {
    histogram.iter().enumerate().filter(|&(_, &rows)| rows > 0).map(|(bin, &rows)| (bin as u16, rows)).collect()
}

fn dense(histogram: &[(u16, u64)]) -> Vec<u64> {
    let mut bins = vec![0; N_BINS];
    for &(bin, rows) in histogram {
        bins[usize::from(bin).min(N_BINS - 1)] += rows;
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accumulate(rows: &[&[f32]], special: &[bool]) -> ShardStatistics {
        let mut accumulator = Accumulator::new(rows[0].len(), Dtype::F32);
        let bytes: Vec<u8> = rows.iter().flat_map(|row| row.iter().flat_map(|x| x.to_le_bytes())).collect();
        accumulator.add(&bytes, &[], special, &Before::Same);
        accumulator.finish()
    }

    #[test]
    fn sums_leave_special_and_nonfinite_rows_out() {
        let rows: [&[f32]; 5] = [&[3.0, 4.0], &[1000.0, 0.0], &[f32::NAN, 1.0], &[-6.0, 8.0], &[f32::INFINITY, 0.0]];
        let stats = accumulate(&rows, &[false, true, false, false, false]);
        assert_eq!((stats.n, stats.n_special, stats.nonfinite), (2, 1, 2));
        assert_eq!(stats.sum, [-3.0, 12.0]);
        assert_eq!(stats.sum_sq_norm, 125.0);
        assert_eq!((stats.max_abs, stats.max_abs_special), (8.0, 1000.0));
    }

    #[test]
    fn the_median_norm_is_as_exact_as_documented() {
        let norms: Vec<f32> = (0..1001).map(|i| 1.003f32.powi(i * 7 % 1001) * 0.01).collect();
        let rows: Vec<[f32; 1]> = norms.iter().map(|&norm| [norm]).collect();
        let rows: Vec<&[f32]> = rows.iter().map(<[f32; 1]>::as_slice).collect();
        let mut sorted = norms.clone();
        sorted.sort_by(f32::total_cmp);
        let stats = finish(&accumulate(&rows, &vec![false; 1001]));
        let error = (stats.median_norm / f64::from(sorted[500])).log2().abs();
        assert!(error <= 1.0 / NORM_BINS_PER_OCTAVE as f64, "{} {}", stats.median_norm, sorted[500]);
        assert_eq!(finish(&ShardStatistics::new(3)).median_norm, 0.0);
        assert!(finish(&accumulate(&[&[0.0, 0.0]], &[false])).median_norm < 1e-11);
    }

    #[test]
    fn what_storing_costs_is_summed_up() {
        let (width, n) = (8, 200);
        let numbers: Vec<f32> =
            (0..n * width).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.37 + (i / width) as f32).collect();
        let special: Vec<bool> = (0..n).map(|i| i % 10 == 0).collect();
        let stats = |dtype: Dtype, rows: usize| {
            let stored = convert::from_f32(dtype, width, &numbers);
            let computed =
                Before::Computed { dtype: Dtype::F32, rows: convert::from_f32(Dtype::F32, width, &numbers).bytes };
            let mut accumulator = Accumulator::new(width, dtype);
            accumulator.add(&stored.bytes, &stored.scales, &special, if rows > 0 { &computed } else { &Before::Same });
            let mut back = Vec::new();
            convert::append_f32(dtype, width, &stored.bytes, &stored.scales, &mut back);
            let error: f64 = (0..n)
                .filter(|&i| !special[i])
                .flat_map(|i| i * width..(i + 1) * width)
                .map(|i| (f64::from(numbers[i]) - f64::from(back[i])).powi(2))
                .sum();
            (finish(&accumulator.finish()), error)
        };
        let (eight, error) = stats(Dtype::I8, n);
        assert!(error > 0.0 && (eight.sum_sq_error.unwrap() / error - 1.0).abs() < 1e-12);
        let (half, half_error) = stats(Dtype::Bf16, n);
        assert!((half.sum_sq_error.unwrap() / half_error - 1.0).abs() < 1e-12);
        let cost = 1.0 - eight.storage_explained_variance().unwrap();
        assert!(cost > 1e-6 && cost < 1e-3, "{cost}");
        // Stored as computed: nothing is lost, whatever the format.
        assert_eq!(stats(Dtype::I8, 0).0.storage_explained_variance(), Some(1.0));
        // A copy tells what its origin told.
        let mut copy = Accumulator::new(width, Dtype::F32);
        copy.add(
            &convert::from_f32(Dtype::F32, width, &numbers).bytes,
            &[],
            &special,
            &Before::Stored { sum_sq_error: eight.sum_sq_error },
        );
        assert_eq!(finish(&copy.finish()).sum_sq_error, eight.sum_sq_error);
        // A run of an older recorder does not know.
        let mut old = eight.clone();
        old.sum_sq_error = None;
        assert_eq!(old.storage_explained_variance(), None);
    }

    #[test]
    fn norms_are_exact_enough_at_every_scale() {
        for exponent in (-44..=37).step_by(3) {
            let row: Vec<f32> =
                (0..643).map(|i| ((i * 37 % 101) as f64 * 0.02 * 10f64.powi(exponent)) as f32).collect();
            let exact = exact_sq_norm(&row);
            assert!((sq_norm_and_max(&row).0 / exact - 1.0).abs() < 1e-6, "1e{exponent}");
        }
        assert_eq!(sq_norm_and_max(&[0.0; 5]), (0.0, 0.0));
        assert!(sq_norm(&[1.0, f32::NAN]).is_infinite() && sq_norm(&[3.0, 4.0]) == 25.0);
    }

    #[test]
    fn parts_merge_to_the_whole() {
        let rows: Vec<Vec<f32>> = (0..50).map(|i| (0..19).map(|j| (i * 19 + j) as f32 - 400.0).collect()).collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let special: Vec<bool> = (0..50).map(|i| i % 7 == 0).collect();
        let whole = accumulate(&rows, &special);
        let mut merged = accumulate(&rows[..20], &special[..20]);
        merged.merge(&accumulate(&rows[20..], &special[20..]));
        assert_eq!(merged, whole);
        // The squares are whole numbers, so every order of summation gives the same.
        let expected: f64 = rows
            .iter()
            .zip(&special)
            .filter(|(_, s)| !**s)
            .flat_map(|(r, _)| r.iter())
            .map(|&x| f64::from(x * x))
            .sum();
        assert_eq!(whole.sum_sq_norm, expected);
    }
}
