//! How alike are the directions of a dictionary?

use serde::Serialize;

use crate::{
    cosines::{self, Directions},
    random::Random,
    sae::SparseCoder,
    workers::Workers,
};

/// Latents whose nearest neighbour is looked for, at most; of a wider coder, so many drawn by the seed. Each is compared with
/// all latents.
pub const MAX_LATENTS: usize = 1 << 14;
/// Bins of [`Geometry::histogram`]: 0.05 each, from 0 to 1.
pub const COSINE_BINS: usize = 20;
/// From this cosine on, two latents are as good as the same.
pub const DUPLICATE: f64 = 0.95;

/// The largest cosine of each direction to another one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Geometry {
    /// Directions that were looked at, of those that are not zero.
    pub n: usize,
    /// Their mean largest cosine to another direction.
    pub mean_max_cosine: f64,
    /// The median of it.
    pub median_max_cosine: f64,
    /// The largest.
    pub max_cosine: f64,
    /// The part of directions that have another one within [`DUPLICATE`].
    pub duplicates: f64,
    /// How many have their largest cosine in 0–0.05, …, 0.95–1; those below 0 are in the first bin.
    pub histogram: [u64; COSINE_BINS],
    /// The mean that as many random directions of this width would have.
    pub random_mean_max_cosine: f64,
}

/// The directions that latents read (SAEBench's core metrics).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EncoderGeometry {
    /// The mean length of them.
    pub mean_norm: f64,
    /// The largest cosine of each to another one.
    #[serde(flatten)]
    pub neighbours: Geometry,
    /// The cosine of each with what the same latent writes; `None` where that is another site.
    pub decoder_cosine: Option<Alignment>,
}

/// Cosines between what latents read and what they write.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alignment {
    /// Latents neither side of which is zero.
    pub n: usize,
    /// In the mean over them.
    pub mean: f64,
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// How many are in −1–−0.95, …, 0.95–1.
    pub histogram: Vec<u64>,
}

impl Alignment {
    fn of(cosines: Vec<Option<f32>>) -> Self {
        let mut found: Vec<f64> = cosines.into_iter().flatten().map(f64::from).collect();
        found.sort_by(f64::total_cmp);
        let n = found.len();
        let mut histogram = vec![0; 2 * COSINE_BINS];
        for &cosine in &found {
            histogram[(((cosine + 1.0) * COSINE_BINS as f64) as usize).min(2 * COSINE_BINS - 1)] += 1;
        }
        Self {
            n,
            mean: found.iter().sum::<f64>() / n as f64,
            median: found.get(n / 2).copied().unwrap_or(f64::NAN),
            least: found.first().copied().unwrap_or(f64::NAN),
            histogram,
        }
    }
}

/// Looks at both sides of a coder; `one_site`: whether it speaks of what it reads. Matching pursuit has one side.
pub(super) fn of_coder(
    coder: &dyn SparseCoder,
    one_site: bool,
    seed: u64,
    workers: &Workers,
) -> (Geometry, Option<EncoderGeometry>) {
    let decoder = coder.w_dec();
    let written = Directions::written(&decoder);
    let encoder = coder.w_enc().map(Directions::read).map(|read| EncoderGeometry {
        mean_norm: read.norms().iter().map(|&norm| f64::from(norm)).sum::<f64>() / read.len() as f64,
        neighbours: geometry(&read, seed, workers),
        decoder_cosine: one_site.then(|| Alignment::of(cosines::between(&read, &written, workers))),
    });
    (geometry(&written, seed, workers), encoder)
}

/// Looks at directions.
fn geometry(directions: &Directions<'_>, seed: u64, workers: &Workers) -> Geometry {
    let mut found = largest(directions, seed, workers);
    found.sort_by(f64::total_cmp);
    let n = found.len();
    let mut histogram = [0; COSINE_BINS];
    for &cosine in &found {
        histogram[((cosine * COSINE_BINS as f64).max(0.0) as usize).min(COSINE_BINS - 1)] += 1;
    }
    Geometry {
        n,
        mean_max_cosine: found.iter().sum::<f64>() / n as f64,
        median_max_cosine: found.get(n / 2).copied().unwrap_or(f64::NAN),
        max_cosine: found.last().copied().unwrap_or(f64::NAN),
        duplicates: found.iter().filter(|&&cosine| cosine >= DUPLICATE).count() as f64 / n as f64,
        histogram,
        random_mean_max_cosine: of_random_directions(directions.len(), directions.width()),
    }
}

/// The largest cosine of each of some directions to another one. Zeros are left out.
fn largest(directions: &Directions<'_>, seed: u64, workers: &Workers) -> Vec<f64> {
    let mut chosen: Vec<usize> = (0..directions.len()).filter(|&index| directions.norms()[index] > 0.0).collect();
    if chosen.len() > MAX_LATENTS {
        let mut random = Random::new(seed);
        for i in 0..MAX_LATENTS {
            let other = i + random.below((chosen.len() - i) as u64) as usize;
            chosen.swap(i, other);
        }
        chosen.truncate(MAX_LATENTS);
        chosen.sort_unstable();
    }
    let see = |largest: &mut f32, _, cosine| *largest = largest.max(cosine);
    let found = directions.cosines(&chosen, &f32::NEG_INFINITY, see, workers);
    // A direction that is alone has no neighbour.
    found.into_iter().filter(|cosine| cosine.is_finite()).map(f64::from).collect()
}

/// The mean largest cosine of `n` independent random directions in `width` dimensions:
/// E[max] = 1 − ∫ F(t)ⁿ⁻¹ dt over [−1, 1], with F the distribution of the cosine of two of them, whose density in the angle
/// is ∝ cosʷ⁻² of it.
fn of_random_directions(n: usize, width: usize) -> f64 {
    /// Steps of both integrals.
    const STEPS: usize = 20_000;
    if width < 2 || n < 2 {
        return f64::NAN;
    }
    let step = std::f64::consts::PI / STEPS as f64;
    let angle = |i: usize| (i as f64 + 0.5) * step - std::f64::consts::FRAC_PI_2;
    let density = |i: usize| ((width - 2) as f64 * angle(i).cos().ln()).exp();
    let total: f64 = (0..STEPS).map(density).sum();
    let (mut below, mut integral) = (0.0, 0.0);
    for i in 0..STEPS {
        let at = density(i) / total;
        let distribution: f64 = below + at / 2.0;
        integral += distribution.powf((n - 1) as f64) * angle(i).cos() * step;
        below += at;
    }
    1.0 - integral
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Matrix, Sae};

    #[test]
    fn the_nearest_of_a_few_directions_by_hand() {
        let matrix = Matrix::from_slice(5, 2, &[2.0, 0.0, 3.0, 4.0, 0.0, 1.0, 0.0, 0.0, -1.0, 0.0]);
        let found = geometry(&Directions::written(&matrix), 0, &Workers::new(1).unwrap());
        // 0.6, 0.8, 0.8, and the last one's nearest is at a right angle; zeros have no direction.
        assert_eq!(found.n, 4);
        assert!((found.mean_max_cosine - 2.2 / 4.0).abs() < 1e-6 && (found.max_cosine - 0.8).abs() < 1e-6);
        assert_eq!(found.duplicates, 0.0);
        assert_eq!((found.histogram[0], found.histogram[12] + found.histogram[11]), (1, 1));
    }

    #[test]
    fn random_directions_are_as_alike_as_the_formula_says_and_twins_are_found() {
        let mut random = Random::new(4);
        let mut matrix = Matrix::zeros(6000, 24);
        matrix.as_mut_slice().fill_with(|| random.normal() as f32);
        let workers = Workers::new(2).unwrap();
        let found = geometry(&Directions::written(&matrix), 0, &workers);
        assert_eq!(found.n, 6000);
        assert!((found.mean_max_cosine - found.random_mean_max_cosine).abs() < 0.005, "{found:?}");
        let twin = matrix.row(17).to_vec();
        for (to, from) in matrix.row_mut(5000).iter_mut().zip(twin) {
            *to = 3.0 * from;
        }
        assert!((geometry(&Directions::written(&matrix), 0, &workers).duplicates - 2.0 / 6000.0).abs() < 1e-9);
    }

    #[test]
    fn what_a_coder_reads_beside_what_it_writes() {
        // The first latent reads what it writes, the second the opposite, the third something else.
        let w_dec = Matrix::from_slice(3, 2, &[2.0, 0.0, 0.0, 1.0, 0.0, 5.0]);
        let w_enc = Matrix::from_slice(2, 3, &[3.0, 0.0, 0.6, 0.0, -1.0, 0.8]);
        let coder = Sae { w_enc, w_dec, b_enc: vec![0.0; 3], b_dec: vec![0.0; 2], ..Sae::default() };
        let workers = Workers::new(1).unwrap();
        let (decoder, encoder) = of_coder(&coder, true, 0, &workers);
        assert!((decoder.max_cosine - 1.0).abs() < 1e-6, "the last two write the same");
        let encoder = encoder.unwrap();
        assert!((encoder.mean_norm - 5.0 / 3.0).abs() < 1e-6);
        // 0.6, 0 and 0.6: the second reads nothing that is like the others.
        assert!((encoder.neighbours.mean_max_cosine - 0.4).abs() < 1e-6, "{encoder:?}");
        let cosine = encoder.decoder_cosine.unwrap();
        assert!((cosine.mean - 0.8 / 3.0).abs() < 1e-6 && cosine.least == -1.0 && (cosine.median - 0.8).abs() < 1e-6);
        assert_eq!((cosine.n, cosine.histogram[0], cosine.histogram[2 * COSINE_BINS - 1]), (3, 1, 1));
        assert_eq!(of_coder(&coder, false, 0, &workers).1.unwrap().decoder_cosine, None);
        let pursuit = Sae { w_enc: Matrix::default(), ..coder };
        assert_eq!(of_coder(&pursuit, true, 0, &workers), (decoder, None));
    }
}
