//! Which documents does a corpus hold, one after the other?
//!
//! Text files, folders, globs, JSON lines, Parquet with a `text` column, standard input.
//! One document is in memory at a time.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, StringArray};
use fs_err as fs;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// File name endings that are taken from a folder.
pub const EXTENSIONS: [&str; 6] = ["txt", "text", "md", "jsonl", "ndjson", "parquet"];

/// What a document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Text(String),
    /// Token ids that are fed to the model as they are.
    Tokens(Vec<u32>),
}

/// One document of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The file, and behind a colon the line or row where a file holds several documents, both counted from 1.
    pub source: String,
    pub content: Content,
    /// What else the corpus says about it, as a JSON object.
    pub meta: Option<String>,
}

/// A list of files (or standard input) with documents in them.
#[derive(Clone, Debug)]
pub struct Corpus {
    inputs: Vec<Input>,
    lines: bool,
}

#[derive(Clone, Debug)]
enum Input {
    Stdin,
    File(PathBuf),
}

impl Corpus {
    /// Finds the files that `names` speak of: files, folders (every file below with one of [`EXTENSIONS`]), globs, or `-`.
    ///
    /// With `lines`, every line of a text file is a document of its own; without, the file is one document.
    /// The order is that of `names`, and by name within a folder or a glob.
    pub fn open<S: AsRef<str>>(names: &[S], lines: bool) -> Result<Self> {
        let mut inputs = Vec::new();
        for name in names.iter().map(AsRef::as_ref) {
            if name == "-" {
                inputs.push(Input::Stdin);
                continue;
            }
            let path = Path::new(name);
            let found = if path.is_dir() {
                files_below(path)?
            } else if path.exists() {
                vec![path.to_owned()]
            } else {
                files_matching(name)?
            };
            if found.is_empty() {
                return Err(Error::NoCorpus { name: name.to_owned() });
            }
            inputs.extend(found.into_iter().map(Input::File));
        }
        Ok(Self { inputs, lines })
    }

    /// The files, in order; `-` is standard input.
    pub fn sources(&self) -> Vec<String> {
        self.inputs
            .iter()
            .map(|input| match input {
                Input::Stdin => "-".to_owned(),
                Input::File(path) => path.display().to_string(),
            })
            .collect()
    }

    /// The size of all files, or `None` if standard input is among them.
    pub fn bytes(&self) -> Option<u64> {
        self.inputs
            .iter()
            .map(|input| match input {
                Input::Stdin => None,
                Input::File(path) => fs::metadata(path).ok().map(|metadata| metadata.len()),
            })
            .sum()
    }

    /// Whether every line of a text file is a document.
    pub fn lines(&self) -> bool {
        self.lines
    }

    /// Reads the documents, in order. An error ends the iteration.
    pub fn documents(&self) -> impl Iterator<Item = Result<Document>> + Send + use<> {
        let lines = self.lines;
        let mut failed = false;
        self.inputs.clone().into_iter().flat_map(move |input| documents_of(&input, lines)).take_while(move |document| {
            let before = failed;
            failed |= document.is_err();
            !before
        })
    }
}

type Documents = Box<dyn Iterator<Item = Result<Document>> + Send>;

fn documents_of(input: &Input, lines: bool) -> Documents {
    let opened = match input {
        Input::Stdin => {
            if lines {
                Ok(by_line("-", BufReader::new(std::io::stdin()), text_line))
            } else {
                whole("-", std::io::stdin())
            }
        }
        Input::File(path) => {
            let name = path.display().to_string();
            match extension(path).as_str() {
                "parquet" => rows_of(path),
                "jsonl" | "ndjson" => open(path).map(|file| by_line(&name, BufReader::new(file), json_line)),
                _ if lines => open(path).map(|file| by_line(&name, BufReader::new(file), text_line)),
                _ => open(path).and_then(|file| whole(&name, file)),
            }
        }
    };
    opened.unwrap_or_else(|error| Box::new(std::iter::once(Err(error))))
}

/// A file that is one document.
fn whole(name: &str, mut file: impl Read) -> Result<Documents> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|cause| Error::Io { cause })?;
    let text = utf8(bytes, name, 0)?;
    let document = Document { source: name.to_owned(), content: Content::Text(text), meta: None };
    Ok(Box::new(std::iter::once(Ok(document))))
}

type LineReader = fn(&str, usize, &str) -> Result<Option<Document>>;

/// A file with a document in each line.
fn by_line(name: &str, mut file: impl BufRead + Send + 'static, read: LineReader) -> Documents {
    let name = name.to_owned();
    let (mut number, mut offset) = (0, 0);
    Box::new(
        std::iter::from_fn(move || {
            let mut line = Vec::new();
            let length = match file.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(length) => length,
                Err(cause) => return Some(Err(Error::Io { cause })),
            };
            (number, offset) = (number + 1, offset + length);
            while line.last().is_some_and(|end| matches!(end, b'\n' | b'\r')) {
                line.pop();
            }
            Some(utf8(line, &name, offset - length).and_then(|line| read(&name, number, &line)))
        })
        .filter_map(Result::transpose),
    )
}

/// A line of text; blank lines are no documents.
#[expect(clippy::unnecessary_wraps, reason = "has the type of `json_line`")]
fn text_line(name: &str, number: usize, line: &str) -> Result<Option<Document>> {
    let document =
        || Document { source: format!("{name}:{number}"), content: Content::Text(line.to_owned()), meta: None };
    Ok((!line.trim().is_empty()).then(document))
}

/// `{"text": …}` or `{"tokens": […]}`; everything else in the object is passed on as `meta`.
fn json_line(name: &str, number: usize, line: &str) -> Result<Option<Document>> {
    if line.trim().is_empty() {
        return Ok(None);
    }
    let wrong = |what: String| Error::CorpusLine { what, path: name.into(), line: number };
    let mut fields: Map<String, Value> = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
    let content = match (fields.remove("text"), fields.remove("tokens")) {
        (Some(Value::String(text)), None) => Content::Text(text),
        (None, Some(tokens)) => Content::Tokens(
            serde_json::from_value(tokens)
                .map_err(|error| wrong(format!("`tokens` is not a list of token ids: {error}")))?,
        ),
        (Some(_), None) => return Err(wrong("`text` is not a string".to_owned())),
        (Some(_), Some(_)) => return Err(wrong("both `text` and `tokens`".to_owned())),
        (None, None) => return Err(wrong("neither `text` nor `tokens`".to_owned())),
    };
    let meta = (!fields.is_empty()).then(|| Value::Object(fields).to_string());
    Ok(Some(Document { source: format!("{name}:{number}"), content, meta }))
}

/// The rows of a Parquet file with a `text` column.
fn rows_of(path: &Path) -> Result<Documents> {
    let broken = |what: String| Error::CorpusFile { what, path: path.to_owned() };
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(open(path)?.into_parts().0).map_err(|e| broken(e.to_string()))?;
    if builder.schema().field_with_name("text").is_err() {
        let columns: Vec<&str> = builder.schema().fields().iter().map(|field| field.name().as_str()).collect();
        return Err(broken(format!("expected a column `text`, found `{}`", columns.join("`, `"))));
    }
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["text"]);
    let batches = builder.with_projection(mask).build().map_err(|e| broken(e.to_string()))?;
    let (name, path) = (path.display().to_string(), path.to_owned());
    let mut row = 0;
    Ok(Box::new(batches.flat_map(move |batch| {
        let broken = |what: String| vec![Err(Error::CorpusFile { what, path: path.clone() })];
        let texts = match batch {
            Ok(batch) => arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8),
            Err(error) => return broken(error.to_string()),
        };
        match texts {
            Ok(texts) => rows(texts.as_string(), &name, &mut row),
            Err(error) => broken(error.to_string()),
        }
    })))
}

/// A null is an empty document: it has a row and no tokens.
fn rows(texts: &StringArray, name: &str, row: &mut usize) -> Vec<Result<Document>> {
    (0..texts.len())
        .map(|i| {
            *row += 1;
            let text = if texts.is_null(i) { "" } else { texts.value(i) };
            Ok(Document { source: format!("{name}:{row}"), content: Content::Text(text.to_owned()), meta: None })
        })
        .collect()
}

fn open(path: &Path) -> Result<fs::File> {
    fs::File::open(path).map_err(|cause| Error::Io { cause })
}

fn utf8(bytes: Vec<u8>, name: &str, offset: usize) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|error| Error::NotUtf8 { path: name.into(), offset: offset + error.utf8_error().valid_up_to() })
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |cause| Error::Io { cause };
    let mut entries: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let mut files = Vec::new();
    for path in entries.into_iter().filter(|path| !hidden(path)) {
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else if EXTENSIONS.contains(&extension(&path).as_str()) {
            files.push(path);
        }
    }
    Ok(files)
}

fn files_matching(pattern: &str) -> Result<Vec<PathBuf>> {
    // A star does not stand for hidden files, as in a shell.
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let paths =
        glob::glob_with(pattern, options).map_err(|_not_a_pattern| Error::NoCorpus { name: pattern.to_owned() })?;
    Ok(paths.filter_map(std::result::Result::ok).filter(|path| path.is_file()).collect())
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::RecordBatch;
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn read(names: &[&str], folder: &Path, lines: bool) -> Result<Vec<Document>> {
        let names: Vec<String> = names.iter().map(|name| folder.join(name).display().to_string()).collect();
        Corpus::open(&names, lines)?.documents().collect()
    }

    fn texts(documents: &[Document]) -> Vec<&str> {
        documents
            .iter()
            .map(|document| match &document.content {
                Content::Text(text) => text.as_str(),
                Content::Tokens(_) => "tokens",
            })
            .collect()
    }

    #[test]
    fn files_folders_globs_and_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::create_dir(path.join("below")).unwrap();
        fs::write(path.join("b.txt"), "one\ntwo\r\n\nthree").unwrap();
        fs::write(path.join("below/a.md"), "four").unwrap();
        fs::write(path.join("skipped.bin"), [0xff]).unwrap();
        fs::write(path.join(".hidden.txt"), "no").unwrap();
        assert_eq!(texts(&read(&["."], path, false).unwrap()), ["one\ntwo\r\n\nthree", "four"]);
        let documents = read(&["*.txt"], path, true).unwrap();
        assert_eq!(texts(&documents), ["one", "two", "three"]);
        assert!(documents[2].source.ends_with("b.txt:4"), "{}", documents[2].source);
        assert!(matches!(read(&["nothing*"], path, false), Err(Error::NoCorpus { .. })));
    }

    #[test]
    fn json_lines_hold_text_or_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("a.jsonl"), "{\"text\": \"x\", \"url\": \"u\"}\n\n{\"tokens\": [2, 7]}\n").unwrap();
        let documents = read(&["a.jsonl"], path, false).unwrap();
        assert_eq!(documents[0].content, Content::Text("x".to_owned()));
        assert_eq!(documents[0].meta.as_deref(), Some("{\"url\":\"u\"}"));
        assert_eq!(documents[1].content, Content::Tokens(vec![2, 7]));
        for (line, expected) in [
            ("{\"tokens\": [-1]}", "`tokens`"),
            ("{\"text\": 3}", "`text`"),
            ("{\"title\": \"x\"}", "neither"),
            ("{\"text\": \"x\", \"tokens\": []}", "both"),
            ("{\"text\": ", "EOF"),
        ] {
            fs::write(path.join("bad.jsonl"), format!("{{\"text\": \"fine\"}}\n{line}\n{{\"text\": \"after\"}}"))
                .unwrap();
            let corpus = Corpus::open(&[path.join("bad.jsonl").display().to_string()], false).unwrap();
            let results: Vec<_> = corpus.documents().collect();
            assert_eq!(results.len(), 2, "an error ends the reading");
            let message = results[1].as_ref().unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("line 2"), "{message}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_an_error_with_their_place() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.txt"), b"good\nbad \xff\n").unwrap();
        for lines in [false, true] {
            let error = read(&["a.txt"], folder.path(), lines).unwrap_err();
            assert!(matches!(error, Error::NotUtf8 { offset: 9, .. }), "{error}");
        }
    }

    #[test]
    fn parquet_needs_a_text_column() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, column: &str| {
            let texts: arrow::array::ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None, Some("z")]));
            let batch = RecordBatch::try_from_iter([(column, texts)]).unwrap();
            let file = fs::File::create(folder.path().join(name)).unwrap();
            let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
        };
        write("good.parquet", "text");
        write("bad.parquet", "body");
        let documents = read(&["good.parquet"], folder.path(), false).unwrap();
        assert_eq!(texts(&documents), ["x", "", "z"]);
        assert!(documents[2].source.ends_with("good.parquet:3"));
        assert!(read(&["bad.parquet"], folder.path(), false).unwrap_err().to_string().contains("`body`"));
    }
}
