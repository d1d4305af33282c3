//! Which classes of the reference implementation does this program know, and what are they called elsewhere?

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which of the reference implementation's classes a checkpoint belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Architecture {
    /// `Gemma3ForCausalLM`.
    #[serde(rename = "gemma3_text")]
    Gemma3Text,
    /// The text stack of `Gemma3ForConditionalGeneration`, which also sees images.
    #[serde(rename = "gemma3")]
    Gemma3,
    /// `Gemma3nForCausalLM`.
    #[serde(rename = "gemma3n_text")]
    Gemma3nText,
    /// The text stack of `Gemma3nForConditionalGeneration`.
    #[serde(rename = "gemma3n")]
    Gemma3n,
    /// `Gemma4ForCausalLM`.
    #[serde(rename = "gemma4_text")]
    Gemma4Text,
    /// The text stack of `Gemma4ForConditionalGeneration`: E2B, E4B, 26B-A4B, 31B.
    #[serde(rename = "gemma4")]
    Gemma4,
    /// The text stack of the 12B by itself.
    #[serde(rename = "gemma4_unified_text")]
    Gemma4UnifiedText,
    /// The text stack of `Gemma4UnifiedForConditionalGeneration`, the 12B.
    #[serde(rename = "gemma4_unified")]
    Gemma4Unified,
}

/// Which mathematics a checkpoint's layers follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    Gemma3,
    Gemma3n,
    Gemma4,
}

/// A row of the table of architectures.
struct Row {
    architecture: Architecture,
    generation: Generation,
    /// The architecture of the text stack by itself.
    text: Architecture,
    model_type: &'static str,
    class: &'static str,
    gguf: Option<&'static str>,
}

use Architecture as A;
use Generation as G;

#[rustfmt::skip]
const TABLE: &[Row] = &[
    Row { architecture: A::Gemma3Text,        generation: G::Gemma3,  text: A::Gemma3Text,        model_type: "gemma3_text",         class: "Gemma3ForCausalLM",                     gguf: Some("gemma3") },
    Row { architecture: A::Gemma3,            generation: G::Gemma3,  text: A::Gemma3Text,        model_type: "gemma3",              class: "Gemma3ForConditionalGeneration",        gguf: None },
    Row { architecture: A::Gemma3nText,       generation: G::Gemma3n, text: A::Gemma3nText,       model_type: "gemma3n_text",        class: "Gemma3nForCausalLM",                    gguf: Some("gemma3n") },
    Row { architecture: A::Gemma3n,           generation: G::Gemma3n, text: A::Gemma3nText,       model_type: "gemma3n",             class: "Gemma3nForConditionalGeneration",       gguf: None },
    Row { architecture: A::Gemma4Text,        generation: G::Gemma4,  text: A::Gemma4Text,        model_type: "gemma4_text",         class: "Gemma4ForCausalLM",                     gguf: Some("gemma4") },
    Row { architecture: A::Gemma4,            generation: G::Gemma4,  text: A::Gemma4Text,        model_type: "gemma4",              class: "Gemma4ForConditionalGeneration",        gguf: None },
    Row { architecture: A::Gemma4UnifiedText, generation: G::Gemma4,  text: A::Gemma4UnifiedText, model_type: "gemma4_unified_text", class: "Gemma4UnifiedForCausalLM",              gguf: None },
    Row { architecture: A::Gemma4Unified,     generation: G::Gemma4,  text: A::Gemma4UnifiedText, model_type: "gemma4_unified",      class: "Gemma4UnifiedForConditionalGeneration", gguf: None },
];

impl Architecture {
    fn row(self) -> &'static Row {
        let row = TABLE.iter().find(|row| row.architecture == self);
        row.expect("every architecture has a row in the table")
    }

    /// Hugging Face's `model_type`.
    pub fn model_type(self) -> &'static str {
        self.row().model_type
    }

    /// The class of the reference implementation, as in `architectures` of `config.json`.
    pub fn class(self) -> &'static str {
        self.row().class
    }

    /// The architecture of the text stack by itself.
    #[must_use]
    pub fn text(self) -> Self {
        self.row().text
    }

    /// Which mathematics the layers follow.
    pub fn generation(self) -> Generation {
        self.row().generation
    }

    pub(super) fn from_model_type(found: &str) -> Result<Self> {
        let row = TABLE.iter().find(|row| row.model_type == found);
        row.map(|row| row.architecture).ok_or_else(|| unknown(TABLE.iter().map(|row| row.model_type), found))
    }

    pub(super) fn from_gguf(found: &str) -> Result<Self> {
        let row = TABLE.iter().find(|row| row.gguf == Some(found));
        row.map(|row| row.architecture).ok_or_else(|| unknown(TABLE.iter().filter_map(|row| row.gguf), found))
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

fn unknown(supported: impl Iterator<Item = &'static str>, found: &str) -> Error {
    let supported: Vec<String> = supported.map(|name| format!("`{name}`")).collect();
    Error::UnknownArchitecture { supported: supported.join(", "), found: found.to_owned(), path: None }
}
