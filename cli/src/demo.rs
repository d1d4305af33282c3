//! `polariscope demo`: the whole way on the real Gemma 3 270M, in minutes; or offline on the mini model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use data::corpus::Corpus;
use data::features::FeatureTable;
use data::{HookPoint, Run, Site};
use engine::gemma::model::Model;
use engine::record::RecordOptions;
use engine::weights::Weights;
use fs_err as fs;
use scope::{Architecture, EncodeOptions, TrainConfig};
use serde_json::json;
use viewer::{ShotOptions, ViewOptions};

use crate::compute::Compute;
use crate::invocation::Invocation;
use crate::passages::{self, Pick};
use crate::record::Job;
use crate::{catalog, encode, fetch, output, train, view};

/// What the demo does with a model.
#[derive(Debug)]
struct Plan {
    model: &'static str,
    /// The text by its name; without one, the words of this repository.
    text: Option<&'static str>,
    /// What the text is, for a person.
    over: &'static str,
    /// The layer in the middle, on which a coder is trained.
    layer: usize,
    /// Size of the coder, and how many of its latents are on at a time.
    d_sae: usize,
    k: usize,
    /// Name of the coder and of its feature table.
    coder: &'static str,
}

const PLANS: [Plan; 2] = [
    Plan {
        model: "gemma-3-270m",
        text: Some("lee-background"),
        over: "news",
        layer: 9,
        d_sae: 4096,
        k: 32,
        coder: "resid-9",
    },
    Plan {
        model: catalog::MINI,
        text: None,
        over: "the words of this repository",
        layer: 4,
        d_sae: 2048,
        k: 12,
        coder: "resid-4",
    },
];

/// What the mini model reads, below the root of the repository: documents, then sources with their comments.
const OWN_WORDS: [&str; 3] = ["README.md", "data/mini/README.md", "*/src/**/*.rs"];

/// Tokens that are recorded, unless something else is asked for: half a minute to a minute of computing on two cores.
const TOKENS: u64 = 32_000;

/// Small shards, so that an interruption costs little.
const SHARD_TOKENS: u64 = 8_192;

/// Batches that the coder is trained on; more make the explained variance better, and the demo longer.
const BATCH: usize = 2048;
const STEPS: u64 = 400;
/// Higher than the default, which is meant for trainings that are a hundred times as long.
const LEARNING_RATE: f64 = 1e-3;

/// Features that are printed.
const FEATURES: usize = 10;

/// Records a model (the real Gemma 3 270M on news), trains a coder, prints features, opens the viewer
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  polariscope demo --no-window\n  \
                        polariscope demo --model mini --out runs/mini\n\n\
                        The mini model lies in the repository, and its demo needs no download.\n\
                        What an earlier demo has finished is used again; --fresh begins from the start.")]
pub(crate) struct Demo {
    /// The model to look into
    #[arg(long, value_name = "MODEL", default_value = PLANS[0].model, value_parser = PLANS.each_ref().map(|plan| plan.model))]
    model: String,

    /// Draw the viewer into `viewer.png` instead of opening a window
    #[arg(long)]
    no_window: bool,

    /// The run directory to write
    #[arg(long, value_name = "RUN", default_value = "runs/demo")]
    out: PathBuf,

    /// Tokens to record
    #[arg(long, value_name = "N", default_value_t = TOKENS)]
    tokens: u64,

    /// Remove what an earlier demo left, and begin from the start
    #[arg(long)]
    fresh: bool,

    /// Threads to compute with; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Print each feature as one JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

impl Plan {
    /// The model, and the files or patterns of the text.
    fn bring(&self) -> Result<(PathBuf, Vec<String>)> {
        let shown = |path: &Path| path.to_string_lossy().into_owned();
        if let Some(text) = self.text {
            return Ok((fetch::fetch(self.model)?, vec![shown(&fetch::fetch(text)?)]));
        }
        let model = catalog::named(self.model)?;
        let root = model.ancestors().nth(2).context("the mini model lies two folders below the root of a checkout")?;
        let text = OWN_WORDS.iter().map(|pattern| shown(&root.join(pattern))).collect();
        Ok((model, text))
    }
}

impl Demo {
    pub(crate) fn run(self, invocation: &Invocation) -> Result<()> {
        let started = Instant::now();
        if self.fresh && self.out.exists() {
            remove(&self.out)?;
        }
        let plan = PLANS.iter().find(|plan| plan.model == self.model).context("clap lets no other model through")?;
        let (model, text) = plan.bring()?;
        let run = self.record(plan, &model, &text, invocation)?;
        let sae = run.sae_dir(plan.coder)?;
        self.train(plan, &run, &sae, invocation)?;
        let table = self.encode(plan, &run, &sae, &model)?;
        let picks = passages::interesting(&run, &table, FEATURES)?;
        self.print(&picks, &run.vocab()?.unwrap_or_default())?;
        output::note(&format!("done in {:.0} s", started.elapsed().as_secs_f64()));
        self.look(plan, picks.first())
    }

    /// Records every layer, unless that has been done.
    fn record(&self, plan: &Plan, model: &Path, text: &[String], invocation: &Invocation) -> Result<Run> {
        let begun = self.out.join("manifest.json").is_file();
        if begun {
            let run = Run::open(&self.out)?;
            if run.manifest().model.id != plan.model {
                bail!(
                    "`{}` is a run of another model\nhint: give the demo a folder of its own with --out",
                    self.out.display()
                );
            }
            if run.manifest().complete {
                stage("record", &format!("{} tokens are recorded already", output::count(run.n_tokens())));
                return Ok(run);
            }
        }
        let weights = Weights::open(model)?;
        let n_layers = weights.config().n_layers;
        stage("record", &format!("what each of {n_layers} layers hands on, over {}", plan.over));
        let points = (0..n_layers).map(|layer| HookPoint::block(Site::ResidPost, layer)).collect();
        let options =
            RecordOptions { max_tokens: Some(self.tokens), shard_tokens: SHARD_TOKENS, ..RecordOptions::new(points) };
        let corpus = Corpus::open(text, true)?;
        let job = Job {
            id: plan.model,
            weights,
            corpus,
            options,
            out: self.out.as_path().into(),
            resume: begun,
            broken: None,
        };
        job.run(Compute { threads: self.threads, ..Compute::default() }, invocation)?;
        Ok(Run::open(&self.out)?)
    }

    /// Trains a coder on the layer in the middle, unless that has been done.
    fn train(&self, plan: &Plan, run: &Run, sae: &Path, invocation: &Invocation) -> Result<()> {
        if sae.join("cfg.json").is_file() {
            stage("train", "a coder is there already");
            return Ok(());
        }
        stage("train", &format!("a BatchTopK of {} latents on layer {}", plan.d_sae, plan.layer));
        let config = TrainConfig {
            architecture: Architecture::BatchTopK,
            d_sae: plan.d_sae,
            k: plan.k,
            lr: Some(LEARNING_RATE),
            batch: BATCH,
            tokens: Some(STEPS * BATCH as u64),
            threads: self.threads,
            // Goes on with what an interrupted demo left; without that it begins.
            resume: true,
            ..TrainConfig::default()
        };
        let wiring = HookPoint::block(Site::ResidPost, plan.layer).into();
        if let Some(last) = train::train(run, &wiring, &config, &sae.into(), invocation)? {
            output::note(&train::figures(&last));
        }
        Ok(())
    }

    /// Encodes, unless that has been done.
    fn encode(&self, plan: &Plan, run: &Run, sae: &Path, model: &Path) -> Result<FeatureTable> {
        if run.feature_tables()?.iter().any(|name| name == plan.coder) {
            stage("encode", "its features are there already");
        } else {
            stage("encode", "where each feature fires, and which words it raises");
            let model: Model = encode::load(model, self.threads)?;
            let options = EncodeOptions { threads: self.threads, ..EncodeOptions::default() };
            output::note(&encode::words(&encode::encode(run, sae, Some(&model), &options)?));
        }
        Ok(run.feature_table(plan.coder)?)
    }

    fn print(&self, picks: &[Pick], vocab: &[String]) -> Result<()> {
        if self.json {
            for pick in picks {
                output::json(&json!({
                    "feature": pick.feature, "frac_nonzero": pick.frac_nonzero, "mean_act": pick.mean_act,
                    "max_act": pick.max_act, "words": pick.words, "before": pick.passage.before, "peak": pick.passage.peak,
                    "after": pick.passage.after, "raises": raised(pick, vocab),
                }))?;
            }
            return Ok(());
        }
        let heading = format!("\n{} features, chosen so: {}.\n", picks.len(), passages::CRITERION);
        let words: Vec<String> = picks.iter().map(|pick| words(pick, vocab)).collect();
        let text = heading + &words.concat();
        output::text(&text)
    }

    /// Opens the window, or draws it where there is none.
    fn look(&self, plan: &Plan, pick: Option<&Pick>) -> Result<()> {
        let link = pick.map(|pick| view::feature_link(&self.out, plan.coder, pick.feature));
        if !self.no_window && view::has_display() {
            stage("view", "the window; close it to end");
            return Ok(viewer::open(Some(self.out.clone()), ViewOptions { link, ..ViewOptions::default() })?);
        }
        let options = ShotOptions { link, ..ShotOptions::new(self.out.join("viewer.png")) };
        match viewer::shot(&self.out, &options) {
            Ok(()) => stage("view", &format!("a picture of the viewer is in `{}`", options.out.display())),
            // Everything else has worked, and the error says what to install.
            Err(err @ viewer::Error::NoAdapter) => output::note(&format!("no picture: {err}")),
            Err(err) => return Err(err.into()),
        }
        Ok(())
    }
}

/// A feature for a person.
fn words(pick: &Pick, vocab: &[String]) -> String {
    let Pick { feature, frac_nonzero, mean_act, max_act, words, passage, .. } = pick;
    let raised = raised(pick, vocab);
    let raises = if raised.is_empty() { String::new() } else { format!("  raises {}\n", raised.join(", ")) };
    format!(
        "\nfeature {feature}: on {:.2} % of tokens, mean {mean_act:.2}, most {max_act:.2}; peaks on {}\n  \
         … {} »{}«{} …\n{raises}",
        frac_nonzero * 100.0,
        words.join(", "),
        passage.before.trim(),
        passage.peak.trim(),
        passage.after.trim_end(),
    )
}

/// The five tokens that a feature raises most.
fn raised(pick: &Pick, vocab: &[String]) -> Vec<String> {
    let texts = pick.top_logits.iter().take(5).filter_map(|&(id, _)| vocab.get(id as usize));
    texts.map(|text| format!("“{}”", passages::readable(std::iter::once(text.as_str())))).collect()
}

fn stage(name: &str, what: &str) {
    output::note(&format!("── {name}: {what}"));
}

/// Removes a run directory, and nothing else.
fn remove(dir: &Path) -> Result<()> {
    if !dir.join("manifest.json").is_file() {
        bail!(
            "`{}` is no run, so it is not removed\nhint: give the demo a folder of its own with --out",
            dir.display()
        );
    }
    Ok(fs::remove_dir_all(dir)?)
}
