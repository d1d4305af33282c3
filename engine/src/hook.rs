//! What runs at a hook point, and how does the forward pass reach it?
//!
//! The forward pass calls [`Hooks::at`] once for each hook point, on a line of its own.
//! Where nothing is attached this is one look into a table: no copy, no allocation.

use std::fmt;

use data::hook_point::{HookPoint, Site, TABLE};
use tch::Tensor;

/// Where in the forward pass a hook is being run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub point: HookPoint,
    /// Which sequence of the batch, for activations of whole sequences (attention scores and patterns).
    /// `None` means the tensor holds the tokens of all sequences, end to end.
    pub sequence: Option<usize>,
}

/// What a hook does: it sees the activation, and leaves it alone (`None`) or replaces it.
///
/// Shapes: `[tok, …]` with the per-token shape of [`HookPoint::shape`], or `[n_heads, query, key]` for scores and patterns.
/// A replacement must have the same shape; its dtype is converted.
pub type HookFn<'a> = Box<dyn FnMut(Place, &Tensor) -> Option<Tensor> + 'a>;

/// The hooks of one forward pass, run in the order in which they were added.
#[derive(Default)]
pub struct Hooks<'a> {
    hooks: Vec<(HookPoint, HookFn<'a>)>,
    /// Whether anything is attached, by layer (the last row is for points without a layer) and site.
    wanted: Vec<[bool; TABLE.len()]>,
}

impl fmt::Debug for Hooks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.hooks.iter().map(|(point, _)| point.to_string())).finish()
    }
}

impl<'a> Hooks<'a> {
    /// No hooks.
    pub fn none() -> Self {
        Self::default()
    }

    /// Attaches a hook that may replace what it sees.
    pub fn add(&mut self, point: HookPoint, hook: impl FnMut(Place, &Tensor) -> Option<Tensor> + 'a) {
        let row = Self::row(point);
        if self.wanted.len() <= row {
            self.wanted.resize(row + 1, [false; TABLE.len()]);
        }
        self.wanted[row][point.site as usize] = true;
        self.hooks.push((point, Box::new(hook)));
    }

    /// Attaches a hook that only reads.
    pub fn read(&mut self, point: HookPoint, mut hook: impl FnMut(Place, &Tensor) + 'a) {
        self.add(point, move |place, value| {
            hook(place, value);
            None
        });
    }

    /// Whether anything is attached to a point.
    pub fn wants(&self, point: HookPoint) -> bool {
        self.wanted.get(Self::row(point)).is_some_and(|row| row[point.site as usize])
    }

    /// The last layer that a hook is attached to, or `None` if every hook is at the embedding.
    /// Points behind the last block count as `n_layers`.
    pub fn last_layer(&self, n_layers: usize) -> Option<usize> {
        self.hooks
            .iter()
            .filter_map(|(point, _)| match (point.layer, point.site) {
                (None, Site::Embed) => None,
                (None, _) => Some(n_layers),
                (layer, _) => layer,
            })
            .max()
    }

    /// Runs what is attached to `point` on `value`, and returns what the forward pass goes on with.
    pub(crate) fn at(&mut self, point: HookPoint, value: Tensor) -> Tensor {
        if !self.wants(point) {
            return value;
        }
        self.run(Place { point, sequence: None }, &value).unwrap_or(value)
    }

    /// Like [`Self::at`] for a value that only hooks need: it is not computed otherwise.
    /// `None` if no hook replaced it.
    pub(crate) fn run_if_wanted(&mut self, point: HookPoint, value: impl FnOnce() -> Tensor) -> Option<Tensor> {
        if !self.wants(point) {
            return None;
        }
        self.run(Place { point, sequence: None }, &value())
    }

    /// Runs what is attached to `place` on `value`; `None` if no hook replaced it.
    pub(crate) fn run(&mut self, place: Place, value: &Tensor) -> Option<Tensor> {
        let mut replaced: Option<Tensor> = None;
        for (point, hook) in &mut self.hooks {
            if *point == place.point {
                let current = replaced.as_ref().unwrap_or(value);
                if let Some(new) = hook(place, current) {
                    assert_eq!(new.size(), value.size(), "a replacement at `{point}` must keep the shape");
                    replaced = Some(new.to_kind(value.kind()));
                }
            }
        }
        replaced
    }

    fn row(point: HookPoint) -> usize {
        point.layer.map_or(0, |layer| layer + 1)
    }
}
