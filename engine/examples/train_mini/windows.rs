//! In which order does the model see the tokens?

use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64;

use crate::recipe::CONTEXT;
use crate::vocabulary::BOS;

/// A stretch of one document. The model reads BOS and all tokens but the last, and is asked for every one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) document: usize,
    pub(crate) start: usize,
    pub(crate) length: usize,
}

/// Cuts documents of these lengths into windows that cover each token once.
pub(crate) fn cut(lengths: impl Iterator<Item = usize>) -> Vec<Window> {
    let of = |(document, length): (usize, usize)| {
        let starts = (0..length).step_by(CONTEXT);
        starts.map(move |start| Window { document, start, length: CONTEXT.min(length - start) })
    };
    lengths.enumerate().flat_map(of).collect()
}

/// Which window is the `nth` of a training: every pass goes through all of them in an order of its own.
pub(crate) struct Order {
    seed: u64,
    n_windows: usize,
    pass: Option<(usize, Vec<usize>)>,
}

impl Order {
    pub(crate) fn new(seed: u64, n_windows: usize) -> Self {
        Self { seed, n_windows, pass: None }
    }

    pub(crate) fn nth(&mut self, nth: usize) -> usize {
        let (pass, at) = (nth / self.n_windows, nth % self.n_windows);
        match &self.pass {
            Some((current, order)) if *current == pass => order[at],
            _ => {
                let order = shuffled(self.n_windows, self.seed.wrapping_mul(1_000_003).wrapping_add(pass as u64));
                let found = order[at];
                self.pass = Some((pass, order));
                found
            }
        }
    }
}

/// Fisher and Yates.
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut random = Pcg64::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let below = ((u128::from(random.next_u64()) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, below);
    }
    order
}

/// What the model reads and what it is asked for, of one window.
pub(crate) fn read(document: &[u32], window: Window) -> (Vec<u32>, Vec<u32>) {
    let targets = &document[window.start..window.start + window.length];
    let inputs = std::iter::once(BOS).chain(targets[..targets.len() - 1].iter().copied()).collect();
    (inputs, targets.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_asked_for_once() {
        let lengths = [CONTEXT * 2 + 3, 1, CONTEXT];
        let windows = cut(lengths.into_iter());
        assert_eq!(windows.iter().map(|w| w.length).collect::<Vec<_>>(), [CONTEXT, CONTEXT, 3, 1, CONTEXT]);
        let document: Vec<u32> = (10..10 + lengths[0] as u32).collect();
        let (inputs, targets) = read(&document, windows[2]);
        assert_eq!((inputs[0], &inputs[1..], targets[2]), (BOS, &targets[..2], document[CONTEXT * 2 + 2]));
        let asked: Vec<u32> = windows[..3].iter().flat_map(|w| read(&document, *w).1).collect();
        assert_eq!(asked, document);
    }

    #[test]
    fn a_pass_is_a_permutation() {
        let mut order = Order::new(7, 50);
        let mut pass = |n: usize| (n * 50..(n + 1) * 50).map(|i| order.nth(i)).collect::<Vec<_>>();
        let (one, two, again) = (pass(0), pass(1), pass(0));
        assert_ne!(one, two);
        assert_eq!(one, again);
        let mut sorted = two;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
}
