//! What is a token made of?

use unicode_script::{Script, UnicodeScript as _};

/// The classes that are not scripts. A token may be of several.
const CLASSES: [&str; 12] = [
    "special",
    "byte",
    "space before",
    "white space",
    "line break",
    "letters",
    "lower case",
    "upper case",
    "capitalized",
    "number",
    "punctuation",
    "mixed",
];

const SPECIAL: u16 = 0;
const BYTE: u16 = 1;
const SPACE_BEFORE: u16 = 2;
const WHITE_SPACE: u16 = 3;
const LINE_BREAK: u16 = 4;
const LETTERS: u16 = 5;
const LOWER_CASE: u16 = 6;
const UPPER_CASE: u16 = 7;
const CAPITALIZED: u16 = 8;
const NUMBER: u16 = 9;
const PUNCTUATION: u16 = 10;
const MIXED: u16 = 11;

/// All labels: the classes, then a place for the code of each script.
pub(super) const N: usize = CLASSES.len() + 256;

/// Tells classes, and remembers which scripts it has seen.
pub(super) struct Classes {
    /// By code; empty for those that were not seen.
    scripts: [&'static str; 256],
}

impl Classes {
    pub(super) const fn new() -> Self {
        Self { scripts: [""; 256] }
    }

    /// `lower case`, `script Latin`.
    pub(super) fn name(&self, label: usize) -> String {
        match CLASSES.get(label) {
            Some(class) => (*class).to_owned(),
            None => format!("script {}", self.scripts[label - CLASSES.len()]),
        }
    }

    /// Appends the classes of a token, none of them twice.
    pub(super) fn of(&mut self, text: &str, special: bool, out: &mut Vec<u16>) {
        if special {
            return out.push(SPECIAL);
        }
        if is_byte(text) {
            return out.push(BYTE);
        }
        if text.contains(['\n', '\r']) {
            out.push(LINE_BREAK);
        }
        // `▁` is how vocabularies write a space.
        let is_space = |c: char| c.is_whitespace() || c == '▁';
        let word = text.trim_matches(is_space);
        if word.is_empty() {
            return out.extend((!text.is_empty()).then_some(WHITE_SPACE));
        }
        if text.starts_with(is_space) {
            out.push(SPACE_BEFORE);
        }
        self.of_word(word, out);
    }

    fn of_word(&mut self, word: &str, out: &mut Vec<u16>) {
        // Marks belong to the letters before them.
        let is_letter = |c: char| c.is_alphabetic() || c.script() == Script::Inherited;
        if word.chars().all(is_letter) {
            out.push(LETTERS);
        } else if word.chars().all(char::is_numeric) {
            out.push(NUMBER);
        } else if !word.chars().any(char::is_alphanumeric) {
            out.push(PUNCTUATION);
        } else {
            out.push(MIXED);
        }
        let mut cased = word.chars().filter(|c| c.is_lowercase() || c.is_uppercase());
        if let Some(first) = cased.next() {
            let (mut lower, mut upper) = (first.is_lowercase(), first.is_uppercase());
            let mut rest_lower = true;
            let mut n = 1;
            for c in cased {
                (lower, upper) = (lower && c.is_lowercase(), upper && c.is_uppercase());
                rest_lower &= c.is_lowercase();
                n += 1;
            }
            match (lower, upper, rest_lower) {
                (true, ..) => out.push(LOWER_CASE),
                // One capital alone is both.
                (_, true, _) if n == 1 => out.extend([UPPER_CASE, CAPITALIZED]),
                (_, true, _) => out.push(UPPER_CASE),
                (_, _, true) if first.is_uppercase() => out.push(CAPITALIZED),
                _ => {}
            }
        }
        let mut scripts: Vec<u16> = Vec::new();
        for script in word.chars().map(|c| c.script()) {
            let code = script as u8;
            if !matches!(script, Script::Common | Script::Inherited | Script::Unknown) {
                self.scripts[usize::from(code)] = script.full_name();
                scripts.push(CLASSES.len() as u16 + u16::from(code));
            }
        }
        scripts.sort_unstable();
        scripts.dedup();
        out.append(&mut scripts);
    }
}

/// `<0xE2>`: a byte that is no character of its own.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_tokens() {
        let mut classes = Classes::new();
        let mut check = |text: &str, special: bool, expected: &[&str]| {
            let mut found = Vec::new();
            classes.of(text, special, &mut found);
            let names: Vec<String> = found.iter().map(|&label| classes.name(label.into())).collect();
            assert_eq!(names, expected, "{text:?}");
        };
        check("<bos>", true, &["special"]);
        check("<0xE2>", false, &["byte"]);
        check("<0xEG>", false, &["mixed", "script Latin"]);
        check(" gold", false, &["space before", "letters", "lower case", "script Latin"]);
        check("▁Gold", false, &["space before", "letters", "capitalized", "script Latin"]);
        check("NASA", false, &["letters", "upper case", "script Latin"]);
        check("I", false, &["letters", "upper case", "capitalized", "script Latin"]);
        check("iPhone", false, &["letters", "script Latin"]);
        check("1984", false, &["number"]);
        check("4th", false, &["mixed", "lower case", "script Latin"]);
        check("...", false, &["punctuation"]);
        check(" €", false, &["space before", "punctuation"]);
        check("\n\n", false, &["line break", "white space"]);
        check("  ", false, &["white space"]);
        check("", false, &[]);
        check("зо", false, &["letters", "lower case", "script Cyrillic"]);
        check("金", false, &["letters", "script Han"]);
        check("aб", false, &["letters", "lower case", "script Cyrillic", "script Latin"]);
        check("हि", false, &["letters", "script Devanagari"]);
    }
}
