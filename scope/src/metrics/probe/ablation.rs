//! Do latents carry one concept each, so that a concept can be taken out without the others?
//!
//! As in SAEBench. A latent is attributed to a concept by (mean over positive − mean over negative examples) of its activation,
//! times the product of its decoder row with the concept's dense probe; the `n` with the largest positive attribution are
//! ablated: what they contribute is subtracted from the activation, and probes that were fitted before look at what is left.
//! - *Targeted probe perturbation* (TPP): by how much the accuracy of the concept's own probe falls, less the mean by which those
//!   of the other concepts of the label fall.
//! - *Spurious correlation removal* (SCR): a probe for one label was fitted where a second one always agreed with it. Latents of
//!   the second are ablated, and S = (accuracy after − before) / (accuracy of a probe fitted without the correlation − before),
//!   on test examples without the correlation.
//!
//! The probes stand at the site that the coder speaks of: of a transcoder, where it writes and not where it reads. What reaches
//! that site beside its latents (a skip connection, and what the coder does not explain) stays.

use rayon::prelude::*;
use serde::Serialize;

use super::{
    super::recovered::shuffle,
    examples::Examples,
    logistic::{Probe, Scaling},
    sparse::{MAX_TEST, MAX_TRAIN, MIN_TEST, MIN_TRAIN, Task, mean_difference},
};
use crate::{matrix::Matrix, sparse::SparseRows, workers::Workers};

/// How many latents are ablated (SAEBench).
pub const ABLATED: [usize; 7] = [2, 5, 10, 20, 50, 100, 500];
/// Classes that a label needs for TPP: of two, each is the other's opposite.
const MIN_CLASSES: usize = 3;
/// What a correlation has to cost for there to be something to remove.
pub const MIN_COST: f64 = 0.02;

/// Targeted probe perturbation on the classes of a label.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tpp {
    /// The question.
    pub label: String,
    /// Its answers that have enough examples.
    pub classes: Vec<String>,
    /// The mean accuracy of their probes before.
    pub accuracy: f64,
    /// For each number of ablated latents.
    pub coder: Vec<Perturbation>,
    /// The same with the random dictionary.
    pub random_dictionary: Vec<Perturbation>,
}

/// What ablating latents does to probes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perturbation {
    /// Latents ablated.
    pub n: usize,
    /// Own less others.
    pub tpp: f64,
    /// By how much the accuracy of the probe falls whose latents are ablated.
    pub own: f64,
    /// By how much those of the others do.
    pub others: f64,
}

/// Removing a spurious correlation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scr {
    /// The label that the probe is for.
    pub target: String,
    /// The label that always agreed with it.
    pub spurious: String,
    /// Of the probe fitted with the correlation.
    pub accuracy_before: f64,
    /// Of a probe fitted without it.
    pub accuracy_clean: f64,
    /// For each number of ablated latents; empty where the correlation costs less than [`MIN_COST`].
    pub coder: Vec<Removal>,
    /// The same with the random dictionary.
    pub random_dictionary: Vec<Removal>,
}

/// What ablating the latents of the spurious label gives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Removal {
    /// Latents ablated.
    pub n: usize,
    /// Accuracy after.
    pub accuracy: f64,
    /// The part of the cost of the correlation that is made good.
    pub scr: f64,
}

/// The product of each decoder row with a probe.
pub(super) fn along(decoder: &Matrix, w: &[f64]) -> Vec<f64> {
    (0..decoder.rows()).map(|latent| decoder.row(latent).iter().zip(w).map(|(&d, w)| f64::from(d) * w).sum()).collect()
}

/// Latents with the largest positive attribution, descending.
fn attributed(acts: &SparseRows, examples: &[usize], positive: &[bool], along: &[f64], n: usize) -> Vec<u32> {
    let mut effects: Vec<(f64, u32)> = mean_difference(acts, examples, positive)
        .into_iter()
        .zip(along)
        .map(|(difference, along)| difference * along)
        .zip(0..)
        .filter(|(effect, _)| *effect > 0.0)
        .collect();
    effects.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    effects.truncate(n);
    effects.into_iter().map(|(_, latent)| latent).collect()
}

/// The part of a logit that some latents (ascending) contribute to an example.
fn contributed(acts: &SparseRows, example: usize, latents: &[u32], along: &[f64]) -> f64 {
    let (fired, values) = acts.row(example);
    let mine = fired.iter().zip(values).filter(|(latent, _)| latents.binary_search(latent).is_ok());
    mine.map(|(&latent, &value)| f64::from(value) * along[latent as usize]).sum()
}

/// The part of examples whose logit, less what `latents` contribute, is on the right side.
fn accuracy_without(
    acts: &SparseRows,
    examples: &[usize],
    logits: &[f64],
    positive: &[bool],
    latents: &[u32],
    along: &[f64],
) -> f64 {
    let mut latents = latents.to_vec();
    latents.sort_unstable();
    let right = examples.iter().zip(logits).zip(positive).filter(|&((&example, logit), &positive)| {
        (logit - contributed(acts, example, &latents, along) > 0.0) == positive
    });
    right.count() as f64 / examples.len().max(1) as f64
}

/// A dense probe of a concept with its test.
struct Fitted {
    task: Task,
    train: Vec<bool>,
    test: Vec<bool>,
    probe: Probe,
    logits: Vec<f64>,
}

impl Fitted {
    fn of(examples: &Examples, task: Task) -> Self {
        let written = examples.written();
        let train = task.positive(&examples.labels, &task.train);
        let test = task.positive(&examples.labels, &task.test);
        let probe = Probe::fit(&written.of(&task.train), &train, written.width, Scaling::Whole);
        let logits = task.test.iter().map(|&example| probe.logit(written.row(example))).collect();
        Self { task, train, test, probe, logits }
    }
}

/// TPP on every label with enough classes. `decoders`: of each coder of the examples.
pub(super) fn tpp(examples: &Examples, decoders: &[&Matrix], seed: u64, workers: &Workers) -> Vec<Tpp> {
    let mut found = Vec::new();
    for (label, labels) in examples.labels.iter().enumerate() {
        let tasks: Vec<Task> =
            (0..labels.classes.len()).filter_map(|class| Task::of(examples, label, class, seed)).collect();
        if tasks.len() < MIN_CLASSES {
            continue;
        }
        let fitted: Vec<Fitted> =
            workers.install(|| tasks.into_par_iter().map(|task| Fitted::of(examples, task)).collect());
        let before: Vec<f64> = fitted
            .iter()
            .map(|fitted| {
                accuracy_without(&examples.acts[0], &fitted.task.test, &fitted.logits, &fitted.test, &[], &[])
            })
            .collect();
        let mut of_coders = decoders
            .iter()
            .zip(&examples.acts)
            .map(|(decoder, acts)| workers.install(|| perturbations(&fitted, &before, decoder, acts)));
        found.push(Tpp {
            label: labels.name.clone(),
            classes: fitted.iter().map(|fitted| labels.classes[fitted.task.class].clone()).collect(),
            accuracy: before.iter().sum::<f64>() / before.len() as f64,
            coder: of_coders.next().unwrap_or_default(),
            random_dictionary: of_coders.next().unwrap_or_default(),
        });
    }
    found
}

fn perturbations(fitted: &[Fitted], before: &[f64], decoder: &Matrix, acts: &SparseRows) -> Vec<Perturbation> {
    let along: Vec<Vec<f64>> = fitted.par_iter().map(|fitted| self::along(decoder, &fitted.probe.w)).collect();
    let most = ABLATED[ABLATED.len() - 1];
    let of_class: Vec<Vec<u32>> = fitted
        .par_iter()
        .zip(&along)
        .map(|(fitted, along)| attributed(acts, &fitted.task.train, &fitted.train, along, most))
        .collect();
    ABLATED
        .iter()
        .map(|&n| {
            // By whose latents are ablated, then by whose probe looks.
            let drops: Vec<Vec<f64>> = of_class
                .par_iter()
                .map(|latents| {
                    let latents = &latents[..n.min(latents.len())];
                    let probes = fitted.iter().zip(&along).zip(before);
                    probes
                        .map(|((of, along), before)| {
                            before - accuracy_without(acts, &of.task.test, &of.logits, &of.test, latents, along)
                        })
                        .collect()
                })
                .collect();
            let classes = drops.len() as f64;
            let own = drops.iter().enumerate().map(|(class, drops)| drops[class]).sum::<f64>();
            let all = drops.iter().flatten().sum::<f64>();
            let (own, others) = (own / classes, (all - own) / (classes * (classes - 1.0)));
            Perturbation { n, tpp: own - others, own, others }
        })
        .collect()
}

/// SCR on every pair of labels with two answers, either way round, of which all four combinations have enough examples.
pub(super) fn scr(examples: &Examples, decoders: &[&Matrix], seed: u64, workers: &Workers) -> Vec<Scr> {
    let labels: Vec<usize> =
        (0..examples.labels.len()).filter(|&label| examples.labels[label].classes.len() == 2).collect();
    let pairs: Vec<[usize; 2]> = labels
        .iter()
        .flat_map(|&target| labels.iter().map(move |&spurious| [target, spurious]))
        .filter(|[target, spurious]| target != spurious)
        .collect();
    workers.install(|| pairs.into_par_iter().filter_map(|pair| scr_of(examples, decoders, pair, seed)).collect())
}

/// Examples by whether the target and whether the spurious label is positive.
struct Quadrants {
    /// `[target][spurious]`.
    of: [[Vec<usize>; 2]; 2],
}

impl Quadrants {
    fn of(examples: &Examples, [target, spurious]: [usize; 2], test: bool, limit: usize, seed: u64) -> Self {
        let mut of: [[Vec<usize>; 2]; 2] = Default::default();
        for example in (0..examples.n()).filter(|&example| examples.test[example] == test) {
            let answers = [target, spurious].map(|label| examples.labels[label].of[example]);
            if let [Some(target), Some(spurious)] = answers {
                of[target][spurious].push(example);
            }
        }
        let n = of.iter().flatten().map(Vec::len).min().unwrap_or(0).min(limit);
        for side in of.iter_mut().flatten() {
            shuffle(side, seed);
            side.truncate(n);
        }
        Self { of }
    }

    fn n(&self) -> usize {
        self.of[0][0].len()
    }

    /// All examples by turns, with whether one of the labels (0 the target, 1 the spurious) is positive; if `agreeing`, only
    /// those where both agree.
    fn examples(&self, label: usize, agreeing: bool) -> (Vec<usize>, Vec<bool>) {
        let mut out = (Vec::new(), Vec::new());
        for i in 0..self.n() {
            for (target, spurious) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
                if !agreeing || target == spurious {
                    out.0.push(self.of[target][spurious][i]);
                    out.1.push([target, spurious][label] == 1);
                }
            }
        }
        out
    }
}

fn scr_of(examples: &Examples, decoders: &[&Matrix], pair: [usize; 2], seed: u64) -> Option<Scr> {
    let train = Quadrants::of(examples, pair, false, MAX_TRAIN / 2, seed);
    let test = Quadrants::of(examples, pair, true, MAX_TEST / 2, seed);
    if train.n() < MIN_TRAIN || test.n() < MIN_TEST {
        return None;
    }
    let written = examples.written();
    let fit = |(chosen, positive): &(Vec<usize>, Vec<bool>)| {
        Probe::fit(&written.of(chosen), positive, written.width, Scaling::Whole)
    };
    let spurious_train = train.examples(1, false);
    let (biased, clean, spurious) =
        (fit(&train.examples(0, true)), fit(&train.examples(0, false)), fit(&spurious_train));
    let (chosen, positive) = test.examples(0, false);
    let logits = |probe: &Probe| chosen.iter().map(|&example| probe.logit(written.row(example))).collect::<Vec<f64>>();
    let accuracy = |logits: &[f64]| accuracy_without(&examples.acts[0], &chosen, logits, &positive, &[], &[]);
    let before = logits(&biased);
    let (accuracy_before, accuracy_clean) = (accuracy(&before), accuracy(&logits(&clean)));
    let cost = accuracy_clean - accuracy_before;
    let mut removals = decoders.iter().zip(&examples.acts).map(|(decoder, acts)| {
        let latents = attributed(
            acts,
            &spurious_train.0,
            &spurious_train.1,
            &along(decoder, &spurious.w),
            ABLATED[ABLATED.len() - 1],
        );
        let along = along(decoder, &biased.w);
        let removal = |&n: &usize| {
            let latents = &latents[..n.min(latents.len())];
            let accuracy = accuracy_without(acts, &chosen, &before, &positive, latents, &along);
            Removal { n, accuracy, scr: (accuracy - accuracy_before) / cost }
        };
        if cost < MIN_COST { Vec::new() } else { ABLATED.iter().map(removal).collect() }
    });
    let names = pair.map(|label| examples.labels[label].name.clone());
    let [target, spurious] = names;
    Some(Scr {
        target,
        spurious,
        accuracy_before,
        accuracy_clean,
        coder: removals.next().unwrap_or_default(),
        random_dictionary: removals.next().unwrap_or_default(),
    })
}
