//! Do a few latents know what a dense probe of the activation knows? k-sparse probing.
//!
//! For each concept, as many positive as negative examples; the `k` latents whose mean differs most between the two, by the
//! training examples, and a logistic regression on them (SAEBench); beside it the same on all dimensions of the activation.
//! As in `sae-probes`, the same again with few training examples, and with few of one class among them.

use rayon::prelude::*;
use serde::Serialize;

use super::{
    super::recovered::shuffle,
    examples::Examples,
    labels::Labels,
    logistic::{Probe, Scaling},
    score::Score,
};
use crate::{sparse::SparseRows, workers::Workers};

/// How many latents a probe has (SAEBench's 1, 2 and 5, and sae-probes's 16).
pub const LATENTS: [usize; 4] = [1, 2, 5, 16];
/// Training examples of each class (SAEBench: 4,000 together).
pub const MAX_TRAIN: usize = 2000;
/// Test examples of each class.
pub const MAX_TEST: usize = 500;
/// Fewer of one class, and there is no probe.
pub const MIN_TRAIN: usize = 20;
/// See [`MIN_TRAIN`].
pub const MIN_TEST: usize = 5;
/// Training examples of both classes together where they are scarce.
pub const SCARCE: [usize; 5] = [16, 32, 64, 128, 256];
/// Training examples of both classes together where classes are not balanced.
pub const MAX_IMBALANCED: usize = 512;
/// Fewer training examples, and a concept is left out where classes are not balanced: each class must have two.
const MIN_IMBALANCED: usize = 80;
/// The part of the training examples that is positive where classes are not balanced.
pub const IMBALANCED: [f64; 5] = [0.05, 0.2, 0.5, 0.8, 0.95];
/// Latents of a probe where examples are scarce or classes not balanced.
pub const REGIME_LATENTS: usize = 16;

/// One class of a label against all others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConceptProbes {
    /// The question.
    pub label: String,
    /// The answer that is positive.
    pub class: String,
    /// Training examples, half of them positive.
    pub n_train: usize,
    /// Test examples, half of them positive.
    pub n_test: usize,
    /// What saying always the same gives: 0.5, as classes are balanced.
    pub majority: f64,
    /// On all dimensions of the activation.
    pub dense: Score,
    /// On a few latents of the coder.
    pub coder: Vec<LatentProbe>,
    /// On as few latents of the random dictionary.
    pub random_dictionary: Vec<LatentProbe>,
}

/// A probe on a few latents.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LatentProbe {
    /// How many.
    pub k: usize,
    /// Which, by how much their mean differs, descending.
    pub latents: Vec<u32>,
    /// How good it is.
    #[serde(flatten)]
    pub score: Score,
}

/// The mean AUC over concepts under one condition.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Regime {
    /// Training examples of both classes together, or the part of them that is positive.
    pub at: f64,
    /// Concepts that have enough examples.
    pub n_concepts: usize,
    /// On all dimensions.
    pub dense_auc: f64,
    /// On [`REGIME_LATENTS`] latents of the coder.
    pub coder_auc: f64,
    /// On as many of the random dictionary.
    pub random_dictionary_auc: Option<f64>,
}

/// Balanced examples of a concept: by turns a positive and a negative one.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) label: usize,
    pub(super) class: usize,
    pub(super) train: Vec<usize>,
    pub(super) test: Vec<usize>,
}

impl Task {
    /// Every concept that has enough examples.
    pub(super) fn all(examples: &Examples, seed: u64) -> Vec<Self> {
        let mut tasks = Vec::new();
        for (label, labels) in examples.labels.iter().enumerate() {
            tasks.extend(labels.concepts().filter_map(|class| Self::of(examples, label, class, seed)));
        }
        tasks
    }

    pub(super) fn of(examples: &Examples, label: usize, class: usize, seed: u64) -> Option<Self> {
        Self::balanced(&examples.labels, &examples.test, label, class, seed)
    }

    /// `is_test`: of each example.
    pub(super) fn balanced(labels: &[Labels], is_test: &[bool], label: usize, class: usize, seed: u64) -> Option<Self> {
        let of = &labels[label].of;
        let side = |positive: bool, test: bool| {
            let is =
                |example: &usize| of[*example].is_some_and(|of| (of == class) == positive) && is_test[*example] == test;
            let mut side: Vec<usize> = (0..of.len()).filter(is).collect();
            shuffle(&mut side, seed);
            side
        };
        let balanced = |test: bool, at_least: usize, at_most: usize| {
            let (positive, negative) = (side(true, test), side(false, test));
            let n = positive.len().min(negative.len()).min(at_most);
            (n >= at_least).then(|| positive.into_iter().zip(negative).take(n).flat_map(<[usize; 2]>::from).collect())
        };
        let (train, test) = (balanced(false, MIN_TRAIN, MAX_TRAIN)?, balanced(true, MIN_TEST, MAX_TEST)?);
        Some(Self { label, class, train, test })
    }

    /// Which examples are positive.
    pub(super) fn positive(&self, labels: &[Labels], examples: &[usize]) -> Vec<bool> {
        examples.iter().map(|&example| labels[self.label].of[example] == Some(self.class)).collect()
    }
}

/// The latents whose means differ most between positive and negative examples, descending.
pub(super) fn most_different(acts: &SparseRows, examples: &[usize], positive: &[bool], k: usize) -> Vec<u32> {
    let difference = mean_difference(acts, examples, positive);
    let mut order: Vec<u32> =
        (0..difference.len() as u32).filter(|&latent| difference[latent as usize] != 0.0).collect();
    let by_size =
        |&a: &u32, &b: &u32| difference[b as usize].abs().total_cmp(&difference[a as usize].abs()).then(a.cmp(&b));
    if order.len() > k && k > 0 {
        order.select_nth_unstable_by(k - 1, by_size);
        order.truncate(k);
    }
    order.sort_unstable_by(by_size);
    order
}

/// Of each latent up to the last that fires, the mean over positive examples less that over negative ones.
pub(super) fn mean_difference(acts: &SparseRows, examples: &[usize], positive: &[bool]) -> Vec<f64> {
    let n_positive = positive.iter().filter(|&&positive| positive).count().max(1) as f64;
    let n_negative = positive.iter().filter(|&&positive| !positive).count().max(1) as f64;
    let mut difference = Vec::new();
    for (&example, &positive) in examples.iter().zip(positive) {
        let (latents, values) = acts.row(example);
        for (&latent, &value) in latents.iter().zip(values) {
            if difference.len() <= latent as usize {
                difference.resize(latent as usize + 1, 0.0);
            }
            let weight = if positive { 1.0 / n_positive } else { -1.0 / n_negative };
            difference[latent as usize] += weight * f64::from(value);
        }
    }
    difference
}

/// The activations of some latents, `[examples, latents]`.
pub(super) fn columns(acts: &SparseRows, examples: &[usize], latents: &[u32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(examples.len() * latents.len());
    for &example in examples {
        let (fired, values) = acts.row(example);
        out.extend(latents.iter().map(|latent| fired.binary_search(latent).map_or(0.0, |at| values[at])));
    }
    out
}

/// A set of examples with labels, for fitting and for trying.
struct Trial<'a> {
    examples: &'a Examples,
    train: (&'a [usize], &'a [bool]),
    test: (&'a [usize], &'a [bool]),
}

impl Trial<'_> {
    fn dense(&self) -> Score {
        let read = &self.examples.read;
        let probe = Probe::fit(&read.of(self.train.0), self.train.1, read.width, Scaling::Columns);
        probe.score(&read.of(self.test.0), self.test.1)
    }

    /// On the most different latents of coder `at`, as many as each of `counts`.
    fn sparse(&self, at: usize, counts: &[usize]) -> Vec<LatentProbe> {
        let acts = &self.examples.acts[at];
        let most = counts.iter().copied().max().unwrap_or(0);
        let ranked = most_different(acts, self.train.0, self.train.1, most);
        let probes = counts.iter().map(|&k| {
            let latents = ranked[..k.min(ranked.len())].to_vec();
            if latents.is_empty() {
                return LatentProbe { k, latents, score: Score { accuracy: 0.5, f1: 0.0, auc: 0.5 } };
            }
            let probe =
                Probe::fit(&columns(acts, self.train.0, &latents), self.train.1, latents.len(), Scaling::Columns);
            let score = probe.score(&columns(acts, self.test.0, &latents), self.test.1);
            LatentProbe { k, latents, score }
        });
        probes.collect()
    }
}

/// Fits all probes of all tasks.
pub(super) fn concepts(examples: &Examples, tasks: &[Task], workers: &Workers) -> Vec<ConceptProbes> {
    workers.install(|| {
        tasks
            .par_iter()
            .map(|task| {
                let labels = &examples.labels[task.label];
                let train = task.positive(&examples.labels, &task.train);
                let test = task.positive(&examples.labels, &task.test);
                let trial = Trial { examples, train: (&task.train, &train), test: (&task.test, &test) };
                ConceptProbes {
                    label: labels.name.clone(),
                    class: labels.classes[task.class].clone(),
                    n_train: train.len(),
                    n_test: test.len(),
                    majority: 0.5,
                    dense: trial.dense(),
                    coder: trial.sparse(0, &LATENTS),
                    random_dictionary: if examples.acts.len() > 1 { trial.sparse(1, &LATENTS) } else { Vec::new() },
                }
            })
            .collect()
    })
}

/// With few training examples, of the concepts that have as many as the last of [`SCARCE`].
pub(super) fn scarce(examples: &Examples, tasks: &[Task], workers: &Workers) -> Vec<Regime> {
    let at = SCARCE.map(|n| (n as f64, n));
    regimes(
        examples,
        &with_training(tasks, SCARCE[SCARCE.len() - 1]),
        workers,
        &at.map(|(at, n)| (at, move |task: &Task| task.train.get(..n).map(<[usize]>::to_vec))),
    )
}

/// With few of one class: as many examples under every condition, so that only their mixture differs.
pub(super) fn imbalanced(examples: &Examples, tasks: &[Task], workers: &Workers) -> Vec<Regime> {
    let mixed = |part: f64| {
        move |task: &Task| {
            // Positive ones stand in even places, negative ones in odd.
            let n = (task.train.len() / 2).min(MAX_IMBALANCED);
            let n_positive = (n as f64 * part).round() as usize;
            let every =
                |first: usize, n: usize| task.train.iter().skip(first).step_by(2).take(n).copied().collect::<Vec<_>>();
            let (positive, negative) = (every(0, n_positive), every(1, n - n_positive));
            // Spread evenly, so that what is held out has both.
            let mut order: Vec<(f64, usize)> = Vec::new();
            for side in [positive, negative] {
                let step = 1.0 / side.len().max(1) as f64;
                order.extend(side.into_iter().enumerate().map(|(i, example)| ((i as f64 + 0.5) * step, example)));
            }
            order.sort_by(|a, b| a.0.total_cmp(&b.0));
            (n_positive >= 2 && n - n_positive >= 2).then(|| order.into_iter().map(|(_, example)| example).collect())
        }
    };
    let tasks = with_training(tasks, MIN_IMBALANCED);
    regimes(examples, &tasks, workers, &IMBALANCED.map(|part| (part, mixed(part))))
}

/// Tasks with at least `n` training examples: every condition is tried on the same ones.
fn with_training(tasks: &[Task], n: usize) -> Vec<Task> {
    tasks.iter().filter(|task| task.train.len() >= n).cloned().collect()
}

/// The mean over tasks under each condition, of those that a condition leaves enough training examples.
fn regimes<F: Fn(&Task) -> Option<Vec<usize>> + Sync>(
    examples: &Examples,
    tasks: &[Task],
    workers: &Workers,
    conditions: &[(f64, F)],
) -> Vec<Regime> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let mut out = Vec::new();
    for (at, train_of) in conditions {
        let found: Vec<(f64, f64, Option<f64>)> = workers.install(|| {
            tasks
                .par_iter()
                .filter_map(|task| {
                    let train_at = train_of(task)?;
                    let train = task.positive(&examples.labels, &train_at);
                    let test = task.positive(&examples.labels, &task.test);
                    let trial = Trial { examples, train: (&train_at, &train), test: (&task.test, &test) };
                    let sparse = |at: usize| trial.sparse(at, &[REGIME_LATENTS])[0].score.auc;
                    Some((trial.dense().auc, sparse(0), (examples.acts.len() > 1).then(|| sparse(1))))
                })
                .collect()
        });
        if found.is_empty() {
            continue;
        }
        let random: Vec<f64> = found.iter().filter_map(|found| found.2).collect();
        out.push(Regime {
            at: *at,
            n_concepts: found.len(),
            dense_auc: mean(&found.iter().map(|found| found.0).collect::<Vec<_>>()),
            coder_auc: mean(&found.iter().map(|found| found.1).collect::<Vec<_>>()),
            random_dictionary_auc: (!random.is_empty()).then(|| mean(&random)),
        });
    }
    out
}
