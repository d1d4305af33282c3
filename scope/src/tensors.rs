//! How are named f32 tensors read from and written to safetensors files, without trusting or half-writing any?

use std::{borrow::Cow, io::Write, path::Path, sync::Arc};

use data::{
    files::{self, PendingFile},
    sums,
};
use fs_err as fs;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Map, Value, json};

use crate::{
    error::{Error, Result},
    matrix::Matrix,
};

/// A safetensors file, memory-mapped.
#[derive(Debug)]
pub(crate) struct TensorFile<'a> {
    path: &'a Path,
    bytes: Arc<Mmap>,
}

impl<'a> TensorFile<'a> {
    /// Maps the file and checks that its header and its length agree.
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        let file = fs::File::open(path)?;
        #[expect(unsafe_code, reason = "weights of many gigabytes are read once, without a second copy")]
        // SAFETY: the map is only read, and files of coders are replaced by rename, never changed in place.
        let bytes = unsafe { Mmap::map(file.file()) }?;
        let opened = Self { path, bytes: Arc::new(bytes) };
        opened.tensors()?;
        Ok(opened)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|cause| self.damaged(cause))
    }

    fn damaged(&self, cause: impl std::fmt::Display) -> Error {
        Error::Weights { cause: cause.to_string(), path: self.path.into() }
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> Result<bool> {
        Ok(self.tensors()?.tensor(name).is_ok())
    }

    /// Of which shape `name` is.
    pub(crate) fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.find(&self.tensors()?, name)?.shape().to_vec())
    }

    /// The tensor `name`, which must have this shape, as f32.
    pub(crate) fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensors = self.tensors()?;
        let tensor = self.find_of_shape(&tensors, name, shape)?;
        let data = tensor.data();
        Ok(match tensor.dtype() {
            Dtype::F32 => values(data, f32::from_le_bytes),
            Dtype::F16 => values(data, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => values(data, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F64 => values(data, |bytes| f64::from_le_bytes(bytes) as f32),
            other => {
                let cause = format!("expected `{name}` as F32, F16, BF16 or F64, found {other:?}");
                return Err(self.damaged(cause));
            }
        })
    }

    /// The tensor `name` of shape `[rows, cols]`: as it lies in the file where that is possible, without reading it.
    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.rows(name, &shape)
    }

    /// The tensor `name` of this shape, with every axis behind the first as one.
    pub(crate) fn rows(&self, name: &str, shape: &[usize]) -> Result<Matrix> {
        let tensors = self.tensors()?;
        let tensor = self.find_of_shape(&tensors, name, shape)?;
        let (rows, cols) = (shape[0], shape[1..].iter().product());
        if tensor.dtype() == Dtype::F32 {
            let start = tensor.data().as_ptr().addr() - self.bytes.as_ptr().addr();
            if let Some(matrix) = Matrix::mapped(rows, cols, &self.bytes, start) {
                return Ok(matrix);
            }
        }
        Ok(Matrix::from_slice(rows, cols, &self.f32(name, shape)?))
    }

    fn find<'t>(&self, tensors: &SafeTensors<'t>, name: &str) -> Result<TensorView<'t>> {
        tensors.tensor(name).map_err(|_absent| {
            let mut names = tensors.names();
            names.sort_unstable();
            Error::MissingTensor { name: name.into(), found: format!("{names:?}"), path: self.path.into() }
        })
    }

    fn find_of_shape<'t>(&self, tensors: &SafeTensors<'t>, name: &str, shape: &[usize]) -> Result<TensorView<'t>> {
        let tensor = self.find(tensors, name)?;
        if tensor.shape() == shape {
            return Ok(tensor);
        }
        let (expected, found) = (shape.into(), tensor.shape().into());
        Err(Error::Shape { name: name.into(), expected, found, path: self.path.into() })
    }

    /// The text stored under `key` in the header.
    pub(crate) fn text(&self, key: &str) -> Result<Option<String>> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).map_err(|cause| self.damaged(cause))?;
        Ok(header.metadata().as_ref().and_then(|texts| texts.get(key).cloned()))
    }
}

fn values<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    data.as_chunks::<N>().0.iter().map(|&bytes| read(bytes)).collect()
}

/// A tensor to be written.
pub(crate) struct Named<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: &'a [f32],
}

/// Writes the file under a temporary name, and renames it when it is durable. `text` goes into the header under its key,
/// and with it the sum of the file.
///
/// The crate's own writer would make files that only their owner can read.
pub(crate) fn write(path: &Path, tensors: &[Named<'_>], text: Option<(&str, String)>) -> Result<()> {
    let mut header = Map::new();
    if let Some((key, text)) = text {
        header.insert("__metadata__".into(), json!({ key: text, sums::KEY: sums::unsealed() }));
    }
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + size_of_val(tensor.values);
        header.insert(
            tensor.name.clone().into_owned(),
            json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Tensors begin at a multiple of 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut head = (header.len() as u64).to_le_bytes().to_vec();
    head.append(&mut header);
    let values: Vec<&[u8]> = tensors.iter().map(|tensor| bytemuck::cast_slice(tensor.values)).collect();
    sums::seal(&mut head, &values);
    let mut file = PendingFile::create(path)?;
    let mut parts = std::iter::once(head.as_slice()).chain(values);
    // As an error of `data`, which knows what can be done about a disk.
    parts.try_for_each(|part| file.write_all(part)).map_err(data::Error::from)?;
    file.publish()?;
    Ok(files::sync_dir(path.parent().unwrap_or(path))?)
}

// Numbers are written as they stand in memory.
const _: () = assert!(cfg!(target_endian = "little"), "safetensors files are little endian");
