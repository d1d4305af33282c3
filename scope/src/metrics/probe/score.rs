//! How good is a probe?

use serde::Serialize;

/// How well logits tell positive examples from negative ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// The part that is on the right side of 0.
    pub accuracy: f64,
    /// The harmonic mean of precision and recall.
    pub f1: f64,
    /// How often a positive example is above a negative one, a tie counting one half.
    pub auc: f64,
}

impl Score {
    pub(super) fn of(logits: &[f64], y: &[bool]) -> Self {
        let count = |found: bool, is: bool| {
            logits.iter().zip(y).filter(|&(&logit, &y)| (logit > 0.0) == found && y == is).count() as f64
        };
        let (hits, misses, alarms) = (count(true, true), count(false, true), count(true, false));
        let n = y.len().max(1) as f64;
        Self {
            accuracy: (hits + count(false, false)) / n,
            f1: if hits > 0.0 { 2.0 * hits / (2.0 * hits + misses + alarms) } else { 0.0 },
            auc: auc(logits, y),
        }
    }

    /// The mean of several.
    pub(super) fn mean(scores: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| scores.iter().map(of).sum::<f64>() / scores.len() as f64;
        Self { accuracy: mean(|score| score.accuracy), f1: mean(|score| score.f1), auc: mean(|score| score.auc) }
    }
}

/// The area under the receiver operating characteristic, from the ranks of positive examples.
fn auc(logits: &[f64], y: &[bool]) -> f64 {
    let mut order: Vec<(f64, bool)> = logits.iter().copied().zip(y.iter().copied()).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let positive = y.iter().filter(|&&y| y).count() as f64;
    let negative = y.len() as f64 - positive;
    let (mut below, mut wins) = (0.0, 0.0);
    for ties in order.chunk_by(|a, b| a.0 == b.0) {
        let hits = ties.iter().filter(|(_, y)| *y).count() as f64;
        let others = ties.len() as f64 - hits;
        wins += hits * (below + others / 2.0);
        below += others;
    }
    if positive == 0.0 || negative == 0.0 { 0.5 } else { wins / (positive * negative) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Pairs: 2 beats −1 and 0.5, 0.5 beats −1 and ties, −2 loses twice.
        let score = Score::of(&[2.0, 0.5, -2.0, -1.0, 0.5], &[true, true, true, false, false]);
        assert!((score.auc - 3.5 / 6.0).abs() < 1e-12);
        assert_eq!(score.accuracy, 0.6);
        assert!((score.f1 - 4.0 / 6.0).abs() < 1e-12);
        let mean = Score::mean(&[score, Score { accuracy: 1.0, f1: 1.0, auc: 1.0 }]);
        assert_eq!(mean.accuracy, 0.8);
    }
}
