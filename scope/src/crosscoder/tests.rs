//! Do groups of latents, bands of them, and what fires among them come out as plain products say?

use super::*;
use crate::random::Random;

fn site(width: usize) -> Site {
    Site { hook_name: None, width }
}

fn matrix(rows: usize, cols: usize, random: &mut Random) -> Matrix {
    let mut matrix = Matrix::zeros(rows, cols);
    matrix.as_mut_slice().fill_with(|| random.normal() as f32);
    matrix
}

/// Two layers of widths 3 and 4 that write 4 and 2 values, with so many latents each.
fn causal(latents: [usize; 2], activation: Activation, per_group: bool) -> Crosscoder {
    let mut random = Random::new(3);
    let groups = vec![
        LatentGroup {
            w_enc: matrix(3, latents[0], &mut random),
            w_dec: matrix(latents[0], 6, &mut random),
            reads: 0..1,
            writes: 0..2,
        },
        LatentGroup {
            w_enc: matrix(4, latents[1], &mut random),
            // With room for the first site, which is not looked at.
            w_dec: matrix(latents[1], 6, &mut random),
            reads: 1..2,
            writes: 1..2,
        },
    ];
    Crosscoder {
        inputs: vec![site(3), site(4)],
        outputs: vec![site(4), site(2)],
        groups,
        b_enc: (0..latents[0] + latents[1]).map(|_| 0.1 * random.normal() as f32).collect(),
        b_dec: (0..6).map(|_| random.normal() as f32).collect(),
        w_skip: vec![matrix(4, 3, &mut random), matrix(2, 4, &mut random)],
        activation,
        per_group,
        ..Crosscoder::default()
    }
}

fn rows(n: usize) -> Vec<f32> {
    let mut random = Random::new(9);
    (0..n * 7).map(|_| random.normal() as f32).collect()
}

/// Pre-activations of a row, latent by latent.
fn pre_acts(coder: &Crosscoder, row: &[f32]) -> Vec<f32> {
    let mut all = Vec::new();
    for (group, x) in coder.groups.iter().zip([&row[..3], &row[3..]]) {
        for latent in 0..group.n_latents() {
            let z: f32 = x.iter().enumerate().map(|(i, x)| x * group.w_enc.row(i)[latent]).sum();
            all.push(z + coder.b_enc[all.len()]);
        }
    }
    all
}

fn encoded(coder: &Crosscoder, rows: &[f32]) -> SparseRows {
    let mut acts = SparseRows::new();
    coder.encode(rows, &mut Scratch::default(), &mut acts);
    acts
}

#[test]
fn few_fire_of_all_latents_or_of_each_group() {
    let rows = rows(20);
    for per_group in [false, true] {
        let coder = causal([5, 7], Activation::TopK { k: 2 }, per_group);
        for (at, row) in rows.chunks_exact(7).enumerate() {
            let z = pre_acts(&coder, row);
            let largest = |latents: Range<usize>| {
                let mut positive: Vec<usize> = latents.filter(|&latent| z[latent] > 0.0).collect();
                positive.sort_by(|&a, &b| z[b].total_cmp(&z[a]));
                positive.truncate(2);
                positive.sort_unstable();
                positive
            };
            let expected = if per_group { [largest(0..5), largest(5..12)].concat() } else { largest(0..12) };
            let acts = encoded(&coder, &rows);
            let found: Vec<usize> = acts.row(at).0.iter().map(|&latent| latent as usize).collect();
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn bands_of_a_wide_group_are_chosen_among_together() {
    let rows = rows(3);
    for per_group in [false, true] {
        let coder = causal([BAND + 50, 2 * BAND + 9], Activation::TopK { k: 5 }, per_group);
        let acts = encoded(&coder, &rows);
        for (at, row) in rows.chunks_exact(7).enumerate() {
            let z = pre_acts(&coder, row);
            let largest = |latents: Range<usize>| {
                let mut all: Vec<usize> = latents.collect();
                all.sort_by(|&a, &b| z[b].total_cmp(&z[a]));
                all.truncate(5);
                all.sort_unstable();
                all
            };
            let (split, end) = (BAND + 50, 3 * BAND + 59);
            let expected = if per_group { [largest(0..split), largest(split..end)].concat() } else { largest(0..end) };
            let found: Vec<usize> = acts.row(at).0.iter().map(|&latent| latent as usize).collect();
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn each_site_is_written_by_its_own_and_earlier_latents() {
    let rows = rows(4);
    let coder = causal([5, 7], Activation::Relu, false);
    let acts = encoded(&coder, &rows);
    let mut out = vec![0.0; 4 * 6];
    coder.decode(&acts, &rows, &mut out);
    let dense = coder.w_dec();
    for (row, (x, out)) in rows.chunks_exact(7).zip(out.chunks_exact(6)).enumerate() {
        let f = acts.dense_row(row, 12);
        for (i, found) in out.iter().enumerate() {
            let skip: f32 = match i {
                0..4 => x[..3].iter().zip(coder.w_skip[0].row(i)).map(|(a, b)| a * b).sum(),
                _ => x[3..].iter().zip(coder.w_skip[1].row(i - 4)).map(|(a, b)| a * b).sum(),
            };
            let written: f32 = (0..12).map(|latent| f[latent] * dense.row(latent)[i]).sum();
            assert!((found - (written + coder.b_dec[i] + skip)).abs() < 1e-4);
        }
    }
    assert_eq!(dense.row(8)[..4], [0.0; 4], "a later latent does not write the first site");
    assert_eq!(&dense.row(8)[4..], &coder.groups[1].w_dec.row(3)[4..]);
    assert_eq!(*coder.decoder_row(8), *dense.row(8));
    assert_eq!(*coder.decoder_row(2), *dense.row(2));
    assert!(coder.is_causal() && coder.is_online());
    assert!(!causal([5, 7], Activation::TopK { k: 2 }, false).is_online());
    assert!(causal([5, 7], Activation::TopK { k: 2 }, true).is_online());
}

#[test]
fn scales_are_folded_site_by_site() {
    let rows = rows(5);
    let scales: [[f32; 2]; 2] = [[0.5, 4.0], [0.25, 3.0]];
    for activation in [Activation::Relu, Activation::TopK { k: 3 }] {
        let coder = causal([5, 7], activation, false);
        let mut folded = coder.clone();
        folded.fold_scales(&scales[0], &scales[1]);
        let scaled: Vec<f32> = rows.iter().enumerate().map(|(i, x)| x * scales[0][usize::from(i % 7 > 2)]).collect();
        let (acts, expected) = (encoded(&folded, &rows), encoded(&coder, &scaled));
        let (mut out, mut whole) = (vec![0.0; 5 * 6], vec![0.0; 5 * 6]);
        folded.decode(&acts, &rows, &mut out);
        coder.decode(&expected, &scaled, &mut whole);
        for row in 0..5 {
            assert_eq!(acts.row(row).0, expected.row(row).0);
        }
        for (i, (ours, theirs)) in out.iter().zip(&whole).enumerate() {
            let theirs = theirs / scales[1][usize::from(i % 6 > 3)];
            assert!((ours - theirs).abs() < 1e-4 * theirs.abs().max(1.0), "{ours} {theirs}");
        }
    }
}

#[test]
fn every_activation_comes_back_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let numbers = |scale: f32| (0..12).map(|i| scale * i as f32).collect::<Vec<f32>>();
    for (i, activation) in [
        Activation::Relu,
        Activation::TopK { k: 3 },
        Activation::JumpRelu { threshold: numbers(0.1) },
        Activation::Gated { b_mag: numbers(0.2), r_mag: numbers(-0.1) },
    ]
    .into_iter()
    .enumerate()
    {
        let mut coder = causal([5, 7], activation, i % 2 == 1);
        coder.metadata.insert("model_name".into(), "tiny".into());
        let dir = folder.path().join(i.to_string());
        coder.save(&dir).unwrap();
        let again = Crosscoder::load(&dir).unwrap();
        let rows = rows(6);
        let (a, b) = (encoded(&coder, &rows), encoded(&again, &rows));
        assert_eq!(a, b);
        let (mut x, mut y) = (vec![0.0; 36], vec![0.0; 36]);
        coder.decode(&a, &rows, &mut x);
        again.decode(&b, &rows, &mut y);
        assert_eq!(x, y);
        assert_eq!(
            (again.per_group, &again.metadata, &again.activation),
            (coder.per_group, &coder.metadata, &coder.activation)
        );
    }
    // One group that reads and writes every site.
    let mut random = Random::new(5);
    let all = Crosscoder {
        inputs: vec![site(3), site(3)],
        outputs: vec![site(3), site(3)],
        groups: vec![LatentGroup {
            w_enc: matrix(6, 9, &mut random),
            w_dec: matrix(9, 6, &mut random),
            reads: 0..2,
            writes: 0..2,
        }],
        b_enc: vec![0.1; 9],
        b_dec: vec![0.5; 6],
        ..Crosscoder::default()
    };
    let dir = folder.path().join("all");
    all.save(&dir).unwrap();
    assert_eq!(Crosscoder::load(&dir).unwrap().groups, all.groups);
    assert_eq!((all.architecture(), all.is_causal()), ("crosscoder", false));
    assert!(!dir.join("config.yaml").exists(), "circuit-tracer has no such coders");
}
