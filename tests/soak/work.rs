//! How is a program started in a folder of its own, disturbed, and what did it leave there?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fs_err as fs;
use serde_json::Value;

/// Fields of `manifest.json` that say when and how a run was begun, and with them the file's own sum.
const DIFFERS: [&str; 3] = ["created_at", "command", "self_sha256"];

/// A folder in which a program works.
pub(super) struct Work {
    pub(super) folder: PathBuf,
}

/// What happens to a program.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// It is killed after this time.
    Killed(Duration),
    /// `tests/examples/faults.rs` does this at a call below the program.
    Call { action: &'static str, call: String, nth: usize, path: String },
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Killed(after) => write!(f, "kill after {:.3} s", after.as_secs_f64()),
            Self::Call { action, call, nth, path } => write!(f, "{action} {call} {nth} {path}"),
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    Killed,
    /// With this exit code.
    Failed(i32),
}

/// A program that has ended.
pub(super) struct Attempt {
    pub(super) ended: Ended,
    pub(super) stderr: String,
    /// Calls that changed files, in order: which, and the file.
    pub(super) calls: Vec<(String, String)>,
    /// The call at which the fault struck.
    pub(super) struck: Option<(String, String)>,
}

impl Work {
    /// A copy of a folder, in place of what was there.
    pub(super) fn copy(from: &Path, folder: &Path) -> Result<Self> {
        let work = Self { folder: folder.to_owned() };
        for old in [work.folder.clone(), work.gone(), work.trace()] {
            if old.is_dir() {
                fs::remove_dir_all(&old)?;
            } else if old.exists() {
                fs::remove_file(&old)?;
            }
        }
        copy(from, folder)?;
        Ok(work)
    }

    /// Where a folder is put that disappears.
    fn gone(&self) -> PathBuf {
        self.folder.with_extension("gone")
    }

    fn trace(&self) -> PathBuf {
        self.folder.with_extension("trace")
    }

    pub(super) fn start(
        &self,
        program: &Path,
        args: &[String],
        faults: Option<&Path>,
        fault: Option<&Fault>,
    ) -> Result<Attempt> {
        let mut command = Command::new(program);
        command.args(args).current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // With these it does not start itself again.
        command.env("GOMP_SPINCOUNT", "1000").env("XDG_RUNTIME_DIR", tempfile::env::temp_dir());
        command.env("NO_COLOR", "1").env("POLARISCOPE_CACHE", "no-cache-in-tests").env_remove("RUST_BACKTRACE");
        if let Some(library) = faults {
            command.env("LD_PRELOAD", library).env("FAULTS_ROOT", &self.folder).env("FAULTS_TRACE", self.trace());
        }
        if let Some(Fault::Call { .. }) = fault {
            command.env("FAULTS_PLAN", fault.map(ToString::to_string).unwrap_or_default());
        }
        if self.trace().exists() {
            fs::remove_file(self.trace())?;
        }
        let mut child = command.spawn().with_context(|| format!("cannot start `{}`", program.display()))?;
        if let Some(Fault::Killed(after)) = fault {
            std::thread::sleep(*after);
            child.kill()?;
        }
        let output = child.wait_with_output()?;
        let mut calls = Vec::new();
        let mut struck = None;
        let trace = if self.trace().exists() { fs::read_to_string(self.trace())? } else { String::new() };
        for line in trace.lines() {
            let (mark, line) = line.strip_prefix("! ").map_or((false, line), |line| (true, line));
            let (call, path) = line.split_once(' ').unwrap_or((line, ""));
            let call = (call.to_owned(), path.to_owned());
            if mark { struck = Some(call) } else { calls.push(call) }
        }
        let ended = match output.status.code() {
            Some(0) => Ended::Done,
            Some(code) => Ended::Failed(code),
            None => Ended::Killed,
        };
        Ok(Attempt { ended, stderr: String::from_utf8_lossy(&output.stderr).into_owned(), calls, struck })
    }

    pub(super) fn files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        files(&self.folder)
    }
}

/// Every file and folder below one, with its bytes; of a manifest without what tells when and how its run was begun.
pub fn files(below: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![below.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.strip_prefix(below)?.display().to_string();
            if path.is_dir() {
                found.insert(format!("{name}/"), Vec::new());
                folders.push(path);
            } else {
                let bytes = fs::read(&path)?;
                found.insert(name, if path.ends_with("manifest.json") { manifest(&bytes)? } else { bytes });
            }
        }
    }
    Ok(found)
}

fn manifest(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(bytes)?;
    if let Value::Object(fields) = &mut value {
        for name in DIFFERS {
            fields.remove(name);
        }
    }
    Ok(serde_json::to_vec_pretty(&value)?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
