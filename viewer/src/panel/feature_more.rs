//! What goes together with a feature: other features, experts, gates, kinds of tokens, and where it should have fired?

use egui::{RichText, Ui};

use super::Cx;
use super::expert::{line, taken_list};
use crate::command::Command;
use crate::query::{FeatureAnswer, FeatureMore, FeatureMoreQuery, Joined, NearMissQuery, Partner};
use crate::state::Item;
use crate::widget::{self, grouped, number, percent, plain};

/// Cards about a feature's company.
pub(super) fn show(ui: &mut Ui, cx: &mut Cx<'_>, answer: &FeatureAnswer) {
    let Some(table) = cx.table() else { return };
    let got = cx.loader.get(&FeatureMoreQuery { table: table.clone(), feature: answer.feature });
    widget::answered(ui, cx, "company of the feature", got, |ui, cx, more| {
        partners(ui, cx, more.partners.as_deref(), &table);
        ui.add_space(6.0);
        for (other, pairs) in &more.others {
            others(ui, cx, other, pairs);
            ui.add_space(6.0);
        }
        for (with, rows) in &more.joins {
            joins(ui, cx, with, rows);
            ui.add_space(6.0);
        }
        not_joined(ui, cx, more, &table);
    });
    ui.add_space(10.0);
}

fn partners(ui: &mut Ui, cx: &mut Cx<'_>, partners: Option<&[Partner]>, table: &str) {
    let theme = cx.theme;
    widget::card(ui, theme, "Fires together with", |ui| match partners {
        None => {
            ui.label(RichText::new("Pairs were not counted for this table.").color(theme.text_dim));
        }
        Some([]) => {
            let text = format!("No feature of {table} fires at the same tokens more than by chance.");
            ui.label(RichText::new(text).color(theme.text_dim));
        }
        Some(partners) => {
            ui.spacing_mut().item_spacing.y = 1.0;
            for partner in partners {
                let title = format!("{}  {}", partner.feature, plain(&partner.peak));
                let note = format!("{} tokens, φ {:.2}", grouped(partner.n_both), partner.phi);
                if line(ui, cx, &format!("fires with {}", partner.feature), &title, partner.lift, &note) {
                    cx.emit(Command::OpenFeature(partner.feature));
                }
            }
        }
    });
}

/// The same feature in another coder, where that was compared.
fn others(ui: &mut Ui, cx: &mut Cx<'_>, other: &str, pairs: &[Partner]) {
    let theme = cx.theme;
    let here = cx.source().is_some_and(|source| source.tables.iter().any(|table| table == other));
    widget::card(ui, theme, &format!("Fires as in {other}"), |ui| {
        if pairs.is_empty() {
            let text = "No feature of it fires at the same tokens.";
            ui.label(RichText::new(text).color(theme.text_dim));
        }
        ui.spacing_mut().item_spacing.y = 1.0;
        for pair in pairs {
            let title = format!("{}  {}", pair.feature, plain(&pair.peak));
            let note = format!("{} tokens, φ {:.2}", grouped(pair.n_both), pair.phi);
            if line(ui, cx, &format!("{other} feature {}", pair.feature), &title, pair.lift, &note) && here {
                cx.emit(Command::OpenItem(Item::Feature { table: other.to_owned(), feature: pair.feature }));
            }
        }
    });
}

fn joins(ui: &mut Ui, cx: &mut Cx<'_>, with: &str, rows: &[Joined]) {
    let theme = cx.theme;
    let title = match with {
        "experts" => "Goes with experts",
        "ple" => "Goes with gates of the per-layer embedding",
        "token-class" => "Goes with kinds of tokens",
        "language" => "Goes with languages",
        "source" => "Goes with sources",
        other => other,
    };
    widget::card(ui, theme, title, |ui| {
        if rows.is_empty() {
            ui.label(RichText::new("None above what shuffled labels give.").color(theme.text_dim));
        }
        ui.spacing_mut().item_spacing.y = 1.0;
        for row in rows {
            let label = match (row.layer, with) {
                (Some(layer), "experts") => format!("L{layer} expert {}", row.label),
                (Some(layer), "ple") => format!("L{layer} gate {}", row.label),
                (Some(layer), _) => format!("L{layer} {}", row.label),
                (None, _) => row.label.clone(),
            };
            let note = format!("{} tokens, {:.4} bits", grouped(row.n_both), row.information);
            if line(ui, cx, &format!("{with} {label}"), &label, row.lift, &note)
                && let (Some(layer), "experts", Ok(expert)) = (row.layer, with, row.label.parse())
            {
                cx.emit(Command::OpenExpert { layer: layer as usize, expert });
            }
        }
    });
}

/// What could still be counted.
fn not_joined(ui: &mut Ui, cx: &Cx<'_>, more: &FeatureMore, table: &str) {
    let theme = cx.theme;
    let Some(source) = cx.source() else { return };
    let routed = source.run.routing_info().is_ok();
    let with = if routed { "experts" } else { "token-class" };
    if more.joins.iter().any(|(name, _)| name == with) {
        return;
    }
    widget::card(ui, theme, "Lift with experts, kinds of tokens, languages", |ui| {
        ui.label(RichText::new("Not counted yet. This counts it:").color(theme.text_dim));
        let command = format!("polariscope join {} --sae {table} --with {with}", source.path.display());
        widget::command_line(ui, theme, &command);
    });
}

/// Places with one of the feature's own tokens at which it is silent.
pub(super) fn near_misses(ui: &mut Ui, cx: &mut Cx<'_>, answer: &FeatureAnswer) {
    let theme = cx.theme;
    let Some(table) = cx.table().filter(|_| answer.n_active > 0) else { return };
    ui.add_space(10.0);
    ui.label(RichText::new("Near-misses: its own tokens, where it is silent").size(12.5).strong().color(theme.accent));
    let got = cx.loader.get(&NearMissQuery { table, feature: answer.feature });
    widget::answered(ui, cx, "near-misses", got, |ui, cx, found| {
        if found.n_looked == 0 {
            let text = "It fires too often for its silence to say much.";
            ui.label(RichText::new(text).color(theme.text_dim));
            return;
        }
        ui.horizontal_wrapped(|ui| {
            for (text, n, fired) in &found.tokens {
                let share = *fired as f64 / (*n).max(1) as f64;
                let text = format!("{} {} of {}", plain(text), percent(share), grouped(*n));
                ui.label(RichText::new(text).monospace().size(12.0).color(theme.text_dim));
            }
        });
        if found.shown.is_empty() {
            let text = format!("It fires at every one of them, in {} tokens.", grouped(found.n_looked));
            ui.label(RichText::new(text).color(theme.text_dim));
        }
        taken_list(ui, cx, "near-miss", &found.shown);
    });
}

/// How many activations the group of an example was drawn from.
pub(super) fn group_note(cx: &Cx<'_>, answer: &FeatureAnswer, group: &str) -> String {
    let more = cx.table().and_then(|table| cx.loader.peek(&FeatureMoreQuery { table, feature: answer.feature }));
    let found = more.as_ref().and_then(|more| more.groups.iter().find(|(name, ..)| name == group));
    found.map_or_else(String::new, |(_, low, high, n)| {
        let (low, high) = (number(f64::from(*low)), number(f64::from(*high)));
        format!(", drawn from {} activations between {low} and {high}", grouped(*n))
    })
}
