//! What does one training step compute, touching only the latents that fire?
//!
//! The same as [`crate::loss`], to rounding: `2·d_in·d_sae` operations a token for the encoder product, and `8·d·k` for
//! everything else. Rows come in blocks; a block's pre-activations live in one thread's cache from the product to the choice of
//! what fires. Then entries are regrouped by latent, so that each thread owns latents and no two write the same gradient.
//! Sums are in an order that does not depend on the number of threads.
//!
//! Where so many latents fire that going entry by entry would be slower (an L1 coder's first steps), blocks of rows and of
//! latents are multiplied densely instead: [`DENSE`].

mod auxk;
mod block;
mod gradients;
mod outcome;
mod weights;

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use self::{auxk::Dense, block::Block};
pub(crate) use self::{
    outcome::Outcome,
    weights::{Group, Weights},
};
use crate::{
    kernels::{add, center, dot, from_halves, to_halves},
    layout::Layout,
    loss::AuxK,
    matrix::{Halves, Matrix, Right, matmul_between, matmul_halves},
    rule::{Rounded, Rule, SelectScratch},
    sae::BLOCK_ROWS,
    sparse::ByLatent,
    topk::TopK,
    workers::Workers,
};

/// Rows of which the pre-activations show where the first batch's candidates begin.
const LOOK_ROWS: usize = 64;
/// Latents that one thread takes at a time.
const BLOCK_LATENTS: usize = 32;
/// The part of a block's latents that fires from which its products are dense.
const DENSE: f64 = 0.15;

/// Memory and results of steps on batches of similar size.
pub(crate) struct Step {
    layout: Layout,
    /// What is encoded, scaled, without `b_dec` if that is subtracted: `[B, d_in]`.
    inputs: Matrix,
    /// `ŷ − y` of each level and all later ones together, `[B, d_out]`; the last is that of the whole coder.
    residuals: Vec<Matrix>,
    /// `Ê − E`, `[B, d_out]`.
    aux_residual: Matrix,
    blocks: Vec<Block>,
    threads: Vec<Mutex<Thread>>,
    by_latent: ByLatent,
    aux_by_latent: ByLatent,
    /// AuxK of the last batch, if few were dead.
    dense: Option<Dense>,
    /// Gradients of the last step; rows of latents that did not fire are stale, see [`Step::fired`].
    pub(crate) gradients: Weights,
    /// For each latent, the sum of the gradients of what the encoder's product gives.
    sum_dz: Vec<f32>,
    /// Squared norm of each latent's gradient.
    squares: Vec<f64>,
    /// How many rows of the last batch each latent fired in.
    fired: Vec<u32>,
    /// Whether each latent has a gradient.
    touched: Vec<bool>,
    /// See [`crate::rule::Terms::norms`].
    norms: Vec<f32>,
    /// The encoder in bf16, where its product is taken so.
    halves: Option<HalfEncoder>,
}

/// Each group's encoder in bf16, and the norms of its rows.
#[derive(Default)]
struct HalfEncoder {
    groups: Vec<Halves>,
    norms: Vec<f32>,
    largest_norm: f32,
}

/// How far a product of vectors of norm 1 may be from what it is, when they are rounded to bf16 and it is too: each number by a
/// part of 2⁻⁹, and a little for the sum in f32.
const HALF_ERROR: f32 = 3.1 / 512.0;

/// What one thread uses again and again.
struct Thread {
    /// `[BLOCK_ROWS, d_sae]`.
    pre_acts: Matrix,
    select: SelectScratch,
    aux: TopK,
    dead_pre_acts: Vec<f32>,
    rows: Vec<u32>,
    /// Memory of any size: one column, aligned as products want it. For a block, `[BLOCK_ROWS, d_out]`.
    through: Matrix,
    gate: Vec<f32>,
    /// … and `[B, BLOCK_LATENTS]` twice.
    columns: [Matrix; 2],
    /// A block's rows and its pre-activations in bf16.
    halves: [Halves; 2],
}

/// One batch and how to treat it.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// `[B, d_in]`, as recorded.
    pub(crate) x: &'a [f32],
    /// What is to be written, `[B, d_out]`; of an autoencoder, `x`.
    pub(crate) y: &'a [f32],
    /// What each site that is read is multiplied with, and each that is written.
    pub(crate) scales: [&'a [f32]; 2],
    /// Where the coder is cut into smaller ones that reconstruct alone (Matryoshka); the last is `d_sae`.
    pub(crate) levels: &'a [usize],
    /// λ.
    pub(crate) sparsity: f64,
    /// The dead latents, ascending.
    pub(crate) dead: &'a [u32],
    pub(crate) aux: Option<AuxK>,
}

impl Step {
    /// `bf16`: whether the encoder's product is taken in bf16; then what may fire is computed again in f32.
    pub(crate) fn new(layout: &Layout, own: usize, bf16: bool, workers: &Workers) -> Self {
        let d_sae = layout.d_sae();
        let thread = || {
            Mutex::new(Thread {
                pre_acts: Matrix::zeros(BLOCK_ROWS, d_sae),
                select: SelectScratch::default(),
                aux: TopK::default(),
                dead_pre_acts: Vec::new(),
                rows: Vec::new(),
                through: Matrix::zeros(0, 1),
                gate: vec![0.0; layout.d_out()],
                columns: [Matrix::zeros(0, 1), Matrix::zeros(0, 1)],
                halves: Default::default(),
            })
        };
        Self {
            inputs: Matrix::zeros(0, layout.d_in()),
            residuals: vec![Matrix::zeros(0, layout.d_out())],
            aux_residual: Matrix::zeros(0, layout.d_out()),
            blocks: Vec::new(),
            threads: (0..workers.threads()).map(|_| thread()).collect(),
            by_latent: ByLatent::default(),
            aux_by_latent: ByLatent::default(),
            dense: None,
            gradients: Weights::zeros(layout, own),
            sum_dz: vec![0.0; d_sae],
            squares: vec![0.0; d_sae],
            fired: vec![0; d_sae],
            touched: vec![false; d_sae],
            norms: Vec::new(),
            halves: bf16.then(|| HalfEncoder {
                groups: vec![Halves::default(); layout.groups.len()],
                norms: vec![0.0; d_sae],
                largest_norm: 0.0,
            }),
            layout: layout.clone(),
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
        rule: &mut dyn Rule,
        input: Input<'_>,
    ) -> Outcome {
        let n = input.x.len() / self.layout.d_in();
        let levels = input.levels.len().max(1);
        self.inputs.resize_rows(n);
        self.residuals.resize_with(levels, || Matrix::zeros(0, self.layout.d_out()));
        for residual in &mut self.residuals {
            residual.resize_rows(n);
        }
        self.blocks.resize_with(n.div_ceil(BLOCK_ROWS), Block::default);
        let aux = input.aux.filter(|aux| !input.dead.is_empty() && aux.k > 0);
        workers.install(|| {
            self.round(weights);
            self.choose(weights, rule, input, aux);
            self.count_what_fires();
            self.dense = aux
                .filter(|aux| weights.groups.len() == 1 && Dense::suits(input.dead.len(), aux.k))
                .map(|_| Dense::new(input.dead, &weights.groups[0], n));
            self.reconstruct(weights, rule, input, aux.is_some());
            let mut outcome = self.totals(n);
            let aux_factor = aux.map(|aux| self.aux_factor(&mut outcome, aux.scaled_weight(input.dead.len())));
            self.differentiate(weights, rule, input, &mut outcome, aux_factor);
            outcome
        })
    }

    /// Takes the encoder in bf16, if it is multiplied so.
    fn round(&mut self, weights: &Weights) {
        let Some(HalfEncoder { groups, norms, largest_norm }) = &mut self.halves else { return };
        for (halves, group) in groups.iter_mut().zip(&weights.groups) {
            let (encoder, width) = (group.encoder.as_slice(), group.encoder.cols());
            halves.resize(encoder.len());
            halves
                .as_mut_slice()
                .par_chunks_mut(BLOCK_LATENTS * width)
                .zip(encoder.par_chunks(BLOCK_LATENTS * width))
                .zip(norms[group.layout.latents.clone()].par_chunks_mut(BLOCK_LATENTS))
                .for_each(|((out, rows), norms)| {
                    to_halves(rows, out);
                    for (row, norm) in rows.chunks_exact(width).zip(norms) {
                        *norm = dot(row, row).sqrt();
                    }
                });
        }
        *largest_norm = norms.iter().copied().fold(0.0, f32::max);
    }

    /// Encodes, and leaves in each block what may have a gradient.
    fn choose(&mut self, weights: &Weights, rule: &mut dyn Rule, input: Input<'_>, aux: Option<AuxK>) {
        rule.prepare(weights);
        if rule.wants_a_look() {
            let n = (input.x.len() / self.layout.d_in()).min(LOOK_ROWS);
            let mut thread = this_thread(&self.threads);
            let width = n * self.layout.d_in();
            let rows = &mut self.inputs.as_mut_slice()[..width];
            scale_inputs(&self.layout, weights, &input.x[..width], input.scales[0], rows);
            rule.look(encode(&self.layout, weights, self.halves.as_ref(), rows, &mut thread), n);
        }
        loop {
            self.select(weights, rule, input, aux);
            let mut blocks: Vec<_> = self.blocks.iter_mut().map(|block| &mut block.kept).collect();
            if rule.settle(&mut blocks) {
                return;
            }
        }
    }

    fn select(&mut self, weights: &Weights, rule: &dyn Rule, input: Input<'_>, aux: Option<AuxK>) {
        let (layout, threads, halves) = (&self.layout, &self.threads, self.halves.as_ref());
        let width = layout.d_in();
        self.blocks
            .par_iter_mut()
            .zip(self.inputs.as_mut_slice().par_chunks_mut(BLOCK_ROWS * width))
            .zip(input.x.par_chunks(BLOCK_ROWS * width))
            .for_each(|((block, rows), x)| {
                let mut thread = this_thread(threads);
                block.clear();
                scale_inputs(layout, weights, x, input.scales[0], rows);
                encode(layout, weights, halves, rows, &mut thread);
                let Thread { pre_acts, select, aux: aux_top_k, dead_pre_acts, .. } = &mut *thread;
                let pre_acts = pre_acts.as_mut_slice().chunks_exact_mut(layout.d_sae());
                for (pre_acts, row) in pre_acts.zip(rows.chunks_exact(width)) {
                    if let Some(HalfEncoder { norms, largest_norm, .. }) = halves {
                        let error = HALF_ERROR * dot(row, row).sqrt();
                        let rounded = Rounded { pre_acts, norms, largest_norm: *largest_norm, error };
                        rule.candidates(&rounded, weights, select);
                        for &(_, latent) in &select.found {
                            let (group, at) = weights.find(latent as usize);
                            let x = &row[group.layout.reads.clone()];
                            pre_acts[latent as usize] = dot(x, group.encoder.row(at)) + group.b_enc[at];
                        }
                    }
                    rule.select(pre_acts, weights, select, &mut block.kept);
                    if let Some(aux) = aux {
                        dead_pre_acts.clear();
                        dead_pre_acts.extend(input.dead.iter().map(|&latent| pre_acts[latent as usize]));
                        aux_top_k.with(aux.k).select_among(input.dead, dead_pre_acts, &mut block.aux);
                    }
                }
            });
    }

    fn count_what_fires(&mut self) {
        self.fired.fill(0);
        for block in &self.blocks {
            for (&latent, &act) in block.kept.rows.latents().iter().zip(block.kept.rows.values()) {
                self.fired[latent as usize] += u32::from(act > 0.0);
            }
        }
    }

    /// Residuals, and what each activation does to them.
    fn reconstruct(&mut self, weights: &Weights, rule: &dyn Rule, input: Input<'_>, aux: bool) {
        let (layout, threads) = (&self.layout, &self.threads);
        let (d_in, d_out) = (layout.d_in(), layout.d_out());
        let n = self.blocks.len();
        if aux {
            self.aux_residual.resize_rows(self.inputs.rows());
        }
        let aux_rows = if aux { self.aux_residual.as_mut_slice() } else { &mut [] };
        let aux_chunks = one_each(n, aux_rows.chunks_mut(BLOCK_ROWS * d_out));
        let dense = one_each(n, self.dense.as_mut().map(Dense::blocks).unwrap_or_default());
        // Of each block, its rows of every level.
        let mut residuals: Vec<Vec<&mut [f32]>> = (0..n).map(|_| Vec::new()).collect();
        for matrix in &mut self.residuals {
            for (rows, of_block) in matrix.as_mut_slice().chunks_mut(BLOCK_ROWS * d_out).zip(&mut residuals) {
                of_block.push(rows);
            }
        }
        let context = block::Context { layout, weights, input, gates: rule.has_gates() };
        self.blocks
            .par_iter_mut()
            .zip(self.inputs.as_slice().par_chunks(BLOCK_ROWS * d_in))
            .zip(input.y.par_chunks(BLOCK_ROWS * d_out))
            .zip(residuals)
            .zip(aux_chunks)
            .zip(dense)
            .for_each(|(((((block, inputs), y), mut residuals), aux), dense)| {
                let mut thread = this_thread(threads);
                block.reconstruct(&context, [inputs, y], &mut residuals, &mut thread);
                if let (Some(missing), Some(residual)) = (aux, residuals.last()) {
                    block.reconstruct_aux(weights, residual, missing, dense, &mut thread.rows);
                }
            });
    }

    /// Sums over blocks, in order.
    fn totals(&self, n_rows: usize) -> Outcome {
        let sites = self.layout.outputs.len();
        let mut outcome = Outcome {
            n_rows,
            n_kept: self.fired.iter().map(|&n| n as usize).sum(),
            smallest: vec![None; self.layout.groups.len()],
            sum: vec![0.0; self.layout.d_out()],
            sum_square: vec![0.0; sites],
            sum_square_error: vec![0.0; sites],
            ..Outcome::default()
        };
        let (mut of_levels, mut of_gates) = (0.0, 0.0);
        for block in &self.blocks {
            let pairs = [
                (&mut outcome.sum, &block.sum),
                (&mut outcome.sum_square, &block.sum_square),
                (&mut outcome.sum_square_error, &block.sum_square_error),
            ];
            for (totals, parts) in pairs {
                for (total, part) in totals.iter_mut().zip(parts) {
                    *total += part;
                }
            }
            of_levels += block.sum_square_levels;
            of_gates += block.sum_square_gates;
            for (latents, values) in block.kept.rows.iter() {
                let mut start = 0;
                for (group, smallest) in self.layout.groups.iter().zip(&mut outcome.smallest) {
                    let end = start + latents[start..].partition_point(|&it| (it as usize) < group.latents.end);
                    let positive = values[start..end].iter().copied().filter(|&act| act > 0.0);
                    *smallest = positive.chain(*smallest).min_by(f32::total_cmp);
                    start = end;
                }
            }
        }
        let all = n_rows as f64 * variance(n_rows, &outcome.sum, outcome.sum_square.iter().sum());
        outcome.loss = of_levels / (self.residuals.len() as f64 * all);
        outcome.sparsity_loss = of_gates / all;
        outcome
    }

    /// The factor of AuxK's gradients; its loss goes into `outcome`.
    fn aux_factor(&self, outcome: &mut Outcome, weight: f64) -> f64 {
        let n = outcome.n_rows as f64;
        let sum = self.sum_over_blocks(|block| &block.sum_residual);
        let variance = variance(outcome.n_rows, &sum, outcome.sum_square_error.iter().sum());
        let scale = weight / variance;
        let missing: f64 = self.blocks.iter().map(|block| block.sum_square_aux).sum();
        // A perfect reconstruction leaves nothing to learn from, and NaN must not reach the weights.
        if !(scale * missing).is_finite() {
            return 0.0;
        }
        outcome.aux_loss = scale * missing / n;
        2.0 * scale / n
    }

    fn sum_over_blocks(&self, part: impl Fn(&Block) -> &[f64]) -> Vec<f64> {
        let mut sum = vec![0.0; self.layout.d_out()];
        for block in &self.blocks {
            for (total, part) in sum.iter_mut().zip(part(block)) {
                *total += part;
            }
        }
        sum
    }
}

/// `scale·x`, without `b_dec` if that is subtracted.
fn scale_inputs(layout: &Layout, weights: &Weights, x: &[f32], scales: &[f32], out: &mut [f32]) {
    let width = layout.d_in();
    let zeros = if layout.is_autoencoder { Vec::new() } else { vec![0.0; width] };
    let bias = if layout.is_autoencoder { &weights.b_dec } else { &zeros };
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        for (site, &scale) in layout.inputs.iter().zip(scales) {
            center(&x[site.clone()], scale, &bias[site.clone()], &mut out[site.clone()]);
        }
    }
}

/// Pre-activations of rows that are scaled, `[n, d_sae]`; with `halves`, as near as bf16 is.
fn encode<'a>(
    layout: &Layout,
    weights: &Weights,
    halves: Option<&HalfEncoder>,
    rows: &[f32],
    thread: &'a mut Thread,
) -> &'a [f32] {
    let (d_in, d_sae) = (layout.d_in(), layout.d_sae());
    let n = rows.len() / d_in;
    let Thread { pre_acts, halves: [of_rows, products], .. } = thread;
    let pre_acts = &mut pre_acts.as_mut_slice()[..n * d_sae];
    for (at, group) in weights.groups.iter().enumerate() {
        let (reads, latents) = (&group.layout.reads, &group.layout.latents);
        if latents.is_empty() {
            continue;
        }
        if let Some(encoder) = halves.map(|halves| &halves.groups[at]) {
            of_rows.resize(n * reads.len());
            for (row, out) in rows.chunks_exact(d_in).zip(of_rows.as_mut_slice().chunks_exact_mut(reads.len())) {
                to_halves(&row[reads.clone()], out);
            }
            products.resize(n * latents.len());
            let shape = [n, reads.len(), latents.len()];
            matmul_halves(of_rows.as_slice(), encoder.as_slice(), products.as_mut_slice(), shape);
            let products = products.as_slice().chunks_exact(latents.len());
            for (row, products) in pre_acts.chunks_exact_mut(d_sae).zip(products) {
                from_halves(products, &group.b_enc, &mut row[latents.clone()]);
            }
            continue;
        }
        matmul_between(
            (rows, d_in, reads.clone()),
            group.encoder.as_slice(),
            Right::Transposed,
            (&mut *pre_acts, d_sae, latents.clone()),
        );
        for row in pre_acts.chunks_exact_mut(d_sae) {
            add(&group.b_enc, &mut row[latents.clone()]);
        }
    }
    pre_acts
}

/// The items as `n` options: the first ones are there, the rest, perhaps all, are not.
fn one_each<T>(n: usize, items: impl IntoIterator<Item = T>) -> Vec<Option<T>> {
    items.into_iter().map(Some).chain(std::iter::repeat_with(|| None)).take(n).collect()
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
