//! Does the whole way hold, from a checkpoint and a corpus to a picture of a feature?
#![expect(clippy::print_stderr, reason = "a test that leaves something out says so")]

mod damage;
mod examples;
mod hostile;
mod hub;
mod layers;
mod main_path;
mod object_store;
mod readers;
mod support;
mod survives;
mod tables;
