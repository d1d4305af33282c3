//! How does a conversation become the tokens that a model was trained to read, and its tokens an answer?
//!
//! [`Chat`] holds the chat template: the checkpoint's own where it has one, else one of ours for the generation that the
//! control tokens belong to. [`Chat::encode`] gives the prompt, [`Chat::stop_ids`] where to stop, [`Chat::reader`] takes
//! what comes apart into reasoning, answer and tool calls, and [`Memory`] keeps the model's cache from turn to turn.

mod call;
mod jinja;
mod memory;
mod reply;

use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

pub use self::memory::Memory;
pub use self::reply::{ReplyPart, ReplyReader};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// One turn of a conversation, or the result of one tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    #[serde(default)]
    pub content: String,
    /// What the assistant thought before it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// What the assistant asks tools to do; each is answered by one message of [`Role::Tool`], in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A tool that is to be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    pub name: String,
    pub arguments: Map<String, Json>,
}

impl Message {
    /// A message that is nothing but text. Of a tool, the text is its result, which may be JSON.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), reasoning: None, tool_calls: Vec::new() }
    }
}

/// What a template is told beside the messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOptions {
    /// Functions with `name`, `description` and `parameters` (a JSON schema), bare or inside `{"function": …}`.
    pub tools: Vec<Json>,
    /// Whether the model may think before it answers.
    pub thinking: bool,
    /// For templates that write the date.
    pub now: Option<DateTime>,
}

/// The control tokens of a generation of Gemma.
#[derive(Debug)]
struct Generation {
    /// A token that only this generation has.
    turn_start: &'static str,
    /// Beside the tokenizer's own, the tokens at which the model hands over.
    stops: &'static [&'static str],
    /// Ours, for checkpoints without one.
    template: &'static str,
}

const GENERATIONS: &[Generation] = &[
    Generation {
        turn_start: "<|turn>",
        stops: &["<turn|>", "<|tool_response>"],
        template: include_str!("chat/gemma4.jinja"),
    },
    Generation {
        turn_start: "<start_of_turn>",
        stops: &["<end_of_turn>"],
        template: include_str!("chat/gemma3.jinja"),
    },
];

/// A template, ready to be rendered.
#[derive(Debug)]
pub struct Chat {
    template: jinja::Template,
    source: String,
    own: bool,
    /// Whether our template of Gemma 4 answers for the model that it has thought nothing. Those of the E2B and E4B do
    /// not, which are the ones with per-layer embeddings.
    empty_thought: bool,
    /// What begins a turn.
    turn_start: Option<u32>,
    /// The strings of the tokens with a role, under the names that templates know them by.
    roles: Map<String, Json>,
    stop_ids: Vec<u32>,
}

impl Chat {
    /// The template for a model with this tokenizer and shape; with tools, the one that is meant for tools where there are two.
    ///
    /// A model without a template and without any generation's control tokens is an error: it was not trained to chat.
    pub fn new(tokenizer: &Tokenizer, config: &Config, tools: bool) -> Result<Self> {
        let generation = GENERATIONS.iter().find(|generation| tokenizer.id_of(generation.turn_start).is_some());
        let for_tools = if tools { tokenizer.chat_template("tool_use") } else { None };
        let (source, own) = match (for_tools.or_else(|| tokenizer.chat_template("default")), generation) {
            (Some(source), _) => (source, true),
            (None, Some(generation)) => (generation.template, false),
            (None, None) => return Err(Error::NoChat),
        };
        let mut roles = Map::new();
        let ids = [
            ("bos_token", tokenizer.bos_id()),
            ("eos_token", tokenizer.eos_ids().first().copied()),
            ("pad_token", tokenizer.pad_id()),
            ("unk_token", tokenizer.id_of("<unk>")),
        ];
        for (name, id) in ids {
            if let Some(text) = id.and_then(|id| tokenizer.token_text(id)) {
                roles.insert(name.to_owned(), text.into());
            }
        }
        let mut stop_ids = tokenizer.eos_ids().to_vec();
        for id in
            generation.into_iter().flat_map(|generation| generation.stops).filter_map(|stop| tokenizer.id_of(stop))
        {
            if !stop_ids.contains(&id) {
                stop_ids.push(id);
            }
        }
        let template = jinja::Template::parse(source).map_err(|error| refused(&error))?;
        let turn_start = generation.and_then(|generation| tokenizer.id_of(generation.turn_start));
        let empty_thought = config.ple.is_none();
        Ok(Self { template, source: source.to_owned(), own, empty_thought, turn_start, roles, stop_ids })
    }

    /// Whether the template is the checkpoint's own. A checkpoint without one may never have been trained to chat.
    pub fn is_own(&self) -> bool {
        self.own
    }

    /// The tokens that end the model's turn.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The text of a conversation, up to where the model is to speak.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        for (asked, word, what) in
            [(!options.tools.is_empty(), "tools", "tools"), (options.thinking, "enable_thinking", "thinking")]
        {
            if asked && !self.source.contains(word) {
                let what = format!("expected a template that knows {what}, found one that does not name `{word}`");
                return Err(Error::ChatTemplate { what });
            }
        }
        let mut context = self.roles.clone();
        let tools: Vec<Json> = options.tools.iter().map(wrapped).collect();
        let tools = if tools.is_empty() { Json::Null } else { tools.into() };
        context.extend([
            ("messages".to_owned(), self.plain(messages).into()),
            ("tools".to_owned(), tools),
            ("documents".to_owned(), Json::Null),
            ("enable_thinking".to_owned(), options.thinking.into()),
            ("empty_thought".to_owned(), self.empty_thought.into()),
            ("add_generation_prompt".to_owned(), true.into()),
        ]);
        self.template.render(&context.into(), options.now).map_err(|error| refused(&error))
    }

    /// The tokens of a conversation, up to where the model is to speak. Templates write the beginning of a sequence
    /// themselves, so none is added.
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &[Message], options: &ChatOptions) -> Result<Vec<u32>> {
        let text = self.render(messages, options)?;
        Ok(tokenizer.ids(&text, false))
    }

    /// How many tokens of a prompt come before the model's turn. Templates may write that turn differently once it is
    /// past: they leave thoughts out.
    pub fn before_turn(&self, prompt: &[u32]) -> usize {
        let start = prompt.iter().rposition(|&id| Some(id) == self.turn_start);
        start.unwrap_or(prompt.len().saturating_sub(1))
    }

    /// A reader of what the model says after `prompt`.
    pub fn reader<'t>(&self, tokenizer: &'t Tokenizer, prompt: &[u32]) -> ReplyReader<'t> {
        ReplyReader::new(tokenizer, prompt)
    }

    /// The messages as templates read them: names and shapes of the chat completions that transformers documents.
    fn plain(&self, messages: &[Message]) -> Vec<Json> {
        // Gemma 4's templates, in all their versions, take results inside the message that asked for them.
        let inside = self.source.contains("tool_responses");
        let mut plain: Vec<Json> = Vec::new();
        // The calls that have no result yet: name and number.
        let mut open = Vec::new().into_iter();
        let mut n_calls = 0;
        for message in messages {
            let previous = plain.last_mut().filter(|previous| previous.get("tool_responses").is_some());
            match (message.role, previous) {
                (Role::Tool, Some(previous)) if inside => {
                    let name = open.next().map_or_else(|| "unknown".to_owned(), |(name, _)| name);
                    let text = message.content.as_str();
                    let response: Json = serde_json::from_str(text).unwrap_or_else(|_| text.into());
                    if let Some(Json::Array(responses)) = previous.get_mut("tool_responses") {
                        responses.push(json!({"name": name, "response": response}));
                    }
                }
                (Role::Tool, _) => {
                    let (name, id) = open.next().unwrap_or_else(|| ("unknown".to_owned(), String::new()));
                    plain.push(json!({"role": "tool", "name": name, "tool_call_id": id, "content": message.content}));
                }
                // The answer after the results belongs to the turn that they stand in.
                (Role::Assistant, Some(previous)) if message.tool_calls.is_empty() && answered(previous) => {
                    previous["content"] = message.content.as_str().into();
                }
                (role, _) => {
                    let mut turn = json!({"role": role, "content": message.content});
                    if let Some(reasoning) = &message.reasoning {
                        for name in ["reasoning", "reasoning_content", "thinking"] {
                            turn[name] = reasoning.as_str().into();
                        }
                    }
                    if !message.tool_calls.is_empty() {
                        let calls = (n_calls..).zip(&message.tool_calls).map(|(n, call)| (format!("call_{n}"), call));
                        let calls: Vec<(String, &ToolCall)> = calls.collect();
                        n_calls += calls.len();
                        turn["tool_calls"] = calls
                            .iter()
                            .map(|(id, call)| json!({"type": "function", "id": id, "function": call}))
                            .collect::<Vec<Json>>()
                            .into();
                        if inside {
                            turn["tool_responses"] = json!([]);
                        }
                        let names = calls.into_iter().map(|(id, call)| (call.name.clone(), id));
                        open = names.collect::<Vec<_>>().into_iter();
                    }
                    plain.push(turn);
                }
            }
        }
        plain
    }
}

/// Whether every call of a message has its result, and nothing was said after them.
fn answered(message: &Json) -> bool {
    let count = |key: &str| message.get(key).and_then(Json::as_array).map_or(0, Vec::len);
    count("tool_responses") == count("tool_calls")
        && message["content"].as_str().is_none_or(|text| text.trim().is_empty())
}

fn wrapped(tool: &Json) -> Json {
    if tool.get("function").is_some() { tool.clone() } else { json!({"type": "function", "function": tool}) }
}

fn refused(error: &minijinja::Error) -> Error {
    Error::ChatTemplate { what: jinja::describe(error) }
}

#[cfg(test)]
mod tests;
