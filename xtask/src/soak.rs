//! Is nothing lost in the long run? Kills every command many times, and lets the disk fail below it.

use std::process::Command;

use anyhow::Result;

use crate::{libtorch, place, process};

/// Builds the program and what disturbs it; `args` go to `tests/examples/soak.rs`.
pub(crate) fn soak(args: &[String]) -> Result<()> {
    libtorch::ensure()?;
    let targets = ["--bin", "polariscope", "--example", "faults", "--example", "soak"];
    process::run(process::cargo().args(["build", "--workspace"]).args(targets))?;
    let mut soak = Command::new(place::target().join("debug/examples/soak"));
    process::with_libraries(&mut soak);
    process::run(soak.arg("--out").arg(place::target().join("soak")).args(args))
}
