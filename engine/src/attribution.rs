//! Which parts of the network speak for a token? Direct logit attribution.
//!
//! The stream in front of the final norm is a sum: the embedding, and what every layer's attention, MLP and per-layer
//! embedding added. In Gemma 4 layer `j` multiplies the whole stream by a number `s_j`, so what layer `M` added arrives
//! multiplied by `s_M · … · s_(L−1)`. With the final norm's divisor held at the value that it had, the logit before any
//! softcap is linear in the stream, and each part's share of it is a number; the shares add up to the logit.
//!
//! Single heads and experts stand in front of norms of their own, whose divisors are held in the same way.
//!
//! Gemma 3n carries several streams. What mixes them in front of a layer, and what lets them follow what the layer found,
//! are numbers that depend on the token; they are held too, and so are the magnitudes to which the streams are rescaled when
//! they are made one. Then its logit is linear as well, in the streams at the start and in what attention, the low-rank
//! branch beside it, the MLP and the per-layer embedding added. The low-rank branch passes its own input on, so a part of
//! `hook_laurel_out` speaks for the normed stream in front of the layer.

use data::hook_point::{HookPoint, Site};
use tch::{Kind, Tensor};

use crate::cache::ActivationCache;
use crate::error::{Error, Result};
use crate::gemma::model::Model;

/// Which parts are taken apart further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Attention by head.
    pub heads: bool,
    /// The MLP of a model with experts: the dense part, and every chosen expert.
    pub experts: bool,
}

/// What one part adds to the logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contribution {
    /// The addend's hook point. `hook_attn_out` beside single heads is what the output projection's bias adds.
    pub point: HookPoint,
    /// The head at `attn.hook_result`, the expert at `moe.hook_expert_out`.
    pub index: Option<usize>,
    pub value: f64,
}

/// A logit, or a difference of two, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribution {
    /// In the order of the network.
    pub contributions: Vec<Contribution>,
    /// Before any softcap, as computed from the whole stream in f64.
    pub logit: f64,
    /// What the contributions leave: rounding, and what interventions wrote into the stream past every part.
    pub rest: f64,
}

impl Model {
    /// What [`Self::attribution`] reads.
    pub fn attribution_points(&self, detail: Detail) -> Vec<HookPoint> {
        let shape = self.shape();
        let mut sites = vec![Site::AttnOut, Site::LaurelOut, Site::MlpOut, Site::PleOut, Site::LayerScalar];
        sites.extend([Site::AltupCoefs, Site::AltupCorrectCoefs]);
        if detail.heads {
            sites.push(Site::Z);
        }
        if detail.experts {
            sites.extend([Site::DenseOut, Site::ExpertOut, Site::TopkIdx, Site::TopkWeight]);
        }
        let layers = (0..shape.n_layers).flat_map(|layer| sites.iter().map(move |&site| HookPoint::block(site, layer)));
        let last = shape.n_layers - 1;
        let whole = [Site::Embed, Site::AltupStreams, Site::AltupMerged].map(HookPoint::whole);
        let ends = [Site::ResidPost, Site::ResidPostStreams].map(|site| HookPoint::block(site, last));
        whole.into_iter().chain(layers).chain(ends).filter(|point| point.exists(&shape)).collect()
    }

    /// The logit of `answer` (less that of `wrong`) at a row of a cache that holds [`Self::attribution_points`].
    pub fn attribution(
        &self,
        cache: &ActivationCache,
        row: usize,
        answer: u32,
        wrong: Option<u32>,
        detail: Detail,
    ) -> Result<Attribution> {
        let _no_grad = tch::no_grad_guard();
        let shape = self.shape();
        for id in std::iter::once(answer).chain(wrong) {
            if id as usize >= shape.d_vocab {
                return Err(Error::UnknownToken { id, vocab_size: shape.d_vocab });
            }
        }
        let n = cache.tokens().ids.len();
        if row >= n {
            return Err(Error::NoRow { n, row });
        }
        let token = Token { cache, row };
        let unembed = |id: u32| self.unembedding().get(i64::from(id)).to_kind(Kind::Double);
        let answer = wrong.map_or_else(|| unembed(answer), |wrong| unembed(answer) - unembed(wrong)); // [d_model]
        let last = shape.n_layers - 1;
        let resid = match self.streams() {
            Some(_) => token.at(HookPoint::whole(Site::AltupMerged))?,
            None => token.at(HookPoint::block(Site::ResidPost, last))?,
        };
        // Where the stream must go for the logit to rise.
        let end = self.final_norm().held(&answer, &resid); // [d_model]
        let logit = effects(&resid, &end)[0];
        let mut towards = match self.streams() {
            Some(streams) => streams.held(&end, &token.raw(HookPoint::block(Site::ResidPostStreams, last))?),
            None => end.unsqueeze(0),
        }; // [n_streams, d_model]

        let mut found: Vec<Contribution> = Vec::new(); // from the last to the first
        for layer in (0..shape.n_layers).rev() {
            let before = self.through(layer, &towards, &token)?;
            self.parts(layer, &before, &token, detail, &mut found)?;
            towards = before.streams;
        }
        let start = HookPoint::whole(if self.streams().is_some() { Site::AltupStreams } else { Site::Embed });
        let value = (token.at(start)? * towards).sum(Kind::Double).double_value(&[]);
        found.push(Contribution { point: start, index: None, value });
        found.reverse();
        let rest = logit - found.iter().map(|contribution| contribution.value).sum::<f64>();
        Ok(Attribution { contributions: found, logit, rest })
    }

    /// From behind a layer to in front of it. `behind`: `[n_streams, d_model]`
    fn through(&self, layer: usize, behind: &Tensor, token: &Token<'_>) -> Result<Towards> {
        let point = |site| HookPoint::block(site, layer);
        let Some(altup) = &self.block(layer).altup else {
            let scalar = point(Site::LayerScalar);
            let scale = if scalar.exists(&self.shape()) { token.at(scalar)?.double_value(&[0]) } else { 1.0 };
            let streams = behind * scale;
            let one = || streams.get(0);
            return Ok(Towards { ple: one(), mlp: one(), attention: one(), streams });
        };
        let n = behind.size()[0];
        // The per-layer embedding goes to every stream but the first.
        let ple = behind.narrow(0, 1, n - 1).sum_dim_intlist(0, false, Kind::Double);
        let following = altup.following(&token.raw(point(Site::AltupCorrectCoefs))?.unsqueeze(0)).get(0);
        let mlp = following.to_kind(Kind::Double).matmul(behind); // [d_model]
        let attention = &mlp / std::f64::consts::SQRT_2;
        // What was found is (active + attention + laurel)/√2 + mlp, and the innovation is what that has beyond the active.
        let active = behind.get(altup.active) + &attention - &mlp;
        let predictions: Vec<Tensor> =
            (0..n).map(|i| if i == altup.active { active.shallow_clone() } else { behind.get(i) }).collect();
        let predictions = Tensor::stack(&predictions, 0);
        let mixing = altup.mixing(&token.raw(point(Site::AltupCoefs))?.unsqueeze(0)).get(0).to_kind(Kind::Double);
        Ok(Towards { ple, mlp, attention, streams: mixing.matmul(&predictions) + predictions })
    }

    /// What the parts of a layer add, from its last to its first.
    fn parts(
        &self,
        layer: usize,
        towards: &Towards,
        token: &Token<'_>,
        detail: Detail,
        found: &mut Vec<Contribution>,
    ) -> Result<()> {
        let (shape, block) = (self.shape(), self.block(layer));
        let point = |site| HookPoint::block(site, layer);
        let mut add = |site, indices: Option<&[usize]>, addends: &Tensor, towards: &Tensor| {
            for (i, value) in effects(addends, towards).into_iter().enumerate().rev() {
                found.push(Contribution { point: point(site), index: indices.map(|indices| indices[i]), value });
            }
        };
        if shape.d_ple > 0 {
            add(Site::PleOut, None, &token.at(point(Site::PleOut))?, &towards.ple);
        }
        match &block.moe {
            Some(moe) if detail.experts => {
                let weights = token.at(point(Site::TopkWeight))?; // [top_k]
                let outputs = token.at(point(Site::ExpertOut))? * weights.unsqueeze(1); // [top_k, d_model]
                let routed = moe.post_feedforward_layernorm_2.held(&outputs, &sum(&outputs));
                let dense = token.at(point(Site::DenseOut))?;
                let both = &dense + sum(&routed);
                let experts = Vec::<i64>::try_from(token.raw(point(Site::TopkIdx))?).unwrap_or_default();
                let experts: Vec<usize> = experts.into_iter().map(|expert| expert as usize).collect();
                let norm = &block.post_feedforward_layernorm;
                add(Site::ExpertOut, Some(&experts), &norm.held(&routed, &both), &towards.mlp);
                add(Site::DenseOut, None, &norm.held(&dense, &both), &towards.mlp);
            }
            _ => add(Site::MlpOut, None, &token.at(point(Site::MlpOut))?, &towards.mlp),
        }
        if detail.heads {
            let (heads, out) = block.self_attn.by_head(&token.raw(point(Site::Z))?.unsqueeze(0));
            let (heads, out) = (heads.get(0), out.get(0)); // [n_heads, d_model], [d_model]
            let held = |addends: &Tensor| block.post_attention_layernorm.held(addends, &out);
            if self.config().attention_bias {
                add(Site::AttnOut, None, &held(&(&out - sum(&heads))), &towards.attention);
            }
            let indices: Vec<usize> = (0..shape.n_heads).collect();
            add(Site::Result, Some(&indices), &held(&heads), &towards.attention);
        } else {
            add(Site::AttnOut, None, &token.at(point(Site::AttnOut))?, &towards.attention);
        }
        if block.altup.is_some() {
            add(Site::LaurelOut, None, &token.at(point(Site::LaurelOut))?, &towards.attention);
        }
        Ok(())
    }
}

/// Where the addends of a layer, and the streams in front of it, must go for the logit to rise.
struct Towards {
    ple: Tensor,       // [d_model]
    mlp: Tensor,       // [d_model]
    attention: Tensor, // [d_model]
    streams: Tensor,   // [n_streams, d_model]
}

/// One token's activations.
struct Token<'c> {
    cache: &'c ActivationCache,
    row: usize,
}

impl Token<'_> {
    fn raw(&self, point: HookPoint) -> Result<Tensor> {
        let rows = self.cache.get(point).ok_or(Error::NotReached { point })?;
        Ok(rows.get(self.row as i64))
    }

    fn at(&self, point: HookPoint) -> Result<Tensor> {
        Ok(self.raw(point)?.to_kind(Kind::Double))
    }
}

/// `[…, d_model]` by `[d_model]` to a number for each.
fn effects(addends: &Tensor, towards: &Tensor) -> Vec<f64> {
    Vec::try_from(addends.matmul(towards).reshape([-1])).unwrap_or_default()
}

/// `[n, d_model]` to `[d_model]`
fn sum(rows: &Tensor) -> Tensor {
    rows.sum_dim_intlist(0, false, rows.kind())
}
