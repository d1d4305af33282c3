//! How does the tokenizer cut a text that one types?

use egui::{RichText, TextEdit, Ui};

use super::{Cx, scrolled};
use crate::command::Command;
use crate::query::{Pieces, PiecesQuery};
use crate::widget::{self, Breaks, Spaces, TokenText, grouped, number, percent, plain};

/// A first text, in several languages, so that the difference is seen at once.
const EXAMPLE: &str = "The rain in Sydney has not stopped for three days, and the river is rising.\n\
La pluie n'a pas cessé depuis trois jours et le fleuve continue de monter.\n\
Дождь не прекращается уже три дня, и река продолжает подниматься.\n\
雨已经下了三天，河水还在上涨。\n\
المطر لم يتوقف منذ ثلاثة أيام والنهر يواصل الارتفاع.";

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let theme = cx.theme;
    let mut typed = cx.ui.pieces.take().unwrap_or_default();
    ui.horizontal(|ui| {
        let path = TextEdit::singleline(&mut typed.path)
            .hint_text("Folder of the model, or its tokenizer.json; that of the run where this is empty")
            .desired_width((ui.available_width() - 8.0).min(620.0));
        ui.add(path).accessible_name("Tokenizer file");
    });
    let text =
        TextEdit::multiline(&mut typed.text).hint_text("Type a text").desired_width(f32::INFINITY).desired_rows(5);
    ui.add(text).accessible_name("Text to cut");
    if typed.text.trim().is_empty() {
        widget::empty(
            ui,
            theme,
            "What does the tokenizer make of it?",
            "Type a text: its tokens, the bytes that the vocabulary has no piece for, and what each language costs.",
            None,
        );
        ui.vertical_centered(|ui| {
            if ui.button("Take an example").clicked() {
                EXAMPLE.clone_into(&mut typed.text);
            }
        });
        cx.ui.pieces = Some(typed);
        return;
    }
    let query = PiecesQuery { path: typed.path.clone(), text: typed.text.clone() };
    cx.ui.pieces = Some(typed);
    let got = cx.loader.get(&query);
    ui.add_space(4.0);
    scrolled(ui, cx, "pieces", |ui, cx| {
        if let Some(failure) = &got.failure {
            ui.label(RichText::new(format!("▲ {}", failure.message)).color(theme.warning));
            if let Some(hint) = &failure.hint {
                ui.label(RichText::new(format!("Next: {hint}")).color(theme.text_dim));
            }
            return;
        }
        widget::answered(ui, cx, "tokens", got, pieces);
    });
}

fn pieces(ui: &mut Ui, cx: &mut Cx<'_>, pieces: &Pieces) {
    let theme = cx.theme;
    let share = pieces.n_bytes as f64 / pieces.toks.len().max(1) as f64;
    let text = format!(
        "{} tokens, {} of them single bytes ({}) · {}",
        grouped(pieces.toks.len() as u64),
        grouped(pieces.n_bytes as u64),
        percent(share),
        pieces.path.display()
    );
    ui.label(RichText::new(text).color(theme.text_dim));
    widget::card(ui, theme, "Pieces; every second one is shaded", |ui| {
        let fill = |token: usize| (token % 2 == 1).then_some(theme.selection);
        let shown = TokenText {
            theme,
            toks: &pieces.toks,
            fill: &fill,
            selected: None,
            marked: None,
            size: 14.0,
            spaces: Spaces::Dots,
            breaks: Breaks::Line,
            label: "pieces of the text",
        }
        .show(ui);
        if let Some(token) = shown.hovered {
            let id = pieces.ids.get(token).copied().unwrap_or_default();
            let text = pieces.toks.get(token).map(|tok| plain(&tok.text)).unwrap_or_default();
            if shown.response.clicked() {
                cx.emit(Command::OpenRow(id));
            }
            shown.response.on_hover_text_at_pointer(format!("{text}   token {id}; click for its embeddings"));
        }
    });
    ui.add_space(6.0);
    widget::card(ui, theme, "What each language costs", |ui| {
        egui::Grid::new("languages").num_columns(6).spacing([22.0, 4.0]).show(ui, |ui| {
            for title in ["Language", "Tokens", "Words", "Tokens a word", "Characters a token", "Single bytes"] {
                ui.label(RichText::new(title).size(12.5).color(theme.text_dim));
            }
            ui.end_row();
            for of in &pieces.languages {
                ui.label(&of.language);
                ui.label(grouped(of.n_tokens as u64));
                ui.label(grouped(of.words as u64));
                // Scripts without spaces have one word a line, which says nothing.
                let spaced = of.words > 1 && of.characters / of.words.max(1) < 20;
                let fertility = number(of.n_tokens as f64 / of.words.max(1) as f64);
                ui.label(if spaced { fertility } else { "–".to_owned() });
                ui.label(number(of.characters as f64 / of.n_tokens.max(1) as f64));
                ui.label(percent(of.n_bytes as f64 / of.n_tokens.max(1) as f64));
                ui.end_row();
            }
        });
    });
}
