//! The viewer alone, for a laptop without libtorch.
//!
//! `polariscope-viewer [RUN] [--link LINK] [--theme dark|light|paper|system] [--renderer auto|wgpu|glow] [--author NAME]`,
//! with `--shot FILE` to draw a picture instead of opening a window.

use std::path::PathBuf;
use std::process::ExitCode;

use viewer::{ShotOptions, ViewOptions};

const USAGE: &str = "usage: polariscope-viewer [RUN] [--link LINK] [--theme dark|light|paper|system] \
[--renderer auto|wgpu|glow] [--author NAME] [--shot FILE [--size 1440x900]]";

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "this is a program, not the library")]
fn main() -> ExitCode {
    match run() {
        Ok(Some(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(1)
        }
    }
}

/// Gives what should be printed.
fn run() -> Result<Option<String>, String> {
    let mut run = None;
    let mut view = ViewOptions::default();
    let mut shot = None;
    let mut size = (ShotOptions::WIDTH, ShotOptions::HEIGHT);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("expected a value after `{arg}`\nhint: {USAGE}"));
        match arg.as_str() {
            "-h" | "--help" => return Ok(Some(USAGE.to_owned())),
            "-V" | "--version" => return Ok(Some(format!("polariscope-viewer {}", env!("CARGO_PKG_VERSION")))),
            "--link" => view.link = Some(value()?),
            "--theme" => view.theme = value()?.parse().map_err(|error: viewer::Error| error.to_string())?,
            "--author" => view.author = Some(value()?),
            "--renderer" => view.renderer = value()?.parse().map_err(|error: viewer::Error| error.to_string())?,
            "--shot" => shot = Some(PathBuf::from(value()?)),
            "--size" => size = parse_size(&value()?)?,
            option if option.starts_with('-') => return Err(format!("unknown option `{option}`\nhint: {USAGE}")),
            path if run.is_none() => run = Some(PathBuf::from(path)),
            extra => return Err(format!("expected one run, found also `{extra}`\nhint: {USAGE}")),
        }
    }
    match (shot, run) {
        (None, run) => viewer::open(run, view).map(|()| None).map_err(|error| error.to_string()),
        (Some(_), None) => Err(format!("expected a run to draw\nhint: {USAGE}")),
        (Some(out), Some(run)) => {
            let options = ShotOptions {
                link: view.link,
                theme: view.theme,
                width: size.0,
                height: size.1,
                ..ShotOptions::new(out)
            };
            viewer::shot(&run, &options).map_err(|error| error.to_string())?;
            Ok(Some(options.out.display().to_string()))
        }
    }
}

fn parse_size(text: &str) -> Result<(u32, u32), String> {
    text.split_once('x')
        .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)))
        .ok_or_else(|| format!("expected a size like `1440x900`, found `{text}`"))
}
