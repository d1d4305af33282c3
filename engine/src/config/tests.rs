use serde_json::json;

use super::*;
mod gemma3n;
mod gemma4;
mod gguf;
mod presets;

fn kinds(config: &Config) -> String {
    let letter = |layer: &LayerConfig| if layer.kind == LayerKind::Full { 'F' } else { 'S' };
    config.layers.iter().map(letter).collect()
}

/// An object with what another one says.
fn changed(mut json: serde_json::Value, change: serde_json::Value) -> serde_json::Value {
    let (Some(fields), serde_json::Value::Object(change)) = (json.as_object_mut(), change) else { panic!("objects") };
    fields.extend(change);
    json
}

fn message(json: &serde_json::Value) -> String {
    Config::from_hf(json).unwrap_err().to_string()
}

#[test]
fn the_4b_as_the_hub_spells_it() {
    // Multimodal, legacy keys, and everything that is a default left out.
    let json = json!({
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
            "final_logit_softcapping": 30.0
        },
        "vision_config": {"hidden_size": 1152}
    });
    let config = Config::from_hf(&json).unwrap();
    let expected = Config {
        architecture: Architecture::Gemma3,
        eos_token_ids: vec![1, 106],
        ..Preset::find("gemma-3-4b").unwrap().config()
    };
    assert_eq!(config, expected, "and no soft cap: the multimodal class ignores it");
}

#[test]
fn the_tiny_text_model_of_the_parity_tests() {
    let json = json!({
        "model_type": "gemma3_text", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 4,
        "sliding_window_pattern": 6, "max_position_embeddings": 256,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}
        },
        "final_logit_softcapping": 15.0, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "tie_word_embeddings": true,
        "layer_types": null, "rope_scaling": null, "attn_logit_softcapping": 50.0
    });
    let config = Config::from_hf(&json).unwrap();
    assert_eq!(kinds(&config), "SSSSSFS");
    assert_eq!(config.rope(LayerKind::Full), Rope { factor: 8.0, ..Rope::plain(1e6) });
    assert_eq!(config.rope(LayerKind::Sliding), Rope::plain(1e4));
    assert_eq!((config.window(0), config.window(5)), (Some(4), None));
    assert_eq!(config.attention_scale(), 24_f64.powf(-0.5));
    assert_eq!(config.final_logit_softcapping, Some(15.0));
    assert_eq!(config.eos_token_ids, [1]);
    assert_eq!(config.shape().d_head, 32);
    assert_eq!(
        config.layers[6],
        LayerConfig {
            kind: LayerKind::Sliding,
            n_kv_heads: 2,
            d_head: 32,
            d_mlp: 96,
            kv_source: None,
            value_is_key: false,
            activation_sparsity: 0.0
        }
    );
}

#[test]
fn legacy_keys_mean_what_the_new_ones_mean() {
    let legacy = json!({
        "model_type": "gemma3_text", "rope_theta": 5e5, "rope_local_base_freq": 2e4,
        "rope_scaling": {"type": "linear", "factor": 4}, "sliding_window_pattern": 2, "num_hidden_layers": 4
    });
    let new = json!({
        "model_type": "gemma3_text", "num_hidden_layers": 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}
        },
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    });
    assert_eq!(Config::from_hf(&legacy).unwrap(), Config::from_hf(&new).unwrap());
}

#[test]
fn bidirectional_models_halve_their_window() {
    let json = json!({ "model_type": "gemma3_text", "sliding_window": 512, "use_bidirectional_attention": true });
    let config = Config::from_hf(&json).unwrap();
    assert_eq!(config.sliding_window, 257);
    assert_eq!(Config::from_hf(&config.to_hf()).unwrap(), config);
}

#[test]
fn attention_bias_and_a_head_of_its_own_are_tensors() {
    let mut config = PRESETS[0].config();
    let n = config.tensors().len();
    config.attention_bias = true;
    config.tie_word_embeddings = false;
    let names: Vec<String> = config.tensors().into_iter().map(|spec| spec.name).collect();
    assert_eq!(names.len(), n + 4 * config.n_layers + 1);
    assert!(names.contains(&"model.layers.17.self_attn.o_proj.bias".to_owned()));
    assert_eq!(names.last().map(String::as_str), Some("lm_head.weight"));
}

const KNOWN: &str = "expected one of the architectures `gemma3_text`, `gemma3`, `gemma3n_text`, `gemma3n`, \
    `gemma4_text`, `gemma4`, `gemma4_unified_text`, `gemma4_unified`";

#[test]
fn what_cannot_be_run_is_refused() {
    assert_eq!(message(&json!({"model_type": "llama"})), format!("{KNOWN}, found `llama`"));
    assert_eq!(message(&json!({})), format!("{KNOWN}, found `nothing`"));
    assert_eq!(message(&json!([])), "expected an object for `config.json`, found a list");
    assert_eq!(message(&json!({"model_type": "gemma3"})), "expected an object for `text_config`, found nothing");
    let with = |key: &str, value: serde_json::Value| {
        message(&changed(json!({"model_type": "gemma3_text"}), json!({ key: value })))
    };
    let cases = [
        ("hidden_activation", json!("relu"), "expected `gelu_pytorch_tanh` for `hidden_activation`, found `relu`"),
        (
            "num_hidden_layers",
            json!(1_000_000_000_000_u64),
            "expected a number between 1 and 4096 for `num_hidden_layers`, found 1000000000000",
        ),
        ("hidden_size", json!(0), "expected a number between 1 and 268435456 for `hidden_size`, found 0"),
        ("hidden_size", json!(-4), "expected another type for `hidden_size`"),
        ("head_dim", json!(33), "expected an even number for `head_dim`, found 33"),
        (
            "num_key_value_heads",
            json!(3),
            "expected a divisor of the 8 attention heads for `num_key_value_heads`, found 3",
        ),
        ("rms_norm_eps", json!(-1e-6), "expected a positive number for `rms_norm_eps`, found -0.000001"),
        ("layer_types", json!(["full_attention"]), "expected 26 entries for `layer_types`, found 1"),
        ("layer_types", json!(["chunked_attention"]), "expected a list of layer types for `layer_types`"),
        ("sliding_window_pattern", json!(0), "expected a positive number for `sliding_window_pattern`, found 0"),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 2.0}),
            "expected `default` or `linear` for `rope_type`, found `yarn`",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "linear"}),
            "expected a number beside rope type `linear` for `factor`, found nothing",
        ),
        (
            "rope_parameters",
            json!({"rope_theta": 1e4}),
            "expected `full_attention` and `sliding_attention` for `rope_parameters`, found other keys",
        ),
        ("vocab_size", json!("many"), "expected another type for `vocab_size`"),
    ];
    for (key, value, expected) in cases {
        let found = with(key, value);
        assert!(found.starts_with(expected), "expected `{expected}`, found `{found}`");
    }
}
