//! Which of the tokens that a model says are thoughts, which are the answer, and which call a tool?

use super::{ToolCall, call};
use crate::tokenizer::{TextStream, Tokenizer};

/// A part of what the model said. Texts come in pieces that are to be joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyPart {
    /// Of the thought channel, without its marks.
    Reasoning(String),
    /// Of the answer.
    Text(String),
    ToolCall(ToolCall),
    /// What stood where a call should, as it was said: it does not follow the grammar, or was cut off.
    BrokenCall(String),
}

/// Takes tokens one by one and gives the parts as early as they are certain.
///
/// The marks are known by their ids, so that the same characters spelled out of other tokens stay text. A vocabulary
/// without the marks has nothing but answers.
#[derive(Debug)]
pub struct ReplyReader<'t> {
    stream: TextStream<'t>,
    marks: Marks,
    place: Place,
    /// What was said in this place and not given yet.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Answer,
    /// The name of a channel, which ends with its line.
    ChannelName,
    Channel,
    Call,
}

#[derive(Clone, Copy, Debug)]
struct Marks {
    channel_start: Option<u32>,
    channel_end: Option<u32>,
    call_start: Option<u32>,
    call_end: Option<u32>,
}

impl<'t> ReplyReader<'t> {
    /// `prompt` is what the model was given: a template may have opened a channel for it.
    pub(super) fn new(tokenizer: &'t Tokenizer, prompt: &[u32]) -> Self {
        let marks = Marks {
            channel_start: tokenizer.id_of("<|channel>"),
            channel_end: tokenizer.id_of("<channel|>"),
            call_start: tokenizer.id_of("<|tool_call>"),
            call_end: tokenizer.id_of("<tool_call|>"),
        };
        let last = |mark: Option<u32>| mark.and_then(|mark| prompt.iter().rposition(|&id| id == mark));
        let mut reader = Self { stream: TextStream::new(tokenizer), marks, place: Place::Answer, held: String::new() };
        if let Some(start) = last(marks.channel_start)
            && last(marks.channel_end).is_none_or(|end| end < start)
        {
            for &id in &prompt[start..] {
                reader.push(id);
            }
        }
        reader
    }

    /// What became certain with this token.
    pub fn push(&mut self, id: u32) -> Vec<ReplyPart> {
        let place = match Some(id) {
            mark if mark == self.marks.channel_start => Place::ChannelName,
            mark if mark == self.marks.call_start => Place::Call,
            mark if mark == self.marks.channel_end && self.place != Place::Call => Place::Answer,
            mark if mark == self.marks.call_end && self.place == Place::Call => Place::Answer,
            _ => {
                let text = self.stream.push(id);
                return self.take(&text).into_iter().collect();
            }
        };
        let mut parts = self.close();
        self.place = place;
        parts.retain(|part| *part != ReplyPart::Text(String::new()));
        parts
    }

    /// What is left when nothing more comes.
    pub fn finish(mut self) -> Vec<ReplyPart> {
        if self.place == Place::Call {
            let text = self.stream.finish();
            self.held.push_str(&text);
            return vec![ReplyPart::BrokenCall(self.held)];
        }
        self.close()
    }

    fn take(&mut self, text: &str) -> Option<ReplyPart> {
        self.held.push_str(text);
        match self.place {
            Place::Call => None,
            Place::Answer => {
                let text = std::mem::take(&mut self.held);
                (!text.is_empty()).then_some(ReplyPart::Text(text))
            }
            Place::ChannelName => {
                let (_, rest) = self.held.split_once('\n')?;
                self.held = rest.to_owned();
                self.place = Place::Channel;
                self.take("")
            }
            Place::Channel => {
                // The line that the closing mark stands on is not part of the thought.
                let certain = self.held.trim_end_matches('\n').len();
                let rest = self.held.split_off(certain);
                let text = std::mem::replace(&mut self.held, rest);
                (!text.is_empty()).then_some(ReplyPart::Reasoning(text))
            }
        }
    }

    /// Ends the place: gives what is held of it.
    fn close(&mut self) -> Vec<ReplyPart> {
        let text = self.stream.finish();
        let last = self.take(&text);
        let held = std::mem::take(&mut self.held);
        let call = (self.place == Place::Call).then(|| match call::parse(&held) {
            Some(call) => ReplyPart::ToolCall(call),
            None => ReplyPart::BrokenCall(held),
        });
        last.into_iter().chain(call).collect()
    }
}
