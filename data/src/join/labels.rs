//! Where do the labels of tokens come from?

use std::ops::Range;

use super::classes::{self, Classes};
use super::documents::Documents;
use super::{JoinOptions, With};
use crate::error::{Error, Result};
use crate::hook_point::{HookPoint, Site};
use crate::routing::RoutingLayer;
use crate::store::Run;

/// What experts, gates, classes or documents have labels.
pub(super) enum Source {
    Experts(Vec<RoutingLayer>),
    Gates { run: Run, hooks: Vec<HookPoint>, width: usize },
    Classes { run: Run, classes: Box<Classes> },
    Documents(Documents),
}

/// The labels of consecutive tokens.
#[derive(Debug, Default)]
pub(super) struct Labels {
    /// Where those of each token begin; one more at the end.
    starts: Vec<usize>,
    labels: Vec<u16>,
}

impl Labels {
    pub(super) fn new() -> Self {
        Self { starts: vec![0], labels: Vec::new() }
    }

    /// Ends the labels of a token.
    pub(super) fn push(&mut self, labels: impl IntoIterator<Item = u16>) {
        self.labels.extend(labels);
        self.starts.push(self.labels.len());
    }

    /// Of a token, by its place.
    pub(super) fn row(&self, token: usize) -> &[u16] {
        &self.labels[self.starts[token]..self.starts[token + 1]]
    }
}

impl Source {
    pub(super) fn open(run: &Run, options: &JoinOptions) -> Result<Self> {
        if !options.layers.is_empty() && !matches!(options.with, With::Experts | With::Ple) {
            return Err(Error::NoLayers { with: options.with.to_string() });
        }
        match &options.with {
            With::Experts => {
                let recorded = &run.routing_info()?.layers;
                let layers = if options.layers.is_empty() { recorded } else { &options.layers };
                let open = |&layer: &usize| Ok(run.routing(layer)?.without_logits());
                Ok(Self::Experts(layers.iter().map(open).collect::<Result<_>>()?))
            }
            With::Ple => {
                let gate = |layer: usize| HookPoint { layer: Some(layer), site: Site::PleGatePre };
                let recorded = run.hook_points().iter().filter(|entry| entry.name.site == Site::PleGatePre);
                let mut hooks: Vec<HookPoint> = recorded.map(|entry| entry.name).collect();
                if !options.layers.is_empty() && !hooks.is_empty() {
                    hooks = options.layers.iter().map(|&layer| gate(layer)).collect();
                }
                let first = hooks.first().ok_or_else(|| Error::NoGates { path: run.dir().to_owned() })?;
                let width = run.hook_point(*first)?.width;
                hooks.iter().try_for_each(|&hook| run.hook_point(hook).map(drop))?;
                Ok(Self::Gates { run: run.clone(), hooks, width })
            }
            With::TokenClass => Ok(Self::Classes { run: run.clone(), classes: Box::new(Classes::new()) }),
            With::Language | With::Source | With::Meta(_) => Ok(Self::Documents(Documents::open(run, options)?)),
        }
    }

    /// The layers of the model; one without a number where there are none.
    pub(super) fn layers(&self) -> Vec<Option<u32>> {
        match self {
            Self::Experts(layers) => layers.iter().map(|layer| Some(layer.layer() as u32)).collect(),
            Self::Gates { hooks, .. } => hooks.iter().map(|hook| hook.layer.map(|layer| layer as u32)).collect(),
            Self::Classes { .. } | Self::Documents(_) => vec![None],
        }
    }

    /// Labels of each layer.
    pub(super) fn n_labels(&self) -> usize {
        match self {
            Self::Experts(layers) => layers.first().map_or(0, RoutingLayer::n_experts),
            Self::Gates { width, .. } => *width,
            Self::Classes { .. } => classes::N,
            Self::Documents(documents) => documents.n_labels(),
        }
    }

    pub(super) fn name(&self, label: usize) -> String {
        match self {
            Self::Experts(_) | Self::Gates { .. } => label.to_string(),
            Self::Classes { classes, .. } => classes.name(label),
            Self::Documents(documents) => documents.name(label),
        }
    }

    /// What the labels are, in words.
    pub(super) fn about(&self) -> String {
        match self {
            Self::Experts(layers) => {
                let k = layers.first().map_or(0, RoutingLayer::top_k);
                format!("the {k} experts that the router of a layer chose")
            }
            Self::Gates { .. } => "gates with `ple.hook_gate_pre` above 0".to_owned(),
            Self::Classes { .. } => "what the token's text is made of".to_owned(),
            Self::Documents(documents) => documents.about(),
        }
    }

    /// The labels of the tokens of a window in a layer (by its place); `special` tells which of them are special.
    pub(super) fn read(&mut self, layer: usize, window: &Range<u64>, special: &[bool]) -> Result<Labels> {
        let mut labels = Labels::new();
        match self {
            Self::Experts(layers) => {
                let (layer, columns) = (&layers[layer], layers[layer].rows(window.clone())?);
                if let Some(id) = columns.expert_ids.iter().find(|&&id| usize::from(id) >= layer.n_experts()) {
                    let what = format!("experts in the routing of layer {} at most", layer.layer());
                    return Err(Error::mismatch(what, layer.n_experts() as u64, u64::from(*id) + 1));
                }
                let rows = columns.expert_ids.chunks_exact(layer.top_k());
                rows.for_each(|ids| labels.push(ids.iter().copied()));
            }
            Self::Gates { run, hooks, width } => {
                let rows = run.acts(hooks[layer], window.clone())?.to_f32();
                for row in rows.chunks_exact(*width) {
                    labels.push((0u16..).zip(row).filter(|(_, gate)| **gate > 0.0).map(|(label, _)| label));
                }
            }
            Self::Classes { run, classes } => {
                let mut found = Vec::new();
                for (text, &special) in run.tokens(window.clone())?.token.iter().zip(special) {
                    classes.of(text, special, &mut found);
                    labels.push(found.drain(..));
                }
            }
            Self::Documents(documents) => {
                window.clone().for_each(|token| labels.push(documents.label(token)));
            }
        }
        Ok(labels)
    }

    /// The labels of a window after documents were shuffled; `None` where tokens are to be shuffled instead.
    pub(super) fn read_shuffled(&self, window: &Range<u64>) -> Option<Labels> {
        let Self::Documents(documents) = self else { return None };
        let mut labels = Labels::new();
        window.clone().for_each(|token| labels.push(documents.shuffled(token)));
        Some(labels)
    }
}
