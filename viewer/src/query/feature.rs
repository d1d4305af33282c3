//! What makes up the page of one feature?

use std::collections::BTreeMap;

use super::{Source, Tok};
use crate::loader::{Ask, Cancel, Failure};

/// Up to this many activations of a feature are read at once to color its examples.
/// A denser feature is looked up example by example.
const MAX_ACTS: usize = 1 << 17;
/// Logits at each end.
const LOGITS: usize = 12;

/// Asks for the page of a feature.
#[derive(Debug, Clone)]
pub(crate) struct FeatureQuery {
    pub(crate) table: String,
    pub(crate) feature: u32,
}

/// The page of a feature.
#[derive(Debug)]
pub(crate) struct FeatureAnswer {
    pub(crate) feature: u32,
    pub(crate) hook_point: String,
    pub(crate) coder: String,
    pub(crate) n_active: u64,
    pub(crate) frac_nonzero: f64,
    pub(crate) mean_act: f64,
    pub(crate) max_act: f32,
    pub(crate) decoder_norm: f32,
    /// Counts by activation and the edges of the bins, one more than counts.
    pub(crate) histogram: Vec<u64>,
    pub(crate) edges: Vec<f32>,
    pub(crate) top_logits: Vec<(String, f32)>,
    pub(crate) bottom_logits: Vec<(String, f32)>,
    pub(crate) neighbours: Vec<Neighbour>,
    /// By group, then rank.
    pub(crate) examples: Vec<FeatureExample>,
}

/// A feature whose decoder points the same way.
#[derive(Debug, Clone)]
pub(crate) struct Neighbour {
    pub(crate) feature: u32,
    pub(crate) cosine: f32,
    pub(crate) max_act: f32,
    /// The token at its strongest activation.
    pub(crate) peak: String,
}

/// A passage that activates the feature.
#[derive(Debug)]
pub(crate) struct FeatureExample {
    /// `top`, or an interval.
    pub(crate) group: String,
    pub(crate) act: f32,
    pub(crate) doc: u64,
    /// The peak, counted from the first token of its document.
    pub(crate) token_in_doc: u64,
    pub(crate) toks: Vec<Tok>,
    /// The feature's activation at each token, 0 where it is silent.
    pub(crate) acts: Vec<f32>,
    /// Which token is the peak.
    pub(crate) peak: usize,
}

impl Ask for FeatureQuery {
    type Answer = FeatureAnswer;
    const NAME: &'static str = "feature page";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<FeatureAnswer, Failure> {
        let table = source.table(&self.table)?;
        let feature = self.feature;
        let one = feature..feature.saturating_add(1);
        let rows = if feature < table.n_features() { table.stats(one.clone())? } else { Vec::new() };
        let stats = rows.into_iter().next().ok_or_else(|| {
            Failure::new(
                format!("feature {feature} is not in `{}`, which has {}", self.table, table.n_features()),
                "open the table with Ctrl+2 and choose another",
            )
        })?;
        cancel.check()?;
        let whole = stats.n_active as usize <= MAX_ACTS;
        let acts: BTreeMap<u64, f32> =
            if whole { table.acts_of_feature(feature, MAX_ACTS)?.into_iter().collect() } else { BTreeMap::new() };
        let mut examples = Vec::new();
        for example in table.examples(one)? {
            cancel.check()?;
            let range = example.context_start..example.context_start + u64::from(example.context_len);
            let toks = source.toks(range.clone())?;
            let mut values = vec![0.0; toks.len()];
            if whole {
                for (token, act) in acts.range(range) {
                    values[(token - example.context_start) as usize] = *act;
                }
            } else {
                let all = table.features_at(range)?;
                for ((token, f), act) in all.token_idx.iter().zip(&all.feature).zip(&all.act) {
                    if *f == feature {
                        values[(token - example.context_start) as usize] = *act;
                    }
                }
            }
            let doc = source.run.document_at(example.token_idx)?;
            let first = source.run.document_tokens(doc)?.start;
            examples.push(FeatureExample {
                group: example.group,
                act: example.act,
                doc,
                token_in_doc: example.token_idx - first,
                peak: (example.token_idx.saturating_sub(example.context_start) as usize)
                    .min(toks.len().saturating_sub(1)),
                toks,
                acts: values,
            });
        }
        let mut neighbours = Vec::new();
        for &(other, cosine) in &stats.neighbours {
            cancel.check()?;
            neighbours.push(neighbour(source, &table, other, cosine)?);
        }
        let logits = |list: &[(u32, f32)]| -> Vec<(String, f32)> {
            list.iter().take(LOGITS).map(|(id, value)| (source.token_text(*id), *value)).collect()
        };
        let info = table.info();
        Ok(FeatureAnswer {
            feature,
            hook_point: info.hook_point.to_string(),
            coder: info.coder.clone(),
            n_active: stats.n_active,
            frac_nonzero: stats.frac_nonzero,
            mean_act: stats.mean_act,
            max_act: stats.max_act,
            decoder_norm: stats.decoder_norm,
            top_logits: logits(&stats.top_logits),
            bottom_logits: logits(&stats.bottom_logits),
            histogram: stats.act_hist,
            edges: data::features::act_bin_edges().to_vec(),
            neighbours,
            examples,
        })
    }

    fn bytes(answer: &FeatureAnswer) -> usize {
        let tokens: usize = answer.examples.iter().map(|example| example.toks.len()).sum();
        tokens * 48 + 4_096
    }
}

fn neighbour(
    source: &Source,
    table: &data::features::FeatureTable,
    feature: u32,
    cosine: f32,
) -> Result<Neighbour, Failure> {
    let (max_act, peak) = peak(source, table, feature)?;
    Ok(Neighbour { feature, cosine, max_act, peak })
}

/// A feature's strongest activation and the token there: what it is about, in one word.
pub(super) fn peak(
    source: &Source,
    table: &data::features::FeatureTable,
    feature: u32,
) -> Result<(f32, String), Failure> {
    let best = table.examples(feature..feature.saturating_add(1))?.into_iter().next();
    Ok(match best {
        Some(example) => {
            let peak = source.toks(example.token_idx..example.token_idx + 1)?.pop();
            (example.act, peak.map(|tok| tok.text.into_string()).unwrap_or_default())
        }
        None => (0.0, String::new()),
    })
}
