//! Where do downloads lie?

use std::path::PathBuf;

use anyhow::{Result, bail};

/// `$POLARISCOPE_CACHE`, else `polariscope` in the user's cache folder.
pub(crate) fn cache() -> Result<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("POLARISCOPE_CACHE") {
        return Ok(dir);
    }
    if let Some(dir) = var("XDG_CACHE_HOME") {
        return Ok(dir.join("polariscope"));
    }
    match var("HOME").or_else(|| var("USERPROFILE")) {
        Some(home) => Ok(home.join(".cache").join("polariscope")),
        None => bail!("no folder for downloads\nhint: set POLARISCOPE_CACHE to one"),
    }
}
