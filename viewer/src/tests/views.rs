//! Do the views of layers, experts, embeddings, training and SQL say what is in the run?

use egui::{Key, Modifiers};
use egui_kittest::kittest::Queryable;

use super::{click, demo, does, focus, open, press};
use crate::command::Command;
use crate::state::{ColorBy, Item, Metric, Scope, View};
use crate::testing;

#[test]
fn the_grid_shows_every_quantity() {
    let mut window = demo();
    does(&mut window, Command::OpenDocument { doc: 2, token: Some(3) });
    does(&mut window, Command::Show(View::Grid));
    for metric in Metric::ALL {
        does(&mut window, Command::UseMetric(metric));
        let said = match metric {
            // Attention was not recorded, and no expert is chosen.
            Metric::Attn => window.query_by_label("The grid could not be read").is_some(),
            Metric::Expert => window.query_by_label("No expert chosen").is_some(),
            _ => window.query_by_label_contains("tokens by layers, ").is_some(),
        };
        assert!(said, "{metric}");
    }
    does(&mut window, Command::SelectExpert { layer: 2, expert: testing::WEATHER_EXPERT });
    does(&mut window, Command::UseMetric(Metric::Expert));
    window.get_by_label_contains("tokens by layers, 3 ×");
    // Arrows move the cell.
    does(&mut window, Command::UseMetric(Metric::Resid));
    press(&mut window, Key::ArrowUp);
    assert_eq!(focus(&window).layer, Some(2));
    press(&mut window, Key::ArrowDown);
    press(&mut window, Key::ArrowRight);
    assert_eq!((focus(&window).layer, focus(&window).token), (Some(1), Some(4)));
    window.get_by_label_contains("L1, token 4 ");
    press(&mut window, Key::M);
    assert_eq!(focus(&window).metric, Metric::Attn);
}

#[test]
fn the_text_is_colored_by_router_and_embeddings() {
    let mut window = demo();
    does(&mut window, Command::OpenDocument { doc: 2, token: Some(3) });
    for (color, note) in [
        (ColorBy::Entropy, "router entropy"),
        (ColorBy::PleShare, "per-layer embedding, share"),
        (ColorBy::Expert, "no expert chosen"),
    ] {
        does(&mut window, Command::ColorBy(color));
        window.get_by_label_contains(note);
        window.get_by_label("Layer");
    }
    does(&mut window, Command::SelectExpert { layer: 2, expert: testing::WEATHER_EXPERT });
    window.get_by_label_contains("weight of expert 7");
}

#[test]
fn routing_shows_loads_lanes_and_margins() {
    let mut window = demo();
    does(&mut window, Command::OpenDocument { doc: 2, token: Some(3) });
    does(&mut window, Command::Show(View::Routing));
    window.get_by_label_contains("load of experts, 3 × 8");
    window.get_by_label_contains("never chosen");
    window.get_by_label_contains("runner-up");
    click(&mut window, "Whole run");
    assert_eq!(focus(&window).scope, Scope::Corpus);
    let map = window.get_by_label_contains("load of experts").rect();
    // The last expert of the last layer, which is on top.
    let at = map.right_top() + egui::vec2(-6.0, 6.0);
    for pressed in [true, false] {
        window.event(egui::Event::PointerMoved(at));
        let (button, modifiers) = (egui::PointerButton::Primary, Modifiers::NONE);
        window.event(egui::Event::PointerButton { pos: at, button, pressed, modifiers });
        window.run_steps(2);
    }
    assert_eq!((focus(&window).layer, focus(&window).expert), (Some(2), Some(7)));
    press(&mut window, Key::Enter);
    assert_eq!(focus(&window).view, View::Expert);
    press(&mut window, Key::Comma);
    assert_eq!(focus(&window).expert, Some(6));
    press(&mut window, Key::Period);
    press(&mut window, Key::Period);
    assert_eq!(focus(&window).expert, Some(0));
}

#[test]
fn an_expert_page_has_tokens_features_and_company() {
    let mut window = demo();
    does(&mut window, Command::OpenExpert { layer: 2, expert: testing::WEATHER_EXPERT });
    for text in
        ["token ·rain", "feature 7 of the expert", "together with expert", "random passage 1", "strongest passage 1"]
    {
        assert!(window.query_all_by_label_contains(text).next().is_some(), "{text}");
    }
    // The last layer has no next one, the one before has.
    assert!(window.query_by_label_contains("goes on to expert").is_none());
    does(&mut window, Command::OpenExpert { layer: 0, expert: 7 });
    window.get_by_label_contains("Dormant");
    does(&mut window, Command::OpenExpert { layer: 1, expert: 0 });
    assert!(window.query_all_by_label_contains("goes on to expert").next().is_some());
    does(&mut window, Command::OpenItem(Item::Expert { layer: 1, expert: 99 }));
    window.get_by_label("There is no expert 99");
}

#[test]
fn embedding_lookups_have_layers_neighbours_and_occurrences() {
    let mut window = demo();
    does(&mut window, Command::Show(View::Rows));
    click(&mut window, "Choose the first token");
    window.get_by_label_contains("embedding row of layer 0, share");
    // ` storm` is near to other words of the weather in every layer.
    does(&mut window, Command::OpenDocument { doc: 2, token: Some(3) });
    does(&mut window, Command::Show(View::Rows));
    let query = crate::query::NearestQuery { token_id: token_id(&window) };
    let near = window.state().peek(&query).unwrap();
    assert_eq!(near.places.len(), 4);
    for place in &near.places {
        let words: Vec<&str> = place.rows.iter().map(|(_, text, _)| text.trim()).collect();
        let of_weather = ["rain", "wind", "hail", "weather", "flood", "umbrella", "pluie"];
        assert!(words.iter().any(|word| of_weather.contains(word)), "{:?}: {words:?}", place.layer);
    }
    let (id, ..) = near.places[1].rows[0].clone();
    click(&mut window, &format!("nearest row {id} 0"));
    assert_eq!(focus(&window).row, Some(id));
    window.get_by_label_contains("Where it stands");
    click(&mut window, "Back to the selected token");
    assert_eq!(focus(&window).row, None);
    does(&mut window, Command::OpenRow(4_000_000));
    window.get_by_label_contains("does not stand in the first");
}

fn token_id(window: &egui_kittest::Harness<'static, crate::app::App>) -> u32 {
    let focus = focus(window);
    let query = crate::query::LookupQuery { doc: focus.doc.unwrap(), token: focus.token.unwrap() };
    window.state().peek(&query).unwrap().token_id
}

#[test]
fn a_feature_has_company_groups_and_near_misses() {
    let mut window = demo();
    does(&mut window, Command::OpenFeature(testing::WEATHER));
    for text in ["fires with ", "experts L2 expert 7", "token-class ", "drawn from", "Near-misses: its own tokens"] {
        assert!(window.query_all_by_label_contains(text).next().is_some(), "{text}");
    }
    // It may stand below what the column shows, where no pointer reaches it but a screen reader does.
    window.get_by_label("experts L2 expert 7").click_accesskit();
    window.run_steps(3);
    assert_eq!((focus(&window).view, focus(&window).expert), (View::Expert, Some(7)));
}

#[test]
fn training_curves_of_all_coders_are_drawn() {
    let mut window = demo();
    does(&mut window, Command::Show(View::Training));
    window.get_by_label_contains("Loss: Loss against step, 300 points");
    window.get_by_label_contains("Dead latents: ");
    click(&mut window, &format!("coder {}", testing::TABLE));
    window.get_by_label_contains("explained_variance 0.8");
}

#[test]
fn questions_in_sql_are_answered_and_lead_on() {
    let mut window = demo();
    does(&mut window, Command::Show(View::Query));
    click(&mut window, "Ask this");
    window.get_by_label("rows of the answer, 100 rows");
    window.get_by_label_contains("Chart: nll against n");
    does(&mut window, Command::RunSql("SELECT doc_id, pos, token FROM tokens WHERE doc_id = 5 AND pos = 4".into()));
    click(&mut window, "row 1 of 1");
    assert_eq!((focus(&window).view, focus(&window).doc, focus(&window).token), (View::Reader, Some(5), Some(4)));
    does(&mut window, Command::RunSql("SELEKT 1".into()));
    assert!(window.query_all_by_label_contains("▲ ").next().is_some());
    does(&mut window, Command::RunSql("SELECT nothing FROM tokens".into()));
    window.get_by_label_contains("lists the columns of every table");
    does(&mut window, Command::RunSql("SELECT token FROM tokens WHERE nll > 1000".into()));
    window.get_by_label("No rows");
    // The question is a place to go back to.
    does(&mut window, Command::Back);
    assert!(focus(&window).sql.contains("nothing"));
}

#[test]
fn a_run_without_experts_or_embeddings_says_what_to_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plain");
    testing::write_plain_run(&path).unwrap();
    let mut window = open(Some(&path));
    for (view, text) in [
        (View::Routing, "No experts in this run"),
        (View::Expert, "No experts in this run"),
        (View::Training, "No coder yet"),
    ] {
        does(&mut window, Command::Show(view));
        window.get_by_label(text);
    }
    does(&mut window, Command::OpenDocument { doc: 0, token: Some(1) });
    does(&mut window, Command::Show(View::Rows));
    window.get_by_label_contains("This model has no per-layer embeddings");
    does(&mut window, Command::Show(View::Grid));
    does(&mut window, Command::UseMetric(Metric::PleShare));
    window.get_by_label_contains("record with `--hook-points");
    does(&mut window, Command::UseMetric(Metric::Entropy));
    window.get_by_label_contains("the run has no routing");
}

#[test]
fn a_feature_is_labelled_rated_and_found_by_its_label() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine");
    testing::write_run(&path).unwrap();
    let mut window = open(Some(&path));
    does(&mut window, Command::OpenFeature(testing::WEATHER));
    press(&mut window, Key::N);
    window.get_by_label("Label").type_text("bad weather");
    window.run_steps(2);
    press(&mut window, Key::Enter);
    window.get_by_label_contains("“bad weather”");
    click(&mut window, "Rate 2");
    window.get_by_label("me, 2 of 5");
    press(&mut window, Key::Num4);
    window.get_by_label("me, 4 of 5");
    // It is found by its label, and by what it promotes.
    for filter in ["label:weather", "logit:rain max>12"] {
        does(&mut window, Command::Show(View::Features));
        does(&mut window, Command::Filter(filter.into()));
        window.get_by_label(&format!("feature {}, row 1 of 1", testing::WEATHER));
    }
    // And another window sees it, beside what someone else says.
    let run = data::Run::open(&path).unwrap();
    let item = format!("f:{}:{}", testing::WEATHER, testing::TABLE);
    let said = data::annotations::Annotation {
        label: Some("storms".into()),
        ..data::annotations::Annotation::new(item, "bob")
    };
    data::annotations::Annotations::add(&run, &said).unwrap();
    let mut window = open(Some(&path));
    does(&mut window, Command::OpenFeature(testing::WEATHER));
    for text in ["“bad weather”", "“storms”", "bob", "me, 4 of 5"] {
        window.get_by_label(text);
    }
}

#[test]
fn a_picture_brings_its_view_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shot.png");
    let mut window = demo();
    does(&mut window, Command::OpenExpert { layer: 1, expert: 3 });
    let link = window.state().link();
    let png = crate::picture::encode((1, 1), &[0; 4], link.as_deref()).unwrap();
    fs_err::write(&path, png).unwrap();
    does(&mut window, Command::Show(View::Overview));
    does(&mut window, Command::OpenPicture(path.clone()));
    assert_eq!((focus(&window).view, focus(&window).expert), (View::Expert, Some(3)));
    fs_err::write(&path, b"no picture").unwrap();
    does(&mut window, Command::OpenPicture(dir.path().join("missing.png")));
    assert!(window.query_by_label_contains("▲ ").is_some());
    let mut empty = open(None);
    does(&mut empty, Command::OpenPicture(path));
    empty.get_by_label_contains("Open the run first");
}

#[test]
fn a_typed_text_is_cut_by_the_tokenizer() {
    let mut window = demo();
    does(&mut window, Command::Show(View::Pieces));
    click(&mut window, "Take an example");
    // The model of this run is nowhere.
    window.get_by_label_contains("expected a `tokenizer.json`");
    let mini = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mini");
    window.get_by_label("Tokenizer file").focus();
    window.run_steps(2);
    window.get_by_label("Tokenizer file").type_text(mini);
    window.run_steps(4);
    window.get_by_label("pieces of the text");
    for text in ["English", "French", "Russian", "of them single bytes"] {
        assert!(window.query_all_by_label_contains(text).next().is_some(), "{text}");
    }
}

#[test]
fn a_feature_is_found_again_in_another_coder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("two");
    testing::write_compared_run(&path).unwrap();
    let mut window = open(Some(&path));
    does(&mut window, Command::UseTable(testing::TABLE.to_owned()));
    does(&mut window, Command::OpenFeature(testing::WEATHER));
    let there = format!("{} feature {}", testing::OTHER_TABLE, testing::WEATHER);
    window.get_by_label(&there).click_accesskit();
    window.run_steps(3);
    assert_eq!((focus(&window).table.as_deref(), focus(&window).feature), (Some("other"), Some(testing::WEATHER)));
}

#[test]
fn diagnostics_tell_what_the_run_is_made_of() {
    let mut window = demo();
    does(&mut window, Command::Show(View::Diagnostics));
    for text in ["480 features, pairs counted, joined with experts, token-class", "routing/layer=2", "Copy a report"] {
        assert!(window.query_all_by_label_contains(text).next().is_some(), "{text}");
    }
    window.get_by_label("shards, 2 rows");
}
