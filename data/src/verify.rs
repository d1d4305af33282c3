//! Is everything that a run should hold there, and as it was written?
//!
//! Every file of every shard is read again: its length and checksum are compared with those of the manifest and the
//! journal, and rows are counted. Feature tables are decoded, and their order and counts are compared with each other.
//! Rows of routing are decoded too, and one that contradicts itself is named.
//! The first bad file is named, and the row group in it: the journal has the checksum up to the end of each.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::{self, hex};
use crate::manifest::{self, FileEntry, JournalEntry, Routing, Shard};
use crate::parquet_io::{self, TableFile};
use crate::routing;
use crate::store::Run;

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
    /// Files that were read.
    pub files: usize,
    pub bytes: u64,
    /// The first thing that is wrong; `None` when all is well.
    pub problem: Option<Problem>,
}

/// A file that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Within the run.
    pub file: String,
    /// From 0; `None` when it is not one row group that is bad.
    pub row_group: Option<usize>,
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.row_group {
            Some(group) => write!(f, "{} in row group {group} of `{}`", self.message, self.file),
            None => write!(f, "{} in `{}`", self.message, self.file),
        }
    }
}

/// Reads everything again, up to the first thing that is wrong.
///
/// `progress` is called after each block; when it breaks, the result is [`Error::Interrupted`].
pub fn verify(run: &Run, progress: &mut dyn FnMut(&VerifyProgress) -> ControlFlow<()>) -> Result<VerifyReport> {
    let read;
    let journal = if run.manifest().complete {
        read = manifest::read_journal(run.dir())?;
        read.as_slice()
    } else {
        run.journal()
    };
    let mut work = Work {
        run,
        journal,
        report: VerifyReport::default(),
        total: run.shards().iter().flat_map(|shard| shard.files.values()).map(|file| file.bytes).sum(),
        progress,
    };
    work.report.problem = work.first_problem()?;
    Ok(work.report)
}

struct Work<'a> {
    run: &'a Run,
    journal: &'a [JournalEntry],
    report: VerifyReport,
    total: u64,
    progress: &'a mut dyn FnMut(&VerifyProgress) -> ControlFlow<()>,
}

impl Work<'_> {
    fn first_problem(&mut self) -> Result<Option<Problem>> {
        let problem =
            |file: &str, message: String| Ok(Some(Problem { file: file.to_owned(), row_group: None, message }));
        let manifest = self.run.manifest();
        if let Err(error) = manifest.counts.check(self.run.dir()) {
            return problem("manifest.json", error.to_string());
        }
        let captured = manifest.counts.tokens_captured;
        if captured != self.run.n_tokens() {
            return problem("manifest.json", format!("expected {captured} tokens, found {}", self.run.n_tokens()));
        }
        for shard in self.run.shards() {
            let entry = self.journal.iter().find(|entry| entry.shard.index == shard.index);
            for folder in manifest.folders() {
                let file = format!("{folder}/{}", shard.file_name());
                if !shard.files.contains_key(&file) {
                    return problem(&file, "the manifest does not list this file".to_owned());
                }
            }
            for (file, expected) in &shard.files {
                let marked = entry
                    .and_then(|entry| entry.shard.files.get(file))
                    .filter(|marked| marked.sha256 == expected.sha256);
                if let Some(found) = self.check_file(file, marked.unwrap_or(expected))? {
                    return Ok(Some(found));
                }
                let rows = if file.starts_with("documents/") { shard.n_documents } else { shard.n_tokens };
                match TableFile::open(&files::join_within(self.run.dir(), file)?) {
                    Ok(table) if table.n_rows() as u64 == rows => {}
                    Ok(table) => return problem(file, format!("expected {rows} rows, found {}", table.n_rows())),
                    Err(error) => return problem(file, error.to_string()),
                }
            }
            for folder in manifest.routing_layers().iter().map(|&layer| Routing::folder(layer)) {
                if let Some(found) = self.check_routing(&format!("{folder}/{}", shard.file_name()), shard) {
                    return Ok(Some(found));
                }
            }
        }
        for name in self.run.feature_tables()? {
            if let Some(found) = self.check_features(&name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Length and checksum of a file.
    fn check_file(&mut self, relative: &str, expected: &FileEntry) -> Result<Option<Problem>> {
        let problem = |row_group, message| Ok(Some(Problem { file: relative.to_owned(), row_group, message }));
        let path = files::join_within(self.run.dir(), relative)?;
        let mut file = match parquet_io::open(&path) {
            Ok(file) => file,
            Err(Error::MissingFile { .. }) => return problem(None, "this file is missing".to_owned()),
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
                return problem(Some(group), "other bytes than were written".to_owned());
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
            return problem(group, format!("expected {} bytes, found {done}", expected.bytes));
        }
        if hex(&hasher.finalize()) != expected.sha256 {
            return problem(None, "other bytes than were written".to_owned());
        }
        Ok(None)
    }

    /// What the rows of routing say of themselves.
    fn check_routing(&self, relative: &str, shard: &Shard) -> Option<Problem> {
        let routing = self.run.manifest().routing.as_ref()?;
        let path = self.run.dir().join(relative);
        let found = TableFile::open(&path)
            .and_then(|table| routing::first_bad_row(&table, routing, shard.first_token_idx))
            .unwrap_or_else(|error| Some((None, error.to_string())));
        found.map(|(row_group, message)| Problem { file: relative.to_owned(), row_group, message })
    }

    /// Order and counts of a feature table, which has no checksums.
    fn check_features(&mut self, name: &str) -> Result<Option<Problem>> {
        let folder = format!("features/{name}");
        let problem = |file: String, message: String| Ok(Some(Problem { file, row_group: None, message }));
        if let Err(error) = self.run.feature_table(name) {
            return problem(folder, error.to_string());
        }
        let mut rows = 0;
        for shard in self.run.shards() {
            let file = format!("{folder}/acts/{}", shard.file_name());
            match self.check_order(&file, false) {
                Ok(Ok(n)) => rows += n,
                Ok(Err(group)) => return Ok(Some(out_of_order(file, group))),
                Err(error) => return problem(file, error.to_string()),
            }
        }
        let mut sorted = 0;
        for (i, _) in files::names_in(&self.run.dir().join(&folder).join("by_feature"), false)?.iter().enumerate() {
            let file = format!("{folder}/by_feature/{}", manifest::shard_file_name(i));
            match self.check_order(&file, true) {
                Ok(Ok(n)) => sorted += n,
                Ok(Err(group)) => return Ok(Some(out_of_order(file, group))),
                Err(error) => return problem(file, error.to_string()),
            }
        }
        if rows != sorted {
            let message = format!("expected {rows} rows as in `{folder}/acts`, found {sorted}");
            return problem(format!("{folder}/by_feature"), message);
        }
        for file in ["stats.parquet", "examples.parquet"] {
            let relative = format!("{folder}/{file}");
            if let Err(error) = self.decode(&relative) {
                return problem(relative, error.to_string());
            }
        }
        Ok(None)
    }

    /// Decodes a file, and checks that it rises by token or by (feature, −activation).
    /// Returns its rows, or the row group that is out of order.
    fn check_order(&mut self, relative: &str, by_feature: bool) -> Result<std::result::Result<usize, usize>> {
        use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
        let path = self.run.dir().join(relative);
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
        let path = self.run.dir().join(relative);
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

fn out_of_order(file: String, group: usize) -> Problem {
    Problem { file, row_group: Some(group), message: "rows out of order".to_owned() }
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use crate::Dtype;
    use crate::testing;

    fn check(run: &Run) -> Option<Problem> {
        verify(run, &mut |_| ControlFlow::Continue(())).unwrap().problem
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
        assert_eq!(report, VerifyReport { files: 6, bytes, problem: None });
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
