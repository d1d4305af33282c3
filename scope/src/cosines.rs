//! How alike are the directions of a dictionary? Some of them against all, a block at a time, so that nothing is held but the
//! dictionary itself, which may be a mapped file.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::{
    matrix::{Matrix, Right, matmul, matmul_by_columns},
    sae::norm,
    workers::Workers,
};

/// Directions that one thread multiplies at a time.
const BLOCK_ROWS: usize = 32;
/// Directions that they are multiplied with at a time: the product stays in the cache.
const BLOCK_OTHERS: usize = 4096;

/// The directions of a dictionary.
pub(crate) struct Directions<'a> {
    matrix: &'a Matrix,
    side: Side,
    norms: Vec<f32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Rows,
    Columns,
}

impl<'a> Directions<'a> {
    /// What latents write: the rows of a decoder, `[d_sae, d_out]`.
    pub(crate) fn written(decoder: &'a Matrix) -> Self {
        let norms = (0..decoder.rows()).map(|row| norm(decoder.row(row))).collect();
        Self { matrix: decoder, side: Side::Rows, norms }
    }

    /// What latents read: the columns of an encoder, `[d_in, d_sae]`.
    pub(crate) fn read(encoder: &'a Matrix) -> Self {
        let mut squares = vec![0.0_f64; encoder.cols()];
        for row in 0..encoder.rows() {
            for (sum, &x) in squares.iter_mut().zip(encoder.row(row)) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        let norms = squares.into_iter().map(|square| square.sqrt() as f32).collect();
        Self { matrix: encoder, side: Side::Columns, norms }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.norms.len()
    }

    /// Dimensions of each.
    pub(crate) fn width(&self) -> usize {
        if self.side == Side::Rows { self.matrix.cols() } else { self.matrix.rows() }
    }

    /// How long each is.
    pub(crate) fn norms(&self) -> &[f32] {
        &self.norms
    }

    fn get(&self, index: usize) -> Cow<'_, [f32]> {
        match self.side {
            Side::Rows => Cow::Borrowed(self.matrix.row(index)),
            Side::Columns => {
                let all = self.matrix.as_slice();
                Cow::Owned((0..self.matrix.rows()).map(|row| all[row * self.len() + index]).collect())
            }
        }
    }

    /// For each of `chosen`, what `see` makes of its cosine with every other direction, by rising number; zeros have none.
    pub(crate) fn cosines<T: Clone + Send + Sync>(
        &self,
        chosen: &[usize],
        start: &T,
        see: impl Fn(&mut T, usize, f32) + Sync,
        workers: &Workers,
    ) -> Vec<T> {
        let (n, width) = (self.len(), self.width());
        let inverse: Vec<f32> = self.norms.iter().map(|&norm| if norm > 0.0 { 1.0 / norm } else { 0.0 }).collect();
        workers.install(|| {
            chosen
                .par_chunks(BLOCK_ROWS)
                .flat_map_iter(|chosen| {
                    let rows: Vec<f32> = chosen.iter().flat_map(|&index| self.get(index).into_owned()).collect();
                    let mut found = vec![start.clone(); chosen.len()];
                    let mut products = vec![0.0; chosen.len() * BLOCK_OTHERS.min(n)];
                    for first in (0..n).step_by(BLOCK_OTHERS) {
                        let others = first..(first + BLOCK_OTHERS).min(n);
                        let products = &mut products[..chosen.len() * others.len()];
                        match self.side {
                            Side::Rows => {
                                let right = &self.matrix.as_slice()[others.start * width..others.end * width];
                                matmul(&rows, right, Right::Transposed, products, [chosen.len(), width, others.len()]);
                            }
                            Side::Columns => {
                                matmul_by_columns(&rows, self.matrix.as_slice(), n, others.clone(), products);
                            }
                        }
                        let rows = products.chunks_exact(others.len());
                        for ((&index, found), products) in chosen.iter().zip(&mut found).zip(rows) {
                            for (other, &product) in others.clone().zip(products) {
                                let scale = inverse[index] * inverse[other];
                                if other != index && scale > 0.0 {
                                    see(found, other, product * scale);
                                }
                            }
                        }
                    }
                    found
                })
                .collect()
        })
    }
}

/// Of each latent the cosine between what it reads (`[d_in, d_sae]`) and what it writes (`[d_sae, d_in]`); none where one of
/// them is zero.
pub(crate) fn between(read: &Directions<'_>, written: &Directions<'_>, workers: &Workers) -> Vec<Option<f32>> {
    let (encoder, decoder, n) = (read.matrix.as_slice(), written.matrix.as_slice(), read.len());
    let width = read.width();
    assert_eq!((n, width), (written.len(), written.width()), "directions of one space");
    let latents: Vec<usize> = (0..n).collect();
    workers.install(|| {
        latents
            .par_chunks(BLOCK_ROWS)
            .flat_map_iter(|latents| {
                let mut products = vec![0.0_f64; latents.len()];
                for axis in 0..width {
                    for (&latent, product) in latents.iter().zip(&mut products) {
                        let (read, written) = (encoder[axis * n + latent], decoder[latent * width + axis]);
                        *product += f64::from(read) * f64::from(written);
                    }
                }
                latents.iter().zip(products).map(|(&latent, product)| {
                    let length = f64::from(read.norms[latent]) * f64::from(written.norms[latent]);
                    (length > 0.0).then(|| (product / length) as f32)
                })
            })
            .collect()
    })
}

/// The `n` largest positive cosines, descending, with the number of the direction.
#[derive(Clone, Debug)]
pub(crate) struct Nearest {
    n: usize,
    found: Vec<(u32, f32)>,
}

impl Nearest {
    pub(crate) fn new(n: usize) -> Self {
        Self { n, found: Vec::new() }
    }

    /// Of equal ones the first stays in front.
    pub(crate) fn see(&mut self, other: usize, cosine: f32) {
        let least =
            if self.found.len() < self.n { 0.0 } else { self.found.last().map_or(f32::INFINITY, |last| last.1) };
        if cosine > least {
            let place = self.found.partition_point(|(_, larger)| *larger >= cosine);
            self.found.insert(place, (other as u32, cosine));
            self.found.truncate(self.n);
        }
    }

    pub(crate) fn into_pairs(self) -> Vec<(u32, f32)> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn random(rows: usize, cols: usize) -> Matrix {
        let mut random = Random::new(3);
        let mut matrix = Matrix::zeros(rows, cols);
        matrix.as_mut_slice().fill_with(|| random.normal() as f32);
        matrix
    }

    #[test]
    fn rows_and_columns_have_the_cosines_that_dot_products_give() {
        // More than are multiplied at a time, one of them zero.
        let mut decoder = random(BLOCK_OTHERS + 50, 7);
        decoder.row_mut(9).fill(0.0);
        let encoder = decoder.transposed();
        let workers = Workers::new(2).unwrap();
        let chosen = [3, 9, BLOCK_OTHERS + 1];
        let of = |directions: &Directions<'_>| {
            let keep = |kept: &mut Vec<(usize, f32)>, other, cosine| kept.push((other, cosine));
            directions.cosines(&chosen, &Vec::new(), keep, &workers)
        };
        let (written, read) = (of(&Directions::written(&decoder)), of(&Directions::read(&encoder)));
        assert!(written[1].is_empty() && read[1].is_empty());
        for (at, &index) in [0, 2].iter().zip(&[chosen[0], chosen[2]]) {
            assert_eq!(written[*at].len(), decoder.rows() - 2, "neither itself nor zero");
            for (&(other, cosine), &(same, read)) in written[*at].iter().zip(&read[*at]) {
                let (a, b) = (decoder.row(index), decoder.row(other));
                let expected = crate::kernels::dot(a, b) / norm(a) / norm(b);
                assert!(other == same && (cosine - expected).abs() < 1e-6 && (read - expected).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn what_is_read_against_what_is_written() {
        let decoder = random(100, 7);
        let mut encoder = decoder.transposed();
        for axis in 0..7 {
            let row = encoder.row_mut(axis);
            (row[1], row[2], row[3]) = (-2.0 * row[1], 0.0, 1.0);
        }
        let found = between(&Directions::read(&encoder), &Directions::written(&decoder), &Workers::new(2).unwrap());
        assert!((found[0].unwrap() - 1.0).abs() < 1e-6 && (found[1].unwrap() + 1.0).abs() < 1e-6);
        assert_eq!(found[2], None);
        let expected = decoder.row(3).iter().sum::<f32>() / norm(decoder.row(3)) / 7.0_f32.sqrt();
        assert!((found[3].unwrap() - expected).abs() < 1e-6);
    }

    #[test]
    fn the_nearest_are_the_largest_in_order() {
        let mut nearest = Nearest::new(3);
        for (other, cosine) in [0.2, -0.5, 0.9, 0.2, 0.4, 0.0, 0.9].into_iter().enumerate() {
            nearest.see(other, cosine);
        }
        assert_eq!(nearest.into_pairs(), [(2, 0.9), (6, 0.9), (4, 0.4)]);
        let mut none = Nearest::new(0);
        none.see(1, 0.5);
        assert!(none.into_pairs().is_empty());
    }
}
