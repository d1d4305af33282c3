//! How are interventions read from JSON, and written as JSON?

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value as Json;

use super::parse::{Parser, VERBS, parse};
use super::select::Selection;
use super::{Action, FeatureEdit, Intervention, Source, Term, Value};
use crate::error::{Error, Result};

/// Reads a list of interventions, or a single one.
pub fn from_json(text: &str) -> Result<Vec<Intervention>> {
    let wrong = |error: serde_json::Error| Error::InterventionJson { what: error.to_string() };
    let json: Json = serde_json::from_str(text).map_err(wrong)?;
    let items = match json {
        Json::Array(items) => items,
        one => vec![one],
    };
    let mut all = Vec::new();
    for item in items {
        match item {
            Json::String(text) => all.extend(parse(&text)?),
            object => all.push(Fields::read(object).map_err(wrong)?.try_into()?),
        }
    }
    Ok(all)
}

/// The words of one intervention.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    r#do: String,
    at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<f32>,
    /// In the text form, or a number, or a list of numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    experts: Option<Vec<usize>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    coder: Option<String>,
}

impl Fields {
    fn read(json: Json) -> Result<Self, serde_json::Error> {
        serde_json::from_value(json)
    }
}

impl From<&Intervention> for Fields {
    fn from(intervention: &Intervention) -> Self {
        let at: Vec<String> = intervention.at.iter().map(ToString::to_string).collect();
        let mut fields = Self {
            r#do: intervention.action.verb().to_owned(),
            at: at.join(","),
            tokens: (intervention.tokens != Selection::ALL).then(|| intervention.tokens.to_string()),
            ..Self::default()
        };
        match &intervention.action {
            Action::Zero => {}
            Action::Scale(by) => fields.by = Some(*by),
            Action::Add(value) | Action::Replace(value) => fields.value = Some(numbers_or_text(value)),
            Action::Mean(origin) | Action::Patch(origin) => fields.from = Some(origin.to_string()),
            Action::ForbidExperts(experts) | Action::ForceExperts(experts) => fields.experts = Some(experts.clone()),
            // The text form knows how a coder is written.
            Action::Features { .. } | Action::Reconstruct { .. } => {
                let bare = Intervention { tokens: Selection::ALL, ..intervention.clone() }.to_string();
                let coder = bare.find("sae:").map_or("", |start| &bare[start..]);
                match &intervention.action {
                    Action::Features { edit: FeatureEdit::Clamp(by), .. } => {
                        fields.by = Some(*by);
                        fields.coder = coder.rsplit_once(' ').map(|(coder, _)| coder.to_owned());
                    }
                    _ => fields.coder = Some(coder.to_owned()),
                }
            }
        }
        fields
    }
}

impl TryFrom<Fields> for Intervention {
    type Error = Error;

    fn try_from(mut fields: Fields) -> Result<Self> {
        let at = Parser::whole(&fields.at, Parser::spots)?;
        let tokens = match &fields.tokens {
            Some(tokens) => Parser::whole(tokens, Parser::selection)?,
            None => Selection::ALL,
        };
        let verb = std::mem::take(&mut fields.r#do);
        if fields.by.is_some_and(|by| !by.is_finite()) {
            return Err(Error::InterventionJson { what: "expected a number that f32 can hold in `by`".to_owned() });
        }
        let action = match verb.as_str() {
            "zero" => Action::Zero,
            "scale" => Action::Scale(needed(fields.by.take(), "by", &verb)?),
            "add" => Action::Add(value(&needed(fields.value.take(), "value", &verb)?)?),
            "replace" => Action::Replace(value(&needed(fields.value.take(), "value", &verb)?)?),
            "mean" => Action::Mean(Parser::whole(&needed(fields.from.take(), "from", &verb)?, Parser::origin)?),
            "patch" => Action::Patch(Parser::whole(&needed(fields.from.take(), "from", &verb)?, Parser::origin)?),
            "forbid" => Action::ForbidExperts(needed(fields.experts.take(), "experts", &verb)?),
            "force" => Action::ForceExperts(needed(fields.experts.take(), "experts", &verb)?),
            "reconstruct" => {
                let coder = Parser::whole(&needed(fields.coder.take(), "coder", &verb)?, Parser::coder)?;
                Action::Reconstruct { coder }
            }
            "ablate" | "clamp" => {
                let (coder, features) = Parser::whole(&needed(fields.coder.take(), "coder", &verb)?, Parser::features)?;
                let edit = match verb.as_str() {
                    "ablate" => FeatureEdit::Ablate,
                    _ => FeatureEdit::Clamp(needed(fields.by.take(), "by", &verb)?),
                };
                Action::Features { coder, features, edit }
            }
            _ => return Err(Error::InterventionJson { what: format!("expected {VERBS} in `do`, found `{verb}`") }),
        };
        let left = [
            ("by", fields.by.is_some()),
            ("value", fields.value.is_some()),
            ("from", fields.from.is_some()),
            ("experts", fields.experts.is_some()),
            ("coder", fields.coder.is_some()),
        ];
        match left.iter().find(|(_, there)| *there) {
            None => Ok(Self { at, tokens, action }),
            Some((name, _)) => Err(Error::InterventionJson { what: format!("`{verb}` has no use for `{name}`") }),
        }
    }
}

fn needed<T>(field: Option<T>, name: &str, verb: &str) -> Result<T> {
    field.ok_or_else(|| Error::InterventionJson { what: format!("expected `{name}` beside `{verb}`, found none") })
}

/// The text form, a number, or a list of numbers.
fn value(json: &Json) -> Result<Value> {
    let wrong = |found: &Json| Error::InterventionJson {
        what: format!("expected a text, a number or a list of numbers in `value`, found `{found}`"),
    };
    let number = |json: &Json| json.as_f64().map(|number| number as f32).filter(|x| x.is_finite());
    let source = match json {
        Json::String(text) => return Parser::whole(text, Parser::value),
        Json::Array(list) => Source::List(list.iter().map(number).collect::<Option<_>>().ok_or_else(|| wrong(json))?),
        other => Source::Number(number(other).ok_or_else(|| wrong(json))?),
    };
    Ok(Value(vec![Term { source, scale: 1.0 }]))
}

fn numbers_or_text(value: &Value) -> Json {
    match value.0.as_slice() {
        [Term { source: Source::Number(number), scale: 1.0 }] => Json::from(*number),
        [Term { source: Source::List(list), scale: 1.0 }] => Json::from(list.clone()),
        _ => Json::from(value.to_string()),
    }
}

impl Serialize for Intervention {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Fields::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Intervention {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        let one = match json {
            Json::String(text) => parse(&text).map(|mut all| all.pop().filter(|_| all.is_empty())),
            object => Fields::read(object).map_err(de::Error::custom)?.try_into().map(Some),
        };
        one.map_err(de::Error::custom)?.ok_or_else(|| de::Error::custom("expected one intervention, found several"))
    }
}
