//! Encodes a run with a coder and looks at its features: `cargo run -p scope --example encode [DIR]` writes
//! `DIR/run/features/resid-4`.

#![expect(clippy::print_stdout, reason = "an example says what it does")]

#[expect(dead_code, reason = "an example has a `main` of its own")]
#[path = "train.rs"]
mod train;

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use data::features::FeatureTable;
use scope::EncodeOptions;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map_or_else(|| "target/examples".into(), PathBuf::from);
    let table = encode(&dir)?;
    let columns = table.summary()?;
    // The feature that fires most seldom of those that fire often enough to be looked at.
    let candidates = (0..columns.n_active.len()).filter(|&feature| columns.n_active[feature] >= 10);
    let Some(feature) = candidates.min_by_key(|&feature| columns.n_active[feature]) else { return Ok(()) };
    let feature = feature as u32;
    println!("feature {feature} fires on {} tokens:", columns.n_active[feature as usize]);
    for example in table.examples(feature..feature + 1)?.iter().filter(|example| example.group == "top").take(5) {
        let passage = example.context_start..example.context_start + u64::from(example.context_len);
        println!("{:8.3}  {}", example.act, table.run().tokens(passage)?.token.concat().replace('\n', "↵"));
    }
    Ok(())
}

/// The feature table of a coder; one that is there already is opened.
pub(crate) fn encode(dir: &Path) -> Result<FeatureTable, Box<dyn Error>> {
    let (run, _) = train::train(dir)?;
    if !run.feature_tables()?.contains(&"resid-4".to_owned()) {
        let options = EncodeOptions { context: 24, ..EncodeOptions::default() };
        // A model in the place of `None` tells which tokens a feature raises and lowers.
        let found = scope::encode(&run, &run.sae_dir("resid-4")?, None, &options, &mut |_| ControlFlow::Continue(()))?;
        println!("L0 {:.1}, {} features never fired", found.l0, found.dead_features);
    }
    Ok(run.feature_table("resid-4")?)
}
