//! How is a result printed: for a person, or as JSON for a program?

use std::io::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

/// Prints text to standard output; a closed pipe is an error that ends the program quietly.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Prints text as it is and at once, for words that arrive one by one.
pub(crate) fn piece(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints one JSON object on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    text(&serde_json::to_string(value)?)
}

/// A word about what is going on, to standard error.
#[expect(clippy::print_stderr, reason = "the one place where progress and notes are printed")]
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Bytes for a person: `253 MB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A number with a comma for every three digits: `262,144`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Rows with columns that line up: text to the left, numbers (all columns named in `right`) to the right.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            let cell = if right.contains(&column) { pad + cell } else { format!("{cell}{pad}") };
            line.push_str(&cell);
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_or_three_digits() {
        for (bytes, expected) in
            [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (253_113_024, "253 MB"), (999_600_000, "1.0 GB")]
        {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn thousands_are_parted() {
        for (n, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (262_144, "262,144"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), expected);
        }
    }

    #[test]
    fn numbers_stand_to_the_right() {
        let rows = [["a", "1"], ["bcd", "23"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(table(&rows, &[1]), "a     1\nbcd  23\n");
    }
}
