//! Do a person and a model take turns, and is a model that cannot chat refused?

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use fs_err as fs;
use serde_json::{Value, json};

use crate::support::{Ended, fails, fixture, polariscope, succeeds, text};

/// The tiny Gemma 3 with a vocabulary of bytes, these control tokens, and letters for the rest of its 320 ids.
fn model(dir: &Path, marks: &[&str]) -> String {
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("gemma3/text").join(name), dir.join(name)).expect("a copy");
    }
    let mut tokens: Vec<String> = ["<pad>", "<eos>", "<bos>", "<unk>"].map(str::to_owned).to_vec();
    tokens.extend(marks.iter().map(|&mark| mark.to_owned()));
    let special = tokens.len();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(('À'..).take(320 - tokens.len()).map(String::from));
    let vocab: serde_json::Map<String, Value> = tokens.iter().cloned().zip((0..).map(Value::from)).collect();
    let added: Vec<Value> = tokens[..special]
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": []}
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer is written");
    text(dir)
}

/// Runs it with these lines on standard input.
fn talk(args: &[&str], input: &str) -> Ended {
    let mut command = polariscope(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("the input is taken");
    let output = child.wait_with_output().expect("the program ends");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8 on standard output"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8 on standard error"),
    }
}

fn ends(stdout: &str) -> Vec<Value> {
    let events = stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("one JSON object a line"));
    events.filter(|event| event["event"] == "end").collect()
}

#[test]
fn turns_are_lines_and_what_was_computed_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = model(dir.path(), &["<start_of_turn>", "<end_of_turn>"]);
    let template = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}: {{ m.content }}<end_of_turn>{% endfor %}<start_of_turn>";
    fs::write(dir.path().join("chat_template.jinja"), template).expect("a template is written");
    let args = ["run", &model, "--chat", "--system", "Be", "--max-tokens", "5", "--threads", "1", "--json"];
    let ended = talk(&args, "Hello\n\nand \\\nmore");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stderr, "", "the template is the checkpoint's");
    let ends = ends(&ended.stdout);
    assert_eq!(ends.len(), 2, "{}", ended.stdout);
    // bos, two turns with their marks, and the mark of the next one.
    assert_eq!(ends[0]["prompt_tokens"], 1 + (2 + "system: Be".len()) + (2 + "user: Hello".len()) + 1);
    assert_eq!(ends[0]["reused_tokens"], 0);
    assert!(ends[1]["reused_tokens"].as_u64() >= ends[0]["prompt_tokens"].as_u64().map(|n| n - 1), "{ends:?}");

    // One turn gives the first turn again.
    let one = succeeds(&[&args[..], &["--prompt", "Hello"]].concat());
    assert!(ended.stdout.starts_with(&one), "{one}\n{}", ended.stdout);
    let plain = talk(&args[..args.len() - 1], "Hello\n");
    let said: String = one
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?.get("text")?.as_str().map(str::to_owned))
        .collect();
    assert_eq!(plain.stdout.trim_end_matches('\n'), said.trim_end_matches('\n'));
}

#[test]
fn what_a_model_was_not_trained_for_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let base = model(dir.path(), &[]);
    let said = fails(&["run", &base, "--chat", "--prompt", "Hello"]);
    assert!(said.contains("trained to chat") && said.contains("hint: "), "{said}");
    let model = model(dir.path(), &["<start_of_turn>", "<end_of_turn>"]);
    let said = fails(&["run", &model, "--chat", "--prompt", "Hello", "--think"]);
    assert!(said.contains("a template that knows thinking") && said.contains("hint: "), "{said}");
    let tools = dir.path().join("tools.json");
    fs::write(&tools, "{}").expect("tools are written");
    let said = fails(&["run", &model, "--chat", "--prompt", "Hello", "--tools", &text(&tools)]);
    assert!(said.contains("a JSON list of functions"), "{said}");
    fs::write(&tools, r#"[{"name": "f"}]"#).expect("tools are written");
    let said = fails(&["run", &model, "--chat", "--prompt", "Hello", "--tools", &text(&tools)]);
    assert!(said.contains("a template that knows tools"), "{said}");
    // Ours is taken, and that is said.
    let ended = talk(&["run", &model, "--chat", "--prompt", "Hello", "--max-tokens", "2", "--threads", "1"], "");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("no chat template"), "{}", ended.stderr);
}
