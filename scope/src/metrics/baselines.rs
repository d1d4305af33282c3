//! What does a dictionary that learnt nothing reach?
//!
//! Random dictionaries come close to trained ones in many evaluations (arXiv 2602.14111), so every number has these beside it:
//! - *random decoder*: the coder's encoder and its activations; the direction of each latent is replaced by a random unit
//!   vector times the norm of its decoder row, which nobody trained.
//! - *random dictionary*: as many random unit vectors; the latents are the TopK of their products with the row less the mean
//!   of the first rows, with as many latents as fire in the coder. Of a transcoder, directions that are read and directions
//!   that are written are drawn apart.
//! - *shuffled activations*: the coder itself, on rows in which each dimension was shuffled over the tokens of a batch, so that
//!   every dimension keeps its distribution and no direction is left.
//! - *PCA*: the mean and as many principal components as latents fire ([`super::pca`]), of what the coder speaks of; of
//!   several sites that are together wider than [`MAX_PCA_WIDTH`], the strongest of those of single sites.
//!
//! Nobody knows how long the vectors of a random dictionary should be, so both are given the best number and the best constant
//! vector there are, by least squares; the coder's own value with the same freedom stands beside.

use std::ops::Range;

use serde::Serialize;

use super::{
    pca::{Covariance, Pca, PcaMetrics},
    sums::{Moments, Sums},
};
use crate::{
    Activation, Matrix, Sae,
    error::Result,
    kernels::weighted_sum,
    matrix::{Right, matmul},
    random::Random,
    sae::{SparseCoder, norm},
    sparse::SparseRows,
    workers::Workers,
};

/// Values of a random decoder, at most: 1 GiB. Wider coders have no random dictionaries beside them.
pub const MAX_RANDOM_VALUES: usize = 1 << 28;

/// Dimensions of which components are taken together: their covariances are 128 MiB.
pub const MAX_PCA_WIDTH: usize = 4096;

/// A dictionary beside the coder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Baseline {
    /// E[number of latents that fire].
    pub l0: f64,
    /// 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²); of random dictionaries with the best scale and constant.
    pub explained_variance: f64,
    /// E‖x − x̂‖², in the same way.
    pub mse: f64,
}

/// What dictionaries that learnt nothing reach on the same tokens; see [`mod@super::baselines`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Baselines {
    /// The coder itself with the best scale and constant, as its random counterparts have them.
    pub refitted_explained_variance: f64,
    /// `None` where its decoder would not fit into memory.
    pub random_decoder: Option<Baseline>,
    /// `None` where its decoder would not fit into memory.
    pub random_dictionary: Option<Baseline>,
    /// The coder on rows without directions.
    pub shuffled_activations: Baseline,
    /// As many principal components.
    pub pca: PcaMetrics,
}

/// Random vectors of norm 1, `[rows, cols]`.
fn random_units(rows: usize, cols: usize, random: &mut Random) -> Matrix {
    let mut units = Matrix::zeros(rows, cols);
    for row in 0..rows {
        let row = units.row_mut(row);
        row.fill_with(|| random.normal() as f32);
        let norm = norm(row);
        for value in row {
            *value /= norm;
        }
    }
    units
}

/// The coder with another decoder, without biases.
struct RandomDecoder {
    directions: Matrix,
}

impl RandomDecoder {
    fn decode(&self, acts: &SparseRows) -> Vec<f32> {
        let width = self.directions.cols();
        let mut out = vec![0.0; acts.n_rows() * width];
        for ((latents, values), out) in acts.iter().zip(out.chunks_exact_mut(width)) {
            weighted_sum(latents, values, self.directions.as_slice(), out);
        }
        out
    }
}

/// A random dictionary that reads rows about `mean` with `k` latents; `one_site`: whether it speaks of what it reads.
fn random_dictionary(coder: &dyn SparseCoder, one_site: bool, k: usize, mean: &[f32], random: &mut Random) -> Sae {
    let (d_in, d_out, d_sae) = (coder.d_in(), coder.d_out(), coder.d_sae());
    let w_dec = random_units(d_sae, d_out, random);
    // What is read of an autoencoder is what it writes; only its own mean has to be subtracted.
    let read = if one_site { w_dec.clone() } else { random_units(d_sae, d_in, random) };
    let mut b_enc = vec![0.0; d_sae];
    matmul(mean, read.as_slice(), Right::Transposed, &mut b_enc, [1, d_in, d_sae]);
    for bias in &mut b_enc {
        *bias = -*bias;
    }
    Sae {
        w_enc: read.transposed(),
        w_dec,
        b_enc,
        b_dec: vec![0.0; d_out],
        activation: Activation::TopK { k },
        transcoder: !one_site,
        ..Sae::default()
    }
}

/// What stands in for a coder elsewhere: in the model, and in front of probes.
#[derive(Clone, Debug)]
pub struct References {
    /// E x of what the coder speaks of.
    pub(super) mean: Vec<f64>,
    pub(super) pca: Pca,
    /// The coder's mean L0, rounded.
    pub(super) rank: usize,
    /// The random dictionary with the best scale and constant, a coder as any other.
    pub(super) dictionary: Option<Sae>,
}

/// The sums of all baselines.
pub(super) struct BaselineSums {
    random: Option<RandomSums>,
    shuffled: Sums,
    /// Of all columns that are written, or of those of each site.
    covariances: Vec<(Range<usize>, Covariance)>,
    order: Random,
    /// Whether what is read and what is spoken of are the same rows.
    same: bool,
}

struct RandomSums {
    decoder: RandomDecoder,
    of_decoder: Moments,
    dictionary: Sae,
    of_dictionary: Sums,
}

impl BaselineSums {
    /// `same`: whether what is read is what is written. `rows` and `acts` are the first ones: from them the mean, and how many latents fire, are taken.
    pub(super) fn new(coder: &dyn SparseCoder, same: bool, rows: &[f32], acts: &SparseRows, seed: u64) -> Self {
        let (d_in, d_out, d_sae) = (coder.d_in(), coder.d_out(), coder.d_sae());
        let mut random = Random::new(seed);
        let fits = d_sae.saturating_mul(d_in.max(d_out)) <= MAX_RANDOM_VALUES;
        let sums = fits.then(|| {
            let mut directions = random_units(d_sae, d_out, &mut random);
            for latent in 0..d_sae {
                crate::kernels::scale(directions.row_mut(latent), norm(&coder.decoder_row(latent)));
            }
            let n = acts.n_rows().max(1) as f64;
            let k = ((acts.n_entries() as f64 / n).round() as usize).clamp(1, d_sae);
            let mut mean = vec![0.0_f64; d_in];
            for row in rows.chunks_exact(d_in) {
                for (mean, &x) in mean.iter_mut().zip(row) {
                    *mean += f64::from(x) / n;
                }
            }
            let mean: Vec<f32> = mean.into_iter().map(|mean| mean as f32).collect();
            RandomSums {
                decoder: RandomDecoder { directions },
                of_decoder: Moments::new(d_out),
                dictionary: random_dictionary(coder, same, k, &mean, &mut random),
                of_dictionary: Sums::new(&[d_out], d_sae),
            }
        });
        Self {
            random: sums,
            shuffled: Sums::new(&[d_out], d_sae),
            covariances: columns(coder).map(|of| (of.clone(), Covariance::new(of.len()))).collect(),
            order: random,
            same,
        }
    }

    /// Adds a batch, of which the coder's activations are `acts`.
    pub(super) fn add(
        &mut self,
        coder: &dyn SparseCoder,
        rows: &[f32],
        targets: &[f32],
        acts: &SparseRows,
        workers: &Workers,
    ) -> Result<()> {
        let (d_in, d_out) = (coder.d_in(), coder.d_out());
        if let Some(random) = &mut self.random {
            let out = random.decoder.decode(acts);
            for (row, (x, y)) in targets.chunks_exact(d_out).zip(out.chunks_exact(d_out)).enumerate() {
                random.of_decoder.add(x, y, acts.row(row).1);
            }
            random.of_dictionary.add_rows(&random.dictionary, rows, targets, &mut [], workers);
        }
        let shuffled = shuffled(rows, d_in, &mut self.order);
        if self.same {
            self.shuffled.add_rows(coder, &shuffled, &shuffled, &mut [], workers);
        } else {
            let targets = self::shuffled(targets, d_out, &mut self.order);
            self.shuffled.add_rows(coder, &shuffled, &targets, &mut [], workers);
        }
        if let [(_, covariance)] = &mut self.covariances[..] {
            return covariance.add(targets);
        }
        for (columns, covariance) in &mut self.covariances {
            let rows: Vec<f32> = targets.chunks_exact(d_out).flat_map(|row| &row[columns.clone()]).copied().collect();
            covariance.add(&rows)?;
        }
        Ok(())
    }

    /// `coder`: the sums of the coder itself.
    pub(super) fn finish(self, coder: &Moments) -> Result<(Baselines, References)> {
        let variance = coder.variance();
        let refitted = |sums: &Moments| {
            let explained_variance = sums.refitted_explained_variance();
            Baseline { l0: sums.l0(), explained_variance, mse: (1.0 - explained_variance) * variance }
        };
        let shuffled = &self.shuffled.all;
        let parts = self.covariances.iter().map(|(_, covariance)| covariance.components());
        let pca = Pca::together(parts.collect::<Result<_>>()?);
        let rank = coder.l0().round() as usize;
        let baselines = Baselines {
            refitted_explained_variance: coder.refitted_explained_variance(),
            random_decoder: self.random.as_ref().map(|random| refitted(&random.of_decoder)),
            random_dictionary: self.random.as_ref().map(|random| refitted(&random.of_dictionary.all)),
            shuffled_activations: Baseline {
                l0: shuffled.l0(),
                explained_variance: 1.0 - shuffled.fvu(),
                mse: shuffled.mse(),
            },
            pca: pca.metrics(rank, 1.0 - coder.fvu()),
        };
        let dictionary = self.random.map(|random| {
            let mut dictionary = random.dictionary;
            let (scale, constant) = random.of_dictionary.all.refit();
            crate::kernels::scale(dictionary.w_dec.as_mut_slice(), scale as f32);
            dictionary.b_dec = constant.into_iter().map(|value| value as f32).collect();
            dictionary
        });
        Ok((baselines, References { mean: coder.mean_x(), pca, rank, dictionary }))
    }
}

/// The columns of which principal components are taken together.
fn columns(coder: &dyn SparseCoder) -> impl Iterator<Item = Range<usize>> {
    let widths = if coder.d_out() > MAX_PCA_WIDTH { coder.output_widths() } else { vec![coder.d_out()] };
    let mut end = 0;
    widths.into_iter().map(move |width| {
        end += width;
        end - width..end
    })
}

/// Rows (`[n, width]`) in which each dimension is in another order, drawn for it alone.
fn shuffled(rows: &[f32], width: usize, random: &mut Random) -> Vec<f32> {
    let n = rows.len() / width;
    let mut out = rows.to_vec();
    for column in 0..width {
        for row in (1..n).rev() {
            let other = random.below(row as u64 + 1) as usize;
            out.swap(row * width + column, other * width + column);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sae::encode_rows;

    #[test]
    fn shuffling_keeps_each_dimension_and_loses_the_rows() {
        let rows: Vec<f32> = (0..3000).map(|i| (i / 3) as f32 + 10_000.0 * (i % 3) as f32).collect();
        let out = shuffled(&rows, 3, &mut Random::new(1));
        for column in 0..3 {
            let values = |rows: &[f32]| {
                let mut values: Vec<f32> = rows.chunks_exact(3).map(|row| row[column]).collect();
                values.sort_by(f32::total_cmp);
                values
            };
            assert_eq!(values(&out), values(&rows));
        }
        let whole = out.chunks_exact(3).filter(|row| row[1] - row[0] == 10_000.0 && row[2] - row[1] == 10_000.0);
        assert!(whole.count() < 10);
    }

    #[test]
    fn a_random_dictionary_has_unit_vectors_and_k_latents() {
        let coder = Sae { w_enc: Matrix::zeros(8, 40), w_dec: Matrix::zeros(40, 8), ..Sae::default() };
        let rows = crate::testing::structured_rows(50, 8, 12, 2);
        let dictionary = random_dictionary(&coder, true, 3, &rows[..8], &mut Random::new(1));
        for latent in 0..40 {
            assert!((norm(dictionary.w_dec.row(latent)) - 1.0).abs() < 1e-6);
        }
        let acts = encode_rows(&dictionary, &rows, &Workers::new(1).unwrap());
        assert!(acts.row(0).1.iter().all(|act| act.abs() < 1e-4), "the row that is the mean has no direction");
        assert!((1..50).all(|row| acts.row(row).0.len() == 3));
        // The same with fewer words: of the second row, the largest products with what is left.
        let (latents, values) = acts.row(1);
        let left: Vec<f32> = rows[8..16].iter().zip(&rows[..8]).map(|(x, mean)| x - mean).collect();
        let product = |latent: usize| crate::kernels::dot(dictionary.w_dec.row(latent), &left);
        assert!((product(latents[0] as usize) - values[0]).abs() < 1e-4);
        let smallest = values.iter().copied().fold(f32::MAX, f32::min);
        assert_eq!((0..40).filter(|&latent| product(latent) >= smallest - 1e-4).count(), 3);
        let transcoder = random_dictionary(&coder, false, 3, &rows[..8], &mut Random::new(1));
        assert_ne!(transcoder.w_enc, transcoder.w_dec.transposed(), "of equal widths, but of two sites");
    }
}
