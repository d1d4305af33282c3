//! What does a model without a network make of the same tokens?
//!
//! An interpolated n-gram model with modified Kneser–Ney smoothing (Chen & Goodman 1999): the highest order counts what was
//! seen, lower orders count in how many contexts it was seen, three discounts by count are estimated from the training
//! text, and the lowest order is interpolated with the uniform distribution.

use std::collections::HashMap;

/// A context of up to `n - 1` tokens and a token, as one number. 16 bits a token, highest order 4.
type Gram = u64;

/// Probabilities of the next token given the `n - 1` before it.
#[derive(Debug)]
pub(crate) struct NGram {
    vocab: usize,
    /// Lowest order first.
    orders: Vec<Order>,
}

#[derive(Debug, Default)]
struct Order {
    counts: HashMap<Gram, u32>,
    contexts: HashMap<Gram, Context>,
    /// What is taken from a count of one, of two, of more.
    discounts: [f64; 3],
}

#[derive(Clone, Copy, Debug, Default)]
struct Context {
    total: u64,
    /// How many different tokens followed once, twice, more often.
    followers: [u32; 3],
}

impl NGram {
    /// Learns from documents; what comes before a document is `start`, so that its first tokens have a context too.
    pub(crate) fn train<'a>(
        n: usize,
        vocab: usize,
        start: u32,
        documents: impl Iterator<Item = &'a [u32]> + Clone,
    ) -> Self {
        assert!((1..=4).contains(&n) && vocab <= 1 << 16, "a gram must fit into a number");
        let mut counts: Vec<HashMap<Gram, u32>> = vec![HashMap::new(); n];
        for document in documents {
            for at in 0..document.len() {
                *counts[n - 1].entry(gram(document, at, n, start)).or_default() += 1;
            }
        }
        // A lower order counts the different tokens to the left.
        for order in (1..n).rev() {
            let (low, high) = counts.split_at_mut(order);
            let keep = (1_u64 << (16 * order)) - 1;
            high[0].keys().for_each(|gram| *low[order - 1].entry(gram & keep).or_default() += 1);
        }
        Self { vocab, orders: counts.into_iter().map(Order::new).collect() }
    }

    /// `−ln p` of the token at `at` in a document, in nats.
    pub(crate) fn nll(&self, document: &[u32], at: usize, start: u32) -> f64 {
        let mut p = 1.0 / self.vocab as f64;
        for (n, order) in self.orders.iter().enumerate() {
            let gram = gram(document, at, n + 1, start);
            let Some(context) = order.contexts.get(&(gram >> 16)) else { break };
            let count = order.counts.get(&gram).copied().unwrap_or(0);
            let discount = if count == 0 { 0.0 } else { order.discounts[count.min(3) as usize - 1] };
            let left: f64 = order.discounts.iter().zip(context.followers).map(|(d, n)| d * f64::from(n)).sum();
            p = (f64::from(count) - discount + left * p) / context.total as f64;
        }
        -p.ln()
    }
}

impl Order {
    fn new(counts: HashMap<Gram, u32>) -> Self {
        let mut contexts: HashMap<Gram, Context> = HashMap::new();
        let mut with_count = [0.0_f64; 4];
        let mut grams: Vec<(&Gram, u32)> = counts.iter().map(|(gram, &count)| (gram, count)).collect();
        grams.sort_unstable();
        for (gram, count) in grams {
            let context = contexts.entry(gram >> 16).or_default();
            context.total += u64::from(count);
            context.followers[count.min(3) as usize - 1] += 1;
            if count <= 4 {
                with_count[count as usize - 1] += 1.0;
            }
        }
        let [n1, n2, n3, n4] = with_count.map(|n| n.max(1.0));
        let y = n1 / (n1 + 2.0 * n2);
        let discounts = [1.0 - 2.0 * y * n2 / n1, 2.0 - 3.0 * y * n3 / n2, 3.0 - 4.0 * y * n4 / n3];
        // The estimates hold for large texts; a small one must not make a probability negative.
        let bounded = |(discount, count): (f64, f64)| discount.clamp(0.0, count);
        let [a, b, c] = discounts;
        Self { counts, contexts, discounts: [(a, 1.0), (b, 2.0), (c, 3.0)].map(bounded) }
    }
}

/// The `n` tokens up to `at`, the last in the lowest bits.
fn gram(document: &[u32], at: usize, n: usize, start: u32) -> Gram {
    let token = |back: usize| at.checked_sub(back).map_or(start, |at| document[at]);
    (0..n).rev().fold(0, |gram, back| gram << 16 | u64::from(token(back)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probability(model: &NGram, context: &[u32], token: u32) -> f64 {
        let document: Vec<u32> = context.iter().copied().chain([token]).collect();
        (-model.nll(&document, context.len(), 0)).exp()
    }

    #[test]
    fn probabilities_sum_to_one() {
        let text: Vec<u32> = (0..400_u32).map(|i| 1 + (i * i + i / 3) % 11).collect();
        let documents = [&text[..150], &text[150..]];
        for n in 1..=4 {
            let model = NGram::train(n, 13, 0, documents.into_iter());
            for context in [&[1, 2, 3][..], &[5, 5, 5], &[12, 12], &[]] {
                let sum: f64 = (0..13).map(|token| probability(&model, context, token)).sum();
                assert!((sum - 1.0).abs() < 1e-9, "{n}: {context:?} sums to {sum}");
            }
        }
    }

    #[test]
    fn what_follows_is_learned() {
        let text: Vec<u32> = (0..300).map(|i| [1, 2, 3][i % 3]).collect();
        let model = NGram::train(3, 10, 0, [&text[..]].into_iter());
        assert!(probability(&model, &[1, 2], 3) > 0.95);
        assert!(probability(&model, &[1, 2], 9) > 0.0);
    }
}
