//! Which activations did one run have, all in memory?

mod file;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use data::hook_point::{HookPoint, Site, Width};
use tch::Tensor;

pub use self::file::CacheFile;
pub(crate) use self::file::tensor_of_file;
use crate::error::{Error, Result};
use crate::gemma::model::{Batch, Forward, Model, Output, to_vec_f32};
use crate::hook::{Hooks, Row, Tokens};

/// What masks a score: `exp` of it is 0, and it is finite in f32 and bf16.
pub(crate) const MASKED: f64 = -3.0e38;

/// The activations of some sequences.
///
/// Points with a row per token hold `[tok, …]`, the sequences end to end; scores and patterns hold one
/// `[n_heads, query, key]` for each sequence.
#[derive(Debug, Default)]
pub struct ActivationCache {
    tokens: Tokens,
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

    /// The keys to which each head of the first sequence attends most at the query in row `row`, descending: positions with
    /// weights. `point` is an `attn.hook_pattern`.
    pub fn top_keys(&self, point: HookPoint, row: usize, top: usize) -> Result<Vec<Vec<(usize, f32)>>> {
        let pattern = self.get(point).filter(|pattern| point.site == Site::Pattern && (row as i64) < pattern.size()[1]);
        let pattern = pattern.ok_or(Error::NotReached { point })?.select(1, row as i64); // [n_heads, key]
        // A query sees no key behind its own, in models that read from left to right; weightless keys are not shown.
        let (weights, keys) = pattern.topk((top as i64).min(pattern.size()[1]), -1, true, true);
        let keys = Vec::<i64>::try_from(keys.reshape([-1])).unwrap_or_default();
        let pairs: Vec<(usize, f32)> = keys.into_iter().map(|key| key as usize).zip(to_vec_f32(&weights)).collect();
        let of_head = |pairs: &[(usize, f32)]| pairs.iter().copied().filter(|(_, weight)| *weight > 0.0).collect();
        Ok(pairs.chunks(weights.size()[1].max(1) as usize).map(of_head).collect())
    }

    /// Whose activations they are.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }
}

/// Keeps what passes see: of one pass, or of all the passes of a generation.
#[derive(Debug, Default)]
pub struct Capture {
    seen: Rc<RefCell<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    passes: Vec<Tokens>,
    /// With the number of the pass and, for scores and patterns, the sequence.
    values: BTreeMap<HookPoint, Vec<(usize, Option<usize>, Tensor)>>,
}

impl Capture {
    /// Reads at `points` from now on. What hooks that were attached before have changed is read as they left it.
    pub fn attach(&self, points: &[HookPoint], hooks: &mut Hooks<'_>) {
        for &point in points {
            let seen = Rc::clone(&self.seen);
            hooks.read(point, move |place, value| {
                let mut seen = seen.borrow_mut();
                if seen.passes.last() != Some(place.tokens) {
                    seen.passes.push(place.tokens.clone());
                }
                let pass = seen.passes.len() - 1;
                // Nothing in the network writes in place, so a second handle on the tensor is enough.
                seen.values.entry(point).or_default().push((pass, place.sequence, value.shallow_clone()));
            });
        }
    }

    /// What was seen, all passes put together: the tokens of a sequence in their order.
    pub fn finish(&self) -> ActivationCache {
        let seen = self.seen.take();
        if let [tokens] = seen.passes.as_slice() {
            let values = seen.values.into_iter();
            let values = values.map(|(point, seen)| (point, seen.into_iter().map(|(_, _, value)| value).collect()));
            return ActivationCache { tokens: tokens.clone(), values: values.collect() };
        }
        let mut rows: Vec<(usize, Row)> = seen.passes.iter().flat_map(Tokens::rows).enumerate().collect();
        rows.sort_by_key(|(_, row)| (row.sequence, row.position));
        let order: Vec<i64> = rows.iter().map(|(at, _)| *at as i64).collect();
        let sequences = seen.passes.first().map_or(0, |tokens| tokens.lengths.len());
        let length = |sequence: usize| rows.iter().filter(|(_, row)| row.sequence == sequence).count();
        let tokens = Tokens {
            ids: rows.iter().map(|(_, row)| row.id).collect(),
            lengths: (0..sequences).map(length).collect(),
            past: seen.passes.first().map(|tokens| tokens.past.clone()).unwrap_or_default(),
        };
        let joined = |point: HookPoint, pieces: Vec<(usize, Option<usize>, Tensor)>| {
            if point.site.row().width == Width::QueryByKey {
                let of = |sequence| pieces.iter().filter(move |piece| piece.1 == Some(sequence));
                let nothing = if point.site == Site::AttnScores { MASKED } else { 0.0 };
                return (0..sequences)
                    .map(|sequence| by_query(of(sequence), sequence, &seen.passes, nothing))
                    .collect();
            }
            let all = Tensor::cat(&pieces.iter().map(|(_, _, value)| value).collect::<Vec<_>>(), 0);
            let order = Tensor::from_slice(&order).to_device(all.device());
            vec![all.index_select(0, &order)]
        };
        let values = seen.values.into_iter().map(|(point, pieces)| (point, joined(point, pieces))).collect();
        ActivationCache { tokens, values }
    }
}

/// The scores or patterns of one sequence, pass after pass, against all its keys; `nothing` stands where a pass had none.
/// `[n_heads, query, key]`
fn by_query<'a>(
    pieces: impl Iterator<Item = &'a (usize, Option<usize>, Tensor)>,
    sequence: usize,
    passes: &[Tokens],
    nothing: f64,
) -> Tensor {
    let end = |pass: usize| (passes[pass].past[sequence] + passes[pass].lengths[sequence]) as i64;
    let all = end(passes.len() - 1);
    let padded = pieces.map(|(pass, _, value)| {
        let (end, keys) = (end(*pass), value.size()[2]);
        value.pad([end - keys, all - end], "constant", nothing)
    });
    Tensor::cat(&padded.collect::<Vec<_>>(), 1)
}

impl Model {
    /// Runs the network and keeps the activations at `points`.
    pub fn forward_with_cache(
        &self,
        batch: &Batch,
        points: &[HookPoint],
        options: Forward,
    ) -> Result<(Output, ActivationCache)> {
        let capture = Capture::default();
        let mut hooks = Hooks::none();
        capture.attach(points, &mut hooks);
        let output = self.forward(batch, None, &mut hooks, options)?;
        drop(hooks);
        Ok((output, capture.finish()))
    }
}
