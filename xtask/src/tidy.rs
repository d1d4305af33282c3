//! Does the house keep its rules: who may use what, what a README must name, what no file may contain?

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use fs_err as fs;
use serde_json::Value;

use crate::{place, process};

/// Every crate of the workspace and which of ours it may use.
const CRATES: &[(&str, &[&str])] = &[
    ("data", &[]),
    ("engine", &["data"]),
    ("scope", &["engine", "data"]),
    ("viewer", &["data"]),
    ("cli", &["data", "engine", "scope", "viewer"]),
    ("tests", &["cli", "data", "engine", "scope", "viewer"]),
    ("xtask", &[]),
];

/// Libraries that only some crates may name. A trailing `*` stands for any ending.
const RESERVED: &[(&str, &[&str])] = &[
    ("tch", &["engine", "scope"]),
    ("torch-sys", &[]),
    ("arrow*", &["data"]),
    ("parquet*", &["data"]),
    ("polars*", &["data"]),
    ("sqlparser", &["data"]),
    ("object_store", &["data"]),
    ("tokio", &["data"]),
    ("eframe", &["viewer", "tests"]),
    ("egui*", &["viewer", "tests"]),
    ("clap*", &["cli"]),
];

/// What no file may contain, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("#[allow(", "use #[expect(…, reason = \"…\")]"),
    ("#![allow(", "use #![expect(…, reason = \"…\")]"),
    ("todo!(", "finish it or leave it out"),
    ("unimplemented!(", "finish it or leave it out"),
    ("dbg!(", "left over from debugging"),
    ("#[ignore", "a test runs or does not exist"),
    ("#[should_panic", "bad input is an error, not a panic"),
    ("FIXME", "fix it or open an issue"),
    ("<<<<<<<", "a conflict that was not resolved"),
];

/// Longest source file.
const MAX_LINES: usize = 800;

/// Longest README.
const MAX_README: usize = 200;

/// All rules; every breach is named before it fails.
pub(crate) fn tidy() -> Result<()> {
    let mut breaches = edges(&metadata()?)?;
    let files = files(place::root())?;
    for file in &files {
        let Ok(text) = fs::read_to_string(file) else { continue };
        let name = file.strip_prefix(place::root()).unwrap_or(file).to_string_lossy().replace('\\', "/");
        breaches.extend(source_rules(&name, &text));
    }
    let readme = fs::read_to_string(place::root().join("README.md"))?;
    breaches.extend(readme_rules(&readme, |path| place::root().join(path).exists()));
    for (file, wanted) in [("Cargo.lock", true), ("LICENSE-MIT", true), ("LICENSE-APACHE", true)] {
        if place::root().join(file).exists() != wanted {
            breaches.push(format!("`{file}` is missing"));
        }
    }
    if place::root().join("rust-toolchain.toml").exists() {
        breaches.push("`rust-toolchain.toml` would fetch another toolchain".into());
    }
    if !breaches.is_empty() {
        bail!("tidy found {}:\n  {}", breaches.len(), breaches.join("\n  "));
    }
    eprintln!("tidy: {} files in order", files.len());
    Ok(())
}

fn metadata() -> Result<Value> {
    let mut cargo = process::plain_cargo();
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    Ok(serde_json::from_str(&process::output(&mut cargo)?)?)
}

/// Breaches of the two tables, given what `cargo metadata` says.
fn edges(metadata: &Value) -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    let packages = metadata["packages"].as_array().context("no packages in `cargo metadata`")?;
    for package in packages {
        let name = package["name"].as_str().context("a package without a name")?;
        let Some((_, may_use)) = CRATES.iter().find(|(crate_name, _)| *crate_name == name) else {
            breaches.push(format!("crate `{name}` is not in the table of `xtask/src/tidy.rs`"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().context("a package without dependencies")?;
        for dependency in dependencies.iter().filter_map(|d| d["name"].as_str()) {
            let ours = CRATES.iter().any(|(crate_name, _)| *crate_name == dependency);
            if ours && !may_use.contains(&dependency) {
                breaches.push(format!("`{name}` may not use `{dependency}`"));
            }
            let reserved = RESERVED.iter().find(|(pattern, _)| matches(pattern, dependency));
            if let Some((_, owners)) = reserved
                && !owners.contains(&name)
            {
                breaches.push(format!("`{name}` may not name `{dependency}`: only {} may", owners.join(", ")));
            }
        }
    }
    for (name, _) in CRATES {
        if !packages.iter().any(|p| p["name"] == *name) {
            breaches.push(format!("crate `{name}` of the table is not in the workspace"));
        }
    }
    Ok(breaches)
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |stem| name.starts_with(stem))
}

/// Rules for one text file, named relative to the root with `/`.
fn source_rules(name: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    // This file spells out what is forbidden.
    if name != "xtask/src/tidy.rs" {
        for (index, line) in text.lines().enumerate() {
            for (pattern, why) in FORBIDDEN {
                if line.contains(pattern) {
                    breaches.push(format!("{name}:{}: `{pattern}`: {why}", index + 1));
                }
            }
        }
    }
    if Path::new(name).extension().is_some_and(|ending| ending == "rs") {
        // The name of a unit-test file says everything.
        if !text.starts_with("//!") && !name.ends_with("/tests.rs") {
            breaches.push(format!("{name}: begin with `//!` and the question that the file answers"));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            breaches.push(format!("{name}: expected at most {MAX_LINES} lines, found {lines}"));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        breaches.push(format!("{name}: no newline at the end"));
    }
    breaches
}

/// The README is short, its code map is whole, and the paths that it names exist.
fn readme_rules(text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut breaches = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_README {
        breaches.push(format!("README.md: expected at most {MAX_README} lines, found {lines}"));
    }
    for (name, _) in CRATES {
        if !text.lines().any(|line| line.starts_with(&format!("| [`{name}`]({name})"))) {
            breaches.push(format!("README.md: no row for `{name}` in the code map"));
        }
    }
    let named = text.split('`').skip(1).step_by(2).filter(|code| is_path(code));
    breaches
        .extend(named.filter(|path| !exists(path)).map(|path| format!("README.md names `{path}`, which is not there")));
    breaches
}

/// Whether a word in backticks names a file of the checkout.
fn is_path(code: &str) -> bool {
    let ours = CRATES.iter().any(|(name, _)| code.starts_with(&format!("{name}/")));
    ours && !code.contains([' ', '*', '<', '{', '…'])
}

/// Text files of the checkout, without what is built, downloaded or recorded.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            let name = name.to_string_lossy();
            if kind.is_dir() {
                let skipped = matches!(name.as_ref(), "target" | "runs" | "snapshots" | ".git" | ".libtorch");
                if !skipped {
                    folders.push(entry.path());
                }
            } else if kind.is_file() && is_text(&name) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_text(name: &str) -> bool {
    [".rs", ".md", ".toml", ".py"].iter().any(|ending| name.ends_with(ending)) || name == "run"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_crates_keep_to_their_edges() {
        assert_eq!(edges(&metadata().unwrap()).unwrap(), Vec::<String>::new());
    }

    fn workspace(name: &str, dependencies: &[&str]) -> Value {
        let list = |d: &[&str]| d.iter().map(|d| json!({ "name": d })).collect::<Vec<_>>();
        let packages = CRATES.iter().map(|(n, _)| {
            let dependencies = if *n == name { list(dependencies) } else { Vec::new() };
            json!({ "name": n, "dependencies": dependencies })
        });
        json!({ "packages": packages.collect::<Vec<_>>() })
    }

    #[test]
    fn forbidden_edges_are_found() {
        let breaches = |name, dependencies: &[&str]| edges(&workspace(name, dependencies)).unwrap();
        assert_eq!(breaches("viewer", &["data", "egui_plot"]), Vec::<String>::new());
        assert_eq!(breaches("viewer", &["engine"]), ["`viewer` may not use `engine`"]);
        assert_eq!(breaches("cli", &["tch"]), ["`cli` may not name `tch`: only engine, scope may"]);
        assert_eq!(breaches("scope", &["arrow-array"]), ["`scope` may not name `arrow-array`: only data may"]);
    }

    #[test]
    fn sources_are_judged_line_by_line() {
        assert_eq!(source_rules("data/src/a.rs", "//! What?\nfn a() {}\n"), Vec::<String>::new());
        let found = source_rules("data/src/a.rs", "fn a() { todo!() }");
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("data/src/a.rs:1: `todo!(`"));
    }

    #[test]
    fn readme_must_name_what_exists() {
        let rows: String = CRATES.iter().fold(String::new(), |rows, (n, _)| rows + &format!("| [`{n}`]({n}) | x |\n"));
        assert_eq!(readme_rules(&rows, |_| false), Vec::<String>::new());
        let found = readme_rules(&format!("{rows}See `data/src/gone.rs`.\n"), |_| false);
        assert_eq!(found, ["README.md names `data/src/gone.rs`, which is not there"]);
        assert_eq!(readme_rules("", |_| true).len(), CRATES.len());
    }
}
