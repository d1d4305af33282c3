//! What shape does a checkpoint have, and which constants does its mathematics use?
//!
//! [`Config`] is frozen data. It comes from a Hugging Face `config.json` ([`Config::from_hf`]), from GGUF metadata
//! ([`Config::from_gguf`]) or from the table of released sizes ([`PRESETS`]); nothing changes it afterwards.

mod from_gguf;
mod from_hf;
mod presets;

pub use presets::{PRESETS, Preset};

use std::fmt;

use data::hook_point::ModelShape;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Full attention on every sixth layer, where a checkpoint does not say otherwise.
pub const DEFAULT_SLIDING_WINDOW_PATTERN: usize = 6;
/// Base of the rotary frequencies on full layers, where a checkpoint does not say otherwise.
pub const DEFAULT_THETA_FULL: f64 = 1e6;
/// Base of the rotary frequencies on sliding layers, where a checkpoint does not say otherwise.
pub const DEFAULT_THETA_SLIDING: f64 = 1e4;

/// No released Gemma comes near these; a larger number is a damaged file, not a model.
const MAX_LAYERS: usize = 4096;
const MAX_DIM: usize = 1 << 28;

/// Which of the reference implementation's classes a checkpoint belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Architecture {
    /// `Gemma3ForCausalLM`.
    #[serde(rename = "gemma3_text")]
    Gemma3Text,
    /// The text stack of `Gemma3ForConditionalGeneration`, which also sees images.
    #[serde(rename = "gemma3")]
    Gemma3,
}

/// A row of the table of architectures.
struct ArchitectureRow {
    architecture: Architecture,
    model_type: &'static str,
    class: &'static str,
    gguf: Option<&'static str>,
}

const ARCHITECTURES: &[ArchitectureRow] = &[
    ArchitectureRow {
        architecture: Architecture::Gemma3Text,
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        gguf: Some("gemma3"),
    },
    ArchitectureRow {
        architecture: Architecture::Gemma3,
        model_type: "gemma3",
        class: "Gemma3ForConditionalGeneration",
        gguf: None,
    },
];

impl Architecture {
    fn row(self) -> &'static ArchitectureRow {
        let row = ARCHITECTURES.iter().find(|row| row.architecture == self);
        row.expect("every architecture has a row in the table")
    }

    /// Hugging Face's `model_type`.
    pub fn model_type(self) -> &'static str {
        self.row().model_type
    }

    /// The class of the reference implementation, as in `architectures` of `config.json`.
    pub fn class(self) -> &'static str {
        self.row().class
    }

    fn from_model_type(found: &str) -> Result<Self> {
        let row = ARCHITECTURES.iter().find(|row| row.model_type == found);
        row.map(|row| row.architecture).ok_or_else(|| unknown(ARCHITECTURES.iter().map(|row| row.model_type), found))
    }

    fn from_gguf(found: &str) -> Result<Self> {
        let row = ARCHITECTURES.iter().find(|row| row.gguf == Some(found));
        row.map(|row| row.architecture).ok_or_else(|| unknown(ARCHITECTURES.iter().filter_map(|row| row.gguf), found))
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

fn unknown(supported: impl Iterator<Item = &'static str>, found: &str) -> Error {
    let supported: Vec<String> = supported.map(|name| format!("`{name}`")).collect();
    Error::UnknownArchitecture { supported: supported.join(", "), found: found.to_owned(), path: None }
}

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

/// Rotary embedding of one kind of layer: `inv_freq[i] = theta^(-2i / d_head) / factor`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[rustfmt::skip]
pub struct Rope {
    #[serde(rename = "rope_theta")] pub theta: f64,
    /// Linear scaling of positions; 1.0 means none.
    pub factor: f64,
}

/// The two rotary embeddings of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[rustfmt::skip]
pub struct RopeByKind {
    #[serde(rename = "full_attention")] pub full: Rope,
    #[serde(rename = "sliding_attention")] pub sliding: Rope,
}

/// What may differ from one layer to the next.
///
/// In Gemma 3 only `kind` does; Gemma 3n and 4 also vary the widths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[rustfmt::skip]
pub struct LayerConfig {
    pub kind: LayerKind,
    #[serde(rename = "num_key_value_heads")] pub n_kv_heads: usize,
    #[serde(rename = "head_dim")] pub d_head: usize,
    #[serde(rename = "intermediate_size")] pub d_mlp: usize,
}

/// The shape and the constants of one checkpoint's text stack.
///
/// Field names are the field's; the Hugging Face name stands on the same line where it differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[rustfmt::skip]
pub struct Config {
    #[serde(rename = "model_type")] pub architecture: Architecture,
    #[serde(rename = "hidden_size")] pub d_model: usize,
    #[serde(rename = "num_hidden_layers")] pub n_layers: usize,
    #[serde(rename = "num_attention_heads")] pub n_heads: usize,
    #[serde(rename = "num_key_value_heads")] pub n_kv_heads: usize,
    #[serde(rename = "head_dim")] pub d_head: usize,
    #[serde(rename = "intermediate_size")] pub d_mlp: usize,
    #[serde(rename = "vocab_size")] pub d_vocab: usize,
    #[serde(rename = "max_position_embeddings")] pub n_ctx: usize,
    /// Attention scores are multiplied by this value to the power of -1/2.
    pub query_pre_attn_scalar: f64,
    pub rms_norm_eps: f64,
    /// Positions that a sliding layer sees, itself included.
    ///
    /// With `use_bidirectional_attention` it is `W / 2 + 1` of the `W` in `config.json`, and a query sees the keys
    /// that are nearer than that on both sides.
    pub sliding_window: usize,
    pub attention_bias: bool,
    /// `None` also for the multimodal class, which ignores what its configuration says.
    pub final_logit_softcapping: Option<f64>,
    pub tie_word_embeddings: bool,
    pub use_bidirectional_attention: bool,
    pub bos_token_id: u32,
    /// Generation stops at any of these.
    #[serde(rename = "eos_token_id")] pub eos_token_ids: Vec<u32>,
    pub pad_token_id: u32,
    #[serde(rename = "rope_parameters")] pub rope: RopeByKind,
    /// One entry per layer, first layer first.
    pub layers: Vec<LayerConfig>,
}

impl Default for Config {
    /// The defaults of the reference implementation's `Gemma3TextConfig`.
    fn default() -> Self {
        Self {
            architecture: Architecture::Gemma3Text,
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
            rope: RopeByKind {
                full: Rope { theta: DEFAULT_THETA_FULL, factor: 1.0 },
                sliding: Rope { theta: DEFAULT_THETA_SLIDING, factor: 1.0 },
            },
            layers: Vec::new(),
        }
        .with_layers(&pattern(26, DEFAULT_SLIDING_WINDOW_PATTERN))
    }
}

/// A tensor that a checkpoint of some [`Config`] must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in `Gemma3ForCausalLM`, such as `model.layers.3.mlp.up_proj.weight`.
    pub name: String,
    /// `[out, in]` for a matrix, as in torch.
    pub shape: Vec<usize>,
}

impl Config {
    /// The sizes that give activations their shapes.
    pub fn shape(&self) -> ModelShape {
        ModelShape {
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_model: self.d_model,
            d_head: self.d_head,
            d_mlp: self.d_mlp,
            d_vocab: self.d_vocab,
            n_ctx: self.n_ctx,
        }
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

    /// What attention scores are multiplied by. Only the 27B differs from `d_head^-0.5`.
    pub fn attention_scale(&self) -> f64 {
        self.query_pre_attn_scalar.powf(-0.5)
    }

    /// Every tensor of the text stack with its shape, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut specs = vec![spec("model.embed_tokens.weight", &[self.d_vocab, self.d_model])];
        for (index, layer) in self.layers.iter().enumerate() {
            let (q, kv) = (self.n_heads * layer.d_head, layer.n_kv_heads * layer.d_head);
            let mut add =
                |name: &str, shape: &[usize]| specs.push(spec(&format!("model.layers.{index}.{name}"), shape));
            add("input_layernorm.weight", &[self.d_model]);
            for (projection, d_out, d_in) in [
                ("q_proj", q, self.d_model),
                ("k_proj", kv, self.d_model),
                ("v_proj", kv, self.d_model),
                ("o_proj", self.d_model, q),
            ] {
                add(&format!("self_attn.{projection}.weight"), &[d_out, d_in]);
                if self.attention_bias {
                    add(&format!("self_attn.{projection}.bias"), &[d_out]);
                }
            }
            add("self_attn.q_norm.weight", &[layer.d_head]);
            add("self_attn.k_norm.weight", &[layer.d_head]);
            add("post_attention_layernorm.weight", &[self.d_model]);
            add("pre_feedforward_layernorm.weight", &[self.d_model]);
            add("mlp.gate_proj.weight", &[layer.d_mlp, self.d_model]);
            add("mlp.up_proj.weight", &[layer.d_mlp, self.d_model]);
            add("mlp.down_proj.weight", &[self.d_model, layer.d_mlp]);
            add("post_feedforward_layernorm.weight", &[self.d_model]);
        }
        specs.push(spec("model.norm.weight", &[self.d_model]));
        if !self.tie_word_embeddings {
            specs.push(spec("lm_head.weight", &[self.d_vocab, self.d_model]));
        }
        specs
    }

    /// Expands the kinds of the layers into one [`LayerConfig`] each, with the model's own widths.
    fn with_layers(mut self, kinds: &[LayerKind]) -> Self {
        let (n_kv_heads, d_head, d_mlp) = (self.n_kv_heads, self.d_head, self.d_mlp);
        let layer = |&kind| LayerConfig { kind, n_kv_heads, d_head, d_mlp };
        self.layers = kinds.iter().map(layer).collect();
        self
    }

    /// Refuses what no forward pass could use; `self.layers` may still be empty.
    fn check(&self) -> Result<()> {
        let dims = [
            ("hidden_size", self.d_model),
            ("num_attention_heads", self.n_heads),
            ("num_key_value_heads", self.n_kv_heads),
            ("head_dim", self.d_head),
            ("intermediate_size", self.d_mlp),
            ("vocab_size", self.d_vocab),
            ("max_position_embeddings", self.n_ctx),
            ("sliding_window", self.sliding_window),
        ];
        for (field, found) in dims {
            if found == 0 || found > MAX_DIM {
                return Err(bad(field, &format!("a number between 1 and {MAX_DIM}"), &found.to_string()));
            }
        }
        if self.n_layers == 0 || self.n_layers > MAX_LAYERS {
            let found = self.n_layers.to_string();
            return Err(bad("num_hidden_layers", &format!("a number between 1 and {MAX_LAYERS}"), &found));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = format!("a divisor of the {} attention heads", self.n_heads);
            return Err(bad("num_key_value_heads", &expected, &self.n_kv_heads.to_string()));
        }
        if !self.d_head.is_multiple_of(2) {
            return Err(bad("head_dim", "an even number", &self.d_head.to_string()));
        }
        let positive = [
            ("query_pre_attn_scalar", self.query_pre_attn_scalar),
            ("rms_norm_eps", self.rms_norm_eps),
            ("final_logit_softcapping", self.final_logit_softcapping.unwrap_or(1.0)),
            ("rope_theta", self.rope.full.theta),
            ("rope_theta", self.rope.sliding.theta),
            ("factor", self.rope.full.factor),
            ("factor", self.rope.sliding.factor),
        ];
        for (field, found) in positive {
            if !(found > 0.0 && found.is_finite()) {
                return Err(bad(field, "a positive number", &found.to_string()));
            }
        }
        Ok(())
    }
}

/// Full attention on every `every`-th layer, the first of them at index `every - 1`. The last layer is not special.
fn pattern(n_layers: usize, every: usize) -> Vec<LayerKind> {
    let kind = |layer: usize| if (layer + 1).is_multiple_of(every) { LayerKind::Full } else { LayerKind::Sliding };
    (0..n_layers).map(kind).collect()
}

fn spec(name: &str, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: shape.to_vec() }
}

fn bad(field: &str, expected: &str, found: &str) -> Error {
    Error::Config { field: field.to_owned(), expected: expected.to_owned(), found: found.to_owned(), path: None }
}

#[cfg(test)]
mod tests;
