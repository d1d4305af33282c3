//! Does the command behave at its border: help, errors, exit codes, what it leaves behind?

mod bad_input;
mod chat;
mod evaluate;
mod export;
mod hands;
mod help;
mod import;
mod interrupted;
mod join;
mod ple;
mod query;
mod routing;
mod shuffle;
mod storage;
mod support;
mod sweep;
mod workers;
