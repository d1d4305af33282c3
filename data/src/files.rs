//! How does a file come to be whole or not there at all, and which names may it have?
//!
//! A file is written under a temporary name (it begins with a dot and ends in `.tmp`), fsynced and renamed,
//! and then its directory is fsynced. A name that comes from a user or from disk never leads out of the run.

use std::io::{self, BufWriter, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use fs_err as fs;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Bytes that are gathered before a file is written to.
const WRITE_BUFFER: usize = 1 << 20;

/// Writes a small file so that it is whole or not there: temporary name, fsync, rename, fsync of the directory.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<()> {
    let mut pending = PendingFile::create(path)?;
    pending.write_all(contents)?;
    pending.publish()?;
    sync_dir(parent(path))
}

/// Lower-case hexadecimal digits, as sums are written everywhere.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
    }
    text
}

/// Fills `out` from a place in the file, whoever else reads from it at the same time.
#[cfg(unix)]
pub fn read_at(file: &fs::File, out: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    file.file().read_exact_at(out, offset)
}

/// Fills `out` from a place in the file, whoever else reads from it at the same time.
#[cfg(not(unix))]
pub fn read_at(file: &fs::File, out: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    // A handle of its own: the position of a shared one belongs to whoever reads at the moment.
    let mut file = fs::File::open(file.path())?;
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(out)
}

/// Writes at a place in the file, wherever its position is.
#[cfg(unix)]
pub(crate) fn write_at(file: &fs::File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    file.file().write_all_at(bytes, offset)
}

/// Writes at a place in the file; only one thread may write.
#[cfg(not(unix))]
pub(crate) fn write_at(file: &fs::File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    let mut file = file.file();
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

/// Checks that a name can be the name of one folder or file in a run, without leading out of it.
///
/// `kind` is for the message: "coder", "feature table".
pub fn check_name(kind: &'static str, name: &str) -> Result<()> {
    let bad = |reason| Err(Error::BadName { kind, name: name.to_owned(), reason });
    let one_part =
        matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(part)] if part == name);
    if name.is_empty() {
        bad("it is empty")
    } else if name.len() > 200 {
        bad("it is longer than 200 bytes")
    } else if name.starts_with('.') {
        bad("it begins with a dot")
    } else if !one_part || name.contains(['/', '\\', ':']) {
        bad("it must be one folder, without `/`, `\\` or `:`")
    } else if name.chars().any(char::is_control) {
        bad("it has control characters")
    } else {
        Ok(())
    }
}

/// Joins a path from a manifest or a journal to the run's folder, if it stays within.
pub(crate) fn join_within(dir: &Path, relative: &str) -> Result<PathBuf> {
    let inside = !relative.is_empty()
        && !relative.contains('\\')
        && Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)));
    if inside {
        Ok(dir.join(relative))
    } else {
        Err(Error::BadName { kind: "file of a run", name: relative.to_owned(), reason: "it leads out of the run" })
    }
}

/// A file that has a temporary name until it is published; dropped without that, it is removed.
#[derive(Debug)]
pub struct PendingFile {
    /// `None` once it is published.
    file: Option<fs::File>,
    temporary: PathBuf,
    path: PathBuf,
}

impl PendingFile {
    /// Begins a file that will have this name.
    pub fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::create_as(path, path.with_file_name(format!(".{name}.tmp")))
    }

    /// Begins a file that others may be making at the same time, with the same bytes.
    pub(crate) fn create_beside_others(path: &Path) -> Result<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let own = format!("{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        Self::create_as(path, path.with_file_name(format!(".{name}.{own}.tmp")))
    }

    fn create_as(path: &Path, temporary: PathBuf) -> Result<Self> {
        let file = fs::File::create(&temporary)?;
        Ok(Self { file: Some(file), temporary, path: path.to_owned() })
    }

    fn file(&self) -> &fs::File {
        self.file.as_ref().expect("`publish` takes the file and `self` with it")
    }

    /// The name that it will have.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fsyncs and renames. The caller fsyncs the directory ([`sync_dir`]), once for all of its files.
    pub fn publish(mut self) -> Result<()> {
        let file = self.file.take().expect("`publish` takes `self`");
        let renamed = file.sync_all().and_then(|()| {
            drop(file);
            fs::rename(&self.temporary, &self.path)
        });
        if renamed.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&self.temporary);
        }
        Ok(renamed?)
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nobody is left to tell; what stays is a temporary name that readers ignore and `resume` removes.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Write for PendingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file for a person, where none was: whole after [`NewFile::publish`], and not there if it is dropped before.
#[derive(Debug)]
pub struct NewFile(BufWriter<PendingFile>);

impl NewFile {
    /// Begins a file; one that exists already is an error.
    pub fn create(path: &Path) -> Result<Self> {
        refuse_existing(path)?;
        create_dir(parent(path))?;
        Ok(Self(BufWriter::with_capacity(WRITE_BUFFER, PendingFile::create(path)?)))
    }

    /// Fsyncs and renames, durably.
    pub fn publish(self) -> Result<()> {
        let pending = self.0.into_inner().map_err(io::IntoInnerError::into_error)?;
        let path = pending.path().to_owned();
        refuse_existing(&path)?;
        pending.publish()?;
        sync_dir(parent(&path))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Nothing that a person has is overwritten.
pub(crate) fn refuse_existing(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() { Err(Error::Exists { path: path.to_owned() }) } else { Ok(()) }
}

/// A folder under a temporary name, removed unless it is published.
#[derive(Debug)]
pub(crate) struct BuildFolder {
    building: PathBuf,
    target: PathBuf,
    published: bool,
}

impl BuildFolder {
    /// Begins a folder; what a process that was killed left of it is removed.
    pub(crate) fn create(target: &Path) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let folder = Self {
            building: target.with_file_name(format!(".{name}.tmp")),
            target: target.to_owned(),
            published: false,
        };
        for left in [&folder.building, &folder.old()] {
            if left.exists() {
                fs::remove_dir_all(left)?;
            }
        }
        create_dir(&folder.building)?;
        Ok(folder)
    }

    /// Where its files go until it is published.
    pub(crate) fn path(&self) -> &Path {
        &self.building
    }

    /// Renames the folder to its final name, in place of an older one.
    pub(crate) fn publish(mut self) -> Result<()> {
        sync_dir(&self.building)?;
        let folder = parent(&self.target).to_owned();
        if self.target.exists() {
            // Two renames: for a moment there is neither, and never a mixture of both.
            let old = self.old();
            fs::rename(&self.target, &old)?;
            fs::rename(&self.building, &self.target)?;
            self.published = true;
            sync_dir(&folder)?;
            fs::remove_dir_all(&old)?;
        } else {
            fs::rename(&self.building, &self.target)?;
            self.published = true;
            sync_dir(&folder)?;
        }
        Ok(())
    }

    /// Where an older folder is put while this one takes its place.
    fn old(&self) -> PathBuf {
        let name = self.target.file_name().unwrap_or_default().to_string_lossy();
        self.target.with_file_name(format!(".{name}.old.tmp"))
    }
}

impl Drop for BuildFolder {
    fn drop(&mut self) {
        if !self.published {
            // Nobody is left to tell; readers ignore the temporary name and the next writer removes it.
            let _ = fs::remove_dir_all(&self.building);
        }
    }
}

pub(crate) fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    // Other systems have no such call; there the rename is as durable as the file system makes it.
    if cfg!(unix) {
        fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Creates a directory and its parents, durably.
pub fn create_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    create_dir(parent(dir))?;
    match fs::create_dir(dir) {
        // Another thread or process was faster.
        Err(_) if dir.is_dir() => {}
        made => made?,
    }
    sync_dir(parent(dir))
}

/// Creates a directory within another, durably. One that has disappeared is not brought back.
pub(crate) fn create_dir_within(dir: &Path, relative: &str) -> Result<()> {
    let mut folder = dir.to_owned();
    for part in relative.split('/') {
        folder.push(part);
        if !folder.is_dir() {
            fs::create_dir(&folder)?;
            sync_dir(parent(&folder))?;
        }
    }
    Ok(())
}

pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The sorted names of the folders or files in a directory, without hidden ones; empty where there is no directory.
pub(crate) fn names_in(dir: &Path, folders: bool) -> Result<Vec<String>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() == folders && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The sorted paths of all files below a folder, within it and with `/`, without temporary ones.
pub(crate) fn names_below(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        if !dir.join(&folder).is_dir() {
            continue;
        }
        for entry in fs::read_dir(dir.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let relative = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if is_temporary(&entry.path()) {
                continue;
            }
            if entry.file_type()?.is_dir() { folders.push(relative) } else { found.push(relative) }
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|cause| Error::json(path, cause))?;
    text.push(b'\n');
    Ok(text)
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write_atomic(path, &json(path, value)?)
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path)?;
    serde_json::from_slice(&text).map_err(|cause| Error::json(path, cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_the_run() {
        let check = |name: &str| check_name("coder", name).is_ok();
        assert!(check("blocks.12.hook_resid_post-4096"));
        assert!(check("größer"));
        for bad in ["", ".", "..", "a/b", "/a", "a/", "..\\a", ".hidden", "a\nb", "c:", &"x".repeat(201)] {
            assert!(!check(bad), "{bad:?}");
        }
        let join = |relative: &str| join_within(Path::new("/run"), relative).is_ok();
        assert!(join("acts/hook_point=hook_embed/shard-00000.parquet"));
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a\\b", "./a"] {
            assert!(!join(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_dropped_file_leaves_nothing_and_a_published_one_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"1").unwrap();
        let mut pending = PendingFile::create(&path).unwrap();
        pending.write_all(b"half").unwrap();
        drop(pending);
        assert_eq!(fs::read(&path).unwrap(), b"1");
        write_atomic(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
