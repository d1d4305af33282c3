//! What does one training step compute, touching only the latents that fire?
//!
//! The same as [`crate::loss`], to rounding: `2·d_in·d_sae` operations a token for the encoder product, and `8·d_in·k` for
//! everything else. Rows come in blocks; a block's pre-activations live in one thread's cache from the product to the choice of
//! what fires. Then entries are regrouped by latent, so that each thread owns latents and no two write the same gradient.
//! Sums are in an order that does not depend on the number of threads.

mod auxk;

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    batch_topk::{BatchTopK, Choice},
    kernels::{add, center, dot, dots, moments, weighted_sum},
    loss::{AuxK, Selection},
    matrix::{Matrix, Right, matmul},
    sae::BLOCK_ROWS,
    sparse::{ByLatent, SparseRows},
    topk::TopK,
    workers::Workers,
};

use self::auxk::{Dense, DenseBlock};

/// Rows of which the pre-activations show where the first batch's candidates begin.
const GUESS_ROWS: usize = 64;
/// Latents that one thread takes at a time.
const BLOCK_LATENTS: usize = 32;

/// The weights of a sparse autoencoder in training, f32.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weights {
    /// `[d_sae, d_in]`: transposed, so that a latent is a row.
    pub(crate) encoder: Matrix,
    /// `[d_sae, d_in]`.
    pub(crate) decoder: Matrix,
    /// `[d_sae]`.
    pub(crate) b_enc: Vec<f32>,
    /// `[d_in]`.
    pub(crate) b_dec: Vec<f32>,
}

impl Weights {
    /// All zero: gradients or moments before the first step.
    pub(crate) fn zeros(d_in: usize, d_sae: usize) -> Self {
        Self {
            encoder: Matrix::zeros(d_sae, d_in),
            decoder: Matrix::zeros(d_sae, d_in),
            b_enc: vec![0.0; d_sae],
            b_dec: vec![0.0; d_in],
        }
    }

    pub(crate) fn d_in(&self) -> usize {
        self.encoder.cols()
    }

    pub(crate) fn d_sae(&self) -> usize {
        self.encoder.rows()
    }
}

/// What a step found out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Bits", into = "Bits")]
pub(crate) struct Outcome {
    pub(crate) loss: f64,
    pub(crate) aux_loss: f64,
    pub(crate) n_rows: usize,
    /// Entries kept.
    pub(crate) n_kept: usize,
    /// The smallest kept activation, if anything was kept.
    pub(crate) smallest: Option<f32>,
    /// Σx `[d_in]`, of the scaled rows.
    pub(crate) sum: Vec<f64>,
    /// Σ‖x‖².
    pub(crate) sum_square: f64,
    /// Σ‖x − x̂‖².
    pub(crate) sum_square_error: f64,
    /// L2 norm of all gradients, after the decoder's parallel part was removed.
    pub(crate) gradient_norm: f64,
}

/// An [`Outcome`] in a checkpoint: decimal digits do not always come back as the same number.
#[derive(Serialize, Deserialize)]
struct Bits {
    rows: [usize; 2],
    smallest: Option<u32>,
    sum: Vec<u64>,
    others: [u64; 5],
}

impl From<Outcome> for Bits {
    fn from(x: Outcome) -> Self {
        Self {
            rows: [x.n_rows, x.n_kept],
            smallest: x.smallest.map(f32::to_bits),
            sum: x.sum.into_iter().map(f64::to_bits).collect(),
            others: [x.loss, x.aux_loss, x.sum_square, x.sum_square_error, x.gradient_norm].map(f64::to_bits),
        }
    }
}

impl From<Bits> for Outcome {
    fn from(bits: Bits) -> Self {
        let [n_rows, n_kept] = bits.rows;
        let [loss, aux_loss, sum_square, sum_square_error, gradient_norm] = bits.others.map(f64::from_bits);
        Self {
            loss,
            aux_loss,
            n_rows,
            n_kept,
            smallest: bits.smallest.map(f32::from_bits),
            sum: bits.sum.into_iter().map(f64::from_bits).collect(),
            sum_square,
            sum_square_error,
            gradient_norm,
        }
    }
}

/// The choice of what fires, with what it remembers between batches. (What it remembers changes how fast it is, not what it
/// chooses.)
pub(crate) enum Selector {
    TopK(TopK),
    BatchTopK(BatchTopK),
}

impl Selector {
    pub(crate) fn new(selection: Selection) -> Self {
        match selection {
            Selection::TopK { k } => Self::TopK(TopK::new(k)),
            Selection::BatchTopK { k } => Self::BatchTopK(BatchTopK::new(k)),
        }
    }
}

/// Memory and results of steps on batches of similar size.
pub(crate) struct Step {
    /// `x − b_dec`, `[B, d_in]`.
    centered: Matrix,
    /// `x̂ − x`, `[B, d_in]`.
    residual: Matrix,
    /// `Ê − E`, `[B, d_in]`.
    aux_residual: Matrix,
    blocks: Vec<Block>,
    threads: Vec<Mutex<Thread>>,
    by_latent: ByLatent,
    aux_by_latent: ByLatent,
    /// AuxK of the last batch, if few were dead.
    dense: Option<Dense>,
    /// Gradients of the last step; rows of latents that did not fire are stale, see [`Step::fired`].
    pub(crate) gradients: Weights,
    /// Squared norm of each latent's gradient.
    squares: Vec<f64>,
    /// How many rows of the last batch each latent fired in.
    fired: Vec<u32>,
    /// Whether each latent has a gradient.
    touched: Vec<bool>,
}

/// What one block of rows leaves for the rest of the step.
#[derive(Default)]
struct Block {
    kept: SparseRows,
    aux: SparseRows,
    /// Gradients of the kept pre-activations, up to the factor of the batch.
    dz: Vec<f32>,
    aux_dz: Vec<f32>,
    sum: Vec<f64>,
    sum_square: f64,
    sum_residual: Vec<f64>,
    sum_square_residual: f64,
    sum_square_aux: f64,
}

/// What one thread uses again and again.
struct Thread {
    /// `[BLOCK_ROWS, d_sae]`.
    pre_acts: Matrix,
    found: Vec<(f32, u32)>,
    dead_pre_acts: Vec<f32>,
}

/// One batch and how to treat it.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// `[B, d_in]`, as recorded.
    pub(crate) rows: &'a [f32],
    /// What they are multiplied with.
    pub(crate) scale: f32,
    pub(crate) aux: Option<AuxK<'a>>,
}

impl Step {
    pub(crate) fn new(d_in: usize, d_sae: usize, workers: &Workers) -> Self {
        let thread = || {
            Mutex::new(Thread {
                pre_acts: Matrix::zeros(BLOCK_ROWS, d_sae),
                found: Vec::new(),
                dead_pre_acts: Vec::new(),
            })
        };
        Self {
            centered: Matrix::zeros(0, d_in),
            residual: Matrix::zeros(0, d_in),
            aux_residual: Matrix::zeros(0, d_in),
            blocks: Vec::new(),
            threads: (0..workers.threads()).map(|_| thread()).collect(),
            by_latent: ByLatent::default(),
            aux_by_latent: ByLatent::default(),
            dense: None,
            gradients: Weights::zeros(d_in, d_sae),
            squares: vec![0.0; d_sae],
            fired: vec![0; d_sae],
            touched: vec![false; d_sae],
        }
    }

    /// How many rows of the last batch each latent fired in, and whether it has a gradient.
    pub(crate) fn fired(&self) -> (&[u32], &[bool]) {
        (&self.fired, &self.touched)
    }

    /// The loss on a batch, and its gradients into [`Step::gradients`].
    pub(crate) fn run(
        &mut self,
        workers: &Workers,
        weights: &Weights,
        selector: &mut Selector,
        input: Input<'_>,
    ) -> Outcome {
        let n = input.rows.len() / weights.d_in();
        for matrix in [&mut self.centered, &mut self.residual] {
            matrix.resize_rows(n);
        }
        self.blocks.resize_with(n.div_ceil(BLOCK_ROWS), Block::default);
        let aux = input.aux.filter(|aux| !aux.dead.is_empty() && aux.k > 0);
        workers.install(|| {
            let smallest = self.choose(weights, selector, input, aux);
            self.dense =
                aux.filter(|aux| Dense::suits(aux.dead.len(), aux.k)).map(|aux| Dense::new(aux.dead, weights, n));
            self.reconstruct(weights, aux.is_some());
            let mut outcome = self.totals(n, weights.d_in());
            outcome.smallest = smallest;
            let aux_factor = aux.map(|aux| self.aux_factor(&mut outcome, aux));
            self.differentiate(weights, &mut outcome, aux_factor);
            outcome
        })
    }

    /// Encodes, and leaves in each block what fires. Returns the smallest kept activation.
    fn choose(
        &mut self,
        weights: &Weights,
        selector: &mut Selector,
        input: Input<'_>,
        aux: Option<AuxK<'_>>,
    ) -> Option<f32> {
        match selector {
            Selector::TopK(top_k) => {
                let top_k = &*top_k;
                self.encode(weights, input, aux, || {
                    let mut top_k = top_k.clone();
                    move |pre_acts: &[f32], _: &mut Vec<(f32, u32)>, out: &mut SparseRows| {
                        top_k.select(pre_acts, out);
                    }
                });
                let values = self.blocks.iter().flat_map(|block| block.kept.values());
                values.copied().min_by(f32::total_cmp)
            }
            Selector::BatchTopK(batch_top_k) => {
                let mut floor = batch_top_k.floor().unwrap_or_else(|| {
                    let n = (input.rows.len() / weights.d_in()).min(GUESS_ROWS);
                    self.pre_acts_of_first_rows(weights, input, n, |pre_acts| {
                        batch_top_k.guess(pre_acts, n);
                    });
                    batch_top_k.floor().unwrap_or(0.0)
                });
                loop {
                    self.encode(weights, input, aux, || {
                        move |pre_acts: &[f32], found: &mut Vec<(f32, u32)>, out: &mut SparseRows| {
                            BatchTopK::candidates(floor, pre_acts, found, out);
                        }
                    });
                    let mut kept: Vec<_> = self.blocks.iter_mut().map(|block| &mut block.kept).collect();
                    match batch_top_k.choose(floor, &mut kept) {
                        Choice::Kept(smallest) => return smallest,
                        Choice::TooFew => floor = 0.0,
                    }
                }
            }
        }
    }

    fn encode<S>(&mut self, weights: &Weights, input: Input<'_>, aux: Option<AuxK<'_>>, select: impl Fn() -> S + Sync)
    where
        S: FnMut(&[f32], &mut Vec<(f32, u32)>, &mut SparseRows),
    {
        let (d_in, d_sae, threads) = (weights.d_in(), weights.d_sae(), &self.threads);
        self.blocks
            .par_iter_mut()
            .zip(self.centered.as_mut_slice().par_chunks_mut(BLOCK_ROWS * d_in))
            .zip(input.rows.par_chunks(BLOCK_ROWS * d_in))
            .for_each(|((block, centered), rows)| {
                let mut thread = this_thread(threads);
                let Thread { pre_acts, found, dead_pre_acts } = &mut *thread;
                block.clear(d_in);
                for (x, centered) in rows.chunks_exact(d_in).zip(centered.chunks_exact_mut(d_in)) {
                    center(x, input.scale, &weights.b_dec, centered);
                }
                let pre_acts = product(weights, centered, pre_acts);
                let mut select = select();
                let mut aux_top_k = TopK::new(aux.map_or(0, |aux| aux.k));
                for pre_acts in pre_acts.chunks_exact_mut(d_sae) {
                    add(&weights.b_enc, pre_acts);
                    select(pre_acts, found, &mut block.kept);
                    if let Some(aux) = aux {
                        dead_pre_acts.clear();
                        dead_pre_acts.extend(aux.dead.iter().map(|&latent| pre_acts[latent as usize]));
                        aux_top_k.select_among(aux.dead, dead_pre_acts, &mut block.aux);
                    }
                }
            });
    }

    fn pre_acts_of_first_rows(&mut self, weights: &Weights, input: Input<'_>, n: usize, mut look: impl FnMut(&[f32])) {
        let d_in = weights.d_in();
        let centered = &mut self.centered.as_mut_slice()[..n * d_in];
        for (x, centered) in input.rows.chunks_exact(d_in).zip(centered.chunks_exact_mut(d_in)) {
            center(x, input.scale, &weights.b_dec, centered);
        }
        let mut thread = this_thread(&self.threads);
        let pre_acts = product(weights, centered, &mut thread.pre_acts);
        for pre_acts in pre_acts.chunks_exact_mut(weights.d_sae()) {
            add(&weights.b_enc, pre_acts);
        }
        look(pre_acts);
    }

    /// Residuals, and the gradients of the kept pre-activations up to the batch's factor.
    fn reconstruct(&mut self, weights: &Weights, aux: bool) {
        let d_in = weights.d_in();
        let decoder = weights.decoder.as_slice();
        if aux {
            self.aux_residual.resize_rows(self.residual.rows());
        }
        let n = self.blocks.len();
        let aux_rows = if aux { self.aux_residual.as_mut_slice() } else { &mut [] };
        let aux_chunks = one_each(n, aux_rows.chunks_mut(BLOCK_ROWS * d_in));
        let dense = one_each(n, self.dense.as_mut().map(Dense::blocks).unwrap_or_default());
        self.blocks
            .par_iter_mut()
            .zip(self.centered.as_slice().par_chunks(BLOCK_ROWS * d_in))
            .zip(self.residual.as_mut_slice().par_chunks_mut(BLOCK_ROWS * d_in))
            .zip(aux_chunks)
            .zip(dense)
            .for_each(|((((block, centered), residual), aux), dense)| {
                block.reconstruct(d_in, decoder, &weights.b_dec, centered, residual);
                if let Some(missing) = aux {
                    block.reconstruct_aux(d_in, decoder, residual, missing, dense);
                }
            });
    }

    /// Sums over blocks, in order.
    fn totals(&self, n_rows: usize, d_in: usize) -> Outcome {
        let mut outcome = Outcome { n_rows, sum: vec![0.0; d_in], ..Outcome::default() };
        for block in &self.blocks {
            outcome.n_kept += block.kept.n_entries();
            outcome.sum_square += block.sum_square;
            outcome.sum_square_error += block.sum_square_residual;
            for (total, sum) in outcome.sum.iter_mut().zip(&block.sum) {
                *total += sum;
            }
        }
        let variance = variance(n_rows, &outcome.sum, outcome.sum_square);
        outcome.loss = outcome.sum_square_error / (n_rows as f64 * variance);
        outcome
    }

    /// The factor of AuxK's gradients; its loss goes into `outcome`.
    fn aux_factor(&self, outcome: &mut Outcome, aux: AuxK<'_>) -> f64 {
        let n = outcome.n_rows as f64;
        let sum = self.sum_residual(outcome.sum.len());
        let variance = variance(outcome.n_rows, &sum, outcome.sum_square_error);
        let scale = aux.scaled_weight() / variance;
        let missing: f64 = self.blocks.iter().map(|block| block.sum_square_aux).sum();
        // A perfect reconstruction leaves nothing to learn from, and NaN must not reach the weights.
        if !(scale * missing).is_finite() {
            return 0.0;
        }
        outcome.aux_loss = scale * missing / n;
        2.0 * scale / n
    }

    fn sum_residual(&self, d_in: usize) -> Vec<f64> {
        let mut sum = vec![0.0; d_in];
        for block in &self.blocks {
            for (total, part) in sum.iter_mut().zip(&block.sum_residual) {
                *total += part;
            }
        }
        sum
    }

    fn differentiate(&mut self, weights: &Weights, outcome: &mut Outcome, aux_factor: Option<f64>) {
        let (d_in, d_sae) = (weights.d_in(), weights.d_sae());
        let n = outcome.n_rows as f64;
        let factor = 2.0 / (n * variance(outcome.n_rows, &outcome.sum, outcome.sum_square));
        self.by_latent.fill(d_sae, factor as f32, self.blocks.iter().map(|block| (&block.kept, &block.dz[..])));
        match aux_factor {
            Some(factor) => {
                let blocks = self.blocks.iter().map(|block| (&block.aux, &block.aux_dz[..]));
                self.aux_by_latent.fill(d_sae, factor as f32, blocks);
            }
            None => self.aux_by_latent.clear(),
        }
        if let Some(dense) = &mut self.dense {
            dense.differentiate(self.centered.as_slice(), self.aux_residual.as_slice());
        }
        let dense = self.dense.as_ref();
        let dense_factor = [aux_factor.unwrap_or(0.0) as f32];
        let (by_latent, aux_by_latent) = (&self.by_latent, &self.aux_by_latent);
        let (centered, residual) = (self.centered.as_slice(), self.residual.as_slice());
        let aux_residual = self.aux_residual.as_slice();
        let gradients = &mut self.gradients;
        let block = BLOCK_LATENTS * d_in;
        gradients
            .encoder
            .as_mut_slice()
            .par_chunks_mut(block)
            .zip(gradients.decoder.as_mut_slice().par_chunks_mut(block))
            .zip(gradients.b_enc.par_chunks_mut(BLOCK_LATENTS))
            .zip(self.squares.par_chunks_mut(BLOCK_LATENTS))
            .zip(self.fired.par_chunks_mut(BLOCK_LATENTS))
            .zip(self.touched.par_chunks_mut(BLOCK_LATENTS))
            .enumerate()
            .for_each(|(block, (((((encoder, decoder), b_enc), squares), fired), touched))| {
                let rows = encoder.chunks_exact_mut(d_in).zip(decoder.chunks_exact_mut(d_in));
                for (i, (encoder, decoder)) in rows.enumerate() {
                    let latent = block * BLOCK_LATENTS + i;
                    let (rows, values, dz) = by_latent.latent(latent);
                    let (aux_rows, aux_values, aux_dz) = aux_by_latent.latent(latent);
                    fired[i] = rows.len() as u32;
                    touched[i] = !(rows.is_empty() && aux_rows.is_empty());
                    if !touched[i] {
                        (b_enc[i], squares[i]) = (0.0, 0.0);
                        continue;
                    }
                    decoder.fill(0.0);
                    encoder.fill(0.0);
                    weighted_sum(rows, values, residual, decoder);
                    weighted_sum(rows, dz, centered, encoder);
                    if let Some((d_encoder, d_decoder)) = dense.and_then(|dense| dense.gradients(latent)) {
                        weighted_sum(&[0], &dense_factor, d_decoder, decoder);
                        weighted_sum(&[0], &dense_factor, d_encoder, encoder);
                    } else {
                        weighted_sum(aux_rows, aux_values, aux_residual, decoder);
                        weighted_sum(aux_rows, aux_dz, centered, encoder);
                    }
                    remove_parallel(weights.decoder.row(latent), decoder);
                    let sum: f64 = dz.iter().chain(aux_dz).map(|&dz| f64::from(dz)).sum();
                    b_enc[i] = sum as f32;
                    let square = f64::from(dot(encoder, encoder)) + f64::from(dot(decoder, decoder));
                    squares[i] = square + sum * sum;
                }
            });
        self.differentiate_b_dec(weights, factor);
        let b_dec: f64 = self.gradients.b_dec.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        outcome.gradient_norm = (self.squares.iter().sum::<f64>() + b_dec).sqrt();
    }

    /// `db_dec = ΣG − w_enc·ΣdZ`.
    fn differentiate_b_dec(&mut self, weights: &Weights, factor: f64) {
        /// Latents in a partial sum.
        const PART: usize = 256;
        let d_in = weights.d_in();
        let latents: Vec<u32> = (0..weights.d_sae() as u32).collect();
        let through_input: Vec<Vec<f32>> = latents
            .par_chunks(PART)
            .zip(self.gradients.b_enc.par_chunks(PART))
            .map(|(latents, dz)| {
                let mut sum = vec![0.0; d_in];
                weighted_sum(latents, dz, weights.encoder.as_slice(), &mut sum);
                sum
            })
            .collect();
        let mut sum: Vec<f64> = self.sum_residual(d_in).iter().map(|residual| factor * residual).collect();
        for part in through_input {
            for (sum, part) in sum.iter_mut().zip(part) {
                *sum -= f64::from(part);
            }
        }
        for (gradient, sum) in self.gradients.b_dec.iter_mut().zip(sum) {
            *gradient = sum as f32;
        }
    }
}

impl Block {
    fn clear(&mut self, d_in: usize) {
        self.kept.clear();
        self.aux.clear();
        for sums in [&mut self.sum, &mut self.sum_residual] {
            sums.clear();
            sums.resize(d_in, 0.0);
        }
        (self.sum_square, self.sum_square_residual, self.sum_square_aux) = (0.0, 0.0, 0.0);
    }

    fn reconstruct(&mut self, d_in: usize, decoder: &[f32], b_dec: &[f32], centered: &[f32], residual: &mut [f32]) {
        self.dz.resize(self.kept.n_entries(), 0.0);
        let mut dz = &mut self.dz[..];
        let rows = centered.chunks_exact(d_in).zip(residual.chunks_exact_mut(d_in));
        for ((latents, values), (centered, residual)) in self.kept.iter().zip(rows) {
            // The scaled input again, for its moments; `residual` is overwritten next.
            for ((x, centered), bias) in residual.iter_mut().zip(centered).zip(b_dec) {
                *x = centered + bias;
            }
            self.sum_square += moments(residual, &mut self.sum);
            // x̂ − x = Σ f·d + b_dec − x.
            for (residual, centered) in residual.iter_mut().zip(centered) {
                *residual = -centered;
            }
            weighted_sum(latents, values, decoder, residual);
            self.sum_square_residual += moments(residual, &mut self.sum_residual);
            let (row, rest) = std::mem::take(&mut dz).split_at_mut(latents.len());
            dots(residual, latents, decoder, row);
            dz = rest;
        }
    }

    /// `Ê − E = Ê + R` into `missing`, and the gradients of what fires.
    fn reconstruct_aux(
        &mut self,
        d_in: usize,
        decoder: &[f32],
        residual: &[f32],
        missing: &mut [f32],
        dense: Option<DenseBlock<'_>>,
    ) {
        self.aux_dz.resize(self.aux.n_entries(), 0.0);
        if let Some(dense) = dense {
            dense.reconstruct(&self.aux, residual, missing, &mut self.aux_dz);
            self.sum_square_aux = missing.chunks_exact(d_in).map(|row| f64::from(dot(row, row))).sum();
            return;
        }
        let mut dz = &mut self.aux_dz[..];
        let rows = residual.chunks_exact(d_in).zip(missing.chunks_exact_mut(d_in));
        for ((latents, values), (residual, missing)) in self.aux.iter().zip(rows) {
            missing.copy_from_slice(residual);
            weighted_sum(latents, values, decoder, missing);
            self.sum_square_aux += f64::from(dot(missing, missing));
            let (row, rest) = std::mem::take(&mut dz).split_at_mut(latents.len());
            dots(missing, latents, decoder, row);
            dz = rest;
        }
    }
}

/// The items as `n` options: the first ones are there, the rest, perhaps all, are not.
fn one_each<T>(n: usize, items: impl IntoIterator<Item = T>) -> Vec<Option<T>> {
    items.into_iter().map(Some).chain(std::iter::repeat_with(|| None)).take(n).collect()
}

/// Removes from a gradient what would only change the norm of its row, which the step takes away again.
fn remove_parallel(row: &[f32], gradient: &mut [f32]) {
    let along = dot(row, gradient) / dot(row, row).max(f32::MIN_POSITIVE);
    for (gradient, row) in gradient.iter_mut().zip(row) {
        *gradient -= along * row;
    }
}

/// `(x − b_dec)·w_enc`, `[rows, d_sae]`.
fn product<'a>(weights: &Weights, centered: &[f32], pre_acts: &'a mut Matrix) -> &'a mut [f32] {
    let (d_in, d_sae) = (weights.d_in(), weights.d_sae());
    let n = centered.len() / d_in;
    let pre_acts = &mut pre_acts.as_mut_slice()[..n * d_sae];
    matmul(centered, weights.encoder.as_slice(), Right::Transposed, pre_acts, [n, d_in, d_sae]);
    pre_acts
}

/// `(Σ‖x‖² − ‖Σx‖²/n)/n`; 1 where there is no variance, so that a batch of one row or of equal rows has a finite loss.
fn variance(n: usize, sum: &[f64], sum_square: f64) -> f64 {
    let n = n as f64;
    let mean_square: f64 = sum.iter().map(|sum| sum * sum).sum::<f64>() / n;
    let variance = (sum_square - mean_square) / n;
    // Rounding leaves about 1e-16 of the sum where all rows are equal.
    if variance > 1e-12 * (sum_square / n) || variance.is_nan() { variance } else { 1.0 }
}

/// This thread's memory. Work is only done inside the pool, whose threads are numbered.
fn this_thread(threads: &[Mutex<Thread>]) -> std::sync::MutexGuard<'_, Thread> {
    let index = rayon::current_thread_index().unwrap_or(0);
    threads[index].lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
