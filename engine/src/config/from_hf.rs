//! What does a Hugging Face `config.json` say, in this year's and in earlier spellings?

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{
    Architecture, Config, DEFAULT_GLOBAL_HEAD_DIM, Generation, LayerConfig, LayerKind, MoeConfig, PleConfig, Rope,
    RopeByKind, bad, layers,
};
use crate::error::Result;

type Fields = Map<String, Value>;

impl Config {
    /// Reads the content of a `config.json`.
    ///
    /// Of a multimodal configuration it takes the text stack. What is absent or null takes the defaults of the
    /// reference implementation.
    pub fn from_hf(json: &Value) -> Result<Self> {
        let top = object("config.json", json)?;
        let architecture = Architecture::from_model_type(text(top, "model_type")?.unwrap_or("nothing"))?;
        let mut fields = if architecture == architecture.text() {
            top.clone()
        } else {
            let inner = top.get("text_config").ok_or_else(|| bad("text_config", "an object", "nothing"))?;
            let mut fields = object("text_config", inner)?.clone();
            // The multimodal files of the Hub say these beside the text stack, not in it.
            for name in ["bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"] {
                if let Some(value) = present(top, name) {
                    fields.insert(name.to_owned(), value.clone());
                }
            }
            fields
        };
        fields.shift_remove("model_type");
        check_activation(&fields)?;
        if let Some(Value::Number(id)) = fields.get("eos_token_id") {
            let ids = json!([id]);
            fields.insert("eos_token_id".to_owned(), ids);
        }
        let generation = architecture.generation();
        if generation != Generation::Gemma3 {
            // The Hub's configurations of Gemma 3n carry one that nothing reads.
            fields.shift_remove("query_pre_attn_scalar");
        }
        let d_mlps = match fields.get("intermediate_size") {
            Some(Value::Array(list)) if generation != Generation::Gemma3 => {
                let widths: Result<Vec<usize>> = list.iter().map(|width| count("intermediate_size", width)).collect();
                let first = list.first().cloned().unwrap_or_default();
                fields.insert("intermediate_size".to_owned(), first);
                Some(widths?)
            }
            _ => None,
        };

        let default = Self::defaults(architecture);
        let mut config = overlay(&fields, default.clone())?;
        config.check_n_layers()?;
        if fields.get("final_logit_softcapping").is_some_and(Value::is_null) || architecture == Architecture::Gemma3 {
            config.final_logit_softcapping = None;
        }
        config.rope = ropes(&fields, &default.rope, generation)?;
        config.read_direction(&fields)?;
        config.ple = ple(&fields, default.ple, generation)?;
        let may_route = generation == Generation::Gemma4 && architecture.text() != Architecture::Gemma4UnifiedText;
        config.moe = if may_route { moe(&fields)? } else { None };
        config.altup = default.altup.map(|altup| overlay(&fields, altup)).transpose()?;
        config.read_layers(&fields, d_mlps)?;
        config.check()?;
        Ok(config)
    }

    /// Reads whether text sees what follows it, and converts the window to what is seen on each side.
    fn read_direction(&mut self, fields: &Fields) -> Result<()> {
        const FIELD: &str = "use_bidirectional_attention";
        match self.generation() {
            Generation::Gemma3 if flag(fields, FIELD)? => {
                self.use_bidirectional_attention = true;
                self.sliding_window = self.sliding_window / 2 + 1;
            }
            Generation::Gemma4 => match text(fields, FIELD)? {
                None | Some("vision") => {}
                Some("all") => {
                    self.use_bidirectional_attention = true;
                    self.sliding_window = self.sliding_window / 2 + 2;
                }
                Some(other) => return Err(bad(FIELD, "`vision`, `all` or null", &format!("`{other}`"))),
            },
            Generation::Gemma3 | Generation::Gemma3n => {}
        }
        Ok(())
    }

    fn read_layers(&mut self, fields: &Fields, d_mlps: Option<Vec<usize>>) -> Result<()> {
        let generation = self.generation();
        let kinds = layer_kinds(self.n_layers, fields, generation)?;
        let mut layers = layers::uniform(self, &kinds);
        if let Some(d_mlps) = d_mlps {
            check_length("intermediate_size", d_mlps.len(), self.n_layers)?;
            for (layer, d_mlp) in layers.iter_mut().zip(d_mlps) {
                layer.d_mlp = d_mlp;
            }
        }
        if generation == Generation::Gemma4 {
            read_heads(fields, &mut layers)?;
            if let Some(sliding) = layers.iter().find(|layer| layer.kind == LayerKind::Sliding) {
                (self.n_kv_heads, self.d_head) = (sliding.n_kv_heads, sliding.d_head);
            }
        }
        if generation != Generation::Gemma3 {
            let n_shared = optional_count(fields, "num_kv_shared_layers")?;
            layers::share_keys(&mut layers, n_shared.unwrap_or_else(|| layers::kv_shared(generation)))?;
        }
        if generation == Generation::Gemma4 && flag(fields, "use_double_wide_mlp")? {
            layers::double_sharing_mlps(&mut layers);
        }
        if generation == Generation::Gemma3n {
            layers::set_sparsity(&mut layers, &sparsity(fields, self.n_layers)?);
        }
        self.layers = layers;
        Ok(())
    }
}

/// `default` with what `fields` says about the same names. A wrong type is reported with the field's name.
fn overlay<T: Serialize + DeserializeOwned>(fields: &Fields, default: T) -> Result<T> {
    let Value::Object(mut merged) = serde_json::to_value(&default).expect("numbers, lists and names are JSON") else {
        return Ok(default);
    };
    let names: Vec<String> = merged.keys().cloned().collect();
    let mut read = default;
    for name in names {
        if let Some(value) = present(fields, &name) {
            merged.insert(name.clone(), value.clone());
            read = serde_json::from_value(Value::Object(merged.clone()))
                .map_err(|error| bad(&name, "another type", &error.to_string()))?;
        }
    }
    Ok(read)
}

fn check_activation(fields: &Fields) -> Result<()> {
    // Old configurations carry a stale `hidden_act` beside `hidden_activation`.
    let key = if present(fields, "hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    match text(fields, key)? {
        None | Some("gelu_pytorch_tanh") => Ok(()),
        Some(other) => Err(bad(key, "`gelu_pytorch_tanh`", &format!("`{other}`"))),
    }
}

/// Per-layer embeddings. Gemma 4 turns them off with 0 or null; Gemma 3n cannot be without.
fn ple(fields: &Fields, default: Option<PleConfig>, generation: Generation) -> Result<Option<PleConfig>> {
    let width = fields.get("hidden_size_per_layer_input");
    let off = generation == Generation::Gemma4 && width.is_some_and(|width| width.is_null() || *width == json!(0));
    default.filter(|_| !off).map(|default| overlay(fields, default)).transpose()
}

fn moe(fields: &Fields) -> Result<Option<MoeConfig>> {
    if !flag(fields, "enable_moe_block")? {
        return Ok(None);
    }
    let required = |name: &str| {
        optional_count(fields, name)?.ok_or_else(|| bad(name, "a count beside `enable_moe_block`", "nothing"))
    };
    Ok(Some(MoeConfig {
        n_experts: required("num_experts")?,
        top_k: required("top_k_experts")?,
        d_expert: required("moe_intermediate_size")?,
    }))
}

fn ropes(fields: &Fields, defaults: &RopeByKind, generation: Generation) -> Result<RopeByKind> {
    let given = present(fields, "rope_parameters").map(|value| object("rope_parameters", value)).transpose()?;
    if let Some(given) = given
        && !given.is_empty()
        && !given.contains_key("full_attention")
        && !given.contains_key("sliding_attention")
    {
        return Err(bad("rope_parameters", "`full_attention` and `sliding_attention`", "other keys"));
    }
    // Earlier spellings, which Gemma 4 never had: scaling is of the full layers only.
    let legacy = |key: &str| if generation == Generation::Gemma4 { None } else { present(fields, key) };
    let of_kind = |kind: &str, default: Rope, theta: Option<&Value>, scaling: Option<&Value>| -> Result<Rope> {
        let entry = given.and_then(|given| present(given, kind));
        if entry.is_none() && theta.is_none() && scaling.is_none() {
            return Ok(default);
        }
        let mut merged = entry.map(|entry| object(kind, entry)).transpose()?.cloned().unwrap_or_default();
        if let Some(scaling) = scaling {
            merged.extend(object("rope_scaling", scaling)?.clone());
        }
        let theta = present(&merged, "rope_theta").or(theta).map(|value| number("rope_theta", value)).transpose()?;
        let mut rope = Rope::plain(theta.unwrap_or(default.theta));
        let factor = present(&merged, "factor").map(|value| number("factor", value)).transpose()?;
        match text(&merged, "rope_type")?.or(text(&merged, "type")?).unwrap_or("default") {
            "default" => {}
            "linear" => {
                rope.factor = factor.ok_or_else(|| bad("factor", "a number beside rope type `linear`", "nothing"))?;
            }
            "proportional" if generation == Generation::Gemma4 => {
                let part = present(&merged, "partial_rotary_factor");
                rope.partial_rotary_factor = part.map_or(Ok(1.0), |value| number("partial_rotary_factor", value))?;
                rope.factor = factor.unwrap_or(1.0);
            }
            other => {
                let known = match generation {
                    Generation::Gemma4 => "`default`, `linear` or `proportional`",
                    Generation::Gemma3 | Generation::Gemma3n => "`default` or `linear`",
                };
                return Err(bad("rope_type", known, &format!("`{other}`")));
            }
        }
        Ok(rope)
    };
    let (full, sliding) = (legacy("rope_theta"), legacy("rope_local_base_freq"));
    Ok(RopeByKind {
        full: of_kind("full_attention", defaults.full, full, legacy("rope_scaling"))?,
        sliding: of_kind("sliding_attention", defaults.sliding, sliding, None)?,
    })
}

fn layer_kinds(n_layers: usize, fields: &Fields, generation: Generation) -> Result<Vec<LayerKind>> {
    let mut kinds: Vec<LayerKind> = match present(fields, "layer_types") {
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|error| bad("layer_types", "a list of layer types", &error.to_string()))?,
        None => layers::pattern(n_layers, full_every(fields, generation)?),
    };
    check_length("layer_types", kinds.len(), n_layers)?;
    if generation == Generation::Gemma4
        && let Some(last) = kinds.last_mut()
    {
        *last = LayerKind::Full;
    }
    Ok(kinds)
}

/// How often a full layer comes where `layer_types` does not say.
fn full_every(fields: &Fields, generation: Generation) -> Result<usize> {
    match present(fields, "sliding_window_pattern") {
        Some(value) if generation == Generation::Gemma3 => match value.as_u64() {
            Some(every) if every > 0 => Ok(usize::try_from(every).unwrap_or(usize::MAX)),
            _ => Err(bad("sliding_window_pattern", "a positive number", &value.to_string())),
        },
        _ => Ok(layers::full_every(generation)),
    }
}

/// Gemma 4's heads by layer: `per_layer_config`, as the reference writes it, or else the Hub's `global_…` fields.
fn read_heads(fields: &Fields, layers: &mut [LayerConfig]) -> Result<()> {
    let value_is_key = flag(fields, "attention_k_eq_v")?;
    layers::full(layers).for_each(|layer| layer.value_is_key = value_is_key);
    let Some(overrides) = fields.get("per_layer_config") else {
        let d_head = optional_count(fields, "global_head_dim")?.unwrap_or(DEFAULT_GLOBAL_HEAD_DIM);
        let n_kv_heads = optional_count(fields, "num_global_key_value_heads")?.filter(|_| value_is_key);
        for layer in layers::full(layers) {
            layer.d_head = d_head;
            layer.n_kv_heads = n_kv_heads.unwrap_or(layer.n_kv_heads);
        }
        return Ok(());
    };
    if overrides.is_null() {
        return Ok(());
    }
    let n_layers = layers.len();
    for (key, overrides) in object("per_layer_config", overrides)? {
        // Keys may be padded with zeros to one length.
        let layer = key.parse().ok().and_then(|index: usize| layers.get_mut(index));
        let expected = format!("indices of the {n_layers} layers as keys");
        let layer = layer.ok_or_else(|| bad("per_layer_config", &expected, &format!("`{key}`")))?;
        for (name, value) in object(&format!("per_layer_config.{key}"), overrides)? {
            match name.as_str() {
                "head_dim" => layer.d_head = count(name, value)?,
                "num_key_value_heads" => layer.n_kv_heads = count(name, value)?,
                "skip" if *value == json!([]) => {}
                same if fields.get(same) == Some(value) => {}
                other => {
                    let field = format!("per_layer_config.{key}");
                    return Err(bad(&field, "`head_dim` or `num_key_value_heads`", &format!("`{other}`")));
                }
            }
        }
    }
    Ok(())
}

/// What each layer of Gemma 3n cuts off: a list, one number for all, or the default.
fn sparsity(fields: &Fields, n_layers: usize) -> Result<Vec<f64>> {
    const FIELD: &str = "activation_sparsity_pattern";
    match present(fields, FIELD) {
        None => Ok(layers::default_sparsity(n_layers)),
        Some(Value::Array(list)) => {
            check_length(FIELD, list.len(), n_layers)?;
            list.iter().map(|value| number(FIELD, value)).collect()
        }
        Some(value) => Ok(vec![number(FIELD, value)?; n_layers]),
    }
}

fn check_length(field: &str, found: usize, n_layers: usize) -> Result<()> {
    if found == n_layers { Ok(()) } else { Err(bad(field, &format!("{n_layers} entries"), &found.to_string())) }
}

/// A field that is there and not null.
fn present<'a>(fields: &'a Fields, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

fn object<'a>(field: &str, value: &'a Value) -> Result<&'a Fields> {
    value.as_object().ok_or_else(|| bad(field, "an object", kind_of(value)))
}

fn number(field: &str, value: &Value) -> Result<f64> {
    value.as_f64().ok_or_else(|| bad(field, "a number", kind_of(value)))
}

fn count(field: &str, value: &Value) -> Result<usize> {
    let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| {
        bad(field, "a count", &if value.is_number() { value.to_string() } else { kind_of(value).to_owned() })
    })
}

fn optional_count(fields: &Fields, field: &str) -> Result<Option<usize>> {
    present(fields, field).map(|value| count(field, value)).transpose()
}

fn flag(fields: &Fields, field: &str) -> Result<bool> {
    match present(fields, field) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| bad(field, "a boolean", kind_of(value))),
    }
}

fn text<'a>(fields: &'a Fields, field: &str) -> Result<Option<&'a str>> {
    match present(fields, field) {
        None => Ok(None),
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
