//! How do the tests run the program, and where do they get a model and a corpus?

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fs_err as fs;

/// What the program did.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program, away from the person's own cache.
pub(crate) fn polariscope(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polariscope"));
    command.args(args).stdin(Stdio::null()).env("NO_COLOR", "1").env("POLARISCOPE_CACHE", "no-cache-in-tests");
    command.env_remove("POLARISCOPE_LOG").env_remove("RUST_BACKTRACE").env_remove("COLUMNS");
    command
}

pub(crate) fn end(command: &mut Command) -> Ended {
    ended(command.output().expect("the program starts"))
}

pub(crate) fn ended(output: Output) -> Ended {
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8 on standard output"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8 on standard error"),
    }
}

/// Runs it and wants success; gives back standard output.
#[track_caller]
pub(crate) fn succeeds(args: &[&str]) -> String {
    let ended = end(&mut polariscope(args));
    assert_eq!(ended.code, Some(0), "{args:?}\n{}", ended.stderr);
    ended.stdout
}

/// Runs it and wants exit code 1 and one error that says what to do; gives back that error.
#[track_caller]
pub(crate) fn fails(args: &[&str]) -> String {
    refused(&end(&mut polariscope(args)))
}

/// The error of a command that ended as bad input should.
#[track_caller]
pub(crate) fn refused(ended: &Ended) -> String {
    let at = ended.stderr.find("error: ").unwrap_or_else(|| panic!("no error in {ended:?}"));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    assert_eq!(ended.stderr.matches("error: ").count(), 1, "{ended:?}");
    ended.stderr[at..].trim_end().to_owned()
}

pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(path).canonicalize().expect("the fixture")
}

/// A tiny Gemma 3 without a tokenizer: 7 layers, 320 tokens.
pub(crate) fn tiny_model() -> String {
    text(&fixture("gemma3/text"))
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// A corpus of token ids: `documents` of 20 to 83 tokens each, always the same.
pub(crate) fn token_corpus(path: &Path, documents: usize) -> String {
    let mut state: u64 = 1;
    let mut next = move |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut lines = Vec::new();
    for _ in 0..documents {
        let length = 20 + next(64);
        // 0 to 4 are special tokens.
        let ids: Vec<String> = (0..length).map(|_| (5 + next(315)).to_string()).collect();
        lines.push(format!("{{\"tokens\": [{}]}}\n", ids.join(",")));
    }
    fs::write(path, lines.concat()).expect("a corpus is written");
    text(path)
}

/// Records a small run and gives back its directory.
pub(crate) fn small_run(dir: &Path) -> PathBuf {
    let corpus = token_corpus(&dir.join("corpus.jsonl"), 40);
    let out = dir.join("run");
    succeeds(&[
        "record",
        &tiny_model(),
        "--corpus",
        &corpus,
        "--out",
        &text(&out),
        "--hook-points",
        "blocks.2.hook_resid_post,blocks.4.hook_mlp_out",
        "--shard-tokens",
        "500",
        "--threads",
        "1",
    ]);
    out
}

/// Every file below a folder with its bytes, without what `skip` names.
pub(crate) fn tree(dir: &Path, skip: &[&str]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = text(path.strip_prefix(dir).expect("below the folder"));
                if !skip.contains(&name.as_str()) {
                    files.push((name, fs::read(&path).expect("a file")));
                }
            }
        }
    }
    files.sort();
    files
}
