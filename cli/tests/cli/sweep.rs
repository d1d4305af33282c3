//! Does a sweep say of each coder how it goes where nothing can be drawn?

use fs_err as fs;

use crate::support::{end, polariscope, small_run, text};

#[test]
fn lines_of_figures_where_standard_error_is_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let run = text(&small_run(dir.path()));
    let sweep = dir.path().join("sweep.toml");
    let settings =
        "hook_point = \"blocks.2.hook_resid_post\"\nd_sae = 64\nbatch_tokens = 256\nsteps = 20\nk = [4, 8]\n";
    fs::write(&sweep, settings).unwrap();
    let out = dir.path().join("saes");
    let ended =
        end(&mut polariscope(&["train", &run, "--sweep", &text(&sweep), "--out", &text(&out), "--threads", "1"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for name in ["batchtopk-k4", "batchtopk-k8"] {
        let lines: Vec<&str> =
            ended.stderr.lines().filter(|line| line.starts_with(&format!("{name}, step "))).collect();
        assert!(
            lines.first().is_some_and(|line| line.contains(" of 20: loss ") && line.contains("  L0 ")),
            "{ended:?}"
        );
        // The last figures are the result.
        assert!(
            ended.stdout.contains(&format!("{name}: loss ")) && out.join(name).join("cfg.json").is_file(),
            "{ended:?}"
        );
    }
}
