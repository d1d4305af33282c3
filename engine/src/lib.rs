//! Instrumented Gemma inference on libtorch.
//!
//! A [`Model`](gemma::model::Model) runs a [`Batch`](gemma::model::Batch) of sequences that lie end to end, and calls the
//! [`Hooks`](hook::Hooks) that are attached to its hook points; [`record`] writes what they see into a run directory.
//!
//! ```no_run
//! use engine::gemma::model::{Batch, Forward, Model, Precision};
//! use engine::hook::Hooks;
//!
//! let model = Model::load("gemma-3-270m-q4_k_m.gguf", Precision::F32)?;
//! let mut hooks = Hooks::none();
//! hooks.read("blocks.5.hook_resid_post".parse()?, |_, resid| println!("{:?}", resid.size()));
//! model.forward(&Batch::one(&[2, 818, 5279]), None, &mut hooks, Forward::default())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Invariants: a pass without hooks allocates and copies nothing extra; capturing does not change a bit of what is computed;
//! weights are never folded; a tensor never leaves this crate and `scope`.

pub mod attribution;
pub mod cache;
pub mod chat;
pub mod config;
pub mod device;
pub mod error;
pub mod gemma;
pub mod generate;
pub mod hook;
pub mod intervention;
pub mod kv_cache;
pub mod lens;
pub mod patching;
pub mod plan;
pub mod ple;
pub mod ple_table;
pub mod quantize;
pub mod record;
pub mod testing;
pub mod tokenizer;
pub mod weights;
