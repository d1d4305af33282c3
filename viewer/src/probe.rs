//! How long does the window take, and how much does it hold? For measuring from outside, without a screen.

use std::path::Path;

use egui_kittest::Harness;

use crate::app::{App, Start};
use crate::command::Command;
use crate::error::Result;
use crate::window::{Pixels, harness};

/// A window that is drawn pass by pass, without pixels.
pub struct Probe {
    window: Harness<'static, App>,
}

impl Probe {
    /// A window of 1,440 × 900 points that begins to open a run, with as many threads as a real one.
    pub fn open(run: &Path) -> Result<Self> {
        let start = Start { run: Some(run.to_owned()), threads: crate::loader::THREADS, ..Start::default() };
        Ok(Self { window: harness(start, egui::vec2(1_440.0, 900.0), Pixels::Never)? })
    }

    /// Goes where a link says.
    pub fn follow(&mut self, link: &str) {
        self.window.state_mut().apply(Command::FollowLink(link.to_owned()));
    }

    /// Draws once, with whatever has been loaded.
    pub fn pass(&mut self) {
        self.window.step();
    }

    /// Whether nothing is being loaded.
    pub fn is_settled(&self) -> bool {
        self.window.state().is_settled()
    }
}
