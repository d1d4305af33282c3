//! `polariscope patch`: where in the network does the difference between two texts live?

use anyhow::Result;
use clap::{Args, ValueEnum};
use data::HookPoint;
use engine::device;
use engine::error::Error;
use engine::gemma::model::Model;
use engine::intervention::{Part, targets};
use engine::patching::{Direction, PatchTable, Patching};
use engine::tokenizer::Tokenizer;
use engine::weights::Weights;
use serde_json::{Value, json};

use crate::compute::Compute;
use crate::failure::Interrupted;
use crate::{catalog, interrupt, output, progress, token};

/// Puts the activations of one text into the pass of another, place by place, and measures what becomes of the answer
#[derive(Debug, Args)]
#[command(
    after_help = "The metric is the logit of the answer, less that of the wrong one. In the table 0 is the corrupt text and 1 the\n\
                  clean one; both texts must have equally many tokens.\n\n\
                  Example:\n  polariscope patch gemma-3-270m --clean 'The capital of France is' --corrupt 'The capital of Italy is' \\\n      \
                  --answer ' Paris' --wrong ' Rome' --hook-points 'blocks.*.hook_resid_pre'"
)]
pub(crate) struct Patch {
    /// A folder with `config.json` and safetensors, a `.gguf` file, or a known name
    model: String,

    /// The text behind which the answer is expected
    #[arg(long, value_name = "TEXT")]
    clean: String,

    /// The same with a difference that spoils the answer
    #[arg(long, value_name = "TEXT")]
    corrupt: String,

    /// The token that is the answer, with its space: `' Paris'`, or `id:17`
    #[arg(long, value_name = "TOKEN")]
    answer: String,

    /// The token that would be the answer to the corrupt text
    #[arg(long, value_name = "TOKEN")]
    wrong: Option<String>,

    /// Where to patch, with `*` and ranges of layers, and parts such as `blocks.*.attn.hook_z[2]`
    #[arg(long, value_name = "LIST", default_value = "blocks.*.hook_resid_pre")]
    hook_points: String,

    /// `denoise`: the clean text's activations into the corrupt one; `noise`: the other way round
    #[arg(long, value_enum, default_value_t = Way::Denoise)]
    direction: Way,

    /// Tokens that go through the network at once
    #[arg(long, value_name = "N", default_value_t = 1024)]
    batch_tokens: usize,

    #[command(flatten)]
    compute: Compute,

    /// Print one JSON object with the logits of every place on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    Denoise,
    Noise,
    Both,
}

impl Way {
    const fn directions(self) -> &'static [Direction] {
        match self {
            Self::Denoise => &[Direction::Denoise],
            Self::Noise => &[Direction::Noise],
            Self::Both => &[Direction::Denoise, Direction::Noise],
        }
    }
}

impl Patch {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        let weights = Weights::open(catalog::resolve(&self.model)?)?;
        let tokenizer = weights.tokenizer()?;
        let at = targets(&self.hook_points, &weights.config().shape())?;
        let read = |text: &str| token::read(text, &tokenizer, weights.config().d_vocab);
        let mut patching = Patching {
            clean: tokenizer.ids(&self.clean, true),
            corrupt: tokenizer.ids(&self.corrupt, true),
            answer: read(&self.answer)?,
            wrong: self.wrong.as_deref().map(read).transpose()?,
            at,
            direction: Direction::Denoise,
            batch_tokens: self.batch_tokens,
        };
        let tokens = Tokens::new(&patching, &tokenizer);
        if patching.clean.len() != patching.corrupt.len() {
            output::note(&format!("clean:   {}\ncorrupt: {}", tokens.clean.join(" "), tokens.corrupt.join(" ")));
            return Err(Error::Unequal { clean: patching.clean.len(), corrupt: patching.corrupt.len() }.into());
        }
        let load = self.compute.open(weights.config())?;
        device::set_threads(self.compute.threads);
        let model = Model::from_weights(&weights, load)?;
        let mut tables = Vec::new();
        for &direction in self.direction.directions() {
            patching.direction = direction;
            let bar = progress::steps(0, name(direction));
            let table = model.patching(&patching, &mut |done, total| {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                interrupt::flow()
            })?;
            bar.finish_and_clear();
            tables.push((direction, table.ok_or(Interrupted { resume: None })?));
        }
        if self.json {
            let tables: Vec<Value> =
                tables.iter().map(|(direction, table)| json(*direction, table, &patching.at)).collect();
            return output::json(&json!({
                "clean": self.clean, "corrupt": self.corrupt, "clean_tokens": tokens.clean, "corrupt_tokens": tokens.corrupt,
                "answer": self.answer, "wrong": self.wrong, "positions": patching.clean.len(), "tables": tables,
            }));
        }
        for (direction, table) in &tables {
            output::text(&text(*direction, table, &patching.at, &tokens))?;
        }
        Ok(())
    }
}

/// The texts of the tokens of both texts.
struct Tokens {
    clean: Vec<String>,
    corrupt: Vec<String>,
}

impl Tokens {
    fn new(patching: &Patching, tokenizer: &Tokenizer) -> Self {
        let text = |&id: &u32| format!("{:?}", tokenizer.token_text(id).unwrap_or_else(|| format!("<{id}>")));
        let texts = |ids: &[u32]| ids.iter().map(text).collect();
        Self { clean: texts(&patching.clean), corrupt: texts(&patching.corrupt) }
    }
}

const fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Denoise => "denoise",
        Direction::Noise => "noise",
    }
}

fn json(direction: Direction, table: &PatchTable, at: &[(HookPoint, Part)]) -> Value {
    let rows: Vec<Value> = at
        .iter()
        .zip(&table.metric)
        .map(|((point, part), metric)| {
            let normalised: Vec<Option<f32>> = metric.iter().map(|&metric| table.normalised(metric)).collect();
            json!({ "hook_point": format!("{point}{part}"), "metric": metric, "normalised": normalised })
        })
        .collect();
    json!({ "direction": name(direction), "clean": table.clean, "corrupt": table.corrupt, "rows": rows })
}

/// From the first token in which the texts differ on: before it there is nothing to see.
fn text(direction: Direction, table: &PatchTable, at: &[(HookPoint, Part)], tokens: &Tokens) -> String {
    let first = tokens.clean.iter().zip(&tokens.corrupt).position(|(a, b)| a != b).unwrap_or(tokens.clean.len());
    let into = match direction {
        Direction::Denoise => "the clean text's activations in the corrupt one",
        Direction::Noise => "the corrupt text's activations in the clean one",
    };
    let head = |position: usize| match (&tokens.clean[position], &tokens.corrupt[position]) {
        (clean, corrupt) if clean == corrupt => format!("{position} {clean}"),
        (clean, corrupt) => format!("{position} {clean}/{corrupt}"),
    };
    let positions = first..tokens.clean.len();
    let right: Vec<usize> = (1..=positions.len()).collect();
    let mut rows = vec![std::iter::once(String::new()).chain(positions.map(head)).collect::<Vec<_>>()];
    for ((point, part), metric) in at.iter().zip(&table.metric) {
        let cell = |&metric: &f32| table.normalised(metric).map_or_else(|| "-".to_owned(), |part| format!("{part:.2}"));
        rows.push(std::iter::once(format!("{point}{part}")).chain(metric[first..].iter().map(cell)).collect());
    }
    let PatchTable { clean, corrupt, .. } = table;
    format!(
        "{}: {into}; metric {corrupt:.3} corrupt, {clean:.3} clean\n{}",
        name(direction),
        output::table(&rows, &right)
    )
}
