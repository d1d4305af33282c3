//! How does one reach anything by typing?

use std::path::PathBuf;

use egui::{Id, Key, Modal, Modifiers, RichText, Sense, TextEdit, Ui, vec2};

use super::Cx;
use crate::command::{Command, TABLE, When};
use crate::link;
use crate::state::Item;
use crate::theme::ThemeChoice;

/// Lines that are shown at most.
const LINES: usize = 12;

/// What is typed, and which line is chosen.
#[derive(Debug, Default)]
pub(crate) struct Palette {
    pub(crate) text: String,
    pub(crate) chosen: usize,
    opened: bool,
}

/// A line of the palette.
struct Line {
    title: String,
    keys: String,
    command: Command,
}

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>, allowed: impl Fn(When) -> bool) {
    let Some(mut palette) = cx.ui.palette.take() else { return };
    let theme = cx.theme;
    let lines = lines(ui, cx, &palette.text, allowed);
    palette.chosen = palette.chosen.min(lines.len().saturating_sub(1));
    let (up, down, enter) = ui.input_mut(|input| {
        (
            input.consume_key(Modifiers::NONE, Key::ArrowUp),
            input.consume_key(Modifiers::NONE, Key::ArrowDown),
            input.consume_key(Modifiers::NONE, Key::Enter),
        )
    });
    if down {
        palette.chosen = (palette.chosen + 1).min(lines.len().saturating_sub(1));
    }
    if up {
        palette.chosen = palette.chosen.saturating_sub(1);
    }
    let mut run = enter.then_some(palette.chosen);
    // Under the top bar, so that it does not move while lines come and go.
    let area = Modal::default_area(Id::unique("palette")).anchor(egui::Align2::CENTER_TOP, [0.0, 64.0]);
    let response = Modal::new(Id::unique("palette")).area(area).show(ui.ctx(), |ui| {
        ui.set_width((ui.ctx().content_rect().width() - 60.0).clamp(200.0, 620.0));
        let field = ui.add(
            TextEdit::singleline(&mut palette.text)
                .hint_text(
                    "A command, a feature number, d 12 for a document, e 3:7 for an expert, row 5765, a link, a folder",
                )
                .desired_width(f32::INFINITY)
                .font(egui::FontId::proportional(16.0)),
        );
        let field = field.accessible_name("Find");
        if !palette.opened {
            field.request_focus();
            palette.opened = true;
        }
        if field.changed() {
            palette.chosen = 0;
        }
        ui.add_space(4.0);
        for (i, line) in lines.iter().enumerate() {
            let (rect, row) = ui.allocate_exact_size(vec2(ui.available_width(), 26.0), Sense::click());
            row.widget_info(|| egui::WidgetInfo::selected(egui::Role::Button, true, i == palette.chosen, &line.title));
            if i == palette.chosen || row.hovered() {
                let fill = if i == palette.chosen { theme.selection } else { theme.hover };
                ui.painter().rect_filled(rect, 4.0, fill);
            }
            let font = egui::TextStyle::Body.resolve(ui.style());
            let middle = rect.center().y;
            ui.painter().text(
                egui::pos2(rect.left() + 8.0, middle),
                egui::Align2::LEFT_CENTER,
                &line.title,
                font.clone(),
                theme.text,
            );
            ui.painter().text(
                egui::pos2(rect.right() - 8.0, middle),
                egui::Align2::RIGHT_CENTER,
                &line.keys,
                font,
                theme.text_dim,
            );
            if row.clicked() {
                run = Some(i);
            }
        }
        if lines.is_empty() {
            ui.label(RichText::new("Nothing of that name").color(theme.text_dim));
        }
    });
    match run.and_then(|i| lines.into_iter().nth(i)) {
        Some(line) => cx.emit(line.command),
        None if response.should_close() => {}
        None => cx.ui.palette = Some(palette),
    }
}

/// What the text may mean, most specific first.
fn lines(ctx: &egui::Context, cx: &Cx<'_>, text: &str, allowed: impl Fn(When) -> bool) -> Vec<Line> {
    let text = text.trim();
    let mut lines = Vec::new();
    let mut add = |title: String, command: Command| {
        let keys = super::shell::keys(ctx, &command).unwrap_or_default();
        lines.push(Line { title, keys, command });
    };
    if text.starts_with(link::SCHEME) {
        add("Follow the link".to_owned(), Command::FollowLink(text.to_owned()));
    }
    if text.contains(['/', '\\']) && !text.starts_with(link::SCHEME) {
        add(format!("Open the run in {text}"), Command::OpenRun(PathBuf::from(text)));
    }
    let open = cx.loader.source();
    if let Some(source) = open {
        let number = |prefix: &str| {
            let rest = text.strip_prefix(prefix)?.trim();
            rest.parse::<u64>().ok()
        };
        let feature = number("f ").or_else(|| number("#")).or_else(|| number("feature ")).or_else(|| number(""));
        if let Some(feature) = feature.and_then(|n| u32::try_from(n).ok()).filter(|_| !source.tables.is_empty()) {
            add(format!("Open feature {feature}"), Command::OpenFeature(feature));
        }
        let doc = number("d ").or_else(|| number("document ")).or_else(|| number(""));
        if let Some(doc) = doc.filter(|doc| *doc < source.run.n_documents()) {
            add(format!("Open document {doc}"), Command::OpenDocument { doc, token: None });
        }
    }
    if let Some(source) = open {
        let pair = |prefix: &str| text.strip_prefix(prefix)?.trim().split_once([':', '.', ' ']);
        let expert = pair("e ").or_else(|| pair("expert "));
        if let Some((layer, expert)) = expert
            && let (Ok(layer), Ok(expert)) = (layer.parse(), expert.trim().parse())
            && source.run.routing_info().is_ok()
        {
            add(format!("Open expert {expert} of layer {layer}"), Command::OpenItem(Item::Expert { layer, expert }));
        }
        let row = text.strip_prefix("row ").or_else(|| text.strip_prefix("r "));
        if let Some(id) = row.and_then(|row| row.trim().parse().ok()) {
            add(format!("Embeddings of row {id}"), Command::OpenRow(id));
        }
        if text.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("select ")) {
            add("Ask this in SQL".to_owned(), Command::RunSql(text.to_owned()));
        }
    }
    let needle = text.to_lowercase();
    let fits = |title: &str| needle.split_whitespace().all(|word| title.to_lowercase().contains(word));
    for entry in TABLE.iter().filter(|entry| allowed(entry.when) && entry.command != Command::Palette) {
        if fits(entry.title) {
            add(entry.title.to_owned(), entry.command.clone());
        }
    }
    if let Some(source) = open {
        for table in &source.tables {
            let title = format!("Features of {table}");
            if fits(&title) {
                add(title, Command::UseTable(table.clone()));
            }
        }
    }
    for choice in [ThemeChoice::Dark, ThemeChoice::Light, ThemeChoice::Paper, ThemeChoice::System] {
        let title = format!("Theme: {choice}");
        if !needle.is_empty() && fits(&title) {
            add(title, Command::UseTheme(choice));
        }
    }
    lines.truncate(LINES);
    lines
}
