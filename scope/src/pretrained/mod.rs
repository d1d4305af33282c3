//! Which formats of other tools are read, and how is one told from another?

pub(crate) mod sae_lens;

mod circuit_tracer;
mod gemma_scope;
mod llama_scope;
mod sparsify;

use std::path::Path;

use data::HookPoint;
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    sae::Sae,
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
pub fn open(path: &Path, options: &ImportOptions) -> Result<Sae> {
    let mut sae = open_as_it_is(path, options)?;
    for (name, hook) in [("hook_name", options.hook), ("hook_name_out", options.hook_out)] {
        if let Some(hook) = hook {
            sae.metadata.insert(name.into(), hook.to_string().into());
        }
    }
    Ok(sae)
}

fn open_as_it_is(path: &Path, options: &ImportOptions) -> Result<Sae> {
    let refused = |what: &str| Err(Error::NoDictionary { what: what.into(), hint: "", path: path.into() });
    if !path.exists() {
        return refused("no such file or folder");
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if path.is_file() {
        return match (ending, path.parent()) {
            ("npz", _) => gemma_scope::open_npz(path),
            ("safetensors", Some(dir)) if circuit_tracer::layer(path).is_some() => circuit_tracer::open(path, dir),
            ("safetensors", Some(dir)) => open_folder(dir, options),
            _ => sae_lens::refuse_pickles(path)
                .and(refused("expected a folder, `.npz` or `.safetensors`, found another file")),
        };
    }
    open_folder(path, options)
}

fn open_folder(dir: &Path, options: &ImportOptions) -> Result<Sae> {
    let has = |name: &str| dir.join(name).is_file();
    let refused = |what: &str| Err(Error::NoDictionary { what: what.into(), hint: "", path: dir.into() });
    if has(gemma_scope::NPZ_FILE) {
        gemma_scope::open_npz(&dir.join(gemma_scope::NPZ_FILE))
    } else if has(gemma_scope::WEIGHTS_FILE) {
        gemma_scope::open_folder(dir)
    } else if has(sparsify::WEIGHTS_FILE) {
        sparsify::open(dir)
    } else if has(llama_scope::CONFIG_FILE) {
        llama_scope::open(dir)
    } else if has("params_layer_0.safetensors") || has("W_enc_0.safetensors") {
        refused("expected a coder of one layer, found one that reads or writes several, which cannot be opened yet")
    } else if has(circuit_tracer::CONFIG_FILE) {
        Err(Error::NoDictionary {
            what: "expected one coder, found a set of one for each layer".into(),
            hint: "\nhint: name the file of one, `layer_N.safetensors`",
            path: dir.into(),
        })
    } else if has(sae_lens::CONFIG_FILE) {
        sae_lens::load_scaled(dir, options.input_scale)
    } else {
        sae_lens::refuse_pickles(dir)?;
        refused(
            "expected a coder of SAELens (`cfg.json`), Gemma Scope (`params.npz`, `params.safetensors`), sparsify \
             (`sae.safetensors`), Llama Scope (`hyperparams.json`) or circuit-tracer (`layer_N.safetensors`), found none",
        )
    }
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
