//! What does Neuronpedia import in bulk?

use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Names;
use super::describe::{Feature, Passage, rounded};
use crate::error::{Error, Result};
use crate::files::{self, NewFile, hex};

/// The folder of a source.
pub(super) struct Writer {
    dir: PathBuf,
}

impl Writer {
    /// The four records that a source belongs to.
    pub(super) fn create(out: &Path, names: &Names<'_>) -> Result<Self> {
        let (options, source) = (names.options, names.source());
        let dir = out.join(&names.model).join(&source);
        for folder in ["features", "activations"] {
            files::create_dir(&dir.join(folder))?;
        }
        let (creator, creator_id, created_at) = (&options.creator, &options.creator_id, &options.created_at);
        let about = format!("{} at {} of {}", options.source_set, names.hook_point, names.model);
        let records = [
            (
                "release.jsonl",
                json!({
                    "name": options.source_set, "description": about, "creatorName": creator, "creatorId": creator_id,
                    "visibility": "PUBLIC", "isNewUi": false, "featured": false,
                    "descriptionShort": options.source_set, "urls": [], "creatorEmail": null,
                    "creatorNameShort": creator, "defaultSourceSetName": options.source_set,
                    "defaultSourceId": source, "defaultUmapSourceIds": [], "createdAt": created_at,
                }),
            ),
            (
                "model.jsonl",
                json!({
                    "id": names.model, "instruct": names.model.ends_with("-it"), "creatorId": creator_id,
                    "displayNameShort": names.model, "displayName": names.model, "tlensId": null, "dimension": null,
                    "visibility": "PUBLIC", "defaultSourceSetName": null, "defaultSourceId": null,
                    "inferenceEnabled": false, "layers": 0, "neuronsPerLayer": 0, "createdAt": created_at,
                    "owner": "", "updatedAt": created_at, "website": null,
                }),
            ),
            (
                "sourceset.jsonl",
                json!({
                    "modelId": names.model, "name": options.source_set, "creatorId": creator_id,
                    "hasDashboards": true, "visibility": "PUBLIC", "description": about, "type": "",
                    "creatorName": creator, "urls": [], "creatorEmail": null, "releaseName": options.source_set,
                    "defaultOfModelId": null, "defaultRange": 1, "defaultShowBreaks": true, "showDfa": false,
                    "showCorrelated": false, "showHeadAttribution": false, "showUmap": false, "createdAt": created_at,
                }),
            ),
            (
                "source.jsonl",
                json!({
                    "id": source, "modelId": names.model, "setName": options.source_set, "creatorId": creator_id,
                    "hasDashboards": true, "inferenceEnabled": false, "inferenceHosts": [], "saelensConfig": null,
                    "saelensRelease": null, "saelensSaeId": null, "hfRepoId": null, "hfFolderId": null,
                    "visibility": "PUBLIC", "defaultOfModelId": null, "hasUmap": false, "hasUmapLogSparsity": false,
                    "hasUmapClusters": false, "num_prompts": names.n_documents,
                    "num_tokens_in_prompt": names.context, "dataset": names.dataset, "notes": null,
                    "createdAt": created_at,
                }),
            ),
        ];
        for (name, record) in records {
            files::write_atomic(&dir.join(name), format!("{record}\n").as_bytes())?;
        }
        Ok(Self { dir })
    }

    pub(super) fn write(&mut self, batch: usize, features: &[Feature], names: &Names<'_>) -> Result<()> {
        let source = names.source();
        let records = features.iter().map(|described| feature(described, names, &source));
        self.lines(&format!("features/batch-{batch}.jsonl.gz"), records)?;
        let records = features.iter().flat_map(|described| {
            let passages = described.passages.iter().enumerate();
            passages.map(|(number, passage)| activation(described, number, passage, names, &source))
        });
        self.lines(&format!("activations/batch-{batch}.jsonl.gz"), records)
    }

    fn lines(&self, name: &str, records: impl Iterator<Item = Value>) -> Result<()> {
        let path = self.dir.join(name);
        let mut file = GzEncoder::new(NewFile::create(&path)?, Compression::new(5));
        for record in records {
            serde_json::to_writer(&mut file, &record).map_err(|cause| Error::json(&path, cause))?;
            file.write_all(b"\n")?;
        }
        file.finish()?.publish()
    }
}

fn feature(feature: &Feature, names: &Names<'_>, source: &str) -> Value {
    let options = names.options;
    let stats = &feature.stats;
    let has_vector = !feature.vector.is_empty();
    // A feature is its own nearest, and so the first; readers pass over it.
    let own = std::iter::once((stats.feature, 1.0));
    let near: Vec<(u32, f64)> = own.chain(stats.neighbours.iter().map(|&(id, cosine)| (id, cosine.into()))).collect();
    let of = |pairs: &[(String, f64)]| -> (Vec<String>, Vec<f64>) { pairs.iter().cloned().unzip() };
    let ((pos_str, pos_values), (neg_str, neg_values)) = (of(&feature.top), of(&feature.bottom));
    json!({
        "modelId": names.model, "layer": source, "index": stats.feature.to_string(),
        "creatorId": options.creator_id, "createdAt": options.created_at,
        "maxActApprox": rounded(stats.max_act.into()),
        "hasVector": has_vector, "vector": feature.vector, "vectorLabel": null,
        "vectorDefaultSteerStrength": if has_vector { rounded(stats.max_act.into()) } else { 10.0 },
        "hookName": if has_vector { Value::from(names.hook_point.as_str()) } else { Value::Null },
        "topkCosSimIndices": near.iter().map(|&(id, _)| id).collect::<Vec<_>>(),
        "topkCosSimValues": near.iter().map(|&(_, cosine)| rounded(cosine)).collect::<Vec<_>>(),
        "neuron_alignment_indices": feature.aligned.indices,
        "neuron_alignment_values": feature.aligned.values,
        "neuron_alignment_l1": feature.aligned.shares,
        "correlated_neurons_indices": feature.neurons.iter().map(|neuron| neuron.index).collect::<Vec<_>>(),
        "correlated_neurons_pearson": feature.neurons.iter().map(|neuron| rounded(neuron.pearson)).collect::<Vec<_>>(),
        // Cosines, whatever the name says: so it is there.
        "correlated_neurons_l1": feature.neurons.iter().map(|neuron| rounded(neuron.cosine)).collect::<Vec<_>>(),
        "correlated_features_indices": feature.together.iter().map(|pair| pair.other).collect::<Vec<_>>(),
        "correlated_features_pearson": feature.together.iter().map(|pair| rounded(pair.pearson)).collect::<Vec<_>>(),
        "correlated_features_l1": feature.together.iter().map(|pair| rounded(pair.cosine)).collect::<Vec<_>>(),
        "neg_str": neg_str, "neg_values": neg_values, "pos_str": pos_str, "pos_values": pos_values,
        "frac_nonzero": stats.frac_nonzero,
        "freq_hist_data_bar_heights": feature.acts.heights, "freq_hist_data_bar_values": feature.acts.values,
        "logits_hist_data_bar_heights": feature.logits.heights, "logits_hist_data_bar_values": feature.logits.values,
        "decoder_weights_dist": [], "sourceSetName": options.source_set,
    })
}

fn activation(feature: &Feature, number: usize, passage: &Passage, names: &Names<'_>, source: &str) -> Value {
    let options = names.options;
    let max = passage.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let min = passage.values.iter().copied().fold(f64::INFINITY, f64::min);
    let at = passage.values.iter().position(|&value| value == max).unwrap_or(0);
    let id = (source, feature.stats.feature, number, names.model.as_str());
    json!({
        "id": cuid(&format!("{id:?}")), "tokens": passage.tokens, "index": feature.stats.feature.to_string(),
        "layer": source, "modelId": names.model, "maxValue": max, "maxValueTokenIndex": at, "minValue": min,
        "values": passage.values, "creatorId": options.creator_id,
        "dataSource": names.dataset, "dataIndex": passage.token_idx.to_string(),
        "dfaValues": [], "dfaTargetIndex": null, "dfaMaxValue": null, "createdAt": options.created_at,
        "lossValues": [], "logitContributions": null,
        "binMin": passage.bin_min, "binMax": passage.bin_max, "binContains": passage.bin_contains,
        "qualifyingTokenIndex": passage.peak, "zIndices": null, "zValues": null,
    })
}

/// 25 characters that begin with a letter, as an id there; the same passage has the same, so that it is imported once.
fn cuid(of: &str) -> String {
    let sum = hex(&Sha256::digest(of.as_bytes()));
    format!("c{}", &sum[..24])
}
