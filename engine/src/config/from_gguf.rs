//! What does GGUF metadata say, and what does it leave to the reader to know?

use super::{
    Architecture, Config, DEFAULT_SLIDING_WINDOW_PATTERN, DEFAULT_THETA_FULL, DEFAULT_THETA_SLIDING, Rope, bad, pattern,
};
use crate::error::Result;
use crate::weights::gguf::Metadata;

/// The number of layers by which llama.cpp recognises the 27B, whose attention scale is `(d_model / n_heads)^-0.5`.
const N_LAYERS_27B: usize = 62;

impl Config {
    /// Reads the metadata of a GGUF file.
    ///
    /// `gemma3` files leave out the layer pattern, the rotary base of the sliding layers and the attention scale; those
    /// are the ones that llama.cpp hard-codes. `tie_word_embeddings` and `d_vocab` are corrected from the tensors by
    /// [`crate::weights::Weights::open`].
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let arch = metadata.text("general.architecture")?.unwrap_or("nothing");
        let architecture = Architecture::from_gguf(arch)?;
        if let Some(parts) = metadata.usize("split.count")?.filter(|&parts| parts > 1) {
            return Err(bad("split.count", "one file that holds the whole model", &format!("{parts} parts")));
        }
        let required = |name: &str| metadata.required_usize(&format!("{arch}.{name}"));
        let optional = |name: &str| metadata.f64(&format!("{arch}.{name}"));

        let n_layers = required("block_count")?;
        let d_model = required("embedding_length")?;
        let n_heads = required("attention.head_count")?;
        let d_head = required("attention.key_length")?;
        if let Some(value_length) = metadata.usize(&format!("{arch}.attention.value_length"))?
            && value_length != d_head
        {
            let field = format!("{arch}.attention.value_length");
            return Err(bad(&field, &format!("the key length {d_head}"), &value_length.to_string()));
        }
        let scaling = metadata.text(&format!("{arch}.rope.scaling.type"))?.unwrap_or("none");
        let factor = match scaling {
            "none" => 1.0,
            "linear" => optional("rope.scaling.factor")?.unwrap_or(1.0),
            other => {
                return Err(bad(&format!("{arch}.rope.scaling.type"), "`none` or `linear`", &format!("`{other}`")));
            }
        };
        let theta = optional("rope.freq_base")?.unwrap_or(DEFAULT_THETA_FULL);
        let theta_sliding = optional("rope.freq_base_swa")?.unwrap_or(DEFAULT_THETA_SLIDING);
        let wide_scale = n_layers == N_LAYERS_27B && n_heads > 0;
        let query_pre_attn_scalar = if wide_scale { d_model as f64 / n_heads as f64 } else { d_head as f64 };

        let default = Self::default();
        let mut config = Self {
            architecture,
            d_model,
            n_layers,
            n_heads,
            n_kv_heads: required("attention.head_count_kv")?,
            d_head,
            d_mlp: required("feed_forward_length")?,
            d_vocab: metadata.vocab_size()?.unwrap_or(default.d_vocab),
            n_ctx: required("context_length")?,
            query_pre_attn_scalar,
            rms_norm_eps: optional("attention.layer_norm_rms_epsilon")?.unwrap_or(default.rms_norm_eps),
            sliding_window: required("attention.sliding_window")?,
            final_logit_softcapping: optional("final_logit_softcapping")?,
            bos_token_id: metadata.token_id("bos")?.unwrap_or(default.bos_token_id),
            pad_token_id: metadata.token_id("padding")?.unwrap_or(default.pad_token_id),
            layers: Vec::new(),
            ..default
        };
        config.rope.full = Rope { theta, factor };
        config.rope.sliding = Rope { theta: theta_sliding, factor: 1.0 };
        let eos_token_ids = metadata.eos_token_ids()?;
        if !eos_token_ids.is_empty() {
            config.eos_token_ids = eos_token_ids;
        }
        config.check()?;
        let every = metadata.usize(&format!("{arch}.attention.sliding_window_pattern"))?;
        let every = every.filter(|&every| every > 0).unwrap_or(DEFAULT_SLIDING_WINDOW_PATTERN);
        Ok(config.with_layers(&pattern(n_layers, every)))
    }
}
