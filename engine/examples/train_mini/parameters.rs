//! Where do the weights begin, and which optimizer moves each of them?

use engine::config::Config;
use tch::{Device, Kind, Tensor};

/// Standard deviation of the router's logits at the beginning: some choice, so that experts come to differ.
const ROUTER_SPREAD: f64 = 0.3;

/// Which rule moves a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Of a linear map inside a layer: its momentum, made orthogonal.
    Muon,
    /// Of the rest, without decay: norms and scales, the router, and tables that are looked up, of which most rows are in
    /// few batches.
    AdamW,
}

/// One tensor of the checkpoint, in f32.
#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    pub(crate) rule: Rule,
}

/// Every weight of the model as training begins.
pub(crate) fn initial(config: &Config, seed: u64) -> Vec<Parameter> {
    #[expect(
        clippy::disallowed_methods,
        reason = "libtorch draws initial weights from its own stream; the seed is an argument"
    )]
    tch::manual_seed(seed as i64);
    let parameter = |(name, shape): (String, Vec<i64>)| Parameter {
        tensor: begin(&name, &shape, config),
        rule: rule(&name, shape.len()),
        name,
    };
    let specs = config.tensors().into_iter();
    specs.map(|spec| (spec.name, spec.shape.iter().map(|&dim| dim as i64).collect())).map(parameter).collect()
}

/// The tensors as the engine takes them: the same storage.
pub(crate) fn shared(parameters: &[Parameter]) -> Vec<(String, Tensor)> {
    parameters.iter().map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect()
}

fn begin(name: &str, shape: &[i64], config: &Config) -> Tensor {
    let float = (Kind::Float, Device::Cpu);
    let last = shape[shape.len() - 1] as f64;
    let constant = |value: f64| Tensor::ones(shape, float) * value;
    let normal = |deviation: f64| Tensor::randn(shape, float) * deviation;
    // Every part adds a vector of this length over √d_model to the stream, so that all of them together about double it.
    let part = (2.0 * config.n_layers as f64).powf(-0.5);
    match name {
        // Scores are not scaled: the norms of queries and keys carry d_head^-1/2.
        _ if name.ends_with("q_norm.weight") || name.ends_with("k_norm.weight") => constant(last.powf(-0.25)),
        _ if name.ends_with("post_attention_layernorm.weight")
            || name.ends_with("post_feedforward_layernorm.weight")
            || name.ends_with("post_per_layer_input_norm.weight") =>
        {
            constant(part)
        }
        _ if shape.len() == 1 => constant(1.0),
        _ if name.ends_with("router.proj.weight") => normal(ROUTER_SPREAD),
        // The scale of the table makes this the length √d_ple of each layer's part.
        _ if name.ends_with("embed_tokens_per_layer.weight") => {
            normal(config.ple.map_or(1.0, |p| p.d_ple as f64).powf(-0.5))
        }
        // Half as long as what a layer works on, so that no token is far more likely than another.
        _ if name.ends_with("embed_tokens.weight") => normal(0.5 * last.powf(-0.5)),
        _ => normal(last.powf(-0.5)),
    }
}

fn rule(name: &str, dimensions: usize) -> Rule {
    let is_map = dimensions > 1 && !name.contains("embed_tokens") && !name.ends_with("router.proj.weight");
    if is_map { Rule::Muon } else { Rule::AdamW }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_has_its_rule() {
        let config = Config::from_hf(&crate::recipe::config()).unwrap();
        let parameters = initial(&config, 1);
        let of = |name: &str| parameters.iter().find(|p| p.name == format!("model.{name}")).map(|p| p.rule);
        assert_eq!(of("embed_tokens_per_layer.weight"), Some(Rule::AdamW));
        assert_eq!(of("layers.2.router.proj.weight"), Some(Rule::AdamW));
        assert_eq!(of("layers.2.experts.gate_up_proj"), Some(Rule::Muon));
        assert_eq!(of("layers.2.layer_scalar"), Some(Rule::AdamW));
        assert_eq!(of("layers.7.self_attn.q_norm.weight"), Some(Rule::AdamW));
        assert_eq!(initial(&config, 1)[0].tensor, parameters[0].tensor);
    }
}
