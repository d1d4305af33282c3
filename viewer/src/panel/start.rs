//! What does the window show before a run is open?

use std::path::PathBuf;

use egui::{RichText, TextEdit, Ui};

use super::Cx;
use crate::command::Command;
use crate::loader::Opening;
use crate::session::Visit;
use crate::widget;

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>, runs: &[Visit]) {
    let theme = cx.theme;
    ui.add_space((ui.available_height() * 0.16).min(120.0));
    let width = ui.available_width().min(640.0);
    ui.vertical_centered(|ui| {
        ui.set_max_width(width);
        ui.with_layout(egui::Layout::top_down(egui::Align::Min), |ui| {
            match cx.loader.opening() {
                Opening::InProgress(path) => {
                    ui.label(RichText::new(format!("Opening {}…", path.display())).size(16.0));
                    ui.add_space(12.0);
                }
                Opening::Failed(_, failure) => {
                    let failure = std::sync::Arc::clone(failure);
                    widget::failed(ui, cx, "run", &failure);
                    ui.add_space(16.0);
                }
                Opening::Nothing | Opening::Open(_) => {
                    ui.heading("Open a run");
                    ui.add_space(4.0);
                    ui.label(
                        RichText::new(
                            "A run is the folder that `polariscope record` writes: activations, documents, \
                             and what was trained on them.",
                        )
                        .color(theme.text_dim),
                    );
                    ui.add_space(12.0);
                }
            }
            open_field(ui, cx);
            ui.add_space(20.0);
            if !runs.is_empty() {
                widget::card(ui, theme, "Opened last", |ui| {
                    for visit in runs {
                        let path = visit.path.display().to_string();
                        if widget::link(ui, theme, &path).on_hover_text("Where you were in this run").clicked() {
                            cx.emit(Command::OpenRun(visit.path.clone()));
                        }
                    }
                });
                ui.add_space(8.0);
            }
            widget::card(ui, theme, "No run yet?", |ui| {
                ui.label("This records a real Gemma over news text, trains a coder and opens the result here:");
                widget::command_line(ui, theme, "cargo xtask demo");
            });
        });
    });
}

fn open_field(ui: &mut Ui, cx: &mut Cx<'_>) {
    ui.horizontal(|ui| {
        let field = TextEdit::singleline(&mut cx.ui.path)
            .hint_text("runs/demo")
            .desired_width((ui.available_width() - 84.0).max(60.0))
            .margin(egui::Margin::symmetric(8, 5));
        let field = ui.add(field).accessible_name("Folder of a run");
        let entered = field.lost_focus() && ui.input(|input| input.key_pressed(egui::Key::Enter));
        if (ui.button("Open").clicked() || entered) && !cx.ui.path.trim().is_empty() {
            let path = PathBuf::from(cx.ui.path.trim());
            cx.emit(Command::OpenRun(path));
        }
    });
    ui.label(RichText::new("or drop the folder on this window").size(12.0).color(cx.theme.text_dim));
}
