//! Does what is written read back, and is what is wrong named with its place?

use std::path::Path;

use super::*;
use crate::cache::Capture;
use crate::gemma::model::{Batch, Forward, Model, Precision};
use crate::hook::Hooks;

/// One of every kind.
const EXAMPLES: [&str; 24] = [
    "zero blocks.3.hook_mlp_out @5-9",
    "zero blocks.*.hook_attn_out,blocks.0-2.hook_mlp_out",
    "scale blocks.*.attn.hook_z[2] 0",
    "scale blocks.1.attn.hook_pattern[*][0] @last -0.5",
    "scale hook_ple_token[5][0-3,7] @-1 0.0000001",
    "add blocks.9.hook_resid_post sae:coders/9#123 * 8",
    "add blocks.9.hook_resid_post @generated \"I love it\" - \"I hate it\"",
    "add blocks.9.hook_resid_post run:runs/a - run:runs/b * 0.5 + 3",
    "add blocks.9.hook_resid_post @3- [0.5, -1, 0.0001]",
    "replace hook_ple_token[5] @4 \" silver\"@-1",
    "replace blocks.0.hook_resid_pre @id:17,3,\" gold\" file:vectors.safetensors#mean",
    "replace blocks.0.hook_resid_pre cache:a.safetensors@3 * -1",
    "replace blocks.0.hook_resid_pre ids:2,17,250@0",
    "mean blocks.3.hook_mlp_out from run:runs/news",
    "mean blocks.3.hook_mlp_out @prompt from \"a text; with @ and # and \\\"quotes\\\"\"",
    "patch blocks.2.hook_resid_post @4 from \"The other prompt\"",
    "patch blocks.2.hook_resid_post @-3--1 from cache:\"a file.safetensors\"",
    "patch blocks.2.hook_resid_post @-3- from ids:2,5",
    "forbid blocks.4 experts 3,7",
    "forbid blocks.* @1-5 experts 0,1,2",
    "force blocks.2-5 experts 9",
    "ablate blocks.9.hook_resid_post @7 sae:coders/9#1,2,3",
    "clamp blocks.9.hook_resid_post sae:\"my coders/9\"#40 2.5",
    "reconstruct blocks.9.hook_resid_post sae:coders/9",
];

#[test]
fn the_text_form_round_trips() {
    for text in EXAMPLES {
        let one = parse(text).unwrap();
        assert_eq!(one[0].to_string(), text);
    }
    let joined = EXAMPLES.join("; ");
    let all = parse(&joined).unwrap();
    assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), EXAMPLES);
}

#[test]
fn json_says_the_same() {
    let all = parse(&EXAMPLES.join(";")).unwrap();
    let json = serde_json::to_string(&all).unwrap();
    assert_eq!(from_json(&json).unwrap(), all);
    assert_eq!(serde_json::from_str::<Vec<Intervention>>(&json).unwrap(), all);
    let texts = serde_json::to_string(&EXAMPLES).unwrap();
    assert_eq!(from_json(&texts).unwrap(), all);
    let object = r#"{"do": "add", "at": "blocks.9.hook_resid_post", "tokens": "5-9", "value": [1, 2.5]}"#;
    assert_eq!(from_json(object).unwrap()[0].to_string(), "add blocks.9.hook_resid_post @5-9 [1, 2.5]");
}

#[test]
fn spaces_do_not_matter() {
    let same = |text: &str, canonical: &str| assert_eq!(parse(text).unwrap()[0].to_string(), canonical);
    same(
        "  add  blocks.9.hook_resid_post  @5  sae:coders/9#123 *8 ;",
        "add blocks.9.hook_resid_post @5 sae:coders/9#123 * 8",
    );
    same("add blocks.0.hook_resid_post 0.5 -2", "add blocks.0.hook_resid_post 0.5 - 2");
    same("scale hook_embed 1e-7", "scale hook_embed 0.0000001");
    same("forbid blocks.4 experts 3-5, 7", "forbid blocks.4 experts 3,4,5,7");
    assert_eq!(parse("zero hook_embed\n;\nzero hook_embed").unwrap().len(), 2);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let check = |text: &str, expected: &str| {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    };
    check("", "expected `zero`");
    check("zeros hook_embed", "found `zeros` at character 1");
    check("zero", "found `zero` at character 1");
    check("zero @3", "expected a hook point, found `@3` at character 6");
    check("zero hook_embed @x", "expected a position, `last`");
    check("zero hook_embed zero hook_embed", "expected `;` or the end, found `zero` at character 17");
    check("scale hook_embed", "expected a number, found the end at character 17");
    check("scale hook_embed nan", "expected a number, found `nan` at character 18");
    check("add hook_embed sae:a", "expected `#` and the number of a feature");
    check("add hook_embed \"open", "expected a number, a list");
    check("add hook_embed foo", "expected a number, a list");
    check("patch hook_embed \"a\"", "expected `from`, found `\"a\"` at character 18");
    check("forbid blocks.1 3", "expected `experts`");
    check("forbid blocks.1 experts 0-4294967295", "expected ranges of at most 1048576 numbers, found `0-4294967295`");
    check("zero hook_embed[3-1]", "expected a range that rises");
    check("zero hook_embed[3", "expected `,` or `]`");
    check("ablate hook_embed 3", "expected `sae:`");

    let check = |json: &str, expected: &str| {
        let error = from_json(json).unwrap_err().to_string();
        assert!(error.contains(expected), "{json}: {error}");
    };
    check("{", "in the JSON of interventions");
    check(r#"{"do": "zap", "at": "hook_embed"}"#, "found `zap`");
    check(r#"{"do": "scale", "at": "hook_embed"}"#, "expected `by` beside `scale`");
    check(r#"{"do": "zero", "at": "hook_embed", "by": 1}"#, "has no use for `by`");
    check(r#"{"do": "zero", "at": "hook_embed", "wat": 1}"#, "wat");
    check(r#"{"do": "add", "at": "hook_embed", "value": {}}"#, "a list of numbers");
    check(r#"{"do": "scale", "at": "hook_embed", "by": 1e39}"#, "expected a number that f32 can hold in `by`");
}

fn routed() -> Model {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gemma4/moe");
    Model::load(fixture, Precision::F32).unwrap()
}

/// Eight experts, of which the router needs some to choose from.
#[test]
fn a_token_keeps_enough_experts() {
    let model = routed();
    let resolved = |all: &[Intervention]| Interventions::resolve(all, &model, None, &mut NoCoders).map(drop);
    let refused = |all: &[Intervention]| resolved(all).unwrap_err().to_string();
    let both = parse("forbid blocks.1 experts 0-2; forbid blocks.0-1 experts 3-6").unwrap();
    assert!(refused(&both).contains("expected at most") && refused(&both).contains("found 7"), "{}", refused(&both));
    assert!(
        refused(&parse("forbid blocks.1 experts 0-2; forbid blocks.1 @3 experts 3-6").unwrap()).contains("found 7")
    );
    resolved(&parse("forbid blocks.1 @2 experts 0-2; forbid blocks.1 @3 experts 3-6").unwrap()).unwrap();
    resolved(&parse("forbid blocks.0 experts 0-2; forbid blocks.1 experts 3-6").unwrap()).unwrap();
    // All of them at once would be an empty list of indices, which stands for everything.
    let none = from_json(r#"{"do": "forbid", "at": "blocks.1", "experts": []}"#).unwrap();
    assert!(refused(&none).contains("expected the number of an expert, found none"));
}

/// The best of the others are the best by what an intervention made of the probabilities, in whichever order they are said.
#[test]
fn what_is_forced_has_the_company_of_the_changed_best() {
    let model = routed();
    let point = "blocks.1.moe.hook_topk_idx".parse().unwrap();
    let chosen = |text: &str| {
        let interventions = Interventions::resolve(&parse(text).unwrap(), &model, None, &mut NoCoders).unwrap();
        let capture = Capture::default();
        let mut hooks = Hooks::none();
        interventions.attach(&mut hooks);
        capture.attach(&[point], &mut hooks);
        model.forward(&Batch::one(&[2, 17, 90, 9, 44]), None, &mut hooks, Forward::default()).unwrap();
        drop(hooks);
        capture.finish().get(point).unwrap().copy()
    };
    let (force, turn) = ("force blocks.1 experts 3", "scale blocks.1.moe.hook_router_probs -1");
    let turned = chosen(&format!("{turn}; {force}"));
    assert_eq!(chosen(&format!("{force}; {turn}")), turned);
    assert_ne!(chosen(force), turned);
}
