//! What is kept of a training, so that going on is exactly as if it had never stopped?
//!
//! One safetensors file a checkpoint: weights and both moments of Adam as tensors, everything else as JSON in its header, so
//! that a checkpoint is there wholly or not at all. The last two are kept.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use data::{
    files,
    sums::{self, Seal},
};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    batch_topk::RunningThreshold,
    error::{Error, Result},
    layout::Layout,
    matrix::Matrix,
    optimizer::Adam,
    step::{Outcome, Weights},
    tensors::{self, Named, TensorFile},
};

/// The folder inside the coder's.
pub(crate) const FOLDER: &str = "checkpoints";
/// The key in the header under which the state stands.
const KEY: &str = "polariscope.training";
/// The version of this layout.
const VERSION: u32 = 4;
/// How many checkpoints are kept: the last, and one before it.
const KEPT: usize = 2;

/// Everything beside the tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) version: u32,
    /// Settings that decide the result, by name.
    pub(crate) settings: Map<String, Value>,
    /// Steps done.
    pub(crate) step: u64,
    /// Rows trained on.
    pub(crate) tokens: u64,
    /// Rows left out because a value was not finite.
    pub(crate) not_finite: u64,
    /// Where in the shards the reader is.
    pub(crate) cursor: data::Cursor,
    /// What each site that is read is multiplied with, and each that is written.
    pub(crate) scales: [Vec<f32>; 2],
    /// Of all latents, or of each group.
    pub(crate) thresholds: Vec<RunningThreshold>,
    /// The last batches, of which progress tells the mean.
    pub(crate) window: VecDeque<Outcome>,
    /// For each latent, rows since it last fired.
    pub(crate) silent: Vec<u64>,
}

/// Writes a checkpoint, and removes all but the last few.
pub(crate) fn save(dir: &Path, state: &State, weights: &Weights, adam: &Adam) -> Result<()> {
    files::create_dir(&dir.join(FOLDER))?;
    let mut named = Vec::new();
    for (prefix, weights) in [("", weights), ("m.", &adam.m), ("v.", &adam.v)] {
        for (name, shape, values) in tensors(weights) {
            named.push(Named { name: format!("{prefix}{name}").into(), shape, values });
        }
    }
    let text = serde_json::to_string(state).expect("states are JSON: no maps with other keys than strings");
    tensors::write(&path(dir, state.step), &named, Some((KEY, text)))?;
    prune(dir)
}

/// The name, the shape and the values of every tensor.
fn tensors(weights: &Weights) -> Vec<(String, Vec<usize>, &[f32])> {
    let mut all = Vec::new();
    let matrix = |matrix: &Matrix| vec![matrix.rows(), matrix.cols()];
    for (at, group) in weights.groups.iter().enumerate() {
        all.push((format!("groups.{at}.encoder"), matrix(&group.encoder), group.encoder.as_slice()));
        all.push((format!("groups.{at}.decoder"), matrix(&group.decoder), group.decoder.as_slice()));
        all.push((format!("groups.{at}.b_enc"), vec![group.b_enc.len()], &group.b_enc));
        for (which, own) in group.own.iter().enumerate() {
            all.push((format!("groups.{at}.own.{which}"), vec![own.len()], own));
        }
    }
    for (at, skip) in weights.skips.iter().enumerate() {
        all.push((format!("skips.{at}"), matrix(skip), skip.as_slice()));
    }
    all.push(("b_dec".to_owned(), vec![weights.b_dec.len()], &weights.b_dec));
    all
}

/// The same to be filled, in the same order.
fn tensors_mut(weights: &mut Weights) -> Vec<&mut [f32]> {
    let mut all: Vec<&mut [f32]> = Vec::new();
    for group in &mut weights.groups {
        all.push(group.encoder.as_mut_slice());
        all.push(group.decoder.as_mut_slice());
        all.push(&mut group.b_enc);
        all.extend(group.own.iter_mut().map(|own| &mut own[..]));
    }
    all.extend(weights.skips.iter_mut().map(Matrix::as_mut_slice));
    all.push(&mut weights.b_dec);
    all
}

/// Where the checkpoint of a step is.
pub(crate) fn path(dir: &Path, step: u64) -> PathBuf {
    dir.join(FOLDER).join(format!("step-{step:09}.safetensors"))
}

/// The steps of which there is a checkpoint, ascending.
pub(crate) fn steps(dir: &Path) -> Result<Vec<u64>> {
    let step = |path: PathBuf| path.file_stem()?.to_str()?.strip_prefix("step-")?.parse().ok();
    Ok(list(dir)?.into_iter().filter_map(step).collect())
}

/// Removes the checkpoints of later steps, which other coders of the same sweep do not have.
pub(crate) fn forget_after(dir: &Path, step: u64) -> Result<()> {
    for later in steps(dir)?.into_iter().filter(|&known| known > step) {
        fs::remove_file(path(dir, later))?;
    }
    Ok(())
}

/// Removes all but the last few checkpoints, as [`save`] does unless it is killed before.
pub(crate) fn prune(dir: &Path) -> Result<()> {
    let mut all = list(dir)?;
    all.truncate(all.len().saturating_sub(KEPT));
    for old in all {
        fs::remove_file(old)?;
    }
    Ok(())
}

/// Removes all of them.
pub(crate) fn remove_all(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir.join(FOLDER)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(files::sync_dir(dir)?),
    }
}

/// The last checkpoint of a coder's folder, if there is one.
pub(crate) fn latest(dir: &Path) -> Result<Option<PathBuf>> {
    Ok(list(dir)?.pop())
}

/// Reads a checkpoint of a training with these settings, of weights of this layout; `own` as in [`Weights::zeros`].
pub(crate) fn load(
    path: &Path,
    settings: &Map<String, Value>,
    layout: &Layout,
    own: usize,
) -> Result<(State, Weights, Adam)> {
    if sums::check(path)? != Seal::Whole {
        return Err(Error::BadCheckpoint { path: path.into() });
    }
    let file = TensorFile::open(path)?;
    let damaged = |cause: String| Error::Weights { cause, path: path.into() };
    let text = file.text(KEY)?.ok_or_else(|| damaged(format!("expected `{KEY}` in the header, found none")))?;
    let version = serde_json::from_str::<Value>(&text).ok().and_then(|state| state.get("version")?.as_u64());
    if let Some(version) = version.filter(|&version| version != u64::from(VERSION)) {
        return Err(damaged(format!("expected version {VERSION}, found version {version}")));
    }
    let state: State = serde_json::from_str(&text).map_err(|cause| damaged(cause.to_string()))?;
    state.check(settings, path)?;
    let d_sae = layout.d_sae();
    if state.silent.len() != d_sae {
        return Err(damaged(format!("expected {d_sae} counters, found {}", state.silent.len())));
    }
    let read = |prefix: &str| -> Result<Weights> {
        let mut weights = Weights::zeros(layout, own);
        let shapes: Vec<_> = tensors(&weights).into_iter().map(|(name, shape, _)| (name, shape)).collect();
        for ((name, shape), values) in shapes.iter().zip(tensors_mut(&mut weights)) {
            values.copy_from_slice(&file.f32(&format!("{prefix}{name}"), shape)?);
        }
        Ok(weights)
    };
    let (weights, m, v) = (read("")?, read("m.")?, read("v.")?);
    let steps = state.step;
    Ok((state, weights, Adam { m, v, steps }))
}

impl State {
    pub(crate) const VERSION: u32 = VERSION;

    /// That `settings` are those with which the training began.
    fn check(&self, settings: &Map<String, Value>, path: &Path) -> Result<()> {
        for (name, expected) in &self.settings {
            // Through its text, as the expected one came: numbers of many digits do not all come back as they were.
            let found = settings.get(name).unwrap_or(&Value::Null).to_string();
            if serde_json::from_str::<Value>(&found).ok().as_ref() != Some(expected) {
                return Err(Error::OtherSettings {
                    name: name.clone(),
                    expected: expected.to_string(),
                    found,
                    path: path.into(),
                });
            }
        }
        Ok(())
    }
}

/// All checkpoints, the last one last.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let folder = dir.join(FOLDER);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    paths.sort();
    Ok(paths)
}
