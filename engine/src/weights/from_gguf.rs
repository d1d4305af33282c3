//! Which tensors of a GGUF file make up the model's, and what do they say that its metadata leaves out?

use std::collections::BTreeMap;
use std::path::Path;

use super::checkpoint::Checkpoint;
use super::names::{self, GgufMeaning, Meaning};
use super::{Piece, Place, Source, TensorInfo, Weights, gguf, map_files};
use crate::config::{Config, Generation};
use crate::error::{Error, Result};
use crate::gemma::ple;

/// Divisors of rotary frequencies above this mean that a pair does not turn; llama.cpp writes 1e30.
const STANDS_STILL: f32 = 1e20;

/// As many rows of zeros may follow a table of per-layer embeddings; the converter adds 256 to that of Gemma 3n.
const MAX_PADDING: usize = 4096;

impl Weights {
    pub(super) fn open_gguf(path: &Path) -> Result<Self> {
        let files = map_files(vec![path.to_owned()])?;
        let header = gguf::Header::parse(&files[0].map, path)?;
        let config = config(&header, &files[0].map)?;
        let mut reading = Reading {
            checkpoint: Checkpoint::new(path, &config),
            path,
            one_plus: config.generation() == Generation::Gemma3,
            n_norms: 0,
            halves: BTreeMap::new(),
            changes: Vec::new(),
        };
        for entry in header.tensors {
            match names::from_gguf(&entry.name) {
                GgufMeaning::Ignored(part) => reading.checkpoint.leave_out(part),
                GgufMeaning::Stack(before, after) => reading.add_stack(&entry, before, after)?,
                GgufMeaning::ExpertHalf(name, half) => reading.add_half(name, half, entry)?,
                GgufMeaning::Text(name) => match names::unless_unused(name, &config) {
                    Meaning::Ignored(part) => reading.checkpoint.leave_out(part),
                    Meaning::Text(name) => reading.add(name, entry)?,
                },
            }
        }
        let Reading { checkpoint, n_norms, halves, changes: padding, .. } = reading;
        if let Some((name, _)) = halves.into_iter().next() {
            return Err(Error::MissingTensor { name, path: path.to_owned() });
        }
        let (tensors, places, left_out) = checkpoint.finish()?;
        let mut changes = Vec::new();
        if n_norms > 0 {
            changes.push(format!("subtracted 1 in f32 from {n_norms} norm weights, which GGUF stores as 1 + w"));
        }
        changes.extend(padding);
        changes.extend(left_out);
        let quantized = tensors.iter().filter(|info| info.dtype.starts_with('Q')).count();
        if quantized > 0 {
            changes.push(format!(
                "decoded {quantized} quantized tensors; the numbers are those of the blocks, not of the original"
            ));
        }
        let source = Source::Gguf(header.metadata);
        Ok(Self { path: path.to_owned(), config, source, files, tensors, places, changes })
    }
}

/// A GGUF file's tensors on their way to being the model's.
struct Reading<'a> {
    checkpoint: Checkpoint<'a>,
    path: &'a Path,
    /// Whether norms are stored as `1 + w`.
    one_plus: bool,
    n_norms: usize,
    /// Gates or ups of experts whose other half has not come yet, by the name of both.
    halves: BTreeMap<String, (usize, gguf::TensorEntry)>,
    changes: Vec<String>,
}

impl Reading<'_> {
    fn add(&mut self, name: String, mut entry: gguf::TensorEntry) -> Result<()> {
        let rows = self.checkpoint.expected_shape(&name).and_then(|shape| shape.first().copied());
        if let (ple::TABLE, Some(rows), [stored, _]) = (name.as_str(), rows, entry.shape.as_slice())
            && rows < *stored
        {
            let change = format!("left out {} rows of zeros at the end of `{}`", stored - rows, entry.name);
            self.changes.push(change);
            entry.bytes = entry.bytes / stored * rows;
            entry.shape[0] = rows;
        }
        let norm = self.one_plus && names::is_norm(&name);
        self.n_norms += usize::from(norm);
        let info = TensorInfo { name, ..stored_info(&entry) };
        let place = Place {
            pieces: vec![piece(&entry, entry.offset, entry.bytes)],
            shape: entry.shape,
            subtract: if norm { 1.0 } else { 0.0 },
        };
        self.checkpoint.add(info, place, self.path)
    }

    /// `[n, out, in]` is `n` matrices.
    fn add_stack(&mut self, entry: &gguf::TensorEntry, before: &str, after: &str) -> Result<()> {
        let [n, d_out, d_in] = entry.shape[..] else {
            return Err(Error::UnexpectedTensor { name: entry.name.clone(), path: self.path.to_owned() });
        };
        for index in 0..n {
            let bytes = entry.bytes / n;
            let shape = vec![d_out, d_in];
            let info = TensorInfo {
                name: format!("{before}{index}{after}"),
                shape: shape.clone(),
                bytes: bytes as u64,
                ..stored_info(entry)
            };
            let pieces = vec![piece(entry, entry.offset + index * bytes, bytes)];
            self.checkpoint.add(info, Place { shape, pieces, subtract: 0.0 }, self.path)?;
        }
        Ok(())
    }

    /// Gates `[E, J, H]` and ups `[E, J, H]` are, expert by expert, one tensor `[E, 2J, H]`.
    fn add_half(&mut self, name: String, half: usize, entry: gguf::TensorEntry) -> Result<()> {
        let Some((first_half, first)) = self.halves.remove(&name) else {
            self.halves.insert(name, (half, entry));
            return Ok(());
        };
        let unexpected =
            |entry: gguf::TensorEntry| Err(Error::UnexpectedTensor { name: entry.name, path: self.path.to_owned() });
        if first_half == half {
            return unexpected(entry);
        }
        let (gate, up) = if first_half == 0 { (first, entry) } else { (entry, first) };
        let &[n_experts, d_expert, d_model] = gate.shape.as_slice() else { return unexpected(gate) };
        if up.shape != gate.shape {
            let (expected, found, path) = (gate.shape, up.shape, self.path.to_owned());
            return Err(Error::WrongShape { name: up.name, expected, found, path });
        }
        let pieces = (0..n_experts).flat_map(|expert| {
            [&gate, &up].map(|half| {
                let bytes = half.bytes / n_experts;
                piece(half, half.offset + expert * bytes, bytes)
            })
        });
        let shape = vec![n_experts, d_expert.saturating_mul(2), d_model];
        let one_format = gate.format.name == up.format.name;
        let info = TensorInfo {
            name,
            stored_name: format!("{} + {}", gate.name, up.name),
            shape: shape.clone(),
            dtype: if one_format {
                gate.format.name.to_owned()
            } else {
                format!("{} + {}", gate.format.name, up.format.name)
            },
            bytes: (gate.bytes + up.bytes) as u64,
        };
        self.checkpoint.add(info, Place { shape, pieces: pieces.collect(), subtract: 0.0 }, self.path)
    }
}

fn piece(entry: &gguf::TensorEntry, offset: usize, bytes: usize) -> Piece {
    Piece { file: 0, offset, bytes, format: entry.format }
}

/// What the header says, under the name in the file.
fn stored_info(entry: &gguf::TensorEntry) -> TensorInfo {
    TensorInfo {
        name: entry.name.clone(),
        stored_name: entry.name.clone(),
        shape: entry.shape.clone(),
        dtype: entry.format.name.to_owned(),
        bytes: entry.bytes as u64,
    }
}

/// What the header says, under the canonical name where there is one.
pub(super) fn info(entry: &gguf::TensorEntry) -> TensorInfo {
    let info = stored_info(entry);
    match names::from_gguf(&entry.name) {
        GgufMeaning::Text(name) => TensorInfo { name, ..info },
        _ => info,
    }
}

/// The configuration in the metadata, with what only the tensors tell.
pub(super) fn config(header: &gguf::Header, file: &[u8]) -> Result<Config> {
    let at = |error: Error| error.at(header.metadata.path());
    let mut config = Config::from_gguf(&header.metadata).map_err(at)?;
    let find = |name: &str| header.tensors.iter().find(|entry| entry.name == name);
    let rows = |name: &str| find(name).and_then(|entry| entry.shape.first().copied());
    config.d_vocab = rows("token_embd.weight").unwrap_or(config.d_vocab);
    config.tie_word_embeddings = find("output.weight").is_none();
    if let Some(ple) = &mut config.ple
        && let Some(table) = find("per_layer_token_embd.weight")
        && let &[n_rows, _] = table.shape.as_slice()
    {
        ple.d_vocab = n_rows;
        if config.architecture.generation() == Generation::Gemma3n {
            ple.d_vocab -= n_zero_rows(table, n_rows, file);
        }
    }
    if let Some(altup) = &mut config.altup {
        altup.laurel_rank = rows("blk.0.laurel_l.weight").unwrap_or(altup.laurel_rank);
    }
    if config.generation() == Generation::Gemma4 {
        config.values_are_keys(|layer| find(&format!("blk.{layer}.attn_v.weight")).is_some());
        if let Some(divisors) = find(names::ROPE_FREQS) {
            let divisors = decode(divisors, 0..divisors.bytes, file);
            let turning = divisors.iter().filter(|&&divisor| divisor < STANDS_STILL).count();
            config.rope.full.partial_rotary_factor = turning as f64 / divisors.len().max(1) as f64;
        }
    }
    config.check().map_err(at)?;
    Ok(config)
}

/// How many rows of zeros end a matrix. Those that the converter adds are no rows to the reference, which reads the
/// first row instead.
fn n_zero_rows(entry: &gguf::TensorEntry, n_rows: usize, file: &[u8]) -> usize {
    let row_bytes = entry.bytes / n_rows.max(1);
    let is_zero = |row: &usize| {
        let start = row * row_bytes;
        decode(entry, start..start + row_bytes, file).iter().all(|&value| value == 0.0)
    };
    let limit = n_rows.min(MAX_PADDING);
    let n = (n_rows - limit..n_rows).rev().take_while(is_zero).count();
    // Nothing but zeros is not padding.
    if n == limit { 0 } else { n }
}

/// The numbers in a run of a tensor's bytes, which are whole blocks.
fn decode(entry: &gguf::TensorEntry, bytes: std::ops::Range<usize>, file: &[u8]) -> Vec<f32> {
    let blocks = &file[entry.offset + bytes.start..entry.offset + bytes.end];
    let mut values = vec![0.0; blocks.len() / entry.format.bytes * entry.format.values];
    entry.format.decode(blocks, &mut values);
    values
}
