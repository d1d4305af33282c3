//! What is a sparse coder, and what is an [`Sae`]?

use std::{borrow::Cow, path::Path};

use rayon::prelude::*;

use crate::{
    activation::{Activation, Select},
    error::Result,
    kernels::weighted_sum,
    matching_pursuit,
    matrix::{Matrix, Right, matmul, matmul_by_columns},
    normalization::Normalization,
    pretrained::sae_lens,
    sparse::SparseRows,
    workers::Workers,
};

/// Rows that one thread takes from the encoder product to the residual at a time.
///
/// Few enough for the pre-activations to stay in the cache (256 × 5,120 × 4 bytes = 5 MB), enough for the product to be near
/// its full rate. A multiple of 16, so that blocks of rows are aligned.
pub(crate) const BLOCK_ROWS: usize = 256;

/// Latents whose pre-activations are computed at a time: a wider coder is encoded in bands, so that a thread needs 16 MB for
/// them however wide it is, and reads a mapped encoder in pieces of 64 KB.
pub(crate) const BAND: usize = 1 << 14;

/// A dictionary of latents that reads one site and speaks of the same or of another: what training, `encode`, and metrics
/// need to know of any coder.
///
/// Rows are tokens, `d_in` values each, as the model computed them: a coder that was trained on scaled activations has the
/// scale folded into its weights.
pub trait SparseCoder: Send + Sync {
    /// Values in a row that is encoded.
    fn d_in(&self) -> usize;

    /// Values in a row that is reconstructed.
    fn d_out(&self) -> usize;

    /// The number of latents.
    fn d_sae(&self) -> usize;

    /// Appends the feature activations of `rows` (`[n, d_in]`) to `out`, on the calling thread.
    ///
    /// # Panics
    /// If `rows` is not made of whole rows.
    fn encode(&self, rows: &[f32], scratch: &mut Scratch, out: &mut SparseRows);

    /// Writes the reconstruction of each row of `acts` into `out` (`[n, d_out]`), on the calling thread. `rows` (`[n, d_in]`)
    /// are those that were encoded: a skip connection and a norm taken of each token look at them again.
    ///
    /// # Panics
    /// If `rows` and `out` do not have as many rows as `acts`.
    fn decode(&self, acts: &SparseRows, rows: &[f32], out: &mut [f32]);

    /// The direction that one latent writes, `[d_out]`.
    fn decoder_row(&self, latent: usize) -> Cow<'_, [f32]>;

    /// The direction that each latent writes, `[d_sae, d_out]`, where it lies so in one piece.
    fn decoder(&self) -> Option<&Matrix>;

    /// The same, made for this where it lies otherwise.
    fn w_dec(&self) -> Cow<'_, Matrix> {
        self.decoder().map_or_else(
            || {
                let mut all = Matrix::zeros(self.d_sae(), self.d_out());
                for latent in 0..self.d_sae() {
                    all.row_mut(latent).copy_from_slice(&self.decoder_row(latent));
                }
                Cow::Owned(all)
            },
            Cow::Borrowed,
        )
    }

    /// The widths of the sites that are read, whose rows lie end to end.
    fn input_widths(&self) -> Vec<usize> {
        vec![self.d_in()]
    }

    /// The widths of the sites that are written, whose rows lie end to end.
    fn output_widths(&self) -> Vec<usize> {
        vec![self.d_out()]
    }

    /// Whether what it writes at a site is known before later sites are: of coders of one site, always.
    fn is_online(&self) -> bool {
        true
    }

    /// The direction that each latent reads, `[d_in, d_sae]`, where it has one of its own.
    fn w_enc(&self) -> Option<&Matrix> {
        None
    }

    /// How long a decoder row is in the reconstruction of `row` (`[d_in]`), where the coder norms each token; otherwise 1.
    fn decoder_scale(&self, _row: &[f32]) -> f32 {
        1.0
    }
}

/// Memory that [`SparseCoder::encode`] uses again from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    /// `[BLOCK_ROWS, d_in]`.
    pub(crate) centered: Matrix,
    /// `[BLOCK_ROWS, at most BAND]`.
    pub(crate) pre_acts: Matrix,
    pub(crate) found: Vec<(f32, u32)>,
    /// Of each band, its first latent and what fires.
    pub(crate) bands: Vec<(usize, SparseRows)>,
}

impl Scratch {
    /// Makes room for `n` bands, and for pre-activations of so many latents at a time.
    pub(crate) fn make_room(&mut self, n_bands: usize, width: usize) {
        if self.pre_acts.cols() != width {
            self.pre_acts = Matrix::zeros(BLOCK_ROWS, width);
        }
        self.bands.resize_with(n_bands, || (0, SparseRows::new()));
    }
}

/// A coder with one encoder and one decoder, an autoencoder or a transcoder:
/// `f = σ((x − b_dec)·w_enc + b_enc)`, `ŷ = f·w_dec + b_dec + x·w_skipᵀ`.
///
/// Weights may be a mapped file: then a coder of any width opens without being read, and what is used of it is read when it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sae {
    /// `[d_in, d_sae]`; empty for matching pursuit, which encodes with the decoder.
    pub w_enc: Matrix,
    /// `[d_sae, d_out]`.
    pub w_dec: Matrix,
    /// `[d_sae]`; of a gated coder, the gates' bias; empty for matching pursuit.
    pub b_enc: Vec<f32>,
    /// `[d_out]`.
    pub b_dec: Vec<f32>,
    /// `[d_out, d_in]`: what reaches the output beside the latents.
    pub w_skip: Option<Matrix>,
    /// Which latents fire.
    pub activation: Activation,
    /// What is done to each token before anything else, and undone in the reconstruction.
    pub normalization: Normalization,
    /// Whether `b_dec` is subtracted from the input before it is encoded.
    pub apply_b_dec_to_input: bool,
    /// Whether it speaks of another site than it reads.
    pub transcoder: bool,
    /// Whether SAELens gives it vectors of heads, which it lays end to end; our rows are so already.
    pub hook_z: bool,
    /// What is known about its making: model, hook point, training. SAELens's `metadata`, kept as it is.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

impl Sae {
    /// Opens a folder with `cfg.json` and `sae_weights.safetensors`, as SAELens and this crate write them.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        sae_lens::load(dir.as_ref())
    }

    /// Writes that folder. `cfg.json` comes last: with it, the folder is complete.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        sae_lens::save(self, dir.as_ref())
    }

    /// SAELens's name of the architecture, by which it is saved. SAELens has no transcoders but those with ReLU and JumpReLU;
    /// the others have names made in the same way.
    pub fn architecture(&self) -> String {
        let name = self.activation.name();
        match (self.transcoder, &self.w_skip) {
            (false, _) => name.into(),
            (true, skip) => {
                let prefix = if name == "standard" { String::new() } else { format!("{name}_") };
                format!("{prefix}{}transcoder", if skip.is_some() { "skip_" } else { "" })
            }
        }
    }

    /// The name of the hook point that it reads, if it says so.
    pub fn hook_name(&self) -> Option<&str> {
        self.metadata.get("hook_name")?.as_str()
    }

    /// The name of the hook point that it speaks of, if it says so: of an autoencoder, the same.
    pub fn hook_name_out(&self) -> Option<&str> {
        if self.transcoder { self.metadata.get("hook_name_out")?.as_str() } else { self.hook_name() }
    }

    /// Makes a coder for scaled activations `scale · x` one for `x` (SAELens's `fold_activation_norm_scaling_factor`).
    ///
    /// Activations, `b_enc` and the threshold stay as they are, because the threshold is compared with the pre-activation
    /// alone; the decoder's rows then have norm `1 / scale`.
    pub fn fold_input_scale(&mut self, scale: f32) {
        self.fold_scales(scale, scale);
    }

    /// Makes a coder that reads `input · x` and reconstructs `output · y` one for `x` and `y`. Matching pursuit, which has one
    /// scale only, takes `input`, and its activations are then in units of `x`.
    pub fn fold_scales(&mut self, input: f32, output: f32) {
        if let Activation::MatchingPursuit { residual_threshold, .. } = &mut self.activation {
            *residual_threshold /= input;
        } else {
            crate::kernels::scale(self.w_enc.as_mut_slice(), input);
            divide(self.w_dec.as_mut_slice(), output);
        }
        divide(&mut self.b_dec, output);
        if let Some(skip) = &mut self.w_skip {
            crate::kernels::scale(skip.as_mut_slice(), input / output);
        }
    }

    /// Makes an autoencoder for `(x − mean)·whitening` one for `x` (SAELens's `fold_activation_whitening`). `whitening` and
    /// its inverse are `[d_in, d_in]`.
    pub(crate) fn fold_whitening(&mut self, mean: &[f32], whitening: &Matrix, inverse: &Matrix) {
        let (d_in, d_sae) = (self.d_in(), self.d_sae());
        let product = |a: &[f32], b: &[f32], [m, k, n]: [usize; 3]| {
            let mut out = Matrix::zeros(m, n);
            matmul(a, b, Right::Plain, out.as_mut_slice(), [m, k, n]);
            out
        };
        self.w_enc = product(whitening.as_slice(), self.w_enc.as_slice(), [d_in, d_in, d_sae]);
        if !self.apply_b_dec_to_input {
            let shift = product(mean, self.w_enc.as_slice(), [1, d_in, d_sae]);
            if let Activation::Gated { b_mag, r_mag } = &mut self.activation {
                for ((bias, shift), r) in b_mag.iter_mut().zip(shift.as_slice()).zip(r_mag) {
                    *bias -= shift * r.exp();
                }
            }
            for (bias, shift) in self.b_enc.iter_mut().zip(shift.as_slice()) {
                *bias -= shift;
            }
        }
        self.w_dec = product(self.w_dec.as_slice(), inverse.as_slice(), [d_sae, d_in, d_in]);
        let b_dec = product(&self.b_dec, inverse.as_slice(), [1, d_in, d_in]);
        self.b_dec = b_dec.as_slice().iter().zip(mean).map(|(bias, mean)| bias + mean).collect();
    }

    /// Makes the decoder's rows unit vectors without changing any reconstruction (SAELens's `fold_W_dec_norm`): activations,
    /// thresholds and the encoder are multiplied by the norms. Not for TopK, where this could change which latents win,
    /// unless it ranks by activation times norm, and not for matching pursuit.
    pub(crate) fn fold_decoder_norms(&mut self) {
        let norms: Vec<f32> = (0..self.d_sae()).map(|latent| norm(self.w_dec.row(latent)).max(1e-8)).collect();
        for (latent, &norm) in norms.iter().enumerate() {
            for value in self.w_dec.row_mut(latent) {
                *value /= norm;
            }
            self.b_enc[latent] *= norm;
        }
        for row in 0..self.d_in() {
            multiply(self.w_enc.row_mut(row), &norms);
        }
        match &mut self.activation {
            Activation::JumpRelu { threshold } => multiply(threshold, &norms),
            Activation::Gated { b_mag, .. } => multiply(b_mag, &norms),
            _ => {}
        }
    }

    /// What the encoder's product is taken of: `rows`, normed and centered, in `scratch`.
    fn prepare<'a>(&self, rows: &[f32], centered: &'a mut Matrix) -> &'a [f32] {
        let d_in = self.d_in();
        if centered.cols() != d_in {
            *centered = Matrix::zeros(BLOCK_ROWS, d_in);
        }
        let centered = &mut centered.as_mut_slice()[..rows.len()];
        centered.copy_from_slice(rows);
        for row in centered.chunks_exact_mut(d_in) {
            self.normalization.apply(row);
            if self.apply_b_dec_to_input {
                for (value, bias) in row.iter_mut().zip(&self.b_dec) {
                    *value -= bias;
                }
            }
        }
        centered
    }

    /// Appends what fires in at most [`BLOCK_ROWS`] rows that are prepared.
    fn encode_block(
        &self,
        centered: &[f32],
        scratch: &mut BandScratch<'_>,
        select: &mut Select<'_>,
        out: &mut SparseRows,
    ) {
        let (d_in, d_sae) = (self.d_in(), self.d_sae());
        let n = centered.len() / d_in;
        let n_bands = scratch.bands.len();
        for (band, first) in (0..d_sae).step_by(BAND).enumerate() {
            let latents = first..(first + BAND).min(d_sae);
            let width = latents.len();
            let pre_acts = &mut scratch.pre_acts.as_mut_slice()[..n * width];
            matmul_by_columns(centered, self.w_enc.as_slice(), d_sae, latents.clone(), pre_acts);
            let found = if n_bands == 1 {
                &mut *out
            } else {
                let (first_latent, found) = &mut scratch.bands[band];
                *first_latent = first;
                found.clear();
                found
            };
            for row in pre_acts.chunks_exact_mut(width) {
                crate::kernels::add(&self.b_enc[latents.clone()], row);
                select.select(row, latents.clone(), scratch.found, found);
            }
        }
        if n_bands > 1 {
            select.merge(scratch.bands, std::slice::from_ref(&(0..n_bands)), n, out);
        }
    }
}

/// The parts of [`Scratch`] that are not the rows themselves.
struct BandScratch<'a> {
    pre_acts: &'a mut Matrix,
    found: &'a mut Vec<(f32, u32)>,
    bands: &'a mut Vec<(usize, SparseRows)>,
}

impl SparseCoder for Sae {
    fn d_in(&self) -> usize {
        // Matching pursuit has no encoder of its own.
        if self.w_enc.rows() == 0 { self.w_dec.cols() } else { self.w_enc.rows() }
    }

    fn d_out(&self) -> usize {
        self.w_dec.cols()
    }

    fn d_sae(&self) -> usize {
        self.w_dec.rows()
    }

    fn encode(&self, rows: &[f32], scratch: &mut Scratch, out: &mut SparseRows) {
        let (d_in, d_sae) = (self.d_in(), self.d_sae());
        assert_eq!(rows.len() % d_in, 0, "rows are d_in values each");
        if let Activation::MatchingPursuit { residual_threshold, max_iterations, stop_on_duplicate_support } =
            self.activation
        {
            let stop = matching_pursuit::Ending { residual_threshold, max_iterations, stop_on_duplicate_support };
            for block in rows.chunks(BLOCK_ROWS * d_in) {
                let residual = self.prepare(block, &mut scratch.centered).to_vec();
                matching_pursuit::encode(residual, &self.w_dec, stop, &mut scratch.pre_acts, out);
            }
            return;
        }
        scratch.make_room(d_sae.div_ceil(BAND), d_sae.min(BAND));
        let Scratch { centered, pre_acts, found, bands } = scratch;
        let mut select = Select::new(&self.activation, &self.b_enc);
        let mut scratch = BandScratch { pre_acts, found, bands };
        for block in rows.chunks(BLOCK_ROWS * d_in) {
            let prepared = self.prepare(block, centered);
            self.encode_block(prepared, &mut scratch, &mut select, out);
        }
    }

    fn decode(&self, acts: &SparseRows, rows: &[f32], out: &mut [f32]) {
        let (d_in, d_out) = (self.d_in(), self.d_out());
        assert_eq!(out.len(), acts.n_rows() * d_out, "one row of d_out values for each row");
        assert_eq!(rows.len(), acts.n_rows() * d_in, "the rows that were encoded");
        let no_bias = matches!(self.activation, Activation::MatchingPursuit { .. }) && !self.apply_b_dec_to_input;
        let bias = if no_bias { Cow::Owned(vec![0.0; d_out]) } else { Cow::Borrowed(&self.b_dec) };
        let undo = self.undone();
        for (((latents, values), row), out) in acts.iter().zip(rows.chunks_exact(d_in)).zip(out.chunks_exact_mut(d_out))
        {
            out.copy_from_slice(&bias);
            weighted_sum(latents, values, self.w_dec.as_slice(), out);
            undo.undo(row, out);
        }
        if let Some(skip) = &self.w_skip {
            let mut through = vec![0.0; out.len()];
            matmul(rows, skip.as_slice(), Right::Transposed, &mut through, [acts.n_rows(), d_in, d_out]);
            crate::kernels::add(&through, out);
        }
    }

    fn decoder(&self) -> Option<&Matrix> {
        Some(&self.w_dec)
    }

    fn decoder_row(&self, latent: usize) -> Cow<'_, [f32]> {
        Cow::Borrowed(self.w_dec.row(latent))
    }

    fn w_enc(&self) -> Option<&Matrix> {
        Some(&self.w_enc).filter(|encoder| encoder.rows() > 0)
    }

    fn decoder_scale(&self, row: &[f32]) -> f32 {
        self.undone().scale(row)
    }
}

impl Sae {
    /// What of the norming is undone in the output: as in SAELens nothing in a transcoder's, which is another vector.
    fn undone(&self) -> Normalization {
        if self.transcoder { Normalization::None } else { self.normalization }
    }
}

pub(crate) fn divide(values: &mut [f32], divisor: f32) {
    for value in values {
        *value /= divisor;
    }
}

fn multiply(values: &mut [f32], factors: &[f32]) {
    for (value, factor) in values.iter_mut().zip(factors) {
        *value *= factor;
    }
}

/// What [`encode_blocks`] found for one block of rows.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) acts: SparseRows,
}

/// Encodes `rows` (`[n, d_in]`) with all threads, in blocks that come back in order.
pub(crate) fn encode_blocks(coder: &dyn SparseCoder, rows: &[f32], workers: &Workers) -> Vec<Block> {
    let block = BLOCK_ROWS * coder.d_in();
    workers.install(|| {
        rows.par_chunks(block)
            .map_init(Scratch::default, |scratch, rows| {
                let mut acts = SparseRows::new();
                coder.encode(rows, scratch, &mut acts);
                Block { acts }
            })
            .collect()
    })
}

/// Encodes `rows` (`[n, d_in]`) with all threads.
pub fn encode_rows(coder: &dyn SparseCoder, rows: &[f32], workers: &Workers) -> SparseRows {
    let mut all = SparseRows::new();
    for block in encode_blocks(coder, rows, workers) {
        all.append(&block.acts);
    }
    all
}

/// The L2 norm, accumulated in f64.
pub(crate) fn norm(values: &[f32]) -> f32 {
    let squares: f64 = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    squares.sqrt() as f32
}
