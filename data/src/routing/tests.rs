use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::path::Path;

use arrow::array::RecordBatch;
use fs_err as fs;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::json;

use super::analysis::analyse_within;
use super::write::group_rows;
use super::*;
use crate::manifest::{Counts, Manifest};
use crate::parquet_io::TableFile;
use crate::tables::TokenColumns;
use crate::testing::{documents, tokens};
use crate::{Run, RunWriter, verify};

fn info(n_experts: usize, top_k: usize, layers: &[usize], router_logits: bool) -> Routing {
    Routing { n_experts, top_k, layers: layers.to_vec(), router_logits }
}

fn manifest(routing: &Routing) -> Manifest {
    Manifest { routing: Some(routing.clone()), ..crate::testing::manifest(&[]) }
}

/// A choice as a router makes it, from logits that depend on the token and the layer alone.
fn choices(range: Range<u64>, layer: usize, routing: &Routing) -> RoutingColumns {
    let mut columns = RoutingColumns { router_logits: routing.router_logits.then(Vec::new), ..Default::default() };
    for token in range {
        let logit = |expert: usize| {
            let mixed = (token % 300 * 31 + token / 7 + layer as u64 * 17 + expert as u64 * expert as u64 * 13) % 101;
            // Low experts are preferred, and no two logits are the same.
            (mixed * 16 + expert as u64) as f32 / 400.0 - expert as f32 * 0.2
        };
        let logits: Vec<f32> = (0..routing.n_experts).map(logit).collect();
        push(&mut columns, &logits, routing.top_k, token);
    }
    columns
}

fn push(columns: &mut RoutingColumns, logits: &[f32], top_k: usize, token: u64) {
    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let probs: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp() / total).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]));
    let chosen: f64 = order[..top_k].iter().map(|&e| probs[e]).sum();
    for &expert in &order[..top_k] {
        columns.expert_ids.push(expert as u16);
        columns.probs.push(probs[expert] as f32);
        columns.weights.push((probs[expert] / chosen) as f32);
    }
    columns.entropy.push(-probs.iter().map(|p| p * p.ln()).sum::<f64>() as f32);
    columns.dense_norm.push(1.0 + (token % 5) as f32);
    columns.moe_norm.push(0.5);
    if let Some(all) = &mut columns.router_logits {
        all.extend_from_slice(logits);
    }
}

/// Writes a shard, `step` tokens a call.
fn write_shard(run: &RunWriter, index: usize, range: Range<u64>, step: u64) {
    let routing = run.manifest().routing.clone().unwrap();
    let mut shard = run.shard(index, range.start).unwrap();
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start + step);
        for &layer in &routing.layers {
            shard.write_routing(layer, &choices(start..end, layer, &routing)).unwrap();
        }
        shard.write_tokens(&tokens(start..end)).unwrap();
        start = end;
    }
    let documents = documents(range.clone());
    shard.write_documents(&documents).unwrap();
    let counts = Counts::captured(documents.len() as u64, range.end - range.start);
    shard.commit(json!({"next": range.end}), counts).unwrap();
}

fn run(dir: &Path, routing: &Routing, shards: &[u64]) -> Run {
    let writer = RunWriter::create(dir, manifest(routing)).unwrap();
    let mut start = 0;
    for (index, n) in shards.iter().enumerate() {
        write_shard(&writer, index, start..start + n, 333);
        start += n;
    }
    writer.finish("0").unwrap();
    Run::open(dir).unwrap()
}

fn problem(run: &Run) -> Option<verify::Problem> {
    verify::verify(run, &mut |_| ControlFlow::Continue(())).unwrap().problems.into_iter().next()
}

fn report(run: &Run, options: &RoutingOptions) -> RoutingReport {
    analyse(run, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn what_is_written_is_read() {
    for logits in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let routing = info(5, 2, &[0, 1], logits);
        let run = run(dir.path(), &routing, &[700, 0, 9000]);
        assert_eq!(run.routing_info().unwrap(), &routing);
        let layer = run.routing(1).unwrap();
        assert_eq!((layer.layer(), layer.n_experts(), layer.top_k()), (1, 5, 2));
        for range in [0..9700, 690..720, 0..0, 9699..9700] {
            assert_eq!(layer.rows(range.clone()).unwrap(), choices(range, 1, &routing));
        }
        let batches: Vec<RoutingBatch> = layer.batches().map(Result::unwrap).collect();
        let sizes: Vec<(u64, usize)> = batches.iter().map(|b| (b.first_token_idx, b.columns.len())).collect();
        assert_eq!(sizes, [(0, 700), (700, 8192), (8892, 808)]);
        let mut all = RoutingColumns::default();
        for batch in &batches {
            all.extend(&batch.columns, 0..batch.columns.len(), &routing);
        }
        assert_eq!(all, choices(0..9700, 1, &routing));
        let without = layer.without_logits().rows(0..5).unwrap();
        assert_eq!(without, RoutingColumns { router_logits: None, ..choices(0..5, 1, &routing) });
        assert!(matches!(run.routing(0).unwrap().rows(0..9701), Err(Error::OutOfRange { .. })));
        let error = run.routing(2).unwrap_err().to_string();
        assert!(error.contains("found `2`") && error.contains("there are `0`, `1`"), "{error}");
        assert_eq!(problem(&run), None);
    }
}

#[test]
fn the_same_rows_give_the_same_bytes_and_row_groups_of_their_size() {
    let routing = info(600, 3, &[1], true);
    // 2442 bytes a row: 429 of them make a page of a megabyte, eight pages a row group.
    assert_eq!(group_rows(&routing), 429 * 8);
    assert_eq!(group_rows(&info(128, 8, &[1], false)), 65_536);
    let files = |step: u64| {
        let dir = tempfile::tempdir().unwrap();
        let run = RunWriter::create(dir.path(), manifest(&routing)).unwrap();
        write_shard(&run, 0, 0..4000, step);
        let files = run.finish("0").unwrap().shards[0].files.clone();
        let path = dir.path().join("routing/layer=1/shard-00000.parquet");
        assert_eq!(TableFile::open(&path).unwrap().row_groups(), [0..3432, 3432..4000]);
        files
    };
    let first = files(4000);
    assert_eq!(first.len(), 3);
    assert_eq!(files(37), first);
}

#[test]
fn a_killed_run_resumes_to_the_same_manifest() {
    let routing = info(4, 2, &[0, 1], false);
    let whole = tempfile::tempdir().unwrap();
    let run = RunWriter::create(whole.path(), manifest(&routing)).unwrap();
    write_shard(&run, 0, 0..500, 64);
    write_shard(&run, 1, 500..900, 64);
    let expected = run.finish("s").unwrap();

    let dir = tempfile::tempdir().unwrap();
    let run = RunWriter::create(dir.path(), manifest(&routing)).unwrap();
    write_shard(&run, 0, 0..500, 64);
    let mut shard = run.shard(1, 500).unwrap();
    shard.write_routing(1, &choices(500..600, 1, &routing)).unwrap();
    drop(shard);
    drop(run);
    let folder = dir.path().join("routing/layer=1");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    let leftovers = [folder.join(".shard-00001.parquet.tmp"), folder.join("shard-00001.parquet")];
    for path in &leftovers {
        fs::write(path, "half").unwrap();
    }
    let seen = Run::open(dir.path()).unwrap();
    assert_eq!(seen.routing(1).unwrap().batches().map(|batch| batch.unwrap().columns.len()).sum::<usize>(), 500);
    assert_eq!(report(&seen, &RoutingOptions::default()).n_tokens, 450);

    let mut other = manifest(&routing);
    other.routing = Some(info(4, 2, &[1], false));
    let error = RunWriter::resume(dir.path(), &other).unwrap_err().to_string();
    assert!(error.contains("`routing`") && error.contains("--out"), "{error}");
    let run = RunWriter::resume(dir.path(), &manifest(&routing)).unwrap();
    assert!(leftovers.iter().all(|path| !path.exists()));
    write_shard(&run, 1, 500..900, 100);
    assert_eq!(run.finish("s").unwrap(), expected);
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let routing = info(4, 2, &[1], false);
    let text = |error: Error| error.to_string();
    let bad = RunWriter::create(&dir.path().join("bad"), manifest(&info(4, 5, &[0], false))).unwrap_err();
    assert!(text(bad).contains("4 experts, 5 of them a token"));

    let run = RunWriter::create(&dir.path().join("run"), manifest(&routing)).unwrap();
    let mut shard = run.shard(0, 0).unwrap();
    shard.write_tokens(&tokens(0..10)).unwrap();
    let rows = choices(0..10, 1, &routing);
    assert!(text(shard.write_routing(0, &rows).unwrap_err()).contains("found `0`"));
    let uneven = RoutingColumns { weights: vec![0.5; 19], ..rows.clone() };
    assert!(text(shard.write_routing(1, &uneven).unwrap_err()).contains("expected 20 values in the column `weights`"));
    let extra = choices(0..10, 1, &info(4, 2, &[1], true));
    assert!(text(shard.write_routing(1, &extra).unwrap_err()).contains("`router_logits` of 10 tokens, found 40"));
    shard.write_routing(1, &choices(0..9, 1, &routing)).unwrap();
    let error = text(shard.commit(json!(0), Counts::captured(0, 10)).unwrap_err());
    assert!(error.contains("expected 10 rows of routing of layer 1 in shard 0, found 9"), "{error}");

    let dense = tempfile::tempdir().unwrap();
    let run = crate::testing::run(dense.path(), 4, crate::Dtype::F32, &[10]);
    for error in [
        run.routing(0).unwrap_err(),
        analyse(&run, &RoutingOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap_err(),
    ] {
        assert!(text(error).starts_with("no routing: "));
    }
}

#[test]
fn a_row_that_contradicts_itself_is_named() {
    type Change = fn(&mut RoutingColumns);
    let changes: [(Change, &str); 13] = [
        (|c| c.expert_ids[40] = 6, "has an expert that does not exist"),
        (|c| c.expert_ids[41] = c.expert_ids[40], "has the same expert twice"),
        (|c| c.weights[41] = f32::INFINITY, "has a weight that is no finite number"),
        (|c| c.probs[40] = 1.5, "has a probability that is not within 0 and 1"),
        (|c| c.probs[41] = f32::NAN, "has a probability that is not within 0 and 1"),
        (|c| c.probs.swap(40, 41), "has probabilities that rise"),
        (|c| c.probs[40] = 1.0, "has probabilities with a sum above 1"),
        (|c| c.moe_norm[20] = -1.0, "has a norm that is no finite number from 0 up"),
        (|c| c.entropy[20] = 1.8, "has an entropy that its probabilities cannot have"),
        (|c| c.router_logits.as_mut().unwrap()[120] = f32::NAN, "has logits of which there is no softmax"),
        (|c| c.router_logits.as_mut().unwrap()[120] += 3.0, "has probabilities that its logits do not give"),
        // The second and the third greatest are near each other: the choice is wrong, though the numbers are not.
        (
            |c| {
                let (mut near, logits) = (RoutingColumns::default(), [2.0, 0.5, 0.500_01, -1.0, -1.0, -1.0]);
                push(&mut near, &logits, 2, 20);
                c.expert_ids[40..42].copy_from_slice(&[0, 1]);
                c.probs[40..42].copy_from_slice(&near.probs);
                c.entropy[20] = near.entropy[0];
                c.router_logits.as_mut().unwrap()[120..126].copy_from_slice(&logits);
            },
            "has a choice that its logits do not give",
        ),
        (|c| c.entropy[20] -= 0.02, "has an entropy that its logits do not give"),
    ];
    let routing = info(6, 2, &[1], true);
    for (change, expected) in changes {
        let dir = tempfile::tempdir().unwrap();
        let run = RunWriter::create(dir.path(), manifest(&routing)).unwrap();
        let mut shard = run.shard(0, 0).unwrap();
        shard.write_tokens(&tokens(0..30)).unwrap();
        shard.write_documents(&documents(0..30)).unwrap();
        let mut rows = choices(0..30, 1, &routing);
        change(&mut rows);
        shard.write_routing(1, &rows).unwrap();
        shard.commit(json!(0), Counts::captured(3, 30)).unwrap();
        run.finish("0").unwrap();
        let found = problem(&Run::open(dir.path()).unwrap()).expect(expected);
        assert_eq!(found.message, format!("the row of token 20 {expected}"));
        assert_eq!((found.file.as_str(), found.row_group), ("routing/layer=1/shard-00000.parquet", Some(0)));
    }
}

#[test]
fn damaged_files_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &info(4, 2, &[0, 1], true), &[60]);
    let path = dir.path().join("routing/layer=1/shard-00000.parquet");
    let whole = fs::read(&path).unwrap();
    let mut noticed = 0;
    for at in (0..whole.len()).step_by(5) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at / 5 % 8);
        fs::write(&path, bytes).unwrap();
        let run = Run::open(dir.path()).unwrap();
        let found = problem(&run).expect("a checksum that differs");
        assert_eq!(found.file, "routing/layer=1/shard-00000.parquet");
        noticed += usize::from(run.routing(1).unwrap().rows(0..60).is_err());
        // Whatever it reads then, it is no panic.
        let _ = analyse(&run, &RoutingOptions::default(), &mut |_| ControlFlow::Continue(()));
    }
    assert!(noticed > 0);
    fs::remove_file(&path).unwrap();
    let run = Run::open(dir.path()).unwrap();
    assert!(matches!(run.routing(1).unwrap().rows(0..60), Err(Error::MissingFile { .. })));
    assert!(problem(&run).unwrap().to_string().contains("this file is missing"));
}

#[test]
fn files_that_another_program_wrote_are_read_too() {
    use arrow::datatypes::{DataType, Field, Schema};

    let dir = tempfile::tempdir().unwrap();
    let routing = info(5, 2, &[1], true);
    run(dir.path(), &routing, &[2000]);
    let path = dir.path().join("routing/layer=1/shard-00000.parquet");
    let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(&path).unwrap().into_parts().0).unwrap();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    // DuckDB knows lists of any length only, of which all may be null.
    let loose = |field: &Field| match field.data_type() {
        DataType::FixedSizeList(item, _) => {
            let item = Field::new("element", item.data_type().clone(), true);
            Field::new(field.name(), DataType::List(item.into()), true)
        }
        other => Field::new(field.name(), other.clone(), true),
    };
    let fields: Vec<Field> = batches[0].schema().fields().iter().map(|field| loose(field)).collect();
    let schema = std::sync::Arc::new(Schema::new(fields));
    let mut writer = ArrowWriter::try_new(fs::File::create(&path).unwrap(), schema.clone(), None).unwrap();
    for batch in &batches {
        let columns = batch.columns().iter().zip(schema.fields());
        let columns = columns.map(|(array, field)| arrow::compute::cast(array, field.data_type()).unwrap()).collect();
        writer.write(&RecordBatch::try_new(schema.clone(), columns).unwrap()).unwrap();
    }
    writer.close().unwrap();
    let layer = Run::open(dir.path()).unwrap().routing(1).unwrap();
    assert_eq!(layer.rows(5..1500).unwrap(), choices(5..1500, 1, &routing));
}

/// Two documents of one layer, small enough to count by hand: four experts, two a token.
///
/// | token | text | position | experts |
/// |---|---|---|---|
/// | 0 | `<bos>` | 0 | 2 3, special |
/// | 1 | a | 1 | 0 1 |
/// | 2 | b | 2 | 0 2 |
/// | 3 | a | 3 | 1 0 |
/// | 4 | c | 0, of the second document | 0 1 |
/// | 5 | a | 1 | 1 2 |
fn by_hand(dir: &Path) -> Run {
    let routing = info(4, 2, &[0, 1], false);
    let writer = RunWriter::create(dir, manifest(&routing)).unwrap();
    let mut columns = TokenColumns::default();
    let rows =
        [(0, 0, 2, "<bos>"), (0, 1, 10, "a"), (0, 2, 11, "b"), (0, 3, 10, "a"), (1, 0, 12, "c"), (1, 1, 10, "a")];
    for (doc, pos, id, text) in rows {
        columns.push(doc, pos, id, text, None, text == "<bos>", None);
    }
    let (first, next) = ([2u16, 3, 0, 1, 0, 2, 1, 0, 0, 1, 1, 2], [0u16, 1, 2, 3, 2, 3, 3, 2, 2, 3, 3, 2]);
    let mut shard = writer.shard(0, 0).unwrap();
    shard.write_tokens(&columns).unwrap();
    for (layer, ids) in [(0, first), (1, next)] {
        let rows = RoutingColumns {
            expert_ids: ids.to_vec(),
            weights: [[0.75, 0.25]; 6].concat(),
            probs: [[0.5, 0.25]; 6].concat(),
            entropy: vec![9.0, 1.0, 1.25, 1.0, 1.0, 1.0],
            dense_norm: vec![9.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            moe_norm: vec![2.0; 6],
            router_logits: None,
        };
        shard.write_routing(layer, &rows).unwrap();
    }
    let document = |doc_id, n_tokens, first_token_idx| crate::DocumentRow {
        doc_id,
        n_tokens,
        first_token_idx,
        ..crate::DocumentRow::default()
    };
    shard.write_documents(&[document(0, 4, 0), document(1, 2, 4)]).unwrap();
    shard.commit(json!(0), Counts::captured(2, 6)).unwrap();
    writer.finish("0").unwrap();
    Run::open(dir).unwrap()
}

#[track_caller]
fn near(found: Option<f64>, expected: f64) {
    let found = found.expect("a number");
    assert!((found - expected).abs() < 1e-12, "expected {expected}, found {found}");
}

#[test]
fn counts_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let run = by_hand(dir.path());
    let report = report(&run, &RoutingOptions { min_count: 1, ..RoutingOptions::default() });
    assert_eq!((report.n_experts, report.top_k, report.n_tokens, report.n_special), (4, 2, 5, 1));
    let layer = &report.layers[0];
    // n = 4, 4, 2, 0 of 5 tokens; 10 choices, 2.5 on average.
    let tokens: Vec<u64> = layer.experts.iter().map(|expert| expert.tokens).collect();
    assert_eq!(tokens, [4, 4, 2, 0]);
    assert_eq!(layer.co_selected, [4, 3, 1, 0, 3, 4, 1, 0, 1, 1, 2, 0, 0, 0, 0, 0]);
    near(layer.experts[0].share, 0.4);
    // Expert 0: first (0.75) for tokens 1, 2, 4, second (0.25) for token 3.
    near(layer.experts[0].mean_weight, 0.625);
    near(layer.experts[0].mean_prob, (0.5 * 3.0 + 0.25) / 4.0);
    assert_eq!((layer.experts[3].mean_weight, layer.experts[3].mean_prob), (None, None));
    near(layer.router_entropy, 5.25 / 5.0);
    near(layer.dense_norm, 3.0);
    near(layer.moe_norm, 2.0);
    // Deviations 1.5, 1.5, −0.5, −2.5: squares add up to 11.
    near(layer.load.cv, (11.0f64 / 4.0).sqrt() / 2.5);
    near(layer.load.max_over_mean, 1.6);
    assert_eq!(layer.load.never_fired, 1);
    near(layer.load.entropy, -(0.8 * 0.4f64.ln() + 0.2 * 0.2f64.ln()));
    // Tokens 1–2 share expert 0, tokens 2–3 share expert 0, tokens 4–5 share expert 1; token 3 and 4 are not neighbours,
    // and 0–1 begins with a special token.
    assert_eq!(layer.neighbours.pairs, 3);
    near(layer.neighbours.overlap, 0.5);
    near(layer.neighbours.chance, (16.0 + 16.0 + 4.0) / 25.0 / 2.0);
    // Token `a` (10) is there 3 times: with expert 0 twice, 1 three times, 2 once.
    let text = |expert: usize| -> Vec<String> {
        let tokens = layer.experts[expert].top_tokens.iter();
        tokens.map(|t| format!("{} {}/{} {:.4} {:.4}", t.token, t.count, t.occurrences, t.expected, t.lift)).collect()
    };
    assert_eq!(text(0), ["b 1/1 0.8000 1.2500", "c 1/1 0.8000 1.2500", "a 2/3 2.4000 0.8333"]);
    assert_eq!(text(1), ["a 3/3 2.4000 1.2500", "c 1/1 0.8000 1.2500"]);
    assert_eq!(text(2), ["b 1/1 0.4000 2.5000", "a 1/3 1.2000 0.8333"]);
    assert!(text(3).is_empty());
    let pair = |p: &PairLift| format!("{}+{} {} {:.2} {:.4}", p.a, p.b, p.tokens, p.expected, p.lift);
    let pairs: Vec<String> = layer.top_pairs.iter().map(pair).collect();
    assert_eq!(pairs, ["0+1 3 3.20 0.9375", "0+2 1 1.60 0.6250", "1+2 1 1.60 0.6250"]);
    // First choices 0 0 1 0 1 and 2 2 3 2 3: each tells the other, so that all of H(2/5) is shared.
    let next = layer.next_layer.unwrap();
    assert_eq!(next.layer, 1);
    let h = -(0.6 * 0.6f64.ln() + 0.4 * 0.4f64.ln());
    near(next.mutual_information, h);
    near(next.entropy, h);
    near(next.chance, 0.1);
    assert_eq!(report.layers[1].next_layer, None);
}

#[test]
fn options_choose_what_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let run = by_hand(dir.path());
    let options = RoutingOptions { min_count: 1, special: true, layers: vec![0], ..RoutingOptions::default() };
    let found = report(&run, &options);
    assert_eq!((found.n_tokens, found.n_special, found.layers.len()), (6, 0, 1));
    assert_eq!(found.layers[0].neighbours.pairs, 4);
    assert_eq!(found.layers[0].experts[3].top_tokens[0].token, "<bos>");
    // The next layer is counted on the way, though it was not asked for.
    assert_eq!(found.layers[0].next_layer.unwrap().layer, 1);
    let found = report(&run, &RoutingOptions { min_count: 2, top: 1, ..RoutingOptions::default() });
    assert_eq!(found.layers[0].experts[2].top_tokens, []);
    assert_eq!(found.layers[0].experts[0].top_tokens.len(), 1);
    let found = report(&run, &RoutingOptions { min_count: 1, top: 1, expert: Some(2), ..RoutingOptions::default() });
    let [PairLift { a: 2, b: 0, tokens: 1, .. }] = found.layers[0].top_pairs[..] else { panic!("{found:?}") };
    let missing = RoutingOptions { layers: vec![7], ..RoutingOptions::default() };
    let error = analyse(&run, &missing, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("`7`") && error.contains("there are `0`, `1`"), "{error}");
    let stopped = analyse(&run, &RoutingOptions::default(), &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

#[test]
fn a_run_without_counted_tokens_has_no_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let routing = info(4, 2, &[0, 1], false);
    let run = run(dir.path(), &routing, &[1]);
    let found = report(&run, &RoutingOptions::default());
    assert_eq!((found.n_tokens, found.n_special), (0, 1));
    let layer = &found.layers[0];
    assert_eq!((layer.router_entropy, layer.load.cv, layer.neighbours.chance), (None, None, None));
    assert_eq!(layer.next_layer.unwrap().mutual_information, None);
    assert!(serde_json::to_string(&found).unwrap().contains("\"share\":null"));
}

/// The same numbers, counted in another way: whole columns, sets, one statement at a time.
#[test]
fn it_agrees_with_counting_without_shards() {
    let dir = tempfile::tempdir().unwrap();
    let routing = info(7, 3, &[0, 1], false);
    let n = 19_000;
    let run = run(dir.path(), &routing, &[300, 17_000, 1700]);
    let options = RoutingOptions { min_count: 12, top: 6, ..RoutingOptions::default() };
    let found = report(&run, &options);
    // However few layers are counted at a time.
    let apart = analyse_within(&run, &options, 1, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(apart, found);

    let all = tokens(0..n);
    let counted: Vec<usize> = (0..n as usize).filter(|&i| !all.special[i]).collect();
    let total = counted.len() as f64;
    assert_eq!(found.n_tokens, counted.len() as u64);
    let sets = |layer: usize| -> Vec<BTreeSet<usize>> {
        let rows = choices(0..n, layer, &routing);
        rows.expert_ids.chunks(3).map(|ids| ids.iter().map(|&id| usize::from(id)).collect()).collect()
    };
    let mut listed = 0;
    for layer in &found.layers {
        let chosen = sets(layer.layer);
        let with = |expert: usize| counted.iter().filter(|&&i| chosen[i].contains(&expert)).count() as f64;
        for a in 0..7 {
            let rows = choices(0..n, layer.layer, &routing);
            let places: Vec<usize> = counted
                .iter()
                .flat_map(|&i| i * 3..(i + 1) * 3)
                .filter(|&place| usize::from(rows.expert_ids[place]) == a)
                .collect();
            let mean = |numbers: &[f32]| {
                places.iter().map(|&place| f64::from(numbers[place])).sum::<f64>() / places.len() as f64
            };
            let expert = &layer.experts[a];
            assert_eq!(expert.tokens as f64, with(a));
            // An expert that never fired has no mean.
            let same = |found: Option<f64>, expected: f64| match found {
                Some(found) => (found - expected).abs() < 1e-9,
                None => expected.is_nan(),
            };
            assert!(same(expert.mean_weight, mean(&rows.weights)));
            assert!(same(expert.mean_prob, mean(&rows.probs)));
            for b in 0..7 {
                let both = counted.iter().filter(|&&i| chosen[i].contains(&a) && chosen[i].contains(&b)).count();
                assert_eq!(layer.co_selected[a * 7 + b], both as u64);
            }
            let mut lifts: Vec<(u32, f64)> = Vec::new();
            for id in 0..300 {
                let there: Vec<usize> = counted.iter().copied().filter(|&i| all.token_id[i] == id).collect();
                let taken = there.iter().filter(|&&i| chosen[i].contains(&a)).count();
                if taken >= 12 {
                    lifts.push((id, (taken as f64 / there.len() as f64) / (with(a) / total)));
                }
            }
            let best = lifts.iter().map(|lift| lift.1).fold(0.0, f64::max);
            assert_eq!(expert.top_tokens.len(), lifts.len().min(6));
            assert!((expert.top_tokens.first().map_or(0.0, |token| token.lift) - best).abs() < 1e-9);
            for token in &expert.top_tokens {
                listed += 1;
                let lift = lifts.iter().find(|lift| lift.0 == token.token_id).unwrap().1;
                assert!((token.lift - lift).abs() < 1e-9);
                // Without a vocabulary the text is that of the first such token of the run.
                assert_eq!(token.token, format!("t{}▁é", token.token_id));
            }
        }
        let follow: Vec<usize> = counted
            .iter()
            .copied()
            .filter(|&i| counted.binary_search(&(i.wrapping_sub(1))).is_ok() && all.doc_id[i] == all.doc_id[i - 1])
            .collect();
        let shared: usize = follow.iter().map(|&i| chosen[i].intersection(&chosen[i - 1]).count()).sum();
        assert_eq!(layer.neighbours.pairs, follow.len() as u64);
        near(layer.neighbours.overlap, shared as f64 / (3 * follow.len()) as f64);
        let squares: f64 = (0..7).map(|e| (with(e) / total).powi(2)).sum();
        assert!((layer.neighbours.chance.unwrap() - squares / 3.0).abs() < 1e-12);
    }
    assert!(listed > 20, "{listed} tokens are no test");
    let first = |layer: usize| choices(0..n, layer, &routing).expert_ids.into_iter().step_by(3).collect::<Vec<u16>>();
    let (this, next) = (first(0), first(1));
    let mut joint: BTreeMap<(u16, u16), f64> = BTreeMap::new();
    for &i in &counted {
        *joint.entry((this[i], next[i])).or_default() += 1.0;
    }
    let p = |a: Option<u16>, b: Option<u16>| {
        let fits = joint.iter().filter(|((x, y), _)| a.is_none_or(|a| a == *x) && b.is_none_or(|b| b == *y));
        fits.map(|(_, count)| count).sum::<f64>() / total
    };
    let information: f64 = joint
        .keys()
        .map(|&(a, b)| p(Some(a), Some(b)) * (p(Some(a), Some(b)) / (p(Some(a), None) * p(None, Some(b)))).ln())
        .sum();
    assert!((found.layers[0].next_layer.unwrap().mutual_information.unwrap() - information).abs() < 1e-9);
}
