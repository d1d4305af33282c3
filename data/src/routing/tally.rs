//! How are the choices of a layer added up in one pass over the tokens?

use super::RoutingColumns;
use super::report::{ExpertLoad, LayerRouting, LoadBalance, NeighbourOverlap, NextLayer, TokenLift, chance};

/// What is known of the tokens of a batch, for all layers.
#[derive(Debug, Default)]
pub(super) struct BatchTokens {
    /// Whether a token is counted.
    pub(super) counted: Vec<bool>,
    /// Whether it and the one before it are counted and neighbours in a sequence.
    pub(super) follows: Vec<bool>,
    /// Its place among the tokens of the vocabulary that are common enough, if it has one.
    pub(super) slot: Vec<Option<u32>>,
}

/// A token of the vocabulary that is common enough for a statement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common {
    pub(super) token_id: u32,
    pub(super) occurrences: u64,
}

/// Sums of one layer.
#[derive(Debug)]
pub(super) struct Tally {
    n_experts: usize,
    top_k: usize,
    n_tokens: u64,
    /// `[E]`
    tokens: Vec<u64>,
    weights: Vec<f64>,
    probs: Vec<f64>,
    /// `[E, E]`
    co_selected: Vec<u64>,
    entropy: f64,
    dense_norm: f64,
    moe_norm: f64,
    neighbours: u64,
    shared: u64,
    /// `[slot, E]`
    by_token: Vec<u64>,
    /// The choice of the last token.
    last: Vec<u16>,
}

impl Tally {
    pub(super) fn new(n_experts: usize, top_k: usize, n_slots: usize) -> Self {
        Self {
            n_experts,
            top_k,
            n_tokens: 0,
            tokens: vec![0; n_experts],
            weights: vec![0.0; n_experts],
            probs: vec![0.0; n_experts],
            co_selected: vec![0; n_experts * n_experts],
            entropy: 0.0,
            dense_norm: 0.0,
            moe_norm: 0.0,
            neighbours: 0,
            shared: 0,
            by_token: vec![0; n_slots * n_experts],
            last: Vec::new(),
        }
    }

    /// Adds consecutive tokens, which follow those before; every expert is below `E`.
    pub(super) fn add(&mut self, columns: &RoutingColumns, tokens: &BatchTokens) {
        let (k, n_experts) = (self.top_k, self.n_experts);
        let choices = columns.expert_ids.chunks_exact(k);
        let numbers = columns.weights.chunks_exact(k).zip(columns.probs.chunks_exact(k));
        for (i, (ids, (weights, probs))) in choices.zip(numbers).enumerate() {
            if !tokens.counted[i] {
                continue;
            }
            self.n_tokens += 1;
            self.entropy += f64::from(columns.entropy[i]);
            self.dense_norm += f64::from(columns.dense_norm[i]);
            self.moe_norm += f64::from(columns.moe_norm[i]);
            for (slot, &id) in ids.iter().enumerate() {
                let expert = usize::from(id);
                self.tokens[expert] += 1;
                self.weights[expert] += f64::from(weights[slot]);
                self.probs[expert] += f64::from(probs[slot]);
                let row = &mut self.co_selected[expert * n_experts..(expert + 1) * n_experts];
                for &other in ids {
                    row[usize::from(other)] += 1;
                }
            }
            if let Some(slot) = tokens.slot[i] {
                let row = &mut self.by_token[slot as usize * n_experts..(slot as usize + 1) * n_experts];
                for &id in ids {
                    row[usize::from(id)] += 1;
                }
            }
            if tokens.follows[i] {
                let last = if i == 0 { &self.last[..] } else { &columns.expert_ids[(i - 1) * k..i * k] };
                self.neighbours += 1;
                self.shared += ids.iter().filter(|id| last.contains(id)).count() as u64;
            }
        }
        if let Some(last) = columns.expert_ids.chunks_exact(k).next_back() {
            self.last = last.to_vec();
        }
    }

    /// What the sums say; texts of tokens are left empty, the pairs and the next layer to the caller.
    pub(super) fn finish(&self, layer: usize, common: &[Common], min_count: u64, top: usize) -> LayerRouting {
        let choices = (self.n_tokens * self.top_k as u64) as f64;
        let mean = |sum: f64| (self.n_tokens > 0).then(|| sum / self.n_tokens as f64);
        let experts = (0..self.n_experts).map(|expert| {
            let tokens = self.tokens[expert];
            let mean = |sum: f64| (tokens > 0).then(|| sum / tokens as f64);
            ExpertLoad {
                expert,
                tokens,
                share: (self.n_tokens > 0).then(|| tokens as f64 / choices),
                mean_weight: mean(self.weights[expert]),
                mean_prob: mean(self.probs[expert]),
                top_tokens: self.top_tokens(expert, common, min_count, top),
            }
        });
        let squares: f64 = self.tokens.iter().map(|&n| (n as f64 / self.n_tokens as f64).powi(2)).sum();
        LayerRouting {
            layer,
            n_tokens: self.n_tokens,
            router_entropy: mean(self.entropy),
            dense_norm: mean(self.dense_norm),
            moe_norm: mean(self.moe_norm),
            load: self.balance(),
            neighbours: NeighbourOverlap {
                pairs: self.neighbours,
                overlap: (self.neighbours > 0)
                    .then(|| self.shared as f64 / (self.neighbours * self.top_k as u64) as f64),
                chance: (self.n_tokens > 0).then(|| squares / self.top_k as f64),
            },
            next_layer: None,
            experts: experts.collect(),
            top_pairs: Vec::new(),
            co_selected: self.co_selected.clone(),
        }
    }

    fn balance(&self) -> LoadBalance {
        let never_fired = self.tokens.iter().filter(|&&n| n == 0).count();
        if self.n_tokens == 0 {
            return LoadBalance { cv: None, max_over_mean: None, never_fired, entropy: None };
        }
        let choices = (self.n_tokens * self.top_k as u64) as f64;
        let mean = choices / self.n_experts as f64;
        let variance = self.tokens.iter().map(|&n| (n as f64 - mean).powi(2)).sum::<f64>() / self.n_experts as f64;
        let greatest = self.tokens.iter().copied().max().unwrap_or(0);
        LoadBalance {
            cv: Some(variance.sqrt() / mean),
            max_over_mean: Some(greatest as f64 / mean),
            never_fired,
            entropy: Some(entropy(&self.tokens)),
        }
    }

    fn top_tokens(&self, expert: usize, common: &[Common], min_count: u64, top: usize) -> Vec<TokenLift> {
        let seen = common.iter().enumerate().filter_map(|(slot, common)| {
            let count = self.by_token[slot * self.n_experts + expert];
            (count >= min_count.max(1)).then(|| {
                let expected = chance(common.occurrences, self.tokens[expert], self.n_tokens);
                TokenLift {
                    token_id: common.token_id,
                    token: String::new(),
                    count,
                    occurrences: common.occurrences,
                    expected,
                    lift: count as f64 / expected,
                }
            })
        });
        let mut tokens: Vec<TokenLift> = seen.collect();
        tokens.sort_by(|x, y| y.lift.total_cmp(&x.lift).then(y.count.cmp(&x.count)).then(x.token_id.cmp(&y.token_id)));
        tokens.truncate(top);
        tokens
    }
}

/// How often each first choice of a layer came with each first choice of the next.
#[derive(Debug)]
pub(super) struct Link {
    n_experts: usize,
    /// `[E, E]`
    first: Vec<u64>,
}

impl Link {
    pub(super) fn new(n_experts: usize) -> Self {
        Self { n_experts, first: vec![0; n_experts * n_experts] }
    }

    pub(super) fn add(&mut self, this: &RoutingColumns, next: &RoutingColumns, top_k: usize, counted: &[bool]) {
        let both = this.expert_ids.chunks_exact(top_k).zip(next.expert_ids.chunks_exact(top_k));
        for ((this, next), _) in both.zip(counted).filter(|(_, counted)| **counted) {
            self.first[usize::from(this[0]) * self.n_experts + usize::from(next[0])] += 1;
        }
    }

    pub(super) fn finish(&self, layer: usize) -> NextLayer {
        let n = self.n_experts;
        let total: u64 = self.first.iter().sum();
        let this: Vec<u64> = self.first.chunks_exact(n).map(|row| row.iter().sum()).collect();
        let next: Vec<u64> = (0..n).map(|b| self.first.iter().skip(b).step_by(n).sum()).collect();
        let ever = |counts: &[u64]| counts.iter().filter(|&&count| count > 0).count().saturating_sub(1) as f64;
        let known = |value: f64| (total > 0).then_some(value);
        NextLayer {
            layer,
            // H(a) + H(b) − H(a, b), which rounding can bring below 0.
            mutual_information: known((entropy(&this) + entropy(&next) - entropy(&self.first)).max(0.0)),
            chance: known(ever(&this) * ever(&next) / (2.0 * total as f64)),
            entropy: known(entropy(&next)),
        }
    }
}

/// −Σ p ln p of counts, nats.
fn entropy(counts: &[u64]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let part = |&count: &u64| count as f64 / total * (count as f64 / total).ln();
    // No `-0` where there is one kind only.
    counts.iter().filter(|count| **count > 0).map(|count| -part(count)).sum::<f64>().max(0.0)
}
