//! What does `run` change in the activations, and what does it show of them?

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use data::hook_point::{HookPoint, Site};
use engine::attribution::{Attribution, Detail};
use engine::cache::{ActivationCache, CacheFile, Capture};
use engine::gemma::model::Model;
use engine::hook::Hooks;
use engine::intervention::{Interventions, Selection, from_json, parse};
use engine::lens::{LensRow, LensToken};
use engine::tokenizer::Tokenizer;
use fs_err as fs;
use serde_json::{Map, Value, json};

use crate::{output, token};

/// The text form of interventions, for `--help`; `engine::intervention` says it in full.
pub(crate) const GRAMMAR: &str = "\
Interventions (--intervene), several joined with `;`, done in order, in f32:
  zero TARGET | scale TARGET NUMBER | add TARGET VALUE | replace TARGET VALUE
  mean TARGET from ORIGIN | patch TARGET from ORIGIN
  forbid LAYERS [@TOKENS] experts 3,7 | force LAYERS [@TOKENS] experts 3
  ablate TARGET sae:DIR#12,40 | clamp TARGET sae:DIR#12 NUMBER | reconstruct TARGET sae:DIR
  TARGET   POINTS[PART] [@TOKENS], such as blocks.3-5.attn.hook_z[2] @5-9
  PART     indices into each axis: [2], [2][0-7], [*][0]; hook_ple_token[5] is layer 5's row
  TOKENS   3, 3-7, 5-, -1 (the prompt's last), last (of every pass), prompt, generated, id:17, \" gold\"
  VALUE    terms joined with + or -, each SOURCE or SOURCE * NUMBER
  SOURCE   NUMBER, [0.5, -1], sae:DIR#12, file:PATH#NAME, ORIGIN@POSITION, ORIGIN (its mean)
  ORIGIN   \"a text\", ids:2,17, cache:PATH, run:PATH (means only)
  @FILE    a JSON list of such texts, or of objects {\"do\": \"add\", \"at\": …, \"tokens\": …, \"value\": …}";

/// Keys that are shown for each head.
const TOP_KEYS: usize = 4;

/// Most probable tokens of the lens.
const TOP_TOKENS: usize = 4;

/// What is done to the activations, and what is shown of them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Activations")]
pub(crate) struct HandsArgs {
    /// Change activations, such as `zero blocks.3.hook_mlp_out @5-9` (see below), or `@FILE` with the same in JSON
    #[arg(long, value_name = "SPEC")]
    intervene: Vec<String>,

    /// Show what the model would say if it stopped at each layer
    #[arg(long, conflicts_with = "chat")]
    logit_lens: bool,

    /// Show what each part of the network adds to the logit of a token [default: the most probable one]
    #[arg(long, value_name = "TOKEN", num_args = 0..=1, default_missing_value = "", conflicts_with = "chat")]
    attribution: Option<String>,

    /// Take the logit of this token off the other
    #[arg(long, value_name = "TOKEN", requires = "attribution")]
    against: Option<String>,

    /// Take attention apart by head, or the MLP by expert
    #[arg(long, value_enum, value_delimiter = ',', requires = "attribution")]
    detail: Vec<By>,

    /// Show the tokens that heads attend to most, in these layers: `blocks.3`, `blocks.*`
    #[arg(long, value_name = "LAYERS", conflicts_with = "chat")]
    patterns: Option<String>,

    /// For which tokens these are shown, as TOKENS below; `0-` for all
    #[arg(long, value_name = "TOKENS", default_value = "-1", allow_hyphen_values = true)]
    at: Selection,

    /// Write the activations of the whole run to a safetensors file
    #[arg(long, value_name = "FILE", conflicts_with = "chat")]
    cache: Option<PathBuf>,

    /// Which hook points the file gets, these and no others [default: all]
    #[arg(long, value_name = "LIST", requires = "cache")]
    cache_points: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Heads,
    Experts,
}

/// [`HandsArgs`] for a model that is loaded.
pub(crate) struct Hands<'m> {
    args: HandsArgs,
    model: &'m Model,
    tokenizer: &'m Tokenizer,
    interventions: Interventions,
    capture: Capture,
    points: Vec<HookPoint>,
    patterns: Vec<HookPoint>,
    /// What the file gets.
    cached: Vec<HookPoint>,
    detail: Detail,
    at: Selection,
    /// The tokens of `--attribution` and `--against`, where they are named.
    answer: Option<u32>,
    against: Option<u32>,
}

impl HandsArgs {
    /// Fetches what the interventions speak of, and checks the rest, before a token is computed.
    pub(crate) fn open<'m>(self, model: &'m Model, tokenizer: &'m Tokenizer) -> Result<Hands<'m>> {
        let shape = model.shape();
        let mut interventions = Vec::new();
        for spec in &self.intervene {
            interventions.extend(match spec.strip_prefix('@') {
                Some(file) => {
                    let json = fs::read_to_string(file)?;
                    from_json(&json).with_context(|| format!("cannot use `{file}`"))?
                }
                None => parse(spec)?,
            });
        }
        let mut coders = scope::Coders::default();
        let interventions = Interventions::resolve(&interventions, model, Some(tokenizer), &mut coders)?;
        let detail = Detail { heads: self.detail.contains(&By::Heads), experts: self.detail.contains(&By::Experts) };
        let patterns = match &self.patterns {
            Some(layers) => {
                let lists = layers.split(',').map(|layers| format!("{}.{}", layers.trim(), Site::Pattern.row().name));
                HookPoint::parse_list(&lists.collect::<Vec<_>>().join(","), &shape)?
            }
            None => Vec::new(),
        };
        let mut points = patterns.clone();
        if self.logit_lens {
            points.extend(model.lens_points());
        }
        if self.attribution.is_some() {
            points.extend(model.attribution_points(detail));
            points.extend(model.lens_points().last());
        }
        let cached = match (&self.cache, &self.cache_points) {
            (None, _) => Vec::new(),
            (Some(_), Some(list)) => HookPoint::parse_list(list, &shape)?,
            (Some(_), None) => HookPoint::all(&shape),
        };
        points.extend(&cached);
        points.sort_unstable();
        points.dedup();
        let at = self.at.with_ids(Some(tokenizer)).map_err(anyhow::Error::msg)?;
        let read = |text: &str| token::read(text, tokenizer, shape.d_vocab);
        let answer = self.attribution.as_deref().filter(|token| !token.is_empty()).map(read).transpose()?;
        let against = self.against.as_deref().map(read).transpose()?;
        Ok(Hands {
            args: self,
            model,
            tokenizer,
            interventions,
            capture: Capture::default(),
            points,
            patterns,
            cached,
            detail,
            at,
            answer,
            against,
        })
    }
}

impl Hands<'_> {
    /// Attaches what changes activations and what reads them.
    pub(crate) fn attach<'h>(&'h self, hooks: &mut Hooks<'h>) {
        self.interventions.attach(hooks);
        self.capture.attach(&self.points, hooks);
    }

    /// Whether something is to be shown or written afterwards.
    pub(crate) fn reads(&self) -> bool {
        !self.points.is_empty()
    }

    /// Writes and shows what was asked for: as fields of an object, or as text.
    pub(crate) fn report(&self, prompt: &[u32]) -> Result<(Map<String, Value>, String)> {
        let (mut fields, mut text) = (Map::new(), String::new());
        if !self.reads() {
            return Ok((fields, text));
        }
        let cache = self.capture.finish();
        let ids = &cache.tokens().ids;
        if let Some(path) = &self.args.cache {
            self.save(&cache, path)?;
            fields.insert("cache".into(), json!(path));
        }
        if !self.args.logit_lens && self.args.attribution.is_none() && self.patterns.is_empty() {
            return Ok((fields, text));
        }
        let chosen = self.at.in_generation(prompt, &ids[prompt.len().min(ids.len())..]);
        let rows: Vec<usize> = (0..ids.len()).filter(|&row| chosen[row]).collect();
        if rows.is_empty() {
            bail!("no token at `{}` among {}\nhint: name others with `--at`", self.args.at, ids.len());
        }
        if self.args.logit_lens {
            let lens = self.model.lens(&cache, TOP_TOKENS)?;
            fields.insert("logit_lens".into(), self.lens_json(&lens, &rows));
            text.push_str(&self.lens_text(&lens, &rows, ids));
        }
        for point in &self.patterns {
            let heads = attended(&cache, *point, &rows)?;
            let list = fields.entry("patterns").or_insert_with(|| json!([]));
            if let Value::Array(list) = list {
                list.extend(heads.iter().map(|head| self.head_json(head, ids)));
            }
            let _ = write!(text, "\n{point}\n{}", self.heads_text(&heads, ids));
        }
        if self.args.attribution.is_some() {
            // Without a token, what the model says itself.
            let said = match (self.answer, self.model.lens_points().last()) {
                (None, Some(&last)) => Some(self.model.lens_row(&cache, last, 1)?),
                _ => None,
            };
            let mut all = Vec::new();
            for &row in &rows {
                let best = || said.as_ref()?.tokens[row].top.first().map(|&(id, _)| id);
                let answer = self.answer.or_else(best).context("the vocabulary is empty")?;
                let (json, table) = self.attribution(&cache, row, answer)?;
                all.push(json);
                text.push_str(&table);
            }
            fields.insert("attribution".into(), Value::Array(all));
        }
        Ok((fields, text))
    }

    fn save(&self, cache: &ActivationCache, path: &std::path::Path) -> Result<()> {
        let texts = cache.tokens().ids.iter().map(|&id| self.token(id)).collect();
        let about = self.args.intervene.join("; ");
        let about = if about.is_empty() { None } else { Some(("intervene".to_owned(), about)) };
        cache.save(path, &self.cached, &CacheFile { texts: Some(texts), about: about.into_iter().collect() })?;
        Ok(())
    }

    fn token(&self, id: u32) -> String {
        self.tokenizer.token_text(id).unwrap_or_else(|| format!("<{id}>"))
    }

    /// A token between quotes, in which spaces can be seen.
    fn quoted(&self, id: u32) -> String {
        format!("{:?}", self.token(id))
    }

    fn lens_json(&self, lens: &[LensRow], rows: &[usize]) -> Value {
        let token = |row: usize, token: &LensToken| {
            let top: Vec<Value> = token
                .top
                .iter()
                .map(|&(id, p)| json!({ "id": id, "token": self.token(id), "probability": p }))
                .collect();
            let next = token.next.map(
                |next| json!({ "id": next.id, "token": self.token(next.id), "probability": next.probability, "rank": next.rank }),
            );
            json!({ "position": row, "top": top, "entropy": token.entropy, "next": next })
        };
        let line = |line: &LensRow| {
            let tokens: Vec<Value> = rows.iter().map(|&row| token(row, &line.tokens[row])).collect();
            json!({ "hook_point": line.point, "tokens": tokens })
        };
        Value::Array(lens.iter().map(line).collect())
    }

    /// Of one token everything, of several the most probable next one.
    fn lens_text(&self, lens: &[LensRow], rows: &[usize], ids: &[u32]) -> String {
        let percent = |p: f32| format!("{:.1}%", 100.0 * p);
        let mut table = Vec::new();
        if let &[row] = rows {
            let columns = ["", "top", "", "", "", "entropy", "p(next)", "rank"];
            table.push(columns.map(str::to_owned).to_vec());
            for line in lens {
                let token = &line.tokens[row];
                let mut cells = vec![line.point.to_string()];
                cells.extend(token.top.iter().map(|&(id, p)| format!("{} {}", self.quoted(id), percent(p))));
                cells.resize(1 + TOP_TOKENS, String::new());
                let next = token.next.map(|next| (percent(next.probability), next.rank.to_string()));
                let (p, rank) = next.unwrap_or_default();
                cells.extend([format!("{:.2}", token.entropy), p, rank]);
                table.push(cells);
            }
            let title = format!("\nlogit lens behind {} at {row}\n", self.quoted(ids[row]));
            return title + &output::table(&table, &[5, 6, 7]);
        }
        table.push(
            std::iter::once(String::new())
                .chain(rows.iter().map(|&row| format!("{row} {}", self.quoted(ids[row]))))
                .collect(),
        );
        for line in lens {
            let cell = |&row: &usize| {
                line.tokens[row].top.first().map(|&(id, p)| format!("{} {}", self.quoted(id), percent(p)))
            };
            let cells = rows.iter().map(|row| cell(row).unwrap_or_default());
            table.push(std::iter::once(line.point.to_string()).chain(cells).collect());
        }
        format!("\nlogit lens\n{}", output::table(&table, &[]))
    }

    fn head_json(&self, head: &Attended, ids: &[u32]) -> Value {
        let keys: Vec<Value> = head
            .keys
            .iter()
            .map(|&(key, weight)| json!({ "position": key, "token": self.token(ids[key]), "weight": weight }))
            .collect();
        json!({ "hook_point": head.point, "head": head.head, "position": head.row, "keys": keys })
    }

    fn heads_text(&self, heads: &[Attended], ids: &[u32]) -> String {
        let line = |head: &Attended| {
            let key =
                |&(key, weight): &(usize, f32)| format!("{} at {key} {:.0}%", self.quoted(ids[key]), 100.0 * weight);
            let query = format!("{} at {}", self.quoted(ids[head.row]), head.row);
            [format!("head {}", head.head), query, "to".to_owned()]
                .into_iter()
                .chain(head.keys.iter().map(key))
                .collect()
        };
        output::table(&heads.iter().map(line).collect::<Vec<_>>(), &[])
    }

    fn attribution(&self, cache: &ActivationCache, row: usize, answer: u32) -> Result<(Value, String)> {
        let against = self.against;
        let found = self.model.attribution(cache, row, answer, against, self.detail)?;
        let of = match against {
            Some(against) => format!("{} less {}", self.quoted(answer), self.quoted(against)),
            None => self.quoted(answer),
        };
        Ok((self.attribution_json(&found, row, answer, against), attribution_text(&found, row, &of)))
    }

    fn attribution_json(&self, found: &Attribution, row: usize, answer: u32, against: Option<u32>) -> Value {
        let parts: Vec<Value> = found
            .contributions
            .iter()
            .map(|part| json!({ "hook_point": part.point, "index": part.index, "value": part.value }))
            .collect();
        json!({
            "position": row, "token": self.token(answer), "against": against.map(|id| self.token(id)),
            "contributions": parts, "rest": found.rest, "logit": found.logit,
        })
    }
}

fn attribution_text(found: &Attribution, row: usize, of: &str) -> String {
    let name =
        |point: HookPoint, index: Option<usize>| index.map_or(point.to_string(), |index| format!("{point}[{index}]"));
    let mut table: Vec<Vec<String>> = found
        .contributions
        .iter()
        .map(|part| vec![name(part.point, part.index), format!("{:+.3}", part.value)])
        .collect();
    table.push(vec!["rest".to_owned(), format!("{:+.3}", found.rest)]);
    table.push(vec!["logit, before any softcap".to_owned(), format!("{:+.3}", found.logit)]);
    format!("\nlogit of {of} at {row}\n{}", output::table(&table, &[1]))
}

/// Where a head of one token looks.
struct Attended {
    point: HookPoint,
    head: usize,
    row: usize,
    /// Positions with their weights, descending.
    keys: Vec<(usize, f32)>,
}

fn attended(cache: &ActivationCache, point: HookPoint, rows: &[usize]) -> Result<Vec<Attended>> {
    let mut heads = Vec::new();
    for &row in rows {
        let keys = cache.top_keys(point, row, TOP_KEYS)?;
        heads.extend(keys.into_iter().enumerate().map(|(head, keys)| Attended { point, head, row, keys }));
    }
    Ok(heads)
}
