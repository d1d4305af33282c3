//! Does someone who has never seen it find what they look for, from a cold start, in under five actions?
//!
//! An action is a click, a key, or a word that is typed.

use egui::{Key, Modifiers, Role, vec2};
use egui_kittest::Harness;
use egui_kittest::kittest::{NodeT, Queryable};

use super::{demo, focus};
use crate::app::App;
use crate::state::View;
use crate::testing;

struct Person {
    window: Harness<'static, App>,
    actions: usize,
}

impl Person {
    fn sits_down() -> Self {
        Self { window: demo(), actions: 0 }
    }

    fn clicks(&mut self, label: &str) {
        self.window.get_by_label(label).click();
        self.did();
    }

    fn clicks_tab(&mut self, label: &str) {
        self.window.get_by_role_and_label(Role::Button, label).click();
        self.did();
    }

    fn presses(&mut self, key: Key) {
        self.window.key_press(key);
        self.did();
    }

    fn types(&mut self, text: &str) {
        self.window.get_by_label("Find").type_text(text);
        self.did();
    }

    /// Clicks a place within something that is drawn.
    fn clicks_at(&mut self, label: &str, offset: egui::Vec2) {
        let at = self.window.get_by_label_contains(label).rect().left_top() + offset;
        for pressed in [true, false] {
            self.window.event(egui::Event::PointerMoved(at));
            let (button, modifiers) = (egui::PointerButton::Primary, Modifiers::NONE);
            self.window.event(egui::Event::PointerButton { pos: at, button, pressed, modifiers });
            self.window.run_steps(1);
        }
        self.did();
    }

    fn did(&mut self) {
        self.window.run_steps(4);
        self.actions += 1;
    }

    fn sees(&self, text: &str) -> bool {
        self.window.query_all_by_label_contains(text).next().is_some()
    }
}

#[test]
fn the_passage_that_most_activates_a_feature() {
    let mut person = Person::sits_down();
    person.clicks_tab("Features");
    person.clicks(&format!("feature {}, row 1 of 480", testing::WEATHER));
    assert!(person.sees("example 1 of feature 7"));
    person.presses(Key::Enter);
    assert_eq!(focus(&person.window).view, View::Reader);
    assert!(person.sees("text of document") && person.sees(&format!("feature {}", testing::WEATHER)));
    assert!(person.actions < 5, "{}", person.actions);
}

#[test]
fn the_experts_of_a_token() {
    let mut person = Person::sits_down();
    person.clicks_tab("Reader");
    person.clicks_at("text of document 0", vec2(120.0, 9.0));
    person.clicks("Experts");
    assert_eq!(focus(&person.window).view, View::Routing);
    assert!(person.sees("of layer 2") && person.sees("runner-up") && person.sees("lanes of"));
    assert!(person.actions < 5, "{}", person.actions);
}

#[test]
fn the_per_layer_rows_of_a_token() {
    let mut person = Person::sits_down();
    person.clicks_tab("Reader");
    person.clicks_at("text of document 0", vec2(120.0, 9.0));
    person.clicks("Embedding lookups");
    assert_eq!(focus(&person.window).view, View::Rows);
    for layer in 0..3 {
        assert!(person.sees(&format!("embedding row of layer {layer}, share")));
    }
    assert!(person.actions < 5, "{}", person.actions);
}

#[test]
fn what_an_expert_is_for_by_typing() {
    let mut person = Person::sits_down();
    person.window.key_press_modifiers(Modifiers::COMMAND, Key::K);
    person.did();
    person.types(&format!("e 2:{}", testing::WEATHER_EXPERT));
    person.presses(Key::Enter);
    assert_eq!(focus(&person.window).expert, Some(testing::WEATHER_EXPERT));
    // The tokens that it takes are those of the weather, and so is its first feature.
    assert!(person.sees("token ·rain"));
    person.clicks(&format!("feature {} of the expert", testing::WEATHER));
    assert_eq!(focus(&person.window).view, View::Feature);
    assert!(person.actions < 5, "{}", person.actions);
    // And from the feature the way leads back to the expert.
    let back = format!("experts L2 expert {}", testing::WEATHER_EXPERT);
    let node = person.window.get_by_label(&back);
    assert_eq!(node.accesskit_node().role(), Role::Link);
}
