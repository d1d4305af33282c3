//! How is text drawn token by token, so that each can be coloured and pointed at?
//!
//! One text job for the whole passage (2,048 tokens cost 0.1 ms; as many widgets would cost 3 ms).
//! Monospace, because its face has the signs for spaces, line ends and tabs.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use egui::text::{CharIndex, LayoutJob, TextFormat, TextWrapping};
use egui::{Color32, FontId, Galley, Pos2, Rect, Response, Role, Sense, Stroke, StrokeKind, Ui, WidgetInfo, pos2, vec2};

use crate::query::Tok;
use crate::theme::Theme;

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
    /// Spaces as dots.
    pub(crate) whitespace: bool,
    /// Line ends break the line; else they are only shown.
    pub(crate) breaks: bool,
    pub(crate) label: &'a str,
}

/// What the pointer does.
pub(crate) struct TokenResponse {
    pub(crate) response: Response,
    pub(crate) hovered: Option<usize>,
    /// Where the selected token is.
    pub(crate) selected_rect: Option<Rect>,
    galley: Arc<Galley>,
    starts: Vec<usize>,
}

impl TokenResponse {
    /// The token that stands below (or above, where `lines` is negative) another one.
    pub(crate) fn line_away(&self, token: usize, lines: i32) -> Option<usize> {
        let part = parts(&self.galley, Pos2::ZERO, range(&self.starts, token)).first().copied()?;
        let rows: Vec<(f32, f32, f32)> =
            self.galley.rows.iter().map(|row| (row.pos.y, row.height(), row.pos.x + row.size.x)).collect();
        let at = rows.iter().position(|(y, height, _)| part.center().y >= *y && part.center().y < y + height)?;
        let (y, height, right) = *rows.get(at.checked_add_signed(lines as isize)?)?;
        let x = part.center().x.min(right - 1.0).max(0.5);
        hit(&self.galley, Pos2::ZERO, pos2(x, y + height / 2.0), &self.starts)
    }
}

impl TokenText<'_> {
    pub(crate) fn show(self, ui: &mut Ui) -> TokenResponse {
        let (job, starts) = self.job(ui.available_width());
        let galley = ui.painter().layout_job(job);
        let (rect, response) = ui.allocate_exact_size(galley.size().max(vec2(1.0, 1.0)), Sense::click());
        response.widget_info(|| WidgetInfo::labeled(Role::Button, true, self.label));
        let hovered = response.hover_pos().and_then(|pointer| hit(&galley, rect.min, pointer, &starts));
        let mut selected_rect = None;
        if ui.is_rect_visible(rect) {
            ui.painter().galley(rect.min, Arc::clone(&galley), self.theme.text);
            if let Some(token) = hovered {
                for part in parts(&galley, rect.min, range(&starts, token)) {
                    ui.painter().rect_stroke(part.expand(1.0), 2.0, Stroke::new(1.0, self.theme.accent), StrokeKind::Outside);
                }
            }
        }
        if let Some(token) = self.selected {
            for part in parts(&galley, rect.min, range(&starts, token)) {
                ui.painter().rect_stroke(part.expand(1.0), 2.0, Stroke::new(2.0, self.theme.outline), StrokeKind::Outside);
                selected_rect = Some(part);
            }
        }
        if let Some(token) = self.marked {
            for part in parts(&galley, rect.min, range(&starts, token)) {
                ui.painter().hline(part.x_range(), part.bottom() + 1.0, Stroke::new(1.5, self.theme.accent));
            }
        }
        TokenResponse { response, hovered, selected_rect, galley, starts }
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
            let text = visible(tok, self.whitespace, self.breaks);
            chars += text.chars().count();
            let background = (self.fill)(i);
            let color = match background {
                Some(background) => self.theme.text_on(background),
                None if tok.special => self.theme.text_dim,
                None => self.theme.text,
            };
            let format = TextFormat {
                font_id: FontId::monospace(self.size),
                line_height: Some((self.size * 1.55).round()),
                color,
                background: background.unwrap_or(Color32::TRANSPARENT),
                expand_bg: 0.0,
                valign: egui::Align::Center,
                ..TextFormat::default()
            };
            job.append(&text, 0.0, format);
        }
        starts.push(chars);
        (job, starts)
    }
}

/// What is drawn for a token. Signs are ones that the bundled monospace face has.
pub(crate) fn visible(tok: &Tok, whitespace: bool, breaks: bool) -> Cow<'_, str> {
    let text = tok.text.as_ref();
    let blank = text.chars().all(char::is_whitespace);
    if !whitespace && !blank && !text.contains(|c: char| c.is_control()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 4);
    for c in text.chars() {
        match c {
            '\n' => out.push_str(if breaks { "↵\n" } else { "↵" }),
            '\t' => out.push('→'),
            ' ' | '\u{a0}' if whitespace || blank => out.push('·'),
            c if c.is_control() => out.push_str(&format!("<0x{:02X}>", u32::from(c))),
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
    visible(&tok, true, false).into_owned()
}

fn range(starts: &[usize], token: usize) -> Range<usize> {
    let at = |i: usize| starts.get(i).copied().unwrap_or_else(|| starts.last().copied().unwrap_or(0));
    at(token)..at(token + 1)
}

/// The token under the pointer.
fn hit(galley: &Galley, origin: Pos2, pointer: Pos2, starts: &[usize]) -> Option<usize> {
    let at = pointer - origin;
    let mut first = 0;
    for row in &galley.rows {
        let n = row.char_count_including_newline().0;
        let (top, height) = (row.pos.y, row.height());
        if at.y >= top && at.y < top + height {
            let x = at.x - row.pos.x;
            if x < 0.0 || x > row.size.x {
                return None;
            }
            // The boundary nearest to the pointer, then the character that is under it.
            let mut column = row.char_at(x).0;
            if row.x_offset(CharIndex(column)) > x {
                column = column.saturating_sub(1);
            }
            let char_index = first + column.min(n.saturating_sub(1));
            let token = starts.partition_point(|start| *start <= char_index).checked_sub(1)?;
            return (token + 1 < starts.len()).then_some(token);
        }
        first += n;
    }
    None
}

/// Where characters are drawn: one rectangle a line.
fn parts(galley: &Galley, origin: Pos2, chars: Range<usize>) -> Vec<Rect> {
    let mut out = Vec::new();
    let mut first = 0;
    for row in &galley.rows {
        let n = row.char_count_including_newline().0;
        let from = chars.start.max(first);
        let to = chars.end.min(first + n);
        if from < to {
            let x = |i: usize| row.x_offset(CharIndex(i - first));
            let left = origin.x + row.pos.x + x(from);
            let right = origin.x + row.pos.x + x(to.min(first + row.char_count_excluding_newline().0));
            let top = origin.y + row.pos.y;
            if right > left {
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

    fn shown(text: &str, whitespace: bool, breaks: bool) -> String {
        visible(&Tok { text: text.into(), special: false }, whitespace, breaks).into_owned()
    }

    #[test]
    fn what_cannot_be_seen_is_drawn() {
        assert_eq!(shown(" the", false, true), " the");
        assert_eq!(shown(" the", true, true), "·the");
        assert_eq!(shown("  ", false, true), "··");
        assert_eq!(shown("\n\n", false, true), "↵\n↵\n");
        assert_eq!(shown("\n\n", false, false), "↵↵");
        assert_eq!(shown("\t", false, true), "→");
        assert_eq!(shown("\u{7}", false, true), "<0x07>");
        assert_eq!(shown("", false, true), "∅");
        assert_eq!(shown("<0xE2>", true, true), "<0xE2>");
        assert_eq!(shown("المدينة 巴黎", false, true), "المدينة 巴黎");
    }

    /// Every character of a passage belongs to the token that it came from, in several scripts.
    #[test]
    fn the_pointer_finds_its_token() {
        let toks: Vec<Tok> = ["<bos>", "The", " rain", " in", "\n", " 巴黎", " of", " naïve", " Привет", "", " x"]
            .into_iter()
            .map(|text| Tok { text: text.into(), special: text == "<bos>" })
            .collect();
        let ctx = egui::Context::default();
        crate::theme::install_fonts(&ctx);
        let mut checked = 0;
        let mut output = ctx.run_ui(egui::RawInput::default(), |ui| {
            let text = TokenText {
                theme: &crate::theme::THEMES[0],
                toks: &toks,
                fill: &|_| None,
                selected: None,
                marked: None,
                size: 12.5,
                whitespace: true,
                breaks: true,
                label: "text",
            };
            let (job, starts) = text.job(120.0);
            let galley = ui.painter().layout_job(job);
            assert!(galley.rows.len() > 2);
            checked = 0;
            for token in 0..toks.len() {
                for part in parts(&galley, Pos2::ZERO, range(&starts, token)) {
                    for x in [part.left() + 0.5, part.center().x, part.right() - 0.5] {
                        assert_eq!(hit(&galley, Pos2::ZERO, pos2(x, part.center().y), &starts), Some(token));
                        checked += 1;
                    }
                }
            }
            assert_eq!(hit(&galley, Pos2::ZERO, pos2(-5.0, 5.0), &starts), None);
            assert_eq!(hit(&galley, Pos2::ZERO, pos2(5.0, 5_000.0), &starts), None);
        });
        output.textures_delta.clear();
        assert!(checked >= toks.len() * 3, "{checked}");
    }
}
