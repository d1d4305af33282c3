use fs_err as fs;
use half::bf16;

use super::*;

/// The blocks of a format and the values that the reference decodes them to.
fn fixture(name: &str) -> (Vec<u8>, Vec<f32>) {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/quant");
    let blocks = fs::read(format!("{dir}/{name}.bin")).unwrap();
    let values = fs::read(format!("{dir}/{name}.f32")).unwrap();
    let values = values.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    (blocks, values)
}

#[test]
fn every_format_decodes_to_the_bits_of_the_reference() {
    for format in FORMATS {
        let (blocks, expected) = fixture(format.name);
        let mut decoded = vec![f32::NAN; expected.len()];
        format.decode(&blocks, &mut decoded);
        for (at, (decoded, expected)) in decoded.iter().zip(&expected).enumerate() {
            // -0.0 and 0.0 are the same number; the reference's integers have no negative zero.
            let same = decoded.to_bits() == expected.to_bits() || (*decoded == 0.0 && *expected == 0.0);
            assert!(same, "{} value {at}: expected {expected:e}, found {decoded:e}", format.name);
        }
    }
}

#[test]
fn bf16_is_the_rounded_f32() {
    for format in FORMATS {
        let (blocks, expected) = fixture(format.name);
        let mut decoded = vec![bf16::NAN; expected.len()];
        format.decode(&blocks, &mut decoded);
        let rounded: Vec<bf16> = expected.iter().map(|&value| bf16::from_f32(value)).collect();
        assert_eq!(decoded, rounded, "{}", format.name);
    }
}

#[test]
fn rounding_to_bf16_is_that_of_the_half_crate() {
    let mut numbers: Vec<f32> = (0..=u16::MAX)
        .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| u32::from(high) << 16 | low))
        .map(f32::from_bits)
        .collect();
    numbers.extend([f32::MAX, f32::MIN_POSITIVE, f32::EPSILON]);
    let mut rounded = vec![bf16::ZERO; numbers.len()];
    bf16::store(&numbers, &mut rounded);
    for (number, rounded) in numbers.iter().zip(rounded) {
        assert_eq!(rounded.to_bits(), bf16::from_f32(*number).to_bits(), "{number:e}");
    }
}

#[test]
fn many_tasks_are_one() {
    for format in FORMATS {
        let (blocks, expected) = fixture(format.name);
        // More than two tasks, with a last one that is not full.
        let times = 2 * TASK / expected.len() + 3;
        let mut decoded = vec![0.0_f32; times * expected.len()];
        format.decode(&blocks.repeat(times), &mut decoded);
        for part in decoded.chunks_exact(expected.len()) {
            assert_eq!(part, expected, "{}", format.name);
        }
    }
}

#[test]
fn the_table_is_consistent() {
    let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
    for name in SUPPORTED.split(", ") {
        assert!(names.contains(&name), "{name}");
    }
    assert_eq!(SUPPORTED.split(", ").count(), names.len());
    for format in FORMATS {
        assert!(
            format.values <= MAX_BLOCK && MAX_BLOCK.is_multiple_of(format.values) && TASK.is_multiple_of(format.values)
        );
    }
    assert_eq!(ggml_type_name(23), "IQ4_XS");
    assert_eq!(ggml_type_name(14), "Q6_K");
    assert_eq!(ggml_type_name(99), "type 99");
}
