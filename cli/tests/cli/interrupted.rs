//! Does a job that was ended go on where it stopped, and write the same bytes?

use fs_err as fs;

use crate::support::{polariscope, succeeds, text, tiny_model, token_corpus, tree};

/// What differs between two recordings of the same thing: times and command lines.
const DIFFERS: [&str; 1] = ["manifest.json"];

#[test]
fn a_recording_that_was_killed_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = token_corpus(&dir.path().join("corpus.jsonl"), 600);
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let model = tiny_model();
    let (whole_arg, killed_arg) = (text(&whole), text(&killed));
    let args = |out| {
        let points = ["--hook-points", "blocks.*.hook_resid_post"];
        let mut args = vec!["record", &model, "--corpus", &corpus, "--out", out, "--shard-tokens", "1000"];
        args.extend(["--threads", "1"]);
        args.extend(points);
        args
    };
    succeeds(&args(&whole_arg));

    let mut child = polariscope(&args(&killed_arg)).stderr(std::process::Stdio::null()).spawn().unwrap();
    let journal = killed.join("journal/shard-00002.json");
    while !journal.exists() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(journal.exists());
    let durable = fs::read_dir(killed.join("journal")).unwrap().count();
    let all = fs::read_dir(whole.join("journal")).unwrap().count();
    assert!(durable < all, "it was over before it could be killed");

    let mut again = args(&killed_arg);
    again.push("--resume");
    succeeds(&again);
    succeeds(&["verify", &killed_arg]);
    assert!(tree(&whole, &DIFFERS) == tree(&killed, &DIFFERS));
}

#[cfg(unix)]
#[test]
fn ctrl_c_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = token_corpus(&dir.path().join("corpus.jsonl"), 600);
    let out = dir.path().join("run");
    let (model, out_arg) = (tiny_model(), text(&out));
    let args = ["record", &model, "--corpus", &corpus, "--out", &out_arg, "--shard-tokens", "1000"];
    let mut child = polariscope(&args).stderr(std::process::Stdio::piped()).spawn().unwrap();
    while !out.join("journal/shard-00000.json").exists() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let hint = stderr.lines().last().unwrap();
    assert!(hint.starts_with("hint: go on with: polariscope record "), "{stderr}");
    assert!(hint.ends_with(" --resume"), "{stderr}");
    succeeds(&[&args[..], &["--resume"]].concat());
}
