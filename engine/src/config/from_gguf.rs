//! What does GGUF metadata say, and what does it leave to the reader to know?
//!
//! What only the tensors tell is added by [`crate::weights::Weights::open`].

use tch::{Kind, Tensor};

use super::{Architecture, Config, Generation, LayerConfig, LayerKind, MoeConfig, PleConfig, Rope, bad, layers};
use crate::error::Result;
use crate::weights::gguf::{Metadata, Value};

/// The number of layers by which llama.cpp recognises the 27B, whose attention scale is `(d_model / n_heads)^-0.5`.
const N_LAYERS_27B: usize = 62;

/// The metadata of one architecture, whose keys begin with its name.
struct Keys<'a> {
    metadata: &'a Metadata,
    arch: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn count(&self, name: &str) -> Result<Option<usize>> {
        self.metadata.usize(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<usize> {
        self.metadata.required_usize(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.metadata.f64(&self.key(name))
    }

    fn bad(&self, name: &str, expected: &str, found: &str) -> crate::error::Error {
        bad(&self.key(name), expected, found)
    }

    /// One number for all layers, or a list with one for each.
    fn by_layer(&self, name: &str, n_layers: usize) -> Result<Vec<usize>> {
        let Some(Value::Ints(numbers)) = self.metadata.get(&self.key(name)) else {
            return Ok(vec![self.required(name)?; n_layers]);
        };
        self.check_length(name, numbers.len(), n_layers)?;
        let count =
            |number: &i64| usize::try_from(*number).ok().ok_or_else(|| self.bad(name, "counts", &number.to_string()));
        numbers.iter().map(count).collect()
    }

    fn check_length(&self, name: &str, found: usize, n_layers: usize) -> Result<()> {
        if found == n_layers {
            return Ok(());
        }
        Err(self.bad(name, &format!("a number, or {n_layers} of them"), &format!("{found} of them")))
    }

    /// Which layers slide: a list that says so, how often one does not, or the family's pattern.
    fn kinds(&self, n_layers: usize, generation: Generation) -> Result<Vec<LayerKind>> {
        const KEY: &str = "attention.sliding_window_pattern";
        if let Some(Value::Bools(slides)) = self.metadata.get(&self.key(KEY)) {
            self.check_length(KEY, slides.len(), n_layers)?;
            let kind = |&slides| if slides { LayerKind::Sliding } else { LayerKind::Full };
            return Ok(slides.iter().map(kind).collect());
        }
        let every = self.count(KEY)?.filter(|&every| every > 0);
        Ok(layers::pattern(n_layers, every.unwrap_or_else(|| layers::full_every(generation))))
    }

    fn rope(&self) -> Result<(f64, Option<f64>, Option<f64>)> {
        let factor = match self.metadata.text(&self.key("rope.scaling.type"))?.unwrap_or("none") {
            "none" => 1.0,
            "linear" => self.number("rope.scaling.factor")?.unwrap_or(1.0),
            other => return Err(self.bad("rope.scaling.type", "`none` or `linear`", &format!("`{other}`"))),
        };
        Ok((factor, self.number("rope.freq_base")?, self.number("rope.freq_base_swa")?))
    }

    /// The width of a head, for keys and for values.
    fn d_head(&self, suffix: &str) -> Result<Option<usize>> {
        let Some(d_head) = self.count(&format!("attention.key_length{suffix}"))? else { return Ok(None) };
        let values = format!("attention.value_length{suffix}");
        match self.count(&values)? {
            Some(d_value) if d_value != d_head => {
                Err(self.bad(&values, &format!("the key length {d_head}"), &d_value.to_string()))
            }
            _ => Ok(Some(d_head)),
        }
    }
}

impl Config {
    /// Reads the metadata of a GGUF file.
    ///
    /// What files leave out is what llama.cpp hard-codes: in `gemma3` the layer pattern, the rotary base of the sliding
    /// layers and the attention scale.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let arch = metadata.text("general.architecture")?.unwrap_or("nothing");
        let architecture = Architecture::from_gguf(arch)?;
        if let Some(parts) = metadata.usize("split.count")?.filter(|&parts| parts > 1) {
            return Err(bad("split.count", "one file that holds the whole model", &format!("{parts} parts")));
        }
        let keys = Keys { metadata, arch };
        let default = Self::defaults(architecture);
        let d_head = keys.d_head("")?;
        let d_head = d_head.map_or_else(|| keys.required("attention.key_length"), Ok)?;
        let mut config = Self {
            d_model: keys.required("embedding_length")?,
            n_layers: keys.required("block_count")?,
            n_heads: keys.required("attention.head_count")?,
            d_head: keys.d_head("_swa")?.unwrap_or(d_head),
            d_vocab: metadata.vocab_size()?.unwrap_or(default.d_vocab),
            n_ctx: keys.required("context_length")?,
            rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")?.unwrap_or(default.rms_norm_eps),
            sliding_window: keys.required("attention.sliding_window")?,
            final_logit_softcapping: keys.number("final_logit_softcapping")?.or(default.final_logit_softcapping),
            bos_token_id: metadata.token_id("bos")?.unwrap_or(default.bos_token_id),
            pad_token_id: metadata.token_id("padding")?.unwrap_or(default.pad_token_id),
            ..default
        };
        config.check_n_layers()?;
        if config.generation() == Generation::Gemma3 {
            let wide_scale = config.n_layers == N_LAYERS_27B && config.n_heads > 0;
            config.query_pre_attn_scalar =
                if wide_scale { config.d_model as f64 / config.n_heads as f64 } else { d_head as f64 };
        }
        let (factor, theta, theta_sliding) = keys.rope()?;
        config.rope.full = Rope { factor, theta: theta.unwrap_or(config.rope.full.theta), ..config.rope.full };
        config.rope.sliding.theta = theta_sliding.unwrap_or(config.rope.sliding.theta);
        let eos_token_ids = metadata.eos_token_ids()?;
        if !eos_token_ids.is_empty() {
            config.eos_token_ids = eos_token_ids;
        }
        config.read_parts(&keys)?;
        config.read_layers_of(&keys, d_head)?;
        config.check()?;
        Ok(config)
    }

    /// Per-layer embeddings, experts and streams. The rows of the table and the rank of the low-rank branch are known
    /// from their tensors.
    fn read_parts(&mut self, keys: &Keys<'_>) -> Result<()> {
        if let Some(d_ple) = keys.count("embedding_length_per_layer_input")? {
            self.ple = self.ple.filter(|_| d_ple > 0).map(|ple| PleConfig { d_ple, ..ple });
        } else if self.generation() == Generation::Gemma4 {
            self.ple = None;
        }
        if self.generation() == Generation::Gemma4 && keys.count("expert_count")?.is_some_and(|n| n > 0) {
            self.moe = Some(MoeConfig {
                n_experts: keys.required("expert_count")?,
                top_k: keys.required("expert_used_count")?,
                d_expert: keys.required("expert_feed_forward_length")?,
            });
        }
        if let Some(altup) = &mut self.altup {
            altup.n_streams = keys.count("altup.num_inputs")?.unwrap_or(altup.n_streams);
            altup.active = keys.count("altup.active_idx")?.unwrap_or(altup.active);
        }
        Ok(())
    }

    /// `d_head_full` is the width of the heads of full layers.
    fn read_layers_of(&mut self, keys: &Keys<'_>, d_head_full: usize) -> Result<()> {
        let kinds = keys.kinds(self.n_layers, self.generation())?;
        let n_kv_heads = keys.by_layer("attention.head_count_kv", self.n_layers)?;
        let d_mlps = keys.by_layer("feed_forward_length", self.n_layers)?;
        let slides = kinds.iter().position(|&kind| kind == LayerKind::Sliding).unwrap_or(0);
        (self.n_kv_heads, self.d_mlp) = (n_kv_heads[slides], d_mlps[0]);
        let mut layers = layers::uniform(self, &kinds);
        for (layer, (n_kv_heads, d_mlp)) in layers.iter_mut().zip(n_kv_heads.into_iter().zip(d_mlps)) {
            (layer.n_kv_heads, layer.d_mlp) = (n_kv_heads, d_mlp);
        }
        layers::full(&mut layers).for_each(|layer| layer.d_head = d_head_full);
        if self.generation() != Generation::Gemma3 {
            let n_shared = keys.count("attention.shared_kv_layers")?;
            layers::share_keys(&mut layers, n_shared.unwrap_or_else(|| layers::kv_shared(self.generation())))?;
        }
        if self.generation() == Generation::Gemma3n {
            layers::set_sparsity(&mut layers, &sparsity(keys, self.n_layers)?);
        }
        self.layers = layers;
        Ok(())
    }

    /// What layers whose file has no values of their own do: those that share read another's, others read their keys.
    pub(crate) fn values_are_keys(&mut self, has_values: impl Fn(usize) -> bool) {
        let without = |(index, layer): &(usize, &mut LayerConfig)| layer.kv_source.is_none() && !has_values(*index);
        self.layers.iter_mut().enumerate().filter(without).for_each(|(_, layer)| layer.value_is_key = true);
    }
}

/// Which part of the gates each layer cuts off. The file has the multiples of the standard deviation that cut off so
/// much of a normal distribution.
fn sparsity(keys: &Keys<'_>, n_layers: usize) -> Result<Vec<f64>> {
    const KEY: &str = "activation_sparsity_scale";
    /// Sparsities are written by hand, with few digits; the file's f32 has seven.
    const DIGITS: f64 = 1e6;
    let Some(multiples) = keys.metadata.floats(&keys.key(KEY))? else {
        return Ok(layers::default_sparsity(n_layers));
    };
    keys.check_length(KEY, multiples.len(), n_layers)?;
    let parts = Tensor::from_slice(multiples).to_kind(Kind::Double).special_ndtr();
    let parts = Vec::<f64>::try_from(parts).map_err(|source| crate::error::Error::Torch {
        what: "read back the sparsity of the layers".to_owned(),
        source,
    })?;
    Ok(parts.into_iter().map(|part| (part * DIGITS).round() / DIGITS).collect())
}
