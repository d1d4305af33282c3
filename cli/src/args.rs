//! What may be said on the command line?

use clap::{Parser, Subcommand};

use crate::invocation::Invocation;

/// A workbench to look inside Gemma: record activations, train sparse coders, look at their features
#[derive(Debug, Parser)]
#[command(name = "polariscope", version, about, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "Example:\n  polariscope demo --no-window\n\n\
                        Exit codes: 0 done, 1 the input or the run is at fault, 2 unexpected.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Models(crate::models::Models),
    Fetch(crate::fetch::Fetch),
    Inspect(crate::inspect::Inspect),
    Run(crate::run::Run),
    Patch(crate::patch::Patch),
    Record(crate::record::Record),
    Shuffle(crate::shuffle::Shuffle),
    Status(crate::status::Status),
    Merge(crate::merge::Merge),
    Train(crate::train::Train),
    Import(crate::import::Import),
    Encode(crate::encode::Encode),
    Evaluate(crate::evaluate::Evaluate),
    Join(crate::join::Join),
    Routing(crate::routing::Routing),
    Ple(crate::ple::Ple),
    Query(crate::query::Query),
    Export(crate::export::Export),
    Verify(crate::verify::Verify),
    View(crate::view::View),
    Demo(crate::demo::Demo),
}

impl Command {
    pub(crate) fn run(self, invocation: &Invocation) -> anyhow::Result<()> {
        match self {
            Self::Models(command) => command.run(),
            Self::Fetch(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Run(command) => command.run(),
            Self::Patch(command) => command.run(),
            Self::Record(command) => command.run(invocation),
            Self::Shuffle(command) => command.run(invocation),
            Self::Status(command) => command.run(),
            Self::Merge(command) => command.run(),
            Self::Train(command) => command.run(invocation),
            Self::Import(command) => command.run(),
            Self::Encode(command) => command.run(),
            Self::Evaluate(command) => command.run(invocation),
            Self::Join(command) => command.run(),
            Self::Routing(command) => command.run(),
            Self::Ple(command) => command.run(),
            Self::Query(command) => command.run(),
            Self::Export(command) => command.run(),
            Self::Verify(command) => command.run(invocation),
            Self::View(command) => command.run(),
            Self::Demo(command) => command.run(invocation),
        }
    }
}
