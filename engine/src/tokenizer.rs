//! Which tokens is a text made of, and which bytes of it does each stand for?
//!
//! A [`Tokenizer`] comes from a `tokenizer.json` (the `tokenizers` crate does the work) or from GGUF metadata (the
//! `spm` module does). Both give the same ids for the same vocabulary. [`TextStream`] is the way back while tokens come.

mod gguf;
mod hf;
mod spm;
mod stream;
mod vocab;

use std::path::Path;

pub use self::stream::TextStream;
use self::vocab::Vocab;
use crate::error::{Error, Result};
use crate::weights::gguf::Metadata;

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
    /// Chat templates by name.
    templates: Vec<(String, String)>,
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

    /// Reads the tokenizer in a GGUF file's metadata: the models `llama` (scores) and `gemma4` (merges).
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        gguf::read(metadata)
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

    /// The ids alone, see [`Self::encode`].
    pub fn ids(&self, text: &str, bos: bool) -> Vec<u32> {
        self.encode(text, bos).iter().map(|piece| piece.id).collect()
    }

    /// The text of a token: spaces as spaces, a byte as `<0xE2>`, a control token as it is spelled.
    ///
    /// Different ids have different texts. `None` for an id that the vocabulary does not have.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.vocab.get(id).map(|text| text.replace(SPACE, " "))
    }

    /// The text that the tokens stand for, control tokens as they are spelled.
    ///
    /// Bytes that are part of no character, and ids that the vocabulary does not have, become `U+FFFD`, one for each
    /// token. (The reference also gives up the whole characters beside such bytes.)
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut stream = TextStream::new(self);
        for &id in ids {
            stream.push_to(id, &mut text);
        }
        stream.give_up(&mut text);
        text
    }

    /// The id of the token that is spelled like this inside the vocabulary, where spaces are `▁`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.vocab.find(token)
    }

    /// The chat template of this name that came with the tokenizer; the plain one is `default`.
    pub fn chat_template(&self, name: &str) -> Option<&str> {
        self.templates.iter().find(|(found, _)| found == name).map(|(_, template)| template.as_str())
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

    /// The SHA-256 of `tokenizer.json`, or of a GGUF's tokens with their scores, types and merges.
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

#[cfg(test)]
mod tests;
