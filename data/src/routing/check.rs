//! Does a stored choice of experts agree with itself?

use arrow::datatypes::UInt64Type;

use super::RoutingColumns;
use super::read::{BATCH_ROWS, columns, decode};
use crate::error::Result;
use crate::manifest::Routing;
use crate::parquet_io::TableFile;

/// What rounding in f32 may do to a probability, and to sums of some of them.
const PROB_TOLERANCE: f64 = 1e-4;
/// The same for an entropy, in nats.
const ENTROPY_TOLERANCE: f64 = 1e-3;

/// The first row that contradicts itself: its row group, if it is one, and what is wrong.
pub(crate) fn first_bad_row(
    table: &TableFile,
    routing: &Routing,
    first_token_idx: u64,
) -> Result<Option<(Option<usize>, String)>> {
    let mut names = columns(routing);
    names.push("token_idx");
    let mut expected = first_token_idx;
    for group in 0..table.n_row_groups() {
        for batch in table.reader(&names, Some(vec![group]), None, BATCH_ROWS)? {
            let batch = batch?;
            let token_idx = table.primitive::<UInt64Type>(&batch, "token_idx")?;
            let rows = decode(table, &batch, routing)?;
            for (row, &found) in token_idx.iter().enumerate() {
                let wrong = if found == expected { wrong(&rows, row, routing) } else { Some("has another number") };
                if let Some(wrong) = wrong {
                    return Ok(Some((Some(group), format!("the row of token {expected} {wrong}"))));
                }
                expected += 1;
            }
        }
    }
    Ok(None)
}

/// What is wrong with a row.
fn wrong(rows: &RoutingColumns, row: usize, routing: &Routing) -> Option<&'static str> {
    let Routing { n_experts, top_k: k, .. } = *routing;
    let ids = &rows.expert_ids[row * k..(row + 1) * k];
    let probs = &rows.probs[row * k..(row + 1) * k];
    if ids.iter().any(|&id| usize::from(id) >= n_experts) {
        return Some("has an expert that does not exist");
    }
    if (1..k).any(|i| ids[..i].contains(&ids[i])) {
        return Some("has the same expert twice");
    }
    if rows.weights[row * k..(row + 1) * k].iter().any(|weight| !weight.is_finite()) {
        return Some("has a weight that is no finite number");
    }
    if probs.iter().any(|prob| !(0.0..=1.0).contains(prob)) {
        return Some("has a probability that is not within 0 and 1");
    }
    if !probs.is_sorted_by(|a, b| a >= b) {
        return Some("has probabilities that rise");
    }
    let norms = [rows.dense_norm[row], rows.moe_norm[row]];
    if norms.iter().any(|norm| !norm.is_finite() || *norm < 0.0) {
        return Some("has a norm that is no finite number from 0 up");
    }
    let sum: f64 = probs.iter().map(|&p| f64::from(p)).sum();
    if sum > 1.0 + PROB_TOLERANCE {
        return Some("has probabilities with a sum above 1");
    }
    // The chosen experts give a part of the entropy; the others give most when they share what is left evenly.
    let known: f64 = probs.iter().map(|&p| surprise(f64::from(p))).sum();
    let (left, others) = ((1.0 - sum).max(0.0), (n_experts - k) as f64);
    let most = if others > 0.0 { others * surprise(left / others) } else { 0.0 };
    let entropy = f64::from(rows.entropy[row]);
    if !(known - ENTROPY_TOLERANCE..=known + most + ENTROPY_TOLERANCE).contains(&entropy) {
        return Some("has an entropy that its probabilities cannot have");
    }
    let logits = &rows.router_logits.as_ref()?[row * n_experts..(row + 1) * n_experts];
    contradicts_logits(logits, ids, probs, entropy)
}

/// What is wrong with a choice, given all logits.
fn contradicts_logits(logits: &[f32], ids: &[u16], probs: &[f32], entropy: f64) -> Option<&'static str> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // A forbidden expert has −∞.
    if !greatest.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
        return Some("has logits of which there is no softmax");
    }
    let exp = |logit: f32| f64::from(logit - greatest).exp();
    let total: f64 = logits.iter().map(|&logit| exp(logit)).sum();
    let softmax = |logit: f32| exp(logit) / total;
    let differs =
        |(&id, &prob): (&u16, &f32)| (softmax(logits[usize::from(id)]) - f64::from(prob)).abs() > PROB_TOLERANCE;
    if ids.iter().zip(probs).any(differs) {
        return Some("has probabilities that its logits do not give");
    }
    let least_chosen = ids.iter().map(|&id| logits[usize::from(id)]).fold(f32::INFINITY, f32::min);
    if logits.iter().filter(|&&logit| logit > least_chosen).count() >= ids.len() {
        return Some("has a choice that its logits do not give");
    }
    let expected: f64 = logits.iter().map(|&logit| surprise(softmax(logit))).sum();
    ((expected - entropy).abs() > ENTROPY_TOLERANCE).then_some("has an entropy that its logits do not give")
}

/// −p ln p
fn surprise(p: f64) -> f64 {
    if p > 0.0 { -p * p.ln() } else { 0.0 }
}
