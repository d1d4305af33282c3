//! Measures a coder beside dictionaries that learnt nothing: `cargo run -p scope --example evaluate [DIR]`.

#![expect(clippy::print_stdout, reason = "an example says what it does")]

#[expect(dead_code, reason = "an example has a `main` of its own")]
#[path = "train.rs"]
mod train;

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use data::HookPoint;
use scope::metrics::{EvaluateOptions, Evaluation, measure};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map_or_else(|| "target/examples".into(), PathBuf::from);
    let found = evaluate(&dir)?;
    let (metrics, beside) = (&found.metrics, &found.baselines);
    println!("L0 {:.1}, explained variance {:.3}", metrics.l0, metrics.explained_variance);
    if let Some(random) = &beside.random_dictionary {
        println!("a random dictionary: {:.3}", random.explained_variance);
    }
    println!("{} principal components: {:.3}", beside.pca.rank, beside.pca.explained_variance);
    for position in &found.positions {
        println!("positions {}–{}: {:.3}", position.first, position.last, position.metrics.explained_variance);
    }
    Ok(())
}

/// What one pass over the run says of the coder.
pub(crate) fn evaluate(dir: &Path) -> Result<Evaluation, Box<dyn Error>> {
    let (run, sae) = train::train(dir)?;
    let hook: HookPoint = sae.hook_name().ok_or("the coder does not say its hook point")?.parse()?;
    // An autoencoder speaks of what it reads. The references are for `metrics::recovered` and `metrics::probe`.
    let (found, _references) =
        measure(&run, &hook.into(), &sae, &EvaluateOptions::default(), &mut |_| ControlFlow::Continue(()))?;
    Ok(found)
}
