//! What does the text say, and what happens at each of its tokens?

use std::sync::Arc;

use egui::{Align2, Color32, FontId, Panel, RichText, Role, ScrollArea, Sense, Ui, WidgetInfo, pos2, vec2};

use super::Cx;
use crate::command::{Command, Step};
use crate::query::{
    Active, DocumentsQuery, NormsQuery, Passage, PassageFeatures, PassageFeaturesQuery, PassageQuery, RowsQuery,
    TOKENS_PER_PAGE,
};
use crate::state::{ColorBy, Focus, Item, View};
use crate::widget::{self, Breaks, Spaces, TokenText, VirtualRows, grouped, number, plain, visible};

/// Features of a token that are listed.
const LISTED: usize = 24;
/// Panes narrower than this have no list of documents, and than this no features of the token.
const LIST_FROM: f32 = 720.0;
const INSPECTOR_FROM: f32 = 480.0;
/// The longest line of text that is pleasant to read.
const TEXT_WIDTH: f32 = 900.0;

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let Some(source) = cx.source() else { return };
    if source.run.n_documents() == 0 {
        widget::empty(ui, cx.theme, "No documents", "The run holds no text yet; `polariscope record` fills it.", None);
        return;
    }
    let frame = egui::Frame::NONE;
    let width = ui.available_width();
    // A narrow pane is for the text: other documents are one key away, the token's features in another pane.
    if width > LIST_FROM {
        let list = Panel::left("documents")
            .frame(frame)
            .default_size((width * 0.21).clamp(140.0, 270.0))
            .size_range(120.0..=460.0);
        list.show(ui, |ui| documents(ui, cx, source.run.n_documents()));
    }

    let doc = doc(cx.focus);
    let page = page(cx.focus);
    let passage = cx.loader.get(&PassageQuery { doc, page });
    let table = cx.table();
    let features = table.as_ref().map(|table| cx.loader.get(&PassageFeaturesQuery { table: table.clone(), doc, page }));
    let features = features.filter(|got| !got.stale);
    let failure = features.as_ref().and_then(|got| got.failure.clone());
    let features = features.and_then(|got| got.value);
    if let (Some(passage), false, true) = (&passage.value, passage.stale, width > INSPECTOR_FROM) {
        let passage = Arc::clone(passage);
        let features = features.clone();
        let inspector = Panel::right("inspector")
            .frame(frame)
            .default_size((width * 0.25).clamp(180.0, 320.0))
            .size_range(160.0..=560.0);
        inspector.show(ui, |ui| {
            ui.add_space(2.0);
            inside(ui, |ui| match &failure {
                Some(failure) => widget::failed(ui, cx, "active features", failure),
                None => inspect(ui, cx, &passage, features.as_deref(), table.as_deref()),
            });
        });
    }
    egui::CentralPanel::no_frame().show(ui, |ui| {
        inside(ui, |ui| {
            widget::answered(ui, cx, "document", passage, |ui, cx, passage| text(ui, cx, passage, features.as_deref()));
        });
    });
}

/// Room at the sides of a column.
fn inside(ui: &mut Ui, add: impl FnOnce(&mut Ui)) {
    egui::Frame::NONE.inner_margin(egui::Margin::symmetric(12, 0)).show(ui, add);
}

pub(crate) fn doc(focus: &Focus) -> u64 {
    focus.doc.unwrap_or(0)
}

/// The page of the document on which the selected token is.
pub(crate) fn page(focus: &Focus) -> u64 {
    focus.token.unwrap_or(0) / TOKENS_PER_PAGE
}

fn documents(ui: &mut Ui, cx: &mut Cx<'_>, total: u64) {
    let theme = cx.theme;
    widget::caption(ui, theme, &format!("{} documents", grouped(total)));
    let chosen = doc(cx.focus);
    let rows = VirtualRows {
        id: ui.scope_id().with("list"),
        name: "documents",
        total,
        row_height: 44.0,
        cursor: Some(chosen),
    };
    rows.show(ui, theme, |ui, row, rect| {
        let got = cx.loader.get(&DocumentsQuery::of_row(row));
        let page = got.value.filter(|_| !got.stale);
        let line = page.as_ref().and_then(|page| page.lines.get(row.checked_sub(page.first)? as usize));
        let response = ui.interact(rect, ui.scope_id().with(("doc", row)), Sense::click());
        response.widget_info(|| {
            WidgetInfo::selected(Role::Row, true, row == chosen, format!("document {row} of {}", grouped(total)))
        });
        let fill = if row == chosen {
            Some(theme.selection)
        } else if response.hovered() {
            Some(theme.hover)
        } else {
            None
        };
        if let Some(fill) = fill {
            ui.painter().rect_filled(rect.shrink2(vec2(0.0, 1.0)), 4.0, fill);
        }
        let painter = ui.painter();
        let line_at = |y: f32| {
            egui::Rect::from_center_size(pos2(rect.center().x, rect.top() + y), vec2(rect.width() - 16.0, 18.0))
        };
        match (line, &got.failure) {
            (Some(line), _) => {
                widget::one_line(ui, line_at(14.0), &line.beginning, FontId::proportional(13.0), theme.text);
                let note = format!("doc {} · {} tokens", line.doc, grouped(line.n_tokens));
                widget::one_line(ui, line_at(31.0), &note, FontId::proportional(11.5), theme.text_dim);
            }
            (None, Some(failure)) => {
                let text = format!("▲ {}", failure.message);
                widget::one_line(ui, line_at(22.0), &text, FontId::proportional(12.0), theme.error);
            }
            (None, None) => {
                let bar = line_at(14.0);
                painter.rect_filled(bar.with_max_x(bar.right() - 40.0).shrink2(vec2(0.0, 4.0)), 3.0, theme.raised);
            }
        }
        let tip = line.map(|line| line.source.clone()).unwrap_or_default();
        let response = response.on_hover_cursor(egui::CursorIcon::PointingHand);
        if response.on_hover_text(tip).clicked() {
            let doc = line.map_or(row, |line| line.doc);
            cx.emit(Command::OpenDocument { doc, token: None });
        }
    });
}

/// What gives the tokens their color.
struct Coloring {
    values: Vec<f32>,
    low: f32,
    high: f32,
}

impl Coloring {
    fn fill(&self, cx_theme: &crate::theme::Theme, token: usize) -> Option<Color32> {
        let value = self.values.get(token).copied().filter(|v| v.is_finite() && *v > self.low)?;
        Some(cx_theme.heat((value - self.low) / (self.high - self.low).max(f32::MIN_POSITIVE)))
    }
}

fn text(ui: &mut Ui, cx: &mut Cx<'_>, passage: &Passage, features: Option<&PassageFeatures>) {
    let theme = cx.theme;
    let (coloring, note) = coloring(ui, cx, passage, features);
    if cx.ui.step.is_some_and(|step| matches!(step, Step::PageDown | Step::PageUp)) {
        turn_page(cx, passage);
    }
    pager(ui, cx, passage, coloring.as_ref(), &note);
    ui.add_space(2.0);
    ui.separator();
    let selected = cx.focus.token.and_then(|token| token.checked_sub(passage.first)).map(|token| token as usize);
    ScrollArea::vertical().id_salt(("text", passage.doc, passage.first)).auto_shrink(false).show(ui, |ui| {
        ui.set_max_width(ui.available_width().min(TEXT_WIDTH));
        ui.add_space(4.0);
        let fill = |token: usize| coloring.as_ref().and_then(|coloring| coloring.fill(theme, token));
        let label = format!("text of document {}, {} tokens", passage.doc, passage.toks.len());
        let shown = TokenText {
            theme,
            toks: &passage.toks,
            fill: &fill,
            selected,
            marked: cx.ui.hovered.token.and_then(|token| token.checked_sub(passage.first)).map(|token| token as usize),
            size: 14.0,
            spaces: cx.ui.spaces,
            breaks: Breaks::Line,
            label: &label,
        }
        .show(ui);
        follow(ui, passage, selected, shown.selected_rect);
        if let Some(step) = cx.ui.step.take()
            && let Some(token) = stepped(&shown, selected, passage.toks.len(), step)
        {
            cx.emit(Command::SelectToken(passage.first + token as u64));
        }
        if let Some(token) = shown.hovered {
            cx.ui.hovering.token = Some(passage.first + token as u64);
            if shown.response.clicked() {
                cx.emit(Command::SelectToken(passage.first + token as u64));
            }
            let lines = tooltip(passage, features, coloring.as_ref(), token);
            shown.response.on_hover_ui_at_pointer(|ui| {
                for (i, line) in lines.iter().enumerate() {
                    let text = RichText::new(line);
                    ui.label(if i == 0 { text.monospace() } else { text.color(theme.text_dim) });
                }
            });
        }
        ui.add_space(24.0);
    });
}

/// Brings the selected token into sight when it has changed.
fn follow(ui: &Ui, passage: &Passage, selected: Option<usize>, rect: Option<egui::Rect>) {
    let id = egui::Id::unique("reader_followed");
    let now = (passage.doc, passage.first, selected);
    let before = ui.data(|data| data.get_temp::<(u64, u64, Option<usize>)>(id));
    if before != Some(now) {
        ui.data_mut(|data| data.insert_temp(id, now));
        if let Some(rect) = rect {
            let far = !ui.clip_rect().shrink(20.0).contains_rect(rect);
            if far {
                ui.scroll_to_rect(rect, Some(egui::Align::Center));
            }
        }
    }
}

/// The token that a step leads to.
fn stepped(shown: &widget::TokenResponse, selected: Option<usize>, n: usize, step: Step) -> Option<usize> {
    let last = n.checked_sub(1)?;
    let Some(now) = selected else { return Some(if step == Step::End { last } else { 0 }) };
    match step {
        Step::Left => now.checked_sub(1),
        Step::Right => Some((now + 1).min(last)),
        Step::Up => shown.line_away(now, -1),
        Step::Down => shown.line_away(now, 1),
        Step::Home => Some(0),
        Step::End => Some(last),
        Step::PageUp | Step::PageDown => None,
    }
}

fn turn_page(cx: &mut Cx<'_>, passage: &Passage) {
    let down = cx.ui.step.take() == Some(Step::PageDown);
    let target = if down { passage.first + TOKENS_PER_PAGE } else { passage.first.saturating_sub(TOKENS_PER_PAGE) };
    if target < passage.n_tokens && target != passage.first {
        cx.emit(Command::SelectToken(target));
    }
}

fn pager(ui: &mut Ui, cx: &mut Cx<'_>, passage: &Passage, coloring: Option<&Coloring>, note: &str) {
    let theme = cx.theme;
    let narrow = ui.available_width() < 560.0;
    if narrow {
        ui.horizontal(|ui| scale(ui, cx, coloring, note));
    }
    ui.horizontal(|ui| {
        let name = passage.source.rsplit('/').next().unwrap_or(&passage.source);
        let room = (ui.available_width() * if narrow { 0.6 } else { 0.4 }).max(60.0);
        ui.scope(|ui| {
            ui.set_max_width(room);
            let name = RichText::new(name).color(theme.text_dim);
            let source = ui.add(egui::Label::new(name).truncate());
            source.on_hover_text(format!("Where the document came from: {}", passage.source));
        });
        if passage.n_tokens > TOKENS_PER_PAGE {
            let end = passage.first + passage.toks.len() as u64;
            let pages = [
                ("←", "Earlier part", passage.first.checked_sub(TOKENS_PER_PAGE)),
                ("→", "Later part", (end < passage.n_tokens).then_some(end)),
            ];
            for (sign, title, target) in pages {
                let button = ui.add_enabled(target.is_some(), egui::Button::new(sign)).accessible_name(title);
                if let (true, Some(target)) = (button.clicked(), target) {
                    cx.emit(Command::SelectToken(target));
                }
            }
            let text = format!(
                "tokens {} to {} of {}",
                grouped(passage.first),
                grouped(end.saturating_sub(1)),
                grouped(passage.n_tokens)
            );
            ui.label(RichText::new(text).color(theme.text_dim));
        } else {
            ui.label(RichText::new(format!("{} tokens", grouped(passage.n_tokens))).color(theme.text_dim));
        }
        if !narrow {
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| scale(ui, cx, coloring, note));
        }
    });
}

/// The colors with their ends, and a word about them.
fn scale(ui: &mut Ui, cx: &Cx<'_>, coloring: Option<&Coloring>, note: &str) {
    if let Some(coloring) = coloring {
        let ends = [coloring.low, coloring.high].map(|end| number(f64::from(end)));
        super::feature::gradient(ui, cx, &ends[0], &ends[1]);
        ui.add_space(6.0);
    }
    ui.add(egui::Label::new(RichText::new(note).color(cx.theme.text_dim)).truncate());
}

/// The choice of what colors the tokens; draws it, and gives the values and a word about them.
fn coloring(
    ui: &mut Ui,
    cx: &mut Cx<'_>,
    passage: &Passage,
    features: Option<&PassageFeatures>,
) -> (Option<Coloring>, String) {
    let theme = cx.theme;
    let mut coloring = None;
    let mut note = String::new();
    ui.horizontal_wrapped(|ui| {
        let choose = |ui: &mut Ui, cx: &mut Cx<'_>| {
            for color in ColorBy::ALL {
                let on = cx.focus.color == color;
                let button = ui.add(egui::Button::selectable(on, color.title()));
                if button.clicked() && !on {
                    cx.emit(Command::ColorBy(color));
                }
            }
        };
        if ui.available_width() > 560.0 {
            ui.label(RichText::new("Color by").color(theme.text_dim));
            choose(ui, cx);
        } else {
            let combo = egui::ComboBox::from_id_salt("color").selected_text(cx.focus.color.title()).width(130.0);
            combo.show_ui(ui, |ui| choose(ui, cx)).response.accessible_name("Color by");
        }
        ui.add_space(8.0);
        coloring = match cx.focus.color {
            ColorBy::Feature => by_feature(ui, cx, features, &mut note),
            ColorBy::Norm => by_norm(ui, cx, passage, &mut note),
            ColorBy::Nll => by_nll(passage, &mut note),
            ColorBy::Entropy | ColorBy::Expert | ColorBy::PleShare => by_layer(ui, cx, &mut note),
            ColorBy::Nothing => None,
        };
    });
    (coloring, note)
}

fn by_feature(ui: &mut Ui, cx: &mut Cx<'_>, features: Option<&PassageFeatures>, note: &mut String) -> Option<Coloring> {
    let theme = cx.theme;
    let Some(feature) = cx.focus.feature else {
        *note = if cx.table().is_some() {
            "no feature chosen: click a token, then one of its features".to_owned()
        } else {
            "the run has no features yet".to_owned()
        };
        return None;
    };
    if widget::link(ui, theme, &format!("feature {feature}")).on_hover_text("Open its page").clicked() {
        cx.emit(Command::OpenFeature(feature));
    }
    let values = features?.of(feature);
    if !values.iter().any(|act| *act > 0.0) {
        note.push_str("the feature is silent here");
        return None;
    }
    // The scale of the feature's page, so that a color means the same in both; what is above it has the last color.
    let order = super::order_query(cx.focus, cx.loader).map(|query| cx.loader.get(&query));
    let order = order.filter(|order| !order.stale).and_then(|order| order.value);
    let max = order.and_then(|order| order.stats.max_act.get(order.position(feature)?).copied());
    let high = max.filter(|max| *max > 0.0).unwrap_or_else(|| values.iter().copied().fold(0.0, f32::max));
    Some(Coloring { values, low: 0.0, high })
}

fn by_norm(ui: &mut Ui, cx: &mut Cx<'_>, passage: &Passage, note: &mut String) -> Option<Coloring> {
    let theme = cx.theme;
    let source = cx.source()?;
    let hooks: Vec<String> = source.run.hook_points().iter().map(|hook| hook.name.to_string()).collect();
    let hook = cx.focus.hook.clone().or_else(|| hooks.last().cloned())?;
    let combo = egui::ComboBox::from_id_salt("hook").selected_text(hook.as_str()).width(200.0).show_ui(ui, |ui| {
        for name in &hooks {
            if ui.selectable_label(*name == hook, name).clicked() {
                cx.emit(Command::UseHook(name.clone()));
            }
        }
    });
    combo.response.accessible_name("Hook point");
    let got = cx.loader.get(&NormsQuery { hook, doc: passage.doc, page: page(cx.focus) });
    if let Some(failure) = got.failure {
        ui.label(RichText::new(format!("▲ {}", failure.message)).color(theme.error));
        return None;
    }
    let norms = got.value.filter(|_| !got.stale)?;
    // Special tokens have norms hundreds of times larger; the scale is that of the others.
    let ordinary: Vec<f32> =
        norms.norms.iter().zip(&passage.toks).filter(|(_, tok)| !tok.special).map(|(norm, _)| *norm).collect();
    let (low, high) = range(&ordinary)?;
    *note = format!("median of the run {}", number(norms.median));
    Some(Coloring { values: norms.norms.clone(), low: low * 0.98, high })
}

fn by_nll(passage: &Passage, note: &mut String) -> Option<Coloring> {
    let finite: Vec<f32> = passage.nll.iter().copied().filter(|nll| nll.is_finite()).collect();
    if finite.is_empty() {
        note.push_str("not recorded: `polariscope record … --nll` writes it");
        return None;
    }
    let mean = finite.iter().map(|x| f64::from(*x)).sum::<f64>() / finite.len() as f64;
    *note = format!("mean here {} nats", number(mean));
    let (_, high) = range(&finite)?;
    Some(Coloring { values: passage.nll.clone(), low: 0.0, high })
}

/// By a quantity of the layer that is looked at, from the grid of tokens by layers.
fn by_layer(ui: &mut Ui, cx: &mut Cx<'_>, note: &mut String) -> Option<Coloring> {
    let metric = cx.focus.color.metric()?;
    let got = cx.loader.get(&super::grid::query(cx, metric));
    if let Some(failure) = got.failure {
        let said = ui.label(RichText::new(format!("▲ {}", failure.message)).color(cx.theme.warning));
        said.on_hover_text(failure.hint.as_deref().unwrap_or_default());
        return None;
    }
    let grid = got.value.filter(|_| !got.stale)?;
    let layers: Vec<usize> = grid.rows.iter().filter_map(|row| row.layer).collect();
    let layer = cx.focus.layer.filter(|layer| layers.contains(layer)).or(layers.last().copied())?;
    let combo = egui::ComboBox::from_id_salt("layer").selected_text(format!("layer {layer}")).width(90.0);
    let combo = combo.show_ui(ui, |ui| {
        for other in layers.iter().rev() {
            if ui.selectable_label(*other == layer, format!("layer {other}")).clicked() {
                cx.emit(Command::UseLayer(*other));
            }
        }
    });
    combo.response.accessible_name("Layer");
    match (metric, cx.focus.expert) {
        (crate::state::Metric::Expert, None) => note.push_str("no expert chosen: see Routing"),
        (crate::state::Metric::Expert, Some(expert)) => *note = format!("weight of expert {expert}"),
        _ => *note = metric.title().to_lowercase(),
    }
    let values = grid.of_layer(layer)?.to_vec();
    let (low, high) = range(&values)?;
    Some(Coloring { values, low: if low > 0.0 && low > high * 0.5 { low } else { 0.0 }, high })
}

/// The smallest and the 99th hundredth, so that one outlier does not flatten the rest.
fn range(values: &[f32]) -> Option<(f32, f32)> {
    let mut sorted: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f32::total_cmp);
    let at = |share: f64| sorted.get(((sorted.len().saturating_sub(1)) as f64 * share) as usize).copied();
    Some((at(0.0)?, at(0.99)?))
}

fn tooltip(
    passage: &Passage,
    features: Option<&PassageFeatures>,
    coloring: Option<&Coloring>,
    token: usize,
) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(tok) = passage.toks.get(token) {
        lines.push(plain(&tok.text));
    }
    if let Some(value) = coloring.and_then(|coloring| coloring.values.get(token)).filter(|v| v.is_finite()) {
        lines.push(format!("value {}", number(f64::from(*value))));
    }
    let active = features.map(|features| features.at(token)).unwrap_or_default();
    let strongest: Vec<String> =
        active.iter().take(5).map(|a| format!("{} ({})", a.feature, number(f64::from(a.act)))).collect();
    if !strongest.is_empty() {
        lines.push(format!("features {}", strongest.join(", ")));
    }
    lines
}

/// The selected token: what it is, and which features are active.
fn inspect(ui: &mut Ui, cx: &mut Cx<'_>, passage: &Passage, features: Option<&PassageFeatures>, table: Option<&str>) {
    let theme = cx.theme;
    let selected = cx.focus.token.and_then(|token| token.checked_sub(passage.first)).map(|token| token as usize);
    let Some((token, tok)) = selected.and_then(|token| Some((token, passage.toks.get(token)?))) else {
        widget::caption(ui, theme, "Token");
        ui.label(
            RichText::new("Click a token, or press →, to see which features are active on it.").color(theme.text_dim),
        );
        return;
    };
    widget::caption(ui, theme, "Token");
    ui.label(RichText::new(visible(tok, Spaces::Dots, Breaks::Sign)).monospace().size(20.0));
    let mut rows = vec![
        ("Token id", passage.ids.get(token).map(u32::to_string).unwrap_or_default()),
        ("In document", format!("token {}", passage.first + token as u64)),
        ("In sequence", format!("position {}", passage.pos.get(token).map(u32::to_string).unwrap_or_default())),
        ("In run", format!("token {}", grouped(passage.first_token_idx + token as u64))),
    ];
    if let Some(nll) = passage.nll.get(token).filter(|nll| nll.is_finite()) {
        rows.push(("Surprise", format!("{} nats (p = {})", number(f64::from(*nll)), number(f64::from(-nll).exp()))));
    }
    if tok.special {
        rows.push(("Special", "yes: left out of statistics".to_owned()));
    }
    ui.spacing_mut().item_spacing.y = 3.0;
    widget::facts(ui, theme, "token", &rows);
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = 12.0;
        for (text, view) in [("Experts", View::Routing), ("Embedding lookups", View::Rows), ("Layers", View::Grid)] {
            let tip = super::shell::with_keys(ui, "Of this token", &Command::Show(view));
            if widget::link(ui, theme, text).on_hover_text(tip).clicked() {
                cx.emit(Command::Show(view));
            }
        }
    });
    ui.add_space(4.0);
    ui.separator();
    let Some(table) = table else {
        ui.label(RichText::new("No features yet: `polariscope encode` makes them.").color(theme.text_dim));
        return;
    };
    let Some(features) = features else {
        ui.label(RichText::new("Loading the active features…").color(theme.text_dim));
        return;
    };
    let active = features.at(token);
    widget::caption(ui, theme, &format!("{} active features of {table}", active.len()));
    if active.is_empty() {
        ui.label(RichText::new("No feature is active on this token.").color(theme.text_dim));
        return;
    }
    let listed = &active[..active.len().min(LISTED)];
    let query = RowsQuery {
        table: table.to_owned(),
        features: listed.iter().map(|a| a.feature).collect(),
        needle: String::new(),
        page: u64::MAX,
    };
    let got = cx.loader.get(&query);
    let details = got.value.filter(|_| !got.stale);
    let largest = listed.first().map_or(1.0, |a| a.act);
    let notes = cx.notes();
    ScrollArea::vertical().id_salt("active").auto_shrink(false).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = 1.0;
        for (i, active) in listed.iter().enumerate() {
            let detail = details.as_ref().and_then(|details| details.get(i));
            let item = Item::Feature { table: table.to_owned(), feature: active.feature };
            // What someone called it says more than where it is strongest.
            let words = match notes.as_ref().and_then(|notes| notes.label(&item.to_string())) {
                Some(label) => format!("“{label}”"),
                None => detail.map(|detail| peak_words(&detail.snippet, detail.peak)).unwrap_or_default(),
            };
            active_line(ui, cx, *active, largest, &words);
        }
        if active.len() > listed.len() {
            let text = format!("and {} weaker ones", active.len() - listed.len());
            ui.label(RichText::new(text).color(theme.text_dim));
        }
    });
}

/// What a feature is about, in one word and its surroundings.
fn peak_words(snippet: &[crate::query::Tok], peak: usize) -> String {
    let from = peak.saturating_sub(2);
    let to = (peak + 2).min(snippet.len());
    let mut out = String::new();
    for (i, tok) in snippet.iter().enumerate().take(to).skip(from).filter(|(_, tok)| !tok.special) {
        if i == peak {
            out.push('[');
            out.push_str(tok.text.trim());
            out.push(']');
        } else {
            out.push_str(&visible(tok, Spaces::Blank, Breaks::Sign));
        }
        if i + 1 == peak && !out.ends_with(' ') {
            out.push(' ');
        }
    }
    out.trim().to_owned()
}

fn active_line(ui: &mut Ui, cx: &mut Cx<'_>, active: Active, largest: f32, words: &str) {
    let theme = cx.theme;
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 24.0), Sense::click());
    let chosen = cx.focus.feature == Some(active.feature);
    response
        .widget_info(|| WidgetInfo::selected(Role::Button, true, chosen, format!("active feature {}", active.feature)));
    if chosen || response.hovered() {
        ui.painter().rect_filled(rect, 3.0, if chosen { theme.selection } else { theme.hover });
    }
    let line = egui::Rect::from_min_size(pos2(rect.left() + 4.0, rect.bottom() - 3.0), vec2(92.0, 2.0));
    widget::bar(ui, line, active.act / largest.max(f32::MIN_POSITIVE), theme.accent);
    let middle = rect.center().y - 1.0;
    let font = FontId::proportional(13.0);
    let painter = ui.painter().with_clip_rect(rect.intersect(ui.clip_rect()));
    painter.text(
        pos2(rect.left() + 4.0, middle),
        Align2::LEFT_CENTER,
        active.feature.to_string(),
        font.clone(),
        theme.accent,
    );
    painter.text(
        pos2(rect.left() + 96.0, middle),
        Align2::RIGHT_CENTER,
        number(f64::from(active.act)),
        font,
        theme.text,
    );
    painter.text(
        pos2(rect.left() + 108.0, middle),
        Align2::LEFT_CENTER,
        words,
        FontId::monospace(12.0),
        theme.text_dim,
    );
    let response = response.on_hover_cursor(egui::CursorIcon::PointingHand);
    let response = response.on_hover_text("Click to color the text by it, again or twice to open its page");
    if response.double_clicked() || (response.clicked() && chosen) {
        cx.emit(Command::OpenFeature(active.feature));
    } else if response.clicked() {
        cx.emit(Command::ColorBy(ColorBy::Feature));
        cx.emit(Command::SelectFeature(active.feature));
    }
}

/// The strongest feature of the selected token, which Enter opens.
pub(crate) fn strongest(focus: &Focus, loader: &crate::loader::Loader) -> Option<Command> {
    debug_assert_eq!(focus.view, View::Reader);
    if let Some(feature) = focus.feature {
        return Some(Command::OpenFeature(feature));
    }
    let query = PassageFeaturesQuery { table: super::table(focus, loader)?, doc: doc(focus), page: page(focus) };
    let features = loader.peek(&query)?;
    let token = focus.token?.checked_sub(page(focus) * TOKENS_PER_PAGE)?;
    features.at(token as usize).first().map(|active| Command::OpenFeature(active.feature))
}
