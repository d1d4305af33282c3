//! How are the few latents that fire kept, by token and by latent?

use crate::matrix::Matrix;

/// Feature activations by token: row `i` has the entries `offsets[i]..offsets[i + 1]`, by ascending latent, none of them 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SparseRows {
    offsets: Vec<usize>,
    latents: Vec<u32>,
    values: Vec<f32>,
}

impl SparseRows {
    /// No rows.
    pub fn new() -> Self {
        Self { offsets: vec![0], ..Self::default() }
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// The number of entries of all rows.
    pub fn n_entries(&self) -> usize {
        self.latents.len()
    }

    /// The latents of row `index` and their activations.
    pub fn row(&self, index: usize) -> (&[u32], &[f32]) {
        let range = self.offsets[index]..self.offsets[index + 1];
        (&self.latents[range.clone()], &self.values[range])
    }

    /// Every row in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u32], &[f32])> {
        (0..self.n_rows()).map(|index| self.row(index))
    }

    /// Row `row` as a dense vector of `d_sae` values.
    pub fn dense_row(&self, row: usize, d_sae: usize) -> Vec<f32> {
        let mut dense = vec![0.0; d_sae];
        let (latents, values) = self.row(row);
        for (&latent, &value) in latents.iter().zip(values) {
            dense[latent as usize] = value;
        }
        dense
    }

    /// Removes all rows and keeps the memory.
    pub fn clear(&mut self) {
        self.offsets.clear();
        self.offsets.push(0);
        self.latents.clear();
        self.values.clear();
    }

    /// Appends the rows of `other`.
    pub fn append(&mut self, other: &Self) {
        let base = self.n_entries();
        self.latents.extend_from_slice(&other.latents);
        self.values.extend_from_slice(&other.values);
        self.offsets.extend(other.offsets.iter().skip(1).map(|offset| base + offset));
    }

    /// Appends a row with these `(activation, latent)`.
    pub(crate) fn push_row(&mut self, entries: impl Iterator<Item = (f32, u32)>) {
        for (value, latent) in entries {
            self.latents.push(latent);
            self.values.push(value);
        }
        self.offsets.push(self.latents.len());
    }

    pub(crate) fn latents(&self) -> &[u32] {
        &self.latents
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// Keeps the entries for which `keep(row, latent, value)` says so.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(usize, u32, f32) -> bool) {
        let mut kept = 0;
        let mut start = 0;
        for row in 0..self.n_rows() {
            let end = self.offsets[row + 1];
            for entry in start..end {
                let (latent, value) = (self.latents[entry], self.values[entry]);
                if keep(row, latent, value) {
                    self.latents[kept] = latent;
                    self.values[kept] = value;
                    kept += 1;
                }
            }
            start = end;
            self.offsets[row + 1] = kept;
        }
        self.latents.truncate(kept);
        self.values.truncate(kept);
    }
}

/// The entries of a batch by latent: latent `j` has `starts[j]..starts[j + 1]`, in the order of the batch's rows.
#[derive(Debug, Default)]
pub(crate) struct ByLatent {
    starts: Vec<usize>,
    rows: Vec<u32>,
    values: Vec<f32>,
    gradients: Vec<f32>,
}

impl ByLatent {
    /// Regroups the entries of consecutive blocks of rows. Beside each block are the gradients of its pre-activations, entry by
    /// entry. Activations and gradients are multiplied by `factors`.
    pub(crate) fn fill<'a>(
        &mut self,
        d_sae: usize,
        [factor, of_gradients]: [f32; 2],
        blocks: impl Iterator<Item = (&'a SparseRows, &'a [f32])> + Clone,
    ) {
        self.starts.clear();
        self.starts.resize(d_sae + 1, 0);
        for (block, _) in blocks.clone() {
            for &latent in block.latents() {
                self.starts[latent as usize + 1] += 1;
            }
        }
        for latent in 0..d_sae {
            self.starts[latent + 1] += self.starts[latent];
        }
        let n = self.starts[d_sae];
        self.rows.resize(n, 0);
        self.values.resize(n, 0.0);
        self.gradients.resize(n, 0.0);
        let mut first_row = 0;
        for (block, gradients) in blocks {
            for row in 0..block.n_rows() {
                let (latents, values) = block.row(row);
                let gradients = &gradients[block.offsets[row]..];
                for ((&latent, value), gradient) in latents.iter().zip(values).zip(gradients) {
                    let slot = &mut self.starts[latent as usize];
                    self.rows[*slot] = first_row + row as u32;
                    self.values[*slot] = factor * value;
                    self.gradients[*slot] = of_gradients * gradient;
                    *slot += 1;
                }
            }
            first_row += block.n_rows() as u32;
        }
        // Each start has moved to the start of the next latent.
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }

    /// The rows where latent `index` fired, its activations there, and the gradients of its pre-activations, both times the factor.
    pub(crate) fn latent(&self, index: usize) -> (&[u32], &[f32], &[f32]) {
        if self.starts.is_empty() {
            return (&[], &[], &[]);
        }
        let range = self.starts[index]..self.starts[index + 1];
        (&self.rows[range.clone()], &self.values[range.clone()], &self.gradients[range])
    }

    /// Writes the activations and the gradients of some latents into memory for `[n_rows, latents]` (matrices of one column),
    /// with 0 where there is no entry.
    pub(crate) fn scatter(
        &self,
        latents: std::ops::Range<usize>,
        n_rows: usize,
        values: &mut Matrix,
        gradients: &mut Matrix,
    ) {
        for out in [&mut *values, &mut *gradients] {
            out.resize_rows(n_rows * latents.len());
        }
        let (values, gradients) = (values.as_mut_slice(), gradients.as_mut_slice());
        values.fill(0.0);
        gradients.fill(0.0);
        let width = latents.len();
        for (column, latent) in latents.enumerate() {
            let (rows, of_rows, their_gradients) = self.latent(latent);
            for ((&row, value), gradient) in rows.iter().zip(of_rows).zip(their_gradients) {
                let at = row as usize * width + column;
                values[at] = *value;
                gradients[at] = *gradient;
            }
        }
    }

    /// Forgets all entries.
    pub(crate) fn clear(&mut self) {
        self.starts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(entries: &[&[(f32, u32)]]) -> SparseRows {
        let mut rows = SparseRows::new();
        for row in entries {
            rows.push_row(row.iter().copied());
        }
        rows
    }

    #[test]
    fn regrouping_keeps_every_entry_in_order() {
        let a = rows(&[&[(1.0, 2), (2.0, 3)], &[], &[(3.0, 2)]]);
        let b = rows(&[&[(4.0, 0), (5.0, 2)]]);
        let mut by_latent = ByLatent::default();
        let (ga, gb) = ([0.1, 0.2, 0.3], [0.4, 0.5]);
        by_latent.fill(5, [1.0, 1.0], [(&a, &ga[..]), (&b, &gb[..])].into_iter());
        assert_eq!(by_latent.latent(0), (&[3][..], &[4.0][..], &[0.4][..]));
        assert_eq!(by_latent.latent(1).0.len(), 0);
        assert_eq!(by_latent.latent(2), (&[0, 2, 3][..], &[1.0, 3.0, 5.0][..], &[0.1, 0.3, 0.5][..]));
        assert_eq!(by_latent.latent(4).0.len(), 0);
        let (mut values, mut gradients) = (Matrix::from_slice(3, 1, &[9.0; 3]), Matrix::zeros(0, 1));
        by_latent.scatter(2..4, 4, &mut values, &mut gradients);
        assert_eq!(values.as_slice(), [1.0, 2.0, 0.0, 0.0, 3.0, 0.0, 5.0, 0.0]);
        assert_eq!(gradients.as_slice()[..2], [0.1, 0.2]);
    }

    #[test]
    fn retain_and_append() {
        let mut a = rows(&[&[(1.0, 2), (2.0, 3)], &[], &[(3.0, 2)]]);
        a.retain(|_, latent, _| latent == 2);
        a.append(&rows(&[&[(9.0, 1)]]));
        assert_eq!(a.n_rows(), 4);
        assert_eq!(a.row(0), (&[2][..], &[1.0][..]));
        assert_eq!(a.row(1), (&[][..], &[][..]));
        assert_eq!(a.row(3), (&[1][..], &[9.0][..]));
        assert_eq!(a.dense_row(2, 4), [0.0, 0.0, 3.0, 0.0]);
    }
}
