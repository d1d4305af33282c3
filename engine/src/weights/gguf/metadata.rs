//! What do the key-value pairs of a GGUF header say?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Int(i64),
    /// Only where `Int` cannot hold it.
    Uint(u64),
    Float(f64),
    Text(String),
    Bools(Vec<bool>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// The key-value part of a GGUF header, with the file's path for messages.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// Metadata made by hand, for tests.
    pub fn new(path: &Path, values: impl IntoIterator<Item = (String, Value)>) -> Self {
        Self { path: path.to_owned(), values: values.into_iter().collect() }
    }

    /// The file that this stands in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Every key, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Int(number)) if *number >= 0 => Ok(Some(usize::try_from(*number).unwrap_or(usize::MAX))),
            Some(other) => Err(self.wrong(key, "a count", other)),
        }
    }

    pub fn required_usize(&self, key: &str) -> Result<usize> {
        self.usize(key)?.ok_or_else(|| self.bad(key, "a count", "nothing"))
    }

    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(*number)),
            Some(Value::Int(number)) => Ok(Some(*number as f64)),
            Some(other) => Err(self.wrong(key, "a number", other)),
        }
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(key, "a boolean", other)),
        }
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Texts(texts)) => Ok(Some(texts)),
            Some(other) => Err(self.wrong(key, "a list of strings", other)),
        }
    }

    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Floats(numbers)) => Ok(Some(numbers)),
            Some(other) => Err(self.wrong(key, "a list of numbers", other)),
        }
    }

    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Ints(numbers)) => Ok(Some(numbers)),
            Some(other) => Err(self.wrong(key, "a list of whole numbers", other)),
        }
    }

    /// How many tokens the tokenizer in the metadata has.
    pub fn vocab_size(&self) -> Result<Option<usize>> {
        Ok(self.texts("tokenizer.ggml.tokens")?.map(<[String]>::len))
    }

    /// The id of a token with a role: `bos`, `eos`, `unknown`, `padding`, `eot`.
    pub fn token_id(&self, role: &str) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        match self.usize(&key)? {
            None => Ok(None),
            Some(id) => match u32::try_from(id) {
                Ok(id) => Ok(Some(id)),
                Err(_) => Err(self.bad(&key, "a token id", &id.to_string())),
            },
        }
    }

    /// The ids at which generation stops: end of sequence, and end of turn where the file names one.
    pub fn eos_token_ids(&self) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = [self.token_id("eos")?, self.token_id("eot")?].into_iter().flatten().collect();
        ids.dedup();
        Ok(ids)
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        let found = match found {
            Value::Bool(flag) => flag.to_string(),
            Value::Int(number) => number.to_string(),
            Value::Uint(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Text(_) => "a string".to_owned(),
            Value::Bools(_) | Value::Ints(_) | Value::Floats(_) | Value::Texts(_) => "a list".to_owned(),
        };
        self.bad(key, expected, &found)
    }

    fn bad(&self, key: &str, expected: &str, found: &str) -> Error {
        Error::Config {
            field: key.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
            path: Some(self.path.clone()),
        }
    }
}
