//! What is trained, and by which numbers?
//!
//! A Gemma 4 with both things that make the family different: per-layer embeddings (as the E2B has) and experts (as the
//! 26B-A4B has), with sliding and full layers whose heads differ in size, and later layers that read the keys and values
//! of earlier ones. Small enough to be trained on two cores in an hour.

use serde_json::{Value, json};

use crate::vocabulary;

/// Tokens that a sequence teaches; the sequence begins with BOS before them.
pub(crate) const CONTEXT: usize = 256;
/// Sequences of a step, and the parts of it that are computed by themselves, at the same time where there are cores.
pub(crate) const SEQUENCES: usize = 8;
pub(crate) const PARTS: usize = 2;
/// Steps of the training whose weights lie in the repository.
pub(crate) const STEPS: usize = 2400;
/// Steps in which the rates rise from nothing.
pub(crate) const WARM_UP: usize = 100;
/// The part of the steps, at the end, in which the rates fall to nothing along a straight line.
pub(crate) const FALL: f64 = 2.0 / 3.0;
/// Largest norm of the gradient of all weights together.
pub(crate) const MAX_GRADIENT: f64 = 1.0;
/// What multiplies the loss that keeps the experts equally busy (Fedus et al. 2021).
pub(crate) const BALANCE: f64 = 0.01;
pub(crate) const SEED: u64 = 4;

/// The `config.json` of the model.
pub(crate) fn config() -> Value {
    let (sliding, full) = ("sliding_attention", "full_attention");
    json!({
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "dtype": "bfloat16",
        "vocab_size": vocabulary::SIZE,
        "hidden_size": 192,
        "intermediate_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "global_head_dim": 64,
        "layer_types": [sliding, sliding, sliding, full, sliding, sliding, sliding, full],
        "sliding_window": 64,
        "max_position_embeddings": CONTEXT,
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": true,
        "attention_k_eq_v": false,
        "attention_bias": false,
        "vocab_size_per_layer_input": vocabulary::SIZE,
        "hidden_size_per_layer_input": 32,
        "enable_moe_block": true,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": true,
        "rope_parameters": {
            full: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
            sliding: {"rope_type": "default", "rope_theta": 1e4},
        },
        "pad_token_id": 0,
        "eos_token_id": vocabulary::EOS,
        "bos_token_id": vocabulary::BOS,
        "initializer_range": 0.02,
        "use_cache": true,
    })
}

/// What the learning rates of a step are multiplied by.
pub(crate) fn schedule(step: usize, steps: usize) -> f64 {
    let rise = (step + 1) as f64 / WARM_UP as f64;
    let fall = (steps - step) as f64 / (steps as f64 * FALL);
    rise.min(fall).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first step in which the rates fall.
    fn fall_begins(steps: usize) -> usize {
        (0..steps).rev().find(|&step| schedule(step, steps) >= 1.0).map_or(0, |last| last + 1)
    }

    #[test]
    fn rates_rise_stand_and_fall() {
        assert!(schedule(0, 1000) <= 0.01 && schedule(99, 1000) == 1.0 && schedule(250, 1000) == 1.0);
        assert!(schedule(999, 1000) < 0.01 && schedule(999, 1000) > 0.0);
        // Another length changes nothing before the fall.
        let begins = fall_begins(1000);
        assert_eq!(begins, 334);
        assert!((0..begins).all(|step| schedule(step, 1000) == schedule(step, 2000)));
    }

    #[test]
    fn the_engine_takes_the_configuration() {
        let config = engine::config::Config::from_hf(&config()).unwrap();
        assert_eq!((config.n_layers, config.layers[4].kv_source, config.layers[7].kv_source), (8, Some(2), Some(3)));
        assert_eq!((config.layers[3].d_head, config.layers[4].d_mlp), (64, 512));
        assert!(config.ple.is_some() && config.moe.is_some());
        let numbers: usize = config.tensors().iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
        assert!(numbers * 2 < 15_000_000, "{numbers}");
    }
}
