//! What was looked up for a token: its input embedding, and its row in every layer?

use egui::{Align2, FontId, Rect, RichText, Role, Sense, Ui, WidgetInfo, pos2, vec2};

use super::{Cx, scrolled};
use crate::command::Command;
use crate::query::{LayerLookup, Lookup, LookupQuery, Nearest, NearestQuery, OccurrencesQuery};
use crate::state::{ColorBy, Metric, View};
use crate::widget::{self, bar, grouped, number, percent, plain};

const ROW: f32 = 21.0;
/// Titles of the columns of the strip.
const COLUMNS: [(&str, &str); 6] = [
    ("row", "norm of the token's row in the table, times √d_ple"),
    ("in context", "norm of the row and the projected input embedding together"),
    ("gates open", "share of the gates above 0: what the layer lets through of the row"),
    ("adds", "norm of what is added to the residual stream, after its norm"),
    ("share", "what is added, relative to the residual stream behind the layer"),
    ("cosine", "between what is added and the residual stream behind the layer"),
];

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let (doc, token) = (super::reader::doc(cx.focus), cx.focus.token);
    match (cx.focus.row, token) {
        (Some(row), _) => scrolled(ui, cx, ("row", row), |ui, cx| of_vocabulary(ui, cx, row)),
        (None, Some(token)) => {
            let got = cx.loader.get(&LookupQuery { doc, token });
            scrolled(ui, cx, "lookup", |ui, cx| {
                widget::answered(ui, cx, "embedding lookups", got, |ui, cx, lookup| {
                    header(ui, cx, lookup.token_id, &lookup.text, Some((doc, token)));
                    strip(ui, cx, lookup);
                    ui.add_space(6.0);
                    nearest(ui, cx, lookup.token_id);
                    occurrences(ui, cx, lookup.token_id);
                });
            });
        }
        (None, None) => {
            widget::empty(
                ui,
                cx.theme,
                "No token chosen",
                "Click a token in the reader, or press → here for the first one. Its rows of the embedding tables are \
                 shown layer by layer; row 5765 finds one by its number (Ctrl+K).",
                None,
            );
            ui.vertical_centered(|ui| {
                if ui.button("Choose the first token").clicked() {
                    cx.emit(Command::SelectToken(1));
                }
            });
        }
    }
}

fn of_vocabulary(ui: &mut Ui, cx: &mut Cx<'_>, row: u32) {
    let got = cx.loader.get(&OccurrencesQuery { token_id: row });
    let text = got.value.as_ref().filter(|_| !got.stale).and_then(|found| {
        let first = found.shown.first()?;
        first.toks.get(first.at).map(|tok| tok.text.to_string())
    });
    header(ui, cx, row, &text.unwrap_or_else(|| format!("#{row}")), None);
    nearest(ui, cx, row);
    occurrences(ui, cx, row);
}

fn header(ui: &mut Ui, cx: &mut Cx<'_>, id: u32, text: &str, place: Option<(u64, u64)>) {
    let theme = cx.theme;
    ui.horizontal_wrapped(|ui| {
        ui.label(RichText::new(plain(text)).monospace().size(22.0));
        ui.label(RichText::new(format!("row {id}")).size(15.0).color(theme.text_dim));
        let bytes: Vec<String> = text.bytes().take(16).map(|byte| format!("{byte:02X}")).collect();
        ui.label(RichText::new(format!("bytes {}", bytes.join(" "))).color(theme.text_dim));
        match place {
            Some((doc, token)) => {
                let note = format!("at token {token} of document {doc}");
                if widget::link(ui, theme, &note).on_hover_text("Read it there").clicked() {
                    cx.emit(Command::OpenDocument { doc, token: Some(token) });
                }
            }
            None if cx.focus.token.is_some() && ui.button("Back to the selected token").clicked() => {
                cx.emit(Command::FollowToken);
            }
            None => {}
        }
    });
    ui.add_space(4.0);
}

/// The layers, one line each.
fn strip(ui: &mut Ui, cx: &mut Cx<'_>, lookup: &Lookup) {
    let theme = cx.theme;
    widget::card(ui, theme, "What each layer looked up, and what became of it", |ui| {
        let rows =
            if lookup.d_ple > 0 { format!("{} rows of {}", lookup.n_layers, lookup.d_ple) } else { String::new() };
        let mut facts = vec![format!("input embedding: 1 row of {}", grouped(lookup.d_model as u64))];
        if let Some(norm) = lookup.embed_norm {
            facts.push(format!("norm {}", number(f64::from(norm))));
        }
        if lookup.d_ple > 0 {
            // bf16, as Gemma's tables are published; a quantised table is smaller.
            let bytes = 2 * lookup.n_layers * lookup.d_ple;
            facts.push(format!("per-layer table: {rows}, {} from disk in bf16", widget::bytes(bytes as u64)));
        }
        ui.label(RichText::new(facts.join(" · ")).color(theme.text_dim));
        if lookup.d_ple == 0 {
            let text = "This model has no per-layer embeddings; Gemma 3n and Gemma 4 E2B and E4B have.";
            ui.label(RichText::new(text).color(theme.text_dim));
            return;
        }
        ui.add_space(4.0);
        table(ui, cx, lookup);
        if !lookup.missing.is_empty() {
            ui.add_space(4.0);
            let text = format!("Not recorded, and so not shown: {}", lookup.missing.join(", "));
            ui.label(RichText::new(text).size(12.0).color(theme.text_dim));
        }
        ui.horizontal(|ui| {
            if ui.button("Share of the residual, all tokens").clicked() {
                cx.emit(Command::UseMetric(Metric::PleShare));
                cx.emit(Command::Show(View::Grid));
            }
            if ui.button("Color the text by it").clicked() {
                cx.emit(Command::ColorBy(ColorBy::PleShare));
                cx.emit(Command::Show(View::Reader));
            }
        });
    });
}

fn table(ui: &mut Ui, cx: &mut Cx<'_>, lookup: &Lookup) {
    let theme = cx.theme;
    let of =
        |layer: &LayerLookup| [layer.row_norm, layer.input_norm, layer.open, layer.out_norm, layer.share, layer.cosine];
    // The scale of each column is its own largest value; shares of gates have one of their own.
    let mut most = [f32::MIN_POSITIVE; 6];
    for layer in &lookup.layers {
        for (most, value) in most.iter_mut().zip(of(layer)) {
            *most = most.max(value.unwrap_or(0.0).abs());
        }
    }
    most[2] = 1.0;
    ui.spacing_mut().item_spacing.y = 1.0;
    let width = ui.available_width();
    let step = ((width - 44.0) / COLUMNS.len() as f32).max(40.0);
    let (head, _) = ui.allocate_exact_size(vec2(width, ROW), Sense::hover());
    let small = FontId::proportional(11.5);
    for (i, (title, tip)) in COLUMNS.iter().enumerate() {
        let at = Rect::from_min_size(pos2(head.left() + 44.0 + i as f32 * step, head.top()), vec2(step, ROW));
        widget::one_line(ui, at, title, small.clone(), theme.text_dim);
        ui.interact(at, ui.scope_id().with(("column", i)), Sense::hover()).on_hover_text(*tip);
    }
    for layer in lookup.layers.iter().rev() {
        let (rect, response) = ui.allocate_exact_size(vec2(width, ROW), Sense::click());
        let chosen = cx.focus.layer == Some(layer.layer);
        response.widget_info(|| {
            let share = layer.share.map(|share| format!(", share {}", percent(f64::from(share)))).unwrap_or_default();
            WidgetInfo::selected(Role::Row, true, chosen, format!("embedding row of layer {}{share}", layer.layer))
        });
        if chosen || response.hovered() {
            ui.painter().rect_filled(rect, 3.0, if chosen { theme.selection } else { theme.hover });
        }
        let title = format!("L{}", layer.layer);
        let font = FontId::proportional(12.5);
        ui.painter().text(rect.left_center() + vec2(4.0, 0.0), Align2::LEFT_CENTER, title, font.clone(), theme.text);
        for (i, (value, most)) in of(layer).into_iter().zip(most).enumerate() {
            let at =
                Rect::from_min_size(pos2(rect.left() + 44.0 + i as f32 * step, rect.top()), vec2(step - 10.0, ROW));
            let text = match value {
                None => "–".to_owned(),
                Some(value) if i == 2 || i == 4 => percent(f64::from(value)),
                Some(value) => number(f64::from(value)),
            };
            widget::one_line(ui, at, &text, font.clone(), theme.text);
            if let Some(value) = value {
                let line = Rect::from_min_size(pos2(at.left(), at.bottom() - 3.0), vec2(at.width(), 2.0));
                let color = if value < 0.0 { theme.negative } else { theme.accent };
                bar(ui, line, value.abs() / most, color);
            }
        }
        if response.clicked() {
            cx.emit(Command::UseLayer(layer.layer));
        }
    }
}

fn nearest(ui: &mut Ui, cx: &mut Cx<'_>, id: u32) {
    let theme = cx.theme;
    widget::card(ui, theme, "Nearest rows, layer by layer", |ui| {
        let got = cx.loader.get(&NearestQuery { token_id: id });
        if let Some(failure) = got.failure {
            // Often only that the tables were not recorded, which is no reason for a red frame.
            ui.label(RichText::new(&failure.message).color(theme.text_dim));
            if let Some(hint) = &failure.hint {
                ui.label(RichText::new(format!("Next: {hint}")).color(theme.text_dim));
            }
            return;
        }
        widget::answered(ui, cx, "nearest rows", got, neighbours);
    });
    ui.add_space(6.0);
}

fn neighbours(ui: &mut Ui, cx: &mut Cx<'_>, nearest: &Nearest) {
    let theme = cx.theme;
    let text = format!(
        "By cosine, among the {} tokens of the vocabulary that stand in {} tokens of the run. Rows that were not among \
         the nearest one layer below have a dot.",
        grouped(nearest.n_rows as u64),
        grouped(nearest.n_looked)
    );
    ui.label(RichText::new(text).size(12.0).color(theme.text_dim));
    ui.add_space(2.0);
    ui.spacing_mut().item_spacing.y = 1.0;
    for (i, place) in nearest.places.iter().enumerate().rev() {
        let title = place.layer.map_or_else(|| "input".to_owned(), |layer| format!("L{layer}"));
        let below = i.checked_sub(1).and_then(|below| nearest.places.get(below)).filter(|below| below.layer.is_some());
        ui.push_id(i, |ui| {
            ui.horizontal(|ui| {
                ui.spacing_mut().interact_size.y = ROW;
                let (rect, _) = ui.allocate_exact_size(vec2(40.0, ROW), Sense::hover());
                let color = if place.layer == cx.focus.layer { theme.text } else { theme.text_dim };
                let font = FontId::proportional(12.5);
                ui.painter().text(rect.left_center() + vec2(4.0, 0.0), Align2::LEFT_CENTER, title, font, color);
                let norm = RichText::new(number(f64::from(place.norm))).size(12.0).color(theme.text_dim);
                ui.label(norm).on_hover_text("Norm of its own row");
                for (id, text, cosine) in &place.rows {
                    // What does not fit on the line is left out: the nearest come first.
                    if ui.available_width() < 96.0 {
                        break;
                    }
                    let fresh = below.is_some_and(|below| !below.rows.iter().any(|(other, ..)| other == id));
                    let sign = if fresh { "● " } else { "" };
                    let label = format!("{sign}{} {cosine:.2}", plain(text));
                    let name =
                        format!("nearest row {id} {}", place.layer.map_or("input".to_owned(), |l| l.to_string()));
                    let text = RichText::new(label).monospace().size(12.0).color(theme.accent);
                    let label = egui::Label::new(text).sense(Sense::click()).extend();
                    let response = ui.add(label).on_hover_cursor(egui::CursorIcon::PointingHand);
                    response.widget_info(|| WidgetInfo::labeled(Role::Link, true, &name));
                    if response.on_hover_text(format!("row {id}: open it")).clicked() {
                        cx.emit(Command::OpenRow(*id));
                    }
                }
            });
        });
    }
}

fn occurrences(ui: &mut Ui, cx: &mut Cx<'_>, id: u32) {
    let theme = cx.theme;
    let got = cx.loader.get(&OccurrencesQuery { token_id: id });
    widget::answered(ui, cx, "occurrences", got, |ui, cx, found| {
        let title = format!("Where it stands: {} times in {} tokens", grouped(found.n), grouped(found.n_looked));
        widget::card(ui, theme, &title, |ui| super::expert::taken_list(ui, cx, "occurrence", &found.shown));
    });
}
