//! Where do things lie: the checkout, the cache, the target folder?

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Result, bail};

/// The root of the checkout that cargo runs this in.
pub(crate) fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        // Asked for at run time: checkouts that share a target folder share this program too, and what was compiled into
        // it may be another checkout's place.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&manifest).parent().expect("xtask lies one folder below the root of the checkout").to_owned()
    });
    &ROOT
}

/// Downloads, the unpacked libtorch, models and texts: `$POLARISCOPE_CACHE`, else the user's cache folder.
pub(crate) fn cache() -> Result<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
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

/// The link or folder that `[env] LIBTORCH` in `.cargo/config.toml` names.
pub(crate) fn dot_libtorch() -> PathBuf {
    root().join(".libtorch")
}

/// Where cargo writes: `$CARGO_TARGET_DIR`, else `target` in the checkout.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR").filter(|v| !v.is_empty()) {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}
