use std::ops::ControlFlow;
use std::path::Path;

use super::*;
use crate::parquet_io::{TableFile, TableWriter};
use crate::random::Random;
use crate::store::Run;
use crate::testing;
use crate::verify::verify;
use crate::{Dtype, Error};

const D_SAE: u32 = 50;
const N_TOKENS: u64 = 1000;

/// Rows in token order: feature 3 is active everywhere, 7 and the last one nowhere, the others here and there.
fn rows() -> (Vec<u64>, Vec<u32>, Vec<f32>) {
    let mut random = Random::new(1, 2, 3);
    let mut rows = (Vec::new(), Vec::new(), Vec::new());
    for token in 0..N_TOKENS {
        for feature in 0..D_SAE - 1 {
            if feature != 7 && (feature == 3 || random.below(20) == 0) {
                rows.0.push(token);
                rows.1.push(feature);
                // Few values, so that many are equal.
                rows.2.push(random.below(30) as f32 * 0.5 + 0.5);
            }
        }
    }
    rows
}

fn info() -> FeatureTableInfo {
    FeatureTableInfo {
        coder: "c".to_owned(),
        hook_point: testing::hook(),
        groups: Vec::new(),
        d_sae: D_SAE,
        n_tokens: N_TOKENS,
        n_ordinary_tokens: N_TOKENS - N_TOKENS / testing::DOC_TOKENS,
        notes: serde_json::Value::Null,
    }
}

fn stats(feature: u32) -> FeatureStats {
    FeatureStats {
        feature,
        n_active: u64::from(feature) * 2,
        frac_nonzero: f64::from(feature) / 64.0,
        mean_act: f64::from(feature) * 0.5,
        max_act: feature as f32,
        act_hist: (0..ACT_BINS as u64).map(|bin| bin * u64::from(feature)).collect(),
        top_logits: (0..feature % 4).map(|i| (i + 100, i as f32)).collect(),
        bottom_logits: vec![(feature, -1.0)],
        decoder_norm: 1.0,
        encoder_norm: Some(2.0),
        encoder_decoder_cosine: feature.is_multiple_of(2).then_some(0.25),
        neighbours: vec![((feature + 1) % D_SAE, 0.5)],
        first_fired: (!feature.is_multiple_of(3)).then_some(5),
        last_fired: (!feature.is_multiple_of(3)).then_some(995),
    }
}

fn examples() -> Vec<Example> {
    let example = |feature, rank| Example {
        feature,
        rank,
        group: if rank == 0 { "top".to_owned() } else { "interval-0".to_owned() },
        token_idx: u64::from(feature * 10 + rank),
        act: 1.0,
        context_start: 0,
        context_len: 20,
    };
    (0..D_SAE)
        .filter(|feature| feature % 2 == 0)
        .flat_map(|feature| [example(feature, 0), example(feature, 1)])
        .collect()
}

fn groups() -> Vec<ExampleGroup> {
    let group = |feature| ExampleGroup { feature, group: "interval-0".to_owned(), low: 0.0, high: 2.5, n_active: 7 };
    (0..D_SAE).filter(|feature| feature % 2 == 0).map(group).collect()
}

const PAIRS: PairOptions = PairOptions { top: 4, min_both: 2, rank: PairRank::Phi, memory: DEFAULT_SORT_MEMORY };

/// A run of three shards with a feature table that was sorted with this much memory.
fn build(dir: &Path, memory: usize) -> Run {
    let run = testing::run(dir, 4, Dtype::F32, &[400, 0, 600]);
    let (token_idx, feature, act) = rows();
    let mut writer = FeatureTableWriter::create(&run, "c", info(), memory).unwrap();
    for start in (0..token_idx.len()).step_by(97) {
        let end = (start + 97).min(token_idx.len());
        writer.write(&token_idx[start..end], &feature[start..end], &act[start..end]).unwrap();
    }
    let mut sorted = writer.sort().unwrap();
    assert_eq!((sorted.n_rows(3), sorted.n_rows(7), sorted.n_rows(D_SAE - 1)), (N_TOKENS, 0, 0));
    let visited: Vec<FeatureRows> = sorted.rows(0..D_SAE).unwrap().map(Result::unwrap).collect();
    assert_eq!(visited.iter().map(|rows| rows.act.len()).sum::<usize>(), token_idx.len());
    assert!(visited.windows(2).all(|pair| pair[0].feature < pair[1].feature));
    let some: Vec<FeatureRows> = sorted.rows(3..8).unwrap().map(Result::unwrap).collect();
    assert_eq!(some.iter().map(|rows| rows.feature).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert_eq!(some[0], visited[3]);
    sorted.write_stats(&(0..20).map(stats).collect::<Vec<_>>()).unwrap();
    sorted.write_stats(&(20..D_SAE).map(stats).collect::<Vec<_>>()).unwrap();
    sorted.write_examples(&examples()).unwrap();
    sorted.write_groups(&groups()).unwrap();
    let options = PairOptions { memory, ..PAIRS };
    sorted.write_coactivation(&|tokens| run.special(tokens), options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(run.feature_tables().unwrap().is_empty());
    sorted.finish().unwrap();
    assert_eq!(run.feature_tables().unwrap(), ["c"]);
    run
}

fn all_by_feature(table: &FeatureTable) -> Vec<(u32, u64, f32)> {
    let of = |feature| table.acts_of_feature(feature, usize::MAX).unwrap().into_iter();
    (0..D_SAE).flat_map(|feature| of(feature).map(move |(token, act)| (feature, token, act))).collect()
}

#[test]
fn rows_are_ordered_by_feature_and_falling_activation() {
    let dir = tempfile::tempdir().unwrap();
    let run = build(dir.path(), DEFAULT_SORT_MEMORY);
    let table = run.feature_table("c").unwrap();
    let (token_idx, feature, act) = rows();
    let mut expected: Vec<(u32, u64, f32)> = (0..act.len()).map(|i| (feature[i], token_idx[i], act[i])).collect();
    expected.sort_by(|a, b| a.0.cmp(&b.0).then(b.2.total_cmp(&a.2)).then(a.1.cmp(&b.1)));
    assert_eq!(all_by_feature(&table), expected);
    assert_eq!(table.acts_of_feature(3, 5).unwrap().len(), 5);
    assert!(table.acts_of_feature(7, 5).unwrap().is_empty());
    assert!(matches!(table.acts_of_feature(D_SAE, 1), Err(Error::OutOfRange { .. })));
}

#[test]
fn little_memory_gives_the_same_files() {
    let files = |memory: usize| {
        let dir = tempfile::tempdir().unwrap();
        let run = build(dir.path(), memory);
        let report = verify(&run, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        assert_eq!(report.problems, []);
        let folder = dir.path().join("features/c");
        let names = crate::files::names_in(&folder.join("by_feature"), false).unwrap();
        // Two folders of rows, statistics, examples and their groups, pairs and the sums of all.
        assert_eq!(fs_err::read_dir(&folder).unwrap().count(), 7);
        let names = names.iter().map(|name| format!("by_feature/{name}")).chain([COACTIVATION.to_owned()]);
        names.map(|name| fs_err::read(folder.join(name)).unwrap()).collect::<Vec<_>>()
    };
    let whole = files(DEFAULT_SORT_MEMORY);
    // Several features a bucket; then less than one dense feature, which is sorted in runs; then one row at a time.
    for rows_in_memory in [1500, 600, 40, 1] {
        assert_eq!(files(rows_in_memory * 32), whole, "{rows_in_memory}");
    }
}

#[test]
fn tokens_have_their_features_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let run = build(dir.path(), 1 << 20);
    let table = run.feature_table("c").unwrap();
    let (token_idx, feature, act) = rows();
    for range in [0..N_TOKENS, 399..401, 400..400, 999..1000] {
        let found = table.features_at(range.clone()).unwrap();
        let expected: Vec<usize> = (0..act.len()).filter(|&i| range.contains(&token_idx[i])).collect();
        assert_eq!(found.token_idx, expected.iter().map(|&i| token_idx[i]).collect::<Vec<_>>());
        assert_eq!(found.feature, expected.iter().map(|&i| feature[i]).collect::<Vec<_>>());
        assert_eq!(found.act, expected.iter().map(|&i| act[i]).collect::<Vec<_>>());
    }
    let at = table.features_at(10..20).unwrap();
    let expected: Vec<(u32, f32)> =
        (0..act.len()).filter(|&i| token_idx[i] == 12).map(|i| (feature[i], act[i])).collect();
    assert_eq!(at.of_token(12).collect::<Vec<_>>(), expected);
    assert!(table.features_at(999..1001).is_err());
}

#[test]
fn statistics_and_examples_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let run = build(dir.path(), 1 << 20);
    let table = run.feature_table("c").unwrap();
    assert_eq!((table.name(), table.n_features(), table.info()), ("c", D_SAE, &info()));
    assert_eq!(table.stats(0..D_SAE).unwrap(), (0..D_SAE).map(stats).collect::<Vec<_>>());
    assert_eq!(table.stats(13..14).unwrap(), [stats(13)]);
    let summary = table.summary().unwrap();
    assert_eq!(summary.feature, (0..D_SAE).collect::<Vec<_>>());
    assert_eq!(summary.last_fired[4], Some(995));
    assert_eq!(table.examples(0..D_SAE).unwrap(), examples());
    assert_eq!(table.examples(4..5).unwrap(), examples()[4..6]);
    assert!(table.examples(5..6).unwrap().is_empty());
    assert_eq!(table.groups(0..D_SAE).unwrap(), groups());
    assert_eq!(table.groups(3..6).unwrap(), groups()[2..3]);
    assert!(table.stats(0..D_SAE + 1).is_err());
    let error = run.feature_table("d").unwrap_err().to_string();
    assert!(error.contains("found `d`") && error.contains("is `c`"), "{error}");
}

#[test]
fn a_table_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let run = build(dir.path(), 1 << 20);
    let before = run.feature_table("c").unwrap().stats(0..D_SAE).unwrap();
    // A second one of that name that does not come to its end.
    let mut writer = FeatureTableWriter::create(&run, "c", info(), 1 << 20).unwrap();
    writer.write(&[0, 1], &[1, 0], &[1.0, 2.0]).unwrap();
    let sorted = writer.sort().unwrap();
    assert!(sorted.finish().unwrap_err().to_string().contains("expected 50 features with statistics, found 0"));
    assert_eq!(run.feature_tables().unwrap(), ["c"]);
    assert_eq!(run.feature_table("c").unwrap().stats(0..D_SAE).unwrap(), before);
    assert_eq!(fs_err::read_dir(dir.path().join("features")).unwrap().count(), 1);
    // And one that does, in place of the first.
    let writer = FeatureTableWriter::create(&run, "c", FeatureTableInfo { d_sae: 2, ..info() }, 1 << 20).unwrap();
    let mut sorted = writer.sort().unwrap();
    sorted.write_stats(&[stats(0), stats(1)]).unwrap();
    sorted.finish().unwrap();
    let table = run.feature_table("c").unwrap();
    assert_eq!(table.n_features(), 2);
    assert!(table.acts_of_feature(1, 10).unwrap().is_empty() && table.features_at(0..N_TOKENS).unwrap().is_empty());
    assert_eq!(fs_err::read_dir(dir.path().join("features")).unwrap().count(), 1);
}

#[test]
fn rows_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = testing::run(dir.path(), 4, Dtype::F32, &[20]);
    let check = |token_idx: &[u64], feature: &[u32], act: &[f32], expected: &str| {
        let mut writer = FeatureTableWriter::create(&run, "c", info(), 1 << 20).unwrap();
        let error = writer.write(token_idx, feature, act).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&[0], &[D_SAE], &[1.0], "expected 50 features at most, found 51");
    check(&[20], &[0], &[1.0], "expected 20 tokens at most, found 21");
    check(&[3, 2], &[0, 0], &[1.0, 1.0], "expected 3 as the next token at least, found 2");
    check(&[3], &[0], &[], "expected 1 features and activations for the tokens, found 0");
    assert!(FeatureTableWriter::create(&run, "../c", info(), 1).is_err());
}

#[test]
fn bins_are_two_an_octave() {
    let edges = act_bin_edges();
    assert_eq!((edges[0], edges[32], edges[64]), (2.0f32.powi(-16), 1.0, 65_536.0));
    assert_eq!((act_bin(1.0), act_bin(1.4), act_bin(1.42), act_bin(2.0)), (32, 32, 33, 34));
    assert_eq!((act_bin(0.0), act_bin(-1.0), act_bin(f32::NAN), act_bin(1e-9), act_bin(1e9)), (0, 0, 0, 0, 63));
}

/// Activations of the tokens that are not special, by feature and token.
fn dense() -> Vec<Vec<f64>> {
    let (token_idx, feature, act) = rows();
    let mut dense = vec![vec![0.0; N_TOKENS as usize]; D_SAE as usize];
    for i in 0..act.len() {
        dense[feature[i] as usize][token_idx[i] as usize] = f64::from(act[i]);
    }
    let is_special = |token: usize| (token as u64).is_multiple_of(testing::DOC_TOKENS);
    for row in &mut dense {
        *row = (0..row.len()).filter(|&token| !is_special(token)).map(|token| row[token]).collect();
    }
    dense
}

fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len() as f64;
    let mean = |x: &[f64]| x.iter().sum::<f64>() / n;
    let product = |x: &[f64], y: &[f64]| {
        let (a, b) = (mean(x), mean(y));
        x.iter().zip(y).map(|(x, y)| (x - a) * (y - b)).sum::<f64>()
    };
    let below = (product(x, x) * product(y, y)).sqrt();
    if below > 0.0 { product(x, y) / below } else { 0.0 }
}

#[test]
fn pairs_equal_brute_force() {
    let dir = tempfile::tempdir().unwrap();
    let run = build(dir.path(), 1 << 20);
    let table = run.feature_table("c").unwrap();
    let pairs = table.coactivation(0..D_SAE).unwrap().unwrap();
    assert_eq!(table.coactivation(9..10).unwrap().unwrap().len(), 4);
    let dense = dense();
    let binary: Vec<Vec<f64>> = dense.iter().map(|row| row.iter().map(|&x| f64::from(x > 0.0)).collect()).collect();
    for feature in 0..D_SAE {
        let found: Vec<_> = pairs.iter().filter(|pair| pair.feature == feature).collect();
        let mut phis: Vec<f64> = (0..D_SAE)
            .filter(|&other| other != feature)
            .map(|other| correlation(&binary[feature as usize], &binary[other as usize]))
            .filter(|phi| *phi > 1e-12)
            .collect();
        phis.sort_by(|a, b| b.total_cmp(a));
        assert!(found.len() <= 4 && found.len() >= phis.len().min(4).saturating_sub(1));
        for (rank, pair) in found.iter().enumerate() {
            let (a, b) = (pair.feature as usize, pair.other as usize);
            let both = binary[a].iter().zip(&binary[b]).filter(|(x, y)| **x > 0.0 && **y > 0.0).count() as f64;
            let (n_a, n_b): (f64, f64) = (binary[a].iter().sum(), binary[b].iter().sum());
            assert_eq!((pair.rank as usize, pair.n_both as f64), (rank, both));
            assert!((pair.lift - both * 900.0 / (n_a * n_b)).abs() < 1e-12);
            assert!((pair.jaccard - both / (n_a + n_b - both)).abs() < 1e-12);
            assert!((pair.phi - correlation(&binary[a], &binary[b])).abs() < 1e-9);
            assert!((pair.phi - phis[rank]).abs() < 1e-9, "feature {feature}, rank {rank}");
            assert!((pair.pearson - correlation(&dense[a], &dense[b])).abs() < 1e-9);
            let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            let cosine = dot(&dense[a], &dense[b]) / (dot(&dense[a], &dense[a]) * dot(&dense[b], &dense[b])).sqrt();
            assert!((pair.cosine - cosine).abs() < 1e-9);
        }
    }
    // 3 is active everywhere: it fires together with all of them, and with none more than by chance.
    assert!(pairs.iter().all(|pair| pair.feature != 3 && pair.other != 3));
}

#[test]
fn another_coder_is_compared_token_by_token() {
    let dir = tempfile::tempdir().unwrap();
    let run = build(dir.path(), 1 << 20);
    // The same features twice as strong, in the opposite order.
    let (token_idx, feature, act) = rows();
    let mut writer = FeatureTableWriter::create(&run, "twice", info(), 1 << 20).unwrap();
    let feature: Vec<u32> = feature.iter().map(|feature| D_SAE - 1 - feature).collect();
    let act: Vec<f32> = act.iter().map(|act| act * 2.0).collect();
    writer.write(&token_idx, &feature, &act).unwrap();
    let mut sorted = writer.sort().unwrap();
    sorted.write_stats(&(0..D_SAE).map(stats).collect::<Vec<_>>()).unwrap();
    sorted.finish().unwrap();
    let (table, twice) = (run.feature_table("c").unwrap(), run.feature_table("twice").unwrap());
    assert_eq!(twice.coactivation(0..1).unwrap(), None, "nothing was counted");
    let mut go_on = |_| ControlFlow::Continue(());
    let options = PairOptions { top: 1, rank: PairRank::Pearson, ..PAIRS };
    let pairs = correlate(&table, &twice, &options, &mut go_on).unwrap();
    for pair in &pairs {
        assert_eq!(pair.other, D_SAE - 1 - pair.feature);
        assert!((pair.pearson - 1.0).abs() < 1e-9, "{pair:?}");
    }
    // All but the two that never fire.
    assert_eq!(pairs.len(), D_SAE as usize - 2);
    // Block by block it is the same, and so it is when written.
    let small = PairOptions { memory: 1, ..options };
    assert_eq!(correlate(&table, &twice, &small, &mut go_on).unwrap(), pairs);
    table.write_correlation(&twice, &pairs).unwrap();
    assert_eq!(table.correlation("twice").unwrap(), pairs);
    assert_eq!(verify(&run, &mut |_| ControlFlow::Continue(())).unwrap().problems, []);
    // With itself no feature is its own best.
    let own = correlate(&table, &table, &PAIRS, &mut go_on).unwrap();
    assert!(own == table.coactivation(0..D_SAE).unwrap().unwrap());
    let stopped = correlate(&table, &twice, &PAIRS, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Interrupted)));

    let elsewhere = tempfile::tempdir().unwrap();
    let other = testing::run(elsewhere.path(), 4, Dtype::F32, &[400]);
    let mut sorted = FeatureTableWriter::create(&other, "c", info(), 1 << 20).unwrap().sort().unwrap();
    sorted.write_stats(&(0..D_SAE).map(stats).collect::<Vec<_>>()).unwrap();
    sorted.finish().unwrap();
    let error = correlate(&table, &other.feature_table("c").unwrap(), &PAIRS, &mut go_on).unwrap_err().to_string();
    assert!(error.starts_with("expected the same tokens as in"), "{error}");
}

#[test]
fn statistics_of_an_older_version_say_nothing_of_encoders() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stats.parquet");
    let batch = tables::stats_batch(&[stats(4)]);
    let columns = batch.schema().fields().iter().map(|field| !field.name().starts_with("encoder")).collect::<Vec<_>>();
    let kept: Vec<usize> = (0..columns.len()).filter(|&column| columns[column]).collect();
    let batch = batch.project(&kept).unwrap();
    let mut writer = TableWriter::create(&path, &batch.schema(), TableOptions::default()).unwrap();
    writer.write(&batch).unwrap();
    writer.publish().unwrap();
    let file = TableFile::open(&path).unwrap();
    let found = tables::stats_rows(&file, &file.rows(&[], 0..1).unwrap()).unwrap();
    assert_eq!(found, [FeatureStats { encoder_norm: None, encoder_decoder_cosine: None, ..stats(4) }]);
}
