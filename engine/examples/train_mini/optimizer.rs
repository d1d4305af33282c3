//! How do gradients move the weights?
//!
//! Linear maps by Muon (Jordan et al. 2024): Nesterov momentum, of which the nearest orthogonal matrix is taken by five
//! Newton–Schulz steps, so that every direction is learned at the same pace. It needs about two thirds of the steps that
//! AdamW needs, which counts on two cores. Tables, norms and scales by AdamW (Loshchilov & Hutter 2019).

use tch::{Kind, Tensor};

use crate::parameters::{Parameter, Rule};

/// Of Muon.
const MATRIX_RATE: f64 = 0.02;
const MOMENTUM: f64 = 0.95;
/// A step takes this part, times the rate, off each linear map.
const DECAY: f64 = 0.1;
/// Of AdamW.
const RATE: f64 = 0.003;
const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.95;
const EPSILON: f64 = 1e-10;
/// Coefficients of the quintic iteration that takes singular values to about one.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;

/// What is remembered of the gradients, one entry a parameter.
#[derive(Debug)]
pub(crate) struct Optimizer {
    pub(crate) first: Vec<Tensor>,
    /// Of a matrix an empty tensor.
    pub(crate) second: Vec<Tensor>,
}

impl Optimizer {
    pub(crate) fn new(parameters: &[Parameter]) -> Self {
        let first = |p: &Parameter| p.tensor.detach().zeros_like();
        let second = |p: &Parameter| {
            if p.rule == Rule::Muon { Tensor::zeros([0], (Kind::Float, p.tensor.device())) } else { first(p) }
        };
        Self { first: parameters.iter().map(first).collect(), second: parameters.iter().map(second).collect() }
    }

    /// One step; `factor` multiplies every rate, `step` counts from 0. The norm of all gradients together is cut to
    /// `max_norm`. Returns the norm before that.
    pub(crate) fn step(
        &mut self,
        parameters: &mut [Parameter],
        gradients: &[Tensor],
        factor: f64,
        step: usize,
        max_norm: f64,
    ) -> f64 {
        tch::no_grad(|| {
            let squares: Vec<Tensor> = gradients.iter().map(|g| g.square().sum(Kind::Float)).collect();
            let norm = Tensor::stack(&squares, 0).sum(Kind::Float).sqrt().double_value(&[]);
            let cut = (max_norm / (norm + 1e-6)).min(1.0);
            for (i, (p, gradient)) in parameters.iter_mut().zip(gradients).enumerate() {
                let gradient = gradient * cut;
                let first = &mut self.first[i];
                if p.rule == Rule::Muon {
                    let _ = first.g_mul_scalar_(MOMENTUM).g_add_(&gradient);
                    let ahead = gradient + &*first * MOMENTUM;
                    let change = update(&p.name, &ahead) * (-MATRIX_RATE * factor);
                    let _ = p.tensor.g_mul_scalar_(1.0 - MATRIX_RATE * factor * DECAY).g_add_(&change);
                } else {
                    let second = &mut self.second[i];
                    let _ = first.g_mul_scalar_(BETA_1).g_add_(&(&gradient * (1.0 - BETA_1)));
                    let _ = second.g_mul_scalar_(BETA_2).g_add_(&(gradient.square() * (1.0 - BETA_2)));
                    let t = step as i32 + 1;
                    let mean = &*first / (1.0 - BETA_1.powi(t));
                    let root = (&*second / (1.0 - BETA_2.powi(t))).sqrt() + EPSILON;
                    let _ = p.tensor.g_add_(&(mean / root * (-RATE * factor)));
                }
            }
            norm
        })
    }
}

/// The orthogonal step of a linear map, or of each of the maps in one tensor, as long as AdamW's would be.
fn update(name: &str, momentum: &Tensor) -> Tensor {
    let shape = momentum.size();
    let maps = match shape[..] {
        // Gate and up are two maps that are stored as one.
        [experts, rows, columns] if name.ends_with("gate_up_proj") => momentum.view([experts * 2, rows / 2, columns]),
        _ => momentum.shallow_clone(),
    };
    let [rows, columns] = [maps.size()[maps.dim() - 2], maps.size()[maps.dim() - 1]].map(|dim| dim as f64);
    orthogonal(&maps).reshape(&shape) * (rows / columns).max(1.0).sqrt()
}

/// The matrix (or each of a stack) with its singular values near one. `[…, rows, columns]`
fn orthogonal(x: &Tensor) -> Tensor {
    let (rows, columns) = (x.size()[x.dim() - 2], x.size()[x.dim() - 1]);
    let tall = rows > columns;
    let norm = x.square().sum_dim_intlist([-2, -1].as_slice(), true, Kind::Float).sqrt() + 1e-7;
    // The direction needs no more digits than bf16 has, and its products are twice as fast.
    let mut x = (x / norm).to_kind(Kind::BFloat16);
    if tall {
        x = x.transpose(-2, -1).contiguous();
    }
    let [a, b, c] = QUINTIC;
    for _ in 0..ITERATIONS {
        let gram = x.matmul(&x.transpose(-2, -1));
        let poly = &gram * b + gram.matmul(&gram) * c;
        x = &x * a + poly.matmul(&x);
    }
    if tall { x.transpose(-2, -1).contiguous() } else { x }.to_kind(Kind::Float)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests draw from libtorch's own stream, with seeds of theirs")]
mod tests {
    use super::*;

    #[test]
    fn singular_values_come_near_one() {
        tch::manual_seed(1);
        for shape in [vec![24, 40], vec![40, 24], vec![3, 16, 24]] {
            let x = orthogonal(&Tensor::randn(&shape, (Kind::Float, tch::Device::Cpu)));
            let (_, values, _) = x.svd(true, false);
            let (low, high) = (values.min().double_value(&[]), values.max().double_value(&[]));
            assert!(low > 0.5 && high < 1.3, "{shape:?}: {low} to {high}");
        }
    }

    /// Both rules find the bottom of a bowl.
    #[test]
    fn a_bowl_has_a_bottom() {
        for rule in [Rule::Muon, Rule::AdamW] {
            tch::manual_seed(2);
            let target = Tensor::randn([6, 4], (Kind::Float, tch::Device::Cpu)) * 0.1;
            let tensor = Tensor::zeros([6, 4], (Kind::Float, tch::Device::Cpu));
            let mut parameters = vec![Parameter { name: "x".into(), tensor, rule }];
            let mut optimizer = Optimizer::new(&parameters);
            let loss = |p: &[Parameter]| (&p[0].tensor - &target).square().sum(Kind::Float).double_value(&[]);
            let begun = loss(&parameters);
            for step in 0..300 {
                let gradient = (&parameters[0].tensor - &target) * 2.0;
                optimizer.step(&mut parameters, &[gradient], 1.0 - step as f64 / 300.0, step, 1e9);
            }
            let ended = loss(&parameters);
            assert!(ended < begun / 50.0, "{rule:?}: {begun} to {ended}");
        }
    }
}
