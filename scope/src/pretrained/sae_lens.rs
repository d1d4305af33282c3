//! How does SAELens lay out a coder's folder? (Read at 6.54.12; also its flat `cfg.json` from before 6.0.)
//!
//! `cfg.json` and `sae_weights.safetensors` with `W_enc [d_in, d_sae]`, `W_dec [d_sae, d_out]`, `b_enc`, `b_dec`; for
//! `jumprelu` a `threshold [d_sae]`, for `gated` `b_gate`, `b_mag`, `r_mag` in place of `b_enc`, for transcoders with a skip
//! connection `W_skip [d_out, d_in]`, for `matching_pursuit` no encoder. A BatchTopK is saved as `jumprelu`, as SAELens does;
//! how it was trained is in `metadata`. The scale, the whitening and the rescaling by decoder norms that a checkpoint leaves
//! beside its weights are folded into them when it is opened.

use std::path::{Path, PathBuf};

use data::{files, sums::Sums};
use fs_err as fs;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    activation::Activation,
    error::{Error, Result},
    normalization::Normalization,
    sae::{Sae, SparseCoder},
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

/// SAELens's file of what it scales activations by while it trains, beside the weights of a checkpoint.
const SCALER_FILE: &str = "activation_scaler.json";
/// Its file of the whitening.
const WHITENING_FILE: &str = "activation_whitening.safetensors";

/// Opens the folder of a coder.
pub(crate) fn load(dir: &Path) -> Result<Sae> {
    load_scaled(dir, None)
}

/// The same; `scale` is what the coder's input was multiplied by in training where its folder should say so and does not.
pub(crate) fn load_scaled(dir: &Path, scale: Option<f32>) -> Result<Sae> {
    refuse_pickles(dir)?;
    let path = dir.join(CONFIG_FILE);
    if !path.is_file() {
        return Err(Error::NotACoder { path: dir.into() });
    }
    let config = Config::read(path)?;
    let weights_path = dir.join(WEIGHTS_FILE);
    let weights = TensorFile::open(&weights_path)?;
    let architecture = config.architecture()?;
    let mut sae = read(&config, &weights, &architecture)?;
    let rescaled = config.flag("rescale_acts_by_decoder_norm").unwrap_or(architecture.batch);
    match config.normalization()? {
        Normalized::Each(normalization) => sae.normalization = normalization,
        Normalized::Scaled => {
            let scale = Scaler::read(dir)?.and_then(|scaler| scaler.scaling_factor).or(scale);
            let scale = scale.filter(|scale| scale.is_finite() && *scale > 0.0).ok_or_else(|| config.unscaled())?;
            sae.fold_input_scale(scale);
            if let (Activation::JumpRelu { threshold }, true) = (&mut sae.activation, architecture.batch && rescaled) {
                // It is compared with what is in units of the decoder, whose rows have just become shorter.
                for threshold in threshold {
                    *threshold /= scale;
                }
            }
        }
        Normalized::Whitened => {
            if rescaled {
                // Before the decoder's rows change their lengths.
                fold_norms(&mut sae, &architecture);
            }
            whiten(&mut sae, dir, &config)?;
            return Ok(sae);
        }
    }
    if rescaled {
        fold_norms(&mut sae, &architecture);
    }
    Ok(sae)
}

/// The weights as they stand.
fn read(config: &Config, weights: &TensorFile<'_>, architecture: &Architecture) -> Result<Sae> {
    let (d_in, d_sae) = (config.size("d_in")?, config.size("d_sae")?);
    let d_out = if architecture.transcoder { config.size("d_out")? } else { d_in };
    let apply_b_dec_to_input = config.flag("apply_b_dec_to_input").unwrap_or(!architecture.transcoder);
    if apply_b_dec_to_input && d_in != d_out {
        return Err(config.wrong(format!(
            "expected `apply_b_dec_to_input` = false where `d_in` = {d_in} and `d_out` = {d_out}, found true"
        )));
    }
    let (w_enc, b_enc) = match architecture.name {
        "matching_pursuit" => Default::default(),
        "gated" => (weights.matrix("W_enc", [d_in, d_sae])?, weights.f32("b_gate", &[d_sae])?),
        _ => (weights.matrix("W_enc", [d_in, d_sae])?, weights.f32("b_enc", &[d_sae])?),
    };
    Ok(Sae {
        w_enc,
        b_enc,
        w_dec: weights.matrix("W_dec", [d_sae, d_out])?,
        b_dec: weights.f32("b_dec", &[d_out])?,
        w_skip: if architecture.skip { Some(weights.matrix("W_skip", [d_out, d_in])?) } else { None },
        activation: activation(config, weights, architecture, d_sae)?,
        apply_b_dec_to_input,
        transcoder: architecture.transcoder,
        hook_z: config.hook_z(),
        normalization: Normalization::None,
        metadata: config.metadata(),
    })
}

fn activation(
    config: &Config,
    weights: &TensorFile<'_>,
    architecture: &Architecture,
    d_sae: usize,
) -> Result<Activation> {
    Ok(match architecture.name {
        "standard" => Activation::Relu,
        "topk" => Activation::TopK { k: config.k(d_sae)? },
        "abstopk" => Activation::AbsTopK { k: config.k(d_sae)? },
        "gated" => Activation::Gated { b_mag: weights.f32("b_mag", &[d_sae])?, r_mag: weights.f32("r_mag", &[d_sae])? },
        "matching_pursuit" => config.matching_pursuit(),
        _ if architecture.batch => {
            Activation::JumpRelu { threshold: vec![weights.f32("topk_threshold", &[])?[0]; d_sae] }
        }
        _ if weights.has("threshold")? || !weights.has("log_threshold")? => {
            Activation::JumpRelu { threshold: weights.f32("threshold", &[d_sae])? }
        }
        _ => {
            let logs = weights.f32("log_threshold", &[d_sae])?;
            Activation::JumpRelu { threshold: logs.into_iter().map(f32::exp).collect() }
        }
    })
}

/// A coder that ranks by activation times decoder norm is the same as one with unit norms that ranks by activation.
fn fold_norms(sae: &mut Sae, architecture: &Architecture) {
    let threshold = sae.activation.clone();
    sae.fold_decoder_norms();
    if architecture.batch {
        // It was in those units already.
        sae.activation = threshold;
    }
}

fn whiten(sae: &mut Sae, dir: &Path, config: &Config) -> Result<()> {
    let path = dir.join(WHITENING_FILE);
    if !path.is_file() {
        return Err(config.wrong(format!(
            "expected `{WHITENING_FILE}` beside a coder with `normalize_activations` = `covariance_whitening`, found none\n\
             hint: in SAELens, `sae.fold_activation_whitening(mean, matrix, inverse_matrix)` before saving"
        )));
    }
    let d_in = sae.d_in();
    if sae.transcoder || matches!(sae.activation, Activation::MatchingPursuit { .. }) {
        return Err(config.wrong(format!(
            "expected no `covariance_whitening` with the architecture `{}`, which cannot fold it",
            sae.architecture()
        )));
    }
    let file = TensorFile::open(&path)?;
    let mean = file.f32("mean", &[d_in])?;
    let (matrix, inverse) = (file.matrix("matrix", [d_in, d_in])?, file.matrix("inverse_matrix", [d_in, d_in])?);
    sae.fold_whitening(&mean, &matrix, &inverse);
    Ok(())
}

/// What SAELens scales activations by.
#[derive(Deserialize)]
struct Scaler {
    scaling_factor: Option<f32>,
}

impl Scaler {
    fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(SCALER_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let values = Value::Object(read_object(&path)?);
        serde_json::from_value(values).map(Some).map_err(|cause| Error::Config { what: cause.to_string(), path })
    }
}

/// Writes the folder of a coder, weights first, so that `cfg.json` means that it is whole.
pub(crate) fn save(sae: &Sae, dir: &Path) -> Result<()> {
    let (d_in, d_out, d_sae) = (sae.d_in(), sae.d_out(), sae.d_sae());
    files::create_dir(dir)?;
    let mut named = vec![
        Named { name: "W_dec".into(), shape: vec![d_sae, d_out], values: sae.w_dec.as_slice() },
        Named { name: "b_dec".into(), shape: vec![d_out], values: &sae.b_dec },
    ];
    if sae.w_enc.rows() > 0 {
        let bias = if let Activation::Gated { .. } = sae.activation { "b_gate" } else { "b_enc" };
        named.insert(0, Named { name: "W_enc".into(), shape: vec![d_in, d_sae], values: sae.w_enc.as_slice() });
        named.push(Named { name: bias.into(), shape: vec![d_sae], values: &sae.b_enc });
    }
    if let Some(skip) = &sae.w_skip {
        named.push(Named { name: "W_skip".into(), shape: vec![d_out, d_in], values: skip.as_slice() });
    }
    match &sae.activation {
        Activation::JumpRelu { threshold } => {
            named.push(Named { name: "threshold".into(), shape: vec![d_sae], values: threshold });
        }
        Activation::Gated { b_mag, r_mag } => {
            named.push(Named { name: "b_mag".into(), shape: vec![d_sae], values: b_mag });
            named.push(Named { name: "r_mag".into(), shape: vec![d_sae], values: r_mag });
        }
        _ => {}
    }
    let mut metadata = sae.metadata.clone();
    // Without it, SAELens takes the configuration for one from before 6.0, and forgets what stands in it.
    metadata.entry("sae_lens_version").or_insert_with(|| LAYOUT_VERSION.into());
    tensors::write(&dir.join(WEIGHTS_FILE), &named, None)?;

    let mut config = json!({
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": sae.normalization.name(),
        "reshape_activations": if sae.hook_z { "hook_z" } else { "none" },
        "metadata": metadata,
        "architecture": sae.architecture(),
    });
    if sae.transcoder {
        config["d_out"] = json!(d_out);
    }
    match &sae.activation {
        Activation::TopK { k } | Activation::AbsTopK { k } => {
            config["k"] = json!(k);
            config["rescale_acts_by_decoder_norm"] = json!(false);
        }
        Activation::MatchingPursuit { residual_threshold, max_iterations, stop_on_duplicate_support } => {
            config["residual_threshold"] = json!(residual_threshold);
            config["max_iterations"] = json!(max_iterations);
            config["stop_on_duplicate_support"] = json!(stop_on_duplicate_support);
        }
        _ => {}
    }
    let text = serde_json::to_vec_pretty(&config).expect("JSON values have string keys");
    let mut sums = Sums::of(dir, &[WEIGHTS_FILE, METRICS_FILE])?;
    sums.add(CONFIG_FILE, &text);
    sums.write(dir)?;
    Ok(files::write_atomic(&dir.join(CONFIG_FILE), &text)?)
}

/// A pickled file can run any code when it is opened, so it is named and refused.
pub(super) fn refuse_pickles(path: &Path) -> Result<()> {
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

pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let wrong = |what: String| Error::Config { what, path: path.into() };
    let bytes = fs::read(path)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(values)) => Ok(values),
        Ok(_) => Err(wrong("expected a JSON object, found another value".into())),
        Err(cause) => Err(wrong(format!("expected a JSON object, found {cause}"))),
    }
}

/// What an architecture's name says.
struct Architecture {
    /// The name without what follows.
    name: &'static str,
    /// A checkpoint of a BatchTopK, which is saved as `jumprelu` when it is finished.
    batch: bool,
    transcoder: bool,
    skip: bool,
}

/// What `normalize_activations` says.
enum Normalized {
    Each(Normalization),
    /// By one factor, of which the configuration does not speak.
    Scaled,
    Whitened,
}

/// `cfg.json`, read key by key.
pub(crate) struct Config {
    pub(crate) values: Map<String, Value>,
    pub(super) path: PathBuf,
}

impl Config {
    pub(crate) fn read(path: PathBuf) -> Result<Self> {
        Ok(Self { values: read_object(&path)?, path })
    }

    pub(super) fn wrong(&self, what: String) -> Error {
        Error::Config { what, path: self.path.clone() }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.as_str()
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.values.get(key)?.as_bool()
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        let found = self.values.get(key).unwrap_or(&Value::Null);
        let size = found.as_u64().filter(|&size| size > 0).and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong(format!("expected `{key}` as a positive number, found `{found}`")))
    }

    /// The architecture; before 6.0 TopK was an `activation_fn` of the standard one.
    fn architecture(&self) -> Result<Architecture> {
        const NAMES: [&str; 8] = [
            "standard",
            "topk",
            "abstopk",
            "jumprelu",
            "gated",
            "matching_pursuit",
            "batchtopk",
            "matryoshka_batchtopk",
        ];
        let found = match self.text("architecture") {
            Some(found) => found,
            // The oldest ones have none.
            None if self.text("activation_fn_str").is_some() => "standard",
            None => return Err(self.wrong("expected `architecture` as a string, found none".into())),
        };
        let unknown = || Error::UnknownArchitecture { found: found.into(), path: self.path.clone() };
        let transcoder = found.strip_suffix("transcoder");
        let (base, skip) = match transcoder {
            Some(rest) => rest.strip_suffix("skip_").map_or((rest, false), |rest| (rest, true)),
            None => (found, false),
        };
        let base = if transcoder.is_some() { base.strip_suffix('_').unwrap_or(base) } else { base };
        let base = if base.is_empty() { "standard" } else { base };
        let mut name = NAMES.into_iter().find(|name| *name == base).ok_or_else(unknown)?;
        match self.text("activation_fn").or_else(|| self.text("activation_fn_str")) {
            Some("topk") => name = "topk",
            None | Some("relu") => {}
            Some(other) => {
                return Err(self.wrong(format!("expected `activation_fn` = `relu` or `topk`, found `{other}`")));
            }
        }
        let batch = name.ends_with("batchtopk");
        if transcoder.is_some() && (batch || matches!(name, "matching_pursuit" | "gated")) {
            return Err(unknown());
        }
        Ok(Architecture { name, batch, transcoder: transcoder.is_some(), skip })
    }

    fn normalization(&self) -> Result<Normalized> {
        let found = self.values.get("normalize_activations").unwrap_or(&Value::Null);
        Ok(match found {
            Value::Null | Value::Bool(false) => Normalized::Each(Normalization::None),
            Value::Bool(true) => Normalized::Scaled,
            found => match found.as_str().unwrap_or_default() {
                "none" => Normalized::Each(Normalization::None),
                "constant_norm_rescale" => Normalized::Each(Normalization::ConstantNorm),
                "layer_norm" => Normalized::Each(Normalization::LayerNorm),
                "expected_average_only_in" => Normalized::Scaled,
                "covariance_whitening" => Normalized::Whitened,
                _ => {
                    return Err(self.wrong(format!(
                        "expected `normalize_activations` as `none`, `expected_average_only_in`, `constant_norm_rescale`, \
                         `layer_norm` or `covariance_whitening`, found `{found}`"
                    )));
                }
            },
        })
    }

    /// The error where the scale is not to be found.
    fn unscaled(&self) -> Error {
        self.wrong(format!(
            "expected the scale of `normalize_activations` = `expected_average_only_in` in `{SCALER_FILE}`, found none\nhint: \
             `polariscope import --input-scale S` folds it; S is √d_in over the mean norm of the activations in training"
        ))
    }

    /// Before 6.0, the name of the hook point said it.
    fn hook_z(&self) -> bool {
        match self.text("reshape_activations") {
            Some(reshape) => reshape == "hook_z",
            None => {
                !self.values.contains_key("metadata") && self.text("hook_name").is_some_and(|n| n.contains("hook_z"))
            }
        }
    }

    fn matching_pursuit(&self) -> Activation {
        // The defaults of SAELens.
        Activation::MatchingPursuit {
            residual_threshold: self.values.get("residual_threshold").and_then(Value::as_f64).unwrap_or(1e-2) as f32,
            max_iterations: self.values.get("max_iterations").and_then(Value::as_u64).map(|n| n as usize),
            stop_on_duplicate_support: self.flag("stop_on_duplicate_support").unwrap_or(true),
        }
    }

    pub(super) fn k(&self, d_sae: usize) -> Result<usize> {
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
            ("hook_name_out", "hook_name_out"),
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
        let version = ("sae_lens_version".to_owned(), LAYOUT_VERSION.into());
        flat.chain([version]).collect()
    }
}

#[cfg(test)]
mod tests;
