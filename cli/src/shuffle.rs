//! `polariscope shuffle`: the rows of a run in a random order, as a run of its own.

use anyhow::Result;
use clap::Args;
use data::manifest::Manifest;
use data::shuffle::{DEFAULT_MEMORY, Shuffle as Plan, ShuffleOptions};
use serde_json::json;

use crate::bytes::Bytes;
use crate::failure::unless_interrupted;
use crate::invocation::Invocation;
use crate::location::Location;
use crate::{interrupt, output, progress, record};

/// Writes the rows of a run in a random order, as a run from which training reads as fast as the disk gives
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  polariscope shuffle runs/news --out runs/news-shuffled\n  \
                        polariscope shuffle runs/news --hook-points 'blocks.9-11.hook_resid_post' --skip-special --memory 4GB \
                        --out /scratch/news-9")]
pub(crate) struct Shuffle {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// The run to write: a folder, or its URL
    #[arg(long, value_name = "RUN")]
    out: Location,

    /// The hook points to take along, as for `record`; rows stay aligned [default: all]
    #[arg(long, value_name = "LIST")]
    hook_points: Option<String>,

    /// Of the order: the same seed gives the same order, whatever the memory is
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Memory for rows, in bytes or as `512MB` or `4GB`; the less, the more shards
    #[arg(long, value_name = "BYTES", default_value_t = Bytes(DEFAULT_MEMORY as u64))]
    memory: Bytes,

    /// Leave the rows of special tokens out
    #[arg(long)]
    skip_special: bool,

    /// Go on with a shuffle that was interrupted, exactly as if it had not been
    #[arg(long)]
    resume: bool,

    /// Print the finished manifest's summary as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Shuffle {
    pub(crate) fn run(self, invocation: &Invocation) -> Result<()> {
        interrupt::watch();
        let run = self.run.run()?;
        let hook_points = match &self.hook_points {
            Some(list) => data::export::recorded(&run, list)?,
            None => Vec::new(),
        };
        let options = ShuffleOptions {
            hook_points,
            seed: self.seed,
            memory: self.memory.in_memory(),
            skip_special: self.skip_special,
        };
        let plan = Plan::plan(&run, options)?;
        let cost = plan.cost();
        let points = match plan.hook_points() {
            [one] => format!("`{}`", one.name),
            more => format!("{} hook points", more.len()),
        };
        output::note(&format!(
            "shuffling {points} of {} tokens: {} in {} shards, {} on disk while it runs",
            output::count(cost.rows),
            output::size(cost.bytes),
            cost.buckets,
            output::size(cost.peak_bytes)
        ));
        let bar = progress::bytes(0, "shuffling");
        let mut begun = false;
        let written = plan.write(self.out.place()?, invocation.provenance(), self.resume, &mut |at| {
            bar.set_length(at.bytes_total);
            bar.set_position(at.bytes_done);
            if !std::mem::replace(&mut begun, true) {
                // What was done before a resume says nothing about the rate.
                bar.reset_eta();
            }
            interrupt::flow()
        });
        bar.finish_and_clear();
        let manifest = unless_interrupted(written, Some(invocation.resumed()))?;
        if self.json { output::json(&value(&manifest, &self.out)) } else { output::text(&words(&manifest, &self.out)) }
    }
}

fn value(manifest: &Manifest, out: &Location) -> serde_json::Value {
    json!({
        "run": out.to_string(), "shuffled": manifest.shuffled, "tokens": manifest.counts.tokens_captured,
        "skipped": manifest.counts.tokens_skipped, "hook_points": manifest.hook_points.len(),
        "shards": manifest.shards.len(), "bytes": record::bytes(manifest),
    })
}

fn words(manifest: &Manifest, out: &Location) -> String {
    format!(
        "shuffled {} tokens at {} hook points: {} in `{}`",
        output::count(manifest.counts.tokens_captured),
        manifest.hook_points.len(),
        output::size(record::bytes(manifest)),
        out
    )
}
