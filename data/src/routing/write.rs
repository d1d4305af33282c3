//! How do the choices of a layer come to be in a shard?

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, RecordBatch, UInt16Array, UInt64Array,
};
use arrow::buffer::Buffer;
use arrow::datatypes::DataType;

use super::RoutingColumns;
use crate::acts_write::{PAGES_PER_GROUP, rows_per_page};
use crate::error::Result;
use crate::manifest::{FileEntry, Routing};
use crate::parquet_io::{TableOptions, TableWriter};
use crate::{Dtype, convert, schema};

/// Numbers that hardly repeat are stored as they are; the experts of a token are few of a small set.
const PLAIN: [&str; 6] = ["weights.list.item", "probs.list.item", "entropy", "dense_norm", "moe_norm", "router_logits"];

/// Writes the choices of one layer in one shard.
pub(crate) struct RoutingWriter {
    table: TableWriter,
    routing: Routing,
    first_token_idx: u64,
    /// Tokens of the row group that is not full yet.
    pending: RoutingColumns,
}

impl RoutingWriter {
    pub(crate) fn create(path: &Path, routing: &Routing, first_token_idx: u64) -> Result<Self> {
        let options = TableOptions { delta: &["token_idx"], plain: &PLAIN, ..TableOptions::default() };
        let table = TableWriter::create(path, &schema::routing(routing), options)?;
        Ok(Self { table, routing: routing.clone(), first_token_idx, pending: RoutingColumns::default() })
    }

    pub(crate) fn n_rows(&self) -> u64 {
        (self.table.n_rows() + self.pending.len()) as u64
    }

    /// Appends tokens. They are cut into the same row groups however they come.
    pub(crate) fn write(&mut self, columns: &RoutingColumns) -> Result<()> {
        columns.check(&self.routing)?;
        let group_rows = group_rows(&self.routing);
        let mut done = 0;
        while done < columns.len() {
            let take = (group_rows - self.pending.len()).min(columns.len() - done);
            self.pending.extend(columns, done..done + take, &self.routing);
            done += take;
            if self.pending.len() == group_rows {
                self.end_group()?;
            }
        }
        Ok(())
    }

    /// Footer, fsync, rename. The caller fsyncs the directory.
    pub(crate) fn publish(mut self) -> Result<FileEntry> {
        self.end_group()?;
        self.table.publish()
    }

    fn end_group(&mut self) -> Result<()> {
        let group = std::mem::take(&mut self.pending);
        let first = self.first_token_idx + self.table.n_rows() as u64;
        self.table.write(&to_batch(group, &self.routing, first))
    }
}

/// Tokens of a row group, by the rule of activations: at most 8 MiB, and those of `tokens/` where rows are short.
pub(super) fn group_rows(routing: &Routing) -> usize {
    rows_per_page(routing.row_bytes()) * PAGES_PER_GROUP
}

fn to_batch(columns: RoutingColumns, routing: &Routing, first_token_idx: u64) -> RecordBatch {
    let token_idx = first_token_idx..first_token_idx + columns.len() as u64;
    let k = routing.top_k;
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(token_idx)),
        lists(DataType::UInt16, Arc::new(UInt16Array::from(columns.expert_ids)), k),
        lists(DataType::Float32, Arc::new(Float32Array::from(columns.weights)), k),
        lists(DataType::Float32, Arc::new(Float32Array::from(columns.probs)), k),
        Arc::new(Float32Array::from(columns.entropy)),
        Arc::new(Float32Array::from(columns.dense_norm)),
        Arc::new(Float32Array::from(columns.moe_norm)),
    ];
    if routing.router_logits {
        let logits = columns.router_logits.unwrap_or_default();
        let bytes = convert::from_f32(Dtype::F32, routing.n_experts, &logits).bytes;
        let row_bytes = (routing.n_experts * size_of::<f32>()) as i32;
        arrays.push(Arc::new(FixedSizeBinaryArray::new(row_bytes, Buffer::from(bytes), None)));
    }
    RecordBatch::try_new(schema::routing(routing), arrays).expect("`check` compared the lengths")
}

fn lists(item: DataType, values: ArrayRef, k: usize) -> ArrayRef {
    Arc::new(FixedSizeListArray::new(schema::item(item), k as i32, values, None))
}
