//! What is in a cell of an answer, as plain data?

use polars::prelude::{AnyValue, Column, DataFrame, Series};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::files::hex;

/// Some consecutive rows of an answer.
#[derive(Clone, Debug)]
pub struct Rows {
    pub(super) frame: DataFrame,
}

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    F32(f32),
    F64(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Self>),
    /// Fields by name, in their order.
    Struct(Vec<(String, Self)>),
}

impl Rows {
    pub(super) const fn new(frame: DataFrame) -> Self {
        Self { frame }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.frame.height()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the first `n` rows.
    pub fn truncate(&mut self, n: usize) {
        if n < self.len() {
            self.frame = self.frame.head(Some(n));
        }
    }

    /// Every row, cell by cell.
    pub fn cells(&self) -> impl Iterator<Item = Vec<Value>> {
        let columns: Vec<&Series> = self.frame.columns().iter().map(Column::as_materialized_series).collect();
        (0..self.len()).map(move |row| {
            // A column of a frame has a value in every row of it.
            columns.iter().map(|column| column.get(row).map_or(Value::Null, |value| Value::of(&value))).collect()
        })
    }
}

impl Value {
    fn of(value: &AnyValue<'_>) -> Self {
        match value {
            AnyValue::Null => Self::Null,
            AnyValue::Boolean(value) => Self::Bool(*value),
            AnyValue::String(text) => Self::Text((*text).to_owned()),
            AnyValue::StringOwned(text) => Self::Text(text.to_string()),
            AnyValue::UInt8(n) => Self::UInt(u64::from(*n)),
            AnyValue::UInt16(n) => Self::UInt(u64::from(*n)),
            AnyValue::UInt32(n) => Self::UInt(u64::from(*n)),
            AnyValue::UInt64(n) => Self::UInt(*n),
            AnyValue::Int8(n) => Self::Int(i64::from(*n)),
            AnyValue::Int16(n) => Self::Int(i64::from(*n)),
            AnyValue::Int32(n) => Self::Int(i64::from(*n)),
            AnyValue::Int64(n) => Self::Int(*n),
            AnyValue::Float32(x) => Self::F32(*x),
            AnyValue::Float64(x) => Self::F64(*x),
            AnyValue::Binary(bytes) => Self::Bytes(bytes.to_vec()),
            AnyValue::BinaryOwned(bytes) => Self::Bytes(bytes.clone()),
            AnyValue::List(items) | AnyValue::Array(items, _) => {
                Self::List(items.iter().map(|item| Self::of(&item)).collect())
            }
            AnyValue::Struct(_, _, fields) => {
                let values = value._iter_struct_av();
                Self::Struct(fields.iter().zip(values).map(|(f, v)| (f.name().to_string(), Self::of(&v))).collect())
            }
            AnyValue::StructOwned(both) => {
                let (values, fields) = both.as_ref();
                Self::Struct(fields.iter().zip(values).map(|(f, v)| (f.name().to_string(), Self::of(v))).collect())
            }
            // Dates, decimals and the like, which only a query itself can make.
            other => Self::Text(other.to_string()),
        }
    }
}

/// As JSON: what is not finite is null, bytes are hexadecimal digits.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(n) => serializer.serialize_i64(*n),
            Self::UInt(n) => serializer.serialize_u64(*n),
            Self::F32(x) => serializer.serialize_f32(*x),
            Self::F64(x) => serializer.serialize_f64(*x),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => serializer.serialize_str(&hex(bytes)),
            Self::List(items) => serializer.collect_seq(items),
            Self::Struct(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (name, value) in fields {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}
