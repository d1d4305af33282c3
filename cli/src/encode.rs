//! `polariscope encode`: what each feature of a coder does in a run.

use std::path::Path;

use anyhow::Result;
use clap::Args;
use data::Run;
use engine::device;
use engine::gemma::model::{Model, Precision};
use scope::encode::EncodePhase;
use scope::{EncodeOptions, EncodeSummary, LogitLens};
use serde_json::json;

use crate::bytes::Bytes;
use crate::failure::unless_interrupted;
use crate::location::Location;
use crate::{catalog, interrupt, output, progress};

/// Writes feature activations, statistics and examples under `RUN/features/`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  polariscope encode runs/news --sae runs/news/saes/resid-9 --model gemma-3-270m")]
pub(crate) struct Encode {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// The coder's folder, or its URL
    #[arg(long, value_name = "SAE")]
    sae: Location,

    /// The model, for the tokens that each feature raises and lowers
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// The hook point to encode [default: the one that the coder was trained on]
    #[arg(long, value_name = "NAME")]
    hook_point: Option<String>,

    /// Name of the feature table [default: the name of the coder's folder]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Passages with the largest activations that are kept of each feature
    #[arg(long, value_name = "N", default_value_t = scope::encode::TOP_EXAMPLES)]
    top_examples: usize,

    /// Tokens of a passage
    #[arg(long, value_name = "N", default_value_t = scope::encode::CONTEXT)]
    context: u32,

    /// Intervals of equal width between 0 and a feature's largest activation, from each of which passages are drawn
    #[arg(long, value_name = "N", default_value_t = scope::encode::INTERVALS)]
    intervals: usize,

    /// Intervals of equally many activations, from each of which passages are drawn
    #[arg(long, value_name = "N", default_value_t = scope::encode::QUANTILES)]
    quantiles: usize,

    /// Passages that are drawn from each interval
    #[arg(long, value_name = "N", default_value_t = scope::encode::EXAMPLES_PER_INTERVAL)]
    per_interval: usize,

    /// Features that fire together with each that are kept; 0 spares the count of all pairs
    #[arg(long, value_name = "N", default_value_t = scope::encode::COACTIVATION)]
    coactivation: usize,

    /// Seed of the passages that are drawn from intervals of activation
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Memory in which activations are sorted by feature, and pairs are counted, in bytes or as `512MB`; the rest goes by
    /// way of the disk
    #[arg(long, value_name = "BYTES", default_value_t = Bytes(scope::encode::SORT_MEMORY as u64))]
    memory: Bytes,

    /// Threads to compute with; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Print the summary as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Encode {
    pub(crate) fn run(self) -> Result<()> {
        let run = self.run.run()?;
        let options = EncodeOptions {
            hook: self.hook_point.map(|name| name.parse()).transpose()?,
            name: self.name,
            top_examples: self.top_examples,
            intervals: self.intervals,
            quantiles: self.quantiles,
            per_interval: self.per_interval,
            coactivation: self.coactivation,
            context: self.context,
            seed: self.seed,
            sort_memory: self.memory.in_memory(),
            threads: self.threads,
            ..EncodeOptions::default()
        };
        let model = match self.model {
            Some(name) => Some(load(&catalog::resolve(&name)?, self.threads)?),
            None => None,
        };
        let lens = model.as_ref().map(|model| model as &dyn LogitLens);
        let summary = encode(&run, &self.sae.coder()?, lens, &options)?;
        if self.json {
            return output::json(&json!({
                "name": summary.name, "tokens": summary.n_tokens, "special": summary.n_special,
                "not_finite": summary.not_finite, "activations": summary.n_acts, "l0": summary.l0,
                "dead_features": summary.dead_features,
            }));
        }
        output::text(&words(&summary))
    }
}

/// Loads a model for its unembedding.
pub(crate) fn load(path: &Path, threads: usize) -> Result<Model> {
    device::set_threads(threads);
    Ok(Model::load(path, Precision::F32)?)
}

/// Encodes with a bar for each phase.
pub(crate) fn encode(
    run: &Run,
    sae: &Path,
    model: Option<&dyn LogitLens>,
    options: &EncodeOptions,
) -> Result<EncodeSummary> {
    interrupt::watch();
    output::note(&format!("encoding {} tokens with `{}`", output::count(run.n_tokens()), sae.display()));
    let bar = progress::steps(0, "encoding");
    let summary = scope::encode(run, sae, model, options, &mut |at| {
        bar.set_message(match at.phase {
            EncodePhase::Encode => "encoding tokens",
            EncodePhase::Sort => "sorting activations",
            EncodePhase::Describe => "describing features",
            EncodePhase::Pair => "counting pairs",
        });
        bar.set_length(at.total);
        bar.set_position(at.done);
        interrupt::flow()
    });
    bar.finish_and_clear();
    // Nothing is left behind, so the same command does it from the start.
    unless_interrupted(summary, None)
}

pub(crate) fn words(summary: &EncodeSummary) -> String {
    format!(
        "features/{}: {} activations on {} tokens, L0 {:.1}, {} features never fired",
        summary.name,
        output::count(summary.n_acts),
        output::count(summary.n_tokens),
        summary.l0,
        output::count(summary.dead_features as u64)
    )
}
