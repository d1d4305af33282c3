//! One decoder layer, of every generation: attention and MLP, each between two norms, each added to the residual stream.
//!
//! Some models have more: experts beside the MLP, a per-layer embedding behind it, a number that scales the stream at the
//! end (Gemma 4), several streams and a low-rank branch beside attention (Gemma 3n).

use data::hook_point::{HookPoint, Site};
use tch::Tensor;

use super::altup::{Altup, Laurel};
use super::attention::Attention;
use super::load::Loader;
use super::mlp::Mlp;
use super::model::Pass;
use super::moe::Moe;
use super::norm::{Norm, points_before_attention, points_before_mlp};
use super::ple::PleGate;
use super::rope::Rotation;
use crate::config::Generation;
use crate::error::Result;
use crate::kv_cache::LayerCache;

#[derive(Debug)]
pub(crate) struct Block {
    layer: usize,
    pub(crate) altup: Option<Altup>,
    input_layernorm: Norm,
    laurel: Option<Laurel>,
    pub(crate) self_attn: Attention,
    pub(crate) post_attention_layernorm: Norm,
    pre_feedforward_layernorm: Norm,
    mlp: Mlp,
    pub(crate) moe: Option<Moe>,
    pub(crate) post_feedforward_layernorm: Norm,
    ple: Option<PleGate>,
    layer_scalar: Option<Tensor>, // [1]
}

impl Block {
    pub(crate) fn new(loader: &Loader<'_>, layer: usize) -> Result<Self> {
        let block = format!("model.layers.{layer}");
        let norm = |name: &str| loader.norm(&format!("{block}.{name}"));
        let scaled = loader.config().generation() == Generation::Gemma4;
        Ok(Self {
            layer,
            altup: Altup::new(loader, &block, layer)?,
            input_layernorm: norm("input_layernorm")?,
            laurel: Laurel::new(loader, &block, layer)?,
            self_attn: Attention::new(loader, &block, layer)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp: Mlp::new(loader, &block, layer)?,
            moe: Moe::new(loader, &block, layer)?,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
            ple: PleGate::new(loader, &block, layer)?,
            layer_scalar: scaled.then(|| loader.tensor(&format!("{block}.layer_scalar"))).transpose()?,
        })
    }

    /// The residual stream before this layer to the stream after it: `[tok, d_model]`, or `[n_altup, tok, d_model]`.
    ///
    /// `ple`: `[tok, n_layers, d_ple]`, in models with per-layer embeddings.
    pub(crate) fn forward(
        &self,
        stream: Tensor,
        ple: Option<&Tensor>,
        rotation: &Rotation,
        cache: Option<&mut LayerCache>,
        pass: &mut Pass<'_, '_>,
    ) -> Tensor {
        let at = |site| HookPoint::block(site, self.layer);
        let (resid, predictions) = match &self.altup {
            Some(altup) => {
                let predictions = altup.predict(stream, pass.hooks); // [n_altup, tok, d_model]
                (altup.active(&predictions), Some(predictions))
            }
            None => (pass.hooks.at(at(Site::ResidPre), stream), None),
        }; // [tok, d_model]

        let (scale, normalized) = points_before_attention(self.layer);
        let x = self.input_layernorm.forward_hooked(&resid, scale, normalized, pass.hooks);
        let x = pass.hooks.at(at(Site::AttnIn), x);
        let laurel = self.laurel.as_ref().map(|laurel| laurel.forward(&x, pass.hooks));
        let out = self.self_attn.forward(&x, rotation, cache, pass);
        let out = pass.hooks.at(at(Site::AttnOut), self.post_attention_layernorm.forward(&out));
        let resid = resid + out;
        let resid = match laurel {
            Some(laurel) => (resid + laurel) / std::f64::consts::SQRT_2,
            None => resid,
        };
        let resid = pass.hooks.at(at(Site::ResidMid), resid);

        let (scale, normalized) = points_before_mlp(self.layer);
        let x = self.pre_feedforward_layernorm.forward_hooked(&resid, scale, normalized, pass.hooks);
        let x = pass.hooks.at(at(Site::MlpIn), x);
        let out = self.mlp.forward(&x, pass.hooks);
        let out = match &self.moe {
            Some(moe) => moe.forward(&out, &resid, pass),
            None => out,
        };
        let out = pass.hooks.at(at(Site::MlpOut), self.post_feedforward_layernorm.forward(&out));
        let resid = resid + out;

        if let (Some(altup), Some(predictions)) = (&self.altup, predictions) {
            let resid = pass.hooks.at(at(Site::ResidPostMlp), resid);
            let corrected = altup.correct(&predictions, &resid, pass.hooks); // [n_altup, tok, d_model]
            let addend = self.ple.as_ref().zip(ple);
            let addend = addend.map(|(gate, ple)| gate.forward(&altup.gate_input(&corrected), ple, pass.hooks));
            return altup.finish(corrected, addend, pass.hooks);
        }
        let Some(layer_scalar) = &self.layer_scalar else {
            return pass.hooks.at(at(Site::ResidPost), resid);
        };
        let resid = pass.hooks.at(at(Site::ResidPostMlp), resid);
        let resid = match self.ple.as_ref().zip(ple) {
            Some((gate, ple)) => &resid + gate.forward(&resid, ple, pass.hooks),
            None => resid,
        };
        let resid = pass.hooks.at(at(Site::ResidPrescalar), resid);
        let by_token = || layer_scalar.expand([resid.size()[0], 1], false);
        let replaced = pass.hooks.run_if_wanted(at(Site::LayerScalar), by_token);
        let resid = resid * replaced.as_ref().unwrap_or(layer_scalar);
        pass.hooks.at(at(Site::ResidPost), resid)
    }
}
