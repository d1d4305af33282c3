//! Asks which features go together with kinds of tokens: `cargo run -p scope --example join [DIR]`.

#![expect(clippy::print_stdout, reason = "an example says what it does")]

#[expect(dead_code, reason = "an example has a `main` of its own")]
#[path = "encode.rs"]
mod encode;

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use data::join::{self, JoinOptions, JoinRow};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map_or_else(|| "target/examples".into(), PathBuf::from);
    for row in join(&dir)?.iter().take(10) {
        println!(
            "feature {} and {}: {:.4} bits, {:.1} times as often",
            row.feature, row.label, row.mutual_information, row.lift
        );
    }
    Ok(())
}

/// What tells more than it tells of shuffled labels, most first.
pub(crate) fn join(dir: &Path) -> Result<Vec<JoinRow>, Box<dyn Error>> {
    let table = encode::encode(dir)?;
    let options = JoinOptions {
        with: "token-class".parse()?,
        layers: Vec::new(),
        top: 5,
        min_count: 10,
        special: false,
        seed: 0,
        memory: join::MEMORY,
    };
    let report = join::join(&table, &options, &mut |_| ControlFlow::Continue(()))?;
    let mut rows = report.rows;
    rows.retain(|row| row.mutual_information > row.threshold);
    rows.sort_by(|a, b| b.mutual_information.total_cmp(&a.mutual_information));
    Ok(rows)
}
