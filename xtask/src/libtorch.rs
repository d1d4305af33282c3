//! Where does libtorch come from, and is the right one in `.libtorch`?
//!
//! `torch-sys` looks for headers and libraries in the folder that `LIBTORCH` names. The Python wheel of torch
//! holds both; for Linux it is a CUDA build, so what goes into `.libtorch` is the CPU library, its few needs, and
//! a one-line linker script named `libtorch.so` that asks for nothing but the CPU library.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use fs_err as fs;

use crate::place;
use crate::wheel::{self, Rule, Wheel};

/// The release that the pinned `tch` is written against; a test compares with `Cargo.lock`.
pub(crate) const VERSION: &str = "2.11.0";

/// What one kind of machine needs.
struct Platform {
    os: &'static str,
    arch: &'static str,
    /// Platform tags that pip accepts, newest first.
    pip: &'static [&'static str],
    wheels: &'static [Wheel],
    /// Libraries taken from `torch/lib` of the first wheel.
    libs: &'static [&'static str],
    /// Libraries taken from `nvidia/cu13/lib` of the wheel with that place in `wheels`.
    cuda_libs: &'static [(usize, &'static str)],
}

const PLATFORMS: &[Platform] = &[
    Platform {
        os: "linux",
        arch: "x86_64",
        pip: &["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"],
        wheels: &[
            Wheel {
                requirement: "torch==2.11.0",
                file: "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl",
                sha256: "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
                megabytes: 531,
            },
            Wheel {
                requirement: "nvidia-cuda-runtime==13.0.96",
                file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
                megabytes: 2,
            },
            Wheel {
                requirement: "nvidia-cuda-cupti==13.0.85",
                file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
                sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
                megabytes: 11,
            },
        ],
        libs: &["libtorch_cpu.so", "libc10.so", "libgomp.so.1"],
        cuda_libs: &[(1, "libcudart.so.13"), (2, "libcupti.so.13")],
    },
    Platform {
        os: "linux",
        arch: "aarch64",
        pip: &["manylinux_2_28_aarch64", "manylinux_2_25_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"],
        wheels: &[
            Wheel {
                requirement: "torch==2.11.0",
                file: "torch-2.11.0-cp312-cp312-manylinux_2_28_aarch64.whl",
                sha256: "f99924682ef0aa6a4ab3b1b76f40dc6e273fca09f367d15a524266db100a723f",
                megabytes: 420,
            },
            Wheel {
                requirement: "nvidia-cuda-runtime==13.0.96",
                file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
                sha256: "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
                megabytes: 2,
            },
            Wheel {
                requirement: "nvidia-cuda-cupti==13.0.85",
                file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_aarch64.whl",
                sha256: "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
                megabytes: 11,
            },
        ],
        libs: &[
            "libtorch_cpu.so",
            "libc10.so",
            "libgomp.so.1",
            "libgfortran.so.5",
            "libarm_compute.so",
            "libarm_compute_graph.so",
            "libnvpl_blas_core.so.0",
            "libnvpl_blas_lp64_gomp.so.0",
            "libnvpl_lapack_core.so.0",
            "libnvpl_lapack_lp64_gomp.so.0",
        ],
        cuda_libs: &[(1, "libcudart.so.13"), (2, "libcupti.so.13")],
    },
    Platform {
        os: "macos",
        arch: "aarch64",
        pip: &["macosx_14_0_arm64", "macosx_11_0_arm64"],
        wheels: &[Wheel {
            requirement: "torch==2.11.0",
            file: "torch-2.11.0-cp312-cp312-macosx_11_0_arm64.whl",
            sha256: "4b5866312ee6e52ea625cd211dcb97d6a2cdc1131a5f15cc0d87eec948f6dd34",
            megabytes: 81,
        }],
        libs: &["libtorch_cpu.dylib", "libtorch.dylib", "libc10.dylib", "libomp.dylib"],
        cuda_libs: &[],
    },
];

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// A libtorch or Python torch folder to use instead of a download.
    pub(crate) from: Option<PathBuf>,
    /// Whether system packages may be installed.
    pub(crate) packages: bool,
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--from" => {
                    options.from = Some(args.next().context("`--from` needs a folder")?.into());
                }
                "--no-packages" => options.packages = false,
                other => bail!("`setup` has no option `{other}`\nhint: `cargo xtask` lists the options"),
            }
        }
        Ok(options)
    }
}

impl Default for Options {
    /// What `LIBTORCH` says, unless it is only the place that `.cargo/config.toml` gives it.
    fn default() -> Self {
        let from = std::env::var_os("LIBTORCH")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
            .filter(|dir| *dir != place::dot_libtorch() && !is_same(dir, &place::dot_libtorch()));
        Self { from, packages: true }
    }
}

/// Makes `.libtorch` unless it is there already.
pub(crate) fn setup(options: &Options) -> Result<()> {
    let dot = place::dot_libtorch();
    if options.from.is_none() && is_ready(&dot) {
        let real = dot.canonicalize().unwrap_or_else(|_| dot.clone());
        eprintln!("libtorch {VERSION} is in place: `{}`", real.display());
        return Ok(());
    }
    let platform = platform()?;
    let made = match &options.from {
        Some(dir) => adopt(dir, platform)?,
        None => bring(platform)?,
    };
    link(&made, &dot)?;
    if !is_ready(&dot) {
        bail!("`{}` does not hold what is needed after setting it up", dot.display());
    }
    eprintln!("`.libtorch` now leads to `{}`", made.display());
    Ok(())
}

/// Sets up when that has not been done; quiet otherwise.
pub(crate) fn ensure() -> Result<()> {
    if is_ready(&place::dot_libtorch()) {
        return Ok(());
    }
    eprintln!("libtorch {VERSION} is not here yet: setting up first (as `cargo xtask setup` does)");
    setup(&Options::default())?;
    crate::window::setup();
    Ok(())
}

/// Whether headers and libraries of the right version are there.
fn is_ready(dir: &Path) -> bool {
    let library = if cfg!(target_os = "macos") { "libtorch_cpu.dylib" } else { "libtorch_cpu.so" };
    dir.join("lib").join(library).is_file() && header_version(dir).is_some_and(|v| v == VERSION)
}

/// The version that the headers state, whatever the folder came from.
fn header_version(dir: &Path) -> Option<String> {
    let text = fs::read_to_string(dir.join("include/torch/headeronly/version.h")).ok()?;
    let number = |name: &str| {
        text.lines().find_map(|line| {
            let rest = line.strip_prefix("#define ")?.strip_prefix(name)?;
            rest.trim().parse::<u32>().ok()
        })
    };
    let parts = ["TORCH_VERSION_MAJOR ", "TORCH_VERSION_MINOR ", "TORCH_VERSION_PATCH "].map(number);
    let [Some(major), Some(minor), Some(patch)] = parts else { return None };
    Some(format!("{major}.{minor}.{patch}"))
}

fn platform() -> Result<&'static Platform> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    PLATFORMS.iter().find(|p| p.os == os && p.arch == arch).with_context(|| {
        format!(
            "no libtorch is known for `{os}` on `{arch}`\n\
             hint: build or find libtorch {VERSION} and name it: cargo xtask setup --from DIR"
        )
    })
}

/// Downloads the wheels into the cache and unpacks what is needed there, so that another checkout finds it.
fn bring(platform: &Platform) -> Result<PathBuf> {
    let cache = place::cache()?;
    let dest = cache.join(format!("libtorch-{VERSION}-{}-{}", platform.os, platform.arch));
    if is_ready(&dest) {
        return Ok(dest);
    }
    eprintln!(
        "libtorch {VERSION}: about {} MB to download, 500 MB on disk in `{}`",
        platform.wheels.iter().map(|w| w.megabytes).sum::<u32>(),
        dest.display()
    );
    let downloads = cache.join("downloads");
    wheel::fetch(platform.wheels, platform.pip, &downloads)?;

    // Unpacked beside its final place and renamed, so that a half-unpacked folder is never taken for a whole one.
    let partial = cache.join(format!("libtorch-{VERSION}.partial-{}", std::process::id()));
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    eprintln!("unpacking headers and {} libraries", platform.libs.len() + platform.cuda_libs.len());
    for (index, wheel) in platform.wheels.iter().enumerate() {
        wheel::unpack(&downloads.join(wheel.file), &partial, &rules(platform, index))?;
    }
    finish(&partial, platform)?;
    if dest.exists() {
        fs::remove_dir_all(&dest)?;
    }
    fs::rename(&partial, &dest)?;
    for wheel in platform.wheels {
        let _ = fs::remove_file(downloads.join(wheel.file));
    }
    Ok(dest)
}

/// What is unpacked from the wheel with that place in the platform's list.
fn rules(platform: &Platform, wheel: usize) -> Vec<Rule> {
    let rule = |from: String, to: String| Rule { from, to };
    let cuda = platform.cuda_libs.iter().filter(|(index, _)| *index == wheel);
    let mut rules: Vec<Rule> =
        cuda.map(|(_, lib)| rule(format!("nvidia/cu13/lib/{lib}"), format!("lib/{lib}"))).collect();
    if wheel == 0 {
        rules.push(rule("torch/include/".into(), "include/".into()));
        rules.push(rule(format!("torch-{VERSION}.dist-info/"), "torch.dist-info/".into()));
        rules.extend(platform.libs.iter().map(|lib| rule(format!("torch/lib/{lib}"), format!("lib/{lib}"))));
    }
    rules
}

/// Uses a libtorch that is there already: a plain one, or `site-packages/torch` of a Python.
fn adopt(dir: &Path, platform: &Platform) -> Result<PathBuf> {
    let dir = dir.canonicalize().with_context(|| format!("no folder `{}`", dir.display()))?;
    match header_version(&dir) {
        Some(found) if found == VERSION => {}
        Some(found) => bail!("expected libtorch {VERSION}, found {found} in `{}`", dir.display()),
        None => bail!(
            "expected `include/torch/headeronly/version.h`, found no such file in `{}`\n\
             hint: name a libtorch folder, or `torch` in a Python's site-packages",
            dir.display()
        ),
    }
    let lib = dir.join("lib");
    if platform.os != "linux" || (is_ready(&dir) && !lib.join("libtorch_cuda.so").exists()) {
        return Ok(dir);
    }
    // A CUDA build: torch-sys would link libtorch_cuda.so where it finds it, so it gets a folder without.
    let view = place::cache()?.join(format!("libtorch-{VERSION}-adopted"));
    if view.exists() {
        fs::remove_dir_all(&view)?;
    }
    fs::create_dir_all(view.join("lib"))?;
    symlink(&dir.join("include"), &view.join("include"))?;
    for name in platform.libs {
        let source = lib.join(name);
        if source.exists() {
            symlink(&source, &view.join("lib").join(name))?;
        }
    }
    let nvidia = dir.parent().unwrap_or(&dir).join("nvidia/cu13/lib");
    for (_, name) in platform.cuda_libs {
        let found = [nvidia.join(name), lib.join(name)].into_iter().find(|path| path.exists());
        if let Some(source) = found {
            symlink(&source, &view.join("lib").join(name))?;
        }
    }
    finish(&view, platform)?;
    Ok(view)
}

/// The linker script and the version file that `torch-sys` reads.
fn finish(dir: &Path, platform: &Platform) -> Result<()> {
    if platform.os == "linux" {
        fs::write(dir.join("lib/libtorch.so"), "INPUT(-ltorch_cpu)\n")?;
    }
    fs::write(dir.join("build-version"), format!("{VERSION}\n"))?;
    Ok(())
}

/// Points `.libtorch` at the folder. A folder of that name that a person made is left alone.
fn link(made: &Path, dot: &Path) -> Result<()> {
    if is_same(made, dot) {
        return Ok(());
    }
    match fs::symlink_metadata(dot) {
        Ok(meta) if meta.is_symlink() => fs::remove_file(dot)?,
        Ok(_) => bail!(
            "`{}` is there, is not a link, and does not hold libtorch {VERSION}\nhint: move it away",
            dot.display()
        ),
        Err(_) => {}
    }
    symlink(made, dot)
}

fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> Result<()> {
    Ok(fs::os::unix::fs::symlink(to, at)?)
}

#[cfg(not(unix))]
fn symlink(to: &Path, at: &Path) -> Result<()> {
    bail!("cannot link `{}` to `{}`\nhint: use Linux or macOS, or WSL on Windows", at.display(), to.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_version_goes_with_torch_sys() {
        // torch-sys 0.24.0 is written against libtorch 2.11.0; raise both together.
        let lock = fs::read_to_string(place::root().join("Cargo.lock")).unwrap();
        let at = lock.find("name = \"torch-sys\"").unwrap();
        assert!(lock[at..].lines().nth(1).unwrap().contains("\"0.24.0\""));
        for platform in PLATFORMS {
            assert_eq!(platform.wheels[0].requirement, format!("torch=={VERSION}"));
        }
    }

    fn fake_torch(dir: &Path, version: [u32; 3], cuda: bool) {
        fs::create_dir_all(dir.join("include/torch/headeronly")).unwrap();
        fs::create_dir_all(dir.join("lib")).unwrap();
        let [major, minor, patch] = version;
        let header = format!(
            "#pragma once\n#define TORCH_VERSION_MAJOR {major}\n#define TORCH_VERSION_MINOR {minor}\n\
             #define TORCH_VERSION_PATCH {patch}\n#define TORCH_VERSION \\\n"
        );
        fs::write(dir.join("include/torch/headeronly/version.h"), header).unwrap();
        fs::write(dir.join("lib/libtorch_cpu.so"), "").unwrap();
        if cuda {
            fs::write(dir.join("lib/libtorch_cuda.so"), "").unwrap();
        }
    }

    #[test]
    fn version_is_read_from_the_headers() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(header_version(dir.path()), None);
        fake_torch(dir.path(), [2, 11, 0], false);
        assert_eq!(header_version(dir.path()).as_deref(), Some("2.11.0"));
    }

    #[test]
    fn another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fake_torch(dir.path(), [2, 9, 1], false);
        let err = adopt(dir.path(), &PLATFORMS[0]).unwrap_err().to_string();
        assert!(err.contains("expected libtorch 2.11.0, found 2.9.1"), "{err}");
    }

    #[test]
    fn a_plain_libtorch_is_used_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        fake_torch(dir.path(), [2, 11, 0], false);
        if cfg!(target_os = "linux") {
            assert_eq!(adopt(dir.path(), &PLATFORMS[0]).unwrap(), dir.path().canonicalize().unwrap());
        }
    }

    #[test]
    fn a_folder_made_by_a_person_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (made, dot) = (dir.path().join("made"), dir.path().join("dot"));
        fs::create_dir_all(&made).unwrap();
        fs::create_dir_all(dot.join("lib")).unwrap();
        assert!(link(&made, &dot).is_err());
        assert!(dot.join("lib").exists());
    }

    #[test]
    fn options_are_read() {
        let args = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let options = Options::parse(&args(&["--from", "/x", "--no-packages"])).unwrap();
        assert_eq!(options, Options { from: Some("/x".into()), packages: false });
        assert!(Options::parse(&args(&["--cuda"])).is_err());
        assert!(Options::parse(&args(&["--from"])).is_err());
    }
}
