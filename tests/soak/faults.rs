//! Does a disk that fails end a command with a sentence, and does it go on to the same bytes?

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::work::{Attempt, Ended, Fault};
use super::{Bench, Random, SUBJECTS};

/// What is done to each call: the action for `tests/examples/faults.rs`, and what it stands for.
const FAULTS: &[(&str, &[(&str, &str)])] = &[
    ("create", &[("13", "permission denied"), ("28", "no space"), ("vanish", "the folder disappears")]),
    (
        "write",
        &[("28", "no space"), ("5", "failed write"), ("short", "short writes"), ("vanish", "the folder disappears")],
    ),
    ("fsync", &[("5", "failed fsync"), ("vanish", "the folder disappears")]),
    ("rename", &[("13", "permission denied"), ("28", "no space"), ("vanish", "the folder disappears")]),
    ("truncate", &[("5", "failed truncation")]),
    ("mkdir", &[("13", "permission denied"), ("28", "no space")]),
];

/// Files of a disk in memory take whole pages.
const PAGE: usize = 4096;

/// What became of a command below which the disk failed.
#[derive(Debug, Serialize)]
pub struct FaultReport {
    pub command: &'static str,
    pub fault: &'static str,
    pub call: String,
    /// Which kind of file: numbers are `#`.
    pub file: String,
    /// What it said; empty where it came to its end.
    pub said: String,
}

impl Bench {
    /// Every fault on every kind of file that the subject writes; with `sample`, only so many, drawn at random.
    pub fn fail(&self, at: usize, sample: Option<usize>, random: &mut Random) -> Result<Vec<FaultReport>> {
        let mut kinds: BTreeMap<(&str, String), Vec<(usize, &str)>> = BTreeMap::new();
        let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (call, path) in &self.whole[at].calls {
            let nth = seen.entry((call, path)).or_default();
            *nth += 1;
            kinds.entry((call, kind(path))).or_default().push((*nth, path));
        }
        let before = self.stage(at);
        let mut cases = Vec::new();
        for ((call, file), places) in kinds {
            let faults = FAULTS.iter().find(|(known, _)| *known == call).map_or(&[][..], |(_, faults)| faults);
            for &(action, fault) in faults {
                let (nth, path) = places[random.below(places.len())];
                if action == "vanish" && Path::new(path).parent().is_none_or(|folder| before.join(folder).exists()) {
                    // What the command was given and did not write does not come back by itself.
                    continue;
                }
                cases.push((fault, file.clone(), Fault::Call { action, call: call.into(), nth, path: path.into() }));
            }
        }
        if let Some(n) = sample {
            while cases.len() > n {
                cases.swap_remove(random.below(cases.len()));
            }
        }
        let mut reports = Vec::new();
        for (fault, file, plan) in cases {
            let Fault::Call { call, .. } = &plan else { continue };
            let said = self.failed(at, &plan).with_context(|| format!("`{}` with `{plan}`", SUBJECTS[at].name))?;
            reports.push(FaultReport { command: SUBJECTS[at].name, fault, call: call.clone(), file, said });
        }
        Ok(reports)
    }

    /// Wants a sentence and exit code 1, or success, and the same bytes afterwards.
    fn failed(&self, at: usize, fault: &Fault) -> Result<String> {
        let work = self.work(at)?;
        let attempt = self.attempt(at, &work, false, Some(fault))?;
        ensure!(attempt.struck.is_some(), "the fault did not strike");
        if attempt.ended == Ended::Done {
            self.compare(at, &work)?;
            return Ok(String::new());
        }
        let said = sentence(&attempt)?;
        self.finish(at, &work).with_context(|| format!("it said: {said}"))?;
        Ok(said)
    }

    /// Records onto a disk that is really full, makes it larger, and goes on.
    fn full(&self, at: usize) -> Result<String> {
        let work = self.work(at)?;
        let before = self.folder.path().join("before");
        fs_err::rename(&work.folder, &before)?;
        fs_err::create_dir(&work.folder)?;
        let disk = Disk::mount(&work.folder, "64m")?;
        let copied = Command::new("cp").arg("-r").arg(before.join(".")).arg(&work.folder).status()?;
        ensure!(copied.success(), "cannot copy");
        fs_err::remove_dir_all(&before)?;
        // Room for half of what it will write.
        let pages =
            |files: &BTreeMap<String, Vec<u8>>| files.values().map(|bytes| bytes.len().div_ceil(PAGE)).sum::<usize>();
        let (used, whole) = (pages(&work.files()?), pages(&self.whole[at].files));
        disk.resize(&format!("{}", (used + whole).div_ceil(2) * PAGE))?;
        let attempt = self.attempt(at, &work, false, None)?;
        let said = sentence(&attempt)?;
        ensure!(said.contains("No space left"), "expected it to say that there is no space left, found: {said}");
        disk.resize("64m")?;
        self.finish(at, &work).with_context(|| format!("it said: {said}"))?;
        Ok(said)
    }
}

/// Every subject on a disk of its own that is too small; an error where this machine does not let us have one.
pub fn full_disks(bench: &Bench) -> Result<Vec<FaultReport>> {
    let report = |at: usize| {
        Ok(FaultReport {
            command: SUBJECTS[at].name,
            fault: "a disk that is full",
            call: String::new(),
            file: String::new(),
            said: bench.full(at).with_context(|| format!("`{}` on a full disk", SUBJECTS[at].name))?,
        })
    };
    (0..SUBJECTS.len()).map(report).collect()
}

/// A disk in memory, which only root may have.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(at: &'a Path, size: &str) -> Result<Self> {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at))?;
        Ok(Self(at))
    }

    fn resize(&self, size: &str) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(self.0))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // A disk that stays mounted is seen when the folder is removed.
        let _ = run(Command::new("umount").arg(self.0));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The one error of a command that failed as it should, with its next step.
fn sentence(attempt: &Attempt) -> Result<String> {
    let stderr = &attempt.stderr;
    ensure!(attempt.ended == Ended::Failed(1), "expected exit code 1, found {:?}:\n{stderr}", attempt.ended);
    ensure!(stderr.matches("error: ").count() == 1 && !stderr.contains("panicked"), "expected one error:\n{stderr}");
    let said = stderr.lines().skip_while(|line| !line.starts_with("error: ")).collect::<Vec<_>>();
    ensure!(said.len() == 2 && said[1].starts_with("hint: "), "expected a sentence and a next step:\n{stderr}");
    Ok(said.join("\n"))
}

/// The kind of a file: its path with `#` for every number.
fn kind(path: &str) -> String {
    let mut kind = String::new();
    for c in path.chars() {
        if !c.is_ascii_digit() {
            kind.push(c);
        } else if !kind.ends_with('#') {
            kind.push('#');
        }
    }
    kind
}
