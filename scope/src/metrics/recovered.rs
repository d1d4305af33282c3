//! What becomes of the model's predictions where a coder stands in for an activation?
//!
//! Some documents of the run go through the model again, once as they are and once for each thing that replaces the activation
//! at the coder's hook point: the coder, the random dictionary and the principal components beside it
//! ([`super::baselines`]), zero, and the mean. Special tokens keep their activation in all of these passes; a prediction counts
//! where neither the token nor the one that it predicts is special. Of the logits, in whatever the model computes, softmax,
//! cross-entropy and divergence are taken in f64:
//! - `delta_ce` = CE_replaced − CE_clean, in nats (GDM);
//! - `kl_div` = E KL(p_clean ‖ p_replaced), in nats;
//! - `ce_loss_score` = (CE_ablated − CE_replaced) / (CE_ablated − CE_clean);
//! - `kl_div_score` = (KL_ablated − KL_replaced) / KL_ablated;
//!
//! where ablated is by zero, as in SAEBench, and in the fields that end in `_mean` by the mean, which is harder to beat. All of it
//! also by the position of the token from which a prediction is made: little context may be told by other latents than much.
//!
//! A coder between several hook points replaces all that it writes in one pass: what it reads is then what the model computes
//! from what was replaced before. Only one whose latents write no site from a later one can do that
//! ([`SparseCoder::is_online`]).

use std::{cell::RefCell, ops::ControlFlow, rc::Rc};

use data::Run;
use engine::{
    gemma::model::{Batch, Forward, Model},
    hook::Hooks,
};
use serde::Serialize;
use tch::{Kind, Tensor};

use super::{
    baselines::References,
    groups::{bin_positions, position_bin},
};
use crate::{
    error::{Error, Result},
    random::Random,
    sae::{Scratch, SparseCoder},
    sites::{Sites, side_by_side},
    sparse::SparseRows,
};

/// Tokens that go through the model.
pub const TOKENS: u64 = 8192;
/// Tokens that go through it at once.
pub const BATCH_TOKENS: usize = 2048;

/// Rows of logits that exist at a time, of each pass.
const LOGIT_ROWS: i64 = 32;

/// What goes through the model.
#[derive(Clone, Debug)]
pub struct RecoveredOptions {
    /// At least so many tokens, if the run has them: the document with the last one is taken whole.
    pub tokens: u64,
    /// At once.
    pub batch_tokens: usize,
    /// Which documents.
    pub seed: u64,
}

impl Default for RecoveredOptions {
    fn default() -> Self {
        Self { tokens: TOKENS, batch_tokens: BATCH_TOKENS, seed: 0 }
    }
}

/// What the model predicts with something in the place of an activation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replaced {
    /// In nats.
    pub ce_loss: f64,
    /// CE_replaced − CE_clean.
    pub delta_ce: f64,
    /// E KL(p_clean ‖ p_replaced).
    pub kl_div: f64,
    /// With zero ablation as 0 and the model as it is as 1.
    pub ce_loss_score: f64,
    /// With zero ablation as 0 and the model as it is as 1.
    pub kl_div_score: f64,
    /// With mean ablation as 0 and the model as it is as 1.
    pub ce_loss_score_mean: f64,
    /// With mean ablation as 0 and the model as it is as 1.
    pub kl_div_score_mean: f64,
}

/// What the model predicts with a coder in the place of an activation, and with less than that.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recovered {
    /// Over all of them.
    #[serde(flatten)]
    pub all: Predictions,
    /// By position in the sequence.
    pub positions: Vec<PositionPredictions>,
}

/// Predictions from the tokens at some positions of the sequences that the model saw.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PositionPredictions {
    /// The first position; the first token of a sequence is at 0.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// What was measured.
    #[serde(flatten)]
    pub predictions: Predictions,
}

/// What some predictions are, of the model and with less in the place of an activation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Predictions {
    /// Predictions that were counted.
    pub n_predictions: u64,
    /// Of the model as it is, in nats.
    pub ce_loss: f64,
    /// The coder in the place of the activation.
    pub coder: Replaced,
    /// The random dictionary, where there is one; not where there are several hook points.
    pub random_dictionary: Option<Replaced>,
    /// As many principal components as latents fire; not where there are several hook points.
    pub pca: Option<Replaced>,
    /// Zero.
    pub zero: Replaced,
    /// The mean.
    pub mean: Replaced,
}

/// What is put where `truth` was: given what the coder reads (`[n, d_in]`) and what it speaks of (`[n, d_out]`).
type Rebuild<'a> = &'a dyn Fn(&[f32], &[f32]) -> Vec<f32>;

/// Puts a coder into the model. `progress` is given the tokens done; when it breaks, the result is [`Error::Interrupted`].
pub fn recovered(
    run: &Run,
    sites: &Sites,
    coder: &dyn SparseCoder,
    references: &References,
    model: &Model,
    options: &RecoveredOptions,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Recovered> {
    let widths = [coder.input_widths(), coder.output_widths()];
    for (hooks, widths) in [&sites.inputs, &sites.outputs].into_iter().zip(&widths) {
        for (hook, &expected) in hooks.iter().zip(widths) {
            let width = hook.shape(&model.shape()).map_or(0, |shape| shape.iter().product());
            if width != expected {
                return Err(Error::Width { expected, width, hook: hook.to_string() });
            }
        }
    }
    if !coder.is_online() {
        return Err(Error::NotOnline);
    }
    let coded = |coder: &dyn SparseCoder, rows: &[f32], truth: &[f32]| {
        let mut acts = SparseRows::new();
        coder.encode(rows, &mut Scratch::default(), &mut acts);
        let mut out = vec![0.0; truth.len()];
        coder.decode(&acts, rows, &mut out);
        out
    };
    let mean: Vec<f32> = references.mean.iter().map(|&mean| mean as f32).collect();
    let zero = |_: &[f32], truth: &[f32]| vec![0.0; truth.len()];
    let mean = |_: &[f32], truth: &[f32]| mean.repeat(truth.len() / mean.len());
    let by_coder = |rows: &[f32], truth: &[f32]| coded(coder, rows, truth);
    let pca = |_: &[f32], truth: &[f32]| {
        let mut out = vec![0.0; truth.len()];
        references.pca.project(references.rank, truth, &mut out);
        out
    };
    // What looks at all sites at once cannot stand in for one after the other.
    let one = sites.outputs.len() == 1 && sites.inputs.len() == 1;
    let dictionary = references.dictionary.as_ref().filter(|_| one);
    let random = |rows: &[f32], truth: &[f32]| dictionary.map_or_else(Vec::new, |random| coded(random, rows, truth));
    let mut rebuilds: Vec<Rebuild<'_>> = vec![&zero, &mean, &by_coder];
    if one {
        rebuilds.push(&pca);
    }
    if dictionary.is_some() {
        rebuilds.push(&random);
    }
    let bins = Passes { model, sites, widths, rebuilds: &rebuilds }.run(run, options, progress)?;
    let mut all = Losses::new(rebuilds.len());
    for losses in &bins {
        all.merge(losses);
    }
    let positions = bins.iter().enumerate().filter(|(_, losses)| losses.n > 0).map(|(bin, losses)| {
        let (first, last) = bin_positions(bin);
        PositionPredictions { first, last, predictions: losses.predictions() }
    });
    Ok(Recovered { all: all.predictions(), positions: positions.collect() })
}

/// CE and KL, summed over predictions.
#[derive(Clone, Debug)]
struct Losses {
    n: u64,
    clean: f64,
    /// CE and KL of each replacement.
    replaced: Vec<(f64, f64)>,
}

impl Losses {
    fn new(replacements: usize) -> Self {
        Self { n: 0, clean: 0.0, replaced: vec![(0.0, 0.0); replacements] }
    }

    fn merge(&mut self, part: &Self) {
        self.n += part.n;
        self.clean += part.clean;
        for (sums, part) in self.replaced.iter_mut().zip(&part.replaced) {
            *sums = (sums.0 + part.0, sums.1 + part.1);
        }
    }

    fn predictions(&self) -> Predictions {
        let n = self.n as f64;
        let clean = self.clean / n;
        let of = |at: usize| (self.replaced[at].0 / n, self.replaced[at].1 / n);
        let (zero, mean) = (of(0), of(1));
        let replaced = |at: usize| {
            let (ce, kl) = of(at);
            let scores = |ablated: (f64, f64)| ((ablated.0 - ce) / (ablated.0 - clean), (ablated.1 - kl) / ablated.1);
            let (ce_loss_score, kl_div_score) = scores(zero);
            let (ce_loss_score_mean, kl_div_score_mean) = scores(mean);
            Replaced {
                ce_loss: ce,
                delta_ce: ce - clean,
                kl_div: kl,
                ce_loss_score,
                kl_div_score,
                ce_loss_score_mean,
                kl_div_score_mean,
            }
        };
        Predictions {
            n_predictions: self.n,
            ce_loss: clean,
            coder: replaced(2),
            random_dictionary: (self.replaced.len() > 4).then(|| replaced(4)),
            pca: (self.replaced.len() > 3).then(|| replaced(3)),
            zero: replaced(0),
            mean: replaced(1),
        }
    }
}

/// A sequence as the model saw it.
#[derive(Clone, Debug, Default)]
struct Sequence {
    ids: Vec<u32>,
    special: Vec<bool>,
}

struct Passes<'a> {
    model: &'a Model,
    sites: &'a Sites,
    /// Of the sites that are read, and of those that are written.
    widths: [Vec<usize>; 2],
    rebuilds: &'a [Rebuild<'a>],
}

impl Passes<'_> {
    fn run(
        &self,
        run: &Run,
        options: &RecoveredOptions,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Vec<Losses>> {
        let mut losses = Vec::new();
        let mut documents: Vec<u64> = (0..run.n_documents()).collect();
        shuffle(&mut documents, options.seed);
        let (mut taken, mut waiting, mut batch) = (0, 0, Vec::new());
        for document in documents {
            if taken >= options.tokens {
                break;
            }
            for sequence in sequences(run, document)? {
                taken += sequence.ids.len() as u64;
                waiting += sequence.ids.len();
                batch.push(sequence);
                if waiting >= options.batch_tokens {
                    self.add(&batch, &mut losses)?;
                    (waiting, batch) = (0, Vec::new());
                    if progress(taken).is_break() {
                        return Err(Error::Interrupted);
                    }
                }
            }
        }
        if !batch.is_empty() {
            self.add(&batch, &mut losses)?;
        }
        if losses.is_empty() {
            return Err(Error::NoSequences { path: run.dir().into() });
        }
        Ok(losses)
    }

    /// `losses`: by bins of positions.
    fn add(&self, sequences: &[Sequence], losses: &mut Vec<Losses>) -> Result<()> {
        let mut batch = Batch::default();
        let (mut replace, mut rows, mut next, mut bins) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for Sequence { ids, special } in sequences {
            for at in 1..ids.len() {
                if !special[at - 1] && !special[at] {
                    rows.push((batch.ids.len() + at - 1) as i64);
                    next.push(i64::from(ids[at]));
                    bins.push(usize::from(position_bin(at as u32 - 1)));
                }
            }
            replace.extend(special.iter().map(|special| !special));
            batch.push(ids);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let clean = self.resid(&batch, Hooks::none())?;
        let mut others = Vec::new();
        for &rebuild in self.rebuilds {
            others.push(self.resid(&batch, self.spliced(rebuild, &replace))?);
        }
        let device = clean.device();
        let rows = Tensor::from_slice(&rows).to_device(device).f_split(LOGIT_ROWS, 0)?;
        let next = Tensor::from_slice(&next).to_device(device).f_split(LOGIT_ROWS, 0)?;
        for ((rows, next), bins) in rows.iter().zip(&next).zip(bins.chunks(LOGIT_ROWS as usize)) {
            let next = next.unsqueeze(1);
            let log_p = |resid: &Tensor| -> Result<Tensor> {
                let logits = self.model.logit_lens(&resid.f_index_select(0, rows)?); // [rows, d_vocab]
                Ok(logits.f_to_kind(Kind::Double)?.f_log_softmax(-1, Kind::Double)?)
            };
            let ce = |log_p: &Tensor| numbers(&-log_p.f_gather(1, &next, false)?);
            let clean = log_p(&clean)?;
            let p = clean.f_exp()?;
            let of_clean = ce(&clean)?;
            let mut of_others = Vec::new();
            for other in &others {
                let other = log_p(other)?;
                let kl = p.f_mul(&clean.f_sub(&other)?)?.f_sum_dim_intlist(-1, false, Kind::Double)?; // [rows]
                of_others.push((ce(&other)?, numbers(&kl)?));
            }
            for (row, &bin) in bins.iter().enumerate() {
                if losses.len() <= bin {
                    losses.resize(bin + 1, Losses::new(self.rebuilds.len()));
                }
                let losses = &mut losses[bin];
                losses.n += 1;
                losses.clean += of_clean[row];
                for ((ce, kl), sums) in of_others.iter().zip(&mut losses.replaced) {
                    *sums = (sums.0 + ce[row], sums.1 + kl[row]);
                }
            }
        }
        Ok(())
    }

    fn resid(&self, batch: &Batch, mut hooks: Hooks<'_>) -> Result<Tensor> {
        Ok(self.model.forward(batch, None, &mut hooks, Forward::default())?.resid)
    }

    /// Hooks that replace the rows that are `chosen`.
    fn spliced<'a>(&'a self, rebuild: Rebuild<'a>, chosen: &'a [bool]) -> Hooks<'a> {
        let read: Rc<RefCell<Vec<Vec<f32>>>> = Rc::new(RefCell::new(vec![Vec::new(); self.widths[0].len()]));
        let mut hooks = Hooks::none();
        for (at, &hook) in self.sites.inputs.iter().enumerate() {
            let read = Rc::clone(&read);
            hooks.read(hook, move |_, value| read.borrow_mut()[at] = kept(value, chosen));
        }
        for (at, &hook) in self.sites.outputs.iter().enumerate() {
            let seen = Rc::clone(&read);
            hooks.add(hook, move |_, value| {
                let rebuilt = self.rebuilt(rebuild, &seen.borrow(), at, &kept(value, chosen));
                let places: Vec<i64> = (0..).zip(chosen).filter(|(_, chosen)| **chosen).map(|(at, _)| at).collect();
                let shape = value.size();
                let flat = value.view([shape[0], -1]);
                let rebuilt = Tensor::from_slice(&rebuilt)
                    .view([places.len() as i64, -1])
                    .to_device(value.device())
                    .to_kind(value.kind());
                let places = Tensor::from_slice(&places).to_device(value.device());
                Some(flat.index_copy(0, &places, &rebuilt).view(shape.as_slice()))
            });
        }
        hooks
    }

    /// What is put in the place of site `at`, which is `truth`. Sites that were not read yet are taken as zero: nothing that
    /// reads them writes here.
    fn rebuilt(&self, rebuild: Rebuild<'_>, read: &[Vec<f32>], at: usize, truth: &[f32]) -> Vec<f32> {
        let [inputs, outputs] = &self.widths;
        if let ([rows], [_]) = (read, &outputs[..]) {
            return rebuild(rows, truth);
        }
        let n = truth.len() / outputs[at];
        let zeros: Vec<Vec<f32>> = inputs.iter().chain(outputs).map(|width| vec![0.0; n * width]).collect();
        let (of_inputs, of_outputs) = zeros.split_at(inputs.len());
        let known = read.iter().zip(of_inputs).zip(inputs);
        let rows: Vec<_> =
            known.map(|((rows, zeros), &width)| (if rows.is_empty() { &zeros[..] } else { rows }, width)).collect();
        let sites: Vec<_> = of_outputs
            .iter()
            .zip(outputs)
            .enumerate()
            .map(|(site, (zeros, &width))| (if site == at { truth } else { &zeros[..] }, width))
            .collect();
        let (mut whole, mut whole_truth) = (Vec::new(), Vec::new());
        side_by_side(&rows, &mut whole);
        side_by_side(&sites, &mut whole_truth);
        let first: usize = outputs[..at].iter().sum();
        let columns = first..first + outputs[at];
        let out = rebuild(&whole, &whole_truth);
        out.chunks_exact(outputs.iter().sum()).flat_map(|row| &row[columns.clone()]).copied().collect()
    }
}

/// The values of a tensor of doubles.
fn numbers(values: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(values.f_to_device(tch::Device::Cpu)?.f_reshape([-1])?)?)
}

/// The rows that are chosen, end to end, in f32.
fn kept(value: &Tensor, chosen: &[bool]) -> Vec<f32> {
    let value = value.to_kind(Kind::Float).to_device(tch::Device::Cpu).contiguous();
    let mut values = vec![0.0; value.numel()];
    value.copy_data(&mut values, value.numel());
    let width = values.len() / chosen.len().max(1);
    values
        .chunks_exact(width.max(1))
        .zip(chosen)
        .filter(|(_, chosen)| **chosen)
        .flat_map(|(row, _)| row)
        .copied()
        .collect()
}

/// The sequences of a document, as far as they are whole: of text, from the first position on.
fn sequences(run: &Run, document: u64) -> Result<Vec<Sequence>> {
    let tokens = run.tokens(run.document_tokens(document)?)?;
    let mut sequences: Vec<Sequence> = Vec::new();
    // Where nothing says that a sequence began, there is none.
    let mut whole = false;
    for at in 0..tokens.len() {
        let follows = at > 0 && tokens.pos[at] == tokens.pos[at - 1] + 1;
        if tokens.pos[at] == 0 {
            sequences.push(Sequence::default());
            whole = true;
        } else if !follows {
            whole = false;
        }
        if tokens.modality[at] != 0 {
            whole = false;
        }
        if let Some(sequence) = sequences.last_mut().filter(|_| whole) {
            sequence.ids.push(tokens.token_id[at]);
            sequence.special.push(tokens.special[at]);
        }
    }
    sequences.retain(|sequence| sequence.ids.len() > 1);
    Ok(sequences)
}

/// Brings numbers into an order drawn from a seed.
pub(super) fn shuffle<T>(values: &mut [T], seed: u64) {
    let mut random = Random::new(seed);
    for i in (1..values.len()).rev() {
        values.swap(i, random.below(i as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use data::HookPoint;
    use engine::gemma::model::{Logits, Precision};

    use super::*;
    use crate::{
        Activation, Crosscoder, Matrix, Sae,
        crosscoder::{LatentGroup, Site},
        metrics::pca::Pca,
        testing::{DOC_TOKENS, write_run},
    };

    const WIDTH: usize = 32;

    fn model() -> Model {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gemma3/text");
        Model::load(fixture, Precision::F32).unwrap()
    }

    fn point() -> HookPoint {
        "blocks.2.hook_resid_post".parse().unwrap()
    }

    /// `x` as `relu(x) − relu(−x)`, times `scale`.
    fn identity(scale: f32) -> Sae {
        let mut w_dec = Matrix::zeros(2 * WIDTH, WIDTH);
        for latent in 0..2 * WIDTH {
            w_dec.row_mut(latent)[latent % WIDTH] = if latent < WIDTH { scale } else { -scale };
        }
        let mut w_enc = w_dec.transposed();
        crate::kernels::scale(w_enc.as_mut_slice(), 1.0 / scale);
        Sae {
            w_enc,
            w_dec,
            b_enc: vec![0.0; 2 * WIDTH],
            b_dec: vec![0.0; WIDTH],
            activation: Activation::Relu,
            ..Sae::default()
        }
    }

    fn references(dictionary: Option<Sae>) -> References {
        let mut directions = vec![0.0; WIDTH * WIDTH];
        (0..WIDTH).for_each(|i| directions[i * WIDTH + i] = 1.0);
        let (mean, variances) = (vec![0.25; WIDTH], vec![1.0; WIDTH]);
        References { mean: mean.clone(), pca: Pca { mean, variances, directions }, rank: WIDTH, dictionary }
    }

    fn found(coder: &Sae, dictionary: Option<Sae>) -> Recovered {
        found_at([point(); 2], coder, dictionary)
    }

    fn found_at(hooks: [HookPoint; 2], coder: &Sae, dictionary: Option<Sae>) -> Recovered {
        let folder = tempfile::tempdir().unwrap();
        let run = write_run(&folder.path().join("run"), 6, false);
        let options = RecoveredOptions { tokens: 1000, batch_tokens: 60, seed: 1 };
        let references = references(dictionary);
        let go_on = &mut |_| ControlFlow::Continue(());
        recovered(&run, &hooks.into(), coder, &references, &model(), &options, go_on).unwrap()
    }

    #[test]
    fn a_perfect_coder_recovers_everything_and_nothing_recovers_nothing() {
        let (perfect, zero) = (identity(1.0), identity(0.0));
        let zero = Sae { w_enc: Matrix::zeros(WIDTH, 2 * WIDTH), ..zero };
        let Recovered { all: found, positions } = found(&perfect, Some(zero));
        // The first token is special, and the last one has nothing to predict.
        assert_eq!(found.n_predictions, 6 * (DOC_TOKENS - 2));
        for same in [&found.coder, found.pca.as_ref().unwrap()] {
            assert!(same.delta_ce.abs() < 1e-5 && same.kl_div.abs() < 1e-6, "{same:?}");
            assert!((same.ce_loss_score - 1.0).abs() < 1e-4 && (same.kl_div_score_mean - 1.0).abs() < 1e-4);
        }
        let random = found.random_dictionary.unwrap();
        assert!((random.ce_loss - found.zero.ce_loss).abs() < 1e-9 && random.ce_loss_score.abs() < 1e-6);
        assert!(found.zero.kl_div > 0.01 && found.zero.kl_div_score == 0.0 && found.mean.ce_loss_score_mean == 0.0);
        assert!((found.zero.ce_loss - found.ce_loss - found.zero.delta_ce).abs() < 1e-12);
        // 1, 2, 3, 4–5, …, 16–23: each position of each document once.
        let counts: Vec<_> = positions.iter().map(|at| (at.first, at.predictions.n_predictions)).collect();
        assert_eq!(counts, [(1, 6), (2, 6), (3, 6), (4, 12), (6, 12), (8, 24), (12, 24), (16, 48)]);
        let mean = |of: fn(&Predictions) -> f64| {
            let sums = positions.iter().map(|at| at.predictions.n_predictions as f64 * of(&at.predictions));
            sums.sum::<f64>() / found.n_predictions as f64
        };
        assert!((mean(|at| at.ce_loss) - found.ce_loss).abs() < 1e-9);
        assert!((mean(|at| at.zero.kl_div) - found.zero.kl_div).abs() < 1e-9);
        assert!(positions.iter().all(|at| at.predictions.coder.kl_div.abs() < 1e-6));
    }

    #[test]
    fn what_is_read_and_what_is_replaced_may_be_two_places() {
        // What leaves one layer is what enters the next.
        let hooks = [point(), "blocks.3.hook_resid_pre".parse().unwrap()];
        let found = found_at(hooks, &identity(1.0), None).all;
        assert!(found.coder.delta_ce.abs() < 1e-5 && found.coder.kl_div.abs() < 1e-6, "{:?}", found.coder);
        assert!(found.zero.kl_div > 0.01);
    }

    /// `x` of each of two layers as `relu(x) − relu(−x)` of its own latents; those of the first also write `extra·x` at the second.
    fn of_two_layers(extra: f32) -> Crosscoder {
        let group = |at: usize| {
            let single = identity(1.0);
            let mut w_dec = Matrix::zeros(2 * WIDTH, (2 - at) * WIDTH);
            for latent in 0..2 * WIDTH {
                let row = single.w_dec.row(latent);
                w_dec.row_mut(latent)[..WIDTH].copy_from_slice(row);
                for (out, value) in w_dec.row_mut(latent)[WIDTH..].iter_mut().zip(row) {
                    *out = extra * value;
                }
            }
            LatentGroup { w_enc: single.w_enc, w_dec, reads: at..at + 1, writes: at..2 }
        };
        let site = Site { hook_name: None, width: WIDTH };
        Crosscoder {
            inputs: vec![site.clone(); 2],
            outputs: vec![site; 2],
            groups: vec![group(0), group(1)],
            b_enc: vec![0.0; 4 * WIDTH],
            b_dec: vec![0.0; 2 * WIDTH],
            ..Crosscoder::default()
        }
    }

    #[test]
    fn a_coder_between_layers_replaces_all_of_them_in_one_pass() {
        let folder = tempfile::tempdir().unwrap();
        let run = write_run(&folder.path().join("run"), 6, false);
        let options = RecoveredOptions { tokens: 1000, batch_tokens: 60, seed: 1 };
        let hooks: Vec<HookPoint> = [1, 2].map(|at| format!("blocks.{at}.hook_resid_post").parse().unwrap()).to_vec();
        let sites = Sites { inputs: hooks.clone(), outputs: hooks };
        let mut references = references(None);
        references.mean = vec![0.25; 2 * WIDTH];
        let found = |coder: &Crosscoder| {
            recovered(&run, &sites, coder, &references, &model(), &options, &mut |_| ControlFlow::Continue(()))
        };
        let perfect = found(&of_two_layers(0.0)).unwrap();
        assert!(
            perfect.all.coder.delta_ce.abs() < 1e-5 && perfect.all.coder.kl_div.abs() < 1e-6,
            "{:?}",
            perfect.all.coder
        );
        assert!(perfect.all.pca.is_none() && perfect.all.random_dictionary.is_none() && perfect.all.zero.kl_div > 0.01);
        // The first layer's latents disturb the second, so that the last layers see another stream.
        let disturbed = found(&of_two_layers(-0.5)).unwrap();
        assert!(disturbed.all.coder.kl_div > 1e-3, "{:?}", disturbed.all.coder);
        // One that reads all layers at once cannot be put in.
        let mut all = of_two_layers(0.0);
        all.groups = vec![LatentGroup { reads: 0..2, writes: 0..2, ..LatentGroup::default() }];
        assert!(matches!(found(&all), Err(Error::NotOnline | Error::Sites { .. })));
    }

    #[test]
    fn losses_equal_those_of_whole_logits() {
        let (half, model) = (identity(0.5), model());
        let Recovered { all: found, positions } = found(&half, None);
        assert!(found.random_dictionary.is_none());
        // Every document of the run has the same tokens: its position is its id.
        let ids: Vec<u32> = (0..DOC_TOKENS as u32).collect();
        let logits = |hooks: &mut Hooks<'_>| {
            let options = Forward { logits: Logits::All, ..Forward::default() };
            let logits = model.forward(&Batch::one(&ids), None, hooks, options).unwrap().logits.unwrap();
            logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double)
        };
        let clean = logits(&mut Hooks::none());
        let mut hooks = Hooks::none();
        hooks.add(point(), |_, value| {
            let halved = value * 0.5;
            halved.get(0).copy_(&value.get(0));
            Some(halved)
        });
        let halved = logits(&mut hooks);
        let (mut ce, mut kl) = (0.0, 0.0);
        for at in 1..ids.len() - 1 {
            let row = |log_p: &Tensor| Vec::<f64>::try_from(log_p.get(at as i64)).unwrap();
            let (p, q) = (row(&clean), row(&halved));
            ce -= q[ids[at + 1] as usize];
            kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            if at <= 3 {
                // These have a bin of their own.
                let alone = &positions[at - 1].predictions;
                assert!((alone.coder.ce_loss + q[ids[at + 1] as usize]).abs() < 1e-5, "position {at}");
            }
        }
        let n = (DOC_TOKENS - 2) as f64;
        assert!((found.coder.ce_loss - ce / n).abs() < 1e-5, "{} {}", found.coder.ce_loss, ce / n);
        assert!((found.coder.kl_div - kl / n).abs() < 1e-5, "{} {}", found.coder.kl_div, kl / n);
        let score = (found.zero.ce_loss - ce / n) / (found.zero.ce_loss - found.ce_loss);
        assert!((found.coder.ce_loss_score - score).abs() < 1e-4);
    }
}
