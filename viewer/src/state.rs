//! Where is the person looking, and where were they before?
//!
//! [`Focus`] is the one selection model: every panel reads it, commands write it, and a link spells it.

use std::fmt;
use std::str::FromStr;

/// A view: what a pane of the window shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum View {
    #[default]
    Overview,
    Features,
    Feature,
    Reader,
    Grid,
    Routing,
    Expert,
    Rows,
    Training,
    Query,
    Pieces,
    Diagnostics,
}

impl View {
    /// In the order of the tabs and of Ctrl+1…9.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 12] = [
        Self::Overview,
        Self::Features,
        Self::Feature,
        Self::Reader,
        Self::Grid,
        Self::Routing,
        Self::Expert,
        Self::Rows,
        Self::Training,
        Self::Query,
        Self::Pieces,
        Self::Diagnostics,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Features => "Features",
            Self::Feature => "Feature",
            Self::Reader => "Reader",
            Self::Grid => "Layers",
            Self::Routing => "Routing",
            Self::Expert => "Expert",
            Self::Rows => "Embeddings",
            Self::Training => "Training",
            Self::Query => "Query",
            Self::Pieces => "Tokenizer",
            Self::Diagnostics => "Diagnostics",
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
    /// Entropy of the router in the layer that is looked at.
    Entropy,
    /// Weight of the expert that is looked at.
    Expert,
    /// What the per-layer embedding adds, relative to the residual stream, in the layer that is looked at.
    PleShare,
    Nothing,
}

impl ColorBy {
    pub(crate) const ALL: [Self; 7] =
        [Self::Feature, Self::Norm, Self::Nll, Self::Entropy, Self::Expert, Self::PleShare, Self::Nothing];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Feature => "Feature",
            Self::Norm => "Norm",
            Self::Nll => "Surprise (nll)",
            Self::Entropy => "Router entropy",
            Self::Expert => "Expert",
            Self::PleShare => "PLE share",
            Self::Nothing => "Nothing",
        }
    }

    /// The grid whose row, of the layer that is looked at, has the values.
    pub(crate) fn metric(self) -> Option<Metric> {
        match self {
            Self::Entropy => Some(Metric::Entropy),
            Self::Expert => Some(Metric::Expert),
            Self::PleShare => Some(Metric::PleShare),
            Self::Feature | Self::Norm | Self::Nll | Self::Nothing => None,
        }
    }

    pub(crate) fn next(self) -> Self {
        after(&Self::ALL, self)
    }
}

/// What the grid of tokens by layers shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Metric {
    #[default]
    Resid,
    Attn,
    Mlp,
    Ple,
    PleShare,
    Entropy,
    FirstChoice,
    MoeShare,
    Expert,
    Features,
}

impl Metric {
    pub(crate) const ALL: [Self; 10] = [
        Self::Resid,
        Self::Attn,
        Self::Mlp,
        Self::Ple,
        Self::PleShare,
        Self::Entropy,
        Self::FirstChoice,
        Self::MoeShare,
        Self::Expert,
        Self::Features,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Resid => "Residual stream, norm",
            Self::Attn => "Attention adds, norm",
            Self::Mlp => "MLP adds, norm",
            Self::Ple => "Per-layer embedding adds, norm",
            Self::PleShare => "Per-layer embedding, share of the residual",
            Self::Entropy => "Router entropy, nats",
            Self::FirstChoice => "Router, probability of the first choice",
            Self::MoeShare => "Experts against dense branch, share of the norm",
            Self::Expert => "The chosen expert, weight",
            Self::Features => "Strongest feature of each table",
        }
    }

    pub(crate) fn next(self) -> Self {
        after(&Self::ALL, self)
    }
}

/// Of what the load of experts is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Scope {
    /// The page of the document that is looked at.
    #[default]
    Document,
    /// The whole run.
    Corpus,
}

impl Scope {
    pub(crate) const ALL: [Self; 2] = [Self::Document, Self::Corpus];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Document => "This document",
            Self::Corpus => "Whole run",
        }
    }
}

/// The one after, and the first after the last.
fn after<T: Copy + PartialEq>(all: &[T], now: T) -> T {
    let at = all.iter().position(|other| *other == now).unwrap_or(0);
    all[(at + 1) % all.len()]
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
        after(&Self::ALL, self)
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
    "`overview`, `features`, `feature`, `reader`, `layers`, `routing`, `expert`, `embeddings`, `training`, `query`, `tokenizer` or `diagnostics`",
    Overview = "overview",
    Features = "features",
    Feature = "feature",
    Reader = "reader",
    Grid = "layers",
    Routing = "routing",
    Expert = "expert",
    Rows = "embeddings",
    Training = "training",
    Query = "query",
    Pieces = "tokenizer",
    Diagnostics = "diagnostics"
);
words!(
    ColorBy,
    "`feature`, `norm`, `nll`, `entropy`, `expert`, `ple_share` or `nothing`",
    Feature = "feature",
    Norm = "norm",
    Nll = "nll",
    Entropy = "entropy",
    Expert = "expert",
    PleShare = "ple_share",
    Nothing = "nothing"
);
words!(
    Metric,
    "`resid`, `attn`, `mlp`, `ple`, `ple_share`, `entropy`, `first_choice`, `moe_share`, `expert` or `features`",
    Resid = "resid",
    Attn = "attn",
    Mlp = "mlp",
    Ple = "ple",
    PleShare = "ple_share",
    Entropy = "entropy",
    FirstChoice = "first_choice",
    MoeShare = "moe_share",
    Expert = "expert",
    Features = "features"
);
words!(Scope, "`document` or `corpus`", Document = "document", Corpus = "corpus");
words!(
    SortBy,
    "`id`, `density`, `mean_act`, `max_act` or `decoder_norm`",
    Id = "id",
    Density = "density",
    MeanAct = "mean_act",
    MaxAct = "max_act",
    DecoderNorm = "decoder_norm"
);

/// Something that has an address of its own and can be pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Feature { table: String, feature: u32 },
    Expert { layer: usize, expert: u16 },
    Row(u32),
    Token { doc: u64, token: u64 },
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature { table, feature } => write!(f, "f:{feature}:{table}"),
            Self::Expert { layer, expert } => write!(f, "e:{layer}:{expert}"),
            Self::Row(id) => write!(f, "r:{id}"),
            Self::Token { doc, token } => write!(f, "t:{doc}:{token}"),
        }
    }
}

impl FromStr for Item {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, rest) = text.split_once(':').ok_or(())?;
        if kind == "r" {
            return Ok(Self::Row(number(rest)?));
        }
        let (first, second) = rest.split_once(':').ok_or(())?;
        Ok(match kind {
            "f" => Self::Feature { table: second.to_owned(), feature: number(first)? },
            "e" => Self::Expert { layer: number(first)?, expert: number(second)? },
            "t" => Self::Token { doc: number(first)?, token: number(second)? },
            _ => return Err(()),
        })
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, ()> {
    text.parse().map_err(|_not_a_number| ())
}

/// The most things that are pinned at a time: more colors cannot be told apart.
pub(crate) const MAX_PINS: usize = 5;

/// The selection: what is looked at, in which table, which document, which token, which layer.
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
    /// The layer of the model that is looked at.
    pub(crate) layer: Option<usize>,
    /// The expert that is looked at, of the layer.
    pub(crate) expert: Option<u16>,
    /// The token of the vocabulary whose embeddings are looked at; that of the selected token where it is not set.
    pub(crate) row: Option<u32>,
    /// What the grid of tokens by layers shows.
    pub(crate) metric: Metric,
    /// Of what the load of experts is counted.
    pub(crate) scope: Scope,
    pub(crate) sort: SortBy,
    pub(crate) ascending: bool,
    pub(crate) filter: String,
    /// The coder whose training curves the overview shows.
    pub(crate) coder: Option<String>,
    /// The question that the query view asks.
    pub(crate) sql: String,
    /// What stays marked, in every view, while other things are looked at.
    pub(crate) pins: Vec<Item>,
}

impl Focus {
    /// Whether going from `self` to `other` is a step that "back" should undo.
    /// Moving a token cursor, sorting, typing a filter and coloring are not.
    fn is_another_place(&self, other: &Self) -> bool {
        let place = |f: &Self| (f.view, f.table.clone(), f.doc, f.row);
        place(self) != place(other)
            || (other.view == View::Feature && self.feature != other.feature)
            || (other.view == View::Expert && (self.layer, self.expert) != (other.layer, other.expert))
            || (other.view == View::Query && self.sql != other.sql)
    }

    /// What the view in focus is about, for pinning it.
    pub(crate) fn item(&self, table: Option<String>) -> Option<Item> {
        let feature = || Some(Item::Feature { table: table?, feature: self.feature? });
        let expert = || Some(Item::Expert { layer: self.layer?, expert: self.expert? });
        let token = || Some(Item::Token { doc: self.doc.unwrap_or(0), token: self.token? });
        match self.view {
            View::Features | View::Feature => feature(),
            View::Routing | View::Expert => expert(),
            View::Rows => self.row.map(Item::Row).or_else(token),
            View::Reader | View::Grid => token(),
            View::Overview | View::Training | View::Query | View::Pieces | View::Diagnostics => None,
        }
    }

    /// The place of something among the pins.
    pub(crate) fn pinned(&self, item: &Item) -> Option<usize> {
        self.pins.iter().position(|pin| pin == item)
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
    fn items_round_trip() {
        for item in [
            Item::Feature { table: "a:b".into(), feature: 7 },
            Item::Expert { layer: 3, expert: 127 },
            Item::Row(u32::MAX),
            Item::Token { doc: 1, token: 2 },
        ] {
            assert_eq!(item.to_string().parse(), Ok(item));
        }
        for junk in ["", "f", "f:7", "x:1:2", "e:1:99999", "t:-1:2", "r:"] {
            assert_eq!(junk.parse::<Item>(), Err(()), "{junk}");
        }
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
