//! How does an intervention change a tensor?

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use data::hook_point::{HookPoint, Site};
use tch::{Device, Kind, Tensor};

use super::select::{Part, RowPlace, Selection, rows};
use crate::cache::MASKED;
use crate::gemma::model::to_vec_f32;
use crate::hook::{Hooks, Place};

/// Changes whole rows, `[n, width]` in row-major order.
pub type RowFunction = Box<dyn Fn(&mut [f32])>;

/// A change at one hook point, with everything that it needs at hand.
pub struct Edit {
    pub point: HookPoint,
    pub part: Part,
    /// Without texts: by then they are ids.
    pub tokens: Selection,
    pub change: Change,
}

/// What is done, in f32. Vectors have the shape of one token's activation, or none: `[]`.
pub enum Change {
    Zero,
    Scale(f32),
    Add(Tensor),
    Replace(Tensor),
    /// What stands at the same position here: `[pos, …]`, or `[n_heads, query, key]` at scores and patterns. Positions
    /// behind its end are left alone.
    Patch(Tensor),
    /// On whole rows.
    Rows(RowFunction),
    /// At the choice of experts: these are chosen, and the best others if there is room.
    ForceExperts(Vec<usize>),
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.change {
            Change::Zero => "zero",
            Change::Scale(_) => "scale",
            Change::Add(_) => "add",
            Change::Replace(_) => "replace",
            Change::Patch(_) => "patch",
            Change::Rows(_) => "rows",
            Change::ForceExperts(_) => "force experts",
        };
        write!(f, "{what} {}{} @{}", self.point, self.part, self.tokens)
    }
}

/// Edits that are ready to be attached to a pass.
///
/// Those of one hook point are done one after the other in f32, and rounded once to the dtype of the model.
#[derive(Debug, Default)]
pub struct Interventions {
    /// By hook point, each in the order in which they were given.
    points: Vec<(HookPoint, Vec<Edit>)>,
}

impl FromIterator<Edit> for Interventions {
    fn from_iter<T: IntoIterator<Item = Edit>>(edits: T) -> Self {
        let mut points: Vec<(HookPoint, Vec<Edit>)> = Vec::new();
        for edit in edits {
            match points.iter_mut().find(|(point, _)| *point == edit.point) {
                Some((_, edits)) => edits.push(edit),
                None => points.push((edit.point, vec![edit])),
            }
        }
        Self { points }
    }
}

impl Interventions {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Where something is changed.
    pub fn points(&self) -> impl Iterator<Item = HookPoint> + '_ {
        self.points.iter().map(|(point, _)| *point)
    }

    /// Attaches everything to the hooks of a pass. Hooks that are added later see the changed values.
    pub fn attach<'a>(&'a self, hooks: &mut Hooks<'a>) {
        let mut choices = Vec::new();
        for (point, edits) in &self.points {
            let probs: Rc<RefCell<Option<Tensor>>> = Rc::default();
            if edits.iter().any(|edit| matches!(edit.change, Change::ForceExperts(_))) {
                choices.push((*point, Rc::clone(&probs)));
            }
            hooks.add(*point, move |place, value| run(edits, place, value, probs.borrow().as_ref()));
        }
        // The choice alone does not say which of the other experts are best; the probabilities do, as they were changed.
        for (point, probs) in choices {
            hooks.read(HookPoint { site: Site::RouterProbs, ..point }, move |_, value| {
                *probs.borrow_mut() = Some(value.shallow_clone());
            });
        }
    }
}

/// `None` if no row is concerned.
fn run(edits: &[Edit], place: Place<'_>, value: &Tensor, probs: Option<&Tensor>) -> Option<Tensor> {
    let places = rows(place);
    // Scores and patterns are `[n_heads, query, key]`: rows come first here, as everywhere.
    let by_row = |x: &Tensor| if place.sequence.is_some() { x.transpose(0, 1) } else { x.shallow_clone() };
    let mut changed: Option<Tensor> = None;
    for edit in edits {
        let mut chosen: Vec<bool> = places.iter().map(|row| edit.tokens.has(*row)).collect();
        if let Change::Patch(origin) = &edit.change {
            let n = by_row(origin).size()[0] as usize;
            chosen.iter_mut().zip(&places).for_each(|(chosen, row)| *chosen &= row.position < n);
        }
        if !chosen.contains(&true) {
            continue;
        }
        let x = changed.take().unwrap_or_else(|| by_row(value).to_kind(Kind::Float));
        changed = Some(edit.apply(&x, &chosen, &places, place, probs));
    }
    changed.map(|x| by_row(&x))
}

impl Edit {
    /// `x`: `[rows, …]` in f32; `chosen`: which rows.
    fn apply(
        &self,
        x: &Tensor,
        chosen: &[bool],
        places: &[RowPlace],
        place: Place<'_>,
        probs: Option<&Tensor>,
    ) -> Tensor {
        let on_device = |vector: &Tensor| vector.to_device(x.device());
        let new = match &self.change {
            Change::Zero => x.zeros_like(),
            Change::Scale(by) => x * f64::from(*by),
            Change::Add(vector) => x + on_device(vector),
            Change::Replace(vector) => on_device(vector).expand_as(x),
            Change::Patch(origin) => patch(x, &on_device(origin), places, place),
            Change::Rows(function) => {
                let rows: Vec<i64> = (0..chosen.len() as i64).filter(|&row| chosen[row as usize]).collect();
                let rows = Tensor::from_slice(&rows).to_device(x.device());
                let some = x.index_select(0, &rows);
                let mut values = to_vec_f32(&some);
                function(&mut values);
                let new = Tensor::from_slice(&values).view_as(&some).to_device(x.device());
                x.index_copy(0, &rows, &new)
            }
            Change::ForceExperts(experts) => match probs {
                Some(probs) => force(experts, probs, x.size()[1]),
                None => x.shallow_clone(),
            },
        };
        new.where_self(&self.mask(x, chosen, places, place), x)
    }

    /// Which numbers change; broadcasts to `x`.
    fn mask(&self, x: &Tensor, chosen: &[bool], places: &[RowPlace], place: Place<'_>) -> Tensor {
        let size = x.size();
        let along = |axis: usize, mask: &[bool]| {
            let mut shape = vec![1; size.len()];
            shape[axis] = mask.len() as i64;
            Tensor::from_slice(mask).view(shape.as_slice()).to_device(x.device())
        };
        let mut mask = along(0, chosen);
        for axis in 0..self.part.0.len().min(size.len() - 1) {
            // Keys are counted from the beginning of the sequence, of which a cache may have dropped a part.
            let is_key = place.sequence.is_some() && axis == 1;
            let dropped = if is_key { dropped_keys(places, size[2]) } else { 0 };
            let has: Vec<bool> = (0..size[axis + 1] as usize).map(|i| self.part.has(axis, i + dropped)).collect();
            mask = mask.logical_and(&along(axis + 1, &has));
        }
        mask
    }
}

/// How many keys before the first are no longer there.
fn dropped_keys(places: &[RowPlace], n_keys: i64) -> usize {
    places.last().map_or(0, |row| (row.position + 1).saturating_sub(n_keys as usize))
}

/// Of every row what `origin` has at the row's position; rows behind its end get its last.
fn patch(x: &Tensor, origin: &Tensor, places: &[RowPlace], place: Place<'_>) -> Tensor {
    let origin = if place.sequence.is_some() { origin.transpose(0, 1) } else { origin.shallow_clone() };
    let last = origin.size()[0] - 1;
    let positions: Vec<i64> = places.iter().map(|row| (row.position as i64).min(last)).collect();
    let found = origin.index_select(0, &Tensor::from_slice(&positions).to_device(x.device())).to_kind(Kind::Float);
    if place.sequence.is_none() {
        return found;
    }
    // A query of the origin knows the keys up to its own; behind them nothing is attended to.
    let nothing = if place.point.site == Site::AttnScores { MASKED } else { 0.0 };
    let (dropped, n_keys) = (dropped_keys(places, x.size()[2]) as i64, x.size()[2]);
    let there = (found.size()[2] - dropped).clamp(0, n_keys);
    found.narrow(2, dropped.min(found.size()[2]), there).pad([0, n_keys - there], "constant", nothing)
}

/// The choice of each token with `experts` in it, by descending probability. `probs`: `[tok, n_experts]`. `[tok, top_k]`, f32
fn force(experts: &[usize], probs: &Tensor, top_k: i64) -> Tensor {
    // A probability is at most 1: what is forced comes before everything else.
    let forced: Vec<f32> =
        (0..probs.size()[1] as usize).map(|e| if experts.contains(&e) { 2.0 } else { 0.0 }).collect();
    let (_, chosen) = (probs + Tensor::from_slice(&forced).to_device(probs.device())).topk(top_k, -1, true, true);
    let order = probs.gather(1, &chosen, false).argsort(-1, true);
    chosen.gather(1, &order, false).to_kind(Kind::Float)
}

/// A vector with the shape of one token's activation: from one number, from as many as the part has, or from all.
///
/// `None` if it is of another length.
pub(super) fn shaped(values: &[f32], part: &Part, shape: &[usize]) -> Option<Tensor> {
    let size: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let mask = part.mask(shape);
    if let [one] = values {
        return Some(Tensor::from(*one));
    }
    if values.len() == mask.len() {
        return Some(Tensor::from_slice(values).view(size.as_slice()));
    }
    if values.len() != mask.iter().filter(|&&inside| inside).count() {
        return None;
    }
    let mut inside = values.iter();
    let all: Vec<f32> = mask.iter().map(|&has| if has { inside.next().copied().unwrap_or(0.0) } else { 0.0 }).collect();
    Some(Tensor::from_slice(&all).view(size.as_slice()).to_device(Device::Cpu))
}
