//! What may be changed in a forward pass, how is it said, and how is it done?
//!
//! An [`Intervention`] is what a person writes: at which hook points, on which tokens, what to do. [`Interventions::resolve`]
//! fetches the vectors that it speaks of and gives the [`Interventions`] that are attached to the hooks of a pass. All that
//! happens at one hook point is computed in f32, one after the other, and rounded once to the dtype of the model.
//!
//! # The text form
//!
//! ```text
//! zero    TARGET                      set to 0
//! scale   TARGET NUMBER               multiply
//! add     TARGET VALUE                add a vector
//! replace TARGET VALUE                put a vector in its place
//! mean    TARGET from ORIGIN          put a mean in its place: over a run, a text, or a cache
//! patch   TARGET from ORIGIN          put what another text has at the same position in its place
//! forbid  LAYERS [@TOKENS] experts N  the router cannot choose these experts; the others share the weight
//! force   LAYERS [@TOKENS] experts N  the router chooses these experts, and the best others if there is room
//! ablate  TARGET sae:DIR#N            a coder's features at 0; what the coder does not explain is kept
//! clamp   TARGET sae:DIR#N NUMBER     a coder's features at this activation; what it does not explain is kept
//! reconstruct TARGET sae:DIR          what the coder makes of it; what it does not explain is dropped
//! ```
//!
//! Several are joined with `;` and happen in that order. `,` always means "and", `-` an inclusive range.
//!
//! `TARGET` is `POINTS[PART] [@TOKENS]`:
//! - `POINTS`: hook points with `*` for every layer and ranges of layers, as [`HookPoint::parse_list`](data::HookPoint::parse_list) reads them.
//! - `[PART]`: indices into the axes of one token's activation, a bracket for each axis: `attn.hook_z[2]` is head 2,
//!   `attn.hook_z[2][0-7]` its first eight coordinates, `hook_resid_pre[5,9]` two coordinates, `hook_ple_token[5]` layer 5's
//!   row, `attn.hook_pattern[*][0]` what every head pays to key 0. What is left out is everything.
//! - `@TOKENS`: positions in the sequence (`@3`, `@3-7`, `@5-` for the fifth and all that follow, `@-1` for the last of the
//!   prompt), `last`, `prompt`, `generated`, `id:17`, or a token's text, `@" gold"`. Left out: every token.
//!
//! `last` is the last token of every pass: the one whose logits choose the next token. A pass with several tokens of a
//! sequence, or at its start, is the prompt's; passes of one token that follow are of generated tokens.
//!
//! `VALUE` is a sum, `TERM ± TERM …`, of terms `SOURCE` or `SOURCE * NUMBER`; a `SOURCE` is one of
//! - a number, or a list `[0.5, -1]` as long as the part (or as the whole activation)
//! - `sae:DIR#12`: the direction that feature 12 of a coder writes
//! - `file:PATH#NAME`: a tensor of a safetensors file
//! - `ORIGIN@POSITION`: what the origin has at this hook point, at a position (`-1` is its last)
//! - `ORIGIN`: its mean there, without special tokens
//!
//! and an `ORIGIN` is `"a text"`, `ids:2,17,250`, `cache:PATH` (written by `--cache`), or `run:PATH` (means only).
//! A path with spaces, `;`, `#` or `@` stands in double quotes.
//!
//! ```text
//! zero blocks.3.hook_mlp_out @5-9
//! add blocks.9.hook_resid_post sae:coders/9#123 * 8
//! add blocks.9.hook_resid_post @generated "I love it" - "I hate it"
//! replace hook_ple_token[5] @4 " silver"@-1
//! patch blocks.2.hook_resid_post @4 from "The other prompt"
//! ```
//!
//! # The same in JSON
//!
//! A list of texts like the above, or of objects with the same words:
//! `{"do": "add", "at": "blocks.9.hook_resid_post", "tokens": "5-9", "value": "sae:coders/9#123 * 8"}`, where `value` may also
//! be a number or a list of numbers, `scale` and `clamp` have their number in `by`, `mean` and `patch` an origin in `from`,
//! `forbid` and `force` a list `experts`, and coders stand in `coder`.

mod edit;
mod json;
mod parse;
mod resolve;
mod select;
mod write;

#[cfg(test)]
mod tests;

pub use self::edit::{Change, Edit, Interventions, RowFunction};
pub use self::json::from_json;
pub use self::parse::parse;
pub(crate) use self::resolve::check_part;
pub use self::resolve::{Coders, NoCoders, targets, token_id};
pub use self::select::{Part, Pick, Selection};

/// Something to change in a forward pass, as a person says it.
#[derive(Clone, Debug, PartialEq)]
pub struct Intervention {
    pub at: Vec<Spot>,
    pub tokens: Selection,
    pub action: Action,
}

/// Hook points and a part of them: `blocks.*.attn.hook_z[2]`. For the actions on experts, layers: `blocks.3-5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    pub points: String,
    pub part: Part,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Zero,
    Scale(f32),
    Add(Value),
    Replace(Value),
    Mean(Origin),
    Patch(Origin),
    ForbidExperts(Vec<usize>),
    ForceExperts(Vec<usize>),
    /// Edits features of the coder in a folder.
    Features {
        coder: String,
        features: Vec<usize>,
        edit: FeatureEdit,
    },
    /// Puts a coder's reconstruction in place.
    Reconstruct {
        coder: String,
    },
}

/// What becomes of a feature's activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeatureEdit {
    Ablate,
    Clamp(f32),
}

/// A sum of vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Value(pub Vec<Term>);

/// A vector times a number.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    pub source: Source,
    pub scale: f32,
}

/// Where a vector comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    Number(f32),
    List(Vec<f32>),
    /// The direction that a coder's feature writes.
    Decoder {
        coder: String,
        feature: usize,
    },
    /// A tensor of a safetensors file.
    File {
        path: String,
        name: String,
    },
    /// The activation of another pass at a position; negative ones count from its end.
    At(Origin, i64),
    /// The mean activation of another pass, or of a run.
    Mean(Origin),
}

/// Another pass, or many.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Text(String),
    Ids(Vec<u32>),
    Cache(String),
    Run(String),
}
