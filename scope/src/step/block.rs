//! What does one block of rows compute by itself: what its latents write, what is missing, and what each could do about it?

use std::ops::Range;

use super::{DENSE, Input, Thread, Weights, auxk::DenseBlock};
use crate::{
    kernels::{add, dot, moments},
    layout::Layout,
    matrix::{Matrix, Right, matmul, matmul_between},
    rule::{Gradients, Kept, Row, Rule, Terms},
    sparse::SparseRows,
};

/// What one block of rows leaves for the rest of the step.
#[derive(Default)]
pub(super) struct Block {
    pub(super) kept: Kept,
    pub(super) aux: SparseRows,
    /// [`Row::d_act`] and [`Row::d_gate`], entry by entry.
    d_act: Vec<f32>,
    d_gate: Vec<f32>,
    /// [`Gradients`], entry by entry.
    pub(super) dz: Vec<f32>,
    pub(super) own: Vec<Vec<f32>>,
    pub(super) d_norm: Vec<f32>,
    pub(super) aux_dz: Vec<f32>,
    /// Σy, and Σ‖y‖² of each site.
    pub(super) sum: Vec<f64>,
    pub(super) sum_square: Vec<f64>,
    /// Σ(ŷ − y), and Σ‖ŷ − y‖² of each site.
    pub(super) sum_residual: Vec<f64>,
    pub(super) sum_square_error: Vec<f64>,
    /// Σ over levels of ŷ − y, and of its square.
    pub(super) sum_levels: Vec<f64>,
    pub(super) sum_square_levels: f64,
    pub(super) sum_square_gates: f64,
    pub(super) sum_square_aux: f64,
}

/// What is the same for all blocks.
pub(super) struct Context<'a> {
    pub(super) layout: &'a Layout,
    pub(super) weights: &'a Weights,
    pub(super) input: Input<'a>,
    pub(super) gates: bool,
}

impl Block {
    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.aux.clear();
        (self.sum_square_levels, self.sum_square_gates, self.sum_square_aux) = (0.0, 0.0, 0.0);
    }

    /// `residuals` has the block's rows of each level.
    pub(super) fn reconstruct(
        &mut self,
        context: &Context<'_>,
        [inputs, y]: [&[f32]; 2],
        residuals: &mut [&mut [f32]],
        thread: &mut Thread,
    ) {
        let (layout, d_out) = (context.layout, context.layout.d_out());
        for sums in [&mut self.sum, &mut self.sum_residual, &mut self.sum_levels] {
            sums.clear();
            sums.resize(d_out, 0.0);
        }
        for squares in [&mut self.sum_square, &mut self.sum_square_error] {
            squares.clear();
            squares.resize(layout.outputs.len(), 0.0);
        }
        self.d_act.resize(self.kept.rows.n_entries(), 0.0);
        self.d_gate.resize(if context.gates { self.d_act.len() } else { 0 }, 0.0);
        let Some((whole, smaller)) = residuals.split_last_mut() else { return };
        self.begin(context, inputs, y, whole, &mut thread.through);
        if self.is_dense(context) && smaller.is_empty() {
            self.reconstruct_densely(&context.weights.groups[0].decoder, whole, context.gates, thread);
        } else {
            self.reconstruct_row_by_row(context, whole, smaller, thread);
        }
        for row in whole.chunks_exact(d_out) {
            for (site, square) in layout.outputs.iter().zip(&mut self.sum_square_error) {
                *square += moments(&row[site.clone()], &mut self.sum_residual[site.clone()]);
            }
        }
        self.sum_square_levels += self.sum_square_error.iter().sum::<f64>();
        if smaller.is_empty() {
            self.sum_levels.copy_from_slice(&self.sum_residual);
        } else {
            for row in smaller[0].chunks_exact(d_out) {
                moments(row, &mut self.sum_levels);
            }
        }
    }

    /// What would be missing if nothing fired: `b_dec + skip − y`.
    fn begin(&mut self, context: &Context<'_>, inputs: &[f32], y: &[f32], whole: &mut [f32], through: &mut Matrix) {
        let (layout, weights) = (context.layout, context.weights);
        let d_out = layout.d_out();
        for (y, row) in y.chunks_exact(d_out).zip(whole.chunks_exact_mut(d_out)) {
            let sites = layout.outputs.iter().zip(context.input.scales[1]).zip(&mut self.sum_square);
            for ((site, &scale), square) in sites {
                let row = &mut row[site.clone()];
                for (out, &y) in row.iter_mut().zip(&y[site.clone()]) {
                    *out = scale * y;
                }
                *square += moments(row, &mut self.sum[site.clone()]);
            }
            for (out, bias) in row.iter_mut().zip(&weights.b_dec) {
                *out = bias - *out;
            }
        }
        let n = whole.len() / d_out;
        for ([reads, writes], skip) in layout.skips.iter().zip(&weights.skips) {
            through.resize_rows(n * writes.len());
            let through = through.as_mut_slice();
            let left = (inputs, layout.d_in(), reads.clone());
            matmul_between(left, skip.as_slice(), Right::Transposed, (&mut *through, writes.len(), 0..writes.len()));
            for (through, row) in through.chunks_exact(writes.len()).zip(whole.chunks_exact_mut(d_out)) {
                add(through, &mut row[writes.clone()]);
            }
        }
    }

    /// Whether so much fires that dense products are faster.
    fn is_dense(&self, context: &Context<'_>) -> bool {
        let all = self.kept.rows.n_rows() * context.layout.d_sae();
        context.weights.groups.len() == 1 && self.kept.rows.n_entries() as f64 > DENSE * all as f64
    }

    fn reconstruct_row_by_row(
        &mut self,
        context: &Context<'_>,
        whole: &mut [f32],
        smaller: &mut [&mut [f32]],
        thread: &mut Thread,
    ) {
        let (weights, d_out) = (context.weights, context.layout.d_out());
        let Thread { rows: of_group, gate, .. } = thread;
        let mut entry = 0;
        for (i, row) in whole.chunks_exact_mut(d_out).enumerate() {
            let (latents, acts) = self.kept.rows.row(i);
            let entries = entry..entry + latents.len();
            entry = entries.end;
            if context.gates {
                gate.copy_from_slice(row);
                weights.decode(latents, &self.kept.pre_acts()[entries.clone()], of_group, gate);
                self.sum_square_gates += f64::from(dot(gate, gate));
                weights.along(gate, latents, of_group, &mut self.d_gate[entries.clone()]);
            }
            let d_act = &mut self.d_act[entries];
            if smaller.is_empty() {
                weights.decode(latents, acts, of_group, row);
                weights.along(row, latents, of_group, d_act);
                continue;
            }
            let cuts = cuts(latents, context.input.levels);
            for (level, part) in cuts.iter().enumerate() {
                weights.decode(&latents[part.clone()], &acts[part.clone()], of_group, row);
                if let Some(level) = smaller.get_mut(level) {
                    level[i * d_out..][..d_out].copy_from_slice(row);
                    self.sum_square_levels += f64::from(dot(row, row));
                }
            }
            let Some((last, before)) = cuts.split_last() else { continue };
            weights.along(row, &latents[last.clone()], of_group, &mut d_act[last.clone()]);
            // What a level lacks and all later ones lack together: that is what its latents can change.
            let mut later: &[f32] = row;
            for (level, part) in smaller.iter_mut().zip(before).rev() {
                let level = &mut level[i * d_out..][..d_out];
                add(later, level);
                weights.along(level, &latents[part.clone()], of_group, &mut d_act[part.clone()]);
                later = level;
            }
        }
    }

    /// The same with products of matrices that hold a 0 for everything that does not fire.
    fn reconstruct_densely(&mut self, decoder: &Matrix, whole: &mut [f32], gates: bool, thread: &mut Thread) {
        let (d_sae, d_out) = (decoder.rows(), decoder.cols());
        let n = whole.len() / d_out;
        let acts = &mut thread.pre_acts.as_mut_slice()[..n * d_sae];
        thread.through.resize_rows(n * d_out);
        let through = thread.through.as_mut_slice();
        let scatter = |values: &[f32], acts: &mut [f32]| {
            acts.fill(0.0);
            let mut values = values.iter();
            for ((latents, _), row) in self.kept.rows.iter().zip(acts.chunks_exact_mut(d_sae)) {
                for (&latent, &value) in latents.iter().zip(&mut values) {
                    row[latent as usize] = value;
                }
            }
        };
        let gather = |acts: &[f32], out: &mut [f32]| {
            let mut out = out.iter_mut();
            for ((latents, _), row) in self.kept.rows.iter().zip(acts.chunks_exact(d_sae)) {
                for (&latent, out) in latents.iter().zip(&mut out) {
                    *out = row[latent as usize];
                }
            }
        };
        if gates {
            scatter(self.kept.pre_acts(), acts);
            matmul(acts, decoder.as_slice(), Right::Plain, through, [n, d_sae, d_out]);
            add(whole, through);
            self.sum_square_gates += through.chunks_exact(d_out).map(|row| f64::from(dot(row, row))).sum::<f64>();
            matmul(through, decoder.as_slice(), Right::Transposed, acts, [n, d_out, d_sae]);
            gather(acts, &mut self.d_gate);
        }
        scatter(self.kept.rows.values(), acts);
        matmul(acts, decoder.as_slice(), Right::Plain, through, [n, d_sae, d_out]);
        add(through, whole);
        matmul(whole, decoder.as_slice(), Right::Transposed, acts, [n, d_out, d_sae]);
        gather(acts, &mut self.d_act);
    }

    /// The gradients of every entry, and what the rows are charged.
    pub(super) fn differentiate(&mut self, rule: &dyn Rule, terms: &Terms<'_>, norms: bool) -> f64 {
        let n = self.kept.rows.n_entries();
        let own = rule.own() + usize::from(rule.has_gates());
        self.dz.resize(n, 0.0);
        self.own.resize_with(own, Vec::new);
        for own in &mut self.own {
            own.resize(n, 0.0);
        }
        self.d_norm.resize(if norms { n } else { 0 }, 0.0);
        let (mut first, mut charged) = (0, 0.0);
        for (latents, acts) in self.kept.rows.iter() {
            let entries = first..first + latents.len();
            let of_gates = if self.d_gate.is_empty() { &[] } else { &self.d_gate[entries.clone()] };
            let row = Row {
                latents,
                acts,
                pre_acts: &self.kept.pre_acts()[entries.clone()],
                d_act: &self.d_act[entries.clone()],
                d_gate: of_gates,
            };
            let d_norm = if norms { &mut self.d_norm[entries.clone()] } else { &mut [] };
            let mut out = Gradients { dz: &mut self.dz[entries.clone()], own: &mut self.own, d_norm, first };
            charged += rule.differentiate(terms, &row, &mut out);
            first = entries.end;
        }
        charged
    }

    /// `Ê − E = Ê + R` into `missing`, and the gradients of what fires.
    pub(super) fn reconstruct_aux(
        &mut self,
        weights: &Weights,
        residual: &[f32],
        missing: &mut [f32],
        dense: Option<DenseBlock<'_>>,
        of_group: &mut Vec<u32>,
    ) {
        let d_out = weights.b_dec.len();
        self.aux_dz.resize(self.aux.n_entries(), 0.0);
        if let Some(dense) = dense {
            dense.reconstruct(&self.aux, residual, missing, &mut self.aux_dz);
            self.sum_square_aux = missing.chunks_exact(d_out).map(|row| f64::from(dot(row, row))).sum();
            return;
        }
        let mut dz = &mut self.aux_dz[..];
        let rows = residual.chunks_exact(d_out).zip(missing.chunks_exact_mut(d_out));
        for ((latents, values), (residual, missing)) in self.aux.iter().zip(rows) {
            missing.copy_from_slice(residual);
            weights.decode(latents, values, of_group, missing);
            self.sum_square_aux += f64::from(dot(missing, missing));
            let (row, rest) = std::mem::take(&mut dz).split_at_mut(latents.len());
            weights.along(missing, latents, of_group, row);
            dz = rest;
        }
    }
}

/// Which of a row's latents belong to each level.
fn cuts(latents: &[u32], levels: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    let cut = |&end: &usize| {
        let end = start + latents[start..].partition_point(|&latent| (latent as usize) < end);
        let part = start..end;
        start = end;
        part
    };
    levels.iter().map(cut).collect()
}
