//! The loss and its gradients, plainly.

use tch::{Kind, Tensor};

use super::AuxK;
use crate::{
    jump_relu::Price,
    layout::Layout,
    random::Random,
    rule::{Objective, scopes},
};

/// Weights, or gradients of weights, in f64.
#[derive(Clone, Debug)]
pub(crate) struct Parameters {
    pub(crate) groups: Vec<GroupParameters>,
    /// `[d_out]`.
    pub(crate) b_dec: Vec<f64>,
    /// As in the weights.
    pub(crate) skips: Vec<Vec<f64>>,
}

#[derive(Clone, Debug)]
pub(crate) struct GroupParameters {
    /// `[latents, read columns]`.
    pub(crate) encoder: Vec<f64>,
    /// `[latents, written columns]`.
    pub(crate) decoder: Vec<f64>,
    /// `[latents]`.
    pub(crate) b_enc: Vec<f64>,
    pub(crate) own: Vec<Vec<f64>>,
}

/// The parts of the loss, whose sum is minimized, and what was left.
#[derive(Clone, Debug)]
pub(crate) struct Loss {
    pub(crate) reconstruction: f64,
    pub(crate) sparsity: f64,
    pub(crate) aux: f64,
    /// R.
    pub(crate) residual: Vec<f64>,
}

/// What is to be learned from what.
#[derive(Clone, Copy)]
pub(crate) struct Problem<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) objective: &'a Objective,
    pub(crate) per_group: bool,
    pub(crate) x: &'a [f64],
    pub(crate) y: &'a [f64],
    pub(crate) levels: &'a [usize],
    /// λ.
    pub(crate) sparsity: f64,
    pub(crate) dead: &'a [u32],
    pub(crate) aux: Option<AuxK>,
    /// What AuxK reconstructs; `None` takes `E = −R`, as training does. (It is held fixed while the gradient is taken.)
    pub(crate) error: Option<&'a [f64]>,
}

/// The tensors of [`Parameters`], in its order.
struct Leaves {
    groups: Vec<[Tensor; 3]>,
    own: Vec<Vec<Tensor>>,
    b_dec: Tensor,
    skips: Vec<Tensor>,
}

impl Problem<'_> {
    pub(crate) fn loss_and_gradients(&self, parameters: &Parameters) -> (Loss, Parameters) {
        let leaves = self.leaves(parameters);
        let (parts, residual) = self.forward(&leaves);
        let total = &parts[0] + &parts[1] + &parts[2];
        total.backward();
        let gradient = |leaf: &Tensor| {
            let gradient = leaf.grad();
            if gradient.defined() { values(&gradient) } else { vec![0.0; leaf.numel()] }
        };
        let groups = leaves.groups.iter().zip(&leaves.own).map(|([encoder, decoder, b_enc], own)| GroupParameters {
            encoder: gradient(encoder),
            decoder: gradient(decoder),
            b_enc: gradient(b_enc),
            own: own.iter().map(gradient).collect(),
        });
        let gradients = Parameters {
            groups: groups.collect(),
            b_dec: gradient(&leaves.b_dec),
            skips: leaves.skips.iter().map(gradient).collect(),
        };
        let [reconstruction, sparsity, aux] = parts.map(|part| part.double_value(&[]));
        (Loss { reconstruction, sparsity, aux, residual: values(&residual) }, gradients)
    }

    fn leaves(&self, parameters: &Parameters) -> Leaves {
        let leaf = |values: &[f64], shape: &[i64]| Tensor::from_slice(values).view(shape).set_requires_grad(true);
        let layout = self.layout;
        let groups = layout.groups.iter().zip(&parameters.groups).map(|(layout, group)| {
            let n = layout.latents.len() as i64;
            [
                leaf(&group.encoder, &[n, layout.reads.len() as i64]),
                leaf(&group.decoder, &[n, layout.writes.len() as i64]),
                leaf(&group.b_enc, &[n]),
            ]
        });
        let own = |group: &GroupParameters| group.own.iter().map(|own| leaf(own, &[-1])).collect();
        let skip = |(skip, [reads, writes]): (&Vec<f64>, &[std::ops::Range<usize>; 2])| {
            leaf(skip, &[writes.len() as i64, reads.len() as i64])
        };
        Leaves {
            groups: groups.collect(),
            own: parameters.groups.iter().map(own).collect(),
            b_dec: leaf(&parameters.b_dec, &[-1]),
            skips: parameters.skips.iter().zip(&layout.skips).map(skip).collect(),
        }
    }

    /// Reconstruction, sparsity, AuxK; and R.
    fn forward(&self, leaves: &Leaves) -> ([Tensor; 3], Tensor) {
        let layout = self.layout;
        let rows = |values: &[f64], width: usize| Tensor::from_slice(values).view([-1, width as i64]);
        let (x, y) = (rows(self.x, layout.d_in()), rows(self.y, layout.d_out()));
        let n = x.size()[0] as f64;
        let read = if layout.is_autoencoder { &x - &leaves.b_dec } else { x.shallow_clone() };
        let products: Vec<Tensor> = layout
            .groups
            .iter()
            .zip(&leaves.groups)
            .map(|(group, [encoder, ..])| columns(&read, &group.reads).matmul(&encoder.tr()))
            .collect();
        let u = Tensor::cat(&products, 1);
        let b_enc = Tensor::cat(&leaves.groups.iter().map(|[_, _, b_enc]| b_enc).collect::<Vec<_>>(), 0);
        let z = &u + &b_enc; // [B, d_sae]
        let own: Vec<Tensor> = (0..leaves.own[0].len())
            .map(|which| Tensor::cat(&leaves.own.iter().map(|own| &own[which]).collect::<Vec<_>>(), 0))
            .collect();
        let skipped = self.skipped(&x, leaves);
        let per_variance = 1.0 / (n * variance(&y));

        let per_deviation = 1.0 / (n * variance(&y).sqrt());
        let (f, mut sparsity) = self.activations(&z, &u, &own, leaves, per_deviation, n);
        let missing = |f: &Tensor| self.decode(f, leaves, false) + &leaves.b_dec + &skipped - &y;
        let residual = missing(&f);
        let mut reconstruction = square(&residual) * per_variance;
        if !self.levels.is_empty() {
            let latents = Tensor::arange(z.size()[1], (Kind::Int64, tch::Device::Cpu));
            let of_level = |&width: &usize| square(&missing(&(&f * latents.lt(width as i64)))) * per_variance;
            let all: Vec<Tensor> = self.levels.iter().map(of_level).collect();
            reconstruction = Tensor::stack(&all, 0).mean(Kind::Double);
        }
        if let Objective::Gated = self.objective {
            let through_gate = self.decode(&z.relu(), leaves, true) + (&leaves.b_dec + &skipped).detach() - &y;
            sparsity += square(&through_gate) * per_variance;
        }
        let aux = self.aux(&z, &residual, leaves, n).unwrap_or_else(|| Tensor::from(0.0));
        ([reconstruction, sparsity, aux], residual.detach())
    }

    /// F, and what is charged for it.
    fn activations(
        &self,
        z: &Tensor,
        u: &Tensor,
        own: &[Tensor],
        leaves: &Leaves,
        per_deviation: f64,
        n: f64,
    ) -> (Tensor, Tensor) {
        let none = || Tensor::from(0.0);
        match self.objective {
            Objective::L1 => {
                let f = z.relu();
                let charged = (&f * self.norms(leaves)).sum(Kind::Double) * (self.sparsity * per_deviation);
                (f, charged)
            }
            Objective::Gated => {
                let magnitude = (own[1].exp() * u + &own[0]).relu();
                let charged = z.relu().sum(Kind::Double) * (self.sparsity * per_deviation);
                (magnitude * z.gt(0.0), charged)
            }
            &Objective::TopK { k } => (z * self.largest(z, k, false), none()),
            &Objective::BatchTopK { k } => (z * self.largest(z, k, true), none()),
            &Objective::JumpRelu { bandwidth, price, pre_act, frequency } => {
                let epsilon = f64::from(bandwidth);
                let theta = &own[0];
                let (fires, window) = (z.gt_tensor(theta), (z - theta).abs().lt(epsilon / 2.0));
                let window = window.to_kind(Kind::Double);
                // 0, with the gradient of the jump's argument.
                let to_input = if let Price::Tanh { .. } = price { z - z.detach() } else { z.zeros_like() };
                let moved = to_input - (theta - theta.detach());
                let f = z * &fires + (theta.detach() * &window / epsilon) * &moved;
                let h = fires.to_kind(Kind::Double) + (&window / epsilon) * &moved;
                let mut charged = match price {
                    Price::Target { l0 } => {
                        let of_scope = |scope| {
                            let missed = columns(&h, &scope).sum_dim_intlist(1, false, Kind::Double) - l0;
                            (&missed * &missed).sum(Kind::Double) * (self.sparsity * 2.0 / l0 / n)
                        };
                        let scopes = scopes(self.layout, self.per_group).into_iter();
                        scopes.map(of_scope).reduce(|a, b| a + b).unwrap()
                    }
                    Price::Count => h.sum(Kind::Double) * (self.sparsity / n),
                    Price::Tanh { scale } => {
                        (&f * self.norms(leaves) * scale).tanh().sum(Kind::Double) * (self.sparsity / n)
                    }
                };
                if let Some((weight, scale)) = frequency {
                    let share = h.sum_dim_intlist(0, false, Kind::Double) / n;
                    charged += ((&share / scale + 1.0) * &share).sum(Kind::Double) * weight;
                }
                if pre_act > 0.0 && !self.dead.is_empty() {
                    let dead = indices(self.dead);
                    let below = (theta - z).index_select(1, &dead) * fires.index_select(1, &dead).logical_not();
                    charged += below.sum(Kind::Double) * (pre_act * per_deviation);
                }
                (f, charged)
            }
        }
    }

    fn aux(&self, z: &Tensor, residual: &Tensor, leaves: &Leaves, n: f64) -> Option<Tensor> {
        let aux = self.aux.filter(|_| !self.dead.is_empty())?;
        let dead = indices(self.dead);
        let error = match self.error {
            Some(error) => Tensor::from_slice(error).view_as(residual),
            None => -residual.detach(),
        };
        let k = aux.k.min(self.dead.len()) as i64;
        let positive = z.index_select(1, &dead).relu();
        let (_, which) = positive.topk(k, 1, true, false);
        let mask = positive.zeros_like().scatter_value(1, &which, 1.0);
        let f = z.zeros_like().index_add(1, &dead, &(positive * mask));
        let scale = aux.scaled_weight(self.dead.len()) / variance(&error);
        let missing = self.decode(&f, leaves, false) - error;
        scale.is_finite().then(|| square(&missing) * (scale / n))
    }

    /// `F·w_dec`, with the decoder held fixed if that is wanted.
    fn decode(&self, f: &Tensor, leaves: &Leaves, fixed: bool) -> Tensor {
        let d_out = self.layout.d_out() as i64;
        let mut out = Tensor::zeros([f.size()[0], d_out], (Kind::Double, tch::Device::Cpu));
        for (group, [_, decoder, _]) in self.layout.groups.iter().zip(&leaves.groups) {
            let decoder = if fixed { decoder.detach() } else { decoder.shallow_clone() };
            let written = columns(f, &group.latents).matmul(&decoder);
            let [before, after] = [group.writes.start as i64, d_out - group.writes.end as i64];
            out += written.constant_pad_nd([before, after]);
        }
        out
    }

    fn skipped(&self, x: &Tensor, leaves: &Leaves) -> Tensor {
        let d_out = self.layout.d_out() as i64;
        let mut out = Tensor::zeros([x.size()[0], d_out], (Kind::Double, tch::Device::Cpu));
        for ([reads, writes], skip) in self.layout.skips.iter().zip(&leaves.skips) {
            let through = columns(x, reads).matmul(&skip.tr());
            out += through.constant_pad_nd([writes.start as i64, d_out - writes.end as i64]);
        }
        out
    }

    /// Of each latent, the sum over sites of the norm of its decoder row.
    fn norms(&self, leaves: &Leaves) -> Tensor {
        let of_groups = self.layout.groups.iter().zip(&leaves.groups).map(|(group, [_, decoder, _])| {
            let sites = self.layout.outputs.iter().filter(|site| site.start >= group.writes.start);
            let norms = sites.map(|site| {
                let first = group.writes.start;
                let part = columns(decoder, &(site.start - first..site.end - first));
                (&part * &part).sum_dim_intlist(1, false, Kind::Double).sqrt()
            });
            norms.reduce(|a, b| a + b).unwrap()
        });
        Tensor::cat(&of_groups.collect::<Vec<_>>(), 0)
    }

    /// 1 where a positive value is among the `k` largest of its row, or among `k` times rows of the batch.
    fn largest(&self, z: &Tensor, k: usize, of_batch: bool) -> Tensor {
        let masks = scopes(self.layout, self.per_group).into_iter().map(|scope| {
            let z = columns(z, &scope).relu().detach();
            let (flat, k) = if of_batch { (z.reshape([1, -1]), k as i64 * z.size()[0]) } else { (z.copy(), k as i64) };
            let k = k.min(flat.size()[1]);
            let (_, which) = flat.topk(k, -1, true, false);
            flat.zeros_like().scatter_value(-1, &which, 1.0).view_as(&z) * z.gt(0.0)
        });
        Tensor::cat(&masks.collect::<Vec<_>>(), 1)
    }
}

fn indices(latents: &[u32]) -> Tensor {
    Tensor::from_slice(&latents.iter().map(|&latent| i64::from(latent)).collect::<Vec<_>>())
}

fn columns(x: &Tensor, range: &std::ops::Range<usize>) -> Tensor {
    x.narrow(1, range.start as i64, range.len() as i64)
}

fn square(x: &Tensor) -> Tensor {
    (x * x).sum(Kind::Double)
}

/// Mean over rows of the squared distance from the mean row.
fn variance(x: &Tensor) -> f64 {
    let x = x.detach();
    let mean = x.mean_dim(0, false, Kind::Double);
    square(&(&x - mean)).double_value(&[]) / x.size()[0] as f64
}

fn values(x: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(x.contiguous().view(-1)).unwrap()
}

/// Every architecture, with coefficients that make each part matter.
pub(crate) fn objectives() -> Vec<Objective> {
    let jump = |price, pre_act, frequency| Objective::JumpRelu { bandwidth: 0.4, price, pre_act, frequency };
    vec![
        Objective::L1,
        Objective::Gated,
        Objective::TopK { k: 3 },
        Objective::BatchTopK { k: 3 },
        jump(Price::Target { l0: 3.0 }, 0.0, None),
        jump(Price::Target { l0: 3.0 }, 0.0, Some((0.3, 0.2))),
        jump(Price::Count, 0.0, None),
        jump(Price::Tanh { scale: 1.5 }, 0.3, None),
    ]
}

/// Random parameters: decoder rows of norm 1 over all they write, the rest of a useful size.
pub(crate) fn parameters(layout: &Layout, own: usize, random: &mut Random) -> Parameters {
    let mut normals = |n: usize, scale: f64| -> Vec<f64> { (0..n).map(|_| scale * random.normal()).collect() };
    let groups = layout.groups.iter().map(|group| {
        let (n, width) = (group.latents.len(), group.writes.len());
        let mut decoder = normals(n * width, 1.0);
        for row in decoder.chunks_exact_mut(width) {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            for x in row {
                *x /= norm;
            }
        }
        let mut own: Vec<Vec<f64>> = (0..own).map(|_| normals(n, 0.2)).collect();
        if own.len() == 1 {
            for threshold in &mut own[0] {
                *threshold = threshold.abs() + 0.1;
            }
        }
        GroupParameters { encoder: normals(n * group.reads.len(), 0.4), decoder, b_enc: normals(n, 0.1), own }
    });
    let groups = groups.collect();
    let skips = layout.skips.iter().map(|[reads, writes]| normals(reads.len() * writes.len(), 0.2)).collect();
    Parameters { groups, b_dec: normals(layout.d_out(), 0.3), skips }
}

mod tests {
    use super::*;

    const ROWS: usize = 6;

    /// Picks one kind of parameters.
    type Part = fn(&mut Parameters) -> Vec<&mut Vec<f64>>;

    /// Compares every gradient with `(L(w + h) − L(w − h)) / 2h`.
    fn check(problem: &Problem<'_>, parts: &[(&str, Part)]) {
        /// Small enough for the curvature, large enough for f64; no choice of what fires lies within it.
        const STEP: f64 = 1e-6;
        let parameters =
            parameters(problem.layout, problem.objective.rule(problem.layout, false).own(), &mut Random::new(2));
        let (loss, mut gradients) = problem.loss_and_gradients(&parameters);
        let error: Vec<f64> = loss.residual.iter().map(|x| -x).collect();
        let fixed = Problem { error: Some(&error), ..*problem };
        let total = |parameters: &Parameters| {
            let (loss, _) = fixed.loss_and_gradients(parameters);
            loss.reconstruction + loss.sparsity + loss.aux
        };
        for (name, part) in parts {
            let gradients: Vec<Vec<f64>> = part(&mut gradients).into_iter().map(|values| values.clone()).collect();
            let mut largest = 0.0_f64;
            for (at, gradients) in gradients.iter().enumerate() {
                for (index, &gradient) in gradients.iter().enumerate() {
                    let shifted = |by: f64| {
                        let mut shifted = parameters.clone();
                        part(&mut shifted)[at][index] += by;
                        total(&shifted)
                    };
                    let numeric = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
                    assert!(
                        (numeric - gradient).abs() < 1e-6,
                        "{:?} {name}[{at}][{index}]: {numeric} {gradient}",
                        problem.objective
                    );
                    largest = largest.max(gradient.abs());
                }
            }
            assert!(largest > 1e-4, "{:?}: {name} has a gradient", problem.objective);
        }
    }

    const ENCODERS: (&str, Part) = ("encoder", |p| p.groups.iter_mut().map(|g| &mut g.encoder).collect());
    const DECODERS: (&str, Part) = ("decoder", |p| p.groups.iter_mut().map(|g| &mut g.decoder).collect());
    const B_ENC: (&str, Part) = ("b_enc", |p| p.groups.iter_mut().map(|g| &mut g.b_enc).collect());
    const B_DEC: (&str, Part) = ("b_dec", |p| vec![&mut p.b_dec]);
    const OWN: (&str, Part) = ("own", |p| p.groups.iter_mut().flat_map(|g| &mut g.own).collect());
    const SKIPS: (&str, Part) = ("skip", |p| p.skips.iter_mut().collect());

    /// What has a gradient that is one. (Thresholds learn through a rectangle, and what is held fixed by a gate is not.)
    fn parts(objective: &Objective, layout: &Layout) -> Vec<(&'static str, Part)> {
        let mut parts = vec![ENCODERS, B_ENC];
        match objective {
            Objective::Gated => parts.push(OWN),
            Objective::JumpRelu { price: Price::Tanh { .. }, .. } => return vec![DECODERS],
            _ => parts.extend([DECODERS, B_DEC]),
        }
        if !layout.skips.is_empty() && *objective != Objective::Gated {
            parts.push(SKIPS);
        }
        parts
    }

    fn layouts() -> [Layout; 4] {
        [
            Layout::autoencoder(4, 8),
            Layout::transcoder([4, 3], 8, true),
            Layout::all_to_all(&[2, 3], &[2, 3], 8, false),
            Layout::causal(&[2, 3], &[3, 2], 8, true),
        ]
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for layout in layouts() {
            let mut random = Random::new(5);
            let x: Vec<f64> = (0..ROWS * layout.d_in()).map(|_| random.normal()).collect();
            let y: Vec<f64> = (0..ROWS * layout.d_out()).map(|_| random.normal()).collect();
            for objective in objectives() {
                let target = if layout.is_autoencoder { &x } else { &y };
                let dead = [1, 4, 6];
                for (k_aux, levels) in [(0, &[][..]), (2, &[]), (5, &[2, 5, 8])] {
                    if !levels.is_empty() && layout.groups.len() > 1 {
                        continue;
                    }
                    let aux = (k_aux > 0).then_some(AuxK { k: k_aux, weight: 0.5 });
                    let problem = Problem {
                        layout: &layout,
                        objective: &objective,
                        per_group: k_aux == 0,
                        x: &x,
                        y: target,
                        levels,
                        sparsity: 0.2,
                        dead: &dead,
                        aux,
                        error: None,
                    };
                    check(&problem, &parts(&objective, &layout));
                }
            }
        }
    }
}
