//! Which token of the vocabulary does a person mean?

use anyhow::{Result, anyhow, bail};
use engine::intervention::token_id;
use engine::tokenizer::Tokenizer;

/// A token by its text, or as `id:17`.
pub(crate) fn read(text: &str, tokenizer: &Tokenizer, d_vocab: usize) -> Result<u32> {
    const HINT: &str = "hint: name a token with the space that belongs to it, or as `id:17`";
    let id = match text.strip_prefix("id:").map(str::parse) {
        Some(Ok(id)) => id,
        _ => token_id(text, Some(tokenizer)).map_err(|what| anyhow!("{what}\n{HINT}"))?,
    };
    known(id, d_vocab)
}

/// A token by its number.
pub(crate) fn known(id: u32, d_vocab: usize) -> Result<u32> {
    if id as usize >= d_vocab {
        bail!("expected a token id below {d_vocab}, found {id}");
    }
    Ok(id)
}
