//! Where does a run or a coder lie, as the command line says it?

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use data::place::{DEFAULT_MIRROR_BYTES, Stores};
use data::{Place, Run};

use crate::place;

/// What the settings of stores begin with, as in the tools of those who run them.
const SETTINGS: [&str; 5] = ["AWS_", "GOOGLE_", "AZURE_", "SERVICE_ACCOUNT", "IDENTITY_ENDPOINT"];

/// Bytes on disk of what is brought from stores, in GB.
const MIRROR_GB: &str = "POLARISCOPE_MIRROR_GB";

/// A folder, or `s3://…`, `gs://…`, `az://…`, `file://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location(OsString);

impl From<OsString> for Location {
    fn from(text: OsString) -> Self {
        Self(text)
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        Self(path.into())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.display(), f)
    }
}

impl Location {
    /// The place, of which a store is not asked yet.
    pub(crate) fn place(&self) -> Result<Place> {
        Ok(Place::parse(&self.0, &stores()?)?)
    }

    /// The run that lies there.
    pub(crate) fn run(&self) -> Result<Run> {
        Ok(Run::open_at(self.place()?)?)
    }

    /// The folder of the coder that lies there; it is brought without its checkpoints.
    pub(crate) fn coder(&self) -> Result<PathBuf> {
        Ok(self.place()?.bring(|path| !path.contains('/'))?.to_owned())
    }

    /// What lies in it under a name.
    pub(crate) fn join(&self, name: &str) -> Self {
        let mut text = self.0.clone();
        if !text.to_string_lossy().ends_with('/') {
            text.push("/");
        }
        text.push(name);
        Self(text)
    }

    /// As a path, which may be a URL.
    pub(crate) fn into_path(self) -> PathBuf {
        self.0.into()
    }
}

/// What the environment says of object stores.
pub(crate) fn stores() -> Result<Stores> {
    let is_setting = |name: &str| SETTINGS.iter().any(|beginning| name.starts_with(beginning));
    let settings =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let gigabytes = std::env::var(MIRROR_GB).ok().filter(|text| !text.is_empty());
    let mirror_bytes = match gigabytes.as_deref().map(str::parse::<f64>) {
        None => DEFAULT_MIRROR_BYTES,
        Some(Ok(number)) if number.is_finite() && number >= 0.0 => (number * 1e9) as u64,
        Some(_) => bail!(
            "expected gigabytes in the variable `{MIRROR_GB}`, found `{}`\nhint: for example `{MIRROR_GB}=200`",
            gigabytes.unwrap_or_default()
        ),
    };
    // Without a cache only folders can be used, and that is said where a store is named.
    let cache = place::cache().ok();
    Ok(Stores { cache, mirror_bytes, settings: settings.filter(|(name, _)| is_setting(name)).collect() })
}
