//! How does data reach the screen without the screen ever waiting for it?
//!
//! A panel asks for what it wants in every pass ([`Loader::get`]) and draws what there is: the answer, the last
//! answer to a question like it (stale), or a failure. Background threads answer; the newest question of a
//! slot wins, older ones are dropped or told to stop. What goes wrong becomes a [`Failure`] that the panel
//! draws; even a panic in a reader ends there. Answers are kept within a budget of bytes.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender};
use data::place::Stores;

use crate::query::Source;

/// How many bytes of answers are kept.
pub(crate) const CACHE_BYTES: usize = 256 << 20;

/// Background threads: one may be busy with a long scan while the other turns pages.
pub(crate) const THREADS: usize = 2;

/// A question about the run, and how to answer it. Its `Debug` text is its identity.
pub(crate) trait Ask: fmt::Debug + Clone + Send + 'static {
    type Answer: Send + Sync + 'static;
    /// What is being loaded, for the status bar.
    const NAME: &'static str;

    /// Questions of one name and slot replace each other.
    fn slot(&self) -> u64 {
        0
    }

    /// Runs on a background thread.
    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Self::Answer, Failure>;

    /// About how much memory the answer takes.
    fn bytes(answer: &Self::Answer) -> usize;
}

/// Why something is not there, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }

    /// The house's errors are a sentence, then perhaps a line `hint: …`.
    pub(crate) fn from_text(text: &str) -> Self {
        match text.split_once("\nhint: ") {
            Some((message, hint)) => Self::new(message, hint),
            None => Self { message: text.to_owned(), hint: None },
        }
    }

    fn cancelled() -> Self {
        Self { message: "no longer needed".to_owned(), hint: None }
    }
}

impl From<data::Error> for Failure {
    fn from(error: data::Error) -> Self {
        Self::from_text(&error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::from_text(&error.to_string())
    }
}

/// Lets a long answer notice that nobody wants it any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.is_set() { Err(Failure::cancelled()) } else { Ok(()) }
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a panel gets to draw.
#[derive(Debug)]
pub(crate) struct Got<T> {
    /// The answer, or an older one where `stale`.
    pub(crate) value: Option<Arc<T>>,
    pub(crate) stale: bool,
    pub(crate) failure: Option<Arc<Failure>>,
}

/// What became of opening a run.
#[derive(Debug)]
pub(crate) enum Opening {
    /// Nothing was asked for.
    Nothing,
    InProgress(PathBuf),
    Open(Arc<Source>),
    Failed(PathBuf, Arc<Failure>),
}

type Erased = Arc<dyn Any + Send + Sync>;
type Key = String;
type Slot = (&'static str, u64);
type Work = Box<dyn FnOnce(&Cancel) -> Done + Send>;

/// The result of a job, as it comes back from a thread.
enum Done {
    Answer { key: Key, generation: u64, cancelled: bool, result: Result<(Erased, usize), Failure> },
    Opened { path: PathBuf, generation: u64, result: Result<Arc<Source>, Failure> },
}

struct Job {
    key: Key,
    cancel: Cancel,
    work: Work,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

struct Cached {
    answer: Erased,
    bytes: usize,
    used: u64,
}

struct Failed {
    failure: Arc<Failure>,
    /// The pass in which a panel last met it.
    met: u64,
}

struct Pending {
    slot: Slot,
    cancel: Cancel,
}

/// Asks, remembers, forgets.
pub(crate) struct Loader {
    opening: Opening,
    /// What runs in object storage need.
    stores: Stores,
    shared: Arc<Shared>,
    done: Receiver<Done>,
    /// With no threads, questions are answered on the spot: for tests and screenshots.
    inline: bool,
    cache: BTreeMap<Key, Cached>,
    cached_bytes: usize,
    budget: usize,
    pending: BTreeMap<Key, Pending>,
    failed: BTreeMap<Key, Failed>,
    shown: BTreeMap<Slot, Key>,
    /// Counts uses, for forgetting what was not used for longest.
    clock: u64,
    /// Counts passes.
    pass: u64,
    /// Counts runs, so that answers about another run are dropped.
    generation: u64,
    /// Counts what people said while the window was open.
    said: u64,
    /// Who sits here.
    author: String,
}

impl Loader {
    /// `threads` workers; none answers on the spot. `notify` is called from a worker after each answer.
    pub(crate) fn new(
        threads: usize,
        budget: usize,
        notify: impl Fn() + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new() });
        let (sender, done) = crossbeam_channel::unbounded();
        for i in 0..threads {
            let (shared, sender, notify) = (Arc::clone(&shared), sender.clone(), notify.clone());
            std::thread::Builder::new()
                .name(format!("viewer-loader-{i}"))
                .spawn(move || worker(&shared, &sender, &notify))?;
        }
        Ok(Self {
            opening: Opening::Nothing,
            stores: Stores::default(),
            shared,
            done,
            inline: threads == 0,
            cache: BTreeMap::new(),
            cached_bytes: 0,
            budget,
            pending: BTreeMap::new(),
            failed: BTreeMap::new(),
            shown: BTreeMap::new(),
            clock: 0,
            pass: 0,
            generation: 0,
            said: 0,
            author: "me".to_owned(),
        })
    }

    /// Runs in object storage can be opened with these.
    pub(crate) fn with_author(mut self, author: Option<String>) -> Self {
        if let Some(author) = author.filter(|author| !author.trim().is_empty()) {
            self.author = author;
        }
        self
    }

    pub(crate) fn with_stores(mut self, stores: Stores) -> Self {
        self.stores = stores;
        self
    }

    /// Opens another run and forgets everything about the one before.
    pub(crate) fn open(&mut self, path: PathBuf) {
        self.generation += 1;
        self.opening = Opening::InProgress(path.clone());
        for pending in self.pending.values() {
            pending.cancel.set();
        }
        self.lock().jobs.clear();
        self.pending.clear();
        self.failed.clear();
        self.shown.clear();
        self.cache.clear();
        self.cached_bytes = 0;
        let (generation, stores) = (self.generation, self.stores.clone());
        let work: Work = Box::new(move |_| {
            let result = guard(|| Source::open(&path, &stores).map(Arc::new));
            Done::Opened { path, generation, result }
        });
        self.submit(Job { key: String::new(), cancel: Cancel::default(), work });
    }

    pub(crate) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Whose notes are added.
    pub(crate) fn author(&self) -> &str {
        &self.author
    }

    /// How often something was added to the notes on the run.
    pub(crate) fn said(&self) -> u64 {
        self.said
    }

    /// Something was added to the notes.
    pub(crate) fn has_said(&mut self) {
        self.said += 1;
    }

    /// The open run.
    pub(crate) fn source(&self) -> Option<&Arc<Source>> {
        match &self.opening {
            Opening::Open(source) => Some(source),
            _ => None,
        }
    }

    /// What is known about a question now; asks it where nothing is.
    pub(crate) fn get<Q: Ask>(&mut self, question: &Q) -> Got<Q::Answer> {
        let key = key(question);
        let slot = (Q::NAME, question.slot());
        self.clock += 1;
        if !self.cache.contains_key(&key) && !self.failed.contains_key(&key) && !self.pending.contains_key(&key) {
            self.ask(key.clone(), slot, question);
        }
        if let Some(value) = self.touch::<Q>(&key) {
            self.shown.insert(slot, key);
            return Got { value: Some(value), stale: false, failure: None };
        }
        let pass = self.pass;
        let failure = self.failed.get_mut(&key).map(|failed| {
            failed.met = pass;
            Arc::clone(&failed.failure)
        });
        let last = self.shown.get(&slot).cloned();
        let value = last.and_then(|last| self.touch::<Q>(&last));
        Got { stale: value.is_some(), value: if failure.is_some() { None } else { value }, failure }
    }

    /// Asks for what will probably be wanted next, behind everything that is wanted now.
    pub(crate) fn prefetch<Q: Ask>(&mut self, question: &Q, slot: u64) {
        let key = key(question);
        let known = self.cache.contains_key(&key) || self.failed.contains_key(&key) || self.pending.contains_key(&key);
        // On the spot there is nothing to be gained.
        if !self.inline && !known && self.pending.is_empty() {
            self.ask(key, (Q::NAME, u64::MAX - slot), question);
        }
    }

    /// The answer, only if it is there already.
    pub(crate) fn peek<Q: Ask>(&self, question: &Q) -> Option<Arc<Q::Answer>> {
        let cached = self.cache.get(&key(question))?;
        Arc::clone(&cached.answer).downcast().ok()
    }

    /// Begins a pass: takes in what the threads have answered. True where something changed.
    pub(crate) fn drain(&mut self) -> bool {
        self.pass += 1;
        let mut changed = false;
        while let Ok(done) = self.done.try_recv() {
            self.take(done);
            changed = true;
        }
        changed
    }

    /// Reads the run again from the start: what failed, and what was added to it since.
    pub(crate) fn reopen(&mut self) {
        let path = match &self.opening {
            Opening::Open(source) => source.path.clone(),
            Opening::Failed(path, _) | Opening::InProgress(path) => path.clone(),
            Opening::Nothing => return,
        };
        self.open(path);
    }

    /// What is being loaded, without repetition.
    pub(crate) fn busy(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = self.pending.values().map(|p| p.slot.0).collect();
        if matches!(self.opening, Opening::InProgress(_)) {
            names.push("run");
        }
        names.dedup();
        names
    }

    /// How many failures are on the screen: those that were met in this pass or in the last one.
    pub(crate) fn n_failed(&self) -> usize {
        self.failures().len()
    }

    /// What is wrong on the screen, in sentences.
    pub(crate) fn failures(&self) -> Vec<String> {
        let shown = self.failed.values().filter(|failed| failed.met + 1 >= self.pass);
        shown.map(|failed| failed.failure.message.clone()).collect()
    }

    /// Bytes of answers that are kept.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    fn ask<Q: Ask>(&mut self, key: Key, slot: Slot, question: &Q) {
        let Some(source) = self.source().cloned() else { return };
        // The newest question of a slot wins.
        let older: Vec<Key> = self.pending.iter().filter(|(_, p)| p.slot == slot).map(|(k, _)| k.clone()).collect();
        for old in older {
            if let Some(pending) = self.pending.remove(&old) {
                pending.cancel.set();
            }
            self.lock().jobs.retain(|job| job.key != old);
        }
        let cancel = Cancel::default();
        self.pending.insert(key.clone(), Pending { slot, cancel: cancel.clone() });
        let (question, generation) = (question.clone(), self.generation);
        let job_key = key.clone();
        let work: Work = Box::new(move |cancel| {
            let result = guard(|| {
                cancel.check()?;
                let answer = question.answer(&source, cancel)?;
                let bytes = Q::bytes(&answer) + key.len() + size_of::<Cached>();
                Ok((Arc::new(answer) as Erased, bytes))
            });
            Done::Answer { key, generation, cancelled: cancel.is_set(), result }
        });
        self.submit(Job { key: job_key, cancel, work });
    }

    fn submit(&mut self, job: Job) {
        if self.inline {
            let done = (job.work)(&job.cancel);
            self.take(done);
        } else {
            self.lock().jobs.push_back(job);
            self.shared.wake.notify_one();
        }
    }

    fn take(&mut self, done: Done) {
        match done {
            Done::Opened { path, generation, result } if generation == self.generation => {
                self.opening = match result {
                    Ok(source) => Opening::Open(source),
                    Err(failure) => Opening::Failed(path, Arc::new(failure)),
                };
            }
            // A question may have been asked again while its cancelled job still ran.
            Done::Answer { generation, cancelled: true, result: Err(_), .. } if generation == self.generation => {}
            Done::Answer { key, generation, result, .. } if generation == self.generation => {
                self.pending.remove(&key);
                match result {
                    Ok((answer, bytes)) => {
                        self.cached_bytes += bytes;
                        let cached = Cached { answer, bytes, used: self.clock };
                        if let Some(old) = self.cache.insert(key, cached) {
                            self.cached_bytes -= old.bytes;
                        }
                        self.forget();
                    }
                    Err(failure) => {
                        self.failed.insert(key, Failed { failure: Arc::new(failure), met: self.pass });
                    }
                }
            }
            Done::Opened { .. } | Done::Answer { .. } => {}
        }
    }

    /// Forgets what was not used for longest, but never what is on the screen.
    fn forget(&mut self) {
        while self.cached_bytes > self.budget {
            let shown: Vec<&Key> = self.shown.values().collect();
            let oldest = self
                .cache
                .iter()
                .filter(|(key, cached)| cached.used < self.clock && !shown.contains(key))
                .min_by_key(|(_, cached)| cached.used)
                .map(|(key, _)| key.clone());
            let Some(cached) = oldest.and_then(|key| self.cache.remove(&key)) else { return };
            self.cached_bytes -= cached.bytes;
        }
    }

    fn touch<Q: Ask>(&mut self, key: &str) -> Option<Arc<Q::Answer>> {
        let cached = self.cache.get_mut(key)?;
        cached.used = self.clock;
        Arc::clone(&cached.answer).downcast().ok()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.lock()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.jobs.clear();
        drop(queue);
        self.shared.wake.notify_all();
    }
}

impl Shared {
    /// Jobs are caught, so a poisoned queue is a whole one.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key<Q: Ask>(question: &Q) -> Key {
    format!("{}: {question:?}", Q::NAME)
}

fn worker(shared: &Shared, done: &Sender<Done>, notify: &impl Fn()) {
    loop {
        let mut queue = shared.lock();
        let job = loop {
            if queue.closed {
                return;
            }
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        if done.send((job.work)(&job.cancel)).is_err() {
            return;
        }
        notify();
    }
}

/// A panic while reading becomes a failure of that reading.
fn guard<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Failure::new(
            format!("reading stopped unexpectedly: {what}"),
            "check the run with `polariscope verify RUN`",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its number; can wait for a gate, fail and panic.
    #[derive(Clone)]
    struct Number {
        n: u64,
        slot: u64,
        /// Says that it has begun, then waits.
        gate: Option<(Sender<()>, Receiver<()>)>,
    }

    impl fmt::Debug for Number {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Number({})", self.n)
        }
    }

    impl Ask for Number {
        type Answer = u64;
        const NAME: &'static str = "number";

        fn slot(&self) -> u64 {
            self.slot
        }

        fn answer(&self, _: &Source, cancel: &Cancel) -> Result<u64, Failure> {
            if let Some((begun, gate)) = &self.gate {
                begun.send(()).unwrap();
                gate.recv().unwrap();
            }
            cancel.check()?;
            match self.n {
                13 => Err(Failure::new("unlucky", "take 14")),
                666 => panic!("the devil"),
                n => Ok(n),
            }
        }

        fn bytes(_: &u64) -> usize {
            1_000
        }
    }

    fn number(n: u64) -> Number {
        Number { n, slot: 0, gate: None }
    }

    fn with_run(threads: usize, budget: usize) -> (Loader, Receiver<()>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        crate::testing::write_run(&path).unwrap();
        let (sender, notified) = crossbeam_channel::unbounded();
        let mut loader = Loader::new(threads, budget, move || {
            let _ = sender.send(());
        })
        .unwrap();
        loader.open(path);
        if threads > 0 {
            notified.recv().unwrap();
            assert!(loader.drain());
        }
        assert!(loader.source().is_some());
        (loader, notified, dir)
    }

    #[test]
    fn answers_arrive_and_stay() {
        let (mut loader, notified, _dir) = with_run(1, CACHE_BYTES);
        let got = loader.get(&number(1));
        assert!(got.value.is_none() && got.failure.is_none());
        assert_eq!(loader.busy(), ["number"]);
        notified.recv().unwrap();
        loader.drain();
        assert_eq!(loader.get(&number(1)).value.as_deref(), Some(&1));
        assert!(loader.busy().is_empty());
        assert_eq!(loader.peek(&number(1)).as_deref(), Some(&1));
        assert!(loader.peek(&number(2)).is_none());
    }

    #[test]
    fn the_last_answer_stays_while_the_next_loads() {
        let (mut loader, notified, _dir) = with_run(1, CACHE_BYTES);
        loader.get(&number(1));
        notified.recv().unwrap();
        loader.drain();
        loader.get(&number(1));
        let got = loader.get(&number(2));
        assert_eq!(got.value.as_deref(), Some(&1));
        assert!(got.stale);
        notified.recv().unwrap();
        loader.drain();
        let got = loader.get(&number(2));
        assert_eq!(got.value.as_deref(), Some(&2));
        assert!(!got.stale);
    }

    #[test]
    fn the_newest_question_of_a_slot_wins() {
        let (mut loader, notified, _dir) = with_run(1, CACHE_BYTES);
        let (open, gate) = crossbeam_channel::unbounded();
        let (begun, has_begun) = crossbeam_channel::unbounded();
        loader.get(&Number { gate: Some((begun, gate)), ..number(1) });
        has_begun.recv().unwrap();
        for n in 2..50 {
            loader.get(&number(n));
        }
        loader.get(&Number { slot: 1, ..number(7_777) });
        open.send(()).unwrap();
        // The one that was running, the last of slot 0, and the one of slot 1.
        let mut answers = 0;
        while loader.peek(&number(49)).is_none() || loader.peek(&number(7_777)).is_none() {
            notified.recv().unwrap();
            answers += 1;
            loader.drain();
        }
        assert!(answers <= 3, "{answers} jobs ran");
        assert!(loader.peek(&number(30)).is_none());
        assert_eq!(loader.n_failed(), 0);
    }

    #[test]
    fn failures_and_panics_are_values() {
        let (mut loader, _, _dir) = with_run(0, CACHE_BYTES);
        let failure = loader.get(&number(13)).failure.unwrap();
        assert_eq!((failure.message.as_str(), failure.hint.as_deref()), ("unlucky", Some("take 14")));
        let failure = loader.get(&number(666)).failure.unwrap();
        assert!(failure.message.contains("the devil"), "{failure:?}");
        assert_eq!(loader.n_failed(), 2);
        loader.reopen();
        assert_eq!(loader.n_failed(), 0);
        assert!(loader.source().is_some());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut loader, _, _dir) = with_run(0, 10_000);
        for n in 0..100 {
            if n != 13 {
                assert!(loader.get(&number(n)).value.is_some());
            }
            assert!(loader.cached_bytes() <= 12_000, "{}", loader.cached_bytes());
        }
        assert!(loader.peek(&number(0)).is_none());
        assert!(loader.peek(&number(99)).is_some());
    }

    #[test]
    fn another_run_forgets_the_first() {
        let (mut loader, _, dir) = with_run(0, CACHE_BYTES);
        loader.get(&number(1));
        loader.open(dir.path().join("missing"));
        assert!(loader.peek(&number(1)).is_none());
        assert!(matches!(loader.opening(), Opening::Failed(..)));
        assert!(loader.get(&number(1)).value.is_none());
    }
}
