//! How does a run come to be on disk, shard by shard, so that nothing is lost silently?
//!
//! The files of a shard are written under temporary names, fsynced and renamed; their directories are fsynced; the
//! journal entry is written last. Whatever has no journal entry does not exist: a run that was killed goes on with
//! [`RunWriter::resume`], and the recorder repeats from the cursor of the last entry.

pub mod workers;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use fs_err as fs;
use serde::Serialize;
use serde_json::Value;

use crate::acts_write::{ActsWriter, Hasher, TokenIdx};
use crate::convert::{self, Converted};
use crate::error::{Error, Result};
use crate::files;
use crate::manifest::{self, Counts, JournalEntry, Manifest, Routing, Shard, Shuffled, shard_file_name};
use crate::parquet_io::{TableOptions, TableWriter};
use crate::place::Place;
use crate::routing::{RoutingColumns, RoutingWriter};
use crate::statistics::Before;
use crate::sums::Seal;
use crate::tables::{self, DocumentRow, TokenColumns, VOCAB_FILE};
use crate::{Dtype, schema, sums};

/// Rows of a row group of `tokens` and `documents`.
const GROUP_ROWS: usize = 65_536;

/// Threads that hash and add up statistics for one shard, beside the one that writes: at least, and at most, where the
/// machine has so many. What a file holds does not depend on them.
const HASH_THREADS: RangeInclusive<usize> = 2..=8;

/// Files that are fsynced at the same time.
const SYNC_THREADS: usize = 4;

/// Writes a run; shards may be written at the same time from several threads.
#[derive(Debug)]
pub struct RunWriter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    place: Place,
    manifest: Manifest,
    journal: Mutex<Vec<JournalEntry>>,
    hash_threads: usize,
    /// Held open for its lock, where the system has such locks on folders.
    _lock: Option<fs::File>,
}

impl RunWriter {
    /// Begins a run in a folder that does not exist yet or is empty.
    pub fn create(place: impl Into<Place>, mut manifest: Manifest) -> Result<Self> {
        let place = place.into();
        let exists = || Error::RunExists { path: place.shown().to_owned() };
        place.refresh()?;
        if place.has(manifest::FILE)? {
            return Err(exists());
        }
        if !place.is_remote() && place.dir().is_dir() && holds_files(place.dir())? || place.holds_anything()? {
            return Err(Error::NotEmpty { path: place.shown().to_owned() });
        }
        files::create_dir(place.dir())?;
        manifest.check_routing(&Manifest::path(&place))?;
        let lock = lock(&place)?;
        manifest.complete = false;
        // First of all: a folder with anything else in it can be resumed.
        match manifest.create(&place) {
            Ok(true) => {}
            // In a store, another process was faster.
            Ok(false) | Err(Error::OtherBytes { .. }) => return Err(exists()),
            Err(error) => return Err(error),
        }
        create_folders(place.dir(), &manifest)?;
        Ok(Self::new(place, manifest, Vec::new(), lock))
    }

    /// Goes on with a run that was begun with the same model, tokenizer, corpus (paths and options), hook points, routing
    /// and seeds.
    ///
    /// Temporary files, and files of shards that have no journal entry, are removed. A shard of which a file is lost or of
    /// another length does not exist either.
    pub fn resume(place: impl Into<Place>, wanted: &Manifest) -> Result<Self> {
        Self::repair(place, wanted, &[])
    }

    /// As [`RunWriter::resume`], also of a run that is complete; and these shards do not exist any more.
    pub fn repair(place: impl Into<Place>, wanted: &Manifest, broken: &[usize]) -> Result<Self> {
        let place = place.into();
        let mut manifest = Manifest::read(&place)?;
        files::create_dir(place.dir())?;
        let lock = lock(&place)?;
        compare(place.shown(), &manifest, wanted)?;
        if workers::is_spread(&place)? {
            return Err(Error::Spread { path: place.shown().to_owned() });
        }
        let mut broken = broken.to_vec();
        broken.append(&mut broken_entries(&place)?);
        if !broken.is_empty() {
            forget(&place, &mut manifest, &broken)?;
        }
        let mut journal = manifest::read_journal(&place)?;
        let is_durable = |shard: &Shard| journal.iter().any(|entry| entry.shard.index == shard.index);
        let lost = manifest.shards.iter().filter(|shard| !is_durable(shard)).map(|shard| shard.index);
        let mut lost: Vec<usize> = lost.collect();
        for entry in &journal {
            if !is_there(&place, &entry.shard)? {
                lost.push(entry.shard.index);
            }
        }
        if !lost.is_empty() {
            tracing::warn!("files of the shards {lost:?} are lost in `{}`", place.shown().display());
            forget(&place, &mut manifest, &lost)?;
            journal.retain(|entry| !lost.contains(&entry.shard.index));
        }
        create_folders(place.dir(), &manifest)?;
        if !manifest.complete {
            remove_what_is_not_durable(&place, &manifest, &journal, |_| true)?;
        }
        Ok(Self::new(place, manifest, journal, lock))
    }

    fn new(place: Place, manifest: Manifest, journal: Vec<JournalEntry>, lock: Option<fs::File>) -> Self {
        let shared =
            Shared { place, manifest, journal: Mutex::new(journal), hash_threads: hash_threads(), _lock: lock };
        Self { shared: Arc::new(shared) }
    }

    /// The folder of the run as people know it: its path, or the URL of its place in a store.
    pub fn dir(&self) -> &Path {
        self.shared.place.shown()
    }

    /// The manifest with which the run was begun.
    pub fn manifest(&self) -> &Manifest {
        &self.shared.manifest
    }

    /// Whether the run was finished before; then there is nothing to resume.
    pub fn is_complete(&self) -> bool {
        self.shared.manifest.complete
    }

    /// The durable shards, in the order of their tokens.
    pub fn journal(&self) -> Vec<JournalEntry> {
        self.shared.journal().clone()
    }

    /// The token after the last durable one.
    pub fn next_token_idx(&self) -> u64 {
        self.shared.journal().iter().map(|entry| entry.shard.tokens().end).max().unwrap_or(0)
    }

    /// The document after the last durable one.
    pub fn next_doc_id(&self) -> u64 {
        let journal = self.shared.journal();
        journal.iter().map(|entry| entry.shard.first_doc_id + entry.shard.n_documents).max().unwrap_or(0)
    }

    /// A number that no durable shard has.
    pub fn next_shard(&self) -> usize {
        self.shared.journal().iter().map(|entry| entry.shard.index + 1).max().unwrap_or(0)
    }

    /// Writes `vocab.parquet`: the text of every token id from 0 on, lossless, so that a reader without the tokenizer can
    /// name ids that no token of the run has, such as those of logits.
    pub fn write_vocab(&self, tokens: &[String]) -> Result<()> {
        let dir = self.shared.place.dir();
        let path = dir.join(VOCAB_FILE);
        let mut writer = TableWriter::create(&path, &schema::vocab(), TableOptions::default())?;
        writer.write(&tables::vocab_batch(tokens))?;
        writer.publish()?;
        files::sync_dir(dir)?;
        self.shared.place.send(&[VOCAB_FILE])
    }

    /// Begins a shard. Nothing of it exists until [`ShardWriter::commit`]; dropped before that, it leaves nothing.
    pub fn shard(&self, index: usize, first_token_idx: u64) -> Result<ShardWriter> {
        ShardWriter::new(Arc::clone(&self.shared), index, first_token_idx)
    }

    /// Checks that no token was lost, merges the journal into the manifest and marks the run as complete.
    ///
    /// `corpus_sha256` is the sum of all documents, which is known only now.
    pub fn finish(self, corpus_sha256: &str) -> Result<Manifest> {
        let shared = &self.shared;
        // Read back, so that a run that was resumed gives the same manifest as one that was not.
        let journal = manifest::read_journal(&shared.place)?;
        let mut merged = manifest::merge(shared.manifest.clone(), &journal)?;
        merged.counts.check(shared.place.shown())?;
        let stored: u64 = merged.shards.iter().map(|shard| shard.n_tokens).sum();
        if stored != merged.counts.tokens_captured {
            return Err(Error::mismatch("captured tokens in the shards", merged.counts.tokens_captured, stored));
        }
        let mut next = 0;
        for shard in &merged.shards {
            if shard.first_token_idx != next {
                return Err(Error::mismatch(
                    format!("as the first token of shard {}", shard.index),
                    next,
                    shard.first_token_idx,
                ));
            }
            next = shard.tokens().end;
            // They were durable when the journal said so; somebody may have removed them since.
            if !is_there(&shared.place, shard)? {
                return Err(Error::LostShard { index: shard.index, path: shared.place.shown().to_owned() });
            }
        }
        if shared.place.has(VOCAB_FILE)? {
            merged.files.insert(VOCAB_FILE.to_owned(), sums::entry(&shared.place.file(VOCAB_FILE)?)?);
        }
        corpus_sha256.clone_into(&mut merged.corpus.sha256);
        merged.complete = true;
        merged.write(&shared.place)?;
        Ok(merged)
    }
}

impl Shared {
    fn journal(&self) -> std::sync::MutexGuard<'_, Vec<JournalEntry>> {
        // The list is whole whenever the lock is free, also after a panic elsewhere.
        self.journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Writes one shard. It can be sent to a thread that does nothing else.
///
/// Tokens are written before the activations of the same rows, because statistics leave special tokens out.
pub struct ShardWriter {
    shared: Arc<Shared>,
    index: usize,
    first_token_idx: u64,
    tokens: TableWriter,
    pending_tokens: TokenColumns,
    /// Of every token of the shard, one bool each.
    special: Vec<bool>,
    /// Of every row of the shard.
    token_idx: TokenIdx,
    documents: TableWriter,
    pending_documents: Vec<DocumentRow>,
    first_doc_id: Option<u64>,
    n_documents: u64,
    acts: Vec<ActsWriter>,
    /// In the order of the layers of the manifest's `routing`.
    routing: Vec<RoutingWriter>,
    /// Hook point `i` is the file `i / n` of the thread `i % n`.
    hashers: Vec<Hasher>,
}

impl ShardWriter {
    fn new(shared: Arc<Shared>, index: usize, first_token_idx: u64) -> Result<Self> {
        if shared.journal().iter().any(|entry| entry.shard.index == index) {
            let what = format!("shards with the number {index}");
            return Err(Error::mismatch(what, 0u64, 1u64));
        }
        let dir = shared.place.dir();
        let name = shard_file_name(index);
        let hooks = &shared.manifest.hook_points;
        let options = TableOptions { delta: &["token_idx"], ..TableOptions::default() };
        let tokens = TableWriter::create(&dir.join("tokens").join(&name), &schema::tokens(), options)?;
        let documents_path = dir.join("documents").join(&name);
        let documents = TableWriter::create(&documents_path, &schema::documents(), TableOptions::default())?;
        let threads = shared.hash_threads.clamp(1, hooks.len().max(1));
        let acts = hooks
            .iter()
            .enumerate()
            .map(|(i, hook)| {
                ActsWriter::create(
                    &dir.join(hook.folder()).join(&name),
                    hook,
                    i / threads,
                    shared.manifest.shuffled.is_none(),
                )
            })
            .collect::<Result<_>>()?;
        let mut routing = Vec::new();
        if let Some(info) = &shared.manifest.routing {
            for &layer in &info.layers {
                let path = dir.join(Routing::folder(layer)).join(&name);
                routing.push(RoutingWriter::create(&path, info, first_token_idx)?);
            }
        }
        let hashers = (0..threads)
            .map(|thread| Hasher::spawn(&hooks.iter().skip(thread).step_by(threads).collect::<Vec<_>>()))
            .collect::<Result<_>>()?;
        Ok(Self {
            index,
            first_token_idx,
            tokens,
            pending_tokens: TokenColumns::default(),
            special: Vec::new(),
            token_idx: if shared.manifest.shuffled.is_some() {
                TokenIdx::Listed(Vec::new())
            } else {
                TokenIdx::From(first_token_idx)
            },
            documents,
            pending_documents: Vec::new(),
            first_doc_id: None,
            n_documents: 0,
            acts,
            routing,
            hashers,
            shared,
        })
    }

    /// The number of this shard.
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Tokens written so far.
    pub fn n_tokens(&self) -> u64 {
        self.special.len() as u64
    }

    /// Appends tokens, whose `token_idx` follow those so far.
    pub fn write_tokens(&mut self, tokens: &TokenColumns) -> Result<()> {
        match &self.token_idx {
            TokenIdx::From(_) => self.append_tokens(tokens),
            TokenIdx::Listed(_) => Err(Error::mismatch("numbers of tokens of a shuffled run", tokens.len(), 0u64)),
        }
    }

    /// Appends tokens of a shuffled run, whose numbers are those of the origin.
    pub(crate) fn write_tokens_of(&mut self, token_idx: &[u64], tokens: &TokenColumns) -> Result<()> {
        match &mut self.token_idx {
            TokenIdx::Listed(all) if token_idx.len() == tokens.len() => all.extend_from_slice(token_idx),
            _ => return Err(Error::mismatch("numbers of tokens", tokens.len(), token_idx.len())),
        }
        self.append_tokens(tokens)
    }

    fn append_tokens(&mut self, tokens: &TokenColumns) -> Result<()> {
        tokens.check()?;
        self.special.extend_from_slice(&tokens.special);
        self.pending_tokens.append(&mut tokens.clone());
        while self.pending_tokens.len() >= GROUP_ROWS {
            let group = self.pending_tokens.take_front(GROUP_ROWS);
            self.write_token_group(&group)?;
        }
        Ok(())
    }

    fn write_token_group(&mut self, group: &TokenColumns) -> Result<()> {
        let start = self.tokens.n_rows();
        self.tokens.write(&group.to_batch(self.token_idx.rows(start..start + group.len())))
    }

    /// Appends documents, by consecutive `doc_id`. A document belongs to the shard that has its first token.
    pub fn write_documents(&mut self, documents: &[DocumentRow]) -> Result<()> {
        for document in documents {
            let first = *self.first_doc_id.get_or_insert(document.doc_id);
            let expected = first + self.n_documents;
            if document.doc_id != expected {
                return Err(Error::mismatch("as the next `doc_id`", expected, document.doc_id));
            }
            self.n_documents += 1;
            self.pending_documents.push(document.clone());
        }
        while self.pending_documents.len() >= GROUP_ROWS {
            let rest = self.pending_documents.split_off(GROUP_ROWS);
            let group = std::mem::replace(&mut self.pending_documents, rest);
            self.documents.write(&DocumentRow::to_batch(&group))?;
        }
        Ok(())
    }

    /// Appends rows of a hook point, for the tokens that follow those of its rows so far.
    ///
    /// `hook` is an index into the manifest's `hook_points`; `rows` is `[row, width]`, little endian, in the format
    /// `source`, and is converted when the run stores another. The buffer is kept, not copied, until it is written.
    pub fn write_acts(&mut self, hook: usize, source: Dtype, rows: Bytes) -> Result<()> {
        let hooks = &self.shared.manifest.hook_points;
        let entry = hooks.get(hook).ok_or_else(|| Error::mismatch("hook points at most", hooks.len(), hook + 1))?;
        let row_bytes = entry.width * source.size();
        if !rows.len().is_multiple_of(row_bytes) {
            let what = format!("bytes in the rows of `{}`", entry.name);
            return Err(Error::mismatch(what, rows.len().next_multiple_of(row_bytes), rows.len()));
        }
        if source == Dtype::I8 {
            // Rows without their scales say nothing.
            return Err(Error::UnknownDtype { found: "i8 without scales".to_owned() });
        }
        let converted = convert::convert(source, entry.dtype, entry.width, &rows, &[]);
        let before = if source == entry.dtype { Before::Same } else { Before::Computed { dtype: source, rows } };
        self.write_stored(hook, converted, before)
    }

    /// Appends rows of a hook point that are in the format of the run already.
    pub(crate) fn write_stored(&mut self, hook: usize, stored: Converted, before: Before) -> Result<()> {
        let entry = &self.shared.manifest.hook_points[hook];
        let writer = &mut self.acts[hook];
        let start = writer.n_rows() as usize;
        let end = start + stored.bytes.len() / entry.row_bytes();
        let Some(special) = self.special.get(start..end) else {
            let what = format!("tokens before the rows of `{}`", entry.name);
            return Err(Error::mismatch(what, end, self.special.len()));
        };
        let hasher = &self.hashers[hook % self.hashers.len()];
        let token_idx = self.token_idx.rows(start..end);
        writer.write(hasher, stored, &token_idx, special.to_vec(), before)
    }

    /// Appends the choices of experts of a layer of the model, for the tokens that follow those of its rows so far.
    ///
    /// Numbers are stored as they come: a router that overflows does not end a recording, `verify` tells of it.
    pub fn write_routing(&mut self, layer: usize, columns: &RoutingColumns) -> Result<()> {
        let layers = self.shared.manifest.routing_layers();
        let Some(index) = layers.iter().position(|&known| known == layer) else {
            return Err(Error::NoSuchName {
                kind: "layer with routing",
                name: layer.to_string(),
                known: layers.iter().map(ToString::to_string).collect(),
                path: self.shared.place.shown().to_owned(),
            });
        };
        self.routing[index].write(columns)
    }

    /// Makes the shard durable: footers, fsync, rename, fsync of the directories, and last the journal entry.
    ///
    /// `counts` are of this shard alone. `cursor` is for the recorder, which finds it in the journal on resume.
    pub fn commit(mut self, cursor: Value, counts: Counts) -> Result<JournalEntry> {
        let n_tokens = self.n_tokens();
        for (writer, hook) in self.acts.iter().zip(&self.shared.manifest.hook_points) {
            if writer.n_rows() != n_tokens {
                let what = format!("rows of `{}` in shard {}", hook.name, self.index);
                return Err(Error::mismatch(what, n_tokens, writer.n_rows()));
            }
        }
        for (writer, layer) in self.routing.iter().zip(self.shared.manifest.routing_layers()) {
            if writer.n_rows() != n_tokens {
                let what = format!("rows of routing of layer {layer} in shard {}", self.index);
                return Err(Error::mismatch(what, n_tokens, writer.n_rows()));
            }
        }
        if counts.tokens_captured != n_tokens {
            return Err(Error::mismatch("captured tokens", counts.tokens_captured, n_tokens));
        }
        if counts.documents != self.n_documents {
            return Err(Error::mismatch("documents", counts.documents, self.n_documents));
        }
        counts.check(self.shared.place.shown())?;

        let group = std::mem::take(&mut self.pending_tokens);
        self.write_token_group(&group)?;
        self.documents.write(&DocumentRow::to_batch(&std::mem::take(&mut self.pending_documents)))?;
        let n_threads = self.hashers.len();
        for (i, writer) in self.acts.iter_mut().enumerate() {
            writer.finish(&self.hashers[i % n_threads])?;
        }
        // The rest of the hashing goes on while the disk is waited for.
        publish_all(self.acts)?;
        let mut digested =
            self.hashers.into_iter().map(|hasher| Ok(hasher.finish()?.into_iter())).collect::<Result<Vec<_>>>()?;

        let place = &self.shared.place;
        let name = shard_file_name(self.index);
        let mut entries = BTreeMap::new();
        let mut statistics = BTreeMap::new();
        entries.insert(format!("tokens/{name}"), self.tokens.publish()?);
        entries.insert(format!("documents/{name}"), self.documents.publish()?);
        for (i, hook) in self.shared.manifest.hook_points.iter().enumerate() {
            let result =
                digested[i % n_threads].next().ok_or(Error::Worker { what: "the thread that hashes shards" })?;
            entries.insert(format!("{}/{name}", hook.folder()), result.entry);
            statistics.insert(hook.name.to_string(), result.statistics);
        }
        for (writer, &layer) in self.routing.into_iter().zip(self.shared.manifest.routing_layers()) {
            entries.insert(format!("{}/{name}", Routing::folder(layer)), writer.publish()?);
        }
        for folder in self.shared.manifest.folders() {
            files::sync_dir(&place.dir().join(folder))?;
        }
        place.send(&entries.keys().map(String::as_str).collect::<Vec<_>>())?;

        let shard = Shard {
            index: self.index,
            first_token_idx: self.first_token_idx,
            n_tokens,
            first_doc_id: self.first_doc_id.unwrap_or(0),
            n_documents: self.n_documents,
            files: entries,
        };
        let entry = JournalEntry { version: self.shared.manifest.version, shard, counts, cursor, statistics };
        let file = manifest::journal_file(self.index);
        place.create(&file, &sums::json(Path::new(&file), &entry)?)?;
        let mut journal = self.shared.journal();
        journal.push(entry.clone());
        journal.sort_by_key(|entry| entry.shard.first_token_idx);
        Ok(entry)
    }
}

/// Half of the machine: the rest computes what is written.
fn hash_threads() -> usize {
    let offered = thread::available_parallelism().map_or(1, usize::from);
    (offered / 2).clamp(*HASH_THREADS.start(), *HASH_THREADS.end())
}

/// Fsyncs and renames files, several at a time: a disk that is told of more writes does more of them at once.
fn publish_all(mut writers: Vec<ActsWriter>) -> Result<()> {
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

/// Whether there is a file below a folder that somebody may miss: not what a process was writing when it was killed.
fn holds_files(dir: &Path) -> Result<bool> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_file = !entry.file_type()?.is_dir();
        if if is_file { !files::is_temporary(&entry.path()) } else { holds_files(&entry.path())? } {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Locks a run against a second writer, until the process ends or the file is closed.
///
/// Of a run in a store, it holds on this machine.
fn lock(place: &Place) -> Result<Option<fs::File>> {
    if !cfg!(unix) {
        return Ok(None);
    }
    let file = fs::File::open(place.dir())?;
    match file.file().try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::RunBusy { path: place.shown().to_owned() }),
        // Some network file systems have no locks; two writers are then not told apart.
        Err(std::fs::TryLockError::Error(_)) => Ok(None),
    }
}

fn create_folders(dir: &Path, manifest: &Manifest) -> Result<()> {
    for folder in manifest.folders().into_iter().chain(["journal".to_owned()]) {
        files::create_dir_within(dir, &folder)?;
    }
    Ok(())
}

/// The shards whose journal entries are not what was written.
fn broken_entries(place: &Place) -> Result<Vec<usize>> {
    let mut broken = Vec::new();
    for name in place.names_in("journal", false)? {
        let index = name.strip_prefix("shard-").and_then(|rest| rest.strip_suffix(".json")?.parse().ok());
        // One without a sum may be of another version, which is told when it is read.
        if let Some(index) = index.filter(|&index| manifest::journal_name(index) == name)
            && sums::check(&place.file(&format!("journal/{name}"))?)? == Seal::Broken
        {
            tracing::warn!("the journal entry `{name}` is not what was written in `{}`", place.shown().display());
            broken.push(index);
        }
    }
    Ok(broken)
}

/// Whether the files of a shard are there, as far as their lengths tell.
fn is_there(place: &Place, shard: &Shard) -> Result<bool> {
    for (file, entry) in &shard.files {
        if place.bytes(file)? != Some(entry.bytes) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the journal entries of some shards away, so that they are written again. The run is not complete any more, which
/// is said first.
fn forget(place: &Place, manifest: &mut Manifest, shards: &[usize]) -> Result<()> {
    if manifest.complete {
        manifest.complete = false;
        manifest.shards.clear();
        manifest.files.clear();
        manifest.counts = Counts::default();
        manifest.statistics.clear();
        manifest.write(place)?;
    }
    place.remove(&shards.iter().map(|&index| manifest::journal_file(index)).collect::<Vec<_>>())?;
    let journal = place.dir().join("journal");
    if journal.is_dir() { files::sync_dir(&journal) } else { Ok(()) }
}

/// Checks that a run was begun with what is wanted now.
fn compare(dir: &Path, found: &Manifest, wanted: &Manifest) -> Result<()> {
    fn same<T: Serialize + PartialEq>(dir: &Path, field: &str, found: &T, wanted: &T) -> Result<()> {
        if found == wanted {
            return Ok(());
        }
        let show = |value: &T| serde_json::to_string(value).unwrap_or_default();
        let (expected, found) = difference(&show(wanted), &show(found));
        Err(Error::ResumeMismatch { field: field.to_owned(), expected, found, path: dir.to_owned() })
    }
    // The path of the model may differ: what counts is what lies there. The sum of the corpus is known only at the end.
    same(dir, "model.id", &found.model.id, &wanted.model.id)?;
    same(dir, "model.sha256", &found.model.sha256, &wanted.model.sha256)?;
    same(dir, "model.dtype", &found.model.dtype, &wanted.model.dtype)?;
    same(dir, "model.shape", &found.model.shape, &wanted.model.shape)?;
    same(dir, "tokenizer", &found.tokenizer, &wanted.tokenizer)?;
    same(dir, "corpus.sources", &found.corpus.sources, &wanted.corpus.sources)?;
    same(dir, "corpus.options", &found.corpus.options, &wanted.corpus.options)?;
    same(dir, "hook_points", &found.hook_points, &wanted.hook_points)?;
    same(dir, "routing", &found.routing, &wanted.routing)?;
    same(dir, "seeds", &found.seeds, &wanted.seeds)?;
    // The path of the origin may differ, as that of the model.
    let identity = |manifest: &Manifest| manifest.shuffled.clone().map(|it| Shuffled { source: String::new(), ..it });
    same(dir, "shuffled", &identity(found), &identity(wanted))
}

/// Two texts without the long beginning that they have in common.
fn difference(a: &str, b: &str) -> (String, String) {
    const CONTEXT: usize = 40;
    const LENGTH: usize = 120;
    let common =
        a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map_or(a.len().min(b.len()), |((i, _), _)| i);
    let start = a.char_indices().map(|(i, _)| i).take_while(|i| i + CONTEXT <= common).last().unwrap_or(0);
    let cut = |text: &str| -> String {
        let tail: String = text.get(start..).unwrap_or(text).chars().take(LENGTH).collect();
        if start > 0 { format!("`…{tail}`") } else { format!("`{tail}`") }
    };
    (cut(a), cut(b))
}

/// Removes temporary files and the files of shards that have no journal entry, of the shards that are this process's own.
///
/// What a store has of such a shard stays: who writes the shard again writes it under the same names.
fn remove_what_is_not_durable(
    place: &Place,
    manifest: &Manifest,
    journal: &[JournalEntry],
    own: impl Fn(usize) -> bool,
) -> Result<()> {
    let dir = place.dir();
    let is_spread = workers::is_spread(place)?;
    let durable = |index: usize| journal.iter().any(|entry| entry.shard.index == index);
    for folder in manifest.folders().into_iter().chain(["journal".to_owned()]) {
        for entry in fs::read_dir(dir.join(folder))? {
            let path = entry?.path();
            let Some(index) = manifest::shard_of(&path).filter(|&index| own(index)) else { continue };
            if files::is_temporary(&path) || !durable(index) {
                tracing::info!(path = %path.display(), "removing what is not durable");
                fs::remove_file(&path)?;
            }
        }
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if files::is_temporary(&path) && !is_spread {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
