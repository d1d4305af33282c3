//! `polariscope merge`: is every worker's share there, so that the run is whole?

use anyhow::{Result, bail};
use clap::Args;
use data::shard::workers::{self, WorkerState};

use crate::location::Location;
use crate::{record, status};

/// Completes a run that several workers have recorded
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  polariscope merge runs/books")]
pub(crate) struct Merge {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// Print the finished manifest's summary as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Merge {
    pub(crate) fn run(self) -> Result<()> {
        let place = self.run.place()?;
        let all = workers::status(&place)?.workers;
        let missing: Vec<_> = all.iter().filter(|worker| worker.state != WorkerState::Complete).collect();
        if !missing.is_empty() {
            let names: Vec<String> = missing.iter().map(|worker| worker.worker.index().to_string()).collect();
            let running = missing.iter().filter(|worker| worker.state == WorkerState::Running);
            let running: Vec<String> = running.map(|worker| worker.worker.index().to_string()).collect();
            let absent = missing.iter().filter(|worker| worker.state != WorkerState::Running);
            let mut hints: Vec<String> =
                absent.map(|worker| format!("\nhint: {}", status::command(worker, &all))).collect();
            if !running.is_empty() {
                hints.push(format!(
                    "\nhint: wait for {}, which can be seen with `polariscope status`",
                    running.join(", ")
                ));
            }
            bail!(
                "expected {} workers to be done, missing {} in `{}`{}",
                all.len(),
                names.join(", "),
                self.run,
                hints.concat()
            );
        }
        let manifest = workers::merge(&place)?;
        record::summary(place.shown(), &manifest, self.json)
    }
}
