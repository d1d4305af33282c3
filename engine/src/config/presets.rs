//! Which sizes have been released?

use super::{Config, DEFAULT_SLIDING_WINDOW_PATTERN, pattern};

/// A released size. All of them share what [`Config::default`] says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// The name in the checkpoint's own name, such as `270m` in `gemma-3-270m`.
    pub name: &'static str,
    pub n_layers: usize,
    pub d_model: usize,
    pub d_mlp: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub d_head: usize,
    pub sliding_window: usize,
    pub query_pre_attn_scalar: f64,
    pub d_vocab: usize,
    pub n_ctx: usize,
    /// Linear scaling of the positions on full layers.
    pub rope_factor: f64,
}

/// Every released size of Gemma 3.
#[rustfmt::skip]
pub const PRESETS: &[Preset] = &[
    Preset { name: "270m", n_layers: 18, d_model:  640, d_mlp:  2048, n_heads:  4, n_kv_heads:  1, d_head: 256, sliding_window:  512, query_pre_attn_scalar: 256.0, d_vocab: 262_144, n_ctx:  32_768, rope_factor: 1.0 },
    Preset { name: "1b",   n_layers: 26, d_model: 1152, d_mlp:  6912, n_heads:  4, n_kv_heads:  1, d_head: 256, sliding_window:  512, query_pre_attn_scalar: 256.0, d_vocab: 262_144, n_ctx:  32_768, rope_factor: 1.0 },
    Preset { name: "4b",   n_layers: 34, d_model: 2560, d_mlp: 10240, n_heads:  8, n_kv_heads:  4, d_head: 256, sliding_window: 1024, query_pre_attn_scalar: 256.0, d_vocab: 262_208, n_ctx: 131_072, rope_factor: 8.0 },
    Preset { name: "12b",  n_layers: 48, d_model: 3840, d_mlp: 15360, n_heads: 16, n_kv_heads:  8, d_head: 256, sliding_window: 1024, query_pre_attn_scalar: 256.0, d_vocab: 262_208, n_ctx: 131_072, rope_factor: 8.0 },
    Preset { name: "27b",  n_layers: 62, d_model: 5376, d_mlp: 21504, n_heads: 32, n_kv_heads: 16, d_head: 128, sliding_window: 1024, query_pre_attn_scalar: 168.0, d_vocab: 262_208, n_ctx: 131_072, rope_factor: 8.0 },
];

impl Preset {
    /// The preset of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// The configuration of the size's text stack, as `Gemma3ForCausalLM` would run it.
    pub fn config(&self) -> Config {
        let mut config = Config {
            n_layers: self.n_layers,
            d_model: self.d_model,
            d_mlp: self.d_mlp,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_head: self.d_head,
            sliding_window: self.sliding_window,
            query_pre_attn_scalar: self.query_pre_attn_scalar,
            d_vocab: self.d_vocab,
            n_ctx: self.n_ctx,
            ..Config::default()
        };
        config.rope.full.factor = self.rope_factor;
        config.with_layers(&pattern(self.n_layers, DEFAULT_SLIDING_WINDOW_PATTERN))
    }
}
