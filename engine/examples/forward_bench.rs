//! How fast is a forward pass, and what does recording add? Each number stands beside a limit measured in the same run.
//!
//! `cargo run -p engine --example forward_bench -- [MODEL]`; without MODEL, the Gemma 3 270M in the cache.
#![expect(clippy::print_stdout, reason = "a bench prints")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use data::corpus::Corpus;
use data::hook_point::{HookPoint, Site};
use engine::gemma::model::{Batch, Forward, Model, Precision};
use engine::hook::Hooks;
use engine::record::{Provenance, RecordOptions, describe, record};
use engine::weights::Weights;
use fs_err as fs;
use tch::{Device, Kind, Tensor};

const SEQUENCES: usize = 4;
const LENGTH: usize = 512;
const TOKENS: usize = SEQUENCES * LENGTH;
/// Measurements of each kind, taken in turn so that a noisy moment hits all of them.
const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(path) = std::env::args().nth(1).map(PathBuf::from).or_else(engine::testing::cached_model) else {
        println!("forward_bench: left out, since the model is not in the cache");
        return Ok(());
    };
    let threads = engine::device::set_threads(0);
    println!("forward, {SEQUENCES} x {LENGTH} tokens, no unembedding, {threads} threads");
    let weights = Weights::open(&path)?;
    let f32 = forward(&weights, Precision::F32)?;
    let bf16 = forward(&weights, Precision::Bf16)?;
    println!("  bf16 / f32                    {:8.2} times   (target 1.8)", bf16 / f32);
    recording(&weights)
}

/// Tokens per second of the bare forward pass.
fn forward(weights: &Weights, precision: Precision) -> Result<f64, Box<dyn std::error::Error>> {
    let model = Model::from_weights(weights, precision)?;
    let batch = batch(&model);
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
    println!(
        "  {precision:?}: matrix products alone {alone:8.0} tokens/s  ({:.0} GFLOP/s)",
        products.flop_per_token() * alone / 1e9
    );
    println!(
        "  {precision:?}: forward               {bare:8.0} tokens/s  ({:.0} % of the products; target 85 in f32)",
        100.0 * bare / alone
    );
    println!("  {precision:?}: forward, hooks read   {hooked:8.0} tokens/s  (every layer's output kept)");
    Ok(bare)
}

/// The time to record every layer's output against the bare forward passes over the same sequences.
fn recording(weights: &Weights) -> Result<(), Box<dyn std::error::Error>> {
    const BATCHES: usize = 4;
    let model = Model::from_weights(weights, Precision::F32)?;
    let batch = batch(&model);
    let folder = scratch()?;
    let corpus_path = folder.join("corpus.jsonl");
    let lines: Vec<String> =
        (0..BATCHES).flat_map(|_| batch.ids.chunks(LENGTH).map(|ids| format!("{{\"tokens\": {ids:?}}}"))).collect();
    fs::write(&corpus_path, lines.join("\n"))?;
    let corpus = Corpus::open(&[corpus_path.display().to_string()], false)?;
    let points = HookPoint::parse_list("blocks.*.hook_resid_post", model.config().n_layers)?;
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
    println!("record, {} tokens, {} layers, f32", BATCHES * TOKENS, points.len());
    println!("  forward alone                 {bare:8.2} s");
    println!("  record                        {recorded:8.2} s  ({:.3} times; target 1.05)", recorded / bare);
    if let Some(peak) = peak_memory() {
        println!(
            "  peak memory of this process   {:8.2} GB (target 3; a bf16 model was loaded before)",
            peak as f64 / 1e9
        );
    }
    Ok(())
}

fn batch(model: &Model) -> Batch {
    let mut batch = Batch::default();
    for sequence in 0..SEQUENCES {
        let id = |i: usize| ((sequence * LENGTH + i) * 7919 % (model.config().d_vocab - 1000)) as u32 + 500;
        batch.push(&(0..LENGTH).map(id).collect::<Vec<_>>());
    }
    batch
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

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The largest resident size so far, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
