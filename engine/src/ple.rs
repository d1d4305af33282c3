//! What do per-layer embeddings hold for a token, and how much of it do the layers let through?
//!
//! [`token_rows`] looks at the table alone: a token's row by layer, and the rows nearest to it. [`occurrences`] runs the
//! model on a text and looks at the gates where the token stands.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use data::hook_point::{HookPoint, Site};
use rayon::prelude::*;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::config::{Config, PleConfig};
use crate::error::{Error, Result};
use crate::gemma::model::{Batch, Forward, Model, to_vec_f32};
use crate::gemma::ple::{TABLE, row_of};
use crate::hook::Hooks;
use crate::weights::{Rows, Scratch, TensorInfo, Weights};

/// Rows that are compared between two reports of progress: 73 MB of an E2B's table. Tests have small tables.
const BLOCK: usize = if cfg!(test) { 100 } else { 4096 };

/// A token's row of the table, by layer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRows {
    pub id: u32,
    /// Which row the token reads; its id, but for tokens that the table of a Gemma 3n does not have.
    pub row: u32,
    /// In the order that was asked for.
    pub layers: Vec<LayerRow>,
}

/// One layer's part of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerRow {
    pub layer: usize,
    /// Of the part times √d_ple, which is what `hook_ple_token` shows.
    pub norm: f32,
    /// Other rows by the cosine between the parts, descending; rows of zeros are near nothing.
    pub nearest: Vec<Neighbor>,
}

/// A row that is near another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor {
    pub row: u32,
    pub cosine: f32,
}

/// A place where a token stands in a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Occurrence {
    pub id: u32,
    pub position: usize,
    /// In the order that was asked for.
    pub layers: Vec<LayerGate>,
}

/// What one layer does with its embedding of one token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LayerGate {
    pub layer: usize,
    /// Norm of the token's part, `hook_ple_token`.
    pub token_norm: f32,
    /// Norm of the part that is projected from the token's embedding, `hook_ple_context`.
    pub context_norm: f32,
    /// Between the two parts; 0 where one of them is 0.
    pub cosine: f32,
    /// The share of gates that are open: `ple.hook_gate_pre` above 0.
    pub gates_open: f32,
    /// Mean of |gelu(`ple.hook_gate_pre`)|.
    pub mean_gate: f32,
    /// Norm of what is added to the stream, `ple.hook_out`.
    pub out_norm: f32,
    /// Norm of what it is added to: `hook_resid_post_mlp`, and in Gemma 3n, which adds it to every stream but the first,
    /// the root of the mean of their squared norms in `altup.hook_corrected`.
    pub stream_norm: f32,
}

/// What the table takes, and what a token takes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    pub rows: u64,
    /// Of the whole table, as it is stored.
    pub table_bytes: u64,
    /// Of one row, as it is stored.
    pub bytes_per_token: u64,
}

/// The size of a model's table, from headers alone. `None` where the model has none.
pub fn facts(config: &Config, tensors: &[TensorInfo]) -> Option<Facts> {
    let table = tensors.iter().find(|tensor| tensor.name == TABLE)?;
    // A converter may have appended rows of zeros.
    let bytes_per_token = table.bytes / *table.shape.first().filter(|&&rows| rows > 0)? as u64;
    Some(Facts { rows: config.ple?.d_vocab as u64, table_bytes: table.bytes, bytes_per_token })
}

/// The rows of some tokens at some layers, each with the `top` rows nearest to it.
///
/// The table is read once for all of them, in bounded memory, and only the parts of the layers that are asked for; not at
/// all if `top` is 0. `progress` is told how many of how many rows are done, and may stop the search: then `None`.
pub fn token_rows(
    weights: &Weights,
    ids: &[u32],
    layers: &[usize],
    top: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Option<Vec<TokenRows>>> {
    let config = weights.config();
    let ple = ple_of(config)?;
    // Weights in memory have a tensor and no rows in a file; they are made for training, not for looking at.
    let rows = weights
        .rows(TABLE)?
        .ok_or_else(|| Error::MissingTensor { name: TABLE.to_owned(), path: weights.path().to_owned() })?;
    let read: Vec<u32> = ids.iter().map(|&id| row_of(config.generation(), ple, id)).collect();
    let search = Search { parts: parts(layers, ple.d_ple), d_ple: ple.d_ple, rows: &rows };
    let queries = search.queries(&read)?;
    let Some(mut nearest) = search.nearest(&queries, top, progress)? else { return Ok(None) };
    let scale = (ple.d_ple as f32).sqrt();
    let found = ids.iter().zip(&queries).zip(&mut nearest).map(|((&id, query), nearest)| TokenRows {
        id,
        row: query.row,
        layers: layers
            .iter()
            .map(|layer| {
                let part = search.parts.layers.iter().position(|known| known == layer).unwrap_or_default();
                LayerRow { layer: *layer, norm: query.norms[part] * scale, nearest: nearest.0[part].clone() }
            })
            .collect(),
    });
    Ok(Some(found.collect()))
}

fn ple_of(config: &Config) -> Result<PleConfig> {
    config.ple.ok_or_else(|| Error::NoPle { architecture: config.architecture.to_string() })
}

/// The columns of the layers that are asked for.
struct Parts {
    /// Rising, without repetitions.
    layers: Vec<usize>,
    /// Neighbouring layers are read at once.
    runs: Vec<Range<usize>>,
    /// Columns of all runs together.
    len: usize,
}

fn parts(layers: &[usize], d_ple: usize) -> Parts {
    let mut layers = layers.to_vec();
    layers.sort_unstable();
    layers.dedup();
    let runs = layers.chunk_by(|a, b| a + 1 == *b).map(|run| run[0] * d_ple..(run[0] + run.len()) * d_ple);
    Parts { runs: runs.collect(), len: layers.len() * d_ple, layers }
}

/// A row that others are compared with.
struct Query {
    row: u32,
    /// Of each part.
    norms: Vec<f32>,
    /// The parts, each with norm 1 (or all zeros), end to end.
    directions: Vec<f32>,
}

/// The nearest rows so far, by part: descending, equals by row.
#[derive(Clone)]
struct Nearest(Vec<Vec<Neighbor>>);

impl Nearest {
    fn insert(&mut self, part: usize, new: Neighbor, top: usize) {
        let best = &mut self.0[part];
        if best.len() == top && best.last().is_none_or(|last| order(*last, new).is_le()) {
            return;
        }
        let at = best.partition_point(|known| order(*known, new).is_lt());
        best.insert(at, new);
        best.truncate(top);
    }

    fn merge(mut self, other: Self, top: usize) -> Self {
        for (part, found) in other.0.into_iter().enumerate() {
            for neighbor in found {
                self.insert(part, neighbor, top);
            }
        }
        self
    }
}

fn order(a: Neighbor, b: Neighbor) -> Ordering {
    b.cosine.total_cmp(&a.cosine).then(a.row.cmp(&b.row))
}

struct Search<'a> {
    rows: &'a Rows,
    parts: Parts,
    d_ple: usize,
}

impl Search<'_> {
    fn queries(&self, rows: &[u32]) -> Result<Vec<Query>> {
        let mut scratch = Scratch::default();
        let query = |&row: &u32| {
            if row as usize >= self.rows.n_rows() {
                return Err(Error::UnknownToken { id: row, vocab_size: self.rows.n_rows() });
            }
            let mut directions = vec![0.0; self.parts.len];
            self.read(row as usize, &mut scratch, &mut directions)?;
            let norm = |part: &mut [f32]| {
                let norm = dot(part, part).sqrt();
                if norm > 0.0 {
                    for value in part {
                        *value /= norm;
                    }
                }
                norm
            };
            let norms = directions.chunks_exact_mut(self.d_ple).map(norm).collect();
            Ok(Query { row, norms, directions })
        };
        rows.iter().map(query).collect()
    }

    /// The parts of a row, end to end.
    fn read(&self, row: usize, scratch: &mut Scratch<f32>, out: &mut [f32]) -> Result<()> {
        let mut out = out;
        for run in &self.parts.runs {
            let (head, tail) = out.split_at_mut(run.len());
            self.rows.read(row, run.clone(), scratch, head)?;
            out = tail;
        }
        Ok(())
    }

    /// What is nearest to each query; `None` if `progress` broke off.
    fn nearest(
        &self,
        queries: &[Query],
        top: usize,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Nearest>>> {
        let nothing = || vec![Nearest(vec![Vec::new(); self.parts.layers.len()]); queries.len()];
        let mut nearest = nothing();
        let total = if top == 0 || queries.is_empty() { 0 } else { self.rows.n_rows() };
        for start in (0..total).step_by(BLOCK) {
            let end = (start + BLOCK).min(total);
            let found = (start..end)
                .into_par_iter()
                .with_min_len(16)
                .try_fold(
                    || (nothing(), Scratch::default(), vec![0.0; self.parts.len]),
                    |(mut nearest, mut scratch, mut row), index| {
                        self.read(index, &mut scratch, &mut row)?;
                        self.compare(index as u32, &row, queries, top, &mut nearest);
                        Ok::<_, Error>((nearest, scratch, row))
                    },
                )
                .map(|folded| folded.map(|(nearest, ..)| nearest))
                .try_reduce(nothing, |a, b| Ok(merge(a, b, top)))?;
            nearest = merge(nearest, found, top);
            if progress(end as u64, total as u64).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(nearest))
    }

    fn compare(&self, index: u32, row: &[f32], queries: &[Query], top: usize, nearest: &mut [Nearest]) {
        for (part, values) in row.chunks_exact(self.d_ple).enumerate() {
            let norm = dot(values, values).sqrt();
            for (query, nearest) in queries.iter().zip(nearest.iter_mut()) {
                let direction = &query.directions[part * self.d_ple..][..self.d_ple];
                let cosine = dot(values, direction) / norm;
                let comparable = query.norms[part] > 0.0 && query.row != index;
                // A row of zeros has no direction: 0 / 0 is not finite.
                if comparable && cosine.is_finite() {
                    nearest.insert(part, Neighbor { row: index, cosine }, top);
                }
            }
        }
    }
}

fn merge(a: Vec<Nearest>, b: Vec<Nearest>, top: usize) -> Vec<Nearest> {
    a.into_iter().zip(b).map(|(a, b)| a.merge(b, top)).collect()
}

/// In eight sums, which become vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; 8];
    for (a, b) in a.zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Every place where one of `tokens` stands in the sequence `ids`, with what the layers do there.
///
/// The model runs once, as far as the last of the layers.
pub fn occurrences(model: &Model, ids: &[u32], tokens: &[u32], layers: &[usize]) -> Result<Vec<Occurrence>> {
    ple_of(model.config())?;
    let places: Vec<(usize, u32)> = ids.iter().copied().enumerate().filter(|(_, id)| tokens.contains(id)).collect();
    if places.is_empty() || layers.is_empty() {
        return Ok(Vec::new());
    }
    let _no_grad = tch::no_grad_guard();
    let rows: Vec<i64> = places.iter().map(|(position, _)| *position as i64).collect();
    let seen = Seen::new(model, ids, &rows, layers)?;
    let token = seen.whole(Site::PleToken)?; // [places, n_layers, d_ple]
    let context = seen.whole(Site::PleContext)?;
    let mut occurrences: Vec<Occurrence> =
        places.iter().map(|&(position, id)| Occurrence { id, position, layers: Vec::new() }).collect();
    for &layer in layers {
        let token = token.select(1, layer as i64); // [places, d_ple]
        let context = context.select(1, layer as i64);
        let gate = seen.block(Site::PleGatePre, layer)?; // [places, d_ple]
        let (token_norm, context_norm) = (norms(&token), norms(&context));
        let products = to_vec_f32(&(token * context).sum_dim_intlist(-1, false, Kind::Float));
        let gates_open = to_vec_f32(&gate.gt(0.0).to_kind(Kind::Float).mean_dim(-1, false, Kind::Float));
        let mean_gate = to_vec_f32(&gate.gelu("tanh").abs().mean_dim(-1, false, Kind::Float));
        let out_norm = norms(&seen.block(Site::PleOut, layer)?);
        let stream_norm = norms(&seen.stream(layer)?);
        for (i, occurrence) in occurrences.iter_mut().enumerate() {
            let both = token_norm[i] * context_norm[i];
            occurrence.layers.push(LayerGate {
                layer,
                token_norm: token_norm[i],
                context_norm: context_norm[i],
                cosine: if both > 0.0 { products[i] / both } else { 0.0 },
                gates_open: gates_open[i],
                mean_gate: mean_gate[i],
                out_norm: out_norm[i],
                stream_norm: stream_norm[i],
            });
        }
    }
    Ok(occurrences)
}

/// The norm of each row.
fn norms(x: &Tensor) -> Vec<f32> {
    to_vec_f32(&x.square().sum_dim_intlist(-1, false, Kind::Float).sqrt())
}

/// Activations at some places of a text, in f32 on the CPU.
struct Seen {
    values: BTreeMap<HookPoint, Tensor>,
    altup: bool,
}

impl Seen {
    fn new(model: &Model, ids: &[u32], rows: &[i64], layers: &[usize]) -> Result<Self> {
        let altup = model.config().altup.is_some();
        let mut points = vec![HookPoint::whole(Site::PleToken), HookPoint::whole(Site::PleContext)];
        for site in [Site::PleGatePre, Site::PleOut, stream_site(altup)] {
            points.extend(layers.iter().map(|&layer| HookPoint::block(site, layer)));
        }
        let values = RefCell::new(BTreeMap::new());
        let rows = Tensor::from_slice(rows);
        let mut hooks = Hooks::none();
        for point in points {
            hooks.read(point, |place, value| {
                let chosen = value.index_select(0, &rows.to_device(value.device()));
                values.borrow_mut().insert(place.point, chosen.to_kind(Kind::Float).to_device(Device::Cpu));
            });
        }
        let options = Forward { stop_after: layers.iter().max().copied(), ..Forward::default() };
        model.forward(&Batch::one(ids), None, &mut hooks, options)?;
        drop(hooks);
        Ok(Self { values: values.into_inner(), altup })
    }

    fn get(&self, point: HookPoint) -> Result<Tensor> {
        self.values.get(&point).map(Tensor::shallow_clone).ok_or(Error::NotReached { point })
    }

    fn whole(&self, site: Site) -> Result<Tensor> {
        self.get(HookPoint::whole(site))
    }

    fn block(&self, site: Site, layer: usize) -> Result<Tensor> {
        self.get(HookPoint::block(site, layer))
    }

    /// Rows whose norm is that of what a layer's embedding is added to.
    fn stream(&self, layer: usize) -> Result<Tensor> {
        let stream = self.block(stream_site(self.altup), layer)?;
        if !self.altup {
            return Ok(stream); // [places, d_model]
        }
        let others = stream.size()[1] - 1;
        Ok(stream.narrow(1, 1, others).flatten(1, 2) / (others as f64).sqrt()) // [places, (n_altup - 1) · d_model]
    }
}

const fn stream_site(altup: bool) -> Site {
    if altup { Site::AltupCorrected } else { Site::ResidPostMlp }
}

#[cfg(test)]
mod tests;
