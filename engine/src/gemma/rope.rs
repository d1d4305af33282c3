//! Rotary position embedding, half-split pairing: dimensions `i` and `i + d_head/2` turn together.

use tch::{Kind, Tensor};

use crate::config::Rope;

/// Cosines and sines of the tokens of one batch, for one kind of layer.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor, // [tok, 1, d_head]
    sin: Tensor, // [tok, 1, d_head]
}

impl Rotation {
    /// The first pairs turn, with the frequencies that they have when all do; the others stand still.
    ///
    /// Angles are formed in f32 and rounded to `kind` before anything is multiplied by them, as the reference does.
    /// `positions`: `[tok]`, f32.
    pub(crate) fn new(rope: &Rope, d_head: usize, positions: &Tensor, kind: Kind) -> Self {
        let pairs = d_head as i64 / 2;
        let turning = (rope.partial_rotary_factor * d_head as f64 / 2.0).floor() as i64;
        let exponents = Tensor::arange_start_step(0, 2 * turning, 2, (Kind::Int64, positions.device()))
            .to_kind(Kind::Float)
            / d_head as f64;
        let inv_freq = Tensor::pow_scalar(rope.theta, &exponents).reciprocal(); // [turning]
        let inv_freq = inv_freq.constant_pad_nd([0, pairs - turning]) / rope.factor; // [d_head/2]
        let freqs = positions.unsqueeze(1) * inv_freq.unsqueeze(0); // [tok, d_head/2]
        let angles = Tensor::cat(&[&freqs, &freqs], -1).unsqueeze(1); // [tok, 1, d_head]
        Self { cos: angles.cos().to_kind(kind), sin: angles.sin().to_kind(kind) }
    }

    /// `x·cos + turned(x)·sin`, where `turned(x)` is the second half negated, then the first.
    /// The halves are added in place, which spares the turned copy and rounds the same.
    ///
    /// `[tok, heads, d_head]` to the same.
    pub(crate) fn apply(&self, x: &Tensor) -> Tensor {
        let half = x.size()[2] / 2;
        let (first, second) = (|x: &Tensor| x.narrow(2, 0, half), |x: &Tensor| x.narrow(2, half, half));
        let rotated = x * &self.cos;
        let _ = first(&rotated).g_sub_(&(second(x) * first(&self.sin)));
        let _ = second(&rotated).g_add_(&(first(x) * second(&self.sin)));
        rotated
    }
}
