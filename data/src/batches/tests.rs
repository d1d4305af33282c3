use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::manifest::Counts;
use crate::random::Random;
use crate::shard::RunWriter;
use crate::testing::{self, DOC_TOKENS, hook, number, tokens};
use crate::{Dtype, Error};

/// Wide enough for several row groups in a small run.
const WIDTH: usize = 4000;

fn options() -> BatchOptions {
    BatchOptions { batch_rows: 64, buffer_rows: 700, seed: 7, epochs: 2, skip_special: true, max_norm_multiple: None }
}

fn read(reader: BatchReader) -> Vec<Batch> {
    reader.map(Result::unwrap).collect()
}

fn ordinary(n_tokens: u64) -> Vec<u64> {
    (0..n_tokens).filter(|token| token % DOC_TOKENS != 0).collect()
}

#[test]
fn every_row_comes_exactly_once_an_epoch() {
    for dtype in Dtype::ALL {
        let dir = tempfile::tempdir().unwrap();
        // i8 and half formats have more rows in a group: a width that keeps the groups small.
        let width = WIDTH * 4 / dtype.size();
        let run = testing::run(dir.path(), width, dtype, &[1100, 50, 700]);
        let reader = BatchReader::new(&run, &[hook()], options()).unwrap();
        assert_eq!((reader.widths()[0], reader.n_rows()), (width, 1850));
        let batches = read(reader);
        let mut orders = Vec::new();
        for epoch in 0..2 {
            let of_epoch: Vec<&Batch> = batches.iter().filter(|batch| batch.epoch == epoch).collect();
            let (last, full) = of_epoch.split_last().unwrap();
            assert!(full.iter().all(|batch| batch.len() == 64));
            assert_eq!(last.len(), 1665 % 64);
            let order: Vec<u64> = of_epoch.iter().flat_map(|batch| batch.token_idx.clone()).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, ordinary(1850));
            orders.push(order);
        }
        assert_ne!(orders[0], orders[1]);
        // Rows are those of their tokens.
        for batch in &batches {
            for (token, row) in batch.token_idx.iter().zip(batch.acts[0].chunks_exact(width)).step_by(13) {
                let tolerance = if dtype == Dtype::I8 { 0.6 } else { 0.0 };
                assert!((row[17] - number(*token, 0, 17)).abs() <= tolerance);
            }
        }
    }
}

#[test]
fn a_batch_has_rows_of_many_row_groups() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), WIDTH, Dtype::F32, &[2600, 2600]);
    let first = BatchReader::new(&run, &[hook()], BatchOptions { buffer_rows: 2000, ..options() }).unwrap().next();
    let mut groups: Vec<u64> = first.unwrap().unwrap().token_idx.iter().map(|token| token / 520).collect();
    groups.sort_unstable();
    groups.dedup();
    assert!(groups.len() >= 4, "{groups:?}");
}

#[test]
fn a_seed_gives_the_same_batches_and_another_seed_others() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), WIDTH, Dtype::F32, &[900, 900]);
    let batches = |seed| read(BatchReader::new(&run, &[hook()], BatchOptions { seed, ..options() }).unwrap());
    assert_eq!(batches(1), batches(1));
    assert_ne!(batches(1), batches(2));
}

#[test]
fn a_reader_goes_on_exactly_from_every_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), WIDTH, Dtype::F32, &[1100, 700]);
    let mut reader = BatchReader::new(&run, &[hook()], options()).unwrap();
    let mut cursors = vec![reader.cursor().clone()];
    let mut whole = Vec::new();
    let mut excluded = vec![reader.excluded()];
    while let Some(batch) = reader.next() {
        whole.push(batch.unwrap());
        cursors.push(reader.cursor().clone());
        excluded.push(reader.excluded());
    }
    assert_eq!(whole.len(), 2 * 1620usize.div_ceil(64));
    assert_eq!(excluded.last().unwrap().special, 360);
    for (done, cursor) in cursors.into_iter().enumerate() {
        let text = serde_json::to_string(&cursor).unwrap();
        let cursor: Cursor = serde_json::from_str(&text).unwrap();
        assert_eq!(cursor.batches, done as u64);
        let mut reader = BatchReader::resume(&run, &[hook()], options(), cursor).unwrap();
        let rest: Vec<Batch> = reader.by_ref().map(Result::unwrap).collect();
        assert_eq!(rest, whole[done..], "after {done} batches");
        assert_eq!(reader.excluded(), *excluded.last().unwrap());
        assert_eq!(reader.cursor().rows, 3240);
    }
}

#[test]
fn a_cursor_of_other_options_or_another_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), 8, Dtype::F32, &[100]);
    let mut reader = BatchReader::new(&run, &[hook()], options()).unwrap();
    reader.next().unwrap().unwrap();
    let cursor = reader.cursor().clone();
    let other = BatchOptions { seed: 8, ..options() };
    let error = BatchReader::resume(&run, &[hook()], other, cursor.clone()).unwrap_err();
    assert!(matches!(error, Error::ForeignCursor { field: "options", .. }), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let shorter = testing::run(dir.path(), 8, Dtype::F32, &[90]);
    assert!(BatchReader::resume(&shorter, &[hook()], options(), cursor.clone()).is_err());
    // More epochs of the same are fine.
    let more = BatchReader::resume(&run, &[hook()], BatchOptions { epochs: 3, ..options() }, cursor).unwrap();
    assert_eq!(read(more).len(), 5);
}

/// A run in which every seventh row has a norm a hundred times that of the others, or is not finite.
fn run_with_outliers(dir: &std::path::Path, n: u64) -> Run {
    let writer = RunWriter::create(dir, testing::manifest(&[("blocks.1.hook_resid_post", 2, Dtype::F32)])).unwrap();
    let mut shard = writer.shard(0, 0).unwrap();
    shard.write_tokens(&tokens(0..n)).unwrap();
    let rows = (0..n).flat_map(|token| match token % 14 {
        7 => [f32::NAN, 0.0],
        0 => [300.0, 400.0],
        _ => [3.0, 4.0],
    });
    shard.write_acts(0, Dtype::F32, Bytes::from(rows.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())).unwrap();
    shard.commit(json!(null), Counts::captured(0, n)).unwrap();
    writer.finish("0").unwrap();
    Run::open(dir).unwrap()
}

#[test]
fn special_tokens_and_outliers_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_with_outliers(dir.path(), 700);
    assert!((run.statistics(hook()).unwrap().median_norm / 5.0 - 1.0).abs() < 0.012);
    let options = BatchOptions { epochs: 1, max_norm_multiple: Some(10.0), ..options() };
    let expected: Vec<u64> = (0..700).filter(|token| token % DOC_TOKENS != 0 && token % 7 != 0).collect();
    let shuffled = testing::shuffled(&run, &dir.path().join("shuffled"), 1, 3);
    for run in [&run, &shuffled] {
        let mut reader = BatchReader::new(run, &[hook()], options.clone()).unwrap();
        let batches: Vec<Batch> = reader.by_ref().map(Result::unwrap).collect();
        assert!(batches.iter().all(|batch| batch.acts[0] == [3.0, 4.0].repeat(batch.len())));
        let mut seen: Vec<u64> = batches.into_iter().flat_map(|batch| batch.token_idx).collect();
        seen.sort_unstable();
        assert_eq!(seen, expected);
        assert_eq!(reader.excluded(), Excluded { special: 70, outliers: 90 });
    }

    let all = BatchOptions { skip_special: false, max_norm_multiple: None, ..options.clone() };
    assert_eq!(read(BatchReader::new(&run, &[hook()], all).unwrap()).iter().map(Batch::len).sum::<usize>(), 700);

    let none = BatchOptions { max_norm_multiple: Some(0.1), ..options };
    let error = BatchReader::new(&run, &[hook()], none).unwrap().next().unwrap().unwrap_err();
    assert!(error.to_string().contains("70 special tokens and 630 outliers"), "{error}");
}

#[test]
fn a_missing_shard_ends_the_reading_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), 8, Dtype::F32, &[100, 100]);
    fs_err::remove_file(dir.path().join("tokens/shard-00001.parquet")).unwrap();
    let mut reader = BatchReader::new(&run, &[hook()], options()).unwrap();
    let error = reader.find_map(Result::err).unwrap();
    assert!(error.to_string().contains("tokens/shard-00001.parquet"), "{error}");
    assert!(reader.next().is_none());
    let empty = tempfile::tempdir().unwrap();
    let empty = testing::run(empty.path(), 8, Dtype::F32, &[]);
    let error = BatchReader::new(&empty, &[hook()], options()).unwrap().next().unwrap().unwrap_err();
    assert!(matches!(error, Error::NothingToRead { .. }), "{error}");
}

const RESID: &str = "blocks.1.hook_resid_post";
const MLP: &str = "blocks.0.hook_mlp_out";

/// A run of two hook points, one of them i8.
fn two_hooks(dir: &std::path::Path) -> Run {
    let writer =
        RunWriter::create(dir, testing::manifest(&[(RESID, WIDTH, Dtype::F32), (MLP, 24, Dtype::I8)])).unwrap();
    testing::write_shard(&writer, 0, 0..1100, 500);
    testing::write_shard(&writer, 1, 1100..1800, 500);
    writer.finish("0").unwrap();
    Run::open(dir).unwrap()
}

/// A run, and the same shuffled.
fn both_orders(dir: &std::path::Path) -> [Run; 2] {
    let run = two_hooks(&dir.join("run"));
    let shuffled = testing::shuffled(&run, &dir.join("shuffled"), 5, 4);
    [run, shuffled]
}

#[test]
fn a_shuffled_run_gives_every_row_once_an_epoch_too() {
    let dir = tempfile::tempdir().unwrap();
    let [_, run] = both_orders(dir.path());
    let mut reader = BatchReader::new(&run, &[hook()], options()).unwrap();
    let batches: Vec<Batch> = reader.by_ref().map(Result::unwrap).collect();
    assert_eq!(reader.excluded(), Excluded { special: 360, outliers: 0 });
    let mut orders = Vec::new();
    for epoch in 0..2 {
        let of_epoch: Vec<&Batch> = batches.iter().filter(|batch| batch.epoch == epoch).collect();
        let (last, full) = of_epoch.split_last().unwrap();
        assert!(full.iter().all(|batch| batch.len() == 64));
        assert_eq!(last.len(), 1620 % 64);
        let order: Vec<u64> = of_epoch.iter().flat_map(|batch| batch.token_idx.clone()).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, ordinary(1800));
        orders.push(order);
    }
    assert_ne!(orders[0], orders[1], "shards come in another order");
}

#[test]
fn one_read_serves_several_hook_points_with_rows_of_the_same_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let hooks = [hook(), MLP.parse().unwrap()];
    for run in both_orders(dir.path()) {
        let together = read(BatchReader::new(&run, &hooks, options()).unwrap());
        let alone = read(BatchReader::new(&run, &hooks[..1], options()).unwrap());
        assert_eq!(together.len(), alone.len());
        for (batch, alone) in together.iter().zip(&alone) {
            assert_eq!((&batch.token_idx, &batch.acts[0]), (&alone.token_idx, &alone.acts[0]));
            for (i, &token) in batch.token_idx.iter().enumerate() {
                assert_eq!(batch.acts[0][i * WIDTH + 17], number(token, 0, 17));
                assert!((batch.acts[1][i * 24 + 5] - number(token, 1, 5)).abs() <= 0.6);
            }
        }
    }
}

#[test]
fn a_hook_point_is_read_without_touching_the_others() {
    let dir = tempfile::tempdir().unwrap();
    for run in both_orders(dir.path()) {
        let before = read(BatchReader::new(&run, &[hook()], options()).unwrap());
        let other = run.dir().join(format!("acts/hook_point={MLP}"));
        fs_err::write(other.join("shard-00000.parquet"), "no Parquet").unwrap();
        fs_err::remove_file(other.join("shard-00001.parquet")).unwrap();
        let run = Run::open(run.dir()).unwrap();
        assert!(read(BatchReader::new(&run, &[hook()], options()).unwrap()) == before);
        if run.shuffled().is_none() {
            assert_eq!(run.acts(hook(), 7..9).unwrap().to_f32(), testing::rows(7..9, 0, WIDTH));
        }
        assert!(
            BatchReader::new(&run, &[MLP.parse().unwrap()], options())
                .is_err_and(|error| error.to_string().contains(MLP))
                || BatchReader::new(&run, &[MLP.parse().unwrap()], options()).unwrap().any(|batch| batch.is_err())
        );
    }
}

/// Options, hook points and stops are drawn; the seeds are fixed.
#[test]
fn readers_go_on_exactly_from_anywhere_in_either_order() {
    let dir = tempfile::tempdir().unwrap();
    let all = [hook(), MLP.parse().unwrap()];
    for run in both_orders(dir.path()) {
        for case in 0..12 {
            let mut random = Random::new(99, case, 0);
            let options = BatchOptions {
                batch_rows: 1 + random.below(300),
                buffer_rows: random.below(2500),
                seed: random.below(1000) as u64,
                epochs: 1 + random.below(3) as u32,
                skip_special: random.below(2) == 0,
                // Norms of the made-up rows differ little: this leaves out about half.
                max_norm_multiple: (random.below(2) == 0).then_some(1.0),
            };
            let hooks = &all[random.below(2)..];
            let whole = read(BatchReader::new(&run, hooks, options.clone()).unwrap());
            let mut parts = Vec::new();
            let mut reader = BatchReader::new(&run, hooks, options.clone()).unwrap();
            while parts.len() < whole.len() {
                parts.extend(reader.by_ref().take(random.below(40)).map(Result::unwrap));
                let text = serde_json::to_string(reader.cursor()).unwrap();
                let cursor: Cursor = serde_json::from_str(&text).unwrap();
                assert_eq!(
                    (cursor.batches, cursor.rows),
                    (parts.len() as u64, parts.iter().map(|b| b.len() as u64).sum())
                );
                reader = BatchReader::resume(&run, hooks, options.clone(), cursor).unwrap();
            }
            assert!(parts == whole, "case {case} of {}", run.dir().display());
            assert!(reader.next().is_none());
        }
    }
}

#[test]
fn a_cursor_of_the_other_order_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [run, shuffled] = both_orders(dir.path());
    let cursor = |run: &Run| BatchReader::new(run, &[hook()], options()).unwrap().cursor().clone();
    for (run, cursor) in [(&run, cursor(&shuffled)), (&shuffled, cursor(&run))] {
        let error = BatchReader::resume(run, &[hook()], options(), cursor).unwrap_err();
        assert!(matches!(error, Error::ForeignCursor { field: "order", .. }), "{error}");
    }
}
