//! Which sizes of a model give its activations their shapes, layer by layer?

use serde::{Deserialize, Serialize};

use super::table::Presence;

/// The shape of a model, in the field's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub d_model: usize,
    pub d_head: usize,
    pub d_mlp: usize,
    pub d_vocab: usize,
    pub n_ctx: usize,
    /// Width of one layer's per-layer embedding; 0 in a model without.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub d_ple: usize,
    /// Experts of each layer; 0 in a model without.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub n_experts: usize,
    /// Experts that a token is routed to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub top_k: usize,
    /// Width of one expert.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub d_expert: usize,
    /// Residual streams of Gemma 3n; 0 where there is the one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub n_altup: usize,
    /// Whether the residual stream is multiplied by a number behind every layer.
    #[serde(default, skip_serializing_if = "is_false")]
    pub layer_scalar: bool,
    /// One entry per layer where layers differ; empty where each is as above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerShape>,
}

/// What may differ from one layer to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerShape {
    pub n_kv_heads: usize,
    pub d_head: usize,
    pub d_mlp: usize,
    /// The layer whose keys and values this one reads, if not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_source: Option<usize>,
    /// Whether the projected keys are the values too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub value_is_key: bool,
    /// Whether only the strongest gates of the MLP pass.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sparse_mlp: bool,
}

impl ModelShape {
    /// The shape of one layer.
    pub fn layer(&self, layer: usize) -> LayerShape {
        self.layers.get(layer).copied().unwrap_or(LayerShape {
            n_kv_heads: self.n_kv_heads,
            d_head: self.d_head,
            d_mlp: self.d_mlp,
            ..LayerShape::default()
        })
    }

    /// Whether the model, or this layer of it, has what `presence` speaks of.
    pub(super) fn has(&self, presence: Presence, layer: Option<usize>) -> bool {
        let layer = self.layer(layer.unwrap_or(0));
        match presence {
            Presence::Always => true,
            Presence::OwnKeys => layer.kv_source.is_none(),
            Presence::OwnValues => layer.kv_source.is_none() && !layer.value_is_key,
            Presence::SharedKeys => layer.kv_source.is_some(),
            Presence::Ple => self.d_ple > 0,
            Presence::Experts => self.n_experts > 0,
            Presence::Altup => self.n_altup > 0,
            Presence::LayerScalar => self.layer_scalar,
            Presence::AfterMlp => self.layer_scalar || self.n_altup > 0,
            Presence::SparseMlp => layer.sparse_mlp,
        }
    }

    /// Why the model, or this layer of it, does not have what `presence` speaks of.
    pub(super) fn lacks(&self, presence: Presence, layer: Option<usize>) -> String {
        let source = self.layer(layer.unwrap_or(0)).kv_source;
        let layer = layer.unwrap_or(0);
        match (presence, source) {
            (Presence::OwnKeys | Presence::OwnValues, Some(source)) => {
                format!("layer {layer} reads the keys and values of layer {source}")
            }
            (Presence::OwnValues, None) => format!("the values of layer {layer} are its projected keys"),
            (Presence::SharedKeys, _) => format!("layer {layer} has keys and values of its own"),
            (Presence::Ple, _) => "the model has no per-layer embeddings".to_owned(),
            (Presence::Experts, _) => "the model has no experts".to_owned(),
            (Presence::Altup, _) => "the model has one residual stream".to_owned(),
            (Presence::LayerScalar, _) => "the model has no layer scalars".to_owned(),
            (Presence::AfterMlp, _) => "the MLP is the last part of the model's layers".to_owned(),
            (Presence::SparseMlp, _) => format!("the MLP of layer {layer} lets every gate pass"),
            (Presence::Always | Presence::OwnKeys, _) => "the model has no such part".to_owned(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(flag: &bool) -> bool {
    !flag
}
