//! How do the rows of a run come into a random order, with bounded memory and nothing lost?
//!
//! Two passes. The first one reads the run from front to back and puts every row into a bucket, which its number in the
//! order (a hash of seed and token) tells; the size of each bucket is counted before, so that all buckets of a hook point
//! lie in one scratch file, each in its place. The second pass takes one bucket at a time into memory, sorts it by that
//! number, and writes it as a shard. The order is therefore that of the numbers, whatever the memory and the buckets are,
//! and it is the same for every hook point.
//!
//! The first pass makes what it has done durable from time to time; shards of the second pass are durable as those of any
//! run. Buckets are taken from the last to the first, so that the scratch files shrink while the shards grow.

mod scatter;
mod tokens;

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::thread::{self, ScopedJoinHandle};

use bytes::Bytes;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Dtype;
use crate::convert::Converted;
use crate::error::{Error, Result};
use crate::files;
use crate::hook_point::HookPoint;
use crate::manifest::{self, Counts, HookPointEntry, Manifest, Provenance, Shard, Shuffled};
use crate::place::Place;
use crate::random::Order;
use crate::shard::{RunWriter, ShardWriter};
use crate::statistics::Before;
use crate::store::Run;
use crate::tables::{TokenColumns, VOCAB_FILE};

use scatter::{Scatter, Syncer};

/// Memory by default.
pub const DEFAULT_MEMORY: usize = 1_000_000_000;

/// The folder of what is only there while a run is being shuffled.
const SCRATCH: &str = "scratch";
/// The file in it that tells what of the first pass is durable.
const PROGRESS: &str = "progress.json";
/// Memory of a row beside its activations: its token with its text, and its place in the order.
const TOKEN_MEMORY: usize = 192;
/// More buckets than that are files and journal entries that nobody wants.
const MAX_BUCKETS: usize = 1 << 16;
/// Bytes that are read at a time in the first pass.
const READ_BYTES: usize = 4 << 20;
/// Bytes that are given to the writer at a time in the second pass: it holds on to dozens of them.
const WRITE_BYTES: usize = 128 << 10;
/// Tokens that are read or written at a time.
const TOKEN_ROWS: usize = 8192;
/// Documents that are read at a time.
const DOCUMENT_ROWS: u64 = 4096;
/// Bytes after which the first pass makes durable what it has done: the most that an interruption can cost.
const CHECKPOINT_BYTES: u64 = 4 << 30;
/// Bytes after which the disk is sent on its way meanwhile.
const SYNC_BYTES: u64 = 128 << 20;

/// What to shuffle, and how.
#[derive(Clone, Debug)]
pub struct ShuffleOptions {
    /// The hook points that the shuffled run has; none named are all.
    pub hook_points: Vec<HookPoint>,
    /// Of the order.
    pub seed: u64,
    /// Bytes of rows that are held at the same time; beside them there is a constant.
    pub memory: usize,
    /// Leaves out BOS, EOS, padding and chat markers.
    pub skip_special: bool,
}

impl Default for ShuffleOptions {
    fn default() -> Self {
        Self { hook_points: Vec::new(), seed: 0, memory: DEFAULT_MEMORY, skip_special: false }
    }
}

/// What a shuffle takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Rows of the origin.
    pub rows: u64,
    /// Bytes of the shuffled run, roughly.
    pub bytes: u64,
    /// Bytes on disk at most, roughly: the scratch files, and what is written of the run before they shrink.
    pub peak_bytes: u64,
    /// Shards of the shuffled run.
    pub buckets: usize,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShuffleProgress {
    /// Of both passes.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Shards that are durable.
    pub shards: usize,
}

/// A shuffle that could begin.
#[derive(Debug)]
pub struct Shuffle<'a> {
    run: &'a Run,
    hooks: Vec<HookPointEntry>,
    options: ShuffleOptions,
    order: Order,
    buckets: usize,
}

/// What `scratch/progress.json` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Scattered {
    /// Scratch files that are whole.
    files: usize,
    /// Shards of the origin that are in the one after those.
    shards: usize,
}

/// What the buckets hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tally {
    rows: Vec<u64>,
    /// Special tokens that are left out.
    skipped: Vec<u64>,
    token_bytes: Vec<u64>,
}

impl<'a> Shuffle<'a> {
    /// Looks at a run, which must be complete and in the order of its tokens.
    pub fn plan(run: &'a Run, options: ShuffleOptions) -> Result<Self> {
        if !run.manifest().complete {
            return Err(Error::IncompleteRun { path: run.dir().to_owned() });
        }
        run.require_order("rows to shuffle")?;
        let mut hooks = Vec::new();
        for &hook in &options.hook_points {
            hooks.push(run.hook_point(hook)?.clone());
        }
        if hooks.is_empty() {
            hooks = run.hook_points().to_vec();
        }
        let bytes = run.n_tokens().saturating_mul(memory_per_row(&hooks) as u64);
        // Half of the memory is for the rows of a bucket; in the first pass the other half is for what waits to be written.
        let buckets = bytes.div_ceil((options.memory as u64 / 2).max(1)).max(1);
        if buckets > MAX_BUCKETS as u64 {
            let least = 2 * bytes.div_ceil(MAX_BUCKETS as u64);
            return Err(Error::TooLittleMemory { found: options.memory as u64, least });
        }
        let order = Order::new(options.seed);
        Ok(Self { run, hooks, options, order, buckets: buckets as usize })
    }

    /// The hook points that the shuffled run will have.
    pub fn hook_points(&self) -> &[HookPointEntry] {
        &self.hooks
    }

    /// What it will take, with special tokens.
    pub fn cost(&self) -> Cost {
        let bytes = self.bytes();
        let largest = self.run.n_tokens().div_ceil(self.buckets as u64) * self.row_bytes();
        Cost { rows: self.run.n_tokens(), bytes, peak_bytes: bytes + largest, buckets: self.buckets }
    }

    /// Bytes of the activations, of one pass.
    fn bytes(&self) -> u64 {
        self.run.n_tokens() * self.row_bytes()
    }

    fn row_bytes(&self) -> u64 {
        self.hooks.iter().map(|hook| stride(hook) as u64).sum()
    }

    /// Writes the shuffled run into `out`, or goes on with one that was begun with the same options, exactly as if it had
    /// not been interrupted.
    ///
    /// `progress` is called again and again; when it breaks, the result is [`Error::Interrupted`], and what is durable
    /// stays.
    pub fn write(
        &self,
        out: impl Into<Place>,
        provenance: Provenance,
        resume: bool,
        progress: &mut dyn FnMut(&ShuffleProgress) -> ControlFlow<()>,
    ) -> Result<Manifest> {
        let out = out.into();
        let manifest = self.manifest(provenance)?;
        out.refresh()?;
        let writer = if resume && out.has(manifest::FILE)? {
            RunWriter::resume(&out, &manifest)?
        } else {
            RunWriter::create(&out, manifest)?
        };
        if writer.is_complete() {
            return Ok(writer.manifest().clone());
        }
        if self.run.place().has(VOCAB_FILE)? {
            out.write(VOCAB_FILE, &fs::read(self.run.file(VOCAB_FILE)?)?)?;
        }
        let mut job = Job {
            shuffle: self,
            scratch: out.dir().join(SCRATCH),
            tally: self.tally(self.run.shards())?,
            now: ShuffleProgress { bytes_done: 0, bytes_total: 2 * self.bytes(), shards: writer.journal().len() },
            stop: false,
            progress,
        };
        if job.is_spent(&writer)? {
            fs::remove_dir_all(&job.scratch)?;
        }
        if job.now.shards < self.buckets {
            job.scatter()?;
            job.now.bytes_done = self.bytes();
            job.gather(&writer)?;
        }
        if job.scratch.is_dir() {
            fs::remove_dir_all(&job.scratch)?;
        }
        writer.finish(&self.run.manifest().corpus.sha256)
    }

    fn manifest(&self, provenance: Provenance) -> Result<Manifest> {
        let shuffled = Shuffled {
            source: self.run.dir().to_string_lossy().into_owned(),
            source_sha256: files::hex(&Sha256::digest(fs::read(self.run.file(manifest::FILE)?)?)),
            source_tokens: self.run.n_tokens(),
            seed: self.options.seed,
            buckets: self.buckets,
            skip_special: self.options.skip_special,
        };
        Ok(self.run.manifest().shuffled(self.hooks.clone(), shuffled).made_by(provenance))
    }

    fn bucket(&self, token_idx: u64) -> usize {
        Order::bucket(self.order.key(token_idx), self.buckets)
    }

    /// What some shards put into the buckets.
    fn tally(&self, shards: &[Shard]) -> Result<Tally> {
        let zeros = vec![0; self.buckets];
        let mut tally = Tally { rows: zeros.clone(), skipped: zeros.clone(), token_bytes: zeros };
        for shard in shards {
            for block in tokens::lengths(self.run, shard) {
                for (token_idx, special, bytes) in block? {
                    let bucket = self.bucket(token_idx);
                    if special && self.options.skip_special {
                        tally.skipped[bucket] += 1;
                    } else {
                        tally.rows[bucket] += 1;
                        tally.token_bytes[bucket] += bytes as u64;
                    }
                }
            }
        }
        Ok(tally)
    }
}

struct Job<'a> {
    shuffle: &'a Shuffle<'a>,
    scratch: PathBuf,
    tally: Tally,
    now: ShuffleProgress,
    /// The person wants it to end; it does where everything before is durable.
    stop: bool,
    progress: &'a mut dyn FnMut(&ShuffleProgress) -> ControlFlow<()>,
}

impl Job<'_> {
    fn report(&mut self, bytes: u64) {
        self.now.bytes_done += bytes;
        self.stop |= (self.progress)(&self.now).is_break();
    }

    /// The scratch file of the tokens, or of the hook point before this index.
    fn path(&self, file: usize) -> PathBuf {
        let name = file.checked_sub(1).map_or_else(|| "tokens.bin".to_owned(), |hook| format!("acts-{hook}.bin"));
        self.scratch.join(name)
    }

    /// Where each bucket begins in a scratch file, given what is in the buckets; one number more than there are buckets.
    fn starts(&self, file: usize) -> Vec<u64> {
        let mut starts = vec![0];
        starts.extend(self.sizes(&self.tally, file).scan(0, |end, size| {
            *end += size;
            Some(*end)
        }));
        starts
    }

    /// Bytes of each bucket in a scratch file.
    fn sizes<'t>(&self, tally: &'t Tally, file: usize) -> impl Iterator<Item = u64> + use<'t> {
        let stride = file.checked_sub(1).map(|hook| stride(&self.shuffle.hooks[hook]) as u64);
        tally
            .rows
            .iter()
            .zip(&tally.token_bytes)
            .map(move |(rows, bytes)| stride.map_or(*bytes, |stride| rows * stride))
    }

    /// What of the first pass is durable.
    fn scattered(&self) -> Result<Scattered> {
        let path = self.scratch.join(PROGRESS);
        if path.is_file() { files::read_json(&path) } else { Ok(Scattered::default()) }
    }

    /// Whether the scratch files do not hold a bucket any more that has no shard: its shard was durable and is lost.
    fn is_spent(&self, writer: &RunWriter) -> Result<bool> {
        let journal = writer.journal();
        let durable = |bucket: usize| journal.iter().any(|entry| entry.shard.index == bucket);
        let n_files = 1 + self.shuffle.hooks.len();
        let Some(last) = (0..self.shuffle.buckets).rev().find(|&bucket| !durable(bucket)) else { return Ok(false) };
        if self.scattered()?.files < n_files {
            return Ok(false);
        }
        let is_short =
            |file: usize| fs::metadata(self.path(file)).map_or(0, |it| it.len()) < self.starts(file)[last + 1];
        Ok((0..n_files).any(is_short))
    }

    /// The first pass, from where it is durable.
    fn scatter(&mut self) -> Result<()> {
        files::create_dir(&self.scratch)?;
        let n_files = 1 + self.shuffle.hooks.len();
        let done = self.scattered()?;
        if done.files >= n_files {
            return Ok(());
        }
        let shards = self.shuffle.run.shards();
        let before = self.shuffle.tally(&shards[..done.shards.min(shards.len())])?;
        self.now.bytes_done = (0..done.files).flat_map(|file| self.sizes(&self.tally, file)).sum::<u64>()
            + self.sizes(&before, done.files).sum::<u64>();
        let buffer = self.shuffle.options.memory / 2 / self.shuffle.buckets;
        // Files whose end is not durable yet.
        let mut waiting = Vec::new();
        let mut syncer = Syncer::default();
        let (mut unsynced, mut unsent) = (0, 0);
        for file in done.files..n_files {
            let starts = self.starts(file);
            let first = if file == done.files { done.shards } else { 0 };
            let filled = if first > 0 { self.sizes(&before, file).collect() } else { vec![0; self.shuffle.buckets] };
            let mut scatter = Scatter::open(&self.path(file), &starts, filled, buffer)?;
            for (i, shard) in shards.iter().enumerate().skip(first) {
                let before = self.now.bytes_done;
                match file.checked_sub(1) {
                    None => self.scatter_tokens(shard, &mut scatter)?,
                    Some(hook) => self.scatter_acts(hook, shard, &mut scatter)?,
                }
                unsynced += self.now.bytes_done - before;
                unsent += self.now.bytes_done - before;
                if unsent >= SYNC_BYTES {
                    syncer.begin(scatter.file())?;
                    unsent = 0;
                }
                if self.stop || unsynced >= CHECKPOINT_BYTES {
                    scatter.flush()?;
                    waiting.push(scatter.file().try_clone()?);
                    syncer.finish()?;
                    self.checkpoint(&mut waiting, Scattered { files: file, shards: i + 1 })?;
                    unsynced = 0;
                }
                if self.stop {
                    return Err(Error::Interrupted);
                }
            }
            waiting.push(scatter.finish()?);
        }
        syncer.finish()?;
        self.checkpoint(&mut waiting, Scattered { files: n_files, shards: 0 })
    }

    /// Makes durable what is written, and then says so.
    fn checkpoint(&self, waiting: &mut Vec<fs::File>, done: Scattered) -> Result<()> {
        for file in waiting.drain(..) {
            file.sync_data()?;
        }
        files::sync_dir(&self.scratch)?;
        files::write_json(&self.scratch.join(PROGRESS), &done)
    }

    fn scatter_tokens(&mut self, shard: &Shard, scatter: &mut Scatter) -> Result<()> {
        let shuffle = self.shuffle;
        let mut record = Vec::new();
        for rows in blocks(shard.n_tokens as usize, TOKEN_ROWS) {
            let columns = shuffle.run.token_rows(shard, rows.clone())?;
            let mut bytes = 0;
            for i in (0..columns.len()).filter(|&i| !(shuffle.options.skip_special && columns.special[i])) {
                let token_idx = shard.first_token_idx + (rows.start + i) as u64;
                tokens::encode(token_idx, &columns, i, &mut record);
                scatter.push(shuffle.bucket(token_idx), &record)?;
                bytes += record.len() as u64;
            }
            self.report(bytes);
        }
        Ok(())
    }

    fn scatter_acts(&mut self, hook: usize, shard: &Shard, scatter: &mut Scatter) -> Result<()> {
        let shuffle = self.shuffle;
        let entry = &shuffle.hooks[hook];
        let file = shuffle.run.acts_file(entry.name, shard)?;
        let mut buffer = Vec::new();
        for rows in blocks(file.n_rows(), (READ_BYTES / entry.row_bytes()).max(1)) {
            buffer.resize(rows.len() * entry.row_bytes(), 0);
            file.read_into(rows.clone(), &mut buffer)?;
            let scales = file.scales(rows.clone())?;
            let special =
                if shuffle.options.skip_special { shuffle.run.special_rows(shard, rows.clone())? } else { Vec::new() };
            let mut bytes = 0;
            for (i, row) in buffer.chunks_exact(entry.row_bytes()).enumerate() {
                if special.get(i) == Some(&true) {
                    continue;
                }
                let bucket = shuffle.bucket(shard.first_token_idx + (rows.start + i) as u64);
                scatter.push(bucket, row)?;
                if let Some(scale) = scales.get(i) {
                    scatter.push(bucket, &scale.to_le_bytes())?;
                }
                bytes += stride(entry) as u64;
            }
            self.report(bytes);
        }
        Ok(())
    }

    /// The second pass: every bucket that has no shard yet.
    fn gather(&mut self, writer: &RunWriter) -> Result<()> {
        let n_files = 1 + self.shuffle.hooks.len();
        let durable: Vec<usize> = writer.journal().iter().map(|entry| entry.shard.index).collect();
        let starts: Vec<Vec<u64>> = (0..n_files).map(|file| self.starts(file)).collect();
        let scratch = (0..n_files)
            .map(|file| fs::OpenOptions::new().read(true).write(true).open(self.path(file)))
            .collect::<std::io::Result<Vec<_>>>()?;
        let mut first_row: u64 = self.tally.rows.iter().sum();
        let mut buffer = Vec::new();
        thread::scope(|scope| {
            // The disk is waited for while the next bucket is put in order.
            let mut committing: Option<ScopedJoinHandle<'_, Result<()>>> = None;
            for bucket in (0..self.shuffle.buckets).rev() {
                first_row -= self.tally.rows[bucket];
                let places: Vec<Range<u64>> = starts.iter().map(|starts| starts[bucket]..starts[bucket + 1]).collect();
                if durable.contains(&bucket) {
                    self.report(places.iter().map(|place| place.end - place.start).sum());
                    continue;
                }
                let mut shard = writer.shard(bucket, first_row)?;
                self.gather_bucket(bucket, &scratch, &places, &mut buffer, &mut shard)?;
                let counts = self.write_documents(bucket, &mut shard)?;
                self.committed(committing.take())?;
                let scratch = &scratch;
                let commit = move || {
                    shard.commit(Value::Null, counts)?;
                    for (file, place) in scratch.iter().zip(places) {
                        file.set_len(place.start)?;
                    }
                    Ok(())
                };
                let thread = thread::Builder::new().name("shuffle-commit".to_owned());
                committing = Some(thread.spawn_scoped(scope, commit)?);
                if self.stop {
                    break;
                }
            }
            self.committed(committing)
        })?;
        if self.stop && self.now.shards < self.shuffle.buckets { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Waits until a shard is durable.
    fn committed(&mut self, committing: Option<ScopedJoinHandle<'_, Result<()>>>) -> Result<()> {
        let Some(thread) = committing else { return Ok(()) };
        thread.join().unwrap_or(Err(Error::Worker { what: "the thread that makes shards durable" }))?;
        self.now.shards += 1;
        self.report(0);
        Ok(())
    }

    /// Writes tokens and rows of a bucket in their order.
    fn gather_bucket(
        &mut self,
        bucket: usize,
        scratch: &[fs::File],
        places: &[Range<u64>],
        buffer: &mut Vec<u8>,
        shard: &mut ShardWriter,
    ) -> Result<()> {
        let shuffle = self.shuffle;
        read(&scratch[0], &places[0], buffer)?;
        let damaged = || Error::damaged(scratch[0].path(), "it does not hold the tokens that were counted");
        let mut records = tokens::records(buffer).ok_or_else(damaged)?;
        if records.len() as u64 != self.tally.rows[bucket] {
            return Err(damaged());
        }
        records.sort_unstable_by_key(|record| shuffle.order.key(record.token_idx));
        for block in records.chunks(TOKEN_ROWS) {
            let mut columns = TokenColumns::default();
            for record in block {
                tokens::decode(&buffer[record.bytes.clone()], &mut columns).ok_or_else(damaged)?;
            }
            let token_idx: Vec<u64> = block.iter().map(|record| record.token_idx).collect();
            shard.write_tokens_of(&token_idx, &columns)?;
        }
        let order: Vec<u32> = records.iter().map(|record| record.row).collect();
        drop(records);
        self.report(places[0].end - places[0].start);

        let first_filled = self.tally.rows.iter().position(|&rows| rows > 0);
        for (hook, entry) in shuffle.hooks.iter().enumerate() {
            read(&scratch[1 + hook], &places[1 + hook], buffer)?;
            // What was lost was lost in the origin, nobody knows in which rows: it is told once.
            let (mut saturated, mut sum_sq_error) = (0, Some(0.0));
            if first_filled == Some(bucket) {
                let origin = shuffle.run.statistics(entry.name)?;
                (saturated, sum_sq_error) = (origin.saturated, origin.sum_sq_error);
            }
            for rows in order.chunks((WRITE_BYTES / entry.row_bytes()).max(1)) {
                let mut stored = pick(buffer, rows, entry);
                stored.saturated = saturated;
                shard.write_stored(hook, stored, Before::Stored { sum_sq_error })?;
                (saturated, sum_sq_error) = (0, Some(0.0));
            }
            self.report(places[1 + hook].end - places[1 + hook].start);
        }
        Ok(())
    }

    /// Writes the part of the documents that goes with a bucket, and returns what its shard holds.
    fn write_documents(&self, bucket: usize, shard: &mut ShardWriter) -> Result<Counts> {
        let (run, buckets) = (self.shuffle.run, self.shuffle.buckets as u128);
        let edge = |bucket: usize| (u128::from(run.n_documents()) * bucket as u128 / buckets) as u64;
        let (first, end) = (edge(bucket), edge(bucket + 1));
        for start in (first..end).step_by(DOCUMENT_ROWS as usize) {
            shard.write_documents(&run.documents(start..end.min(start + DOCUMENT_ROWS))?)?;
        }
        let mut counts = Counts::captured(end - first, self.tally.rows[bucket]);
        if self.tally.skipped[bucket] > 0 {
            counts.skip("special", self.tally.skipped[bucket]);
        }
        Ok(counts)
    }
}

/// Bytes of a row in a scratch file: as it is stored, and its scale.
fn stride(entry: &HookPointEntry) -> usize {
    entry.row_bytes() + if entry.dtype == Dtype::I8 { size_of::<f32>() } else { 0 }
}

/// Memory of a row of a bucket: hook points are taken one after the other.
pub(crate) fn memory_per_row(hooks: &[HookPointEntry]) -> usize {
    hooks.iter().map(stride).max().unwrap_or(0) + TOKEN_MEMORY
}

/// Some rows of a bucket, as the run stores them.
fn pick(bucket: &[u8], rows: &[u32], entry: &HookPointEntry) -> Converted {
    let (row_bytes, stride) = (entry.row_bytes(), stride(entry));
    let mut bytes = Vec::with_capacity(rows.len() * row_bytes);
    let mut scales = Vec::new();
    for &row in rows {
        let row = &bucket[row as usize * stride..][..stride];
        bytes.extend_from_slice(&row[..row_bytes]);
        scales.extend(row[row_bytes..].as_chunks().0.iter().map(|&scale| f32::from_le_bytes(scale)));
    }
    Converted { bytes: Bytes::from(bytes), scales, saturated: 0 }
}

/// `0..n` in blocks.
fn blocks(n: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(step).map(move |start| start..n.min(start + step))
}

fn read(file: &fs::File, place: &Range<u64>, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.resize((place.end - place.start) as usize, 0);
    files::read_at(file, buffer, place.start)
        .map_err(|cause| Error::damaged(file.path(), format!("it ends too early ({cause})")))
}

#[cfg(test)]
mod tests;
