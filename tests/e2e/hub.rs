//! Does `import` bring a coder from a Hugging Face hub, with the hub's own program?
//!
//! The hub is a few answers on this machine; the program is what `cargo xtask test` puts into the cache, and the test is left
//! out where it is missing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use fs_err as fs;
use serde_json::{Value, json};

use crate::support::{fixture, packages, text};

/// A repository that holds what the fixtures of Gemma Scope 2 do, and one with a set of circuit-tracer.
const REPOSITORIES: [(&str, &str); 2] = [
    ("google/gemma-scope-2-270m-pt", "dictionaries/gemma-scope-2-270m-pt"),
    ("mntss/transcoders", "dictionaries/circuit_tracer"),
];
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The files of a repository by their paths.
type Files = BTreeMap<String, Vec<u8>>;

fn files(dir: &Path, below: &str, found: &mut Files) {
    for entry in fs::read_dir(dir.join(below)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if dir.join(&path).is_dir() {
            files(dir, &path, found);
        } else {
            found.insert(path.clone(), fs::read(dir.join(path)).unwrap());
        }
    }
}

/// Answers as the hub does, as long as the test runs; gives back where.
fn serve() -> String {
    let hub: BTreeMap<&str, Files> = REPOSITORIES
        .map(|(name, folder)| {
            let mut found = Files::new();
            files(&fixture(folder), "", &mut found);
            (name, found)
        })
        .into();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move || {
        for stream in listener.incoming().flatten() {
            // One that hangs up early has what it wanted.
            let _ = answer(&hub, stream);
        }
    };
    thread::Builder::new().name("hub".to_owned()).spawn(answer).unwrap();
    format!("http://{address}")
}

fn answer(hub: &BTreeMap<&str, Files>, mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let found = found(hub, path);
    let (status, body) = found.map_or(("404 Not Found", b"{}".to_vec()), |body| ("200 OK", body));
    // An ETag is any text that changes with the file.
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\nETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n\r\n",
        body.len(),
        path.replace('/', "-")
    )?;
    if method != "HEAD" {
        stream.write_all(&body)?;
    }
    stream.flush()
}

fn found(hub: &BTreeMap<&str, Files>, path: &str) -> Option<Vec<u8>> {
    let within = |prefix: &str| {
        let rest = path.strip_prefix(prefix)?;
        hub.iter().find_map(|(name, files)| Some((*name, files, rest.strip_prefix(name)?.strip_prefix('/')?)))
    };
    if let Some((name, files, rest)) = within("/api/models/") {
        let tree = files.iter().map(|(path, bytes)| {
            json!({ "type": "file", "path": path, "size": bytes.len(), "oid": format!("{:040x}", bytes.len()) })
        });
        let siblings = files.keys().map(|path| json!({ "rfilename": path }));
        let said = if rest.starts_with("tree/") {
            Value::Array(tree.collect())
        } else {
            json!({ "id": name, "modelId": name, "sha": COMMIT, "private": false, "tags": [], "downloads": 0,
                    "siblings": siblings.collect::<Vec<_>>() })
        };
        return Some(said.to_string().into_bytes());
    }
    let (_, files, rest) = within("/")?;
    files.get(rest.strip_prefix("resolve/")?.split_once('/')?.1).cloned()
}

#[expect(clippy::disallowed_methods, reason = "the hub's program needs what else is in the path")]
#[test]
fn a_coder_comes_from_the_hub() {
    let Some(hub) = packages("hub", "huggingface_hub") else {
        eprintln!("left out: no client of the hub is in the cache; `cargo xtask test` puts it there");
        return;
    };
    let (dir, endpoint) = (tempfile::tempdir().unwrap(), serve());
    let here = std::env::current_exe().unwrap();
    let program = here.parent().unwrap().parent().unwrap().join("polariscope");
    let import = |source: &str, out: &Path| -> Output {
        let mut command = Command::new(&program);
        command.args(["import", source, "--out", &text(out), "--json"]).stdin(Stdio::null()).env("NO_COLOR", "1");
        command.env("POLARISCOPE_CACHE", dir.path().join("cache")).env("HF_HOME", dir.path().join("home"));
        command
            .env("HF_ENDPOINT", &endpoint)
            .env("PYTHONPATH", &hub)
            .env_remove("HF_TOKEN")
            .env_remove("HF_HUB_OFFLINE");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(hub.join("bin")).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(path).unwrap()).output().unwrap()
    };
    for (source, hook) in [
        ("google/gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_medium", "blocks.9.hook_resid_post"),
        ("hf://mntss/transcoders/jumprelu/layer_4.safetensors", "blocks.4.mlp.hook_in"),
    ] {
        let out = dir.path().join(hook);
        let ended = import(source, &out);
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{source}\n{stderr}");
        let said: Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!((&said["hook_name"], &said["d_sae"]), (&json!(hook), &json!(37)));
        assert!(scope::Sae::load(&out).is_ok());
    }
    for (source, what) in
        [("google/gemma-scope-9/x", "repository"), ("google/gemma-scope-2-270m-pt/resid_pre/x", "folder")]
    {
        let out = dir.path().join(what);
        let ended = import(source, &out);
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("error: the hub gave nothing for `{source}`")), "{stderr}");
        assert!(stderr.contains("\nhint: ") && ended.stdout.is_empty() && !out.exists(), "{stderr}");
    }
}
