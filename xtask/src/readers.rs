//! How do the Python readers of Parquet come here, with which the examples in the documentation of `data` are run?

use std::process::Command;

use anyhow::Result;
use fs_err as fs;

use crate::{place, process, wheel};

/// What the examples import.
const PACKAGES: [&str; 5] = ["duckdb", "numpy", "pandas", "polars", "pyarrow"];

/// Puts them into the folder `readers` of the cache, once; after that nothing is asked of the network.
pub(crate) fn ensure() -> Result<()> {
    let dir = place::cache()?.join("readers");
    let python = wheel::python()?;
    let version = process::output(Command::new(&python).args(["-c", "import sys; print(sys.version)"]))?;
    // Written last, and of the Python that they were brought for.
    let whole = dir.join("python-version");
    if fs::read_to_string(&whole).is_ok_and(|found| found == version) {
        return Ok(());
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    eprintln!("bringing {} to `{}`", PACKAGES.join(", "), dir.display());
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:", "--disable-pip-version-check", "--target"]);
    pip.arg(&dir).args(PACKAGES);
    process::impatient(&mut pip);
    // What it says of other packages of this Python is shown only where it fails.
    process::output(&mut pip)?;
    Ok(fs::write(&whole, version)?)
}
