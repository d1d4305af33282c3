//! One decoder layer: attention and MLP, each between two norms, each added to the residual stream.

use data::hook_point::{HookPoint, Site};
use tch::{Kind, Tensor};

use super::attention::Attention;
use super::mlp::Mlp;
use super::norm::{Norm, points_before_attention, points_before_mlp};
use super::rope::Rotation;
use crate::error::Result;
use crate::gemma::model::Attend;
use crate::hook::Hooks;
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
        lengths: &[i64],
        rotation: &Rotation,
        cache: Option<&mut LayerCache>,
        attend: Attend,
        hooks: &mut Hooks<'_>,
    ) -> Tensor {
        let at = |site| HookPoint::block(site, self.layer);
        let resid = hooks.at(at(Site::ResidPre), resid); // [tok, d_model]

        let (scale, normalized) = points_before_attention(self.layer);
        let x = self.input_layernorm.forward_hooked(&resid, scale, normalized, hooks);
        let x = hooks.at(at(Site::AttnIn), x);
        let out = self.self_attn.forward(&x, lengths, rotation, cache, self.layer, attend, hooks);
        let out = hooks.at(at(Site::AttnOut), self.post_attention_layernorm.forward(&out));
        let resid = hooks.at(at(Site::ResidMid), resid + out);

        let (scale, normalized) = points_before_mlp(self.layer);
        let x = self.pre_feedforward_layernorm.forward_hooked(&resid, scale, normalized, hooks);
        let x = hooks.at(at(Site::MlpIn), x);
        let out = self.mlp.forward(&x, self.layer, hooks);
        let out = hooks.at(at(Site::MlpOut), self.post_feedforward_layernorm.forward(&out));
        hooks.at(at(Site::ResidPost), resid + out)
    }
}
