//! How do reading, computing and writing go on at the same time?

use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use data::shard::RunWriter;

use super::download::Downloads;
use super::read::Item;
use super::{Ended, RecordOptions, RecordProgress, Recorder, Started, write};
use crate::error::{Error, Result};
use crate::gemma::model::Model;

/// How much waits between the threads. It decides nothing of what is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queues {
    /// Sequences that wait for the network.
    pub(super) sequences: usize,
    /// Batches that wait to be written.
    pub(super) batches: usize,
}

impl Default for Queues {
    fn default() -> Self {
        Self { sequences: 256, batches: 2 }
    }
}

/// The network computes on the calling thread, between a thread that reads and one that writes.
pub(super) struct Threads<'a> {
    pub(super) model: &'a Model,
    pub(super) options: &'a RecordOptions,
    pub(super) queues: Queues,
}

impl Threads<'_> {
    /// Runs until the reader has no more, or somebody stops. The run comes back unless a shard was left open.
    ///
    /// `begin` may look at what is read first before it says into which run; what else it gives is handed to `compute`.
    pub(super) fn run<B>(
        &self,
        read: impl FnOnce(&Sender<Item>) -> Result<()> + Send,
        begin: impl FnOnce(&Receiver<Item>) -> Result<(RunWriter, Started, B)>,
        compute: impl FnOnce(&mut Recorder<'_>, B, &Receiver<Item>) -> Result<Ended>,
    ) -> Result<(Option<RunWriter>, Ended, RecordProgress)> {
        let downloads = Downloads::new(self.model.options().device)?;
        thread::scope(|scope| {
            let (items_in, items) = bounded(self.queues.sequences);
            let reading = thread::Builder::new()
                .name("read corpus".to_owned())
                .spawn_scoped(scope, move || read(&items_in))
                .map_err(Error::thread)?;
            let (run, started, begun) = match begin(&items) {
                Ok(begun) => begun,
                Err(error) => {
                    // The reader's error is the cause of what was noticed here.
                    drop(items);
                    reading.join().map_err(Error::panicked)??;
                    return Err(error);
                }
            };
            let (jobs, jobs_out) = bounded(self.queues.batches);
            let writing = thread::Builder::new()
                .name("write shards".to_owned())
                .spawn_scoped(scope, move || write::write(run, &jobs_out))
                .map_err(Error::thread)?;
            let mut recorder = Recorder::new(self.model, self.options, started, jobs, downloads);
            let ended = compute(&mut recorder, begun, &items);
            let last = recorder.progress;
            drop(recorder);
            drop(items);
            // An error of the writer or the reader is the cause of what the network thread noticed, so it comes first.
            let run = writing.join().map_err(Error::panicked)??;
            reading.join().map_err(Error::panicked)??;
            Ok((run, ended?, last))
        })
    }
}
