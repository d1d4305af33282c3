//! How do activations become one file of tensors? A length, a header in JSON, and the numbers.
//!
//! The `safetensors` crate wants every tensor in memory at once; here they are written as they are read.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::select::Selection;
use super::{ExportReport, Job, Vectors};
use crate::Dtype;
use crate::error::Result;
use crate::files::NewFile;

/// Numbers begin at a multiple of this many bytes.
const ALIGN: usize = 64;

/// The columns that say which token a row is, as I64, which every reader knows.
const COLUMNS: [&str; 4] = ["token_idx", "doc_id", "pos", "token_id"];

pub(super) fn write(job: Job<'_>) -> Result<ExportReport> {
    let Job { selection, hooks, out, mut report, mut meter } = job;
    let header = header(selection, hooks);
    let mut file = NewFile::create(out)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for name in COLUMNS {
        for step in selection.steps() {
            let step = step?;
            let numbers: Vec<u64> = match name {
                "token_idx" => step.token_idx(),
                "doc_id" => step.columns(selection.run)?.doc_id,
                "pos" => step.columns(selection.run)?.pos.into_iter().map(u64::from).collect(),
                _ => step.columns(selection.run)?.token_id.into_iter().map(u64::from).collect(),
            };
            let bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
            file.write_all(&bytes)?;
        }
    }
    for hook in hooks {
        for step in selection.steps() {
            let step = step?;
            file.write_all(&step.rows(selection.run, hook, &mut report.saturated)?)?;
            meter.add(step.len())?;
        }
    }
    let tokens = COLUMNS.len() * size_of::<u64>();
    let row: usize = hooks.iter().map(Vectors::row_bytes).sum::<usize>() + tokens;
    report.bytes = (size_of::<u64>() + header.len()) as u64 + selection.n * row as u64;
    file.publish()?;
    Ok(report)
}

fn header(selection: &Selection<'_>, hooks: &[Vectors]) -> Vec<u8> {
    let mut tensors = Map::new();
    let model = &selection.run.manifest().model.id;
    tensors.insert("__metadata__".to_owned(), json!({ "format": "pt", "polariscope.model": model }));
    let mut offset = 0;
    let mut add = |name: String, dtype: &str, shape: Vec<u64>, row_bytes: usize| {
        let end = offset + selection.n * row_bytes as u64;
        let tensor: Value = json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, end] });
        tensors.insert(name, tensor);
        offset = end;
    };
    for name in COLUMNS {
        add(name.to_owned(), "I64", vec![selection.n], size_of::<u64>());
    }
    for hook in hooks {
        let dtype = match hook.dtype {
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            _ => "F32",
        };
        let shape = [selection.n].into_iter().chain(hook.entry.shape.iter().map(|&n| n as u64)).collect();
        add(hook.entry.name.to_string(), dtype, shape, hook.row_bytes());
    }
    let mut text = Value::Object(tensors).to_string().into_bytes();
    let length = (size_of::<u64>() + text.len()).next_multiple_of(ALIGN) - size_of::<u64>();
    text.resize(length, b' ');
    text
}
