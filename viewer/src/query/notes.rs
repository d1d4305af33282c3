//! What did people say, and how is something added?

use data::annotations::{Annotation, Annotations};

use super::Source;
use crate::loader::{Ask, Cancel, Failure};

/// Asks for what people said about the run.
#[derive(Debug, Clone)]
pub(crate) struct NotesQuery {
    /// Another number asks again: something was added.
    #[expect(dead_code, reason = "read as part of the `Debug` text, which is the identity of a question")]
    pub(crate) round: u64,
}

impl Ask for NotesQuery {
    type Answer = Annotations;
    const NAME: &'static str = "notes";

    fn answer(&self, source: &Source, _: &Cancel) -> Result<Annotations, Failure> {
        Ok(Annotations::read(&source.run)?)
    }

    fn bytes(answer: &Annotations) -> usize {
        answer.iter().count() * 256
    }
}

/// Adds something that a person said.
#[derive(Debug, Clone)]
pub(crate) struct NoteQuery {
    pub(crate) said: Annotation,
    /// Counts what was added, so that the same words can be said again later.
    pub(crate) number: u64,
}

impl Ask for NoteQuery {
    type Answer = ();
    const NAME: &'static str = "what you said";

    fn slot(&self) -> u64 {
        // None replaces another: each must be written.
        self.number
    }

    fn answer(&self, source: &Source, _: &Cancel) -> Result<(), Failure> {
        // What was said is written even if the window has moved on.
        source.write_note(&self.said)
    }

    fn bytes((): &()) -> usize {
        0
    }
}
