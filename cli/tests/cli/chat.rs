//! Do a person and a model take turns, and is a model that cannot chat refused?

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use fs_err as fs;
use serde_json::{Value, json};

use crate::support::{Ended, ended, fails, fixture, polariscope, refused, succeeds, text};

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}: {{ m.content }}<end_of_turn>{% endfor %}<start_of_turn>";

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
    let mut child = piped(args).spawn().expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("the input is taken");
    ended(child.wait_with_output().expect("the program ends"))
}

fn piped(args: &[&str]) -> Command {
    let mut command = polariscope(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ends(stdout: &str) -> Vec<Value> {
    let events = stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("one JSON object a line"));
    events.filter(|event| event["event"] == "end").collect()
}

#[test]
fn turns_are_lines_and_what_was_computed_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = model(dir.path(), &["<start_of_turn>", "<end_of_turn>"]);
    fs::write(dir.path().join("chat_template.jinja"), TEMPLATE).expect("a template is written");
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

#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill").success());
}

/// Standard input stays open all the while: nothing but the signal ends it.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_conversation_that_waits() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = model(dir.path(), &["<start_of_turn>", "<end_of_turn>"]);
    fs::write(dir.path().join("chat_template.jinja"), TEMPLATE).expect("a template is written");
    let args = ["run", &model, "--chat", "--max-tokens", "2", "--threads", "1", "--json"];
    let mut child = piped(&args).spawn().expect("the program starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"Hello\nhalf a turn \\\n").expect("the input is taken");
    let said = BufReader::new(child.stdout.take().expect("a pipe")).lines().map(|line| line.expect("UTF-8"));
    let mut ends = said.filter(|line| line.contains(r#""event":"end""#));
    assert!(ends.next().is_some(), "the first turn is answered");
    interrupt(&child);
    assert_eq!(ends.next(), None, "the turn that was not finished is not said");
    let ended = ended(child.wait_with_output().expect("the program ends"));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    drop(input);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_model_that_speaks() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = model(dir.path(), &["<start_of_turn>", "<end_of_turn>"]);
    fs::write(dir.path().join("chat_template.jinja"), TEMPLATE).expect("a template is written");
    // Nothing but the signal ends it within the life of the test.
    let mut config: Value =
        serde_json::from_slice(&fs::read(dir.path().join("config.json")).expect("read")).expect("JSON");
    config["max_position_embeddings"] = json!(1_000_000);
    fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
    let args = ["run", &model, "--chat", "--prompt", "Hi", "--max-tokens", "999000", "--threads", "1", "--json"];
    let mut child = piped(&args).spawn().expect("the program starts");
    let mut said = BufReader::new(child.stdout.take().expect("a pipe")).lines().map(|line| line.expect("UTF-8"));
    assert!(said.next().is_some_and(|line| line.contains(r#""event":"text""#)));
    interrupt(&child);
    let last: Value = serde_json::from_str(&said.last().expect("an end")).expect("JSON");
    assert_eq!((&last["event"], &last["end"]), (&json!("end"), &json!("interrupted")));
    assert!(refused(&ended(child.wait_with_output().expect("the program ends"))).starts_with("error: interrupted"));
}

#[test]
fn a_reply_ends_where_the_context_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = model(dir.path(), &["<start_of_turn>", "<end_of_turn>"]);
    fs::write(dir.path().join("chat_template.jinja"), TEMPLATE).expect("a template is written");
    // The context is 256 tokens, of which the mark before and behind the turn and its name take ten.
    let args =
        |prompt: &str| ["run", &model, "--chat", "--threads", "1", "--json", "--prompt", prompt].map(str::to_owned);
    let long = "x".repeat(243);
    let said = args(&long);
    let said = succeeds(&said.each_ref().map(String::as_str));
    let end = &ends(&said)[0];
    assert_eq!(
        (&end["prompt_tokens"], &end["tokens"], &end["end"]),
        (&json!(253), &json!(3), &json!("context")),
        "{end}"
    );
    let longer = args(&"x".repeat(246));
    let error = fails(&longer.each_ref().map(String::as_str));
    assert!(error.contains("expected a conversation below the context of 256 tokens, found 256 tokens"), "{error}");
}
