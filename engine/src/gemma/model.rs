//! A Gemma from token ids to logits.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use data::hook_point::{HookPoint, ModelShape, Site};
use tch::{Device, Kind, Tensor};

use super::altup::Streams;
use super::attention::{KeysAndValues, Together};
use super::block::Block;
use super::load::Loader;
pub use super::load::{LoadOptions, PlePlacement, Precision};
use super::norm::{Norm, points_at_the_end};
use super::ple::PerLayerEmbeddings;
use super::rope::Rotation;
use crate::config::{Config, LayerKind};
use crate::error::{Error, Result};
use crate::hook::{Hooks, Tokens};
use crate::kv_cache::KvCache;
use crate::weights::Weights;

/// Token rows that the unembedding takes at once: 64 rows by 262,144 logits in f32 are 64 MB.
pub(crate) const UNEMBED_ROWS: i64 = 64;

/// Directions whose effect on the logits is taken at once, and vocabulary rows for each: 256 × 32,768 f32 are 33 MB.
const EFFECT_ROWS: i64 = 256;
const EFFECT_VOCAB: i64 = 32_768;

/// In which order sums are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Numerics {
    /// Attention by blocks of queries, against the keys that they can see; experts summed in f32. Equal to the reference
    /// but for the order of sums.
    #[default]
    Fast,
    /// Operation by operation, as the reference implementation does it.
    Reference,
}

/// Which positions get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Logits {
    #[default]
    None,
    /// Of the last token of each sequence: `[sequences, d_vocab]`.
    Last,
    /// Of every token: `[tok, d_vocab]`. A row of a released Gemma is a megabyte.
    All,
}

/// Several sequences, laid end to end: no padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The tokens of all sequences, `[tok]`.
    pub ids: Vec<u32>,
    /// How many of them each sequence has; none is zero.
    pub lengths: Vec<usize>,
}

impl Batch {
    /// A batch of one.
    pub fn one(ids: &[u32]) -> Self {
        Self { ids: ids.to_vec(), lengths: vec![ids.len()] }
    }

    /// Appends a sequence.
    pub fn push(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.lengths.push(ids.len());
    }
}

/// How far a forward pass goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward {
    pub logits: Logits,
    /// Stop after this layer: later layers and the unembedding do not run.
    pub stop_after: Option<usize>,
    pub numerics: Numerics,
    /// Keep what the gradients of the weights need; for training.
    pub grad: bool,
}

/// What every part of the network needs to know of the pass that it is in.
#[derive(Debug)]
pub(crate) struct Pass<'a, 'h> {
    /// The new tokens of each sequence.
    pub(crate) lengths: &'a [i64],
    pub(crate) numerics: Numerics,
    /// Attention takes all sequences at once.
    pub(crate) together: Option<Together>,
    /// Keys and values that later layers read too, by layer and sequence.
    pub(crate) shared: BTreeMap<usize, Rc<Vec<KeysAndValues>>>,
    /// Which keys are hidden, where all queries are one block: by the window, the queries, the first key and the last.
    pub(crate) hidden: BTreeMap<(Option<i64>, i64, i64, i64), Tensor>,
    pub(crate) hooks: &'a mut Hooks<'h>,
}

/// What a forward pass returns.
#[derive(Debug)]
pub struct Output {
    /// The residual stream where the pass stopped, before the final norm: in Gemma 3n the merged streams, or the first of
    /// them where the pass stopped early. `[tok, d_model]`
    pub resid: Tensor,
    /// See [`Logits`]; in the dtype of the model.
    pub logits: Option<Tensor>,
}

/// The strongest and weakest tokens of a direction in the residual stream, with its effect on their logits.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitEffects {
    /// Descending.
    pub top: Vec<(u32, f32)>,
    /// Ascending.
    pub bottom: Vec<(u32, f32)>,
}

/// A Gemma with its weights.
#[derive(Debug)]
pub struct Model {
    config: Config,
    changes: Vec<String>,
    options: LoadOptions,
    embed_tokens: Tensor, // [d_vocab, d_model]
    embed_scale: Tensor,  // [], rounded to the dtype of the weights, as the reference does
    ple: Option<PerLayerEmbeddings>,
    streams: Option<Streams>,
    layers: Vec<Block>,
    norm: Norm,
    lm_head: Tensor, // [d_vocab, d_model]
}

impl Model {
    /// Loads a folder of safetensors or a GGUF file.
    pub fn load(path: impl AsRef<Path>, options: impl Into<LoadOptions>) -> Result<Self> {
        Self::from_weights(&Weights::open(path)?, options)
    }

    /// Loads from weights that are open already.
    pub fn from_weights(weights: &Weights, options: impl Into<LoadOptions>) -> Result<Self> {
        let options = options.into();
        let loader = Loader { weights, options };
        let config = weights.config().clone();
        let embed_tokens = loader.tensor("model.embed_tokens.weight")?;
        let lm_head =
            if config.tie_word_embeddings { embed_tokens.shallow_clone() } else { loader.tensor("lm_head.weight")? };
        Ok(Self {
            changes: loader.changes(),
            options,
            embed_scale: loader.rounded((config.d_model as f64).sqrt()),
            ple: PerLayerEmbeddings::new(&loader)?,
            streams: Streams::new(&loader)?,
            layers: (0..config.n_layers).map(|layer| Block::new(&loader, layer)).collect::<Result<_>>()?,
            norm: loader.norm("model.norm")?,
            embed_tokens,
            lm_head,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The shape in the vocabulary of [`data`].
    pub fn shape(&self) -> ModelShape {
        self.config.shape()
    }

    /// What loading changed in the stored weights, in words.
    pub fn changes(&self) -> &[String] {
        &self.changes
    }

    /// What the model computes in.
    pub fn precision(&self) -> Precision {
        self.options.precision
    }

    /// How the model was put into memory.
    pub fn options(&self) -> LoadOptions {
        self.options
    }

    /// An empty cache for a batch of `sequences`.
    pub fn kv_cache(&self, sequences: usize) -> KvCache {
        KvCache::new(self.config.n_layers, sequences)
    }

    /// Runs the network on new tokens.
    ///
    /// With a cache, the tokens continue the sequences in it; without one, they begin at position 0.
    /// An id outside the vocabulary and an empty sequence are errors.
    pub fn forward(
        &self,
        batch: &Batch,
        mut cache: Option<&mut KvCache>,
        hooks: &mut Hooks<'_>,
        options: Forward,
    ) -> Result<Output> {
        self.check(batch, cache.as_deref())?;
        let _no_grad = (!options.grad).then(tch::no_grad_guard);
        let lengths: Vec<i64> = batch.lengths.iter().map(|&length| length as i64).collect();
        let past = cache.as_deref().map_or_else(|| vec![0; lengths.len()], |cache| cache.seen().to_vec());
        hooks.begin(|| Tokens { ids: batch.ids.clone(), lengths: batch.lengths.clone(), past: past.clone() });
        let positions = positions(&lengths, &past).to_device(self.device());
        let full = self.rotation(LayerKind::Full, &positions);
        let sliding = self.rotation(LayerKind::Sliding, &positions);

        let embed = hooks.at(HookPoint::whole(Site::Embed), self.embed(&batch.ids)); // [tok, d_model]
        let ple = self.ple.as_ref().map(|ple| ple.forward(&batch.ids, &embed, hooks)).transpose()?;
        // [tok, d_model], or in Gemma 3n [n_altup, tok, d_model]
        let mut stream = match &self.streams {
            Some(streams) => streams.split(&embed, hooks),
            None => embed,
        };
        // A sequence that goes on has keys of its own, and the reference takes one sequence at a time.
        let together = cache.is_none() && options.numerics == Numerics::Fast && self.device() != Device::Cpu;
        let mut pass = Pass {
            lengths: &lengths,
            numerics: options.numerics,
            together: together.then(|| Together::new(&lengths, self.device())),
            shared: BTreeMap::new(),
            hidden: BTreeMap::new(),
            hooks,
        };
        for (layer, block) in self.layers.iter().enumerate() {
            let rotation = match self.config.layers[layer].kind {
                LayerKind::Full => &full,
                LayerKind::Sliding => &sliding,
            };
            let remembered = cache.as_deref_mut().map(|cache| &mut cache.layers[layer]);
            stream = block.forward(stream, ple.as_ref(), rotation, remembered, &mut pass);
            if options.stop_after == Some(layer) {
                let resid = if self.streams.is_some() { stream.get(0) } else { stream };
                return Ok(Output { resid, logits: None });
            }
        }
        if let Some(cache) = cache {
            cache.advance(&lengths);
        }
        let resid = match &self.streams {
            Some(streams) => hooks.at(HookPoint::whole(Site::AltupMerged), streams.merge(&stream)),
            None => stream,
        }; // [tok, d_model]
        let logits = self.head(&resid, &lengths, options.logits, hooks);
        Ok(Output { resid, logits })
    }

    /// The final norm and the unembedding, as far as somebody wants them.
    fn head(&self, resid: &Tensor, lengths: &[i64], wanted: Logits, hooks: &mut Hooks<'_>) -> Option<Tensor> {
        let (scale, normalized) = points_at_the_end();
        let (precap, capped) = (HookPoint::whole(Site::LogitsPrecap), HookPoint::whole(Site::Logits));
        let hooked = hooks.wants(precap) || hooks.wants(capped);
        if wanted == Logits::None && !hooked && !hooks.wants(scale) && !hooks.wants(normalized) {
            return None;
        }
        let mut normed = self.norm.forward_hooked(resid, scale, normalized, hooks); // [tok, d_model]
        if wanted == Logits::None && !hooked {
            return None;
        }
        let last = |x: &Tensor| x.index_select(0, &Tensor::from_slice(&last_of_each(lengths)).to_device(x.device()));
        // Hooks see every token's logits.
        if wanted == Logits::Last && !hooked {
            normed = last(&normed); // [sequences, d_model]
        }
        let logits = hooks.at(precap, normed.linear::<&Tensor>(&self.lm_head, None)); // [tok, d_vocab]
        let logits = hooks.at(capped, self.softcap(logits));
        match wanted {
            Logits::None => None,
            Logits::Last if hooked => Some(last(&logits)),
            Logits::Last | Logits::All => Some(logits),
        }
    }

    /// `−ln p(target)` of each row of a final residual stream, in nats, f32.
    ///
    /// `resid`: `[tok, d_model]` before the final norm; `targets`: `[tok]`.
    /// The logits of a few rows exist at a time.
    pub fn nll(&self, resid: &Tensor, targets: &[u32]) -> Vec<f32> {
        let _no_grad = tch::no_grad_guard();
        let normed = self.norm.forward(resid);
        let targets = self.ids_tensor(targets);
        let mut nll = Vec::with_capacity(targets.size()[0] as usize);
        for (rows, target) in normed.split(UNEMBED_ROWS, 0).iter().zip(targets.split(UNEMBED_ROWS, 0)) {
            let logits = self.unembed(rows).to_kind(Kind::Float); // [rows, d_vocab]
            let chosen = logits.gather(1, &target.unsqueeze(1), false).squeeze_dim(1);
            nll.extend(to_vec_f32(&(logits.logsumexp(-1, false) - chosen)));
        }
        nll
    }

    /// Logits of rows that went through the final norm. `[rows, d_model]` to `[rows, d_vocab]`
    pub fn unembed(&self, normed: &Tensor) -> Tensor {
        self.softcap(normed.linear::<&Tensor>(&self.lm_head, None))
    }

    fn softcap(&self, logits: Tensor) -> Tensor {
        match self.config.final_logit_softcapping {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// Logits of a residual stream at any depth, through the final norm: the logit lens. `[tok, d_model]` to `[tok, d_vocab]`
    ///
    /// Of several streams, `[tok, n_altup, d_model]`, the model's own mean is taken first.
    pub fn logit_lens(&self, resid: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        match &self.streams {
            Some(streams) if resid.dim() == 3 => {
                self.unembed(&self.norm.forward(&streams.merge(&resid.transpose(0, 1))))
            }
            _ => self.unembed(&self.norm.forward(resid)),
        }
    }

    /// What directions in the residual stream do to the logits: `d · g · W_Uᵀ` with the final norm's gain `g`,
    /// leaving out the norm's division, which is the same for all tokens, and any softcap.
    ///
    /// `directions`: rows of `d_model`, end to end. The `top` largest and smallest effects of each row are returned.
    /// The products are formed in the dtype of the model.
    pub fn logit_effects(&self, directions: &[f32], top: usize) -> Vec<LogitEffects> {
        let _no_grad = tch::no_grad_guard();
        let top = top.min(self.config.d_vocab) as i64;
        let rows = Tensor::from_slice(directions).view([-1, self.config.d_model as i64]);
        let mut effects = Vec::new();
        for rows in rows.split(EFFECT_ROWS, 0) {
            let rows = self.gained(&rows);
            let [high, low] = self.extremes(&rows, top);
            let n = rows.size()[0] as usize;
            let of = |pairs: &[(u32, f32)], row: usize| pairs[row * top as usize..(row + 1) * top as usize].to_vec();
            effects.extend((0..n).map(|row| LogitEffects { top: of(&high, row), bottom: of(&low, row) }));
        }
        effects
    }

    /// The same for every token of the vocabulary: `[n, d_vocab]`, row after row.
    pub fn all_logit_effects(&self, directions: &[f32]) -> Vec<f32> {
        let _no_grad = tch::no_grad_guard();
        let rows = Tensor::from_slice(directions).view([-1, self.config.d_model as i64]);
        let effects = self.gained(&rows).linear::<&Tensor>(&self.lm_head, None).to_kind(Kind::Float);
        let effects = effects.to_device(tch::Device::Cpu).contiguous();
        let mut values = vec![0.0; effects.numel()];
        effects.copy_data(&mut values, effects.numel());
        values
    }

    /// Rows times the gain of the final norm, as the unembedding takes them.
    fn gained(&self, rows: &Tensor) -> Tensor {
        let rows = match self.norm.gain() {
            Some(gain) => rows.to_device(self.device()) * gain,
            None => rows.to_device(self.device()),
        };
        rows.to_kind(self.kind())
    }

    /// The `top` largest and the `top` smallest logits of each row, with their ids, row after row.
    ///
    /// The unembedding is taken in blocks, each of which is read once for all rows.
    fn extremes(&self, rows: &Tensor, top: i64) -> [Vec<(u32, f32)>; 2] {
        let mut found = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        for (i, block) in self.lm_head.split(EFFECT_VOCAB, 0).iter().enumerate() {
            let logits = rows.linear::<&Tensor>(block, None).to_kind(Kind::Float); // [rows, block]
            for ((values, ids), largest) in found.iter_mut().zip([true, false]) {
                let (best, at) = logits.topk(top.min(block.size()[0]), -1, largest, true);
                values.push(best);
                ids.push(at + i as i64 * EFFECT_VOCAB);
            }
        }
        let mut largest = [true, false].into_iter();
        found.map(|(values, ids)| {
            let (best, at) = Tensor::cat(&values, 1).topk(top, -1, largest.next().unwrap_or(true), true);
            let ids = Tensor::cat(&ids, 1).gather(1, &at, false).view([-1]);
            let ids = Vec::<i64>::try_from(ids).unwrap_or_default();
            ids.into_iter().map(|id| id as u32).zip(to_vec_f32(&best)).collect()
        })
    }

    /// One row for each token of the vocabulary. `[d_vocab, d_model]`
    pub(crate) fn unembedding(&self) -> &Tensor {
        &self.lm_head
    }

    /// The norm in front of it.
    pub(crate) fn final_norm(&self) -> &Norm {
        &self.norm
    }

    /// How several streams become one, in a model that has several.
    pub(crate) fn streams(&self) -> Option<&Streams> {
        self.streams.as_ref()
    }

    /// One layer.
    pub(crate) fn block(&self, layer: usize) -> &Block {
        &self.layers[layer]
    }

    fn embed(&self, ids: &[u32]) -> Tensor {
        self.embed_tokens.index_select(0, &self.ids_tensor(ids)) * &self.embed_scale
    }

    fn kind(&self) -> Kind {
        self.options.precision.kind()
    }

    fn device(&self) -> Device {
        self.options.device.into()
    }

    fn ids_tensor(&self, ids: &[u32]) -> Tensor {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        Tensor::from_slice(&ids).to_device(self.device())
    }

    /// The rotation of the layers of a kind, all of which have heads of one size.
    fn rotation(&self, kind: LayerKind, positions: &Tensor) -> Rotation {
        let d_head =
            self.config.layers.iter().find(|layer| layer.kind == kind).map_or(self.config.d_head, |l| l.d_head);
        Rotation::new(&self.config.rope(kind), d_head, positions, self.kind())
    }

    fn check(&self, batch: &Batch, cache: Option<&KvCache>) -> Result<()> {
        if let Some(&id) = batch.ids.iter().find(|&&id| id as usize >= self.config.d_vocab) {
            return Err(Error::UnknownToken { id, vocab_size: self.config.d_vocab });
        }
        let tokens: usize = batch.lengths.iter().sum();
        let sequences = cache.map_or(batch.lengths.len(), |cache| cache.seen().len());
        if tokens != batch.ids.len() || tokens == 0 || batch.lengths.contains(&0) || sequences != batch.lengths.len() {
            return Err(Error::Batch { ids: batch.ids.len(), lengths: batch.lengths.clone(), sequences });
        }
        Ok(())
    }
}

/// The position of each token in its sequence. `[tok]`, f32
fn positions(lengths: &[i64], past: &[usize]) -> Tensor {
    let of_sequence = |(&length, &past): (&i64, &usize)| (past as i64..past as i64 + length).map(|p| p as f32);
    let positions: Vec<f32> = lengths.iter().zip(past).flat_map(of_sequence).collect();
    Tensor::from_slice(&positions)
}

/// The row of the last token of each sequence.
fn last_of_each(lengths: &[i64]) -> Vec<i64> {
    let ends = lengths.iter().scan(0, |end, &length| {
        *end += length;
        Some(*end - 1)
    });
    ends.collect()
}

/// The values of a tensor, in row-major order.
pub(crate) fn to_vec_f32(x: &Tensor) -> Vec<f32> {
    let x = x.to_kind(Kind::Float).contiguous();
    let mut values = vec![0.0; x.numel()];
    x.copy_data(&mut values, x.numel());
    values
}
