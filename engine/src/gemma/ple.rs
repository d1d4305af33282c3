//! Per-layer embeddings: every layer has an embedding of its own for each token, looked up in one table of long rows.
//!
//! What a layer gets is the sum of its part of the token's row and of a projection of the token's embedding.
//! A gate that reads the residual stream decides what of it passes.

use data::hook_point::{HookPoint, Site};
use tch::Tensor;

use super::linear::Linear;
use super::load::Loader;
use super::norm::Norm;
use crate::config::{Config, Generation, PleConfig};
use crate::error::Result;
use crate::hook::Hooks;
use crate::ple_table::PleTable;

/// The canonical name of the table.
pub(crate) const TABLE: &str = "model.embed_tokens_per_layer.weight";

/// What all layers look up and project, once for each token.
#[derive(Debug)]
pub(crate) struct PerLayerEmbeddings {
    table: PleTable, // [d_vocab, n_layers · d_ple]
    table_scale: Tensor,
    per_layer_model_projection: Linear, // [n_layers · d_ple, d_model]
    projection_scale: Factor,
    per_layer_projection_norm: Norm, // [d_ple], shared by all layers
    sum_scale: Factor,
    n_layers: i64,
    ple: PleConfig,
    generation: Generation,
}

/// A number that is multiplied by: as it is (Gemma 4), or rounded to the dtype of the model first (Gemma 3n).
#[derive(Debug)]
enum Factor {
    Host(f64),
    Rounded(Tensor),
}

impl Factor {
    fn times(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Host(factor) => x * *factor,
            Self::Rounded(factor) => x * factor,
        }
    }
}

impl PerLayerEmbeddings {
    /// `None` for a model without.
    pub(crate) fn new(loader: &Loader<'_>) -> Result<Option<Self>> {
        let config = loader.config();
        let Some(ple) = config.ple else { return Ok(None) };
        let gemma3n = config.generation() == Generation::Gemma3n;
        let factor = |value: f64| if gemma3n { Factor::Rounded(loader.rounded(value)) } else { Factor::Host(value) };
        Ok(Some(Self {
            table: PleTable::open(loader.weights, TABLE, loader.kind(), loader.options.ple, loader.device())?,
            table_scale: loader.rounded((ple.d_ple as f64).sqrt()),
            per_layer_model_projection: loader.linear("model.per_layer_model_projection")?,
            projection_scale: factor((config.d_model as f64).powf(-0.5)),
            per_layer_projection_norm: loader.norm("model.per_layer_projection_norm")?,
            sum_scale: factor(std::f64::consts::FRAC_1_SQRT_2),
            n_layers: config.n_layers as i64,
            ple,
            generation: config.generation(),
        }))
    }

    /// `ids`: the tokens; `embed`: their scaled embeddings, `[tok, d_model]`. To `[tok, n_layers, d_ple]`.
    pub(crate) fn forward(&self, ids: &[u32], embed: &Tensor, hooks: &mut Hooks<'_>) -> Result<Tensor> {
        let by_layer = |x: Tensor| x.view([-1, self.n_layers, self.ple.d_ple as i64]);
        let token = self.table.with_rows(&self.rows_of(ids), |rows| rows * &self.table_scale)?; // [tok, n_layers · d_ple]
        let token = hooks.at(HookPoint::whole(Site::PleToken), by_layer(token));

        let projected = self.projection_scale.times(&self.per_layer_model_projection.forward(embed));
        let context = self.per_layer_projection_norm.forward(&by_layer(projected));
        let context = hooks.at(HookPoint::whole(Site::PleContext), context);
        Ok(self.sum_scale.times(&(context + token)))
    }

    /// Which row of the table each token reads.
    fn rows_of(&self, ids: &[u32]) -> Vec<u32> {
        ids.iter().map(|&id| row_of(self.generation, self.ple, id)).collect()
    }
}

/// Which row of the table a token reads: Gemma 3n gives tokens that the table does not have its first row.
pub(crate) fn row_of(generation: Generation, ple: PleConfig, id: u32) -> u32 {
    if generation == Generation::Gemma3n && id as usize >= ple.d_vocab { 0 } else { id }
}

/// One layer's way of letting its embedding into the residual stream.
#[derive(Debug)]
pub(crate) struct PleGate {
    per_layer_input_gate: Linear, // [d_ple, d_model]
    per_layer_projection: Linear, // [d_model, d_ple]
    post_per_layer_input_norm: Norm,
    layer: usize,
}

impl PleGate {
    /// `None` for a model without.
    pub(crate) fn new(loader: &Loader<'_>, block: &str, layer: usize) -> Result<Option<Self>> {
        let Config { ple: Some(_), .. } = loader.config() else { return Ok(None) };
        Ok(Some(Self {
            per_layer_input_gate: loader.linear(&format!("{block}.per_layer_input_gate"))?,
            per_layer_projection: loader.linear(&format!("{block}.per_layer_projection"))?,
            post_per_layer_input_norm: loader.norm(&format!("{block}.post_per_layer_input_norm"))?,
            layer,
        }))
    }

    /// What is added to the stream. `resid`: `[tok, d_model]`, what the gate reads; `ple`: `[tok, n_layers, d_ple]`.
    pub(crate) fn forward(&self, resid: &Tensor, ple: &Tensor, hooks: &mut Hooks<'_>) -> Tensor {
        let at = |site| HookPoint::block(site, self.layer);
        let input = hooks.at(at(Site::PleInput), ple.select(1, self.layer as i64)); // [tok, d_ple]
        let gate = hooks.at(at(Site::PleGatePre), self.per_layer_input_gate.forward(resid)); // [tok, d_ple]
        let passed = hooks.at(at(Site::PleGate), gate.gelu("tanh") * input); // [tok, d_ple]
        let out = self.post_per_layer_input_norm.forward(&self.per_layer_projection.forward(&passed));
        hooks.at(at(Site::PleOut), out) // [tok, d_model]
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    /// The reference takes the root in f32; rounding the double gives the same.
    #[test]
    fn the_rounded_root_is_the_reference_s() {
        let buffer = Tensor::from(2.0).to_kind(Kind::Float).rsqrt();
        let ours = Tensor::from(std::f64::consts::FRAC_1_SQRT_2).to_kind(Kind::Float);
        assert_eq!(buffer, ours);
    }
}
