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

/// An order of tokens that belongs to a seed: that of their keys.
///
/// Unlike a shuffle of a list it is the same whatever the memory is, and whichever of the tokens are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    before: u64,
    between: u64,
}

impl Order {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, 0, 0);
        Self { before: random.0.next_u64(), between: random.0.next_u64() }
    }

    /// No two tokens have the same: each step can be undone.
    pub(crate) const fn key(self, token_idx: u64) -> u64 {
        mix(mix(token_idx.wrapping_add(self.before)).wrapping_add(self.between))
    }

    /// Which of `buckets` parts of the order a key lies in.
    pub(crate) const fn bucket(key: u64, buckets: usize) -> usize {
        ((key as u128 * buckets as u128) >> 64) as usize
    }
}

/// The finalizer of SplitMix64: every bit depends on every other.
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
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

    #[test]
    fn keys_are_unique_spread_and_those_of_the_seed() {
        let order = Order::new(7);
        let mut keys: Vec<u64> = (0..10_000).map(|token| order.key(token)).collect();
        assert_eq!(keys[..2], KEYS, "every shuffled run would have another order");
        let mut counts = [0usize; 10];
        for &key in &keys {
            counts[Order::bucket(key, 10)] += 1;
        }
        // Five standard deviations of a binomial.
        assert!(counts.iter().all(|&n| n.abs_diff(1000) < 150), "{counts:?}");
        assert_eq!((Order::bucket(0, 3), Order::bucket(u64::MAX, 3)), (0, 2));
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 10_000);
        assert_ne!(Order::new(8).key(0), order.key(0));
    }

    const KEYS: [u64; 2] = [12_579_215_787_893_616_707, 6_467_223_601_443_483_628];
    const STORED: [usize; 4] = [951, 917, 296, 320];
}
