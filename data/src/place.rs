//! Where does a run lie, on a disk or in an object store, and how do its files come here and go there?
//!
//! A [`Place`] is a folder, or a prefix of a store with a *mirror*: a folder on this disk with the layout of the run, in
//! which files lie that were needed or made. Whoever reads asks for a file by its path within the run and gets a path on
//! this disk: one hook point of a run is brought without the others. Whoever writes does so in the mirror, as on a disk, and
//! then sends the files; what says that others are whole (a journal entry, `manifest.json`, `sums.json`, `cfg.json`) goes
//! last. On a disk all of this does nothing.
//!
//! A store has no locks. Two processes that make the same thing put it where nothing is: the second one finds the same
//! bytes, which is harmless, or other bytes, which is an error.

mod mirror;
mod store;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::Write as _;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use fs_err as fs;

use self::mirror::Mirror;
use self::store::{Object, Store};
use crate::error::{Error, Result};
use crate::files::{self, PendingFile};
use crate::sums;

/// Bytes of mirrors, by default.
pub const DEFAULT_MIRROR_BYTES: u64 = 50_000_000_000;

/// Files that are sent at the same time, each of them in parts.
const SENDERS: usize = 4;

/// The schemes of stores, and how each is told who asks.
const SCHEMES: [(&str, &str); 3] = [
    (
        "s3",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket; AWS_ENDPOINT_URL names another server",
    ),
    ("gs", "set GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket"),
    (
        "az",
        "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true for a public container",
    ),
];

/// What stores need, from whoever may read the environment.
#[derive(Clone, Default)]
pub struct Stores {
    /// Where mirrors lie; without it, no store can be used.
    pub cache: Option<PathBuf>,
    /// Bytes of all mirrors together; what is not sent yet is not counted.
    pub mirror_bytes: u64,
    /// `AWS_…`, `GOOGLE_…` and `AZURE_…`, with their values.
    pub settings: Vec<(String, String)>,
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The settings hold passwords.
        f.debug_struct("Stores").field("cache", &self.cache).finish_non_exhaustive()
    }
}

/// A folder on a disk, or a prefix of an object store. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Place {
    /// As people know it.
    shown: PathBuf,
    /// Where its files are read and written here.
    dir: PathBuf,
    remote: Option<Arc<Remote>>,
}

#[derive(Debug)]
struct Remote {
    store: Store,
    mirror: Mirror,
    /// What the store was found to hold; `None` before anybody asked.
    listing: Mutex<Option<BTreeMap<String, Object>>>,
    /// Held while a file is brought.
    bringing: Mutex<()>,
}

/// `s3://bucket/prefix`
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    scheme: &'static str,
    bucket: String,
    prefix: String,
    shown: String,
}

impl Address {
    /// `None` for what is no URL.
    fn parse(text: &str) -> Result<Option<Self>> {
        // What stands before an `@` may be a password.
        let shown = || text.rsplit_once('@').map_or(text, |(_, rest)| rest).escape_debug().to_string();
        let bad = |reason| Err(Error::BadPlace { place: shown(), reason });
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(None) };
        let Some((scheme, _)) = SCHEMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(scheme)) else {
            return bad("it is of no known kind");
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        if bucket.contains('@') {
            return bad("credentials do not belong there, but into the environment");
        }
        if bucket.is_empty() || !bucket.chars().all(|c| c.is_ascii_alphanumeric() || "-_.$".contains(c)) {
            return bad("it names no bucket");
        }
        if rest.contains(['?', '#', '\\']) || rest.chars().any(char::is_control) {
            return bad("it has characters that no key should have");
        }
        if prefix.is_empty() || prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return bad("it names no prefix within the bucket");
        }
        let shown = format!("{scheme}://{bucket}/{prefix}");
        Ok(Some(Self { scheme, bucket: bucket.to_owned(), prefix: prefix.to_owned(), shown }))
    }

    /// The last part, which is the name of the run or coder.
    fn name(&self) -> &str {
        let name = self.prefix.rsplit('/').next().unwrap_or_default();
        if files::check_name("run", name).is_ok() { name } else { "run" }
    }

    fn hint(&self) -> &'static str {
        SCHEMES.iter().find(|(scheme, _)| *scheme == self.scheme).map_or("", |(_, hint)| hint)
    }
}

impl From<&Path> for Place {
    fn from(dir: &Path) -> Self {
        Self { shown: dir.to_owned(), dir: dir.to_owned(), remote: None }
    }
}

impl From<&PathBuf> for Place {
    fn from(dir: &PathBuf) -> Self {
        Self::from(dir.as_path())
    }
}

impl From<&Self> for Place {
    fn from(place: &Self) -> Self {
        place.clone()
    }
}

impl Place {
    /// A folder, `file:///folder`, or a prefix of a store, of which nothing is asked yet.
    pub fn parse(text: &OsStr, stores: &Stores) -> Result<Self> {
        let Some(url) = text.to_str().filter(|text| text.contains("://")) else {
            return Ok(Self::from(Path::new(text)));
        };
        if url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file://")) {
            let path = url::Url::parse(url).ok().and_then(|url| url.to_file_path().ok());
            let reason = "it is no folder of this machine";
            return path.map(|path| Self::from(&path)).ok_or_else(|| Error::BadPlace { place: url.to_owned(), reason });
        }
        let Some(address) = Address::parse(url)? else { return Ok(Self::from(Path::new(text))) };
        let Some(cache) = &stores.cache else {
            let reason = "no folder is known here for what is brought from a store";
            return Err(Error::BadPlace { place: address.shown, reason });
        };
        let store = Store::connect(&address, &stores.settings)?;
        Ok(Self::mirrored(store, &address, cache, stores.mirror_bytes))
    }

    fn mirrored(store: Store, address: &Address, cache: &Path, mirror_bytes: u64) -> Self {
        let mirror = Mirror::new(cache, mirror_bytes, address);
        let dir = mirror.dir().to_owned();
        let remote = Remote { store, mirror, listing: Mutex::default(), bringing: Mutex::default() };
        Self { shown: PathBuf::from(&address.shown), dir, remote: Some(Arc::new(remote)) }
    }

    /// A prefix of a store that a test has; each `machine` has its own mirror.
    #[cfg(test)]
    pub(crate) fn in_store(
        store: Arc<dyn object_store::ObjectStore>,
        url: &str,
        machine: &Path,
        mirror_bytes: u64,
    ) -> Self {
        let address = Address::parse(url).unwrap().unwrap();
        Self::mirrored(Store::given(store, &address), &address, machine, mirror_bytes)
    }

    /// Its name as people know it: the path or the URL.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// Where files are read and written on this disk.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether it is in an object store.
    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// Asks the store again what it holds.
    pub(crate) fn refresh(&self) -> Result<()> {
        if let Some(remote) = &self.remote {
            let found = remote.store.list()?;
            *remote.lock() = Some(found);
        }
        Ok(())
    }

    /// Whether there is a file.
    pub fn has(&self, relative: &str) -> Result<bool> {
        Ok(self.bytes(relative)?.is_some())
    }

    /// The length of a file, if there is one.
    pub(crate) fn bytes(&self, relative: &str) -> Result<Option<u64>> {
        let Some(remote) = &self.remote else {
            let metadata = self.dir.join(relative).metadata();
            return Ok(metadata.ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len()));
        };
        remote.listed(|files| shown(files, relative).map(|object| object.bytes))
    }

    /// Whether the store holds anything there; never of a folder, which is looked at where it is.
    pub(crate) fn holds_anything(&self) -> Result<bool> {
        self.remote.as_ref().map_or(Ok(false), |remote| remote.listed(|files| !files.is_empty()))
    }

    /// The sorted names of the folders or files in a folder, without hidden ones.
    pub(crate) fn names_in(&self, folder: &str, folders: bool) -> Result<Vec<String>> {
        let Some(remote) = &self.remote else { return files::names_in(&self.dir.join(folder), folders) };
        remote.listed(|files| {
            let within = below(files, folder).filter(|(path, _)| shown(files, path).is_some());
            let mut names: Vec<String> = within
                .filter_map(|(path, _)| {
                    let rest = &path[folder.len() + 1..];
                    let name = if folders { rest.split_once('/')?.0 } else { rest };
                    (!name.contains('/') && !name.starts_with('.')).then(|| name.to_owned())
                })
                .collect();
            names.sort_unstable();
            names.dedup();
            names
        })
    }

    /// The path on this disk of a file that is read; it is brought if need be.
    pub(crate) fn file(&self, relative: &str) -> Result<PathBuf> {
        let path = self.dir.join(relative);
        let Some(remote) = &self.remote else { return Ok(path) };
        let object = remote.listed(|files| shown(files, relative).cloned())?;
        let object = object.ok_or_else(|| remote.store.missing(relative))?;
        if !remote.mirror.holds(relative, &object)? {
            let _bringing = remote.bringing.lock().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have brought it meanwhile.
            if !remote.mirror.holds(relative, &object)? {
                remote.bring(relative, &object, &files::join_within(&self.dir, relative)?)?;
            }
        }
        Ok(path)
    }

    /// As [`Place::file`], of a file that must stay while others are brought.
    pub(crate) fn file_to_keep(&self, relative: &str) -> Result<PathBuf> {
        if let Some(remote) = &self.remote {
            remote.mirror.keep(relative);
        }
        self.file(relative)
    }

    /// Brings all files whose path is wanted. The folder then holds no other ones, as the store does not.
    pub fn bring(&self, wanted: impl Fn(&str) -> bool) -> Result<&Path> {
        if let Some(remote) = &self.remote {
            self.refresh()?;
            let paths: Vec<String> = remote.listed(|files| files.keys().cloned().collect())?;
            for path in files::names_below(&self.dir)? {
                if !paths.contains(&path) {
                    fs::remove_file(self.dir.join(&path))?;
                }
            }
            for path in paths.iter().filter(|path| wanted(path)) {
                self.file_to_keep(path)?;
            }
        }
        Ok(&self.dir)
    }

    /// Trusts nothing that lies here: every file is brought again when it is read.
    pub(crate) fn forget(&self) {
        if let Some(remote) = &self.remote {
            remote.mirror.forget(None);
        }
    }

    /// Writes a small file in place of an older one, whole and durably.
    pub(crate) fn write(&self, relative: &str, bytes: &[u8]) -> Result<()> {
        if let Some(remote) = &self.remote {
            let object = remote.store.replace(relative, bytes.to_vec().into())?;
            self.put_here(remote, relative, bytes, object)
        } else {
            files::write_atomic(&self.dir.join(relative), bytes)
        }
    }

    /// Writes a small file where none is. Returns whether it did: in a store the same bytes may be there already.
    pub(crate) fn create(&self, relative: &str, bytes: &[u8]) -> Result<bool> {
        let Some(remote) = &self.remote else {
            files::write_atomic(&self.dir.join(relative), bytes)?;
            return Ok(true);
        };
        let created = remote.store.create(relative, bytes.to_vec().into())?;
        let is_new = created.is_some();
        let object = match created {
            Some(object) => object,
            None => match remote.store.get(relative)? {
                Some((object, found)) if found == bytes => object,
                _ => return Err(Error::OtherBytes { path: self.shown.join(relative) }),
            },
        };
        self.put_here(remote, relative, bytes, object)?;
        Ok(is_new)
    }

    fn put_here(&self, remote: &Remote, relative: &str, bytes: &[u8], object: Object) -> Result<()> {
        let path = self.dir.join(relative);
        fs::create_dir_all(files::parent(&path))?;
        let mut pending = PendingFile::create_beside_others(&path)?;
        pending.write_all(bytes)?;
        pending.publish()?;
        remote.mirror.adopt(relative, &object)?;
        remote.note(relative, Some(object))
    }

    /// A small file that another process may just have written; `None` where there is none.
    pub(crate) fn find(&self, relative: &str) -> Result<Option<PathBuf>> {
        let path = self.dir.join(relative);
        let Some(remote) = &self.remote else { return Ok(path.is_file().then_some(path)) };
        if !self.has(relative)? {
            let Some((object, bytes)) = remote.store.get(relative)? else { return Ok(None) };
            self.put_here(remote, relative, &bytes, object)?;
        }
        self.file(relative).map(Some)
    }

    /// Sends files that were written here, several at a time; nothing on a disk. They may then make room for others.
    pub(crate) fn send(&self, relatives: &[&str]) -> Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let send = |relative: &str| -> Result<()> {
            let object = remote.store.upload(relative, &self.dir.join(relative))?;
            remote.mirror.adopt(relative, &object)?;
            remote.mirror.make_room(object.bytes)?;
            remote.note(relative, Some(object))
        };
        let next = Mutex::new(relatives.iter());
        let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
        thread::scope(|scope| {
            let spawn = |_| {
                let work = || std::iter::from_fn(take).try_for_each(|relative| send(relative));
                thread::Builder::new().name("send files".to_owned()).spawn_scoped(scope, work)
            };
            let threads = (0..SENDERS.min(relatives.len())).map(spawn).collect::<Result<Vec<_>, _>>()?;
            let mut joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
            joined.try_for_each(|sent| sent.unwrap_or(Err(Error::Worker { what: "a thread that sends files" })))
        })
    }

    /// Makes a folder in the store what it is here: changed files are sent, lost ones removed. Those of the names in `last`
    /// go last, one after the other; where they change, the older ones are removed first, so that they never vouch for files
    /// that are not theirs. Nothing on a disk.
    pub fn publish(&self, folder: &str, last: &[&str]) -> Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let within = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let here: Vec<String> = files::names_below(&self.dir.join(folder))?.iter().map(|name| within(name)).collect();
        let there: BTreeMap<String, Object> = remote
            .listed(|files| below(files, folder).map(|(path, object)| (path.clone(), object.clone())).collect())?;
        let is_changed = |path: &String| there.get(path).is_none_or(|object| remote.mirror.is_changed(path, object));
        let last: Vec<String> = last.iter().map(|name| within(name)).collect();
        let changed: Vec<&String> = here.iter().filter(|path| is_changed(path)).collect();
        let outdated = last
            .iter()
            .rev()
            .filter(|path| there.contains_key(*path) && (changed.contains(path) || !here.contains(path)));
        self.remove(&outdated.cloned().collect::<Vec<_>>())?;
        let (ending, first): (Vec<&String>, Vec<&String>) = changed.into_iter().partition(|path| last.contains(path));
        self.send(&first.into_iter().map(String::as_str).collect::<Vec<_>>())?;
        let lost = there.keys().filter(|path| !here.contains(path) && !last.contains(path));
        self.remove(&lost.cloned().collect::<Vec<_>>())?;
        last.iter().filter(|path| ending.contains(path)).try_for_each(|path| self.send(&[path]))
    }

    /// Removes files, here and in the store.
    pub(crate) fn remove(&self, relatives: &[String]) -> Result<()> {
        let Some(remote) = &self.remote else {
            for relative in relatives {
                remove_file(&self.dir.join(relative))?;
            }
            return Ok(());
        };
        remote.store.remove(relatives)?;
        for relative in relatives {
            remote.mirror.forget(Some(relative));
            remote.note(relative, None)?;
        }
        Ok(())
    }
}

impl Remote {
    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<String, Object>>> {
        // It is whole whenever the lock is free.
        self.listing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks into what the store holds.
    fn listed<T>(&self, look: impl FnOnce(&BTreeMap<String, Object>) -> T) -> Result<T> {
        let mut listing = self.lock();
        let files = match &mut *listing {
            Some(files) => files,
            empty => empty.insert(self.store.list()?),
        };
        Ok(look(files))
    }

    /// Remembers what has been written or removed.
    fn note(&self, relative: &str, object: Option<Object>) -> Result<()> {
        // Asked for first, so that a listing is never only what was written since.
        self.listed(|_| ())?;
        if let Some(files) = &mut *self.lock() {
            match object {
                Some(object) => _ = files.insert(relative.to_owned(), object),
                None => _ = files.remove(relative),
            }
        }
        Ok(())
    }

    fn bring(&self, relative: &str, object: &Object, path: &Path) -> Result<()> {
        self.mirror.make_room(object.bytes)?;
        fs::create_dir_all(files::parent(path))?;
        self.mirror.forget(Some(relative));
        let mut pending = PendingFile::create_beside_others(path)?;
        self.store.fetch(relative, object, &mut pending)?;
        pending.publish()?;
        self.mirror.adopt(relative, object)
    }
}

/// The files below a folder; all for none named.
fn below<'a>(
    files: &'a BTreeMap<String, Object>,
    folder: &str,
) -> impl Iterator<Item = (&'a String, &'a Object)> + use<'a> {
    let start = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let from = (Bound::Included(start.clone()), Bound::Unbounded);
    files.range(from).take_while(move |(path, _)| path.starts_with(&start))
}

/// A file, unless it is of a feature table that is not whole.
fn shown<'a>(files: &'a BTreeMap<String, Object>, relative: &str) -> Option<&'a Object> {
    let table = relative.strip_prefix("features/").and_then(|rest| rest.split_once('/'));
    let is_whole = table.is_none_or(|(name, _)| files.contains_key(&format!("features/{name}/{}", sums::FILE)));
    files.get(relative).filter(|_| is_whole)
}

/// Removes a file; one that is not there is as good as removed.
fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => Ok(removed?),
    }
}

#[cfg(test)]
mod tests;
