use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::json;

use super::*;
use crate::acts_read::ActsFile;
use crate::acts_write::rows_per_page;
use crate::store::Run;
use crate::testing::{self, DOC_TOKENS, documents, hook, manifest, number, rows, to_bytes, tokens, write_shard};

const RESID: &str = "blocks.1.hook_resid_post";
const MLP: &str = "blocks.0.hook_mlp_out";

#[test]
fn what_is_written_is_read_in_every_format() {
    for dtype in Dtype::ALL {
        let dir = tempfile::tempdir().unwrap();
        let run = testing::run(dir.path(), 5, dtype, &[700, 130]);
        assert_eq!((run.n_tokens(), run.n_documents()), (830, 83));
        let acts = run.acts(hook(), 690..720).unwrap();
        assert_eq!((acts.n_rows(), acts.width, acts.dtype, acts.first_token_idx), (30, 5, dtype, 690));
        let expected = rows(690..720, 0, 5);
        for (x, y) in acts.to_f32().iter().zip(&expected) {
            // i8 has 127 steps to the greatest number of a row.
            let tolerance = if dtype == Dtype::I8 { 151.0 / 127.0 / 2.0 * 1.001 } else { 0.0 };
            assert!((x - y).abs() <= tolerance, "{dtype} {x} {y}");
        }
        assert_eq!(acts.row_f32(29), acts.to_f32()[145..]);
        assert!(acts.row_f32(30).is_empty());
        let all: Vec<f32> = (0..2)
            .flat_map(|shard| run.acts_shard(hook(), shard).unwrap())
            .flat_map(|acts| acts.unwrap().to_f32())
            .collect();
        assert_eq!(all, run.acts(hook(), 0..830).unwrap().to_f32());
    }
}

#[test]
fn tokens_and_documents_round_trip_across_shards() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), 3, Dtype::F32, &[25, 1, 74]);
    assert_eq!(run.tokens(0..100).unwrap(), tokens(0..100));
    assert_eq!(run.tokens(24..27).unwrap(), tokens(24..27));
    assert_eq!(run.tokens(50..50).unwrap(), TokenColumns::default());
    assert_eq!(run.special(19..22).unwrap(), [false, true, false]);
    assert_eq!(run.token_ids(19..22).unwrap(), (tokens(19..22).token_id, vec![false, true, false]));
    assert_eq!(run.documents(0..10).unwrap(), documents(0..100));
    assert_eq!(run.document(9).unwrap(), documents(90..91)[0]);
    assert_eq!(run.document_tokens(2).unwrap(), 2 * DOC_TOKENS..3 * DOC_TOKENS);
    assert_eq!(run.document_at(99).unwrap(), 9);
    for error in [
        run.tokens(99..101).unwrap_err(),
        run.acts(hook(), 100..101).unwrap_err(),
        run.document(10).unwrap_err(),
        run.document_at(100).unwrap_err(),
        #[expect(clippy::reversed_empty_ranges, reason = "a user may ask for one")]
        run.tokens(10..5).unwrap_err(),
    ] {
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    }
    assert!(run.acts("hook_embed".parse().unwrap(), 0..1).unwrap_err().to_string().contains("there is `blocks.1"));
}

#[test]
fn the_same_rows_give_the_same_bytes_however_they_come() {
    let hooks = [(RESID, 300, Dtype::F32), (MLP, 7, Dtype::I8)];
    let files = |step: u64| {
        let dir = tempfile::tempdir().unwrap();
        let run = RunWriter::create(dir.path(), manifest(&hooks)).unwrap();
        write_shard(&run, 0, 0..9000, step);
        run.finish("0").unwrap().shards[0].files.clone()
    };
    let first = files(9000);
    assert_eq!(first.len(), 4);
    assert_eq!(files(1), first);
    assert_eq!(files(873), first);
}

#[test]
fn a_killed_run_resumes_to_the_same_manifest() {
    let hooks = [(RESID, 16, Dtype::Bf16), (MLP, 4, Dtype::F32)];
    let whole = tempfile::tempdir().unwrap();
    let run = RunWriter::create(whole.path(), manifest(&hooks)).unwrap();
    write_shard(&run, 0, 0..500, 64);
    write_shard(&run, 1, 500..900, 64);
    let expected = run.finish("s").unwrap();

    let dir = tempfile::tempdir().unwrap();
    let run = RunWriter::create(dir.path(), manifest(&hooks)).unwrap();
    write_shard(&run, 0, 0..500, 64);
    // A shard that is dropped in the middle leaves nothing.
    let mut shard = run.shard(1, 500).unwrap();
    shard.write_tokens(&tokens(500..600)).unwrap();
    shard.write_acts(0, Dtype::F32, to_bytes(&rows(500..600, 0, 16))).unwrap();
    drop(shard);
    drop(run);
    // A process that is killed leaves temporary files, and files of a shard without a journal entry.
    let acts = dir.path().join("acts").join(format!("hook_point={RESID}"));
    assert_eq!(fs::read_dir(&acts).unwrap().count(), 1);
    let leftovers = [
        acts.join(".shard-00001.parquet.tmp"),
        acts.join("shard-00001.parquet"),
        dir.path().join("tokens/shard-00001.parquet"),
        dir.path().join("journal/.shard-00001.json.tmp"),
    ];
    for path in &leftovers {
        fs::write(path, "half").unwrap();
    }

    let seen = Run::open(dir.path()).unwrap();
    assert_eq!((seen.n_tokens(), seen.manifest().complete), (500, false));
    assert_eq!(seen.acts(hook(), 499..500).unwrap().to_f32(), rows(499..500, 0, 16));

    let run = RunWriter::resume(dir.path(), &manifest(&hooks)).unwrap();
    assert!(leftovers.iter().all(|path| !path.exists()));
    assert_eq!((run.next_token_idx(), run.next_shard(), run.next_doc_id()), (500, 1, 50));
    assert_eq!(run.journal()[0].cursor, json!({"next": 500}));
    write_shard(&run, 1, 500..900, 100);
    assert_eq!(run.finish("s").unwrap(), expected);
    assert!(RunWriter::resume(dir.path(), &manifest(&hooks)).unwrap().is_complete());
}

#[test]
fn a_run_is_not_overwritten_or_written_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let wanted = manifest(&[(RESID, 4, Dtype::F32)]);
    let run = RunWriter::create(&path, wanted.clone()).unwrap();
    assert!(matches!(RunWriter::create(&path, wanted.clone()), Err(Error::RunExists { .. })));
    if cfg!(target_os = "linux") {
        assert!(matches!(RunWriter::resume(&path, &wanted), Err(Error::RunBusy { .. })));
    }
    write_shard(&run, 0, 0..10, 10);
    assert!(run.shard(0, 10).is_err());
    drop(run);
    assert!(matches!(RunWriter::create(dir.path(), wanted.clone()), Err(Error::NotEmpty { .. })));
    assert!(matches!(RunWriter::resume(dir.path(), &wanted), Err(Error::NotARun { .. })));

    let check = |edit: &dyn Fn(&mut Manifest), field: &str| {
        let mut other = wanted.clone();
        edit(&mut other);
        let error = RunWriter::resume(&path, &other).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("--out"), "{error}");
    };
    check(&|m| m.model.id = "other".to_owned(), "`model.id` `\"other\"`, found `\"tiny\"`");
    check(&|m| m.corpus.options = json!({"context": 128}), "`corpus.options`");
    check(&|m| m.hook_points[0].dtype = Dtype::Bf16, "`hook_points`");
    check(&|m| m.seeds = BTreeMap::from([("corpus".to_owned(), 1)]), "`seeds`");
    // Where and when it is written does not matter.
    let moved = Manifest { created_at: "later".to_owned(), command: vec!["again".to_owned()], ..wanted };
    RunWriter::resume(&path, &moved).unwrap();
}

#[test]
fn shards_that_do_not_fit_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunWriter::create(dir.path(), manifest(&[(RESID, 4, Dtype::F32)])).unwrap();
    let ten_rows = || to_bytes(&rows(0..10, 0, 4));
    let text = |error: Error| error.to_string();

    let mut shard = run.shard(0, 0).unwrap();
    assert!(text(shard.write_acts(0, Dtype::F32, ten_rows()).unwrap_err()).contains("tokens before the rows"));
    shard.write_tokens(&tokens(0..10)).unwrap();
    assert!(text(shard.write_acts(0, Dtype::F32, ten_rows().slice(1..)).unwrap_err()).contains("bytes in the rows"));
    assert!(text(shard.write_acts(1, Dtype::F32, ten_rows()).unwrap_err()).contains("hook points"));
    let mut uneven = tokens(10..11);
    uneven.nll.clear();
    assert!(text(shard.write_tokens(&uneven).unwrap_err()).contains("`nll`"));
    assert!(
        text(shard.write_documents(&documents(0..1)).and(shard.write_documents(&documents(20..21))).unwrap_err())
            .contains("`doc_id`")
    );
    assert!(text(shard.commit(json!(0), Counts::captured(1, 10)).unwrap_err()).contains("expected 10 rows"));

    let mut shard = run.shard(0, 0).unwrap();
    shard.write_tokens(&tokens(0..10)).unwrap();
    shard.write_acts(0, Dtype::F32, ten_rows()).unwrap();
    assert!(text(shard.commit(json!(0), Counts::captured(0, 9)).unwrap_err()).contains("captured tokens"));

    let mut shard = run.shard(0, 0).unwrap();
    shard.write_tokens(&tokens(0..10)).unwrap();
    shard.write_acts(0, Dtype::F32, ten_rows()).unwrap();
    let lost = Counts { documents: 0, tokens_expected: 12, tokens_captured: 10, tokens_skipped: BTreeMap::new() };
    assert!(matches!(shard.commit(json!(0), lost), Err(Error::LostTokens { .. })));

    assert!(Run::open(dir.path()).unwrap().shards().is_empty());
    write_shard(&run, 3, 20..30, 10);
    assert!(text(run.finish("0").unwrap_err()).contains("first token of shard 3"));
}

#[test]
fn a_run_is_not_complete_without_a_file_that_has_disappeared() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = manifest(&[(RESID, 4, Dtype::F32)]);
    let run = RunWriter::create(dir.path(), wanted.clone()).unwrap();
    write_shard(&run, 0, 0..10, 10);
    write_shard(&run, 1, 10..20, 10);
    fs::remove_dir_all(dir.path().join("acts")).unwrap();
    assert!(matches!(run.finish("0"), Err(Error::LostShard { index: 0, .. })));
    assert!(!Run::open(dir.path()).unwrap().manifest().complete);
    let run = RunWriter::resume(dir.path(), &wanted).unwrap();
    write_shard(&run, 0, 0..10, 10);
    write_shard(&run, 1, 10..20, 10);
    assert!(run.finish("0").unwrap().complete);
}

#[test]
fn skipped_tokens_are_counted_and_statistics_leave_special_ones_out() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunWriter::create(dir.path(), manifest(&[(RESID, 2, Dtype::F16)])).unwrap();
    let mut shard = run.shard(0, 0).unwrap();
    shard.write_tokens(&tokens(0..4)).unwrap();
    // The first token is special; one number is too large for f16.
    let numbers = [9000.0, 1.0, 3.0, 4.0, 1.0e6, 0.0, f32::NAN, 1.0];
    shard.write_acts(0, Dtype::F32, to_bytes(&numbers)).unwrap();
    let mut counts = Counts::captured(0, 4);
    counts.skip("too long", 5);
    shard.commit(json!(null), counts).unwrap();
    let manifest = run.finish("0").unwrap();
    assert_eq!((manifest.counts.tokens_expected, manifest.counts.tokens_skipped["too long"]), (9, 5));
    let stats = &manifest.statistics[RESID];
    assert_eq!((stats.n, stats.n_special, stats.nonfinite, stats.saturated), (2, 1, 1, 1));
    assert_eq!(stats.sum, [3.0 + 65_504.0, 4.0]);
    assert_eq!((stats.max_abs, stats.max_abs_special), (65_504.0, 9000.0));
    assert_eq!(stats.mean()[1], 2.0);
    assert_eq!(Run::open(dir.path()).unwrap().statistics(hook()).unwrap(), *stats);
}

#[test]
fn the_column_act_is_plain_and_has_its_page_index() {
    let dir = tempfile::tempdir().unwrap();
    let width = 4000;
    let run = testing::run(dir.path(), width, Dtype::F32, &[600]);
    let path = dir.path().join(format!("acts/hook_point={RESID}/shard-00000.parquet"));
    let file = run.acts_file(hook(), &run.shards()[0]).unwrap();
    assert!(file.is_direct());
    // 65 rows of 16,000 bytes make a page of a megabyte, eight pages a row group.
    assert_eq!(rows_per_page(4 * width), 65);
    assert_eq!(file.groups(), [0..520, 520..600]);
    let table = crate::parquet_io::TableFile::open(&path).unwrap();
    let metadata = table.metadata().metadata();
    for group in metadata.row_groups() {
        let act = group.column(1);
        assert_eq!(act.compression(), Compression::UNCOMPRESSED);
        assert!(act.statistics().is_none() && act.dictionary_page_offset().is_none());
        assert!(act.offset_index_offset().is_some());
        assert!(group.column(0).statistics().is_some() && group.column(0).column_index_offset().is_some());
        assert_eq!(group.sorting_columns().unwrap()[0].column_idx, 0);
    }
    // The reader of the `parquet` crate finds the same, whole and in part.
    let decoded = ActsFile::open(&path, run.hook_point(hook()).unwrap()).unwrap().decoded();
    for range in [0..600, 0..1, 64..66, 519..521, 599..600, 300..300] {
        assert_eq!(
            decoded.read(range.clone(), Bytes::new()).unwrap(),
            file.read(range.clone(), Bytes::new()).unwrap(),
            "{range:?}"
        );
        let expected = to_bytes(&rows(range.start as u64..range.end as u64, 0, width));
        assert_eq!(file.read(range, Bytes::new()).unwrap().0, expected);
    }
    let token_idx = table.rows(&["token_idx"], 510..530).unwrap();
    let token_idx = table.primitive::<arrow::datatypes::UInt64Type>(&token_idx, "token_idx").unwrap();
    assert_eq!(token_idx, (510..530).collect::<Vec<u64>>());
}

#[test]
fn the_vocabulary_is_kept_when_there_is_a_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunWriter::create(dir.path(), manifest(&[])).unwrap();
    assert_eq!(Run::open(dir.path()).unwrap().vocab().unwrap(), None);
    let vocab = ["<pad>", "<0xE2>", "▁the"].map(str::to_owned);
    run.write_vocab(&vocab).unwrap();
    assert_eq!(Run::open(dir.path()).unwrap().vocab().unwrap().unwrap(), vocab);
}

#[test]
fn a_shard_without_tokens_is_a_file_without_rows() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), 3, Dtype::F32, &[0, 20]);
    assert_eq!(run.acts(hook(), 0..20).unwrap().to_f32(), rows(0..20, 0, 3));
    assert_eq!(run.acts_shard(hook(), 0).unwrap().count(), 0);
    assert_eq!(run.tokens(0..20).unwrap(), tokens(0..20));
}

/// Writes a shard of activations again as another program would.
fn rewrite(path: &Path, compression: Compression, dictionary: bool) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap().into_parts().0).unwrap();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let properties =
        WriterProperties::builder().set_compression(compression).set_dictionary_enabled(dictionary).build();
    let file = fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batches[0].schema(), Some(properties)).unwrap();
    for batch in &batches {
        writer.write(batch).unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn files_that_another_program_wrote_are_read_too() {
    let zstd = Compression::ZSTD(ZstdLevel::try_new(1).unwrap());
    for (compression, dictionary, direct) in
        [(Compression::UNCOMPRESSED, false, true), (Compression::UNCOMPRESSED, true, false), (zstd, false, false)]
    {
        let dir = tempfile::tempdir().unwrap();
        testing::run(dir.path(), 6, Dtype::I8, &[2000]);
        let before = Run::open(dir.path()).unwrap().acts(hook(), 0..2000).unwrap();
        rewrite(&dir.path().join(format!("acts/hook_point={RESID}/shard-00000.parquet")), compression, dictionary);
        let run = Run::open(dir.path()).unwrap();
        assert_eq!(run.acts(hook(), 0..2000).unwrap(), before);
        assert_eq!(run.acts(hook(), 1234..1240).unwrap().to_f32(), before.to_f32()[1234 * 6..1240 * 6]);
        assert_eq!(run.acts_file(hook(), &run.shards()[0]).unwrap().is_direct(), direct);
    }
}

#[test]
fn damaged_runs_are_errors_that_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    testing::run(dir.path(), 64, Dtype::F32, &[500]);
    let path = dir.path().join(format!("acts/hook_point={RESID}/shard-00000.parquet"));
    let whole = fs::read(&path).unwrap();
    let check = |bytes: &[u8], expected: &str| {
        fs::write(&path, bytes).unwrap();
        let error = Run::open(dir.path()).unwrap().acts(hook(), 0..500).unwrap_err().to_string();
        let named = error.contains("shard-00000.parquet") && error.contains("polariscope verify");
        assert!(error.contains(expected) && named, "{error}");
    };
    for length in [0, 3, 8, 100, whole.len() / 2, whole.len() - 1] {
        check(&whole[..length], "cannot read this as Parquet");
    }
    // The footer is whole and promises more than there is.
    let footer_start = whole.len() - 8 - u32::from_le_bytes(whole[whole.len() - 8..][..4].try_into().unwrap()) as usize;
    check(&[&whole[..1000], &whole[footer_start..]].concat(), "cannot read this as Parquet");
    let mut scrambled = whole.clone();
    scrambled[footer_start..whole.len() - 8].iter_mut().for_each(|byte| *byte ^= 0x55);
    check(&scrambled, "cannot read this as Parquet");
    // A file of another width, and one of fewer rows.
    let other = tempfile::tempdir().unwrap();
    testing::run(other.path(), 65, Dtype::F32, &[500]);
    let foreign = fs::read(other.path().join(format!("acts/hook_point={RESID}/shard-00000.parquet"))).unwrap();
    fs::write(&path, foreign).unwrap();
    let error = Run::open(dir.path()).unwrap().acts(hook(), 0..1).unwrap_err().to_string();
    assert!(error.contains("expected column `act` to be FixedSizeBinary(256)"), "{error}");

    fs::remove_file(&path).unwrap();
    let error = Run::open(dir.path()).unwrap().acts(hook(), 0..1).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }), "{error}");
    assert!(error.to_string().contains("polariscope verify"));
}

#[test]
fn every_prefix_of_a_footer_is_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    testing::run(dir.path(), 4, Dtype::F32, &[50]);
    for relative in ["tokens/shard-00000.parquet", "documents/shard-00000.parquet"] {
        let path = dir.path().join(relative);
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(7) {
            fs::write(&path, &whole[..length]).unwrap();
            let run = Run::open(dir.path()).unwrap();
            assert!(run.tokens(0..50).and(run.documents(0..5).map(drop)).is_err());
        }
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(number(0, 0, 0), -100.0);
}

#[test]
fn no_flipped_byte_is_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    testing::run(dir.path(), 4, Dtype::I8, &[60]);
    let acts = format!("acts/hook_point={RESID}/shard-00000.parquet");
    for relative in ["tokens/shard-00000.parquet", "documents/shard-00000.parquet", &acts] {
        let path = dir.path().join(relative);
        let whole = fs::read(&path).unwrap();
        let mut noticed = 0;
        for at in (0..whole.len()).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at / 5 % 8);
            fs::write(&path, bytes).unwrap();
            let run = Run::open(dir.path()).unwrap();
            let read = run.tokens(0..60).and(run.documents(0..6)).and(run.acts(hook(), 0..60));
            noticed += usize::from(read.is_err());
        }
        assert!(noticed > 0, "{relative}");
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn names_from_a_manifest_do_not_lead_out_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), 4, Dtype::F32, &[50]);
    assert!(matches!(run.sae_dir("../../x"), Err(Error::BadName { .. })));
    assert!(matches!(run.feature_table(".."), Err(Error::BadName { .. })));
    let path = dir.path().join("manifest.json");
    let text = fs::read_to_string(&path).unwrap().replace("tokens/shard-00000", "../../secret");
    fs::write(&path, text).unwrap();
    assert!(matches!(Run::open(dir.path()), Err(Error::BadName { .. })));
}
