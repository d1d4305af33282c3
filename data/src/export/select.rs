//! Which rows are exported, and how do they come, a step at a time?

use std::ops::Range;

use bytes::Bytes;

use super::{ExportReport, STEP_BYTES, Vectors};
use crate::convert;
use crate::error::{Error, Result};
use crate::progress::{OnProgress, Progress};
use crate::store::Run;
use crate::tables::TokenColumns;

/// Tokens of a step at most, for hook points of few numbers.
const STEP_TOKENS: u64 = 65_536;

/// The tokens of an export.
pub(super) struct Selection<'a> {
    pub(super) run: &'a Run,
    tokens: Range<u64>,
    skip_special: bool,
    /// Tokens that are left.
    pub(super) n: u64,
    step: u64,
}

/// Some consecutive tokens, of which some are left out.
pub(super) struct Step {
    tokens: Range<u64>,
    /// `None` for all.
    keep: Option<Vec<bool>>,
}

impl<'a> Selection<'a> {
    pub(super) fn new(run: &'a Run, tokens: Option<Range<u64>>, skip_special: bool, hooks: &[Vectors]) -> Result<Self> {
        let tokens = self::tokens(run, tokens)?;
        // What is held: a row as it is stored and as it is written.
        let row: usize = hooks.iter().map(|hook| hook.row_bytes() + hook.entry.row_bytes()).sum();
        let step = ((STEP_BYTES / row.max(1)) as u64).clamp(1, STEP_TOKENS);
        let mut selection = Self { run, n: tokens.end - tokens.start, tokens, skip_special, step };
        if skip_special {
            let all = selection.n;
            selection.n = 0;
            let mut start = selection.tokens.start;
            while start < selection.tokens.end {
                let end = selection.tokens.end.min(start + STEP_TOKENS);
                selection.n += run.special(start..end)?.iter().filter(|&&special| !special).count() as u64;
                start = end;
            }
            if selection.n == 0 {
                return Err(Error::NothingToExport { selected: all });
            }
        }
        Ok(selection)
    }

    /// A report of all of them.
    pub(super) fn report(&self) -> ExportReport {
        let selected = self.tokens.end - self.tokens.start;
        ExportReport { tokens: self.n, skipped_special: selected - self.n, ..ExportReport::default() }
    }

    /// Which tokens these are, in words that differ for every choice.
    pub(super) fn describe(&self) -> String {
        format!("{}..{} skip_special={}", self.tokens.start, self.tokens.end, self.skip_special)
    }

    pub(super) fn steps(&self) -> impl Iterator<Item = Result<Step>> {
        let starts = (self.tokens.start..self.tokens.end).step_by(self.step as usize);
        starts.map(|start| {
            let tokens = start..self.tokens.end.min(start + self.step);
            let keep = if self.skip_special {
                Some(self.run.special(tokens.clone())?.into_iter().map(|special| !special).collect())
            } else {
                None
            };
            Ok(Step { tokens, keep })
        })
    }
}

/// The tokens that were asked for, all of them where nobody asked.
pub(super) fn tokens(run: &Run, asked: Option<Range<u64>>) -> Result<Range<u64>> {
    let tokens = asked.unwrap_or(0..run.n_tokens());
    if tokens.start < tokens.end && tokens.end <= run.n_tokens() {
        return Ok(tokens);
    }
    Err(Error::OutOfRange {
        what: "tokens",
        start: 0,
        end: run.n_tokens(),
        found: format!("{}..{}", tokens.start, tokens.end),
        path: run.dir().to_owned(),
    })
}

impl Step {
    /// How many tokens are left.
    pub(super) fn len(&self) -> usize {
        match &self.keep {
            None => (self.tokens.end - self.tokens.start) as usize,
            Some(keep) => keep.iter().filter(|&&keep| keep).count(),
        }
    }

    /// Their places in the run.
    pub(super) fn token_idx(&self) -> Vec<u64> {
        self.kept(self.tokens.clone().collect())
    }

    /// What is known of them, column by column.
    pub(super) fn columns(&self, run: &Run) -> Result<TokenColumns> {
        let all = run.tokens(self.tokens.clone())?;
        Ok(TokenColumns {
            doc_id: self.kept(all.doc_id),
            pos: self.kept(all.pos),
            token_id: self.kept(all.token_id),
            token: self.kept(all.token),
            ..TokenColumns::default()
        })
    }

    /// Their rows in the dtype of the export, little endian; adds to `saturated` what did not fit.
    pub(super) fn rows(&self, run: &Run, hook: &Vectors, saturated: &mut u64) -> Result<Bytes> {
        let acts = run.acts(hook.entry.name, self.tokens.clone())?;
        let (bytes, scales) = match &self.keep {
            None => (acts.bytes, acts.scales),
            Some(keep) => {
                let rows = acts.bytes.chunks_exact(hook.entry.row_bytes()).zip(keep).filter(|(_, keep)| **keep);
                let mut bytes = Vec::with_capacity(self.len() * hook.entry.row_bytes());
                rows.for_each(|(row, _)| bytes.extend_from_slice(row));
                let scales = acts.scales.into_iter().zip(keep).filter(|(_, keep)| **keep).map(|(scale, _)| scale);
                (Bytes::from(bytes), scales.collect())
            }
        };
        let converted = convert::convert(hook.entry.dtype, hook.dtype, hook.entry.width, &bytes, &scales);
        *saturated += converted.saturated;
        Ok(converted.bytes)
    }

    fn kept<T>(&self, all: Vec<T>) -> Vec<T> {
        match &self.keep {
            None => all,
            Some(keep) => all.into_iter().zip(keep).filter(|(_, keep)| **keep).map(|(item, _)| item).collect(),
        }
    }
}

/// Counts rows and asks whether to go on.
pub(super) struct Meter<'a> {
    progress: OnProgress<'a>,
    at: Progress,
}

impl<'a> Meter<'a> {
    pub(super) fn new(selection: &Selection<'_>, hooks: &[Vectors], progress: OnProgress<'a>) -> Self {
        Self { progress, at: Progress { done: 0, total: selection.n * hooks.len() as u64 } }
    }

    pub(super) fn add(&mut self, rows: usize) -> Result<()> {
        self.at.done += rows as u64;
        if (self.progress)(self.at).is_break() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
