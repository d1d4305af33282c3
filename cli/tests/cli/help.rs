//! What does the program say of itself?

use crate::support::{end, fails, polariscope, succeeds};

const COMMANDS: [&str; 20] = [
    "models", "fetch", "inspect", "run", "patch", "record", "shuffle", "status", "merge", "train", "import", "encode",
    "evaluate", "join", "routing", "query", "export", "verify", "view", "demo",
];

#[test]
fn help_of_the_program() {
    insta::assert_snapshot!("help", succeeds(&["--help"]));
}

#[test]
fn help_of_every_command() {
    for command in COMMANDS {
        let help = succeeds(&[command, "--help"]);
        assert!(help.contains("Example"), "`{command} --help` has no example");
        insta::assert_snapshot!(format!("help-{command}"), help);
    }
}

#[test]
fn what_is_said_wrongly_is_the_inputs_fault() {
    let nothing = end(&mut polariscope(&[]));
    assert_eq!(nothing.code, Some(1));
    assert!(nothing.stderr.contains("Usage: polariscope <COMMAND>"), "{}", nothing.stderr);
    insta::assert_snapshot!("wrong-command", fails(&["recrod"]));
    insta::assert_snapshot!("missing-argument", fails(&["record", "gemma-3-270m"]));
    insta::assert_snapshot!(
        "wrong-dtype",
        fails(&["record", "m", "--corpus", "c", "--out", "o", "--store-dtype", "f64"])
    );
}

#[test]
fn version_names_the_program() {
    assert!(succeeds(&["--version"]).starts_with("polariscope 0."));
}

#[test]
fn known_models_are_listed() {
    insta::assert_snapshot!("models", succeeds(&["models"]));
    let lines = succeeds(&["models", "--json"]);
    for line in lines.lines() {
        let model: serde_json::Value = serde_json::from_str(line).unwrap();
        // The mini model lies in the checkout; the others would have to be fetched.
        assert!(model["id"].is_string() && model["path"].is_null() == (model["id"] != "mini"), "{line}");
    }
}

#[test]
fn names_that_are_not_known() {
    insta::assert_snapshot!("fetch-unknown", fails(&["fetch", "gemma-9-1t"]));
    insta::assert_snapshot!("fetch-from-hub", fails(&["fetch", "gemma-3-1b-pt"]));
    insta::assert_snapshot!("not-fetched", fails(&["run", "gemma-3-270m", "--prompt", "Hello"]));
    insta::assert_snapshot!("no-such-model", fails(&["inspect", "gemma-9-1t"]));
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_success() {
    use std::process::Stdio;

    let mut child = polariscope(&["models"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
