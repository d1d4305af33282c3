//! Into which tokens is a text cut, and what does that cost in each language?

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Source, Tok};
use crate::loader::{Ask, Cancel, Failure};

/// What stands for a space inside the vocabulary.
const SPACE: char = '▁';

/// Asks for the tokens of a text.
#[derive(Debug, Clone)]
pub(crate) struct PiecesQuery {
    /// A `tokenizer.json`, or a folder with one; that of the run's model where it is empty.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A text in tokens.
#[derive(Debug)]
pub(crate) struct Pieces {
    /// The file that was read.
    pub(crate) path: PathBuf,
    pub(crate) toks: Vec<Tok>,
    pub(crate) ids: Vec<u32>,
    /// Tokens that stand for one byte, since the vocabulary has no piece for it.
    pub(crate) n_bytes: usize,
    /// By the language of each line.
    pub(crate) languages: Vec<Fertility>,
}

/// How much a language costs.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Fertility {
    pub(crate) language: String,
    pub(crate) n_tokens: usize,
    pub(crate) n_bytes: usize,
    pub(crate) words: usize,
    pub(crate) characters: usize,
}

impl Ask for PiecesQuery {
    type Answer = Pieces;
    const NAME: &'static str = "tokens";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Pieces, Failure> {
        let path = self.file(source)?;
        let tokenizer = source.tokenizer(&path)?;
        let mut out = Pieces { path, toks: Vec::new(), ids: Vec::new(), n_bytes: 0, languages: Vec::new() };
        let mut by_language: BTreeMap<String, Fertility> = BTreeMap::new();
        for line in self.text.split_inclusive('\n') {
            cancel.check()?;
            let cut = tokenizer.encode(line, false).map_err(|error| Failure::from_text(&error.to_string()))?;
            let of_line = by_language.entry(language(line)).or_default();
            for (id, token) in cut.get_ids().iter().zip(cut.get_tokens()) {
                let byte = is_byte(token);
                out.n_bytes += usize::from(byte);
                of_line.n_bytes += usize::from(byte);
                of_line.n_tokens += 1;
                out.ids.push(*id);
                out.toks.push(Tok { text: token.replace(SPACE, " ").into(), special: false });
            }
            of_line.words += line.split_whitespace().count();
            of_line.characters += line.trim_end().chars().count();
        }
        out.languages = by_language
            .into_iter()
            .filter(|(_, of)| of.characters > 0)
            .map(|(language, of)| Fertility { language, ..of })
            .collect();
        Ok(out)
    }

    fn bytes(answer: &Pieces) -> usize {
        answer.toks.len() * 64 + 256
    }
}

impl PiecesQuery {
    fn file(&self, source: &Source) -> Result<PathBuf, Failure> {
        let given = if self.path.trim().is_empty() { &source.run.manifest().model.source } else { self.path.trim() };
        let path = PathBuf::from(given);
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path };
        if file.is_file() && file.extension().is_some_and(|ending| ending == "json") {
            return Ok(file);
        }
        Err(Failure::new(
            format!("expected a `tokenizer.json`, found none at `{}`", file.display()),
            "type the folder of the model, or the path of its `tokenizer.json`",
        ))
    }
}

/// `<0xE2>`, as the vocabulary spells a byte.
fn is_byte(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The language of a line; a guess, which says so, where the line is too short to tell.
fn language(line: &str) -> String {
    match whatlang::detect(line) {
        Some(info) if info.is_reliable() => info.lang().eng_name().to_owned(),
        Some(info) => format!("{}, by guess", info.lang().eng_name()),
        None => "signs and numbers".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_from_words() {
        assert!(is_byte("<0xE2>") && is_byte("<0x0a>"));
        assert!(!is_byte("<0xE>") && !is_byte("<bos>") && !is_byte("<0xZZ>") && !is_byte(" the"));
    }

    #[test]
    fn languages_are_told() {
        assert!(language("The government said on Tuesday that it would not change the policy.").starts_with("English"));
        assert!(language("Президент России заявил, что правительство выделит деньги регионам.").starts_with("Russian"));
        assert_eq!(language("12 + 30 = 42"), "signs and numbers");
    }
}
