//! How much memory will a model take, and where, before any of it is loaded?
//!
//! Sizes of weights and of the cache are exact, the room for activations is an estimate from above.

use crate::config::{Config, LayerConfig};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::gemma::attention::query_block;
use crate::gemma::load::{LoadOptions, PlePlacement, Precision};
use crate::gemma::model::UNEMBED_ROWS;
use crate::gemma::ple;
use crate::quantize::Quantize;

/// Memory of common cards, in GiB.
pub const CARDS: [u64; 6] = [8, 12, 16, 24, 48, 80];
/// The part of a card that a program can use: the driver and libtorch's kernels take the rest.
const USABLE: f64 = 0.93;
/// The table of per-layer embeddings in its file, as it is released: bf16.
const STORED_BYTES: u64 = 2;

/// What a model is going to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Sequences whose keys and values are remembered; 0 without a cache.
    pub sequences: usize,
    /// Tokens in each of them.
    pub context: usize,
    /// Tokens that go through the network at once.
    pub batch_tokens: usize,
}

/// Bytes by place and by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights where the model computes.
    pub device_weights: u64,
    /// Weights that stay in main memory. If the model computes there, they are beside `device_weights`.
    pub cpu_weights: u64,
    /// Weights that stay in their files.
    pub disk_weights: u64,
    /// Of the table of per-layer embeddings, for each token.
    pub lookup_per_token: u64,
    /// Keys and values; layers that read another's have none, sliding layers no more than their window.
    pub kv_cache: u64,
    /// An estimate of the largest moment of a forward pass.
    pub activations: u64,
}

impl MemoryPlan {
    /// What the model of this configuration takes, loaded and used like this.
    pub fn of(config: &Config, options: &LoadOptions, work: &Workload) -> Self {
        let kind = options.precision.kind();
        let number = kind.elt_size_in_bytes() as u64;
        let mut plan = Self {
            kv_cache: kv_cache(config, work) * number,
            activations: activations(config, work, options.device) * number,
            ..Self::default()
        };
        for spec in config.tensors() {
            let n = spec.n_params();
            if spec.name == ple::TABLE {
                let (place, number) = match options.ple {
                    PlePlacement::Disk => (&mut plan.disk_weights, STORED_BYTES),
                    PlePlacement::Cpu => (&mut plan.cpu_weights, number),
                    PlePlacement::Device => (&mut plan.device_weights, number),
                };
                *place += n * number;
                plan.lookup_per_token = spec.shape[1] as u64 * number;
                continue;
            }
            let quantize = options.quantize.filter(|_| Quantize::packs(&spec.name));
            plan.device_weights += quantize.and_then(|how| how.bytes(&spec.shape, kind)).unwrap_or(n * number);
        }
        if options.quantize.is_some() {
            plan.activations += Quantize::unpacking_bytes(options.device.into());
        }
        plan
    }

    /// Everything where the model computes.
    pub fn on_device(&self) -> u64 {
        self.device_weights + self.kv_cache + self.activations
    }

    /// Whether a card of this many GiB holds it.
    pub fn fits_card(&self, gib: u64) -> bool {
        self.on_device() as f64 <= (gib << 30) as f64 * USABLE
    }

    /// The smallest of [`CARDS`] that holds it.
    pub fn smallest_card(&self) -> Option<u64> {
        CARDS.into_iter().find(|&card| self.fits_card(card))
    }
}

/// Refuses what cannot fit: a model whose weights alone are larger than the memory that is free.
///
/// `free`: bytes, `None` where that is unknown and everything is allowed.
pub fn check(config: &Config, options: &LoadOptions, free: Option<u64>) -> Result<()> {
    let nothing = Workload { sequences: 0, context: 0, batch_tokens: 0 };
    let needed = |options: &LoadOptions| {
        let plan = MemoryPlan::of(config, options, &nothing);
        plan.device_weights + if options.device == Device::Cpu { plan.cpu_weights } else { 0 }
    };
    match free {
        Some(free) if needed(options) > free => {
            let smaller = smaller(config, options).into_iter();
            let sizes: Vec<String> =
                smaller.map(|(flag, options)| format!("{} with `{flag}`", gigabytes(needed(&options)))).collect();
            let hint = if sizes.is_empty() {
                "take a smaller model".to_owned()
            } else {
                format!("they take {}", sizes.join(", "))
            };
            let (needed, free) = (gigabytes(needed(options)), gigabytes(free));
            Err(Error::TooLarge { device: options.device, needed, free, hint })
        }
        _ => Ok(()),
    }
}

/// Ways to load the model into less memory, each with its flag.
fn smaller(config: &Config, options: &LoadOptions) -> Vec<(&'static str, LoadOptions)> {
    let mut ways = Vec::new();
    if config.ple.is_some() && options.ple != PlePlacement::Disk {
        ways.push(("--ple disk", LoadOptions { ple: PlePlacement::Disk, ..*options }));
    }
    if options.precision == Precision::F32 {
        ways.push(("--dtype bf16", LoadOptions { precision: Precision::Bf16, ..*options }));
    }
    if options.quantize != Some(Quantize::Int4) {
        ways.push(("--quantize int4", LoadOptions { quantize: Some(Quantize::Int4), ..*options }));
    }
    ways
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Numbers in the cache.
fn kv_cache(config: &Config, work: &Workload) -> u64 {
    let own = config.layers.iter().enumerate().filter(|(_, layer)| layer.kv_source.is_none());
    let numbers = own.map(|(index, layer)| {
        let seen = config.window(index).map_or(work.context, |window| work.context.min(window - 1));
        2 * (layer.n_kv_heads * layer.d_head * seen) as u64
    });
    work.sequences as u64 * numbers.sum::<u64>()
}

/// Numbers that exist at once while a batch goes through the network.
fn activations(config: &Config, work: &Workload, device: Device) -> u64 {
    let d_model = config.d_model;
    let streams = config.altup.map_or(1, |altup| altup.n_streams);
    // The streams before and after a step, and what is added to them.
    let resid = 4 * streams * d_model;
    // For every layer, and its two terms while they are summed.
    let ple = config.ple.map_or(0, |ple| 3 * config.n_layers * ple.d_ple);
    let layer = |layer: &LayerConfig| {
        let heads = 2 * (config.n_heads + 2 * layer.n_kv_heads) * layer.d_head;
        heads.max(3 * layer.d_mlp)
    };
    let widest = config.layers.iter().map(layer).max().unwrap_or(0);
    // Its input, gate and up, their product, and its output in f32.
    let experts = config.moe.map_or(0, |moe| moe.top_k * (4 * moe.d_expert + 4 * d_model));
    let tokens = work.batch_tokens * (resid + ple + widest + experts);
    let keys = work.context.max(work.batch_tokens);
    let rows = work.batch_tokens.min(query_block(device.into(), config.n_heads as i64, keys as i64) as usize);
    let scores = 2 * config.n_heads * rows * keys;
    let logits = 2 * work.batch_tokens.min(UNEMBED_ROWS as usize) * config.d_vocab;
    (tokens + scores.max(logits)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    /// One sequence, as a person reads it.
    const READING: Workload = Workload { sequences: 1, context: 8192, batch_tokens: 2048 };

    fn config(name: &str) -> Config {
        Preset::find(name).unwrap().config()
    }

    fn bf16(quantize: Option<Quantize>) -> LoadOptions {
        LoadOptions { precision: Precision::Bf16, quantize, device: Device::Cuda(0), ..LoadOptions::default() }
    }

    fn plan(name: &str, quantize: Option<Quantize>) -> MemoryPlan {
        MemoryPlan::of(&config(name), &bf16(quantize), &READING)
    }

    #[test]
    fn gemma_4_31b_fits_a_card_of_24_gb_in_4_bits() {
        assert_eq!(plan("gemma-4-31b", None).smallest_card(), Some(80));
        assert_eq!(plan("gemma-4-31b", Some(Quantize::Int8)).smallest_card(), Some(48));
        let packed = plan("gemma-4-31b", Some(Quantize::Int4));
        assert_eq!(packed.smallest_card(), Some(24));
        assert!((19e9..20e9).contains(&(packed.device_weights as f64)), "{packed:?}");
    }

    #[test]
    fn an_e2b_holds_its_two_billion_effective_parameters() {
        for name in ["gemma-4-e2b", "gemma-3n-e2b"] {
            let config = config(name);
            let plan = MemoryPlan::of(&config, &bf16(None), &READING);
            assert_eq!(plan.device_weights, 2 * config.n_params_effective());
            // Of Gemma 3n, 1.9 billion are counted by its name, without the half billion of the embedding.
            assert!((1.9e9..2.5e9).contains(&(config.n_params_effective() as f64)), "{name}: {plan:?}");
            assert_eq!(plan.disk_weights, 2 * (config.n_params() - config.n_params_effective()));
        }
        let plan = plan("gemma-4-e2b", None);
        assert_eq!(plan.disk_weights, 262_144 * 35 * 256 * 2);
        assert_eq!(plan.lookup_per_token, 35 * 256 * 2);
        assert_eq!(plan.smallest_card(), Some(8));
    }

    #[test]
    fn the_table_lies_where_it_is_asked_to() {
        let config = config("gemma-4-e4b");
        let of = |ple| MemoryPlan::of(&config, &LoadOptions { ple, ..LoadOptions::default() }, &READING);
        let (disk, cpu, device) = (of(PlePlacement::Disk), of(PlePlacement::Cpu), of(PlePlacement::Device));
        let table = 262_144 * 42 * 256 * 4;
        assert_eq!((disk.cpu_weights, disk.disk_weights), (0, table / 2));
        assert_eq!((cpu.cpu_weights, cpu.disk_weights), (table, 0));
        assert_eq!((cpu.device_weights, device.device_weights), (disk.device_weights, disk.device_weights + table));
    }

    #[test]
    fn the_cache_holds_windows_and_no_shared_layers() {
        let cache = |name: &str, context| {
            let work = Workload { sequences: 2, context, batch_tokens: 1 };
            MemoryPlan::of(&config(name), &bf16(None), &work).kv_cache
        };
        // 50 sliding layers of 16 × 256 that keep 1,023 tokens, 10 full layers of 4 × 512.
        assert_eq!(cache("gemma-4-31b", 10_000), 2 * 2 * 2 * (50 * 4096 * 1023 + 10 * 2048 * 10_000));
        assert_eq!(cache("gemma-4-31b", 100), 2 * 2 * 2 * (50 * 4096 + 10 * 2048) * 100);
        // 15 layers have keys of their own: 12 sliding ones of 256, 3 full ones of 512.
        assert_eq!(cache("gemma-4-e2b", 10_000), 2 * 2 * 2 * (12 * 256 * 511 + 3 * 512 * 10_000));
    }

    #[test]
    fn weights_that_cannot_fit_are_refused_with_a_way_out() {
        let config = config("gemma-4-e2b");
        let options = LoadOptions { ple: PlePlacement::Cpu, ..LoadOptions::default() };
        check(&config, &options, None).unwrap();
        check(&config, &options, Some(64 << 30)).unwrap();
        let error = check(&config, &options, Some(8_000_000_000)).unwrap_err().to_string();
        let expected = "the weights take 18.5 GB on `cpu`, of which 8.0 GB are free\n\
                        hint: they take 9.1 GB with `--ple disk`, 9.3 GB with `--dtype bf16`, 12.2 GB with `--quantize int4`";
        assert_eq!(error, expected);
        let packed = LoadOptions { quantize: Some(Quantize::Int4), device: Device::Cuda(1), ..bf16(None) };
        let error = check(&config, &packed, Some(1_000_000_000)).unwrap_err().to_string();
        assert!(error.ends_with("hint: take a smaller model"), "{error}");
    }
}
