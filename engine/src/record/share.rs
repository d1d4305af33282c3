//! How does one worker of several record its share of a corpus?
//!
//! It reads every document, because the sum of those before a shard is part of the shard's cursor, but it cuts only those
//! into tokens that have a sequence in one of its shards. What it writes is what one process would write there.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use crossbeam_channel::{Receiver, Sender};
use data::Place;
use data::corpus::Corpus;
use data::files::hex;
use data::manifest::{self, Manifest};
use data::shard::RunWriter;
use data::shard::workers::{Joined, Membership, Planned, Worker};
use data::tables::DocumentRow;
use sha2::{Digest as _, Sha256};

use super::lengths::{self, PART_BYTES, Placed};
use super::read::{Item, Reader, sum, truncate};
use super::threads::{Queues, Threads};
use super::write::Job;
use super::{
    Cursor, Ended, Planner, Provenance, RecordOptions, RecordProgress, Recorder, Started, context, new_manifest,
};
use crate::error::{Error, Result};
use crate::gemma::model::Model;
use crate::tokenizer::Tokenizer;

/// How a worker ended.
#[derive(Debug)]
pub enum Shared {
    /// All of its shards are durable.
    Done { planned: Planned, shards: Vec<usize>, tokens: u64 },
    /// The caller stopped it; the same call goes on behind its durable shards.
    Interrupted(RecordProgress),
    /// The run has been merged before.
    Complete(Box<Manifest>),
}

/// Records the shards of one worker into the run `out`, which all workers share.
///
/// A worker that is called again goes on where it was; the run is complete when
/// [`merge`](data::shard::workers::merge) has been called.
#[expect(clippy::too_many_arguments, reason = "each is one noun, and the caller is one place")]
pub fn record_share(
    model: &Model,
    described: manifest::Model,
    tokenizer: Option<&Tokenizer>,
    corpus: &Corpus,
    out: impl Into<Place>,
    options: &RecordOptions,
    provenance: Provenance,
    worker: Worker,
    progress: &mut dyn FnMut(&RecordProgress) -> ControlFlow<()>,
) -> Result<Shared> {
    let context = context(model, options)?;
    let manifest = new_manifest(model, described, tokenizer, corpus, options, context, provenance)?;
    let (run, mut member) = match RunWriter::join(out, manifest, worker)? {
        Joined::Begun(run, member) => (run, member),
        Joined::Complete(manifest) => return Ok(Shared::Complete(manifest)),
    };
    let reader = Reader {
        corpus,
        tokenizer,
        config: model.config(),
        context,
        max_tokens: options.max_tokens,
        skip_special: options.skip_special,
        from: None,
    };
    let nothing = RecordProgress::default();
    if lengths::count(&reader, &member, PART_BYTES, &mut || progress(&nothing))?.is_break() {
        return Ok(Shared::Interrupted(nothing));
    }
    let planned = lengths::plan(&member, options)?;
    if planned.tokens_expected == 0 {
        return Err(Error::EmptyCorpus);
    }
    member.planned(planned.clone())?;
    if let Some(tokenizer) = tokenizer {
        let text = |id| tokenizer.token_text(id).unwrap_or_default();
        let vocab = || (0..tokenizer.vocab_size() as u32).map(text).collect::<Vec<_>>();
        member.write_vocab(&run, vocab)?;
    }

    let durable: BTreeSet<usize> = run.journal().iter().map(|entry| entry.shard.index).collect();
    let earlier: u64 = run.journal().iter().map(|entry| entry.counts.tokens_expected).sum();
    let wanted = (0..planned.shards).filter(|shard| worker.owns(*shard) && !durable.contains(shard)).collect();
    let share = Share { reader, member: &member, options, wanted };
    let started = Started {
        routing: run.manifest().routing.clone(),
        next_shard: durable.len(),
        next_token_idx: 0,
        until: None,
        tokens: earlier,
    };
    let threads = Threads { model, options, queues: Queues::default() };
    let (run, ended, last) = threads.run(
        move |items| share.read(items),
        |_items| Ok((run, started, ())),
        |recorder, (), items| recorder.run_share(items, progress),
    )?;
    match (ended, run) {
        (Ended::Complete { sha256, .. }, Some(run)) => {
            let journal = run.journal();
            let tokens = journal.iter().map(|entry| entry.counts.tokens_captured).sum();
            member.done(&sha256)?;
            Ok(Shared::Done { planned, shards: journal.iter().map(|entry| entry.shard.index).collect(), tokens })
        }
        _ => Ok(Shared::Interrupted(last)),
    }
}

/// The reader of a worker.
struct Share<'a> {
    reader: Reader<'a>,
    member: &'a Membership,
    options: &'a RecordOptions,
    /// The shards that are to be recorded.
    wanted: BTreeSet<usize>,
}

/// A document whose first sequence has not come yet: its row, the sum of those before it, its bytes.
type Pending = (DocumentRow, String, u64);

impl Share<'_> {
    /// Sends what belongs to the wanted shards, in order. Ends early, without an error, when nobody listens any more.
    fn read(self, items: &Sender<Item>) -> Result<()> {
        let mut read_so_far = Sha256::new();
        let mut placed = Placed::new(self.member, self.options);
        let mut pending: Vec<Pending> = Vec::new();
        let mut open = false;
        let mut documents = 0;
        for (doc_id, document) in (0..).zip(self.reader.corpus.documents()) {
            if placed.cut.is_full() {
                break;
            }
            let document = document?;
            let sha256_before = hex(&read_so_far.clone().finalize());
            let (bytes, sha256) = sum(&document.content);
            let mut left = self.reader.max_tokens.map_or(u64::MAX, |max| max - placed.cut.planned());
            let places = placed.next(&hex(&sha256))?;
            let mut sequences = Vec::new();
            if places.iter().any(|place| self.wanted.contains(&place.shard)) {
                sequences = self.reader.sequences(&document, doc_id)?;
                truncate(&mut sequences, &mut left);
                let lengths = sequences.iter().map(|sequence| sequence.tokens.len());
                if lengths.ne(places.iter().map(|place| place.tokens as usize)) {
                    return Err(Error::CorpusChanged);
                }
            }
            let row = DocumentRow {
                doc_id,
                source: document.source,
                n_tokens: self.reader.rows(&sequences),
                sha256: hex(&sha256),
                meta: document.meta,
                first_token_idx: 0,
            };
            // A document without a sequence of its own has its row where the next sequence is.
            pending.push((row, sha256_before.clone(), bytes));
            let mut sequences = sequences.into_iter();
            let mut messages = Vec::new();
            for (index, place) in places.iter().enumerate() {
                let sequence = sequences.next();
                if place.first {
                    if open {
                        messages.push(Item::Close {
                            cursor: cursor(&pending, doc_id, index, &sha256_before, place.planned),
                        });
                    }
                    open = self.wanted.contains(&place.shard);
                    if open {
                        let first_token_idx = place.token_idx;
                        messages.push(Item::Open { shard: place.shard, first_token_idx });
                    }
                }
                let waiting = std::mem::take(&mut pending);
                if open {
                    messages.extend(waiting.into_iter().map(document_item));
                    messages.extend(sequence.map(Item::Sequence));
                }
            }
            for message in messages {
                if items.send(message).is_err() {
                    return Ok(());
                }
            }
            read_so_far.update(sha256);
            documents = doc_id + 1;
        }
        let sha256 = hex(&read_so_far.finalize());
        // Nobody listening is no error here either.
        if open {
            for document in pending {
                let _ = items.send(document_item(document));
            }
            let cursor =
                Cursor { document: documents, sequence: 0, tokens: placed.cut.planned(), sha256: sha256.clone() };
            let _ = items.send(Item::Close { cursor });
        }
        let _ = items.send(Item::End { sha256, tokens: placed.cut.planned() });
        Ok(())
    }
}

/// Where a shard ends that does not hold the sequence `index` of the document `doc_id`.
fn cursor(pending: &[Pending], doc_id: u64, index: usize, sha256_before: &str, tokens: u64) -> Cursor {
    match pending.first() {
        Some((row, sha256, _)) => Cursor { document: row.doc_id, sequence: 0, tokens, sha256: sha256.clone() },
        None => Cursor { document: doc_id, sequence: index, tokens, sha256: sha256_before.to_owned() },
    }
}

fn document_item((row, sha256_before, bytes): Pending) -> Item {
    Item::Document { row, sha256_before, bytes }
}

impl Recorder<'_> {
    /// Records the shards that the reader tells of.
    fn run_share(
        &mut self,
        items: &Receiver<Item>,
        progress: &mut dyn FnMut(&RecordProgress) -> ControlFlow<()>,
    ) -> Result<Ended> {
        let mut planner = Planner::default();
        for item in items {
            match item {
                Item::Open { shard, first_token_idx } => {
                    self.next_token_idx = first_token_idx;
                    self.send(Job::Open { shard, first_token_idx })?;
                }
                Item::Document { row, bytes, .. } => {
                    planner.documents += 1;
                    planner.corpus_bytes += bytes;
                    self.counts.documents += 1;
                    self.documents.push(DocumentRow { first_token_idx: self.next_token_idx, ..row });
                }
                Item::Sequence(sequence) => {
                    if self.batch_tokens > 0 && self.batch_tokens + sequence.tokens.len() > self.options.batch_tokens {
                        self.flush(&planner)?;
                        if progress(&self.progress).is_break() {
                            return Ok(Ended::Interrupted);
                        }
                    }
                    self.place(sequence);
                }
                Item::Close { cursor } => {
                    self.flush(&planner)?;
                    self.close_shard(cursor)?;
                    if progress(&self.progress).is_break() {
                        return Ok(Ended::Interrupted);
                    }
                }
                Item::End { sha256, tokens } => return Ok(Ended::Complete { sha256, tokens }),
                Item::Resumed { .. } | Item::Going { .. } => {}
            }
        }
        Ok(Ended::Interrupted) // The reader failed; its error is reported.
    }
}
