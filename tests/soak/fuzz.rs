//! Does a reader survive what libFuzzer finds, for minutes instead of a moment?

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fs_err as fs;
use serde::Serialize;

/// Megabytes that a reader may take, libtorch and the fuzzer included.
const MEMORY_MB: u32 = 2048;
/// Seconds after which an input counts as one that hangs; long, for machines that do much else.
const PATIENCE: u32 = 120;

/// What libFuzzer says of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FuzzReport {
    pub target: String,
    pub seconds: u64,
    /// Inputs that were read.
    pub inputs: u64,
    /// Edges of our own code that some input reached.
    pub edges: u64,
}

/// Targets by name, with inputs to begin with.
pub type Seeds = (&'static str, Vec<Vec<u8>>);

/// Fuzzes every target for its share of `time`, as many at once as there are cores. What is found stays in `out`.
pub fn fuzz(program: &Path, targets: &[Seeds], time: Duration, out: &Path) -> Result<Vec<FuzzReport>> {
    let jobs = thread::available_parallelism().map_or(1, usize::from).min(targets.len()).max(1);
    let seconds = (time.as_secs() * jobs as u64 / targets.len().max(1) as u64).max(1);
    let mut reports = Vec::new();
    for some in targets.chunks(jobs) {
        let started = some.iter().map(|(name, seeds)| start(program, name, seeds, seconds, out));
        let started = started.collect::<Result<Vec<_>>>()?;
        for ((name, _), mut child) in some.iter().zip(started) {
            let status = child.wait()?;
            let said = fs::read(log(out, name))?;
            let said = String::from_utf8_lossy(&said);
            if !status.success() {
                bail!(
                    "`{name}` does not survive an input\nhint: the input and what was said are in `{}`",
                    out.display()
                );
            }
            reports.push(FuzzReport { target: (*name).to_owned(), seconds, ..told(&said) });
        }
    }
    Ok(reports)
}

/// What a target says goes to a file: in a pipe that nobody empties, it would stand still.
fn log(out: &Path, name: &str) -> PathBuf {
    out.join(format!("{name}.txt"))
}

fn start(program: &Path, name: &str, seeds: &[Vec<u8>], seconds: u64, out: &Path) -> Result<std::process::Child> {
    let corpus = out.join(name);
    fs::create_dir_all(&corpus)?;
    for (i, seed) in seeds.iter().enumerate() {
        fs::write(corpus.join(format!("seed-{i}")), seed)?;
    }
    let longest = seeds.iter().map(Vec::len).max().unwrap_or(0).max(4096) * 2;
    Command::new(program)
        .arg(&corpus)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={PATIENCE}"))
        .arg(format!("-rss_limit_mb={MEMORY_MB}"))
        .arg(format!("-max_len={longest}"))
        .arg(format!("-artifact_prefix={}/{name}-", out.display()))
        .args(["-detect_leaks=0", "-print_final_stats=1"])
        .env("POLARISCOPE_FUZZ", name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(fs::File::create(log(out, name))?.into_file()))
        .spawn()
        .with_context(|| format!("cannot start `{}`", program.display()))
}

/// The figures at the end of what libFuzzer prints.
fn told(said: &str) -> FuzzReport {
    let mut report = FuzzReport::default();
    for line in said.lines() {
        if let Some(inputs) = line.strip_prefix("stat::number_of_executed_units:") {
            report.inputs = inputs.trim().parse().unwrap_or(0);
        }
        let mut words = line.split_whitespace();
        if words.by_ref().any(|word| word == "cov:") {
            report.edges = words.next().and_then(|edges| edges.parse().ok()).unwrap_or(report.edges);
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let said = "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 26Mb\n#8\tDONE   cov: 40 ft: 41 corp: 2/9b\n\
                    stat::number_of_executed_units: 812\nstat::average_exec_per_sec:     0\n";
        assert_eq!(told(said), FuzzReport { inputs: 812, edges: 40, ..FuzzReport::default() });
    }
}
