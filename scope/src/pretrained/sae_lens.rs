//! How does SAELens lay out a coder's folder? (Read at 6.54.12; also its flat `cfg.json` from before 6.0.)
//!
//! `cfg.json` and `sae_weights.safetensors` with `W_enc [d_in, d_sae]`, `W_dec [d_sae, d_in]`, `b_enc`, `b_dec`, and for
//! `jumprelu` a `threshold [d_sae]`. A BatchTopK is saved as `jumprelu`, as SAELens does; how it was trained is in `metadata`.

use std::path::{Path, PathBuf};

use data::{files, sums::Sums};
use fs_err as fs;
use serde_json::{Map, Value, json};

use crate::{
    error::{Error, Result},
    matrix::Matrix,
    sae::{Activation, Sae, SparseCoder},
    tensors::{self, Named, TensorFile},
    train::METRICS_FILE,
};

/// The configuration's file name.
pub(crate) const CONFIG_FILE: &str = "cfg.json";
/// The weights' file name.
pub(crate) const WEIGHTS_FILE: &str = "sae_weights.safetensors";
/// The version of SAELens whose layout is written.
pub(crate) const LAYOUT_VERSION: &str = "6.54.12";

/// Endings of files that only unpickling opens.
const PICKLED: &[&str] = &["pt", "pth", "bin", "pkl", "ckpt"];

/// Opens the folder of a coder.
pub(crate) fn load(dir: &Path) -> Result<Sae> {
    refuse_pickles(dir)?;
    let path = dir.join(CONFIG_FILE);
    if !path.is_file() {
        return Err(Error::NotACoder { path: dir.into() });
    }
    let config = Config { values: read_object(&path)?, path };
    let weights_path = dir.join(WEIGHTS_FILE);
    let weights = TensorFile::open(&weights_path)?;

    let (d_in, d_sae) = (config.size("d_in")?, config.size("d_sae")?);
    let architecture = config.architecture()?;
    let normalization = config.text("normalize_activations").unwrap_or("none");
    if normalization != "none" {
        return Err(config.wrong(format!(
            "expected `normalize_activations` = `none` (the scale folded into the weights), found `{normalization}`\nhint: \
             in SAELens, `sae.fold_activation_norm_scaling_factor(scale)` before saving"
        )));
    }
    let rescaled = config.flag("rescale_acts_by_decoder_norm").unwrap_or(false);
    let activation = match architecture.as_str() {
        "topk" => Activation::TopK { k: config.k(d_sae)? },
        "jumprelu" => Activation::JumpRelu {
            threshold: if weights.has("threshold")? || !weights.has("log_threshold")? {
                weights.f32("threshold", &[d_sae])?
            } else {
                let logs = weights.f32("log_threshold", &[d_sae])?;
                logs.into_iter().map(f32::exp).collect()
            },
        },
        _ => return Err(Error::UnknownArchitecture { found: architecture, path: config.path }),
    };
    let mut sae = Sae {
        w_enc: Matrix::from_slice(d_in, d_sae, &weights.f32("W_enc", &[d_in, d_sae])?),
        w_dec: Matrix::from_slice(d_sae, d_in, &weights.f32("W_dec", &[d_sae, d_in])?),
        b_enc: weights.f32("b_enc", &[d_sae])?,
        b_dec: weights.f32("b_dec", &[d_in])?,
        activation,
        apply_b_dec_to_input: config.flag("apply_b_dec_to_input").unwrap_or(true),
        metadata: config.metadata(),
    };
    if architecture == "topk" && rescaled {
        // Ranks by activation times decoder norm: the same coder as one with unit norms that ranks by activation.
        sae.fold_decoder_norms();
    }
    Ok(sae)
}

/// Writes the folder of a coder, weights first, so that `cfg.json` means that it is whole.
pub(crate) fn save(sae: &Sae, dir: &Path) -> Result<()> {
    let (d_in, d_sae) = (sae.d_in(), sae.d_sae());
    files::create_dir(dir)?;
    let mut named = vec![
        Named { name: "W_enc", shape: vec![d_in, d_sae], values: sae.w_enc.as_slice() },
        Named { name: "W_dec", shape: vec![d_sae, d_in], values: sae.w_dec.as_slice() },
        Named { name: "b_enc", shape: vec![d_sae], values: &sae.b_enc },
        Named { name: "b_dec", shape: vec![d_in], values: &sae.b_dec },
    ];
    if let Activation::JumpRelu { threshold } = &sae.activation {
        named.push(Named { name: "threshold", shape: vec![d_sae], values: threshold });
    }
    tensors::write(&dir.join(WEIGHTS_FILE), &named, None)?;

    let mut config = json!({
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": sae.metadata,
        "architecture": sae.architecture(),
    });
    if let Activation::TopK { k } = sae.activation {
        config["k"] = json!(k);
        config["rescale_acts_by_decoder_norm"] = json!(false);
    }
    let text = serde_json::to_vec_pretty(&config).expect("JSON values have string keys");
    let mut sums = Sums::of(dir, &[WEIGHTS_FILE, METRICS_FILE])?;
    sums.add(CONFIG_FILE, &text);
    sums.write(dir)?;
    Ok(files::write_atomic(&dir.join(CONFIG_FILE), &text)?)
}

/// A pickled file can run any code when it is opened, so it is named and refused.
fn refuse_pickles(path: &Path) -> Result<()> {
    let pickled = |path: &Path| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        ending.is_some_and(|ending| PICKLED.contains(&ending))
    };
    if pickled(path) && !path.is_dir() {
        return Err(Error::Pickled { path: path.into() });
    }
    if path.is_dir() && !path.join(WEIGHTS_FILE).is_file() {
        let mut files = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        files.sort();
        if let Some(path) = files.into_iter().find(|path| pickled(path)) {
            return Err(Error::Pickled { path });
        }
    }
    Ok(())
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let wrong = |what: String| Error::Config { what, path: path.into() };
    let bytes = fs::read(path)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(values)) => Ok(values),
        Ok(_) => Err(wrong("expected a JSON object, found another value".into())),
        Err(cause) => Err(wrong(format!("expected a JSON object, found {cause}"))),
    }
}

/// `cfg.json`, read key by key.
struct Config {
    values: Map<String, Value>,
    path: PathBuf,
}

impl Config {
    fn wrong(&self, what: String) -> Error {
        Error::Config { what, path: self.path.clone() }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.as_str()
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.values.get(key)?.as_bool()
    }

    fn size(&self, key: &str) -> Result<usize> {
        let found = self.values.get(key).unwrap_or(&Value::Null);
        let size = found.as_u64().filter(|&size| size > 0).and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong(format!("expected `{key}` as a positive number, found `{found}`")))
    }

    /// The name; before 6.0 TopK was an `activation_fn` of the standard architecture.
    fn architecture(&self) -> Result<String> {
        let activation = self.text("activation_fn").or_else(|| self.text("activation_fn_str"));
        if activation == Some("topk") {
            return Ok("topk".into());
        }
        let found = self.text("architecture").map(str::to_owned);
        found.ok_or_else(|| self.wrong("expected `architecture` as a string, found none".into()))
    }

    fn k(&self, d_sae: usize) -> Result<usize> {
        let old = self.values.get("activation_fn_kwargs").and_then(|kwargs| kwargs.get("k"));
        let found = self.values.get("k").or(old).unwrap_or(&Value::Null);
        let k = found.as_u64().and_then(|k| usize::try_from(k).ok()).filter(|&k| k <= d_sae);
        k.ok_or_else(|| self.wrong(format!("expected `k` between 0 and `d_sae` = {d_sae}, found `{found}`")))
    }

    /// `metadata`; before 6.0 its keys stood at the top.
    fn metadata(&self) -> Map<String, Value> {
        const FLAT: &[(&str, &str)] = &[
            ("model_name", "model_name"),
            ("hook_name", "hook_name"),
            ("hook_point", "hook_name"),
            ("hook_head_index", "hook_head_index"),
            ("hook_point_head_index", "hook_head_index"),
            ("context_size", "context_size"),
            ("prepend_bos", "prepend_bos"),
            ("dataset_path", "dataset_path"),
            ("neuronpedia_id", "neuronpedia_id"),
            ("sae_lens_training_version", "sae_lens_training_version"),
        ];
        if let Some(Value::Object(metadata)) = self.values.get("metadata") {
            return metadata.clone();
        }
        let flat = FLAT.iter().filter_map(|&(old, new)| Some((new.to_owned(), self.values.get(old)?.clone())));
        flat.collect()
    }
}

#[cfg(test)]
mod tests;
