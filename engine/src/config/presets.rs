//! Which sizes have been released?

use super::{Architecture, Config, MoeConfig, PleConfig, layers};

/// A released size. What it does not say is what [`Config::from_hf`] takes by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// The checkpoint's own name, such as `gemma-3-270m`, without what it was tuned for.
    pub name: &'static str,
    /// Of the text stack by itself.
    pub architecture: Architecture,
    pub n_layers: usize,
    pub d_model: usize,
    pub d_mlp: usize,
    pub n_heads: usize,
    /// Of sliding layers.
    pub n_kv_heads: usize,
    /// Of sliding layers.
    pub d_head: usize,
    pub d_vocab: usize,
    pub sliding_window: usize,
    pub n_ctx: usize,
    /// How often a full layer comes.
    pub full_every: usize,
    pub family: Family,
}

/// What only some sizes of one generation have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
    Gemma3 {
        query_pre_attn_scalar: f64,
        /// Linear scaling of the positions on full layers.
        rope_factor: f64,
    },
    Gemma3n {
        /// How many of the last layers share keys and values.
        n_kv_shared: usize,
    },
    Gemma4 {
        /// Keys and values of full layers; where it is given, the values are the keys.
        n_global_kv_heads: Option<usize>,
        n_kv_shared: usize,
        /// Whether the layers that share have MLPs of twice the width.
        double_wide: bool,
        /// Width of a layer's part of the per-layer embeddings; 0 where there are none.
        d_ple: usize,
        moe: Option<MoeConfig>,
    },
}

use Architecture::{Gemma3Text, Gemma3nText, Gemma4Text, Gemma4UnifiedText};

const MOE_26B: MoeConfig = MoeConfig { n_experts: 128, top_k: 8, d_expert: 704 };

/// Every released size of Gemma 3, 3n and 4.
#[rustfmt::skip]
pub const PRESETS: &[Preset] = &[
    Preset { name: "gemma-3-270m",    architecture: Gemma3Text,        n_layers: 18, d_model:  640, d_mlp:  2048, n_heads:  4, n_kv_heads:  1, d_head: 256, d_vocab: 262_144, sliding_window:  512, n_ctx:  32_768, full_every: 6, family: Family::Gemma3 { query_pre_attn_scalar: 256.0, rope_factor: 1.0 } },
    Preset { name: "gemma-3-1b",      architecture: Gemma3Text,        n_layers: 26, d_model: 1152, d_mlp:  6912, n_heads:  4, n_kv_heads:  1, d_head: 256, d_vocab: 262_144, sliding_window:  512, n_ctx:  32_768, full_every: 6, family: Family::Gemma3 { query_pre_attn_scalar: 256.0, rope_factor: 1.0 } },
    Preset { name: "gemma-3-4b",      architecture: Gemma3Text,        n_layers: 34, d_model: 2560, d_mlp: 10240, n_heads:  8, n_kv_heads:  4, d_head: 256, d_vocab: 262_208, sliding_window: 1024, n_ctx: 131_072, full_every: 6, family: Family::Gemma3 { query_pre_attn_scalar: 256.0, rope_factor: 8.0 } },
    Preset { name: "gemma-3-12b",     architecture: Gemma3Text,        n_layers: 48, d_model: 3840, d_mlp: 15360, n_heads: 16, n_kv_heads:  8, d_head: 256, d_vocab: 262_208, sliding_window: 1024, n_ctx: 131_072, full_every: 6, family: Family::Gemma3 { query_pre_attn_scalar: 256.0, rope_factor: 8.0 } },
    Preset { name: "gemma-3-27b",     architecture: Gemma3Text,        n_layers: 62, d_model: 5376, d_mlp: 21504, n_heads: 32, n_kv_heads: 16, d_head: 128, d_vocab: 262_208, sliding_window: 1024, n_ctx: 131_072, full_every: 6, family: Family::Gemma3 { query_pre_attn_scalar: 168.0, rope_factor: 8.0 } },
    Preset { name: "gemma-3n-e2b",    architecture: Gemma3nText,       n_layers: 30, d_model: 2048, d_mlp:  8192, n_heads:  8, n_kv_heads:  2, d_head: 256, d_vocab: 262_400, sliding_window:  512, n_ctx:  32_768, full_every: 5, family: Family::Gemma3n { n_kv_shared: 10 } },
    Preset { name: "gemma-3n-e4b",    architecture: Gemma3nText,       n_layers: 35, d_model: 2048, d_mlp: 16384, n_heads:  8, n_kv_heads:  2, d_head: 256, d_vocab: 262_400, sliding_window:  512, n_ctx:  32_768, full_every: 5, family: Family::Gemma3n { n_kv_shared: 15 } },
    Preset { name: "gemma-4-e2b",     architecture: Gemma4Text,        n_layers: 35, d_model: 1536, d_mlp:  6144, n_heads:  8, n_kv_heads:  1, d_head: 256, d_vocab: 262_144, sliding_window:  512, n_ctx: 131_072, full_every: 5, family: Family::Gemma4 { n_global_kv_heads: None,    n_kv_shared: 20, double_wide: true,  d_ple: 256, moe: None } },
    Preset { name: "gemma-4-e4b",     architecture: Gemma4Text,        n_layers: 42, d_model: 2560, d_mlp: 10240, n_heads:  8, n_kv_heads:  2, d_head: 256, d_vocab: 262_144, sliding_window:  512, n_ctx: 131_072, full_every: 6, family: Family::Gemma4 { n_global_kv_heads: None,    n_kv_shared: 18, double_wide: false, d_ple: 256, moe: None } },
    Preset { name: "gemma-4-12b",     architecture: Gemma4UnifiedText, n_layers: 48, d_model: 3840, d_mlp: 15360, n_heads: 16, n_kv_heads:  8, d_head: 256, d_vocab: 262_144, sliding_window: 1024, n_ctx: 262_144, full_every: 6, family: Family::Gemma4 { n_global_kv_heads: Some(1), n_kv_shared:  0, double_wide: false, d_ple:   0, moe: None } },
    Preset { name: "gemma-4-26b-a4b", architecture: Gemma4Text,        n_layers: 30, d_model: 2816, d_mlp:  2112, n_heads: 16, n_kv_heads:  8, d_head: 256, d_vocab: 262_144, sliding_window: 1024, n_ctx: 262_144, full_every: 6, family: Family::Gemma4 { n_global_kv_heads: Some(2), n_kv_shared:  0, double_wide: false, d_ple:   0, moe: Some(MOE_26B) } },
    Preset { name: "gemma-4-31b",     architecture: Gemma4Text,        n_layers: 60, d_model: 5376, d_mlp: 21504, n_heads: 32, n_kv_heads: 16, d_head: 256, d_vocab: 262_144, sliding_window: 1024, n_ctx: 262_144, full_every: 6, family: Family::Gemma4 { n_global_kv_heads: Some(4), n_kv_shared:  0, double_wide: false, d_ple:   0, moe: None } },
];

/// Gemma 4 stops at the end of a text and at the end of a turn.
const GEMMA4_EOS: [u32; 2] = [1, 106];
const GEMMA4_SOFTCAP: f64 = 30.0;

impl Preset {
    /// The preset of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// The configuration of the size's text stack by itself.
    pub fn config(&self) -> Config {
        let mut config = Config {
            n_layers: self.n_layers,
            d_model: self.d_model,
            d_mlp: self.d_mlp,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_head: self.d_head,
            sliding_window: self.sliding_window,
            d_vocab: self.d_vocab,
            n_ctx: self.n_ctx,
            ..Config::defaults(self.architecture)
        };
        let mut layers = layers::uniform(&config, &layers::pattern(self.n_layers, self.full_every));
        let shares = |layers: &mut Vec<_>, n| {
            layers::share_keys(layers, n).expect("the table's sizes have both kinds of layers before those that share");
        };
        match self.family {
            Family::Gemma3 { query_pre_attn_scalar, rope_factor } => {
                config.query_pre_attn_scalar = query_pre_attn_scalar;
                config.rope.full.factor = rope_factor;
            }
            Family::Gemma3n { n_kv_shared } => {
                shares(&mut layers, n_kv_shared);
                layers::set_sparsity(&mut layers, &layers::default_sparsity(self.n_layers));
            }
            Family::Gemma4 { n_global_kv_heads, n_kv_shared, double_wide, d_ple, moe } => {
                for layer in layers::full(&mut layers) {
                    layer.d_head = super::DEFAULT_GLOBAL_HEAD_DIM;
                    layer.n_kv_heads = n_global_kv_heads.unwrap_or(self.n_kv_heads);
                    layer.value_is_key = n_global_kv_heads.is_some();
                }
                shares(&mut layers, n_kv_shared);
                if double_wide {
                    layers::double_sharing_mlps(&mut layers);
                }
                config.final_logit_softcapping = Some(GEMMA4_SOFTCAP);
                config.eos_token_ids = GEMMA4_EOS.to_vec();
                config.ple = (d_ple > 0).then_some(PleConfig { d_ple, d_vocab: self.d_vocab });
                config.moe = moe;
            }
        }
        config.layers = layers;
        config
    }
}
