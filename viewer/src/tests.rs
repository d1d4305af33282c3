//! Does the window do what its labels say?
//!
//! Through the accessibility tree, as a screen reader sees it; no picture is drawn but in [`pictures`].

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use egui::{Key, Modifiers, Role, vec2};
use egui_kittest::Harness;
use egui_kittest::kittest::{NodeT, Queryable};

use crate::app::{App, Start};
use crate::command::{Command, TABLE};
use crate::state::{ColorBy, Focus, SortBy, View};
use crate::testing;
use crate::theme::ThemeChoice;
use crate::window::{Pixels, harness};

mod journeys;
mod panes;
mod pictures;
mod views;

/// The run that all tests read, made once.
fn run_dir() -> &'static Path {
    static DIR: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("demo");
        testing::write_run(&path).unwrap();
        (dir, path)
    });
    path
}

fn open(run: Option<&Path>) -> Harness<'static, App> {
    let start = Start { run: run.map(Path::to_owned), theme: ThemeChoice::Dark, ..Start::default() };
    let mut window = harness(start, vec2(1_300.0, 820.0), Pixels::Never).unwrap();
    window.run_steps(2);
    window
}

fn demo() -> Harness<'static, App> {
    open(Some(run_dir()))
}

fn does(window: &mut Harness<'static, App>, command: Command) {
    window.state_mut().apply(command);
    window.run_steps(3);
}

fn press(window: &mut Harness<'static, App>, key: Key) {
    window.key_press(key);
    window.run_steps(3);
}

fn press_with(window: &mut Harness<'static, App>, modifiers: Modifiers, key: Key) {
    window.key_press_modifiers(modifiers, key);
    window.run_steps(3);
}

fn click(window: &mut Harness<'static, App>, label: &str) {
    window.get_by_label(label).click();
    window.run_steps(3);
}

fn focus<'a>(window: &'a Harness<'static, App>) -> &'a Focus {
    &window.state().focus
}

#[test]
fn the_overview_tells_what_is_in_the_run() {
    let window = demo();
    for text in ["gemma-4-tiny", "Norms by layer", "Sparse coders", "Feature tables", "480"] {
        assert!(window.query_all_by_label_contains(text).next().is_some(), "{text}");
    }
    window.get_by_label_contains("Norms by layer: median L2 norm against layer, 15 points");
    window.get_by_label_contains("Explained variance: Explained variance against step, 300 points");
}

#[test]
fn a_feature_is_found_opened_and_left_again() {
    let mut window = demo();
    window.get_by_role_and_label(Role::Button, "Features").click();
    window.run_steps(3);
    window.get_by_label("features, 480 rows");
    window.get_by_label("Filter").focus();
    window.run_steps(2);
    window.get_by_label("Filter").type_text("umbrella");
    window.run_steps(4);
    assert_eq!(focus(&window).filter, "umbrella");
    assert!(window.query_by_label_contains("pass the filter").is_some());
    // The weather feature has an example with the umbrella, and fires more strongly than the chance ones.
    let row = format!("feature {}, row 1 of {}", testing::WEATHER, rows(&window));
    click(&mut window, &row);
    assert_eq!((focus(&window).view, focus(&window).feature), (View::Feature, Some(testing::WEATHER)));
    window.get_by_label(&format!("Feature {}", testing::WEATHER));
    window.get_by_label_contains("Activation histogram");
    click(&mut window, &format!("neighbour {}", testing::WATER));
    assert_eq!(focus(&window).feature, Some(testing::WATER));
    click(&mut window, "Back");
    assert_eq!(focus(&window).feature, Some(testing::WEATHER));
    press_with(&mut window, Modifiers::ALT, Key::ArrowRight);
    assert_eq!(focus(&window).feature, Some(testing::WATER));
    press_with(&mut window, Modifiers::ALT, Key::ArrowLeft);
    press_with(&mut window, Modifiers::ALT, Key::ArrowLeft);
    assert_eq!(focus(&window).view, View::Features);
    assert_eq!(focus(&window).filter, "umbrella");
}

/// How many rows the feature table shows.
fn rows(window: &Harness<'static, App>) -> String {
    let label = window.get_by_label_contains("features, ").accesskit_node().label().unwrap_or_default();
    label.trim_start_matches("features, ").trim_end_matches(" rows").to_owned()
}

#[test]
fn the_table_sorts_by_its_columns() {
    let mut window = demo();
    does(&mut window, Command::Show(View::Features));
    click(&mut window, "Sort by Feature");
    assert_eq!((focus(&window).sort, focus(&window).ascending), (SortBy::Id, true));
    window.get_by_label("feature 0, row 1 of 480");
    click(&mut window, "Sort by Feature");
    window.get_by_label("feature 479, row 1 of 480");
    click(&mut window, "Sort by Max act");
    window.get_by_label(&format!("feature {}, row 1 of 480", testing::WEATHER));
    press(&mut window, Key::R);
    assert!(focus(&window).ascending);
    press(&mut window, Key::S);
    assert_eq!(focus(&window).sort, SortBy::DecoderNorm);
}

#[test]
fn filters_compose_and_an_empty_result_says_so() {
    let mut window = demo();
    does(&mut window, Command::Show(View::Features));
    does(&mut window, Command::Filter("max>12 parliament".into()));
    window.get_by_label(&format!("feature {}, row 1 of {}", testing::OFFICE, rows(&window)));
    does(&mut window, Command::Filter(format!("#{}", testing::OFFICE)));
    window.get_by_label(&format!("feature {}, row 1 of 1", testing::OFFICE));
    // A word that is cut into several tokens, in another case.
    does(&mut window, Command::Filter("new south WALES".into()));
    assert!(window.query_by_label_contains("pass the filter").is_some());
    // Inside a word only when asked.
    does(&mut window, Command::Filter("mbrella".into()));
    window.get_by_label_contains("No feature fits");
    does(&mut window, Command::Filter("*mbrella".into()));
    assert!(window.query_by_label_contains("pass the filter").is_some());
    does(&mut window, Command::Filter("no such words anywhere".into()));
    window.get_by_label_contains("No feature fits");
    press(&mut window, Key::Escape);
    window.get_by_label("features, 480 rows");
}

#[test]
fn the_keyboard_reaches_everything() {
    let mut window = demo();
    press_with(&mut window, Modifiers::COMMAND, Key::Num2);
    assert_eq!(focus(&window).view, View::Features);
    press(&mut window, Key::ArrowDown);
    assert_eq!(focus(&window).feature, Some(testing::WEATHER));
    press(&mut window, Key::ArrowDown);
    assert_eq!(focus(&window).feature, Some(testing::OFFICE));
    press(&mut window, Key::End);
    press(&mut window, Key::Home);
    assert_eq!(focus(&window).feature, Some(testing::WEATHER));
    press(&mut window, Key::Enter);
    assert_eq!(focus(&window).view, View::Feature);
    press(&mut window, Key::CloseBracket);
    assert_eq!(focus(&window).feature, Some(testing::OFFICE));
    press(&mut window, Key::OpenBracket);
    assert_eq!(focus(&window).feature, Some(testing::WEATHER));
    press(&mut window, Key::Enter);
    assert_eq!((focus(&window).view, focus(&window).color), (View::Reader, ColorBy::Feature));
    let token = focus(&window).token.unwrap();
    press(&mut window, Key::ArrowRight);
    assert_eq!(focus(&window).token, Some(token + 1));
    press(&mut window, Key::ArrowLeft);
    press(&mut window, Key::ArrowDown);
    assert!(focus(&window).token.unwrap() > token);
    press(&mut window, Key::C);
    assert_eq!(focus(&window).color, ColorBy::Norm);
    press(&mut window, Key::Slash);
    assert_eq!(focus(&window).view, View::Features);
    window.get_by_label("Filter").type_text("rain");
    window.run_steps(3);
    // Letters go into the field, not to the commands.
    assert_eq!((focus(&window).filter.as_str(), focus(&window).sort), ("rain", SortBy::MaxAct));
}

#[test]
fn the_reader_colors_by_norm_and_surprise() {
    let mut window = demo();
    does(&mut window, Command::Show(View::Reader));
    click(&mut window, "document 2 of 12");
    assert_eq!(focus(&window).doc, Some(2));
    window.get_by_label_contains("text of document 2");
    click(&mut window, "Norm");
    assert_eq!(focus(&window).color, ColorBy::Norm);
    window.get_by_label_contains("median of the run");
    does(&mut window, Command::UseHook("blocks.0.hook_mlp_out".into()));
    assert!(window.query_by_label_contains("could not be read").is_none());
    click(&mut window, "Surprise (nll)");
    window.get_by_label_contains("mean here");
    press(&mut window, Key::CloseCurlyBracket);
    assert_eq!(focus(&window).doc, Some(3));
}

#[test]
fn a_token_shows_its_features_and_a_feature_colors_the_text() {
    let mut window = demo();
    does(&mut window, Command::OpenDocument { doc: 2, token: None });
    window.get_by_label_contains("Click a token, or press");
    let text = window.get_by_label_contains("text of document 2").rect();
    let at = text.left_top() + vec2(20.0, 9.0);
    for pressed in [true, false] {
        window.event(egui::Event::PointerMoved(at));
        let (button, modifiers) = (egui::PointerButton::Primary, Modifiers::NONE);
        window.event(egui::Event::PointerButton { pos: at, button, pressed, modifiers });
        window.run_steps(2);
    }
    assert_eq!(focus(&window).token, Some(0));
    // The word after that is ` storm`.
    for _ in 0..3 {
        press(&mut window, Key::ArrowRight);
    }
    assert_eq!(focus(&window).token, Some(3));
    let label = format!("active feature {}", testing::WEATHER);
    click(&mut window, &label);
    assert_eq!((focus(&window).view, focus(&window).feature), (View::Reader, Some(testing::WEATHER)));
    assert_eq!(focus(&window).token, Some(3));
    window.get_by_label(&format!("feature {}", testing::WEATHER));
    click(&mut window, &label);
    assert_eq!((focus(&window).view, focus(&window).token), (View::Feature, Some(3)));
}

#[test]
fn a_long_document_is_read_in_parts() {
    let mut window = demo();
    does(&mut window, Command::OpenDocument { doc: testing::LONG_DOCUMENT, token: None });
    window.get_by_label_contains("tokens 0 to 2,047 of");
    click(&mut window, "Later part");
    assert_eq!(focus(&window).token, Some(2_048));
    window.get_by_label_contains("tokens 2,048 to");
    press(&mut window, Key::ArrowLeft);
    window.get_by_label_contains("tokens 0 to 2,047 of");
    press(&mut window, Key::PageDown);
    window.get_by_label_contains("tokens 2,048 to");
}

#[test]
fn the_cheat_sheet_and_the_palette_come_from_the_command_table() {
    let mut window = demo();
    press(&mut window, Key::Questionmark);
    for entry in TABLE.iter().filter(|entry| !entry.keys.is_empty()) {
        assert!(window.query_all_by_label(entry.title).next().is_some(), "{}", entry.title);
    }
    press(&mut window, Key::Escape);
    assert!(window.query_by_label("This list of keys").is_none());
    press_with(&mut window, Modifiers::COMMAND, Key::K);
    window.get_by_label("Find").type_text("paper");
    window.run_steps(3);
    window.get_by_label("Dark, light, paper");
    press(&mut window, Key::Escape);
    press_with(&mut window, Modifiers::COMMAND, Key::K);
    window.get_by_label("Find").type_text("21");
    window.run_steps(3);
    press(&mut window, Key::Enter);
    assert_eq!((focus(&window).view, focus(&window).feature), (View::Feature, Some(21)));
}

#[test]
fn a_link_brings_back_the_view() {
    let mut window = demo();
    does(&mut window, Command::Filter("rain".into()));
    does(&mut window, Command::OpenFeature(testing::WATER));
    let there = focus(&window).clone();
    let link = window.state().link().unwrap();
    let start =
        Start { run: Some(run_dir().to_owned()), link: Some(link), theme: ThemeChoice::Light, ..Start::default() };
    let mut other = harness(start, vec2(1_000.0, 700.0), Pixels::Never).unwrap();
    other.run_steps(2);
    assert_eq!(focus(&other), &there);
    other.get_by_label(&format!("Feature {}", testing::WATER));
    does(&mut other, Command::FollowLink("polariscope://other@00000000?v=1&view=reader&doc=1".into()));
    assert_eq!(focus(&other).view, View::Reader);
    other.get_by_label_contains("This link was made on run other@00000000");
    press(&mut other, Key::Escape);
    assert!(other.query_by_label_contains("This link was made").is_none());
    does(&mut other, Command::FollowLink("nonsense".into()));
    other.get_by_label_contains("expected a link that begins");
}

#[test]
fn without_a_run_the_window_asks_for_one() {
    let mut window = open(None);
    window.get_by_label("Open a run");
    window.get_by_label("Folder of a run").focus();
    window.run_steps(2);
    window.get_by_label("Folder of a run").type_text("/nowhere/at/all");
    window.run_steps(2);
    click(&mut window, "Open");
    window.get_by_label("The run could not be read");
    window.get_by_label_contains("Next: ");
    does(&mut window, Command::OpenRun(run_dir().to_owned()));
    window.get_by_label_contains("Norms by layer: ");
}

#[test]
fn empty_places_suggest_the_first_action() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bare");
    testing::write_bare_run(&path).unwrap();
    let mut window = open(Some(&path));
    window.get_by_label("No coder yet");
    for view in [View::Features, View::Feature] {
        does(&mut window, Command::Show(view));
        window.get_by_label("No features yet");
        window.get_by_label_contains("polariscope train");
    }
    does(&mut window, Command::OpenDocument { doc: 0, token: Some(1) });
    window.get_by_label_contains("No features yet");
    // Nothing to find by number.
    press_with(&mut window, Modifiers::COMMAND, Key::K);
    window.get_by_label("Find").type_text("7");
    window.run_steps(2);
    assert!(window.query_by_label("Open feature 7").is_none());
    window.get_by_label("Open document 7");
}

#[test]
fn a_broken_file_stays_in_its_panel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken");
    testing::write_run(&path).unwrap();
    let stats = path.join("features").join(testing::TABLE).join("examples.parquet");
    let bytes = fs_err::read(&stats).unwrap();
    fs_err::write(&stats, &bytes[..bytes.len() / 2]).unwrap();
    let mut window = open(Some(&path));
    window.get_by_label_contains("Norms by layer: ");
    does(&mut window, Command::OpenFeature(testing::WEATHER));
    window.get_by_label("The feature page could not be read");
    // What was repaired is read again when asked for.
    fs_err::write(&stats, &bytes).unwrap();
    does(&mut window, Command::Reload);
    window.get_by_label_contains("Activation histogram");
    fs_err::write(path.join("tokens").join("shard-00001.parquet"), b"").unwrap();
    does(&mut window, Command::OpenDocument { doc: 11, token: None });
    window.get_by_label("The document could not be read");
    // What is whole is shown.
    does(&mut window, Command::OpenDocument { doc: 1, token: None });
    window.get_by_label_contains("text of document 1");
}

#[test]
fn what_does_not_exist_is_said() {
    let mut window = demo();
    does(&mut window, Command::OpenFeature(4_000_000));
    window.get_by_label_contains("feature 4000000 is not in");
    does(&mut window, Command::OpenDocument { doc: 99, token: Some(u64::MAX) });
    window.get_by_label("The document could not be read");
    does(&mut window, Command::OpenDocument { doc: 1, token: Some(1_000_000) });
    does(&mut window, Command::UseTable("missing".into()));
    window.get_by_label("The feature table could not be read");
    does(&mut window, Command::OpenFeature(testing::DEAD));
}

#[test]
fn every_command_can_be_carried_out_anywhere() {
    // A run of its own, since some commands write notes into it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("demo");
    testing::write_run(&path).unwrap();
    let mut window = open(Some(&path));
    for view in View::ALL {
        for entry in &TABLE {
            does(&mut window, Command::Show(view));
            does(&mut window, entry.command.clone());
            does(&mut window, Command::Escape);
        }
    }
    let mut window = open(None);
    for entry in &TABLE {
        does(&mut window, entry.command.clone());
    }
}

#[test]
fn small_windows_and_all_themes_can_be_drawn() {
    for theme in [ThemeChoice::Dark, ThemeChoice::Light, ThemeChoice::Paper] {
        for size in [vec2(720.0, 480.0), vec2(2_600.0, 1_400.0), vec2(100.0, 100.0)] {
            let start = Start { run: Some(run_dir().to_owned()), theme, ..Start::default() };
            let mut window = harness(start, size, Pixels::Never).unwrap();
            for view in View::ALL {
                does(&mut window, Command::Show(view));
                does(&mut window, Command::SelectFeature(testing::WEATHER));
                does(&mut window, Command::SelectToken(3));
            }
        }
    }
}
