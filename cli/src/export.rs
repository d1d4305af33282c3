//! `polariscope export`: activations and features in the formats of others.

use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use data::Dtype;
use data::dashboards::DashboardFormat;
use data::export::{self, ExportOptions, Format};
use serde_json::json;

use crate::dashboards::Dashboards;
use crate::location::Location;
use crate::{interrupt, output, progress};

/// Writes activations as Parquet lists, NumPy, safetensors, a Hugging Face or a SAELens data set; features for Neuronpedia
///
/// `parquet`: one file, a row a token, a list of numbers for each hook point; also what `datasets` loads with
/// `load_dataset("parquet", …)`. `npy`: a folder with `HOOK_POINT.npy` and the places of the tokens; `numpy.load` maps
/// them. `safetensors`: one file. `datasets`: a folder for `datasets.load_from_disk`. `sae-lens`: a folder for
/// `cached_activations_path`, a row a sequence of `--context` tokens.
///
/// `neuronpedia` and `sae-dashboard` write the features of `--sae`, which was encoded: a folder for Neuronpedia's bulk import,
/// and one as SAEDashboard's runner writes it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    polariscope export runs/news --format npy --hook-points blocks.9.hook_resid_post --skip-special --out news-9\n  \
    polariscope export runs/news --format neuronpedia --sae runs/news/saes/resid-9 --out dashboards")]
pub(crate) struct Export {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// Of activations `parquet`, `npy`, `safetensors`, `datasets` or `sae-lens`; of features `neuronpedia` or `sae-dashboard`
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Target,

    /// The file or folder to write; it must not exist
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Which hook points: names, with `*` for every layer and `3-5` for a range [default: all that were recorded]
    #[arg(long, value_name = "LIST")]
    hook_points: Option<String>,

    /// Which tokens, by `token_idx`: `1000..2000`, `1000..` or `..2000` [default: all]
    #[arg(long, value_name = "A..B")]
    tokens: Option<String>,

    /// Leave out BOS, EOS, padding and chat markers
    #[arg(long)]
    skip_special: bool,

    /// f32, f16, or bf16 for safetensors [default: as stored where the format can hold it, otherwise f32]
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Dtype>,

    /// Tokens of a sequence, for sae-lens
    #[arg(long, value_name = "N", default_value_t = export::CONTEXT)]
    context: usize,

    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,

    // Last: what follows has a heading of its own.
    #[command(flatten)]
    dashboards: Dashboards,
}

/// A format of activations, or of features.
#[derive(Debug, Clone, Copy)]
enum Target {
    Activations(Format),
    Features(DashboardFormat),
}

fn format(text: &str) -> Result<Target> {
    if let Ok(format) = text.parse() {
        return Ok(Target::Features(format));
    }
    text.parse().map(Target::Activations).map_err(|_unknown: data::Error| {
        let names = Format::ALL.map(Format::name).into_iter().chain(DashboardFormat::ALL.map(DashboardFormat::name));
        anyhow!("expected one of `{}`, found `{text}`", names.collect::<Vec<_>>().join("`, `"))
    })
}

impl Export {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        let run = self.run.run()?;
        let format = match self.format {
            Target::Features(_) if self.hook_points.is_some() || self.tokens.is_some() || self.dtype.is_some() => {
                bail!("expected no `--hook-points`, `--tokens` and `--dtype` with a format of features")
            }
            Target::Features(format) => return self.dashboards.run(&run, format, &self.out, self.json),
            Target::Activations(_) if self.dashboards.sae.is_some() => {
                bail!("expected no `--sae` with a format of activations\nhint: `--format neuronpedia` writes features")
            }
            Target::Activations(format) => format,
        };
        let options = ExportOptions {
            format,
            hook_points: self.hook_points.map_or_else(|| Ok(Vec::new()), |list| export::recorded(&run, &list))?,
            tokens: self.tokens.map(|tokens| range(&tokens, run.n_tokens())).transpose()?,
            skip_special: self.skip_special,
            dtype: self.dtype,
            context: self.context,
        };
        let size = output::size(export::estimate(&run, &options)?);
        output::note(&format!("writing about {size} to `{}`", self.out.display()));
        let bar = progress::steps(0, "exporting rows");
        let report = progress::watch(&bar, |at| export::export(&run, &options, &self.out, at))?;
        if report.saturated > 0 {
            let n = output::count(report.saturated);
            output::note(&format!("note: {n} numbers were beyond the range of f16 and are now at its ends"));
        }
        if report.left_over > 0 {
            let n = output::count(report.left_over);
            output::note(&format!("note: {n} tokens at the end fill no sequence and were left out"));
        }
        if self.json {
            return output::json(&json!({
                "tokens": report.tokens, "skipped_special": report.skipped_special, "left_over": report.left_over,
                "saturated": report.saturated, "bytes": report.bytes,
            }));
        }
        let (tokens, size) = (output::count(report.tokens), output::size(report.bytes));
        output::text(&format!("{}: {tokens} tokens, {size}", self.out.display()))
    }
}

/// `A..B`, either of which may be left out.
fn range(text: &str, n_tokens: u64) -> Result<Range<u64>> {
    match ends(text, n_tokens) {
        Some(range) => Ok(range),
        None => bail!("expected tokens as `A..B`, found `{text}`\nhint: for example `--tokens 0..1000`"),
    }
}

/// The ends of `A..B`: 0 and `n` where they are left out.
pub(crate) fn ends<T: FromStr + Default>(text: &str, n: T) -> Option<Range<T>> {
    let number = |text: &str, otherwise| if text.is_empty() { Some(otherwise) } else { text.parse().ok() };
    let (start, end) = text.split_once("..")?;
    Some(number(start, T::default())?..number(end, n)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_end_may_be_left_out() {
        assert_eq!(range("3..5", 10).unwrap(), 3..5);
        assert_eq!(range("..5", 10).unwrap(), 0..5);
        assert_eq!(range("3..", 10).unwrap(), 3..10);
        assert!(range("3", 10).unwrap_err().to_string().contains("found `3`"));
        assert!(range("a..b", 10).is_err());
    }
}
