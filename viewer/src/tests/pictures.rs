//! Do the views still look as they did? Five pictures, drawn by a software adapter.
//!
//! Left out, with a line that says so, where there is no adapter.

use super::{Harness, View, does, run_dir};
use egui::vec2;
use egui_kittest::kittest::Queryable;

use crate::app::{App, Start};
use crate::command::Command;
use crate::state::ColorBy;
use crate::testing;
use crate::theme::ThemeChoice;
use crate::window::{Pixels, harness};

fn picture(name: &str, prepare: impl FnOnce(&mut Harness<'static, App>)) {
    if !crate::has_adapter() {
        use std::io::Write as _;
        // Straight to the terminal: a left-out test must be seen although it passes.
        let _ = writeln!(
            std::io::stderr(),
            "left out: picture `{name}`, no graphics adapter; `cargo xtask setup` installs one"
        );
        return;
    }
    let start = Start { run: Some(run_dir().to_owned()), theme: ThemeChoice::Dark, ..Start::default() };
    let mut window = harness(start, vec2(1_000.0, 640.0), Pixels::Drawn).unwrap();
    window.run_steps(2);
    prepare(&mut window);
    window.snapshot(name);
}

#[test]
fn overview() {
    picture("overview", |window| {
        // The folder is another one every time.
        let folder = window.get_by_label(&run_dir().display().to_string()).rect();
        window.mask(egui::Rect::from_min_size(folder.min, vec2(300.0, folder.height())));
    });
}

#[test]
fn features_light() {
    picture("features_light", |window| {
        does(window, Command::UseTheme(ThemeChoice::Light));
        does(window, Command::Show(View::Features));
        does(window, Command::SelectFeature(testing::OFFICE));
    });
}

#[test]
fn feature() {
    picture("feature", |window| does(window, Command::OpenFeature(testing::WEATHER)));
}

#[test]
fn reader() {
    picture("reader", |window| {
        does(window, Command::SelectFeature(testing::WEATHER));
        does(window, Command::OpenDocument { doc: 2, token: Some(3) });
    });
}

#[test]
fn reader_norm_paper() {
    picture("reader_norm_paper", |window| {
        does(window, Command::UseTheme(ThemeChoice::Paper));
        does(window, Command::OpenDocument { doc: 0, token: None });
        does(window, Command::ColorBy(ColorBy::Norm));
    });
}
