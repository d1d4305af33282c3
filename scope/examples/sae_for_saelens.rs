//! Writes coders for `tests/fixtures/check_saelens_opens.py`: does SAELens compute what we compute?
//!
//! `sae_for_saelens OUT` trains a small TopK and a small BatchTopK on made-up rows.
//! `sae_for_saelens OUT FOLDER` takes every coder in a folder, and made-up rows.
//! `sae_for_saelens OUT RUN NAME` takes the coder NAME of a run, and rows of its hook point.

#![expect(clippy::print_stderr, reason = "a program for developers")]

use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};
use scope::{Architecture, Sae, Session, SparseCoder, TrainConfig, Workers};

/// Rows to compare.
const ROWS: usize = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [out] => made_up(Path::new(out)),
        [out, folder] => opened(Path::new(out), Path::new(folder)),
        [out, run, name] => recorded(Path::new(out), run, name),
        _ => Err("expected OUT, OUT FOLDER, or OUT RUN NAME".into()),
    }
}

/// Rows of no meaning, none of which is like another.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 20) as f32
    };
    (0..n).map(|_| next()).collect()
}

fn opened(out: &Path, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut coders = fs_err::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    coders.sort();
    for dir in coders {
        let sae = Sae::load(&dir)?;
        let rows: Vec<f32> = numbers(ROWS * sae.d_in()).into_iter().map(|x| x / 4.0 - 2.0).collect();
        write(&sae, &rows, &out.join(dir.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

fn made_up(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const WIDTH: usize = 48;
    const BATCH: usize = 256;
    const STEPS: usize = 60;
    let rows = numbers(BATCH * WIDTH * 4);
    for architecture in [Architecture::TopK, Architecture::BatchTopK] {
        let config =
            TrainConfig { architecture, d_sae: 200, k: 8, batch: BATCH, lr: Some(1e-3), ..TrainConfig::default() };
        let mut session = Session::new(WIDTH, (BATCH * STEPS) as u64, &rows, &config)?;
        for step in 0..STEPS {
            session.step(&rows[step % 4 * BATCH * WIDTH..][..BATCH * WIDTH])?;
        }
        let metadata = serde_json::json!({
            "sae_lens_version": "6.54.12",
            "hook_name": "blocks.9.hook_resid_post",
            "training_architecture": architecture,
        });
        let sae = session.into_sae(metadata.as_object().cloned().unwrap_or_default());
        write(&sae, &rows[..ROWS * WIDTH], &out.join(architecture.to_string()))?;
    }
    Ok(())
}

fn recorded(out: &Path, run: &str, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let run = data::Run::open(run)?;
    let sae = Sae::load(run.sae_dir(name)?)?;
    let hook = sae.hook_name().ok_or("the coder does not say its hook point")?.parse()?;
    // Without the first token, which is special and huge.
    let rows = run.acts(hook, 1..(1 + ROWS as u64).min(run.n_tokens()))?.to_f32();
    write(&sae, &rows, out)
}

fn write(sae: &Sae, rows: &[f32], dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (d_in, d_out, d_sae) = (sae.d_in(), sae.d_out(), sae.d_sae());
    sae.save(dir)?;
    let acts = scope::sae::encode_rows(sae, rows, &Workers::new(0)?);
    let n = acts.n_rows();
    let dense: Vec<f32> = (0..n).flat_map(|row| acts.dense_row(row, d_sae)).collect();
    let mut out = vec![0.0; n * d_out];
    sae.decode(&acts, rows, &mut out);
    let view = |values, width| TensorView::new(Dtype::F32, vec![n, width], bytemuck::cast_slice(values));
    let tensors = [("x", view(rows, d_in)?), ("acts", view(&dense, d_sae)?), ("out", view(&out, d_out)?)];
    fs_err::write(dir.join("expected.safetensors"), safetensors::serialize(tensors, None)?)?;
    eprintln!("{}: {n} rows, {} latents fire", dir.display(), acts.n_entries());
    Ok(())
}
