//! How does a SentencePiece vocabulary cut a text, given its scores or its merges?
//!
//! Tokens that are whole by definition are taken out of the text first. In what lies between, spaces become `▁`,
//! and neighbors that together are a token are merged, the best pair first, until none is left; a character that
//! is no token becomes its bytes.
//!
//! With merges, the order is theirs. With scores, it is that of the `tokenizer.json` which the reference derives from
//! the same scores: higher score, then longer left part, then longer right part, then lower id, then further left.
//! User-defined tokens have the score 0 there, whatever the GGUF says, and so a run of spaces is merged before anything
//! else.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::SPACE;
use super::vocab::Vocab;

/// The types of tokens in GGUF metadata.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const BYTE: i64 = 6;

/// Whether tokens of this type are taken out of a text before anything is merged.
pub(super) fn is_whole(kind: i64) -> bool {
    matches!(kind, UNKNOWN | CONTROL | USER_DEFINED)
}

pub(super) fn is_control(kind: i64) -> bool {
    matches!(kind, UNKNOWN | CONTROL)
}

/// What is needed beside the vocabulary.
#[derive(Debug)]
pub(super) struct Spm {
    order: Order,
    /// By byte.
    byte_ids: Vec<Option<u32>>,
    unknown: Option<u32>,
    whole: Trie,
}

/// Which neighbors are merged, and which of them first.
#[derive(Debug)]
pub(super) enum Order {
    /// Those that together are a token. By id of that token: 0 for the best score; equal scores have the same rank.
    Scores(Vec<u32>),
    /// Those that are listed: rank and the id of what they become, by the ids of both.
    Merges(HashMap<(u32, u32), (u32, u32)>),
}

impl Order {
    /// The two slices have the same length.
    pub(super) fn scores(scores: &[f32], types: &[i64]) -> Self {
        let score = |id: usize| if types[id] == NORMAL { scores[id] } else { 0.0 };
        let mut by_score: Vec<usize> = (0..scores.len()).collect();
        by_score.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        let mut ranks = vec![0; scores.len()];
        for pair in by_score.windows(2) {
            ranks[pair[1]] = ranks[pair[0]] + u32::from(score(pair[0]) != score(pair[1]));
        }
        Self::Scores(ranks)
    }

    /// Merges as `left right`, the first the best. One whose parts or result are no token is passed over.
    pub(super) fn merges(merges: &[String], vocab: &Vocab) -> Self {
        let mut ranks = HashMap::with_capacity(merges.len());
        for (rank, merge) in (0..).zip(merges) {
            let ids = merge.split_once(' ').and_then(|(left, right)| {
                Some((vocab.find(left)?, vocab.find(right)?, vocab.find(&format!("{left}{right}"))?))
            });
            if let Some((left, right, id)) = ids {
                ranks.entry((left, right)).or_insert((rank, id));
            }
        }
        Self::Merges(ranks)
    }
}

impl Spm {
    /// `types` are those of the tokens; `whole` says of an id whether its token is taken out of a text first.
    pub(super) fn new(
        tokens: &[String],
        types: &[i64],
        whole: impl Fn(usize) -> bool,
        order: impl FnOnce(&Vocab) -> Order,
    ) -> (Vocab, Self) {
        let vocab = Vocab::new(tokens.iter().map(String::as_str), |id| types[id as usize] == BYTE);
        let mut byte_ids = vec![None; 256];
        let mut unknown = None;
        let mut trie = Trie::default();
        for (id, &kind) in (0..).zip(types) {
            if let Some(byte) = vocab.byte(id) {
                byte_ids[usize::from(byte)] = Some(id);
            }
            if kind == UNKNOWN {
                unknown = Some(id);
            }
            if whole(id as usize)
                && let Some(string) = vocab.get(id)
            {
                trie.insert(string, id);
            }
        }
        // Files mark `<unk>` as a control token.
        let unknown = unknown.or_else(|| vocab.find("<unk>"));
        let order = order(&vocab);
        (vocab, Self { order, byte_ids, unknown, whole: trie })
    }

    /// Calls `add` with the id, start and end of each token.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, mut add: impl FnMut(u32, usize, usize)) {
        let mut segment = Segment::default();
        let mut segment_start = 0;
        let mut at = 0;
        while at < text.len() {
            match self.whole.longest(&text.as_bytes()[at..]) {
                Some((id, length)) => {
                    self.merge(vocab, &text[segment_start..at], segment_start, &mut segment, &mut add);
                    add(id, at, at + length);
                    at += length;
                    segment_start = at;
                }
                None => at += 1,
            }
        }
        self.merge(vocab, &text[segment_start..], segment_start, &mut segment, &mut add);
    }

    /// Cuts a piece of text that holds no whole token; `offset` is where it begins in the text.
    fn merge(
        &self,
        vocab: &Vocab,
        text: &str,
        offset: usize,
        segment: &mut Segment,
        add: &mut impl FnMut(u32, usize, usize),
    ) {
        segment.fill(vocab, text);
        for left in 1..segment.symbols.len() {
            segment.propose(vocab, &self.order, left - 1);
        }
        while let Some(Reverse(merge)) = segment.queue.pop() {
            segment.apply(vocab, &self.order, &merge);
        }
        let mut at = 0;
        while at != NONE && at < segment.symbols.len() {
            let symbol = segment.symbols[at];
            let end = segment.symbols.get(symbol.next).map_or(text.len(), |next| next.source);
            match symbol.id {
                Some(id) => add(id, offset + symbol.source, offset + end),
                None => self.fall_back(&text.as_bytes()[symbol.source..end], offset + symbol.source, add),
            }
            at = symbol.next;
        }
    }

    /// The tokens of a character that is none itself.
    fn fall_back(&self, bytes: &[u8], start: usize, add: &mut impl FnMut(u32, usize, usize)) {
        let ids: Option<Vec<u32>> = bytes.iter().map(|&byte| self.byte_ids[usize::from(byte)]).collect();
        match (ids, self.unknown) {
            (Some(ids), _) => {
                for (at, id) in (start..).zip(ids) {
                    add(id, at, at + 1);
                }
            }
            (None, Some(unknown)) => add(unknown, start, start + bytes.len()),
            // A vocabulary with neither drops the character, as the reference does.
            (None, None) => {}
        }
    }
}

const NONE: usize = usize::MAX;

/// A run of characters that is a token, or one that is no token.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    id: Option<u32>,
    /// Where it lies in [`Segment::text`].
    start: usize,
    end: usize,
    /// Where it begins in the original text.
    source: usize,
    /// Of characters.
    length: u32,
    /// Indices of neighbors, or [`NONE`].
    previous: usize,
    next: usize,
}

/// Two neighbors that could be merged. The order is the order of merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Merge {
    rank: u32,
    left_length: Reverse<u32>,
    right_length: Reverse<u32>,
    id: u32,
    left: usize,
}

/// The text being merged; kept from one segment to the next for its allocations.
#[derive(Debug, Default)]
struct Segment {
    /// With spaces as `▁`.
    text: String,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Merge>>,
}

impl Segment {
    fn fill(&mut self, vocab: &Vocab, text: &str) {
        self.text.clear();
        self.symbols.clear();
        for (source, character) in text.char_indices() {
            let start = self.text.len();
            self.text.push(if character == ' ' { SPACE } else { character });
            let end = self.text.len();
            let index = self.symbols.len();
            let id = vocab.find(&self.text[start..end]);
            let previous = index.checked_sub(1).unwrap_or(NONE);
            self.symbols.push(Symbol { id, start, end, source, length: 1, previous, next: index + 1 });
        }
        if let Some(last) = self.symbols.last_mut() {
            last.next = NONE;
        }
    }

    /// The rank and the token that the symbol at `left` and the one after it make, if they make one.
    fn joined(&self, vocab: &Vocab, order: &Order, left: usize) -> Option<(u32, u32)> {
        let left = self.symbols[left];
        let right = self.symbols.get(left.next)?;
        let pair = (left.id?, right.id?);
        match order {
            Order::Scores(ranks) => vocab.find(&self.text[left.start..right.end]).map(|id| (ranks[id as usize], id)),
            Order::Merges(merges) => merges.get(&pair).copied(),
        }
    }

    /// Queues the merge of the symbol at `left` with the one after it.
    fn propose(&mut self, vocab: &Vocab, order: &Order, left: usize) {
        if let Some((rank, id)) = self.joined(vocab, order, left) {
            let symbol = self.symbols[left];
            self.queue.push(Reverse(Merge {
                rank,
                left_length: Reverse(symbol.length),
                right_length: Reverse(self.symbols[symbol.next].length),
                id,
                left,
            }));
        }
    }

    /// Merges, unless the neighbors have changed since it was queued.
    fn apply(&mut self, vocab: &Vocab, order: &Order, merge: &Merge) {
        let left = merge.left;
        if self.symbols[left].length == 0 || self.joined(vocab, order, left).is_none_or(|(_, id)| id != merge.id) {
            return;
        }
        let right = self.symbols[left].next;
        let Symbol { end, length, next, .. } = self.symbols[right];
        // An empty symbol is one that was merged away.
        self.symbols[right].length = 0;
        let symbol = &mut self.symbols[left];
        symbol.id = Some(merge.id);
        symbol.end = end;
        symbol.length += length;
        symbol.next = next;
        let previous = symbol.previous;
        if let Some(next) = self.symbols.get_mut(next) {
            next.previous = left;
        }
        if previous != NONE {
            self.propose(vocab, order, previous);
        }
        self.propose(vocab, order, left);
    }
}

/// Finds the longest of many strings at a place in a text.
#[derive(Debug, Default)]
struct Trie {
    /// The first node is the root.
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    /// Sorted by byte.
    children: Vec<(u8, usize)>,
    id: Option<u32>,
}

impl Trie {
    fn insert(&mut self, string: &str, id: u32) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut node = 0;
        for &byte in string.as_bytes() {
            node = match self.nodes[node].children.binary_search_by_key(&byte, |child| child.0) {
                Ok(child) => self.nodes[node].children[child].1,
                Err(place) => {
                    let fresh = self.nodes.len();
                    self.nodes.push(Node::default());
                    self.nodes[node].children.insert(place, (byte, fresh));
                    fresh
                }
            };
        }
        if node != 0 {
            self.nodes[node].id.get_or_insert(id);
        }
    }

    /// The id and the length in bytes of the longest string that `text` begins with.
    fn longest(&self, text: &[u8]) -> Option<(u32, usize)> {
        let mut node = self.nodes.first()?;
        let mut longest = None;
        for (at, byte) in text.iter().enumerate() {
            let Ok(child) = node.children.binary_search_by_key(byte, |child| child.0) else { break };
            node = &self.nodes[node.children[child].1];
            if let Some(id) = node.id {
                longest = Some((id, at + 1));
            }
        }
        longest
    }
}
