//! Which features are there?

use std::sync::Arc;

use egui::{Align2, FontId, Rect, RichText, Role, Sense, Stroke, TextEdit, Ui, WidgetInfo, pos2, vec2};

use super::{Cx, order_query};
use crate::command::Command;
use crate::query::{Order, RowDetail, RowsQuery};
use crate::state::{Item, SortBy};
use crate::theme::{Theme, text_on};
use crate::widget::{self, Breaks, Spaces, VirtualRows, grouped, number, percent, sparkline, visible};

/// Rows whose details are asked for together.
const PAGE: u64 = 32;
const ROW_HEIGHT: f32 = 26.0;
/// Below this width of the example column, others are left out.
const MIN_EXAMPLE: f32 = 260.0;

/// A column: what it is, how wide, and whether its text stands at the right.
#[derive(Clone, Copy, PartialEq)]
enum Column {
    Sorted(SortBy),
    Histogram,
    Example,
    Logits,
}

const COLUMNS: [(Column, f32); 8] = [
    (Column::Sorted(SortBy::Id), 72.0),
    (Column::Sorted(SortBy::Density), 96.0),
    (Column::Sorted(SortBy::MeanAct), 78.0),
    (Column::Sorted(SortBy::MaxAct), 96.0),
    (Column::Sorted(SortBy::DecoderNorm), 78.0),
    (Column::Histogram, 84.0),
    // Takes what is left.
    (Column::Example, 0.0),
    (Column::Logits, 210.0),
];

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Sorted(by) => by.title(),
            Self::Histogram => "Activations",
            Self::Example => "Strongest example",
            Self::Logits => "Label, or what it promotes",
        }
    }

    fn at_right(self) -> bool {
        matches!(self, Self::Sorted(_))
    }
}

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let Some(query) = order_query(cx.focus, cx.loader) else {
        super::no_features(ui, cx);
        return;
    };
    let got = cx.loader.get(&query);
    toolbar(ui, cx, got.value.as_deref(), got.stale);
    widget::answered(ui, cx, "feature table", got, |ui, cx, order| {
        if order.features.is_empty() {
            let text = format!("No feature fits “{}”.", cx.focus.filter.trim());
            widget::empty(
                ui,
                cx.theme,
                &text,
                "Text is looked for where words begin in the examples of each feature; *text anywhere. logit:rain looks into what features promote, label:rain into their labels; density<0.001, max>5 and #12 are understood too.",
                None,
            );
            return;
        }
        table(ui, cx, order);
    });
}

fn toolbar(ui: &mut Ui, cx: &mut Cx<'_>, order: Option<&Order>, stale: bool) {
    let theme = cx.theme;
    ui.horizontal(|ui| {
        let field = TextEdit::singleline(&mut cx.ui.filter)
            .hint_text("Filter: text in the examples, logit:rain, label:rain, density<0.001, max>5, #12")
            .desired_width((ui.available_width() * 0.6).clamp(120.0, 460.0))
            .margin(egui::Margin::symmetric(8, 4));
        let field = ui.add(field).accessible_name("Filter");
        if std::mem::take(&mut cx.ui.focus_filter) {
            field.request_focus();
        }
        if field.changed() {
            let text = cx.ui.filter.clone();
            cx.emit(Command::Filter(text));
        }
        if !cx.ui.filter.is_empty() && ui.button("Clear").clicked() {
            cx.emit(Command::Filter(String::new()));
        }
        if let Some(order) = order {
            let (shown, all) = (order.features.len() as u64, order.stats.feature.len() as u64);
            let text = if shown == all {
                format!("{} features", grouped(all))
            } else {
                format!("{} of {} features pass the filter", grouped(shown), grouped(all))
            };
            let text = if stale { "searching…".to_owned() } else { text };
            ui.add(egui::Label::new(RichText::new(text).color(theme.text_dim)).truncate());
        }
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| tables(ui, cx));
    });
    ui.add_space(2.0);
}

/// The choice of a feature table, where there are several.
pub(super) fn tables(ui: &mut Ui, cx: &mut Cx<'_>) {
    let (Some(source), Some(now)) = (cx.source(), cx.table()) else { return };
    if source.tables.len() < 2 {
        ui.label(RichText::new(now).color(cx.theme.text_dim));
        return;
    }
    let response = egui::ComboBox::from_id_salt("table").selected_text(now.as_str()).show_ui(ui, |ui| {
        for table in &source.tables {
            if ui.selectable_label(*table == now, table).clicked() {
                cx.emit(Command::UseTable(table.clone()));
            }
        }
    });
    response.response.accessible_name("Feature table");
}

fn table(ui: &mut Ui, cx: &mut Cx<'_>, order: &Order) {
    let theme = cx.theme;
    ui.spacing_mut().item_spacing.y = 0.0;
    let (head, _) = ui.allocate_exact_size(vec2(ui.available_width() - 12.0, 24.0), Sense::hover());
    header(ui, cx, head, &order.needle);
    let total = order.features.len() as u64;
    let cursor = cx.focus.feature.and_then(|feature| order.row_of(feature));
    let Some(table) = cx.table() else { return };
    let notes = cx.notes();
    let rows =
        VirtualRows { id: ui.scope_id().with("features"), name: "features", total, row_height: ROW_HEIGHT, cursor };
    let mut pages: Vec<(u64, Option<Arc<Vec<RowDetail>>>)> = Vec::new();
    rows.show(ui, theme, |ui, row, rect| {
        let Some(&feature) = order.features.get(row as usize) else { return };
        let page = row / PAGE;
        if pages.last().is_none_or(|(last, _)| *last != page) {
            let from = (page * PAGE) as usize;
            let to = (from + PAGE as usize).min(order.features.len());
            let query = RowsQuery {
                table: table.clone(),
                features: order.features[from..to].to_vec(),
                needle: order.needle.clone(),
                page,
            };
            let got = cx.loader.get(&query);
            pages.push((page, got.value.filter(|_| !got.stale)));
        }
        let detail = pages.last().and_then(|(_, rows)| rows.as_ref()?.get((row % PAGE) as usize));
        let response = ui.interact(rect, ui.scope_id().with(("row", row)), Sense::click());
        response.widget_info(|| {
            let label = format!("feature {feature}, row {} of {}", grouped(row + 1), grouped(total));
            WidgetInfo::selected(Role::Row, true, cursor == Some(row), label)
        });
        let fill = if cursor == Some(row) {
            Some(theme.selection)
        } else if response.hovered() {
            Some(theme.hover)
        } else {
            None
        };
        if let Some(fill) = fill {
            ui.painter().rect_filled(rect, 3.0, fill);
        }
        let item = Item::Feature { table: table.clone(), feature };
        let label = notes.as_ref().and_then(|notes| notes.label(&item.to_string()));
        draw_row(ui, theme, (order, feature, detail), label, rect, cx.ui.spaces);
        if response.on_hover_cursor(egui::CursorIcon::PointingHand).clicked() {
            cx.emit(Command::OpenFeature(feature));
        }
    });
}

fn header(ui: &mut Ui, cx: &mut Cx<'_>, head: Rect, needle: &str) {
    let theme = cx.theme;
    for (column, rect) in layout(head) {
        let sorted = column == Column::Sorted(cx.focus.sort);
        let sign = match (sorted, cx.focus.ascending) {
            (true, true) => " ▲",
            (true, false) => " ▼",
            (false, _) => "",
        };
        let color = if sorted { theme.text } else { theme.text_dim };
        let title =
            if column == Column::Example && !needle.is_empty() { "Example with the text" } else { column.title() };
        text(ui, rect, column.at_right(), &format!("{title}{sign}"), FontId::proportional(12.5), color);
        if let Column::Sorted(by) = column {
            let response = ui.interact(rect, ui.scope_id().with(("head", by)), Sense::click());
            response.widget_info(|| WidgetInfo::labeled(Role::Button, true, format!("Sort by {}", by.title())));
            if response.hovered() {
                ui.painter().hline(rect.x_range(), rect.bottom() - 1.0, Stroke::new(2.0, theme.accent));
            }
            if response.on_hover_cursor(egui::CursorIcon::PointingHand).clicked() {
                cx.emit(if sorted { Command::ReverseSort } else { Command::Sort(by) });
            }
        }
    }
    ui.painter().hline(head.x_range(), head.bottom(), Stroke::new(1.0, theme.line));
}

/// Where the columns stand in a row.
fn layout(row: Rect) -> impl Iterator<Item = (Column, Rect)> {
    let gap = 14.0;
    // What a narrow window can do without, first to go first.
    let optional =
        [Column::Logits, Column::Sorted(SortBy::DecoderNorm), Column::Sorted(SortBy::MeanAct), Column::Histogram];
    let mut left_out = 0;
    let is_shown = move |column: Column, left_out: usize| !optional[..left_out].contains(&column);
    let fixed = |left_out: usize| -> f32 {
        COLUMNS.iter().filter(|(column, _)| is_shown(*column, left_out)).map(|(_, width)| width + gap).sum()
    };
    while left_out < optional.len() && row.width() - fixed(left_out) < MIN_EXAMPLE {
        left_out += 1;
    }
    let fixed = fixed(left_out);
    let rest = (row.width() - fixed).max(120.0);
    let mut x = row.left() + 6.0;
    COLUMNS.into_iter().filter(move |(column, _)| is_shown(*column, left_out)).map(move |(column, width)| {
        let width = if width == 0.0 { rest } else { width };
        let rect = Rect::from_min_max(pos2(x, row.top()), pos2(x + width, row.bottom()));
        x += width + gap;
        (column, rect)
    })
}

fn text(ui: &Ui, rect: Rect, right: bool, text: &str, font: FontId, color: egui::Color32) {
    let painter = ui.painter().with_clip_rect(rect.intersect(ui.clip_rect()));
    let (at, align) = if right {
        (pos2(rect.right(), rect.center().y), Align2::RIGHT_CENTER)
    } else {
        (pos2(rect.left(), rect.center().y), Align2::LEFT_CENTER)
    };
    painter.text(at, align, text, font, color);
}

fn draw_row(
    ui: &Ui,
    theme: &Theme,
    (order, feature, detail): (&Order, u32, Option<&RowDetail>),
    label: Option<&str>,
    row: Rect,
    spaces: Spaces,
) {
    let Some(i) = order.position(feature) else { return };
    let stats = &order.stats;
    let dead = stats.n_active[i] == 0;
    let color = if dead { theme.text_dim } else { theme.text };
    let font = FontId::proportional(13.0);
    for (column, rect) in layout(row) {
        match column {
            Column::Sorted(by) => {
                let shown = match by {
                    SortBy::Id => feature.to_string(),
                    SortBy::Density if dead => "never".to_owned(),
                    SortBy::Density => percent(stats.frac_nonzero[i]),
                    SortBy::MeanAct => number(stats.mean_act[i]),
                    SortBy::MaxAct => number(f64::from(stats.max_act[i])),
                    SortBy::DecoderNorm => number(f64::from(stats.decoder_norm[i])),
                };
                let share = match by {
                    // By decades: densities lie between one in a million and one.
                    SortBy::Density if order.max_density > 0.0 => {
                        (stats.frac_nonzero[i] / order.max_density).log10() as f32 / 5.0 + 1.0
                    }
                    SortBy::MaxAct if order.max_act > 0.0 => stats.max_act[i] / order.max_act,
                    _ => 0.0,
                };
                if share > 0.0 && !dead {
                    let line = Rect::from_min_size(pos2(rect.left(), rect.bottom() - 4.0), vec2(rect.width(), 2.0));
                    widget::bar(ui, line, share, theme.accent.gamma_multiply(0.7));
                }
                let color = if by == SortBy::Id { theme.accent } else { color };
                text(ui, rect, true, &shown, font.clone(), color);
            }
            Column::Histogram => {
                if let Some(detail) = detail {
                    sparkline(ui, rect.shrink2(vec2(0.0, 5.0)), &detail.histogram, theme.accent.gamma_multiply(0.8));
                }
            }
            Column::Example => {
                if let Some(detail) = detail {
                    snippet(ui, theme, rect, detail, spaces);
                } else {
                    let size = vec2(rect.width() * 0.6, 8.0);
                    let bar = Rect::from_min_size(pos2(rect.left(), rect.center().y - 4.0), size);
                    ui.painter().rect_filled(bar, 3.0, theme.raised);
                }
            }
            Column::Logits => {
                if let Some(label) = label {
                    widget::one_line(ui, rect, &format!("“{label}”"), font.clone(), theme.text);
                } else if let Some(detail) = detail {
                    text(ui, rect, false, &detail.top_logits, FontId::monospace(12.0), theme.text_dim);
                }
            }
        }
    }
}

/// The strongest example around its peak, which keeps its place when the column is narrow.
fn snippet(ui: &Ui, theme: &Theme, rect: Rect, detail: &RowDetail, spaces: Spaces) {
    let painter = ui.painter().with_clip_rect(rect.intersect(ui.clip_rect()));
    let font = FontId::monospace(12.0);
    let side = |range: std::ops::Range<usize>| -> String {
        detail
            .snippet
            .get(range)
            .unwrap_or_default()
            .iter()
            .filter(|tok| !tok.special)
            .map(|tok| visible(tok, spaces, Breaks::Sign))
            .collect()
    };
    let Some(peak) = detail.snippet.get(detail.peak) else { return };
    let before = painter.layout_no_wrap(side(0..detail.peak), font.clone(), theme.text_dim);
    let background = theme.heat(1.0);
    let middle = painter.layout_no_wrap(
        visible(peak, Spaces::Dots, Breaks::Sign).into_owned(),
        font.clone(),
        text_on(background),
    );
    let after = painter.layout_no_wrap(side(detail.peak + 1..detail.snippet.len()), font, theme.text_dim);
    // Peaks stand under each other, as in a concordance.
    let start = rect.left() + rect.width() * 0.55 - before.size().x - middle.size().x / 2.0;
    let y = rect.center().y - middle.size().y / 2.0;
    let at = start + before.size().x;
    painter.galley(pos2(start, y), before, theme.text_dim);
    let peak_rect = Rect::from_min_size(pos2(at, y), middle.size());
    painter.rect_filled(peak_rect.expand2(vec2(1.0, 1.0)), 2.0, background);
    painter.galley(peak_rect.min, middle, theme.text);
    painter.galley(pos2(peak_rect.right(), y), after, theme.text_dim);
}
