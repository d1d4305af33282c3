//! What does each layer get of the model's sizes, and which layers share?

use super::{Config, Generation, LayerConfig, LayerKind, bad};
use crate::error::Result;

/// Full attention on every `every`-th layer, the first of them at index `every - 1`. The last layer is not special.
pub(super) fn pattern(n_layers: usize, every: usize) -> Vec<LayerKind> {
    let kind = |layer: usize| if (layer + 1).is_multiple_of(every) { LayerKind::Full } else { LayerKind::Sliding };
    (0..n_layers).map(kind).collect()
}

/// How often a full layer comes where a checkpoint says nothing.
pub(super) fn full_every(generation: Generation) -> usize {
    match generation {
        Generation::Gemma3 | Generation::Gemma4 => 6,
        Generation::Gemma3n => 5,
    }
}

/// How many of the last layers read the keys and values of earlier ones where a checkpoint says nothing.
pub(super) fn kv_shared(generation: Generation) -> usize {
    match generation {
        Generation::Gemma3 | Generation::Gemma4 => 0,
        Generation::Gemma3n => 15,
    }
}

/// One layer of each of these kinds, with the model's own widths.
pub(super) fn uniform(config: &Config, kinds: &[LayerKind]) -> Vec<LayerConfig> {
    let layer = |&kind| LayerConfig {
        kind,
        n_kv_heads: config.n_kv_heads,
        d_head: config.d_head,
        d_mlp: config.d_mlp,
        kv_source: None,
        value_is_key: false,
        activation_sparsity: 0.0,
    };
    kinds.iter().map(layer).collect()
}

/// The layers with full attention.
pub(super) fn full(layers: &mut [LayerConfig]) -> impl Iterator<Item = &mut LayerConfig> {
    layers.iter_mut().filter(|layer| layer.kind == LayerKind::Full)
}

/// Lets the last `n_shared` layers read the keys and values of the last layer of their kind before them.
pub(super) fn share_keys(layers: &mut [LayerConfig], n_shared: usize) -> Result<()> {
    if n_shared == 0 {
        return Ok(());
    }
    let refused = |expected: &str| Err(bad("num_kv_shared_layers", expected, &n_shared.to_string()));
    let Some(first) = layers.len().checked_sub(n_shared) else {
        return refused(&format!("at most the {} layers", layers.len()));
    };
    for kind in [LayerKind::Full, LayerKind::Sliding] {
        let source = layers[..first].iter().rposition(|layer| layer.kind == kind);
        if source.is_none() && layers.iter().any(|layer| layer.kind == kind) {
            return refused("a layer of each kind before those that share");
        }
        for layer in layers[first..].iter_mut().filter(|layer| layer.kind == kind) {
            layer.kv_source = source;
        }
    }
    Ok(())
}

/// Doubles the MLPs of the layers that share another's keys.
pub(super) fn double_sharing_mlps(layers: &mut [LayerConfig]) {
    for layer in layers.iter_mut().filter(|layer| layer.kv_source.is_some()) {
        layer.d_mlp = layer.d_mlp.saturating_mul(2);
    }
}

/// What Gemma 3n's layers cut off where a checkpoint does not say.
pub(super) fn default_sparsity(n_layers: usize) -> Vec<f64> {
    const N_SPARSE: usize = 10;
    let n_sparse = if n_layers > N_SPARSE { N_SPARSE } else { 0 };
    (0..n_layers).map(|layer| if layer < n_sparse { 0.95 } else { 0.0 }).collect()
}

pub(super) fn set_sparsity(layers: &mut [LayerConfig], sparsity: &[f64]) {
    for (layer, &sparsity) in layers.iter_mut().zip(sparsity) {
        layer.activation_sparsity = sparsity;
    }
}
