//! Is nothing lost, in the long run? `cargo xtask soak` starts it: `--kills N`, `--seed N`, `--fuzz MINUTES`,
//! `--only COMMAND` (or `fuzz`), `--out FOLDER`.

#![expect(clippy::print_stderr, reason = "a person waits for it")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tests::soak::{self, Bench, FuzzReport, Random, Report, SUBJECTS, Seeds};

#[path = "../fuzz/targets.rs"]
#[expect(dead_code, reason = "the readers run in a program of their own")]
mod targets;

/// Kills of each command, unless `--kills` says otherwise.
const KILLS: usize = 100;
/// Minutes of fuzzing, unless `--fuzz` says otherwise.
const MINUTES: u64 = 60;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn main() -> Result<()> {
    let (mut kills, mut seed, mut minutes, mut out, mut only) = (KILLS, 1, MINUTES, PathBuf::from("soak"), None);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().with_context(|| format!("`{name}` needs a value"))?;
        match name.as_str() {
            "--kills" => kills = value.parse()?,
            "--seed" => seed = value.parse()?,
            "--fuzz" => minutes = value.parse()?,
            "--out" => out = value.into(),
            "--only" => only = Some(value),
            _ => bail!("no option `{name}`\nhint: there are `--kills`, `--seed`, `--fuzz`, `--only` and `--out`"),
        }
    }
    let mut report = Report { seed, ..Report::default() };
    if only.as_deref() != Some("fuzz") {
        disturb(&mut report, kills, only.as_deref())?;
    }
    fs_err::create_dir_all(&out)?;
    if minutes > 0 && only.as_deref().is_none_or(|only| only == "fuzz") {
        eprintln!("soak: every reader is fuzzed, {minutes} minutes in all");
        let program = std::env::current_exe()?.with_file_name("fuzz");
        let seeds: Vec<Seeds> = targets::TARGETS.iter().map(|target| (target.name, target.seeds())).collect();
        report.fuzz = soak::fuzz(&program, &seeds, Duration::from_secs(60 * minutes), &out.join("fuzz"))?;
    }
    fs_err::write(out.join("soak.json"), serde_json::to_vec_pretty(&report)?)?;
    let text = words(&report);
    fs_err::write(out.join("soak.txt"), &text)?;
    eprint!("{text}");
    eprintln!("soak: nothing was lost; the report is in `{}`", out.display());
    Ok(())
}

/// Kills and faults, of one command or of all.
fn disturb(report: &mut Report, kills: usize, only: Option<&str>) -> Result<()> {
    let mut random = Random::new(report.seed);
    let bench = Bench::new()?;
    let chosen = || SUBJECTS.iter().enumerate().filter(|(_, it)| only.is_none_or(|name| name == it.name));
    for (at, subject) in chosen() {
        eprintln!("soak: {} is killed {kills} times", subject.name);
        report.kills.push(bench.kill(at, kills, &mut random)?);
    }
    if bench.has_faults() {
        for (at, subject) in chosen() {
            eprintln!("soak: the disk fails below {}", subject.name);
            report.faults.extend(bench.fail(at, None, &mut random)?);
        }
    } else {
        report.left_out.push("faults below the program: it cannot be loaded with a library here".to_owned());
    }
    match soak::full_disks(&bench) {
        Ok(full) => report.faults.extend(full),
        Err(err) if cfg!(target_os = "linux") && err.root_cause().to_string().contains("mount") => {
            report.left_out.push(format!("a disk that is full: {err:#}"));
        }
        Err(err) => return Err(err),
    }
    Ok(())
}

fn words(report: &Report) -> String {
    let mut text = format!("seed {}\n\n", report.seed);
    for kills in &report.kills {
        let _ = writeln!(
            text,
            "{}: killed {} times ({}), came to its end {} times, every time to the same bytes; undisturbed it takes {:.1} s",
            kills.command,
            kills.kills,
            kills.during.iter().map(|(call, n)| format!("{call} {n}")).collect::<Vec<_>>().join(", "),
            kills.same,
            kills.seconds,
        );
    }
    text.push('\n');
    for fault in &report.faults {
        let said = if fault.said.is_empty() { "nothing: it was done, to the same bytes" } else { &fault.said };
        let said = said.replace('\n', "\n    ");
        let _ = writeln!(text, "{}: {}, {} {}\n    {said}", fault.command, fault.fault, fault.call, fault.file);
    }
    for fuzz in &report.fuzz {
        let FuzzReport { target, seconds, inputs, edges } = fuzz;
        let _ = writeln!(text, "{target}: {inputs} inputs in {seconds} s, which reached {edges} edges of our code");
    }
    for left_out in &report.left_out {
        let _ = writeln!(text, "left out: {left_out}");
    }
    text
}
