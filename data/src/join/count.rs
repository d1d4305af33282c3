//! How are features and labels counted together, and what do the counts say?

use std::cmp::Ordering;
use std::ops::{AddAssign, Range};

use rayon::prelude::*;

use super::labels::{Labels, Source};
use super::{JoinInfo, JoinLayer, JoinOptions, JoinReport, JoinRow};
use crate::error::{Error, Result};
use crate::features::{ByToken, FeatureTable, Windows};
use crate::progress::{OnProgress, Progress};
use crate::random::Random;

/// Bytes of the counts of a feature and a label: real and control.
const CELL_BYTES: usize = 2 * size_of::<u32>();

/// A join under way.
pub(super) struct Join<'a> {
    pub(super) table: &'a FeatureTable,
    pub(super) options: &'a JoinOptions,
    pub(super) source: Source,
    pub(super) progress: OnProgress<'a>,
}

/// Counts of a layer, for a block of features.
struct Counts {
    /// Place of the layer.
    layer: usize,
    /// `[feature, label]`
    both: Vec<u32>,
    control: Vec<u32>,
    /// `[label]`
    labelled: [Vec<u64>; 2],
}

/// Counts of a block of features, in some layers.
struct Block {
    features: Range<usize>,
    n_labels: usize,
    /// `[feature]`: tokens at which it is active.
    active: Vec<u64>,
    layers: Vec<Counts>,
    n_tokens: u64,
    n_special: u64,
}

/// What is kept of a layer while its features are counted.
#[derive(Default)]
struct Found {
    layer: JoinLayer,
    /// Of each label, the best features, falling.
    best: Vec<Vec<JoinRow>>,
    /// Of each feature, its best label.
    of_feature: Vec<(usize, JoinRow)>,
}

impl Join<'_> {
    pub(super) fn run(mut self) -> Result<JoinReport> {
        let (d_sae, n_labels) = (self.table.n_features() as usize, self.source.n_labels());
        let (layers, n_tokens) = (self.source.layers(), self.table.run().n_tokens());
        // Counts of tokens are u32.
        if n_tokens > u64::from(u32::MAX) {
            return Err(Error::mismatch("tokens at most", u64::from(u32::MAX), n_tokens));
        }
        // As many layers at a time as fit with all features; where not even one does, a block of its features.
        let rows = (self.options.memory / (n_labels * CELL_BYTES).max(1)).max(1);
        let at_once = (rows / d_sae.max(1)).clamp(1, layers.len().max(1));
        let block = rows.clamp(1, d_sae.max(1));
        let passes = layers.len().div_ceil(at_once) * d_sae.div_ceil(block);
        let mut at = Progress { done: 0, total: n_tokens * passes as u64 };
        let mut report = JoinReport {
            info: JoinInfo {
                with: self.options.with.clone(),
                n_tokens: 0,
                n_special: 0,
                min_count: self.options.min_count,
                seed: self.options.seed,
                labels: self.source.about(),
            },
            layers: Vec::new(),
            rows: Vec::new(),
        };
        for first in (0..layers.len()).step_by(at_once) {
            let some = first..(first + at_once).min(layers.len());
            let mut found: Vec<Found> = some.clone().map(|layer| Found::new(layers[layer], n_labels)).collect();
            for start in (0..d_sae).step_by(block) {
                let block = self.count(some.clone(), start..(start + block).min(d_sae), &mut at)?;
                (report.info.n_tokens, report.info.n_special) = (block.n_tokens, block.n_special);
                for (found, counts) in found.iter_mut().zip(&block.layers) {
                    found.add(&block, counts, self.options);
                }
            }
            for found in found {
                found.finish(&self.source, &mut report);
            }
        }
        Ok(report)
    }

    /// Reads the run once, for some layers and some features.
    fn count(&mut self, layers: Range<usize>, features: Range<usize>, at: &mut Progress) -> Result<Block> {
        let run = self.table.run().clone();
        let mut block = Block::new(layers, features, self.source.n_labels());
        let mut acts = Windows::new(self.table.acts_files()?);
        for window in Windows::ranges(run.n_tokens()) {
            let special = run.special(window.clone())?;
            let counted = |place: usize| self.options.special || !special[place];
            let places: Vec<u32> =
                (0..special.len()).filter(|&place| counted(place)).map(|place| place as u32).collect();
            let rows =
                ByToken::new(&acts.until(window.end)?, &window, |token| counted((token - window.start) as usize));
            let by_feature = block.start(&rows, places.len() as u64, special.len() as u64);
            // Where the labels of each token come from in the control.
            let mut from: Vec<u32> = (0..special.len() as u32).collect();
            let mut shuffled = places.clone();
            Random::new(self.options.seed, window.start, 1).shuffle(&mut shuffled);
            for (&to, place) in places.iter().zip(shuffled) {
                from[to as usize] = place;
            }
            let n_labels = block.n_labels;
            for counts in &mut block.layers {
                let labels = self.source.read(counts.layer, &window, &special)?;
                let others = self.source.read_shuffled(&window);
                counts.add(n_labels, &by_feature, &places, &labels, |place| match &others {
                    Some(others) => others.row(place),
                    None => labels.row(from[place] as usize),
                });
            }
            at.done += window.end - window.start;
            if (self.progress)(*at).is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(block)
    }
}

impl Block {
    fn new(layers: Range<usize>, features: Range<usize>, n_labels: usize) -> Self {
        let cells = features.len() * n_labels;
        let counts = |layer| Counts {
            layer,
            both: vec![0; cells],
            control: vec![0; cells],
            labelled: [vec![0; n_labels], vec![0; n_labels]],
        };
        let active = vec![0; features.len()];
        Self { features, n_labels, active, layers: layers.map(counts).collect(), n_tokens: 0, n_special: 0 }
    }

    /// Counts the tokens of a window alone. Returns the places at which each feature is active.
    fn start(&mut self, rows: &ByToken, counted: u64, all: u64) -> Vec<Vec<u32>> {
        self.n_tokens += counted;
        self.n_special += all - counted;
        let mut by_feature = vec![Vec::new(); self.features.len()];
        for (place, feature, _) in rows.entries() {
            if self.features.contains(&(feature as usize)) {
                by_feature[feature as usize - self.features.start].push(place as u32);
            }
        }
        for (active, places) in self.active.iter_mut().zip(&by_feature) {
            *active += places.len() as u64;
        }
        by_feature
    }
}

impl Counts {
    /// Adds a window. Each feature has its own counts, so features are shared out between threads.
    fn add<'a>(
        &mut self,
        n_labels: usize,
        by_feature: &[Vec<u32>],
        places: &[u32],
        labels: &'a Labels,
        shuffled: impl Fn(usize) -> &'a [u16] + Sync,
    ) {
        let [real, control] = &mut self.labelled;
        for &place in places {
            add(real, labels.row(place as usize));
            add(control, shuffled(place as usize));
        }
        let counts = self.both.par_chunks_mut(n_labels.max(1)).zip(self.control.par_chunks_mut(n_labels.max(1)));
        counts.zip(by_feature).for_each(|((both, control), places)| {
            for &place in places {
                add(both, labels.row(place as usize));
                add(control, shuffled(place as usize));
            }
        });
    }
}

fn add<T: AddAssign + From<u8>>(counts: &mut [T], labels: &[u16]) {
    for &label in labels {
        counts[usize::from(label)] += T::from(1);
    }
}

impl Found {
    fn new(layer: Option<u32>, n_labels: usize) -> Self {
        Self { layer: JoinLayer { layer, ..JoinLayer::default() }, best: vec![Vec::new(); n_labels], ..Self::default() }
    }

    /// Judges the pairs of a block of features.
    fn add(&mut self, block: &Block, counts: &Counts, options: &JoinOptions) {
        let (least, n) = (options.min_count.max(1), block.n_tokens);
        let common: Vec<usize> = (0..block.n_labels).filter(|&label| counts.labelled[0][label] >= least).collect();
        for (i, &n_feature) in block.active.iter().enumerate().filter(|(_, active)| **active >= least) {
            let mut best: Option<(usize, JoinRow)> = None;
            for &label in &common {
                let cell = i * block.n_labels + label;
                let (n_both, n_label) = (u64::from(counts.both[cell]), counts.labelled[0][label]);
                let control = mutual_information(counts.control[cell].into(), n_feature, counts.labelled[1][label], n);
                let row = JoinRow {
                    layer: self.layer.layer,
                    feature: (block.features.start + i) as u32,
                    n_feature,
                    n_label,
                    n_both,
                    lift: n_both as f64 * n as f64 / (n_feature as f64 * n_label as f64),
                    mutual_information: mutual_information(n_both, n_feature, n_label, n),
                    control,
                    ..JoinRow::default()
                };
                self.layer.threshold = self.layer.threshold.max(control);
                let kept = &mut self.best[label];
                if kept.len() < options.top || kept.last().is_some_and(|last| by_information(&row, last).is_lt()) {
                    let at = kept.partition_point(|other| by_information(other, &row).is_lt());
                    kept.insert(at, row.clone());
                    kept.truncate(options.top);
                }
                if best.as_ref().is_none_or(|(_, best)| row.mutual_information > best.mutual_information) {
                    best = Some((label, row));
                }
            }
            self.of_feature.extend(best);
        }
    }

    /// Appends what was found.
    fn finish(mut self, source: &Source, report: &mut JoinReport) {
        let threshold = self.layer.threshold;
        self.layer.n_features = self.of_feature.len() as u64;
        self.layer.n_above =
            self.of_feature.iter().filter(|(_, best)| best.mutual_information > threshold).count() as u64;
        let mut others: Vec<Vec<JoinRow>> = vec![Vec::new(); self.best.len()];
        for (label, row) in self.of_feature {
            if row.mutual_information > threshold && !self.best[label].iter().any(|best| best.feature == row.feature) {
                others[label].push(row);
            }
        }
        for (label, (mut best, mut others)) in self.best.into_iter().zip(others).enumerate() {
            for (rank, row) in (0..).zip(&mut best) {
                row.rank = Some(rank);
            }
            others.sort_by(by_information);
            for mut row in best.into_iter().chain(others) {
                row.label = source.name(label);
                row.threshold = threshold;
                report.rows.push(row);
            }
        }
        report.layers.push(self.layer);
    }
}

/// Falling; of equal ones the lower feature first.
fn by_information(a: &JoinRow, b: &JoinRow) -> Ordering {
    b.mutual_information.total_cmp(&a.mutual_information).then(a.feature.cmp(&b.feature))
}

/// Of two yes-or-no questions about `n` tokens, in bits: Σ p(x, y) log₂ p(x, y) / p(x) p(y).
fn mutual_information(both: u64, a: u64, b: u64, n: u64) -> f64 {
    let cell = |count: u64, x: u64, y: u64| {
        let [count, x, y, n] = [count, x, y, n].map(|count| count as f64);
        if count > 0.0 { count / n * (count * n / (x * y)).log2() } else { 0.0 }
    };
    let neither = (n + both).saturating_sub(a + b);
    // Rounding can take it below 0.
    (cell(both, a, b) + cell(a - both, a, n - b) + cell(b - both, n - a, b) + cell(neither, n - a, n - b)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutual_information_by_hand() {
        // The same question: the entropy of 1 in 4, 0.25 * 2 + 0.75 * log2(4/3).
        assert!((mutual_information(25, 25, 25, 100) - 0.811_278_124).abs() < 1e-9);
        // Opposite answers tell as much.
        assert!((mutual_information(0, 25, 75, 100) - 0.811_278_124).abs() < 1e-9);
        // Independent: 20 of 100 times 50 of 100.
        assert_eq!(mutual_information(10, 20, 50, 100), 0.0);
        assert_eq!(mutual_information(0, 0, 50, 100), 0.0);
        assert_eq!(mutual_information(50, 100, 50, 100), 0.0);
        // 0.4 log2 1.6 twice + 0.1 log2 0.4 twice.
        let expected = 2.0 * (0.4 * 1.6f64.log2() + 0.1 * 0.4f64.log2());
        assert!((mutual_information(40, 50, 50, 100) - expected).abs() < 1e-12);
    }
}
