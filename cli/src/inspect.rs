//! `polariscope inspect`: what is in a model, a run or a coder, told from headers alone?

mod memory;

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use data::hook_point::{SiteRow, TABLE};
use data::{HookPoint, ModelShape, Place, Run};
use engine::config::{Config, LayerKind};
use engine::ple;
use engine::weights::{self, Inspection};
use fs_err as fs;
use serde_json::{Value, json};

use crate::location::Location;
use crate::output::{count, size};
use crate::{catalog, output};

/// Tells what is in a model, a run directory or a coder, from headers alone
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  polariscope inspect gemma-3-270m\n  polariscope inspect runs/news\n  \
                        polariscope inspect runs/news/saes/news-9 --json")]
pub(crate) struct Inspect {
    /// A model (folder, `.gguf` or known name), a run directory, or a folder with a coder
    #[arg(value_name = "MODEL_OR_RUN_OR_SAE")]
    what: String,

    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(crate) fn run(self) -> Result<()> {
        let location = Location::from(OsString::from(&self.what));
        let place = location.place()?;
        let (value, text) = if place.has(MANIFEST)? {
            run_directory(&place)?
        } else if place.has(CODER)? && (place.has(CODER_WEIGHTS[0])? || place.has(CODER_WEIGHTS[1])?) {
            coder(&location.coder()?)?
        } else if place.is_remote() {
            bail!(
                "expected a run or a coder, found neither in `{location}`\nhint: a model is a folder, a `.gguf` file or a known name"
            );
        } else {
            model(&catalog::resolve(&self.what)?)?
        };
        if self.json { output::json(&value) } else { output::text(&text) }
    }
}

const MANIFEST: &str = "manifest.json";
const CODER: &str = "cfg.json";
/// Weights of a coder; the second of one between several sites.
const CODER_WEIGHTS: [&str; 2] = ["sae_weights.safetensors", "W_enc_0.safetensors"];

/// Lines of `name  value` under a heading.
struct Sheet {
    text: String,
    rows: Vec<Vec<String>>,
}

impl Sheet {
    fn new(heading: String) -> Self {
        Self { text: heading + "\n", rows: Vec::new() }
    }

    fn row(&mut self, name: &str, value: impl Into<String>) {
        self.rows.push(vec![format!("  {name}"), value.into()]);
    }

    fn finish(mut self, table: &[Vec<String>], right: &[usize]) -> String {
        self.text.push_str(&output::table(&self.rows, &[]));
        if !table.is_empty() {
            self.text.push('\n');
            self.text.push_str(&output::table(table, right));
        }
        self.text
    }
}

fn model(path: &Path) -> Result<(Value, String)> {
    let inspection = weights::inspect(path)?;
    let mut sheet = Sheet::new(format!("model `{}`", path.display()));
    let file_bytes: u64 = inspection.files.iter().map(|file| file.bytes).sum();
    let parameters: u64 = inspection.tensors.iter().map(|t| t.shape.iter().product::<usize>() as u64).sum();
    sheet.row("files", format!("{}, {}", inspection.files.len(), size(file_bytes)));
    sheet.row("tensors", format!("{}, {} parameters", inspection.tensors.len(), count(parameters)));
    let table = inspection.config.as_ref().ok().and_then(|config| ple::facts(config, &inspection.tensors));
    if let (Ok(config), Some(table)) = (&inspection.config, table) {
        let effective = count(config.n_params_effective());
        sheet.row("effective", format!("{effective} parameters, without the table of per-layer embeddings"));
        let (all, one) = (size(table.table_bytes), size(table.bytes_per_token));
        sheet
            .row("per-layer", format!("{} rows of embeddings, {all}, of which a token reads {one}", count(table.rows)));
    }
    let formats = formats(&inspection);
    let listed: Vec<String> = formats.iter().map(|(name, bytes)| format!("{name} {}", size(*bytes))).collect();
    sheet.row("stored as", listed.join(", "));
    let mut value = json!({
        "kind": "model", "path": path, "bytes": file_bytes, "n_tensors": inspection.tensors.len(),
        "parameters": parameters, "formats": formats.iter().map(|(name, bytes)| (name.clone(), (*bytes).into())).collect::<serde_json::Map<_, _>>(),
        "tensors": inspection.tensors.iter().map(|tensor| json!({
            "name": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype, "bytes": tensor.bytes,
        })).collect::<Vec<_>>(),
    });
    match &inspection.config {
        Ok(config) => {
            let shape = config.shape();
            describe(&mut sheet, config);
            value["architecture"] = config.architecture.to_string().into();
            value["shape"] = serde_json::to_value(&shape)?;
            value["sliding_window"] = config.sliding_window.into();
            let sites = sites(&shape);
            value["hook_points"] = hook_points(&sites);
            value["memory"] = memory::json(config);
            value["ple"] = json!(table);
            let text = sheet.finish(&memory::table(config), &[1, 2, 3, 4]);
            let hook_points = output::table(&hook_point_table(&sites, shape.n_layers), &[1, 2, 3]);
            Ok((value, format!("{text}{}\n\n{hook_points}", memory::note(config))))
        }
        Err(err) => {
            let reason = err.to_string();
            sheet.row("cannot be run", reason.lines().next().unwrap_or_default());
            value["cannot_be_run"] = reason.into();
            Ok((value, sheet.finish(&[], &[])))
        }
    }
}

fn describe(sheet: &mut Sheet, config: &Config) {
    let full = config.layers.iter().filter(|layer| layer.kind == LayerKind::Full).count();
    let sliding = config.layers.len() - full;
    sheet.row("architecture", config.architecture.to_string());
    sheet.row(
        "layers",
        format!("{}: {sliding} with a window of {}, {full} full", config.n_layers, config.sliding_window),
    );
    sheet.row("d_model", config.d_model.to_string());
    sheet.row("d_mlp", config.d_mlp.to_string());
    sheet.row("heads", format!("{} of {}, {} of keys and values", config.n_heads, config.d_head, config.n_kv_heads));
    sheet.row("vocabulary", count(config.d_vocab as u64));
    sheet.row("context", count(config.n_ctx as u64));
}

/// Bytes of each stored format, largest first.
fn formats(inspection: &Inspection) -> Vec<(String, u64)> {
    let mut formats: Vec<(String, u64)> = Vec::new();
    for tensor in &inspection.tensors {
        match formats.iter_mut().find(|(name, _)| *name == tensor.dtype) {
            Some((_, bytes)) => *bytes += tensor.bytes,
            None => formats.push((tensor.dtype.clone(), tensor.bytes)),
        }
    }
    formats.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    formats
}

/// A name with the shapes that it has and the layers that have each; a site without layers has one shape, and no layer.
struct Listed {
    name: String,
    shapes: Vec<(Option<Vec<usize>>, Vec<usize>)>,
    about: &'static str,
}

/// The sites that the model has, in the order of the table.
fn sites(model: &ModelShape) -> Vec<Listed> {
    let listed = |row: &'static SiteRow| {
        let layers: Vec<Option<usize>> =
            if row.per_layer() { (0..model.n_layers).map(Some).collect() } else { vec![None] };
        let points = layers.into_iter().map(|layer| HookPoint { site: row.site, layer });
        let mut shapes: Vec<(Option<Vec<usize>>, Vec<usize>)> = Vec::new();
        for point in points.filter(|point| point.exists(model)) {
            let shape = point.shape(model);
            match shapes.iter_mut().find(|(other, _)| *other == shape) {
                Some((_, layers)) => layers.extend(point.layer),
                None => shapes.push((shape, point.layer.into_iter().collect())),
            }
        }
        let name = if row.per_layer() { format!("blocks.*.{}", row.name) } else { row.name.to_owned() };
        Listed { name, shapes, about: row.about }
    };
    TABLE.iter().map(listed).filter(|listed| !listed.shapes.is_empty()).collect()
}

fn hook_points(sites: &[Listed]) -> Value {
    let shapes = |shapes: &[(Option<Vec<usize>>, Vec<usize>)]| -> Value {
        shapes.iter().map(|(shape, layers)| json!({ "shape": shape, "layers": layers })).collect()
    };
    let listed = sites.iter();
    listed.map(|site| json!({ "name": site.name, "shapes": shapes(&site.shapes), "about": site.about })).collect()
}

fn hook_point_table(sites: &[Listed], n_layers: usize) -> Vec<Vec<String>> {
    let mut rows = vec![["hook point", "layers", "shape", "f32 bytes a token", ""].map(String::from).to_vec()];
    for Listed { name, shapes, about } in sites {
        for (shape, layers) in shapes {
            let (dims, bytes) = match shape {
                Some(dims) => (format!("{dims:?}"), count(4 * dims.iter().product::<usize>() as u64)),
                None => ("query by key".to_owned(), String::new()),
            };
            let layers = match layers.len() {
                0 => String::new(),
                n if n == n_layers => "all".to_owned(),
                n => n.to_string(),
            };
            rows.push(vec![name.clone(), layers, dims, bytes, (*about).to_owned()]);
        }
    }
    rows
}

fn run_directory(place: &Place) -> Result<(Value, String)> {
    let (run, dir) = (Run::open_at(place)?, place.shown());
    let manifest = run.manifest();
    let mut sheet = Sheet::new(format!("run `{}`", dir.display()));
    let state = if manifest.complete { "complete" } else { "not complete" };
    sheet.row("state", format!("{state}, {}", manifest.created_at));
    sheet.row("made by", manifest.created_by.clone());
    sheet.row("model", format!("{} ({}, {})", manifest.model.id, manifest.model.architecture, manifest.model.dtype));
    if let Some(table) = &manifest.model.ple {
        let (all, effective) = (count(manifest.model.n_params), count(manifest.model.n_params_effective));
        sheet.row("parameters", format!("{all}, {effective} of them effective"));
        let (placement, one) = (&table.placement, size(table.bytes_per_token));
        sheet.row("per-layer", format!("embeddings: {} on {placement}, {one} a token", size(table.table_bytes)));
    }
    sheet.row("corpus", manifest.corpus.sources.join(", "));
    if let Some(shuffled) = run.shuffled() {
        sheet.row("shuffled", format!("rows of `{}` in the order of seed {}", shuffled.source, shuffled.seed));
    }
    sheet.row("documents", count(run.n_documents()));
    sheet.row("tokens", count(run.n_tokens()));
    for (reason, tokens) in &manifest.counts.tokens_skipped {
        sheet.row("skipped", format!("{} ({reason})", count(*tokens)));
    }
    let shards = run.shards();
    let bytes: u64 = shards.iter().flat_map(|shard| shard.files.values()).map(|file| file.bytes).sum();
    sheet.row("shards", format!("{}, {}", shards.len(), size(bytes)));
    if let Some(routing) = &manifest.routing {
        let (experts, layers) = (routing.n_experts, routing.layers.len());
        sheet.row("routing", format!("{layers} layers of {experts} experts, {} of them a token", routing.top_k));
    }
    let (saes, tables) = (run.saes()?, run.feature_tables()?);
    sheet.row("coders", listed(&saes));
    sheet.row("feature tables", listed(&tables));
    let mut rows = vec![["hook point", "width", "dtype", "on disk", "median norm"].map(String::from).to_vec()];
    for entry in run.hook_points() {
        let norm = run.statistics(entry.name).map_or(String::new(), |s| format!("{:.1}", s.median_norm));
        let bytes = (entry.row_bytes() as u64) * run.n_tokens();
        rows.push(vec![entry.name.to_string(), entry.width.to_string(), entry.dtype.to_string(), size(bytes), norm]);
    }
    let value = json!({
        "kind": "run", "path": dir, "complete": manifest.complete, "created_by": manifest.created_by,
        "created_at": manifest.created_at, "model": manifest.model, "corpus": manifest.corpus,
        "documents": run.n_documents(), "tokens": run.n_tokens(), "skipped": manifest.counts.tokens_skipped,
        "shards": shards.len(), "bytes": bytes, "hook_points": run.hook_points(), "routing": manifest.routing,
        "shuffled": manifest.shuffled,
        "saes": saes, "features": tables,
    });
    Ok((value, sheet.finish(&rows, &[1, 3, 4])))
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn coder(dir: &Path) -> Result<(Value, String)> {
    let path = dir.join(CODER);
    let config: Value = serde_json::from_str(&fs::read_to_string(&path)?)
        .with_context(|| format!("expected JSON, found something else in `{}`", path.display()))?;
    let Some(fields) = config.as_object() else {
        bail!("expected a JSON object in `{}`", path.display());
    };
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            bytes += fs::metadata(path)?.len();
        }
    }
    let mut sheet = Sheet::new(format!("coder `{}`", dir.display()));
    for (name, value) in fields.iter().filter(|(name, _)| *name != "metadata") {
        sheet.row(name, plain(value));
    }
    if let Some(metadata) = config["metadata"].as_object() {
        for (name, value) in metadata {
            sheet.row(name, plain(value));
        }
    }
    sheet.row("weights", size(bytes));
    let value = json!({ "kind": "sae", "path": dir, "bytes": bytes, "config": config });
    Ok((value, sheet.finish(&[], &[])))
}

/// JSON for a person: text without its quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
