//! Grouped-query attention with normed queries and keys, full or within a sliding window.
//!
//! The tokens of all sequences lie end to end, and attention runs on each sequence by itself:
//! nothing is padded, and no sequence can see another.

use std::ops::Range;

use data::hook_point::{HookPoint, Site};
use tch::{Device, Kind, Tensor};

use super::linear;
use super::norm::Norm;
use super::rope::Rotation;
use crate::config::Config;
use crate::error::Result;
use crate::gemma::model::{Attend, Pass};
use crate::hook::{Hooks, Place};
use crate::kv_cache::LayerCache;
use crate::weights::Weights;

/// Queries that look at their keys together: few enough to skip most of what they cannot see, enough to fill a product.
const QUERY_BLOCK: i64 = 128;

#[derive(Debug)]
pub(crate) struct Attention {
    q_proj: Projection, // [n_heads · d_head, d_model]
    k_proj: Projection, // [n_kv_heads · d_head, d_model]
    v_proj: Projection, // [n_kv_heads · d_head, d_model]
    o_proj: Projection, // [d_model, n_heads · d_head]
    q_norm: Norm,       // [d_head], shared by all heads
    k_norm: Norm,       // [d_head]
    n_heads: i64,
    n_kv_heads: i64,
    d_head: i64,
    scale: f64,
    /// Keys further back than this are out of sight; `None` on full layers.
    window: Option<i64>,
    /// EmbeddingGemma looks both ways.
    bidirectional: bool,
    layer: usize,
}

/// A linear map, with a bias where the checkpoint has one.
#[derive(Debug)]
struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Projection {
    fn new(weights: &Weights, name: &str, with_bias: bool, kind: Kind) -> Result<Self> {
        let weight = weights.tensor(&format!("{name}.weight"), kind)?;
        let bias = if with_bias { Some(weights.tensor(&format!("{name}.bias"), kind)?) } else { None };
        Ok(Self { weight, bias })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

impl Attention {
    pub(crate) fn new(weights: &Weights, block: &str, layer: usize, kind: Kind) -> Result<Self> {
        let config = weights.config();
        let shape = &config.layers[layer];
        let projection =
            |name: &str| Projection::new(weights, &format!("{block}.self_attn.{name}"), config.attention_bias, kind);
        let norm = |name: &str| -> Result<Norm> {
            Ok(Norm::new(&weights.tensor(&format!("{block}.self_attn.{name}.weight"), kind)?, config.rms_norm_eps))
        };
        Ok(Self {
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            o_proj: projection("o_proj")?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            n_heads: config.n_heads as i64,
            n_kv_heads: shape.n_kv_heads as i64,
            d_head: shape.d_head as i64,
            scale: config.attention_scale(),
            window: window(config, layer),
            bidirectional: config.use_bidirectional_attention,
            layer,
        })
    }

    /// `[tok, d_model]` to `[tok, d_model]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        mut cache: Option<&mut LayerCache>,
        pass: &mut Pass<'_, '_>,
    ) -> Tensor {
        let at = |site| HookPoint::block(site, self.layer);
        let split = |x: Tensor, heads| x.view([-1, heads, self.d_head]);

        let q = pass.hooks.at(at(Site::QProj), split(self.q_proj.forward(x), self.n_heads)); // [tok, n_heads, d_head]
        let k = pass.hooks.at(at(Site::KProj), split(self.k_proj.forward(x), self.n_kv_heads)); // [tok, n_kv_heads, d_head]
        let v = pass.hooks.at(at(Site::VProj), split(self.v_proj.forward(x), self.n_kv_heads)); // [tok, n_kv_heads, d_head]

        let q = pass.hooks.at(at(Site::Q), self.q_norm.forward(&q));
        let k = pass.hooks.at(at(Site::K), self.k_norm.forward(&k));
        let v = pass.hooks.at(at(Site::V), v);

        let q = pass.hooks.at(at(Site::RotQ), rotation.apply(&q));
        let k = pass.hooks.at(at(Site::RotK), rotation.apply(&k));

        let mut mixed = Vec::with_capacity(pass.lengths.len());
        let mut start = 0;
        for (sequence, &length) in pass.lengths.iter().enumerate() {
            let of = |x: &Tensor| x.narrow(0, start, length).transpose(0, 1); // [heads, pos, d_head]
            let (q, mut k, mut v) = (of(&q), of(&k), of(&v));
            if let Some(cache) = cache.as_deref_mut() {
                (k, v) = cache.update(sequence, k, v, self.window);
            }
            let z = self.mix(&q, &k, &v, sequence, pass); // [n_heads, pos, d_head]
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

    /// Queries of one sequence against its keys.
    /// `q`: `[n_heads, pos, d_head]`; `k`, `v`: `[n_kv_heads, key, d_head]`, where the last `pos` keys are those of the queries.
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor, sequence: usize, pass: &mut Pass<'_, '_>) -> Tensor {
        let place = |site| Place { point: HookPoint::block(site, self.layer), sequence: Some(sequence) };
        let (scores_at, pattern_at) = (place(Site::AttnScores), place(Site::Pattern));
        let hooked = pass.hooks.wants(scores_at.point) || pass.hooks.wants(pattern_at.point);
        if pass.attend == Attend::Reference {
            return self.reference(q, k, v, scores_at, pattern_at, pass.hooks).0;
        }
        // Looking at a pattern must not change a single bit of what follows, so it is computed beside the fast path, and
        // takes its place only if a hook replaced something.
        let beside = hooked.then(|| self.reference(q, k, v, scores_at, pattern_at, pass.hooks));
        match beside {
            Some((z, true)) => z,
            _ => self.blocked(q, k, v),
        }
    }

    /// Scores, softmax and mixing one after the other, in the order and the dtypes of the reference implementation.
    /// Also says whether a hook replaced anything.
    fn reference(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        scores_at: Place,
        pattern_at: Place,
        hooks: &mut Hooks<'_>,
    ) -> (Tensor, bool) {
        let (n_queries, n_keys) = (q.size()[1], k.size()[1]);
        let share = |x: &Tensor| x.repeat_interleave_self_int(self.n_heads / self.n_kv_heads, 0, None);
        let hidden = self.hidden(0..n_queries, 0..n_keys, n_keys - n_queries, q.device());
        let mask = Tensor::zeros([n_queries, n_keys], (q.kind(), q.device())).masked_fill(&hidden, lowest(q.kind())); // [pos, key]
        let scores = q.matmul(&share(k).transpose(1, 2)) * self.scale + mask; // [n_heads, pos, key]
        let new_scores = hooks.run(scores_at, &scores);
        let replaced = new_scores.is_some();
        let pattern = new_scores.unwrap_or(scores).softmax(-1, Kind::Float).to_kind(q.kind()); // [n_heads, pos, key]
        let new_pattern = hooks.run(pattern_at, &pattern);
        let replaced = replaced || new_pattern.is_some();
        (new_pattern.unwrap_or(pattern).matmul(&share(v)), replaced) // [n_heads, pos, d_head]
    }

    /// The same for a block of queries at a time, against only those keys that the block can see.
    ///
    /// The heads of a group are laid below one another, so that a product has many rows and no key is repeated in memory.
    fn blocked(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let (n_queries, n_keys) = (q.size()[1], k.size()[1]);
        let past = n_keys - n_queries;
        let mut blocks = Vec::new();
        let mut first = 0;
        while first < n_queries {
            let n = QUERY_BLOCK.min(n_queries - first);
            let keys = self.visible(past + first..past + first + n, n_keys);
            let of = |x: &Tensor| x.narrow(1, keys.start, keys.end - keys.start);
            let rows = q.narrow(1, first, n).reshape([self.n_kv_heads, -1, self.d_head]); // [n_kv_heads, group · n, d_head]
            let scores = rows.matmul(&of(k).transpose(1, 2)).g_mul_scalar_(self.scale); // [n_kv_heads, group · n, keys]
            // A single token sees every key that is left.
            if n > 1 {
                let hidden = self.hidden(first..first + n, keys.clone(), past, q.device()); // [n, keys]
                let _ = scores.view([self.n_heads, n, -1]).masked_fill_(&hidden, lowest(q.kind()));
            }
            let mixed = scores.softmax(-1, q.kind()).matmul(&of(v)); // [n_kv_heads, group · n, d_head]
            blocks.push(mixed.view([self.n_heads, n, self.d_head]));
            first += n;
        }
        if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(&blocks, 1) }
    }

    /// The keys that at least one of the queries at these positions can see.
    fn visible(&self, queries: Range<i64>, n_keys: i64) -> Range<i64> {
        let reach = self.window.map_or(n_keys, |window| window - 1);
        let ahead = if self.bidirectional { reach } else { 0 };
        (queries.start - reach).max(0)..(queries.end + ahead).min(n_keys)
    }

    /// Which keys a query does not see. Query `i` stands at `past + i`, key `j` at `j`. `[queries, keys]`
    fn hidden(&self, queries: Range<i64>, keys: Range<i64>, past: i64, device: Device) -> Tensor {
        let positions = |from, to| Tensor::arange_start(from, to, (Kind::Int64, device));
        let query = positions(past + queries.start, past + queries.end).unsqueeze(1);
        let key = positions(keys.start, keys.end).unsqueeze(0);
        let back = query - key; // [queries, keys]; how far back the key lies
        let mut hidden = if self.bidirectional { back.zeros_like().to_kind(Kind::Bool) } else { back.lt(0) };
        if let Some(window) = self.window {
            let distance = if self.bidirectional { back.abs() } else { back };
            hidden = hidden.logical_or(&distance.ge(window));
        }
        hidden
    }

    /// What each head adds to the output projection. `[tok, n_heads, d_head]` to `[tok, n_heads, d_model]`
    fn result(&self, z: &Tensor) -> Tensor {
        let by_head: Vec<Tensor> = (0..self.n_heads)
            .map(|head| linear(&z.select(1, head), &self.o_proj.weight.narrow(1, head * self.d_head, self.d_head)))
            .collect();
        Tensor::stack(&by_head, 1)
    }
}

/// How many keys, itself included, a token of this layer sees; `None` on full layers.
fn window(config: &Config, layer: usize) -> Option<i64> {
    config.window(layer).map(|window| window as i64)
}

/// The finite number that masks a score.
fn lowest(kind: Kind) -> f64 {
    match kind {
        Kind::BFloat16 => -3.389_531_389_251_535_5e38,
        _ => f64::from(f32::MIN),
    }
}
