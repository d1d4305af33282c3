//! Which configurations could no forward pass use?

use super::{AltupConfig, Config, Generation, LayerConfig, LayerKind, bad};
use crate::error::Result;

/// No released Gemma comes near these; a larger number is a damaged file, not a model.
const MAX_LAYERS: usize = 4096;
const MAX_DIM: usize = 1 << 28;

impl Config {
    /// Refuses a number of layers that nothing should be allocated for.
    pub(super) fn check_n_layers(&self) -> Result<()> {
        if self.n_layers == 0 || self.n_layers > MAX_LAYERS {
            let found = self.n_layers.to_string();
            return Err(bad("num_hidden_layers", &format!("a number between 1 and {MAX_LAYERS}"), &found));
        }
        Ok(())
    }

    /// Refuses what no forward pass could use.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_n_layers()?;
        check_dim("hidden_size", self.d_model)?;
        check_dim("num_attention_heads", self.n_heads)?;
        check_dim("vocab_size", self.d_vocab)?;
        check_dim("max_position_embeddings", self.n_ctx)?;
        check_dim("sliding_window", self.sliding_window)?;
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
        for rope in [self.rope.full, self.rope.sliding] {
            if !(0.0..=1.0).contains(&rope.partial_rotary_factor) {
                let found = rope.partial_rotary_factor.to_string();
                return Err(bad("partial_rotary_factor", "a number between 0 and 1", &found));
            }
        }
        self.check_parts()?;
        if self.layers.len() != self.n_layers {
            return Err(bad("layer_types", &format!("{} entries", self.n_layers), &self.layers.len().to_string()));
        }
        self.layers.iter().try_for_each(|layer| self.check_layer(layer))?;
        // A rotation is computed once for all layers of a kind, and they share keys among each other.
        for kind in [LayerKind::Full, LayerKind::Sliding] {
            let mut widths = self.layers.iter().filter(|layer| layer.kind == kind).map(|l| (l.d_head, l.n_kv_heads));
            let first = widths.next();
            if let Some((d_head, n_kv_heads)) = widths.find(|&other| Some(other) != first) {
                let (of_first, n_of_first) = first.unwrap_or_default();
                return Err(bad(
                    "head_dim",
                    &format!("the same heads in all layers of a kind, {n_of_first} of {of_first}"),
                    &format!("{n_kv_heads} of {d_head}"),
                ));
            }
        }
        Ok(())
    }

    fn check_layer(&self, layer: &LayerConfig) -> Result<()> {
        check_dim("num_key_value_heads", layer.n_kv_heads)?;
        check_dim("head_dim", layer.d_head)?;
        check_dim("intermediate_size", layer.d_mlp)?;
        if !self.n_heads.is_multiple_of(layer.n_kv_heads) {
            let expected = format!("a divisor of the {} attention heads", self.n_heads);
            return Err(bad("num_key_value_heads", &expected, &layer.n_kv_heads.to_string()));
        }
        if !layer.d_head.is_multiple_of(2) {
            return Err(bad("head_dim", "an even number", &layer.d_head.to_string()));
        }
        if !(0.0..1.0).contains(&layer.activation_sparsity) {
            let found = layer.activation_sparsity.to_string();
            return Err(bad("activation_sparsity_pattern", "numbers from 0 up to 1", &found));
        }
        Ok(())
    }

    /// The parts that not every generation has.
    fn check_parts(&self) -> Result<()> {
        if let Some(ple) = self.ple {
            check_dim("hidden_size_per_layer_input", ple.d_ple)?;
            check_dim("vocab_size_per_layer_input", ple.d_vocab)?;
        }
        if let Some(moe) = self.moe {
            check_dim("num_experts", moe.n_experts)?;
            check_dim("moe_intermediate_size", moe.d_expert)?;
            if moe.top_k == 0 || moe.top_k > moe.n_experts {
                let expected = format!("a number between 1 and the {} experts", moe.n_experts);
                return Err(bad("top_k_experts", &expected, &moe.top_k.to_string()));
            }
        }
        if let Some(AltupConfig { n_streams, active, laurel_rank, .. }) = self.altup {
            const MAX_STREAMS: usize = 64;
            if !(2..=MAX_STREAMS).contains(&n_streams) {
                let expected = format!("a number between 2 and {MAX_STREAMS}");
                return Err(bad("altup_num_inputs", &expected, &n_streams.to_string()));
            }
            if active >= n_streams {
                return Err(bad("altup_active_idx", &format!("an index below {n_streams}"), &active.to_string()));
            }
            check_dim("laurel_rank", laurel_rank)?;
        }
        if self.generation() == Generation::Gemma3n && (self.ple.is_none() || self.altup.is_none()) {
            return Err(bad("hidden_size_per_layer_input", "per-layer embeddings and AltUp in Gemma 3n", "none"));
        }
        Ok(())
    }
}

fn check_dim(field: &str, found: usize) -> Result<()> {
    if found == 0 || found > MAX_DIM {
        return Err(bad(field, &format!("a number between 1 and {MAX_DIM}"), &found.to_string()));
    }
    Ok(())
}
