//! How does a disk work while a shard is still being written, and how do its files become durable together?

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use fs_err as fs;

use crate::acts_write::ActsWriter;
use crate::error::{Error, Result};

/// Bytes of a file that the disk is told of at a time.
pub(crate) const FLUSH_BYTES: u64 = 16 << 20;

/// Files that wait for the disk; when it is slower than that, more is told at once.
const QUEUE: usize = 64;

/// Files that are fsynced at the same time.
const SYNC_THREADS: usize = 4;

/// A thread that sends to the disk what was written so far.
///
/// Without it the disk is idle until the end of a shard and everybody waits for it then.
pub(crate) struct Flusher {
    sender: Option<Sender<Arc<fs::File>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flusher {
    pub(crate) fn spawn() -> Result<Self> {
        let (sender, receiver) = bounded(QUEUE);
        let thread = thread::Builder::new().name("shard-flush".to_owned()).spawn(move || run(&receiver))?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    /// Has a file sent to the disk soon.
    pub(crate) fn flush(&self, file: Arc<fs::File>) {
        if let Some(sender) = &self.sender {
            // A queue that is full has this file already, or the final fsync takes care of it.
            let _ = sender.try_send(file);
        }
    }

    /// Waits for the thread. An error of the disk is told once only, so it must not be lost here.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.end().unwrap_or(Ok(()))
    }

    fn end(&mut self) -> Option<Result<()>> {
        drop(self.sender.take());
        let ended = self.thread.take()?.join();
        Some(ended.unwrap_or(Err(Error::Worker { what: "the thread that flushes shards" })))
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        // A shard that is dropped has no use for the result.
        let _ = self.end();
    }
}

fn run(receiver: &Receiver<Arc<fs::File>>) -> Result<()> {
    for file in receiver {
        file.sync_data()?;
    }
    Ok(())
}

/// Fsyncs and renames files, several at a time: a disk that is told of more writes does more of them at once.
pub(crate) fn publish_all(mut writers: Vec<ActsWriter>) -> Result<()> {
    let per_thread = writers.len().div_ceil(SYNC_THREADS).max(1);
    let mut parts = Vec::new();
    while !writers.is_empty() {
        let rest = writers.split_off(per_thread.min(writers.len()));
        parts.push(std::mem::replace(&mut writers, rest));
    }
    let publish = |part: Vec<ActsWriter>| part.into_iter().try_for_each(ActsWriter::publish);
    thread::scope(|scope| {
        let spawn =
            |part| thread::Builder::new().name("shard-sync".to_owned()).spawn_scoped(scope, move || publish(part));
        let threads = parts.into_iter().map(spawn).collect::<Result<Vec<_>, _>>()?;
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(Error::Worker { what: "the thread that makes shards durable" })));
        joined.collect::<Result<()>>()
    })
}
