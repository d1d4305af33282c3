//! Where do the numbers of a model come from, and what was changed on the way?
//!
//! [`Weights::open`] reads headers only, and checks every name, shape and dtype against what the configuration asks
//! for. [`Weights::tensor`] decodes one tensor out of the memory-mapped file. Names are those of the reference's
//! `…ForCausalLM`, whatever the checkpoint calls them. Nothing is folded: [`Weights::changes`] lists the little that
//! differs from the file. [`Weights::in_memory`] are tensors that the caller has, such as those of a training.

mod checkpoint;
mod files;
mod from_gguf;
pub mod gguf;
mod names;
mod quant;
mod rows;
mod safetensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use half::bf16;
use tch::{Device, Kind, Tensor};

use self::checkpoint::Checkpoint;
pub use self::files::WeightFile;
use self::files::{File, map_files, sha256_of_file};
pub(crate) use self::files::{read_bounded, read_json};
use self::names::Meaning;
use self::quant::Target;
pub use self::quant::{BlockFormat, FORMATS};
pub use self::rows::Rows;
pub(crate) use self::rows::Scratch;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

const CONFIG_FILE: &str = "config.json";
/// ggml's names for mixtures of formats, by the number in `general.file_type`.
const FILE_TYPES: &[(usize, &str)] = &[
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
];

/// The checkpoint of a model, opened and checked but not yet read.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    config: Config,
    source: Source,
    files: Vec<File>,
    tensors: Vec<TensorInfo>,
    /// From a canonical name to its place in `tensors` and in the files.
    places: BTreeMap<String, Place>,
    changes: Vec<String>,
}

/// What the header says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The canonical name, such as `model.layers.3.mlp.up_proj.weight`.
    pub name: String,
    /// The name in the file.
    pub stored_name: String,
    /// `[out, in]` for a matrix, as in torch.
    pub shape: Vec<usize>,
    /// The dtype or block format as the file spells it: `BF16`, `Q4_K`.
    pub dtype: String,
    /// In the file.
    pub bytes: u64,
}

/// What the headers of a checkpoint hold, whether or not a model could be made of it.
#[derive(Debug)]
pub struct Inspection {
    pub files: Vec<WeightFile>,
    /// In the order of the files; `name` is the canonical name where there is one.
    pub tensors: Vec<TensorInfo>,
    /// `None` with the reason where this program cannot run the model.
    pub config: Result<Config>,
    /// Only of a GGUF.
    pub metadata: Option<gguf::Metadata>,
}

#[derive(Debug)]
enum Source {
    Folder,
    Gguf(gguf::Metadata),
    Memory(BTreeMap<String, Tensor>),
}

/// Where a tensor's bytes are and how they are read.
#[derive(Debug)]
struct Place {
    shape: Vec<usize>,
    /// One behind the other they hold the tensor's numbers, last dimension fastest. Without pieces it is in memory.
    pieces: Vec<Piece>,
    /// Taken away after decoding: 1 for the norms of Gemma 3 in GGUF.
    subtract: f64,
}

/// A run of whole blocks in a file.
#[derive(Clone, Copy, Debug)]
struct Piece {
    file: usize,
    offset: usize,
    bytes: usize,
    format: &'static BlockFormat,
}

impl Piece {
    fn n_values(&self) -> usize {
        self.bytes / self.format.bytes * self.format.values
    }
}

/// A tensor that lies in one file as one run of bytes, which hold the numbers as they are meant.
#[derive(Debug)]
pub(crate) struct Stored<'a> {
    pub(crate) path: &'a Path,
    /// From the start of the file.
    pub(crate) offset: u64,
    pub(crate) shape: &'a [usize],
    pub(crate) format: &'static BlockFormat,
}

impl Weights {
    /// Opens a folder with `config.json` and safetensors files, or a `.gguf` file.
    ///
    /// Reads headers only. A missing or unexpected tensor, a wrong shape and an unknown dtype are found here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if is_folder(path)? { Self::open_folder(path) } else { Self::open_gguf(path) }
    }

    /// A checkpoint whose tensors are in memory, by their canonical names. The same names and shapes are asked for as
    /// of a file.
    pub fn in_memory(config: Config, tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<Self> {
        config.check()?;
        let path = PathBuf::from("memory");
        let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        let mut checkpoint = Checkpoint::new(&path, &config);
        for (name, tensor) in &tensors {
            let shape: Vec<usize> = tensor.size().iter().map(|&dim| dim as usize).collect();
            let info = TensorInfo {
                name: name.clone(),
                stored_name: name.clone(),
                shape: shape.clone(),
                dtype: dtype_name(tensor.kind()),
                bytes: (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64,
            };
            checkpoint.add(info, Place { shape, pieces: Vec::new(), subtract: 0.0 }, &path)?;
        }
        let (infos, places, changes) = checkpoint.finish()?;
        Ok(Self { path, config, source: Source::Memory(tensors), files: Vec::new(), tensors: infos, places, changes })
    }

    /// The shape and the constants of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Decodes a tensor into `kind`, which is `Float` or `BFloat16`. On the CPU, contiguous, `[out, in]`.
    ///
    /// A tensor in memory is handed out as it is, with the same storage if it is of this kind, and on its device; so
    /// gradients reach it.
    pub fn tensor(&self, name: &str, kind: Kind) -> Result<Tensor> {
        let place = self.place(name)?;
        if !matches!(kind, Kind::Float | Kind::BFloat16) {
            return Err(Error::UnsupportedKind { name: name.to_owned(), kind });
        }
        let torch = |source| Error::Torch { what: format!("make tensor `{name}` of shape {:?}", place.shape), source };
        if let Source::Memory(tensors) = &self.source
            && let Some(tensor) = tensors.get(name)
        {
            return tensor.f_to_kind(kind).map_err(torch);
        }
        // What is subtracted is subtracted in f32, before any rounding.
        let decoded_kind = if place.subtract == 0.0 { kind } else { Kind::Float };
        let size: Vec<i64> = place.shape.iter().map(|&dim| dim as i64).collect();
        let mut tensor = Tensor::f_empty(size, (decoded_kind, Device::Cpu)).map_err(torch)?;
        if decoded_kind == Kind::Float {
            self.decode(place, values_mut::<f32>(&mut tensor));
        } else {
            self.decode(place, values_mut::<bf16>(&mut tensor));
        }
        if place.subtract == 0.0 {
            return Ok(tensor);
        }
        let shifted = tensor.f_sub_scalar(place.subtract).map_err(torch)?;
        shifted.f_to_kind(kind).map_err(torch)
    }

    fn decode<T: Target>(&self, place: &Place, mut out: &mut [T]) {
        for piece in &place.pieces {
            let (values, rest) = out.split_at_mut(piece.n_values());
            let blocks = &self.files[piece.file].map[piece.offset..piece.offset + piece.bytes];
            piece.format.decode(blocks, values);
            out = rest;
        }
        assert!(out.is_empty(), "the pieces hold every number of the tensor");
    }

    /// Where a tensor lies, if it is in one piece in a file and nothing is to be done to its numbers.
    pub(crate) fn stored(&self, name: &str) -> Result<Option<Stored<'_>>> {
        let place = self.place(name)?;
        let [piece] = place.pieces.as_slice() else { return Ok(None) };
        let path = self.files[piece.file].path.as_path();
        let stored = Stored { path, offset: piece.offset as u64, shape: &place.shape, format: piece.format };
        Ok((place.subtract == 0.0).then_some(stored))
    }

    fn place(&self, name: &str) -> Result<&Place> {
        let place = self.places.get(name);
        place.ok_or_else(|| Error::MissingTensor { name: name.to_owned(), path: self.path.clone() })
    }

    /// The canonical names of all tensors, in the order of the forward pass.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|info| info.name.as_str())
    }

    /// What the headers say about each tensor, in the order of the forward pass.
    pub fn infos(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Every way in which the tensors differ from what the files hold, in words.
    pub fn changes(&self) -> &[String] {
        &self.changes
    }

    /// The files of the checkpoint, sorted by name.
    pub fn files(&self) -> Vec<WeightFile> {
        self.files.iter().map(File::describe).collect()
    }

    /// The SHA-256 of each file, in the order of [`Self::files`]. Reads them from end to end.
    pub fn sha256(&self) -> Result<Vec<(PathBuf, String)>> {
        self.files.iter().map(|file| Ok((file.path.clone(), sha256_of_file(&file.path)?))).collect()
    }

    /// The formats that the tensors are stored in, with how many bytes each takes, largest first.
    pub fn formats(&self) -> Vec<(String, u64)> {
        let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
        for info in &self.tensors {
            *bytes.entry(&info.dtype).or_default() += info.bytes;
        }
        let mut formats: Vec<(String, u64)> = bytes.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        formats.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        formats
    }

    /// What the tensors are quantized to, such as `Q4_K_M`; `None` where they are plain numbers.
    pub fn quantization(&self) -> Option<String> {
        let Source::Gguf(metadata) = &self.source else { return None };
        let largest = self.formats().into_iter().find(|(name, _)| name.starts_with('Q'))?;
        let file_type = metadata.usize("general.file_type").ok().flatten();
        let named = FILE_TYPES.iter().find(|(id, _)| Some(*id) == file_type);
        Some(named.map_or(largest.0, |(_, name)| (*name).to_owned()))
    }

    /// The tokenizer that came with the weights: inside the GGUF, or `tokenizer.json` in the folder.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.source {
            Source::Folder => Tokenizer::from_hf_dir(&self.path),
            Source::Gguf(metadata) => Tokenizer::from_gguf(metadata),
            Source::Memory(_) => Err(Error::NoTokenizer { path: self.path.clone() }),
        }
    }

    fn open_folder(dir: &Path) -> Result<Self> {
        let config = folder_config(dir)?;
        let files = map_files(safetensors::checkpoint_files(dir)?)?;
        let mut checkpoint = Checkpoint::new(dir, &config);
        for (index, file) in files.iter().enumerate() {
            for entry in safetensors::parse(&file.map, &file.path)? {
                match names::from_hf(&entry.name, &config) {
                    Meaning::Ignored(part) => checkpoint.leave_out(part),
                    Meaning::Text(name) => {
                        let format = if checkpoint.expects(&name) {
                            safetensors::required_format(&entry, &file.path)?
                        } else {
                            &FORMATS[0]
                        };
                        let info = TensorInfo { name, ..entry.info() };
                        let piece = Piece { file: index, offset: entry.offset, bytes: entry.bytes, format };
                        let place = Place { shape: entry.shape, pieces: vec![piece], subtract: 0.0 };
                        checkpoint.add(info, place, &file.path)?;
                    }
                }
            }
        }
        let (tensors, places, changes) = checkpoint.finish()?;
        Ok(Self { path: dir.to_owned(), config, source: Source::Folder, files, tensors, places, changes })
    }
}

/// Reads the headers of a checkpoint, also of one that this program cannot run.
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection> {
    let path = path.as_ref();
    if !is_folder(path)? {
        let files = map_files(vec![path.to_owned()])?;
        let header = gguf::Header::parse(&files[0].map, path)?;
        return Ok(Inspection {
            files: files.iter().map(File::describe).collect(),
            tensors: header.tensors.iter().map(from_gguf::info).collect(),
            config: from_gguf::config(&header, &files[0].map),
            metadata: Some(header.metadata),
        });
    }
    let config = folder_config(path);
    let files = map_files(safetensors::checkpoint_files(path)?)?;
    let mut tensors = Vec::new();
    for file in &files {
        for entry in safetensors::parse(&file.map, &file.path)? {
            let meaning = config.as_ref().map(|config| names::from_hf(&entry.name, config));
            let name = match meaning {
                Ok(Meaning::Text(name)) => name,
                _ => entry.name.clone(),
            };
            tensors.push(TensorInfo { name, ..entry.info() });
        }
    }
    Ok(Inspection { files: files.iter().map(File::describe).collect(), tensors, config, metadata: None })
}

/// The values of a fresh tensor, to be written.
///
/// `T` must be the type that the tensor's kind stands for.
fn values_mut<T: tch::kind::Element>(tensor: &mut Tensor) -> &mut [T] {
    // By size and not by `T::KIND`, which tch 0.24 gives as f16 for bf16.
    assert_eq!(tensor.kind().elt_size_in_bytes(), size_of::<T>(), "the element type of the tensor");
    assert!(tensor.is_contiguous() && tensor.device() == Device::Cpu, "a fresh tensor on the CPU");
    let (start, len) = (tensor.data_ptr().cast::<T>(), tensor.numel());
    if len == 0 {
        return &mut [];
    }
    #[expect(unsafe_code, reason = "decodes hundreds of megabytes straight into the tensor instead of through a copy")]
    // SAFETY: the tensor is contiguous, on the CPU, of this element type and borrowed mutably as long as the slice; it
    // was made a moment ago, or is the room of a table, which its lock lends to one caller at a time. Any bits are a number.
    unsafe {
        std::slice::from_raw_parts_mut(start, len)
    }
}

fn is_folder(path: &Path) -> Result<bool> {
    let metadata = fs::metadata(path).map_err(|source| Error::io(path, source))?;
    if metadata.is_dir() {
        return Ok(true);
    }
    let extension = path.extension().map(|extension| extension.to_string_lossy().into_owned());
    match extension {
        Some(extension) if extension.eq_ignore_ascii_case("gguf") => Ok(false),
        Some(extension) => {
            Err(Error::NotAModel { found: format!("a file that ends in `.{extension}`"), path: path.to_owned() })
        }
        None => Err(Error::NotAModel { found: "a file without an extension".to_owned(), path: path.to_owned() }),
    }
}

fn folder_config(dir: &Path) -> Result<Config> {
    let path = dir.join(CONFIG_FILE);
    if !path.is_file() {
        return Err(Error::NotAModel { found: format!("a folder without `{CONFIG_FILE}`"), path: dir.to_owned() });
    }
    Config::from_hf(&read_json(&path)?).map_err(|error| error.at(&path))
}

/// A dtype as safetensors spells it.
fn dtype_name(kind: Kind) -> String {
    match kind {
        Kind::Float => "F32".to_owned(),
        Kind::Half => "F16".to_owned(),
        Kind::BFloat16 => "BF16".to_owned(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests;
