//! Which worker of a recording on many machines writes which shards, how far is each, and when is the run whole?
//!
//! Every worker cuts the corpus into shards as one process would, and worker `I` of `N` writes those whose number is `I`
//! modulo `N`: the merged run holds the same files, byte for byte, as a run that one process has recorded.
//! For that it must know how long the sequences of all documents are; `plan/` has them, part by part, and each part is
//! counted by whichever worker comes first.
//!
//! ```text
//! plan/part-00000.json      lengths of the sequences of consecutive documents, and a lock beside it
//! workers/worker-00002.json what the worker was asked for, what the whole corpus makes, and whether it is done
//! workers/worker-00002.lock held while the worker runs
//! ```
//!
//! Locks tell processes on one file system apart. Where it has none, and in an object store, a worker that is started
//! twice at the same time writes the same bytes under the same names.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{RunWriter, compare, create_folders, forget, is_there, lock, remove_what_is_not_durable};
use crate::error::{Error, Result};
use crate::files;
use crate::manifest::{self, Counts, JournalEntry, Manifest};
use crate::place::Place;
use crate::tables::VOCAB_FILE;

const WORKERS: &str = "workers";
const PLAN: &str = "plan";

/// One of the processes that record a corpus together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    index: usize,
    count: usize,
}

/// What the whole corpus makes; every worker knows it before its network has run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    pub shards: usize,
    pub documents: u64,
    pub tokens_expected: u64,
}

/// `plan/part-00000.json`: consecutive documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub index: usize,
    pub documents: Vec<PartDocument>,
    /// Whether the corpus ends with it.
    pub last: bool,
}

/// How long the sequences of a document are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartDocument {
    /// Of its text or ids, so that every worker notices a changed corpus.
    pub sha256: String,
    /// Tokens, and of them special tokens, of each sequence.
    pub sequences: Vec<(u32, u32)>,
}

/// `workers/worker-00002.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    worker: usize,
    workers: usize,
    command: Vec<String>,
    planned: Option<Planned>,
    /// The sum of the corpus, once every shard of this worker is durable.
    corpus_sha256: Option<String>,
}

/// What came of a worker's wish to take part.
#[derive(Debug)]
pub enum Joined {
    Begun(RunWriter, Membership),
    /// The run has been merged: there is nothing left to do.
    Complete(Box<Manifest>),
}

/// A worker's place in a run. Nobody else can be this worker while it exists.
#[derive(Debug)]
pub struct Membership {
    worker: Worker,
    place: Place,
    lock: fs::File,
    entry: Entry,
}

/// A part of the plan that this process counts; others wait for it or do something else.
#[derive(Debug)]
pub struct Claim {
    _lock: fs::File,
}

/// How far a run is.
#[derive(Clone, Debug)]
pub struct Status {
    pub complete: bool,
    /// As far as a worker has found out.
    pub planned: Option<Planned>,
    /// Of the shards that are durable.
    pub counts: Counts,
    pub shards: usize,
    /// None of a run that one process records, or that is merged.
    pub workers: Vec<WorkerStatus>,
}

/// How far a worker is.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    pub worker: Worker,
    pub state: WorkerState,
    /// The command line that it was begun with; empty if it was not.
    pub command: Vec<String>,
    /// Its durable shards.
    pub shards: Vec<usize>,
    /// Its shards that are not durable, where the plan is known.
    pub missing: Option<Vec<usize>>,
    /// In its durable shards.
    pub tokens: u64,
    /// Tokens a second since it was started last, up to its last durable shard.
    pub rate: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    NotStarted,
    Running,
    /// It is not done, in a store, where nobody knows whether it runs.
    Begun,
    Stopped,
    Complete,
}

impl Worker {
    pub fn new(index: usize, count: usize) -> Result<Self> {
        if index < count {
            return Ok(Self { index, count });
        }
        Err(Error::NoSuchWorker { found: format!("{index}/{count}") })
    }

    pub const fn index(self) -> usize {
        self.index
    }

    /// How many workers there are.
    pub const fn count(self) -> usize {
        self.count
    }

    /// Whether this worker writes the shard of this number.
    pub const fn owns(self, shard: usize) -> bool {
        shard % self.count == self.index
    }

    /// Within the run.
    fn file(self, extension: &str) -> String {
        format!("{WORKERS}/worker-{:05}.{extension}", self.index)
    }
}

impl FromStr for Worker {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::NoSuchWorker { found: text.to_owned() };
        let (index, count) = text.split_once('/').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_not_a_number| wrong());
        Self::new(number(index)?, number(count)?).map_err(|_out_of_range| wrong())
    }
}

impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl RunWriter {
    /// Begins a run as one of several workers, or takes part in one that another has begun with the same model, tokenizer,
    /// corpus, hook points, routing and seeds. A worker that comes again goes on behind its durable shards.
    pub fn join(place: impl Into<Place>, mut manifest: Manifest, worker: Worker) -> Result<Joined> {
        let place = place.into();
        let dir = place.dir();
        if let Some(found) = begun(&place, &manifest)?
            && found.complete
        {
            return Ok(Joined::Complete(Box::new(found)));
        }
        // Either of them says that the run is spread, so that it stays so if the other is lost.
        files::create_dir(&dir.join(WORKERS))?;
        files::create_dir(&dir.join(PLAN))?;
        // Whoever writes the run alone, or merges it, keeps workers out, and they keep it out.
        let shared = lock_shared(&place)?;
        let entering = lock_wait(&dir.join(WORKERS))?;
        let others = entries(&place)?;
        let path = || place.shown().to_owned();
        if let Some(other) = others.iter().find(|other| other.workers != worker.count) {
            return Err(Error::OtherWorkers { expected: other.workers, found: worker.count, path: path() });
        }
        let lock_path = dir.join(worker.file("lock"));
        let own = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path)?;
        if let Err(std::fs::TryLockError::WouldBlock) = own.file().try_lock() {
            return Err(Error::WorkerBusy { worker: worker.to_string(), path: path() });
        }
        let command = manifest.command.clone();
        if let Some(found) = begun(&place, &manifest)? {
            manifest = found;
        } else {
            manifest.check_routing(&Manifest::path(&place))?;
            manifest.complete = false;
            match manifest.create(&place) {
                Ok(_) => {}
                // In a store, another worker was faster; it may have another command and another time.
                Err(Error::OtherBytes { .. }) => {
                    let found = Manifest::read(&place)?;
                    compare(place.shown(), &found, &manifest)?;
                    manifest = found;
                }
                Err(error) => return Err(error),
            }
        }
        create_folders(dir, &manifest)?;
        let known = others.into_iter().find(|entry| entry.worker == worker.index);
        let (planned, corpus_sha256) = known.map_or((None, None), |entry| (entry.planned, entry.corpus_sha256));
        let entry = Entry { worker: worker.index, workers: worker.count, command, planned, corpus_sha256 };
        let membership = Membership { worker, place: place.clone(), lock: own, entry };
        membership.write()?;
        let (journal, lost) = durable(&place, |shard| worker.owns(shard))?;
        if !lost.is_empty() {
            tracing::warn!("files of the shards {lost:?} are lost in `{}`", place.shown().display());
            forget(&place, &mut manifest, &lost)?;
        }
        remove_what_is_not_durable(&place, &manifest, &journal, |shard| worker.owns(shard))?;
        drop(entering);
        Ok(Joined::Begun(Self::new(place, manifest, journal, shared), membership))
    }
}

impl Membership {
    pub fn worker(&self) -> Worker {
        self.worker
    }

    /// Says what the whole corpus makes; the network begins now.
    pub fn planned(&mut self, planned: Planned) -> Result<()> {
        self.entry.planned = Some(planned);
        self.write()?;
        // When the file was written tells `status` since when the worker computes.
        self.lock.set_len(0)?;
        Ok((&self.lock).write_all(format!("{}\n", self.worker).as_bytes())?)
    }

    /// Says that every shard of this worker is durable; the sum is that of the whole corpus.
    pub fn done(mut self, corpus_sha256: &str) -> Result<()> {
        self.entry.corpus_sha256 = Some(corpus_sha256.to_owned());
        self.write()
    }

    /// Writes `vocab.parquet` unless another worker has.
    pub fn write_vocab(&self, run: &RunWriter, tokens: impl FnOnce() -> Vec<String>) -> Result<()> {
        let _writing = lock_wait(&self.place.dir().join(WORKERS))?;
        if self.place.has(VOCAB_FILE)? { Ok(()) } else { run.write_vocab(&tokens()) }
    }

    /// A part of the plan, if somebody has counted it.
    pub fn part(&self, index: usize) -> Result<Option<Part>> {
        self.place.find(&part_file(index, "json"))?.map(|path| files::read_json(&path)).transpose()
    }

    /// Whether somebody has counted a part.
    pub fn has_part(&self, index: usize) -> Result<bool> {
        Ok(self.place.find(&part_file(index, "json"))?.is_some())
    }

    /// Takes a part to count it. `None` if somebody has counted it, or does so at the moment; `wait` lets him finish.
    pub fn claim(&self, index: usize, wait: bool) -> Result<Option<Claim>> {
        if self.has_part(index)? {
            return Ok(None);
        }
        let path = self.place.dir().join(part_file(index, "lock"));
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        if wait {
            // Without locks the part may be counted twice, to the same result.
            let _ = file.file().lock();
        } else if let Err(std::fs::TryLockError::WouldBlock) = file.file().try_lock() {
            return Ok(None);
        }
        Ok((!self.has_part(index)?).then_some(Claim { _lock: file }))
    }

    /// Says how long the sequences of a part are.
    pub fn publish(&self, part: &Part, _claim: Claim) -> Result<()> {
        let file = part_file(part.index, "json");
        self.place.create(&file, &files::json(Path::new(&file), part)?).map(drop)
    }

    fn write(&self) -> Result<()> {
        let file = self.worker.file("json");
        self.place.write(&file, &files::json(Path::new(&file), &self.entry)?)
    }
}

/// Within the run.
fn part_file(index: usize, extension: &str) -> String {
    format!("{PLAN}/part-{index:05}.{extension}")
}

/// Checks that every worker has done its part and that no token is lost, and completes the run. What the workers told each
/// other is removed, so that nothing but the manifest's `command` and times tells it from the run of one process.
pub fn merge(place: impl Into<Place>) -> Result<Manifest> {
    let place = place.into();
    let path = || place.shown().to_owned();
    let begun = Manifest::read(&place)?;
    files::create_dir(place.dir())?;
    let lock = lock(&place)?;
    let entries = entries(&place)?;
    if begun.complete {
        remove_traces(&place)?;
        return Ok(begun);
    }
    let Some(first) = entries.first() else {
        let path = path();
        return Err(if is_spread(&place)? { Error::LostWorkers { path } } else { Error::NotSpread { path } });
    };
    let is_done = |worker: usize| entries.iter().any(|entry| entry.worker == worker && entry.corpus_sha256.is_some());
    let missing: Vec<usize> = (0..first.workers).filter(|&worker| !is_done(worker)).collect();
    if !missing.is_empty() {
        return Err(Error::MissingWorkers { missing, workers: first.workers, path: path() });
    }
    if let Some(other) =
        entries.iter().find(|entry| (&entry.planned, &entry.corpus_sha256) != (&first.planned, &first.corpus_sha256))
    {
        return Err(Error::OtherCorpus { workers: [first.worker, other.worker], path: path() });
    }
    let (Some(planned), Some(sha256)) = (&first.planned, &first.corpus_sha256) else {
        return Err(Error::json(&path().join(WORKERS), "a worker that is done does not say what the corpus makes"));
    };
    let (journal, _) = durable(&place, |_| true)?;
    let is_durable = |shard: &usize| journal.iter().any(|entry| entry.shard.index == *shard);
    let lost: Vec<usize> = (0..planned.shards).filter(|shard| !is_durable(shard)).collect();
    if !lost.is_empty() {
        let mut missing: Vec<usize> = lost.iter().map(|shard| shard % first.workers).collect();
        missing.sort_unstable();
        missing.dedup();
        return Err(Error::MissingWorkers { missing, workers: first.workers, path: path() });
    }
    let mut counts = counted(&journal);
    if counts.documents != planned.documents {
        return Err(Error::mismatch("documents in the shards of all workers", planned.documents, counts.documents));
    }
    // What was planned before any network ran is what must have been captured or skipped.
    counts.tokens_expected = planned.tokens_expected;
    counts.check(place.shown())?;
    let merged = RunWriter::new(place.clone(), begun, journal, lock).finish(sha256)?;
    remove_traces(&place)?;
    Ok(merged)
}

/// How far a run is, whoever records it.
pub fn status(place: impl Into<Place>) -> Result<Status> {
    let place = place.into();
    let manifest = Manifest::read(&place)?;
    if manifest.complete {
        let Counts { documents, tokens_expected, .. } = manifest.counts;
        let planned = Some(Planned { shards: manifest.shards.len(), documents, tokens_expected });
        let (shards, counts) = (manifest.shards.len(), manifest.counts);
        return Ok(Status { complete: true, planned, counts, shards, workers: Vec::new() });
    }
    let (journal, _) = durable(&place, |_| true)?;
    let entries = entries(&place)?;
    let planned = entries.iter().find_map(|entry| entry.planned.clone());
    let counts = counted(&journal);
    let workers = (0..entries.first().map_or(0, |entry| entry.workers))
        .map(|index| {
            let worker = Worker::new(index, entries[0].workers)?;
            let entry = entries.iter().find(|entry| entry.worker == index);
            Ok(worker_status(&place, worker, entry, planned.as_ref(), &journal))
        })
        .collect::<Result<_>>()?;
    Ok(Status { complete: false, planned, counts, shards: journal.len(), workers })
}

/// Whether a run is recorded by several workers and not merged yet.
pub(crate) fn is_spread(place: &Place) -> Result<bool> {
    for folder in [WORKERS, PLAN] {
        if place.is_remote() && !place.names_in(folder, false)?.is_empty()
            || !place.is_remote() && place.dir().join(folder).is_dir()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn worker_status(
    place: &Place,
    worker: Worker,
    entry: Option<&Entry>,
    planned: Option<&Planned>,
    journal: &[JournalEntry],
) -> WorkerStatus {
    let dir = place.dir();
    let own: Vec<&JournalEntry> = journal.iter().filter(|entry| worker.owns(entry.shard.index)).collect();
    let mut shards: Vec<usize> = own.iter().map(|entry| entry.shard.index).collect();
    shards.sort_unstable();
    let missing: Option<Vec<usize>> = planned
        .map(|planned| (0..planned.shards).filter(|shard| worker.owns(*shard) && !shards.contains(shard)).collect());
    let lost_nothing = missing.as_ref().is_some_and(Vec::is_empty);
    let state = match entry {
        None => WorkerState::NotStarted,
        Some(_) if is_locked(&dir.join(worker.file("lock"))) => WorkerState::Running,
        Some(entry) if entry.corpus_sha256.is_some() && lost_nothing => WorkerState::Complete,
        // It may run on another machine.
        Some(_) if place.is_remote() => WorkerState::Begun,
        Some(_) => WorkerState::Stopped,
    };
    let written = |path: PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    // The times of files that were brought from a store tell nothing.
    let rate = entry.filter(|entry| entry.planned.is_some() && !place.is_remote()).and_then(|_| {
        let shards = own.iter().filter_map(|entry| {
            Some((written(dir.join(manifest::journal_file(entry.shard.index)))?, entry.counts.tokens_expected))
        });
        rate(written(dir.join(worker.file("lock")))?, shards)
    });
    WorkerStatus {
        worker,
        state,
        command: entry.map(|entry| entry.command.clone()).unwrap_or_default(),
        tokens: own.iter().map(|entry| entry.counts.tokens_captured).sum(),
        shards,
        missing,
        rate,
    }
}

fn counted(journal: &[JournalEntry]) -> Counts {
    let mut counts = Counts::default();
    for entry in journal {
        counts.add(&entry.counts);
    }
    counts
}

/// Tokens a second from a beginning to the last shard; `None` before there is one.
fn rate(begin: SystemTime, shards: impl Iterator<Item = (SystemTime, u64)>) -> Option<f64> {
    let (mut tokens, mut last) = (0, 0.0_f64);
    for (written, n) in shards {
        if let Ok(after) = written.duration_since(begin) {
            tokens += n;
            last = last.max(after.as_secs_f64());
        }
    }
    (last > 0.0).then(|| tokens as f64 / last)
}

/// The manifest of a run that workers record, checked against what is wanted now; `None` where none is begun.
fn begun(place: &Place, wanted: &Manifest) -> Result<Option<Manifest>> {
    let dir = place.dir();
    place.refresh()?;
    if place.has(manifest::FILE)? {
        let found = Manifest::read(place)?;
        compare(place.shown(), &found, wanted)?;
        // In a store, the first worker puts the manifest before it puts itself.
        let is_spread = is_spread(place)? || place.is_remote() && place.names_in("journal", false)?.is_empty();
        if !found.complete && !is_spread {
            return Err(Error::NotSpread { path: place.shown().to_owned() });
        }
        return Ok(Some(found));
    }
    if place.is_remote() {
        let is_free = !place.holds_anything()? || is_spread(place)?;
        return if is_free { Ok(None) } else { Err(Error::NotEmpty { path: place.shown().to_owned() }) };
    }
    if dir.is_dir() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            // Another worker makes these folders before anything else.
            if !is_spread(place)? && !files::is_temporary(&path) {
                return Err(Error::NotEmpty { path: dir.to_owned() });
            }
        }
    }
    Ok(None)
}

/// The journal entries of some shards, and the numbers of those of which a file is lost or of another length.
fn durable(place: &Place, own: impl Fn(usize) -> bool) -> Result<(Vec<JournalEntry>, Vec<usize>)> {
    let (mut durable, mut lost) = (Vec::new(), Vec::new());
    for entry in manifest::read_journal_of(place, own)? {
        if is_there(place, &entry.shard)? { durable.push(entry) } else { lost.push(entry.shard.index) }
    }
    Ok((durable, lost))
}

fn entries(place: &Place) -> Result<Vec<Entry>> {
    let names = place.names_in(WORKERS, false)?;
    let json = names.iter().filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "json"));
    json.map(|name| files::read_json(&place.file(&format!("{WORKERS}/{name}"))?)).collect()
}

fn remove_traces(place: &Place) -> Result<()> {
    let dir = place.dir();
    if place.is_remote() {
        for folder in [WORKERS, PLAN] {
            let names = place.names_in(folder, false)?;
            place.remove(&names.iter().map(|name| format!("{folder}/{name}")).collect::<Vec<_>>())?;
        }
    }
    for folder in [WORKERS, PLAN] {
        if dir.join(folder).is_dir() {
            fs::remove_dir_all(dir.join(folder))?;
        }
    }
    files::sync_dir(dir)
}

/// Locks a run together with other workers, against whoever writes it alone.
fn lock_shared(place: &Place) -> Result<Option<fs::File>> {
    if !cfg!(unix) {
        return Ok(None);
    }
    let file = fs::File::open(place.dir())?;
    match file.file().try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::RunBusy { path: place.shown().to_owned() }),
        Err(std::fs::TryLockError::Error(_)) => Ok(None),
    }
}

/// Waits for a folder to be free. Where there are no locks, nobody waits.
fn lock_wait(dir: &Path) -> Result<Option<fs::File>> {
    if !cfg!(unix) {
        return Ok(None);
    }
    let file = fs::File::open(dir)?;
    let locked = file.file().lock();
    Ok(locked.is_ok().then_some(file))
}

fn is_locked(path: &Path) -> bool {
    let held = |file: fs::File| matches!(file.file().try_lock_shared(), Err(std::fs::TryLockError::WouldBlock));
    fs::File::open(path).is_ok_and(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Run;
    use crate::{Dtype, testing};

    fn manifest() -> Manifest {
        testing::manifest(&[("blocks.1.hook_resid_post", 4, Dtype::F32)])
    }

    fn join(dir: &Path, worker: &str) -> Result<(RunWriter, Membership)> {
        match RunWriter::join(dir, manifest(), worker.parse()?)? {
            Joined::Begun(run, member) => Ok((run, member)),
            Joined::Complete(_) => panic!("it is complete"),
        }
    }

    fn planned() -> Planned {
        Planned { shards: 3, documents: 6, tokens_expected: 60 }
    }

    /// A worker that writes these shards of 20 tokens, and is done if the corpus has a sum.
    fn work(dir: &Path, worker: &str, shards: &[u64], corpus_sha256: Option<&str>) {
        let (run, mut member) = join(dir, worker).unwrap();
        member.planned(planned()).unwrap();
        for &shard in shards {
            testing::write_shard(&run, shard as usize, shard * 20..shard * 20 + 20, 7);
        }
        if let Some(sum) = corpus_sha256 {
            member.done(sum).unwrap();
        }
    }

    #[test]
    fn workers_are_named_by_two_numbers() {
        let worker: Worker = "2/4".parse().unwrap();
        assert_eq!((worker.index(), worker.count(), worker.to_string()), (2, 4, "2/4".to_owned()));
        assert_eq!((0..9).filter(|&shard| worker.owns(shard)).collect::<Vec<_>>(), [2, 6]);
        for wrong in ["", "2", "4/4", "0/0", "-1/4", "a/b", "1/2/3"] {
            assert!(wrong.parse::<Worker>().unwrap_err().to_string().contains(&format!("found `{wrong}`")));
        }
    }

    #[test]
    fn a_run_is_whole_when_every_worker_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        work(&run, "1/2", &[1], Some("sum"));
        let states = |run| status(run).unwrap().workers.into_iter().map(|worker| worker.state).collect::<Vec<_>>();
        assert_eq!(states(&run), [WorkerState::NotStarted, WorkerState::Complete]);
        // What is whole from the beginning on is shown: nothing yet.
        assert_eq!(Run::open(&run).unwrap().n_tokens(), 0);
        assert!(merge(&run).unwrap_err().to_string().contains("expected 2 workers to be done, missing 0 in"));
        work(&run, "0/2", &[0], None);
        let status = status(&run).unwrap();
        assert_eq!((status.shards, status.counts.tokens_captured, status.planned), (2, 40, Some(planned())));
        assert_eq!((status.workers[0].state, &status.workers[0].missing), (WorkerState::Stopped, &Some(vec![2])));
        assert_eq!(Run::open(&run).unwrap().n_tokens(), 40);
        work(&run, "0/2", &[2], Some("sum"));
        let merged = merge(&run).unwrap();
        assert_eq!((merged.counts.tokens_captured, merged.corpus.sha256.as_str()), (60, "sum"));
        assert_eq!(merge(&run).unwrap(), merged, "once more is harmless");
        assert!(matches!(RunWriter::join(&run, manifest(), "0/2".parse().unwrap()), Ok(Joined::Complete(_))));

        // It is what one process writes.
        let one = dir.path().join("one");
        testing::run(&one, 4, Dtype::F32, &[20, 20, 20]);
        let alone = Manifest::read(&one).unwrap();
        assert_eq!((&merged.shards, &merged.statistics), (&alone.shards, &alone.statistics));
        assert_eq!(files::names_in(&run, true).unwrap(), files::names_in(&one, true).unwrap());
    }

    #[test]
    fn nothing_is_merged_that_is_lost_or_of_another_corpus() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        work(&run, "0/2", &[0, 2], Some("sum"));
        work(&run, "1/2", &[1], Some("another"));
        assert!(merge(&run).unwrap_err().to_string().contains("workers 0 and 1 have read different corpora"));
        work(&run, "1/2", &[], Some("sum"));
        fs::remove_file(run.join("journal/shard-00002.json")).unwrap();
        assert!(merge(&run).unwrap_err().to_string().contains("missing 0 in"));
        assert_eq!(status(&run).unwrap().workers[0].state, WorkerState::Stopped);
        // The files without a journal entry are removed, and written again; so is a shard without one of its files.
        work(&run, "0/2", &[2], Some("sum"));
        fs::remove_file(run.join("tokens/shard-00001.parquet")).unwrap();
        assert!(merge(&run).unwrap_err().to_string().contains("missing 1 in"));
        work(&run, "1/2", &[1], Some("sum"));
        // Without what the workers told each other, it is theirs still: each says it again.
        fs::remove_dir_all(run.join(WORKERS)).unwrap();
        assert!(matches!(RunWriter::resume(&run, &manifest()), Err(Error::Spread { .. })));
        assert!(matches!(merge(&run), Err(Error::LostWorkers { .. })));
        work(&run, "0/2", &[], Some("sum"));
        work(&run, "1/2", &[], Some("sum"));
        merge(&run).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn nobody_is_there_twice() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let (writer, member) = join(&run, "0/2").unwrap();
        assert!(join(&run, "0/2").unwrap_err().to_string().contains("worker 0/2 is running already"));
        assert!(join(&run, "0/3").unwrap_err().to_string().contains("expected one of 2 workers, found one of 3"));
        assert!(matches!(merge(&run), Err(Error::RunBusy { .. })));
        assert!(matches!(RunWriter::resume(&run, &manifest()), Err(Error::RunBusy { .. })));
        // A part that somebody counts is nobody else's, until it is there.
        let (other, second) = join(&run, "1/2").unwrap();
        let claim = member.claim(0, false).unwrap().unwrap();
        assert!(second.claim(0, false).unwrap().is_none());
        let document = PartDocument { sha256: "0".to_owned(), sequences: vec![(3, 1)] };
        let part = Part { index: 0, documents: vec![document], last: true };
        member.publish(&part, claim).unwrap();
        assert!(second.claim(0, true).unwrap().is_none());
        assert_eq!(second.part(0).unwrap(), Some(part));
        drop((writer, member, other, second));
        assert!(matches!(RunWriter::resume(&run, &manifest()), Err(Error::Spread { .. })));
        let foreign = dir.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("letter.txt"), "mine").unwrap();
        assert!(matches!(join(&foreign, "0/2"), Err(Error::NotEmpty { .. })));
        assert!(!foreign.join(WORKERS).exists());
    }

    #[test]
    fn rates_are_of_the_time_since_the_start() {
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        assert_eq!(rate(at(100), [(at(90), 7), (at(110), 30), (at(120), 10)].into_iter()), Some(2.0));
        assert_eq!(rate(at(100), [(at(90), 7)].into_iter()), None);
    }
}
