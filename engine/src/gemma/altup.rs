//! Alternating updates and the low-rank residual branch of Gemma 3n.
//!
//! The model carries several residual streams. A layer predicts all of them from one another, computes on one, and corrects
//! the others by what it found there.

use data::hook_point::{HookPoint, Site};
use tch::{Kind, Tensor};

use super::linear::Linear;
use super::load::Loader;
use super::norm::Norm;
use crate::error::Result;
use crate::hook::Hooks;

/// Keeps the magnitude of a projected stream away from zero.
const SMALLEST_MEAN_SQUARE: f64 = 1e-5;

/// One layer's predictor and corrector.
#[derive(Debug)]
pub(crate) struct Altup {
    modality_router: Linear,  // [n_altup, d_model]
    prediction_coefs: Linear, // [n_altup², n_altup]
    correction_coefs: Linear, // [n_altup, n_altup]
    router_norm: Norm,
    router_input_scale: Tensor,
    correct_output_scale: Option<Tensor>, // [d_model]
    n: i64,
    pub(crate) active: i64,
    layer: usize,
}

impl Altup {
    /// `None` for a model with one stream.
    pub(crate) fn new(loader: &Loader<'_>, block: &str, layer: usize) -> Result<Option<Self>> {
        let config = loader.config();
        let Some(altup) = config.altup else { return Ok(None) };
        let linear = |name: &str| loader.linear(&format!("{block}.altup.{name}"));
        let scale = altup.correct_scale.then(|| loader.tensor(&format!("{block}.altup.correct_output_scale")));
        Ok(Some(Self {
            modality_router: linear("modality_router")?,
            prediction_coefs: linear("prediction_coefs")?,
            correction_coefs: linear("correction_coefs")?,
            router_norm: loader.norm(&format!("{block}.altup.router_norm"))?,
            router_input_scale: loader.rounded((config.d_model as f64).recip()),
            correct_output_scale: scale.transpose()?,
            n: altup.n_streams as i64,
            active: altup.active as i64,
            layer,
        }))
    }

    /// The streams as they would be if this layer did nothing. `[n_altup, tok, d_model]` to the same.
    pub(crate) fn predict(&self, streams: Tensor, hooks: &mut Hooks<'_>) -> Tensor {
        let streams = self.hooked(Site::ResidPreStreams, self.hooked_active(Site::ResidPre, streams, hooks), hooks);
        let coefs = self.route(&streams.select(0, self.active), Site::AltupCoefs, hooks); // [tok, n_altup]
        let predicted = streams.permute([1, 2, 0]).matmul(&self.mixing(&coefs)).permute([2, 0, 1]) + streams;
        self.hooked(Site::AltupPredictions, predicted.contiguous(), hooks)
    }

    /// The stream that the layer computes on. `[tok, d_model]`
    pub(crate) fn active(&self, streams: &Tensor) -> Tensor {
        streams.select(0, self.active)
    }

    /// The streams after `found`, the layer's result for the active one. `[n_altup, tok, d_model]`
    pub(crate) fn correct(&self, predictions: &Tensor, found: &Tensor, hooks: &mut Hooks<'_>) -> Tensor {
        let coefs = self.route(found, Site::AltupCorrectCoefs, hooks); // [tok, n_altup]
        let innovation = found - predictions.select(0, self.active);
        let innovation = hooks.at(HookPoint::block(Site::AltupInnovation, self.layer), innovation); // [tok, d_model]
        let weights = self.following(&coefs).transpose(0, 1).unsqueeze(2); // [n_altup, tok, 1]
        let corrected = innovation.unsqueeze(0) * weights + predictions;
        self.hooked(Site::AltupCorrected, corrected, hooks)
    }

    /// How streams are predicted from one another: column `j` has what of each goes into stream `j`, beside itself.
    /// `[tok, n_altup]` to `[tok, n_altup, n_altup]`
    pub(crate) fn mixing(&self, coefs: &Tensor) -> Tensor {
        self.prediction_coefs.forward(coefs).view([-1, self.n, self.n]).transpose(1, 2)
    }

    /// How much of what was found each stream takes over. `[tok, n_altup]` to the same.
    pub(crate) fn following(&self, correct_coefs: &Tensor) -> Tensor {
        self.correction_coefs.forward(correct_coefs) + 1.0
    }

    /// What the gate of the per-layer embedding reads. `[n_altup, tok, d_model]` to `[tok, d_model]`
    pub(crate) fn gate_input(&self, corrected: &Tensor) -> Tensor {
        let active = corrected.select(0, self.active);
        match &self.correct_output_scale {
            Some(scale) => active * scale,
            None => active,
        }
    }

    /// Adds to every stream but the first, whichever is active, and shows the end of the layer to hooks.
    pub(crate) fn finish(&self, corrected: Tensor, addend: Option<Tensor>, hooks: &mut Hooks<'_>) -> Tensor {
        let streams = match addend {
            Some(addend) => {
                let others = corrected.narrow(0, 1, self.n - 1) + addend;
                Tensor::cat(&[corrected.narrow(0, 0, 1), others], 0)
            }
            None => corrected,
        };
        self.hooked(Site::ResidPostStreams, self.hooked_active(Site::ResidPost, streams, hooks), hooks)
    }

    /// `[tok, d_model]` to `[tok, n_altup]`, each between −1 and 1.
    fn route(&self, x: &Tensor, site: Site, hooks: &mut Hooks<'_>) -> Tensor {
        let routed = self.modality_router.forward(&(self.router_norm.forward(x) * &self.router_input_scale));
        let routed = routed.to_kind(Kind::Float).tanh().to_kind(x.kind());
        hooks.at(HookPoint::block(site, self.layer), routed)
    }

    /// Hooks see streams by token.
    fn hooked(&self, site: Site, streams: Tensor, hooks: &mut Hooks<'_>) -> Tensor {
        hooked_streams(HookPoint::block(site, self.layer), streams, hooks)
    }

    fn hooked_active(&self, site: Site, streams: Tensor, hooks: &mut Hooks<'_>) -> Tensor {
        match hooks.run_if_wanted(HookPoint::block(site, self.layer), || streams.select(0, self.active)) {
            Some(replaced) => {
                let all = (0..self.n).map(|i| if i == self.active { replaced.shallow_clone() } else { streams.get(i) });
                Tensor::stack(&all.collect::<Vec<_>>(), 0)
            }
            None => streams,
        }
    }
}

/// Shows streams to hooks as `[tok, n_altup, d_model]`.
fn hooked_streams(point: HookPoint, streams: Tensor, hooks: &mut Hooks<'_>) -> Tensor {
    hooks.run_if_wanted(point, || streams.transpose(0, 1)).map_or(streams, |replaced| replaced.transpose(0, 1))
}

/// How one stream becomes several at the start, and one again at the end.
#[derive(Debug)]
pub(crate) struct Streams {
    altup_projections: Vec<Linear>,         // n_altup − 1 of [d_model, d_model]
    altup_unembed_projections: Vec<Linear>, // n_altup − 1 of [d_model, d_model]
}

impl Streams {
    /// `None` for a model with one stream.
    pub(crate) fn new(loader: &Loader<'_>) -> Result<Option<Self>> {
        let Some(altup) = loader.config().altup else { return Ok(None) };
        let linears = |name: &str| -> Result<Vec<Linear>> {
            (0..altup.n_streams - 1).map(|i| loader.linear(&format!("model.{name}.{i}"))).collect()
        };
        Ok(Some(Self {
            altup_projections: linears("altup_projections")?,
            altup_unembed_projections: linears("altup_unembed_projections")?,
        }))
    }

    /// `[tok, d_model]` to `[n_altup, tok, d_model]`: projections with the magnitude of the first.
    pub(crate) fn split(&self, embed: &Tensor, hooks: &mut Hooks<'_>) -> Tensor {
        let magnitude = mean_square(embed).pow_tensor_scalar(0.5);
        let mut streams = vec![embed.shallow_clone()];
        streams.extend(self.altup_projections.iter().map(|map| with_magnitude(&map.forward(embed), &magnitude)));
        hooked_streams(HookPoint::whole(Site::AltupStreams), Tensor::stack(&streams, 0), hooks)
    }

    /// `[n_altup, tok, d_model]` to `[tok, d_model]`.
    pub(crate) fn merge(&self, streams: &Tensor) -> Tensor {
        let first = streams.get(0);
        let magnitude = mean_square(&first).pow_tensor_scalar(0.5);
        let mut merged = vec![first];
        for (i, map) in self.altup_unembed_projections.iter().enumerate() {
            merged.push(with_magnitude(&map.forward(&streams.get(i as i64 + 1)), &magnitude));
        }
        let merged = Tensor::stack(&merged, 0);
        merged.mean_dim(0, false, merged.kind())
    }
}

impl Streams {
    /// Where each stream must go for the merged one to go `towards` a direction, with every rescaling held at what it is for
    /// these streams. `towards`: `[d_model]`, f64; `streams`: `[n_altup, d_model]`. `[n_altup, d_model]`, f64
    pub(crate) fn held(&self, towards: &Tensor, streams: &Tensor) -> Tensor {
        let n = streams.size()[0];
        let mean_square = |x: &Tensor| x.to_kind(Kind::Double).square().mean(Kind::Double);
        let magnitude = mean_square(&streams.get(0)).sqrt();
        let mut parts = vec![towards.shallow_clone()];
        for (i, map) in self.altup_unembed_projections.iter().enumerate() {
            let stream = streams.get(i as i64 + 1);
            let scale = &magnitude / mean_square(&map.forward(&stream)).clamp_min(SMALLEST_MEAN_SQUARE).sqrt();
            let transposed = map.forward(&Tensor::eye(stream.size()[0], (stream.kind(), stream.device())));
            parts.push(transposed.to_kind(Kind::Double).matmul(towards) * scale);
        }
        Tensor::stack(&parts, 0) / n as f64
    }
}

/// `[tok, d_model]` to `[tok, 1]`, in the dtype of `x`.
fn mean_square(x: &Tensor) -> Tensor {
    x.pow_tensor_scalar(2).mean_dim(-1, true, x.kind())
}

fn with_magnitude(x: &Tensor, magnitude: &Tensor) -> Tensor {
    x * magnitude / mean_square(x).clamp_min(SMALLEST_MEAN_SQUARE).sqrt()
}

/// The low-rank branch beside attention: `x + norm(right(left(x)))`.
#[derive(Debug)]
pub(crate) struct Laurel {
    linear_left: Linear,  // [laurel_rank, d_model]
    linear_right: Linear, // [d_model, laurel_rank]
    post_laurel_norm: Norm,
    layer: usize,
}

impl Laurel {
    /// `None` for a model without.
    pub(crate) fn new(loader: &Loader<'_>, block: &str, layer: usize) -> Result<Option<Self>> {
        if loader.config().altup.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            linear_left: loader.linear(&format!("{block}.laurel.linear_left"))?,
            linear_right: loader.linear(&format!("{block}.laurel.linear_right"))?,
            post_laurel_norm: loader.norm(&format!("{block}.laurel.post_laurel_norm"))?,
            layer,
        }))
    }

    /// `[tok, d_model]` to the same.
    pub(crate) fn forward(&self, x: &Tensor, hooks: &mut Hooks<'_>) -> Tensor {
        let low_rank = self.linear_right.forward(&self.linear_left.forward(x));
        hooks.at(HookPoint::block(Site::LaurelOut, self.layer), x + self.post_laurel_norm.forward(&low_rank))
    }
}
