//! How is a plot drawn so that it stands in a page, and on paper, without anything from elsewhere?
//!
//! Inline SVG with the page's own font. Series differ in colour (Okabe and Ito's, which colour-blind readers tell apart) and in
//! the shape of line and mark, so that a print without colours can be read too.

use std::fmt::Write as _;

use super::html::escape;

/// Of a plot, in CSS pixels.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 270.0;
/// Room around the axes: left, right, top, bottom.
const MARGIN: [f64; 4] = [54.0, 20.0, 14.0, 44.0];
/// Characters for which there is room below the axis, in all names of ticks together.
pub(super) const TICK_CHARACTERS: usize = 60;
/// Room for the names of series, below everything.
const LEGEND: f64 = 18.0;

/// How a series looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    color: &'static str,
    dash: &'static str,
    mark: Mark,
}

#[derive(Debug, Clone, Copy)]
enum Mark {
    Circle,
    Square,
    Triangle,
    None,
}

/// The coder that is looked at.
pub(super) const CODER: Style = Style { color: "#0072B2", dash: "", mark: Mark::Circle };
/// Its random counterpart.
pub(super) const RANDOM: Style = Style { color: "#D55E00", dash: "6 3", mark: Mark::Square };
/// A dense probe.
pub(super) const DENSE: Style = Style { color: "#333333", dash: "2 3", mark: Mark::Triangle };
/// A second value of the coder.
pub(super) const OTHER: Style = Style { color: "#009E73", dash: "1 3", mark: Mark::Triangle };
/// A line to compare with.
pub(super) const RULE: Style = Style { color: "#777777", dash: "4 3", mark: Mark::None };

/// A line through points, or bars up to them.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) style: Style,
    /// Those that are not finite are left out.
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    pub(super) fn new(name: &str, style: Style, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points = points.into_iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        Self { name: name.to_owned(), style, points }
    }
}

/// What is drawn.
#[derive(Debug, Clone)]
pub(super) struct Plot {
    /// For those who do not see it.
    pub(super) title: String,
    pub(super) x: String,
    pub(super) y: String,
    /// Where x is named, in the coordinates of the points.
    pub(super) ticks: Vec<(f64, String)>,
    /// Between what y lies in any case.
    pub(super) range: Option<(f64, f64)>,
    /// Whether series stand side by side as bars.
    pub(super) bars: bool,
    pub(super) series: Vec<Series>,
}

impl Plot {
    /// The picture; nothing where there is nothing to draw.
    pub(super) fn svg(&self) -> Option<String> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        points().next()?;
        let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
        let most = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::NEG_INFINITY, f64::max);
        let (mut left, mut right) = (least(&mut points().map(|p| p.0)), most(&mut points().map(|p| p.0)));
        let pad = if self.bars { 0.5 } else { ((right - left) * 0.03).max(1e-9) };
        (left, right) = (left - pad, right + pad);
        let (mut low, mut high) = (least(&mut points().map(|p| p.1)), most(&mut points().map(|p| p.1)));
        if let Some((from, to)) = self.range {
            (low, high) = (low.min(from), high.max(to));
        }
        let y_ticks = ticks(low, high);
        if let (Some(first), Some(last)) = (y_ticks.first(), y_ticks.last()) {
            (low, high) = (low.min(*first), high.max(*last));
        }
        let frame = Frame { left, right, low, high };
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">",
            HEIGHT + LEGEND,
            escape(&self.title)
        );
        self.axes(&frame, &y_ticks, &mut out);
        let bars = self.series.iter().filter(|series| !matches!(series.style.mark, Mark::None)).count();
        let mut at = 0;
        for series in &self.series {
            if self.bars && !matches!(series.style.mark, Mark::None) {
                frame.bars(series, at, bars, &mut out);
                at += 1;
            } else {
                frame.line(series, &mut out);
            }
        }
        self.legend(&mut out);
        out.push_str("</svg>");
        Some(out)
    }

    fn axes(&self, frame: &Frame, y_ticks: &[f64], out: &mut String) {
        let [left, right, top, bottom] = MARGIN;
        let (end, floor) = (WIDTH - right, HEIGHT - bottom);
        for &value in y_ticks {
            let y = frame.y(value);
            let _ = write!(
                out,
                "<line x1=\"{left}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"grid\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" class=\"tick end\">{}</text>",
                left - 6.0,
                y + 3.5,
                number(value)
            );
        }
        for (value, name) in &self.ticks {
            let x = frame.x(*value);
            let _ = write!(
                out,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{floor}\" y2=\"{:.1}\" class=\"axis\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" class=\"tick mid\">{}</text>",
                floor + 4.0,
                floor + 16.0,
                escape(name)
            );
        }
        let (across, up) = (f64::midpoint(left, end), f64::midpoint(top, floor));
        let _ = write!(
            out,
            "<path d=\"M{left} {top}V{floor}H{end}\" class=\"axis\" fill=\"none\"/>\
             <text x=\"{across:.1}\" y=\"{:.1}\" class=\"name mid\">{}</text>\
             <text transform=\"translate(13 {up:.1}) rotate(-90)\" class=\"name mid\">{}</text>",
            HEIGHT - 10.0,
            escape(&self.x),
            escape(&self.y)
        );
    }

    fn legend(&self, out: &mut String) {
        let mut x = MARGIN[0];
        let y = HEIGHT + 6.0;
        for series in self.series.iter().filter(|series| !series.name.is_empty()) {
            let Style { color, dash, mark } = series.style;
            if self.bars && !matches!(mark, Mark::None) {
                let _ = write!(out, "<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"9\" fill=\"{color}\"/>", y - 5.0);
            } else {
                let _ = write!(
                    out,
                    "<line x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{color}\" stroke-width=\"1.8\" \
                     stroke-dasharray=\"{dash}\"/>",
                    x + 22.0
                );
                self::mark(mark, x + 11.0, y, color, out);
            }
            let _ = write!(
                out,
                "<text x=\"{}\" y=\"{}\" class=\"tick\">{}</text>",
                x + 27.0,
                y + 3.5,
                escape(&series.name)
            );
            x += 44.0 + 6.4 * series.name.chars().count() as f64;
        }
    }
}

/// Where values lie in the picture.
struct Frame {
    left: f64,
    right: f64,
    low: f64,
    high: f64,
}

impl Frame {
    fn x(&self, value: f64) -> f64 {
        MARGIN[0] + (value - self.left) / (self.right - self.left) * (WIDTH - MARGIN[0] - MARGIN[1])
    }

    fn y(&self, value: f64) -> f64 {
        let part = (value - self.low) / (self.high - self.low).max(f64::MIN_POSITIVE);
        HEIGHT - MARGIN[3] - part * (HEIGHT - MARGIN[2] - MARGIN[3])
    }

    fn line(&self, series: &Series, out: &mut String) {
        let Style { color, dash, mark } = series.style;
        let places: Vec<(f64, f64)> = series.points.iter().map(|&(x, y)| (self.x(x), self.y(y))).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.8\" stroke-dasharray=\"{dash}\"/>",
            path.join(" ")
        );
        for (x, y) in places {
            self::mark(mark, x, y, color, out);
        }
    }

    /// The bars of the `at`th of `of` series.
    fn bars(&self, series: &Series, at: usize, of: usize, out: &mut String) {
        let room = self.x(1.0) - self.x(0.0);
        let width = room * 0.82 / of as f64;
        let floor = self.y(self.low.max(0.0));
        for &(x, y) in &series.points {
            let left = self.x(x) - room * 0.41 + at as f64 * width;
            let (top, bottom) = (self.y(y).min(floor), self.y(y).max(floor));
            let _ = write!(
                out,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                (width - 0.7).max(0.5),
                bottom - top,
                series.style.color
            );
        }
    }
}

fn mark(mark: Mark, x: f64, y: f64, color: &str, out: &mut String) {
    let _ = match mark {
        Mark::Circle => write!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"),
        Mark::Square => {
            write!(
                out,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"5.6\" height=\"5.6\" fill=\"{color}\"/>",
                x - 2.8,
                y - 2.8
            )
        }
        Mark::Triangle => write!(out, "<path d=\"M{x:.1} {:.1}l3.6 6.2h-7.2z\" fill=\"{color}\"/>", y - 3.8),
        Mark::None => Ok(()),
    };
}

/// Four to eight round numbers that reach over a range.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = (high - low).max(1e-9);
    let power = 10.0_f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|factor| factor * power).find(|step| span / step <= 6.0);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    (first..=last).map(|at| at as f64 * step).collect()
}

/// A number at an axis.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.replace('-', "−") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_over_the_range() {
        assert_eq!(
            ticks(0.0, 1.0).iter().map(|&tick| number(tick)).collect::<Vec<_>>(),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        let found = ticks(-0.31, 0.87);
        assert!(found[0] <= -0.31 && *found.last().unwrap() >= 0.87 && found.len() <= 8, "{found:?}");
        assert_eq!(ticks(0.0, 1234.0).last(), Some(&1500.0));
        assert_eq!((number(0.25), number(-3.0), number(-0.00001)), ("0.25".into(), "−3".into(), "0".into()));
    }

    #[test]
    fn a_plot_has_a_mark_for_each_point_within_its_frame_and_escapes_names() {
        let plot = Plot {
            title: "a < b".into(),
            x: "x & y".into(),
            y: "y".into(),
            ticks: vec![(0.0, "<0>".into())],
            range: Some((0.0, 1.0)),
            bars: false,
            series: vec![Series::new("\"one\"", CODER, [(0.0, 0.5), (1.0, f64::NAN), (2.0, 0.75)])],
        };
        let svg = plot.svg().unwrap();
        assert_eq!(svg.matches("<circle").count(), 3, "two points and the legend");
        assert!(svg.contains("x &amp; y") && svg.contains("&lt;0&gt;") && svg.contains("&quot;one&quot;"));
        let frame = Frame { left: 0.0, right: 2.0, low: 0.0, high: 1.0 };
        assert_eq!((frame.y(1.0), frame.y(0.0)), (MARGIN[2], HEIGHT - MARGIN[3]));
        assert!(Plot { series: Vec::new(), ..plot }.svg().is_none());
    }

    #[test]
    fn bars_stand_side_by_side_on_zero() {
        let series = |name: &str, style, y: f64| Series::new(name, style, [(0.0, y), (1.0, -y)]);
        let plot = Plot {
            title: String::new(),
            x: String::new(),
            y: String::new(),
            ticks: Vec::new(),
            range: None,
            bars: true,
            series: vec![
                series("a", CODER, 1.0),
                series("b", RANDOM, 0.5),
                Series::new("c", RULE, [(-0.5, 0.7), (1.5, 0.7)]),
            ],
        };
        let svg = plot.svg().unwrap();
        assert_eq!(svg.matches("<rect").count(), 6, "four bars, two in the legend");
        assert_eq!(svg.matches("<polyline").count(), 1);
    }
}
