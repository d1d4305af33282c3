//! Do dictionaries of other tools give what their formulas give, and what we refuse, is it named?

use std::{
    io::{Seek, SeekFrom, Write},
    path::PathBuf,
};

use fs_err as fs;
use serde_json::json;

use super::*;
use crate::{
    Crosscoder, Sae, SparseCoder, SparseRows,
    sae::{BAND, Scratch},
    testing::check_expected,
};

/// See `tests/fixtures/make_dictionary_fixtures.py`.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/dictionaries");
const D_SAE: usize = 37;

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn opened(name: &str) -> Sae {
    single(&fixture(name), &ImportOptions::default())
}

fn single(path: &Path, options: &ImportOptions) -> Sae {
    open(path, options).unwrap().single(path).unwrap()
}

#[test]
fn dictionaries_of_other_tools_give_what_their_formulas_give() {
    const PLACES: [(&str, &str, [Option<&str>; 2]); 12] = [
        (
            "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
            "jumprelu",
            [Some("blocks.20.hook_resid_post"), Some("blocks.20.hook_resid_post")],
        ),
        (
            "gemma-scope-9b-it-res/layer_9/width_16k/average_l0_30",
            "jumprelu",
            [Some("blocks.9.hook_resid_post"), Some("blocks.9.hook_resid_post")],
        ),
        (
            "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_5",
            "jumprelu_transcoder",
            [Some("blocks.3.ln2.hook_normalized"), Some("blocks.3.hook_mlp_out")],
        ),
        (
            "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_44",
            "jumprelu",
            [Some("hook_embed"), Some("hook_embed")],
        ),
        (
            "gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_medium",
            "jumprelu",
            [Some("blocks.9.hook_resid_post"), Some("blocks.9.hook_resid_post")],
        ),
        (
            "gemma-scope-2-270m-pt/attn_out/layer_9_width_16k_l0_medium",
            "jumprelu",
            [Some("blocks.9.attn.hook_z"), Some("blocks.9.attn.hook_z")],
        ),
        (
            "gemma-scope-2-270m-pt/transcoder/layer_9_width_16k_l0_medium",
            "jumprelu_transcoder",
            [Some("blocks.9.mlp.hook_in"), Some("blocks.9.hook_mlp_out")],
        ),
        (
            "gemma-scope-2-270m-pt/transcoder/layer_9_width_16k_l0_medium_affine",
            "jumprelu_skip_transcoder",
            [Some("blocks.9.mlp.hook_in"), Some("blocks.9.hook_mlp_out")],
        ),
        ("sparsify/layers.5", "topk", [Some("blocks.5.hook_resid_post"), Some("blocks.5.hook_resid_post")]),
        ("sparsify/layers.6", "abstopk", [Some("blocks.6.hook_resid_post"), Some("blocks.6.hook_resid_post")]),
        ("sparsify/layers.5.mlp", "topk_skip_transcoder", [Some("blocks.5.mlp.hook_in"), None]),
        ("llama_scope", "jumprelu", [Some("blocks.7.hook_resid_post"), Some("blocks.7.hook_resid_post")]),
    ];
    let out = tempfile::tempdir().unwrap();
    for (i, (name, architecture, hooks)) in PLACES.into_iter().enumerate() {
        let sae = opened(name);
        assert_eq!(sae.architecture(), architecture, "{name}");
        assert_eq!([sae.hook_name(), sae.hook_name_out()], hooks, "{name}");
        check_expected(&sae, &fixture(name), D_SAE);
        // As ours it is the same.
        let dir = out.path().join(i.to_string());
        sae.save(&dir).unwrap();
        assert_eq!(Sae::load(&dir).unwrap(), sae, "{name}");
    }
    for (name, architecture) in
        [("jumprelu", "jumprelu_transcoder"), ("relu_skip", "skip_transcoder"), ("topk", "topk_transcoder")]
    {
        let folder = fixture("circuit_tracer").join(name);
        let sae = single(&folder.join("layer_4.safetensors"), &ImportOptions::default());
        assert_eq!(sae.architecture(), architecture);
        assert_eq!(
            [sae.hook_name(), sae.hook_name_out()],
            [Some("blocks.4.mlp.hook_in"), Some("blocks.4.hook_mlp_out")]
        );
        check_expected(&sae, &folder, D_SAE);
    }
}

#[test]
fn coders_between_layers_give_what_their_formulas_give() {
    let mlp = |n: usize| {
        let at = |layer: usize| [format!("blocks.{layer}.mlp.hook_in"), format!("blocks.{layer}.hook_mlp_out")];
        (0..n).map(at).collect::<Vec<_>>()
    };
    let stream = [5, 9, 12].map(|layer| {
        let name = format!("blocks.{layer}.hook_resid_post");
        [name.clone(), name]
    });
    let resid_mid = (0..3).map(|at| [format!("blocks.{at}.hook_resid_mid"), format!("blocks.{at}.hook_mlp_out")]);
    let scope = "gemma-scope-2-270m-pt";
    let out = tempfile::tempdir().unwrap();
    for (i, (name, architecture, d_sae, hooks)) in [
        (format!("{scope}/crosscoder/layer_5_9_12_width_65k_l0_medium"), "causal_crosscoder", 33, stream.to_vec()),
        (format!("{scope}/clt/width_262k_l0_medium"), "cross_layer_transcoder", 36, mlp(4)),
        (format!("{scope}/clt/width_262k_l0_medium_affine"), "cross_layer_transcoder", 36, mlp(4)),
        ("circuit_tracer/cross_layer".to_owned(), "cross_layer_transcoder", 39, mlp(3)),
        ("circuit_tracer/cross_layer_relu".to_owned(), "cross_layer_transcoder", 39, resid_mid.collect()),
    ]
    .into_iter()
    .enumerate()
    {
        let coder = open(&fixture(&name), &ImportOptions::default()).unwrap();
        assert_eq!(coder.architecture(), architecture, "{name}");
        let [inputs, outputs] = coder.hook_names();
        let found: Vec<_> = inputs.iter().zip(&outputs).map(|(a, b)| [a.unwrap(), b.unwrap()]).collect();
        assert_eq!(found, hooks, "{name}");
        assert!(coder.is_online());
        check_expected(&*coder, &fixture(&name), d_sae);
        // As ours it is the same, but for room in decoders that is not used.
        let dir = out.path().join(i.to_string());
        coder.save(&dir).unwrap();
        let again = open(&dir, &ImportOptions::default()).unwrap();
        check_expected(&*again, &fixture(&name), d_sae);
        assert_eq!(again.hook_names(), coder.hook_names());
        assert_eq!(again.metadata(), coder.metadata());
        assert_eq!(Coder::load(&dir).unwrap(), again);
        // And in circuit-tracer's layout, without what only we write.
        if architecture == "cross_layer_transcoder" && !name.ends_with("relu") {
            fs::remove_file(dir.join("cfg.json")).unwrap();
            let theirs = open(&dir, &ImportOptions::default()).unwrap();
            check_expected(&*theirs, &fixture(&name), d_sae);
            assert_eq!(theirs.hook_names(), coder.hook_names(), "{name}");
        }
        assert!(matches!(coder.single(&dir), Err(Error::SeveralSites { .. })));
    }
    let Coder::Crosscoder(Crosscoder { groups, metadata, .. }) =
        open(&fixture(&format!("{scope}/clt/width_262k_l0_medium")), &ImportOptions::default()).unwrap()
    else {
        panic!("a coder between layers")
    };
    assert!(groups.iter().all(|group| group.w_enc.is_mapped() && group.w_dec.is_mapped()));
    assert_eq!(metadata["l0"], json!(50));
}

#[test]
fn a_damaged_coder_between_layers_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let coder = open(&fixture("circuit_tracer/cross_layer"), &ImportOptions::default()).unwrap();
    let saved = |name: &str| {
        let dir = folder.path().join(name);
        coder.save(&dir).unwrap();
        dir
    };
    let refused = |dir: &Path| Coder::load(dir).unwrap_err().to_string();
    let dir = saved("missing");
    fs::remove_file(dir.join("W_dec_1.safetensors")).unwrap();
    assert!(refused(&dir).contains("W_dec_1.safetensors"), "{}", refused(&dir));
    let dir = saved("shape");
    fs::copy(dir.join("W_dec_0.safetensors"), dir.join("W_dec_1.safetensors")).unwrap();
    assert!(refused(&dir).contains("expected a tensor `W_dec_1`"), "{}", refused(&dir));
    for (key, value, words) in [
        (
            "groups",
            json!([{"latents": 13, "reads": {"start": 0, "end": 9}, "writes": {"start": 0, "end": 3}}]),
            "expected groups",
        ),
        ("groups", json!([]), "expected groups"),
        ("activation", json!("softmax"), "found `softmax`"),
        ("inputs", json!("all"), "expected a coder between several sites"),
    ] {
        let dir = saved(&format!("{key}-{}", words.len()));
        let path = dir.join("cfg.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        assert!(refused(&dir).contains(words), "{}", refused(&dir));
    }
}

#[test]
fn labels_are_kept_and_hook_points_can_be_given() {
    let sae = opened("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71");
    assert_eq!((&sae.metadata["l0"], &sae.metadata["model_name"]), (&json!(71), &json!("gemma-2-2b")));
    let sae = opened("gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_medium");
    assert_eq!(sae.metadata["l0"], json!(60));
    assert!(sae.w_enc.is_mapped() && sae.w_dec.is_mapped());
    let options =
        ImportOptions { hook_out: Some("blocks.5.hook_mlp_out".parse().unwrap()), ..ImportOptions::default() };
    let sae = single(&fixture("sparsify/layers.5.mlp"), &options);
    assert_eq!(sae.hook_name_out(), Some("blocks.5.hook_mlp_out"));
}

#[test]
fn what_is_not_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| {
        let message = open(path, &ImportOptions::default()).unwrap_err().to_string();
        message.replace(&folder.path().display().to_string(), "DIR")
    };
    assert!(refused(folder.path()).starts_with("expected a coder of SAELens (`cfg.json`), Gemma Scope"));
    assert!(refused(&folder.path().join("no")).starts_with("no such file or folder"));
    fs::write(folder.path().join("ae.pt"), b"PK").unwrap();
    for path in [folder.path().to_owned(), folder.path().join("ae.pt")] {
        assert!(refused(&path).contains("a pickled file") && refused(&path).contains("hint: convert it in Python"));
    }
    let sets = fixture("circuit_tracer/relu_skip");
    assert!(refused(&sets).contains("hint: name the file of one, `layer_N.safetensors`"));
}

#[test]
fn a_million_latents_open_without_being_read() {
    const D_IN: usize = 2304;
    const LATENTS: usize = 1 << 20;
    const FEATURE: usize = 777_777;
    let folder = tempfile::tempdir().unwrap();
    let matrix = (D_IN * LATENTS * 4) as u64;
    let small = [("b_dec", D_IN), ("b_enc", LATENTS), ("threshold", LATENTS)];
    let mut header = serde_json::Map::new();
    header.insert("w_enc".into(), json!({"dtype": "F32", "shape": [D_IN, LATENTS], "data_offsets": [0, matrix]}));
    header.insert(
        "w_dec".into(),
        json!({"dtype": "F32", "shape": [LATENTS, D_IN], "data_offsets": [matrix, 2 * matrix]}),
    );
    let mut end = 2 * matrix;
    for (name, n) in small {
        let next = end + 4 * n as u64;
        header.insert(name.into(), json!({"dtype": "F32", "shape": [n], "data_offsets": [end, next]}));
        end = next;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let start = 8 + header.len() as u64;
    let mut file = fs::File::create(folder.path().join("params.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    // 19 GB of which the disk holds a few pages.
    file.seek(SeekFrom::Start(start + matrix + (4 * FEATURE * D_IN) as u64)).unwrap();
    file.write_all(bytemuck::cast_slice(&[1.5_f32, -2.0])).unwrap();
    file.set_len(start + end).unwrap();
    fs::write(folder.path().join("config.json"), json!({"architecture": "jump_relu", "l0": 60}).to_string()).unwrap();
    let sae = single(folder.path(), &ImportOptions::default());
    assert_eq!((sae.d_in(), sae.d_sae()), (D_IN, LATENTS));
    assert!(sae.w_enc.is_mapped() && sae.w_dec.is_mapped());
    assert_eq!(&sae.w_dec().row(FEATURE)[..3], &[1.5, -2.0, 0.0]);
}

#[test]
fn a_wide_coder_is_encoded_in_bands() {
    const WIDE: usize = 2 * BAND + 77;
    let small = opened("sparsify/layers.6");
    let d_in = small.d_in();
    let at = |i: usize| ((i * 7919) % 1009) as f32 / 500.0 - 1.0;
    let numbers = |n: usize| (0..n).map(at).collect::<Vec<f32>>();
    let wide = Sae {
        w_enc: crate::Matrix::from_slice(d_in, WIDE, &numbers(d_in * WIDE)),
        w_dec: crate::Matrix::zeros(WIDE, d_in),
        b_enc: numbers(WIDE),
        b_dec: vec![0.0; d_in],
        ..Sae::default()
    };
    let rows: Vec<f32> = (0..3 * d_in).map(|i| at(31 * i + 5)).collect();
    let mut all = vec![0.0; 3 * WIDE];
    crate::matrix::matmul(&rows, wide.w_enc.as_slice(), crate::matrix::Right::Plain, &mut all, [3, d_in, WIDE]);
    for activation in [
        crate::Activation::Relu,
        crate::Activation::TopK { k: 9 },
        crate::Activation::AbsTopK { k: 9 },
        crate::Activation::JumpRelu { threshold: numbers(WIDE).iter().map(|x| x.abs()).collect() },
    ] {
        let sae = Sae { activation: activation.clone(), ..wide.clone() };
        let mut acts = SparseRows::new();
        sae.encode(&rows, &mut Scratch::default(), &mut acts);
        for (row, z) in all.chunks_exact(WIDE).enumerate() {
            let z: Vec<f32> = z.iter().zip(&sae.b_enc).map(|(z, bias)| z + bias).collect();
            let mut expected = SparseRows::new();
            let mut select = crate::activation::Select::new(&activation, &sae.b_enc);
            select.select(&z, 0..WIDE, &mut Vec::new(), &mut expected);
            assert_eq!(acts.row(row).0, expected.row(0).0, "{activation:.20?}");
            let close = acts.row(row).1.iter().zip(expected.row(0).1).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(close, "{activation:.20?}");
        }
    }
}
