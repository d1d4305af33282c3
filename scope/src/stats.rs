//! What describes one feature: how often and how strongly it fires, and which passages show it?
//!
//! A feature's activations arrive by descending value, so the largest is known from the first one on, equal-width intervals
//! of value can be filled as they come, and nothing needs to be remembered but the chosen examples.

use data::features::{ACT_BINS, Example, FeatureStats, act_bin};

use crate::random::Random;

/// How many candidates are kept for one example of an interval, so that enough are left when contexts overlap.
const CANDIDATES: usize = 4;

/// How many examples, and how much of the text around them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExampleOptions {
    pub(crate) top: usize,
    pub(crate) intervals: usize,
    pub(crate) per_interval: usize,
    pub(crate) context: u32,
    pub(crate) seed: u64,
}

/// Where documents begin and which tokens are special: what a passage must not cross and statistics leave out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    special: Vec<u64>,
    n_tokens: u64,
    n_regular: u64,
    documents: Vec<u64>,
}

impl Places {
    /// `documents`: the first token of each, ascending.
    pub(crate) fn new(documents: Vec<u64>) -> Self {
        Self { documents, ..Self::default() }
    }

    /// Appends the flags of the next tokens.
    pub(crate) fn push(&mut self, special: &[bool]) {
        for &special in special {
            let (word, bit) = (self.n_tokens / 64, self.n_tokens % 64);
            if word as usize == self.special.len() {
                self.special.push(0);
            }
            self.special[word as usize] |= u64::from(special) << bit;
            self.n_tokens += 1;
            self.n_regular += u64::from(!special);
        }
    }

    /// Tokens that are not special.
    pub(crate) fn n_regular(&self) -> u64 {
        self.n_regular
    }

    pub(crate) fn is_special(&self, token_idx: u64) -> bool {
        self.special.get(token_idx as usize / 64).is_some_and(|word| word >> (token_idx % 64) & 1 == 1)
    }

    /// The passage around a token, three quarters of it before the token, inside its document.
    fn context(&self, token_idx: u64, length: u32) -> (u64, u32) {
        let next = self.documents.partition_point(|&first| first <= token_idx);
        let first = next.checked_sub(1).map_or(0, |document| self.documents[document]);
        let end = self.documents.get(next).copied().unwrap_or(self.n_tokens);
        let before = u64::from(length) * 3 / 4;
        let start = token_idx.saturating_sub(before).max(first);
        // At the end of a document the passage reaches further back instead.
        let end = (start + u64::from(length)).min(end).max(token_idx + 1);
        let start = start.min(end.saturating_sub(u64::from(length)).max(first));
        (start, (end - start) as u32)
    }
}

/// One feature, while its activations arrive.
pub(crate) struct Describer<'a> {
    places: &'a Places,
    options: ExampleOptions,
    stats: FeatureStats,
    sum: f64,
    top: Vec<Chosen>,
    intervals: Vec<Reservoir>,
    random: Random,
}

#[derive(Clone, Copy)]
struct Chosen {
    token_idx: u64,
    act: f32,
    context_start: u64,
    context_len: u32,
}

#[derive(Clone, Default)]
struct Reservoir {
    seen: u64,
    kept: Vec<(u64, f32)>,
}

impl<'a> Describer<'a> {
    pub(crate) fn new(feature: u32, places: &'a Places, options: ExampleOptions) -> Self {
        let stats = FeatureStats { feature, act_hist: vec![0; ACT_BINS], ..FeatureStats::default() };
        Self {
            places,
            options,
            stats,
            sum: 0.0,
            top: Vec::new(),
            intervals: vec![Reservoir::default(); options.intervals],
            random: Random::new(options.seed ^ u64::from(feature).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        }
    }

    /// The next activation, not above those before it.
    pub(crate) fn add(&mut self, token_idx: u64, act: f32) {
        if self.places.is_special(token_idx) {
            return;
        }
        let stats = &mut self.stats;
        if stats.n_active == 0 {
            stats.max_act = act;
        }
        stats.n_active += 1;
        stats.act_hist[act_bin(act)] += 1;
        stats.first_fired = Some(stats.first_fired.map_or(token_idx, |first| first.min(token_idx)));
        stats.last_fired = Some(stats.last_fired.map_or(token_idx, |last| last.max(token_idx)));
        self.sum += f64::from(act);
        if self.top.len() < self.options.top {
            self.choose_top(token_idx, act);
        }
        self.keep_for_interval(token_idx, act);
    }

    fn choose_top(&mut self, token_idx: u64, act: f32) {
        let chosen = self.chosen(token_idx, act);
        if !overlaps(&self.top, chosen) {
            self.top.push(chosen);
        }
    }

    fn keep_for_interval(&mut self, token_idx: u64, act: f32) {
        let n = self.options.intervals;
        if n == 0 {
            return;
        }
        let share = f64::from(act) / f64::from(self.stats.max_act);
        let interval = ((share * n as f64) as usize).min(n - 1);
        let reservoir = &mut self.intervals[interval];
        reservoir.seen += 1;
        if reservoir.kept.len() < self.options.per_interval * CANDIDATES {
            reservoir.kept.push((token_idx, act));
        } else {
            let slot = self.random.below(reservoir.seen) as usize;
            if let Some(slot) = reservoir.kept.get_mut(slot) {
                *slot = (token_idx, act);
            }
        }
    }

    fn chosen(&self, token_idx: u64, act: f32) -> Chosen {
        let (context_start, context_len) = self.places.context(token_idx, self.options.context);
        Chosen { token_idx, act, context_start, context_len }
    }

    /// The statistics, without what follows from the decoder, and the examples: the top ones, then the intervals from
    /// the highest down.
    pub(crate) fn finish(mut self) -> (FeatureStats, Vec<Example>) {
        let mut stats = self.stats.clone();
        stats.frac_nonzero = stats.n_active as f64 / self.places.n_regular().max(1) as f64;
        stats.mean_act = if stats.n_active > 0 { self.sum / stats.n_active as f64 } else { 0.0 };
        let mut groups = vec![("top".to_owned(), std::mem::take(&mut self.top))];
        for (index, reservoir) in self.intervals.iter().enumerate().rev() {
            let mut candidates = reservoir.kept.clone();
            // While the reservoir is not full its entries are in descending order: take them in random order too.
            for i in (1..candidates.len()).rev() {
                candidates.swap(i, self.random.below(i as u64 + 1) as usize);
            }
            let mut group: Vec<Chosen> = Vec::new();
            for (token_idx, act) in candidates {
                let chosen = self.chosen(token_idx, act);
                if group.len() < self.options.per_interval && !overlaps(&group, chosen) {
                    group.push(chosen);
                }
            }
            group.sort_by(|a, b| b.act.total_cmp(&a.act).then(a.token_idx.cmp(&b.token_idx)));
            groups.push((format!("interval-{index}"), group));
        }
        let mut examples = Vec::new();
        for (group, chosen) in groups {
            for (rank, chosen) in (0..).zip(chosen) {
                examples.push(Example {
                    feature: stats.feature,
                    rank,
                    group: group.clone(),
                    token_idx: chosen.token_idx,
                    act: chosen.act,
                    context_start: chosen.context_start,
                    context_len: chosen.context_len,
                });
            }
        }
        (stats, examples)
    }
}

/// Whether the peak of `new` stands in the passage of another example: it would be shown twice.
fn overlaps(group: &[Chosen], new: Chosen) -> bool {
    group.iter().any(|old| {
        let passage = old.context_start..old.context_start + u64::from(old.context_len);
        passage.contains(&new.token_idx)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: ExampleOptions = ExampleOptions { top: 3, intervals: 2, per_interval: 2, context: 4, seed: 0 };

    fn places() -> Places {
        // Documents 0..10, 10..30; every tenth token is special.
        let mut places = Places::new(vec![0, 10]);
        places.push(&(0..30).map(|i| i % 10 == 0).collect::<Vec<_>>());
        places
    }

    #[test]
    fn contexts_stay_in_their_document() {
        let places = places();
        assert_eq!(places.n_regular(), 27);
        assert_eq!(places.context(0, 4), (0, 4));
        assert_eq!(places.context(9, 4), (6, 4));
        assert_eq!(places.context(10, 4), (10, 4));
        assert_eq!(places.context(20, 4), (17, 4));
        assert_eq!(places.context(29, 4), (26, 4));
        assert_eq!(places.context(5, 100), (0, 10));
    }

    #[test]
    fn statistics_leave_special_tokens_out() {
        let places = places();
        let mut describer = Describer::new(7, &places, OPTIONS);
        for (token_idx, act) in [(10, 9.0), (15, 8.0), (14, 7.0), (2, 4.0), (25, 3.0), (3, 1.0)] {
            describer.add(token_idx, act);
        }
        let (stats, examples) = describer.finish();
        assert_eq!((stats.feature, stats.n_active, stats.max_act), (7, 5, 8.0));
        assert_eq!(stats.mean_act, 23.0 / 5.0);
        assert_eq!(stats.frac_nonzero, 5.0 / 27.0);
        assert_eq!((stats.first_fired, stats.last_fired), (Some(2), Some(25)));
        assert_eq!(stats.act_hist.iter().sum::<u64>(), 5);
        let top: Vec<_> = examples.iter().filter(|e| e.group == "top").map(|e| e.token_idx).collect();
        assert_eq!(top, [15, 2, 25], "14 stands in the passage around 15, 3 in the one around 2");
        assert_eq!(examples.iter().map(|e| e.rank).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 0, 1]);
        let high: Vec<_> = examples.iter().filter(|e| e.group == "interval-1").collect();
        assert!(high.iter().all(|e| e.act >= 4.0) && !high.is_empty());
        let low: Vec<_> = examples.iter().filter(|e| e.group == "interval-0").map(|e| e.act).collect();
        assert_eq!(low, [3.0, 1.0]);
    }

    #[test]
    fn a_feature_that_never_fires() {
        let places = places();
        let (stats, examples) = Describer::new(1, &places, OPTIONS).finish();
        assert_eq!((stats.n_active, stats.frac_nonzero, stats.mean_act, stats.max_act), (0, 0.0, 0.0, 0.0));
        assert_eq!((stats.first_fired, examples.len()), (None, 0));
    }
}
