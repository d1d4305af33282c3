//! Is the order in which rows come a random one? Pearson's χ² over documents and over positions.
//!
//! Rows of a table are batches, columns are documents (or stretches of positions), cells count tokens. When the order is a
//! random permutation, both margins are fixed and cells are hypergeometric: χ² has the mean (b − 1)(c − 1) · N / (N − 1) and
//! nearly the distribution of χ² with (b − 1)(c − 1) degrees of freedom, as long as batches are a small part of the run.
//! Wilson and Hilferty's cube root makes it a standard normal deviate. An order that mixes too little gives a large one,
//! an order that is more even than chance a small one; both are failures.

use super::*;
use crate::Dtype;
use crate::random::Random;
use crate::testing::{self, hook};

/// Tokens of a document, and of the stretches that positions are counted in.
const DOC: u64 = 640;
const STRETCH: u64 = 20;
/// Expected in a cell: 512 / 64 by document, 512 / 32 by position. Fewer than 5 would spoil the approximation.
const BATCH: usize = 512;
const N: u64 = 64 * DOC;

/// Deviates beyond this are failures: the chance is 6 in 100,000.
const LIMIT: f64 = 4.0;

/// How far an order is from a random one, by document and by position.
#[derive(Debug)]
struct Deviates {
    document: f64,
    position: f64,
}

impl Deviates {
    fn of<'a>(batches: impl IntoIterator<Item = &'a [u64]>) -> Self {
        let batches: Vec<&[u64]> = batches.into_iter().collect();
        let table = |class: &dyn Fn(u64) -> usize, classes| {
            let count = |batch: &&[u64]| {
                let mut cells = vec![0.0; classes];
                batch.iter().for_each(|&token| cells[class(token)] += 1.0);
                cells
            };
            deviate(&batches.iter().map(count).collect::<Vec<_>>())
        };
        let documents = batches.iter().flat_map(|batch| batch.iter()).max().map_or(0, |last| last / DOC + 1) as usize;
        Self {
            document: table(&|token| (token / DOC) as usize, documents),
            position: table(&|token| (token % DOC / STRETCH) as usize, (DOC / STRETCH) as usize),
        }
    }

    fn is_random(&self) -> bool {
        self.document.abs() < LIMIT && self.position.abs() < LIMIT
    }
}

/// χ² of independence as a standard normal deviate.
fn deviate(table: &[Vec<f64>]) -> f64 {
    let rows: Vec<f64> = table.iter().map(|row| row.iter().sum()).collect();
    let columns: Vec<f64> = (0..table[0].len()).map(|column| table.iter().map(|row| row[column]).sum()).collect();
    let n: f64 = rows.iter().sum();
    let mut chi2 = 0.0;
    for (row, row_sum) in table.iter().zip(&rows) {
        for (cell, column_sum) in row.iter().zip(&columns) {
            let expected = row_sum * column_sum / n;
            chi2 += (cell - expected).powi(2) / expected;
        }
    }
    let degrees = ((rows.len() - 1) * (columns.len() - 1)) as f64;
    let (mean, variance) = (1.0 - 2.0 / (9.0 * degrees), 2.0 / (9.0 * degrees));
    ((chi2 * (n - 1.0) / n / degrees).cbrt() - mean) / variance.sqrt()
}

fn options(seed: u64) -> BatchOptions {
    BatchOptions {
        batch_rows: BATCH,
        buffer_rows: N as usize,
        seed,
        epochs: 1,
        skip_special: false,
        max_norm_multiple: None,
    }
}

fn deviates(run: &Run, options: BatchOptions) -> Deviates {
    let batches: Vec<Batch> = BatchReader::new(run, &[hook()], options).unwrap().map(Result::unwrap).collect();
    Deviates::of(batches.iter().map(|batch| &batch.token_idx[..]))
}

#[test]
fn a_shuffled_run_comes_in_a_random_order() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(&dir.path().join("run"), 2, Dtype::F32, &[N / 2, N / 2]);
    for seed in 0..5 {
        let shuffled = testing::shuffled(&run, &dir.path().join(format!("shuffled-{seed}")), seed, 10);
        assert_eq!(shuffled.shards().len(), 10);
        let found = deviates(&shuffled, options(seed));
        assert!(found.is_random(), "seed {seed}: {found:?}");
    }
}

#[test]
fn a_buffer_that_holds_the_run_gives_a_random_order() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), 2, Dtype::F32, &[N / 2, N / 2]);
    for seed in 0..5 {
        let found = deviates(&run, options(seed));
        assert!(found.is_random(), "seed {seed}: {found:?}");
    }
}

/// What the documentation says of a small buffer, so that nobody has to find out.
#[test]
fn a_small_buffer_mixes_positions_but_not_documents() {
    let dir = tempfile::tempdir().unwrap();
    // Sixteen row groups, of which four are in the buffer.
    let n = 16 * 520;
    let run = testing::run(dir.path(), 4000, Dtype::F32, &[n]);
    let found = deviates(&run, BatchOptions { batch_rows: 260, buffer_rows: 4 * 520, ..options(0) });
    assert!(found.document > 10.0 * LIMIT, "{found:?}");
    assert!(found.position < 3.0 * LIMIT, "{found:?}");
}

#[test]
fn the_test_notices_an_order_that_is_not_random() {
    let all: Vec<u64> = (0..N).collect();
    let in_order = Deviates::of(all.chunks(BATCH));
    assert!(in_order.document > 100.0 && in_order.position > 10.0 * LIMIT, "{in_order:?}");
    // Batches of whole documents have every position alike.
    let documents = Deviates::of(all.chunks(DOC as usize));
    assert!(documents.document > 100.0 && documents.position < -LIMIT, "{documents:?}");
    // One token in ten stays with its neighbours.
    let mut almost = all.clone();
    Random::new(1, 0, 0).shuffle(&mut almost);
    assert!(Deviates::of(almost.chunks(BATCH)).is_random());
    for (place, token) in all.iter().enumerate().filter(|(place, _)| place % 10 == 0) {
        let other = almost.iter().position(|other| other == token).unwrap();
        almost.swap(place, other);
    }
    let found = Deviates::of(almost.chunks(BATCH));
    assert!(!found.is_random(), "{found:?}");
}
