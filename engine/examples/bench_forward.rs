//! How fast is a forward pass, and what does recording add? Each number stands beside a limit measured in the same run.
//!
//! `cargo xtask bench` runs it; by hand, `cargo run -p engine --example bench_forward -- CACHE`.
//! One JSON object for each figure on stdout.
#![expect(clippy::print_stdout, reason = "a bench prints")]

mod figures;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use data::corpus::Corpus;
use data::hook_point::{HookPoint, Site};
use engine::gemma::model::{Forward, Model, Precision};
use engine::hook::Hooks;
use engine::record::{Provenance, RecordOptions, describe, record};
use engine::testing::batch;
use engine::weights::Weights;
use fs_err as fs;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use self::figures::{figure, median, memory};

const SEQUENCES: usize = 4;
const LENGTH: usize = 512;
const TOKENS: usize = SEQUENCES * LENGTH;
/// Measurements of each kind, taken in turn so that a noisy moment hits all of them.
const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cached = |cache: String| Path::new(&cache).join("models/gemma-3-270m/gemma-3-270m-q4_k_m.gguf");
    let path = std::env::args().nth(1).map(cached).or_else(engine::testing::cached_model);
    let Some(path) = path.filter(|path| path.exists()) else {
        println!(
            "{}",
            json!({"bench": "forward", "skipped": "the model is not there: polariscope fetch gemma-3-270m"})
        );
        return Ok(());
    };
    engine::device::set_threads(0);
    let weights = Weights::open(&path)?;
    recording(&weights)?;
    let f32 = forward(&weights, Precision::F32)?;
    let bf16 = forward(&weights, Precision::Bf16)?;
    figure("forward.bf16 against f32", bf16, "tokens/s", f32, "f32 in the same run", json!({"at_least": 1.8}));
    Ok(())
}

/// Tokens per second of the bare forward pass.
fn forward(weights: &Weights, precision: Precision) -> Result<f64, Box<dyn std::error::Error>> {
    let model = Model::from_weights(weights, precision)?;
    let batch = batch(model.config().d_vocab, SEQUENCES, LENGTH);
    let products = MatrixProducts::new(&model, precision);
    let points: Vec<HookPoint> =
        (0..model.config().n_layers).map(|layer| HookPoint::block(Site::ResidPost, layer)).collect();
    let (mut alone, mut bare, mut hooked) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let times = [
            seconds(|| products.run()),
            seconds(|| {
                model.forward(&batch, None, &mut Hooks::none(), Forward::default()).expect("the batch is sound");
            }),
            seconds(|| {
                model.forward_with_cache(&batch, &points, Forward::default()).expect("the batch is sound");
            }),
        ];
        // The first round warms up.
        if round > 0 {
            alone.push(times[0]);
            bare.push(times[1]);
            hooked.push(times[2]);
        }
    }
    let rate = |times: &mut Vec<f64>| TOKENS as f64 / median(times);
    let (alone, bare, hooked) = (rate(&mut alone), rate(&mut bare), rate(&mut hooked));
    let (name, limit) = (if precision == Precision::F32 { "f32" } else { "bf16" }, "its matrix products alone");
    let gflop = products.flop_per_token() / 1e9;
    let target = if precision == Precision::F32 { json!({"at_least": 0.85}) } else { Value::Null };
    figure(&format!("forward.{name}"), bare, "tokens/s", alone, limit, target);
    figure(&format!("forward.{name}.hooked"), hooked, "tokens/s", bare, "the bare forward pass", Value::Null);
    println!("{}", json!({"bench": format!("matrix.{name}"), "measured": alone * gflop, "unit": "GFLOP/s"}));
    Ok(bare)
}

/// The time to record every layer's output against the bare forward passes over the same sequences.
fn recording(weights: &Weights) -> Result<(), Box<dyn std::error::Error>> {
    const BATCHES: usize = 4;
    let model = Model::from_weights(weights, Precision::F32)?;
    let batch = batch(model.config().d_vocab, SEQUENCES, LENGTH);
    let folder = scratch()?;
    let corpus_path = folder.join("corpus.jsonl");
    let lines: Vec<String> =
        (0..BATCHES).flat_map(|_| batch.ids.chunks(LENGTH).map(|ids| format!("{{\"tokens\": {ids:?}}}"))).collect();
    fs::write(&corpus_path, lines.join("\n"))?;
    let corpus = Corpus::open(&[corpus_path.display().to_string()], false)?;
    let points = HookPoint::parse_list("blocks.*.hook_resid_post", &model.shape())?;
    let described = describe("bench", weights, Precision::F32)?;
    let (mut bare, mut recorded) = (Vec::new(), Vec::new());
    for round in 0..4 {
        let forward = seconds(|| {
            for _ in 0..BATCHES {
                model.forward(&batch, None, &mut Hooks::none(), Forward::default()).expect("the batch is sound");
            }
        });
        let out = folder.join(format!("run-{round}"));
        let options = RecordOptions::new(points.clone());
        let start = Instant::now();
        record(&model, described.clone(), None, &corpus, &out, &options, Provenance::default(), false, &mut |_| {
            ControlFlow::Continue(())
        })?;
        let record = start.elapsed().as_secs_f64();
        fs::remove_dir_all(&out)?;
        if round > 0 {
            bare.push(forward);
            recorded.push(record);
        }
    }
    fs::remove_dir_all(&folder)?;
    let (bare, recorded) = (median(&mut bare), median(&mut recorded));
    figure("record", recorded, "s", bare, "the bare forward passes", json!({"at_most": 1.05}));
    if let Some(peak) = memory("VmHWM:") {
        println!(
            "{}",
            json!({"bench": "record.peak_memory", "measured": peak as f64 / 1e9, "unit": "GB", "at_most": 3.0})
        );
    }
    Ok(())
}

/// The matrix products of a forward pass, and nothing else.
struct MatrixProducts {
    /// Inputs and weights, `[TOKENS, in]` and `[out, in]`.
    pairs: Vec<(Tensor, Tensor)>,
}

impl MatrixProducts {
    fn new(model: &Model, precision: Precision) -> Self {
        let kind = if precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float };
        let config = model.config();
        let mut pairs = Vec::new();
        for layer in &config.layers {
            let (heads, kv) = (config.n_heads * layer.d_head, layer.n_kv_heads * layer.d_head);
            let (d, m) = (config.d_model, layer.d_mlp);
            for (input, output) in [(d, heads), (d, kv), (d, kv), (heads, d), (d, m), (d, m), (m, d)] {
                let random = |rows: usize, columns: usize| {
                    Tensor::randn([rows as i64, columns as i64], (Kind::Float, Device::Cpu)).to_kind(kind)
                };
                pairs.push((random(TOKENS, input), random(output, input)));
            }
        }
        Self { pairs }
    }

    fn run(&self) {
        for (x, weight) in &self.pairs {
            let _product = std::hint::black_box(x.linear::<&Tensor>(weight, None));
        }
    }

    fn flop_per_token(&self) -> f64 {
        self.pairs.iter().map(|(_, weight)| 2.0 * weight.numel() as f64).sum()
    }
}

fn scratch() -> std::io::Result<PathBuf> {
    let folder = Path::new("target/bench").join(std::process::id().to_string());
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}
