//! Is the source in order? Cheapest first; nothing here needs libtorch.

use anyhow::Result;

use crate::{process, tidy};

/// With these, the crates on top of libtorch are checked and documented without it.
const DOC_ONLY: [&str; 2] = ["--features", "engine/doc-only,scope/doc-only,cli/doc-only,tests/doc-only"];

/// Formatting, tidy rules, lints, documentation. Everything shares one build of the dependencies' metadata.
pub(crate) fn check() -> Result<()> {
    process::run(process::plain_cargo().args(["fmt", "--all", "--check"]))?;
    tidy::tidy()?;
    let mut clippy = process::plain_cargo();
    clippy.args(["clippy", "--workspace", "--all-targets"]).args(DOC_ONLY);
    process::run(clippy.args(["--", "-D", "warnings"]))?;
    let mut doc = process::plain_cargo();
    doc.args(["doc", "--workspace", "--no-deps"]).args(DOC_ONLY);
    // Module docs may lead the reader into private modules.
    process::run(doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"))?;
    eprintln!("check: all in order");
    Ok(())
}
