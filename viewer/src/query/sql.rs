//! What does a question in SQL give?

use std::time::Duration;

use data::query::{self, Next, Table, Value};

use super::Source;
use crate::loader::{Ask, Cancel, Failure};

/// Rows that are kept; what is left out is said.
const MAX_ROWS: usize = 10_000;
/// Bytes of text that are kept.
const MAX_BYTES: usize = 32 << 20;
/// Characters of a cell.
const CELL: usize = 200;
/// How often it is looked whether the answer is still wanted.
const PATIENCE: Duration = Duration::from_millis(100);

/// Asks which tables the run has.
#[derive(Debug, Clone)]
pub(crate) struct CatalogQuery;

impl Ask for CatalogQuery {
    type Answer = Vec<Table>;
    const NAME: &'static str = "tables";

    fn answer(&self, source: &Source, _: &Cancel) -> Result<Vec<Table>, Failure> {
        Ok(query::tables(&source.run)?)
    }

    fn bytes(answer: &Vec<Table>) -> usize {
        answer.iter().map(|table| 256 + table.columns.len() * 64).sum()
    }
}

/// Asks a question in SQL.
#[derive(Debug, Clone)]
pub(crate) struct SqlQuery {
    pub(crate) sql: String,
}

/// The rows of an answer, as text, with the numbers beside it.
#[derive(Debug, Default)]
pub(crate) struct SqlAnswer {
    pub(crate) columns: Vec<String>,
    /// `[row, column]`
    pub(crate) cells: Vec<String>,
    /// The numbers of each column, where it is one of numbers.
    pub(crate) numbers: Vec<Option<Vec<f64>>>,
    pub(crate) n_rows: usize,
    /// There are more rows than are kept.
    pub(crate) cut: bool,
}

impl SqlAnswer {
    pub(crate) fn row(&self, row: usize) -> &[String] {
        let n = self.columns.len();
        self.cells.get(row * n..(row + 1) * n).unwrap_or_default()
    }
}

impl Ask for SqlQuery {
    type Answer = SqlAnswer;
    const NAME: &'static str = "answer";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<SqlAnswer, Failure> {
        let mut answer = query::ask(&source.run, &self.sql)?;
        let columns = answer.columns();
        let mut out = SqlAnswer {
            columns: columns.iter().map(|column| column.name.clone()).collect(),
            numbers: columns.iter().map(|_| Some(Vec::new())).collect(),
            ..SqlAnswer::default()
        };
        let mut bytes = 0;
        loop {
            cancel.check()?;
            match answer.next_within(PATIENCE)? {
                Next::Waiting => {}
                Next::End => return Ok(out),
                Next::Rows(rows) => {
                    for row in rows.cells() {
                        if out.n_rows == MAX_ROWS || bytes > MAX_BYTES {
                            out.cut = true;
                            return Ok(out);
                        }
                        for (value, numbers) in row.iter().zip(&mut out.numbers) {
                            let text = shown(value);
                            bytes += text.len() + size_of::<String>();
                            out.cells.push(text);
                            match (numbers.as_mut(), number(value)) {
                                (Some(numbers), Some(number)) => numbers.push(number),
                                _ => *numbers = None,
                            }
                        }
                        out.n_rows += 1;
                    }
                }
            }
        }
    }

    fn bytes(answer: &SqlAnswer) -> usize {
        answer.cells.iter().map(|cell| cell.len() + size_of::<String>()).sum::<usize>() + answer.n_rows * 8
    }
}

/// A null is no number, but does not make a column one of text.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Int(n) => Some(*n as f64),
        Value::UInt(n) => Some(*n as f64),
        Value::F32(x) => Some(f64::from(*x)),
        Value::F64(x) => Some(*x),
        Value::Null => Some(f64::NAN),
        Value::Bool(_) | Value::Text(_) | Value::Bytes(_) | Value::List(_) | Value::Struct(_) => None,
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::Bool(value) => value.to_string(),
        Value::Int(n) => n.to_string(),
        Value::UInt(n) => n.to_string(),
        Value::F32(x) => crate::widget::number(f64::from(*x)),
        Value::F64(x) => crate::widget::number(*x),
        Value::Text(text) => crate::widget::plain(text),
        other => serde_json::to_string(other).unwrap_or_default(),
    };
    match text.char_indices().nth(CELL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_one_short_line() {
        assert_eq!(shown(&Value::Null), "");
        assert_eq!(shown(&Value::Text(" a\nb".into())), "·a↵b");
        assert_eq!(shown(&Value::F64(1.0 / 3.0)), "0.33");
        assert_eq!(shown(&Value::Text("é".repeat(500))).chars().count(), CELL + 1);
        assert_eq!(shown(&Value::List(vec![Value::UInt(1), Value::Null])), "[1,null]");
        assert!(number(&Value::Null).is_some_and(f64::is_nan));
        assert_eq!(number(&Value::Text("1".into())), None);
    }
}
