//! What does `polariscope export` need to write features for the sites and tools of others?

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use data::Run;
use data::dashboards::{self, DashboardFormat, DashboardOptions, Directions};
use data::features::FeatureTable;
use engine::gemma::model::Model;
use scope::{Coder, LogitLens as _};
use serde_json::json;

use crate::join::feature_table;
use crate::{catalog, encode, export, output, progress};

/// The coder and its names.
#[derive(Debug, Args)]
#[command(next_help_heading = "Formats of features")]
pub(crate) struct Dashboards {
    /// The coder's folder, or the name of its feature table
    #[arg(long, value_name = "SAE")]
    pub(crate) sae: Option<PathBuf>,

    /// The model, for the histograms of logits
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// Which features: `0..1000`, `1000..` or `..1000` [default: all]
    #[arg(long, value_name = "A..B")]
    features: Option<String>,

    /// Features of a file
    #[arg(long, value_name = "N", default_value_t = dashboards::BATCH)]
    batch: usize,

    /// Leave out which neurons correlate with features, for which the activations are read once more, and which features do
    /// where pairs were not counted
    #[arg(long)]
    no_correlations: bool,

    /// What the site calls the model [default: the last part of the name that the run was recorded with]
    #[arg(long, value_name = "NAME")]
    model_id: Option<String>,

    /// The set of the coder, which stands behind the layer in a source's name [default: the name of its feature table]
    #[arg(long, value_name = "NAME")]
    source_set: Option<String>,

    /// What tells this coder from others of its set
    #[arg(long, value_name = "NAME")]
    suffix: Option<String>,

    /// Who made the coder
    #[arg(long, value_name = "NAME", default_value = "")]
    creator: String,

    /// Their id in the Neuronpedia that imports it
    #[arg(long, value_name = "ID", default_value = dashboards::CREATOR_ID)]
    creator_id: String,
}

impl Dashboards {
    pub(crate) fn run(self, run: &Run, format: DashboardFormat, out: &Path, as_json: bool) -> Result<()> {
        let Some(sae) = &self.sae else {
            bail!(
                "expected `--sae` with `--format {}`\nhint: name the coder whose features were encoded",
                format.name()
            );
        };
        let table = feature_table(run, sae)?;
        let model = match &self.model {
            Some(name) => Some(encode::load(&catalog::resolve(name)?, 0)?),
            None => None,
        };
        let coder = coder(run, &table, sae)?;
        if coder.is_none() {
            output::note(&format!(
                "note: no coder lies in `{}`, so there are no vectors, no aligned neurons and no histograms of logits",
                sae.display()
            ));
        }
        let known = coder.map(|coder| Known { coder, model });
        let n = table.n_features();
        let options = DashboardOptions {
            format,
            features: self.features.as_deref().map(|text| features(text, n)).transpose()?,
            batch: self.batch,
            model_id: self.model_id,
            source_set: self.source_set.unwrap_or_else(|| table.name().to_owned()),
            suffix: self.suffix,
            creator: self.creator,
            creator_id: self.creator_id,
            created_at: crate::invocation::now(),
            correlations: !self.no_correlations,
        };
        let bar = progress::steps(n.into(), "describing features");
        let directions = known.as_ref().map(|known| known as &dyn Directions);
        let report = progress::watch(&bar, |at| dashboards::export(&table, &options, directions, out, at))?;
        if as_json {
            return output::json(&json!({
                "features": report.features, "silent": report.silent, "activations": report.activations,
                "bytes": report.bytes,
            }));
        }
        output::text(&format!(
            "{}: {} features, {} of which never fired, {} passages, {}",
            out.display(),
            output::count(report.features),
            output::count(report.silent),
            output::count(report.activations),
            output::size(report.bytes)
        ))
    }
}

/// What is known of a direction.
struct Known {
    coder: Coder,
    model: Option<Model>,
}

impl Directions for Known {
    fn direction(&self, feature: u32) -> Vec<f32> {
        self.coder.stream_direction(feature as usize)
    }

    fn logits(&self, directions: &[f32]) -> Vec<f32> {
        let model = self.model.as_ref().filter(|model| self.coder.writes_stream(model.d_model()));
        model.map(|model| model.all_logit_effects(directions)).unwrap_or_default()
    }
}

/// The coder of a table: where it was named, or among those of the run.
fn coder(run: &Run, table: &FeatureTable, named: &Path) -> Result<Option<Coder>> {
    const CONFIG: &str = "cfg.json";
    if named.join(CONFIG).is_file() {
        return matching(Coder::load(named)?, table, named);
    }
    let Some(folder) = run.sae_folder(&table.info().coder, CONFIG)? else { return Ok(None) };
    matching(Coder::load(&folder)?, table, &folder)
}

fn matching(coder: Coder, table: &FeatureTable, folder: &Path) -> Result<Option<Coder>> {
    let (expected, found) = (table.n_features() as usize, coder.d_sae());
    if found != expected {
        bail!(
            "expected a coder of {expected} features as in the table `{}`, found {found} in `{}`\nhint: encode the run with \
             this coder first",
            table.name(),
            folder.display()
        );
    }
    Ok(Some(coder))
}

/// `A..B`, either of which may be left out.
fn features(text: &str, n_features: u32) -> Result<Range<u32>> {
    match export::ends(text, n_features) {
        Some(range) if range.start <= range.end && range.end <= n_features => Ok(range),
        _ => bail!(
            "expected features as `A..B` within 0..{n_features}, found `{text}`\nhint: for example `--features 0..1000`"
        ),
    }
}
