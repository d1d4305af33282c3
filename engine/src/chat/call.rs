//! What does a tool call of Gemma 4 say?
//!
//! `call:NAME{key:value,…}`: keys are bare, strings stand between quote tokens, objects and lists nest, and numbers,
//! `true`, `false` and `null` are bare.

use serde_json::{Map, Number, Value as Json};

use super::ToolCall;

/// The token that strings stand between.
const QUOTE: &str = "<|\"|>";

/// Deeper nesting than this is noise, not a call.
const MAX_DEPTH: usize = 64;

/// The call in the text between a call's two tokens; `None` where the text does not follow the grammar.
pub(super) fn parse(text: &str) -> Option<ToolCall> {
    let mut rest = Rest { text: text.trim().strip_prefix("call:")? };
    let name = rest.until(&['{']).trim().to_owned();
    let arguments = rest.object(0)?;
    (!name.is_empty() && rest.text.trim().is_empty()).then_some(ToolCall { name, arguments })
}

/// What has not been read yet.
struct Rest<'a> {
    text: &'a str,
}

impl<'a> Rest<'a> {
    fn eat(&mut self, sign: &str) -> bool {
        let text = self.text.trim_start();
        match text.strip_prefix(sign) {
            Some(rest) => {
                self.text = rest;
                true
            }
            None => false,
        }
    }

    /// Up to one of the signs, which stays.
    fn until(&mut self, signs: &[char]) -> &'a str {
        let (before, rest) = self.text.split_at(self.text.find(signs).unwrap_or(self.text.len()));
        self.text = rest;
        before
    }

    fn object(&mut self, depth: usize) -> Option<Map<String, Json>> {
        let mut object = Map::new();
        if depth > MAX_DEPTH || !self.eat("{") {
            return None;
        }
        if self.eat("}") {
            return Some(object);
        }
        loop {
            let key = if self.eat(QUOTE) { self.quoted()? } else { self.until(&[':']).trim().to_owned() };
            if !self.eat(":") {
                return None;
            }
            object.insert(key, self.value(depth)?);
            if self.eat("}") {
                return Some(object);
            }
            if !self.eat(",") {
                return None;
            }
        }
    }

    fn list(&mut self, depth: usize) -> Option<Vec<Json>> {
        let mut list = Vec::new();
        if depth > MAX_DEPTH || !self.eat("[") {
            return None;
        }
        if self.eat("]") {
            return Some(list);
        }
        loop {
            list.push(self.value(depth)?);
            if self.eat("]") {
                return Some(list);
            }
            if !self.eat(",") {
                return None;
            }
        }
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if self.eat(QUOTE) {
            return self.quoted().map(Json::String);
        }
        match self.text.trim_start().chars().next()? {
            '{' => self.object(depth + 1).map(Json::Object),
            '[' => self.list(depth + 1).map(Json::Array),
            '"' => self.json_string(),
            _ => Some(bare(self.until(&[',', '}', ']']).trim())),
        }
    }

    /// Up to the closing quote token.
    fn quoted(&mut self) -> Option<String> {
        let (string, rest) = self.text.split_once(QUOTE)?;
        self.text = rest;
        Some(string.to_owned())
    }

    /// A string as JSON has it: not the grammar, but what a model may fall back to.
    fn json_string(&mut self) -> Option<Json> {
        let text = self.text.trim_start();
        let mut strings = serde_json::Deserializer::from_str(text).into_iter::<String>();
        let string = strings.next()?.ok()?;
        self.text = &text[strings.byte_offset()..];
        Some(Json::String(string))
    }
}

/// A value without quotes; what is neither a number nor a word of the grammar is text.
fn bare(text: &str) -> Json {
    match text {
        "true" | "True" => Json::Bool(true),
        "false" | "False" => Json::Bool(false),
        "null" | "None" => Json::Null,
        _ => text.parse::<Number>().map_or_else(|_| Json::String(text.to_owned()), Json::Number),
    }
}
