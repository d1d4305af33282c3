//! Is a Gemma 4 configuration read as the reference reads it, in both spellings?

use super::*;

const S: &str = "sliding_attention";
const F: &str = "full_attention";

/// A small stack with per-layer embeddings and sharing, as the Hub spells such.
fn tiny(change: serde_json::Value) -> serde_json::Value {
    let json = json!({
        "model_type": "gemma4_text", "vocab_size": 320, "vocab_size_per_layer_input": 320, "hidden_size": 64,
        "hidden_size_per_layer_input": 8, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "num_kv_shared_layers": 3,
        "use_double_wide_mlp": true, "layer_types": [S, S, F, S, S, F], "sliding_window": 4,
        "final_logit_softcapping": 30.0, "max_position_embeddings": 256
    });
    changed(json, change)
}

/// The experts of a small stack.
fn experts() -> serde_json::Value {
    json!({
        "enable_moe_block": true, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 24,
        "hidden_size_per_layer_input": null, "num_kv_shared_layers": 0, "use_double_wide_mlp": false,
        "attention_k_eq_v": true, "num_global_key_value_heads": 1
    })
}

fn read(change: serde_json::Value) -> Config {
    Config::from_hf(&tiny(change)).unwrap()
}

/// Heads of sliding and of full layers: how many of which width.
fn heads(config: &Config) -> [(usize, usize); 2] {
    let of = |kind| config.layers.iter().find(|layer| layer.kind == kind).map(|layer| (layer.n_kv_heads, layer.d_head));
    [of(LayerKind::Sliding), of(LayerKind::Full)].map(Option::unwrap_or_default)
}

#[test]
fn defaults_of_both_classes() {
    let config = Config::from_hf(&json!({ "model_type": "gemma4_text" })).unwrap();
    assert_eq!((config.n_layers, config.n_ctx, config.sliding_window), (30, 131_072, 512));
    assert_eq!(heads(&config), [(4, 256), (4, 512)]);
    assert_eq!(config.ple, Some(PleConfig { d_ple: 256, d_vocab: 262_144 }));
    assert_eq!(config.rope(LayerKind::Full), Rope { partial_rotary_factor: 0.25, ..Rope::plain(1e6) });
    assert_eq!(config.rope(LayerKind::Sliding), Rope::plain(1e4));
    assert_eq!((config.final_logit_softcapping, config.moe, config.use_bidirectional_attention), (None, None, false));
    assert_eq!(kinds(&config), "SSSSSF".repeat(5));
    let unified = Config::from_hf(&json!({ "model_type": "gemma4_unified_text", "enable_moe_block": true })).unwrap();
    assert_eq!((unified.n_ctx, unified.sliding_window, unified.ple, unified.moe), (262_144, 1024, None, None));
    assert_eq!(unified.generation(), Generation::Gemma4);
}

#[test]
fn the_31b_as_the_hub_spells_it() {
    let json = json!({
        "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "eos_token_id": [1, 106],
        "audio_config": null, "vision_config": {}, "tie_word_embeddings": true,
        "text_config": {
            "model_type": "gemma4_text", "attention_k_eq_v": true, "eos_token_id": 1, "final_logit_softcapping": 30.0,
            "global_head_dim": 512, "head_dim": 256, "hidden_size": 5376, "hidden_size_per_layer_input": 0,
            "intermediate_size": 21504, "max_position_embeddings": 262_144, "num_attention_heads": 32,
            "num_global_key_value_heads": 4, "num_hidden_layers": 60, "num_key_value_heads": 16,
            "num_kv_shared_layers": 0, "sliding_window": 1024, "use_bidirectional_attention": "vision",
            "enable_moe_block": false, "num_experts": null, "top_k_experts": null, "moe_intermediate_size": null,
            "rope_parameters": {
                "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}
            }
        }
    });
    let expected = Config { architecture: Architecture::Gemma4, ..Preset::find("gemma-4-31b").unwrap().config() };
    assert_eq!(Config::from_hf(&json).unwrap(), expected);
}

#[test]
fn sharing_layers_read_the_last_of_their_kind_and_may_be_double_wide() {
    let config = read(json!({}));
    let sources: Vec<Option<usize>> = config.layers.iter().map(|layer| layer.kv_source).collect();
    assert_eq!(sources, [None, None, None, Some(1), Some(1), Some(2)]);
    let widths: Vec<usize> = config.layers.iter().map(|layer| layer.d_mlp).collect();
    assert_eq!(widths, [96, 96, 96, 192, 192, 192]);
    assert_eq!(Config::from_hf(&config.to_hf()).unwrap(), config);
    assert_eq!(config.to_hf()["intermediate_size"], 96);
    assert!(read(json!({"use_double_wide_mlp": null})).layers.iter().all(|layer| layer.d_mlp == 96));
    // Without layers that share, nothing is double.
    assert!(read(json!({"num_kv_shared_layers": 0})).layers.iter().all(|layer| layer.d_mlp == 96));
}

#[test]
fn heads_of_full_layers_in_both_spellings() {
    assert_eq!(heads(&read(json!({}))), [(2, 16), (2, 32)]);
    assert_eq!(heads(&read(json!({"global_head_dim": null}))), [(2, 16), (2, 512)]);
    // Only with keys that are values.
    assert_eq!(heads(&read(json!({"num_global_key_value_heads": 1}))), [(2, 16), (2, 32)]);
    let keys = json!({"num_global_key_value_heads": 1, "attention_k_eq_v": true});
    assert_eq!(heads(&read(keys)), [(2, 16), (1, 32)]);
    // The reference's own spelling wins, with keys padded to one length or not.
    for keys in [["2", "5"], ["02", "05"]] {
        let overrides = json!({"head_dim": 8, "num_key_value_heads": 4});
        let config = read(json!({"per_layer_config": {keys[0]: overrides, keys[1]: overrides}}));
        assert_eq!(heads(&config), [(2, 16), (4, 8)]);
        assert_eq!(Config::from_hf(&config.to_hf()).unwrap(), config, "which the Hub's spelling cannot say");
    }
    assert_eq!(heads(&read(json!({"per_layer_config": {}}))), [(2, 16), (2, 16)]);
    assert_eq!(heads(&read(json!({"per_layer_config": null}))), [(2, 16), (2, 16)]);
}

#[test]
fn the_last_layer_is_forced_to_be_full() {
    let config = read(json!({"layer_types": [S, S, F, S, S, S]}));
    assert_eq!(kinds(&config), "SSFSSF");
    assert_eq!(config.layers[5].d_head, 32);
}

#[test]
fn values_that_are_keys_have_no_tensor() {
    let config = read(json!({"attention_k_eq_v": true}));
    assert!(config.layers.iter().all(|layer| layer.value_is_key == (layer.kind == LayerKind::Full)));
    let names: Vec<String> = config.tensors().into_iter().map(|spec| spec.name).collect();
    let has = |name: &str| names.contains(&format!("model.layers.{name}.weight"));
    assert!(has("1.self_attn.v_proj") && has("2.self_attn.k_proj") && !has("2.self_attn.v_proj"));
    assert!(has("2.self_attn.k_norm") && !has("5.self_attn.k_proj"));
    assert_eq!(Config::from_hf(&config.to_hf()).unwrap(), config);
}

#[test]
fn per_layer_embeddings_are_turned_off_by_zero_or_null() {
    for off in [json!(0), json!(null)] {
        let config = read(json!({ "hidden_size_per_layer_input": off }));
        assert_eq!(config.ple, None);
        assert!(config.tensors().iter().all(|spec| !spec.name.contains("per_layer")));
        assert_eq!(Config::from_hf(&config.to_hf()).unwrap(), config);
    }
    let with = read(json!({})).tensors();
    let shape = |name: &str| with.iter().find(|spec| spec.name == format!("model.{name}")).unwrap().shape.clone();
    assert_eq!(shape("embed_tokens_per_layer.weight"), [320, 48]);
    assert_eq!(shape("per_layer_model_projection.weight"), [48, 64]);
    assert_eq!(shape("layers.5.per_layer_projection.weight"), [64, 8]);
    assert_eq!(shape("layers.0.layer_scalar"), [1]);
}

#[test]
fn experts_stand_in_every_layer() {
    let config = read(experts());
    assert_eq!(config.moe, Some(MoeConfig { n_experts: 8, top_k: 3, d_expert: 24 }));
    assert_eq!(Config::from_hf(&config.to_hf()).unwrap(), config);
    let last: Vec<(String, Vec<usize>)> = config
        .tensors()
        .into_iter()
        .filter_map(|spec| Some((spec.name.strip_prefix("model.layers.5.")?.to_owned(), spec.shape)))
        .filter(|(name, _)| name.contains("router") || name.contains("experts") || name.contains("_norm_"))
        .collect();
    let expected: Vec<(String, Vec<usize>)> = [
        ("router.scale", vec![64]),
        ("router.proj.weight", vec![8, 64]),
        ("router.per_expert_scale", vec![8]),
        ("experts.gate_up_proj", vec![8, 48, 64]),
        ("experts.down_proj", vec![8, 64, 24]),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
    .to_vec();
    assert_eq!(last, expected);
    // All layers but for five of eight experts.
    assert_eq!(config.n_params() - config.n_params_active(), 6 * 5 * 3 * 24 * 64);
}

#[test]
fn both_directions_turn_the_window_around() {
    let config = read(json!({"use_bidirectional_attention": "all", "sliding_window": 6}));
    assert!(config.use_bidirectional_attention);
    // |q - k| <= 6 / 2 + 1, so nearer than 5.
    assert_eq!(config.sliding_window, 5);
    assert_eq!(Config::from_hf(&config.to_hf()).unwrap(), config);
    let vision = read(json!({"use_bidirectional_attention": "vision", "sliding_window": 6}));
    assert_eq!((vision.use_bidirectional_attention, vision.sliding_window), (false, 6));
}

#[test]
fn proportional_rope() {
    let of = |full: serde_json::Value| read(json!({"rope_parameters": {"full_attention": full}})).rope;
    let rope = of(json!({"rope_type": "proportional", "rope_theta": 1e5, "partial_rotary_factor": 0.5, "factor": 2.0}));
    assert_eq!(rope.full, Rope { theta: 1e5, factor: 2.0, partial_rotary_factor: 0.5 });
    assert_eq!(rope.sliding, Rope::plain(1e4));
    assert_eq!(of(json!({"rope_type": "proportional", "rope_theta": 1e5})).full, Rope::plain(1e5));
    // The default type turns every pair, whatever stands beside it.
    let rope = of(json!({"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.5}));
    assert_eq!(rope.full, Rope::plain(1e5));
}

#[test]
fn what_gemma4_cannot_be() {
    let with_experts = |change: serde_json::Value| changed(experts(), change);
    let cases = [
        (
            json!({"num_kv_shared_layers": 4}),
            "expected a layer of each kind before those that share for `num_kv_shared_layers`, found 4",
        ),
        (json!({"global_head_dim": 33}), "expected an even number for `head_dim`, found 33"),
        (
            json!({"per_layer_config": {"6": {}}}),
            "expected indices of the 6 layers as keys for `per_layer_config`, found `6`",
        ),
        (
            json!({"per_layer_config": {"5": {"intermediate_size": 7}}}),
            "expected `head_dim` or `num_key_value_heads` for `per_layer_config.5`, found `intermediate_size`",
        ),
        (
            json!({"per_layer_config": {"5": {"head_dim": 32}}}),
            "expected the same heads in all layers of a kind, 2 of 16 for `head_dim`, found 2 of 32",
        ),
        (
            json!({"use_bidirectional_attention": "text"}),
            "expected `vision`, `all` or null for `use_bidirectional_attention`, found `text`",
        ),
        (
            json!({"enable_moe_block": true}),
            "expected a count beside `enable_moe_block` for `num_experts`, found nothing",
        ),
        (
            with_experts(json!({"top_k_experts": 9})),
            "expected a number between 1 and the 8 experts for `top_k_experts`, found 9",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}),
            "expected `default`, `linear` or `proportional` for `rope_type`, found `yarn`",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 2.0}}}),
            "expected a number between 0 and 1 for `partial_rotary_factor`, found 2",
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(message(&tiny(change)), expected);
    }
}
