//! Do others find the numbers that are stored, and is nothing half written?

use std::ops::ControlFlow;
use std::path::PathBuf;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Int32Type, UInt64Type};
use arrow::ipc::reader::StreamReader;
use fs_err as fs;
use serde_json::Value;

use super::*;
use crate::parquet_io::TableFile;
use crate::shard::RunWriter;
use crate::testing::{DOC_TOKENS, hook, manifest, number, run, write_shard};

const WIDTH: usize = 8;
const N: u64 = 805;

fn options(format: Format) -> ExportOptions {
    ExportOptions { format, hook_points: Vec::new(), tokens: None, skip_special: false, dtype: None, context: 16 }
}

fn small(dtype: Dtype) -> (tempfile::TempDir, Run) {
    let dir = tempfile::tempdir().unwrap();
    let run = run(&dir.path().join("run"), WIDTH, dtype, &[500, N - 500]);
    (dir, run)
}

fn written(run: &Run, options: &ExportOptions) -> (ExportReport, PathBuf) {
    let out = run.dir().with_file_name(format!("out-{}", options.format.name()));
    let mut last = crate::Progress { done: 0, total: 0 };
    let report = export(run, options, &out, &mut |at| {
        last = at;
        ControlFlow::Continue(())
    });
    let report = report.unwrap();
    assert!(last.done == last.total && last.total > 0, "{last:?}");
    (report, out)
}

fn ordinary() -> Vec<u64> {
    (0..N).filter(|token| token % DOC_TOKENS != 0).collect()
}

fn expected(tokens: &[u64]) -> Vec<f32> {
    tokens.iter().flat_map(|&token| (0..WIDTH).map(move |column| number(token, 0, column))).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn list_values(batch: &RecordBatch, column: &str) -> Vec<f32> {
    let lists = batch.column_by_name(column).unwrap().as_fixed_size_list();
    lists.values().as_primitive::<Float32Type>().values().to_vec()
}

/// The text of the header and the numbers of a `.npy` file.
fn npy(path: &Path) -> (String, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(end.is_multiple_of(64) && bytes[end - 1] == b'\n');
    (String::from_utf8(bytes[10..end].to_vec()).unwrap().trim_end().to_owned(), bytes[end..].to_vec())
}

#[test]
fn parquet_holds_lists_and_what_the_tokens_are() {
    let (_dir, run) = small(Dtype::Bf16);
    let (report, out) = written(&run, &ExportOptions { tokens: Some(100..700), ..options(Format::Parquet) });
    assert_eq!((report.tokens, report.skipped_special), (600, 0));
    assert_eq!(report.bytes, fs::metadata(&out).unwrap().len());
    let file = TableFile::open(&out).unwrap();
    let batch = file.rows(&[], 0..600).unwrap();
    let tokens: Vec<u64> = (100..700).collect();
    assert_eq!(file.primitive::<UInt64Type>(&batch, "token_idx").unwrap(), tokens);
    assert_eq!(file.strings(&batch, "token").unwrap()[5].as_deref(), Some("t105▁é"));
    assert_eq!(list_values(&batch, &hook().to_string()), expected(&tokens));
}

#[test]
fn numpy_maps_what_is_left_of_the_tokens() {
    let (_dir, run) = small(Dtype::F32);
    let (report, out) = written(&run, &ExportOptions { skip_special: true, ..options(Format::Npy) });
    let left = ordinary();
    assert_eq!((report.tokens, report.skipped_special), (left.len() as u64, N - left.len() as u64));
    let (header, numbers) = npy(&out.join("blocks.1.hook_resid_post.npy"));
    assert_eq!(header, format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {WIDTH},), }}", left.len()));
    assert_eq!(f32s(&numbers), expected(&left));
    let (header, numbers) = npy(&out.join("token_idx.npy"));
    assert!(header.contains(&format!("'<u8', 'fortran_order': False, 'shape': ({},)", left.len())), "{header}");
    let found: Vec<u64> = numbers.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(found, left);
}

#[test]
fn safetensors_have_the_dtype_of_the_run() {
    let (_dir, run) = small(Dtype::Bf16);
    let (report, out) = written(&run, &options(Format::Safetensors));
    let bytes = fs::read(&out).unwrap();
    assert_eq!(report.bytes, bytes.len() as u64);
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert!(start.is_multiple_of(8));
    let header: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let tensor = &header["blocks.1.hook_resid_post"];
    assert_eq!((&tensor["dtype"], &tensor["shape"]), (&"BF16".into(), &serde_json::json!([N, WIDTH])));
    let range = |name: &str| {
        let at = |i: usize| start + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        at(0)..at(1)
    };
    assert_eq!(range("blocks.1.hook_resid_post").end, bytes.len());
    let mut numbers = Vec::new();
    crate::convert::append_f32(Dtype::Bf16, WIDTH, &bytes[range("blocks.1.hook_resid_post")], &[], &mut numbers);
    assert_eq!(numbers, expected(&(0..N).collect::<Vec<_>>()));
    let pos: Vec<u8> = (0..N).flat_map(|token| (token % DOC_TOKENS).to_le_bytes()).collect();
    assert_eq!(bytes[range("pos")], pos);
}

#[test]
fn i8_is_written_as_f32() {
    let (_dir, run) = small(Dtype::I8);
    let (_, out) = written(&run, &options(Format::Npy));
    let (_, numbers) = npy(&out.join("blocks.1.hook_resid_post.npy"));
    assert_eq!(f32s(&numbers), run.acts(hook(), 0..N).unwrap().to_f32());
    let refused = |format: Format, dtype: Dtype| {
        let options = ExportOptions { dtype: Some(dtype), ..options(format) };
        export(&run, &options, &run.dir().with_file_name("none"), &mut |_| ControlFlow::Continue(())).unwrap_err()
    };
    let error = refused(Format::Npy, Dtype::Bf16).to_string();
    assert_eq!(error, "`npy` cannot hold bf16\nhint: it holds f32 and f16");
    assert!(refused(Format::Safetensors, Dtype::I8).to_string().ends_with("f32, f16 and bf16"));
}

#[test]
fn a_data_set_has_a_row_a_token() {
    let (_dir, run) = small(Dtype::F32);
    let (report, out) = written(&run, &ExportOptions { skip_special: true, ..options(Format::Datasets) });
    let info: Value = serde_json::from_slice(&fs::read(out.join("dataset_info.json")).unwrap()).unwrap();
    assert_eq!(info["features"]["blocks.1.hook_resid_post"]["length"], WIDTH);
    let state: Value = serde_json::from_slice(&fs::read(out.join("state.json")).unwrap()).unwrap();
    assert_eq!(state["_fingerprint"].as_str().unwrap().len(), 16);
    let file = fs::File::open(out.join(state["_data_files"][0]["filename"].as_str().unwrap())).unwrap();
    let batches: Vec<RecordBatch> = StreamReader::try_new(file, None).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>() as u64, report.tokens);
    let found: Vec<f32> = batches.iter().flat_map(|batch| list_values(batch, "blocks.1.hook_resid_post")).collect();
    assert_eq!(found, expected(&ordinary()));
}

#[test]
fn sequences_are_full_whatever_the_steps() {
    // Wide rows make many steps, and steps that do not end where sequences do.
    let dir = tempfile::tempdir().unwrap();
    let width = 100_003;
    let run = run(&dir.path().join("run"), width, Dtype::F32, &[70, 35]);
    let (report, out) = written(&run, &ExportOptions { context: 9, skip_special: true, ..options(Format::SaeLens) });
    let left: Vec<u64> = (0..105).filter(|token| token % DOC_TOKENS != 0).collect();
    assert_eq!((report.tokens, report.left_over), (90, left.len() as u64 - 90));
    let file = fs::File::open(out.join("data-00000-of-00001.arrow")).unwrap();
    let reader = StreamReader::try_new(file, None).unwrap();
    let field = reader.schema().field(0).clone();
    assert_eq!(field.metadata()["ARROW:extension:metadata"], format!("[[9,{width}],\"float32\"]"));
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    assert!(batches.len() > 1);
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 10);
    let ids: Vec<i32> = batches
        .iter()
        .flat_map(|batch| batch.column(1).as_fixed_size_list().values().as_primitive::<Int32Type>().values().to_vec())
        .collect();
    assert_eq!(ids, left[..90].iter().map(|&token| token as i32).collect::<Vec<_>>());
    let mut row = 0;
    for batch in &batches {
        let matrices = batch.column(0).as_list::<i32>();
        let vectors = matrices.values().as_list::<i32>();
        assert_eq!(vectors.len(), batch.num_rows() * 9);
        for vector in vectors.iter().flatten() {
            let vector = vector.as_primitive::<Float32Type>();
            assert_eq!((vector.len(), vector.value(5)), (width, number(left[row], 0, 5)));
            row += 1;
        }
    }
    assert_eq!(row, 90);
    let error = export(
        &run,
        &ExportOptions { context: 200, ..options(Format::SaeLens) },
        &dir.path().join("none"),
        &mut |_| ControlFlow::Continue(()),
    );
    assert!(error.unwrap_err().to_string().starts_with("expected 200 tokens for one sequence"));
}

#[test]
fn nothing_is_overwritten_and_nothing_half_stays() {
    let (dir, run) = small(Dtype::F32);
    for format in Format::ALL {
        let (_, out) = written(&run, &options(format));
        let again = export(&run, &options(format), &out, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(again, Error::Exists { .. }), "{again}");
        let other = dir.path().join("interrupted");
        let error = export(&run, &options(format), &other, &mut |_| ControlFlow::Break(())).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name.to_string_lossy().contains("interrupted")), "{names:?}");
    }
    let error = export(
        &run,
        &ExportOptions { tokens: Some(0..1), skip_special: true, ..options(Format::Npy) },
        &dir.path().join("none"),
        &mut |_| ControlFlow::Continue(()),
    );
    assert!(error.unwrap_err().to_string().starts_with("no token is left to export"));
}

#[test]
fn only_what_was_recorded_can_be_named() {
    let dir = tempfile::tempdir().unwrap();
    let points = ["blocks.1.hook_resid_post", "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"];
    let points = points.map(|name| (name, 8, Dtype::F32));
    let writer = RunWriter::create(dir.path(), manifest(&points)).unwrap();
    write_shard(&writer, 0, 0..20, 20);
    writer.finish("0").unwrap();
    let run = Run::open(dir.path()).unwrap();
    let named =
        |list: &str| recorded(&run, list).map(|points| points.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(named("blocks.*.hook_resid_post").unwrap(), ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]);
    assert_eq!(named("blocks.1.hook_resid_post,blocks.*.hook_resid_post").unwrap().len(), 2);
    assert!(named("blocks.*.hook_attn_out").unwrap_err().to_string().contains("there are `blocks.1.hook_resid_post`"));
    assert!(matches!(named(" , ").unwrap_err(), Error::NoHookPoint { .. }));
    // A range names each of its layers.
    assert_eq!(named("blocks.0-1.hook_resid_post").unwrap().len(), 2);
    let some = named("blocks.0-1.hook_mlp_out").unwrap_err().to_string();
    assert!(some.contains("`blocks.0.hook_mlp_out`"), "{some}");
    assert_eq!(named("blocks.*.hook_mlp_out").unwrap(), ["blocks.1.hook_mlp_out"]);
}
