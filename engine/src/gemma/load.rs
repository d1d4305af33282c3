//! How do a model's weights get from a checkpoint into memory?

use std::fmt;

use tch::{Kind, Tensor};

use super::linear::Linear;
use super::norm::Norm;
use crate::config::{Config, Generation};
use crate::device::Device;
use crate::error::Result;
use crate::quantize::Quantize;
use crate::weights::Weights;

/// What a model computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}

impl Precision {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// Where the table of per-layer embeddings lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PlePlacement {
    /// In its file: only the rows of the tokens at hand are read.
    #[default]
    Disk,
    /// In main memory.
    Cpu,
    /// With the rest of the model.
    Device,
}

impl fmt::Display for PlePlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Cpu => "cpu",
            Self::Device => "device",
        })
    }
}

/// How a model is put into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LoadOptions {
    pub precision: Precision,
    pub device: Device,
    pub ple: PlePlacement,
    /// Pack the linear maps into a few bits while they are loaded.
    pub quantize: Option<Quantize>,
}

impl From<Precision> for LoadOptions {
    fn from(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}

/// Hands out the tensors of a checkpoint, in the dtype and on the device that were asked for.
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) options: LoadOptions,
}

impl Loader<'_> {
    pub(crate) fn config(&self) -> &Config {
        self.weights.config()
    }

    pub(crate) fn kind(&self) -> Kind {
        self.options.precision.kind()
    }

    pub(crate) fn device(&self) -> tch::Device {
        self.options.device.into()
    }

    /// A tensor by its canonical name.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.weights.tensor(name, self.kind())?.to_device(self.device()))
    }

    /// A linear map without a bias. `name` is without `.weight`.
    pub(crate) fn linear(&self, name: &str) -> Result<Linear> {
        self.map(name, None)
    }

    /// A linear map, with the bias that attention has in some checkpoints.
    pub(crate) fn projection(&self, name: &str) -> Result<Linear> {
        let bias = self.config().attention_bias.then(|| self.tensor(&format!("{name}.bias"))).transpose()?;
        self.map(name, bias)
    }

    /// One linear map for each expert, stored as one tensor `[n_experts, out, in]`.
    pub(crate) fn expert_linears(&self, name: &str) -> Result<Vec<Linear>> {
        let each = |experts: Tensor| (0..experts.size()[0]).map(move |expert| experts.select(0, expert));
        Ok(match self.packing(name) {
            // One expert at a time goes to the device, where it is packed.
            Some(quantize) => each(self.weights.tensor(name, Kind::Float)?)
                .map(|weight| Linear::packed(&weight.to_device(self.device()), quantize, self.kind(), None))
                .collect(),
            None => each(self.tensor(name)?).map(|weight| Linear::new(weight, None)).collect(),
        })
    }

    /// Everything in which the model differs from the files, in words.
    pub(crate) fn changes(&self) -> Vec<String> {
        let packed = self.options.quantize.map(|quantize| quantize.change(self.config()));
        self.weights.changes().iter().cloned().chain(packed).collect()
    }

    fn map(&self, name: &str, bias: Option<Tensor>) -> Result<Linear> {
        let name = format!("{name}.weight");
        Ok(match self.packing(&name) {
            Some(quantize) => {
                // Codes are made from the numbers of the file, not from what the dtype of the model leaves of them.
                let weight = self.weights.tensor(&name, Kind::Float)?.to_device(self.device());
                Linear::packed(&weight, quantize, self.kind(), bias)
            }
            None => Linear::new(self.tensor(&name)?, bias),
        })
    }

    fn packing(&self, name: &str) -> Option<Quantize> {
        self.options.quantize.filter(|_| Quantize::packs(name))
    }

    /// A norm with a weight, in the convention of the generation. `name` is without `.weight`.
    pub(crate) fn norm(&self, name: &str) -> Result<Norm> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        let eps = self.config().rms_norm_eps;
        Ok(match self.config().generation() {
            Generation::Gemma3 => Norm::one_plus(&weight, eps),
            Generation::Gemma3n | Generation::Gemma4 => Norm::plain(Some(&weight), eps),
        })
    }

    /// A norm that only normalizes; Gemma 3n and 4 have them.
    pub(crate) fn norm_without_weight(&self) -> Norm {
        Norm::plain(None, self.config().rms_norm_eps)
    }

    /// A number as a tensor without dimensions, rounded to the dtype of the model as the reference's buffers are.
    pub(crate) fn rounded(&self, value: f64) -> Tensor {
        Tensor::from(value).to_kind(Kind::Float).to_kind(self.kind()).to_device(self.device())
    }
}
