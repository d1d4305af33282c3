//! What stands above and below every view?

use egui::{Frame, Key, KeyboardShortcut, Margin, ModifierNames, Panel, RichText, Stroke, Ui};

use super::Cx;
use crate::command::{Command, TABLE};
use crate::loader::Opening;
use crate::state::{History, View};
use crate::theme::ThemeChoice;
use crate::widget;

/// Name, way back, tabs, tools.
pub(crate) fn top_bar(ui: &mut Ui, cx: &mut Cx<'_>, history: &History) {
    let theme = cx.theme;
    let frame = Frame::NONE.fill(theme.panel).inner_margin(Margin::symmetric(12, 7));
    Panel::top("top_bar").frame(frame).show(ui, |ui| {
        ui.horizontal(|ui| {
            let run = match cx.loader.opening() {
                Opening::Open(source) => Some(source.name.clone()),
                _ => None,
            };
            for (enabled, text, command, title) in [
                (history.can_go_back(), "←", Command::Back, "Back"),
                (history.can_go_forward(), "→", Command::Forward, "Forward"),
            ] {
                let button = ui.add_enabled(enabled, egui::Button::new(text).min_size(egui::vec2(28.0, 24.0)));
                let button = button.accessible_name(title).on_hover_text(with_keys(ui, title, &command));
                if button.clicked() {
                    cx.emit(command);
                }
            }
            ui.add_space(4.0);
            ui.label(RichText::new("Polariscope").strong().color(theme.text_dim));
            if let Some(run) = &run {
                ui.label(RichText::new(run).strong());
                ui.add_space(10.0);
                for view in View::ALL {
                    let on = cx.focus.view == view;
                    let command = Command::Show(view);
                    let tip = with_keys(ui, view.title(), &command);
                    if tab(ui, cx, view.title(), on).on_hover_text(tip).clicked() && !on {
                        cx.emit(command);
                    }
                }
            }
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                let keys =
                    ui.button("?").accessible_name("Keys").on_hover_text(with_keys(ui, "Keys", &Command::CheatSheet));
                if keys.clicked() {
                    cx.emit(Command::CheatSheet);
                }
                if ui.button("Theme").on_hover_text(with_keys(ui, "Dark, light, paper", &Command::NextTheme)).clicked()
                {
                    cx.emit(Command::NextTheme);
                }
                if run.is_some()
                    && ui
                        .button("Copy link")
                        .on_hover_text(with_keys(ui, "A link that restores this view", &Command::CopyLink))
                        .clicked()
                {
                    cx.emit(Command::CopyLink);
                }
                if ui
                    .button("Find…")
                    .on_hover_text(with_keys(ui, "Commands, features, links", &Command::Palette))
                    .clicked()
                {
                    cx.emit(Command::Palette);
                }
            });
        });
    });
}

/// A tab: the current one is underlined, so that color alone does not tell.
fn tab(ui: &mut Ui, cx: &Cx<'_>, title: &str, on: bool) -> egui::Response {
    let theme = cx.theme;
    let text = RichText::new(title).color(if on { theme.text } else { theme.text_dim });
    let button = egui::Button::new(text).frame(false).selected(false);
    let response = ui.add(button);
    if on {
        let rect = response.rect;
        ui.painter().hline(rect.x_range(), rect.bottom() + 2.0, Stroke::new(2.0, theme.accent));
    }
    response
}

/// What is loading, what went wrong, where one is.
pub(crate) fn status_bar(ui: &mut Ui, cx: &mut Cx<'_>, choice: ThemeChoice) {
    let theme = cx.theme;
    let frame = Frame::NONE.fill(theme.panel).inner_margin(Margin::symmetric(12, 5));
    Panel::bottom("status_bar").frame(frame).show(ui, |ui| {
        ui.horizontal(|ui| {
            ui.spacing_mut().interact_size.y = 18.0;
            // From the right, so that a long sentence at the left takes what is left, and no more.
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                let cache = format!("{choice} · cache {}", widget::bytes(cx.loader.cached_bytes() as u64));
                ui.label(small(cache).color(theme.text_dim));
                if let Some(place) = place(cx) {
                    ui.separator();
                    ui.label(small(place));
                }
                ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| what_goes_on(ui, cx));
            });
        });
    });
}

fn small(text: String) -> RichText {
    RichText::new(text).size(12.0)
}

fn what_goes_on(ui: &mut Ui, cx: &mut Cx<'_>) {
    let theme = cx.theme;
    let failed = cx.loader.n_failed();
    if failed > 0 {
        ui.label(small(format!("▲ {failed} could not be read")).color(theme.error));
        if ui.small_button("Try again").clicked() {
            cx.emit(Command::Reload);
        }
    }
    if let Some(notice) = cx.ui.notice.clone() {
        if ui.small_button("Dismiss").clicked() {
            cx.ui.notice = None;
        }
        let (color, sign) = if notice.warning { (theme.warning, "▲ ") } else { (theme.text, "") };
        let text = format!("{sign}{}", notice.text);
        ui.add(egui::Label::new(small(text).color(color)).truncate()).on_hover_text(&notice.text);
    } else if failed == 0 {
        let busy = cx.loader.busy();
        let text = if busy.is_empty() { "Ready".to_owned() } else { format!("Loading {}…", busy.join(", ")) };
        ui.label(small(text).color(theme.text_dim));
    }
}

/// Where one is, in words.
fn place(cx: &Cx<'_>) -> Option<String> {
    let source = cx.loader.source()?;
    let focus = cx.focus;
    let mut parts = Vec::new();
    if let (Some(table), View::Features | View::Feature) = (cx.table(), focus.view) {
        parts.push(table);
    }
    if let (Some(feature), true) = (focus.feature, focus.view != View::Overview) {
        parts.push(format!("feature {feature}"));
    }
    if focus.view == View::Reader {
        parts.push(format!("document {} of {}", focus.doc.unwrap_or(0), widget::grouped(source.run.n_documents())));
        if let Some(token) = focus.token {
            parts.push(format!("token {token}"));
        }
    }
    if parts.is_empty() {
        parts.push(format!("{} tokens", widget::grouped(source.run.n_tokens())));
    }
    Some(parts.join(" · "))
}

/// A title with the keys of its command, as the platform writes them.
pub(crate) fn with_keys(ctx: &egui::Context, title: &str, command: &Command) -> String {
    match keys(ctx, command) {
        Some(keys) => format!("{title} ({keys})"),
        None => title.to_owned(),
    }
}

/// The first shortcut of a command, as the platform writes it.
pub(crate) fn keys(ctx: &egui::Context, command: &Command) -> Option<String> {
    let entry = TABLE.iter().find(|entry| entry.command == *command)?;
    entry.keys.first().map(|shortcut| shortcut_text(ctx, *shortcut))
}

/// As on the keys themselves, with signs that the bundled fonts have.
pub(crate) fn shortcut_text(ctx: &egui::Context, shortcut: KeyboardShortcut) -> String {
    let mac = ctx.os().is_mac();
    let names = if mac { ModifierNames::SYMBOLS } else { ModifierNames::NAMES };
    let mut text = names.format(&shortcut.modifiers, mac);
    if !text.is_empty() {
        text.push_str(names.concat);
    }
    text.push_str(match shortcut.logical_key {
        Key::ArrowDown => "↓",
        Key::ArrowUp => "↑",
        Key::ArrowLeft => "←",
        Key::ArrowRight => "→",
        key => key.symbol_or_name(),
    });
    text
}
