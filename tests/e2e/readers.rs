//! Do DuckDB, Polars, pyarrow and pandas read a run as the documentation of `data` says?
//!
//! The examples are taken out of the documentation and run. They need what `cargo xtask test` puts into the cache, and are
//! left out where that is missing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::Command;

use data::Run;
use fs_err as fs;

use crate::support::{fixture, packages, polariscope, text, token_corpus};

const HOOK_POINT: &str = "blocks.3.hook_resid_post";

#[test]
fn the_examples_of_the_documentation_run() {
    let Some(readers) = packages("readers", "duckdb, numpy, pandas, polars, pyarrow") else {
        eprintln!(
            "left out: no Python with duckdb, numpy, pandas, polars and pyarrow (`cargo xtask test` brings them)"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let corpus = dir.path().join("corpus.jsonl");
    let n_tokens = token_corpus(&corpus, 60);
    for (name, dtype) in [("run", "f32"), ("run-i8", "i8")] {
        let (model, corpus, out) = (text(&fixture("gemma3/text")), text(&corpus), text(&dir.path().join(name)));
        let record = ["record", &model, "--corpus", &corpus, "--out", &out, "--hook-points", HOOK_POINT];
        polariscope(&[&record[..], &["--shard-tokens", "1000", "--nll", "--store-dtype", dtype]].concat());
    }
    let run = Run::open(dir.path().join("run")).unwrap();
    assert!(run.shards().len() > 1);
    let acts = run.acts(HOOK_POINT.parse().unwrap(), 0..n_tokens).unwrap().to_f32();
    let width = acts.len() / n_tokens as usize;
    let python = |code: &str| run_python(&readers, dir.path(), code);

    let examples = examples();
    assert_eq!(examples.iter().map(|example| example.language.as_str()).collect::<Vec<_>>(), LANGUAGES);
    for example in &examples {
        let lines = example.code.lines().count();
        assert!(lines <= 5, "{lines} lines:\n{}", example.code);
    }

    // DuckDB: ten tokens, and every vector has its 32 × 4 bytes.
    let answer = python(&format!(
        "import duckdb\nfor row in duckdb.sql('''{}''').fetchall(): print(*row[1:])",
        examples[0].code
    ));
    let rows: Vec<Vec<f64>> =
        answer.lines().map(|line| line.split(' ').map(|cell| cell.parse().unwrap()).collect()).collect();
    assert_eq!(rows.len(), 10);
    assert!(rows.iter().all(|row| row[0] >= 1.0 && row[2] == (width * 4) as f64), "{answer}");
    assert!(rows.is_sorted_by(|a, b| a[1] >= b[1]), "{answer}");

    // Polars: the largest first number of all.
    let code = format!("{}\nprint(first.collect()['first'][0])", examples[1].code);
    let largest: f32 = python(&code).lines().last().unwrap().parse().unwrap();
    let expected = acts.chunks(width).map(|row| row[0]).fold(f32::MIN, f32::max);
    assert!((largest - expected).abs() <= expected.abs() * 1e-6, "{largest} {expected}");

    // pyarrow and pandas: every number, in the order of tokens; with a scale a row nearly so.
    for (example, tolerance) in [(&examples[2], 0.0), (&examples[3], 0.0), (&examples[4], 1.0 / 127.0)] {
        let file = dir.path().join("x.bin");
        python(&format!("{}\nassert x.dtype == np.float32 and x.ndim == 2\nx.tofile('x.bin')", example.code));
        let bytes = fs::read(&file).unwrap();
        let found: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(found.len(), acts.len());
        for (found, expected) in found.chunks(width).zip(acts.chunks(width)) {
            let allowed = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs())) * tolerance;
            let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= allowed);
            assert!(near, "{}\n{found:?}\n{expected:?}", example.code);
        }
    }
}

const LANGUAGES: [&str; 5] = ["sql", "python", "python", "python", "python"];

struct Example {
    language: String,
    code: String,
}

/// The blocks of the documentation of `data` that are not Rust.
fn examples() -> Vec<Example> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/src/lib.rs");
    let source = fs::read_to_string(source).unwrap();
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for line in source.lines().map_while(|line| line.strip_prefix("//!")) {
        let line = line.strip_prefix(' ').unwrap_or(line);
        match line.strip_prefix("```") {
            Some("sql" | "python") => {
                examples.push(Example { language: line[3..].to_owned(), code: String::new() });
                inside = true;
            }
            Some(_) => inside = false,
            None if inside => {
                let example = examples.last_mut().unwrap();
                example.code.push_str(line);
                example.code.push('\n');
            }
            None => {}
        }
    }
    examples
}

#[track_caller]
fn run_python(readers: &Path, dir: &Path, code: &str) -> String {
    let mut python = Command::new("python3");
    python.args(["-c", code]).env("PYTHONPATH", readers).env("POLARS_FMT_MAX_ROWS", "10").current_dir(dir);
    let output = python.output().unwrap();
    assert!(output.status.success(), "{code}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
