//! What is the loss, and what do the experts do meanwhile?

use std::cell::RefCell;

use engine::config::Config;
use engine::error::Result;
use engine::gemma::model::{Batch, Forward, Logits, Model, Precision};
use engine::hook::Hooks;
use engine::weights::Weights;
use rayon::ThreadPool;
use rayon::prelude::*;
use tch::{Kind, Reduction, Tensor};

use data::hook_point::{HookPoint, Site};

use crate::parameters::{Parameter, shared};
use crate::recipe::BALANCE;

/// Sequences and what should come after each of their tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lesson {
    pub(crate) batch: Batch,
    pub(crate) targets: Vec<u32>,
}

impl Lesson {
    pub(crate) fn push(&mut self, (inputs, targets): (Vec<u32>, Vec<u32>)) {
        self.batch.push(&inputs);
        self.targets.extend(targets);
    }
}

/// The engine's model over the weights in training. In bf16 the weights stay f32, and the model has their rounded values.
pub(crate) fn model(config: &Config, parameters: &[Parameter], precision: Precision) -> Result<Model> {
    over(config, &shared(parameters), precision)
}

fn over(config: &Config, weights: &[(String, Tensor)], precision: Precision) -> Result<Model> {
    let weights = weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
    Model::from_weights(&Weights::in_memory(config.clone(), weights)?, precision)
}

/// What a step is made from.
#[derive(Debug)]
pub(crate) struct Gradients {
    /// One for each parameter, in their order.
    pub(crate) of: Vec<Tensor>,
    /// Mean over tokens, in nats.
    pub(crate) nll: f64,
    /// See [`Loss::balance`].
    pub(crate) balance: f64,
}

/// The gradients of `nll + BALANCE · balance`.
///
/// Each part of the lesson has a model of its own over the same numbers, on one of the threads of the pool, and the parts
/// are added in their order: the sum does not depend on the number of threads. (The threads stay, since libtorch's
/// kernels are prepared once in each.)
pub(crate) fn gradients(
    config: &Config,
    parameters: &[Parameter],
    parts: Vec<Lesson>,
    precision: Precision,
    pool: &ThreadPool,
) -> Result<Gradients> {
    let tokens: usize = parts.iter().map(|part| part.targets.len()).sum();
    // A tensor may move to another thread.
    let work: Vec<_> = parts.into_iter().map(|part| (shared(parameters), part)).collect();
    let found: Vec<Result<Gradients>> = pool.install(|| {
        let one = |(weights, part): (Vec<(String, Tensor)>, Lesson)| {
            part_gradients(config, weights, &part, precision, part.targets.len() as f64 / tokens as f64)
        };
        work.into_par_iter().with_max_len(1).map(one).collect()
    });
    let mut sum = Gradients { of: Vec::new(), nll: 0.0, balance: 0.0 };
    for part in found {
        let part = part?;
        sum.nll += part.nll;
        sum.balance += part.balance;
        if sum.of.is_empty() {
            sum.of = part.of;
        } else {
            sum.of.iter_mut().zip(&part.of).for_each(|(sum, part)| drop(sum.g_add_(part)));
        }
    }
    Ok(sum)
}

/// One part, weighted with its share of the lesson's tokens.
fn part_gradients(
    config: &Config,
    weights: Vec<(String, Tensor)>,
    part: &Lesson,
    precision: Precision,
    share: f64,
) -> Result<Gradients> {
    // The storage is shared, the gradient is not.
    let leaf = |(name, tensor): (String, Tensor)| (name, tensor.detach().set_requires_grad(true));
    let weights: Vec<(String, Tensor)> = weights.into_iter().map(leaf).collect();
    let loss = loss(&over(config, &weights, precision)?, part, Hooks::none())?;
    ((&loss.nll + &loss.balance * BALANCE) * share).backward();
    let of = |(_, tensor): &(String, Tensor)| {
        let gradient = tensor.grad();
        // A weight that the loss does not depend on, such as an expert that nobody chose, may have none.
        if gradient.defined() { gradient } else { tensor.detach().zeros_like() }
    };
    let number = |x: &Tensor| x.double_value(&[]) * share;
    Ok(Gradients { of: weights.iter().map(of).collect(), nll: number(&loss.nll), balance: number(&loss.balance) })
}

/// `−ln p` of what should come, and how unequal the experts' load is.
#[derive(Debug)]
pub(crate) struct Loss {
    /// Mean over tokens, in nats.
    pub(crate) nll: Tensor,
    /// `E · Σₑ fₑ · Pₑ`, the mean over layers: 1 where all experts get the same (Fedus et al. 2021, equation 4).
    /// `f`: the part of the choices that fall on an expert; `P`: its mean probability, which has a gradient.
    pub(crate) balance: Tensor,
}

/// Runs the model with gradients, and with what `hooks` change.
pub(crate) fn loss(model: &Model, lesson: &Lesson, hooks: Hooks<'_>) -> Result<Loss> {
    let probs: RefCell<Vec<Tensor>> = RefCell::default();
    let chosen: RefCell<Vec<Tensor>> = RefCell::default();
    // From here on they live no longer than what they write to.
    let mut hooks: Hooks<'_> = hooks;
    for layer in 0..model.config().n_layers {
        hooks.read(HookPoint::block(Site::RouterProbs, layer), |_, x| probs.borrow_mut().push(x.shallow_clone()));
        hooks.read(HookPoint::block(Site::TopkIdx, layer), |_, x| chosen.borrow_mut().push(x.shallow_clone()));
    }
    let options = Forward { logits: Logits::All, grad: true, ..Forward::default() };
    let logits = model.forward(&lesson.batch, None, &mut hooks, options)?.logits;
    drop(hooks);
    let logits = logits.expect("logits of all tokens were asked for").to_kind(Kind::Float); // [tok, d_vocab]
    let targets = Tensor::from_slice(&lesson.targets.iter().map(|&id| i64::from(id)).collect::<Vec<_>>());
    let nll = logits.cross_entropy_loss::<Tensor>(&targets, None, Reduction::Mean, -100, 0.0);

    let n_experts = model.config().moe.map_or(0, |moe| moe.n_experts) as i64;
    let of_layer = |(probs, chosen): (&Tensor, &Tensor)| {
        let load = chosen.view([-1]).bincount::<Tensor>(None, n_experts).to_kind(Kind::Float) / chosen.numel() as f64;
        (load * probs.mean_dim([0].as_slice(), false, Kind::Float)).sum(Kind::Float) * n_experts as f64
    };
    let balance: Vec<Tensor> = probs.borrow().iter().zip(chosen.borrow().iter()).map(of_layer).collect();
    let balance = if balance.is_empty() { nll.zeros_like() } else { Tensor::stack(&balance, 0).mean(Kind::Float) };
    Ok(Loss { nll, balance })
}

/// `−ln p` of every target of a lesson, in nats, without gradients.
pub(crate) fn nll(model: &Model, lesson: &Lesson, mut hooks: Hooks<'_>) -> Result<Vec<f32>> {
    let output = model.forward(&lesson.batch, None, &mut hooks, Forward::default())?;
    Ok(model.nll(&output.resid, &lesson.targets))
}

/// How often each expert was chosen, by layer.
#[derive(Debug)]
pub(crate) struct Load(Vec<RefCell<Vec<f64>>>);

impl Load {
    pub(crate) fn new(config: &Config) -> Self {
        let none = vec![0.0; config.moe.map_or(0, |moe| moe.n_experts)];
        Self(vec![RefCell::new(none); config.n_layers])
    }

    /// Counts what is chosen in a pass.
    pub(crate) fn hooks(&self) -> Hooks<'_> {
        let mut hooks = Hooks::none();
        for (layer, counts) in self.0.iter().enumerate() {
            hooks.read(HookPoint::block(Site::TopkIdx, layer), move |_, chosen| {
                let ids = Vec::<i64>::try_from(chosen.contiguous().view([-1])).unwrap_or_default();
                for expert in ids {
                    counts.borrow_mut()[expert as usize] += 1.0;
                }
            });
        }
        hooks
    }

    /// The part of the choices that fell on each expert.
    pub(crate) fn shares(self) -> Vec<Vec<f64>> {
        let shares = |counts: Vec<f64>| {
            let all: f64 = counts.iter().sum();
            counts.into_iter().map(|count| count / all).collect()
        };
        self.0.into_iter().map(|counts| shares(counts.into_inner())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::initial;
    use serde_json::json;

    /// The architecture of the mini model, small enough to nudge weights one by one.
    fn tiny() -> Config {
        let mut json = crate::recipe::config();
        for (name, value) in [
            ("vocab_size", json!(40)),
            ("vocab_size_per_layer_input", json!(40)),
            ("hidden_size", json!(16)),
            ("intermediate_size", json!(20)),
            ("num_hidden_layers", json!(4)),
            ("layer_types", json!(["sliding_attention", "full_attention", "sliding_attention", "full_attention"])),
            ("num_kv_shared_layers", json!(2)),
            ("num_attention_heads", json!(2)),
            ("head_dim", json!(8)),
            ("global_head_dim", json!(16)),
            ("sliding_window", json!(4)),
            ("hidden_size_per_layer_input", json!(4)),
            ("num_experts", json!(4)),
            ("moe_intermediate_size", json!(6)),
        ] {
            json[name] = value;
        }
        Config::from_hf(&json).unwrap()
    }

    fn lesson() -> Lesson {
        let mut lesson = Lesson::default();
        lesson.push((vec![2, 5, 7, 9, 11, 13, 5, 7], vec![5, 7, 9, 11, 13, 5, 7, 1]));
        lesson.push((vec![2, 30, 31, 30], vec![30, 31, 30, 31]));
        lesson
    }

    fn pool(threads: usize) -> ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    fn other_lesson() -> Lesson {
        let mut lesson = Lesson::default();
        lesson.push((vec![2, 3, 4, 5], vec![3, 4, 5, 6]));
        lesson
    }

    /// The experts of every token, layer by layer.
    fn chosen(network: &Model, part: &Lesson) -> Vec<Tensor> {
        let layers = 0..network.config().n_layers;
        let points: Vec<HookPoint> = layers.map(|layer| HookPoint::block(Site::TopkIdx, layer)).collect();
        let (_, cache) = network.forward_with_cache(&part.batch, &points, Forward::default()).unwrap();
        points.iter().map(|&point| cache.get(point).unwrap().copy()).collect()
    }

    /// The loss that [`gradients`] are of, with the choice of experts held fast: it jumps where the choice changes, and no
    /// derivative sees a jump.
    fn total(config: &Config, parameters: &[Parameter], parts: &[Lesson], choices: &[Vec<Tensor>]) -> f64 {
        let network = model(config, parameters, Precision::F32).unwrap();
        let tokens: usize = parts.iter().map(|part| part.targets.len()).sum();
        let of = |(part, choices): (&Lesson, &Vec<Tensor>)| {
            let mut hooks = Hooks::none();
            for (layer, experts) in choices.iter().enumerate() {
                hooks.add(HookPoint::block(Site::TopkIdx, layer), move |_, _| Some(experts.shallow_clone()));
            }
            let found = loss(&network, part, hooks).unwrap();
            let share = part.targets.len() as f64 / tokens as f64;
            (found.nll.double_value(&[]) + BALANCE * found.balance.double_value(&[])) * share
        };
        parts.iter().zip(choices).map(of).sum()
    }

    /// Every tensor of the checkpoint has a gradient, and along it the loss changes as fast as it says.
    #[test]
    fn gradients_are_those_of_finite_differences() {
        let config = tiny();
        let parameters = initial(&config, 3);
        let parts = [lesson(), other_lesson()];
        let found = gradients(&config, &parameters, parts.to_vec(), Precision::F32, &pool(2)).unwrap();
        let network = model(&config, &parameters, Precision::F32).unwrap();
        let choices: Vec<_> = parts.iter().map(|part| chosen(&network, part)).collect();
        for (parameter, gradient) in parameters.iter().zip(&found.of) {
            let name = &parameter.name;
            let norm = gradient.square().sum(Kind::Double).sqrt().double_value(&[]);
            if *name == format!("model.layers.{}.layer_scalar", config.n_layers - 1) {
                assert!(norm < 1e-5, "the final norm does not cancel `{name}`: {norm}");
                continue;
            }
            // Small against the weight, and so that the loss moves by no more than 0.002 nats: the embedding and the
            // first layer, on which everything rests, bend within a hundredth of their length.
            let size = parameter.tensor.square().sum(Kind::Double).sqrt().double_value(&[]);
            let reach = (1e-2 * size).min(2e-3 / norm);
            let difference = |reach: f64| {
                let at = |along: f64| {
                    let mut weight = parameter.tensor.shallow_clone();
                    let kept = weight.copy();
                    let _ = weight.g_add_(&(gradient * (along * reach / norm)));
                    let value = total(&config, &parameters, &parts, &choices);
                    weight.copy_(&kept);
                    value
                };
                (at(1.0) - at(-1.0)) / (2.0 * reach)
            };
            // Richardson's extrapolation: what is left of the curvature is of the fourth order.
            let slope = (4.0 * difference(reach / 2.0) - difference(reach)) / 3.0;
            // A loss of about 4 in f32 is known to some 5e-7.
            let rounding = 2e-6 / reach;
            assert!(rounding < 0.3 * norm, "`{name}`: the gradient {norm} is lost in rounding");
            assert!(
                (slope - norm).abs() < 0.01 * norm + rounding,
                "`{name}`: gradient {norm}, finite difference {slope}"
            );
        }
    }

    #[test]
    fn threads_change_nothing() {
        let config = tiny();
        let parameters = initial(&config, 4);
        let parts = [lesson(), other_lesson()];
        let on = |n| gradients(&config, &parameters, parts.to_vec(), Precision::F32, &pool(n)).unwrap();
        let (one, two) = (on(1), on(2));
        assert_eq!((one.nll, one.balance), (two.nll, two.balance));
        assert!(one.of.iter().zip(&two.of).all(|(one, two)| one == two));
    }

    #[test]
    fn loss_and_evaluation_agree() {
        let config = tiny();
        let network = model(&config, &initial(&config, 5), Precision::F32).unwrap();
        let mean = loss(&network, &lesson(), Hooks::none()).unwrap().nll.double_value(&[]);
        let load = Load::new(&config);
        let each = nll(&network, &lesson(), load.hooks()).unwrap();
        let sum = each.iter().copied().map(f64::from).sum::<f64>();
        assert_eq!(each.len(), lesson().targets.len());
        assert!((mean * each.len() as f64 - sum).abs() < 1e-4, "{mean} {sum}");
        let chosen = chosen(&network, &lesson());
        for (layer, row) in load.shares().iter().enumerate() {
            let of = |expert: i64| chosen[layer].eq(expert).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
            assert!((0..4).all(|expert| (of(expert) - row[expert as usize]).abs() < 1e-9), "{row:?}");
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9 && row.len() == 4);
        }
    }
}
