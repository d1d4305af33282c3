//! May this be asked? One `SELECT` over tables that the run has; nothing that reads or writes anything else.

use std::collections::HashSet;
use std::ops::ControlFlow;

use sqlparser::ast::{Query, Statement, TableFactor, Visit, Visitor};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::{Parser, ParserError, ParserOptions};

use super::subscripts;
use crate::error::{Error, Result};
use crate::hook_point::edit_distance;

/// Names that are listed in a hint at most.
const NEAREST: usize = 3;

/// A query that may be asked.
pub(super) struct Question {
    /// As polars understands it.
    pub(super) sql: String,
    /// The names of tables in it.
    pub(super) tables: Vec<String>,
}

/// Reads a query over tables with these names, of which some have vectors.
pub(super) fn question(sql: &str, tables: &[&str], vectors: &[&str]) -> Result<Question> {
    // As polars reads it, so that what is looked at here is what is done there.
    let options = ParserOptions { trailing_commas: true, ..ParserOptions::default() };
    let statements = Parser::new(&GenericDialect).with_options(options).try_with_sql(sql);
    let mut statements =
        statements.and_then(|mut parser| parser.parse_statements()).map_err(|cause| unreadable(&cause))?;
    let [Statement::Query(query)] = statements.as_mut_slice() else {
        return Err(Error::NotAQuestion);
    };
    let mut named = Named::default();
    // It never breaks off.
    let _ = Visit::visit(query.as_ref(), &mut named);
    if let Some(what) = named.foreign {
        return Err(Error::NotATable { what });
    }
    let unknown = |name: &&String| !tables.contains(&name.as_str()) && !named.within.contains(*name);
    match named.tables.iter().find(unknown) {
        None => {
            subscripts::rewrite(query, vectors);
            Ok(Question { sql: query.to_string(), tables: named.tables })
        }
        Some(name) => Err(Error::NoSuchTable { name: name.clone(), nearest: nearest(name, tables) }),
    }
}

/// The tables that a query names.
#[derive(Default)]
struct Named {
    tables: Vec<String>,
    /// Names that the query gives to queries within it.
    within: HashSet<String>,
    /// The first thing that is asked as a table and is none.
    foreign: Option<String>,
}

impl Visitor for Named {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let with = query.with.iter().flat_map(|with| &with.cte_tables);
        self.within.extend(with.map(|within| within.alias.name.value.clone()));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, args: None, .. } => {
                let parts =
                    name.0.iter().map(|part| part.as_ident().map_or_else(String::new, |part| part.value.clone()));
                self.tables.push(parts.collect::<Vec<_>>().join("."));
            }
            TableFactor::Derived { .. } | TableFactor::NestedJoin { .. } | TableFactor::UNNEST { .. } => {}
            other => self.foreign = self.foreign.take().or_else(|| Some(other.to_string())),
        }
        ControlFlow::Continue(())
    }
}

fn unreadable(cause: &ParserError) -> Error {
    let cause = match cause {
        ParserError::TokenizerError(cause) | ParserError::ParserError(cause) => {
            cause.replace(" at Line: ", " at line ")
        }
        ParserError::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
    };
    Error::NotSql { cause: cause.replace(", Column: ", ", column ") }
}

/// The names that are most like this one: those that contain it, then those of the least edit distance.
fn nearest(name: &str, tables: &[&str]) -> Vec<String> {
    let plain: String = name.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    let mut names: Vec<&str> = tables.to_vec();
    names.sort_by_key(|known| (!known.contains(plain.as_str()), edit_distance(&plain, known)));
    names.into_iter().take(NEAREST).map(str::to_owned).collect()
}
