//! Which tokens is a text made of, and which bytes of it does each stand for?
//!
//! A [`Tokenizer`] comes from a `tokenizer.json` (the `tokenizers` crate does the work) or from GGUF metadata (the
//! `spm` module does). Both give the same ids for the same vocabulary.

mod hf;
mod spm;
mod vocab;

use std::path::Path;

use sha2::{Digest, Sha256};

use self::vocab::Vocab;
use crate::error::{Error, Result};
use crate::weights::gguf::Metadata;
use crate::weights::hex;

/// What stands for a space inside the vocabulary.
const SPACE: char = '▁';

/// One token of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub id: u32,
    /// Start and end in bytes of the text; `None` for a token that was added, such as the beginning of a sequence.
    ///
    /// The spans of a text's tokens lie end to end and cover it. A byte token has its one byte, which need not be a
    /// character boundary.
    pub span: Option<(usize, usize)>,
    /// A control token such as `<bos>` or `<start_of_turn>`, whether it was added or stood in the text.
    pub special: bool,
}

/// Text to tokens and back.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    /// By id.
    special: Vec<bool>,
    bos_id: Option<u32>,
    eos_ids: Vec<u32>,
    pad_id: Option<u32>,
    sha256: String,
    scheme: Scheme,
}

#[derive(Debug)]
enum Scheme {
    Hf(Box<tokenizers::Tokenizer>),
    Spm(spm::Spm),
}

impl Tokenizer {
    /// Reads `tokenizer.json` in a Hugging Face folder, and the ids with a role from the files beside it.
    pub fn from_hf_dir(dir: &Path) -> Result<Self> {
        hf::open(dir)
    }

    /// Reads the tokenizer in a GGUF file's metadata. Only the model `llama` (SentencePiece scores) is known.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let bad = |what: String| Error::Tokenizer { what, path: metadata.path().to_owned() };
        let Some(model) = metadata.text("tokenizer.ggml.model")? else {
            return Err(Error::NoTokenizer { path: metadata.path().to_owned() });
        };
        if model != "llama" {
            return Err(bad(format!("expected the tokenizer model `llama`, found `{model}`")));
        }
        if metadata.bool("tokenizer.ggml.add_space_prefix")? == Some(true) {
            return Err(bad("expected no space prefix, found `add_space_prefix`".to_owned()));
        }
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let scores = metadata.floats("tokenizer.ggml.scores")?.unwrap_or_default();
        let types = metadata.ints("tokenizer.ggml.token_type")?.unwrap_or_default();
        if tokens.is_empty() || scores.len() != tokens.len() || types.len() != tokens.len() {
            let (n, n_scores, n_types) = (tokens.len(), scores.len(), types.len());
            return Err(bad(format!(
                "expected tokens with a score and a type each, found {n} tokens, {n_scores} scores, {n_types} types"
            )));
        }
        let eos_ids = metadata.eos_token_ids()?;
        let (bos_id, pad_id) = (metadata.token_id("bos")?, metadata.token_id("padding")?);
        check_roles(bos_id.iter().chain(&pad_id).chain(&eos_ids), tokens.len(), metadata.path())?;

        let mut hash = Sha256::new();
        for ((token, score), kind) in tokens.iter().zip(scores).zip(types) {
            // With its length, so that no two vocabularies are the same bytes.
            hash.update((token.len() as u64).to_le_bytes());
            hash.update(token);
            hash.update(score.to_le_bytes());
            hash.update(kind.to_le_bytes());
        }
        let (vocab, scheme) = spm::Spm::new(tokens, scores, types);
        let special = types.iter().map(|&kind| kind == spm::CONTROL || kind == spm::UNKNOWN).collect();
        let sha256 = hex(&hash.finalize());
        Ok(Self { vocab, special, bos_id, eos_ids, pad_id, sha256, scheme: Scheme::Spm(scheme) })
    }

    /// Cuts `text` into tokens; with `bos`, the beginning-of-sequence token comes first.
    ///
    /// Control tokens that stand in the text as they are spelled become those tokens, as in the reference.
    pub fn encode(&self, text: &str, bos: bool) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(text.len() / 3 + 1);
        if let Some(id) = self.bos_id.filter(|_| bos) {
            pieces.push(Piece { id, span: None, special: true });
        }
        let add = |id: u32, start: usize, end: usize| {
            let special = self.is_special(id);
            pieces.push(Piece { id, span: Some((start, end)), special });
        };
        match &self.scheme {
            Scheme::Hf(tokenizer) => hf::encode(tokenizer, &self.vocab, text, add),
            Scheme::Spm(spm) => spm.encode(&self.vocab, text, add),
        }
        pieces
    }

    /// The text of a token: spaces as spaces, a byte as `<0xE2>`, a control token as it is spelled.
    ///
    /// Different ids have different texts. `None` for an id that the vocabulary does not have.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.vocab.get(id).map(|text| text.replace(SPACE, " "))
    }

    /// The text that the tokens stand for, control tokens as they are spelled.
    ///
    /// Bytes that are no UTF-8, and ids that the vocabulary does not have, become `U+FFFD`, one for each token.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut bytes: Vec<u8> = Vec::new();
        for &id in ids {
            if let Some(byte) = self.vocab.byte(id) {
                bytes.push(byte);
                continue;
            }
            flush(&mut bytes, &mut text);
            match self.vocab.get(id) {
                Some(piece) => text.extend(piece.chars().map(|c| if c == SPACE { ' ' } else { c })),
                None => text.push(char::REPLACEMENT_CHARACTER),
            }
        }
        flush(&mut bytes, &mut text);
        text
    }

    /// The token that begins a sequence.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The tokens at which generation stops.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// One more than the largest id. May exceed the rows of a text-only model's embedding.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// Whether the token is a control token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The SHA-256 of `tokenizer.json`, or of a GGUF's tokens with their scores and types.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// Refuses a token with a role that the vocabulary does not have.
fn check_roles<'a>(mut ids: impl Iterator<Item = &'a u32>, vocab_size: usize, path: &Path) -> Result<()> {
    match ids.find(|&&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => {
            let what = format!("expected ids below {vocab_size} for the tokens with a role, found {id}");
            Err(Error::Tokenizer { what, path: path.to_owned() })
        }
    }
}

fn flush(bytes: &mut Vec<u8>, text: &mut String) {
    match std::str::from_utf8(bytes) {
        Ok(valid) => text.push_str(valid),
        Err(_) => text.extend(bytes.iter().map(|_| char::REPLACEMENT_CHARACTER)),
    }
    bytes.clear();
}

#[cfg(test)]
mod tests;
