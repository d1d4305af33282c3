//! Where is the person looking, and where were they before?
//!
//! [`Focus`] is the one selection model: every panel reads it, commands write it, and a link spells it.

use std::fmt;
use std::str::FromStr;

/// What fills the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum View {
    #[default]
    Overview,
    Features,
    Feature,
    Reader,
}

impl View {
    /// In the order of the tabs and of Ctrl+1…4.
    pub(crate) const ALL: [Self; 4] = [Self::Overview, Self::Features, Self::Feature, Self::Reader];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Features => "Features",
            Self::Feature => "Feature",
            Self::Reader => "Reader",
        }
    }
}

/// What colors the tokens of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum ColorBy {
    #[default]
    Feature,
    Norm,
    Nll,
    Nothing,
}

impl ColorBy {
    pub(crate) const ALL: [Self; 4] = [Self::Feature, Self::Norm, Self::Nll, Self::Nothing];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Feature => "Feature",
            Self::Norm => "Norm",
            Self::Nll => "Surprise (nll)",
            Self::Nothing => "Nothing",
        }
    }

    pub(crate) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|c| *c == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }
}

/// A column of the feature table by which it can be ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum SortBy {
    Id,
    Density,
    MeanAct,
    #[default]
    MaxAct,
    DecoderNorm,
}

impl SortBy {
    pub(crate) const ALL: [Self; 5] = [Self::Id, Self::Density, Self::MeanAct, Self::MaxAct, Self::DecoderNorm];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Id => "Feature",
            Self::Density => "Density",
            Self::MeanAct => "Mean act",
            Self::MaxAct => "Max act",
            Self::DecoderNorm => "Dec norm",
        }
    }

    pub(crate) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|c| *c == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }
}

/// Makes an enum readable in links: lower-case words of our own, independent of titles.
macro_rules! words {
    ($type:ty, $expected:literal, $($variant:ident = $word:literal),+ $(,)?) => {
        impl $type {
            /// The words that [`FromStr`] understands.
            pub(crate) const WORDS: &'static str = $expected;
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }

        impl FromStr for $type {
            type Err = ();

            fn from_str(word: &str) -> Result<Self, ()> {
                match word { $($word => Ok(Self::$variant),)+ _ => Err(()) }
            }
        }
    };
}

words!(
    View,
    "`overview`, `features`, `feature` or `reader`",
    Overview = "overview",
    Features = "features",
    Feature = "feature",
    Reader = "reader"
);
words!(
    ColorBy,
    "`feature`, `norm`, `nll` or `nothing`",
    Feature = "feature",
    Norm = "norm",
    Nll = "nll",
    Nothing = "nothing"
);
words!(
    SortBy,
    "`id`, `density`, `mean_act`, `max_act` or `decoder_norm`",
    Id = "id",
    Density = "density",
    MeanAct = "mean_act",
    MaxAct = "max_act",
    DecoderNorm = "decoder_norm"
);

/// The selection: what is looked at, in which table, which document, which token.
///
/// Changing one part keeps the others (projection, not replacement):
/// a click on a feature leaves the token selected, a click on a token leaves the feature.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Focus {
    pub(crate) view: View,
    /// The feature table; the run's first one where it is not set.
    pub(crate) table: Option<String>,
    pub(crate) feature: Option<u32>,
    pub(crate) doc: Option<u64>,
    /// The selected token, counted from the first token of the document.
    pub(crate) token: Option<u64>,
    pub(crate) color: ColorBy,
    /// The hook point whose norms color the tokens; the last recorded one where it is not set.
    pub(crate) hook: Option<String>,
    pub(crate) sort: SortBy,
    pub(crate) ascending: bool,
    pub(crate) filter: String,
    /// The coder whose training curves the overview shows.
    pub(crate) coder: Option<String>,
}

impl Focus {
    /// Whether going from `self` to `other` is a step that "back" should undo.
    /// Moving a token cursor, sorting, typing a filter and coloring are not.
    fn is_another_place(&self, other: &Self) -> bool {
        let place = |f: &Self| (f.view, f.table.clone(), f.doc);
        place(self) != place(other) || (other.view == View::Feature && self.feature != other.feature)
    }
}

/// Where the person has been, like a browser's.
#[derive(Debug, Default)]
pub(crate) struct History {
    past: Vec<Focus>,
    future: Vec<Focus>,
}

impl History {
    /// The longest way back.
    const CAPACITY: usize = 200;

    /// Goes from `now` to `next`, and remembers `now` where that is another place.
    pub(crate) fn visit(&mut self, now: &mut Focus, next: Focus) {
        if now.is_another_place(&next) {
            if self.past.len() == Self::CAPACITY {
                self.past.remove(0);
            }
            self.past.push(now.clone());
            self.future.clear();
        }
        *now = next;
    }

    pub(crate) fn back(&mut self, now: &mut Focus) -> bool {
        Self::step(&mut self.past, &mut self.future, now)
    }

    pub(crate) fn forward(&mut self, now: &mut Focus) -> bool {
        Self::step(&mut self.future, &mut self.past, now)
    }

    pub(crate) fn can_go_back(&self) -> bool {
        !self.past.is_empty()
    }

    pub(crate) fn can_go_forward(&self) -> bool {
        !self.future.is_empty()
    }

    fn step(from: &mut Vec<Focus>, to: &mut Vec<Focus>, now: &mut Focus) -> bool {
        let Some(there) = from.pop() else { return false };
        to.push(std::mem::replace(now, there));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(view: View, feature: u32) -> Focus {
        Focus { view, feature: Some(feature), ..Focus::default() }
    }

    #[test]
    fn back_and_forward_are_inverse() {
        let mut history = History::default();
        let mut now = Focus::default();
        history.visit(&mut now, at(View::Feature, 1));
        history.visit(&mut now, at(View::Feature, 2));
        assert!(history.back(&mut now));
        assert_eq!(now.feature, Some(1));
        assert!(history.back(&mut now));
        assert_eq!(now, Focus::default());
        assert!(!history.back(&mut now));
        assert!(history.forward(&mut now) && history.forward(&mut now));
        assert_eq!(now.feature, Some(2));
        assert!(!history.forward(&mut now));
    }

    #[test]
    fn a_new_step_forgets_the_way_forward() {
        let mut history = History::default();
        let mut now = Focus::default();
        history.visit(&mut now, at(View::Feature, 1));
        history.back(&mut now);
        history.visit(&mut now, at(View::Reader, 1));
        assert!(!history.can_go_forward());
    }

    #[test]
    fn moving_a_cursor_is_not_a_step() {
        let mut history = History::default();
        let mut now = at(View::Reader, 1);
        let next = Focus { token: Some(7), color: ColorBy::Nll, filter: "x".into(), ..now.clone() };
        history.visit(&mut now, next);
        assert_eq!(now.token, Some(7));
        assert!(!history.can_go_back());
    }

    #[test]
    fn the_way_back_is_bounded() {
        let mut history = History::default();
        let mut now = Focus::default();
        for feature in 0..1_000 {
            history.visit(&mut now, at(View::Feature, feature));
        }
        assert_eq!(history.past.len(), History::CAPACITY);
    }
}
