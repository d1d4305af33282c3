//! Is what was planted found, and is what was not planted told from it?

use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::features::{FeatureStats, FeatureTableInfo, FeatureTableWriter};
use crate::manifest::{Corpus, Counts, HookPointEntry, Manifest, Model, Routing};
use crate::progress::Progress;
use crate::random::Random;
use crate::routing::RoutingColumns;
use crate::{DocumentRow, Dtype, ModelShape, Run, RunWriter, TokenColumns};

const N_TOKENS: u64 = 6000;
const DOC_TOKENS: u64 = 100;
const N_EXPERTS: usize = 8;
const D_SAE: u32 = 40;
const GATES: usize = 6;

/// Features with a meaning; the others are noise, each of its own rarity.
const OF_EXPERT_5: u32 = 3;
const NEVER_WITH_EXPERT_2: u32 = 4;
const OF_GATE_1: u32 = 7;
const OF_NUMBERS: u32 = 9;
const OF_GERMAN: u32 = 11;
const ALWAYS: u32 = 13;
const OF_THE_BEGINNING: u32 = 17;

struct Token {
    special: bool,
    experts: [u16; 2],
    gates: [f32; GATES],
    text: &'static str,
    features: Vec<u32>,
}

/// German in every third document.
fn is_german(token: u64) -> bool {
    (token / DOC_TOKENS).is_multiple_of(3)
}

fn tokens() -> Vec<Token> {
    const ENGLISH: [&str; 6] = [" the", " house", " of", " their", " friends", " was"];
    const GERMAN: [&str; 6] = [" das", " Haus", " der", " guten", " Freunde", " nicht"];
    let mut random = Random::new(7, 0, 0);
    (0..N_TOKENS)
        .map(|token| {
            let special = token % DOC_TOKENS == 0;
            let first = random.below(N_EXPERTS) as u16;
            let experts = [first, (first + 1 + random.below(N_EXPERTS - 1) as u16) % N_EXPERTS as u16];
            let gates = std::array::from_fn(|_| random.below(2) as f32 - 0.5);
            let words = if is_german(token) { GERMAN } else { ENGLISH };
            let text = if random.below(8) == 0 { "1984" } else { words[random.below(words.len())] };
            let mut features = Vec::new();
            for feature in 0..D_SAE {
                let fires = match feature {
                    OF_EXPERT_5 => experts.contains(&5),
                    NEVER_WITH_EXPERT_2 => !experts.contains(&2),
                    OF_GATE_1 => gates[1] > 0.0,
                    OF_NUMBERS => text == "1984",
                    OF_GERMAN => is_german(token) && random.below(2) == 0,
                    ALWAYS => true,
                    OF_THE_BEGINNING => special,
                    noise => random.below(3 + noise as usize) == 0,
                };
                if fires {
                    features.push(feature);
                }
            }
            Token { special, experts, gates, text, features }
        })
        .collect()
}

/// A run of two shards with experts in layers 0 and 1 (those of layer 0 mean nothing), gates in layer 1, and a coder.
fn run(dir: &Path, meta: bool) -> Run {
    let shape = ModelShape {
        n_layers: 2,
        n_heads: 1,
        n_kv_heads: 1,
        d_model: 4,
        d_head: 4,
        d_mlp: 8,
        d_vocab: 300,
        n_ctx: 128,
        ..ModelShape::default()
    };
    let gate = "blocks.1.ple.hook_gate_pre".parse().unwrap();
    let entry = HookPointEntry { name: gate, width: GATES, dtype: Dtype::F32, shape: vec![GATES] };
    let mut manifest = Manifest::new(Model::new("tiny", shape), Corpus::default(), vec![entry]);
    manifest.routing = Some(Routing { n_experts: N_EXPERTS, top_k: 2, layers: vec![0, 1], router_logits: false });
    let writer = RunWriter::create(dir, manifest).unwrap();
    let tokens = tokens();
    let mut random = Random::new(8, 0, 0);
    for (index, range) in [0..2500u64, 2500..N_TOKENS].into_iter().enumerate() {
        let mut shard = writer.shard(index, range.start).unwrap();
        let (mut columns, mut gates) = (TokenColumns::default(), Vec::new());
        let mut routing = [RoutingColumns::default(), RoutingColumns::default()];
        for token_idx in range.clone() {
            let token = &tokens[token_idx as usize];
            let (doc, pos) = (token_idx / DOC_TOKENS, (token_idx % DOC_TOKENS) as u32);
            let text = if token.special { "<bos>" } else { token.text };
            columns.push(doc, pos, pos, text, None, token.special, None);
            gates.extend(token.gates.iter().flat_map(|gate| gate.to_le_bytes()));
            let other = random.below(N_EXPERTS) as u16;
            for (columns, experts) in routing.iter_mut().zip([[other, (other + 3) % N_EXPERTS as u16], token.experts]) {
                columns.expert_ids.extend(experts);
                columns.weights.extend([0.5, 0.5]);
                columns.probs.extend([0.4, 0.3]);
                columns.entropy.push(1.0);
                columns.dense_norm.push(1.0);
                columns.moe_norm.push(1.0);
            }
        }
        shard.write_tokens(&columns).unwrap();
        shard.write_acts(0, Dtype::F32, Bytes::from(gates)).unwrap();
        for (layer, columns) in routing.iter().enumerate() {
            shard.write_routing(layer, columns).unwrap();
        }
        let documents: Vec<DocumentRow> = (range.start / DOC_TOKENS..range.end / DOC_TOKENS)
            .map(|doc| DocumentRow {
                doc_id: doc,
                source: format!("{}.txt", doc % 2),
                n_tokens: DOC_TOKENS,
                meta: meta.then(|| {
                    let language = if is_german(doc * DOC_TOKENS) { "german" } else { "english" };
                    json!({ "language": language, "year": 1900 + doc % 3 }).to_string()
                }),
                first_token_idx: doc * DOC_TOKENS,
                ..DocumentRow::default()
            })
            .collect();
        shard.write_documents(&documents).unwrap();
        shard.commit(json!(null), Counts::captured(documents.len() as u64, range.end - range.start)).unwrap();
    }
    writer.finish("").unwrap();
    let run = Run::open(dir).unwrap();
    let info = FeatureTableInfo {
        coder: "c".into(),
        hook_point: gate,
        groups: Vec::new(),
        d_sae: D_SAE,
        n_tokens: N_TOKENS,
        n_ordinary_tokens: N_TOKENS - N_TOKENS / DOC_TOKENS,
        notes: json!(null),
    };
    let mut features = FeatureTableWriter::create(&run, "c", info, 1 << 20).unwrap();
    for (token_idx, token) in (0..).zip(&tokens) {
        let n = token.features.len();
        features.write(&vec![token_idx; n], &token.features, &vec![1.0; n]).unwrap();
    }
    let mut features = features.sort().unwrap();
    let stats = |feature| FeatureStats { feature, ..FeatureStats::default() };
    features.write_stats(&(0..D_SAE).map(stats).collect::<Vec<_>>()).unwrap();
    features.finish().unwrap();
    run
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn report(run: &Run, options: &JoinOptions) -> JoinReport {
    join(&run.feature_table("c").unwrap(), options, &mut go_on).unwrap()
}

/// The features of a label, best first.
fn of<'a>(report: &'a JoinReport, layer: Option<u32>, label: &str) -> Vec<&'a JoinRow> {
    report.rows.iter().filter(|row| row.layer == layer && row.label == label && row.rank.is_some()).collect()
}

#[test]
fn a_feature_of_an_expert_is_found_and_the_control_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), false);
    let found = report(&run, &JoinOptions { with: With::Experts, ..JoinOptions::default() });
    assert_eq!((found.info.n_tokens, found.info.n_special), (5940, 60));
    let [noise, planted] = found.layers[..] else { panic!("two layers") };
    assert_eq!((noise.layer, planted.layer), (Some(0), Some(1)));

    let five = of(&found, Some(1), "5");
    assert_eq!((five[0].feature, five[0].rank), (OF_EXPERT_5, Some(0)));
    // Both questions are one: all of the entropy of the expert's choice.
    let share = five[0].n_label as f64 / 5940.0;
    let entropy = -share * share.log2() - (1.0 - share) * (1.0 - share).log2();
    assert!((five[0].mutual_information - entropy).abs() < 1e-9);
    assert_eq!((five[0].n_both, five[0].n_feature), (five[0].n_label, five[0].n_label));
    assert!((five[0].lift - 1.0 / share).abs() < 1e-9);
    let two = of(&found, Some(1), "2");
    assert_eq!((two[0].feature, two[0].n_both, two[0].lift), (NEVER_WITH_EXPERT_2, 0, 0.0));
    assert!(two[0].mutual_information > 0.5);

    // A thousand times what shuffled labels give, and those near 0 (the mean of chance is 1 / (2 n ln 2) = 0.0001 bits).
    for layer in [noise, planted] {
        assert!(layer.threshold > 0.0 && layer.threshold < 0.003, "{layer:?}");
    }
    assert!(five[0].control < 0.003 && five[0].threshold == planted.threshold);
    let controls: Vec<f64> = found.rows.iter().map(|row| row.control).collect();
    assert!(controls.iter().sum::<f64>() / (controls.len() as f64) < 0.0003, "{controls:?}");
    // Where nothing was planted hardly anything exceeds the control, and where it was, what was.
    assert!(noise.n_above <= 2, "{noise:?}");
    let above: Vec<u32> = found
        .rows
        .iter()
        .filter(|row| row.layer == Some(1) && row.mutual_information > 2.0 * row.threshold)
        .map(|row| row.feature)
        .collect();
    assert!(above.contains(&OF_EXPERT_5) && above.contains(&NEVER_WITH_EXPERT_2));
    assert!(above.iter().all(|feature| [OF_EXPERT_5, NEVER_WITH_EXPERT_2].contains(feature)), "{above:?}");
    // What always fires tells nothing.
    assert!(found.rows.iter().filter(|row| row.feature == ALWAYS).all(|row| row.mutual_information == 0.0));

    // A layer alone, another seed: the same counts, another control.
    let options = JoinOptions { with: With::Experts, layers: vec![1], seed: 1, ..JoinOptions::default() };
    let again = report(&run, &options);
    assert_eq!(again.layers.len(), 1);
    assert_ne!(again.layers[0].threshold, planted.threshold);
    let other = of(&again, Some(1), "5")[0];
    assert_eq!((other.feature, other.mutual_information), (OF_EXPERT_5, five[0].mutual_information));
}

#[test]
fn counts_equal_those_of_every_token() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), false);
    let options = JoinOptions { with: With::Experts, top: usize::MAX, min_count: 1, ..JoinOptions::default() };
    let found = report(&run, &options);
    let tokens = tokens();
    let ordinary = || tokens.iter().filter(|token| !token.special);
    let rows = found.rows.iter().filter(|row| row.layer == Some(1)).collect::<Vec<_>>();
    // Every feature but that of special tokens, with every expert.
    assert_eq!(rows.len(), (D_SAE as usize - 1) * N_EXPERTS);
    for row in rows {
        let (expert, feature) = (row.label.parse::<u16>().unwrap(), row.feature);
        let has = |token: &&Token| token.experts.contains(&expert);
        let fires = |token: &&Token| token.features.contains(&feature);
        assert_eq!(row.n_label, ordinary().filter(has).count() as u64);
        assert_eq!(row.n_feature, ordinary().filter(fires).count() as u64);
        assert_eq!(row.n_both, ordinary().filter(has).filter(fires).count() as u64);
    }
}

#[test]
fn little_memory_gives_the_same_report() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), false);
    let options = JoinOptions { with: With::Experts, ..JoinOptions::default() };
    let whole = report(&run, &options);
    let mut passes = Vec::new();
    for memory in [1, 8 * N_EXPERTS * 7, 8 * N_EXPERTS * D_SAE as usize] {
        let mut total = 0;
        let options = JoinOptions { memory, ..options.clone() };
        let found = join(&run.feature_table("c").unwrap(), &options, &mut |at| {
            total = at.total;
            ControlFlow::Continue(())
        });
        assert_eq!(found.unwrap(), whole, "{memory}");
        passes.push(total / N_TOKENS);
    }
    assert_eq!(passes, [80, 12, 2]);
    let stopped = join(&run.feature_table("c").unwrap(), &options, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

#[test]
fn gates_classes_and_languages() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), true);
    let with = |with| report(&run, &JoinOptions { with, ..JoinOptions::default() });
    let gates = with(With::Ple);
    let one = of(&gates, Some(1), "1")[0];
    assert!(one.feature == OF_GATE_1 && one.mutual_information > 0.99, "{one:?}");
    assert!(of(&gates, Some(1), "2")[0].mutual_information < 0.01);

    let classes = with(With::TokenClass);
    let number = of(&classes, None, "number")[0];
    assert_eq!((number.feature, number.n_both), (OF_NUMBERS, number.n_label));
    assert!(of(&classes, None, "special").is_empty());
    let special = JoinOptions { with: With::TokenClass, special: true, ..JoinOptions::default() };
    let special = report(&run, &special);
    assert_eq!(of(&special, None, "special")[0].feature, OF_THE_BEGINNING);
    assert_eq!((special.info.n_tokens, special.info.n_special), (N_TOKENS, 0));

    let language = with(With::Language);
    let german = of(&language, None, "german")[0];
    assert!(german.feature == OF_GERMAN && german.mutual_information > german.threshold, "{german:?}");
    assert_eq!(language.info.labels, "60 documents by what is recorded, 0 by their text, 0 unknown");
    let years = with(With::Meta("year".into()));
    let labels = |report: &JoinReport| report.rows.iter().map(|row| row.label.clone()).collect::<Vec<_>>();
    assert!(labels(&years).contains(&"1902".to_owned()));
    assert!(labels(&with(With::Source)).contains(&"1.txt".to_owned()));
    assert_eq!(with(With::Meta("place".into())).info.labels, "0 documents by what is recorded, 60 unknown");
}

#[test]
fn languages_are_detected_where_nothing_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), false);
    let found = report(&run, &JoinOptions { with: With::Language, ..JoinOptions::default() });
    let german = of(&found, None, "deu")[0];
    // A third of all documents, but for those that the detector does not trust itself with.
    assert!(german.feature == OF_GERMAN && german.n_label > 1500, "{german:?} {}", found.info.labels);
    assert!(german.mutual_information > german.threshold);
}

#[test]
fn joins_are_kept_in_the_table_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), false);
    let table = run.feature_table("c").unwrap();
    let problems = || crate::verify::verify(&run, &mut |_| ControlFlow::Continue(())).unwrap().problems;
    assert!(table.joins().unwrap().is_empty());
    for seed in [0, 1] {
        for with in [With::Experts, With::TokenClass] {
            let report = report(&run, &JoinOptions { with: with.clone(), seed, ..JoinOptions::default() });
            table.write_join(&report).unwrap();
            assert_eq!(table.join(&with.to_string()).unwrap(), report.rows);
        }
    }
    assert_eq!(table.joins().unwrap(), ["experts", "token-class"]);
    assert_eq!(problems(), []);
    let missing = table.join("language").unwrap_err().to_string();
    assert!(missing.contains("found `language`") && missing.contains("`experts`"), "{missing}");
    let path = dir.path().join("features/c/joins/experts.parquet");
    let mut bytes = fs_err::read(&path).unwrap();
    bytes[100] ^= 1;
    fs_err::write(&path, bytes).unwrap();
    assert_eq!(problems()[0].file, "features/c/joins/experts.parquet");
}

#[test]
fn what_was_not_recorded_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let run = crate::testing::run(dir.path(), 4, Dtype::F32, &[100]);
    let info = FeatureTableInfo {
        coder: "c".into(),
        hook_point: crate::testing::hook(),
        groups: Vec::new(),
        d_sae: 1,
        n_tokens: 100,
        n_ordinary_tokens: 90,
        notes: json!(null),
    };
    let mut sorted = FeatureTableWriter::create(&run, "c", info, 1 << 20).unwrap().sort().unwrap();
    sorted.write_stats(&[FeatureStats::default()]).unwrap();
    sorted.finish().unwrap();
    let table = run.feature_table("c").unwrap();
    let error = |with: With, layers: Vec<usize>| {
        join(&table, &JoinOptions { with, layers, ..JoinOptions::default() }, &mut go_on).unwrap_err().to_string()
    };
    assert!(error(With::Experts, vec![]).starts_with("no routing:"));
    assert!(error(With::Ple, vec![]).contains("`blocks.N.ple.hook_gate_pre` was not recorded"));
    assert!(error(With::Ple, vec![1]).contains("hint: "));
    assert!(error(With::Language, vec![1]).starts_with("expected no layers"));
    assert!("colour".parse::<With>().unwrap_err().to_string().contains("found `colour`"));
    for with in With::NAMED.into_iter().chain([With::Meta("a".into())]) {
        assert_eq!(with.to_string().parse::<With>().unwrap(), with);
    }
}
