//! How does an answer become a file of CSV, JSON or Parquet, without being held in memory?

use std::io::Write;
use std::str::FromStr;

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{ParquetCompression, ParquetWriter, PolarsError};

use super::{Answer, Rows, Value, failed};
use crate::error::{Error, Result};

/// What a file of an answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line of names, then a line a row; nothing for null, lists as JSON, bytes as hexadecimal digits.
    Csv,
    /// One JSON object a row and line.
    Json,
    /// Row groups of [`super::STRETCH`] rows or less, compressed with zstd.
    Parquet,
}

/// Writes rows as they come.
pub struct RowWriter<W: Write> {
    sink: Sink<W>,
    names: Vec<String>,
}

enum Sink<W: Write> {
    Csv(W),
    Json(W),
    Parquet(Box<BatchedWriter<W>>),
}

impl Format {
    /// The name on the command line and the ending of a file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Parquet => "parquet",
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = [Self::Csv, Self::Json, Self::Parquet];
        let found = known.into_iter().find(|format| format.name() == text);
        found.ok_or_else(|| Error::UnknownFormat { found: text.to_owned(), known: "`csv`, `json` or `parquet`" })
    }
}

impl<W: Write> RowWriter<W> {
    /// Begins a file of the rows of an answer.
    pub fn new(format: Format, mut out: W, answer: &Answer) -> Result<Self> {
        let names: Vec<String> = answer.columns().into_iter().map(|column| column.name).collect();
        let sink = match format {
            Format::Csv => {
                writeln!(out, "{}", csv_line(names.iter().map(|name| quoted(name))))?;
                Sink::Csv(out)
            }
            Format::Json => Sink::Json(out),
            Format::Parquet => {
                let writer = ParquetWriter::new(out).with_compression(ParquetCompression::Zstd(None));
                let writer = writer.batched(&answer.schema).map_err(|cause| told(&cause))?;
                let mut sink = Box::new(writer);
                // A file without rows has the columns too.
                sink.write_batch(&answer.empty().frame).map_err(|cause| told(&cause))?;
                Sink::Parquet(sink)
            }
        };
        Ok(Self { sink, names })
    }

    /// Writes some rows.
    pub fn write(&mut self, rows: &Rows) -> Result<()> {
        match &mut self.sink {
            Sink::Csv(out) => {
                for cells in rows.cells() {
                    writeln!(out, "{}", csv_line(cells.iter().map(csv_cell)))?;
                }
            }
            Sink::Json(out) => {
                for cells in rows.cells() {
                    let row = Value::Struct(self.names.iter().cloned().zip(cells).collect());
                    serde_json::to_writer(&mut *out, &row).map_err(std::io::Error::from)?;
                    out.write_all(b"\n")?;
                }
            }
            Sink::Parquet(writer) => writer.write_batch(&rows.frame).map_err(|cause| told(&cause))?,
        }
        Ok(())
    }

    /// Writes what comes at the end.
    pub fn finish(self) -> Result<()> {
        match self.sink {
            Sink::Csv(mut out) | Sink::Json(mut out) => out.flush()?,
            Sink::Parquet(writer) => {
                writer.finish().map_err(|cause| told(&cause))?;
            }
        }
        Ok(())
    }
}

/// An error of the disk is told as such.
fn told(cause: &PolarsError) -> Error {
    match cause {
        PolarsError::IO { error, .. } => {
            let cause = error.raw_os_error().map_or_else(
                || std::io::Error::new(error.kind(), error.to_string()),
                std::io::Error::from_raw_os_error,
            );
            Error::Io { cause }
        }
        other => failed(other),
    }
}

fn csv_line(cells: impl Iterator<Item = String>) -> String {
    cells.collect::<Vec<_>>().join(",")
}

fn csv_cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Text(text) => quoted(text),
        Value::List(_) | Value::Struct(_) => quoted(&json(value)),
        Value::F32(x) => x.to_string(),
        Value::F64(x) => x.to_string(),
        other => json(other).trim_matches('"').to_owned(),
    }
}

/// Quotes where a reader needs them; an empty text has them, to be told from null.
fn quoted(text: &str) -> String {
    let plain = !text.is_empty() && text.trim() == text && !text.contains(['"', ',', '\n', '\r']);
    if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

fn json(value: &Value) -> String {
    serde_json::to_string(value).expect("a value has nothing that JSON cannot say")
}
