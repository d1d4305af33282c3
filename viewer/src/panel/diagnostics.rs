//! Is everything there, and what is the window doing?

use egui::{RichText, Ui};

use super::{Cx, scrolled};
use crate::command::Command;
use crate::query::{Diagnostics, DiagnosticsQuery};
use crate::widget::{self, VirtualRows, bytes, grouped};

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let got = cx.loader.get(&DiagnosticsQuery);
    scrolled(ui, cx, "diagnostics", |ui, cx| {
        let theme = cx.theme;
        widget::card(ui, theme, "This window", |ui| {
            let busy = cx.loader.busy();
            let failed = cx.loader.failures();
            let mut facts = vec![
                (
                    "Answers",
                    format!(
                        "{} kept, of at most {}",
                        bytes(cx.loader.cached_bytes() as u64),
                        bytes(crate::loader::CACHE_BYTES as u64)
                    ),
                ),
                ("Loading", if busy.is_empty() { "nothing".to_owned() } else { busy.join(", ") }),
            ];
            if let Some(source) = cx.source() {
                facts.push(("Link of", format!("{}@{}", source.name, source.fingerprint)));
            }
            widget::facts(ui, theme, "window", &facts);
            for failure in &failed {
                ui.label(RichText::new(format!("▲ {failure}")).color(theme.error));
            }
            ui.horizontal(|ui| {
                if ui.button("Read the run again").clicked() {
                    cx.emit(Command::Reload);
                }
                if ui.button("Copy a report").clicked() {
                    let mut report: Vec<String> =
                        facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                    report.extend(failed.clone());
                    ui.copy_text(report.join("\n"));
                }
            });
        });
        ui.add_space(6.0);
        widget::answered(ui, cx, "diagnostics", got, page);
    });
}

fn page(ui: &mut Ui, cx: &mut Cx<'_>, found: &Diagnostics) {
    let theme = cx.theme;
    widget::card(ui, theme, "Tables of features", |ui| {
        if found.tables.is_empty() {
            ui.label(RichText::new("None yet.").color(theme.text_dim));
        }
        for (name, said) in &found.tables {
            ui.horizontal_wrapped(|ui| {
                ui.label(RichText::new(name).strong());
                match said {
                    Ok(said) => ui.label(RichText::new(said).color(theme.text_dim)),
                    Err(said) => ui.label(RichText::new(format!("▲ {said}")).color(theme.error)),
                }
            });
        }
        if found.n_unreadable_notes > 0 {
            let text = format!("▲ {} lines of annotations.jsonl could not be understood", found.n_unreadable_notes);
            ui.label(RichText::new(text).color(theme.warning));
        }
    });
    ui.add_space(6.0);
    widget::card(ui, theme, "Bytes by kind", |ui| {
        let most = found.kinds.first().map_or(1, |(_, n)| (*n).max(1));
        for (kind, n) in found.kinds.iter().take(40) {
            ui.horizontal(|ui| {
                let (rect, _) = ui.allocate_exact_size(egui::vec2(140.0, 14.0), egui::Sense::hover());
                widget::bar(ui, rect.shrink2(egui::vec2(0.0, 4.0)), *n as f32 / most as f32, theme.accent);
                ui.label(bytes(*n));
                ui.label(RichText::new(kind).color(theme.text_dim));
            });
        }
    });
    ui.add_space(6.0);
    widget::card(ui, theme, "Shards", |ui| {
        let row_height = 20.0;
        let height = row_height * found.shards.len().clamp(1, 12) as f32;
        let (outer, _) = ui.allocate_exact_size(egui::vec2(ui.available_width(), height), egui::Sense::hover());
        let mut ui = ui.new_child(egui::UiBuilder::new().max_rect(outer));
        let rows = VirtualRows {
            id: ui.scope_id().with("shards"),
            name: "shards",
            total: found.shards.len() as u64,
            row_height,
            cursor: None,
        };
        rows.show(&mut ui, theme, |ui, row, rect| {
            let Some(shard) = found.shards.get(row as usize) else { return };
            let text = format!(
                "shard {}   tokens {} to {}   {} files   {}",
                shard.index,
                grouped(shard.first_token_idx),
                grouped(shard.first_token_idx + shard.n_tokens),
                shard.n_files,
                bytes(shard.bytes)
            );
            widget::one_line(ui, rect, &text, egui::FontId::proportional(12.5), theme.text);
        });
    });
}
