//! Which keys are there?

use egui::{Id, Modal, RichText, Ui};

use super::Cx;
use crate::command::{Command, TABLE};

/// The list of keys, made from the command table.
pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    if !cx.ui.cheat_sheet {
        return;
    }
    let theme = cx.theme;
    let response = Modal::new(Id::unique("cheat_sheet")).show(ui.ctx(), |ui| {
        ui.set_width((ui.ctx().content_rect().width() - 60.0).clamp(200.0, 780.0));
        ui.heading("Keys");
        ui.label(RichText::new("Every one of these is also in the palette.").color(theme.text_dim));
        ui.add_space(6.0);
        let height = ui.ctx().content_rect().height() - 150.0;
        ui.spacing_mut().interact_size.y = 17.0;
        egui::ScrollArea::vertical().max_height(height).show(ui, |ui| {
            ui.horizontal_top(|ui| {
                // Two columns of about the same length.
                for groups in [&["Go", "Features", "Read"][..], &["Move", "Window"]] {
                    ui.vertical(|ui| {
                        for group in groups {
                            ui.label(RichText::new(*group).strong().color(theme.accent));
                            egui::Grid::new(group).num_columns(2).min_col_width(96.0).spacing([14.0, 3.0]).show(
                                ui,
                                |ui| {
                                    for entry in
                                        TABLE.iter().filter(|entry| entry.group == *group && !entry.keys.is_empty())
                                    {
                                        let keys: Vec<String> = entry
                                            .keys
                                            .iter()
                                            .take(2)
                                            .map(|key| super::shell::shortcut_text(ui, *key))
                                            .collect();
                                        ui.label(RichText::new(keys.join("  ")).monospace().color(theme.text_dim));
                                        ui.label(entry.title);
                                        ui.end_row();
                                    }
                                },
                            );
                            ui.add_space(8.0);
                        }
                    });
                    ui.add_space(24.0);
                }
            });
        });
        if ui.button("Close").clicked() {
            cx.emit(Command::CheatSheet);
        }
    });
    if response.should_close() {
        cx.ui.cheat_sheet = false;
    }
}
