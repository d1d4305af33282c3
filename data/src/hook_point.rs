//! Which activations have an address, what is it called, and how wide is it?
//!
//! [`TABLE`] is the only place that knows: a hook point exists if and only if it has a row here.
//! Names are TransformerLens's where TransformerLens has one.

mod shape;
mod table;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::shape::{LayerShape, ModelShape};
pub use self::table::{Part, Presence, Site, SiteRow, TABLE, Width};
use crate::error::{Error, Result};

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

    /// Whether the model has this hook point.
    pub fn exists(self, model: &ModelShape) -> bool {
        self.layer.is_none_or(|layer| layer < model.n_layers) && model.has(self.site.row().presence, self.layer)
    }

    /// The shape of one token's activation, or `None` where there is none per token (attention scores and patterns).
    pub fn shape(self, model: &ModelShape) -> Option<Vec<usize>> {
        let layer = model.layer(self.layer.unwrap_or(0));
        Some(match self.site.row().width {
            Width::One => vec![1],
            Width::Model => vec![model.d_model],
            Width::Mlp => vec![layer.d_mlp],
            Width::Heads => vec![model.n_heads, layer.d_head],
            Width::KvHeads => vec![layer.n_kv_heads, layer.d_head],
            Width::HeadsByModel => vec![model.n_heads, model.d_model],
            Width::QueryByKey => return None,
            Width::Ple => vec![model.d_ple],
            Width::LayersByPle => vec![model.n_layers, model.d_ple],
            Width::Experts => vec![model.n_experts],
            Width::TopK => vec![model.top_k],
            Width::TopKByExpert => vec![model.top_k, model.d_expert],
            Width::TopKByModel => vec![model.top_k, model.d_model],
            Width::Altup => vec![model.n_altup],
            Width::AltupByModel => vec![model.n_altup, model.d_model],
            Width::Vocab => vec![model.d_vocab],
        })
    }

    /// Reads a comma-separated list of names, with `*` for every layer and `3-5` for a range of layers:
    /// `blocks.*.hook_resid_post,blocks.3-5.hook_mlp_out`.
    ///
    /// The result is in the order given and without repetitions. `*` and ranges leave out layers that lack the point, as
    /// long as one has it. Names that do not exist, layers that the model does not have, and points that it lacks are
    /// errors.
    pub fn parse_list(list: &str, model: &ModelShape) -> Result<Vec<Self>> {
        let mut points = Vec::new();
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let named = layers_of(name, model.n_layers)?
                .into_iter()
                .map(|layer| match layer {
                    Some((layer, rest)) => format!("blocks.{layer}.{rest}").parse(),
                    None => name.parse::<Self>(),
                })
                .collect::<Result<Vec<_>>>()?;
            if let Some(first) = named.first()
                && !named.iter().any(|point| point.exists(model))
            {
                let why = model.lacks(first.site.row().presence, first.layer);
                return Err(Error::AbsentHookPoint { name: first.to_string(), why });
            }
            for point in named {
                if point.exists(model) && !points.contains(&point) {
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
    pub fn all(model: &ModelShape) -> Vec<Self> {
        let once = |part| TABLE.iter().filter(move |row| row.part == part).map(|row| Self::whole(row.site));
        let blocks = (0..model.n_layers)
            .flat_map(|layer| TABLE.iter().filter(|row| row.per_layer()).map(move |row| Self::block(row.site, layer)));
        once(Part::Start).chain(blocks).chain(once(Part::End)).filter(|point| point.exists(model)).collect()
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
            .find(|row| row.name == site_name && row.per_layer() == layer.is_some())
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
    let full =
        |row: &SiteRow| if row.per_layer() { format!("blocks.{layer}.{}", row.name) } else { row.name.to_owned() };
    let nearest = TABLE.iter().map(full).min_by_key(|known| edit_distance(name, known)).unwrap_or_default();
    Error::UnknownHookPoint { name: name.to_owned(), nearest }
}

/// Levenshtein's distance, over characters.
pub(crate) fn edit_distance(a: &str, b: &str) -> usize {
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

    fn tiny() -> ModelShape {
        ModelShape {
            n_layers: 3,
            n_heads: 4,
            n_kv_heads: 2,
            d_model: 64,
            d_head: 32,
            d_mlp: 96,
            d_vocab: 320,
            n_ctx: 256,
            ..ModelShape::default()
        }
    }

    /// Per-layer embeddings, experts, and a last layer that reads the keys and values of the first.
    fn varied() -> ModelShape {
        let layer = LayerShape { n_kv_heads: 2, d_head: 32, d_mlp: 96, ..LayerShape::default() };
        let layers = vec![
            layer,
            LayerShape { d_head: 64, n_kv_heads: 1, value_is_key: true, ..layer },
            LayerShape { d_mlp: 192, kv_source: Some(0), ..layer },
        ];
        ModelShape { d_ple: 8, n_experts: 16, top_k: 2, d_expert: 24, layer_scalar: true, layers, ..tiny() }
    }

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.site as usize, i, "{}", row.name);
        }
    }

    #[test]
    fn names_round_trip() {
        for point in HookPoint::all(&varied()) {
            assert_eq!(point.to_string().parse::<HookPoint>().unwrap(), point);
        }
        assert_eq!(HookPoint::block(Site::ResidPost, 12).to_string(), "blocks.12.hook_resid_post");
    }

    #[test]
    fn lists_expand_stars_and_ranges() {
        let points =
            HookPoint::parse_list("blocks.*.hook_resid_post, blocks.1-2.hook_mlp_out,hook_embed", &tiny()).unwrap();
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
            let error = HookPoint::parse_list(name, &tiny()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("blocks.1.hook_resid_pots", "blocks.1.hook_resid_post");
        check("hook_embd", "hook_embed");
        check("blocks.3.hook_resid_post", "blocks.3.hook_resid_post");
        check("blocks.x.hook_resid_post", "blocks.x.hook_resid_post");
        assert!("blocks.01.hook_resid_post".parse::<HookPoint>().is_err());
        check("", "hook point");
        assert!(HookPoint::parse_list("blocks.2-1.hook_resid_post", &tiny()).is_err());
    }

    #[test]
    fn shapes_follow_the_model() {
        let model = tiny();
        let shape = |site| HookPoint::block(site, 0).shape(&model);
        assert_eq!(shape(Site::ResidPost), Some(vec![64]));
        assert_eq!(shape(Site::Z), Some(vec![4, 32]));
        assert_eq!(shape(Site::K), Some(vec![2, 32]));
        assert_eq!(shape(Site::MlpPost), Some(vec![96]));
        assert_eq!(shape(Site::Pattern), None);
    }

    #[test]
    fn layers_may_differ() {
        let model = varied();
        let shape = |site, layer| HookPoint::block(site, layer).shape(&model).unwrap();
        assert_eq!(shape(Site::Z, 1), [4, 64]);
        assert_eq!(shape(Site::K, 1), [1, 64]);
        assert_eq!(shape(Site::MlpPre, 2), [192]);
        assert_eq!(shape(Site::ExpertPost, 0), [2, 24]);
        assert_eq!(HookPoint::whole(Site::PleToken).shape(&model).unwrap(), [3, 8]);

        let all = HookPoint::all(&model);
        let has = |name: &str| all.contains(&name.parse().unwrap());
        assert!(has("blocks.0.attn.hook_v_proj") && has("blocks.1.attn.hook_k") && has("blocks.2.hook_kv_source"));
        assert!(!has("blocks.1.attn.hook_v_proj") && !has("blocks.2.attn.hook_k") && !has("blocks.0.hook_kv_source"));
        assert!(!has("hook_altup_merged") && HookPoint::all(&tiny()).iter().all(|point| point.exists(&tiny())));
    }

    #[test]
    fn what_a_model_lacks_is_said() {
        let names = |list: &str| HookPoint::parse_list(list, &varied()).map(|points| points.len());
        assert_eq!(names("blocks.*.attn.hook_k").unwrap(), 2);
        let error = |list: &str, model: &ModelShape| HookPoint::parse_list(list, model).unwrap_err().to_string();
        assert!(error("blocks.2.attn.hook_k", &varied()).contains("layer 2 reads the keys and values of layer 0"));
        assert!(error("blocks.1.attn.hook_v_proj", &varied()).contains("are its projected keys"));
        assert!(error("blocks.*.moe.hook_topk_idx", &tiny()).contains("no experts"));
    }
}
