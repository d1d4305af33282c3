//! Is a flipped byte found wherever it is, and can what is broken be recorded again?
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use data::Run;
use data::verify::{Problem, verify};
use fs_err as fs;
use tests::soak::Random;

use crate::support::{polariscope, text};

/// Bytes that are flipped in each file, beside the first and the last ones.
const FLIPS: usize = 6;

/// A run of the small Gemma 4, with everything that a run may hold: text, routing, a coder, a feature table.
fn small_run(dir: &Path) -> PathBuf {
    let (corpus, run) = (dir.join("corpus.txt"), dir.join("run"));
    let line =
        |n: usize| format!("The stone number {n} was old and clear, and the light between two of them was seen.\n");
    fs::write(&corpus, (0..40).map(line).collect::<String>()).unwrap();
    let model = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/mini"));
    let (corpus, run_arg, sae) = (text(&corpus), text(&run), text(&run.join("saes/coder")));
    let point = ["--hook-point", "blocks.1.hook_resid_post"];
    let record = ["record", &model, "--corpus", &corpus, "--lines", "--out", &run_arg, "--shard-tokens", "250"];
    polariscope(&[&record[..], &["--hook-points", point[1]]].concat());
    let train =
        ["train", &run_arg, "--out", &sae, "--d-sae", "64", "--k", "4", "--batch-tokens", "64", "--steps", "30"];
    polariscope(&[&train[..], &point].concat());
    polariscope(&["encode", &run_arg, "--sae", &sae]);
    run
}

/// Every file of a run, within it.
fn files(run: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![run.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(text(path.strip_prefix(run).unwrap())) }
        }
    }
    found.sort();
    found
}

fn bytes(run: &Path) -> Vec<(String, Vec<u8>)> {
    files(run).into_iter().map(|file| (file.clone(), fs::read(run.join(file)).unwrap())).collect()
}

/// What is wrong; a run that cannot be opened says where in its error.
fn problems(run: &Path) -> Result<Vec<Problem>, String> {
    let report = Run::open(run).and_then(|run| verify(&run, &mut |_| ControlFlow::Continue(())));
    report.map(|report| report.problems).map_err(|error| error.to_string())
}

fn flip(path: &Path, at: usize, bit: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= bit;
    fs::write(path, bytes).unwrap();
}

fn fails(args: &[&str]) {
    let args = std::iter::once("polariscope").chain(args.iter().copied()).map(OsString::from);
    assert_eq!(cli::main_with(args), ExitCode::from(1));
}

#[test]
fn a_flipped_byte_is_found_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let run = small_run(dir.path());
    assert_eq!(problems(&run), Ok(Vec::new()));
    let mut random = Random::new(3);
    let mut row_groups = 0;
    for file in files(&run) {
        let path = run.join(&file);
        let whole = fs::read(&path).unwrap();
        let drawn: Vec<usize> = (0..FLIPS).map(|_| random.below(whole.len())).collect();
        for at in [0, whole.len() - 1, whole.len() - 6].into_iter().chain(drawn) {
            flip(&path, at, 1 << random.below(8));
            match problems(&run) {
                Ok(found) => {
                    let named = found.iter().find(|problem| problem.file == file);
                    let named = named.unwrap_or_else(|| panic!("byte {at} of `{file}`: {found:?}"));
                    row_groups += usize::from(named.row_group.is_some());
                }
                Err(error) => assert!(error.contains(&file), "byte {at} of `{file}`: {error}"),
            }
            fs::write(&path, &whole).unwrap();
        }
        fs::remove_file(&path).unwrap();
        assert_ne!(problems(&run), Ok(Vec::new()), "`{file}` is missing");
        fs::write(&path, &whole).unwrap();
    }
    assert!(row_groups > 50, "{row_groups}");
    assert_eq!(problems(&run), Ok(Vec::new()));
}

#[test]
fn what_is_broken_is_recorded_again_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let run = small_run(dir.path());
    let (run_arg, whole) = (text(&run), bytes(&run));
    let shards = Run::open(&run).unwrap().shards().len();
    assert!(shards > 3, "{shards}");
    let touched = |index: usize| {
        let path = run.join(format!("acts/hook_point=blocks.1.hook_resid_post/shard-{index:05}.parquet"));
        fs::metadata(path).unwrap().modified().unwrap()
    };
    let before: Vec<_> = (0..shards).map(touched).collect();

    for broken in ["tokens/shard-00001.parquet", "routing/layer=1/shard-00001.parquet", "journal/shard-00001.json"] {
        flip(&run.join(broken), 100, 4);
        fails(&["verify", &run_arg]);
        polariscope(&["verify", &run_arg, "--repair"]);
        assert!(bytes(&run) == whole, "{broken}");
    }
    fs::remove_file(run.join("vocab.parquet")).unwrap();
    polariscope(&["verify", &run_arg, "--repair"]);
    assert!(bytes(&run) == whole);
    let changed: Vec<usize> = (0..shards).filter(|&index| touched(index) != before[index]).collect();
    assert_eq!(changed, [1]);

    // Another model or another corpus is not what was recorded.
    flip(&run.join("documents/shard-00002.parquet"), 9, 1);
    let damaged = bytes(&run);
    let other = text(&crate::support::fixture("gemma3/text"));
    fails(&["verify", &run_arg, "--repair", "--model", &other]);
    let corpus = dir.path().join("corpus.txt");
    let lines = fs::read_to_string(&corpus).unwrap();
    fs::write(&corpus, lines.replace("number 39", "number 93")).unwrap();
    fails(&["verify", &run_arg, "--repair"]);
    assert!(bytes(&run) == damaged);
    fs::write(&corpus, lines).unwrap();
    polariscope(&["verify", &run_arg, "--repair", "--corpus", &text(&corpus)]);
    assert!(bytes(&run) == whole);

    // Recording mends no coder, and nothing tells how a run was begun but its manifest.
    for broken in ["saes/coder/cfg.json", "manifest.json"] {
        let bytes = fs::read(run.join(broken)).unwrap();
        let at = bytes.windows(9).position(|part| part == b"\"hook_nam" || part == b"created_a").unwrap() + 20;
        flip(&run.join(broken), at, 1);
        fails(&["verify", &run_arg, "--repair"]);
        fs::write(run.join(broken), bytes).unwrap();
    }
    assert!(bytes(&run) == whole);
}
