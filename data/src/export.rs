//! How do activations reach those who want another format than ours?
//!
//! | format | what is written |
//! |---|---|
//! | `parquet` | one file: a row a token, `token_idx`, `doc_id`, `pos`, `token_id`, `token`, and a list of numbers for each hook point |
//! | `npy` | a folder: `<hook point>.npy` of `[tokens, …]` for each hook point, and `token_idx.npy`, `doc_id.npy`, `pos.npy`, `token_id.npy`; `numpy.load(…, mmap_mode="r")` maps them |
//! | `safetensors` | one file: a tensor of `[tokens, …]` for each hook point, and `token_idx`, `doc_id`, `pos`, `token_id` as I64 |
//! | `datasets` | a folder for `datasets.load_from_disk`, with the columns of `parquet` |
//! | `sae-lens` | a folder for `cached_activations_path` of SAELens: a row a sequence of `context` tokens, `[context, width]` for each hook point, and `token_ids` |
//!
//! Memory is bounded by [`STEP_BYTES`], whatever the size of the run. A file or folder is there when it is whole, and
//! nothing that exists is overwritten.

mod datasets;
mod numpy;
mod parquet;
mod safetensors;
mod select;
mod table;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::hook_point::HookPoint;
use crate::manifest::HookPointEntry;
use crate::progress::OnProgress;
use crate::store::Run;
use crate::{Dtype, files};

use select::{Meter, Selection};

/// Bytes of activations that are held at a time; one row of every hook point at least.
pub const STEP_BYTES: usize = 16 << 20;

/// Tokens of a sequence of SAELens, as its own default.
pub const CONTEXT: usize = 128;

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Parquet,
    Npy,
    Safetensors,
    Datasets,
    SaeLens,
}

/// Of what, and how.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    pub format: Format,
    /// All that were recorded where there are none.
    pub hook_points: Vec<HookPoint>,
    /// By `token_idx`; `None` for all.
    pub tokens: Option<Range<u64>>,
    /// Leaves out BOS, EOS, padding and chat markers.
    pub skip_special: bool,
    /// `None` for the dtype in which they are stored where the format can hold it, and f32 otherwise.
    pub dtype: Option<Dtype>,
    /// Tokens of a sequence, for SAELens.
    pub context: usize,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportReport {
    /// Tokens that were written.
    pub tokens: u64,
    /// Of those that were selected, how many special ones were left out.
    pub skipped_special: u64,
    /// Tokens at the end that do not fill a sequence.
    pub left_over: u64,
    /// Numbers that did not fit into f16.
    pub saturated: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Format {
    pub const ALL: [Self; 5] = [Self::Parquet, Self::Npy, Self::Safetensors, Self::Datasets, Self::SaeLens];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Npy => "npy",
            Self::Safetensors => "safetensors",
            Self::Datasets => "datasets",
            Self::SaeLens => "sae-lens",
        }
    }

    /// Whether activations of a dtype can be written.
    pub const fn holds(self, dtype: Dtype) -> bool {
        match dtype {
            Dtype::F32 | Dtype::F16 => true,
            Dtype::Bf16 => matches!(self, Self::Safetensors),
            Dtype::I8 => false,
        }
    }

    /// In which dtype a hook point is written.
    fn dtype(self, asked: Option<Dtype>, stored: Dtype) -> Result<Dtype> {
        match asked {
            None => Ok(if self.holds(stored) { stored } else { Dtype::F32 }),
            Some(dtype) if self.holds(dtype) => Ok(dtype),
            Some(dtype) => {
                let holds = if self.holds(Dtype::Bf16) { "f32, f16 and bf16" } else { "f32 and f16" };
                Err(Error::CannotHold { format: self.name(), dtype, holds })
            }
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| Error::UnknownFormat {
            found: text.to_owned(),
            known: "`parquet`, `npy`, `safetensors`, `datasets` or `sae-lens`",
        })
    }
}

/// A hook point and the dtype that it is written in.
#[derive(Clone, Debug)]
struct Vectors {
    entry: HookPointEntry,
    dtype: Dtype,
}

/// What a format is to write, and what it says of it.
struct Job<'a> {
    selection: &'a Selection<'a>,
    hooks: &'a [Vectors],
    out: &'a Path,
    report: ExportReport,
    meter: Meter<'a>,
}

impl Vectors {
    const fn row_bytes(&self) -> usize {
        self.entry.width * self.dtype.size()
    }
}

/// The hook points of a list such as `blocks.*.hook_resid_post`, each of which the run must hold; `*` stands for those that it
/// does, of which there must be one.
pub fn recorded(run: &Run, list: &str) -> Result<Vec<HookPoint>> {
    let mut points = Vec::new();
    for name in list.split(',').filter(|name| !name.trim().is_empty()) {
        let mut named = HookPoint::parse_list(name, &run.manifest().model.shape)?;
        let is_there = |point: &HookPoint| run.hook_point(*point).is_ok();
        if name.contains('*') && named.iter().any(is_there) {
            named.retain(is_there);
        }
        // The error lists those that were recorded.
        named.iter().try_for_each(|&point| run.hook_point(point).map(|_| ()))?;
        points.extend(named.into_iter().filter(|point| !points.contains(point)).collect::<Vec<_>>());
    }
    if points.is_empty() { Err(Error::NoHookPoint { list: list.to_owned() }) } else { Ok(points) }
}

/// How many bytes the numbers of an export will have, before the tokens that are left out.
pub fn estimate(run: &Run, options: &ExportOptions) -> Result<u64> {
    let tokens = select::tokens(run, options.tokens.clone())?;
    let row: usize = vectors(run, options)?.iter().map(Vectors::row_bytes).sum();
    Ok((tokens.end - tokens.start) * row as u64)
}

/// Writes `out`, which must not exist.
pub fn export(run: &Run, options: &ExportOptions, out: &Path, progress: OnProgress<'_>) -> Result<ExportReport> {
    files::refuse_existing(out)?;
    let hooks = vectors(run, options)?;
    let selection = Selection::new(run, options.tokens.clone(), options.skip_special, &hooks)?;
    let (report, meter) = (selection.report(), Meter::new(&selection, &hooks, progress));
    let job = Job { selection: &selection, hooks: &hooks, out, report, meter };
    match options.format {
        Format::Parquet => parquet::write(job),
        Format::Npy => numpy::write(job),
        Format::Safetensors => safetensors::write(job),
        Format::Datasets => datasets::write_tokens(job),
        Format::SaeLens => datasets::write_sequences(job, options.context.max(1)),
    }
}

fn vectors(run: &Run, options: &ExportOptions) -> Result<Vec<Vectors>> {
    let entries: Vec<HookPointEntry> = if options.hook_points.is_empty() {
        run.hook_points().to_vec()
    } else {
        options.hook_points.iter().map(|&hook| run.hook_point(hook).cloned()).collect::<Result<_>>()?
    };
    entries
        .into_iter()
        .map(|entry| Ok(Vectors { dtype: options.format.dtype(options.dtype, entry.dtype)?, entry }))
        .collect()
}
