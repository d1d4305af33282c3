//! What does a model of a known shape cost where it computes: memory against the plan, passes, recording, generation?
//!
//! The weights are random, so that shapes can be measured whose checkpoints are not at hand, on any device:
//! `bench_device gemma-4-31b --device cuda --dtype bf16 --quantize int4`. Alone it takes the shape of the 270M on the CPU.
//! One JSON object for each figure on stdout.
#![expect(clippy::print_stdout, reason = "a bench prints")]

mod figures;

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use data::corpus::Corpus;
use data::hook_point::HookPoint;
use engine::config::{Config, Preset};
use engine::device::Device;
use engine::gemma::model::{Forward, LoadOptions, Model, Precision};
use engine::generate::{Generate, Sampling};
use engine::hook::Hooks;
use engine::plan::{MemoryPlan, Workload};
use engine::record::{Provenance, RecordOptions, describe, record};
use engine::testing::batch;
use engine::weights::Weights;
use fs_err as fs;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use self::figures::{figure, median, memory};

const SHAPE: &str = "gemma-3-270m";
const LENGTH: usize = 512;
/// Tokens that go through the network at once.
const BATCH: usize = 2048;
const BATCHES: usize = 8;
const GENERATED: usize = 64;
/// Measurements of each kind, in turn.
const ROUNDS: usize = 5;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let (preset, options) = arguments(std::env::args().skip(1))?;
    engine::device::set_threads(0);
    options.device.open()?;
    let config = Preset::find(&preset).ok_or("no such shape: `polariscope models` lists them")?.config();
    let before = options.device.free_memory();
    let weights = random(&config, options)?;
    let model = Model::from_weights(&weights, options)?;
    let name = |what: &str| format!("device.{preset}.{what}");
    let work = Workload { sequences: 1, context: LENGTH + GENERATED, batch_tokens: BATCH };
    let plan = MemoryPlan::of(&config, &options, &work);
    println!("{}", json!({"bench": name("planned"), "measured": plan.on_device() as f64 / 1e9, "unit": "GB"}));

    let batch = batch(config.d_vocab, BATCH / LENGTH, LENGTH);
    let products = MatrixProducts::new(&config, options);
    let (mut alone, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let times = [
            seconds(options.device, || products.run()),
            seconds(options.device, || {
                model.forward(&batch, None, &mut Hooks::none(), Forward::default()).expect("the batch is sound");
            }),
        ];
        // The first round warms up.
        if round > 0 {
            alone.push(times[0]);
            bare.push(times[1]);
        }
    }
    drop(products);
    let rate = |times: &mut Vec<f64>| BATCH as f64 / median(times);
    let bare = rate(&mut bare);
    figure(&name("forward"), bare, "tokens/s", rate(&mut alone), "its matrix products in the same dtype", Value::Null);
    recording(&name("record"), &weights, &model)?;
    generation(&name("generate"), &model)?;
    if let (Some(before), Some(after)) = (before, options.device.free_memory()) {
        let used = before.saturating_sub(after) as f64 / 1e9;
        println!("{}", json!({"bench": name("used"), "measured": used, "unit": "GB"}));
    }
    if let Some(peak) = memory("VmHWM:") {
        println!("{}", json!({"bench": name("main memory"), "measured": peak as f64 / 1e9, "unit": "GB"}));
    }
    Ok(())
}

/// The shape, and how it is loaded. Arguments that are none of these (the cache folder) are for other benches.
fn arguments(arguments: impl Iterator<Item = String>) -> Result<(String, LoadOptions)> {
    let (mut preset, mut options) = (SHAPE.to_owned(), LoadOptions::default());
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("`{argument}` needs a value"));
        match argument.as_str() {
            "--device" => options.device = value()?.parse()?,
            "--quantize" => options.quantize = Some(value()?.parse()?),
            "--dtype" => options.precision = if value()? == "bf16" { Precision::Bf16 } else { Precision::F32 },
            _ if Preset::find(&argument).is_some() => preset = argument,
            _ => {}
        }
    }
    Ok((preset, options))
}

/// Weights of the right shapes. The rows of linear maps that will be packed are all the same, and are held once: a
/// model of which only the packed form fits the device can be made on it.
fn random(config: &Config, options: LoadOptions) -> Result<Weights> {
    let place =
        (if options.precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float }, options.device.into());
    let tensors = config.tensors().into_iter().map(|spec| {
        let shape: Vec<i64> = spec.shape.iter().map(|&dim| dim as i64).collect();
        let is_map = shape.len() > 1 && !spec.name.contains("embed_tokens");
        let draw = |shape: &[i64]| Tensor::randn(shape, place) * 0.02;
        let drawn = match (is_map && options.quantize.is_some(), shape.as_slice()) {
            (true, [.., d_in]) => draw(&[*d_in]).expand(&shape, false),
            (_, shape) => draw(shape),
        };
        (spec.name, drawn)
    });
    Ok(Weights::in_memory(config.clone(), tensors)?)
}

/// Recording the output of every layer, against the bare passes over the same tokens.
fn recording(name: &str, weights: &Weights, model: &Model) -> Result<()> {
    let folder = scratch()?;
    let path = folder.join("corpus.jsonl");
    let batch = batch(model.config().d_vocab, BATCH / LENGTH, LENGTH);
    let line = |ids: &[u32]| format!("{{\"tokens\": {ids:?}}}");
    let lines: Vec<String> = (0..BATCHES).flat_map(|_| batch.ids.chunks(LENGTH).map(line)).collect();
    fs::write(&path, lines.join("\n"))?;
    let corpus = Corpus::open(&[path.display().to_string()], false)?;
    let options = RecordOptions::new(HookPoint::parse_list("blocks.*.hook_resid_post", &model.shape())?);
    let described = describe("bench", weights, model.precision())?;
    let (mut bare, mut recorded) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let device = model.options().device;
        let forward = seconds(device, || {
            for _ in 0..BATCHES {
                model.forward(&batch, None, &mut Hooks::none(), Forward::default()).expect("the batch is sound");
            }
        });
        let out = folder.join(format!("run-{round}"));
        let start = Instant::now();
        record(model, described.clone(), None, &corpus, &out, &options, Provenance::default(), false, &mut |_| {
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
    let rate = |times: &mut Vec<f64>| (BATCHES * BATCH) as f64 / median(times);
    let (bare, recorded) = (rate(&mut bare), rate(&mut recorded));
    figure(name, recorded, "tokens/s", bare, "the bare passes", Value::Null);
    let row = model.config().d_model * if model.precision() == Precision::Bf16 { 2 } else { 4 };
    let bytes = row * model.config().n_layers * BATCHES * BATCH;
    let written = (row * model.config().n_layers) as f64 * recorded / 1e9;
    let plain = plain_write(bytes)?;
    figure(&format!("{name}.written"), written, "GB/s", plain, "plain files of as many bytes, fsynced", Value::Null);
    Ok(())
}

/// Bytes of a recording in files of a layer and a shard's size, one after the other, each fsynced: GB/s.
fn plain_write(bytes: usize) -> Result<f64> {
    const FILE: usize = 64 << 20;
    let folder = scratch()?;
    let chunk = vec![1_u8; FILE];
    let start = Instant::now();
    for number in 0..bytes.div_ceil(FILE) {
        let mut file = fs::File::create(folder.join(number.to_string()))?;
        file.write_all(&chunk)?;
        file.sync_all()?;
    }
    let took = start.elapsed().as_secs_f64();
    fs::remove_dir_all(&folder)?;
    Ok((bytes.div_ceil(FILE) * FILE) as f64 / 1e9 / took)
}

/// Tokens one after the other, each with a pass of its own over the keys and values so far.
fn generation(name: &str, model: &Model) -> Result<()> {
    let prompt = batch(model.config().d_vocab, 1, LENGTH).ids;
    let options = Generate { max_tokens: GENERATED, sampling: Sampling::GREEDY, stop: Vec::new() };
    let mut first = None;
    let mut last = Instant::now();
    model.generate(&prompt, &options, &mut Hooks::none(), &mut |_| {
        last = Instant::now();
        first.get_or_insert(last);
        ControlFlow::Continue(())
    })?;
    let took = first.map_or(f64::NAN, |first| last.duration_since(first).as_secs_f64());
    let rate = (GENERATED - 1) as f64 / took;
    println!("{}", json!({"bench": name, "measured": rate, "unit": "tokens/s"}));
    Ok(())
}

/// The matrix products of the layers, and nothing else; of a model with experts, of those that a token takes.
struct MatrixProducts {
    /// Outputs of each product, by its inputs; held once for each shape.
    pairs: Vec<(Tensor, Tensor)>,
    counts: Vec<usize>,
}

impl MatrixProducts {
    fn new(config: &Config, options: LoadOptions) -> Self {
        let place =
            (if options.precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float }, options.device.into());
        let mut shapes: Vec<((usize, usize), usize)> = Vec::new();
        let mut add = |shape: (usize, usize)| match shapes.iter_mut().find(|(known, _)| *known == shape) {
            Some((_, count)) => *count += 1,
            None => shapes.push((shape, 1)),
        };
        for layer in &config.layers {
            let (heads, kv, d, m) =
                (config.n_heads * layer.d_head, layer.n_kv_heads * layer.d_head, config.d_model, layer.d_mlp);
            let own = if layer.kv_source.is_none() { 1 + usize::from(!layer.value_is_key) } else { 0 };
            [(d, heads), (heads, d), (d, m), (d, m), (m, d)].into_iter().for_each(&mut add);
            (0..own).for_each(|_| add((d, kv)));
            for _ in 0..config.moe.map_or(0, |moe| moe.top_k) {
                let d_expert = config.moe.map_or(0, |moe| moe.d_expert);
                [(d, 2 * d_expert), (d_expert, d)].into_iter().for_each(&mut add);
            }
        }
        let random = |rows: usize, columns: usize| Tensor::randn([rows as i64, columns as i64], place);
        let pairs = shapes.iter().map(|&((d_in, d_out), _)| (random(BATCH, d_in), random(d_out, d_in))).collect();
        Self { pairs, counts: shapes.into_iter().map(|(_, count)| count).collect() }
    }

    fn run(&self) {
        for ((x, weight), &count) in self.pairs.iter().zip(&self.counts) {
            for _ in 0..count {
                let _product = std::hint::black_box(x.linear::<&Tensor>(weight, None));
            }
        }
    }
}

fn scratch() -> std::io::Result<PathBuf> {
    let folder = Path::new("target/bench").join(std::process::id().to_string());
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Until the device has done it.
fn seconds(device: Device, work: impl FnOnce()) -> f64 {
    wait_for(device);
    let start = Instant::now();
    work();
    wait_for(device);
    start.elapsed().as_secs_f64()
}

fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}
