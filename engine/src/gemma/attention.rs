//! Grouped-query attention with normed queries and keys, full or within a sliding window.
//!
//! The tokens of all sequences lie end to end, nothing is padded, and no sequence can see another. On a CPU attention runs
//! on each sequence by itself; a CUDA device, for which many small steps are dear, takes all of them at once, and hides
//! from each what the others hold.

use std::ops::Range;
use std::rc::Rc;

use data::hook_point::{HookPoint, Site};
use tch::{Device, Kind, Tensor};

use super::linear::Linear;
use super::load::Loader;
use super::model::{Numerics, Pass};
use super::norm::Norm;
use super::rope::Rotation;
use crate::config::Generation;
use crate::error::Result;
use crate::hook::Hooks;
use crate::kv_cache::LayerCache;

/// Queries that look at their keys together on a CPU: few enough to skip most of what they cannot see, enough to fill a
/// product.
const QUERY_BLOCK: i64 = 128;
/// On a CUDA device as many as make this many scores, which take 256 MiB in f32.
const DEVICE_SCORES: i64 = 1 << 26;

/// How many queries look at their keys together.
pub(crate) fn query_block(device: Device, n_heads: i64, n_keys: i64) -> i64 {
    match device {
        Device::Cpu => QUERY_BLOCK,
        _ => (DEVICE_SCORES / (n_heads * n_keys).max(1)).max(QUERY_BLOCK),
    }
}

#[derive(Debug)]
pub(crate) struct Attention {
    q_proj: Linear, // [n_heads · d_head, d_model]
    o_proj: Linear, // [d_model, n_heads · d_head]
    q_norm: Norm,   // [d_head], shared by all heads
    keys: Keys,
    n_heads: i64,
    n_kv_heads: i64,
    d_head: i64,
    scale: f64,
    /// How many keys, its own included, a token sees; `None` on full layers.
    window: Option<i64>,
    /// Encoders look both ways.
    bidirectional: bool,
    layer: usize,
}

/// Where a layer's keys and values come from.
#[derive(Debug)]
enum Keys {
    Own(OwnKeys),
    /// From an earlier layer, as they were after its cache.
    Shared {
        source: usize,
    },
}

#[derive(Debug)]
struct OwnKeys {
    k_proj: Linear,         // [n_kv_heads · d_head, d_model]
    v_proj: Option<Linear>, // the same; without it, the projected keys are the values
    k_norm: Norm,           // [d_head]
    v_norm: Option<Norm>,   // without a weight
    /// Whether a later layer reads them.
    kept: bool,
}

/// Which sequence each token belongs to, where attention takes all sequences at once.
#[derive(Debug)]
pub(crate) struct Together {
    /// Where the sequence of each token begins.
    begins: Vec<i64>,
    /// The same on the device, as the number of the sequence. `[tok]`
    sequence: Tensor,
}

impl Together {
    /// Sequences end to end, from their beginning.
    pub(crate) fn new(lengths: &[i64], device: Device) -> Self {
        let (mut begins, mut sequence) = (Vec::new(), Vec::new());
        for (number, &length) in lengths.iter().enumerate() {
            let begin = begins.len() as i64;
            begins.resize(begins.len() + length as usize, begin);
            sequence.resize(begins.len(), number as i64);
        }
        Self { begins, sequence: Tensor::from_slice(&sequence).to_device(device) }
    }

    fn n_tokens(&self) -> i64 {
        self.begins.len() as i64
    }
}

/// Keys and values of one sequence, `[n_kv_heads, key, d_head]`; keys after norm and rope.
pub(crate) type KeysAndValues = (Tensor, Tensor);

impl Attention {
    pub(crate) fn new(loader: &Loader<'_>, block: &str, layer: usize) -> Result<Self> {
        let config = loader.config();
        let shape = &config.layers[layer];
        let name = |part: &str| format!("{block}.self_attn.{part}");
        let keys = match shape.kv_source {
            Some(source) => Keys::Shared { source },
            None => Keys::Own(OwnKeys {
                k_proj: loader.projection(&name("k_proj"))?,
                v_proj: (!shape.value_is_key).then(|| loader.projection(&name("v_proj"))).transpose()?,
                k_norm: loader.norm(&name("k_norm"))?,
                v_norm: (config.generation() != Generation::Gemma3).then(|| loader.norm_without_weight()),
                kept: config.layers.iter().any(|later| later.kv_source == Some(layer)),
            }),
        };
        Ok(Self {
            q_proj: loader.projection(&name("q_proj"))?,
            o_proj: loader.projection(&name("o_proj"))?,
            q_norm: loader.norm(&name("q_norm"))?,
            keys,
            n_heads: config.n_heads as i64,
            n_kv_heads: shape.n_kv_heads as i64,
            d_head: shape.d_head as i64,
            scale: config.attention_scale(),
            window: config.window(layer).map(|window| window as i64),
            bidirectional: config.use_bidirectional_attention,
            layer,
        })
    }

    /// `[tok, d_model]` to `[tok, d_model]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        cache: Option<&mut LayerCache>,
        pass: &mut Pass<'_, '_>,
    ) -> Tensor {
        let at = |site| HookPoint::block(site, self.layer);
        let q = pass.hooks.at(at(Site::QProj), self.q_proj.forward(x).view([-1, self.n_heads, self.d_head]));
        let q = pass.hooks.at(at(Site::Q), self.q_norm.forward(&q)); // [tok, n_heads, d_head]
        let q = pass.hooks.at(at(Site::RotQ), rotation.apply(&q));
        let keys = match &self.keys {
            Keys::Own(own) => {
                let keys = Rc::new(self.own_keys(own, x, rotation, cache, pass));
                if own.kept {
                    pass.shared.insert(self.layer, Rc::clone(&keys));
                }
                keys
            }
            Keys::Shared { source } => {
                let source_at = || Tensor::full([x.size()[0], 1], *source as f64, (Kind::Float, x.device()));
                // Looked at, not obeyed: which layer is read is a matter of the weights.
                let _ = pass.hooks.run_if_wanted(at(Site::KvSource), source_at);
                Rc::clone(&pass.shared[source])
            }
        };

        let mut mixed = Vec::with_capacity(keys.len());
        let mut start = 0;
        for (sequence, (k, v)) in keys.iter().enumerate() {
            let length = pass.together.as_ref().map_or(pass.lengths[sequence], Together::n_tokens);
            let q = q.narrow(0, start, length).transpose(0, 1); // [n_heads, pos, d_head]
            let z = match pass.together {
                Some(_) => self.mix_together(&q, k, v, pass),
                None => self.mix(&q, k, v, sequence, pass),
            }; // [n_heads, pos, d_head]
            mixed.push(z.transpose(0, 1)); // [pos, n_heads, d_head]
            start += length;
        }
        let z = if mixed.len() == 1 { mixed.remove(0) } else { Tensor::cat(&mixed, 0) };
        let z = pass.hooks.at(at(Site::Z), z.contiguous()); // [tok, n_heads, d_head]

        let out = self.o_proj.forward(&z.view([-1, self.n_heads * self.d_head])); // [tok, d_model]
        match pass.hooks.run_if_wanted(at(Site::Result), || self.result(&z)) {
            // Somebody changed what a head contributes: the sum is taken anew.
            Some(result) => result.sum_dim_intlist(1, false, out.kind()),
            None => out,
        }
    }

    /// Keys and values of every sequence, those in the cache included; of all at once where they are taken together.
    fn own_keys(
        &self,
        own: &OwnKeys,
        x: &Tensor,
        rotation: &Rotation,
        mut cache: Option<&mut LayerCache>,
        pass: &mut Pass<'_, '_>,
    ) -> Vec<KeysAndValues> {
        let at = |site| HookPoint::block(site, self.layer);
        let split = |x: Tensor| x.view([-1, self.n_kv_heads, self.d_head]); // [tok, n_kv_heads, d_head]
        let k = pass.hooks.at(at(Site::KProj), split(own.k_proj.forward(x)));
        let v = match &own.v_proj {
            Some(v_proj) => pass.hooks.at(at(Site::VProj), split(v_proj.forward(x))),
            None => k.shallow_clone(),
        };
        let k = pass.hooks.at(at(Site::K), own.k_norm.forward(&k));
        let v = match &own.v_norm {
            Some(norm) => norm.forward(&v),
            None => v,
        };
        let v = pass.hooks.at(at(Site::V), v);
        let k = pass.hooks.at(at(Site::RotK), rotation.apply(&k));

        if pass.together.is_some() {
            return vec![(k.transpose(0, 1), v.transpose(0, 1))];
        }
        let mut start = 0;
        let mut keys = Vec::with_capacity(pass.lengths.len());
        for (sequence, &length) in pass.lengths.iter().enumerate() {
            let of = |x: &Tensor| x.narrow(0, start, length).transpose(0, 1); // [n_kv_heads, pos, d_head]
            keys.push(match cache.as_deref_mut() {
                Some(cache) => cache.update(sequence, of(&k), of(&v), self.window),
                None => (of(&k), of(&v)),
            });
            start += length;
        }
        keys
    }

    /// Queries of one sequence against its keys.
    /// `q`: `[n_heads, pos, d_head]`; `k`, `v`: `[n_kv_heads, key, d_head]`, where the last `pos` keys are those of the queries.
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor, sequence: usize, pass: &mut Pass<'_, '_>) -> Tensor {
        if pass.numerics == Numerics::Reference {
            return self.reference(q, k, v, sequence, pass.hooks).0;
        }
        // Looking at a pattern must not change a single bit of what follows, so it is computed beside the fast path, and
        // takes its place only if a hook replaced something.
        let beside = self.hooked(pass.hooks).then(|| self.reference(q, k, v, sequence, pass.hooks));
        match beside {
            Some((z, true)) => z,
            _ => self.blocked(q, k, v, pass),
        }
    }

    /// The same for the queries and the keys of all sequences.
    fn mix_together(&self, q: &Tensor, k: &Tensor, v: &Tensor, pass: &mut Pass<'_, '_>) -> Tensor {
        let all = self.blocked(q, k, v, pass); // [n_heads, tok, d_head]
        if !self.hooked(pass.hooks) {
            return all;
        }
        let mut start = 0;
        let mut parts = Vec::with_capacity(pass.lengths.len());
        for (sequence, &length) in pass.lengths.iter().enumerate() {
            let of = |x: &Tensor| x.narrow(1, start, length);
            let (z, replaced) = self.reference(&of(q), &of(k), &of(v), sequence, pass.hooks);
            parts.push(if replaced { z } else { of(&all) });
            start += length;
        }
        Tensor::cat(&parts, 1)
    }

    fn hooked(&self, hooks: &Hooks<'_>) -> bool {
        let wants = |site| hooks.wants(HookPoint::block(site, self.layer));
        wants(Site::AttnScores) || wants(Site::Pattern)
    }

    /// Scores, softmax and mixing one after the other, in the order and the dtypes of the reference implementation.
    /// Also says whether a hook replaced anything.
    fn reference(&self, q: &Tensor, k: &Tensor, v: &Tensor, sequence: usize, hooks: &mut Hooks<'_>) -> (Tensor, bool) {
        let at = |site| HookPoint::block(site, self.layer);
        let (n_queries, n_keys) = (q.size()[1], k.size()[1]);
        let share = |x: &Tensor| x.repeat_interleave_self_int(self.n_heads / self.n_kv_heads, 0, None);
        let hidden = self.hidden(0..n_queries, 0..n_keys, n_keys - n_queries, None, q.device());
        let mask = Tensor::zeros([n_queries, n_keys], (q.kind(), q.device())).masked_fill(&hidden, lowest(q.kind())); // [pos, key]
        let scores = q.matmul(&share(k).transpose(1, 2)) * self.scale + mask; // [n_heads, pos, key]
        let new_scores = hooks.run(at(Site::AttnScores), Some(sequence), &scores);
        let replaced = new_scores.is_some();
        let pattern = new_scores.unwrap_or(scores).softmax(-1, Kind::Float).to_kind(q.kind()); // [n_heads, pos, key]
        let new_pattern = hooks.run(at(Site::Pattern), Some(sequence), &pattern);
        let replaced = replaced || new_pattern.is_some();
        (new_pattern.unwrap_or(pattern).matmul(&share(v)), replaced) // [n_heads, pos, d_head]
    }

    /// The same for a block of queries at a time, against only those keys that the block can see.
    ///
    /// The heads of a group are laid below one another, so that a product has many rows and no key is repeated in memory.
    fn blocked(&self, q: &Tensor, k: &Tensor, v: &Tensor, pass: &mut Pass<'_, '_>) -> Tensor {
        let (n_queries, n_keys) = (q.size()[1], k.size()[1]);
        let past = n_keys - n_queries;
        let block = query_block(q.device(), self.n_heads, n_keys);
        let mut blocks = Vec::new();
        let mut first = 0;
        while first < n_queries {
            let n = block.min(n_queries - first);
            let keys = self.visible(past + first..past + first + n, n_keys, pass.together.as_ref());
            let of = |x: &Tensor| x.narrow(1, keys.start, keys.end - keys.start);
            let rows = q.narrow(1, first, n).reshape([self.n_kv_heads, -1, self.d_head]); // [n_kv_heads, group · n, d_head]
            let scores = rows.matmul(&of(k).transpose(1, 2)).g_mul_scalar_(self.scale); // [n_kv_heads, group · n, keys]
            // A single token sees every key that is left.
            if n > 1 {
                let hide = |hidden: &Tensor| {
                    let _ = scores.view([self.n_heads, n, -1]).masked_fill_(hidden, lowest(q.kind()));
                };
                let make = || self.hidden(first..first + n, keys.clone(), past, pass.together.as_ref(), q.device());
                if n == n_queries {
                    // Most layers hide the same, and most passes are one block.
                    hide(pass.hidden.entry((self.window, n, keys.start, keys.end)).or_insert_with(make));
                } else {
                    hide(&make());
                }
            }
            let mixed = scores.softmax(-1, q.kind()).matmul(&of(v)); // [n_kv_heads, group · n, d_head]
            blocks.push(mixed.view([self.n_heads, n, self.d_head]));
            first += n;
        }
        if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(&blocks, 1) }
    }

    /// The keys that at least one of the queries at these positions can see.
    fn visible(&self, queries: Range<i64>, n_keys: i64, together: Option<&Together>) -> Range<i64> {
        let reach = self.window.map_or(n_keys, |window| window - 1);
        let ahead = if self.bidirectional { reach } else { 0 };
        let first = together.map_or(0, |together| together.begins[queries.start as usize]);
        (queries.start - reach).max(first)..(queries.end + ahead).min(n_keys)
    }

    /// Which keys a query does not see. Query `i` stands at `past + i`, key `j` at `j`. `[queries, keys]`
    fn hidden(
        &self,
        queries: Range<i64>,
        keys: Range<i64>,
        past: i64,
        together: Option<&Together>,
        device: Device,
    ) -> Tensor {
        let positions = |from, to| Tensor::arange_start(from, to, (Kind::Int64, device));
        let query = positions(past + queries.start, past + queries.end).unsqueeze(1);
        let key = positions(keys.start, keys.end).unsqueeze(0);
        let back = query - key; // [queries, keys]; how far back the key lies
        let mut hidden = if self.bidirectional { back.zeros_like().to_kind(Kind::Bool) } else { back.lt(0) };
        if let Some(window) = self.window {
            let distance = if self.bidirectional { back.abs() } else { back };
            hidden = hidden.logical_or(&distance.ge(window));
        }
        if let Some(Together { sequence, .. }) = together {
            let of = |rows: Range<i64>| sequence.narrow(0, rows.start, rows.end - rows.start);
            hidden = hidden.logical_or(&of(queries).unsqueeze(1).not_equal_tensor(&of(keys).unsqueeze(0)));
        }
        hidden
    }

    /// What each head adds to the output projection, and its whole output: `[tok, n_heads, d_model]` and `[tok, d_model]`.
    pub(crate) fn by_head(&self, z: &Tensor) -> (Tensor, Tensor) {
        (self.result(z), self.o_proj.forward(&z.reshape([-1, self.n_heads * self.d_head])))
    }

    /// What each head adds to the output projection. `[tok, n_heads, d_head]` to `[tok, n_heads, d_model]`
    fn result(&self, z: &Tensor) -> Tensor {
        let by_head: Vec<Tensor> = (0..self.n_heads)
            .map(|head| self.o_proj.forward_part(&z.select(1, head), head * self.d_head, self.d_head))
            .collect();
        Tensor::stack(&by_head, 1)
    }
}

/// The finite number that masks a score.
fn lowest(kind: Kind) -> f64 {
    match kind {
        Kind::BFloat16 => -3.389_531_389_251_535_5e38,
        _ => f64::from(f32::MIN),
    }
}
