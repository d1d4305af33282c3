//! What else is known of the tokens at which a feature is active: which expert, which gate, which kind of token, which
//! language?
//!
//! A join counts, for every feature and every label, at how many tokens the feature is active, how many have the label, and
//! how many both. From the four cells of that table come the lift and the mutual information. Beside each stands a
//! control: the same number after the labels were shuffled, seeded. Labels of tokens are shuffled among the tokens of a
//! stretch of 65,536; labels of documents among the documents. The greatest control of a layer is its threshold: what does
//! not exceed it is what shuffled labels give too.
//!
//! Memory is bounded by [`JoinOptions::memory`] for the counts, one stretch of tokens, and a label for every document.
//!
//! ```
//! # use std::ops::ControlFlow;
//! # fn main() -> data::Result<()> {
//! # use data::features::{FeatureStats, FeatureTableInfo, FeatureTableWriter};
//! # use data::manifest::{Corpus, Counts, Manifest, Model};
//! # let dir = tempfile::tempdir().unwrap();
//! # let shape = data::ModelShape { n_layers: 1, d_model: 2, d_vocab: 8, n_ctx: 40, ..Default::default() };
//! # let writer = data::RunWriter::create(dir.path(), Manifest::new(Model::new("tiny", shape), Corpus::default(), vec![]))?;
//! # let mut shard = writer.shard(0, 0)?;
//! # let mut tokens = data::TokenColumns::default();
//! # for pos in 0..40 {
//! #     tokens.push(0, pos, 5, if pos % 3 == 0 { "12" } else { " gold" }, None, false, None);
//! # }
//! # shard.write_tokens(&tokens)?;
//! # let document = data::DocumentRow { n_tokens: 40, ..Default::default() };
//! # shard.write_documents(&[document])?;
//! # shard.commit(serde_json::Value::Null, Counts::captured(1, 40))?;
//! # writer.finish("")?;
//! # let run = data::Run::open(dir.path())?;
//! # let hook_point = "blocks.0.hook_resid_post".parse()?;
//! # let info = FeatureTableInfo {
//! #     coder: "coder".into(), hook_point, d_sae: 2, n_tokens: 40, n_ordinary_tokens: 40, notes: serde_json::Value::Null,
//! #     groups: Vec::new(),
//! # };
//! # let mut features = FeatureTableWriter::create(&run, "coder", info, 1 << 20)?;
//! # for token in 0..40 {
//! #     features.write(&[token], &[0], &[1.0])?;
//! #     if token % 3 == 0 {
//! #         features.write(&[token], &[1], &[1.0])?;
//! #     }
//! # }
//! # let mut features = features.sort()?;
//! # features.write_stats(&[0, 1].map(|feature| FeatureStats { feature, ..Default::default() }))?;
//! # features.finish()?;
//! use data::join::{JoinOptions, With, join};
//!
//! // A run in which feature 0 is active everywhere, and feature 1 wherever a number stands.
//! let table = run.feature_table("coder")?;
//! let options = JoinOptions { with: With::TokenClass, ..JoinOptions::default() };
//! let report = join(&table, &options, &mut |_| ControlFlow::Continue(()))?;
//! let best = report.rows.iter().find(|row| row.label == "number").unwrap();
//! assert_eq!((best.feature, best.n_both), (1, best.n_label));
//! assert!(best.mutual_information > report.layers[0].threshold);
//!
//! table.write_join(&report)?;
//! assert_eq!(table.join("token-class")?, report.rows);
//! # Ok(())
//! # }
//! ```

mod classes;
mod count;
mod documents;
mod labels;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::features::FeatureTable;
use crate::progress::OnProgress;

use labels::Source;

/// Bytes of counts, by default.
pub const MEMORY: usize = 256 << 20;

/// What features are joined with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum With {
    /// Which experts the router of a layer chose for the token.
    Experts,
    /// Which gates of a layer's per-layer embedding are open for the token: `ple.hook_gate_pre` above 0.
    Ple,
    /// What the token is made of: letters, digits, script, …
    TokenClass,
    /// The language of its document: what `meta` says under `language` or `lang`, otherwise as detected.
    Language,
    /// The source of its document.
    Source,
    /// What `meta` says of its document under a key.
    Meta(String),
}

impl With {
    /// Those that have no key.
    pub const NAMED: [Self; 5] = [Self::Experts, Self::Ple, Self::TokenClass, Self::Language, Self::Source];
}

impl fmt::Display for With {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Experts => f.write_str("experts"),
            Self::Ple => f.write_str("ple"),
            Self::TokenClass => f.write_str("token-class"),
            Self::Language => f.write_str("language"),
            Self::Source => f.write_str("source"),
            Self::Meta(key) => write!(f, "meta-{key}"),
        }
    }
}

impl FromStr for With {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::NAMED.into_iter().find(|with| with.to_string() == text);
        let key = text.strip_prefix("meta-").filter(|key| !key.is_empty());
        named
            .or_else(|| key.map(|key| Self::Meta(key.to_owned())))
            .ok_or_else(|| Error::UnknownJoin { found: text.to_owned() })
    }
}

impl Serialize for With {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What to count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinOptions {
    pub with: With,
    /// Layers of the model; all that were recorded where this is empty.
    pub layers: Vec<usize>,
    /// Features that are kept of each label.
    pub top: usize,
    /// At how many tokens a feature must be active, and how many a label must have, to be listed.
    pub min_count: u64,
    /// Whether special tokens are counted too.
    pub special: bool,
    /// Of the shuffled control.
    pub seed: u64,
    /// Bytes of counts; what does not fit takes more passes.
    pub memory: usize,
}

impl Default for JoinOptions {
    fn default() -> Self {
        let with = With::TokenClass;
        Self { with, layers: Vec::new(), top: 20, min_count: 10, special: false, seed: 0, memory: MEMORY }
    }
}

/// A feature and a label.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct JoinRow {
    /// Of the model, where what the features are joined with has one.
    pub layer: Option<u32>,
    /// An expert or a gate by its number, a class of tokens, a language.
    pub label: String,
    /// From 0, among the features of the label by falling mutual information; `None` where it is listed as the best label
    /// of its feature only.
    pub rank: Option<u32>,
    pub feature: u32,
    /// Tokens at which the feature is active.
    pub n_feature: u64,
    /// Tokens that have the label.
    pub n_label: u64,
    /// Both.
    pub n_both: u64,
    /// How many times as often as if they had nothing to do with each other; below 1 they avoid each other.
    pub lift: f64,
    /// Of active or not and labelled or not, in bits.
    pub mutual_information: f64,
    /// The same of this feature and this label after the labels were shuffled, in bits.
    pub control: f64,
    /// The greatest control of the layer, in bits.
    pub threshold: f64,
}

/// A layer, or everything where there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct JoinLayer {
    pub layer: Option<u32>,
    /// Features that are common enough to be judged.
    pub n_features: u64,
    /// Of those, how many exceed the threshold with their best label.
    pub n_above: u64,
    /// The greatest mutual information with shuffled labels, in bits.
    pub threshold: f64,
}

/// How a join was made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JoinInfo {
    pub with: With,
    /// Tokens that were counted.
    pub n_tokens: u64,
    /// Special tokens that were left out.
    pub n_special: u64,
    pub min_count: u64,
    pub seed: u64,
    /// Where labels come from, in words.
    pub labels: String,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JoinReport {
    #[serde(flatten)]
    pub info: JoinInfo,
    pub layers: Vec<JoinLayer>,
    /// The best features of every label, and of every feature its best label where that exceeds the threshold; by layer,
    /// label and falling mutual information.
    pub rows: Vec<JoinRow>,
}

/// Counts which features go together with which labels. The same table, options and seed give the same report.
///
/// `progress` is called after each stretch of tokens, with how many were read over all passes.
pub fn join(table: &FeatureTable, options: &JoinOptions, progress: OnProgress<'_>) -> Result<JoinReport> {
    table.run().require_order("features by token")?;
    let source = Source::open(table.run(), options)?;
    count::Join { table, options, source, progress }.run()
}
