//! Which features fire together, in one coder or in two?
//!
//! Every pair is counted, nothing is drawn or sketched. The counts are a block of features of one side by all features of
//! the other; a block is as large as memory allows, and each block reads the activations of the run once. So memory is
//! bounded by [`PairOptions::memory`] and a stretch of tokens, and the number of passes is
//! features × features of the other × 12 bytes / memory.

use std::ops::Range;
use std::path::PathBuf;

use rayon::prelude::*;

use super::{ByToken, FeatureTable, Windows};
use crate::error::{Error, Result};
use crate::progress::{OnProgress, Progress};

/// Bytes of the counts of a pair.
const PAIR_BYTES: usize = size_of::<u32>() + size_of::<f64>();

/// Two features that fire together. Special tokens are left out of everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeaturePair {
    pub feature: u32,
    /// From 0, among the pairs of `feature`.
    pub rank: u32,
    /// Of the same coder, or of the one that it is compared with.
    pub other: u32,
    /// Tokens at which both are active.
    pub n_both: u64,
    /// How many times as often as if they had nothing to do with each other.
    pub lift: f64,
    /// Of the tokens at which one of them is active, the share at which both are.
    pub jaccard: f64,
    /// Correlation of active or not; 0 where one of them always is.
    pub phi: f64,
    /// Correlation of the activations, 0 where silent; 0 where one of them does not vary.
    pub pearson: f64,
    /// Cosine of the activations over all tokens.
    pub cosine: f64,
}

/// By what the pairs of a feature are ranked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PairRank {
    /// [`FeaturePair::phi`]: whether they fire at the same tokens.
    #[default]
    Phi,
    /// [`FeaturePair::pearson`]: whether they are strong at the same tokens.
    Pearson,
}

/// Which pairs to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairOptions {
    /// How many pairs of each feature; only those with a positive rank.
    pub top: usize,
    /// At how many tokens both must be active.
    pub min_both: u64,
    pub rank: PairRank,
    /// Bytes of counts.
    pub memory: usize,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self { top: 10, min_both: 10, rank: PairRank::default(), memory: super::DEFAULT_SORT_MEMORY }
    }
}

/// The activations of a coder on disk.
pub(super) struct Side {
    /// In the order of tokens.
    pub(super) files: Vec<PathBuf>,
    pub(super) n_features: usize,
}

/// What is known of the features of a side alone.
struct Sums {
    n: Vec<u64>,
    x: Vec<f64>,
    xx: Vec<f64>,
}

/// For each feature of `table` the features of `other`, another coder's table over the same tokens, that go with it.
///
/// `progress` is called after each stretch of tokens, with how many were read over all passes.
pub fn correlate(
    table: &FeatureTable,
    other: &FeatureTable,
    options: &PairOptions,
    progress: OnProgress<'_>,
) -> Result<Vec<FeaturePair>> {
    let run = table.run();
    let differ = || Error::OtherTokens { origin: run.dir().into(), path: other.run().dir().into() };
    if run.n_tokens() != other.run().n_tokens() {
        return Err(differ());
    }
    for range in Windows::ranges(run.n_tokens()).filter(|_| run.dir() != other.run().dir()) {
        if run.tokens(range.clone())?.token_id != other.run().tokens(range)?.token_id {
            return Err(differ());
        }
    }
    let mut found = Vec::new();
    let same = run.dir() == other.run().dir() && table.name() == other.name();
    let right = other.side()?;
    let mut count = Count {
        left: &table.side()?,
        right: (!same).then_some(&right),
        n_tokens: run.n_tokens(),
        special: &|range| run.special(range),
        options: *options,
        progress,
    };
    count.run(&mut |pairs| {
        found.extend_from_slice(pairs);
        Ok(())
    })?;
    Ok(found)
}

/// A count of all pairs.
pub(super) struct Count<'a> {
    pub(super) left: &'a Side,
    /// `None` for the same features, each of which is no pair with itself.
    pub(super) right: Option<&'a Side>,
    pub(super) n_tokens: u64,
    /// Which of some tokens are special.
    pub(super) special: &'a dyn Fn(Range<u64>) -> Result<Vec<bool>>,
    pub(super) options: PairOptions,
    pub(super) progress: OnProgress<'a>,
}

/// Counts of a block of features of the left side by all of the right one.
struct Block {
    features: Range<usize>,
    n_right: usize,
    /// `[block, right]`
    n: Vec<u32>,
    /// `[block, right]`
    xy: Vec<f64>,
}

impl Count<'_> {
    /// Hands out the pairs of each block of features, in order.
    pub(super) fn run(&mut self, each: &mut dyn FnMut(&[FeaturePair]) -> Result<()>) -> Result<()> {
        let n_left = self.left.n_features;
        let n_right = self.right.map_or(n_left, |right| right.n_features);
        // Counts of tokens are u32.
        if self.n_tokens > u64::from(u32::MAX) {
            return Err(Error::mismatch("tokens at most", u64::from(u32::MAX), self.n_tokens));
        }
        let rows = (self.options.memory / (n_right * PAIR_BYTES).max(1)).clamp(1, n_left.max(1));
        let total = self.n_tokens * n_left.div_ceil(rows) as u64;
        let (mut left, mut right) = (Sums::new(n_left), self.right.map(|right| Sums::new(right.n_features)));
        let mut done = 0;
        for first in (0..n_left).step_by(rows) {
            let mut block = Block::new(first..(first + rows).min(n_left), n_right);
            let mut left_acts = Windows::new(self.left.files.clone());
            let mut right_acts = self.right.map(|right| Windows::new(right.files.clone()));
            let mut n_ordinary = 0;
            for window in Windows::ranges(self.n_tokens) {
                let special = (self.special)(window.clone())?;
                let wanted = |token: u64| !special[(token - window.start) as usize];
                n_ordinary += special.iter().filter(|special| !**special).count() as u64;
                let ours = ByToken::new(&left_acts.until(window.end)?, &window, wanted);
                let theirs = match &mut right_acts {
                    Some(acts) => Some(ByToken::new(&acts.until(window.end)?, &window, wanted)),
                    None => None,
                };
                if first == 0 {
                    left.add(&ours);
                    if let Some((sums, acts)) = right.as_mut().zip(theirs.as_ref()) {
                        sums.add(acts);
                    }
                }
                block.add(&ours, theirs.as_ref().unwrap_or(&ours));
                done += window.end - window.start;
                if (self.progress)(Progress { done, total }).is_break() {
                    return Err(Error::Interrupted);
                }
            }
            each(&block.pairs(&left, right.as_ref(), n_ordinary, &self.options))?;
        }
        Ok(())
    }
}

impl Sums {
    fn new(n: usize) -> Self {
        Self { n: vec![0; n], x: vec![0.0; n], xx: vec![0.0; n] }
    }

    fn add(&mut self, acts: &ByToken) {
        for (_, feature, act) in acts.entries() {
            let (feature, act) = (feature as usize, f64::from(act));
            self.n[feature] += 1;
            self.x[feature] += act;
            self.xx[feature] += act * act;
        }
    }
}

impl Block {
    fn new(features: Range<usize>, n_right: usize) -> Self {
        let cells = features.len() * n_right;
        Self { features, n_right, n: vec![0; cells], xy: vec![0.0; cells] }
    }

    /// Adds consecutive tokens. Each feature has its own counts, so features are shared out between threads.
    fn add(&mut self, left: &ByToken, right: &ByToken) {
        let mut by_feature: Vec<Vec<(u32, f32)>> = vec![Vec::new(); self.features.len()];
        for (token, feature, act) in left.entries() {
            if self.features.contains(&(feature as usize)) {
                by_feature[feature as usize - self.features.start].push((token as u32, act));
            }
        }
        let counts = self.n.par_chunks_mut(self.n_right).zip(self.xy.par_chunks_mut(self.n_right));
        counts.zip(by_feature).for_each(|((n, xy), entries)| {
            for (token, x) in entries {
                let (others, acts) = right.row(token as usize);
                for (&other, &y) in others.iter().zip(acts) {
                    n[other as usize] += 1;
                    xy[other as usize] += f64::from(x) * f64::from(y);
                }
            }
        });
    }

    /// The pairs of each feature that rank highest.
    fn pairs(&self, left: &Sums, right: Option<&Sums>, n_tokens: u64, options: &PairOptions) -> Vec<FeaturePair> {
        let counts = self.n.par_chunks(self.n_right).zip(self.xy.par_chunks(self.n_right)).enumerate();
        let best = counts.flat_map_iter(|(i, (n, xy))| {
            let feature = self.features.start + i;
            let others = (0..self.n_right).filter(|&other| {
                u64::from(n[other]) >= options.min_both.max(1) && !(right.is_none() && other == feature)
            });
            let pair = |other: usize| {
                let (a, b) = (left, right.unwrap_or(left));
                let counts = [n[other].into(), a.n[feature], b.n[other]];
                let sums = [xy[other], a.x[feature], b.x[other], a.xx[feature], b.xx[other]];
                FeaturePair {
                    feature: feature as u32,
                    other: other as u32,
                    ..FeaturePair::measured(counts, sums, n_tokens)
                }
            };
            let mut pairs: Vec<FeaturePair> = others.map(pair).filter(|pair| options.rank.of(pair) > 0.0).collect();
            pairs.sort_by(|x, y| options.rank.of(y).total_cmp(&options.rank.of(x)).then(x.other.cmp(&y.other)));
            pairs.truncate(options.top);
            for (rank, pair) in (0..).zip(&mut pairs) {
                pair.rank = rank;
            }
            pairs
        });
        best.collect()
    }
}

impl PairRank {
    fn of(self, pair: &FeaturePair) -> f64 {
        match self {
            Self::Phi => pair.phi,
            Self::Pearson => pair.pearson,
        }
    }
}

impl FeaturePair {
    /// From the tokens at which both, the one and the other are active, and Σxy, Σx, Σy, Σx², Σy².
    fn measured([both, a, b]: [u64; 3], [xy, x, y, xx, yy]: [f64; 5], n_tokens: u64) -> Self {
        let [n, n_both, n_a, n_b] = [n_tokens, both, a, b].map(|count| count as f64);
        let ratio = |above: f64, below: f64| if below > 0.0 { above / below } else { 0.0 };
        let spread = |n_x: f64| n_x * (n - n_x);
        // Rounding can take the variance of a constant below 0.
        let variance = |sum: f64, squares: f64| (squares - sum * sum / n).max(0.0);
        Self {
            n_both: both,
            lift: ratio(n_both * n, n_a * n_b),
            jaccard: ratio(n_both, n_a + n_b - n_both),
            phi: ratio(n_both * n - n_a * n_b, (spread(n_a) * spread(n_b)).sqrt()),
            pearson: ratio(xy - x * y / n, (variance(x, xx) * variance(y, yy)).sqrt()).clamp(-1.0, 1.0),
            cosine: ratio(xy, (xx * yy).sqrt()),
            ..Self::default()
        }
    }
}
