//! Does a latent for a letter fall silent where a more particular latent has taken the letter over? Feature absorption.
//!
//! As in SAEBench 0.6 (Chanin et al., arXiv 2409.14507), but on the words of the recorded text and not on spelling prompts: the
//! examples are tokens that begin a word. For each letter, a dense probe of the activation is the truth (at the site that the
//! coder speaks of, as what latents contribute is compared with it); probes with F1 below
//! [`MIN_F1`] are left out. The main latents are the first of those whose means differ most, one more as long as F1 of the probe
//! on them rises by more than [`F1_JUMP`]. On words of the test with the letter:
//! - *full absorption*: no main latent fires; the latent that contributes most along the probe has a cosine of at least
//!   [`FULL_COSINE`] with it, and contributes at least [`MIN_PART`] of the activation's product with the probe's direction;
//! - *absorption fraction*: at most [`MAX_ABSORBING`] other latents with a cosine of at least [`FRACTION_COSINE`] that contribute
//!   at least [`MIN_PART`] together; their part of what they and the main latents contribute, as far as the activation has it.

use rayon::prelude::*;
use serde::Serialize;

use super::{
    ablation::along,
    examples::Examples,
    labels::Labels,
    logistic::{Probe, Scaling},
    sparse::{Task, columns, most_different},
};
use crate::{matrix::Matrix, sae::norm, workers::Workers};

/// Letters whose probe is worse are left out.
pub const MIN_F1: f64 = 0.6;
/// By how much F1 rises with another main latent.
pub const F1_JUMP: f64 = 0.03;
/// Main latents, at most.
pub const MAX_MAIN: usize = 10;
/// See the head of this file.
pub const FULL_COSINE: f64 = 0.025;
/// See the head of this file.
pub const FRACTION_COSINE: f64 = 0.1;
/// See the head of this file.
pub const MIN_PART: f64 = 0.4;
/// See the head of this file.
pub const MAX_ABSORBING: usize = 3;

/// Absorption of first letters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Absorption {
    /// The mean of full absorption over letters.
    pub full: f64,
    /// The mean of the absorption fraction over letters.
    pub fraction: f64,
    /// The mean number of main latents.
    pub n_main: f64,
    /// Each letter.
    pub letters: Vec<LetterAbsorption>,
}

/// Absorption of one letter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LetterAbsorption {
    /// Which.
    pub letter: String,
    /// Words of the test.
    pub n_words: usize,
    /// F1 of the dense probe.
    pub probe_f1: f64,
    /// F1 of the probe on the main latents.
    pub main_f1: f64,
    /// The main latents.
    pub main: Vec<u32>,
    /// The part of words with full absorption.
    pub full: f64,
    /// The mean absorption fraction.
    pub fraction: f64,
}

/// What latents contribute to a word along a probe.
struct Word {
    /// The activation's product with the probe's direction.
    projection: f64,
    /// Each latent that fires: its number, its contribution along the direction, and its cosine with it.
    parts: Vec<(u32, f64, f64)>,
}

impl Word {
    fn is_full(&self, main: &[u32]) -> bool {
        if self.parts.iter().any(|(latent, ..)| main.contains(latent)) || self.projection <= 0.0 {
            return false;
        }
        let top = self.parts.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        top.is_some_and(|&(_, part, cosine)| cosine >= FULL_COSINE && part / self.projection >= MIN_PART)
    }

    fn fraction(&self, main: &[u32]) -> f64 {
        let of_main: f64 = self.parts.iter().filter(|(latent, ..)| main.contains(latent)).map(|part| part.1).sum();
        let mut absorbing: Vec<f64> = self
            .parts
            .iter()
            .filter(|(latent, part, cosine)| !main.contains(latent) && *part > 0.0 && *cosine >= FRACTION_COSINE)
            .map(|part| part.1)
            .collect();
        absorbing.sort_by(|a, b| b.total_cmp(a));
        let absorbed: f64 = absorbing.iter().take(MAX_ABSORBING).sum();
        if self.projection <= 0.0 || of_main >= self.projection || absorbed / self.projection < MIN_PART {
            return 0.0;
        }
        if of_main <= 0.0 {
            return 1.0;
        }
        let absorbed = absorbed.min(self.projection - of_main);
        absorbed / (absorbed + of_main)
    }
}

/// `begins`: which examples begin a word. `decoder`: of coder `at` of the examples. `None` where no letter has a probe.
pub(super) fn absorption(
    examples: &Examples,
    begins: &[bool],
    decoder: &Matrix,
    at: usize,
    seed: u64,
    workers: &Workers,
) -> Option<Absorption> {
    let letters = examples.labels.iter().position(|labels| labels.name == "first_letter")?;
    let of =
        examples.labels[letters].of.iter().zip(begins).map(|(letter, begins)| letter.filter(|_| *begins)).collect();
    let labels = Labels { of, ..examples.labels[letters].clone() };
    // The same examples, of which only those that begin a word have a letter.
    let words = Words { examples, labels: std::slice::from_ref(&labels), decoder, at };
    let tasks = (0..labels.classes.len()).filter_map(|letter| words.task(letter, seed));
    let tasks: Vec<Task> = tasks.collect();
    let letters: Vec<LetterAbsorption> =
        workers.install(|| tasks.par_iter().filter_map(|task| words.letter(task)).collect());
    let n = letters.len() as f64;
    (!letters.is_empty()).then(|| Absorption {
        full: letters.iter().map(|letter| letter.full).sum::<f64>() / n,
        fraction: letters.iter().map(|letter| letter.fraction).sum::<f64>() / n,
        n_main: letters.iter().map(|letter| letter.main.len() as f64).sum::<f64>() / n,
        letters,
    })
}

struct Words<'a> {
    examples: &'a Examples,
    labels: &'a [Labels],
    decoder: &'a Matrix,
    at: usize,
}

impl Words<'_> {
    fn task(&self, letter: usize, seed: u64) -> Option<Task> {
        Task::balanced(self.labels, &self.examples.test, 0, letter, seed)
    }

    fn letter(&self, task: &Task) -> Option<LetterAbsorption> {
        let examples = self.examples;
        let acts = &examples.acts[self.at];
        let (train, test) = (task.positive(self.labels, &task.train), task.positive(self.labels, &task.test));
        let written = examples.written();
        let probe = Probe::fit(&written.of(&task.train), &train, written.width, Scaling::Whole);
        let probe_f1 = probe.score(&written.of(&task.test), &test).f1;
        if probe_f1 < MIN_F1 {
            return None;
        }
        let ranked = most_different(acts, &task.train, &train, MAX_MAIN);
        let (mut main, mut main_f1) = (Vec::new(), 0.0);
        for k in 1..=ranked.len() {
            let few = Probe::fit(&columns(acts, &task.train, &ranked[..k]), &train, k, Scaling::Columns);
            let f1 = few.score(&columns(acts, &task.test, &ranked[..k]), &test).f1;
            // There is always a first one.
            if k > 1 && f1 - main_f1 <= F1_JUMP {
                break;
            }
            main_f1 = f1;
            main = ranked[..k].to_vec();
        }
        let words: Vec<Word> = self.words(task, &test, &probe);
        let n = words.len() as f64;
        Some(LetterAbsorption {
            letter: self.labels[0].classes[task.class].clone(),
            n_words: words.len(),
            probe_f1,
            main_f1,
            full: words.iter().filter(|word| word.is_full(&main)).count() as f64 / n,
            fraction: words.iter().map(|word| word.fraction(&main)).sum::<f64>() / n,
            main,
        })
    }

    /// The words of the test with the letter.
    fn words(&self, task: &Task, test: &[bool], probe: &Probe) -> Vec<Word> {
        let length = probe.w.iter().map(|w| w * w).sum::<f64>().sqrt();
        let direction: Vec<f64> = probe.w.iter().map(|w| w / length).collect();
        let along = along(self.decoder, &direction);
        let with_letter = task.test.iter().zip(test).filter(|(_, positive)| **positive);
        with_letter
            .map(|(&example, _)| {
                let row = self.examples.written().row(example);
                let (latents, values) = self.examples.acts[self.at].row(example);
                let parts = latents.iter().zip(values).map(|(&latent, &value)| {
                    let along = along[latent as usize];
                    let length = f64::from(norm(self.decoder.row(latent as usize))).max(f64::MIN_POSITIVE);
                    (latent, f64::from(value) * along, along / length)
                });
                Word {
                    projection: row.iter().zip(&direction).map(|(&x, d)| f64::from(x) * d).sum(),
                    parts: parts.collect(),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_by_hand() {
        let main = [3];
        // Latent 7 has taken over: the main latent is silent.
        let absorbed = Word { projection: 10.0, parts: vec![(1, 1.0, 0.9), (7, 6.0, 0.2)] };
        assert!(absorbed.is_full(&main));
        assert_eq!(absorbed.fraction(&main), 1.0);
        // The main latent does its work.
        let sound = Word { projection: 10.0, parts: vec![(3, 10.5, 0.9), (7, 6.0, 0.2)] };
        assert!(!sound.is_full(&main));
        assert_eq!(sound.fraction(&main), 0.0);
        // It does a part of it: 2 of 2 + min(3 + 2 + 2, 10 − 2), the fourth latent being one too many.
        let partly = Word {
            projection: 10.0,
            parts: vec![(3, 2.0, 0.9), (7, 3.0, 0.2), (8, 2.0, 0.2), (9, 2.0, 0.2), (10, 1.0, 0.2)],
        };
        assert!(!partly.is_full(&main));
        assert!((partly.fraction(&main) - 7.0 / 9.0).abs() < 1e-12);
        // Neither aligned enough, nor strong enough.
        assert!(!Word { projection: 10.0, parts: vec![(7, 6.0, 0.02)] }.is_full(&main));
        assert!(!Word { projection: 10.0, parts: vec![(7, 3.9, 0.5)] }.is_full(&main));
        assert_eq!(Word { projection: 10.0, parts: vec![(7, 6.0, 0.09)] }.fraction(&main), 0.0);
        assert!(!Word { projection: -1.0, parts: vec![(7, 6.0, 0.5)] }.is_full(&main));
    }
}
