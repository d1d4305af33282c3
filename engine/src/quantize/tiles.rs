//! Where does libtorch's 4-bit product on a CUDA device look for each number?
//!
//! It takes tiles of a few outputs and inputs, and within a tile the order in which its threads read. libtorch packs but
//! does not unpack, so the order is found out: numbers that say where they stand are packed, and looked at.

use tch::{Device, Kind, Tensor};

use super::nibbles;

/// Outputs of a tile.
pub(super) const OUTPUTS: i64 = 8;
/// Inputs that a product takes at once; a tile has a few times as many.
const INPUTS: i64 = 16;

/// How numbers lie in packed tiles.
#[derive(Debug)]
pub(super) struct Tiles {
    /// Inputs of a tile.
    inputs: i64,
    /// Where in the packed tile each number is, output by output. `[OUTPUTS · inputs]`
    place: Tensor,
}

impl Tiles {
    /// The widest tiles that a matrix of so many inputs, a multiple of 32, is made of.
    pub(super) fn of(d_in: i64, device: Device) -> Self {
        let inputs = [8, 4, 2].map(|times| times * INPUTS).into_iter().find(|inputs| d_in % inputs == 0);
        let inputs = inputs.unwrap_or(2 * INPUTS);
        let tiles = Self { inputs, place: Tensor::arange(OUTPUTS * inputs, (Kind::Int64, device)) };
        // A number of 4 bits says a digit of its place; three digits are enough for every place.
        let digit = |digit: i64| {
            let digits = tiles.place.bitwise_right_shift_tensor_scalar(4 * digit).bitwise_and(15);
            let pairs = digits.view([OUTPUTS, inputs / 2, 2]);
            let codes = (pairs.select(2, 0) * 16 + pairs.select(2, 1)).to_kind(Kind::Uint8);
            in_order(&tiles.pack(&codes)).to_kind(Kind::Int64).view([-1]) * (1_i64 << (4 * digit))
        };
        let comes_from = digit(0) + digit(1) + digit(2);
        Self { inputs, place: comes_from.argsort(0, false) }
    }

    /// Packs `[out, in / 2]`, the even inputs in the high halves.
    pub(super) fn pack(&self, codes: &Tensor) -> Tensor {
        codes.internal_convert_weight_to_int4pack(self.inputs / INPUTS)
    }

    /// The numbers of outputs `start..start + n`, whole tiles, one a byte: `[n, in]`.
    pub(super) fn unpack(&self, packed: &Tensor, start: i64, n: i64) -> Tensor {
        let rows = packed.narrow(0, start / OUTPUTS, n / OUTPUTS);
        let across = rows.size()[1];
        let tiles = in_order(&rows).view([n / OUTPUTS, across, -1]).index_select(2, &self.place);
        tiles.view([n / OUTPUTS, across, OUTPUTS, self.inputs]).permute([0, 2, 1, 3]).reshape([n, -1])
    }
}

/// The numbers of packed tiles as they lie in memory.
fn in_order(packed: &Tensor) -> Tensor {
    let [high, low] = nibbles(&packed.contiguous().view_dtype(Kind::Uint8));
    Tensor::stack(&[low, high], -1)
}
