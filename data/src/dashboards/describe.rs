//! What do both formats say of a feature?

use std::collections::HashMap;
use std::ops::Range;

use super::Directions;
use super::neurons::{self, Neuron};
use super::passages::Tokens;
use crate::error::Result;
use crate::features::{
    Example, ExampleGroup, FeaturePair, FeatureStats, FeatureTable, PairOptions, PairRank, correlate,
};
use crate::progress::OnProgress;

/// Bars of a histogram (SAEDashboard).
const BARS: usize = 50;

/// Rows of the tables of neurons and features (SAEDashboard).
pub(super) const ROWS: usize = 3;

/// Directions whose logits are there at a time.
const LOGIT_ROWS: usize = 16;

/// A feature with everything that is shown of it; numbers are rounded to three decimals, as there.
pub(super) struct Feature {
    pub(super) stats: FeatureStats,
    /// The decoder's row; empty without a coder.
    pub(super) vector: Vec<f32>,
    /// The largest coordinates of the decoder's row, with their share of its L1 norm.
    pub(super) aligned: Aligned,
    /// Coordinates of the activations that correlate with it; empty where that was not asked for.
    pub(super) neurons: Vec<Neuron>,
    pub(super) together: Vec<FeaturePair>,
    pub(super) top: Vec<(String, f64)>,
    pub(super) bottom: Vec<(String, f64)>,
    pub(super) acts: Histogram,
    pub(super) logits: Histogram,
    pub(super) passages: Vec<Passage>,
}

#[derive(Default)]
pub(super) struct Aligned {
    pub(super) indices: Vec<usize>,
    pub(super) values: Vec<f64>,
    pub(super) shares: Vec<f64>,
}

/// Bars of equal width between the least and the greatest value.
#[derive(Default, Debug, PartialEq)]
pub(super) struct Histogram {
    /// Counts.
    pub(super) heights: Vec<u64>,
    /// Middles of the bars.
    pub(super) values: Vec<f64>,
}

/// A passage that shows a feature.
pub(super) struct Passage {
    /// -1 for the strongest ones, otherwise the bounds of the interval.
    pub(super) bin_min: f64,
    pub(super) bin_max: f64,
    /// Share of all tokens that are not special whose activation lies within both bounds; -1 for the strongest ones.
    pub(super) bin_contains: f64,
    pub(super) tokens: Vec<String>,
    pub(super) values: Vec<f64>,
    /// Which of `tokens` it was chosen for.
    pub(super) peak: usize,
    /// The `token_idx` of the peak.
    pub(super) token_idx: u64,
}

/// Describes features a batch at a time.
pub(super) struct Describer<'a> {
    table: &'a FeatureTable,
    directions: Option<&'a dyn Directions>,
    tokens: Tokens,
    correlations: bool,
    /// Of the features from the first on; those of a block are looked for together.
    neurons: (u32, Vec<Vec<Neuron>>),
    /// Pairs of the whole table, where it has none of its own.
    pairs: Option<Vec<FeaturePair>>,
}

impl<'a> Describer<'a> {
    /// `correlations`: whether what goes with a feature is looked for in the activations.
    pub(super) fn new(
        table: &'a FeatureTable,
        directions: Option<&'a dyn Directions>,
        correlations: bool,
        progress: OnProgress<'_>,
    ) -> Result<Self> {
        let counted = table.coactivation(0..0)?.is_some();
        let pairs = if correlations && !counted {
            let options = PairOptions { top: ROWS, rank: PairRank::Pearson, ..PairOptions::default() };
            Some(correlate(table, table, &options, progress)?)
        } else {
            None
        };
        Ok(Self { table, directions, tokens: Tokens::new(table.run())?, correlations, neurons: (0, Vec::new()), pairs })
    }

    /// The neurons of a feature at the site that it reads; those of a block up to `end` where it is the first of another block.
    fn neurons(&mut self, feature: u32, end: u32, go_on: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Neuron>> {
        let (run, info) = (self.table.run(), self.table.info());
        let hook = info.hook_point_of(feature);
        if !self.correlations || run.hook_point(hook).is_err() {
            return Ok(Vec::new());
        }
        let place = |first: u32| feature.checked_sub(first).map(|place| place as usize);
        let (first, found) = &self.neurons;
        if place(*first).is_none_or(|place| place >= found.len()) {
            // The next group of features may read another site.
            let others = info.groups.iter().map(|group| group.first_feature).find(|&first| first > feature);
            let most = feature.saturating_add(neurons::block(run.hook_point(hook)?.width));
            let block = feature..most.min(end).min(others.unwrap_or(end));
            self.neurons = (feature, neurons::correlated(self.table, hook, block, go_on)?);
        }
        let (first, found) = &mut self.neurons;
        Ok(place(*first).and_then(|place| found.get_mut(place)).map(std::mem::take).unwrap_or_default())
    }

    /// Histograms of the logits that each direction gives; a few directions are taken at a time.
    fn logits(&self, vectors: &[Vec<f32>]) -> Vec<Histogram> {
        let Some(directions) = self.directions else { return Vec::new() };
        let some = |vectors: &[Vec<f32>]| {
            let logits = directions.logits(&vectors.concat());
            let n = logits.len() / vectors.len();
            logits.chunks(n.max(1)).map(Histogram::of).collect::<Vec<_>>()
        };
        vectors.chunks(LOGIT_ROWS).flat_map(some).collect()
    }

    /// `end`: up to where features will be asked for. `go_on` is asked while the activations are read.
    pub(super) fn describe(
        &mut self,
        features: Range<u32>,
        end: u32,
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Feature>> {
        let mut examples: HashMap<u32, Vec<Example>> = HashMap::new();
        for example in self.table.examples(features.clone())? {
            examples.entry(example.feature).or_default().push(example);
        }
        let mut groups: HashMap<u32, Vec<ExampleGroup>> = HashMap::new();
        for group in self.table.groups(features.clone())? {
            groups.entry(group.feature).or_default().push(group);
        }
        let mut together: HashMap<u32, Vec<FeaturePair>> = HashMap::new();
        let counted = match &self.pairs {
            Some(pairs) => {
                let from = |feature: u32| pairs.partition_point(|pair| pair.feature < feature);
                pairs[from(features.start)..from(features.end)].to_vec()
            }
            None => self.table.coactivation(features.clone())?.unwrap_or_default(),
        };
        for pair in counted {
            together.entry(pair.feature).or_default().push(pair);
        }
        let direction = |feature| self.directions.map(|directions| directions.direction(feature)).unwrap_or_default();
        let vectors: Vec<Vec<f32>> = features.clone().map(direction).collect();
        let mut logits = self.logits(&vectors).into_iter();
        let mut vectors = vectors.into_iter();
        let stats = self.table.stats(features)?;
        stats
            .into_iter()
            .map(|stats| {
                let feature = stats.feature;
                let neurons = self.neurons(feature, end, go_on)?;
                let of = (
                    examples.remove(&feature).unwrap_or_default(),
                    groups.remove(&feature).unwrap_or_default(),
                    together.remove(&feature).unwrap_or_default(),
                );
                let described = self.feature(stats, of)?;
                let (vector, logits) = (vectors.next().unwrap_or_default(), logits.next().unwrap_or_default());
                Ok(Feature { aligned: Aligned::of(&vector), vector, logits, neurons, ..described })
            })
            .collect()
    }

    /// What the table says of a feature.
    fn feature(
        &mut self,
        stats: FeatureStats,
        (examples, groups, mut together): (Vec<Example>, Vec<ExampleGroup>, Vec<FeaturePair>),
    ) -> Result<Feature> {
        let mut acts = self.table.acts_of_feature(stats.feature, usize::MAX)?;
        acts.sort_unstable_by_key(|&(token, _)| token);
        let mut passages = Vec::new();
        for example in examples {
            if let Some(bounds) = self.bounds(&stats, &groups, &example.group) {
                passages.push(self.passage(&acts, &example, bounds)?);
            }
        }
        let ordinary = self.tokens.ordinary(&acts)?;
        together.sort_by(|a, b| b.pearson.total_cmp(&a.pearson));
        together.truncate(ROWS);
        let named = |pairs: &[(u32, f32)]| {
            pairs.iter().map(|&(id, value)| (self.tokens.text(id), rounded(value.into()))).collect()
        };
        Ok(Feature {
            top: named(&stats.top_logits),
            bottom: named(&stats.bottom_logits),
            acts: Histogram::of(&ordinary),
            logits: Histogram::default(),
            aligned: Aligned::default(),
            neurons: Vec::new(),
            vector: Vec::new(),
            stats,
            together,
            passages,
        })
    }

    /// `bin_min`, `bin_max` and `bin_contains` of a group; `None` for groups that these formats do not know.
    fn bounds(&self, stats: &FeatureStats, groups: &[ExampleGroup], name: &str) -> Option<[f64; 3]> {
        if name == "top" {
            return Some([-1.0, rounded(stats.max_act.into()), -1.0]);
        }
        let group = groups.iter().find(|group| group.group == name && name.starts_with("interval-"))?;
        let all = self.table.info().n_ordinary_tokens;
        // The lowest interval begins at 0, where all tokens are at which the feature is silent.
        let silent = if group.low == 0.0 { all.saturating_sub(stats.n_active) } else { 0 };
        let share = (group.n_active + silent) as f64 / all.max(1) as f64;
        Some([rounded(group.low.into()), rounded(group.high.into()), (share * 1e5).round() / 1e5])
    }

    fn passage(&mut self, acts: &[(u64, f32)], example: &Example, bounds: [f64; 3]) -> Result<Passage> {
        let [bin_min, bin_max, bin_contains] = bounds;
        let range = example.context_start..example.context_start + u64::from(example.context_len);
        let mut at = acts.partition_point(|&(token, _)| token < range.start);
        let (mut tokens, mut values) = (Vec::new(), Vec::new());
        for (token, idx) in self.tokens.passage(range.clone())?.into_iter().zip(range.clone()) {
            let act = acts.get(at).filter(|(token, _)| *token == idx).map_or(0.0, |(_, act)| *act);
            at += usize::from(acts.get(at).is_some_and(|(token, _)| *token == idx));
            values.push(if token.special { 0.0 } else { rounded(act.into()) });
            tokens.push(token.text);
        }
        let peak = example.token_idx.saturating_sub(range.start) as usize;
        Ok(Passage { bin_min, bin_max, bin_contains, tokens, values, peak, token_idx: example.token_idx })
    }
}

impl Aligned {
    fn of(vector: &[f32]) -> Self {
        let mut order: Vec<usize> = (0..vector.len()).collect();
        order.sort_by(|&a, &b| vector[b].total_cmp(&vector[a]).then(a.cmp(&b)));
        order.truncate(ROWS);
        let l1: f64 = vector.iter().map(|x| f64::from(x.abs())).sum();
        Self {
            values: order.iter().map(|&i| rounded(vector[i].into())).collect(),
            shares: order.iter().map(|&i| rounded(f64::from(vector[i].abs()) / l1.max(f64::MIN_POSITIVE))).collect(),
            indices: order,
        }
    }
}

impl Histogram {
    /// Of no values there are no bars.
    fn of(values: &[f32]) -> Self {
        let finite = || values.iter().copied().filter(|value| value.is_finite()).map(f64::from);
        let (least, greatest) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        if least > greatest {
            return Self::default();
        }
        let width = (greatest - least) / BARS as f64;
        let mut heights = vec![0; BARS];
        for value in finite() {
            // Of one value only, every bar is as wide as nothing: it belongs to the first.
            let bar = if width > 0.0 { ((value - least) / width) as usize } else { 0 };
            heights[bar.min(BARS - 1)] += 1;
        }
        let middle = |bar: usize| rounded(least + (bar as f64 + 0.5) * width);
        Self { heights, values: (0..BARS).map(middle).collect() }
    }
}

/// To three decimals.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_by_hand() {
        assert_eq!(Histogram::of(&[]), Histogram::default());
        let values: Vec<f32> = (0..=100).map(|i| i as f32 / 10.0).collect();
        let found = Histogram::of(&values);
        assert_eq!((found.values[0], found.values[49]), (0.1, 9.9));
        assert_eq!(found.heights.iter().sum::<u64>(), 101);
        assert!(found.heights[49] >= 2, "the greatest belongs to the last bar");
        let one = Histogram::of(&[2.5, 2.5, f32::NAN]);
        assert_eq!((one.heights[0], one.values[0], one.values.len()), (2, 2.5, 50));
    }

    #[test]
    fn aligned_neurons_by_hand() {
        let found = Aligned::of(&[0.5, -2.0, 1.0, 0.5]);
        assert_eq!(found.indices, [2, 0, 3]);
        assert_eq!(found.values, [1.0, 0.5, 0.5]);
        assert_eq!(found.shares, [0.25, 0.125, 0.125]);
    }
}
