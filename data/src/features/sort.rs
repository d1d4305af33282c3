//! How are rows ordered by (feature, −activation) when they do not fit in memory?
//!
//! The count of every feature is known by the time, so features are cut into buckets that fit the budget, rows are read
//! again and spilled to one file a bucket, and each bucket is sorted on its own. A bucket that does not fit after all (one
//! very dense feature, or more rows than the number of open files allows for) is sorted in runs that are then merged.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
use fs_err as fs;
use rayon::slice::ParallelSliceMut;

use super::pairs::{Count, PairOptions, Side};
use super::{
    COACTIVATION, Example, ExampleGroup, FeatureStats, FeatureTableInfo, GROUP_ROWS, GROUPS, INFO_KEY, tables,
};
use crate::error::{Error, Result};
use crate::files::{self, BuildFolder};
use crate::manifest::{FileEntry, shard_file_name};
use crate::parquet_io::{TableFile, TableOptions, TableWriter};
use crate::place::Place;
use crate::progress::OnProgress;
use crate::schema;
use crate::sums::Sums;

/// Rows of one file of `by_feature`.
const SHARD_ROWS: usize = 1 << 26;
/// Files that are spilled to at the same time.
const MAX_BUCKETS: usize = 128;
/// Rows of a batch while reading.
const READ_ROWS: usize = 65_536;
/// Rows of one feature that [`SortedFeatures::rows`] hands out at once.
const CHUNK_ROWS: usize = 1 << 18;
/// Bytes of a spilled row.
const ROW_BYTES: usize = 16;
/// Bytes that a sorted row takes while a bucket is sorted and written.
const MEMORY_PER_ROW: usize = 2 * ROW_BYTES;

/// A row, in the order of its fields in the spilled files.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    token_idx: u64,
    feature: u32,
    act: f32,
}

/// By feature, then falling activation, then token.
fn order(a: &Row, b: &Row) -> Ordering {
    a.feature.cmp(&b.feature).then(b.act.total_cmp(&a.act)).then(a.token_idx.cmp(&b.token_idx))
}

/// Rows of one feature, falling.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureRows {
    pub feature: u32,
    pub token_idx: Vec<u64>,
    pub act: Vec<f32>,
}

/// Rows ordered by feature; statistics and examples are still to come.
pub struct SortedFeatures {
    target: Target,
    info: FeatureTableInfo,
    /// In the order of tokens.
    acts: Vec<PathBuf>,
    by_feature: Vec<PathBuf>,
    /// Where the rows of each feature begin, over all files; one more at the end.
    starts: Vec<u64>,
    stats: Option<TableWriter>,
    examples: Option<TableWriter>,
    groups: Option<TableWriter>,
    next_feature: u32,
    last_example: (u32, u64),
    pending_stats: Vec<FeatureStats>,
    pending_examples: Vec<Example>,
    pending_groups: Vec<ExampleGroup>,
    sums: Sums,
}

/// Features of a row group of `stats.parquet`: their histograms are what is large.
const STATS_GROUP_ROWS: usize = 4096;

/// Where a table will be.
pub(super) struct Target {
    pub(super) place: Place,
    /// Within the run.
    pub(super) relative: String,
    /// Where it is built.
    pub(super) folder: BuildFolder,
}

impl Target {
    /// Puts the table in place of an older one; in a store, its list of sums goes last and vouches for the rest.
    fn publish(self) -> Result<()> {
        self.folder.publish()?;
        self.place.publish(&self.relative, &[crate::sums::FILE])
    }
}

pub(super) fn sort(
    target: Target,
    info: FeatureTableInfo,
    memory: usize,
    acts: &[PathBuf],
    counts: &[u64],
    mut sums: Sums,
) -> Result<SortedFeatures> {
    let folder = &target.folder;
    let budget = (memory / MEMORY_PER_ROW).max(1);
    let buckets = buckets(counts, budget);
    let mut output = Output::new(folder);
    if buckets.len() <= 1 && counts.iter().sum::<u64>() <= budget as u64 {
        let mut rows = Vec::new();
        for path in acts {
            read_acts(path, |row| {
                rows.push(row);
                Ok(())
            })?;
        }
        rows.par_sort_unstable_by(order);
        rows.into_iter().try_for_each(|row| output.push(row))?;
    } else {
        let spills = spill(folder.path(), acts, &buckets, counts.len())?;
        for spill in spills {
            sort_bucket(folder.path(), &spill, budget, &mut output)?;
            fs::remove_file(&spill)?;
        }
    }
    let by_feature = output.finish(&mut sums)?;
    files::sync_dir(&folder.path().join("by_feature"))?;
    let mut starts = Vec::with_capacity(counts.len() + 1);
    let mut start = 0;
    for count in counts {
        starts.push(start);
        start += count;
    }
    starts.push(start);
    let stats_path = folder.path().join("stats.parquet");
    let examples_path = folder.path().join("examples.parquet");
    let groups_path = folder.path().join(GROUPS);
    let options = || TableOptions { delta: &["feature"], ..TableOptions::default() };
    Ok(SortedFeatures {
        stats: Some(TableWriter::create(&stats_path, &schema::feature_stats(), options())?),
        examples: Some(TableWriter::create(&examples_path, &schema::feature_examples(), options())?),
        groups: Some(TableWriter::create(&groups_path, &schema::feature_groups(), options())?),
        target,
        info,
        acts: acts.to_vec(),
        by_feature,
        starts,
        next_feature: 0,
        last_example: (0, 0),
        pending_stats: Vec::new(),
        pending_examples: Vec::new(),
        pending_groups: Vec::new(),
        sums,
    })
}

impl SortedFeatures {
    /// Rows of some features, feature after feature, falling; features without rows do not come.
    ///
    /// A feature with very many rows comes in several consecutive parts, so that memory is bounded.
    pub fn rows(&self, features: Range<u32>) -> Result<impl Iterator<Item = Result<FeatureRows>> + use<>> {
        let at = |feature: u32| self.starts[(feature as usize).min(self.starts.len() - 1)];
        let rows = at(features.start)..at(features.end.max(features.start));
        let tables = self.by_feature.iter().map(|path| TableFile::open(path)).collect::<Result<Vec<_>>>()?;
        Ok(RowsOfFeatures { tables, rows, pending: Vec::new(), next: 0 })
    }

    /// How many rows a feature has, those of special tokens too.
    pub fn n_rows(&self, feature: u32) -> u64 {
        let at = |i: usize| self.starts[i.min(self.starts.len() - 1)];
        at(feature as usize + 1) - at(feature as usize)
    }

    /// Appends statistics: every feature once, in order.
    pub fn write_stats(&mut self, rows: &[FeatureStats]) -> Result<()> {
        for row in rows {
            if row.feature != self.next_feature {
                return Err(Error::mismatch("as the next feature", self.next_feature, row.feature));
            }
            self.next_feature += 1;
            self.pending_stats.push(row.clone());
        }
        while self.pending_stats.len() >= STATS_GROUP_ROWS {
            let rest = self.pending_stats.split_off(STATS_GROUP_ROWS);
            let group = std::mem::replace(&mut self.pending_stats, rest);
            table(&mut self.stats).write(&tables::stats_batch(&group))?;
        }
        Ok(())
    }

    /// Appends examples, in the order of features.
    pub fn write_examples(&mut self, rows: &[Example]) -> Result<()> {
        for row in rows {
            if row.feature < self.last_example.0 {
                return Err(Error::mismatch("as the next feature at least", self.last_example.0, row.feature));
            }
            self.last_example = (row.feature, self.last_example.1 + 1);
            self.pending_examples.push(row.clone());
        }
        while self.pending_examples.len() >= GROUP_ROWS {
            let rest = self.pending_examples.split_off(GROUP_ROWS);
            let group = std::mem::replace(&mut self.pending_examples, rest);
            table(&mut self.examples).write(&tables::example_batch(&group))?;
        }
        Ok(())
    }

    /// Appends the groups that examples were drawn from, in the order of features.
    pub fn write_groups(&mut self, rows: &[ExampleGroup]) -> Result<()> {
        self.pending_groups.extend_from_slice(rows);
        while self.pending_groups.len() >= GROUP_ROWS {
            let rest = self.pending_groups.split_off(GROUP_ROWS);
            let group = std::mem::replace(&mut self.pending_groups, rest);
            table(&mut self.groups).write(&tables::group_batch(&group))?;
        }
        Ok(())
    }

    /// Counts which features fire together, and writes each one's best pairs. `special` tells which of some tokens are.
    ///
    /// `progress` is called after each stretch of tokens; when it breaks, the result is [`Error::Interrupted`].
    pub fn write_coactivation(
        &mut self,
        special: &dyn Fn(Range<u64>) -> Result<Vec<bool>>,
        options: PairOptions,
        progress: OnProgress<'_>,
    ) -> Result<()> {
        let path = self.target.folder.path().join(COACTIVATION);
        let table = TableOptions { delta: &["feature"], ..TableOptions::default() };
        let mut writer = TableWriter::create(&path, &schema::feature_pairs(), table)?;
        let left = Side { files: self.acts.clone(), n_features: self.info.d_sae as usize };
        let n_tokens = self.info.n_tokens;
        let mut pending = Vec::new();
        Count { left: &left, right: None, n_tokens, special, options, progress }.run(&mut |pairs| {
            pending.extend_from_slice(pairs);
            // Row groups of one size, whatever the memory is: then the file is the same.
            while pending.len() >= GROUP_ROWS {
                writer.write(&tables::pair_batch(&pending.drain(..GROUP_ROWS).collect::<Vec<_>>()))?;
            }
            Ok(())
        })?;
        writer.write(&tables::pair_batch(&pending))?;
        self.sums.files.insert(COACTIVATION.to_owned(), writer.publish()?);
        Ok(())
    }

    /// Makes the table durable under its name.
    pub fn finish(mut self) -> Result<()> {
        if self.next_feature != self.info.d_sae {
            return Err(Error::mismatch("features with statistics", self.info.d_sae, self.next_feature));
        }
        let mut stats = self.stats.take().expect("`finish` takes `self`");
        let mut examples = self.examples.take().expect("`finish` takes `self`");
        let mut groups = self.groups.take().expect("`finish` takes `self`");
        groups.write(&tables::group_batch(&self.pending_groups))?;
        stats.write(&tables::stats_batch(&self.pending_stats))?;
        examples.write(&tables::example_batch(&self.pending_examples))?;
        let info = serde_json::to_string(&self.info).map_err(|cause| Error::json(self.target.folder.path(), cause))?;
        stats.append_key_value(INFO_KEY, info);
        self.sums.files.insert("examples.parquet".to_owned(), examples.publish()?);
        self.sums.files.insert(GROUPS.to_owned(), groups.publish()?);
        self.sums.files.insert("stats.parquet".to_owned(), stats.publish()?);
        self.sums.write(self.target.folder.path())?;
        self.target.publish()
    }
}

fn table(writer: &mut Option<TableWriter>) -> &mut TableWriter {
    writer.as_mut().expect("only `finish` takes it, and `self` with it")
}

/// Features cut into ranges of at most `budget` rows, as far as there may be so many; each range's last feature plus one.
fn buckets(counts: &[u64], budget: usize) -> Vec<u32> {
    let total: u64 = counts.iter().sum();
    let limit = (budget as u64).max(total.div_ceil(MAX_BUCKETS as u64));
    let mut ends = Vec::new();
    let mut rows = 0;
    for (feature, &count) in counts.iter().enumerate() {
        if rows > 0 && rows + count > limit {
            ends.push(feature as u32);
            rows = 0;
        }
        rows += count;
    }
    ends.push(counts.len() as u32);
    ends
}

/// Distributes rows over one file a bucket.
fn spill(dir: &Path, acts: &[PathBuf], buckets: &[u32], d_sae: usize) -> Result<Vec<PathBuf>> {
    let mut bucket_of = Vec::with_capacity(d_sae);
    for (bucket, &end) in buckets.iter().enumerate() {
        bucket_of.resize(end as usize, bucket as u32);
    }
    let paths: Vec<PathBuf> = (0..buckets.len()).map(|i| dir.join(format!(".bucket-{i:05}.tmp"))).collect();
    let mut spills = paths
        .iter()
        .map(|path| Ok(BufWriter::with_capacity(1 << 17, fs::File::create(path)?)))
        .collect::<Result<Vec<_>>>()?;
    for path in acts {
        read_acts(path, |row| {
            let bucket = bucket_of.get(row.feature as usize).copied().unwrap_or(0) as usize;
            Ok(spills[bucket].write_all(&encode(row))?)
        })?;
    }
    spills.iter_mut().try_for_each(BufWriter::flush)?;
    Ok(paths)
}

/// Sorts the rows of a bucket into the output: at once when they fit, otherwise in runs that are merged.
fn sort_bucket(dir: &Path, path: &Path, budget: usize, output: &mut Output<'_>) -> Result<()> {
    let mut spill = Spill::open(path)?;
    let mut rows = spill.take(budget)?;
    rows.par_sort_unstable_by(order);
    if spill.is_empty() {
        return rows.into_iter().try_for_each(|row| output.push(row));
    }
    let mut runs = Vec::new();
    while !rows.is_empty() {
        let run = dir.join(format!(".run-{:05}.tmp", runs.len()));
        let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(&run)?);
        rows.iter().try_for_each(|&row| file.write_all(&encode(row)))?;
        file.flush()?;
        runs.push(run);
        drop(rows);
        rows = spill.take(budget)?;
        rows.par_sort_unstable_by(order);
    }
    merge(&runs, output)?;
    runs.iter().try_for_each(|run| Ok(fs::remove_file(run)?))
}

fn merge(runs: &[PathBuf], output: &mut Output<'_>) -> Result<()> {
    /// A heap keeps the greatest on top, so the order is turned around.
    struct Head(Row, usize);
    impl PartialEq for Head {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other) == Ordering::Equal
        }
    }
    impl Eq for Head {}
    impl PartialOrd for Head {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }
    impl Ord for Head {
        fn cmp(&self, other: &Self) -> Ordering {
            order(&other.0, &self.0).then(other.1.cmp(&self.1))
        }
    }
    let mut runs = runs.iter().map(|run| Spill::open(run)).collect::<Result<Vec<_>>>()?;
    let mut heads = BinaryHeap::new();
    for (i, run) in runs.iter_mut().enumerate() {
        heads.extend(run.next()?.map(|row| Head(row, i)));
    }
    while let Some(Head(row, i)) = heads.pop() {
        output.push(row)?;
        heads.extend(runs[i].next()?.map(|row| Head(row, i)));
    }
    Ok(())
}

/// Spilled rows.
struct Spill {
    file: BufReader<fs::File>,
    left: u64,
}

impl Spill {
    fn open(path: &Path) -> Result<Self> {
        let file = fs::File::open(path)?;
        let left = file.metadata()?.len() / ROW_BYTES as u64;
        Ok(Self { file: BufReader::with_capacity(1 << 17, file), left })
    }

    const fn is_empty(&self) -> bool {
        self.left == 0
    }

    fn next(&mut self) -> Result<Option<Row>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut bytes = [0; ROW_BYTES];
        self.file.read_exact(&mut bytes)?;
        Ok(Some(decode(bytes)))
    }

    fn take(&mut self, n: usize) -> Result<Vec<Row>> {
        let n = self.left.min(n as u64) as usize;
        let mut rows = Vec::with_capacity(n);
        for _ in 0..n {
            rows.extend(self.next()?);
        }
        Ok(rows)
    }
}

fn encode(row: Row) -> [u8; ROW_BYTES] {
    let mut bytes = [0; ROW_BYTES];
    bytes[..8].copy_from_slice(&row.token_idx.to_le_bytes());
    bytes[8..12].copy_from_slice(&row.feature.to_le_bytes());
    bytes[12..].copy_from_slice(&row.act.to_le_bytes());
    bytes
}

fn decode(bytes: [u8; ROW_BYTES]) -> Row {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    Row {
        token_idx: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        feature: u32::from_le_bytes([i, j, k, l]),
        act: f32::from_le_bytes([m, n, o, p]),
    }
}

fn read_acts(path: &Path, mut each: impl FnMut(Row) -> Result<()>) -> Result<()> {
    let table = TableFile::open(path)?;
    for batch in table.reader(&["token_idx", "feature", "act"], None, None, READ_ROWS)? {
        let batch = batch?;
        let token_idx = table.primitive::<UInt64Type>(&batch, "token_idx")?;
        let feature = table.primitive::<UInt32Type>(&batch, "feature")?;
        let act = table.primitive::<Float32Type>(&batch, "act")?;
        for i in 0..token_idx.len() {
            each(Row { token_idx: token_idx[i], feature: feature[i], act: act[i] })?;
        }
    }
    Ok(())
}

/// The files of `by_feature`, written in order.
struct Output<'a> {
    folder: &'a BuildFolder,
    paths: Vec<PathBuf>,
    /// Of the files that are whole.
    entries: Vec<FileEntry>,
    writer: Option<TableWriter>,
    token_idx: Vec<u64>,
    feature: Vec<u32>,
    act: Vec<f32>,
}

impl<'a> Output<'a> {
    const fn new(folder: &'a BuildFolder) -> Self {
        Self {
            folder,
            paths: Vec::new(),
            entries: Vec::new(),
            writer: None,
            token_idx: Vec::new(),
            feature: Vec::new(),
            act: Vec::new(),
        }
    }

    fn push(&mut self, row: Row) -> Result<()> {
        self.token_idx.push(row.token_idx);
        self.feature.push(row.feature);
        self.act.push(row.act);
        if self.token_idx.len() == GROUP_ROWS { self.write_group() } else { Ok(()) }
    }

    fn write_group(&mut self) -> Result<()> {
        let writer = if let Some(writer) = &mut self.writer {
            writer
        } else {
            let path = self.folder.path().join("by_feature").join(shard_file_name(self.paths.len()));
            let writer = TableWriter::create(&path, &schema::feature_acts(), super::acts_options())?;
            self.paths.push(path);
            self.writer.insert(writer)
        };
        let token_idx = std::mem::take(&mut self.token_idx);
        let feature = std::mem::take(&mut self.feature);
        let act = std::mem::take(&mut self.act);
        writer.write(&tables::acts_batch(token_idx, feature, act))?;
        if writer.n_rows() >= SHARD_ROWS
            && let Some(full) = self.writer.take()
        {
            self.entries.push(full.publish()?);
        }
        Ok(())
    }

    /// There is always one file, also of no rows.
    fn finish(mut self, sums: &mut Sums) -> Result<Vec<PathBuf>> {
        if !self.token_idx.is_empty() || self.paths.is_empty() {
            self.write_group()?;
        }
        if let Some(writer) = self.writer.take() {
            self.entries.push(writer.publish()?);
        }
        let names = (0..).map(|i| format!("by_feature/{}", shard_file_name(i)));
        sums.files.extend(names.zip(self.entries));
        Ok(self.paths)
    }
}

/// Reads a range of rows over all files and groups them by feature.
struct RowsOfFeatures {
    tables: Vec<TableFile>,
    rows: Range<u64>,
    pending: Vec<Row>,
    /// The first of `pending` that was not handed out.
    next: usize,
}

impl RowsOfFeatures {
    fn read_more(&mut self) -> Result<()> {
        self.pending.drain(..self.next);
        self.next = 0;
        let mut file_start = 0;
        for table in &self.tables {
            let file_end = file_start + table.n_rows() as u64;
            if self.rows.start < file_end {
                let end = self.rows.end.min(file_end).min(self.rows.start + CHUNK_ROWS as u64);
                let rows = (self.rows.start - file_start) as usize..(end - file_start) as usize;
                let batch = table.rows(&["token_idx", "feature", "act"], rows)?;
                let token_idx = table.primitive::<UInt64Type>(&batch, "token_idx")?;
                let feature = table.primitive::<UInt32Type>(&batch, "feature")?;
                let act = table.primitive::<Float32Type>(&batch, "act")?;
                let rows = token_idx.into_iter().zip(feature).zip(act);
                self.pending.extend(rows.map(|((token_idx, feature), act)| Row { token_idx, feature, act }));
                self.rows.start = end;
                return Ok(());
            }
            file_start = file_end;
        }
        // Fewer rows than were counted cannot be: the files were written from the same rows.
        self.rows.start = self.rows.end;
        Ok(())
    }
}

impl Iterator for RowsOfFeatures {
    type Item = Result<FeatureRows>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rows = &self.pending[self.next..];
            let feature = rows.first().map(|row| row.feature);
            let n = rows.iter().take_while(|row| Some(row.feature) == feature).count();
            let whole = n < rows.len() || self.rows.is_empty() || n >= CHUNK_ROWS;
            if let Some(feature) = feature.filter(|_| whole) {
                let rows = &rows[..n];
                let found = FeatureRows {
                    feature,
                    token_idx: rows.iter().map(|row| row.token_idx).collect(),
                    act: rows.iter().map(|row| row.act).collect(),
                };
                self.next += n;
                return Some(Ok(found));
            }
            if self.rows.is_empty() {
                return None;
            }
            if let Err(error) = self.read_more() {
                self.rows.start = self.rows.end;
                self.pending.clear();
                self.next = 0;
                return Some(Err(error));
            }
        }
    }
}
