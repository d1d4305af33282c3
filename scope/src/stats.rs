//! What describes one feature: how often and how strongly it fires, and which passages show it?
//!
//! A feature's activations arrive by descending value, so the largest is known from the first one on, and how many there
//! will be was counted while tokens were encoded: intervals of equal width and of equal count can be filled as they come,
//! and nothing needs to be remembered but the candidates for examples.

use data::features::{ACT_BINS, Example, ExampleGroup, FeatureStats, act_bin};

use crate::random::Random;

/// How many candidates are kept for one example of an interval, so that enough are left when contexts overlap.
const CANDIDATES: usize = 4;

/// How many examples, and how much of the text around them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExampleOptions {
    pub(crate) top: usize,
    pub(crate) intervals: usize,
    pub(crate) quantiles: usize,
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
    /// Activations that will arrive, those of special tokens left out.
    n_active: u64,
    stats: FeatureStats,
    sum: f64,
    top: Vec<Chosen>,
    intervals: Vec<Reservoir>,
    quantiles: Vec<Reservoir>,
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
    /// The greatest and the least that were seen.
    high: f32,
    low: f32,
    kept: Vec<(u64, f32)>,
}

impl Reservoir {
    /// The next activation, not above those before it; each has the same chance to be among the `capacity` that are kept.
    fn offer(&mut self, token_idx: u64, act: f32, capacity: usize, random: &mut Random) {
        if self.seen == 0 {
            self.high = act;
        }
        self.low = act;
        self.seen += 1;
        if self.kept.len() < capacity {
            self.kept.push((token_idx, act));
        } else if let Some(slot) = self.kept.get_mut(random.below(self.seen) as usize) {
            *slot = (token_idx, act);
        }
    }
}

impl<'a> Describer<'a> {
    /// `n_active`: at how many tokens that are not special it is active.
    pub(crate) fn new(feature: u32, n_active: u64, places: &'a Places, options: ExampleOptions) -> Self {
        let stats = FeatureStats { feature, act_hist: vec![0; ACT_BINS], ..FeatureStats::default() };
        Self {
            places,
            options,
            n_active,
            stats,
            sum: 0.0,
            top: Vec::new(),
            intervals: vec![Reservoir::default(); options.intervals],
            quantiles: vec![Reservoir::default(); options.quantiles],
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
        self.keep_for_groups(token_idx, act);
    }

    fn choose_top(&mut self, token_idx: u64, act: f32) {
        let chosen = self.chosen(token_idx, act);
        if !overlaps(&self.top, chosen) {
            self.top.push(chosen);
        }
    }

    fn keep_for_groups(&mut self, token_idx: u64, act: f32) {
        let capacity = self.options.per_interval * CANDIDATES;
        let share = f64::from(act) / f64::from(self.stats.max_act);
        let interval = (share * self.intervals.len() as f64) as usize;
        // The strongest is rank 0 and belongs to the last quantile; this one has been counted already.
        let weaker = self.n_active.saturating_sub(self.stats.n_active);
        let quantile = u128::from(weaker) * self.quantiles.len() as u128 / u128::from(self.n_active.max(1));
        for (groups, index) in [(&mut self.intervals, interval), (&mut self.quantiles, quantile as usize)] {
            if let Some(last) = groups.len().checked_sub(1) {
                groups[index.min(last)].offer(token_idx, act, capacity, &mut self.random);
            }
        }
    }

    fn chosen(&self, token_idx: u64, act: f32) -> Chosen {
        let (context_start, context_len) = self.places.context(token_idx, self.options.context);
        Chosen { token_idx, act, context_start, context_len }
    }

    /// The statistics, without what follows from the decoder, and the examples with the groups that they were drawn from:
    /// the top ones, then intervals, then quantiles, each from the highest down.
    pub(crate) fn finish(mut self) -> Described {
        let mut stats = std::mem::take(&mut self.stats);
        stats.frac_nonzero = stats.n_active as f64 / self.places.n_regular().max(1) as f64;
        stats.mean_act = if stats.n_active > 0 { self.sum / stats.n_active as f64 } else { 0.0 };
        let feature = stats.feature;
        let mut examples = named(feature, "top", std::mem::take(&mut self.top));
        let mut groups = Vec::new();
        for (kind, reservoirs) in
            [("interval", std::mem::take(&mut self.intervals)), ("quantile", std::mem::take(&mut self.quantiles))]
        {
            let n = reservoirs.len() as f32;
            for (index, reservoir) in reservoirs.into_iter().enumerate().rev() {
                let group = format!("{kind}-{index}");
                let bounds = match kind {
                    "interval" => [index, index + 1].map(|edge| stats.max_act * edge as f32 / n),
                    _ => [reservoir.low, reservoir.high],
                };
                if stats.n_active > 0 {
                    let ([low, high], n_active) = (bounds, reservoir.seen);
                    groups.push(ExampleGroup { feature, group: group.clone(), low, high, n_active });
                }
                examples.extend(named(feature, &group, self.draw(reservoir.kept)));
            }
        }
        Described { stats, examples, groups }
    }

    /// Examples among the candidates of a group, the strongest first.
    fn draw(&mut self, mut candidates: Vec<(u64, f32)>) -> Vec<Chosen> {
        // While a reservoir is not full its entries are in descending order: take them in random order too.
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
        group
    }
}

/// What a feature's activations say of it.
pub(crate) struct Described {
    pub(crate) stats: FeatureStats,
    pub(crate) examples: Vec<Example>,
    pub(crate) groups: Vec<ExampleGroup>,
}

fn named(feature: u32, group: &str, chosen: Vec<Chosen>) -> Vec<Example> {
    let example = |(rank, chosen): (u32, Chosen)| Example {
        feature,
        rank,
        group: group.to_owned(),
        token_idx: chosen.token_idx,
        act: chosen.act,
        context_start: chosen.context_start,
        context_len: chosen.context_len,
    };
    (0..).zip(chosen).map(example).collect()
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

    const OPTIONS: ExampleOptions =
        ExampleOptions { top: 3, intervals: 2, quantiles: 2, per_interval: 2, context: 4, seed: 0 };

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
        let mut describer = Describer::new(7, 5, &places, OPTIONS);
        for (token_idx, act) in [(10, 9.0), (15, 8.0), (14, 7.0), (2, 4.0), (25, 3.0), (3, 1.0)] {
            describer.add(token_idx, act);
        }
        let Described { stats, examples, groups } = describer.finish();
        assert_eq!((stats.feature, stats.n_active, stats.max_act), (7, 5, 8.0));
        assert_eq!(stats.mean_act, 23.0 / 5.0);
        assert_eq!(stats.frac_nonzero, 5.0 / 27.0);
        assert_eq!((stats.first_fired, stats.last_fired), (Some(2), Some(25)));
        assert_eq!(stats.act_hist.iter().sum::<u64>(), 5);
        let top: Vec<_> = examples.iter().filter(|e| e.group == "top").map(|e| e.token_idx).collect();
        assert_eq!(top, [15, 2, 25], "14 stands in the passage around 15, 3 in the one around 2");
        assert_eq!(examples.iter().map(|e| e.rank).take(7).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 0, 1]);
        let high: Vec<_> = examples.iter().filter(|e| e.group == "interval-1").collect();
        assert!(high.iter().all(|e| e.act >= 4.0) && !high.is_empty());
        let low: Vec<_> = examples.iter().filter(|e| e.group == "interval-0").map(|e| e.act).collect();
        assert_eq!(low, [3.0, 1.0]);
        let bounds: Vec<_> = groups.iter().map(|g| (g.group.as_str(), g.low, g.high, g.n_active)).collect();
        assert_eq!(
            bounds,
            [
                ("interval-1", 4.0, 8.0, 3),
                ("interval-0", 0.0, 4.0, 2),
                ("quantile-1", 7.0, 8.0, 2),
                ("quantile-0", 1.0, 4.0, 3)
            ]
        );
    }

    #[test]
    fn quantiles_are_of_equal_count_whatever_the_values() {
        // Equal values too: ranks part them.
        let mut places = Places::new(vec![0]);
        places.push(&[false; 4000]);
        for quantiles in [1, 3, 4, 10] {
            let options = ExampleOptions { quantiles, ..OPTIONS };
            let mut describer = Describer::new(0, 1003, &places, options);
            (0..1003).for_each(|i| describer.add(i * 3, if i < 900 { 5.0 } else { 1.0 }));
            let groups = describer.finish().groups;
            let counts: Vec<u64> =
                groups.iter().filter(|g| g.group.starts_with("quantile")).map(|g| g.n_active).collect();
            assert_eq!((counts.len(), counts.iter().sum::<u64>()), (quantiles, 1003));
            assert!(counts.iter().all(|&n| n.abs_diff(1003 / quantiles as u64) <= 1), "{counts:?}");
        }
    }

    #[test]
    fn every_activation_of_a_group_is_as_likely_an_example() {
        let mut places = Places::new((0..1000).collect());
        places.push(&[false; 1000]);
        let mut drawn = vec![0u32; 1000];
        for seed in 0..400 {
            let options = ExampleOptions { intervals: 0, quantiles: 1, per_interval: 5, seed, ..OPTIONS };
            let mut describer = Describer::new(0, 1000, &places, options);
            (0..1000).for_each(|i| describer.add(i, 2.0 - i as f32 / 1000.0));
            for example in describer.finish().examples.iter().filter(|e| e.group == "quantile-0") {
                drawn[example.token_idx as usize] += 1;
            }
        }
        // 2000 drawn from ten tenths: 200 each, with a standard deviation of 13.
        let tenths: Vec<u32> = drawn.chunks(100).map(|part| part.iter().sum()).collect();
        assert!(tenths.iter().all(|&n| n.abs_diff(200) < 60), "{tenths:?}");
    }

    #[test]
    fn a_feature_that_never_fires() {
        let places = places();
        let Described { stats, examples, groups } = Describer::new(1, 0, &places, OPTIONS).finish();
        assert!(groups.is_empty());
        assert_eq!((stats.n_active, stats.frac_nonzero, stats.mean_act, stats.max_act), (0, 0.0, 0.0, 0.0));
        assert_eq!((stats.first_fired, examples.len()), (None, 0));
    }
}
