//! What can go wrong in this crate, and what should the person do next?

use std::any::Any;
use std::path::{Path, PathBuf};

use data::hook_point::HookPoint;

use crate::device::Device;

/// Everything that loading, running or recording a model can fail with.
///
/// A message is one sentence; a next step, where there is one, stands on a second line that begins `hint:`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Opening, mapping or reading a file; the message of `source` names the file.
    #[error("cannot read `{}`", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error(
        "expected a folder with `config.json` and `*.safetensors`, or a `.gguf` file, found {found} in `{}`\n\
         hint: give the folder that holds `config.json`, or convert other formats to safetensors first",
        path.display()
    )]
    NotAModel { found: String, path: PathBuf },

    #[error("expected one of the architectures {supported}, found `{found}`{}", in_file(path.as_ref()))]
    UnknownArchitecture { supported: String, found: String, path: Option<PathBuf> },

    /// A value of `config.json` or of the GGUF metadata that this program cannot use.
    #[error("expected {expected} for `{field}`, found {found}{}", in_file(path.as_ref()))]
    Config { field: String, expected: String, found: String, path: Option<PathBuf> },

    /// A file whose bytes do not follow its format.
    #[error("{what} in the {format} file `{}`\nhint: the file is damaged or incomplete, fetch it again", path.display())]
    Malformed { format: &'static str, what: String, path: PathBuf },

    #[error("expected tensor `{name}`, found none in `{}`\nhint: the checkpoint is incomplete or its `config.json` belongs to another model", path.display())]
    MissingTensor { name: String, path: PathBuf },

    #[error("unexpected tensor `{name}` in `{}`\nhint: the checkpoint belongs to a model that its configuration does not describe", path.display())]
    UnexpectedTensor { name: String, path: PathBuf },

    #[error("expected shape {expected:?} for tensor `{name}`, found {found:?} in `{}`", path.display())]
    WrongShape { name: String, expected: Vec<usize>, found: Vec<usize>, path: PathBuf },

    #[error("expected one of the dtypes {supported} for tensor `{name}`, found `{found}` in `{}`", path.display())]
    UnknownDtype { name: String, supported: &'static str, found: String, path: PathBuf },

    /// The caller asked for weights in a dtype that they are not served in.
    #[error("expected dtype `f32` or `bf16` for tensor `{name}`, found `{kind:?}`")]
    UnsupportedKind { name: String, kind: tch::Kind },

    #[error("no tokenizer in `{}`\nhint: put the model's `tokenizer.json` there, or give tokens instead of text", path.display())]
    NoTokenizer { path: PathBuf },

    #[error("{what} in the tokenizer of `{}`", path.display())]
    Tokenizer { what: String, path: PathBuf },

    /// A chat template that is no template, or that refuses the messages.
    #[error("{what}\nhint: this is what the checkpoint's chat template says; other messages or options may suit it")]
    ChatTemplate { what: String },

    #[error(
        "expected a model that was trained to chat, found one with neither a chat template nor turn tokens\n\
         hint: continue a text with `run --prompt`, or take the instruction-tuned variant of the model"
    )]
    NoChat,

    #[error(
        "expected a model with per-layer embeddings, found `{architecture}` without\n\
         hint: Gemma 3n has them, and of Gemma 4 the sizes E2B and E4B"
    )]
    NoPle { architecture: String },

    #[error("expected `cpu`, `cuda` or `cuda:` and a number, found `{found}`")]
    UnknownDevice { found: String },

    #[error(
        "cannot open libtorch's CUDA part: {reason}\n\
         hint: put the folder `torch/lib` of Python's torch {version} with CUDA first in `LD_LIBRARY_PATH`, or name it in `POLARISCOPE_LIBTORCH_CUDA`"
    )]
    CudaLibrary { reason: String, version: &'static str },

    #[error(
        "expected libtorch's CUDA part of version {expected}, found {found} in `{}`\n\
         hint: install Python's torch {expected}, or name its `torch/lib` in `POLARISCOPE_LIBTORCH_CUDA`",
        path.display()
    )]
    CudaVersion { expected: &'static str, found: String, path: PathBuf },

    #[error(
        "expected a CUDA device `cuda:{index}`, found {found} of them\nhint: `nvidia-smi` lists what the driver sees; `--device cpu` needs none"
    )]
    NoCudaDevice { index: usize, found: usize },

    /// A call of the CUDA run time library failed.
    #[error("CUDA could not {what}: error {code}")]
    Cuda { what: &'static str, code: i32 },

    #[error("the weights take {needed} on `{device}`, of which {free} are free\nhint: {hint}")]
    TooLarge { device: Device, needed: String, free: String, hint: String },

    #[error("expected `int8` or `int4`, found `{found}`")]
    Quantization { found: String },

    #[error("expected a token id below {vocab_size}, found {id}")]
    UnknownToken { id: u32, vocab_size: usize },

    #[error("expected a batch of non-empty sequences, {sequences} of them, found {ids} tokens in lengths {lengths:?}")]
    Batch { ids: usize, lengths: Vec<usize>, sequences: usize },

    #[error("expected {what}, found {found}")]
    Sampling { what: String, found: String },

    #[error("the forward pass did not reach `{point}`")]
    NotReached { point: HookPoint },

    #[error("expected a context of 2 to {limit} tokens, found {found}")]
    Context { limit: usize, found: usize },

    #[error("the corpus holds no token\nhint: give text files, folders, `.jsonl` or Parquet with `--corpus`")]
    EmptyCorpus,

    #[error(
        "the corpus is not the one that this run was begun with\nhint: give the same `--corpus`, or record into another `--out`"
    )]
    CorpusChanged,

    #[error("the journal does not say where to go on in `{}`\nhint: record into another `--out`", path.display())]
    Cursor { path: PathBuf },

    #[error(
        "the model has no tokenizer for the text of `{source_name}`\nhint: put its `tokenizer.json` beside `config.json`, or give a `.jsonl` with `{{\"tokens\": [ids]}}`"
    )]
    TextWithoutTokenizer { source_name: String },

    #[error("expected token ids below {vocab_size}, found {id} in `{source_name}`")]
    TokenInCorpus { id: u32, vocab_size: usize, source_name: String },

    #[error("the thread that writes shards has ended")]
    WriterEnded,

    #[error("cannot start a thread")]
    Thread {
        #[source]
        source: std::io::Error,
    },

    #[error("a thread stopped unexpectedly: {message}")]
    Panicked { message: String },

    /// The text form of an intervention.
    #[error(
        "expected {expected}, found {found} at character {column} of `{text}`\nhint: `polariscope run --help` has the text form of interventions"
    )]
    InterventionText { expected: String, found: String, column: usize, text: String },

    #[error("{what} in the JSON of interventions")]
    InterventionJson { what: String },

    /// An intervention that does not fit the model.
    #[error("{what} in `{intervention}`")]
    Intervention { what: String, intervention: String },

    /// Another pass or run that an intervention takes a vector from.
    #[error("cannot take activations from `{origin}`: {what}")]
    Origin { origin: String, what: String },

    #[error("cannot use the coder `{coder}`")]
    Coder {
        coder: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("expected a cache of activations that `run --cache` wrote, found {found} in `{}`", path.display())]
    Cache { found: String, path: PathBuf },

    /// Comparing two prompts position by position.
    #[error(
        "expected two texts of equally many tokens, found {clean} and {corrupt}\nhint: exchange words for others of as many tokens"
    )]
    Unequal { clean: usize, corrupt: usize },

    #[error("expected a token below {n}, found {row}")]
    NoRow { n: usize, row: usize },

    /// Reading a corpus, or writing a run.
    #[error(transparent)]
    Data(#[from] data::Error),

    /// libtorch refused an operation on data that came from outside.
    #[error("libtorch could not {what}")]
    Torch {
        what: String,
        #[source]
        source: tch::TchError,
    },
}

impl Error {
    pub(crate) fn thread(source: std::io::Error) -> Self {
        Self::Thread { source }
    }

    /// What a thread said when it panicked.
    #[expect(clippy::needless_pass_by_value, reason = "as `map_err` of `join` wants it")]
    pub(crate) fn panicked(payload: Box<dyn Any + Send>) -> Self {
        let message = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = message.or_else(|| payload.downcast_ref::<String>().cloned());
        Self::Panicked { message: message.unwrap_or_else(|| "no message".to_owned()) }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// Names the file in an error about a configuration that did not know where it came from.
    pub(crate) fn at(mut self, file: &Path) -> Self {
        if let Self::UnknownArchitecture { path, .. } | Self::Config { path, .. } = &mut self {
            path.get_or_insert_with(|| file.to_owned());
        }
        self
    }
}

fn in_file(path: Option<&PathBuf>) -> String {
    path.map(|path| format!(" in `{}`", path.display())).unwrap_or_default()
}
