//! Sparse coders: train, load, apply, evaluate, describe.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! # fn main() -> scope::Result<()> {
//! let run = data::Run::open("runs/news")?;
//! let hook: data::HookPoint = "blocks.12.hook_resid_post".parse()?;
//! let config = scope::TrainConfig { d_sae: 4096, k: 32, ..Default::default() };
//! scope::train(&run, hook, &config, &run.sae_dir("news-12")?, &mut |progress| {
//!     println!("step {}: explained variance {:.3}", progress.step, progress.explained_variance);
//!     ControlFlow::Continue(())
//! })?;
//! let sae = scope::Sae::load(run.sae_dir("news-12")?)?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/` has a short program for each task: `train`, `import`, `encode`, `evaluate`, `join`; a test runs them.
//!
//! Coders of other tools are opened by [`pretrained::open`], whatever their layout, and [`mod@selftest`] says whether a run holds
//! what they were made for. [`Sae`] is autoencoder and transcoder alike.
//!
//! What holds here:
//! - A `tch::Tensor` never crosses the border of this crate; rows are slices.
//! - Weights that lie in a file as ours do stay there: a wide dictionary opens without being read.
//! - Nothing is unpickled.
//! - Special tokens and outliers never enter training or statistics.
//! - The fast path of training gives what the plain one in `loss/plain.rs` gives; a test holds them together.
//! - The same seed gives the same weights, whatever the number of threads, and however often the training was resumed.

pub mod coder;
pub mod crosscoder;
pub mod encode;
pub mod error;
pub mod metrics;
pub mod npz;
pub mod pretrained;
pub mod sae;
pub mod selftest;
pub mod sites;
pub mod sparse;
pub mod splice;
pub mod train;
pub mod workers;

mod activation;
mod batch_topk;
mod checkpoint;
mod cosines;
mod gated;
mod init;
mod jump_relu;
mod kernels;
mod l1;
mod layout;
mod loss;
mod matching_pursuit;
mod matrix;
mod normalization;
mod optimizer;
mod random;
mod rule;
mod stats;
mod step;
mod tensors;
mod topk;

#[cfg(test)]
mod testing;

pub use activation::Activation;
pub use coder::Coder;
pub use crosscoder::Crosscoder;
pub use encode::{EncodeOptions, EncodeProgress, EncodeSummary, LogitLens, encode};
pub use error::{Error, Result};
pub use matrix::Matrix;
pub use metrics::{Metrics, evaluate};
pub use normalization::Normalization;
pub use pretrained::ImportOptions;
pub use sae::{Sae, SparseCoder};
pub use selftest::{SelfTest, selftest};
pub use sites::Sites;
pub use sparse::SparseRows;
pub use splice::{Coders, Splice};
pub use train::{
    Architecture, Job, Notice, Session, SparsityLoss, TrainConfig, TrainProgress, TrainSummary, Wiring, sweep, train,
};
pub use workers::Workers;
