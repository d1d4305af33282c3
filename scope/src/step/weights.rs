//! What is learned, and how does it lie in memory?

use std::ops::Range;

use crate::{
    kernels::{dots, weighted_sum},
    layout::{GroupLayout, Layout},
    matrix::Matrix,
};

/// The weights of a coder in training, f32. Gradients and Adam's moments lie in memory as they do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weights {
    pub(crate) groups: Vec<Group>,
    /// `[d_out]`.
    pub(crate) b_dec: Vec<f32>,
    /// Each `[written columns, read columns]`, in the order of [`Layout::skips`].
    pub(crate) skips: Vec<Matrix>,
}

/// The weights of latents that read and write the same columns. A latent is a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// `[latents, read columns]`.
    pub(crate) encoder: Matrix,
    /// `[latents, written columns]`.
    pub(crate) decoder: Matrix,
    /// `[latents]`.
    pub(crate) b_enc: Vec<f32>,
    /// What else the architecture learns of each latent, `[latents]` each: thresholds, or the magnitudes of a gated coder.
    pub(crate) own: Vec<Vec<f32>>,
    pub(crate) layout: GroupLayout,
}

impl Weights {
    /// All zero: gradients or moments before the first step. `own` is how many numbers more the architecture has for a latent.
    pub(crate) fn zeros(layout: &Layout, own: usize) -> Self {
        let group = |group: &GroupLayout| {
            let n = group.latents.len();
            Group {
                encoder: Matrix::zeros(n, group.reads.len()),
                decoder: Matrix::zeros(n, group.writes.len()),
                b_enc: vec![0.0; n],
                own: vec![vec![0.0; n]; own],
                layout: group.clone(),
            }
        };
        Self {
            groups: layout.groups.iter().map(group).collect(),
            b_dec: vec![0.0; layout.d_out()],
            skips: layout.skips.iter().map(|[reads, writes]| Matrix::zeros(writes.len(), reads.len())).collect(),
        }
    }

    pub(crate) fn d_sae(&self) -> usize {
        self.groups.last().map_or(0, |group| group.layout.latents.end)
    }

    /// Where a latent's weights are: its group, and its row there.
    pub(crate) fn find(&self, latent: usize) -> (&Group, usize) {
        let at = self.groups.partition_point(|group| group.layout.latents.end <= latent);
        (&self.groups[at], latent - self.groups[at].layout.latents.start)
    }

    /// `out += Σ values · decoder rows` of latents in ascending order; `out` is a row of all written columns.
    pub(crate) fn decode(&self, latents: &[u32], values: &[f32], rows: &mut Vec<u32>, out: &mut [f32]) {
        for (group, entries) in self.by_group(latents) {
            let rows = group.rows(&latents[entries.clone()], rows);
            weighted_sum(rows, &values[entries], group.decoder.as_slice(), &mut out[group.layout.writes.clone()]);
        }
    }

    /// `out[i] = x · decoder row of latents[i]`; `x` is a row of all written columns.
    pub(crate) fn along(&self, x: &[f32], latents: &[u32], rows: &mut Vec<u32>, out: &mut [f32]) {
        for (group, entries) in self.by_group(latents) {
            let rows = group.rows(&latents[entries.clone()], rows);
            dots(&x[group.layout.writes.clone()], rows, group.decoder.as_slice(), &mut out[entries]);
        }
    }

    /// The groups with the entries that are theirs, of latents in ascending order.
    fn by_group<'a>(&'a self, latents: &'a [u32]) -> impl Iterator<Item = (&'a Group, Range<usize>)> {
        let mut start = 0;
        self.groups.iter().map(move |group| {
            let end = start + latents[start..].partition_point(|&latent| (latent as usize) < group.layout.latents.end);
            let entries = start..end;
            start = end;
            (group, entries)
        })
    }
}

impl Group {
    /// The rows of latents; in the first group they are the latents themselves.
    fn rows<'a>(&self, latents: &'a [u32], rows: &'a mut Vec<u32>) -> &'a [u32] {
        let first = self.layout.latents.start as u32;
        if first == 0 {
            return latents;
        }
        rows.clear();
        rows.extend(latents.iter().map(|latent| latent - first));
        rows
    }
}
