//! Which latents does matching pursuit choose? (Mallat & Zhang 1993; as SAELens encodes with it.)

use crate::{
    kernels::{dot, weighted_sum},
    matrix::{Matrix, Right, matmul},
    sae::norm,
    sparse::SparseRows,
};

/// When it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// See [`crate::Activation::MatchingPursuit`].
    pub(crate) residual_threshold: f32,
    pub(crate) max_iterations: Option<usize>,
    pub(crate) stop_on_duplicate_support: bool,
}

/// Appends what is chosen for the rows of `residual` (`[n, d_in]`, centered): time after time the latent whose decoder row has
/// the largest positive product with what is left, which then loses that much of it.
pub(crate) fn encode(
    mut residual: Vec<f32>,
    w_dec: &Matrix,
    stop: Ending,
    products: &mut Matrix,
    out: &mut SparseRows,
) {
    let (d_sae, d_in) = (w_dec.rows(), w_dec.cols());
    let n = residual.len() / d_in;
    let mut acts: Vec<Vec<(f32, u32)>> = vec![Vec::new(); n];
    // Rows that are not done, and what is left of them, one behind the other.
    let mut open: Vec<usize> = (0..n).collect();
    if products.cols() != d_sae {
        *products = Matrix::zeros(0, d_sae);
    }
    products.resize_rows(n);
    for _ in 0..stop.max_iterations.unwrap_or(d_in) {
        if open.is_empty() {
            break;
        }
        let m = open.len();
        let products = &mut products.as_mut_slice()[..m * d_sae];
        matmul(&residual[..m * d_in], w_dec.as_slice(), Right::Transposed, products, [m, d_in, d_sae]);
        let mut kept = 0;
        for (at, products) in products.chunks_exact(d_sae).enumerate() {
            let row = open[at];
            if pursue(products, &mut residual[at * d_in..][..d_in], &mut acts[row], w_dec, stop) {
                continue;
            }
            residual.copy_within(at * d_in..(at + 1) * d_in, kept * d_in);
            open[kept] = row;
            kept += 1;
        }
        open.truncate(kept);
    }
    for mut acts in acts {
        acts.sort_unstable_by_key(|&(_, latent)| latent);
        out.push_row(acts.into_iter());
    }
}

/// One choice for one row. Says whether it was the last.
fn pursue(products: &[f32], residual: &mut [f32], acts: &mut Vec<(f32, u32)>, w_dec: &Matrix, stop: Ending) -> bool {
    let mut best = (0.0, 0_u32);
    for (&product, latent) in products.iter().zip(0..) {
        if product > best.0 {
            best = (product, latent);
        }
    }
    let latent = best.1;
    let direction = w_dec.row(latent as usize);
    let value = dot(residual, direction);
    // Nothing points where the rest does, so nothing would change any more; nor does it for what is not a number.
    if !(best.0 > 0.0 && value > 0.0) {
        return true;
    }
    weighted_sum(&[0], &[-value], direction, residual);
    let known = acts.iter_mut().find(|(_, known)| *known == latent);
    let duplicate = known.is_some();
    match known {
        Some((act, _)) => *act += value,
        None => acts.push((value, latent)),
    }
    (stop.stop_on_duplicate_support && duplicate)
        || (stop.residual_threshold > 0.0 && norm(residual) < stop.residual_threshold)
}
