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
/// The tensor of the state that holds the bytes of [`Progress`] as JSON: one file, so that neither is ever without the
/// other.
const PROGRESS: &str = "progress";

/// What a training was begun as, and how far it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Steps in all: the rates of each depend on it.
    pub(crate) steps: usize,
    /// What the network computes in.
    pub(crate) precision: String,
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
    tensors.push((PROGRESS.to_owned(), Tensor::from_slice(&serde_json::to_vec(progress)?)));
    let partial = dir.join("state.partial");
    Tensor::write_safetensors(&tensors, &partial)?;
    Ok(fs::rename(&partial, dir.join(STATE))?)
}

/// Takes up what [`save`] left; without that, the training begins as `asked`. One that was begun as another is refused.
pub(crate) fn resume(
    dir: &Path,
    asked: Progress,
    parameters: &mut [Parameter],
    optimizer: &mut Optimizer,
) -> Result<Progress> {
    let path = dir.join(STATE);
    if !path.is_file() {
        return Ok(asked);
    }
    let stored: HashMap<String, Tensor> = Tensor::read_safetensors(&path)?.into_iter().collect();
    let anew = format!("hint: to begin anew, remove `{}`", path.display());
    let find =
        |name: String| stored.get(&name).ok_or_else(|| format!("no `{name}` in the state of the training\n{anew}"));
    let progress = Vec::<u8>::try_from(find(PROGRESS.to_owned())?)?;
    let progress: Progress = serde_json::from_slice(&progress)?;
    let told = |of: &Progress| format!("--steps {} --precision {}", of.steps, of.precision);
    let (begun, found) = (told(&progress), told(&asked));
    if begun != found {
        return Err(format!("expected `{begun}`, as the training was begun, found `{found}`\n{anew}").into());
    }
    let find = |kind: &str, name: &str| find(format!("{kind}/{name}"));
    for (i, p) in parameters.iter_mut().enumerate() {
        let weight = find("weight", &p.name)?;
        tch::no_grad(|| p.tensor.f_copy_(weight))?;
        optimizer.first[i].f_copy_(find("first", &p.name)?)?;
        if optimizer.second[i].numel() > 0 {
            optimizer.second[i].f_copy_(find("second", &p.name)?)?;
        }
    }
    Ok(progress)
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
        let asked = Progress { steps: 7, precision: "f32".to_owned(), ..Progress::default() };
        assert_eq!(resume(dir.path(), asked.clone(), &mut parameters, &mut optimizer).unwrap().step, 0);
        let step = |parameters: &mut [Parameter], optimizer: &mut Optimizer, n: usize| {
            let gradients: Vec<Tensor> = parameters.iter().map(|p| &p.tensor * (n + 1) as f64).collect();
            optimizer.step(parameters, &gradients, 1.0, n, 1.0);
        };
        step(&mut parameters, &mut optimizer, 0);
        let point = Point { step: 1, tokens: 9, loss: 0.1 + 0.2, balance: 1.0, held_out: None };
        let begun = Progress { step: 1, seconds: 0.5, curve: vec![point], ..asked.clone() };
        save(dir.path(), &parameters, &optimizer, &begun).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "one file, which is there or not");
        step(&mut parameters, &mut optimizer, 1);

        let mut later = initial(&config, 2);
        let mut state = Optimizer::new(&later);
        let progress = resume(dir.path(), asked, &mut later, &mut state).unwrap();
        assert_eq!(serde_json::to_value(&progress).unwrap(), serde_json::to_value(&begun).unwrap());
        step(&mut later, &mut state, progress.step);
        for (one, other) in parameters.iter().zip(&later) {
            assert_eq!(one.tensor, other.tensor, "{}", one.name);
        }
    }

    #[test]
    fn a_training_is_not_taken_up_as_another() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::from_hf(&crate::recipe::config()).unwrap();
        let mut parameters = initial(&config, 1);
        let mut optimizer = Optimizer::new(&parameters);
        let asked =
            |steps: usize, precision: &str| Progress { steps, precision: precision.to_owned(), ..Progress::default() };
        save(dir.path(), &parameters, &optimizer, &asked(100, "bf16")).unwrap();
        let mut refused = |steps, precision| {
            resume(dir.path(), asked(steps, precision), &mut parameters, &mut optimizer).unwrap_err().to_string()
        };
        let expected = "expected `--steps 100 --precision bf16`, as the training was begun, found ";
        let hint = format!("\nhint: to begin anew, remove `{}`", dir.path().join(STATE).display());
        assert_eq!(refused(200, "bf16"), format!("{expected}`--steps 200 --precision bf16`{hint}"));
        assert_eq!(refused(100, "f32"), format!("{expected}`--steps 100 --precision f32`{hint}"));
        let bare: [(&str, Tensor); 0] = [];
        Tensor::write_safetensors(&bare, dir.path().join(STATE)).unwrap();
        assert_eq!(refused(100, "bf16"), format!("no `progress` in the state of the training{hint}"));
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
