//! Which tensors does a model have, and how many numbers are they?

use super::{Config, Generation, LayerConfig};
use crate::gemma::ple;

/// A tensor that a checkpoint of some [`Config`] must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the reference's `…ForCausalLM`, such as `model.layers.3.mlp.up_proj.weight`.
    pub name: String,
    /// `[out, in]` for a matrix, as in torch; experts have their number before that.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    pub(crate) fn n_params(&self) -> u64 {
        self.shape.iter().fold(1, |product, &dim| product.saturating_mul(dim as u64))
    }
}

impl Config {
    /// Every tensor of the text stack with its shape, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut specs = Specs { prefix: "model.".to_owned(), specs: Vec::new() };
        specs.add("embed_tokens.weight", &[self.d_vocab, self.d_model]);
        if let Some(ple) = self.ple {
            let width = self.n_layers * ple.d_ple;
            specs.add("embed_tokens_per_layer.weight", &[ple.d_vocab, width]);
            specs.add("per_layer_model_projection.weight", &[width, self.d_model]);
            specs.add("per_layer_projection_norm.weight", &[ple.d_ple]);
        }
        let n_projections = self.altup.map_or(0, |altup| altup.n_streams - 1);
        for stream in 0..n_projections {
            specs.add(&format!("altup_projections.{stream}.weight"), &[self.d_model, self.d_model]);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            specs.prefix = format!("model.layers.{index}.");
            self.add_layer(layer, &mut specs);
        }
        "model.".clone_into(&mut specs.prefix);
        for stream in 0..n_projections {
            specs.add(&format!("altup_unembed_projections.{stream}.weight"), &[self.d_model, self.d_model]);
        }
        specs.add("norm.weight", &[self.d_model]);
        if !self.tie_word_embeddings {
            specs.prefix.clear();
            specs.add("lm_head.weight", &[self.d_vocab, self.d_model]);
        }
        specs.specs
    }

    fn add_layer(&self, layer: &LayerConfig, specs: &mut Specs) {
        let d_model = self.d_model;
        if let Some(altup) = self.altup {
            let n = altup.n_streams;
            specs.add("altup.router_norm.weight", &[d_model]);
            specs.add("altup.modality_router.weight", &[n, d_model]);
            specs.add("altup.prediction_coefs.weight", &[n * n, n]);
        }
        specs.add("input_layernorm.weight", &[d_model]);
        if let Some(altup) = self.altup {
            specs.add("laurel.linear_left.weight", &[altup.laurel_rank, d_model]);
            specs.add("laurel.linear_right.weight", &[d_model, altup.laurel_rank]);
            specs.add("laurel.post_laurel_norm.weight", &[d_model]);
        }
        self.add_attention(layer, specs);
        specs.add("post_attention_layernorm.weight", &[d_model]);
        specs.add("pre_feedforward_layernorm.weight", &[d_model]);
        specs.add("mlp.gate_proj.weight", &[layer.d_mlp, d_model]);
        specs.add("mlp.up_proj.weight", &[layer.d_mlp, d_model]);
        specs.add("mlp.down_proj.weight", &[d_model, layer.d_mlp]);
        if let Some(moe) = self.moe {
            specs.add("post_feedforward_layernorm_1.weight", &[d_model]);
            specs.add("router.scale", &[d_model]);
            specs.add("router.proj.weight", &[moe.n_experts, d_model]);
            specs.add("router.per_expert_scale", &[moe.n_experts]);
            specs.add("pre_feedforward_layernorm_2.weight", &[d_model]);
            specs.add("experts.gate_up_proj", &[moe.n_experts, 2 * moe.d_expert, d_model]);
            specs.add("experts.down_proj", &[moe.n_experts, d_model, moe.d_expert]);
            specs.add("post_feedforward_layernorm_2.weight", &[d_model]);
        }
        specs.add("post_feedforward_layernorm.weight", &[d_model]);
        if let Some(altup) = self.altup {
            specs.add("altup.correction_coefs.weight", &[altup.n_streams, altup.n_streams]);
            specs.add("altup.correct_output_scale", &[d_model]);
        }
        if let Some(ple) = self.ple {
            specs.add("per_layer_input_gate.weight", &[ple.d_ple, d_model]);
            specs.add("per_layer_projection.weight", &[d_model, ple.d_ple]);
            specs.add("post_per_layer_input_norm.weight", &[d_model]);
        }
        if self.generation() == Generation::Gemma4 {
            specs.add("layer_scalar", &[1]);
        }
    }

    fn add_attention(&self, layer: &LayerConfig, specs: &mut Specs) {
        let (q, kv) = (self.n_heads * layer.d_head, layer.n_kv_heads * layer.d_head);
        let own_keys = layer.kv_source.is_none();
        let own_values = own_keys && !layer.value_is_key;
        for (projection, present, d_out, d_in) in [
            ("q_proj", true, q, self.d_model),
            ("k_proj", own_keys, kv, self.d_model),
            ("v_proj", own_values, kv, self.d_model),
            ("o_proj", true, self.d_model, q),
        ] {
            if present {
                specs.add(&format!("self_attn.{projection}.weight"), &[d_out, d_in]);
                if self.attention_bias {
                    specs.add(&format!("self_attn.{projection}.bias"), &[d_out]);
                }
            }
        }
        specs.add("self_attn.q_norm.weight", &[layer.d_head]);
        if own_keys {
            specs.add("self_attn.k_norm.weight", &[layer.d_head]);
        }
    }

    /// How many numbers the text stack is made of.
    pub fn n_params(&self) -> u64 {
        self.tensors().iter().map(TensorSpec::n_params).sum()
    }

    /// How many of them a device must hold: all but the table of per-layer embeddings, of which only the rows of the
    /// tokens at hand are read. This is what `E2B` counts.
    pub fn n_params_effective(&self) -> u64 {
        self.tensors().iter().filter(|spec| spec.name != ple::TABLE).map(TensorSpec::n_params).sum()
    }

    /// How many of the effective ones a token is multiplied by: of the experts, those that it is routed to. This is
    /// what `A4B` counts.
    pub fn n_params_active(&self) -> u64 {
        let unused = self.moe.map_or(0, |moe| {
            let idle = moe.n_experts.saturating_sub(moe.top_k);
            (self.n_layers * idle * 3 * moe.d_expert * self.d_model) as u64
        });
        self.n_params_effective().saturating_sub(unused)
    }
}

/// Tensors under a common prefix.
struct Specs {
    prefix: String,
    specs: Vec<TensorSpec>,
}

impl Specs {
    fn add(&mut self, name: &str, shape: &[usize]) {
        self.specs.push(TensorSpec { name: format!("{}{name}", self.prefix), shape: shape.to_vec() });
    }
}
