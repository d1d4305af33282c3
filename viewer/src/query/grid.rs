//! What happens at each token of a page in each layer?

use data::{HookPoint, Site};

use super::reader::page_range;
use super::routing::PassageRoutingQuery;
use super::{PassageFeaturesQuery, Source};
use crate::loader::{Ask, Cancel, Failure};
use crate::state::Metric;

/// Asks for a quantity at every token of a page in every layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GridQuery {
    pub(crate) doc: u64,
    pub(crate) page: u64,
    pub(crate) metric: Metric,
    /// Of which expert, where the quantity is its weight.
    pub(crate) expert: Option<u16>,
}

/// A quantity at every token of a page in every layer.
#[derive(Debug)]
pub(crate) struct Grid {
    /// Number of the first token of the page in its document.
    pub(crate) first: u64,
    pub(crate) n_tokens: usize,
    pub(crate) rows: Vec<GridRow>,
    /// By row; not a number where there is none.
    pub(crate) values: Vec<f32>,
    /// Special tokens, whose norms are hundreds of times larger: no part of the scale.
    pub(crate) special: Vec<bool>,
}

/// A row of the grid.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GridRow {
    pub(crate) layer: Option<usize>,
    pub(crate) title: String,
    /// The feature table, where the row is of one.
    pub(crate) table: Option<String>,
}

impl Grid {
    /// The row of a layer.
    pub(crate) fn row_of(&self, layer: usize) -> Option<usize> {
        self.rows.iter().position(|row| row.layer == Some(layer))
    }

    pub(crate) fn value(&self, row: usize, token: usize) -> f32 {
        self.values.get(row * self.n_tokens + token).copied().unwrap_or(f32::NAN)
    }

    /// The values of the layer, one a token.
    pub(crate) fn of_layer(&self, layer: usize) -> Option<&[f32]> {
        let row = self.row_of(layer)?;
        self.values.get(row * self.n_tokens..(row + 1) * self.n_tokens)
    }

    /// Values of ordinary tokens, which make the scale.
    pub(crate) fn ordinary(&self) -> impl Iterator<Item = f32> + '_ {
        let special = |i: usize| self.special.get(i % self.n_tokens.max(1)).copied().unwrap_or(false);
        self.values.iter().enumerate().filter(move |(i, _)| !special(*i)).map(|(_, value)| *value)
    }
}

impl Ask for GridQuery {
    type Answer = Grid;
    const NAME: &'static str = "tokens by layers";

    fn slot(&self) -> u64 {
        self.metric as u64
    }

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Grid, Failure> {
        let (whole, range) = page_range(source, self.doc, self.page)?;
        let n_tokens = (range.end - range.start) as usize;
        let mut grid = Grid {
            first: range.start - whole.start,
            n_tokens,
            rows: Vec::new(),
            values: Vec::new(),
            special: source.run.special(range.clone())?,
        };
        match self.metric {
            Metric::Entropy | Metric::FirstChoice | Metric::MoeShare | Metric::Expert => {
                self.routing(source, cancel, &mut grid)?;
            }
            Metric::Features => self.features(source, cancel, &mut grid)?,
            Metric::Resid | Metric::Attn | Metric::Mlp | Metric::Ple | Metric::PleShare => {
                let (site, of) = match self.metric {
                    Metric::Attn => (Site::AttnOut, None),
                    Metric::Mlp => (Site::MlpOut, None),
                    Metric::Ple => (Site::PleOut, None),
                    Metric::PleShare => (Site::PleOut, Some(Site::ResidPost)),
                    _ => (Site::ResidPost, None),
                };
                for layer in recorded_layers(source, site, of)? {
                    cancel.check()?;
                    let mut norms = norms(source, HookPoint::block(site, layer), &range)?;
                    if let Some(of) = of {
                        let whole = self::norms(source, HookPoint::block(of, layer), &range)?;
                        norms.iter_mut().zip(whole).for_each(|(part, whole)| *part /= whole.max(f32::MIN_POSITIVE));
                    }
                    grid.push(Some(layer), None, norms);
                }
            }
        }
        Ok(grid)
    }

    fn bytes(answer: &Grid) -> usize {
        answer.values.len() * 4 + answer.rows.len() * 96 + answer.special.len()
    }
}

impl GridQuery {
    fn routing(&self, source: &Source, cancel: &Cancel, grid: &mut Grid) -> Result<(), Failure> {
        let routing = PassageRoutingQuery { doc: self.doc, page: self.page }.answer(source, cancel)?;
        for (place, &layer) in routing.layers.iter().enumerate() {
            let value = |token: usize| match self.metric {
                Metric::Entropy => routing.entropy(place, token),
                Metric::FirstChoice => routing.at(place, token).next().map(|choice| choice.prob),
                Metric::MoeShare => routing.moe_share(place, token),
                _ => routing.at(place, token).find(|choice| Some(choice.expert) == self.expert).map(|c| c.weight),
            };
            grid.push(Some(layer), None, (0..grid.n_tokens).map(|token| value(token).unwrap_or(f32::NAN)).collect());
        }
        Ok(())
    }

    fn features(&self, source: &Source, cancel: &Cancel, grid: &mut Grid) -> Result<(), Failure> {
        let mut tables = Vec::new();
        for name in &source.tables {
            tables.push((source.table(name)?.info().hook_point.layer, name.clone()));
        }
        if tables.is_empty() {
            return Err(Failure::new(
                "the run has no features",
                "`polariscope train`, then `polariscope encode`, make them",
            ));
        }
        tables.sort();
        for (layer, name) in tables {
            cancel.check()?;
            let query = PassageFeaturesQuery { table: name.clone(), doc: self.doc, page: self.page };
            let features = query.answer(source, cancel)?;
            let strongest = |token: usize| features.at(token).first().map_or(0.0, |active| active.act);
            grid.push(layer, Some(name), (0..grid.n_tokens).map(strongest).collect());
        }
        Ok(())
    }
}

impl Grid {
    fn push(&mut self, layer: Option<usize>, table: Option<String>, values: Vec<f32>) {
        let title = match (layer, &table) {
            (Some(layer), _) => format!("L{layer}"),
            (None, Some(table)) => table.clone(),
            (None, None) => String::new(),
        };
        self.rows.push(GridRow { layer, title, table });
        self.values.extend(values);
    }
}

/// The layers in which a site, and perhaps another one, were recorded.
fn recorded_layers(source: &Source, site: Site, also: Option<Site>) -> Result<Vec<usize>, Failure> {
    let of = |site: Site| source.run.hook_points().iter().filter(move |entry| entry.name.site == site);
    let has = |site: Site, layer: usize| of(site).any(|entry| entry.name.layer == Some(layer));
    let layers: Vec<usize> = of(site)
        .filter_map(|entry| entry.name.layer)
        .filter(|layer| also.is_none_or(|also| has(also, *layer)))
        .collect();
    if layers.is_empty() {
        let wanted = [Some(site), also].into_iter().flatten().map(|site| format!("blocks.*.{}", site.row().name));
        let wanted: Vec<String> = wanted.collect();
        return Err(Failure::new(
            format!("expected the recorded hook points `{}`, found none", wanted.join(",")),
            format!("record with `--hook-points {}`", wanted.join(",")),
        ));
    }
    Ok(layers)
}

/// The L2 norm at each token.
pub(super) fn norms(source: &Source, hook: HookPoint, range: &std::ops::Range<u64>) -> Result<Vec<f32>, Failure> {
    let acts = source.run.acts(hook, range.clone())?;
    Ok(acts.to_f32().chunks_exact(acts.width.max(1)).map(norm).collect())
}

pub(super) fn norm(row: &[f32]) -> f32 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_read_by_layer() {
        let mut grid = Grid { first: 0, n_tokens: 2, rows: vec![], values: vec![], special: vec![true, false] };
        grid.push(Some(3), None, vec![1.0, 2.0]);
        grid.push(Some(5), None, vec![3.0, f32::NAN]);
        assert_eq!(grid.of_layer(3), Some([1.0, 2.0].as_slice()));
        assert_eq!(grid.of_layer(4), None);
        assert_eq!(grid.value(1, 0), 3.0);
        assert!(grid.value(1, 1).is_nan() && grid.value(9, 9).is_nan());
        assert_eq!(grid.ordinary().filter(|v| v.is_finite()).collect::<Vec<_>>(), [2.0]);
        assert_eq!(grid.rows[1].title, "L5");
        assert_eq!(norm(&[3.0, 4.0]), 5.0);
    }
}
