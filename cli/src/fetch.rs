//! `polariscope fetch`: brings a model or a text by its name.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use crate::catalog::{self, Known, Packed};
use crate::{interrupt, output, packages};

/// Brings models and texts that have a name, checks their sums, shows where the licence lies
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  polariscope fetch gemma-3-270m lee-background")]
pub(crate) struct Fetch {
    /// Names of models or texts, as `polariscope models` lists them
    #[arg(required = true, value_name = "MODEL")]
    names: Vec<String>,

    /// Folder to put the files into [default: the cache]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// Print one JSON object for each on standard output
    #[arg(long)]
    json: bool,
}

impl Fetch {
    pub(crate) fn run(self) -> Result<()> {
        interrupt::watch();
        // All names are looked at before the first byte is fetched.
        let wanted: Vec<Wanted> = self.names.iter().map(|name| find(name)).collect::<Result<_>>()?;
        for item in wanted {
            let path = bring(&item, self.to.as_deref())?;
            if self.json {
                output::json(&json!({ "id": item.id, "path": path, "licence": item.licence }))?;
            } else {
                output::text(&path.display().to_string())?;
            }
        }
        Ok(())
    }
}

/// One thing to bring.
struct Wanted {
    id: &'static str,
    packed: &'static Packed,
    licence: Option<&'static str>,
    home: PathBuf,
}

fn find(name: &str) -> Result<Wanted> {
    if let Some(text) = catalog::text(name) {
        return Ok(Wanted { id: text.id, packed: &text.packed, licence: None, home: catalog::text_dir()? });
    }
    match catalog::model(name) {
        Some(Known { id, packed: Some(packed), licence, .. }) => {
            Ok(Wanted { id, packed, licence: Some(licence), home: catalog::model_dir(id)? })
        }
        Some(Known { id, hub: Some(hub), .. }) => bail!(
            "`{name}` is in no package\n\
             hint: accept its terms at the Hugging Face hub and download it: hf download {hub} --local-dir {}",
            catalog::model_dir(id)?.display()
        ),
        Some(_) => bail!("`{name}` lies in the repository and needs no fetching\nhint: polariscope inspect {name}"),
        None => bail!("no model or text `{name}`\nhint: `polariscope models` lists the known ones"),
    }
}

/// Brings a model by name into the cache.
pub(crate) fn fetch(name: &str) -> Result<PathBuf> {
    bring(&find(name)?, None)
}

fn bring(item: &Wanted, to: Option<&Path>) -> Result<PathBuf> {
    let dir = to.unwrap_or(&item.home);
    let path = packages::bring(item.packed, dir)?;
    if let Some(licence) = item.licence {
        output::note(&format!("`{}` is under the {licence}", item.id));
        for terms in item.packed.terms.iter().map(|name| dir.join(name)).filter(|path| path.exists()) {
            output::note(&format!("its terms lie in `{}`", terms.display()));
        }
    }
    Ok(path)
}
