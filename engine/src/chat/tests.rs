use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fs_err as fs;
use jiff::civil::date;
use serde::Deserialize;

use super::*;
use crate::gemma::model::{Model, Precision};
use crate::generate::{Generate, Sampling};
use crate::hook::Hooks;
use crate::weights::gguf::{Header, Metadata, Value};

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

/// A vocabulary of bytes with these control tokens, and no template.
fn vocabulary(marks: &[&str]) -> Tokenizer {
    let mut tokens: Vec<String> = ["<pad>", "<eos>", "<bos>", "<unk>"].map(str::to_owned).to_vec();
    tokens.extend(marks.iter().map(|&mark| mark.to_owned()));
    let mut types = vec![3; tokens.len()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    types.resize(tokens.len(), 6);
    let values = [
        ("model", Value::Text("llama".to_owned())),
        ("scores", Value::Floats(vec![0.0; tokens.len()])),
        ("tokens", Value::Texts(tokens)),
        ("token_type", Value::Ints(types)),
        ("bos_token_id", Value::Int(2)),
        ("eos_token_id", Value::Int(1)),
        ("padding_token_id", Value::Int(0)),
    ];
    let values = values.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value));
    Tokenizer::from_gguf(&Metadata::new(Path::new("x.gguf"), values)).unwrap()
}

fn gemma4() -> Tokenizer {
    Tokenizer::from_hf_dir(&fixture("chat/tiny")).unwrap()
}

#[derive(Deserialize)]
struct Snippets {
    context: Json,
    cases: Vec<Snippet>,
}

#[derive(Deserialize)]
struct Snippet {
    template: String,
    text: Option<String>,
}

#[test]
fn templates_render_as_in_jinja2() {
    let Snippets { context, cases } = read("chat/jinja.json");
    assert!(cases.len() > 30);
    let now = date(2025, 3, 4).at(5, 6, 7, 0);
    for Snippet { template, text } in cases {
        let rendered = jinja::Template::parse(&template).and_then(|parsed| parsed.render(&context, Some(now)));
        assert_eq!(rendered.ok(), text, "{template}");
    }
}

#[test]
fn what_a_template_refuses_is_said() {
    let error = |template: &str| {
        let parsed = jinja::Template::parse(template).unwrap();
        jinja::describe(&parsed.render(&json!({"n": 1}), None).unwrap_err())
    };
    assert_eq!(error("{{ raise_exception('no ' ~ n) }}"), "no 1");
    assert!(error("\n{{ n.x.y }}").contains("(in chat_template:2)"), "{}", error("\n{{ n.x.y }}"));
    assert!(error("{{ strftime_now('%Y') }}").contains("the date, which was not given"));
    assert!(error("{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}").contains("fuel"));
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    tools: Vec<Json>,
    thinking: bool,
    gemma3: Rendered,
    gemma4: Rendered,
}

#[derive(Deserialize)]
struct Rendered {
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn our_templates_render_as_in_the_reference() {
    let (three, four) = (vocabulary(&["<start_of_turn>", "<end_of_turn>"]), vocabulary(&["<|turn>", "<turn|>"]));
    for case in read::<Vec<Conversation>>("chat/conversations.json") {
        for (tokenizer, expected) in [(&three, case.gemma3), (&four, case.gemma4)] {
            let chat = Chat::new(tokenizer, false).unwrap();
            assert!(!chat.is_own());
            let mut options = ChatOptions { tools: case.tools.clone(), thinking: case.thinking, now: None };
            if std::ptr::eq(tokenizer, &raw const three) {
                // The reference passes over what a template does not know; we say so.
                if options.thinking || !options.tools.is_empty() {
                    assert!(chat.render(&case.messages, &options).unwrap_err().to_string().contains("does not name"));
                }
                options = ChatOptions::default();
            }
            match (chat.render(&case.messages, &options), expected) {
                (Ok(text), Rendered { text: Some(expected), .. }) => assert_eq!(text, expected),
                (Err(error), Rendered { error: Some(expected), .. }) => {
                    assert_eq!(error.to_string().lines().next(), Some(expected.as_str()));
                }
                (found, _) => panic!("{:?}: {found:?}", case.messages),
            }
        }
    }
}

#[test]
fn turns_of_gemma_3() {
    let chat = Chat::new(&vocabulary(&["<start_of_turn>", "<end_of_turn>"]), false).unwrap();
    let messages = [Message::new(Role::System, "Be kind."), Message::new(Role::User, " Hi ")];
    assert_eq!(
        chat.render(&messages, &ChatOptions::default()).unwrap(),
        "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    );
    assert_eq!(chat.stop_ids(), [1, 5]);
}

#[test]
fn a_model_without_turns_does_not_chat() {
    let message = Chat::new(&vocabulary(&[]), false).unwrap_err().to_string();
    assert!(
        message.starts_with("expected a model that was trained to chat") && message.contains("\nhint: "),
        "{message}"
    );
}

#[derive(Deserialize)]
struct Tokens {
    chat: Encoded,
    stop_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Encoded {
    messages: Vec<Message>,
    ids: Vec<u32>,
}

#[test]
fn the_checkpoint_s_own_template_comes_first() {
    let path = fixture("chat/tiny.gguf");
    let header = Header::parse(&fs::read(&path).unwrap(), &path).unwrap();
    let Tokens { chat: expected, stop_ids } = read("chat/tokens.json");
    for tokenizer in [gemma4(), Tokenizer::from_gguf(&header.metadata).unwrap()] {
        let chat = Chat::new(&tokenizer, false).unwrap();
        assert!(chat.is_own());
        // As the reference cuts it, with the one beginning that the template writes.
        assert_eq!(chat.encode(&tokenizer, &expected.messages, &ChatOptions::default()).unwrap(), expected.ids);
        let ids = |ids: &[u32]| ids.iter().copied().collect::<BTreeSet<u32>>();
        assert_eq!(ids(chat.stop_ids()), ids(&stop_ids));
    }
}

#[test]
fn a_template_may_stand_in_many_places() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("chat/tiny/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let rendered = |tools: bool| {
        let chat = Chat::new(&Tokenizer::from_hf_dir(dir.path()).unwrap(), tools).unwrap();
        let tools = if tools { vec![json!({"name": "f"})] } else { Vec::new() };
        chat.render(&[Message::new(Role::User, "x")], &ChatOptions { tools, ..ChatOptions::default() }).unwrap()
    };
    assert_eq!(rendered(false), "<bos><|turn>user\nx<turn|>\n<|turn>model\n");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("chat_template.json", r#"{"chat_template": "processor"}"#);
    assert_eq!(rendered(false), "processor");
    write("tokenizer_config.json", r#"{"chat_template": "one string"}"#);
    assert_eq!(rendered(false), "one string");
    let list = r#"[{"name": "tool_use", "template": "{{ tools[0].function.name }}"}, {"name": "default", "template": "plain"}]"#;
    write("tokenizer_config.json", &format!(r#"{{"chat_template": {list}}}"#));
    assert_eq!((rendered(false), rendered(true)), ("plain".to_owned(), "f".to_owned()));
    write("chat_template.jinja", "file");
    assert_eq!(rendered(false), "file");
    write("chat_template.jinja", "{% if %}");
    let message = Chat::new(&Tokenizer::from_hf_dir(dir.path()).unwrap(), false).unwrap_err().to_string();
    assert!(message.contains("chat_template:1"), "{message}");
}

/// What the reader makes of a text, with the pieces of one kind joined.
fn parts(prompt: &str, text: &str) -> Vec<ReplyPart> {
    let tokenizer = gemma4();
    let ids = |text: &str| tokenizer.ids(text, false);
    let mut reader = ReplyReader::new(&tokenizer, &ids(prompt));
    let mut parts: Vec<ReplyPart> = Vec::new();
    for id in ids(text) {
        parts.extend(reader.push(id));
    }
    parts.extend(reader.finish());
    parts.into_iter().fold(Vec::new(), |mut joined, part| {
        match (joined.last_mut(), part) {
            (Some(ReplyPart::Text(before)), ReplyPart::Text(more))
            | (Some(ReplyPart::Reasoning(before)), ReplyPart::Reasoning(more)) => before.push_str(&more),
            (_, part) => joined.push(part),
        }
        joined
    })
}

fn said(text: &str) -> ReplyPart {
    ReplyPart::Text(text.to_owned())
}

fn thought(text: &str) -> ReplyPart {
    ReplyPart::Reasoning(text.to_owned())
}

fn called(name: &str, arguments: Json) -> ReplyPart {
    let Json::Object(arguments) = arguments else { panic!("{arguments}") };
    ReplyPart::ToolCall(ToolCall { name: name.to_owned(), arguments })
}

#[test]
fn thoughts_are_told_from_answers() {
    assert_eq!(parts("", "calm 😀"), [said("calm 😀")]);
    assert_eq!(
        parts("", "<|channel>thought\nthe light\n\nis ü\n<channel|>It is."),
        [thought("the light\n\nis ü"), said("It is.")]
    );
    assert_eq!(parts("", "<|channel>thought\n<channel|>dark"), [said("dark")]);
    assert_eq!(parts("", "a<|channel>x"), [said("a")], "the name of a channel is not said");
    assert_eq!(parts("", "<|channel>thought\nlight"), [thought("light")], "cut off");
    // A channel that the prompt opens, and one that it closes.
    assert_eq!(parts("<|turn>model\n<|channel>thought\n", "light<channel|>dark"), [thought("light"), said("dark")]);
    assert_eq!(parts("<|turn>model\n<|channel>thought\n<channel|>", "dark"), [said("dark")]);
    // Spelled out, it is text.
    assert_eq!(parts("", "< |channel>x<unused0>"), [said("< |channel>x<unused0>")]);
}

#[test]
fn calls_are_read() {
    let text = concat!(
        "<|channel>thought\nask<channel|><|tool_call>call:f{a:<|\"|>x, {y}: [z]<|\"|>,b:-1.5,c:true,d:{e:[1,<|\"|>2<|\"|>,[]],f:{}},g:null}",
        "<tool_call|><|tool_call>call:g{}<tool_call|>"
    );
    let arguments = json!({"a": "x, {y}: [z]", "b": -1.5, "c": true, "d": {"e": [1, "2", []], "f": {}}, "g": null});
    assert_eq!(parts("", text), [thought("ask"), called("f", arguments), called("g", json!({}))]);
    let lenient = "<|tool_call> call:f{ <|\"|>k<|\"|> : \"a\\n}\" , w : two words } <tool_call|>";
    assert_eq!(parts("", lenient), [called("f", json!({"k": "a\n}", "w": "two words"}))]);
    for broken in ["call:f{a:1", "f{}", "call:{}", "call:f{a}", "call:f{a:<|\"|>x}", "call:f{}}", "call:f{a:[1}"] {
        let text = format!("<|tool_call>{broken}<tool_call|>x");
        assert_eq!(parts("", &text), [ReplyPart::BrokenCall(broken.to_owned()), said("x")]);
    }
    assert_eq!(parts("", "<|tool_call>call:f{a:1"), [ReplyPart::BrokenCall("call:f{a:1".to_owned())], "cut off");
    let deep = format!("<|tool_call>call:f{{a:{}<tool_call|>", "[".repeat(100_000));
    assert!(matches!(parts("", &deep)[..], [ReplyPart::BrokenCall(_)]));
}

#[test]
fn what_our_template_writes_of_a_call_is_read_again() {
    let chat = Chat::new(&vocabulary(&["<|turn>", "<turn|>"]), false).unwrap();
    let arguments = json!({"A": {"b": [1, 2.5, "x, y"], "c": {}}, "d": false, "e": null, "f": "line\n\"quoted\""});
    let Json::Object(arguments) = arguments else { panic!() };
    let call = ToolCall { name: "look_up".to_owned(), arguments };
    let asks = Message { tool_calls: vec![call.clone()], ..Message::new(Role::Assistant, "") };
    let text = chat.render(&[Message::new(Role::User, "?"), asks], &ChatOptions::default()).unwrap();
    let (_, said) = text.split_once("<|turn>model\n").unwrap();
    assert_eq!(parts("", said), [ReplyPart::ToolCall(call)]);
}

#[test]
fn a_memory_changes_nothing_but_what_is_computed() {
    let model = Model::load(fixture("gemma3/text"), Precision::F32).unwrap();
    let options = Generate { max_tokens: 6, sampling: Sampling::GREEDY, stop: Vec::new() };
    let alone = |prompt: &[u32]| {
        model.generate(prompt, &options, &mut Hooks::none(), &mut |_| std::ops::ControlFlow::Continue(())).unwrap()
    };
    let mut memory = Memory::default();
    let mut reply = |prompt: &[u32]| {
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        let ids = memory.reply(&model, prompt, &options, &mut Hooks::none(), go_on).unwrap();
        assert_eq!(ids, alone(prompt), "{prompt:?}");
        (ids, memory.reused())
    };
    let prompt = [2, 7, 11, 13, 17, 19, 23, 29, 31];
    let (ids, reused) = reply(&prompt);
    assert_eq!(reused, 0);
    // The next turn holds what was said: all but its last token was computed.
    let next = [&prompt[..], &ids, &[37, 41]].concat();
    let (_, reused) = reply(&next);
    assert_eq!(reused, next.len() - 3);
    // A past in which the reply was left out: what came before it is remembered.
    let (_, reused) = reply(&[&next[..], &[43, 47]].concat());
    assert_eq!(reused, next.len() - 1);
    let (_, reused) = reply(&[2, 3, 5]);
    assert_eq!(reused, 0, "another conversation");
}
