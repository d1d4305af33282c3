//! Which features of a table are worth showing first, and in which words were they found?

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::Result;
use data::features::{Example, FeatureTable};
use data::{Run, TokenColumns};

/// A feature that fires more rarely than this has too few passages to be judged by.
const MIN_ACTIVE: u64 = 10;

/// A feature that fires more often than on one token in a hundred says little about a single passage.
const MAX_FRAC_NONZERO: f64 = 0.01;

/// Passages that are looked at, strongest first.
const PASSAGES: usize = 8;

/// Documents that they must come from, so that a feature is not one document's own.
const MIN_DOCUMENTS: usize = 6;

/// Different words that they must peak on, so that a feature is not one word's own.
const MIN_WORDS: usize = 4;

/// Letters that each of the words must have, since what begins with the same letters is not a word yet.
const MIN_LETTERS: usize = 4;

/// Tokens that are shown on either side of the peak.
const AROUND: usize = 14;

/// How the features are chosen, for a person.
pub(crate) const CRITERION: &str = "they fire on at least 10 tokens and at most 1 % of all; their eight strongest \
                                    passages come from six documents or more and peak on four different words or \
                                    more; strongest mean activation first";

/// A feature with a passage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pick {
    pub(crate) feature: u32,
    pub(crate) frac_nonzero: f64,
    pub(crate) mean_act: f64,
    pub(crate) max_act: f32,
    pub(crate) top_logits: Vec<(u32, f32)>,
    /// The words at the peaks of the strongest passages, each once, strongest first.
    pub(crate) words: Vec<String>,
    pub(crate) passage: Passage,
}

/// Words around the token at which a feature is strongest.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Passage {
    pub(crate) before: String,
    pub(crate) peak: String,
    pub(crate) after: String,
}

/// The first `wanted` features by [`CRITERION`]. Holds all tokens of the run in memory.
pub(crate) fn interesting(run: &Run, table: &FeatureTable, wanted: usize) -> Result<Vec<Pick>> {
    let tokens = run.tokens(0..run.n_tokens())?;
    let summary = table.summary()?;
    let mut order: Vec<usize> = (0..summary.feature.len())
        .filter(|&i| summary.n_active[i] >= MIN_ACTIVE && summary.frac_nonzero[i] <= MAX_FRAC_NONZERO)
        .collect();
    order.sort_by(|&a, &b| summary.mean_act[b].total_cmp(&summary.mean_act[a]).then(a.cmp(&b)));

    let mut picks: Vec<Pick> = Vec::new();
    for i in order {
        if picks.len() == wanted {
            break;
        }
        let feature = summary.feature[i];
        let peaks = strongest(table.examples(feature..feature + 1)?);
        let Some(words) = words(&tokens, &peaks) else { continue };
        // Two features for the same word are one too many.
        if picks.iter().any(|pick| pick.words.contains(&words[0])) {
            continue;
        }
        let stats = table.stats(feature..feature + 1)?.into_iter().next();
        picks.push(Pick {
            feature,
            frac_nonzero: summary.frac_nonzero[i],
            mean_act: summary.mean_act[i],
            max_act: summary.max_act[i],
            top_logits: stats.map(|stats| stats.top_logits).unwrap_or_default(),
            words,
            passage: passage(&tokens, peaks[0]),
        });
    }
    Ok(picks)
}

/// The tokens at which the strongest passages peak, as rows of the run.
fn strongest(examples: Vec<Example>) -> Vec<usize> {
    let mut top: Vec<Example> = examples.into_iter().filter(|example| example.group == "top").collect();
    top.sort_by_key(|example| example.rank);
    top.into_iter().take(PASSAGES).map(|example| example.token_idx as usize).collect()
}

/// The words at the peaks, if they are as [`CRITERION`] wants them.
fn words(tokens: &TokenColumns, peaks: &[usize]) -> Option<Vec<String>> {
    let documents: BTreeSet<u64> = peaks.iter().map(|&peak| tokens.doc_id[peak]).collect();
    let mut words: Vec<String> = Vec::new();
    for &peak in peaks {
        let word = tokens.token[peak].trim().to_lowercase();
        if word.chars().count() < MIN_LETTERS || !word.chars().all(char::is_alphabetic) {
            return None;
        }
        if !words.contains(&word) {
            words.push(word);
        }
    }
    (peaks.len() == PASSAGES && documents.len() >= MIN_DOCUMENTS && words.len() >= MIN_WORDS).then_some(words)
}

fn passage(tokens: &TokenColumns, peak: usize) -> Passage {
    let document = tokens.doc_id[peak];
    let words = |range: Range<usize>| {
        let kept = range.filter(|&i| tokens.doc_id[i] == document && !tokens.special[i]);
        readable(kept.map(|i| tokens.token[i].as_str()))
    };
    let end = (peak + AROUND + 1).min(tokens.len());
    Passage {
        before: words(peak.saturating_sub(AROUND)..peak),
        peak: words(peak..peak + 1),
        after: words(peak + 1..end),
    }
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

    fn tokens(rows: &[(u64, &str)]) -> TokenColumns {
        let mut tokens = TokenColumns::default();
        for (pos, &(document, token)) in rows.iter().enumerate() {
            tokens.push(document, pos as u32, 9, token, None, token == "<bos>", None);
        }
        tokens
    }

    #[test]
    fn a_passage_stays_in_its_document() {
        let tokens = tokens(&[(0, "old"), (1, "<bos>"), (1, "The"), (1, " stone"), (1, " shone"), (2, "new")]);
        let found = passage(&tokens, 3);
        assert_eq!(found, Passage { before: "The".into(), peak: " stone".into(), after: " shone".into() });
    }

    #[test]
    fn words_must_differ_and_be_words() {
        let names = ["Give", " gave", " given", " gives"];
        let rows: Vec<(u64, &str)> = (0..8).map(|i| (i, names[i as usize % 4])).collect();
        let peaks: Vec<usize> = (0..8).collect();
        assert_eq!(words(&tokens(&rows), &peaks).unwrap(), ["give", "gave", "given", "gives"]);
        assert_eq!(words(&tokens(&rows), &peaks[..7]), None);

        let same: Vec<(u64, &str)> = (0..8).map(|i| (i, " said")).collect();
        assert_eq!(words(&tokens(&same), &peaks), None);
        let few: Vec<(u64, &str)> = (0..8).map(|i| (i % 3, names[i as usize % 4])).collect();
        assert_eq!(words(&tokens(&few), &peaks), None);
        let mut short = rows.clone();
        short[5].1 = "'ve";
        assert_eq!(words(&tokens(&short), &peaks), None);
    }

    #[test]
    fn tokens_become_text() {
        let text = |tokens: &[&str]| readable(tokens.iter().copied());
        assert_eq!(text(&[" The", " cat", "\n", "s"]), " The cat s");
        assert_eq!(text(&["a", "<0xE2>", "<0x82>", "<0xAC>", "b"]), "a€b");
        assert_eq!(text(&["<0xE2>", "x"]), "\u{FFFD}x");
        assert_eq!(text(&["<0xZZ>", "<bos>"]), "<0xZZ><bos>");
    }
}
