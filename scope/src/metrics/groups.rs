//! Where in the context, and in which source, is a coder good?

use data::Run;
use serde::Serialize;

use super::sums::Moments;
use crate::error::Result;

/// Sources that are told apart; a run with more of them has no table of sources.
pub const MAX_SOURCES: usize = 16;

/// Tokens whose positions are read at a time.
const BLOCK_TOKENS: u64 = 1 << 20;
/// Documents that are read at a time.
const BLOCK_DOCUMENTS: u64 = 4096;

/// How a coder does on some of the tokens. Explained variance is that of §5.1 on these tokens alone, about their own mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupMetrics {
    /// Tokens of the group.
    pub n_tokens: u64,
    /// E[number of latents that fire].
    pub l0: f64,
    /// E‖x − x̂‖².
    pub mse: f64,
    /// 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²).
    pub explained_variance: f64,
    /// E[cos(x, x̂)].
    pub cosine: f64,
}

impl GroupMetrics {
    fn of(sums: &Moments) -> Self {
        Self {
            n_tokens: sums.n,
            l0: sums.l0(),
            mse: sums.mse(),
            explained_variance: 1.0 - sums.fvu(),
            cosine: sums.cosine(),
        }
    }
}

/// How a coder does on the tokens at some positions of the sequences that the model saw.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PositionMetrics {
    /// The first position; the first token of a sequence is at 0.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// What was measured.
    #[serde(flatten)]
    pub metrics: GroupMetrics,
}

/// How a coder does on the documents from one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceMetrics {
    /// The file or URI.
    pub source: String,
    /// What was measured.
    #[serde(flatten)]
    pub metrics: GroupMetrics,
}

/// The file of a source, which names a line of it where lines are documents: `news.txt` of `news.txt:17`.
pub(super) fn file_of(source: &str) -> &str {
    match source.rsplit_once(':') {
        Some((file, line)) if !line.is_empty() && line.bytes().all(|digit| digit.is_ascii_digit()) => file,
        _ => source,
    }
}

/// Two bins for each doubling of the position: 0, 1, 2, 3, 4–5, 6–7, 8–11, 12–15, …
pub(super) fn position_bin(pos: u32) -> u8 {
    match pos.checked_ilog2() {
        None | Some(0) => pos as u8,
        Some(octave) => (2 * octave + (pos >> (octave - 1) & 1)) as u8,
    }
}

/// The positions of a bin.
pub(super) fn bin_positions(bin: usize) -> (u64, u64) {
    let start = |bin: u64| if bin < 2 { bin } else { (2 + bin % 2) << (bin / 2 - 1) };
    (start(bin as u64), start(bin as u64 + 1) - 1)
}

/// Which group each token of a run is in. A run in another order than that of its tokens has no groups.
pub(super) struct Groups {
    /// Of each token.
    bins: Vec<u8>,
    /// The first tokens of documents, ascending, with the source.
    documents: Vec<(u64, u8)>,
    sources: Vec<String>,
}

impl Groups {
    pub(super) fn of(run: &Run) -> Result<Self> {
        let mut groups = Self { bins: Vec::new(), documents: Vec::new(), sources: Vec::new() };
        if run.shuffled().is_some() {
            return Ok(groups);
        }
        for first in (0..run.n_tokens()).step_by(BLOCK_TOKENS as usize) {
            let positions = run.positions(first..(first + BLOCK_TOKENS).min(run.n_tokens()))?;
            groups.bins.extend(positions.into_iter().map(position_bin));
        }
        groups.read_sources(run)?;
        Ok(groups)
    }

    fn read_sources(&mut self, run: &Run) -> Result<()> {
        let n = run.n_documents();
        for first in (0..n).step_by(BLOCK_DOCUMENTS as usize) {
            for document in run.documents(first..(first + BLOCK_DOCUMENTS).min(n))? {
                let file = file_of(&document.source);
                let known = self.sources.iter().position(|source| source == file);
                let source = known.unwrap_or(self.sources.len());
                if known.is_none() {
                    self.sources.push(file.to_owned());
                }
                if self.sources.len() > MAX_SOURCES {
                    (self.sources, self.documents) = Default::default();
                    return Ok(());
                }
                self.documents.push((document.first_token_idx, source as u8));
            }
        }
        self.documents.sort_unstable();
        if self.sources.len() < 2 {
            (self.sources, self.documents) = Default::default();
        }
        Ok(())
    }

    pub(super) fn position(&self, token_idx: u64) -> Option<usize> {
        self.bins.get(token_idx as usize).map(|&bin| bin.into())
    }

    pub(super) fn source(&self, token_idx: u64) -> Option<usize> {
        let next = self.documents.partition_point(|&(first, _)| first <= token_idx);
        Some(self.documents.get(next.checked_sub(1)?)?.1.into())
    }

    pub(super) fn positions(sums: &[Moments]) -> Vec<PositionMetrics> {
        let bins = sums.iter().enumerate().filter(|(_, sums)| sums.n > 0);
        bins.map(|(bin, sums)| {
            let (first, last) = bin_positions(bin);
            PositionMetrics { first, last, metrics: GroupMetrics::of(sums) }
        })
        .collect()
    }

    pub(super) fn sources(&self, sums: &[Moments]) -> Vec<SourceMetrics> {
        let sources = self.sources.iter().zip(sums).filter(|(_, sums)| sums.n > 0);
        sources
            .map(|(source, sums)| SourceMetrics { source: source.clone(), metrics: GroupMetrics::of(sums) })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_of_their_file() {
        let sources = ["a/news.txt:17", "news.txt", "s3://bucket/x", "C:", "a:1b"].map(file_of);
        assert_eq!(sources, ["a/news.txt", "news.txt", "s3://bucket/x", "C:", "a:1b"]);
    }

    #[test]
    fn bins_of_positions_cover_all_of_them_in_order() {
        let mut next = 0;
        for bin in 0..40 {
            let (first, last) = bin_positions(bin);
            assert_eq!(first, next, "no gap before bin {bin}");
            assert_eq!((usize::from(position_bin(first as u32)), usize::from(position_bin(last as u32))), (bin, bin));
            next = last + 1;
        }
        assert_eq!([4, 6, 8, 12].map(position_bin), [4, 5, 6, 7]);
        assert_eq!(bin_positions(7), (12, 15));
        assert_eq!(position_bin(u32::MAX), 63);
    }
}
