//! Which coordinates of the activations rise and fall with a feature?
//!
//! Correlation over all tokens that are not special and whose activations are finite, a feature being 0 where it is silent. The
//! activations of the hook point are read once for each block of features whose sums fit into [`MEMORY`].

use std::ops::Range;

use rayon::prelude::*;

use super::describe::ROWS;
use crate::error::Result;
use crate::features::{ByToken, FeatureTable, Windows};
use crate::hook_point::HookPoint;

/// Bytes of the sums of a block of features.
const MEMORY: usize = 256 << 20;

/// Bytes of activations that are read at a time.
const STEP_BYTES: usize = 16 << 20;

/// A coordinate that goes with a feature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Neuron {
    pub(super) index: usize,
    pub(super) pearson: f64,
    pub(super) cosine: f64,
}

/// How many features a block has, of activations of a width.
pub(super) fn block(width: usize) -> u32 {
    u32::try_from(MEMORY / (width * size_of::<f64>()).max(1)).unwrap_or(u32::MAX).max(1)
}

/// Sums over tokens.
struct Sums {
    n: f64,
    /// Of each feature: Σa, Σa².
    features: Vec<[f64; 2]>,
    /// Of each coordinate: Σx, Σx².
    neurons: Vec<[f64; 2]>,
    /// Σax, `[feature, coordinate]`.
    products: Vec<f64>,
}

/// For each of some features the coordinates of a hook point with the largest correlation, descending. `go_on` is asked after each stretch of
/// tokens.
pub(super) fn correlated(
    table: &FeatureTable,
    hook: HookPoint,
    features: Range<u32>,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Vec<Neuron>>> {
    let run = table.run();
    let width = run.hook_point(hook)?.width;
    let mut sums = Sums {
        n: 0.0,
        features: vec![[0.0; 2]; features.len()],
        neurons: vec![[0.0; 2]; width],
        products: vec![0.0; features.len() * width],
    };
    let mut acts = Windows::new(table.acts_files()?);
    let step = (STEP_BYTES / (width * size_of::<f32>()).max(1)).max(1) as u64;
    let mut first = 0;
    while first < run.n_tokens() {
        let tokens = first..(first + step).min(run.n_tokens());
        let special = run.special(tokens.clone())?;
        let rows = run.acts(hook, tokens.clone())?.to_f32();
        let counts: Vec<bool> = special
            .iter()
            .zip(rows.chunks_exact(width))
            .map(|(special, row)| !special && row.iter().all(|x| x.is_finite()))
            .collect();
        let wanted = |token: u64| counts[(token - tokens.start) as usize];
        let found = ByToken::new(&acts.until(tokens.end)?, &tokens, wanted);
        sums.add(&found, &features, &rows, &counts);
        first = tokens.end;
        go_on()?;
    }
    Ok(sums.correlated())
}

impl Sums {
    fn add(&mut self, found: &ByToken, features: &Range<u32>, rows: &[f32], counts: &[bool]) {
        let width = self.neurons.len();
        for (row, _) in rows.chunks_exact(width).zip(counts).filter(|(_, counts)| **counts) {
            self.n += 1.0;
            for ([sum, squares], &x) in self.neurons.iter_mut().zip(row) {
                *sum += f64::from(x);
                *squares += f64::from(x) * f64::from(x);
            }
        }
        let mut by_feature: Vec<Vec<(usize, f32)>> = vec![Vec::new(); features.len()];
        for (token, feature, act) in found.entries().filter(|(_, feature, _)| features.contains(feature)) {
            by_feature[(feature - features.start) as usize].push((token, act));
        }
        let sums = self.features.par_iter_mut().zip(self.products.par_chunks_mut(width));
        sums.zip(by_feature).for_each(|(([sum, squares], products), entries)| {
            for (token, act) in entries {
                let act = f64::from(act);
                *sum += act;
                *squares += act * act;
                for (product, &x) in products.iter_mut().zip(&rows[token * width..]) {
                    *product += act * f64::from(x);
                }
            }
        });
    }

    fn correlated(&self) -> Vec<Vec<Neuron>> {
        let width = self.neurons.len();
        // Rounding can take the variance of a constant below 0.
        let variance = |[sum, squares]: [f64; 2]| (squares - sum * sum / self.n).max(0.0);
        let of_feature = |(&feature, products): (&[f64; 2], &[f64])| {
            let mut found: Vec<Neuron> = (0..width)
                .filter_map(|index| {
                    let neuron = self.neurons[index];
                    let spread = (variance(feature) * variance(neuron)).sqrt();
                    let pearson = (products[index] - feature[0] * neuron[0] / self.n) / spread;
                    let cosine = products[index] / (feature[1] * neuron[1]).sqrt();
                    (spread > 0.0).then(|| Neuron { index, pearson: pearson.clamp(-1.0, 1.0), cosine })
                })
                .collect();
            found.sort_by(|a, b| b.pearson.total_cmp(&a.pearson).then(a.index.cmp(&b.index)));
            found.truncate(ROWS);
            found
        };
        self.features.par_iter().zip(self.products.par_chunks(width.max(1))).map(of_feature).collect()
    }
}
