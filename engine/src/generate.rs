//! Which token comes next, and next, and next?

use std::ops::ControlFlow;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

use crate::error::{Error, Result};
use crate::gemma::model::{Batch, Forward, Logits, Model, to_vec_f32};
use crate::hook::Hooks;
use crate::kv_cache::KvCache;

/// How a token is chosen from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 takes the most probable token.
    pub temperature: f64,
    /// Only this many of the most probable tokens; `None` for all.
    pub top_k: Option<usize>,
    /// Only the smallest set of tokens whose probabilities reach this sum; `None` for all.
    pub top_p: Option<f64>,
    pub seed: u64,
}

impl Sampling {
    /// Always the most probable token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: None, top_p: None, seed: 0 };
}

/// How long generation goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Tokens that end the generation; the one that did is not returned.
    pub stop: Vec<u32>,
}

impl Model {
    /// Continues `prompt`, with a cache of keys and values.
    ///
    /// `hooks` run at every step: on the whole prompt first, then on one token at a time.
    /// `on_token` sees each token as it comes and may end the generation.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &Generate,
        hooks: &mut Hooks<'_>,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        self.generate_from(&mut self.kv_cache(1), prompt, options, hooks, on_token)
    }

    /// Continues the one sequence that `cache` remembers with `tokens`, and then with what the model says.
    ///
    /// Afterwards the cache holds all of it but the last token, if the model was not asked what comes after that.
    pub fn generate_from(
        &self,
        cache: &mut KvCache,
        tokens: &[u32],
        options: &Generate,
        hooks: &mut Hooks<'_>,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        options.sampling.check()?;
        let mut rng = Pcg64::seed_from_u64(options.sampling.seed);
        let mut generated = Vec::new();
        let mut next = Batch::one(tokens);
        while generated.len() < options.max_tokens {
            let output =
                self.forward(&next, Some(&mut *cache), hooks, Forward { logits: Logits::Last, ..Forward::default() })?;
            let logits = output.logits.map(|logits| to_vec_f32(&logits)).unwrap_or_default();
            let token = options.sampling.choose(&logits, &mut rng);
            if options.stop.contains(&token) {
                break;
            }
            generated.push(token);
            if on_token(token).is_break() {
                break;
            }
            next = Batch::one(&[token]);
        }
        Ok(generated)
    }
}

impl Sampling {
    fn check(&self) -> Result<()> {
        let wrong = |what: &str, found: String| Err(Error::Sampling { what: what.to_owned(), found });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("a temperature of 0 or more", self.temperature.to_string());
        }
        if self.top_k == Some(0) {
            return wrong("a top-k of 1 or more", "0".to_owned());
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => wrong("a top-p above 0 and at most 1", p.to_string()),
            _ => Ok(()),
        }
    }

    /// Draws a token. Ties go to the lower id, as `argmax` does.
    fn choose(&self, logits: &[f32], rng: &mut Pcg64) -> u32 {
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        if self.temperature == 0.0 {
            return ids.into_iter().min_by(by_logit).unwrap_or_default();
        }
        if let Some(k) = self.top_k.filter(|&k| k < ids.len()) {
            ids.select_nth_unstable_by(k, by_logit);
            ids.truncate(k);
        }
        ids.sort_unstable_by(by_logit);
        let best = f64::from(logits[ids[0] as usize]);
        let weights: Vec<f64> =
            ids.iter().map(|&id| ((f64::from(logits[id as usize]) - best) / self.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        // The token that crosses `top_p` still belongs to the set.
        let limit = self.top_p.map_or(total, |p| p * total);
        let mut mass = 0.0;
        let kept = weights
            .iter()
            .take_while(|&&weight| {
                let inside = mass < limit;
                mass += weight;
                inside
            })
            .count()
            .max(1);
        let mut left = rng.random::<f64>() * weights[..kept].iter().sum::<f64>();
        for (&id, &weight) in ids.iter().zip(&weights[..kept]) {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        ids[kept - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling) -> Vec<usize> {
        let logits = [0.0, 2.0, 1.0, -1.0].map(|x: f32| x);
        let mut rng = Pcg64::seed_from_u64(sampling.seed);
        let mut counts = vec![0; logits.len()];
        for _ in 0..4000 {
            counts[sampling.choose(&logits, &mut rng) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut rng = Pcg64::seed_from_u64(0);
        assert_eq!(Sampling::GREEDY.choose(&[1.0, 3.0, 3.0], &mut rng), 1);
    }

    #[test]
    fn sampling_follows_the_softmax() {
        let counts = draws(Sampling { temperature: 1.0, ..Sampling::GREEDY });
        let z: f64 = [0.0f64, 2.0, 1.0, -1.0].iter().map(|x| x.exp()).sum();
        for (count, x) in counts.iter().zip([0.0f64, 2.0, 1.0, -1.0]) {
            let expected = 4000.0 * x.exp() / z;
            assert!((*count as f64 - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let counts = draws(Sampling { temperature: 1.0, top_k: Some(2), ..Sampling::GREEDY });
        assert!(counts[0] == 0 && counts[3] == 0 && counts[1] > counts[2] && counts[2] > 0, "{counts:?}");
        // The probabilities are 0.64, 0.24, 0.09 and 0.03: two of them reach 0.7.
        let counts = draws(Sampling { temperature: 1.0, top_p: Some(0.7), ..Sampling::GREEDY });
        assert!(counts[0] == 0 && counts[3] == 0 && counts[2] > 0, "{counts:?}");
    }
}
