//! Which run is open, and what is read from it only once?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use data::Place;
use data::annotations::{Annotation, Annotations};
use data::features::{FeaturePair, FeatureTable, StatsColumns};
use data::join::JoinRow;
use data::place::Stores;

use super::features::Bits;
use super::rows::Rows;
use crate::loader::{Cancel, Failure};

/// How many tokens are read to learn the texts of token ids in a run that has no vocabulary.
const VOCABULARY_SAMPLE: u64 = 1 << 18;

/// A token as it is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tok {
    pub(crate) text: Box<str>,
    pub(crate) special: bool,
}

/// What a feature table was joined with.
type Joins = Arc<Vec<JoinRow>>;

/// Features of two coders that go together.
type Pairs = Arc<Vec<FeaturePair>>;

/// Texts of token ids.
enum Vocabulary {
    /// All of them, as recorded with a tokenizer.
    Whole(Vec<String>),
    /// Those of the first tokens of the run.
    Sample(BTreeMap<u32, String>),
}

/// An open run, shared between the threads that read it.
pub(crate) struct Source {
    pub(crate) run: data::Run,
    pub(crate) path: PathBuf,
    /// The folder's name.
    pub(crate) name: String,
    /// Tells this run from another of the same name, in links.
    pub(crate) fingerprint: String,
    /// Names of the feature tables.
    pub(crate) tables: Vec<String>,
    stats: Mutex<BTreeMap<String, Arc<StatsColumns>>>,
    vocabulary: OnceLock<Vocabulary>,
    /// Joins of feature tables, by the names of both.
    joins: Mutex<BTreeMap<(String, String), Joins>>,
    /// Pairs of features of two tables, by the names of both.
    correlations: Mutex<BTreeMap<(String, String), Pairs>>,
    /// Rows of the tables of embeddings.
    rows: Mutex<Option<Arc<Rows>>>,
    /// The tokenizer that was used last, by its file.
    tokenizer: Mutex<Option<(PathBuf, Arc<tokenizers::Tokenizer>)>>,
    /// One writer of notes at a time.
    writing: Mutex<()>,
    /// Where the text that was looked for last begins.
    found: Mutex<Option<(String, Arc<Bits>)>>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Source {
    pub(crate) fn open(path: &Path, stores: &Stores) -> Result<Self, Failure> {
        let run = data::Run::open_at(Place::parse(path.as_os_str(), stores)?)?;
        let name = path
            .components()
            .next_back()
            .map_or_else(|| "run".to_owned(), |name| name.as_os_str().to_string_lossy().into_owned());
        // A folder that cannot be listed must not keep the rest of the run from being seen;
        // the overview lists again and says what is wrong.
        let tables = run.feature_tables().unwrap_or_default();
        Ok(Self {
            fingerprint: fingerprint(&run),
            run,
            path: path.to_owned(),
            name,
            tables,
            stats: Mutex::default(),
            vocabulary: OnceLock::new(),
            joins: Mutex::default(),
            correlations: Mutex::default(),
            rows: Mutex::default(),
            tokenizer: Mutex::default(),
            writing: Mutex::default(),
            found: Mutex::default(),
        })
    }

    /// The feature table of this name.
    pub(crate) fn table(&self, name: &str) -> Result<FeatureTable, Failure> {
        Ok(self.run.feature_table(name)?)
    }

    /// The columns of a feature table's statistics, read once: about 50 bytes a feature.
    pub(crate) fn stats(&self, table: &str) -> Result<Arc<StatsColumns>, Failure> {
        if let Some(stats) = self.lock_stats().get(table) {
            return Ok(Arc::clone(stats));
        }
        let stats = Arc::new(self.table(table)?.summary()?);
        self.lock_stats().insert(table.to_owned(), Arc::clone(&stats));
        Ok(stats)
    }

    /// What a feature table was joined with, read once; `None` where it was not.
    pub(super) fn join(&self, table: &str, with: &str) -> Result<Option<Joins>, Failure> {
        let key = (table.to_owned(), with.to_owned());
        let lock = || self.joins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rows) = lock().get(&key) {
            return Ok(Some(Arc::clone(rows)));
        }
        let table = self.table(table)?;
        if !table.joins()?.iter().any(|name| name == with) {
            return Ok(None);
        }
        let rows = Arc::new(table.join(with)?);
        lock().insert(key, Arc::clone(&rows));
        Ok(Some(rows))
    }

    /// The features of another coder that go with those of a table, read once.
    pub(super) fn correlation(&self, table: &str, other: &str) -> Result<Pairs, Failure> {
        let key = (table.to_owned(), other.to_owned());
        let lock = || self.correlations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pairs) = lock().get(&key) {
            return Ok(Arc::clone(pairs));
        }
        let pairs = Arc::new(self.table(table)?.correlation(other)?);
        lock().insert(key, Arc::clone(&pairs));
        Ok(pairs)
    }

    /// A tokenizer, read once: large ones take a second.
    pub(super) fn tokenizer(&self, path: &Path) -> Result<Arc<tokenizers::Tokenizer>, Failure> {
        let lock = || self.tokenizer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tokenizer)) = lock().as_ref().filter(|(file, _)| file == path) {
            return Ok(Arc::clone(tokenizer));
        }
        let tokenizer = tokenizers::Tokenizer::from_file(path)
            .map_err(|error| Failure::from_text(&format!("`{}` is no tokenizer: {error}", path.display())))?;
        let tokenizer = Arc::new(tokenizer);
        *lock() = Some((path.to_owned(), Arc::clone(&tokenizer)));
        Ok(tokenizer)
    }

    /// Adds something that a person said.
    pub(super) fn write_note(&self, said: &Annotation) -> Result<(), Failure> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Annotations::add(&self.run, said)?)
    }

    /// Rows of the tables of embeddings, read once.
    pub(super) fn rows(&self, cancel: &Cancel) -> Result<Arc<Rows>, Failure> {
        let lock = || self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rows) = lock().as_ref() {
            return Ok(Arc::clone(rows));
        }
        let rows = Arc::new(Rows::read(self, cancel)?);
        *lock() = Some(Arc::clone(&rows));
        Ok(rows)
    }

    /// Tokens of the run, as they are drawn.
    pub(crate) fn toks(&self, range: std::ops::Range<u64>) -> Result<Vec<Tok>, Failure> {
        let columns = self.run.tokens(range)?;
        Ok(columns
            .token
            .into_iter()
            .zip(columns.special)
            .map(|(text, special)| Tok { text: text.into_boxed_str(), special })
            .collect())
    }

    /// The tokens in which a text begins; kept until another text is looked for.
    pub(super) fn find(&self, needle: &str, cancel: &Cancel) -> Result<Arc<Bits>, Failure> {
        let lock = || self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = lock().as_ref().filter(|(text, _)| text == needle) {
            return Ok(Arc::clone(found));
        }
        let found = Arc::new(super::features::search_tokens(self, needle, cancel)?);
        *lock() = Some((needle.to_owned(), Arc::clone(&found)));
        Ok(found)
    }

    /// The text of a token id, `#id` where the run does not tell.
    pub(crate) fn token_text(&self, id: u32) -> String {
        let text = match self.vocabulary() {
            Vocabulary::Whole(texts) => texts.get(id as usize),
            Vocabulary::Sample(texts) => texts.get(&id),
        };
        text.cloned().unwrap_or_else(|| format!("#{id}"))
    }

    /// Without texts the ids are shown, which is better than no page: what cannot be read is left out here.
    fn vocabulary(&self) -> &Vocabulary {
        self.vocabulary.get_or_init(|| {
            if let Ok(Some(texts)) = self.run.vocab() {
                return Vocabulary::Whole(texts);
            }
            let end = self.run.n_tokens().min(VOCABULARY_SAMPLE);
            let columns = self.run.tokens(0..end).unwrap_or_default();
            Vocabulary::Sample(columns.token_id.into_iter().zip(columns.token).collect())
        })
    }

    fn lock_stats(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<StatsColumns>>> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// FNV-1a over what makes a run this run.
fn fingerprint(run: &data::Run) -> String {
    let manifest = run.manifest();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let parts = [&manifest.created_at, &manifest.model.id, &manifest.corpus.sha256];
    for byte in parts.into_iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{:08x}", (hash ^ (hash >> 32)) as u32)
}
