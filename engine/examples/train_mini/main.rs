//! How was the model in `data/mini` trained?
//!
//! `cargo xtask mini` brings the texts and runs this; by hand:
//! `cargo run -p engine --example train_mini -- TEXTS WORK OUT [--steps N] [--threads N] [--precision bf16|f32]`.
//! TEXTS holds the unpacked packages, WORK the state of the training (a second call goes on with it), OUT the model.
//! The same steps, seed and machine give the same weights; a training that was begun with other steps or in another
//! precision is not gone on with. Read [`recipe`] first, then [`step`].
#![expect(clippy::print_stderr, reason = "this program talks to a person at a terminal")]

mod checkpoint;
mod ngram;
mod optimizer;
mod parameters;
mod recipe;
mod step;
mod texts;
mod vocabulary;
mod windows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use engine::config::Config;
use engine::gemma::model::{Model, Precision};
use engine::hook::Hooks;
use engine::tokenizer::Tokenizer;
use engine::weights::Weights;
use fs_err as fs;
use rayon::prelude::*;
use serde_json::{Value, json};

use checkpoint::{Point, Progress};
use ngram::NGram;
use optimizer::Optimizer;
use parameters::Parameter;
use step::{Lesson, Load};
use windows::{Order, Window};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "usage: train_mini TEXTS WORK OUT [--steps N] [--threads N] [--precision bf16|f32]";

/// Steps between two rows of the loss curve, between two measurements on held-out text, between two saved states.
const ROW: usize = 25;
const MEASURE: usize = 100;
const SAVE: usize = 50;
/// Of the held-out windows, one in so many is measured along the way; at the end all are.
const MEASURED: usize = 20;
/// Windows that are evaluated together.
const EVALUATED: usize = 16;
/// Orders of the n-gram models that the result is held against.
const ORDERS: [usize; 4] = [1, 2, 3, 4];

struct Arguments {
    texts: PathBuf,
    work: PathBuf,
    out: PathBuf,
    steps: usize,
    threads: usize,
    precision: Precision,
}

impl Arguments {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self {
            texts: PathBuf::new(),
            work: PathBuf::new(),
            out: PathBuf::new(),
            steps: recipe::STEPS,
            threads: recipe::PARTS,
            precision: Precision::Bf16,
        };
        let mut places = Vec::new();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("`{arg}` needs a value\n{USAGE}"));
            match arg.as_str() {
                "--steps" => parsed.steps = value()?.parse()?,
                "--threads" => parsed.threads = value()?.parse()?,
                "--precision" => {
                    parsed.precision = match value()?.as_str() {
                        "bf16" => Precision::Bf16,
                        "f32" => Precision::F32,
                        other => return Err(format!("expected `bf16` or `f32`, found `{other}`").into()),
                    }
                }
                _ if arg.starts_with("--") => return Err(format!("no option `{arg}`\n{USAGE}").into()),
                _ => places.push(PathBuf::from(arg)),
            }
        }
        [parsed.texts, parsed.work, parsed.out] = places.try_into().map_err(|_not_three| USAGE)?;
        Ok(parsed)
    }
}

fn main() -> ExitCode {
    match train() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err}");
            ExitCode::FAILURE
        }
    }
}

fn train() -> Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    // Threads compute parts of a step, and none of them is split further.
    engine::device::set_threads(1);
    fs::create_dir_all(&arguments.work)?;
    let mut training = Training::begin(&arguments)?;
    let corpus = Corpus::read(&arguments.texts, &arguments.work)?;
    let (taught, held_out) = (corpus.taught(), corpus.held_out());
    let tokens = |documents: &[usize]| documents.iter().map(|&d| corpus.tokens[d].len()).sum::<usize>();
    eprintln!("{} tokens to learn from, {} held out", tokens(&taught), tokens(&held_out));

    training.run(&corpus)?;
    checkpoint::export(&arguments.out, &recipe::config(), &training.parameters)?;
    fs::copy(arguments.work.join("tokenizer.json"), arguments.out.join("tokenizer.json"))?;
    let report = report(&corpus, &training.progress, &arguments.out)?;
    checkpoint::write_json(&arguments.out.join("training.json"), &report)?;
    eprintln!("{}", serde_json::to_string_pretty(&report["held_out"])?);
    Ok(())
}

/// The texts as tokens; every document ends with EOS.
struct Corpus {
    documents: Vec<texts::Document>,
    tokens: Vec<Vec<u32>>,
}

impl Corpus {
    /// Reads the texts and cuts them into tokens; the vocabulary is learned unless that has been done.
    fn read(texts: &Path, work: &Path) -> Result<Self> {
        let documents = texts::read(texts)?;
        if !work.join("tokenizer.json").is_file() {
            eprintln!("learning a vocabulary");
            let taught = documents.iter().filter(|document| !document.held_out);
            vocabulary::write(
                &vocabulary::train(taught.map(|document| document.text.as_str()))?,
                &work.join("tokenizer.json"),
            )?;
        }
        let tokenizer = Tokenizer::from_hf_dir(work)?;
        let encode = |document: &texts::Document| {
            let pieces = tokenizer.encode(&document.text, false);
            pieces.iter().map(|piece| piece.id).chain([vocabulary::EOS]).collect()
        };
        let tokens = documents.par_iter().map(encode).collect();
        Ok(Self { documents, tokens })
    }

    fn taught(&self) -> Vec<usize> {
        (0..self.documents.len()).filter(|&i| !self.documents[i].held_out).collect()
    }

    fn held_out(&self) -> Vec<usize> {
        (0..self.documents.len()).filter(|&i| self.documents[i].held_out).collect()
    }

    /// The windows of some documents.
    fn windows(&self, documents: &[usize]) -> Vec<Window> {
        let windows = windows::cut(documents.iter().map(|&document| self.tokens[document].len()));
        windows.into_iter().map(|window| Window { document: documents[window.document], ..window }).collect()
    }

    fn lesson(&self, windows: impl Iterator<Item = Window>) -> Lesson {
        let mut lesson = Lesson::default();
        windows.for_each(|window| lesson.push(windows::read(&self.tokens[window.document], window)));
        lesson
    }
}

struct Training<'a> {
    arguments: &'a Arguments,
    config: Config,
    parameters: Vec<Parameter>,
    optimizer: Optimizer,
    progress: Progress,
}

impl<'a> Training<'a> {
    /// From the beginning, or where an earlier call was interrupted.
    fn begin(arguments: &'a Arguments) -> Result<Self> {
        let config = Config::from_hf(&recipe::config())?;
        let mut parameters = parameters::initial(&config, recipe::SEED);
        let mut optimizer = Optimizer::new(&parameters);
        let precision = match arguments.precision {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        };
        let asked = Progress { steps: arguments.steps, precision: precision.to_owned(), ..Progress::default() };
        let progress = checkpoint::resume(&arguments.work, asked, &mut parameters, &mut optimizer)?;
        Ok(Self { arguments, config, parameters, optimizer, progress })
    }

    fn run(&mut self, corpus: &Corpus) -> Result<()> {
        let windows = corpus.windows(&corpus.taught());
        let measured = corpus.windows(&corpus.held_out()).into_iter().step_by(MEASURED).collect::<Vec<_>>();
        let measured: Vec<Lesson> =
            measured.chunks(EVALUATED).map(|chunk| corpus.lesson(chunk.iter().copied())).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.arguments.threads).build()?;
        let mut order = Order::new(recipe::SEED, windows.len());
        let steps = self.arguments.steps;
        let (begun, before) = (Instant::now(), self.progress.seconds);
        let (mut nll, mut balance, mut tokens) = (0.0, 0.0, 0);
        while self.progress.step < steps {
            let step = self.progress.step;
            let nth = step * recipe::SEQUENCES..(step + 1) * recipe::SEQUENCES;
            let chosen: Vec<Window> = nth.map(|nth| windows[order.nth(nth)]).collect();
            let parts = chosen.chunks(recipe::SEQUENCES / recipe::PARTS);
            let parts: Vec<Lesson> = parts.map(|part| corpus.lesson(part.iter().copied())).collect();
            let n: usize = parts.iter().map(|part| part.targets.len()).sum();
            let found = step::gradients(&self.config, &self.parameters, parts, self.arguments.precision, &pool)?;
            let factor = recipe::schedule(step, steps);
            let norm = self.optimizer.step(&mut self.parameters, &found.of, factor, step, recipe::MAX_GRADIENT);
            nll += found.nll * n as f64;
            balance += found.balance * n as f64;
            tokens += n;

            self.progress.step += 1;
            self.progress.seconds = before + begun.elapsed().as_secs_f64();
            let done = self.progress.step == steps;
            if self.progress.step.is_multiple_of(ROW) || done {
                let held_out = (self.progress.step.is_multiple_of(MEASURE) || done).then(|| self.measure(&measured));
                let seen = self.progress.curve.last().map_or(0, |point| point.tokens) + tokens;
                let (loss, unevenness) = (nll / tokens as f64, balance / tokens as f64);
                let point = Point {
                    step: self.progress.step,
                    tokens: seen,
                    loss,
                    balance: unevenness,
                    held_out: held_out.transpose()?,
                };
                eprintln!(
                    "step {} of {steps}: loss {loss:.3}{}, balance {unevenness:.3}, gradient {norm:.2}, {:.0} s, {:.0} tokens/s",
                    point.step,
                    point.held_out.map_or_else(String::new, |nll| format!(", held out {nll:.3}")),
                    self.progress.seconds,
                    seen as f64 / self.progress.seconds,
                );
                self.progress.curve.push(point);
                (nll, balance, tokens) = (0.0, 0.0, 0);
            }
            if self.progress.step.is_multiple_of(SAVE) || done {
                checkpoint::save(&self.arguments.work, &self.parameters, &self.optimizer, &self.progress)?;
            }
        }
        Ok(())
    }

    fn measure(&self, lessons: &[Lesson]) -> Result<f64> {
        let network = step::model(&self.config, &self.parameters, self.arguments.precision)?;
        let (mut sum, mut n) = (0.0, 0);
        for lesson in lessons {
            sum += step::nll(&network, lesson, Hooks::none())?.into_iter().map(f64::from).sum::<f64>();
            n += lesson.targets.len();
        }
        Ok(sum / n as f64)
    }
}

/// What the exported model does with text that it has not seen, beside what counting does with it.
fn report(corpus: &Corpus, progress: &Progress, out: &Path) -> Result<Value> {
    let weights = Weights::open(out)?;
    let network = Model::from_weights(&weights, Precision::F32)?;
    let taught = corpus.taught();
    let counted: Vec<NGram> = ORDERS
        .iter()
        .map(|&n| {
            let documents = taught.iter().map(|&document| &corpus.tokens[document][..]);
            NGram::train(n, vocabulary::SIZE, vocabulary::BOS, documents)
        })
        .collect();

    let documents = corpus.held_out();
    // By document: what the model says, and what each of the counted ones does.
    let mut nll: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let load = Load::new(network.config());
    for windows in corpus.windows(&documents).chunks(EVALUATED) {
        let found = step::nll(&network, &corpus.lesson(windows.iter().copied()), load.hooks())?;
        let mut found = found.into_iter().map(f64::from);
        for window in windows {
            nll.entry(window.document).or_insert_with(|| vec![0.0])[0] +=
                found.by_ref().take(window.length).sum::<f64>();
        }
    }
    for (&document, nll) in &mut nll {
        let tokens = &corpus.tokens[document];
        let of = |model: &NGram| (0..tokens.len()).map(|at| model.nll(tokens, at, vocabulary::BOS)).sum::<f64>();
        nll.extend(counted.iter().map(of));
    }
    let mut by_source: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for document in documents {
        by_source.entry("all").or_default().push(document);
        by_source.entry(corpus.documents[document].source).or_default().push(document);
    }
    let mut held_out = serde_json::Map::new();
    for (source, documents) in by_source {
        let tokens: usize = documents.iter().map(|&document| corpus.tokens[document].len()).sum();
        let mut row = serde_json::Map::new();
        row.insert("documents".to_owned(), json!(documents.len()));
        row.insert("tokens".to_owned(), json!(tokens));
        let names = std::iter::once("mini".to_owned()).chain(ORDERS.map(|n| format!("{n}-gram")));
        for (at, name) in names.enumerate() {
            let sum: f64 = documents.iter().map(|document| nll[document][at]).sum();
            row.insert(name, json!(sum / tokens as f64));
        }
        held_out.insert(source.to_owned(), Value::Object(row));
    }
    Ok(json!({
        "steps": progress.step,
        "tokens": progress.curve.last().map_or(0, |point| point.tokens),
        "tokens_in_the_texts": taught.iter().map(|&document| corpus.tokens[document].len()).sum::<usize>(),
        "seed": recipe::SEED,
        "seconds": progress.seconds.round(),
        "held_out": held_out,
        "expert_load": load.shares(),
        "curve": progress.curve,
    }))
}
