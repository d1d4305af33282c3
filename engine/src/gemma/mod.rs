//! The network. Read [`model`] from top to bottom, then [`block`].

pub mod load;
pub mod model;

mod altup;
pub(crate) mod attention;
mod block;
mod linear;
mod mlp;
mod moe;
mod norm;
pub(crate) mod ple;
mod rope;
