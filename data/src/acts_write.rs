//! How are activations written at the speed of a plain file?
//!
//! Rows become Parquet pages without being copied: a page is a header of a few bytes and the rows as they came
//! (PLAIN encoding of a required fixed-length column has neither levels nor lengths), so the writer hands the buffers of
//! the engine to the file and, at the same time, to a thread that hashes them and adds up statistics.
//! The footer, with its page index, is written by the `parquet` crate.
//!
//! Within a row group the pages of `act` come first, then `scale`, then `token_idx`, because nothing is kept back but one
//! page. Readers find columns through the footer, whatever their order in the file.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ArrowSchemaConverter, encode_arrow_schema};
use parquet::basic::{BoundaryOrder, Compression, Encoding, Type};
use parquet::file::metadata::page_index::PageIndexBuilder;
use parquet::file::metadata::{
    ColumnChunkMetaData, ColumnIndexBuilder, FileMetaData, KeyValue, OffsetIndexBuilder, ParquetMetaDataBuilder,
    ParquetMetaDataWriter, RowGroupMetaData, SortingColumn,
};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::properties::DEFAULT_CREATED_BY;
use parquet::file::statistics::Statistics;
use parquet::file::writer::TrackedWrite;
use parquet::schema::types::SchemaDescriptor;
use sha2::{Digest, Sha256};

use crate::convert::Converted;
use crate::error::{Error, Result};
use crate::files::{PendingFile, hex};
use crate::manifest::{FileEntry, HookPointEntry, RowGroupMark};
use crate::parquet_io::write_error;
use crate::schema;
use crate::statistics::{Accumulator, Before, ShardStatistics};

/// Bytes of a page of `act`: what a reader of a single row has to read.
pub(crate) const PAGE_BYTES: usize = 1 << 20;
/// Pages of a row group: what the mixing reader draws at a time.
pub(crate) const PAGES_PER_GROUP: usize = 8;
/// Rows of a page at most, for hook points of few numbers.
const MAX_PAGE_ROWS: usize = 8192;
/// Buffers on the way to the thread that hashes; each holds on to rows of the engine.
const QUEUE: usize = 64;

/// How rows of a hook point are cut; it depends on their size alone, so that the same rows give the same bytes.
pub(crate) const fn rows_per_page(row_bytes: usize) -> usize {
    let rows = PAGE_BYTES / row_bytes;
    if rows == 0 {
        1
    } else if rows > MAX_PAGE_ROWS {
        MAX_PAGE_ROWS
    } else {
        rows
    }
}

/// The numbers of the tokens of the rows of a shard.
#[derive(Debug)]
pub(crate) enum TokenIdx {
    /// One after the other from this one on.
    From(u64),
    /// As listed, for a shuffled run.
    Listed(Vec<u64>),
}

impl TokenIdx {
    /// Of some rows of the shard; those that are listed must be there.
    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> Vec<u64> {
        match self {
            Self::From(first) => (first + rows.start as u64..first + rows.end as u64).collect(),
            Self::Listed(all) => all[rows].to_vec(),
        }
    }
}

/// What the hashing thread is asked to do, in the order of the file.
enum Job {
    /// Bytes of the file.
    Hash(Bytes),
    /// A row group ends after this many bytes.
    Mark(u64),
    /// Rows, not necessarily whole pages.
    Rows { rows: Bytes, scales: Vec<f32>, special: Vec<bool>, saturated: u64, before: Before },
}

/// A thread that hashes files and adds up statistics while others write them.
///
/// Its result for a file comes when the file is finished.
pub(crate) struct Hasher {
    sender: Option<Sender<(usize, Job)>>,
    thread: Option<JoinHandle<Vec<Digested>>>,
}

/// What the thread found for one file.
pub(crate) struct Digested {
    pub(crate) entry: FileEntry,
    pub(crate) statistics: ShardStatistics,
}

struct Hashing {
    hasher: Sha256,
    entry: FileEntry,
    accumulator: Accumulator,
}

impl Hasher {
    /// A thread for the files of these hook points, which are called by their place in the slice.
    pub(crate) fn spawn(hooks: &[&HookPointEntry]) -> Result<Self> {
        let (sender, receiver) = bounded(QUEUE);
        let files = hooks
            .iter()
            .map(|hook| Hashing {
                hasher: Sha256::new(),
                entry: FileEntry::default(),
                accumulator: Accumulator::new(hook.width, hook.dtype),
            })
            .collect();
        let thread = thread::Builder::new().name("shard-hash".to_owned()).spawn(move || run(&receiver, files))?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    fn send(&self, file: usize, job: Job) -> Result<()> {
        let sender = self.sender.as_ref().expect("`finish` takes the sender and `self` with it");
        sender.send((file, job)).map_err(|_thread_ended| Error::Worker { what: "the thread that hashes shards" })
    }

    /// Waits for the thread and returns what it found, in the order of the hook points.
    pub(crate) fn finish(mut self) -> Result<Vec<Digested>> {
        drop(self.sender.take());
        let thread = self.thread.take().expect("`finish` takes `self`");
        thread.join().map_err(|_panic| Error::Worker { what: "the thread that hashes shards" })
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            // A shard that is dropped has no use for the result.
            let _ = thread.join();
        }
    }
}

fn run(receiver: &Receiver<(usize, Job)>, mut files: Vec<Hashing>) -> Vec<Digested> {
    for (file, job) in receiver {
        let file = &mut files[file];
        match job {
            Job::Hash(bytes) => {
                file.entry.bytes += bytes.len() as u64;
                file.hasher.update(&bytes);
            }
            Job::Mark(end) => {
                let sha256 = hex(&file.hasher.clone().finalize());
                file.entry.row_groups.push(RowGroupMark { end, sha256 });
            }
            Job::Rows { rows, scales, special, saturated, before } => {
                file.accumulator.add(&rows, &scales, &special, &before);
                file.accumulator.add_saturated(saturated);
            }
        }
    }
    files
        .into_iter()
        .map(|mut file| {
            file.entry.sha256 = hex(&file.hasher.finalize());
            Digested { entry: file.entry, statistics: file.accumulator.finish() }
        })
        .collect()
}

/// Writes the activations of one hook point in one shard.
pub(crate) struct ActsWriter {
    pending: PendingFile,
    /// How the hashing thread calls this file.
    file: usize,
    offset: u64,
    schema: SchemaRef,
    columns: Arc<SchemaDescriptor>,
    row_bytes: usize,
    has_scale: bool,
    /// Whether `token_idx` rises by one from row to row.
    ordered: bool,
    n_rows: u64,
    /// Parts of the page that is not full yet.
    page: Vec<Bytes>,
    page_rows: usize,
    group: Group,
    row_groups: Vec<RowGroupMetaData>,
    indexes: Vec<Vec<Indexes>>,
}

/// The page index of a column of a row group.
type Indexes = (Option<ColumnIndexMetaData>, OffsetIndexMetaData);

/// The row group that is not full yet.
#[derive(Default)]
struct Group {
    n_rows: usize,
    token_idx: Vec<u64>,
    scales: Vec<f32>,
    /// Of the column `act`: offset, size with the header, rows.
    pages: Vec<(u64, usize, usize)>,
}

/// The least and the greatest value of a column chunk that has one page, as integers or floats.
enum Bounds {
    U64(u64, u64),
    F32(f32, f32),
}

impl ActsWriter {
    pub(crate) fn create(path: &Path, entry: &HookPointEntry, file: usize, ordered: bool) -> Result<Self> {
        let schema = schema::acts(entry);
        let columns = ArrowSchemaConverter::new().convert(&schema).map_err(|cause| write_error(path, cause))?;
        Ok(Self {
            pending: PendingFile::create(path)?,
            file,
            offset: 0,
            schema,
            columns: Arc::new(columns),
            row_bytes: entry.row_bytes(),
            has_scale: entry.dtype == crate::Dtype::I8,
            ordered,
            n_rows: 0,
            page: Vec::new(),
            page_rows: 0,
            group: Group::default(),
            row_groups: Vec::new(),
            indexes: Vec::new(),
        })
    }

    pub(crate) const fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// Writes rows as they are stored; `special` and what they were before that are for the statistics.
    pub(crate) fn write(
        &mut self,
        hasher: &Hasher,
        stored: Converted,
        token_idx: &[u64],
        special: Vec<bool>,
        before: Before,
    ) -> Result<()> {
        let Converted { bytes: rows, scales, saturated } = stored;
        let page_rows = rows_per_page(self.row_bytes);
        let n = rows.len() / self.row_bytes;
        let mut done = 0;
        while done < n {
            let take = (page_rows - self.page_rows).min(n - done);
            self.page.push(rows.slice(done * self.row_bytes..(done + take) * self.row_bytes));
            self.page_rows += take;
            self.group.token_idx.extend_from_slice(&token_idx[done..done + take]);
            if self.has_scale {
                self.group.scales.extend_from_slice(&scales[done..done + take]);
            }
            done += take;
            if self.page_rows == page_rows {
                self.end_page(hasher)?;
            }
            if self.group.n_rows == page_rows * PAGES_PER_GROUP {
                self.end_group(hasher)?;
            }
        }
        self.n_rows += n as u64;
        hasher.send(self.file, Job::Rows { rows, scales, special, saturated, before })
    }

    /// Writes the footer. The checksum is the hashing thread's.
    pub(crate) fn finish(&mut self, hasher: &Hasher) -> Result<()> {
        if self.n_rows == 0 {
            self.start(hasher)?;
        }
        self.end_page(hasher)?;
        self.end_group(hasher)?;
        let footer = self.footer().map_err(|cause| write_error(self.pending.path(), cause))?;
        self.put(hasher, Bytes::from(footer))
    }

    /// Fsync and rename.
    pub(crate) fn publish(self) -> Result<()> {
        self.pending.publish()
    }

    fn put(&mut self, hasher: &Hasher, bytes: Bytes) -> Result<()> {
        self.pending.write_all(&bytes)?;
        self.offset += bytes.len() as u64;
        hasher.send(self.file, Job::Hash(bytes))
    }

    fn start(&mut self, hasher: &Hasher) -> Result<()> {
        if self.offset == 0 { self.put(hasher, Bytes::from_static(b"PAR1")) } else { Ok(()) }
    }

    fn end_page(&mut self, hasher: &Hasher) -> Result<()> {
        if self.page_rows == 0 {
            return Ok(());
        }
        self.start(hasher)?;
        let offset = self.offset;
        self.put(hasher, page_header(self.page_rows, self.page_rows * self.row_bytes))?;
        for part in std::mem::take(&mut self.page) {
            self.put(hasher, part)?;
        }
        self.group.pages.push((offset, (self.offset - offset) as usize, self.page_rows));
        self.group.n_rows += self.page_rows;
        self.page_rows = 0;
        Ok(())
    }

    fn end_group(&mut self, hasher: &Hasher) -> Result<()> {
        let group = std::mem::take(&mut self.group);
        if group.n_rows == 0 {
            return Ok(());
        }
        let path = self.pending.path().to_owned();
        let path = path.as_path();
        let bounds = group.token_idx.iter().fold((u64::MAX, 0), |(a, b), &x| (a.min(x), b.max(x)));
        let token_idx: Vec<u8> = group.token_idx.iter().flat_map(|x| x.to_le_bytes()).collect();

        let act = self.chunk(1, &group.pages, None).map_err(|cause| write_error(path, cause))?;
        let scale = if self.has_scale {
            let bytes: Vec<u8> = group.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            let (least, greatest) =
                group.scales.iter().fold((f32::INFINITY, 0.0f32), |(a, b), &x| (a.min(x), b.max(x)));
            let page = self.put_page(hasher, group.n_rows, bytes)?;
            Some(self.chunk(2, &[page], Some(Bounds::F32(least, greatest))).map_err(|cause| write_error(path, cause))?)
        } else {
            None
        };
        let page = self.put_page(hasher, group.n_rows, token_idx)?;
        let token_idx =
            self.chunk(0, &[page], Some(Bounds::U64(bounds.0, bounds.1))).map_err(|cause| write_error(path, cause))?;

        let chunks: Vec<_> = [Some(token_idx), Some(act), scale].into_iter().flatten().collect();
        let bytes = chunks.iter().map(|(chunk, _)| chunk.uncompressed_size()).sum();
        let (metadata, indexes): (Vec<_>, Vec<_>) = chunks.into_iter().unzip();
        let row_group = RowGroupMetaData::builder(Arc::clone(&self.columns))
            .set_num_rows(group.n_rows as i64)
            .set_total_byte_size(bytes)
            .set_column_metadata(metadata)
            .set_file_offset(group.pages[0].0 as i64)
            .set_ordinal(self.row_groups.len() as i32)
            .set_sorting_columns(
                self.ordered.then(|| vec![SortingColumn { column_idx: 0, descending: false, nulls_first: false }]),
            )
            .build()
            .map_err(|cause| write_error(path, cause))?;
        self.row_groups.push(row_group);
        self.indexes.push(indexes);
        hasher.send(self.file, Job::Mark(self.offset))
    }

    /// Writes a column chunk that is one page.
    fn put_page(&mut self, hasher: &Hasher, n_rows: usize, bytes: Vec<u8>) -> Result<(u64, usize, usize)> {
        let offset = self.offset;
        self.put(hasher, page_header(n_rows, bytes.len()))?;
        self.put(hasher, Bytes::from(bytes))?;
        Ok((offset, (self.offset - offset) as usize, n_rows))
    }

    fn chunk(
        &self,
        column: usize,
        pages: &[(u64, usize, usize)],
        bounds: Option<Bounds>,
    ) -> parquet::errors::Result<(ColumnChunkMetaData, Indexes)> {
        let mut offsets = OffsetIndexBuilder::new();
        for &(offset, size, rows) in pages {
            offsets.append_offset_and_size(offset as i64, size as i32);
            offsets.append_row_count(rows as i64);
        }
        let size: usize = pages.iter().map(|page| page.1).sum();
        let rows: usize = pages.iter().map(|page| page.2).sum();
        let mut chunk = ColumnChunkMetaData::builder(self.columns.column(column))
            .set_compression(Compression::UNCOMPRESSED)
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
            .set_num_values(rows as i64)
            .set_total_compressed_size(size as i64)
            .set_total_uncompressed_size(size as i64)
            .set_data_page_offset(pages[0].0 as i64);
        let mut values = None;
        if let Some(bounds) = bounds {
            let (physical, statistics, least, greatest, nans) = match bounds {
                Bounds::U64(a, b) => {
                    let statistics = Statistics::int64(Some(a as i64), Some(b as i64), None, Some(0), false);
                    (Type::INT64, statistics, a.to_le_bytes().to_vec(), b.to_le_bytes().to_vec(), None)
                }
                Bounds::F32(a, b) => {
                    let statistics = Statistics::float(Some(a), Some(b), None, Some(0), false);
                    (Type::FLOAT, statistics, a.to_le_bytes().to_vec(), b.to_le_bytes().to_vec(), Some(0))
                }
            };
            chunk = chunk.set_statistics(statistics);
            let mut index = ColumnIndexBuilder::new(physical);
            index.append(false, least, greatest, 0, nans);
            index.set_boundary_order(BoundaryOrder::ASCENDING);
            values = Some(index.build()?);
        }
        Ok((chunk.build()?, (values, offsets.build())))
    }

    fn footer(&mut self) -> parquet::errors::Result<Vec<u8>> {
        let row_groups = std::mem::take(&mut self.row_groups);
        let mut index = PageIndexBuilder::new(row_groups.len(), self.columns.num_columns());
        for (group, columns) in std::mem::take(&mut self.indexes).into_iter().enumerate() {
            for (column, (values, offsets)) in columns.into_iter().enumerate() {
                if let Some(values) = values {
                    index.put_column_index(values, group, column);
                }
                index.put_offset_index(offsets, group, column);
            }
        }
        let key_values = vec![KeyValue::new(ARROW_SCHEMA_META_KEY.to_owned(), encode_arrow_schema(&self.schema))];
        let file = FileMetaData::new(
            2,
            self.n_rows as i64,
            Some(DEFAULT_CREATED_BY.to_owned()),
            Some(key_values),
            Arc::clone(&self.columns),
            None,
        );
        let metadata = ParquetMetaDataBuilder::new(file)
            .set_row_groups(row_groups)
            .set_page_index(Some(Arc::new(index.build())))
            .build();
        // Offsets in the footer count from where its writer began, so it is begun at 0 with bytes that go nowhere.
        let mut bytes = Vec::new();
        let mut sink = TrackedWrite::new(Tail { skip: self.offset, bytes: &mut bytes });
        let nothing = vec![0u8; PAGE_BYTES];
        let mut left = self.offset;
        while left > 0 {
            let n = left.min(nothing.len() as u64);
            sink.write_all(&nothing[..n as usize])?;
            left -= n;
        }
        ParquetMetaDataWriter::new_with_tracked(sink, &metadata).finish()?;
        Ok(bytes)
    }
}

/// Keeps what comes after the first `skip` bytes.
struct Tail<'a> {
    skip: u64,
    bytes: &'a mut Vec<u8>,
}

impl Write for Tail<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        self.bytes.extend_from_slice(&bytes[skipped as usize..]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The header of a data page (version 1) of PLAIN values without levels, in Thrift's compact protocol.
///
/// The structures are `PageHeader` and `DataPageHeader` of the Parquet format.
fn page_header(n_rows: usize, n_bytes: usize) -> Bytes {
    const I32: u8 = 0x05;
    const STRUCT: u8 = 0x0c;
    const DATA_PAGE: i32 = 0;
    const PLAIN: i32 = 0;
    const RLE: i32 = 3;
    let mut header = Vec::with_capacity(32);
    // A field is the distance from the field before it, its type, and its value.
    let field = |header: &mut Vec<u8>, distance: u8, value: i32| {
        header.push(distance << 4 | I32);
        let mut zigzag = ((value << 1) ^ (value >> 31)) as u32;
        while zigzag >= 0x80 {
            header.push(zigzag as u8 | 0x80);
            zigzag >>= 7;
        }
        header.push(zigzag as u8);
    };
    field(&mut header, 1, DATA_PAGE);
    field(&mut header, 1, n_bytes as i32); // uncompressed_page_size
    field(&mut header, 1, n_bytes as i32); // compressed_page_size
    header.push(2 << 4 | STRUCT); // data_page_header, field 5
    field(&mut header, 1, n_rows as i32);
    field(&mut header, 1, PLAIN);
    field(&mut header, 1, RLE); // of definition levels, of which there are none
    field(&mut header, 1, RLE); // of repetition levels, of which there are none
    header.extend([0, 0]); // ends of both structures
    Bytes::from(header)
}
