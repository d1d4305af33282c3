//! How are sparse activations read in the order of tokens, with no more in memory than a stretch of them?

use std::ops::Range;
use std::path::PathBuf;

use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};

use super::FeatureActs;
use crate::error::Result;
use crate::parquet_io::{Batches, TableFile};

/// Tokens that are looked at together.
pub(crate) const WINDOW: u64 = 1 << 16;

/// Rows that are decoded at a time.
const READ_ROWS: usize = 1 << 16;

/// Files of activations in the order of tokens, read once from the beginning.
pub(crate) struct Windows {
    files: std::vec::IntoIter<PathBuf>,
    open: Option<(TableFile, Batches)>,
    pending: FeatureActs,
}

impl Windows {
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        Self { files: files.into_iter(), open: None, pending: FeatureActs::default() }
    }

    /// The stretches of tokens of a run.
    pub(crate) fn ranges(n_tokens: u64) -> impl Iterator<Item = Range<u64>> {
        (0..n_tokens).step_by(WINDOW as usize).map(move |start| start..(start + WINDOW).min(n_tokens))
    }

    /// What was not handed out yet of the tokens before `end`.
    pub(crate) fn until(&mut self, end: u64) -> Result<FeatureActs> {
        while self.pending.token_idx.last().is_none_or(|&last| last < end) && self.read()? {}
        let n = self.pending.token_idx.partition_point(|&token| token < end);
        let rest = FeatureActs {
            token_idx: self.pending.token_idx.split_off(n),
            feature: self.pending.feature.split_off(n),
            act: self.pending.act.split_off(n),
        };
        Ok(std::mem::replace(&mut self.pending, rest))
    }

    /// Appends a batch to what is pending. Returns whether there was one.
    fn read(&mut self) -> Result<bool> {
        loop {
            if let Some((table, batches)) = &mut self.open {
                if let Some(batch) = batches.next() {
                    let batch = batch?;
                    self.pending.token_idx.append(&mut table.primitive::<UInt64Type>(&batch, "token_idx")?);
                    self.pending.feature.append(&mut table.primitive::<UInt32Type>(&batch, "feature")?);
                    self.pending.act.append(&mut table.primitive::<Float32Type>(&batch, "act")?);
                    return Ok(true);
                }
                self.open = None;
            }
            let Some(path) = self.files.next() else { return Ok(false) };
            let table = TableFile::open(&path)?;
            let batches = table.reader(&["token_idx", "feature", "act"], None, None, READ_ROWS)?;
            self.open = Some((table, batches));
        }
    }
}

/// The activations of consecutive tokens, by token.
#[derive(Debug, Default)]
pub(crate) struct ByToken {
    /// Where the entries of each token begin; one more at the end.
    starts: Vec<usize>,
    feature: Vec<u32>,
    act: Vec<f32>,
}

impl ByToken {
    /// Of the tokens of `window`, those that are `wanted`; the others have no entries.
    pub(crate) fn new(acts: &FeatureActs, window: &Range<u64>, wanted: impl Fn(u64) -> bool) -> Self {
        let mut rows = Self::default();
        let mut at = 0;
        for token in window.clone() {
            rows.starts.push(rows.feature.len());
            let first = at;
            while acts.token_idx.get(at) == Some(&token) {
                at += 1;
            }
            if wanted(token) {
                rows.feature.extend_from_slice(&acts.feature[first..at]);
                rows.act.extend_from_slice(&acts.act[first..at]);
            }
        }
        rows.starts.push(rows.feature.len());
        rows
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Features and activations of a token, by its place in the window.
    pub(crate) fn row(&self, token: usize) -> (&[u32], &[f32]) {
        let range = self.starts[token]..self.starts[token + 1];
        (&self.feature[range.clone()], &self.act[range])
    }

    /// Token (by its place), feature and activation, in the order of tokens.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (usize, u32, f32)> {
        (0..self.n_tokens()).flat_map(move |token| {
            let (features, acts) = self.row(token);
            features.iter().zip(acts).map(move |(&feature, &act)| (token, feature, act))
        })
    }
}
