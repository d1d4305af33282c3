//! How does a feature table come to be on disk in one pass over the tokens?

use std::path::PathBuf;

use super::sort::{self, SortedFeatures, Target};
use super::{FeatureTableInfo, GROUP_ROWS, tables};
use crate::error::{Error, Result};
use crate::files::{self, BuildFolder};
use crate::manifest::Shard;
use crate::parquet_io::TableWriter;
use crate::place::Place;
use crate::schema;
use crate::store::Run;
use crate::sums::Sums;

/// Takes sparse activations in the order of tokens. Dropped before the end, it leaves nothing.
pub struct FeatureTableWriter {
    place: Place,
    /// Of the table, within the run.
    relative: String,
    folder: BuildFolder,
    info: FeatureTableInfo,
    sort_memory: usize,
    shards: Vec<Shard>,
    /// The shard that is being written, by its place in `shards`.
    shard: usize,
    writer: Option<TableWriter>,
    token_idx: Vec<u64>,
    feature: Vec<u32>,
    act: Vec<f32>,
    last_token: Option<u64>,
    /// Rows of each feature.
    counts: Vec<u64>,
    sums: Sums,
}

impl FeatureTableWriter {
    /// Begins the table `name` of a run; an older one of that name stays until this one is whole.
    ///
    /// `sort_memory` bounds, in bytes, the rows that are held to order them by feature.
    pub fn create(run: &Run, name: &str, info: FeatureTableInfo, sort_memory: usize) -> Result<Self> {
        files::check_name("feature table", name)?;
        let features = run.place().dir().join("features");
        files::create_dir(&features)?;
        let folder = BuildFolder::create(&features.join(name))?;
        files::create_dir(&folder.path().join("acts"))?;
        files::create_dir(&folder.path().join("by_feature"))?;
        let mut writer = Self {
            place: run.place().clone(),
            relative: format!("features/{name}"),
            folder,
            counts: vec![0; info.d_sae as usize],
            info,
            sort_memory,
            shards: run.shards().to_vec(),
            shard: 0,
            writer: None,
            token_idx: Vec::new(),
            feature: Vec::new(),
            act: Vec::new(),
            last_token: None,
            sums: Sums::default(),
        };
        writer.open_shard()?;
        Ok(writer)
    }

    /// Appends active features: one entry each of token, feature and activation, in the order of tokens.
    ///
    /// Every token's features, those of special tokens too.
    pub fn write(&mut self, token_idx: &[u64], feature: &[u32], act: &[f32]) -> Result<()> {
        if feature.len() != token_idx.len() || act.len() != token_idx.len() {
            let found = feature.len().min(act.len());
            return Err(Error::mismatch("features and activations for the tokens", token_idx.len(), found));
        }
        for i in 0..token_idx.len() {
            let (token, feature, act) = (token_idx[i], feature[i], act[i]);
            let Some(count) = self.counts.get_mut(feature as usize) else {
                return Err(Error::mismatch("features at most", self.info.d_sae, u64::from(feature) + 1));
            };
            *count += 1;
            if let Some(last) = self.last_token.filter(|&last| token < last) {
                return Err(Error::mismatch("as the next token at least", last, token));
            }
            self.last_token = Some(token);
            while self.shards.get(self.shard).is_none_or(|shard| token >= shard.tokens().end) {
                self.end_shard()?;
                if self.shard >= self.shards.len() {
                    let end = self.shards.last().map_or(0, |shard| shard.tokens().end);
                    return Err(Error::mismatch("tokens at most", end, token.saturating_add(1)));
                }
            }
            self.token_idx.push(token);
            self.feature.push(feature);
            self.act.push(act);
            if self.token_idx.len() == GROUP_ROWS {
                self.write_group()?;
            }
        }
        Ok(())
    }

    /// Ends the rows in token order, and orders them by feature.
    pub fn sort(mut self) -> Result<SortedFeatures> {
        while self.shard < self.shards.len() {
            self.end_shard()?;
        }
        files::sync_dir(&self.folder.path().join("acts"))?;
        let acts: Vec<PathBuf> =
            self.shards.iter().map(|shard| self.folder.path().join("acts").join(shard.file_name())).collect();
        let target = Target { place: self.place, relative: self.relative, folder: self.folder };
        sort::sort(target, self.info, self.sort_memory, &acts, &self.counts, self.sums)
    }

    fn open_shard(&mut self) -> Result<()> {
        if let Some(shard) = self.shards.get(self.shard) {
            let path = self.folder.path().join("acts").join(shard.file_name());
            self.writer = Some(TableWriter::create(&path, &schema::feature_acts(), super::acts_options())?);
        }
        Ok(())
    }

    fn end_shard(&mut self) -> Result<()> {
        self.write_group()?;
        if let (Some(writer), Some(shard)) = (self.writer.take(), self.shards.get(self.shard)) {
            self.sums.files.insert(format!("acts/{}", shard.file_name()), writer.publish()?);
        }
        self.shard += 1;
        self.open_shard()
    }

    fn write_group(&mut self) -> Result<()> {
        let token_idx = std::mem::take(&mut self.token_idx);
        let feature = std::mem::take(&mut self.feature);
        let act = std::mem::take(&mut self.act);
        match &mut self.writer {
            Some(writer) => writer.write(&tables::acts_batch(token_idx, feature, act)),
            None => Ok(()),
        }
    }
}
