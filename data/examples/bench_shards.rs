//! How fast are shards written and read, against what the disk and the memory of this machine do in the same run?
//!
//! `cargo run -p data --example bench_shards [CACHE]` prints one JSON object a figure. It writes about 1.5 GB into a
//! temporary folder in CACHE, or in the folder for temporary files.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]

#[path = "made_up/mod.rs"]
mod made_up;

use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use data::features::{FeatureTableInfo, FeatureTableWriter};
use data::{BatchOptions, BatchReader, HookPoint, Run};
use fs_err as fs;
use serde_json::json;

use made_up::{AnyResult, BATCH, N_LAYERS, WIDTH, report, rows, time, write_run};

/// Tokens of the run.
const N_TOKENS: usize = BATCH * 24;
/// The fastest of so many is reported, of the limit too.
const REPEATS: usize = 5;
/// Rows that are looked up one by one; their median is reported.
const ROWS: usize = 201;

fn main() -> AnyResult<()> {
    let parent = std::env::args().nth(1).map_or_else(|| "target".into(), std::path::PathBuf::from);
    fs::create_dir_all(&parent)?;
    let folder = tempfile::tempdir_in(&parent)?;
    let bytes = (N_TOKENS * WIDTH * 4 * N_LAYERS) as f64;
    let rows = rows(N_TOKENS / BATCH);

    eprintln!("writing {:.2} GB a time", bytes / 1e9);
    let (mut written, mut plain) = (0.0f64, 0.0f64);
    for i in 0..REPEATS {
        let seconds = time(|| write_plain(folder.path(), &rows))?;
        plain = plain.max(bytes / seconds);
        let dir = folder.path().join(format!("run-{i}"));
        let seconds = time(|| write_run(&dir, &rows, 1))?;
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
    let plain = folder.path().join("plain");
    fs::write(&plain, rows.concat())?;
    let (mut copied, mut read, mut sequential, mut shuffled) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    let mut n_rows = 0;
    for _ in 0..REPEATS {
        copied = copied.max(
            bytes
                / time(|| {
                    copy(&rows, &mut target);
                    Ok(())
                })?,
        );
        read = read.max(bytes / time(|| read_plain(&plain))?);
        sequential = sequential.max(bytes / time(|| read_sequential(&run, hook))?);
        // Several epochs: what counts is the rate of a long training, not that of the first filling.
        let options = BatchOptions { buffer_rows: 16_384, epochs: 4, ..BatchOptions::default() };
        let seconds = time(|| {
            n_rows = 0;
            let mut reader = BatchReader::new(&run, &[hook], options)?;
            while let Some(batch) = reader.next() {
                let batch = batch?;
                n_rows += batch.len();
                reader.recycle(batch);
            }
            Ok(())
        })?;
        shuffled = shuffled.max((n_rows * WIDTH * 4) as f64 / seconds);
    }
    report("data.read_sequential", sequential, read, "reading the same bytes from a plain file", Some(0.7));
    report("data.read_shuffled", shuffled, copied, "memcpy of the same bytes", None);
    println!(
        "{}",
        json!({"bench": "data.read_shuffled_rate", "measured": shuffled / 1e9, "unit": "GB/s", "at_least": 2.0})
    );

    // The first row of a run that was just opened, and one of many.
    for (name, opened) in [("data.one_row_first", None), ("data.one_row", Some(&run))] {
        let mut times = Vec::new();
        for i in 0..ROWS {
            let token = (i * 7919 % N_TOKENS) as u64;
            let start = Instant::now();
            let fresh;
            let run = if let Some(run) = opened {
                run
            } else {
                fresh = Run::open(run.dir())?;
                &fresh
            };
            std::hint::black_box(run.acts(hook, token..token + 1)?);
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        println!("{}", json!({"bench": name, "measured": times[ROWS / 2], "unit": "ms", "at_most": 2.0}));
    }

    let n = 8_000_000;
    let seconds = time(|| write_features(&run, n))?;
    println!("{}", json!({"bench": "data.features_sorted", "measured": n as f64 / seconds / 1e6, "unit": "M rows/s"}));
    Ok(())
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

fn copy(rows: &[Bytes], target: &mut [u8]) {
    for (from, to) in rows.iter().zip(target.chunks_exact_mut(BATCH * WIDTH * 4)) {
        to.copy_from_slice(from);
    }
    std::hint::black_box(&target);
}

fn read_plain(path: &Path) -> AnyResult<()> {
    let mut file = fs::File::open(path)?;
    let mut block = vec![0; 8 << 20];
    while file.read(&mut block)? > 0 {
        std::hint::black_box(&block);
    }
    Ok(())
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
        groups: Vec::new(),
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
