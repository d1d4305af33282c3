//! `polariscope verify`: is every file of a run what was written, and can what is not be recorded again?

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum as _};
use data::corpus::Corpus;
use data::verify::{Problem, VerifyReport};
use data::{Run, Shard, verify};
use engine::device::Device;
use engine::record::RecordOptions;
use engine::weights::Weights;
use serde_json::json;

use crate::compute::{Compute, ComputeDtype};
use crate::failure::unless_interrupted;
use crate::invocation::Invocation;
use crate::location::Location;
use crate::record::Job;
use crate::{catalog, interrupt, output, progress};

/// Reads a run directory from end to end and compares checksums, counts and schemas
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  polariscope verify runs/news\n  \
                        polariscope verify runs/news --repair --model gemma-3-270m --corpus news.txt")]
pub(crate) struct Verify {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// Record the broken shards again, and only those
    #[arg(long)]
    repair: bool,

    /// The model that was recorded [default: where it was]
    #[arg(long, value_name = "MODEL", requires = "repair")]
    model: Option<String>,

    /// The corpus that was recorded [default: where it was]
    #[arg(long, num_args = 1.., value_name = "PATH", requires = "repair")]
    corpus: Vec<String>,

    /// Where the model computes when a shard is recorded again: `cpu`, `cuda` or `cuda:1`
    #[arg(long, default_value_t = Device::Cpu, requires = "repair")]
    device: Device,

    /// Threads to compute with when a shard is recorded again; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0, requires = "repair")]
    threads: usize,

    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn run(self, invocation: &Invocation) -> Result<()> {
        interrupt::watch();
        let mut run = self.run.run()?;
        let mut report = check(&run)?;
        let mut repaired = Vec::new();
        let is_whole = run.manifest().complete && !report.problems.iter().any(Problem::is_of_recording);
        if self.repair && !is_whole {
            repaired = self.repair(&run, &report.problems, invocation)?;
            run = self.run.run()?;
            report = check(&run)?;
        }
        if self.json {
            let problems: Vec<_> = report.problems.iter().map(in_json).collect();
            output::json(&json!({
                "files": report.files, "bytes": report.bytes, "problem": problems.first(), "problems": problems,
                "repaired": repaired,
            }))?;
        }
        if let Some((first, others)) = report.problems.split_first() {
            for problem in others {
                output::note(&problem.to_string());
            }
            bail!("{first} of `{}`\nhint: {}", self.run, next_step(first));
        }
        if !self.json {
            if !repaired.is_empty() {
                output::text(&format!("recorded again: shards {repaired:?}"))?;
            }
            let state = if run.manifest().complete { "" } else { "; the recording is not complete" };
            output::text(&format!("{} files, {}: all whole{state}", report.files, output::size(report.bytes)))?;
        }
        Ok(())
    }

    /// Records the broken shards again, and those that an interrupted repair left out. Returns which were broken.
    fn repair(&self, run: &Run, problems: &[Problem], invocation: &Invocation) -> Result<Vec<usize>> {
        let manifest = run.manifest();
        if let Some(problem) = problems.iter().find(|problem| problem.file == "manifest.json") {
            bail!(
                "{problem} of `{}`: nothing else says how the run was begun\nhint: copy the file from where it is whole",
                self.run
            );
        }
        if let Some(shuffled) = &manifest.shuffled {
            bail!(
                "a shuffled run is not recorded again: `{}`\nhint: `polariscope shuffle --resume` of `{}` writes lost files again",
                self.run,
                shuffled.source
            );
        }
        let broken: BTreeSet<usize> = problems.iter().filter_map(|problem| problem.shard).collect();
        let before: Vec<Shard> = run.shards().to_vec();
        let weights = Weights::open(catalog::resolve(self.model.as_deref().unwrap_or(&manifest.model.source))?)?;
        let lines = manifest.corpus.options["lines"].as_bool().unwrap_or(false);
        let names = if self.corpus.is_empty() { &manifest.corpus.sources } else { &self.corpus };
        let compute = Compute {
            dtype: ComputeDtype::from_str(&manifest.model.dtype, true).unwrap_or_default(),
            device: self.device,
            quantize: manifest.model.quantization.as_deref().and_then(|name| name.parse().ok()),
            threads: self.threads,
            ..Compute::default()
        };
        let job = Job {
            id: &manifest.model.id,
            weights,
            corpus: Corpus::open(names, lines)?,
            options: RecordOptions::of_run(manifest),
            out: self.run.place()?,
            resume: true,
            broken: Some(broken.iter().copied().collect()),
        };
        let after = job.run(compute, invocation)?.shards;
        let differ = before.iter().filter(|old| !after.contains(old)).count();
        if differ > 0 {
            output::note(&format!(
                "{differ} shards have other bytes than before: this machine rounds otherwise than the one that recorded them"
            ));
        }
        Ok(broken.into_iter().collect())
    }
}

fn check(run: &Run) -> Result<VerifyReport> {
    let bar = progress::bytes(0, "verifying");
    let report = verify::verify(run, &mut |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
        interrupt::flow()
    });
    bar.finish_and_clear();
    unless_interrupted(report, None)
}

fn in_json(problem: &Problem) -> serde_json::Value {
    json!({
        "file": problem.file, "row_group": problem.row_group, "message": problem.message, "shard": problem.shard,
    })
}

/// What can be done about a file that is not whole.
fn next_step(problem: &Problem) -> &'static str {
    match problem.file.split('/').next() {
        Some("features") => "`polariscope encode` writes the table again",
        Some("saes") => "copy the file from where it is whole, or train the coder again",
        Some("manifest.json") => "copy the file from where it is whole",
        _ => "`--repair` records it again, where the model and the corpus are at hand",
    }
}
