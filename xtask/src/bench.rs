//! How fast is it, measured against what this machine allows?
//!
//! A bench is an example named `bench_*` of `data`, `engine`, `scope` or `tests`. It gets the cache folder as its first
//! argument and prints one JSON object a line: `bench`, `measured`, `unit`; `limit` and `limit_is` where there is a
//! limit that was measured in the same run; `at_least` or `at_most` as the target for the share of the limit, or for
//! the measured value where there is no limit; or `skipped` with the reason.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use fs_err as fs;
use serde::Deserialize;

use crate::{libtorch, place, process};

const CRATES: [&str; 4] = ["data", "engine", "scope", "tests"];

#[derive(Debug, Deserialize)]
struct Figure {
    bench: String,
    #[serde(default)]
    measured: f64,
    #[serde(default)]
    unit: String,
    limit: Option<f64>,
    limit_is: Option<String>,
    at_least: Option<f64>,
    at_most: Option<f64>,
    skipped: Option<String>,
}

impl Figure {
    /// Share of the limit, or the measured value where there is none.
    fn score(&self) -> f64 {
        self.limit.map_or(self.measured, |limit| self.measured / limit)
    }

    /// Whether the target is met; none where there is no target.
    fn is_met(&self) -> Option<bool> {
        match (self.at_least, self.at_most) {
            (Some(bound), _) => Some(self.score() >= bound),
            (None, Some(bound)) => Some(self.score() <= bound),
            (None, None) => None,
        }
    }

    fn row(&self) -> [String; 6] {
        if let Some(reason) = &self.skipped {
            return [
                self.bench.clone(),
                "left out".into(),
                String::new(),
                String::new(),
                String::new(),
                reason.clone(),
            ];
        }
        let limit = self.limit.map_or(String::new(), |limit| format!("{} {}", short(limit), self.unit));
        let share = self.limit.map_or(String::new(), |_| format!("{:.2}", self.score()));
        let target = match (self.at_least, self.at_most) {
            (Some(bound), _) => format!(">= {bound}"),
            (None, Some(bound)) => format!("<= {bound}"),
            (None, None) => String::new(),
        };
        let verdict = match self.is_met() {
            Some(true) => format!("{target} met"),
            Some(false) => format!("{target} MISSED"),
            None => target,
        };
        let limit_is = self.limit_is.clone().unwrap_or_default();
        [self.bench.clone(), format!("{} {}", short(self.measured), self.unit), limit, share, verdict, limit_is]
    }
}

/// Runs the benches whose name contains `filter` and prints the table.
pub(crate) fn bench(filter: Option<&str>) -> Result<()> {
    libtorch::ensure()?;
    let names = names()?;
    let names: Vec<&String> = names.iter().filter(|n| filter.is_none_or(|f| n.contains(f))).collect();
    if names.is_empty() {
        bail!("no bench has a name with `{}`", filter.unwrap_or("bench_"));
    }
    process::run(process::cargo().args(["build", "--workspace", "--examples"]))?;
    let mut rows = vec![["bench", "measured", "limit", "share", "target", "the limit is"].map(String::from)];
    for name in names {
        let figures = run(name)?;
        rows.extend(figures.iter().map(Figure::row));
    }
    print!("{}", table(&rows));
    Ok(())
}

/// Names of the examples, by file.
fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in CRATES {
        let folder = place::root().join(name).join("examples");
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(folder)? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            names.extend(file.strip_suffix(".rs").filter(|stem| stem.starts_with("bench_")).map(String::from));
        }
    }
    names.sort();
    Ok(names)
}

fn run(name: &str) -> Result<Vec<Figure>> {
    let mut command = Command::new(place::target().join("debug/examples").join(name));
    process::with_libraries(&mut command);
    command.current_dir(place::root()).arg(place::cache()?).stderr(Stdio::inherit());
    eprintln!("$ {name}");
    let output = command.output().with_context(|| format!("could not start `{name}`"))?;
    if !output.status.success() {
        bail!("`{name}` failed ({})", output.status);
    }
    figures(&String::from_utf8_lossy(&output.stdout)).with_context(|| format!("what `{name}` printed"))
}

fn figures(text: &str) -> Result<Vec<Figure>> {
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("not a figure: `{line}`"))).collect()
}

/// Three significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn table(rows: &[[String; 6]]) -> String {
    let mut widths = [0; 6];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_judged_by_share_or_value() {
        let text = "note\n\
            {\"bench\":\"a\",\"measured\":9.0,\"unit\":\"GB/s\",\"limit\":10.0,\"at_least\":0.8}\n\
            {\"bench\":\"b\",\"measured\":3.5,\"unit\":\"GB\",\"at_most\":3.0}\n\
            {\"bench\":\"c\",\"skipped\":\"no model\"}\n";
        let figures = figures(text).unwrap();
        let met: Vec<_> = figures.iter().map(Figure::is_met).collect();
        assert_eq!(met, [Some(true), Some(false), None]);
        assert_eq!(figures[0].row()[4], ">= 0.8 met");
        assert_eq!(figures[1].row()[4], "<= 3 MISSED");
        assert_eq!(figures[2].row()[5], "no model");
    }

    #[test]
    fn columns_line_up() {
        let row = |a: &str, b: &str| [a, b, "", "", "", ""].map(String::from);
        assert_eq!(table(&[row("a", "b"), row("ccc", "d")]), "a    b\nccc  d\n");
    }
}
