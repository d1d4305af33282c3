//! Which tokens, and which part of a token's activation, does an intervention change?

use std::str::FromStr;

use tch::Tensor;

use super::parse::Parser;
use crate::error::{Error, Result};
use crate::hook::{Place, Tokens};

/// Some tokens of a pass; no pick stands for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection(pub Vec<Pick>);

/// Tokens by where they stand or what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Positions in the sequence from `from` to `to`, both included, or without an end. Negative ones count from the end of
    /// the prompt: −1 is its last token.
    Range { from: i64, to: Option<i64> },
    /// The last token of a sequence in every pass.
    Last,
    /// The tokens of the prompt.
    Prompt,
    /// The tokens after the prompt.
    Generated,
    /// A token of the vocabulary.
    Id(u32),
    /// The same by its text.
    Text(String),
}

/// Indices into each axis of one token's activation, as inclusive ranges; an axis without any, and one that is left out, is
/// whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part(pub Vec<Vec<(usize, usize)>>);

impl Part {
    /// The whole activation.
    pub const WHOLE: Self = Self(Vec::new());

    /// These indices of the first axis.
    pub fn first(indices: &[usize]) -> Self {
        Self(vec![indices.iter().map(|&i| (i, i)).collect()])
    }

    /// Whether nothing is left out.
    pub fn is_whole(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// Whether index `i` of an axis belongs to it.
    pub(super) fn has(&self, axis: usize, i: usize) -> bool {
        self.0.get(axis).is_none_or(|ranges| ranges.is_empty() || ranges.iter().any(|&(a, b)| (a..=b).contains(&i)))
    }

    /// The same as a tensor of that shape.
    pub(crate) fn tensor(&self, shape: &[usize]) -> Tensor {
        let size: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        Tensor::from_slice(&self.mask(shape)).view(size.as_slice())
    }

    /// Which entries of an activation of this shape belong to it, in row-major order.
    pub(super) fn mask(&self, shape: &[usize]) -> Vec<bool> {
        let mut mask = vec![true];
        for (axis, &n) in shape.iter().enumerate() {
            mask = mask.iter().flat_map(|&outer| (0..n).map(move |i| outer && self.has(axis, i))).collect();
        }
        mask
    }
}

/// Where a row of a hook's tensor stands in its pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowPlace {
    pub(super) position: usize,
    id: u32,
    /// How many tokens the sequence has once this pass is over.
    end: usize,
    prompt: bool,
}

/// The rows of a hook's tensor: of one sequence for scores and patterns, of all otherwise.
pub(super) fn rows(place: Place<'_>) -> Vec<RowPlace> {
    let Tokens { lengths, past, .. } = place.tokens;
    let of_place = |row: &crate::hook::Row| place.sequence.is_none_or(|sequence| sequence == row.sequence);
    let row_place = |row: crate::hook::Row| {
        let (length, past) = (lengths[row.sequence], past[row.sequence]);
        RowPlace { position: row.position, id: row.id, end: past + length, prompt: past == 0 || length > 1 }
    };
    place.tokens.rows().filter(of_place).map(row_place).collect()
}

impl FromStr for Selection {
    type Err = Error;

    /// What the text form has behind `@`.
    fn from_str(text: &str) -> Result<Self> {
        Parser::whole(text, Parser::selection)
    }
}

impl Selection {
    /// Every token.
    pub const ALL: Self = Self(Vec::new());

    /// Which rows of a hook's tensor belong to it; texts must have become ids. At scores and patterns the rows are queries.
    pub fn chosen(&self, place: Place<'_>) -> Vec<bool> {
        rows(place).into_iter().map(|row| self.has(row)).collect()
    }

    /// Which tokens of a prompt and of what was generated behind it belong to it, as the passes of the generation would say.
    pub fn in_generation(&self, prompt: &[u32], generated: &[u32]) -> Vec<bool> {
        let of_prompt = prompt.iter().enumerate().map(|(position, &id)| (position, id, prompt.len(), true));
        let behind = generated.iter().enumerate().map(|(i, &id)| (prompt.len() + i, id, prompt.len() + i + 1, false));
        let places = of_prompt.chain(behind).map(|(position, id, end, prompt)| RowPlace { position, id, end, prompt });
        places.map(|row| self.has(row)).collect()
    }

    pub(super) fn has(&self, row: RowPlace) -> bool {
        self.0.is_empty() || self.0.iter().any(|pick| pick.has(row))
    }

    /// The largest position that is named by counting from the beginning, which must exist.
    pub(super) fn furthest(&self) -> Option<usize> {
        let named = |pick: &Pick| match *pick {
            Pick::Range { from, to } => usize::try_from(to.unwrap_or(from)).ok(),
            _ => None,
        };
        self.0.iter().filter_map(named).max()
    }
}

impl Pick {
    fn has(&self, row: RowPlace) -> bool {
        let position = row.position as i64;
        // A generated token stands behind every position that is counted from the end of the prompt.
        let absolute = |at: i64| match (at < 0, row.prompt) {
            (false, _) => at,
            (true, true) => row.end as i64 + at,
            (true, false) => position - 1,
        };
        match *self {
            Self::Range { from, to } => absolute(from) <= position && to.is_none_or(|to| position <= absolute(to)),
            Self::Last => row.position + 1 == row.end,
            Self::Prompt => row.prompt,
            Self::Generated => !row.prompt,
            Self::Id(id) => row.id == id,
            // Texts are ids once they are resolved.
            Self::Text(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::Tokens;

    fn chosen(pick: Pick, tokens: &Tokens) -> Vec<usize> {
        let place = Place { point: "hook_embed".parse().unwrap(), sequence: None, tokens };
        let selection = Selection(vec![pick]);
        rows(place).into_iter().enumerate().filter(|(_, row)| selection.has(*row)).map(|(i, _)| i).collect()
    }

    #[test]
    fn positions_of_a_prompt_and_behind_it() {
        let prompt = Tokens { ids: vec![2, 7, 8, 7, 2, 9], lengths: vec![4, 2], past: vec![0, 0] };
        let step = Tokens { ids: vec![7, 5], lengths: vec![1, 1], past: vec![4, 2] };
        let range = |from, to| Pick::Range { from, to };
        for (pick, in_prompt, in_step) in [
            (range(1, Some(1)), vec![1, 5], vec![]),
            (range(1, None), vec![1, 2, 3, 5], vec![0, 1]),
            (range(-1, Some(-1)), vec![3, 5], vec![]),
            (range(-2, None), vec![2, 3, 4, 5], vec![0, 1]),
            (range(2, Some(-1)), vec![2, 3], vec![]),
            (range(4, Some(9)), vec![], vec![0]),
            (Pick::Last, vec![3, 5], vec![0, 1]),
            (Pick::Prompt, vec![0, 1, 2, 3, 4, 5], vec![]),
            (Pick::Generated, vec![], vec![0, 1]),
            (Pick::Id(7), vec![1, 3], vec![0]),
        ] {
            assert_eq!(chosen(pick.clone(), &prompt), in_prompt, "{pick:?}");
            assert_eq!(chosen(pick.clone(), &step), in_step, "{pick:?}");
        }
    }

    #[test]
    fn parts_of_an_activation() {
        let part = Part(vec![vec![(1, 1)], vec![(0, 0), (2, 3)]]);
        assert_eq!(part.mask(&[2, 4]), [false, false, false, false, true, false, true, true]);
        assert_eq!(Part::WHOLE.mask(&[3]), [true; 3]);
        assert!(Part(vec![vec![]]).is_whole());
    }
}
