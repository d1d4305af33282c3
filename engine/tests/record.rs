//! Does a recording hold exactly what the network computed, whatever interrupts it?
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use data::corpus::Corpus;
use data::hook_point::{HookPoint, Site};
use data::manifest::Manifest;
use data::shard::workers::{self, Worker};
use data::store::Run;
use engine::device::Device;
use engine::error::Error;
use engine::gemma::model::{Batch, Forward, LoadOptions, Model, Precision};
use engine::record::{Provenance, RecordOptions, Recorded, Shared, describe, record, record_share};
use engine::testing::{self, files};
use engine::weights::Weights;
use fs_err as fs;
use tch::{Kind, Tensor};

/// Documents of given tokens: short ones, an empty one, one longer than the context, and special tokens among them.
const CORPUS: &str = r#"{"tokens": [2, 17, 125, 9, 44], "title": "first"}
{"tokens": []}
{"tokens": [2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26]}
{"tokens": [150]}
{"tokens": [2, 31, 32, 1, 33, 34]}
{"tokens": [2, 41, 42, 43, 44, 45, 46, 47, 48]}
{"tokens": []}
"#;
const TOKENS: u64 = 5 + 23 + 1 + 6 + 9;

struct Bench {
    folder: tempfile::TempDir,
    weights: Weights,
    model: Model,
    corpus: Corpus,
}

impl Bench {
    fn new(precision: Precision) -> Self {
        Self::of("gemma3/text", precision)
    }

    fn of(fixture: &str, precision: Precision) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corpus.jsonl");
        fs::write(&path, CORPUS).unwrap();
        let weights = Weights::open(testing::fixture(fixture)).unwrap();
        let model =
            Model::from_weights(&weights, LoadOptions { device: testing::device(), ..precision.into() }).unwrap();
        let corpus = Corpus::open(&[path.display().to_string()], false).unwrap();
        Self { folder, weights, model, corpus }
    }

    fn options(&self) -> RecordOptions {
        let list = "blocks.*.hook_resid_post,blocks.1.attn.hook_z,hook_embed";
        let points = HookPoint::parse_list(list, &self.model.shape()).unwrap();
        RecordOptions { context: Some(8), batch_tokens: 10, shard_tokens: 16, ..RecordOptions::new(points) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn record(&self, out: &Path, options: &RecordOptions, resume: bool, stop_after: usize) -> Result<Recorded, Error> {
        let mut batches = 0;
        let described = describe("tiny", &self.weights, self.model.precision())?;
        record(&self.model, described, None, &self.corpus, out, options, Provenance::default(), resume, &mut |_| {
            batches += 1;
            if batches >= stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    }

    fn record_share(
        &self,
        out: &Path,
        options: &RecordOptions,
        worker: &str,
        stop_after: usize,
    ) -> Result<Shared, Error> {
        let mut batches = 0;
        let described = describe("tiny", &self.weights, self.model.precision())?;
        let worker: Worker = worker.parse().unwrap();
        record_share(
            &self.model,
            described,
            None,
            &self.corpus,
            out,
            options,
            Provenance::default(),
            worker,
            &mut |_| {
                batches += 1;
                if batches >= stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        )
    }

    fn complete(&self, out: &Path, options: &RecordOptions) -> Box<Manifest> {
        match self.record(out, options, false, usize::MAX).unwrap() {
            Recorded::Complete(manifest) => manifest,
            Recorded::Interrupted(at) => panic!("interrupted at {at:?}"),
        }
    }
}

/// The sequences that the corpus makes with a context of 8.
fn sequences() -> Vec<Vec<u32>> {
    CORPUS
        .lines()
        .flat_map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let ids: Vec<u32> = serde_json::from_value(value["tokens"].clone()).unwrap();
            ids.chunks(8).map(<[u32]>::to_vec).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn a_recording_holds_what_the_network_computed() {
    for precision in [Precision::F32, Precision::Bf16] {
        let bench = Bench::new(precision);
        let (out, options) = (bench.path("run"), bench.options());
        let manifest = bench.complete(&out, &options);
        assert!(manifest.complete);
        assert_eq!(manifest.counts.tokens_expected, TOKENS);
        assert_eq!(manifest.counts.tokens_captured, TOKENS);
        assert_eq!(manifest.counts.documents, 7);
        assert!(manifest.shards.len() > 2, "several shards");
        assert_eq!(manifest.corpus.sha256.len(), 64);

        let run = Run::open(&out).unwrap();
        let tokens = run.tokens(0..TOKENS).unwrap();
        assert_eq!(tokens.token_id, sequences().concat());
        let positions: Vec<u32> = sequences().iter().flat_map(|sequence| 0..sequence.len() as u32).collect();
        assert_eq!(tokens.pos, positions);
        assert!(tokens.special[0] && !tokens.special[1]);
        assert!(tokens.nll.iter().all(Option::is_none));
        let documents = run.documents(0..7).unwrap();
        let lengths: Vec<u64> = documents.iter().map(|document| document.n_tokens).collect();
        assert_eq!(lengths, [5, 0, 23, 1, 6, 9, 0]);
        assert_eq!(documents[0].meta.as_deref(), Some(r#"{"title":"first"}"#));
        assert_eq!(run.document_tokens(4).unwrap(), 29..35);

        for &point in &options.hook_points {
            let stored = run.acts(point, 0..TOKENS).unwrap().to_f32();
            let mut computed = Vec::new();
            for sequence in sequences() {
                let (_, cache) =
                    bench.model.forward_with_cache(&Batch::one(&sequence), &[point], Forward::default()).unwrap();
                computed.extend(
                    Vec::<f32>::try_from(cache.get(point).unwrap().to_kind(Kind::Float).reshape([-1])).unwrap(),
                );
            }
            assert_eq!(stored.len(), computed.len());
            let tolerance = if precision == Precision::F32 { 1e-5 } else { 0.05 };
            for (i, (a, b)) in stored.iter().zip(&computed).enumerate() {
                assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{point}, value {i}: {a} and {b}");
            }
        }
    }
}

#[test]
fn the_nll_is_of_the_next_token() {
    let bench = Bench::new(Precision::F32);
    let out = bench.path("run");
    bench.complete(&out, &RecordOptions { nll: true, ..bench.options() });
    let tokens = Run::open(&out).unwrap().tokens(0..TOKENS).unwrap();
    let mut row = 0;
    for sequence in sequences() {
        let output = bench
            .model
            .forward(&Batch::one(&sequence), None, &mut engine::hook::Hooks::none(), Forward::default())
            .unwrap();
        assert_eq!(tokens.nll[row], None, "the first of a sequence");
        if sequence.len() > 1 {
            let nll = bench.model.nll(&output.resid.narrow(0, 0, sequence.len() as i64 - 1), &sequence[1..]);
            for (i, expected) in nll.iter().enumerate() {
                assert!((tokens.nll[row + 1 + i].unwrap() - expected).abs() < 1e-4);
            }
        }
        row += sequence.len();
    }
}

#[test]
fn special_tokens_can_be_left_out_and_are_counted() {
    let bench = Bench::new(Precision::F32);
    let (all, some) = (bench.path("all"), bench.path("some"));
    bench.complete(&all, &bench.options());
    let manifest = bench.complete(&some, &RecordOptions { skip_special: true, ..bench.options() });
    let special = 5;
    assert_eq!(manifest.counts.tokens_expected, TOKENS);
    assert_eq!(manifest.counts.tokens_captured, TOKENS - special);
    assert_eq!(manifest.counts.tokens_skipped, BTreeMap::from([("special".to_owned(), special)]));
    let (all, some) = (Run::open(&all).unwrap(), Run::open(&some).unwrap());
    let point = HookPoint::block(Site::ResidPost, 6);
    let rows = |run: &Run| run.acts(point, 0..run.n_tokens()).unwrap().to_f32();
    let special = all.tokens(0..TOKENS).unwrap().special;
    let kept: Vec<f32> = rows(&all)
        .chunks(32)
        .zip(&special)
        .filter(|(_, special)| !**special)
        .flat_map(|(row, _)| row.to_vec())
        .collect();
    assert_eq!(rows(&some), kept);
    let lengths: Vec<u64> = some.documents(0..7).unwrap().iter().map(|document| document.n_tokens).collect();
    assert_eq!(lengths, [4, 0, 22, 1, 4, 8, 0]);
}

#[test]
fn the_number_of_tokens_can_be_limited() {
    let bench = Bench::new(Precision::F32);
    for limit in [1, 5, 6, 20, 28, 43, 100] {
        let out = bench.path(&format!("run-{limit}"));
        let manifest = bench.complete(&out, &RecordOptions { max_tokens: Some(limit), ..bench.options() });
        assert_eq!(manifest.counts.tokens_captured, limit.min(TOKENS));
        let ids = Run::open(&out).unwrap().tokens(0..limit.min(TOKENS)).unwrap().token_id;
        assert_eq!(ids, sequences().concat()[..ids.len()]);
    }
}

#[test]
fn a_resumed_recording_is_the_same_to_the_byte() {
    let bench = Bench::new(Precision::F32);
    // One hook point: every file of every shard costs an fsync.
    let base = RecordOptions { hook_points: vec![HookPoint::block(Site::ResidPost, 2)], ..bench.options() };
    for options in [
        RecordOptions { skip_special: true, nll: true, ..base.clone() },
        RecordOptions { max_tokens: Some(40), shard_tokens: 8, ..base.clone() },
        RecordOptions { shard_tokens: 1, ..base },
    ] {
        let undisturbed = bench.path("undisturbed");
        bench.complete(&undisturbed, &options);
        for stop_after in [1, 2, 3, 6] {
            let out = bench.path("disturbed");
            let mut ended = bench.record(&out, &options, false, stop_after).unwrap();
            let mut attempts = 0;
            while matches!(ended, Recorded::Interrupted(_)) {
                attempts += 1;
                assert!(attempts < 60, "no progress");
                // Progress is made even if every attempt is interrupted, as long as a shard is closed in between.
                ended = bench.record(&out, &options, true, stop_after + attempts).unwrap();
            }
            assert_eq!(files(&undisturbed), files(&out), "stopped after {stop_after} batches");
            fs::remove_dir_all(&out).unwrap();
        }
        fs::remove_dir_all(&undisturbed).unwrap();
    }
}

#[test]
fn several_workers_write_what_one_process_writes() {
    let bench = Bench::new(Precision::F32);
    let base = RecordOptions { hook_points: vec![HookPoint::block(Site::ResidPost, 2)], ..bench.options() };
    for options in [
        RecordOptions { skip_special: true, nll: true, ..base.clone() },
        RecordOptions { max_tokens: Some(40), shard_tokens: 8, ..base.clone() },
        RecordOptions { max_tokens: Some(30), shard_tokens: 9, skip_special: true, ..base.clone() },
        RecordOptions { shard_tokens: 1000, ..base },
    ] {
        let (one, several) = (bench.path("one"), bench.path("several"));
        bench.complete(&one, &options);
        // The last one first, and each one interrupted again and again.
        for worker in ["3/4", "1/4", "0/4", "2/4"] {
            assert!(workers::merge(&several).is_err());
            let mut stop_after = 1;
            while let Shared::Interrupted(_) = bench.record_share(&several, &options, worker, stop_after).unwrap() {
                stop_after += 1;
                assert!(stop_after < 60, "no progress");
            }
            let again = bench.record_share(&several, &options, worker, usize::MAX).unwrap();
            assert!(matches!(again, Shared::Done { .. }), "coming again is harmless");
        }
        workers::merge(&several).unwrap();
        assert_eq!(files(&one).keys().collect::<Vec<_>>(), files(&several).keys().collect::<Vec<_>>());
        assert!(files(&one) == files(&several), "the manifest included");
        assert!(matches!(bench.record_share(&several, &options, "1/4", 9).unwrap(), Shared::Complete(_)));
        fs::remove_dir_all(&one).unwrap();
        fs::remove_dir_all(&several).unwrap();
    }
}

#[test]
fn a_worker_notices_another_corpus() {
    let bench = Bench::new(Precision::F32);
    let (out, options) = (bench.path("run"), bench.options());
    assert!(matches!(bench.record_share(&out, &options, "0/2", usize::MAX).unwrap(), Shared::Done { .. }));
    for other in [CORPUS.replace("125", "126"), CORPUS.replace("125, ", ""), format!("{CORPUS}{CORPUS}")] {
        fs::write(bench.path("corpus.jsonl"), other).unwrap();
        assert!(matches!(bench.record_share(&out, &options, "1/2", usize::MAX), Err(Error::CorpusChanged)));
    }
    fs::write(bench.path("corpus.jsonl"), CORPUS).unwrap();
    assert!(bench.record_share(&out, &RecordOptions { nll: true, ..options.clone() }, "1/2", 9).is_err());
    assert!(bench.record_share(&out, &options, "1/3", 9).unwrap_err().to_string().contains("one of 2 workers"));
    assert!(bench.record(&out, &options, true, 9).unwrap_err().to_string().contains("several workers"));
    assert!(matches!(bench.record_share(&out, &options, "1/2", usize::MAX).unwrap(), Shared::Done { .. }));
    assert_eq!(workers::merge(&out).unwrap().counts.tokens_captured, TOKENS);
    // A run that one process has begun is not for workers.
    let alone = bench.path("alone");
    assert!(matches!(bench.record(&alone, &options, false, 2).unwrap(), Recorded::Interrupted(_)));
    assert!(bench.record_share(&alone, &options, "1/2", 9).unwrap_err().to_string().contains("one process"));
}

#[test]
fn resuming_with_another_corpus_or_other_options_is_refused() {
    let bench = Bench::new(Precision::F32);
    let (out, options) = (bench.path("run"), bench.options());
    assert!(matches!(bench.record(&out, &options, false, 4).unwrap(), Recorded::Interrupted(at) if at.shards > 0));
    assert!(bench.record(&out, &options, false, 4).is_err(), "a run is there already");
    assert!(bench.record(&out, &RecordOptions { nll: true, ..options.clone() }, true, 9).is_err());
    fs::write(bench.path("corpus.jsonl"), CORPUS.replace("125", "126")).unwrap();
    assert!(matches!(bench.record(&out, &options, true, 9), Err(Error::CorpusChanged)));
    fs::write(bench.path("corpus.jsonl"), CORPUS).unwrap();
    assert!(matches!(bench.record(&out, &options, true, usize::MAX).unwrap(), Recorded::Complete(_)));
}

#[test]
fn bad_corpora_leave_nothing_behind() {
    let bench = Bench::new(Precision::F32);
    let check = |corpus: &str, expected: &str| {
        fs::write(bench.path("corpus.jsonl"), corpus).unwrap();
        let out = bench.path("run");
        let error = bench.record(&out, &bench.options(), false, usize::MAX).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!out.exists(), "{corpus}");
    };
    check("", "no token");
    check("{\"tokens\": []}\n", "no token");
    check("{\"text\": \"words\"}\n", "tokenizer");
    check("{\"tokens\": [2, 320]}\n", "320");
    check("not json\n", "line 1");
    fs::write(bench.path("corpus.jsonl"), CORPUS).unwrap();
    for (options, expected) in [
        (RecordOptions { context: Some(257), ..bench.options() }, "256"),
        (RecordOptions { context: Some(1), ..bench.options() }, "256"),
        (RecordOptions::new(vec![HookPoint::block(Site::Pattern, 0)]), "hook_pattern"),
    ] {
        let error = bench.record(&bench.path("run"), &options, false, usize::MAX).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_was_durable_stays_when_a_later_document_is_bad() {
    let bench = Bench::new(Precision::F32);
    let (out, options) = (bench.path("run"), bench.options());
    fs::write(bench.path("corpus.jsonl"), format!("{CORPUS}{{\"tokens\": [999]}}\n")).unwrap();
    assert!(bench.record(&out, &options, false, usize::MAX).is_err());
    let run = Run::open(&out).unwrap();
    assert!(!run.manifest().complete);
    assert!(run.n_tokens() > 0);
    // The corpus is repaired, and the recording goes on.
    fs::write(bench.path("corpus.jsonl"), CORPUS).unwrap();
    assert!(matches!(bench.record(&out, &options, true, usize::MAX).unwrap(), Recorded::Complete(_)));
}

/// The prompt of a fixture, recorded; and what the reference computed on it.
fn recorded_prompt(
    name: &str,
    options: impl FnOnce(&Bench) -> RecordOptions,
) -> (Bench, Run, BTreeMap<String, Tensor>, u64) {
    let mut bench = Bench::of(name, Precision::F32);
    let reference = Tensor::read_safetensors(testing::fixture(&format!("{name}.f32.safetensors"))).unwrap();
    let reference: BTreeMap<String, Tensor> = reference.into_iter().collect();
    let ids = Vec::<i64>::try_from(&reference["one/ids"]).unwrap();
    let path = bench.path("one.jsonl");
    fs::write(&path, format!("{{\"tokens\": {ids:?}}}")).unwrap();
    bench.corpus = Corpus::open(&[path.display().to_string()], false).unwrap();
    let out = bench.path("run");
    bench.complete(&out, &options(&bench));
    let run = Run::open(&out).unwrap();
    (bench, run, reference, ids.len() as u64)
}

fn difference(stored: &[f32], expected: &Tensor) -> f64 {
    assert_eq!(stored.len(), expected.numel());
    let expected = expected.to_kind(Kind::Float).reshape([-1]);
    (Tensor::from_slice(stored) - expected).abs().max().double_value(&[])
}

#[test]
fn every_recordable_hook_point_equals_the_reference() {
    for name in ["gemma3/text", "gemma3n/text", "gemma4/e", "gemma4/dense", "gemma4/moe", "gemma4/moe_ple"] {
        let every = |bench: &Bench| {
            let shape = bench.model.shape();
            let points = HookPoint::all(&shape).into_iter().filter(|point| point.shape(&shape).is_some());
            RecordOptions::new(points.collect())
        };
        let (bench, run, reference, n_tokens) = recorded_prompt(name, every);
        for point in every(&bench).hook_points {
            let stored = run.acts(point, 0..n_tokens).unwrap().to_f32();
            let expected = &reference[&format!("one/{point}")];
            // Another device sums in another order: of large values more than the last bit differs.
            let on_a_cpu = testing::device() == Device::Cpu;
            let largest = || expected.to_kind(Kind::Float).abs().max().double_value(&[]).max(1.0);
            let size = if on_a_cpu { 1.0 } else { largest() };
            let difference = difference(&stored, expected) / size;
            assert!(difference < 1e-4, "{name} {point}: {difference} of {size}");
        }
    }
}

#[test]
fn routing_equals_the_reference() {
    for name in ["gemma4/moe", "gemma4/moe_ple"] {
        let options = |_: &Bench| RecordOptions {
            router_logits: true,
            ..RecordOptions::new(vec!["blocks.1.hook_resid_post".parse().unwrap()])
        };
        let (_bench, run, reference, n_tokens) = recorded_prompt(name, options);
        // The pass stops behind the last layer that is asked for.
        assert_eq!(run.routing_info().unwrap().layers, [0, 1], "{name}");
        for layer in 0..2 {
            let routing = run.routing(layer).unwrap().rows(0..n_tokens).unwrap();
            let expected = |site: &str| &reference[&format!("one/blocks.{layer}.{site}")];
            let chosen = Vec::<i64>::try_from(expected("moe.hook_topk_idx").reshape([-1])).unwrap();
            assert_eq!(routing.expert_ids, chosen.iter().map(|&id| id as u16).collect::<Vec<_>>(), "{name} {layer}");
            let probs = expected("moe.hook_router_probs");
            let norm = |x: &Tensor| x.square().sum_dim_intlist(-1, false, Kind::Float).sqrt();
            let entropy = -(probs * probs.log()).sum_dim_intlist(-1, false, Kind::Float);
            for (what, stored, expected) in [
                ("weights", &routing.weights, expected("moe.hook_topk_weight")),
                ("probs", &routing.probs, &probs.gather(1, expected("moe.hook_topk_idx"), false)),
                ("entropy", &routing.entropy, &entropy),
                ("dense_norm", &routing.dense_norm, &norm(expected("hook_dense_out"))),
                ("moe_norm", &routing.moe_norm, &norm(expected("hook_moe_out"))),
                ("router_logits", routing.router_logits.as_ref().unwrap(), expected("moe.hook_router_logits")),
            ] {
                let difference = difference(stored, expected);
                assert!(difference < 1e-4, "{name} {layer} {what}: {difference}");
            }
        }
        data::verify::verify(&run, &mut |_| ControlFlow::Continue(())).unwrap();
    }
}

#[test]
fn routing_resumes_to_the_byte() {
    let bench = Bench::of("gemma4/moe_ple", Precision::F32);
    let options = RecordOptions { skip_special: true, ..bench.options() };
    let (whole, parts) = (bench.path("whole"), bench.path("parts"));
    bench.complete(&whole, &options);
    let mut resume = false;
    while let Recorded::Interrupted(_) = bench.record(&parts, &options, resume, 3).unwrap() {
        resume = true;
    }
    assert!(resume, "it was interrupted at least once");
    let files = |run: &Path| Run::open(run).unwrap().manifest().shards.clone();
    assert_eq!(files(&whole), files(&parts));
    assert!(files(&whole).iter().any(|shard| shard.files.keys().any(|file| file.starts_with("routing/layer=3/"))));
}
