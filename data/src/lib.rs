//! Run directories: what an activation is called, how it lies on disk, and how it is read back.
//!
//! A run directory holds tokens, documents, activations, sparse coders and feature tables as ordinary Parquet and JSON.
//! This crate is the only one that knows Arrow and Parquet; everything that crosses its border is plain Rust.
//!
//! ```
//! use bytes::Bytes;
//! use data::manifest::{Corpus, Counts, HookPointEntry, Manifest, Model};
//! use data::{Dtype, HookPoint, ModelShape, Run, RunWriter, TokenColumns};
//!
//! # fn main() -> data::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let dir = folder.path().join("run");
//! let hook: HookPoint = "blocks.0.hook_resid_post".parse()?;
//! let shape = ModelShape { n_layers: 1, n_heads: 1, n_kv_heads: 1, d_model: 2, d_head: 2, d_mlp: 4, d_vocab: 8, n_ctx: 4, ..ModelShape::default() };
//! let entry = HookPointEntry::new(hook, &shape, Dtype::F32)?;
//! let manifest = Manifest::new(Model::new("tiny", shape), Corpus::default(), vec![entry]);
//!
//! let run = RunWriter::create(&dir, manifest)?;
//! let mut shard = run.shard(0, 0)?;
//! let mut tokens = TokenColumns::default();
//! tokens.push(0, 0, 2, "<bos>", None, true, None);
//! tokens.push(0, 1, 5, "strain", Some((0, 6)), false, Some(1.5));
//! shard.write_tokens(&tokens)?;
//! let rows: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
//! shard.write_acts(0, Dtype::F32, Bytes::from(rows))?;
//! shard.commit(serde_json::Value::Null, Counts::captured(0, 2))?;
//! run.finish("")?;
//!
//! let run = Run::open(&dir)?;
//! assert_eq!(run.n_tokens(), 2);
//! assert_eq!(run.acts(hook, 1..2)?.to_f32(), [3.0, 4.0]);
//! # Ok(())
//! # }
//! ```
//!
//! # Without this crate
//!
//! A run is Parquet, so every reader of Parquet reads it. [`query`] asks it in SQL, [`export`] writes other formats.
//! These examples are run by a test, on a run whose vectors have 32 numbers.
//!
//! DuckDB: which tokens surprise the model most?
//!
//! ```sql
//! SELECT token, count(*) AS n, round(avg(nll), 2) AS nll, any_value(octet_length(act)) AS bytes
//! FROM 'run/tokens/*.parquet'
//! JOIN 'run/acts/hook_point=blocks.3.hook_resid_post/*.parquet' USING (token_idx)
//! WHERE NOT special
//! GROUP BY token ORDER BY nll DESC, token LIMIT 10
//! ```
//!
//! Polars: at which tokens is the first number largest?
//!
//! ```python
//! import polars as pl
//! acts = pl.scan_parquet("run/acts/hook_point=blocks.3.hook_resid_post/*.parquet", hive_partitioning=False)
//! numbers = pl.col("act").bin.reinterpret(dtype=pl.Array(pl.Float32, 32), endianness="little")
//! first = acts.with_columns(numbers.arr.get(0).alias("first")).drop("act").sort("first", descending=True).head(10)
//! print(first.join(pl.scan_parquet("run/tokens/*.parquet"), on="token_idx").select("token", "first").collect())
//! ```
//!
//! pyarrow to NumPy, without a copy:
//!
//! ```python
//! import numpy as np, pyarrow.parquet as pq
//! folder = "run/acts/hook_point=blocks.3.hook_resid_post"
//! act = pq.read_table(folder, columns=["act"], partitioning=None)["act"].combine_chunks()
//! x = np.frombuffer(act.buffers()[1], dtype=np.float32, count=len(act) * act.type.byte_width // 4)
//! x = x.reshape(len(act), -1)
//! ```
//!
//! pandas:
//!
//! ```python
//! import numpy as np, pandas as pd
//! acts = pd.read_parquet("run/acts/hook_point=blocks.3.hook_resid_post", partitioning=None)
//! rows = acts.merge(pd.read_parquet("run/tokens")[["token_idx", "token", "special"]], on="token_idx")
//! rows = rows.sort_values("token_idx")
//! x = np.stack([np.frombuffer(row, dtype=np.float32) for row in rows["act"]])
//! ```
//!
//! Rows of i8 have a scale each:
//!
//! ```python
//! import numpy as np, pyarrow.parquet as pq
//! table = pq.read_table("run-i8/acts/hook_point=blocks.3.hook_resid_post", partitioning=None)
//! q = np.stack([np.frombuffer(row, dtype=np.int8) for row in table["act"].to_pylist()])
//! x = q.astype(np.float32) * table["scale"].to_numpy()[:, None]
//! ```
//!
//! What holds here:
//! - This crate never loads libtorch and never waits for a device.
//! - A hook point exists if and only if it has a row in [`hook_point::TABLE`].
//! - A shard is immutable once its journal entry exists; what has no journal entry does not exist.
//! - The same input gives the same bytes: no clock and no random number goes into a file.
//! - A run on a disk and one in an object store hold the same bytes; only [`place`] knows which it is.
//! - Bad input is an [`Error`] that names the file and the next step, never a panic.

pub mod annotations;
pub mod batches;
pub mod convert;
pub mod corpus;
pub mod dashboards;
pub mod dtype;
pub mod error;
pub mod export;
pub mod features;
pub mod files;
pub mod hook_point;
pub mod join;
pub mod manifest;
pub mod metrics;
pub mod place;
pub mod query;
pub mod routing;
pub mod shard;
pub mod shuffle;
pub mod statistics;
pub mod store;
pub mod sums;
pub mod tables;
pub mod verify;

mod acts_read;
mod acts_write;
mod parquet_io;
mod progress;
mod random;
mod schema;

#[cfg(test)]
mod testing;

pub use batches::{Batch, BatchOptions, BatchReader, Cursor};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use hook_point::{HookPoint, ModelShape, Site};
pub use manifest::{Counts, HookPointEntry, JournalEntry, Manifest, Routing, Shard, Shuffled, Statistics};
pub use place::Place;
pub use progress::{OnProgress, Progress};
pub use routing::{RoutingColumns, RoutingLayer};
pub use shard::workers::Worker;
pub use shard::{RunWriter, ShardWriter};
pub use store::{Acts, ActsShard, Run};
pub use tables::{DocumentRow, TokenColumns};
