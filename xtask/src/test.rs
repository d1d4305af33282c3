//! Does everything work? Sets up, brings the real model where it can, runs every test of the workspace.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{libtorch, place, process, python};

/// Extra arguments go to `cargo test --workspace`.
pub(crate) fn test(args: &[String]) -> Result<()> {
    libtorch::ensure()?;
    process::run(process::cargo().args(["test", "--workspace", "--no-run"]))?;
    fetch()?;
    for (packages, name) in [
        (python::READERS, "the Python readers"),
        (python::MOTO, "moto, an S3 server,"),
        (python::HUB, "the client of the Hugging Face hub"),
    ] {
        if let Err(err) = packages.ensure() {
            eprintln!("{err:#}\ntest: {name} could not be brought; the tests that need it are left out");
        }
    }
    process::run(process::cargo().args(["test", "--workspace"]).args(args))?;
    eprintln!("test: all passed");
    Ok(())
}

/// The real model and its text, into the cache. Without them the tests that need them say so and pass.
fn fetch() -> Result<()> {
    let mut fetch = Command::new(program("polariscope")?);
    process::with_libraries(&mut fetch);
    fetch.args(["fetch", "gemma-3-270m", "lee-background"]);
    process::impatient(&mut fetch);
    if let Err(err) = process::run(&mut fetch) {
        eprintln!("{err:#}\ntest: the real Gemma could not be brought; the tests that need it are left out");
    }
    Ok(())
}

/// A program of the workspace, built if need be. `--workspace` so that dependencies keep the features, and thereby
/// the build, that the tests have.
pub(crate) fn program(name: &str) -> Result<std::path::PathBuf> {
    process::run(process::cargo().args(["build", "--workspace", "--bin", name]))?;
    let path = place::target().join("debug").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    path.canonicalize().with_context(|| format!("no program `{}` after building it", path.display()))
}
