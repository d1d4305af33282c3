//! What is this feature?

use egui::{Align2, FontId, RichText, Role, ScrollArea, Sense, Ui, WidgetInfo, pos2, vec2};

use super::{Cx, order_query, scroll_by_step};
use crate::command::Command;
use crate::query::{FeatureAnswer, FeatureExample, FeatureQuery, Neighbour};
use crate::state::{ColorBy, Item, View};
use crate::widget::{self, Axis, Breaks, Chart, Mark, Series, TokenText, grouped, number, percent, plain};

/// A feature that fires on more tokens than this is called dense.
const DENSE: f64 = 0.1;
const LEFT_WIDTH: f32 = 380.0;
/// Tokens before and after the peak when the context is short.
const SHORT: (usize, usize) = (20, 12);

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let Some(order_query) = order_query(cx.focus, cx.loader) else {
        super::no_features(ui, cx);
        return;
    };
    // Kept loaded for the way to the next feature and for the place in the list.
    let order = cx.loader.get(&order_query);
    let Some(feature) = cx.focus.feature else {
        widget::empty(
            ui,
            cx.theme,
            "No feature chosen",
            "Choose one in the table (Ctrl+2), or type its number (Ctrl+K).",
            None,
        );
        return;
    };
    let place = order
        .value
        .as_ref()
        .filter(|_| !order.stale)
        .and_then(|order| Some((order.row_of(feature)? + 1, order.features.len() as u64)));
    header(ui, cx, feature, place);
    let query = FeatureQuery { table: order_query.table, feature };
    let got = cx.loader.get(&query);
    if let (Some(order), Some((row, _)), false) = (&order.value, place, got.stale) {
        // The next one in the list is there before it is asked for.
        if let Some(next) = order.features.get(row as usize) {
            cx.loader.prefetch(&FeatureQuery { feature: *next, ..query }, 0);
        }
    }
    widget::answered(ui, cx, "feature page", got, page);
}

fn header(ui: &mut Ui, cx: &mut Cx<'_>, feature: u32, place: Option<(u64, u64)>) {
    let theme = cx.theme;
    ui.horizontal(|ui| {
        ui.label(RichText::new(format!("Feature {feature}")).size(22.0));
        ui.add_space(6.0);
        for (text, title, command) in
            [("←", "Previous feature", Command::PreviousFeature), ("→", "Next feature", Command::NextFeature)]
        {
            let button = ui.button(text).accessible_name(title);
            if button.on_hover_text(super::shell::with_keys(ui, title, &command)).clicked() {
                cx.emit(command);
            }
        }
        if let Some((row, n)) = place {
            let text = format!("{} of {} by {}", grouped(row), grouped(n), cx.focus.sort.title().to_lowercase());
            ui.label(RichText::new(text).color(theme.text_dim));
        }
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            super::features::tables(ui, cx);
        });
    });
}

fn page(ui: &mut Ui, cx: &mut Cx<'_>, answer: &FeatureAnswer) {
    let theme = cx.theme;
    chips(ui, cx, answer);
    ui.add_space(4.0);
    if ui.available_width() < 820.0 {
        ScrollArea::vertical().id_salt(("feature", answer.feature)).auto_shrink(false).show(ui, |ui| {
            scroll_by_step(ui, cx);
            about(ui, cx, answer);
            ui.add_space(8.0);
            examples(ui, cx, answer);
        });
        return;
    }
    ui.horizontal_top(|ui| {
        ui.spacing_mut().item_spacing.x = 14.0;
        let height = ui.available_height();
        ui.allocate_ui_with_layout(vec2(LEFT_WIDTH, height), egui::Layout::top_down(egui::Align::Min), |ui| {
            ScrollArea::vertical().id_salt(("about", answer.feature)).auto_shrink(false).show(ui, |ui| {
                ui.set_width(LEFT_WIDTH - 14.0);
                about(ui, cx, answer);
            });
        });
        ui.vertical(|ui| {
            ScrollArea::vertical().id_salt(("examples", answer.feature)).auto_shrink(false).show(ui, |ui| {
                scroll_by_step(ui, cx);
                widget::card(ui, theme, "", |ui| examples(ui, cx, answer));
                ui.add_space(10.0);
            });
        });
    });
}

/// The figures on one line, and what should make one careful.
fn chips(ui: &mut Ui, cx: &Cx<'_>, answer: &FeatureAnswer) {
    let theme = cx.theme;
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = 18.0;
        for (name, value) in [
            ("fires on", format!("{} of tokens ({})", percent(answer.frac_nonzero), grouped(answer.n_active))),
            ("max", number(f64::from(answer.max_act))),
            ("mean when active", number(answer.mean_act)),
            ("decoder norm", number(f64::from(answer.decoder_norm))),
            ("at", answer.hook_point.clone()),
            ("coder", answer.coder.clone()),
        ] {
            let mut job = egui::text::LayoutJob::default();
            let font = egui::TextStyle::Body.resolve(ui.style());
            for (text, color) in [(name, theme.text_dim), ("  ", theme.text_dim), (value.as_str(), theme.text)] {
                job.append(text, 0.0, egui::text::TextFormat::simple(font.clone(), color));
            }
            ui.add(egui::Label::new(job).extend());
        }
    });
    let mut documents: Vec<u64> = answer.examples.iter().map(|example| example.doc).collect();
    documents.sort_unstable();
    documents.dedup();
    let warning = if answer.n_active == 0 {
        Some("▲ Dead: it never fires in this run.".to_owned())
    } else if answer.frac_nonzero > DENSE {
        Some(format!(
            "▲ Dense: it fires on {} of all tokens, so its strongest examples say little about most of them.",
            percent(answer.frac_nonzero)
        ))
    } else if documents.len() == 1 && answer.examples.len() > 2 {
        Some(format!("▲ All its examples are from one document, {}.", documents[0]))
    } else {
        None
    };
    if let Some(warning) = warning {
        ui.label(RichText::new(warning).color(theme.warning));
    }
}

fn about(ui: &mut Ui, cx: &mut Cx<'_>, answer: &FeatureAnswer) {
    let theme = cx.theme;
    if let Some(table) = cx.table() {
        super::notes::show(ui, cx, &Item::Feature { table, feature: answer.feature });
        ui.add_space(6.0);
    }
    widget::card(ui, theme, "How strongly it fires", |ui| {
        let bars = histogram(answer);
        if bars.is_empty() {
            ui.label(RichText::new("It does not fire.").color(theme.text_dim));
        } else {
            Chart {
                theme,
                name: "Activation histogram",
                x: Axis { label: "activation", log: true, ..Axis::default() },
                y: Axis { label: "tokens", zero: true, ..Axis::default() },
                series: &[Series { name: "tokens", points: &bars, color: theme.accent, mark: Mark::Bars }],
                height: 140.0,
            }
            .show(ui);
        }
    });
    ui.add_space(6.0);
    widget::card(ui, theme, "Logit lens: what it promotes and suppresses", |ui| {
        if answer.top_logits.is_empty() && answer.bottom_logits.is_empty() {
            ui.label(RichText::new("Not computed: encode with `--model` to have it.").color(theme.text_dim));
            return;
        }
        let largest = answer
            .top_logits
            .iter()
            .chain(&answer.bottom_logits)
            .map(|(_, value)| value.abs())
            .fold(f32::MIN_POSITIVE, f32::max);
        let width = ((ui.available_width() - 16.0) / 2.0).max(60.0);
        ui.horizontal_top(|ui| {
            ui.spacing_mut().item_spacing.x = 16.0;
            for (list, color) in [(&answer.top_logits, theme.positive), (&answer.bottom_logits, theme.negative)] {
                ui.vertical(|ui| {
                    ui.spacing_mut().item_spacing.y = 1.0;
                    ui.set_width(width);
                    for (text, value) in list {
                        logit(ui, theme, text, *value, largest, color);
                    }
                });
            }
        });
    });
    ui.add_space(6.0);
    widget::card(ui, theme, "Neighbours by decoder direction", |ui| {
        if answer.neighbours.is_empty() {
            ui.label(RichText::new("None were computed.").color(theme.text_dim));
        }
        ui.spacing_mut().item_spacing.y = 2.0;
        for other in &answer.neighbours {
            neighbour(ui, cx, other);
        }
    });
    ui.add_space(6.0);
    super::feature_more::show(ui, cx, answer);
}

/// Points for bars: only the bins from the first to the last that is not empty.
fn histogram(answer: &FeatureAnswer) -> Vec<(f64, f64)> {
    let counts = &answer.histogram;
    let (Some(first), Some(last)) = (counts.iter().position(|n| *n > 0), counts.iter().rposition(|n| *n > 0)) else {
        return Vec::new();
    };
    let edge = |i: usize| answer.edges.get(i).map(|edge| f64::from(*edge).max(1e-6));
    (first..=last + 1).filter_map(|i| Some((edge(i)?, if i <= last { counts[i] as f64 } else { 0.0 }))).collect()
}

fn logit(ui: &mut Ui, theme: &crate::theme::Theme, text: &str, value: f32, largest: f32, color: egui::Color32) {
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 18.0), Sense::hover());
    let text = plain(text);
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, format!("{text} {}", signed(value))));
    let value_width = 52.0;
    let line = egui::Rect::from_min_size(pos2(rect.left(), rect.bottom() - 2.0), vec2(rect.width() - value_width, 1.5));
    widget::bar(ui, line, value.abs() / largest, color.gamma_multiply(0.7));
    let painter = ui.painter_at(rect);
    let words = painter.with_clip_rect(rect.with_max_x(rect.right() - value_width));
    words.text(rect.left_center() - vec2(0.0, 1.0), Align2::LEFT_CENTER, &text, FontId::monospace(12.5), theme.text);
    painter.text(
        rect.right_center() - vec2(0.0, 1.0),
        Align2::RIGHT_CENTER,
        signed(value),
        FontId::proportional(12.0),
        color,
    );
}

fn signed(value: f32) -> String {
    let sign = if value > 0.0 { "+" } else { "" };
    format!("{sign}{}", number(f64::from(value)))
}

fn neighbour(ui: &mut Ui, cx: &mut Cx<'_>, other: &Neighbour) {
    let theme = cx.theme;
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 21.0), Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Link, true, format!("neighbour {}", other.feature)));
    if response.hovered() {
        ui.painter().rect_filled(rect.expand2(vec2(4.0, 0.0)), 3.0, theme.hover);
    }
    let font = FontId::proportional(13.0);
    let middle = rect.center().y;
    ui.painter().text(
        pos2(rect.left(), middle),
        Align2::LEFT_CENTER,
        other.feature.to_string(),
        font.clone(),
        theme.accent,
    );
    ui.painter().text(
        pos2(rect.left() + 104.0, middle),
        Align2::RIGHT_CENTER,
        format!("cos {:.2}", other.cosine),
        font.clone(),
        theme.text,
    );
    let words = ui.painter().with_clip_rect(rect.with_max_x(rect.right() - 62.0).intersect(ui.clip_rect()));
    words.text(
        pos2(rect.left() + 118.0, middle),
        Align2::LEFT_CENTER,
        plain(&other.peak),
        FontId::monospace(12.5),
        theme.text_dim,
    );
    ui.painter().text(
        pos2(rect.right(), middle),
        Align2::RIGHT_CENTER,
        format!("max {}", number(f64::from(other.max_act))),
        font,
        theme.text_dim,
    );
    let response = response.on_hover_cursor(egui::CursorIcon::PointingHand);
    if response.on_hover_text("The token at its strongest activation; click to open").clicked() {
        cx.emit(Command::OpenFeature(other.feature));
    }
}

fn examples(ui: &mut Ui, cx: &mut Cx<'_>, answer: &FeatureAnswer) {
    let theme = cx.theme;
    ui.horizontal(|ui| {
        widget::caption(
            ui,
            theme,
            if ui.available_width() > 560.0 {
                "Examples, each token colored by this feature's activation"
            } else {
                "Examples"
            },
        );
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            gradient(ui, cx, "0", &number(f64::from(answer.max_act)));
            ui.add_space(8.0);
            let title = if cx.ui.long_context { "Shorter" } else { "Longer" };
            let tip = super::shell::with_keys(ui, "How much context", &Command::ToggleContext);
            if ui.small_button(title).on_hover_text(tip).clicked() {
                cx.emit(Command::ToggleContext);
            }
        });
    });
    if answer.examples.is_empty() {
        widget::empty(ui, theme, "No examples", "Nothing in this run activates the feature.", None);
        return;
    }
    let mut last_group = None;
    for (i, example) in answer.examples.iter().enumerate() {
        if last_group != Some(example.group.as_str()) {
            last_group = Some(example.group.as_str());
            ui.add_space(if i == 0 { 2.0 } else { 10.0 });
            let of_group: Vec<&FeatureExample> = answer.examples.iter().filter(|e| e.group == example.group).collect();
            let title = group_title(&example.group, &of_group);
            let title = format!("{title}{}", super::feature_more::group_note(cx, answer, &example.group));
            ui.label(RichText::new(title).size(12.5).strong().color(theme.accent));
        }
        one_example(ui, cx, answer, example, i);
    }
    super::feature_more::near_misses(ui, cx, answer);
}

/// `top`, `interval-3` and `quantile-3` in words.
fn group_title(group: &str, examples: &[&FeatureExample]) -> String {
    let low = examples.iter().map(|e| e.act).fold(f32::INFINITY, f32::min);
    let high = examples.iter().map(|e| e.act).fold(0.0, f32::max);
    let (low, high) = (number(f64::from(low)), number(f64::from(high)));
    let range = if low == high { low } else { format!("{low} to {high}") };
    match group.split_once('-') {
        Some(("interval", n)) => format!("Interval {n}: {range}"),
        Some(("quantile", n)) => format!("Quantile {n}: {range}"),
        _ if group == "top" => format!("Strongest: {range}"),
        _ => format!("{group}: {range}"),
    }
}

/// The color scale, with its ends.
pub(super) fn gradient(ui: &mut Ui, cx: &Cx<'_>, low: &str, high: &str) {
    let theme = cx.theme;
    ui.spacing_mut().item_spacing.x = 6.0;
    let draw = |ui: &mut Ui| {
        let (rect, _) = ui.allocate_exact_size(vec2(96.0, 10.0), Sense::hover());
        let mut mesh = egui::epaint::Mesh::default();
        let steps = 24;
        for i in 0..steps {
            let x = |i: usize| rect.left() + rect.width() * i as f32 / steps as f32;
            let part = egui::Rect::from_min_max(pos2(x(i), rect.top()), pos2(x(i + 1), rect.bottom()));
            mesh.add_colored_rect(part, theme.heat((i as f32 + 0.5) / steps as f32));
        }
        ui.painter().add(egui::Shape::mesh(mesh));
    };
    let small = |text: &str| RichText::new(text).size(12.0).color(theme.text_dim);
    if ui.layout().prefer_right_to_left() {
        ui.label(small(high));
        draw(ui);
        ui.label(small(low));
    } else {
        ui.label(small(low));
        draw(ui);
        ui.label(small(high));
    }
}

fn one_example(ui: &mut Ui, cx: &mut Cx<'_>, answer: &FeatureAnswer, example: &FeatureExample, i: usize) {
    let theme = cx.theme;
    ui.push_id(i, |ui| {
        ui.horizontal_top(|ui| {
            ui.spacing_mut().item_spacing.x = 12.0;
            let (rect, _) = ui.allocate_exact_size(vec2(46.0, 20.0), Sense::hover());
            ui.painter().text(
                rect.right_center(),
                Align2::RIGHT_CENTER,
                number(f64::from(example.act)),
                FontId::proportional(13.0),
                theme.text,
            );
            let width = (ui.available_width() - 84.0).max(120.0);
            ui.allocate_ui_with_layout(vec2(width, 20.0), egui::Layout::top_down(egui::Align::Min), |ui| {
                ui.set_width(width);
                // The part of the passage that is shown.
                let (from, to) = if cx.ui.long_context {
                    (0, example.toks.len())
                } else {
                    let from = example.peak.saturating_sub(SHORT.0);
                    (from, (example.peak + SHORT.1).min(example.toks.len()).max(from))
                };
                let fill = |token: usize| {
                    let act = example.acts.get(from + token).copied().unwrap_or(0.0);
                    (act > 0.0).then(|| theme.heat(act / answer.max_act.max(f32::MIN_POSITIVE)))
                };
                let label = format!(
                    "example {} of feature {}, activation {}",
                    i + 1,
                    answer.feature,
                    number(f64::from(example.act))
                );
                let shown = TokenText {
                    theme,
                    toks: &example.toks[from..to],
                    fill: &fill,
                    selected: None,
                    marked: Some(example.peak - from),
                    size: 12.5,
                    spaces: cx.ui.spaces,
                    breaks: Breaks::Sign,
                    label: &label,
                }
                .show(ui);
                let hovered = shown.hovered.map(|token| from + token);
                let clicked = shown.response.clicked().then_some(hovered.unwrap_or(example.peak));
                if let Some(token) = hovered {
                    let act = example.acts.get(token).copied().unwrap_or(0.0);
                    let text = example.toks.get(token).map(|tok| plain(&tok.text)).unwrap_or_default();
                    shown.response.on_hover_text_at_pointer(format!("{text}   {}", number(f64::from(act))));
                }
                if let Some(token) = clicked {
                    let token = (example.token_in_doc + token as u64).saturating_sub(example.peak as u64);
                    read(cx, example.doc, token);
                }
            });
            let doc = format!("doc {}", example.doc);
            if widget::link(ui, theme, &doc).on_hover_text("Read the document here").clicked() {
                read(cx, example.doc, example.token_in_doc);
            }
        });
    });
}

/// Opens the passage, colored by the feature.
fn read(cx: &mut Cx<'_>, doc: u64, token: u64) {
    cx.emit(Command::ColorBy(ColorBy::Feature));
    cx.emit(Command::OpenDocument { doc, token: Some(token) });
}

/// The strongest example, which Enter opens.
pub(crate) fn strongest(cx_focus: &crate::state::Focus, loader: &crate::loader::Loader) -> Option<Command> {
    debug_assert_eq!(cx_focus.view, View::Feature);
    let query = FeatureQuery { table: super::table(cx_focus, loader)?, feature: cx_focus.feature? };
    let answer = loader.peek(&query)?;
    let example = answer.examples.first()?;
    Some(Command::OpenDocument { doc: example.doc, token: Some(example.token_in_doc) })
}
