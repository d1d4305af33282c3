//! Which shards does a run lack, and how are they recorded?
//!
//! Going on at the end of a run that was interrupted, and writing a shard in its middle anew, are the same thing: the
//! network runs from where the last durable shard ends to where the next one begins, or to the end of the corpus.

use std::ops::ControlFlow;
use std::path::Path;

use crossbeam_channel::Receiver;
use data::Place;
use data::corpus::Corpus;
use data::manifest::{Counts, JournalEntry, Manifest};
use data::shard::RunWriter;

use super::read::{Item, Reader};
use super::threads::{Queues, Threads};
use super::{Cursor, Ended, Planner, RecordOptions, RecordProgress, Recorded, Started};
use crate::error::{Error, Result};
use crate::gemma::model::Model;
use crate::tokenizer::Tokenizer;

/// What is recorded, and into which run.
pub(super) struct Recording<'a> {
    pub(super) model: &'a Model,
    pub(super) tokenizer: Option<&'a Tokenizer>,
    pub(super) corpus: &'a Corpus,
    pub(super) out: Place,
    pub(super) options: &'a RecordOptions,
    pub(super) context: usize,
    /// Of the run, as it would be begun now.
    pub(super) manifest: Manifest,
    pub(super) queues: Queues,
}

/// Consecutive shards that are not durable.
pub(super) struct Gap {
    /// Where in the corpus they begin; `None` for its beginning.
    pub(super) from: Option<Cursor>,
    pub(super) shard: usize,
    pub(super) first_token_idx: u64,
    /// The durable shard behind them and its first token; `None` at the end of the run.
    pub(super) until: Option<(usize, u64)>,
}

/// What the journal lacks: gaps between durable shards, and at last whatever comes behind them.
fn gaps(journal: &[JournalEntry], out: &Path) -> Result<Vec<Gap>> {
    let mut gaps = Vec::new();
    let mut next = Gap { from: None, shard: 0, first_token_idx: 0, until: None };
    for JournalEntry { shard, cursor, .. } in journal {
        if shard.index > next.shard {
            gaps.push(Gap { until: Some((shard.index, shard.first_token_idx)), ..next });
        }
        let cursor = serde_json::from_value(cursor.clone()).map_err(|_wrong| Error::Cursor { path: out.to_owned() })?;
        next = Gap { from: Some(cursor), shard: shard.index + 1, first_token_idx: shard.tokens().end, until: None };
    }
    gaps.push(next);
    Ok(gaps)
}

impl Recording<'_> {
    /// Fills every gap of the run, or of a new one, and completes it.
    pub(super) fn run(
        &self,
        mut run: Option<RunWriter>,
        progress: &mut dyn FnMut(&RecordProgress) -> ControlFlow<()>,
    ) -> Result<Recorded> {
        let journal = run.as_ref().map(RunWriter::journal).unwrap_or_default();
        for gap in gaps(&journal, self.out.shown())? {
            let (filled, ended, last) = self.fill(run, gap, progress)?;
            run = filled;
            match (ended, run.take()) {
                (Ended::Filled, Some(filled)) => run = Some(filled),
                (Ended::Complete { sha256, tokens }, Some(whole)) => {
                    let known = &whole.manifest().corpus.sha256;
                    if !known.is_empty() && *known != sha256 {
                        return Err(Error::CorpusChanged);
                    }
                    self.check(&whole.journal(), tokens)?;
                    return Ok(Recorded::Complete(Box::new(whole.finish(&sha256)?)));
                }
                _ => return Ok(Recorded::Interrupted(last)),
            }
        }
        Err(Error::WriterEnded)
    }

    /// That what the shards say they hold or have skipped is what was read from the corpus.
    fn check(&self, journal: &[JournalEntry], tokens: u64) -> Result<()> {
        let mut counts = Counts::default();
        for entry in journal {
            counts.add(&entry.counts);
        }
        counts.tokens_expected = tokens;
        Ok(counts.check(self.out.shown())?)
    }

    /// Records the shards of a gap. The run comes back unless a shard was left open.
    fn fill(
        &self,
        run: Option<RunWriter>,
        gap: Gap,
        progress: &mut dyn FnMut(&RecordProgress) -> ControlFlow<()>,
    ) -> Result<(Option<RunWriter>, Ended, RecordProgress)> {
        let reader = Reader {
            corpus: self.corpus,
            tokenizer: self.tokenizer,
            config: self.model.config(),
            context: self.context,
            max_tokens: self.options.max_tokens,
            skip_special: self.options.skip_special,
            from: gap.from,
        };
        let begin = |items: &Receiver<Item>| {
            // The run directory is made when there is a first sequence to put into it.
            let mut planner = Planner::default();
            let first = planner.next_sequence(items);
            if first.is_none() && gap.shard == 0 {
                return Err(Error::EmptyCorpus);
            }
            let run = match run {
                Some(run) => run,
                None => RunWriter::create(&self.out, self.manifest.clone())?,
            };
            if let Some(tokenizer) = self.tokenizer {
                let text = |id| tokenizer.token_text(id).unwrap_or_default();
                run.write_vocab(&(0..tokenizer.vocab_size() as u32).map(text).collect::<Vec<_>>())?;
            }
            let started = Started {
                routing: run.manifest().routing.clone(),
                next_shard: gap.shard,
                next_token_idx: gap.first_token_idx,
                until: gap.until,
                tokens: planner.tokens_before,
            };
            Ok((run, started, (first, planner)))
        };
        let threads = Threads { model: self.model, options: self.options, queues: self.queues };
        threads.run(
            move |items| reader.read(items),
            begin,
            |recorder, (first, planner), items| recorder.run(first, planner, items, progress),
        )
    }
}

#[cfg(test)]
mod tests;
