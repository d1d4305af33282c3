//! One decoder layer: attention and MLP, each between two norms, each added to the residual stream.

use data::hook_point::{HookPoint, Site};
use tch::{Kind, Tensor};

use super::attention::Attention;
use super::mlp::Mlp;
use super::norm::{Norm, points_before_attention, points_before_mlp};
use super::rope::Rotation;
use crate::error::Result;
use crate::gemma::model::Pass;
use crate::kv_cache::LayerCache;
use crate::weights::Weights;

#[derive(Debug)]
pub(crate) struct Block {
    layer: usize,
    input_layernorm: Norm,
    self_attn: Attention,
    post_attention_layernorm: Norm,
    pre_feedforward_layernorm: Norm,
    mlp: Mlp,
    post_feedforward_layernorm: Norm,
}

impl Block {
    pub(crate) fn new(weights: &Weights, layer: usize, kind: Kind) -> Result<Self> {
        let block = format!("model.layers.{layer}");
        let eps = weights.config().rms_norm_eps;
        let norm = |name: &str| -> Result<Norm> {
            Ok(Norm::new(&weights.tensor(&format!("{block}.{name}.weight"), kind)?, eps))
        };
        Ok(Self {
            layer,
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::new(weights, &block, layer, kind)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp: Mlp::new(weights, &block, kind)?,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
        })
    }

    /// The residual stream before this layer to the stream after it. `[tok, d_model]`
    pub(crate) fn forward(
        &self,
        resid: Tensor,
        rotation: &Rotation,
        cache: Option<&mut LayerCache>,
        pass: &mut Pass<'_, '_>,
    ) -> Tensor {
        let at = |site| HookPoint::block(site, self.layer);
        let resid = pass.hooks.at(at(Site::ResidPre), resid); // [tok, d_model]

        let (scale, normalized) = points_before_attention(self.layer);
        let x = self.input_layernorm.forward_hooked(&resid, scale, normalized, pass.hooks);
        let x = pass.hooks.at(at(Site::AttnIn), x);
        let out = self.self_attn.forward(&x, rotation, cache, pass);
        let out = pass.hooks.at(at(Site::AttnOut), self.post_attention_layernorm.forward(&out));
        let resid = pass.hooks.at(at(Site::ResidMid), resid + out);

        let (scale, normalized) = points_before_mlp(self.layer);
        let x = self.pre_feedforward_layernorm.forward_hooked(&resid, scale, normalized, pass.hooks);
        let x = pass.hooks.at(at(Site::MlpIn), x);
        let out = self.mlp.forward(&x, self.layer, pass.hooks);
        let out = pass.hooks.at(at(Site::MlpOut), self.post_feedforward_layernorm.forward(&out));
        pass.hooks.at(at(Site::ResidPost), resid + out)
    }
}
