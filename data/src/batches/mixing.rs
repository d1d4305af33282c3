//! How is a run in the order of its tokens mixed while it is read?
//!
//! Row groups of all shards are read in an order drawn from the seed, until a buffer is full; batches are drawn
//! from the buffer, every row equally likely, until it has less than a batch; what is left stays and the buffer is
//! filled again.

use std::ops::Range;

use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::random::Random;

use super::rows::Rows;
use super::{Batch, BatchOptions, Cursor, Excluded, Message, Place};

/// Where the buffer was filled, and what was drawn from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Mixed {
    /// The place in the epoch's order of row groups at which the buffer was filled.
    group: usize,
    /// How often the buffer was filled in this epoch.
    fill: u64,
    /// Batches drawn from this filling.
    drawn: usize,
    /// Rows that were left of the filling before, by token.
    carry: Vec<u64>,
    /// Left out before this filling.
    excluded_before: Excluded,
}

/// A row group of a shard.
#[derive(Clone, Debug)]
struct RowGroup {
    shard: usize,
    rows: Range<usize>,
}

pub(super) struct Mixer {
    rows: Rows,
    options: BatchOptions,
    groups: Vec<RowGroup>,
    /// Rows in the buffer at most.
    capacity: usize,
    /// Of each hook point, `[slot, width]`.
    buffers: Vec<Vec<f32>>,
    /// Of each slot, in the order in which it was filled.
    token_idx: Vec<u64>,
    /// Slots that may be drawn; those of excluded rows are not among them.
    slots: Vec<u32>,
}

impl Mixer {
    pub(super) fn new(rows: Rows, options: &BatchOptions) -> Result<Self> {
        // The hook point with the longest rows has the smallest groups; the others are read in the same portions.
        let longest = rows.hooks.iter().max_by_key(|entry| entry.row_bytes());
        let mut groups = Vec::new();
        for (i, shard) in rows.run.shards().iter().enumerate() {
            if let Some(entry) = longest {
                let file = rows.run.acts_file(entry.name, shard)?;
                groups.extend(file.groups().iter().map(|rows| RowGroup { shard: i, rows: rows.clone() }));
            }
        }
        groups.retain(|group| !group.rows.is_empty());
        let largest = groups.iter().map(|group| group.rows.len()).max().unwrap_or(0);
        let batch_rows = options.batch_rows.max(1);
        let total: usize = groups.iter().map(|group| group.rows.len()).sum();
        let capacity = (options.buffer_rows.max(batch_rows) + largest).min(total + batch_rows);
        Ok(Self {
            buffers: vec![Vec::new(); rows.hooks.len()],
            rows,
            groups,
            capacity,
            token_idx: Vec::new(),
            slots: Vec::new(),
            options: BatchOptions { batch_rows, ..options.clone() },
        })
    }

    /// Sends every batch from the cursor on, which stands at `place` of its epoch.
    pub(super) fn read(mut self, mut place: Mixed, cursor: &mut Cursor, sender: &Sender<Message>) -> Result<()> {
        while cursor.epoch < self.options.epochs {
            let order = self.order(cursor.epoch);
            cursor.excluded = place.excluded_before;
            let next_group = self.fill(&place, &order, &mut cursor.excluded)?;
            let last = next_group == order.len();
            let mut random = Random::new(self.options.seed, u64::from(cursor.epoch), place.fill + 1);
            // Draws that were made before the cursor was taken are made again, without copying rows.
            for _ in 0..place.drawn {
                let n = self.options.batch_rows.min(self.slots.len());
                self.draw(&mut random, n);
            }
            while self.slots.len() >= self.options.batch_rows || (last && !self.slots.is_empty()) {
                let n = self.options.batch_rows.min(self.slots.len());
                let batch = self.batch(&mut random, n, cursor.epoch);
                place.drawn += 1;
                if !cursor.send(batch, Place::Mixed(place.clone()), sender) {
                    return Ok(());
                }
            }
            if last {
                cursor.check_not_empty(&self.rows.run)?;
            }
            place = Mixed {
                group: if last { 0 } else { next_group },
                fill: if last { 0 } else { place.fill + 1 },
                drawn: 0,
                carry: self.slots.iter().map(|&slot| self.token_idx[slot as usize]).collect(),
                excluded_before: cursor.excluded,
            };
            cursor.epoch += u32::from(last);
        }
        Ok(())
    }

    /// The row groups in the order of an epoch.
    fn order(&self, epoch: u32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        Random::new(self.options.seed, u64::from(epoch), 0).shuffle(&mut order);
        order
    }

    /// Fills the buffer: first with the rows that were left over, then with row groups. Returns the group after those.
    fn fill(&mut self, place: &Mixed, order: &[usize], excluded: &mut Excluded) -> Result<usize> {
        self.take_carry(&place.carry)?;
        let wanted = self.options.buffer_rows.max(self.options.batch_rows);
        let mut next = place.group;
        while let Some(&group) = order.get(next) {
            let group = self.groups[group].clone();
            let full = self.slots.len() >= wanted || self.token_idx.len() + group.rows.len() > self.capacity;
            if full && self.slots.len() < self.options.batch_rows {
                // Excluded rows fill the buffer: close up.
                self.compact();
            } else if full {
                break;
            }
            self.read_group(&group, excluded)?;
            next += 1;
        }
        Ok(next)
    }

    /// Puts the rows that were left over to the front of the buffer.
    fn take_carry(&mut self, carry: &[u64]) -> Result<()> {
        let present = self.slots.len() == carry.len()
            && self.slots.iter().zip(carry).all(|(&slot, &token)| self.token_idx[slot as usize] == token);
        if present {
            self.compact();
            return Ok(());
        }
        // After a resume the buffer is empty and they come from disk.
        self.token_idx.clear();
        for &token in carry {
            let at = self.token_idx.len();
            for (shard, rows) in self.rows.run.places_of(token..token + 1)? {
                self.rows.read(shard, rows, at, &mut self.buffers)?;
            }
            self.token_idx.push(token);
        }
        self.slots = (0..carry.len() as u32).collect();
        Ok(())
    }

    /// Moves the rows that may be drawn to the front, in the order of `slots`.
    fn compact(&mut self) {
        for (buffer, width) in self.buffers.iter_mut().zip(self.rows.widths()) {
            let mut kept = Vec::with_capacity(self.slots.len() * width);
            for &slot in &self.slots {
                kept.extend_from_slice(row(buffer, slot, width));
            }
            buffer[..kept.len()].copy_from_slice(&kept);
        }
        self.token_idx = self.slots.iter().map(|&slot| self.token_idx[slot as usize]).collect();
        self.slots = (0..self.token_idx.len() as u32).collect();
    }

    /// Appends the rows of a group to the buffer, and to the slots those that are not excluded.
    fn read_group(&mut self, group: &RowGroup, excluded: &mut Excluded) -> Result<()> {
        let start = self.token_idx.len();
        let special = self.rows.special(group.shard, group.rows.clone())?;
        let block = self.rows.block();
        for first in group.rows.clone().step_by(block) {
            let rows = first..group.rows.end.min(first + block);
            let slot = start + first - group.rows.start;
            self.rows.read(group.shard, rows.clone(), slot, &mut self.buffers)?;
            for slot in slot..slot + rows.len() {
                if self.rows.keeps(special[slot - start], slot, &self.buffers, excluded) {
                    self.slots.push(slot as u32);
                }
            }
        }
        let shard = &self.rows.run.shards()[group.shard];
        self.token_idx.extend(self.rows.run.token_idx_rows(shard, group.rows.clone())?);
        Ok(())
    }

    /// Moves `n` slots, each equally likely, to the end, and takes them away.
    fn draw(&mut self, random: &mut Random, n: usize) -> Vec<u32> {
        let len = self.slots.len();
        for i in 0..n {
            let last = len - 1 - i;
            let j = random.below(last + 1);
            self.slots.swap(j, last);
        }
        self.slots.split_off(len - n)
    }

    fn batch(&mut self, random: &mut Random, n: usize, epoch: u32) -> Batch {
        let drawn = self.draw(random, n);
        let mut batch = self.rows.batch(epoch);
        for ((acts, buffer), width) in batch.acts.iter_mut().zip(&self.buffers).zip(self.rows.widths()) {
            acts.clear();
            acts.reserve(n * width);
            for &slot in &drawn {
                acts.extend_from_slice(row(buffer, slot, width));
            }
        }
        batch.token_idx.extend(drawn.iter().map(|&slot| self.token_idx[slot as usize]));
        batch
    }
}

fn row(buffer: &[f32], slot: u32, width: usize) -> &[f32] {
    &buffer[slot as usize * width..][..width]
}
