//! Is a Gemma 3n configuration read as the reference reads it?

use super::*;

const S: &str = "sliding_attention";
const F: &str = "full_attention";

/// A small stack that has everything; `change` says otherwise where a value is not null.
fn tiny(change: serde_json::Value) -> serde_json::Value {
    let json = json!({
        "model_type": "gemma3n_text", "vocab_size": 320, "vocab_size_per_layer_input": 288, "hidden_size": 64,
        "hidden_size_per_layer_input": 8, "intermediate_size": [96, 96, 96, 96, 96, 128, 128, 128, 128, 128],
        "num_hidden_layers": 10, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 4,
        "layer_types": [S, S, S, S, F, S, S, S, S, F], "num_kv_shared_layers": 5, "laurel_rank": 8,
        "activation_sparsity_pattern": [0.95, 0.95, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "max_position_embeddings": 256
    });
    changed(json, change)
}

#[test]
fn the_defaults_are_those_of_e4b() {
    let config = Config::from_hf(&json!({ "model_type": "gemma3n_text" })).unwrap();
    assert_eq!(config, Preset::find("gemma-3n-e4b").unwrap().config());
    assert_eq!(config.attention_scale(), 1.0);
    assert_eq!(config.final_logit_softcapping, Some(30.0));
    let sparse: Vec<f64> = config.layers.iter().map(|layer| layer.activation_sparsity).collect();
    assert!(sparse[..10].iter().all(|&part| part == 0.95) && sparse[10..].iter().all(|&part| part == 0.0));
}

#[test]
fn the_e2b_as_the_hub_spells_it() {
    let json = json!({
        "architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n", "eos_token_id": [1, 106],
        "audio_config": {}, "vision_config": {},
        "text_config": {
            "model_type": "gemma3n_text", "num_hidden_layers": 30, "intermediate_size": vec![8192; 30],
            "num_kv_shared_layers": 10, "query_pre_attn_scalar": 256, "rope_scaling": null, "rope_theta": 1e6,
            "rope_local_base_freq": 1e4, "altup_coef_clip": 120.0, "altup_lr_multiplier": 1.0,
            "sliding_window_pattern": 3
        }
    });
    let expected = Config {
        architecture: Architecture::Gemma3n,
        eos_token_ids: vec![1, 106],
        ..Preset::find("gemma-3n-e2b").unwrap().config()
    };
    assert_eq!(Config::from_hf(&json).unwrap(), expected);
}

#[test]
fn every_layer_has_its_own_widths() {
    let config = Config::from_hf(&tiny(json!({}))).unwrap();
    assert_eq!(kinds(&config), "SSSSFSSSSF");
    let last = LayerConfig {
        kind: LayerKind::Full,
        n_kv_heads: 2,
        d_head: 16,
        d_mlp: 128,
        kv_source: Some(4),
        value_is_key: false,
        activation_sparsity: 0.0,
    };
    assert_eq!(config.layers[9], last);
    assert_eq!((config.layers[8].kv_source, config.layers[2].activation_sparsity), (Some(3), 0.9));
    assert_eq!(config.d_mlp, 96);
    assert_eq!(Config::from_hf(&config.to_hf()).unwrap(), config);

    let shape = config.shape();
    assert_eq!((shape.d_ple, shape.n_altup, shape.layers[9].d_mlp), (8, 4, 128));
    let names: Vec<String> = config.tensors().into_iter().map(|spec| spec.name).collect();
    let has = |name: &str| names.contains(&name.to_owned());
    assert!(has("model.layers.4.self_attn.k_proj.weight") && !has("model.layers.5.self_attn.k_proj.weight"));
    assert!(has("model.layers.9.self_attn.q_norm.weight") && !has("model.layers.9.self_attn.k_norm.weight"));
    assert!(has("model.altup_projections.2.weight") && !has("model.altup_projections.3.weight"));
    assert!(has("model.layers.9.altup.correct_output_scale") && !has("model.layers.9.layer_scalar"));
    assert_eq!(names[1], "model.embed_tokens_per_layer.weight");
}

#[test]
fn sparsity_is_a_list_a_number_or_the_default() {
    let of = |value: serde_json::Value| {
        let config = Config::from_hf(&tiny(json!({ "activation_sparsity_pattern": value }))).unwrap();
        config.layers.iter().map(|layer| layer.activation_sparsity).collect::<Vec<f64>>()
    };
    assert_eq!(of(json!(0.5)), [0.5; 10]);
    // Ten layers are not more than ten.
    assert_eq!(of(json!(null)), [0.0; 10]);
}

#[test]
fn legacy_rope_keys_of_gemma3n() {
    let legacy = json!({
        "rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}
    });
    let config = Config::from_hf(&tiny(legacy)).unwrap();
    assert_eq!(config.rope(LayerKind::Full), Rope { factor: 2.0, ..Rope::plain(5e5) });
    assert_eq!(config.rope(LayerKind::Sliding), Rope::plain(2e4));
}

#[test]
fn what_gemma3n_cannot_be() {
    let cases = [
        (json!({"intermediate_size": [1, 2]}), "expected 10 entries for `intermediate_size`, found 2"),
        (json!({"intermediate_size": [1, "x"]}), "expected a count for `intermediate_size`, found a string"),
        (json!({"num_kv_shared_layers": 11}), "expected at most the 10 layers for `num_kv_shared_layers`, found 11"),
        (
            json!({"num_kv_shared_layers": 6}),
            "expected a layer of each kind before those that share for `num_kv_shared_layers`, found 6",
        ),
        (
            json!({"num_kv_shared_layers": 10}),
            "expected a layer of each kind before those that share for `num_kv_shared_layers`, found 10",
        ),
        (
            json!({"activation_sparsity_pattern": [0.5]}),
            "expected 10 entries for `activation_sparsity_pattern`, found 1",
        ),
        (
            json!({"activation_sparsity_pattern": 1.0}),
            "expected numbers from 0 up to 1 for `activation_sparsity_pattern`, found 1",
        ),
        (json!({"altup_active_idx": 4}), "expected an index below 4 for `altup_active_idx`, found 4"),
        (json!({"altup_num_inputs": 1}), "expected a number between 2 and 64 for `altup_num_inputs`, found 1"),
        (
            json!({"hidden_size_per_layer_input": 0}),
            "expected a number between 1 and 268435456 for `hidden_size_per_layer_input`, found 0",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "proportional", "rope_theta": 1e6}}}),
            "expected `default` or `linear` for `rope_type`, found `proportional`",
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(message(&tiny(change)), expected);
    }
}
