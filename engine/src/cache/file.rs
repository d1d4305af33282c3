//! How are activations kept in a safetensors file, with the tokens that they belong to?

use std::collections::BTreeMap;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use data::hook_point::{HookPoint, Width};
use fs_err as fs;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use super::ActivationCache;
use crate::error::{Error, Result};
use crate::hook::Tokens;

/// What `format` says in the metadata.
const FORMAT: &str = "polariscope-cache";
const VERSION: &str = "1";

/// What of libtorch's dtypes a cache can hold, with safetensors' names.
const DTYPES: [(&str, Kind); 6] = [
    ("F32", Kind::Float),
    ("BF16", Kind::BFloat16),
    ("F16", Kind::Half),
    ("F64", Kind::Double),
    ("I64", Kind::Int64),
    ("BOOL", Kind::Bool),
];

/// A header larger than this is not one.
const MAX_HEADER: u64 = 100_000_000;

/// What a cache file says beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheFile {
    /// The text of each token, where a tokenizer was at hand.
    pub texts: Option<Vec<String>>,
    /// More to be known about it, such as the model: stored under these keys.
    pub about: BTreeMap<String, String>,
}

impl ActivationCache {
    /// Writes what it holds of `points` to a safetensors file, one tensor for each; the pattern of sequence 1 has `.1` behind
    /// its name. The header's metadata has `ids` and `lengths` as JSON lists, and `texts` if they are given.
    ///
    /// The file gets its name when it is whole.
    pub fn save(&self, path: &Path, points: &[HookPoint], with: &CacheFile) -> Result<()> {
        let temporary = path.with_extension("tmp");
        let io = |source| Error::io(path, source);
        let written =
            self.write(&temporary, points, with).map_err(io).and_then(|()| fs::rename(&temporary, path).map_err(io));
        if written.is_err() {
            // What is half-written has no final name; removing it may fail for the reason that writing failed.
            drop(fs::remove_file(&temporary));
        }
        written
    }

    fn write(&self, path: &Path, points: &[HookPoint], with: &CacheFile) -> std::io::Result<()> {
        let mut metadata: Map<String, Value> =
            with.about.iter().map(|(key, text)| (key.clone(), json!(text))).collect();
        metadata.insert("format".into(), json!(FORMAT));
        metadata.insert("version".into(), json!(VERSION));
        metadata.insert("ids".into(), json!(json!(self.tokens.ids).to_string()));
        metadata.insert("lengths".into(), json!(json!(self.tokens.lengths).to_string()));
        if let Some(texts) = &with.texts {
            metadata.insert("texts".into(), json!(json!(texts).to_string()));
        }
        let mut header = Map::from_iter([("__metadata__".to_owned(), Value::Object(metadata))]);
        let mut offset = 0;
        for (name, tensor) in self.named(points) {
            let end = offset + tensor.numel() * tensor.kind().elt_size_in_bytes();
            let dtype = DTYPES.iter().find(|(_, kind)| *kind == tensor.kind()).map_or("F32", |(name, _)| name);
            header.insert(name, json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [offset, end]}));
            offset = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // Tensors begin at a multiple of 8 bytes.
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::new(fs::File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, tensor) in self.named(points) {
            let tensor = tensor.to_device(Device::Cpu).contiguous();
            let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
            tensor.copy_data_u8(&mut bytes, tensor.numel());
            file.write_all(&bytes)?;
        }
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    }

    fn named<'a>(&'a self, points: &'a [HookPoint]) -> impl Iterator<Item = (String, &'a Tensor)> {
        self.values.iter().filter(|(point, _)| points.contains(point)).flat_map(|(point, tensors)| {
            let name = move |i: usize| if i == 0 { point.to_string() } else { format!("{point}.{i}") };
            tensors.iter().enumerate().map(move |(i, tensor)| (name(i), tensor))
        })
    }

    /// Reads a file that [`Self::save`] wrote.
    pub fn load(path: &Path) -> Result<Self> {
        let mut file = SafetensorsFile::open(path)?;
        let text = |key: &str| file.header.get("__metadata__").and_then(|metadata| metadata.get(key)?.as_str());
        let wrong = |found: String| Error::Cache { found, path: path.to_owned() };
        if (text("format"), text("version")) != (Some(FORMAT), Some(VERSION)) {
            return Err(wrong(text("format").map_or("no format".to_owned(), |format| format!("`{format}`"))));
        }
        let (Some(ids), Some(lengths)) = (list::<u32>(text("ids")), list::<usize>(text("lengths"))) else {
            return Err(wrong("no token ids".to_owned()));
        };
        let n = lengths.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n));
        if n != Some(ids.len()) {
            return Err(wrong(format!("{} token ids in sequences of {lengths:?}", ids.len())));
        }
        let tokens = Tokens { past: vec![0; lengths.len()], ids, lengths };
        let mut values: BTreeMap<HookPoint, Vec<Tensor>> = BTreeMap::new();
        for name in file.names() {
            let (point, sequence) = match (name.parse::<HookPoint>(), name.rsplit_once('.')) {
                (Ok(point), _) => (point, 0),
                (Err(error), Some((point, sequence))) => match sequence.parse::<usize>() {
                    Ok(sequence) => (point.parse()?, sequence),
                    Err(_not_a_number) => return Err(error.into()),
                },
                (Err(error), None) => return Err(error.into()),
            };
            let tensor = file.tensor(&name)?;
            let of_point = values.entry(point).or_default();
            if of_point.len() != sequence {
                return Err(wrong(format!("`{name}` out of order")));
            }
            of_point.push(tensor);
        }
        for (point, tensors) in &values {
            let by_token = point.site.row().width != Width::QueryByKey;
            let found = tensors[0].size();
            if by_token && found.first() != Some(&(tokens.ids.len() as i64)) {
                return Err(wrong(format!("`{point}` of shape {found:?} for {} tokens", tokens.ids.len())));
            }
        }
        Ok(Self { tokens, values })
    }
}

fn list<T: DeserializeOwned>(text: Option<&str>) -> Option<Vec<T>> {
    serde_json::from_str(text?).ok()
}

/// One tensor of a safetensors file.
pub(crate) fn tensor_of_file(path: &Path, name: &str) -> Result<Tensor> {
    SafetensorsFile::open(path)?.tensor(name)
}

/// A safetensors file of which single tensors are read.
struct SafetensorsFile<'p> {
    path: &'p Path,
    file: fs::File,
    header: Map<String, Value>,
    /// Where the bytes of the tensors begin.
    start: u64,
}

impl<'p> SafetensorsFile<'p> {
    fn open(path: &'p Path) -> Result<Self> {
        let io = |source| Error::io(path, source);
        let mut file = fs::File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        let read = file.read_exact(&mut length);
        let length = u64::from_le_bytes(length);
        if read.is_err() || length > bytes.saturating_sub(8).min(MAX_HEADER) {
            return Err(malformed("expected the length of a header, found other bytes".to_owned(), path));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header = serde_json::from_slice(&header).map_err(|error| {
            malformed(format!("expected a JSON object as header, found other text ({error})"), path)
        })?;
        Ok(Self { path, file, header, start: 8 + length })
    }

    fn names(&self) -> Vec<String> {
        self.header.keys().filter(|name| *name != "__metadata__").cloned().collect()
    }

    fn tensor(&mut self, name: &str) -> Result<Tensor> {
        let Some(info) = self.header.get(name).filter(|_| name != "__metadata__") else {
            return Err(Error::MissingTensor { name: name.to_owned(), path: self.path.to_owned() });
        };
        let numbers = |key: &str| info.get(key)?.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>();
        let kind =
            info.get("dtype").and_then(Value::as_str).and_then(|name| DTYPES.iter().find(|(known, _)| *known == name));
        let (Some((_, kind)), Some(shape), Some(offsets)) = (kind, numbers("shape"), numbers("data_offsets")) else {
            return Err(malformed(format!("expected dtype, shape and offsets of `{name}`, found {info}"), self.path));
        };
        let size = kind.elt_size_in_bytes() as u64;
        let bytes = shape.iter().try_fold(size, |product, &n| product.checked_mul(n));
        let io = |source| Error::io(self.path, source);
        let available = self.file.metadata().map_err(io)?.len().saturating_sub(self.start);
        match offsets.as_slice() {
            &[begin, end] if begin <= end && end <= available && bytes == Some(end - begin) => {
                self.file.seek(SeekFrom::Start(self.start + begin)).map_err(io)?;
                let mut data = vec![0; (end - begin) as usize];
                self.file.read_exact(&mut data).map_err(io)?;
                let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
                Ok(Tensor::from_data_size(&data, &shape, *kind))
            }
            _ => Err(malformed(format!("expected the bytes of `{name}` inside the file, found {info}"), self.path)),
        }
    }
}

fn malformed(what: String, path: &Path) -> Error {
    Error::Malformed { format: "safetensors", what, path: path.to_owned() }
}
