//! A mixture of experts beside the dense MLP: a router sends every token to a few experts, whose outputs are summed with
//! weights.
//!
//! The tokens of an expert are laid together, so that its part is one matrix product. A (token, choice) pair is a slot;
//! the slots of a token are in descending order of probability.

use data::hook_point::{HookPoint, Site};
use tch::{Kind, Tensor};

use super::linear::Linear;
use super::load::Loader;
use super::model::{Numerics, Pass};
use super::norm::Norm;
use crate::error::Result;
use crate::hook::Hooks;

#[derive(Debug)]
pub(crate) struct Moe {
    router: Router,
    gate_up: Vec<Linear>, // one for each expert: [2 · d_expert, d_model]
    down: Vec<Linear>,    // one for each expert: [d_model, d_expert]
    post_feedforward_layernorm_1: Norm,
    pre_feedforward_layernorm_2: Norm,
    pub(crate) post_feedforward_layernorm_2: Norm,
    d_expert: i64,
    layer: usize,
}

#[derive(Debug)]
struct Router {
    norm: Norm,    // without a weight
    scale: Tensor, // [d_model]
    root: f64,
    proj: Linear,             // [n_experts, d_model]
    per_expert_scale: Tensor, // [n_experts]
    top_k: i64,
    layer: usize,
}

/// The experts of each token and what multiplies their outputs. Both `[tok, top_k]`
struct Choice {
    experts: Tensor,
    weights: Tensor,
}

impl Moe {
    /// `None` for a model without.
    pub(crate) fn new(loader: &Loader<'_>, block: &str, layer: usize) -> Result<Option<Self>> {
        let config = loader.config();
        let Some(moe) = config.moe else { return Ok(None) };
        let norm = |name: &str| loader.norm(&format!("{block}.{name}"));
        Ok(Some(Self {
            router: Router {
                norm: loader.norm_without_weight(),
                scale: loader.tensor(&format!("{block}.router.scale"))?,
                root: (config.d_model as f64).powf(-0.5),
                proj: loader.linear(&format!("{block}.router.proj"))?,
                per_expert_scale: loader.tensor(&format!("{block}.router.per_expert_scale"))?,
                top_k: moe.top_k as i64,
                layer,
            },
            gate_up: loader.expert_linears(&format!("{block}.experts.gate_up_proj"))?,
            down: loader.expert_linears(&format!("{block}.experts.down_proj"))?,
            post_feedforward_layernorm_1: norm("post_feedforward_layernorm_1")?,
            pre_feedforward_layernorm_2: norm("pre_feedforward_layernorm_2")?,
            post_feedforward_layernorm_2: norm("post_feedforward_layernorm_2")?,
            d_expert: moe.d_expert as i64,
            layer,
        }))
    }

    /// The sum of both branches. `dense`: the output of the MLP; `resid`: the stream before it. Both `[tok, d_model]`
    pub(crate) fn forward(&self, dense: &Tensor, resid: &Tensor, pass: &mut Pass<'_, '_>) -> Tensor {
        let at = |site| HookPoint::block(site, self.layer);
        let dense = pass.hooks.at(at(Site::DenseOut), self.post_feedforward_layernorm_1.forward(dense));
        let choice = self.router.choose(resid, pass.hooks);
        let x = pass.hooks.at(at(Site::ExpertIn), self.pre_feedforward_layernorm_2.forward(resid));
        let routed = self.experts(&x, &choice, pass);
        let routed = pass.hooks.at(at(Site::MoeOut), self.post_feedforward_layernorm_2.forward(&routed));
        dense + routed
    }

    /// The weighted sum of the chosen experts. `[tok, d_model]` to the same.
    fn experts(&self, x: &Tensor, choice: &Choice, pass: &mut Pass<'_, '_>) -> Tensor {
        let at = |site| HookPoint::block(site, self.layer);
        let slots = Slots::new(&choice.experts, self.gate_up.len());
        let rows = x.index_select(0, &slots.token); // [slot, d_model], expert by expert
        let gate_up = slots.by_expert(&rows, &self.gate_up); // [slot, 2 · d_expert]
        // The reference leaves the halves where they are, which can cost the last bit: a copy is as good as a replacement.
        let half = |start| match pass.numerics {
            Numerics::Reference => gate_up.narrow(1, start, self.d_expert),
            Numerics::Fast => gate_up.narrow(1, start, self.d_expert).contiguous(),
        };
        let pre = slots.hooked(at(Site::ExpertPre), half(0), pass.hooks);
        let up = slots.hooked(at(Site::ExpertPreLinear), half(self.d_expert), pass.hooks);
        let post = slots.hooked(at(Site::ExpertPost), pre.gelu("tanh") * up, pass.hooks); // [slot, d_expert]
        let out = slots.hooked(at(Site::ExpertOut), slots.by_expert(&post, &self.down), pass.hooks); // [slot, d_model]

        match pass.numerics {
            // Each expert's outputs are rounded and added in the order of the experts.
            Numerics::Reference => {
                let weights = slots.of_tokens(&choice.weights.unsqueeze(2)); // [slot, 1]
                let weighted = (out * weights).to_kind(x.kind());
                // Expert by expert: libtorch sums in f32 what comes to a row in one call.
                let mut sum = x.zeros_like();
                let mut start = 0;
                for &n in &slots.counts {
                    let of_expert = |x: &Tensor| x.narrow(0, start, n);
                    sum = sum.index_add(0, &of_expert(&slots.token), &of_expert(&weighted));
                    start += n;
                }
                sum
            }
            // The products stay in f32 until all are summed.
            Numerics::Fast => {
                let weighted = slots.by_token(&out) * choice.weights.unsqueeze(2); // [tok, top_k, d_model], f32
                weighted.sum_dim_intlist(1, false, weighted.kind()).to_kind(x.kind())
            }
        }
    }
}

impl Router {
    fn choose(&self, resid: &Tensor, hooks: &mut Hooks<'_>) -> Choice {
        let at = |site| HookPoint::block(site, self.layer);
        // The scale is applied in the dtype of the model, before the root is.
        let x = self.norm.forward(resid) * &self.scale * self.root;
        let x = hooks.at(at(Site::RouterIn), x); // [tok, d_model]
        let logits = hooks.at(at(Site::RouterLogits), self.proj.forward(&x)); // [tok, n_experts]
        let probs = hooks.at(at(Site::RouterProbs), logits.softmax(-1, Kind::Float)); // [tok, n_experts], f32
        let (_, experts) = probs.topk(self.top_k, -1, true, true);
        let experts = hooks.at(at(Site::TopkIdx), experts); // [tok, top_k]
        let chosen = probs.gather(1, &experts, false);
        let normed = &chosen / chosen.sum_dim_intlist(-1, true, Kind::Float);
        let normed = hooks.at(at(Site::TopkWeightNorm), normed); // [tok, top_k], f32
        let scale = self.per_expert_scale.index_select(0, &experts.view([-1])).view_as(&experts);
        let weights = hooks.at(at(Site::TopkWeight), normed * scale); // [tok, top_k], f32
        Choice { experts, weights }
    }
}

/// The slots of a batch, sorted by expert, then by choice, then by token: the rows of the reference's products.
struct Slots {
    /// `choice · tok + token` of each slot. `[slot]`
    order: Tensor,
    /// The token of each slot. `[slot]`
    token: Tensor,
    /// Where each `choice · tok + token` is among the slots. `[slot]`
    place: Tensor,
    /// How many slots each expert has.
    counts: Vec<i64>,
    n_tokens: i64,
}

impl Slots {
    /// `experts`: `[tok, top_k]`.
    fn new(experts: &Tensor, n_experts: usize) -> Self {
        let n_tokens = experts.size()[0];
        let flat = experts.transpose(0, 1).reshape([-1]);
        let order = flat.argsort_stable(true, 0, false);
        let counts = flat.bincount::<&Tensor>(None, n_experts as i64);
        Self {
            token: order.remainder(n_tokens),
            place: order.argsort(0, false),
            counts: Vec::<i64>::try_from(counts).unwrap_or_default(),
            order,
            n_tokens,
        }
    }

    /// Each expert's map on its own rows. `[slot, in]` to `[slot, out]`
    fn by_expert(&self, rows: &Tensor, experts: &[Linear]) -> Tensor {
        let mut start = 0;
        let mut outputs = Vec::new();
        for (expert, &n) in experts.iter().zip(&self.counts) {
            if n > 0 {
                outputs.push(expert.forward(&rows.narrow(0, start, n)));
            }
            start += n;
        }
        Tensor::cat(&outputs, 0)
    }

    /// `[slot, width]` to `[tok, top_k, width]`.
    fn by_token(&self, slots: &Tensor) -> Tensor {
        slots.index_select(0, &self.place).view([-1, self.n_tokens, slots.size()[1]]).transpose(0, 1)
    }

    /// `[tok, top_k, width]` to `[slot, width]`.
    fn of_tokens(&self, tokens: &Tensor) -> Tensor {
        tokens.transpose(0, 1).reshape([-1, tokens.size()[2]]).index_select(0, &self.order)
    }

    /// Shows hooks the slots by token, and takes back what they replace.
    fn hooked(&self, point: HookPoint, slots: Tensor, hooks: &mut Hooks<'_>) -> Tensor {
        match hooks.run_if_wanted(point, || self.by_token(&slots)) {
            Some(replaced) => self.of_tokens(&replaced),
            None => slots,
        }
    }
}
