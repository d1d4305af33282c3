//! The desktop viewer of a run directory.
//!
//! Reads what `record`, `train` and `encode` wrote, through [`data`]; never loads libtorch.
//!
//! ```no_run
//! # fn main() -> Result<(), viewer::Error> {
//! viewer::open(Some("runs/demo".into()), viewer::ViewOptions::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! What holds here:
//! - Everything that a person can do is one variant of one `Command`; drawing code reads state and emits commands.
//! - The window never waits for the disk, and nothing that is done in a frame grows with the data.
//! - What goes wrong in a panel stays in that panel, with a next step.
//! - Colors and sizes are in `theme`, by meaning.

mod app;
mod command;
mod go;
mod layout;
mod link;
mod loader;
mod panel;
mod picture;
mod query;
mod session;
mod state;
mod theme;
mod widget;
mod window;

mod error;
pub mod probe;
pub mod testing;

#[cfg(test)]
mod tests;

pub use error::{Error, Result};
pub use theme::ThemeChoice;
pub use window::{Renderer, ShotOptions, ViewOptions, has_adapter, open, shot};
