//! What do the entries of a batch make of the weights? Every latent is one thread's.

use rayon::prelude::*;

use super::{BLOCK_LATENTS, DENSE, Input, Outcome, Step, Weights, this_thread, variance};
use crate::{
    kernels::{dot, weighted_sum},
    layout::Layout,
    matrix::{Matrix, matmul_columns},
    rule::{Rule, Terms},
    sae::norm,
};

impl Step {
    pub(super) fn differentiate(
        &mut self,
        weights: &Weights,
        rule: &dyn Rule,
        input: Input<'_>,
        outcome: &mut Outcome,
        aux_factor: Option<f64>,
    ) {
        let d_sae = self.layout.d_sae();
        let charges = rule.charges();
        let variance = variance(outcome.n_rows, &outcome.sum, outcome.sum_square.iter().sum());
        self.norms =
            if charges.norms && self.layout.outputs.len() > 1 { norms(&self.layout, weights) } else { Vec::new() };
        let mut dead = Vec::new();
        if charges.pre_act > 0.0 {
            dead.resize(d_sae, false);
            for &latent in input.dead {
                dead[latent as usize] = true;
            }
        }
        let terms = Terms {
            n_rows: outcome.n_rows,
            variance,
            factor: 2.0 / (self.residuals.len() as f64 * outcome.n_rows as f64 * variance),
            sparsity: input.sparsity,
            fired: if charges.frequency.is_some() { &self.fired } else { &[] },
            dead: &dead,
            norms: &self.norms,
            weights,
        };
        let with_norms = !self.norms.is_empty();
        let charged: Vec<f64> =
            self.blocks.par_iter_mut().map(|block| block.differentiate(rule, &terms, with_norms)).collect();
        outcome.sparsity_loss += charged.into_iter().sum::<f64>();
        if let Some((weight, scale)) = charges.frequency {
            let share = |&fired: &u32| f64::from(fired) / outcome.n_rows as f64;
            outcome.sparsity_loss +=
                self.fired.iter().map(share).map(|share| weight * share * (1.0 + share / scale)).sum::<f64>();
        }
        let blocks = self.blocks.iter().map(|block| (&block.kept.rows, &block.dz[..]));
        self.by_latent.fill(d_sae, [terms.factor as f32, 1.0], blocks);
        match aux_factor {
            Some(factor) => {
                let blocks = self.blocks.iter().map(|block| (&block.aux, &block.aux_dz[..]));
                self.aux_by_latent.fill(d_sae, [factor as f32; 2], blocks);
            }
            None => self.aux_by_latent.clear(),
        }
        let pre_act = charges.pre_act * terms.per_deviation();
        let factor = terms.factor;
        if let Some(dense) = &mut self.dense {
            dense.differentiate(self.inputs.as_slice(), self.aux_residual.as_slice());
        }
        let from_norms = self.sum_of_norms();
        let always = if pre_act > 0.0 { self.sum_of_inputs() } else { Vec::new() };
        outcome.sparsity_loss += pre_act * self.lack_of_the_dead(weights, input.dead, &always);
        for group in 0..weights.groups.len() {
            let always = (!always.is_empty()).then_some(Always { dead: &dead, inputs: &always, dz: pre_act });
            self.differentiate_group(weights, group, input.levels, aux_factor, always, &from_norms);
        }
        self.differentiate_own(weights, rule, input.dead, pre_act);
        self.differentiate_b_dec(weights, factor);
        self.differentiate_skips(factor);
        let mut square: f64 = self.squares.iter().sum();
        let others = self.gradients.skips.iter().map(Matrix::as_slice).chain([&self.gradients.b_dec[..]]);
        let own = self.gradients.groups.iter().flat_map(|group| group.own.iter().chain([&group.b_enc]));
        for values in others.chain(own.map(|own| &own[..])) {
            square += values.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        }
        outcome.gradient_norm = square.sqrt();
    }

    /// The rows of the encoder and the decoder of a group's latents.
    fn differentiate_group(
        &mut self,
        weights: &Weights,
        group: usize,
        levels: &[usize],
        aux_factor: Option<f64>,
        always: Option<Always<'_>>,
        from_norms: &[f64],
    ) {
        let of_group = &weights.groups[group];
        let (reads, writes) = (of_group.layout.reads.clone(), of_group.layout.writes.clone());
        let latents = of_group.layout.latents.clone();
        let (d_in, d_out) = (self.layout.d_in(), self.layout.d_out());
        let inputs = columns(&self.inputs, &reads);
        let residuals: Vec<_> = self.residuals.iter().map(|residual| columns(residual, &writes)).collect();
        let aux_residual = columns(&self.aux_residual, &writes);
        let (by_latent, aux_by_latent, dense) = (&self.by_latent, &self.aux_by_latent, self.dense.as_ref());
        let aux_factor = [aux_factor.unwrap_or(0.0) as f32];
        let n_rows = self.inputs.rows();
        // Dense products want the rows to lie in one piece.
        let may_be_dense = reads.len() == d_in && writes.len() == d_out && residuals.len() == 1;
        let (threads, layout) = (&self.threads, &self.layout);
        let gradients = &mut self.gradients.groups[group];
        gradients
            .encoder
            .as_mut_slice()
            .par_chunks_mut(BLOCK_LATENTS * reads.len())
            .zip(gradients.decoder.as_mut_slice().par_chunks_mut(BLOCK_LATENTS * writes.len()))
            .zip(self.sum_dz[latents.clone()].par_chunks_mut(BLOCK_LATENTS))
            .zip(self.squares[latents.clone()].par_chunks_mut(BLOCK_LATENTS))
            .zip(self.touched[latents.clone()].par_chunks_mut(BLOCK_LATENTS))
            .enumerate()
            .for_each(|(block, ((((encoder, decoder), sum_dz), squares), touched))| {
                let first = latents.start + block * BLOCK_LATENTS;
                let n = sum_dz.len();
                let entries: usize = (first..first + n).map(|latent| by_latent.latent(latent).0.len()).sum();
                let is_dense = may_be_dense && entries as f64 > DENSE * (n * n_rows) as f64;
                if is_dense {
                    let mut thread = this_thread(threads);
                    let [acts, dz] = &mut thread.columns;
                    by_latent.scatter(first..first + n, n_rows, acts, dz);
                    matmul_columns(acts.as_slice(), n, 0..n, residuals[0].0, decoder);
                    matmul_columns(dz.as_slice(), n, 0..n, inputs.0, encoder);
                }
                let rows = encoder.chunks_exact_mut(reads.len()).zip(decoder.chunks_exact_mut(writes.len()));
                for (i, (encoder, decoder)) in rows.enumerate() {
                    let latent = first + i;
                    let (rows, values, dz) = by_latent.latent(latent);
                    let (aux_rows, aux_values, aux_dz) = aux_by_latent.latent(latent);
                    let always = always.filter(|always| always.dead[latent]);
                    touched[i] = !(rows.is_empty() && aux_rows.is_empty()) || always.is_some();
                    if !touched[i] {
                        (sum_dz[i], squares[i]) = (0.0, 0.0);
                        continue;
                    }
                    if !is_dense {
                        encoder.fill(0.0);
                        decoder.fill(0.0);
                        let level = levels.partition_point(|&end| end <= latent).min(residuals.len() - 1);
                        add_rows(rows, values, &residuals[level], d_out, decoder);
                        add_rows(rows, dz, &inputs, d_in, encoder);
                    }
                    if let Some((d_encoder, d_decoder)) = dense.and_then(|dense| dense.gradients(latent)) {
                        weighted_sum(&[0], &aux_factor, d_decoder, decoder);
                        weighted_sum(&[0], &aux_factor, d_encoder, encoder);
                    } else {
                        add_rows(aux_rows, aux_values, &aux_residual, d_out, decoder);
                        add_rows(aux_rows, aux_dz, &inputs, d_in, encoder);
                    }
                    let mut sum: f64 = dz.iter().chain(aux_dz).map(|&dz| f64::from(dz)).sum();
                    if let Some(always) = always {
                        weighted_sum(&[0], &[-always.dz as f32], &always.inputs[reads.clone()], encoder);
                        sum -= always.dz * n_rows as f64;
                    }
                    let row = of_group.decoder.row(latent - latents.start);
                    if let Some(&of_norm) = from_norms.get(latent) {
                        add_norm_gradients(layout, writes.start, row, of_norm, decoder);
                    }
                    remove_parallel(row, decoder);
                    sum_dz[i] = sum as f32;
                    squares[i] = f64::from(dot(encoder, encoder)) + f64::from(dot(decoder, decoder));
                }
            });
    }

    /// `b_enc`, and what else the architecture learns of each latent.
    fn differentiate_own(&mut self, weights: &Weights, rule: &dyn Rule, dead: &[u32], pre_act: f64) {
        let n_own = rule.own();
        let mut sums = vec![vec![0.0_f64; self.layout.d_sae()]; n_own + usize::from(rule.has_gates())];
        for block in &self.blocks {
            for (sums, own) in sums.iter_mut().zip(&block.own) {
                for (&latent, &gradient) in block.kept.rows.latents().iter().zip(own) {
                    sums[latent as usize] += f64::from(gradient);
                }
            }
        }
        if pre_act > 0.0 && n_own > 0 {
            for &latent in dead {
                sums[0][latent as usize] += pre_act * self.inputs.rows() as f64;
            }
        }
        for (group, gradients) in weights.groups.iter().zip(&mut self.gradients.groups) {
            let latents = group.layout.latents.clone();
            gradients.b_enc.copy_from_slice(&self.sum_dz[latents.clone()]);
            let own = gradients.own.iter_mut().chain([&mut gradients.b_enc]);
            for (own, sums) in own.zip(&sums) {
                for (own, &sum) in own.iter_mut().zip(&sums[latents.clone()]) {
                    *own = sum as f32;
                }
            }
        }
    }

    /// `db_dec = ΣG`, and of an autoencoder less `w_enc·ΣdZ`.
    fn differentiate_b_dec(&mut self, weights: &Weights, factor: f64) {
        /// Latents in a partial sum.
        const PART: usize = 256;
        let mut sum = self.sum_over_blocks(|block| &block.sum_levels);
        for sum in &mut sum {
            *sum *= factor;
        }
        if self.layout.is_autoencoder {
            let group = &weights.groups[0];
            let latents: Vec<u32> = (0..self.layout.d_sae() as u32).collect();
            let through_input: Vec<Vec<f32>> = latents
                .par_chunks(PART)
                .zip(self.sum_dz.par_chunks(PART))
                .map(|(latents, dz)| {
                    let mut sum = vec![0.0; group.encoder.cols()];
                    weighted_sum(latents, dz, group.encoder.as_slice(), &mut sum);
                    sum
                })
                .collect();
            for part in through_input {
                for (sum, part) in sum.iter_mut().zip(part) {
                    *sum -= f64::from(part);
                }
            }
        }
        for (gradient, sum) in self.gradients.b_dec.iter_mut().zip(sum) {
            *gradient = sum as f32;
        }
    }

    /// `dW_skip = Gᵀ·X`.
    fn differentiate_skips(&mut self, factor: f64) {
        /// Written columns that one thread takes at a time.
        const PART: usize = 32;
        let (residual, d_out) = (&self.residuals[0], self.layout.d_out());
        let inputs = &self.inputs;
        for ([reads, writes], skip) in self.layout.skips.iter().zip(&mut self.gradients.skips) {
            let x = if reads.len() == inputs.cols() { None } else { Some(copy_columns(inputs, reads)) };
            let x = x.as_ref().map_or(inputs.as_slice(), Matrix::as_slice);
            let width = reads.len();
            skip.as_mut_slice().par_chunks_mut(PART * width).enumerate().for_each(|(part, out)| {
                let first = writes.start + part * PART;
                matmul_columns(residual.as_slice(), d_out, first..first + out.len() / width, x, out);
                crate::kernels::scale(out, factor as f32);
            });
        }
    }

    /// `Σ(θ − z)` of the rows in which dead latents do not fire; `sum` is that of what was encoded, empty where it is not charged.
    fn lack_of_the_dead(&self, weights: &Weights, dead: &[u32], sum: &[f32]) -> f64 {
        if sum.is_empty() || dead.is_empty() {
            return 0.0;
        }
        let n = self.inputs.rows() as f64;
        let all: f64 = dead
            .iter()
            .map(|&latent| {
                let (group, at) = weights.find(latent as usize);
                let z = f64::from(dot(&sum[group.layout.reads.clone()], group.encoder.row(at)));
                n * f64::from(group.own[0][at] - group.b_enc[at]) - z
            })
            .sum();
        let mut fires = 0.0;
        for block in &self.blocks {
            let entries = block.kept.rows.latents().iter().zip(block.kept.rows.values());
            for (&latent, &act) in entries.filter(|&(latent, &act)| act > 0.0 && dead.binary_search(latent).is_ok()) {
                let (group, at) = weights.find(latent as usize);
                fires += f64::from(group.own[0][at] - act);
            }
        }
        all - fires
    }

    /// The sum of the rows that were encoded.
    fn sum_of_inputs(&self) -> Vec<f32> {
        let mut sum = vec![0.0_f64; self.layout.d_in()];
        for row in self.inputs.as_slice().chunks_exact(sum.len()) {
            crate::kernels::moments(row, &mut sum);
        }
        sum.into_iter().map(|x| x as f32).collect()
    }

    /// The gradient of each latent's entry in [`Terms::norms`].
    fn sum_of_norms(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.norms.len()];
        if !sums.is_empty() {
            for block in &self.blocks {
                for (&latent, &gradient) in block.kept.rows.latents().iter().zip(&block.d_norm) {
                    sums[latent as usize] += f64::from(gradient);
                }
            }
        }
        sums
    }
}

/// What dead latents get from every row, because what they lack to fire is charged.
#[derive(Clone, Copy)]
struct Always<'a> {
    dead: &'a [bool],
    /// Σ of the rows that were encoded.
    inputs: &'a [f32],
    /// By how much a row's pre-activation is to rise.
    dz: f64,
}

/// Some columns of a matrix: all its values from the first of them on, and how many columns.
type Columns<'a> = (&'a [f32], usize);

fn columns<'a>(matrix: &'a Matrix, range: &std::ops::Range<usize>) -> Columns<'a> {
    let values = matrix.as_slice();
    (&values[range.start.min(values.len())..], range.len())
}

fn copy_columns(matrix: &Matrix, range: &std::ops::Range<usize>) -> Matrix {
    let mut out = Matrix::zeros(matrix.rows(), range.len());
    for row in 0..matrix.rows() {
        out.row_mut(row).copy_from_slice(&matrix.row(row)[range.clone()]);
    }
    out
}

/// `out += Σ values · rows`, of columns of a matrix whose rows have `stride` values.
fn add_rows(rows: &[u32], values: &[f32], table: &Columns<'_>, stride: usize, out: &mut [f32]) {
    if table.1 == stride {
        return weighted_sum(rows, values, table.0, out);
    }
    for (&row, value) in rows.iter().zip(values) {
        weighted_sum(&[0], &[*value], &table.0[row as usize * stride..][..out.len()], out);
    }
}

/// For each latent, the sum of the norms of its decoder rows, one for each site.
fn norms(layout: &Layout, weights: &Weights) -> Vec<f32> {
    let of_group = weights.groups.iter().flat_map(|group| {
        (0..group.decoder.rows()).map(|at| {
            let row = group.decoder.row(at);
            sites(layout, group.layout.writes.start, row).map(|site| norm(&row[site])).sum()
        })
    });
    of_group.collect()
}

/// Adds what `Σ‖d‖` over sites makes of its gradient.
fn add_norm_gradients(layout: &Layout, first: usize, row: &[f32], gradient: f64, out: &mut [f32]) {
    for site in sites(layout, first, row) {
        let scale = gradient as f32 / norm(&row[site.clone()]).max(f32::MIN_POSITIVE);
        weighted_sum(&[0], &[scale], &row[site.clone()], &mut out[site]);
    }
}

/// The columns of each site in a decoder row, which begins at the column `first`.
fn sites(layout: &Layout, first: usize, row: &[f32]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = first + row.len();
    let ours = layout.outputs.iter().filter(move |site| site.start >= first && site.end <= end);
    ours.map(move |site| site.start - first..site.end - first)
}

/// Removes from a gradient what would only change the norm of its row, which the step takes away again.
fn remove_parallel(row: &[f32], gradient: &mut [f32]) {
    let along = dot(row, gradient) / dot(row, row).max(f32::MIN_POSITIVE);
    for (gradient, row) in gradient.iter_mut().zip(row) {
        *gradient -= along * row;
    }
}
