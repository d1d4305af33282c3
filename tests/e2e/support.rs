//! What do the flows share: the program in this process, a tiny model, a corpus of token ids?

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use fs_err as fs;

/// Runs the command in this process and wants success.
#[track_caller]
pub(crate) fn polariscope(args: &[&str]) {
    let args = std::iter::once("polariscope").chain(args.iter().copied()).map(OsString::from);
    assert_eq!(cli::main_with(args), ExitCode::SUCCESS);
}

/// A file or folder below `tests/fixtures`.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// A corpus of token ids: sequences with a rhythm, so that there is something to find in their activations.
pub(crate) fn token_corpus(path: &Path, documents: usize) -> u64 {
    let (mut lines, mut tokens) = (Vec::new(), 0);
    for document in 0..documents {
        let length = 24 + (document * 37) % 61;
        let ids: Vec<String> =
            (0..length).map(|pos| (5 + (document * 11 + pos * (1 + document % 7)) % 315).to_string()).collect();
        lines.push(format!("{{\"tokens\": [{}], \"number\": {document}}}\n", ids.join(",")));
        tokens += length as u64;
    }
    fs::write(path, lines.concat()).expect("a corpus is written");
    tokens
}

/// The folder of the cache into which `cargo xtask test` puts Python packages, if Python can import them from there.
#[expect(clippy::disallowed_methods, reason = "there is no command line that could say where the cache is")]
pub(crate) fn packages(folder: &str, imports: &str) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("POLARISCOPE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("polariscope")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/polariscope")))?;
    let folder = cache.join(folder);
    let mut python = Command::new("python3");
    python.args(["-c", &format!("import {imports}")]).env("PYTHONPATH", &folder);
    python.output().is_ok_and(|output| output.status.success()).then_some(folder)
}
