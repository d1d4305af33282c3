//! Do the released sizes have the published shapes and counts?

use super::*;

fn config(name: &str) -> Config {
    Preset::find(name).unwrap().config()
}

#[test]
fn every_preset_survives_the_way_through_config_json() {
    for preset in PRESETS {
        let config = preset.config();
        config.check().unwrap();
        assert_eq!(Config::from_hf(&config.to_hf()).unwrap(), config, "{}", preset.name);
    }
    assert_eq!(config("gemma-3-27b").query_pre_attn_scalar, 5376.0 / 32.0);
}

#[test]
fn only_gemma_4_always_ends_on_a_full_layer() {
    let last = |preset: &Preset| (preset.name, kinds(&preset.config()).pop() == Some('F'));
    let expected = [("270m", true), ("1b", false), ("4b", false), ("12b", true), ("27b", false)];
    let found: Vec<(&str, bool)> = PRESETS[..5].iter().map(last).collect();
    assert_eq!(found, expected.map(|(name, full)| (Preset::find(&format!("gemma-3-{name}")).unwrap().name, full)));
    assert!(PRESETS[5..].iter().all(|preset| last(preset).1));
}

#[test]
fn parameters_add_up_to_what_the_names_say() {
    // In billions: all, without the table of per-layer embeddings, and what a token is multiplied by. The text stacks
    // only.
    for (name, all, effective, active) in [
        ("gemma-3-270m", 0.268, 0.268, 0.268),
        ("gemma-3-1b", 1.000, 1.000, 1.000),
        ("gemma-3-4b", 3.880, 3.880, 3.880),
        ("gemma-3-12b", 11.766, 11.766, 11.766),
        ("gemma-3-27b", 27.009, 27.009, 27.009),
        ("gemma-3n-e2b", 4.435, 2.422, 2.422),
        ("gemma-3n-e4b", 6.835, 4.486, 4.486),
        ("gemma-4-e2b", 4.629, 2.280, 2.280),
        ("gemma-4-e4b", 7.463, 4.644, 4.644),
        ("gemma-4-12b", 11.907, 11.907, 11.907),
        ("gemma-4-26b-a4b", 25.233, 25.233, 3.823),
        ("gemma-4-31b", 30.697, 30.697, 30.697),
    ] {
        let config = config(name);
        let found = [config.n_params(), config.n_params_effective(), config.n_params_active()].map(|n| n as f64 / 1e9);
        for (found, expected) in found.into_iter().zip([all, effective, active]) {
            assert!((found - expected).abs() < 0.001, "{name}: expected {expected}, found {found}");
        }
    }
}

/// The shapes that a layer's tensors have, by the end of their names.
fn shapes(config: &Config, layer: usize, part: &str) -> Vec<(String, Vec<usize>)> {
    let prefix = format!("model.layers.{layer}.{part}");
    let of_layer = config.tensors().into_iter().filter(|spec| spec.name.starts_with(&prefix));
    of_layer.map(|spec| (spec.name[prefix.len()..].to_owned(), spec.shape)).collect()
}

fn attention(name: &str, layer: usize) -> Vec<(String, Vec<usize>)> {
    let mut shapes = shapes(&config(name), layer, "self_attn.");
    shapes.retain(|(name, _)| name.ends_with("proj.weight"));
    shapes
}

type Shapes<'a> = &'a [(&'a str, &'a [usize])];

fn expected(shapes: Shapes<'_>) -> Vec<(String, Vec<usize>)> {
    shapes.iter().map(|(name, shape)| (format!("{name}_proj.weight"), shape.to_vec())).collect()
}

#[test]
fn published_shapes_of_gemma_4() {
    let full_of_31b: Shapes<'_> = &[("q", &[16384, 5376]), ("k", &[2048, 5376]), ("o", &[5376, 16384])];
    let cases: &[(&str, usize, Shapes<'_>)] = &[
        ("gemma-4-e2b", 13, &[("q", &[2048, 1536]), ("k", &[256, 1536]), ("v", &[256, 1536]), ("o", &[1536, 2048])]),
        ("gemma-4-e2b", 14, &[("q", &[4096, 1536]), ("k", &[512, 1536]), ("v", &[512, 1536]), ("o", &[1536, 4096])]),
        ("gemma-4-e2b", 34, &[("q", &[4096, 1536]), ("o", &[1536, 4096])]),
        ("gemma-4-31b", 0, &[("q", &[8192, 5376]), ("k", &[4096, 5376]), ("v", &[4096, 5376]), ("o", &[5376, 8192])]),
        ("gemma-4-31b", 5, full_of_31b),
        (
            "gemma-4-26b-a4b",
            0,
            &[("q", &[4096, 2816]), ("k", &[2048, 2816]), ("v", &[2048, 2816]), ("o", &[2816, 4096])],
        ),
        ("gemma-4-26b-a4b", 29, &[("q", &[8192, 2816]), ("k", &[1024, 2816]), ("o", &[2816, 8192])]),
        ("gemma-4-12b", 0, &[("q", &[4096, 3840]), ("k", &[2048, 3840]), ("v", &[2048, 3840]), ("o", &[3840, 4096])]),
        ("gemma-4-12b", 47, &[("q", &[8192, 3840]), ("k", &[512, 3840]), ("o", &[3840, 8192])]),
    ];
    for (name, layer, shapes) in cases {
        assert_eq!(attention(name, *layer), expected(shapes), "layer {layer} of {name}");
    }
    let experts = [("gate_up_proj".to_owned(), vec![128, 1408, 2816]), ("down_proj".to_owned(), vec![128, 2816, 704])];
    assert_eq!(shapes(&config("gemma-4-26b-a4b"), 7, "experts."), experts);
    let e2b = config("gemma-4-e2b");
    assert_eq!(e2b.ple, Some(PleConfig { d_ple: 256, d_vocab: 262_144 }));
    let table = e2b.tensors().into_iter().find(|spec| spec.name == "model.embed_tokens_per_layer.weight").unwrap();
    assert_eq!(table.shape, [262_144, 8960], "2.349 billion");
}

#[test]
fn sharing_and_double_width_of_the_released_sizes() {
    let sources = |name: &str| {
        let config = config(name);
        let first = config.layers.iter().position(|layer| layer.kv_source.is_some());
        let of =
            |kind| config.layers.iter().find(|l| l.kind == kind && l.kv_source.is_some()).and_then(|l| l.kv_source);
        (first, of(LayerKind::Sliding), of(LayerKind::Full))
    };
    assert_eq!(sources("gemma-3n-e2b"), (Some(20), Some(18), Some(19)));
    assert_eq!(sources("gemma-3n-e4b"), (Some(20), Some(18), Some(19)));
    assert_eq!(sources("gemma-4-e2b"), (Some(15), Some(13), Some(14)));
    assert_eq!(sources("gemma-4-e4b"), (Some(24), Some(22), Some(23)));
    assert_eq!(sources("gemma-4-31b"), (None, None, None));
    let widths: Vec<usize> = config("gemma-4-e2b").layers.iter().map(|layer| layer.d_mlp).collect();
    assert!(widths[..15].iter().all(|&width| width == 6144) && widths[15..].iter().all(|&width| width == 12288));
}
