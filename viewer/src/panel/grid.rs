//! What happens to each token, layer by layer?

use std::hash::{DefaultHasher, Hash, Hasher};

use egui::{RichText, ScrollArea, Ui, vec2};

use super::{Cx, Hover};
use crate::command::Command;
use crate::query::{Grid, GridQuery, Passage, PassageQuery};
use crate::state::Metric;
use crate::widget::{
    self, Axis, Breaks, Chart, Heatmap, Mark, Pool, Series, TokenText, grouped, number, plain, spread,
};

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let Some(source) = cx.source() else { return };
    if source.run.n_documents() == 0 {
        widget::empty(ui, cx.theme, "No documents", "The run holds no text yet; `polariscope record` fills it.", None);
        return;
    }
    let query = query(cx, cx.focus.metric);
    let passage = cx.loader.get(&PassageQuery { doc: query.doc, page: query.page });
    let passage = passage.value.filter(|_| !passage.stale);
    let got = cx.loader.get(&query);
    let grid = got.value.clone().filter(|_| !got.stale && got.failure.is_none());
    toolbar(ui, cx, grid.as_deref());
    ui.add_space(4.0);
    widget::answered(ui, cx, "grid", got, |ui, cx, grid| {
        let passage = passage.as_deref();
        let height = (ui.available_height() * 0.56).max(120.0);
        map(ui, cx, grid, passage, version(&query, grid), height);
        ui.add_space(6.0);
        let room = ui.available_size();
        if room.x > 760.0 && room.y > 120.0 && grid.rows.len() > 1 {
            let side = (room.x * 0.36).min(460.0);
            ui.horizontal_top(|ui| {
                ui.allocate_ui_with_layout(
                    vec2(room.x - side - 20.0, room.y),
                    egui::Layout::top_down(egui::Align::Min),
                    |ui| text(ui, cx, grid, passage),
                );
                ui.allocate_ui_with_layout(vec2(side, room.y), egui::Layout::top_down(egui::Align::Min), |ui| {
                    by_layer(ui, cx, grid);
                });
            });
        } else {
            text(ui, cx, grid, passage);
        }
    });
}

/// The question for a quantity on the page that is looked at.
pub(super) fn query(cx: &Cx<'_>, metric: Metric) -> GridQuery {
    GridQuery {
        doc: super::reader::doc(cx.focus),
        page: super::reader::page(cx.focus),
        metric,
        expert: cx.focus.expert.filter(|_| metric == Metric::Expert),
    }
}

/// Another number for other values: of the question, and of when it was answered.
pub(super) fn version<Q: std::fmt::Debug, T>(query: &Q, answer: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{query:?}").hash(&mut hasher);
    std::ptr::from_ref(answer).addr().hash(&mut hasher);
    hasher.finish()
}

fn toolbar(ui: &mut Ui, cx: &mut Cx<'_>, grid: Option<&Grid>) {
    let theme = cx.theme;
    ui.horizontal_wrapped(|ui| {
        let now = cx.focus.metric;
        let combo = egui::ComboBox::from_id_salt("metric").selected_text(now.title()).width(290.0).show_ui(ui, |ui| {
            for metric in Metric::ALL {
                if ui.selectable_label(metric == now, metric.title()).clicked() {
                    cx.emit(Command::UseMetric(metric));
                }
            }
        });
        let tip = super::shell::with_keys(ui, "What the grid shows", &Command::NextMetric);
        combo.response.accessible_name("Quantity").on_hover_text(tip);
        if now == Metric::Expert {
            let text = match cx.focus.expert {
                Some(expert) => format!("expert {expert}"),
                None => "choose an expert in Routing".to_owned(),
            };
            ui.label(RichText::new(text).color(theme.text_dim));
        }
        let Some(grid) = grid else { return };
        let end = grid.first + grid.n_tokens as u64;
        let text = format!(
            "document {}, tokens {} to {}",
            super::reader::doc(cx.focus),
            grouped(grid.first),
            grouped(end.saturating_sub(1))
        );
        ui.label(RichText::new(text).color(theme.text_dim));
        if grid.n_tokens as f32 > ui.max_rect().width() - 60.0 {
            let (title, other) = match cx.ui.pool {
                Pool::Strongest => ("Strongest of a pixel's tokens", Pool::Mean),
                Pool::Mean => ("Mean of a pixel's tokens", Pool::Strongest),
            };
            let tip = "Several tokens share a pixel: show the strongest of them, or their mean";
            if ui.small_button(title).on_hover_text(tip).clicked() {
                cx.ui.pool = other;
            }
        }
        if let Some((low, high)) = range(grid) {
            // One thing, which the line is not broken within.
            ui.allocate_ui_with_layout(vec2(200.0, 20.0), egui::Layout::left_to_right(egui::Align::Center), |ui| {
                super::feature::gradient(ui, cx, &number(f64::from(low)), &number(f64::from(high)));
            });
        }
    });
}

/// The scale: without special tokens and the strongest hundredth.
fn range(grid: &Grid) -> Option<(f32, f32)> {
    let (low, high) = spread(grid.ordinary())?;
    // What cannot be negative begins at nothing, unless all of it is far from nothing.
    Some(if low > 0.0 && low < high * 0.2 { (0.0, high) } else { (low, high) })
}

fn map(ui: &mut Ui, cx: &mut Cx<'_>, grid: &Grid, passage: Option<&Passage>, version: u64, height: f32) {
    let Some(range) = range(grid) else {
        let (title, what) = match cx.focus.metric {
            Metric::Expert => ("No expert chosen", "Choose one in Routing; its weight at every token is shown here."),
            _ => ("Nothing to show", "This quantity is nowhere above zero on this page."),
        };
        widget::empty(ui, cx.theme, title, what, None);
        return;
    };
    let selected_token = cx.focus.token.and_then(|token| token.checked_sub(grid.first)).map(|token| token as usize);
    let row = cx.focus.layer.and_then(|layer| grid.row_of(layer));
    let hovered = cx.ui.hovered;
    let hovered = hovered.token.and_then(|token| token.checked_sub(grid.first)).map(|token| token as usize);
    let hovered =
        hovered.map(|token| (cx.ui.hovered.layer.and_then(|layer| grid.row_of(layer)).or(row).unwrap_or(0), token));
    let metric = cx.focus.metric;
    let about = |(row, token): (usize, usize)| {
        let text = passage.and_then(|passage| passage.toks.get(token)).map(|tok| plain(&tok.text)).unwrap_or_default();
        let title = grid.rows.get(row).map(|row| row.title.clone()).unwrap_or_default();
        let value = grid.value(row, token);
        let mut lines = vec![
            format!("{title}, token {} {text}", grid.first + token as u64),
            format!("{}: {}", metric.title(), if value.is_nan() { "–".to_owned() } else { number(f64::from(value)) }),
        ];
        if grid.special.get(token).copied().unwrap_or(false) {
            lines.push("special token: not part of the scale".to_owned());
        }
        if let Some(table) = grid.rows.get(row).and_then(|row| row.table.as_ref()) {
            lines.push(format!("table {table}"));
        }
        lines
    };
    let map = Heatmap {
        theme: cx.theme,
        name: "tokens by layers",
        n_rows: grid.rows.len(),
        n_cols: grid.n_tokens,
        values: &grid.values,
        version,
        range,
        pool: cx.ui.pool,
        selected: row.zip(selected_token),
        hovered,
        row_title: &|row| grid.rows.get(row).map(|row| row.title.clone()).unwrap_or_default(),
        about: &about,
        column_title: None,
        height,
    }
    .show(ui);
    if let Some((row, token)) = map.hovered {
        let token = grid.first + token as u64;
        let of = grid.rows.get(row);
        let layer = of.and_then(|row| row.layer);
        cx.ui.hovering = Hover { token: Some(token), layer, expert: None };
        if map.response.clicked() {
            if let Some(table) = of.and_then(|row| row.table.clone()).filter(|table| Some(table) != cx.table().as_ref())
            {
                cx.emit(Command::SelectToken(token));
                cx.emit(Command::UseTable(table));
                cx.emit(Command::Show(crate::state::View::Reader));
            } else if let Some(layer) = layer {
                cx.emit(Command::SelectCell { token, layer });
            }
        }
    }
}

/// The selected token through the layers, beside the mean of the page.
fn by_layer(ui: &mut Ui, cx: &Cx<'_>, grid: &Grid) {
    let theme = cx.theme;
    let layers: Vec<(usize, usize)> =
        grid.rows.iter().enumerate().filter_map(|(row, of)| Some((row, of.layer?))).collect();
    let mean = |row: usize| {
        let values = (0..grid.n_tokens).filter(|token| !grid.special.get(*token).copied().unwrap_or(false));
        let values: Vec<f64> =
            values.map(|token| f64::from(grid.value(row, token))).filter(|v| v.is_finite()).collect();
        values.iter().sum::<f64>() / values.len().max(1) as f64
    };
    let page: Vec<(f64, f64)> = layers.iter().map(|(row, layer)| (*layer as f64, mean(*row))).collect();
    let token = cx.focus.token.and_then(|token| token.checked_sub(grid.first)).map(|token| token as usize);
    let one: Vec<(f64, f64)> = token.map_or_else(Vec::new, |token| {
        let points = layers.iter().map(|(row, layer)| (*layer as f64, f64::from(grid.value(*row, token))));
        points.filter(|(_, value)| value.is_finite()).collect()
    });
    let mut series = vec![Series { name: "mean of the page", points: &page, color: theme.series[6], mark: Mark::Dots }];
    let name = token.map(|token| format!("token {}", grid.first + token as u64)).unwrap_or_default();
    if !one.is_empty() {
        series.push(Series { name: &name, points: &one, color: theme.accent, mark: Mark::Dots });
    }
    Chart {
        theme,
        name: "By layer",
        x: Axis { label: "layer", whole: true, ..Axis::default() },
        y: Axis { label: cx.focus.metric.title(), zero: true, ..Axis::default() },
        series: &series,
        height: ui.available_height().clamp(110.0, 240.0),
    }
    .show(ui);
}

/// The text, colored by the layer that is looked at.
fn text(ui: &mut Ui, cx: &mut Cx<'_>, grid: &Grid, passage: Option<&Passage>) {
    let Some(passage) = passage else { return };
    let theme = cx.theme;
    let row = cx.focus.layer.and_then(|layer| grid.row_of(layer));
    let shown = row.unwrap_or(grid.rows.len().saturating_sub(1));
    let title = grid.rows.get(shown).map(|row| row.title.clone()).unwrap_or_default();
    let caption = match row {
        Some(_) => format!("The text, colored by {title}"),
        None => format!("The text, colored by {title}: ↑ and ↓ choose a layer, ← and → a token"),
    };
    widget::caption(ui, theme, &caption);
    let range = range(grid).unwrap_or((0.0, 1.0));
    let selected = cx.focus.token.and_then(|token| token.checked_sub(grid.first)).map(|token| token as usize);
    ScrollArea::vertical().id_salt(("grid_text", passage.doc, passage.first)).auto_shrink(false).show(ui, |ui| {
        // Room for the outline of what is selected.
        ui.add_space(4.0);
        let fill = |token: usize| {
            let value = grid.value(shown, token);
            let t = (value - range.0) / (range.1 - range.0).max(f32::MIN_POSITIVE);
            (t > 0.0).then(|| theme.heat(t))
        };
        let shown = TokenText {
            theme,
            toks: &passage.toks,
            fill: &fill,
            selected,
            marked: cx.ui.hovered.token.and_then(|token| token.checked_sub(grid.first)).map(|token| token as usize),
            size: 13.0,
            spaces: cx.ui.spaces,
            breaks: Breaks::Line,
            label: "text under the grid",
        }
        .show(ui);
        if let Some(token) = shown.hovered {
            let token = grid.first + token as u64;
            cx.ui.hovering = Hover { token: Some(token), layer: cx.focus.layer, expert: None };
            if shown.response.clicked() {
                cx.emit(Command::SelectToken(token));
            }
        }
    });
}
