//! Which columns of its rows does each latent read and write?
//!
//! A row holds every site that is read, end to end, and another every site that is written. An autoencoder has one group of
//! latents that reads and writes all of one site, a transcoder one that writes another site, a crosscoder one that reads and
//! writes all sites. Of a cross-layer transcoder each layer has a group, which reads its site and writes that of its own and of
//! every later layer; a causal crosscoder is the same, on one list of sites.

use std::ops::Range;

/// The columns of sites, and of groups of latents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The columns of each site in a row that is read.
    pub(crate) inputs: Vec<Range<usize>>,
    /// … and in a row that is written.
    pub(crate) outputs: Vec<Range<usize>>,
    /// Latents of a group follow those of the one before.
    pub(crate) groups: Vec<GroupLayout>,
    /// Columns that reach others beside the latents: read, written.
    pub(crate) skips: Vec<[Range<usize>; 2]>,
    /// Whether what is written is what is read, and `b_dec` is subtracted before it is encoded.
    pub(crate) is_autoencoder: bool,
    /// Whether what is written is what is read: then latents begin by reading what they write.
    pub(crate) tied: bool,
}

/// Latents that read and write the same columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupLayout {
    /// Their numbers in the coder.
    pub(crate) latents: Range<usize>,
    pub(crate) reads: Range<usize>,
    pub(crate) writes: Range<usize>,
}

impl Layout {
    /// Of an autoencoder of rows of `width` values.
    pub(crate) fn autoencoder(width: usize, d_sae: usize) -> Self {
        Self { is_autoencoder: true, tied: true, ..Self::transcoder([width; 2], d_sae, false) }
    }

    /// Of a transcoder.
    pub(crate) fn transcoder([d_in, d_out]: [usize; 2], d_sae: usize, skip: bool) -> Self {
        Self::all_to_all(&[d_in], &[d_out], d_sae, skip)
    }

    /// Of a crosscoder of sites of these widths: latents read all of them, or one and none of an earlier one.
    pub(crate) fn crosscoder(sites: &[usize], d_sae: usize, causal: bool) -> Self {
        let layout = if causal { Self::causal } else { Self::all_to_all };
        Self { tied: true, ..layout(sites, sites, d_sae, false) }
    }

    /// Every latent reads all sites and writes all sites.
    pub(crate) fn all_to_all(inputs: &[usize], outputs: &[usize], d_sae: usize, skip: bool) -> Self {
        let (inputs, outputs) = (columns(inputs), columns(outputs));
        let [reads, writes] = [end(&inputs), end(&outputs)].map(|end| 0..end);
        let skips = if skip { vec![[reads.clone(), writes.clone()]] } else { Vec::new() };
        let groups = vec![GroupLayout { latents: 0..d_sae, reads, writes }];
        Self { inputs, outputs, groups, skips, is_autoencoder: false, tied: false }
    }

    /// Group after group reads one site, and writes the site of the same place and every later one. Latents are shared out
    /// evenly, the first groups having one more where that does not come out.
    pub(crate) fn causal(inputs: &[usize], outputs: &[usize], d_sae: usize, skip: bool) -> Self {
        let (inputs, outputs) = (columns(inputs), columns(outputs));
        let n = inputs.len().max(1);
        let all = end(&outputs);
        let mut first = 0;
        let groups = inputs.iter().zip(&outputs).enumerate().map(|(i, (reads, writes))| {
            let latents = first..first + d_sae / n + usize::from(i < d_sae % n);
            first = latents.end;
            GroupLayout { latents, reads: reads.clone(), writes: writes.start..all }
        });
        let groups = groups.collect();
        let pairs = inputs.iter().zip(&outputs).map(|(reads, writes)| [reads.clone(), writes.clone()]);
        let skips = if skip { pairs.collect() } else { Vec::new() };
        Self { inputs, outputs, groups, skips, is_autoencoder: false, tied: false }
    }

    /// Values in a row that is read.
    pub(crate) fn d_in(&self) -> usize {
        end(&self.inputs)
    }

    /// Values in a row that is written.
    pub(crate) fn d_out(&self) -> usize {
        end(&self.outputs)
    }

    /// The number of latents.
    pub(crate) fn d_sae(&self) -> usize {
        self.groups.last().map_or(0, |group| group.latents.end)
    }
}

/// Ranges of these lengths, one behind the other.
fn columns(widths: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    let next = |&width: &usize| {
        start += width;
        start - width..start
    };
    widths.iter().map(next).collect()
}

fn end(columns: &[Range<usize>]) -> usize {
    columns.last().map_or(0, |range| range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_causal_group_writes_its_own_and_later_sites() {
        let layout = Layout::causal(&[4, 4, 4], &[5, 5, 5], 8, true);
        assert_eq!((layout.d_in(), layout.d_out(), layout.d_sae()), (12, 15, 8));
        let groups: Vec<_> =
            layout.groups.iter().map(|g| (g.latents.clone(), g.reads.clone(), g.writes.clone())).collect();
        assert_eq!(groups, [(0..3, 0..4, 0..15), (3..6, 4..8, 5..15), (6..8, 8..12, 10..15)]);
        assert_eq!(layout.skips[1], [4..8, 5..10]);
        let dense = Layout::all_to_all(&[4, 4], &[4, 4], 8, false);
        assert_eq!(
            (dense.groups.len(), dense.groups[0].reads.clone(), dense.groups[0].writes.clone()),
            (1, 0..8, 0..8)
        );
    }
}
