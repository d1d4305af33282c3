//! Is nothing lost in the long run? Kills every command many times, lets the disk fail below it, and fuzzes every reader.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{libtorch, place, process};

/// Our crates whose branches libFuzzer follows.
const INSTRUMENTED: [&str; 4] = ["data", "engine", "scope", "fuzz"];

/// What libFuzzer needs of the compiler: counters of edges, their addresses, and what is compared.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Set where this program stands in for the compiler.
const STANDS_IN: &str = "POLARISCOPE_COVERAGE";

/// Builds the program and what disturbs it; `args` go to `tests/examples/soak.rs`.
pub(crate) fn soak(args: &[String]) -> Result<()> {
    libtorch::ensure()?;
    let targets = ["--bin", "polariscope", "--example", "faults", "--example", "soak"];
    process::run(process::cargo().args(["build", "--workspace"]).args(targets))?;
    // Only our own crates are built anew: what they depend on is as it is everywhere.
    let mut fuzz = process::cargo();
    fuzz.args(["build", "--workspace", "--features", "tests/fuzz", "--example", "fuzz"]);
    fuzz.env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?).env(STANDS_IN, "1");
    process::run(&mut fuzz)?;
    let mut soak = Command::new(place::target().join("debug/examples/soak"));
    process::with_libraries(&mut soak);
    process::run(soak.arg("--out").arg(place::target().join("soak")).args(args))
}

/// The compiler with what libFuzzer needs, where cargo starts this program in its place.
pub(crate) fn compiler(args: &[String]) -> Option<ExitCode> {
    std::env::var_os(STANDS_IN)?;
    let (rustc, args) = args.split_first()?;
    let mut compiler = Command::new(rustc);
    compiler.args(args);
    let named = args.windows(2).any(|pair| pair[0] == "--crate-name" && INSTRUMENTED.contains(&pair[1].as_str()));
    if named {
        compiler.args(COVERAGE);
    }
    let code = compiler.status().ok().and_then(|status| status.code());
    Some(code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
