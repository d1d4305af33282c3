//! How good is a coder on recorded activations? Definitions of `reference/sae.md` §5.1, in f64 over all tokens, special ones
//! left out; and beside them what dictionaries reach that learnt nothing.
//!
//! [`evaluate`] takes the sums of the coder alone, [`measure`] everything that one pass over stored activations gives,
//! [`mod@probe`] asks what latents know of labels, and [`mod@recovered`] what becomes of the model's predictions.

pub mod baselines;
pub mod description;
pub mod geometry;
pub mod groups;
pub mod pca;
pub mod probe;
pub mod recovered;
mod sums;

use std::ops::ControlFlow;

use data::{BatchOptions, HookPoint, Run};
use serde::Serialize;

pub use self::sums::{DENSITY_BINS, Metrics};
use self::{
    baselines::{BaselineSums, Baselines, References},
    description::{DescriptionLength, Sample},
    geometry::{EncoderGeometry, Geometry},
    groups::{Groups, PositionMetrics, SourceMetrics},
    sums::Sums,
};
use crate::{
    error::{Error, Result},
    sae::SparseCoder,
    sites::Sites,
    train::{BATCH, BUFFER},
    workers::Workers,
};

/// What to evaluate on.
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// At most so many tokens, drawn by `seed`; `None` takes all.
    pub max_tokens: Option<u64>,
    /// Tokens whose norm exceeds this multiple of the median are left out; `None` keeps all.
    pub max_norm_multiple: Option<f64>,
    /// Which tokens, if not all.
    pub seed: u64,
    /// Threads; 0 is one for every core.
    pub threads: usize,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self { max_tokens: None, max_norm_multiple: Some(crate::train::MAX_NORM_MULTIPLE), seed: 0, threads: 0 }
    }
}

/// All that one pass over stored activations says of a coder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// On all tokens.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// By position in the sequence; empty where the run is shuffled.
    pub positions: Vec<PositionMetrics>,
    /// Of each hook point that it writes, where there are several.
    pub sites: Vec<SiteMetrics>,
    /// By source, where there are between 2 and [`groups::MAX_SOURCES`]; empty where the run is shuffled.
    pub sources: Vec<SourceMetrics>,
    /// What dictionaries reach that learnt nothing.
    pub baselines: Baselines,
    /// Of the decoder's rows.
    pub decoder: Geometry,
    /// Of the encoder's columns; `None` where the coder encodes with its decoder.
    pub encoder: Option<EncoderGeometry>,
    /// How many bits tell the activations.
    pub description_length: DescriptionLength,
}

/// How a coder reconstructs one of several hook points.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SiteMetrics {
    /// Which.
    pub hook_point: HookPoint,
    /// E‖x − x̂‖², summed over the dimensions.
    pub mse: f64,
    /// 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²).
    pub explained_variance: f64,
    /// E[cos(x, x̂)].
    pub cosine: f64,
}

/// Measures a coder on a run, at the hook points that it reads and writes. Those of several sites count as one vector.
///
/// `progress` is given the tokens done and breaks off with what was measured so far.
pub fn evaluate(
    run: &Run,
    sites: &Sites,
    coder: &dyn SparseCoder,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Metrics> {
    let workers = Workers::new(options.threads)?;
    let mut sums = Sums::new(&coder.output_widths(), coder.d_sae());
    read(run, sites, coder, options, &mut |batch| {
        sums.add_rows(coder, batch.rows, batch.targets, &mut [], &workers);
        Ok(progress(sums.all.n))
    })?;
    if sums.all.n == 0 {
        return Err(Error::NoActivations { hook: sites.name() });
    }
    Ok(sums.metrics())
}

/// As [`evaluate`], with everything else that stored activations say, and what stands in for the coder in [`recovered`] and
/// [`probe`]. It costs about three times as much.
pub fn measure(
    run: &Run,
    sites: &Sites,
    coder: &dyn SparseCoder,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(Evaluation, References)> {
    let workers = Workers::new(options.threads)?;
    let groups = Groups::of(run)?;
    let mut sums = Sums::new(&coder.output_widths(), coder.d_sae());
    let (mut by_position, mut by_source) = (Vec::new(), Vec::new());
    let mut sample = Sample::new();
    let mut baselines: Option<BaselineSums> = None;
    read(run, sites, coder, options, &mut |batch| {
        let Batch { token_idx, rows, targets } = batch;
        let acts = sums.add_rows(
            coder,
            rows,
            targets,
            &mut [
                (&mut by_position, &|row| groups.position(token_idx[row])),
                (&mut by_source, &|row| groups.source(token_idx[row])),
            ],
            &workers,
        );
        baselines
            .get_or_insert_with(|| BaselineSums::new(coder, sites.same(), rows, &acts, options.seed))
            .add(coder, rows, targets, &acts, &workers)?;
        sample.add(rows, targets, &acts);
        Ok(progress(sums.all.n))
    })?;
    let Some(baselines) = baselines.filter(|_| sums.all.n > 0) else {
        return Err(Error::NoActivations { hook: sites.name() });
    };
    let (baselines, references) = baselines.finish(&sums.all)?;
    let (decoder, encoder) = geometry::of_coder(coder, sites.same(), options.seed, &workers);
    let description_length = sample.description_length(coder, &references.pca);
    let evaluation = Evaluation {
        metrics: sums.metrics(),
        positions: Groups::positions(&by_position),
        sites: sums.sites(&sites.outputs),
        sources: groups.sources(&by_source),
        baselines,
        decoder,
        encoder,
        description_length,
    };
    Ok((evaluation, references))
}

/// Rows of a run.
struct Batch<'a> {
    token_idx: &'a [u64],
    /// `[n, d_in]`.
    rows: &'a [f32],
    /// `[n, d_out]`.
    targets: &'a [f32],
}

/// Hands out rows until they end, there were enough, or `take` breaks.
fn read(
    run: &Run,
    sites: &Sites,
    coder: &dyn SparseCoder,
    options: &EvaluateOptions,
    take: &mut dyn FnMut(Batch<'_>) -> Result<ControlFlow<()>>,
) -> Result<()> {
    sites.check(run, coder)?;
    let batches = BatchOptions {
        batch_rows: BATCH,
        buffer_rows: BUFFER,
        seed: options.seed,
        epochs: 1,
        skip_special: true,
        max_norm_multiple: options.max_norm_multiple,
    };
    let mut left = options.max_tokens.unwrap_or(u64::MAX);
    for batch in sites.batches(run, batches)? {
        let batch = batch?;
        let len = batch.token_idx.len();
        let n = usize::try_from(left).map_or(len, |left| left.min(len));
        left -= n as u64;
        let taken = take(Batch {
            token_idx: &batch.token_idx[..n],
            rows: &batch.rows[..n * coder.d_in()],
            targets: &batch.targets()[..n * coder.d_out()],
        })?;
        if left == 0 || taken.is_break() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
