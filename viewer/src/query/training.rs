//! How did the coders of the run learn, and how do those that still learn?

use super::Source;
use super::overview::{Curve, curves, metrics};
use crate::loader::{Ask, Cancel, Failure};

/// Asks for the curves of all coders of the run.
#[derive(Debug, Clone)]
pub(crate) struct TrainingQuery {
    /// Another number asks again: a coder that is in training writes its metrics anew.
    #[expect(dead_code, reason = "read as part of the `Debug` text, which is the identity of a question")]
    pub(crate) round: u64,
}

/// A coder with its curves.
#[derive(Debug)]
pub(crate) struct Coder {
    pub(crate) name: String,
    /// Its weights are there.
    pub(crate) finished: bool,
    pub(crate) curves: Vec<Curve>,
}

impl Ask for TrainingQuery {
    type Answer = Vec<Coder>;
    const NAME: &'static str = "training";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Vec<Coder>, Failure> {
        let mut coders = Vec::new();
        for name in source.run.saes()? {
            cancel.check()?;
            let Some(metrics) = metrics(&source.run, &name)? else { continue };
            let finished = source.run.sae_file(&name, "sae_weights.safetensors")?.is_some();
            coders.push(Coder { name, finished, curves: curves(&metrics) });
        }
        Ok(coders)
    }

    fn bytes(answer: &Vec<Coder>) -> usize {
        answer.iter().flat_map(|coder| &coder.curves).map(|curve| curve.points.len() * 16 + 64).sum()
    }
}
