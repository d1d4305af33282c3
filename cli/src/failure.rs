//! How does a command end: with which exit code, and with which words?

use std::fmt;
use std::io;
use std::process::ExitCode;

/// The input or the run is at fault.
pub(crate) const AT_FAULT: u8 = 1;

/// Something that should not have happened.
pub(crate) const UNEXPECTED: u8 = 2;

/// A long job was ended by Ctrl-C; what is durable stays.
#[derive(Debug)]
pub(crate) struct Interrupted {
    /// The command that goes on where this one stopped, when there is one.
    pub(crate) resume: Option<String>,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted; what was written whole is kept")?;
        match &self.resume {
            Some(command) => write!(f, "\nhint: go on with: {command}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Interrupted {}

/// The text that goes to standard error.
pub(crate) fn message(err: &anyhow::Error) -> String {
    format!("error: {}", tidy(&format!("{err:#}")))
}

/// A chain of causes puts a hint of an inner cause behind a colon; hints stand on lines of their own at the end.
fn tidy(text: &str) -> String {
    let (hints, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("hint: "));
    lines.into_iter().chain(hints).collect::<Vec<_>>().join("\n")
}

/// A reader that closed the pipe has what it wanted: that is success.
pub(crate) fn exit_code(err: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(err) { ExitCode::SUCCESS } else { ExitCode::from(AT_FAULT) }
}

pub(crate) fn is_broken_pipe(err: &anyhow::Error) -> bool {
    err.chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn hints_come_last() {
        let err = anyhow!("no `a`\nhint: make one").context("while reading");
        assert_eq!(message(&err), "error: while reading: no `a`\nhint: make one");
        let err = Interrupted { resume: Some("polariscope record --resume".into()) };
        assert!(message(&err.into()).ends_with("\nhint: go on with: polariscope record --resume"));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed: anyhow::Result<()> = Err(io::Error::from(io::ErrorKind::BrokenPipe)).context("could not print");
        assert!(is_broken_pipe(&closed.unwrap_err()));
        assert!(!is_broken_pipe(&anyhow!("else")));
    }
}
