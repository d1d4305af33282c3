//! What does an architecture make of pre-activations, and what does it charge for them?
//!
//! One file for each: [`crate::l1`], [`crate::gated`], [`crate::topk`], [`crate::batch_topk`], [`crate::jump_relu`].
//! What they have in common (products, reconstruction, gradients of the weights) is in [`crate::step`]; plainly written, all
//! of it is in [`crate::loss`].

use std::ops::Range;

use crate::{
    batch_topk::BatchTopKRule,
    gated::Gated,
    init::Start,
    jump_relu::{JumpRelu, Price},
    kernels::scan_above,
    l1::L1,
    layout::Layout,
    sparse::SparseRows,
    step::{Group, Weights},
    topk::{TopK, TopKRule},
};

/// An architecture at work. What it remembers between batches changes how fast it is, not what it computes.
pub(crate) trait Rule: Send + Sync {
    /// How many numbers it learns of each latent beside weights and bias: [`Group::own`].
    fn own(&self) -> usize {
        0
    }

    /// Sets those numbers before the first step.
    fn start(&self, _group: &mut Group, _start: Start) {}

    /// How much faster than the weights they move.
    fn own_rate(&self, _layout: &Layout) -> f64 {
        1.0
    }

    /// Brings them back into their range after a step.
    fn project(&self, _weights: &mut Weights) {}

    /// Looks at the weights before a batch, and at the pre-activations of its first rows if [`Rule::wants_a_look`].
    fn prepare(&mut self, _weights: &Weights) {}

    /// Whether it has to see some pre-activations before it can select for the first time.
    fn wants_a_look(&self) -> bool {
        false
    }

    /// Shows it the pre-activations (`[n_rows, d_sae]`) of some rows.
    fn look(&mut self, _pre_acts: &[f32], _n_rows: usize) {}

    /// Leaves in `scratch.found` the latents of a row whose pre-activations must be exact, where they were computed in bf16:
    /// all that may fire or have a gradient.
    ///
    /// # Panics
    /// Where so many may that bf16 would spare nothing: see [`crate::TrainConfig::bf16`].
    fn candidates(&self, _row: &Rounded<'_>, _weights: &Weights, _scratch: &mut SelectScratch) {
        unreachable!("settings are checked before training begins")
    }

    /// Appends a row with the latents that may have a gradient.
    fn select(&self, pre_acts: &[f32], weights: &Weights, scratch: &mut SelectScratch, out: &mut Kept);

    /// Chooses among what was selected in all rows of a batch; `false` if it has to be selected again.
    fn settle(&mut self, _blocks: &mut [&mut Kept]) -> bool {
        true
    }

    /// Whether there is a second reconstruction, of the pre-activations that open gates; see [`Row::d_gate`].
    fn has_gates(&self) -> bool {
        false
    }

    /// Whether activations may be dead for want of a gradient, and AuxK helps.
    fn charges(&self) -> Charges {
        Charges::default()
    }

    /// Writes the gradients of one row, and returns what the row is charged, in units of the loss.
    fn differentiate(&self, terms: &Terms<'_>, row: &Row<'_>, out: &mut Gradients<'_>) -> f64;
}

/// Pre-activations of a row that were computed in bf16, and how far each may be from what it is.
pub(crate) struct Rounded<'a> {
    pub(crate) pre_acts: &'a [f32],
    /// Of each latent.
    pub(crate) norms: &'a [f32],
    pub(crate) largest_norm: f32,
    /// How far one is whose encoder row has norm 1.
    pub(crate) error: f32,
}

impl Rounded<'_> {
    /// Appends what may be above `floor` of some latents, with its value in bf16.
    pub(crate) fn append_above(&self, latents: &Range<usize>, floor: f32, found: &mut Vec<(f32, u32)>) {
        let first = found.len();
        let most = self.error * self.largest_norm;
        scan_above(&self.pre_acts[latents.clone()], 0, floor - most, usize::MAX, found);
        let mut kept = first;
        for at in first..found.len() {
            let (z, latent) = (found[at].0, found[at].1 as usize + latents.start);
            if z + self.error * self.norms[latent] > floor {
                found[kept] = (z, latent as u32);
                kept += 1;
            }
        }
        found.truncate(kept);
    }
}

/// What is charged of whole batches or of latents that are dead, and is therefore not a matter of single rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Charges {
    /// λ_p of `Σ ReLU(θ − z)` over dead latents.
    pub(crate) pre_act: f64,
    /// Weight and scale of `Σ p̂·(1 + p̂/s)` over the shares of rows in which latents fire.
    pub(crate) frequency: Option<(f64, f64)>,
    /// Whether [`Gradients::d_norm`] is used.
    pub(crate) norms: bool,
}

/// Selected latents of some rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    /// Latents by row, with their activations: 0 where a latent does not fire and has a gradient all the same.
    pub(crate) rows: SparseRows,
    /// Pre-activations of the same entries; empty where the activations are the same.
    pub(crate) pre_acts: Vec<f32>,
}

impl Kept {
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.pre_acts.clear();
    }

    /// Pre-activations entry by entry.
    pub(crate) fn pre_acts(&self) -> &[f32] {
        if self.pre_acts.is_empty() { self.rows.values() } else { &self.pre_acts }
    }

    /// Appends a row of activations, pre-activations and latents.
    pub(crate) fn push_row(&mut self, entries: impl Iterator<Item = (f32, f32, u32)>) {
        let pre_acts = &mut self.pre_acts;
        self.rows.push_row(entries.map(|(act, pre_act, latent)| {
            pre_acts.push(pre_act);
            (act, latent)
        }));
    }
}

/// What one thread uses again and again while it selects.
#[derive(Debug, Default)]
pub(crate) struct SelectScratch {
    pub(crate) found: Vec<(f32, u32)>,
    pub(crate) top_k: TopK,
}

/// What is the same for all rows of a batch.
pub(crate) struct Terms<'a> {
    pub(crate) n_rows: usize,
    /// `Σ‖y − ȳ‖²/B` of what is to be reconstructed: every squared error is divided by it.
    pub(crate) variance: f64,
    /// What the gradients of `½Σ‖ŷ − y‖²` are multiplied with.
    pub(crate) factor: f64,
    /// λ, as far as it has been warmed up.
    pub(crate) sparsity: f64,
    /// In how many rows each latent fires; empty unless [`Charges::frequency`] wants it.
    pub(crate) fired: &'a [u32],
    /// Whether each latent is dead; empty unless [`Charges::pre_act`] wants it.
    pub(crate) dead: &'a [bool],
    /// What each activation is multiplied with where it is charged: the sum of the norms of its decoder rows, one for each
    /// site. Empty where all are 1.
    pub(crate) norms: &'a [f32],
    pub(crate) weights: &'a Weights,
}

impl Terms<'_> {
    /// See [`Terms::norms`].
    pub(crate) fn norm(&self, latent: u32) -> f64 {
        self.norms.get(latent as usize).map_or(1.0, |&norm| f64::from(norm))
    }

    /// 1 / (B·√V): what a charge for the size of an activation is multiplied with, so that it is the same for small vectors
    /// and large ones.
    pub(crate) fn per_deviation(&self) -> f64 {
        1.0 / (self.n_rows as f64 * self.variance.sqrt())
    }
}

/// The entries of a row.
pub(crate) struct Row<'a> {
    pub(crate) latents: &'a [u32],
    pub(crate) acts: &'a [f32],
    pub(crate) pre_acts: &'a [f32],
    /// `½ ∂Σ‖ŷ − y‖² / ∂act`.
    pub(crate) d_act: &'a [f32],
    /// The same of the reconstruction from the pre-activations of gates, where there is one.
    pub(crate) d_gate: &'a [f32],
}

/// The gradients of a row's entries, of the loss itself.
pub(crate) struct Gradients<'a> {
    /// Of what the encoder's product gives.
    pub(crate) dz: &'a mut [f32],
    /// Of [`Group::own`], and last of `b_enc` where that is not `dz`.
    pub(crate) own: &'a mut [Vec<f32>],
    /// Of [`Terms::norms`], where there are some.
    pub(crate) d_norm: &'a mut [f32],
    /// Where in `own` the row begins.
    pub(crate) first: usize,
}

impl Gradients<'_> {
    /// Sets the gradient of the `which`th own number of the row's entry `at`.
    pub(crate) fn set_own(&mut self, which: usize, at: usize, value: f64) {
        self.own[which][self.first + at] = value as f32;
    }
}

/// Which architecture, with what it needs to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Objective {
    /// [`crate::l1`].
    L1,
    /// [`crate::gated`].
    Gated,
    /// [`crate::topk`].
    TopK { k: usize },
    /// [`crate::batch_topk`].
    BatchTopK { k: usize },
    /// [`crate::jump_relu`], whose fields these are.
    JumpRelu { bandwidth: f32, price: Price, pre_act: f64, frequency: Option<(f64, f64)> },
}

impl Objective {
    /// The rule at work on a coder of this layout; `per_group` chooses among the latents of each group alone.
    pub(crate) fn rule(&self, layout: &Layout, per_group: bool) -> Box<dyn Rule> {
        match *self {
            Self::L1 => Box::new(L1),
            Self::Gated => Box::new(Gated),
            Self::TopK { k } => Box::new(TopKRule::new(k, scopes(layout, per_group))),
            Self::BatchTopK { k } => Box::new(BatchTopKRule::new(k, scopes(layout, per_group))),
            Self::JumpRelu { bandwidth, price, pre_act, frequency } => {
                Box::new(JumpRelu::new(bandwidth, price, pre_act, frequency, scopes(layout, per_group)))
            }
        }
    }
}

/// Ranges of latents that are chosen among apart from others: all of them, or each group alone.
pub(crate) fn scopes(layout: &Layout, per_group: bool) -> Vec<Range<usize>> {
    if per_group {
        layout.groups.iter().map(|group| group.latents.clone()).collect()
    } else {
        std::iter::once(0..layout.d_sae()).collect()
    }
}
