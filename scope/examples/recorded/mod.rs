//! Which run do the examples work on? The mini model in `data/mini` reads our own README; it takes a few seconds, once.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;

use data::Run;
use data::corpus::Corpus;
use engine::gemma::model::{Model, Precision};
use engine::record::{Provenance, RecordOptions, describe, record};
use engine::weights::Weights;

/// What is recorded, and read by the coder.
pub(crate) const HOOK_POINT: &str = "blocks.4.hook_resid_post";

/// Opens `dir/run`, and records it where it is not.
pub(crate) fn run(dir: &Path) -> Result<Run, Box<dyn Error>> {
    let out = dir.join("run");
    if out.join("manifest.json").exists() {
        return Ok(Run::open(out)?);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let weights = Weights::open(root.join("data/mini"))?;
    let corpus = Corpus::open(&[root.join("README.md").display().to_string()], false)?;
    let (model, described) =
        (Model::from_weights(&weights, Precision::F32)?, describe("mini", &weights, Precision::F32)?);
    let (tokenizer, options) = (weights.tokenizer()?, RecordOptions::new(vec![HOOK_POINT.parse()?]));
    let go_on = &mut |_: &_| ControlFlow::Continue(());
    record(&model, described, Some(&tokenizer), &corpus, &out, &options, Provenance::default(), false, go_on)?;
    Ok(Run::open(out)?)
}
