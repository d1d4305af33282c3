//! What do a coder's latents know of labels, and what does a dense probe of the same activation know?
//!
//! All of it from stored activations and the labels of [`mod@self::labels`]; the random dictionary of
//! [`super::baselines`] takes every test beside the coder.

pub mod ablation;
pub mod absorption;
mod examples;
mod labels;
pub mod logistic;
pub mod score;
pub mod sparse;

use std::{borrow::Cow, ops::ControlFlow};

use data::Run;
use serde::Serialize;

use self::{
    ablation::{Scr, Tpp},
    absorption::Absorption,
    examples::Source,
    score::Score,
    sparse::{ConceptProbes, LATENTS, Regime, Task},
};
use super::baselines::References;
use crate::{error::Result, matrix::Matrix, sae::SparseCoder, sites::Sites, workers::Workers};

/// Tokens that probes are fitted to and tried on.
pub const TOKENS: usize = 1 << 14;
/// Documents for each label of documents (SAEBench: 4,000 and 1,000).
pub const DOCUMENTS: usize = 5000;

/// What to look at.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Tokens, at most.
    pub tokens: usize,
    /// Documents for each label, at most.
    pub documents: usize,
    /// Which.
    pub seed: u64,
    /// Threads; 0 is one for every core.
    pub threads: usize,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { tokens: TOKENS, documents: DOCUMENTS, seed: 0, threads: 0 }
    }
}

/// What probes found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probing {
    /// Tokens that were looked at.
    pub n_tokens: usize,
    /// Documents that were looked at.
    pub n_documents: usize,
    /// The mean over concepts; `None` where there are none.
    pub mean: Option<MeanProbes>,
    /// Each concept: first those of tokens, then those of documents.
    pub concepts: Vec<ConceptProbes>,
    /// With few training examples.
    pub scarce: Vec<Regime>,
    /// With few of one class among the training examples.
    pub imbalanced: Vec<Regime>,
    /// Targeted probe perturbation; empty where no label has three classes with enough examples.
    pub tpp: Vec<Tpp>,
    /// Spurious correlation removal; empty where no two labels with two classes have enough examples of all four combinations.
    pub scr: Vec<Scr>,
    /// Of first letters; `None` where no probe knows a letter.
    pub absorption: Option<Absorption>,
    /// The same in the random dictionary.
    pub random_dictionary_absorption: Option<Absorption>,
}

/// Probes in the mean over concepts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeanProbes {
    /// What saying always the same gives.
    pub majority: f64,
    /// On all dimensions of the activation.
    pub dense: Score,
    /// On `k` latents of the coder.
    pub coder: Vec<MeanProbe>,
    /// On as many of the random dictionary.
    pub random_dictionary: Vec<MeanProbe>,
}

/// Probes on a few latents in the mean over concepts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeanProbe {
    /// How many.
    pub k: usize,
    /// How good they are.
    #[serde(flatten)]
    pub score: Score,
}

impl MeanProbes {
    fn of(concepts: &[ConceptProbes]) -> Option<Self> {
        if concepts.is_empty() {
            return None;
        }
        let mean = |of: &dyn Fn(&ConceptProbes) -> Option<Score>| -> Option<Score> {
            let scores: Vec<Score> = concepts.iter().filter_map(of).collect();
            (!scores.is_empty()).then(|| Score::mean(&scores))
        };
        let by_k = |of: fn(&ConceptProbes) -> &Vec<sparse::LatentProbe>| {
            let at = |(i, &k): (usize, &usize)| {
                Some(MeanProbe { k, score: mean(&|concept| of(concept).get(i).map(|probe| probe.score))? })
            };
            LATENTS.iter().enumerate().filter_map(at).collect()
        };
        Some(Self {
            majority: concepts.iter().map(|concept| concept.majority).sum::<f64>() / concepts.len() as f64,
            dense: mean(&|concept| Some(concept.dense))?,
            coder: by_k(|concept| &concept.coder),
            random_dictionary: by_k(|concept| &concept.random_dictionary),
        })
    }
}

/// Probes what the coder reads, and what it speaks of where latents are taken out of that. `progress` is given the tokens
/// encoded; when it breaks, the result is [`crate::Error::Interrupted`].
pub fn probe(
    run: &Run,
    sites: &Sites,
    coder: &dyn SparseCoder,
    references: &References,
    options: &ProbeOptions,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Probing> {
    sites.check(run, coder)?;
    let workers = Workers::new(options.threads)?;
    let mut coders: Vec<&dyn SparseCoder> = vec![coder];
    coders.extend(references.dictionary.as_ref().map(|random| random as &dyn SparseCoder));
    let decoders: Vec<Cow<'_, Matrix>> = coders.iter().map(|coder| coder.w_dec()).collect();
    let decoders: Vec<&Matrix> = decoders.iter().map(|decoder| &**decoder).collect();
    let mut source = Source { run, sites, coders: &coders, seed: options.seed, progress, done: 0, workers: &workers };
    let (tokens, begins) = source.tokens(options.tokens)?;
    let documents = source.documents(options.documents)?;
    let mut found = Probing {
        n_tokens: tokens.n(),
        n_documents: documents.n(),
        mean: None,
        concepts: Vec::new(),
        scarce: Vec::new(),
        imbalanced: Vec::new(),
        tpp: Vec::new(),
        scr: Vec::new(),
        absorption: None,
        random_dictionary_absorption: None,
    };
    for examples in [&tokens, &documents] {
        let tasks = Task::all(examples, options.seed);
        source.report(0)?;
        found.concepts.extend(sparse::concepts(examples, &tasks, &workers));
        source.report(0)?;
        if std::ptr::eq(examples, &raw const tokens) {
            found.scarce = sparse::scarce(examples, &tasks, &workers);
            source.report(0)?;
            found.imbalanced = sparse::imbalanced(examples, &tasks, &workers);
            source.report(0)?;
        }
        found.tpp.extend(ablation::tpp(examples, &decoders, options.seed, &workers));
        source.report(0)?;
        found.scr.extend(ablation::scr(examples, &decoders, options.seed, &workers));
        source.report(0)?;
    }
    let absorption = |at: usize| {
        let decoder = decoders.get(at)?;
        absorption::absorption(&tokens, &begins, decoder, at, options.seed, &workers)
    };
    found.absorption = absorption(0);
    found.random_dictionary_absorption = absorption(1);
    found.mean = MeanProbes::of(&found.concepts);
    Ok(found)
}

#[cfg(test)]
mod tests;
