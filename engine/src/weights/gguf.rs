//! What does a GGUF file hold?
//!
//! Reads the header only: metadata, and where each tensor's bytes lie. Versions 2 and 3, little endian.
//! Every count, length and offset is checked against the bytes that are there before anything is allocated for it.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::quant::{BlockFormat, block_format, ggml_type_name};
use crate::error::{Error, Result};

const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;
const MAX_DIMS: usize = 4;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Int(i64),
    /// Only where `Int` cannot hold it.
    Uint(u64),
    Float(f64),
    Text(String),
    Bools(Vec<bool>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// The key-value part of a GGUF header, with the file's path for messages.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

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
        let mut reader = Reader { file, at: 0, path };
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
        let metadata = Metadata { path: path.to_owned(), values };
        let alignment = match metadata.usize("general.alignment")? {
            None => DEFAULT_ALIGNMENT,
            Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => alignment,
            Some(alignment) => return Err(reader.malformed(&format!("expected a power of two as alignment, found {alignment}"))),
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
        // `reader.at` is at most the file's length, so this cannot overflow.
        let data_start = reader.at.next_multiple_of(alignment);
        for entry in &mut entries {
            if !entry.offset.is_multiple_of(alignment) {
                let what = format!("expected the offset of tensor `{}` to be a multiple of {alignment}, found {}", entry.name, entry.offset);
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

impl Metadata {
    /// Metadata made by hand, for tests.
    pub fn new(path: &Path, values: impl IntoIterator<Item = (String, Value)>) -> Self {
        Self { path: path.to_owned(), values: values.into_iter().collect() }
    }

    /// The file that this stands in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Every key, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Int(number)) if *number >= 0 => Ok(Some(usize::try_from(*number).unwrap_or(usize::MAX))),
            Some(other) => Err(self.wrong(key, "a count", other)),
        }
    }

    pub fn required_usize(&self, key: &str) -> Result<usize> {
        self.usize(key)?.ok_or_else(|| self.bad(key, "a count", "nothing"))
    }

    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(*number)),
            Some(Value::Int(number)) => Ok(Some(*number as f64)),
            Some(other) => Err(self.wrong(key, "a number", other)),
        }
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(key, "a boolean", other)),
        }
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Texts(texts)) => Ok(Some(texts)),
            Some(other) => Err(self.wrong(key, "a list of strings", other)),
        }
    }

    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Floats(numbers)) => Ok(Some(numbers)),
            Some(other) => Err(self.wrong(key, "a list of numbers", other)),
        }
    }

    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Ints(numbers)) => Ok(Some(numbers)),
            Some(other) => Err(self.wrong(key, "a list of whole numbers", other)),
        }
    }

    /// How many tokens the tokenizer in the metadata has.
    pub fn vocab_size(&self) -> Result<Option<usize>> {
        Ok(self.texts("tokenizer.ggml.tokens")?.map(<[String]>::len))
    }

    /// The id of a token with a role: `bos`, `eos`, `unknown`, `padding`, `eot`.
    pub fn token_id(&self, role: &str) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        match self.usize(&key)? {
            None => Ok(None),
            Some(id) => match u32::try_from(id) {
                Ok(id) => Ok(Some(id)),
                Err(_) => Err(self.bad(&key, "a token id", &id.to_string())),
            },
        }
    }

    /// The ids at which generation stops: end of sequence, and end of turn where the file names one.
    pub fn eos_token_ids(&self) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = [self.token_id("eos")?, self.token_id("eot")?].into_iter().flatten().collect();
        ids.dedup();
        Ok(ids)
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        let found = match found {
            Value::Bool(flag) => flag.to_string(),
            Value::Int(number) => number.to_string(),
            Value::Uint(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Text(_) => "a string".to_owned(),
            Value::Bools(_) | Value::Ints(_) | Value::Floats(_) | Value::Texts(_) => "a list".to_owned(),
        };
        self.bad(key, expected, &found)
    }

    fn bad(&self, key: &str, expected: &str, found: &str) -> Error {
        Error::Config {
            field: key.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
            path: Some(self.path.clone()),
        }
    }
}

/// A scalar type of the metadata, by the number that stands for it in the file.
#[derive(Clone, Copy)]
enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

impl Scalar {
    fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// `bytes` has `self.bytes()` of them.
    fn read(self, bytes: &[u8]) -> Value {
        let mut low = [0; 8];
        low[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(low);
        match self {
            Self::U8 | Self::U16 | Self::U32 => Value::Int(bits as i64),
            Self::I8 => Value::Int(i64::from(bits as i8)),
            Self::I16 => Value::Int(i64::from(bits as i16)),
            Self::I32 => Value::Int(i64::from(bits as i32)),
            Self::U64 => i64::try_from(bits).map_or(Value::Uint(bits), Value::Int),
            Self::I64 => Value::Int(bits as i64),
            Self::F32 => Value::Float(f64::from(f32::from_bits(bits as u32))),
            Self::F64 => Value::Float(f64::from_bits(bits)),
            Self::Bool => Value::Bool(bits != 0),
        }
    }
}

/// A cursor that cannot leave the file.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn malformed(&self, what: &str) -> Error {
        Error::Malformed { format: "GGUF", what: what.to_owned(), path: self.path.to_owned() }
    }

    fn left(&self) -> usize {
        self.file.len() - self.at
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            let found = self.left();
            return Err(self.malformed(&format!("expected {n} bytes for {what}, found {found} before the end")));
        }
        let bytes = &self.file[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    /// Reads how many things follow, each at least `min_bytes` long, and refuses more than can be there.
    fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize> {
        let count = self.u64(&format!("the number of {what}"))?;
        match usize::try_from(count) {
            Ok(count) if count <= self.left() / min_bytes => Ok(count),
            _ => {
                let left = self.left();
                Err(self.malformed(&format!("expected at most {} {what} in the {left} bytes that follow, found {count}", left / min_bytes)))
            }
        }
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(self.malformed(&format!("expected UTF-8 in {what}, found other bytes after {}", error.valid_up_to()))),
        }
    }

    fn value(&mut self, value_type: u32, key: &str) -> Result<Value> {
        match value_type {
            TEXT => Ok(Value::Text(self.text(&format!("the value of `{key}`"))?)),
            ARRAY => self.array(key),
            _ => match Scalar::from_id(value_type) {
                Some(scalar) => Ok(scalar.read(self.take(scalar.bytes(), key)?)),
                None => Err(self.malformed(&format!("expected a value type between 0 and 12 for `{key}`, found {value_type}"))),
            },
        }
    }

    fn array(&mut self, key: &str) -> Result<Value> {
        let element = self.u32("an element type")?;
        let what = format!("elements of `{key}`");
        if element == TEXT {
            let count = self.count(&what, 8)?;
            let texts: Result<Vec<String>> = (0..count).map(|_| self.text(&what)).collect();
            return Ok(Value::Texts(texts?));
        }
        let Some(scalar) = Scalar::from_id(element) else {
            return Err(self.malformed(&format!("expected strings or numbers as {what}, found type {element}")));
        };
        let count = self.count(&what, scalar.bytes())?;
        let bytes = self.take(count * scalar.bytes(), &what)?;
        let elements = bytes.chunks_exact(scalar.bytes()).map(|bytes| scalar.read(bytes));
        Ok(match scalar {
            Scalar::Bool => Value::Bools(elements.map(|value| value == Value::Bool(true)).collect()),
            Scalar::F32 | Scalar::F64 => Value::Floats(elements.map(|value| if let Value::Float(number) = value { number as f32 } else { 0.0 }).collect()),
            _ => {
                let mut ints = Vec::with_capacity(count);
                for value in elements {
                    match value {
                        Value::Int(number) => ints.push(number),
                        _ => return Err(self.malformed(&format!("expected numbers below 2^63 as {what}, found a larger one"))),
                    }
                }
                Value::Ints(ints)
            }
        })
    }

    /// Reads one tensor entry; its offset is still from the start of the tensor data.
    fn tensor_entry(&mut self) -> Result<TensorEntry> {
        let name = self.text("a tensor name")?;
        let n_dims = self.u32("a number of dimensions")? as usize;
        if n_dims > MAX_DIMS {
            return Err(self.malformed(&format!("expected at most {MAX_DIMS} dimensions of tensor `{name}`, found {n_dims}")));
        }
        let mut shape = Vec::with_capacity(n_dims);
        for _ in 0..n_dims {
            let dim = self.u64("a dimension")?;
            shape.push(usize::try_from(dim).unwrap_or(usize::MAX));
        }
        shape.reverse();
        let type_id = self.u32("a tensor type")?;
        let Some(format) = block_format(type_id) else {
            return Err(Error::UnknownDtype {
                name,
                supported: super::quant::SUPPORTED,
                found: ggml_type_name(type_id),
                path: self.path.to_owned(),
            });
        };
        let offset = self.u64("a tensor offset")?;
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(format.values) {
            let what = format!("expected rows of tensor `{name}` to be a multiple of {} values of {}, found {row}", format.values, format.name);
            return Err(self.malformed(&what));
        }
        let n_values = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
        let bytes = n_values.and_then(|n| (n / format.values).checked_mul(format.bytes));
        let Some(bytes) = bytes else {
            return Err(self.malformed(&format!("expected a tensor `{name}` that fits into memory, found dimensions {shape:?}")));
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(TensorEntry { name, shape, format, offset, bytes })
    }
}

#[cfg(test)]
mod tests;
