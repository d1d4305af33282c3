//! What `config.json` says the same as a configuration?

use serde_json::{Map, Value, json};

use super::{Architecture, Config, Generation, LayerConfig, LayerKind, Rope};

impl Config {
    /// The `config.json` of the text stack by itself, which reads back as this configuration.
    pub fn to_hf(&self) -> Value {
        let architecture = self.architecture.text();
        let mut json = json_of(self);
        let fields = json.as_object_mut().expect("a struct is an object");
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        set("architectures", json!([architecture.class()]));
        set("model_type", json!(architecture.model_type()));
        set("hidden_activation", json!("gelu_pytorch_tanh"));
        let kinds: Vec<LayerKind> = self.layers.iter().map(|layer| layer.kind).collect();
        set("layer_types", json!(kinds));
        let ropes = json!({ "full_attention": rope(self.rope.full), "sliding_attention": rope(self.rope.sliding) });
        set("rope_parameters", ropes);
        match self.generation() {
            Generation::Gemma3 => {
                if self.query_pre_attn_scalar.fract() == 0.0 {
                    // The reference takes no other number.
                    set("query_pre_attn_scalar", json!(self.query_pre_attn_scalar as u64));
                }
                set("use_bidirectional_attention", json!(self.use_bidirectional_attention));
                if self.use_bidirectional_attention {
                    set("sliding_window", json!((self.sliding_window - 1) * 2));
                }
            }
            Generation::Gemma3n => self.set_gemma3n(fields),
            Generation::Gemma4 => self.set_gemma4(fields),
        }
        json
    }

    fn set_gemma3n(&self, fields: &mut Map<String, Value>) {
        fields.shift_remove("query_pre_attn_scalar");
        fields.extend(self.ple.iter().flat_map(object_of));
        fields.extend(self.altup.iter().flat_map(object_of));
        let d_mlps: Vec<usize> = self.layers.iter().map(|layer| layer.d_mlp).collect();
        let sparsity: Vec<f64> = self.layers.iter().map(|layer| layer.activation_sparsity).collect();
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        set("intermediate_size", json!(d_mlps));
        set("activation_sparsity_pattern", json!(sparsity));
        set("num_kv_shared_layers", json!(self.n_kv_shared()));
    }

    fn set_gemma4(&self, fields: &mut Map<String, Value>) {
        fields.shift_remove("query_pre_attn_scalar");
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        set("use_bidirectional_attention", json!(self.use_bidirectional_attention.then_some("all")));
        if self.use_bidirectional_attention {
            set("sliding_window", json!(self.sliding_window.saturating_sub(2) * 2));
        }
        set("num_kv_shared_layers", json!(self.n_kv_shared()));
        let double_wide =
            |layer: &LayerConfig| layer.d_mlp == self.d_mlp * (1 + usize::from(layer.kv_source.is_some()));
        let one_width = self.layers.iter().all(|layer| layer.d_mlp == self.d_mlp);
        set("use_double_wide_mlp", json!(!one_width && self.layers.iter().all(double_wide)));
        if !one_width && !self.layers.iter().all(double_wide) {
            let d_mlps: Vec<usize> = self.layers.iter().map(|layer| layer.d_mlp).collect();
            set("intermediate_size", json!(d_mlps));
        }

        let full = self.layers.iter().find(|layer| layer.kind == LayerKind::Full);
        if let Some(full) = full {
            set("attention_k_eq_v", json!(full.value_is_key));
            if full.value_is_key || full.n_kv_heads == self.n_kv_heads {
                // The Hub's spelling.
                set("global_head_dim", json!(full.d_head));
                set("num_global_key_value_heads", json!(full.value_is_key.then_some(full.n_kv_heads)));
            } else {
                let heads = json!({ "head_dim": full.d_head, "num_key_value_heads": full.n_kv_heads });
                let layers = self.layers.iter().enumerate().filter(|(_, layer)| layer.kind == LayerKind::Full);
                let overrides: Map<String, Value> =
                    layers.map(|(index, _)| (index.to_string(), heads.clone())).collect();
                set("per_layer_config", Value::Object(overrides));
            }
        }
        if self.architecture.text() == Architecture::Gemma4UnifiedText {
            return;
        }
        set("enable_moe_block", json!(self.moe.is_some()));
        set("hidden_size_per_layer_input", json!(0));
        fields.extend(self.moe.iter().flat_map(object_of));
        fields.extend(self.ple.iter().flat_map(object_of));
    }

    fn n_kv_shared(&self) -> usize {
        self.layers.iter().filter(|layer| layer.kv_source.is_some()).count()
    }
}

fn rope(rope: Rope) -> Value {
    if rope.partial_rotary_factor != 1.0 {
        return json!({
            "rope_type": "proportional",
            "rope_theta": rope.theta,
            "partial_rotary_factor": rope.partial_rotary_factor,
            "factor": rope.factor,
        });
    }
    if rope.factor != 1.0 {
        return json!({ "rope_type": "linear", "rope_theta": rope.theta, "factor": rope.factor });
    }
    json!({ "rope_type": "default", "rope_theta": rope.theta })
}

fn json_of<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("a configuration holds only numbers, lists and names")
}

fn object_of<T: serde::Serialize>(value: &T) -> Map<String, Value> {
    match json_of(value) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
