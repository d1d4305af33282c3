//! What can go wrong with a coder, in words that name the thing and the next step.

use std::{io, path::PathBuf};

/// The result of everything here that reads, writes or trains.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The run directory is at fault.
    #[error(transparent)]
    Data(#[from] data::Error),

    /// The model is at fault.
    #[error(transparent)]
    Engine(Box<engine::error::Error>),

    /// Reading or writing failed; the message has the path.
    #[error("{cause}")]
    Io {
        /// What the system said.
        cause: io::Error,
    },

    /// libtorch refused a shape or ran out of memory.
    #[error("libtorch: {source}")]
    Torch {
        /// What it said.
        source: tch::TchError,
    },

    /// The threads could not be started.
    #[error("cannot start {threads} threads: {source}\nhint: ask for fewer with `--threads`")]
    Threads {
        /// As many as were asked for, 0 for all cores.
        threads: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },

    /// There is no coder at this place.
    #[error(
        "no sparse coder: `cfg.json` is missing in `{}`\nhint: `polariscope train` writes one; a training that was cut short goes on with `--resume`",
        .path.display()
    )]
    NotACoder {
        /// The folder.
        path: PathBuf,
    },

    /// A file that could run code when it is opened.
    #[error(
        "expected weights as safetensors or `.npz`, found a pickled file, which is never opened here because that can run any code: `{}`\nhint: convert it in Python where you trust it: `safetensors.torch.save_file(torch.load(path, weights_only=True), \"sae_weights.safetensors\")`, and write a `cfg.json` beside it",
        .path.display()
    )]
    Pickled {
        /// The file.
        path: PathBuf,
    },

    /// A JSON file is not what it should be.
    #[error("{what} in `{}`", .path.display())]
    Config {
        /// What is wrong, beginning with what was expected.
        what: String,
        /// The file.
        path: PathBuf,
    },

    /// A coder of a kind that this version does not know.
    #[error(
        "expected an architecture `standard`, `topk`, `abstopk`, `jumprelu`, `gated`, `matching_pursuit`, or a transcoder, found `{found}` in `{}`",
        .path.display()
    )]
    UnknownArchitecture {
        /// Its name.
        found: String,
        /// The configuration file.
        path: PathBuf,
    },

    /// A safetensors file is cut short, damaged, or not one.
    #[error(
        "not a whole safetensors file: {cause}, in `{}`\nhint: copy or download it again",
        .path.display()
    )]
    Weights {
        /// What is wrong with it.
        cause: String,
        /// The file.
        path: PathBuf,
    },

    /// An `.npz` is damaged, or holds what is not opened here.
    #[error("not an `.npz` of numbers: {cause}, in `{}`\nhint: copy or download it again", .path.display())]
    Npz {
        /// What is wrong with it.
        cause: String,
        /// The file.
        path: PathBuf,
    },

    /// A run has no activations of a coder's widths.
    #[error(
        "expected a hook point of width {d_in} to read and one of width {d_out} to speak of, found none in `{}`\nhint: record the hook point that the coder was trained on",
        .path.display()
    )]
    NothingToTest {
        /// The coder's input.
        d_in: usize,
        /// The coder's output.
        d_out: usize,
        /// The run.
        path: PathBuf,
    },

    /// Nothing here is a coder that can be opened.
    #[error("{what}: `{}`{hint}", .path.display())]
    NoDictionary {
        /// What is wrong, beginning with what was expected.
        what: String,
        /// The next step, on a line of its own, where there is one.
        hint: &'static str,
        /// The file or folder.
        path: PathBuf,
    },

    /// A tensor is missing.
    #[error("expected a tensor `{name}`, found {found} in `{}`", .path.display())]
    MissingTensor {
        /// Its name.
        name: String,
        /// The names that are there.
        found: String,
        /// The file.
        path: PathBuf,
    },

    /// A tensor has a shape that the configuration does not allow.
    #[error("expected `{name}` of shape {expected:?}, found {found:?} in `{}`", .path.display())]
    Shape {
        /// Its name.
        name: String,
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
        /// The file.
        path: PathBuf,
    },

    /// The coder and the activations do not fit.
    #[error(
        "expected activations of width {expected}, for which the coder was made, found {width} at `{hook}`\nhint: name the hook point that the coder was trained on"
    )]
    Width {
        /// The coder's input, or its output.
        expected: usize,
        /// The width of the recorded vectors.
        width: usize,
        /// The hook point.
        hook: String,
    },

    /// A transcoder was named where one hook point is read and written.
    #[error(
        "expected an autoencoder, found a transcoder, which reads one hook point and speaks of another: `{}`\nhint: its directions can be added: `add blocks.N.hook_mlp_out sae:DIR#FEATURE * 2`",
        .path.display()
    )]
    TwoSites {
        /// The coder's folder.
        path: PathBuf,
    },

    /// A coder between several hook points was named where one is read and written.
    #[error(
        "expected a coder of one hook point, found one between several: `{}`\nhint: `encode`, `evaluate` and `join` take it",
        .path.display()
    )]
    SeveralSites {
        /// The coder's folder.
        path: PathBuf,
    },

    /// A coder whose latents need sites that come later than some that they write.
    #[error(
        "expected latents that write no site from a later one, found a coder that reads all sites at once, which cannot stand in the model\nhint: `train --causal` makes one that can"
    )]
    NotOnline,

    /// Another number of hook points than the coder has.
    #[error("expected {expected} hook points, for which the coder was made, found {found}")]
    Sites {
        /// The coder's.
        expected: usize,
        /// Those that were named.
        found: usize,
    },

    /// A setting is out of range.
    #[error("expected {expected}, found `{name}` = {found}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },

    /// The coder has no such feature.
    #[error("expected a feature below {d_sae}, found {feature}")]
    Feature {
        /// Its number.
        feature: usize,
        /// How many there are.
        d_sae: usize,
    },

    /// Nothing to train on or to encode.
    #[error(
        "no activations are left at `{hook}` after special tokens, outliers and values that are not finite\nhint: record more text, or keep outliers with `max_norm_multiple` unset"
    )]
    NoActivations {
        /// The hook point.
        hook: String,
    },

    /// Nothing to put through a model again.
    #[error(
        "no sequence of text is whole in the run: expected each to begin at position 0, in `{}`\nhint: record it without `--skip-special`",
        .path.display()
    )]
    NoSequences {
        /// The run.
        path: PathBuf,
    },

    /// Training cannot go on.
    #[error("the loss is no longer finite at step {step}\nhint: lower the learning rate (now {lr:e})")]
    Diverged {
        /// Counted from 1.
        step: u64,
        /// At that step.
        lr: f64,
    },

    /// The folder holds a coder already.
    #[error(
        "a sparse coder exists already in `{}`\nhint: choose another name, or remove that folder",
        .path.display()
    )]
    CoderExists {
        /// The folder.
        path: PathBuf,
    },

    /// The folder holds the beginnings of a coder.
    #[error(
        "a training was begun in `{}`\nhint: `--resume` goes on with it, another name keeps both",
        .path.display()
    )]
    TrainingBegun {
        /// The folder.
        path: PathBuf,
    },

    /// Resuming was asked for with settings that give another coder.
    #[error(
        "expected `{name}` = {expected}, with which the training began, found {found}, in `{}`\nhint: resume with the same settings, or train under another name",
        .path.display()
    )]
    OtherSettings {
        /// The setting.
        name: String,
        /// In the checkpoint.
        expected: String,
        /// Now.
        found: String,
        /// The checkpoint.
        path: PathBuf,
    },

    /// A checkpoint has other bytes than were written.
    #[error(
        "not the bytes that were written: checkpoint `{}`\nhint: remove it, and `--resume` goes on from the one before",
        .path.display()
    )]
    BadCheckpoint {
        /// The checkpoint.
        path: PathBuf,
    },

    /// The caller asked to stop; what is durable stays.
    #[error("interrupted")]
    Interrupted,
}

impl From<io::Error> for Error {
    fn from(cause: io::Error) -> Self {
        Self::Io { cause }
    }
}

impl From<engine::error::Error> for Error {
    fn from(source: engine::error::Error) -> Self {
        Self::Engine(Box::new(source))
    }
}

impl From<tch::TchError> for Error {
    fn from(source: tch::TchError) -> Self {
        Self::Torch { source }
    }
}
