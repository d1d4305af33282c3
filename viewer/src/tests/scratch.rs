//! scratch
use super::*;
fn save(window: &mut Harness<'static, App>, name: &str) {
    window.ctx.add_font_provider(std::sync::Arc::new(egui_system_font_provider::SystemFontProvider::new()));
    window.run_steps(3);
    window.render().unwrap().save(format!("/tmp/shots/{name}.png")).unwrap();
}
#[test]
fn shots() {
    std::fs::create_dir_all("/tmp/shots").unwrap();
    if !Path::new("/tmp/vrun").exists() {
        testing::write_run(Path::new("/tmp/vrun")).unwrap();
    }
    let mut w = open_as(Some(run_dir()), Pixels::Drawn);
    does(&mut w, Command::CheatSheet);
    save(&mut w, "cheat");
    does(&mut w, Command::Escape);
    does(&mut w, Command::Palette);
    w.get_by_label("Find").type_text("12");
    w.run_steps(3);
    save(&mut w, "palette");
    does(&mut w, Command::Escape);
    does(&mut w, Command::OpenFeature(testing::OFFICE));
    does(&mut w, Command::UseTheme(ThemeChoice::Light));
    save(&mut w, "feature_light");
    does(&mut w, Command::OpenFeature(999999));
    save(&mut w, "failed");
    does(&mut w, Command::Filter("zzzz".into()));
    does(&mut w, Command::Show(View::Features));
    save(&mut w, "nofit");
    does(&mut w, Command::OpenDocument { doc: 6, token: Some(3) });
    save(&mut w, "arabic");
    does(&mut w, Command::OpenDocument { doc: 5, token: Some(3) });
    does(&mut w, Command::ColorBy(ColorBy::Nll));
    save(&mut w, "chinese");
    does(&mut w, Command::UseTheme(ThemeChoice::Dark));
    does(&mut w, Command::OpenDocument { doc: 9, token: Some(30) });
    save(&mut w, "long");
    does(&mut w, Command::Filter("".into()));
    does(&mut w, Command::Show(View::Features));
    does(&mut w, Command::Filter("rain density<0.1".into()));
    does(&mut w, Command::CopyLink);
    save(&mut w, "features_dark");
    let mut w = open_as(None, Pixels::Drawn);
    save(&mut w, "start");
    let mut w = open_as(Some(Path::new("/nowhere")), Pixels::Drawn);
    save(&mut w, "start_failed");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bare");
    testing::write_bare_run(&path).unwrap();
    let mut w = open_as(Some(&path), Pixels::Drawn);
    save(&mut w, "bare");
    does(&mut w, Command::Show(View::Features));
    save(&mut w, "bare_features");
    let start = Start { run: Some(run_dir().to_owned()), theme: ThemeChoice::Dark, ..Start::default() };
    let mut w = harness(start, vec2(760.0, 560.0), Pixels::Drawn).unwrap();
    for v in View::ALL {
        does(&mut w, Command::Show(v));
        does(&mut w, Command::SelectFeature(7));
        does(&mut w, Command::SelectToken(3));
        save(&mut w, &format!("small_{v}"));
    }
}
#[test]
fn frames() {
    let mut w = open(Some(run_dir()));
    for v in View::ALL {
        does(&mut w, Command::Show(v));
        does(&mut w, Command::SelectFeature(7));
        does(&mut w, Command::OpenDocument { doc: 9, token: Some(5) });
        does(&mut w, Command::Show(v));
        let t = std::time::Instant::now();
        for _ in 0..100 {
            w.step();
        }
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open("/tmp/frames.txt")
            .and_then(|mut f| {
                use std::io::Write;
                writeln!(f, "{v}: {:?} per step with accesskit", t.elapsed() / 100)
            })
            .unwrap();
    }
}
