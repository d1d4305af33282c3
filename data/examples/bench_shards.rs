//! How fast are shards written and read, against what the disk and the memory of this machine do in the same run?
//!
//! `cargo run -p data --example bench_shards [CACHE]` prints one JSON object a figure. It writes about 1.5 GB into a
//! temporary folder in CACHE, or in the folder for temporary files.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use data::features::{FeatureTableInfo, FeatureTableWriter};
use data::manifest::{Corpus, Counts, Manifest, Model};
use data::{Dtype, HookPoint, HookPointEntry, MixingOptions, MixingReader, ModelShape, Run, RunWriter, TokenColumns};
use fs_err as fs;
use serde_json::json;

/// Like the residual stream of the 270M model.
const WIDTH: usize = 640;
const N_LAYERS: usize = 4;
/// Tokens that a recorder hands over at a time.
const BATCH: usize = 2048;
const N_TOKENS: usize = BATCH * 24;
/// The fastest of so many is reported, of the limit too.
const REPEATS: usize = 5;

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> AnyResult<()> {
    let parent = std::env::args().nth(1).map_or_else(|| "target".into(), std::path::PathBuf::from);
    fs::create_dir_all(&parent)?;
    let folder = tempfile::tempdir_in(&parent)?;
    let bytes = (N_TOKENS * WIDTH * 4 * N_LAYERS) as f64;
    let rows = rows();

    eprintln!("writing {:.2} GB a time", bytes / 1e9);
    let (mut written, mut plain) = (0.0f64, 0.0f64);
    for i in 0..REPEATS {
        let seconds = time(|| write_plain(folder.path(), &rows))?;
        plain = plain.max(bytes / seconds);
        let dir = folder.path().join(format!("run-{i}"));
        let seconds = time(|| write_run(&dir, &rows))?;
        written = written.max(bytes / seconds);
        if i + 1 < REPEATS {
            fs::remove_dir_all(dir)?;
        }
    }
    report("data.write", written, plain, "plain write and fsync of the same bytes", Some(0.8));

    let run = Run::open(folder.path().join(format!("run-{}", REPEATS - 1)))?;
    let hook = run.hook_points()[1].name;
    let bytes = (N_TOKENS * WIDTH * 4) as f64;
    let mut target = vec![0u8; N_TOKENS * WIDTH * 4];
    let (mut copied, mut sequential, mut shuffled) = (0.0f64, 0.0f64, 0.0f64);
    let mut n_rows = 0;
    for _ in 0..REPEATS {
        copied = copied.max(
            bytes
                / time(|| {
                    copy(&rows, &mut target);
                    Ok(())
                })?,
        );
        sequential = sequential.max(bytes / time(|| read_sequential(&run, hook))?);
        // Several epochs: what counts is the rate of a long training, not that of the first filling.
        let options = MixingOptions { buffer_rows: 16_384, epochs: 4, ..MixingOptions::default() };
        let seconds = time(|| {
            n_rows = 0;
            let mut reader = MixingReader::new(&run, hook, options)?;
            while let Some(batch) = reader.next() {
                let batch = batch?;
                n_rows += batch.len();
                reader.recycle(batch.rows);
            }
            Ok(())
        })?;
        shuffled = shuffled.max((n_rows * WIDTH * 4) as f64 / seconds);
    }
    report("data.read_sequential", sequential, copied, "memcpy of the same bytes", None);
    report("data.read_shuffled", shuffled, copied, "memcpy of the same bytes", None);
    println!(
        "{}",
        json!({"bench": "data.read_shuffled_rate", "measured": shuffled / 1e9, "unit": "GB/s", "at_least": 2.0})
    );

    let n = 8_000_000;
    let seconds = time(|| write_features(&run, n))?;
    println!("{}", json!({"bench": "data.features_sorted", "measured": n as f64 / seconds / 1e6, "unit": "M rows/s"}));
    Ok(())
}

fn report(name: &str, measured: f64, limit: f64, limit_is: &str, at_least: Option<f64>) {
    let mut line = json!({
        "bench": name, "measured": measured / 1e9, "unit": "GB/s", "limit": limit / 1e9, "limit_is": limit_is,
    });
    if let Some(at_least) = at_least {
        line["at_least"] = at_least.into();
    }
    println!("{line}");
}

fn time(work: impl FnOnce() -> AnyResult<()>) -> AnyResult<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// `N_TOKENS` rows in batches, with numbers that look like activations.
fn rows() -> Vec<Bytes> {
    let number = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 * 0.01 - 10.0;
    let batch =
        |b: usize| (0..BATCH * WIDTH).flat_map(|i| number(b * BATCH * WIDTH + i).to_le_bytes()).collect::<Vec<u8>>();
    (0..N_TOKENS / BATCH).map(|b| Bytes::from(batch(b))).collect()
}

fn write_plain(dir: &Path, rows: &[Bytes]) -> AnyResult<()> {
    let paths: Vec<_> = (0..N_LAYERS).map(|layer| dir.join(format!("plain-{layer}"))).collect();
    let mut files = paths.iter().map(fs::File::create).collect::<Result<Vec<_>, _>>()?;
    for batch in rows {
        for file in &mut files {
            file.write_all(batch)?;
        }
    }
    for file in &files {
        file.sync_all()?;
    }
    for path in paths {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn write_run(dir: &Path, rows: &[Bytes]) -> AnyResult<()> {
    let shape = ModelShape {
        n_layers: N_LAYERS,
        n_heads: 4,
        n_kv_heads: 1,
        d_model: WIDTH,
        d_head: 256,
        d_mlp: 2048,
        d_vocab: 262_144,
        n_ctx: 1024,
        ..ModelShape::default()
    };
    let hooks = HookPoint::parse_list("blocks.*.hook_resid_post", &shape)?;
    let entries = hooks.iter().map(|&hook| HookPointEntry::new(hook, &shape, Dtype::F32)).collect::<Result<_, _>>()?;
    let run = RunWriter::create(dir, Manifest::new(Model::new("bench", shape), Corpus::default(), entries))?;
    let mut shard = run.shard(0, 0)?;
    for (b, batch) in rows.iter().enumerate() {
        let mut tokens = TokenColumns::default();
        for i in 0..BATCH {
            tokens.push(b as u64, i as u32, (i * 31 % 1000) as u32, "token", Some((0, 5)), i == 0, None);
        }
        shard.write_tokens(&tokens)?;
        for hook in 0..N_LAYERS {
            shard.write_acts(hook, Dtype::F32, batch.clone())?;
        }
    }
    shard.commit(json!(null), Counts::captured(0, N_TOKENS as u64))?;
    run.finish("")?;
    Ok(())
}

fn copy(rows: &[Bytes], target: &mut [u8]) {
    for (from, to) in rows.iter().zip(target.chunks_exact_mut(BATCH * WIDTH * 4)) {
        to.copy_from_slice(from);
    }
    std::hint::black_box(&target);
}

fn read_sequential(run: &Run, hook: HookPoint) -> AnyResult<()> {
    for acts in run.acts_shard(hook, 0)? {
        std::hint::black_box(acts?.bytes);
    }
    Ok(())
}

fn write_features(run: &Run, n: usize) -> AnyResult<()> {
    const D_SAE: u32 = 4096;
    let info = FeatureTableInfo {
        coder: "bench".to_owned(),
        hook_point: run.hook_points()[1].name,
        d_sae: D_SAE,
        n_tokens: N_TOKENS as u64,
        n_ordinary_tokens: N_TOKENS as u64,
        notes: json!(null),
    };
    // A quarter of the rows fit: what is measured is the sort that spills.
    let mut writer = FeatureTableWriter::create(run, "bench", info, n * 8)?;
    let per_token = n / N_TOKENS;
    for token in 0..N_TOKENS as u64 {
        let features: Vec<u32> = (0..per_token as u32).map(|i| (token as u32 * 97 + i * 211) % D_SAE).collect();
        let acts: Vec<f32> = features.iter().map(|&feature| (feature * 7 % 1013) as f32 * 0.01).collect();
        writer.write(&vec![token; per_token], &features, &acts)?;
    }
    drop(writer.sort()?);
    Ok(())
}
