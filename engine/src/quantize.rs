//! How are the matrices of a model kept in 8 or 4 bits, and multiplied without being unpacked as a whole?
//!
//! The linear maps of attention, of the MLPs, of the experts and around the per-layer embeddings are packed while they are
//! loaded, one tensor at a time. Embeddings, norms, routers and the small maps of Gemma 3n stay as they are.
//!
//! libtorch multiplies packed matrices itself, but not everywhere, and not everywhere fast or rightly: what it offers on
//! which device, in which dtype and for which shapes is decided in [`Packed`] alone. Elsewhere blocks of rows are unpacked
//! and multiplied one after the other.

mod tiles;

use std::fmt;
use std::str::FromStr;

use tch::{Device, Kind, Tensor};

use self::tiles::Tiles;
use crate::config::Config;
use crate::error::{Error, Result};

/// How linear maps are packed when a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantize {
    /// Whole numbers from −127 to 127, with a scale for each output: `w ≈ code · scale`.
    Int8,
    /// Whole numbers from 0 to 15, with a scale and an offset for each group of 64 (or 32) inputs of an output:
    /// `w ≈ (code − 8) · scale + zero`. A map whose inputs do not divide into such groups stays as it is.
    Int4,
}

/// Inputs that share a scale in [`Quantize::Int4`]: the first that divides the inputs of a map.
const GROUPS: [usize; 2] = [64, 32];

/// The ends of the canonical names of what is packed.
const PACKED: [&str; 12] = [
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "experts.gate_up_proj",
    "experts.down_proj",
    "per_layer_model_projection.weight",
    "per_layer_input_gate.weight",
    "per_layer_projection.weight",
];

/// Numbers that are unpacked at once: 32 MB in f32 on a CPU; on a CUDA device 128 MB, for which small steps are dear.
const BLOCK: i64 = 1 << 23;
const DEVICE_BLOCK: i64 = 1 << 25;
/// Bytes for each number that is being unpacked: its code, in bytes and in f32, and what it stands for.
const UNPACKING: u64 = 10;

/// Rows up to which libtorch's 8-bit product on a CPU is faster than unpacking, measured with 2,560 inputs and 10,240
/// outputs on two cores with AVX-512. In f32 it has no vector code.
const FEW_ROWS_BF16: i64 = 32;
const FEW_ROWS_F32: i64 = 2;
/// The same of the 4-bit product on a CUDA device, measured on an H100.
const FEW_ROWS_INT4: i64 = 256;

impl Quantize {
    /// Whether the tensor of this canonical name is packed, if its shape allows.
    pub(crate) fn packs(name: &str) -> bool {
        PACKED.iter().any(|end| name.ends_with(end))
    }

    /// Bytes of a matrix `[…, out, in]` once it is packed; `None` if it stays as it is. `kind`: what the model computes in.
    pub(crate) fn bytes(self, shape: &[usize], kind: Kind) -> Option<u64> {
        let &[ref outer @ .., d_in] = shape else { return None };
        let d_out = outer.iter().map(|&dim| dim as u64).product::<u64>();
        let number = kind.elt_size_in_bytes() as u64;
        match self {
            Self::Int8 => Some(d_out * (d_in as u64 + number)),
            Self::Int4 => group(d_in).map(|group| d_out * (d_in as u64 / 2 + (d_in / group) as u64 * 2 * number)),
        }
    }

    /// The most bytes that unpacking takes, beside the packed matrices.
    pub(crate) fn unpacking_bytes(device: Device) -> u64 {
        (if device == Device::Cpu { BLOCK } else { DEVICE_BLOCK }) as u64 * UNPACKING
    }

    /// What packing changes in a model, in words.
    pub(crate) fn change(self, config: &Config) -> String {
        let maps = config.tensors().into_iter().filter(|spec| Self::packs(&spec.name));
        let fits = |shape: &[usize]| self.bytes(shape, Kind::Float).is_some();
        let (packed, left): (Vec<_>, Vec<_>) = maps.partition(|spec| fits(&spec.shape));
        let how = match self {
            Self::Int8 => "int8, with a scale for each output".to_owned(),
            Self::Int4 => format!("int4, with a scale and an offset for each {} inputs", GROUPS[0]),
        };
        let left = match left.len() {
            0 => String::new(),
            n => format!("; {n} do not divide into groups and stay"),
        };
        format!("packed {} tensors of linear maps to {how}{left}", packed.len())
    }
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

impl FromStr for Quantize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err(Error::Quantization { found: text.to_owned() }),
        }
    }
}

fn group(d_in: usize) -> Option<usize> {
    GROUPS.into_iter().find(|&group| d_in > 0 && d_in.is_multiple_of(group))
}

/// A matrix `[out, in]` of a few bits for each number.
#[derive(Debug)]
pub(crate) struct Packed {
    form: Form,
    codes: Tensor,
    /// In the dtype of the model: `[out]` in 8 bits; scales and offsets, `[in / group, out, 2]`, in 4 bits.
    scales: Tensor,
    d_out: i64,
    d_in: i64,
}

#[derive(Debug)]
enum Form {
    /// `[out, in]`
    Bytes,
    /// `[out, in / 2]`, the even inputs in the high halves.
    Nibbles { group: i64 },
    /// In libtorch's own order for its 4-bit product on a CPU.
    LibtorchCpu { group: i64 },
    /// And on a CUDA device, whose order is known.
    LibtorchCuda { group: i64, tiles: Tiles },
}

impl Packed {
    /// Packs a matrix for a model that computes in `kind`; `None` if its shape does not allow it.
    ///
    /// `weight`: `[out, in]` in f32, on the device of the model.
    pub(crate) fn new(weight: &Tensor, quantize: Quantize, kind: Kind) -> Option<Self> {
        let _no_grad = tch::no_grad_guard();
        let (d_out, d_in) = weight.size2().ok()?;
        match quantize {
            Quantize::Int8 => Some(Self::int8(weight, d_out, d_in, kind)),
            Quantize::Int4 => group(d_in as usize).map(|group| Self::int4(weight, d_out, d_in, group as i64, kind)),
        }
    }

    fn int8(weight: &Tensor, d_out: i64, d_in: i64, kind: Kind) -> Self {
        let pack = |rows: &Tensor| {
            // The codes are for the scale as it is stored, so that its rounding costs nothing.
            let scale = (rows.abs().amax(1, true) / 127.0).to_kind(kind); // [rows, 1]
            let codes = (rows / nonzero(&scale)).round().clamp(-127.0, 127.0).to_kind(Kind::Int8);
            (codes, scale.squeeze_dim(1))
        };
        let (codes, scales) = in_blocks(weight, d_in, pack, 0);
        Self { form: Form::Bytes, codes, scales, d_out, d_in }
    }

    fn int4(weight: &Tensor, d_out: i64, d_in: i64, group: i64, kind: Kind) -> Self {
        let pack = |rows: &Tensor| {
            let grouped = rows.view([-1, d_in / group, group]);
            // With 0 in its range, an offset is of the size of the weights, and its rounding is small beside a step.
            let low = grouped.amin(2, true).clamp_max(0.0);
            let high = grouped.amax(2, true).clamp_min(0.0);
            let scale = ((high - &low) / 15.0).to_kind(kind); // [rows, in / group, 1]
            let zero = (low + scale.to_kind(Kind::Float) * 8.0).to_kind(kind);
            let codes = ((grouped - zero.to_kind(Kind::Float)) / nonzero(&scale) + 8.0).round().clamp(0.0, 15.0);
            let pairs = codes.view([-1, d_in / 2, 2]);
            let bytes = (pairs.select(2, 0) * 16.0 + pairs.select(2, 1)).to_kind(Kind::Uint8); // [rows, in / 2]
            (bytes, Tensor::cat(&[scale, zero], 2).transpose(0, 1)) // [in / group, rows, 2]
        };
        let (codes, scales) = in_blocks(weight, d_in, pack, 1);
        let scales = scales.contiguous();
        let packed = Self { form: Form::Nibbles { group }, codes, scales, d_out, d_in };
        if kind == Kind::BFloat16 { packed.into_libtorch(group) } else { packed }
    }

    /// libtorch's 4-bit products: bf16 on a CUDA device; any dtype on a CPU, where only that of bf16 has vector code.
    fn into_libtorch(self, group: i64) -> Self {
        match self.codes.device() {
            Device::Cpu if self.d_out % 16 == 0 => {
                // It wants every number by itself, as 32 bits.
                let codes =
                    self.numbers(0, self.d_out).to_kind(Kind::Int).internal_convert_weight_to_int4pack_for_cpu(1);
                Self { form: Form::LibtorchCpu { group }, codes, ..self }
            }
            device @ Device::Cuda(_) if self.d_out % tiles::OUTPUTS == 0 => {
                let tiles = Tiles::of(self.d_in, device);
                let codes = tiles.pack(&self.codes);
                Self { form: Form::LibtorchCuda { group, tiles }, codes, ..self }
            }
            _ => self,
        }
    }

    /// `x · Wᵀ`: `[…, in]`, in the dtype of the model, to `[…, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let mut size = x.size();
        let rows = x.reshape([-1, self.d_in]).contiguous();
        // libtorch's products have no gradient.
        let out = if x.requires_grad() { self.unpacked(&rows) } else { self.product(&rows) };
        if let Some(last) = size.last_mut() {
            *last = self.d_out;
        }
        out.view(size.as_slice())
    }

    /// The same for the inputs `start..start + length`, the others being 0.
    pub(crate) fn forward_part(&self, x: &Tensor, start: i64, length: i64) -> Tensor {
        self.forward(&x.constant_pad_nd([start, self.d_in - start - length]))
    }

    fn product(&self, rows: &Tensor) -> Tensor {
        let n = rows.size()[0];
        match (&self.form, rows.device(), rows.kind()) {
            // Not all of libtorch's products take none.
            _ if n == 0 => Tensor::zeros([0, self.d_out], (rows.kind(), rows.device())),
            (Form::LibtorchCpu { group }, ..) => self.libtorch_int4_on_cpu(rows, *group),
            (Form::LibtorchCuda { group, .. }, ..) if n <= FEW_ROWS_INT4 => {
                rows.internal_weight_int4pack_mm(&self.codes, *group, &self.scales)
            }
            // Its code for bf16 takes 32 inputs at a time, and reads past the end of a row that has others.
            (Form::Bytes, Device::Cpu, Kind::BFloat16) if n <= FEW_ROWS_BF16 && self.d_in % 32 == 0 => {
                rows.internal_weight_int8pack_mm(&self.codes, &self.scales)
            }
            // On a CUDA device it is there for f32 only.
            (Form::Bytes, _, Kind::Float) if n <= FEW_ROWS_F32 => {
                rows.internal_weight_int8pack_mm(&self.codes, &self.scales)
            }
            _ => self.unpacked(rows),
        }
    }

    fn libtorch_int4_on_cpu(&self, rows: &Tensor, group: i64) -> Tensor {
        rows.internal_weight_int4pack_mm_for_cpu(&self.codes, group, &self.scales)
    }

    /// The product by blocks of outputs, each of which is unpacked, used and dropped.
    fn unpacked(&self, rows: &Tensor) -> Tensor {
        let kind = self.scales.kind();
        let times = |weight: &Tensor| rows.matmul(&weight.transpose(0, 1));
        match &self.form {
            // Codes are exact in every dtype; the scale is applied to what comes out.
            Form::Bytes => self.by_blocks(|start, n| {
                times(&self.codes.narrow(0, start, n).to_kind(kind)) * self.scales.narrow(0, start, n)
            }),
            Form::Nibbles { group } => {
                self.by_blocks(|start, n| times(&self.weight(&self.numbers(start, n), start, *group)))
            }
            Form::LibtorchCuda { group, tiles } => {
                self.by_blocks(|start, n| times(&self.weight(&tiles.unpack(&self.codes, start, n), start, *group)))
            }
            // The product with the unit matrix is the matrix; only gradients come here.
            Form::LibtorchCpu { group } => {
                let unit = Tensor::eye(self.d_in, (kind, rows.device()));
                rows.matmul(&self.libtorch_int4_on_cpu(&unit, *group))
            }
        }
    }

    /// Outputs that are computed a block at a time: `of` gets the first one and their number.
    fn by_blocks(&self, of: impl Fn(i64, i64) -> Tensor) -> Tensor {
        let blocks = blocks(self.d_out, self.d_in, self.codes.device());
        let mut outputs: Vec<Tensor> = blocks.map(|(start, n)| of(start, n)).collect();
        if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(&outputs, 1) }
    }

    /// What 4-bit numbers `[n, in]` of the outputs from `start` on stand for.
    fn weight(&self, numbers: &Tensor, start: i64, group: i64) -> Tensor {
        let n = numbers.size()[0];
        let of = |which| self.scales.narrow(1, start, n).select(2, which).transpose(0, 1).unsqueeze(2);
        let mut codes = numbers.view([n, -1, group]).to_kind(Kind::Float);
        codes.g_sub_scalar_(8.0).g_mul_(&of(0)).g_add_(&of(1)).to_kind(self.scales.kind()).view([n, self.d_in])
    }

    /// The 4-bit numbers of outputs `start..start + n`, one a byte: `[n, in]`.
    fn numbers(&self, start: i64, n: i64) -> Tensor {
        let [high, low] = nibbles(&self.codes.narrow(0, start, n));
        Tensor::stack(&[high, low], 2).view([n, self.d_in])
    }
}

/// The two halves of bytes, the high ones first.
fn nibbles(bytes: &Tensor) -> [Tensor; 2] {
    [bytes.bitwise_right_shift_tensor_scalar(4), bytes.bitwise_and(15)]
}

/// What can be divided by: a row or a group of zeros has the scale 0.
fn nonzero(scale: &Tensor) -> Tensor {
    scale.to_kind(Kind::Float).clamp_min(f64::from(f32::MIN_POSITIVE))
}

/// Outputs that are unpacked together: first one and number.
fn blocks(d_out: i64, d_in: i64, device: Device) -> impl Iterator<Item = (i64, i64)> {
    let numbers = if device == Device::Cpu { BLOCK } else { DEVICE_BLOCK };
    // Whole tiles.
    let n = (numbers / d_in.max(1) / tiles::OUTPUTS * tiles::OUTPUTS).clamp(tiles::OUTPUTS, d_out.max(tiles::OUTPUTS));
    (0..d_out).step_by(n as usize).map(move |start| (start, n.min(d_out - start)))
}

/// Packs blocks of rows one after the other, and lays the codes and the scales together, these along `scales_dim`.
fn in_blocks(
    weight: &Tensor,
    d_in: i64,
    pack: impl Fn(&Tensor) -> (Tensor, Tensor),
    scales_dim: i64,
) -> (Tensor, Tensor) {
    let packed = blocks(weight.size()[0], d_in, weight.device())
        .map(|(start, n)| pack(&weight.narrow(0, start, n).contiguous()));
    let (codes, scales): (Vec<Tensor>, Vec<Tensor>) = packed.unzip();
    (Tensor::cat(&codes, 0), Tensor::cat(&scales, scales_dim))
}

#[cfg(test)]
mod tests;
