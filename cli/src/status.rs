//! `polariscope status`: how far is a run, and which of its workers are missing?

use anyhow::Result;
use clap::Args;
use data::shard::workers::{self, WorkerState, WorkerStatus};
use serde_json::json;

use crate::location::Location;
use crate::{invocation, output};

/// Shards of a run that are named one by one.
const NAMED: usize = 8;

/// Tells which workers and shards of a run are complete, in progress or missing
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  polariscope status runs/books")]
pub(crate) struct Status {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self) -> Result<()> {
        let status = workers::status(self.run.place()?)?;
        if self.json {
            let workers: Vec<_> = status.workers.iter().map(in_json).collect();
            return output::json(&json!({
                "run": self.run.to_string(), "complete": status.complete, "shards": status.shards,
                "shards_expected": status.planned.as_ref().map(|planned| planned.shards),
                "documents": status.counts.documents,
                "documents_expected": status.planned.as_ref().map(|planned| planned.documents),
                "tokens": status.counts.tokens_captured, "skipped": status.counts.tokens_skipped,
                "tokens_expected": status.planned.as_ref().map(|planned| planned.tokens_expected),
                "workers": workers,
            }));
        }
        let tokens = output::count(status.counts.tokens_captured);
        let of = |expected: Option<u64>| expected.map(|n| format!(" of {}", output::count(n))).unwrap_or_default();
        let expected_tokens = of(status.planned.as_ref().map(|planned| planned.tokens_expected));
        let expected_shards = of(status.planned.as_ref().map(|planned| planned.shards as u64));
        let state = if status.complete { "complete" } else { "not complete" };
        output::text(&format!(
            "{state}: {}{expected_shards} shards, {tokens}{expected_tokens} tokens in `{}`",
            status.shards, self.run
        ))?;
        if !status.workers.is_empty() {
            output::text(&table(&status.workers))?;
        }
        for worker in status.workers.iter().filter(|worker| worker.state != WorkerState::Complete) {
            if worker.state != WorkerState::Running {
                output::text(&format!("missing {}: {}", worker.worker, command(worker, &status.workers)))?;
            }
        }
        if !status.workers.is_empty() && status.workers.iter().all(|worker| worker.state == WorkerState::Complete) {
            output::text(&format!("every worker is done: polariscope merge {}", self.run))?;
        }
        Ok(())
    }
}

/// The command that makes a worker's share: its own, or that of another with this worker's number.
pub(crate) fn command(worker: &WorkerStatus, all: &[WorkerStatus]) -> String {
    let known = std::iter::once(worker).chain(all).find(|worker| !worker.command.is_empty());
    known.map_or_else(String::new, |known| invocation::of_worker(&known.command, worker.worker))
}

fn table(workers: &[WorkerStatus]) -> String {
    let head = ["worker", "state", "shards", "tokens", "tokens/s", "missing shards"].map(str::to_owned).to_vec();
    let rows = workers.iter().map(|worker| {
        let expected = worker.missing.as_ref().map(|missing| format!("/{}", missing.len() + worker.shards.len()));
        vec![
            worker.worker.to_string(),
            words(worker.state).to_owned(),
            format!("{}{}", worker.shards.len(), expected.unwrap_or_default()),
            output::count(worker.tokens),
            worker.rate.map_or_else(String::new, |rate| output::count(rate.round() as u64)),
            worker.missing.as_deref().map_or_else(|| "not known yet".to_owned(), some_of),
        ]
    });
    output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), &[2, 3, 4])
}

fn some_of(missing: &[usize]) -> String {
    let named = missing.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(" ");
    if missing.len() > NAMED { format!("{named} and {} more", missing.len() - NAMED) } else { named }
}

const fn words(state: WorkerState) -> &'static str {
    match state {
        WorkerState::NotStarted => "not started",
        WorkerState::Running => "in progress",
        WorkerState::Begun => "begun",
        WorkerState::Stopped => "stopped",
        WorkerState::Complete => "complete",
    }
}

fn in_json(worker: &WorkerStatus) -> serde_json::Value {
    json!({
        "worker": worker.worker.index(), "workers": worker.worker.count(), "state": worker.state,
        "shards": worker.shards, "missing_shards": worker.missing, "tokens": worker.tokens,
        "tokens_per_second": worker.rate,
    })
}
