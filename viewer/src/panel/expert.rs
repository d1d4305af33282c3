//! What does this expert take?

use egui::{Align2, FontId, RichText, Role, Sense, Ui, WidgetInfo, pos2, vec2};

use super::{Cx, scrolled};
use crate::command::Command;
use crate::query::{ExpertFeaturesQuery, ExpertSample, ExpertSampleQuery, Joined, LoadsQuery, Taken};
use crate::state::{ColorBy, Item, Metric, View};
use crate::widget::{self, Breaks, TokenText, grouped, number, percent, plain};

/// Lines of a list.
const LISTED: usize = 10;

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let Some(source) = cx.source() else { return };
    let Ok(routing) = source.run.routing_info() else {
        super::routing::no_routing(ui, cx);
        return;
    };
    let layer = cx.focus.layer.filter(|layer| routing.layers.contains(layer));
    let (Some(layer), Some(expert)) = (layer, cx.focus.expert) else {
        widget::empty(
            ui,
            cx.theme,
            "No expert chosen",
            "Click one in the grid of Routing, press . for the first one, or type e 9:37 for expert 37 of layer 9 (Ctrl+K).",
            None,
        );
        return;
    };
    if usize::from(expert) >= routing.n_experts {
        let text = format!("A layer has {} experts, numbered from 0.", routing.n_experts);
        widget::empty(ui, cx.theme, &format!("There is no expert {expert}"), &text, None);
        return;
    }
    header(ui, cx, layer, expert);
    scrolled(ui, cx, ("expert", layer, expert), |ui, cx| {
        if ui.available_width() > 760.0 {
            let left = (ui.available_width() * 0.42).clamp(300.0, 470.0);
            ui.horizontal_top(|ui| {
                ui.spacing_mut().item_spacing.x = 12.0;
                ui.vertical(|ui| {
                    ui.set_width(left);
                    lists(ui, cx, layer, expert);
                });
                ui.vertical(|ui| {
                    ui.set_width(ui.available_width());
                    samples(ui, cx, layer, expert);
                });
            });
        } else {
            lists(ui, cx, layer, expert);
            samples(ui, cx, layer, expert);
        }
    });
}

fn header(ui: &mut Ui, cx: &mut Cx<'_>, layer: usize, expert: u16) {
    ui.horizontal_wrapped(|ui| {
        ui.label(RichText::new(format!("Expert {expert}")).size(22.0));
        ui.label(RichText::new(format!("of layer {layer}")).size(15.0).color(cx.theme.text_dim));
        for (text, title, command) in
            [("←", "Previous expert", Command::PreviousExpert), ("→", "Next expert", Command::NextExpert)]
        {
            let button = ui.button(text).accessible_name(title);
            if button.on_hover_text(super::shell::with_keys(ui, title, &command)).clicked() {
                cx.emit(command);
            }
        }
        if ui.button("Color the text by it").clicked() {
            cx.emit(Command::ColorBy(ColorBy::Expert));
            cx.emit(Command::UseMetric(Metric::Expert));
            cx.emit(Command::Show(View::Reader));
        }
    });
}

/// What is counted over the whole run.
fn lists(ui: &mut Ui, cx: &mut Cx<'_>, layer: usize, expert: u16) {
    let got = cx.loader.get(&LoadsQuery { layer: Some(layer) });
    widget::answered(ui, cx, "load of the expert", got, |ui, cx, report| {
        let theme = cx.theme;
        let Some(found) = report.layers.iter().find(|found| found.layer == layer) else { return };
        let Some(load) = found.experts.get(usize::from(expert)) else { return };
        let even = report.top_k as f64 / report.n_experts.max(1) as f64;
        let share = load.tokens as f64 / report.n_tokens.max(1) as f64;
        let mut facts = vec![
            ("Takes", format!("{} of {} tokens", grouped(load.tokens), grouped(report.n_tokens))),
            ("Which is", format!("{}; even would be {}", percent(share), percent(even))),
        ];
        if let Some(weight) = load.mean_weight {
            facts.push(("Mean weight", number(weight)));
        }
        widget::card(ui, theme, "In the whole run", |ui| {
            widget::facts(ui, theme, "expert", &facts);
            if load.tokens == 0 {
                ui.label(RichText::new("▲ Dormant: no token of this run chose it.").color(theme.warning));
            }
        });
        ui.add_space(6.0);
        widget::card(ui, theme, "Tokens it takes more than by chance", |ui| {
            ui.spacing_mut().item_spacing.y = 1.0;
            for token in load.top_tokens.iter().take(LISTED) {
                let note = format!("{} of {}", grouped(token.count), grouped(token.occurrences));
                let name = format!("token {}", plain(&token.token));
                if line(ui, cx, &name, &plain(&token.token), token.lift, &note) {
                    cx.emit(Command::OpenRow(token.token_id));
                }
            }
            if load.top_tokens.is_empty() {
                let text = format!("None that it took at least {} times.", report.min_count);
                ui.label(RichText::new(text).color(theme.text_dim));
            }
        });
        ui.add_space(6.0);
        features(ui, cx, layer, expert);
        ui.add_space(6.0);
        widget::card(ui, theme, "Chosen together with", |ui| {
            ui.spacing_mut().item_spacing.y = 1.0;
            let n = report.n_experts;
            let own = load.tokens as f64;
            let mut together: Vec<(usize, u64, f64)> = (0..n)
                .filter(|other| *other != usize::from(expert))
                .filter_map(|other| {
                    let both = *found.co_selected.get(usize::from(expert) * n + other)?;
                    let chance = own * found.experts[other].tokens as f64 / found.n_tokens.max(1) as f64;
                    (both >= report.min_count && chance > 0.0).then(|| (other, both, both as f64 / chance))
                })
                .collect();
            together.sort_by(|a, b| b.2.total_cmp(&a.2));
            for (other, both, lift) in together.into_iter().take(8) {
                let name = format!("together with expert {other}");
                if line(ui, cx, &name, &format!("expert {other}"), lift, &format!("{} tokens", grouped(both))) {
                    cx.emit(Command::OpenExpert { layer, expert: other as u16 });
                }
            }
        });
        ui.add_space(6.0);
    });
    super::notes::show(ui, cx, &Item::Expert { layer, expert });
}

fn features(ui: &mut Ui, cx: &mut Cx<'_>, layer: usize, expert: u16) {
    let theme = cx.theme;
    widget::card(ui, theme, "Features that go with it", |ui| {
        let Some(table) = cx.table() else {
            ui.label(RichText::new("The run has no features yet.").color(theme.text_dim));
            return;
        };
        let got = cx.loader.get(&ExpertFeaturesQuery { table: table.clone(), layer, expert });
        widget::answered(ui, cx, "features of the expert", got, |ui, cx, answer| match answer {
            None => {
                ui.label(RichText::new("Not counted yet. This counts it:").color(theme.text_dim));
                let run = cx.source().map(|source| source.path.display().to_string()).unwrap_or_default();
                let command = format!("polariscope join {run} --sae {table} --with experts");
                widget::command_line(ui, theme, &command);
            }
            Some(joined) if joined.is_empty() => {
                let text = "None above what shuffled experts give.";
                ui.label(RichText::new(text).color(theme.text_dim));
            }
            Some(joined) => {
                ui.spacing_mut().item_spacing.y = 1.0;
                for feature in joined.iter().take(LISTED) {
                    feature_line(ui, cx, feature);
                }
            }
        });
    });
}

fn feature_line(ui: &mut Ui, cx: &mut Cx<'_>, joined: &Joined) {
    let name = format!("feature {} of the expert", joined.feature);
    let title = format!("{}  {}", joined.feature, plain(&joined.peak));
    let note = format!("{} tokens, {:.4} bits", grouped(joined.n_both), joined.information);
    if line(ui, cx, &name, &title, joined.lift, &note) {
        cx.emit(Command::OpenFeature(joined.feature));
    }
}

/// Something with its lift; true where it was clicked.
pub(super) fn line(ui: &mut Ui, cx: &Cx<'_>, name: &str, title: &str, lift: f64, note: &str) -> bool {
    let theme = cx.theme;
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 21.0), Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Link, true, name));
    if response.hovered() {
        ui.painter().rect_filled(rect.expand2(vec2(4.0, 0.0)), 3.0, theme.hover);
    }
    let font = FontId::proportional(12.5);
    let middle = rect.center().y;
    ui.painter().text(
        pos2(rect.right(), middle),
        Align2::RIGHT_CENTER,
        format!("{} ×", number(lift)),
        font.clone(),
        theme.text,
    );
    let note_right = rect.right() - 62.0;
    let painted = ui.painter().text(pos2(note_right, middle), Align2::RIGHT_CENTER, note, font, theme.text_dim);
    let words = egui::Rect::from_min_max(rect.min, pos2(painted.left() - 8.0, rect.max.y));
    widget::one_line(ui, words, title, FontId::monospace(12.5), theme.accent);
    response
        .on_hover_cursor(egui::CursorIcon::PointingHand)
        .on_hover_text("How many times as often as by chance")
        .clicked()
}

/// What it took in some stretches of the run.
fn samples(ui: &mut Ui, cx: &mut Cx<'_>, layer: usize, expert: u16) {
    let got = cx.loader.get(&ExpertSampleQuery { layer, expert });
    widget::answered(ui, cx, "tokens of the expert", got, |ui, cx, sample: &ExpertSample| {
        let theme = cx.theme;
        let sampled = if sample.whole { "" } else { "a sample of " };
        let among = format!("{sampled}{}", grouped(sample.n_looked));
        if let Some((next, experts)) = &sample.next {
            let n: u64 = experts.iter().map(|(_, count)| *count).sum::<u64>().max(1);
            widget::card(ui, theme, &format!("Where its tokens go first in layer {next}"), |ui| {
                ui.horizontal_wrapped(|ui| {
                    for (other, count) in experts {
                        let text = format!("{other}  {}", percent(*count as f64 / n as f64));
                        let name = format!("goes on to expert {other}");
                        if ui.button(text).accessible_name(name).clicked() {
                            cx.emit(Command::OpenExpert { layer: *next, expert: *other });
                        }
                    }
                });
            });
            ui.add_space(6.0);
        }
        let random = format!("Any of them: {} of {among} tokens", grouped(sample.n_taken));
        widget::card(ui, theme, &random, |ui| taken_list(ui, cx, "random", &sample.random));
        ui.add_space(6.0);
        let strongest = format!("Those with the greatest weight, of {among} tokens");
        widget::card(ui, theme, &strongest, |ui| taken_list(ui, cx, "strongest", &sample.strongest));
    });
}

/// Passages, each around one token.
pub(super) fn taken_list(ui: &mut Ui, cx: &mut Cx<'_>, what: &str, list: &[Taken]) {
    let theme = cx.theme;
    if list.is_empty() {
        ui.label(RichText::new("None was found.").color(theme.text_dim));
    }
    for (i, taken) in list.iter().enumerate() {
        ui.push_id((what, i), |ui| {
            ui.horizontal_top(|ui| {
                ui.spacing_mut().item_spacing.x = 10.0;
                if taken.weight.is_finite() && taken.weight > 0.0 {
                    let (rect, _) = ui.allocate_exact_size(vec2(40.0, 20.0), Sense::hover());
                    let weight = number(f64::from(taken.weight));
                    let font = FontId::proportional(12.5);
                    ui.painter().text(rect.right_center(), Align2::RIGHT_CENTER, weight, font, theme.text);
                }
                let width = (ui.available_width() - 70.0).max(100.0);
                ui.allocate_ui_with_layout(vec2(width, 20.0), egui::Layout::top_down(egui::Align::Min), |ui| {
                    ui.set_width(width);
                    let fill = |token: usize| (token == taken.at).then_some(theme.selection);
                    let label = format!("{what} passage {}", i + 1);
                    let shown = TokenText {
                        theme,
                        toks: &taken.toks,
                        fill: &fill,
                        selected: None,
                        marked: Some(taken.at),
                        size: 12.5,
                        spaces: cx.ui.spaces,
                        breaks: Breaks::Sign,
                        label: &label,
                    }
                    .show(ui);
                    if shown.response.clicked() {
                        let at = shown.hovered.unwrap_or(taken.at) as u64;
                        let token = (taken.token_in_doc + at).saturating_sub(taken.at as u64);
                        cx.emit(Command::OpenDocument { doc: taken.doc, token: Some(token) });
                    }
                });
                let doc = format!("doc {}", taken.doc);
                if widget::link(ui, theme, &doc).on_hover_text("Read the document here").clicked() {
                    cx.emit(Command::OpenDocument { doc: taken.doc, token: Some(taken.token_in_doc) });
                }
            });
        });
    }
}
