//! How is AuxK computed while few latents are dead?
//!
//! In a row about half of the dead latents fire, up to `k_aux`: not few. So as long as not many are dead, products of dense
//! matrices of the dead latents alone are faster than going entry by entry, by far.

use rayon::prelude::*;

use crate::{
    matrix::{Matrix, Right, matmul, matmul_columns},
    sae::BLOCK_ROWS,
    sparse::SparseRows,
    step::Group,
};

/// Up to so many times `k_aux` dead latents the dense way is taken: beyond, most of its products would be with zeros.
const DENSE_MULTIPLE: usize = 8;
/// Dead latents whose gradients one thread computes at a time.
const BLOCK_DEAD: usize = 32;
/// In [`Dense::index`]: not dead.
const ALIVE: u32 = u32::MAX;

/// The dead latents as a small coder of their own.
#[derive(Default)]
pub(super) struct Dense {
    /// Of each latent, its number among the dead.
    index: Vec<u32>,
    /// `[n_dead, d_out]`.
    decoder: Matrix,
    /// Activations, `[B, n_dead]`.
    acts: Matrix,
    /// Gradients of the pre-activations up to the batch's factor, `[B, n_dead]`.
    dz: Matrix,
    /// Gradients up to the factor, `[n_dead, d_in]` and `[n_dead, d_out]`.
    d_encoder: Matrix,
    d_decoder: Matrix,
}

/// One block of rows of [`Dense`].
pub(super) struct DenseBlock<'a> {
    index: &'a [u32],
    decoder: &'a Matrix,
    acts: &'a mut [f32],
    dz: &'a mut [f32],
}

impl Dense {
    /// Whether this is the way for so many dead latents.
    pub(super) fn suits(n_dead: usize, k_aux: usize) -> bool {
        n_dead <= k_aux.saturating_mul(DENSE_MULTIPLE)
    }

    /// For these dead latents (ascending) and a batch of so many rows.
    pub(super) fn new(dead: &[u32], weights: &Group, n_rows: usize) -> Self {
        let (d_in, d_out) = (weights.encoder.cols(), weights.decoder.cols());
        let mut index = vec![ALIVE; weights.decoder.rows()];
        let mut decoder = Matrix::zeros(dead.len(), d_out);
        for (i, &latent) in dead.iter().enumerate() {
            index[latent as usize] = i as u32;
            decoder.row_mut(i).copy_from_slice(weights.decoder.row(latent as usize));
        }
        Self {
            index,
            decoder,
            acts: Matrix::zeros(n_rows, dead.len()),
            dz: Matrix::zeros(n_rows, dead.len()),
            d_encoder: Matrix::zeros(dead.len(), d_in),
            d_decoder: Matrix::zeros(dead.len(), d_out),
        }
    }

    /// The blocks of rows in order.
    pub(super) fn blocks(&mut self) -> Vec<DenseBlock<'_>> {
        let (index, decoder) = (&self.index[..], &self.decoder);
        let size = BLOCK_ROWS * decoder.rows();
        let acts = self.acts.as_mut_slice().chunks_mut(size);
        let blocks = acts.zip(self.dz.as_mut_slice().chunks_mut(size));
        blocks.map(|(acts, dz)| DenseBlock { index, decoder, acts, dz }).collect()
    }

    /// Gradients of the dead latents' rows, from what was encoded (`[B, d_in]`) and `Ê − E` (`[B, d_out]`).
    pub(super) fn differentiate(&mut self, centered: &[f32], missing: &[f32]) {
        let n_dead = self.decoder.rows();
        let (acts, dz) = (self.acts.as_slice(), self.dz.as_slice());
        let [d_in, d_out] = [self.d_encoder.cols(), self.d_decoder.cols()];
        self.d_decoder
            .as_mut_slice()
            .par_chunks_mut(BLOCK_DEAD * d_out)
            .zip(self.d_encoder.as_mut_slice().par_chunks_mut(BLOCK_DEAD * d_in))
            .enumerate()
            .for_each(|(block, (decoder, encoder))| {
                let first = block * BLOCK_DEAD;
                let columns = first..(first + BLOCK_DEAD).min(n_dead);
                matmul_columns(acts, n_dead, columns.clone(), missing, decoder);
                matmul_columns(dz, n_dead, columns, centered, encoder);
            });
    }

    /// The gradients of a latent's encoder and decoder rows, up to the factor, if it is dead.
    pub(super) fn gradients(&self, latent: usize) -> Option<(&[f32], &[f32])> {
        let index = self.index[latent];
        (index != ALIVE).then(|| (self.d_encoder.row(index as usize), self.d_decoder.row(index as usize)))
    }
}

impl DenseBlock<'_> {
    /// `Ê + R` into `missing`, and the gradients of the entries of `entries` into `dz`, one each.
    pub(super) fn reconstruct(self, entries: &SparseRows, residual: &[f32], missing: &mut [f32], dz: &mut [f32]) {
        let (n_dead, d_out) = (self.decoder.rows(), self.decoder.cols());
        let n = entries.n_rows();
        for ((latents, values), row) in entries.iter().zip(self.acts.chunks_exact_mut(n_dead)) {
            for (&latent, &value) in latents.iter().zip(values) {
                row[self.index[latent as usize] as usize] = value;
            }
        }
        let decoder = self.decoder.as_slice();
        matmul(self.acts, decoder, Right::Plain, missing, [n, n_dead, d_out]);
        crate::kernels::add(residual, missing);
        matmul(missing, decoder, Right::Transposed, self.dz, [n, d_out, n_dead]);
        for (dz, &act) in self.dz.iter_mut().zip(&*self.acts) {
            // What does not fire has no gradient.
            *dz = if act > 0.0 { *dz } else { 0.0 };
        }
        let mut dz = dz.iter_mut();
        for ((latents, _), row) in entries.iter().zip(self.dz.chunks_exact(n_dead)) {
            for (&latent, dz) in latents.iter().zip(&mut dz) {
                *dz = row[self.index[latent as usize] as usize];
            }
        }
    }
}
