//! Which experts did a model choose for each token, and what does that say about the experts?
//!
//! `routing/layer=3/shard-00000.parquet` has one row per token, in the order of `tokens/`: the choice of one layer.
//! [`crate::ShardWriter::write_routing`] writes it, [`RoutingLayer`] reads it, [`analyse`] counts it.

mod analysis;
mod check;
mod read;
mod report;
mod tally;
mod write;

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::error::{Error, Result};
use crate::manifest::Routing;

pub use analysis::{RoutingOptions, analyse};
pub use read::{RoutingBatch, RoutingBatches, RoutingLayer};
pub use report::{
    ExpertLoad, LayerRouting, LoadBalance, NeighbourOverlap, NextLayer, PairLift, RoutingReport, TokenLift,
};

pub(crate) use check::first_bad_row;
pub(crate) use write::RoutingWriter;

/// The choices of one layer for consecutive tokens, column by column. `token_idx` is implied.
///
/// `tok` tokens, `k` experts a token, `E` experts in all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutingColumns {
    /// `[tok, k]`, by descending probability.
    pub expert_ids: Vec<u16>,
    /// `[tok, k]`: what multiplies the expert's output, renormalised and times the scale of the expert.
    pub weights: Vec<f32>,
    /// `[tok, k]`: softmax over all experts, before renormalisation.
    pub probs: Vec<f32>,
    /// `[tok]`: −Σ p ln p over all experts, in nats.
    pub entropy: Vec<f32>,
    /// `[tok]`: L2 norm of the dense branch, after its norm.
    pub dense_norm: Vec<f32>,
    /// `[tok]`: L2 norm of the routed branch, after its norm.
    pub moe_norm: Vec<f32>,
    /// `[tok, E]`: all logits, where [`Routing::router_logits`] says so.
    pub router_logits: Option<Vec<f32>>,
}

impl RoutingColumns {
    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.entropy.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entropy.is_empty()
    }

    /// Checks that every column has as many numbers as the tokens need.
    pub fn check(&self, routing: &Routing) -> Result<()> {
        let (n, k) = (self.len(), routing.top_k);
        let logits = self.router_logits.as_ref().map_or(0, Vec::len);
        let lengths = [
            ("expert_ids", n * k, self.expert_ids.len()),
            ("weights", n * k, self.weights.len()),
            ("probs", n * k, self.probs.len()),
            ("dense_norm", n, self.dense_norm.len()),
            ("moe_norm", n, self.moe_norm.len()),
            ("router_logits", if routing.router_logits { n * routing.n_experts } else { 0 }, logits),
        ];
        match lengths.into_iter().find(|(_, expected, found)| expected != found) {
            Some((column, expected, found)) => {
                Err(Error::mismatch(format!("values in the column `{column}` of {n} tokens"), expected, found))
            }
            None => Ok(()),
        }
    }

    /// Appends some tokens of `other`, which has the same columns.
    pub(crate) fn extend(&mut self, other: &Self, tokens: Range<usize>, routing: &Routing) {
        let wide = |width: usize| tokens.start * width..tokens.end * width;
        let k = routing.top_k;
        self.expert_ids.extend_from_slice(&other.expert_ids[wide(k)]);
        self.weights.extend_from_slice(&other.weights[wide(k)]);
        self.probs.extend_from_slice(&other.probs[wide(k)]);
        self.entropy.extend_from_slice(&other.entropy[tokens.clone()]);
        self.dense_norm.extend_from_slice(&other.dense_norm[tokens.clone()]);
        self.moe_norm.extend_from_slice(&other.moe_norm[tokens.clone()]);
        if let Some(logits) = &other.router_logits {
            self.router_logits.get_or_insert_default().extend_from_slice(&logits[wide(routing.n_experts)]);
        }
    }
}
