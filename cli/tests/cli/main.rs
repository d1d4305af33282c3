//! Does the command behave at its border: help, errors, exit codes, what it leaves behind?

mod bad_input;
mod chat;
mod hands;
mod help;
mod interrupted;
mod ple;
mod routing;
mod shuffle;
mod support;
mod workers;
