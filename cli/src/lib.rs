//! The command `polariscope`: parses, wires the other crates together, prints.
//!
//! Standard output is data, standard error is progress and notes. Exit codes: 0 done, 1 the input or the run is at
//! fault, 2 unexpected. Ctrl-C ends a long job cleanly: what is durable stays, and the command that resumes is printed.

mod args;

mod demo;
mod encode;
mod evaluate;
mod export;
mod fetch;
mod import;
mod inspect;
mod join;
mod merge;
mod models;
mod patch;
mod ple;
mod query;
mod record;
mod routing;
mod run;
mod shuffle;
mod status;
mod sweep;
mod train;
mod verify;
mod view;

mod bytes;
mod catalog;
mod chat;
mod compute;
mod dashboards;
mod environment;
mod failure;
mod hands;
mod interrupt;
mod invocation;
mod location;
mod output;
mod packages;
mod passages;
mod place;
mod progress;
mod report;
mod token;
mod worker;

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::invocation::Invocation;

pub use environment::prepare_environment;

/// Does what the arguments (the program's name first) ask for.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match args::Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(err) => return usage(&err),
    };
    log();
    let invocation = Invocation::new(&args);
    match catch_unwind(AssertUnwindSafe(|| cli.command.run(&invocation))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(err)) => {
            if !failure::is_broken_pipe(&err) {
                output::note(&failure::message(&err));
            }
            failure::exit_code(&err)
        }
        Err(_) => {
            output::note("error: this is a fault of polariscope itself\nhint: report it with the lines above");
            ExitCode::from(failure::UNEXPECTED)
        }
    }
}

/// Help that was asked for is a success; anything else that was said wrongly is the input's fault.
fn usage(err: &clap::Error) -> ExitCode {
    // Nothing can be done about a closed pipe here, and nothing needs to be.
    let _ = err.print();
    match err.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(failure::AT_FAULT),
    }
}

/// Warnings of the libraries go to standard error; `POLARISCOPE_LOG=debug` shows more.
fn log() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_env_var("POLARISCOPE_LOG")
        .with_default_directive(tracing_subscriber::filter::LevelFilter::WARN.into())
        .from_env_lossy();
    // A second call, from a test in the same process, changes nothing.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().try_init();
}
