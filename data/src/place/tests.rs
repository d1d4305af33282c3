//! Does a run in a store hold what one on a disk holds, whatever fails on the way?

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use fs_err as fs;
use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as Answer,
};

use super::*;
use crate::shard::workers::{self, Joined, Planned};
use crate::verify::verify;
use crate::{Dtype, Run, RunWriter, testing};

const URL: &str = "s3://bucket/runs/news";
const HOOK: &str = "blocks.1.hook_resid_post";

/// A store that fails after so many requests that write.
#[derive(Debug)]
struct Failing {
    inner: Arc<InMemory>,
    left: AtomicUsize,
    /// Whether it can put a file where none is.
    conditional: bool,
}

impl Failing {
    fn after(inner: &Arc<InMemory>, left: usize) -> Arc<dyn ObjectStore> {
        Arc::new(Self { inner: Arc::clone(inner), left: AtomicUsize::new(left), conditional: true })
    }

    fn count(&self) -> Answer<()> {
        let counted = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let source = "the cable was cut".into();
        counted.map(drop).map_err(|_none_left| object_store::Error::Generic { store: "test", source })
    }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failing store")
    }
}

#[async_trait]
impl ObjectStore for Failing {
    async fn put_opts(&self, key: &Key, payload: PutPayload, options: PutOptions) -> Answer<PutResult> {
        if matches!(options.mode, PutMode::Create) && !self.conditional {
            return Err(object_store::Error::NotImplemented { operation: "create".into(), implementer: "test".into() });
        }
        self.count()?;
        self.inner.put_opts(key, payload, options).await
    }

    async fn put_multipart_opts(&self, key: &Key, options: PutMultipartOptions) -> Answer<Box<dyn MultipartUpload>> {
        self.count()?;
        self.inner.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Answer<GetResult> {
        self.inner.get_opts(key, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Answer<Key>>) -> BoxStream<'static, Answer<Key>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Answer<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Answer<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Answer<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The place as seen from a machine with a disk of its own.
fn place(store: &Arc<InMemory>, machine: &Path) -> Place {
    Place::in_store(Arc::clone(store) as Arc<dyn ObjectStore>, URL, machine, DEFAULT_MIRROR_BYTES)
}

fn manifest() -> crate::Manifest {
    testing::manifest(&[(HOOK, 8, Dtype::F32)])
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn keys(store: &InMemory) -> Vec<String> {
    let list = wait(store.list(None).try_collect::<Vec<_>>()).unwrap();
    let mut keys: Vec<String> = list.into_iter().map(|meta| meta.location.to_string()).collect();
    keys.sort();
    keys
}

fn bytes(store: &InMemory, key: &str) -> bytes::Bytes {
    wait(async { store.get(&Key::parse(key).unwrap()).await.unwrap().bytes().await.unwrap() })
}

/// That a store holds what a folder holds.
fn assert_same(store: &InMemory, dir: &Path) {
    let names = files::names_below(dir).unwrap();
    let expected: Vec<String> = names.iter().map(|name| format!("runs/news/{name}")).collect();
    assert_eq!(keys(store), expected);
    for name in names {
        assert!(bytes(store, &format!("runs/news/{name}")) == fs::read(dir.join(&name)).unwrap(), "{name}");
    }
}

fn write(writer: &RunWriter, shards: std::ops::Range<usize>) {
    shards.for_each(|shard| testing::write_shard(writer, shard, shard as u64 * 100..shard as u64 * 100 + 100, 33));
}

#[test]
fn places_are_told_apart() {
    let stores = Stores { cache: Some("/nowhere".into()), ..Stores::default() };
    let parse = |text: &str| Place::parse(OsStr::new(text), &stores);
    assert!(!parse("runs/news").unwrap().is_remote());
    assert_eq!(parse("file:///a/b%20c").unwrap().dir(), Path::new("/a/b c"));
    let place = parse("S3://bucket/runs/news/").unwrap();
    assert_eq!((place.shown(), place.dir().file_name()), (Path::new(URL), Some(OsStr::new("news"))));
    for wrong in ["ftp://a/b", "s3://bucket", "s3:///b", "s3://b/../c", "s3://b/c?d", "gs://a//b", "file://host/a"] {
        assert!(matches!(parse(wrong), Err(Error::BadPlace { .. })), "{wrong}");
    }
    let told = parse("s3://key:secret@bucket/run").unwrap_err().to_string();
    assert!(!told.contains("secret"), "{told}");
    let nowhere = Place::parse(OsStr::new(URL), &Stores::default()).unwrap_err().to_string();
    assert!(nowhere.contains("no folder is known"), "{nowhere}");
}

#[test]
fn a_run_in_a_store_is_the_one_on_a_disk() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
    let [local, writing, reading] = ["local", "writing", "reading"].map(|name| dir.path().join(name));
    testing::run(&local, 8, Dtype::F32, &[100, 100]);
    let writer = RunWriter::create(place(&store, &writing), manifest()).unwrap();
    write(&writer, 0..2);
    writer.finish("0").unwrap();
    assert_same(&store, &local);
    let again = RunWriter::create(place(&store, &reading), manifest());
    assert!(matches!(again, Err(Error::RunExists { .. })));

    // Another machine brings what it reads, and nothing else.
    let there = place(&store, &reading);
    let run = Run::open_at(&there).unwrap();
    let hook = HOOK.parse().unwrap();
    assert_eq!(run.acts(hook, 90..110).unwrap(), Run::open(&local).unwrap().acts(hook, 90..110).unwrap());
    let brought = files::names_below(there.dir()).unwrap();
    assert!(brought.iter().all(|name| name.starts_with("acts/") || name == "manifest.json"), "{brought:?}");
    assert!(verify(&run, &mut |_| std::ops::ControlFlow::Continue(())).unwrap().problems.is_empty());

    // What is damaged or lost there is named, though it was brought before.
    let tokens = "tokens/shard-00001.parquet";
    let key = Key::parse(format!("runs/news/{tokens}")).unwrap();
    let whole = bytes(&store, key.as_ref());
    wait(store.put(&key, whole.slice(..whole.len() / 2).into())).unwrap();
    let first = |run: &Run| {
        let report = verify(run, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        report.problems.into_iter().next().map(|problem| problem.to_string()).unwrap()
    };
    let told = first(&Run::open_at(place(&store, &reading)).unwrap());
    assert!(told.contains("bytes") && told.contains(tokens), "{told}");
    wait(store.delete(&key)).unwrap();
    let run = Run::open_at(place(&store, &reading)).unwrap();
    assert!(first(&run).contains("this file is missing"));
    let told = run.tokens(150..151).unwrap_err().to_string();
    assert!(told.contains("a file of the run is missing: `s3://bucket/runs/news/tokens"), "{told}");
}

#[test]
fn a_recording_goes_on_wherever_the_store_failed() {
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("local");
    testing::run(&local, 8, Dtype::F32, &[100, 100]);
    for left in 0..9 {
        let store = Arc::new(InMemory::new());
        let machine = dir.path().join(format!("machine-{left}"));
        let failing = Place::in_store(Failing::after(&store, left), URL, &machine, DEFAULT_MIRROR_BYTES);
        let ended = RunWriter::create(&failing, manifest()).and_then(|writer| {
            let mut shard = writer.shard(0, 0)?;
            shard.write_tokens(&testing::tokens(0..100))?;
            shard.write_acts(0, Dtype::F32, testing::to_bytes(&testing::rows(0..100, 0, 8)))?;
            let documents = testing::documents(0..100);
            shard.write_documents(&documents)?;
            let counts = crate::Counts::captured(documents.len() as u64, 100);
            shard.commit(serde_json::json!({"next": 100}), counts).map(drop)
        });
        let has_entry = keys(&store).contains(&"runs/news/journal/shard-00000.json".to_owned());
        assert_eq!(ended.is_ok(), has_entry, "after {left} requests");
        if let Err(error) = ended {
            assert!(error.to_string().starts_with("cannot reach the store (the cable was cut) of `s3://"), "{error}");
        }
        // On another machine, with nothing but the store.
        let elsewhere = place(&store, &dir.path().join(format!("other-{left}")));
        let writer = match RunWriter::resume(&elsewhere, &manifest()) {
            Err(Error::NotARun { .. }) => RunWriter::create(&elsewhere, manifest()).unwrap(),
            resumed => resumed.unwrap(),
        };
        write(&writer, writer.next_shard()..2);
        writer.finish("0").unwrap();
        assert_same(&store, &local);
    }
}

#[test]
fn the_same_shard_twice_is_harmless_and_another_one_is_not() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
    let machines = ["one", "two", "three"].map(|name| place(&store, &dir.path().join(name)));
    let first = RunWriter::create(&machines[0], manifest()).unwrap();
    let second = RunWriter::resume(&machines[1], &manifest()).unwrap();
    let third = RunWriter::resume(&machines[2], &manifest()).unwrap();
    write(&first, 0..1);
    write(&second, 0..1);
    let mut other = third.shard(0, 0).unwrap();
    other.write_tokens(&testing::tokens(0..50)).unwrap();
    other.write_acts(0, Dtype::F32, testing::to_bytes(&testing::rows(0..50, 0, 8))).unwrap();
    let error = other.commit(serde_json::Value::Null, crate::Counts::captured(0, 50)).unwrap_err();
    assert!(error.to_string().starts_with("another process has written other bytes as `s3://bucket"), "{error}");
}

#[test]
fn workers_without_a_common_disk_make_one_run() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
    let local = dir.path().join("local");
    testing::run(&local, 8, Dtype::F32, &[100, 100, 100]);
    for (worker, shards) in [("0/2", &[0_usize, 2][..]), ("1/2", &[1])] {
        let machine = place(&store, &dir.path().join(&worker[..1]));
        let Joined::Begun(writer, mut member) = RunWriter::join(&machine, manifest(), worker.parse().unwrap()).unwrap()
        else {
            panic!("it is complete")
        };
        let documents = testing::documents(0..300).len() as u64;
        member.planned(Planned { shards: 3, documents, tokens_expected: 300 }).unwrap();
        for &shard in shards {
            write(&writer, shard..shard + 1);
        }
        if worker == "0/2" {
            let claim = member.claim(0, false).unwrap().unwrap();
            member.publish(&workers::Part { index: 0, documents: Vec::new(), last: true }, claim).unwrap();
            let seen = workers::status(&machine).unwrap();
            assert_eq!((seen.shards, seen.workers[1].missing.as_deref()), (2, Some(&[1][..])));
        } else {
            assert!(member.part(0).unwrap().unwrap().last, "what another machine has counted is found");
        }
        member.done("0").unwrap();
    }
    let elsewhere = place(&store, &dir.path().join("merging"));
    assert!(workers::merge(&elsewhere).unwrap().complete);
    assert_same(&store, &local);
}

#[test]
fn mirrors_make_room_and_kept_files_stay() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
    for name in ["a", "b", "c"] {
        wait(store.put(&Key::parse(format!("runs/news/{name}")).unwrap(), vec![7; 1000].into())).unwrap();
    }
    let small = Place::in_store(Arc::clone(&store) as Arc<dyn ObjectStore>, URL, dir.path(), 2000);
    small.file_to_keep("a").unwrap();
    let b = fs::File::open(small.file("b").unwrap()).unwrap();
    small.file("c").unwrap();
    assert_eq!(files::names_below(small.dir()).unwrap(), ["a", "c"]);
    let mut read = vec![0; 1000];
    files::read_at(&b, &mut read, 0).unwrap();
    assert_eq!(read, [7; 1000], "whoever has it open reads on");
    small.file("b").unwrap();
    assert!(small.dir().join("b").is_file());

    // A file that was changed here is brought again, and so is one that has changed there.
    fs::write(small.dir().join("a"), vec![8; 1000]).unwrap();
    wait(store.put(&Key::parse("runs/news/b").unwrap(), vec![9; 10].into())).unwrap();
    let again = Place::in_store(store, URL, dir.path(), 2000);
    assert_eq!(fs::read(again.file("a").unwrap()).unwrap(), [7; 1000]);
    assert_eq!(fs::read(again.file("b").unwrap()).unwrap(), [9; 10]);
}

#[test]
fn a_folder_is_published_with_what_vouches_for_it_last() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
    let table = |name: &str| format!("runs/news/features/t/{name}");
    let publish = |left: usize, files: &[(&str, &str)]| {
        let machine = dir.path().join(format!("{left}"));
        let place = Place::in_store(Failing::after(&store, left), URL, &machine, DEFAULT_MIRROR_BYTES);
        for (name, text) in files {
            let path = place.dir().join("features/t").join(name);
            fs::create_dir_all(files::parent(&path)).unwrap();
            fs::write(path, text).unwrap();
        }
        place.publish("features/t", &[sums::FILE])
    };
    let first = [("acts/0", "a"), ("acts/1", "b"), (sums::FILE, "of a and b")];
    publish(9, &first).unwrap();
    assert_eq!(place(&store, dir.path()).names_in("features", true).unwrap(), ["t"]);
    assert!(publish(0, &[("acts/0", "c"), (sums::FILE, "of c")]).is_err());
    assert!(!keys(&store).contains(&table(sums::FILE)));
    let seen = place(&store, dir.path());
    assert_eq!(seen.names_in("features", true).unwrap(), Vec::<String>::new());
    assert!(!seen.has("features/t/acts/0").unwrap());
    publish(8, &[("acts/0", "c"), (sums::FILE, "of c")]).unwrap();
    assert_eq!(keys(&store), [table("acts/0"), table(sums::FILE)]);
}

#[test]
fn large_files_go_and_come_in_parts() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
    let bytes: Vec<u8> = (0..20_000_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let there = place(&store, &dir.path().join("one"));
    fs::create_dir_all(there.dir()).unwrap();
    fs::write(there.dir().join("large"), &bytes).unwrap();
    there.send(&["large"]).unwrap();
    let here = place(&store, &dir.path().join("two"));
    assert!(fs::read(here.file("large").unwrap()).unwrap() == bytes);
}

#[test]
fn a_store_that_cannot_tell_is_asked_before() {
    let (dir, inner) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
    let store = Arc::new(Failing { inner, left: AtomicUsize::new(99), conditional: false });
    let place = Place::in_store(store, URL, dir.path(), DEFAULT_MIRROR_BYTES);
    assert!(place.create("a", b"1").unwrap());
    assert!(!place.create("a", b"1").unwrap());
    assert!(matches!(place.create("a", b"2"), Err(Error::OtherBytes { .. })));
}
