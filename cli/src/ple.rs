//! `polariscope ple`: what does the table of per-layer embeddings hold for a token, and what do the layers let through?

use anyhow::{Result, bail};
use clap::Args;
use data::hook_point::HookPoint;
use engine::device;
use engine::error::Error;
use engine::gemma::model::Model;
use engine::ple::{self, LayerGate, Occurrence, TokenRows};
use engine::tokenizer::Tokenizer;
use engine::weights::Weights;
use serde_json::{Value, json};

use crate::compute::Compute;
use crate::failure::Interrupted;
use crate::record::with_layers;
use crate::{catalog, interrupt, output, progress, token};

/// Shows a token's per-layer embeddings: their norms, the tokens nearest to it by layer, what the gates let through
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  polariscope ple gemma-3n-e2b --token ' gold' --layers 0,10-12\n  \
                        polariscope ple gemma-3n-e2b --token ' gold' --top 0 --context 'A ring of gold'")]
pub(crate) struct Ple {
    /// A folder with `config.json` and safetensors, a `.gguf` file, or a known name
    model: String,

    /// A text that is one token, or `id:17`; most words begin with their space
    #[arg(long, value_name = "TEXT", required_unless_present = "token_id")]
    token: Vec<String>,

    /// A token by its number
    #[arg(long, value_name = "ID")]
    token_id: Vec<u32>,

    /// Layers and ranges of layers, separated by commas [default: all]
    #[arg(long, value_name = "LIST")]
    layers: Option<String>,

    /// How many of the nearest tokens to show; 0 leaves the table unread
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,

    /// Run the model on this text, and show what the gates let through wherever it has the token
    #[arg(long, value_name = "TEXT")]
    context: Option<String>,

    #[command(flatten)]
    compute: Compute,

    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl Ple {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        let weights = Weights::open(catalog::resolve(&self.model)?)?;
        let names = Names::of(&weights)?;
        let ids = self.ids(&names)?;
        let context = self.context.as_deref().map(|text| names.text(text, &ids)).transpose()?;
        let config = weights.config();
        let table = ple::facts(config, weights.infos())
            .ok_or_else(|| Error::NoPle { architecture: config.architecture.to_string() })?;
        let list = with_layers("blocks.*.hook_ple_input", self.layers.as_deref());
        let points = HookPoint::parse_list(&list, &config.shape())?;
        let layers: Vec<usize> = points.iter().filter_map(|point| point.layer).collect();

        let load = context.as_ref().map(|_| self.compute.open(config)).transpose()?;
        device::set_threads(self.compute.threads);
        if self.top > 0 {
            let bytes = table.table_bytes / config.n_layers as u64 * layers.len() as u64;
            output::note(&format!("comparing {} rows, {}", output::count(table.rows), output::size(bytes)));
        }
        let bar = progress::steps(table.rows, "comparing");
        let found = ple::token_rows(&weights, &ids, &layers, self.top, &mut |done, _| {
            bar.set_position(done);
            interrupt::flow()
        });
        bar.finish_and_clear();
        let Some(rows) = found? else { return Err(Interrupted { resume: None }.into()) };
        let occurrences = match context.zip(load) {
            Some((context, load)) => {
                let model = Model::from_weights(&weights, load)?;
                ple::occurrences(&model, &context, &ids, &layers)?
            }
            None => Vec::new(),
        };
        if self.json {
            let tokens: Vec<Value> = rows.iter().map(|row| names.json(row, &occurrences)).collect();
            return output::json(&json!({ "model": self.model, "context": self.context, "tokens": tokens }));
        }
        let texts: Vec<String> = rows.iter().map(|row| names.describe(row, self.top > 0, &occurrences)).collect();
        output::text(&texts.join("\n"))
    }

    /// The tokens that are asked for, each once.
    fn ids(&self, names: &Names) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let named = self.token.iter().map(|text| token::read(text, names.tokenizer()?, names.d_vocab));
        for id in named.chain(self.token_id.iter().map(|&id| token::known(id, names.d_vocab))) {
            let id = id?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

/// What tokens are called.
struct Names {
    /// A model without a tokenizer has numbers only.
    tokenizer: Result<Tokenizer, Error>,
    d_vocab: usize,
}

impl Names {
    fn of(weights: &Weights) -> Result<Self> {
        let tokenizer = match weights.tokenizer() {
            Err(err) if !matches!(err, Error::NoTokenizer { .. }) => return Err(err.into()),
            found => found,
        };
        Ok(Self { tokenizer, d_vocab: weights.config().d_vocab })
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        match &self.tokenizer {
            Ok(tokenizer) => Ok(tokenizer),
            Err(err) => bail!("{err}"),
        }
    }

    /// The tokens of a text that must have one of `wanted`.
    fn text(&self, text: &str, wanted: &[u32]) -> Result<Vec<u32>> {
        let ids = self.tokenizer()?.ids(text, true);
        if !ids.iter().any(|id| wanted.contains(id)) {
            let named = |ids: &[u32]| ids.iter().map(|&id| self.named(id)).collect::<Vec<_>>().join(", ");
            bail!("expected a text that has the token {}, found {}", named(wanted), named(&ids));
        }
        Ok(ids)
    }

    /// `` ` gold` 5268 ``
    fn named(&self, id: u32) -> String {
        match self.text_of(id) {
            Some(text) => format!("`{}` {id}", text.escape_debug()),
            None => format!("#{id}"),
        }
    }

    fn text_of(&self, id: u32) -> Option<String> {
        self.tokenizer.as_ref().ok()?.token_text(id)
    }

    fn describe(&self, token: &TokenRows, search: bool, occurrences: &[Occurrence]) -> String {
        let mut text = format!("token {}\n", self.named(token.id));
        if token.row != token.id {
            text.extend(["  the table has no row of its own for it: it reads row ", &token.row.to_string(), "\n"]);
        }
        let mut rows = vec![vec!["layer".to_owned(), "norm".to_owned()]];
        if search {
            rows[0].push("nearest by cosine".to_owned());
        }
        for layer in &token.layers {
            let near = layer.nearest.iter().map(|near| format!("{} ({:.2})", self.named(near.row), near.cosine));
            let near = near.collect::<Vec<_>>().join(", ");
            rows.push(vec![layer.layer.to_string(), format!("{:.2}", layer.norm), near]);
        }
        text.push_str(&output::table(&rows, &[0, 1]));
        for occurrence in occurrences.iter().filter(|occurrence| occurrence.id == token.id) {
            text.extend(["\nat position ", &occurrence.position.to_string(), " of the text\n"]);
            text.push_str(&output::table(&gate_table(&occurrence.layers), &[0, 1, 2, 3, 4, 5, 6, 7]));
        }
        text
    }

    fn json(&self, token: &TokenRows, occurrences: &[Occurrence]) -> Value {
        let layers = token.layers.iter().map(|layer| {
            let near = layer
                .nearest
                .iter()
                .map(|near| json!({ "id": near.row, "text": self.text_of(near.row), "cosine": near.cosine }));
            json!({ "layer": layer.layer, "norm": layer.norm, "nearest": near.collect::<Vec<_>>() })
        });
        let places = occurrences
            .iter()
            .filter(|occurrence| occurrence.id == token.id)
            .map(|occurrence| json!({ "position": occurrence.position, "layers": occurrence.layers }));
        json!({
            "id": token.id, "text": self.text_of(token.id), "row": token.row,
            "layers": layers.collect::<Vec<_>>(), "occurrences": places.collect::<Vec<_>>(),
        })
    }
}

fn gate_table(layers: &[LayerGate]) -> Vec<Vec<String>> {
    let head = ["layer", "token", "context", "cosine", "gates open", "mean |gate|", "out", "out / stream"];
    let row = |layer: &LayerGate| {
        vec![
            layer.layer.to_string(),
            format!("{:.2}", layer.token_norm),
            format!("{:.2}", layer.context_norm),
            format!("{:.2}", layer.cosine),
            format!("{:.0} %", 100.0 * layer.gates_open),
            format!("{:.3}", layer.mean_gate),
            format!("{:.2}", layer.out_norm),
            format!("{:.3}", layer.out_norm / layer.stream_norm),
        ]
    };
    std::iter::once(head.map(str::to_owned).to_vec()).chain(layers.iter().map(row)).collect()
}
