//! Small things that several panels draw.

mod chart;
mod flow;
mod heatmap;
mod rows;
mod tokens;

use std::time::Duration;

use egui::{Color32, CornerRadius, Frame, Margin, Response, RichText, Role, Sense, Stroke, Ui, WidgetInfo, vec2};

pub(crate) use chart::{Axis, Chart, Mark, Series, sparkline};
pub(crate) use heatmap::{Heatmap, Pool, spread};
pub(crate) use rows::VirtualRows;
pub(crate) use tokens::{Breaks, Spaces, TokenResponse, TokenText, plain, visible};

use crate::command::Command;
use crate::loader::{Failure, Got};
use crate::panel::Cx;
use crate::theme::Theme;

/// Draws the answer to a question, or what stands in for it. `name` says what is coming.
pub(crate) fn answered<T>(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    name: &str,
    got: Got<T>,
    draw: impl FnOnce(&mut Ui, &mut Cx<'_>, &T),
) {
    match (got.value, got.failure) {
        (_, Some(failure)) => failed(ui, cx, name, &failure),
        (Some(value), None) => {
            if got.stale {
                let bar = egui::Rect::from_min_size(ui.max_rect().min, vec2(ui.max_rect().width(), 2.0));
                ui.painter().rect_filled(bar, 0.0, cx.theme.accent.gamma_multiply(0.6));
                ui.scope(|ui| {
                    ui.multiply_opacity(0.55);
                    draw(ui, cx, &value);
                });
            } else {
                draw(ui, cx, &value);
            }
        }
        (None, None) => loading(ui, cx, name),
    }
}

/// A failure stays in the panel in which it happened, with the next step.
pub(crate) fn failed(ui: &mut Ui, cx: &mut Cx<'_>, name: &str, failure: &Failure) {
    let theme = cx.theme;
    Frame::NONE
        .fill(theme.raised)
        .stroke(Stroke::new(1.0, theme.error))
        .corner_radius(6)
        .inner_margin(Margin::same(14))
        .show(ui, |ui| {
            ui.set_max_width(720.0);
            ui.label(RichText::new(format!("The {name} could not be read")).strong().color(theme.error));
            ui.label(&failure.message);
            if let Some(hint) = &failure.hint {
                ui.label(RichText::new(format!("Next: {hint}")).color(theme.text_dim));
            }
            ui.horizontal(|ui| {
                if ui.button("Try again").clicked() {
                    cx.emit(Command::Reload);
                }
                if ui.button("Copy details").clicked() {
                    let hint = failure.hint.as_deref().unwrap_or_default();
                    ui.copy_text(format!("{name}: {}\n{hint}", failure.message));
                }
            });
        });
}

fn loading(ui: &mut Ui, cx: &Cx<'_>, name: &str) {
    let theme = cx.theme;
    ui.label(RichText::new(format!("Loading the {name}…")).color(theme.text_dim));
    for width in [0.62_f32, 0.48, 0.55] {
        let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width() * width, 12.0), Sense::hover());
        ui.painter().rect_filled(rect, 3.0, theme.raised);
    }
    // Threads ask for a pass when they are done; this one only keeps the status bar honest.
    ui.request_repaint_after(Duration::from_millis(250));
}

/// Nothing is here, and this is how something gets here.
pub(crate) fn empty(ui: &mut Ui, theme: &Theme, title: &str, what: &str, command: Option<&str>) {
    ui.add_space(24.0);
    ui.vertical_centered(|ui| {
        let width = ui.available_width().min(680.0);
        ui.set_max_width(width);
        ui.label(RichText::new(title).size(17.0).strong());
        ui.add_space(2.0);
        ui.label(RichText::new(what).color(theme.text_dim));
        if let Some(command) = command {
            ui.add_space(6.0);
            ui.allocate_ui(vec2(width, 30.0), |ui| command_line(ui, theme, command));
        }
    });
}

/// A command that one may copy; long ones wrap.
pub(crate) fn command_line(ui: &mut Ui, theme: &Theme, command: &str) {
    Frame::NONE
        .fill(theme.inset)
        .stroke(Stroke::new(1.0, theme.line))
        .corner_radius(4)
        .inner_margin(Margin::symmetric(12, 8))
        .show(ui, |ui| {
            ui.horizontal(|ui| {
                let width = ui.available_width() - 60.0;
                let text = egui::Label::new(RichText::new(command).monospace()).wrap();
                ui.scope(|ui| {
                    ui.set_max_width(width.max(80.0));
                    ui.add(text);
                });
                if ui.small_button("Copy").on_hover_text("Copy the command").clicked() {
                    ui.copy_text(command.to_owned());
                }
            });
        });
}

/// A titled surface that fills the width it is given.
pub(crate) fn card<R>(ui: &mut Ui, theme: &Theme, title: &str, add: impl FnOnce(&mut Ui) -> R) -> R {
    card_frame(theme)
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            if !title.is_empty() {
                caption(ui, theme, title);
            }
            add(ui)
        })
        .inner
}

/// The surface of a card.
pub(crate) fn card_frame(theme: &Theme) -> Frame {
    Frame::NONE
        .fill(theme.panel)
        .stroke(Stroke::new(1.0, theme.line))
        .corner_radius(6)
        .inner_margin(Margin::symmetric(14, 12))
}

/// The heading of a part.
pub(crate) fn caption(ui: &mut Ui, theme: &Theme, title: &str) {
    ui.label(RichText::new(title).size(12.0).strong().color(theme.text_dim));
}

/// Name and value on a line, aligned with the lines above and below.
pub(crate) fn facts(ui: &mut Ui, theme: &Theme, id: &str, rows: &[(&str, String)]) {
    let name_width = 92.0;
    for (name, value) in rows {
        ui.push_id((id, name), |ui| {
            ui.horizontal_top(|ui| {
                ui.spacing_mut().item_spacing.y = 2.0;
                let (rect, _) = ui.allocate_exact_size(vec2(name_width, 17.0), Sense::hover());
                ui.painter().text(
                    rect.left_top(),
                    egui::Align2::LEFT_TOP,
                    name,
                    egui::TextStyle::Body.resolve(ui.style()),
                    theme.text_dim,
                );
                ui.add(egui::Label::new(value).wrap());
            });
        });
    }
}

/// Text that goes somewhere.
pub(crate) fn link(ui: &mut Ui, theme: &Theme, text: &str) -> Response {
    let label = egui::Label::new(RichText::new(text).color(theme.accent)).sense(Sense::click()).extend();
    let response = ui.add(label).on_hover_cursor(egui::CursorIcon::PointingHand);
    response.widget_info(|| WidgetInfo::labeled(Role::Link, true, text));
    response
}

/// Text on one line from the left of `rect`, cut with an ellipsis where it does not fit.
pub(crate) fn one_line(ui: &Ui, rect: egui::Rect, text: &str, font: egui::FontId, color: Color32) {
    let mut job = egui::text::LayoutJob::simple_singleline(text.to_owned(), font, color);
    job.wrap = egui::text::TextWrapping::truncate_at_width(rect.width());
    let galley = ui.painter().layout_job(job);
    let at = egui::pos2(rect.left(), rect.center().y - galley.size().y / 2.0);
    ui.painter().with_clip_rect(rect.intersect(ui.clip_rect())).galley(at, galley, color);
}

/// A filled bar from the left of `rect`, as long as `share` of it.
pub(crate) fn bar(ui: &Ui, rect: egui::Rect, share: f32, color: Color32) {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let filled = egui::Rect::from_min_size(rect.min, vec2(rect.width() * share, rect.height()));
    ui.painter().rect_filled(filled, CornerRadius::same(2), color);
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in powers of 1,000, three digits.
pub(crate) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit < 5 {
        value /= 1_000.0;
        unit += 1;
    }
    let name = ["B", "kB", "MB", "GB", "TB", "PB"][unit];
    if unit == 0 { format!("{n} B") } else { format!("{} {name}", number(value)) }
}

/// About three significant digits, without needless zeros.
pub(crate) fn number(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 {
        "0".to_owned()
    } else if !x.is_finite() {
        "–".to_owned()
    } else if !(1e-3..1e7).contains(&size) {
        format!("{x:.1e}")
    } else if size >= 999.5 {
        let sign = if x < 0.0 { "-" } else { "" };
        format!("{sign}{}", grouped(size.round() as u64))
    } else if size >= 99.95 {
        format!("{x:.0}")
    } else if size >= 9.995 {
        format!("{x:.1}")
    } else if size >= 0.0995 {
        format!("{x:.2}")
    } else {
        format!("{x:.4}")
    }
}

/// A share as percent.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 {
        "0 %".to_owned()
    } else if percent < 0.01 {
        format!("{percent:.4} %")
    } else if percent < 1.0 {
        format!("{percent:.3} %")
    } else {
        format!("{percent:.1} %")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (x, expected) in [
            (0.0, "0"),
            (f64::NAN, "–"),
            (1.0, "1.00"),
            (0.034_2, "0.0342"),
            (0.25, "0.25"),
            (41.23, "41.2"),
            (123.4, "123"),
            (-1_234.0, "-1,234"),
            (65_504.0, "65,504"),
            (1.5e8, "1.5e8"),
            (3e-5, "3.0e-5"),
        ] {
            assert_eq!(number(x), expected);
        }
    }

    #[test]
    fn counts_bytes_and_shares() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_000), "1.00 kB");
        assert_eq!(bytes(256_000_000), "256 MB");
        assert_eq!(percent(0.0), "0 %");
        assert_eq!(percent(0.000_012), "0.0012 %");
        assert_eq!(percent(0.034), "3.4 %");
    }
}
