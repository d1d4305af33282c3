//! What does a Hugging Face `config.json` say, in this year's and in earlier spellings?

use serde_json::{Map, Value, json};

use super::{Architecture, Config, DEFAULT_SLIDING_WINDOW_PATTERN, LayerKind, Rope, bad, pattern};
use crate::error::Result;

impl Config {
    /// Reads the content of a `config.json`.
    ///
    /// Accepts `gemma3_text`, and of a multimodal `gemma3` the text stack. What is absent or null takes the defaults
    /// of the reference implementation.
    pub fn from_hf(json: &Value) -> Result<Self> {
        let top = object("config.json", json)?;
        let model_type = text(top, "model_type")?.unwrap_or("nothing");
        let architecture = Architecture::from_model_type(model_type)?;
        let fields = match (architecture, top.get("text_config")) {
            (Architecture::Gemma3, Some(inner)) => object("text_config", inner)?,
            (Architecture::Gemma3, None) => return Err(bad("text_config", "an object", "nothing")),
            (Architecture::Gemma3Text, _) => top,
        };
        let mut fields: Map<String, Value> = fields.clone();
        // Null means the default. `layers` is ours: a file must not reach it past `layer_types`.
        fields.retain(|name, value| !value.is_null() && name != "layers");
        fields.insert("model_type".to_owned(), json!(architecture.model_type()));
        // The multimodal files of the Hub name the tokens with a role beside the text stack, not in it.
        for role in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            if let Some(id) = top.get(role).filter(|id| !id.is_null()) {
                fields.insert(role.to_owned(), id.clone());
            }
        }

        check_activation(&fields)?;
        let rope = rope(&fields)?;
        fields.insert("rope_parameters".to_owned(), rope);
        if let Some(Value::Number(id)) = fields.get("eos_token_id") {
            let ids = json!([id]);
            fields.insert("eos_token_id".to_owned(), ids);
        }
        let layer_types = fields.remove("layer_types");
        let every = fields.remove("sliding_window_pattern");

        let mut config = read(fields)?;
        config.layers.clear();
        config.check()?;
        if architecture == Architecture::Gemma3 {
            config.final_logit_softcapping = None;
        }
        if config.use_bidirectional_attention {
            config.sliding_window = config.sliding_window / 2 + 1;
        }
        let kinds = layer_kinds(config.n_layers, layer_types, every)?;
        Ok(config.with_layers(&kinds))
    }

    /// The `config.json` of `Gemma3ForCausalLM` that reads back as this configuration.
    pub fn to_hf(&self) -> Value {
        let mut json = serde_json::to_value(self).expect("a configuration holds only numbers, lists and names");
        let fields = json.as_object_mut().expect("a struct is an object");
        fields.shift_remove("layers");
        let kinds: Vec<LayerKind> = self.layers.iter().map(|layer| layer.kind).collect();
        fields.insert("layer_types".to_owned(), json!(kinds));
        fields.insert("architectures".to_owned(), json!([Architecture::Gemma3Text.class()]));
        fields.insert("model_type".to_owned(), json!(Architecture::Gemma3Text.model_type()));
        fields.insert("hidden_activation".to_owned(), json!("gelu_pytorch_tanh"));
        let rope = |rope: Rope| {
            let kind = if rope.factor == 1.0 { "default" } else { "linear" };
            json!({ "rope_type": kind, "rope_theta": rope.theta, "factor": rope.factor })
        };
        let ropes = json!({ "full_attention": rope(self.rope.full), "sliding_attention": rope(self.rope.sliding) });
        fields.insert("rope_parameters".to_owned(), ropes);
        if self.use_bidirectional_attention {
            fields.insert("sliding_window".to_owned(), json!((self.sliding_window - 1) * 2));
        }
        json
    }
}

fn read(fields: Map<String, Value>) -> Result<Config> {
    // Field by field, so that a wrong type is reported with the field's name.
    for (name, value) in &fields {
        let mut one = Map::new();
        one.insert(name.clone(), value.clone());
        if let Err(error) = serde_json::from_value::<Config>(Value::Object(one)) {
            return Err(bad(name, "another type", &error.to_string()));
        }
    }
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| bad("config.json", "a Gemma 3 configuration", &error.to_string()))
}

fn check_activation(fields: &Map<String, Value>) -> Result<()> {
    // Old configurations carry a stale `hidden_act` beside `hidden_activation`.
    let key = if fields.contains_key("hidden_activation") { "hidden_activation" } else { "hidden_act" };
    match text(fields, key)? {
        None | Some("gelu_pytorch_tanh") => Ok(()),
        Some(other) => Err(bad(key, "`gelu_pytorch_tanh`", &format!("`{other}`"))),
    }
}

/// The two ropes as `{"full_attention": {"rope_theta", "factor"}, "sliding_attention": {…}}`.
fn rope(fields: &Map<String, Value>) -> Result<Value> {
    let defaults = Config::default().rope;
    let given = fields.get("rope_parameters").map(|value| object("rope_parameters", value)).transpose()?;
    if let Some(given) = given
        && !given.is_empty()
        && !given.contains_key("full_attention")
        && !given.contains_key("sliding_attention")
    {
        return Err(bad("rope_parameters", "`full_attention` and `sliding_attention`", "other keys"));
    }
    let of_kind = |kind: &str, legacy_theta: &str, default: Rope, legacy_scaling: Option<&str>| -> Result<Value> {
        let mut merged = match given.and_then(|given| given.get(kind)).filter(|value| !value.is_null()) {
            Some(value) => object(kind, value)?.clone(),
            None => Map::new(),
        };
        if let Some(scaling) = legacy_scaling.and_then(|key| fields.get(key)) {
            merged.extend(object("rope_scaling", scaling)?.clone());
        }
        let theta = match merged.get("rope_theta").or_else(|| fields.get(legacy_theta)) {
            None => default.theta,
            Some(value) => number("rope_theta", value)?,
        };
        let rope_type = text(&merged, "rope_type")?.or(text(&merged, "type")?).unwrap_or("default");
        let factor = match (rope_type, merged.get("factor")) {
            ("default", _) => 1.0,
            ("linear", Some(value)) => number("factor", value)?,
            ("linear", None) => return Err(bad("factor", "a number beside rope type `linear`", "nothing")),
            (other, _) => return Err(bad("rope_type", "`default` or `linear`", &format!("`{other}`"))),
        };
        Ok(json!({ "rope_theta": theta, "factor": factor }))
    };
    Ok(json!({
        "full_attention": of_kind("full_attention", "rope_theta", defaults.full, Some("rope_scaling"))?,
        "sliding_attention": of_kind("sliding_attention", "rope_local_base_freq", defaults.sliding, None)?,
    }))
}

fn layer_kinds(n_layers: usize, layer_types: Option<Value>, every: Option<Value>) -> Result<Vec<LayerKind>> {
    if let Some(value) = layer_types {
        let kinds: Vec<LayerKind> = serde_json::from_value(value)
            .map_err(|error| bad("layer_types", "a list of layer types", &error.to_string()))?;
        if kinds.len() != n_layers {
            return Err(bad("layer_types", &format!("{n_layers} entries"), &kinds.len().to_string()));
        }
        return Ok(kinds);
    }
    let every = match every {
        None => DEFAULT_SLIDING_WINDOW_PATTERN,
        Some(value) => match value.as_u64() {
            Some(every) if every > 0 => usize::try_from(every).unwrap_or(usize::MAX),
            _ => return Err(bad("sliding_window_pattern", "a positive number", &value.to_string())),
        },
    };
    Ok(pattern(n_layers, every))
}

fn object<'a>(field: &str, value: &'a Value) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| bad(field, "an object", kind_of(value)))
}

fn number(field: &str, value: &Value) -> Result<f64> {
    value.as_f64().ok_or_else(|| bad(field, "a number", kind_of(value)))
}

fn text<'a>(fields: &'a Map<String, Value>, field: &str) -> Result<Option<&'a str>> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(bad(field, "a string", kind_of(other))),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
