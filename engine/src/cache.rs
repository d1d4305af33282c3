//! Which activations did one run have, all in memory?

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use data::hook_point::HookPoint;
use tch::Tensor;

use crate::error::{Error, Result};
use crate::gemma::model::{Batch, Forward, Model, Output};
use crate::hook::Hooks;

/// The activations of one forward pass.
///
/// Points with a row per token hold `[tok, …]`; scores and patterns hold one `[n_heads, query, key]` for each sequence.
#[derive(Debug, Default)]
pub struct ActivationCache {
    values: BTreeMap<HookPoint, Vec<Tensor>>,
}

impl ActivationCache {
    /// The activation at a point, or of the first sequence for scores and patterns.
    pub fn get(&self, point: HookPoint) -> Option<&Tensor> {
        self.values.get(&point)?.first()
    }

    /// The activations of every sequence at a point.
    pub fn sequences(&self, point: HookPoint) -> &[Tensor] {
        self.values.get(&point).map_or(&[], Vec::as_slice)
    }

    /// Every point that was captured, in order.
    pub fn points(&self) -> impl Iterator<Item = HookPoint> + '_ {
        self.values.keys().copied()
    }

    /// Writes everything to a safetensors file, one tensor for each name; a second sequence's pattern has `.1` behind it.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut named: Vec<(String, &Tensor)> = Vec::new();
        for (point, tensors) in &self.values {
            for (i, tensor) in tensors.iter().enumerate() {
                named.push((if i == 0 { point.to_string() } else { format!("{point}.{i}") }, tensor));
            }
        }
        Tensor::write_safetensors(&named, path)
            .map_err(|source| Error::Torch { what: format!("write `{}`", path.display()), source })
    }
}

impl Model {
    /// Runs the network and keeps the activations at `points`.
    pub fn forward_with_cache(
        &self,
        batch: &Batch,
        points: &[HookPoint],
        options: Forward,
    ) -> Result<(Output, ActivationCache)> {
        let kept = Rc::new(RefCell::new(ActivationCache::default()));
        let mut hooks = Hooks::none();
        for &point in points {
            let kept = Rc::clone(&kept);
            // Nothing in the network writes in place, so a second handle on the tensor is enough.
            hooks.read(point, move |_, value| {
                kept.borrow_mut().values.entry(point).or_default().push(value.shallow_clone());
            });
        }
        let output = self.forward(batch, None, &mut hooks, options)?;
        drop(hooks);
        Ok((output, kept.take()))
    }
}
