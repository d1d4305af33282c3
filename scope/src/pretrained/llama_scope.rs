//! How are Llama Scope's coders laid out? (`fnlp/Llama3_1-8B-Base-LXR-8x` and its like, arXiv 2410.20526; read as SAELens
//! reads them.)
//!
//! `hyperparams.json` and `checkpoints/final.safetensors` with `encoder.weight [d_sae, d]`, `encoder.bias`,
//! `decoder.weight [d, d_sae]`, `decoder.bias`. Weights want activations scaled to the mean norm √d; one threshold for all
//! latents stands in the settings, in units that have that scale too.

use std::path::Path;

use serde_json::Value;

use super::{about, sae_lens::Config, two_axes};
use crate::{activation::Activation, error::Result, sae::Sae, tensors::TensorFile};

pub(super) const CONFIG_FILE: &str = "hyperparams.json";

/// Opens the folder of a coder.
pub(super) fn open(dir: &Path) -> Result<Sae> {
    let config = Config::read(dir.join(CONFIG_FILE))?;
    let number = |value: Option<&Value>, key: &str| {
        let found = value.and_then(Value::as_f64).filter(|number| number.is_finite() && *number > 0.0);
        found.ok_or_else(|| config.wrong(format!("expected `{key}` as a positive number, found none")))
    };
    let inside = dir.join("checkpoints").join("final.safetensors");
    let path = if inside.is_file() { inside } else { dir.join("final.safetensors") };
    let weights = TensorFile::open(&path)?;
    let [d_sae, d_in] = two_axes(&weights.shape("encoder.weight")?, "encoder.weight", &path)?;
    let [d_out, _] = two_axes(&weights.shape("decoder.weight")?, "decoder.weight", &path)?;
    let norms = config.values.get("dataset_average_activation_norm");
    let norm =
        |key: &str| number(norms.and_then(|norms| norms.get(key)), &format!("dataset_average_activation_norm.{key}"));
    let (input, output) = ((d_in as f64).sqrt() / norm("in")?, (d_out as f64).sqrt() / norm("out")?);
    let threshold = number(config.values.get("jump_relu_threshold"), "jump_relu_threshold")? * input;
    let hooks = ["hook_point_in", "hook_point_out"].map(|key| config.text(key));
    let transcoder = d_in != d_out || hooks[0] != hooks[1];
    let mut sae = Sae {
        w_enc: weights.matrix("encoder.weight", [d_sae, d_in])?.transposed(),
        w_dec: weights.matrix("decoder.weight", [d_out, d_sae])?.transposed(),
        b_enc: weights.f32("encoder.bias", &[d_sae])?,
        b_dec: weights.f32("decoder.bias", &[d_out])?,
        activation: Activation::JumpRelu { threshold: vec![threshold as f32; d_sae] },
        apply_b_dec_to_input: !transcoder && config.flag("apply_decoder_bias_to_pre_encoder").unwrap_or(false),
        transcoder,
        metadata: about([("hook_name", hooks[0].into()), ("hook_name_out", hooks[1].filter(|_| transcoder).into())]),
        ..Sae::default()
    };
    sae.fold_scales(input as f32, output as f32);
    Ok(sae)
}
