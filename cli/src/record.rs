//! `polariscope record`: the activations of a corpus, into a run directory.

use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use data::corpus::Corpus;
use data::manifest::{HookPointEntry, Manifest, Model as Described, Routing};
use data::{Dtype, HookPoint, Place, Worker};
use engine::device;
use engine::gemma::model::{Model, Precision};
use engine::record::{self, RecordOptions, RecordProgress, Recorded, Shared};
use engine::tokenizer::Tokenizer;
use engine::weights::Weights;
use indicatif::ProgressBar;
use serde_json::json;

use crate::compute::Compute;
use crate::failure::Interrupted;
use crate::invocation::Invocation;
use crate::location::Location;
use crate::worker::Share;
use crate::{catalog, interrupt, output, progress};

/// Bytes of text that make a token, roughly, for the estimate before the start.
const BYTES_PER_TOKEN: u64 = 4;

/// Records the activations of a corpus into a run directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  polariscope record gemma-3-270m --corpus news.txt --lines --out runs/news\n  \
                        polariscope record gemma-3-270m --corpus books/ --hook-points 'blocks.*.hook_resid_post,blocks.3-5.hook_mlp_out' \
                        --max-tokens 1000000 --out runs/books")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Record {
    /// A folder with `config.json` and safetensors, a `.gguf` file, or a known name
    model: String,

    /// Text files, folders, globs, `.jsonl` with `text` or `tokens`, Parquet with a `text` column, or `-`
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    corpus: Vec<String>,

    /// The run to write: a folder, or `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`
    #[arg(long, value_name = "RUN")]
    out: Location,

    /// Names with `*` for every layer and ranges of layers, separated by commas
    #[arg(long, value_name = "LIST", default_value = "blocks.*.hook_resid_post")]
    hook_points: String,

    /// What `*` in the hook points stands for: layers and ranges, separated by commas [default: all]
    #[arg(long, value_name = "LIST")]
    layers: Option<String>,

    /// Every line of a text file is a document of its own
    #[arg(long)]
    lines: bool,

    /// Longest sequence; longer documents are cut [default: 1024, or what the model allows]
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,

    /// Stop after this many tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,

    /// Tokens that go through the network at once
    #[arg(long, value_name = "N", default_value_t = record::DEFAULT_BATCH_TOKENS)]
    batch_tokens: usize,

    #[command(flatten)]
    compute: Compute,

    /// What is written [default: as computed]
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    store_dtype: Option<Dtype>,

    /// Also compute the logits, and store −ln p of every token
    #[arg(long)]
    nll: bool,

    /// Leave the rows of special tokens out
    #[arg(long)]
    skip_special: bool,

    /// Of a model with experts, also store the logits of all of them; what was chosen is always stored
    #[arg(long)]
    router_logits: bool,

    #[command(flatten)]
    share: Share,

    /// Go on with a recording that was interrupted; a worker (`--shard`) always does
    #[arg(long)]
    resume: bool,

    /// Tokens in a shard: the most that an interruption can cost
    #[arg(long, value_name = "N", default_value_t = record::DEFAULT_SHARD_TOKENS)]
    shard_tokens: u64,

    /// Written into the manifest; recording itself draws no random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Print the finished manifest's summary as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

fn dtype(text: &str) -> Result<Dtype, String> {
    text.parse().map_err(|err: data::Error| err.to_string())
}

impl Record {
    pub(crate) fn run(self, invocation: &Invocation) -> Result<()> {
        let worker = self.share.worker(|name| std::env::var(name).ok())?;
        let path = catalog::resolve(&self.model)?;
        let weights = Weights::open(&path)?;
        let shape = weights.config().shape();
        let list = with_layers(&self.hook_points, self.layers.as_deref());
        let options = RecordOptions {
            context: self.context,
            max_tokens: self.max_tokens,
            batch_tokens: self.batch_tokens,
            store_dtype: self.store_dtype,
            nll: self.nll,
            skip_special: self.skip_special,
            router_logits: self.router_logits,
            shard_tokens: self.shard_tokens,
            seed: self.seed,
            ..RecordOptions::new(HookPoint::parse_list(&list, &shape)?)
        };
        if self.router_logits && shape.n_experts == 0 {
            bail!("`{}` has no experts, so there are no router logits\nhint: leave `--router-logits` out", self.model);
        }
        let corpus = Corpus::open(&self.corpus, self.lines)?;
        let (id, out, resume) = (&self.model, self.out.place()?, self.resume);
        let job = Job { id, weights, corpus, options, out, resume, broken: None };
        match worker {
            Some(worker) => job.run_share(worker, self.compute, invocation, self.json),
            None => summary(&self.out.into_path(), &job.run(self.compute, invocation)?, self.json),
        }
    }
}

/// Says what a complete run holds.
pub(crate) fn summary(out: &Path, manifest: &Manifest, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&json!({
            "run": out, "documents": manifest.counts.documents, "tokens": manifest.counts.tokens_captured,
            "skipped": manifest.counts.tokens_skipped, "hook_points": manifest.hook_points.len(),
            "shards": manifest.shards.len(), "bytes": bytes(manifest),
        }));
    }
    output::text(&format!(
        "recorded {} tokens of {} documents at {} hook points: {} in `{}`",
        output::count(manifest.counts.tokens_captured),
        output::count(manifest.counts.documents),
        manifest.hook_points.len(),
        output::size(bytes(manifest)),
        out.display()
    ))
}

/// A recording with everything that it needs.
pub(crate) struct Job<'a> {
    pub(crate) id: &'a str,
    pub(crate) weights: Weights,
    pub(crate) corpus: Corpus,
    pub(crate) options: RecordOptions,
    pub(crate) out: Place,
    pub(crate) resume: bool,
    /// Shards of a run that are recorded anew; the others stay.
    pub(crate) broken: Option<Vec<usize>>,
}

/// A model that is loaded, and what is said of it.
struct Loaded {
    model: Model,
    described: Described,
    tokenizer: Option<Tokenizer>,
    /// Tokens that the corpus may hold.
    estimate: Option<u64>,
}

impl Job<'_> {
    /// Says what it will cost, records with a bar, and gives back the finished manifest.
    pub(crate) fn run(self, compute: Compute, invocation: &Invocation) -> Result<Manifest> {
        let Loaded { model, described, tokenizer, estimate } = self.load(compute)?;
        let bar = progress::tokens(estimate.unwrap_or(0), "recording");
        let mut meter = Meter { bar: &bar, corpus_bytes: self.corpus.bytes(), max_tokens: self.options.max_tokens };
        let mut show = |progress: &RecordProgress| {
            meter.show(progress);
            interrupt::flow()
        };
        let (tokenizer, corpus, out, options) = (tokenizer.as_ref(), &self.corpus, &self.out, &self.options);
        let recorded = if let Some(broken) = &self.broken {
            record::repair(&model, described, tokenizer, corpus, out, options, broken, &mut show)
        } else {
            let made = invocation.provenance();
            record::record(&model, described, tokenizer, corpus, out, options, made, self.resume, &mut show)
        }?;
        bar.finish_and_clear();
        match recorded {
            Recorded::Complete(manifest) => Ok(*manifest),
            Recorded::Interrupted(progress) => {
                output::note(&format!("{} shards are durable in `{}`", progress.shards, self.out.shown().display()));
                let again = if self.broken.is_some() { invocation.again() } else { invocation.resumed() };
                Err(Interrupted { resume: Some(again) }.into())
            }
        }
    }

    /// Records the share of one worker, and says what it holds.
    fn run_share(self, worker: Worker, compute: Compute, invocation: &Invocation, as_json: bool) -> Result<()> {
        let Loaded { model, described, tokenizer, estimate } = self.load(compute)?;
        let bar = progress::tokens(estimate.unwrap_or(0) / worker.count() as u64, &format!("worker {worker}"));
        // How much of the text is this worker's cannot be told from the text that has been read.
        let mut meter = Meter { bar: &bar, corpus_bytes: None, max_tokens: None };
        let shared = record::record_share(
            &model,
            described,
            tokenizer.as_ref(),
            &self.corpus,
            &self.out,
            &self.options,
            invocation.provenance(),
            worker,
            &mut |progress| {
                meter.show(progress);
                interrupt::flow()
            },
        )?;
        bar.finish_and_clear();
        match shared {
            Shared::Done { planned, shards, tokens } if as_json => output::json(&json!({
                "run": self.out.shown(), "worker": worker.index(), "workers": worker.count(), "shards": shards, "tokens": tokens,
                "shards_expected": planned.shards, "tokens_expected": planned.tokens_expected,
            })),
            Shared::Done { planned, shards, tokens } => output::text(&format!(
                "worker {worker} is done: {} of {} shards, {} tokens in `{}`",
                shards.len(),
                planned.shards,
                output::count(tokens),
                self.out.shown().display()
            )),
            Shared::Complete(manifest) => {
                output::note("the run has been merged already: there is nothing left to record");
                summary(self.out.shown(), &manifest, as_json)
            }
            Shared::Interrupted(progress) => {
                output::note(&format!("{} shards are durable in `{}`", progress.shards, self.out.shown().display()));
                Err(Interrupted { resume: Some(invocation.of_worker(worker)) }.into())
            }
        }
    }

    /// Says what it will cost, and loads the model.
    fn load(&self, compute: Compute) -> Result<Loaded> {
        interrupt::watch();
        let load = compute.open(self.weights.config())?;
        let described = record::describe(self.id, &self.weights, load)?;
        let estimate = estimate(&self.corpus, self.options.max_tokens);
        let routing = record::routing(self.weights.config(), &self.options);
        output::note(&cost(&described, &self.options, routing.as_ref(), load.precision, estimate)?);

        let threads = device::set_threads(compute.threads);
        output::note(&format!("loading `{}` in {}, {threads} threads", self.id, described.dtype));
        // A model without a tokenizer can still be fed token ids; text without one is refused when it comes.
        let tokenizer = match self.weights.tokenizer() {
            Ok(tokenizer) => Some(tokenizer),
            Err(engine::error::Error::NoTokenizer { .. }) => None,
            Err(err) => return Err(err.into()),
        };
        let model = Model::from_weights(&self.weights, load)?;
        Ok(Loaded { model, described, tokenizer, estimate })
    }
}

/// Tokens that the corpus may hold, when its size is known.
fn estimate(corpus: &Corpus, max_tokens: Option<u64>) -> Option<u64> {
    let tokens = corpus.bytes().map(|bytes| bytes.div_ceil(BYTES_PER_TOKEN));
    match (tokens, max_tokens) {
        (Some(tokens), Some(max)) => Some(tokens.min(max)),
        (tokens, max) => tokens.or(max),
    }
}

/// What the recording will take, in words.
fn cost(
    model: &Described,
    options: &RecordOptions,
    routing: Option<&Routing>,
    precision: Precision,
    tokens: Option<u64>,
) -> Result<String> {
    let entry = |&point: &HookPoint| record::hook_point_entry(model, point, options.store_dtype, precision);
    let entries: Vec<HookPointEntry> = options.hook_points.iter().map(entry).collect::<Result<_, _>>()?;
    let row: u64 = entries.iter().map(|entry| (entry.width * entry.dtype.size()) as u64).sum();
    let row = row + routing.map_or(0, |routing| (routing.layers.len() * routing.row_bytes()) as u64);
    let points = match entries.len() {
        1 => format!("`{}`", entries[0].name),
        n => format!("{n} hook points"),
    };
    let points = match routing {
        Some(routing) => format!("{points} and the routing of {} layers", routing.layers.len()),
        None => points,
    };
    Ok(match tokens {
        Some(tokens) => format!(
            "recording {points}: about {} tokens, {} each, {} on disk",
            output::count(tokens),
            output::size(row),
            output::size(row * tokens)
        ),
        None => format!("recording {points}: {} on disk for each token", output::size(row)),
    })
}

/// Turns progress into a bar whose length is corrected by the tokens that the text has really given so far.
struct Meter<'a> {
    bar: &'a ProgressBar,
    corpus_bytes: Option<u64>,
    max_tokens: Option<u64>,
}

impl Meter<'_> {
    fn show(&mut self, progress: &RecordProgress) {
        if self.bar.position() == 0 && progress.resumed_tokens > 0 {
            self.bar.set_position(progress.resumed_tokens);
            self.bar.reset_eta();
        }
        if let Some(bytes) = self.corpus_bytes
            && progress.corpus_bytes > 0
        {
            let total = progress.tokens as f64 * bytes as f64 / progress.corpus_bytes as f64;
            let total = self.max_tokens.map_or(total as u64, |max| max.min(total as u64));
            self.bar.set_length(total.max(progress.tokens));
        }
        self.bar.set_position(progress.tokens);
    }
}

/// `blocks.*.x` with layers `3-5,9` is `blocks.3-5.x,blocks.9.x`.
pub(crate) fn with_layers(list: &str, layers: Option<&str>) -> String {
    let Some(layers) = layers else { return list.to_owned() };
    let names = list.split(',').flat_map(|name| match name.trim().strip_prefix("blocks.*.") {
        Some(site) => layers.split(',').map(|layer| format!("blocks.{}.{site}", layer.trim())).collect(),
        None => vec![name.to_owned()],
    });
    names.collect::<Vec<String>>().join(",")
}

/// Size of all files of the shards.
pub(crate) fn bytes(manifest: &Manifest) -> u64 {
    manifest.shards.iter().flat_map(|shard| shard.files.values()).map(|file| file.bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_replace_the_star() {
        let list = "blocks.*.hook_resid_post,hook_embed,blocks.2.hook_mlp_out";
        assert_eq!(with_layers(list, None), list);
        assert_eq!(
            with_layers(list, Some("3-5, 9")),
            "blocks.3-5.hook_resid_post,blocks.9.hook_resid_post,hook_embed,blocks.2.hook_mlp_out"
        );
    }
}
