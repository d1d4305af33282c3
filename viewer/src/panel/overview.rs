//! What is in the run?

use egui::{Align2, RichText, ScrollArea, Ui, vec2};

use super::{Cx, scroll_by_step};
use crate::command::Command;
use crate::query::{CoderRow, Curve, CurvesQuery, HookRow, Overview, OverviewQuery};
use crate::state::View;
use crate::widget::{self, Axis, Chart, Mark, Series, VirtualRows, grouped, number, percent};

/// The columns that tell most about a training, in the order in which they are drawn.
const CURVES: [(&str, &str); 6] = [
    ("explained_variance", "Explained variance"),
    ("loss", "Loss"),
    ("l0", "L0: active latents a token"),
    ("dead", "Dead latents"),
    ("lr", "Learning rate"),
    ("threshold", "Threshold"),
];

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let got = cx.loader.get(&OverviewQuery);
    ScrollArea::vertical().id_salt("overview").auto_shrink(false).show(ui, |ui| {
        scroll_by_step(ui, cx);
        // The scroll bar floats over what is under it.
        ui.set_max_width((ui.available_width() - 10.0).min(1_480.0));
        widget::answered(ui, cx, "overview", got, page);
        ui.add_space(16.0);
    });
}

fn page(ui: &mut Ui, cx: &mut Cx<'_>, run: &Overview) {
    problems(ui, cx, run);
    tiles(ui, cx, run);
    ui.add_space(4.0);
    let wide = ui.available_width() > 900.0;
    if wide {
        let gap = 12.0;
        let left = (ui.available_width() * 0.34).clamp(320.0, 460.0);
        ui.horizontal_top(|ui| {
            ui.spacing_mut().item_spacing.x = gap;
            ui.vertical(|ui| {
                ui.set_width(left);
                about(ui, cx, run);
            });
            ui.vertical(|ui| {
                ui.set_width(ui.available_width());
                recorded(ui, cx, run);
                coders(ui, cx, run);
                tables(ui, cx, run);
            });
        });
    } else {
        recorded(ui, cx, run);
        coders(ui, cx, run);
        tables(ui, cx, run);
        about(ui, cx, run);
    }
}

fn problems(ui: &mut Ui, cx: &Cx<'_>, run: &Overview) {
    let theme = cx.theme;
    if !run.complete {
        ui.label(
            RichText::new(
                "▲ This run is not complete: what was durable is shown. `polariscope record … --resume` goes on.",
            )
            .color(theme.warning),
        );
    }
    for problem in &run.problems {
        let line = problem.lines().next().unwrap_or_default();
        ui.label(RichText::new(format!("▲ {line}")).color(theme.error));
    }
}

/// The figures that one looks for first.
fn tiles(ui: &mut Ui, cx: &Cx<'_>, run: &Overview) {
    let skipped: u64 = run.skipped.iter().map(|(_, n)| n).sum();
    let mut captured = format!("of {} expected", grouped(run.tokens_expected));
    if skipped > 0 {
        captured = format!("{captured}, {} skipped", grouped(skipped));
    }
    let sites = {
        let mut sites: Vec<&str> = run.hooks.iter().map(|hook| hook.site.as_str()).collect();
        sites.sort_unstable();
        sites.dedup();
        sites.join(", ")
    };
    let alive: u64 = run.tables.iter().map(|table| table.n_alive).sum();
    let features: u64 = run.tables.iter().map(|table| table.n_features).sum();
    let tiles = [
        ("Tokens", grouped(run.tokens), captured),
        ("Documents", grouped(run.documents), {
            let mean = run.tokens as f64 / run.documents.max(1) as f64;
            format!("{} tokens each on average", number(mean))
        }),
        ("Hook points", run.hooks.len().to_string(), sites),
        ("On disk", widget::bytes(run.bytes), "tokens and activations".to_owned()),
        (
            "Features",
            grouped(features),
            if features > 0 { format!("{} alive", grouped(alive)) } else { "none yet".to_owned() },
        ),
    ];
    let gap = 12.0;
    let width = (ui.available_width() - gap * (tiles.len() - 1) as f32) / tiles.len() as f32;
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = gap;
        for (name, value, note) in tiles {
            let frame = widget::card_frame(cx.theme);
            frame.show(ui, |ui| {
                ui.set_width((width - 30.0).max(60.0));
                ui.vertical(|ui| {
                    ui.spacing_mut().item_spacing.y = 1.0;
                    widget::caption(ui, cx.theme, name);
                    ui.label(RichText::new(value).size(22.0));
                    ui.add(egui::Label::new(RichText::new(&note).size(12.0).color(cx.theme.text_dim)).truncate())
                        .on_hover_text(&note);
                });
            });
        }
    });
}

fn about(ui: &mut Ui, cx: &Cx<'_>, run: &Overview) {
    let theme = cx.theme;
    widget::card(ui, theme, "Model", |ui| widget::facts(ui, theme, "model", &run.model));
    ui.add_space(6.0);
    widget::card(ui, theme, "Corpus", |ui| {
        let mut rows = run.corpus.clone();
        rows.push(("Documents", grouped(run.documents)));
        rows.push(("Tokens", format!("{} of {}", grouped(run.tokens), grouped(run.tokens_expected))));
        widget::facts(ui, theme, "corpus", &rows);
        for (reason, n) in &run.skipped {
            let line = format!("{} skipped: {reason}", grouped(*n));
            ui.label(RichText::new(line).color(theme.warning));
        }
    });
    ui.add_space(6.0);
    widget::card(ui, theme, "Run", |ui| widget::facts(ui, theme, "run", &run.facts));
}

/// Norms by layer, and the table behind the chart.
fn recorded(ui: &mut Ui, cx: &Cx<'_>, run: &Overview) {
    let theme = cx.theme;
    widget::card(ui, theme, "Norms by layer", |ui| {
        let mut sites: Vec<&str> = Vec::new();
        for hook in run.hooks.iter().filter(|hook| hook.layer.is_some()) {
            if !sites.contains(&hook.site.as_str()) {
                sites.push(&hook.site);
            }
        }
        if sites.is_empty() {
            ui.label(RichText::new("No hook point with a layer was recorded.").color(theme.text_dim));
        } else {
            let curves: Vec<Vec<(f64, f64)>> = sites
                .iter()
                .map(|site| {
                    let of_site = run.hooks.iter().filter(|hook| hook.site == *site);
                    of_site.filter_map(|hook| Some((hook.layer? as f64, hook.median_norm))).collect()
                })
                .collect();
            let series: Vec<Series<'_>> = sites
                .iter()
                .zip(&curves)
                .enumerate()
                .map(|(i, (site, points))| Series {
                    name: site,
                    points,
                    color: theme.series[i % theme.series.len()],
                    mark: Mark::Dots,
                })
                .collect();
            Chart {
                theme,
                name: "Norms by layer",
                x: Axis { label: "layer", whole: true, ..Axis::default() },
                y: Axis { label: "median L2 norm", zero: true, ..Axis::default() },
                series: &series,
                height: 210.0,
            }
            .show(ui);
        }
        ui.add_space(4.0);
        hook_table(ui, cx, &run.hooks);
        if let Some(hook) = run.hooks.first() {
            let text =
                format!("Over {} tokens: special ones, whose norms are far larger, are left out.", grouped(hook.n));
            ui.label(RichText::new(text).size(12.0).color(theme.text_dim));
        }
    });
    ui.add_space(6.0);
}

/// Titles and widths of the columns; the first takes what is left.
const HOOK_COLUMNS: [(&str, f32); 7] = [
    ("Hook point", 0.0),
    ("Width", 64.0),
    ("Stored", 56.0),
    ("Median norm", 96.0),
    ("RMS norm", 84.0),
    ("Max |x|", 84.0),
    ("Bytes", 84.0),
];

fn hook_table(ui: &mut Ui, cx: &Cx<'_>, hooks: &[HookRow]) {
    let theme = cx.theme;
    let row_height = 20.0;
    let shown = hooks.len().min(8) as f32;
    let (outer, _) =
        ui.allocate_exact_size(vec2(ui.available_width(), row_height * (shown + 1.0) + 6.0), egui::Sense::hover());
    let mut ui = ui.new_child(egui::UiBuilder::new().max_rect(outer));
    let (head, _) = ui.allocate_exact_size(vec2(outer.width() - 12.0, row_height), egui::Sense::hover());
    cells(&ui, head, &HOOK_COLUMNS.map(|(title, _)| title.to_owned()), theme.text_dim, theme.text_dim);
    ui.painter().hline(head.x_range(), head.bottom(), egui::Stroke::new(1.0, theme.line));
    ui.spacing_mut().item_spacing.y = 0.0;
    let rows = VirtualRows {
        id: ui.scope_id().with("hooks"),
        name: "hook points",
        total: hooks.len() as u64,
        row_height,
        cursor: None,
    };
    rows.show(&mut ui, theme, |ui, row, rect| {
        let Some(hook) = hooks.get(row as usize) else { return };
        let texts = [
            hook.name.clone(),
            hook.width.to_string(),
            hook.dtype.clone(),
            number(hook.median_norm),
            number(hook.rms_norm),
            number(hook.max_abs),
            widget::bytes(hook.bytes),
        ];
        cells(ui, rect, &texts, theme.text, theme.text);
    });
}

fn cells(ui: &Ui, rect: egui::Rect, texts: &[String; 7], first: egui::Color32, rest: egui::Color32) {
    let font = egui::FontId::proportional(12.5);
    let mut right = rect.right();
    for (text, (_, width)) in texts.iter().zip(HOOK_COLUMNS).skip(1).rev() {
        ui.painter().text(egui::pos2(right, rect.center().y), Align2::RIGHT_CENTER, text, font.clone(), rest);
        right -= width;
    }
    widget::one_line(ui, rect.with_max_x(right - 8.0), &texts[0], font, first);
}

fn coders(ui: &mut Ui, cx: &mut Cx<'_>, run: &Overview) {
    let theme = cx.theme;
    widget::card(ui, theme, "Sparse coders", |ui| {
        if run.coders.is_empty() {
            let Some(source) = cx.source() else { return };
            let command = super::train_command(&source);
            widget::empty(
                ui,
                theme,
                "No coder yet",
                "A sparse coder turns activations into features. This trains one:",
                Some(&command),
            );
            return;
        }
        let chosen = cx.focus.coder.clone().unwrap_or_else(|| run.coders[0].name.clone());
        for coder in &run.coders {
            coder_line(ui, cx, coder, coder.name == chosen && run.coders.len() > 1);
        }
        if run.coders.iter().any(|coder| coder.name == chosen && coder.has_metrics) {
            ui.add_space(4.0);
            let got = cx.loader.get(&CurvesQuery { coder: chosen });
            widget::answered(ui, cx, "training curves", got, |ui, cx, curves| training(ui, cx, curves));
        }
    });
    ui.add_space(6.0);
}

fn coder_line(ui: &mut Ui, cx: &mut Cx<'_>, coder: &CoderRow, chosen: bool) {
    let theme = cx.theme;
    ui.horizontal_wrapped(|ui| {
        if chosen {
            ui.label(RichText::new("●").color(theme.accent));
        }
        if coder.has_metrics {
            if widget::link(ui, theme, &coder.name).on_hover_text("Show its training curves").clicked() {
                cx.emit(Command::UseCoder(coder.name.clone()));
            }
        } else {
            ui.label(RichText::new(&coder.name).strong());
        }
        let mut parts = vec![coder.architecture.clone()];
        if let (Some(d_in), Some(d_sae)) = (coder.d_in, coder.d_sae) {
            parts.push(format!("{} → {} latents", grouped(d_in), grouped(d_sae)));
        }
        if !coder.hook_point.is_empty() {
            parts.push(coder.hook_point.clone());
        }
        for (name, value) in &coder.last {
            match name.as_str() {
                "explained_variance" => parts.push(format!("explained variance {}", percent(*value))),
                "l0" => parts.push(format!("L0 {}", number(*value))),
                "dead" => parts.push(format!("{value:.0} dead")),
                _ => {}
            }
        }
        ui.label(RichText::new(parts.join(" · ")).color(theme.text_dim));
    });
}

fn training(ui: &mut Ui, cx: &Cx<'_>, curves: &[Curve]) {
    let theme = cx.theme;
    let known: Vec<(&str, &Curve)> = CURVES
        .iter()
        .filter_map(|(name, title)| Some((*title, curves.iter().find(|c| c.name == *name && c.points.len() > 1)?)))
        .collect();
    if known.is_empty() {
        ui.label(RichText::new("The metrics have no curve to draw yet.").color(theme.text_dim));
        return;
    }
    let per_row = if ui.available_width() > 640.0 { 2 } else { 1 };
    let width = ((ui.available_width() - 14.0 * (per_row as f32 - 1.0)) / per_row as f32).max(80.0);
    for row in known.chunks(per_row) {
        ui.horizontal_top(|ui| {
            ui.spacing_mut().item_spacing.x = 14.0;
            for (title, curve) in row {
                ui.vertical(|ui| {
                    ui.set_width(width);
                    Chart {
                        theme,
                        name: title,
                        x: Axis { label: "step", ..Axis::default() },
                        y: Axis { label: title, zero: true, ..Axis::default() },
                        series: &[Series { name: title, points: &curve.points, color: theme.accent, mark: Mark::Line }],
                        height: 148.0,
                    }
                    .show(ui);
                });
            }
        });
    }
}

fn tables(ui: &mut Ui, cx: &mut Cx<'_>, run: &Overview) {
    let theme = cx.theme;
    widget::card(ui, theme, "Feature tables", |ui| {
        if run.tables.is_empty() {
            ui.label(RichText::new("None yet. `polariscope encode` makes one from a coder.").color(theme.text_dim));
            if let Some(coder) = run.coders.first() {
                let dir = run.facts.first().map_or("RUN", |(_, folder)| folder);
                widget::command_line(ui, theme, &format!("polariscope encode {dir} --sae {dir}/saes/{}", coder.name));
            }
            return;
        }
        for table in &run.tables {
            ui.horizontal_wrapped(|ui| {
                if widget::link(ui, theme, &format!("Features of {}", table.name)).clicked() {
                    cx.emit(Command::UseTable(table.name.clone()));
                    cx.emit(Command::Show(View::Features));
                }
                let dead = table.n_features - table.n_alive;
                let text = format!(
                    "{} features, {} never fire · {} · coder {}",
                    grouped(table.n_features),
                    grouped(dead),
                    table.hook_point,
                    table.coder
                );
                ui.label(RichText::new(text).color(theme.text_dim));
            });
        }
    });
}
