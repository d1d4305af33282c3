//! Which inner loops touch only the latents that fire?
//!
//! Everything here works on contiguous rows of `d_in` values, so that the decoder, and the transposed encoder, are read
//! row by row. Each kernel is compiled for the baseline and for AVX2 and AVX-512 with fused multiply-add, and the widest
//! that the processor has is chosen when it is called: with the baseline alone, these loops were the bottleneck of training.

use std::cmp::Ordering;

/// Compiles a body three times, and picks at run time. `FMA` says whether fused multiply-add is there.
macro_rules! kernel {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $kind),*) $(-> $out)? {
            // Compiled anew with the features of each caller.
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $kind),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx2,fma")]
                fn avx512($($arg: $kind),*) $(-> $out)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $kind),*) $(-> $out)? {
                    body::<true>($($arg),*)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    if is_x86_feature_detected!("avx512f") {
                        #[expect(unsafe_code, reason = "vector instructions beyond the baseline, three times as fast")]
                        // SAFETY: the features were detected on the line above.
                        return unsafe { avx512($($arg),*) };
                    }
                    #[expect(unsafe_code, reason = "vector instructions beyond the baseline, twice as fast")]
                    // SAFETY: the features were detected above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body::<false>($($arg),*)
        }
    };
}

/// `a * b + c`, fused where the processor does that in one instruction (elsewhere it would be a library call).
#[inline(always)]
#[expect(clippy::inline_always, reason = "must be compiled with the features of its caller")]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Row `index` of a row-major table of rows of `width` values.
#[inline(always)]
#[expect(clippy::inline_always, reason = "must be compiled with the features of its caller")]
fn row(table: &[f32], index: u32, width: usize) -> &[f32] {
    &table[index as usize * width..][..width]
}

kernel! {
    /// `out += Σ_i weights[i] · table[rows[i]]`, where `table` has rows as long as `out`.
    fn weighted_sum(rows: &[u32], weights: &[f32], table: &[f32], out: &mut [f32]) {
        let width = out.len();
        let mut quads = rows.chunks_exact(4).zip(weights.chunks_exact(4));
        for (r, w) in &mut quads {
            // Four rows at a time, so that `out` is loaded and stored once for four products.
            let (a, b) = (row(table, r[0], width), row(table, r[1], width));
            let (c, d) = (row(table, r[2], width), row(table, r[3], width));
            for i in 0..width {
                let sum = fma::<FMA>(w[0], a[i], out[i]);
                let sum = fma::<FMA>(w[1], b[i], sum);
                let sum = fma::<FMA>(w[2], c[i], sum);
                out[i] = fma::<FMA>(w[3], d[i], sum);
            }
        }
        let done = rows.len() / 4 * 4;
        for (&r, &w) in rows[done..].iter().zip(&weights[done..]) {
            let a = row(table, r, width);
            for i in 0..width {
                out[i] = fma::<FMA>(w, a[i], out[i]);
            }
        }
    }
}

kernel! {
    /// `out[i] = x · table[rows[i]]`, where `table` has rows as long as `x`.
    fn dots(x: &[f32], rows: &[u32], table: &[f32], out: &mut [f32]) {
        for (out, &r) in out.iter_mut().zip(rows) {
            *out = dot_body::<FMA>(x, row(table, r, x.len()));
        }
    }
}

kernel! {
    /// `a · b`.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        dot_body::<FMA>(a, b)
    }
}

// Compiled anew with the features of each caller.
#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    /// Independent partial sums: enough to hide the latency of an addition at any vector width.
    const SUMS: usize = 64;
    let mut sums = [0.0_f32; SUMS];
    let (a_blocks, a_rest) = a.as_chunks::<SUMS>();
    let (b_blocks, b_rest) = b.as_chunks::<SUMS>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..SUMS {
            sums[i] = fma::<FMA>(a[i], b[i], sums[i]);
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[i] = fma::<FMA>(a, b, sums[i]);
    }
    let mut half = SUMS / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

kernel! {
    /// `out += x`.
    fn add(x: &[f32], out: &mut [f32]) {
        let _ = FMA;
        for (out, &x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }
}

kernel! {
    /// Appends `(value, index)` of every value above `floor` from `start` on, until the end or until at least `limit` are
    /// found; returns where to go on. NaN is above nothing.
    fn scan_above(values: &[f32], start: usize, floor: f32, limit: usize, found: &mut Vec<(f32, u32)>) -> usize {
        /// Most blocks of this size have nothing above the floor, and are passed over by vector compares.
        const BLOCK: usize = 32;
        let _ = FMA;
        let mut at = start;
        let (blocks, rest) = values[start..].as_chunks::<BLOCK>();
        for block in blocks {
            if found.len() >= limit {
                return at;
            }
            let mut any = 0_u32;
            for &value in block {
                any |= u32::from(value > floor);
            }
            if any != 0 {
                for (offset, &value) in block.iter().enumerate() {
                    if value > floor {
                        found.push((value, (at + offset) as u32));
                    }
                }
            }
            at += BLOCK;
        }
        for (offset, &value) in rest.iter().enumerate() {
            if value > floor {
                found.push((value, (at + offset) as u32));
            }
        }
        values.len()
    }
}

/// What one step of Adam needs beside the moments (Kingma & Ba, arXiv 1412.6980, with the corrections of the bias moved
/// into the two factors).
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) epsilon: f32,
    /// Learning rate / (1 − β₁ᵗ).
    pub(crate) rate: f32,
    /// 1 / √(1 − β₂ᵗ).
    pub(crate) root_scale: f32,
    /// What the gradient is multiplied with before it is used: the clipping of its norm.
    pub(crate) gradient_scale: f32,
}

kernel! {
    /// One step of Adam for a row of weights.
    fn adam(weights: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], step: AdamStep) {
        let n = weights.len();
        let (m, v, gradient) = (&mut m[..n], &mut v[..n], &gradient[..n]);
        let (rest1, rest2) = (1.0 - step.beta1, 1.0 - step.beta2);
        for i in 0..n {
            let g = gradient[i] * step.gradient_scale;
            m[i] = fma::<FMA>(step.beta1, m[i], rest1 * g);
            v[i] = fma::<FMA>(step.beta2, v[i], rest2 * g * g);
            let root = fma::<FMA>(v[i].sqrt(), step.root_scale, step.epsilon);
            weights[i] -= step.rate * m[i] / root;
        }
    }
}

kernel! {
    /// `x` as bf16, to the nearest, and of two as near to the even one. Not for NaN.
    fn to_halves(x: &[f32], out: &mut [u16]) {
        let _ = FMA;
        for (out, x) in out.iter_mut().zip(x) {
            let bits = x.to_bits();
            *out = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        }
    }
}

kernel! {
    /// `out = x + bias`, where `x` is bf16.
    fn from_halves(x: &[u16], bias: &[f32], out: &mut [f32]) {
        let _ = FMA;
        let n = out.len();
        let (x, bias) = (&x[..n], &bias[..n]);
        for i in 0..n {
            out[i] = f32::from_bits(u32::from(x[i]) << 16) + bias[i];
        }
    }
}

kernel! {
    /// `out = scale · x − bias`.
    fn center(x: &[f32], scale: f32, bias: &[f32], out: &mut [f32]) {
        let n = out.len();
        let (x, bias) = (&x[..n], &bias[..n]);
        for i in 0..n {
            out[i] = fma::<FMA>(scale, x[i], -bias[i]);
        }
    }
}

kernel! {
    /// `x *= factor`.
    fn scale(x: &mut [f32], factor: f32) {
        let _ = FMA;
        for x in x {
            *x *= factor;
        }
    }
}

kernel! {
    /// `sums += x`, and the squared norm of `x`, both in f64.
    fn moments(x: &[f32], sums: &mut [f64]) -> f64 {
        const LANES: usize = 8;
        let _ = FMA;
        let mut squares = [0.0_f64; LANES];
        let (blocks, rest) = x.as_chunks::<LANES>();
        let (sum_blocks, sum_rest) = sums.as_chunks_mut::<LANES>();
        for (block, sums) in blocks.iter().zip(sum_blocks) {
            for i in 0..LANES {
                let x = f64::from(block[i]);
                sums[i] += x;
                squares[i] += x * x;
            }
        }
        for (&x, sum) in rest.iter().zip(sum_rest) {
            let x = f64::from(x);
            *sum += x;
            squares[0] += x * x;
        }
        squares.iter().sum()
    }
}

/// Larger values first, and of equal values the one with the lower index.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that sorting wants")]
pub(crate) fn by_value(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect()
    }

    #[test]
    fn dot_and_sums_are_what_they_say() {
        for n in [1, 7, 64, 65, 200] {
            let (a, b) = (numbers(n), numbers(n + 3)[3..].to_vec());
            let plain: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            assert!((f64::from(dot(&a, &b)) - plain).abs() < 1e-4, "n = {n}");
        }
        let table = numbers(9 * 5);
        let (rows, weights) = ([8, 0, 3, 3, 1, 7], [1.0, -2.0, 0.5, 0.25, 3.0, 1.5]);
        let mut out = vec![1.0; 5];
        weighted_sum(&rows, &weights, &table, &mut out);
        for (i, &out) in out.iter().enumerate() {
            let plain = rows.iter().zip(weights).map(|(&r, w)| w * table[r as usize * 5 + i]);
            assert!((out - 1.0 - plain.sum::<f32>()).abs() < 1e-5);
        }
        let mut out = [0.0; 6];
        dots(&table[..5], &rows, &table, &mut out);
        assert!((out[1] - dot(&table[..5], &table[..5])).abs() < 1e-6);
    }

    #[test]
    fn scanning_stops_and_goes_on() {
        let mut values = vec![0.0; 100];
        for i in [0, 31, 32, 63, 64, 97] {
            values[i] = 1.0 + i as f32;
        }
        values[40] = f32::NAN;
        let mut found = Vec::new();
        let next = scan_above(&values, 0, 0.5, 2, &mut found);
        assert_eq!((next, found.len()), (32, 2));
        let next = scan_above(&values, next, 33.0, usize::MAX, &mut found);
        assert_eq!(next, 100);
        let indices: Vec<u32> = found.iter().map(|&(_, index)| index).collect();
        assert_eq!(indices, [0, 31, 63, 64, 97]);
    }

    #[test]
    fn adam_moves_by_the_rate_at_the_first_step() {
        let (mut w, mut m, mut v) = ([1.0, 1.0], [0.0; 2], [0.0; 2]);
        let step = AdamStep {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            rate: 0.01 / (1.0 - 0.9),
            root_scale: 1.0 / (1.0_f32 - 0.999).sqrt(),
            gradient_scale: 1.0,
        };
        adam(&mut w, &mut m, &mut v, &[3.0, -0.001], step);
        assert!((w[0] - 0.99).abs() < 1e-6 && (w[1] - 1.01).abs() < 1e-5);
    }

    #[test]
    fn moments_in_f64() {
        let mut sums = vec![0.0; 11];
        let x = numbers(11);
        let square = moments(&x, &mut sums) + moments(&x, &mut sums);
        let plain: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        assert!((square - 2.0 * plain).abs() < 1e-12);
        assert!((sums[10] - 2.0 * f64::from(x[10])).abs() < 1e-12);
    }
}
