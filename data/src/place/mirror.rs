//! Which files of a store lie on this disk too, may they be trusted, and which make room for others?
//!
//! ```text
//! CACHE/remote/0123456789abcdef/news/…          files as in the run, whole or not there
//! CACHE/remote/0123456789abcdef/.tags/news/…    of each that came from or went to the store: what it was there
//! ```
//!
//! A file is trusted while its tag is that of the store's listing, and its length and time are those of when the tag was
//! written. Files without a tag are on their way to the store, and never make room. The time of a tag is when a process used
//! its file first; the one that was not used for longest goes first.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Address;
use super::store::Object;
use crate::error::Result;
use crate::files;

const TAGS: &str = ".tags";

/// The files of one prefix of a store on this disk.
#[derive(Debug)]
pub(super) struct Mirror {
    dir: PathBuf,
    tags: PathBuf,
    /// Of all mirrors.
    all: PathBuf,
    /// Bytes of all mirrors together.
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of all mirrors, as far as this process knows; `None` before it has looked.
    used: Option<u64>,
    /// Files whose tags were looked at.
    checked: HashSet<String>,
    /// Files that stay.
    kept: HashSet<PathBuf>,
}

/// What a file was when it came or went.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Tag {
    /// The store's own.
    version: String,
    bytes: u64,
    /// Of the file here, in nanoseconds since 1970.
    modified: u128,
}

impl Tag {
    fn of(path: &Path, object: &Object) -> Option<Self> {
        let metadata = path.metadata().ok().filter(|metadata| metadata.is_file() && metadata.len() == object.bytes)?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
        Some(Self { version: object.tag.clone(), bytes: object.bytes, modified })
    }
}

impl Mirror {
    pub(super) fn new(cache: &Path, limit: u64, address: &Address) -> Self {
        let all = cache.join("remote");
        let sum = files::hex(&Sha256::digest(address.shown.as_bytes()));
        let (folder, name) = (all.join(&sum[..16]), address.name());
        Self { dir: folder.join(name), tags: folder.join(TAGS).join(name), all, limit, state: Mutex::default() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is whole whenever the lock is free.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a file is here as it is there.
    pub(super) fn holds(&self, relative: &str, object: &Object) -> Result<bool> {
        let path = self.dir.join(relative);
        if self.state().checked.contains(relative) {
            return Ok(path.is_file());
        }
        let known = fs::read(self.tags.join(relative)).ok().and_then(|text| serde_json::from_slice::<Tag>(&text).ok());
        if known.is_none() || known != Tag::of(&path, object) {
            return Ok(false);
        }
        // Written again, so that its time is that of its use.
        self.adopt(relative, object)?;
        Ok(true)
    }

    /// Says that a file here is what the store has.
    pub(super) fn adopt(&self, relative: &str, object: &Object) -> Result<()> {
        let path = self.tags.join(relative);
        fs::create_dir_all(files::parent(&path))?;
        if let Some(tag) = Tag::of(&self.dir.join(relative), object) {
            files::write_json(&path, &tag)?;
            self.state().checked.insert(relative.to_owned());
        }
        Ok(())
    }

    /// Whether a file has changed here since it was last as in the store.
    pub(super) fn is_changed(&self, relative: &str, object: &Object) -> bool {
        let known = fs::read(self.tags.join(relative)).ok().and_then(|text| serde_json::from_slice::<Tag>(&text).ok());
        known.is_none() || known != Tag::of(&self.dir.join(relative), object)
    }

    /// Trusts a file no longer; every file for none named.
    pub(super) fn forget(&self, relative: Option<&str>) {
        let path = relative.map_or_else(|| self.tags.clone(), |relative| self.tags.join(relative));
        // What cannot be removed is compared with the listing again.
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match relative {
            Some(relative) => _ = self.state().checked.remove(relative),
            None => self.state().checked.clear(),
        }
    }

    /// Keeps a file here, however little room there is.
    pub(super) fn keep(&self, relative: &str) {
        self.state().kept.insert(self.dir.join(relative));
    }

    /// Makes room for so many bytes: files go that were not used for longest, of whichever run they are.
    pub(super) fn make_room(&self, bytes: u64) -> Result<()> {
        let mut state = self.state();
        if let Some(used) = state.used.filter(|used| used + bytes <= self.limit) {
            state.used = Some(used + bytes);
            return Ok(());
        }
        let mut tagged = self.tagged()?;
        let mut used: u64 = tagged.iter().map(|file| file.bytes).sum();
        tagged.sort_by_key(|file| file.used);
        for file in tagged {
            if used + bytes <= self.limit {
                break;
            }
            if state.kept.contains(&file.path) {
                continue;
            }
            // Whoever has it open reads on; another process may have removed it already.
            let _ = fs::remove_file(&file.tag);
            let _ = fs::remove_file(&file.path);
            used -= file.bytes;
        }
        state.used = Some(used + bytes);
        Ok(())
    }

    /// The files of all mirrors that may go.
    fn tagged(&self) -> Result<Vec<Tagged>> {
        let mut tagged = Vec::new();
        for name in files::names_in(&self.all, true)? {
            let folder = self.all.join(name);
            let tags = folder.join(TAGS);
            for relative in files::names_below(&tags)? {
                let (tag, path) = (tags.join(&relative), folder.join(&relative));
                // Another process may remove it at the moment.
                let Ok(used) = tag.metadata().and_then(|metadata| metadata.modified()) else { continue };
                let bytes = path.metadata().map_or(0, |metadata| metadata.len());
                tagged.push(Tagged { tag, path, bytes, used });
            }
        }
        Ok(tagged)
    }
}

struct Tagged {
    tag: PathBuf,
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}
