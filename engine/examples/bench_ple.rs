//! How fast are rows of per-layer embeddings looked up, and how much memory does that take?
//!
//! The table has the shape of Gemma 4 E2B's (262,144 rows of 35 · 256 in bf16, 4.7 GB) and lies in a sparse file, of which a
//! sixteenth holds data. `cargo xtask bench ple` runs it; by hand, `cargo run -p engine --example bench_ple`.
//! One JSON object for each figure on stdout.
#![expect(clippy::print_stdout, reason = "a bench prints")]

mod figures;

use std::hint::black_box;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use engine::config::{Config, Preset};
use engine::gemma::load::PlePlacement;
use engine::ple_table::PleTable;
use engine::weights::Weights;
use fs_err as fs;
use memmap2::{Advice, Mmap};
use rayon::prelude::*;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use self::figures::{figure, median, memory};

const TABLE: &str = "model.embed_tokens_per_layer.weight";
/// Tokens that go through the network at once when recording.
const BATCH: usize = 2048;
const TOKENS: usize = 2_000_000;
/// Every so many rows, one holds data that was written.
const WRITTEN_EVERY: usize = 16;
const ROUNDS: usize = 5;
/// Batches in a measurement of speed.
const BATCHES: usize = 32;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    engine::device::set_threads(0);
    let config = Preset::find("gemma-4-e2b").ok_or("the preset is there")?.config();
    let folder = Path::new("target/bench").join(std::process::id().to_string());
    let measured = checkpoint(&folder, &config).and_then(|file| measure(&folder, &file));
    fs::remove_dir_all(&folder)?;
    measured
}

fn measure(folder: &Path, file: &StoredTable) -> Result<()> {
    let weights = Weights::open(folder)?;
    let table = PleTable::open(&weights, TABLE, Kind::BFloat16, PlePlacement::Disk, Device::Cpu)?;
    drop(weights);
    resident(&table)?;
    warm(&table)?;
    cold(&table, file)
}

/// The most memory that looking up millions of tokens takes, all of the process included.
fn resident(table: &PleTable) -> Result<()> {
    let mut zipf = Zipf::new(table.n_rows(), 1);
    let before = gigabytes("VmRSS:");
    let start = Instant::now();
    for _ in 0..TOKENS / BATCH {
        table.with_rows(&zipf.batch(), look_at)?;
    }
    let rate = (TOKENS / BATCH * BATCH) as f64 / start.elapsed().as_secs_f64();
    println!("{}", json!({"bench": "ple.table", "measured": bytes(table, table.n_rows()) / 1e9, "unit": "GB on disk"}));
    println!("{}", json!({"bench": "ple.2M tokens", "measured": rate, "unit": "tokens/s"}));
    match (before, gigabytes("VmHWM:")) {
        (Some(before), Some(peak)) => {
            println!("{}", json!({"bench": "ple.resident before", "measured": before, "unit": "GB"}));
            println!("{}", json!({"bench": "ple.resident peak", "measured": peak, "unit": "GB", "at_most": 0.5}));
        }
        _ => println!("{}", json!({"bench": "ple.resident peak", "skipped": "no /proc/self/status"})),
    }
    Ok(())
}

/// Rows that the system has in its cache, against a copy of as many bytes out of main memory: as one stream, and of the
/// same rows in the same order, which is what a look-up can reach.
fn warm(table: &PleTable) -> Result<()> {
    let mut zipf = Zipf::new(table.n_rows(), 2);
    let batches: Vec<Vec<u32>> = (0..BATCHES).map(|_| zipf.batch()).collect();
    let row = bytes(table, 1) as usize;
    // Far more rows than the processor's cache holds; as a stream every batch has bytes of its own.
    let from = vec![1_u8; row * BATCH * BATCHES];
    let in_memory = |id: u32| &from[id as usize % (BATCH * BATCHES) * row..][..row];
    let mut to = vec![2_u8; row * BATCH];
    let (mut gathers, mut streams, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (mut gather, mut stream, mut copy) = (0.0, 0.0, 0.0);
        // In turn, so that a noisy moment hits all of them.
        for (ids, from) in batches.iter().zip(from.chunks_exact(row * BATCH)) {
            let start = Instant::now();
            table.with_rows(ids, look_at)?;
            gather += start.elapsed().as_secs_f64();
            let start = Instant::now();
            to.par_chunks_mut(row).zip(from.par_chunks(row)).for_each(|(to, from)| to.copy_from_slice(from));
            black_box(&to);
            stream += start.elapsed().as_secs_f64();
            let start = Instant::now();
            to.par_chunks_mut(row).zip(ids).for_each(|(to, id)| to.copy_from_slice(in_memory(*id)));
            black_box(&to);
            copy += start.elapsed().as_secs_f64();
        }
        // The first round warms up.
        if round > 0 {
            gathers.push(gather);
            streams.push(stream);
            copies.push(copy);
        }
    }
    let gigabytes = from.len() as f64 / 1e9;
    let (gather, stream, copy) = (median(&mut gathers), median(&mut streams), median(&mut copies));
    let (rate, stream, copy) = (gigabytes / gather, gigabytes / stream, gigabytes / copy);
    figure("ple.warm", rate, "GB/s", stream, "memcpy on all threads", json!({"at_least": 0.5}));
    figure("ple.warm rows", rate, "GB/s", copy, "memcpy of these rows on all threads", Value::Null);
    let a_token = gather / (BATCH * BATCHES) as f64 * 1e6;
    println!("{}", json!({"bench": "ple.warm a token", "measured": a_token, "unit": "µs"}));
    Ok(())
}

/// Rows that have to come from the disk, in a batch and one after the other, and through a memory map instead.
fn cold(table: &PleTable, file: &StoredTable) -> Result<()> {
    let written: Vec<u32> = (0..table.n_rows()).step_by(WRITTEN_EVERY).map(|row| row as u32).collect();
    // Far from each other, and each round others.
    let ids = |round: usize| -> Vec<u32> {
        (0..BATCH).map(|i| written[(round * BATCH + i) * 7919 % written.len()]).collect()
    };
    let (mut batched, mut single, mut mapped) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        if !file.forget() {
            println!("{}", json!({"bench": "ple.cold", "skipped": "`dd` could not empty the system's cache"}));
            return Ok(());
        }
        let (all, few) = (ids(round), ids(round + ROUNDS));
        let few = &few[..BATCH / 8];
        let start = Instant::now();
        let first = table.with_rows(&all, |rows| rows.double_value(&[1, 0]))?;
        batched.push(start.elapsed().as_secs_f64() / BATCH as f64 * 1e6);
        assert_eq!(first, first_value(all[1]), "what was written is read");
        let start = Instant::now();
        for id in few {
            table.with_rows(&[*id], look_at)?;
        }
        single.push(start.elapsed().as_secs_f64() / few.len() as f64 * 1e6);
        file.forget();
        mapped.push(file.through_a_map(few)? / few.len() as f64 * 1e6);
    }
    let (batched, single, mapped) = (median(&mut batched), median(&mut single), median(&mut mapped));
    println!("{}", json!({"bench": "ple.cold a token, in a batch", "measured": batched, "unit": "µs"}));
    figure("ple.cold a token", single, "µs", mapped, "through a memory map", json!({"at_most": 1.0}));
    Ok(())
}

/// Where the table lies in the file.
struct StoredTable {
    path: PathBuf,
    offset: u64,
    row_bytes: usize,
}

/// Writes a checkpoint of this shape that takes no room on disk, but for some rows of its table.
fn checkpoint(folder: &Path, config: &Config) -> Result<StoredTable> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("config.json"), config.to_hf().to_string())?;
    let mut header = serde_json::Map::new();
    let mut end = 0_u64;
    let mut place = None;
    for tensor in config.tensors() {
        let bytes = 2 * tensor.shape.iter().map(|&dim| dim as u64).product::<u64>();
        if tensor.name == TABLE {
            place = Some((end, tensor.shape[0], 2 * tensor.shape[1]));
        }
        header.insert(tensor.name, json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    let (at, n_rows, row_bytes) = place.ok_or("the model has a table")?;
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let path = folder.join("model.safetensors");
    let mut file = fs::File::create(&path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let data = 8 + header.len() as u64;
    file.set_len(data + end)?;
    let offset = data + at;
    for row in (0..n_rows).step_by(WRITTEN_EVERY) {
        file.seek(SeekFrom::Start(offset + (row * row_bytes) as u64))?;
        file.write_all(&first_bytes(row as u32).repeat(row_bytes / 2))?;
    }
    file.sync_all()?;
    Ok(StoredTable { path, offset, row_bytes })
}

/// The bf16 that a row is full of: any but 0.
fn first_bytes(row: u32) -> [u8; 2] {
    (0x3f00 | (row / WRITTEN_EVERY as u32 % 0x80) as u16).to_le_bytes()
}

fn first_value(row: u32) -> f64 {
    f64::from(f32::from_bits(u32::from(u16::from_le_bytes(first_bytes(row))) << 16))
}

impl StoredTable {
    /// Makes the system drop what it has cached of the file; whether it could be asked to.
    fn forget(&self) -> bool {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", self.path.display())).args(["iflag=nocache", "count=0"]);
        dd.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// The seconds that copying the rows out of a memory map takes.
    fn through_a_map(&self, ids: &[u32]) -> Result<f64> {
        let file = fs::File::open(&self.path)?;
        #[expect(unsafe_code, reason = "what is compared with")]
        // SAFETY: nobody writes to the file, which only this program knows.
        let map = unsafe { Mmap::map(file.file())? };
        map.advise(Advice::Random)?;
        let mut row = vec![0; self.row_bytes];
        let start = Instant::now();
        for &id in ids {
            row.copy_from_slice(&map[self.offset as usize + id as usize * self.row_bytes..][..self.row_bytes]);
            black_box(&row);
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Token ids as frequent as words are: the r-th most frequent comes in proportion to 1/r.
struct Zipf {
    n: usize,
    state: u64,
}

impl Zipf {
    fn new(n: usize, seed: u64) -> Self {
        Self { n, state: seed }
    }

    fn batch(&mut self) -> Vec<u32> {
        (0..BATCH).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> u32 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = (self.state >> 11) as f64 / (1_u64 << 53) as f64;
        let rank = ((self.n as f64).powf(uniform) as usize).min(self.n - 1);
        // Frequent tokens need not be neighbours in the table.
        (rank * 7919 % self.n) as u32
    }
}

/// What the network does with the rows is not part of the look-up.
fn look_at(rows: &Tensor) {
    black_box(rows);
}

/// Bytes of so many rows.
fn bytes(table: &PleTable, rows: usize) -> f64 {
    (2 * rows * table.n_cols()) as f64
}

/// Resident memory: RssAnon + RssFile + RssShmem.
fn gigabytes(name: &str) -> Option<f64> {
    memory(name).map(|bytes| bytes as f64 / 1e9)
}
