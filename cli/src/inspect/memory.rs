//! What does a model need before it is loaded, in each way to load it, and which cards have that much?

use engine::config::Config;
use engine::device::Device;
use engine::gemma::model::{LoadOptions, Precision};
use engine::plan::{CARDS, MemoryPlan, Workload};
use engine::quantize::Quantize;
use serde_json::{Value, json};

use crate::output::{count, size};

/// What the figures are for: one text of this length, that goes through the network in pieces of that.
const CONTEXT: usize = 8192;
const BATCH_TOKENS: usize = 2048;

/// Names of the ways to load a model; the packed ones compute in bf16.
const WAYS: [(&str, Precision, Option<Quantize>); 4] = [
    ("f32", Precision::F32, None),
    ("bf16", Precision::Bf16, None),
    ("int8", Precision::Bf16, Some(Quantize::Int8)),
    ("int4", Precision::Bf16, Some(Quantize::Int4)),
];

fn work(config: &Config) -> Workload {
    let context = CONTEXT.min(config.n_ctx);
    Workload { sequences: 1, context, batch_tokens: BATCH_TOKENS.min(context) }
}

fn plans(config: &Config) -> impl Iterator<Item = (&'static str, MemoryPlan)> + '_ {
    WAYS.into_iter().map(move |(name, precision, quantize)| {
        let options = LoadOptions { precision, quantize, device: Device::Cuda(0), ..LoadOptions::default() };
        (name, MemoryPlan::of(config, &options, &work(config)))
    })
}

/// A row for each way to load the model.
pub(super) fn table(config: &Config) -> Vec<Vec<String>> {
    let mut rows =
        vec![["memory", "weights", "keys, values", "activations", "together", "fits"].map(String::from).to_vec()];
    for (name, plan) in plans(config) {
        let fits = plan.smallest_card().map_or("no common card".to_owned(), |card| format!("a card of {card} GB"));
        let sizes = [plan.device_weights, plan.kv_cache, plan.activations, plan.on_device()].map(size);
        rows.push([format!("  {name}")].into_iter().chain(sizes).chain([fits]).collect());
    }
    rows
}

/// What the table is for, in words.
pub(super) fn note(config: &Config) -> String {
    let Workload { context, batch_tokens, .. } = work(config);
    let (context, batch_tokens) = (count(context as u64), count(batch_tokens as u64));
    let on_disk = if config.ple.is_some() { "; the per-layer embeddings stay on disk" } else { "" };
    format!("  for one text of {context} tokens, {batch_tokens} at a time; the activations are an estimate{on_disk}")
}

/// The same for a program, and for every card.
pub(super) fn json(config: &Config) -> Value {
    let plan = |(name, plan): (&str, MemoryPlan)| {
        let fits = CARDS.into_iter().filter(|&card| plan.fits_card(card)).collect::<Vec<_>>();
        let plan = json!({
            "device_weights": plan.device_weights, "cpu_weights": plan.cpu_weights, "disk_weights": plan.disk_weights,
            "lookup_per_token": plan.lookup_per_token, "kv_cache": plan.kv_cache, "activations": plan.activations,
            "on_device": plan.on_device(), "fits_cards_gib": fits,
        });
        (name.to_owned(), plan)
    };
    let Workload { context, batch_tokens, .. } = work(config);
    json!({
        "parameters": config.n_params(), "effective_parameters": config.n_params_effective(),
        "active_parameters": config.n_params_active(), "context": context, "batch_tokens": batch_tokens,
        "plans": plans(config).map(plan).collect::<serde_json::Map<_, _>>(),
    })
}
