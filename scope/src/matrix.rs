//! How are weights and batches laid out in memory, and how do they reach libtorch's matrix product?

use std::{ops::Range, sync::Arc};

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;
use tch::{Device, Kind, Tensor};

/// One cache line, which is also what the matrix product wants buffers aligned to.
///
/// libtorch's BLAS may choose another summation order for another alignment, so alignment is part of
/// "resuming continues exactly", and not only of speed.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Numbers in a [`Line`].
const LANES: usize = 16;

/// A row-major f32 matrix `[rows, cols]`: in memory, aligned to 64 bytes, or a part of a mapped file, of which only what is
/// looked at is read. What is changed is brought into memory first.
#[derive(Clone, Default)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    values: Values,
}

#[derive(Clone)]
enum Values {
    Owned(Vec<Line>),
    Mapped { file: Arc<Mmap>, bytes: Range<usize> },
}

impl Default for Values {
    fn default() -> Self {
        Self::Owned(Vec::new())
    }
}

impl Matrix {
    /// A matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        let lines = (rows * cols).div_ceil(LANES);
        Self { rows, cols, values: Values::Owned(vec![Line([0.0; LANES]); lines]) }
    }

    /// The matrix that stands in a mapped file from byte `start` on, if it lies within the file at a multiple of 4 bytes.
    pub(crate) fn mapped(rows: usize, cols: usize, file: &Arc<Mmap>, start: usize) -> Option<Self> {
        let bytes = start..start.checked_add(rows.checked_mul(cols)?.checked_mul(size_of::<f32>())?)?;
        bytemuck::try_cast_slice::<u8, f32>(file.get(bytes.clone())?).ok()?;
        Some(Self { rows, cols, values: Values::Mapped { file: Arc::clone(file), bytes } })
    }

    /// A matrix with these values, row after row.
    ///
    /// # Panics
    /// If there are not `rows * cols` values.
    pub fn from_slice(rows: usize, cols: usize, values: &[f32]) -> Self {
        let mut matrix = Self::zeros(rows, cols);
        matrix.as_mut_slice().copy_from_slice(values);
        matrix
    }

    /// Whether the values stand in a file, and nowhere else.
    pub fn is_mapped(&self) -> bool {
        matches!(self.values, Values::Mapped { .. })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All values, row after row.
    pub fn as_slice(&self) -> &[f32] {
        match &self.values {
            Values::Owned(lines) => &bytemuck::cast_slice(lines)[..self.rows * self.cols],
            Values::Mapped { file, bytes } => bytemuck::cast_slice(&file[bytes.clone()]),
        }
    }

    /// All values, row after row, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        let n = self.rows * self.cols;
        &mut bytemuck::cast_slice_mut(self.lines())[..n]
    }

    fn lines(&mut self) -> &mut Vec<Line> {
        if let Values::Mapped { .. } = self.values {
            *self = Self::from_slice(self.rows, self.cols, self.as_slice());
        }
        match &mut self.values {
            Values::Owned(lines) => lines,
            Values::Mapped { .. } => unreachable!("it was brought into memory above"),
        }
    }

    /// Row `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.as_slice()[index * self.cols..][..self.cols]
    }

    /// Row `index`, to be changed.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        let cols = self.cols;
        &mut self.as_mut_slice()[index * cols..][..cols]
    }

    /// The transpose, `[cols, rows]`.
    #[must_use]
    pub fn transposed(&self) -> Self {
        /// Squares of this side are copied at a time, so that both sides stay in the cache.
        const TILE: usize = 32;
        let mut out = Self::zeros(self.cols, self.rows);
        let (rows, cols) = (self.rows, self.cols);
        let (from, to) = (self.as_slice(), out.as_mut_slice());
        for row in (0..rows).step_by(TILE) {
            for col in (0..cols).step_by(TILE) {
                for r in row..(row + TILE).min(rows) {
                    for c in col..(col + TILE).min(cols) {
                        to[c * rows + r] = from[r * cols + c];
                    }
                }
            }
        }
        out
    }

    /// Makes room for `rows` rows; what is in them is unspecified.
    pub(crate) fn resize_rows(&mut self, rows: usize) {
        self.rows = rows;
        let lines = (rows * self.cols).div_ceil(LANES);
        self.lines().resize(lines, Line([0.0; LANES]));
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix[{}, {}]", self.rows, self.cols)
    }
}

impl PartialEq for Matrix {
    fn eq(&self, other: &Self) -> bool {
        (self.rows, self.cols) == (other.rows, other.cols) && self.as_slice() == other.as_slice()
    }
}

/// Whether the right factor of a product is as it stands in memory or transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// `b` is `[k, n]`.
    Plain,
    /// `b` is `[n, k]`, and its transpose is multiplied.
    Transposed,
}

/// `out[m, n] = a[m, k] · b`, through libtorch, with as many threads as libtorch gives the calling thread
/// (one in a [`crate::workers::Workers`] pool).
///
/// # Panics
/// If the lengths do not fit the shapes.
pub(crate) fn matmul(a: &[f32], b: &[f32], right: Right, out: &mut [f32], [m, k, n]: [usize; 3]) {
    assert_eq!(a.len(), m * k, "the left factor is [m, k]");
    assert_eq!(b.len(), k * n, "the right factor has k * n values");
    assert_eq!(out.len(), m * n, "the product is [m, n]");
    let a = borrow(a, [m, k]);
    let b = match right {
        Right::Plain => borrow(b, [k, n]),
        Right::Transposed => borrow(b, [n, k]).tr(),
    };
    let out = borrow_mut(out, [m, n]);
    // The shapes were checked above, and `out` has its final size, so libtorch writes into it in place.
    let _ = a.mm_out(&out, &b);
}

/// `out[m, n] = a[m, k] · b[.., columns]`, where `b` is `[k, width]`, and `n` is the number of columns: of a mapped `b`, only
/// those columns are read.
///
/// # Panics
/// If the lengths do not fit the shapes.
pub(crate) fn matmul_by_columns(a: &[f32], b: &[f32], width: usize, columns: Range<usize>, out: &mut [f32]) {
    assert!(columns.start < columns.end && columns.end <= width, "columns of the right factor");
    let (k, n) = (b.len() / width, columns.len());
    assert!(k > 0 && b.len() == k * width && a.len().is_multiple_of(k), "rows of k values on the left");
    let m = a.len() / k;
    assert_eq!(out.len(), m * n, "the product is [m, n]");
    // The last value used is b[k - 1, columns.end - 1], which is within `b`.
    let b = over(b[columns.start..].as_ptr(), [k, n], [width, 1]);
    let (a, out) = (borrow(a, [m, k]), borrow_mut(out, [m, n]));
    let _ = a.mm_out(&out, &b);
}

/// `out[.., columns] = a[.., columns] · b`, where `a` and `out` are rows of so many values with the columns that are meant,
/// and `b` is `[k, n]`, or `[n, k]` if it is transposed.
///
/// # Panics
/// If the lengths do not fit the shapes.
pub(crate) fn matmul_between(
    (a, a_width, a_columns): (&[f32], usize, Range<usize>),
    b: &[f32],
    right: Right,
    (out, out_width, out_columns): (&mut [f32], usize, Range<usize>),
) {
    let (m, k, n) = (a.len() / a_width, a_columns.len(), out_columns.len());
    assert!(k > 0 && a_columns.end <= a_width && a.len() == m * a_width, "columns of the left factor");
    assert!(n > 0 && out_columns.end <= out_width && out.len() == m * out_width, "columns of the product");
    assert_eq!(b.len(), k * n, "the right factor has k * n values");
    let b = match right {
        Right::Plain => borrow(b, [k, n]),
        Right::Transposed => borrow(b, [n, k]).tr(),
    };
    // The last value used of each is in its last row, in the last of its columns.
    let a = over(a[a_columns.start..].as_ptr(), [m, k], [a_width, 1]);
    let out = over(out[out_columns.start..].as_mut_ptr(), [m, n], [out_width, 1]);
    let _ = a.mm_out(&out, &b);
}

/// `out[m, n] = a[.., columns]ᵀ · b`, where `a` is `[k, width]`, `b` is `[k, n]`, and `m` is the number of columns.
///
/// # Panics
/// If the lengths do not fit the shapes.
pub(crate) fn matmul_columns(a: &[f32], width: usize, columns: Range<usize>, b: &[f32], out: &mut [f32]) {
    assert!(columns.start < columns.end && columns.end <= width, "columns of the left factor");
    let (k, m) = (a.len() / width, columns.len());
    assert!(k > 0 && a.len() == k * width && b.len().is_multiple_of(k), "as many rows in both factors");
    let n = b.len() / k;
    assert_eq!(out.len(), m * n, "the product is [m, n]");
    // The last value used is a[k - 1, columns.end - 1], which is within `a`.
    let a = over(a[columns.start..].as_ptr(), [m, k], [1, width]);
    let (b, out) = (borrow(b, [k, n]), borrow_mut(out, [m, n]));
    let _ = a.mm_out(&out, &b);
}

/// Numbers as bf16, whose product takes well under half the time where the processor has an instruction for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Halves {
    /// Two of them in each value, for its alignment.
    memory: Matrix,
    n: usize,
}

impl Halves {
    /// Makes room for `n` numbers.
    pub(crate) fn resize(&mut self, n: usize) {
        if self.memory.rows() < n.div_ceil(2) {
            self.memory = Matrix::zeros(n.div_ceil(2), 1);
        }
        self.n = n;
    }

    pub(crate) fn as_slice(&self) -> &[u16] {
        &bytemuck::cast_slice(self.memory.as_slice())[..self.n]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u16] {
        &mut bytemuck::cast_slice_mut(self.memory.as_mut_slice())[..self.n]
    }
}

/// `out[m, n] = a[m, k] · b[n, k]ᵀ`, all in bf16, summed in f32.
///
/// # Panics
/// If the lengths do not fit the shapes.
pub(crate) fn matmul_halves(a: &[u16], b: &[u16], out: &mut [u16], [m, k, n]: [usize; 3]) {
    assert!(a.len() == m * k && b.len() == k * n && out.len() == m * n, "the shapes of the factors and the product");
    let halves =
        |values: *const u16, rows: usize, cols: usize| over_any(values.cast(), [rows, cols], [cols, 1], Kind::BFloat16);
    let (a, b) = (halves(a.as_ptr(), m, k), halves(b.as_ptr(), n, k));
    let out = halves(out.as_mut_ptr(), m, n);
    let _ = a.mm_out(&out, &b.tr());
}

/// A tensor over borrowed memory: no copy. It must not leave this file, and is only read here.
fn borrow(values: &[f32], [rows, cols]: [usize; 2]) -> Tensor {
    over(values.as_ptr(), [rows, cols], [cols, 1])
}

/// A tensor over memory that is borrowed to be written. It must not leave this file.
fn borrow_mut(values: &mut [f32], [rows, cols]: [usize; 2]) -> Tensor {
    over(values.as_mut_ptr(), [rows, cols], [cols, 1])
}

#[expect(
    unsafe_code,
    reason = "copying weights and batches into tensors for every product costs as much as a tenth of it"
)]
fn over_any(values: *const u8, shape: [usize; 2], strides: [usize; 2], kind: Kind) -> Tensor {
    let [shape, strides] = [shape, strides].map(|sizes| sizes.map(|size| size as i64));
    // SAFETY: every caller has checked that shape and strides stay within a live slice, and drops the tensor before it
    // gives the slice back. Only tensors made from an exclusive slice are written.
    unsafe { Tensor::from_blob(values, &shape, &strides, kind, Device::Cpu) }
}

fn over(values: *const f32, shape: [usize; 2], strides: [usize; 2]) -> Tensor {
    over_any(values.cast(), shape, strides, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_by_hand() {
        let a = Matrix::from_slice(2, 3, &[1., 2., 3., 4., 5., 6.]);
        let b = Matrix::from_slice(3, 2, &[1., 0., 0., 1., 1., 1.]);
        let mut out = Matrix::zeros(2, 2);
        let shape = [2, 3, 2];
        matmul(a.as_slice(), b.as_slice(), Right::Plain, out.as_mut_slice(), shape);
        assert_eq!(out.as_slice(), [4., 5., 10., 11.]);
        out.as_mut_slice().fill(0.);
        let b = b.transposed();
        matmul(a.as_slice(), b.as_slice(), Right::Transposed, out.as_mut_slice(), shape);
        assert_eq!(out.as_slice(), [4., 5., 10., 11.]);
    }

    #[test]
    fn a_product_with_some_columns() {
        // Columns 1 and 2 of a [3, 4], times a [3, 1].
        let a: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let mut out = [0.0; 2];
        matmul_columns(&a, 4, 1..3, &[1.0, 10.0, 100.0], &mut out);
        assert_eq!(out, [1.0 + 50.0 + 900.0, 2.0 + 60.0 + 1000.0]);
    }

    #[test]
    fn a_product_with_some_columns_of_the_right_factor() {
        // [2, 3] times columns 1 and 2 of a [3, 4].
        let a = [1.0, 10.0, 100.0, 0.0, 1.0, 0.0];
        let b: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let mut out = [0.0; 4];
        matmul_by_columns(&a, &b, 4, 1..3, &mut out);
        assert_eq!(out, [1.0 + 50.0 + 900.0, 2.0 + 60.0 + 1000.0, 5.0, 6.0]);
    }

    #[test]
    fn a_product_between_columns() {
        // Columns 1 and 2 of a [2, 3], into columns 1 and 2 of a [2, 4].
        let a = [9.0, 1.0, 10.0, 9.0, 2.0, 20.0];
        let mut out = [7.0; 8];
        matmul_between((&a, 3, 1..3), &[1.0, 0.0, 1.0, 1.0], Right::Transposed, (&mut out, 4, 1..3));
        assert_eq!(out, [7.0, 1.0, 11.0, 7.0, 7.0, 2.0, 22.0, 7.0]);
    }

    #[test]
    fn halves_by_hand() {
        // Numbers of few bits are exact in bf16, and so is their product.
        let [mut a, mut b, mut out] = [Halves::default(), Halves::default(), Halves::default()];
        a.resize(6);
        b.resize(6);
        out.resize(4);
        crate::kernels::to_halves(&[1., 2., 3., 4., 5., 6.], a.as_mut_slice());
        crate::kernels::to_halves(&[1., 0., 1., 0., 1., 1.], b.as_mut_slice());
        matmul_halves(a.as_slice(), b.as_slice(), out.as_mut_slice(), [2, 3, 2]);
        let mut sums = [0.0; 4];
        crate::kernels::from_halves(out.as_slice(), &[0.5; 4], &mut sums);
        assert_eq!(sums, [4.5, 5.5, 10.5, 11.5]);
    }

    #[test]
    fn transposing_twice_is_the_identity() {
        let values: Vec<f32> = (0..37 * 70).map(|i| i as f32).collect();
        let matrix = Matrix::from_slice(37, 70, &values);
        assert_eq!(matrix.transposed().row(3)[5], matrix.row(5)[3]);
        assert_eq!(matrix.transposed().transposed(), matrix);
    }

    #[test]
    fn rows_are_aligned() {
        let matrix = Matrix::zeros(4, 16);
        assert_eq!(matrix.row(0).as_ptr().align_offset(64), 0);
        assert_eq!(matrix.row(1).as_ptr().align_offset(64), 0);
    }
}
