//! What do people say of this, and what does one add?

use data::annotations::Annotation;
use egui::{RichText, TextEdit, Ui};

use super::{Cx, Saying};
use crate::command::Command;
use crate::state::Item;
use crate::widget;

/// Labels, ratings and notes on something, with room to add one's own.
pub(super) fn show(ui: &mut Ui, cx: &mut Cx<'_>, item: &Item) {
    let theme = cx.theme;
    let key = item.to_string();
    let notes = cx.notes();
    widget::card(ui, theme, "Labels and notes", |ui| {
        let said: Vec<&Annotation> = notes.as_ref().map(|notes| notes.of(&key)).unwrap_or_default();
        for one in &said {
            line(ui, cx, one);
        }
        let own = said.iter().find(|one| one.author == cx.loader.author());
        let typed = cx.ui.saying.remove(&key);
        let mut typed = typed.unwrap_or_else(|| Saying {
            label: own.and_then(|own| own.label.clone()).unwrap_or_default(),
            note: own.and_then(|own| own.note.clone()).unwrap_or_default(),
        });
        let label =
            TextEdit::singleline(&mut typed.label).hint_text("What is it? Enter keeps it").desired_width(f32::INFINITY);
        let label = ui.add(label).accessible_name("Label");
        if cx.ui.focus_label.take().is_some() {
            label.request_focus();
        }
        let entered = |response: &egui::Response| {
            response.lost_focus() && response.ctx.input(|i| i.key_pressed(egui::Key::Enter))
        };
        if entered(&label) {
            let label = Some(typed.label.trim().to_owned());
            let said = Annotation { label, ..Annotation::new(key.clone(), cx.loader.author()) };
            cx.emit(Command::Say(Box::new(said)));
        }
        let note = TextEdit::singleline(&mut typed.note).hint_text("A note").desired_width(f32::INFINITY);
        let note = ui.add(note).accessible_name("Note");
        if entered(&note) {
            let note = Some(typed.note.trim().to_owned());
            let said = Annotation { note, ..Annotation::new(key.clone(), cx.loader.author()) };
            cx.emit(Command::Say(Box::new(said)));
        }
        // What was read of one's own words comes first; only then is there something to keep.
        if notes.is_some() {
            cx.ui.saying.insert(key.clone(), typed);
        }
        ui.horizontal_wrapped(|ui| {
            ui.label(RichText::new("Does the label hold?").color(theme.text_dim));
            let rated = own.and_then(|own| own.rating);
            for rating in 1..=5_u8 {
                let button = ui.add(egui::Button::selectable(rated == Some(rating), rating.to_string()));
                let button = button.accessible_name(format!("Rate {rating}"));
                let tip = "1: it says nothing about where the feature fires; 5: it says exactly where";
                if button.on_hover_text(tip).clicked() {
                    cx.emit(Command::Rate(rating));
                }
            }
        });
    });
}

fn line(ui: &mut Ui, cx: &Cx<'_>, said: &Annotation) {
    let theme = cx.theme;
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = 6.0;
        if let Some(label) = &said.label {
            ui.label(RichText::new(format!("“{label}”")).strong());
        }
        let rating = said.rating.map(|rating| format!(", {rating} of 5")).unwrap_or_default();
        ui.label(RichText::new(format!("{}{rating}", said.author)).size(12.0).color(theme.text_dim));
        if let Some(note) = &said.note {
            ui.label(note);
        }
    });
}
