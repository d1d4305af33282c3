//! Does GGUF metadata give the configuration that the converter began with?

use std::path::Path;

use super::*;
use crate::weights::gguf::{Metadata, Value};

fn gguf(pairs: &[(String, Value)]) -> Metadata {
    Metadata::new(Path::new("x.gguf"), pairs.to_vec())
}

/// What a converted checkpoint says about its shape.
fn gguf_of(preset: &Preset) -> Vec<(String, Value)> {
    let int = |number: usize| Value::Int(number as i64);
    let text = |text: &str| Value::Text(text.to_owned());
    let config = preset.config();
    let arch = match config.generation() {
        Generation::Gemma3 => "gemma3",
        Generation::Gemma3n => "gemma3n",
        Generation::Gemma4 => "gemma4",
    };
    let mut pairs = vec![
        ("general.architecture".to_owned(), text(arch)),
        ("tokenizer.ggml.bos_token_id".to_owned(), int(2)),
        ("tokenizer.ggml.eos_token_id".to_owned(), int(1)),
        ("tokenizer.ggml.padding_token_id".to_owned(), int(0)),
    ];
    let mut set = |name: &str, value: Value| pairs.push((format!("{arch}.{name}"), value));
    let by_layer =
        |of: &dyn Fn(&LayerConfig) -> usize| Value::Ints(config.layers.iter().map(|layer| of(layer) as i64).collect());
    set("context_length", int(preset.n_ctx));
    set("embedding_length", int(preset.d_model));
    set("block_count", int(preset.n_layers));
    set("attention.head_count", int(preset.n_heads));
    set("attention.layer_norm_rms_epsilon", Value::Float(1e-6));
    set("attention.sliding_window", int(preset.sliding_window));
    set("rope.freq_base", Value::Float(1e6));
    if config.generation() != Generation::Gemma3 {
        let slides = |layer: &LayerConfig| layer.kind == LayerKind::Sliding;
        set("attention.sliding_window_pattern", Value::Bools(config.layers.iter().map(slides).collect()));
        set("rope.freq_base_swa", Value::Float(1e4));
        set("final_logit_softcapping", Value::Float(30.0));
    }
    let d_head = config.layers.iter().map(|layer| layer.d_head).max().unwrap();
    set("attention.key_length", int(d_head));
    set("attention.value_length", int(d_head));
    match preset.family {
        Family::Gemma3 { rope_factor, .. } => {
            set("feed_forward_length", int(preset.d_mlp));
            set("attention.head_count_kv", int(preset.n_kv_heads));
            if rope_factor != 1.0 {
                set("rope.scaling.type", text("linear"));
                set("rope.scaling.factor", Value::Float(rope_factor));
            }
        }
        Family::Gemma3n { n_kv_shared } => {
            set("feed_forward_length", by_layer(&|layer| layer.d_mlp));
            set("attention.head_count_kv", int(preset.n_kv_heads));
            set("attention.shared_kv_layers", int(n_kv_shared));
            set("embedding_length_per_layer_input", int(256));
            set("altup.num_inputs", int(4));
            set("altup.active_idx", int(0));
            // The quantile of 0.95, and of 0.
            let quantile =
                |layer: &LayerConfig| if layer.activation_sparsity > 0.0 { 1.644_853_6 } else { f32::NEG_INFINITY };
            set("activation_sparsity_scale", Value::Floats(config.layers.iter().map(quantile).collect()));
        }
        Family::Gemma4 { n_kv_shared, d_ple, moe, double_wide, .. } => {
            let d_mlp = if double_wide { by_layer(&|layer| layer.d_mlp) } else { int(preset.d_mlp) };
            set("feed_forward_length", d_mlp);
            set("attention.head_count_kv", by_layer(&|layer| layer.n_kv_heads));
            set("attention.shared_kv_layers", int(n_kv_shared));
            set("embedding_length_per_layer_input", int(d_ple));
            set("attention.key_length_swa", int(preset.d_head));
            set("attention.value_length_swa", int(preset.d_head));
            if let Some(moe) = moe {
                set("expert_count", int(moe.n_experts));
                set("expert_used_count", int(moe.top_k));
                set("expert_feed_forward_length", int(moe.d_expert));
            }
            pairs.push(("tokenizer.ggml.eot_token_id".to_owned(), int(106)));
        }
    }
    pairs
}

#[test]
fn gguf_metadata_of_every_size() {
    for preset in PRESETS {
        let mut config = Config::from_gguf(&gguf(&gguf_of(preset))).unwrap();
        let mut expected = preset.config();
        // A GGUF does not tell the classes of Gemma 4 apart, which compute the same.
        if expected.generation() == Generation::Gemma4 {
            expected.architecture = Architecture::Gemma4Text;
        }
        // The rows of the embedding, and what has values, are known from the tensors.
        expected.d_vocab = config.d_vocab;
        let layers = expected.layers.clone();
        config.values_are_keys(|layer| !layers[layer].value_is_key);
        assert_eq!(config, expected, "{}", preset.name);
    }
}

#[test]
fn what_gguf_metadata_leaves_out_is_what_llama_cpp_knows() {
    let mut pairs = gguf_of(Preset::find("gemma-3n-e4b").unwrap());
    for key in ["attention.sliding_window_pattern", "attention.shared_kv_layers", "activation_sparsity_scale"] {
        pairs.retain(|(name, _)| *name != format!("gemma3n.{key}"));
    }
    let config = Config::from_gguf(&gguf(&pairs)).unwrap();
    assert_eq!(config.layers, Preset::find("gemma-3n-e4b").unwrap().config().layers);
}

#[test]
fn lists_in_gguf_metadata_have_an_entry_for_each_layer() {
    let message = |key: &str, value: Value| {
        let mut pairs = gguf_of(Preset::find("gemma-4-e2b").unwrap());
        pairs.retain(|(name, _)| name != key);
        pairs.push((key.to_owned(), value));
        Config::from_gguf(&gguf(&pairs)).unwrap_err().to_string()
    };
    assert_eq!(
        message("gemma4.attention.head_count_kv", Value::Ints(vec![1; 34])),
        "expected a number, or 35 of them for `gemma4.attention.head_count_kv`, found 34 of them"
    );
    assert_eq!(
        message("gemma4.feed_forward_length", Value::Ints(vec![-1; 35])),
        "expected counts for `gemma4.feed_forward_length`, found -1"
    );
    assert_eq!(
        message("gemma4.attention.sliding_window_pattern", Value::Bools(Vec::new())),
        "expected a number, or 35 of them for `gemma4.attention.sliding_window_pattern`, found 0 of them"
    );
}

#[test]
fn gguf_metadata_that_cannot_be_run() {
    let message = |key: &'static str, value: Option<Value>| {
        let mut pairs = gguf_of(&PRESETS[0]);
        pairs.retain(|(name, _)| name != key);
        pairs.extend(value.map(|value| (key.to_owned(), value)));
        Config::from_gguf(&gguf(&pairs)).unwrap_err().to_string()
    };
    let text = |text: &str| Some(Value::Text(text.to_owned()));
    assert_eq!(
        message("general.architecture", text("gemma2")),
        "expected one of the architectures `gemma3`, `gemma3n`, `gemma4`, found `gemma2`"
    );
    assert_eq!(
        message("general.architecture", None),
        "expected one of the architectures `gemma3`, `gemma3n`, `gemma4`, found `nothing`"
    );
    assert_eq!(
        message("gemma3.block_count", None),
        "expected a count for `gemma3.block_count`, found nothing in `x.gguf`"
    );
    assert_eq!(
        message("gemma3.block_count", Some(Value::Int(-1))),
        "expected a count for `gemma3.block_count`, found -1 in `x.gguf`"
    );
    assert_eq!(
        message("split.count", Some(Value::Int(3))),
        "expected one file that holds the whole model for `split.count`, found 3 parts"
    );
    assert_eq!(
        message("gemma3.rope.scaling.type", text("yarn")),
        "expected `none` or `linear` for `gemma3.rope.scaling.type`, found `yarn`"
    );
    assert_eq!(
        message("gemma3.attention.value_length", Some(Value::Int(128))),
        "expected the key length 256 for `gemma3.attention.value_length`, found 128"
    );
}
