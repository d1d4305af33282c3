//! What does a coder see in a run? One pass over the shards of its hook point gives `features/<name>/`.
//!
//! Activations go to disk in token order as they are computed; `data` sorts them by feature with bounded memory; then each
//! feature is described from its own activations, and pairs of features that fire together are counted. Nothing here grows
//! with the number of activations: beside one block of rows and one block of features, there is a bit for every token and a
//! number for every document and every feature.

use std::{
    borrow::Cow,
    ops::{ControlFlow, Range},
    path::Path,
};

use data::{
    HookPoint, Run,
    features::{FeatureStats, FeatureTableInfo, FeatureTableWriter, PairOptions},
};

use crate::{
    coder::Coder,
    cosines::{self, Directions, Nearest},
    error::{Error, Result},
    matrix::Matrix,
    sae::{SparseCoder, encode_blocks, norm},
    sites::Sites,
    stats::{Describer, ExampleOptions, Places},
    workers::Workers,
};

/// Examples of the largest activations (SAEDashboard).
pub const TOP_EXAMPLES: usize = 20;
/// Intervals of equal width between 0 and the largest activation (SAEDashboard).
pub const INTERVALS: usize = 5;
/// Intervals of equally many activations (Delphi's test examples).
pub const QUANTILES: usize = 10;
/// Examples drawn from each interval and each quantile (SAEDashboard).
pub const EXAMPLES_PER_INTERVAL: usize = 5;
/// Tokens of a passage.
pub const CONTEXT: u32 = 64;
/// Tokens whose logits a feature raises most, and lowers most (SAEDashboard).
pub const LOGITS: usize = 10;
/// Nearest decoder rows.
pub const NEIGHBOURS: usize = 10;
/// Features that fire together with one.
pub const COACTIVATION: usize = 10;
/// Memory in which activations are sorted by feature, and pairs are counted.
pub const SORT_MEMORY: usize = 256 << 20;

/// Features that are described at a time.
const BLOCK_FEATURES: usize = 256;
/// Tokens whose flags are read at a time.
const BLOCK_TOKENS: u64 = 1 << 20;
/// Documents whose rows are read at a time.
const BLOCK_DOCUMENTS: u64 = 4096;

/// What directions in the residual stream do to the logits.
pub trait LogitLens {
    /// The width of a direction.
    fn d_model(&self) -> usize;

    /// For each of `directions` (`[n, d_model]`), the `top` token ids with the largest effect, descending, and with the
    /// smallest, ascending.
    fn logit_effects(&self, directions: &[f32], top: usize) -> Vec<LogitEffect>;
}

/// Token ids with the effect on their logit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitEffect {
    /// Descending.
    pub top: Vec<(u32, f32)>,
    /// Ascending.
    pub bottom: Vec<(u32, f32)>,
}

impl LogitLens for engine::gemma::model::Model {
    fn d_model(&self) -> usize {
        self.config().d_model
    }

    fn logit_effects(&self, directions: &[f32], top: usize) -> Vec<LogitEffect> {
        let effects = Self::logit_effects(self, directions, top).into_iter();
        effects.map(|effect| LogitEffect { top: effect.top, bottom: effect.bottom }).collect()
    }
}

/// What to write. The defaults are the constants of this module.
#[derive(Clone, Debug)]
pub struct EncodeOptions {
    /// Which hook point; `None` is the one that the coder was trained on.
    pub hook: Option<HookPoint>,
    /// The name under `features/`; `None` is the coder's folder name.
    pub name: Option<String>,
    /// Examples of the largest activations.
    pub top_examples: usize,
    /// Intervals of value.
    pub intervals: usize,
    /// Intervals of equally many activations.
    pub quantiles: usize,
    /// Examples from each interval and each quantile.
    pub per_interval: usize,
    /// Tokens of a passage.
    pub context: u32,
    /// Tokens raised and lowered most.
    pub logits: usize,
    /// Nearest decoder rows; 0 spares the product of the decoder with itself.
    pub neighbours: usize,
    /// Features that fire together with each; 0 spares the count of all pairs.
    pub coactivation: usize,
    /// Bytes in which activations are sorted by feature, and then pairs are counted.
    pub sort_memory: usize,
    /// Which examples are drawn from intervals and quantiles.
    pub seed: u64,
    /// Threads; 0 is one for every core.
    pub threads: usize,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self {
            hook: None,
            name: None,
            top_examples: TOP_EXAMPLES,
            intervals: INTERVALS,
            quantiles: QUANTILES,
            per_interval: EXAMPLES_PER_INTERVAL,
            context: CONTEXT,
            logits: LOGITS,
            neighbours: NEIGHBOURS,
            coactivation: COACTIVATION,
            sort_memory: SORT_MEMORY,
            seed: 0,
            threads: 0,
        }
    }
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodePhase {
    /// Tokens are encoded.
    Encode,
    /// Activations are sorted by feature.
    Sort,
    /// Features are described.
    Describe,
    /// Pairs of features that fire together are counted.
    Pair,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeProgress {
    /// What is being done.
    pub phase: EncodePhase,
    /// Tokens, activations or features done; tokens are read several times while pairs of a wide coder are counted.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Activations found so far.
    pub n_acts: u64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodeSummary {
    /// The name under `features/`.
    pub name: String,
    /// Tokens encoded.
    pub n_tokens: u64,
    /// Of those, special ones.
    pub n_special: u64,
    /// Tokens with a value that is not finite: no feature fires there.
    pub not_finite: u64,
    /// Activations written.
    pub n_acts: u64,
    /// Latents that fire for a token, special ones left out.
    pub l0: f64,
    /// Features that never fired, special tokens left out.
    pub dead_features: usize,
}

/// Encodes a hook point of a run with the coder in `sae_dir`, or several at once, and describes its features. Without a
/// `model`, or where the coder does not write into the residual stream, features have no logits; where it writes several sites,
/// they are those of [`Coder::stream_direction`].
///
/// When `progress` breaks, the result is [`Error::Interrupted`], and nothing stays behind.
pub fn encode(
    run: &Run,
    sae_dir: &Path,
    model: Option<&dyn LogitLens>,
    options: &EncodeOptions,
    progress: &mut dyn FnMut(&EncodeProgress) -> ControlFlow<()>,
) -> Result<EncodeSummary> {
    let coder = Coder::load(sae_dir)?;
    let sites = match (options.hook, coder.inputs_named()?) {
        (Some(hook), _) => vec![hook],
        (None, Some(hooks)) => hooks,
        (None, None) => {
            let what =
                "expected `metadata.hook_name`, found none\nhint: name the hook point with `--hook-point`".into();
            return Err(Error::Config { what, path: sae_dir.join("cfg.json") });
        }
    };
    let sites = Sites { inputs: sites, outputs: Vec::new() };
    sites.check_inputs(run, &*coder)?;
    let folder = || sae_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = options.name.clone().unwrap_or_else(folder);
    let workers = Workers::new(options.threads)?;
    let sae: &dyn SparseCoder = &*coder;
    let mut job = Job { run, sites: &sites, sae, workers: &workers, progress, n_acts: 0, not_finite: 0 };

    let places = places(run)?;
    let info = FeatureTableInfo {
        coder: folder(),
        hook_point: sites.inputs[0],
        groups: coder.groups(&sites.inputs),
        d_sae: sae.d_sae() as u32,
        n_tokens: run.n_tokens(),
        n_ordinary_tokens: places.n_regular(),
        notes: serde_json::Value::Null,
    };
    let mut writer = FeatureTableWriter::create(run, &name, info, options.sort_memory)?;
    let n_active = job.encode(&places, &mut writer)?;
    job.report(EncodePhase::Sort, 0, job.n_acts)?;
    let mut sorted = writer.sort()?;
    job.report(EncodePhase::Sort, job.n_acts, job.n_acts)?;

    let examples = ExampleOptions {
        top: options.top_examples,
        intervals: options.intervals,
        quantiles: options.quantiles,
        per_interval: options.per_interval,
        context: options.context.max(1),
        seed: options.seed,
    };
    // Where it does not lie in one piece, it is made for the neighbours alone.
    let decoder = sae.decoder().map(Cow::Borrowed).or_else(|| (options.neighbours > 0).then(|| sae.w_dec()));
    let one_site = matches!(&coder, Coder::Sae(sae) if !sae.transcoder);
    let sides = Sides::of(sae, decoder.as_deref(), one_site, &workers);
    let model = model.filter(|model| coder.writes_stream(model.d_model()) && options.logits > 0);
    let mut dead_features = 0;
    for first in (0..sae.d_sae()).step_by(BLOCK_FEATURES) {
        let features = first..(first + BLOCK_FEATURES).min(sae.d_sae());
        job.report(EncodePhase::Describe, first as u64, sae.d_sae() as u64)?;
        let describer = |feature: usize| Describer::new(feature as u32, n_active[feature], &places, examples);
        let mut described: Vec<_> = features.clone().map(describer).collect();
        for rows in sorted.rows(first as u32..features.end as u32)? {
            let rows = rows?;
            let describer = &mut described[rows.feature as usize - first];
            for (&token_idx, &act) in rows.token_idx.iter().zip(&rows.act) {
                describer.add(token_idx, act);
            }
        }
        let mut stats = Vec::with_capacity(features.len());
        for described in described.into_iter().map(Describer::finish) {
            stats.push(described.stats);
            sorted.write_examples(&described.examples)?;
            sorted.write_groups(&described.groups)?;
        }
        sides.describe(features.clone(), options.neighbours, &mut stats, &workers);
        let effects = model.map(|model| {
            let directions: Vec<f32> = features.clone().flat_map(|feature| coder.stream_direction(feature)).collect();
            model.logit_effects(&directions, options.logits)
        });
        let effects = effects.unwrap_or_default();
        for (i, stats) in stats.iter_mut().enumerate() {
            if let Some(effect) = effects.get(i) {
                stats.top_logits.clone_from(&effect.top);
                stats.bottom_logits.clone_from(&effect.bottom);
            }
            dead_features += usize::from(stats.n_active == 0);
        }
        sorted.write_stats(&stats)?;
    }
    job.report(EncodePhase::Describe, sae.d_sae() as u64, sae.d_sae() as u64)?;
    if options.coactivation > 0 {
        let pairs = PairOptions { top: options.coactivation, memory: options.sort_memory, ..PairOptions::default() };
        let n_acts = job.n_acts;
        let pairs = sorted.write_coactivation(&|tokens| run.special(tokens), pairs, &mut |at| {
            (job.progress)(&EncodeProgress { phase: EncodePhase::Pair, done: at.done, total: at.total, n_acts })
        });
        pairs.map_err(
            |error| if matches!(error, data::Error::Interrupted) { Error::Interrupted } else { error.into() },
        )?;
    }
    let (n_acts, not_finite) = (job.n_acts, job.not_finite);
    sorted.finish()?;
    Ok(EncodeSummary {
        name,
        n_tokens: run.n_tokens(),
        n_special: run.n_tokens() - places.n_regular(),
        not_finite,
        n_acts,
        l0: n_active.iter().sum::<u64>() as f64 / places.n_regular().max(1) as f64,
        dead_features,
    })
}

struct Job<'a> {
    run: &'a Run,
    sites: &'a Sites,
    sae: &'a dyn SparseCoder,
    workers: &'a Workers,
    progress: &'a mut dyn FnMut(&EncodeProgress) -> ControlFlow<()>,
    n_acts: u64,
    not_finite: u64,
}

impl Job<'_> {
    fn report(&mut self, phase: EncodePhase, done: u64, total: u64) -> Result<()> {
        match (self.progress)(&EncodeProgress { phase, done, total, n_acts: self.n_acts }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    }

    /// Writes the activations of every token. Returns at how many tokens that are not special each feature is active.
    fn encode(&mut self, places: &Places, writer: &mut FeatureTableWriter) -> Result<Vec<u64>> {
        let width = self.sae.d_in();
        let mut n_active = vec![0; self.sae.d_sae()];
        let mut done = 0;
        let (mut token_idx, mut features, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for shard in 0..self.run.shards().len() {
            for rows in self.sites.shard(self.run, shard)? {
                let (mut token, mut rows) = rows?;
                self.report(EncodePhase::Encode, done, self.run.n_tokens())?;
                self.not_finite += silence_not_finite(&mut rows, width);
                for block in encode_blocks(self.sae, &rows, self.workers) {
                    for (latents, acts) in block.acts.iter() {
                        if !places.is_special(token) {
                            for &latent in latents {
                                n_active[latent as usize] += 1;
                            }
                        }
                        token_idx.extend(std::iter::repeat_n(token, latents.len()));
                        features.extend_from_slice(latents);
                        values.extend_from_slice(acts);
                        token += 1;
                    }
                }
                writer.write(&token_idx, &features, &values)?;
                self.n_acts += token_idx.len() as u64;
                done = token;
                token_idx.clear();
                features.clear();
                values.clear();
            }
        }
        self.report(EncodePhase::Encode, done, self.run.n_tokens())?;
        Ok(n_active)
    }
}

/// Where documents begin, and which tokens are special.
fn places(run: &Run) -> Result<Places> {
    let mut starts = Vec::new();
    let n = run.n_documents();
    for first in (0..n).step_by(BLOCK_DOCUMENTS as usize) {
        let documents = run.documents(first..(first + BLOCK_DOCUMENTS).min(n))?;
        starts.extend(documents.iter().map(|document| document.first_token_idx));
    }
    starts.sort_unstable();
    let mut places = Places::new(starts);
    for first in (0..run.n_tokens()).step_by(BLOCK_TOKENS as usize) {
        places.push(&run.special(first..(first + BLOCK_TOKENS).min(run.n_tokens()))?);
    }
    Ok(places)
}

/// Makes rows with a value that is not finite NaN throughout, so that no feature fires there. Returns how many.
fn silence_not_finite(rows: &mut [f32], width: usize) -> u64 {
    let mut n = 0;
    for row in rows.chunks_exact_mut(width) {
        if row.iter().any(|x| !x.is_finite()) {
            row.fill(f32::NAN);
            n += 1;
        }
    }
    n
}

/// What latents write and what they read.
struct Sides<'a> {
    written: Option<Directions<'a>>,
    /// Norms of what is written.
    norms: Vec<f32>,
    /// Matching pursuit reads what it writes.
    read: Option<Directions<'a>>,
    /// The cosine of both, where they are of one space.
    aligned: Vec<Option<f32>>,
}

impl<'a> Sides<'a> {
    /// `one_site`: whether the coder writes what it reads.
    fn of(coder: &'a dyn SparseCoder, decoder: Option<&'a Matrix>, one_site: bool, workers: &Workers) -> Self {
        let (written, read) = (decoder.map(Directions::written), coder.w_enc().map(Directions::read));
        let aligned = match (&read, &written) {
            (Some(read), Some(written)) if one_site => cosines::between(read, written, workers),
            _ => vec![None; coder.d_sae()],
        };
        let norms = match &written {
            Some(written) => written.norms().to_vec(),
            None => (0..coder.d_sae()).map(|latent| norm(&coder.decoder_row(latent))).collect(),
        };
        Self { written, norms, read, aligned }
    }

    /// Norms, cosines, and the `n` others of each feature with the largest positive cosine between decoder rows, descending.
    fn describe(&self, features: Range<usize>, n: usize, stats: &mut [FeatureStats], workers: &Workers) {
        if let Some(written) = self.written.as_ref().filter(|_| n > 0) {
            let chosen: Vec<usize> = features.clone().collect();
            let nearest = written.cosines(&chosen, &Nearest::new(n), Nearest::see, workers);
            for (stats, nearest) in stats.iter_mut().zip(nearest) {
                stats.neighbours = nearest.into_pairs();
            }
        }
        for (stats, feature) in stats.iter_mut().zip(features) {
            stats.decoder_norm = self.norms[feature];
            stats.encoder_norm = self.read.as_ref().map(|read| read.norms()[feature]);
            stats.encoder_decoder_cosine = self.aligned[feature];
        }
    }
}

#[cfg(test)]
mod tests;
