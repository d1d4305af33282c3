//! What does a model compute in, where, and does it fit there?

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;
use clap::{Args, ValueEnum};
use engine::config::Config;
use engine::device::Device;
use engine::gemma::model::{LoadOptions, PlePlacement, Precision};
use engine::plan;
use engine::quantize::Quantize;

/// Names a folder with libtorch's CUDA part.
const CUDA_FOLDER: &str = "POLARISCOPE_LIBTORCH_CUDA";

/// How a model computes.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Compute {
    /// What the model computes in
    #[arg(long, value_enum, default_value_t = ComputeDtype::F32)]
    pub(crate) dtype: ComputeDtype,

    /// Where the model computes: `cpu`, `cuda` or `cuda:1`
    #[arg(long, default_value_t = Device::Cpu)]
    pub(crate) device: Device,

    /// Keep the linear maps in `int8` or `int4`; they are packed while they are loaded
    #[arg(long, value_name = "BITS")]
    pub(crate) quantize: Option<Quantize>,

    /// Where the table of per-layer embeddings lies, if the model has one
    #[arg(long, value_enum, default_value_t = Ple::Disk)]
    pub(crate) ple: Ple,

    /// Threads to compute with; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
}

impl Compute {
    /// How the model is put into memory, once its device is ready and has room for it.
    ///
    /// Call it before anything else that uses libtorch.
    pub(crate) fn open(self, config: &Config) -> Result<LoadOptions> {
        let folders = if self.device == Device::Cpu { Vec::new() } else { cuda_folders() };
        self.device.open(&folders)?;
        let options = LoadOptions {
            device: self.device,
            ple: self.ple.placement(),
            quantize: self.quantize,
            ..self.dtype.precision().into()
        };
        plan::check(config, &options, self.device.free_memory())?;
        Ok(options)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ComputeDtype {
    #[default]
    F32,
    Bf16,
}

impl ComputeDtype {
    pub(crate) const fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ple {
    /// In its file: only the rows of the tokens at hand are read
    #[default]
    Disk,
    /// In main memory
    Cpu,
    /// With the rest of the model
    Device,
}

impl Ple {
    pub(crate) const fn placement(self) -> PlePlacement {
        match self {
            Self::Disk => PlePlacement::Disk,
            Self::Cpu => PlePlacement::Cpu,
            Self::Device => PlePlacement::Device,
        }
    }
}

/// Where libtorch's CUDA part may lie: where the environment says, and in Python's torch.
fn cuda_folders() -> Vec<PathBuf> {
    let named = std::env::var_os(CUDA_FOLDER).map(PathBuf::from);
    let libraries = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    named.into_iter().chain(std::env::split_paths(&libraries)).chain(python_torch()).collect()
}

/// The folder `torch/lib` of the Python that is first in the path. Finds it without importing it.
fn python_torch() -> Option<PathBuf> {
    const SCRIPT: &str = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
    let python =
        Command::new("python3").args(["-c", SCRIPT]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let folder = String::from_utf8(python.stdout).ok().filter(|_| python.status.success())?;
    Some(PathBuf::from(folder.trim()).join("lib"))
}
