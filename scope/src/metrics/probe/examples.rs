//! Which examples are probes fitted to and tried on, and what is known of each?
//!
//! Tokens are drawn from documents in random order, about equally many beginning with each letter, numbers, punctuation, and
//! others, and only a few of each token id. What a token's text shows follows from its id, so a probe that had seen the id would
//! only have to remember it: examples are parted into training and test by token id, and no id is in both. Documents are parted
//! by document; a document is the mean over its first tokens, special ones left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{ControlFlow, Range},
};

use data::Run;

use super::{
    super::recovered::shuffle,
    labels::{self, DocumentLabels, Kind, Labels, TokenText},
};
use crate::{
    error::{Error, Result},
    sae::{SparseCoder, encode_rows},
    sites::{SiteRows, Sites},
    sparse::SparseRows,
    workers::Workers,
};

/// Every so many token ids or documents, one is for the test.
const TEST: u64 = 5;
/// Tokens of one id.
const OF_ONE_ID: usize = 12;
/// Tokens that are looked at for each that is wanted.
const SCANNED: usize = 64;
/// Tokens of a document that its mean is taken of (SAEBench's context).
const DOCUMENT_TOKENS: u64 = 128;

/// The stored rows of examples at a site, or their means.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) width: usize,
    /// `[n, width]`
    values: Vec<f32>,
}

impl Rows {
    pub(super) fn row(&self, example: usize) -> &[f32] {
        &self.values[example * self.width..][..self.width]
    }

    /// Some of them, end to end.
    pub(super) fn of(&self, examples: &[usize]) -> Vec<f32> {
        examples.iter().flat_map(|&example| self.row(example)).copied().collect()
    }

    fn push_mean(&mut self, rows: &[f32]) {
        let n = (rows.len() / self.width) as f64;
        let mut mean = vec![0.0_f64; self.width];
        for row in rows.chunks_exact(self.width) {
            for (mean, &x) in mean.iter_mut().zip(row) {
                *mean += f64::from(x) / n;
            }
        }
        self.values.extend(mean.into_iter().map(|mean| mean as f32));
    }
}

/// What stands in for the activations of an example.
#[derive(Debug, Default)]
pub(super) struct Examples {
    /// At the site that the coder reads.
    pub(super) read: Rows,
    /// At the one that it speaks of, where that is another.
    other: Option<Rows>,
    /// Of each coder, what its latents contribute: activations in units of the decoder's rows as they are in the
    /// reconstruction, or their means.
    pub(super) acts: Vec<SparseRows>,
    /// Which are for the test.
    pub(super) test: Vec<bool>,
    pub(super) labels: Vec<Labels>,
}

impl Examples {
    pub(super) fn n(&self) -> usize {
        self.test.len()
    }

    /// The sites of which rows are kept.
    fn sites(&mut self) -> impl Iterator<Item = &mut Rows> {
        std::iter::once(&mut self.read).chain(&mut self.other)
    }

    /// At the site that the coder speaks of, where what its latents contribute can be taken away.
    pub(super) fn written(&self) -> &Rows {
        self.other.as_ref().unwrap_or(&self.read)
    }
}

/// Where examples come from.
pub(super) struct Source<'a> {
    pub(super) run: &'a Run,
    /// What the coder reads, and what it speaks of.
    pub(super) sites: &'a Sites,
    pub(super) coders: &'a [&'a dyn SparseCoder],
    pub(super) seed: u64,
    pub(super) progress: &'a mut dyn FnMut(u64) -> ControlFlow<()>,
    pub(super) done: u64,
    pub(super) workers: &'a Workers,
}

impl Source<'_> {
    /// No examples yet.
    fn none(&self) -> Examples {
        let site = |width| Rows { width, values: Vec::new() };
        Examples {
            read: site(self.coders[0].d_in()),
            other: (!self.sites.same()).then(|| site(self.coders[0].d_out())),
            acts: vec![SparseRows::new(); self.coders.len()],
            ..Examples::default()
        }
    }

    /// The stored rows of some tokens that are read, and those that should be written where they are others.
    fn rows(&self, tokens: &Range<u64>) -> Result<Vec<SiteRows>> {
        let mut rows = vec![self.sites.rows(self.run, tokens.clone())?];
        if !self.sites.same() {
            rows.push(self.sites.targets(self.run, tokens.clone())?);
        }
        Ok(rows)
    }

    /// At most `n` tokens, and which of them begin a word.
    pub(super) fn tokens(&mut self, n: usize) -> Result<(Examples, Vec<bool>)> {
        let mut documents: Vec<u64> = (0..self.run.n_documents()).collect();
        shuffle(&mut documents, self.seed);
        let mut drawn = Drawn::new(n);
        let mut examples = self.none();
        let mut texts = Vec::new();
        let mut scanned = 0;
        for document in documents {
            if drawn.left == 0 || scanned >= SCANNED * n {
                break;
            }
            let range = self.run.document_tokens(document)?;
            let tokens = self.run.tokens(range.clone())?;
            scanned += tokens.len();
            let mut chosen = Vec::new();
            for at in 0..tokens.len() {
                if tokens.special[at] || tokens.modality[at] != 0 {
                    continue;
                }
                let text = TokenText::of(&tokens.token[at]);
                if drawn.take(text, tokens.token_id[at]) {
                    chosen.push((at, text, tokens.token_id[at]));
                }
            }
            if chosen.is_empty() {
                continue;
            }
            let rows = self.rows(&range)?;
            for (at, text, id) in chosen {
                let rows: Vec<Vec<f32>> = rows.iter().map(|rows| rows.row(at)).collect();
                if rows.iter().flatten().all(|x| x.is_finite()) {
                    for (site, row) in examples.sites().zip(rows) {
                        site.values.extend(row);
                    }
                    examples.test.push(is_test(u64::from(id), self.seed));
                    texts.push(text);
                }
            }
            self.report(0)?;
        }
        for (coder, acts) in self.coders.iter().zip(&mut examples.acts) {
            *acts = contributions(*coder, &examples.read.values, self.workers);
        }
        self.report(examples.n() as u64)?;
        examples.labels = labels::of_tokens(&texts);
        let begins = texts.iter().map(|text| text.begins).collect();
        Ok((examples, begins))
    }

    /// Documents that have a label, at most `n` for each label.
    pub(super) fn documents(&mut self, n: usize) -> Result<Examples> {
        let labels = labels::of_documents(self.run)?;
        let mut examples = self.none();
        let mut kept = Vec::new();
        for document in self.draw(&labels, n) {
            if self.add_document(document, &mut examples)? {
                kept.push(document);
            }
        }
        examples.labels = labels
            .into_iter()
            .map(|DocumentLabels { name, classes, of }| {
                let of = kept.iter().map(|document| of.get(document).copied()).collect();
                Labels { name, classes, of }
            })
            .collect();
        Ok(examples)
    }

    /// As many documents of each class of a label.
    fn draw(&self, labels: &[DocumentLabels], n: usize) -> BTreeSet<u64> {
        let mut drawn = BTreeSet::new();
        for label in labels {
            let mut documents: Vec<(u64, usize)> = label.of.iter().map(|(&id, &class)| (id, class)).collect();
            shuffle(&mut documents, self.seed);
            let mut left = vec![n.div_ceil(label.classes.len()); label.classes.len()];
            for (document, class) in documents {
                if left[class] > 0 {
                    left[class] -= 1;
                    drawn.insert(document);
                }
            }
        }
        drawn
    }

    /// Whether the document has a token that is not special.
    fn add_document(&mut self, document: u64, examples: &mut Examples) -> Result<bool> {
        let range = self.run.document_tokens(document)?;
        // One more than are wanted, for a special token in front.
        let range = range.start..range.end.min(range.start + DOCUMENT_TOKENS + 1);
        let special = self.run.special(range.clone())?;
        let rows = self.rows(&range)?;
        // [site][row]
        let mut kept = vec![Vec::new(); rows.len()];
        let mut n = 0_u32;
        for at in (0..special.len()).filter(|&at| !special[at]) {
            let rows: Vec<Vec<f32>> = rows.iter().map(|rows| rows.row(at)).collect();
            if rows.iter().flatten().all(|x| x.is_finite()) {
                kept.iter_mut().zip(rows).for_each(|(kept, row)| kept.extend(row));
                n += 1;
            }
        }
        if n == 0 {
            return Ok(false);
        }
        for (site, rows) in examples.sites().zip(&kept) {
            site.push_mean(rows);
        }
        for (coder, acts) in self.coders.iter().zip(&mut examples.acts) {
            let mut sums: BTreeMap<u32, f64> = BTreeMap::new();
            for (latents, values) in contributions(*coder, &kept[0], self.workers).iter() {
                for (&latent, &value) in latents.iter().zip(values) {
                    *sums.entry(latent).or_default() += f64::from(value) / f64::from(n);
                }
            }
            acts.push_row(sums.into_iter().map(|(latent, sum)| (sum as f32, latent)));
        }
        examples.test.push(is_test(document, self.seed));
        self.report(u64::from(n))?;
        Ok(true)
    }

    pub(super) fn report(&mut self, tokens: u64) -> Result<()> {
        self.done += tokens;
        match (self.progress)(self.done) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    }
}

/// What fires in rows, times how long decoder rows are in each reconstruction.
fn contributions(coder: &dyn SparseCoder, rows: &[f32], workers: &Workers) -> SparseRows {
    let acts = encode_rows(coder, rows, workers);
    let mut scaled = SparseRows::new();
    for ((latents, values), row) in acts.iter().zip(rows.chunks_exact(coder.d_in())) {
        let scale = coder.decoder_scale(row);
        scaled.push_row(values.iter().map(|value| scale * value).zip(latents.iter().copied()));
    }
    scaled
}

/// A fifth of all numbers, another one for each seed.
fn is_test(number: u64, seed: u64) -> bool {
    let mixed = (number ^ seed.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32 & 0xFFFF_FFFF < (1 << 32) / TEST
}

/// How many tokens of which sort are still wanted.
struct Drawn {
    /// The 26 letters, numbers, punctuation, others.
    sorts: [usize; 29],
    of_id: BTreeMap<u32, usize>,
    left: usize,
}

impl Drawn {
    fn new(n: usize) -> Self {
        Self { sorts: [n.div_ceil(29); 29], of_id: BTreeMap::new(), left: n }
    }

    fn take(&mut self, text: TokenText, id: u32) -> bool {
        let sort = match (text.letter, text.kind) {
            (Some(letter), _) => usize::from(letter),
            (None, Kind::Number) => 26,
            (None, Kind::Punctuation) => 27,
            (None, Kind::Word | Kind::Other) => 28,
        };
        // There are few numbers and marks, so all of them may come often.
        let limit = if sort < 26 { OF_ONE_ID } else { usize::MAX };
        let seen = self.of_id.entry(id).or_default();
        if self.left == 0 || self.sorts[sort] == 0 || *seen == limit {
            return false;
        }
        *seen += 1;
        self.sorts[sort] -= 1;
        self.left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_is_for_the_test_and_another_one_with_another_seed() {
        for seed in 0..4 {
            let n = (0..10_000).filter(|&number| is_test(number, seed)).count();
            assert!((1800..2200).contains(&n), "{n}");
        }
        let both = (0..10_000).filter(|&number| is_test(number, 0) && is_test(number, 1)).count();
        assert!((300..500).contains(&both), "{both}");
    }

    #[test]
    fn frequent_ids_do_not_fill_a_letter() {
        let mut drawn = Drawn::new(2900);
        let taken =
            |drawn: &mut Drawn, text: &str, id: u32| (0..300).filter(|_| drawn.take(TokenText::of(text), id)).count();
        assert_eq!(taken(&mut drawn, " the", 1), OF_ONE_ID);
        assert_eq!((2..100).map(|id| taken(&mut drawn, " tree", id)).sum::<usize>(), 100 - OF_ONE_ID);
        assert_eq!(taken(&mut drawn, "7", 500), 100);
    }
}
