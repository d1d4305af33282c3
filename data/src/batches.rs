//! In which order do rows come to training, so that no batch has one document or one topic?
//!
//! A run in the order of its tokens is mixed as it is read ([`mixing`]); a shuffled one is read from front to back
//! ([`in_order`]), which is as fast as reading can be. Either way every row that is not excluded comes exactly once an
//! epoch, and the last batch of an epoch has the remainder and may be smaller. What is read is read once for all hook
//! points of the reader: row `i` of a batch is of the same token everywhere, and whoever trains several coders lends the
//! same batch to each of them.
//!
//! How random is it? A shuffled run has a random order. The mixing buffer has one too when it holds the whole run; when it
//! holds less, a batch comes from the row groups that are in the buffer, and so from fewer documents than there are: the
//! positions are mixed well, the documents are not.
//!
//! A [`Cursor`] says exactly where a reader stands: a reader that is resumed from it goes on with the same batches.

mod in_order;
mod mixing;
mod rows;

use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::hook_point::HookPoint;
use crate::store::Run;

use in_order::InOrder;
use mixing::{Mixed, Mixer};
use rows::Rows;

/// Batches that are ready before they are asked for.
const READ_AHEAD: usize = 2;

/// Rows of a batch by default.
pub const DEFAULT_BATCH_ROWS: usize = 4096;
/// Rows of the mixing buffer by default; at d_model = 640 this is 335 MB.
pub const DEFAULT_BUFFER_ROWS: usize = 131_072;
/// Rows whose norm is more than this many times the median norm are outliers by default.
pub const DEFAULT_MAX_NORM_MULTIPLE: f64 = 10.0;

/// What is read, and in which order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchOptions {
    pub batch_rows: usize,
    /// Rows among which a run is mixed that is not shuffled. Memory is this many rows in f32, one row group more, and the
    /// batches that are ready.
    pub buffer_rows: usize,
    /// Of the order of rows; in a shuffled run, of the order of its shards.
    pub seed: u64,
    /// How often every row comes.
    pub epochs: u32,
    /// Leaves out BOS, EOS, padding and chat markers.
    pub skip_special: bool,
    /// Leaves out rows whose norm is more than this many times the median norm of the run, at any of the hook points.
    pub max_norm_multiple: Option<f64>,
}

impl Default for BatchOptions {
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
    /// Of each hook point of the reader `[row, width]`, whatever the stored format.
    pub acts: Vec<Vec<f32>>,
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
    options: BatchOptions,
    n_tokens: u64,
    hook_points: Vec<HookPoint>,
    /// Batches and rows handed out so far.
    pub batches: u64,
    pub rows: u64,
    pub epoch: u32,
    place: Place,
    /// Left out so far; where rows are mixed, also of those that are in the buffer.
    pub excluded: Excluded,
}

/// The place in an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Place {
    Mixed(Mixed),
    InOrder(InOrder),
}

/// Hands out batches of rows of some hook points, mixed over the whole run. It reads ahead on a thread of its own.
#[derive(Debug)]
pub struct BatchReader {
    receiver: Option<Receiver<Message>>,
    /// Batches on their way back.
    recycled: Sender<Batch>,
    thread: Option<JoinHandle<()>>,
    cursor: Cursor,
    widths: Vec<usize>,
}

type Message = Result<(Batch, Cursor)>;

impl BatchReader {
    /// A reader from the beginning.
    pub fn new(run: &Run, hooks: &[HookPoint], options: BatchOptions) -> Result<Self> {
        let place = match run.shuffled() {
            Some(_) => Place::InOrder(InOrder::default()),
            None => Place::Mixed(Mixed::default()),
        };
        let cursor = Cursor {
            n_tokens: run.n_tokens(),
            hook_points: hooks.to_vec(),
            options,
            batches: 0,
            rows: 0,
            epoch: 0,
            place,
            excluded: Excluded::default(),
        };
        Self::start(run, cursor)
    }

    /// A reader that goes on exactly where `cursor` was taken. Run, hook points and options must be the same;
    /// only the number of epochs may differ.
    pub fn resume(run: &Run, hooks: &[HookPoint], options: BatchOptions, cursor: Cursor) -> Result<Self> {
        let check = |field, expected: String, found: String| {
            if expected == found { Ok(()) } else { Err(Error::ForeignCursor { field, expected, found }) }
        };
        let show = |options: &BatchOptions| serde_json::to_string(options).unwrap_or_default();
        let names = |hooks: &[HookPoint]| hooks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let order = |shuffled| if shuffled { "shuffled" } else { "of the tokens" }.to_owned();
        let of_cursor = BatchOptions { epochs: options.epochs, ..cursor.options.clone() };
        check("hook_points", names(hooks), names(&cursor.hook_points))?;
        check("n_tokens", run.n_tokens().to_string(), cursor.n_tokens.to_string())?;
        check("order", order(run.shuffled().is_some()), order(matches!(cursor.place, Place::InOrder(_))))?;
        check("options", show(&options), show(&of_cursor))?;
        Self::start(run, Cursor { options, ..cursor })
    }

    fn start(run: &Run, cursor: Cursor) -> Result<Self> {
        let (recycled, returned) = bounded(READ_AHEAD + 1);
        let (sender, receiver) = bounded(READ_AHEAD);
        let rows = Rows::new(run, &cursor.hook_points, &cursor.options, returned)?;
        let widths = rows.widths().collect();
        let mut ahead = cursor.clone();
        let reader = thread::Builder::new().name("batch-reader".to_owned());
        let thread = match &cursor.place {
            Place::Mixed(place) => {
                let (place, mixer) = (place.clone(), Mixer::new(rows, &cursor.options)?);
                reader.spawn(move || tell(mixer.read(place, &mut ahead, &sender), &sender))
            }
            Place::InOrder(place) => {
                let place = place.clone();
                reader.spawn(move || tell(in_order::read(rows, place, &mut ahead, &sender), &sender))
            }
        }?;
        Ok(Self { receiver: Some(receiver), recycled, thread: Some(thread), cursor, widths })
    }

    /// Where the reader stands, after the last batch that it handed out.
    pub const fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// What was left out so far. Where rows are mixed, it runs ahead of the batches by what is in the buffer.
    pub const fn excluded(&self) -> Excluded {
        self.cursor.excluded
    }

    /// Gives a batch back, to be filled again: large buffers are costly to get from the system.
    /// Nothing is wrong with keeping it.
    pub fn recycle(&self, batch: Batch) {
        // When enough are waiting, this one is freed.
        let _ = self.recycled.try_send(batch);
    }

    /// Numbers a row, of each hook point.
    pub fn widths(&self) -> &[usize] {
        &self.widths
    }

    /// Rows of an epoch before special tokens and outliers are left out.
    pub const fn n_rows(&self) -> u64 {
        self.cursor.n_tokens
    }
}

/// Sends the error in which reading ended; nobody hears it when the reader is gone.
fn tell(result: Result<()>, sender: &Sender<Message>) {
    if let Err(error) = result {
        let _ = sender.send(Err(error));
    }
}

impl Cursor {
    /// Counts a batch and sends it; whether somebody still wants the next one.
    fn send(&mut self, batch: Batch, place: Place, sender: &Sender<Message>) -> bool {
        self.batches += 1;
        self.rows += batch.len() as u64;
        self.place = place;
        sender.send(Ok((batch, self.clone()))).is_ok()
    }

    /// An error when an epoch is over in which nothing was read.
    fn check_not_empty(&self, run: &Run) -> Result<()> {
        if self.epoch > 0 || self.rows > 0 {
            return Ok(());
        }
        Err(Error::NothingToRead {
            hook_point: self.hook_points.iter().map(ToString::to_string).collect::<Vec<_>>().join("`, `"),
            special: self.excluded.special,
            outliers: self.excluded.outliers,
            path: run.dir().to_owned(),
        })
    }
}

impl Iterator for BatchReader {
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
                matches!(ended, Some(Err(_))).then_some(Err(Error::Worker { what: "the thread that reads batches" }))
            }
        }
    }
}

impl Drop for BatchReader {
    fn drop(&mut self) {
        // The thread ends when nobody receives.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod randomness;
#[cfg(test)]
mod tests;
