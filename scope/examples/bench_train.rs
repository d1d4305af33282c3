//! How fast is a training step, against what the encoder product alone allows?
//!
//! One JSON object a line on stdout. Needs no run: rows are made up, a few of some directions each, so that latents come to
//! fire as unevenly as on a model's activations.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]

use std::time::Instant;

use scope::{Architecture, Session, TrainConfig};

const WIDTH: usize = 640;
const D_SAE: usize = 5120;
const K: usize = 32;
const BATCH: usize = 4096;
/// Steps before the clock runs.
const WARM_UP: usize = 3;
/// Steps that are timed; the median counts.
const STEPS: usize = 9;
/// What part of the limit sparsify reaches (`design/environment.md`).
const AT_LEAST: f64 = 1.0 / 3.0;

fn main() -> scope::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let rows = rows(4 * BATCH);
    let batches: Vec<&[f32]> = rows.chunks_exact(BATCH * WIDTH).collect();
    let before = matrix_rate();
    for (name, architecture) in [("topk", Architecture::TopK), ("batchtopk", Architecture::BatchTopK)] {
        let config = TrainConfig { architecture, d_sae: D_SAE, k: K, batch: BATCH, threads, ..TrainConfig::default() };
        let mut session = Session::new(WIDTH, 1 << 30, &rows, &config)?;
        let mut seconds = Vec::new();
        for step in 0..WARM_UP + STEPS {
            let start = Instant::now();
            let progress = session.step(batches[step % batches.len()])?;
            let elapsed = start.elapsed().as_secs_f64();
            eprintln!(
                "{name} step {}: {:.0} tokens/s, loss {:.4}",
                progress.step,
                BATCH as f64 / elapsed,
                progress.loss
            );
            if step >= WARM_UP {
                seconds.push(elapsed);
            }
        }
        // The rate on both sides of the timing, since other work may share the machine.
        let rate = f64::midpoint(before, matrix_rate());
        let limit = rate / (2 * WIDTH * D_SAE + 8 * WIDTH * K) as f64;
        println!(
            "{{\"bench\":\"train.{name}\",\"measured\":{:.0},\"unit\":\"tokens/s\",\"limit\":{limit:.0},\"limit_is\":\
             \"2dM + 8dk FLOP a token at {:.0} GFLOP/s of the same product\",\"at_least\":{AT_LEAST:.2}}}",
            BATCH as f64 / median(&mut seconds),
            rate / 1e9,
        );
    }
    Ok(())
}

/// FLOP/s of libtorch's product of a batch with the encoder, on all cores: the median of a few.
fn matrix_rate() -> f64 {
    let of =
        |rows: usize, cols: usize| tch::Tensor::ones([rows as i64, cols as i64], (tch::Kind::Float, tch::Device::Cpu));
    let (a, b) = (of(BATCH, WIDTH), of(D_SAE, WIDTH));
    let out = of(BATCH, D_SAE);
    let mut seconds: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            let _ = a.mm_out(&out, &b.tr());
            start.elapsed().as_secs_f64()
        })
        .collect();
    (2 * BATCH * WIDTH * D_SAE) as f64 / median(&mut seconds)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Rows of a few directions each, common ones more often, around a common offset. From a fixed generator.
fn rows(n: usize) -> Vec<f32> {
    const DIRECTIONS: usize = 4096;
    let mut state = 1_u64;
    let mut uniform = move || {
        // The constants are Knuth's (MMIX).
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let basis: Vec<f32> = (0..DIRECTIONS * WIDTH).map(|_| uniform() - 0.5).collect();
    let mut rows = vec![0.0; n * WIDTH];
    for row in rows.chunks_exact_mut(WIDTH) {
        row.fill_with(|| 0.1 * (uniform() - 0.5));
        for _ in 0..24 {
            let (which, strength) = (uniform(), 0.5 + uniform());
            let direction = (which * which * DIRECTIONS as f32) as usize;
            for (x, basis) in row.iter_mut().zip(&basis[direction * WIDTH..]) {
                *x += strength * basis;
            }
        }
    }
    rows
}
