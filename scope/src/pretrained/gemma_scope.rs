//! How are Gemma Scope's coders laid out? (The first: arXiv 2408.05147; the second: its technical paper, December 2025.)
//!
//! The first has `params.npz` with SAELens's names and nothing that says what it is but the path:
//! `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/`. The second has `params.safetensors` with names in lower case and
//! `config.json`. Both are JumpReLU, subtract no bias, and want activations as they are; transcoders of the first read the
//! norm without its weight, those of the second with it.

use std::path::Path;

use serde_json::Value;

use super::{about, of_module, sae_lens::Config, two_axes};
use crate::{
    activation::Activation,
    crosscoder::{Crosscoder, LatentGroup, Site},
    error::Result,
    npz::Npz,
    sae::{Sae, SparseCoder},
    tensors::TensorFile,
};

/// Weights of the first.
pub(super) const NPZ_FILE: &str = "params.npz";
/// Weights of the second.
pub(super) const WEIGHTS_FILE: &str = "params.safetensors";
const CONFIG_FILE: &str = "config.json";

/// Opens the weights of a coder of Gemma Scope 1.
pub(super) fn open_npz(path: &Path) -> Result<Sae> {
    let npz = Npz::open(path)?;
    let [d_in, d_sae] = two_axes(npz.shape("W_enc")?, "W_enc", path)?;
    let [_, d_out] = two_axes(npz.shape("W_dec")?, "W_dec", path)?;
    let origin = Origin::of(path);
    let mut sae = Sae {
        w_enc: npz.matrix("W_enc", [d_in, d_sae])?,
        w_dec: npz.matrix("W_dec", [d_sae, d_out])?,
        b_enc: npz.f32("b_enc", &[d_sae])?,
        b_dec: npz.f32("b_dec", &[d_out])?,
        activation: Activation::JumpRelu { threshold: npz.f32("threshold", &[d_sae])? },
        transcoder: d_in != d_out || origin.hooks[0] != origin.hooks[1],
        metadata: about([
            ("model_name", origin.model.into()),
            ("hook_name", origin.hooks[0].clone().into()),
            ("l0", origin.l0.into()),
            ("prepend_bos", true.into()),
            ("context_size", 1024.into()),
        ]),
        ..Sae::default()
    };
    if let (true, Some(output)) = (sae.transcoder, &origin.hooks[1]) {
        sae.metadata.insert("hook_name_out".into(), output.as_str().into());
    }
    if origin.embedding {
        // Trained on rows of the table; our hook point is behind their scale.
        let root = (sae.d_in() as f32).sqrt();
        sae.fold_input_scale(1.0 / root);
    }
    Ok(sae)
}

/// What the path of a coder of Gemma Scope 1 says.
#[derive(Debug, Default, PartialEq)]
struct Origin {
    model: Option<String>,
    hooks: [Option<String>; 2],
    l0: Option<u64>,
    embedding: bool,
}

impl Origin {
    fn of(path: &Path) -> Self {
        let mut origin = Self::default();
        let (mut kind, mut layer) = (None, None);
        for part in path.components().filter_map(|part| part.as_os_str().to_str()) {
            // `google--` and the like stand before it in the hub's cache.
            if let Some((_, rest)) = part.split_once("gemma-scope-")
                && let Some((model, last)) = rest.rsplit_once('-')
            {
                origin.model = Some(format!("gemma-2-{}", model.strip_suffix("-pt").unwrap_or(model)));
                kind = Some(last.to_owned());
            } else if let Some(number) = part.strip_prefix("layer_") {
                layer = number.parse::<usize>().ok();
            } else if let Some(l0) = part.strip_prefix("average_l0_") {
                origin.l0 = l0.parse().ok();
            } else if part == "embedding" {
                origin.embedding = true;
            }
        }
        let at = |site: &str| layer.map(|layer| format!("blocks.{layer}.{site}"));
        origin.hooks = match kind.as_deref() {
            Some("res") if origin.embedding => [Some("hook_embed".into()), Some("hook_embed".into())],
            Some("res") => [at("hook_resid_post"), at("hook_resid_post")],
            Some("mlp") => [at("hook_mlp_out"), at("hook_mlp_out")],
            Some("att") => [at("attn.hook_z"), at("attn.hook_z")],
            Some("transcoders") => [at("ln2.hook_normalized"), at("hook_mlp_out")],
            _ => [None, None],
        };
        origin
    }
}

/// Opens the folder of a coder of one layer of Gemma Scope 2.
pub(super) fn open_folder(dir: &Path) -> Result<Sae> {
    let config = Config::read(dir.join(CONFIG_FILE))?;
    let expect = |key: &str, allowed: &[&str]| match config.text(key) {
        Some(found) if !allowed.contains(&found) => {
            Err(config.wrong(format!("expected `{key}` as one of {allowed:?}, found `{found}`")))
        }
        found => Ok(found),
    };
    expect("architecture", &["jump_relu"])?;
    let kind = expect("type", &["sae", "transcoder"])?;
    let path = dir.join(WEIGHTS_FILE);
    let weights = TensorFile::open(&path)?;
    let [d_in, d_sae] = two_axes(&weights.shape("w_enc")?, "w_enc", &path)?;
    let [_, d_out] = two_axes(&weights.shape("w_dec")?, "w_dec", &path)?;
    let w_skip = if weights.has("affine_skip_connection")? {
        Some(weights.matrix("affine_skip_connection", [d_in, d_out])?.transposed())
    } else {
        None
    };
    let modules = ["hf_hook_point_in", "hf_hook_point_out"].map(|key| config.text(key));
    let hooks = modules.map(|module| module.and_then(of_module));
    let transcoder = kind == Some("transcoder") || d_in != d_out || w_skip.is_some() || modules[0] != modules[1];
    let mut sae = Sae {
        w_enc: weights.matrix("w_enc", [d_in, d_sae])?,
        w_dec: weights.matrix("w_dec", [d_sae, d_out])?,
        b_enc: weights.f32("b_enc", &[d_sae])?,
        b_dec: weights.f32("b_dec", &[d_out])?,
        w_skip,
        activation: Activation::JumpRelu { threshold: weights.f32("threshold", &[d_sae])? },
        transcoder,
        metadata: about([
            ("model_name", config.text("model_name").into()),
            ("hook_name", hooks[0].clone().into()),
            ("hf_hook_name", modules[0].into()),
            ("l0", config.values.get("l0").cloned().unwrap_or(Value::Null)),
            ("prepend_bos", true.into()),
            ("context_size", 1024.into()),
        ]),
        ..Sae::default()
    };
    if transcoder {
        for (name, value) in
            about([("hook_name_out", hooks[1].clone().into()), ("hf_hook_name_out", modules[1].into())])
        {
            sae.metadata.insert(name, value);
        }
    }
    Ok(sae)
}

/// Weights of one layer of a coder between several.
pub(super) fn layer_file(at: usize) -> String {
    format!("params_layer_{at}.safetensors")
}

/// Opens a crosscoder or a cross-layer transcoder of Gemma Scope 2: a file a layer, whose decoder has room for every layer, of
/// which it writes its own and later ones.
pub(super) fn open_layers(dir: &Path) -> Result<Crosscoder> {
    let config = Config::read(dir.join(CONFIG_FILE))?;
    let n = super::count(dir, layer_file);
    let modules = ["hf_hook_point_in", "hf_hook_point_out"].map(|key| config.text(key));
    let named = modules.map(|module| module.map_or_else(Vec::new, |module| of_modules(module, n)));
    let mut coder = Crosscoder {
        metadata: about([
            ("model_name", config.text("model_name").into()),
            ("hf_hook_name", modules[0].into()),
            ("hf_hook_name_out", modules[1].into()),
            ("l0", config.values.get("l0").cloned().unwrap_or(Value::Null)),
            ("prepend_bos", true.into()),
            ("context_size", 1024.into()),
        ]),
        ..Crosscoder::default()
    };
    let mut thresholds = Vec::new();
    for at in 0..n {
        let path = dir.join(layer_file(at));
        let weights = TensorFile::open(&path)?;
        let [d_in, latents] = two_axes(&weights.shape("w_enc")?, "w_enc", &path)?;
        let [d_out] = weights.shape("b_dec")?[..] else {
            return Err(config.wrong(format!("expected `b_dec` with one axis in `{}`", path.display())));
        };
        if d_out == 0 {
            return Err(config.wrong(format!("expected sites with a width, found none in `{}`", path.display())));
        }
        let site = |names: &[String], width| Site { hook_name: names.get(at).cloned(), width };
        coder.inputs.push(site(&named[0], d_in));
        coder.outputs.push(site(&named[1], d_out));
        coder.groups.push(LatentGroup {
            w_enc: weights.matrix("w_enc", [d_in, latents])?,
            w_dec: weights.rows("w_dec", &[latents, n, d_out])?,
            reads: at..at + 1,
            writes: at..n,
        });
        coder.b_enc.extend(weights.f32("b_enc", &[latents])?);
        coder.b_dec.extend(weights.f32("b_dec", &[d_out])?);
        thresholds.extend(weights.f32("threshold", &[latents])?);
        if weights.has("affine_skip_connection")? {
            coder.w_skip.push(weights.matrix("affine_skip_connection", [d_in, d_out])?.transposed());
        }
    }
    coder.activation = Activation::JumpRelu { threshold: thresholds };
    if !(coder.w_skip.is_empty() || coder.w_skip.len() == n) {
        let found = coder.w_skip.len();
        return Err(
            config.wrong(format!("expected `affine_skip_connection` in all of {n} files or none, found {found}"))
        );
    }
    Ok(coder)
}

/// Our hook points for `model.layers.{5,9}.output` or, of all `n` layers, `model.layers.{all}.output`.
fn of_modules(name: &str, n: usize) -> Vec<String> {
    let Some((head, rest)) = name.split_once('{') else { return Vec::new() };
    let Some((layers, tail)) = rest.split_once('}') else { return Vec::new() };
    let layers: Vec<String> = match layers {
        "all" => (0..n).map(|layer| layer.to_string()).collect(),
        list => list.split(',').map(|layer| layer.trim().to_owned()).collect(),
    };
    let names: Option<Vec<String>> = layers.iter().map(|layer| of_module(&format!("{head}{layer}{tail}"))).collect();
    names.filter(|names| names.len() == n).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_layers_stand_in_braces() {
        let names = of_modules("model.layers.{5,9}.output", 2);
        assert_eq!(names, ["blocks.5.hook_resid_post", "blocks.9.hook_resid_post"]);
        let names = of_modules("model.layers.{all}.pre_feedforward_layernorm.output", 3);
        assert_eq!(names[2], "blocks.2.mlp.hook_in");
        assert!(
            of_modules("model.layers.{5,9}.output", 3).is_empty() && of_modules("model.layers.5.output", 1).is_empty()
        );
    }

    #[test]
    fn the_path_says_what_it_is() {
        let of = |path: &str| Origin::of(Path::new(path));
        let found =
            of("hub/models--google--gemma-scope-2b-pt-res/snapshots/ab12/layer_20/width_16k/average_l0_71/params.npz");
        let hook = Some("blocks.20.hook_resid_post".to_owned());
        let expected =
            Origin { model: Some("gemma-2-2b".into()), hooks: [hook.clone(), hook], l0: Some(71), embedding: false };
        assert_eq!(found, expected);
        let found = of("gemma-scope-9b-it-res/layer_9/width_131k/average_l0_30/params.npz");
        assert_eq!(found.model.as_deref(), Some("gemma-2-9b-it"));
        let found = of("gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_5/params.npz");
        assert_eq!(found.hooks[0].as_deref(), Some("blocks.3.ln2.hook_normalized"));
        assert_eq!(found.hooks[1].as_deref(), Some("blocks.3.hook_mlp_out"));
        assert_eq!(of("somewhere/params.npz"), Origin::default());
    }
}
