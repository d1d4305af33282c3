//! What must survive any bytes? One function for each reader of files that come from elsewhere.
//!
//! A reader may refuse what it gets, in a sentence; it may not panic, hang, or take memory that the bytes do not justify.
//! `tests/e2e/hostile.rs` runs every target for a moment, `cargo xtask soak` under libFuzzer for long.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use data::corpus::Corpus;
use data::manifest::{self, HookPointEntry, Manifest, Routing};
use data::tables::DocumentRow;
use data::{Counts, Dtype, HookPoint, ModelShape, RoutingColumns, Run, RunWriter, TokenColumns};
use engine::gemma::model::{Model, Precision};
use engine::tokenizer::Tokenizer;
use engine::weights::Weights;
use fs_err as fs;
use scope::{Coder, ImportOptions, SparseRows, sae};

/// Documents of a corpus that are looked at.
const DOCUMENTS: usize = 64;

/// A reader, what it reads beside the bytes, and bytes to begin with.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Makes what lies around the file.
    prepare: fn(&Path),
    /// The file with the bytes, and what opens it.
    file: &'static str,
    read: fn(&Path),
    seeds: fn() -> Vec<Vec<u8>>,
}

pub(crate) const TARGETS: [Target; 15] = [
    Target { name: "gguf", prepare: nothing, file: "model.gguf", read: read_gguf, seeds: gguf_seeds },
    Target {
        name: "safetensors",
        prepare: |folder| copy("gemma4/moe/config.json", &folder.join("config.json")),
        file: "model.safetensors",
        read: read_weights,
        seeds: || fixtures(&["gemma4/moe/model.safetensors"]),
    },
    Target {
        name: "config",
        prepare: |folder| copy("gemma4/moe/model.safetensors", &folder.join("model.safetensors")),
        file: "config.json",
        read: read_weights,
        seeds: || fixtures(&["gemma4/moe/config.json", "gemma3n/other/config.json", "gemma3/text/config.json"]),
    },
    Target {
        name: "tokenizer",
        prepare: |folder| copy("chat/tiny/tokenizer_config.json", &folder.join("tokenizer_config.json")),
        file: "tokenizer.json",
        read: read_tokenizer,
        seeds: || fixtures(&["chat/tiny/tokenizer.json"]),
    },
    Target {
        name: "coder",
        prepare: |folder| copy("sae/jumprelu/cfg.json", &folder.join("cfg.json")),
        file: "sae_weights.safetensors",
        read: use_coder,
        seeds: || fixtures(&["sae/jumprelu/sae_weights.safetensors"]),
    },
    Target {
        name: "coder_config",
        prepare: |folder| copy("sae/topk/sae_weights.safetensors", &folder.join("sae_weights.safetensors")),
        file: "cfg.json",
        read: use_coder,
        seeds: || fixtures(&["sae/topk/cfg.json", "sae/jumprelu/cfg.json"]),
    },
    Target {
        name: "layers",
        prepare: between_layers,
        file: "W_dec_0.safetensors",
        read: use_coder,
        seeds: || of_layers("W_dec_0.safetensors"),
    },
    Target {
        name: "layers_config",
        prepare: between_layers,
        file: "cfg.json",
        read: use_coder,
        seeds: || of_layers("cfg.json"),
    },
    Target {
        name: "npz",
        prepare: nothing,
        file: "params.npz",
        read: |folder| drop(scope::pretrained::open(folder, &ImportOptions::default())),
        seeds: || {
            let of = |name: &str, rest: &str| format!("dictionaries/{name}/{rest}/params.npz");
            let stored = of("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71");
            let deflated = of("gemma-scope-9b-it-res", "layer_9/width_16k/average_l0_30");
            fixtures(&[&stored, &deflated])
        },
    },
    Target { name: "manifest", prepare: run, file: "manifest.json", read: read_run, seeds: || of_run("manifest.json") },
    Target { name: "journal", prepare: open_run, file: JOURNAL, read: read_run, seeds: || of_run(JOURNAL) },
    Target { name: "acts", prepare: run, file: ACTS, read: read_run, seeds: || of_run(ACTS) },
    Target { name: "tokens", prepare: run, file: TOKENS, read: read_run, seeds: || of_run(TOKENS) },
    Target { name: "corpus", prepare: nothing, file: "corpus.jsonl", read: read_corpus, seeds: corpus_seeds },
    Target { name: "hook_points", prepare: nothing, file: "list.txt", read: read_list, seeds: list_seeds },
];

/// What a target reads, in a folder of its own.
pub(crate) struct Scratch {
    target: &'static Target,
    folder: tempfile::TempDir,
}

impl Target {
    pub(crate) fn scratch(&'static self) -> Scratch {
        let folder = tempfile::tempdir().expect("a folder can be made");
        (self.prepare)(folder.path());
        Scratch { target: self, folder }
    }

    pub(crate) fn seeds(&self) -> Vec<Vec<u8>> {
        (self.seeds)()
    }
}

impl Scratch {
    /// Reads the bytes as the file that they stand for.
    pub(crate) fn read(&self, bytes: &[u8]) {
        let path = self.folder.path().join(self.target.file);
        fs::write(&path, bytes).expect("a file can be written");
        (self.target.read)(self.folder.path());
    }
}

fn nothing(_folder: &Path) {}

fn fixture(name: &str) -> PathBuf {
    super::fixtures().join(name)
}

fn fixtures(names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().map(|name| fs::read(fixture(name)).expect("the fixture is there")).collect()
}

fn copy(name: &str, to: &Path) {
    fs::copy(fixture(name), to).expect("the fixture is there");
}

/// A coder between layers, as we write it.
fn between_layers(folder: &Path) {
    let source = fixture("dictionaries/circuit_tracer/cross_layer");
    let coder = scope::pretrained::open(&source, &ImportOptions::default()).expect("the fixture is whole");
    coder.save(folder).expect("a folder can be written");
}

fn of_layers(file: &str) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    between_layers(folder.path());
    vec![fs::read(folder.path().join(file)).expect("it was just written")]
}

/// Opens a coder, and puts a row through what opens.
fn use_coder(folder: &Path) {
    let Ok(coder) = Coder::load(folder) else { return };
    if coder.d_in().max(coder.d_out()) > 1 << 16 {
        return;
    }
    let (row, mut acts) = (vec![0.5; coder.d_in()], SparseRows::new());
    coder.encode(&row, &mut sae::Scratch::default(), &mut acts);
    coder.decode(&acts, &row, &mut vec![0.0; coder.d_out()]);
}

fn read_gguf(folder: &Path) {
    read_weights(&folder.join("model.gguf"));
}

fn gguf_seeds() -> Vec<Vec<u8>> {
    fixtures(&["chat/tiny.gguf", "gemma4/moe.gguf"])
}

fn read_weights(path: &Path) {
    drop(engine::weights::inspect(path));
    let Ok(weights) = Weights::open(path) else { return };
    drop(Model::from_weights(&weights, Precision::F32));
    drop(weights.tokenizer());
}

fn read_tokenizer(folder: &Path) {
    let Ok(tokenizer) = Tokenizer::from_hf_dir(folder) else { return };
    let ids = tokenizer.ids("a stone, <start_of_turn> and\u{1f48e} light", true);
    drop(tokenizer.decode(&ids));
}

const JOURNAL: &str = "journal/shard-00001.json";
const ACTS: &str = "acts/hook_point=blocks.1.hook_resid_post/shard-00000.parquet";
const TOKENS: &str = "tokens/shard-00000.parquet";

fn shape() -> ModelShape {
    ModelShape {
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        d_model: 8,
        d_head: 4,
        d_mlp: 16,
        d_vocab: 300,
        n_ctx: 64,
        n_experts: 4,
        ..ModelShape::default()
    }
}

/// A small run with two shards, two hook points and one layer of routing; not closed yet.
fn write_run(folder: &Path) -> RunWriter {
    const N: u64 = 10;
    let shape = shape();
    let entry = |name: &str, dtype| HookPointEntry::new(name.parse().expect("it exists"), &shape, dtype);
    let hooks = [entry("blocks.1.hook_resid_post", Dtype::F32), entry("blocks.0.hook_resid_post", Dtype::I8)];
    let hooks = hooks.into_iter().collect::<data::Result<Vec<_>>>().expect("they have a width");
    let mut manifest = Manifest::new(manifest::Model::new("tiny", shape), manifest::Corpus::default(), hooks);
    manifest.routing = Some(Routing { n_experts: 4, top_k: 2, layers: vec![1], router_logits: false });
    let run = RunWriter::create(folder, manifest).expect("a run can be written");
    for index in 0..2 {
        let first = index * N;
        let mut shard = run.shard(index as usize, first).expect("a shard can be written");
        let mut tokens = TokenColumns::default();
        for pos in 0..N as u32 {
            tokens.push(index, pos, pos + 5, "strain", Some((0, 6)), pos == 0, Some(1.5));
        }
        shard.write_tokens(&tokens).expect("tokens can be written");
        let document = DocumentRow {
            doc_id: index,
            source: "news.txt".to_owned(),
            n_tokens: N,
            sha256: "00".repeat(32),
            meta: None,
            first_token_idx: first,
        };
        shard.write_documents(&[document]).expect("documents can be written");
        let rows: Vec<u8> = (0..N as usize * 8).flat_map(|i| (i as f32).to_le_bytes()).collect();
        for hook in 0..2 {
            shard.write_acts(hook, Dtype::F32, Bytes::from(rows.clone())).expect("rows can be written");
        }
        let columns = RoutingColumns {
            expert_ids: [2, 1].repeat(N as usize),
            weights: [0.6, 0.4].repeat(N as usize),
            probs: [0.5, 0.3].repeat(N as usize),
            entropy: vec![1.1; N as usize],
            dense_norm: vec![1.0; N as usize],
            moe_norm: vec![2.0; N as usize],
            router_logits: None,
        };
        shard.write_routing(1, &columns).expect("routing can be written");
        shard.commit(serde_json::Value::Null, Counts::captured(1, N)).expect("a shard can be closed");
    }
    run
}

fn open_run(folder: &Path) {
    drop(write_run(folder));
}

fn run(folder: &Path) {
    write_run(folder).finish("").expect("a run can be closed");
}

fn of_run(file: &str) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    run(folder.path());
    vec![fs::read(folder.path().join(file)).expect("the file was written")]
}

fn read_run(folder: &Path) {
    let Ok(run) = Run::open(folder) else { return };
    let all = 0..run.n_tokens();
    drop(run.tokens(all.clone()));
    drop(run.documents(0..run.n_documents()));
    drop(run.document_at(0));
    for entry in run.hook_points() {
        drop(run.acts(entry.name, all.clone()));
        drop(run.acts(entry.name, 0..1));
        drop(run.statistics(entry.name));
    }
    if let Ok(routing) = run.routing(1) {
        drop(routing.rows(all));
    }
    drop(data::verify::verify(&run, &mut |_| ControlFlow::Continue(())));
}

fn read_corpus(folder: &Path) {
    let file = folder.join("corpus.jsonl");
    // The same bytes as what other endings promise.
    let names = [folder.join("corpus.parquet"), folder.join("corpus.txt")];
    let mut paths = vec![file.clone()];
    for name in names {
        fs::copy(&file, &name).expect("a file can be copied");
        paths.push(name);
    }
    for path in paths {
        for lines in [false, true] {
            if let Ok(corpus) = Corpus::open(&[path.display().to_string()], lines) {
                corpus.documents().take(DOCUMENTS).for_each(drop);
            }
        }
    }
}

fn corpus_seeds() -> Vec<Vec<u8>> {
    let json = b"{\"text\": \"a stone\", \"title\": 1}\n{\"tokens\": [2, 17, 5]}\n\n{\"text\": \"\\ud83d\\udc8e\"}\n";
    vec![json.to_vec(), b"plain text\nof two lines\n".to_vec(), of_run(TOKENS).remove(0)]
}

fn read_list(folder: &Path) {
    let bytes = fs::read(folder.join("list.txt")).expect("the file was written");
    let Ok(text) = std::str::from_utf8(&bytes) else { return };
    drop(HookPoint::parse_list(text, &shape()));
    if let Ok(point) = text.parse::<HookPoint>() {
        assert_eq!(point.to_string().parse::<HookPoint>().expect("what is printed is read"), point);
    }
}

fn list_seeds() -> Vec<Vec<u8>> {
    ["blocks.*.hook_resid_post", "blocks.0-1.hook_mlp_out,hook_embed", "blocks.1.attn.hook_z"]
        .map(|list| list.as_bytes().to_vec())
        .to_vec()
}
