//! Do several processes, told apart as a cluster tells them apart, record what one process records?
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fs_err as fs;
use serde_json::Value;

use crate::support::{end, fails, polariscope, refused, succeeds, text, tiny_model, token_corpus, tree};

const OPTIONS: [&str; 6] =
    ["--hook-points", "blocks.2.hook_resid_post,blocks.4.hook_mlp_out", "--shard-tokens", "700", "--threads", "1"];

/// A corpus, the run that one process makes of it, and where several are to make theirs.
struct Bench {
    folder: tempfile::TempDir,
    corpus: String,
    one: PathBuf,
    several: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let corpus = token_corpus(&folder.path().join("corpus.jsonl"), 150);
        let (one, several) = (folder.path().join("one"), folder.path().join("several"));
        let bench = Self { folder, corpus, one, several };
        succeeds(&bench.record(&bench.one, &[]));
        bench
    }

    fn record<'a>(&'a self, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let model: &'static str = tiny_model().leak();
        let fixed = ["record", model, "--corpus", &self.corpus, "--out", out.to_str().unwrap()];
        [&fixed, &OPTIONS, more].concat()
    }

    /// All files are the same to the byte, and the manifest but for what tells of the process itself.
    #[track_caller]
    fn assert_equal(&self) {
        let names = |dir| tree(dir, &[]).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&self.one), names(&self.several));
        assert!(tree(&self.one, &["manifest.json"]) == tree(&self.several, &["manifest.json"]));
        let manifest = |dir: &Path| {
            let mut value: Value = serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
            for field in ["command", "created_at", "self_sha256"] {
                value.as_object_mut().unwrap().remove(field);
            }
            value
        };
        assert_eq!(manifest(&self.one), manifest(&self.several));
        succeeds(&["verify", &text(&self.several)]);
    }
}

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

/// A command without the variables of a cluster that the tests themselves may run on.
fn bare(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SLURM_") || name == "JOB_COMPLETION_INDEX" {
            command.env_remove(name);
        }
    }
    command.env("POLARISCOPE", env!("CARGO_BIN_EXE_polariscope")).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for all; every one ended well, and one of them has merged.
#[track_caller]
fn all_succeed(children: Vec<Child>) {
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[cfg(unix)]
#[test]
fn a_slurm_array_of_four_records_what_one_process_records() {
    use std::os::unix::fs::PermissionsExt as _;

    let bench = Bench::new();
    // `srun` starts the step that it is given.
    let srun = bench.folder.path().join("srun");
    fs::write(&srun, "#!/bin/sh\nexec \"$@\"\n").unwrap();
    fs::set_permissions(&srun, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", text(bench.folder.path()), std::env::var("PATH").unwrap());
    let start = |task: usize| {
        let mut batch = bare("bash");
        batch.arg(deploy("slurm.sbatch")).args([&tiny_model(), &text(&bench.several), &bench.corpus]);
        // The threads are those that Slurm gives.
        batch.args(&OPTIONS[..4]);
        batch.env("PATH", &path).env("SLURM_CPUS_PER_TASK", "1").env_remove("CUDA_VISIBLE_DEVICES");
        // Numbered from 1, as arrays often are.
        batch.env("SLURM_ARRAY_TASK_ID", (task + 1).to_string()).env("SLURM_ARRAY_TASK_COUNT", "4");
        batch.env("SLURM_ARRAY_TASK_MIN", "1").env("SLURM_ARRAY_TASK_MAX", "4").spawn().unwrap()
    };
    all_succeed((0..4).map(start).collect());
    let status: Value = serde_json::from_str(&succeeds(&["status", &text(&bench.several), "--json"])).unwrap();
    assert_eq!(status["complete"], true);
    assert_eq!(status["tokens"], status["tokens_expected"]);
    bench.assert_equal();
}

#[cfg(unix)]
#[test]
fn an_indexed_job_of_four_records_what_one_process_records() {
    let bench = Bench::new();
    let job = fs::read_to_string(deploy("kubernetes-job.yaml")).unwrap();
    let field = |name: &str| {
        let line = job.lines().map(str::trim).find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().to_owned()
    };
    assert_eq!((field("completionMode:"), field("completions:")), ("Indexed".to_owned(), "4".to_owned()));
    assert_eq!(field("command:"), r#"["/bin/sh", "-ceu"]"#);
    let block = job.lines().skip_while(|line| line.trim() != "- |").skip(1);
    let script: Vec<&str> = block.take_while(|line| line.starts_with("              ")).map(str::trim).collect();
    assert_eq!(script.len(), 2, "{script:?}");
    for name in ["POLARISCOPE", "MODEL", "CORPUS", "RUN", "OPTIONS"] {
        assert!(job.contains(&format!("{{name: {name}, value: ")), "{name}");
    }
    let start = |pod: usize| {
        let mut shell = bare("/bin/sh");
        shell.args(["-ceu", &script.join("\n")]).env("JOB_COMPLETION_INDEX", pod.to_string());
        shell.env("MODEL", tiny_model()).env("CORPUS", &bench.corpus).env("RUN", &bench.several);
        shell.env("OPTIONS", OPTIONS.join(" ")).spawn().unwrap()
    };
    all_succeed((0..4).map(start).collect());
    bench.assert_equal();
}

#[test]
fn a_worker_that_was_killed_is_missed_and_comes_again() {
    let bench = Bench::new();
    let run = text(&bench.several);
    succeeds(&bench.record(&bench.several, &["--shard", "0/3"]));
    let mut child = polariscope(&bench.record(&bench.several, &["--shard", "1/3"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !bench.several.join("journal/shard-00001.json").exists() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let status: Value = serde_json::from_str(&succeeds(&["status", &run, "--json"])).unwrap();
    let states: Vec<&str> = status["workers"].as_array().unwrap().iter().filter_map(|w| w["state"].as_str()).collect();
    assert_eq!(states, ["complete", "stopped", "not_started"]);
    assert!(status["workers"][1]["missing_shards"].as_array().is_some_and(|shards| !shards.is_empty()), "{status}");
    let refused = fails(&["merge", &run]);
    assert!(refused.contains("expected 3 workers to be done, missing 1, 2 in"), "{refused}");
    assert!(refused.contains("\nhint: polariscope record ") && refused.contains(" --shard 2/3"), "{refused}");

    // What a reader sees is what is whole from the beginning on, and nothing of it is lost.
    succeeds(&["verify", &run]);
    // The command that is named does it.
    let command = refused.lines().find_map(|line| line.strip_prefix("hint: polariscope ")).unwrap();
    let ended = end(bare("sh").args(["-c", &format!("\"$POLARISCOPE\" {command}")]));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    succeeds(&bench.record(&bench.several, &["--shard", "2/3", "--resume"]));
    succeeds(&["merge", &run]);
    bench.assert_equal();
    // Whoever comes late finds everything done.
    succeeds(&bench.record(&bench.several, &["--shard", "2/3"]));
    succeeds(&["merge", &run]);
    bench.assert_equal();
}

#[cfg(unix)]
#[test]
fn a_worker_is_not_there_twice_at_the_same_time() {
    let bench = Bench::new();
    succeeds(&bench.record(&bench.several, &["--shard", "0/2"]));
    let held = fs::File::open(bench.several.join("workers/worker-00000.lock")).unwrap();
    held.file().lock().unwrap();
    let error = fails(&bench.record(&bench.several, &["--shard", "0/2"]));
    assert!(error.starts_with("error: worker 0/2 is running already in `"), "{error}");
    assert!(succeeds(&["status", &text(&bench.several)]).contains("in progress"));
    let merging = fails(&["merge", &text(&bench.several)]);
    assert!(merging.contains("wait for 0"), "{merging}");
    drop(held);
    succeeds(&bench.record(&bench.several, &["--shard", "1/2"]));
    succeeds(&["merge", &text(&bench.several)]);
    bench.assert_equal();
}

#[test]
fn a_number_of_workers_without_an_index_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let args = ["record", "m", "--corpus", "c", "--out", out.to_str().unwrap(), "--shards", "4"];
    let mut command = polariscope(&args);
    command.env_remove("SLURM_ARRAY_TASK_ID").env_remove("JOB_COMPLETION_INDEX");
    let error = refused(&end(&mut command));
    assert!(error.contains("`--shards 4` does not say which worker this is"), "{error}");
    assert!(!out.exists());
    let error = fails(&["merge", folder.path().to_str().unwrap()]);
    assert!(error.contains("no run"), "{error}");
}
