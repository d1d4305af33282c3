//! Which name in a checkpoint is which tensor of the text stack?

use crate::config::Config;
use crate::gemma::ple;

/// Prefixes under which the text stack stands in Hugging Face checkpoints, longest first: the reference in memory and
/// the Hub from Gemma 3n on, the Hub's Gemma 3 and MLX, the reference's text-only class. A bare name is tried last.
const PREFIXES: &[&str] = &["model.language_model.", "language_model.model.", "model."];

/// What the unembedding is called beside those prefixes.
const LM_HEADS: &[&str] =
    &["lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight", "model.language_model.lm_head.weight"];

/// Parts of a checkpoint that the text stack does not use: how the name begins, with or without `model.`, and what the
/// part is.
const IGNORED: &[(&str, &str)] = &[
    ("vision_tower.", "the vision tower"),
    ("vision_model.", "the vision tower"),
    ("vision_embedder.", "the vision embedder"),
    ("embed_vision.", "the vision embedder"),
    ("multi_modal_projector.", "the multimodal projector"),
    ("audio_tower.", "the audio tower"),
    ("embed_audio.", "the audio embedder"),
];
const IGNORED_SUFFIXES: &[(&str, &str)] = &[("rotary_emb.inv_freq", ROTARY)];

const ROTARY: &str = "rotary frequencies, which are computed";
const TIED: &str = "the unembedding, which is tied to the embedding";
const SHARED: &str = "keys and values in layers that read another's";
const KEYS: &str = "values in layers whose values are their keys";

/// What a name in a safetensors file stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A tensor by its canonical name, which may still not be one of the model's.
    Text(String),
    /// A part that is left out, in words.
    Ignored(&'static str),
}

/// The meaning of a name in a safetensors file.
pub(super) fn from_hf(stored: &str, config: &Config) -> Meaning {
    let inner = stored.strip_prefix("model.").unwrap_or(stored);
    let prefix = IGNORED.iter().find(|(prefix, _)| inner.starts_with(prefix));
    let suffix = IGNORED_SUFFIXES.iter().find(|(suffix, _)| stored.ends_with(suffix));
    if let Some((_, part)) = prefix.or(suffix) {
        return Meaning::Ignored(part);
    }
    if LM_HEADS.contains(&stored) {
        if config.tie_word_embeddings {
            return Meaning::Ignored(TIED);
        }
        return Meaning::Text("lm_head.weight".to_owned());
    }
    let bare = PREFIXES.iter().find_map(|prefix| stored.strip_prefix(prefix)).unwrap_or(stored);
    unless_unused(format!("model.{bare}"), config)
}

/// Leaves out what checkpoints carry for layers that have no use for it. The reference does not load them either.
pub(super) fn unless_unused(name: String, config: &Config) -> Meaning {
    const OF_KEYS: &[&str] = &["k_proj", "k_norm", "v_proj", "v_norm"];
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once(".self_attn."));
    if let Some((layer, rest)) = layer
        && let Some(layer) = layer.parse().ok().and_then(|layer: usize| config.layers.get(layer))
        && let Some((module, _)) = rest.split_once('.')
    {
        if layer.kv_source.is_some() && OF_KEYS.contains(&module) {
            return Meaning::Ignored(SHARED);
        }
        if layer.value_is_key && module == "v_proj" {
            return Meaning::Ignored(KEYS);
        }
    }
    Meaning::Text(name)
}

/// What a name in a GGUF file stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GgufMeaning {
    /// A tensor by its canonical name, which may still not be one of the model's.
    Text(String),
    /// Matrices `[n, out, in]`, of which each is a tensor: the name before its number and behind it.
    Stack(&'static str, &'static str),
    /// The gates (0) or the ups (1) of all experts, which canonically are one tensor.
    ExpertHalf(String, usize),
    /// A part that is left out, in words.
    Ignored(&'static str),
}

/// GGUF's names of what stands outside the layers.
const GGUF_TOP: &[(&str, &str)] = &[
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("per_layer_token_embd.weight", ple::TABLE),
    ("per_layer_model_proj.weight", "model.per_layer_model_projection.weight"),
    ("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// GGUF's names of stacks of matrices.
const GGUF_STACKS: &[(&str, &str, &str)] = &[
    ("altup_proj.weight", "model.altup_projections.", ".weight"),
    ("altup_unembd_proj.weight", "model.altup_unembed_projections.", ".weight"),
];

/// The proportional rotary embedding of Gemma 4, as divisors of the frequencies.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// GGUF's names inside a layer, without `.weight` or `.bias`.
const GGUF_LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_gate_inp", "router.proj"),
    ("post_ffw_norm_1", "post_feedforward_layernorm_1"),
    ("pre_ffw_norm_2", "pre_feedforward_layernorm_2"),
    ("post_ffw_norm_2", "post_feedforward_layernorm_2"),
    ("inp_gate", "per_layer_input_gate"),
    ("proj", "per_layer_projection"),
    ("post_norm", "post_per_layer_input_norm"),
    ("altup_correct_coef", "altup.correction_coefs"),
    ("altup_predict_coef", "altup.prediction_coefs"),
    ("altup_router", "altup.modality_router"),
    ("altup_router_norm", "altup.router_norm"),
    ("laurel_l", "laurel.linear_left"),
    ("laurel_r", "laurel.linear_right"),
    ("laurel_post_norm", "laurel.post_laurel_norm"),
];

/// Parameters inside a layer that are not `.weight` or `.bias` of a module in both namings.
const GGUF_PARAMETERS: &[(&str, &str)] = &[
    ("layer_output_scale.weight", "layer_scalar"),
    ("altup_correct_scale.weight", "altup.correct_output_scale"),
    ("ffn_gate_inp.scale", "router.scale"),
    ("ffn_down_exps.scale", "router.per_expert_scale"),
    ("ffn_gate_up_exps.weight", EXPERT_GATE_UP),
    ("ffn_down_exps.weight", "experts.down_proj"),
];

const EXPERT_GATE_UP: &str = "experts.gate_up_proj";

/// Halves of [`EXPERT_GATE_UP`], in its order.
const GGUF_EXPERT_HALVES: [&str; 2] = ["ffn_gate_exps.weight", "ffn_up_exps.weight"];

/// The meaning of a name in a GGUF file; one that is in no table keeps its own.
pub(super) fn from_gguf(stored: &str) -> GgufMeaning {
    if let Some((_, name)) = GGUF_TOP.iter().find(|(gguf, _)| *gguf == stored) {
        return GgufMeaning::Text((*name).to_owned());
    }
    if let Some((_, before, after)) = GGUF_STACKS.iter().find(|(gguf, ..)| *gguf == stored) {
        return GgufMeaning::Stack(before, after);
    }
    if stored == ROPE_FREQS {
        return GgufMeaning::Ignored(ROTARY);
    }
    let unknown = GgufMeaning::Text(stored.to_owned());
    let Some((layer, rest)) = stored.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return unknown;
    };
    let text = |name: &str| GgufMeaning::Text(format!("model.layers.{layer}.{name}"));
    if let Some((_, name)) = GGUF_PARAMETERS.iter().find(|(gguf, _)| *gguf == rest) {
        return text(name);
    }
    if let Some(half) = GGUF_EXPERT_HALVES.iter().position(|gguf| *gguf == rest) {
        return GgufMeaning::ExpertHalf(format!("model.layers.{layer}.{EXPERT_GATE_UP}"), half);
    }
    if let Some((part, parameter @ ("weight" | "bias"))) = rest.rsplit_once('.')
        && let Some((_, name)) = GGUF_LAYER.iter().find(|(gguf, _)| *gguf == part)
    {
        return text(&format!("{name}.{parameter}"));
    }
    unknown
}

/// Whether Gemma 3's converter stores this tensor as `1 + w`, as it does every norm.
pub(super) fn is_norm(name: &str) -> bool {
    name.ends_with("norm.weight")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PRESETS, Preset};

    #[test]
    fn hugging_face_prefixes() {
        let config = PRESETS[0].config();
        let name = "layers.3.mlp.up_proj.weight";
        for prefix in ["", "model.", "model.language_model.", "language_model.model."] {
            let expected = Meaning::Text(format!("model.{name}"));
            assert_eq!(from_hf(&format!("{prefix}{name}"), &config), expected, "{prefix}");
        }
    }

    #[test]
    fn ignored_parts() {
        let mut config = PRESETS[0].config();
        for name in [
            "vision_tower.vision_model.post_layernorm.bias",
            "model.audio_tower.conformer.0.norm.weight",
            "model.embed_audio.embedding.weight",
            "vision_embedder.patch_ln1.weight",
            "model.embed_vision.embedding_projection.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "lm_head.weight",
        ] {
            assert!(matches!(from_hf(name, &config), Meaning::Ignored(_)), "{name}");
        }
        config.tie_word_embeddings = false;
        let head = Meaning::Text("lm_head.weight".to_owned());
        assert_eq!(from_hf("language_model.lm_head.weight", &config), head);
    }

    #[test]
    fn what_a_layer_has_no_use_for() {
        let of = |preset: &str, name: &str| from_hf(&format!("model.{name}"), &Preset::find(preset).unwrap().config());
        let text = |name: &str| Meaning::Text(format!("model.{name}"));
        for name in ["k_proj.weight", "v_proj.weight", "k_norm.weight", "k_proj.bias"] {
            let [own, others] = [14, 15].map(|layer| format!("layers.{layer}.self_attn.{name}"));
            assert_eq!(of("gemma-4-e2b", &own), text(&own));
            assert_eq!(of("gemma-4-e2b", &others), Meaning::Ignored(SHARED));
        }
        let [sliding, full] = [4, 5].map(|layer| format!("layers.{layer}.self_attn.v_proj.weight"));
        assert_eq!(of("gemma-4-31b", &sliding), text(&sliding));
        assert_eq!(of("gemma-4-31b", &full), Meaning::Ignored(KEYS));
        assert_eq!(of("gemma-4-e2b", "layers.15.self_attn.q_norm.weight"), text("layers.15.self_attn.q_norm.weight"));
    }

    #[test]
    fn gguf_names_reach_every_tensor() {
        let names = |stored: &str| match from_gguf(stored) {
            GgufMeaning::Text(name) | GgufMeaning::ExpertHalf(name, _) => vec![name],
            GgufMeaning::Stack(before, after) => (0..3).map(|index| format!("{before}{index}{after}")).collect(),
            GgufMeaning::Ignored(part) => panic!("{part}"),
        };
        let top = GGUF_TOP.iter().map(|(gguf, _)| *gguf).chain(GGUF_STACKS.iter().map(|(gguf, ..)| *gguf));
        let mut reached: Vec<String> = top.flat_map(names).collect();
        let modules = GGUF_LAYER.iter().map(|(gguf, _)| format!("{gguf}.weight"));
        let parameters = GGUF_PARAMETERS.iter().map(|(gguf, _)| (*gguf).to_owned());
        reached.extend(modules.chain(parameters).flat_map(|rest| names(&format!("blk.17.{rest}"))));
        for preset in PRESETS {
            for spec in preset.config().tensors() {
                if !spec.name.contains(".layers.") || spec.name.contains(".layers.17.") {
                    assert!(reached.contains(&spec.name), "{} of {}", spec.name, preset.name);
                }
            }
        }
        let gate_up = format!("model.layers.3.{EXPERT_GATE_UP}");
        assert_eq!(from_gguf("blk.3.ffn_up_exps.weight"), GgufMeaning::ExpertHalf(gate_up, 1));
        assert_eq!(from_gguf("blk.0.attn_qkv.weight"), GgufMeaning::Text("blk.0.attn_qkv.weight".to_owned()));
        assert!(matches!(from_gguf("rope_freqs.weight"), GgufMeaning::Ignored(_)));
    }
}
