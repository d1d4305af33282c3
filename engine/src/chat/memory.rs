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
/// the last reply, and before it. The longer one that the next prompt begins with is taken.
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

    /// Continues `prompt`, the tokens of the whole conversation, as [`Model::generate`] does.
    ///
    /// `hooks` see what is computed: the part of the prompt that is not remembered, in one pass but for its last token.
    pub fn reply(
        &mut self,
        model: &Model,
        prompt: &[u32],
        options: &Generate,
        hooks: &mut Hooks<'_>,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        // The last token is always computed: its logits are needed.
        let fits = |(_, ids): &(KvCache, Vec<u32>)| ids.len() < prompt.len() && prompt.starts_with(ids);
        self.states.retain(fits);
        self.states.sort_by_key(|(_, ids)| ids.len());
        let (mut cache, remembered) = self.states.pop().unwrap_or_else(|| (model.kv_cache(1), Vec::new()));
        self.states.clear();
        self.reused = remembered.len();

        let n = prompt.len().saturating_sub(1);
        let (past, last) = prompt.split_at(n);
        if self.reused < past.len() {
            model.forward(&Batch::one(&past[self.reused..]), Some(&mut cache), hooks, Forward::default())?;
        }
        self.states.push((cache.fork(), past.to_vec()));
        let generated = model.generate_from(&mut cache, last, options, hooks, on_token)?;
        let ids = prompt.iter().chain(&generated).take(cache.seen()[0]).copied().collect();
        self.states.push((cache, ids));
        Ok(generated)
    }
}
