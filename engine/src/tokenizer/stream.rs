//! How does text appear while its tokens come one by one?

use super::{SPACE, Tokenizer};

/// Turns tokens into text as they come, without looking back: never half a character.
///
/// What [`Tokenizer::decode`] gives for the same tokens, in pieces.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// The first bytes of a character whose last ones have not come yet.
    bytes: Vec<u8>,
}

impl<'t> TextStream<'t> {
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, bytes: Vec::new() }
    }

    /// The text that is certain with this token; empty where a character is not whole yet.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_to(id, &mut text);
        text
    }

    /// What is left when no more tokens come: `U+FFFD` for each byte of a character that stayed incomplete.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.give_up(&mut text);
        text
    }

    pub(super) fn push_to(&mut self, id: u32, text: &mut String) {
        if let Some(byte) = self.tokenizer.vocab.byte(id) {
            self.push_byte(byte, text);
            return;
        }
        self.give_up(text);
        match self.tokenizer.vocab.get(id) {
            Some(piece) => text.extend(piece.chars().map(|c| if c == SPACE { ' ' } else { c })),
            None => text.push(char::REPLACEMENT_CHARACTER),
        }
    }

    pub(super) fn give_up(&mut self, text: &mut String) {
        text.extend(self.bytes.drain(..).map(|_| char::REPLACEMENT_CHARACTER));
    }

    fn push_byte(&mut self, byte: u8, text: &mut String) {
        self.bytes.push(byte);
        while !self.bytes.is_empty() {
            match std::str::from_utf8(&self.bytes) {
                Ok(character) => {
                    text.push_str(character);
                    self.bytes.clear();
                }
                Err(error) => match error.error_len() {
                    // The byte may still become part of a character.
                    None => return,
                    Some(wrong) => text.extend(self.bytes.drain(..wrong).map(|_| char::REPLACEMENT_CHARACTER)),
                },
            }
        }
    }
}
