//! `polariscope run`: what does the model say next?

use std::ops::ControlFlow;

use anyhow::Result;
use clap::Args;
use engine::device;
use engine::gemma::model::Model;
use engine::generate::{Generate, Sampling};
use engine::hook::Hooks;
use engine::tokenizer::Tokenizer;
use engine::weights::Weights;
use serde_json::json;

use crate::failure::Interrupted;
use crate::record::Compute;
use crate::{catalog, interrupt, output};

/// Continues a prompt
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  polariscope run gemma-3-270m --prompt 'The capital of France is' --max-tokens 20")]
pub(crate) struct Run {
    /// A folder with `config.json` and safetensors, a `.gguf` file, or a known name
    model: String,

    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,

    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,

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

    #[command(flatten)]
    compute: Compute,

    /// Print one JSON object with the tokens on standard output
    #[arg(long)]
    json: bool,
}

impl Run {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        let path = catalog::resolve(&self.model)?;
        let weights = Weights::open(&path)?;
        let tokenizer = weights.tokenizer()?;
        device::set_threads(self.compute.threads);
        let model = Model::from_weights(&weights, self.compute.dtype.precision())?;
        let prompt: Vec<u32> = tokenizer.encode(&self.prompt, true).iter().map(|piece| piece.id).collect();
        let options = Generate {
            max_tokens: self.max_tokens,
            sampling: Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p, seed: self.seed },
            stop: tokenizer.eos_ids().to_vec(),
        };
        let mut speaker = Speaker { tokenizer: &tokenizer, ids: Vec::new(), printed: 0, failed: None };
        let silent = self.json;
        let ids = model.generate(&prompt, &options, &mut Hooks::none(), &mut |id| {
            if !silent && speaker.say(id).is_break() {
                return ControlFlow::Break(());
            }
            interrupt::flow()
        })?;
        if let Some(err) = speaker.failed {
            return Err(err);
        }
        if self.json {
            output::json(&json!({
                "prompt": self.prompt, "prompt_tokens": prompt, "tokens": ids, "text": tokenizer.decode(&ids),
            }))?;
        } else {
            output::text("")?;
        }
        if interrupt::pressed() { Err(Interrupted { resume: None }.into()) } else { Ok(()) }
    }
}

/// Prints tokens as they come, but never half a character.
struct Speaker<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Bytes of the decoded text that are printed.
    printed: usize,
    failed: Option<anyhow::Error>,
}

impl Speaker<'_> {
    fn say(&mut self, id: u32) -> ControlFlow<()> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids);
        // Bytes of a character that is not whole yet decode to the replacement character.
        if text.ends_with('\u{FFFD}') {
            return ControlFlow::Continue(());
        }
        let new = text.get(self.printed..).unwrap_or_default();
        self.printed = text.len();
        match output::piece(new) {
            Ok(()) => ControlFlow::Continue(()),
            Err(err) => {
                self.failed = Some(err);
                ControlFlow::Break(())
            }
        }
    }
}
