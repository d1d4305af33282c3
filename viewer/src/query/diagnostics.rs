//! Which files is the run made of, and what could not be read?

use super::Source;
use crate::loader::{Ask, Cancel, Failure};

/// Asks for the files of the run.
#[derive(Debug, Clone)]
pub(crate) struct DiagnosticsQuery;

/// The files of the run, by shard and by kind.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics {
    pub(crate) shards: Vec<ShardRow>,
    /// Kind (a folder) and bytes in it, falling.
    pub(crate) kinds: Vec<(String, u64)>,
    /// The tables of features with what they have, or why they cannot be read.
    pub(crate) tables: Vec<(String, Result<String, String>)>,
    /// Lines of the notes that could not be understood.
    pub(crate) n_unreadable_notes: usize,
}

/// A shard.
#[derive(Debug)]
pub(crate) struct ShardRow {
    pub(crate) index: usize,
    pub(crate) first_token_idx: u64,
    pub(crate) n_tokens: u64,
    pub(crate) n_files: usize,
    pub(crate) bytes: u64,
}

impl Ask for DiagnosticsQuery {
    type Answer = Diagnostics;
    const NAME: &'static str = "diagnostics";

    fn answer(&self, source: &Source, cancel: &Cancel) -> Result<Diagnostics, Failure> {
        let mut out = Diagnostics::default();
        let mut kinds: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
        for shard in source.run.shards() {
            out.shards.push(ShardRow {
                index: shard.index,
                first_token_idx: shard.first_token_idx,
                n_tokens: shard.n_tokens,
                n_files: shard.files.len(),
                bytes: shard.files.values().map(|file| file.bytes).sum(),
            });
            for (path, file) in &shard.files {
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                *kinds.entry(folder.to_owned()).or_default() += file.bytes;
            }
        }
        out.kinds = kinds.into_iter().collect();
        out.kinds.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        for name in source.run.feature_tables()? {
            cancel.check()?;
            let table = source.table(&name).and_then(|table| {
                let joins = table.joins()?;
                let pairs = table.coactivation(0..0)?.is_some();
                let pairs = if pairs { "pairs counted" } else { "pairs not counted" };
                let joined = if joins.is_empty() {
                    "not joined".to_owned()
                } else {
                    format!("joined with {}", joins.join(", "))
                };
                Ok(format!("{} features, {pairs}, {joined}", crate::widget::grouped(u64::from(table.n_features()))))
            });
            out.tables.push((name, table.map_err(|failure| failure.message)));
        }
        out.n_unreadable_notes = data::annotations::Annotations::read(&source.run)?.n_unreadable;
        Ok(out)
    }

    fn bytes(answer: &Diagnostics) -> usize {
        answer.shards.len() * size_of::<ShardRow>() + answer.kinds.len() * 96
    }
}
