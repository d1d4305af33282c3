//! `polariscope join`: which features go together with an expert, a gate, a kind of token, a language, another coder?

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use data::features::{FeaturePair, FeatureTable, PairOptions, PairRank, correlate};
use data::join::{self, JoinOptions, JoinReport, JoinRow, With};
use fs_err as fs;
use serde_json::{Value, json};

use crate::bytes::Bytes;
use crate::location::Location;
use crate::output::{self, count, table};
use crate::{interrupt, progress};

/// What a feature table is joined with.
#[derive(Debug, Clone)]
enum Partner {
    Labels(With),
    /// Another feature table, by its name.
    Features(String),
}

/// Joins features with the choice of experts, gates, kinds of tokens, languages, or the features of another coder
///
/// The table is written into the run, under `features/SAE/joins/`, where `polariscope query` finds it; a short list goes to
/// standard output.
#[derive(Debug, Args)]
#[command(after_help = "\
WITH is one of
  experts       the experts that the router of each layer chose
  ple           the gates of per-layer embeddings that are open (`ple.hook_gate_pre` above 0)
  token-class   what the token is made of: letters, case, digits, punctuation, space, script, …
  language      of the document: `language` or `lang` of its `meta`, otherwise as its text reads
  source        of the document
  meta-KEY      what the `meta` of the document says under KEY
  features-SAE  another coder's features: the correlation of activations over all tokens

What the columns say (of T tokens, a feature is active at f, l have the label, b both):
  lift       b T / (f l): how many times as often as if they had nothing to do with each other
  bits       mutual information of active or not and labelled or not
  control    the same after the labels were shuffled: of tokens, or of whole documents
  threshold  the greatest control of the layer; what does not exceed it may be chance

Examples:
  polariscope join runs/news --sae runs/news/saes/resid-9 --with token-class
  polariscope join runs/mini --sae resid-4 --with experts --layer 3 --top 5
  polariscope join runs/news --sae resid-9 --with features-resid-12 --out pairs.parquet")]
pub(crate) struct Join {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// The coder's folder, or the name of its feature table
    #[arg(long, value_name = "SAE")]
    sae: PathBuf,

    /// What to join with, see below
    #[arg(long, value_name = "WITH", value_parser = partner)]
    with: Partner,

    /// The run of the other coder, over the same tokens, for `features-SAE` [default: the same run]
    #[arg(long, value_name = "RUN")]
    other_run: Option<Location>,

    /// These layers of the model only; may be given several times
    #[arg(long, value_name = "N")]
    layer: Vec<usize>,

    /// Features that are kept of each label, or of each feature of this coder
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,

    /// Judge what was seen at so many tokens at least
    #[arg(long, value_name = "N", default_value_t = 10)]
    min_count: u64,

    /// Count special tokens too
    #[arg(long)]
    special: bool,

    /// Seed of the shuffled control
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Memory for the counts, in bytes or as `512MB`; what does not fit takes more passes over the run
    #[arg(long, value_name = "BYTES", default_value_t = Bytes(join::MEMORY as u64))]
    memory: Bytes,

    /// Write the table to this file too; it must not exist
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Rows of the list on standard output
    #[arg(long, value_name = "N", default_value_t = 20)]
    show: usize,

    /// Print one JSON object with all rows on standard output
    #[arg(long)]
    json: bool,
}

fn partner(text: &str) -> Result<Partner> {
    match text.strip_prefix("features-").filter(|name| !name.is_empty()) {
        Some(name) => Ok(Partner::Features(name.to_owned())),
        None => text.parse().map(Partner::Labels).map_err(|_unknown: data::Error| {
            let names = With::NAMED.map(|with| format!("`{with}`")).join(", ");
            anyhow!("expected {names}, `meta-KEY` or `features-SAE`, found `{text}`")
        }),
    }
}

impl Join {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        if let Some(out) = self.out.as_ref().filter(|out| out.symlink_metadata().is_ok()) {
            bail!(
                "expected a file that does not exist yet, found `{}`\nhint: name another with `--out`",
                out.display()
            );
        }
        let run = self.run.run()?;
        let features = feature_table(&run, &self.sae)?;
        match &self.with {
            Partner::Labels(with) => self.labels(&features, with),
            Partner::Features(name) => {
                let other_run = self.other_run.as_ref().map_or(Ok(run.clone()), Location::run)?;
                self.features(&features, &other_run.feature_table(name)?)
            }
        }
    }

    fn labels(&self, features: &FeatureTable, with: &With) -> Result<()> {
        if self.other_run.is_some() {
            bail!("expected no `--other-run` with `{with}`\nhint: it says where `--with features-SAE` is");
        }
        let options = JoinOptions {
            with: with.clone(),
            layers: self.layer.clone(),
            top: self.top,
            min_count: self.min_count,
            special: self.special,
            seed: self.seed,
            memory: self.memory.in_memory(),
        };
        let bar = progress::tokens(features.run().n_tokens(), "counting");
        let report = progress::watch(&bar, |at| join::join(features, &options, at))?;
        features.write_join(&report)?;
        self.copy(features, &with.to_string())?;
        if self.json { output::json(&report) } else { output::text(&self.words(features, &report)) }
    }

    fn features(&self, features: &FeatureTable, other: &FeatureTable) -> Result<()> {
        if self.special || !self.layer.is_empty() {
            bail!("expected no `--layer` and no `--special` with another coder, whose special tokens are left out too");
        }
        let options = PairOptions {
            top: self.top,
            min_both: self.min_count,
            rank: PairRank::Pearson,
            memory: self.memory.in_memory(),
        };
        let bar = progress::tokens(features.run().n_tokens(), "counting pairs");
        let pairs = progress::watch(&bar, |at| correlate(features, other, &options, at))?;
        features.write_correlation(other, &pairs)?;
        self.copy(features, &format!("features-{}", other.name()))?;
        if self.json {
            let pairs: Vec<Value> = pairs.iter().map(pair_json).collect();
            return output::json(&json!({ "with": other.name(), "rows": pairs }));
        }
        let mut best: Vec<&FeaturePair> = pairs.iter().filter(|pair| pair.rank == 0).collect();
        best.sort_by(|a, b| b.pearson.total_cmp(&a.pearson).then(a.feature.cmp(&b.feature)));
        let mut rows = vec![["feature", "other", "both", "lift", "pearson", "cosine"].map(String::from).to_vec()];
        rows.extend(best.iter().take(self.show).map(|pair| {
            let numbers = [pair.lift, pair.pearson, pair.cosine].map(|number| format!("{number:.3}"));
            let counts = [pair.feature.to_string(), pair.other.to_string(), count(pair.n_both)];
            counts.into_iter().chain(numbers).collect()
        }));
        let found = format!(
            "{} of {} features of `{}` have a partner in `{}`\n",
            count(best.len() as u64),
            count(features.n_features().into()),
            features.name(),
            other.name()
        );
        output::text(&(found + &table(&rows, &[0, 1, 2, 3, 4, 5])))
    }

    /// Copies the table that was written to `--out`.
    fn copy(&self, features: &FeatureTable, name: &str) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        let mut from = fs::File::open(features.join_file(name)?)?;
        let mut to = data::files::NewFile::create(out)?;
        std::io::copy(&mut from, &mut to).with_context(|| format!("cannot write `{}`", out.display()))?;
        Ok(to.publish()?)
    }

    fn words(&self, features: &FeatureTable, report: &JoinReport) -> String {
        let info = &report.info;
        let left_out =
            if self.special { String::new() } else { format!("; {} special ones are left out", count(info.n_special)) };
        let mut text = format!(
            "features of `{}` with {}: {}\n{} tokens{left_out}\n\n",
            features.name(),
            info.with,
            info.labels,
            count(info.n_tokens)
        );
        let layers = report.layers.iter().any(|layer| layer.layer.is_some());
        let mut rows = vec![["layer", "features", "above threshold", "threshold"].map(String::from).to_vec()];
        rows.extend(report.layers.iter().map(|layer| {
            let name = layer.layer.map_or_else(|| "–".to_owned(), |layer| layer.to_string());
            vec![name, count(layer.n_features), count(layer.n_above), format!("{:.5}", layer.threshold)]
        }));
        text += &table(&rows, &[0, 1, 2, 3]);
        let mut best: Vec<&JoinRow> = report.rows.iter().filter(|row| row.mutual_information > row.threshold).collect();
        if best.is_empty() {
            return text + "\nno feature tells more of a label than of shuffled labels\n";
        }
        // A stable sort: what is equal stays in the order of layers and labels.
        best.sort_by(|a, b| b.mutual_information.total_cmp(&a.mutual_information));
        let label = if layers { info.with.to_string().trim_end_matches('s').to_owned() } else { "label".to_owned() };
        let head = ["layer", &label, "feature", "active", "labelled", "both", "lift", "bits", "control"];
        let mut rows = vec![head.map(String::from).to_vec()];
        rows.extend(best.iter().take(self.show).map(|row| {
            vec![
                row.layer.map_or_else(|| "–".to_owned(), |layer| layer.to_string()),
                row.label.clone(),
                row.feature.to_string(),
                count(row.n_feature),
                count(row.n_label),
                count(row.n_both),
                format!("{:.2}", row.lift),
                format!("{:.5}", row.mutual_information),
                format!("{:.5}", row.control),
            ]
        }));
        text + "\nwhat tells most, and what it tells of shuffled labels\n" + &table(&rows, &[0, 2, 3, 4, 5, 6, 7, 8])
    }
}

/// The feature table of a coder, by its folder or by the name of the table.
pub(crate) fn feature_table(run: &data::Run, sae: &std::path::Path) -> Result<FeatureTable> {
    let name = sae.file_name().unwrap_or(sae.as_os_str()).to_string_lossy();
    if run.feature_tables()?.is_empty() {
        let run = run.dir().display();
        bail!("no feature table is in `{run}`\nhint: `polariscope encode {run} --sae {}` writes one", sae.display());
    }
    Ok(run.feature_table(&name)?)
}

fn pair_json(pair: &FeaturePair) -> Value {
    json!({
        "feature": pair.feature, "rank": pair.rank, "other": pair.other, "n_both": pair.n_both, "lift": pair.lift,
        "jaccard": pair.jaccard, "phi": pair.phi, "pearson": pair.pearson, "cosine": pair.cosine,
    })
}
