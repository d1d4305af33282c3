//! Is what is planted wrong found, and named?

use std::path::Path;

use data::{
    Dtype, ModelShape, RunWriter, TokenColumns,
    manifest::{Corpus, Counts, HookPointEntry, Manifest, Model},
    tables::DocumentRow,
};

use super::*;
use crate::{Activation, random::Random};

const WIDTH: usize = 16;
const TOKENS_HERE: usize = 1200;
const HOOKS: [&str; 3] = ["blocks.0.ln2.hook_normalized", "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"];
const THRESHOLD: f32 = 0.5;

fn hook(name: &str) -> HookPoint {
    name.parse().unwrap()
}

/// An orthogonal matrix that mixes all axes.
fn mirror() -> Matrix {
    let normal: Vec<f32> = (0..WIDTH).map(|i| 1.0 + (i % 5) as f32).collect();
    let square: f32 = normal.iter().map(|x| x * x).sum();
    let mut matrix = Matrix::zeros(WIDTH, WIDTH);
    for row in 0..WIDTH {
        for col in 0..WIDTH {
            matrix.row_mut(row)[col] = f32::from(u8::from(row == col)) - 2.0 * normal[row] * normal[col] / square;
        }
    }
    matrix
}

fn offset() -> Vec<f32> {
    (0..WIDTH).map(|i| (i % 3) as f32 - 0.8).collect()
}

/// The coder of `mlp.hook_in`, as it should be.
fn planted() -> Sae {
    let mut sae = Sae {
        w_enc: mirror(),
        w_dec: mirror(),
        b_enc: vec![0.0; WIDTH],
        b_dec: offset(),
        activation: Activation::JumpRelu { threshold: vec![THRESHOLD; WIDTH] },
        apply_b_dec_to_input: true,
        ..Sae::default()
    };
    sae.metadata.insert("hook_name".into(), HOOKS[1].into());
    sae.metadata.insert("l0".into(), 3.into());
    sae
}

/// A run whose `mlp.hook_in` has three of the coder's directions in each row; in front of the norm's weight they are bent.
fn write_run(dir: &Path) -> Run {
    let shape = ModelShape {
        n_layers: 1,
        n_heads: 2,
        d_model: WIDTH,
        d_head: 8,
        d_mlp: 32,
        d_vocab: 50,
        n_ctx: 64,
        ..ModelShape::default()
    };
    let entries = HOOKS.map(|name| HookPointEntry::new(hook(name), &shape, Dtype::F32).unwrap()).to_vec();
    let writer = RunWriter::create(dir, Manifest::new(Model::new("tiny", shape), Corpus::default(), entries)).unwrap();
    let (mut random, directions, offset) = (Random::new(3), mirror(), offset());
    let mut rows: [Vec<f32>; 3] = Default::default();
    for _ in 0..TOKENS_HERE {
        let mut row = offset.clone();
        let first = (random.uniform() * WIDTH as f64) as usize;
        for step in [0, 3, 7] {
            let strength = (1.0 + 2.0 * random.uniform()) as f32;
            for (x, direction) in row.iter_mut().zip(directions.row((first + step) % WIDTH)) {
                *x += strength * direction;
            }
        }
        rows[0].extend(row.iter().enumerate().map(|(i, x)| if i % 2 == 0 { x / 6.0 } else { *x }));
        rows[1].extend(row);
        rows[2].extend((0..WIDTH).map(|_| random.normal() as f32));
    }
    let mut shard = writer.shard(0, 0).unwrap();
    let mut tokens = TokenColumns::default();
    for pos in 0..TOKENS_HERE as u32 {
        tokens.push(0, pos, pos % 50, "t", None, false, None);
    }
    shard.write_tokens(&tokens).unwrap();
    let n_tokens = TOKENS_HERE as u64;
    let document = DocumentRow {
        doc_id: 0,
        source: "test".into(),
        n_tokens,
        sha256: String::new(),
        meta: None,
        first_token_idx: 0,
    };
    shard.write_documents(&[document]).unwrap();
    for (i, rows) in rows.iter().enumerate() {
        let bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
        shard.write_acts(i, Dtype::F32, bytes.into()).unwrap();
    }
    shard.commit(serde_json::Value::Null, Counts::captured(1, n_tokens)).unwrap();
    writer.finish("").unwrap();
    Run::open(dir).unwrap()
}

fn test(sae: &Sae) -> SelfTest {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(&dir.path().join("run"));
    selftest(&run, sae, 1, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn what_is_right_passes() {
    let found = test(&planted());
    assert!(found.passed() && found.tried == 1, "{found:?}");
    assert_eq!((found.label, found.best.metrics.l0), (Some(3.0), 3.0));
    assert!(found.differences(&planted()).is_empty());
}

#[test]
fn a_wrong_site_is_found() {
    let mut sae = planted();
    sae.metadata.insert("hook_name".into(), HOOKS[2].into());
    let found = test(&sae);
    assert!(found.fits && !found.passed());
    assert_eq!(found.best.hooks, [hook(HOOKS[1]); 2]);
    let words = found.differences(&sae);
    assert_eq!(words, ["it reads `blocks.0.mlp.hook_in`, not `blocks.0.hook_mlp_out`"]);
}

#[test]
fn a_wrong_gain_is_found() {
    let mut sae = planted();
    sae.metadata.insert("hook_name".into(), HOOKS[0].into());
    let found = test(&sae);
    assert!(found.fits && !found.passed(), "{found:?}");
    let words = found.differences(&sae);
    let expected = "it reads `blocks.0.mlp.hook_in`, not `blocks.0.ln2.hook_normalized`: with the weight of the norm";
    assert_eq!(words, [expected]);
}

#[test]
fn a_wrong_scale_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(&dir.path().join("run"));
    let rows = run.acts(hook(HOOKS[1]), 0..TOKENS_HERE as u64).unwrap().to_f32();
    let squares = rows.chunks_exact(WIDTH).map(|row| row.iter().map(|x| f64::from(x * x)).sum::<f64>());
    let root_mean_square = (squares.sum::<f64>() / TOKENS_HERE as f64).sqrt();
    for (factor, scale, word) in [
        (root_mean_square, Scale::Unit, "not folded"),
        (1.0 / root_mean_square, Scale::InverseUnit, "folded once too often"),
    ] {
        // A coder for activations times the inverse of the factor, whose files do not say so.
        let mut sae = planted();
        sae.fold_input_scale(factor as f32);
        let found = selftest(&run, &sae, 1, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(found.fits && !found.passed(), "{found:?}");
        assert_eq!((found.best.hooks, found.best.scale), ([hook(HOOKS[1]); 2], scale));
        assert!(found.differences(&sae)[0].contains(word));
    }
}

#[test]
fn a_wrong_bias_is_found() {
    let mut sae = planted();
    sae.apply_b_dec_to_input = false;
    let found = test(&sae);
    assert!(found.fits && !found.passed(), "{found:?}");
    assert!(found.best.subtracts_bias && found.best.scale == Scale::One);
    assert_eq!(found.differences(&sae), ["`b_dec` is subtracted from its input, and its files say that it is not"]);
}

#[test]
fn what_fits_nowhere_is_said() {
    let mut sae = planted();
    // More than there are latents.
    sae.metadata.insert("l0".into(), 100.into());
    let found = test(&sae);
    assert!(!found.fits && !found.passed());
    let wide = Sae {
        w_enc: Matrix::zeros(5, 4),
        w_dec: Matrix::zeros(4, 5),
        b_enc: vec![0.0; 4],
        b_dec: vec![0.0; 5],
        ..Sae::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(&dir.path().join("run"));
    let error = selftest(&run, &wide, 1, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.starts_with("expected a hook point of width 5 to read"), "{error}");
}
