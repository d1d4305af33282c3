//! What is the label of a document: its language, its source, or what its `meta` says?

use std::collections::HashMap;

use serde_json::Value;

use super::{JoinOptions, With};
use crate::error::{Error, Result};
use crate::features::Windows;
use crate::random::Random;
use crate::store::Run;
use crate::tables::DocumentRow;

/// Documents whose rows are read at a time.
const BLOCK: u64 = 4096;

/// Bytes of a document's text in which its language is looked for.
const TEXT_BYTES: usize = 4000;

/// Keys of `meta` that name a language.
const LANGUAGE_KEYS: [&str; 2] = ["language", "lang"];

/// What a document has for which nothing is known.
const UNKNOWN: &str = "unknown";

/// The labels of documents.
pub(super) struct Documents {
    names: Vec<String>,
    /// The first token of each document, ascending, and the document's label.
    starts: Vec<(u64, u16)>,
    /// The labels in an order that was shuffled.
    shuffled: Vec<u16>,
    about: String,
}

/// Numbers for names, in the order in which they come.
#[derive(Default)]
struct Names {
    names: Vec<String>,
    numbers: HashMap<String, u16>,
}

impl Names {
    /// So many labels at most; more are no kinds but names of their own.
    const MAX: usize = 4096;

    fn number(&mut self, name: &str, with: &With) -> Result<u16> {
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        if self.names.len() == Self::MAX {
            return Err(Error::TooManyLabels { with: with.to_string() });
        }
        let number = self.names.len() as u16;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        Ok(number)
    }
}

impl Documents {
    pub(super) fn open(run: &Run, options: &JoinOptions) -> Result<Self> {
        let with = &options.with;
        let mut names = Names::default();
        // Of each document, by `doc_id`: its first token, and its label where the row tells it.
        let mut found: Vec<(u64, Option<u16>)> = Vec::new();
        for first in (0..run.n_documents()).step_by(BLOCK as usize) {
            for row in run.documents(first..(first + BLOCK).min(run.n_documents()))? {
                let label = told(&row, with).map(|name| names.number(&name, with)).transpose()?;
                found.push((row.first_token_idx, label));
            }
        }
        let told = found.iter().filter(|(_, label)| label.is_some()).count();
        let mut detected = 0;
        if *with == With::Language && told < found.len() {
            each_text(run, &mut |doc_id, text| {
                let Some((_, label @ None)) = found.get_mut(doc_id as usize) else { return Ok(()) };
                if let Some(info) = whatlang::detect(text).filter(whatlang::Info::is_reliable) {
                    *label = Some(names.number(info.lang().code(), with)?);
                    detected += 1;
                }
                Ok(())
            })?;
        }
        let unknown = found.len() - told - detected;
        let mut starts = Vec::with_capacity(found.len());
        for (start, label) in found {
            starts.push((start, label.map_or_else(|| names.number(UNKNOWN, with), Ok)?));
        }
        starts.sort_unstable();
        let mut shuffled: Vec<u16> = starts.iter().map(|&(_, label)| label).collect();
        Random::new(options.seed, 0, 0).shuffle(&mut shuffled);
        let of_text = if *with == With::Language { format!(", {detected} by their text") } else { String::new() };
        let about = format!("{told} documents by what is recorded{of_text}, {unknown} unknown");
        Ok(Self { names: names.names, starts, shuffled, about })
    }

    pub(super) fn n_labels(&self) -> usize {
        self.names.len()
    }

    pub(super) fn name(&self, label: usize) -> String {
        self.names[label].clone()
    }

    pub(super) fn about(&self) -> String {
        self.about.clone()
    }

    pub(super) fn label(&self, token_idx: u64) -> Option<u16> {
        self.place(token_idx).map(|document| self.starts[document].1)
    }

    /// The label of another document, the same for all tokens of this one.
    pub(super) fn shuffled(&self, token_idx: u64) -> Option<u16> {
        self.place(token_idx).map(|document| self.shuffled[document])
    }

    fn place(&self, token_idx: u64) -> Option<usize> {
        self.starts.partition_point(|&(start, _)| start <= token_idx).checked_sub(1)
    }
}

/// What the row of a document says.
fn told(row: &DocumentRow, with: &With) -> Option<String> {
    let meta = || row.meta.as_ref().and_then(|meta| serde_json::from_str::<Value>(meta).ok());
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    };
    match with {
        With::Source => Some(row.source.clone()),
        With::Meta(key) => text(meta()?.get(key)?),
        With::Language => {
            let meta = meta()?;
            LANGUAGE_KEYS.iter().find_map(|key| meta.get(key)?.as_str().map(str::to_owned))
        }
        _ => None,
    }
}

/// Hands out the beginning of each document's text, without its special tokens.
fn each_text(run: &Run, each: &mut dyn FnMut(u64, &str) -> Result<()>) -> Result<()> {
    let mut current: Option<(u64, String)> = None;
    for window in Windows::ranges(run.n_tokens()) {
        let tokens = run.tokens(window)?;
        for i in 0..tokens.len() {
            let doc_id = tokens.doc_id[i];
            if let Some((last, text)) = current.take_if(|(last, _)| *last != doc_id) {
                each(last, &text)?;
            }
            let (_, text) = current.get_or_insert_with(|| (doc_id, String::new()));
            // Bytes of characters that the vocabulary does not have tell less than their names would disturb.
            if !tokens.special[i] && text.len() < TEXT_BYTES && !tokens.token[i].starts_with("<0x") {
                text.push_str(&tokens.token[i].replace('▁', " "));
            }
        }
    }
    match current {
        Some((last, text)) => each(last, &text),
        None => Ok(()),
    }
}
