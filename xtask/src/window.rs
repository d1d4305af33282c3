//! Is there what a window and headless drawing need, and can it be installed?

use std::path::Path;
use std::process::Command;

use crate::process;

/// A need, how to see that it is met, and the Debian packages that meet it.
struct Need {
    what: &'static str,
    /// Libraries (in the linker's cache) or absolute path prefixes, any of which will do.
    any_of: &'static [&'static str],
    apt: &'static [&'static str],
}

const NEEDS: &[Need] = &[
    Need {
        what: "a Vulkan driver",
        any_of: &["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"],
        apt: &["mesa-vulkan-drivers"],
    },
    Need { what: "the Vulkan loader", any_of: &["libvulkan.so.1"], apt: &["libvulkan1"] },
    Need { what: "OpenGL", any_of: &["libGL.so.1"], apt: &["libgl1", "libgl1-mesa-dri"] },
    Need { what: "EGL", any_of: &["libEGL.so.1"], apt: &["libegl1", "libgles2"] },
    Need { what: "keyboard layouts under X11", any_of: &["libxkbcommon-x11.so.0"], apt: &["libxkbcommon-x11-0"] },
    Need { what: "cursors under X11", any_of: &["libXcursor.so.1"], apt: &["libxcursor1"] },
    Need { what: "pointers under X11", any_of: &["libXi.so.6"], apt: &["libxi6"] },
    Need { what: "screens under X11", any_of: &["libXrandr.so.2"], apt: &["libxrandr2"] },
];

const ELSEWHERE: &str = "Fedora: dnf install mesa-vulkan-drivers mesa-libGL mesa-libEGL libxkbcommon-x11; \
                         Arch: pacman -S vulkan-swrast mesa libxkbcommon-x11";

/// Looks, installs where it may, and otherwise says what to install. Never fails: everything but the window and
/// the image tests works without.
pub(crate) fn setup() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let libraries = process::output(Command::new("/sbin/ldconfig").arg("-p")).unwrap_or_default();
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !is_met(need, &libraries)).collect();
    if missing.is_empty() {
        eprintln!("window: everything is there");
        return;
    }
    let what: Vec<&str> = missing.iter().map(|need| need.what).collect();
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.apt).copied().collect();
    eprintln!("window: missing {}", what.join(", "));
    if Path::new("/usr/bin/apt-get").exists() && is_root() {
        if install(&packages) {
            return;
        }
        eprintln!("window: the packages could not be installed");
    }
    eprintln!(
        "window: the viewer and its image tests need them, everything else runs without\n\
         hint: Debian, Ubuntu: apt-get install {}; {ELSEWHERE}",
        packages.join(" ")
    );
}

fn is_met(need: &Need, libraries: &str) -> bool {
    need.any_of.iter().any(|probe| {
        if probe.starts_with('/') {
            // A folder of drivers counts when it holds one.
            Path::new(probe).read_dir().is_ok_and(|mut entries| entries.next().is_some())
        } else {
            libraries.lines().any(|line| line.split_whitespace().next() == Some(probe))
        }
    })
}

fn is_root() -> bool {
    process::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Package lists may be missing or stale on a fresh machine, so they are brought only when a first try fails.
fn install(packages: &[&str]) -> bool {
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        process::run(&mut command).map_err(|err| eprintln!("{err:#}")).is_ok()
    };
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(packages);
    apt(&args) || (apt(&["update", "-qq"]) && apt(&args))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_by_their_whole_name() {
        let need = |any_of| Need { what: "x", any_of, apt: &[] };
        let cache = "1200 libs found\n\tlibGL.so.1 (libc6,x86-64) => /usr/lib/libGL.so.1\n";
        assert!(is_met(&need(&["libGL.so.1"]), cache));
        assert!(!is_met(&need(&["libGL.so"]), cache));
        assert!(!is_met(&need(&["/nonexistent/icd.d"]), cache));
    }
}
