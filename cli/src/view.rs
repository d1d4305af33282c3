//! `polariscope view`: the window, or a picture of it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use viewer::{Renderer, ShotOptions, ThemeChoice, ViewOptions};

use crate::{location, output};

/// Opens a run in the desktop viewer, or draws a picture of it
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  polariscope view runs/news\n  \
                        polariscope view runs/news --headless --shot news.png --link 'polariscope://news?view=feature&feature=7'")]
pub(crate) struct View {
    /// The run: a folder, or its URL in an object store [default: choose one in the window]
    #[arg(required_if_eq("headless", "true"))]
    run: Option<PathBuf>,

    /// A link to begin with, as the viewer copies it
    #[arg(long, value_name = "LINK")]
    link: Option<String>,

    /// Colors: `dark`, `light`, `paper`, or `system`
    #[arg(long, value_name = "NAME", default_value = "system", value_parser = theme)]
    theme: ThemeChoice,

    /// What draws the window: `wgpu`, `glow`, or `auto`
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = renderer, conflicts_with = "headless")]
    renderer: Renderer,

    /// Whose labels, ratings and notes are added to the run [default: the name of the user]
    #[arg(long, value_name = "NAME", conflicts_with = "headless")]
    author: Option<String>,

    /// Draw a picture without a screen instead of opening a window
    #[arg(long, requires = "shot")]
    headless: bool,

    /// The PNG to write
    #[arg(long, value_name = "FILE", requires = "headless")]
    shot: Option<PathBuf>,

    /// Size of the picture
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "1440x900", value_parser = size)]
    size: (u32, u32),
}

fn theme(name: &str) -> Result<ThemeChoice, String> {
    name.parse().map_err(|err: viewer::Error| err.to_string())
}

fn renderer(name: &str) -> Result<Renderer, String> {
    name.parse().map_err(|err: viewer::Error| err.to_string())
}

fn size(text: &str) -> Result<(u32, u32), String> {
    text.split_once('x')
        .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)))
        .ok_or_else(|| "expected a size like `1440x900`".to_owned())
}

impl View {
    pub(crate) fn run(self) -> Result<()> {
        let (Some(run), Some(out)) = (&self.run, &self.shot) else {
            return Ok(viewer::open(
                self.run,
                ViewOptions {
                    link: self.link,
                    theme: self.theme,
                    renderer: self.renderer,
                    stores: location::stores()?,
                    author: self.author.or_else(user),
                    session: session_file(),
                },
            )?);
        };
        let options = ShotOptions {
            link: self.link,
            theme: self.theme,
            width: self.size.0,
            height: self.size.1,
            out: out.clone(),
            stores: location::stores()?,
        };
        viewer::shot(run, &options)?;
        output::text(&options.out.display().to_string())
    }
}

/// The name of the user, as the system has it.
fn user() -> Option<String> {
    ["USER", "USERNAME"].into_iter().find_map(|name| std::env::var(name).ok()).filter(|name| !name.is_empty())
}

/// Where the viewer keeps what was looked at.
fn session_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = folder("XDG_STATE_HOME")
        .or_else(|| folder("LOCALAPPDATA"))
        .or_else(|| Some(folder("HOME")?.join(".local").join("state")))?;
    Some(state.join("polariscope").join("session.json"))
}

/// Whether there is a screen to open a window on.
pub(crate) fn has_display() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !cfg!(target_os = "linux") || set("DISPLAY") || set("WAYLAND_DISPLAY")
}

/// The link to a feature of a run.
pub(crate) fn feature_link(run: &Path, table: &str, feature: u32) -> String {
    let name = run.file_name().unwrap_or_default().to_string_lossy();
    format!("polariscope://{name}?view=feature&table={table}&feature={feature}")
}
