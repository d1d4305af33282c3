//! RMS normalization, in the convention of the generation.

use data::hook_point::{HookPoint, Site};
use tch::{Kind, Tensor};

use crate::hook::Hooks;

/// `x / sqrt(mean(x²) + eps) · gain`, in f32 throughout, rounded once at the end.
#[derive(Debug)]
pub(crate) struct Norm {
    /// In f32; `None` only normalizes. `[d]`
    gain: Option<Tensor>,
    root: Root,
    eps: f64,
}

/// How the inverse root is taken. The two can differ in the last bit.
#[derive(Clone, Copy, Debug)]
enum Root {
    Rsqrt,
    Power,
}

impl Norm {
    /// Gemma 1 to 3, which store weights around zero: the gain is `1 + w`, formed in f32, so that a bf16 `w` never
    /// suffers a bf16 sum.
    pub(crate) fn one_plus(weight: &Tensor, eps: f64) -> Self {
        Self { gain: Some(weight.to_kind(Kind::Float) + 1.0), root: Root::Rsqrt, eps }
    }

    /// Gemma 3n and 4: the gain is the weight, where there is one.
    pub(crate) fn plain(weight: Option<&Tensor>, eps: f64) -> Self {
        Self { gain: weight.map(|weight| weight.to_kind(Kind::Float)), root: Root::Power, eps }
    }

    /// `[…, d]` to `[…, d]`, in the dtype of `x`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let x32 = x.to_kind(Kind::Float);
        let normalized = &x32 * self.inverse_root(&x32);
        self.scaled(normalized).to_kind(x.kind())
    }

    /// The same, with the two hook points that TransformerLens puts inside a norm.
    pub(crate) fn forward_hooked(
        &self,
        x: &Tensor,
        scale: HookPoint,
        normalized: HookPoint,
        hooks: &mut Hooks<'_>,
    ) -> Tensor {
        if !hooks.wants(scale) && !hooks.wants(normalized) {
            return self.forward(x);
        }
        let x32 = x.to_kind(Kind::Float); // [tok, d]
        let inverse_root = self.inverse_root(&x32); // [tok, 1]
        // The scale is only looked at, unless somebody replaced it: capturing must not change a single bit.
        let replaced = hooks.run_if_wanted(scale, || inverse_root.reciprocal());
        let x32 = match replaced {
            Some(scale) => x32 / scale,
            None => x32 * inverse_root,
        };
        let x32 = hooks.at(normalized, x32);
        // Not in place: a hook may have kept what it saw.
        let scaled = match &self.gain {
            Some(gain) => x32 * gain,
            None => x32,
        };
        scaled.to_kind(x.kind())
    }

    /// What the norm makes of `part` with the divisor that it has for `whole`: linear in `part`. In f64.
    ///
    /// `part`: `[…, d]`; `whole`: `[d]`.
    pub(crate) fn held(&self, part: &Tensor, whole: &Tensor) -> Tensor {
        let scale = (whole.to_kind(Kind::Double).square().mean(Kind::Double) + self.eps).sqrt();
        let normalized = part.to_kind(Kind::Double) / scale;
        match &self.gain {
            Some(gain) => normalized * gain,
            None => normalized,
        }
    }

    /// The weight of each coordinate, in f32; `None` if all are 1. `[d]`
    pub(crate) fn gain(&self) -> Option<&Tensor> {
        self.gain.as_ref()
    }

    fn scaled(&self, mut normalized: Tensor) -> Tensor {
        match &self.gain {
            Some(gain) => normalized.g_mul_(gain),
            None => normalized,
        }
    }

    fn inverse_root(&self, x32: &Tensor) -> Tensor {
        let mean = x32.square().mean_dim(-1, true, Kind::Float) + self.eps;
        match self.root {
            Root::Rsqrt => mean.rsqrt(),
            Root::Power => mean.pow_tensor_scalar(-0.5),
        }
    }
}

/// The hook points of the norms of one block, and of the final norm.
pub(crate) fn points_before_attention(layer: usize) -> (HookPoint, HookPoint) {
    (HookPoint::block(Site::Ln1Scale, layer), HookPoint::block(Site::Ln1Normalized, layer))
}

pub(crate) fn points_before_mlp(layer: usize) -> (HookPoint, HookPoint) {
    (HookPoint::block(Site::Ln2Scale, layer), HookPoint::block(Site::Ln2Normalized, layer))
}

pub(crate) fn points_at_the_end() -> (HookPoint, HookPoint) {
    (HookPoint::whole(Site::LnFinalScale), HookPoint::whole(Site::LnFinalNormalized))
}
