//! `polariscope train`: a sparse coder on one hook point of a run, or many from one reading.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use data::{HookPoint, Place, Run};
use indicatif::ProgressBar;
use scope::{Job, Notice, Sites, TrainConfig, TrainProgress, TrainSummary, Wiring};
use serde_json::json;

use crate::evaluate::shown;
use crate::failure::Interrupted;
use crate::invocation::Invocation;
use crate::location::Location;
use crate::progress::Lines;
use crate::sweep::{self, Settings};
use crate::{interrupt, output, progress};

/// Trains a sparse coder on one hook point of a run, or many from one reading
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  polariscope train runs/news --hook-point blocks.9.hook_resid_post --d-sae 4096 --k 32 \
                        --epochs 10 --out runs/news/saes/resid-9\n  \
                        polariscope train runs/news --hook-point blocks.9.mlp.hook_in --hook-point-out \
                        blocks.9.hook_mlp_out --skip --out runs/news/saes/mlp-9\n  \
                        polariscope train runs/news --hook-point 'blocks.*.mlp.hook_in' --hook-point-out \
                        'blocks.*.hook_mlp_out' --per-layer --out runs/news/saes/clt\n  \
                        polariscope train runs/news --sweep sweep.toml --out runs/news/saes\n\n\
                  A sweep file has the same settings with `_` for `-`, and lists where one coder is wanted for each value:\n  \
                        epochs = 10\n  \
                        [[coders]]\n  \
                        hook_point = \"blocks.9.hook_resid_post\"\n  \
                        architecture = [\"topk\", \"jumprelu\"]\n  \
                        k = [16, 32, 64]"
)]
pub(crate) struct Train {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// The folder to write the coder to, or its URL; `RUN/saes/NAME` is where the other commands look. Of a sweep, the folder
    /// in which each coder gets its own
    #[arg(long, value_name = "SAE")]
    out: Location,

    /// A TOML file with the settings of many coders, which are trained from one reading of the run
    #[arg(long, value_name = "FILE", conflicts_with = "Settings", required_unless_present = "hook_point")]
    sweep: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,

    /// Steps between checkpoints: the most that an interruption can cost
    #[arg(long, value_name = "N", default_value_t = scope::train::CHECKPOINT_EVERY)]
    checkpoint_every: u64,

    /// Go on with a training that was interrupted, exactly as if it had not been
    #[arg(long)]
    resume: bool,

    /// Threads to compute with; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Print the last figures as one JSON object on standard output, one a line for each coder of a sweep
    #[arg(long)]
    json: bool,
}

impl Train {
    pub(crate) fn run(self, invocation: &Invocation) -> Result<()> {
        let run = self.run.run()?;
        let config = |config: TrainConfig| TrainConfig {
            threads: self.threads,
            checkpoint_every: self.checkpoint_every,
            resume: self.resume,
            ..config
        };
        if let Some(file) = &self.sweep {
            let jobs = sweep::read(file, &run.manifest().model.shape)?;
            let jobs = jobs.into_iter().map(|(name, wiring, settings)| {
                let out = self.out.join(&name).place()?;
                Ok((name, Job { wiring, config: config(settings), out }))
            });
            return self.sweep(&run, &jobs.collect::<Result<Vec<_>>>()?, invocation);
        }
        let (wiring, settings) = self.settings.coder(&run.manifest().model.shape)?;
        let Some(last) = train(&run, &wiring, &config(settings), &self.out.place()?, invocation)? else {
            if self.json {
                return output::json(&json!({ "sae": self.out.to_string() }));
            }
            return output::text(&format!("nothing is left to train: the coder in `{}` is whole", self.out));
        };
        if self.json {
            return output::json(&last_figures(&self.out.to_string(), &last));
        }
        output::text(&format!("{}\ncoder in `{}`", figures(&last), self.out))
    }

    fn sweep(&self, run: &Run, jobs: &[(String, Job)], invocation: &Invocation) -> Result<()> {
        interrupt::watch();
        let (names, jobs): (Vec<&str>, Vec<Job>) = jobs.iter().map(|(name, job)| (name.as_str(), job.clone())).unzip();
        for (name, job) in names.iter().zip(&jobs) {
            output::note(&format!("{name}: {}", about(run, &job.wiring, &job.config)?));
        }
        mixing(run, &jobs[0].config);
        let steps = jobs.iter().map(|job| steps(run, &job.config)).max().unwrap_or(0);
        let (bar, lines) = progress::steps_of_many(steps, &format!("training {} coders", jobs.len()), &names);
        let started = Instant::now();
        let mut first = None;
        let mut told = vec![Vec::new(); jobs.len()];
        let mut written = Lines::beside(&bar);
        let summaries = scope::sweep(run, &jobs, &mut |all| {
            let due = written.due();
            for ((at, line), (name, told)) in all.iter().zip(&lines).zip(names.iter().zip(&mut told)) {
                let Some(at) = at else { continue };
                line.set_message(figures(at));
                if due {
                    output::note(&line_of(name, at));
                }
                tell(&bar, name, at, told);
            }
            if let Some(at) = all.iter().flatten().max_by_key(|at| at.step) {
                let before = *first.get_or_insert_with(|| at.tokens.saturating_sub(jobs[0].config.batch as u64));
                let rate = (at.tokens - before) as f64 / started.elapsed().as_secs_f64();
                bar.set_position(at.step);
                bar.set_message(format!("{} tokens/s for {} coders", output::count(rate as u64), jobs.len()));
            }
            interrupt::flow()
        })?;
        bar.finish_and_clear();
        for line in &lines {
            line.finish_and_clear();
        }
        let (mut stopped, mut failed) = (false, None);
        for ((name, job), summary) in names.iter().zip(&jobs).zip(summaries) {
            let place = job.out.shown().display();
            match summary {
                Ok(summary) if !summary.complete => stopped = true,
                Ok(TrainSummary { last: Some(last), .. }) if self.json => {
                    output::json(&last_figures(&place.to_string(), &last))?;
                }
                Ok(TrainSummary { last: Some(last), .. }) => output::text(&format!("{name}: {}", figures(&last)))?,
                Ok(_) => output::text(&format!("{name}: whole since before"))?,
                Err(error) => {
                    output::note(&format!("{name} was not trained: {error}"));
                    failed = Some(error);
                }
            }
        }
        if stopped {
            return Err(Interrupted { resume: Some(invocation.resumed()) }.into());
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

fn last_figures(place: &str, last: &TrainProgress) -> serde_json::Value {
    json!({
        "sae": place, "step": last.step, "tokens": last.tokens, "loss": last.loss,
        "sparsity_loss": last.sparsity_loss, "explained_variance": last.explained_variance, "l0": last.l0,
        "dead": last.dead, "lr": last.lr, "threshold": last.threshold,
    })
}

/// Steps that a training will take, about.
fn steps(run: &Run, config: &TrainConfig) -> u64 {
    tokens(run, config).div_ceil(config.batch.max(1) as u64)
}

fn tokens(run: &Run, config: &TrainConfig) -> u64 {
    config.tokens.unwrap_or_else(|| run.n_tokens().saturating_mul(u64::from(config.epochs)))
}

/// What will be trained, and what it costs.
fn about(run: &Run, wiring: &Wiring, config: &TrainConfig) -> Result<String> {
    let Sites { inputs, outputs } = wiring.sites();
    let widths = |hooks: &[HookPoint]| -> Result<Vec<usize>> {
        hooks.iter().map(|&hook| Ok(run.hook_point(hook)?.width)).collect()
    };
    let (d_in, d_out) = (widths(&inputs)?, widths(&outputs)?);
    let values: usize = if wiring.has_groups() {
        let n = inputs.len().max(1);
        let of_group = |at: usize| d_in[at] + d_out[at.min(d_out.len())..].iter().sum::<usize>();
        (0..n).map(|at| of_group(at) * config.d_sae / n).sum()
    } else {
        (d_in.iter().sum::<usize>() + d_out.iter().sum::<usize>()) * config.d_sae
    };
    let bytes = 4 * (values + d_out.iter().sum::<usize>() + config.d_sae) as u64;
    let on = match wiring {
        Wiring::Autoencoder(hook) => format!("on `{hook}`"),
        Wiring::Crosscoder { causal, .. } => {
            let how = if *causal { ", each latent reading one and writing no earlier one" } else { "" };
            format!("between {}{how}", shown(&inputs))
        }
        Wiring::Transcoder { .. } | Wiring::CrossLayer { .. } => {
            format!("from {} to {}", shown(&inputs), shown(&outputs))
        }
    };
    let k = if config.architecture.has_k(config.sparsity_loss) { format!(", k {}", config.k) } else { String::new() };
    Ok(format!(
        "training {} with {} latents{k}, {on}: about {} tokens of {} recorded, {} on disk",
        config.architecture,
        output::count(config.d_sae as u64),
        output::count(tokens(run, config)),
        output::count(run.n_tokens()),
        output::size(bytes)
    ))
}

fn mixing(run: &Run, config: &TrainConfig) {
    if run.shuffled().is_none() && run.n_tokens() > config.buffer as u64 {
        output::note(&format!(
            "rows are mixed {} at a time; `polariscope shuffle` gives a run that is mixed as a whole",
            output::count(config.buffer as u64)
        ));
    }
}

/// Says once of each trouble that there is some.
fn tell(bar: &ProgressBar, name: &str, at: &TrainProgress, told: &mut Vec<Notice>) {
    for notice in &at.notices {
        if !told.iter().any(|known| known.is_like(notice)) {
            bar.suspend(|| output::note(&format!("{name}, step {}: {notice}", at.step)));
            told.push(*notice);
        }
    }
}

/// Trains with a live line of figures, and gives back the last ones; `None` if the coder was whole before.
pub(crate) fn train(
    run: &Run,
    wiring: &Wiring,
    config: &TrainConfig,
    out: &Place,
    invocation: &Invocation,
) -> Result<Option<TrainProgress>> {
    interrupt::watch();
    output::note(&about(run, wiring, config)?);
    mixing(run, config);
    let bar = progress::steps(steps(run, config), "training");
    let started = Instant::now();
    let mut first = None;
    let mut told = Vec::new();
    let mut written = Lines::beside(&bar);
    let summary = scope::train(run, wiring.clone(), config, out, &mut |at| {
        // A resumed training has tokens behind it that were not trained on now.
        let before = *first.get_or_insert_with(|| at.tokens.saturating_sub(config.batch as u64));
        let rate = (at.tokens - before) as f64 / started.elapsed().as_secs_f64();
        bar.set_length(at.steps);
        bar.set_position(at.step);
        bar.set_message(format!("{}  {} tokens/s", figures(at), output::count(rate as u64)));
        tell(&bar, "training", at, &mut told);
        if written.due() {
            output::note(&line_of("training", at));
        }
        interrupt::flow()
    })?;
    bar.finish_and_clear();
    match summary.last {
        Some(last) if summary.complete => {
            let seconds = started.elapsed().as_secs_f64();
            output::note(&format!("trained on {} tokens in {seconds:.0} s", output::count(last.tokens)));
            Ok(Some(last))
        }
        None if summary.complete => Ok(None),
        _ => Err(Interrupted { resume: Some(invocation.resumed()) }.into()),
    }
}

/// A line where nothing is drawn.
fn line_of(name: &str, at: &TrainProgress) -> String {
    format!("{name}, step {} of {}: {}", output::count(at.step), output::count(at.steps), figures(at))
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
