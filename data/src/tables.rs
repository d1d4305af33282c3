//! What is known of each token and of each document?

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, RecordBatch, StringArray, UInt8Array, UInt32Array, UInt64Array,
};
use arrow::datatypes::{Float32Type, UInt8Type, UInt32Type, UInt64Type};

use crate::error::{Error, Result};
use crate::parquet_io::TableFile;
use crate::schema;

/// The file with the text of every token id, in the folder of the run.
pub(crate) const VOCAB_FILE: &str = "vocab.parquet";

/// Consecutive tokens, column by column; every column has the same length. `token_idx` is not among them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenColumns {
    /// The row of `documents`.
    pub doc_id: Vec<u64>,
    /// Position in the sequence that the model saw; the beginning-of-sequence token is at 0.
    pub pos: Vec<u32>,
    pub token_id: Vec<u32>,
    /// The text of the token, lossless: `<0xE2>` for a token of one byte.
    pub token: Vec<String>,
    /// Where it begins in the document, in bytes; `None` for special tokens.
    pub byte_start: Vec<Option<u64>>,
    /// Where it ends.
    pub byte_end: Vec<Option<u64>>,
    /// BOS, EOS, padding, chat markers.
    pub special: Vec<bool>,
    /// 0 text, 1 image, 2 audio, 3 video.
    pub modality: Vec<u8>,
    /// −ln p(this token given those before it); `None` at the first position, or without logits.
    pub nll: Vec<Option<f32>>,
}

/// A document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentRow {
    pub doc_id: u64,
    /// Path or URI.
    pub source: String,
    /// Tokens of it that the run holds.
    pub n_tokens: u64,
    /// Of its text, hexadecimal.
    pub sha256: String,
    /// JSON, passed through from the corpus.
    pub meta: Option<String>,
    /// Its first token; the others follow.
    pub first_token_idx: u64,
}

impl TokenColumns {
    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.token_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.token_id.is_empty()
    }

    /// Appends a token of text; `bytes` is where it begins and ends in its document.
    #[expect(clippy::too_many_arguments, reason = "one for each column")]
    pub fn push(
        &mut self,
        doc_id: u64,
        pos: u32,
        token_id: u32,
        token: &str,
        bytes: Option<(u64, u64)>,
        special: bool,
        nll: Option<f32>,
    ) {
        self.doc_id.push(doc_id);
        self.pos.push(pos);
        self.token_id.push(token_id);
        self.token.push(token.to_owned());
        self.byte_start.push(bytes.map(|(start, _)| start));
        self.byte_end.push(bytes.map(|(_, end)| end));
        self.special.push(special);
        self.modality.push(0);
        self.nll.push(nll);
    }

    /// Moves the tokens of `other` to the end, leaving it empty.
    pub fn append(&mut self, other: &mut Self) {
        self.doc_id.append(&mut other.doc_id);
        self.pos.append(&mut other.pos);
        self.token_id.append(&mut other.token_id);
        self.token.append(&mut other.token);
        self.byte_start.append(&mut other.byte_start);
        self.byte_end.append(&mut other.byte_end);
        self.special.append(&mut other.special);
        self.modality.append(&mut other.modality);
        self.nll.append(&mut other.nll);
    }

    /// Removes the first `n` tokens and returns them.
    pub(crate) fn take_front(&mut self, n: usize) -> Self {
        let rest = Self {
            doc_id: self.doc_id.split_off(n),
            pos: self.pos.split_off(n),
            token_id: self.token_id.split_off(n),
            token: self.token.split_off(n),
            byte_start: self.byte_start.split_off(n),
            byte_end: self.byte_end.split_off(n),
            special: self.special.split_off(n),
            modality: self.modality.split_off(n),
            nll: self.nll.split_off(n),
        };
        std::mem::replace(self, rest)
    }

    /// Checks that every column has the same length.
    pub fn check(&self) -> Result<()> {
        let n = self.len();
        let lengths = [
            ("doc_id", self.doc_id.len()),
            ("pos", self.pos.len()),
            ("token", self.token.len()),
            ("byte_start", self.byte_start.len()),
            ("byte_end", self.byte_end.len()),
            ("special", self.special.len()),
            ("modality", self.modality.len()),
            ("nll", self.nll.len()),
        ];
        match lengths.iter().find(|(_, length)| *length != n) {
            Some((column, length)) => Err(Error::mismatch(format!("values in the column `{column}`"), n, *length)),
            None => Ok(()),
        }
    }

    /// As a table; `token_idx` has one number for each token.
    pub(crate) fn to_batch(&self, token_idx: Vec<u64>) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(token_idx)),
            Arc::new(UInt64Array::from(self.doc_id.clone())),
            Arc::new(UInt32Array::from(self.pos.clone())),
            Arc::new(UInt32Array::from(self.token_id.clone())),
            Arc::new(StringArray::from_iter_values(&self.token)),
            Arc::new(UInt64Array::from(self.byte_start.clone())),
            Arc::new(UInt64Array::from(self.byte_end.clone())),
            Arc::new(BooleanArray::from(self.special.clone())),
            Arc::new(UInt8Array::from(self.modality.clone())),
            Arc::new(Float32Array::from(self.nll.clone())),
        ];
        RecordBatch::try_new(schema::tokens(), columns).expect("the columns are those of the schema, of one length")
    }

    pub(crate) fn from_batch(file: &TableFile, batch: &RecordBatch) -> Result<Self> {
        Ok(Self {
            doc_id: file.primitive::<UInt64Type>(batch, "doc_id")?,
            pos: file.primitive::<UInt32Type>(batch, "pos")?,
            token_id: file.primitive::<UInt32Type>(batch, "token_id")?,
            token: file.strings(batch, "token")?.into_iter().map(Option::unwrap_or_default).collect(),
            byte_start: file.optional::<UInt64Type>(batch, "byte_start")?,
            byte_end: file.optional::<UInt64Type>(batch, "byte_end")?,
            special: file.booleans(batch, "special")?,
            modality: file.primitive::<UInt8Type>(batch, "modality")?,
            nll: file.optional::<Float32Type>(batch, "nll")?,
        })
    }
}

impl DocumentRow {
    pub(crate) fn to_batch(rows: &[Self]) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.doc_id))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.source))),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.n_tokens))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.sha256))),
            Arc::new(rows.iter().map(|row| row.meta.as_ref()).collect::<StringArray>()),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.first_token_idx))),
        ];
        RecordBatch::try_new(schema::documents(), columns).expect("the columns are those of the schema")
    }

    pub(crate) fn from_batch(file: &TableFile, batch: &RecordBatch) -> Result<Vec<Self>> {
        let doc_id = file.primitive::<UInt64Type>(batch, "doc_id")?;
        let n_tokens = file.primitive::<UInt64Type>(batch, "n_tokens")?;
        let first_token_idx = file.primitive::<UInt64Type>(batch, "first_token_idx")?;
        let source = file.strings(batch, "source")?;
        let sha256 = file.strings(batch, "sha256")?;
        let meta = file.strings(batch, "meta")?;
        let texts = source.into_iter().zip(sha256).zip(meta);
        Ok(texts
            .enumerate()
            .map(|(i, ((source, sha256), meta))| Self {
                doc_id: doc_id[i],
                source: source.unwrap_or_default(),
                n_tokens: n_tokens[i],
                sha256: sha256.unwrap_or_default(),
                meta,
                first_token_idx: first_token_idx[i],
            })
            .collect())
    }
}

pub(crate) fn vocab_batch(tokens: &[String]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(0..tokens.len() as u32)),
        Arc::new(StringArray::from_iter_values(tokens)),
    ];
    RecordBatch::try_new(schema::vocab(), columns).expect("the columns are those of the schema")
}
