//! How do rows go from one number format to another?
//!
//! Everything is little endian, as in the files.

use bytes::Bytes;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::Dtype;

/// The largest finite f16.
pub const F16_MAX: f32 = 65_504.0;

/// Rows in the format in which they are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// `[row, width]` numbers.
    pub bytes: Bytes,
    /// `[row]` for i8, otherwise empty: a number is `scale × stored`.
    pub scales: Vec<f32>,
    /// How many numbers did not fit: beyond ±65,504 for f16, not finite for i8.
    pub saturated: u64,
}

/// Converts `[row, width]` numbers from one format to another; the same format costs nothing.
///
/// bf16 rounds to nearest, ties to even. f16 does too, and clamps to ±65,504 what would become infinite.
/// i8 takes `scale = max|x| / 127` of each row.
/// `source_scales` are the scales of an i8 source, empty for the others.
pub fn convert(source: Dtype, target: Dtype, width: usize, rows: &Bytes, source_scales: &[f32]) -> Converted {
    if source == target {
        return Converted { bytes: rows.clone(), scales: source_scales.to_vec(), saturated: 0 };
    }
    let mut numbers = Vec::with_capacity(rows.len() / source.size());
    append_f32(source, width, rows, source_scales, &mut numbers);
    from_f32(target, width, &numbers)
}

/// Converts `[row, width]` f32 numbers to a storage format.
pub fn from_f32(target: Dtype, width: usize, numbers: &[f32]) -> Converted {
    match target {
        Dtype::F32 => Converted { bytes: Bytes::from(f32_bytes(numbers)), scales: Vec::new(), saturated: 0 },
        Dtype::Bf16 => {
            let halves: Vec<u16> = numbers.iter().map(|&x| bf16_bits(x)).collect();
            Converted { bytes: Bytes::from(u16_bytes(&halves)), scales: Vec::new(), saturated: 0 }
        }
        Dtype::F16 => to_f16(numbers),
        Dtype::I8 => to_i8(width, numbers),
    }
}

/// Appends stored rows to `out` as f32, whatever the format.
///
/// `scales` holds one number a row for i8 and is ignored otherwise.
pub fn append_f32(dtype: Dtype, width: usize, bytes: &[u8], scales: &[f32], out: &mut Vec<f32>) {
    match dtype {
        Dtype::F32 => out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        Dtype::Bf16 => {
            out.extend(
                bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)),
            );
        }
        Dtype::F16 => {
            let halves: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            let start = out.len();
            out.resize(start + halves.len(), 0.0);
            halves.convert_to_f32_slice(&mut out[start..]);
        }
        Dtype::I8 => {
            for (row, &scale) in bytes.chunks_exact(width.max(1)).zip(scales) {
                out.extend(row.iter().map(|&q| f32::from(q as i8) * scale));
            }
        }
    }
}

/// Round to nearest, ties to even; NaN stays NaN.
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if x.is_nan() { (bits >> 16) as u16 | 0x0040 } else { rounded }
}

fn to_f16(numbers: &[f32]) -> Converted {
    // Above this, rounding to nearest gives infinity.
    const OVERFLOW: f32 = 65_520.0;
    let mut saturated = 0;
    let clamped: Vec<f32> = numbers
        .iter()
        .map(|&x| {
            saturated += u64::from(x.abs() >= OVERFLOW);
            // NaN stays NaN.
            x.clamp(-F16_MAX, F16_MAX)
        })
        .collect();
    let mut halves = vec![f16::ZERO; clamped.len()];
    halves.convert_from_f32_slice(&clamped);
    let bits: Vec<u16> = halves.iter().map(|h| h.to_bits()).collect();
    Converted { bytes: Bytes::from(u16_bytes(&bits)), scales: Vec::new(), saturated }
}

fn to_i8(width: usize, numbers: &[f32]) -> Converted {
    let width = width.max(1);
    let mut bytes = Vec::with_capacity(numbers.len());
    let mut scales = Vec::with_capacity(numbers.len() / width);
    let mut saturated = 0;
    for row in numbers.chunks_exact(width) {
        let max = row.iter().filter(|x| x.is_finite()).fold(0.0f32, |max, x| max.max(x.abs()));
        // The quotient of a subnormal maximum would lose its last bits or become zero.
        let scale = if max == 0.0 { 0.0 } else { (max / 127.0).max(f32::MIN_POSITIVE) };
        saturated += row.iter().filter(|x| !x.is_finite()).count() as u64;
        bytes.extend(row.iter().map(|&x| {
            let q = if scale == 0.0 && x == 0.0 { 0.0 } else { (x / scale).round_ties_even() };
            // `as` takes NaN to 0 and infinities to the ends.
            (q.clamp(-127.0, 127.0) as i8) as u8
        }));
        scales.push(scale);
    }
    Converted { bytes: Bytes::from(bytes), scales, saturated }
}

fn f32_bytes(numbers: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(numbers.len() * 4);
    for x in numbers {
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes
}

fn u16_bytes(numbers: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(numbers.len() * 2);
    for x in numbers {
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn round_trip(dtype: Dtype, width: usize, numbers: &[f32]) -> (Vec<f32>, u64) {
        let stored = from_f32(dtype, width, numbers);
        let mut out = Vec::new();
        append_f32(dtype, width, &stored.bytes, &stored.scales, &mut out);
        (out, stored.saturated)
    }

    #[test]
    fn bf16_rounds_to_nearest_even_like_half() {
        let mut numbers = vec![0.0, -0.0, 1.0, -1.5, 3.0e38, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, 1.0e-40];
        // Halfway between two bf16, with an even and an odd lower neighbor.
        numbers.extend([f32::from_bits(0x3f80_8000), f32::from_bits(0x3f81_8000), f32::from_bits(0x3f80_8001)]);
        numbers.extend((0..1000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761) & 0xbf7f_ffff)));
        let expected: Vec<f32> = numbers.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        assert_eq!(round_trip(Dtype::Bf16, 1, &numbers), (expected, 0));
        assert!(round_trip(Dtype::Bf16, 1, &[f32::from_bits(0x7f80_0001)]).0[0].is_nan());
    }

    #[test]
    fn f16_saturates_and_counts() {
        let (out, saturated) = round_trip(Dtype::F16, 1, &[65_504.0, 65_519.0, 65_520.0, -1.0e9, f32::INFINITY, 0.1]);
        assert_eq!(out[..5], [F16_MAX, F16_MAX, F16_MAX, -F16_MAX, F16_MAX]);
        assert_eq!(out[5], f16::from_f32(0.1).to_f32());
        assert_eq!(saturated, 3);
        assert!(round_trip(Dtype::F16, 1, &[f32::NAN]).0[0].is_nan());
    }

    #[test]
    fn i8_keeps_rows_within_half_a_step() {
        let numbers = [1.0, -127.0, 63.4, 0.0, 0.0, 0.0, 1e-3, -2e-3, 5e-4];
        let (out, saturated) = round_trip(Dtype::I8, 3, &numbers);
        assert_eq!(saturated, 0);
        for (row, back) in numbers.chunks(3).zip(out.chunks(3)) {
            let step = row.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
            for (x, y) in row.iter().zip(back) {
                assert!((x - y).abs() <= 0.5 * step * 1.001, "{x} {y}");
            }
        }
        assert_eq!(round_trip(Dtype::I8, 2, &[f32::INFINITY, 1.0]), (vec![1.0, 1.0], 1));
    }

    #[test]
    fn the_same_format_is_the_same_buffer() {
        let rows = Bytes::from(vec![1u8; 16]);
        assert_eq!(convert(Dtype::F32, Dtype::F32, 2, &rows, &[]).bytes.as_ptr(), rows.as_ptr());
        let widened = convert(Dtype::Bf16, Dtype::F32, 2, &Bytes::from(vec![0x80, 0x3f, 0x00, 0xc0]), &[]);
        assert_eq!(widened.bytes, Bytes::from([1.0f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat()));
    }
}
