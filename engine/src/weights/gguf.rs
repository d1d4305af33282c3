//! What does a GGUF file hold?
//!
//! Reads the header only: metadata, and where each tensor's bytes lie. Versions 2 and 3, little endian.
//! Every count, length and offset is checked against the bytes that are there before anything is allocated for it.

mod metadata;
mod reader;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

pub use self::metadata::{Metadata, Value};
use self::reader::Reader;
use super::quant::BlockFormat;
use crate::error::Result;

const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;

/// Where one tensor lies.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    /// The name in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Outermost dimension first, as in torch; the file has them reversed.
    pub shape: Vec<usize>,
    pub format: &'static BlockFormat,
    /// From the start of the file.
    pub offset: usize,
    pub bytes: usize,
}

/// The header of a GGUF file.
#[derive(Clone, Debug)]
pub struct Header {
    pub version: u32,
    pub metadata: Metadata,
    pub tensors: Vec<TensorEntry>,
}

impl Header {
    /// Reads the header of `file`, the whole file's bytes; `path` is for messages.
    pub fn parse(file: &[u8], path: &Path) -> Result<Self> {
        let mut reader = Reader::new(file, path);
        if reader.take(MAGIC.len(), "the magic number")? != MAGIC {
            return Err(reader.malformed("expected the magic number `GGUF`, found other bytes"));
        }
        let version = reader.u32("the version")?;
        match version {
            2 | 3 => {}
            _ if version.swap_bytes() <= 3 => {
                return Err(reader.malformed("expected little-endian values, found a big-endian version number"));
            }
            _ => return Err(reader.malformed(&format!("expected version 2 or 3, found {version}"))),
        }
        // The smallest tensor entry is 8 (name) + 4 (dimensions) + 4 (type) + 8 (offset) bytes, the smallest pair
        // 8 (key) + 4 (type) + 1 (value).
        let n_tensors = reader.count("tensors", 24)?;
        let n_values = reader.count("metadata values", 13)?;

        let mut values = BTreeMap::new();
        for _ in 0..n_values {
            let key = reader.text("a metadata key")?;
            let value_type = reader.u32("a value type")?;
            let value = reader.value(value_type, &key)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(reader.malformed(&format!("metadata key `{key}` stands twice")));
            }
        }
        let metadata = Metadata::new(path, values);
        let alignment = match metadata.usize("general.alignment")? {
            None => DEFAULT_ALIGNMENT,
            Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => alignment,
            Some(alignment) => {
                return Err(reader.malformed(&format!("expected a power of two as alignment, found {alignment}")));
            }
        };

        let mut entries = Vec::with_capacity(n_tensors);
        let mut names = HashSet::with_capacity(n_tensors);
        for _ in 0..n_tensors {
            let entry = reader.tensor_entry()?;
            if !names.insert(entry.name.clone()) {
                return Err(reader.malformed(&format!("tensor `{}` stands twice", entry.name)));
            }
            entries.push(entry);
        }
        // `reader.at()` is at most the file's length, so this cannot overflow.
        let data_start = reader.at().next_multiple_of(alignment);
        for entry in &mut entries {
            if !entry.offset.is_multiple_of(alignment) {
                let what = format!(
                    "expected the offset of tensor `{}` to be a multiple of {alignment}, found {}",
                    entry.name, entry.offset
                );
                return Err(reader.malformed(&what));
            }
            let start = entry.offset.checked_add(data_start);
            let end = start.and_then(|start| start.checked_add(entry.bytes));
            match (start, end) {
                (Some(start), Some(end)) if end <= file.len() => entry.offset = start,
                _ => {
                    let what = format!(
                        "expected {} bytes of tensor `{}` at offset {}, found a file of {} bytes",
                        entry.bytes,
                        entry.name,
                        entry.offset,
                        file.len()
                    );
                    return Err(reader.malformed(&what));
                }
            }
        }
        Ok(Self { version, metadata, tensors: entries })
    }
}

#[cfg(test)]
mod tests;
