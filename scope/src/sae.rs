//! What is a sparse coder, and what is an [`Sae`]?

use std::path::Path;

use rayon::prelude::*;

use crate::{
    batch_topk::jump_relu,
    error::Result,
    kernels::weighted_sum,
    matrix::{Matrix, Right, matmul},
    pretrained::sae_lens,
    sparse::SparseRows,
    topk::TopK,
    workers::Workers,
};

/// Rows that one thread takes from the encoder product to the residual at a time.
///
/// Few enough for the pre-activations to stay in the cache (256 × 5,120 × 4 bytes = 5 MB), enough for the product to be near
/// its full rate. A multiple of 16, so that blocks of rows are aligned.
pub(crate) const BLOCK_ROWS: usize = 256;

/// A dictionary of latents on one site: what training, `encode`, and metrics need to know of any coder.
///
/// Rows are tokens, `d_in` values each, as the model computed them: a coder that was trained on scaled activations has the
/// scale folded into its weights.
pub trait SparseCoder: Send + Sync {
    /// Values in a row that is encoded.
    fn d_in(&self) -> usize;

    /// The number of latents.
    fn d_sae(&self) -> usize;

    /// Appends the feature activations of `rows` (`[n, d_in]`) to `out`, on the calling thread.
    ///
    /// # Panics
    /// If `rows` is not made of whole rows.
    fn encode(&self, rows: &[f32], scratch: &mut Scratch, out: &mut SparseRows);

    /// Writes the reconstruction of each row of `acts` into `out` (`[n, d_in]`), on the calling thread.
    ///
    /// # Panics
    /// If `out` does not have as many rows as `acts`.
    fn decode(&self, acts: &SparseRows, out: &mut [f32]);

    /// The direction that each latent writes, `[d_sae, d_in]`.
    fn w_dec(&self) -> &Matrix;
}

/// Memory that [`SparseCoder::encode`] uses again from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    /// `[BLOCK_ROWS, d_in]`.
    centered: Matrix,
    /// `[BLOCK_ROWS, d_sae]`.
    pre_acts: Matrix,
    found: Vec<(f32, u32)>,
}

/// Which pre-activations become activations.
#[derive(Clone, Debug, PartialEq)]
pub enum Activation {
    /// The `k` largest positive ones of a row.
    TopK {
        /// How many.
        k: usize,
    },
    /// Those that are positive and above their latent's threshold, `[d_sae]`. A trained BatchTopK is one of these.
    JumpRelu {
        /// In units of the pre-activation.
        threshold: Vec<f32>,
    },
}

/// A sparse autoencoder: `f = σ((x − b_dec)·w_enc + b_enc)`, `x̂ = f·w_dec + b_dec`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sae {
    /// `[d_in, d_sae]`.
    pub w_enc: Matrix,
    /// `[d_sae, d_in]`.
    pub w_dec: Matrix,
    /// `[d_sae]`.
    pub b_enc: Vec<f32>,
    /// `[d_in]`.
    pub b_dec: Vec<f32>,
    /// Which latents fire.
    pub activation: Activation,
    /// Whether `b_dec` is subtracted from the input before it is encoded.
    pub apply_b_dec_to_input: bool,
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

    /// SAELens's name of the architecture, by which it is saved.
    pub fn architecture(&self) -> &'static str {
        match self.activation {
            Activation::TopK { .. } => "topk",
            Activation::JumpRelu { .. } => "jumprelu",
        }
    }

    /// The name of the hook point that it was trained on, if it says so.
    pub fn hook_name(&self) -> Option<&str> {
        self.metadata.get("hook_name")?.as_str()
    }

    /// Makes a coder for scaled activations `scale · x` one for `x` (SAELens's `fold_activation_norm_scaling_factor`).
    ///
    /// Activations, `b_enc` and the threshold stay as they are, because the threshold is compared with the pre-activation
    /// alone; the decoder's rows then have norm `1 / scale`.
    pub fn fold_input_scale(&mut self, scale: f32) {
        for value in self.w_enc.as_mut_slice() {
            *value *= scale;
        }
        for value in self.w_dec.as_mut_slice() {
            *value /= scale;
        }
        for value in &mut self.b_dec {
            *value /= scale;
        }
    }

    /// Makes the decoder's rows unit vectors without changing any reconstruction (SAELens's `fold_W_dec_norm`): activations,
    /// thresholds and the encoder are multiplied by the norms. Not for TopK, where this could change which latents win,
    /// unless it ranks by activation times norm.
    pub(crate) fn fold_decoder_norms(&mut self) {
        let norms: Vec<f32> = (0..self.d_sae()).map(|latent| norm(self.w_dec.row(latent)).max(1e-8)).collect();
        for (latent, &norm) in norms.iter().enumerate() {
            for value in self.w_dec.row_mut(latent) {
                *value /= norm;
            }
            self.b_enc[latent] *= norm;
        }
        for row in 0..self.d_in() {
            for (value, norm) in self.w_enc.row_mut(row).iter_mut().zip(&norms) {
                *value *= norm;
            }
        }
        if let Activation::JumpRelu { threshold } = &mut self.activation {
            for (threshold, norm) in threshold.iter_mut().zip(&norms) {
                *threshold *= norm;
            }
        }
    }
}

impl SparseCoder for Sae {
    fn d_in(&self) -> usize {
        self.w_enc.rows()
    }

    fn d_sae(&self) -> usize {
        self.w_enc.cols()
    }

    fn encode(&self, rows: &[f32], scratch: &mut Scratch, out: &mut SparseRows) {
        let (d_in, d_sae) = (self.d_in(), self.d_sae());
        assert_eq!(rows.len() % d_in, 0, "rows are d_in values each");
        let mut top_k = TopK::new(if let Activation::TopK { k } = self.activation { k } else { 0 });
        let floor = match &self.activation {
            Activation::TopK { .. } => 0.0,
            // Nothing at or below the lowest threshold fires.
            Activation::JumpRelu { threshold } => threshold.iter().copied().fold(f32::INFINITY, f32::min).max(0.0),
        };
        if scratch.centered.cols() != d_in || scratch.pre_acts.cols() != d_sae {
            scratch.centered = Matrix::zeros(BLOCK_ROWS, d_in);
            scratch.pre_acts = Matrix::zeros(BLOCK_ROWS, d_sae);
        }
        for block in rows.chunks(BLOCK_ROWS * d_in) {
            let n = block.len() / d_in;
            let centered = &mut scratch.centered.as_mut_slice()[..block.len()];
            centered.copy_from_slice(block);
            if self.apply_b_dec_to_input {
                for row in centered.chunks_exact_mut(d_in) {
                    for (value, bias) in row.iter_mut().zip(&self.b_dec) {
                        *value -= bias;
                    }
                }
            }
            let pre_acts = &mut scratch.pre_acts.as_mut_slice()[..n * d_sae];
            let w_enc = self.w_enc.as_slice();
            matmul(centered, w_enc, Right::Plain, pre_acts, [n, d_in, d_sae]);
            for row in pre_acts.chunks_exact_mut(d_sae) {
                crate::kernels::add(&self.b_enc, row);
                match &self.activation {
                    Activation::TopK { .. } => top_k.select(row, out),
                    Activation::JumpRelu { threshold } => jump_relu(row, threshold, floor, &mut scratch.found, out),
                }
            }
        }
    }

    fn decode(&self, acts: &SparseRows, out: &mut [f32]) {
        let d_in = self.d_in();
        assert_eq!(out.len(), acts.n_rows() * d_in, "one row of d_in values for each row");
        for ((latents, values), out) in acts.iter().zip(out.chunks_exact_mut(d_in)) {
            out.copy_from_slice(&self.b_dec);
            weighted_sum(latents, values, self.w_dec.as_slice(), out);
        }
    }

    fn w_dec(&self) -> &Matrix {
        &self.w_dec
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
