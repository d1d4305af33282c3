//! `polariscope evaluate`: how good is a coder on the activations of a run?

use anyhow::{Context as _, Result};
use clap::Args;
use data::{Dtype, HookPoint, Run};
use scope::metrics::EvaluateOptions;
use scope::{Metrics, Sae};
use serde_json::json;

use crate::failure::Interrupted;
use crate::import::{self, selftest, verdict};
use crate::location::Location;
use crate::{interrupt, output, progress};

/// Measures a coder on the activations of a run
///
/// All metrics are measured on the rows as they are stored. `storage_explained_variance` says how much of the variance
/// of the rows as the model computed them is left in those: 1 unless `record --store-dtype` rounded them. A transcoder is
/// measured on what it speaks of, which the run must hold beside what it reads.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  polariscope evaluate runs/news --sae runs/news/saes/resid-9")]
pub(crate) struct Evaluate {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// The coder's folder, or its URL
    #[arg(long, value_name = "SAE")]
    sae: Location,

    /// The hook point to measure on [default: the one that the coder was trained on]
    #[arg(long, value_name = "NAME")]
    hook_point: Option<String>,

    /// The hook point that a transcoder speaks of [default: the one that it was trained on]
    #[arg(long, value_name = "NAME")]
    hook_point_out: Option<String>,

    /// At most so many tokens, drawn by the seed [default: all]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,

    /// Which tokens, if not all
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Compare with the coder's label, and try other hook points, scales and biases where it does not fit
    #[arg(long)]
    check: bool,

    /// Threads to compute with; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Print the metrics as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Evaluate {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        let run = self.run.run()?;
        let sae = Sae::load(self.sae.coder()?)?;
        let unsaid = |flag: &str| format!("`{}` does not say its hook point\nhint: name it with `{flag}`", self.sae);
        let input = self.hook_point.as_deref().or_else(|| sae.hook_name()).with_context(|| unsaid("--hook-point"))?;
        let input: HookPoint = input.parse()?;
        let output = match (self.hook_point_out.as_deref(), sae.transcoder) {
            (Some(name), _) => name.parse()?,
            (None, false) => input,
            (None, true) => sae.hook_name_out().with_context(|| unsaid("--hook-point-out"))?.parse()?,
        };
        let options = EvaluateOptions {
            max_tokens: self.max_tokens,
            seed: self.seed,
            threads: self.threads,
            ..EvaluateOptions::default()
        };
        let bar = progress::tokens(self.max_tokens.unwrap_or(run.n_tokens()).min(run.n_tokens()), "evaluating");
        let metrics = scope::evaluate(&run, [input, output], &sae, &options, &mut |tokens| {
            bar.set_position(tokens);
            interrupt::flow()
        })?;
        bar.finish_and_clear();
        if interrupt::pressed() {
            return Err(Interrupted { resume: None }.into());
        }
        let storage = Storage::of(&run, output)?;
        let found = if self.check { Some(selftest(&run, &sae, self.threads)?) } else { None };
        if self.json {
            let mut value = value(&metrics, &storage);
            if let Some(found) = &found {
                value["check"] = import::value(found, &sae);
            }
            return output::json(&value);
        }
        output::text(&table(&metrics, &storage))?;
        found.map_or(Ok(()), |found| output::text(&verdict(&found, &sae)))
    }
}

/// What the coder cannot see: how the rows differ from what the model computed.
struct Storage {
    dtype: Dtype,
    /// `None` where an older recorder did not sum it up.
    explained_variance: Option<f64>,
}

impl Storage {
    fn of(run: &Run, hook: HookPoint) -> Result<Self> {
        let explained_variance = run.statistics(hook)?.storage_explained_variance();
        Ok(Self { dtype: run.hook_point(hook)?.dtype, explained_variance })
    }
}

fn value(metrics: &Metrics, storage: &Storage) -> serde_json::Value {
    json!({
        "n_tokens": metrics.n_tokens, "l0": metrics.l0, "l1": metrics.l1, "mse": metrics.mse,
        "explained_variance": metrics.explained_variance, "fvu": metrics.fvu, "cosine": metrics.cosine,
        "l2_ratio": metrics.l2_ratio, "relative_reconstruction_bias": metrics.relative_reconstruction_bias,
        "dead_features": metrics.dead_features, "dead_fraction": metrics.dead_fraction, "density": metrics.density,
        "store_dtype": storage.dtype, "storage_explained_variance": storage.explained_variance,
    })
}

fn table(metrics: &Metrics, storage: &Storage) -> String {
    let stored = storage.explained_variance.map_or_else(|| "unknown".to_owned(), |variance| format!("{variance:.6}"));
    let rows = [
        ("tokens", output::count(metrics.n_tokens)),
        ("l0", format!("{:.2}", metrics.l0)),
        ("l1", format!("{:.4}", metrics.l1)),
        ("mse", format!("{:.4}", metrics.mse)),
        ("explained_variance", format!("{:.4}", metrics.explained_variance)),
        ("fvu", format!("{:.4}", metrics.fvu)),
        ("cosine", format!("{:.4}", metrics.cosine)),
        ("l2_ratio", format!("{:.4}", metrics.l2_ratio)),
        ("relative_reconstruction_bias", format!("{:.4}", metrics.relative_reconstruction_bias)),
        ("dead_features", output::count(metrics.dead_features as u64)),
        ("dead_fraction", format!("{:.4}", metrics.dead_fraction)),
        ("store_dtype", storage.dtype.to_string()),
        ("storage_explained_variance", stored),
    ];
    output::table(&rows.map(|(name, value)| vec![name.to_owned(), value]), &[1])
}
