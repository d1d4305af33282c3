//! What is a step of an export as a table of Arrow?

use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeListArray, Float16Array, Float32Array, RecordBatch, StringArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use half::f16;

use super::Vectors;
use super::select::{Selection, Step};
use crate::Dtype;
use crate::error::Result;

/// A row a token.
pub(super) fn schema(hooks: &[Vectors]) -> SchemaRef {
    let tokens = [
        ("token_idx", DataType::UInt64),
        ("doc_id", DataType::UInt64),
        ("pos", DataType::UInt32),
        ("token_id", DataType::UInt32),
        ("token", DataType::Utf8),
    ];
    let tokens = tokens.map(|(name, data_type)| Field::new(name, data_type, true));
    let hooks = hooks.iter().map(|hook| {
        let list = DataType::FixedSizeList(item(number(hook.dtype)), hook.entry.width as i32);
        Field::new(hook.entry.name.to_string(), list, true)
    });
    Arc::new(Schema::new(tokens.into_iter().chain(hooks).collect::<Vec<_>>()))
}

pub(super) fn batch(
    selection: &Selection<'_>,
    step: &Step,
    hooks: &[Vectors],
    schema: &SchemaRef,
    saturated: &mut u64,
) -> Result<RecordBatch> {
    let tokens = step.columns(selection.run)?;
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from(step.token_idx())),
        Arc::new(UInt64Array::from(tokens.doc_id)),
        Arc::new(UInt32Array::from(tokens.pos)),
        Arc::new(UInt32Array::from(tokens.token_id)),
        Arc::new(StringArray::from(tokens.token)),
    ];
    for hook in hooks {
        let rows = numbers(hook.dtype, &step.rows(selection.run, hook, saturated)?);
        columns.push(Arc::new(FixedSizeListArray::new(item(number(hook.dtype)), hook.entry.width as i32, rows, None)));
    }
    Ok(RecordBatch::try_new(Arc::clone(schema), columns).expect("the columns are those of the schema"))
}

/// The values of lists, as others name them.
pub(super) fn item(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("item", data_type, true))
}

pub(super) const fn number(dtype: Dtype) -> DataType {
    if matches!(dtype, Dtype::F16) { DataType::Float16 } else { DataType::Float32 }
}

/// Rows end to end as numbers of Arrow.
pub(super) fn numbers(dtype: Dtype, bytes: &[u8]) -> ArrayRef {
    if dtype == Dtype::F16 {
        Arc::new(Float16Array::from_iter_values(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]))))
    } else {
        let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Arc::new(Float32Array::from_iter_values(numbers))
    }
}
