//! `polariscope models`: which models have a name, and are they here?

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::{catalog, output};

/// Lists the models and texts that have a name, and whether they are here
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  polariscope models --json")]
pub(crate) struct Models {
    /// Print one JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

impl Models {
    pub(crate) fn run(self) -> Result<()> {
        let mut rows = vec![["name", "architecture", "size", "from", "here", "licence"].map(String::from).to_vec()];
        for known in catalog::MODELS {
            let path = catalog::fetched(known)?;
            let from = match (known.packed, known.hub) {
                (Some(_), _) => "packages",
                (None, Some(_)) => "hub",
                (None, None) => "repository",
            };
            if self.json {
                let bytes = known.packed.map(|packed| packed.bytes);
                output::json(&json!({
                    "id": known.id, "kind": "model", "architecture": known.architecture, "parameters": known.parameters,
                    "bytes": bytes, "licence": known.licence, "from": from, "hub": known.hub, "path": path,
                }))?;
            }
            let here = if path.is_some() { "yes" } else { "no" };
            rows.push(
                [known.id, known.architecture, known.parameters, from, here, known.licence].map(String::from).to_vec(),
            );
        }
        let mut texts = Vec::new();
        for text in catalog::TEXTS {
            let path = catalog::text_dir()?.join(text.packed.file);
            let path = path.is_file().then_some(path);
            if self.json {
                output::json(&json!({
                    "id": text.id, "kind": "text", "what": text.what, "bytes": text.packed.bytes, "from": "packages",
                    "path": path,
                }))?;
            }
            let here = if path.is_some() { "here" } else { "not here" };
            texts.push(vec![text.id.to_owned(), here.to_owned(), text.what.to_owned()]);
        }
        if self.json {
            return Ok(());
        }
        output::text(&format!("{}\ntexts\n{}", output::table(&rows, &[2]), output::table(&texts, &[])))
    }
}
