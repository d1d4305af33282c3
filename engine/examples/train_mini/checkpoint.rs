//! How does a training go on where it was interrupted, and what does it leave in the end?

use std::collections::HashMap;
use std::path::Path;

use fs_err as fs;
use half::bf16;
use safetensors::{Dtype, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::optimizer::Optimizer;
use crate::parameters::Parameter;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const STATE: &str = "state.safetensors";
const PROGRESS: &str = "progress.json";

/// How far the training is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Steps that are done.
    pub(crate) step: usize,
    pub(crate) seconds: f64,
    pub(crate) curve: Vec<Point>,
}

/// One row of the loss curve; losses are in nats a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) step: usize,
    pub(crate) tokens: usize,
    /// Mean over the steps since the row before.
    pub(crate) loss: f64,
    /// 1 where all experts are equally busy.
    pub(crate) balance: f64,
    /// Of a part of the held-out text, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) held_out: Option<f64>,
}

/// Writes all that a later call needs. The old state stays whole until the new one is.
pub(crate) fn save(dir: &Path, parameters: &[Parameter], optimizer: &Optimizer, progress: &Progress) -> Result<()> {
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (i, p) in parameters.iter().enumerate() {
        tensors.push((format!("weight/{}", p.name), p.tensor.detach()));
        tensors.push((format!("first/{}", p.name), optimizer.first[i].shallow_clone()));
        if optimizer.second[i].numel() > 0 {
            tensors.push((format!("second/{}", p.name), optimizer.second[i].shallow_clone()));
        }
    }
    let partial = dir.join("state.partial");
    Tensor::write_safetensors(&tensors, &partial)?;
    fs::rename(&partial, dir.join(STATE))?;
    fs::write(dir.join(PROGRESS), serde_json::to_string_pretty(progress)?)?;
    Ok(())
}

/// Takes up what [`save`] left, if anything.
pub(crate) fn resume(dir: &Path, parameters: &mut [Parameter], optimizer: &mut Optimizer) -> Result<Option<Progress>> {
    if !dir.join(STATE).is_file() {
        return Ok(None);
    }
    let stored: HashMap<String, Tensor> = Tensor::read_safetensors(dir.join(STATE))?.into_iter().collect();
    let find = |kind: &str, name: &str| {
        stored.get(&format!("{kind}/{name}")).ok_or_else(|| format!("no `{kind}/{name}` in the state of the training"))
    };
    for (i, p) in parameters.iter_mut().enumerate() {
        let weight = find("weight", &p.name)?;
        tch::no_grad(|| p.tensor.f_copy_(weight))?;
        optimizer.first[i].f_copy_(find("first", &p.name)?)?;
        if optimizer.second[i].numel() > 0 {
            optimizer.second[i].f_copy_(find("second", &p.name)?)?;
        }
    }
    Ok(Some(serde_json::from_slice(&fs::read(dir.join(PROGRESS))?)?))
}

/// Writes the checkpoint as a release has it: weights in bf16, `config.json`, `generation_config.json`.
pub(crate) fn export(dir: &Path, config: &Value, parameters: &[Parameter]) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut bytes: Vec<(&str, Vec<usize>, Vec<u8>)> = Vec::new();
    for p in parameters {
        let mut values = vec![0.0_f32; p.tensor.numel()];
        p.tensor.detach().to_kind(Kind::Float).contiguous().copy_data(&mut values, p.tensor.numel());
        let rounded: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        bytes.push((&p.name, p.tensor.size().iter().map(|&dim| dim as usize).collect(), rounded));
    }
    let mut views = Vec::new();
    for (name, shape, bytes) in &bytes {
        views.push((*name, TensorView::new(Dtype::BF16, shape.clone(), bytes)?));
    }
    // transformers asks for it.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &dir.join("model.safetensors"))?;
    write_json(&dir.join("config.json"), config)?;
    let roles = ["bos_token_id", "eos_token_id", "pad_token_id"].map(|role| (role.to_owned(), config[role].clone()));
    let mut generation: serde_json::Map<String, Value> = roles.into_iter().collect();
    generation.insert("do_sample".to_owned(), json!(true));
    write_json(&dir.join("generation_config.json"), &Value::Object(generation))
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    Ok(fs::write(path, serde_json::to_string_pretty(value)? + "\n")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::initial;
    use engine::config::Config;

    #[test]
    fn a_training_is_taken_up_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::from_hf(&crate::recipe::config()).unwrap();
        let mut parameters = initial(&config, 1);
        let mut optimizer = Optimizer::new(&parameters);
        assert!(resume(dir.path(), &mut parameters, &mut optimizer).unwrap().is_none());
        let step = |parameters: &mut [Parameter], optimizer: &mut Optimizer, n: usize| {
            let gradients: Vec<Tensor> = parameters.iter().map(|p| &p.tensor * (n + 1) as f64).collect();
            optimizer.step(parameters, &gradients, 1.0, n, 1.0);
        };
        step(&mut parameters, &mut optimizer, 0);
        save(dir.path(), &parameters, &optimizer, &Progress { step: 1, ..Progress::default() }).unwrap();
        step(&mut parameters, &mut optimizer, 1);

        let mut later = initial(&config, 2);
        let mut state = Optimizer::new(&later);
        let progress = resume(dir.path(), &mut later, &mut state).unwrap().unwrap();
        step(&mut later, &mut state, progress.step);
        for (one, other) in parameters.iter().zip(&later) {
            assert_eq!(one.tensor, other.tensor, "{}", one.name);
        }
    }

    #[test]
    fn the_engine_opens_what_is_exported() {
        let dir = tempfile::tempdir().unwrap();
        let json = crate::recipe::config();
        let config = Config::from_hf(&json).unwrap();
        export(dir.path(), &json, &initial(&config, 1)).unwrap();
        let weights = engine::weights::Weights::open(dir.path()).unwrap();
        assert_eq!(weights.config(), &config);
        assert_eq!(weights.formats().len(), 1);
    }
}
