//! What does a model compute in, where, and does it fit there?

use anyhow::Result;
use clap::{Args, ValueEnum};
use engine::config::Config;
use engine::device::Device;
use engine::gemma::model::{LoadOptions, PlePlacement, Precision};
use engine::plan;
use engine::quantize::Quantize;

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
        self.device.open()?;
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
