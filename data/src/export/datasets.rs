//! What does `datasets.load_from_disk` read, and what does SAELens expect in it?
//!
//! A folder with one Arrow stream, which is mapped into memory, and two small JSON files. `Sequence` in those is what
//! every version of `datasets` understands; newer ones call it `List`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Int32Array, ListArray, RecordBatch};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use fs_err as fs;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::select::Selection;
use super::{ExportReport, Job, Vectors, table};
use crate::Dtype;
use crate::error::{Error, Result};
use crate::files::{self, BuildFolder, NewFile, hex};

const DATA_FILE: &str = "data-00000-of-00001.arrow";

/// How `datasets` calls the type of matrices in an Arrow schema.
const MATRIX: &str = "datasets.features.features.Array2DExtensionType";

/// A row a token.
pub(super) fn write_tokens(job: Job<'_>) -> Result<ExportReport> {
    let Job { selection, hooks, out, mut report, mut meter } = job;
    let schema = table::schema(hooks);
    let value = |dtype: &str| json!({ "dtype": dtype, "_type": "Value" });
    let mut features = Map::new();
    for (name, dtype) in
        [("token_idx", "uint64"), ("doc_id", "uint64"), ("pos", "uint32"), ("token_id", "uint32"), ("token", "string")]
    {
        features.insert(name.to_owned(), value(dtype));
    }
    for hook in hooks {
        let list = json!({ "feature": value(float(hook.dtype)), "length": hook.entry.width, "_type": "Sequence" });
        features.insert(hook.entry.name.to_string(), list);
    }
    let mut writer = FolderWriter::create(out, &schema)?;
    for step in selection.steps() {
        let step = step?;
        writer.write(&table::batch(selection, &step, hooks, &schema, &mut report.saturated)?)?;
        meter.add(step.len() * hooks.len())?;
    }
    report.bytes = writer.finish(&features, selection)?;
    Ok(report)
}

/// A row a sequence of `context` tokens, end to end as they are selected: what `CacheActivationsRunner` of SAELens writes.
pub(super) fn write_sequences(job: Job<'_>, context: usize) -> Result<ExportReport> {
    let Job { selection, hooks, out, mut report, mut meter } = job;
    if selection.n < context as u64 {
        return Err(Error::NoSequence { context, found: selection.n });
    }
    report.left_over = selection.n % context as u64;
    report.tokens -= report.left_over;

    let mut features = Map::new();
    let mut fields = Vec::new();
    for hook in hooks {
        let (name, width, dtype) = (hook.entry.name.to_string(), hook.entry.width, float(hook.dtype));
        features.insert(name.clone(), json!({ "shape": [context, width], "dtype": dtype, "_type": "Array2D" }));
        let storage = DataType::List(table::item(DataType::List(table::item(table::number(hook.dtype)))));
        let matrix = HashMap::from([
            ("ARROW:extension:name".to_owned(), MATRIX.to_owned()),
            ("ARROW:extension:metadata".to_owned(), json!([[context, width], dtype]).to_string()),
        ]);
        fields.push(Field::new(name, storage, true).with_metadata(matrix));
    }
    let ids = json!({ "feature": { "dtype": "int32", "_type": "Value" }, "length": context, "_type": "Sequence" });
    features.insert("token_ids".to_owned(), ids);
    fields.push(Field::new("token_ids", DataType::FixedSizeList(table::item(DataType::Int32), context as i32), true));
    let schema = Arc::new(Schema::new(fields));

    let mut writer = FolderWriter::create(out, &schema)?;
    let mut waiting = Waiting { ids: Vec::new(), rows: vec![Vec::new(); hooks.len()] };
    for step in selection.steps() {
        let step = step?;
        waiting.ids.extend(step.columns(selection.run)?.token_id.into_iter().map(u32::cast_signed));
        for (rows, hook) in waiting.rows.iter_mut().zip(hooks) {
            rows.extend_from_slice(&step.rows(selection.run, hook, &mut report.saturated)?);
        }
        if let Some(batch) = waiting.take(hooks, context, &schema) {
            writer.write(&batch)?;
        }
        meter.add(step.len() * hooks.len())?;
    }
    report.bytes = writer.finish(&features, selection)?;
    Ok(report)
}

/// Tokens that do not fill a sequence yet.
struct Waiting {
    ids: Vec<i32>,
    /// Of each hook point, as bytes.
    rows: Vec<Vec<u8>>,
}

impl Waiting {
    /// The sequences that are full.
    fn take(&mut self, hooks: &[Vectors], context: usize, schema: &SchemaRef) -> Option<RecordBatch> {
        let n = self.ids.len() / context;
        if n == 0 {
            return None;
        }
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (rows, hook) in self.rows.iter_mut().zip(hooks) {
            let rest = rows.split_off(n * context * hook.row_bytes());
            let full = std::mem::replace(rows, rest);
            let item = table::item(table::number(hook.dtype));
            let vectors = lists(item, hook.entry.width, n * context, table::numbers(hook.dtype, &full));
            let item = table::item(DataType::List(table::item(table::number(hook.dtype))));
            columns.push(Arc::new(lists(item, context, n, Arc::new(vectors))));
        }
        let rest = self.ids.split_off(n * context);
        let full = Int32Array::from(std::mem::replace(&mut self.ids, rest));
        let item = table::item(DataType::Int32);
        columns.push(Arc::new(FixedSizeListArray::new(item, context as i32, Arc::new(full), None)));
        Some(RecordBatch::try_new(Arc::clone(schema), columns).expect("the columns are those of the schema"))
    }
}

/// `n` lists of `length` values each.
fn lists(item: Arc<Field>, length: usize, n: usize, values: ArrayRef) -> ListArray {
    ListArray::new(item, OffsetBuffer::from_repeated_length(length, n), values, None)
}

const fn float(dtype: Dtype) -> &'static str {
    if matches!(dtype, Dtype::F16) { "float16" } else { "float32" }
}

/// Writes a folder of `datasets`.
struct FolderWriter {
    folder: BuildFolder,
    writer: StreamWriter<NewFile>,
}

impl FolderWriter {
    fn create(out: &Path, schema: &SchemaRef) -> Result<Self> {
        let folder = BuildFolder::create(out)?;
        let file = NewFile::create(&folder.path().join(DATA_FILE))?;
        let writer = StreamWriter::try_new(file, schema).map_err(|cause| told(folder.path(), cause))?;
        Ok(Self { folder, writer })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).map_err(|cause| told(self.folder.path(), cause))
    }

    /// Bytes on disk.
    fn finish(mut self, features: &Map<String, Value>, selection: &Selection<'_>) -> Result<u64> {
        let path = self.folder.path().to_owned();
        self.writer.finish().and_then(|()| self.writer.into_inner()).map_err(|cause| told(&path, cause))?.publish()?;
        let info = json!({ "citation": "", "description": "", "features": features, "homepage": "", "license": "" });
        let fingerprint = fingerprint(&info, selection);
        let state = json!({
            "_data_files": [{ "filename": DATA_FILE }],
            "_fingerprint": fingerprint,
            "_format_columns": null,
            "_format_kwargs": {},
            "_format_type": null,
            "_output_all_columns": false,
            "_split": null,
        });
        files::write_json(&path.join("dataset_info.json"), &info)?;
        files::write_json(&path.join("state.json"), &state)?;
        let mut bytes = 0;
        for entry in fs::read_dir(&path)? {
            bytes += entry?.metadata()?.len();
        }
        self.folder.publish()?;
        Ok(bytes)
    }
}

/// What `datasets` keeps results of computations under: the same export has the same.
fn fingerprint(info: &Value, selection: &Selection<'_>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(info.to_string());
    hasher.update(selection.describe());
    for (path, file) in selection.run.shards().iter().flat_map(|shard| &shard.files) {
        hasher.update(path);
        hasher.update(&file.sha256);
    }
    hex(&hasher.finalize())[..16].to_owned()
}

/// An error of the disk is told as such.
fn told(path: &Path, cause: ArrowError) -> Error {
    match cause {
        ArrowError::IoError(_, cause) => Error::Io { cause },
        other => Error::damaged(path, other),
    }
}
