//! `polariscope query`: SQL over the tables of a run.

use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use data::Run;
use data::files::NewFile;
use data::query::{self, Answer, Next, RowWriter, Rows, Value};
use serde_json::json;

use crate::failure::Interrupted;
use crate::location::Location;
use crate::{interrupt, output};

/// Rows of a table on the screen, unless `--limit` says otherwise.
const SHOWN: usize = 1000;

/// Characters of a cell on the screen.
const CELL: usize = 60;

/// How often Ctrl-C is looked for.
const PATIENCE: Duration = Duration::from_millis(100);

/// Answers SQL over the tables of a run; lists the tables when there is no SQL
///
/// Tables: `tokens`, `documents`, `vocab`, one for each hook point (`blocks_9_hook_resid_post`), `routing_3` for a layer
/// that chooses experts, `features_<coder>_acts`, `_by_feature`, `_stats`, `_examples`, and `metrics_<coder>`; what is no
/// letter or digit in a name is `_`. Nearly all of them join by `token_idx`.
///
/// `act` is a list of numbers whatever the dtype on disk, and is read only where it is named: `act[1]` is the first
/// number, `ARRAY_SUM(act)` their sum. A run that is still recorded shows the shards that were durable at the start.
///
/// Rows are streamed. What a sort without LIMIT, the smaller side of a join, and the groups of GROUP BY hold is in memory.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    polariscope query runs/news\n  \
    polariscope query runs/news \"SELECT token, count(*) AS n FROM tokens GROUP BY token ORDER BY n DESC LIMIT 10\"\n  \
    polariscope query runs/news \"SELECT token, act[18] AS x FROM blocks_9_hook_resid_post JOIN tokens USING (token_idx) \
    ORDER BY x DESC LIMIT 10\" --format csv")]
pub(crate) struct Query {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// One SELECT (or WITH … SELECT)
    sql: Option<String>,

    /// List the tables with their columns
    #[arg(long, conflicts_with_all = ["sql", "format", "out", "limit"])]
    tables: bool,

    /// `table` (long cells are shortened), `csv`, `json` (an object a line) or `parquet`
    #[arg(long, value_name = "FORMAT", default_value = "table", default_value_if("json", "true", "json"))]
    format: Shape,

    /// Write a file instead of standard output; it must not exist
    #[arg(long, value_name = "FILE", requires = "sql")]
    out: Option<PathBuf>,

    /// At most so many rows; what is left out is said on standard error [default: 1000 as a table, all otherwise]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// The same as `--format json`; of the tables, one object a line
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// What `--format` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Table,
    Rows(query::Format),
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            other => {
                other.parse().map(Self::Rows).map_err(|_unknown| "expected table, csv, json or parquet".to_owned())
            }
        }
    }
}

impl Query {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        let run = self.run.run()?;
        let Some(sql) = self.sql.as_deref().filter(|_| !self.tables) else {
            return tables(&run, self.json);
        };
        let mut rows = Limited { answer: query::ask(&run, sql)?, left: self.limit, cut: false };
        match (self.format, &self.out) {
            (Shape::Table, out) => {
                rows.left.get_or_insert(SHOWN);
                let text = table(&mut rows)?;
                match out {
                    None => output::text(&text)?,
                    Some(path) => {
                        let mut file = NewFile::create(path)?;
                        file.write_all(text.as_bytes())?;
                        file.publish()?;
                    }
                }
            }
            (Shape::Rows(format), None) => {
                let writer = RowWriter::new(format, io::BufWriter::new(io::stdout().lock()), &rows.answer)?;
                write(&mut rows, writer)?;
            }
            (Shape::Rows(format), Some(path)) => {
                let mut file = NewFile::create(path)?;
                let writer = RowWriter::new(format, &mut file, &rows.answer)?;
                write(&mut rows, writer)?;
                file.publish()?;
            }
        }
        if rows.cut {
            let shown = output::count(self.limit.unwrap_or(SHOWN) as u64);
            output::note(&format!(
                "note: these are the first {shown} rows; there are more\nhint: a larger `--limit`, or `--format csv`"
            ));
        }
        Ok(())
    }
}

/// The rows of an answer up to a limit.
struct Limited {
    answer: Answer,
    /// `None` for all.
    left: Option<usize>,
    /// Whether rows were left out.
    cut: bool,
}

impl Limited {
    /// The next rows; `None` at the end.
    fn next(&mut self) -> Result<Option<Rows>> {
        loop {
            if interrupt::pressed() {
                return Err(Interrupted { resume: None }.into());
            }
            match self.answer.next_within(PATIENCE)? {
                Next::Waiting => {}
                Next::End => return Ok(None),
                Next::Rows(mut rows) => {
                    let left = self.left.unwrap_or(usize::MAX);
                    self.cut = rows.len() > left;
                    rows.truncate(left);
                    self.left = self.left.map(|left| left - rows.len());
                    // One row more than the limit tells that there are more.
                    return Ok((!rows.is_empty() || !self.cut).then_some(rows));
                }
            }
        }
    }
}

fn write<W: Write>(rows: &mut Limited, mut writer: RowWriter<W>) -> Result<()> {
    while let Some(some) = rows.next()? {
        writer.write(&some)?;
        if rows.cut {
            break;
        }
    }
    Ok(writer.finish()?)
}

fn tables(run: &Run, json: bool) -> Result<()> {
    let tables = query::tables(run)?;
    if json {
        for table in tables {
            let columns: Vec<_> =
                table.columns.iter().map(|column| json!({ "name": column.name, "type": column.kind })).collect();
            output::json(
                &json!({ "table": table.name, "about": table.about, "rows": table.n_rows, "columns": columns }),
            )?;
        }
        return Ok(());
    }
    let mut rows = vec![["table", "rows", "a row is", "columns"].map(String::from).to_vec()];
    for table in tables {
        let columns: Vec<String> =
            table.columns.iter().map(|column| format!("{} {}", column.name, column.kind)).collect();
        rows.push(vec![table.name, output::count(table.n_rows), table.about, columns.join(", ")]);
    }
    output::text(&output::table(&rows, &[1]))?;
    if !run.manifest().complete {
        output::note("note: the recording is not complete; these are its durable shards");
    }
    Ok(())
}

/// Numbers to the right, the rest to the left.
fn table(rows: &mut Limited) -> Result<String> {
    let columns = rows.answer.columns();
    let number =
        |kind: &str| matches!(kind.as_bytes(), [b'u' | b'i' | b'f', rest @ ..] if rest.iter().all(u8::is_ascii_digit));
    let right: Vec<usize> = (0..columns.len()).filter(|&i| number(&columns[i].kind)).collect();
    let mut lines = vec![columns.into_iter().map(|column| column.name).collect::<Vec<_>>()];
    while let Some(some) = rows.next()? {
        lines.extend(some.cells().map(|cells| cells.iter().map(cell).collect::<Vec<_>>()));
        if rows.cut {
            break;
        }
    }
    Ok(output::table(&lines, &right))
}

/// A cell on one line, without what would move the cursor of a terminal.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::Text(text) => text.clone(),
        Value::F32(x) => x.to_string(),
        Value::F64(x) => x.to_string(),
        other => serde_json::to_string(other).unwrap_or_default(),
    };
    let plain = text.chars().flat_map(|c| {
        let escaped = c.is_control().then(|| c.escape_default());
        escaped.into_iter().flatten().chain((!c.is_control()).then_some(c))
    });
    let mut shown: String = plain.clone().take(CELL).collect();
    if plain.count() > CELL {
        shown.pop();
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stay_on_their_line() {
        assert_eq!(cell(&Value::Text("a\n\u{1b}[2J".into())), "a\\n\\u{1b}[2J");
        assert_eq!(cell(&Value::Null), "");
        assert_eq!(cell(&Value::F32(0.1)), "0.1");
        let long = cell(&Value::List(vec![Value::UInt(1234); 40]));
        assert_eq!(long.chars().count(), CELL);
        assert!(long.starts_with("[1234,1234") && long.ends_with('…'));
    }
}
