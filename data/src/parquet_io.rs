//! How are tables written with a checksum, and how are rows of a file read back?

use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchReader};
use arrow::compute::concat_batches;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Schema, SchemaRef};
use bytes::Bytes;
use fs_err as fs;
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelector,
};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, PageIndexPolicy};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{ChunkReader, Length};
use parquet::schema::types::ColumnPath;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::{self, PendingFile, hex};
use crate::manifest::{FileEntry, RowGroupMark};
use crate::schema;

/// Rows of a page, so that reading a few rows decodes little more than those.
const PAGE_ROWS: usize = 4096;

/// A file under a temporary name that is hashed while it is written.
pub(crate) struct HashedFile {
    /// `None` once it is published.
    pending: Option<PendingFile>,
    hasher: Sha256,
    entry: FileEntry,
}

impl HashedFile {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Ok(Self { pending: Some(PendingFile::create(path)?), hasher: Sha256::new(), entry: FileEntry::default() })
    }

    /// A row group ends here.
    fn mark(&mut self) {
        let sha256 = hex(&self.hasher.clone().finalize());
        self.entry.row_groups.push(RowGroupMark { end: self.entry.bytes, sha256 });
    }

    fn publish(&mut self) -> Result<FileEntry> {
        self.entry.sha256 = hex(&std::mem::take(&mut self.hasher).finalize());
        self.pending.take().expect("it is published once").publish()?;
        Ok(std::mem::take(&mut self.entry))
    }
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.pending.as_mut().expect("nothing is written once it is published").write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.entry.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a table, one call a row group. zstd, statistics and page index on.
pub(crate) struct TableWriter {
    writer: ArrowWriter<HashedFile>,
    path: PathBuf,
    n_rows: usize,
}

/// What a table has besides its columns.
#[derive(Debug, Default)]
pub(crate) struct TableOptions<'a> {
    /// Whole numbers that are near the one before: stored as differences.
    pub(crate) delta: &'a [&'a str],
    /// Numbers that hardly repeat: stored as they are.
    pub(crate) plain: &'a [&'a str],
    pub(crate) key_values: Vec<(String, String)>,
}

impl TableWriter {
    pub(crate) fn create(path: &Path, schema: &SchemaRef, options: TableOptions<'_>) -> Result<Self> {
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a level of zstd")))
            .set_statistics_enabled(EnabledStatistics::Page)
            .set_data_page_row_count_limit(PAGE_ROWS)
            // Page limits are looked at after each of these.
            .set_write_batch_size(PAGE_ROWS)
            .set_max_row_group_row_count(None);
        for name in options.delta {
            let path = column_path(name);
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
        for name in options.plain {
            properties = properties.set_column_dictionary_enabled(column_path(name), false);
        }
        let key_values: Vec<KeyValue> =
            options.key_values.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect();
        if !key_values.is_empty() {
            properties = properties.set_key_value_metadata(Some(key_values));
        }
        let file = HashedFile::create(path)?;
        let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties.build()))
            .map_err(|cause| write_error(path, cause))?;
        Ok(Self { writer, path: path.to_owned(), n_rows: 0 })
    }

    /// Writes a row group; no rows are no row group.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.n_rows += batch.num_rows();
        self.write_inner(batch).map_err(|cause| write_error(&self.path, cause))
    }

    fn write_inner(&mut self, batch: &RecordBatch) -> parquet::errors::Result<()> {
        self.writer.write(batch)?;
        self.writer.flush()?;
        self.writer.sync()?;
        self.writer.inner_mut().mark();
        Ok(())
    }

    /// Rows written so far.
    pub(crate) const fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(crate) fn append_key_value(&mut self, key: &str, value: String) {
        self.writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
    }

    /// Footer, fsync, rename. The caller fsyncs the directory.
    pub(crate) fn publish(mut self) -> Result<FileEntry> {
        // `into_inner` would tell of a full disk in words only.
        self.writer.finish().map_err(|cause| write_error(&self.path, cause))?;
        self.writer.inner_mut().publish()
    }
}

/// The path of a column in Parquet, with a dot between its parts: `probs.list.item`.
fn column_path(name: &str) -> ColumnPath {
    ColumnPath::new(name.split('.').map(str::to_owned).collect())
}

/// An error of the disk is told as such, with its hint, and not as one of Parquet.
pub(crate) fn write_error(path: &Path, cause: parquet::errors::ParquetError) -> Error {
    if let parquet::errors::ParquetError::External(inner) = cause {
        match inner.downcast::<io::Error>() {
            Ok(io) => Error::Io { cause: *io },
            Err(other) => Error::damaged(path, other),
        }
    } else {
        Error::damaged(path, cause)
    }
}

/// An open file of which rows can be read; its footer is read once. It stays whole while its name is given to another.
#[derive(Clone, Debug)]
pub(crate) struct TableFile {
    path: PathBuf,
    file: Arc<fs::File>,
    metadata: ArrowReaderMetadata,
}

impl TableFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(open(path)?);
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = guarded(path, || ArrowReaderMetadata::load(&Chunks(Arc::clone(&file)), options))?;
        Ok(Self { path: path.to_owned(), file, metadata })
    }

    pub(crate) fn file(&self) -> &fs::File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn metadata(&self) -> &ArrowReaderMetadata {
        &self.metadata
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.metadata.metadata().file_metadata().num_rows().max(0) as usize
    }

    pub(crate) fn n_row_groups(&self) -> usize {
        self.metadata.metadata().num_row_groups()
    }

    /// The rows of each row group.
    pub(crate) fn row_groups(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let groups = self.metadata.metadata().row_groups().iter();
        groups
            .map(|group| {
                let end = start + group.num_rows().max(0) as usize;
                std::mem::replace(&mut start, end)..end
            })
            .collect()
    }

    pub(crate) fn key_value(&self, key: &str) -> Option<&str> {
        let pairs = self.metadata.metadata().file_metadata().key_value_metadata()?;
        pairs.iter().find(|pair| pair.key == key)?.value.as_deref()
    }

    /// A reader of some columns (all for none named) of some row groups (all for `None`) and rows (of those groups).
    pub(crate) fn reader(
        &self,
        columns: &[&str],
        groups: Option<Vec<usize>>,
        rows: Option<Range<usize>>,
        batch_rows: usize,
    ) -> Result<Batches> {
        let file = Chunks(Arc::clone(&self.file));
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
            .with_batch_size(batch_rows.max(1));
        if !columns.is_empty() {
            for column in columns {
                self.require(column)?;
            }
            let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
            builder = builder.with_projection(mask);
        }
        if let Some(groups) = groups {
            builder = builder.with_row_groups(groups);
        }
        if let Some(rows) = rows {
            let selection = [RowSelector::skip(rows.start), RowSelector::select(rows.len())];
            builder = builder.with_row_selection(RowSelection::from(selection.to_vec()));
        }
        let reader = guarded(&self.path, || builder.build())?;
        Ok(Batches { path: self.path.clone(), reader: Some(reader) })
    }

    /// Some columns of some rows, as one batch.
    pub(crate) fn rows(&self, columns: &[&str], rows: Range<usize>) -> Result<RecordBatch> {
        if rows.start > rows.end || rows.end > self.n_rows() {
            return Err(Error::OutOfRange {
                what: "rows",
                start: 0,
                end: self.n_rows() as u64,
                found: format!("{}..{}", rows.start, rows.end),
                path: self.path.clone(),
            });
        }
        // Only the row groups that these rows touch, so that the cost does not grow with the file.
        let all = self.row_groups();
        let touched = |group: &Range<usize>| group.start < rows.end && rows.start < group.end;
        let groups: Vec<usize> = (0..all.len()).filter(|&i| touched(&all[i])).collect();
        let start = groups.first().map_or(rows.start, |&first| all[first].start);
        let n = rows.len();
        let reader = self.reader(columns, Some(groups), Some(rows.start - start..rows.end - start), n)?;
        self.collect(reader)
    }

    /// Everything that a reader gives, as one batch.
    fn collect(&self, reader: Batches) -> Result<RecordBatch> {
        let schema = reader.schema();
        let mut batches = reader.collect::<Result<Vec<_>>>()?;
        match batches.len() {
            1 => Ok(batches.remove(0)),
            _ => concat_batches(&schema, &batches).map_err(|cause| Error::damaged(&self.path, cause)),
        }
    }

    /// Checks that a column exists.
    pub(crate) fn require(&self, column: &str) -> Result<()> {
        if self.metadata.schema().column_with_name(column).is_some() {
            return Ok(());
        }
        Err(Error::WrongColumn {
            column: column.to_owned(),
            expected: "there".to_owned(),
            found: "none of that name".to_owned(),
            path: self.path.clone(),
        })
    }

    /// A column of a batch of this file, checked to be of a type.
    pub(crate) fn primitive<T: ArrowPrimitiveType>(&self, batch: &RecordBatch, column: &str) -> Result<Vec<T::Native>> {
        let array = self.column(batch, column)?;
        let typed = array.as_primitive_opt::<T>().ok_or_else(|| self.wrong(column, &T::DATA_TYPE, array))?;
        if typed.null_count() > 0 {
            return Err(self.wrong_text(column, "without nulls", format!("{} nulls", typed.null_count())));
        }
        Ok(typed.values().to_vec())
    }

    pub(crate) fn optional<T: ArrowPrimitiveType>(
        &self,
        batch: &RecordBatch,
        column: &str,
    ) -> Result<Vec<Option<T::Native>>> {
        let array = self.column(batch, column)?;
        let typed = array.as_primitive_opt::<T>().ok_or_else(|| self.wrong(column, &T::DATA_TYPE, array))?;
        Ok(typed.iter().collect())
    }

    /// A column of lists of `k` numbers each, end to end.
    pub(crate) fn lists<T: ArrowPrimitiveType>(
        &self,
        batch: &RecordBatch,
        column: &str,
        k: usize,
    ) -> Result<Vec<T::Native>> {
        let array = self.column(batch, column)?;
        // Other writers give lists that could be of any length.
        let expected = DataType::FixedSizeList(schema::item(T::DATA_TYPE), k as i32);
        let wrong = || self.wrong(column, &expected, array);
        let cast = arrow::compute::cast(array, &expected).map_err(|_no_cast| wrong())?;
        let lists = cast.as_fixed_size_list_opt().ok_or_else(wrong)?;
        let values = lists.values().as_primitive_opt::<T>().ok_or_else(wrong)?;
        if lists.null_count() > 0 || values.null_count() > 0 {
            return Err(self.wrong_text(column, &format!("lists of {k} numbers"), "nulls or other lengths".to_owned()));
        }
        Ok(values.values().to_vec())
    }

    pub(crate) fn booleans(&self, batch: &RecordBatch, column: &str) -> Result<Vec<bool>> {
        let array = self.column(batch, column)?;
        let typed = array.as_boolean_opt().ok_or_else(|| self.wrong(column, &DataType::Boolean, array))?;
        Ok(typed.iter().map(|value| value.unwrap_or(false)).collect())
    }

    pub(crate) fn strings(&self, batch: &RecordBatch, column: &str) -> Result<Vec<Option<String>>> {
        let array = self.column(batch, column)?;
        // Other writers give large strings and views.
        let utf8 = DataType::Utf8;
        let cast = arrow::compute::cast(array, &utf8).map_err(|_no_cast| self.wrong(column, &utf8, array))?;
        let typed = cast.as_string_opt::<i32>().ok_or_else(|| self.wrong(column, &utf8, array))?;
        Ok(typed.iter().map(|value| value.map(str::to_owned)).collect())
    }

    pub(crate) fn column<'a>(&self, batch: &'a RecordBatch, column: &str) -> Result<&'a ArrayRef> {
        batch.column_by_name(column).ok_or_else(|| self.wrong_text(column, "there", "none of that name".to_owned()))
    }

    fn wrong(&self, column: &str, expected: &DataType, found: &ArrayRef) -> Error {
        self.wrong_text(column, &expected.to_string(), found.data_type().to_string())
    }

    pub(crate) fn wrong_text(&self, column: &str, expected: &str, found: String) -> Error {
        Error::WrongColumn { column: column.to_owned(), expected: expected.to_owned(), found, path: self.path.clone() }
    }
}

/// Reads parts of a file wherever its position is, so that several readers share it.
struct Chunks(Arc<fs::File>);

/// From a place in a file to its end.
struct Chunk {
    file: Arc<fs::File>,
    next: u64,
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<Chunk>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(BufReader::new(Chunk { file: Arc::clone(&self.0), next: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        // A length that the file does not have may be one that no memory has.
        if start.checked_add(length as u64).is_none_or(|end| end > self.len()) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut bytes = vec![0; length];
        files::read_at(&self.0, &mut bytes, start)?;
        Ok(bytes.into())
    }
}

impl Read for Chunk {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.file.metadata()?.len().saturating_sub(self.next);
        let n = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        files::read_at(&self.file, &mut out[..n], self.next)?;
        self.next += n as u64;
        Ok(n)
    }
}

/// Batches of rows of a file.
pub(crate) struct Batches {
    path: PathBuf,
    /// `None` after an error.
    reader: Option<ParquetRecordBatchReader>,
}

impl Batches {
    fn schema(&self) -> SchemaRef {
        self.reader.as_ref().map_or_else(|| Arc::new(Schema::empty()), RecordBatchReader::schema)
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.reader.as_mut()?;
        let batch = guarded(&self.path, || reader.next().transpose()).transpose()?;
        if batch.is_err() {
            self.reader = None;
        }
        Some(batch)
    }
}

/// Calls a decoder. Those of the `parquet` crate panic on some damaged pages; that is an error like any other here.
fn guarded<T, E: std::fmt::Display>(path: &Path, decode: impl FnOnce() -> Result<T, E>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(decoded) => decoded.map_err(|cause| Error::damaged(path, cause)),
        Err(_panic) => Err(Error::damaged(path, "a page does not hold what its header says")),
    }
}

/// Opens a file of a run; one that is missing is an error of its own.
pub(crate) fn open(path: &Path) -> Result<fs::File> {
    fs::File::open(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => Error::MissingFile { path: path.to_owned() },
        _ => Error::Io { cause },
    })
}
