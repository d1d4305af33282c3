//! How far is a long job?

use std::ops::ControlFlow;

/// How far a job is, in units that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// Is called now and then while a job runs; when it breaks, the job ends with [`crate::Error::Interrupted`].
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;
