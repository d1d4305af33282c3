//! Which features of a table are worth showing first, and in which words were they found?

use std::collections::BTreeSet;

use anyhow::Result;
use data::Run;
use data::features::{Example, FeatureTable};

/// A feature that fires more rarely than this has too few passages to be judged by.
const MIN_ACTIVE: u64 = 10;

/// A feature that fires more often than on one token in a hundred says little about a single passage.
const MAX_FRAC_NONZERO: f64 = 0.01;

/// Passages that are looked at, strongest first.
const PASSAGES: usize = 5;

/// Documents that they must come from, so that a feature is not one document's own.
const MIN_DOCUMENTS: usize = 4;

/// Tokens that are shown on either side of the peak.
const AROUND: u64 = 14;

/// How the features are chosen, for a person.
pub(crate) const CRITERION: &str = "features that fire on at least 10 tokens and at most 1 % of them, whose five strongest \
                                    passages come from four documents or more; strongest mean activation first, one for \
                                    each word at the peak";

/// A feature with a passage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pick {
    pub(crate) feature: u32,
    pub(crate) frac_nonzero: f64,
    pub(crate) mean_act: f64,
    pub(crate) max_act: f32,
    pub(crate) top_logits: Vec<(u32, f32)>,
    pub(crate) passage: Passage,
}

/// Words around the token at which a feature is strongest.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Passage {
    pub(crate) before: String,
    pub(crate) peak: String,
    pub(crate) after: String,
}

/// The first `wanted` features by [`CRITERION`].
pub(crate) fn interesting(run: &Run, table: &FeatureTable, wanted: usize) -> Result<Vec<Pick>> {
    let summary = table.summary()?;
    let mut order: Vec<usize> = (0..summary.feature.len())
        .filter(|&i| summary.n_active[i] >= MIN_ACTIVE && summary.frac_nonzero[i] <= MAX_FRAC_NONZERO)
        .collect();
    order.sort_by(|&a, &b| summary.mean_act[b].total_cmp(&summary.mean_act[a]).then(a.cmp(&b)));

    let mut picks: Vec<Pick> = Vec::new();
    let mut words = BTreeSet::new();
    for i in order {
        if picks.len() == wanted {
            break;
        }
        let feature = summary.feature[i];
        let examples = strongest(table.examples(feature..feature + 1)?);
        let Some(first) = examples.first() else { continue };
        let documents: BTreeSet<u64> =
            examples.iter().map(|e| run.document_at(e.token_idx)).collect::<Result<_, _>>()?;
        if documents.len() < MIN_DOCUMENTS {
            continue;
        }
        let passage = passage(run, first)?;
        if !words.insert(passage.peak.trim().to_lowercase()) {
            continue;
        }
        let top_logits = table.stats(feature..feature + 1)?.into_iter().next().map(|stats| stats.top_logits);
        picks.push(Pick {
            feature,
            frac_nonzero: summary.frac_nonzero[i],
            mean_act: summary.mean_act[i],
            max_act: summary.max_act[i],
            top_logits: top_logits.unwrap_or_default(),
            passage,
        });
    }
    Ok(picks)
}

fn strongest(examples: Vec<Example>) -> Vec<Example> {
    let mut top: Vec<Example> = examples.into_iter().filter(|example| example.group == "top").collect();
    top.sort_by_key(|example| example.rank);
    top.truncate(PASSAGES);
    top
}

fn passage(run: &Run, example: &Example) -> Result<Passage> {
    let document = run.document_tokens(run.document_at(example.token_idx)?)?;
    let start = document.start.max(example.token_idx.saturating_sub(AROUND));
    let end = document.end.min(example.token_idx + AROUND + 1);
    let columns = run.tokens(start..end)?;
    let words = |range: std::ops::Range<usize>| {
        let kept = range.filter(|&i| !columns.special[i]);
        readable(kept.map(|i| columns.token[i].as_str()))
    };
    let peak = (example.token_idx - start) as usize;
    Ok(Passage { before: words(0..peak), peak: words(peak..peak + 1), after: words(peak + 1..columns.token.len()) })
}

/// Tokens as text on one line: `<0xE2>` is a byte of a character.
pub(crate) fn readable<'a>(tokens: impl Iterator<Item = &'a str>) -> String {
    let mut bytes = Vec::new();
    for token in tokens {
        match byte(token) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(token.as_bytes()),
        }
    }
    String::from_utf8_lossy(&bytes).replace(['\n', '\r', '\t'], " ")
}

/// The byte that a token such as `<0xE2>` stands for.
fn byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_become_text() {
        let text = |tokens: &[&str]| readable(tokens.iter().copied());
        assert_eq!(text(&[" The", " cat", "\n", "s"]), " The cat s");
        assert_eq!(text(&["a", "<0xE2>", "<0x82>", "<0xAC>", "b"]), "a€b");
        assert_eq!(text(&["<0xE2>", "x"]), "\u{FFFD}x");
        assert_eq!(text(&["<0xZZ>", "<bos>"]), "<0xZZ><bos>");
    }
}
