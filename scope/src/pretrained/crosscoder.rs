//! How does a coder between several sites lie in its folder?
//!
//! As circuit-tracer lays out cross-layer transcoders, so that it opens ours: of each group of latents `N` there is
//! `W_enc_N.safetensors` with `W_enc_N [latents, width]`, `b_enc_N`, `threshold_N` where latents have thresholds, `b_dec_N` of
//! the output site of the same number and perhaps `W_skip_N [width read, width written]`; and `W_dec_N.safetensors` with
//! `W_dec_N [latents, sites written, width]`. `cfg.json` says the rest; without it the folder is one of circuit-tracer's
//! (read at b00048e). Where a group reads several sites, `W_enc_N` is `[latents, sites, width]`; where sites are not equally
//! wide, their columns lie end to end; biases of sites beyond the last group's number stand in its file.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use data::{files, sums::Sums};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    about, circuit_tracer,
    sae_lens::{CONFIG_FILE, Config},
};
use crate::{
    activation::Activation,
    crosscoder::{Crosscoder, LatentGroup, Site},
    error::{Error, Result},
    sae::SparseCoder,
    tensors::{self, Named, TensorFile},
    train::METRICS_FILE,
};

/// What our `cfg.json` says beside the metadata.
#[derive(Serialize, Deserialize)]
struct Description {
    architecture: String,
    activation: String,
    k: Option<usize>,
    per_group: bool,
    inputs: Vec<SiteEntry>,
    outputs: Vec<SiteEntry>,
    groups: Vec<GroupEntry>,
    d_in: usize,
    d_out: usize,
    d_sae: usize,
    metadata: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct SiteEntry {
    hook_name: Option<String>,
    width: usize,
}

#[derive(Serialize, Deserialize)]
struct GroupEntry {
    latents: usize,
    reads: Range<usize>,
    writes: Range<usize>,
}

/// The widest site, with which sums of widths stay far from the end of their numbers.
const MAX_WIDTH: usize = 1 << 24;

/// The file of a group's encoder.
pub(super) fn encoder_file(group: usize) -> String {
    format!("W_enc_{group}.safetensors")
}

fn decoder_file(group: usize) -> String {
    format!("W_dec_{group}.safetensors")
}

/// The shape of rows that have these sites.
fn shape(rows: usize, sites: &[Site]) -> Vec<usize> {
    let width = sites.first().map_or(0, |site| site.width);
    if sites.iter().any(|site| site.width != width) {
        return vec![rows, sites.iter().map(|site| site.width).sum()];
    }
    vec![rows, sites.len(), width]
}

/// The same of an encoder, where one site has no axis of its own.
fn encoder_shape(rows: usize, sites: &[Site]) -> Vec<usize> {
    match sites {
        [one] => vec![rows, one.width],
        several => shape(rows, several),
    }
}

/// The output sites whose biases stand in a group's file.
fn biases(group: usize, n_groups: usize, n_sites: usize) -> Range<usize> {
    if group + 1 == n_groups { group..n_sites } else { group..group + 1 }
}

pub(crate) fn save(coder: &Crosscoder, dir: &Path) -> Result<()> {
    files::create_dir(dir)?;
    let n_groups = coder.groups.len();
    let mut bias = coder.b_dec.as_slice();
    let mut names = vec![METRICS_FILE.to_owned()];
    for (at, (group, latents)) in coder.groups.iter().zip(coder.latents()).enumerate() {
        let n = latents.len();
        let encoder = group.w_enc.transposed();
        let inputs = &coder.inputs[group.reads.clone()];
        let mut named = vec![
            Named { name: format!("W_enc_{at}").into(), shape: encoder_shape(n, inputs), values: encoder.as_slice() },
            Named { name: format!("b_enc_{at}").into(), shape: vec![n], values: &coder.b_enc[latents.clone()] },
        ];
        for site in biases(at, n_groups, coder.outputs.len()) {
            let (values, rest) = bias.split_at(coder.outputs[site].width);
            bias = rest;
            named.push(Named { name: format!("b_dec_{site}").into(), shape: vec![values.len()], values });
        }
        let own: &[(&str, &Vec<f32>)] = match &coder.activation {
            Activation::JumpRelu { threshold } => &[("threshold", threshold)],
            Activation::Gated { b_mag, r_mag } => &[("b_mag", b_mag), ("r_mag", r_mag)],
            _ => &[],
        };
        for (name, values) in own {
            named.push(Named { name: format!("{name}_{at}").into(), shape: vec![n], values: &values[latents.clone()] });
        }
        let skip = coder.w_skip.get(at).map(crate::Matrix::transposed);
        if let Some(skip) = &skip {
            let shape = vec![skip.rows(), skip.cols()];
            named.push(Named { name: format!("W_skip_{at}").into(), shape, values: skip.as_slice() });
        }
        tensors::write(&dir.join(encoder_file(at)), &named, None)?;
        let outputs = &coder.outputs[group.writes.clone()];
        let written: usize = outputs.iter().map(|site| site.width).sum();
        let decoder = written_columns(group, written);
        let named = Named { name: format!("W_dec_{at}").into(), shape: shape(n, outputs), values: &decoder };
        tensors::write(&dir.join(decoder_file(at)), &[named], None)?;
        names.extend([encoder_file(at), decoder_file(at)]);
    }
    if let Some(yaml) = circuit_tracer::cross_layer_config(coder) {
        files::write_atomic(&dir.join(circuit_tracer::CONFIG_FILE), yaml.as_bytes())?;
        names.push(circuit_tracer::CONFIG_FILE.to_owned());
    }
    let text = serde_json::to_vec_pretty(&describe(coder)).expect("JSON values have string keys");
    let mut sums = Sums::of(dir, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    sums.add(CONFIG_FILE, &text);
    sums.write(dir)?;
    Ok(files::write_atomic(&dir.join(CONFIG_FILE), &text)?)
}

/// A group's decoder without room for sites that it does not write.
fn written_columns(group: &LatentGroup, written: usize) -> std::borrow::Cow<'_, [f32]> {
    let skipped = group.w_dec.cols() - written;
    if skipped == 0 {
        return group.w_dec.as_slice().into();
    }
    (0..group.n_latents()).flat_map(|latent| &group.w_dec.row(latent)[skipped..]).copied().collect::<Vec<_>>().into()
}

fn describe(coder: &Crosscoder) -> Description {
    let sites = |sites: &[Site]| {
        sites.iter().map(|site| SiteEntry { hook_name: site.hook_name.clone(), width: site.width }).collect()
    };
    let group = |group: &LatentGroup| GroupEntry {
        latents: group.n_latents(),
        reads: group.reads.clone(),
        writes: group.writes.clone(),
    };
    Description {
        architecture: coder.architecture().into(),
        activation: match coder.activation {
            Activation::Relu => "relu".into(),
            ref other => other.name().into(),
        },
        k: match coder.activation {
            Activation::TopK { k } | Activation::AbsTopK { k } => Some(k),
            _ => None,
        },
        per_group: coder.per_group,
        inputs: sites(&coder.inputs),
        outputs: sites(&coder.outputs),
        groups: coder.groups.iter().map(group).collect(),
        d_in: coder.d_in(),
        d_out: coder.d_out(),
        d_sae: coder.d_sae(),
        metadata: coder.metadata.clone(),
    }
}

/// Whether `cfg.json` describes a coder between several sites.
pub(crate) fn is_one(config: &Config) -> bool {
    config.values.get("groups").is_some_and(Value::is_array)
}

pub(crate) fn load(dir: &Path) -> Result<Crosscoder> {
    let path = dir.join(CONFIG_FILE);
    if !path.is_file() {
        return Err(Error::NotACoder { path: dir.into() });
    }
    let config = Config::read(path.clone())?;
    let wrong = |what: String| Error::Config { what, path: path.clone() };
    let found: Description = serde_json::from_value(json!(config.values))
        .map_err(|cause| wrong(format!("expected a coder between several sites, found other keys: {cause}")))?;
    let sites = |entries: Vec<SiteEntry>| -> Vec<Site> {
        entries.into_iter().map(|entry| Site { hook_name: entry.hook_name, width: entry.width }).collect()
    };
    let (inputs, outputs) = (sites(found.inputs), sites(found.outputs));
    let of = |group: &GroupEntry| {
        let reads = group.reads.start < group.reads.end && group.reads.end <= inputs.len();
        let writes = group.writes.start < group.writes.end && group.writes.end == outputs.len();
        reads && writes && group.latents > 0
    };
    let widths = inputs.iter().chain(&outputs).all(|site| (1..=MAX_WIDTH).contains(&site.width));
    let latents = found.groups.iter().try_fold(0_usize, |sum, group| sum.checked_add(group.latents));
    let widths = widths && latents.is_some_and(|latents| u32::try_from(latents).is_ok());
    if found.groups.is_empty() || !found.groups.iter().all(of) || !widths || found.groups.len() > outputs.len() {
        return Err(wrong(format!(
            "expected groups of latents that read some of {} sites and write the last ones of {}, found others",
            inputs.len(),
            outputs.len()
        )));
    }
    let kind = match (found.activation.as_str(), found.k) {
        ("relu", _) => Activation::Relu,
        ("topk", Some(k)) => Activation::TopK { k },
        ("abstopk", Some(k)) => Activation::AbsTopK { k },
        ("jumprelu", _) => Activation::JumpRelu { threshold: Vec::new() },
        ("gated", _) => Activation::Gated { b_mag: Vec::new(), r_mag: Vec::new() },
        (other, _) => {
            let expected = "expected `activation` as `relu`, `topk` with `k`, `jumprelu` or `gated`";
            return Err(wrong(format!("{expected}, found `{other}`")));
        }
    };
    let groups: Vec<_> = found.groups.into_iter().map(|group| (group.latents, group.reads, group.writes)).collect();
    let mut coder = Crosscoder {
        inputs,
        outputs,
        activation: kind,
        per_group: found.per_group,
        metadata: found.metadata,
        ..Crosscoder::default()
    };
    read(&mut coder, &groups, dir)?;
    Ok(coder)
}

/// Opens circuit-tracer's files of a cross-layer transcoder.
pub(super) fn open_cross_layer(dir: &Path) -> Result<Crosscoder> {
    let n = super::count(dir, encoder_file);
    let path = dir.join(encoder_file(0));
    let first = TensorFile::open(&path)?;
    let [_, width] = super::two_axes(&first.shape("W_enc_0")?, "W_enc_0", &path)?;
    let activation =
        if first.has("threshold_0")? { Activation::JumpRelu { threshold: Vec::new() } } else { Activation::Relu };
    let config = circuit_tracer::Yaml::read(dir)?;
    let sites = |key: &str, default: &str| -> Vec<Site> {
        let name = config.value(key).unwrap_or(default);
        (0..n).map(|layer| Site { hook_name: Some(format!("blocks.{layer}.{name}")), width }).collect()
    };
    let mut groups = Vec::new();
    for at in 0..n {
        let path = dir.join(encoder_file(at));
        let name = format!("W_enc_{at}");
        let [latents, _] = super::two_axes(&TensorFile::open(&path)?.shape(&name)?, &name, &path)?;
        groups.push((latents, at..at + 1, at..n));
    }
    let mut coder = Crosscoder {
        // What circuit-tracer takes where nothing is said.
        inputs: sites("feature_input_hook", "hook_resid_mid"),
        outputs: sites("feature_output_hook", "hook_mlp_out"),
        activation,
        metadata: about([("model_name", config.value("model_name").into())]),
        ..Crosscoder::default()
    };
    read(&mut coder, &groups, dir)?;
    Ok(coder)
}

/// Reads the weights of groups: how many latents, which sites they read, which they write.
fn read(coder: &mut Crosscoder, groups: &[(usize, Range<usize>, Range<usize>)], dir: &Path) -> Result<()> {
    let file = |name: String| -> PathBuf { dir.join(name) };
    for (at, (latents, reads, writes)) in groups.iter().enumerate() {
        let (path, decoder_path) = (file(encoder_file(at)), file(decoder_file(at)));
        let (weights, decoder) = (TensorFile::open(&path)?, TensorFile::open(&decoder_path)?);
        let (inputs, outputs) = (&coder.inputs[reads.clone()], &coder.outputs[writes.clone()]);
        coder.groups.push(LatentGroup {
            w_enc: weights.rows(&format!("W_enc_{at}"), &encoder_shape(*latents, inputs))?.transposed(),
            w_dec: decoder.rows(&format!("W_dec_{at}"), &shape(*latents, outputs))?,
            reads: reads.clone(),
            writes: writes.clone(),
        });
        coder.b_enc.extend(weights.f32(&format!("b_enc_{at}"), &[*latents])?);
        for site in biases(at, groups.len(), coder.outputs.len()) {
            coder.b_dec.extend(weights.f32(&format!("b_dec_{site}"), &[coder.outputs[site].width])?);
        }
        let own = |name: &str| weights.f32(&format!("{name}_{at}"), &[*latents]);
        match &mut coder.activation {
            Activation::JumpRelu { threshold } => threshold.extend(own("threshold")?),
            Activation::Gated { b_mag, r_mag } => {
                b_mag.extend(own("b_mag")?);
                r_mag.extend(own("r_mag")?);
            }
            _ => {}
        }
        let name = format!("W_skip_{at}");
        if at < coder.inputs.len() && weights.has(&name)? {
            let shape = [coder.inputs[at].width, coder.outputs[at].width];
            coder.w_skip.push(weights.matrix(&name, shape)?.transposed());
        }
    }
    if !(coder.w_skip.is_empty() || coder.w_skip.len() == coder.outputs.len()) {
        let what = format!("expected `W_skip_N` for each of {} sites or for none", coder.outputs.len());
        return Err(Error::Config { what: format!("{what}, found {}", coder.w_skip.len()), path: dir.into() });
    }
    Ok(())
}
