//! What did people say about the features, experts, tokens and rows of a run?
//!
//! `annotations.jsonl` has one JSON object a line: about which `item`, by which `author`, and any of `label`, `rating` (1 to
//! 5), `note` and `lists`. Lines are added and never changed: of an author and an item, the last line that has a field
//! counts; an empty text or list takes it back. So the files of two people are merged by putting one behind the other.
//!
//! ```
//! use data::annotations::{Annotation, Annotations};
//! # let dir = tempfile::tempdir().unwrap();
//! # let shape = data::ModelShape::default();
//! # let manifest = data::Manifest::new(data::manifest::Model::new("tiny", shape), Default::default(), vec![]);
//! # data::RunWriter::create(dir.path(), manifest)?.finish("")?;
//! # let run = data::Run::open(dir.path())?;
//! let said = Annotation { label: Some("rain".into()), rating: Some(4), ..Annotation::new("f:7:main", "ada") };
//! Annotations::add(&run, &said)?;
//! assert_eq!(Annotations::read(&run)?.of("f:7:main")[0].label.as_deref(), Some("rain"));
//! # Ok::<(), data::Error>(())
//! ```

use std::collections::BTreeMap;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::store::Run;

/// The file in a run.
pub const FILE: &str = "annotations.jsonl";

/// What one person said of one item.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotation {
    /// The address of what it is about, as links spell it: `f:7:main`, `e:3:12`, `t:0:42`, `r:5765`.
    pub item: String,
    pub author: String,
    /// What the item is, in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How well the label tells where the item is active, 1 to 5; 0 takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The names of the lists that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lists: Option<Vec<String>>,
}

/// Everything that was said, as it counts now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// By item, then author.
    items: BTreeMap<String, BTreeMap<String, Annotation>>,
    /// Lines that could not be understood.
    pub n_unreadable: usize,
}

impl Annotation {
    /// Nothing yet.
    pub fn new(item: impl Into<String>, author: impl Into<String>) -> Self {
        Self { item: item.into(), author: author.into(), ..Self::default() }
    }

    /// Takes over what a later line says.
    fn take(&mut self, later: Self) {
        self.label = later.label.or(self.label.take()).filter(|label| !label.is_empty());
        self.rating = later.rating.or(self.rating).filter(|rating| (1..=5).contains(rating));
        self.note = later.note.or(self.note.take()).filter(|note| !note.is_empty());
        self.lists = later.lists.or(self.lists.take()).filter(|lists| !lists.is_empty());
    }

    fn says_nothing(&self) -> bool {
        self.label.is_none() && self.rating.is_none() && self.note.is_none() && self.lists.is_none()
    }
}

impl Annotations {
    /// Reads what was said about a run; nothing where there is no file.
    ///
    /// A line that is no annotation, as a killed process leaves it, does not keep the others from being read.
    pub fn read(run: &Run) -> Result<Self> {
        Ok(Self::of_lines(&text(run)?))
    }

    /// As [`Annotations::read`], from lines.
    pub fn of_lines(text: &str) -> Self {
        let mut all = Self::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match serde_json::from_str::<Annotation>(line) {
                Ok(said) => {
                    let authors = all.items.entry(said.item.clone()).or_default();
                    let new = || Annotation::new(said.item.clone(), said.author.clone());
                    authors.entry(said.author.clone()).or_insert_with(new).take(said);
                }
                Err(_no_annotation) => all.n_unreadable += 1,
            }
        }
        all.items.retain(|_, authors| {
            authors.retain(|_, said| !said.says_nothing());
            !authors.is_empty()
        });
        all
    }

    /// Adds a line to the file of a run. What is there stays.
    pub fn add(run: &Run, said: &Annotation) -> Result<()> {
        let mut text = text(run)?;
        if !text.is_empty() && !text.ends_with('\n') {
            // A line that was cut off must not swallow this one.
            text.push('\n');
        }
        text.push_str(&serde_json::to_string(said).map_err(|cause| Error::json(run.dir(), cause))?);
        text.push('\n');
        run.place().write(FILE, text.as_bytes())
    }

    /// What was said of an item, by author.
    pub fn of(&self, item: &str) -> Vec<&Annotation> {
        self.items.get(item).into_iter().flat_map(BTreeMap::values).collect()
    }

    /// The label of an item: of those with the best rating, that of the first author.
    pub fn label(&self, item: &str) -> Option<&str> {
        let labelled = self.of(item).into_iter().rev().filter(|said| said.label.is_some());
        labelled.max_by_key(|said| said.rating.unwrap_or(0))?.label.as_deref()
    }

    /// Everything, by item and author.
    pub fn iter(&self) -> impl Iterator<Item = &Annotation> {
        self.items.values().flat_map(BTreeMap::values)
    }
}

fn text(run: &Run) -> Result<String> {
    if !run.place().has(FILE)? {
        return Ok(String::new());
    }
    Ok(fs::read_to_string(run.place().file(FILE)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(item: &str, author: &str, label: &str, rating: Option<u8>) -> Annotation {
        Annotation { label: Some(label.to_owned()), rating, ..Annotation::new(item, author) }
    }

    fn lines(all: &[Annotation]) -> String {
        let lines: Vec<String> = all.iter().map(|said| serde_json::to_string(said).unwrap() + "\n").collect();
        lines.concat()
    }

    #[test]
    fn the_last_word_of_an_author_counts_field_by_field() {
        let text = lines(&[
            said("f:7:main", "ada", "rain", Some(2)),
            said("f:7:main", "bob", "water", Some(4)),
            Annotation { rating: Some(5), ..Annotation::new("f:7:main", "ada") },
            Annotation { note: Some("also hail".into()), ..Annotation::new("f:7:main", "ada") },
        ]);
        let all = Annotations::of_lines(&text);
        let of = all.of("f:7:main");
        assert_eq!(of.len(), 2);
        assert_eq!(
            (of[0].label.as_deref(), of[0].rating, of[0].note.as_deref()),
            (Some("rain"), Some(5), Some("also hail"))
        );
        assert_eq!(all.label("f:7:main"), Some("rain"));
        assert_eq!(all.label("f:8:main"), None);
        assert_eq!(all.iter().count(), 2);
    }

    #[test]
    fn two_files_are_merged_in_either_order() {
        let ada = lines(&[said("a", "ada", "x", None), said("b", "ada", "y", Some(3))]);
        let bob = lines(&[said("a", "bob", "z", Some(1))]);
        let one = Annotations::of_lines(&format!("{ada}{bob}"));
        assert_eq!(one, Annotations::of_lines(&format!("{bob}{ada}")));
        assert_eq!(one.label("a"), Some("z"));
    }

    #[test]
    fn what_is_taken_back_and_what_is_broken_leaves_no_trace() {
        let taken_back = lines(&[said("a", "ada", "x", Some(9)), said("a", "ada", "", Some(0))]);
        let all = Annotations::of_lines(&format!("{taken_back}{{\"item\":\n\n17\n{{}}"));
        assert_eq!((all.iter().count(), all.n_unreadable), (0, 3));
    }

    #[test]
    fn a_run_keeps_what_was_said() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = crate::Manifest::new(
            crate::manifest::Model::new("tiny", crate::ModelShape::default()),
            crate::manifest::Corpus::default(),
            vec![],
        );
        crate::RunWriter::create(dir.path(), manifest).unwrap().finish("").unwrap();
        let run = Run::open(dir.path()).unwrap();
        assert_eq!(Annotations::read(&run).unwrap(), Annotations::default());
        // A process that was killed left half a line.
        fs::write(dir.path().join(FILE), "{\"item\":\"a\",\"aut").unwrap();
        Annotations::add(&run, &said("a", "ada", "x", None)).unwrap();
        Annotations::add(&run, &said("b", "ada", "y", None)).unwrap();
        let all = Annotations::read(&run).unwrap();
        assert_eq!((all.label("a"), all.label("b"), all.n_unreadable), (Some("x"), Some("y"), 1));
        assert!(crate::verify::verify(&run, &mut |_| std::ops::ControlFlow::Continue(())).is_ok());
    }
}
