//! `polariscope verify`: is every file of a run what the manifest says?

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use data::{Run, verify};
use serde_json::json;

use crate::failure::Interrupted;
use crate::{interrupt, output, progress};

/// Reads a run directory from end to end and compares checksums, counts and schemas
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  polariscope verify runs/news")]
pub(crate) struct Verify {
    /// The run directory
    run: PathBuf,

    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        let run = Run::open(&self.run)?;
        let bar = progress::bytes(0, "verifying");
        let report = verify::verify(&run, &mut |progress| {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes_done);
            interrupt::flow()
        });
        bar.finish_and_clear();
        let report = match report {
            Err(data::Error::Interrupted) => return Err(Interrupted { resume: None }.into()),
            other => other?,
        };
        if self.json {
            let problem = report.problem.as_ref().map(
                |problem| json!({ "file": problem.file, "row_group": problem.row_group, "message": problem.message }),
            );
            output::json(&json!({ "files": report.files, "bytes": report.bytes, "problem": problem }))?;
        }
        if let Some(problem) = report.problem {
            bail!(
                "{problem} of `{}`\nhint: record it again, or copy the file from where it is whole",
                self.run.display()
            );
        }
        if !self.json {
            let state = if run.manifest().complete { "" } else { "; the recording is not complete" };
            output::text(&format!("{} files, {}: all whole{state}", report.files, output::size(report.bytes)))?;
        }
        Ok(())
    }
}
