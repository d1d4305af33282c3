//! How long are the sequences of a corpus, and into which shards does one process put them?
//!
//! Nothing here runs the network: a worker that knows the lengths of all sequences knows where every shard begins.

use std::ops::ControlFlow;

use data::corpus::Document;
use data::files::hex;
use data::shard::workers::{Claim, Membership, Part, PartDocument, Planned};

use super::RecordOptions;
use super::read::{Reader, sum};
use crate::error::{Error, Result};

/// Bytes of a part of the plan: seconds of work for a tokenizer.
pub(super) const PART_BYTES: u64 = 16 << 20;

/// Puts sequences into shards, one after the other, as one process does.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    shard_tokens: u64,
    skip_special: bool,
    /// Tokens that may still come.
    left: u64,
    /// The open shard and its tokens.
    open: Option<(usize, u64)>,
    planned: u64,
    next_token_idx: u64,
}

/// Where a sequence lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) shard: usize,
    /// Whether it is the first of its shard.
    pub(super) first: bool,
    /// Tokens before it.
    pub(super) planned: u64,
    pub(super) token_idx: u64,
    /// As far as it is recorded.
    pub(super) tokens: u32,
}

impl Cut {
    pub(super) fn new(options: &RecordOptions) -> Self {
        Self {
            shard_tokens: options.shard_tokens,
            skip_special: options.skip_special,
            left: options.max_tokens.unwrap_or(u64::MAX),
            open: None,
            planned: 0,
            next_token_idx: 0,
        }
    }

    /// Whether as many tokens as were asked for have their places.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0
    }

    pub(super) fn planned(&self) -> u64 {
        self.planned
    }

    /// The place of the next sequence, given its tokens and how many of them are special; none where none is left for it.
    pub(super) fn place(&mut self, (tokens, special): (u32, u32)) -> Option<Place> {
        let tokens = u32::try_from(self.left).unwrap_or(u32::MAX).min(tokens);
        if tokens == 0 {
            return None;
        }
        let first = !self.open.is_some_and(|(_, filled)| fits(filled, u64::from(tokens), self.shard_tokens));
        let (shard, filled) = match self.open {
            Some(open) if !first => open,
            Some((shard, _)) => (shard + 1, 0),
            None => (0, 0),
        };
        let place = Place { shard, first, planned: self.planned, token_idx: self.next_token_idx, tokens };
        self.open = Some((shard, filled + u64::from(tokens)));
        self.left -= u64::from(tokens);
        self.planned += u64::from(tokens);
        // Of a sequence that was cut off it is not known how many are special, and nothing comes behind it.
        self.next_token_idx += u64::from(tokens - if self.skip_special { special.min(tokens) } else { 0 });
        Some(place)
    }

    fn shards(&self) -> usize {
        self.open.map_or(0, |(shard, _)| shard + 1)
    }
}

/// Whether a sequence has room in a shard that is begun.
pub(super) fn fits(filled: u64, tokens: u64, shard_tokens: u64) -> bool {
    filled + tokens <= shard_tokens
}

/// Counts the parts of the plan that nobody has counted, together with whoever else does so now.
/// Breaks where `progress` does.
pub(super) fn count(
    reader: &Reader<'_>,
    member: &Membership,
    part_bytes: u64,
    progress: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    // First what nobody else is at, then what others have left or not finished.
    let mut counting = Counting { reader, member, part_bytes, wait: false, left_out: false };
    let ended = counting.pass(progress)?;
    if ended.is_break() || !counting.left_out {
        return Ok(ended);
    }
    counting.wait = true;
    counting.pass(progress)
}

struct Counting<'a> {
    reader: &'a Reader<'a>,
    member: &'a Membership,
    part_bytes: u64,
    /// Whether to wait for a part that somebody else counts.
    wait: bool,
    /// Whether there was one for which nobody has waited.
    left_out: bool,
}

impl Counting<'_> {
    fn pass(&mut self, progress: &mut dyn FnMut() -> ControlFlow<()>) -> Result<ControlFlow<()>> {
        let mut enough = Enough { left: self.reader.max_tokens, next: 0 };
        let mut bytes = 0;
        let mut index = 0;
        let mut open = self.begin(index)?;
        for (doc_id, document) in (0..).zip(self.reader.corpus.documents()) {
            let document = document?;
            if bytes >= self.part_bytes {
                if let Some((part, claim)) = open.take() {
                    self.member.publish(&part, claim)?;
                }
                if progress().is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                (index, bytes) = (index + 1, 0);
                if enough.reached(self.member, index)? {
                    return Ok(ControlFlow::Continue(()));
                }
                open = self.begin(index)?;
            }
            let (its_bytes, sha256) = sum(&document.content);
            // A document without bytes counts too, so that a part is bounded.
            bytes += its_bytes + 1;
            if let Some((part, _)) = &mut open {
                let sequences = self.lengths(&document, doc_id)?;
                part.documents.push(PartDocument { sha256: hex(&sha256), sequences });
            }
        }
        if let Some((mut part, claim)) = open {
            part.last = true;
            self.member.publish(&part, claim)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn begin(&mut self, index: usize) -> Result<Option<(Part, Claim)>> {
        let claim = self.member.claim(index, self.wait)?;
        self.left_out |= claim.is_none() && !self.member.has_part(index)?;
        Ok(claim.map(|claim| (Part { index, documents: Vec::new(), last: false }, claim)))
    }

    fn lengths(&self, document: &Document, doc_id: u64) -> Result<Vec<(u32, u32)>> {
        let sequences = self.reader.sequences(document, doc_id)?;
        let length = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        Ok(sequences
            .iter()
            .map(|sequence| {
                let special = sequence.tokens.iter().filter(|token| token.special).count();
                (length(sequence.tokens.len()), length(special))
            })
            .collect())
    }
}

/// Whether the parts from the first one on hold as many tokens as are asked for.
struct Enough {
    left: Option<u64>,
    next: usize,
}

impl Enough {
    fn reached(&mut self, member: &Membership, parts: usize) -> Result<bool> {
        let Some(left) = &mut self.left else { return Ok(false) };
        while self.next < parts && *left > 0 {
            let Some(part) = member.part(self.next)? else { break };
            let sequences = part.documents.iter().flat_map(|document| &document.sequences);
            let tokens: u64 = sequences.map(|&(tokens, _)| u64::from(tokens)).sum();
            *left = left.saturating_sub(tokens);
            self.next += 1;
        }
        Ok(*left == 0)
    }
}

/// Reads the lengths that were counted, document by document.
struct Lengths<'a> {
    member: &'a Membership,
    next_part: usize,
    documents: std::vec::IntoIter<PartDocument>,
    ended: bool,
}

impl<'a> Lengths<'a> {
    fn new(member: &'a Membership) -> Self {
        Self { member, next_part: 0, documents: Vec::new().into_iter(), ended: false }
    }

    fn next(&mut self) -> Result<Option<PartDocument>> {
        loop {
            if let Some(document) = self.documents.next() {
                return Ok(Some(document));
            }
            if self.ended {
                return Ok(None);
            }
            let part = self.member.part(self.next_part)?.ok_or(Error::CorpusChanged)?;
            self.next_part += 1;
            self.ended = part.last;
            self.documents = part.documents.into_iter();
        }
    }
}

/// What the whole corpus makes, as far as it is recorded.
pub(super) fn plan(member: &Membership, options: &RecordOptions) -> Result<Planned> {
    let mut cut = Cut::new(options);
    let mut lengths = Lengths::new(member);
    let mut documents = 0;
    while !cut.is_full()
        && let Some(document) = lengths.next()?
    {
        documents += 1;
        for sequence in document.sequences {
            cut.place(sequence);
        }
    }
    Ok(Planned { shards: cut.shards(), documents, tokens_expected: cut.planned() })
}

/// Documents of a corpus with the places of their sequences.
pub(super) struct Placed<'a> {
    lengths: Lengths<'a>,
    pub(super) cut: Cut,
}

impl<'a> Placed<'a> {
    pub(super) fn new(member: &'a Membership, options: &RecordOptions) -> Self {
        Self { lengths: Lengths::new(member), cut: Cut::new(options) }
    }

    /// The places of the sequences of the next document, which must have this sum.
    pub(super) fn next(&mut self, sha256: &str) -> Result<Vec<Place>> {
        let document = self.lengths.next()?.filter(|document| document.sha256 == sha256).ok_or(Error::CorpusChanged)?;
        Ok(document.sequences.into_iter().filter_map(|sequence| self.cut.place(sequence)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use data::HookPointEntry;
    use data::corpus::Corpus;
    use data::manifest::{self, Manifest};
    use data::shard::RunWriter;
    use data::shard::workers::Joined;
    use fs_err as fs;

    use super::*;
    use crate::config::Config;
    use crate::testing;
    use crate::weights::Weights;

    fn join(dir: &Path, config: &Config, worker: &str) -> Membership {
        let shape = config.shape();
        let entry = HookPointEntry::new("blocks.0.hook_resid_post".parse().unwrap(), &shape, data::Dtype::F32).unwrap();
        let manifest = Manifest::new(manifest::Model::new("tiny", shape), manifest::Corpus::default(), vec![entry]);
        match RunWriter::join(dir, manifest, worker.parse().unwrap()).unwrap() {
            Joined::Begun(_, member) => member,
            Joined::Complete(_) => panic!("nobody has merged it"),
        }
    }

    #[test]
    fn a_plan_that_many_count_is_that_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corpus.jsonl");
        let ids = |document: usize| (0..document * 7 % 40).map(|i| (i % 9).to_string()).collect::<Vec<_>>().join(",");
        let lines: Vec<String> = (0..60).map(|document| format!("{{\"tokens\": [{}]}}\n", ids(document))).collect();
        fs::write(&path, lines.concat()).unwrap();
        let corpus = Corpus::open(&[path.display().to_string()], false).unwrap();
        let weights = Weights::open(testing::fixture("gemma3/text")).unwrap();
        let config = weights.config();
        for max_tokens in [None, Some(1), Some(200), Some(100_000)] {
            let options = RecordOptions { shard_tokens: 50, max_tokens, ..RecordOptions::new(Vec::new()) };
            let from = None;
            let reader =
                Reader { corpus: &corpus, tokenizer: None, config, context: 8, max_tokens, skip_special: false, from };
            let counted = |name: &str, workers: &[&str], part_bytes| {
                let dir = folder.path().join(format!("{name}-{max_tokens:?}"));
                let members: Vec<Membership> = workers.iter().map(|worker| join(&dir, config, worker)).collect();
                std::thread::scope(|scope| {
                    for member in &members {
                        let reader = &reader;
                        scope.spawn(move || {
                            count(reader, member, part_bytes, &mut || ControlFlow::Continue(())).unwrap()
                        });
                    }
                });
                let plans: Vec<Planned> = members.iter().map(|member| plan(member, &options).unwrap()).collect();
                assert!(plans.windows(2).all(|pair| pair[0] == pair[1]));
                let parts = (0..1000).take_while(|&part| members[0].has_part(part).unwrap()).count();
                (plans[0].clone(), parts)
            };
            let (alone, whole) = counted("alone", &["0/1"], u64::MAX);
            let (together, parts) = counted("together", &["0/3", "1/3", "2/3"], 300);
            assert_eq!(alone, together);
            assert!(alone.tokens_expected > 0 && max_tokens.is_none_or(|max| alone.tokens_expected <= max));
            assert_eq!(whole, 1);
            assert!(parts > 1 || max_tokens == Some(1), "{parts} parts");
            let (few, so_many) = counted("few", &["0/1"], 300);
            assert_eq!(few, alone);
            // Nobody counts what nobody has asked for.
            assert!(max_tokens != Some(200) || so_many < 5, "{so_many} parts");
        }
    }

    #[test]
    fn shards_are_cut_between_sequences() {
        let options = RecordOptions { shard_tokens: 10, max_tokens: Some(21), ..RecordOptions::new(Vec::new()) };
        let mut cut = Cut::new(&options);
        let mut place = |tokens| cut.place((tokens, 1)).map(|at| (at.shard, at.first, at.planned, at.tokens));
        assert_eq!(place(4), Some((0, true, 0, 4)));
        assert_eq!(place(6), Some((0, false, 4, 6)));
        assert_eq!(place(1), Some((1, true, 10, 1)));
        // A sequence that is longer than a shard has one of its own; here the last tokens are cut off.
        assert_eq!(place(30), Some((2, true, 11, 10)));
        assert_eq!(place(5), None);
        assert!(cut.is_full());
        assert_eq!((cut.shards(), cut.planned()), (3, 21));
    }
}
