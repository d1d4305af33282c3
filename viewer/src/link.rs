//! How does a view become an address, and back?
//!
//! `polariscope://RUN@FINGERPRINT?v=1&view=feature&table=main&feature=4821`: readable, order-free,
//! percent-encoded; keys that are not known are ignored and named.

use std::fmt::Write as _;

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::state::{ColorBy, Focus, MAX_PINS, Metric, Scope, SortBy, View};

/// What every link begins with.
pub(crate) const SCHEME: &str = "polariscope://";

/// A link, taken apart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Link {
    /// The run's name, for people.
    pub(crate) run: String,
    /// What tells the run from another one, for us.
    pub(crate) fingerprint: Option<String>,
    pub(crate) focus: Focus,
    /// How the panes stand, where that is not the usual way.
    pub(crate) layout: Option<Layout>,
    /// Keys that this version does not know.
    pub(crate) ignored: Vec<String>,
}

/// The address of a focus, and of a layout where it is not the usual one. What has its default value is left out.
pub(crate) fn format(run: &str, fingerprint: &str, focus: &Focus, layout: Option<&Layout>) -> String {
    let mut link = format!("{SCHEME}{}@{fingerprint}?v=1&{}", encode(run), format_focus(focus));
    if let Some(layout) = layout {
        let _ = write!(link, "&layout={}", encode(&layout.to_text()));
    }
    link
}

/// A focus alone: what stands behind the `?` of a link.
pub(crate) fn format_focus(focus: &Focus) -> String {
    let mut text = format!("view={}", focus.view);
    let start = Focus::default();
    let mut push = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(text, "&{key}={}", encode(&value));
        }
    };
    push("table", focus.table.clone());
    push("feature", focus.feature.map(|feature| feature.to_string()));
    push("doc", focus.doc.map(|doc| doc.to_string()));
    push("token", focus.token.map(|token| token.to_string()));
    push("color", (focus.color != start.color).then(|| focus.color.to_string()));
    push("hook", focus.hook.clone());
    push("layer", focus.layer.map(|layer| layer.to_string()));
    push("expert", focus.expert.map(|expert| expert.to_string()));
    push("row", focus.row.map(|row| row.to_string()));
    push("metric", (focus.metric != start.metric).then(|| focus.metric.to_string()));
    push("scope", (focus.scope != start.scope).then(|| focus.scope.to_string()));
    push("sort", (focus.sort != start.sort).then(|| focus.sort.to_string()));
    push("ascending", focus.ascending.then(|| "true".to_owned()));
    push("filter", Some(focus.filter.clone()).filter(|filter| !filter.is_empty()));
    push("coder", focus.coder.clone());
    push("sql", Some(focus.sql.clone()).filter(|sql| !sql.is_empty()));
    for pin in &focus.pins {
        push("pin", Some(pin.to_string()));
    }
    text
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
        layout: None,
        ignored: Vec::new(),
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value);
        match key {
            "v" if value == "1" => {}
            "v" => return Err(wrong(key, &value, "`1`")),
            "layout" => {
                let layout = Layout::parse(&value).ok_or_else(|| wrong(key, &value, "an arrangement of panes"))?;
                parsed.layout = Some(layout);
            }
            _ if read(&mut parsed.focus, key, &value)? => {}
            _ => parsed.ignored.push(key.to_owned()),
        }
    }
    Ok(parsed)
}

/// What [`format_focus`] writes.
pub(crate) fn parse_focus(text: &str) -> Result<Focus> {
    let mut focus = Focus::default();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        read(&mut focus, key, &decode(value))?;
    }
    Ok(focus)
}

/// Takes in one part of a focus; false where it is none.
fn read(focus: &mut Focus, key: &str, value: &str) -> Result<bool> {
    let text = || Some(value.to_owned());
    match key {
        "view" => focus.view = word(key, value, View::WORDS)?,
        "table" => focus.table = text(),
        "feature" => focus.feature = Some(word(key, value, "a feature number")?),
        "doc" => focus.doc = Some(word(key, value, "a document number")?),
        "token" => focus.token = Some(word(key, value, "a token number")?),
        "color" => focus.color = word(key, value, ColorBy::WORDS)?,
        "hook" => focus.hook = text(),
        "layer" => focus.layer = Some(word(key, value, "the number of a layer")?),
        "expert" => focus.expert = Some(word(key, value, "the number of an expert")?),
        "row" => focus.row = Some(word(key, value, "a token id")?),
        "metric" => focus.metric = word(key, value, Metric::WORDS)?,
        "scope" => focus.scope = word(key, value, Scope::WORDS)?,
        "sort" => focus.sort = word(key, value, SortBy::WORDS)?,
        "ascending" => focus.ascending = word(key, value, "`true` or `false`")?,
        "filter" => value.clone_into(&mut focus.filter),
        "coder" => focus.coder = text(),
        "sql" => value.clone_into(&mut focus.sql),
        "pin" if focus.pins.len() < MAX_PINS => focus.pins.push(word(key, value, "something like `f:7:main`")?),
        _ => return Ok(false),
    }
    Ok(true)
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
    use crate::state::Item;

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
            layer: Some(11),
            expert: Some(127),
            row: Some(5_765),
            metric: Metric::PleShare,
            scope: Scope::Corpus,
            sql: "SELECT token, nll FROM tokens WHERE nll > 3 & true".into(),
            pins: vec![Item::Expert { layer: 3, expert: 4 }, Item::Feature { table: "a:b".into(), feature: 9 }],
        }
    }

    #[test]
    fn every_part_survives_the_round_trip() {
        for focus in [full(), Focus::default()] {
            assert_eq!(parse_focus(&format_focus(&focus)).unwrap(), focus);
            let layout = Layout::parse("h(reader:2,v(layers,routing))").unwrap();
            let link = format("my run@2", "9f00aa12", &focus, Some(&layout));
            assert!(!link.contains(' '), "{link}");
            let back = parse(&link).unwrap();
            assert_eq!(back.focus, focus);
            assert_eq!(back.layout.unwrap().to_text(), layout.to_text());
            assert_eq!(back.run, "my run@2");
            assert_eq!(back.fingerprint.as_deref(), Some("9f00aa12"));
            assert!(back.ignored.is_empty());
        }
    }

    #[test]
    fn a_short_link_is_readable() {
        let focus = Focus { view: View::Feature, feature: Some(7), ..Focus::default() };
        assert_eq!(format("demo", "ab", &focus, None), "polariscope://demo@ab?v=1&view=feature&feature=7");
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
        assert!(message("polariscope://a?layout=h(").contains("`layout`"));
        assert!(message("polariscope://a?pin=7").contains("`pin`"));
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
