//! How is the text form of interventions read?

use super::select::{Part, Pick, Selection};
use super::{Action, FeatureEdit, Intervention, Origin, Source, Spot, Term, Value};
use crate::error::{Error, Result};

/// The verbs, for messages.
pub(super) const VERBS: &str =
    "`zero`, `scale`, `add`, `replace`, `mean`, `patch`, `forbid`, `force`, `ablate`, `clamp` or `reconstruct`";

/// Most numbers that one range may stand for where each is written down.
const MOST: usize = 1 << 20;

/// Reads interventions joined with `;`.
pub fn parse(text: &str) -> Result<Vec<Intervention>> {
    let mut parser = Parser::new(text);
    let mut all = vec![parser.intervention()?];
    loop {
        parser.space();
        if parser.rest().is_empty() {
            return Ok(all);
        }
        parser.token(";", "`;` or the end")?;
        parser.space();
        if !parser.rest().is_empty() {
            all.push(parser.intervention()?);
        }
    }
}

/// A place in a text.
pub(super) struct Parser<'t> {
    text: &'t str,
    /// In bytes.
    at: usize,
}

impl<'t> Parser<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// Reads everything with `read`.
    pub(super) fn whole<T>(text: &'t str, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let mut parser = Self::new(text);
        parser.space();
        let found = read(&mut parser)?;
        parser.space();
        if parser.rest().is_empty() { Ok(found) } else { Err(parser.expected("the end")) }
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn expected(&self, expected: &str) -> Error {
        let word: String = self.rest().chars().take_while(|c| !c.is_whitespace()).take(24).collect();
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some(c) if c.is_whitespace() => "a space".to_owned(),
            Some(_) => format!("`{word}`"),
        };
        let column = self.text[..self.at].chars().count() + 1;
        Error::InterventionText { expected: expected.to_owned(), found, column, text: self.text.to_owned() }
    }

    /// Goes past `token` if it comes next.
    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn token(&mut self, token: &str, expected: &str) -> Result<()> {
        if self.take(token) { Ok(()) } else { Err(self.expected(expected)) }
    }

    /// As many characters as `belongs` says.
    fn run(&mut self, belongs: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn word(&mut self) -> &'t str {
        self.run(|c| c.is_ascii_alphabetic())
    }

    fn keyword(&mut self, word: &str) -> Result<()> {
        self.space();
        let start = self.at;
        if self.word() == word {
            return Ok(());
        }
        self.at = start;
        Err(self.expected(&format!("`{word}`")))
    }

    fn intervention(&mut self) -> Result<Intervention> {
        self.space();
        let start = self.at;
        let verb = self.word();
        if !VERBS.contains(&format!("`{verb}`")) || !self.peek().is_some_and(char::is_whitespace) {
            self.at = start;
            return Err(self.expected(VERBS));
        }
        self.space();
        let at = self.spots()?;
        self.space();
        let tokens = if self.take("@") { self.selection()? } else { Selection::ALL };
        self.space();
        let action = match verb {
            "zero" => Action::Zero,
            "scale" => Action::Scale(self.number()?),
            "add" => Action::Add(self.value()?),
            "replace" => Action::Replace(self.value()?),
            "mean" => {
                self.keyword("from")?;
                Action::Mean(self.origin()?)
            }
            "patch" => {
                self.keyword("from")?;
                Action::Patch(self.origin()?)
            }
            "forbid" | "force" => {
                self.keyword("experts")?;
                self.space();
                let experts = self.indices("an expert's number")?;
                if verb == "forbid" { Action::ForbidExperts(experts) } else { Action::ForceExperts(experts) }
            }
            "reconstruct" => Action::Reconstruct { coder: self.coder()? },
            _ => {
                let (coder, features) = self.features()?;
                self.space();
                let edit = if verb == "ablate" { FeatureEdit::Ablate } else { FeatureEdit::Clamp(self.number()?) };
                Action::Features { coder, features, edit }
            }
        };
        Ok(Intervention { at, tokens, action })
    }

    /// `blocks.*.attn.hook_z[2],blocks.0.hook_mlp_out`
    pub(super) fn spots(&mut self) -> Result<Vec<Spot>> {
        let mut spots = Vec::new();
        loop {
            let points = self.run(|c| c.is_ascii_alphanumeric() || "._*-".contains(c));
            if points.is_empty() {
                return Err(self.expected("a hook point"));
            }
            let mut axes = Vec::new();
            while self.take("[") {
                axes.push(if self.take("*") { Vec::new() } else { self.ranges("an index or `*`")? });
                self.token("]", "`,` or `]`")?;
            }
            spots.push(Spot { points: points.to_owned(), part: Part(axes) });
            if !self.take(",") {
                return Ok(spots);
            }
            self.space();
        }
    }

    /// What stands behind `@`.
    pub(super) fn selection(&mut self) -> Result<Selection> {
        let mut picks = vec![self.pick()?];
        while self.take(",") {
            self.space();
            picks.push(self.pick()?);
        }
        Ok(Selection(picks))
    }

    fn pick(&mut self) -> Result<Pick> {
        const WHAT: &str = "a position, `last`, `prompt`, `generated`, `id:` or a token in double quotes";
        if self.peek() == Some('"') {
            return Ok(Pick::Text(self.quoted()?));
        }
        if let Some(from) = self.position() {
            let to = if self.take("-") { self.position() } else { Some(from) };
            return Ok(Pick::Range { from, to });
        }
        let start = self.at;
        match self.word() {
            "last" => Ok(Pick::Last),
            "prompt" => Ok(Pick::Prompt),
            "generated" => Ok(Pick::Generated),
            "id" if self.take(":") => Ok(Pick::Id(self.whole_number("a token's id")? as u32)),
            _ => {
                self.at = start;
                Err(self.expected(WHAT))
            }
        }
    }

    /// A whole number that may be negative; `None` if none comes next.
    fn position(&mut self) -> Option<i64> {
        let start = self.at;
        let minus = self.take("-");
        let number = self.run(|c| c.is_ascii_digit()).parse::<i64>().ok();
        if number.is_none() {
            self.at = start;
        }
        number.map(|n| if minus { -n } else { n })
    }

    fn whole_number(&mut self, what: &str) -> Result<usize> {
        let start = self.at;
        if let Ok(number) = self.run(|c| c.is_ascii_digit()).parse::<u32>() {
            return Ok(number as usize);
        }
        self.at = start;
        Err(self.expected(what))
    }

    /// `3,5-7` as inclusive ranges.
    fn ranges(&mut self, what: &str) -> Result<Vec<(usize, usize)>> {
        let mut ranges = Vec::new();
        loop {
            let start = self.at;
            let first = self.whole_number(what)?;
            let last = if self.take("-") { self.whole_number(what)? } else { first };
            if last < first {
                self.at = start;
                return Err(self.expected("a range that rises"));
            }
            ranges.push((first, last));
            if !self.take(",") {
                return Ok(ranges);
            }
            self.space();
        }
    }

    /// `3,5-7` one by one.
    fn indices(&mut self, what: &str) -> Result<Vec<usize>> {
        let start = self.at;
        let ranges = self.ranges(what)?;
        if ranges.iter().any(|(first, last)| last - first >= MOST) {
            self.at = start;
            return Err(self.expected(&format!("ranges of at most {MOST} numbers")));
        }
        Ok(ranges.into_iter().flat_map(|(first, last)| first..=last).collect())
    }

    pub(super) fn number(&mut self) -> Result<f32> {
        let start = self.at;
        let text = self.run(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        match text.parse::<f32>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => {
                self.at = start;
                Err(self.expected("a number"))
            }
        }
    }

    /// A text in double quotes, with JSON's escapes.
    fn quoted(&mut self) -> Result<String> {
        let start = self.at;
        let mut texts = serde_json::Deserializer::from_str(self.rest()).into_iter::<String>();
        if let Some(Ok(text)) = texts.next() {
            self.at += texts.byte_offset();
            return Ok(text);
        }
        self.at = start;
        Err(self.expected("a text that ends with a double quote"))
    }

    fn path(&mut self) -> Result<String> {
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let path = self.run(|c| !c.is_whitespace() && !";#@\"".contains(c));
        if path.is_empty() { Err(self.expected("a path")) } else { Ok(path.to_owned()) }
    }

    /// `"a text"`, `ids:2,17`, `cache:PATH` or `run:PATH`
    pub(super) fn origin(&mut self) -> Result<Origin> {
        self.space();
        if self.peek() == Some('"') {
            return self.quoted().map(Origin::Text);
        }
        if self.take("ids:") {
            let ids = self.indices("a token's id")?;
            return Ok(Origin::Ids(ids.into_iter().map(|id| id as u32).collect()));
        }
        if self.take("cache:") {
            return self.path().map(Origin::Cache);
        }
        if self.take("run:") {
            return self.path().map(Origin::Run);
        }
        Err(self.expected("a text in double quotes, `ids:`, `cache:` or `run:`"))
    }

    /// A sum of terms.
    pub(super) fn value(&mut self) -> Result<Value> {
        let mut terms = vec![self.term(1.0)?];
        loop {
            self.space();
            let sign = match self.peek() {
                Some('+') => 1.0,
                Some('-') => -1.0,
                _ => return Ok(Value(terms)),
            };
            self.at += 1;
            terms.push(self.term(sign)?);
        }
    }

    fn term(&mut self, sign: f32) -> Result<Term> {
        self.space();
        let source = self.source()?;
        self.space();
        let scale = if self.take("*") {
            self.space();
            self.number()?
        } else {
            1.0
        };
        Ok(Term { source, scale: sign * scale })
    }

    fn source(&mut self) -> Result<Source> {
        if self.take("[") {
            let mut list = Vec::new();
            loop {
                self.space();
                list.push(self.number()?);
                self.space();
                if !self.take(",") {
                    self.token("]", "`,` or `]`")?;
                    return Ok(Source::List(list));
                }
            }
        }
        if self.rest().starts_with("sae:") {
            let coder = self.coder()?;
            self.token("#", "`#` and the number of a feature")?;
            return Ok(Source::Decoder { coder, feature: self.whole_number("the number of a feature")? });
        }
        if self.take("file:") {
            let path = self.path()?;
            self.token("#", "`#` and the name of a tensor")?;
            let name = if self.peek() == Some('"') { self.quoted()? } else { self.path()? };
            return Ok(Source::File { path, name });
        }
        if self.peek().is_some_and(|c| c.is_ascii_digit() || "+-.".contains(c)) {
            return self.number().map(Source::Number);
        }
        let origin = self.origin().map_err(|_less_said| {
            self.expected(
                "a number, a list in `[…]`, `sae:`, `file:`, a text in double quotes, `ids:`, `cache:` or `run:`",
            )
        })?;
        if !self.take("@") {
            return Ok(Source::Mean(origin));
        }
        let position = self.position().ok_or_else(|| self.expected("a position"))?;
        Ok(Source::At(origin, position))
    }

    /// `sae:DIR`
    pub(super) fn coder(&mut self) -> Result<String> {
        self.space();
        self.token("sae:", "`sae:` and the folder of a coder")?;
        self.path()
    }

    /// `sae:DIR#12,40`
    pub(super) fn features(&mut self) -> Result<(String, Vec<usize>)> {
        let coder = self.coder()?;
        self.token("#", "`#` and the number of a feature")?;
        Ok((coder, self.indices("the number of a feature")?))
    }
}
