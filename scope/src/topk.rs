//! Which latents does TopK keep? (Gao et al., arXiv 2406.04093)

use std::ops::Range;

use crate::{
    kernels::{by_value, scan_above},
    rule::{Gradients, Kept, Rounded, Row, Rule, SelectScratch, Terms},
    sparse::SparseRows,
    step::Weights,
};

/// Keeps the `k` largest positive pre-activations of each row: ReLU, then the k largest, as in OpenAI's code, sparsify and
/// SAELens. Of equal values the lower latent is kept; NaN is never kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct TopK {
    k: usize,
    found: Vec<(f32, u32)>,
    /// Whether values are ranked by their distance from 0; then they are copied here without their signs.
    signed: bool,
    magnitudes: Vec<f32>,
}

impl TopK {
    pub(crate) fn new(k: usize) -> Self {
        Self { k, found: Vec::new(), signed: false, magnitudes: Vec::new() }
    }

    /// Keeps the `k` values that are farthest from 0, with their signs (AbsTopK, arXiv 2510.00404).
    pub(crate) fn signed(k: usize) -> Self {
        Self { signed: true, ..Self::new(k) }
    }

    /// The same that keeps another number of values from now on.
    pub(crate) fn with(&mut self, k: usize) -> &mut Self {
        self.k = k;
        self
    }

    /// Appends the row of the entries that are kept of `pre_acts` (`[d_sae]`), by ascending latent.
    pub(crate) fn select(&mut self, pre_acts: &[f32], out: &mut SparseRows) {
        self.find(pre_acts);
        out.push_row(self.found.iter().copied());
    }

    /// The same among `latents` alone (ascending), of which `pre_acts` has the values in that order.
    pub(crate) fn select_among(&mut self, latents: &[u32], pre_acts: &[f32], out: &mut SparseRows) {
        out.push_row(self.among(latents, pre_acts));
    }

    /// As [`TopK::select_among`], to the end of `out`.
    pub(crate) fn append_among(&mut self, latents: &[u32], pre_acts: &[f32], out: &mut Vec<(f32, u32)>) {
        out.extend(self.among(latents, pre_acts));
    }

    fn among(&mut self, latents: &[u32], pre_acts: &[f32]) -> impl Iterator<Item = (f32, u32)> {
        self.find(pre_acts);
        self.found.iter().map(|&(value, index)| (value, latents[index as usize]))
    }

    fn find(&mut self, values: &[f32]) {
        if !self.signed {
            return self.find_largest(values);
        }
        let mut magnitudes = std::mem::take(&mut self.magnitudes);
        magnitudes.clear();
        magnitudes.extend(values.iter().map(|value| value.abs()));
        self.find_largest(&magnitudes);
        for (value, index) in &mut self.found {
            *value = values[*index as usize];
        }
        self.magnitudes = magnitudes;
    }

    fn find_largest(&mut self, values: &[f32]) {
        /// How many times `k` candidates are gathered before the floor is raised to the k-th of them.
        const SLACK: usize = 4;
        let limit = self.k.saturating_mul(SLACK).max(64);
        self.found.clear();
        let (mut at, mut floor) = (0, 0.0);
        loop {
            // A later value equal to the floor is rightly passed over: its latent is higher.
            at = scan_above(values, at, floor, limit, &mut self.found);
            if self.found.len() > self.k {
                if self.k > 0 {
                    self.found.select_nth_unstable_by(self.k - 1, by_value);
                    floor = self.found[self.k - 1].0;
                }
                self.found.truncate(self.k);
            }
            if at == values.len() || self.k == 0 {
                break;
            }
        }
        self.found.sort_unstable_by_key(|&(_, latent)| latent);
    }
}

/// The rule of `topk` coders: the `k` largest of each row, of all latents or of each group.
pub(crate) struct TopKRule {
    k: usize,
    scopes: Vec<Range<usize>>,
}

impl TopKRule {
    pub(crate) fn new(k: usize, scopes: Vec<Range<usize>>) -> Self {
        Self { k, scopes }
    }
}

impl Rule for TopKRule {
    fn select(&self, pre_acts: &[f32], _weights: &Weights, scratch: &mut SelectScratch, out: &mut Kept) {
        let SelectScratch { found, top_k } = scratch;
        let top_k = top_k.with(self.k);
        found.clear();
        for scope in &self.scopes {
            top_k.find(&pre_acts[scope.clone()]);
            found.extend(top_k.found.iter().map(|&(value, latent)| (value, latent + scope.start as u32)));
        }
        out.rows.push_row(found.iter().copied());
    }

    /// What may be as large as the last of those that are the largest in bf16.
    fn candidates(&self, row: &Rounded<'_>, _weights: &Weights, scratch: &mut SelectScratch) {
        let SelectScratch { found, top_k } = scratch;
        let top_k = top_k.with(self.k);
        found.clear();
        for scope in &self.scopes {
            top_k.find(&row.pre_acts[scope.clone()]);
            let last = top_k.found.iter().map(|&(value, _)| value).reduce(f32::min);
            let last = last.filter(|_| top_k.found.len() == self.k).unwrap_or(0.0);
            row.append_above(scope, (last - row.error * row.largest_norm).max(0.0), found);
        }
    }

    fn differentiate(&self, terms: &Terms<'_>, row: &Row<'_>, out: &mut Gradients<'_>) -> f64 {
        through(terms, row, out)
    }
}

/// The gradients where nothing is charged: what fires is changed as the reconstruction wants it.
pub(crate) fn through(terms: &Terms<'_>, row: &Row<'_>, out: &mut Gradients<'_>) -> f64 {
    let factor = terms.factor as f32;
    for (dz, d_act) in out.dz.iter_mut().zip(row.d_act) {
        *dz = factor * d_act;
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(k: usize, row: &[f32], expected: &[(u32, f32)]) {
        let mut out = SparseRows::new();
        TopK::new(k).select(row, &mut out);
        let (latents, values) = out.row(0);
        let found: Vec<_> = latents.iter().copied().zip(values.iter().copied()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn keeps_the_largest() {
        check(2, &[0.5, -3.0, 2.0, 1.0], &[(2, 2.0), (3, 1.0)]);
    }

    #[test]
    fn keeps_only_positive_ones() {
        check(3, &[0.5, -3.0, 0.0, -0.0], &[(0, 0.5)]);
        check(3, &[-1.0, -2.0], &[]);
    }

    #[test]
    fn of_equal_values_the_lower_latent_wins() {
        check(2, &[1.0, 1.0, 1.0, 1.0], &[(0, 1.0), (1, 1.0)]);
        check(2, &[1.0, 2.0, 1.0, 1.0], &[(0, 1.0), (1, 2.0)]);
    }

    #[test]
    fn nan_is_never_kept() {
        check(2, &[f32::NAN, 1.0, f32::NAN, 0.5, 0.25], &[(1, 1.0), (3, 0.5)]);
    }

    #[test]
    fn zero_keeps_nothing() {
        check(0, &[1.0; 100], &[]);
    }

    #[test]
    fn long_rows_equal_sorting() {
        for (k, spread) in [(1, 7919), (3, 7919), (32, 7919), (32, 5), (999, 7919)] {
            let row: Vec<f32> = (0..1000).map(|i: usize| ((i * 7907 + 13) % spread) as f32 - 2.0).collect();
            let mut sorted: Vec<(f32, u32)> = row.iter().copied().zip(0..).collect();
            sorted.sort_by(by_value);
            let mut expected: Vec<_> = sorted
                .into_iter()
                .filter(|&(value, _)| value > 0.0)
                .take(k)
                .map(|(value, latent)| (latent, value))
                .collect();
            expected.sort_unstable_by_key(|&(latent, _)| latent);
            check(k, &row, &expected);
        }
    }

    #[test]
    fn the_farthest_from_zero_keep_their_signs() {
        let mut out = SparseRows::new();
        let mut top = TopK::signed(2);
        top.select(&[0.5, -3.0, 2.0, f32::NAN, -0.0], &mut out);
        top.select_among(&[3, 8, 9], &[0.1, -0.3, 0.2], &mut out);
        assert_eq!(out.row(0), (&[1, 2][..], &[-3.0, 2.0][..]));
        assert_eq!(out.row(1), (&[8, 9][..], &[-0.3, 0.2][..]));
    }

    #[test]
    fn among_some_latents() {
        let mut out = SparseRows::new();
        TopK::new(1).select_among(&[3, 8, 9], &[0.1, 0.3, 0.2], &mut out);
        assert_eq!(out.row(0), (&[8][..], &[0.3][..]));
    }
}
