//! The table of hook points: every activation that has an address, in the order in which a forward pass reaches it.

/// The kind of an activation, without a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    Embed,
    PleToken,
    PleContext,
    AltupStreams,
    ResidPre,
    ResidPreStreams,
    AltupCoefs,
    AltupPredictions,
    Ln1Scale,
    Ln1Normalized,
    AttnIn,
    LaurelOut,
    KvSource,
    QProj,
    KProj,
    VProj,
    Q,
    K,
    V,
    RotQ,
    RotK,
    AttnScores,
    Pattern,
    Z,
    Result,
    AttnOut,
    ResidMid,
    Ln2Scale,
    Ln2Normalized,
    MlpIn,
    SparsityCutoff,
    MlpPre,
    MlpPreLinear,
    MlpPost,
    DenseOut,
    RouterIn,
    RouterLogits,
    RouterProbs,
    TopkIdx,
    TopkWeightNorm,
    TopkWeight,
    ExpertIn,
    ExpertPre,
    ExpertPreLinear,
    ExpertPost,
    ExpertOut,
    MoeOut,
    MlpOut,
    ResidPostMlp,
    AltupInnovation,
    AltupCorrectCoefs,
    AltupCorrected,
    PleInput,
    PleGatePre,
    PleGate,
    PleOut,
    ResidPrescalar,
    LayerScalar,
    ResidPost,
    ResidPostStreams,
    AltupMerged,
    LnFinalScale,
    LnFinalNormalized,
    LogitsPrecap,
    Logits,
}

/// Where in a forward pass a site stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Once, before the first block.
    Start,
    /// Once in every block; the name has `blocks.N.` before it.
    Block,
    /// Once, behind the last block.
    End,
}

/// What one token's activation looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// `[1]`
    One,
    /// `[d_model]`
    Model,
    /// `[d_mlp]`
    Mlp,
    /// `[n_heads, d_head]`
    Heads,
    /// `[n_kv_heads, d_head]`
    KvHeads,
    /// `[n_heads, d_model]`
    HeadsByModel,
    /// `[n_heads, pos, pos]` for a whole sequence: there is no row per token, so it cannot be recorded.
    QueryByKey,
    /// `[d_ple]`
    Ple,
    /// `[n_layers, d_ple]`
    LayersByPle,
    /// `[n_experts]`
    Experts,
    /// `[top_k]`
    TopK,
    /// `[top_k, d_expert]`
    TopKByExpert,
    /// `[top_k, d_model]`
    TopKByModel,
    /// `[n_altup]`
    Altup,
    /// `[n_altup, d_model]`
    AltupByModel,
    /// `[d_vocab]`
    Vocab,
}

/// Which models, or which of their layers, have a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Always,
    /// Layers that project keys of their own.
    OwnKeys,
    /// Layers that project values of their own.
    OwnValues,
    /// Layers that read another layer's keys and values.
    SharedKeys,
    /// Models with per-layer embeddings.
    Ple,
    /// Models with experts.
    Experts,
    /// Models with several residual streams (Gemma 3n).
    Altup,
    /// Models that scale the residual stream behind every layer (Gemma 4).
    LayerScalar,
    /// Models in which something follows the MLP within a layer.
    AfterMlp,
    /// Layers whose MLP keeps only its strongest gates (Gemma 3n).
    SparseMlp,
}

/// One row of the hook-point table.
#[derive(Clone, Copy, Debug)]
pub struct SiteRow {
    pub site: Site,
    /// The name behind `blocks.N.`, or the whole name of a site that has no layer.
    pub name: &'static str,
    pub part: Part,
    pub width: Width,
    pub presence: Presence,
    /// Computed in f32 (or a whole number) whatever the model computes in.
    pub f32_always: bool,
    /// What it holds, for `inspect` and the documentation.
    pub about: &'static str,
}

impl SiteRow {
    /// Whether every block has one.
    pub fn per_layer(&self) -> bool {
        self.part == Part::Block
    }

    const fn only(mut self, presence: Presence) -> Self {
        self.presence = presence;
        self
    }

    const fn f32(mut self) -> Self {
        self.f32_always = true;
        self
    }
}

const fn row(part: Part, site: Site, name: &'static str, width: Width, about: &'static str) -> SiteRow {
    SiteRow { site, name, part, width, presence: Presence::Always, f32_always: false, about }
}

const fn block(site: Site, name: &'static str, width: Width, about: &'static str) -> SiteRow {
    row(Part::Block, site, name, width, about)
}

const fn start(site: Site, name: &'static str, width: Width, about: &'static str) -> SiteRow {
    row(Part::Start, site, name, width, about)
}

const fn end(site: Site, name: &'static str, width: Width, about: &'static str) -> SiteRow {
    row(Part::End, site, name, width, about)
}

use Presence::{AfterMlp, Altup, Experts, LayerScalar, OwnKeys, OwnValues, Ple, SharedKeys, SparseMlp};

/// Every hook point.
pub const TABLE: [SiteRow; 65] = [
    start(Site::Embed, "hook_embed", Width::Model, "embedding, after its √d_model scale"),
    start(Site::PleToken, "hook_ple_token", Width::LayersByPle, "the token's row of the per-layer table, × √d_ple")
        .only(Ple),
    start(
        Site::PleContext,
        "hook_ple_context",
        Width::LayersByPle,
        "the embedding projected for every layer, scaled and normed",
    )
    .only(Ple),
    start(Site::AltupStreams, "hook_altup_streams", Width::AltupByModel, "the residual streams at the start")
        .only(Altup),
    block(Site::ResidPre, "hook_resid_pre", Width::Model, "input of the block (Gemma 3n: its active stream)"),
    block(
        Site::ResidPreStreams,
        "hook_resid_pre.streams",
        Width::AltupByModel,
        "every residual stream before the block",
    )
    .only(Altup),
    block(Site::AltupCoefs, "altup.hook_coefs", Width::Altup, "router output that predicts the streams").only(Altup),
    block(Site::AltupPredictions, "altup.hook_predictions", Width::AltupByModel, "predicted streams").only(Altup),
    block(Site::Ln1Scale, "ln1.hook_scale", Width::One, "sqrt(mean x² + eps) before attention").f32(),
    block(Site::Ln1Normalized, "ln1.hook_normalized", Width::Model, "x / scale before attention, without the weight")
        .f32(),
    block(Site::AttnIn, "attn.hook_in", Width::Model, "input of attention, with the norm's weight"),
    block(Site::LaurelOut, "hook_laurel_out", Width::Model, "low-rank branch beside attention, with its input")
        .only(Altup),
    block(Site::KvSource, "hook_kv_source", Width::One, "the layer whose keys and values this layer reads")
        .only(SharedKeys)
        .f32(),
    block(Site::QProj, "attn.hook_q_proj", Width::Heads, "queries as projected, before their norm"),
    block(Site::KProj, "attn.hook_k_proj", Width::KvHeads, "keys as projected, before their norm").only(OwnKeys),
    block(Site::VProj, "attn.hook_v_proj", Width::KvHeads, "values as projected").only(OwnValues),
    block(Site::Q, "attn.hook_q", Width::Heads, "queries after their norm, before rope"),
    block(Site::K, "attn.hook_k", Width::KvHeads, "keys after their norm, before rope").only(OwnKeys),
    block(Site::V, "attn.hook_v", Width::KvHeads, "values that attention mixes").only(OwnKeys),
    block(Site::RotQ, "attn.hook_rot_q", Width::Heads, "queries after rope"),
    block(Site::RotK, "attn.hook_rot_k", Width::KvHeads, "keys after rope").only(OwnKeys),
    block(Site::AttnScores, "attn.hook_attn_scores", Width::QueryByKey, "scaled and masked scores"),
    block(Site::Pattern, "attn.hook_pattern", Width::QueryByKey, "attention probabilities"),
    block(Site::Z, "attn.hook_z", Width::Heads, "mixed values by head, the input of the output projection"),
    block(Site::Result, "attn.hook_result", Width::HeadsByModel, "contribution of each head, before the post norm"),
    block(Site::AttnOut, "hook_attn_out", Width::Model, "what attention adds to the stream, after its post norm"),
    block(Site::ResidMid, "hook_resid_mid", Width::Model, "stream between attention and MLP"),
    block(Site::Ln2Scale, "ln2.hook_scale", Width::One, "sqrt(mean x² + eps) before the MLP").f32(),
    block(Site::Ln2Normalized, "ln2.hook_normalized", Width::Model, "x / scale before the MLP, without the weight")
        .f32(),
    block(Site::MlpIn, "mlp.hook_in", Width::Model, "input of the MLP, with the norm's weight"),
    block(Site::SparsityCutoff, "mlp.hook_sparsity_cutoff", Width::One, "the gate value below which nothing passes")
        .only(SparseMlp),
    block(Site::MlpPre, "mlp.hook_pre", Width::Mlp, "gate before its activation function"),
    block(Site::MlpPreLinear, "mlp.hook_pre_linear", Width::Mlp, "output of the up projection"),
    block(Site::MlpPost, "mlp.hook_post", Width::Mlp, "gated product, the input of the down projection"),
    block(Site::DenseOut, "hook_dense_out", Width::Model, "the dense MLP beside the experts, after its branch norm")
        .only(Experts),
    block(Site::RouterIn, "moe.hook_router_in", Width::Model, "what the router projects").only(Experts),
    block(Site::RouterLogits, "moe.hook_router_logits", Width::Experts, "router logits").only(Experts),
    block(Site::RouterProbs, "moe.hook_router_probs", Width::Experts, "softmax of the router logits over all experts")
        .only(Experts)
        .f32(),
    block(Site::TopkIdx, "moe.hook_topk_idx", Width::TopK, "the chosen experts, by descending probability")
        .only(Experts)
        .f32(),
    block(Site::TopkWeightNorm, "moe.hook_topk_weight_norm", Width::TopK, "their probabilities, made to sum to 1")
        .only(Experts)
        .f32(),
    block(
        Site::TopkWeight,
        "moe.hook_topk_weight",
        Width::TopK,
        "the same × per-expert scale: what multiplies outputs",
    )
    .only(Experts)
    .f32(),
    block(Site::ExpertIn, "moe.hook_expert_in", Width::Model, "input of the experts, with their norm's weight")
        .only(Experts),
    block(Site::ExpertPre, "moe.hook_expert_pre", Width::TopKByExpert, "gates of the chosen experts").only(Experts),
    block(Site::ExpertPreLinear, "moe.hook_expert_pre_linear", Width::TopKByExpert, "their up projections")
        .only(Experts),
    block(Site::ExpertPost, "moe.hook_expert_post", Width::TopKByExpert, "their gated products").only(Experts),
    block(Site::ExpertOut, "moe.hook_expert_out", Width::TopKByModel, "their outputs, before their weights")
        .only(Experts),
    block(Site::MoeOut, "hook_moe_out", Width::Model, "weighted sum of the experts, after its branch norm")
        .only(Experts),
    block(Site::MlpOut, "hook_mlp_out", Width::Model, "what the MLP adds to the stream, after its post norm"),
    block(Site::ResidPostMlp, "hook_resid_post_mlp", Width::Model, "stream behind the MLP, before what follows it")
        .only(AfterMlp),
    block(Site::AltupInnovation, "altup.hook_innovation", Width::Model, "what the layer found beyond the prediction")
        .only(Altup),
    block(Site::AltupCorrectCoefs, "altup.hook_correct_coefs", Width::Altup, "router output that corrects the streams")
        .only(Altup),
    block(Site::AltupCorrected, "altup.hook_corrected", Width::AltupByModel, "corrected streams").only(Altup),
    block(Site::PleInput, "hook_ple_input", Width::Ple, "this layer's embedding of the token, in context").only(Ple),
    block(Site::PleGatePre, "ple.hook_gate_pre", Width::Ple, "gate of the per-layer embedding before its activation")
        .only(Ple),
    block(Site::PleGate, "ple.hook_gate", Width::Ple, "what the gate lets through of it").only(Ple),
    block(Site::PleOut, "ple.hook_out", Width::Model, "what it adds to the stream, after its post norm").only(Ple),
    block(Site::ResidPrescalar, "hook_resid_prescalar", Width::Model, "stream before the layer's scalar")
        .only(LayerScalar),
    block(Site::LayerScalar, "hook_layer_scalar", Width::One, "the number that the stream is multiplied by")
        .only(LayerScalar),
    block(Site::ResidPost, "hook_resid_post", Width::Model, "output of the block (Gemma 3n: its active stream)"),
    block(
        Site::ResidPostStreams,
        "hook_resid_post.streams",
        Width::AltupByModel,
        "every residual stream behind the block",
    )
    .only(Altup),
    end(Site::AltupMerged, "hook_altup_merged", Width::Model, "the streams made one, before the final norm")
        .only(Altup),
    end(Site::LnFinalScale, "ln_final.hook_scale", Width::One, "sqrt(mean x² + eps) before the unembedding").f32(),
    end(Site::LnFinalNormalized, "ln_final.hook_normalized", Width::Model, "x / scale before the unembedding").f32(),
    end(Site::LogitsPrecap, "hook_logits_precap", Width::Vocab, "logits before any softcap"),
    end(Site::Logits, "hook_logits", Width::Vocab, "logits"),
];

impl Site {
    /// The row of this site.
    pub fn row(self) -> &'static SiteRow {
        // The table is in the order of the enum; a test holds it to that.
        &TABLE[self as usize]
    }
}
