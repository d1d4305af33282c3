//! Small runs for the tests of this crate.

use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use serde_json::json;

use crate::manifest::{Corpus, Counts, HookPointEntry, Manifest, Model, Provenance};
use crate::shard::RunWriter;
use crate::shuffle::{self, Shuffle, ShuffleOptions};
use crate::store::Run;
use crate::tables::{DocumentRow, TokenColumns};
use crate::{Dtype, HookPoint, ModelShape};

/// Tokens of a document; the first of each is special.
pub(crate) const DOC_TOKENS: u64 = 10;

pub(crate) fn hook() -> HookPoint {
    "blocks.1.hook_resid_post".parse().unwrap()
}

pub(crate) fn manifest(hooks: &[(&str, usize, Dtype)]) -> Manifest {
    let shape = ModelShape {
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        d_model: 8,
        d_head: 4,
        d_mlp: 16,
        d_vocab: 300,
        n_ctx: 64,
        ..ModelShape::default()
    };
    let entry = |&(name, width, dtype): &(&str, usize, Dtype)| HookPointEntry {
        name: name.parse().unwrap(),
        width,
        dtype,
        shape: vec![width],
    };
    let corpus =
        Corpus { sources: vec!["news.txt".to_owned()], sha256: String::new(), options: json!({"context": 64}) };
    Manifest::new(Model::new("tiny", shape), corpus, hooks.iter().map(entry).collect())
}

/// The number at a place; exact in every format but i8, and different for every row.
pub(crate) fn number(token: u64, hook: usize, column: usize) -> f32 {
    ((token * 7 + column as u64 * 3 + hook as u64 * 11) % 251) as f32 - 100.0
}

pub(crate) fn rows(tokens: std::ops::Range<u64>, hook: usize, width: usize) -> Vec<f32> {
    tokens.flat_map(|token| (0..width).map(move |column| number(token, hook, column))).collect()
}

pub(crate) fn to_bytes(numbers: &[f32]) -> Bytes {
    Bytes::from(numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

pub(crate) fn tokens(range: std::ops::Range<u64>) -> TokenColumns {
    let mut tokens = TokenColumns::default();
    for token in range {
        let (doc, pos) = (token / DOC_TOKENS, (token % DOC_TOKENS) as u32);
        let special = pos == 0;
        let bytes = (!special).then(|| (u64::from(pos) * 4 - 4, u64::from(pos) * 4));
        let nll = (!special).then_some(pos as f32 * 0.25);
        tokens.push(doc, pos, (token % 300) as u32, &format!("t{token}▁é"), bytes, special, nll);
    }
    tokens
}

/// The documents whose first token is in a range.
pub(crate) fn documents(range: std::ops::Range<u64>) -> Vec<DocumentRow> {
    (range.start.div_ceil(DOC_TOKENS)..range.end.div_ceil(DOC_TOKENS))
        .map(|doc| DocumentRow {
            doc_id: doc,
            source: format!("news.txt:{doc}"),
            n_tokens: DOC_TOKENS,
            sha256: format!("{doc:064x}"),
            meta: (doc % 2 == 0).then(|| format!("{{\"n\":{doc}}}")),
            first_token_idx: doc * DOC_TOKENS,
        })
        .collect()
}

/// Writes a shard of these tokens, `step` tokens a call.
pub(crate) fn write_shard(run: &RunWriter, index: usize, range: std::ops::Range<u64>, step: u64) {
    let mut shard = run.shard(index, range.start).unwrap();
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start + step);
        shard.write_tokens(&tokens(start..end)).unwrap();
        for (hook, entry) in run.manifest().hook_points.iter().enumerate() {
            shard.write_acts(hook, Dtype::F32, to_bytes(&rows(start..end, hook, entry.width))).unwrap();
        }
        start = end;
    }
    let documents = documents(range.clone());
    shard.write_documents(&documents).unwrap();
    let counts = Counts::captured(documents.len() as u64, range.end - range.start);
    shard.commit(json!({"next": range.end}), counts).unwrap();
}

/// The shuffled run of another, in about `parts` shards.
pub(crate) fn shuffled(run: &Run, out: &Path, seed: u64, parts: usize) -> Run {
    let bytes = run.n_tokens() as usize * shuffle::memory_per_row(run.hook_points());
    let options = ShuffleOptions { seed, memory: 2 * bytes.div_ceil(parts), ..ShuffleOptions::default() };
    let plan = Shuffle::plan(run, options).unwrap();
    plan.write(out, Provenance::default(), false, &mut |_| ControlFlow::Continue(())).unwrap();
    Run::open(out).unwrap()
}

/// A complete run of one hook point, with shards of these sizes.
pub(crate) fn run(dir: &Path, width: usize, dtype: Dtype, shards: &[u64]) -> Run {
    let writer = RunWriter::create(dir, manifest(&[("blocks.1.hook_resid_post", width, dtype)])).unwrap();
    let mut start = 0;
    for (index, n) in shards.iter().enumerate() {
        write_shard(&writer, index, start..start + n, 333);
        start += n;
    }
    writer.finish("0").unwrap();
    Run::open(dir).unwrap()
}
