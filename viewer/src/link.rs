//! How does a view become an address, and back?
//!
//! `polariscope://RUN@FINGERPRINT?v=1&view=feature&table=main&feature=4821`: readable, order-free,
//! percent-encoded; keys that are not known are ignored and named.

use std::fmt::Write as _;

use crate::error::{Error, Result};
use crate::state::{Focus, View};

/// What every link begins with.
pub(crate) const SCHEME: &str = "polariscope://";

/// A link, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// The run's name, for people.
    pub(crate) run: String,
    /// What tells the run from another one, for us.
    pub(crate) fingerprint: Option<String>,
    pub(crate) focus: Focus,
    /// Keys that this version does not know.
    pub(crate) ignored: Vec<String>,
}

/// The address of a focus. What has its default value is left out.
pub(crate) fn format(run: &str, fingerprint: &str, focus: &Focus) -> String {
    let mut link = format!("{SCHEME}{}@{fingerprint}?v=1&view={}", encode(run), focus.view);
    let mut push = |key: &str, value: &str| {
        let _ = write!(link, "&{key}={}", encode(value));
    };
    let start = Focus::default();
    if let Some(table) = &focus.table {
        push("table", table);
    }
    if let Some(feature) = focus.feature {
        push("feature", &feature.to_string());
    }
    if let Some(doc) = focus.doc {
        push("doc", &doc.to_string());
    }
    if let Some(token) = focus.token {
        push("token", &token.to_string());
    }
    if focus.color != start.color {
        push("color", &focus.color.to_string());
    }
    if let Some(hook) = &focus.hook {
        push("hook", hook);
    }
    if focus.sort != start.sort {
        push("sort", &focus.sort.to_string());
    }
    if focus.ascending {
        push("ascending", "true");
    }
    if !focus.filter.is_empty() {
        push("filter", &focus.filter);
    }
    if let Some(coder) = &focus.coder {
        push("coder", coder);
    }
    link
}

/// Takes a link apart.
///
/// # Errors
/// [`Error::Link`] for another scheme, [`Error::LinkValue`] for a value that cannot be understood.
pub(crate) fn parse(link: &str) -> Result<Link> {
    let rest = link.trim().strip_prefix(SCHEME).ok_or_else(|| Error::Link { link: link.to_owned() })?;
    let (address, query) = rest.split_once(['?', '#']).unwrap_or((rest, ""));
    let (run, fingerprint) = match address.rsplit_once('@') {
        Some((run, fingerprint)) => (run, Some(fingerprint.to_owned())),
        None => (address, None),
    };
    let mut parsed = Link {
        run: decode(run.trim_end_matches('/')),
        fingerprint: fingerprint.filter(|f| !f.is_empty()),
        focus: Focus::default(),
        ignored: Vec::new(),
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value);
        let focus = &mut parsed.focus;
        match key {
            "v" if value == "1" => {}
            "v" => return Err(wrong(key, &value, "`1`")),
            "view" => focus.view = word(key, &value, View::WORDS)?,
            "table" => focus.table = Some(value),
            "feature" => focus.feature = Some(word(key, &value, "a feature number")?),
            "doc" => focus.doc = Some(word(key, &value, "a document number")?),
            "token" => focus.token = Some(word(key, &value, "a token number")?),
            "color" => focus.color = word(key, &value, crate::state::ColorBy::WORDS)?,
            "hook" => focus.hook = Some(value),
            "sort" => focus.sort = word(key, &value, crate::state::SortBy::WORDS)?,
            "ascending" => focus.ascending = word(key, &value, "`true` or `false`")?,
            "filter" => focus.filter = value,
            "coder" => focus.coder = Some(value),
            _ => parsed.ignored.push(key.to_owned()),
        }
    }
    Ok(parsed)
}

fn word<T: std::str::FromStr>(key: &str, value: &str, expected: &'static str) -> Result<T> {
    value.parse().ok().ok_or_else(|| wrong(key, value, expected))
}

fn wrong(key: &str, value: &str, expected: &'static str) -> Error {
    Error::LinkValue { key: key.to_owned(), value: value.to_owned(), expected }
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~*/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// What is not valid percent-encoding stays as it is; what is not UTF-8 becomes `U+FFFD`.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let byte = bytes[i]
            .eq(&b'%')
            .then(|| text.get(i + 1..i + 3))
            .flatten()
            .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let Some(byte) = byte {
            out.push(byte);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{ColorBy, SortBy};

    fn full() -> Focus {
        Focus {
            view: View::Reader,
            table: Some("blocks.12 · main/2".into()),
            feature: Some(4821),
            doc: Some(881),
            token: Some(u64::MAX),
            color: ColorBy::Nll,
            hook: Some("blocks.3.hook_mlp_out".into()),
            sort: SortBy::Density,
            ascending: true,
            filter: "density<1e-3 %20&=? Паріс 巴黎".into(),
            coder: Some("main".into()),
        }
    }

    #[test]
    fn every_part_survives_the_round_trip() {
        for focus in [full(), Focus::default()] {
            let link = format("my run@2", "9f00aa12", &focus);
            assert!(!link.contains(' '), "{link}");
            let back = parse(&link).unwrap();
            assert_eq!(back.focus, focus);
            assert_eq!(back.run, "my run@2");
            assert_eq!(back.fingerprint.as_deref(), Some("9f00aa12"));
            assert!(back.ignored.is_empty());
        }
    }

    #[test]
    fn a_short_link_is_readable() {
        let focus = Focus { view: View::Feature, feature: Some(7), ..Focus::default() };
        assert_eq!(format("demo", "ab", &focus), "polariscope://demo@ab?v=1&view=feature&feature=7");
    }

    #[test]
    fn unknown_keys_are_named() {
        let link = parse("polariscope://demo?view=reader&zoom=2&doc=3").unwrap();
        assert_eq!(link.ignored, ["zoom"]);
        assert_eq!(link.fingerprint, None);
        assert_eq!(link.focus.doc, Some(3));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let message = |link: &str| parse(link).unwrap_err().to_string();
        assert!(message("https://example.org").contains("polariscope://"));
        assert!(message("polariscope://a?feature=-1").contains("`feature`"));
        assert!(message("polariscope://a?view=graph").contains("`overview`"));
        assert!(message("polariscope://a?v=2").contains("`1`"));
    }

    #[test]
    fn arbitrary_text_never_panics() {
        for junk in ["", "%", "polariscope://", "polariscope://@", "polariscope://%ff%f?&&=&%=%%€&view"] {
            let _ = parse(junk);
        }
        let mut state = 1_u64;
        for _ in 0..2_000 {
            let text: String = (0..24)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    char::from_u32((state >> 40) as u32 % 0x500).unwrap_or('%')
                })
                .collect();
            let _ = parse(&format!("{SCHEME}{text}"));
            assert_eq!(decode(&encode(&text)), text);
        }
    }
}
