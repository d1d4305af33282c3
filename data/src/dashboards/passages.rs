//! Which tokens stand in a passage, read so that passages that lie near each other read the run once?

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::features::WINDOW;
use crate::store::Run;

/// Stretches of tokens that are kept: at most 64 MB.
const MAX_STRETCHES: usize = 192;

/// Tokens of a run by their number.
pub(super) struct Tokens {
    run: Run,
    /// By id: from the vocabulary, or as they are met where a run has none.
    texts: HashMap<u32, String>,
    has_vocab: bool,
    stretches: HashMap<u64, Arc<Stretch>>,
}

struct Stretch {
    id: Vec<u32>,
    special: Vec<bool>,
}

/// A token of a passage.
pub(super) struct Token {
    pub(super) text: String,
    pub(super) special: bool,
}

impl Tokens {
    pub(super) fn new(run: &Run) -> Result<Self> {
        let vocab = run.vocab()?;
        let has_vocab = vocab.is_some();
        let texts = (0..).zip(vocab.unwrap_or_default()).collect();
        Ok(Self { run: run.clone(), texts, has_vocab, stretches: HashMap::new() })
    }

    /// The text of a token id; PostgreSQL, in which it may end, has no NUL.
    pub(super) fn text(&self, id: u32) -> String {
        self.texts.get(&id).map_or_else(|| format!("#{id}"), |text| text.replace('\0', ""))
    }

    pub(super) fn passage(&mut self, tokens: Range<u64>) -> Result<Vec<Token>> {
        let mut found = Vec::with_capacity((tokens.end - tokens.start) as usize);
        for token in tokens {
            let stretch = self.stretch(token / WINDOW)?;
            let place = (token % WINDOW) as usize;
            found.push(Token { text: self.text(stretch.id[place]), special: stretch.special[place] });
        }
        Ok(found)
    }

    /// Those activations, rising by token, that are not of special tokens.
    pub(super) fn ordinary(&mut self, acts: &[(u64, f32)]) -> Result<Vec<f32>> {
        let mut found = Vec::with_capacity(acts.len());
        for acts in acts.chunk_by(|(a, _), (b, _)| a / WINDOW == b / WINDOW) {
            let stretch = self.stretch(acts[0].0 / WINDOW)?;
            let ordinary = acts.iter().filter(|(token, _)| !stretch.special[(token % WINDOW) as usize]);
            found.extend(ordinary.map(|(_, act)| *act));
        }
        Ok(found)
    }

    fn stretch(&mut self, index: u64) -> Result<Arc<Stretch>> {
        if let Some(stretch) = self.stretches.get(&index) {
            return Ok(Arc::clone(stretch));
        }
        let tokens = index * WINDOW..((index + 1) * WINDOW).min(self.run.n_tokens());
        let stretch = if self.has_vocab {
            let (id, special) = self.run.token_ids(tokens)?;
            Stretch { id, special }
        } else {
            let tokens = self.run.tokens(tokens)?;
            self.texts.extend(tokens.token_id.iter().copied().zip(tokens.token));
            Stretch { id: tokens.token_id, special: tokens.special }
        };
        if self.stretches.len() >= MAX_STRETCHES {
            self.stretches.clear();
        }
        let stretch = Arc::new(stretch);
        self.stretches.insert(index, Arc::clone(&stretch));
        Ok(stretch)
    }
}
