//! `polariscope run`: what does the model say next?

use std::ops::ControlFlow;

use anyhow::Result;
use clap::Args;
use engine::device;
use engine::gemma::model::{Batch, Forward, Model};
use engine::generate::{Generate, Sampling};
use engine::hook::Hooks;
use engine::tokenizer::{TextStream, Tokenizer};
use engine::weights::Weights;
use serde_json::json;

use crate::chat::{self, ChatArgs};
use crate::compute::Compute;
use crate::failure::Interrupted;
use crate::hands::{GRAMMAR, Hands, HandsArgs};
use crate::{catalog, interrupt, output};

/// Continues a prompt, or talks
#[derive(Debug, Args)]
#[command(
    after_help = format!("Examples:\n  polariscope run gemma-3-270m --prompt 'The capital of France is' --max-tokens 20\n  \
                        polariscope run gemma-3-270m-it --chat --system 'Answer in one sentence.'\n  \
                        polariscope run gemma-3-270m --prompt 'The capital of France is' --logit-lens --attribution ' Paris'\n  \
                        polariscope run gemma-3-270m --prompt 'I think' --intervene 'add blocks.9.hook_resid_post \"love\" - \"hate\"'\n\n{GRAMMAR}")
)]
pub(crate) struct Run {
    /// A folder with `config.json` and safetensors, a `.gguf` file, or a known name
    model: String,

    /// The text to continue; with `--chat`, the one thing to say
    #[arg(long, value_name = "TEXT", required_unless_present = "chat")]
    prompt: Option<String>,

    #[command(flatten)]
    chat: ChatArgs,

    #[command(flatten)]
    choice: Choice,

    #[command(flatten)]
    compute: Compute,

    #[command(flatten)]
    hands: HandsArgs,

    /// Print one JSON object with the tokens on standard output; with `--chat`, one for each piece that is said
    #[arg(long)]
    json: bool,
}

/// How tokens are chosen, and how many.
#[derive(Debug, Clone, Copy, Args)]
struct Choice {
    /// Most tokens to generate [default: 64, with `--chat` 1024]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,

    /// What logits are divided by before a token is drawn; 0 always takes the most probable one
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,

    /// Draw only from this many of the most probable tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Draw only from the smallest set of tokens whose probabilities reach this sum
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,

    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Tokens of a text, and of a turn, where nothing else is said.
const MAX_TOKENS: usize = 64;
const MAX_TURN_TOKENS: usize = 1024;

impl Run {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        let path = catalog::resolve(&self.model)?;
        let weights = Weights::open(&path)?;
        let load = self.compute.open(weights.config())?;
        let tokenizer = weights.tokenizer()?;
        let chat = self.chat.open(&tokenizer, weights.config())?;
        device::set_threads(self.compute.threads);
        let model = Model::from_weights(&weights, load)?;
        let (max_tokens, stop) = match &chat {
            Some(chat) => (MAX_TURN_TOKENS, chat.stop_ids().to_vec()),
            None => (MAX_TOKENS, tokenizer.eos_ids().to_vec()),
        };
        let Choice { temperature, top_k, top_p, seed, .. } = self.choice;
        let options = Generate {
            max_tokens: self.choice.max_tokens.unwrap_or(max_tokens),
            sampling: Sampling { temperature, top_k, top_p, seed },
            stop,
        };
        let hands = self.hands.open(&model, &tokenizer)?;
        if let Some(chat) = chat {
            return chat::talk(chat, &model, &tokenizer, options, &hands, self.prompt.as_deref(), self.json);
        }
        continue_text(&model, &tokenizer, &options, &hands, &self.prompt.unwrap_or_default(), self.json)?;
        if interrupt::pressed() { Err(Interrupted { resume: None }.into()) } else { Ok(()) }
    }
}

fn continue_text(
    model: &Model,
    tokenizer: &Tokenizer,
    options: &Generate,
    hands: &Hands<'_>,
    text: &str,
    json: bool,
) -> Result<()> {
    let prompt = tokenizer.ids(text, true);
    let mut stream = TextStream::new(tokenizer);
    let mut printed = Ok(());
    let mut hooks = Hooks::none();
    hands.attach(&mut hooks);
    if options.max_tokens == 0 && hands.reads() {
        model.forward(&Batch::one(&prompt), None, &mut hooks, Forward::default())?;
    }
    let ids = model.generate(&prompt, options, &mut hooks, &mut |id| {
        if !json {
            printed = output::piece(&stream.push(id));
        }
        if printed.is_err() { ControlFlow::Break(()) } else { interrupt::flow() }
    })?;
    printed?;
    let (fields, shown) = hands.report(&prompt)?;
    if json {
        let mut object = json!({
            "prompt": text, "prompt_tokens": prompt, "tokens": ids, "text": tokenizer.decode(&ids),
        });
        if let Some(object) = object.as_object_mut() {
            object.extend(fields);
        }
        return output::json(&object);
    }
    output::text(&stream.finish())?;
    if shown.is_empty() { Ok(()) } else { output::text(&shown) }
}
