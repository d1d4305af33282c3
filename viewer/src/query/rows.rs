//! What was looked up for a token, and what did each layer make of it?
//!
//! From what was recorded: `hook_embed` and `hook_ple_token` are the rows of the tables themselves (times their scale),
//! `hook_ple_input`, `ple.hook_gate_pre`, `ple.hook_out` what the layers did with them at a place in a text. So nearest
//! rows are sought among the tokens that stand in the run, and the answer says among how many.

use std::collections::BTreeSet;

use data::{HookPoint, Site};

use super::Source;
use super::grid::norm;
use super::routing::{Taken, surroundings};
use crate::loader::{Ask, Cancel, Failure};

/// Tokens that are looked through for rows and occurrences.
const LOOKED: u64 = 1 << 18;
/// Rows of the table that are compared: the first occurrence of each token of the vocabulary.
const MAX_ROWS: usize = 1 << 15;
/// Tokens that are read at a time.
const BLOCK: u64 = 1 << 13;
/// Nearest rows of each layer.
const NEAREST: usize = 8;
/// Occurrences that are shown.
const SHOWN: usize = 12;

/// Asks what every layer did with the embedding of a token of the run.
#[derive(Debug, Clone)]
pub(crate) struct LookupQuery {
    pub(crate) doc: u64,
    /// Counted from the first token of the document.
    pub(crate) token: u64,
}

/// A token of the run with what was looked up for it.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) token_id: u32,
    pub(crate) text: String,
    /// Norm of the input embedding, after its scale.
    pub(crate) embed_norm: Option<f32>,
    /// Empty where nothing of per-layer embeddings was recorded.
    pub(crate) layers: Vec<LayerLookup>,
    /// Numbers of a row of one layer; 0 for a model without per-layer embeddings.
    pub(crate) d_ple: usize,
    pub(crate) n_layers: usize,
    pub(crate) d_model: usize,
    /// Sites that would tell more, had they been recorded.
    pub(crate) missing: Vec<&'static str>,
}

/// A layer's part of a lookup; what was not recorded is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct LayerLookup {
    pub(crate) layer: usize,
    /// Norm of the row of the table, times √d_ple.
    pub(crate) row_norm: Option<f32>,
    /// Norm of the row in its context: with the projection of the input embedding.
    pub(crate) input_norm: Option<f32>,
    /// Share of gates that are open (above 0 before their activation).
    pub(crate) open: Option<f32>,
    /// Norm of what is added to the stream.
    pub(crate) out_norm: Option<f32>,
    /// The same, relative to the stream behind the layer.
    pub(crate) share: Option<f32>,
    /// Cosine between what is added and the stream behind the layer.
    pub(crate) cosine: Option<f32>,
}

impl Ask for LookupQuery {
    type Answer = Lookup;
    const NAME: &'static str = "embedding lookups";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Lookup, Failure> {
        let whole = source.run.document_tokens(self.doc)?;
        let token = whole.start + self.token;
        if token >= whole.end {
            return Err(Failure::new(
                format!("token {} is not in document {}, which has {}", self.token, self.doc, whole.end - whole.start),
                "choose another in the reader",
            ));
        }
        let columns = source.run.tokens(token..token + 1)?;
        let shape = &source.run.manifest().model.shape;
        let mut out = Lookup {
            token_id: columns.token_id.first().copied().unwrap_or_default(),
            text: columns.token.into_iter().next().unwrap_or_default(),
            embed_norm: row(source, HookPoint::whole(Site::Embed), token)?.map(|row| norm(&row)),
            layers: Vec::new(),
            d_ple: shape.d_ple,
            n_layers: shape.n_layers,
            d_model: shape.d_model,
            missing: Vec::new(),
        };
        if shape.d_ple == 0 {
            return Ok(out);
        }
        let table = row(source, HookPoint::whole(Site::PleToken), token)?;
        for layer in 0..shape.n_layers {
            cancel.check()?;
            let at = |site: Site| row(source, HookPoint::block(site, layer), token);
            let (input, gate, added, stream) =
                (at(Site::PleInput)?, at(Site::PleGatePre)?, at(Site::PleOut)?, at(Site::ResidPost)?);
            let of_table = table.as_ref().and_then(|table| table.get(layer * shape.d_ple..(layer + 1) * shape.d_ple));
            let both = added.as_ref().zip(stream.as_ref());
            out.layers.push(LayerLookup {
                layer,
                row_norm: of_table.map(norm),
                input_norm: input.as_deref().map(norm),
                open: gate.map(|gate| gate.iter().filter(|g| **g > 0.0).count() as f32 / gate.len().max(1) as f32),
                out_norm: added.as_deref().map(norm),
                share: both.map(|(added, stream)| norm(added) / norm(stream).max(f32::MIN_POSITIVE)),
                cosine: both.map(|(added, stream)| cosine(added, stream)),
            });
        }
        let lacks = |has: &dyn Fn(&LayerLookup) -> bool| !out.layers.iter().any(has);
        let missing = [
            (lacks(&|l| l.row_norm.is_some()), "hook_ple_token"),
            (lacks(&|l| l.input_norm.is_some()), "blocks.*.hook_ple_input"),
            (lacks(&|l| l.open.is_some()), "blocks.*.ple.hook_gate_pre"),
            (lacks(&|l| l.out_norm.is_some()), "blocks.*.ple.hook_out"),
            (lacks(&|l| l.share.is_some()), "blocks.*.hook_resid_post"),
            (out.embed_norm.is_none(), "hook_embed"),
        ];
        out.missing = missing.into_iter().filter(|(missing, _)| *missing).map(|(_, name)| name).collect();
        Ok(out)
    }

    fn bytes(answer: &Lookup) -> usize {
        answer.layers.len() * size_of::<LayerLookup>() + 256
    }
}

/// One recorded vector; `None` where the hook point was not recorded.
fn row(source: &Source, hook: HookPoint, token: u64) -> Result<Option<Vec<f32>>, Failure> {
    if !source.run.hook_points().iter().any(|entry| entry.name == hook) {
        return Ok(None);
    }
    Ok(Some(source.run.acts(hook, token..token + 1)?.to_f32()))
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    let size = f64::from(norm(a)) * f64::from(norm(b));
    if size > 0.0 { (dot / size) as f32 } else { 0.0 }
}

/// Asks which rows of the tables point as that of a token of the vocabulary does.
#[derive(Debug, Clone)]
pub(crate) struct NearestQuery {
    pub(crate) token_id: u32,
}

/// The nearest rows of each layer.
#[derive(Debug)]
pub(crate) struct Nearest {
    /// Among how many tokens of the vocabulary: those that stand in the tokens that were looked through.
    pub(crate) n_rows: usize,
    pub(crate) n_looked: u64,
    /// The input embedding first, where it was recorded, then by layer.
    pub(crate) places: Vec<NearestAt>,
}

/// The nearest rows at one place.
#[derive(Debug)]
pub(crate) struct NearestAt {
    /// The input embedding where there is none.
    pub(crate) layer: Option<usize>,
    pub(crate) norm: f32,
    /// Token, text and cosine, falling.
    pub(crate) rows: Vec<(u32, String, f32)>,
}

impl Ask for NearestQuery {
    type Answer = Nearest;
    const NAME: &'static str = "nearest rows";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Nearest, Failure> {
        let tables = source.rows(cancel)?;
        let Some(own) = tables.ids.iter().position(|id| *id == self.token_id) else {
            return Err(Failure::new(
                format!("token {} does not stand in the first {} tokens of the run", self.token_id, tables.n_looked),
                "choose a token in the reader",
            ));
        };
        let mut places = Vec::new();
        for part in &tables.parts {
            cancel.check()?;
            let rows: Vec<&[f32]> = part.values.chunks_exact(part.width).collect();
            let Some(target) = rows.get(own) else { continue };
            let mut near: Vec<(usize, f32)> =
                rows.iter().enumerate().filter(|(i, _)| *i != own).map(|(i, row)| (i, cosine(target, row))).collect();
            near.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            near.truncate(NEAREST);
            let named = |(i, cosine): (usize, f32)| (tables.ids[i], source.token_text(tables.ids[i]), cosine);
            places.push(NearestAt {
                layer: part.layer,
                norm: norm(target),
                rows: near.into_iter().map(named).collect(),
            });
        }
        Ok(Nearest { n_rows: tables.ids.len(), n_looked: tables.n_looked, places })
    }

    fn bytes(answer: &Nearest) -> usize {
        answer.places.len() * NEAREST * 64
    }
}

/// Rows of the tables of embeddings, of the tokens of the vocabulary that stand in the run.
#[derive(Debug)]
pub(super) struct Rows {
    ids: Vec<u32>,
    n_looked: u64,
    parts: Vec<Part>,
}

/// Rows of one table: the input embedding, or the part of a layer.
#[derive(Debug)]
struct Part {
    layer: Option<usize>,
    width: usize,
    /// `[id, width]`
    values: Vec<f32>,
}

impl Rows {
    /// The first occurrence of every token of the vocabulary in the first tokens of the run.
    pub(super) fn read(source: &Source, cancel: &Cancel) -> Result<Self, Failure> {
        let hooks = [HookPoint::whole(Site::Embed), HookPoint::whole(Site::PleToken)];
        let recorded: Vec<HookPoint> = source.run.hook_points().iter().map(|entry| entry.name).collect();
        let hooks: Vec<HookPoint> = hooks.into_iter().filter(|hook| recorded.contains(hook)).collect();
        if hooks.is_empty() {
            return Err(Failure::new(
                "expected the recorded hook points `hook_embed` or `hook_ple_token`, found none",
                "record with `--hook-points hook_embed,hook_ple_token,…`: they are the rows of the tables",
            ));
        }
        let shape = &source.run.manifest().model.shape;
        let mut parts = Vec::new();
        for hook in &hooks {
            match hook.site {
                Site::Embed => parts.push(Part { layer: None, width: shape.d_model.max(1), values: Vec::new() }),
                _ => parts.extend((0..shape.n_layers).map(|layer| Part {
                    layer: Some(layer),
                    width: shape.d_ple.max(1),
                    values: Vec::new(),
                })),
            }
        }
        let n_looked = source.run.n_tokens().min(LOOKED);
        let mut known = BTreeSet::new();
        let mut ids = Vec::new();
        let mut start = 0;
        while start < n_looked && ids.len() < MAX_ROWS {
            cancel.check()?;
            let end = n_looked.min(start + BLOCK);
            let (of_block, _) = source.run.token_ids(start..end)?;
            let fresh: Vec<usize> =
                of_block.iter().enumerate().filter(|(_, id)| known.insert(**id)).map(|(i, _)| i).collect();
            ids.extend(fresh.iter().map(|i| of_block[*i]));
            if !fresh.is_empty() {
                let mut at = 0;
                for hook in &hooks {
                    let acts = source.run.acts(*hook, start..end)?;
                    let n_parts = if hook.site == Site::Embed { 1 } else { shape.n_layers };
                    for i in &fresh {
                        let row = acts.row_f32(*i);
                        for (part, values) in
                            parts[at..at + n_parts].iter_mut().zip(row.chunks_exact(row.len() / n_parts))
                        {
                            part.values.extend_from_slice(values);
                        }
                    }
                    at += n_parts;
                }
            }
            start = end;
        }
        Ok(Self { ids, n_looked, parts })
    }
}

/// Asks where a token of the vocabulary stands.
#[derive(Debug, Clone)]
pub(crate) struct OccurrencesQuery {
    pub(crate) token_id: u32,
}

/// Where a token of the vocabulary stands.
#[derive(Debug)]
pub(crate) struct Occurrences {
    pub(crate) n: u64,
    pub(crate) n_looked: u64,
    /// Evenly from all that were found.
    pub(crate) shown: Vec<Taken>,
}

impl Ask for OccurrencesQuery {
    type Answer = Occurrences;
    const NAME: &'static str = "occurrences";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Occurrences, Failure> {
        let n_looked = source.run.n_tokens().min(LOOKED);
        let mut found = Vec::new();
        for start in (0..n_looked).step_by(BLOCK as usize) {
            cancel.check()?;
            let (ids, _) = source.run.token_ids(start..n_looked.min(start + BLOCK))?;
            found.extend((start..).zip(ids).filter(|(_, id)| *id == self.token_id).map(|(token, _)| token));
        }
        let step = (found.len() / SHOWN).max(1);
        let shown = found.iter().step_by(step).take(SHOWN).map(|token| surroundings(source, *token, f32::NAN));
        Ok(Occurrences { n: found.len() as u64, n_looked, shown: shown.collect::<Result<_, _>>()? })
    }

    fn bytes(answer: &Occurrences) -> usize {
        answer.shown.len() * 1_024 + 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_compared() {
        assert!((cosine(&[1.0, 0.0], &[2.0, 0.0]) - 1.0).abs() < 1e-6);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), 0.0);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
