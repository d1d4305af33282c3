//! What can go wrong in the viewer, and what the person can do about it.

use std::path::PathBuf;

/// Everything that ends a window or a screenshot.
/// What goes wrong inside a panel stays there (see [`crate::loader`]) and is not one of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run directory cannot be read.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// There is no screen to open a window on.
    #[error(
        "no display to open a window on: {message}\nhint: draw without one with `polariscope view RUN --headless --shot FILE`"
    )]
    NoDisplay {
        /// What the window system said.
        message: String,
    },
    /// Neither Vulkan nor OpenGL offers an adapter, not even a software one.
    #[error(
        "no graphics adapter found\nhint: `cargo xtask setup` installs a software one, or install `mesa-vulkan-drivers`"
    )]
    NoAdapter,
    /// The window system failed in another way.
    #[error("the window could not be opened: {message}\nhint: try `--renderer glow`")]
    Window {
        /// What the window system said.
        message: String,
    },
    /// Drawing failed after an adapter was found.
    #[error("the picture could not be drawn: {message}\nhint: check the graphics driver with `vulkaninfo --summary`")]
    Draw {
        /// What the renderer said.
        message: String,
    },
    /// The picture cannot be written.
    #[error("{source}\nhint: choose a writable place for the picture, `{}`", path.display())]
    Write {
        /// Where it should have gone.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// The picture cannot be encoded.
    #[error("the picture could not be encoded: {source}\nhint: choose a smaller size for `{}`", path.display())]
    Encode {
        /// Where it should have gone.
        path: PathBuf,
        /// What the encoder said.
        source: image::ImageError,
    },
    /// A picture of no or of absurd size was asked for.
    #[error(
        "expected a size between 100 and {max} points, found {width} × {height}\nhint: `--size 1440x900` is the default"
    )]
    Size {
        /// As asked for.
        width: u32,
        /// As asked for.
        height: u32,
        /// The largest side.
        max: u32,
    },
    /// The text is not a link into a run.
    #[error(
        "expected a link that begins `polariscope://`, found `{link}`\nhint: copy one in the viewer with Ctrl+Shift+C"
    )]
    Link {
        /// The text.
        link: String,
    },
    /// A value in a link cannot be understood.
    #[error("expected {expected} for `{key}` in the link, found `{value}`\nhint: leave `{key}` out for its default")]
    LinkValue {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What would be understood.
        expected: &'static str,
    },
    /// A name of a theme or renderer that does not exist.
    #[error("expected one of {expected}, found `{name}`")]
    Name {
        /// What was asked for.
        name: String,
        /// What there is.
        expected: &'static str,
    },
}

/// The viewer's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
