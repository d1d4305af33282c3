//! How is text laid out that is written from right to left?
//!
//! egui shapes such text but does not order it, and counts its characters otherwise than its glyphs. So passages that
//! have any are laid out here token by token, each line ordered by direction: words of one direction keep together,
//! and the line runs as the passage does. Other passages are one text job, which is cheaper.

use std::sync::Arc;

use egui::{Galley, Rect, Vec2, pos2, vec2};

/// A token where it is drawn.
pub(super) struct Piece {
    pub(super) token: usize,
    pub(super) rect: Rect,
    pub(super) word: Arc<Galley>,
    /// The space before the word, which stands at its right where the word is written from the right.
    pub(super) space: Arc<Galley>,
    pub(super) space_at_right: bool,
}

/// A token that is to be placed.
pub(super) struct Token {
    pub(super) direction: Direction,
    pub(super) word: Arc<Galley>,
    pub(super) space: Arc<Galley>,
    /// Whether the line ends after it.
    pub(super) breaks: bool,
}

impl Token {
    fn width(&self) -> f32 {
        self.word.size().x + self.space.size().x
    }
}

/// Which way a token is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Left,
    Right,
    /// Signs and spaces go with what stands before them.
    Neutral,
}

/// Whether a passage has to be laid out here.
pub(super) fn is_needed(mut texts: impl Iterator<Item = impl AsRef<str>>) -> bool {
    texts.any(|text| text.as_ref().chars().any(is_right_to_left))
}

/// Hebrew, Arabic, Syriac and their neighbours, with their presentation forms.
fn is_right_to_left(c: char) -> bool {
    matches!(u32::from(c), 0x0590..=0x08ff | 0xfb1d..=0xfdff | 0xfe70..=0xfeff | 0x1_0800..=0x1_0fff | 0x1_e800..=0x1_efff)
}

pub(super) fn direction(text: &str) -> Direction {
    text.chars()
        .find_map(|c| {
            if is_right_to_left(c) { Some(Direction::Right) } else { c.is_alphanumeric().then_some(Direction::Left) }
        })
        .unwrap_or(Direction::Neutral)
}

/// Places tokens in lines of at most `width`.
pub(super) fn place(tokens: &[Token], width: f32, line_height: f32) -> (Vec<Piece>, Vec2) {
    let directions: Vec<Direction> = tokens.iter().map(|token| token.direction).collect();
    let count = |wanted: Direction| directions.iter().filter(|d| **d == wanted).count();
    let from_right = count(Direction::Right) >= count(Direction::Left);
    let mut pieces = Vec::with_capacity(tokens.len());
    let mut y = 0.0;
    let mut start = 0;
    while start < tokens.len() {
        let mut end = start;
        let mut used = 0.0;
        while let Some(token) = tokens.get(end).filter(|token| end == start || used + token.width() <= width) {
            used += token.width();
            end += 1;
            if token.breaks {
                break;
            }
        }
        let mut x = if from_right { (width - used).max(0.0) } else { 0.0 };
        for at in order(&directions[start..end], from_right) {
            let token = &tokens[start + at];
            let size = vec2(token.width(), line_height);
            pieces.push(Piece {
                token: start + at,
                rect: Rect::from_min_size(pos2(x, y), size),
                word: Arc::clone(&token.word),
                space: Arc::clone(&token.space),
                space_at_right: token.direction == Direction::Right,
            });
            x += size.x;
        }
        y += line_height;
        start = end;
    }
    (pieces, vec2(width, y))
}

/// The tokens of a line as they stand from left to right.
fn order(directions: &[Direction], from_right: bool) -> Vec<usize> {
    let base = if from_right { Direction::Right } else { Direction::Left };
    let mut runs: Vec<(Direction, Vec<usize>)> = Vec::new();
    let mut last = base;
    for (token, direction) in directions.iter().enumerate() {
        let direction = if *direction == Direction::Neutral { last } else { *direction };
        last = direction;
        match runs.last_mut() {
            Some((of_run, tokens)) if *of_run == direction => tokens.push(token),
            _ => runs.push((direction, vec![token])),
        }
    }
    if from_right {
        runs.reverse();
    }
    runs.into_iter()
        .flat_map(|(direction, mut tokens)| {
            if direction == Direction::Right {
                tokens.reverse();
            }
            tokens
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Left, Neutral, Right};

    #[test]
    fn directions_are_told_apart() {
        for (text, expected) in [
            (" rain", Left),
            ("\"المطر", Right),
            (" שלום", Right),
            ("...", Neutral),
            (" 15", Left),
            ("<0xE2>", Left),
            ("", Neutral),
        ] {
            assert_eq!(direction(text), expected, "{text}");
        }
        assert!(is_needed(["rain", "המים"].iter()));
        assert!(!is_needed(["rain", "雨", "дождь", "बारिश"].iter()));
    }

    #[test]
    fn a_line_is_ordered_by_direction() {
        assert_eq!(order(&[Right, Right, Right], true), [2, 1, 0]);
        // Arabic with an English name of two tokens in it, and a full stop.
        assert_eq!(order(&[Right, Left, Left, Right, Neutral], true), [4, 3, 1, 2, 0]);
        // English with an Arabic name of two tokens in it.
        assert_eq!(order(&[Left, Right, Right, Left], false), [0, 2, 1, 3]);
        assert_eq!(order(&[], true), Vec::<usize>::new());
    }
}
