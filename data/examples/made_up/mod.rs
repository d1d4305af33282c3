//! What do the benches of this crate share: a made-up run, and how a figure is printed?

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use data::manifest::{Corpus, Counts, Manifest, Model};
use data::{Dtype, HookPoint, HookPointEntry, ModelShape, RunWriter, TokenColumns};
use serde_json::json;

/// Like the residual stream of the 270M model.
pub(crate) const WIDTH: usize = 640;
pub(crate) const N_LAYERS: usize = 4;
/// Tokens that a recorder hands over at a time.
pub(crate) const BATCH: usize = 2048;

pub(crate) type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

/// Prints a figure in GB/s beside its limit; `at_least` is the part of the limit that is wanted.
pub(crate) fn report(name: &str, measured: f64, limit: f64, limit_is: &str, at_least: Option<f64>) {
    let mut line = json!({
        "bench": name, "measured": measured / 1e9, "unit": "GB/s", "limit": limit / 1e9, "limit_is": limit_is,
    });
    if let Some(at_least) = at_least {
        line["at_least"] = at_least.into();
    }
    println!("{line}");
}

/// The seconds that some work takes.
pub(crate) fn time(work: impl FnOnce() -> AnyResult<()>) -> AnyResult<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Rows in batches, with numbers that look like activations.
pub(crate) fn rows(batches: usize) -> Vec<Bytes> {
    let number = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 * 0.01 - 10.0;
    let batch =
        |b: usize| (0..BATCH * WIDTH).flat_map(|i| number(b * BATCH * WIDTH + i).to_le_bytes()).collect::<Vec<u8>>();
    (0..batches).map(|b| Bytes::from(batch(b))).collect()
}

/// A run in which the residual stream of every layer has these rows, `repeats` times.
pub(crate) fn write_run(dir: &Path, rows: &[Bytes], repeats: usize) -> AnyResult<()> {
    let shape = ModelShape {
        n_layers: N_LAYERS,
        n_heads: 4,
        n_kv_heads: 1,
        d_model: WIDTH,
        d_head: 256,
        d_mlp: 2048,
        d_vocab: 262_144,
        n_ctx: 1024,
        ..ModelShape::default()
    };
    let hooks = HookPoint::parse_list("blocks.*.hook_resid_post", &shape)?;
    let entries = hooks.iter().map(|&hook| HookPointEntry::new(hook, &shape, Dtype::F32)).collect::<Result<_, _>>()?;
    let run = RunWriter::create(dir, Manifest::new(Model::new("bench", shape), Corpus::default(), entries))?;
    let n = (rows.len() * BATCH) as u64;
    for repeat in 0..repeats {
        let mut shard = run.shard(repeat, repeat as u64 * n)?;
        for (b, batch) in rows.iter().enumerate() {
            let mut tokens = TokenColumns::default();
            for i in 0..BATCH {
                tokens.push(b as u64, i as u32, (i * 31 % 1000) as u32, "token", Some((0, 5)), i == 0, None);
            }
            shard.write_tokens(&tokens)?;
            for hook in 0..N_LAYERS {
                shard.write_acts(hook, Dtype::F32, batch.clone())?;
            }
        }
        shard.commit(json!(null), Counts::captured(0, n))?;
    }
    run.finish("")?;
    Ok(())
}
