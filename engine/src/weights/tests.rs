use ::safetensors::tensor::{Dtype, TensorView, serialize};
use data::files::hex;
use half::f16;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;
use crate::testing::{cached_model, gguf_file};

mod family;

/// A model that has every kind of tensor and is quick to write.
fn tiny() -> Config {
    let json = json!({
        "model_type": "gemma3_text", "vocab_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4, "max_position_embeddings": 64,
        "query_pre_attn_scalar": 16
    });
    Config::from_hf(&json).unwrap()
}

/// Different numbers in every tensor, all of them exact in bf16.
fn numbers(name: &str, n: usize) -> Vec<f32> {
    let seed = name.bytes().map(usize::from).sum::<usize>();
    (0..n).map(|at| ((seed + 7 * at) % 251) as f32 / 64.0 - 1.0).collect()
}

fn bytes_in(dtype: Dtype, numbers: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        Dtype::BF16 => numbers.iter().flat_map(|&number| bf16::from_f32(number).to_le_bytes()).collect(),
        Dtype::F16 => numbers.iter().flat_map(|&number| f16::from_f32(number).to_le_bytes()).collect(),
        other => panic!("{other:?} is not written here"),
    }
}

struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn stored(name: &str, dtype: Dtype, shape: &[usize]) -> Stored {
    let n = shape.iter().product();
    let canonical = format!("model.{}", name.rsplit_once("layers.").map_or(name, |(_, rest)| rest));
    Stored { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: bytes_in(dtype, &numbers(&canonical, n)) }
}

/// The tensors of the tiny model under names with this prefix instead of `model.`.
fn checkpoint(prefix: &str, dtype: Dtype) -> Vec<Stored> {
    let rename = |name: &str| format!("{prefix}{}", name.strip_prefix("model.").unwrap_or(name));
    tiny().tensors().iter().map(|spec| stored(&rename(&spec.name), dtype, &spec.shape)).collect()
}

fn write(path: &Path, tensors: &[Stored]) {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap();
        (tensor.name.clone(), view)
    });
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

fn folder(tensors: &[Stored]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), tiny().to_hf().to_string()).unwrap();
    write(&dir.path().join("model.safetensors"), tensors);
    dir
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(tensor.to_kind(Kind::Float).flatten(0, -1)).unwrap()
}

fn expected(name: &str, n: usize) -> Vec<f32> {
    numbers(&format!("model.{}", name.rsplit_once("layers.").map_or(name, |(_, rest)| rest)), n)
}

#[test]
fn every_dtype_under_every_prefix() {
    for prefix in ["", "model.", "model.language_model.", "language_model.model."] {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let dir = folder(&checkpoint(prefix, dtype));
            let weights = Weights::open(dir.path()).unwrap();
            assert!(weights.changes().is_empty());
            assert_eq!(weights.quantization(), None);
            for spec in tiny().tensors() {
                for kind in [Kind::Float, Kind::BFloat16] {
                    let tensor = weights.tensor(&spec.name, kind).unwrap();
                    let size: Vec<usize> = tensor.size().iter().map(|&dim| dim as usize).collect();
                    assert_eq!((tensor.kind(), size), (kind, spec.shape.clone()), "{}", spec.name);
                    let written = format!("{prefix}{}", spec.name.strip_prefix("model.").unwrap());
                    assert_eq!(values(&tensor), expected(&written, tensor.numel()), "{}", spec.name);
                }
            }
        }
    }
}

#[test]
fn shards_are_one_checkpoint_with_or_without_an_index() {
    let tensors = checkpoint("model.", Dtype::BF16);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), tiny().to_hf().to_string()).unwrap();
    let (first, second) = tensors.split_at(5);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    write(&dir.path().join(names[0]), first);
    write(&dir.path().join(names[1]), second);
    let whole = Weights::open(dir.path()).unwrap();

    let mut map = serde_json::Map::new();
    for (file, tensors) in names.iter().zip([first, second]) {
        map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(file))));
    }
    fs::write(dir.path().join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    // A file that the index does not name is none of the checkpoint's.
    write(&dir.path().join("adapter.safetensors"), &[stored("other", Dtype::F32, &[1])]);
    let indexed = Weights::open(dir.path()).unwrap();
    assert_eq!(whole.infos(), indexed.infos());
    assert_eq!(indexed.files().len(), 2);
    assert_eq!(indexed.names().next(), Some("model.embed_tokens.weight"));

    fs::remove_file(dir.path().join(names[1])).unwrap();
    let message = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(
        message.starts_with("cannot read `") && message.ends_with("model-00002-of-00002.safetensors`"),
        "{message}"
    );
    fs::write(dir.path().join("model.safetensors.index.json"), r#"{"weight_map": {"a": "../b"}}"#).unwrap();
    let message = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(
        message.starts_with("expected a file name for tensor `a`, found \"../b\" in the safetensors index file"),
        "{message}"
    );
}

fn error(tensors: &[Stored]) -> String {
    let dir = folder(tensors);
    Weights::open(dir.path()).unwrap_err().to_string().replace(&dir.path().display().to_string(), "DIR")
}

#[test]
fn what_is_wrong_with_a_checkpoint_is_named() {
    let tensors = || checkpoint("model.", Dtype::F32);

    let mut missing = tensors();
    missing.retain(|tensor| tensor.name != "model.layers.1.mlp.up_proj.weight");
    assert!(error(&missing).starts_with("expected tensor `model.layers.1.mlp.up_proj.weight`, found none in `DIR`"));

    let mut wrong = tensors();
    wrong[1] = stored(&wrong[1].name, Dtype::F32, &[31]);
    assert_eq!(
        error(&wrong),
        "expected shape [32] for tensor `model.layers.0.input_layernorm.weight`, found [31] in `DIR/model.safetensors`"
    );

    let mut unexpected = tensors();
    unexpected.push(stored("model.layers.2.mlp.up_proj.weight", Dtype::F32, &[64, 32]));
    assert!(
        error(&unexpected)
            .starts_with("unexpected tensor `model.layers.2.mlp.up_proj.weight` in `DIR/model.safetensors`")
    );

    let mut twice = tensors();
    twice.push(stored("norm.weight", Dtype::F32, &[32]));
    assert!(error(&twice).starts_with("unexpected tensor `"));

    let mut dtype = tensors();
    dtype[0] = Stored { dtype: Dtype::F64, bytes: vec![0; 8 * 32 * 8], ..stored(&dtype[0].name, Dtype::F32, &[8, 32]) };
    assert_eq!(
        error(&dtype),
        "expected one of the dtypes F32, F16, BF16 for tensor `model.embed_tokens.weight`, found `F64` in `DIR/model.safetensors`"
    );
}

#[test]
fn the_parts_of_a_multimodal_checkpoint_are_left_out_and_listed() {
    let mut tensors = checkpoint("language_model.model.", Dtype::BF16);
    tensors.push(stored("vision_tower.vision_model.post_layernorm.weight", Dtype::F32, &[4]));
    tensors.push(stored("vision_tower.vision_model.post_layernorm.bias", Dtype::F32, &[4]));
    tensors.push(stored("multi_modal_projector.mm_soft_emb_norm.weight", Dtype::F32, &[4]));
    tensors.push(stored("language_model.lm_head.weight", Dtype::BF16, &[8, 32]));
    let dir = folder(&tensors);
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(
        weights.changes(),
        [
            "left out 1 tensors of the multimodal projector",
            "left out 1 tensors of the unembedding, which is tied to the embedding",
            "left out 2 tensors of the vision tower",
        ]
    );
}

#[test]
fn what_is_no_model_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let message =
        |path: &Path| Weights::open(path).unwrap_err().to_string().replace(&dir.path().display().to_string(), "DIR");
    assert!(message(dir.path()).contains("found a folder without `config.json` in `DIR`\nhint: "));
    assert_eq!(message(&dir.path().join("absent")), "cannot read `DIR/absent`");
    fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    assert_eq!(
        message(dir.path()),
        "expected one of the architectures `gemma3_text`, `gemma3`, `gemma3n_text`, `gemma3n`, `gemma4_text`, `gemma4`, \
         `gemma4_unified_text`, `gemma4_unified`, found `llama` in `DIR/config.json`"
    );
    fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(message(dir.path()).starts_with("expected JSON, found other text"));
    fs::write(dir.path().join("config.json"), tiny().to_hf().to_string()).unwrap();
    assert!(message(dir.path()).contains("found a folder without `*.safetensors` in `DIR`"));
    let file = dir.path().join("model.pt");
    fs::write(&file, "").unwrap();
    assert!(message(&file).contains("found a file that ends in `.pt` in `DIR/model.pt`"));
    let file = dir.path().join("model.gguf");
    fs::write(&file, "").unwrap();
    assert!(
        message(&file).starts_with("expected 4 bytes for the magic number, found 0 before the end in the GGUF file")
    );
}

#[test]
fn a_truncated_checkpoint_never_panics() {
    let dir = folder(&checkpoint("model.", Dtype::BF16));
    let file = dir.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    for length in (0..whole.len()).step_by(97) {
        fs::write(&file, &whole[..length]).unwrap();
        assert!(matches!(Weights::open(dir.path()).unwrap_err(), Error::Malformed { .. }), "{length}");
    }
}

/// The tiny model as llama.cpp's converter writes it: norms plus one, names and dimensions ggml's.
fn tiny_gguf(without: &str) -> Vec<u8> {
    let config = tiny();
    let int = |number: usize| gguf::Value::Int(number as i64);
    let metadata = [
        ("general.architecture", gguf::Value::Text("gemma3".to_owned())),
        ("general.file_type", int(7)),
        ("gemma3.context_length", int(config.n_ctx)),
        ("gemma3.embedding_length", int(config.d_model)),
        ("gemma3.block_count", int(config.n_layers)),
        ("gemma3.feed_forward_length", int(config.d_mlp)),
        ("gemma3.attention.head_count", int(config.n_heads)),
        ("gemma3.attention.head_count_kv", int(config.n_kv_heads)),
        ("gemma3.attention.key_length", int(config.d_head)),
        ("gemma3.attention.sliding_window", int(config.sliding_window)),
    ];
    let mut tensors = Vec::new();
    let mut add = |name: &str, canonical: &str, shape: Vec<usize>| {
        let n = shape.iter().product();
        let mut values = numbers(canonical, n);
        if name == without {
            return;
        }
        if shape.len() == 1 {
            for value in &mut values {
                *value += 1.0;
            }
            tensors.push((name.to_owned(), shape, 0, bytes_in(Dtype::F32, &values)));
        } else {
            // Q8_0 with the scale 1/64 holds these numbers exactly, but for the range.
            let blocks = values.chunks_exact(32).flat_map(|block| {
                let q = block.iter().map(|value| (value * 64.0).clamp(-127.0, 127.0) as i8 as u8);
                f16::from_f32(1.0 / 64.0).to_le_bytes().into_iter().chain(q).collect::<Vec<u8>>()
            });
            let blocks = blocks.collect();
            tensors.push((name.to_owned(), shape, 8, blocks));
        }
    };
    let parts = [
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ];
    for spec in config.tensors() {
        let name = match spec.name.as_str() {
            "model.embed_tokens.weight" => "token_embd.weight".to_owned(),
            "model.norm.weight" => "output_norm.weight".to_owned(),
            other => {
                let (layer, rest) = other.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
                let part = rest.strip_suffix(".weight").unwrap();
                let (name, _) = parts.iter().find(|(_, hf)| *hf == part).unwrap();
                format!("blk.{layer}.{name}.weight")
            }
        };
        add(&name, &spec.name, spec.shape.clone());
    }
    let tensors: Vec<(&str, Vec<usize>, u32, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape, format, bytes): &(String, Vec<usize>, u32, Vec<u8>)| {
            (name.as_str(), shape.clone(), *format, bytes.clone())
        })
        .collect();
    gguf_file(&metadata, &tensors)
}

#[test]
fn a_gguf_is_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    fs::write(&path, tiny_gguf("")).unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!(*weights.config(), tiny());
    assert_eq!(weights.quantization().as_deref(), Some("Q8_0"));
    assert_eq!(weights.changes()[0], "subtracted 1 in f32 from 13 norm weights, which GGUF stores as 1 + w");
    for spec in tiny().tensors() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let tensor = weights.tensor(&spec.name, kind).unwrap();
            assert_eq!(tensor.kind(), kind);
            let expected = numbers(&spec.name, tensor.numel());
            let expected: Vec<f32> = if spec.shape.len() == 1 {
                expected
            } else {
                expected.iter().map(|value| value.min(127.0 / 64.0)).collect()
            };
            assert_eq!(values(&tensor), expected, "{}", spec.name);
        }
    }
    let message = weights.tensor("model.norm.weight", Kind::Half).unwrap_err().to_string();
    assert_eq!(message, "expected dtype `f32` or `bf16` for tensor `model.norm.weight`, found `Half`");
    let sums = weights.sha256().unwrap();
    assert_eq!(sums[0].1, hex(&Sha256::digest(fs::read(&path).unwrap())));

    fs::write(&path, tiny_gguf("blk.1.ffn_up.weight")).unwrap();
    let message = Weights::open(&path).unwrap_err().to_string();
    assert!(message.starts_with("expected tensor `model.layers.1.mlp.up_proj.weight`, found none in `"), "{message}");
}

#[test]
fn a_damaged_gguf_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    let whole = tiny_gguf("");
    for length in (0..whole.len()).step_by(61) {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(Weights::open(&path).is_err(), "{length}");
    }
    // The header is what can lead astray; it ends before the first tensor's bytes.
    for at in (0..3000).step_by(3) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        fs::write(&path, &damaged).unwrap();
        if let Ok(weights) = Weights::open(&path) {
            assert_eq!(weights.tensor("model.norm.weight", Kind::Float).unwrap().numel(), 32, "byte {at}");
        }
    }
}

#[test]
fn inspection_reads_what_cannot_be_run() {
    let dir = folder(&checkpoint("model.", Dtype::BF16));
    fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    let inspection = inspect(dir.path()).unwrap();
    assert!(inspection.config.is_err());
    assert_eq!(inspection.tensors.len(), tiny().tensors().len());
    let embedding = inspection.tensors.iter().find(|info| info.name == "model.embed_tokens.weight").unwrap();
    assert_eq!(
        (embedding.dtype.as_str(), embedding.bytes, embedding.shape.as_slice()),
        ("BF16", 512, [8, 32].as_slice())
    );
}

#[test]
fn the_real_270m() {
    let Some(path) = cached_model() else {
        #[expect(clippy::print_stderr, reason = "a test that leaves itself out says so")]
        {
            eprintln!("left out: the real 270M is not in the cache");
        }
        return;
    };
    let weights = Weights::open(&path).unwrap();
    let preset = crate::config::Preset::find("gemma-3-270m").unwrap().config();
    // The metadata holds 1e-6 as f32.
    assert_eq!(*weights.config(), Config { rms_norm_eps: f64::from(1e-6_f32), ..preset });
    assert_eq!(weights.quantization().as_deref(), Some("Q4_K_M"));
    assert_eq!(weights.infos().len(), 236);
    assert_eq!(weights.formats()[0].0, "Q8_0");
    // Every norm weight is exact in bf16 once the 1 is gone.
    for name in weights.names().filter(|name| name.ends_with("norm.weight")) {
        let norm = weights.tensor(name, Kind::Float).unwrap();
        let rounded = norm.to_kind(Kind::BFloat16).to_kind(Kind::Float);
        assert!(norm.equal(&rounded), "{name}");
    }
    let embedding = weights.tensor("model.embed_tokens.weight", Kind::BFloat16).unwrap();
    assert_eq!(embedding.size(), [262_144, 640]);
    assert!(bool::try_from(embedding.isfinite().all()).unwrap());
}
