//! Trains a coder on a run: `cargo run -p scope --example train [DIR]` records `DIR/run` and writes `DIR/run/saes/resid-4`.

#![expect(clippy::print_stdout, reason = "an example says what it does")]

#[path = "recorded/mod.rs"]
mod recorded;

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use data::{HookPoint, Run};
use scope::{Sae, SparseCoder as _, TrainConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map_or_else(|| "target/examples".into(), PathBuf::from);
    let (_, sae) = train(&dir)?;
    println!("{} with {} latents, reads {}", sae.architecture(), sae.d_sae(), sae.hook_name().unwrap_or_default());
    Ok(())
}

/// A run, and a coder of it; what is there already is opened.
pub(crate) fn train(dir: &Path) -> Result<(Run, Sae), Box<dyn Error>> {
    let run = recorded::run(dir)?;
    let hook: HookPoint = recorded::HOOK_POINT.parse()?;
    let out = run.sae_dir("resid-4")?;
    if !out.join("cfg.json").exists() {
        let config =
            TrainConfig { d_sae: 512, k: 16, batch: 512, epochs: 20, lr: Some(1e-3), ..TrainConfig::default() };
        scope::train(&run, hook, &config, &out, &mut |at| {
            if at.step % 20 == 0 {
                println!("step {} of {}: explained variance {:.3}", at.step, at.steps, at.explained_variance);
            }
            ControlFlow::Continue(())
        })?;
    }
    let sae = Sae::load(&out)?;
    Ok((run, sae))
}
