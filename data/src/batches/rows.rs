//! How are rows of several hook points read side by side, and which of them are left out?

use std::ops::Range;

use crossbeam_channel::Receiver;

use crate::Dtype;
use crate::convert;
use crate::error::Result;
use crate::hook_point::HookPoint;
use crate::manifest::HookPointEntry;
use crate::statistics::sq_norm;
use crate::store::Run;

use super::{Batch, BatchOptions, Excluded};

/// Bytes of a hook point that are read at a time: they are still in the cache of the core when their norms are looked at.
const BLOCK_BYTES: usize = 256 << 10;

/// The hook points of a reader.
pub(super) struct Rows {
    pub(super) run: Run,
    pub(super) hooks: Vec<HookPointEntry>,
    /// Of each hook point.
    max_sq_norm: Vec<f64>,
    skip_special: bool,
    /// Stored rows that are not f32.
    scratch: Vec<u8>,
    returned: Receiver<Batch>,
}

impl Rows {
    pub(super) fn new(
        run: &Run,
        hooks: &[HookPoint],
        options: &BatchOptions,
        returned: Receiver<Batch>,
    ) -> Result<Self> {
        let mut entries = Vec::new();
        let mut max_sq_norm = Vec::new();
        for &hook in hooks {
            entries.push(run.hook_point(hook)?.clone());
            max_sq_norm.push(match options.max_norm_multiple {
                Some(multiple) => (multiple * run.statistics(hook)?.median_norm).powi(2),
                None => f64::INFINITY,
            });
        }
        let (run, skip_special) = (run.clone(), options.skip_special);
        Ok(Self { run, hooks: entries, max_sq_norm, skip_special, scratch: Vec::new(), returned })
    }

    pub(super) fn widths(&self) -> impl Iterator<Item = usize> {
        self.hooks.iter().map(|entry| entry.width)
    }

    /// Rows that are read and looked at before the next ones are read.
    pub(super) fn block(&self) -> usize {
        let longest = self.hooks.iter().map(HookPointEntry::row_bytes).max().unwrap_or(1);
        (BLOCK_BYTES / longest).max(1)
    }

    /// An empty batch, whose buffers may have been used before: they have any length.
    pub(super) fn batch(&self, epoch: u32) -> Batch {
        let mut batch = self.returned.try_recv().unwrap_or_default();
        batch.token_idx.clear();
        batch.acts.resize(self.hooks.len(), Vec::new());
        batch.epoch = epoch;
        batch
    }

    /// Reads rows of a shard to row `at` of a buffer for each hook point. What lies behind is lost.
    ///
    /// f32 goes from the page cache into the buffer; other formats are widened on the way.
    pub(super) fn read(&mut self, shard: usize, rows: Range<usize>, at: usize, buffers: &mut [Vec<f32>]) -> Result<()> {
        for (entry, buffer) in self.hooks.iter().zip(buffers) {
            let file = self.run.acts_file(entry.name, &self.run.shards()[shard])?;
            let (from, to) = (at * entry.width, (at + rows.len()) * entry.width);
            // What is there already is written over: clearing it first would cost a pass over memory.
            buffer.resize(buffer.len().max(to), 0.0);
            if entry.dtype == Dtype::F32 && cfg!(target_endian = "little") {
                file.read_into(rows.clone(), bytemuck::cast_slice_mut(&mut buffer[from..to]))?;
            } else {
                self.scratch.resize(rows.len() * entry.row_bytes(), 0);
                file.read_into(rows.clone(), &mut self.scratch)?;
                let scales = file.scales(rows.clone())?;
                buffer.truncate(from);
                convert::append_f32(entry.dtype, entry.width, &self.scratch, &scales, buffer);
            }
        }
        Ok(())
    }

    /// Which rows of a shard are special, where that matters.
    pub(super) fn special(&self, shard: usize, rows: Range<usize>) -> Result<Vec<bool>> {
        if self.skip_special {
            self.run.special_rows(&self.run.shards()[shard], rows)
        } else {
            Ok(vec![false; rows.len()])
        }
    }

    /// Whether row `at` of the buffers stays; those that are left out are counted.
    pub(super) fn keeps(&self, special: bool, at: usize, buffers: &[Vec<f32>], excluded: &mut Excluded) -> bool {
        if special {
            excluded.special += 1;
            return false;
        }
        let outlier = self.hooks.iter().zip(buffers).zip(&self.max_sq_norm).any(|((entry, buffer), &max)| {
            let row = &buffer[at * entry.width..(at + 1) * entry.width];
            max.is_finite() && f64::from(sq_norm(row)) > max
        });
        excluded.outliers += u64::from(outlier);
        !outlier
    }
}
