//! How is a `.npz` of NumPy read without trusting it?
//!
//! A ZIP of `.npy` members, stored or deflated. Numbers are read, objects are refused: those are pickled. Nothing takes more
//! memory than the bytes of the file can stand for: a member that cannot be mapped, being deflated, not aligned or not f32, is
//! read as a stream into the numbers that it becomes, without a copy of its bytes. A deflated coder of Gemma Scope with a
//! million latents (two matrices of 1,048,576 × 2304) so takes its 19.3 GB in f32 and at most [`BUFFER`] numbers beside them.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use fs_err as fs;
use memmap2::Mmap;
use zip::{CompressionMethod, ZipArchive};

use crate::{
    error::{Error, Result},
    matrix::Matrix,
};

/// The longest header that is read; NumPy's own are 128 bytes.
const MAX_HEADER: usize = 1 << 16;
/// The most that a byte of a deflated member can become.
const MAX_INFLATION: u64 = 1032;
/// What every `.npy` begins with.
const MAGIC: &[u8] = b"\x93NUMPY";
/// Numbers that are read at a time; of a matrix with its first axis fastest, one column at least.
pub const BUFFER: usize = 1 << 20;

/// A kind of number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    F16,
    F32,
    F64,
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// The header of a `.npy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The lengths of the axes.
    pub shape: Vec<usize>,
    kind: Kind,
    /// The first axis runs fastest.
    fortran_order: bool,
    /// Where the numbers begin.
    data_start: usize,
}

impl Header {
    /// Bytes of the numbers.
    fn n_bytes(&self) -> Option<usize> {
        let n = self.shape.iter().try_fold(1_usize, |n, &length| n.checked_mul(length))?;
        n.checked_mul(self.kind.bytes())
    }
}

/// Reads the header with which the bytes of a `.npy` begin. What is wrong is said in words.
pub fn parse_header(bytes: &[u8]) -> Result<Header, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("expected the beginning of an `.npy`, found other bytes")?;
    let (length, at) = match rest {
        [1, _, a, b, ..] => (usize::from(u16::from_le_bytes([*a, *b])), MAGIC.len() + 4),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, MAGIC.len() + 6),
        _ => return Err("expected version 1, 2 or 3 of `.npy`, found another or an end".into()),
    };
    if length > MAX_HEADER {
        return Err(format!("expected a header of at most {MAX_HEADER} bytes, found {length}"));
    }
    let text = bytes.get(at..at + length).ok_or("expected a whole header, found an end")?;
    let text = std::str::from_utf8(text).map_err(|_not_utf8| "expected a header of text, found other bytes")?;
    let field = |name: &str| {
        let at =
            text.find(&format!("'{name}':")).ok_or_else(|| format!("expected `{name}` in the header, found none"))?;
        Ok::<_, String>(text[at + name.len() + 3..].trim_start())
    };
    let descr = field("descr")?.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map(|(descr, _)| descr);
    let kind = match descr {
        Some("<f2" | "=f2") => Kind::F16,
        Some("<f4" | "=f4") => Kind::F32,
        Some("<f8" | "=f8") => Kind::F64,
        Some(objects) if objects.contains('O') => {
            return Err("expected numbers, found objects, which are pickled and never opened here".into());
        }
        other => {
            return Err(format!("expected numbers as `<f2`, `<f4` or `<f8`, found `{}`", other.unwrap_or("a list")));
        }
    };
    let order = field("fortran_order")?;
    let fortran_order = order.starts_with("True");
    if !fortran_order && !order.starts_with("False") {
        return Err("expected `fortran_order` as True or False, found another value".into());
    }
    let inside = field("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).map(|(inside, _)| inside);
    let lengths = inside.ok_or("expected `shape` in brackets, found another value")?.split(',').map(str::trim);
    let shape = lengths
        .filter(|length| !length.is_empty())
        .map(|length| length.parse().map_err(|_not_a_number| format!("expected a length in `shape`, found `{length}`")))
        .collect::<Result<Vec<usize>, String>>()?;
    let header = Header { shape, kind, fortran_order, data_start: at + length };
    header.n_bytes().ok_or_else(|| format!("expected a shape that fits memory, found {:?}", header.shape))?;
    Ok(header)
}

/// A `.npz`, mapped.
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    bytes: Arc<Mmap>,
    /// By name, without `.npy`.
    members: BTreeMap<String, Member>,
}

#[derive(Debug)]
struct Member {
    header: Header,
    index: usize,
    /// Where the member's bytes stand in the file, if they stand there as they are.
    stored: Option<usize>,
}

impl Npz {
    /// Maps a file and reads the headers of its members.
    pub fn open(path: &Path) -> Result<Self> {
        let damaged = |cause: String| Error::Npz { cause, path: path.into() };
        let file = fs::File::open(path)?;
        #[expect(unsafe_code, reason = "weights of many gigabytes are not read before they are wanted")]
        // SAFETY: the map is only read, and downloaded files are replaced by rename, never changed in place.
        let bytes = unsafe { Mmap::map(file.file()) }?;
        let mut archive = ZipArchive::new(Cursor::new(&bytes[..])).map_err(|cause| damaged(cause.to_string()))?;
        let mut members = BTreeMap::new();
        for index in 0..archive.len() {
            let mut member = archive.by_index(index).map_err(|cause| damaged(cause.to_string()))?;
            let file_name = member.name().map_err(|cause| damaged(cause.to_string()))?.to_string();
            let Some(name) = file_name.strip_suffix(".npy") else { continue };
            let wrong = |cause: String| damaged(format!("{cause}, in its member `{name}`"));
            let stored = member.compression() == CompressionMethod::Stored;
            let start = member.data_start().and_then(|start| usize::try_from(start).ok());
            let (size, compressed) = (member.size(), member.compressed_size());
            let mut head = Vec::new();
            let most = (MAGIC.len() + 6 + MAX_HEADER) as u64;
            member.by_ref().take(most).read_to_end(&mut head).map_err(|cause| wrong(cause.to_string()))?;
            let header = parse_header(&head).map_err(wrong)?;
            let expected = header.n_bytes().and_then(|n| n.checked_add(header.data_start));
            let inflation = if stored { 1 } else { MAX_INFLATION };
            if expected.map(|n| n as u64) != Some(size) || size > compressed.saturating_mul(inflation) {
                return Err(wrong(format!(
                    "expected as many bytes as the shape {:?} needs, found {}",
                    header.shape,
                    if stored { size.min(compressed) } else { size }
                )));
            }
            let stored =
                start.filter(|start| stored && bytes.get(*start..start.saturating_add(size as usize)).is_some());
            members.insert(name.to_owned(), Member { header, index, stored });
        }
        drop(archive);
        Ok(Self { path: path.into(), bytes: Arc::new(bytes), members })
    }

    /// The names of the arrays.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// The shape of an array.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.member(name)?.header.shape)
    }

    fn member(&self, name: &str) -> Result<&Member> {
        self.members.get(name).ok_or_else(|| Error::MissingTensor {
            name: name.into(),
            found: format!("{:?}", self.names().collect::<Vec<_>>()),
            path: self.path.clone(),
        })
    }

    fn member_of_shape(&self, name: &str, shape: &[usize]) -> Result<&Member> {
        let member = self.member(name)?;
        if member.header.shape == shape {
            return Ok(member);
        }
        let (expected, found) = (shape.into(), member.header.shape.clone());
        Err(Error::Shape { name: name.into(), expected, found, path: self.path.clone() })
    }

    /// The array `name`, which must have this shape, as f32, the last axis fastest.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let n = self.member_of_shape(name, shape)?.header.shape.iter().product();
        let mut values = vec![0.0; n];
        self.read(name, shape, &mut values)?;
        Ok(values)
    }

    /// The array `name` of shape `[rows, cols]`: as it lies in the file where that is possible, without reading it.
    pub fn matrix(&self, name: &str, shape @ [rows, cols]: [usize; 2]) -> Result<Matrix> {
        let member = self.member_of_shape(name, &shape)?;
        if let (Some(start), Kind::F32, false) = (member.stored, member.header.kind, member.header.fortran_order)
            && let Some(matrix) = Matrix::mapped(rows, cols, &self.bytes, start + member.header.data_start)
        {
            return Ok(matrix);
        }
        let mut matrix = Matrix::zeros(rows, cols);
        self.read(name, &shape, matrix.as_mut_slice())?;
        Ok(matrix)
    }

    /// Reads an array of this shape as a stream, the last axis fastest in `out`. Its sum is compared with what stands in the file.
    fn read(&self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<()> {
        let Member { header, index, .. } = self.member_of_shape(name, shape)?;
        let damaged = |cause: String| Error::Npz { cause, path: self.path.clone() };
        let wrong = |cause: &dyn std::fmt::Display| damaged(format!("{cause}, in its member `{name}`"));
        let mut archive = ZipArchive::new(Cursor::new(&self.bytes[..])).map_err(|cause| damaged(cause.to_string()))?;
        let mut file = archive.by_index(*index).map_err(|cause| wrong(&cause))?;
        io::copy(&mut file.by_ref().take(header.data_start as u64), &mut io::sink()).map_err(|cause| wrong(&cause))?;
        let mut numbers = |out: &mut [f32]| {
            read_numbers(&mut file, header.kind, out).map_err(|cause| match cause.kind() {
                io::ErrorKind::UnexpectedEof => wrong(&"expected as many bytes as its shape needs, found an end"),
                _ => wrong(&cause),
            })
        };
        match (header.fortran_order, shape) {
            (true, &[rows, cols]) => {
                let step = (BUFFER / rows.max(1)).max(1);
                for first in (0..cols).step_by(step) {
                    let n = step.min(cols - first);
                    let mut columns = Matrix::zeros(n, rows);
                    numbers(columns.as_mut_slice())?;
                    let columns = columns.transposed();
                    for (to, from) in out.chunks_exact_mut(cols).zip(columns.as_slice().chunks_exact(n)) {
                        to[first..first + n].copy_from_slice(from);
                    }
                }
            }
            (false, _) | (true, [] | [_]) => numbers(out)?,
            (true, _) => return Err(wrong(&"expected its last axis fastest, found its first")),
        }
        // The archive compares the sum where a member ends.
        match file.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(wrong(&"expected an end, found more bytes")),
            Err(cause) => Err(wrong(&cause)),
        }
    }
}

/// Reads as many numbers as `out` holds.
fn read_numbers(file: &mut impl Read, kind: Kind, out: &mut [f32]) -> io::Result<()> {
    /// Numbers of a step, so that its bytes stay in the cache.
    const STEP: usize = 1 << 14;
    let mut bytes = vec![0; STEP.min(out.len()) * kind.bytes()];
    for out in out.chunks_mut(STEP) {
        let bytes = &mut bytes[..out.len() * kind.bytes()];
        file.read_exact(bytes)?;
        match kind {
            Kind::F16 => fill(out, bytes, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
            Kind::F32 => fill(out, bytes, f32::from_le_bytes),
            Kind::F64 => fill(out, bytes, |bytes| f64::from_le_bytes(bytes) as f32),
        }
    }
    Ok(())
}

fn fill<const N: usize>(out: &mut [f32], bytes: &[u8], number: impl Fn([u8; N]) -> f32) {
    for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = number(bytes);
    }
}

#[cfg(test)]
mod tests;
