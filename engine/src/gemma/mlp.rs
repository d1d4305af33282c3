//! The gated MLP: `down(gelu_tanh(gate(x)) · up(x))`.

use data::hook_point::{HookPoint, Site};
use tch::Tensor;

use super::linear::Linear;
use super::load::Loader;
use crate::error::Result;
use crate::hook::Hooks;

#[derive(Debug)]
pub(crate) struct Mlp {
    gate: Linear, // [d_mlp, d_model]
    up: Linear,   // [d_mlp, d_model]
    down: Linear, // [d_model, d_mlp]
    /// How many standard deviations above the mean a gate must be to pass (Gemma 3n's first layers).
    sparsity: Option<Tensor>,
    layer: usize,
}

impl Mlp {
    pub(crate) fn new(loader: &Loader<'_>, block: &str, layer: usize) -> Result<Self> {
        let sparsity = loader.config().layers[layer].activation_sparsity;
        Ok(Self {
            gate: loader.linear(&format!("{block}.mlp.gate_proj"))?,
            up: loader.linear(&format!("{block}.mlp.up_proj"))?,
            down: loader.linear(&format!("{block}.mlp.down_proj"))?,
            sparsity: (sparsity > 0.0)
                .then(|| normal_quantile(sparsity).to_kind(loader.kind()).to_device(loader.device())),
            layer,
        })
    }

    /// `[tok, d_model]` to `[tok, d_model]`.
    pub(crate) fn forward(&self, x: &Tensor, hooks: &mut Hooks<'_>) -> Tensor {
        let at = |site| HookPoint::block(site, self.layer);
        let pre = hooks.at(at(Site::MlpPre), self.gate.forward(x)); // [tok, d_mlp]
        let pre_linear = hooks.at(at(Site::MlpPreLinear), self.up.forward(x)); // [tok, d_mlp]
        let gate = match &self.sparsity {
            Some(deviations) => {
                let mean = pre.mean_dim(-1, true, pre.kind());
                let cutoff = mean + pre.std_dim(-1, false, true) * deviations;
                (&pre - hooks.at(at(Site::SparsityCutoff), cutoff)).relu()
            }
            None => pre,
        };
        let post = hooks.at(at(Site::MlpPost), gate.gelu("tanh").g_mul_(&pre_linear)); // [tok, d_mlp]
        self.down.forward(&post)
    }
}

/// The value that a standard normal variable stays below with probability `p`, in f32, by the reference's formula.
fn normal_quantile(p: f64) -> Tensor {
    (Tensor::from(p).to_kind(tch::Kind::Float) * 2.0 - 1.0).erfinv() * std::f64::consts::SQRT_2
}
