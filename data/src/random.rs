//! Which random numbers are drawn from a seed?
//!
//! The generator and its use are spelled out, so that a seed gives the same order with every version of a dependency.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

/// A stream of random numbers that belongs to a seed and two indices, such as epoch and buffer.
#[derive(Clone, Debug)]
pub(crate) struct Random(Pcg64);

impl Random {
    pub(crate) fn new(seed: u64, stream: u64, substream: u64) -> Self {
        // `seed_from_u64` spreads every bit over the state; the multipliers are odd, so that no two pairs meet soon.
        let mixed = seed
            ^ stream.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ substream.wrapping_add(1).wrapping_mul(0xc2b2_ae3d_27d4_eb4f).rotate_left(32);
        Self(Pcg64::seed_from_u64(mixed))
    }

    /// A number below `n`, each equally likely to one part in 2⁶⁴ / n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Fisher and Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i + 1);
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_order_and_streams_differ() {
        let order = |seed, stream, substream| {
            let mut items: Vec<u32> = (0..100).collect();
            Random::new(seed, stream, substream).shuffle(&mut items);
            items
        };
        assert_eq!(order(7, 0, 0), order(7, 0, 0));
        let all = [order(7, 0, 0), order(8, 0, 0), order(7, 1, 0), order(7, 0, 1)];
        for i in 0..4 {
            for j in 0..i {
                assert_ne!(all[i], all[j]);
            }
        }
        let mut sorted = order(7, 0, 0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        // Stored, so that a new version of a dependency cannot change the order silently.
        let mut random = Random::new(0, 0, 0);
        let drawn: Vec<usize> = (0..4).map(|_| random.below(1000)).collect();
        assert_eq!(drawn, STORED, "the order of every run with a seed would change");
    }

    const STORED: [usize; 4] = [951, 917, 296, 320];
}
