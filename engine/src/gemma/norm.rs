//! RMS normalization, in the convention of the generation.

use data::hook_point::{HookPoint, Site};
use tch::{Kind, Tensor};

use crate::hook::Hooks;

/// `x · rsqrt(mean(x²) + eps) · (1 + w)`, in f32 throughout, rounded once at the end.
///
/// Gemma 1 to 3 store `w` around zero.
#[derive(Debug)]
pub(crate) struct Norm {
    /// `1 + w` in f32: formed there, so a bf16 `w` never suffers a bf16 sum. `[d]`
    gain: Tensor,
    eps: f64,
}

impl Norm {
    pub(crate) fn new(weight: &Tensor, eps: f64) -> Self {
        Self { gain: weight.to_kind(Kind::Float) + 1.0, eps }
    }

    /// `[…, d]` to `[…, d]`, in the dtype of `x`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let x32 = x.to_kind(Kind::Float);
        let mut normalized = &x32 * self.rsqrt(&x32);
        normalized.g_mul_(&self.gain).to_kind(x.kind())
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
        let rsqrt = self.rsqrt(&x32); // [tok, 1]
        // The scale is only looked at, unless somebody replaced it: capturing must not change a single bit.
        let replaced = hooks.run_if_wanted(scale, || rsqrt.reciprocal());
        let x32 = match replaced {
            Some(scale) => x32 / scale,
            None => x32 * rsqrt,
        };
        let x32 = hooks.at(normalized, x32);
        (x32 * &self.gain).to_kind(x.kind())
    }

    /// The weight of each coordinate, `1 + w` in f32. `[d]`
    pub(crate) fn gain(&self) -> &Tensor {
        &self.gain
    }

    fn rsqrt(&self, x32: &Tensor) -> Tensor {
        (x32.square().mean_dim(-1, true, Kind::Float) + self.eps).rsqrt()
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
