//! How is a feature table read, a feature or a stretch of tokens at a time?

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Float32Type, Float64Type, UInt32Type, UInt64Type};
use parquet::file::page_index::column_index::ColumnIndexMetaData;

use super::pairs::Side;
use super::{
    COACTIVATION, Example, ExampleGroup, FeaturePair, FeatureStats, FeatureTableInfo, GROUPS, INFO_KEY, tables,
};
use crate::error::{Error, Result};
use crate::files;
use crate::manifest::shard_file_name;
use crate::parquet_io::TableFile;
use crate::store::Run;

/// Rows that [`FeatureTable::acts_of_feature`] reads at a time, so that the first few of a dense feature come at once.
const STRETCH: usize = 65_536;

/// A feature table, opened for reading; it may be shared between threads.
#[derive(Clone, Debug)]
pub struct FeatureTable {
    run: Run,
    name: String,
    info: FeatureTableInfo,
    stats: Arc<TableFile>,
    examples: Arc<TableFile>,
    /// Tables of older versions have none.
    groups: Option<Arc<TableFile>>,
    /// Where pairs were counted.
    coactivation: Option<Arc<TableFile>>,
    /// Of each shard of `by_feature`: its file and the first and last feature in it.
    by_feature: Vec<(Arc<TableFile>, Range<u32>)>,
}

/// The columns of `stats.parquet` that are one number a feature.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatsColumns {
    pub feature: Vec<u32>,
    pub n_active: Vec<u64>,
    pub frac_nonzero: Vec<f64>,
    pub mean_act: Vec<f64>,
    pub max_act: Vec<f32>,
    pub decoder_norm: Vec<f32>,
    pub first_fired: Vec<Option<u64>>,
    pub last_fired: Vec<Option<u64>>,
}

/// Sparse activations in the order of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureActs {
    pub token_idx: Vec<u64>,
    pub feature: Vec<u32>,
    pub act: Vec<f32>,
}

impl FeatureActs {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.token_idx.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.token_idx.is_empty()
    }

    /// The features and activations of a token, in the order of features as they were written.
    pub fn of_token(&self, token_idx: u64) -> impl Iterator<Item = (u32, f32)> + '_ {
        let start = self.token_idx.partition_point(|&token| token < token_idx);
        let end = self.token_idx.partition_point(|&token| token <= token_idx);
        (start..end).map(|i| (self.feature[i], self.act[i]))
    }
}

impl FeatureTable {
    pub(crate) fn open(run: &Run, name: &str) -> Result<Self> {
        files::check_name("feature table", name)?;
        let folder = format!("features/{name}");
        if !run.feature_tables()?.iter().any(|known| known == name) {
            return Err(Error::NoSuchName {
                kind: "feature table",
                name: name.to_owned(),
                known: run.feature_tables()?,
                path: run.dir().to_owned(),
            });
        }
        // Not those that the run keeps open: a table of the same name may have taken the place of an older one.
        let table = |relative: &str| Ok::<_, Error>(Arc::new(TableFile::open(&run.file(relative)?)?));
        let stats = table(&format!("{folder}/stats.parquet"))?;
        let examples = table(&format!("{folder}/examples.parquet"))?;
        let has = |file: &str| {
            let relative = format!("{folder}/{file}");
            Ok::<_, Error>(if run.place().has(&relative)? { Some(table(&relative)?) } else { None })
        };
        let (groups, coactivation) = (has(GROUPS)?, has(COACTIVATION)?);
        let info = stats
            .key_value(INFO_KEY)
            .ok_or_else(|| Error::damaged(stats.path(), format!("`{INFO_KEY}` is missing in its metadata")))?;
        let info: FeatureTableInfo = serde_json::from_str(info).map_err(|cause| Error::json(stats.path(), cause))?;
        if stats.n_rows() != info.d_sae as usize {
            let cause = format!("it has {} rows for {} features", stats.n_rows(), info.d_sae);
            return Err(Error::damaged(stats.path(), cause));
        }
        let mut by_feature = Vec::new();
        for index in 0.. {
            let path = format!("{folder}/by_feature/{}", shard_file_name(index));
            if index > 0 && !run.place().has(&path)? {
                break;
            }
            let table = table(&path)?;
            let range = features_in(&table);
            by_feature.push((table, range));
        }
        let (run, name) = (run.clone(), name.to_owned());
        Ok(Self { run, name, info, stats, examples, groups, coactivation, by_feature })
    }

    /// The name of the table: its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of the table.
    pub fn dir(&self) -> PathBuf {
        self.run.dir().join("features").join(&self.name)
    }

    /// The run that it is a table of.
    pub const fn run(&self) -> &Run {
        &self.run
    }

    /// Where the table comes from.
    pub const fn info(&self) -> &FeatureTableInfo {
        &self.info
    }

    /// How many features there are, active or not.
    pub const fn n_features(&self) -> u32 {
        self.info.d_sae
    }

    /// Everything that is known of some features.
    pub fn stats(&self, features: Range<u32>) -> Result<Vec<FeatureStats>> {
        self.check(&features)?;
        let batch = self.stats.rows(&[], features.start as usize..features.end as usize)?;
        tables::stats_rows(&self.stats, &batch)
    }

    /// The numbers of all features, column by column: for tables and plots.
    pub fn summary(&self) -> Result<StatsColumns> {
        const COLUMNS: [&str; 8] =
            ["feature", "n_active", "frac_nonzero", "mean_act", "max_act", "decoder_norm", "first_fired", "last_fired"];
        let file = &self.stats;
        let batch = file.rows(&COLUMNS, 0..file.n_rows())?;
        Ok(StatsColumns {
            feature: file.primitive::<UInt32Type>(&batch, "feature")?,
            n_active: file.primitive::<UInt64Type>(&batch, "n_active")?,
            frac_nonzero: file.primitive::<Float64Type>(&batch, "frac_nonzero")?,
            mean_act: file.primitive::<Float64Type>(&batch, "mean_act")?,
            max_act: file.primitive::<Float32Type>(&batch, "max_act")?,
            decoder_norm: file.primitive::<Float32Type>(&batch, "decoder_norm")?,
            first_fired: file.optional::<UInt64Type>(&batch, "first_fired")?,
            last_fired: file.optional::<UInt64Type>(&batch, "last_fired")?,
        })
    }

    /// The examples of some features, in the order of features.
    pub fn examples(&self, features: Range<u32>) -> Result<Vec<Example>> {
        self.check(&features)?;
        let mut examples = tables::example_rows(&self.examples, &of_features(&self.examples, &features)?)?;
        examples.retain(|example| features.contains(&example.feature));
        Ok(examples)
    }

    /// The groups that the examples of some features were drawn from, in the order of features.
    pub fn groups(&self, features: Range<u32>) -> Result<Vec<ExampleGroup>> {
        self.check(&features)?;
        let Some(file) = &self.groups else { return Ok(Vec::new()) };
        let mut groups = tables::group_rows(file, &of_features(file, &features)?)?;
        groups.retain(|group| features.contains(&group.feature));
        Ok(groups)
    }

    /// Which features fire together with some, the nearest first; `None` where pairs were not counted.
    pub fn coactivation(&self, features: Range<u32>) -> Result<Option<Vec<FeaturePair>>> {
        self.check(&features)?;
        let Some(file) = &self.coactivation else { return Ok(None) };
        let mut pairs = tables::pair_rows(file, &of_features(file, &features)?)?;
        pairs.retain(|pair| features.contains(&pair.feature));
        Ok(Some(pairs))
    }

    /// The files of activations in the order of tokens.
    pub(crate) fn acts_files(&self) -> Result<Vec<PathBuf>> {
        self.run.require_order("features by token")?;
        let relative = |shard: &crate::Shard| format!("features/{}/acts/{}", self.name, shard.file_name());
        self.run.shards().iter().map(|shard| self.run.file(&relative(shard))).collect()
    }

    pub(super) fn side(&self) -> Result<Side> {
        Ok(Side { files: self.acts_files()?, n_features: self.info.d_sae as usize })
    }

    /// Tokens and activations of a feature, falling, at most `limit`. Those of special tokens are among them.
    pub fn acts_of_feature(&self, feature: u32, limit: usize) -> Result<Vec<(u64, f32)>> {
        self.check(&(feature..feature.saturating_add(1)))?;
        let key = u64::from(feature)..u64::from(feature) + 1;
        let mut found = Vec::new();
        for (table, range) in &self.by_feature {
            if !range.contains(&feature) {
                continue;
            }
            let candidates = candidates(table, "feature", &key)?;
            let mut start = candidates.start;
            while start < candidates.end && found.len() < limit {
                let end = candidates.end.min(start + STRETCH);
                let batch = table.rows(&["token_idx", "feature", "act"], start..end)?;
                let features = table.primitive::<UInt32Type>(&batch, "feature")?;
                let token_idx = table.primitive::<UInt64Type>(&batch, "token_idx")?;
                let act = table.primitive::<Float32Type>(&batch, "act")?;
                let rows = (0..features.len()).filter(|&i| features[i] == feature).map(|i| (token_idx[i], act[i]));
                found.extend(rows.take(limit - found.len()));
                start = end;
            }
        }
        Ok(found)
    }

    /// The features that are active at some tokens, in the order of tokens.
    pub fn features_at(&self, tokens: Range<u64>) -> Result<FeatureActs> {
        let mut found = FeatureActs::default();
        for (shard, rows) in self.run.shards_of(tokens)? {
            let relative = format!("features/{}/acts/{}", self.name, shard.file_name());
            let table = self.run.table(&relative)?;
            let keys = shard.first_token_idx + rows.start as u64..shard.first_token_idx + rows.end as u64;
            let candidates = candidates(&table, "token_idx", &keys)?;
            let batch = table.rows(&["token_idx", "feature", "act"], candidates)?;
            let token_idx = table.primitive::<UInt64Type>(&batch, "token_idx")?;
            let feature = table.primitive::<UInt32Type>(&batch, "feature")?;
            let act = table.primitive::<Float32Type>(&batch, "act")?;
            let start = token_idx.partition_point(|&token| token < keys.start);
            let end = token_idx.partition_point(|&token| token < keys.end);
            found.token_idx.extend_from_slice(&token_idx[start..end]);
            found.feature.extend_from_slice(&feature[start..end]);
            found.act.extend_from_slice(&act[start..end]);
        }
        Ok(found)
    }

    pub(crate) fn check(&self, features: &Range<u32>) -> Result<()> {
        if features.start <= features.end && features.end <= self.info.d_sae {
            return Ok(());
        }
        Err(Error::OutOfRange {
            what: "features",
            start: 0,
            end: u64::from(self.info.d_sae),
            found: format!("{}..{}", features.start, features.end),
            path: self.dir(),
        })
    }
}

/// The rows of a file that may be of some features.
fn of_features(table: &TableFile, features: &Range<u32>) -> Result<RecordBatch> {
    let keys = u64::from(features.start)..u64::from(features.end);
    table.rows(&[], candidates(table, "feature", &keys)?)
}

/// The pages of a file that may hold keys of a rising column, as one stretch of rows.
fn candidates(table: &TableFile, column: &str, keys: &Range<u64>) -> Result<Range<usize>> {
    table.require(column)?;
    let metadata = table.metadata().metadata();
    let columns = metadata.file_metadata().schema_descr();
    let column = (0..columns.num_columns()).find(|&i| columns.column(i).path().string() == column);
    let mut found: Option<Range<usize>> = None;
    for (i, group) in table.row_groups().into_iter().enumerate() {
        let pages = column.and_then(|column| page_bounds(table, i, column, &group));
        for (rows, bounds) in pages.unwrap_or_else(|| vec![(group, None)]) {
            let may_hold = bounds.is_none_or(|(least, greatest)| least < keys.end && greatest >= keys.start);
            if may_hold && !rows.is_empty() {
                found = Some(found.map_or(rows.clone(), |found| found.start.min(rows.start)..found.end.max(rows.end)));
            }
        }
    }
    Ok(found.unwrap_or(0..0))
}

/// The rows of a page and, where it is known, its least and greatest key.
type PageBounds = (Range<usize>, Option<(u64, u64)>);

/// What the page index tells of a column of keys.
fn page_bounds(table: &TableFile, group: usize, column: usize, rows: &Range<usize>) -> Option<Vec<PageBounds>> {
    let index = table.metadata().metadata().page_index()?;
    let locations = index.offset_index(group, column)?.page_locations();
    let bounds = |page: usize| match index.column_index(group, column)? {
        ColumnIndexMetaData::INT32(values) => {
            Some((u64::from(*values.min_value(page)? as u32), u64::from(*values.max_value(page)? as u32)))
        }
        ColumnIndexMetaData::INT64(values) => Some((*values.min_value(page)? as u64, *values.max_value(page)? as u64)),
        _ => None,
    };
    let starts = locations.iter().map(|location| location.first_row_index.max(0) as usize);
    let ends = starts.clone().skip(1).chain([rows.len()]);
    Some(starts.zip(ends).enumerate().map(|(i, (a, b))| (rows.start + a..rows.start + b.max(a), bounds(i))).collect())
}

/// The features of a file of `by_feature`, from its statistics.
fn features_in(table: &TableFile) -> Range<u32> {
    let metadata = table.metadata().metadata();
    let columns = metadata.file_metadata().schema_descr();
    let column = (0..columns.num_columns()).find(|&i| columns.column(i).name() == "feature");
    let bounds = |group: usize| {
        let statistics = metadata.row_group(group).column(column?).statistics()?;
        let number = |bytes: Option<&[u8]>| Some(u32::from_le_bytes(bytes?.try_into().ok()?));
        Some((number(statistics.min_bytes_opt())?, number(statistics.max_bytes_opt())?))
    };
    let known: Option<Vec<(u32, u32)>> = (0..table.n_row_groups()).map(bounds).collect();
    match known {
        Some(groups) => {
            let least = groups.iter().map(|group| group.0).min().unwrap_or(0);
            let end = groups.iter().map(|group| group.1.saturating_add(1)).max().unwrap_or(0);
            least..end
        }
        // A file without statistics may hold any.
        None => 0..u32::MAX,
    }
}
