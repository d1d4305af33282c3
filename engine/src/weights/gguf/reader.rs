//! How are the values of a GGUF header read without trusting any of them?

use std::path::Path;

use super::super::quant::{self, block_format, ggml_type_name};
use super::{TensorEntry, Value};
use crate::error::{Error, Result};

const MAX_DIMS: usize = 4;

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
            // The narrow ones cannot reach the sign.
            Self::U8 | Self::U16 | Self::U32 | Self::I64 => Value::Int(bits as i64),
            Self::I8 => Value::Int(i64::from(bits as i8)),
            Self::I16 => Value::Int(i64::from(bits as i16)),
            Self::I32 => Value::Int(i64::from(bits as i32)),
            Self::U64 => i64::try_from(bits).map_or(Value::Uint(bits), Value::Int),
            Self::F32 => Value::Float(f64::from(f32::from_bits(bits as u32))),
            Self::F64 => Value::Float(f64::from_bits(bits)),
            Self::Bool => Value::Bool(bits != 0),
        }
    }
}

/// A cursor that cannot leave the file.
pub(super) struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a [u8], path: &'a Path) -> Self {
        Self { file, at: 0, path }
    }

    /// How many bytes have been read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn malformed(&self, what: &str) -> Error {
        Error::Malformed { format: "GGUF", what: what.to_owned(), path: self.path.to_owned() }
    }

    pub(super) fn left(&self) -> usize {
        self.file.len() - self.at
    }

    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            let found = self.left();
            return Err(self.malformed(&format!("expected {n} bytes for {what}, found {found} before the end")));
        }
        let bytes = &self.file[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    /// Reads how many things follow, each at least `min_bytes` long, and refuses more than can be there.
    pub(super) fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize> {
        let count = self.u64(&format!("the number of {what}"))?;
        match usize::try_from(count) {
            Ok(count) if count <= self.left() / min_bytes => Ok(count),
            _ => {
                let left = self.left();
                Err(self.malformed(&format!(
                    "expected at most {} {what} in the {left} bytes that follow, found {count}",
                    left / min_bytes
                )))
            }
        }
    }

    pub(super) fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => {
                Err(self
                    .malformed(&format!("expected UTF-8 in {what}, found other bytes after {}", error.valid_up_to())))
            }
        }
    }

    pub(super) fn value(&mut self, value_type: u32, key: &str) -> Result<Value> {
        match value_type {
            TEXT => Ok(Value::Text(self.text(&format!("the value of `{key}`"))?)),
            ARRAY => self.array(key),
            _ => {
                match Scalar::from_id(value_type) {
                    Some(scalar) => Ok(scalar.read(self.take(scalar.bytes(), key)?)),
                    None => Err(self
                        .malformed(&format!("expected a value type between 0 and 12 for `{key}`, found {value_type}"))),
                }
            }
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
            Scalar::F32 | Scalar::F64 => Value::Floats(
                elements.map(|value| if let Value::Float(number) = value { number as f32 } else { 0.0 }).collect(),
            ),
            _ => {
                let mut ints = Vec::with_capacity(count);
                for value in elements {
                    match value {
                        Value::Int(number) => ints.push(number),
                        _ => {
                            return Err(
                                self.malformed(&format!("expected numbers below 2^63 as {what}, found a larger one"))
                            );
                        }
                    }
                }
                Value::Ints(ints)
            }
        })
    }

    /// Reads one tensor entry; its offset is still from the start of the tensor data.
    pub(super) fn tensor_entry(&mut self) -> Result<TensorEntry> {
        let name = self.text("a tensor name")?;
        let n_dims = self.u32("a number of dimensions")? as usize;
        if n_dims > MAX_DIMS {
            return Err(
                self.malformed(&format!("expected at most {MAX_DIMS} dimensions of tensor `{name}`, found {n_dims}"))
            );
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
                supported: quant::SUPPORTED,
                found: ggml_type_name(type_id),
                path: self.path.to_owned(),
            });
        };
        let offset = self.u64("a tensor offset")?;
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(format.values) {
            let what = format!(
                "expected rows of tensor `{name}` to be a multiple of {} values of {}, found {row}",
                format.values, format.name
            );
            return Err(self.malformed(&what));
        }
        let n_values = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
        let bytes = n_values.and_then(|n| (n / format.values).checked_mul(format.bytes));
        let Some(bytes) = bytes else {
            return Err(self
                .malformed(&format!("expected a tensor `{name}` that fits into memory, found dimensions {shape:?}")));
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(TensorEntry { name, shape, format, offset, bytes })
    }
}
