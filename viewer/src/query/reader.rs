//! What is in a document, token by token?

use std::ops::Range;

use super::{Source, Tok};
use crate::loader::{Ask, Cancel, Failure};

/// A page of the reader: as much text as is laid out at once.
pub(crate) const TOKENS_PER_PAGE: u64 = 2_048;
/// Documents in a page of the list.
const DOCUMENTS_PER_PAGE: u64 = 64;
/// Tokens of a document's beginning in the list.
const FIRST_TOKENS: u64 = 24;

/// Asks for a page of the document list.
#[derive(Debug, Clone)]
pub(crate) struct DocumentsQuery {
    pub(crate) page: u64,
}

/// A page of the document list.
#[derive(Debug)]
pub(crate) struct Documents {
    /// The number of the first document in the list.
    pub(crate) first: u64,
    pub(crate) lines: Vec<DocumentLine>,
}

/// A document in the list.
#[derive(Debug)]
pub(crate) struct DocumentLine {
    pub(crate) doc: u64,
    pub(crate) n_tokens: u64,
    pub(crate) source: String,
    /// How it begins, on one line.
    pub(crate) beginning: String,
}

impl DocumentsQuery {
    /// The page on which a row of the list is.
    pub(crate) fn of_row(row: u64) -> Self {
        Self { page: row / DOCUMENTS_PER_PAGE }
    }
}

impl Ask for DocumentsQuery {
    type Answer = Documents;
    const NAME: &'static str = "documents";

    fn slot(&self) -> u64 {
        self.page % 4
    }

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Documents, Failure> {
        let first = self.page * DOCUMENTS_PER_PAGE;
        let last = source.run.n_documents().min(first + DOCUMENTS_PER_PAGE).max(first);
        let mut lines = Vec::new();
        for row in source.run.documents(first..last)? {
            cancel.check()?;
            let start = row.first_token_idx;
            let toks = source.toks(start..start + row.n_tokens.min(FIRST_TOKENS))?;
            let text: String = toks.iter().filter(|tok| !tok.special).map(|tok| tok.text.as_ref()).collect();
            lines.push(DocumentLine {
                doc: row.doc_id,
                n_tokens: row.n_tokens,
                source: row.source,
                beginning: text.split_whitespace().collect::<Vec<_>>().join(" "),
            });
        }
        Ok(Documents { first, lines })
    }

    fn bytes(answer: &Documents) -> usize {
        answer.lines.len() * 256
    }
}

/// Asks for a page of a document's tokens.
#[derive(Debug, Clone)]
pub(crate) struct PassageQuery {
    pub(crate) doc: u64,
    pub(crate) page: u64,
}

/// A page of a document's tokens.
#[derive(Debug)]
pub(crate) struct Passage {
    pub(crate) doc: u64,
    pub(crate) source: String,
    /// Length of the whole document.
    pub(crate) n_tokens: u64,
    /// Number of the first token of the page, in the document and in the run.
    pub(crate) first: u64,
    pub(crate) first_token_idx: u64,
    pub(crate) toks: Vec<Tok>,
    pub(crate) ids: Vec<u32>,
    pub(crate) pos: Vec<u32>,
    /// −ln p of each token; not a number where it was not recorded.
    pub(crate) nll: Vec<f32>,
}

pub(super) fn page_range(source: &Source, doc: u64, page: u64) -> Result<(Range<u64>, Range<u64>), Failure> {
    let whole = source.run.document_tokens(doc)?;
    let start = whole.start + (page * TOKENS_PER_PAGE).min(whole.end - whole.start);
    let end = whole.end.min(start + TOKENS_PER_PAGE);
    Ok((whole, start..end))
}

impl Ask for PassageQuery {
    type Answer = Passage;
    const NAME: &'static str = "document";

    fn answer(&self, source: &Source, _: &Cancel) -> Result<Passage, Failure> {
        let row = source.run.document(self.doc)?;
        let (whole, range) = page_range(source, self.doc, self.page)?;
        let columns = source.run.tokens(range.clone())?;
        Ok(Passage {
            doc: self.doc,
            source: row.source,
            n_tokens: whole.end - whole.start,
            first: range.start - whole.start,
            first_token_idx: range.start,
            ids: columns.token_id,
            pos: columns.pos,
            nll: columns.nll.into_iter().map(|nll| nll.unwrap_or(f32::NAN)).collect(),
            toks: columns
                .token
                .into_iter()
                .zip(columns.special)
                .map(|(text, special)| Tok { text: text.into_boxed_str(), special })
                .collect(),
        })
    }

    fn bytes(answer: &Passage) -> usize {
        answer.toks.len() * 64 + 256
    }
}

/// Asks for the features that are active on a page.
#[derive(Debug, Clone)]
pub(crate) struct PassageFeaturesQuery {
    pub(crate) table: String,
    pub(crate) doc: u64,
    pub(crate) page: u64,
}

/// A feature that is active at a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Active {
    pub(crate) feature: u32,
    pub(crate) act: f32,
}

/// The features that are active on a page, token by token.
#[derive(Debug)]
pub(crate) struct PassageFeatures {
    /// Where each token's features begin in `active`; one more than there are tokens.
    starts: Vec<u32>,
    /// Strongest first within a token.
    active: Vec<Active>,
}

impl PassageFeatures {
    /// The features of a token of the page, strongest first.
    pub(crate) fn at(&self, token: usize) -> &[Active] {
        match (self.starts.get(token), self.starts.get(token + 1)) {
            (Some(from), Some(to)) => &self.active[*from as usize..*to as usize],
            _ => &[],
        }
    }

    /// The activation of one feature at every token of the page.
    pub(crate) fn of(&self, feature: u32) -> Vec<f32> {
        (0..self.starts.len().saturating_sub(1))
            .map(|token| self.at(token).iter().find(|active| active.feature == feature).map_or(0.0, |a| a.act))
            .collect()
    }

    fn new(n_tokens: usize, first: u64, token_idx: &[u64], feature: &[u32], act: &[f32]) -> Self {
        let mut by_token = vec![Vec::new(); n_tokens];
        for ((token, feature), act) in token_idx.iter().zip(feature).zip(act) {
            if let Some(list) = by_token.get_mut(token.saturating_sub(first) as usize) {
                list.push(Active { feature: *feature, act: *act });
            }
        }
        let mut out = Self { starts: vec![0], active: Vec::with_capacity(feature.len()) };
        for mut list in by_token {
            list.sort_by(|a, b| b.act.total_cmp(&a.act).then(a.feature.cmp(&b.feature)));
            out.active.append(&mut list);
            out.starts.push(out.active.len() as u32);
        }
        out
    }
}

impl Ask for PassageFeaturesQuery {
    type Answer = PassageFeatures;
    const NAME: &'static str = "active features";

    fn answer(&self, source: &Source, _: &Cancel) -> Result<PassageFeatures, Failure> {
        let (_, range) = page_range(source, self.doc, self.page)?;
        let n = (range.end - range.start) as usize;
        let all = source.table(&self.table)?.features_at(range.clone())?;
        Ok(PassageFeatures::new(n, range.start, &all.token_idx, &all.feature, &all.act))
    }

    fn bytes(answer: &PassageFeatures) -> usize {
        answer.starts.len() * 4 + answer.active.len() * 8
    }
}

/// Asks for the norms of a hook point's activations on a page.
#[derive(Debug, Clone)]
pub(crate) struct NormsQuery {
    pub(crate) hook: String,
    pub(crate) doc: u64,
    pub(crate) page: u64,
}

/// The L2 norm at each token of a page, with the run's median for comparison.
#[derive(Debug)]
pub(crate) struct Norms {
    pub(crate) norms: Vec<f32>,
    pub(crate) median: f64,
}

impl Ask for NormsQuery {
    type Answer = Norms;
    const NAME: &'static str = "norms";

    fn answer(&self, source: &Source, _: &Cancel) -> Result<Norms, Failure> {
        let hook: data::HookPoint = self.hook.parse()?;
        let (_, range) = page_range(source, self.doc, self.page)?;
        let acts = source.run.acts(hook, range)?;
        let norms = acts
            .to_f32()
            .chunks_exact(acts.width.max(1))
            .map(|row| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32)
            .collect();
        Ok(Norms { norms, median: source.run.statistics(hook)?.median_norm })
    }

    fn bytes(answer: &Norms) -> usize {
        answer.norms.len() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_sorted_into_their_tokens() {
        let features = PassageFeatures::new(3, 10, &[10, 10, 12, 99], &[5, 6, 5, 1], &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(features.at(0), [Active { feature: 6, act: 2.0 }, Active { feature: 5, act: 1.0 }]);
        assert_eq!(features.at(1), []);
        assert_eq!(features.at(2), [Active { feature: 5, act: 3.0 }]);
        assert_eq!(features.at(3), []);
        assert_eq!(features.of(5), [1.0, 0.0, 3.0]);
        assert_eq!(features.of(7), [0.0; 3]);
    }
}
