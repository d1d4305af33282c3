//! What is this run, and which of its shards are durable?
//!
//! `manifest.json` says what the run is; it is written first with `complete: false` and once more at the end.
//! `journal/shard-00000.json` is written after all files of a shard: it exists if and only if the shard is durable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files;
use crate::hook_point::{HookPoint, ModelShape};
use crate::place::Place;
use crate::{Dtype, statistics, sums};

pub use crate::statistics::{ShardStatistics, Statistics};

/// The manifest's file name.
pub(crate) const FILE: &str = "manifest.json";

/// What `format` says in every manifest.
pub const FORMAT: &str = "polariscope-run";

/// The newest version of the format that this crate reads and writes.
pub const VERSION: u32 = 2;

/// The version of a run whose rows are in the order of its tokens. Every reader since the first one knows it, so it is
/// written wherever it says enough.
const ORDERED: u32 = 1;

/// The version of a shuffled run: what takes a row for a token by its place would read it wrongly.
const SHUFFLED: u32 = 2;

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`]
    pub format: String,
    /// At most [`VERSION`]; 2 for a shuffled run, otherwise 1.
    pub version: u32,
    /// Whether recording came to its end; before that, the journal tells what is there.
    pub complete: bool,
    /// Version and commit of the program.
    #[serde(default)]
    pub created_by: String,
    /// RFC 3339.
    #[serde(default)]
    pub created_at: String,
    pub model: Model,
    /// `None` when token ids were given and no tokenizer was at hand.
    #[serde(default)]
    pub tokenizer: Option<Tokenizer>,
    pub corpus: Corpus,
    pub hook_points: Vec<HookPointEntry>,
    /// The choices of experts that the run holds; `None` when the model does not route.
    #[serde(default)]
    pub routing: Option<Routing>,
    /// Of which run this is the shuffled one; left out where rows are in the order of the tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shuffled: Option<Shuffled>,
    /// In the order of `first_token_idx`; empty until the run is complete.
    pub shards: Vec<Shard>,
    /// Files that belong to no shard, by the path within the run; empty until the run is complete.
    #[serde(default)]
    pub files: BTreeMap<String, FileEntry>,
    pub counts: Counts,
    /// By the name of the hook point; empty until the run is complete.
    #[serde(default)]
    pub statistics: BTreeMap<String, Statistics>,
    #[serde(default)]
    pub seeds: BTreeMap<String, u64>,
    /// The command line.
    #[serde(default)]
    pub command: Vec<String>,
}

/// Which model was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    pub id: String,
    #[serde(default)]
    pub architecture: String,
    /// Path or URI.
    #[serde(default)]
    pub source: String,
    /// By the name of the weight file.
    #[serde(default)]
    pub sha256: BTreeMap<String, String>,
    /// What it computed in.
    #[serde(default)]
    pub dtype: String,
    /// Of the weight file, such as `Q4_K_M`.
    #[serde(default)]
    pub quantization: Option<String>,
    /// Numbers in all weights; 0 where nobody counted.
    #[serde(default)]
    pub n_params: u64,
    /// Of these, without the table of per-layer embeddings: what a device must hold.
    #[serde(default)]
    pub n_params_effective: u64,
    /// `None` when the model has no per-layer embeddings.
    #[serde(default)]
    pub ple: Option<Ple>,
    pub shape: ModelShape,
}

/// The table of per-layer embeddings of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ple {
    /// Where it was kept: `disk`, `cpu` or `device`.
    pub placement: String,
    /// Of the table in its file.
    pub table_bytes: u64,
    /// Of them, what one token reads.
    pub bytes_per_token: u64,
}

/// Who made a run, when and how: libraries read no clock and no arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Version and commit of the program.
    pub created_by: String,
    /// RFC 3339.
    pub created_at: String,
    /// The command line.
    pub command: Vec<String>,
}

/// Which tokenizer made the ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokenizer {
    pub sha256: String,
}

/// Which text was recorded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Corpus {
    /// Paths or URIs.
    pub sources: Vec<String>,
    #[serde(default)]
    pub sha256: String,
    /// How it was read and cut: the options that change what a run holds.
    #[serde(default)]
    pub options: Value,
}

/// A hook point that the run holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HookPointEntry {
    pub name: HookPoint,
    /// Numbers a token: the product of `shape`.
    pub width: usize,
    /// How they are stored.
    pub dtype: Dtype,
    /// Per token, such as `[4, 256]`; `[width]` where it is left out.
    #[serde(default)]
    pub shape: Vec<usize>,
}

/// Which choices of experts the run holds, in `routing/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routing {
    /// Experts of a layer.
    pub n_experts: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// The layers of the model that were recorded, rising.
    pub layers: Vec<usize>,
    /// Whether the logits of all experts are stored too.
    #[serde(default)]
    pub router_logits: bool,
}

/// What makes a run a shuffled one: its rows are those of another run, in an order drawn from a seed.
///
/// In a shuffled run `tokens/` and every `acts/` still have the same rows in the same order, but `token_idx` is that of the
/// origin: unique, neither dense nor rising. `first_token_idx` and `n_tokens` of a shard count rows. `documents/` holds all
/// documents of the origin, whose `first_token_idx` is that of the origin too. There is no `routing/`: it is found in the
/// origin by `token_idx`.
///
/// The order is that of a number that a row has from `seed` and `token_idx` alone, so the same rows come in the same order
/// whatever the memory and the hook points were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shuffled {
    /// The path of the origin, as it was given.
    pub source: String,
    /// Of the manifest of the origin.
    pub source_sha256: String,
    /// Rows of the origin.
    pub source_tokens: u64,
    pub seed: u64,
    /// Parts of the order, each of which was put in order in memory; each is a shard.
    pub buckets: usize,
    /// Whether the rows of special tokens were left out.
    pub skip_special: bool,
}

/// The files of some consecutive tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shard {
    pub index: usize,
    /// The first row of a shuffled run, where it is not the token's number; see [`Shuffled`].
    pub first_token_idx: u64,
    pub n_tokens: u64,
    /// The first document whose first token lies in this shard.
    #[serde(default)]
    pub first_doc_id: u64,
    #[serde(default)]
    pub n_documents: u64,
    /// By the path within the run.
    pub files: BTreeMap<String, FileEntry>,
}

/// How long a file is, and its checksum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
    /// In the journal only: where row groups end, so that `verify` can name the first bad one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub row_groups: Vec<RowGroupMark>,
}

/// The checksum of a file from its beginning up to the end of a row group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowGroupMark {
    pub end: u64,
    pub sha256: String,
}

/// What went in and what became of it: `tokens_expected = tokens_captured + Σ tokens_skipped`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub documents: u64,
    pub tokens_expected: u64,
    pub tokens_captured: u64,
    /// By reason.
    #[serde(default)]
    pub tokens_skipped: BTreeMap<String, u64>,
}

/// `journal/shard-00000.json`: the shard is durable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// That of the manifest.
    pub version: u32,
    #[serde(flatten)]
    pub shard: Shard,
    /// Of this shard alone.
    pub counts: Counts,
    /// Where in the corpus the next shard begins; only the recorder reads it.
    pub cursor: Value,
    /// By the name of the hook point.
    pub statistics: BTreeMap<String, ShardStatistics>,
}

impl Manifest {
    /// A manifest of a run that is about to be recorded; fill in the rest of the fields that apply.
    pub fn new(model: Model, corpus: Corpus, hook_points: Vec<HookPointEntry>) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: ORDERED,
            complete: false,
            created_by: String::new(),
            created_at: String::new(),
            model,
            tokenizer: None,
            corpus,
            hook_points,
            routing: None,
            shuffled: None,
            shards: Vec::new(),
            files: BTreeMap::new(),
            counts: Counts::default(),
            statistics: BTreeMap::new(),
            seeds: BTreeMap::new(),
            command: Vec::new(),
        }
    }

    /// The same, made by someone else.
    #[must_use]
    pub fn made_by(self, provenance: Provenance) -> Self {
        let Provenance { created_by, created_at, command } = provenance;
        Self { created_by, created_at, command, ..self }
    }

    /// The manifest of a run that is about to be written with the rows of this one at some of its hook points, shuffled.
    pub(crate) fn shuffled(&self, hook_points: Vec<HookPointEntry>, shuffled: Shuffled) -> Self {
        Self {
            version: SHUFFLED,
            complete: false,
            hook_points,
            routing: None,
            seeds: self
                .seeds
                .iter()
                .map(|(name, &seed)| (name.clone(), seed))
                .chain([("shuffle".to_owned(), shuffled.seed)])
                .collect(),
            shuffled: Some(shuffled),
            shards: Vec::new(),
            counts: Counts::default(),
            statistics: BTreeMap::new(),
            ..self.clone()
        }
    }

    /// Reads the manifest of a run, refusing what a newer version wrote. A store is asked anew what it holds.
    pub fn read(place: impl Into<Place>) -> Result<Self> {
        let place = place.into();
        place.refresh()?;
        if !place.has(FILE)? {
            return Err(Error::NotARun { path: place.shown().to_owned() });
        }
        let path = place.file(FILE)?;
        // The version comes before the rest: a newer manifest need not have the fields that we know.
        let value: Value = files::read_json(&path)?;
        match value.get("format").and_then(Value::as_str) {
            Some(FORMAT) => {}
            other => {
                let found = other.unwrap_or("nothing").to_owned();
                return Err(Error::ForeignFormat { expected: FORMAT, found, path });
            }
        }
        check_version(&value, &path)?;
        let mut manifest: Self = serde_json::from_value(value).map_err(|cause| Error::json(&path, cause))?;
        manifest.check(&path)?;
        Ok(manifest)
    }

    /// Writes the manifest of a run, in place of an older one.
    pub(crate) fn write(&self, place: &Place) -> Result<()> {
        place.write(FILE, &sums::json(&Self::path(place), self)?)
    }

    /// Writes the manifest of a run where none is. Returns whether it did: another process may have put the same.
    pub(crate) fn create(&self, place: &Place) -> Result<bool> {
        place.create(FILE, &sums::json(&Self::path(place), self)?)
    }

    /// For messages.
    pub(crate) fn path(place: &Place) -> PathBuf {
        place.shown().join(FILE)
    }

    /// Fills in what may be left out, and checks what the rest of the crate relies on.
    fn check(&mut self, path: &Path) -> Result<()> {
        for entry in &mut self.hook_points {
            if entry.shape.is_empty() {
                entry.shape = vec![entry.width];
            }
            let product = entry.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
            if entry.width == 0 || product != Some(entry.width) {
                let cause = format!("`{}` has width {} and shape {:?}", entry.name, entry.width, entry.shape);
                return Err(Error::json(path, cause));
            }
        }
        self.check_routing(path)?;
        if self.shuffled.is_some() != (self.version >= SHUFFLED) {
            let cause = format!("version {SHUFFLED} and `shuffled` go together, found version {}", self.version);
            return Err(Error::json(path, cause));
        }
        for file in self.files.keys() {
            files::join_within(Path::new(""), file)?;
        }
        sort_and_check_shards(&mut self.shards, |shard| shard, path)
    }

    pub(crate) fn check_routing(&self, path: &Path) -> Result<()> {
        let Some(Routing { n_experts, top_k, layers, .. }) = &self.routing else { return Ok(()) };
        // Experts are numbered in 16 bits.
        let counts = (1..=1 << 16).contains(n_experts) && (1..=*n_experts).contains(top_k);
        let rising = layers.is_sorted_by(|a, b| a < b);
        let exist = layers.last().is_none_or(|&last| last < self.model.shape.n_layers);
        if counts && rising && exist {
            return Ok(());
        }
        let cause = format!("`routing` has {n_experts} experts, {top_k} of them a token, in the layers {layers:?}");
        Err(Error::json(path, cause))
    }

    /// The folders in which every shard has a file, within the run.
    pub(crate) fn folders(&self) -> Vec<String> {
        let fixed = ["tokens", "documents"].map(str::to_owned);
        let acts = self.hook_points.iter().map(HookPointEntry::folder);
        let routing = self.routing_layers().iter().map(|&layer| Routing::folder(layer));
        fixed.into_iter().chain(acts).chain(routing).collect()
    }

    /// The layers whose choices of experts are recorded.
    pub fn routing_layers(&self) -> &[usize] {
        self.routing.as_ref().map_or(&[], |routing| &routing.layers)
    }
}

impl Routing {
    /// The folder of the shards of a layer, within the run.
    pub fn folder(layer: usize) -> String {
        format!("routing/layer={layer}")
    }

    /// Bytes of one row, as numbers.
    pub const fn row_bytes(&self) -> usize {
        let choice = size_of::<u16>() + 2 * size_of::<f32>();
        let logits = if self.router_logits { self.n_experts * size_of::<f32>() } else { 0 };
        self.top_k * choice + 3 * size_of::<f32>() + logits
    }
}

impl Model {
    /// A model of this name and shape; fill in the rest of the fields that apply.
    pub fn new(id: impl Into<String>, shape: ModelShape) -> Self {
        Self {
            id: id.into(),
            architecture: String::new(),
            source: String::new(),
            sha256: BTreeMap::new(),
            dtype: String::new(),
            quantization: None,
            n_params: 0,
            n_params_effective: 0,
            ple: None,
            shape,
        }
    }
}

impl HookPointEntry {
    /// The entry of a hook point of a model; an error where it has no value per token.
    pub fn new(name: HookPoint, model: &ModelShape, dtype: Dtype) -> Result<Self> {
        let shape = name.shape(model).ok_or_else(|| Error::NotPerToken { name: name.to_string() })?;
        Ok(Self { name, width: shape.iter().product(), dtype, shape })
    }

    /// Bytes of one row of the column `act`.
    pub const fn row_bytes(&self) -> usize {
        self.width * self.dtype.size()
    }

    /// The folder of its shards, within the run.
    pub fn folder(&self) -> String {
        format!("acts/hook_point={}", self.name)
    }
}

impl Shard {
    /// The tokens of this shard.
    pub const fn tokens(&self) -> std::ops::Range<u64> {
        self.first_token_idx..self.first_token_idx + self.n_tokens
    }

    /// The name of this shard's file in every folder.
    pub fn file_name(&self) -> String {
        shard_file_name(self.index)
    }
}

impl Counts {
    /// Counts of a shard from which nothing was skipped.
    pub fn captured(documents: u64, tokens: u64) -> Self {
        Self { documents, tokens_expected: tokens, tokens_captured: tokens, tokens_skipped: BTreeMap::new() }
    }

    /// Counts that `tokens` were expected and skipped for this reason.
    pub fn skip(&mut self, reason: impl Into<String>, tokens: u64) {
        self.tokens_expected += tokens;
        *self.tokens_skipped.entry(reason.into()).or_default() += tokens;
    }

    /// Adds the counts of other tokens.
    pub fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.tokens_expected += other.tokens_expected;
        self.tokens_captured += other.tokens_captured;
        for (reason, tokens) in &other.tokens_skipped {
            *self.tokens_skipped.entry(reason.clone()).or_default() += tokens;
        }
    }

    /// Checks that no token was lost silently.
    pub fn check(&self, path: &Path) -> Result<()> {
        let skipped = self.tokens_skipped.values().sum::<u64>();
        if self.tokens_expected == self.tokens_captured + skipped {
            Ok(())
        } else {
            Err(Error::LostTokens {
                expected: self.tokens_expected,
                captured: self.tokens_captured,
                skipped,
                path: path.to_owned(),
            })
        }
    }
}

/// `shard-00000.parquet`
pub(crate) fn shard_file_name(index: usize) -> String {
    format!("shard-{index:05}.parquet")
}

/// `journal/shard-00000.json`
pub(crate) fn journal_file(index: usize) -> String {
    format!("journal/{}", journal_name(index))
}

/// `shard-00000.json`
pub(crate) fn journal_name(index: usize) -> String {
    format!("shard-{index:05}.json")
}

/// The number of the shard that a file, also one with a temporary name, belongs to.
pub(crate) fn shard_of(path: &Path) -> Option<usize> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_prefix('.').unwrap_or(name).strip_prefix("shard-")?.split('.').next()?;
    digits.parse().ok()
}

/// Reads every journal entry of a run, in the order of the tokens.
pub(crate) fn read_journal(place: &Place) -> Result<Vec<JournalEntry>> {
    read_journal_of(place, |_| true)
}

/// Reads the journal entries of some shards, in the order of the tokens.
pub(crate) fn read_journal_of(place: &Place, wanted: impl Fn(usize) -> bool) -> Result<Vec<JournalEntry>> {
    let mut entries = Vec::new();
    for name in place.names_in("journal", false)? {
        let unwanted = shard_of(Path::new(&name)).is_some_and(|shard| !wanted(shard));
        if unwanted || Path::new(&name).extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let path = place.file(&format!("journal/{name}"))?;
        let value: Value = files::read_json(&path)?;
        check_version(&value, &path)?;
        let entry: JournalEntry = serde_json::from_value(value).map_err(|cause| Error::json(&path, cause))?;
        if name != journal_name(entry.shard.index) {
            return Err(Error::json(&path, format!("this is the entry of shard {}", entry.shard.index)));
        }
        entries.push(entry);
    }
    sort_and_check_shards(&mut entries, |entry| &entry.shard, &place.shown().join("journal"))?;
    Ok(entries)
}

/// A complete manifest out of one that was begun and its journal.
pub(crate) fn merge(mut manifest: Manifest, journal: &[JournalEntry]) -> Result<Manifest> {
    manifest.counts = Counts::default();
    manifest.shards.clear();
    for entry in journal {
        manifest.counts.add(&entry.counts);
        let mut shard = entry.shard.clone();
        shard.files.values_mut().for_each(|file| file.row_groups.clear());
        manifest.shards.push(shard);
    }
    manifest.statistics.clear();
    for hook in &manifest.hook_points {
        let name = hook.name.to_string();
        let mut total = ShardStatistics::new(hook.width);
        for entry in journal {
            let part = entry.statistics.get(&name).filter(|part| part.sum.len() == hook.width);
            let part = part.ok_or_else(|| Error::Mismatch {
                what: format!("numbers in the statistics of `{name}` in shard {}", entry.shard.index),
                expected: hook.width as u64,
                found: entry.statistics.get(&name).map_or(0, |part| part.sum.len() as u64),
            })?;
            total.merge(part);
        }
        manifest.statistics.insert(name, statistics::finish(&total));
    }
    Ok(manifest)
}

fn check_version(value: &Value, path: &Path) -> Result<()> {
    match value.get("version").and_then(Value::as_u64) {
        Some(found) if found > u64::from(VERSION) => {
            Err(Error::NewerVersion { found, known: VERSION, path: path.to_owned() })
        }
        Some(1..) => Ok(()),
        _ => Err(Error::json(path, "`version` is missing")),
    }
}

/// Orders shards by their tokens, which must be dense from 0 and must not overlap.
fn sort_and_check_shards<T>(items: &mut [T], shard: impl Fn(&T) -> &Shard, path: &Path) -> Result<()> {
    items.sort_by_key(|item| (shard(item).first_token_idx, shard(item).index));
    let mut end = 0u64;
    for item in items.iter() {
        let shard = shard(item);
        if shard.first_token_idx < end {
            return Err(Error::json(path, format!("shard {} has tokens of the shard before it", shard.index)));
        }
        end = shard
            .first_token_idx
            .checked_add(shard.n_tokens)
            .ok_or_else(|| Error::json(path, format!("shard {} has too many tokens", shard.index)))?;
        for file in shard.files.keys() {
            files::join_within(Path::new(""), file)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> ModelShape {
        ModelShape {
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            d_model: 8,
            d_head: 2,
            d_mlp: 16,
            d_vocab: 32,
            n_ctx: 64,
            ..ModelShape::default()
        }
    }

    fn manifest() -> Manifest {
        let hook = HookPointEntry::new("blocks.1.attn.hook_z".parse().unwrap(), &shape(), Dtype::Bf16).unwrap();
        Manifest::new(Model::new("tiny", shape()), Corpus::default(), vec![hook])
    }

    #[test]
    fn the_manifest_has_the_documented_fields() {
        let value = serde_json::to_value(manifest()).unwrap();
        let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "format",
                "version",
                "complete",
                "created_by",
                "created_at",
                "model",
                "tokenizer",
                "corpus",
                "hook_points",
                "routing",
                "shards",
                "files",
                "counts",
                "statistics",
                "seeds",
                "command"
            ]
        );
        let hook = serde_json::json!({"name": "blocks.1.attn.hook_z", "width": 8, "dtype": "bf16", "shape": [4, 2]});
        assert_eq!(value["hook_points"][0], hook);
    }

    #[test]
    fn a_newer_or_foreign_manifest_is_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let check = |edit: &dyn Fn(&mut Value), expected: &str| {
            let mut value = serde_json::to_value(manifest()).unwrap();
            edit(&mut value);
            let path = dir.path().join(FILE);
            fs_err::write(&path, sums::json(&path, &value).unwrap()).unwrap();
            let error = Manifest::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("manifest.json"), "{error}");
        };
        check(&|v| v["version"] = 3.into(), "version 2 or older, found version 3");
        // A newer version may have dropped anything else.
        check(&|v| *v = serde_json::json!({"format": FORMAT, "version": 7}), "found version 7");
        check(&|v| v["format"] = "zarr".into(), "`polariscope-run`, found `zarr`");
        check(&|v| v["hook_points"][0]["width"] = 9.into(), "width 9");
        check(&|v| v["hook_points"][0]["name"] = "../../etc".into(), "no hook point is called");
        let routing = |layers: &[usize]| serde_json::json!({"n_experts": 4, "top_k": 2, "layers": layers});
        check(&|v| v["routing"] = routing(&[1, 0]), "in the layers [1, 0]");
        check(&|v| v["routing"] = routing(&[0, 2]), "in the layers [0, 2]");
        check(&|v| v["routing"] = serde_json::json!({"n_experts": 4, "top_k": 5, "layers": []}), "5 of them a token");
        check(&|v| v["model"] = Value::Null, "not the JSON that was expected");
        fs_err::write(dir.path().join(FILE), "{\"format\": ").unwrap();
        assert!(Manifest::read(dir.path()).unwrap_err().to_string().contains("not the JSON"));
        fs_err::remove_file(dir.path().join(FILE)).unwrap();
        assert!(matches!(Manifest::read(dir.path()), Err(Error::NotARun { .. })));
    }

    #[test]
    fn counts_that_do_not_add_up_are_an_error() {
        let mut counts = Counts::captured(1, 10);
        counts.skip("special", 3);
        assert_eq!(counts.tokens_expected, 13);
        counts.check(Path::new("run")).unwrap();
        counts.tokens_expected += 1;
        assert!(counts.check(Path::new("run")).unwrap_err().to_string().contains("expected 14 tokens, found 10"));
    }
}
