use std::collections::BTreeMap;
use std::path::Path;

use arrow::datatypes::UInt64Type;

use super::*;
use crate::testing::{self, DOC_TOKENS, documents, hook, tokens, write_shard};
use crate::verify;

const RESID: &str = "blocks.1.hook_resid_post";
const MLP: &str = "blocks.0.hook_mlp_out";

/// A run of 2,000 tokens in three shards.
fn origin(dir: &Path, hooks: &[(&str, usize, Dtype)]) -> Run {
    let writer = RunWriter::create(dir, testing::manifest(hooks)).unwrap();
    writer.write_vocab(&["a".to_owned(), "b".to_owned()]).unwrap();
    for (index, range) in [0..700, 700..1950, 1950..2000].into_iter().enumerate() {
        write_shard(&writer, index, range, 333);
    }
    writer.finish("sum of the corpus").unwrap();
    Run::open(dir).unwrap()
}

/// Five buckets where the longest row has 160 bytes.
fn options() -> ShuffleOptions {
    ShuffleOptions { seed: 3, memory: 2000 * (TOKEN_MEMORY + 160) * 2 / 5, ..ShuffleOptions::default() }
}

fn shuffle(run: &Run, options: ShuffleOptions, out: &Path) -> Run {
    let plan = Shuffle::plan(run, options).unwrap();
    plan.write(out, Provenance::default(), false, &mut |_| ControlFlow::Continue(())).unwrap();
    Run::open(out).unwrap()
}

/// The number of every row's token, in the order of the run, as `tokens/` says.
fn order(run: &Run) -> Vec<u64> {
    let rows = |shard: &Shard| run.token_idx_rows(shard, 0..shard.n_tokens as usize).unwrap();
    run.shards().iter().flat_map(rows).collect()
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    files
}

#[test]
fn every_row_survives_bit_for_bit_beside_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let hooks = Dtype::ALL.iter().zip([RESID, MLP, "blocks.1.hook_mlp_out", "blocks.0.hook_resid_post"]);
    let hooks: Vec<_> = hooks.map(|(&dtype, name)| (name, 40, dtype)).collect();
    let run = origin(&dir.path().join("run"), &hooks);
    let shuffled = shuffle(&run, options(), &dir.path().join("shuffled"));

    assert_eq!(shuffled.shards().len(), 5);
    let order = order(&shuffled);
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..2000).collect::<Vec<u64>>());
    assert!(!order.is_sorted());

    let mut all_tokens = TokenColumns::default();
    for shard in shuffled.shards() {
        let n = shard.n_tokens as usize;
        all_tokens.append(&mut shuffled.token_rows(shard, 0..n).unwrap());
        let numbers = shuffled.token_idx_rows(shard, 0..n).unwrap();
        for entry in shuffled.hook_points() {
            let file = shuffled.acts_file(entry.name, shard).unwrap();
            let (bytes, scales) = file.read(0..n, Bytes::new()).unwrap();
            // The same rows in the same order at every hook point, by the column that others join on.
            let table = shuffled.table(&format!("{}/{}", entry.folder(), shard.file_name())).unwrap();
            let column = table.rows(&["token_idx"], 0..n).unwrap();
            assert_eq!(table.primitive::<UInt64Type>(&column, "token_idx").unwrap(), numbers);
            for (i, &token_idx) in numbers.iter().enumerate() {
                let row = run.acts(entry.name, token_idx..token_idx + 1).unwrap();
                assert_eq!(bytes[i * entry.row_bytes()..][..entry.row_bytes()], row.bytes);
                assert_eq!(scales.get(i..=i).unwrap_or_default(), row.scales);
            }
            assert!(file.is_direct());
        }
    }
    for (i, &token_idx) in order.iter().enumerate() {
        assert_eq!(all_tokens.take_front(1), tokens(token_idx..token_idx + 1), "row {i}");
    }
    assert_eq!(shuffled.documents(0..200).unwrap(), documents(0..2000));
    assert_eq!(shuffled.vocab().unwrap(), run.vocab().unwrap());
    let report = verify::verify(&shuffled, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(report.problems, []);
    assert!(!dir.path().join("shuffled").join(SCRATCH).exists());

    let (manifest, before) = (shuffled.manifest(), run.manifest());
    assert_eq!(manifest.counts, before.counts);
    assert_eq!(manifest.corpus, before.corpus);
    assert_eq!((manifest.version, before.version), (2, 1));
    let told = shuffled.shuffled().unwrap();
    assert_eq!((told.seed, told.source_tokens, told.buckets), (3, 2000, shuffled.shards().len()));
    for entry in run.hook_points() {
        let (a, b) = (shuffled.statistics(entry.name).unwrap(), run.statistics(entry.name).unwrap());
        assert_eq!(
            (a.n, a.n_special, a.max_abs, a.median_norm, a.saturated, a.sum_sq_error),
            (b.n, b.n_special, b.max_abs, b.median_norm, b.saturated, b.sum_sq_error)
        );
        assert!((a.sum_sq_norm / b.sum_sq_norm - 1.0).abs() < 1e-9);
    }
}

#[test]
fn the_order_is_that_of_the_seed_whatever_the_memory_and_the_hook_points() {
    let dir = tempfile::tempdir().unwrap();
    let run = origin(&dir.path().join("run"), &[(RESID, 40, Dtype::F32), (MLP, 3, Dtype::I8)]);
    let mut n = 0;
    let mut shuffled = |options| {
        n += 1;
        shuffle(&run, options, &dir.path().join(n.to_string()))
    };
    let first = shuffled(options());
    let again = shuffled(options());
    assert_eq!(first.manifest().shards, again.manifest().shards);
    let whole = shuffled(ShuffleOptions { memory: DEFAULT_MEMORY, ..options() });
    assert_eq!(whole.shards().len(), 1);
    let one = shuffled(ShuffleOptions { hook_points: vec![hook()], ..options() });
    assert_eq!(one.hook_points().len(), 1);
    let other = shuffled(ShuffleOptions { seed: 4, ..options() });
    assert_eq!(order(&first), order(&whole));
    assert_eq!(order(&first), order(&one));
    assert_ne!(order(&first), order(&other));
}

#[test]
fn special_tokens_can_be_left_out_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let run = origin(&dir.path().join("run"), &[(RESID, 40, Dtype::Bf16)]);
    let shuffled = shuffle(&run, ShuffleOptions { skip_special: true, ..options() }, &dir.path().join("shuffled"));
    let mut order = order(&shuffled);
    order.sort_unstable();
    assert_eq!(order, (0..2000).filter(|token| token % DOC_TOKENS != 0).collect::<Vec<u64>>());
    let counts = &shuffled.manifest().counts;
    assert_eq!((counts.tokens_expected, counts.tokens_captured, counts.tokens_skipped["special"]), (2000, 1800, 200));
    assert_eq!(shuffled.statistics(hook()).unwrap().n_special, 0);
    assert_eq!(verify::verify(&shuffled, &mut |_| ControlFlow::Continue(())).unwrap().problems, []);
}

#[test]
fn a_shuffle_that_was_interrupted_anywhere_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let run = origin(&dir.path().join("run"), &[(RESID, 40, Dtype::F32), (MLP, 3, Dtype::I8)]);
    let plan = Shuffle::plan(&run, options()).unwrap();
    let mut calls = 0;
    let undisturbed = dir.path().join("undisturbed");
    plan.write(&undisturbed, Provenance::default(), false, &mut |now| {
        calls += 1;
        assert!(now.bytes_done <= now.bytes_total + 2 * 2000 * 100, "{now:?}");
        ControlFlow::Continue(())
    })
    .unwrap();
    let expected = files(&undisturbed);
    for stop in 1..=calls {
        // Stopped at the same call each time, it comes to its end all the same.
        let out = dir.path().join(format!("stopped-{stop}"));
        let mut tries = 0;
        loop {
            let mut call = 0;
            let written = plan.write(&out, Provenance::default(), tries > 0, &mut |_| {
                call += 1;
                if call == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            tries += 1;
            match written {
                Ok(_) => break,
                Err(error) => assert!(matches!(error, Error::Interrupted), "{error}"),
            }
            assert!(!Run::open(&out).unwrap().manifest().complete);
            assert!(tries < 100);
        }
        assert!(files(&out) == expected, "stopped at call {stop}");
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn what_a_kill_leaves_behind_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let run = origin(&dir.path().join("run"), &[(RESID, 40, Dtype::F32), (MLP, 3, Dtype::I8)]);
    let plan = Shuffle::plan(&run, options()).unwrap();
    let write = |out: &Path, resume, stop: &dyn Fn(&ShuffleProgress) -> bool| {
        plan.write(out, Provenance::default(), resume, &mut |now| {
            if stop(now) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    };
    let undisturbed = dir.path().join("undisturbed");
    write(&undisturbed, false, &|_| false).unwrap();
    let out = dir.path().join("killed");
    write(&out, false, &|now| now.shards == 2).unwrap_err();
    // A file that was being written, one that has no journal entry, and a scratch file that was not cut off yet.
    let leftovers = ["tokens/.shard-00000.parquet.tmp", "tokens/shard-00000.parquet", "journal/.shard-00000.json.tmp"];
    for path in leftovers {
        fs::write(out.join(path), "half").unwrap();
    }
    let scratch = out.join(SCRATCH).join("acts-1.bin");
    fs::OpenOptions::new().write(true).open(&scratch).unwrap().set_len(1 << 20).unwrap();
    write(&out, true, &|_| false).unwrap();
    assert!(files(&out) == files(&undisturbed));
    // Once more is harmless, and the folder of the first pass may be gone when all shards are there.
    write(&out, true, &|_| false).unwrap();

    // Without what tells how far the first pass was, it is done again.
    let out = dir.path().join("forgotten");
    write(&out, false, &|now| now.shards == 1).unwrap_err();
    fs::remove_dir_all(out.join(SCRATCH)).unwrap();
    write(&out, true, &|_| false).unwrap();
    assert!(files(&out) == files(&undisturbed));
}

#[test]
fn what_cannot_be_shuffled_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = origin(&dir.path().join("run"), &[(RESID, 40, Dtype::F32)]);
    let shuffled = shuffle(&run, options(), &dir.path().join("shuffled"));
    let plan = |run: &Run, options| Shuffle::plan(run, options).unwrap_err().to_string();
    assert!(plan(&shuffled, options()).contains("its origin `"));
    assert!(plan(&run, ShuffleOptions { memory: 1, ..options() }).contains("`--memory` sets it"));
    let unknown = ShuffleOptions { hook_points: vec![MLP.parse().unwrap()], ..options() };
    assert!(plan(&run, unknown).contains("recorded hook point"));
    let writer = RunWriter::create(&dir.path().join("begun"), testing::manifest(&[(RESID, 4, Dtype::F32)])).unwrap();
    write_shard(&writer, 0, 0..100, 50);
    assert!(plan(&Run::open(dir.path().join("begun")).unwrap(), options()).contains("expected a complete run"));

    let again = |options: ShuffleOptions, resume| {
        let plan = Shuffle::plan(&run, options).unwrap();
        let out = dir.path().join("shuffled");
        plan.write(&out, Provenance::default(), resume, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    assert!(again(options(), false).contains("a run exists already"));
    assert!(again(ShuffleOptions { seed: 9, ..options() }, true).contains("cannot resume: expected `seeds`"));
    assert!(
        again(ShuffleOptions { skip_special: true, ..options() }, true).contains("cannot resume: expected `shuffled`")
    );
}

#[test]
fn readers_by_token_refuse_a_shuffled_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = origin(&dir.path().join("run"), &[(RESID, 40, Dtype::F32)]);
    let shuffled = shuffle(&run, options(), &dir.path().join("shuffled"));
    for error in [
        shuffled.tokens(0..1).unwrap_err(),
        shuffled.special(0..1).unwrap_err(),
        shuffled.acts(hook(), 0..1).unwrap_err(),
        shuffled.acts_shard(hook(), 0).unwrap_err(),
        shuffled.document_at(0).unwrap_err(),
        shuffled.document_tokens(0).unwrap_err(),
    ] {
        assert!(matches!(error, Error::ShuffledRun { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("found a shuffled one in `") && text.contains("\nhint: its origin `"), "{text}");
    }
    // A program of the first version would take the first row for the first token: it must not open the run.
    let text = fs::read_to_string(dir.path().join("shuffled/manifest.json")).unwrap();
    fs::write(dir.path().join("shuffled/manifest.json"), text.replace("\"version\": 2", "\"version\": 1")).unwrap();
    assert!(Run::open(dir.path().join("shuffled")).unwrap_err().to_string().contains("`shuffled` go together"));
}

#[test]
fn a_run_without_rows_is_shuffled_to_one_without_rows() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(&dir.path().join("run"), 4, Dtype::F32, &[]);
    let shuffled = shuffle(&run, options(), &dir.path().join("shuffled"));
    assert_eq!((shuffled.n_tokens(), shuffled.shards().len()), (0, 1));
}
