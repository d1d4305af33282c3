//! What shape does a checkpoint have, and which constants does its mathematics use?
//!
//! [`Config`] is frozen data. It comes from a Hugging Face `config.json` ([`Config::from_hf`]), from GGUF metadata
//! ([`Config::from_gguf`]) or from the table of released sizes ([`PRESETS`]); nothing changes it afterwards.

mod architecture;
mod check;
mod from_gguf;
mod from_hf;
mod layers;
mod presets;
mod tensors;
mod to_hf;

use data::hook_point::{LayerShape, ModelShape};
use serde::{Deserialize, Serialize};

pub use self::architecture::{Architecture, Generation};
pub use self::presets::{Family, PRESETS, Preset};
pub use self::tensors::TensorSpec;
use crate::error::Error;

/// Base of the rotary frequencies on full layers, where a checkpoint does not say otherwise.
pub const DEFAULT_THETA_FULL: f64 = 1e6;
/// Base of the rotary frequencies on sliding layers, where a checkpoint does not say otherwise.
pub const DEFAULT_THETA_SLIDING: f64 = 1e4;
/// Gemma 4 turns this part of the pairs on full layers, where a checkpoint does not say otherwise.
const DEFAULT_PARTIAL_ROTARY_FACTOR: f64 = 0.25;
/// Width of the heads of Gemma 4's full layers, where a checkpoint does not say otherwise.
const DEFAULT_GLOBAL_HEAD_DIM: usize = 512;

/// What a layer's attention can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LayerKind {
    /// Every earlier position.
    #[serde(rename = "full_attention")]
    Full,
    /// The last [`Config::sliding_window`] positions, itself included.
    #[serde(rename = "sliding_attention")]
    Sliding,
}

/// Rotary embedding of one kind of layer: `inv_freq[i] = theta^(-2i / d_head) / factor` for the pairs that turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    /// Linear scaling of positions; 1.0 means none.
    pub factor: f64,
    /// Which part of the pairs turns, first pairs first: `int(value · d_head / 2)` of them. The rest stand still.
    pub partial_rotary_factor: f64,
}

impl Rope {
    /// Every pair turns, positions are not scaled.
    pub const fn plain(theta: f64) -> Self {
        Self { theta, factor: 1.0, partial_rotary_factor: 1.0 }
    }
}

/// The two rotary embeddings of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeByKind {
    pub full: Rope,
    pub sliding: Rope,
}

/// What may differ from one layer to the next.
///
/// In Gemma 3 only `kind` does; Gemma 3n and 4 also vary the widths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerConfig {
    pub kind: LayerKind,
    pub n_kv_heads: usize,
    pub d_head: usize,
    pub d_mlp: usize,
    /// The layer whose keys and values this one reads, if not its own.
    pub kv_source: Option<usize>,
    /// Whether the projected keys, before their norm, are the values too.
    pub value_is_key: bool,
    /// The part of the MLP's gates that is cut off; 0 means none.
    pub activation_sparsity: f64,
}

/// Per-layer embeddings: a second table, of which every layer reads its own part of the token's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[rustfmt::skip]
pub struct PleConfig {
    /// Width of one layer's part.
    #[serde(rename = "hidden_size_per_layer_input")] pub d_ple: usize,
    /// Rows of the table.
    #[serde(rename = "vocab_size_per_layer_input")] pub d_vocab: usize,
}

/// A mixture of experts beside the MLP of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[rustfmt::skip]
pub struct MoeConfig {
    #[serde(rename = "num_experts")] pub n_experts: usize,
    #[serde(rename = "top_k_experts")] pub top_k: usize,
    #[serde(rename = "moe_intermediate_size")] pub d_expert: usize,
}

/// Several residual streams, of which a layer computes on one and predicts the others; and the low-rank branch beside attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[rustfmt::skip]
pub struct AltupConfig {
    #[serde(rename = "altup_num_inputs")] pub n_streams: usize,
    #[serde(rename = "altup_active_idx")] pub active: usize,
    #[serde(rename = "altup_correct_scale")] pub correct_scale: bool,
    pub laurel_rank: usize,
}

/// The shape and the constants of one checkpoint's text stack.
///
/// Field names are the field's; the Hugging Face name stands on the same line where it differs. What is skipped is not
/// spelled there as it is here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[rustfmt::skip]
pub struct Config {
    #[serde(rename = "model_type")] pub architecture: Architecture,
    #[serde(rename = "hidden_size")] pub d_model: usize,
    #[serde(rename = "num_hidden_layers")] pub n_layers: usize,
    #[serde(rename = "num_attention_heads")] pub n_heads: usize,
    /// Of the sliding layers, where full layers differ; `d_head` likewise.
    #[serde(rename = "num_key_value_heads")] pub n_kv_heads: usize,
    #[serde(rename = "head_dim")] pub d_head: usize,
    /// Of the first layer, where layers differ.
    #[serde(rename = "intermediate_size")] pub d_mlp: usize,
    #[serde(rename = "vocab_size")] pub d_vocab: usize,
    #[serde(rename = "max_position_embeddings")] pub n_ctx: usize,
    /// Attention scores are multiplied by this value to the power of -1/2: 1 from Gemma 3n on, whose norms of queries
    /// and keys carry the scale. Of Gemma 3, only the 27B differs from `d_head`.
    pub query_pre_attn_scalar: f64,
    pub rms_norm_eps: f64,
    /// Positions that a sliding layer sees, itself included.
    ///
    /// With `use_bidirectional_attention` a query sees the keys that are nearer than this on both sides: for the `W` in
    /// `config.json`, that is `W / 2 + 1` in Gemma 3, and one more in Gemma 4.
    pub sliding_window: usize,
    pub attention_bias: bool,
    /// `None` also for Gemma 3's multimodal class, which ignores what its configuration says.
    pub final_logit_softcapping: Option<f64>,
    pub tie_word_embeddings: bool,
    /// Whether text sees what follows it. Gemma 4's `"vision"` is about images only, so false.
    #[serde(skip)] pub use_bidirectional_attention: bool,
    pub bos_token_id: u32,
    /// Generation stops at any of these.
    #[serde(rename = "eos_token_id")] pub eos_token_ids: Vec<u32>,
    pub pad_token_id: u32,
    #[serde(skip)] pub rope: RopeByKind,
    #[serde(skip)] pub ple: Option<PleConfig>,
    #[serde(skip)] pub moe: Option<MoeConfig>,
    #[serde(skip)] pub altup: Option<AltupConfig>,
    /// One entry per layer, first layer first.
    #[serde(skip)] pub layers: Vec<LayerConfig>,
}

impl Default for Config {
    /// [`Config::defaults`] of `Gemma3TextConfig`.
    fn default() -> Self {
        Self::defaults(Architecture::Gemma3Text)
    }
}

impl Config {
    /// The defaults of the reference implementation's text configuration of this class, yet without its layers.
    fn defaults(architecture: Architecture) -> Self {
        let gemma3 = Self {
            architecture,
            d_model: 2304,
            n_layers: 26,
            n_heads: 8,
            n_kv_heads: 4,
            d_head: 256,
            d_mlp: 9216,
            d_vocab: 262_208,
            n_ctx: 131_072,
            query_pre_attn_scalar: 256.0,
            rms_norm_eps: 1e-6,
            sliding_window: 4096,
            attention_bias: false,
            final_logit_softcapping: None,
            tie_word_embeddings: true,
            use_bidirectional_attention: false,
            bos_token_id: 2,
            eos_token_ids: vec![1],
            pad_token_id: 0,
            rope: RopeByKind { full: Rope::plain(DEFAULT_THETA_FULL), sliding: Rope::plain(DEFAULT_THETA_SLIDING) },
            ple: None,
            moe: None,
            altup: None,
            layers: Vec::new(),
        };
        let ple = Some(PleConfig { d_ple: 256, d_vocab: 262_144 });
        match architecture.text() {
            Architecture::Gemma3nText => Self {
                d_model: 2048,
                n_layers: 35,
                n_kv_heads: 2,
                d_mlp: 16384,
                d_vocab: 262_400,
                n_ctx: 32_768,
                query_pre_attn_scalar: 1.0,
                sliding_window: 512,
                final_logit_softcapping: Some(30.0),
                ple,
                altup: Some(AltupConfig { n_streams: 4, active: 0, correct_scale: true, laurel_rank: 64 }),
                ..gemma3
            },
            text @ (Architecture::Gemma4Text | Architecture::Gemma4UnifiedText) => {
                let unified = text == Architecture::Gemma4UnifiedText;
                let mut rope = gemma3.rope;
                rope.full.partial_rotary_factor = DEFAULT_PARTIAL_ROTARY_FACTOR;
                Self {
                    n_layers: 30,
                    d_vocab: 262_144,
                    n_ctx: if unified { 262_144 } else { 131_072 },
                    query_pre_attn_scalar: 1.0,
                    sliding_window: if unified { 1024 } else { 512 },
                    rope,
                    ple: if unified { None } else { ple },
                    ..gemma3
                }
            }
            _ => gemma3,
        }
    }

    /// The sizes that give activations their shapes.
    pub fn shape(&self) -> ModelShape {
        let layer = |layer: &LayerConfig| LayerShape {
            n_kv_heads: layer.n_kv_heads,
            d_head: layer.d_head,
            d_mlp: layer.d_mlp,
            kv_source: layer.kv_source,
            value_is_key: layer.value_is_key,
            sparse_mlp: layer.activation_sparsity > 0.0,
        };
        let mut shape = ModelShape {
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_model: self.d_model,
            d_head: self.d_head,
            d_mlp: self.d_mlp,
            d_vocab: self.d_vocab,
            n_ctx: self.n_ctx,
            d_ple: self.ple.map_or(0, |ple| ple.d_ple),
            n_experts: self.moe.map_or(0, |moe| moe.n_experts),
            top_k: self.moe.map_or(0, |moe| moe.top_k),
            d_expert: self.moe.map_or(0, |moe| moe.d_expert),
            n_altup: self.altup.map_or(0, |altup| altup.n_streams),
            layer_scalar: self.generation() == Generation::Gemma4,
            layers: Vec::new(),
        };
        let layers: Vec<LayerShape> = self.layers.iter().map(layer).collect();
        if (0..self.n_layers).any(|layer| layers[layer] != shape.layer(layer)) {
            shape.layers = layers;
        }
        shape
    }

    /// Which mathematics the layers follow.
    pub fn generation(&self) -> Generation {
        self.architecture.generation()
    }

    /// The rotary embedding of the layers of this kind.
    pub fn rope(&self, kind: LayerKind) -> Rope {
        match kind {
            LayerKind::Full => self.rope.full,
            LayerKind::Sliding => self.rope.sliding,
        }
    }

    /// How many positions the layer sees, itself included; `None` means all earlier ones.
    pub fn window(&self, layer: usize) -> Option<usize> {
        match self.layers[layer].kind {
            LayerKind::Full => None,
            LayerKind::Sliding => Some(self.sliding_window),
        }
    }

    /// What attention scores are multiplied by.
    pub fn attention_scale(&self) -> f64 {
        self.query_pre_attn_scalar.powf(-0.5)
    }
}

fn bad(field: &str, expected: &str, found: &str) -> Error {
    Error::Config { field: field.to_owned(), expected: expected.to_owned(), found: found.to_owned(), path: None }
}

#[cfg(test)]
mod tests;
