//! What can go wrong with a run directory, in words that name the thing and the next step.

use std::io;
use std::path::{Path, PathBuf};

use crate::Dtype;

/// The result of everything here that reads or writes.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no hook point is called `{name}`\nhint: the nearest one is `{nearest}`")]
    UnknownHookPoint { name: String, nearest: String },

    #[error("`{name}` does not exist in this model: {why}\nhint: `polariscope inspect MODEL` lists its hook points")]
    AbsentHookPoint { name: String, why: String },

    #[error("expected layers below {n_layers}, found `{name}`")]
    NoSuchLayer { name: String, n_layers: usize },

    #[error(
        "expected at least one hook point, found `{list}`\nhint: `blocks.*.hook_resid_post` names one in every layer"
    )]
    NoHookPoint { list: String },

    #[error(
        "`{name}` has no value for a single token, so it cannot be recorded\nhint: record `attn.hook_rot_q` and `attn.hook_rot_k`, from which it follows"
    )]
    NotPerToken { name: String },

    #[error("expected a dtype `f32`, `bf16`, `f16` or `i8`, found `{found}`")]
    UnknownDtype { found: String },

    #[error("{cause}{}", io_hint(cause))]
    Io { cause: io::Error },

    #[error(
        "`{place}` is no place of a run: {reason}\nhint: a folder, or `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `file:///FOLDER`"
    )]
    BadPlace { place: String, reason: &'static str },

    #[error("{what} `{place}`\nhint: {hint}")]
    Store { what: Box<str>, place: Box<str>, hint: &'static str },

    #[error(
        "another process has written other bytes as `{}`\nhint: let one process write it, or all with the same model, corpus and options", .path.display()
    )]
    OtherBytes { path: PathBuf },

    #[error("no run: `manifest.json` is missing in `{}`\nhint: `polariscope record` writes one", .path.display())]
    NotARun { path: PathBuf },

    #[error(
        "a run exists already in `{}`\nhint: `--resume` goes on with it, another `--out` keeps both", .path.display()
    )]
    RunExists { path: PathBuf },

    #[error(
        "expected an empty folder, found other files in `{}`\nhint: name a folder that does not exist yet", .path.display()
    )]
    NotEmpty { path: PathBuf },

    #[error(
        "files of shard {index} have disappeared since they were written, in `{}`\nhint: the same command with `--resume` writes them again", .path.display()
    )]
    LostShard { index: usize, path: PathBuf },

    #[error("another process is writing `{}`\nhint: wait until it has ended", .path.display())]
    RunBusy { path: PathBuf },

    #[error(
        "expected `I/N` with I below N, found `{found}`\nhint: the first of four workers is `0/4`, the last one `3/4`"
    )]
    NoSuchWorker { found: String },

    #[error("worker {worker} is running already in `{}`\nhint: `polariscope status` tells how far it is", .path.display())]
    WorkerBusy { worker: String, path: PathBuf },

    #[error(
        "expected one of {expected} workers, found one of {found} in `{}`\nhint: all workers of a run are told the same number", .path.display()
    )]
    OtherWorkers { expected: usize, found: usize, path: PathBuf },

    #[error(
        "one process records this run, not several workers: `{}`\nhint: `--resume` without `--shard` goes on with it", .path.display()
    )]
    NotSpread { path: PathBuf },

    #[error(
        "nothing tells how far the workers of this run are, in `{}`\nhint: start each again with its `--shard`: what is durable stays", .path.display()
    )]
    LostWorkers { path: PathBuf },

    #[error(
        "several workers record this run: `{}`\nhint: `polariscope status` tells which are missing, `polariscope merge` completes it", .path.display()
    )]
    Spread { path: PathBuf },

    #[error(
        "expected {workers} workers to be done, missing {} in `{}`\nhint: `polariscope status` tells how far each is", numbers(missing), .path.display()
    )]
    MissingWorkers { missing: Vec<usize>, workers: usize, path: PathBuf },

    #[error(
        "the workers {} and {} have read different corpora into `{}`\nhint: record the run again, with files that stay as they are", .workers[0], .workers[1], .path.display()
    )]
    OtherCorpus { workers: [usize; 2], path: PathBuf },

    #[error(
        "expected version {known} or older, found version {found} in `{}`\nhint: a newer polariscope wrote this; update yours", .path.display()
    )]
    NewerVersion { found: u64, known: u32, path: PathBuf },

    #[error("expected the format `{expected}`, found `{found}` in `{}`", .path.display())]
    ForeignFormat { expected: &'static str, found: String, path: PathBuf },

    #[error(
        "not the JSON that was expected: {cause}, in `{}`\nhint: `polariscope verify` tells which files are whole", .path.display()
    )]
    Json { cause: String, path: PathBuf },

    #[error("cannot read this as Parquet: {cause}, in `{}`\nhint: `polariscope verify` tells which files are whole", .path.display())]
    Damaged { cause: String, path: PathBuf },

    #[error(
        "a file of the run is missing: `{}`\nhint: `polariscope verify` lists what is there; `polariscope record --resume` writes lost shards of an incomplete run again", .path.display()
    )]
    MissingFile { path: PathBuf },

    #[error("expected column `{column}` to be {expected}, found {found} in `{}`", .path.display())]
    WrongColumn { column: String, expected: String, found: String, path: PathBuf },

    #[error(
        "cannot resume: expected `{field}` {expected}, found {found} in `{}`\nhint: give the same model, corpus and options, or another `--out`", .path.display()
    )]
    ResumeMismatch { field: String, expected: String, found: String, path: PathBuf },

    #[error("`{name}` cannot be the name of a {kind}: {reason}")]
    BadName { kind: &'static str, name: String, reason: &'static str },

    #[error("expected a {kind} of the run, found `{name}` in `{}`\nhint: there {}", .path.display(), listing(known))]
    NoSuchName { kind: &'static str, name: String, known: Vec<String>, path: PathBuf },

    #[error(
        "no routing: no recorded layer chooses experts in `{}`\nhint: `polariscope record` writes it for every model that routes, such as Gemma 4 26B-A4B", .path.display()
    )]
    NoRouting { path: PathBuf },

    #[error(
        "expected the same tokens as in `{}`, found others in `{}`\nhint: record both from the same corpus with the same tokenizer", .origin.display(), .path.display()
    )]
    OtherTokens { origin: Box<Path>, path: Box<Path> },

    #[error(
        "expected `experts`, `ple`, `token-class`, `language`, `source`, or `meta-` and a key of the documents' `meta`, found `{found}`"
    )]
    UnknownJoin { found: String },

    #[error("expected no layers: `{with}` is the same in all of them\nhint: leave `--layer` out")]
    NoLayers { with: String },

    #[error(
        "expected 4096 kinds of documents at most, found more by `{with}`\nhint: join with a key of `meta` that says which kind a document is of"
    )]
    TooManyLabels { with: String },

    #[error(
        "no gates: `blocks.N.ple.hook_gate_pre` was not recorded in `{}`\nhint: of a model with per-layer embeddings, `polariscope record … --hook-points 'blocks.*.ple.hook_gate_pre,…'` does, beside what the coder reads", .path.display()
    )]
    NoGates { path: PathBuf },

    #[error(
        "expected a run in the order of its tokens to read {what}, found a shuffled one in `{}`\nhint: its origin `{origin}` has that order", .path.display()
    )]
    ShuffledRun { what: &'static str, origin: Box<str>, path: Box<Path> },

    #[error(
        "expected a complete run, found one that is still being written in `{}`\nhint: the command that writes it goes on with `--resume`", .path.display()
    )]
    IncompleteRun { path: PathBuf },

    #[error(
        "expected at least {least} bytes of memory for a run of this size, found {found}\nhint: `--memory` sets it"
    )]
    TooLittleMemory { found: u64, least: u64 },

    #[error("expected {what} within {start}..{end}, found {found} in `{}`", .path.display())]
    OutOfRange { what: &'static str, start: u64, end: u64, found: String, path: PathBuf },

    #[error("expected {expected} {what}, found {found}")]
    Mismatch { what: String, expected: u64, found: u64 },

    #[error("expected {expected} tokens, found {captured} captured and {skipped} skipped in `{}`", .path.display())]
    LostTokens { expected: u64, captured: u64, skipped: u64, path: PathBuf },

    #[error(
        "expected `{field}` {expected}, found {found} in the cursor\nhint: resume with the options and the run that it was made with"
    )]
    ForeignCursor { field: &'static str, expected: String, found: String },

    #[error(
        "no row is left to read of `{hook_point}`: {special} special tokens and {outliers} outliers are excluded in `{}`\nhint: record more text", .path.display()
    )]
    NothingToRead { hook_point: String, special: u64, outliers: u64, path: PathBuf },

    #[error(
        "no file of a corpus is called or matches `{name}`\nhint: give text files, folders, globs, `.jsonl`, Parquet with a `text` column, or `-`"
    )]
    NoCorpus { name: String },

    #[error("not UTF-8 at byte {offset} of `{}`\nhint: convert it, for example with `iconv -t UTF-8`", .path.display())]
    NotUtf8 { offset: usize, path: PathBuf },

    #[error(
        "{what} in line {line} of `{}`\nhint: every line is `{{\"text\": \"…\"}}` or `{{\"tokens\": [ids]}}`", .path.display()
    )]
    CorpusLine { what: String, line: usize, path: PathBuf },

    #[error("cannot read documents: {what} in `{}`", .path.display())]
    CorpusFile { what: String, path: PathBuf },

    #[error("no table of the run is called `{name}`\nhint: {}; `polariscope query RUN` lists all", near(nearest))]
    NoSuchTable { name: String, nearest: Vec<String> },

    #[error(
        "expected a table of the run, found `{what}`\nhint: a query reads the run and nothing else; `polariscope query RUN` lists its tables"
    )]
    NotATable { what: String },

    #[error("cannot read this as SQL: {cause}\nhint: for example `SELECT token, pos FROM tokens WHERE doc_id = 0`")]
    NotSql { cause: String },

    #[error("expected one `SELECT`, found something else\nhint: a run is never changed by a query")]
    NotAQuestion,

    #[error("the query cannot be answered: {cause}{hint}")]
    Query { cause: String, hint: &'static str },

    #[error("a link leads out of the run: `{}`\nhint: put the file itself there", .path.display())]
    OutsideRun { path: PathBuf },

    #[error("expected {known}, found `{found}`")]
    UnknownFormat { found: String, known: &'static str },

    #[error("`{}` exists already\nhint: nothing is overwritten; name another place or remove it", .path.display())]
    Exists { path: PathBuf },

    #[error(
        "no token is left to export: {selected} were selected, all of them special\nhint: leave out `--skip-special`"
    )]
    NothingToExport { selected: u64 },

    #[error("expected {context} tokens for one sequence at least, found {found}\nhint: a shorter `--context`")]
    NoSequence { context: usize, found: u64 },

    #[error("`{format}` cannot hold {dtype}\nhint: it holds {holds}")]
    CannotHold { format: &'static str, dtype: Dtype, holds: &'static str },

    #[error("{what} ended unexpectedly\nhint: this is a fault of polariscope; please report it")]
    Worker { what: &'static str },

    #[error("interrupted")]
    Interrupted,
}

const _: () = assert!(size_of::<Error>() <= 128, "errors travel in every result");

impl Error {
    #[expect(clippy::needless_pass_by_value, reason = "it is called with errors that end there")]
    pub(crate) fn damaged(path: &Path, cause: impl ToString) -> Self {
        Self::Damaged { cause: first_line(&cause.to_string()), path: path.to_owned() }
    }

    #[expect(clippy::needless_pass_by_value, reason = "it is called with errors that end there")]
    pub(crate) fn json(path: &Path, cause: impl ToString) -> Self {
        Self::Json { cause: first_line(&cause.to_string()), path: path.to_owned() }
    }

    pub(crate) fn mismatch(what: impl Into<String>, expected: impl TryInto<u64>, found: impl TryInto<u64>) -> Self {
        let number = |n: Result<u64, _>| n.unwrap_or(u64::MAX);
        Self::Mismatch {
            what: what.into(),
            expected: number(expected.try_into().map_err(|_too_large| ())),
            found: number(found.try_into().map_err(|_too_large| ())),
        }
    }
}

impl From<io::Error> for Error {
    fn from(cause: io::Error) -> Self {
        Self::Io { cause }
    }
}

fn io_hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "\nhint: the disk is full; free some space, then the same command goes on from what is whole (with `--resume` where it has that)"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "\nhint: choose a folder that you may write to"
        }
        io::ErrorKind::NotFound => {
            "\nhint: if a folder disappeared, the same command writes again what is lost (with `--resume` where it has that)"
        }
        // Of what was read, not of the disk.
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::Other
        | io::ErrorKind::Interrupted
        | io::ErrorKind::IsADirectory => "",
        _ => {
            "\nhint: when the disk is well again, the same command goes on from what is whole (with `--resume` where it has that)"
        }
    }
}

fn listing(known: &[String]) -> String {
    match known {
        [] => "are none yet".to_owned(),
        [one] => format!("is `{one}`"),
        many => format!("are `{}`", many.join("`, `")),
    }
}

/// `1, 3`
fn numbers(list: &[usize]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn near(nearest: &[String]) -> String {
    match nearest {
        [] => "nothing has been recorded yet".to_owned(),
        [one] => format!("the only one is `{one}`"),
        many => format!("the nearest are `{}`", many.join("`, `")),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_are_full_or_closed_are_told_with_the_next_step() {
        let text = |kind: io::ErrorKind| Error::from(io::Error::from(kind)).to_string();
        assert!(text(io::ErrorKind::StorageFull).contains("\nhint: the disk is full; free some space"));
        assert!(text(io::ErrorKind::ReadOnlyFilesystem).contains("\nhint: choose a folder that you may write to"));
        assert!(!text(io::ErrorKind::UnexpectedEof).contains("hint"));
    }

    #[test]
    fn lists_are_sentences() {
        let path = PathBuf::from("run");
        let text = |known: &[&str]| {
            let known = known.iter().map(ToString::to_string).collect();
            Error::NoSuchName { kind: "feature table", name: "c".to_owned(), known, path: path.clone() }.to_string()
        };
        assert_eq!(text(&[]), "expected a feature table of the run, found `c` in `run`\nhint: there are none yet");
        assert!(text(&["a"]).ends_with("there is `a`"));
        assert!(text(&["a", "b"]).ends_with("there are `a`, `b`"));
    }
}
