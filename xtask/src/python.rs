//! How do the Python packages come here that tests run: readers of Parquet, with which the examples in the documentation of
//! `data` are run, an S3 server, and the client of the Hugging Face hub?

use std::process::Command;

use anyhow::Result;
use fs_err as fs;

use crate::{place, process, wheel};

/// Packages in a folder of their own.
#[derive(Debug)]
pub(crate) struct Packages {
    /// In the cache.
    folder: &'static str,
    /// As pip takes them.
    requirements: &'static [&'static str],
}

/// What the examples import.
pub(crate) const READERS: Packages =
    Packages { folder: "readers", requirements: &["duckdb", "numpy", "pandas", "polars", "pyarrow"] };

/// The S3 server.
pub(crate) const MOTO: Packages = Packages { folder: "moto", requirements: &["moto[server]==5.2.5"] };

/// The client of the Hugging Face hub.
pub(crate) const HUB: Packages = Packages { folder: "hub", requirements: &["huggingface_hub==2.4.0"] };

impl Packages {
    /// Puts them into their folder of the cache, once; after that nothing is asked of the network.
    pub(crate) fn ensure(&self) -> Result<()> {
        let dir = place::cache()?.join(self.folder);
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
        eprintln!("bringing {} to `{}`", self.requirements.join(", "), dir.display());
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:", "--disable-pip-version-check", "--target"]);
        pip.arg(&dir).args(self.requirements);
        process::impatient(&mut pip);
        // What it says of other packages of this Python is shown only where it fails.
        process::output(&mut pip)?;
        Ok(fs::write(&whole, version)?)
    }
}
