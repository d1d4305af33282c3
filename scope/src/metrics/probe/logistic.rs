//! How is a linear probe fitted? Logistic regression with a ridge penalty, in f64, by L-BFGS.
//!
//! `min_w,b  mean log(1 + e^(−y(w·x + b))) + λ/2 ‖w‖²`, with columns brought to mean 0 first and scaled as [`Scaling`] says; the
//! probe that comes back is for the values as they were. λ is the one of [`PENALTIES`] with the least loss on a fifth of the
//! training examples.

use std::collections::VecDeque;

use super::score::Score;

/// Penalties that are tried.
pub const PENALTIES: [f64; 3] = [1e-4, 1e-2, 1.0];

/// Every so many training examples, one is held out to choose the penalty.
const HELD_OUT: usize = 5;
/// Fewer training examples than this are all needed; then the middle one of [`PENALTIES`] is taken.
const MIN_TO_CHOOSE: usize = 40;
const MAX_ITERATIONS: usize = 200;
/// Steps that the curvature is estimated from.
const MEMORY: usize = 10;
/// The largest slope at which it ends.
const TOLERANCE: f64 = 1e-5;

/// What columns are divided by, and so which weights the penalty is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scaling {
    /// Each by its own deviation, as is usual where a probe is to predict.
    Columns,
    /// All by the same, which keeps directions what they are: where weights are compared with decoder rows.
    Whole,
}

/// A linear probe: positive where `w·x + b > 0`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Probe {
    pub(super) w: Vec<f64>,
    pub(super) b: f64,
}

impl Probe {
    pub(super) fn logit(&self, x: &[f32]) -> f64 {
        self.b + self.w.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum::<f64>()
    }

    /// `x`: `[n, width]`.
    pub(super) fn score(&self, x: &[f32], y: &[bool]) -> Score {
        let logits: Vec<f64> = x.chunks_exact(self.w.len()).map(|row| self.logit(row)).collect();
        Score::of(&logits, y)
    }

    /// Fits a probe to examples `x` (`[n, width]`) of which those in `y` are positive.
    pub(super) fn fit(x: &[f32], y: &[bool], width: usize, scaling: Scaling) -> Self {
        let scaled = Scaled::of(x, width, scaling);
        if y.len() < MIN_TO_CHOOSE {
            return scaled.unscaled(scaled.fit(y, &|_| true, PENALTIES[1], None));
        }
        // Examples come class by class, so every fifth one is a fair part of each.
        let kept = |row: usize| !row.is_multiple_of(HELD_OUT);
        let held: Vec<usize> = (0..y.len()).step_by(HELD_OUT).collect();
        let labels: Vec<bool> = held.iter().map(|&row| y[row]).collect();
        let mut best = (f64::INFINITY, PENALTIES[0]);
        let mut start = None;
        // From the strongest penalty on, each fit begins where the last one ended.
        for &penalty in PENALTIES.iter().rev() {
            let point = scaled.fit(y, &kept, penalty, start.take());
            // By the loss, not by the order alone: a strong penalty keeps the order, and moves the boundary.
            let losses =
                held.iter().zip(&labels).map(|(&row, &positive)| log_loss(scaled.logit(&point, row), positive));
            let found = losses.sum::<f64>();
            if found < best.0 {
                best = (found, penalty);
            }
            start = Some(point);
        }
        scaled.unscaled(scaled.fit(y, &|_| true, best.1, start))
    }
}

/// Examples whose columns have mean 0 and variance 1.
struct Scaled {
    width: usize,
    rows: Vec<f32>,
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl Scaled {
    fn of(x: &[f32], width: usize, scaling: Scaling) -> Self {
        let n = (x.len() / width).max(1) as f64;
        let (mut mean, mut square) = (vec![0.0; width], vec![0.0; width]);
        for row in x.chunks_exact(width) {
            for (mean, &x) in mean.iter_mut().zip(row) {
                *mean += f64::from(x) / n;
            }
        }
        for row in x.chunks_exact(width) {
            for ((square, &x), mean) in square.iter_mut().zip(row).zip(&mean) {
                *square += (f64::from(x) - mean).powi(2) / n;
            }
        }
        if scaling == Scaling::Whole {
            let mean = square.iter().sum::<f64>() / width as f64;
            square.fill(mean);
        }
        // A column that never changes says nothing, and gets no weight.
        let deviation: Vec<f64> =
            square.into_iter().map(|square: f64| if square > 0.0 { square.sqrt() } else { f64::INFINITY }).collect();
        let mut rows = x.to_vec();
        for row in rows.chunks_exact_mut(width) {
            for ((x, mean), deviation) in row.iter_mut().zip(&mean).zip(&deviation) {
                *x = ((f64::from(*x) - mean) / deviation) as f32;
            }
        }
        Self { width, rows, mean, deviation }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.rows[row * self.width..][..self.width]
    }

    /// `point`: the weights, and behind them the constant.
    fn logit(&self, point: &[f64], row: usize) -> f64 {
        let products = point.iter().zip(self.row(row)).map(|(w, &x)| w * f64::from(x));
        point[self.width] + products.sum::<f64>()
    }

    /// The loss, with its slope in `gradient`.
    fn loss(&self, y: &[bool], kept: &dyn Fn(usize) -> bool, penalty: f64, point: &[f64], gradient: &mut [f64]) -> f64 {
        gradient.fill(0.0);
        let (mut loss, mut n) = (0.0, 0.0);
        for (row, &positive) in y.iter().enumerate().filter(|(row, _)| kept(*row)) {
            let sign = if positive { 1.0 } else { -1.0 };
            let logit = self.logit(point, row);
            loss += log_loss(logit, positive);
            let slope = -sign / (1.0 + (sign * logit).exp());
            for (gradient, &x) in gradient.iter_mut().zip(self.row(row)) {
                *gradient += slope * f64::from(x);
            }
            gradient[self.width] += slope;
            n += 1.0;
        }
        let n = f64::max(n, 1.0);
        for gradient in gradient.iter_mut() {
            *gradient /= n;
        }
        let mut ridge = 0.0;
        for (gradient, w) in gradient.iter_mut().zip(&point[..self.width]) {
            *gradient += penalty * w;
            ridge += w * w;
        }
        loss / n + penalty / 2.0 * ridge
    }

    fn fit(&self, y: &[bool], kept: &dyn Fn(usize) -> bool, penalty: f64, start: Option<Vec<f64>>) -> Vec<f64> {
        let start = start.unwrap_or_else(|| vec![0.0; self.width + 1]);
        minimize(start, &mut |point, gradient| self.loss(y, kept, penalty, point, gradient))
    }

    /// The probe for values as they were.
    fn unscaled(&self, mut point: Vec<f64>) -> Probe {
        let mut b = point.pop().unwrap_or_default();
        for ((w, deviation), mean) in point.iter_mut().zip(&self.deviation).zip(&self.mean) {
            *w /= deviation;
            b -= *w * mean;
        }
        Probe { w: point, b }
    }
}

/// log(1 + e^−m) of the margin, without overflow.
fn log_loss(logit: f64, positive: bool) -> f64 {
    let margin = if positive { logit } else { -logit };
    (-margin).max(0.0) + (-margin.abs()).exp().ln_1p()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The minimum of a convex function, which writes its slope into its second argument: L-BFGS, with steps that are halved until
/// they go down far enough (Armijo).
fn minimize(mut point: Vec<f64>, function: &mut dyn FnMut(&[f64], &mut [f64]) -> f64) -> Vec<f64> {
    let mut gradient = vec![0.0; point.len()];
    let mut value = function(&point, &mut gradient);
    // Steps, differences of slopes, and the inverse of their product.
    let mut memory: VecDeque<(Vec<f64>, Vec<f64>, f64)> = VecDeque::new();
    let mut next_gradient = gradient.clone();
    for _ in 0..MAX_ITERATIONS {
        if gradient.iter().all(|slope| slope.abs() <= TOLERANCE) {
            break;
        }
        let direction = descent(&gradient, &memory);
        let slope = dot(&direction, &gradient);
        let mut length = if memory.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt().max(1.0) } else { 1.0 };
        let (next, next_value) = loop {
            let next: Vec<f64> = point.iter().zip(&direction).map(|(x, d)| x + length * d).collect();
            let next_value = function(&next, &mut next_gradient);
            if next_value <= value + 1e-4 * length * slope || length < 1e-12 {
                break (next, next_value);
            }
            length /= 2.0;
        };
        if next_value >= value {
            break;
        }
        let step: Vec<f64> = next.iter().zip(&point).map(|(a, b)| a - b).collect();
        let change: Vec<f64> = next_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&step, &change);
        if curvature > 1e-14 {
            if memory.len() == MEMORY {
                memory.pop_front();
            }
            memory.push_back((step, change, 1.0 / curvature));
        }
        (point, value) = (next, next_value);
        std::mem::swap(&mut gradient, &mut next_gradient);
    }
    point
}

/// The direction down that the remembered steps give (Nocedal and Wright, algorithm 7.4).
fn descent(gradient: &[f64], memory: &VecDeque<(Vec<f64>, Vec<f64>, f64)>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|slope| -slope).collect();
    let mut along = Vec::with_capacity(memory.len());
    for (step, change, inverse) in memory.iter().rev() {
        let a = inverse * dot(step, &direction);
        for (direction, change) in direction.iter_mut().zip(change) {
            *direction -= a * change;
        }
        along.push(a);
    }
    if let Some((_, change, inverse)) = memory.back() {
        let scale = 1.0 / (inverse * dot(change, change));
        for direction in &mut direction {
            *direction *= scale;
        }
    }
    for ((step, change, inverse), a) in memory.iter().zip(along.iter().rev()) {
        let b = inverse * dot(change, &direction);
        for (direction, step) in direction.iter_mut().zip(step) {
            *direction += (a - b) * step;
        }
    }
    direction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn examples(n: usize, width: usize) -> (Vec<f32>, Vec<bool>) {
        let mut random = Random::new(8);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let row: Vec<f32> =
                (0..width).map(|i| (5.0 * i as f64 + random.normal() * (1.0 + i as f64)) as f32).collect();
            y.push(f64::from(row[0]) - 0.2 * (f64::from(row[1]) - 5.0) + 0.3 * random.normal() > 0.0);
            x.extend(row);
        }
        (x, y)
    }

    #[test]
    fn slopes_are_those_of_finite_differences() {
        let (x, y) = examples(50, 3);
        let scaled = Scaled::of(&x, 3, Scaling::Columns);
        let point = [0.3, -0.7, 0.2, 0.1];
        let kept = |row: usize| row % 4 != 1;
        let mut gradient = [0.0; 4];
        let loss = |point: &[f64], gradient: &mut [f64]| scaled.loss(&y, &kept, 0.3, point, gradient);
        loss(&point, &mut gradient);
        for i in 0..4 {
            let at = |offset: f64| {
                let mut point = point;
                point[i] += offset;
                loss(&point, &mut [0.0; 4])
            };
            let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((numeric - gradient[i]).abs() < 1e-8, "{i}: {numeric} {}", gradient[i]);
        }
    }

    #[test]
    fn without_columns_that_say_anything_the_constant_is_the_log_odds() {
        let y = [true, true, true, false];
        let probe = Probe::fit(&[1.0; 4], &y, 1, Scaling::Columns);
        assert_eq!(probe.w, [0.0]);
        assert!((probe.b - 3.0_f64.ln()).abs() < 1e-4, "ln(3/1), found {}", probe.b);
    }

    #[test]
    fn the_minimum_has_no_slope_and_separates() {
        let (x, y) = examples(400, 3);
        let scaled = Scaled::of(&x, 3, Scaling::Columns);
        let point = scaled.fit(&y, &|_| true, 0.01, None);
        let mut gradient = [0.0; 4];
        scaled.loss(&y, &|_| true, 0.01, &point, &mut gradient);
        assert!(gradient.iter().all(|slope| slope.abs() <= 2.0 * TOLERANCE), "{gradient:?}");
        let probe = Probe::fit(&x, &y, 3, Scaling::Columns);
        // As good as the line that the examples were drawn about, which noise hides a little.
        let truth = Probe { w: vec![1.0, -0.2, 0.0], b: 1.0 };
        let (found, best) = (probe.score(&x, &y), truth.score(&x, &y));
        assert!(found.accuracy > best.accuracy - 0.03 && best.accuracy > 0.8, "{found:?} {best:?} {probe:?}");
        // Scaling was undone: the boundary is where it was drawn.
        assert!((probe.w[1] / probe.w[0] + 0.2).abs() < 0.05, "{probe:?}");
        assert!((scaled.logit(&point, 7) - scaled.unscaled(point.clone()).logit(&x[21..24])).abs() < 1e-4);
    }

    #[test]
    fn one_scale_for_all_keeps_directions() {
        // Two classes far apart along the first axis; the second is noise, and small.
        let mut random = Random::new(2);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for i in 0..200 {
            let (positive, noise) = (i % 2 == 0, (0.01 * random.normal()) as f32);
            x.extend([if positive { 3.0 } else { -3.0 } + random.normal() as f32, noise]);
            y.push(positive);
        }
        let along = |scaling| {
            let probe = Probe::fit(&x, &y, 2, scaling);
            probe.w[0] / (probe.w[0].powi(2) + probe.w[1].powi(2)).sqrt()
        };
        assert!(along(Scaling::Whole) > 0.999, "{}", along(Scaling::Whole));
        assert!(along(Scaling::Columns) < 0.99, "small noise gets large weights: {}", along(Scaling::Columns));
    }

    #[test]
    fn quadratic_functions_are_minimized() {
        let found = minimize(vec![0.0; 3], &mut |x, gradient| {
            let (scales, at) = ([1.0, 100.0, 0.1], [3.0, -2.0, 7.0]);
            (0..3).for_each(|i| gradient[i] = scales[i] * (x[i] - at[i]));
            (0..3).map(|i| scales[i] / 2.0 * (x[i] - at[i]).powi(2)).sum()
        });
        for (found, expected) in found.iter().zip([3.0, -2.0, 7.0]) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
    }
}
