//! What numbers do GGUF's blocks stand for?
//!
//! [`FORMATS`] lists every format that this program decodes. A decoder turns one block into its values in f32, with the
//! operations of the reference decoder in the same order, so that the results are the same to the bit.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// The most values that a block of any format has.
pub(super) const MAX_BLOCK: usize = 256;

/// The names of [`FORMATS`], for messages.
pub(super) const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

/// A way to store numbers: `values` of them in `bytes` bytes.
#[derive(Debug)]
pub struct BlockFormat {
    /// ggml's number for the format.
    pub id: u32,
    pub name: &'static str,
    pub values: usize,
    pub bytes: usize,
    /// Decodes one block: `bytes` in, `values` out.
    decode: fn(&[u8], &mut [f32]),
}

#[rustfmt::skip]
pub const FORMATS: &[BlockFormat] = &[
    BlockFormat { id: 0,  name: "F32",  values: 1,   bytes: 4,   decode: f32_block },
    BlockFormat { id: 1,  name: "F16",  values: 1,   bytes: 2,   decode: f16_block },
    BlockFormat { id: 2,  name: "Q4_0", values: 32,  bytes: 18,  decode: q4_0 },
    BlockFormat { id: 3,  name: "Q4_1", values: 32,  bytes: 20,  decode: q4_1 },
    BlockFormat { id: 6,  name: "Q5_0", values: 32,  bytes: 22,  decode: q5_0 },
    BlockFormat { id: 7,  name: "Q5_1", values: 32,  bytes: 24,  decode: q5_1 },
    BlockFormat { id: 8,  name: "Q8_0", values: 32,  bytes: 34,  decode: q8_0 },
    BlockFormat { id: 10, name: "Q2_K", values: 256, bytes: 84,  decode: q2_k },
    BlockFormat { id: 11, name: "Q3_K", values: 256, bytes: 110, decode: q3_k },
    BlockFormat { id: 12, name: "Q4_K", values: 256, bytes: 144, decode: q4_k },
    BlockFormat { id: 13, name: "Q5_K", values: 256, bytes: 176, decode: q5_k },
    BlockFormat { id: 14, name: "Q6_K", values: 256, bytes: 210, decode: q6_k },
    BlockFormat { id: 30, name: "BF16", values: 1,   bytes: 2,   decode: bf16_block },
];

/// ggml's formats that are named in a message but not decoded.
const OTHER_NAMES: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// The format with ggml's number `id`.
pub(super) fn block_format(id: u32) -> Option<&'static BlockFormat> {
    FORMATS.iter().find(|format| format.id == id)
}

/// ggml's name for a format, also for one that is not decoded here.
pub(super) fn ggml_type_name(id: u32) -> String {
    let other = OTHER_NAMES.iter().find(|(other, _)| *other == id).map(|(_, name)| *name);
    let name = block_format(id).map(|format| format.name).or(other);
    name.map_or_else(|| format!("type {id}"), str::to_owned)
}

/// A number type that weights are decoded to.
pub trait Target: bytemuck::Pod + Send + Sync {
    /// The name of the format whose bytes are this type's.
    const STORED_AS: &'static str;
    /// Stores `values`, rounding to nearest even where it must.
    fn store(values: &[f32], out: &mut [Self]);
    /// The slice as f32, where that is what it is, so that nothing is decoded twice over.
    fn as_f32(out: &mut [Self]) -> Option<&mut [f32]>;
}

impl Target for f32 {
    const STORED_AS: &'static str = "F32";

    fn store(values: &[f32], out: &mut [Self]) {
        out.copy_from_slice(values);
    }

    fn as_f32(out: &mut [Self]) -> Option<&mut [f32]> {
        Some(out)
    }
}

impl Target for bf16 {
    const STORED_AS: &'static str = "BF16";

    fn store(values: &[f32], out: &mut [Self]) {
        for (out, value) in out.iter_mut().zip(values) {
            let bits = value.to_bits();
            // Nearest, and of two equally near the even one; a NaN keeps its sign and stays one. Without a branch, so
            // that it becomes vector instructions.
            let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let nan = bits >> 16 | 0x40;
            *out = Self::from_bits(if value.is_nan() { nan } else { nearest } as u16);
        }
    }

    fn as_f32(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
}

/// Values that one task decodes: large enough to be worth handing out, a multiple of every block.
const TASK: usize = 64 * 1024;

impl BlockFormat {
    /// Decodes whole blocks on all threads.
    ///
    /// `blocks` and `out` must hold the same number of values, a whole number of blocks.
    pub fn decode<T: Target>(&self, blocks: &[u8], out: &mut [T]) {
        assert_eq!(blocks.len() / self.bytes * self.values, out.len(), "as many values as the blocks hold");
        let task_bytes = TASK / self.values * self.bytes;
        out.par_chunks_mut(TASK)
            .zip(blocks.par_chunks(task_bytes))
            .for_each(|(out, blocks)| self.decode_task(blocks, out));
    }

    /// Decodes whole blocks on this thread.
    pub(super) fn decode_task<T: Target>(&self, blocks: &[u8], out: &mut [T]) {
        // Formats of one value each are cheaper in groups.
        let group = MAX_BLOCK.max(self.values);
        let group_bytes = group / self.values * self.bytes;
        let mut scratch = [0.0_f32; MAX_BLOCK];
        for (blocks, out) in blocks.chunks(group_bytes).zip(out.chunks_mut(group)) {
            if let Some(out) = T::as_f32(out) {
                self.decode_group(blocks, out);
            } else {
                let scratch = &mut scratch[..out.len()];
                self.decode_group(blocks, scratch);
                T::store(scratch, out);
            }
        }
    }

    fn decode_group(&self, blocks: &[u8], out: &mut [f32]) {
        if self.values == 1 {
            (self.decode)(blocks, out);
            return;
        }
        for (block, out) in blocks.chunks_exact(self.bytes).zip(out.chunks_exact_mut(self.values)) {
            (self.decode)(block, out);
        }
    }
}

// The layouts below are those of ggml's `block_q*` structs. `d` is a block's scale, `m` or `dmin` its offset.

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The three formats of single values take any number of them up to [`MAX_BLOCK`].
fn f32_block(block: &[u8], out: &mut [f32]) {
    for (bytes, out) in block.chunks_exact(4).zip(out) {
        *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
}

fn f16_block(block: &[u8], out: &mut [f32]) {
    let mut halves = [f16::ZERO; MAX_BLOCK];
    let halves = &mut halves[..out.len()];
    for (bytes, half) in block.chunks_exact(2).zip(halves.iter_mut()) {
        *half = f16::from_le_bytes([bytes[0], bytes[1]]);
    }
    halves.convert_to_f32_slice(out);
}

fn bf16_block(block: &[u8], out: &mut [f32]) {
    for (bytes, out) in block.chunks_exact(2).zip(out) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
    }
}

/// `d`, 16 bytes of two 4-bit numbers: low halves first, then high halves.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for (j, q) in block[2..18].iter().enumerate() {
        low[j] = d * (i32::from(q & 15) - 8) as f32;
        high[j] = d * (i32::from(q >> 4) - 8) as f32;
    }
}

/// As [`q4_0`] with an offset instead of the 8.
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for (j, q) in block[4..20].iter().enumerate() {
        low[j] = d * f32::from(q & 15) + m;
        high[j] = d * f32::from(q >> 4) + m;
    }
}

/// The fifth bits of 32 numbers, one bit each.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// `d`, 32 fifth bits, 16 bytes as in [`q4_0`].
fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, fifth) = (half_at(block, 0), fifth_bits(block, 2));
    let (low, high) = out.split_at_mut(16);
    for (j, q) in block[6..22].iter().enumerate() {
        let (a, b) = ((fifth >> j) & 1, (fifth >> (j + 16)) & 1);
        low[j] = d * ((u32::from(q & 15) | a << 4) as i32 - 16) as f32;
        high[j] = d * ((u32::from(q >> 4) | b << 4) as i32 - 16) as f32;
    }
}

/// As [`q5_0`] with an offset instead of the 16.
fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m, fifth) = (half_at(block, 0), half_at(block, 2), fifth_bits(block, 4));
    let (low, high) = out.split_at_mut(16);
    for (j, q) in block[8..24].iter().enumerate() {
        let (a, b) = ((fifth >> j) & 1, (fifth >> (j + 16)) & 1);
        low[j] = d * (u32::from(q & 15) | a << 4) as f32 + m;
        high[j] = d * (u32::from(q >> 4) | b << 4) as f32 + m;
    }
}

/// `d`, 32 signed bytes.
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (q, out) in block[2..34].iter().zip(out) {
        *out = d * f32::from(*q as i8);
    }
}

/// 16 bytes of 4-bit scale and 4-bit offset, 64 bytes of four 2-bit numbers, `d`, `dmin`.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, offset) = (d * f32::from(scales[sub] & 15), dmin * f32::from(scales[sub] >> 4));
        let qs = &qs[two_bit_bytes(sub)..][..16];
        for (q, out) in qs.iter().zip(out) {
            *out = scale * f32::from(q >> two_bit_shift(sub) & 3) - offset;
        }
    }
}

/// 32 bytes of high bits, 64 bytes of four 2-bit numbers, 12 bytes of sixteen 6-bit scales, `d`.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, qs, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        let four = packed[sub % 8] >> (4 * (sub / 8)) & 15;
        let two = packed[8 + sub % 4] >> (2 * (sub / 4)) & 3;
        let scale = d * (i32::from(four | two << 4) - 32) as f32;
        let qs = &qs[two_bit_bytes(sub)..][..16];
        let high = &high[16 * (sub % 2)..][..16];
        for ((q, h), out) in qs.iter().zip(high).zip(out) {
            // The third bit is stored inverted: where it is clear, 4 is subtracted.
            let absent = i32::from(h >> (sub / 2) & 1 == 0);
            *out = scale * (i32::from(q >> two_bit_shift(sub) & 3) - 4 * absent) as f32;
        }
    }
}

/// Where the 16 bytes begin that hold sub-block `sub` of 16 two-bit numbers.
fn two_bit_bytes(sub: usize) -> usize {
    32 * (sub / 8) + 16 * (sub % 2)
}

/// Which two bits of those bytes are its numbers.
fn two_bit_shift(sub: usize) -> usize {
    2 * (sub % 8 / 2)
}

/// Scale and offset number `sub` of the eight pairs of 6-bit numbers in 12 bytes.
fn six_bit_pair(packed: &[u8], sub: usize) -> (f32, f32) {
    let (scale, offset) = if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let both = packed[sub + 4];
        (both & 15 | packed[sub - 4] >> 6 << 4, both >> 4 | packed[sub] >> 6 << 4)
    };
    (f32::from(scale), f32::from(offset))
}

/// `d`, `dmin`, 12 bytes of scales and offsets, 128 bytes of two 4-bit numbers.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, qs) = (&block[4..16], &block[16..144]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = six_bit_pair(packed, sub);
        let (scale, offset) = (d * scale, dmin * offset);
        let shift = 4 * (sub % 2);
        for (q, out) in qs[32 * (sub / 2)..].iter().zip(out) {
            *out = scale * f32::from(q >> shift & 15) - offset;
        }
    }
}

/// As [`q4_k`] with 32 bytes of fifth bits before the 4-bit numbers.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifth, qs) = (&block[4..16], &block[16..48], &block[48..176]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = six_bit_pair(packed, sub);
        let (scale, offset) = (d * scale, dmin * offset);
        let shift = 4 * (sub % 2);
        for ((q, h), out) in qs[32 * (sub / 2)..].iter().zip(fifth).zip(out) {
            *out = scale * f32::from(q >> shift & 15 | (h >> sub & 1) << 4) - offset;
        }
    }
}

/// 128 bytes of low halves, 64 bytes of four 2-bit high parts, 16 signed scales, `d`.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        let (half, quarter, part) = (sub / 8, sub % 8 / 2, 16 * (sub % 2));
        let scale = d * f32::from(scales[sub] as i8);
        let low = &low[64 * half + 32 * (quarter % 2) + part..][..16];
        let high = &high[32 * half + part..][..16];
        let (low_shift, high_shift) = (4 * (quarter / 2), 2 * quarter);
        for ((low, high), out) in low.iter().zip(high).zip(out) {
            let q = low >> low_shift & 15 | (high >> high_shift & 3) << 4;
            *out = scale * (i32::from(q) - 32) as f32;
        }
    }
}

#[cfg(test)]
mod tests;
