//! Does recording keep up with a GPU, and if not, is it the writer or the disk?
//!
//! `cargo run -p data --example bench_record [CACHE]` prints one JSON object a figure. Made-up activations come at 100 k tokens a
//! second through a short queue, as a recorder's do, are written durably, and wait where they cannot be. The writer alone is the
//! same into a folder in memory, the disk alone is plain files of the same bytes. It writes 3 GB into CACHE at a time.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]

#[path = "made_up/mod.rs"]
#[expect(dead_code, reason = "other benches use the rest")]
mod made_up;

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use data::manifest::{Corpus, Counts, Manifest, Model};
use data::{Dtype, HookPointEntry, ModelShape, Run, RunWriter, TokenColumns};
use fs_err as fs;
use serde_json::json;

use made_up::{AnyResult, BATCH, time};

/// Tokens a second that a GPU delivers.
const RATE: f64 = 100_000.0;
/// The residual stream of Gemma 3 4B, in bf16.
const WIDTH: usize = 2560;
const ROW_BYTES: usize = WIDTH * 2;
/// Six seconds of it.
const N_BATCHES: usize = 288;
const SHARD_BATCHES: usize = 96;
/// Batches between the device and the writer.
const QUEUE: usize = 4;
/// Different batches, in turn.
const DIFFERENT: usize = 8;

fn main() -> AnyResult<()> {
    let parent = std::env::args().nth(1).map_or_else(|| "target".into(), std::path::PathBuf::from);
    fs::create_dir_all(&parent)?;
    let batches = batches();
    let n_tokens = (N_BATCHES * BATCH) as f64;
    eprintln!("{n_tokens} tokens of {ROW_BYTES} bytes: {:.2} GB", n_tokens * ROW_BYTES as f64 / 1e9);

    let folder = tempfile::tempdir_in(&parent)?;
    let disk = n_tokens / time(|| write_plain(folder.path(), &batches))?;
    let mut waited = 0.0;
    let recorded = n_tokens
        / time(|| {
            waited = record(&folder.path().join("run"), &batches, Some(RATE))?;
            Ok(())
        })?;
    let memory = Path::new("/dev/shm");
    let writer = if memory.is_dir() {
        let folder = tempfile::tempdir_in(memory)?;
        Some(n_tokens / time(|| record(&folder.path().join("run"), &batches, None).map(drop))?)
    } else {
        None
    };
    let slower = match writer {
        Some(writer) if writer < disk => "the writer",
        _ => "the disk",
    };
    let figure = |name: &str, measured: f64, limit_is: &str| {
        let (measured, limit) = (measured / 1e3, RATE / 1e3);
        println!(
            "{}",
            json!({"bench": name, "measured": measured, "unit": "k tokens/s", "limit": limit, "limit_is": limit_is})
        );
    };
    let share = 100.0 * waited;
    figure(
        "data.record",
        recorded,
        &format!("100 k tokens/s, of whose time {share:.0} % was waiting; {slower} is slower"),
    );
    figure("data.record_disk", disk, "100 k tokens/s; plain files and fsync of the same bytes");
    if let Some(writer) = writer {
        figure("data.record_writer", writer, "100 k tokens/s; the run in memory, no disk");
    }
    Ok(())
}

fn batches() -> Vec<Bytes> {
    let number = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 * 0.01 - 10.0;
    let bf16 = |x: f32| ((x.to_bits() >> 16) as u16).to_le_bytes();
    (0..DIFFERENT).map(|b| (0..BATCH * WIDTH).flat_map(|i| bf16(number(b * BATCH * WIDTH + i))).collect()).collect()
}

/// Writes a run from batches that come at a rate. Returns the part of the time in which the device had to wait.
fn record(dir: &Path, batches: &[Bytes], rate: Option<f64>) -> AnyResult<f64> {
    let shape = ModelShape { n_layers: 1, d_model: WIDTH, d_vocab: 262_144, n_ctx: 1024, ..ModelShape::default() };
    let entry = HookPointEntry::new("blocks.0.hook_resid_post".parse()?, &shape, Dtype::Bf16)?;
    let run = RunWriter::create(dir, Manifest::new(Model::new("bench", shape), Corpus::default(), vec![entry]))?;
    let (sender, receiver) = sync_channel::<Bytes>(QUEUE);
    let begun = Instant::now();
    let waited = thread::scope(|scope| -> AnyResult<Duration> {
        let device = scope.spawn(move || {
            let (mut due, mut waited) = (Instant::now(), Duration::ZERO);
            for i in 0..N_BATCHES {
                if let Some(rate) = rate {
                    due += Duration::from_secs_f64(BATCH as f64 / rate);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                let ready = Instant::now();
                if sender.send(batches[i % DIFFERENT].clone()).is_err() {
                    break;
                }
                waited += ready.elapsed();
                // What could not be delivered in time is not made up for.
                due = due.max(Instant::now());
            }
            waited
        });
        for index in 0..N_BATCHES / SHARD_BATCHES {
            let n = (SHARD_BATCHES * BATCH) as u64;
            let mut shard = run.shard(index, index as u64 * n)?;
            for _ in 0..SHARD_BATCHES {
                let rows = receiver.recv()?;
                let mut tokens = TokenColumns::default();
                for i in 0..BATCH {
                    tokens.push(0, i as u32, (i * 31 % 1000) as u32, "token", Some((0, 5)), i == 0, None);
                }
                shard.write_tokens(&tokens)?;
                shard.write_acts(0, Dtype::Bf16, rows)?;
            }
            shard.commit(json!(null), Counts::captured(0, n))?;
        }
        Ok(device.join().expect("it does not panic"))
    })?;
    run.finish("")?;
    let part = waited.as_secs_f64() / begun.elapsed().as_secs_f64();
    assert_eq!(Run::open(dir)?.n_tokens(), (N_BATCHES * BATCH) as u64);
    Ok(part)
}

fn write_plain(dir: &Path, batches: &[Bytes]) -> AnyResult<()> {
    let path = dir.join("plain");
    let mut file = fs::File::create(&path)?;
    for i in 0..N_BATCHES {
        file.write_all(&batches[i % DIFFERENT])?;
        if (i + 1) % SHARD_BATCHES == 0 {
            file.sync_all()?;
        }
    }
    drop(file);
    Ok(fs::remove_file(path)?)
}
