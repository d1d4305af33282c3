use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::manifest::Counts;
use crate::shard::RunWriter;
use crate::testing::{self, DOC_TOKENS, hook, number, tokens};
use crate::{Dtype, Error};

/// Wide enough for several row groups in a small run.
const WIDTH: usize = 4000;

fn options() -> MixingOptions {
    MixingOptions { batch_rows: 64, buffer_rows: 700, seed: 7, epochs: 2, skip_special: true, max_norm_multiple: None }
}

fn read(reader: MixingReader) -> Vec<Batch> {
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
        let reader = MixingReader::new(&run, hook(), options()).unwrap();
        assert_eq!((reader.width(), reader.n_rows()), (width, 1850));
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
            for (token, row) in batch.token_idx.iter().zip(batch.rows.chunks_exact(width)).step_by(13) {
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
    let first = MixingReader::new(&run, hook(), MixingOptions { buffer_rows: 2000, ..options() }).unwrap().next();
    let mut groups: Vec<u64> = first.unwrap().unwrap().token_idx.iter().map(|token| token / 520).collect();
    groups.sort_unstable();
    groups.dedup();
    assert!(groups.len() >= 4, "{groups:?}");
}

#[test]
fn a_seed_gives_the_same_batches_and_another_seed_others() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), WIDTH, Dtype::F32, &[900, 900]);
    let batches = |seed| read(MixingReader::new(&run, hook(), MixingOptions { seed, ..options() }).unwrap());
    assert_eq!(batches(1), batches(1));
    assert_ne!(batches(1), batches(2));
}

#[test]
fn a_reader_goes_on_exactly_from_every_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), WIDTH, Dtype::F32, &[1100, 700]);
    let mut reader = MixingReader::new(&run, hook(), options()).unwrap();
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
        let mut reader = MixingReader::resume(&run, hook(), options(), cursor).unwrap();
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
    let mut reader = MixingReader::new(&run, hook(), options()).unwrap();
    reader.next().unwrap().unwrap();
    let cursor = reader.cursor().clone();
    let other = MixingOptions { seed: 8, ..options() };
    let error = MixingReader::resume(&run, hook(), other, cursor.clone()).unwrap_err();
    assert!(matches!(error, Error::ForeignCursor { field: "options", .. }), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let shorter = testing::run(dir.path(), 8, Dtype::F32, &[90]);
    assert!(MixingReader::resume(&shorter, hook(), options(), cursor.clone()).is_err());
    // More epochs of the same are fine.
    let more = MixingReader::resume(&run, hook(), MixingOptions { epochs: 3, ..options() }, cursor).unwrap();
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
    let options = MixingOptions { epochs: 1, max_norm_multiple: Some(10.0), ..options() };
    let mut reader = MixingReader::new(&run, hook(), options.clone()).unwrap();
    let mut seen: Vec<u64> = reader.by_ref().flat_map(|batch| batch.unwrap().token_idx).collect();
    seen.sort_unstable();
    let expected: Vec<u64> = (0..700).filter(|token| token % DOC_TOKENS != 0 && token % 7 != 0).collect();
    assert_eq!(seen, expected);
    assert_eq!(reader.excluded(), Excluded { special: 70, outliers: 90 });

    let all = MixingOptions { skip_special: false, max_norm_multiple: None, ..options.clone() };
    assert_eq!(read(MixingReader::new(&run, hook(), all).unwrap()).iter().map(Batch::len).sum::<usize>(), 700);

    let none = MixingOptions { max_norm_multiple: Some(0.1), ..options };
    let error = MixingReader::new(&run, hook(), none).unwrap().next().unwrap().unwrap_err();
    assert!(error.to_string().contains("70 special tokens and 630 outliers"), "{error}");
}

#[test]
fn a_missing_shard_ends_the_reading_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), 8, Dtype::F32, &[100, 100]);
    fs_err::remove_file(dir.path().join("tokens/shard-00001.parquet")).unwrap();
    let mut reader = MixingReader::new(&run, hook(), options()).unwrap();
    let error = reader.find_map(Result::err).unwrap();
    assert!(error.to_string().contains("tokens/shard-00001.parquet"), "{error}");
    assert!(reader.next().is_none());
    let empty = tempfile::tempdir().unwrap();
    let empty = testing::run(empty.path(), 8, Dtype::F32, &[]);
    let error = MixingReader::new(&empty, hook(), options()).unwrap().next().unwrap().unwrap_err();
    assert!(matches!(error, Error::NothingToRead { .. }), "{error}");
}
