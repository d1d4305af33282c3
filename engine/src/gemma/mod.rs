//! The network. Read [`model`] from top to bottom, then [`block`].

pub mod model;

mod attention;
mod block;
mod mlp;
mod norm;
mod rope;

use tch::Tensor;

/// `x · Wᵀ`: `[tok, in]` by `[out, in]` to `[tok, out]`.
fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    x.linear::<&Tensor>(weight, None)
}
