//! What goes together with a feature, and where should it have fired but did not?

use std::collections::{BTreeMap, BTreeSet};

use super::Source;
use super::routing::{Joined, Taken, joined, surroundings};
use crate::loader::{Ask, Cancel, Failure};

/// Features and labels of each kind that are listed.
const LISTED: usize = 10;
/// Activations of a feature that are looked up; a denser one has no near-misses to speak of.
const MAX_ACTS: usize = 1 << 18;
/// Tokens that are looked through for near-misses.
const LOOKED: u64 = 1 << 18;
/// Tokens that are read at a time.
const BLOCK: u64 = 1 << 14;
/// Near-misses that are shown.
const SHOWN: usize = 8;
/// Strongest activations whose tokens near-misses share.
const STRONGEST: usize = 64;

/// Asks what goes together with a feature.
#[derive(Debug, Clone)]
pub(crate) struct FeatureMoreQuery {
    pub(crate) table: String,
    pub(crate) feature: u32,
}

/// What goes together with a feature.
#[derive(Debug)]
pub(crate) struct FeatureMore {
    /// Bounds of the groups of examples, with how many activations are within: name, low, high, n.
    pub(crate) groups: Vec<(String, f32, f32, u64)>,
    /// Features that fire at the same tokens; `None` where pairs were not counted.
    pub(crate) partners: Option<Vec<Partner>>,
    /// Features of other coders that fire as it does, by the name of their table.
    pub(crate) others: Vec<(String, Vec<Partner>)>,
    /// By what the table was joined with.
    pub(crate) joins: Vec<(String, Vec<Joined>)>,
}

/// A feature that fires at the same tokens.
#[derive(Debug, Clone)]
pub(crate) struct Partner {
    pub(crate) feature: u32,
    pub(crate) lift: f64,
    pub(crate) phi: f64,
    pub(crate) n_both: u64,
    pub(crate) peak: String,
}

impl Ask for FeatureMoreQuery {
    type Answer = FeatureMore;
    const NAME: &'static str = "company of the feature";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<FeatureMore, Failure> {
        let table = source.table(&self.table)?;
        let one = self.feature..self.feature.saturating_add(1);
        let groups = table.groups(one.clone())?;
        let partners = match table.coactivation(one)? {
            None => None,
            Some(pairs) => {
                let mut out = Vec::new();
                for pair in pairs.into_iter().take(LISTED) {
                    cancel.check()?;
                    let peak = super::feature::peak(source, &table, pair.other)?.1;
                    out.push(Partner {
                        feature: pair.other,
                        lift: pair.lift,
                        phi: pair.phi,
                        n_both: pair.n_both,
                        peak,
                    });
                }
                Some(out)
            }
        };
        let mut others = Vec::new();
        for other in table.joins()?.iter().filter_map(|with| with.strip_prefix("features-")) {
            cancel.check()?;
            // Its words are known only where it is a table of this run.
            let words = source.table(other).ok();
            let mut pairs: Vec<_> = source
                .correlation(&self.table, other)?
                .iter()
                .filter(|pair| pair.feature == self.feature)
                .cloned()
                .collect();
            pairs.sort_by_key(|pair| pair.rank);
            let mut out = Vec::new();
            for pair in pairs.into_iter().take(LISTED) {
                let peak = match &words {
                    Some(words) => super::feature::peak(source, words, pair.other)?.1,
                    None => String::new(),
                };
                out.push(Partner { feature: pair.other, lift: pair.lift, phi: pair.phi, n_both: pair.n_both, peak });
            }
            others.push((other.to_owned(), out));
        }
        let mut joins = Vec::new();
        for with in table.joins()?.into_iter().filter(|with| !with.starts_with("features-")) {
            cancel.check()?;
            let Some(rows) = source.join(&self.table, &with)? else { continue };
            let mut rows: Vec<_> = rows
                .iter()
                .filter(|row| row.feature == self.feature && row.mutual_information > row.threshold)
                .collect();
            rows.sort_by(|a, b| b.mutual_information.total_cmp(&a.mutual_information));
            let rows = rows.into_iter().take(LISTED).map(|row| joined(source, &table, row));
            joins.push((with, rows.collect::<Result<Vec<_>, _>>()?));
        }
        Ok(FeatureMore {
            groups: groups.into_iter().map(|group| (group.group, group.low, group.high, group.n_active)).collect(),
            partners,
            others,
            joins,
        })
    }

    fn bytes(answer: &FeatureMore) -> usize {
        let joined: usize = answer.joins.iter().map(|(_, rows)| rows.len()).sum();
        (joined + answer.partners.as_ref().map_or(0, Vec::len)) * 128 + 512
    }
}

/// Asks for places with a token at which the feature fires strongly elsewhere, but not here.
#[derive(Debug, Clone)]
pub(crate) struct NearMissQuery {
    pub(crate) table: String,
    pub(crate) feature: u32,
}

/// Places where a feature is silent at one of its own tokens.
#[derive(Debug)]
pub(crate) struct NearMiss {
    /// The tokens at its strongest activations, with how often they occur and how often it fires at them.
    pub(crate) tokens: Vec<(String, u64, u64)>,
    pub(crate) n_looked: u64,
    pub(crate) shown: Vec<Taken>,
}

impl Ask for NearMissQuery {
    type Answer = NearMiss;
    const NAME: &'static str = "near-misses";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<NearMiss, Failure> {
        let table = source.table(&self.table)?;
        let acts = table.acts_of_feature(self.feature, MAX_ACTS)?;
        let n_looked = source.run.n_tokens().min(LOOKED);
        let mut tokens: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (token, _) in acts.iter().take(STRONGEST) {
            let (ids, special) = source.run.token_ids(*token..*token + 1)?;
            if let (Some(id), Some(false)) = (ids.first(), special.first()) {
                tokens.insert(*id, (0, 0));
            }
        }
        if acts.len() == MAX_ACTS {
            // Not all places at which it fires are known, so none can be called a miss.
            return Ok(NearMiss { tokens: Vec::new(), n_looked: 0, shown: Vec::new() });
        }
        let fires: BTreeSet<u64> = acts.into_iter().map(|(token, _)| token).collect();
        let mut missed = Vec::new();
        for start in (0..n_looked).step_by(BLOCK as usize) {
            cancel.check()?;
            let (ids, _) = source.run.token_ids(start..n_looked.min(start + BLOCK))?;
            for (token, id) in (start..).zip(ids) {
                let Some((n, fired)) = tokens.get_mut(&id) else { continue };
                *n += 1;
                if fires.contains(&token) {
                    *fired += 1;
                } else {
                    missed.push(token);
                }
            }
        }
        let step = (missed.len() / SHOWN).max(1);
        let shown = missed.into_iter().step_by(step).take(SHOWN);
        let mut tokens: Vec<_> = tokens.into_iter().map(|(id, (n, fired))| (source.token_text(id), n, fired)).collect();
        tokens.sort_by(|a, b| b.2.cmp(&a.2).then(b.1.cmp(&a.1)));
        tokens.truncate(LISTED);
        Ok(NearMiss {
            tokens,
            n_looked,
            shown: shown.map(|token| surroundings(source, token, 0.0)).collect::<Result<_, _>>()?,
        })
    }

    fn bytes(answer: &NearMiss) -> usize {
        answer.shown.len() * 1_024 + answer.tokens.len() * 64
    }
}
