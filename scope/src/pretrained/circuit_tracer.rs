//! How are circuit-tracer's transcoders laid out? (Read at 4bb8c0e.)
//!
//! One file a layer, `layer_N.safetensors`, with `W_enc [d_sae, d_model]`, `W_dec [d_sae, d_model]`, `b_enc`, `b_dec`, and
//! perhaps `activation_function.threshold` and `W_skip`; beside them `config.yaml`, which names the hook points without their
//! layers and, for TopK, `k`. Cross-layer transcoders lie as ours do, [`super::crosscoder`].

use std::path::Path;

use fs_err as fs;

use super::{about, two_axes};
use crate::{
    activation::Activation,
    crosscoder::{Crosscoder, Site},
    error::{Error, Result},
    sae::Sae,
    tensors::TensorFile,
};

pub(super) const CONFIG_FILE: &str = "config.yaml";

/// The layer that a file's name says.
pub(super) fn layer(path: &Path) -> Option<usize> {
    path.file_stem()?.to_str()?.strip_prefix("layer_")?.parse().ok()
}

/// `config.yaml`, of which the keys that matter stand alone on lines of their own.
pub(super) struct Yaml {
    text: String,
}

impl Yaml {
    /// Of a folder; without the file nothing is said.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Ok(Self { text: if path.is_file() { fs::read_to_string(path)? } else { String::new() } })
    }

    pub(super) fn value(&self, key: &str) -> Option<&str> {
        let rest = self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        rest.map(|rest| rest.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']))
            .filter(|value| !value.is_empty())
    }
}

/// What circuit-tracer wants to know of a cross-layer transcoder of every layer of a model; of other coders nothing.
pub(super) fn cross_layer_config(coder: &Crosscoder) -> Option<String> {
    let site = |sites: &[Site]| {
        let name = |(layer, site): (usize, &Site)| {
            let rest = site.hook_name.as_ref()?.strip_prefix("blocks.")?.strip_prefix(&layer.to_string())?;
            Some(rest.strip_prefix('.')?.to_owned())
        };
        let names: Option<Vec<String>> = sites.iter().enumerate().map(name).collect();
        names.filter(|names| names.iter().all(|name| *name == names[0])).map(|mut names| names.swap_remove(0))
    };
    let [input, output] = [site(&coder.inputs)?, site(&coder.outputs)?];
    let model = coder.metadata.get("model_name").and_then(|name| name.as_str()).unwrap_or_default();
    (coder.architecture() == "cross_layer_transcoder").then(|| {
        format!(
            "model_name: \"{model}\"\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: \"{input}\"\n\
             feature_output_hook: \"{output}\"\n"
        )
    })
}

/// Opens the file of one layer; the settings are in the folder `dir`.
pub(super) fn open(path: &Path, dir: &Path) -> Result<Sae> {
    let config = Yaml::read(dir)?;
    let value = |key: &str| config.value(key);
    let weights = TensorFile::open(path)?;
    let [d_sae, d_in] = two_axes(&weights.shape("W_enc")?, "W_enc", path)?;
    let [_, d_out] = two_axes(&weights.shape("W_dec")?, "W_dec", path)?;
    let threshold = ["activation_function.threshold", "threshold"];
    let mut named = None;
    for name in threshold {
        if named.is_none() && weights.has(name)? {
            named = Some(name);
        }
    }
    let activation = match (named, value("k")) {
        (Some(name), _) => Activation::JumpRelu {
            threshold: match weights.shape(name)?[..] {
                // One for all latents.
                [] | [1] => vec![weights.f32(name, &weights.shape(name)?)?[0]; d_sae],
                _ => weights.f32(name, &[d_sae])?,
            },
        },
        (None, Some(k)) => {
            let known = k.parse().ok().filter(|&k| k <= d_sae);
            let what = || format!("expected `k` between 0 and the {d_sae} latents, found `{k}`");
            Activation::TopK { k: known.ok_or_else(|| Error::Config { what: what(), path: dir.join(CONFIG_FILE) })? }
        }
        (None, None) => Activation::Relu,
    };
    let w_skip = if weights.has("W_skip")? { Some(weights.matrix("W_skip", [d_out, d_in])?) } else { None };
    let at = |key: &str| layer(path).zip(value(key)).map(|(layer, site)| format!("blocks.{layer}.{site}"));
    Ok(Sae {
        w_enc: weights.matrix("W_enc", [d_sae, d_in])?.transposed(),
        w_dec: weights.matrix("W_dec", [d_sae, d_out])?,
        b_enc: weights.f32("b_enc", &[d_sae])?,
        b_dec: weights.f32("b_dec", &[d_out])?,
        w_skip,
        activation,
        transcoder: true,
        metadata: about([
            ("model_name", value("model_name").into()),
            ("hook_name", at("feature_input_hook").into()),
            ("hook_name_out", at("feature_output_hook").into()),
        ]),
        ..Sae::default()
    })
}
