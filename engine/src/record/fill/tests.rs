use std::fmt::Write as _;
use std::path::PathBuf;

use data::hook_point::{HookPoint, Site};
use data::manifest;
use fs_err as fs;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

use super::*;
use crate::gemma::model::Precision;
use crate::record::{Provenance, describe, new_manifest, record, repair};
use crate::testing::files;
use crate::weights::Weights;

struct Bench {
    folder: tempfile::TempDir,
    model: Model,
    described: manifest::Model,
}

impl Bench {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gemma3/text");
        let weights = Weights::open(path).unwrap();
        let model = Model::from_weights(&weights, Precision::F32).unwrap();
        let described = describe("tiny", &weights, model.precision()).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), model, described }
    }

    /// Some documents of some tokens each, none among them; and how many tokens that is.
    fn corpus(&self, random: &mut Pcg64) -> (Corpus, u64) {
        let (mut lines, mut tokens) = (String::new(), 0);
        for _ in 0..random.random_range(1..14) {
            let length = if random.random_bool(0.2) { 0 } else { random.random_range(1..40) };
            let ids: Vec<u32> = (0..length).map(|_| random.random_range(1..320)).collect();
            writeln!(lines, "{{\"tokens\": {ids:?}}}").unwrap();
            tokens += length;
        }
        lines.push_str("{\"tokens\": [2, 7]}\n");
        let path = self.folder.path().join("corpus.jsonl");
        fs::write(&path, lines).unwrap();
        (Corpus::open(&[path.display().to_string()], false).unwrap(), tokens + 2)
    }

    fn options(random: &mut Pcg64) -> RecordOptions {
        RecordOptions {
            context: Some(random.random_range(2..20)),
            max_tokens: random.random_bool(0.3).then(|| random.random_range(1..100)),
            batch_tokens: random.random_range(1..40),
            skip_special: random.random_bool(0.5),
            shard_tokens: random.random_range(20..60),
            ..RecordOptions::new(vec![HookPoint::block(Site::ResidPost, 0)])
        }
    }

    /// Records into a new folder.
    fn record(&self, name: &str, corpus: &Corpus, options: &RecordOptions, queues: Queues) -> (PathBuf, Manifest) {
        let out = self.folder.path().join(name);
        if out.exists() {
            fs::remove_dir_all(&out).unwrap();
        }
        let context = options.context.unwrap();
        let described = self.described.clone();
        let manifest =
            new_manifest(&self.model, described, None, corpus, options, context, Provenance::default()).unwrap();
        let (model, tokenizer) = (&self.model, None);
        let recording = Recording { model, tokenizer, corpus, out: (&out).into(), options, context, manifest, queues };
        match recording.run(None, &mut |_| ControlFlow::Continue(())).unwrap() {
            Recorded::Complete(manifest) => (out, *manifest),
            Recorded::Interrupted(at) => panic!("interrupted at {at:?}"),
        }
    }
}

#[test]
fn nothing_is_lost_and_the_same_is_written_for_every_size_of_the_queues() {
    let bench = Bench::new();
    let mut random = Pcg64::seed_from_u64(1);
    for case in 0..6 {
        let (corpus, tokens) = bench.corpus(&mut random);
        let options = Bench::options(&mut random);
        let (out, _) = bench.record("usual", &corpus, &options, Queues::default());
        let expected = files(&out);
        // A queue of none hands over what is taken at the same moment.
        for (sequences, batches) in [(0, 0), (1, 1), (1, 3), (2, 1), (random.random_range(3..9), 0)] {
            let (out, manifest) = bench.record("other", &corpus, &options, Queues { sequences, batches });
            assert!(files(&out) == expected, "case {case}, {options:?}: {sequences} sequences, {batches} batches");
            let counts = manifest.counts;
            let skipped: u64 = counts.tokens_skipped.values().sum();
            assert_eq!(counts.tokens_captured + skipped, options.max_tokens.map_or(tokens, |max| max.min(tokens)));
        }
    }
}

#[test]
fn shards_that_are_recorded_again_are_the_same_to_the_byte() {
    let bench = Bench::new();
    let mut random = Pcg64::seed_from_u64(2);
    let mut repaired = 0;
    for case in 0..6 {
        let (corpus, _) = bench.corpus(&mut random);
        let options = Bench::options(&mut random);
        let (out, manifest) = bench.record("run", &corpus, &options, Queues::default());
        assert_eq!(
            RecordOptions::of_run(&manifest),
            RecordOptions { store_dtype: Some(data::Dtype::F32), ..options.clone() }
        );
        let expected = files(&out);
        let shards = manifest.shards.len();
        let untouched = |broken: &[usize]| -> Vec<_> {
            let path = |index: usize| out.join(format!("tokens/shard-{index:05}.parquet"));
            let others = (0..shards).filter(|index| !broken.contains(index));
            others.map(|index| fs::metadata(path(index)).unwrap().modified().unwrap()).collect()
        };
        let several: Vec<usize> = (0..shards).filter(|_| random.random_bool(0.5)).collect();
        for broken in [vec![0], vec![shards - 1], several, (0..shards).collect()] {
            let before = untouched(&broken);
            // As often as it is interrupted, it goes on.
            let mut ended = Recorded::Interrupted(RecordProgress::default());
            let (mut attempts, mut left) = (0, broken.as_slice());
            while let Recorded::Interrupted(_) = ended {
                let mut batches = 0;
                attempts += 1;
                let described = bench.described.clone();
                ended = repair(&bench.model, described, None, &corpus, &out, &options, left, &mut |_| {
                    batches += 1;
                    if batches > attempts { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
                .unwrap();
                left = &[];
            }
            assert!(files(&out) == expected, "case {case}, {options:?}: {broken:?} of {shards}");
            assert_eq!(untouched(&broken), before, "only what is broken is written");
            repaired += broken.len();
        }
    }
    assert!(repaired > 20, "{repaired}");
}

#[test]
fn what_differs_is_refused_before_anything_is_touched() {
    let bench = Bench::new();
    let mut random = Pcg64::seed_from_u64(3);
    let (corpus, _) = bench.corpus(&mut random);
    let options = RecordOptions { max_tokens: None, ..Bench::options(&mut random) };
    let (out, _) = bench.record("run", &corpus, &options, Queues::default());
    let expected = files(&out);
    let repair = |described: manifest::Model, options: &RecordOptions| {
        repair(&bench.model, described, None, &corpus, &out, options, &[0], &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string()
    };
    let described = || bench.described.clone();
    assert!(repair(described(), &RecordOptions { nll: true, ..options.clone() }).contains("corpus.options"));
    let sums = [("model.safetensors".to_owned(), "0".to_owned())].into();
    assert!(repair(manifest::Model { sha256: sums, ..described() }, &options).contains("model.sha256"));
    let path = bench.folder.path().join("corpus.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("[2, 7]", "[2, 8]")).unwrap();
    assert!(repair(described(), &options).contains("the corpus is not the one"));
    assert!(files(&out) == expected);
}

#[test]
fn a_lost_file_in_the_middle_is_written_again_by_resuming() {
    let bench = Bench::new();
    let mut random = Pcg64::seed_from_u64(4);
    let (corpus, _) = bench.corpus(&mut random);
    let options = RecordOptions { max_tokens: None, shard_tokens: 20, ..Bench::options(&mut random) };
    let (out, manifest) = bench.record("run", &corpus, &options, Queues::default());
    assert!(manifest.shards.len() > 2);
    let expected = files(&out);
    for lost in ["tokens/shard-00001.parquet", "journal/shard-00000.json"] {
        fs::remove_file(out.join(lost)).unwrap();
        let described = bench.described.clone();
        let provenance = Provenance::default();
        let ended = record(&bench.model, described, None, &corpus, &out, &options, provenance, true, &mut |_| {
            ControlFlow::Continue(())
        });
        assert!(matches!(ended.unwrap(), Recorded::Complete(_)));
        assert!(files(&out) == expected, "{lost}");
    }
}
