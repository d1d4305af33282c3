//! tmp
use scope::{Architecture, Session, TrainConfig};
use std::time::Instant;
fn main() -> scope::Result<()> {
    let mut state = 1_u64;
    let mut u = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let basis: Vec<f32> = (0..4096 * 640).map(|_| u() - 0.5).collect();
    let mut rows = vec![0.0f32; 4 * 4096 * 640];
    for row in rows.chunks_exact_mut(640) {
        for _ in 0..24 {
            let w = u();
            let d = (w * w * 4096.0) as usize;
            let s = 0.5 + u();
            for (x, b) in row.iter_mut().zip(&basis[d * 640..]) {
                *x += s * b;
            }
        }
    }
    for dead_window in [u64::MAX, 4096 * 2, 4096] {
        let config = TrainConfig {
            architecture: Architecture::TopK,
            d_sae: 5120,
            k: if dead_window == 4096 { 4 } else { 32 },
            batch: 4096,
            threads: 2,
            dead_window: Some(dead_window),
            ..TrainConfig::default()
        };
        let mut s = Session::new(640, 1 << 30, &rows, &config)?;
        for step in 0..10 {
            let t = Instant::now();
            let p = s.step(&rows[step % 4 * 4096 * 640..][..4096 * 640])?;
            println!("{dead_window} {step} {:.0} dead {} loss {}", 4096.0 / t.elapsed().as_secs_f64(), p.dead, p.loss);
        }
    }
    Ok(())
}
