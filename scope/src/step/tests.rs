//! Does the fast step compute what the plain one does?

use super::*;
use crate::{
    init::Start,
    loss::plain::{GroupParameters, Loss, Parameters, Problem, objectives, parameters},
    random::Random,
    rule::Objective,
    testing::structured_rows,
};

const D_SAE: usize = 40;
/// More than one block of rows, the last one not full.
const ROWS: usize = BLOCK_ROWS + 37;
const SCALES: [f32; 3] = [0.5, 0.25, 0.4];

fn layouts() -> [Layout; 4] {
    [
        Layout::autoencoder(12, D_SAE),
        Layout::transcoder([12, 9], D_SAE, true),
        Layout::all_to_all(&[7, 5], &[7, 5], D_SAE, false),
        Layout::causal(&[6, 5, 4], &[5, 4, 6], D_SAE, true),
    ]
}

/// A batch of rows for a layout: what is read, and what is to be written.
fn batch(layout: &Layout) -> [Vec<f32>; 2] {
    let x = structured_rows(ROWS, layout.d_in(), 20, 5);
    let y = if layout.is_autoencoder { x.clone() } else { structured_rows(ROWS, layout.d_out(), 20, 6) };
    [x, y]
}

/// Rows with each site times its scale.
fn scaled(rows: &[f32], sites: &[std::ops::Range<usize>]) -> Vec<f64> {
    let width = sites.last().unwrap().end;
    let scale = |column: usize| SCALES[sites.iter().position(|site| site.contains(&column)).unwrap()];
    rows.iter().enumerate().map(|(i, &x)| f64::from(x) * f64::from(scale(i % width))).collect()
}

fn narrow(values: &[f64], out: &mut [f32]) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out = value as f32;
    }
}

/// The same parameters for both ways, as f32 has them.
fn weights(layout: &Layout, own: usize) -> (Weights, Parameters) {
    let plain = parameters(layout, own, &mut Random::new(1));
    let mut weights = Weights::zeros(layout, own);
    for (group, plain) in weights.groups.iter_mut().zip(&plain.groups) {
        narrow(&plain.encoder, group.encoder.as_mut_slice());
        narrow(&plain.decoder, group.decoder.as_mut_slice());
        narrow(&plain.b_enc, &mut group.b_enc);
        for (own, plain) in group.own.iter_mut().zip(&plain.own) {
            narrow(plain, own);
        }
    }
    for (skip, plain) in weights.skips.iter_mut().zip(&plain.skips) {
        narrow(plain, skip.as_mut_slice());
    }
    narrow(&plain.b_dec, &mut weights.b_dec);
    let wide = wide(&weights);
    (weights, wide)
}

fn wide(weights: &Weights) -> Parameters {
    let of = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let group = |group: &Group| GroupParameters {
        encoder: of(group.encoder.as_slice()),
        decoder: of(group.decoder.as_slice()),
        b_enc: of(&group.b_enc),
        own: group.own.iter().map(|own| of(own)).collect(),
    };
    Parameters {
        groups: weights.groups.iter().map(group).collect(),
        b_dec: of(&weights.b_dec),
        skips: weights.skips.iter().map(|skip| of(skip.as_slice())).collect(),
    }
}

/// A batch and how to treat it.
#[derive(Clone, Copy)]
struct Case<'a> {
    layout: &'a Layout,
    objective: Objective,
    per_group: bool,
    levels: &'a [usize],
    dead: &'a [u32],
    aux: Option<(usize, f64)>,
    bf16: bool,
}

impl<'a> Case<'a> {
    fn new(layout: &'a Layout, objective: Objective) -> Self {
        Self { layout, objective, per_group: false, levels: &[], dead: &[], aux: None, bf16: false }
    }

    fn aux(&self) -> Option<AuxK> {
        self.aux.map(|(k, weight)| AuxK { k, weight })
    }

    fn run(&self, threads: usize) -> (Outcome, Weights) {
        let [x, y] = batch(self.layout);
        let workers = Workers::new(threads).unwrap();
        let mut rule = self.objective.rule(self.layout, self.per_group);
        let mut step = Step::new(self.layout, rule.own(), self.bf16, &workers);
        let (weights, _) = weights(self.layout, rule.own());
        let input = Input {
            x: &x,
            y: &y,
            scales: [&SCALES[..self.layout.inputs.len()], &SCALES[..self.layout.outputs.len()]],
            levels: self.levels,
            sparsity: 0.2,
            dead: self.dead,
            aux: self.aux(),
        };
        // Twice: the second time with what the first remembers.
        let first = step.run(&workers, &weights, rule.as_mut(), input);
        let second = step.run(&workers, &weights, rule.as_mut(), input);
        assert_eq!(first, second);
        (second, step.gradients)
    }

    fn plain(&self) -> (Loss, Parameters, Weights) {
        let [x, y] = batch(self.layout);
        let (x, y) = (scaled(&x, &self.layout.inputs), scaled(&y, &self.layout.outputs));
        let (weights, wide) = weights(self.layout, self.objective.rule(self.layout, false).own());
        let problem = Problem {
            layout: self.layout,
            objective: &self.objective,
            per_group: self.per_group,
            x: &x,
            y: &y,
            levels: self.levels,
            sparsity: 0.2,
            dead: self.dead,
            aux: self.aux(),
            error: None,
        };
        let (loss, mut gradients) = problem.loss_and_gradients(&wide);
        // The step takes away what would only change a decoder row's norm.
        for (group, gradients) in weights.groups.iter().zip(&mut gradients.groups) {
            let width = group.decoder.cols();
            for (latent, gradient) in gradients.decoder.chunks_exact_mut(width).enumerate() {
                let row = group.decoder.row(latent);
                let along: f64 = row.iter().zip(gradient.iter()).map(|(&a, b)| f64::from(a) * b).sum();
                let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                gradient.iter_mut().zip(row).for_each(|(g, &row)| *g -= along / square * f64::from(row));
            }
        }
        (loss, gradients, weights)
    }

    #[track_caller]
    fn check(&self) {
        let (outcome, fast) = self.run(2);
        let (loss, plain, _) = self.plain();
        let name = format!("{:?} {:?} {:?}", self.objective, self.layout.groups.len(), self.levels);
        let pairs =
            [(outcome.loss, loss.reconstruction), (outcome.sparsity_loss, loss.sparsity), (outcome.aux_loss, loss.aux)];
        for (fast, plain) in pairs {
            assert!((fast - plain).abs() <= 2e-5 * plain.abs(), "{name}: {outcome:?} {loss:?}");
        }
        assert_eq!(loss.aux > 0.0, self.aux.is_some(), "{name}");
        let fast = wide(&fast);
        let mut square = 0.0;
        let mut close = |part: &str, fast: &[f64], plain: &[f64]| {
            assert_eq!(fast.len(), plain.len());
            let scale = plain.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
            assert!(scale > 1e-7, "{name}: {part} has a gradient");
            for (i, (fast, plain)) in fast.iter().zip(plain).enumerate() {
                assert!((fast - plain).abs() < 2e-4 * scale, "{name}: {part}[{i}]: {fast} and {plain} of {scale}");
                square += plain * plain;
            }
        };
        for (fast, plain) in fast.groups.iter().zip(&plain.groups) {
            close("encoder", &fast.encoder, &plain.encoder);
            close("decoder", &fast.decoder, &plain.decoder);
            close("b_enc", &fast.b_enc, &plain.b_enc);
            for (fast, plain) in fast.own.iter().zip(&plain.own) {
                close("own", fast, plain);
            }
        }
        for (fast, plain) in fast.skips.iter().zip(&plain.skips) {
            close("skip", fast, plain);
        }
        close("b_dec", &fast.b_dec, &plain.b_dec);
        assert!((outcome.gradient_norm - square.sqrt()).abs() < 1e-4 * square.sqrt(), "{name}");
    }
}

#[test]
fn the_fast_step_equals_the_plain_one() {
    let dead = [0, 3, 17, 39];
    for layout in layouts() {
        for objective in objectives() {
            Case { dead: &dead, ..Case::new(&layout, objective) }.check();
        }
        Case::new(&layout, Objective::TopK { k: D_SAE }).check();
        let target = objectives()[4];
        for objective in [Objective::TopK { k: 2 }, Objective::BatchTopK { k: 2 }, target] {
            Case { per_group: true, ..Case::new(&layout, objective) }.check();
        }
    }
}

#[test]
fn what_bf16_proposes_is_computed_in_f32() {
    for layout in layouts() {
        let own = |objective: &Objective| matches!(objective, Objective::L1 | Objective::Gated);
        for objective in objectives().into_iter().filter(|objective| !own(objective)) {
            for per_group in [false, true] {
                Case { bf16: true, per_group, ..Case::new(&layout, objective) }.check();
            }
            let case = Case { bf16: true, ..Case::new(&layout, objective) };
            assert_eq!(case.run(1), case.run(3));
        }
    }
}

#[test]
fn with_levels_too() {
    for layout in layouts().iter().filter(|layout| layout.groups.len() == 1) {
        for objective in objectives().into_iter().filter(|&objective| objective != Objective::Gated) {
            Case { levels: &[5, 12, D_SAE], ..Case::new(layout, objective) }.check();
        }
    }
}

#[test]
fn with_auxk_too() {
    let dead = [0, 3, 17, 39];
    let all: Vec<u32> = (0..D_SAE as u32).collect();
    for layout in layouts() {
        for (dead, k) in [(&dead[..], 1), (&dead, 3), (&dead, 6), (&all, 4), (&all, 6)] {
            // The few go through dense products, all of them with k = 4 entry by entry.
            assert_eq!(Dense::suits(dead.len(), k), (dead.len(), k) != (D_SAE, 4));
            for objective in [Objective::TopK { k: 4 }, Objective::BatchTopK { k: 4 }] {
                Case { dead, aux: Some((k, 1.0 / 32.0)), ..Case::new(&layout, objective) }.check();
            }
        }
    }
}

#[test]
fn much_that_fires_takes_the_dense_way_to_the_same() {
    // Half of all latents fire in an L1 coder, 3 of 40 in a TopK one.
    let layout = Layout::autoencoder(12, D_SAE);
    let share = |objective| Case::new(&layout, objective).run(1).0.n_kept as f64 / (ROWS * D_SAE) as f64;
    assert!(share(Objective::L1) > 2.0 * DENSE);
    assert!(share(Objective::TopK { k: 3 }) < DENSE / 1.9);
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let dead = [0, 3, 17, 39];
    for layout in layouts() {
        for objective in objectives() {
            let case = Case { dead: &dead, aux: Some((3, 1.0 / 32.0)), ..Case::new(&layout, objective) };
            assert_eq!(case.run(1), case.run(3));
        }
    }
}

#[test]
fn batch_topk_keeps_k_in_the_mean_and_topk_in_each() {
    let layout = Layout::autoencoder(12, D_SAE);
    let (outcome, _) = Case::new(&layout, Objective::BatchTopK { k: 4 }).run(1);
    assert_eq!(outcome.n_kept, 4 * ROWS);
    assert!(outcome.smallest[0].unwrap() > 0.0);
    let (outcome, _) = Case::new(&layout, Objective::TopK { k: 4 }).run(1);
    assert!(outcome.n_kept <= 4 * ROWS);
}

#[test]
fn thresholds_begin_where_they_are_told_and_stay_above_0() {
    let layout = Layout::autoencoder(12, D_SAE);
    let objective = objectives()[4];
    let rule = objective.rule(&layout, false);
    let mut weights = Weights::zeros(&layout, rule.own());
    rule.start(&mut weights.groups[0], Start { threshold: 0.7 });
    assert_eq!(weights.groups[0].own[0], [0.7; D_SAE]);
    weights.groups[0].own[0][3] = -0.1;
    rule.project(&mut weights);
    assert_eq!(weights.groups[0].own[0][2..5], [0.7, 0.0, 0.7]);
}

#[test]
fn a_batch_of_equal_rows_has_a_finite_loss() {
    let layout = Layout::autoencoder(12, D_SAE);
    let rows = [1.0; 12].repeat(3);
    let workers = Workers::new(1).unwrap();
    let dead = [1, 2];
    for objective in objectives() {
        let mut rule = objective.rule(&layout, false);
        let mut step = Step::new(&layout, rule.own(), false, &workers);
        let (weights, _) = weights(&layout, rule.own());
        let input = Input {
            x: &rows,
            y: &rows,
            scales: [&[1.0], &[1.0]],
            levels: &[],
            sparsity: 1.0,
            dead: &dead,
            aux: Some(AuxK { k: 3, weight: 1.0 }),
        };
        let outcome = step.run(&workers, &weights, rule.as_mut(), input);
        assert!(outcome.loss.is_finite() && outcome.aux_loss.is_finite() && outcome.gradient_norm.is_finite());
    }
}
