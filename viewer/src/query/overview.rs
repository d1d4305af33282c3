//! What is in this run: model, corpus, hook points, coders, feature tables?

use data::Run;
use data::metrics::Metrics;
use fs_err as fs;

use super::Source;
use crate::loader::{Ask, Cancel, Failure};

/// Points of a curve that are kept: more than a chart has pixels across.
const CURVE_POINTS: usize = 1_200;

/// A recorded hook point with its norms.
#[derive(Debug, Clone)]
pub(crate) struct HookRow {
    pub(crate) name: String,
    /// The name without its layer, which is what makes a series in the chart.
    pub(crate) site: String,
    pub(crate) layer: Option<usize>,
    pub(crate) width: usize,
    pub(crate) dtype: String,
    pub(crate) n: u64,
    pub(crate) median_norm: f64,
    /// Root of the mean squared norm.
    pub(crate) rms_norm: f64,
    pub(crate) max_abs: f64,
    /// Bytes of the shards of this hook point.
    pub(crate) bytes: u64,
}

/// A sparse coder that lies in the run.
#[derive(Debug, Clone)]
pub(crate) struct CoderRow {
    pub(crate) name: String,
    pub(crate) architecture: String,
    pub(crate) hook_point: String,
    pub(crate) d_in: Option<u64>,
    pub(crate) d_sae: Option<u64>,
    /// The last row of its metrics.
    pub(crate) last: Vec<(String, f64)>,
    pub(crate) has_metrics: bool,
}

/// A feature table that lies in the run.
#[derive(Debug, Clone)]
pub(crate) struct TableRow {
    pub(crate) name: String,
    pub(crate) coder: String,
    pub(crate) hook_point: String,
    pub(crate) n_features: u64,
    pub(crate) n_alive: u64,
}

/// Everything that the overview shows, as text where it is only shown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overview {
    pub(crate) complete: bool,
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) model: Vec<(&'static str, String)>,
    pub(crate) corpus: Vec<(&'static str, String)>,
    pub(crate) skipped: Vec<(String, u64)>,
    pub(crate) documents: u64,
    pub(crate) tokens: u64,
    pub(crate) tokens_expected: u64,
    pub(crate) bytes: u64,
    pub(crate) hooks: Vec<HookRow>,
    pub(crate) coders: Vec<CoderRow>,
    pub(crate) tables: Vec<TableRow>,
    /// What could not be read, one sentence each; the rest is shown all the same.
    pub(crate) problems: Vec<String>,
}

/// Asks for the overview.
#[derive(Debug, Clone)]
pub(crate) struct OverviewQuery;

impl Ask for OverviewQuery {
    type Answer = Overview;
    const NAME: &'static str = "overview";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Overview, Failure> {
        let mut out = from_manifest(source);
        out.hooks = hooks(source, &mut out.problems);
        cancel.check()?;
        match source.run.saes() {
            Ok(names) => {
                for name in names {
                    match coder(source, &name) {
                        Ok(row) => out.coders.push(row),
                        Err(failure) => out.problems.push(format!("coder `{name}`: {}", failure.message)),
                    }
                }
            }
            Err(error) => out.problems.push(error.to_string()),
        }
        match source.run.feature_tables() {
            Ok(names) => {
                for name in names {
                    cancel.check()?;
                    match table(source, &name) {
                        Ok(row) => out.tables.push(row),
                        Err(failure) => {
                            out.problems.push(format!("feature table `{name}`: {}", failure.message));
                        }
                    }
                }
            }
            Err(error) => out.problems.push(error.to_string()),
        }
        Ok(out)
    }

    fn bytes(answer: &Overview) -> usize {
        size_of::<Overview>() + answer.hooks.len() * 256 + answer.coders.len() * 512
    }
}

fn from_manifest(source: &Source) -> Overview {
    let manifest = source.run.manifest();
    let (model, corpus, counts) = (&manifest.model, &manifest.corpus, &manifest.counts);
    let shape = &model.shape;
    let shards = source.run.shards();
    let bytes = shards.iter().flat_map(|shard| shard.files.values()).map(|file| file.bytes).sum();
    let mut out = Overview {
        complete: manifest.complete,
        documents: source.run.n_documents(),
        tokens: source.run.n_tokens(),
        tokens_expected: counts.tokens_expected,
        bytes,
        skipped: counts.tokens_skipped.iter().map(|(reason, n)| (reason.clone(), *n)).collect(),
        ..Overview::default()
    };
    out.facts = vec![
        ("Folder", source.path.display().to_string()),
        ("Recorded", manifest.created_at.clone()),
        ("By", manifest.created_by.clone()),
        ("Shards", shards.len().to_string()),
    ];
    if let Some(shuffled) = &manifest.shuffled {
        out.facts.push(("Shuffled", format!("rows of {} in the order of seed {}", shuffled.source, shuffled.seed)));
    }
    if !manifest.command.is_empty() {
        out.facts.push(("Command", manifest.command.join(" ")));
    }
    out.model = vec![
        ("Id", model.id.clone()),
        ("Architecture", model.architecture.clone()),
        ("Computed in", model.dtype.clone()),
        ("Layers", shape.n_layers.to_string()),
        ("d_model", shape.d_model.to_string()),
        ("Heads", format!("{} ({} for keys and values) of {}", shape.n_heads, shape.n_kv_heads, shape.d_head)),
        ("d_mlp", shape.d_mlp.to_string()),
        ("Vocabulary", crate::widget::grouped(shape.d_vocab as u64)),
    ];
    if let Some(quantization) = &model.quantization {
        out.model.insert(3, ("Weights", quantization.clone()));
    }
    out.corpus = vec![("Sources", corpus.sources.join(", "))];
    out
}

fn hooks(source: &Source, problems: &mut Vec<String>) -> Vec<HookRow> {
    let mut rows = Vec::new();
    for entry in source.run.hook_points() {
        let name = entry.name.to_string();
        let folder = format!("hook_point={name}/");
        let bytes = source
            .run
            .shards()
            .iter()
            .flat_map(|shard| &shard.files)
            .filter(|(path, _)| path.contains(&folder))
            .map(|(_, file)| file.bytes)
            .sum();
        let statistics = match source.run.statistics(entry.name) {
            Ok(statistics) => statistics,
            Err(error) => {
                problems.push(error.to_string());
                continue;
            }
        };
        rows.push(HookRow {
            site: entry.name.site.row().name.to_owned(),
            layer: entry.name.layer,
            width: entry.width,
            dtype: entry.dtype.to_string(),
            n: statistics.n,
            median_norm: statistics.median_norm,
            rms_norm: (statistics.sum_sq_norm / (statistics.n.max(1) as f64)).sqrt(),
            max_abs: statistics.max_abs,
            bytes,
            name,
        });
    }
    rows
}

fn coder(source: &Source, name: &str) -> Result<CoderRow, Failure> {
    let cfg: serde_json::Value = match source.run.sae_file(name, "cfg.json")? {
        Some(path) => serde_json::from_slice(&fs::read(path)?)
            .map_err(|error| Failure::from_text(&format!("`cfg.json` is not JSON: {error}")))?,
        // A coder that is still in training has only its metrics.
        None => serde_json::Value::Null,
    };
    let text = |key: &str| {
        let value = cfg.get(key).or_else(|| cfg.get("metadata").and_then(|m| m.get(key)));
        value.and_then(|v| v.as_str()).map(str::to_owned)
    };
    let number = |key: &str| cfg.get(key).and_then(serde_json::Value::as_u64);
    let metrics = metrics(&source.run, name)?;
    let last = metrics.as_ref().map(last_row).unwrap_or_default();
    Ok(CoderRow {
        name: name.to_owned(),
        architecture: text("architecture").unwrap_or_else(|| "not finished".to_owned()),
        hook_point: text("hook_name").or_else(|| text("hook_point")).unwrap_or_default(),
        d_in: number("d_in"),
        d_sae: number("d_sae"),
        last,
        has_metrics: metrics.is_some(),
    })
}

fn table(source: &Source, name: &str) -> Result<TableRow, Failure> {
    let table = source.table(name)?;
    let stats = source.stats(name)?;
    let info = table.info();
    Ok(TableRow {
        name: name.to_owned(),
        coder: info.coder.clone(),
        hook_point: info.hook_point.to_string(),
        n_features: stats.feature.len() as u64,
        n_alive: stats.n_active.iter().filter(|n| **n > 0).count() as u64,
    })
}

/// A named column of a coder's metrics over its steps.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Asks for the training curves of a coder.
#[derive(Debug, Clone)]
pub(crate) struct CurvesQuery {
    pub(crate) coder: String,
}

impl Ask for CurvesQuery {
    type Answer = Vec<Curve>;
    const NAME: &'static str = "training curves";

    fn answer(&self, source: &Source, _: &Cancel) -> Result<Vec<Curve>, Failure> {
        let metrics = metrics(&source.run, &self.coder)?;
        Ok(metrics.as_ref().map(curves).unwrap_or_default())
    }

    fn bytes(answer: &Vec<Curve>) -> usize {
        answer.iter().map(|curve| curve.points.len() * 16 + 64).sum()
    }
}

/// The columns of metrics over the steps, thinned to what a screen can show.
pub(super) fn curves(metrics: &Metrics) -> Vec<Curve> {
    let steps: Vec<f64> = match metrics.column("step") {
        Some(steps) => steps.to_vec(),
        None => (0..metrics.n_rows()).map(|row| row as f64).collect(),
    };
    let columns = metrics.columns().iter().filter(|name| *name != "step");
    let curve = |name: &String| Some(Curve { name: name.clone(), points: thin(&steps, metrics.column(name)?) });
    columns.filter_map(curve).collect()
}

pub(super) fn metrics(run: &Run, coder: &str) -> Result<Option<Metrics>, Failure> {
    Ok(run.sae_file(coder, "metrics.parquet")?.map(|path| Metrics::read(&path)).transpose()?)
}

fn last_row(metrics: &Metrics) -> Vec<(String, f64)> {
    let last = |name: &str| metrics.column(name).and_then(|values| values.last().copied());
    metrics.columns().iter().filter_map(|name| Some((name.clone(), last(name)?))).collect()
}

/// At most [`CURVE_POINTS`] points: the lowest and highest of each stretch, so that a spike stays visible.
fn thin(x: &[f64], y: &[f64]) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> =
        x.iter().copied().zip(y.iter().copied()).filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    if points.len() <= CURVE_POINTS {
        return points;
    }
    let stretch = points.len().div_ceil(CURVE_POINTS / 2);
    let mut out = Vec::with_capacity(CURVE_POINTS);
    for part in points.chunks(stretch) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        if let (Some(low), Some(high)) = (part.iter().min_by(by_y), part.iter().max_by(by_y)) {
            let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
            out.push(*first);
            if first != second {
                out.push(*second);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thinned_curve_keeps_its_spike() {
        let x: Vec<f64> = (0..100_000).map(f64::from).collect();
        let mut y = vec![1.0; x.len()];
        y[54_321] = 9.0;
        let points = thin(&x, &y);
        assert!(points.len() <= CURVE_POINTS);
        assert!(points.contains(&(54_321.0, 9.0)));
        assert!(points.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn a_short_curve_stays_whole_without_its_gaps() {
        assert_eq!(thin(&[0.0, 1.0, 2.0], &[3.0, f64::NAN, 5.0]), [(0.0, 3.0), (2.0, 5.0)]);
    }
}
