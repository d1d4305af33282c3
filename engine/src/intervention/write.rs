//! How is an intervention written, so that it reads back as it was?

use std::fmt::{self, Display, Formatter};

use super::select::{Part, Pick, Selection};
use super::{Action, FeatureEdit, Intervention, Origin, Source, Spot, Term, Value};

impl Display for Intervention {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action.verb(), joined(&self.at))?;
        if !self.tokens.0.is_empty() {
            write!(f, " @{}", self.tokens)?;
        }
        match &self.action {
            Action::Zero => Ok(()),
            Action::Scale(by) => write!(f, " {by}"),
            Action::Add(value) | Action::Replace(value) => write!(f, " {value}"),
            Action::Mean(origin) | Action::Patch(origin) => write!(f, " from {origin}"),
            Action::ForbidExperts(experts) | Action::ForceExperts(experts) => write!(f, " experts {}", joined(experts)),
            Action::Reconstruct { coder } => write!(f, " sae:{}", path(coder)),
            Action::Features { coder, features, edit } => {
                write!(f, " sae:{}#{}", path(coder), joined(features))?;
                match edit {
                    FeatureEdit::Ablate => Ok(()),
                    FeatureEdit::Clamp(at) => write!(f, " {at}"),
                }
            }
        }
    }
}

impl Action {
    /// The word that a person writes for it.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Scale(_) => "scale",
            Self::Add(_) => "add",
            Self::Replace(_) => "replace",
            Self::Mean(_) => "mean",
            Self::Patch(_) => "patch",
            Self::ForbidExperts(_) => "forbid",
            Self::ForceExperts(_) => "force",
            Self::Features { edit: FeatureEdit::Ablate, .. } => "ablate",
            Self::Features { edit: FeatureEdit::Clamp(_), .. } => "clamp",
            Self::Reconstruct { .. } => "reconstruct",
        }
    }
}

impl Display for Spot {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.points, self.part)
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for axis in &self.0 {
            let ranges: Vec<String> =
                axis.iter().map(|&(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
            write!(f, "[{}]", if ranges.is_empty() { "*".to_owned() } else { ranges.join(",") })?;
        }
        Ok(())
    }
}

impl Display for Selection {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&joined(&self.0))
    }
}

impl Display for Pick {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { from, to: None } => write!(f, "{from}-"),
            Self::Range { from, to: Some(to) } if from == to => write!(f, "{from}"),
            Self::Range { from, to: Some(to) } => write!(f, "{from}-{to}"),
            Self::Last => f.write_str("last"),
            Self::Prompt => f.write_str("prompt"),
            Self::Generated => f.write_str("generated"),
            Self::Id(id) => write!(f, "id:{id}"),
            Self::Text(text) => f.write_str(&quoted(text)),
        }
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, Term { source, scale }) in self.0.iter().enumerate() {
            let (sign, scale) = match (i, scale.is_sign_negative()) {
                (0, _) => ("", *scale),
                (_, false) => (" + ", *scale),
                (_, true) => (" - ", -scale),
            };
            write!(f, "{sign}{source}")?;
            if scale != 1.0 {
                write!(f, " * {scale}")?;
            }
        }
        Ok(())
    }
}

impl Display for Source {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::List(list) => write!(f, "[{}]", list.iter().map(f32::to_string).collect::<Vec<_>>().join(", ")),
            Self::Decoder { coder, feature } => write!(f, "sae:{}#{feature}", path(coder)),
            Self::File { path: file, name } => write!(f, "file:{}#{}", path(file), path(name)),
            Self::At(origin, position) => write!(f, "{origin}@{position}"),
            Self::Mean(origin) => write!(f, "{origin}"),
        }
    }
}

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Ids(ids) => write!(f, "ids:{}", joined(ids)),
            Self::Cache(file) => write!(f, "cache:{}", path(file)),
            Self::Run(dir) => write!(f, "run:{}", path(dir)),
        }
    }
}

fn joined(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A path as the parser reads it: in quotes only where it must be.
fn path(path: &str) -> String {
    let plain = !path.is_empty() && !path.contains(|c: char| c.is_whitespace() || ";#@\"".contains(c));
    if plain { path.to_owned() } else { quoted(path) }
}
