//! Opens a coder of another tool and writes it as one of ours: `cargo run -p scope --example import [SOURCE] [OUT]`.

#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::error::Error;
use std::path::{Path, PathBuf};

use scope::{ImportOptions, Sae, SparseCoder as _, pretrained};

/// Laid out as Gemma Scope 2 publishes its coders, with made-up weights.
const SOURCE: &str = "../tests/fixtures/dictionaries/gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_medium";

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let source = args.next().map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(SOURCE), PathBuf::from);
    let out = args.next().map_or_else(|| "target/examples/scope-9".into(), PathBuf::from);
    let sae = import(&source, &out)?;
    println!(
        "{}: {} latents, reads {}",
        sae.architecture(),
        sae.d_sae(),
        sae.hook_name().unwrap_or("what it does not say")
    );
    println!("its first latent writes {:?} …", &sae.w_dec().row(0)[..4]);
    Ok(())
}

/// Any layout that `pretrained` knows; weights are mapped, so that a wide coder opens without being read.
pub(crate) fn import(source: &Path, out: &Path) -> Result<Sae, Box<dyn Error>> {
    let coder = pretrained::open(source, &ImportOptions::default())?;
    coder.save(out)?;
    // `scope::selftest` tries it on a run that holds its hook point.
    Ok(Sae::load(out)?)
}
