//! How does a token lie in a scratch file?
//!
//! Fixed numbers, then its text; the file belongs to one shuffle on one machine and is gone when that has ended.

use std::ops::Range;

use crate::error::Result;
use crate::manifest::Shard;
use crate::store::Run;
use crate::tables::TokenColumns;

use super::{TOKEN_ROWS, blocks};

/// Bytes before the text.
const HEAD: usize = 4 * 8 + 4 * 4 + 2;

const SPECIAL: u8 = 1;
const HAS_START: u8 = 2;
const HAS_END: u8 = 4;
const HAS_NLL: u8 = 8;

/// A token among the bytes of its bucket.
pub(super) struct Record {
    pub(super) token_idx: u64,
    /// Its place in the order in which tokens came to the bucket.
    pub(super) row: u32,
    pub(super) bytes: Range<usize>,
}

/// Puts token `i` into `record`, which is emptied before.
pub(super) fn encode(token_idx: u64, columns: &TokenColumns, i: usize, record: &mut Vec<u8>) {
    let (start, end, nll) = (columns.byte_start[i], columns.byte_end[i], columns.nll[i]);
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let flags = flag(columns.special[i], SPECIAL)
        | flag(start.is_some(), HAS_START)
        | flag(end.is_some(), HAS_END)
        | flag(nll.is_some(), HAS_NLL);
    record.clear();
    for number in [token_idx, columns.doc_id[i], start.unwrap_or(0), end.unwrap_or(0)] {
        record.extend_from_slice(&number.to_le_bytes());
    }
    let text = columns.token[i].as_bytes();
    for number in [columns.pos[i], columns.token_id[i], nll.unwrap_or(0.0).to_bits(), text.len() as u32] {
        record.extend_from_slice(&number.to_le_bytes());
    }
    record.extend_from_slice(&[flags, columns.modality[i]]);
    record.extend_from_slice(text);
}

/// The tokens of a bucket; `None` where the bytes do not hold such.
pub(super) fn records(bucket: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < bucket.len() {
        let head = bucket.get(at..at + HEAD)?;
        let end = at + HEAD + u32_at(head, 44)? as usize;
        records.push(Record { token_idx: u64_at(head, 0)?, row: records.len() as u32, bytes: at..end });
        at = end;
    }
    (at == bucket.len()).then_some(records)
}

/// Appends a token to columns; `None` where the bytes do not hold one.
pub(super) fn decode(record: &[u8], columns: &mut TokenColumns) -> Option<()> {
    let (head, text) = record.split_at_checked(HEAD)?;
    let flags = head[48];
    let has = |flag: u8| flags & flag != 0;
    columns.doc_id.push(u64_at(head, 8)?);
    columns.byte_start.push(has(HAS_START).then_some(u64_at(head, 16)?));
    columns.byte_end.push(has(HAS_END).then_some(u64_at(head, 24)?));
    columns.pos.push(u32_at(head, 32)?);
    columns.token_id.push(u32_at(head, 36)?);
    columns.nll.push(has(HAS_NLL).then_some(f32::from_bits(u32_at(head, 40)?)));
    columns.special.push(has(SPECIAL));
    columns.modality.push(head[49]);
    columns.token.push(std::str::from_utf8(text).ok()?.to_owned());
    Some(())
}

/// For each token of a shard its number, whether it is special, and its bytes in a scratch file.
pub(super) fn lengths<'a>(
    run: &'a Run,
    shard: &'a Shard,
) -> impl Iterator<Item = Result<impl Iterator<Item = (u64, bool, usize)> + use<>>> + 'a {
    blocks(shard.n_tokens as usize, TOKEN_ROWS).map(move |rows| {
        let (special, lengths) = run.token_lengths(shard, rows.clone())?;
        let first = shard.first_token_idx + rows.start as u64;
        let sizes = special.into_iter().zip(lengths).zip(first..);
        Ok(sizes.map(|((special, length), token_idx)| (token_idx, special, HEAD + length)))
    })
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
