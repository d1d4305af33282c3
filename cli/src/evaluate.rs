//! `polariscope evaluate`: how good is a coder on the activations of a run?

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use data::{Dtype, HookPoint, Run};
use engine::device;
use engine::gemma::model::Model;
use engine::weights::Weights;
use scope::metrics::geometry::EncoderGeometry;
use scope::metrics::probe::ablation::MIN_COST;
use scope::metrics::probe::absorption::MIN_F1;
use scope::metrics::probe::{ProbeOptions, Probing};
use scope::metrics::recovered::{self, Predictions, Recovered, RecoveredOptions};
use scope::metrics::{EvaluateOptions, Evaluation};
use scope::{Coder, SelfTest, Sites};
use serde_json::{Value, json};

use crate::compute::Compute;
use crate::failure::{Interrupted, unless_interrupted};
use crate::import::{self, selftest, verdict};
use crate::invocation::Invocation;
use crate::location::Location;
use crate::{catalog, interrupt, output, progress, report};

/// Measures coders on the activations of a run
///
/// All metrics are measured on the rows as they are stored, special tokens left out. `storage_explained_variance` says how
/// much of the variance of the rows as the model computed them is left in those: 1 unless `record --store-dtype` rounded
/// them. A transcoder is measured on what it speaks of, which the run must hold beside what it reads.
///
/// Beside each coder stands what dictionaries reach that learnt nothing. `--model` puts coders into the model and measures
/// what becomes of its predictions; `--probe` asks what latents know of tokens and documents. `--report` writes everything
/// into one page, and probes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  polariscope evaluate runs/news --sae runs/news/saes/resid-9\n  \
                        polariscope evaluate runs/news --sae runs/news/saes/resid-3 --sae runs/news/saes/resid-9 \\\n      \
                        --model gemma-3-270m --report report.html")]
pub(crate) struct Evaluate {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// The coder's folder, or its URL; several give a table by layer
    #[arg(long, value_name = "SAE", required = true)]
    sae: Vec<Location>,

    /// The hook point to measure on [default: the one that the coder was trained on]
    #[arg(long, value_name = "NAME")]
    hook_point: Option<String>,

    /// The hook point that a transcoder speaks of [default: the one that it was trained on]
    #[arg(long, value_name = "NAME")]
    hook_point_out: Option<String>,

    /// At most so many tokens, drawn by the seed [default: all]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,

    /// Which tokens, if not all; and what is random in baselines and probes
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Compare with the coder's label, and try other hook points, scales and biases where it does not fit
    #[arg(long)]
    check: bool,

    /// The model that was recorded, to measure what becomes of its predictions
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// Tokens that go through the model again, once for each thing that stands in for the activation
    #[arg(long, value_name = "N", default_value_t = recovered::TOKENS)]
    model_tokens: u64,

    /// Fit probes for what token texts show, and for the sources and `meta` of documents
    #[arg(long)]
    probe: bool,

    /// Write one HTML page with tables and plots of all this
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    #[command(flatten)]
    compute: Compute,

    /// Print the metrics as one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Evaluate {
    pub(crate) fn run(self, invocation: &Invocation) -> Result<()> {
        interrupt::watch();
        let run = self.run.run()?;
        if self.sae.len() > 1 && (self.hook_point.is_some() || self.hook_point_out.is_some()) {
            bail!("expected one `--sae` beside a hook point, found {}\nhint: evaluate it by itself", self.sae.len());
        }
        let model = match &self.model {
            Some(name) => {
                let weights = Weights::open(catalog::resolve(name)?)?;
                let options = self.compute.open(weights.config())?;
                device::set_threads(self.compute.threads);
                Some(Model::from_weights(&weights, options)?)
            }
            None => None,
        };
        let mut coders = Vec::new();
        for location in &self.sae {
            coders.push(self.one(&run, location, model.as_ref())?);
        }
        if let Some(path) = &self.report {
            let page = report::page(&run, &coders, &invocation.provenance(), &invocation.again());
            fs_err::write(path, page)?;
            output::note(&format!("report in `{}`", path.display()));
        }
        if self.json {
            let mut values: Vec<Value> = coders.iter().map(Found::value).collect::<Result<_>>()?;
            let value = if values.len() == 1 { values.swap_remove(0) } else { json!({ "coders": values }) };
            return output::json(&value);
        }
        match &coders[..] {
            [one] => output::text(&one.words()),
            several => output::text(&by_layer(several)),
        }
    }

    fn one(&self, run: &Run, location: &Location, model: Option<&Model>) -> Result<Found> {
        let coder = Coder::load(location.coder()?)?;
        let sites = self.sites(&coder, location)?;
        let name = name(location);
        let options = EvaluateOptions {
            max_tokens: self.max_tokens,
            seed: self.seed,
            threads: self.compute.threads,
            ..EvaluateOptions::default()
        };
        let tokens = self.max_tokens.unwrap_or(run.n_tokens()).min(run.n_tokens());
        let bar = progress::tokens(tokens, "evaluating");
        let (evaluation, references) = scope::metrics::measure(run, &sites, &*coder, &options, &mut |tokens| {
            bar.set_position(tokens);
            interrupt::flow()
        })?;
        bar.finish_and_clear();
        if interrupt::pressed() {
            return Err(Interrupted { resume: None }.into());
        }
        let recovered = match model {
            Some(_) if !coder.is_online() => {
                output::note(&format!("{name} is not put into the model: {}", scope::Error::NotOnline));
                None
            }
            Some(model) => {
                let bar = progress::tokens(self.model_tokens.min(run.n_tokens()), "through the model");
                let options =
                    RecoveredOptions { tokens: self.model_tokens, seed: self.seed, ..RecoveredOptions::default() };
                let found = recovered::recovered(run, &sites, &*coder, &references, model, &options, &mut |tokens| {
                    bar.set_position(tokens);
                    interrupt::flow()
                });
                bar.finish_and_clear();
                Some(unless_interrupted(found, None)?)
            }
            None => None,
        };
        let probing =
            if self.probe || self.report.is_some() { self.probing(run, &sites, &coder, &references)? } else { None };
        let check = match &coder {
            Coder::Sae(sae) if self.check => Some(selftest(run, sae, self.compute.threads)?),
            Coder::Crosscoder(_) if self.check => {
                output::note(
                    "no check: of a coder between several hook points nothing but what its files say is tried",
                );
                None
            }
            _ => None,
        };
        let storage = Storage::of(run, sites.outputs[0])?;
        Ok(Found { name, coder, sites, evaluation, recovered, probing, storage, check })
    }

    fn probing(
        &self,
        run: &Run,
        sites: &Sites,
        coder: &Coder,
        references: &scope::metrics::baselines::References,
    ) -> Result<Option<Probing>> {
        if run.shuffled().is_some() && !self.probe {
            output::note("no probes: a shuffled run does not say which tokens stand together");
            return Ok(None);
        }
        let options = ProbeOptions { seed: self.seed, threads: self.compute.threads, ..ProbeOptions::default() };
        let bar = progress::steps(0, "probing");
        let found = scope::metrics::probe::probe(run, sites, &**coder, references, &options, &mut |tokens| {
            bar.set_position(tokens);
            interrupt::flow()
        });
        bar.finish_and_clear();
        unless_interrupted(found, None).map(Some)
    }

    fn sites(&self, coder: &Coder, location: &Location) -> Result<Sites> {
        let unsaid = |flag: &str| format!("`{location}` does not say its hook point\nhint: name it with `{flag}`");
        let sae = match coder {
            Coder::Sae(sae) => sae,
            Coder::Crosscoder(_) if self.hook_point.is_some() || self.hook_point_out.is_some() => {
                bail!("expected no hook point beside a coder between several, which names its own");
            }
            Coder::Crosscoder(_) => {
                return coder.sites()?.with_context(|| format!("`{location}` does not name its hook points"));
            }
        };
        let input = self.hook_point.as_deref().or_else(|| sae.hook_name()).with_context(|| unsaid("--hook-point"))?;
        let input: HookPoint = input.parse()?;
        let output = match (self.hook_point_out.as_deref(), sae.transcoder) {
            (Some(name), _) => name.parse()?,
            (None, false) => input,
            (None, true) => sae.hook_name_out().with_context(|| unsaid("--hook-point-out"))?.parse()?,
        };
        Ok([input, output].into())
    }
}

/// Hook points in a few words.
pub(crate) fn shown(hooks: &[HookPoint]) -> String {
    match hooks {
        [one] => one.to_string(),
        [first, .., last] => format!("{first} … {last} ({})", hooks.len()),
        [] => String::new(),
    }
}

/// The name of the coder's folder.
fn name(location: &Location) -> String {
    let shown = location.to_string();
    shown.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

/// What was found of a coder.
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) coder: Coder,
    pub(crate) sites: Sites,
    pub(crate) evaluation: Evaluation,
    pub(crate) recovered: Option<Recovered>,
    pub(crate) probing: Option<Probing>,
    pub(crate) storage: Storage,
    check: Option<SelfTest>,
}

/// What the coder cannot see: how the rows differ from what the model computed.
pub(crate) struct Storage {
    pub(crate) dtype: Dtype,
    /// `None` where an older recorder did not sum it up.
    pub(crate) explained_variance: Option<f64>,
}

impl Storage {
    fn of(run: &Run, hook: HookPoint) -> Result<Self> {
        let explained_variance = run.statistics(hook)?.storage_explained_variance();
        Ok(Self { dtype: run.hook_point(hook)?.dtype, explained_variance })
    }
}

impl Found {
    fn value(&self) -> Result<Value> {
        let mut value = serde_json::to_value(&self.evaluation)?;
        value["sae"] = json!(self.name);
        value["architecture"] = json!(self.coder.architecture());
        value["d_in"] = json!(self.coder.d_in());
        value["d_out"] = json!(self.coder.d_out());
        value["d_sae"] = json!(self.coder.d_sae());
        value["hook_name"] = json!(self.sites.inputs[0]);
        value["hook_name_out"] = json!(self.sites.outputs[0]);
        if self.evaluation.sites.len() > 1 {
            value["hook_names"] = json!(self.sites.inputs);
            value["hook_names_out"] = json!(self.sites.outputs);
        }
        value["store_dtype"] = json!(self.storage.dtype);
        value["storage_explained_variance"] = json!(self.storage.explained_variance);
        if let Some(recovered) = &self.recovered {
            value["recovered"] = serde_json::to_value(recovered)?;
        }
        if let Some(probing) = &self.probing {
            value["probing"] = serde_json::to_value(probing)?;
        }
        if let (Some(check), Coder::Sae(sae)) = (&self.check, &self.coder) {
            value["check"] = import::value(check, sae);
        }
        Ok(value)
    }

    fn words(&self) -> String {
        let mut parts = vec![self.core(), self.beside()];
        if !self.evaluation.sites.is_empty() {
            parts.insert(1, self.by_site());
        }
        parts.extend(self.recovered.as_ref().map(|recovered| predictions(&recovered.all)));
        parts.extend(self.recovered.as_ref().map(by_position));
        parts.extend(self.probing.as_ref().map(probes));
        if let (Some(check), Coder::Sae(sae)) = (&self.check, &self.coder) {
            parts.push(verdict(check, sae));
        }
        parts.join("\n")
    }

    fn core(&self) -> String {
        let metrics = &self.evaluation.metrics;
        let stored = self.storage.explained_variance;
        let stored = stored.map_or_else(|| "unknown".to_owned(), |variance| format!("{variance:.6}"));
        let four = |value: f64| format!("{value:.4}");
        let length = &self.evaluation.description_length;
        let of_encoder = |of: fn(&EncoderGeometry) -> Option<f64>| {
            self.evaluation.encoder.as_ref().and_then(of).map_or_else(|| "–".to_owned(), four)
        };
        let mut rows = vec![
            ("tokens", output::count(metrics.n_tokens)),
            ("l0", format!("{:.2}", metrics.l0)),
            ("l1", four(metrics.l1)),
            ("mse", four(metrics.mse)),
            ("explained_variance", four(metrics.explained_variance)),
            ("fvu", four(metrics.fvu)),
            ("cosine", four(metrics.cosine)),
            ("l2_ratio", four(metrics.l2_ratio)),
            ("relative_reconstruction_bias", four(metrics.relative_reconstruction_bias)),
            ("dead_features", output::count(metrics.dead_features as u64)),
            ("dead_fraction", four(metrics.dead_fraction)),
            ("above_1_percent", four(metrics.above_1_percent)),
            ("above_10_percent", four(metrics.above_10_percent)),
            ("mean_max_cosine", four(self.evaluation.decoder.mean_max_cosine)),
            ("encoder_norm", of_encoder(|encoder| Some(encoder.mean_norm))),
            ("encoder_mean_max_cosine", of_encoder(|encoder| Some(encoder.neighbours.mean_max_cosine))),
            ("encoder_decoder_cosine", of_encoder(|encoder| Some(encoder.decoder_cosine.as_ref()?.mean))),
            ("description_length", format!("{:.1} bits", length.bits)),
            ("store_dtype", self.storage.dtype.to_string()),
            ("storage_explained_variance", stored),
        ];
        if metrics.not_finite > 0 {
            rows.insert(1, ("not_finite", output::count(metrics.not_finite)));
        }
        let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        output::table(&rows, &[1])
    }

    /// Each hook point that is written, where there are several.
    fn by_site(&self) -> String {
        let mut rows = vec![["hook point", "explained_variance", "mse", "cosine"].map(str::to_owned).to_vec()];
        rows.extend(self.evaluation.sites.iter().map(|site| {
            let four = [site.explained_variance, site.mse, site.cosine].map(|value| format!("{value:.4}"));
            std::iter::once(site.hook_point.to_string()).chain(four).collect()
        }));
        output::table(&rows, &[1, 2, 3])
    }

    /// Dictionaries that learnt nothing.
    fn beside(&self) -> String {
        let metrics = &self.evaluation.metrics;
        let baselines = &self.evaluation.baselines;
        let mut rows = vec![["beside it", "l0", "explained_variance"].map(str::to_owned).to_vec()];
        let mut row = |name: &str, l0: f64, variance: f64| {
            rows.push(vec![name.to_owned(), format!("{l0:.2}"), format!("{variance:.4}")]);
        };
        row("coder, best scale and constant", metrics.l0, baselines.refitted_explained_variance);
        if let (Some(decoder), Some(dictionary)) = (&baselines.random_decoder, &baselines.random_dictionary) {
            row("random decoder", decoder.l0, decoder.explained_variance);
            row("random dictionary", dictionary.l0, dictionary.explained_variance);
        }
        let shuffled = &baselines.shuffled_activations;
        row("coder on shuffled activations", shuffled.l0, shuffled.explained_variance);
        row("principal components", baselines.pca.rank as f64, baselines.pca.explained_variance);
        output::table(&rows, &[1, 2])
    }
}

fn predictions(found: &Predictions) -> String {
    let head = ["in the model", "ce_loss", "delta_ce", "kl_div", "ce_loss_score", "kl_div_score", "against mean"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.push(vec!["as it is".to_owned(), format!("{:.4}", found.ce_loss)]);
    let mut row = |name: &str, replaced: &recovered::Replaced| {
        let numbers = [
            replaced.ce_loss,
            replaced.delta_ce,
            replaced.kl_div,
            replaced.ce_loss_score,
            replaced.kl_div_score,
            replaced.ce_loss_score_mean,
        ];
        rows.push(std::iter::once(name.to_owned()).chain(numbers.map(|number| format!("{number:.4}"))).collect());
    };
    row("coder", &found.coder);
    if let Some(random) = &found.random_dictionary {
        row("random dictionary", random);
    }
    if let Some(pca) = &found.pca {
        row("principal components", pca);
    }
    row("mean", &found.mean);
    row("zero", &found.zero);
    output::table(&rows, &[1, 2, 3, 4, 5, 6])
}

/// What the coder costs where there is little context, and where there is much.
fn by_position(found: &Recovered) -> String {
    let head = ["position", "predictions", "ce_loss", "delta_ce", "kl_div", "ce_loss_score", "kl_div of zero"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(found.positions.iter().map(|at| {
        let Predictions { n_predictions, ce_loss, coder, zero, .. } = &at.predictions;
        let numbers = [*ce_loss, coder.delta_ce, coder.kl_div, coder.ce_loss_score, zero.kl_div];
        let numbers = numbers.map(|number| format!("{number:.4}"));
        [positions(at.first, at.last), output::count(*n_predictions)].into_iter().chain(numbers).collect()
    }));
    output::table(&rows, &[1, 2, 3, 4, 5, 6])
}

/// `3`, or `4–5`.
pub(crate) fn positions(first: u64, last: u64) -> String {
    if first == last { first.to_string() } else { format!("{first}–{last}") }
}

fn probes(found: &Probing) -> String {
    let mut rows = vec![["probes", "accuracy", "f1", "auc"].map(str::to_owned).to_vec()];
    let mut row = |name: String, score: &scope::metrics::probe::score::Score| {
        let numbers = [score.accuracy, score.f1, score.auc].map(|number| format!("{number:.3}"));
        rows.push(std::iter::once(name).chain(numbers).collect());
    };
    let Some(mean) = &found.mean else { return "no label of the run has enough examples for a probe\n".to_owned() };
    row(format!("dense, {} concepts", found.concepts.len()), &mean.dense);
    for probe in &mean.coder {
        row(format!("{} latents", probe.k), &probe.score);
    }
    for probe in &mean.random_dictionary {
        row(format!("{} of the random dictionary", probe.k), &probe.score);
    }
    let mut text = output::table(&rows, &[1, 2, 3]);
    for tpp in &found.tpp {
        if let Some(best) = tpp.coder.iter().max_by(|a, b| a.tpp.total_cmp(&b.tpp)) {
            let _ = writeln!(text, "tpp of {}: {:.3} with {} latents", tpp.label, best.tpp, best.n);
        }
    }
    for missing in missing(found) {
        let _ = writeln!(text, "{missing}");
    }
    if let Some(absorption) = &found.absorption {
        let (full, fraction, n) = (absorption.full, absorption.fraction, absorption.letters.len());
        let _ = writeln!(text, "absorption of {n} first letters: {full:.3} full, {fraction:.3} in part");
    }
    text
}

/// What could not be asked, and why.
pub(crate) fn missing(found: &Probing) -> Vec<String> {
    let mut missing = Vec::new();
    if found.tpp.is_empty() {
        missing.push("no tpp: no label has three classes with enough examples".to_owned());
    }
    if found.scr.iter().all(|scr| scr.coder.is_empty()) {
        missing.push(if found.scr.is_empty() {
            "no scr: no two labels of two classes each have enough examples of all four combinations".to_owned()
        } else {
            format!("no scr: no correlation of labels costs a probe more than {MIN_COST} of its accuracy")
        });
    }
    if found.absorption.is_none() {
        missing
            .push(format!("no absorption: no letter has a probe with F1 of {MIN_F1} or more where the coder writes"));
    }
    missing
}

/// One line for each coder.
fn by_layer(coders: &[Found]) -> String {
    let (head, rows) = summary(coders);
    let rows: Vec<Vec<String>> =
        std::iter::once(head.iter().map(|&name| name.to_owned()).collect()).chain(rows).collect();
    output::table(&rows, &(2..head.len()).collect::<Vec<_>>())
}

/// The columns of a table of coders, and a row for each.
pub(crate) fn summary(coders: &[Found]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let mut head = vec!["coder", "hook point", "latents", "L0", "EV", "EV random", "EV PCA", "dead"];
    let (model, probed) =
        (coders.iter().any(|coder| coder.recovered.is_some()), coders.iter().any(|coder| coder.probing.is_some()));
    if model {
        head.extend(["ΔCE", "CE score", "KL score"]);
    }
    if probed {
        head.extend(["AUC k=1", "AUC k=5", "AUC dense"]);
    }
    let rows = coders.iter().map(|coder| {
        let (metrics, baselines) = (&coder.evaluation.metrics, &coder.evaluation.baselines);
        let three = |value: f64| format!("{value:.3}");
        let missing = || "–".to_owned();
        let random = baselines.random_dictionary.as_ref().map(|random| random.explained_variance);
        let mut row = vec![
            coder.name.clone(),
            shown(&coder.sites.outputs),
            output::count(coder.coder.d_sae() as u64),
            format!("{:.1}", metrics.l0),
            three(metrics.explained_variance),
            random.map_or_else(missing, three),
            three(baselines.pca.explained_variance),
            three(metrics.dead_fraction),
        ];
        if model {
            let found = coder.recovered.as_ref().map(|found| &found.all.coder);
            let numbers = found.map(|found| [found.delta_ce, found.ce_loss_score, found.kl_div_score]);
            row.extend(numbers.map_or_else(|| [(); 3].map(|()| missing()), |numbers| numbers.map(three)));
        }
        if probed {
            let mean = coder.probing.as_ref().and_then(|probing| probing.mean.as_ref());
            let of_k = |k: usize| mean.and_then(|mean| mean.coder.iter().find(|probe| probe.k == k));
            let numbers = [of_k(1), of_k(5)].map(|probe| probe.map(|probe| probe.score.auc));
            row.extend(numbers.map(|auc| auc.map_or_else(missing, three)));
            row.push(mean.map_or_else(missing, |mean| three(mean.dense.auc)));
        }
        row
    });
    (head, rows.collect())
}
