//! What does a question in SQL give?

use egui::{Align2, FontId, Key, Panel, Rect, RichText, Role, ScrollArea, Sense, TextEdit, Ui, WidgetInfo, pos2, vec2};

use super::Cx;
use crate::command::Command;
use crate::query::{CatalogQuery, SqlAnswer, SqlQuery};
use crate::widget::{self, Axis, Chart, Mark, Series, VirtualRows, grouped};

const ROW: f32 = 22.0;
const MIN_COLUMN: f32 = 70.0;
const MAX_COLUMN: f32 = 340.0;
/// Rows that the widths of columns are taken from.
const MEASURED: usize = 60;
/// Points of a chart.
const MAX_POINTS: usize = 2_000;

/// A first question, which every run can answer.
const EXAMPLE: &str = "SELECT token, count(*) AS n, avg(nll) AS nll FROM tokens WHERE NOT special GROUP BY token ORDER BY n DESC LIMIT 100";

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let list = Panel::left("tables").frame(egui::Frame::NONE).default_size(250.0).size_range(120.0..=420.0);
    list.show(ui, |ui| tables(ui, cx));
    egui::CentralPanel::no_frame().show(ui, |ui| {
        egui::Frame::NONE.inner_margin(egui::Margin::symmetric(12, 0)).show(ui, |ui| {
            question(ui, cx);
            if cx.focus.sql.trim().is_empty() {
                widget::empty(
                    ui,
                    cx.theme,
                    "Ask the run",
                    "Any SELECT over its tables, which are listed at the left. For example:",
                    None,
                );
                ui.vertical_centered(|ui| {
                    ui.add(egui::Label::new(RichText::new(EXAMPLE).monospace()).wrap());
                    if ui.button("Ask this").clicked() {
                        cx.emit(Command::RunSql(EXAMPLE.to_owned()));
                    }
                });
                return;
            }
            let got = cx.loader.get(&SqlQuery { sql: cx.focus.sql.clone() });
            if let Some(failure) = &got.failure {
                // What was typed is at fault more often than the run.
                ui.label(RichText::new(format!("▲ {}", failure.message)).color(cx.theme.error));
                if let Some(hint) = &failure.hint {
                    ui.label(RichText::new(format!("Next: {hint}")).color(cx.theme.text_dim));
                }
                return;
            }
            widget::answered(ui, cx, "answer", got, answer);
        });
    });
}

/// The tables that there are, with their columns; a click puts a name into the question.
fn tables(ui: &mut Ui, cx: &mut Cx<'_>) {
    let theme = cx.theme;
    let got = cx.loader.get(&CatalogQuery);
    widget::caption(ui, theme, "Tables");
    ScrollArea::vertical().id_salt("tables").auto_shrink(false).show(ui, |ui| {
        widget::answered(ui, cx, "tables", got, |ui, cx, tables| {
            for table in tables {
                let title = format!("{}  {}", table.name, grouped(table.n_rows));
                egui::CollapsingHeader::new(title).id_salt(&table.name).show(ui, |ui| {
                    ui.label(RichText::new(format!("one row: {}", table.about)).size(12.0).color(theme.text_dim));
                    if widget::link(ui, theme, "show the first rows").clicked() {
                        cx.emit(Command::RunSql(format!("SELECT * FROM {} LIMIT 200", table.name)));
                    }
                    for column in &table.columns {
                        let text = format!("{}  {}", column.name, column.kind);
                        ui.label(RichText::new(text).monospace().size(11.5));
                    }
                });
            }
        });
    });
}

fn question(ui: &mut Ui, cx: &mut Cx<'_>) {
    let mut sql = cx.ui.sql.take().unwrap_or_else(|| cx.focus.sql.clone());
    let field = TextEdit::multiline(&mut sql)
        .hint_text("SELECT … FROM …; Ctrl+Enter asks")
        .desired_width(f32::INFINITY)
        .desired_rows(3)
        .font(FontId::monospace(12.5));
    let field = ui.add(field).accessible_name("Question in SQL");
    let entered = field.has_focus() && ui.input_mut(|input| input.consume_key(egui::Modifiers::COMMAND, Key::Enter));
    ui.horizontal(|ui| {
        let asked = ui.button("Ask").on_hover_text("Ctrl+Enter").clicked() || entered;
        if asked && !sql.trim().is_empty() {
            cx.emit(Command::RunSql(sql.trim().to_owned()));
        }
        if !cx.focus.sql.is_empty()
            && ui.button("Copy command").on_hover_text("The same question for a terminal").clicked()
        {
            let run = cx.source().map(|source| source.path.display().to_string()).unwrap_or_default();
            let quoted = cx.focus.sql.replace('\'', "'\\''");
            ui.copy_text(format!("polariscope query {run} '{quoted}' --format parquet --out answer.parquet"));
        }
    });
    cx.ui.sql = Some(sql);
    ui.add_space(4.0);
}

fn answer(ui: &mut Ui, cx: &mut Cx<'_>, answer: &SqlAnswer) {
    let theme = cx.theme;
    ui.horizontal(|ui| {
        let text = if answer.cut {
            format!("the first {} rows; LIMIT, WHERE or “Copy command” for all", grouped(answer.n_rows as u64))
        } else {
            format!("{} rows", grouped(answer.n_rows as u64))
        };
        ui.label(RichText::new(text).color(if answer.cut { theme.warning } else { theme.text_dim }));
        if ui.small_button("Copy as TSV").clicked() {
            let mut text = answer.columns.join("\t");
            for row in 0..answer.n_rows {
                text.push('\n');
                text.push_str(&answer.row(row).join("\t"));
            }
            ui.copy_text(text);
        }
    });
    if answer.n_rows == 0 {
        widget::empty(ui, theme, "No rows", "The question was understood, and nothing answers it.", None);
        return;
    }
    chart(ui, cx, answer);
    table(ui, cx, answer);
}

/// The first two columns of numbers against each other, where there are two.
fn chart(ui: &mut Ui, cx: &Cx<'_>, answer: &SqlAnswer) {
    let mut columns = (0..answer.columns.len()).filter(|i| answer.numbers[*i].is_some());
    let (Some(x), Some(y)) = (columns.next(), columns.next()) else { return };
    let (Some(xs), Some(ys)) = (&answer.numbers[x], &answer.numbers[y]) else { return };
    egui::CollapsingHeader::new(format!("Chart: {} against {}", answer.columns[y], answer.columns[x]))
        .id_salt("chart")
        .show(ui, |ui| {
            let mut points: Vec<(f64, f64)> =
                xs.iter().copied().zip(ys.iter().copied()).filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let step = points.len().div_ceil(MAX_POINTS).max(1);
            let points: Vec<(f64, f64)> = points.into_iter().step_by(step).collect();
            Chart {
                theme: cx.theme,
                name: "Answer",
                x: Axis { label: &answer.columns[x], ..Axis::default() },
                y: Axis { label: &answer.columns[y], ..Axis::default() },
                series: &[Series {
                    name: &answer.columns[y],
                    points: &points,
                    color: cx.theme.accent,
                    mark: Mark::Dots,
                }],
                height: 190.0,
            }
            .show(ui);
        });
}

fn table(ui: &mut Ui, cx: &mut Cx<'_>, answer: &SqlAnswer) {
    let theme = cx.theme;
    let font = FontId::monospace(12.0);
    let widths: Vec<f32> = (0..answer.columns.len())
        .map(|i| {
            let cells = (0..answer.n_rows.min(MEASURED)).filter_map(|row| answer.row(row).get(i));
            let chars = cells.map(|cell| cell.chars().count()).chain([answer.columns[i].chars().count()]).max();
            (chars.unwrap_or(0) as f32 * 7.4 + 18.0).clamp(MIN_COLUMN, MAX_COLUMN)
        })
        .collect();
    let total: f32 = widths.iter().sum::<f32>() + 20.0;
    ScrollArea::horizontal().id_salt("answer").auto_shrink(false).show(ui, |ui| {
        ui.set_min_width(total.max(ui.available_width()));
        let (head, _) = ui.allocate_exact_size(vec2(total, ROW), Sense::hover());
        cells(ui, head, &widths, &answer.columns, answer, theme.text_dim, &FontId::proportional(12.5));
        ui.painter().hline(head.x_range(), head.bottom(), egui::Stroke::new(1.0, theme.line));
        ui.spacing_mut().item_spacing.y = 0.0;
        let rows = VirtualRows {
            id: ui.scope_id().with("rows"),
            name: "rows of the answer",
            total: answer.n_rows as u64,
            row_height: ROW,
            cursor: None,
        };
        rows.show(ui, theme, |ui, row, rect| {
            let response = ui.interact(rect, ui.scope_id().with(("row", row)), Sense::click());
            response.widget_info(|| {
                WidgetInfo::labeled(Role::Row, true, format!("row {} of {}", row + 1, grouped(answer.n_rows as u64)))
            });
            if response.hovered() {
                ui.painter().rect_filled(rect, 0.0, theme.hover);
            }
            cells(ui, rect, &widths, answer.row(row as usize), answer, theme.text, &font);
            let target = target(answer, row as usize);
            if let Some((tip, command)) = target
                && response.on_hover_cursor(egui::CursorIcon::PointingHand).on_hover_text(tip).clicked()
            {
                cx.emit(command);
            }
        });
    });
}

fn cells(
    ui: &Ui,
    rect: Rect,
    widths: &[f32],
    texts: &[String],
    answer: &SqlAnswer,
    color: egui::Color32,
    font: &FontId,
) {
    let mut left = rect.left();
    for (i, (text, width)) in texts.iter().zip(widths).enumerate() {
        let cell = Rect::from_min_size(pos2(left, rect.top()), vec2(*width, rect.height())).shrink2(vec2(6.0, 0.0));
        if answer.numbers.get(i).is_some_and(Option::is_some) {
            let painter = ui.painter().with_clip_rect(cell.intersect(ui.clip_rect()));
            painter.text(cell.right_center(), Align2::RIGHT_CENTER, text, font.clone(), color);
        } else {
            widget::one_line(ui, cell, text, font.clone(), color);
        }
        left += width;
    }
}

/// Where a row leads: to its feature, its document or its token of the vocabulary.
fn target(answer: &SqlAnswer, row: usize) -> Option<(&'static str, Command)> {
    let value = |name: &str| {
        let column = answer.columns.iter().position(|column| column == name)?;
        answer.row(row).get(column)?.parse::<u64>().ok()
    };
    if let Some(feature) = value("feature") {
        return Some(("Open the feature", Command::OpenFeature(u32::try_from(feature).ok()?)));
    }
    if let Some(doc) = value("doc_id") {
        return Some(("Read the document", Command::OpenDocument { doc, token: value("pos") }));
    }
    Some(("Open the row of the vocabulary", Command::OpenRow(u32::try_from(value("token_id")?).ok()?)))
}
