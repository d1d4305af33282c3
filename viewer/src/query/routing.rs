//! Which experts did the router choose, for a passage, for the run, and for one expert?

use std::ops::ControlFlow;

use data::routing::{RoutingOptions, RoutingReport, analyse};

use super::reader::page_range;
use super::{Source, Tok};
use crate::loader::{Ask, Cancel, Failure};

/// Tokens that are looked through for a sample of those that an expert takes.
const SAMPLED_TOKENS: u64 = 1 << 17;
/// Stretches of the run that a sample is drawn from.
const STRETCHES: u64 = 64;
/// Tokens of a sample that are shown.
const SHOWN: usize = 24;
/// Tokens before and after one of a sample.
const CONTEXT: (u64, u64) = (12, 8);

/// Asks for the choices of every layer on a page of a document.
#[derive(Debug, Clone)]
pub(crate) struct PassageRoutingQuery {
    pub(crate) doc: u64,
    pub(crate) page: u64,
}

/// The choices of every layer on a page.
#[derive(Debug)]
pub(crate) struct PassageRouting {
    pub(crate) layers: Vec<usize>,
    pub(crate) n_experts: usize,
    pub(crate) top_k: usize,
    pub(crate) n_tokens: usize,
    /// Special tokens, which are left out of loads.
    pub(crate) special: Vec<bool>,
    /// By recorded layer.
    choices: Vec<Choices>,
}

#[derive(Debug)]
struct Choices {
    /// `[tok, k]`, by falling probability.
    experts: Vec<u16>,
    weights: Vec<f32>,
    probs: Vec<f32>,
    entropy: Vec<f32>,
    /// Share of the experts' branch in the norms of both branches.
    moe_share: Vec<f32>,
    /// The expert that came next and its probability, where all logits were recorded.
    runner_up: Vec<(u16, f32)>,
}

/// One choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Choice {
    pub(crate) expert: u16,
    pub(crate) weight: f32,
    pub(crate) prob: f32,
}

impl PassageRouting {
    /// The place of a layer of the model among the recorded ones.
    pub(crate) fn place(&self, layer: usize) -> Option<usize> {
        self.layers.iter().position(|recorded| *recorded == layer)
    }

    /// The choices of a token, by falling probability.
    pub(crate) fn at(&self, place: usize, token: usize) -> impl Iterator<Item = Choice> + '_ {
        let range = token * self.top_k..(token + 1) * self.top_k;
        self.choices.get(place).into_iter().flat_map(move |choices| {
            range.clone().filter_map(|i| {
                Some(Choice {
                    expert: *choices.experts.get(i)?,
                    weight: *choices.weights.get(i)?,
                    prob: *choices.probs.get(i)?,
                })
            })
        })
    }

    /// The best expert that was not chosen.
    pub(crate) fn runner_up(&self, place: usize, token: usize) -> Option<(u16, f32)> {
        self.choices.get(place)?.runner_up.get(token).copied()
    }

    /// How far the last chosen expert is above the best one that was not, in probability.
    pub(crate) fn margin(&self, place: usize, token: usize) -> Option<f32> {
        let (_, next) = self.runner_up(place, token)?;
        Some(self.at(place, token).last()?.prob - next)
    }

    pub(crate) fn entropy(&self, place: usize, token: usize) -> Option<f32> {
        self.choices.get(place)?.entropy.get(token).copied()
    }

    pub(crate) fn moe_share(&self, place: usize, token: usize) -> Option<f32> {
        self.choices.get(place)?.moe_share.get(token).copied()
    }

    /// Tokens of the page that chose each expert, by layer; special ones are left out.
    pub(crate) fn loads(&self) -> Vec<f32> {
        let mut loads = vec![0.0; self.layers.len() * self.n_experts];
        for place in 0..self.layers.len() {
            for token in (0..self.n_tokens).filter(|token| !self.special[*token]) {
                for choice in self.at(place, token) {
                    if let Some(load) = loads.get_mut(place * self.n_experts + usize::from(choice.expert)) {
                        *load += 1.0;
                    }
                }
            }
        }
        loads
    }
}

impl Ask for PassageRoutingQuery {
    type Answer = PassageRouting;
    const NAME: &'static str = "routing";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<PassageRouting, Failure> {
        let routing = routing_info(source)?;
        let (_, range) = page_range(source, self.doc, self.page)?;
        let mut choices = Vec::with_capacity(routing.layers.len());
        for &layer in &routing.layers {
            cancel.check()?;
            let rows = source.run.routing(layer)?.rows(range.clone())?;
            let runner_up = rows.router_logits.as_ref().map(|logits| {
                let chosen = rows.expert_ids.chunks_exact(routing.top_k.max(1));
                logits.chunks_exact(routing.n_experts.max(1)).zip(chosen).map(|(l, c)| runner_up(l, c)).collect()
            });
            let share = |(moe, dense): (&f32, &f32)| moe / (moe + dense).max(f32::MIN_POSITIVE);
            choices.push(Choices {
                moe_share: rows.moe_norm.iter().zip(&rows.dense_norm).map(share).collect(),
                experts: rows.expert_ids,
                weights: rows.weights,
                probs: rows.probs,
                entropy: rows.entropy,
                runner_up: runner_up.unwrap_or_default(),
            });
        }
        Ok(PassageRouting {
            n_experts: routing.n_experts,
            top_k: routing.top_k,
            n_tokens: (range.end - range.start) as usize,
            special: source.run.special(range)?,
            layers: routing.layers,
            choices,
        })
    }

    fn bytes(answer: &PassageRouting) -> usize {
        answer.layers.len() * answer.n_tokens * (answer.top_k * 10 + 20)
    }
}

fn routing_info(source: &Source) -> Result<data::Routing, Failure> {
    source.run.routing_info().cloned().map_err(|_none| {
        Failure::new(
            "the run has no routing",
            "record a model with experts, such as Gemma 4 26B-A4B; its choices are always stored",
        )
    })
}

/// The best expert that is not among the chosen ones, with its probability.
fn runner_up(logits: &[f32], chosen: &[u16]) -> (u16, f32) {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - greatest).exp()).sum();
    let others = (0_u16..).zip(logits).filter(|(expert, _)| !chosen.contains(expert));
    let best = others.max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or((u16::MAX, 0.0), |(expert, logit)| (expert, (logit - greatest).exp() / sum))
}

/// Asks how the experts of all layers, or of one, share the whole run.
#[derive(Debug, Clone)]
pub(crate) struct LoadsQuery {
    /// All recorded ones where there is none; then no tokens are listed.
    pub(crate) layer: Option<usize>,
}

impl Ask for LoadsQuery {
    type Answer = RoutingReport;
    const NAME: &'static str = "load of the experts";

    fn slot(&self) -> u64 {
        self.layer.map_or(0, |layer| 1 + layer as u64 % 2)
    }

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<RoutingReport, Failure> {
        routing_info(source)?;
        // A pair that is seen once or twice says little, but a small run has few that are seen more often.
        let min_count = (source.run.n_tokens() / 20_000).clamp(3, 10);
        let options = RoutingOptions {
            layers: self.layer.into_iter().collect(),
            top: if self.layer.is_some() { 24 } else { 0 },
            min_count,
            ..RoutingOptions::default()
        };
        let report = analyse(&source.run, &options, &mut |_| match cancel.check() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_no_longer_wanted) => ControlFlow::Break(()),
        })?;
        Ok(report)
    }

    fn bytes(answer: &RoutingReport) -> usize {
        answer.layers.iter().map(|layer| layer.co_selected.len() * 8 + layer.experts.len() * 2_048).sum()
    }
}

/// Asks for tokens that an expert took.
#[derive(Debug, Clone)]
pub(crate) struct ExpertSampleQuery {
    pub(crate) layer: usize,
    pub(crate) expert: u16,
}

/// Tokens that an expert took.
#[derive(Debug)]
pub(crate) struct ExpertSample {
    /// All tokens of the run were looked through, but for special ones.
    pub(crate) whole: bool,
    /// Tokens that were looked through.
    pub(crate) n_looked: u64,
    pub(crate) n_taken: u64,
    /// Evenly from all that were taken.
    pub(crate) random: Vec<Taken>,
    /// Those with the greatest weight.
    pub(crate) strongest: Vec<Taken>,
    /// What the same tokens chose first in the next recorded layer: experts and counts, falling.
    pub(crate) next: Option<(usize, Vec<(u16, u64)>)>,
}

/// A token that an expert took, with what stands around it.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) doc: u64,
    pub(crate) token_in_doc: u64,
    pub(crate) weight: f32,
    pub(crate) toks: Vec<Tok>,
    pub(crate) at: usize,
}

impl Ask for ExpertSampleQuery {
    type Answer = ExpertSample;
    const NAME: &'static str = "tokens of the expert";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<ExpertSample, Failure> {
        let routing = routing_info(source)?;
        let layer = source.run.routing(self.layer)?.without_logits();
        let next = routing.layers.iter().copied().find(|other| *other > self.layer);
        let next_layer = next.map(|next| source.run.routing(next)).transpose()?.map(data::RoutingLayer::without_logits);
        let (mut taken, mut n_looked) = (Vec::new(), 0);
        let mut followers = vec![0_u64; routing.n_experts];
        for range in stretches(source.run.n_tokens()) {
            cancel.check()?;
            let special = source.run.special(range.clone())?;
            let rows = layer.rows(range.clone())?;
            let after = next_layer.as_ref().map(|next| next.rows(range.clone())).transpose()?;
            for (i, experts) in rows.expert_ids.chunks_exact(routing.top_k.max(1)).enumerate() {
                if special.get(i).copied().unwrap_or(true) {
                    continue;
                }
                n_looked += 1;
                let Some(slot) = experts.iter().position(|expert| *expert == self.expert) else { continue };
                taken.push((range.start + i as u64, rows.weights[i * routing.top_k + slot]));
                let first = after.as_ref().and_then(|after| after.expert_ids.get(i * routing.top_k));
                if let Some(count) = first.and_then(|first| followers.get_mut(usize::from(*first))) {
                    *count += 1;
                }
            }
        }
        let step = (taken.len() / SHOWN).max(1);
        let random: Vec<(u64, f32)> = taken.iter().copied().step_by(step).take(SHOWN).collect();
        let n_taken = taken.len() as u64;
        taken.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        taken.truncate(SHOWN);
        let show = |list: Vec<(u64, f32)>| {
            list.into_iter().map(|(token, weight)| surroundings(source, token, weight)).collect::<Result<Vec<_>, _>>()
        };
        let mut by_count: Vec<(u16, u64)> = (0..).zip(followers).filter(|(_, count)| *count > 0).collect();
        by_count.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        by_count.truncate(8);
        Ok(ExpertSample {
            whole: source.run.n_tokens() <= SAMPLED_TOKENS,
            n_looked,
            n_taken,
            random: show(random)?,
            strongest: show(taken)?,
            next: next.map(|next| (next, by_count)),
        })
    }

    fn bytes(answer: &ExpertSample) -> usize {
        (answer.random.len() + answer.strongest.len()) * 1_024
    }
}

/// Stretches of tokens, evenly over the run, [`SAMPLED_TOKENS`] in all.
fn stretches(n_tokens: u64) -> Vec<std::ops::Range<u64>> {
    let (n, length) = if n_tokens <= SAMPLED_TOKENS { (1, n_tokens) } else { (STRETCHES, SAMPLED_TOKENS / STRETCHES) };
    (0..n).map(|i| n_tokens / n * i).map(|start| start..start + length).collect()
}

/// A token with what stands around it in its document.
pub(super) fn surroundings(source: &Source, token: u64, weight: f32) -> Result<Taken, Failure> {
    let doc = source.run.document_at(token)?;
    let whole = source.run.document_tokens(doc)?;
    let start = token.saturating_sub(CONTEXT.0).max(whole.start);
    let toks = source.toks(start..(token + CONTEXT.1 + 1).min(whole.end))?;
    Ok(Taken { doc, token_in_doc: token - whole.start, weight, toks, at: (token - start) as usize })
}

/// Asks which features go together with an expert.
#[derive(Debug, Clone)]
pub(crate) struct ExpertFeaturesQuery {
    pub(crate) table: String,
    pub(crate) layer: usize,
    pub(crate) expert: u16,
}

/// A feature that goes together with a label.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    pub(crate) layer: Option<u32>,
    pub(crate) label: String,
    pub(crate) feature: u32,
    pub(crate) lift: f64,
    pub(crate) n_both: u64,
    /// In bits.
    pub(crate) information: f64,
    /// The token at the feature's strongest activation.
    pub(crate) peak: String,
}

impl Ask for ExpertFeaturesQuery {
    /// `None` where the table was not joined with experts.
    type Answer = Option<Vec<Joined>>;
    const NAME: &'static str = "features of the expert";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Self::Answer, Failure> {
        let Some(rows) = source.join(&self.table, "experts")? else { return Ok(None) };
        let label = self.expert.to_string();
        let mut rows: Vec<_> = rows
            .iter()
            .filter(|row| row.layer == Some(self.layer as u32) && row.label == label)
            .filter(|row| row.lift > 1.0 && row.mutual_information > row.threshold)
            .collect();
        // By information: the lift of what is rare is great by chance.
        rows.sort_by(|a, b| b.mutual_information.total_cmp(&a.mutual_information).then(a.feature.cmp(&b.feature)));
        rows.truncate(SHOWN);
        let table = source.table(&self.table)?;
        let mut out = Vec::with_capacity(rows.len());
        for row in rows {
            cancel.check()?;
            out.push(joined(source, &table, row)?);
        }
        Ok(Some(out))
    }

    fn bytes(answer: &Self::Answer) -> usize {
        answer.as_ref().map_or(0, Vec::len) * 128 + 64
    }
}

pub(super) fn joined(
    source: &Source,
    table: &data::features::FeatureTable,
    row: &data::join::JoinRow,
) -> Result<Joined, Failure> {
    Ok(Joined {
        layer: row.layer,
        label: row.label.clone(),
        feature: row.feature,
        lift: row.lift,
        n_both: row.n_both,
        information: row.mutual_information,
        peak: super::feature::peak(source, table, row.feature)?.1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_up_is_the_best_that_was_not_chosen() {
        let (expert, prob) = runner_up(&[1.0, 3.0, 2.0, 0.0], &[1]);
        assert_eq!(expert, 2);
        let sum: f32 = [1.0_f32, 3.0, 2.0, 0.0].iter().map(|x| x.exp()).sum();
        assert!((prob - 2.0_f32.exp() / sum).abs() < 1e-6);
        assert_eq!(runner_up(&[1.0], &[0]).1, 0.0);
    }

    #[test]
    fn stretches_lie_within_the_run() {
        assert_eq!((stretches(100).len(), &stretches(100)[0]), (1, &(0..100)));
        let many = stretches(1_000_000_007);
        assert_eq!(many.iter().map(|range| range.end - range.start).sum::<u64>(), SAMPLED_TOKENS);
        assert!(many.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert!(many.last().unwrap().end <= 1_000_000_007);
        let few = stretches(SAMPLED_TOKENS + 1);
        assert!(few.last().unwrap().end <= SAMPLED_TOKENS + 1);
    }
}
