//! How do activations become one Parquet file with lists of numbers?

use std::sync::Arc;

use fs_err as fs;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use super::{ExportReport, Job, Vectors, table};
use crate::error::Result;
use crate::files::NewFile;
use crate::parquet_io::write_error;

pub(super) fn write(job: Job<'_>) -> Result<ExportReport> {
    let Job { selection, hooks, out, mut report, mut meter } = job;
    let schema = table::schema(hooks);
    let fault = |cause| write_error(out, cause);
    let mut file = NewFile::create(out)?;
    let mut writer = ArrowWriter::try_new(&mut file, Arc::clone(&schema), Some(properties(hooks))).map_err(fault)?;
    for step in selection.steps() {
        let step = step?;
        let batch = table::batch(selection, &step, hooks, &schema, &mut report.saturated)?;
        // A row group a step: memory does not grow with the run.
        writer.write(&batch).and_then(|()| writer.flush()).map_err(fault)?;
        meter.add(step.len() * hooks.len())?;
    }
    writer.finish().map_err(fault)?;
    drop(writer);
    file.publish()?;
    report.bytes = fs::metadata(out)?.len();
    Ok(report)
}

/// Numbers of activations neither repeat nor shrink.
fn properties(hooks: &[Vectors]) -> WriterProperties {
    let zstd = Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a level of zstd"));
    let properties = WriterProperties::builder().set_compression(zstd).set_max_row_group_row_count(None);
    let properties = hooks.iter().fold(properties, |properties, hook| {
        // The point of the name is part of it, so the path is not read out of a text.
        let path = ColumnPath::new(vec![hook.entry.name.to_string(), "list".to_owned(), "item".to_owned()]);
        properties
            .set_column_compression(path.clone(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(path, false)
    });
    properties.build()
}
