//! What does a person ask of a run in SQL, and how do the answers come back?
//!
//! [`tables`] lists what may be named, [`ask`] begins a question, [`Answer`] gives rows a stretch at a time.
//! Tables are read from the run's own durable files and from nowhere else.
//!
//! A vector is a list of f32, whatever the dtype on disk: `act[1]` is its first number, `ARRAY_SUM(act)` its sum.
//! A query that does not name `act` does not read it.
//!
//! polars streams: scans, filters, `LIMIT`, aggregates, and the larger side of a join hold some row groups at a time.
//! What `ORDER BY` without `LIMIT`, the smaller side of a join, a window function and the groups of `GROUP BY` hold is
//! in memory, and grows with them.

mod catalog;
mod check;
mod rows;
mod subscripts;
mod write;

#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use polars::prelude::{DataFrame, Engine, LazyFrame, PlanCallback, PolarsError, PolarsResult, SchemaRef};
use polars::sql::SQLContext;

use crate::error::{Error, Result};
use crate::store::Run;

pub use rows::{Rows, Value};
pub use write::{Format, RowWriter};

/// Rows that are handed over at a time.
pub const STRETCH: usize = 8192;

/// A table that a query may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// As it is written in SQL, without quotes.
    pub name: String,
    /// What one row is.
    pub about: String,
    pub n_rows: u64,
    pub columns: Vec<Column>,
}

/// A column of a table or of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// Its type in the words of polars: `u64`, `str`, `list[f32]`.
    pub kind: String,
}

/// The tables of a run, in the order in which a person would look for them.
pub fn tables(run: &Run) -> Result<Vec<Table>> {
    let tables = catalog::tables(run)?;
    tables
        .into_iter()
        .map(|table| {
            let mut frame = table.frame(run)?;
            let schema = guarded(|| frame.collect_schema())?;
            let n_rows = table.n_rows(run)?;
            Ok(Table { name: table.name, about: table.about, n_rows, columns: columns_of(&schema) })
        })
        .collect()
}

/// Begins to answer one `SELECT` (or `WITH … SELECT`) over the tables of a run.
///
/// What is wrong with the words is said here. Only the tables that are named are looked at.
pub fn ask(run: &Run, sql: &str) -> Result<Answer> {
    let tables = catalog::tables(run)?;
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let vectors: Vec<&str> = tables.iter().filter(|table| table.has_acts()).map(|table| table.name.as_str()).collect();
    let question = check::question(sql, &names, &vectors)?;
    let mut context = SQLContext::new();
    for table in tables.iter().filter(|table| question.tables.contains(&table.name)) {
        context.register(&table.name, table.frame(run)?);
    }
    let (frame, schema) = guarded(|| {
        let mut frame = context.execute(&question.sql)?;
        let schema = frame.collect_schema()?;
        Ok((frame, schema))
    })?;
    Answer::begin(frame, schema)
}

/// The rows of an answer, while they are computed on a thread. Dropped, it asks that thread to stop at its next rows.
#[derive(Debug)]
pub struct Answer {
    schema: SchemaRef,
    /// Rows, and `None` after the last of them.
    frames: Receiver<Result<Option<DataFrame>>>,
    ended: bool,
}

/// What has come of an answer.
#[derive(Debug)]
pub enum Next {
    Rows(Rows),
    /// Nothing yet.
    Waiting,
    /// There are no more rows.
    End,
}

impl Answer {
    fn begin(frame: LazyFrame, schema: SchemaRef) -> Result<Self> {
        // One stretch waits while the reader is busy with another.
        let (sender, frames) = bounded(1);
        let rows = sender.clone();
        let callback = PlanCallback::new(move |frame: DataFrame| {
            // Nobody listens any more: that is how an answer is cancelled.
            Ok(rows.send(Ok(Some(frame))).is_err())
        });
        let plan = frame.sink_batches(callback, true, NonZeroUsize::new(STRETCH)).map_err(|cause| failed(&cause))?;
        thread::Builder::new().name("query".to_owned()).spawn(move || {
            let end = guarded(|| plan.collect_with_engine(Engine::Streaming)).map(|_no_rows| None);
            // It fails where whoever asked has gone.
            let _ = sender.send(end);
        })?;
        Ok(Self { schema, frames, ended: false })
    }

    /// The columns of every row.
    pub fn columns(&self) -> Vec<Column> {
        columns_of(&self.schema)
    }

    /// The next rows, if they come in time. After an error there are no more.
    pub fn next_within(&mut self, patience: Duration) -> Result<Next> {
        if self.ended {
            return Ok(Next::End);
        }
        let next = match self.frames.recv_timeout(patience) {
            Ok(Ok(Some(frame))) => return Ok(Next::Rows(Rows::new(frame))),
            Err(RecvTimeoutError::Timeout) => return Ok(Next::Waiting),
            Ok(Ok(None)) => Ok(Next::End),
            Ok(Err(cause)) => Err(cause),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Worker { what: "the thread that answers queries" }),
        };
        self.ended = true;
        next
    }

    /// An empty stretch with the columns of the answer.
    fn empty(&self) -> Rows {
        Rows::new(DataFrame::empty_with_schema(&self.schema))
    }
}

fn columns_of(schema: &SchemaRef) -> Vec<Column> {
    schema.iter().map(|(name, kind)| Column { name: name.to_string(), kind: kind.to_string() }).collect()
}

/// Calls polars, which panics on some of what it does not know.
fn guarded<T>(call: impl FnOnce() -> PolarsResult<T>) -> Result<T> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
        Ok(done) => done.map_err(|cause| failed(&cause)),
        Err(_panic) => Err(Error::Query { cause: "polars cannot do this".to_owned(), hint: "" }),
    }
}

/// What polars says, as one sentence.
fn failed(cause: &PolarsError) -> Error {
    let hint = match cause {
        PolarsError::ColumnNotFound(_) | PolarsError::SchemaFieldNotFound(_) => {
            "\nhint: `polariscope query RUN` lists the columns of every table"
        }
        PolarsError::IO { .. } => "\nhint: `polariscope verify` tells which files are whole",
        _ => "",
    };
    let text = cause.to_string();
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Error::Query { cause: first.trim_end_matches('.').to_owned(), hint }
}
