//! Which experts take which tokens, layer by layer?

use egui::{Align2, FontId, Rect, RichText, Role, ScrollArea, Sense, Stroke, Ui, WidgetInfo, pos2, vec2};

use super::grid::version;
use super::{Cx, Hover};
use crate::command::Command;
use crate::query::{LoadsQuery, Passage, PassageQuery, PassageRouting, PassageRoutingQuery};
use crate::state::{Item, Scope};
use crate::widget::{self, Axis, Chart, Heatmap, Mark, Pool, Series, grouped, number, percent, plain};

/// Size of a token's cell in the lanes.
const LANE: egui::Vec2 = vec2(62.0, 22.0);
const TITLES: f32 = 40.0;
const HEAD: f32 = 22.0;
/// A choice that is won by less than this could have gone the other way.
const CLOSE_CALL: f32 = 0.02;

pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>) {
    let Some(source) = cx.source() else { return };
    if source.run.routing_info().is_err() {
        no_routing(ui, cx);
        return;
    }
    let (doc, page) = (super::reader::doc(cx.focus), super::reader::page(cx.focus));
    let passage = cx.loader.get(&PassageQuery { doc, page });
    let passage = passage.value.filter(|_| !passage.stale);
    let query = PassageRoutingQuery { doc, page };
    let got = cx.loader.get(&query);
    widget::answered(ui, cx, "routing", got, |ui, cx, routing| {
        let passage = passage.as_deref();
        load(ui, cx, routing, version(&query, routing));
        ui.add_space(4.0);
        ui.separator();
        chosen(ui, cx, routing, passage);
        lanes(ui, cx, routing, passage);
    });
}

/// What the views of experts say of a run without them.
pub(super) fn no_routing(ui: &mut Ui, cx: &Cx<'_>) {
    widget::empty(
        ui,
        cx.theme,
        "No experts in this run",
        "Models with experts (Gemma 4 26B-A4B, and the small one in data/mini) have their router's choices recorded \
         always; --router-logits adds the experts that were not chosen.",
        Some("polariscope record data/mini --corpus texts/*.txt --out runs/mini --router-logits"),
    );
}

/// The load of every expert of every layer, as shares of the layer's choices, with a number that tells them apart.
fn loads(ui: &mut Ui, cx: &mut Cx<'_>, routing: &PassageRouting, page_version: u64) -> (Vec<f32>, u64) {
    let theme = cx.theme;
    let n = routing.n_experts;
    let (mut loads, mut version) = (routing.loads(), page_version);
    let mut tokens = routing.special.iter().filter(|special| !**special).count() as u64;
    ui.horizontal_wrapped(|ui| {
        widget::caption(ui, theme, "Load of the experts, share of a layer's choices");
        for scope in Scope::ALL {
            let on = cx.focus.scope == scope;
            if ui.add(egui::Button::selectable(on, scope.title())).clicked() && !on {
                cx.emit(Command::UseScope(scope));
            }
        }
        if cx.focus.scope == Scope::Corpus {
            let query = LoadsQuery { layer: None };
            let got = cx.loader.get(&query);
            match (got.value, got.failure) {
                (Some(report), None) => {
                    tokens = report.n_tokens;
                    version = self::version(&query, report.as_ref());
                    let of = |layer: usize| report.layers.iter().find(|found| found.layer == layer);
                    loads = routing
                        .layers
                        .iter()
                        .flat_map(|layer| {
                            (0..n).map(|e| of(*layer).and_then(|l| l.experts.get(e)).map_or(0.0, |x| x.tokens as f32))
                        })
                        .collect();
                }
                (_, Some(failure)) => {
                    ui.label(RichText::new(format!("▲ {}", failure.message)).color(theme.error));
                }
                (None, None) => {
                    ui.label(RichText::new("counting the whole run; this document until then").color(theme.text_dim));
                }
            }
        }
        let choices = (tokens * routing.top_k as u64).max(1) as f32;
        for load in &mut loads {
            *load /= choices;
        }
        let dormant = loads.chunks(n.max(1)).map(|layer| layer.iter().filter(|load| **load == 0.0).count());
        let (most, total) = (dormant.clone().max().unwrap_or(0), dormant.sum::<usize>());
        let text = format!(
            "{} tokens · even would be {} · {total} of {} never chosen, {most} at most in a layer",
            grouped(tokens),
            percent(1.0 / n.max(1) as f64),
            loads.len(),
        );
        ui.label(RichText::new(text).size(12.0).color(theme.text_dim));
    });
    (loads, version)
}

/// The grid of loads, and beside it how even they are.
fn load(ui: &mut Ui, cx: &mut Cx<'_>, routing: &PassageRouting, page_version: u64) {
    let theme = cx.theme;
    let n = routing.n_experts;
    let (loads, version) = loads(ui, cx, routing, page_version);
    let selected = cx.focus.layer.and_then(|layer| routing.place(layer)).zip(cx.focus.expert.map(usize::from));
    let high = loads.iter().copied().fold(0.0, f32::max);
    let hover = cx.ui.hovered;
    let hovered = hover.layer.and_then(|layer| routing.place(layer)).zip(hover.expert.map(usize::from));
    let about = |(place, expert): (usize, usize)| {
        let share = loads.get(place * n + expert).copied().unwrap_or(0.0);
        vec![
            format!("layer {}, expert {expert}", routing.layers.get(place).copied().unwrap_or_default()),
            format!("{} of the choices", percent(f64::from(share))),
            "click to choose it, twice to open its page".to_owned(),
        ]
    };
    let map = Heatmap {
        theme,
        name: "load of experts",
        n_rows: routing.layers.len(),
        n_cols: n,
        values: &loads,
        version,
        range: (0.0, high.max(f32::MIN_POSITIVE)),
        pool: Pool::Strongest,
        selected,
        hovered,
        row_title: &|place| format!("L{}", routing.layers.get(place).copied().unwrap_or_default()),
        about: &about,
        column_title: Some(&|expert| expert.to_string()),
        height: (ui.available_height() * 0.36).clamp(90.0, 420.0),
    };
    let map = ui
        .horizontal_top(|ui| {
            let room = ui.available_size();
            let width = if room.x > 900.0 { room.x * 0.6 } else { room.x };
            let shown = ui
                .allocate_ui_with_layout(vec2(width, map.height), egui::Layout::top_down(egui::Align::Min), |ui| {
                    map.show(ui)
                })
                .inner;
            let left = ui.available_width();
            // A chart that is too small for its words says less than none.
            if left > 500.0 && shown.cells.height() >= 120.0 {
                balance(ui, cx, routing, &loads, shown.cells.height());
            }
            shown
        })
        .inner;
    mark_pins(ui, cx, routing, map.cells);
    if let Some((place, expert)) = map.hovered
        && let Some(layer) = routing.layers.get(place).copied()
    {
        let expert = expert as u16;
        cx.ui.hovering = Hover { token: None, layer: Some(layer), expert: Some(expert) };
        if map.response.double_clicked() {
            cx.emit(Command::OpenExpert { layer, expert });
        } else if map.response.clicked() {
            cx.emit(Command::SelectExpert { layer, expert });
        }
    }
}

/// How even the load is, how sure the router, and how much the experts weigh, layer by layer.
fn balance(ui: &mut Ui, cx: &Cx<'_>, routing: &PassageRouting, shares: &[f32], height: f32) {
    let theme = cx.theme;
    let n = routing.n_experts.max(2);
    let even = (n as f64).ln();
    let entropy =
        |shares: &[f32]| -shares.iter().filter(|s| **s > 0.0).map(|s| f64::from(*s) * f64::from(*s).ln()).sum::<f64>();
    let mean = |of: &dyn Fn(usize) -> Option<f32>| {
        let tokens = (0..routing.n_tokens).filter(|token| !routing.special[*token]);
        let values: Vec<f64> = tokens.filter_map(|token| of(token).map(f64::from)).collect();
        values.iter().sum::<f64>() / values.len().max(1) as f64
    };
    let by_layer = |value: &dyn Fn(usize) -> f64| -> Vec<(f64, f64)> {
        routing.layers.iter().enumerate().map(|(place, layer)| (*layer as f64, value(place))).collect()
    };
    let load = by_layer(&|place| entropy(shares.get(place * n..(place + 1) * n).unwrap_or_default()) / even);
    let router = by_layer(&|place| mean(&|token| routing.entropy(place, token)) / even);
    let experts = by_layer(&|place| mean(&|token| routing.moe_share(place, token)));
    let series = [
        ("load, 1 is even", &load, theme.series[0]),
        ("router entropy here, 1 is undecided", &router, theme.series[1]),
        ("experts' share of the norms here", &experts, theme.series[2]),
    ];
    let series = series.map(|(name, points, color)| Series { name, points, color, mark: Mark::Dots });
    Chart {
        theme,
        name: "Balance by layer",
        x: Axis { label: "layer", whole: true, ..Axis::default() },
        y: Axis { label: "share of the most there can be", zero: true, ..Axis::default() },
        series: &series,
        height: height.clamp(120.0, 240.0),
    }
    .show(ui);
}

/// Pinned experts, each outlined in its color.
fn mark_pins(ui: &Ui, cx: &Cx<'_>, routing: &PassageRouting, cells: Rect) {
    for (i, pin) in cx.focus.pins.iter().enumerate() {
        let Item::Expert { layer, expert } = pin else { continue };
        let Some(place) = routing.place(*layer) else { continue };
        let size =
            vec2(cells.width() / routing.n_experts.max(1) as f32, cells.height() / routing.layers.len().max(1) as f32);
        let min = pos2(cells.left() + f32::from(*expert) * size.x, cells.bottom() - (place + 1) as f32 * size.y);
        let color = cx.theme.series[i % cx.theme.series.len()];
        ui.painter().rect_stroke(
            Rect::from_min_size(min, size),
            1.0,
            Stroke::new(2.0, color),
            egui::StrokeKind::Inside,
        );
    }
}

/// What the router said of the selected token in the selected layer.
fn chosen(ui: &mut Ui, cx: &mut Cx<'_>, routing: &PassageRouting, passage: Option<&Passage>) {
    let theme = cx.theme;
    let first = super::reader::page(cx.focus) * crate::query::TOKENS_PER_PAGE;
    let token = cx.focus.token.and_then(|token| token.checked_sub(first)).map(|token| token as usize);
    let layer = cx.focus.layer.filter(|layer| routing.place(*layer).is_some()).or(routing.layers.last().copied());
    let (Some(token), Some(layer)) = (token.filter(|token| *token < routing.n_tokens), layer) else {
        ui.label(RichText::new("Click a token in the lanes to see what the router said of it.").color(theme.text_dim));
        return;
    };
    let Some(place) = routing.place(layer) else { return };
    let text = passage.and_then(|passage| passage.toks.get(token)).map(|tok| plain(&tok.text)).unwrap_or_default();
    ui.horizontal_wrapped(|ui| {
        ui.label(RichText::new(&text).monospace().size(16.0));
        ui.label(RichText::new(format!("token {} in layer {layer}", first + token as u64)).color(theme.text_dim));
        for choice in routing.at(place, token) {
            let label = format!(
                "{} · weight {} · p {}",
                choice.expert,
                number(f64::from(choice.weight)),
                number(f64::from(choice.prob))
            );
            let name = format!("expert {} of layer {layer}", choice.expert);
            let button = ui.button(label).accessible_name(name);
            if button.on_hover_text("Open the page of the expert").clicked() {
                cx.emit(Command::OpenExpert { layer, expert: choice.expert });
            }
        }
        match (routing.runner_up(place, token), routing.margin(place, token)) {
            (Some((expert, prob)), Some(margin)) => {
                let (sign, color) = if margin < CLOSE_CALL { ("▲ ", theme.warning) } else { ("", theme.text_dim) };
                let text = format!(
                    "{sign}runner-up {expert} with p {}, margin {}",
                    number(f64::from(prob)),
                    number(f64::from(margin))
                );
                ui.label(RichText::new(text).color(color));
            }
            _ => {
                ui.label(RichText::new("runner-up not recorded (--router-logits)").color(theme.text_dim));
            }
        }
        if let Some(entropy) = routing.entropy(place, token) {
            let even = (routing.n_experts.max(1) as f64).ln();
            let text = format!("entropy {} of {} nats", number(f64::from(entropy)), number(even));
            ui.label(RichText::new(text).color(theme.text_dim));
        }
        if let Some(share) = routing.moe_share(place, token) {
            let text = format!("experts {} of both branches' norms", percent(f64::from(share)));
            ui.label(RichText::new(text).color(theme.text_dim));
        }
    });
}

/// Tokens side by side, layers on top of each other, the chosen experts in each cell.
fn lanes(ui: &mut Ui, cx: &mut Cx<'_>, routing: &PassageRouting, passage: Option<&Passage>) {
    let theme = cx.theme;
    let first = super::reader::page(cx.focus) * crate::query::TOKENS_PER_PAGE;
    widget::caption(
        ui,
        theme,
        "The way of each token: its experts, as wide as their weights; a line under a choice that was won by little",
    );
    let layers = routing.layers.len();
    let size = vec2(TITLES + routing.n_tokens as f32 * LANE.x, HEAD + layers as f32 * LANE.y);
    let selected = cx.focus.token.and_then(|token| token.checked_sub(first)).map(|token| token as usize);
    ScrollArea::both().id_salt(("lanes", super::reader::doc(cx.focus), first)).auto_shrink(false).show_viewport(
        ui,
        |ui, view| {
            ui.set_min_size(size);
            let origin = ui.min_rect().min;
            let response = ui.interact(Rect::from_min_size(origin, size), ui.scope_id().with("lanes"), Sense::click());
            response.widget_info(|| {
                WidgetInfo::labeled(Role::Image, true, format!("lanes of {} tokens, {layers} layers", routing.n_tokens))
            });
            // Only what is seen is drawn.
            let from = ((view.min.x - TITLES) / LANE.x).floor().max(0.0) as usize;
            let to = (((view.max.x - TITLES) / LANE.x).ceil().max(0.0) as usize).min(routing.n_tokens);
            let cell = |place: usize, token: usize| {
                let row = layers - 1 - place;
                Rect::from_min_size(origin + vec2(TITLES + token as f32 * LANE.x, HEAD + row as f32 * LANE.y), LANE)
                    .shrink(1.0)
            };
            for token in from..to {
                for place in 0..layers {
                    one_lane(ui, cx, routing, (place, token), cell(place, token));
                }
            }
            // The words stay above the lanes, as the layers stay beside them.
            let top = origin.y + view.min.y;
            let band = Rect::from_min_size(pos2(origin.x + view.min.x, top), vec2(view.width(), HEAD));
            ui.painter().rect_filled(band, 0.0, theme.bg);
            for token in from..to {
                let left = origin.x + TITLES + token as f32 * LANE.x;
                let head = Rect::from_min_size(pos2(left, top), vec2(LANE.x, HEAD)).shrink2(vec2(2.0, 0.0));
                let text = passage.and_then(|passage| passage.toks.get(token)).map(|tok| plain(&tok.text));
                let color = if selected == Some(token) { theme.accent } else { theme.text };
                widget::one_line(ui, head, &text.unwrap_or_default(), FontId::monospace(12.0), color);
            }
            let titles = origin + vec2(view.min.x, 0.0);
            for (place, layer) in routing.layers.iter().enumerate() {
                let y = origin.y + HEAD + (layers - 1 - place) as f32 * LANE.y;
                let at = Rect::from_min_size(pos2(titles.x, y), vec2(TITLES - 4.0, LANE.y));
                ui.painter().rect_filled(at, 0.0, theme.bg);
                let color = if cx.focus.layer == Some(*layer) { theme.text } else { theme.text_dim };
                ui.painter().text(
                    at.right_center() - vec2(4.0, 0.0),
                    Align2::RIGHT_CENTER,
                    format!("L{layer}"),
                    FontId::proportional(11.0),
                    color,
                );
            }
            let corner = Rect::from_min_size(pos2(titles.x, top), vec2(TITLES - 4.0, HEAD));
            ui.painter().rect_filled(corner, 0.0, theme.bg);
            let outline = |place: usize, token: usize, width: f32, color: egui::Color32| {
                ui.painter().rect_stroke(cell(place, token), 2.0, Stroke::new(width, color), egui::StrokeKind::Outside);
            };
            if let Some((place, token)) = cx.focus.layer.and_then(|layer| routing.place(layer)).zip(selected) {
                outline(place, token, 2.0, theme.outline);
            }
            if let (Some(token), Some(place)) = (
                cx.ui.hovered.token.and_then(|token| token.checked_sub(first)),
                cx.ui.hovered.layer.and_then(|layer| routing.place(layer)),
            ) {
                outline(place, token as usize, 1.0, theme.accent);
            }
            let at = selected.map(|token| {
                // Sideways only: the height that is seen stays.
                Rect::from_x_y_ranges(cell(0, token).x_range(), ui.clip_rect().y_range())
            });
            follow(ui, (super::reader::doc(cx.focus), selected), at);
            if let Some(pointer) = response.hover_pos() {
                let at = pointer - origin;
                let (token, row) = ((at.x - TITLES) / LANE.x, (at.y - HEAD) / LANE.y);
                if token >= 0.0 && row >= 0.0 && (row as usize) < layers && (token as usize) < routing.n_tokens {
                    let place = layers - 1 - row as usize;
                    let token = token as usize;
                    let layer = routing.layers[place];
                    cx.ui.hovering = Hover { token: Some(first + token as u64), layer: Some(layer), expert: None };
                    if response.clicked() {
                        cx.emit(Command::SelectCell { token: first + token as u64, layer });
                    }
                    response.on_hover_ui_at_pointer(|ui| tooltip(ui, cx, routing, place, token, first));
                }
            }
        },
    );
}

fn tooltip(ui: &mut Ui, cx: &Cx<'_>, routing: &PassageRouting, place: usize, token: usize, first: u64) {
    let theme = cx.theme;
    ui.label(format!("layer {}, token {}", routing.layers[place], first + token as u64));
    for choice in routing.at(place, token) {
        let text = format!(
            "expert {}: weight {}, p {}",
            choice.expert,
            number(f64::from(choice.weight)),
            number(f64::from(choice.prob))
        );
        ui.label(RichText::new(text).color(theme.text_dim));
    }
    if let Some(margin) = routing.margin(place, token) {
        ui.label(RichText::new(format!("margin {}", number(f64::from(margin)))).color(theme.text_dim));
    }
}

/// The experts of one token in one layer.
fn one_lane(ui: &Ui, cx: &Cx<'_>, routing: &PassageRouting, (place, token): (usize, usize), rect: Rect) {
    let theme = cx.theme;
    let layer = routing.layers[place];
    let total: f32 = routing.at(place, token).map(|choice| choice.weight.max(0.0)).sum::<f32>().max(f32::MIN_POSITIVE);
    let mut left = rect.left();
    for choice in routing.at(place, token) {
        let width = rect.width() * choice.weight.max(0.0) / total;
        let part = Rect::from_min_max(pos2(left, rect.top()), pos2(left + (width - 1.0).max(1.0), rect.bottom()));
        left += width;
        let pin = cx.focus.pinned(&Item::Expert { layer, expert: choice.expert });
        let is_chosen = cx.focus.layer == Some(layer) && cx.focus.expert == Some(choice.expert);
        let fill = match pin {
            Some(pin) => theme.series[pin % theme.series.len()],
            None if is_chosen => theme.selection,
            None => theme.raised,
        };
        ui.painter().rect_filled(part, 2.0, fill);
        if part.width() >= 13.0 {
            let color = if pin.is_some() { crate::theme::text_on(fill) } else { theme.text };
            let font = FontId::proportional(11.0);
            ui.painter().with_clip_rect(part.intersect(ui.clip_rect())).text(
                part.center(),
                Align2::CENTER_CENTER,
                choice.expert.to_string(),
                font,
                color,
            );
        }
    }
    if routing.margin(place, token).is_some_and(|margin| margin < CLOSE_CALL) {
        ui.painter().hline(rect.x_range(), rect.bottom(), Stroke::new(1.5, theme.warning));
    }
}

/// Brings the selected token into sight when it has changed.
fn follow(ui: &Ui, now: (u64, Option<usize>), rect: Option<Rect>) {
    let id = ui.scope_id().with("followed");
    let before = ui.data(|data| data.get_temp::<(u64, Option<usize>)>(id));
    if before != Some(now) {
        ui.data_mut(|data| data.insert_temp(id, now));
        if let Some(rect) = rect.filter(|rect| !ui.clip_rect().x_range().contains(rect.center().x)) {
            ui.scroll_to_rect(rect, Some(egui::Align::Center));
        }
    }
}
