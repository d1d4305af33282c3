//! Which latents does BatchTopK keep, in training and after it? (Bussmann et al., arXiv 2412.06410)
//!
//! In training, the `B·k` largest positive pre-activations of a batch of `B` rows are kept, wherever they are. Afterwards a
//! row is encoded alone, with a threshold that is the running estimate of the smallest value kept: a JumpReLU.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{
    kernels::scan_above,
    rule::{Gradients, Kept, Rounded, Row, Rule, SelectScratch, Terms},
    sparse::SparseRows,
    step::Weights,
    topk::through,
};

/// How far below the last batch's smallest kept value the next batch's candidates begin.
///
/// It is only about speed: too high, and the batch is done again with every positive value as a candidate.
const CANDIDATE_MARGIN: f32 = 0.8;

/// The exact choice of the largest values of a whole batch.
///
/// The rows come in blocks, and a block's pre-activations are gone when the next is computed. So candidates are gathered
/// while a block is in the cache (all values above a floor that is surely low enough, guessed from the batch before), and the
/// choice among them is exact.
#[derive(Clone, Debug, Default)]
struct BatchTopK {
    k: usize,
    floor: Option<f32>,
    bits: Vec<u32>,
}

/// What [`BatchTopK::choose`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Choice {
    /// The candidates now hold what is kept; the smallest kept value, if anything is.
    Kept(Option<f32>),
    /// The floor was too high: gather again, above 0.
    TooFew,
}

impl BatchTopK {
    fn new(k: usize) -> Self {
        Self { k, ..Self::default() }
    }

    /// Guesses the floor from the pre-activations of a few rows, so that about twice too many are candidates.
    fn guess(&mut self, pre_acts: impl Iterator<Item = f32>, n_rows: usize) {
        let mut positive: Vec<f32> = pre_acts.filter(|&z| z > 0.0).collect();
        let rank = 2 * self.k * n_rows;
        self.floor = Some(if rank > 0 && rank < positive.len() {
            *positive.select_nth_unstable_by(rank, |a, b| b.total_cmp(a)).1
        } else {
            0.0
        });
    }

    /// Leaves in `blocks`, which hold the candidates of the whole batch in order, the `k` times rows largest of the latents
    /// of `scope`, and all of others. Of equal values the earlier row is kept, then the lower latent.
    fn choose(&mut self, floor: f32, scope: &Range<usize>, blocks: &mut [&mut SparseRows]) -> Choice {
        let n_rows: usize = blocks.iter().map(|block| block.n_rows()).sum();
        let target = self.k * n_rows;
        let is_ours = |latent: u32| scope.contains(&(latent as usize));
        // All are positive, and positive floats are ordered as their bits are.
        self.bits.clear();
        for block in &*blocks {
            let entries = block.latents().iter().zip(block.values());
            self.bits.extend(entries.filter(|(latent, _)| is_ours(**latent)).map(|(_, value)| value.to_bits()));
        }
        if self.bits.len() <= target || target == 0 {
            if self.bits.len() < target && floor > 0.0 {
                return Choice::TooFew;
            }
            if target == 0 {
                for block in blocks {
                    block.retain(|_, latent, _| !is_ours(latent));
                }
                return Choice::Kept(None);
            }
            let smallest = self.bits.iter().min().copied().map(f32::from_bits);
            self.floor = Some(smallest.map_or(0.0, |value| value * CANDIDATE_MARGIN));
            return Choice::Kept(smallest);
        }
        let (above, &mut last, _) = self.bits.select_nth_unstable_by(target - 1, |a, b| b.cmp(a));
        let mut equal_left = target - above.iter().filter(|&&bits| bits > last).count();
        for block in blocks {
            block.retain(|_, latent, value| {
                let bits = value.to_bits();
                if is_ours(latent) && bits == last && equal_left > 0 {
                    equal_left -= 1;
                    return true;
                }
                !is_ours(latent) || bits > last
            });
        }
        let smallest = f32::from_bits(last);
        self.floor = Some(smallest * CANDIDATE_MARGIN);
        Choice::Kept(Some(smallest))
    }
}

/// The rule of `batchtopk` coders: the `k` times rows largest of a batch, of all latents or of each group.
pub(crate) struct BatchTopKRule {
    scopes: Vec<(Range<usize>, BatchTopK)>,
    /// Whether every positive value is a candidate, because floors were too high.
    all: bool,
}

impl BatchTopKRule {
    pub(crate) fn new(k: usize, scopes: Vec<Range<usize>>) -> Self {
        Self { scopes: scopes.into_iter().map(|scope| (scope, BatchTopK::new(k))).collect(), all: false }
    }

    fn floor(&self, choice: &BatchTopK) -> f32 {
        if self.all { 0.0 } else { choice.floor.unwrap_or(0.0) }
    }
}

impl Rule for BatchTopKRule {
    fn wants_a_look(&self) -> bool {
        self.scopes.iter().any(|(_, choice)| choice.floor.is_none())
    }

    fn look(&mut self, pre_acts: &[f32], n_rows: usize) {
        let d_sae = self.scopes.last().map_or(0, |(scope, _)| scope.end);
        for (scope, choice) in &mut self.scopes {
            let rows = pre_acts.chunks_exact(d_sae.max(1));
            choice.guess(rows.flat_map(|row| row[scope.clone()].iter().copied()), n_rows);
        }
    }

    fn select(&self, pre_acts: &[f32], _weights: &Weights, scratch: &mut SelectScratch, out: &mut Kept) {
        let found = &mut scratch.found;
        found.clear();
        for (scope, choice) in &self.scopes {
            let first = found.len();
            scan_above(&pre_acts[scope.clone()], 0, self.floor(choice), usize::MAX, found);
            for (_, latent) in &mut found[first..] {
                *latent += scope.start as u32;
            }
        }
        out.rows.push_row(found.iter().copied());
    }

    fn candidates(&self, row: &Rounded<'_>, _weights: &Weights, scratch: &mut SelectScratch) {
        scratch.found.clear();
        for (scope, choice) in &self.scopes {
            row.append_above(scope, self.floor(choice), &mut scratch.found);
        }
    }

    fn settle(&mut self, blocks: &mut [&mut Kept]) -> bool {
        let all = std::mem::take(&mut self.all);
        for (scope, choice) in &mut self.scopes {
            let floor = if all { 0.0 } else { choice.floor.unwrap_or(0.0) };
            let mut rows: Vec<_> = blocks.iter_mut().map(|block| &mut block.rows).collect();
            if choice.choose(floor, scope, &mut rows) == Choice::TooFew {
                self.all = true;
                return false;
            }
        }
        true
    }

    fn differentiate(&self, terms: &Terms<'_>, row: &Row<'_>, out: &mut Gradients<'_>) -> f64 {
        through(terms, row, out)
    }
}

/// The running estimate of the smallest kept value, which becomes the threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Option<u64>", into = "Option<u64>")]
pub(crate) struct RunningThreshold {
    value: Option<f64>,
}

/// As its bits: decimal digits do not always come back as the same number.
impl From<RunningThreshold> for Option<u64> {
    fn from(threshold: RunningThreshold) -> Self {
        threshold.value.map(f64::to_bits)
    }
}

impl From<Option<u64>> for RunningThreshold {
    fn from(bits: Option<u64>) -> Self {
        Self { value: bits.map(f64::from_bits) }
    }
}

impl RunningThreshold {
    /// Moves the estimate by `rate` towards the smallest value that a batch kept; the first one is taken as it is
    /// (dictionary_learning; SAELens begins at 0, which is only right after a long training).
    pub(crate) fn update(&mut self, smallest: Option<f32>, rate: f64) {
        if let Some(smallest) = smallest {
            let smallest = f64::from(smallest);
            let old = self.value.unwrap_or(smallest);
            self.value = Some(old + rate * (smallest - old));
        }
    }

    /// The estimate; 0 before the first batch.
    pub(crate) fn get(self) -> f64 {
        self.value.unwrap_or(0.0)
    }
}

/// Keeps of `pre_acts` what is positive and above its latent's threshold: JumpReLU with SAELens's strict comparison.
pub(crate) fn jump_relu(
    pre_acts: &[f32],
    threshold: &[f32],
    floor: f32,
    found: &mut Vec<(f32, u32)>,
    out: &mut SparseRows,
) {
    found.clear();
    scan_above(pre_acts, 0, floor, usize::MAX, found);
    out.push_row(found.iter().copied().filter(|&(value, latent)| value > threshold[latent as usize]));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rows: &[&[f32]], floor: f32) -> Vec<SparseRows> {
        let mut blocks = Vec::new();
        // Two rows a block, so that the choice crosses blocks.
        for rows in rows.chunks(2) {
            let mut block = SparseRows::new();
            for row in rows {
                let mut found = Vec::new();
                scan_above(row, 0, floor, usize::MAX, &mut found);
                block.push_row(found.into_iter());
            }
            blocks.push(block);
        }
        blocks
    }

    fn check(k: usize, floor: f32, rows: &[&[f32]], expected: Choice, dense: &[&[f32]]) {
        let mut blocks = batch(rows, floor);
        let mut choice = BatchTopK::new(k);
        let found = choice.choose(floor, &(0..9), &mut blocks.iter_mut().collect::<Vec<_>>());
        assert_eq!(found, expected);
        if expected == Choice::TooFew {
            return;
        }
        let mut all = SparseRows::new();
        for block in &blocks {
            all.append(block);
        }
        for (row, dense) in dense.iter().enumerate() {
            assert_eq!(all.dense_row(row, dense.len()), *dense, "row {row}");
        }
    }

    #[test]
    fn a_row_may_have_more_than_k() {
        let rows: &[&[f32]] = &[&[3.0, 2.0, 1.0], &[0.5, -1.0, 0.0], &[0.1, 0.2, 4.0]];
        let dense: &[&[f32]] = &[&[3.0, 2.0, 0.0], &[0.0; 3], &[0.0, 0.0, 4.0]];
        check(1, 0.0, rows, Choice::Kept(Some(2.0)), dense);
        check(1, 1.5, rows, Choice::Kept(Some(2.0)), dense);
    }

    #[test]
    fn of_equal_values_the_earlier_is_kept() {
        let rows: &[&[f32]] = &[&[1.0, 1.0], &[1.0, 2.0], &[1.0, 1.0]];
        let dense: &[&[f32]] = &[&[1.0, 1.0], &[0.0, 2.0], &[0.0, 0.0]];
        check(1, 0.0, rows, Choice::Kept(Some(1.0)), dense);
    }

    #[test]
    fn too_high_a_floor_is_noticed() {
        let rows: &[&[f32]] = &[&[3.0, 2.0, 1.0], &[0.5, -1.0, 0.0]];
        check(1, 2.5, rows, Choice::TooFew, &[]);
    }

    #[test]
    fn with_too_few_positive_ones_all_are_kept() {
        let rows: &[&[f32]] = &[&[3.0, f32::NAN, -1.0], &[0.5, -1.0, 0.0]];
        let dense: &[&[f32]] = &[&[3.0, 0.0, 0.0], &[0.5, 0.0, 0.0]];
        check(2, 0.0, rows, Choice::Kept(Some(0.5)), dense);
        check(0, 0.0, rows, Choice::Kept(None), &[&[0.0; 3], &[0.0; 3]]);
    }

    #[test]
    fn the_guess_is_below_the_choice() {
        let values: Vec<f32> = (0..4000).map(|i| ((i * 7907) % 4001) as f32 - 1000.0).collect();
        let mut choice = BatchTopK::new(10);
        choice.guess(values.iter().copied(), 4);
        let floor = choice.floor.unwrap();
        let above = values.iter().filter(|&&value| value > floor).count();
        assert_eq!(above, 2 * 10 * 4);
    }

    #[test]
    fn the_estimate_begins_at_the_first_value_and_follows() {
        let mut threshold = RunningThreshold::default();
        threshold.update(None, 0.01);
        assert_eq!(threshold.get(), 0.0);
        threshold.update(Some(2.0), 0.01);
        assert_eq!(threshold.get(), 2.0);
        threshold.update(Some(3.0), 0.01);
        assert!((threshold.get() - 2.01).abs() < 1e-12);
        threshold.update(None, 0.01);
        assert!((threshold.get() - 2.01).abs() < 1e-12);
    }

    #[test]
    fn jump_relu_is_strict() {
        let mut out = SparseRows::new();
        let (z, threshold) = ([0.5, 0.5, -1.0, 2.0], [0.5, 0.4, -2.0, 0.0]);
        jump_relu(&z, &threshold, 0.0, &mut Vec::new(), &mut out);
        assert_eq!(out.dense_row(0, 4), [0.0, 0.5, 0.0, 2.0]);
    }
}
