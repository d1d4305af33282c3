//! Where was the person in each run, when the window was last open?
//!
//! A small JSON file: theme, size, and for the runs that were opened last the link to what was looked at, with the
//! arrangement of panes. It is written while the window is open, so that a crash loses half a minute at most.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::theme::ThemeChoice;

/// Runs that are remembered.
const RUNS: usize = 12;

/// What is remembered from one window to the next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Session {
    pub(crate) theme: ThemeChoice,
    pub(crate) zoom: f32,
    /// The last one first.
    pub(crate) runs: Vec<Visit>,
}

/// A run, and what was looked at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Visit {
    pub(crate) path: PathBuf,
    pub(crate) link: String,
}

impl Default for Session {
    fn default() -> Self {
        Self { theme: ThemeChoice::default(), zoom: 1.0, runs: Vec::new() }
    }
}

impl Session {
    /// What cannot be understood is as if it had not been written.
    pub(crate) fn parse(text: &str) -> Self {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let visit = |run: &Value| {
            let text = |key: &str| run.get(key).and_then(Value::as_str);
            Some(Visit { path: text("path").filter(|path| !path.is_empty())?.into(), link: text("link")?.to_owned() })
        };
        let runs = value.get("runs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let zoom = value.get("zoom").and_then(Value::as_f64).map_or(1.0, |zoom| zoom as f32);
        Self {
            theme: value.get("theme").and_then(Value::as_str).and_then(|name| name.parse().ok()).unwrap_or_default(),
            zoom: if zoom.is_finite() { zoom } else { 1.0 },
            runs: runs.iter().filter_map(visit).take(RUNS).collect(),
        }
    }

    pub(crate) fn to_text(&self) -> String {
        let runs: Vec<Value> =
            self.runs.iter().map(|visit| json!({ "path": visit.path.to_string_lossy(), "link": visit.link })).collect();
        let value = json!({ "version": 1, "theme": self.theme.to_string(), "zoom": self.zoom, "runs": runs });
        format!("{value:#}\n")
    }

    /// Remembers what is looked at in a run.
    pub(crate) fn visit(&mut self, path: &Path, link: String) {
        self.runs.retain(|visit| visit.path != path);
        self.runs.insert(0, Visit { path: path.to_owned(), link });
        self.runs.truncate(RUNS);
    }

    /// What was last looked at in a run.
    pub(crate) fn link(&self, path: &Path) -> Option<&str> {
        self.runs.iter().find(|visit| visit.path == path).map(|visit| visit.link.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_comes_back() {
        let mut session = Session { theme: ThemeChoice::Paper, zoom: 1.25, ..Session::default() };
        for i in 0..20 {
            session.visit(Path::new(&format!("runs/{i}")), format!("polariscope://{i}?view=query"));
        }
        session.visit(Path::new("runs/15"), "polariscope://15?view=reader".to_owned());
        assert_eq!(session.runs.len(), RUNS);
        assert_eq!(session.link(Path::new("runs/15")), Some("polariscope://15?view=reader"));
        assert_eq!(session.link(Path::new("runs/0")), None);
        assert_eq!(Session::parse(&session.to_text()), session);
    }

    #[test]
    fn what_is_broken_is_as_if_it_were_not_there() {
        for text in [
            "",
            "17",
            "{",
            "{\"runs\":7,\"zoom\":\"x\",\"theme\":\"sepia\"}",
            "{\"runs\":[{},{\"path\":\"\",\"link\":\"\"}]}",
        ] {
            assert_eq!(Session::parse(text), Session::default(), "{text}");
        }
        let whole =
            Session { runs: vec![Visit { path: "a".into(), link: "b".into() }], ..Session::default() }.to_text();
        for end in (0..whole.len()).filter(|end| whole.is_char_boundary(*end)) {
            let _ = Session::parse(&whole[..end]);
        }
    }
}
