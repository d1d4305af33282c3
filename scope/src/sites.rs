//! Which hook points does a coder read, which does it write, and how do their rows come from a run?

use std::ops::Range;

use data::{Acts, ActsShard, Batch, BatchOptions, BatchReader, HookPoint, Run};

use crate::{
    error::{Error, Result},
    sae::SparseCoder,
};

/// The hook points that a coder reads, and those that it writes: of an autoencoder one and the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sites {
    /// In the order of the columns of a row that is read.
    pub inputs: Vec<HookPoint>,
    /// In the order of the columns of a row that is written.
    pub outputs: Vec<HookPoint>,
}

impl From<HookPoint> for Sites {
    fn from(hook: HookPoint) -> Self {
        [hook, hook].into()
    }
}

impl From<[HookPoint; 2]> for Sites {
    fn from([input, output]: [HookPoint; 2]) -> Self {
        Self { inputs: vec![input], outputs: vec![output] }
    }
}

impl Sites {
    /// Whether what is written is what is read.
    pub fn same(&self) -> bool {
        self.inputs == self.outputs
    }

    /// The one that stands for all in an error: the first that is read.
    pub fn name(&self) -> String {
        self.inputs.first().map(ToString::to_string).unwrap_or_default()
    }

    /// Each hook point once, and where among them are those that are read and those that are written.
    pub(crate) fn once(&self) -> (Vec<HookPoint>, [Vec<usize>; 2]) {
        let mut hooks: Vec<HookPoint> = Vec::new();
        let places = [&self.inputs, &self.outputs].map(|sites| {
            let place = |&hook: &HookPoint| {
                hooks.iter().position(|&known| known == hook).unwrap_or_else(|| {
                    hooks.push(hook);
                    hooks.len() - 1
                })
            };
            sites.iter().map(place).collect()
        });
        (hooks, places)
    }

    /// An error where the run does not hold what the coder reads and writes.
    pub(crate) fn check(&self, run: &Run, coder: &dyn SparseCoder) -> Result<()> {
        self.check_inputs(run, coder)?;
        check_widths(run, &self.outputs, &coder.output_widths())
    }

    /// The same of what it reads.
    pub(crate) fn check_inputs(&self, run: &Run, coder: &dyn SparseCoder) -> Result<()> {
        check_widths(run, &self.inputs, &coder.input_widths())
    }

    /// Batches of the rows that a coder reads and of those that it should write.
    pub(crate) fn batches(&self, run: &Run, options: BatchOptions) -> Result<SiteBatches> {
        let (hooks, places) = self.once();
        let widths = hooks.iter().map(|&hook| Ok(run.hook_point(hook)?.width)).collect::<Result<Vec<_>>>()?;
        Ok(SiteBatches { reader: BatchReader::new(run, &hooks, options)?, widths, places })
    }

    /// The rows of some tokens that a coder reads.
    pub(crate) fn rows(&self, run: &Run, tokens: Range<u64>) -> Result<SiteRows> {
        SiteRows::of(run, &self.inputs, tokens)
    }

    /// The rows of some tokens that a coder should write.
    pub(crate) fn targets(&self, run: &Run, tokens: Range<u64>) -> Result<SiteRows> {
        SiteRows::of(run, &self.outputs, tokens)
    }

    /// The rows of a shard, by its place in [`Run::shards`].
    pub(crate) fn shard(&self, run: &Run, shard: usize) -> Result<SiteShard> {
        let reading = |&hook: &HookPoint| {
            let width = run.hook_point(hook)?.width;
            Ok(Reading { shard: run.acts_shard(hook, shard)?, width, rows: Vec::new(), done: 0 })
        };
        let sites = self.inputs.iter().map(reading).collect::<Result<Vec<_>>>()?;
        Ok(SiteShard { sites, next_token_idx: run.shards()[shard].first_token_idx })
    }
}

fn check_widths(run: &Run, hooks: &[HookPoint], widths: &[usize]) -> Result<()> {
    if hooks.len() != widths.len() {
        return Err(Error::Sites { expected: widths.len(), found: hooks.len() });
    }
    for (&hook, &expected) in hooks.iter().zip(widths) {
        let width = run.hook_point(hook)?.width;
        if width != expected {
            return Err(Error::Width { expected, width, hook: hook.to_string() });
        }
    }
    Ok(())
}

/// See [`Sites::batches`].
pub(crate) struct SiteBatches {
    reader: BatchReader,
    widths: Vec<usize>,
    places: [Vec<usize>; 2],
}

/// Rows of a run.
pub(crate) struct SiteBatch {
    pub(crate) token_idx: Vec<u64>,
    /// `[n, d_in]`.
    pub(crate) rows: Vec<f32>,
    /// `[n, d_out]`; empty where that is what is read.
    targets: Vec<f32>,
}

impl SiteBatch {
    /// `[n, d_out]`.
    pub(crate) fn targets(&self) -> &[f32] {
        if self.targets.is_empty() { &self.rows } else { &self.targets }
    }
}

impl Iterator for SiteBatches {
    type Item = Result<SiteBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut batch = match self.reader.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error.into())),
        };
        let [inputs, outputs] = &self.places;
        let targets = if inputs == outputs { Vec::new() } else { self.together(outputs, inputs, &mut batch) };
        let rows = self.together(inputs, &[], &mut batch);
        Some(Ok(SiteBatch { token_idx: batch.token_idx, rows, targets }))
    }
}

impl SiteBatches {
    /// The rows of some sites; those of one that is not needed again are moved.
    fn together(&self, places: &[usize], again: &[usize], batch: &mut Batch) -> Vec<f32> {
        match *places {
            [one] if !again.contains(&one) => std::mem::take(&mut batch.acts[one]),
            _ => {
                let sites: Vec<_> = places.iter().map(|&at| (&batch.acts[at][..], self.widths[at])).collect();
                let mut rows = Vec::new();
                side_by_side(&sites, &mut rows);
                rows
            }
        }
    }
}

/// See [`Sites::rows`].
pub(crate) struct SiteRows {
    acts: Vec<Acts>,
}

impl SiteRows {
    fn of(run: &Run, hooks: &[HookPoint], tokens: Range<u64>) -> Result<Self> {
        let acts = hooks.iter().map(|&hook| Ok(run.acts(hook, tokens.clone())?)).collect::<Result<_>>()?;
        Ok(Self { acts })
    }

    /// `[d_in]`.
    pub(crate) fn row(&self, at: usize) -> Vec<f32> {
        self.acts.iter().flat_map(|acts| acts.row_f32(at)).collect()
    }
}

/// The rows of one shard that a coder reads, in the order of their tokens; see [`Sites::shard`].
pub(crate) struct SiteShard {
    sites: Vec<Reading>,
    next_token_idx: u64,
}

/// What was read of a site, and not yet handed out.
struct Reading {
    shard: ActsShard,
    width: usize,
    rows: Vec<f32>,
    /// Values handed out.
    done: usize,
}

impl Reading {
    /// Rows that are left, after reading some if there were none; 0 at the end.
    fn fill(&mut self) -> Result<usize> {
        if self.done == self.rows.len() {
            self.rows = match self.shard.next() {
                Some(acts) => acts?.to_f32(),
                None => Vec::new(),
            };
            self.done = 0;
        }
        Ok((self.rows.len() - self.done) / self.width)
    }
}

impl SiteShard {
    /// The token of the first row, and rows `[n, d_in]`; `None` at the end.
    fn rows(&mut self) -> Result<Option<(u64, Vec<f32>)>> {
        let mut n = usize::MAX;
        for site in &mut self.sites {
            n = n.min(site.fill()?);
        }
        if n == 0 || self.sites.is_empty() {
            return Ok(None);
        }
        let first = self.next_token_idx;
        self.next_token_idx += n as u64;
        if let [site] = &mut self.sites[..] {
            return Ok(Some((first, std::mem::take(&mut site.rows))));
        }
        let parts: Vec<_> = self.sites.iter().map(|it| (&it.rows[it.done..][..n * it.width], it.width)).collect();
        let mut rows = Vec::new();
        side_by_side(&parts, &mut rows);
        for site in &mut self.sites {
            site.done += n * site.width;
        }
        Ok(Some((first, rows)))
    }
}

impl Iterator for SiteShard {
    type Item = Result<(u64, Vec<f32>)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows().transpose()
    }
}

/// Rows of several sites with their widths, as rows that have all of them end to end, into `out`.
pub(crate) fn side_by_side(sites: &[(&[f32], usize)], out: &mut Vec<f32>) {
    out.clear();
    if let [(rows, _)] = sites {
        out.extend_from_slice(rows);
        return;
    }
    let n = sites.first().map_or(0, |(rows, width)| rows.len() / width);
    for row in 0..n {
        for (rows, width) in sites {
            out.extend_from_slice(&rows[row * width..][..*width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_side_by_side_in_the_order_of_the_sites() {
        let mut out = vec![9.0];
        side_by_side(&[(&[1.0, 2.0], 1), (&[3.0, 4.0, 5.0, 6.0], 2)], &mut out);
        assert_eq!(out, [1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
        let hook = |name: &str| name.parse::<HookPoint>().unwrap();
        let (a, b) = (hook("blocks.0.hook_mlp_out"), hook("blocks.1.hook_mlp_out"));
        let sites = Sites { inputs: vec![a, b], outputs: vec![b, a] };
        assert_eq!(sites.once(), (vec![a, b], [vec![0, 1], vec![1, 0]]));
        assert!(!sites.same() && Sites::from(a).same());
    }
}
