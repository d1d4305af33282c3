//! What does the viewer ask of a run?
//!
//! One file per view, each with its questions ([`crate::loader::Ask`]) and its answers as plain data.
//! Nothing outside this folder calls `data`.

mod feature;
mod features;
mod overview;
mod reader;
mod source;

pub(crate) use feature::{FeatureAnswer, FeatureExample, FeatureQuery, Neighbour};
pub(crate) use features::{Order, OrderQuery, RowDetail, RowsQuery};
pub(crate) use overview::{CoderRow, Curve, CurvesQuery, HookRow, Overview, OverviewQuery};
pub(crate) use reader::{
    Active, DocumentsQuery, NormsQuery, Passage, PassageFeatures, PassageFeaturesQuery, PassageQuery, TOKENS_PER_PAGE,
};
pub(crate) use source::{Source, Tok};
