//! How does a newcomer see the whole way in minutes?

use std::process::Command;

use anyhow::Result;

use crate::{libtorch, place, process, test};

/// Sets up if need be, builds, and hands over to `polariscope demo`.
pub(crate) fn demo(args: &[String]) -> Result<()> {
    libtorch::ensure()?;
    let mut demo = Command::new(test::program("polariscope")?);
    process::with_libraries(&mut demo);
    process::run(demo.current_dir(place::root()).arg("demo").args(args))
}
