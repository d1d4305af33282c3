//! Do the checkpoints of Gemma 3n and 4 that the reference and GGUF's writer made hold what they should?

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::names::{self, Meaning};
use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn json_of(name: &str) -> Value {
    read_json(&fixture(name)).unwrap()
}

const FOLDERS: [&str; 7] = [
    "gemma3n/text",
    "gemma3n/other",
    "gemma4/e",
    "gemma4/dense",
    "gemma4/moe",
    "gemma4/moe_ple",
    "gemma4/kv_eq_shared",
];

#[test]
fn every_checkpoint_of_the_reference_opens() {
    for folder in FOLDERS {
        let weights = Weights::open(fixture(folder)).unwrap();
        assert!(weights.changes().is_empty(), "{folder}: {:?}", weights.changes());
        for spec in weights.config().tensors() {
            let tensor = weights.tensor(&spec.name, Kind::Float).unwrap();
            assert!(bool::try_from(tensor.isfinite().all()).unwrap(), "{} of {folder}", spec.name);
        }
        let config = weights.config();
        assert_eq!(Config::from_hf(&config.to_hf()).unwrap(), *config, "{folder}");
    }
}

#[test]
fn both_spellings_of_a_configuration_are_the_same() {
    for folder in ["gemma3n/text", "gemma4/e", "gemma4/dense", "gemma4/moe"] {
        let read = |name: &str| Config::from_hf(&json_of(&format!("{folder}/{name}"))).unwrap();
        let (saved, hub) = (read("config.json"), read("config.hub.json"));
        assert_eq!(Config { architecture: saved.architecture, ..hub }, saved, "{folder}");
    }
}

#[test]
fn every_class_saves_what_is_asked_for_and_parts_that_are_not() {
    let mut unified = json_of("gemma4/dense/config.json");
    unified["model_type"] = json!("gemma4_unified_text");
    unified["num_hidden_layers"] = json!(2);
    unified["layer_types"] = json!(["sliding_attention", "full_attention"]);
    unified["per_layer_config"] = json!({"1": unified["per_layer_config"]["5"]});
    let config_of = |class: &str| {
        let json = match class {
            "Gemma3nForCausalLM" | "Gemma3nForConditionalGeneration" => json_of("gemma3n/other/config.json"),
            "Gemma4ForCausalLM" | "Gemma4ForConditionalGeneration" => json_of("gemma4/moe_ple/config.json"),
            _ => unified.clone(),
        };
        Config::from_hf(&json).unwrap()
    };
    let Value::Object(classes) = json_of("gemma4/names.json") else { panic!("classes") };
    assert_eq!(classes.len(), 5);
    for (class, tensors) in classes {
        let config = config_of(&class);
        let Value::Object(tensors) = tensors else { panic!("tensors") };
        let mut found = BTreeSet::new();
        let mut left_out = BTreeSet::new();
        for (name, shape) in tensors {
            match names::from_hf(&name, &config) {
                Meaning::Text(name) => {
                    let shape: Vec<usize> = serde_json::from_value(shape).unwrap();
                    assert!(found.insert((name, shape)));
                }
                Meaning::Ignored(part) => {
                    left_out.insert(part);
                }
            }
        }
        let expected: BTreeSet<_> = config.tensors().into_iter().map(|spec| (spec.name, spec.shape)).collect();
        assert_eq!(found, expected, "{class}");
        let parts: &[&str] = match class.as_str() {
            "Gemma4UnifiedForConditionalGeneration" => &["the audio embedder", "the vision embedder"],
            _ if class.ends_with("ForCausalLM") => &[],
            _ => &["the audio embedder", "the audio tower", "the vision embedder", "the vision tower"],
        };
        assert_eq!(left_out.into_iter().collect::<Vec<_>>(), parts, "{class}");
    }
}

#[test]
fn a_gguf_holds_the_same_numbers() {
    for (file, folder) in [
        ("gemma3n/text.gguf", "gemma3n/text"),
        ("gemma4/e.gguf", "gemma4/e"),
        ("gemma4/dense.gguf", "gemma4/dense"),
        ("gemma4/moe.gguf", "gemma4/moe"),
        ("gemma4/moe_split.gguf", "gemma4/moe"),
    ] {
        let (gguf, hf) = (Weights::open(fixture(file)).unwrap(), Weights::open(fixture(folder)).unwrap());
        // Metadata holds numbers as f32.
        let config = Config { rms_norm_eps: hf.config().rms_norm_eps, ..gguf.config().clone() };
        assert_eq!(config, *hf.config(), "{file}");
        for name in hf.names() {
            for kind in [Kind::Float, Kind::BFloat16] {
                let [expected, found] = [&hf, &gguf].map(|weights| weights.tensor(name, kind).unwrap());
                assert!(expected.equal(&found), "{name} of {file}");
            }
        }
    }
}

#[test]
fn what_differs_in_a_gguf_is_listed() {
    let changes = |file: &str| Weights::open(fixture(file)).unwrap().changes().to_vec();
    assert_eq!(
        changes("gemma3n/text.gguf"),
        [
            "left out 16 rows of zeros at the end of `per_layer_token_embd.weight`",
            "left out 15 tensors of keys and values in layers that read another's",
        ]
    );
    assert_eq!(changes("gemma4/dense.gguf"), ["left out 1 tensors of rotary frequencies, which are computed"]);
    let weights = Weights::open(fixture("gemma4/moe_split.gguf")).unwrap();
    let info = weights.infos().iter().find(|info| info.name == "model.layers.0.experts.gate_up_proj").unwrap();
    assert_eq!(info.stored_name, "blk.0.ffn_gate_exps.weight + blk.0.ffn_up_exps.weight");
    assert_eq!(info.bytes, 2 * info.shape.iter().product::<usize>() as u64);
    assert!(weights.stored(&info.name).unwrap().is_none());
    assert!(weights.stored("model.layers.0.experts.down_proj").unwrap().is_some());
}

#[test]
fn a_stored_tensor_is_where_it_is_said_to_be() {
    for (path, rows) in [("gemma3n/text.gguf", 144), ("gemma4/e", 160), ("gemma4/e.gguf", 160)] {
        let weights = Weights::open(fixture(path)).unwrap();
        let table = weights.stored("model.embed_tokens_per_layer.weight").unwrap().unwrap();
        assert_eq!(table.shape[0], rows, "{path}");
        let file = fs::read(table.path).unwrap();
        let bytes = table.shape.iter().product::<usize>() / table.format.values * table.format.bytes;
        let mut decoded = vec![0.0; table.shape.iter().product()];
        table.format.decode(&file[table.offset as usize..][..bytes], &mut decoded);
        let tensor = weights.tensor("model.embed_tokens_per_layer.weight", Kind::Float).unwrap();
        assert_eq!(decoded, values(&tensor), "{path}");
    }
}

#[test]
fn stray_keys_of_sharing_layers_are_left_out() {
    let json = json!({
        "model_type": "gemma4_text", "vocab_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 0, "attention_k_eq_v": true
    });
    let config = Config::from_hf(&json).unwrap();
    let mut tensors: Vec<Stored> =
        config.tensors().iter().map(|spec| stored(&spec.name, Dtype::BF16, &spec.shape)).collect();
    for stray in ["2.self_attn.k_proj", "2.self_attn.v_proj", "2.self_attn.k_norm", "1.self_attn.v_proj"] {
        tensors.push(stored(&format!("model.layers.{stray}.weight"), Dtype::BF16, &[3]));
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    write(&dir.path().join("model.safetensors"), &tensors);
    assert_eq!(
        Weights::open(dir.path()).unwrap().changes(),
        [
            "left out 3 tensors of keys and values in layers that read another's",
            "left out 1 tensors of values in layers whose values are their keys",
        ]
    );
}

#[test]
fn weights_in_memory_are_the_callers_own() {
    let config = Weights::open(fixture("gemma4/moe_ple")).unwrap().config().clone();
    let tensors = || -> BTreeMap<String, Tensor> {
        let leaf = |shape: &[usize]| {
            let size: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
            Tensor::ones(size, (Kind::Float, Device::Cpu)).set_requires_grad(true)
        };
        config.tensors().iter().map(|spec| (spec.name.clone(), leaf(&spec.shape))).collect()
    };
    let mine = tensors();
    let theirs = mine.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
    let weights = Weights::in_memory(config.clone(), theirs).unwrap();
    let name = "model.layers.0.experts.gate_up_proj";
    let same = weights.tensor(name, Kind::Float).unwrap();
    assert_eq!(same.data_ptr(), mine[name].data_ptr());
    (weights.tensor(name, Kind::BFloat16).unwrap() * 3.0).sum(Kind::Float).backward();
    assert!(mine[name].grad().equal(&Tensor::full_like(&mine[name], 3.0)), "gradients flow through a change of dtype");
    assert_eq!(weights.names().count(), config.tensors().len());
    assert!(weights.stored(name).unwrap().is_none() && weights.files().is_empty());
    assert_eq!(weights.formats()[0].0, "F32");
    let message = weights.tokenizer().unwrap_err().to_string();
    assert!(message.starts_with("no tokenizer in `memory`"), "{message}");

    let error = |tensors| Weights::in_memory(config.clone(), tensors).unwrap_err().to_string();
    let mut missing = tensors();
    missing.remove("model.norm.weight");
    assert!(error(missing).starts_with("expected tensor `model.norm.weight`, found none in `memory`"));
    let mut wrong = tensors();
    wrong.insert("model.layers.0.layer_scalar".to_owned(), Tensor::from(1.0));
    assert_eq!(error(wrong), "expected shape [1] for tensor `model.layers.0.layer_scalar`, found [] in `memory`");
    let mut extra = tensors();
    extra.insert("model.layers.0.other".to_owned(), Tensor::from(1.0));
    assert!(error(extra).starts_with("unexpected tensor `model.layers.0.other` in `memory`"));
}
