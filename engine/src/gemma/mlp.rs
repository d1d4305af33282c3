//! The gated MLP: `down(gelu_tanh(gate(x)) · up(x))`.

use data::hook_point::{HookPoint, Site};
use tch::{Kind, Tensor};

use super::linear;
use crate::error::Result;
use crate::hook::Hooks;
use crate::weights::Weights;

#[derive(Debug)]
pub(crate) struct Mlp {
    gate: Tensor, // [d_mlp, d_model]
    up: Tensor,   // [d_mlp, d_model]
    down: Tensor, // [d_model, d_mlp]
}

impl Mlp {
    pub(crate) fn new(weights: &Weights, block: &str, kind: Kind) -> Result<Self> {
        let weight = |name: &str| weights.tensor(&format!("{block}.mlp.{name}.weight"), kind);
        Ok(Self { gate: weight("gate_proj")?, up: weight("up_proj")?, down: weight("down_proj")? })
    }

    /// `[tok, d_model]` to `[tok, d_model]`.
    pub(crate) fn forward(&self, x: &Tensor, layer: usize, hooks: &mut Hooks<'_>) -> Tensor {
        let at = |site| HookPoint::block(site, layer);
        let pre = hooks.at(at(Site::MlpPre), linear(x, &self.gate)); // [tok, d_mlp]
        let pre_linear = hooks.at(at(Site::MlpPreLinear), linear(x, &self.up)); // [tok, d_mlp]
        let post = hooks.at(at(Site::MlpPost), pre.gelu("tanh").g_mul_(&pre_linear)); // [tok, d_mlp]
        linear(&post, &self.down)
    }
}
