//! The network. Read [`model`] from top to bottom, then [`block`].

pub mod load;
pub mod model;

mod altup;
mod attention;
mod block;
mod linear;
mod mlp;
mod moe;
mod norm;
pub(crate) mod ple;
mod rope;
