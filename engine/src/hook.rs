//! What runs at a hook point, and how does the forward pass reach it?
//!
//! The forward pass calls [`Hooks::at`] once for each hook point, on a line of its own.
//! Where nothing is attached this is one look into a table: no copy, no allocation.

use std::fmt;

use data::hook_point::{HookPoint, TABLE};
use tch::Tensor;

/// The tokens of one forward pass: what stands in which row of an activation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Row by row.
    pub ids: Vec<u32>,
    /// How many rows each sequence has; sequences lie end to end.
    pub lengths: Vec<usize>,
    /// How many tokens of each sequence were seen before this pass.
    pub past: Vec<usize>,
}

/// Where one row of an activation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub sequence: usize,
    /// In the sequence; its first token is at 0.
    pub position: usize,
    pub id: u32,
}

impl Tokens {
    /// Every row, in order.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let places = self.lengths.iter().zip(&self.past).enumerate();
        let places = places.flat_map(|(sequence, (&n, &past))| (past..past + n).map(move |at| (sequence, at)));
        places.zip(&self.ids).map(|((sequence, position), &id)| Row { sequence, position, id })
    }
}

/// Where in the forward pass a hook is being run.
#[derive(Clone, Copy, Debug)]
pub struct Place<'t> {
    pub point: HookPoint,
    /// Which sequence of the batch, for activations of whole sequences (attention scores and patterns).
    /// `None` means the tensor holds the tokens of all sequences, end to end.
    pub sequence: Option<usize>,
    pub tokens: &'t Tokens,
}

/// What a hook does: it sees the activation, and leaves it alone (`None`) or replaces it.
///
/// Shapes: `[tok, …]` with the per-token shape of [`HookPoint::shape`], or `[n_heads, query, key]` for scores and patterns.
/// A replacement must have the same shape; its dtype is converted.
pub type HookFn<'a> = Box<dyn FnMut(Place<'_>, &Tensor) -> Option<Tensor> + 'a>;

/// The hooks of one forward pass, run in the order in which they were added.
#[derive(Default)]
pub struct Hooks<'a> {
    attached: Vec<(HookPoint, HookFn<'a>)>,
    /// Whether anything is attached, by layer (the last row is for points without a layer) and site.
    wanted: Vec<[bool; TABLE.len()]>,
    tokens: Tokens,
}

impl fmt::Debug for Hooks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.attached.iter().map(|(point, _)| point.to_string())).finish()
    }
}

impl<'a> Hooks<'a> {
    /// No hooks.
    pub fn none() -> Self {
        Self::default()
    }

    /// Attaches a hook that may replace what it sees.
    pub fn add(&mut self, point: HookPoint, hook: impl FnMut(Place<'_>, &Tensor) -> Option<Tensor> + 'a) {
        let row = Self::row(point);
        if self.wanted.len() <= row {
            self.wanted.resize(row + 1, [false; TABLE.len()]);
        }
        self.wanted[row][point.site as usize] = true;
        self.attached.push((point, Box::new(hook)));
    }

    /// Attaches a hook that only reads.
    pub fn read(&mut self, point: HookPoint, mut hook: impl FnMut(Place<'_>, &Tensor) + 'a) {
        self.add(point, move |place, value| {
            hook(place, value);
            None
        });
    }

    /// Whether anything is attached to a point.
    pub fn wants(&self, point: HookPoint) -> bool {
        self.wanted.get(Self::row(point)).is_some_and(|row| row[point.site as usize])
    }

    /// Whether nothing is attached anywhere.
    pub fn is_empty(&self) -> bool {
        self.attached.is_empty()
    }

    /// Tells the hooks which tokens the pass that begins is about.
    pub(crate) fn begin(&mut self, tokens: impl FnOnce() -> Tokens) {
        if !self.is_empty() {
            self.tokens = tokens();
        }
    }

    /// Runs what is attached to `point` on `value`, and returns what the forward pass goes on with.
    pub(crate) fn at(&mut self, point: HookPoint, value: Tensor) -> Tensor {
        if !self.wants(point) {
            return value;
        }
        self.run(point, None, &value).unwrap_or(value)
    }

    /// Like [`Self::at`] for a value that only hooks need: it is not computed otherwise.
    /// `None` if no hook replaced it.
    pub(crate) fn run_if_wanted(&mut self, point: HookPoint, value: impl FnOnce() -> Tensor) -> Option<Tensor> {
        if !self.wants(point) {
            return None;
        }
        self.run(point, None, &value())
    }

    /// Runs what is attached to `point` on `value`, of one sequence or of all; `None` if no hook replaced it.
    pub(crate) fn run(&mut self, point: HookPoint, sequence: Option<usize>, value: &Tensor) -> Option<Tensor> {
        let place = Place { point, sequence, tokens: &self.tokens };
        let mut replaced: Option<Tensor> = None;
        for (at, hook) in &mut self.attached {
            if *at == point {
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
