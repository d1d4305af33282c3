//! How do the activations of a corpus get into a run directory?
//!
//! Three threads with bounded queues between them: [`read`] turns documents into sequences, the calling thread runs the
//! network on batches of whole sequences, [`write`] turns tensors into shards.
//! What a shard holds depends on the corpus and the options alone, so a resumed recording writes the same bytes.

mod download;
mod fill;
mod lengths;
mod read;
mod routing;
mod share;
mod threads;
mod write;

use std::cell::RefCell;
use std::ops::ControlFlow;

use crossbeam_channel::Receiver;
use data::corpus::Corpus;
use data::hook_point::{HookPoint, Part};
pub use data::manifest::Provenance;
use data::manifest::{self, Counts, HookPointEntry, Manifest};
use data::shard::RunWriter;
use data::tables::{DocumentRow, TokenColumns};
use data::{Dtype, Place};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Tensor;

use self::download::Downloads;
use self::fill::Recording;
use self::read::{Item, Sequence};
use self::routing::Listener;
pub use self::share::{Shared, record_share};
use self::threads::Queues;
use self::write::{Job, Rows};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::gemma::model::{Batch, Forward, LoadOptions, Model, Precision};
use crate::hook::Hooks;
use crate::ple;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// The longest sequence, unless the model's own limit is shorter.
pub const DEFAULT_CONTEXT: usize = 1024;
/// Tokens that go through the network at once: enough to fill its matrix products, little enough to stay in memory.
pub const DEFAULT_BATCH_TOKENS: usize = 2048;
/// Tokens in a shard: a minute of work on a laptop, the most that an interruption can cost.
pub const DEFAULT_SHARD_TOKENS: u64 = 32_768;

/// What to record.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordOptions {
    pub hook_points: Vec<HookPoint>,
    /// The longest sequence; `None` for [`DEFAULT_CONTEXT`] or the model's limit, whichever is shorter.
    pub context: Option<usize>,
    /// Stop after this many tokens of the corpus.
    pub max_tokens: Option<u64>,
    pub batch_tokens: usize,
    /// What is written; as computed if `None`.
    pub store_dtype: Option<Dtype>,
    /// Also compute the logits, and store `−ln p` of every token.
    pub nll: bool,
    /// Leave the rows of special tokens out.
    pub skip_special: bool,
    /// Store all logits of the routers beside what they chose; of models with experts.
    pub router_logits: bool,
    pub shard_tokens: u64,
    pub seed: u64,
}

impl RecordOptions {
    /// Every default, for these hook points.
    pub fn new(hook_points: Vec<HookPoint>) -> Self {
        Self {
            hook_points,
            context: None,
            max_tokens: None,
            batch_tokens: DEFAULT_BATCH_TOKENS,
            store_dtype: None,
            nll: false,
            skip_special: false,
            router_logits: false,
            shard_tokens: DEFAULT_SHARD_TOKENS,
            seed: 0,
        }
    }

    /// Those with which a run was recorded.
    pub fn of_run(run: &Manifest) -> Self {
        let option = |name: &str| &run.corpus.options[name];
        let number = |name: &str| option(name).as_u64();
        let is = |name: &str| option(name).as_bool().unwrap_or(false);
        // Different ones are as they were computed.
        let mut dtypes = run.hook_points.iter().map(|entry| entry.dtype);
        let store_dtype = dtypes.next().filter(|first| dtypes.all(|dtype| dtype == *first));
        Self {
            context: number("context").map(|n| n as usize),
            max_tokens: number("max_tokens"),
            batch_tokens: number("batch_tokens").map_or(DEFAULT_BATCH_TOKENS, |n| n as usize),
            store_dtype,
            nll: is("nll"),
            skip_special: is("skip_special"),
            router_logits: run.routing.as_ref().is_some_and(|routing| routing.router_logits),
            shard_tokens: number("shard_tokens").unwrap_or(DEFAULT_SHARD_TOKENS),
            seed: run.seeds.get("record").copied().unwrap_or(0),
            ..Self::new(run.hook_points.iter().map(|entry| entry.name).collect())
        }
    }
}

/// How far a recording is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordProgress {
    pub documents: u64,
    /// Tokens that went through the network, those of an earlier, interrupted recording included.
    pub tokens: u64,
    /// Tokens that were found to be durable when this recording began.
    pub resumed_tokens: u64,
    /// Bytes of text (or four for each given token id) that the documents so far hold.
    pub corpus_bytes: u64,
    /// Closed shards, those of an earlier recording included.
    pub shards: usize,
}

/// How a recording ended.
#[derive(Debug)]
pub enum Recorded {
    Complete(Box<Manifest>),
    /// The caller stopped it. Closed shards stay, and `resume` goes on behind them.
    Interrupted(RecordProgress),
}

/// Where in the corpus a shard ends; stored in its journal entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// The document that goes on.
    document: u64,
    /// How many of its sequences are written.
    sequence: usize,
    /// Tokens planned before this point.
    tokens: u64,
    /// Documents before this point have this sum, so that a changed corpus is noticed.
    sha256: String,
}

/// Describes a model for a manifest. Reads the weight files once, for their sums.
pub fn describe(id: &str, weights: &Weights, options: impl Into<LoadOptions>) -> Result<manifest::Model> {
    let (config, options) = (weights.config(), options.into());
    let sha256 = weights
        .sha256()?
        .into_iter()
        .map(|(path, sum)| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), sum))
        .collect();
    Ok(manifest::Model {
        id: id.to_owned(),
        architecture: config.architecture.to_string(),
        source: weights.path().display().to_string(),
        sha256,
        dtype: dtype(options.precision).to_string(),
        quantization: options.quantize.map(|quantize| quantize.to_string()).or_else(|| weights.quantization()),
        n_params: config.n_params(),
        n_params_effective: config.n_params_effective(),
        ple: ple::facts(config, weights.infos()).map(|facts| manifest::Ple {
            placement: options.ple.to_string(),
            table_bytes: facts.table_bytes,
            bytes_per_token: facts.bytes_per_token,
        }),
        shape: config.shape(),
    })
}

/// What one hook point records: its width and the dtype that it is stored in.
pub fn hook_point_entry(
    model: &manifest::Model,
    point: HookPoint,
    store: Option<Dtype>,
    precision: Precision,
) -> Result<HookPointEntry> {
    let computed = if point.site.row().f32_always { Dtype::F32 } else { dtype(precision) };
    Ok(HookPointEntry::new(point, &model.shape, store.unwrap_or(computed))?)
}

/// What a recording holds of the routing; `None` of a model without experts.
pub fn routing(config: &Config, options: &RecordOptions) -> Option<manifest::Routing> {
    let moe = config.moe?;
    let last = last_layer(options, config.n_layers);
    let layers = (0..config.n_layers.min(last + 1)).collect();
    Some(manifest::Routing { n_experts: moe.n_experts, top_k: moe.top_k, layers, router_logits: options.router_logits })
}

/// Records the activations of `corpus` into the run `out`, a directory or a place in an object store.
///
/// With `resume`, goes on with a recording of the same model, corpus and options: every shard that is not durable is
/// recorded, in the middle as at the end. `progress` is called after every batch; `Break` ends the recording, and
/// everything in closed shards stays.
#[expect(clippy::too_many_arguments, reason = "each is one noun, and the caller is one place")]
pub fn record(
    model: &Model,
    described: manifest::Model,
    tokenizer: Option<&Tokenizer>,
    corpus: &Corpus,
    out: impl Into<Place>,
    options: &RecordOptions,
    provenance: Provenance,
    resume: bool,
    progress: &mut dyn FnMut(&RecordProgress) -> ControlFlow<()>,
) -> Result<Recorded> {
    let (context, out) = (context(model, options)?, out.into());
    let manifest = new_manifest(model, described, tokenizer, corpus, options, context, provenance)?;
    let run = match resume.then(|| RunWriter::resume(&out, &manifest)).transpose() {
        // It was ended before it had begun.
        Err(data::Error::NotARun { .. }) => None,
        resumed => resumed?,
    };
    let recording = Recording { model, tokenizer, corpus, out, options, context, manifest, queues: Queues::default() };
    recording.run(run, progress)
}

/// Records some shards of a run anew, and leaves the others as they are.
///
/// The model, the corpus and the options must be those with which it was recorded: see [`RecordOptions::of_run`].
#[expect(clippy::too_many_arguments, reason = "as `record`")]
pub fn repair(
    model: &Model,
    described: manifest::Model,
    tokenizer: Option<&Tokenizer>,
    corpus: &Corpus,
    out: impl Into<Place>,
    options: &RecordOptions,
    broken: &[usize],
    progress: &mut dyn FnMut(&RecordProgress) -> ControlFlow<()>,
) -> Result<Recorded> {
    let (context, out) = (context(model, options)?, out.into());
    let manifest = new_manifest(model, described, tokenizer, corpus, options, context, Provenance::default())?;
    let begun = Manifest::read(&out)?;
    if begun.complete && read::sum_of(corpus, begun.counts.documents)? != begun.corpus.sha256 {
        return Err(Error::CorpusChanged);
    }
    let run = RunWriter::repair(&out, &manifest, broken)?;
    let recording = Recording { model, tokenizer, corpus, out, options, context, manifest, queues: Queues::default() };
    recording.run(Some(run), progress)
}

/// What the network thread starts from.
struct Started {
    routing: Option<manifest::Routing>,
    next_shard: usize,
    next_token_idx: u64,
    /// See [`Gap::until`](fill::Gap).
    until: Option<(usize, u64)>,
    tokens: u64,
}

enum Ended {
    /// The corpus is at its end; its sum, and how many tokens it gave.
    Complete {
        sha256: String,
        tokens: u64,
    },
    /// A durable shard comes next.
    Filled,
    Interrupted,
}

/// Takes sequences from the reader, and remembers what to write with them.
#[derive(Default)]
struct Planner {
    /// Documents whose first sequence has not come yet.
    pending: Vec<(DocumentRow, String, u64)>,
    /// The sum of the documents before the present one.
    sha256_before: String,
    /// Bytes of the documents so far.
    corpus_bytes: u64,
    documents: u64,
    /// Tokens that an earlier recording has written.
    tokens_before: u64,
    /// The sum of all documents and the number of their tokens, once the corpus has ended.
    ended: Option<(String, u64)>,
}

impl Planner {
    fn next_sequence(&mut self, items: &Receiver<Item>) -> Option<Sequence> {
        while let Ok(item) = items.recv() {
            match item {
                Item::Resumed { documents, corpus_bytes, tokens } => {
                    self.documents = documents;
                    self.corpus_bytes = corpus_bytes;
                    self.tokens_before = tokens;
                }
                Item::Document { row, sha256_before, bytes } => {
                    self.documents += 1;
                    self.pending.push((row, sha256_before, bytes));
                }
                Item::Going { sha256_before } => self.sha256_before = sha256_before,
                Item::Sequence(sequence) => return Some(sequence),
                Item::End { sha256, tokens } => self.ended = Some((sha256, tokens)),
                Item::Open { .. } | Item::Close { .. } => {} // Only workers are told.
            }
        }
        None
    }

    /// Where a shard ends that does not hold `next`.
    fn cursor(&self, next: &Sequence, tokens: u64) -> Cursor {
        match self.pending.first() {
            Some((row, sha256, _)) => Cursor { document: row.doc_id, sequence: 0, tokens, sha256: sha256.clone() },
            None => Cursor { document: next.doc_id, sequence: next.index, tokens, sha256: self.sha256_before.clone() },
        }
    }

    /// The documents that begin with the sequence that is being placed at `token_idx`.
    fn take_documents(&mut self, token_idx: u64) -> Vec<DocumentRow> {
        let taken = std::mem::take(&mut self.pending);
        if let Some((_, sha256, _)) = taken.last() {
            self.sha256_before.clone_from(sha256);
        }
        taken
            .into_iter()
            .map(|(row, _, bytes)| {
                self.corpus_bytes += bytes;
                DocumentRow { first_token_idx: token_idx, ..row }
            })
            .collect()
    }
}

/// The network thread: batches in, captured rows out.
struct Recorder<'a> {
    model: &'a Model,
    options: &'a RecordOptions,
    routing: Option<manifest::Routing>,
    jobs: crossbeam_channel::Sender<Job>,
    downloads: Downloads,
    batch: Vec<Sequence>,
    documents: Vec<DocumentRow>,
    batch_tokens: usize,
    /// Tokens planned into the open shard, or `None` if none is open.
    shard_tokens: Option<u64>,
    counts: Counts,
    next_shard: usize,
    next_token_idx: u64,
    /// See [`Started::until`].
    until: Option<(usize, u64)>,
    /// Tokens planned, earlier recordings included.
    planned: u64,
    progress: RecordProgress,
}

impl<'a> Recorder<'a> {
    fn new(
        model: &'a Model,
        options: &'a RecordOptions,
        started: Started,
        jobs: crossbeam_channel::Sender<Job>,
        downloads: Downloads,
    ) -> Self {
        let progress = RecordProgress {
            tokens: started.tokens,
            resumed_tokens: started.tokens,
            shards: started.next_shard,
            ..RecordProgress::default()
        };
        Self {
            model,
            options,
            routing: started.routing,
            jobs,
            downloads,
            batch: Vec::new(),
            documents: Vec::new(),
            batch_tokens: 0,
            shard_tokens: None,
            counts: Counts::default(),
            next_shard: started.next_shard,
            next_token_idx: started.next_token_idx,
            until: started.until,
            planned: started.tokens,
            progress,
        }
    }

    fn run(
        &mut self,
        first: Option<Sequence>,
        mut planner: Planner,
        items: &Receiver<Item>,
        progress: &mut dyn FnMut(&RecordProgress) -> ControlFlow<()>,
    ) -> Result<Ended> {
        let mut next = first;
        while let Some(sequence) = next {
            let length = sequence.tokens.len();
            let has_room = |tokens| lengths::fits(tokens, length as u64, self.options.shard_tokens);
            let shard_is_full = self.shard_tokens.is_some_and(|tokens| !has_room(tokens));
            if shard_is_full || (self.batch_tokens > 0 && self.batch_tokens + length > self.options.batch_tokens) {
                self.flush(&planner)?;
                if progress(&self.progress).is_break() {
                    return Ok(Ended::Interrupted);
                }
            }
            if shard_is_full {
                if let Some((_, expected)) = self.until.filter(|&(shard, _)| shard == self.next_shard + 1)
                    && expected != self.next_token_idx
                {
                    return Err(Error::CorpusChanged);
                }
                self.close_shard(planner.cursor(&sequence, self.planned))?;
                if self.until.is_some_and(|(shard, _)| shard == self.next_shard) {
                    return Ok(Ended::Filled);
                }
            }
            if self.shard_tokens.is_none() {
                self.send(Job::Open { shard: self.next_shard, first_token_idx: self.next_token_idx })?;
                self.shard_tokens = Some(0);
            }
            let documents = planner.take_documents(self.next_token_idx);
            self.counts.documents += documents.len() as u64;
            self.documents.extend(documents);
            self.place(sequence);
            next = planner.next_sequence(items);
        }
        let Some((sha256, tokens)) = planner.ended.clone() else {
            return Ok(Ended::Interrupted); // The reader failed; its error is reported.
        };
        // Documents without a token at the end of the corpus still have their rows.
        let documents = planner.take_documents(self.next_token_idx);
        if self.shard_tokens.is_none() && !documents.is_empty() {
            self.send(Job::Open { shard: self.next_shard, first_token_idx: self.next_token_idx })?;
            self.shard_tokens = Some(0);
        }
        self.counts.documents += documents.len() as u64;
        self.documents.extend(documents);
        self.flush(&planner)?;
        // Everything has been computed: a wish to stop that comes now has nothing left to stop.
        let _ = progress(&self.progress);
        if self.shard_tokens.is_some() {
            let end = Cursor { document: planner.documents, sequence: 0, tokens: self.planned, sha256: sha256.clone() };
            self.close_shard(end)?;
        }
        Ok(Ended::Complete { sha256, tokens })
    }

    /// Puts a sequence into the batch and counts its tokens.
    fn place(&mut self, sequence: Sequence) {
        let length = sequence.tokens.len() as u64;
        let special = sequence.tokens.iter().filter(|token| token.special).count() as u64;
        let skipped = if self.options.skip_special { special } else { 0 };
        self.counts.tokens_expected += length;
        self.counts.tokens_captured += length - skipped;
        if skipped > 0 {
            *self.counts.tokens_skipped.entry("special".to_owned()).or_default() += skipped;
        }
        self.next_token_idx += length - skipped;
        self.planned += length;
        self.batch_tokens += length as usize;
        if let Some(tokens) = &mut self.shard_tokens {
            *tokens += length;
        }
        self.batch.push(sequence);
    }

    /// Runs the network on the batch, and hands the rows over to be written.
    fn flush(&mut self, planner: &Planner) -> Result<()> {
        let sequences = std::mem::take(&mut self.batch);
        let documents = std::mem::take(&mut self.documents);
        self.batch_tokens = 0;
        if !sequences.is_empty() {
            let rows = self.compute(&sequences, documents)?;
            self.send(Job::Rows(Box::new(rows)))?;
        } else if !documents.is_empty() {
            self.send(Job::Rows(Box::new(Rows { documents, ..Rows::default() })))?;
        }
        self.progress = RecordProgress {
            documents: planner.documents,
            tokens: self.planned,
            corpus_bytes: planner.corpus_bytes,
            ..self.progress
        };
        Ok(())
    }

    fn compute(&self, sequences: &[Sequence], documents: Vec<DocumentRow>) -> Result<Rows> {
        let mut batch = Batch::default();
        for sequence in sequences {
            batch.push(&sequence.tokens.iter().map(|token| token.id).collect::<Vec<_>>());
        }
        let Captured { acts, routing, nll } = self.capture(&batch)?;
        let mut columns = TokenColumns::default();
        let mut keep = Vec::with_capacity(batch.ids.len());
        let mut row = 0;
        for sequence in sequences {
            for (pos, token) in sequence.tokens.iter().enumerate() {
                if !(self.options.skip_special && token.special) {
                    keep.push(row as i64);
                    columns.doc_id.push(sequence.doc_id);
                    columns.pos.push(pos as u32);
                    columns.token_id.push(token.id);
                    columns.token.push(token.text.clone());
                    columns.byte_start.push(token.span.map(|(start, _)| start));
                    columns.byte_end.push(token.span.map(|(_, end)| end));
                    columns.special.push(token.special);
                    columns.modality.push(0);
                    columns.nll.push(nll.get(row).copied().flatten());
                }
                row += 1;
            }
        }
        let bring = |tensors: Vec<Tensor>| tensors.into_iter().map(|x| self.downloads.start(x)).collect::<Result<_>>();
        let (acts, routing) = (bring(acts)?, bring(routing)?);
        let keep = (keep.len() < batch.ids.len()).then(|| Tensor::from_slice(&keep));
        Ok(Rows { tokens: columns, documents, acts, routing, keep })
    }

    fn close_shard(&mut self, cursor: Cursor) -> Result<()> {
        let counts = std::mem::take(&mut self.counts);
        self.send(Job::Close { cursor, counts })?;
        self.next_shard += 1;
        self.progress.shards = self.next_shard;
        self.shard_tokens = None;
        Ok(())
    }

    /// Fails only when the writer has ended, which it does with an error of its own.
    fn send(&self, job: Job) -> Result<()> {
        self.jobs.send(job).map_err(|_closed| Error::WriterEnded)
    }

    /// One forward pass.
    fn capture(&self, batch: &Batch) -> Result<Captured> {
        let points = &self.options.hook_points;
        let slots: Vec<RefCell<Option<Tensor>>> = points.iter().map(|_| None.into()).collect();
        let listener = self.routing.as_ref().map(Listener::new);
        let mut hooks = Hooks::none();
        for (&point, slot) in points.iter().zip(&slots) {
            // Nothing in the network writes in place, so a second handle on the tensor is enough.
            hooks.read(point, |_, value| {
                slot.replace(Some(value.shallow_clone()));
            });
        }
        if let Some(listener) = &listener {
            listener.attach(&mut hooks);
        }
        let n_layers = self.model.config().n_layers;
        let last = last_layer(self.options, n_layers);
        let stop_after = (last < n_layers).then_some(last);
        let output = self.model.forward(batch, None, &mut hooks, Forward { stop_after, ..Forward::default() })?;
        drop(hooks);
        let nll = if self.options.nll { shifted_nll(self.model, batch, &output.resid) } else { Vec::new() };
        let acts = slots
            .into_iter()
            .zip(points)
            .map(|(slot, &point)| slot.into_inner().ok_or(Error::NotReached { point }))
            .collect::<Result<_>>()?;
        let routing = listener.map(Listener::finish).transpose()?.unwrap_or_default();
        Ok(Captured { acts, routing, nll })
    }
}

/// What one forward pass gave.
struct Captured {
    /// One for each hook point, `[tok, …]`.
    acts: Vec<Tensor>,
    /// One for each layer that routes, packed.
    routing: Vec<Tensor>,
    /// Of every token, where it is asked for.
    nll: Vec<Option<f32>>,
}

/// The last layer that the forward pass runs, or `n_layers` if it runs to the end.
fn last_layer(options: &RecordOptions, n_layers: usize) -> usize {
    if options.nll {
        return n_layers;
    }
    let layer = |point: &HookPoint| match point.site.row().part {
        Part::Start => 0,
        Part::Block => point.layer.unwrap_or(0),
        Part::End => n_layers,
    };
    options.hook_points.iter().map(layer).max().unwrap_or(0)
}

/// The NLL of each token given those before it; `None` for the first of each sequence.
fn shifted_nll(model: &Model, batch: &Batch, resid: &Tensor) -> Vec<Option<f32>> {
    let mut from = Vec::new();
    let mut start = 0;
    for &length in &batch.lengths {
        from.extend(start..start + length - 1);
        start += length;
    }
    let mut nll = vec![None; batch.ids.len()];
    if !from.is_empty() {
        let rows = from.iter().map(|&row| row as i64).collect::<Vec<_>>();
        let rows = Tensor::from_slice(&rows).to_device(resid.device());
        let targets: Vec<u32> = from.iter().map(|&row| batch.ids[row + 1]).collect();
        let values = model.nll(&resid.index_select(0, &rows), &targets);
        for (row, value) in from.into_iter().zip(values) {
            nll[row + 1] = Some(value);
        }
    }
    nll
}

fn context(model: &Model, options: &RecordOptions) -> Result<usize> {
    let limit = model.config().n_ctx;
    let context = options.context.unwrap_or(DEFAULT_CONTEXT.min(limit));
    // One position is for BOS, so a context of one could not hold a token.
    if context < 2 || context > limit {
        return Err(Error::Context { limit, found: context });
    }
    Ok(context)
}

fn new_manifest(
    model: &Model,
    described: manifest::Model,
    tokenizer: Option<&Tokenizer>,
    corpus: &Corpus,
    options: &RecordOptions,
    context: usize,
    provenance: Provenance,
) -> Result<Manifest> {
    let hook_points = options
        .hook_points
        .iter()
        .map(|&point| hook_point_entry(&described, point, options.store_dtype, model.precision()))
        .collect::<Result<Vec<_>>>()?;
    let corpus = manifest::Corpus {
        sources: corpus.sources(),
        sha256: String::new(),
        options: json!({
            "lines": corpus.lines(),
            "context": context,
            "max_tokens": options.max_tokens,
            "batch_tokens": options.batch_tokens,
            "shard_tokens": options.shard_tokens,
            "skip_special": options.skip_special,
            "nll": options.nll,
        }),
    };
    let mut manifest = Manifest::new(described, corpus, hook_points);
    manifest.routing = routing(model.config(), options);
    manifest.tokenizer = tokenizer.map(|tokenizer| manifest::Tokenizer { sha256: tokenizer.sha256().to_owned() });
    manifest.seeds.insert("record".to_owned(), options.seed);
    Ok(manifest.made_by(provenance))
}

fn dtype(precision: Precision) -> Dtype {
    match precision {
        Precision::F32 => Dtype::F32,
        Precision::Bf16 => Dtype::Bf16,
    }
}
