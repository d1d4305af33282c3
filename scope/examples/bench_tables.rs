//! How many features are described a second, from activations on disk to the files that SAEDashboard writes?
//!
//! One JSON object a line on stdout. The run is made up: 100,000 tokens of a stream like that of the 270M model, a TopK coder
//! of 1,000 latents, and a vocabulary of 32,768 tokens. `bench_tables.py` beside this does the same with SAEDashboard.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use data::dashboards::{self, DashboardFormat, DashboardOptions, Directions};
use data::manifest::{Corpus, Counts, Manifest, Model};
use data::{DocumentRow, Dtype, HookPointEntry, ModelShape, Run, RunWriter, TokenColumns};
use scope::encode::LogitEffect;
use scope::{Activation, EncodeOptions, LogitLens, Matrix, Sae, SparseCoder as _, encode};
use tch::Tensor;

const WIDTH: usize = 640;
const D_SAE: usize = 1000;
const K: usize = 32;
const D_VOCAB: usize = 32_768;
const DOCUMENTS: u64 = 782;
const DOC_TOKENS: u64 = 128;
/// The fastest of so many is reported.
const REPEATS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args().nth(1).map_or_else(|| "target".into(), PathBuf::from);
    fs_err::create_dir_all(&parent)?;
    let folder = tempfile::tempdir_in(&parent)?;
    let run = write_run(&folder.path().join("run"))?;
    let sae = coder();
    let dir = run.sae_dir("bench")?;
    sae.save(&dir)?;
    let lens = Lens::new(sae);
    let mut best = f64::INFINITY;
    for repeat in 0..REPEATS {
        let start = Instant::now();
        let summary = encode(&run, &dir, Some(&lens), &EncodeOptions::default(), &mut |_| ControlFlow::Continue(()))?;
        let encoded = start.elapsed().as_secs_f64();
        let table = run.feature_table(&summary.name)?;
        let out = folder.path().join(format!("dashboards-{repeat}"));
        let report = dashboards::export(&table, &options(), Some(&lens), &out, &mut |_| ControlFlow::Continue(()))?;
        let seconds = start.elapsed().as_secs_f64();
        eprintln!(
            "{} features over {} tokens, {} passages: encoded in {encoded:.2} s, written in {:.2} s",
            report.features,
            run.n_tokens(),
            report.activations,
            seconds - encoded
        );
        best = best.min(seconds);
    }
    let measured = D_SAE as f64 / best;
    println!("{{\"bench\":\"tables.features\",\"measured\":{measured:.1},\"unit\":\"features/s\"}}");
    Ok(())
}

fn options() -> DashboardOptions {
    DashboardOptions {
        format: DashboardFormat::SaeDashboard,
        features: None,
        batch: dashboards::BATCH,
        model_id: None,
        source_set: "bench".into(),
        suffix: None,
        creator: String::new(),
        creator_id: String::new(),
        created_at: String::new(),
        correlations: true,
    }
}

/// Numbers in [-0.5, 0.5), always the same.
fn uniform() -> impl FnMut() -> f32 {
    let mut state = 1_u64;
    move || {
        // The constants are Knuth's (MMIX).
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    }
}

fn coder() -> Sae {
    let mut uniform = uniform();
    let mut w_dec = Matrix::zeros(D_SAE, WIDTH);
    w_dec.as_mut_slice().fill_with(&mut uniform);
    let mut sae = Sae {
        w_enc: w_dec.transposed(),
        w_dec,
        b_enc: vec![0.0; D_SAE],
        b_dec: vec![0.0; WIDTH],
        activation: Activation::TopK { k: K },
        ..Sae::default()
    };
    sae.metadata.insert("hook_name".into(), "blocks.0.hook_resid_post".into());
    sae
}

/// Documents of [`DOC_TOKENS`] tokens, each row a few of the coder's directions.
fn write_run(dir: &Path) -> data::Result<Run> {
    let shape = ModelShape {
        n_layers: 1,
        n_heads: 4,
        n_kv_heads: 1,
        d_model: WIDTH,
        d_head: 160,
        d_mlp: 2048,
        d_vocab: D_VOCAB,
        n_ctx: DOC_TOKENS as usize,
        ..ModelShape::default()
    };
    let entry = HookPointEntry::new("blocks.0.hook_resid_post".parse()?, &shape, Dtype::F32)?;
    let writer = RunWriter::create(dir, Manifest::new(Model::new("bench", shape), Corpus::default(), vec![entry]))?;
    let words: Vec<String> = (0..D_VOCAB).map(|id| format!(" w{id}")).collect();
    writer.write_vocab(&words)?;
    let coder = coder();
    let mut uniform = uniform();
    let mut below = move |n: usize| ((uniform() + 0.5) * n as f32) as usize;
    let mut shard = writer.shard(0, 0)?;
    let mut documents = Vec::new();
    for doc_id in 0..DOCUMENTS {
        let (mut tokens, mut bytes) = (TokenColumns::default(), Vec::new());
        for pos in 0..DOC_TOKENS as u32 {
            let id = below(D_VOCAB);
            tokens.push(doc_id, pos, id as u32, &words[id], None, pos == 0, None);
            let mut row = vec![0.01; WIDTH];
            for _ in 0..8 {
                let strength = 1.0 + below(8) as f32;
                for (x, direction) in row.iter_mut().zip(coder.w_dec.row(below(D_SAE))) {
                    *x += strength * direction;
                }
            }
            bytes.extend(row.iter().flat_map(|x| x.to_le_bytes()));
        }
        shard.write_tokens(&tokens)?;
        shard.write_acts(0, Dtype::F32, bytes.into())?;
        let first_token_idx = doc_id * DOC_TOKENS;
        documents.push(DocumentRow { doc_id, n_tokens: DOC_TOKENS, first_token_idx, ..DocumentRow::default() });
    }
    shard.write_documents(&documents)?;
    shard.commit(serde_json::Value::Null, Counts::captured(DOCUMENTS, DOCUMENTS * DOC_TOKENS))?;
    writer.finish("")?;
    Run::open(dir)
}

/// An unembedding of numbers that were drawn.
struct Lens {
    sae: Sae,
    /// `[WIDTH, D_VOCAB]`
    unembedding: Tensor,
}

impl Lens {
    fn new(sae: Sae) -> Self {
        let mut uniform = uniform();
        let numbers: Vec<f32> = (0..WIDTH * D_VOCAB).map(|_| uniform()).collect();
        Self { sae, unembedding: Tensor::from_slice(&numbers).view([WIDTH as i64, D_VOCAB as i64]) }
    }

    fn logits(&self, directions: &[f32]) -> Tensor {
        Tensor::from_slice(directions).view([-1, WIDTH as i64]).matmul(&self.unembedding)
    }
}

impl LogitLens for Lens {
    fn d_model(&self) -> usize {
        WIDTH
    }

    fn logit_effects(&self, directions: &[f32], top: usize) -> Vec<LogitEffect> {
        let logits = self.logits(directions);
        let pairs = |largest: bool| {
            let (values, ids) = logits.topk(top as i64, -1, largest, true);
            let values = Vec::<f32>::try_from(values.view([-1])).unwrap_or_default();
            let ids = Vec::<i64>::try_from(ids.view([-1])).unwrap_or_default();
            ids.into_iter().map(|id| id as u32).zip(values).collect::<Vec<_>>()
        };
        let (high, low) = (pairs(true), pairs(false));
        let rows = high.chunks(top).zip(low.chunks(top));
        rows.map(|(top, bottom)| LogitEffect { top: top.to_vec(), bottom: bottom.to_vec() }).collect()
    }
}

impl Directions for Lens {
    fn direction(&self, feature: u32) -> Vec<f32> {
        self.sae.w_dec().row(feature as usize).to_vec()
    }

    fn logits(&self, directions: &[f32]) -> Vec<f32> {
        Vec::<f32>::try_from(Self::logits(self, directions).view([-1])).unwrap_or_default()
    }
}
