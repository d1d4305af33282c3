//! How are the experts of a run told apart: which are busy, which go together, and which tokens do they take?
//!
//! Tokens are read once to count the vocabulary, and once for every few layers together with their choices. Everything
//! is counted, nothing is drawn or rounded; [`super::report`] has the formulas. What is held grows with the vocabulary
//! and the experts and not with the run: the counts of token by expert are kept for as many layers at a time as fit
//! into [`TABLE_BYTES`], and for one layer at least.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{UInt32Type, UInt64Type};
use rayon::prelude::*;

use super::read::{BATCH_ROWS, RoutingBatch, RoutingLayer, ShardBatches};
use super::report::{LayerRouting, RoutingReport};
use super::tally::{BatchTokens, Common, Link, Tally};
use crate::error::{Error, Result};
use crate::manifest::{Routing, Shard};
use crate::parquet_io::{Batches, TableFile};
use crate::progress::{OnProgress, Progress};
use crate::store::Run;

/// Bytes of counts of token by expert.
const TABLE_BYTES: usize = 512 << 20;

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingOptions {
    /// Layers of the model; all that were recorded where this is empty.
    pub layers: Vec<usize>,
    /// Whose pairs are listed, as the first of each; all experts' where there is none.
    pub expert: Option<usize>,
    /// How many tokens of an expert, and pairs of a layer, are listed.
    pub top: usize,
    /// How often a pair must have been seen to be listed.
    pub min_count: u64,
    /// Whether special tokens are counted too.
    pub special: bool,
}

impl Default for RoutingOptions {
    fn default() -> Self {
        Self { layers: Vec::new(), expert: None, top: 10, min_count: 10, special: false }
    }
}

/// Counts the choices of a run. The same run gives the same report.
///
/// `progress` is called after each batch; when it breaks, the result is [`Error::Interrupted`].
pub fn analyse(run: &Run, options: &RoutingOptions, progress: OnProgress<'_>) -> Result<RoutingReport> {
    analyse_within(run, options, TABLE_BYTES, progress)
}

/// The same with another bound on the counts of token by expert.
pub(super) fn analyse_within(
    run: &Run,
    options: &RoutingOptions,
    table_bytes: usize,
    progress: OnProgress<'_>,
) -> Result<RoutingReport> {
    let routing = run.routing_info()?.clone();
    let mut layers = if options.layers.is_empty() { routing.layers.clone() } else { options.layers.clone() };
    layers.sort_unstable();
    layers.dedup();
    // Before the first pass: a layer that does not exist.
    layers.iter().try_for_each(|&layer| run.routing(layer).map(drop))?;

    let mut work = Work { run, options, progress, done: 0, total: run.n_tokens() };
    let vocabulary = work.count_vocabulary()?;
    let per_layer = vocabulary.common.len() * routing.n_experts * size_of::<u64>();
    let at_once = (table_bytes / per_layer.max(1)).clamp(1, layers.len().max(1));
    work.total *= 1 + layers.chunks(at_once).count() as u64;

    let mut found = Vec::new();
    for some in layers.chunks(at_once) {
        found.append(&mut work.count_layers(some, &routing, &vocabulary)?);
    }
    name_tokens(run, &mut found)?;
    Ok(RoutingReport {
        n_experts: routing.n_experts,
        top_k: routing.top_k,
        n_tokens: vocabulary.n_tokens,
        n_special: vocabulary.n_special,
        min_count: options.min_count,
        layers: found,
    })
}

struct Work<'a> {
    run: &'a Run,
    options: &'a RoutingOptions,
    progress: OnProgress<'a>,
    done: u64,
    total: u64,
}

/// The tokens of the vocabulary that are in the run.
struct Vocabulary {
    n_tokens: u64,
    n_special: u64,
    /// Those that are common enough, by id.
    common: Vec<Common>,
    /// Their places in `common`.
    slots: HashMap<u32, u32>,
}

/// A layer that is being read.
struct Stream {
    reader: RoutingLayer,
    batches: Option<ShardBatches>,
    batch: RoutingBatch,
    /// `None` for a layer that is only the next one of another.
    tally: Option<Tally>,
    /// To the next recorded layer, which has a stream of its own: its place.
    link: Option<(usize, Link)>,
}

impl Work<'_> {
    fn count_vocabulary(&mut self) -> Result<Vocabulary> {
        let mut counts: HashMap<u32, u64> = HashMap::new();
        let (mut n_tokens, mut n_special) = (0, 0);
        for shard in self.run.shards() {
            let (file, batches) = token_batches(self.run, shard, &["token_id", "special"])?;
            for batch in batches {
                let batch = batch?;
                let token_id = file.primitive::<UInt32Type>(&batch, "token_id")?;
                let special = file.booleans(&batch, "special")?;
                for (id, special) in token_id.iter().zip(special) {
                    if special && !self.options.special {
                        n_special += 1;
                    } else {
                        n_tokens += 1;
                        *counts.entry(*id).or_default() += 1;
                    }
                }
                self.step(token_id.len())?;
            }
        }
        let least = self.options.min_count.max(1);
        let counts: BTreeMap<u32, u64> = counts.into_iter().filter(|&(_, count)| count >= least).collect();
        let common: Vec<Common> =
            counts.into_iter().map(|(token_id, occurrences)| Common { token_id, occurrences }).collect();
        let slots = common.iter().zip(0..).map(|(common, slot)| (common.token_id, slot)).collect();
        Ok(Vocabulary { n_tokens, n_special, common, slots })
    }

    fn count_layers(
        &mut self,
        layers: &[usize],
        routing: &Routing,
        vocabulary: &Vocabulary,
    ) -> Result<Vec<LayerRouting>> {
        let mut streams = self.streams(layers, routing, vocabulary.common.len())?;
        let mut last = None;
        for shard in self.run.shards() {
            for stream in &mut streams {
                stream.batches = Some(stream.reader.shard(shard)?);
            }
            let columns = ["token_id", "doc_id", "pos", "special"];
            let (file, batches) = token_batches(self.run, shard, &columns)?;
            let mut token_idx = shard.first_token_idx;
            for batch in batches {
                let batch = batch?;
                let token_id = file.primitive::<UInt32Type>(&batch, "token_id")?;
                let doc_id = file.primitive::<UInt64Type>(&batch, "doc_id")?;
                let pos = file.primitive::<UInt32Type>(&batch, "pos")?;
                let special = file.booleans(&batch, "special")?;
                let n = token_id.len();
                let mut tokens = BatchTokens::default();
                for i in 0..n {
                    let here = Place { token_idx: token_idx + i as u64, doc_id: doc_id[i], pos: pos[i] };
                    let counted = self.options.special || !special[i];
                    tokens.counted.push(counted);
                    tokens.follows.push(counted && last.is_some_and(|last| here.follows(last)));
                    tokens.slot.push(vocabulary.slots.get(&token_id[i]).copied());
                    last = counted.then_some(here);
                }
                token_idx += n as u64;
                streams.par_iter_mut().try_for_each(|stream| stream.advance(&tokens))?;
                link(&mut streams, routing.top_k, &tokens.counted);
                self.step(n)?;
            }
        }
        let (min_count, top) = (self.options.min_count, self.options.top);
        let layer_of: Vec<usize> = streams.iter().map(|stream| stream.reader.layer()).collect();
        let finish = |stream: Stream| {
            let mut found = stream.tally?.finish(stream.reader.layer(), &vocabulary.common, min_count, top);
            found.top_pairs = found.pairs(self.options.expert, min_count, top);
            found.next_layer = stream.link.map(|(next, link)| link.finish(layer_of[next]));
            Some(found)
        };
        Ok(streams.into_par_iter().filter_map(finish).collect())
    }

    /// A stream for each of these layers, and for the next one of each.
    fn streams(&self, layers: &[usize], routing: &Routing, n_slots: usize) -> Result<Vec<Stream>> {
        let next = |layer: usize| routing.layers.iter().copied().find(|&other| other > layer);
        let read: BTreeSet<usize> = layers.iter().copied().chain(layers.iter().filter_map(|&l| next(l))).collect();
        let stream = |&layer: &usize| {
            let counted = layers.contains(&layer);
            let place = next(layer).filter(|_| counted).and_then(|next| read.iter().position(|&l| l == next));
            Ok(Stream {
                reader: self.run.routing(layer)?.without_logits(),
                batches: None,
                batch: RoutingBatch::default(),
                tally: counted.then(|| Tally::new(routing.n_experts, routing.top_k, n_slots)),
                link: place.map(|place| (place, Link::new(routing.n_experts))),
            })
        };
        read.iter().map(stream).collect()
    }

    fn step(&mut self, tokens: usize) -> Result<()> {
        self.done += tokens as u64;
        let now = Progress { done: self.done, total: self.total.max(self.done) };
        if (self.progress)(now).is_break() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

impl Stream {
    /// Reads and counts as many rows as there are tokens.
    fn advance(&mut self, tokens: &BatchTokens) -> Result<()> {
        let Some(batches) = &mut self.batches else { return Ok(()) };
        let next = batches.next().transpose()?;
        let n_experts = self.reader.n_experts();
        self.batch = next
            .filter(|batch| batch.columns.len() == tokens.counted.len())
            .ok_or_else(|| Error::damaged(batches.file().path(), "it has other rows than there are tokens"))?;
        if let Some(id) = self.batch.columns.expert_ids.iter().find(|&&id| usize::from(id) >= n_experts) {
            return Err(Error::damaged(
                batches.file().path(),
                format!("expected experts below {n_experts}, found {id}"),
            ));
        }
        if let Some(tally) = &mut self.tally {
            tally.add(&self.batch.columns, tokens);
        }
        Ok(())
    }
}

/// Where a token stands.
#[derive(Clone, Copy)]
struct Place {
    token_idx: u64,
    doc_id: u64,
    pos: u32,
}

impl Place {
    /// Whether the model saw it right after another, in one sequence.
    fn follows(self, last: Self) -> bool {
        self.token_idx == last.token_idx + 1 && self.doc_id == last.doc_id && self.pos == last.pos.wrapping_add(1)
    }
}

/// Counts which first choices of neighbouring layers come together.
fn link(streams: &mut [Stream], top_k: usize, counted: &[bool]) {
    for i in 0..streams.len() {
        if let Some((next, mut link)) = streams[i].link.take() {
            link.add(&streams[i].batch.columns, &streams[next].batch.columns, top_k, counted);
            streams[i].link = Some((next, link));
        }
    }
}

/// The tokens of a shard, in batches that begin where those of its routing do.
fn token_batches(run: &Run, shard: &Shard, columns: &[&str]) -> Result<(Arc<TableFile>, Batches)> {
    let file = run.table(&format!("tokens/{}", shard.file_name()))?;
    let batches = file.reader(columns, None, None, BATCH_ROWS)?;
    Ok((file, batches))
}

/// Fills in the texts of the tokens that are listed: from the vocabulary, or from the tokens of the run.
fn name_tokens(run: &Run, layers: &mut [LayerRouting]) -> Result<()> {
    let listed = layers.iter().flat_map(|layer| &layer.experts).flat_map(|expert| &expert.top_tokens);
    let mut unknown: BTreeSet<u32> = listed.map(|token| token.token_id).collect();
    let mut texts: HashMap<u32, String> = HashMap::new();
    if let Some(vocab) = run.vocab()? {
        texts.extend(vocab.into_iter().zip(0..).map(|(text, id)| (id, text)).filter(|(id, _)| unknown.contains(id)));
        unknown.retain(|id| !texts.contains_key(id));
    }
    for shard in run.shards() {
        if unknown.is_empty() {
            break;
        }
        let (file, batches) = token_batches(run, shard, &["token_id", "token"])?;
        for batch in batches {
            let batch = batch?;
            let token_id = file.primitive::<UInt32Type>(&batch, "token_id")?;
            for (id, text) in token_id.into_iter().zip(file.strings(&batch, "token")?) {
                if unknown.remove(&id) {
                    texts.insert(id, text.unwrap_or_default());
                }
            }
        }
    }
    for layer in layers {
        for token in layer.experts.iter_mut().flat_map(|expert| &mut expert.top_tokens) {
            token.token = texts.get(&token.token_id).cloned().unwrap_or_default();
        }
    }
    Ok(())
}
