//! A linear map: `x · Wᵀ`, with a bias where the checkpoint has one.

use tch::{Kind, Tensor};

use crate::quantize::{Packed, Quantize};

#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight, // [out, in]
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Weight {
    Plain(Tensor),
    Packed(Box<Packed>),
}

impl Linear {
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Plain(weight), bias }
    }

    /// Packs the weight, if its shape allows, for a model that computes in `kind`. `weight`: `[out, in]`, f32
    pub(crate) fn packed(weight: &Tensor, quantize: Quantize, kind: Kind, bias: Option<Tensor>) -> Self {
        let weight = match Packed::new(weight, quantize, kind) {
            Some(packed) => Weight::Packed(Box::new(packed)),
            None => Weight::Plain(weight.to_kind(kind)),
        };
        Self { weight, bias }
    }

    /// `[…, in]` to `[…, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        match (&self.weight, &self.bias) {
            (Weight::Plain(weight), bias) => x.linear(weight, bias.as_ref()),
            (Weight::Packed(weight), Some(bias)) => weight.forward(x) + bias,
            (Weight::Packed(weight), None) => weight.forward(x),
        }
    }

    /// The part of the map that reads inputs `start..start + length`, without the bias. `[…, length]` to `[…, out]`
    pub(crate) fn forward_part(&self, x: &Tensor, start: i64, length: i64) -> Tensor {
        match &self.weight {
            Weight::Plain(weight) => x.linear::<&Tensor>(&weight.narrow(1, start, length), None),
            Weight::Packed(weight) => weight.forward_part(x, start, length),
        }
    }
}
