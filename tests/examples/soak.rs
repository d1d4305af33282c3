//! Is nothing lost, in the long run? `cargo xtask soak` starts it: `--kills N`, `--seed N`, `--only COMMAND`,
//! `--out FOLDER`.

#![expect(clippy::print_stderr, reason = "a person waits for it")]

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use tests::soak::{self, Bench, Random, Report, SUBJECTS};

/// Kills of each command, unless `--kills` says otherwise.
const KILLS: usize = 100;

fn main() -> Result<()> {
    let (mut kills, mut seed, mut out, mut only) = (KILLS, 1, PathBuf::from("soak"), None);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().with_context(|| format!("`{name}` needs a value"))?;
        match name.as_str() {
            "--kills" => kills = value.parse()?,
            "--seed" => seed = value.parse()?,
            "--out" => out = value.into(),
            "--only" => only = Some(value),
            _ => bail!("no option `{name}`\nhint: there are `--kills`, `--seed`, `--only` and `--out`"),
        }
    }
    let mut random = Random::new(seed);
    let bench = Bench::new()?;
    let mut report = Report { seed, ..Report::default() };
    let chosen = || SUBJECTS.iter().enumerate().filter(|(_, it)| only.as_ref().is_none_or(|name| name == it.name));
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
    fs_err::create_dir_all(&out)?;
    fs_err::write(out.join("soak.json"), serde_json::to_vec_pretty(&report)?)?;
    let text = words(&report);
    fs_err::write(out.join("soak.txt"), &text)?;
    eprint!("{text}");
    eprintln!("soak: nothing was lost; the report is in `{}`", out.display());
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
    for left_out in &report.left_out {
        let _ = writeln!(text, "left out: {left_out}");
    }
    text
}
