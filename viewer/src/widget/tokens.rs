//! How is text drawn token by token, so that each can be colored and pointed at?
//!
//! One text job for the whole passage (2,048 tokens cost 0.1 ms; as many widgets would cost 3 ms).
//! Monospace, because its face has the signs for spaces, line ends and tabs.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use egui::epaint::text::Glyph;
use egui::text::{ByteIndex, LayoutJob, LayoutSection, TextFormat, TextWrapping};
use egui::{
    Color32, FontId, Galley, Pos2, Rect, Response, Role, Sense, Stroke, StrokeKind, Ui, Vec2, WidgetInfo, pos2, vec2,
};

use super::flow::{self, Piece};
use crate::query::Tok;
use crate::theme::{Theme, text_on};

/// A passage.
pub(crate) struct TokenText<'a> {
    pub(crate) theme: &'a Theme,
    pub(crate) toks: &'a [Tok],
    /// The background of each token.
    pub(crate) fill: &'a dyn Fn(usize) -> Option<Color32>,
    /// Outlined.
    pub(crate) selected: Option<usize>,
    /// Underlined.
    pub(crate) marked: Option<usize>,
    pub(crate) size: f32,
    pub(crate) spaces: Spaces,
    pub(crate) breaks: Breaks,
    pub(crate) label: &'a str,
}

/// How spaces are drawn. Those of a token that is nothing else are always dots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Spaces {
    #[default]
    Blank,
    Dots,
}

impl Spaces {
    pub(crate) fn other(self) -> Self {
        if self == Self::Blank { Self::Dots } else { Self::Blank }
    }
}

/// What a line end does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breaks {
    /// It is shown, and ends the line.
    Line,
    /// It is only shown.
    Sign,
}

/// What the pointer does.
pub(crate) struct TokenResponse {
    pub(crate) response: Response,
    pub(crate) hovered: Option<usize>,
    /// Where the selected token is.
    pub(crate) selected_rect: Option<Rect>,
    laid: Laid,
}

impl TokenResponse {
    /// The token that stands below (or above, where `lines` is negative) another one.
    pub(crate) fn line_away(&self, token: usize, lines: i32) -> Option<usize> {
        self.laid.line_away(token, lines)
    }
}

/// A passage, laid out from 0, 0.
enum Laid {
    /// One text job, with the number of the character at which each token begins; one more than there are tokens.
    Job { galley: Arc<Galley>, starts: Vec<usize> },
    /// One galley a token.
    Flow { pieces: Vec<Piece>, size: Vec2 },
}

impl TokenText<'_> {
    pub(crate) fn show(self, ui: &mut Ui) -> TokenResponse {
        let laid = self.lay(ui, ui.available_width());
        let (rect, response) = ui.allocate_exact_size(laid.size().max(vec2(1.0, 1.0)), Sense::click());
        response.widget_info(|| WidgetInfo::labeled(Role::Button, true, self.label));
        let hovered = response.hover_pos().and_then(|pointer| laid.hit((pointer - rect.min).to_pos2()));
        let parts = |token: usize| laid.parts(token).into_iter().map(|part| part.translate(rect.min.to_vec2()));
        let outline = |part: Rect, width: f32, color: Color32| {
            ui.painter().rect_stroke(part.expand(1.0), 2.0, Stroke::new(width, color), StrokeKind::Outside);
        };
        let mut selected_rect = None;
        if ui.is_rect_visible(rect) {
            self.paint(ui, &laid, rect.min);
            for part in hovered.into_iter().flat_map(parts) {
                outline(part, 1.0, self.theme.accent);
            }
        }
        for part in self.selected.into_iter().flat_map(parts) {
            outline(part, 2.0, self.theme.outline);
            selected_rect = Some(part);
        }
        for part in self.marked.into_iter().flat_map(parts) {
            ui.painter().hline(part.x_range(), part.bottom() + 1.0, Stroke::new(1.5, self.theme.accent));
        }
        TokenResponse { response, hovered, selected_rect, laid }
    }

    fn lay(&self, ui: &Ui, width: f32) -> Laid {
        if !flow::is_needed(self.toks.iter().map(|tok| &tok.text)) {
            let (job, starts) = self.job(width);
            return Laid::Job { galley: ui.painter().layout_job(job), starts };
        }
        let lay = |token: usize, text: &str| {
            let mut job = LayoutJob::single_section(text.to_owned(), self.format(token));
            job.keep_trailing_whitespace = true;
            job.wrap.max_width = f32::INFINITY;
            ui.painter().layout_job(job)
        };
        let tokens: Vec<flow::Token> = self
            .toks
            .iter()
            .enumerate()
            .map(|(i, tok)| {
                let text = visible(tok, self.spaces, Breaks::Sign);
                let word = text.trim_start_matches([' ', '·']);
                flow::Token {
                    direction: flow::direction(word),
                    word: lay(i, word),
                    space: lay(i, &text[..text.len() - word.len()]),
                    breaks: self.breaks == Breaks::Line && tok.text.contains('\n'),
                }
            })
            .collect();
        let (pieces, size) = flow::place(&tokens, width, self.line_height());
        Laid::Flow { pieces, size }
    }

    fn paint(&self, ui: &Ui, laid: &Laid, origin: Pos2) {
        match laid {
            Laid::Job { galley, .. } => {
                ui.painter().galley(origin, Arc::clone(galley), self.theme.text);
            }
            Laid::Flow { pieces, .. } => {
                for piece in pieces {
                    let rect = piece.rect.translate(origin.to_vec2());
                    if ui.is_rect_visible(rect) {
                        let (word, space) = (&piece.word, &piece.space);
                        let (left, right) = if piece.space_at_right { (word, space) } else { (space, word) };
                        ui.painter().galley(rect.min, Arc::clone(left), self.theme.text);
                        let right_at = rect.min + vec2(left.size().x, 0.0);
                        ui.painter().galley(right_at, Arc::clone(right), self.theme.text);
                    }
                }
            }
        }
    }

    fn line_height(&self) -> f32 {
        (self.size * 1.55).round()
    }

    fn format(&self, token: usize) -> TextFormat {
        let background = (self.fill)(token);
        let special = self.toks.get(token).is_some_and(|tok| tok.special);
        TextFormat {
            font_id: FontId::monospace(self.size),
            line_height: Some(self.line_height()),
            color: match background {
                Some(background) => text_on(background),
                None if special => self.theme.text_dim,
                None => self.theme.text,
            },
            background: background.unwrap_or(Color32::TRANSPARENT),
            expand_bg: 0.0,
            valign: egui::Align::Center,
            ..TextFormat::default()
        }
    }

    /// The text job, and the number of the character with which each token begins; one more than there are tokens.
    fn job(&self, width: f32) -> (LayoutJob, Vec<usize>) {
        let mut job = LayoutJob {
            wrap: TextWrapping { max_width: width, ..TextWrapping::default() },
            keep_trailing_whitespace: true,
            ..LayoutJob::default()
        };
        let mut starts = Vec::with_capacity(self.toks.len() + 1);
        let mut chars = 0;
        for (i, tok) in self.toks.iter().enumerate() {
            starts.push(chars);
            let text = visible(tok, self.spaces, self.breaks);
            chars += text.chars().count();
            // Not `append`, which joins what looks alike: no ligature runs across the border of two tokens.
            let start = job.text.len();
            job.text.push_str(&text);
            let byte_range = ByteIndex(start)..ByteIndex(job.text.len());
            job.sections.push(LayoutSection { leading_space: 0.0, byte_range, format: self.format(i) });
        }
        starts.push(chars);
        (job, starts)
    }
}

/// What is drawn for a token. Signs are ones that the bundled monospace face has.
pub(crate) fn visible(tok: &Tok, spaces: Spaces, breaks: Breaks) -> Cow<'_, str> {
    let text = tok.text.as_ref();
    let blank = text.chars().all(char::is_whitespace);
    let dots = blank || spaces == Spaces::Dots;
    if !dots && !text.contains(|c: char| c.is_control()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 4);
    for c in text.chars() {
        match c {
            '\n' => out.push_str(if breaks == Breaks::Line { "↵\n" } else { "↵" }),
            '\t' => out.push('→'),
            ' ' | '\u{a0}' if dots => out.push('·'),
            c if c.is_control() => {
                let _ = write!(out, "<0x{:02X}>", u32::from(c));
            }
            c => out.push(c),
        }
    }
    if out.is_empty() {
        // An empty token still has a place.
        out.push('∅');
    }
    Cow::Owned(out)
}

/// A token's text on one line, with spaces as dots, for lists.
pub(crate) fn plain(text: &str) -> String {
    let tok = Tok { text: text.into(), special: false };
    visible(&tok, Spaces::Dots, Breaks::Sign).into_owned()
}

impl Laid {
    fn size(&self) -> Vec2 {
        match self {
            Self::Job { galley, .. } => galley.size(),
            Self::Flow { size, .. } => *size,
        }
    }

    /// The token under a point.
    fn hit(&self, at: Pos2) -> Option<usize> {
        match self {
            Self::Job { galley, starts } => hit(galley, at, starts),
            Self::Flow { pieces, .. } => pieces.iter().find(|piece| piece.rect.contains(at)).map(|piece| piece.token),
        }
    }

    /// Where a token is drawn: one rectangle a line.
    fn parts(&self, token: usize) -> Vec<Rect> {
        match self {
            Self::Job { galley, starts } => match (starts.get(token), starts.get(token + 1)) {
                (Some(from), Some(to)) => parts(galley, *from..*to),
                _ => Vec::new(),
            },
            Self::Flow { pieces, .. } => {
                let of_token = pieces.iter().filter(|piece| piece.token == token);
                of_token.map(|piece| piece.rect.shrink2(vec2(0.0, 1.0))).collect()
            }
        }
    }

    /// The lines, as rectangles.
    fn lines(&self) -> Vec<Rect> {
        match self {
            Self::Job { galley, .. } => {
                galley.rows.iter().map(|row| Rect::from_min_size(row.pos, vec2(row.size.x, row.height()))).collect()
            }
            Self::Flow { pieces, .. } => {
                let mut lines: Vec<Rect> = Vec::new();
                for piece in pieces {
                    match lines.last_mut() {
                        Some(line) if line.top() == piece.rect.top() => *line = line.union(piece.rect),
                        _ => lines.push(piece.rect),
                    }
                }
                lines
            }
        }
    }

    fn line_away(&self, token: usize, lines: i32) -> Option<usize> {
        let part = self.parts(token).first().copied()?;
        let all = self.lines();
        let now = all.iter().position(|line| line.y_range().contains(part.center().y))?;
        let line = all.get(now.checked_add_signed(lines as isize)?)?;
        let x = part.center().x.clamp(line.left() + 0.5, (line.right() - 1.0).max(line.left() + 0.5));
        self.hit(pos2(x, line.center().y))
    }
}

/// The token under a point.
fn hit(galley: &Galley, at: Pos2, starts: &[usize]) -> Option<usize> {
    let mut first = 0;
    for row in &galley.rows {
        let (top, height) = (row.pos.y, row.height());
        if at.y >= top && at.y < top + height {
            let x = at.x - row.pos.x;
            if x > row.size.x {
                return None;
            }
            // The last glyph that begins before the point: advances are rounded, so glyphs may leave gaps.
            let column = row.glyphs.iter().rposition(|glyph| glyph.pos.x <= x)?;
            let token = starts.partition_point(|start| *start <= first + column).checked_sub(1)?;
            return (token + 1 < starts.len()).then_some(token);
        }
        first += row.char_count_including_newline().0;
    }
    None
}

/// Where characters are drawn: one rectangle a line.
fn parts(galley: &Galley, chars: Range<usize>) -> Vec<Rect> {
    let mut out = Vec::new();
    let mut first = 0;
    for row in &galley.rows {
        let n = row.char_count_including_newline().0;
        let from = chars.start.max(first);
        let to = chars.end.min(first + n);
        if from < to {
            let glyphs = row.glyphs.get(from - first..(to - first).min(row.glyphs.len())).unwrap_or_default();
            let left = row.pos.x + glyphs.iter().map(|glyph| glyph.pos.x).fold(f32::INFINITY, f32::min);
            let right = row.pos.x + glyphs.iter().map(Glyph::max_x).fold(0.0, f32::max);
            if right > left {
                let top = row.pos.y;
                out.push(Rect::from_min_max(pos2(left, top + 1.0), pos2(right, top + row.height() - 1.0)));
            }
        }
        first += n;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, spaces: Spaces, breaks: Breaks) -> String {
        visible(&Tok { text: text.into(), special: false }, spaces, breaks).into_owned()
    }

    #[test]
    fn what_cannot_be_seen_is_drawn() {
        use Breaks::{Line, Sign};
        use Spaces::{Blank, Dots};
        assert_eq!(shown(" the", Blank, Line), " the");
        assert_eq!(shown(" the", Dots, Line), "·the");
        assert_eq!(shown("  ", Blank, Line), "··");
        assert_eq!(shown("\n\n", Blank, Line), "↵\n↵\n");
        assert_eq!(shown("\n\n", Blank, Sign), "↵↵");
        assert_eq!(shown("\t", Blank, Line), "→");
        assert_eq!(shown("\u{7}", Blank, Line), "<0x07>");
        assert_eq!(shown("", Blank, Line), "∅");
        assert_eq!(shown("<0xE2>", Dots, Line), "<0xE2>");
        assert_eq!(shown("المدينة 巴黎", Blank, Line), "المدينة 巴黎");
    }

    /// Every part of a passage belongs to the token that it came from, in several scripts.
    fn check(texts: &[&str]) {
        let toks: Vec<Tok> = texts.iter().map(|text| Tok { text: (*text).into(), special: *text == "<bos>" }).collect();
        let ctx = egui::Context::default();
        crate::theme::install_fonts(&ctx);
        let mut checked = Vec::new();
        let mut output = ctx.run_ui(egui::RawInput::default(), |ui| {
            let text = TokenText {
                theme: &crate::theme::THEMES[0],
                toks: &toks,
                fill: &|_| None,
                selected: None,
                marked: None,
                size: 12.5,
                spaces: Spaces::Dots,
                breaks: Breaks::Line,
                label: "text",
            };
            let laid = text.lay(ui, 120.0);
            let lines = laid.lines();
            assert!(lines.len() > 2);
            checked.clear();
            for (token, text) in texts.iter().enumerate() {
                for part in laid.parts(token) {
                    for x in [part.left() + 1.0, part.center().x, part.right() - 1.5] {
                        if part.width() > 4.0 {
                            assert_eq!(laid.hit(pos2(x, part.center().y)), Some(token), "{text:?}");
                            checked.push(token);
                        }
                    }
                }
            }
            checked.dedup();
            assert_eq!(laid.hit(pos2(-5.0, 5.0)), None);
            assert_eq!(laid.hit(pos2(5.0, 5_000.0)), None);
            assert_eq!(laid.line_away(0, -1), None);
            let below = laid.line_away(0, 1).unwrap();
            assert_eq!(laid.parts(below)[0].center().y, lines[1].center().y);
        });
        output.textures_delta.clear();
        assert_eq!(checked.len(), toks.len());
    }

    #[test]
    fn the_pointer_finds_its_token() {
        check(&[
            "<bos>",
            "The",
            " rain",
            " in",
            "\n",
            " 巴黎",
            " of",
            " naïve",
            " Привет",
            "",
            " बारिश",
            " से",
            "👍🏽",
            " x",
        ]);
    }

    #[test]
    fn the_pointer_finds_its_token_from_right_to_left() {
        check(&[
            "<bos>",
            "قال",
            " رئيس",
            " الوزراء",
            " إن",
            " Gemma",
            " 3",
            " الحكومة",
            "،",
            "\n",
            " שלום",
            ".",
            " المطر",
        ]);
    }
}
