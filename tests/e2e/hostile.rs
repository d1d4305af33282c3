//! Do the readers of foreign files survive bytes that nobody wrote?
//!
//! Every seed is read as it is, cut short, and with a few bytes changed, by a fixed stream of random numbers.

use std::path::{Path, PathBuf};

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

#[path = "../fuzz/targets.rs"]
mod targets;

/// Inputs for each target.
const INPUTS: usize = 300;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Numbers that headers lie with.
const LIES: [u64; 8] = [0, 1, u64::MAX, 1 << 31, (1 << 32) - 1, 1 << 62, i64::MAX as u64, 0x0101_0101];

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Pcg64) {
    let mut at = |length: usize| random.random_range(0..length.max(1));
    let (place, amount) = (at(bytes.len()), at(64));
    let end = (place + amount).min(bytes.len());
    match at(7) {
        0 => bytes.truncate(place),
        1 => drop(bytes.drain(place..end)),
        2 => {
            let part = bytes[place..end].to_vec();
            drop(bytes.splice(place..place, part));
        }
        3 => {
            let from = at(other.len());
            let part = other[from..(from + amount).min(other.len())].to_vec();
            drop(bytes.splice(place..end, part));
        }
        4 => {
            let lie = LIES[at(LIES.len())].to_le_bytes();
            let width = [1, 2, 4, 8][at(4)];
            for (byte, lie) in bytes[place..].iter_mut().zip(&lie[..width]) {
                *byte = *lie;
            }
        }
        5 => {
            // Digits of text formats.
            if let Some(digit) = bytes[place..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                *digit = b'0' + at(10) as u8;
            }
        }
        _ => {
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << at(8);
            }
        }
    }
}

#[test]
fn readers_survive_any_bytes() {
    for target in &targets::TARGETS {
        // Shown where it fails.
        eprintln!("{}", target.name);
        let (scratch, seeds) = (target.scratch(), target.seeds());
        let mut random = Pcg64::seed_from_u64(7);
        for seed in &seeds {
            scratch.read(seed);
        }
        scratch.read(&[]);
        for input in 0..INPUTS {
            let mut bytes = seeds[input % seeds.len()].clone();
            let other = &seeds[random.next_u32() as usize % seeds.len()];
            for _ in 0..=random.random_range(0..6) {
                change(&mut bytes, other, &mut random);
            }
            scratch.read(&bytes);
        }
    }
}
