//! What does a run hold, and how is any part of it read?

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::{UInt32Type, UInt64Type};
use bytes::Bytes;

use crate::acts_read::ActsFile;
use crate::error::{Error, Result};
use crate::features::FeatureTable;
use crate::files;
use crate::hook_point::HookPoint;
use crate::manifest::{self, HookPointEntry, JournalEntry, Manifest, Routing, Shard, Shuffled, Statistics};
use crate::parquet_io::TableFile;
use crate::place::Place;
use crate::routing::RoutingLayer;
use crate::tables::{DocumentRow, TokenColumns, VOCAB_FILE};
use crate::{Dtype, convert};

/// Footers that are kept, so that reading here and there does not parse them again.
const MAX_OPEN: usize = 256;

/// A run directory, opened for reading. Opening and cloning are cheap; it may be shared between threads.
///
/// A run that is still being recorded, or was killed, shows the shards that were durable when it was opened.
#[derive(Clone, Debug)]
pub struct Run {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    place: Place,
    manifest: Manifest,
    tables: Mutex<HashMap<PathBuf, Arc<TableFile>>>,
    acts: Mutex<HashMap<PathBuf, Arc<ActsFile>>>,
}

/// Consecutive rows of one hook point, as they are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Acts {
    /// The token of the first row.
    pub first_token_idx: u64,
    /// Numbers a row.
    pub width: usize,
    pub dtype: Dtype,
    /// `[row, width]`, little endian.
    pub bytes: Bytes,
    /// `[row]` for i8, otherwise empty.
    pub scales: Vec<f32>,
}

impl Acts {
    /// How many rows there are.
    pub fn n_rows(&self) -> usize {
        self.bytes.len() / (self.width * self.dtype.size())
    }

    /// All rows, `[row, width]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.n_rows() * self.width);
        convert::append_f32(self.dtype, self.width, &self.bytes, &self.scales, &mut out);
        out
    }

    /// One row, `[width]`; empty where there is no such row.
    pub fn row_f32(&self, row: usize) -> Vec<f32> {
        let row_bytes = self.width * self.dtype.size();
        let bytes = self.bytes.get(row * row_bytes..(row + 1) * row_bytes).unwrap_or_default();
        let mut out = Vec::with_capacity(self.width);
        convert::append_f32(self.dtype, self.width, bytes, self.scales.get(row..=row).unwrap_or_default(), &mut out);
        out
    }
}

impl Run {
    /// Opens a run: reads the manifest, and the journal of a run that is not complete.
    ///
    /// While several workers record it, the shards before the first one that is missing are shown.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_at(dir.as_ref())
    }

    /// As [`Run::open`], of a run that may be in an object store: what it holds is asked once, and each file is brought
    /// when it is read first.
    pub fn open_at(place: impl Into<Place>) -> Result<Self> {
        let place = place.into();
        let mut manifest = Manifest::read(&place)?;
        if !manifest.complete {
            manifest = manifest::merge(manifest, &dense(manifest::read_journal(&place)?))?;
        }
        let inner = Inner { place, manifest, tables: Mutex::default(), acts: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where the run lies.
    pub fn place(&self) -> &Place {
        &self.inner.place
    }

    /// The folder of the run as people know it: its path, or the URL of its place in a store.
    pub fn dir(&self) -> &Path {
        self.place().shown()
    }

    /// The path on this disk of a file of the run, which is brought from its store if need be.
    pub fn file(&self, relative: &str) -> Result<PathBuf> {
        self.place().file(relative)
    }

    /// What the run is; for one that is not complete, with what its journal says.
    pub fn manifest(&self) -> &Manifest {
        &self.inner.manifest
    }

    /// The shards, in the order of their tokens.
    pub fn shards(&self) -> &[Shard] {
        &self.inner.manifest.shards
    }

    /// The hook points that were recorded.
    pub fn hook_points(&self) -> &[HookPointEntry] {
        &self.inner.manifest.hook_points
    }

    /// How a hook point was recorded; an error that lists those that were.
    pub fn hook_point(&self, hook: HookPoint) -> Result<&HookPointEntry> {
        self.hook_points().iter().find(|entry| entry.name == hook).ok_or_else(|| Error::NoSuchName {
            kind: "recorded hook point",
            name: hook.to_string(),
            known: self.hook_points().iter().map(|entry| entry.name.to_string()).collect(),
            path: self.dir().to_owned(),
        })
    }

    /// Of which run this is the shuffled one; `None` where rows are in the order of the tokens.
    pub fn shuffled(&self) -> Option<&Shuffled> {
        self.manifest().shuffled.as_ref()
    }

    /// Tokens in the run: every `token_idx` is below this, unless the run is shuffled.
    pub fn n_tokens(&self) -> u64 {
        self.shards().last().map_or(0, |shard| shard.tokens().end)
    }

    /// Documents in the run: every `doc_id` is below this.
    pub fn n_documents(&self) -> u64 {
        self.shards().iter().map(|shard| shard.first_doc_id + shard.n_documents).max().unwrap_or(0)
    }

    /// Sums, norms and extremes of a hook point over the run.
    pub fn statistics(&self, hook: HookPoint) -> Result<Statistics> {
        let entry = self.hook_point(hook)?;
        self.manifest().statistics.get(&entry.name.to_string()).cloned().ok_or_else(|| {
            Error::json(&Manifest::path(self.place()), format!("there are no statistics of `{}`", entry.name))
        })
    }

    /// Tokens by `token_idx`, in order. Like everything here that is asked for by token, it refuses a shuffled run.
    pub fn tokens(&self, tokens: Range<u64>) -> Result<TokenColumns> {
        let mut all = TokenColumns::default();
        for (shard, rows) in self.shards_of(tokens)? {
            all.append(&mut self.token_rows(shard, rows)?);
        }
        Ok(all)
    }

    /// The ids of some tokens, and which of them are special.
    pub fn token_ids(&self, tokens: Range<u64>) -> Result<(Vec<u32>, Vec<bool>)> {
        let (mut ids, mut special) = (Vec::new(), Vec::new());
        for (shard, rows) in self.shards_of(tokens)? {
            let file = self.token_table(shard)?;
            let batch = file.rows(&["token_id", "special"], rows)?;
            ids.append(&mut file.primitive::<UInt32Type>(&batch, "token_id")?);
            special.append(&mut file.booleans(&batch, "special")?);
        }
        Ok((ids, special))
    }

    /// Which of some tokens are special.
    pub fn special(&self, tokens: Range<u64>) -> Result<Vec<bool>> {
        let mut all = Vec::with_capacity(tokens.end.saturating_sub(tokens.start) as usize);
        for (shard, rows) in self.shards_of(tokens)? {
            all.append(&mut self.special_rows(shard, rows)?);
        }
        Ok(all)
    }

    /// The positions of tokens in the sequences that the model saw.
    pub fn positions(&self, tokens: Range<u64>) -> Result<Vec<u32>> {
        let mut all = Vec::with_capacity(tokens.end.saturating_sub(tokens.start) as usize);
        for (shard, rows) in self.shards_of(tokens)? {
            let file = self.token_table(shard)?;
            let batch = file.rows(&["pos"], rows)?;
            all.append(&mut file.primitive::<UInt32Type>(&batch, "pos")?);
        }
        Ok(all)
    }

    /// Tokens by their rows in a shard.
    pub(crate) fn token_rows(&self, shard: &Shard, rows: Range<usize>) -> Result<TokenColumns> {
        let file = self.token_table(shard)?;
        let batch = file.rows(&[], rows)?;
        TokenColumns::from_batch(&file, &batch)
    }

    /// Which rows of a shard are of special tokens.
    pub(crate) fn special_rows(&self, shard: &Shard, rows: Range<usize>) -> Result<Vec<bool>> {
        let file = self.token_table(shard)?;
        let batch = file.rows(&["special"], rows)?;
        file.booleans(&batch, "special")
    }

    /// Of rows of a shard, which are special, and how long their texts are in bytes.
    pub(crate) fn token_lengths(&self, shard: &Shard, rows: Range<usize>) -> Result<(Vec<bool>, Vec<usize>)> {
        let file = self.token_table(shard)?;
        let batch = file.rows(&["token", "special"], rows)?;
        let texts = file.strings(&batch, "token")?;
        Ok((file.booleans(&batch, "special")?, texts.iter().map(|text| text.as_ref().map_or(0, String::len)).collect()))
    }

    /// The `token_idx` of rows of a shard.
    pub(crate) fn token_idx_rows(&self, shard: &Shard, rows: Range<usize>) -> Result<Vec<u64>> {
        if self.shuffled().is_none() {
            return Ok((shard.first_token_idx + rows.start as u64..shard.first_token_idx + rows.end as u64).collect());
        }
        let file = self.token_table(shard)?;
        let batch = file.rows(&["token_idx"], rows)?;
        file.primitive::<UInt64Type>(&batch, "token_idx")
    }

    pub(crate) fn token_table(&self, shard: &Shard) -> Result<Arc<TableFile>> {
        self.table(&format!("tokens/{}", shard.file_name()))
    }

    /// A document.
    pub fn document(&self, doc_id: u64) -> Result<DocumentRow> {
        let mut rows = self.documents(doc_id..doc_id.saturating_add(1))?;
        rows.pop().ok_or_else(|| self.no_such_document(doc_id..doc_id.saturating_add(1)))
    }

    /// Documents by `doc_id`, in order.
    pub fn documents(&self, documents: Range<u64>) -> Result<Vec<DocumentRow>> {
        if documents.start > documents.end || documents.end > self.n_documents() {
            return Err(self.no_such_document(documents));
        }
        let mut all = Vec::new();
        for shard in self.shards() {
            let start = documents.start.max(shard.first_doc_id);
            let end = documents.end.min(shard.first_doc_id + shard.n_documents);
            if start < end {
                let file = self.table(&format!("documents/{}", shard.file_name()))?;
                let rows = (start - shard.first_doc_id) as usize..(end - shard.first_doc_id) as usize;
                let batch = file.rows(&[], rows)?;
                all.append(&mut DocumentRow::from_batch(&file, &batch)?);
            }
        }
        Ok(all)
    }

    /// The tokens of a document, as far as the run has them.
    pub fn document_tokens(&self, doc_id: u64) -> Result<Range<u64>> {
        self.require_order("the tokens of a document")?;
        let row = self.document(doc_id)?;
        let end = row.first_token_idx.saturating_add(row.n_tokens).min(self.n_tokens());
        Ok(row.first_token_idx.min(end)..end)
    }

    /// The document of a token.
    pub fn document_at(&self, token_idx: u64) -> Result<u64> {
        let tokens = token_idx..token_idx.saturating_add(1);
        let Some((shard, rows)) = self.shards_of(tokens.clone())?.into_iter().next() else {
            return Err(self.no_such_tokens(&tokens));
        };
        let file = self.token_table(shard)?;
        let batch = file.rows(&["doc_id"], rows)?;
        let doc_id = file.primitive::<UInt64Type>(&batch, "doc_id")?;
        doc_id.first().copied().ok_or_else(|| self.no_such_tokens(&tokens))
    }

    /// The text of every token id from 0 on, lossless; `None` when the run was recorded without a tokenizer.
    pub fn vocab(&self) -> Result<Option<Vec<String>>> {
        if !self.place().has(VOCAB_FILE)? {
            return Ok(None);
        }
        let file = TableFile::open(&self.file(VOCAB_FILE)?)?;
        let batch = file.rows(&["token"], 0..file.n_rows())?;
        Ok(Some(file.strings(&batch, "token")?.into_iter().map(Option::unwrap_or_default).collect()))
    }

    /// Rows of a hook point by `token_idx`, in order.
    pub fn acts(&self, hook: HookPoint, tokens: Range<u64>) -> Result<Acts> {
        let entry = self.hook_point(hook)?;
        let n_bytes = (tokens.end.saturating_sub(tokens.start) as usize).saturating_mul(entry.row_bytes());
        let parts = self.shards_of(tokens.clone())?;
        let mut scales = Vec::new();
        let mut bytes = vec![0; n_bytes];
        let mut done = 0;
        for (shard, rows) in parts {
            let file = self.acts_file(hook, shard)?;
            let n = rows.len() * entry.row_bytes();
            scales.append(&mut file.scales(rows.clone())?);
            file.read_into(rows, &mut bytes[done..done + n])?;
            done += n;
        }
        Ok(Acts {
            first_token_idx: tokens.start,
            width: entry.width,
            dtype: entry.dtype,
            bytes: Bytes::from(bytes),
            scales,
        })
    }

    /// The rows of a hook point in one shard (by its place in [`Run::shards`]), one row group at a time.
    pub fn acts_shard(&self, hook: HookPoint, shard: usize) -> Result<ActsShard> {
        self.require_order("rows in the order of their tokens")?;
        let entry = self.hook_point(hook)?.clone();
        let shards = self.shards();
        let shard = shards.get(shard).ok_or_else(|| Error::OutOfRange {
            what: "shards",
            start: 0,
            end: shards.len() as u64,
            found: shard.to_string(),
            path: self.dir().to_owned(),
        })?;
        let file = self.acts_file(hook, shard)?;
        Ok(ActsShard { file, entry, first_token_idx: shard.first_token_idx, next: 0, last: Bytes::new() })
    }

    /// Which choices of experts the run holds; an error where its model does not route.
    pub fn routing_info(&self) -> Result<&Routing> {
        let routing = self.manifest().routing.as_ref().filter(|routing| !routing.layers.is_empty());
        routing.ok_or_else(|| Error::NoRouting { path: self.dir().to_owned() })
    }

    /// The choices of experts of a layer; an error that lists the layers that were recorded.
    pub fn routing(&self, layer: usize) -> Result<RoutingLayer> {
        RoutingLayer::open(self, layer)
    }

    /// The folder of a sparse coder of this run on this disk, whether it exists or not.
    pub fn sae_dir(&self, name: &str) -> Result<PathBuf> {
        files::check_name("sparse coder", name)?;
        Ok(self.place().dir().join("saes").join(name))
    }

    /// A file of a sparse coder of this run; `None` where it has none of that name.
    pub fn sae_file(&self, name: &str, file: &str) -> Result<Option<PathBuf>> {
        files::check_name("sparse coder", name)?;
        files::check_name("file of a coder", file)?;
        let relative = format!("saes/{name}/{file}");
        if self.place().has(&relative)? { self.file(&relative).map(Some) } else { Ok(None) }
    }

    /// The folder of a sparse coder of this run with all of its files; `None` where it has no file `marker`, which says that it is
    /// whole.
    pub fn sae_folder(&self, name: &str, marker: &str) -> Result<Option<PathBuf>> {
        let folder = self.sae_dir(name)?;
        let within = format!("saes/{name}");
        if !self.place().has(&format!("{within}/{marker}"))? {
            return Ok(None);
        }
        for file in self.place().names_in(&within, false)? {
            self.file(&format!("{within}/{file}"))?;
        }
        Ok(Some(folder))
    }

    /// The names of the sparse coders of this run.
    pub fn saes(&self) -> Result<Vec<String>> {
        self.place().names_in("saes", true)
    }

    /// The names of the feature tables of this run.
    pub fn feature_tables(&self) -> Result<Vec<String>> {
        self.place().names_in("features", true)
    }

    /// A feature table of this run.
    pub fn feature_table(&self, name: &str) -> Result<FeatureTable> {
        FeatureTable::open(self, name)
    }

    /// A file of the run, with its footer.
    pub(crate) fn table(&self, relative: &str) -> Result<Arc<TableFile>> {
        let path = self.file(relative)?;
        cached(&self.inner.tables, path, TableFile::open)
    }

    pub(crate) fn acts_file(&self, hook: HookPoint, shard: &Shard) -> Result<Arc<ActsFile>> {
        let entry = self.hook_point(hook)?;
        let path = self.file(&format!("{}/{}", entry.folder(), shard.file_name()))?;
        let file = cached(&self.inner.acts, path, |path| ActsFile::open(path, entry))?;
        if file.n_rows() as u64 == shard.n_tokens {
            Ok(file)
        } else {
            let cause = format!("it has {} rows, the manifest says {}", file.n_rows(), shard.n_tokens);
            Err(Error::damaged(file.path(), cause))
        }
    }

    /// The shards that some tokens lie in, each with its rows.
    pub(crate) fn shards_of(&self, tokens: Range<u64>) -> Result<Vec<(&Shard, Range<usize>)>> {
        let places = self.places_of(tokens)?;
        Ok(places.into_iter().map(|(i, rows)| (&self.shards()[i], rows)).collect())
    }

    /// The shards that some tokens lie in, by their place in [`Run::shards`], each with its rows.
    pub(crate) fn places_of(&self, tokens: Range<u64>) -> Result<Vec<(usize, Range<usize>)>> {
        self.require_order("a token by its number")?;
        let mut parts = Vec::new();
        let mut next = tokens.start;
        let first = self.shards().partition_point(|shard| shard.tokens().end <= tokens.start);
        for (i, shard) in self.shards().iter().enumerate().skip(first) {
            let (start, end) = (tokens.start.max(shard.first_token_idx), tokens.end.min(shard.tokens().end));
            if shard.n_tokens == 0 {
                continue;
            }
            if start >= end || start != next {
                break;
            }
            let row = |token: u64| (token - shard.first_token_idx) as usize;
            parts.push((i, row(start)..row(end)));
            next = end;
        }
        if tokens.start > tokens.end || next < tokens.end {
            return Err(self.no_such_tokens(&tokens));
        }
        Ok(parts)
    }

    /// Refuses a shuffled run for `what`, which would be read wrongly there.
    pub(crate) fn require_order(&self, what: &'static str) -> Result<()> {
        match self.shuffled() {
            None => Ok(()),
            Some(shuffled) => {
                let origin = shuffled.source.as_str().into();
                Err(Error::ShuffledRun { what, origin, path: self.dir().into() })
            }
        }
    }

    fn no_such_tokens(&self, tokens: &Range<u64>) -> Error {
        self.out_of_range("tokens", self.n_tokens(), tokens)
    }

    fn no_such_document(&self, documents: Range<u64>) -> Error {
        self.out_of_range("documents", self.n_documents(), &documents)
    }

    fn out_of_range(&self, what: &'static str, end: u64, found: &Range<u64>) -> Error {
        Error::OutOfRange {
            what,
            start: 0,
            end,
            found: format!("{}..{}", found.start, found.end),
            path: self.dir().to_owned(),
        }
    }
}

/// The rows of a hook point in one shard, one row group at a time.
#[derive(Debug)]
pub struct ActsShard {
    file: Arc<ActsFile>,
    entry: HookPointEntry,
    first_token_idx: u64,
    next: usize,
    /// What was read last: large buffers are costly to get from the system.
    last: Bytes,
}

impl Iterator for ActsShard {
    type Item = Result<Acts>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.file.groups().get(self.next)?.clone();
        self.next += 1;
        let first_token_idx = self.first_token_idx + rows.start as u64;
        let read = self.file.read(rows, std::mem::take(&mut self.last));
        Some(read.map(|(bytes, scales)| {
            self.last = bytes.clone();
            Acts { first_token_idx, width: self.entry.width, dtype: self.entry.dtype, bytes, scales }
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.file.groups().len() - self.next;
        (left, Some(left))
    }
}

/// The shards, in the order of their tokens, before the first that is missing.
fn dense(mut journal: Vec<JournalEntry>) -> Vec<JournalEntry> {
    let mut next = 0;
    let missing = journal.iter().position(|entry| {
        let gap = entry.shard.first_token_idx != next;
        next = entry.shard.tokens().end;
        gap
    });
    journal.truncate(missing.unwrap_or(journal.len()));
    journal
}

fn cached<T>(
    cache: &Mutex<HashMap<PathBuf, Arc<T>>>,
    path: PathBuf,
    open: impl FnOnce(&Path) -> Result<T>,
) -> Result<Arc<T>> {
    // The map is whole whenever the lock is free.
    let lock = || cache.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = lock().get(&path) {
        return Ok(Arc::clone(file));
    }
    let file = Arc::new(open(&path)?);
    let mut open = lock();
    if open.len() >= MAX_OPEN {
        open.clear();
    }
    open.insert(path, Arc::clone(&file));
    Ok(file)
}
