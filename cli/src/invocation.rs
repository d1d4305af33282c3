//! How was the program called, and which command goes on where it stopped?

use std::ffi::OsString;

use data::Worker;
use data::manifest::Provenance;

/// The command line as it was given.
#[derive(Debug, Clone)]
pub(crate) struct Invocation {
    args: Vec<String>,
}

impl Invocation {
    pub(crate) fn new(args: &[OsString]) -> Self {
        Self { args: args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect() }
    }

    /// The same command.
    pub(crate) fn again(&self) -> String {
        let words = self.args.iter().skip(1).map(|word| quoted(word));
        std::iter::once("polariscope".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
    }

    /// The same command with `--resume`.
    pub(crate) fn resumed(&self) -> String {
        let resumes = self.args.iter().any(|word| word == "--resume");
        self.again() + if resumes { "" } else { " --resume" }
    }

    /// The same command for this worker, whoever named it the first time.
    pub(crate) fn of_worker(&self, worker: Worker) -> String {
        of_worker(&self.args, worker)
    }

    /// Who made a run, when, and how.
    pub(crate) fn provenance(&self) -> Provenance {
        Provenance { created_by: created_by(), created_at: now(), command: self.args.clone() }
    }
}

/// The time, to the second.
pub(crate) fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

/// Version and commit of this program.
pub(crate) fn created_by() -> String {
    let version = concat!("polariscope ", env!("CARGO_PKG_VERSION"));
    match env!("POLARISCOPE_COMMIT") {
        "" => version.to_owned(),
        commit => format!("{version} ({commit})"),
    }
}

/// A command line that records, as that of another of its workers.
pub(crate) fn of_worker(args: &[String], worker: Worker) -> String {
    let mut words = vec!["polariscope".to_owned()];
    let mut args = args.iter().skip(1);
    while let Some(word) = args.next() {
        if word == "--shard" || word == "--shards" {
            args.next();
        } else if !word.starts_with("--shard=") && !word.starts_with("--shards=") {
            words.push(quoted(word));
        }
    }
    words.push(format!("--shard {worker}"));
    words.join(" ")
}

/// As a POSIX shell would need it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_resumes_can_be_pasted() {
        let args = ["/bin/polariscope", "record", "m", "--corpus", "a b.txt", "--hook-points", "blocks.*.x"];
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let resumed = Invocation::new(&args).resumed();
        assert_eq!(resumed, "polariscope record m --corpus 'a b.txt' --hook-points 'blocks.*.x' --resume");
        let again: Vec<OsString> = ["p", "record", "--resume"].iter().map(OsString::from).collect();
        assert_eq!(Invocation::new(&again).resumed(), "polariscope record --resume");
    }

    #[test]
    fn the_command_of_another_worker_can_be_pasted() {
        let args =
            ["/bin/polariscope", "record", "m", "--shards", "4", "--out", "r", "--shard=1/4", "--shard-tokens", "9"];
        let args = args.map(str::to_owned);
        let worker = Worker::new(3, 4).unwrap();
        assert_eq!(of_worker(&args, worker), "polariscope record m --out r --shard-tokens 9 --shard 3/4");
    }

    #[test]
    fn quotes_inside_quotes() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
