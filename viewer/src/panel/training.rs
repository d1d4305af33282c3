//! How do the coders of the run learn?

use std::time::Duration;

use egui::{RichText, Ui};

use super::{Cx, scrolled};
use crate::command::Command;
use crate::query::{Coder, TrainingQuery};
use crate::widget::{self, Axis, Chart, Mark, Series, number};

/// Seconds between two looks at coders that are in training.
const EVERY: f64 = 3.0;

/// Quantities that tell most, in the order in which they are drawn; others follow by name.
const FIRST: [(&str, &str); 8] = [
    ("explained_variance", "Explained variance"),
    ("loss", "Loss"),
    ("l0", "L0: active latents a token"),
    ("dead", "Dead latents"),
    ("ce_recovered", "Cross-entropy recovered"),
    ("aux_loss", "Auxiliary loss"),
    ("lr", "Learning rate"),
    ("threshold", "Threshold"),
];

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let id = egui::Id::unique("training_round");
    let now = ui.input(|input| input.time);
    let (round, asked): (u64, f64) = ui.data(|data| data.get_temp(id)).unwrap_or((0, now));
    let mut got = cx.loader.get(&TrainingQuery { round });
    let learning = got.value.as_ref().is_some_and(|coders| coders.iter().any(|coder| !coder.finished));
    if learning && !got.stale && now - asked > EVERY {
        ui.data_mut(|data| data.insert_temp(id, (round + 1, now)));
    } else {
        ui.data_mut(|data| data.insert_temp(id, (round, asked)));
    }
    if learning {
        ui.request_repaint_after(Duration::from_secs_f64(EVERY));
    }
    // The curves of some seconds ago are not wrong, so they are not dimmed while newer ones come.
    got.stale = false;
    scrolled(ui, cx, "training", |ui, cx| {
        widget::answered(ui, cx, "training", got, |ui, cx, coders| {
            if coders.is_empty() {
                let Some(source) = cx.source() else { return };
                widget::empty(
                    ui,
                    cx.theme,
                    "No coder yet",
                    "A sparse coder turns activations into features. While this one trains, its curves grow here:",
                    Some(&super::train_command(&source)),
                );
                return;
            }
            page(ui, cx, coders);
        });
    });
}

fn page(ui: &mut Ui, cx: &mut Cx<'_>, coders: &[Coder]) {
    let theme = cx.theme;
    let chosen = cx.focus.coder.clone();
    ui.horizontal_wrapped(|ui| {
        for (i, coder) in coders.iter().enumerate() {
            let color = theme.series[i % theme.series.len()];
            let state = if coder.finished { "" } else { ", in training" };
            let text = RichText::new(format!("▬ {}{state}", coder.name)).color(color);
            let on = chosen.as_ref() == Some(&coder.name);
            let button = ui.add(egui::Button::selectable(on, text)).accessible_name(format!("coder {}", coder.name));
            if button.on_hover_text("Its last figures").clicked() {
                cx.emit(Command::UseCoder(coder.name.clone()));
            }
        }
    });
    if let Some(coder) = coders.iter().find(|coder| chosen.as_ref() == Some(&coder.name)) {
        let last = coder.curves.iter().filter_map(|curve| Some((curve.name.as_str(), curve.points.last()?.1)));
        let text: Vec<String> = last.map(|(name, value)| format!("{name} {}", number(value))).collect();
        ui.label(RichText::new(text.join(" · ")).color(theme.text_dim));
    }
    ui.add_space(4.0);
    let mut names: Vec<(String, String)> =
        FIRST.iter().map(|(name, title)| ((*name).to_owned(), (*title).to_owned())).collect();
    for curve in coders.iter().flat_map(|coder| &coder.curves) {
        if !names.iter().any(|(name, _)| *name == curve.name) && curve.name != "tokens" {
            names.push((curve.name.clone(), curve.name.clone()));
        }
    }
    names.retain(|(name, _)| {
        coders.iter().flat_map(|coder| &coder.curves).any(|c| c.name == *name && !c.points.is_empty())
    });
    let per_row = (ui.available_width() / 400.0).floor().clamp(1.0, 3.0) as usize;
    let width = (ui.available_width() - 14.0 * (per_row as f32 - 1.0)) / per_row as f32;
    for row in names.chunks(per_row) {
        ui.horizontal_top(|ui| {
            ui.spacing_mut().item_spacing.x = 14.0;
            for (name, title) in row {
                ui.vertical(|ui| {
                    ui.set_width(width);
                    chart(ui, cx, coders, name, title);
                });
            }
        });
    }
}

fn chart(ui: &mut Ui, cx: &Cx<'_>, coders: &[Coder], name: &str, title: &str) {
    let theme = cx.theme;
    let mut series = Vec::new();
    for (i, coder) in coders.iter().enumerate() {
        if let Some(curve) = coder.curves.iter().find(|curve| curve.name == name) {
            // A line of one point is none.
            let mark = if curve.points.len() > 1 { Mark::Line } else { Mark::Dots };
            let color = theme.series[i % theme.series.len()];
            series.push(Series { name: &coder.name, points: &curve.points, color, mark });
        }
    }
    widget::card(ui, theme, "", |ui| {
        Chart {
            theme,
            name: title,
            x: Axis { label: "step", whole: true, ..Axis::default() },
            y: Axis { label: title, zero: true, ..Axis::default() },
            series: &series,
            height: 190.0,
        }
        .show(ui);
    });
}
