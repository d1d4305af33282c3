//! How are the choices of a layer read back, a stretch of tokens at a time?

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, UInt16Type};

use super::RoutingColumns;
use crate::error::{Error, Result};
use crate::manifest::{Routing, Shard};
use crate::parquet_io::{Batches, TableFile};
use crate::store::Run;
use crate::{Dtype, convert};

/// Tokens that are decoded at a time.
pub(super) const BATCH_ROWS: usize = 8192;

const COLUMNS: [&str; 6] = ["expert_ids", "weights", "probs", "entropy", "dense_norm", "moe_norm"];

/// The routing of one layer of a run.
#[derive(Clone, Debug)]
pub struct RoutingLayer {
    run: Run,
    layer: usize,
    /// With `router_logits` as it is to be read.
    routing: Routing,
}

/// Consecutive tokens of a layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutingBatch {
    /// The token of the first row.
    pub first_token_idx: u64,
    pub columns: RoutingColumns,
}

impl RoutingLayer {
    pub(crate) fn open(run: &Run, layer: usize) -> Result<Self> {
        let routing = run.routing_info()?.clone();
        if !routing.layers.contains(&layer) {
            return Err(Error::NoSuchName {
                kind: "layer with recorded routing",
                name: layer.to_string(),
                known: routing.layers.iter().map(ToString::to_string).collect(),
                path: run.dir().to_owned(),
            });
        }
        Ok(Self { run: run.clone(), layer, routing })
    }

    /// The same layer, of which the logits of all experts are not read.
    #[must_use]
    pub fn without_logits(mut self) -> Self {
        self.routing.router_logits = false;
        self
    }

    /// The layer of the model.
    pub const fn layer(&self) -> usize {
        self.layer
    }

    /// How many experts the layer has.
    pub const fn n_experts(&self) -> usize {
        self.routing.n_experts
    }

    /// How many experts a token gets.
    pub const fn top_k(&self) -> usize {
        self.routing.top_k
    }

    /// Choices by `token_idx`, in order.
    pub fn rows(&self, tokens: Range<u64>) -> Result<RoutingColumns> {
        let mut all = self.empty();
        for (shard, rows) in self.run.shards_of(tokens)? {
            let file = self.file(shard)?;
            let batch = file.rows(&columns(&self.routing), rows)?;
            let rows = decode(&file, &batch, &self.routing)?;
            all.extend(&rows, 0..rows.len(), &self.routing);
        }
        Ok(all)
    }

    /// All choices, in the order of tokens, some thousand tokens at a time.
    pub const fn batches(&self) -> RoutingBatches<'_> {
        RoutingBatches { layer: self, shard: 0, open: None }
    }

    /// The choices of one shard, in batches of [`BATCH_ROWS`].
    pub(super) fn shard(&self, shard: &Shard) -> Result<ShardBatches> {
        let file = self.file(shard)?;
        let batches = file.reader(&columns(&self.routing), None, None, BATCH_ROWS)?;
        Ok(ShardBatches { file, batches, routing: self.routing.clone(), next_token_idx: shard.first_token_idx })
    }

    fn file(&self, shard: &Shard) -> Result<Arc<TableFile>> {
        let file = self.run.table(&format!("{}/{}", Routing::folder(self.layer), shard.file_name()))?;
        if file.n_rows() as u64 == shard.n_tokens {
            Ok(file)
        } else {
            let cause = format!("it has {} rows, the manifest says {}", file.n_rows(), shard.n_tokens);
            Err(Error::damaged(file.path(), cause))
        }
    }

    fn empty(&self) -> RoutingColumns {
        RoutingColumns { router_logits: self.routing.router_logits.then(Vec::new), ..RoutingColumns::default() }
    }
}

/// The columns besides `token_idx`.
pub(super) fn columns(routing: &Routing) -> Vec<&'static str> {
    COLUMNS.into_iter().chain(routing.router_logits.then_some("router_logits")).collect()
}

pub(super) fn decode(file: &TableFile, batch: &RecordBatch, routing: &Routing) -> Result<RoutingColumns> {
    let k = routing.top_k;
    Ok(RoutingColumns {
        expert_ids: file.lists::<UInt16Type>(batch, "expert_ids", k)?,
        weights: file.lists::<Float32Type>(batch, "weights", k)?,
        probs: file.lists::<Float32Type>(batch, "probs", k)?,
        entropy: file.primitive::<Float32Type>(batch, "entropy")?,
        dense_norm: file.primitive::<Float32Type>(batch, "dense_norm")?,
        moe_norm: file.primitive::<Float32Type>(batch, "moe_norm")?,
        router_logits: routing.router_logits.then(|| logits(file, batch, routing.n_experts)).transpose()?,
    })
}

fn logits(file: &TableFile, batch: &RecordBatch, n_experts: usize) -> Result<Vec<f32>> {
    let column = file.column(batch, "router_logits")?;
    let row_bytes = n_experts * size_of::<f32>();
    let array = column.as_fixed_size_binary_opt().filter(|array| array.value_length() as usize == row_bytes);
    let array = array.ok_or_else(|| {
        file.wrong_text("router_logits", &format!("FixedSizeBinary({row_bytes})"), column.data_type().to_string())
    })?;
    if array.null_count() > 0 {
        return Err(file.wrong_text("router_logits", "without nulls", format!("{} nulls", array.null_count())));
    }
    let mut numbers = Vec::with_capacity(array.len() * n_experts);
    convert::append_f32(Dtype::F32, n_experts, array.value_data(), &[], &mut numbers);
    Ok(numbers)
}

/// The rows of one shard.
pub(super) struct ShardBatches {
    file: Arc<TableFile>,
    batches: Batches,
    routing: Routing,
    next_token_idx: u64,
}

impl ShardBatches {
    pub(super) fn file(&self) -> &TableFile {
        &self.file
    }
}

impl Iterator for ShardBatches {
    type Item = Result<RoutingBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.next()?.and_then(|batch| decode(&self.file, &batch, &self.routing));
        Some(batch.map(|columns| {
            let first_token_idx = self.next_token_idx;
            self.next_token_idx += columns.len() as u64;
            RoutingBatch { first_token_idx, columns }
        }))
    }
}

/// All choices of a layer, some thousand tokens at a time.
pub struct RoutingBatches<'a> {
    layer: &'a RoutingLayer,
    /// The shard after the open one.
    shard: usize,
    open: Option<ShardBatches>,
}

impl Iterator for RoutingBatches<'_> {
    type Item = Result<RoutingBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(open) = &mut self.open {
                if let Some(batch) = open.next() {
                    return Some(batch);
                }
                self.open = None;
            }
            let shard = self.layer.run.shards().get(self.shard)?;
            self.shard += 1;
            match self.layer.shard(shard) {
                Ok(batches) => self.open = Some(batches),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
