//! What must stand in the environment before the libraries are loaded, which is before `main`?

use std::ffi::OsString;

/// Starts the program again, in the same process, with what is missing in its environment. Does nothing where nothing is.
///
/// `GOMP_SPINCOUNT`: by default libtorch's threads spin long while they wait for each other, each on a core of its own.
/// With other programs on the machine, or with our own threads that read and write beside them, they take the time that
/// they wait for: on two busy cores, recording took twice as long, and a tiny model ten times as long. Not spinning at all
/// costs a tenth of the speed on an idle machine; a short spin costs neither.
///
/// `XDG_RUNTIME_DIR`: without it, software graphics complain once for every driver that is looked for.
pub fn prepare_environment() {
    let missing = missing(|name| std::env::var_os(name).is_some());
    if !missing.is_empty() {
        again(missing);
    }
}

/// What is to be set, given what is.
fn missing(is_set: impl Fn(&str) -> bool) -> Vec<(&'static str, OsString)> {
    let mut missing: Vec<(&'static str, OsString)> = Vec::new();
    if !is_set("OMP_WAIT_POLICY") && !is_set("GOMP_SPINCOUNT") {
        missing.push(("GOMP_SPINCOUNT", "1000".into()));
    }
    if !is_set("XDG_RUNTIME_DIR") {
        missing.push(("XDG_RUNTIME_DIR", std::env::temp_dir().into()));
    }
    missing
}

#[cfg(target_os = "linux")]
fn again(environment: Vec<(&'static str, OsString)>) {
    use std::os::unix::process::CommandExt as _;

    let Ok(program) = std::env::current_exe() else { return };
    let mut args = std::env::args_os();
    let mut again = std::process::Command::new(program);
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    // Comes back only if it failed, and then the program goes on as it is.
    let err = again.args(args).envs(environment).exec();
    tracing::debug!("could not start again: {err}");
}

#[cfg(not(target_os = "linux"))]
fn again(_environment: Vec<(&'static str, OsString)>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_chosen_stays() {
        let names =
            |set: &[&str]| missing(|name| set.contains(&name)).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&[]), ["GOMP_SPINCOUNT", "XDG_RUNTIME_DIR"]);
        assert_eq!(names(&["OMP_WAIT_POLICY"]), ["XDG_RUNTIME_DIR"]);
        // What has been set once is not missing the second time, so it cannot go on for ever.
        assert!(names(&["GOMP_SPINCOUNT", "XDG_RUNTIME_DIR"]).is_empty());
    }
}
