//! What does the viewer ask of a run?
//!
//! One file per view, each with its questions ([`crate::loader::Ask`]) and its answers as plain data.
//! Nothing outside this folder calls `data`.

mod diagnostics;
mod feature;
mod feature_more;
mod features;
mod grid;
mod notes;
mod overview;
mod picture;
mod pieces;
mod reader;
mod routing;
mod rows;
mod source;
mod sql;
mod training;

pub(crate) use diagnostics::{Diagnostics, DiagnosticsQuery};
pub(crate) use feature::{FeatureAnswer, FeatureExample, FeatureQuery, Neighbour};
pub(crate) use feature_more::{FeatureMore, FeatureMoreQuery, NearMissQuery, Partner};
pub(crate) use features::{Order, OrderQuery, RowDetail, RowsQuery};
pub(crate) use grid::{Grid, GridQuery};
pub(crate) use notes::{NoteQuery, NotesQuery};
pub(crate) use overview::{CoderRow, Curve, CurvesQuery, HookRow, Overview, OverviewQuery};
pub(crate) use picture::PictureQuery;
pub(crate) use pieces::{Pieces, PiecesQuery};
pub(crate) use reader::{
    Active, DocumentsQuery, NormsQuery, Passage, PassageFeatures, PassageFeaturesQuery, PassageQuery, TOKENS_PER_PAGE,
};
pub(crate) use routing::{
    ExpertFeaturesQuery, ExpertSample, ExpertSampleQuery, Joined, LoadsQuery, PassageRouting, PassageRoutingQuery,
    Taken,
};
pub(crate) use rows::{LayerLookup, Lookup, LookupQuery, Nearest, NearestQuery, OccurrencesQuery};
pub(crate) use source::{Source, Tok};
pub(crate) use sql::{CatalogQuery, SqlAnswer, SqlQuery};
pub(crate) use training::{Coder, TrainingQuery};
