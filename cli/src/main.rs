//! The program `polariscope`; see the library `cli` for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::prepare_environment();
    cli::main_with(std::env::args_os())
}
