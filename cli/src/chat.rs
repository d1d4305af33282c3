//! `polariscope run --chat`: how do a person and a model take turns?
//!
//! A line of standard input is a turn; a line that ends in `\` goes on with the next. Where the model has called tools, the
//! next turns are their results. Thoughts, answers and calls are printed as they come, or as one JSON object each.
//! Ctrl-C stops the model where it speaks, and ends the conversation where it listens.

use std::io::{self, IsTerminal as _};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use engine::chat::{Chat, ChatOptions, Memory, Message, ReplyPart, Role};
use engine::config::Config;
use engine::gemma::model::Model;
use engine::generate::Generate;
use engine::hook::Hooks;
use engine::tokenizer::Tokenizer;
use fs_err as fs;
use serde_json::{Value, json};

use crate::failure::Interrupted;
use crate::hands::Hands;
use crate::{interrupt, output};

/// How long Ctrl-C may go unnoticed while nobody types.
const ATTENTION: Duration = Duration::from_millis(50);

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
    pub(crate) fn open(&self, tokenizer: &Tokenizer, config: &Config) -> Result<Option<Talk>> {
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
        let chat = Chat::new(tokenizer, config, !tools.is_empty())?;
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

/// Takes turns until the input ends, or Ctrl-C ends it; with `prompt`, one turn.
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
    let lines = if prompt.is_none() { Some(Lines::listen(json)?) } else { None };
    let max_tokens = generate.max_tokens;
    loop {
        let said = match (&lines, prompt) {
            (Some(lines), _) => lines.turn(messages.last())?,
            (None, prompt) => Some(vec![Message::new(Role::User, prompt.unwrap_or_default())]),
        };
        let Some(said) = said else { return Ok(()) };
        messages.extend(said);

        let ids = chat.encode(tokenizer, &messages, &options)?;
        let n_ctx = model.config().n_ctx;
        if ids.len() >= n_ctx {
            bail!("expected a conversation below the context of {n_ctx} tokens, found {} tokens", ids.len());
        }
        let mut reader = chat.reader(tokenizer, &ids);
        generate.max_tokens = max_tokens.min(n_ctx - ids.len());
        let mut voice = Voice { json, reply: Message::new(Role::Assistant, ""), thinking: false, mid_line: false };
        let mut printed = Ok(());
        let mut hooks = Hooks::none();
        hands.attach(&mut hooks);
        let before_turn = chat.before_turn(&ids);
        let spoken = memory.reply(model, &ids, before_turn, &generate, &mut hooks, &mut |id| {
            printed = reader.push(id).into_iter().try_for_each(|part| voice.say(part));
            if printed.is_err() { ControlFlow::Break(()) } else { interrupt::flow() }
        })?;
        printed?;
        reader.finish().into_iter().try_for_each(|part| voice.say(part))?;
        let end = match () {
            () if interrupt::pressed() => "interrupted",
            () if spoken.len() == max_tokens => "max_tokens",
            () if spoken.len() == generate.max_tokens => "context",
            () => "turn",
        };
        voice.end(ids.len(), memory.reused(), spoken.len(), end)?;
        messages.push(voice.reply);
        match &lines {
            // A person who stopped the model may want to say something else.
            Some(lines) if lines.terminal => interrupt::heeded(),
            _ if interrupt::pressed() => return Err(Interrupted { resume: None }.into()),
            None => return Ok(()),
            Some(_) => {}
        }
        // Another turn, other draws.
        generate.sampling.seed = generate.sampling.seed.wrapping_add(1);
    }
}

/// Turns from standard input, which a thread of its own reads: a read cannot be interrupted, waiting for one can.
struct Lines {
    said: Receiver<io::Result<String>>,
    /// Whether a person is at the other end.
    terminal: bool,
    /// Whether that person is told when to type.
    asks: bool,
}

impl Lines {
    fn listen(json: bool) -> Result<Self> {
        // A pipe may have more than is ever answered.
        let (line, said) = mpsc::sync_channel(1);
        let read = move || io::stdin().lines().try_for_each(|read| line.send(read));
        thread::Builder::new().name("standard input".to_owned()).spawn(read)?;
        let terminal = io::stdin().is_terminal();
        if terminal {
            output::note(
                "each line is a turn; Ctrl-C stops the model, and ends the conversation where it waits for you",
            );
        }
        Ok(Self { said, terminal, asks: terminal && !json })
    }

    /// What is said next: a turn of the user, or the results of all the tools that `last` called. `None` at the end.
    fn turn(&self, last: Option<&Message>) -> Result<Option<Vec<Message>>> {
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

    /// Text up to a line that does not end in `\`; lines without text are passed over. `None` at the end.
    fn read(&self, ask: &str) -> Result<Option<String>> {
        let mut text = String::new();
        loop {
            let Some(line) = self.line(if text.is_empty() { ask } else { "  " })? else {
                // What was not finished is not said.
                return Ok(Some(text).filter(|text| !text.trim().is_empty() && !interrupt::pressed()));
            };
            if let Some(line) = line.strip_suffix('\\') {
                text.extend([line, "\n"]);
                continue;
            }
            text.push_str(&line);
            if !text.trim().is_empty() {
                return Ok(Some(text));
            }
            text.clear();
        }
    }

    /// `None` where the input ends, or Ctrl-C ends it.
    fn line(&self, ask: &str) -> Result<Option<String>> {
        if self.asks {
            output::piece(ask)?;
        }
        loop {
            match self.said.recv_timeout(ATTENTION) {
                Ok(line) => return Ok(Some(line.context("cannot read standard input")?)),
                Err(RecvTimeoutError::Timeout) if !interrupt::pressed() => {}
                Err(_) if self.asks => {
                    // What comes next on the terminal stands on a line of its own.
                    output::text("")?;
                    return Ok(None);
                }
                Err(_) => return Ok(None),
            }
        }
    }
}

/// Prints what the model says, and puts its turn together.
struct Voice {
    json: bool,
    reply: Message,
    /// Whether the last that was printed is a thought.
    thinking: bool,
    /// Whether something stands on the line that is being written.
    mid_line: bool,
}

impl Voice {
    fn say(&mut self, part: ReplyPart) -> Result<()> {
        let thought = matches!(part, ReplyPart::Reasoning(_));
        let turns = thought != self.thinking;
        self.thinking = thought;
        match part {
            ReplyPart::Reasoning(text) => {
                self.show(if turns { "[thinks] " } else { "" }, &text, &json!({"event": "reasoning", "text": text}))?;
                self.reply.reasoning.get_or_insert_default().push_str(&text);
            }
            ReplyPart::Text(text) => {
                self.show(if turns { "\n" } else { "" }, &text, &json!({"event": "text", "text": text}))?;
                self.reply.content.push_str(&text);
            }
            ReplyPart::ToolCall(call) => {
                let shown = format!("[calls] {} {}\n", call.name, Value::from(call.arguments.clone()));
                let event = json!({"event": "tool_call", "name": call.name, "arguments": call.arguments});
                self.show(self.new_line(), &shown, &event)?;
                self.reply.tool_calls.push(call);
            }
            ReplyPart::BrokenCall(text) => {
                let shown = format!("[calls, but not in the grammar] {text}\n");
                self.show(self.new_line(), &shown, &json!({"event": "broken_call", "text": text}))?;
            }
        }
        Ok(())
    }

    fn new_line(&self) -> &'static str {
        if self.mid_line { "\n" } else { "" }
    }

    fn show(&mut self, before: &str, text: &str, event: &Value) -> Result<()> {
        if self.json {
            return output::json(event);
        }
        self.mid_line = !text.ends_with('\n');
        output::piece(&format!("{before}{text}"))
    }

    fn end(&self, prompt_tokens: usize, reused_tokens: usize, tokens: usize, end: &str) -> Result<()> {
        if !self.json {
            return output::piece(self.new_line());
        }
        output::json(&json!({
            "event": "end", "prompt_tokens": prompt_tokens, "reused_tokens": reused_tokens, "tokens": tokens, "end": end,
        }))
    }
}
