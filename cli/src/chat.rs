//! `polariscope run --chat`: how do a person and a model take turns?
//!
//! A line of standard input is a turn; a line that ends in `\` goes on with the next. Where the model has called tools, the
//! next turns are their results. Thoughts, answers and calls are printed as they come, or as one JSON object each.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use engine::chat::{Chat, ChatOptions, Memory, Message, ReplyPart, Role};
use engine::gemma::model::Model;
use engine::generate::Generate;
use engine::hook::Hooks;
use engine::tokenizer::Tokenizer;
use fs_err as fs;
use serde_json::{Value, json};

use crate::hands::Hands;
use crate::{interrupt, output};

/// What is said in a conversation beside its turns.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Talk, turn by turn, with the checkpoint's chat template; without `--prompt`, the turns are read from standard input
    #[arg(long)]
    chat: bool,

    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,

    /// A JSON list of functions that the model may call: `name`, `description`, `parameters` (a JSON schema)
    #[arg(long, value_name = "FILE", requires = "chat")]
    tools: Option<PathBuf>,

    /// Let the model think before it answers
    #[arg(long, requires = "chat")]
    think: bool,
}

/// A conversation that can begin.
pub(crate) struct Talk {
    chat: Chat,
    options: ChatOptions,
    messages: Vec<Message>,
}

impl ChatArgs {
    /// `None` without `--chat`. Refuses what the model was not trained for, before its weights are loaded.
    pub(crate) fn open(&self, tokenizer: &Tokenizer) -> Result<Option<Talk>> {
        if !self.chat {
            return Ok(None);
        }
        let tools = match &self.tools {
            Some(path) => match serde_json::from_str(&fs::read_to_string(path)?) {
                Ok(Value::Array(tools)) => tools,
                Ok(_) => bail!("expected a JSON list of functions in `{}`", path.display()),
                Err(err) => return Err(err).with_context(|| format!("expected JSON in `{}`", path.display())),
            },
            None => Vec::new(),
        };
        let chat = Chat::new(tokenizer, !tools.is_empty())?;
        if !chat.is_own() {
            output::note("the checkpoint has no chat template: taking ours; a base model will ramble");
        }
        let messages: Vec<Message> = self.system.iter().map(|text| Message::new(Role::System, text)).collect();
        let now = jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::now());
        let options = ChatOptions { tools, thinking: self.think, now: Some(now) };
        let mut first = messages.clone();
        first.push(Message::new(Role::User, "Hello"));
        chat.render(&first, &options)?;
        Ok(Some(Talk { chat, options, messages }))
    }
}

impl Talk {
    pub(crate) fn stop_ids(&self) -> &[u32] {
        self.chat.stop_ids()
    }
}

/// Takes turns until the input ends; with `prompt`, one turn.
pub(crate) fn talk(
    talk: Talk,
    model: &Model,
    tokenizer: &Tokenizer,
    mut generate: Generate,
    hands: &Hands<'_>,
    prompt: Option<&str>,
    json: bool,
) -> Result<()> {
    let Talk { chat, options, mut messages } = talk;
    let mut memory = Memory::default();
    let mut lines = Lines { json };
    loop {
        let said = match prompt {
            Some(prompt) => Some(vec![Message::new(Role::User, prompt)]),
            None => lines.turn(messages.last())?,
        };
        let Some(said) = said else { return Ok(()) };
        messages.extend(said);

        let ids = chat.encode(tokenizer, &messages, &options)?;
        let n_ctx = model.config().n_ctx;
        if ids.len() >= n_ctx {
            bail!("expected a conversation below the context of {n_ctx} tokens, found {} tokens", ids.len());
        }
        let mut reader = chat.reader(tokenizer, &ids);
        let mut voice = Voice { json, reply: Message::new(Role::Assistant, ""), thinking: false };
        let mut printed = Ok(());
        let mut hooks = Hooks::none();
        hands.attach(&mut hooks);
        let spoken = memory.reply(model, &ids, &generate, &mut hooks, &mut |id| {
            printed = reader.push(id).into_iter().try_for_each(|part| voice.say(part));
            if printed.is_err() { ControlFlow::Break(()) } else { interrupt::flow() }
        })?;
        printed?;
        reader.finish().into_iter().try_for_each(|part| voice.say(part))?;
        let end = match () {
            () if interrupt::pressed() => "interrupted",
            () if spoken.len() == generate.max_tokens => "max_tokens",
            () => "turn",
        };
        voice.end(ids.len(), memory.reused(), spoken.len(), end)?;
        messages.push(voice.reply);
        if prompt.is_some() || interrupt::pressed() {
            return Ok(());
        }
        // Another turn, other draws.
        generate.sampling.seed = generate.sampling.seed.wrapping_add(1);
    }
}

/// Turns from standard input.
struct Lines {
    json: bool,
}

impl Lines {
    /// What is said next: a turn of the user, or the results of all the tools that `last` called.
    fn turn(&mut self, last: Option<&Message>) -> Result<Option<Vec<Message>>> {
        let calls = last.map_or(&[][..], |last| &last.tool_calls);
        if calls.is_empty() {
            return Ok(self.read("> ")?.map(|text| vec![Message::new(Role::User, text)]));
        }
        let mut results = Vec::new();
        for call in calls {
            match self.read(&format!("result of {}: ", call.name))? {
                Some(text) => results.push(Message::new(Role::Tool, text)),
                None => return Ok(None),
            }
        }
        Ok(Some(results))
    }

    /// Text up to a line that does not end in `\`; lines without text are passed over. `None` at the end of the input.
    fn read(&mut self, ask: &str) -> Result<Option<String>> {
        let mut input = io::stdin().lock();
        let mut text = String::new();
        loop {
            if input.is_terminal() && !self.json {
                output::piece(if text.is_empty() { ask } else { "  " })?;
            }
            let mut line = String::new();
            let ended = input.read_line(&mut line).context("cannot read standard input")? == 0;
            let line = line.trim_end_matches(['\n', '\r']);
            match line.strip_suffix('\\') {
                Some(line) if !ended => {
                    text.push_str(line);
                    text.push('\n');
                    continue;
                }
                _ => text.push_str(line),
            }
            if !text.trim().is_empty() {
                return Ok(Some(text));
            }
            if ended || interrupt::pressed() {
                return Ok(None);
            }
            text.clear();
        }
    }
}

/// Prints what the model says, and puts its turn together.
struct Voice {
    json: bool,
    reply: Message,
    /// Whether the last that was printed is a thought.
    thinking: bool,
}

impl Voice {
    fn say(&mut self, part: ReplyPart) -> Result<()> {
        let thought = matches!(part, ReplyPart::Reasoning(_));
        if thought != self.thinking && !self.json {
            output::piece(if thought { "[thinks] " } else { "\n" })?;
        }
        self.thinking = thought;
        let (event, shown) = match part {
            ReplyPart::Reasoning(text) => {
                self.reply.reasoning.get_or_insert_default().push_str(&text);
                (json!({"event": "reasoning", "text": text}), text)
            }
            ReplyPart::Text(text) => {
                self.reply.content.push_str(&text);
                (json!({"event": "text", "text": text}), text)
            }
            ReplyPart::ToolCall(call) => {
                let shown = format!("[calls] {} {}\n", call.name, Value::from(call.arguments.clone()));
                let event = json!({"event": "tool_call", "name": call.name, "arguments": call.arguments});
                self.reply.tool_calls.push(call);
                (event, shown)
            }
            ReplyPart::BrokenCall(text) => {
                let shown = format!("[calls, but not in the grammar] {text}\n");
                (json!({"event": "broken_call", "text": text}), shown)
            }
        };
        if self.json { output::json(&event) } else { output::piece(&shown) }
    }

    fn end(&self, prompt_tokens: usize, reused_tokens: usize, tokens: usize, end: &str) -> Result<()> {
        if !self.json {
            return output::text("");
        }
        output::json(&json!({
            "event": "end", "prompt_tokens": prompt_tokens, "reused_tokens": reused_tokens, "tokens": tokens, "end": end,
        }))
    }
}
