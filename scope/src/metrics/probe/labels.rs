//! Which labels does a run have without anybody labelling it?
//!
//! Of tokens, what their text shows: `kind` (a word, a number, punctuation), and of words their first letter, whether that is
//! a capital or a vowel, and whether a space stands before. Of documents, their source and the entries of their `meta`.

use std::collections::BTreeMap;

use data::{Run, tables::DocumentRow};
use serde_json::Value;

use super::super::groups::file_of;
use crate::error::Result;

/// Classes of a document label that are told apart, the most frequent ones (SAEBench).
pub(super) const MAX_CLASSES: usize = 5;
/// Documents that a class needs.
pub(super) const MIN_DOCUMENTS: usize = 40;
/// Documents that are looked at for labels.
const MAX_DOCUMENTS: u64 = 200_000;
/// Different values that a label may have; one with more names its documents instead of sorting them.
const MAX_VALUES: usize = 1000;
/// Documents that are read at a time.
const BLOCK_DOCUMENTS: u64 = 4096;

/// A question with several answers, and the answer for each example.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Labels {
    pub(super) name: String,
    pub(super) classes: Vec<String>,
    /// `None` where the question makes no sense.
    pub(super) of: Vec<Option<usize>>,
}

impl Labels {
    /// The classes that are worth a probe of their own: of two, one, as the other is the same question.
    pub(super) fn concepts(&self) -> std::ops::Range<usize> {
        if self.classes.len() == 2 { 1..2 } else { 0..self.classes.len() }
    }
}

/// What the text of a token shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TokenText {
    pub(super) kind: Kind,
    /// Of a word that begins with one of a–z, in either case: the place in the alphabet.
    pub(super) letter: Option<u8>,
    capital: bool,
    /// Whether a space stands before it, so that it begins a word.
    pub(super) begins: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Number,
    Punctuation,
    Other,
}

impl TokenText {
    pub(super) fn of(token: &str) -> Self {
        let text = token.trim_start_matches([' ', '▁']);
        let begins = text.len() < token.len();
        let kind = if text.is_empty() {
            Kind::Other
        } else if text.chars().all(char::is_alphabetic) {
            Kind::Word
        } else if text.chars().all(|c| c.is_ascii_digit()) {
            Kind::Number
        } else if text.chars().all(|c| c.is_ascii_punctuation()) {
            Kind::Punctuation
        } else {
            Kind::Other
        };
        let first = text.chars().next().filter(|_| kind == Kind::Word);
        let letter = first.filter(char::is_ascii_alphabetic).map(|c| c.to_ascii_lowercase() as u8 - b'a');
        Self { kind, letter, capital: first.is_some_and(char::is_uppercase), begins }
    }
}

/// The labels of tokens.
pub(super) fn of_tokens(tokens: &[TokenText]) -> Vec<Labels> {
    let yes_or_no = ["no", "yes"].map(str::to_owned).to_vec();
    let asked = |name: &str, classes: Vec<String>, of: &dyn Fn(&TokenText) -> Option<usize>| Labels {
        name: name.to_owned(),
        classes,
        of: tokens.iter().map(of).collect(),
    };
    let word = |token: &TokenText| token.kind == Kind::Word;
    let kinds = ["word", "number", "punctuation"].map(str::to_owned).to_vec();
    vec![
        asked("kind", kinds, &|token| match token.kind {
            Kind::Word => Some(0),
            Kind::Number => Some(1),
            Kind::Punctuation => Some(2),
            Kind::Other => None,
        }),
        asked("first_letter", ('a'..='z').map(String::from).collect(), &|token| token.letter.map(usize::from)),
        asked("capital", yes_or_no.clone(), &|token| word(token).then_some(usize::from(token.capital))),
        asked("leading_space", yes_or_no.clone(), &|token| word(token).then_some(usize::from(token.begins))),
        asked("vowel", yes_or_no, &|token| token.letter.map(|letter| usize::from(b"aeiou".contains(&(b'a' + letter))))),
    ]
}

/// What a run says of its documents: for each label, the class of each document that has one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct DocumentLabels {
    pub(super) name: String,
    pub(super) classes: Vec<String>,
    pub(super) of: BTreeMap<u64, usize>,
}

/// The labels that sort documents into classes of enough of them.
pub(super) fn of_documents(run: &Run) -> Result<Vec<DocumentLabels>> {
    let mut values: BTreeMap<String, BTreeMap<String, Vec<u64>>> = BTreeMap::new();
    let mut names = Vec::new();
    let n = run.n_documents().min(MAX_DOCUMENTS);
    for first in (0..n).step_by(BLOCK_DOCUMENTS as usize) {
        for document in run.documents(first..(first + BLOCK_DOCUMENTS).min(n))? {
            for (label, value) in said_of(&document) {
                if names.contains(&label) {
                    continue;
                }
                let classes = values.entry(label.clone()).or_default();
                classes.entry(value).or_default().push(document.doc_id);
                if classes.len() > MAX_VALUES {
                    values.remove(&label);
                    names.push(label);
                }
            }
        }
    }
    let labels = values.into_iter().filter_map(|(name, classes)| {
        let mut classes: Vec<(String, Vec<u64>)> =
            classes.into_iter().filter(|(_, documents)| documents.len() >= MIN_DOCUMENTS).collect();
        classes.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then(a.0.cmp(&b.0)));
        classes.truncate(MAX_CLASSES);
        let of =
            classes.iter().enumerate().flat_map(|(class, (_, documents))| documents.iter().map(move |&id| (id, class)));
        let of = of.collect();
        let classes: Vec<String> = classes.into_iter().map(|(class, _)| class).collect();
        (classes.len() > 1).then_some(DocumentLabels { name, classes, of })
    });
    Ok(labels.collect())
}

/// The file that a document comes from, and the single values of its `meta`.
fn said_of(document: &DocumentRow) -> Vec<(String, String)> {
    let mut said = vec![("source".to_owned(), file_of(&document.source).to_owned())];
    let meta = document.meta.as_deref().and_then(|meta| serde_json::from_str::<Value>(meta).ok());
    if let Some(Value::Object(entries)) = meta {
        for (key, value) in entries {
            let value = match value {
                Value::String(text) => text,
                Value::Bool(_) | Value::Number(_) => value.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => continue,
            };
            said.push((format!("meta.{key}"), value));
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::{
        Kind::{Number, Other, Punctuation, Word},
        *,
    };

    #[test]
    fn texts_show_what_they_are() {
        let texts = [" Apple", "▁tree", "ing", " 1984", ",", "<0xE2>", " x1", "Émile", " ", "Élan"].map(TokenText::of);
        let kinds: Vec<Kind> = texts.iter().map(|text| text.kind).collect();
        assert_eq!(kinds, [Word, Word, Word, Number, Punctuation, Other, Other, Word, Other, Word]);
        let labels = of_tokens(&texts);
        let of = |name: &str| labels.iter().find(|labels| labels.name == name).unwrap().of.clone();
        assert_eq!(of("first_letter")[..5], [Some(0), Some(19), Some(8), None, None]);
        assert_eq!(of("first_letter")[7], None, "É is none of the 26");
        assert_eq!(of("capital")[..4], [Some(1), Some(0), Some(0), None]);
        assert_eq!(of("leading_space")[..4], [Some(1), Some(1), Some(0), None]);
        assert_eq!(of("vowel")[..4], [Some(1), Some(0), Some(1), None]);
        assert_eq!(of("kind")[3..6], [Some(1), Some(2), None]);
    }

    #[test]
    fn a_document_says_its_source_and_single_values() {
        let meta = Some(r#"{"genre": "news", "year": 1961, "tags": ["a"], "note": null}"#.to_owned());
        let document = DocumentRow { source: "a.txt:3".into(), meta, ..DocumentRow::default() };
        let said: Vec<String> = said_of(&document).into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(said, ["source=a.txt", "meta.genre=news", "meta.year=1961"]);
    }
}
