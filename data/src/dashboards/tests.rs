//! Do the records of others say what the table says?

use std::collections::HashMap;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::Value;

use super::*;
use crate::features::{Example, ExampleGroup, FeatureStats, FeatureTableInfo, FeatureTableWriter, PairOptions};
use crate::{Dtype, Run, testing};

const D_SAE: u32 = 5;

/// Feature f is active at tokens 3f and 3f + 1 of each document of ten, the first of which is special; the last never is.
fn table(dir: &Path) -> FeatureTable {
    table_with(dir, true)
}

fn table_with(dir: &Path, pairs: bool) -> FeatureTable {
    let run = testing::run(dir, 4, Dtype::F32, &[100, 60]);
    let info = FeatureTableInfo {
        coder: "c".into(),
        hook_point: testing::hook(),
        groups: Vec::new(),
        d_sae: D_SAE,
        n_tokens: 160,
        n_ordinary_tokens: 144,
        notes: Value::Null,
    };
    let mut writer = FeatureTableWriter::create(&run, "c", info, 1 << 20).unwrap();
    for token in 0..160u64 {
        let (place, strength) = (token % 10, (token / 10) as f32);
        if place < 9 && place % 3 < 2 {
            let feature = (place / 3) as u32;
            writer.write(&[token, token], &[feature, 3], &[1.0 + strength, 0.5]).unwrap();
        }
    }
    let mut sorted = writer.sort().unwrap();
    let stats: Vec<FeatureStats> = (0..D_SAE)
        .map(|feature| FeatureStats {
            feature,
            n_active: [16, 32, 32, 80, 0][feature as usize],
            frac_nonzero: f64::from([16, 32, 32, 80, 0][feature as usize]) / 144.0,
            max_act: if feature == 4 { 0.0 } else { 16.0 },
            top_logits: vec![(7, 1.23456), (9, 0.5)],
            bottom_logits: vec![(11, -2.0)],
            neighbours: vec![((feature + 1) % D_SAE, 0.25)],
            ..FeatureStats::default()
        })
        .collect();
    sorted.write_stats(&stats).unwrap();
    let example = |group: &str, token_idx, act| Example {
        feature: 1,
        group: group.into(),
        token_idx,
        act,
        context_start: token_idx / 10 * 10,
        context_len: 10,
        ..Example::default()
    };
    let examples = [example("top", 153, 16.0), example("interval-0", 4, 1.0), example("quantile-0", 3, 1.0)];
    sorted.write_examples(&examples).unwrap();
    let group =
        |group: &str, low, high, n_active| ExampleGroup { feature: 1, group: group.into(), low, high, n_active };
    sorted.write_groups(&[group("interval-0", 0.0, 8.0, 14), group("quantile-0", 1.0, 2.0, 4)]).unwrap();
    let options = PairOptions { min_both: 1, ..PairOptions::default() };
    if pairs {
        sorted.write_coactivation(&|tokens| run.special(tokens), options, &mut go_on).unwrap();
    }
    sorted.finish().unwrap();
    Run::open(dir).unwrap().feature_table("c").unwrap()
}

struct Known;

impl Directions for Known {
    fn direction(&self, feature: u32) -> Vec<f32> {
        vec![feature as f32, 0.0, -1.0]
    }

    fn logits(&self, directions: &[f32]) -> Vec<f32> {
        directions.chunks_exact(3).flat_map(|direction| [direction[0], 0.0, 1.0]).collect()
    }
}

fn options(format: DashboardFormat) -> DashboardOptions {
    DashboardOptions {
        format,
        features: None,
        batch: 2,
        model_id: None,
        source_set: "res-5".into(),
        suffix: Some("l0-2".into()),
        creator: "we".into(),
        creator_id: CREATOR_ID.into(),
        created_at: "2026-01-02T03:04:05Z".into(),
        correlations: true,
    }
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn lines(path: &Path) -> Vec<Value> {
    let mut text = String::new();
    GzDecoder::new(fs_err::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn neuronpedia_has_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(&dir.path().join("run"));
    let out = dir.path().join("out");
    let options = options(DashboardFormat::Neuronpedia);
    let report = export(&table, &options, Some(&Known), &out, &mut go_on).unwrap();
    assert_eq!((report.features, report.silent, report.activations), (5, 1, 2));
    let folder = out.join("tiny/1-res-5__l0-2");
    for (file, field, value) in [
        ("release.jsonl", "name", "res-5"),
        ("model.jsonl", "id", "tiny"),
        ("sourceset.jsonl", "releaseName", "res-5"),
        ("source.jsonl", "id", "1-res-5__l0-2"),
    ] {
        let text = fs_err::read_to_string(folder.join(file)).unwrap();
        assert_eq!(text.lines().count(), 1);
        let record: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&record[field], &record["createdAt"]), (&value.into(), &"2026-01-02T03:04:05Z".into()));
    }
    let features: Vec<Value> =
        (0..3).flat_map(|batch| lines(&folder.join(format!("features/batch-{batch}.jsonl.gz")))).collect();
    let indices: Vec<&str> = features.iter().map(|feature| feature["index"].as_str().unwrap()).collect();
    assert_eq!(indices, ["0", "1", "2", "3", "4"]);
    let one = &features[1];
    assert_eq!((one["layer"].as_str(), one["maxActApprox"].as_f64()), (Some("1-res-5__l0-2"), Some(16.0)));
    assert_eq!(one["topkCosSimIndices"], serde_json::json!([1, 2]));
    assert_eq!(one["topkCosSimValues"], serde_json::json!([1.0, 0.25]));
    assert_eq!(one["vector"], serde_json::json!([1.0, 0.0, -1.0]));
    assert_eq!(one["neuron_alignment_indices"], serde_json::json!([0, 1, 2]));
    assert_eq!((one["pos_values"][0].as_f64(), one["neg_str"][0].as_str()), (Some(1.235), Some("t11▁é")));
    assert_eq!(one["correlated_features_indices"], serde_json::json!([3]));
    let heights = one["freq_hist_data_bar_heights"].as_array().unwrap();
    assert_eq!((heights.len(), heights.iter().map(|n| n.as_u64().unwrap()).sum::<u64>()), (50, 32));
    assert_eq!(one["logits_hist_data_bar_heights"].as_array().unwrap().len(), 50);
    // Each of a batch has its own: feature 3 reaches to 3, feature 0 to 1.
    let greatest = |at: usize| features[at]["logits_hist_data_bar_values"][49].as_f64().unwrap();
    assert!(greatest(3) > 2.9 && greatest(0) < 1.0, "{} {}", greatest(3), greatest(0));
    assert_eq!(features[4]["freq_hist_data_bar_heights"], serde_json::json!([]));

    let activations = lines(&folder.join("activations/batch-0.jsonl.gz"));
    assert!(lines(&folder.join("activations/batch-1.jsonl.gz")).is_empty());
    let [top, low] = &activations[..] else { panic!("two passages: quantiles are no intervals of value") };
    assert_eq!(
        (top["binMin"].as_f64(), top["binMax"].as_f64(), top["binContains"].as_f64()),
        (Some(-1.0), Some(16.0), Some(-1.0))
    );
    // 14 of 32 activations, and 112 tokens at which it is silent.
    assert_eq!(low["binContains"].as_f64(), Some(((14.0 + 112.0) / 144.0 * 1e5_f64).round() / 1e5));
    let values: Vec<f64> = top["values"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    assert_eq!(values, [0.0, 0.0, 0.0, 16.0, 16.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!((top["maxValueTokenIndex"].as_u64(), top["qualifyingTokenIndex"].as_u64()), (Some(3), Some(3)));
    assert_eq!(top["tokens"][3], table.run().tokens(153..154).unwrap().token[0]);
    let id = top["id"].as_str().unwrap();
    assert!(id.len() == 25 && id != low["id"].as_str().unwrap());
}

/// Pearson and cosine.
fn correlation(a: &[f64], b: &[f64]) -> [f64; 2] {
    let n = a.len() as f64;
    let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (ones, [aa, bb, ab]) = (vec![1.0; a.len()], [sum(a, a), sum(b, b), sum(a, b)]);
    let (a, b) = (sum(a, &ones), sum(b, &ones));
    [(ab - a * b / n) / ((aa - a * a / n) * (bb - b * b / n)).sqrt(), ab / (aa * bb).sqrt()]
}

#[test]
fn neurons_and_features_correlate_as_counted_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let table = table_with(&dir.path().join("run"), false);
    let run = table.run();
    let width = run.hook_point(testing::hook()).unwrap().width;
    let ordinary: Vec<u64> =
        (0..160).zip(run.special(0..160).unwrap()).filter(|(_, special)| !special).map(|(i, _)| i).collect();
    let rows = run.acts(testing::hook(), 0..160).unwrap().to_f32();
    let neuron = |i: usize| ordinary.iter().map(|&t| f64::from(rows[t as usize * width + i])).collect::<Vec<_>>();
    let feature = |feature: u32| {
        let acts: HashMap<u64, f32> = table.acts_of_feature(feature, usize::MAX).unwrap().into_iter().collect();
        ordinary.iter().map(|token| acts.get(token).copied().unwrap_or(0.0).into()).collect::<Vec<f64>>()
    };
    let out = dir.path().join("out");
    export(&table, &options(DashboardFormat::SaeDashboard), None, &out, &mut go_on).unwrap();
    let batch: Value = serde_json::from_slice(&fs_err::read(out.join("batch-0.json")).unwrap()).unwrap();
    let found = &batch["features"][1];
    let mut expected: Vec<(usize, [f64; 2])> =
        (0..width).map(|i| (i, correlation(&feature(1), &neuron(i)))).filter(|(_, at)| at[0].is_finite()).collect();
    expected.sort_by(|a, b| b.1[0].total_cmp(&a.1[0]));
    for (at, (index, [pearson, cosine])) in expected.into_iter().take(3).enumerate() {
        assert_eq!(found["correlated_neurons_indices"][at], index);
        let number = |name: &str| found[name][at].as_f64().unwrap();
        assert!((number("correlated_neurons_pearson") - pearson).abs() < 6e-4);
        assert!((number("correlated_neurons_l1") - cosine).abs() < 6e-4);
    }
    // Pairs were not counted before, so they are now.
    assert_eq!(found["correlated_features_indices"], serde_json::json!([3]));
    let [pearson, _] = correlation(&feature(1), &feature(3));
    assert!((found["correlated_features_pearson"][0].as_f64().unwrap() - pearson).abs() < 6e-4);

    let without = DashboardOptions { correlations: false, ..options(DashboardFormat::SaeDashboard) };
    let out = dir.path().join("without");
    export(&table, &without, None, &out, &mut go_on).unwrap();
    let batch: Value = serde_json::from_slice(&fs_err::read(out.join("batch-0.json")).unwrap()).unwrap();
    let found = &batch["features"][1];
    assert_eq!(found["correlated_neurons_indices"], serde_json::json!([]));
    assert_eq!(found["correlated_features_indices"], serde_json::json!([]));
}

#[test]
fn sae_dashboard_has_its_batches() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(&dir.path().join("run"));
    let out = dir.path().join("out");
    let options = DashboardOptions { features: Some(1..5), ..options(DashboardFormat::SaeDashboard) };
    let report = export(&table, &options, None, &out, &mut go_on).unwrap();
    assert_eq!((report.features, report.silent), (4, 1));
    let read = |name: &str| -> Value { serde_json::from_slice(&fs_err::read(out.join(name)).unwrap()).unwrap() };
    assert_eq!(read("skipped_indexes.json")["skipped_indexes"], serde_json::json!([4]));
    assert_eq!(read("run_settings.json")["sae_set"], "res-5");
    let batch = read("batch-0.json");
    assert_eq!((batch["model_id"].as_str(), batch["layer"].as_u64()), (Some("tiny"), Some(1)));
    let indices: Vec<u64> =
        batch["features"].as_array().unwrap().iter().map(|f| f["feature_index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [1, 2]);
    let feature = &batch["features"][0];
    assert_eq!(feature["activations"][1]["bin_max"].as_f64(), Some(8.0));
    // Without a coder there is no vector, and without a model no histogram of logits.
    assert_eq!(
        (&feature["vector"], &feature["logits_hist_data_bar_values"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
    assert_eq!(read("batch-1.json")["features"].as_array().unwrap().len(), 1);
}

#[test]
fn nothing_is_left_of_an_export_that_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(&dir.path().join("run"));
    let out = dir.path().join("out");
    let options = options(DashboardFormat::Neuronpedia);
    let stopped = export(&table, &options, None, &out, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Interrupted)) && !out.exists());
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
    export(&table, &options, None, &out, &mut go_on).unwrap();
    let again = export(&table, &options, None, &out, &mut go_on).unwrap_err();
    assert!(matches!(again, Error::Exists { .. }), "{again}");
    let beyond = DashboardOptions { features: Some(0..9), ..options.clone() };
    assert!(export(&table, &beyond, None, &dir.path().join("b"), &mut go_on).is_err());
    let named = DashboardOptions { source_set: "../x".into(), ..options };
    assert!(export(&table, &named, None, &dir.path().join("b"), &mut go_on).is_err());
}

#[test]
fn a_model_that_was_named_by_its_path_has_a_name() {
    for (name, expected) in [
        ("gemma-3-270m", "gemma-3-270m"),
        ("data/mini/", "mini"),
        ("C:\\models\\gemma", "gemma"),
        ("/m/gemma-Q4.gguf", "gemma-Q4"),
    ] {
        assert_eq!(last_part(name), expected);
    }
}
