//! Is a run in a real S3 server what it is on a disk, for every command, also after a kill?
//!
//! The server is moto, which `cargo xtask test` puts into the cache; the test is left out where it is missing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use fs_err as fs;

use crate::support::{fixture, packages, polariscope, text, token_corpus};

const HOOK_POINT: &str = "blocks.3.hook_resid_post";

/// How often the server is asked whether it is there, and how long that takes at most.
const ASKED: usize = 300;
const PAUSE: Duration = Duration::from_millis(100);

/// A server that ends with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(moto: &Path, dir: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut python = Command::new("python3");
        python.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]).env("PYTHONPATH", moto);
        python
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("moto.log")).unwrap().into_parts().0);
        let server = Self { child: python.spawn().unwrap(), port };
        let is_there = (0..ASKED).any(|_| {
            thread::sleep(PAUSE);
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        assert!(is_there, "moto does not start: {}", fs::read_to_string(dir.join("moto.log")).unwrap());
        server
    }

    /// A plain request; moto wants a signature for some and compares none.
    fn ask(&self, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let port = self.port;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, \
             Signature=0\r\n\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The program on a machine whose cache is `machine`.
    fn command(&self, machine: &Path, args: &[&str]) -> Command {
        let here = std::env::current_exe().unwrap();
        let mut command = Command::new(here.parent().unwrap().parent().unwrap().join("polariscope"));
        command.args(args).env("POLARISCOPE_CACHE", machine).env("GOMP_SPINCOUNT", "1000").env("NO_COLOR", "1");
        command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "very-secret");
        command.env("XDG_RUNTIME_DIR", machine).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, machine: &Path, args: &[&str]) -> String {
        let output = self.command(machine, args).output().unwrap();
        assert!(output.status.success(), "{args:?}\n{}", told(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command says that fails, in one sentence and a hint.
    #[track_caller]
    fn refused(&self, machine: &Path, args: &[&str], change: impl Fn(&mut Command)) -> String {
        let mut command = self.command(machine, args);
        change(&mut command);
        let output = command.output().unwrap();
        let told = told(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("\nhint: ") && !told.contains("very-secret"), "{told}");
        told
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// That two folders hold the same files, but for who made them, when and where.
#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let files = |dir: &Path| {
        let mut found = tests::soak::files(dir).unwrap();
        // A store has no folders.
        found.retain(|name, _| !name.ends_with('/'));
        found
    };
    let (a, b) = (files(a), files(b));
    assert!(a.keys().eq(b.keys()), "{:?} {:?}", a.keys(), b.keys());
    for (name, bytes) in &a {
        assert!(b[name] == *bytes, "{name} differs");
    }
}

/// The folder in which a machine has all files of a run, after it has read all of them.
fn mirror(machine: &Path, name: &str) -> PathBuf {
    let folders = fs::read_dir(machine.join("remote")).unwrap().map(|entry| entry.unwrap().path());
    let mut found = folders.map(|folder| folder.join(name)).filter(|folder| folder.join("manifest.json").is_file());
    found.next().unwrap()
}

#[test]
fn every_command_works_on_a_run_in_a_bucket() {
    let Some(moto) = packages("moto", "moto.server") else {
        eprintln!("left out: no Python with moto (`cargo xtask test` brings it)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let server = Server::start(&moto, dir.path());
    assert!(server.ask("PUT", "/bucket").starts_with("HTTP/1.1 200"));
    let corpus = dir.path().join("corpus.jsonl");
    token_corpus(&corpus, 120);
    let (model, corpus, local) = (text(&fixture("gemma3/text")), text(&corpus), dir.path().join("local"));
    let record = |out: &str, more: &[&str]| -> Vec<String> {
        let points = ["--hook-points", HOOK_POINT, "--shard-tokens", "700"];
        let args = [&["record", &model, "--corpus", &corpus, "--out", out][..], &points, more].concat();
        args.into_iter().map(str::to_owned).collect()
    };
    let words = |args: &[String]| -> Vec<String> { args.to_vec() };
    let run =
        |machine: &Path, args: Vec<String>| server.run(machine, &args.iter().map(String::as_str).collect::<Vec<_>>());
    polariscope(&record(&text(&local), &[]).iter().map(String::as_str).collect::<Vec<_>>());

    // Killed when some shards are durable, and resumed on another machine.
    let (url, one, two) = ("s3://bucket/runs/local", at("one"), at("two"));
    let begun = words(&record(url, &[]));
    let mut child = server
        .command(&one, &begun.iter().map(String::as_str).collect::<Vec<_>>())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let entry = "/bucket/runs/local/journal/shard-00001.json";
    while server.ask("HEAD", entry).starts_with("HTTP/1.1 404") && child.try_wait().unwrap().is_none() {
        thread::sleep(PAUSE / 10);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    run(&two, record(url, &["--resume"]));

    let reader = at("reader");
    server.run(&reader, &["verify", url]);
    assert_same(&mirror(&reader, "local"), &local);
    let again = record(url, &[]);
    let again: Vec<&str> = again.iter().map(String::as_str).collect();
    assert!(server.refused(&reader, &again, |_| ()).contains("a run exists already in `s3://bucket/runs/local`"));

    // Every reader gives what it gives of the folder.
    let local_arg = text(&local);
    let sql = "SELECT token, count(*) AS n, max(act[1]) AS x FROM tokens JOIN blocks_3_hook_resid_post USING (token_idx) \
               GROUP BY token ORDER BY n DESC, token LIMIT 20";
    let both = |remote: &[&str], here: &[&str]| {
        let [remote, here] = [server.run(&at("fresh"), remote), server.run(&reader, here)];
        assert_eq!(remote, here);
    };
    both(&["query", url, sql, "--format", "csv"], &["query", &local_arg, sql, "--format", "csv"]);
    let (sae_url, sae) = ("s3://bucket/runs/local/saes/resid-3", text(&local.join("saes/resid-3")));
    let size = ["--d-sae", "96", "--k", "8", "--batch-tokens", "512", "--steps", "40", "--checkpoint-every", "15"];
    let train = |run: &str, out: &str| {
        let args = [&["train", run, "--hook-point", HOOK_POINT, "--out", out][..], &size].concat();
        server.run(&two, &args);
    };
    train(url, sae_url);
    train(&local_arg, &sae);
    let evaluate = |run: &str, sae: &str| server.run(&reader, &["evaluate", run, "--sae", sae, "--json"]);
    assert_eq!(evaluate(url, sae_url), evaluate(&local_arg, &sae));
    server.run(&two, &["encode", url, "--sae", sae_url]);
    server.run(&two, &["encode", &local_arg, "--sae", &sae]);
    let features = "SELECT * FROM features_resid_3_acts ORDER BY token_idx, feature";
    both(&["query", url, features, "--format", "csv"], &["query", &local_arg, features, "--format", "csv"]);
    server.run(&reader, &["inspect", url]);
    server.run(&reader, &["inspect", sae_url]);
    assert!(server.run(&reader, &["status", url]).starts_with("complete: "));
    server.run(&reader, &["verify", url]);

    // Shuffled into a store, and into a folder.
    let shuffled = text(&dir.path().join("shuffled"));
    server.run(&two, &["shuffle", url, "--out", "s3://bucket/runs/shuffled", "--memory", "200KB"]);
    server.run(&two, &["shuffle", url, "--out", &shuffled, "--memory", "200KB"]);
    server.run(&reader, &["verify", "s3://bucket/runs/shuffled"]);
    assert_same(&mirror(&reader, "shuffled"), Path::new(&shuffled));

    // Two workers that share nothing but the store.
    let spread = "s3://bucket/runs/spread";
    run(&one, record(spread, &["--shard", "0/2"]));
    run(&two, record(spread, &["--shard", "1/2"]));
    server.run(&reader, &["merge", spread]);
    server.run(&reader, &["verify", spread]);
    let alone = dir.path().join("alone");
    run(&one, record(&text(&alone), &[]));
    assert_same(&mirror(&reader, "spread"), &alone);

    // What is wrong is told in one sentence.
    assert!(
        server
            .refused(&reader, &["status", "s3://nowhere/run"], |_| ())
            .contains("there is no such bucket: `s3://nowhere/run`")
    );
    assert!(server.refused(&reader, &["status", "s3://bucket/nothing"], |_| ()).contains("no run: `manifest.json`"));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let away = |command: &mut Command| _ = command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{closed}"));
    assert!(server.refused(&reader, &["status", url], away).contains("cannot reach the store"));
    assert!(server.ask("DELETE", "/bucket/runs/local/tokens/shard-00001.parquet").starts_with("HTTP/1.1 204"));
    let told = server.refused(&reader, &["verify", url], |_| ());
    assert!(
        told.contains("this file is missing in `tokens/shard-00001.parquet` of `s3://bucket/runs/local`"),
        "{told}"
    );
}
