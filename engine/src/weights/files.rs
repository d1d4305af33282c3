//! How are the files of a checkpoint opened, mapped and summed?

use std::io::Read;
use std::path::{Path, PathBuf};

use data::files::hex;
use fs_err as fs;
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A `config.json` is a few kilobytes; what is larger than this is something else.
const MAX_JSON: u64 = 64 << 20;

/// A file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightFile {
    pub path: PathBuf,
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) map: Mmap,
}

impl File {
    pub(super) fn describe(&self) -> WeightFile {
        WeightFile { path: self.path.clone(), bytes: self.map.len() as u64 }
    }
}

pub(super) fn map_files(paths: Vec<PathBuf>) -> Result<Vec<File>> {
    let map = |path: PathBuf| {
        let file = fs::File::open(&path).map_err(|source| Error::io(&path, source))?;
        #[expect(unsafe_code, reason = "weights are larger than what one wants to copy through a buffer")]
        // SAFETY: the map is read-only. Who truncates a checkpoint while it is in use gets a bus error, as in every
        // program that maps files.
        let map = unsafe { Mmap::map(file.file()) };
        let map = map.map_err(|source| Error::io(&path, source))?;
        Ok(File { path, map })
    };
    paths.into_iter().map(map).collect()
}

/// Reads a JSON file of a checkpoint.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value> {
    let bytes = read_bounded(path)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::Malformed {
        format: "JSON",
        what: format!("expected JSON, found other text ({error})"),
        path: path.to_owned(),
    })
}

/// Reads a file that is meant to be small.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let file = fs::File::open(path).map_err(|source| Error::io(path, source))?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON + 1).read_to_end(&mut bytes).map_err(|source| Error::io(path, source))?;
    if bytes.len() as u64 > MAX_JSON {
        let what = format!("expected at most {MAX_JSON} bytes, found more");
        return Err(Error::Malformed { format: "JSON", what, path: path.to_owned() });
    }
    Ok(bytes)
}

/// The SHA-256 of a file as lower-case hexadecimal digits, read in pieces.
pub(super) fn sha256_of_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(|source| Error::io(path, source))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(|source| Error::io(path, source))?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}
