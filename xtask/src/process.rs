//! How is another program started, and what does cargo need to know of libtorch?

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::place;

/// Runs to the end with this terminal's input and output; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    eprintln!("$ {shown}");
    let status = command.status().with_context(|| format!("could not start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Runs quietly and gives back standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("could not start `{shown}`"))?;
    if !out.status.success() {
        bail!("`{shown}` failed ({})\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    String::from_utf8(out.stdout).with_context(|| format!("`{shown}` printed something that is not UTF-8"))
}

/// A cargo that finds libtorch: at build time through `LIBTORCH`, at run time through the library path,
/// which the run path in `.cargo/config.toml` covers only for a target folder inside the checkout.
pub(crate) fn cargo() -> Command {
    let mut command = plain_cargo();
    with_libraries(&mut command);
    // Several checkouts that share a target folder should name libtorch alike, or each would compile
    // torch-sys again: the link's destination is the same for all of them.
    if std::env::var_os("POLARISCOPE_SHARED_TARGET").is_some()
        && std::env::var_os("LIBTORCH").is_none()
        && let Ok(real) = place::dot_libtorch().canonicalize()
    {
        command.env("LIBTORCH", real);
    }
    command
}

/// Lets the program find the libraries of libtorch, and its threads share the machine.
pub(crate) fn with_libraries(command: &mut Command) {
    let name = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
    let lib = place::dot_libtorch().join("lib");
    let path = prepend(&lib, std::env::var_os(name));
    command.env(name, path);
    // Threads of libtorch that spin long while they wait take the time of tests that run beside them.
    if std::env::var_os("OMP_WAIT_POLICY").is_none() && std::env::var_os("GOMP_SPINCOUNT").is_none() {
        command.env("GOMP_SPINCOUNT", "1000");
    }
    // Without it, software graphics complain once for every driver that is looked for.
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    }
}

/// A machine without a way out should not wait for minutes to learn that from pip.
pub(crate) fn impatient(command: &mut Command) {
    for (name, value) in [("PIP_RETRIES", "1"), ("PIP_DEFAULT_TIMEOUT", "30")] {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
}

/// The cargo that started this program, in the checkout.
pub(crate) fn plain_cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(place::root());
    // `cargo run` describes this program to it, and build scripts that look at such variables would run again.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name.to_string_lossy().starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

fn prepend(dir: &Path, rest: Option<OsString>) -> OsString {
    let mut path = dir.as_os_str().to_owned();
    if let Some(rest) = rest.filter(|r| !r.is_empty()) {
        path.push(":");
        path.push(rest);
    }
    path
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    command.get_args().fold(name, |line, arg| {
        let arg = arg.to_string_lossy();
        // A script handed over on the command line would bury the rest.
        if arg.contains('\n') { line + " …" } else { line + " " + &arg }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_path_keeps_what_was_there() {
        assert_eq!(prepend(Path::new("/a"), Some("/b:/c".into())), OsString::from("/a:/b:/c"));
        assert_eq!(prepend(Path::new("/a"), Some("".into())), OsString::from("/a"));
        assert_eq!(prepend(Path::new("/a"), None), OsString::from("/a"));
    }

    #[test]
    fn failure_names_the_command() {
        let err = run(Command::new("false").arg("x")).unwrap_err();
        assert!(err.to_string().contains("`false x` failed"), "{err}");
    }
}
