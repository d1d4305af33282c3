//! What may be said of a coder that is to be trained, by flags or in a file of many?

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use data::{HookPoint, ModelShape};
use fs_err as fs;
use scope::train::{BATCH, D_SAE, K};
use scope::{Architecture, SparsityLoss, TrainConfig, Wiring};
use serde::Deserialize;
use toml::{Table, Value};

/// Passes over the run, unless the tokens to train on are given.
const EPOCHS: u32 = 1;

/// What may be said of one coder.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct Settings {
    /// The hook point to train on; several make a crosscoder: `blocks.5-9.hook_resid_post`, or names with commas
    #[arg(long, value_name = "NAMES")]
    hook_point: Option<String>,

    /// What is to be written, of a transcoder, which writes another hook point than it reads; with several, of a cross-layer
    /// transcoder, whose latents write their own layer and every later one
    #[arg(long, value_name = "NAMES", requires = "hook_point")]
    hook_point_out: Option<String>,

    /// Give a transcoder a matrix beside its latents, which takes the linear part
    #[arg(long, requires = "hook_point_out")]
    skip: bool,

    /// Let each latent of a crosscoder read one hook point, and write that and every later one (Gemma Scope 2)
    #[arg(long, requires = "hook_point", conflicts_with = "hook_point_out")]
    causal: bool,

    /// Let `--k` be that of each layer, where each latent reads one; otherwise it is that of all layers together
    #[arg(long, requires = "hook_point")]
    per_layer: bool,

    /// `standard` (L1), `gated`, `topk`, `batchtopk`, `jumprelu`, `matryoshka_batchtopk` or `matryoshka_jumprelu`
    /// [default: batchtopk]
    #[arg(long, value_name = "NAME", value_parser = architecture)]
    architecture: Option<Architecture>,

    /// Latents [default: 4096]
    #[arg(long, value_name = "N")]
    d_sae: Option<usize>,

    /// Latents that fire for a token, in the mean; `standard`, `gated` and `jumprelu` with `step` or `tanh` have a price
    /// instead, `--sparsity` [default: 32]
    #[arg(long, value_name = "N")]
    k: Option<usize>,

    /// What a `jumprelu` pays for latents that fire: for the distance from `--k`, `quadratic` (Gemma Scope 2), for each,
    /// `step` (Gemma Scope 1), or by `tanh` of their activation (Anthropic) [default: quadratic]
    #[arg(long, value_name = "NAME", value_parser = sparsity_loss)]
    sparsity_loss: Option<SparsityLoss>,

    /// The price, in fractions of the variance [default: 0.1 for `standard`, 0.15 for `gated`; for
    /// `jumprelu` 0.05, with `step` 0.002, with `tanh` 0.0005]
    #[arg(long, value_name = "LAMBDA")]
    sparsity: Option<f64>,

    /// Steps over which the price rises [default: a fifth of all, with `tanh` all]
    #[arg(long, value_name = "N")]
    sparsity_warmup_steps: Option<u64>,

    /// How near a `jumprelu` threshold a pre-activation must be to move it [default: √width / 1000, with `tanh` 2]
    #[arg(long, value_name = "EPSILON")]
    bandwidth: Option<f64>,

    /// Weight with which dead latents of a `jumprelu` are pulled towards firing [default: 0, with `tanh` 3e-6]
    #[arg(long, value_name = "WEIGHT")]
    pre_act_weight: Option<f64>,

    /// Weight of a price on latents of a `jumprelu` that fire often [default: 0]
    #[arg(long, value_name = "WEIGHT")]
    frequency_weight: Option<f64>,

    /// Where a Matryoshka coder is cut, for example `128,512,4096` [default: at 1/32, 3/32, 7/32, 15/32 of the latents]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    level_widths: Option<Vec<usize>>,

    /// Learning rate [default: 2e-4 at 16,384 latents, falling with the square root of their number]
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,

    /// Tokens in a batch [default: 4096]
    #[arg(long, value_name = "N")]
    batch_tokens: Option<usize>,

    /// Tokens to train on; more than the run has are read again in another order
    #[arg(long, value_name = "N", conflicts_with_all = ["steps", "epochs"])]
    tokens: Option<u64>,

    /// Batches to train on
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    steps: Option<u64>,

    /// Passes over the run, where neither tokens nor steps are given [default: 1]
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,

    /// Weight of the second chance that dead latents get; 0 turns it off [default: 1/32, and 0 for `standard` and `gated`]
    #[arg(long, value_name = "ALPHA")]
    aux_weight: Option<f64>,

    /// Tokens without firing after which a latent is dead, and gets its second chance [default: 10 million, or a tenth of a
    /// short training]
    #[arg(long, value_name = "N")]
    dead_window: Option<u64>,

    /// Take the encoder's product in bf16, and compute in f32 again what may fire: faster on processors with AVX-512 bf16 or
    /// AMX; not for `standard` and `gated`
    #[arg(long)]
    bf16: bool,

    /// Seed of the first weights and of the order of tokens [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

fn architecture(name: &str) -> Result<Architecture, String> {
    name.parse().map_err(|err: scope::Error| err.to_string())
}

fn sparsity_loss(name: &str) -> Result<SparsityLoss, String> {
    name.parse().map_err(|err: scope::Error| err.to_string())
}

impl Settings {
    /// What is to be trained on a run of a model of this shape, and how.
    pub(crate) fn coder(&self, model: &ModelShape) -> Result<(Wiring, TrainConfig)> {
        let Some(inputs) = &self.hook_point else {
            bail!(
                "no hook point to train on\nhint: `--hook-point`, or `hook_point` in a sweep, names one of the run's"
            );
        };
        let inputs = HookPoint::parse_list(inputs, model)?;
        let outputs = self.hook_point_out.as_deref().map(|names| HookPoint::parse_list(names, model)).transpose()?;
        let wiring = match (&inputs[..], outputs.as_deref()) {
            (_, None) if self.skip => bail!(
                "only a transcoder has a matrix beside its latents\nhint: `--hook-point-out` names what it is to write"
            ),
            (_, Some(_)) if self.causal => {
                bail!("expected no `causal` beside `hook_point_out`: such a coder is always")
            }
            (&[_], None) if self.causal => bail!("expected several hook points with `causal`, found one"),
            (&[hook], None) => Wiring::Autoencoder(hook),
            (_, None) => Wiring::Crosscoder { sites: inputs, causal: self.causal },
            (&[input], Some(&[output])) => Wiring::Transcoder { input, output, skip: self.skip },
            (_, Some(outputs)) => Wiring::CrossLayer { outputs: outputs.to_vec(), inputs, skip: self.skip },
        };
        let given = [self.tokens.is_some(), self.steps.is_some(), self.epochs.is_some()];
        if given.into_iter().filter(|&given| given).count() > 1 {
            bail!("expected one of `tokens`, `steps` and `epochs`, found several");
        }
        let batch = self.batch_tokens.unwrap_or(BATCH);
        let config = TrainConfig {
            architecture: self.architecture.unwrap_or_default(),
            d_sae: self.d_sae.unwrap_or(D_SAE),
            k: self.k.unwrap_or(K),
            per_group: self.per_layer,
            sparsity_loss: self.sparsity_loss.unwrap_or_default(),
            sparsity: self.sparsity,
            sparsity_warmup_steps: self.sparsity_warmup_steps,
            bandwidth: self.bandwidth,
            pre_act_weight: self.pre_act_weight,
            frequency_weight: self.frequency_weight.unwrap_or(0.0),
            level_widths: self.level_widths.clone(),
            lr: self.lr,
            batch,
            tokens: self.tokens.or_else(|| self.steps.map(|steps| steps.saturating_mul(batch as u64))),
            epochs: self.epochs.unwrap_or(EPOCHS),
            aux_weight: self.aux_weight,
            dead_window: self.dead_window,
            bf16: self.bf16,
            seed: self.seed.unwrap_or(0),
            ..TrainConfig::default()
        };
        Ok((wiring, config))
    }
}

/// Of what a sweep is, where it says so wrongly.
const EXPECTED: &str = "hint: settings of `polariscope train` with `_` for `-`, then `[[coders]]` with more of them; a list \
                        trains one coder for each of its values";

/// The key under which coders stand.
const CODERS: &str = "coders";

/// The setting whose values are lists already.
const LEVELS: &str = "level_widths";

/// Reads a file of many coders: the name of each, what it is, and how it is trained.
pub(crate) fn read(path: &Path, model: &ModelShape) -> Result<Vec<(String, Wiring, TrainConfig)>> {
    let text = fs::read_to_string(path)?;
    coders(&text, model).with_context(|| format!("not a sweep: `{}`", path.display()))
}

fn coders(text: &str, model: &ModelShape) -> Result<Vec<(String, Wiring, TrainConfig)>> {
    let mut common: Table = match toml::from_str(text) {
        Ok(table) => table,
        Err(error) => bail!("{}\n{EXPECTED}", error.message()),
    };
    let groups = match common.remove(CODERS) {
        Some(Value::Array(groups)) if !groups.is_empty() => groups,
        None => vec![Value::Table(Table::new())],
        Some(_) => bail!("expected `[[{CODERS}]]`\n{EXPECTED}"),
    };
    let mut tables = Vec::new();
    for group in groups {
        let Value::Table(group) = group else { bail!("expected `[[{CODERS}]]`\n{EXPECTED}") };
        let mut all = common.clone();
        all.extend(group);
        tables.append(&mut each(&all));
    }
    let mut coders: Vec<(String, Wiring, TrainConfig)> = Vec::new();
    for table in &tables {
        let settings: Settings = match table.clone().try_into() {
            Ok(settings) => settings,
            Err(error) => bail!("{}\n{EXPECTED}", error.message()),
        };
        let (wiring, config) = settings.coder(model)?;
        let name = name(config.architecture, table, &tables);
        if coders.iter().any(|(known, ..)| *known == name) {
            bail!("two coders of the sweep are the same: `{name}`\nhint: another `seed` makes another coder");
        }
        coders.push((name, wiring, config));
    }
    Ok(coders)
}

/// One table for every choice from the lists.
fn each(table: &Table) -> Vec<Table> {
    let mut tables = vec![Table::new()];
    for (key, value) in table {
        let is_list = |value: &Value| match value {
            Value::Array(values) if key == LEVELS => values.iter().any(Value::is_array),
            value => value.is_array(),
        };
        let values = match value {
            Value::Array(values) if is_list(value) => values.clone(),
            value => vec![value.clone()],
        };
        let with = |table: &Table| {
            let table = table.clone();
            values
                .iter()
                .map(move |value| {
                    let mut table = table.clone();
                    table.insert(key.clone(), value.clone());
                    table
                })
                .collect::<Vec<_>>()
        };
        tables = tables.iter().flat_map(with).collect();
    }
    tables
}

/// The architecture, and every setting in which it differs from another of the sweep.
fn name(architecture: Architecture, table: &Table, all: &[Table]) -> String {
    let mut name = architecture.to_string();
    let mut keys: Vec<&String> = all.iter().flat_map(Table::keys).filter(|key| *key != "architecture").collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let Some(value) = table.get(key).filter(|_| all.iter().any(|other| other.get(key) != table.get(key))) else {
            continue;
        };
        let value = word(value);
        let part = match key.as_str() {
            "hook_point" | "d_sae" => value,
            "hook_point_out" => format!("to-{value}"),
            "k" => format!("k{value}"),
            key => format!("{key}-{value}"),
        };
        name.push('-');
        name.push_str(&part);
    }
    name
}

/// A value as a part of a name.
fn word(value: &Value) -> String {
    match value {
        // It becomes a part of a folder's name.
        Value::String(text) => text.replace(',', "+").replace('*', "all").replace(' ', ""),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(yes) => yes.to_string(),
        Value::Array(values) => values.iter().map(word).collect::<Vec<_>>().join("+"),
        Value::Datetime(_) | Value::Table(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelShape {
        ModelShape { n_layers: 4, d_model: 8, ..ModelShape::default() }
    }

    #[test]
    fn several_hook_points_make_a_crosscoder_or_a_cross_layer_transcoder() {
        let text = "[[coders]]\nhook_point = \"blocks.1-3.hook_resid_post\"\ncausal = [false, true]\n[[coders]]\n\
                    hook_point = \"blocks.0.mlp.hook_in,blocks.1.mlp.hook_in\"\nhook_point_out = \"blocks.0-1.hook_mlp_out\"\n\
                    per_layer = true";
        let coders = coders(text, &model()).unwrap();
        let names: Vec<&str> = coders.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "batchtopk-causal-false-blocks.1-3.hook_resid_post",
                "batchtopk-causal-true-blocks.1-3.hook_resid_post",
                "batchtopk-blocks.0.mlp.hook_in+blocks.1.mlp.hook_in-to-blocks.0-1.hook_mlp_out-per_layer-true",
            ]
        );
        let Wiring::Crosscoder { sites, causal: true } = &coders[1].1 else { panic!("{:?}", coders[1].1) };
        assert_eq!(sites.len(), 3);
        let (Wiring::CrossLayer { outputs, skip: false, .. }, true) = (&coders[2].1, coders[2].2.per_group) else {
            panic!("{:?}", coders[2])
        };
        assert_eq!(outputs[1].to_string(), "blocks.1.hook_mlp_out");
    }

    #[test]
    fn lists_make_one_coder_for_each_choice() {
        let text = "epochs = 3\nhook_point = \"blocks.1.hook_resid_post\"\n[[coders]]\narchitecture = [\"topk\", \"batchtopk\"]\n\
                    k = [8, 16]\n[[coders]]\narchitecture = \"matryoshka_batchtopk\"\nd_sae = 64\nlevel_widths = [8, 64]\n\
                    hook_point = \"blocks.2.hook_resid_post\"";
        let coders = coders(text, &model()).unwrap();
        let names: Vec<&str> = coders.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "topk-blocks.1.hook_resid_post-k8",
                "topk-blocks.1.hook_resid_post-k16",
                "batchtopk-blocks.1.hook_resid_post-k8",
                "batchtopk-blocks.1.hook_resid_post-k16",
                "matryoshka_batchtopk-64-blocks.2.hook_resid_post-level_widths-8+64",
            ]
        );
        let (_, wiring, config) = &coders[4];
        assert_eq!((config.level_widths.as_deref(), config.epochs, config.k), (Some(&[8, 64][..]), 3, K));
        assert_eq!(wiring.sites().name(), "blocks.2.hook_resid_post");
        assert_eq!((coders[1].2.k, coders[1].2.d_sae), (16, D_SAE));
    }

    #[test]
    fn what_is_wrong_in_a_sweep_is_said() {
        let error = |text: &str| format!("{:#}", coders(text, &model()).unwrap_err());
        assert!(error("k = ").contains("hint: settings of `polariscope train`"));
        assert!(error("hook_point = \"blocks.1.hook_resid_post\"\nwidth = 3").contains("unknown field `width`"));
        assert!(error("k = 3").starts_with("no hook point to train on"));
        assert!(error("coders = 3").starts_with("expected `[[coders]]`"));
        let twice = "hook_point = \"blocks.1.hook_resid_post\"\nk = [8, 8]";
        assert!(error(twice).starts_with("two coders of the sweep are the same: `batchtopk`"), "{}", error(twice));
        let both = "hook_point = \"blocks.1.hook_resid_post\"\nsteps = 3\nepochs = 2";
        assert!(error(both).starts_with("expected one of `tokens`"));
        let architecture = "hook_point = \"blocks.1.hook_resid_post\"\narchitecture = \"relu\"";
        assert!(error(architecture).contains("unknown variant `relu`"), "{}", error(architecture));
    }
}
