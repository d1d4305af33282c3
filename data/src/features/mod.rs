//! Which features of a sparse coder are active where, and what is known of each?
//!
//! `features/<name>/` holds `acts/` (in the order of tokens, cut into shards as the run is), `by_feature/` (the same rows
//! ordered by feature and falling activation), `stats.parquet`, `examples.parquet` with their bounds in `groups.parquet`, and
//! `coactivation.parquet` where pairs were counted. The folder is built under a temporary name and renamed when it is whole.
//! `joins/` holds what [`crate::join`] finds later.

mod joined;
mod pairs;
mod read;
mod sort;
mod tables;
mod windows;
mod write;

use serde::{Deserialize, Serialize};

use crate::hook_point::HookPoint;
use crate::parquet_io::TableOptions;

pub use pairs::{FeaturePair, PairOptions, PairRank, correlate};
pub use read::{FeatureActs, FeatureTable, StatsColumns};
pub use sort::{FeatureRows, SortedFeatures};
pub(crate) use windows::{ByToken, WINDOW, Windows};
pub use write::FeatureTableWriter;

/// Rows of a row group of `acts` and `by_feature`.
pub(crate) const GROUP_ROWS: usize = 131_072;

/// Key of the Parquet metadata of `stats.parquet` that holds [`FeatureTableInfo`] as JSON.
pub(crate) const INFO_KEY: &str = "polariscope.features";

/// The file of [`ExampleGroup`]s.
pub(crate) const GROUPS: &str = "groups.parquet";

/// The file of features that fire together.
pub(crate) const COACTIVATION: &str = "coactivation.parquet";

/// The folder of what features were joined with.
pub(crate) const JOINS: &str = "joins";

/// Memory for ordering rows by feature, by default.
pub const DEFAULT_SORT_MEMORY: usize = 512 << 20;

/// Bins of [`FeatureStats::act_hist`].
pub const ACT_BINS: usize = crate::schema::ACT_BINS;

/// Bins of [`FeatureStats::act_hist`] per octave.
pub const ACT_BINS_PER_OCTAVE: usize = 2;

/// The lower edge of the first bin, as a power of two.
const LEAST_ACT_OCTAVE: i32 = -16;

/// Where a feature table comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeatureTableInfo {
    /// The name of the sparse coder, usually also of the table.
    pub coder: String,
    /// The site that the coder reads; of several, the first.
    pub hook_point: HookPoint,
    /// Where each group of features reads a site of its own: which, and from which feature on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<FeatureGroup>,
    /// How many features there are; they are numbered from 0.
    pub d_sae: u32,
    /// Tokens that were encoded.
    #[serde(default)]
    pub n_tokens: u64,
    /// Of those, how many are not special: what `frac_nonzero` is a fraction of.
    #[serde(default)]
    pub n_ordinary_tokens: u64,
    /// Anything else that is worth keeping.
    #[serde(default)]
    pub notes: serde_json::Value,
}

/// Features that read a site of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureGroup {
    pub hook_point: HookPoint,
    /// The group ends where the next one begins.
    pub first_feature: u32,
}

impl FeatureTableInfo {
    /// The site that a feature reads; of those that read several, the first.
    pub fn hook_point_of(&self, feature: u32) -> HookPoint {
        let before = self.groups.partition_point(|group| group.first_feature <= feature);
        before.checked_sub(1).map_or(self.hook_point, |at| self.groups[at].hook_point)
    }
}

/// What is known of one feature. Special tokens are left out of everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureStats {
    pub feature: u32,
    /// Tokens at which it is active.
    pub n_active: u64,
    /// Of all tokens that are not special.
    pub frac_nonzero: f64,
    /// Over the tokens at which it is active.
    pub mean_act: f64,
    pub max_act: f32,
    /// [`ACT_BINS`] counts, see [`act_bin`].
    pub act_hist: Vec<u64>,
    /// Token ids and values, the greatest first.
    pub top_logits: Vec<(u32, f32)>,
    /// Token ids and values, the least first.
    pub bottom_logits: Vec<(u32, f32)>,
    pub decoder_norm: f32,
    /// How long the direction is that it reads; tables of older versions do not say it.
    pub encoder_norm: Option<f32>,
    /// Between what it reads and what it writes, where that is one site.
    pub encoder_decoder_cosine: Option<f32>,
    /// Features and cosines of decoder directions, the nearest first.
    pub neighbours: Vec<(u32, f32)>,
    /// The first token at which it is active.
    pub first_fired: Option<u64>,
    pub last_fired: Option<u64>,
}

/// A context in which a feature is active.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    pub feature: u32,
    /// From 0 within its group.
    pub rank: u32,
    /// `top`; `interval-2`, of equal width between 0 and the largest activation; or `quantile-2`, of equally many
    /// activations. Those with the higher number are the stronger ones.
    pub group: String,
    /// Of the peak.
    pub token_idx: u64,
    /// At the peak.
    pub act: f32,
    /// The first token to show.
    pub context_start: u64,
    /// How many tokens to show.
    pub context_len: u32,
}

/// Which activations of a feature a group of examples was drawn from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExampleGroup {
    pub feature: u32,
    /// As in [`Example::group`]; `top` has no bounds and is not listed.
    pub group: String,
    /// Bounds of an interval; of a quantile, its least activation.
    pub low: f32,
    /// Of a quantile, its greatest activation.
    pub high: f32,
    /// Activations within, special tokens left out.
    pub n_active: u64,
}

/// The bin of an activation in [`FeatureStats::act_hist`]: two an octave, from 2⁻¹⁶ to 2¹⁶; what lies beyond goes to the
/// first or the last.
pub fn act_bin(act: f32) -> usize {
    let octaves = act.log2() - LEAST_ACT_OCTAVE as f32;
    // `as` takes what is below zero, and NaN, to 0.
    ((octaves * ACT_BINS_PER_OCTAVE as f32) as usize).min(ACT_BINS - 1)
}

/// The edges of the bins of [`act_bin`], rising.
pub fn act_bin_edges() -> [f32; ACT_BINS + 1] {
    std::array::from_fn(|i| (i as f32 / ACT_BINS_PER_OCTAVE as f32 + LEAST_ACT_OCTAVE as f32).exp2())
}

/// How the columns of `acts` and `by_feature` are stored.
pub(crate) fn acts_options() -> TableOptions<'static> {
    TableOptions { delta: &["token_idx", "feature"], plain: &["act"], ..TableOptions::default() }
}

#[cfg(test)]
mod tests;
