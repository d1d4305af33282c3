//! Which formats of other tools are read, and how is one told from another?

pub(crate) mod crosscoder;
pub(crate) mod sae_lens;

mod circuit_tracer;
mod gemma_scope;
mod llama_scope;
mod sparsify;

use std::path::Path;

use data::HookPoint;
use serde_json::{Map, Value};

use crate::{
    coder::Coder,
    error::{Error, Result},
};

/// What the files of a coder may leave open.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The hook point that the coder reads, whatever its files say.
    pub hook: Option<HookPoint>,
    /// The hook point that a transcoder speaks of, whatever its files say.
    pub hook_out: Option<HookPoint>,
    /// What activations were multiplied by in training, where the weights still want that and no file says how much.
    pub input_scale: Option<f32>,
}

/// Opens a coder as SAELens, Gemma Scope 1 or 2, sparsify, Llama Scope or circuit-tracer lays it out: its folder, or in a
/// folder of several the file of one. Weights are mapped where they lie as ours do.
pub fn open(path: &Path, options: &ImportOptions) -> Result<Coder> {
    let mut sae = match open_as_it_is(path, options)? {
        Coder::Sae(sae) => sae,
        several @ Coder::Crosscoder(_) if options.hook.is_none() && options.hook_out.is_none() => return Ok(several),
        Coder::Crosscoder(_) => {
            let what =
                "expected a coder of one hook point beside the name of one, found a coder between several".into();
            return Err(Error::NoDictionary {
                what,
                hint: "\nhint: leave the hook points to its files",
                path: path.into(),
            });
        }
    };
    for (name, hook) in [("hook_name", options.hook), ("hook_name_out", options.hook_out)] {
        if let Some(hook) = hook {
            sae.metadata.insert(name.into(), hook.to_string().into());
        }
    }
    Ok(sae.into())
}

fn open_as_it_is(path: &Path, options: &ImportOptions) -> Result<Coder> {
    let refused = |what: &str| Err(Error::NoDictionary { what: what.into(), hint: "", path: path.into() });
    if !path.exists() {
        return refused("no such file or folder");
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if path.is_file() {
        return match (ending, path.parent()) {
            ("npz", _) => Ok(gemma_scope::open_npz(path)?.into()),
            ("safetensors", Some(dir)) if circuit_tracer::layer(path).is_some() => {
                Ok(circuit_tracer::open(path, dir)?.into())
            }
            ("safetensors", Some(dir)) => open_folder(dir, options),
            _ => sae_lens::refuse_pickles(path)
                .and(refused("expected a folder, `.npz` or `.safetensors`, found another file")),
        };
    }
    open_folder(path, options)
}

fn open_folder(dir: &Path, options: &ImportOptions) -> Result<Coder> {
    let has = |name: &str| dir.join(name).is_file();
    let refused = |what: &str| Err(Error::NoDictionary { what: what.into(), hint: "", path: dir.into() });
    if has(gemma_scope::NPZ_FILE) {
        Ok(gemma_scope::open_npz(&dir.join(gemma_scope::NPZ_FILE))?.into())
    } else if has(gemma_scope::WEIGHTS_FILE) {
        Ok(gemma_scope::open_folder(dir)?.into())
    } else if has(&gemma_scope::layer_file(0)) {
        Ok(gemma_scope::open_layers(dir)?.into())
    } else if has(sparsify::WEIGHTS_FILE) {
        Ok(sparsify::open(dir)?.into())
    } else if has(llama_scope::CONFIG_FILE) {
        Ok(llama_scope::open(dir)?.into())
    } else if has(&crosscoder::encoder_file(0)) && !has(sae_lens::CONFIG_FILE) {
        Ok(crosscoder::open_cross_layer(dir)?.into())
    } else if has(circuit_tracer::CONFIG_FILE) && !has(sae_lens::CONFIG_FILE) {
        Err(Error::NoDictionary {
            what: "expected one coder, found a set of one for each layer".into(),
            hint: "\nhint: name the file of one, `layer_N.safetensors`",
            path: dir.into(),
        })
    } else if has(sae_lens::CONFIG_FILE) {
        Coder::load_scaled(dir, options.input_scale)
    } else {
        sae_lens::refuse_pickles(dir)?;
        refused(
            "expected a coder of SAELens (`cfg.json`), Gemma Scope (`params.npz`, `params.safetensors`), sparsify \
             (`sae.safetensors`), Llama Scope (`hyperparams.json`) or circuit-tracer (`layer_N.safetensors`), found none",
        )
    }
}

/// How many files with names of `0`, `1`, … are there, up to the first that is missing.
fn count(dir: &Path, name: impl Fn(usize) -> String) -> usize {
    let mut n = 0;
    while dir.join(name(n)).is_file() {
        n += 1;
    }
    n
}

/// Our hook point for a module of the reference implementation, as `model.layers.12.output`.
fn of_module(name: &str) -> Option<String> {
    let (_, tail) = name.rsplit_once("layers.")?;
    let (layer, module) = tail.split_once('.')?;
    let site = match module {
        "output" => "hook_resid_post",
        "self_attn.o_proj.input" => "attn.hook_z",
        "post_feedforward_layernorm.output" => "hook_mlp_out",
        // With the norm's weight.
        "pre_feedforward_layernorm.output" => "mlp.hook_in",
        _ => return None,
    };
    let layer: usize = layer.parse().ok()?;
    Some(format!("blocks.{layer}.{site}"))
}

/// The lengths of a matrix.
fn two_axes(shape: &[usize], name: &str, path: &Path) -> Result<[usize; 2]> {
    match *shape {
        [rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
        _ => Err(Error::NoDictionary {
            what: format!("expected `{name}` with two axes, found {shape:?}"),
            hint: "",
            path: path.into(),
        }),
    }
}

/// Metadata of a coder that SAELens did not write; what is not known is left out.
fn about<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    let version = ("sae_lens_version", sae_lens::LAYOUT_VERSION.into());
    let known = fields.into_iter().chain([version]).filter(|(_, value)| !value.is_null());
    known.map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests;
