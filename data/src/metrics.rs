//! What did training measure, step by step?
//!
//! `metrics.parquet` has one row a measurement and one float64 column a quantity (`step`, `tokens`, `loss`, …); what was not
//! measured is NaN. The file is written whole each time, so that it is whole or not there.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::Float64Type;

use crate::error::{Error, Result};
use crate::files;
use crate::parquet_io::{TableFile, TableOptions, TableWriter};
use crate::schema;

/// A table of named float64 columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    names: Vec<String>,
    columns: Vec<Vec<f64>>,
}

impl Metrics {
    /// A table without rows.
    pub fn new(names: &[&str]) -> Self {
        Self { names: names.iter().map(ToString::to_string).collect(), columns: vec![Vec::new(); names.len()] }
    }

    /// Appends a row: one value a column.
    pub fn push(&mut self, values: &[f64]) -> Result<()> {
        if values.len() != self.columns.len() {
            return Err(Error::mismatch("values in a row of metrics", self.columns.len(), values.len()));
        }
        self.columns.iter_mut().zip(values).for_each(|(column, &value)| column.push(value));
        Ok(())
    }

    /// The names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.names
    }

    /// The values of a column.
    pub fn column(&self, name: &str) -> Option<&[f64]> {
        self.names.iter().position(|known| known == name).map(|i| self.columns[i].as_slice())
    }

    /// How many rows there are.
    pub fn n_rows(&self) -> usize {
        self.columns.first().map_or(0, Vec::len)
    }

    /// Keeps the first `n` rows: those that a checkpoint knows of.
    pub fn truncate(&mut self, n: usize) {
        self.columns.iter_mut().for_each(|column| column.truncate(n));
    }

    /// Writes the table, in place of an older one.
    pub fn write(&self, path: &Path) -> Result<()> {
        let schema = schema::metrics(&self.names);
        let columns: Vec<ArrayRef> =
            self.columns.iter().map(|column| Arc::new(Float64Array::from(column.clone())) as ArrayRef).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.n_rows()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)
            .map_err(|cause| Error::damaged(path, cause))?;
        let mut writer = TableWriter::create(path, &schema, TableOptions::default())?;
        writer.write(&batch)?;
        writer.publish()?;
        files::sync_dir(files::parent(path))
    }

    /// Reads a table.
    pub fn read(path: &Path) -> Result<Self> {
        let file = TableFile::open(path)?;
        let batch = file.rows(&[], 0..file.n_rows())?;
        let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        let columns = names
            .iter()
            .map(|name| {
                let values = file.optional::<Float64Type>(&batch, name)?;
                Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
            })
            .collect::<Result<_>>()?;
        Ok(Self { names, columns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_round_trip_and_go_on_after_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.parquet");
        let mut metrics = Metrics::new(&["step", "loss"]);
        metrics.write(&path).unwrap();
        assert_eq!(Metrics::read(&path).unwrap(), metrics);
        metrics.push(&[1.0, 0.5]).unwrap();
        metrics.push(&[2.0, f64::NAN]).unwrap();
        metrics.write(&path).unwrap();
        let mut back = Metrics::read(&path).unwrap();
        assert_eq!(back.column("step"), Some([1.0, 2.0].as_slice()));
        assert!(back.column("loss").unwrap()[1].is_nan());
        assert_eq!(back.column("l0"), None);
        back.truncate(1);
        assert_eq!((back.n_rows(), back.columns().len()), (1, 2));
        assert!(back.push(&[1.0]).unwrap_err().to_string().contains("expected 2"));
        assert!(matches!(Metrics::read(&dir.path().join("none.parquet")), Err(Error::MissingFile { .. })));
    }
}
