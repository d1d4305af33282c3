//! What is minimized, written plainly: dense, in f64, differentiated by libtorch.
//!
//! Training runs the fast path in `step`, which computes the same from the few latents that fire, with gradients by hand. This
//! one is what it is tested against; itself it is tested against finite differences.
//!
//! Rows `X [B, d_in]` are read and `Y [B, d_out]` are to be written (of an autoencoder `Y = X`, and `b_dec` is subtracted
//! before the encoder). With pre-activations `Z = X·w_enc + b_enc`, activations `F = σ(Z)`, the residual
//! `R = F·w_dec + b_dec + X·w_skipᵀ − Y`, and the variance `V(Y) = (Σ‖y‖² − ‖Σy‖²/B)/B`:
//!
//! - reconstruction: `L_rec = Σ‖R‖² / (B·V(Y))`, the batch's fraction of variance unexplained; of a Matryoshka coder the mean of
//!   that over its levels, each of which has the latents below its width only;
//! - sparsity: what the architecture charges (`l1.rs`, `gated.rs`, `jump_relu.rs`), in fractions of the variance too, so that a
//!   coefficient does for sites of any scale: at the 270M's layer 9, V is an eighth of the mean square, at its MLP nearly all;
//! - AuxK (arXiv 2406.04093 §A.2): with `E = −R` held fixed and `Ê = F_aux·w_dec` from the `k_aux` largest positive
//!   pre-activations among dead latents, `L_aux = α·min(n_dead/k_aux, 1)·Σ‖Ê − E‖² / (B·V(E))`. The factor for few dead
//!   latents is SAELens's and sparsify's.

/// The second chance of dead latents: they reconstruct what the living ones leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuxK {
    /// How many of them may fire in a row.
    pub(crate) k: usize,
    /// α.
    pub(crate) weight: f64,
}

impl AuxK {
    /// α, reduced when fewer latents are dead than could fire.
    pub(crate) fn scaled_weight(self, n_dead: usize) -> f64 {
        self.weight * (n_dead as f64 / self.k.max(1) as f64).min(1.0)
    }
}

#[cfg(test)]
pub(crate) mod plain;
