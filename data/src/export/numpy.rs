//! How does NumPy map activations into memory? A file is a header of text, padded to 64 bytes, and the numbers.

use std::io::Write;

use fs_err as fs;

use super::select::{Selection, Step};
use super::{ExportReport, Job};
use crate::Dtype;
use crate::error::Result;
use crate::files::{BuildFolder, NewFile};

/// Numbers begin at a multiple of this many bytes.
const ALIGN: usize = 64;

/// The columns that say which token a row is.
type Column = (&'static str, &'static str, fn(&Step, &Selection<'_>) -> Result<Vec<u8>>);

const COLUMNS: [Column; 4] = [
    ("token_idx", "<u8", |step, _| Ok(step.token_idx().into_iter().flat_map(u64::to_le_bytes).collect())),
    ("doc_id", "<u8", |step, all| Ok(step.columns(all.run)?.doc_id.into_iter().flat_map(u64::to_le_bytes).collect())),
    ("pos", "<u4", |step, all| Ok(step.columns(all.run)?.pos.into_iter().flat_map(u32::to_le_bytes).collect())),
    ("token_id", "<u4", |step, all| {
        Ok(step.columns(all.run)?.token_id.into_iter().flat_map(u32::to_le_bytes).collect())
    }),
];

pub(super) fn write(job: Job<'_>) -> Result<ExportReport> {
    let Job { selection, hooks, out, mut report, mut meter } = job;
    let folder = BuildFolder::create(out)?;
    for (name, descr, bytes) in COLUMNS {
        let mut file = NewFile::create(&folder.path().join(format!("{name}.npy")))?;
        file.write_all(&header(descr, &[selection.n]))?;
        for step in selection.steps() {
            file.write_all(&bytes(&step?, selection)?)?;
        }
        file.publish()?;
    }
    for hook in hooks {
        let mut file = NewFile::create(&folder.path().join(format!("{}.npy", hook.entry.name)))?;
        let shape: Vec<u64> = [selection.n].into_iter().chain(hook.entry.shape.iter().map(|&n| n as u64)).collect();
        let descr = if hook.dtype == Dtype::F16 { "<f2" } else { "<f4" };
        file.write_all(&header(descr, &shape))?;
        for step in selection.steps() {
            let step = step?;
            file.write_all(&step.rows(selection.run, hook, &mut report.saturated)?)?;
            meter.add(step.len())?;
        }
        file.publish()?;
    }
    for entry in fs::read_dir(folder.path())? {
        report.bytes += entry?.metadata()?.len();
    }
    folder.publish()?;
    Ok(report)
}

/// Version 1.0 of the format: magic, length, a Python dictionary, spaces, a line end.
fn header(descr: &str, shape: &[u64]) -> Vec<u8> {
    let shape: Vec<String> = shape.iter().map(|n| format!("{n},")).collect();
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.join(" "));
    let before = 10;
    let length = (before + text.len() + 1).next_multiple_of(ALIGN) - before;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend_from_slice(&(length as u16).to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    header.resize(before + length - 1, b' ');
    header.push(b'\n');
    header
}
