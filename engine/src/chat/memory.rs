//! What of a conversation need not be computed again when the next turn comes?

use std::ops::ControlFlow;

use crate::error::Result;
use crate::gemma::model::{Batch, Forward, Model};
use crate::generate::Generate;
use crate::hook::Hooks;
use crate::kv_cache::KvCache;

/// The keys and values of a conversation, and the tokens that they belong to.
///
/// A template may leave out of the past what was said (thoughts) or write it differently, so two states are kept: after
/// the last reply, and before the turn that it stands in. The longer one that the next prompt begins with is taken.
#[derive(Debug, Default)]
pub struct Memory {
    states: Vec<(KvCache, Vec<u32>)>,
    reused: usize,
}

impl Memory {
    /// How many tokens of the last prompt were remembered.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// Continues `prompt`, the tokens of the whole conversation, as [`Model::generate`] does; the first `before_turn` of
    /// them come before the model's turn.
    ///
    /// `hooks` see what is computed: the part of the prompt that is not remembered, in one pass of several tokens, by which
    /// they tell it from what is generated. Where there are any, the state before the turn is not kept.
    pub fn reply(
        &mut self,
        model: &Model,
        prompt: &[u32],
        before_turn: usize,
        options: &Generate,
        hooks: &mut Hooks<'_>,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        // The last token is always computed: its logits are needed.
        let most = prompt.len().saturating_sub(if hooks.is_empty() { 1 } else { 2 });
        let fits = |(_, ids): &(KvCache, Vec<u32>)| ids.len() <= most && prompt.starts_with(ids);
        self.states.retain(fits);
        self.states.sort_by_key(|(_, ids)| ids.len());
        let (mut cache, remembered) = self.states.pop().unwrap_or_else(|| (model.kv_cache(1), Vec::new()));
        self.states.clear();
        self.reused = remembered.len();

        let split = if hooks.is_empty() { before_turn.min(most).max(self.reused) } else { self.reused };
        if self.reused < split {
            let past = Batch::one(&prompt[self.reused..split]);
            model.forward(&past, Some(&mut cache), &mut Hooks::none(), Forward::default())?;
        }
        self.states.push((cache.fork(), prompt[..split].to_vec()));
        let generated = model.generate_from(&mut cache, &prompt[split..], options, hooks, on_token)?;
        let ids = prompt.iter().chain(&generated).take(cache.seen()[0]).copied().collect();
        self.states.push((cache, ids));
        Ok(generated)
    }
}
