//! How do feature tables reach the sites and tools of others?
//!
//! | format | what is written |
//! |---|---|
//! | `neuronpedia` | the layout of Neuronpedia's bulk import: `MODEL/LAYER-SET/` with `release.jsonl`, `model.jsonl`, `sourceset.jsonl`, `source.jsonl`, and `features/batch-N.jsonl.gz`, `activations/batch-N.jsonl.gz`, a JSON object a line |
//! | `sae-dashboard` | what SAEDashboard's runner writes: `batch-N.json`, `skipped_indexes.json`, `run_settings.json` |
//!
//! Both show the strongest passages and those from intervals of equal width; special tokens have no activation there.
//! Memory is bounded by a batch of features, the activations of the densest feature, and 256 MB of sums for correlations. The folder is there when it is
//! whole, and nothing that exists is overwritten.

mod describe;
mod neuronpedia;
mod neurons;
mod passages;
mod sae_dashboard;

#[cfg(test)]
mod tests;

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::features::FeatureTable;
use crate::files::{self, BuildFolder};
use crate::progress::{OnProgress, Progress};

use describe::Describer;

/// Features of a file (SAEDashboard).
pub const BATCH: usize = 128;

/// The creator of a Neuronpedia that was set up from its repository, who may be named where nobody else is.
pub const CREATOR_ID: &str = "clkht01d40000jv08hvalcvly";

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DashboardFormat {
    Neuronpedia,
    SaeDashboard,
}

impl DashboardFormat {
    pub const ALL: [Self; 2] = [Self::Neuronpedia, Self::SaeDashboard];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Neuronpedia => "neuronpedia",
            Self::SaeDashboard => "sae-dashboard",
        }
    }
}

impl FromStr for DashboardFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| Error::UnknownFormat { found: text.to_owned(), known: "`neuronpedia` or `sae-dashboard`" })
    }
}

/// What only a coder and a model know of a direction.
pub trait Directions {
    /// The decoder's row of a feature.
    fn direction(&self, feature: u32) -> Vec<f32>;

    /// What directions, end to end, add to the logit of each token of the vocabulary, one after the other; empty where no model is
    /// there.
    fn logits(&self, directions: &[f32]) -> Vec<f32>;
}

/// Of what, and under which names.
#[derive(Clone, Debug)]
pub struct DashboardOptions {
    pub format: DashboardFormat,
    /// All where there is none.
    pub features: Option<Range<u32>>,
    /// Features of a file.
    pub batch: usize,
    /// What the site calls the model; `None` is the last part of the name that the run was recorded with.
    pub model_id: Option<String>,
    /// The coder's set, such as `gemmascope-res-16k`: what comes behind the layer in a source's name.
    pub source_set: String,
    /// What tells this coder from others of its set.
    pub suffix: Option<String>,
    /// Who made the coder.
    pub creator: String,
    /// Their id in the Neuronpedia that imports it.
    pub creator_id: String,
    /// When, as RFC 3339.
    pub created_at: String,
    /// Whether to look for the neurons that correlate with each feature, for which the activations are read again, and for the
    /// features that do where `encode` did not.
    pub correlations: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DashboardReport {
    pub features: u64,
    /// Of those, how many never fired.
    pub silent: u64,
    /// Passages.
    pub activations: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Where a coder stands, as both formats name it.
struct Names<'a> {
    options: &'a DashboardOptions,
    model: String,
    layer: usize,
    hook_point: String,
    /// Path or URI of the corpus.
    dataset: String,
    n_documents: u64,
    /// Tokens of the longest prompt, where the run says it.
    context: u64,
}

impl Names<'_> {
    /// `9-resid-16k`, with `__suffix` where there is one.
    fn source(&self) -> String {
        let suffix = self.options.suffix.as_ref().map_or_else(String::new, |suffix| format!("__{suffix}"));
        format!("{}-{}{suffix}", self.layer, self.options.source_set)
    }
}

/// Writes the folder `out`, which must not exist; progress is in features. Without `directions` there are no vectors, no aligned neurons and no
/// histograms of logits.
pub fn export(
    table: &FeatureTable,
    options: &DashboardOptions,
    directions: Option<&dyn Directions>,
    out: &Path,
    progress: OnProgress<'_>,
) -> Result<DashboardReport> {
    files::refuse_existing(out)?;
    let features = options.features.clone().unwrap_or(0..table.n_features());
    table.check(&features)?;
    files::check_name("source set", &options.source_set)?;
    let run = table.run();
    let info = table.info();
    let corpus = &run.manifest().corpus;
    let context = corpus.options.get("context").and_then(serde_json::Value::as_u64);
    let names = Names {
        options,
        model: options.model_id.clone().unwrap_or_else(|| last_part(&run.manifest().model.id)),
        // What stands before the first block counts as its layer.
        layer: info.hook_point.layer.unwrap_or(0),
        hook_point: info.hook_point.to_string(),
        dataset: corpus.sources.join(", "),
        n_documents: run.n_documents(),
        context: context.unwrap_or(run.manifest().model.shape.n_ctx as u64),
    };
    files::check_name("model", &names.model)?;
    let folder = BuildFolder::create(out)?;
    let mut describer = Describer::new(table, directions, options.correlations, progress)?;
    let mut report = DashboardReport::default();
    let mut writer = match options.format {
        DashboardFormat::Neuronpedia => Writer::Neuronpedia(neuronpedia::Writer::create(folder.path(), &names)?),
        DashboardFormat::SaeDashboard => Writer::SaeDashboard(sae_dashboard::Writer::create(folder.path(), &names)?),
    };
    let total = u64::from(features.end - features.start);
    let mut first = features.start;
    let mut batch = 0;
    while first < features.end {
        let some = first..features.end.min(first.saturating_add(options.batch.max(1) as u32));
        let done = u64::from(first - features.start);
        let go_on = &mut || match progress(Progress { done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        };
        let described = describer.describe(some.clone(), features.end, go_on)?;
        report.features += described.len() as u64;
        report.silent += described.iter().filter(|feature| feature.stats.n_active == 0).count() as u64;
        report.activations += described.iter().map(|feature| feature.passages.len() as u64).sum::<u64>();
        match &mut writer {
            Writer::Neuronpedia(writer) => writer.write(batch, &described, &names)?,
            Writer::SaeDashboard(writer) => writer.write(batch, &described, &names)?,
        }
        (first, batch) = (some.end, batch + 1);
        let done = u64::from(first - features.start);
        if progress(Progress { done, total }).is_break() {
            return Err(Error::Interrupted);
        }
    }
    if let Writer::SaeDashboard(writer) = writer {
        writer.finish(&names)?;
    }
    for name in files::names_below(folder.path())? {
        report.bytes += fs_err::metadata(folder.path().join(name))?.len();
    }
    folder.publish()?;
    Ok(report)
}

/// A model may have been named by its path.
fn last_part(name: &str) -> String {
    let name = name.trim_end_matches(['/', '\\']);
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    last.strip_suffix(".gguf").unwrap_or(last).to_owned()
}

enum Writer {
    Neuronpedia(neuronpedia::Writer),
    SaeDashboard(sae_dashboard::Writer),
}
