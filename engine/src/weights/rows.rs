//! How are single rows of a stored matrix read, without the rest of it?
//!
//! With positional reads (`pread`) that go from the page cache straight into the destination, and not through the memory
//! map of [`Weights`]. Through a map every 4 KB that are touched are a page fault and stay in the resident memory of the
//! process: a row of 18 KB that was not cached took 450 µs through a map with `MADV_RANDOM` and 90 µs with one read,
//! and 200,000 looked-up rows left 1.1 GB resident. Giving pages back in time makes a map slower than reading when the
//! rows are cached, too. Last, a file that was cut short is an error here, and a bus error through a map.

use std::ops::Range;
use std::path::Path;

use data::files::read_at;
use fs_err as fs;
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::quant::Target;
use super::{BlockFormat, Stored, Weights, values_mut};
use crate::error::{Error, Result};

/// The rows of a stored matrix. It has a file handle of its own and outlives [`Weights`].
#[derive(Debug)]
pub struct Rows {
    name: String,
    file: fs::File,
    /// Of the first row in the file, in bytes.
    offset: u64,
    height: usize,
    n_cols: usize,
    format: &'static BlockFormat,
}

impl Weights {
    /// The rows of a matrix, to be read a few at a time. `None` where it is not one run of bytes in a file: in memory.
    pub fn rows(&self, name: &str) -> Result<Option<Rows>> {
        self.stored(name)?.map(|stored| Rows::open(name, &stored)).transpose()
    }
}

impl Rows {
    fn open(name: &str, stored: &Stored<'_>) -> Result<Self> {
        let Stored { path, offset, shape, format } = *stored;
        let &[n_rows, n_cols] = shape else {
            return Err(not_rows(name, &format!("a tensor of shape {shape:?}"), path));
        };
        if !n_cols.is_multiple_of(format.values) {
            let found = format!("rows of {n_cols} in {} blocks of {}", format.name, format.values);
            return Err(not_rows(name, &found, path));
        }
        let file = fs::File::open(path).map_err(|source| Error::io(path, source))?;
        Ok(Self { name: name.to_owned(), file, offset, height: n_rows, n_cols, format })
    }

    /// How many rows there are.
    pub fn n_rows(&self) -> usize {
        self.height
    }

    /// Numbers in a row.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// What a row takes in the file.
    pub fn row_bytes(&self) -> u64 {
        (self.n_cols / self.format.values * self.format.bytes) as u64
    }

    /// The rows of `ids`, in their order, decoded into a tensor `[ids, columns]` that is contiguous and on the CPU.
    pub(crate) fn gather_to(&self, ids: &[u32], out: &mut Tensor) -> Result<()> {
        match out.kind() {
            Kind::Float => self.gather_into(ids, values_mut::<f32>(out)),
            Kind::BFloat16 => self.gather_into(ids, values_mut::<half::bf16>(out)),
            kind => Err(Error::UnsupportedKind { name: self.name.clone(), kind }),
        }
    }

    /// Reads in parallel, in the order of the file, and what is asked for twice once.
    fn gather_into<T: Target>(&self, ids: &[u32], out: &mut [T]) -> Result<()> {
        assert_eq!(out.len(), ids.len() * self.n_cols, "room for every row");
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.height) {
            return Err(Error::UnknownToken { id, vocab_size: self.height });
        }
        let mut rows: Vec<(u32, &mut [T])> = ids.iter().copied().zip(out.chunks_exact_mut(self.n_cols)).collect();
        rows.sort_unstable_by_key(|(id, _)| *id);
        rows.par_chunk_by_mut(|(a, _), (b, _)| a == b).try_for_each_init(Scratch::default, |scratch, same| {
            let Some(((id, first), others)) = same.split_first_mut() else { return Ok(()) };
            self.read(*id as usize, 0..self.n_cols, scratch, first)?;
            for (_, other) in others {
                other.copy_from_slice(first);
            }
            Ok(())
        })
    }

    /// Reads some columns of one row on this thread. `scratch` is room that the next call can use again.
    ///
    /// Columns that begin or end within a block cost what whole blocks cost.
    pub(crate) fn read<T: Target>(
        &self,
        row: usize,
        columns: Range<usize>,
        scratch: &mut Scratch<T>,
        out: &mut [T],
    ) -> Result<()> {
        assert!(row < self.height && columns.end <= self.n_cols && columns.len() == out.len(), "columns of a row");
        let BlockFormat { values, bytes, .. } = *self.format;
        let blocks = columns.start / values..columns.end.div_ceil(values);
        let at = self.offset + row as u64 * self.row_bytes() + (blocks.start * bytes) as u64;
        let io = |source| Error::io(self.file.path(), source);
        if self.format.name == T::STORED_AS && cfg!(target_endian = "little") {
            return read_at(&self.file, bytemuck::cast_slice_mut(out), at).map_err(io);
        }
        scratch.bytes.resize(blocks.len() * bytes, 0);
        read_at(&self.file, &mut scratch.bytes, at).map_err(io)?;
        if columns.start == blocks.start * values && columns.end == blocks.end * values {
            self.format.decode_task(&scratch.bytes, out);
            return Ok(());
        }
        scratch.values.resize(blocks.len() * values, T::zeroed());
        self.format.decode_task(&scratch.bytes, &mut scratch.values);
        out.copy_from_slice(&scratch.values[columns.start - blocks.start * values..][..out.len()]);
        Ok(())
    }
}

/// Room for what one thread reads and decodes.
#[derive(Debug)]
pub(crate) struct Scratch<T> {
    bytes: Vec<u8>,
    values: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self { bytes: Vec::new(), values: Vec::new() }
    }
}

fn not_rows(name: &str, found: &str, path: &Path) -> Error {
    let what = format!("expected a matrix `{name}` whose rows are whole blocks, found {found}");
    Error::Malformed { format: "weight", what, path: path.to_owned() }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use tch::Device;
    use tempfile::TempDir;

    use super::super::FORMATS;
    use super::*;

    const ROWS: usize = 37;
    const COLS: usize = 512;
    /// Somewhere where nothing is aligned.
    const OFFSET: usize = 13;

    /// A matrix of made-up blocks in a file, whole and by rows.
    fn matrix(dir: &TempDir, format: &'static BlockFormat) -> (Vec<u8>, Rows) {
        let row_bytes = COLS / format.values * format.bytes;
        let mut state: u32 = 1;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Without the highest exponents, so that no number is infinite.
            (state >> 24) as u8 & 0x3b
        };
        let file: Vec<u8> = (0..OFFSET + ROWS * row_bytes).map(|_| byte()).collect();
        let path = dir.path().join(format.name);
        fs::write(&path, &file).unwrap();
        let stored = Stored { path: &path, offset: OFFSET as u64, shape: &[ROWS, COLS], format };
        let rows = Rows::open("table", &stored).unwrap();
        assert_eq!(rows.row_bytes() as usize, row_bytes);
        (file[OFFSET..].to_vec(), rows)
    }

    fn whole<T: Target>(format: &BlockFormat, blocks: &[u8]) -> Vec<T> {
        let mut values = vec![T::zeroed(); ROWS * COLS];
        format.decode(blocks, &mut values);
        values
    }

    fn check<T: Target>(format: &BlockFormat, blocks: &[u8], rows: &Rows) {
        let whole = whole::<T>(format, blocks);
        let bits = |values: &[T]| bytemuck::cast_slice::<T, u8>(values).to_vec();
        let ids = [5, 0, 36, 5, 5, 7, 0, 35];
        let mut found = vec![T::zeroed(); ids.len() * COLS];
        rows.gather_into(&ids, &mut found).unwrap();
        for (&id, found) in ids.iter().zip(found.chunks_exact(COLS)) {
            let expected = &whole[id as usize * COLS..][..COLS];
            assert_eq!(bits(found), bits(expected), "{} row {id}", format.name);
        }
        let mut scratch = Scratch::default();
        for columns in [0..COLS, 256..512, 0..256, 8..16, 250..300, 511..512, 40..40] {
            let mut found = vec![T::zeroed(); columns.len()];
            rows.read(3, columns.clone(), &mut scratch, &mut found).unwrap();
            assert_eq!(bits(&found), bits(&whole[3 * COLS..4 * COLS][columns.clone()]), "{} {columns:?}", format.name);
        }
    }

    #[test]
    fn rows_of_every_format_are_those_of_the_whole_tensor() {
        let dir = tempfile::tempdir().unwrap();
        for format in FORMATS {
            let (blocks, rows) = matrix(&dir, format);
            check::<f32>(format, &blocks, &rows);
            check::<bf16>(format, &blocks, &rows);
        }
    }

    fn gather(rows: &Rows, ids: &[u32], kind: Kind) -> Result<Tensor> {
        let mut out = Tensor::empty([ids.len() as i64, rows.n_cols() as i64], (kind, Device::Cpu));
        rows.gather_to(ids, &mut out)?;
        Ok(out)
    }

    #[test]
    fn a_row_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (_, rows) = matrix(&dir, &FORMATS[0]);
        let error = gather(&rows, &[1, 37], Kind::Float).unwrap_err();
        assert_eq!(error.to_string(), "expected a token id below 37, found 37");
        let error = gather(&rows, &[1], Kind::Int64).unwrap_err();
        assert!(matches!(error, Error::UnsupportedKind { .. }), "{error}");
        assert_eq!(gather(&rows, &[], Kind::Float).unwrap().size(), [0, COLS as i64]);
    }

    #[test]
    fn a_file_that_is_cut_short_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (_, rows) = matrix(&dir, &FORMATS[0]);
        fs::OpenOptions::new().write(true).open(dir.path().join("F32")).unwrap().set_len(1000).unwrap();
        let error = gather(&rows, &[0, 30], Kind::Float).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("F32")), "{error:?}");
    }

    #[test]
    fn rows_must_be_whole_blocks() {
        let q8_0 = FORMATS.iter().find(|format| format.name == "Q8_0").unwrap();
        let open = |shape: &[usize]| {
            let stored = Stored { path: Path::new("x"), offset: 0, shape, format: q8_0 };
            Rows::open("table", &stored).unwrap_err().to_string()
        };
        assert!(open(&[4, 40]).contains("found rows of 40 in Q8_0 blocks of 32"), "{}", open(&[4, 40]));
        assert!(open(&[4]).contains("found a tensor of shape [4]"), "{}", open(&[4]));
    }
}
