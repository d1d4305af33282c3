//! How does a chat template run as it would in the reference?
//!
//! The reference is `apply_chat_template` of transformers: Jinja2 in a sandbox, with `trim_blocks` and `lstrip_blocks`, a
//! `tojson` that escapes nothing, `raise_exception`, `strftime_now`, `break`/`continue`, and a tag `generation`. A
//! template comes with a checkpoint, so it is untrusted: it reaches nothing but what it is given, and its steps are
//! counted.

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind, merge_maps};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

/// Steps that a template may take: a hundred times what a long chat needs.
const FUEL: u64 = 20_000_000;

/// The name under which the template stands in messages about it; no ending, so nothing is escaped.
const NAME: &str = "chat_template";

/// A template that has been parsed.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
}

impl Template {
    pub(super) fn parse(source: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", to_json);
        environment.add_filter("int", to_int);
        environment.add_filter("float", to_float);
        environment.add_test("sequence", is_sequence);
        environment.add_test("iterable", is_iterable);
        environment.set_formatter(|out, state, value| match as_float(value) {
            Some(number) => Ok(out.write_str(&float(number))?),
            None => escape_formatter(out, state, value),
        });
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, plain_generation_tags(source))?;
        Ok(Self { environment })
    }

    /// `now` is what `strftime_now` formats; without it, a template that asks for the date is an error.
    pub(super) fn render(&self, context: &Json, now: Option<DateTime>) -> Result<String, Error> {
        let strftime_now = move |format: &str| match now {
            Some(now) => jiff::fmt::strtime::format(format, now).map_err(|error| invalid(error.to_string())),
            None => Err(invalid("the template asks for the date, which was not given".to_owned())),
        };
        let clock = Value::from_pairs([("strftime_now", Value::from_function(strftime_now))]);
        self.environment.get_template(NAME)?.render(merge_maps([clock, to_value(context)]))
    }
}

fn to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(to_value).collect(),
        Json::Object(items) => Value::from_pairs(items.iter().map(|(key, item)| (key.as_str(), to_value(item)))),
    }
}

/// The words of an error and of what caused it, with the line of the template.
pub(super) fn describe(error: &Error) -> String {
    if error.kind() == ErrorKind::InvalidOperation
        && let Some(message) = error.detail().and_then(|detail| detail.strip_prefix(RAISED))
    {
        return message.to_owned();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What marks an error as one that the template raised itself.
const RAISED: &str = "raised: ";

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(invalid(format!("{RAISED}{message}")))
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// In Python, what has a length and can be indexed: strings and mappings too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
}

fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

fn as_float(value: &Value) -> Option<f64> {
    let float = value.kind() == ValueKind::Number && !value.is_integer();
    if float { f64::try_from(value.clone()).ok() } else { None }
}

/// What is no number becomes `default`, as in Jinja2.
fn to_int(value: &Value, default: Option<i64>) -> i64 {
    let default = default.unwrap_or(0);
    match value.as_str() {
        Some(text) => {
            let float = || text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            text.trim().parse().ok().or_else(|| float().map(|number| number as i64)).unwrap_or(default)
        }
        None if value.kind() == ValueKind::Bool => i64::from(value.is_true()),
        None => as_float(value).map(|number| number as i64).or_else(|| value.as_i64()).unwrap_or(default),
    }
}

/// What is no number becomes `default`, as in Jinja2.
fn to_float(value: &Value, default: Option<f64>) -> f64 {
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    number.or(default).unwrap_or(0.0)
}

/// The tag `generation` marks what the assistant said, for training; what it holds is rendered as it is.
fn plain_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        let name = word.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        let plain = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => {
                rest = tag;
                continue;
            }
        };
        out.push_str(&tag[..tag.len() - word.len()]);
        out.push_str(plain);
        rest = &word[name.len()..];
    }
    out.push_str(rest);
    out
}

/// Python's `json.dumps(value, ensure_ascii=False)` with its other options.
#[expect(clippy::needless_pass_by_value, reason = "as filters are given their options")]
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let json = serde_json::to_value(value).map_err(|error| invalid(format!("cannot be JSON: {error}")))?;
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent {
        Some(value) if value.as_str().is_some() => value.as_str().map(str::to_owned),
        Some(value) => value.as_usize().map(|width| " ".repeat(width)),
        None => None,
    };
    let (item, key) = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        _ if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        _ => (", ".to_owned(), ": ".to_owned()),
    };
    let layout = Layout {
        indent,
        item,
        key,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    layout.write(&json, 0, &mut out);
    Ok(Value::from_safe_string(out))
}

/// How Python lays JSON out.
struct Layout {
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    ascii: bool,
}

impl Layout {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::Array(items) if items.is_empty() => out.push_str("[]"),
            Json::Object(items) if items.is_empty() => out.push_str("{}"),
            Json::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.begin(index, depth + 1, out);
                    self.write(item, depth + 1, out);
                }
                self.end(depth, out);
                out.push(']');
            }
            Json::Object(items) => {
                let mut items: Vec<(&String, &Json)> = items.iter().collect();
                if self.sort_keys {
                    items.sort_by_key(|(key, _)| *key);
                }
                out.push('{');
                for (index, (key, item)) in items.into_iter().enumerate() {
                    self.begin(index, depth + 1, out);
                    self.string(key, out);
                    out.push_str(&self.key);
                    self.write(item, depth + 1, out);
                }
                self.end(depth, out);
                out.push('}');
            }
            Json::String(text) => self.string(text, out),
            Json::Number(number) if number.is_f64() => out.push_str(&float(number.as_f64().unwrap_or_default())),
            plain => out.push_str(&plain.to_string()),
        }
    }

    fn begin(&self, index: usize, depth: usize, out: &mut String) {
        if index > 0 {
            out.push_str(&self.item);
        }
        self.end(depth, out);
    }

    fn end(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let escaped = format!("\\u{unit:04x}");
                        out.push_str(&escaped);
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// As Python writes a float: the shortest digits that give it back, with an exponent from 1e16 on and below 1e-4.
fn float(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = number.to_string();
    if text.contains('.') { text } else { text + ".0" }
}
