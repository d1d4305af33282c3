//! What does SAEDashboard's Neuronpedia runner write?

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Names;
use super::describe::{Feature, rounded};
use crate::error::Result;
use crate::files;

/// The folder.
pub(super) struct Writer {
    dir: PathBuf,
    /// Features that never fired, which are in no batch.
    skipped: Vec<u32>,
}

impl Writer {
    pub(super) fn create(dir: &Path, names: &Names<'_>) -> Result<Self> {
        let options = names.options;
        let settings = json!({
            "sae_set": options.source_set, "np_set_name": options.source_set, "np_sae_id_suffix": options.suffix,
            "model_id": names.model, "layer": names.layer, "hook_point": names.hook_point,
            "huggingface_dataset_path": names.dataset, "n_prompts_total": names.n_documents,
            "n_tokens_in_prompt": names.context, "n_features_at_a_time": options.batch,
        });
        files::write_json(&dir.join("run_settings.json"), &settings)?;
        Ok(Self { dir: dir.to_owned(), skipped: Vec::new() })
    }

    pub(super) fn write(&mut self, batch: usize, features: &[Feature], names: &Names<'_>) -> Result<()> {
        let (silent, alive): (Vec<&Feature>, Vec<&Feature>) = features.iter().partition(|f| f.stats.n_active == 0);
        self.skipped.extend(silent.iter().map(|feature| feature.stats.feature));
        let features: Vec<Value> = alive.into_iter().map(|feature| record(feature, names)).collect();
        let batch_of = json!({
            "model_id": names.model, "layer": names.layer, "sae_set": names.options.source_set,
            "sae_id_suffix": names.options.suffix, "features": features,
        });
        let bytes = serde_json::to_vec(&batch_of).map_err(|cause| crate::Error::json(&self.dir, cause))?;
        files::write_atomic(&self.dir.join(format!("batch-{batch}.json")), &bytes)
    }

    pub(super) fn finish(self, names: &Names<'_>) -> Result<()> {
        let skipped = json!({
            "model_id": names.model, "layer": names.layer.to_string(), "sae_set": names.options.source_set,
            "log_sparsity": Value::Null, "skipped_indexes": self.skipped,
        });
        files::write_json(&self.dir.join("skipped_indexes.json"), &skipped)
    }
}

fn record(feature: &Feature, names: &Names<'_>) -> Value {
    let activations: Vec<Value> = feature
        .passages
        .iter()
        .map(|passage| {
            json!({
                "bin_min": passage.bin_min, "bin_max": passage.bin_max, "bin_contains": passage.bin_contains,
                "tokens": passage.tokens, "values": passage.values, "qualifying_token_index": passage.peak,
            })
        })
        .collect();
    let of = |pairs: &[(String, f64)]| -> (Vec<String>, Vec<f64>) { pairs.iter().cloned().unzip() };
    let ((pos_str, pos_values), (neg_str, neg_values)) = (of(&feature.top), of(&feature.bottom));
    json!({
        "feature_index": feature.stats.feature,
        "neuron_alignment_indices": feature.aligned.indices,
        "neuron_alignment_values": feature.aligned.values,
        "neuron_alignment_l1": feature.aligned.shares,
        "correlated_neurons_indices": feature.neurons.iter().map(|neuron| neuron.index).collect::<Vec<_>>(),
        // Cosines, whatever the name says: so it is there.
        "correlated_neurons_l1": feature.neurons.iter().map(|neuron| rounded(neuron.cosine)).collect::<Vec<_>>(),
        "correlated_neurons_pearson": feature.neurons.iter().map(|neuron| rounded(neuron.pearson)).collect::<Vec<_>>(),
        "correlated_features_indices": feature.together.iter().map(|pair| pair.other).collect::<Vec<_>>(),
        "correlated_features_l1": feature.together.iter().map(|pair| rounded(pair.cosine)).collect::<Vec<_>>(),
        "correlated_features_pearson": feature.together.iter().map(|pair| rounded(pair.pearson)).collect::<Vec<_>>(),
        "neg_str": neg_str,
        "neg_values": neg_values,
        "pos_str": pos_str,
        "pos_values": pos_values,
        "frac_nonzero": feature.stats.frac_nonzero,
        "freq_hist_data_bar_values": feature.acts.values,
        "freq_hist_data_bar_heights": feature.acts.heights,
        "logits_hist_data_bar_heights": feature.logits.heights,
        "logits_hist_data_bar_values": feature.logits.values,
        "n_prompts_total": names.n_documents,
        "n_tokens_in_prompt": names.context,
        "dataset": names.dataset,
        "decoder_weights_dist": [],
        "activations": activations,
        "vector": feature.vector,
    })
}
