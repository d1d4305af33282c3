//! Do panes, pins and the pointer work as one window?

use egui::{Key, Modifiers, Role};
use egui_kittest::kittest::Queryable;

use super::{click, demo, does, focus, press, press_with, run_dir};
use crate::app::Start;
use crate::command::Command;
use crate::layout::Preset;
use crate::state::{Item, View};
use crate::testing;
use crate::window::{Pixels, harness};

#[test]
fn every_view_has_a_tab_and_a_key() {
    let mut window = demo();
    for view in View::ALL {
        window.get_by_role_and_label(Role::Button, view.title()).click();
        window.run_steps(3);
        assert_eq!(focus(&window).view, view);
        assert!(window.state().layout.is_shown(view));
    }
    let keys = [Key::Num1, Key::Num2, Key::Num3, Key::Num4, Key::Num5, Key::Num6, Key::Num7, Key::Num8, Key::Num9];
    for (key, view) in keys.into_iter().zip(View::ALL) {
        press_with(&mut window, Modifiers::COMMAND, key);
        assert_eq!(focus(&window).view, view);
    }
    press(&mut window, Key::Q);
    assert_eq!(focus(&window).view, View::Query);
}

#[test]
fn arrangements_show_several_views_and_can_be_undone() {
    let mut window = demo();
    does(&mut window, Command::OpenDocument { doc: 2, token: Some(3) });
    press_with(&mut window, Modifiers::ALT, Key::Num2);
    for view in [View::Reader, View::Grid, View::Routing] {
        assert!(window.state().layout.is_shown(view), "{view}");
    }
    window.get_by_label_contains("text of document 2");
    window.get_by_label_contains("tokens by layers, 3 ×");
    window.get_by_label_contains("lanes of");
    // A token that is selected in one pane is selected in all.
    press(&mut window, Key::ArrowRight);
    window.get_by_label_contains("token 4 ");
    press_with(&mut window, Modifiers::COMMAND, Key::Z);
    assert!(window.state().layout.is_preset(Preset::Single));
    press_with(&mut window, Modifiers::COMMAND | Modifiers::SHIFT, Key::Z);
    assert!(window.state().layout.is_preset(Preset::Read));
}

#[test]
fn a_frozen_pane_stays_while_the_focus_moves_on() {
    let mut window = demo();
    does(&mut window, Command::OpenFeature(testing::WEATHER));
    press(&mut window, Key::F);
    does(&mut window, Command::OpenFeature(testing::OFFICE));
    for feature in [testing::WEATHER, testing::OFFICE] {
        window.get_by_label(&format!("Feature {feature}"));
    }
    let link = window.state().link().unwrap();
    let start = Start { run: Some(run_dir().to_owned()), link: Some(link), ..Start::default() };
    let mut other = harness(start, egui::vec2(1_300.0, 820.0), Pixels::Never).unwrap();
    other.run_steps(3);
    for feature in [testing::WEATHER, testing::OFFICE] {
        other.get_by_label(&format!("Feature {feature}"));
    }
    click(&mut other, "Go there");
    assert_eq!(focus(&other).feature, Some(testing::WEATHER));
    click(&mut other, "Close pane");
    assert!(other.query_by_label("Go there").is_none());
    assert!(other.state().layout.is_preset(Preset::Single));
}

#[test]
fn pins_stay_and_lead_back() {
    let mut window = demo();
    does(&mut window, Command::OpenExpert { layer: 2, expert: testing::WEATHER_EXPERT });
    press(&mut window, Key::P);
    does(&mut window, Command::OpenFeature(testing::WATER));
    press(&mut window, Key::P);
    assert_eq!(focus(&window).pins.len(), 2);
    does(&mut window, Command::Show(View::Overview));
    click(&mut window, &format!("● L2 expert {}", testing::WEATHER_EXPERT));
    assert_eq!(focus(&window).view, View::Expert);
    press(&mut window, Key::P);
    assert_eq!(focus(&window).pins, [Item::Feature { table: testing::TABLE.to_owned(), feature: testing::WATER }]);
    press(&mut window, Key::X);
    assert!(focus(&window).pins.is_empty());
    for id in 0..7 {
        does(&mut window, Command::PinItem(Item::Row(id)));
    }
    assert_eq!(focus(&window).pins.len(), 5);
    window.get_by_label_contains("5 things are pinned already");
}

#[test]
fn the_pointer_marks_the_same_token_in_all_panes() {
    let mut window = demo();
    does(&mut window, Command::OpenDocument { doc: 2, token: Some(3) });
    does(&mut window, Command::Arrange(Preset::Read));
    let text = window.get_by_label_contains("text of document 2").rect();
    window.event(egui::Event::PointerMoved(text.left_top() + egui::vec2(60.0, 9.0)));
    window.run_steps(3);
    assert!(window.state().hovered().token.is_some());
    let grid = window.get_by_label_contains("tokens by layers").rect();
    window.event(egui::Event::PointerMoved(grid.left_top() + egui::vec2(60.0, 4.0)));
    window.run_steps(3);
    assert_eq!(window.state().hovered().layer, Some(2));
    // It is no place to go back to, and is in no link.
    assert!(!window.state().link().unwrap().contains("layer="));
}

#[test]
fn a_window_opens_where_the_last_one_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let session = dir.path().join("state").join("session.json");
    let start = |run: Option<&std::path::Path>| Start {
        run: run.map(std::path::Path::to_owned),
        session: Some(session.clone()),
        ..Start::default()
    };
    let mut window = harness(start(Some(run_dir())), egui::vec2(1_300.0, 820.0), Pixels::Never).unwrap();
    window.run_steps(3);
    does(&mut window, Command::OpenFeature(testing::WATER));
    does(&mut window, Command::Arrange(Preset::Study));
    does(&mut window, Command::UseTheme(crate::theme::ThemeChoice::Paper));
    window.state_mut().close();
    // With the run, or by choosing it.
    let mut window = harness(start(Some(run_dir())), egui::vec2(1_300.0, 820.0), Pixels::Never).unwrap();
    window.run_steps(3);
    assert_eq!(focus(&window).feature, Some(testing::WATER));
    assert!(window.state().layout.is_preset(Preset::Study));
    let mut window = harness(start(None), egui::vec2(1_300.0, 820.0), Pixels::Never).unwrap();
    window.run_steps(3);
    click(&mut window, &run_dir().display().to_string());
    assert_eq!(focus(&window).feature, Some(testing::WATER));
    // What is broken is forgotten.
    fs_err::write(&session, b"{\"runs\":").unwrap();
    let mut window = harness(start(Some(run_dir())), egui::vec2(1_300.0, 820.0), Pixels::Never).unwrap();
    window.run_steps(3);
    assert_eq!(focus(&window).view, View::Overview);
}
