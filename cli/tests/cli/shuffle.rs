//! Is a run shuffled, resumed after a kill, and then read by what can read it and refused by what cannot?

use fs_err as fs;

use crate::support::{fails, polariscope, small_run, succeeds, text, tree};

const HOOK_POINT: &str = "blocks.2.hook_resid_post";

#[test]
fn a_shuffled_run_is_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (text(&small_run(dir.path())), text(&dir.path().join("shuffled")));
    let shuffle = ["shuffle", &run, "--out", &out, "--seed", "7", "--memory", "100kB", "--json"];
    let value: serde_json::Value = serde_json::from_str(&succeeds(&shuffle)).unwrap();
    assert_eq!(value["hook_points"], 2);
    assert_eq!(value["shuffled"]["seed"], 7);
    assert!(value["shards"].as_u64().unwrap() > 3, "{value}");
    let inspected: serde_json::Value = serde_json::from_str(&succeeds(&["inspect", &run, "--json"])).unwrap();
    assert_eq!(value["tokens"], inspected["tokens"]);
    succeeds(&["verify", &out]);
    assert!(succeeds(&["inspect", &out]).contains("in the order of seed 7"));

    let sae = text(&dir.path().join("shuffled/saes/resid-2"));
    let size = ["--d-sae", "64", "--k", "4", "--batch-tokens", "256", "--steps", "8"];
    succeeds(&[&["train", &out, "--hook-point", HOOK_POINT, "--out", &sae][..], &size].concat());
    // Sums over all tokens need no order, features of passages do.
    let on = |run: &str| -> serde_json::Value {
        serde_json::from_str(&succeeds(&["evaluate", run, "--sae", &sae, "--json"])).unwrap()
    };
    assert_eq!(on(&out)["n_tokens"], on(&run)["n_tokens"]);
    let refused = fails(&["encode", &out, "--sae", &sae]);
    assert!(refused.contains("found a shuffled one in `"), "{refused}");
    assert!(refused.ends_with(&format!("hint: its origin `{run}` has that order")), "{refused}");
    succeeds(&["encode", &run, "--sae", &sae]);

    let refused = fails(&["shuffle", &out, "--out", &text(&dir.path().join("again"))]);
    assert!(refused.contains("found a shuffled one in `"), "{refused}");
    let refused = fails(&["shuffle", &run, "--out", &out]);
    assert!(refused.contains("a run exists already"), "{refused}");
    let refused = fails(&["shuffle", &run, "--out", "x", "--hook-points", "blocks.3.hook_resid_post"]);
    assert!(refused.contains("there are `blocks.2.hook_resid_post`"), "{refused}");
    let one = text(&dir.path().join("one"));
    succeeds(&["shuffle", &run, "--out", &one, "--hook-points", "blocks.*.hook_resid_post", "--skip-special"]);
    let inspected = succeeds(&["inspect", &one]);
    assert!(inspected.contains(HOOK_POINT) && !inspected.contains("hook_mlp_out"), "{inspected}");
}

#[test]
fn a_run_that_is_not_complete_is_not_shuffled() {
    let dir = tempfile::tempdir().unwrap();
    let run = small_run(dir.path());
    let manifest = run.join("manifest.json");
    let whole = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, whole.replace("\"complete\": true", "\"complete\": false")).unwrap();
    let refused = fails(&["shuffle", &text(&run), "--out", &text(&dir.path().join("shuffled"))]);
    assert!(refused.contains("expected a complete run") && refused.contains("\nhint: "), "{refused}");
}

#[test]
fn a_shuffle_that_was_killed_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let run = text(&small_run(dir.path()));
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let (whole_arg, killed_arg) = (text(&whole), text(&killed));
    // So little memory that there are dozens of shards.
    let args = |out| ["shuffle", &run, "--out", out, "--memory", "20kB"];
    succeeds(&args(&whole_arg));
    let last = fs::read_dir(whole.join("journal")).unwrap().count() - 1;

    let mut child = polariscope(&args(&killed_arg)).stderr(std::process::Stdio::null()).spawn().unwrap();
    // The last shard comes first.
    let journal = killed.join(format!("journal/shard-{:05}.json", last - 2));
    while !journal.exists() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let durable = fs::read_dir(killed.join("journal")).unwrap().count();
    assert!(durable < last, "it was over before it could be killed");

    succeeds(&[&args(&killed_arg)[..], &["--resume"]].concat());
    succeeds(&["verify", &killed_arg]);
    let differs = ["manifest.json"];
    assert!(tree(&whole, &differs) == tree(&killed, &differs));
}
