//! How are activations read back at the speed of memory?
//!
//! Files as this crate writes them hold rows end to end in every page, so the page index alone tells where a row lies and
//! a read goes from the page cache straight into its destination: f32 rows of a shuffled run are copied once, by the
//! system, into the batch from which a step computes. That copy stays, because a page begins wherever its header ends,
//! where no f32 may lie, and because files are read without mapping them: a file that is cut off while it is mapped ends
//! the process. Mixing copies once more, from the buffer; the other formats are widened to f32. Files that another program wrote again (compressed,
//! with nulls allowed, with a dictionary) go through the reader of the `parquet` crate; a test holds both to the same.

use std::ops::Range;
use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type};
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, Type};

use crate::error::{Error, Result};
use crate::manifest::HookPointEntry;
use crate::parquet_io::TableFile;
use crate::{Dtype, files, schema};

/// An open file of activations.
#[derive(Debug)]
pub(crate) struct ActsFile {
    table: TableFile,
    row_bytes: usize,
    dtype: Dtype,
    /// Where the rows lie, if they lie end to end.
    pages: Option<Vec<Page>>,
    groups: Vec<Range<usize>>,
}

/// Rows that lie end to end.
#[derive(Clone, Copy, Debug)]
struct Page {
    first_row: usize,
    n_rows: usize,
    offset: u64,
}

impl ActsFile {
    pub(crate) fn open(path: &Path, entry: &HookPointEntry) -> Result<Self> {
        let table = TableFile::open(path)?;
        table.require("act")?;
        let (_, field) = table.metadata().schema().column_with_name("act").expect("`require` found it");
        let expected = DataType::FixedSizeBinary(entry.row_bytes() as i32);
        if *field.data_type() != expected {
            return Err(table.wrong_text("act", &expected.to_string(), field.data_type().to_string()));
        }
        if let Some(found) = field.metadata().get(schema::DTYPE_KEY)
            && *found != entry.dtype.name()
        {
            return Err(table.wrong_text("act", &format!("of dtype {}", entry.dtype), found.clone()));
        }
        let pages = pages_of(&table, entry.row_bytes());
        let groups = table.row_groups();
        Ok(Self { table, row_bytes: entry.row_bytes(), dtype: entry.dtype, pages, groups })
    }

    pub(crate) fn path(&self) -> &Path {
        self.table.path()
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.table.n_rows()
    }

    /// The rows of each row group.
    pub(crate) fn groups(&self) -> &[Range<usize>] {
        &self.groups
    }

    /// Rows as they are stored, and their scales for i8. The memory of `used` is used again if nobody holds it any more.
    pub(crate) fn read(&self, rows: Range<usize>, used: Bytes) -> Result<(Bytes, Vec<f32>)> {
        let mut bytes = used.try_into_mut().unwrap_or_default();
        bytes.resize(rows.len() * self.row_bytes, 0);
        self.read_into(rows.clone(), &mut bytes)?;
        Ok((bytes.freeze(), self.scales(rows)?))
    }

    /// Rows as they are stored, into a buffer of their size.
    pub(crate) fn read_into(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        if rows.end > self.n_rows() {
            return Err(Error::OutOfRange {
                what: "rows",
                start: 0,
                end: self.n_rows() as u64,
                found: format!("{}..{}", rows.start, rows.end),
                path: self.path().to_owned(),
            });
        }
        match &self.pages {
            Some(pages) => self.read_pages(pages, rows, out),
            None => self.read_decoded(rows, out),
        }
    }

    /// The scales of rows; none unless they are stored as i8.
    pub(crate) fn scales(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        if self.dtype != Dtype::I8 || rows.is_empty() {
            return Ok(Vec::new());
        }
        let batch = self.table.rows(&["scale"], rows)?;
        self.table.primitive::<Float32Type>(&batch, "scale")
    }

    fn read_pages(&self, pages: &[Page], rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let first = pages.partition_point(|page| page.first_row + page.n_rows <= rows.start);
        let mut out = out;
        let mut row = rows.start;
        for page in &pages[first..] {
            if row >= rows.end {
                break;
            }
            let n = (page.first_row + page.n_rows).min(rows.end) - row;
            let (head, tail) = out.split_at_mut(n * self.row_bytes);
            let offset = page.offset + ((row - page.first_row) * self.row_bytes) as u64;
            files::read_at(self.table.file(), head, offset)
                .map_err(|cause| Error::damaged(self.path(), format!("it ends too early ({cause})")))?;
            out = tail;
            row += n;
        }
        Ok(())
    }

    fn read_decoded(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let batch = self.table.rows(&["act"], rows)?;
        let column = self.table.column(&batch, "act")?;
        let array = column.as_fixed_size_binary_opt().filter(|array| array.null_count() == 0);
        let array = array.ok_or_else(|| self.table.wrong_text("act", "without nulls", "nulls".to_owned()))?;
        for (i, row) in out.chunks_exact_mut(self.row_bytes).enumerate() {
            row.copy_from_slice(array.value(i));
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn is_direct(&self) -> bool {
        self.pages.is_some()
    }

    /// The same file, read through the `parquet` crate.
    #[cfg(test)]
    pub(crate) fn decoded(mut self) -> Self {
        self.pages = None;
        self
    }
}

/// Where the rows of `act` lie, if they lie end to end in pages that the page index tells.
fn pages_of(table: &TableFile, row_bytes: usize) -> Option<Vec<Page>> {
    // A page header with nothing in it that we do not expect is far shorter.
    const LONGEST_HEADER: usize = 4096;
    let metadata = table.metadata().metadata();
    let columns = metadata.file_metadata().schema_descr();
    let column = (0..columns.num_columns()).find(|&i| columns.column(i).name() == "act")?;
    let descriptor = columns.column(column);
    if descriptor.max_def_level() > 0 || descriptor.max_rep_level() > 0 {
        return None;
    }
    let mut pages = Vec::new();
    let mut first_row = 0;
    for (i, group) in metadata.row_groups().iter().enumerate() {
        let chunk = group.column(column);
        let plain = chunk.encodings().all(|encoding| matches!(encoding, Encoding::PLAIN | Encoding::RLE));
        let direct = chunk.compression() == Compression::UNCOMPRESSED
            && chunk.column_type() == Type::FIXED_LEN_BYTE_ARRAY
            && chunk.dictionary_page_offset().is_none();
        let n_rows = usize::try_from(group.num_rows()).ok()?;
        if n_rows == 0 {
            continue;
        }
        if !plain || !direct {
            return None;
        }
        let (start, length) = chunk.byte_range();
        let locations = metadata.page_index()?.offset_index(i, column)?.page_locations();
        let starts = locations.iter().map(|location| location.first_row_index);
        let ends = starts.clone().skip(1).chain([n_rows as i64]);
        for (location, (from, to)) in locations.iter().zip(starts.zip(ends)) {
            let rows = usize::try_from(to.checked_sub(from)?).ok()?;
            let payload = rows.checked_mul(row_bytes)?;
            let size = usize::try_from(location.compressed_page_size).ok()?;
            let header = size.checked_sub(payload).filter(|&header| header > 0 && header < LONGEST_HEADER)?;
            let offset = u64::try_from(location.offset).ok()?;
            let inside = offset >= start && offset + size as u64 <= start + length;
            if !inside {
                return None;
            }
            pages.push(Page {
                first_row: first_row + usize::try_from(from).ok()?,
                n_rows: rows,
                offset: offset + header as u64,
            });
        }
        first_row += n_rows;
    }
    let dense = pages.iter().try_fold(0, |row, page| (page.first_row == row).then_some(row + page.n_rows));
    (dense == Some(first_row)).then_some(pages)
}
