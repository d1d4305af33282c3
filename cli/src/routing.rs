//! `polariscope routing`: which experts does a model choose, how evenly, together with which others, for which tokens?

use anyhow::{Result, bail};
use clap::Args;
use data::routing::{self, LayerRouting, PairLift, RoutingOptions, RoutingReport, TokenLift};
use serde_json::{Value, json};

use crate::location::Location;
use crate::output::{self, count, table};
use crate::{interrupt, progress};

/// Tells which experts a mixture-of-experts model chose: their load, company and tokens
#[derive(Debug, Args)]
#[command(after_help = "\
What the columns say (n tokens chose the expert, of T tokens with k of E experts each):
  router entropy  mean over the tokens, in nats, of the router's whole distribution
  load entropy    of the experts' shares n/(kT), in nats; it is ln E where the load is even
  cv, max/mean    standard deviation and greatest of the n, divided by their mean
  idle            experts that no token chose
  stays           mean part of a token's experts that the token before it in its sequence has too;
                  `by chance` is the same for two unrelated tokens
  tells next      mutual information, in nats, of the first choice here and in the next layer;
                  `by chance` is what counting so few tokens gives of itself
  lift            how many times as often as if the two had nothing to do with each other

Examples:
  polariscope routing runs/news
  polariscope routing runs/news --layer 3 --expert 17 --top 20
  polariscope routing runs/news --json")]
pub(crate) struct Routing {
    /// The run: a folder, or its URL in an object store
    run: Location,

    /// This layer of the model only, with every expert
    #[arg(long, value_name = "N")]
    layer: Option<usize>,

    /// This expert only
    #[arg(long, value_name = "E")]
    expert: Option<usize>,

    /// How many pairs of experts, and tokens, are listed
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,

    /// List what was seen at least so often
    #[arg(long, value_name = "N", default_value_t = 10)]
    min_count: u64,

    /// Count special tokens too
    #[arg(long)]
    special: bool,

    /// Print one JSON object on standard output; with `--layer` it has the matrix of co-selection
    #[arg(long)]
    json: bool,
}

impl Routing {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        let run = self.run.run()?;
        let n_experts = run.routing_info()?.n_experts;
        if let Some(expert) = self.expert.filter(|&expert| expert >= n_experts) {
            bail!("expected an expert below {n_experts}, found `{expert}` in `{}`", self.run);
        }
        let options = RoutingOptions {
            layers: self.layer.into_iter().collect(),
            expert: self.expert,
            top: self.top,
            min_count: self.min_count,
            special: self.special,
        };
        let bar = progress::tokens(run.n_tokens(), "counting");
        let report = progress::watch(&bar, |at| routing::analyse(&run, &options, at))?;
        if self.json { output::json(&self.value(&report)?) } else { output::text(&self.text(&report)) }
    }

    fn value(&self, report: &RoutingReport) -> Result<Value> {
        let mut value = serde_json::to_value(report)?;
        value["run"] = json!(self.run.to_string());
        for (layer, found) in report.layers.iter().enumerate() {
            let value = &mut value["layers"][layer];
            if let Some(expert) = self.expert {
                value["experts"] = json!([found.experts[expert]]);
            }
            if self.layer.is_some() {
                value["co_selected"] = found.co_selected.chunks(report.n_experts).collect();
            }
        }
        Ok(value)
    }

    fn text(&self, report: &RoutingReport) -> String {
        let layers = &report.layers;
        let mut text = format!("routing of `{}`\n", self.run);
        let left_out = if self.special {
            String::new()
        } else {
            format!("; {} special ones are left out", count(report.n_special))
        };
        let rows = [
            ("experts", format!("{}, {} of them a token", report.n_experts, report.top_k)),
            ("tokens", format!("{}{left_out}", count(report.n_tokens))),
        ];
        text += &table(&rows.map(|(name, value)| vec![format!("  {name}"), value]), &[]);
        text.push('\n');
        text += &layer_table(layers);
        if self.layer.is_some() || self.expert.is_some() {
            text.push('\n');
            text += &self.expert_table(layers);
        }
        text.push('\n');
        text += &self.pair_table(report);
        text.push('\n');
        text += &self.token_table(report);
        text
    }

    /// Of the experts that were asked for, with the layer of each.
    fn expert_table(&self, layers: &[LayerRouting]) -> String {
        let mut rows =
            vec![["layer", "expert", "tokens", "share", "mean weight", "mean prob"].map(String::from).to_vec()];
        for layer in layers {
            for expert in layer.experts.iter().filter(|expert| self.wants(expert.expert)) {
                rows.push(vec![
                    layer.layer.to_string(),
                    expert.expert.to_string(),
                    count(expert.tokens),
                    percent(expert.share),
                    number(expert.mean_weight),
                    number(expert.mean_prob),
                ]);
            }
        }
        table(&rows, &[0, 1, 2, 3, 4, 5])
    }

    fn pair_table(&self, report: &RoutingReport) -> String {
        let pairs = report.layers.iter().flat_map(|layer| layer.top_pairs.iter().map(|pair| (layer.layer, pair)));
        let mut pairs: Vec<(usize, &PairLift)> = pairs.collect();
        // A stable sort: what is equal stays in the order of layers.
        pairs.sort_by(|(_, a), (_, b)| b.lift.total_cmp(&a.lift));
        pairs.truncate(self.top);
        if pairs.is_empty() {
            return format!("no two experts were chosen together for {} tokens\n", report.min_count);
        }
        let mut rows = vec![["layer", "experts", "tokens", "by chance", "lift"].map(String::from).to_vec()];
        rows.extend(pairs.into_iter().map(|(layer, pair)| {
            let experts = format!("{} + {}", pair.a, pair.b);
            let (tokens, expected) = (count(pair.tokens), format!("{:.1}", pair.expected));
            vec![layer.to_string(), experts, tokens, expected, format!("{:.2}", pair.lift)]
        }));
        format!("experts that are chosen together, most above chance first\n{}", table(&rows, &[0, 1, 2, 3, 4]))
    }

    fn token_table(&self, report: &RoutingReport) -> String {
        let experts =
            report.layers.iter().flat_map(|layer| layer.experts.iter().map(move |expert| (layer.layer, expert)));
        let mut tokens: Vec<(usize, usize, &TokenLift)> = experts
            .filter(|(_, expert)| self.wants(expert.expert))
            .flat_map(|(layer, expert)| expert.top_tokens.iter().map(move |token| (layer, expert.expert, token)))
            .collect();
        tokens.sort_by(|(.., a), (.., b)| b.lift.total_cmp(&a.lift).then(b.count.cmp(&a.count)));
        tokens.truncate(self.top);
        if tokens.is_empty() {
            return format!("no expert was chosen for the same token {} times\n", report.min_count);
        }
        let mut rows =
            vec![["layer", "expert", "chosen", "of", "by chance", "lift", "token"].map(String::from).to_vec()];
        rows.extend(tokens.into_iter().map(|(layer, expert, token)| {
            vec![
                layer.to_string(),
                expert.to_string(),
                count(token.count),
                count(token.occurrences),
                format!("{:.1}", token.expected),
                format!("{:.2}", token.lift),
                shown(token),
            ]
        }));
        format!("tokens that an expert takes, most above chance first\n{}", table(&rows, &[0, 1, 2, 3, 4, 5]))
    }

    fn wants(&self, expert: usize) -> bool {
        self.expert.is_none_or(|wanted| wanted == expert)
    }
}

fn layer_table(layers: &[LayerRouting]) -> String {
    let mut rows = vec![
        [
            "layer",
            "router entropy",
            "load entropy",
            "cv",
            "max/mean",
            "idle",
            "stays",
            "by chance",
            "tells next",
            "by chance",
            "dense norm",
            "moe norm",
        ]
        .map(String::from)
        .to_vec(),
    ];
    for layer in layers {
        let next = layer.next_layer;
        rows.push(vec![
            layer.layer.to_string(),
            number(layer.router_entropy),
            number(layer.load.entropy),
            number(layer.load.cv),
            number(layer.load.max_over_mean),
            layer.load.never_fired.to_string(),
            percent(layer.neighbours.overlap),
            percent(layer.neighbours.chance),
            number(next.and_then(|next| next.mutual_information)),
            number(next.and_then(|next| next.chance)),
            number(layer.dense_norm),
            number(layer.moe_norm),
        ]);
    }
    table(&rows, &(0..12).collect::<Vec<_>>())
}

/// Nothing was counted: a dash.
fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{:.1} %", value * 100.0))
}

/// The text of a token on one line, or its id where there is no text.
fn shown(token: &TokenLift) -> String {
    if token.token.is_empty() { format!("#{}", token.token_id) } else { format!("`{}`", token.token.escape_debug()) }
}
