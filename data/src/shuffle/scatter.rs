//! How do rows reach the places of their buckets in one file, with few and large writes?

use std::path::Path;
use std::thread::{self, JoinHandle};

use fs_err as fs;

use crate::error::{Error, Result};
use crate::files;

/// Bytes of a bucket that wait to be written, at most; more would not make writing faster.
const MAX_BUFFER: usize = 1 << 20;

/// A file in which every bucket has its place, which is filled from front to back.
pub(super) struct Scatter {
    file: fs::File,
    buckets: Vec<Bucket>,
    buffer_bytes: usize,
}

struct Bucket {
    /// Where the next bytes go.
    offset: u64,
    buffer: Vec<u8>,
}

impl Scatter {
    /// `starts` are the places of the buckets, and of the end; `filled` is how much of each is there already.
    /// What is longer than a buffer, of `buffer_bytes` for each bucket, is written at once.
    pub(super) fn open(path: &Path, starts: &[u64], filled: Vec<u64>, buffer_bytes: usize) -> Result<Self> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(starts.last().copied().unwrap_or(0))?;
        let bucket = |(start, filled)| Bucket { offset: start + filled, buffer: Vec::new() };
        Ok(Self {
            file,
            buckets: starts.iter().copied().zip(filled).map(bucket).collect(),
            buffer_bytes: buffer_bytes.min(MAX_BUFFER),
        })
    }

    pub(super) const fn file(&self) -> &fs::File {
        &self.file
    }

    /// Appends to a bucket.
    pub(super) fn push(&mut self, bucket: usize, bytes: &[u8]) -> Result<()> {
        let place = &mut self.buckets[bucket];
        if place.buffer.len() + bytes.len() > self.buffer_bytes {
            place.flush(&self.file)?;
        }
        if place.buffer.capacity() == 0 {
            place.buffer.reserve_exact(self.buffer_bytes.max(bytes.len()));
        }
        place.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.buckets.iter_mut().try_for_each(|bucket| bucket.flush(&self.file))
    }

    /// Writes what waits, and gives the file away, which is not durable yet.
    pub(super) fn finish(mut self) -> Result<fs::File> {
        self.flush()?;
        Ok(self.file)
    }
}

/// A thread that makes a file durable while others write to it, so that little is left to wait for at the end.
#[derive(Default)]
pub(super) struct Syncer {
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Syncer {
    /// Begins with a file, unless the one before takes still.
    pub(super) fn begin(&mut self, file: &fs::File) -> Result<()> {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        // The system tells an error of the disk only once.
        self.finish()?;
        let file = file.try_clone()?;
        let thread = thread::Builder::new().name("shuffle-sync".to_owned());
        self.thread = Some(thread.spawn(move || file.sync_data())?);
        Ok(())
    }

    /// Waits for what was begun.
    pub(super) fn finish(&mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(ended) => Ok(ended.map_err(|_panic| Error::Worker { what: "the thread that makes files durable" })??),
            None => Ok(()),
        }
    }
}

impl Bucket {
    fn flush(&mut self, file: &fs::File) -> Result<()> {
        files::write_at(file, &self.buffer, self.offset)?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
