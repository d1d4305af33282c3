//! Where do interventions get the hook points, tokens and vectors that they speak of?

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::path::Path;

use data::Run;
use data::hook_point::{HookPoint, ModelShape, Site};
use tch::{Kind, Tensor};

use super::edit::{Change, Edit, Interventions, RowFunction, shaped};
use super::parse::Parser;
use super::select::{Part, Pick, Selection};
use super::{Action, FeatureEdit, Intervention, Origin, Source, Spot, Value};
use crate::cache::ActivationCache;
use crate::error::{Error, Result};
use crate::gemma::model::{Batch, Forward, Model, to_vec_f32};
use crate::tokenizer::Tokenizer;

/// What is known of sparse coders, which are another crate's.
pub trait Coders {
    /// The direction that a feature of the coder in a folder writes.
    fn decoder_row(&mut self, coder: &Path, feature: usize) -> Result<Vec<f32>, Box<dyn StdError + Send + Sync>>;

    /// What the rows of a hook point, of `width` numbers, become when these features of theirs are edited; with
    /// `keep_error`, what the coder does not explain stays as it is.
    fn splice(
        &mut self,
        coder: &Path,
        point: HookPoint,
        width: usize,
        edits: &[(usize, FeatureEdit)],
        keep_error: bool,
    ) -> Result<RowFunction, Box<dyn StdError + Send + Sync>>;
}

/// There are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCoders;

impl Coders for NoCoders {
    fn decoder_row(&mut self, _: &Path, _: usize) -> Result<Vec<f32>, Box<dyn StdError + Send + Sync>> {
        Err("sparse coders are not at hand here".into())
    }

    fn splice(
        &mut self,
        _: &Path,
        _: HookPoint,
        _: usize,
        _: &[(usize, FeatureEdit)],
        _: bool,
    ) -> Result<RowFunction, Box<dyn StdError + Send + Sync>> {
        Err("sparse coders are not at hand here".into())
    }
}

impl Interventions {
    /// Fetches everything that `interventions` speak of: the texts are run through the model as it is, without any of them.
    pub fn resolve(
        interventions: &[Intervention],
        model: &Model,
        tokenizer: Option<&Tokenizer>,
        coders: &mut dyn Coders,
    ) -> Result<Self> {
        let shape = model.shape();
        let placed: Vec<Placed<'_>> =
            interventions.iter().map(|one| Placed::new(one, &shape, tokenizer)).collect::<Result<_>>()?;
        check_forbidden(&placed, &shape)?;
        let mut needed: BTreeMap<&Origin, Vec<HookPoint>> = BTreeMap::new();
        for one in &placed {
            for origin in one.origins() {
                let points = needed.entry(origin).or_default();
                points.extend(
                    one.at.iter().map(|(point, _)| *point).filter(|point| !points.contains(point)).collect::<Vec<_>>(),
                );
            }
        }
        let mut origins = BTreeMap::new();
        for (origin, points) in needed {
            origins.insert(origin, Activations::fetch(origin, &points, model, tokenizer)?);
        }
        let mut sources = Sources { shape: &shape, coders, origins };
        let mut edits = Vec::new();
        let mut left = placed.as_slice();
        while let [one, rest @ ..] = left {
            // Changes to one coder's features in a row are made to one reading of them.
            let same = rest.iter().take_while(|other| one.same_coder(other)).count();
            let splice: Vec<&Action> = left[..=same].iter().map(|placed| &placed.intervention.action).collect();
            left = &rest[same..];
            for (point, part) in &one.at {
                let change = sources.change(one, &splice, *point, part)?;
                edits.push(Edit { point: *point, part: part.clone(), tokens: one.tokens.clone(), change });
            }
        }
        Ok(edits.into_iter().collect())
    }
}

/// An intervention whose hook points and tokens are known.
struct Placed<'i> {
    intervention: &'i Intervention,
    at: Vec<(HookPoint, Part)>,
    tokens: Selection,
}

impl<'i> Placed<'i> {
    fn new(intervention: &'i Intervention, shape: &ModelShape, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let wrong = |what: String| wrong(what, intervention);
        let mut at = Vec::new();
        for Spot { points, part } in &intervention.at {
            let experts = match &intervention.action {
                Action::ForbidExperts(experts) => Some((Site::RouterLogits, experts)),
                Action::ForceExperts(experts) => Some((Site::TopkIdx, experts)),
                _ => None,
            };
            let Some((site, experts)) = experts else {
                for point in HookPoint::parse_list(points, shape)? {
                    check_part(part, point, shape).map_err(wrong)?;
                    check_site(point, &intervention.action).map_err(wrong)?;
                    at.push((point, part.clone()));
                }
                continue;
            };
            if points.contains("hook") || !part.is_whole() {
                return Err(wrong(format!("expected layers such as `blocks.4`, found `{points}{part}`")));
            }
            let list = HookPoint::parse_list(&format!("{points}.{}", site.row().name), shape)?;
            check_experts(experts, shape, &intervention.action).map_err(wrong)?;
            let part = if site == Site::RouterLogits { Part::first(experts) } else { Part::WHOLE };
            at.extend(list.into_iter().map(|point| (point, part.clone())));
        }
        let tokens = intervention.tokens.with_ids(tokenizer).map_err(wrong)?;
        Ok(Self { intervention, at, tokens })
    }

    /// Whether both change what the same coder makes of the same tokens.
    fn same_coder(&self, other: &Self) -> bool {
        self.intervention.action.coder().is_some()
            && self.intervention.action.coder() == other.intervention.action.coder()
            && self.at == other.at
            && self.tokens == other.tokens
    }

    fn origins(&self) -> Vec<&'i Origin> {
        match &self.intervention.action {
            Action::Mean(origin) | Action::Patch(origin) => vec![origin],
            Action::Add(Value(terms)) | Action::Replace(Value(terms)) => terms
                .iter()
                .filter_map(|term| match &term.source {
                    Source::At(origin, _) | Source::Mean(origin) => Some(origin),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

impl Selection {
    /// The same with the ids of tokens that are named by their texts, or a sentence about one that is not a token.
    pub fn with_ids(&self, tokenizer: Option<&Tokenizer>) -> Result<Self, String> {
        let picks = self.0.iter().map(|pick| match pick {
            Pick::Text(text) => token_id(text, tokenizer).map(Pick::Id),
            other => Ok(other.clone()),
        });
        Ok(Self(picks.collect::<Result<_, String>>()?))
    }
}

/// Reads hook points and parts of them, as the text form of interventions has them: `blocks.*.attn.hook_z[2]`.
pub fn targets(text: &str, shape: &ModelShape) -> Result<Vec<(HookPoint, Part)>> {
    let mut targets = Vec::new();
    for Spot { points, part } in Parser::whole(text, Parser::spots)? {
        for point in HookPoint::parse_list(&points, shape)? {
            let intervention = format!("{points}{part}");
            check_part(&part, point, shape).map_err(|what| Error::Intervention { what, intervention })?;
            targets.push((point, part.clone()));
        }
    }
    Ok(targets)
}

/// Whether the part exists at the hook point.
pub(crate) fn check_part(part: &Part, point: HookPoint, shape: &ModelShape) -> Result<(), String> {
    // The number of keys is known only in a pass.
    let sizes = point.shape(shape).unwrap_or_else(|| vec![shape.n_heads, usize::MAX]);
    if part.0.len() > sizes.len() {
        let n = sizes.len();
        return Err(format!("expected at most {n} brackets, one for each axis of `{point}`, found {}", part.0.len()));
    }
    for (ranges, &size) in part.0.iter().zip(&sizes) {
        if let Some((_, last)) = ranges.iter().find(|(_, last)| *last >= size) {
            return Err(format!("expected an index below {size} at `{point}`, found {last}"));
        }
    }
    Ok(())
}

/// Whether numbers at this site can be changed in this way.
fn check_site(point: HookPoint, action: &Action) -> Result<(), String> {
    match point.site {
        Site::KvSource => {
            Err(format!("`{point}` only says where keys and values come from: nothing is computed with it"))
        }
        Site::TopkIdx if !matches!(action, Action::Patch(_)) => {
            Err(format!("`{point}` holds numbers of experts, to which `forbid`, `force` and `patch` apply"))
        }
        Site::AttnScores | Site::Pattern
            if matches!(action, Action::Mean(_) | Action::Features { .. } | Action::Reconstruct { .. }) =>
        {
            Err(format!("`{point}` has as many numbers as there are keys: no vector fits it"))
        }
        _ => Ok(()),
    }
}

fn check_experts(experts: &[usize], shape: &ModelShape, action: &Action) -> Result<(), String> {
    if let Some(expert) = experts.iter().find(|&&expert| expert >= shape.n_experts) {
        return Err(format!("expected experts below {}, found {expert}", shape.n_experts));
    }
    let mut different = experts.to_vec();
    different.sort_unstable();
    different.dedup();
    let (n, top_k) = (different.len(), shape.top_k);
    if n == 0 {
        return Err("expected the number of an expert, found none".to_owned());
    }
    let (fits, most) = match action {
        Action::ForceExperts(_) => (n <= top_k, top_k),
        _ => (n + top_k <= shape.n_experts, shape.n_experts - top_k),
    };
    if fits {
        Ok(())
    } else {
        Err(format!("expected at most {most} experts, since a token goes to {top_k}, found {n}"))
    }
}

/// Whether the experts that several interventions forbid the same tokens leave those enough others.
fn check_forbidden(placed: &[Placed<'_>], shape: &ModelShape) -> Result<()> {
    for one in placed {
        let action @ Action::ForbidExperts(_) = &one.intervention.action else { continue };
        for (point, _) in &one.at {
            let same = placed.iter().filter(|other| other.tokens == one.tokens || other.tokens == Selection::ALL);
            let same = same.filter(|other| other.at.iter().any(|(at, _)| at == point));
            let experts = same.filter_map(|other| match &other.intervention.action {
                Action::ForbidExperts(experts) => Some(experts),
                _ => None,
            });
            let experts: Vec<usize> = experts.flatten().copied().collect();
            check_experts(&experts, shape, action).map_err(|what| wrong(what, one.intervention))?;
        }
    }
    Ok(())
}

/// The id of a text that is one token, or a sentence about it.
pub fn token_id(text: &str, tokenizer: Option<&Tokenizer>) -> Result<u32, String> {
    let Some(tokenizer) = tokenizer else {
        return Err(format!("the model has no tokenizer for the token {text:?}: name it as `id:N`"));
    };
    let ids = tokenizer.ids(text, false);
    match ids.as_slice() {
        [one] => Ok(*one),
        [] => Err("expected a text that is one token, found an empty one".to_owned()),
        several => {
            let named = |&id: &u32| format!("`{}` {id}", tokenizer.token_text(id).unwrap_or_default().escape_debug());
            let named: Vec<String> = several.iter().map(named).collect();
            let n = several.len();
            Err(format!("expected a text that is one token, found `{text}` of {n}: {}", named.join(", ")))
        }
    }
}

impl Action {
    fn coder(&self) -> Option<&str> {
        match self {
            Self::Features { coder, .. } | Self::Reconstruct { coder } => Some(coder),
            _ => None,
        }
    }

    fn feature_edits(&self) -> Vec<(usize, FeatureEdit)> {
        match self {
            Self::Features { features, edit, .. } => features.iter().map(|&feature| (feature, *edit)).collect(),
            _ => Vec::new(),
        }
    }
}

fn wrong(what: String, intervention: &Intervention) -> Error {
    Error::Intervention { what, intervention: intervention.to_string() }
}

/// What another pass, or a run, has at some hook points.
enum Activations {
    /// Of one sequence, and which of its tokens are not special.
    Pass {
        cache: ActivationCache,
        plain: Vec<i64>,
    },
    Means(BTreeMap<HookPoint, Vec<f32>>),
}

impl Activations {
    fn fetch(origin: &Origin, points: &[HookPoint], model: &Model, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let cache = match origin {
            Origin::Run(dir) => return Self::of_run(dir, points),
            Origin::Cache(path) => ActivationCache::load(Path::new(path))?,
            Origin::Ids(ids) => run(model, ids, points)?,
            Origin::Text(text) => {
                let tokenizer = tokenizer.ok_or_else(|| Error::Origin {
                    origin: origin.to_string(),
                    what: "the model has no tokenizer".to_owned(),
                })?;
                run(model, &tokenizer.ids(text, true), points)?
            }
        };
        let fault = |what: String| Error::Origin { origin: origin.to_string(), what };
        if cache.tokens().lengths.len() != 1 {
            return Err(fault(format!("expected one sequence, found {}", cache.tokens().lengths.len())));
        }
        if let Some(point) = points.iter().find(|&&point| cache.get(point).is_none()) {
            return Err(fault(format!("expected `{point}`, which it does not hold")));
        }
        let special = |id: u32| tokenizer.is_some_and(|tokenizer| tokenizer.is_special(id));
        let ids = cache.tokens().ids.iter().enumerate();
        let plain = ids.filter(|(_, id)| !special(**id)).map(|(row, _)| row as i64).collect();
        Ok(Self::Pass { cache, plain })
    }

    fn of_run(dir: &str, points: &[HookPoint]) -> Result<Self> {
        let run = Run::open(dir)?;
        let mut means = BTreeMap::new();
        for point in points {
            let statistics = run.manifest().statistics.get(&point.to_string()).filter(|statistics| statistics.n > 0);
            let statistics = statistics.ok_or_else(|| Error::Origin {
                origin: format!("run:{dir}"),
                what: format!("it has no statistics of `{point}`; record that hook point, to the end"),
            })?;
            means.insert(*point, statistics.mean().into_iter().map(|x| x as f32).collect());
        }
        Ok(Self::Means(means))
    }
}

fn run(model: &Model, ids: &[u32], points: &[HookPoint]) -> Result<ActivationCache> {
    Ok(model.forward_with_cache(&Batch::one(ids), points, Forward::default())?.1)
}

/// Everything that vectors come from.
struct Sources<'a> {
    shape: &'a ModelShape,
    coders: &'a mut dyn Coders,
    origins: BTreeMap<&'a Origin, Activations>,
}

impl Sources<'_> {
    /// `splice`: the actions on one coder that begin with this one.
    fn change(&mut self, placed: &Placed<'_>, splice: &[&Action], point: HookPoint, part: &Part) -> Result<Change> {
        let intervention = placed.intervention;
        let wrong = |what: String| wrong(what, intervention);
        Ok(match &intervention.action {
            Action::Zero => Change::Zero,
            Action::Scale(by) => Change::Scale(*by),
            Action::Add(value) => Change::Add(self.value(value, point, part).map_err(|what| what.into_error(wrong))?),
            Action::Replace(value) => {
                Change::Replace(self.value(value, point, part).map_err(|what| what.into_error(wrong))?)
            }
            Action::Mean(origin) => {
                let mean = self.mean(origin, point).map_err(wrong)?;
                Change::Replace(self.shaped(&mean, point, &Part::WHOLE).map_err(wrong)?)
            }
            Action::Patch(origin) => Change::Patch(self.patch(origin, point, &placed.tokens).map_err(wrong)?),
            Action::ForbidExperts(_) => Change::Replace(Tensor::from(f32::NEG_INFINITY)),
            Action::ForceExperts(experts) => Change::ForceExperts(experts.clone()),
            Action::Features { coder, .. } | Action::Reconstruct { coder } => {
                if !part.is_whole() {
                    return Err(wrong(format!(
                        "expected no brackets, since a coder reads the whole of `{point}`, found `{part}`"
                    )));
                }
                let width = point.shape(self.shape).map_or(0, |shape| shape.iter().product());
                let keep_error = !splice.iter().any(|action| matches!(action, Action::Reconstruct { .. }));
                let edits: Vec<(usize, FeatureEdit)> =
                    splice.iter().flat_map(|action| action.feature_edits()).collect();
                let splice = self.coders.splice(Path::new(coder), point, width, &edits, keep_error);
                Change::Rows(splice.map_err(|source| Error::Coder { coder: coder.clone(), source })?)
            }
        })
    }

    /// A sum, in f32.
    fn value(&mut self, value: &Value, point: HookPoint, part: &Part) -> Result<Tensor, Fault> {
        let mut sum: Option<Tensor> = None;
        for term in &value.0 {
            let vector = match &term.source {
                Source::Number(number) => vec![*number],
                Source::List(list) => list.clone(),
                Source::Decoder { coder, feature } => self
                    .coders
                    .decoder_row(Path::new(coder), *feature)
                    .map_err(|source| Fault::Error(Error::Coder { coder: coder.clone(), source }))?,
                Source::File { path, name } => {
                    to_vec_f32(&crate::cache::tensor_of_file(Path::new(path), name).map_err(Fault::Error)?)
                }
                Source::Mean(origin) => self.mean(origin, point)?,
                Source::At(origin, position) => self.at(origin, point, *position)?,
            };
            let term = self.shaped(&vector, point, part)? * f64::from(term.scale);
            sum = Some(match sum {
                Some(sum) => sum + term,
                None => term,
            });
        }
        Ok(sum.unwrap_or_else(|| Tensor::from(0.0_f32)))
    }

    fn shaped(&self, values: &[f32], point: HookPoint, part: &Part) -> Result<Tensor, String> {
        let Some(shape) = point.shape(self.shape) else {
            // Scores and patterns have no fixed number of keys.
            return match values {
                [one] => Ok(Tensor::from(*one)),
                _ => Err(format!("expected a number at `{point}`, found a vector of {}", values.len())),
            };
        };
        shaped(values, part, &shape).ok_or_else(|| {
            let all: usize = shape.iter().product();
            let inside = part.mask(&shape).iter().filter(|&&inside| inside).count();
            let of_part = if inside == all { String::new() } else { format!(", {inside}") };
            format!("expected 1{of_part} or {all} numbers at `{point}{part}`, found {}", values.len())
        })
    }

    fn pass(&self, origin: &Origin) -> Result<(&ActivationCache, &[i64]), String> {
        match self.origins.get(origin) {
            Some(Activations::Pass { cache, plain }) => Ok((cache, plain)),
            _ => Err(format!(
                "expected a text, ids or a cache, since a run has no positions to choose from, found `{origin}`"
            )),
        }
    }

    /// `[pos, …]` of a pass.
    fn rows(&self, origin: &Origin, point: HookPoint) -> Result<&Tensor, String> {
        let (cache, _) = self.pass(origin)?;
        let rows = cache.get(point).ok_or_else(|| format!("`{origin}` does not hold `{point}`"))?;
        let found: Vec<usize> = rows.size().iter().map(|&n| n as usize).collect();
        match point.shape(self.shape) {
            Some(shape) if found[1..] != shape => {
                Err(format!("expected {shape:?} for each token of `{point}` in `{origin}`, found {:?}", &found[1..]))
            }
            None if found.first() != Some(&self.shape.n_heads) => Err(format!(
                "expected {} heads at `{point}` in `{origin}`, found {:?}",
                self.shape.n_heads,
                found.first()
            )),
            _ => Ok(rows),
        }
    }

    fn patch(&self, origin: &Origin, point: HookPoint, tokens: &Selection) -> Result<Tensor, String> {
        let rows = self.rows(origin, point)?;
        let n = self.pass(origin)?.0.tokens().ids.len();
        match tokens.furthest().filter(|&furthest| furthest >= n) {
            Some(position) => Err(format!("expected a position below {n}, the length of `{origin}`, found {position}")),
            None => Ok(rows.shallow_clone()),
        }
    }

    fn at(&self, origin: &Origin, point: HookPoint, position: i64) -> Result<Vec<f32>, String> {
        let rows = self.rows(origin, point)?;
        if point.shape(self.shape).is_none() {
            return Err(format!("`{point}` has no vector at a position: use `patch`"));
        }
        let n = rows.size()[0];
        let row = if position < 0 { n + position } else { position };
        if !(0..n).contains(&row) {
            return Err(format!("expected a position from -{n} to {}, found {position} in `{origin}`", n - 1));
        }
        Ok(to_vec_f32(&rows.get(row)))
    }

    fn mean(&self, origin: &Origin, point: HookPoint) -> Result<Vec<f32>, String> {
        if let Some(Activations::Means(means)) = self.origins.get(origin) {
            return means.get(&point).cloned().ok_or_else(|| format!("`{origin}` has no mean of `{point}`"));
        }
        let rows = self.rows(origin, point)?;
        let (_, plain) = self.pass(origin)?;
        if plain.is_empty() {
            return Err(format!("`{origin}` has only special tokens: no mean is taken over those"));
        }
        let rows = rows.index_select(0, &Tensor::from_slice(plain).to_device(rows.device()));
        Ok(to_vec_f32(&rows.to_kind(Kind::Double).mean_dim(0_i64, false, Kind::Double)))
    }
}

/// What is wrong with a value: something to say of the intervention, or an error of its own.
enum Fault {
    What(String),
    Error(Error),
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self::What(what)
    }
}

impl Fault {
    fn into_error(self, wrong: impl Fn(String) -> Error) -> Error {
        match self {
            Self::What(what) => wrong(what),
            Self::Error(error) => error,
        }
    }
}
