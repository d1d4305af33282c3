//! What is a coder between several sites? (Lindsey et al., "Sparse Crosscoders", 2024; Ameisen et al., "Circuit Tracing", 2025;
//! Gemma Scope 2.)
//!
//! Latents come in groups. A latent of a group reads some sites, and writes some: `f = σ(Σ_l x_l·w_enc_l + b_enc)`,
//! `ŷ_l = Σ f·w_dec_l + b_dec_l + x_l·w_skip_lᵀ`, where the second sum is over the latents that write site `l`.
//! - A *crosscoder* has one group that reads every site and writes every site.
//! - A *causal crosscoder* (Gemma Scope 2 calls its own weakly causal) has one for each site, which reads that one alone and
//!   writes it and every later one.
//! - A *cross-layer transcoder* (CLT) is the same between two lists of sites, as a rule the inputs and the outputs of all MLPs.

use std::{borrow::Cow, ops::Range, path::Path};

use crate::{
    activation::{Activation, Select},
    error::Result,
    kernels::{add, scale, weighted_sum},
    matrix::{Matrix, Right, matmul_between, matmul_by_columns},
    pretrained::crosscoder,
    sae::{BAND, BLOCK_ROWS, Scratch, SparseCoder, divide},
    sparse::SparseRows,
};

/// One of the places that a coder reads or writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// The name of its hook point, if that is known.
    pub hook_name: Option<String>,
    /// Values in one of its rows.
    pub width: usize,
}

/// Latents that read and write the same sites.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatentGroup {
    /// `[columns of the sites that are read, latents]`.
    pub w_enc: Matrix,
    /// `[latents, columns]`, of which the last ones are those of the sites that are written: Gemma Scope 2 keeps room for
    /// earlier ones too.
    pub w_dec: Matrix,
    /// Which of [`Crosscoder::inputs`].
    pub reads: Range<usize>,
    /// Which of [`Crosscoder::outputs`]: up to the last.
    pub writes: Range<usize>,
}

impl LatentGroup {
    /// The number of latents.
    pub fn n_latents(&self) -> usize {
        self.w_dec.rows()
    }
}

/// A coder between several sites. Rows that it reads have all of [`Crosscoder::inputs`] end to end, rows that it writes all of
/// [`Crosscoder::outputs`].
///
/// Weights may be mapped files, as those of [`crate::Sae`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Crosscoder {
    /// What it reads.
    pub inputs: Vec<Site>,
    /// What it writes.
    pub outputs: Vec<Site>,
    /// Latents are numbered through all groups.
    pub groups: Vec<LatentGroup>,
    /// `[d_sae]`.
    pub b_enc: Vec<f32>,
    /// `[d_out]`.
    pub b_dec: Vec<f32>,
    /// `[width written, width read]` of each pair of sites, or none: what reaches an output beside the latents.
    pub w_skip: Vec<Matrix>,
    /// Which latents fire.
    pub activation: Activation,
    /// Whether latents are chosen among those of their group alone, where only some may fire.
    pub per_group: bool,
    /// What is known about its making.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// Where each site's columns are.
fn columns(sites: &[Site]) -> Vec<Range<usize>> {
    let mut end = 0;
    let next = |site: &Site| {
        end += site.width;
        end - site.width..end
    };
    sites.iter().map(next).collect()
}

/// From the first column of the first site to the last one of the last.
fn span(columns: &[Range<usize>], sites: &Range<usize>) -> Range<usize> {
    match columns.get(sites.clone()) {
        Some([first, .., last]) => first.start..last.end,
        Some([one]) => one.clone(),
        _ => 0..0,
    }
}

impl Crosscoder {
    /// Opens a folder that [`Crosscoder::save`] wrote.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        crosscoder::load(dir.as_ref())
    }

    /// Writes `W_enc_N.safetensors` and `W_dec_N.safetensors` of each group, as circuit-tracer has them, and `cfg.json`, with
    /// which the folder is complete.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        crosscoder::save(self, dir.as_ref())
    }

    /// `crosscoder`, `causal_crosscoder` or `cross_layer_transcoder`.
    pub fn architecture(&self) -> &'static str {
        match (self.is_causal(), self.inputs == self.outputs) {
            (false, _) => "crosscoder",
            (true, true) => "causal_crosscoder",
            (true, false) => "cross_layer_transcoder",
        }
    }

    /// Whether no latent writes a site from one that comes later.
    pub fn is_causal(&self) -> bool {
        self.groups.iter().all(|group| group.reads.end <= group.writes.start + 1)
    }

    /// The latents of each group.
    pub fn latents(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let next = |group: &LatentGroup| {
            end += group.n_latents();
            end - group.n_latents()..end
        };
        self.groups.iter().map(next).collect()
    }

    /// Makes a coder that reads and reconstructs sites times these factors one for the sites themselves.
    pub(crate) fn fold_scales(&mut self, inputs: &[f32], outputs: &[f32]) {
        let [reads, writes] = [columns(&self.inputs), columns(&self.outputs)];
        for group in &mut self.groups {
            let first = span(&reads, &group.reads).start;
            for (site, &factor) in reads[group.reads.clone()].iter().zip(&inputs[group.reads.clone()]) {
                for row in site.clone() {
                    scale(group.w_enc.row_mut(row - first), factor);
                }
            }
            let skipped = group.w_dec.cols() - span(&writes, &group.writes).len();
            let first = span(&writes, &group.writes).start;
            for latent in 0..group.w_dec.rows() {
                let row = &mut group.w_dec.row_mut(latent)[skipped..];
                for (site, &factor) in writes[group.writes.clone()].iter().zip(&outputs[group.writes.clone()]) {
                    divide(&mut row[site.start - first..site.end - first], factor);
                }
            }
        }
        for (site, &factor) in writes.iter().zip(outputs) {
            divide(&mut self.b_dec[site.clone()], factor);
        }
        for (skip, (input, output)) in self.w_skip.iter_mut().zip(inputs.iter().zip(outputs)) {
            scale(skip.as_mut_slice(), input / output);
        }
    }

    /// The bands in which latents are encoded: the group, and latents counted in it.
    fn bands(&self) -> Vec<(usize, Range<usize>)> {
        let of_group = |(at, group): (usize, &LatentGroup)| {
            let n = group.n_latents();
            (0..n).step_by(BAND).map(move |first| (at, first..(first + BAND).min(n)))
        };
        self.groups.iter().enumerate().flat_map(of_group).collect()
    }
}

impl SparseCoder for Crosscoder {
    fn d_in(&self) -> usize {
        self.inputs.iter().map(|site| site.width).sum()
    }

    fn d_out(&self) -> usize {
        self.outputs.iter().map(|site| site.width).sum()
    }

    fn d_sae(&self) -> usize {
        self.groups.iter().map(LatentGroup::n_latents).sum()
    }

    fn encode(&self, rows: &[f32], scratch: &mut Scratch, out: &mut SparseRows) {
        let (d_in, latents, reads) = (self.d_in(), self.latents(), columns(&self.inputs));
        assert_eq!(rows.len() % d_in, 0, "rows are d_in values each");
        let bands = self.bands();
        scratch.make_room(bands.len(), bands.iter().map(|(_, band)| band.len()).max().unwrap_or(0));
        let together: Vec<Range<usize>> = if self.per_group {
            let of = |at: usize| {
                bands.partition_point(|(group, _)| *group < at)..bands.partition_point(|(group, _)| *group <= at)
            };
            (0..self.groups.len()).map(of).collect()
        } else {
            std::iter::once(0..bands.len()).collect()
        };
        let mut select = Select::new(&self.activation, &self.b_enc);
        for block in rows.chunks(BLOCK_ROWS * d_in) {
            let n = block.len() / d_in;
            let mut read: Option<&Range<usize>> = None;
            for ((group, band), (first, found)) in bands.iter().zip(&mut scratch.bands) {
                let LatentGroup { w_enc, reads: sites, .. } = &self.groups[*group];
                let from = span(&reads, sites);
                // Groups that read the same follow each other.
                if read != Some(sites) {
                    if scratch.centered.cols() != from.len() {
                        scratch.centered = Matrix::zeros(BLOCK_ROWS, from.len());
                    }
                    for (row, x) in block.chunks_exact(d_in).enumerate() {
                        scratch.centered.row_mut(row).copy_from_slice(&x[from.clone()]);
                    }
                    read = Some(sites);
                }
                let global = latents[*group].start + band.start..latents[*group].start + band.end;
                let x = &scratch.centered.as_slice()[..n * from.len()];
                let pre_acts = &mut scratch.pre_acts.as_mut_slice()[..n * band.len()];
                matmul_by_columns(x, w_enc.as_slice(), w_enc.cols(), band.clone(), pre_acts);
                *first = global.start;
                found.clear();
                for row in pre_acts.chunks_exact_mut(band.len()) {
                    add(&self.b_enc[global.clone()], row);
                    select.select(row, global.clone(), &mut scratch.found, found);
                }
            }
            select.merge(&scratch.bands, &together, n, out);
        }
    }

    fn decode(&self, acts: &SparseRows, rows: &[f32], out: &mut [f32]) {
        let (d_in, d_out) = (self.d_in(), self.d_out());
        assert_eq!(out.len(), acts.n_rows() * d_out, "one row of d_out values for each row");
        assert_eq!(rows.len(), acts.n_rows() * d_in, "the rows that were encoded");
        let (latents, writes) = (self.latents(), columns(&self.outputs));
        let mut of_group = Vec::new();
        for ((found, values), out) in acts.iter().zip(out.chunks_exact_mut(d_out)) {
            out.copy_from_slice(&self.b_dec);
            let mut start = 0;
            for (group, latents) in self.groups.iter().zip(&latents) {
                let end = start + found[start..].partition_point(|&latent| (latent as usize) < latents.end);
                of_group.clear();
                of_group.extend(found[start..end].iter().map(|latent| latent - latents.start as u32));
                let to = span(&writes, &group.writes);
                let skipped = group.w_dec.cols() - to.len();
                if skipped == 0 {
                    weighted_sum(&of_group, &values[start..end], group.w_dec.as_slice(), &mut out[to]);
                } else {
                    for (&latent, value) in of_group.iter().zip(&values[start..end]) {
                        let row = &group.w_dec.row(latent as usize)[skipped..];
                        weighted_sum(&[0], std::slice::from_ref(value), row, &mut out[to.clone()]);
                    }
                }
                start = end;
            }
        }
        let mut through = vec![0.0; if self.w_skip.is_empty() { 0 } else { out.len() }];
        for (skip, (from, to)) in self.w_skip.iter().zip(columns(&self.inputs).into_iter().zip(writes)) {
            matmul_between((rows, d_in, from), skip.as_slice(), Right::Transposed, (&mut through, d_out, to));
        }
        if !through.is_empty() {
            add(&through, out);
        }
    }

    fn decoder(&self) -> Option<&Matrix> {
        match &self.groups[..] {
            [group] if group.w_dec.cols() == self.d_out() => Some(&group.w_dec),
            _ => None,
        }
    }

    fn decoder_row(&self, latent: usize) -> Cow<'_, [f32]> {
        let (latents, writes) = (self.latents(), columns(&self.outputs));
        let at = latents.partition_point(|range| range.end <= latent);
        let row = self.groups[at].w_dec.row(latent - latents[at].start);
        let to = span(&writes, &self.groups[at].writes);
        let row = &row[row.len() - to.len()..];
        if to.len() == self.d_out() {
            return Cow::Borrowed(row);
        }
        let mut whole = vec![0.0; self.d_out()];
        whole[to].copy_from_slice(row);
        Cow::Owned(whole)
    }

    fn is_online(&self) -> bool {
        // The few of all groups are not known before the last one is.
        let few = matches!(self.activation, Activation::TopK { .. } | Activation::AbsTopK { .. });
        self.is_causal() && (self.per_group || !few)
    }

    fn input_widths(&self) -> Vec<usize> {
        self.inputs.iter().map(|site| site.width).collect()
    }

    fn output_widths(&self) -> Vec<usize> {
        self.outputs.iter().map(|site| site.width).collect()
    }
}

#[cfg(test)]
mod tests;
