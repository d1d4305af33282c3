//! What does a model remember of the tokens that it has already seen?

use tch::Tensor;

/// The keys and values of every layer, for the sequences of one batch.
///
/// Full layers remember everything; sliding layers the last `window − 1` tokens, which is all that the next token can see.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    /// How many tokens of each sequence have gone in.
    seen: Vec<usize>,
}

/// The part of one layer: keys and values by sequence, `[n_kv_heads, pos, d_head]`; keys after norm and rope.
#[derive(Debug)]
pub(crate) struct LayerCache {
    sequences: Vec<Option<(Tensor, Tensor)>>,
}

impl KvCache {
    /// An empty cache for a batch of `sequences`.
    pub fn new(n_layers: usize, sequences: usize) -> Self {
        let layer = || LayerCache { sequences: (0..sequences).map(|_| None).collect() };
        Self { layers: (0..n_layers).map(|_| layer()).collect(), seen: vec![0; sequences] }
    }

    /// How many tokens of each sequence have gone in.
    pub fn seen(&self) -> &[usize] {
        &self.seen
    }

    /// A second cache that remembers the same and goes on by itself. Tensors are shared, for none is written in place.
    #[must_use]
    pub fn fork(&self) -> Self {
        let layers = self.layers.iter().map(LayerCache::fork).collect();
        Self { layers, seen: self.seen.clone() }
    }

    /// Notes that `lengths` more tokens of each sequence went through all layers.
    pub(crate) fn advance(&mut self, lengths: &[i64]) {
        for (seen, &length) in self.seen.iter_mut().zip(lengths) {
            *seen += length as usize;
        }
    }

    /// Bytes that the cache holds.
    pub fn bytes(&self) -> usize {
        let size = |x: &Tensor| x.numel() * x.kind().elt_size_in_bytes();
        self.layers.iter().flat_map(|layer| &layer.sequences).flatten().map(|(k, v)| size(k) + size(v)).sum()
    }
}

impl LayerCache {
    fn fork(&self) -> Self {
        let share = |(k, v): &(Tensor, Tensor)| (k.shallow_clone(), v.shallow_clone());
        Self { sequences: self.sequences.iter().map(|slot| slot.as_ref().map(share)).collect() }
    }

    /// Appends the keys and values of new tokens, and returns all that these tokens may need to see.
    pub(crate) fn update(&mut self, sequence: usize, k: Tensor, v: Tensor, window: Option<i64>) -> (Tensor, Tensor) {
        let slot = &mut self.sequences[sequence];
        let (k, v) = match slot.take() {
            Some((past_k, past_v)) => (Tensor::cat(&[past_k, k], 1), Tensor::cat(&[past_v, v], 1)),
            None => (k, v),
        };
        let length = k.size()[1];
        let keep = window.map_or(length, |window| (window - 1).min(length));
        // A copy where something is dropped, so that the cache does not keep the dropped part alive.
        let last = |x: &Tensor| {
            let kept = x.narrow(1, length - keep, keep);
            if keep < length { kept.copy() } else { kept }
        };
        *slot = Some((last(&k), last(&v)));
        (k, v)
    }
}
