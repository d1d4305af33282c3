//! How is a shuffled run read, from front to back?
//!
//! Its rows are in a random order already, so each goes from the file to its place in a batch. Shards come in another
//! order every epoch, which the seed tells.

use std::ops::Range;

use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::random::Random;

use super::rows::Rows;
use super::{Batch, Cursor, Message, Place};

/// Rows whose numbers and flags are read at a time.
const TOKEN_ROWS: usize = 8192;

/// The next row of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct InOrder {
    /// Among the shards in the order of the epoch.
    shard: usize,
    row: usize,
}

/// What is known of the tokens of some rows of a shard.
#[derive(Default)]
struct Tokens {
    shard: usize,
    rows: Range<usize>,
    token_idx: Vec<u64>,
    special: Vec<bool>,
}

/// Sends every batch from the cursor on.
pub(super) fn read(mut rows: Rows, mut at: InOrder, cursor: &mut Cursor, sender: &Sender<Message>) -> Result<()> {
    let batch_rows = cursor.options.batch_rows.max(1);
    let block = rows.block();
    let mut tokens = Tokens::default();
    while cursor.epoch < cursor.options.epochs {
        let mut order: Vec<usize> = (0..rows.run.shards().len()).collect();
        Random::new(cursor.options.seed, u64::from(cursor.epoch), 0).shuffle(&mut order);
        loop {
            let mut batch = rows.batch(cursor.epoch);
            while let Some(&shard) = order.get(at.shard).filter(|_| batch.len() < batch_rows) {
                let n = rows.run.shards()[shard].n_tokens as usize;
                let end = n.min(at.row + block).min(at.row + batch_rows - batch.len());
                if at.row < end {
                    append(&mut rows, shard, at.row..end, &mut batch, &mut tokens, cursor)?;
                    at.row = end;
                } else {
                    at = InOrder { shard: at.shard + 1, row: 0 };
                }
            }
            if batch.is_empty() {
                break;
            }
            let n = batch.len();
            batch.acts.iter_mut().zip(rows.widths()).for_each(|(acts, width)| acts.truncate(n * width));
            if !cursor.send(batch, Place::InOrder(at.clone()), sender) {
                return Ok(());
            }
        }
        cursor.check_not_empty(&rows.run)?;
        cursor.epoch += 1;
        at = InOrder::default();
    }
    Ok(())
}

/// Appends those rows that are not left out.
fn append(
    rows: &mut Rows,
    shard: usize,
    range: Range<usize>,
    batch: &mut Batch,
    tokens: &mut Tokens,
    cursor: &mut Cursor,
) -> Result<()> {
    let first = batch.len();
    rows.read(shard, range.clone(), first, &mut batch.acts)?;
    for (i, row) in range.enumerate() {
        tokens.load(rows, shard, row)?;
        let special = tokens.special[row - tokens.rows.start];
        if !rows.keeps(special, first + i, &batch.acts, &mut cursor.excluded) {
            continue;
        }
        let to = batch.len();
        if to < first + i {
            for (acts, width) in batch.acts.iter_mut().zip(rows.widths()) {
                acts.copy_within((first + i) * width..(first + i + 1) * width, to * width);
            }
        }
        batch.token_idx.push(tokens.token_idx[row - tokens.rows.start]);
    }
    Ok(())
}

impl Tokens {
    /// Reads what is not there yet.
    fn load(&mut self, rows: &Rows, shard: usize, row: usize) -> Result<()> {
        if self.shard == shard && self.rows.contains(&row) {
            return Ok(());
        }
        let of = &rows.run.shards()[shard];
        let range = row..(row + TOKEN_ROWS).min(of.n_tokens as usize);
        self.token_idx = rows.run.token_idx_rows(of, range.clone())?;
        self.special = rows.special(shard, range.clone())?;
        (self.shard, self.rows) = (shard, range);
        Ok(())
    }
}
