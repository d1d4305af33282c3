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
const VERSION: u32 = 2;
/// How many checkpoints are kept: the last, and one before it.
const KEPT: usize = 2;

/// Names of the tensors of [`Weights`], after the prefix that says which.
const TENSORS: [&str; 12] = [
    "encoder",
    "decoder",
    "b_enc",
    "b_dec",
    "m.encoder",
    "m.decoder",
    "m.b_enc",
    "m.b_dec",
    "v.encoder",
    "v.decoder",
    "v.b_enc",
    "v.b_dec",
];

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
    pub(crate) scale: f32,
    pub(crate) threshold: RunningThreshold,
    /// The last batches, of which progress tells the mean.
    pub(crate) window: VecDeque<Outcome>,
    /// For each latent, rows since it last fired.
    pub(crate) silent: Vec<u64>,
}

/// Writes a checkpoint, and removes all but the last few.
pub(crate) fn save(dir: &Path, state: &State, weights: &Weights, adam: &Adam) -> Result<()> {
    let folder = dir.join(FOLDER);
    files::create_dir(&folder)?;
    let (d_in, d_sae) = (weights.d_in(), weights.d_sae());
    let mut named = Vec::new();
    for (part, weights) in [weights, &adam.m, &adam.v].into_iter().enumerate() {
        let values: [(&[f32], Vec<usize>); 4] = [
            (weights.encoder.as_slice(), vec![d_sae, d_in]),
            (weights.decoder.as_slice(), vec![d_sae, d_in]),
            (&weights.b_enc, vec![d_sae]),
            (&weights.b_dec, vec![d_in]),
        ];
        for (i, (values, shape)) in values.into_iter().enumerate() {
            named.push(Named { name: TENSORS[4 * part + i], shape, values });
        }
    }
    let text = serde_json::to_string(state).expect("states are JSON: no maps with other keys than strings");
    let path = folder.join(format!("step-{:09}.safetensors", state.step));
    tensors::write(&path, &named, Some((KEY, text)))?;
    prune(dir)
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

/// The last checkpoint of a coder's folder, if there is one.
pub(crate) fn latest(dir: &Path) -> Result<Option<PathBuf>> {
    Ok(list(dir)?.pop())
}

/// Reads a checkpoint of a training with these settings, of a coder with these sizes.
pub(crate) fn load(
    path: &Path,
    settings: &Map<String, Value>,
    [d_in, d_sae]: [usize; 2],
) -> Result<(State, Weights, Adam)> {
    if sums::check(path)? != Seal::Whole {
        return Err(Error::BadCheckpoint { path: path.into() });
    }
    let file = TensorFile::open(path)?;
    let damaged = |cause: String| Error::Weights { cause, path: path.into() };
    let text = file.text(KEY)?.ok_or_else(|| damaged(format!("expected `{KEY}` in the header, found none")))?;
    let state: State = serde_json::from_str(&text).map_err(|cause| damaged(cause.to_string()))?;
    if state.version != VERSION {
        return Err(damaged(format!("expected version {VERSION}, found version {}", state.version)));
    }
    state.check(settings, path)?;
    if state.silent.len() != d_sae {
        return Err(damaged(format!("expected {d_sae} counters, found {}", state.silent.len())));
    }
    let read = |part: usize| -> Result<Weights> {
        let matrix = |i: usize| -> Result<Matrix> {
            Ok(Matrix::from_slice(d_sae, d_in, &file.f32(TENSORS[4 * part + i], &[d_sae, d_in])?))
        };
        Ok(Weights {
            encoder: matrix(0)?,
            decoder: matrix(1)?,
            b_enc: file.f32(TENSORS[4 * part + 2], &[d_sae])?,
            b_dec: file.f32(TENSORS[4 * part + 3], &[d_in])?,
        })
    };
    let (weights, m, v) = (read(0)?, read(1)?, read(2)?);
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
