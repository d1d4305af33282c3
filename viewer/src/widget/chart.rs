//! How are curves and histograms drawn?
//!
//! A few hundred points at most: questions thin their answers to what a screen can show.

use egui::epaint::Mesh;
use egui::{Align2, Color32, FontId, Pos2, Rect, Role, Sense, Shape, Stroke, Ui, WidgetInfo, pos2, vec2};

use super::number;
use crate::theme::Theme;

/// An axis.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Axis<'a> {
    pub(crate) label: &'a str,
    /// Powers of ten at equal distances. What is not positive is left out.
    pub(crate) log: bool,
    /// Ticks at whole numbers only.
    pub(crate) whole: bool,
    /// Starts at zero.
    pub(crate) zero: bool,
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Line,
    /// A line with a dot at every point.
    Dots,
    /// Bars from each point's x to the next one's; the last point only ends the last bar.
    Bars,
}

/// Points of one kind.
#[derive(Debug, Clone)]
pub(crate) struct Series<'a> {
    pub(crate) name: &'a str,
    pub(crate) points: &'a [(f64, f64)],
    pub(crate) color: Color32,
    pub(crate) mark: Mark,
}

/// A chart with axes, a legend where there are several series, and values under the pointer.
pub(crate) struct Chart<'a> {
    pub(crate) theme: &'a Theme,
    /// For screen readers and tests; not drawn.
    pub(crate) name: &'a str,
    pub(crate) x: Axis<'a>,
    pub(crate) y: Axis<'a>,
    pub(crate) series: &'a [Series<'a>],
    pub(crate) height: f32,
}

impl Chart<'_> {
    pub(crate) fn show(self, ui: &mut Ui) {
        let (outer, response) =
            ui.allocate_exact_size(vec2(ui.available_width().max(80.0), self.height), Sense::hover());
        let points: usize = self.series.iter().map(|series| series.points.len()).sum();
        response.widget_info(|| {
            WidgetInfo::labeled(
                Role::Figure,
                true,
                format!("{}: {} against {}, {points} points", self.name, self.y.label, self.x.label),
            )
        });
        if !ui.is_rect_visible(outer) {
            return;
        }
        let theme = self.theme;
        let font = FontId::proportional(11.0);
        let (Some(x), Some(y)) = (self.scale(self.x, |p| p.0), self.scale(self.y, |p| p.1)) else {
            ui.painter().text(outer.center(), Align2::CENTER_CENTER, "No values", font, theme.text_dim);
            return;
        };
        let y_ticks = y.ticks((self.height / 26.0) as usize);
        let tick_width = y_ticks
            .iter()
            .map(|tick| ui.painter().layout_no_wrap(number_tick(*tick), font.clone(), theme.text_dim).size().x)
            .fold(0.0, f32::max);
        let legend = if self.series.len() > 1 { 18.0 } else { 0.0 };
        // The name of the y axis stands on top of it, upright, so that it can be read.
        let plot = Rect::from_min_max(outer.min + vec2(tick_width + 8.0, 16.0 + legend), outer.max - vec2(8.0, 32.0));
        let at = |p: (f64, f64)| {
            pos2(plot.left() + x.share(p.0) * plot.width(), plot.bottom() - y.share(p.1) * plot.height())
        };
        let painter = ui.painter_at(outer);
        for tick in y_ticks {
            let at = plot.bottom() - y.share(tick) * plot.height();
            painter.hline(plot.x_range(), at, Stroke::new(1.0, theme.line));
            painter.text(
                pos2(plot.left() - 6.0, at),
                Align2::RIGHT_CENTER,
                number_tick(tick),
                font.clone(),
                theme.text_dim,
            );
        }
        let mut free = f32::NEG_INFINITY;
        for tick in x.ticks((plot.width() / 64.0) as usize) {
            let at = plot.left() + x.share(tick) * plot.width();
            painter.vline(at, plot.bottom()..=plot.bottom() + 3.0, Stroke::new(1.0, theme.line_strong));
            let text = painter.layout_no_wrap(number_tick(tick), font.clone(), theme.text_dim);
            let left = (at - text.size().x / 2.0).min(outer.right() - text.size().x);
            if left > free {
                free = left + text.size().x + 6.0;
                painter.galley(pos2(left, plot.bottom() + 4.0), text, theme.text_dim);
            }
        }
        painter.hline(plot.x_range(), plot.bottom(), Stroke::new(1.0, theme.line_strong));
        painter.text(
            pos2(plot.right(), outer.bottom()),
            Align2::RIGHT_BOTTOM,
            self.x.label,
            font.clone(),
            theme.text_dim,
        );
        painter.text(
            pos2(plot.left(), outer.top() + legend),
            Align2::LEFT_TOP,
            self.y.label,
            font.clone(),
            theme.text_dim,
        );
        if self.series.len() > 1 {
            self.legend(&painter, outer, &font);
        }
        let inside = painter.with_clip_rect(plot.expand(4.0));
        for series in self.series {
            draw(&inside, series, &at, plot);
        }
        if let Some(pointer) = response.hover_pos().filter(|pointer| plot.expand(4.0).contains(*pointer)) {
            self.readout(&painter, plot, pointer, &at, &font);
        }
    }

    fn scale(&self, axis: Axis<'_>, part: impl Fn(&(f64, f64)) -> f64) -> Option<Scale> {
        let values = self.series.iter().flat_map(|series| series.points).map(part);
        Scale::new(axis, values)
    }

    fn legend(&self, painter: &egui::Painter, outer: Rect, font: &FontId) {
        let mut x = outer.left();
        for series in self.series {
            painter.hline(x..=x + 14.0, outer.top() + 8.0, Stroke::new(2.0, series.color));
            let text = painter.layout_no_wrap(series.name.to_owned(), font.clone(), self.theme.text);
            let width = text.size().x;
            painter.galley(pos2(x + 18.0, outer.top() + 1.0), text, self.theme.text);
            x += width + 34.0;
        }
    }

    /// The values nearest to the pointer.
    fn readout(
        &self,
        painter: &egui::Painter,
        plot: Rect,
        pointer: Pos2,
        at: &impl Fn((f64, f64)) -> Pos2,
        font: &FontId,
    ) {
        let mut lines: Vec<(String, Color32)> = Vec::new();
        for series in self.series {
            let bars = series.mark == Mark::Bars;
            let points = if bars { &series.points[..series.points.len().saturating_sub(1)] } else { series.points };
            let near = if bars {
                points.iter().rev().find(|p| at(**p).x <= pointer.x)
            } else {
                points.iter().min_by(|a, b| {
                    let away = |p: &(f64, f64)| (at(*p).x - pointer.x).abs();
                    away(a).total_cmp(&away(b))
                })
            };
            let Some(near) = near else { continue };
            if !bars {
                painter.circle_filled(at(*near), 3.5, series.color);
            }
            let x = if self.x.whole { format!("{:.0}", near.0) } else { number(near.0) };
            let name = if self.series.len() > 1 { format!("{}  ", series.name) } else { String::new() };
            lines.push((format!("{name}{} {x}: {}", self.x.label, number(near.1)), series.color));
        }
        painter.vline(pointer.x, plot.y_range(), Stroke::new(1.0, self.theme.line_strong));
        let galleys: Vec<_> =
            lines.iter().map(|(text, _)| painter.layout_no_wrap(text.clone(), font.clone(), self.theme.text)).collect();
        let width = galleys.iter().map(|galley| galley.size().x).fold(0.0, f32::max);
        let height = galleys.iter().map(|galley| galley.size().y + 2.0).sum::<f32>();
        let left = if pointer.x + 14.0 + width > plot.right() { pointer.x - 18.0 - width } else { pointer.x + 12.0 };
        let frame = Rect::from_min_size(pos2(left, plot.top() + 2.0), vec2(width, height)).expand(5.0);
        painter.rect(frame, 4.0, self.theme.raised, Stroke::new(1.0, self.theme.line_strong), egui::StrokeKind::Inside);
        let mut y = frame.top() + 5.0;
        for galley in galleys {
            let step = galley.size().y + 2.0;
            painter.galley(pos2(left, y), galley, self.theme.text);
            y += step;
        }
    }
}

fn draw(painter: &egui::Painter, series: &Series<'_>, at: &impl Fn((f64, f64)) -> Pos2, plot: Rect) {
    match series.mark {
        Mark::Line | Mark::Dots => {
            let line: Vec<Pos2> =
                series.points.iter().map(|p| at(*p)).filter(|p| p.x.is_finite() && p.y.is_finite()).collect();
            if series.mark == Mark::Dots && line.len() <= 128 {
                for point in &line {
                    painter.circle_filled(*point, 2.5, series.color);
                }
            }
            painter.line(line, Stroke::new(1.75, series.color));
        }
        Mark::Bars => {
            let mut mesh = Mesh::default();
            for pair in series.points.windows(2) {
                let (from, to) = (at(pair[0]), at(pair[1]));
                if from.y < plot.bottom() - 0.01 && from.y.is_finite() {
                    let gap = if to.x - from.x > 4.0 { 1.0 } else { 0.0 };
                    // One occurrence must be seen, however tall the others are.
                    let top = from.y.min(plot.bottom() - 1.5);
                    mesh.add_colored_rect(
                        Rect::from_min_max(pos2(from.x, top), pos2(to.x - gap, plot.bottom())),
                        series.color,
                    );
                }
            }
            painter.add(Shape::mesh(mesh));
        }
    }
}

fn number_tick(x: f64) -> String {
    if x.fract() == 0.0 && x.abs() < 1e6 {
        if x.abs() < 10_000.0 { format!("{x:.0}") } else { format!("{}k", x / 1_000.0) }
    } else if x.abs() >= 1e6 {
        let (value, unit) = if x.abs() >= 1e9 { (x / 1e9, "G") } else { (x / 1e6, "M") };
        format!("{}{unit}", trimmed(value))
    } else if x.abs() < 1e-3 {
        format!("{x:.0e}")
    } else {
        trimmed(x)
    }
}

fn trimmed(x: f64) -> String {
    let text = format!("{x:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A range of values on an axis.
#[derive(Debug, Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
    log: bool,
    whole: bool,
}

impl Scale {
    fn new(axis: Axis<'_>, values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut low = f64::INFINITY;
        let mut high = f64::NEG_INFINITY;
        for value in values.filter(|v| v.is_finite() && (!axis.log || *v > 0.0)) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            return None;
        }
        let mut scale = Self { low, high, log: axis.log, whole: axis.whole };
        if axis.log {
            if high / low < 10.0 {
                (scale.low, scale.high) = (low / 2.0, high * 2.0);
            }
        } else {
            if axis.zero {
                (scale.low, scale.high) = (low.min(0.0), high.max(0.0));
            }
            let span = scale.high - scale.low;
            if span <= 0.0 {
                let room = if scale.high == 0.0 { 1.0 } else { scale.high.abs() * 0.1 };
                (scale.low, scale.high) = (scale.low - room, scale.high + room);
            } else if !axis.whole {
                // The line does not run along the edge.
                scale.high += span * 0.04;
                if !(axis.zero && scale.low == 0.0) {
                    scale.low -= span * 0.04;
                }
            }
        }
        Some(scale)
    }

    /// Where a value stands, 0 at the low end, 1 at the high one.
    fn share(&self, x: f64) -> f32 {
        let share = if self.log {
            (x.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (x - self.low) / (self.high - self.low)
        };
        // Far outside is far outside, but still a number that can be drawn.
        if share.is_nan() { 0.0 } else { share.clamp(-10.0, 10.0) as f32 }
    }

    /// About so many round values.
    fn ticks(&self, about: usize) -> Vec<f64> {
        let about = about.clamp(2, 12) as f64;
        if self.log {
            let (first, last) = (self.low.log10().ceil() as i32, self.high.log10().floor() as i32);
            let every = (f64::from((last - first).max(0) + 1) / about).ceil().max(1.0) as i32;
            let decades: Vec<f64> =
                (first..=last).filter(|e| (e - first) % every == 0).map(|e| 10_f64.powi(e)).collect();
            if decades.len() >= 2 {
                return decades;
            }
        }
        let raw = (self.high - self.low) / about;
        let power = 10_f64.powf(raw.log10().floor());
        let mut step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= raw).unwrap_or(power);
        if self.whole {
            step = step.round().max(1.0);
        }
        if !(step.is_finite() && step > 0.0) {
            return vec![self.low];
        }
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last.min(first + 24)).map(|i| i as f64 * step).collect()
    }
}

/// A tiny histogram, without axes: the largest count fills the height.
pub(crate) fn sparkline(ui: &Ui, rect: Rect, counts: &[u64], color: Color32) {
    let first = counts.iter().position(|n| *n > 0).unwrap_or(0);
    let last = counts.iter().rposition(|n| *n > 0).map_or(0, |i| i + 1);
    let max = counts.iter().copied().max().unwrap_or(0) as f32;
    if last <= first || max <= 0.0 {
        return;
    }
    let width = rect.width() / (last - first).max(12) as f32;
    let mut mesh = Mesh::default();
    for (i, count) in counts[first..last].iter().enumerate() {
        if *count > 0 {
            let height = (*count as f32 / max * rect.height()).max(1.0);
            let left = rect.left() + i as f32 * width;
            mesh.add_colored_rect(
                Rect::from_min_max(
                    pos2(left, rect.bottom() - height),
                    pos2(left + (width - 0.5).max(0.5), rect.bottom()),
                ),
                color,
            );
        }
    }
    ui.painter().add(Shape::mesh(mesh));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(axis: Axis<'_>, values: &[f64], about: usize) -> Vec<f64> {
        Scale::new(axis, values.iter().copied()).unwrap().ticks(about)
    }

    #[test]
    fn ticks_are_round() {
        let layers = ticks(Axis { whole: true, ..Axis::default() }, &[0.0, 17.0], 8);
        assert_eq!(layers, [0.0, 5.0, 10.0, 15.0]);
        let few = ticks(Axis { whole: true, ..Axis::default() }, &[0.0, 2.0], 10);
        assert_eq!(few, [0.0, 1.0, 2.0]);
        let decades = ticks(Axis { log: true, ..Axis::default() }, &[3e-4, 1e3], 12);
        assert_eq!(decades.first(), Some(&1e-3));
        assert_eq!(decades.last(), Some(&1e3));
    }

    #[test]
    fn hard_ranges_do_not_panic() {
        for values in [&[1.0][..], &[0.0, 0.0], &[f64::NAN, 2.0], &[1e-300, 1e300], &[-5.0, 5.0], &[f64::MAX, f64::MIN]]
        {
            for log in [false, true] {
                if let Some(scale) = Scale::new(Axis { log, ..Axis::default() }, values.iter().copied()) {
                    assert!(scale.ticks(6).len() <= 25);
                    for value in values {
                        assert!(scale.share(*value).is_finite());
                    }
                }
            }
        }
        assert!(Scale::new(Axis::default(), std::iter::empty()).is_none());
        assert!(Scale::new(Axis { log: true, ..Axis::default() }, [-1.0].into_iter()).is_none());
    }

    #[test]
    fn tick_labels_are_short() {
        for (x, expected) in
            [(0.0, "0"), (250.0, "250"), (20_000.0, "20k"), (0.25, "0.25"), (2_500_000.0, "2.5M"), (0.000_1, "1e-4")]
        {
            assert_eq!(number_tick(x), expected);
        }
    }
}
