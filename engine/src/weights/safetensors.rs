//! Which tensors does a folder of safetensors files hold, and where do their bytes lie?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::TensorInfo;
use super::quant::{BlockFormat, FORMATS};
use crate::error::{Error, Result};

const INDEX: &str = "model.safetensors.index.json";
const SUPPORTED: &str = "F32, F16, BF16";
/// A header larger than this is not one. The largest released checkpoints stay below a megabyte a file.
const MAX_HEADER: usize = 100_000_000;
/// Bytes of one value, to check lengths with; also of dtypes that are only listed, never decoded.
const DTYPE_SIZES: &[(&str, usize)] = &[
    ("F64", 8),
    ("F32", 4),
    ("F16", 2),
    ("BF16", 2),
    ("F8_E4M3", 1),
    ("F8_E5M2", 1),
    ("I64", 8),
    ("I32", 4),
    ("I16", 2),
    ("I8", 1),
    ("U64", 8),
    ("U32", 4),
    ("U16", 2),
    ("U8", 1),
    ("BOOL", 1),
];

/// Where one tensor lies in its file.
#[derive(Clone, Debug)]
pub(super) struct TensorEntry {
    /// The name in the file.
    pub name: String,
    pub shape: Vec<usize>,
    /// `None` for a dtype that is not decoded here; fatal only for a tensor that the model needs.
    pub format: Option<&'static BlockFormat>,
    /// The dtype as the file spells it.
    pub dtype: String,
    /// From the start of the file.
    pub offset: usize,
    pub bytes: usize,
}

impl TensorEntry {
    /// What the header says, under the name in the file.
    pub(super) fn info(&self) -> TensorInfo {
        TensorInfo {
            name: self.name.clone(),
            stored_name: self.name.clone(),
            shape: self.shape.clone(),
            dtype: self.dtype.clone(),
            bytes: self.bytes as u64,
        }
    }
}

/// The safetensors files of a checkpoint: those that the index names, or else every one in the folder. Sorted.
pub(super) fn checkpoint_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let index = dir.join(INDEX);
    if index.is_file() {
        return files_of_index(dir, &index);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|source| Error::io(dir, source))? {
        let path = entry.map_err(|source| Error::io(dir, source))?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        let found = "a folder without `*.safetensors`".to_owned();
        return Err(Error::NotAModel { found, path: dir.to_owned() });
    }
    Ok(files)
}

fn files_of_index(dir: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let json = super::read_json(index)?;
    let malformed = |what: String| Error::Malformed { format: "safetensors index", what, path: index.to_owned() };
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed("expected an object `weight_map`, found none".to_owned()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| !name.is_empty() && !name.contains(['/', '\\']));
        let name =
            name.ok_or_else(|| malformed(format!("expected a file name for tensor `{tensor}`, found {file}")))?;
        names.insert(name);
    }
    if names.is_empty() {
        return Err(malformed("expected at least one tensor in `weight_map`, found none".to_owned()));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// One entry of the header, as JSON.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// Reads the header of `file`, the whole file's bytes; `path` is for messages. In the order of the bytes.
///
/// The `safetensors` crate reads the same header, but adds up the offsets without a check for overflow.
pub(super) fn parse(file: &[u8], path: &Path) -> Result<Vec<TensorEntry>> {
    let malformed = |what: String| Error::Malformed { format: "safetensors", what, path: path.to_owned() };
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(malformed(format!("expected 8 bytes of header length, found {}", file.len())));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > rest.len() || length > MAX_HEADER {
        let most = rest.len().min(MAX_HEADER);
        return Err(malformed(format!("expected a header of at most {most} bytes, found {length}")));
    }
    let (header, data) = rest.split_at(length);
    let header: Map<String, Value> = serde_json::from_slice(header)
        .map_err(|error| malformed(format!("expected a JSON object as header, found other text ({error})")))?;

    let mut entries = Vec::with_capacity(header.len());
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        let info: Info = serde_json::from_value(value).map_err(|error| {
            malformed(format!("expected dtype, shape and offsets of tensor `{name}`, found other values ({error})"))
        })?;
        let [start, end] = info.data_offsets;
        if start > end || end > data.len() {
            let found =
                format!("expected tensor `{name}` inside {} bytes of data, found it at {start} to {end}", data.len());
            return Err(malformed(found));
        }
        let n_values = info.shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
        let size = DTYPE_SIZES.iter().find(|(dtype, _)| *dtype == info.dtype).map(|(_, size)| *size);
        if let Some(size) = size
            && n_values.and_then(|n| n.checked_mul(size)) != Some(end - start)
        {
            let (shape, dtype) = (&info.shape, &info.dtype);
            return Err(malformed(format!(
                "expected the bytes of {shape:?} in {dtype} for tensor `{name}`, found {}",
                end - start
            )));
        }
        let format = FORMATS.iter().find(|format| format.values == 1 && format.name == info.dtype);
        let offset = file.len() - data.len() + start;
        entries.push(TensorEntry { name, shape: info.shape, format, dtype: info.dtype, offset, bytes: end - start });
    }
    entries.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
    let mut next = file.len() - data.len();
    for entry in &entries {
        if entry.offset != next {
            return Err(malformed(format!(
                "expected tensor `{}` at byte {next}, found it at {}",
                entry.name, entry.offset
            )));
        }
        next += entry.bytes;
    }
    if next != file.len() {
        return Err(malformed(format!("expected a file of {next} bytes, found {}", file.len())));
    }
    Ok(entries)
}

/// The format of a tensor that the model needs.
pub(super) fn required_format(entry: &TensorEntry, path: &Path) -> Result<&'static BlockFormat> {
    entry.format.ok_or_else(|| Error::UnknownDtype {
        name: entry.name.clone(),
        supported: SUPPORTED,
        found: entry.dtype.clone(),
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests;
