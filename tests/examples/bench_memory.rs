//! Does a command need more memory on a larger run?
//!
//! Every command that reads a run is started on two made-up runs, one ten times as large as the other, and `record` on two
//! texts. Printed is the most memory that it held on the larger one, over that on the smaller one. Linux only.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use data::manifest::{Corpus, Manifest, Model};
use data::tables::DocumentRow;
use data::{Counts, Dtype, HookPointEntry, ModelShape, RunWriter, TokenColumns};
use fs_err as fs;
use serde_json::json;

const WIDTH: usize = 640;
const HOOK_POINT: &str = "blocks.0.hook_resid_post";
/// Tokens of the smaller run: 200 MB of vectors.
const N_TOKENS: u64 = 80 * 1024;
const TIMES: u64 = 10;
const SHARD_TOKENS: u64 = 16 * 1024;
const DOCUMENT_TOKENS: u64 = 256;
/// Lines of the smaller text.
const LINES: usize = 1000;
/// How much more than on the smaller run is allowed: allocators do not give everything back.
const AT_MOST: f64 = 1.25;

/// What is added to the name of the program; `{run}` and `{out}` are paths.
const COMMANDS: [(&str, &str); 8] = [
    ("verify", "verify {run}"),
    (
        "query",
        "query {run} --format=csv SELECT·count(*)·AS·n,·max(act[1])·AS·x·FROM·blocks_0_hook_resid_post·JOIN·tokens·USING·\
         (token_idx)",
    ),
    ("export", "export {run} --format npy --out {out}/npy"),
    ("shuffle", "shuffle {run} --memory 64MB --out {out}/shuffled"),
    (
        "train",
        "train {run} --hook-point blocks.0.hook_resid_post --d-sae 512 --steps 15 --out {run}/saes/a --threads 2",
    ),
    ("evaluate", "evaluate {run} --sae {run}/saes/a --threads 2"),
    ("encode", "encode {run} --sae {run}/saes/a --memory 64MB --threads 2"),
    ("inspect", "inspect {run}"),
];

fn main() -> Result<()> {
    let parent = std::env::args().nth(1).map_or_else(|| "target".into(), PathBuf::from);
    fs::create_dir_all(&parent)?;
    let folder = tempfile::tempdir_in(&parent)?;
    let program = std::env::current_exe()?.ancestors().nth(2).context("a folder")?.join("polariscope");
    ensure!(program.is_file(), "no program beside this one\nhint: `cargo build --workspace` makes it");

    let mut most = Vec::new();
    for (name, times) in [("small", 1), ("large", TIMES)] {
        let (run, out) = (folder.path().join(name), folder.path().join(format!("{name}-out")));
        eprintln!("{name}: {} MB", times * N_TOKENS * WIDTH as u64 * 4 / 1_000_000);
        fs::create_dir(&out)?;
        write_run(&run, times * N_TOKENS)?;
        let mut memory = Vec::new();
        for (_, command) in COMMANDS {
            let fill = |word: &str| {
                let word = word.replace("{run}", &run.display().to_string());
                word.replace("{out}", &out.display().to_string()).replace('·', " ")
            };
            memory.push(peak(&program, command.split(' ').map(fill))?);
        }
        let text = folder.path().join(format!("{name}.txt"));
        let line = "the light of a house by the river was old and very great\n";
        fs::write(&text, line.repeat(LINES * times as usize))?;
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/mini");
        let recorded = folder.path().join(format!("{name}-recorded"));
        let record = ["record", &model.display().to_string(), "--lines", "--corpus", &text.display().to_string()]
            .map(str::to_owned)
            .into_iter()
            .chain(["--shard-tokens", "4000", "--out", &recorded.display().to_string()].map(str::to_owned));
        memory.push(peak(&program, record)?);
        most.push(memory);
        for path in [&run, &out, &recorded] {
            fs::remove_dir_all(path)?;
        }
    }
    let names = COMMANDS.iter().map(|(name, _)| *name).chain(["record"]);
    for ((name, small), large) in names.zip(&most[0]).zip(&most[1]) {
        let unit = format!("times {:.0} MB, on a run {TIMES} times as large", small / 1e6);
        println!(
            "{}",
            json!({"bench": format!("memory.{name}"), "measured": large / small, "unit": unit, "at_most": AT_MOST})
        );
    }
    Ok(())
}

/// The most memory that a command holds, in bytes: what the system says shortly before it ends.
fn peak(program: &Path, args: impl Iterator<Item = String>) -> Result<f64> {
    let mut command = Command::new(program);
    // With these it does not start itself again.
    command.env("GOMP_SPINCOUNT", "1000").env("XDG_RUNTIME_DIR", tempfile::env::temp_dir());
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut most = 0.0_f64;
    while child.try_wait()?.is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        most = most.max(kilobytes.unwrap_or(0.0) * 1024.0);
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    ensure!(most > 0.0, "this system does not tell how much memory a program holds");
    Ok(most)
}

fn write_run(dir: &Path, n_tokens: u64) -> Result<()> {
    let shape = ModelShape { n_layers: 1, d_model: WIDTH, d_vocab: 1000, n_ctx: 1024, ..ModelShape::default() };
    let entry = HookPointEntry::new(HOOK_POINT.parse()?, &shape, Dtype::F32)?;
    let run = RunWriter::create(dir, Manifest::new(Model::new("bench", shape), Corpus::default(), vec![entry]))?;
    let vocab: Vec<String> = (0..1000).map(|id| format!("word-{id}")).collect();
    run.write_vocab(&vocab)?;
    for first in (0..n_tokens).step_by(SHARD_TOKENS as usize) {
        let mut shard = run.shard((first / SHARD_TOKENS) as usize, first)?;
        for start in (first..first + SHARD_TOKENS).step_by(DOCUMENT_TOKENS as usize) {
            let (doc_id, mut tokens) = (start / DOCUMENT_TOKENS, TokenColumns::default());
            for pos in 0..DOCUMENT_TOKENS as u32 {
                let id = mix(start + u64::from(pos)) % 1000;
                tokens.push(doc_id, pos, id as u32, &vocab[id as usize], Some((0, 5)), pos == 0, None);
            }
            shard.write_tokens(&tokens)?;
            shard.write_documents(&[DocumentRow {
                doc_id,
                source: "made up".to_owned(),
                n_tokens: DOCUMENT_TOKENS,
                sha256: "00".repeat(32),
                meta: None,
                first_token_idx: start,
            }])?;
            let at = |i: u64| ((mix(start * WIDTH as u64 + i) % 2001) as f32 * 0.01 - 10.0).to_le_bytes();
            let rows: Vec<u8> = (0..DOCUMENT_TOKENS * WIDTH as u64).flat_map(at).collect();
            shard.write_acts(0, Dtype::F32, Bytes::from(rows))?;
        }
        shard.commit(json!(null), Counts::captured(SHARD_TOKENS / DOCUMENT_TOKENS, SHARD_TOKENS))?;
    }
    run.finish("")?;
    Ok(())
}

/// Numbers without an order that a sparse coder or a compressor could see.
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 31)).wrapping_mul(0x7fb5_d329_728e_a185);
    (x ^ (x >> 27)).wrapping_mul(0x81da_def4_bc2d_d44d) >> 16
}
