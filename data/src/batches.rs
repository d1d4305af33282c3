//! In which order do rows come to training, so that no batch has one document or one topic?
//!
//! Row groups of all shards are read in an order drawn from the seed, until a buffer is full; batches are drawn
//! from the buffer, every row equally likely, until it has less than a batch; what is left stays and the buffer is
//! filled again. Every row that is not excluded comes exactly once an epoch. The last batch of an epoch has the
//! remainder and may be smaller.
//!
//! A [`Cursor`] says exactly where a reader stands: a reader that is resumed from it goes on with the same batches.

use std::ops::Range;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

use crate::convert;
use crate::error::{Error, Result};
use crate::hook_point::HookPoint;
use crate::random::Random;
use crate::statistics::sq_norm;
use crate::store::Run;

/// Batches that are ready before they are asked for.
const READ_AHEAD: usize = 2;

/// Rows of a batch by default.
pub const DEFAULT_BATCH_ROWS: usize = 4096;
/// Rows of the mixing buffer by default; at d_model = 640 this is 335 MB.
pub const DEFAULT_BUFFER_ROWS: usize = 131_072;
/// Rows whose norm is more than this many times the median norm are outliers by default.
pub const DEFAULT_MAX_NORM_MULTIPLE: f64 = 10.0;

/// How rows are mixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixingOptions {
    pub batch_rows: usize,
    /// Memory is this many rows in f32, one row group more, and the batches that are ready.
    pub buffer_rows: usize,
    pub seed: u64,
    /// How often every row comes.
    pub epochs: u32,
    /// Leaves out BOS, EOS, padding and chat markers.
    pub skip_special: bool,
    /// Leaves out rows whose norm is more than this many times the median norm of the run.
    pub max_norm_multiple: Option<f64>,
}

impl Default for MixingOptions {
    fn default() -> Self {
        Self {
            batch_rows: DEFAULT_BATCH_ROWS,
            buffer_rows: DEFAULT_BUFFER_ROWS,
            seed: 0,
            epochs: 1,
            skip_special: true,
            max_norm_multiple: Some(DEFAULT_MAX_NORM_MULTIPLE),
        }
    }
}

/// Rows for one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[row]`
    pub token_idx: Vec<u64>,
    /// `[row, width]`, whatever the stored format.
    pub rows: Vec<f32>,
    /// Which time through the run, from 0.
    pub epoch: u32,
}

impl Batch {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.token_idx.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.token_idx.is_empty()
    }
}

/// How many rows were left out, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    pub special: u64,
    /// By norm; also rows with a NaN or an infinity, where a limit is set.
    pub outliers: u64,
}

/// Where a reader stands, after the last batch that it handed out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    options: MixingOptions,
    n_tokens: u64,
    hook_point: HookPoint,
    /// Batches and rows handed out so far.
    pub batches: u64,
    pub rows: u64,
    pub epoch: u32,
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
    /// Left out up to and with this filling.
    pub excluded: Excluded,
}

/// Hands out batches of rows of one hook point, mixed over the whole run. It reads ahead on a thread of its own.
#[derive(Debug)]
pub struct MixingReader {
    receiver: Option<Receiver<Message>>,
    /// Buffers of batches on their way back.
    recycled: Sender<Vec<f32>>,
    thread: Option<JoinHandle<()>>,
    cursor: Cursor,
    width: usize,
    rows_per_epoch: u64,
}

type Message = Result<(Batch, Cursor)>;

impl MixingReader {
    /// A reader from the beginning.
    pub fn new(run: &Run, hook: HookPoint, options: MixingOptions) -> Result<Self> {
        let cursor = Cursor {
            n_tokens: run.n_tokens(),
            hook_point: hook,
            options,
            batches: 0,
            rows: 0,
            epoch: 0,
            group: 0,
            fill: 0,
            drawn: 0,
            carry: Vec::new(),
            excluded_before: Excluded::default(),
            excluded: Excluded::default(),
        };
        Self::start(run, cursor)
    }

    /// A reader that goes on exactly where `cursor` was taken. Run, hook point and options must be the same;
    /// only the number of epochs may differ.
    pub fn resume(run: &Run, hook: HookPoint, options: MixingOptions, cursor: Cursor) -> Result<Self> {
        let check = |field, expected: String, found: String| {
            if expected == found { Ok(()) } else { Err(Error::ForeignCursor { field, expected, found }) }
        };
        let show = |options: &MixingOptions| serde_json::to_string(options).unwrap_or_default();
        let of_cursor = MixingOptions { epochs: options.epochs, ..cursor.options.clone() };
        check("hook_point", hook.to_string(), cursor.hook_point.to_string())?;
        check("n_tokens", run.n_tokens().to_string(), cursor.n_tokens.to_string())?;
        check("options", show(&options), show(&of_cursor))?;
        Self::start(run, Cursor { options, ..cursor })
    }

    fn start(run: &Run, cursor: Cursor) -> Result<Self> {
        let (recycled, returned) = bounded(READ_AHEAD + 1);
        let mixer = Mixer::new(run, &cursor, returned)?;
        let (sender, receiver) = bounded(READ_AHEAD);
        let width = mixer.width;
        let rows_per_epoch = run.n_tokens();
        let ahead = cursor.clone();
        let thread =
            thread::Builder::new().name("mixing-reader".to_owned()).spawn(move || mixer.run(ahead, &sender))?;
        Ok(Self { receiver: Some(receiver), recycled, thread: Some(thread), cursor, width, rows_per_epoch })
    }

    /// Where the reader stands, after the last batch that it handed out.
    pub const fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// What was left out so far. It runs ahead of the batches by what is in the buffer.
    pub const fn excluded(&self) -> Excluded {
        self.cursor.excluded
    }

    /// Gives the buffer of a batch back, to be filled again: large buffers are costly to get from the system.
    /// Nothing is wrong with keeping it.
    pub fn recycle(&self, rows: Vec<f32>) {
        // When enough are waiting, this one is freed.
        let _ = self.recycled.try_send(rows);
    }

    /// Numbers a row.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Rows of an epoch before special tokens and outliers are left out.
    pub const fn n_rows(&self) -> u64 {
        self.rows_per_epoch
    }
}

impl Iterator for MixingReader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let message = self.receiver.as_ref()?.recv();
        match message {
            Ok(Ok((batch, cursor))) => {
                self.cursor = cursor;
                Some(Ok(batch))
            }
            Ok(Err(error)) => {
                self.receiver = None;
                Some(Err(error))
            }
            Err(_ended) => {
                self.receiver = None;
                let ended = self.thread.take().map(JoinHandle::join);
                matches!(ended, Some(Err(_))).then_some(Err(Error::Worker { what: "the thread that mixes rows" }))
            }
        }
    }
}

impl Drop for MixingReader {
    fn drop(&mut self) {
        // The thread ends when nobody receives.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A row group of a shard.
#[derive(Clone, Debug)]
struct RowGroup {
    shard: usize,
    rows: Range<usize>,
}

struct Mixer {
    run: Run,
    hook: HookPoint,
    options: MixingOptions,
    width: usize,
    groups: Vec<RowGroup>,
    /// Rows in the buffer at most.
    capacity: usize,
    max_sq_norm: f64,
    /// `[slot, width]`
    buffer: Vec<f32>,
    /// Of each slot, in the order in which it was filled.
    token_idx: Vec<u64>,
    /// Slots that may be drawn; those of excluded rows are not among them.
    slots: Vec<u32>,
    /// Stored rows of a group that is not f32.
    scratch: Vec<u8>,
    returned: Receiver<Vec<f32>>,
}

impl Mixer {
    fn new(run: &Run, cursor: &Cursor, returned: Receiver<Vec<f32>>) -> Result<Self> {
        let options = cursor.options.clone();
        let hook = cursor.hook_point;
        let entry = run.hook_point(hook)?;
        let mut groups = Vec::new();
        for (i, shard) in run.shards().iter().enumerate() {
            let file = run.acts_file(hook, shard)?;
            groups.extend(file.groups().iter().map(|rows| RowGroup { shard: i, rows: rows.clone() }));
        }
        groups.retain(|group| !group.rows.is_empty());
        let largest = groups.iter().map(|group| group.rows.len()).max().unwrap_or(0);
        let batch_rows = options.batch_rows.max(1);
        let total: usize = groups.iter().map(|group| group.rows.len()).sum();
        let capacity = (options.buffer_rows.max(batch_rows) + largest).min(total + batch_rows);
        let max_sq_norm = match options.max_norm_multiple {
            Some(multiple) => (multiple * run.statistics(hook)?.median_norm).powi(2),
            None => f64::INFINITY,
        };
        Ok(Self {
            run: run.clone(),
            hook,
            width: entry.width,
            groups,
            capacity,
            max_sq_norm,
            buffer: Vec::new(),
            token_idx: Vec::new(),
            slots: Vec::new(),
            scratch: Vec::new(),
            returned,
            options: MixingOptions { batch_rows, ..options },
        })
    }

    fn run(mut self, mut cursor: Cursor, sender: &Sender<Message>) {
        let result = self.read(&mut cursor, sender);
        if let Err(error) = result {
            // Nobody to tell when the reader is gone.
            let _ = sender.send(Err(error));
        }
    }

    /// Sends every batch from the cursor on.
    fn read(&mut self, cursor: &mut Cursor, sender: &Sender<Message>) -> Result<()> {
        while cursor.epoch < self.options.epochs {
            let order = self.order(cursor.epoch);
            let next_group = self.fill(cursor, &order)?;
            let last = next_group == order.len();
            let mut random = Random::new(self.options.seed, u64::from(cursor.epoch), cursor.fill + 1);
            // Draws that were made before the cursor was taken are made again, without copying rows.
            for _ in 0..cursor.drawn {
                let n = self.options.batch_rows.min(self.slots.len());
                self.draw(&mut random, n);
            }
            while self.slots.len() >= self.options.batch_rows || (last && !self.slots.is_empty()) {
                let n = self.options.batch_rows.min(self.slots.len());
                let batch = self.batch(&mut random, n, cursor.epoch);
                cursor.drawn += 1;
                cursor.batches += 1;
                cursor.rows += batch.len() as u64;
                if sender.send(Ok((batch, cursor.clone()))).is_err() {
                    return Ok(());
                }
            }
            if last && cursor.epoch == 0 && cursor.rows == 0 {
                return Err(Error::NothingToRead {
                    hook_point: self.hook.to_string(),
                    special: cursor.excluded.special,
                    outliers: cursor.excluded.outliers,
                    path: self.run.dir().to_owned(),
                });
            }
            cursor.carry = self.slots.iter().map(|&slot| self.token_idx[slot as usize]).collect();
            cursor.drawn = 0;
            cursor.excluded_before = cursor.excluded;
            if last {
                cursor.epoch += 1;
                cursor.group = 0;
                cursor.fill = 0;
            } else {
                cursor.group = next_group;
                cursor.fill += 1;
            }
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
    fn fill(&mut self, cursor: &mut Cursor, order: &[usize]) -> Result<usize> {
        self.take_carry(&cursor.carry)?;
        cursor.excluded = cursor.excluded_before;
        let wanted = self.options.buffer_rows.max(self.options.batch_rows);
        let mut next = cursor.group;
        while let Some(&group) = order.get(next) {
            let group = self.groups[group].clone();
            let full = self.slots.len() >= wanted || self.token_idx.len() + group.rows.len() > self.capacity;
            if full && self.slots.len() < self.options.batch_rows {
                // Excluded rows fill the buffer: close up.
                self.compact();
            } else if full {
                break;
            }
            self.read_group(&group, &mut cursor.excluded)?;
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
        self.buffer.clear();
        self.token_idx.clear();
        for &token in carry {
            let row = self.run.acts(self.hook, token..token + 1)?;
            self.buffer.extend(row.to_f32());
            self.token_idx.push(token);
        }
        self.slots = (0..carry.len() as u32).collect();
        Ok(())
    }

    /// Moves the rows that may be drawn to the front, in the order of `slots`.
    fn compact(&mut self) {
        let width = self.width;
        let mut rows = Vec::with_capacity(self.slots.len() * width);
        let mut token_idx = Vec::with_capacity(self.slots.len());
        for &slot in &self.slots {
            let slot = slot as usize;
            rows.extend_from_slice(&self.buffer[slot * width..(slot + 1) * width]);
            token_idx.push(self.token_idx[slot]);
        }
        self.buffer[..rows.len()].copy_from_slice(&rows);
        self.token_idx = token_idx;
        self.slots = (0..self.token_idx.len() as u32).collect();
    }

    /// Appends the rows of a group to the buffer, and to the slots those that are not excluded.
    fn read_group(&mut self, group: &RowGroup, excluded: &mut Excluded) -> Result<()> {
        let shard = &self.run.shards()[group.shard];
        let entry = self.run.hook_point(self.hook)?;
        let file = self.run.acts_file(self.hook, shard)?;
        let n = group.rows.len();
        let first = shard.first_token_idx + group.rows.start as u64;
        let start = self.token_idx.len();
        let (from, to) = (start * self.width, (start + n) * self.width);
        if entry.dtype == crate::Dtype::F32 && cfg!(target_endian = "little") {
            // What is there already is written over: clearing it first would cost a pass over memory.
            self.buffer.resize(self.buffer.len().max(to), 0.0);
            file.read_into(group.rows.clone(), bytemuck::cast_slice_mut(&mut self.buffer[from..to]))?;
        } else {
            self.scratch.resize(n * entry.row_bytes(), 0);
            file.read_into(group.rows.clone(), &mut self.scratch)?;
            let scales = file.scales(group.rows.clone())?;
            self.buffer.truncate(from);
            convert::append_f32(entry.dtype, self.width, &self.scratch, &scales, &mut self.buffer);
        }
        self.token_idx.extend(first..first + n as u64);
        let special =
            if self.options.skip_special { self.run.special(first..first + n as u64)? } else { vec![false; n] };
        for (i, row) in self.buffer[from..to].chunks_exact(self.width).enumerate() {
            if special[i] {
                excluded.special += 1;
            } else if self.max_sq_norm.is_finite() && f64::from(sq_norm(row)) > self.max_sq_norm {
                excluded.outliers += 1;
            } else {
                self.slots.push((start + i) as u32);
            }
        }
        Ok(())
    }

    /// Moves `n` slots, each equally likely, to the end.
    fn draw_slots(&mut self, random: &mut Random, n: usize) {
        let len = self.slots.len();
        for i in 0..n {
            let last = len - 1 - i;
            let j = random.below(last + 1);
            self.slots.swap(j, last);
        }
    }

    fn draw(&mut self, random: &mut Random, n: usize) -> Vec<u32> {
        self.draw_slots(random, n);
        self.slots.split_off(self.slots.len() - n)
    }

    fn batch(&mut self, random: &mut Random, n: usize, epoch: u32) -> Batch {
        let width = self.width;
        let drawn = self.draw(random, n);
        let mut rows = self.returned.try_recv().unwrap_or_default();
        rows.clear();
        rows.reserve(n * width);
        let mut token_idx = Vec::with_capacity(n);
        for slot in drawn {
            let slot = slot as usize;
            rows.extend_from_slice(&self.buffer[slot * width..(slot + 1) * width]);
            token_idx.push(self.token_idx[slot]);
        }
        Batch { token_idx, rows, epoch }
    }
}

#[cfg(test)]
mod tests;
