//! How do captured tensors become shards?

use std::thread::ScopedJoinHandle;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use data::Dtype;
use data::manifest::{Counts, Routing};
use data::shard::{RunWriter, ShardWriter};
use data::tables::{DocumentRow, TokenColumns};
use tch::{Kind, Tensor};

use super::Cursor;
use super::download::Download;
use super::routing::unpack;
use crate::error::{Error, Result};

/// What the network thread asks the writer to do.
pub(super) enum Job {
    Open { shard: usize, first_token_idx: u64 },
    Rows(Box<Rows>),
    Close { cursor: Cursor, counts: Counts },
}

/// One batch.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) tokens: TokenColumns,
    pub(super) documents: Vec<DocumentRow>,
    /// One for each hook point, `[tok, …]`.
    pub(super) acts: Vec<Download>,
    /// One for each layer that routes, packed.
    pub(super) routing: Vec<Download>,
    /// The rows that are written; `None` for all. `[kept]`
    pub(super) keep: Option<Tensor>,
}

/// Writes until the queue is closed. Returns the run if no shard was left open.
///
/// A shard becomes durable while the next one is written: the disk need not stand still for it.
pub(super) fn write(run: RunWriter, jobs: &Receiver<Job>) -> Result<Option<RunWriter>> {
    let routing = run.manifest().routing.clone();
    let mut shard: Option<ShardWriter> = None;
    std::thread::scope(|scope| {
        let mut closing: Option<ScopedJoinHandle<'_, Result<()>>> = None;
        let closed = |closing: Option<ScopedJoinHandle<'_, Result<()>>>| {
            closing.map_or(Ok(()), |closing| closing.join().map_err(Error::panicked)?)
        };
        for job in jobs {
            match job {
                Job::Open { shard: index, first_token_idx } => shard = Some(run.shard(index, first_token_idx)?),
                Job::Rows(rows) => write_rows(shard.as_mut().ok_or(Error::WriterEnded)?, *rows, routing.as_ref())?,
                Job::Close { cursor, counts } => {
                    let cursor = serde_json::to_value(cursor).unwrap_or_default();
                    let shard = shard.take().ok_or(Error::WriterEnded)?;
                    // One after the other: a journal has no gaps.
                    closed(closing.take())?;
                    let commit = move || Ok(shard.commit(cursor, counts).map(drop)?);
                    let thread = std::thread::Builder::new().name("close shard".to_owned());
                    closing = Some(thread.spawn_scoped(scope, commit).map_err(Error::thread)?);
                }
            }
        }
        closed(closing.take())
    })?;
    Ok(shard.is_none().then_some(run))
}

fn write_rows(shard: &mut ShardWriter, rows: Rows, routing: Option<&Routing>) -> Result<()> {
    shard.write_documents(&rows.documents)?;
    if rows.tokens.is_empty() {
        return Ok(());
    }
    shard.write_tokens(&rows.tokens)?;
    let kept = |x: &Tensor| rows.keep.as_ref().map_or_else(|| x.shallow_clone(), |keep| x.index_select(0, keep));
    for (hook, act) in rows.acts.into_iter().enumerate() {
        let (dtype, bytes) = act.land(|act| bytes_of(&kept(act)))?;
        shard.write_acts(hook, dtype, bytes)?;
    }
    if let Some(routing) = routing {
        for (&layer, packed) in routing.layers.iter().zip(rows.routing) {
            let columns = packed.land(|packed| unpack(&kept(packed), routing))?;
            shard.write_routing(layer, &columns)?;
        }
    }
    Ok(())
}

/// The values of a tensor as they are, row by row, little endian.
fn bytes_of(x: &Tensor) -> (Dtype, Bytes) {
    let (dtype, x) = match x.kind() {
        Kind::Float => (Dtype::F32, x.contiguous()),
        Kind::BFloat16 => (Dtype::Bf16, x.contiguous()),
        _ => (Dtype::F32, x.to_kind(Kind::Float).contiguous()),
    };
    let mut bytes = vec![0; x.numel() * dtype.size()];
    x.copy_data_u8(&mut bytes, x.numel());
    (dtype, bytes.into())
}
