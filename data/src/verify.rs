//! Is everything that a run should hold there, and as it was written?
//!
//! Every file of every shard is read again: its length and checksum are compared with those of the manifest and the
//! journal, and rows are counted. The journal and the manifest carry their own sums, as checkpoints of coders do; the files
//! of coders and of feature tables are listed beside them ([`crate::sums`]).
//! Feature tables are decoded, and their order and counts are compared with each other. Rows of routing are decoded too,
//! and one that contradicts itself is named.
//! Every bad file is named, and the first bad row group in it: the journal has the checksum up to the end of each.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::features::{COACTIVATION, GROUPS, JOINS};
use crate::files::{self, hex};
use crate::manifest::{self, FileEntry, JournalEntry, Routing, Shard};
use crate::parquet_io::{self, TableFile};
use crate::routing;
use crate::store::Run;
use crate::sums::{self, Seal, Sums};

/// Bytes that are read at a time.
const BLOCK: usize = 1 << 20;

/// How far it has come.
#[derive(Clone, Debug)]
pub struct VerifyProgress {
    /// Within the run.
    pub file: String,
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Tables and checkpoints that were read.
    pub files: usize,
    pub bytes: u64,
    /// Everything that is wrong, at most one thing for each file.
    pub problems: Vec<Problem>,
}

/// A file that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Within the run.
    pub file: String,
    /// From 0; `None` when it is not one row group that is bad.
    pub row_group: Option<usize>,
    pub message: String,
    /// The shard that has to be recorded again.
    pub shard: Option<usize>,
}

impl Problem {
    /// Whether recording again mends it: feature tables and coders come from elsewhere.
    pub fn is_of_recording(&self) -> bool {
        !(self.file.starts_with("features/") || self.file.starts_with("saes/"))
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.row_group {
            Some(group) => write!(f, "{} in row group {group} of `{}`", self.message, self.file),
            None => write!(f, "{} in `{}`", self.message, self.file),
        }
    }
}

/// Reads everything again, also what lies in a store.
///
/// `progress` is called after each block; when it breaks, the result is [`Error::Interrupted`].
pub fn verify(run: &Run, progress: &mut dyn FnMut(&VerifyProgress) -> ControlFlow<()>) -> Result<VerifyReport> {
    // What a store holds is what counts, not what was brought from there before.
    run.place().forget();
    let mut work = Work { run, report: VerifyReport::default(), total: 0, progress };
    let lists = work.lists()?;
    let of_shards = run.shards().iter().flat_map(|shard| shard.files.values());
    let listed = lists.iter().flat_map(|(_, sums)| sums.files.values());
    work.total = of_shards.chain(run.manifest().files.values()).chain(listed).map(|file| file.bytes).sum();
    work.check_manifest()?;
    for shard in run.shards() {
        work.check_shard(shard)?;
    }
    for (folder, sums) in &lists {
        for (file, expected) in &sums.files {
            work.check_file(&format!("{folder}/{file}"), expected, None)?;
        }
    }
    for name in run.feature_tables()? {
        work.check_features(&name)?;
    }
    for name in run.saes()? {
        work.check_checkpoints(&name)?;
    }
    Ok(work.report)
}

struct Work<'a> {
    run: &'a Run,
    report: VerifyReport,
    total: u64,
    progress: &'a mut dyn FnMut(&VerifyProgress) -> ControlFlow<()>,
}

impl Work<'_> {
    /// Remembers the first thing that is wrong with a file.
    fn problem(&mut self, file: &str, row_group: Option<usize>, message: impl Into<String>, shard: Option<usize>) {
        if !self.is_bad(file) {
            let problem = Problem { file: file.to_owned(), row_group, message: message.into(), shard };
            self.report.problems.push(problem);
        }
    }

    fn is_bad(&self, file: &str) -> bool {
        self.report.problems.iter().any(|problem| problem.file == file)
    }

    /// Where a file lies on this disk.
    fn path(&self, relative: &str) -> Result<PathBuf> {
        files::join_within(Path::new(""), relative)?;
        self.run.file(relative)
    }

    /// Compares a file with the sum in it. Returns whether it is whole.
    fn check_seal(&mut self, relative: &str, shard: Option<usize>) -> Result<bool> {
        if !self.run.place().has(relative)? {
            self.problem(relative, None, "this file is missing", shard);
            return Ok(false);
        }
        let path = self.path(relative)?;
        match sums::check(&path)? {
            Seal::Whole => return Ok(true),
            Seal::Broken => self.problem(relative, None, "other bytes than were written", shard),
            Seal::Missing => {
                self.problem(relative, None, format!("expected its sum as `{}`, found none", sums::KEY), shard);
            }
        }
        Ok(false)
    }

    /// The lists of sums of feature tables and coders, as far as they have some, each with its folder.
    fn lists(&mut self) -> Result<Vec<(String, Sums)>> {
        let tables = self.run.feature_tables()?.into_iter().map(|name| format!("features/{name}"));
        let coders = self.run.saes()?.into_iter().map(|name| format!("saes/{name}"));
        let mut lists = Vec::new();
        for folder in tables.chain(coders) {
            let list = format!("{folder}/{}", sums::FILE);
            let place = self.run.place();
            // Coders of others have none, and a coder in training not yet.
            let coder = [format!("{folder}/cfg.json"), format!("{folder}/metrics.parquet")];
            let ours = folder.starts_with("features/") || (place.has(&coder[0])? && place.has(&coder[1])?);
            if !(ours || place.has(&list)?) || !self.check_seal(&list, None)? {
                continue;
            }
            match files::read_json::<Sums>(&self.path(&list)?) {
                Ok(sums) => lists.push((folder, sums)),
                Err(error) => self.problem(&list, None, error.to_string(), None),
            }
        }
        Ok(lists)
    }

    fn check_manifest(&mut self) -> Result<()> {
        const FILE: &str = "manifest.json";
        let manifest = self.run.manifest();
        if let Err(error) = manifest.counts.check(self.run.dir()) {
            self.problem(FILE, None, error.to_string(), None);
        }
        let captured = manifest.counts.tokens_captured;
        if captured != self.run.n_tokens() && manifest.complete {
            self.problem(FILE, None, format!("expected {captured} tokens, found {}", self.run.n_tokens()), None);
        }
        self.check_seal(FILE, None)?;
        for (file, expected) in &manifest.files {
            self.check_file(file, expected, None)?;
        }
        Ok(())
    }

    fn check_shard(&mut self, shard: &Shard) -> Result<()> {
        let index = Some(shard.index);
        let manifest = self.run.manifest();
        let journal = format!("journal/{}", manifest::journal_name(shard.index));
        let entry: Option<JournalEntry> =
            if self.check_seal(&journal, index)? { files::read_json(&self.path(&journal)?).ok() } else { None };
        for folder in manifest.folders() {
            let file = format!("{folder}/{}", shard.file_name());
            if !shard.files.contains_key(&file) {
                self.problem(&file, None, "the manifest does not list this file", index);
            }
        }
        for (file, expected) in &shard.files {
            let marked = entry
                .as_ref()
                .and_then(|entry| entry.shard.files.get(file))
                .filter(|marked| marked.sha256 == expected.sha256);
            self.check_file(file, marked.unwrap_or(expected), index)?;
            if self.is_bad(file) {
                continue;
            }
            let rows = if file.starts_with("documents/") { shard.n_documents } else { shard.n_tokens };
            match TableFile::open(&self.path(file)?) {
                Ok(table) if table.n_rows() as u64 == rows => {}
                Ok(table) => {
                    self.problem(file, None, format!("expected {rows} rows, found {}", table.n_rows()), index);
                }
                Err(error) => self.problem(file, None, error.to_string(), index),
            }
        }
        for folder in manifest.routing_layers().iter().map(|&layer| Routing::folder(layer)) {
            self.check_routing(&format!("{folder}/{}", shard.file_name()), shard);
        }
        Ok(())
    }

    /// Length and checksum of a file.
    fn check_file(&mut self, relative: &str, expected: &FileEntry, shard: Option<usize>) -> Result<()> {
        let mut file = match self.path(relative).and_then(|path| parquet_io::open(&path)) {
            Ok(file) => file,
            Err(Error::MissingFile { .. }) => {
                self.problem(relative, None, "this file is missing", shard);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.report.files += 1;
        let mut hasher = Sha256::new();
        let mut block = vec![0; BLOCK];
        let mut marks = expected.row_groups.iter().enumerate().peekable();
        let mut done = 0u64;
        loop {
            // Blocks end where row groups end, so that each checksum can be compared on the way.
            let limit = marks.peek().map_or(BLOCK as u64, |(_, mark)| mark.end.saturating_sub(done).min(BLOCK as u64));
            let read = file.read(&mut block[..limit.max(1) as usize])?;
            if read == 0 {
                break;
            }
            hasher.update(&block[..read]);
            done += read as u64;
            self.report.bytes += read as u64;
            if let Some((group, mark)) = marks.next_if(|(_, mark)| mark.end <= done)
                && hex(&hasher.clone().finalize()) != mark.sha256
            {
                self.problem(relative, Some(group), "other bytes than were written", shard);
                return Ok(());
            }
            let now = VerifyProgress {
                file: relative.to_owned(),
                bytes_done: self.report.bytes,
                bytes_total: self.total.max(self.report.bytes),
            };
            if (self.progress)(&now).is_break() {
                return Err(Error::Interrupted);
            }
        }
        if done != expected.bytes {
            let group = marks.next().map(|(group, _)| group);
            self.problem(relative, group, format!("expected {} bytes, found {done}", expected.bytes), shard);
        } else if hex(&hasher.finalize()) != expected.sha256 {
            self.problem(relative, None, "other bytes than were written", shard);
        }
        Ok(())
    }

    /// What the rows of routing say of themselves.
    fn check_routing(&mut self, relative: &str, shard: &Shard) {
        let Some(routing) = self.run.manifest().routing.as_ref().filter(|_| !self.is_bad(relative)) else { return };
        let found = self
            .path(relative)
            .and_then(|path| TableFile::open(&path))
            .and_then(|table| routing::first_bad_row(&table, routing, shard.first_token_idx))
            .unwrap_or_else(|error| Some((None, error.to_string())));
        if let Some((row_group, message)) = found {
            self.problem(relative, row_group, message, Some(shard.index));
        }
    }

    /// The checkpoints of a coder, which carry their own sums.
    fn check_checkpoints(&mut self, name: &str) -> Result<()> {
        let folder = format!("saes/{name}/checkpoints");
        for file in self.run.place().names_in(&folder, false)? {
            if Path::new(&file).extension().is_some_and(|ending| ending == "safetensors") {
                let relative = format!("{folder}/{file}");
                self.count(&self.path(&relative)?)?;
                self.check_seal(&relative, None)?;
            }
        }
        Ok(())
    }

    /// Order and counts of a feature table.
    fn check_features(&mut self, name: &str) -> Result<()> {
        let folder = format!("features/{name}");
        if self.report.problems.iter().any(|problem| problem.file.starts_with(&format!("{folder}/"))) {
            return Ok(());
        }
        if let Err(error) = self.run.feature_table(name) {
            self.problem(&folder, None, error.to_string(), None);
            return Ok(());
        }
        let by_feature = self.run.place().names_in(&format!("{folder}/by_feature"), false)?.len();
        let acts = self.run.shards().iter().map(|shard| format!("{folder}/acts/{}", shard.file_name())).collect();
        let sorted = (0..by_feature).map(|i| format!("{folder}/by_feature/{}", manifest::shard_file_name(i))).collect();
        let (rows, sorted) = (self.rows(acts, false), self.rows(sorted, true));
        if let (Some(rows), Some(sorted)) = (rows, sorted)
            && rows != sorted
        {
            let message = format!("expected {rows} rows as in `{folder}/acts`, found {sorted}");
            self.problem(&format!("{folder}/by_feature"), None, message, None);
        }
        let joins = self.run.place().names_in(&format!("{folder}/{JOINS}"), false)?;
        let joins = joins.iter().filter(|name| name.ends_with(".parquet")).map(|name| format!("{JOINS}/{name}"));
        let optional = [GROUPS, COACTIVATION].map(str::to_owned).into_iter().chain(joins);
        let optional = optional.map(|file| format!("{folder}/{file}")).collect::<Vec<_>>();
        let there = |file: &String| self.run.place().has(file).unwrap_or(true);
        let always = ["stats.parquet", "examples.parquet"].map(|file| format!("{folder}/{file}"));
        for relative in always.into_iter().chain(optional.into_iter().filter(there)).collect::<Vec<_>>() {
            if let Err(error) = self.decode(&relative) {
                self.problem(&relative, None, error.to_string(), None);
            }
        }
        Ok(())
    }

    /// The rows of some files in all; `None` when one of them is bad.
    fn rows(&mut self, files: Vec<String>, by_feature: bool) -> Option<usize> {
        let mut rows = Some(0);
        for file in files {
            match self.check_order(&file, by_feature) {
                Ok(Ok(n)) => rows = rows.map(|rows| rows + n),
                Ok(Err(group)) => {
                    self.problem(&file, Some(group), "rows out of order", None);
                    rows = None;
                }
                Err(error) => {
                    self.problem(&file, None, error.to_string(), None);
                    rows = None;
                }
            }
        }
        rows
    }

    /// Decodes a file, and checks that it rises by token or by (feature, −activation).
    /// Returns its rows, or the row group that is out of order.
    fn check_order(&mut self, relative: &str, by_feature: bool) -> Result<std::result::Result<usize, usize>> {
        use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
        let path = self.path(relative)?;
        let table = TableFile::open(&path)?;
        self.count(&path)?;
        let mut last: Option<(u64, f32)> = None;
        for group in 0..table.n_row_groups() {
            for batch in table.reader(&["token_idx", "feature", "act"], Some(vec![group]), None, BLOCK)? {
                let batch = batch?;
                let token_idx = table.primitive::<UInt64Type>(&batch, "token_idx")?;
                let feature = table.primitive::<UInt32Type>(&batch, "feature")?;
                let act = table.primitive::<Float32Type>(&batch, "act")?;
                for i in 0..act.len() {
                    let next = if by_feature { (u64::from(feature[i]), act[i]) } else { (token_idx[i], f32::INFINITY) };
                    let rises = last
                        .is_none_or(|last| next.0 > last.0 || (next.0 == last.0 && next.1.total_cmp(&last.1).is_le()));
                    if !rises {
                        return Ok(Err(group));
                    }
                    last = Some(next);
                }
            }
        }
        Ok(Ok(table.n_rows()))
    }

    fn decode(&mut self, relative: &str) -> Result<()> {
        let path = self.path(relative)?;
        let table = TableFile::open(&path)?;
        self.count(&path)?;
        for batch in table.reader(&[], None, None, BLOCK)? {
            batch?;
        }
        Ok(())
    }

    fn count(&mut self, path: &Path) -> Result<()> {
        self.report.files += 1;
        self.report.bytes += fs_err::metadata(path)?.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use crate::Dtype;
    use crate::testing;

    fn check(run: &Run) -> Option<Problem> {
        verify(run, &mut |_| ControlFlow::Continue(())).unwrap().problems.into_iter().next()
    }

    #[test]
    fn a_whole_run_is_well_and_everything_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let run = testing::run(dir.path(), 8, Dtype::I8, &[300, 200]);
        let mut last = None;
        let report = verify(&run, &mut |now| {
            last = Some(now.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
        let bytes: u64 = run.shards().iter().flat_map(|shard| shard.files.values()).map(|file| file.bytes).sum();
        assert_eq!(report, VerifyReport { files: 6, bytes, problems: Vec::new() });
        assert_eq!(last.map(|now| (now.bytes_done, now.bytes_total)), Some((bytes, bytes)));
        let stopped = verify(&run, &mut |_| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(Error::Interrupted)));
    }

    #[test]
    fn a_flipped_byte_is_found_and_its_row_group_named() {
        let dir = tempfile::tempdir().unwrap();
        // Two row groups of 520 rows and one of 60.
        let run = testing::run(dir.path(), 4000, Dtype::F32, &[1100]);
        let file = "acts/hook_point=blocks.1.hook_resid_post/shard-00000.parquet";
        let path = dir.path().join(file);
        let whole = fs::read(&path).unwrap();
        for (at, group) in
            [(3, Some(0)), (100, Some(0)), (9_000_000, Some(1)), (17_000_000, Some(2)), (whole.len() - 20, None)]
        {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let problem = check(&run).unwrap();
            assert_eq!((problem.file.as_str(), problem.row_group), (file, group), "byte {at}");
            assert!(problem.to_string().contains(file));
        }
        fs::write(&path, &whole[..9_000_000]).unwrap();
        let problem = check(&run).unwrap();
        assert_eq!((problem.row_group, problem.message.contains("found 9000000")), (Some(1), true), "{problem}");
        fs::write(&path, &whole).unwrap();
        assert_eq!(check(&run), None);
        fs::remove_file(&path).unwrap();
        assert!(check(&run).unwrap().to_string().contains("this file is missing"));
    }

    #[test]
    fn tokens_and_counts_are_checked_too() {
        let dir = tempfile::tempdir().unwrap();
        testing::run(dir.path(), 4, Dtype::F32, &[100]);
        let tokens = dir.path().join("tokens/shard-00000.parquet");
        let whole = fs::read(&tokens).unwrap();
        let mut bytes = whole.clone();
        bytes[40] ^= 0x80;
        fs::write(&tokens, bytes).unwrap();
        let problem = check(&Run::open(dir.path()).unwrap()).unwrap();
        assert_eq!((problem.file.as_str(), problem.row_group), ("tokens/shard-00000.parquet", Some(0)));
        fs::write(&tokens, whole).unwrap();
        let path = dir.path().join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"tokens_captured\": 100", "\"tokens_captured\": 99")).unwrap();
        let problem = check(&Run::open(dir.path()).unwrap()).unwrap();
        assert!(problem.message.contains("expected 100 tokens, found 99"), "{problem}");
    }

    #[test]
    fn a_run_that_is_being_recorded_can_be_verified() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = testing::manifest(&[("blocks.1.hook_resid_post", 4, Dtype::F32)]);
        let writer = crate::RunWriter::create(dir.path(), manifest).unwrap();
        testing::write_shard(&writer, 0, 0..100, 50);
        assert_eq!(check(&Run::open(dir.path()).unwrap()), None);
    }
}
