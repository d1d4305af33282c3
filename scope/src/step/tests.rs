//! Does the fast step compute what the plain one does?

use super::*;
use crate::{
    loss::{Parameters, loss_and_gradients},
    optimizer::make_unit,
    random::Random,
    testing::structured_rows,
};

const D_IN: usize = 12;
const D_SAE: usize = 40;
/// More than one block of rows, the last one not full.
const ROWS: usize = BLOCK_ROWS + 37;
const SCALE: f32 = 0.5;

fn weights(seed: u64) -> Weights {
    let mut random = Random::new(seed);
    let mut weights = Weights::zeros(D_IN, D_SAE);
    weights.encoder.as_mut_slice().fill_with(|| 0.4 * random.normal() as f32);
    weights.decoder.as_mut_slice().fill_with(|| random.normal() as f32);
    for latent in 0..D_SAE {
        make_unit(weights.decoder.row_mut(latent));
    }
    weights.b_enc.fill_with(|| 0.1 * random.normal() as f32);
    weights.b_dec.fill_with(|| random.normal() as f32);
    weights
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

fn parameters(weights: &Weights) -> Parameters {
    Parameters {
        w_enc: wide(weights.encoder.transposed().as_slice()),
        w_dec: wide(weights.decoder.as_slice()),
        b_enc: wide(&weights.b_enc),
        b_dec: wide(&weights.b_dec),
    }
}

fn run(selection: Selection, aux: Option<AuxK<'_>>, threads: usize) -> (Outcome, Weights, Vec<u32>) {
    let rows = structured_rows(ROWS, D_IN, 20, 5);
    let workers = Workers::new(threads).unwrap();
    let mut step = Step::new(D_IN, D_SAE, &workers);
    let mut selector = Selector::new(selection);
    let input = Input { rows: &rows, scale: SCALE, aux };
    let weights = weights(1);
    // Twice: the second time with what the first remembers.
    let first = step.run(&workers, &weights, &mut selector, input);
    let second = step.run(&workers, &weights, &mut selector, input);
    assert_eq!(first, second);
    let mut gradients = step.gradients.clone();
    for latent in 0..D_SAE {
        if !step.touched[latent] {
            gradients.encoder.row_mut(latent).fill(0.0);
            gradients.decoder.row_mut(latent).fill(0.0);
        }
    }
    (second, gradients, step.fired)
}

/// Compares the fast step with the plain one, whose decoder gradient still has the part along the rows.
fn check(selection: Selection, aux: Option<AuxK<'_>>) {
    let (outcome, fast, fired) = run(selection, aux, 2);
    let weights = weights(1);
    let rows: Vec<f64> = structured_rows(ROWS, D_IN, 20, 5).iter().map(|&x| f64::from(x) * f64::from(SCALE)).collect();
    let (loss, plain) = loss_and_gradients(&parameters(&weights), &rows, selection, aux, None).unwrap();
    assert!((outcome.loss - loss.reconstruction).abs() < 1e-5 * loss.reconstruction, "{outcome:?} {loss:?}");
    assert!((outcome.aux_loss - loss.aux).abs() <= 1e-5 * loss.aux, "{outcome:?} {loss:?}");
    assert_eq!(loss.aux > 0.0, aux.is_some());
    assert_eq!(outcome.n_kept, fired.iter().sum::<u32>() as usize);

    let mut w_dec = plain.w_dec;
    for latent in 0..D_SAE {
        let row = wide(weights.decoder.row(latent));
        let gradient = &mut w_dec[latent * D_IN..][..D_IN];
        let along: f64 = row.iter().zip(gradient.iter()).map(|(a, b)| a * b).sum();
        gradient.iter_mut().zip(row).for_each(|(gradient, row)| *gradient -= along * row);
    }
    let close = |name: &str, fast: &[f32], plain: &[f64]| {
        let scale = plain.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        assert!(scale > 1e-6, "{name} has a gradient");
        for (i, (&fast, &plain)) in fast.iter().zip(plain).enumerate() {
            assert!((f64::from(fast) - plain).abs() < 1e-4 * scale, "{name}[{i}]: {fast} and {plain}");
        }
    };
    close("w_enc", fast.encoder.transposed().as_slice(), &plain.w_enc);
    close("w_dec", fast.decoder.as_slice(), &w_dec);
    close("b_enc", &fast.b_enc, &plain.b_enc);
    close("b_dec", &fast.b_dec, &plain.b_dec);
    let squares = [&plain.w_enc, &w_dec, &plain.b_enc, &plain.b_dec];
    let norm = squares.iter().flat_map(|part| part.iter()).map(|g| g * g).sum::<f64>().sqrt();
    assert!((outcome.gradient_norm - norm).abs() < 1e-4 * norm);
}

#[test]
fn the_fast_step_equals_the_plain_one() {
    check(Selection::TopK { k: 4 }, None);
    check(Selection::BatchTopK { k: 4 }, None);
    check(Selection::TopK { k: D_SAE }, None);
}

#[test]
fn with_auxk_too() {
    let dead = [0, 3, 17, 39];
    let all: Vec<u32> = (0..D_SAE as u32).collect();
    for (dead, k) in [(&dead[..], 1), (&dead, 3), (&dead, 6), (&all, 4), (&all, 6)] {
        // The few go through dense products, all of them with k = 4 entry by entry.
        assert_eq!(Dense::suits(dead.len(), k), (dead.len(), k) != (D_SAE, 4));
        let aux = Some(AuxK { dead, k, weight: 1.0 / 32.0 });
        check(Selection::TopK { k: 4 }, aux);
        check(Selection::BatchTopK { k: 4 }, aux);
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let dead = [0, 3, 17, 39];
    let aux = Some(AuxK { dead: &dead, k: 3, weight: 1.0 / 32.0 });
    for selection in [Selection::TopK { k: 4 }, Selection::BatchTopK { k: 4 }] {
        assert_eq!(run(selection, aux, 1), run(selection, aux, 3));
    }
}

#[test]
fn batch_topk_keeps_k_in_the_mean_and_topk_in_each() {
    let (outcome, ..) = run(Selection::BatchTopK { k: 4 }, None, 1);
    assert_eq!(outcome.n_kept, 4 * ROWS);
    assert!(outcome.smallest.unwrap() > 0.0);
    let (outcome, ..) = run(Selection::TopK { k: 4 }, None, 1);
    assert!(outcome.n_kept <= 4 * ROWS);
}

#[test]
fn a_batch_of_equal_rows_has_a_finite_loss() {
    let rows = [1.0; D_IN].repeat(3);
    let workers = Workers::new(1).unwrap();
    let mut step = Step::new(D_IN, D_SAE, &workers);
    let dead = [1, 2];
    let aux = Some(AuxK { dead: &dead, k: 3, weight: 1.0 });
    let mut selector = Selector::new(Selection::TopK { k: 2 });
    let outcome = step.run(&workers, &weights(1), &mut selector, Input { rows: &rows, scale: 1.0, aux });
    assert!(outcome.loss.is_finite() && outcome.aux_loss.is_finite() && outcome.gradient_norm.is_finite());
}
