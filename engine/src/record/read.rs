//! Which sequences does a corpus make?

use crossbeam_channel::Sender;
use data::corpus::{Content, Corpus, Document};
use data::files::hex;
use data::tables::DocumentRow;
use sha2::{Digest as _, Sha256};

use super::Cursor;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// One token of a sequence.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) id: u32,
    pub(super) text: String,
    /// Where it stands in the document, in bytes; `None` for special tokens and given ids.
    pub(super) span: Option<(u64, u64)>,
    pub(super) special: bool,
}

/// Consecutive tokens of one document, no more than the context holds.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) doc_id: u64,
    /// Which sequence of the document.
    pub(super) index: usize,
    pub(super) tokens: Vec<Token>,
}

#[derive(Debug)]
pub(super) enum Item {
    /// What an earlier recording has done.
    Resumed {
        documents: u64,
        corpus_bytes: u64,
        tokens: u64,
    },
    /// A document begins. Its first token's index is set where its first sequence is placed.
    Document {
        row: DocumentRow,
        sha256_before: String,
        bytes: u64,
    },
    /// A document goes on that an earlier recording began.
    Going {
        sha256_before: String,
    },
    Sequence(Sequence),
    /// A shard of a worker begins with the next sequence.
    Open {
        shard: usize,
        first_token_idx: u64,
    },
    /// The shard that was opened last ends.
    Close {
        cursor: Cursor,
    },
    /// The corpus, or the number of tokens asked for, is at an end.
    End {
        sha256: String,
        /// Of all sequences, those that an earlier recording wrote included.
        tokens: u64,
    },
}

pub(super) struct Reader<'a> {
    pub(super) corpus: &'a Corpus,
    pub(super) tokenizer: Option<&'a Tokenizer>,
    pub(super) config: &'a Config,
    pub(super) context: usize,
    pub(super) max_tokens: Option<u64>,
    pub(super) skip_special: bool,
    pub(super) from: Option<Cursor>,
}

impl Reader<'_> {
    /// Sends every item, in order. Ends early, without an error, when nobody listens any more.
    pub(super) fn read(self, items: &Sender<Item>) -> Result<()> {
        let mut read_so_far = Sha256::new();
        let mut corpus_bytes = 0;
        let mut left = self.max_tokens.unwrap_or(u64::MAX);
        let from = self.from.clone().unwrap_or(Cursor { document: 0, sequence: 0, tokens: 0, sha256: String::new() });
        left = left.saturating_sub(from.tokens);
        let mut doc_id = 0;
        let mut tokens = from.tokens;
        for document in self.corpus.documents() {
            if left == 0 && doc_id >= from.document {
                break;
            }
            let document = document?;
            let sha256_before = hex(&read_so_far.clone().finalize());
            let (bytes, sha256) = sum(&document.content);
            if doc_id >= from.document {
                if doc_id == from.document && self.from.is_some() {
                    if sha256_before != from.sha256 {
                        return Err(Error::CorpusChanged);
                    }
                    // A document that goes on was counted when it began.
                    let (begun, its_bytes) = if from.sequence > 0 { (1, bytes) } else { (0, 0) };
                    let resumed = Item::Resumed {
                        documents: doc_id + begun,
                        corpus_bytes: corpus_bytes + its_bytes,
                        tokens: from.tokens,
                    };
                    if items.send(resumed).is_err() {
                        return Ok(());
                    }
                }
                let skip = if doc_id == from.document { from.sequence } else { 0 };
                let mut sequences = self.sequences(&document, doc_id)?;
                // What an earlier recording wrote of this document is not taken from what is left.
                sequences.drain(..skip.min(sequences.len()));
                truncate(&mut sequences, &mut left);
                let item = if skip == 0 {
                    let n_tokens = self.rows(&sequences);
                    let row = DocumentRow {
                        doc_id,
                        source: document.source,
                        n_tokens,
                        sha256: hex(&sha256),
                        meta: document.meta,
                        first_token_idx: 0,
                    };
                    Item::Document { row, sha256_before, bytes }
                } else {
                    Item::Going { sha256_before }
                };
                tokens += sequences.iter().map(|sequence| sequence.tokens.len() as u64).sum::<u64>();
                let sending = std::iter::once(item).chain(sequences.into_iter().map(Item::Sequence));
                for item in sending {
                    if items.send(item).is_err() {
                        return Ok(());
                    }
                }
            }
            corpus_bytes += bytes;
            read_so_far.update(sha256);
            doc_id += 1;
        }
        let sha256 = hex(&read_so_far.finalize());
        if self.from.is_some() && doc_id <= from.document {
            if doc_id < from.document || sha256 != from.sha256 {
                return Err(Error::CorpusChanged);
            }
            let _ = items.send(Item::Resumed { documents: doc_id, corpus_bytes, tokens: from.tokens });
        }
        // Nobody listening is no error here either.
        let _ = items.send(Item::End { sha256, tokens });
        Ok(())
    }

    /// Rows that these sequences will have.
    pub(super) fn rows(&self, sequences: &[Sequence]) -> u64 {
        let tokens = sequences.iter().flat_map(|sequence| &sequence.tokens);
        tokens.filter(|token| !(self.skip_special && token.special)).count() as u64
    }

    pub(super) fn sequences(&self, document: &Document, doc_id: u64) -> Result<Vec<Sequence>> {
        let (bos, tokens) = match &document.content {
            Content::Text(text) => {
                let tokenizer =
                    self.tokenizer.ok_or(Error::TextWithoutTokenizer { source_name: document.source.clone() })?;
                (bos(tokenizer), text_tokens(tokenizer, text))
            }
            Content::Tokens(ids) => (None, self.given_tokens(ids)),
        };
        // A tokenizer may know more than a text-only model: the image placeholder of Gemma 3 lies behind its embedding.
        let vocab_size = self.config.d_vocab;
        if let Some(&Token { id, .. }) = tokens.iter().find(|token| token.id as usize >= vocab_size) {
            return Err(Error::TokenInCorpus { id, vocab_size, source_name: document.source.clone() });
        }
        let room = self.context - usize::from(bos.is_some());
        Ok(tokens
            .chunks(room)
            .enumerate()
            .map(|(index, chunk)| Sequence { doc_id, index, tokens: bos.iter().chain(chunk).cloned().collect() })
            .collect())
    }

    fn given_tokens(&self, ids: &[u32]) -> Vec<Token> {
        let special = |id| match self.tokenizer {
            Some(tokenizer) => tokenizer.is_special(id),
            None => {
                id == self.config.bos_token_id
                    || id == self.config.pad_token_id
                    || self.config.eos_token_ids.contains(&id)
            }
        };
        let text =
            |id| self.tokenizer.and_then(|tokenizer| tokenizer.token_text(id)).unwrap_or_else(|| format!("[{id}]"));
        ids.iter().map(|&id| Token { id, text: text(id), span: None, special: special(id) }).collect()
    }
}

/// The sum of the first documents of a corpus, as it is when they have been read.
pub(super) fn sum_of(corpus: &Corpus, documents: u64) -> Result<String> {
    let mut hasher = Sha256::new();
    for document in corpus.documents().take(documents as usize) {
        hasher.update(sum(&document?.content).1);
    }
    Ok(hex(&hasher.finalize()))
}

fn bos(tokenizer: &Tokenizer) -> Option<Token> {
    let id = tokenizer.bos_id()?;
    Some(Token { id, text: tokenizer.token_text(id).unwrap_or_default(), span: None, special: true })
}

fn text_tokens(tokenizer: &Tokenizer, text: &str) -> Vec<Token> {
    tokenizer
        .encode(text, false)
        .into_iter()
        .map(|piece| Token {
            id: piece.id,
            text: tokenizer.token_text(piece.id).unwrap_or_default(),
            span: piece.span.filter(|_| !piece.special).map(|(start, end)| (start as u64, end as u64)),
            special: piece.special,
        })
        .collect()
}

/// Cuts the sequences off where no tokens are left.
pub(super) fn truncate(sequences: &mut Vec<Sequence>, left: &mut u64) {
    for sequence in sequences.iter_mut() {
        sequence.tokens.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= sequence.tokens.len() as u64;
    }
    sequences.retain(|sequence| !sequence.tokens.is_empty());
}

/// The size of a document and its sum: of the text, or of the ids as four little-endian bytes each.
pub(super) fn sum(content: &Content) -> (u64, [u8; 32]) {
    match content {
        Content::Text(text) => (text.len() as u64, Sha256::digest(text).into()),
        Content::Tokens(ids) => {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            (bytes.len() as u64, Sha256::digest(&bytes).into())
        }
    }
}
