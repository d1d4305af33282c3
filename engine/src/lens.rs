//! What would the model say if it stopped at a layer? The logit lens, as a table of layers and tokens.

use data::hook_point::{HookPoint, Site};
use tch::{Kind, Tensor};

use crate::cache::ActivationCache;
use crate::error::{Error, Result};
use crate::gemma::model::{Model, UNEMBED_ROWS, to_vec_f32};

/// The prediction of every token at one depth.
#[derive(Clone, Debug, PartialEq)]
pub struct LensRow {
    /// Whose residual stream is read.
    pub point: HookPoint,
    /// In the order of the cache's tokens.
    pub tokens: Vec<LensToken>,
}

/// The prediction at one token, through the final norm and the unembedding.
#[derive(Clone, Debug, PartialEq)]
pub struct LensToken {
    /// The most probable next tokens with their probabilities, descending.
    pub top: Vec<(u32, f32)>,
    /// In nats.
    pub entropy: f32,
    /// The token that does come next; `None` at the end of a sequence.
    pub next: Option<Next>,
}

/// How a prediction judges the true next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Next {
    pub id: u32,
    pub probability: f32,
    /// 1 for the most probable.
    pub rank: usize,
}

impl Model {
    /// Where the lens looks: before the first layer and behind every layer.
    pub fn lens_points(&self) -> Vec<HookPoint> {
        let shape = self.shape();
        let (before, behind) = if shape.n_altup > 0 {
            (Site::ResidPreStreams, Site::ResidPostStreams)
        } else {
            (Site::ResidPre, Site::ResidPost)
        };
        let layers = (0..shape.n_layers).map(|layer| HookPoint::block(behind, layer));
        std::iter::once(HookPoint::block(before, 0)).chain(layers).collect()
    }

    /// The logit lens at [`Self::lens_points`], which the cache must hold, with the `top` most probable tokens.
    pub fn lens(&self, cache: &ActivationCache, top: usize) -> Result<Vec<LensRow>> {
        self.lens_points().into_iter().map(|point| self.lens_row(cache, point, top)).collect()
    }

    /// The same at one of the points.
    pub fn lens_row(&self, cache: &ActivationCache, point: HookPoint, top: usize) -> Result<LensRow> {
        let _no_grad = tch::no_grad_guard();
        let ids = &cache.tokens().ids;
        let mut next: Vec<Option<u32>> = ids.iter().skip(1).copied().map(Some).chain([None]).collect();
        let mut end = 0;
        for &length in &cache.tokens().lengths {
            end += length;
            next[end - 1] = None;
        }
        let resid = cache.get(point).ok_or(Error::NotReached { point })?;
        let mut tokens = Vec::with_capacity(next.len());
        for (rows, next) in resid.split(UNEMBED_ROWS, 0).iter().zip(next.chunks(UNEMBED_ROWS as usize)) {
            tokens.extend(read(&self.logit_lens(rows).to_kind(Kind::Float), next, top));
        }
        Ok(LensRow { point, tokens })
    }
}

/// `logits`: `[rows, d_vocab]`, f32.
fn read(logits: &Tensor, next: &[Option<u32>], top: usize) -> Vec<LensToken> {
    let top = (top as i64).min(logits.size()[1]);
    let log_p = logits.log_softmax(-1, Kind::Float);
    let entropy = to_vec_f32(&-(log_p.exp() * &log_p).sum_dim_intlist(-1, false, Kind::Float));
    let (best, ids) = log_p.topk(top, -1, true, true);
    let best = to_vec_f32(&best.exp());
    let ids = Vec::<i64>::try_from(ids.view([-1])).unwrap_or_default();
    let wanted: Vec<i64> = next.iter().map(|id| i64::from(id.unwrap_or(0))).collect();
    let wanted = log_p.gather(1, &Tensor::from_slice(&wanted).to_device(log_p.device()).unsqueeze(1), false);
    // Ties do not push a token back.
    let above = to_vec_f32(&log_p.gt_tensor(&wanted).to_kind(Kind::Float).sum_dim_intlist(-1, false, Kind::Float));
    let probability = to_vec_f32(&wanted.exp());
    let token = |(row, next): (usize, &Option<u32>)| {
        let at = row * top as usize..(row + 1) * top as usize;
        LensToken {
            top: ids[at.clone()].iter().map(|&id| id as u32).zip(best[at].iter().copied()).collect(),
            entropy: entropy[row],
            next: next.map(|id| Next { id, probability: probability[row], rank: above[row] as usize + 1 }),
        }
    };
    next.iter().enumerate().map(token).collect()
}
