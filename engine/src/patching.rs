//! Where in the network does the difference between two texts live? Activation patching.
//!
//! Two texts of equally many tokens differ in what the model should answer. The activation of one of them is put into the
//! pass of the other, at one hook point and one position at a time, and the answer's logit is measured.

use std::ops::ControlFlow;

use data::hook_point::HookPoint;
use tch::{Kind, Tensor};

use crate::cache::ActivationCache;
use crate::error::{Error, Result};
use crate::gemma::model::{Batch, Forward, Logits, Model, to_vec_f32};
use crate::hook::Hooks;
use crate::intervention::{Part, check_part};

/// Which text's activations go where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// The clean text's into the corrupt one: what is enough to bring the answer back.
    #[default]
    Denoise,
    /// The corrupt text's into the clean one: what is needed for the answer.
    Noise,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patching {
    pub clean: Vec<u32>,
    pub corrupt: Vec<u32>,
    /// The metric is the logit of this token behind the text, ...
    pub answer: u32,
    /// ... less the logit of this one.
    pub wrong: Option<u32>,
    pub at: Vec<(HookPoint, Part)>,
    pub direction: Direction,
    /// Tokens that go through the network at once.
    pub batch_tokens: usize,
}

/// The metric for every hook point and position.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchTable {
    /// Of the clean text.
    pub clean: f32,
    /// Of the corrupt text.
    pub corrupt: f32,
    /// By hook point, then by position.
    pub metric: Vec<Vec<f32>>,
}

impl PatchTable {
    /// The metric as a part of the way from the corrupt text, 0, to the clean one, 1. `None` if they do not differ.
    pub fn normalised(&self, metric: f32) -> Option<f32> {
        let way = self.clean - self.corrupt;
        (way != 0.0).then(|| (metric - self.corrupt) / way)
    }
}

impl Model {
    /// Patches every hook point at every position. Several positions go through the network together.
    ///
    /// `progress` gets the passes over the text that are done and their number, and may end it: then there is no table.
    pub fn patching(
        &self,
        patching: &Patching,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<PatchTable>> {
        let (clean, corrupt) = (patching.clean.as_slice(), patching.corrupt.as_slice());
        if clean.len() != corrupt.len() {
            return Err(Error::Unequal { clean: clean.len(), corrupt: corrupt.len() });
        }
        let shape = self.shape();
        for id in std::iter::once(patching.answer).chain(patching.wrong) {
            if id as usize >= shape.d_vocab {
                return Err(Error::UnknownToken { id, vocab_size: shape.d_vocab });
            }
        }
        for (point, part) in &patching.at {
            let wrong = |what| Error::Intervention { what, intervention: format!("{point}{part}") };
            if point.shape(&shape).is_none() {
                return Err(wrong("expected a hook point with an activation for each token".to_owned()));
            }
            check_part(part, *point, &shape).map_err(wrong)?;
        }
        let (from, into) = match patching.direction {
            Direction::Denoise => (clean, corrupt),
            Direction::Noise => (corrupt, clean),
        };
        let mut points: Vec<HookPoint> = patching.at.iter().map(|(point, _)| *point).collect();
        points.dedup();
        let options = Forward { logits: Logits::Last, ..Forward::default() };
        let (output, cache) = self.forward_with_cache(&Batch::one(from), &points, options)?;
        let metric_from = patching.metric(output.logits.as_ref())[0];
        let output = self.forward(&Batch::one(into), None, &mut Hooks::none(), options)?;
        let metric_into = patching.metric(output.logits.as_ref())[0];

        // In front of the first difference both are the same: putting one in the other's place changes nothing.
        let first = clean.iter().zip(corrupt).position(|(a, b)| a != b).unwrap_or(clean.len());
        let together = (patching.batch_tokens / into.len().max(1)).max(1);
        let total = patching.at.len() * (into.len() - first);
        let mut done = 0;
        let mut table = Vec::with_capacity(patching.at.len());
        for (point, part) in &patching.at {
            let mut row = vec![metric_into; first];
            let positions: Vec<usize> = (first..into.len()).collect();
            for positions in positions.chunks(together) {
                if progress(done, total).is_break() {
                    return Ok(None);
                }
                row.extend(self.patched(patching, &cache, (*point, part), into, positions)?);
                done += positions.len();
            }
            table.push(row);
        }
        let (clean, corrupt) = match patching.direction {
            Direction::Denoise => (metric_from, metric_into),
            Direction::Noise => (metric_into, metric_from),
        };
        Ok(Some(PatchTable { clean, corrupt, metric: table }))
    }

    /// The metric of one copy of the text for each position, patched there.
    fn patched(
        &self,
        patching: &Patching,
        cache: &ActivationCache,
        (point, part): (HookPoint, &Part),
        text: &[u32],
        positions: &[usize],
    ) -> Result<Vec<f32>> {
        let found = cache.get(point).ok_or(Error::NotReached { point })?;
        let mut batch = Batch::default();
        for _ in positions {
            batch.push(text);
        }
        let index = |indices: Vec<i64>| Tensor::from_slice(&indices).to_device(found.device());
        let from = found.index_select(0, &index(positions.iter().map(|&position| position as i64).collect()));
        let copies = positions.iter().enumerate();
        let rows = index(copies.map(|(copy, &position)| (copy * text.len() + position) as i64).collect());
        let inside = part.tensor(&point.shape(&self.shape()).unwrap_or_default()).to_device(found.device());
        let mut hooks = Hooks::none();
        hooks.add(point, |_, value| {
            let patched = from.where_self(&inside, &value.index_select(0, &rows));
            Some(value.index_copy(0, &rows, &patched))
        });
        let options = Forward { logits: Logits::Last, ..Forward::default() };
        let output = self.forward(&batch, None, &mut hooks, options)?;
        Ok(patching.metric(output.logits.as_ref()))
    }
}

impl Patching {
    /// `logits`: `[sequences, d_vocab]`
    fn metric(&self, logits: Option<&Tensor>) -> Vec<f32> {
        let Some(logits) = logits else { return Vec::new() };
        let of = |id: u32| logits.select(1, i64::from(id)).to_kind(Kind::Float);
        to_vec_f32(&match self.wrong {
            Some(wrong) => of(self.answer) - of(wrong),
            None => of(self.answer),
        })
    }
}
