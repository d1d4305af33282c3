//! Which activations have an address, what is it called, and how wide is it?
//!
//! [`TABLE`] is the only place that knows: a hook point exists if and only if it has a row here.
//! Names are TransformerLens's where TransformerLens has one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The kind of an activation, without a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    Embed,
    ResidPre,
    Ln1Scale,
    Ln1Normalized,
    AttnIn,
    QProj,
    KProj,
    VProj,
    Q,
    K,
    V,
    RotQ,
    RotK,
    AttnScores,
    Pattern,
    Z,
    Result,
    AttnOut,
    ResidMid,
    Ln2Scale,
    Ln2Normalized,
    MlpIn,
    MlpPre,
    MlpPreLinear,
    MlpPost,
    MlpOut,
    ResidPost,
    LnFinalScale,
    LnFinalNormalized,
}

/// What one token's activation looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// `[1]`
    One,
    /// `[d_model]`
    Model,
    /// `[d_mlp]`
    Mlp,
    /// `[n_heads, d_head]`
    Heads,
    /// `[n_kv_heads, d_head]`
    KvHeads,
    /// `[n_heads, d_model]`
    HeadsByModel,
    /// `[n_heads, pos, pos]` for a whole sequence: there is no row per token, so it cannot be recorded.
    QueryByKey,
}

/// One row of the hook-point table.
#[derive(Clone, Copy, Debug)]
pub struct SiteRow {
    pub site: Site,
    /// The name behind `blocks.N.`, or the whole name of a site that has no layer.
    pub name: &'static str,
    /// Whether every block has one.
    pub per_layer: bool,
    pub width: Width,
    /// What it holds, for `inspect` and the documentation.
    pub about: &'static str,
}

const fn block(site: Site, name: &'static str, width: Width, about: &'static str) -> SiteRow {
    SiteRow { site, name, per_layer: true, width, about }
}

const fn whole(site: Site, name: &'static str, width: Width, about: &'static str) -> SiteRow {
    SiteRow { site, name, per_layer: false, width, about }
}

/// Every hook point, in the order in which a forward pass reaches it.
pub const TABLE: [SiteRow; 29] = [
    whole(Site::Embed, "hook_embed", Width::Model, "embedding, after its √d_model scale"),
    block(Site::ResidPre, "hook_resid_pre", Width::Model, "input of the block"),
    block(Site::Ln1Scale, "ln1.hook_scale", Width::One, "sqrt(mean x² + eps) before attention"),
    block(Site::Ln1Normalized, "ln1.hook_normalized", Width::Model, "x / scale before attention, without the weight"),
    block(Site::AttnIn, "attn.hook_in", Width::Model, "input of attention, with the norm's weight"),
    block(Site::QProj, "attn.hook_q_proj", Width::Heads, "queries as projected, before their norm"),
    block(Site::KProj, "attn.hook_k_proj", Width::KvHeads, "keys as projected, before their norm"),
    block(Site::VProj, "attn.hook_v_proj", Width::KvHeads, "values as projected"),
    block(Site::Q, "attn.hook_q", Width::Heads, "queries after their norm, before rope"),
    block(Site::K, "attn.hook_k", Width::KvHeads, "keys after their norm, before rope"),
    block(Site::V, "attn.hook_v", Width::KvHeads, "values that attention mixes"),
    block(Site::RotQ, "attn.hook_rot_q", Width::Heads, "queries after rope"),
    block(Site::RotK, "attn.hook_rot_k", Width::KvHeads, "keys after rope"),
    block(Site::AttnScores, "attn.hook_attn_scores", Width::QueryByKey, "scaled and masked scores"),
    block(Site::Pattern, "attn.hook_pattern", Width::QueryByKey, "attention probabilities"),
    block(Site::Z, "attn.hook_z", Width::Heads, "mixed values by head, the input of the output projection"),
    block(Site::Result, "attn.hook_result", Width::HeadsByModel, "contribution of each head, before the post norm"),
    block(Site::AttnOut, "hook_attn_out", Width::Model, "what attention adds to the stream, after its post norm"),
    block(Site::ResidMid, "hook_resid_mid", Width::Model, "stream between attention and MLP"),
    block(Site::Ln2Scale, "ln2.hook_scale", Width::One, "sqrt(mean x² + eps) before the MLP"),
    block(Site::Ln2Normalized, "ln2.hook_normalized", Width::Model, "x / scale before the MLP, without the weight"),
    block(Site::MlpIn, "mlp.hook_in", Width::Model, "input of the MLP, with the norm's weight"),
    block(Site::MlpPre, "mlp.hook_pre", Width::Mlp, "gate before its activation function"),
    block(Site::MlpPreLinear, "mlp.hook_pre_linear", Width::Mlp, "output of the up projection"),
    block(Site::MlpPost, "mlp.hook_post", Width::Mlp, "gated product, the input of the down projection"),
    block(Site::MlpOut, "hook_mlp_out", Width::Model, "what the MLP adds to the stream, after its post norm"),
    block(Site::ResidPost, "hook_resid_post", Width::Model, "output of the block"),
    whole(Site::LnFinalScale, "ln_final.hook_scale", Width::One, "sqrt(mean x² + eps) before the unembedding"),
    whole(Site::LnFinalNormalized, "ln_final.hook_normalized", Width::Model, "x / scale before the unembedding"),
];

impl Site {
    /// The row of this site.
    pub fn row(self) -> &'static SiteRow {
        // The table is in the order of the enum; a test holds it to that.
        &TABLE[self as usize]
    }
}

/// The shape of a model, in the field's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub d_model: usize,
    pub d_head: usize,
    pub d_mlp: usize,
    pub d_vocab: usize,
    pub n_ctx: usize,
}

/// The address of an activation; prints as `blocks.12.hook_resid_post`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HookPoint {
    /// The layer comes first so that sorting follows the forward pass of the blocks.
    pub layer: Option<usize>,
    pub site: Site,
}

impl HookPoint {
    /// A site of one block.
    pub const fn block(site: Site, layer: usize) -> Self {
        Self { layer: Some(layer), site }
    }

    /// A site that exists once.
    pub const fn whole(site: Site) -> Self {
        Self { layer: None, site }
    }

    /// The shape of one token's activation, or `None` where there is none per token (attention scores and patterns).
    pub fn shape(self, model: &ModelShape) -> Option<Vec<usize>> {
        match self.site.row().width {
            Width::One => Some(vec![1]),
            Width::Model => Some(vec![model.d_model]),
            Width::Mlp => Some(vec![model.d_mlp]),
            Width::Heads => Some(vec![model.n_heads, model.d_head]),
            Width::KvHeads => Some(vec![model.n_kv_heads, model.d_head]),
            Width::HeadsByModel => Some(vec![model.n_heads, model.d_model]),
            Width::QueryByKey => None,
        }
    }

    /// Reads a comma-separated list of names, with `*` for every layer and `3-5` for a range of layers:
    /// `blocks.*.hook_resid_post,blocks.3-5.hook_mlp_out`.
    ///
    /// The result is in the order given and without repetitions.
    /// Names that do not exist, and layers that the model does not have, are errors.
    pub fn parse_list(list: &str, n_layers: usize) -> Result<Vec<Self>> {
        let mut points = Vec::new();
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            for layer in layers_of(name, n_layers)? {
                let point = match layer {
                    Some((layer, rest)) => format!("blocks.{layer}.{rest}").parse()?,
                    None => name.parse::<Self>()?,
                };
                if !points.contains(&point) {
                    points.push(point);
                }
            }
        }
        if points.is_empty() {
            return Err(Error::NoHookPoint { list: list.to_owned() });
        }
        Ok(points)
    }

    /// Every hook point of a model, in the order of the forward pass.
    pub fn all(n_layers: usize) -> Vec<Self> {
        let (first, last): (Vec<_>, Vec<_>) = TABLE
            .iter()
            .filter(|row| !row.per_layer)
            .map(|row| Self::whole(row.site))
            .partition(|p| p.site == Site::Embed);
        let blocks = (0..n_layers)
            .flat_map(|layer| TABLE.iter().filter(|row| row.per_layer).map(move |row| Self::block(row.site, layer)));
        first.into_iter().chain(blocks).chain(last).collect()
    }
}

/// The layers that a name with `*` or a range speaks of, each with the rest of the name.
fn layers_of(name: &str, n_layers: usize) -> Result<Vec<Option<(usize, &str)>>> {
    let Some((layers, rest)) = name.strip_prefix("blocks.").and_then(|tail| tail.split_once('.')) else {
        return Ok(vec![None]);
    };
    let number = |text: &str| text.parse::<usize>().map_err(|_not_a_number| unknown(name));
    let (first, last) = match (layers, layers.split_once('-')) {
        ("*", _) => (0, n_layers.saturating_sub(1)),
        (_, Some((first, last))) => (number(first)?, number(last)?),
        (one, None) => (number(one)?, number(one)?),
    };
    if first > last || last >= n_layers {
        return Err(Error::NoSuchLayer { name: name.to_owned(), n_layers });
    }
    Ok((first..=last).map(|layer| Some((layer, rest))).collect())
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.site.row().name;
        match self.layer {
            Some(layer) => write!(f, "blocks.{layer}.{name}"),
            None => f.write_str(name),
        }
    }
}

impl FromStr for HookPoint {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let (layer, site_name) = match name.strip_prefix("blocks.").and_then(|tail| tail.split_once('.')) {
            // `+5` and `05` would parse as numbers, but would not print back as they were written.
            Some((layer, rest)) if layer == "0" || !layer.starts_with(['0', '+']) => {
                (Some(layer.parse::<usize>().map_err(|_not_a_number| unknown(name))?), rest)
            }
            Some(_) => return Err(unknown(name)),
            None => (None, name),
        };
        TABLE
            .iter()
            .find(|row| row.name == site_name && row.per_layer == layer.is_some())
            .map(|row| Self { layer, site: row.site })
            .ok_or_else(|| unknown(name))
    }
}

impl Serialize for HookPoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HookPoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The error for a name that is not in the table, with the nearest one that is.
fn unknown(name: &str) -> Error {
    let layer = name.strip_prefix("blocks.").and_then(|tail| tail.split_once('.')).map_or("0", |(layer, _)| layer);
    let full = |row: &SiteRow| if row.per_layer { format!("blocks.{layer}.{}", row.name) } else { row.name.to_owned() };
    let nearest = TABLE.iter().map(full).min_by_key(|known| edit_distance(name, known)).unwrap_or_default();
    Error::UnknownHookPoint { name: name.to_owned(), nearest }
}

/// Levenshtein's distance, over characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.site as usize, i, "{}", row.name);
        }
    }

    #[test]
    fn names_round_trip() {
        for point in HookPoint::all(3) {
            assert_eq!(point.to_string().parse::<HookPoint>().unwrap(), point);
        }
        assert_eq!(HookPoint::block(Site::ResidPost, 12).to_string(), "blocks.12.hook_resid_post");
    }

    #[test]
    fn lists_expand_stars_and_ranges() {
        let points = HookPoint::parse_list("blocks.*.hook_resid_post, blocks.1-2.hook_mlp_out,hook_embed", 3).unwrap();
        let names: Vec<String> = points.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "blocks.0.hook_resid_post",
                "blocks.1.hook_resid_post",
                "blocks.2.hook_resid_post",
                "blocks.1.hook_mlp_out",
                "blocks.2.hook_mlp_out",
                "hook_embed"
            ]
        );
    }

    #[test]
    fn unknown_names_suggest_the_nearest() {
        let check = |name: &str, expected: &str| {
            let error = HookPoint::parse_list(name, 3).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("blocks.1.hook_resid_pots", "blocks.1.hook_resid_post");
        check("hook_embd", "hook_embed");
        check("blocks.3.hook_resid_post", "blocks.3.hook_resid_post");
        check("blocks.x.hook_resid_post", "blocks.x.hook_resid_post");
        assert!("blocks.01.hook_resid_post".parse::<HookPoint>().is_err());
        check("", "hook point");
        assert!(HookPoint::parse_list("blocks.2-1.hook_resid_post", 3).is_err());
    }

    #[test]
    fn shapes_follow_the_model() {
        let model = ModelShape {
            n_layers: 1,
            n_heads: 4,
            n_kv_heads: 2,
            d_model: 64,
            d_head: 32,
            d_mlp: 96,
            d_vocab: 320,
            n_ctx: 256,
        };
        let shape = |site| HookPoint::block(site, 0).shape(&model);
        assert_eq!(shape(Site::ResidPost), Some(vec![64]));
        assert_eq!(shape(Site::Z), Some(vec![4, 32]));
        assert_eq!(shape(Site::K), Some(vec![2, 32]));
        assert_eq!(shape(Site::MlpPost), Some(vec![96]));
        assert_eq!(shape(Site::Pattern), None);
    }
}
