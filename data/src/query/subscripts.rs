//! How does a question about a few numbers of vectors get by without the vectors?
//!
//! A join holds one of its sides in memory, and polars does not know that of a vector only one number is wanted behind it.
//! So `SELECT token, a.act[3] FROM blocks_1_hook_resid_post a JOIN tokens USING (token_idx)` is asked as if the first table had
//! that number in place of the vector.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{
    AccessExpr, Expr, Ident, Query, SelectItem, SetExpr, Statement, Subscript, TableAlias, TableFactor, Value, Visit,
    VisitMut, Visitor, VisitorMut,
};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;

use super::catalog::ACT as COLUMN;

/// Writes `a.act[1]` so that polars understands it, and takes such numbers out of the tables in `vectors` before they are
/// joined.
pub(super) fn rewrite(query: &mut Query, vectors: &[&str]) {
    // Neither ever breaks off.
    let _ = VisitMut::visit(query, &mut Parentheses);
    numbers_before_joins(query, vectors);
}

/// Writes `a.act[1]` as `(a.act)[1]`, which polars understands.
struct Parentheses;

impl VisitorMut for Parentheses {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::CompoundFieldAccess { root, access_chain } = expr
            && let Expr::Identifier(table) = root.as_ref()
            && let [AccessExpr::Dot(Expr::Identifier(column)), AccessExpr::Subscript(_)] = access_chain.as_slice()
        {
            let column = Expr::CompoundIdentifier(vec![table.clone(), column.clone()]);
            **root = Expr::Nested(Box::new(column));
            access_chain.remove(0);
        }
        ControlFlow::Continue(())
    }
}

/// Only where it is plain what is meant: no query within the query, one table of vectors, and of those nothing but numbers.
fn numbers_before_joins(query: &mut Query, vectors: &[&str]) {
    let SetExpr::Select(select) = query.body.as_ref() else { return };
    let joined = select.from.len() > 1 || select.from.iter().any(|from| !from.joins.is_empty());
    let wildcard = select
        .projection
        .iter()
        .any(|item| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
    let mut uses = Uses::default();
    let _ = Visit::visit(&*query, &mut uses);
    let [table] = uses.vectors(vectors)[..] else { return };
    if !joined
        || wildcard
        || uses.queries != 1
        || uses.numbers.is_empty()
        || uses.columns != uses.subscripted
        || uses.scales
    {
        return;
    }
    let table = table.to_owned();
    let number = |n: u64| if uses.numbers.len() == 1 { COLUMN.to_owned() } else { format!("{COLUMN}_{n}") };
    let columns: Vec<String> = uses.numbers.iter().map(|&n| format!("{COLUMN}[{n}] AS {}", number(n))).collect();
    let numbers = format!("SELECT token_idx, {} FROM {table}", columns.join(", "));
    let numbers = Parser::parse_sql(&GenericDialect, &numbers).ok().and_then(|mut statements| statements.pop());
    if let Some(Statement::Query(numbers)) = numbers {
        let _ = VisitMut::visit(query, &mut Replace { table, numbers, number: &number });
    }
}

/// What a query names.
#[derive(Default)]
struct Uses {
    /// Itself and those within it.
    queries: usize,
    tables: Vec<String>,
    /// How often [`COLUMN`] is named, and how often as one of its numbers.
    columns: usize,
    subscripted: usize,
    /// Whether the scales of rows are named.
    scales: bool,
    numbers: BTreeSet<u64>,
}

impl Uses {
    /// Those of its tables that have vectors.
    fn vectors(&self, vectors: &[&str]) -> Vec<&str> {
        self.tables.iter().map(String::as_str).filter(|table| vectors.contains(table)).collect()
    }
}

impl Visitor for Uses {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.queries += 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        self.tables.push(match factor {
            TableFactor::Table { name, .. } => name.to_string(),
            _ => String::new(),
        });
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if is_column(expr, COLUMN) {
            self.columns += 1;
        } else if is_column(expr, "scale") {
            self.scales = true;
        } else if let Some((_, n)) = as_number(expr) {
            self.subscripted += 1;
            self.numbers.insert(n);
        }
        ControlFlow::Continue(())
    }
}

struct Replace<'a> {
    table: String,
    numbers: Box<Query>,
    number: &'a dyn Fn(u64) -> String,
}

impl VisitorMut for Replace<'_> {
    type Break = ();

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, alias, .. } = factor
            && name.to_string() == self.table
        {
            let own = || TableAlias { explicit: true, name: Ident::new(&self.table), columns: Vec::new(), at: None };
            let alias = Some(alias.take().unwrap_or_else(own));
            *factor = TableFactor::Derived { lateral: false, subquery: self.numbers.clone(), alias, sample: None };
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let Some((table, n)) = as_number(expr) else { return ControlFlow::Continue(()) };
        let column = Ident::new((self.number)(n));
        *expr = match table {
            Some(table) => Expr::CompoundIdentifier(vec![table, column]),
            None => Expr::Identifier(column),
        };
        ControlFlow::Continue(())
    }
}

fn is_column(expr: &Expr, name: &str) -> bool {
    match expr {
        Expr::Identifier(column) => column.value == name,
        Expr::CompoundIdentifier(parts) => parts.last().is_some_and(|column| column.value == name),
        _ => false,
    }
}

/// `act[3]` or `(a.act)[3]`: the table, if it is named, and which number.
fn as_number(expr: &Expr) -> Option<(Option<Ident>, u64)> {
    let Expr::CompoundFieldAccess { root, access_chain } = expr else { return None };
    let [AccessExpr::Subscript(Subscript::Index { index: Expr::Value(index) })] = access_chain.as_slice() else {
        return None;
    };
    let Value::Number(n, _) = &index.value else { return None };
    let column = if let Expr::Nested(inner) = root.as_ref() { inner.as_ref() } else { root.as_ref() };
    let table = match column {
        column if !is_column(column, COLUMN) => return None,
        Expr::CompoundIdentifier(parts) if parts.len() == 2 => Some(parts[0].clone()),
        Expr::Identifier(_) => None,
        _ => return None,
    };
    Some((table, n.parse().ok()?))
}
