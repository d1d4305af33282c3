//! How does one see that a file is as it was written, where no journal tells?
//!
//! A JSON file of a run, and a training's checkpoint, carry their own sum: [`KEY`] is the SHA-256 of the file in which the
//! digits of that sum are zeros. The files of a coder and of a feature table are listed in [`FILE`] beside them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::{self, hex};
use crate::manifest::FileEntry;

/// The field of a file's own sum.
pub const KEY: &str = "self_sha256";

/// The list of the files of a folder.
pub const FILE: &str = "sums.json";

/// What stands in place of the sum while it is taken.
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Bytes that are read at a time.
const BLOCK: usize = 1 << 20;

/// Longest head of a file in which its sum is looked for.
const MAX_HEAD: u64 = 1 << 30;

/// What the sum in a file says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    Whole,
    Broken,
    /// There is none, or it is not to be found any more.
    Missing,
}

/// `sums.json`: the files of a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// By the path within the folder.
    pub files: BTreeMap<String, FileEntry>,
}

impl Sums {
    /// Reads those of these files that are there.
    pub fn of(folder: &Path, names: &[&str]) -> Result<Self> {
        let mut sums = Self::default();
        for &name in names {
            let path = folder.join(name);
            if path.is_file() {
                sums.files.insert(name.to_owned(), entry(&path)?);
            }
        }
        Ok(sums)
    }

    /// Adds a file that is about to be written.
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        let entry =
            FileEntry { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)), row_groups: Vec::new() };
        self.files.insert(name.to_owned(), entry);
    }

    /// Writes the list.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join(FILE), self)
    }
}

/// The size and the sum of a file.
pub(crate) fn entry(path: &Path) -> Result<FileEntry> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let bytes = digest(&mut file, &mut hasher)?;
    Ok(FileEntry { bytes, sha256: hex(&hasher.finalize()), row_groups: Vec::new() })
}

/// A struct as JSON, with its sum as the last field.
pub(crate) fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|cause| Error::json(path, cause))?;
    text.truncate(text.len() - "\n}".len());
    text.extend(format!(",\n  \"{KEY}\": \"{ZEROS}\"\n}}\n").bytes());
    seal(&mut text, &[]);
    Ok(text)
}

/// Writes such a file.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    files::write_atomic(path, &json(path, value)?)
}

/// What a writer puts under [`KEY`] before it calls [`seal`].
pub const fn unsealed() -> &'static str {
    ZEROS
}

/// Puts the sum into the head of a file, where zeros stand; `rest` is what will follow the head.
pub fn seal(head: &mut [u8], rest: &[&[u8]]) {
    let Some(at) = place(head) else { return };
    let mut hasher = Sha256::new();
    hasher.update(&*head);
    for part in rest {
        hasher.update(part);
    }
    head[at..at + ZEROS.len()].copy_from_slice(hex(&hasher.finalize()).as_bytes());
}

/// Compares a file with the sum in it. The sum of a safetensors file stands in its header.
pub fn check(path: &Path) -> Result<Seal> {
    let mut file = fs::File::open(path)?;
    let mut head = Vec::new();
    if path.extension().is_some_and(|ending| ending == "safetensors") {
        file.by_ref().take(8).read_to_end(&mut head)?;
        let length = head.as_slice().try_into().map_or(0, u64::from_le_bytes);
        file.by_ref().take(length.min(MAX_HEAD)).read_to_end(&mut head)?;
    } else {
        file.by_ref().take(MAX_HEAD).read_to_end(&mut head)?;
    }
    let Some(at) = place(&head) else { return Ok(Seal::Missing) };
    let expected = head[at..at + ZEROS.len()].to_vec();
    head[at..at + ZEROS.len()].copy_from_slice(ZEROS.as_bytes());
    let mut hasher = Sha256::new();
    hasher.update(&head);
    digest(&mut file, &mut hasher)?;
    Ok(if hex(&hasher.finalize()).as_bytes() == expected { Seal::Whole } else { Seal::Broken })
}

/// Where the digits of the sum are: behind the last key of that name, which inside a text has other quotes.
fn place(head: &[u8]) -> Option<usize> {
    let key = format!("\"{KEY}\":");
    let behind = head.windows(key.len()).rposition(|part| part == key.as_bytes())? + key.len();
    let at = behind + head[behind..].iter().position(|&byte| byte != b' ')? + 1;
    let digits = head.get(at..at + ZEROS.len())?;
    let quoted = head[at - 1] == b'"' && head.get(at + ZEROS.len()) == Some(&b'"');
    (quoted && digits.iter().all(u8::is_ascii_hexdigit)).then_some(at)
}

fn digest(file: &mut fs::File, hasher: &mut Sha256) -> Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(bytes);
        }
        hasher.update(&block[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_byte_breaks_the_seal_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut sums = Sums::default();
        sums.add("cfg.json", b"{}");
        // A text that looks like the field is not taken for it.
        sums.add("\"self_sha256\": \"00", b"");
        sums.write(dir.path()).unwrap();
        assert_eq!(check(&path).unwrap(), Seal::Whole);
        assert_eq!(files::read_json::<Sums>(&path).unwrap(), sums);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for bit in [1, 0x20, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= bit;
                fs::write(&path, bytes).unwrap();
                assert_ne!(check(&path).unwrap(), Seal::Whole, "byte {at}");
            }
        }
    }

    #[test]
    fn the_sum_of_a_safetensors_file_is_in_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let header = format!("{{\"__metadata__\":{{\"{KEY}\":\"{}\"}}}}", unsealed());
        let mut head = (header.len() as u64).to_le_bytes().to_vec();
        head.extend(header.bytes());
        seal(&mut head, &[b"num", b"bers"]);
        fs::write(&path, [head.as_slice(), b"numbers"].concat()).unwrap();
        assert_eq!(check(&path).unwrap(), Seal::Whole);
        fs::write(&path, [head.as_slice(), b"numbets"].concat()).unwrap();
        assert_eq!(check(&path).unwrap(), Seal::Broken);
        fs::write(&path, b"numbers").unwrap();
        assert_eq!(check(&path).unwrap(), Seal::Missing);
    }
}
