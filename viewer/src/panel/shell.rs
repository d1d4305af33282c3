//! What stands above and below every view?

use egui::{Frame, Key, KeyboardShortcut, Margin, ModifierNames, Panel, RichText, Ui};

use super::Cx;
use crate::command::{Command, TABLE};
use crate::layout::{Layout, Preset};
use crate::loader::Opening;
use crate::state::{History, Item, View};
use crate::theme::ThemeChoice;
use crate::widget;

/// Name, way back, tabs, tools.
pub(crate) fn top_bar(ui: &mut Ui, cx: &mut Cx<'_>, history: &History, layout: &Layout) {
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
                arrangements(ui, cx, layout);
                ui.add_space(6.0);
                pins(ui, cx);
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

/// The choice of an arrangement of panes.
fn arrangements(ui: &mut Ui, cx: &mut Cx<'_>, layout: &Layout) {
    let now = Preset::ALL.into_iter().find(|preset| layout.is_preset(*preset));
    let title = now.map_or("Panes: your own", Preset::title);
    let combo = egui::ComboBox::from_id_salt("panes").selected_text(title).width(170.0).show_ui(ui, |ui| {
        for preset in Preset::ALL {
            let command = Command::Arrange(preset);
            let text = with_keys(ui, preset.title(), &command);
            if ui.selectable_label(now == Some(preset), text).clicked() {
                cx.emit(command);
            }
        }
    });
    combo.response.accessible_name("Panes");
}

/// What is pinned, each with the color and the letter that it has everywhere.
fn pins(ui: &mut Ui, cx: &mut Cx<'_>) {
    let theme = cx.theme;
    for (i, pin) in cx.focus.pins.iter().enumerate() {
        let text = format!("{} {}", PIN_SIGNS[i % PIN_SIGNS.len()], pin_title(pin));
        let button = ui.add(egui::Button::new(RichText::new(&text).color(theme.series[i % theme.series.len()])));
        let button = button.on_hover_text("Pinned: click to go there, right-click to take the pin out");
        if button.secondary_clicked() {
            cx.out.push(Command::PinItem(pin.clone()));
        } else if button.clicked() {
            cx.out.push(Command::OpenItem(pin.clone()));
        }
    }
}

/// Signs of pins beside their colors, which alone do not tell them apart for everyone.
pub(crate) const PIN_SIGNS: [&str; 5] = ["●", "▲", "■", "◆", "█"];

fn pin_title(pin: &Item) -> String {
    match pin {
        Item::Feature { feature, .. } => format!("feature {feature}"),
        Item::Expert { layer, expert } => format!("L{layer} expert {expert}"),
        Item::Row(id) => format!("row {id}"),
        Item::Token { doc, token } => format!("doc {doc} token {token}"),
    }
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
    if matches!(focus.view, View::Reader | View::Grid | View::Routing | View::Rows) {
        parts.push(format!("document {} of {}", focus.doc.unwrap_or(0), widget::grouped(source.run.n_documents())));
        if let Some(token) = focus.token {
            parts.push(format!("token {token}"));
        }
    }
    if let (Some(layer), true) = (focus.layer, !matches!(focus.view, View::Overview | View::Features)) {
        parts.push(match focus.expert {
            Some(expert) => format!("layer {layer}, expert {expert}"),
            None => format!("layer {layer}"),
        });
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
