//! `polariscope train`: a sparse coder on one hook point of a run.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use data::{HookPoint, Place, Run};
use scope::train::{BATCH, D_SAE, K};
use scope::{Architecture, Sae, TrainConfig, TrainProgress};
use serde_json::json;

use crate::failure::Interrupted;
use crate::invocation::Invocation;
use crate::location::Location;
use crate::{interrupt, output, progress};

/// Passes over the run, unless the tokens to train on are given.
const EPOCHS: u32 = 1;

/// Trains a sparse coder on one hook point of a run
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  polariscope train runs/news --hook-point blocks.9.hook_resid_post --d-sae 4096 --k 32 \
                        --epochs 10 --out runs/news/saes/resid-9"
)]
pub(crate) struct Train {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// The hook point to train on
    #[arg(long, value_name = "NAME")]
    hook_point: String,

    /// The folder to write the coder to, or its URL; `RUN/saes/NAME` is where the other commands look
    #[arg(long, value_name = "SAE")]
    out: Location,

    /// How latents are chosen: `topk` for each token, or `batchtopk` for each batch
    #[arg(long, value_name = "NAME", default_value_t = Architecture::default(), value_parser = architecture)]
    architecture: Architecture,

    /// Latents
    #[arg(long, value_name = "N", default_value_t = D_SAE)]
    d_sae: usize,

    /// Latents that fire for a token, in the mean
    #[arg(long, value_name = "N", default_value_t = K)]
    k: usize,

    /// Learning rate [default: 2e-4 at 16,384 latents, falling with the square root of their number]
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,

    /// Tokens in a batch
    #[arg(long, value_name = "N", default_value_t = BATCH)]
    batch_tokens: usize,

    /// Tokens to train on; more than the run has are read again in another order
    #[arg(long, value_name = "N", conflicts_with_all = ["steps", "epochs"])]
    tokens: Option<u64>,

    /// Batches to train on
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    steps: Option<u64>,

    /// Passes over the run, where neither tokens nor steps are given
    #[arg(long, value_name = "N", default_value_t = EPOCHS)]
    epochs: u32,

    /// Weight of the second chance that dead latents get; 0 turns it off
    #[arg(long, value_name = "ALPHA", default_value_t = scope::train::AUX_WEIGHT)]
    aux_weight: f64,

    /// Steps between checkpoints: the most that an interruption can cost
    #[arg(long, value_name = "N", default_value_t = scope::train::CHECKPOINT_EVERY)]
    checkpoint_every: u64,

    /// Go on with a training that was interrupted, exactly as if it had not been
    #[arg(long)]
    resume: bool,

    /// Seed of the first weights and of the order of tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Threads to compute with; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Print the last figures as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

fn architecture(name: &str) -> Result<Architecture, String> {
    name.parse().map_err(|err: scope::Error| err.to_string())
}

impl Train {
    pub(crate) fn run(self, invocation: &Invocation) -> Result<()> {
        let run = self.run.run()?;
        let hook = self.hook_point.parse()?;
        if self.resume && Sae::load(self.out.coder()?).is_ok_and(|sae| sae.hook_name() == Some(&self.hook_point)) {
            // It was ended when it had just come to its end.
            if self.json {
                return output::json(&json!({ "sae": self.out.to_string() }));
            }
            return output::text(&format!("nothing is left to train: the coder in `{}` is whole", self.out));
        }
        let config = TrainConfig {
            architecture: self.architecture,
            d_sae: self.d_sae,
            k: self.k,
            lr: self.lr,
            batch: self.batch_tokens,
            tokens: self.tokens.or_else(|| self.steps.map(|steps| steps.saturating_mul(self.batch_tokens as u64))),
            epochs: self.epochs,
            seed: self.seed,
            threads: self.threads,
            aux_weight: self.aux_weight,
            checkpoint_every: self.checkpoint_every,
            resume: self.resume,
            ..TrainConfig::default()
        };
        let last = train(&run, hook, &config, &self.out.place()?, invocation)?;
        if self.json {
            return output::json(&json!({
                "sae": self.out.to_string(), "step": last.step, "tokens": last.tokens, "loss": last.loss,
                "explained_variance": last.explained_variance, "l0": last.l0, "dead": last.dead, "lr": last.lr,
                "threshold": last.threshold,
            }));
        }
        output::text(&format!("{}\ncoder in `{}`", figures(&last), self.out))
    }
}

/// Trains with a live line of figures, and gives back the last ones.
pub(crate) fn train(
    run: &Run,
    hook: HookPoint,
    config: &TrainConfig,
    out: &Place,
    invocation: &Invocation,
) -> Result<TrainProgress> {
    interrupt::watch();
    let width = run.hook_point(hook)?.width;
    let tokens = config.tokens.unwrap_or_else(|| run.n_tokens().saturating_mul(u64::from(config.epochs)));
    let bytes = 4 * (2 * width * config.d_sae + width + config.d_sae) as u64;
    output::note(&format!(
        "training {} with {} latents, k {}, on `{hook}`: about {} tokens of {} recorded, {} on disk",
        config.architecture,
        output::count(config.d_sae as u64),
        config.k,
        output::count(tokens),
        output::count(run.n_tokens()),
        output::size(bytes)
    ));
    if run.shuffled().is_none() && run.n_tokens() > config.buffer as u64 {
        output::note(&format!(
            "rows are mixed {} at a time; `polariscope shuffle` gives a run that is mixed as a whole",
            output::count(config.buffer as u64)
        ));
    }
    let bar = progress::steps(tokens.div_ceil(config.batch.max(1) as u64), "training");
    let started = Instant::now();
    let mut first = None;
    let summary = scope::train(run, hook, config, out, &mut |at| {
        // A resumed training has tokens behind it that were not trained on now.
        let before = *first.get_or_insert_with(|| at.tokens.saturating_sub(config.batch as u64));
        let rate = (at.tokens - before) as f64 / started.elapsed().as_secs_f64();
        bar.set_length(at.steps);
        bar.set_position(at.step);
        bar.set_message(format!("{}  {} tokens/s", figures(at), output::count(rate as u64)));
        interrupt::flow()
    })?;
    bar.finish_and_clear();
    match summary.last {
        Some(last) if summary.complete => {
            let seconds = started.elapsed().as_secs_f64();
            output::note(&format!("trained on {} tokens in {seconds:.0} s", output::count(last.tokens)));
            Ok(last)
        }
        _ => Err(Interrupted { resume: Some(invocation.resumed()) }.into()),
    }
}

/// The live line.
pub(crate) fn figures(at: &TrainProgress) -> String {
    format!(
        "loss {:.3}  explained variance {:.3}  L0 {:.1}  dead {}",
        at.loss,
        at.explained_variance,
        at.l0,
        output::count(at.dead as u64)
    )
}
