//! Which features are in the table, in which order, and what is shown of each?

use std::collections::BTreeMap;
use std::ops::Range;

use data::annotations::Annotations;
use data::features::Example;

use super::{Source, Tok};
use crate::loader::{Ask, Cancel, Failure};
use crate::state::{Item, SortBy};

/// Tokens that are searched at a time.
const SEARCH_BLOCK: u64 = 1 << 16;
/// A match may run over this many tokens from one block into the next.
const SEARCH_OVERLAP: u64 = 64;
/// Features whose examples are read at a time.
const FEATURE_BLOCK: u32 = 1_024;
/// Tokens before and after the peak in a table row.
const SNIPPET: (u64, u64) = (9, 7);
/// Logits in a table row.
const ROW_LOGITS: usize = 4;

/// Asks for the features that pass a filter, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OrderQuery {
    pub(crate) table: String,
    pub(crate) sort: SortBy,
    pub(crate) ascending: bool,
    pub(crate) filter: String,
    /// How much was said about the run when a filter looks into labels; 0 otherwise.
    pub(crate) notes: u64,
}

/// Stands for a feature that the filter leaves out.
const NO_ROW: u32 = u32::MAX;

/// The rows of the feature table.
#[derive(Debug)]
pub(crate) struct Order {
    /// Features in order.
    pub(crate) features: Vec<u32>,
    /// Columns by position in the *unfiltered* table, shared with other orders.
    pub(crate) stats: std::sync::Arc<data::features::StatsColumns>,
    /// Feature to position in `stats`, where features are not simply numbered through.
    at: Option<std::collections::BTreeMap<u32, u32>>,
    /// Position in `stats` to row, [`NO_ROW`] where the filter leaves it out.
    rows: Vec<u32>,
    /// The largest density and activation, for bars.
    pub(crate) max_density: f64,
    pub(crate) max_act: f32,
    /// The text that was looked for in the examples.
    pub(crate) needle: String,
}

impl Order {
    /// Where a feature's numbers are in `stats`.
    pub(crate) fn position(&self, feature: u32) -> Option<usize> {
        match &self.at {
            None => ((feature as usize) < self.stats.feature.len()).then_some(feature as usize),
            Some(at) => at.get(&feature).map(|at| *at as usize),
        }
    }

    /// The row on which a feature stands.
    pub(crate) fn row_of(&self, feature: u32) -> Option<u64> {
        let row = *self.rows.get(self.position(feature)?)?;
        (row != NO_ROW).then_some(u64::from(row))
    }
}

impl Ask for OrderQuery {
    type Answer = Order;
    const NAME: &'static str = "feature table";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Order, Failure> {
        let stats = source.stats(&self.table)?;
        let filter = Filter::parse(&self.filter);
        let n = stats.feature.len();
        let mut rows: Vec<u32> = (0..n as u32).collect();
        rows.retain(|row| {
            let i = *row as usize;
            filter.clauses.iter().all(|clause| {
                clause.holds(match clause.column {
                    Column::Id => f64::from(stats.feature[i]),
                    Column::Density => stats.frac_nonzero[i],
                    Column::Mean => stats.mean_act[i],
                    Column::Max => f64::from(stats.max_act[i]),
                    Column::Norm => f64::from(stats.decoder_norm[i]),
                    Column::Active => stats.n_active[i] as f64,
                })
            })
        });
        for word in &filter.labels {
            let notes = Annotations::read(&source.run)?;
            rows.retain(|row| {
                let item = Item::Feature { table: self.table.clone(), feature: stats.feature[*row as usize] };
                let said = notes.of(&item.to_string());
                said.iter().filter_map(|said| said.label.as_ref()).any(|label| label.to_lowercase().contains(word))
            });
        }
        for word in &filter.logits {
            let hits = search_logits(source, &self.table, word, cancel)?;
            rows.retain(|row| hits.binary_search(&stats.feature[*row as usize]).is_ok());
        }
        if !filter.text.is_empty() {
            let found = source.find(&filter.text, cancel)?;
            let hits = search_examples(source, &self.table, &found, cancel)?;
            rows.retain(|row| hits.binary_search(&stats.feature[*row as usize]).is_ok());
        }
        cancel.check()?;
        let value = |row: u32| {
            let i = row as usize;
            match self.sort {
                SortBy::Id => f64::from(stats.feature[i]),
                SortBy::Density => stats.frac_nonzero[i],
                SortBy::MeanAct => stats.mean_act[i],
                SortBy::MaxAct => f64::from(stats.max_act[i]),
                SortBy::DecoderNorm => f64::from(stats.decoder_norm[i]),
            }
        };
        // Ties by number, so that the order is the same every time. The keys are taken once: a million rows are
        // compared twenty million times.
        let mut keyed: Vec<(f64, u32)> = rows.into_iter().map(|row| (value(row), row)).collect();
        keyed.sort_unstable_by(|a, b| {
            let by_value = if self.ascending { a.0.total_cmp(&b.0) } else { b.0.total_cmp(&a.0) };
            by_value.then(a.1.cmp(&b.1))
        });
        let rows: Vec<u32> = keyed.into_iter().map(|(_, row)| row).collect();
        let numbered = stats.feature.iter().enumerate().all(|(i, f)| *f as usize == i);
        let at = (!numbered).then(|| stats.feature.iter().enumerate().map(|(i, f)| (*f, i as u32)).collect());
        let mut row_of = vec![NO_ROW; n];
        for (row, position) in rows.iter().enumerate() {
            row_of[*position as usize] = row as u32;
        }
        Ok(Order {
            rows: row_of,
            features: rows.into_iter().map(|row| stats.feature[row as usize]).collect(),
            max_density: stats.frac_nonzero.iter().copied().fold(0.0, f64::max),
            max_act: stats.max_act.iter().copied().fold(0.0, f32::max),
            at,
            needle: filter.text,
            stats,
        })
    }

    fn bytes(answer: &Order) -> usize {
        (answer.features.len() + answer.rows.len()) * 4 + 256
    }
}

/// Asks for what a page of rows shows beside the numbers.
#[derive(Debug, Clone)]
pub(crate) struct RowsQuery {
    pub(crate) table: String,
    pub(crate) features: Vec<u32>,
    /// Text that the example should hold, lower case; the strongest example where it is empty.
    pub(crate) needle: String,
    /// Which page of the screen, so that pages do not replace each other.
    pub(crate) page: u64,
}

/// What a row shows beside the numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct RowDetail {
    /// The strongest example (of those that hold the text, where one is looked for), cut around its peak.
    pub(crate) snippet: Vec<Tok>,
    /// Which token of the snippet is the peak.
    pub(crate) peak: usize,
    pub(crate) top_logits: String,
    /// Counts by activation, 64 logarithmic bins.
    pub(crate) histogram: Vec<u64>,
}

impl Ask for RowsQuery {
    type Answer = Vec<RowDetail>;
    const NAME: &'static str = "feature rows";

    fn slot(&self) -> u64 {
        self.page % 4
    }

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Vec<RowDetail>, Failure> {
        let table = source.table(&self.table)?;
        let found = if self.needle.is_empty() { None } else { Some(source.find(&self.needle, cancel)?) };
        let mut rows = Vec::with_capacity(self.features.len());
        for &feature in &self.features {
            cancel.check()?;
            let mut row = RowDetail::default();
            if let Some(stats) = table.stats(feature..feature.saturating_add(1))?.pop() {
                let texts: Vec<String> = stats
                    .top_logits
                    .iter()
                    .take(ROW_LOGITS)
                    .map(|(id, _)| source.token_text(*id).trim().to_owned())
                    .collect();
                row.top_logits = texts.join("  ");
                row.histogram = stats.act_hist;
            }
            let examples = table.examples(feature..feature.saturating_add(1))?;
            // The one in which the text stands nearest to the peak, so that it is seen in the row.
            let away = |example: &Example| {
                let end = example.context_start + u64::from(example.context_len);
                found.as_ref()?.nearest(example.context_start..end, example.token_idx)
            };
            let near =
                examples.iter().filter_map(|example| Some((away(example)?, example))).min_by_key(|(away, _)| *away);
            if let Some(example) = near.map(|(_, example)| example).or_else(|| examples.first()) {
                let end = example.context_start + u64::from(example.context_len);
                let from = example.context_start.max(example.token_idx.saturating_sub(SNIPPET.0));
                let to = end.min(example.token_idx + SNIPPET.1).max(from);
                row.snippet = source.toks(from..to)?;
                row.peak = (example.token_idx - from) as usize;
            }
            rows.push(row);
        }
        Ok(rows)
    }

    fn bytes(answer: &Vec<RowDetail>) -> usize {
        answer.iter().map(|row| row.snippet.len() * 40 + row.histogram.len() * 8 + 128).sum()
    }
}

/// What was typed into the filter, understood.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Filter {
    pub(crate) clauses: Vec<Clause>,
    /// Words that a label should hold, lower case.
    pub(crate) labels: Vec<String>,
    /// Words that the feature should promote, lower case.
    pub(crate) logits: Vec<String>,
    /// Lower case; looked for in the examples.
    pub(crate) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    Id,
    Density,
    Mean,
    Max,
    Norm,
    Active,
}

/// A comparison such as `density<1e-3`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Clause {
    column: Column,
    compare: &'static str,
    value: f64,
}

const COLUMNS: [(&str, Column); 6] = [
    ("id", Column::Id),
    ("density", Column::Density),
    ("mean", Column::Mean),
    ("max", Column::Max),
    ("norm", Column::Norm),
    ("n", Column::Active),
];

/// Longer signs first, since the shorter ones begin them.
const COMPARE: [&str; 5] = ["<=", ">=", "<", ">", "="];

impl Filter {
    /// Words that are comparisons become clauses, a single number or `#number` a feature, the rest is text.
    pub(crate) fn parse(typed: &str) -> Self {
        let mut filter = Self::default();
        let mut words = Vec::new();
        for word in typed.split_whitespace() {
            let after = |prefix: &str| word.strip_prefix(prefix).filter(|rest| !rest.is_empty()).map(str::to_lowercase);
            if let Some(label) = after("label:") {
                filter.labels.push(label);
            } else if let Some(logit) = after("logit:") {
                filter.logits.push(logit);
            } else {
                match Clause::parse(word) {
                    Some(clause) => filter.clauses.push(clause),
                    None => words.push(word),
                }
            }
        }
        if let [word] = words[..]
            && let Ok(id) = word.strip_prefix('#').unwrap_or(word).parse::<u32>()
        {
            filter.clauses.push(Clause { column: Column::Id, compare: "=", value: f64::from(id) });
            words.clear();
        }
        filter.text = words.join(" ").to_lowercase();
        filter
    }
}

impl Clause {
    fn parse(word: &str) -> Option<Self> {
        let at = word.find(['<', '>', '='])?;
        let (name, rest) = word.split_at(at);
        let (_, column) = COLUMNS.into_iter().find(|(column, _)| *column == name)?;
        let compare = COMPARE.into_iter().find(|sign| rest.starts_with(sign))?;
        let value = rest[compare.len()..].parse().ok()?;
        Some(Self { column, compare, value })
    }

    fn holds(&self, x: f64) -> bool {
        match self.compare {
            "<" => x < self.value,
            "<=" => x <= self.value,
            ">" => x > self.value,
            ">=" => x >= self.value,
            _ => x == self.value,
        }
    }
}

/// One bit a token.
#[derive(Debug)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    fn new(n: u64) -> Self {
        Self(vec![0; n.div_ceil(64) as usize])
    }

    fn set(&mut self, i: u64) {
        if let Some(word) = self.0.get_mut((i / 64) as usize) {
            *word |= 1 << (i % 64);
        }
    }

    fn get(&self, i: u64) -> bool {
        self.0.get((i / 64) as usize).is_some_and(|word| word >> (i % 64) & 1 == 1)
    }

    fn any(&self, range: Range<u64>) -> bool {
        range.into_iter().any(|i| self.get(i))
    }

    /// How far the nearest one in a range is from a place.
    fn nearest(&self, range: Range<u64>, from: u64) -> Option<u64> {
        range.filter(|i| self.get(*i)).map(|i| i.abs_diff(from)).min()
    }
}

/// The tokens in which the text begins, whatever its case and however it is cut into tokens.
/// It is looked for where words begin; with `*` before it, anywhere.
pub(super) fn search_tokens(source: &Source, needle: &str, cancel: &Cancel) -> Result<Bits, Failure> {
    let (needle, inside) = match needle.strip_prefix('*') {
        Some(rest) => (rest, true),
        None => (needle, false),
    };
    let total = source.run.n_tokens();
    let mut found = Bits::new(total);
    if needle.is_empty() {
        return Ok(found);
    }
    let mut start = 0;
    while start < total {
        cancel.check()?;
        let end = total.min(start + SEARCH_BLOCK);
        let toks = source.toks(start..total.min(end + SEARCH_OVERLAP))?;
        let mut text = String::new();
        let mut starts = Vec::with_capacity(toks.len());
        for tok in &toks {
            starts.push(text.len());
            // Text does not run on across a special token.
            if tok.special { text.push('\0') } else { text.push_str(&tok.text.to_lowercase()) }
        }
        for (at, _) in text.match_indices(needle).filter(|(at, _)| inside || begins_word(&text, *at)) {
            let tok = starts.partition_point(|s| *s <= at) as u64 - 1;
            if start + tok < end {
                found.set(start + tok);
            }
        }
        start = end;
    }
    Ok(found)
}

/// Whether a word begins here, so that `rain` is not found in `train`.
/// Scripts that write no spaces between words begin one anywhere.
fn begins_word(text: &str, at: usize) -> bool {
    let spaced = |c: char| c.is_alphanumeric() && u32::from(c) < 0x2e80;
    let (before, after) = text.split_at(at);
    !(before.chars().next_back().is_some_and(spaced) && after.chars().next().is_some_and(spaced))
}

/// Features of which one of the tokens that they promote most begins with a word, ascending.
fn search_logits(source: &Source, table: &str, word: &str, cancel: &Cancel) -> Result<Vec<u32>, Failure> {
    let table = source.table(table)?;
    let end = table.n_features();
    let mut known: BTreeMap<u32, bool> = BTreeMap::new();
    let mut hits = Vec::new();
    for start in (0..end).step_by(FEATURE_BLOCK as usize) {
        cancel.check()?;
        for stats in table.stats(start..end.min(start.saturating_add(FEATURE_BLOCK)))? {
            let mut fits = |id: u32| {
                *known.entry(id).or_insert_with(|| source.token_text(id).trim().to_lowercase().starts_with(word))
            };
            if stats.top_logits.iter().any(|(id, _)| fits(*id)) {
                hits.push(stats.feature);
            }
        }
    }
    hits.sort_unstable();
    Ok(hits)
}

/// Features with an example in which something was found, ascending.
fn search_examples(source: &Source, table: &str, found: &Bits, cancel: &Cancel) -> Result<Vec<u32>, Failure> {
    let table = source.table(table)?;
    let stats_end = table.n_features();
    let mut hits = Vec::new();
    let mut start = 0_u32;
    while start < stats_end {
        cancel.check()?;
        let end = stats_end.min(start.saturating_add(FEATURE_BLOCK));
        for example in table.examples(start..end)? {
            if hits.last() != Some(&example.feature)
                && found.any(example.context_start..example.context_start + u64::from(example.context_len))
            {
                hits.push(example.feature);
            }
        }
        start = end;
    }
    hits.sort_unstable();
    hits.dedup();
    Ok(hits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(typed: &str) -> (usize, String) {
        let filter = Filter::parse(typed);
        (filter.clauses.len(), filter.text)
    }

    #[test]
    fn words_comparisons_and_numbers_are_told_apart() {
        assert_eq!(parse(""), (0, String::new()));
        assert_eq!(parse("  Prime  Minister "), (0, "prime minister".into()));
        assert_eq!(parse("density<1e-3 max>=10 rain"), (2, "rain".into()));
        let filter = Filter::parse("label:Rain max>3 logit:mist hail");
        assert_eq!(
            (filter.labels.as_slice(), filter.logits.as_slice()),
            (&["rain".to_owned()][..], &["mist".to_owned()][..])
        );
        assert_eq!((filter.clauses.len(), filter.text.as_str()), (1, "hail"));
        assert_eq!(parse("label: logit:"), (0, "label: logit:".into()));
        assert_eq!(parse("#17"), (1, String::new()));
        assert_eq!(parse("17"), (1, String::new()));
        // A number among words is text, an unknown column is text.
        assert_eq!(parse("in 2001"), (0, "in 2001".into()));
        assert_eq!(parse("speed<3 x=y"), (0, "speed<3 x=y".into()));
    }

    #[test]
    fn comparisons_hold() {
        for (word, x, expected) in [
            ("max<2", 1.9, true),
            ("max<2", 2.0, false),
            ("max<=2", 2.0, true),
            ("max>2", 2.0, false),
            ("max>=2", 2.0, true),
            ("max=2", 2.0, true),
            ("max=2", f64::NAN, false),
        ] {
            assert_eq!(Clause::parse(word).unwrap().holds(x), expected, "{word} {x}");
        }
        assert_eq!(Clause::parse("max<"), None);
        assert_eq!(Clause::parse("max<€"), None);
    }

    #[test]
    fn words_are_found_where_they_begin() {
        let found = |text: &str, needle: &str| text.match_indices(needle).any(|(at, _)| begins_word(text, at));
        assert!(found("the rain", "rain") && found("rainfall", "rain") && found("\"rain\"", "rain"));
        assert!(!found("a train", "rain") && !found("переждал", "ждал"));
        assert!(found("下大雨", "雨") && found("it's", "'s") && found("a,b", ",b"));
    }

    #[test]
    fn the_nearest_is_found() {
        let mut bits = Bits::new(100);
        bits.set(10);
        bits.set(40);
        assert_eq!(bits.nearest(0..100, 30), Some(10));
        assert_eq!(bits.nearest(0..40, 30), Some(20));
        assert_eq!(bits.nearest(50..100, 30), None);
    }

    #[test]
    fn bits_are_found_in_ranges() {
        let mut bits = Bits::new(130);
        bits.set(64);
        bits.set(129);
        bits.set(10_000);
        assert!(bits.any(0..65) && bits.any(64..65) && bits.any(100..200));
        assert!(!bits.any(0..64) && !bits.any(65..129) && !bits.any(5..5));
    }
}
