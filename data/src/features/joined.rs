//! How does what is found later come into a feature table that is whole already?
//!
//! The list of sums names a file only while it is as the list says: an older file of that name is taken off the list
//! before it is replaced, and the new one put on it when it is whole. A process that dies in between leaves a table that
//! verifies.

use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::{FeaturePair, FeatureTable, GROUP_ROWS, JOINS, tables};
use crate::error::{Error, Result};
use crate::files;
use crate::join::{JoinReport, JoinRow};
use crate::parquet_io::{TableFile, TableOptions, TableWriter};
use crate::schema;
use crate::sums::{self, Sums};

/// Key of the Parquet metadata that says how a join was made, as JSON.
const JOIN_KEY: &str = "polariscope.join";

/// What the names of correlations with other coders begin with.
const CORRELATION: &str = "features-";

impl FeatureTable {
    /// The names of what the features were joined with.
    pub fn joins(&self) -> Result<Vec<String>> {
        let names = self.run().place().names_in(&format!("features/{}/{JOINS}", self.name()), false)?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(".parquet")).map(str::to_owned).collect())
    }

    /// Writes a join as `joins/<name>.parquet`, in place of an older one.
    pub fn write_join(&self, report: &JoinReport) -> Result<()> {
        let info = serde_json::to_string(&report.info).map_err(|cause| Error::json(&self.dir(), cause))?;
        let batches = report.rows.chunks(GROUP_ROWS).map(tables::join_batch);
        self.write_table(&report.info.with.to_string(), &schema::feature_join(), info, batches)
    }

    /// The rows of a join that was written, by the name of what the features were joined with.
    pub fn join(&self, name: &str) -> Result<Vec<JoinRow>> {
        let file = self.table(name)?;
        tables::join_rows(&file, &file.rows(&[], 0..file.n_rows())?)
    }

    /// Writes the pairs with the features of another coder as `joins/features-<other>.parquet`.
    pub fn write_correlation(&self, other: &Self, pairs: &[FeaturePair]) -> Result<()> {
        let info = serde_json::json!({ "run": other.run().dir(), "table": other.name() }).to_string();
        let batches = pairs.chunks(GROUP_ROWS).map(tables::pair_batch);
        self.write_table(&format!("{CORRELATION}{}", other.name()), &schema::feature_pairs(), info, batches)
    }

    /// The pairs with the features of another coder, by the name of its table.
    pub fn correlation(&self, other: &str) -> Result<Vec<FeaturePair>> {
        let file = self.table(&format!("{CORRELATION}{other}"))?;
        tables::pair_rows(&file, &file.rows(&[], 0..file.n_rows())?)
    }

    fn table(&self, name: &str) -> Result<TableFile> {
        TableFile::open(&self.join_file(name)?)
    }

    /// The file of a join on this disk, by the name of what the features were joined with.
    pub fn join_file(&self, name: &str) -> Result<PathBuf> {
        files::check_name("join", name)?;
        let relative = format!("features/{}/{JOINS}/{name}.parquet", self.name());
        if self.run().place().has(&relative)? {
            return self.run().file(&relative);
        }
        Err(Error::NoSuchName { kind: "join", name: name.to_owned(), known: self.joins()?, path: self.dir() })
    }

    fn write_table(
        &self,
        name: &str,
        schema: &SchemaRef,
        info: String,
        batches: impl Iterator<Item = RecordBatch>,
    ) -> Result<()> {
        files::check_name("join", name)?;
        let (place, folder) = (self.run().place(), format!("features/{}", self.name()));
        let (list, within) = (format!("{folder}/{}", sums::FILE), format!("{JOINS}/{name}.parquet"));
        let mut sums: Sums = files::read_json(&place.file(&list)?)?;
        if sums.files.remove(&within).is_some() {
            place.write(&list, &sums::json(&self.dir(), &sums)?)?;
        }
        let dir = place.dir().join(&folder).join(JOINS);
        files::create_dir(&dir)?;
        let options = TableOptions { key_values: vec![(JOIN_KEY.to_owned(), info)], ..TableOptions::default() };
        let mut writer = TableWriter::create(&dir.join(format!("{name}.parquet")), schema, options)?;
        for batch in batches {
            writer.write(&batch)?;
        }
        let entry = writer.publish()?;
        files::sync_dir(&dir)?;
        place.send(&[&format!("{folder}/{within}")])?;
        sums.files.insert(within, entry);
        place.write(&list, &sums::json(&self.dir(), &sums)?)
    }
}
