//! How fast is a run shuffled, against copying it twice, and does its memory depend on the size of the run?
//!
//! `cargo run -p data --example bench_shuffle [CACHE]` prints one JSON object a figure. It writes about 6 GB into a
//! temporary folder in CACHE, or in the folder for temporary files. With `--shuffle RUN OUT` it shuffles a run and prints
//! the most memory that took: that is how it calls itself.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]

#[path = "made_up/mod.rs"]
mod made_up;

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use data::manifest::Provenance;
use data::shuffle::{DEFAULT_MEMORY, Shuffle, ShuffleOptions};
use data::{BatchOptions, BatchReader, Run};
use fs_err as fs;
use serde_json::json;

use made_up::{AnyResult, BATCH, N_LAYERS, WIDTH, report, rows, time, write_run};

/// Batches of a shard, and the shards of the small and of the large run.
const BATCHES: usize = 12;
const SHARDS: [usize; 2] = [2, 6];
/// So little that the small run takes eight buckets and the large one 24, which are equally full.
const MEMORY: usize = BATCHES * BATCH * (WIDTH * 4 + 240) / 2;
/// For the speed: a quarter of the default, so that the large run takes four buckets. Each bucket waits for the disk a dozen
/// times, which tells when there are many small ones.
const MEMORY_FOR_SPEED: usize = DEFAULT_MEMORY / 4;
/// The fastest of so many is reported, of the limit too.
const REPEATS: usize = 3;

fn main() -> AnyResult<()> {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, run, out] = &args[..]
        && flag == "--shuffle"
    {
        shuffle(&Run::open(run)?, Path::new(out), MEMORY)?;
        println!("{}", most_memory().ok_or("no `VmHWM` in `/proc/self/status`")?);
        return Ok(());
    }
    let parent = args.get(1).map_or_else(|| "target".into(), PathBuf::from);
    fs::create_dir_all(&parent)?;
    let folder = tempfile::tempdir_in(&parent)?;
    let rows = rows(BATCHES);
    let runs = SHARDS.map(|shards| folder.path().join(format!("run-{shards}")));
    for (run, shards) in runs.iter().zip(SHARDS) {
        write_run(run, &rows, shards)?;
    }
    drop(rows);

    let run = Run::open(&runs[1])?;
    let bytes = (run.n_tokens() as usize * WIDTH * 4 * N_LAYERS) as f64;
    eprintln!("shuffling {:.2} GB with {:.0} MB of memory", bytes / 1e9, MEMORY_FOR_SPEED as f64 / 1e6);
    let (mut shuffled, mut copied) = (0.0f64, 0.0f64);
    let out = folder.path().join("shuffled");
    for i in 0..REPEATS {
        copied = copied.max(bytes / time(|| copy_twice(&runs[1], folder.path()))?);
        if i > 0 {
            fs::remove_dir_all(&out)?;
        }
        shuffled = shuffled.max(bytes / time(|| shuffle(&run, &out, MEMORY_FOR_SPEED))?);
    }
    report("data.shuffle", shuffled, copied, "copying the same files twice, with fsync", Some(0.5));

    let run = Run::open(&out)?;
    let hook = run.hook_points()[1].name;
    let mut read = 0.0f64;
    for _ in 0..REPEATS {
        let mut n_rows = 0;
        let seconds = time(|| {
            let options = BatchOptions { epochs: 4, ..BatchOptions::default() };
            let mut reader = BatchReader::new(&run, &[hook], options)?;
            while let Some(batch) = reader.next() {
                let batch = batch?;
                n_rows += batch.len();
                reader.recycle(batch);
            }
            Ok(())
        })?;
        read = read.max((n_rows * WIDTH * 4) as f64 / seconds);
    }
    println!("{}", json!({"bench": "data.read_shuffled_run", "measured": read / 1e9, "unit": "GB/s", "at_least": 2.0}));

    if most_memory().is_none() {
        println!("{}", json!({"bench": "data.shuffle_memory", "skipped": "no `/proc/self/status` here"}));
        return Ok(());
    }
    let mut memory = Vec::new();
    for run in &runs {
        fs::remove_dir_all(&out)?;
        let this = std::env::current_exe()?;
        let ended = Command::new(this).arg("--shuffle").args([run, &out]).output()?;
        let text = String::from_utf8(ended.stdout)?;
        memory.push(
            text.trim().parse::<f64>().map_err(|_not_a_number| String::from_utf8_lossy(&ended.stderr).into_owned())?,
        );
    }
    let limit_is = format!("the same with {} of {} shards", SHARDS[0], SHARDS[1]);
    println!(
        "{}",
        json!({
            "bench": "data.shuffle_memory", "measured": memory[1] / 1e6, "unit": "MB", "limit": memory[0] / 1e6,
            "limit_is": limit_is, "at_most": 1.15,
        })
    );
    Ok(())
}

fn shuffle(run: &Run, out: &Path, memory: usize) -> AnyResult<()> {
    let options = ShuffleOptions { memory, ..ShuffleOptions::default() };
    let plan = Shuffle::plan(run, options)?;
    plan.write(out, Provenance::default(), false, &mut |_| ControlFlow::Continue(()))?;
    Ok(())
}

/// The most memory that was resident so far, in bytes, where the system tells.
fn most_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Copies every file of activations to a second and a third place, in blocks, each durable.
fn copy_twice(run: &Path, dir: &Path) -> AnyResult<()> {
    let mut block = vec![0; 1 << 20];
    let copies = [dir.join("copy-1"), dir.join("copy-2")];
    for hook in fs::read_dir(run.join("acts"))? {
        for shard in fs::read_dir(hook?.path())? {
            let mut from = shard?.path();
            for copy in &copies {
                let (mut source, mut target) = (fs::File::open(&from)?, fs::File::create(copy)?);
                loop {
                    let n = source.read(&mut block)?;
                    if n == 0 {
                        break;
                    }
                    target.write_all(&block[..n])?;
                }
                target.sync_all()?;
                from.clone_from(copy);
            }
        }
    }
    for copy in copies {
        fs::remove_file(copy)?;
    }
    Ok(())
}
