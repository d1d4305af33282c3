//! Do the views still look as they did? Pictures of each, drawn by a software adapter.
//!
//! Left out, with a line that says so, where there is no adapter.

use super::{Harness, View, does, run_dir};
use egui::vec2;
use egui_kittest::kittest::Queryable;

use crate::app::{App, Start};
use crate::command::Command;
use crate::layout::Preset;
use crate::state::{ColorBy, Item, Metric, Scope};
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

/// A view in a theme, after some commands.
fn after(name: &str, theme: ThemeChoice, commands: Vec<Command>) {
    picture(name, |window| {
        does(window, Command::UseTheme(theme));
        for command in commands {
            does(window, command);
        }
        // Answers that lead to further questions.
        window.run_steps(3);
    });
}

fn a_token() -> Command {
    Command::OpenDocument { doc: 2, token: Some(3) }
}

fn an_expert() -> Command {
    Command::OpenExpert { layer: 2, expert: testing::WEATHER_EXPERT }
}

#[test]
fn grid_resid() {
    after("grid_resid", ThemeChoice::Dark, vec![a_token(), Command::UseLayer(1), Command::Show(View::Grid)]);
}

#[test]
fn grid_of_a_long_document_light() {
    let document = Command::OpenDocument { doc: testing::LONG_DOCUMENT, token: Some(700) };
    let metric = Command::UseMetric(Metric::PleShare);
    after("grid_long_light", ThemeChoice::Light, vec![document, metric, Command::Show(View::Grid)]);
}

#[test]
fn grid_features_paper() {
    let metric = Command::UseMetric(Metric::Features);
    after("grid_features_paper", ThemeChoice::Paper, vec![a_token(), metric, Command::Show(View::Grid)]);
}

#[test]
fn grid_not_recorded() {
    let metric = Command::UseMetric(Metric::Attn);
    after("grid_not_recorded", ThemeChoice::Dark, vec![a_token(), metric, Command::Show(View::Grid)]);
}

#[test]
fn routing() {
    after("routing", ThemeChoice::Dark, vec![a_token(), Command::UseLayer(2), Command::Show(View::Routing)]);
}

#[test]
fn routing_of_the_run_with_pins_light() {
    let pin = |expert: u16| Command::PinItem(Item::Expert { layer: 2, expert });
    let scope = Command::UseScope(Scope::Corpus);
    let commands = vec![a_token(), pin(testing::WEATHER_EXPERT), pin(1), scope, Command::Show(View::Routing)];
    after("routing_pins_light", ThemeChoice::Light, commands);
}

#[test]
fn expert() {
    after("expert", ThemeChoice::Dark, vec![an_expert()]);
}

#[test]
fn expert_dormant_light() {
    after("expert_dormant_light", ThemeChoice::Light, vec![Command::OpenExpert { layer: 0, expert: 7 }]);
}

#[test]
fn embeddings() {
    after("embeddings", ThemeChoice::Dark, vec![a_token(), Command::UseLayer(1), Command::Show(View::Rows)]);
}

#[test]
fn embeddings_of_a_row_paper() {
    after("embeddings_row_paper", ThemeChoice::Paper, vec![Command::OpenRow(310)]);
}

#[test]
fn embeddings_empty() {
    after("embeddings_empty", ThemeChoice::Dark, vec![Command::Show(View::Rows)]);
}

#[test]
fn training() {
    after(
        "training",
        ThemeChoice::Dark,
        vec![Command::UseCoder(testing::TABLE.to_owned()), Command::Show(View::Training)],
    );
}

#[test]
fn query_empty() {
    after("query_empty", ThemeChoice::Dark, vec![Command::Show(View::Query)]);
}

#[test]
fn query_light() {
    let sql = "SELECT token, count(*) AS n, avg(nll) AS nll FROM tokens WHERE NOT special GROUP BY token ORDER BY n DESC, token LIMIT 40";
    after("query_light", ThemeChoice::Light, vec![Command::RunSql(sql.to_owned())]);
}

#[test]
fn query_refused() {
    after("query_refused", ThemeChoice::Dark, vec![Command::RunSql("SELECT nothing FROM tokens".to_owned())]);
}

#[test]
fn panes_to_read() {
    after("panes_read", ThemeChoice::Dark, vec![a_token(), Command::UseLayer(2), Command::Arrange(Preset::Read)]);
}

#[test]
fn panes_to_study_light() {
    let commands = vec![Command::OpenFeature(testing::WEATHER), Command::Arrange(Preset::Study)];
    after("panes_study_light", ThemeChoice::Light, commands);
}

#[test]
fn panes_of_experts() {
    after("panes_routing", ThemeChoice::Dark, vec![a_token(), an_expert(), Command::Arrange(Preset::Routing)]);
}

#[test]
fn panes_of_embeddings_paper() {
    after("panes_embeddings_paper", ThemeChoice::Paper, vec![a_token(), Command::Arrange(Preset::Embeddings)]);
}

#[test]
fn two_features_side_by_side() {
    let commands = vec![Command::OpenFeature(testing::WEATHER), Command::Freeze, Command::OpenFeature(testing::OFFICE)];
    after("panes_compare", ThemeChoice::Dark, commands);
}

#[test]
fn reader_by_expert_light() {
    let commands = vec![an_expert(), a_token(), Command::ColorBy(ColorBy::Expert)];
    after("reader_expert_light", ThemeChoice::Light, commands);
}

#[test]
fn reader_by_ple_share() {
    after("reader_ple", ThemeChoice::Dark, vec![a_token(), Command::ColorBy(ColorBy::PleShare)]);
}

#[test]
fn palette() {
    after("palette", ThemeChoice::Dark, vec![Command::Show(View::Features), Command::Palette]);
}

#[test]
fn cheat_sheet_light() {
    after("cheat_sheet_light", ThemeChoice::Light, vec![Command::CheatSheet]);
}

#[test]
fn features_filtered() {
    after(
        "features_filtered",
        ThemeChoice::Dark,
        vec![Command::Filter("rain max>5".into()), Command::Show(View::Features)],
    );
}

#[test]
fn features_none_paper() {
    let commands = vec![Command::Filter("no such words".into()), Command::Show(View::Features)];
    after("features_none_paper", ThemeChoice::Paper, commands);
}

#[test]
fn a_link_of_another_run() {
    after(
        "link_mismatch",
        ThemeChoice::Dark,
        vec![Command::FollowLink("polariscope://other@00000000?v=1&view=reader&doc=1".into())],
    );
}

#[test]
fn reader_in_several_scripts() {
    after("reader_arabic", ThemeChoice::Dark, vec![Command::OpenDocument { doc: 6, token: Some(2) }]);
}

#[test]
fn diagnostics_paper() {
    after("diagnostics_paper", ThemeChoice::Paper, vec![Command::Show(View::Diagnostics)]);
}
