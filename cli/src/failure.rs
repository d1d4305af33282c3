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

/// An error of which one kind says that the caller asked the job to stop.
pub(crate) trait Stops: Into<anyhow::Error> {
    fn is_interruption(&self) -> bool;
}

impl Stops for data::Error {
    fn is_interruption(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

impl Stops for scope::Error {
    fn is_interruption(&self) -> bool {
        matches!(self, Self::Interrupted | Self::Data(data::Error::Interrupted))
    }
}

/// What a job gave that Ctrl-C may have ended; `resume` is the command that goes on where it stopped.
pub(crate) fn unless_interrupted<T, E: Stops>(result: Result<T, E>, resume: Option<String>) -> anyhow::Result<T> {
    result.map_err(|err| if err.is_interruption() { Interrupted { resume }.into() } else { err.into() })
}

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
    fn what_ctrl_c_ended_says_how_to_go_on() {
        let of = |err: scope::Error| message(&unless_interrupted::<(), _>(Err(err), Some("again".into())).unwrap_err());
        let ended = "error: interrupted; what was written whole is kept\nhint: go on with: again";
        assert_eq!(of(scope::Error::Interrupted), ended);
        assert_eq!(of(data::Error::Interrupted.into()), ended);
        assert!(of(scope::Error::Feature { feature: 3, d_sae: 2 }).starts_with("error: expected a feature below 2"));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed: anyhow::Result<()> = Err(io::Error::from(io::ErrorKind::BrokenPipe)).context("could not print");
        assert!(is_broken_pipe(&closed.unwrap_err()));
        assert!(!is_broken_pipe(&anyhow!("else")));
    }
}
