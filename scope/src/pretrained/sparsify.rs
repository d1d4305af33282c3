//! How are sparsify's coders laid out? (EleutherAI's, read at 1.3.3.)
//!
//! `cfg.json` and `sae.safetensors` with `encoder.weight [d_sae, d_in]`, `encoder.bias`, `W_dec [d_sae, d_out]`, `b_dec`, and
//! perhaps `W_skip`. The folder is called after the module whose output it reads; with `transcode` it reads its input.

use std::path::Path;

use super::{about, sae_lens::Config, two_axes};
use crate::{activation::Activation, error::Result, sae::Sae, tensors::TensorFile};

pub(super) const WEIGHTS_FILE: &str = "sae.safetensors";

/// Opens the folder of a coder.
pub(super) fn open(dir: &Path) -> Result<Sae> {
    let config = Config::read(dir.join("cfg.json"))?;
    if let Some(other) = config.text("activation").filter(|found| *found != "topk") {
        return Err(config.wrong(format!("expected `activation` = `topk`, found `{other}`")));
    }
    let path = dir.join(WEIGHTS_FILE);
    let weights = TensorFile::open(&path)?;
    let [d_sae, d_in] = two_axes(&weights.shape("encoder.weight")?, "encoder.weight", &path)?;
    let [_, d_out] = two_axes(&weights.shape("W_dec")?, "W_dec", &path)?;
    let flag = |key: &str| config.flag(key).unwrap_or(false);
    let (transcoder, k) = (flag("transcode") || d_in != d_out, config.k(d_sae)?);
    let w_skip = if weights.has("W_skip")? { Some(weights.matrix("W_skip", [d_out, d_in])?) } else { None };
    let folder = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Ok(Sae {
        w_enc: weights.matrix("encoder.weight", [d_sae, d_in])?.transposed(),
        w_dec: weights.matrix("W_dec", [d_sae, d_out])?,
        b_enc: weights.f32("encoder.bias", &[d_sae])?,
        b_dec: weights.f32("b_dec", &[d_out])?,
        w_skip,
        activation: if flag("signed") { Activation::AbsTopK { k } } else { Activation::TopK { k } },
        apply_b_dec_to_input: !transcoder,
        transcoder,
        metadata: about([
            ("hook_name", hook(folder, transcoder).into()),
            ("hf_hook_name", folder.into()),
            ("l0", k.into()),
        ]),
        ..Sae::default()
    })
}

/// The hook point that a module's name means, where we have one: the output of `layers.5.mlp` itself is not one, because
/// Gemma norms it before it reaches the stream.
fn hook(folder: &str, transcoder: bool) -> Option<String> {
    if folder == "embed_tokens" {
        return Some("hook_embed".into());
    }
    let (_, tail) = folder.split_once("layers.")?;
    let (layer, module) = tail.split_once('.').unwrap_or((tail, ""));
    let layer: usize = layer.parse().ok()?;
    let site = match (module, transcoder) {
        ("", false) => "hook_resid_post",
        ("", true) => "hook_resid_pre",
        ("mlp", true) => "mlp.hook_in",
        ("self_attn", true) => "attn.hook_in",
        _ => return None,
    };
    Some(format!("blocks.{layer}.{site}"))
}
