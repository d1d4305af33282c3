//! Which name in a checkpoint is which tensor of the text stack?

use crate::config::Config;

/// Prefixes under which the text stack stands in Hugging Face checkpoints, longest first: the reference in memory, the
/// Hub's multimodal layout, the reference's text-only class. A bare name is tried last.
const PREFIXES: &[&str] = &["model.language_model.", "language_model.model.", "model."];

/// What the unembedding is called beside those prefixes.
const LM_HEADS: &[&str] = &["lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"];

/// Parts of a checkpoint that the text stack does not use: where the name begins or ends so, and what the part is.
const IGNORED: &[(&str, &str)] = &[
    ("vision_tower.", "the vision tower"),
    ("model.vision_tower.", "the vision tower"),
    ("vision_model.", "the vision tower"),
    ("multi_modal_projector.", "the multimodal projector"),
    ("model.multi_modal_projector.", "the multimodal projector"),
];
const IGNORED_SUFFIXES: &[(&str, &str)] = &[("rotary_emb.inv_freq", "rotary frequencies, which are computed")];

/// What a name in a checkpoint stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A tensor by its canonical name, which may still not be one of the model's.
    Text(String),
    /// A part that is left out, in words.
    Ignored(&'static str),
}

/// The meaning of a name in a safetensors file.
pub(super) fn from_hf(stored: &str, config: &Config) -> Meaning {
    let prefix = IGNORED.iter().find(|(prefix, _)| stored.starts_with(prefix));
    let suffix = IGNORED_SUFFIXES.iter().find(|(suffix, _)| stored.ends_with(suffix));
    if let Some((_, part)) = prefix.or(suffix) {
        return Meaning::Ignored(part);
    }
    if LM_HEADS.contains(&stored) {
        if config.tie_word_embeddings {
            return Meaning::Ignored("the unembedding, which is tied to the embedding");
        }
        return Meaning::Text("lm_head.weight".to_owned());
    }
    let bare = PREFIXES.iter().find_map(|prefix| stored.strip_prefix(prefix)).unwrap_or(stored);
    Meaning::Text(format!("model.{bare}"))
}

/// GGUF's names of what stands outside the layers.
const GGUF_TOP: &[(&str, &str)] = &[
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

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
];

/// The canonical name of a tensor in a GGUF file; one that is in no table keeps its own.
pub(super) fn from_gguf(stored: &str) -> Meaning {
    if let Some((_, name)) = GGUF_TOP.iter().find(|(gguf, _)| *gguf == stored) {
        return Meaning::Text((*name).to_owned());
    }
    let layer = stored.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    if let Some((layer, rest)) = layer
        && let Some((part, parameter)) = rest.rsplit_once('.')
        && let Some((_, name)) = GGUF_LAYER.iter().find(|(gguf, _)| *gguf == part)
    {
        return Meaning::Text(format!("model.layers.{layer}.{name}.{parameter}"));
    }
    Meaning::Text(stored.to_owned())
}

/// Whether GGUF stores this tensor as `1 + w`: Gemma 3's converter adds one to every norm.
pub(super) fn is_norm(name: &str) -> bool {
    name.ends_with("norm.weight")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PRESETS;

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
    fn gguf_names_reach_every_tensor() {
        let config = PRESETS[0].config();
        let canonical = |stored: &str| match from_gguf(stored) {
            Meaning::Text(name) => name,
            Meaning::Ignored(part) => panic!("{part}"),
        };
        let mut reached: Vec<String> = GGUF_TOP.iter().map(|(gguf, _)| canonical(gguf)).collect();
        reached.extend(GGUF_LAYER.iter().map(|(gguf, _)| canonical(&format!("blk.17.{gguf}.weight"))));
        for spec in config.tensors() {
            if !spec.name.contains(".layers.") || spec.name.contains(".layers.17.") {
                assert!(reached.contains(&spec.name), "{}", spec.name);
            }
        }
        assert_eq!(from_gguf("blk.0.laurel_l.weight"), Meaning::Text("blk.0.laurel_l.weight".to_owned()));
    }
}
