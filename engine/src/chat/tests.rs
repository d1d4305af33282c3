use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fs_err as fs;
use jiff::civil::date;
use serde::Deserialize;

use super::*;
use crate::config::Preset;
use crate::gemma::model::{Model, Precision};
use crate::generate::{Generate, Sampling};
use crate::hook::Hooks;
use crate::intervention::Selection;
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

/// The chat of a released size, with this vocabulary.
fn chat(tokenizer: &Tokenizer, size: &str) -> Result<Chat> {
    Chat::new(tokenizer, &Preset::find(size).unwrap().config(), false)
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
    /// Without per-layer embeddings.
    gemma4_large: Rendered,
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
        let sizes = [
            (&three, "gemma-3-4b", case.gemma3),
            (&four, "gemma-4-e2b", case.gemma4),
            (&four, "gemma-4-26b-a4b", case.gemma4_large),
        ];
        for (tokenizer, size, expected) in sizes {
            let chat = chat(tokenizer, size).unwrap();
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
    let chat = chat(&vocabulary(&["<start_of_turn>", "<end_of_turn>"]), "gemma-3-4b").unwrap();
    let messages = [Message::new(Role::System, "Be kind."), Message::new(Role::User, " Hi ")];
    assert_eq!(
        chat.render(&messages, &ChatOptions::default()).unwrap(),
        "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    );
    assert_eq!(chat.stop_ids(), [1, 5]);
}

#[test]
fn a_model_without_turns_does_not_chat() {
    let message = chat(&vocabulary(&[]), "gemma-3-4b").unwrap_err().to_string();
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
        let chat = chat(&tokenizer, "gemma-4-26b-a4b").unwrap();
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
        let config = Preset::find("gemma-4-e2b").unwrap().config();
        let chat = Chat::new(&Tokenizer::from_hf_dir(dir.path()).unwrap(), &config, tools).unwrap();
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
    let message = chat(&Tokenizer::from_hf_dir(dir.path()).unwrap(), "gemma-4-e2b").unwrap_err().to_string();
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
    let chat = chat(&vocabulary(&["<|turn>", "<turn|>"]), "gemma-4-e2b").unwrap();
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
    // The last two tokens of a prompt begin the model's turn.
    let mut reply = |prompt: &[u32]| {
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        let ids = memory.reply(&model, prompt, prompt.len() - 2, &options, &mut Hooks::none(), go_on).unwrap();
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
    // A past in which the turn was written differently: what came before it is remembered.
    let (_, reused) = reply(&[&next[..next.len() - 2], &[43, 47, 53]].concat());
    assert_eq!(reused, next.len() - 2);
    let (_, reused) = reply(&[2, 3, 5]);
    assert_eq!(reused, 0, "another conversation");
}

/// What hooks see of a conversation's tokens: which are the prompt's, and which of those is the last.
#[test]
fn interventions_tell_the_prompt_from_the_reply_in_every_turn() {
    let model = Model::load(fixture("gemma3/text"), Precision::F32).unwrap();
    let options = Generate { max_tokens: 3, sampling: Sampling::GREEDY, stop: Vec::new() };
    let mut memory = Memory::default();
    let mut prompt = vec![2, 7, 11, 13];
    for _ in 0..3 {
        let seen = std::cell::RefCell::new(Vec::new());
        let mut hooks = Hooks::none();
        hooks.read("hook_embed".parse().unwrap(), |place, _| {
            let marks = ["prompt", "generated", "-1"].map(|pick| pick.parse::<Selection>().unwrap().chosen(place));
            for (row, place) in place.tokens.rows().enumerate() {
                seen.borrow_mut().push((place.position, marks.each_ref().map(|mark| mark[row])));
            }
        });
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        let before_turn = prompt.len() - 1;
        let ids = memory.reply(&model, &prompt, before_turn, &options, &mut hooks, go_on).unwrap();
        drop(hooks);
        let n = prompt.len();
        let expected: Vec<_> = (memory.reused()..n + 2).map(|at| (at, [at < n, at >= n, at + 1 == n])).collect();
        assert_eq!(seen.into_inner(), expected);
        prompt.extend(ids);
        prompt.push(17);
    }
}

#[test]
fn the_turn_that_is_to_be_spoken_begins_with_its_mark() {
    let tokenizer = gemma4();
    let ids = tokenizer.ids("<bos><|turn>user\nlight<turn|>\n<|turn>model\n<|channel>thought\n<channel|>", false);
    let before = chat(&tokenizer, "gemma-4-31b").unwrap().before_turn(&ids);
    assert_eq!(tokenizer.decode(&ids[before..]), "<|turn>model\n<|channel>thought\n<channel|>");
    assert_eq!(chat(&tokenizer, "gemma-4-31b").unwrap().before_turn(&[]), 0);
}

/// Whatever file says where generation ends, and in whatever form, the chat stops there.
#[test]
fn stops_are_read_wherever_a_release_has_them() {
    let cases = [
        (json!({"model_type": "gemma4", "text_config": {"eos_token_id": 1}}), None, vec![1]),
        (json!({"model_type": "gemma4", "text_config": {"eos_token_id": [1, 20]}}), None, vec![1, 20]),
        (json!({"eos_token_id": [1, 20], "text_config": {"eos_token_id": 1}}), None, vec![1, 20]),
        (json!({"text_config": {"eos_token_id": 1}}), Some(json!({"eos_token_id": [1, 21]})), vec![1, 21]),
        (json!({"text_config": {"eos_token_id": [1, 20]}}), Some(json!({"eos_token_id": 21})), vec![21]),
        (json!({"text_config": {"eos_token_id": [1, 20]}}), Some(json!({"do_sample": true})), vec![1, 20]),
        (json!({"text_config": {}}), None, vec![1]),
    ];
    for (config, generation, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(fixture("chat/tiny/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        if let Some(generation) = &generation {
            fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::from_hf_dir(dir.path()).unwrap();
        assert_eq!(tokenizer.eos_ids(), expected, "{config} {generation:?}");
        // And at the tokens that end a turn of its generation.
        let turn_end = ["<turn|>", "<|tool_response>"].map(|token| tokenizer.id_of(token).unwrap());
        let stops = chat(&tokenizer, "gemma-4-e2b").unwrap().stop_ids().to_vec();
        assert_eq!(stops, [expected, turn_end.to_vec()].concat(), "{config} {generation:?}");
    }
}
