//! Which small runs do tests work on, and does a coder compute what a fixture says?

use std::{ops::ControlFlow, path::Path};

use data::shuffle::{Shuffle, ShuffleOptions};
use data::{
    Dtype, HookPoint, ModelShape, Run, RunWriter, TokenColumns,
    manifest::{Corpus, Counts, HookPointEntry, Manifest, Model, Provenance},
    tables::DocumentRow,
};

use crate::{
    random::Random,
    sae::{Scratch, SparseCoder},
    sparse::SparseRows,
    tensors::TensorFile,
};

/// Width of the recorded vectors.
pub(crate) const WIDTH: usize = 16;
/// Tokens of a document; the first is special.
pub(crate) const DOC_TOKENS: u64 = 25;
/// Directions that the recorded vectors are made of.
const DIRECTIONS: usize = 24;

pub(crate) fn hook() -> HookPoint {
    "blocks.0.hook_resid_post".parse().unwrap()
}

/// `n` rows (`[n, width]`), each a few of some fixed directions, a common offset, and a little noise.
pub(crate) fn structured_rows(n: usize, width: usize, directions: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    let basis: Vec<f64> = (0..directions * width).map(|_| random.normal()).collect();
    let offset: Vec<f64> = (0..width).map(|_| 3.0 * random.normal()).collect();
    let mut rows = Vec::with_capacity(n * width);
    for _ in 0..n {
        let mut row: Vec<f64> = offset.iter().map(|offset| offset + 0.05 * random.normal()).collect();
        for _ in 0..3 {
            // Low directions are common, high ones rare.
            let direction = (random.uniform().powi(2) * directions as f64) as usize;
            let strength = 1.0 + 2.0 * random.uniform();
            for (x, basis) in row.iter_mut().zip(&basis[direction * width..]) {
                *x += strength * basis;
            }
        }
        rows.extend(row.into_iter().map(|x| x as f32));
    }
    rows
}

/// A complete run of `n_documents`, in two shards. The special tokens have huge vectors; if `damaged`, one row has a NaN and
/// one an outlier.
pub(crate) fn write_run(dir: &Path, n_documents: u64, damaged: bool) -> Run {
    let mut rows = structured_rows((n_documents * DOC_TOKENS) as usize, WIDTH, DIRECTIONS, 11);
    for first in rows.chunks_exact_mut(WIDTH * DOC_TOKENS as usize) {
        first[..WIDTH].fill(1000.0);
    }
    if damaged {
        rows[3 * WIDTH + 1] = f32::NAN;
        rows[7 * WIDTH..8 * WIDTH].fill(-500.0);
    }
    let documents = (0..n_documents).map(|_| Written {
        source: "test".into(),
        meta: None,
        tokens: (0..DOC_TOKENS as u32).map(|pos| (pos, "t".to_owned())).collect(),
    });
    write_documents(dir, WIDTH, &documents.collect::<Vec<_>>(), &rows)
}

/// A document of a run: its tokens by id and text; the first one is special.
pub(crate) struct Written {
    pub(crate) source: String,
    pub(crate) meta: Option<String>,
    pub(crate) tokens: Vec<(u32, String)>,
}

/// A complete run of these documents in two shards, with these rows (`[tokens, width]`) at [`hook`].
pub(crate) fn write_documents(dir: &Path, width: usize, documents: &[Written], rows: &[f32]) -> Run {
    write_sites(dir, width, documents, &[(hook(), rows)])
}

/// Layers of [`write_layers`].
pub(crate) const LAYERS: usize = 3;

/// A run with the stream, the inputs and the outputs of the MLPs of [`LAYERS`] layers: the stream is the sum of outputs, and
/// outputs are made of few directions that inputs and those of earlier layers tell.
pub(crate) fn write_layers(dir: &Path, n_documents: u64) -> Run {
    let n = (n_documents * DOC_TOKENS) as usize;
    let mut mixing = Random::new(8);
    let mut resid = structured_rows(n, WIDTH, DIRECTIONS, 11);
    let mut sites: Vec<(HookPoint, Vec<f32>)> = Vec::new();
    for layer in 0..LAYERS {
        let matrix: Vec<f32> = (0..WIDTH * WIDTH).map(|_| 0.3 * mixing.normal() as f32).collect();
        // Layers have other scales, as those of models have.
        let factor = 2.0_f32.powi(layer as i32);
        let input: Vec<f32> = resid.iter().map(|x| x * factor).collect();
        let output: Vec<f32> = input
            .chunks_exact(WIDTH)
            .flat_map(|row| matrix.chunks_exact(WIDTH).map(|column| row.iter().zip(column).map(|(a, b)| a * b).sum()))
            .map(|sum: f32| sum.max(0.0))
            .collect();
        for (x, y) in resid.iter_mut().zip(&output) {
            *x += y / factor;
        }
        for (site, rows) in [("mlp.hook_in", input), ("hook_mlp_out", output), ("hook_resid_post", resid.clone())] {
            sites.push((format!("blocks.{layer}.{site}").parse().unwrap(), rows));
        }
    }
    for (_, rows) in &mut sites {
        for first in rows.chunks_exact_mut(WIDTH * DOC_TOKENS as usize) {
            first[..WIDTH].fill(1000.0);
        }
    }
    let documents = (0..n_documents).map(|_| Written {
        source: "test".into(),
        meta: None,
        tokens: (0..DOC_TOKENS as u32).map(|pos| (pos, "t".to_owned())).collect(),
    });
    let sites: Vec<_> = sites.iter().map(|(hook, rows)| (*hook, &rows[..])).collect();
    write_sites(dir, WIDTH, &documents.collect::<Vec<_>>(), &sites)
}

/// The same with rows at several hook points.
pub(crate) fn write_sites(dir: &Path, width: usize, documents: &[Written], sites: &[(HookPoint, &[f32])]) -> Run {
    let shape = ModelShape {
        n_layers: LAYERS,
        n_heads: 2,
        n_kv_heads: 1,
        d_model: width,
        d_head: 8,
        d_mlp: 32,
        d_vocab: 50,
        n_ctx: 64,
        ..ModelShape::default()
    };
    let entries = sites.iter().map(|(hook, _)| HookPointEntry::new(*hook, &shape, Dtype::F32).unwrap()).collect();
    let writer = RunWriter::create(dir, Manifest::new(Model::new("tiny", shape), Corpus::default(), entries)).unwrap();
    let (first_half, second_half) = documents.split_at(documents.len() / 2);
    let (mut doc_id, mut token_idx) = (0, 0);
    for (index, documents) in [first_half, second_half].into_iter().enumerate() {
        let first = token_idx;
        let mut shard = writer.shard(index, first).unwrap();
        let (mut tokens, mut table) = (TokenColumns::default(), Vec::new());
        for document in documents {
            for (pos, (id, text)) in (0..).zip(&document.tokens) {
                tokens.push(doc_id, pos, *id, text, None, pos == 0, None);
            }
            let n_tokens = document.tokens.len() as u64;
            table.push(DocumentRow {
                doc_id,
                source: document.source.clone(),
                n_tokens,
                sha256: String::new(),
                meta: document.meta.clone(),
                first_token_idx: token_idx,
            });
            doc_id += 1;
            token_idx += n_tokens;
        }
        shard.write_tokens(&tokens).unwrap();
        shard.write_documents(&table).unwrap();
        let range = first as usize * width..token_idx as usize * width;
        for (at, (_, rows)) in sites.iter().enumerate() {
            let bytes: Vec<u8> = rows[range.clone()].iter().flat_map(|x| x.to_le_bytes()).collect();
            shard.write_acts(at, Dtype::F32, bytes.into()).unwrap();
        }
        let n = documents.len() as u64;
        shard.commit(serde_json::Value::Null, Counts::captured(n, token_idx - first)).unwrap();
    }
    writer.finish("").unwrap();
    Run::open(dir).unwrap()
}

/// The same run with its rows shuffled.
pub(crate) fn shuffled(run: &Run, dir: &Path) -> Run {
    let plan = Shuffle::plan(run, ShuffleOptions { memory: 200_000, ..ShuffleOptions::default() }).unwrap();
    plan.write(dir, Provenance::default(), false, &mut |_| ControlFlow::Continue(())).unwrap();
    Run::open(dir).unwrap()
}

/// Rows of the fixtures' inputs.
pub(crate) const EXPECTED_ROWS: usize = 9;

/// Encodes and decodes the inputs of a fixture's `expected.safetensors`, and compares with what stands there.
#[track_caller]
pub(crate) fn check_expected(sae: &dyn SparseCoder, folder: &Path, d_sae: usize) {
    const ROWS: usize = EXPECTED_ROWS;
    let path = folder.join("expected.safetensors");
    let expected = TensorFile::open(&path).unwrap();
    let x = expected.f32("x", &[ROWS, sae.d_in()]).unwrap();
    let mut acts = SparseRows::new();
    sae.encode(&x, &mut Scratch::default(), &mut acts);
    let dense: Vec<f32> = (0..ROWS).flat_map(|row| acts.dense_row(row, d_sae)).collect();
    let mut out = vec![0.0; ROWS * sae.d_out()];
    sae.decode(&acts, &x, &mut out);
    let largest =
        |ours: &[f32], theirs: &[f32]| ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
    let acts_off = largest(&dense, &expected.f32("acts", &[ROWS, d_sae]).unwrap());
    let out_off = largest(&out, &expected.f32("out", &[ROWS, sae.d_out()]).unwrap());
    assert!(acts_off <= 1e-5 && out_off <= 1e-5, "{}: {acts_off} {out_off}", folder.display());
    assert!(acts.n_entries() >= ROWS, "something fires");
}
