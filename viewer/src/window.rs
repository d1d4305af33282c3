//! How does the application get onto a screen, or into a picture without one?

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock, mpsc};

use data::Place;
use data::place::Stores;
use eframe::egui_wgpu::{WgpuSetup, WgpuSetupCreateNew, wgpu};
use egui_kittest::Harness;
use fs_err as fs;

use crate::app::{App, Start};
use crate::error::{Error, Result};
use crate::loader::{Opening, THREADS};
use crate::theme::ThemeChoice;

/// What draws the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Renderer {
    /// wgpu on a graphics card; glow where there is none, since it is five times faster on a CPU.
    #[default]
    Auto,
    /// Vulkan, Metal or Direct3D through wgpu.
    Wgpu,
    /// OpenGL.
    Glow,
}

/// How the window opens.
#[derive(Debug, Clone, Default)]
pub struct ViewOptions {
    /// A `polariscope://…` address to begin with.
    pub link: Option<String>,
    /// Colors.
    pub theme: ThemeChoice,
    /// What draws.
    pub renderer: Renderer,
    /// What runs in object storage need.
    pub stores: Stores,
    /// Whose labels, ratings and notes are added.
    pub author: Option<String>,
    /// The file in which it is kept what was looked at; nothing is kept without one.
    pub session: Option<PathBuf>,
}

/// What picture is drawn.
#[derive(Debug, Clone)]
pub struct ShotOptions {
    /// A `polariscope://…` address of the view; the overview without one.
    pub link: Option<String>,
    /// Size in points, which are pixels here.
    pub width: u32,
    /// Size in points, which are pixels here.
    pub height: u32,
    /// Colors.
    pub theme: ThemeChoice,
    /// The PNG that is written.
    pub out: PathBuf,
    /// What a run in object storage needs.
    pub stores: Stores,
}

impl ShotOptions {
    /// Width of a picture when none is asked for.
    pub const WIDTH: u32 = 1_440;
    /// Height of a picture when none is asked for.
    pub const HEIGHT: u32 = 900;
    /// The longest side: what every adapter can draw.
    pub const MAX_SIDE: u32 = 8_192;

    /// The overview at the usual size.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self {
            link: None,
            width: Self::WIDTH,
            height: Self::HEIGHT,
            theme: ThemeChoice::default(),
            out: out.into(),
            stores: Stores::default(),
        }
    }
}

/// Opens the window and returns when it is closed.
///
/// # Errors
/// [`Error::NoDisplay`] where there is no screen, [`Error::NoAdapter`] where nothing can draw,
/// [`Error::Window`] for what else the window system says, and what is wrong with the link.
/// What is wrong with the run is shown in the window.
pub fn open(run: Option<PathBuf>, options: ViewOptions) -> Result<()> {
    let renderer = match options.renderer {
        Renderer::Wgpu => eframe::Renderer::Wgpu,
        Renderer::Auto if has_graphics_card() => eframe::Renderer::Wgpu,
        Renderer::Auto | Renderer::Glow => eframe::Renderer::Glow,
    };
    let start = Start {
        run,
        stores: options.stores,
        link: options.link,
        theme: options.theme,
        author: options.author,
        session: options.session,
        pictures: Some(PathBuf::new()),
        threads: THREADS,
    };
    let native = eframe::NativeOptions {
        renderer,
        viewport: egui::ViewportBuilder::default()
            .with_title("Polariscope")
            .with_app_id("polariscope")
            .with_inner_size([1_440.0, 900.0])
            .with_min_inner_size([720.0, 480.0])
            .with_drag_and_drop(true),
        persist_window: false,
        ..eframe::NativeOptions::default()
    };
    // eframe takes any error from the start-up; ours comes back by this way.
    let (ours, failed) = mpsc::channel();
    let result = eframe::run_native(
        "polariscope",
        native,
        Box::new(move |cc| match App::new(&cc.egui_ctx, start) {
            Ok(app) => Ok(Box::new(app) as Box<dyn eframe::App>),
            Err(error) => {
                let message = error.to_string();
                let _ = ours.send(error);
                Err(message.into())
            }
        }),
    );
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(failed.try_recv().unwrap_or_else(|_| window_error(&error))),
    }
}

/// Draws a view into a PNG, without a display.
///
/// # Errors
/// [`Error::NoAdapter`] where nothing can draw, not even in software; [`Error::Data`] where the run cannot be
/// opened; what is wrong with the link, the size or the place of the picture.
pub fn shot(run: &Path, options: &ShotOptions) -> Result<()> {
    let sides = 100..=ShotOptions::MAX_SIDE;
    if !sides.contains(&options.width) || !sides.contains(&options.height) {
        return Err(Error::Size { width: options.width, height: options.height, max: ShotOptions::MAX_SIDE });
    }
    // Opened once here for its error: the window would only show it.
    data::Run::open_at(Place::parse(run.as_os_str(), &options.stores)?)?;
    if !has_adapter() {
        return Err(Error::NoAdapter);
    }
    let start = Start {
        run: Some(run.to_owned()),
        stores: options.stores.clone(),
        link: options.link.clone(),
        theme: options.theme,
        author: None,
        session: None,
        pictures: None,
        threads: 0,
    };
    let size = egui::vec2(options.width as f32, options.height as f32);
    let mut harness = harness(start, size, Pixels::Drawn)?;
    // Scripts that the bundled fonts lack, as in the window; tests do without, to look the same everywhere.
    harness.ctx.add_font_provider(Arc::new(egui_system_font_provider::SystemFontProvider::new()));
    // Questions are answered within the pass, but one answer can lead to the next question.
    for _ in 0..16 {
        harness.run_steps(2);
        if harness.state().is_settled() {
            break;
        }
    }
    if let Opening::Failed(_, failure) = harness.state().opening() {
        return Err(Error::Draw { message: failure.message.clone() });
    }
    let image = harness.render().map_err(|message| Error::Draw { message })?;
    let link = harness.state().link();
    let png = crate::picture::encode(image.dimensions(), image.as_raw(), link.as_deref())
        .map_err(|source| Error::Encode { path: options.out.clone(), source })?;
    fs::write(&options.out, png).map_err(|source| Error::Write { path: options.out.clone(), source })
}

/// Whether anything here can draw a picture: a graphics card, or a software driver such as Mesa's.
pub fn has_adapter() -> bool {
    best_backends().is_some()
}

/// Whether a harness will be asked for its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pixels {
    /// Only the tree of widgets is wanted: no adapter is needed.
    Never,
    Drawn,
}

/// The application without a window.
pub(crate) fn harness(start: Start, size: egui::Vec2, pixels: Pixels) -> Result<Harness<'static, App>> {
    // The harness must be given an application, so the error is looked for first.
    if let Some(link) = &start.link {
        crate::link::parse(link)?;
    }
    let theme = match start.theme {
        ThemeChoice::Light | ThemeChoice::Paper => egui::Theme::Light,
        ThemeChoice::Dark | ThemeChoice::System => egui::Theme::Dark,
    };
    let mut builder =
        Harness::builder().with_size(size).with_theme(theme).with_render_cursor(false).allow_missing_glyphs();
    if pixels == Pixels::Drawn {
        builder = builder.wgpu_setup(drawing_setup());
    }
    Ok(builder.build_eframe(move |cc| {
        App::new(&cc.egui_ctx, start).expect("the link was understood above and there are no threads to start")
    }))
}

/// The harness's own choice of an adapter (software first, so that pictures are the same everywhere),
/// without looking at OpenGL where there is something better: its loader talks to the window system.
fn drawing_setup() -> WgpuSetup {
    let mut setup = egui_kittest::wgpu::default_wgpu_setup();
    if let (WgpuSetup::CreateNew(new), Some(backends)) = (&mut setup, best_backends()) {
        new.instance_descriptor.backends = backends;
    }
    setup
}

/// Where there is an adapter, looked for once.
fn best_backends() -> Option<wgpu::Backends> {
    static BEST: OnceLock<Option<wgpu::Backends>> = OnceLock::new();
    *BEST.get_or_init(|| {
        [wgpu::Backends::PRIMARY, wgpu::Backends::GL].into_iter().find(|backends| !adapters(*backends).is_empty())
    })
}

fn has_graphics_card() -> bool {
    // A card that speaks only OpenGL is glow's anyway.
    adapters(wgpu::Backends::PRIMARY).iter().any(|kind| {
        matches!(kind, wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::VirtualGpu)
    })
}

/// The kinds of the adapters that there are.
fn adapters(backends: wgpu::Backends) -> Vec<wgpu::DeviceType> {
    let mut new = WgpuSetupCreateNew::without_display_handle();
    new.instance_descriptor.backends = backends;
    let instance = block_on(WgpuSetup::CreateNew(new).new_instance());
    let adapters = block_on(instance.enumerate_adapters(backends));
    adapters.iter().map(|adapter| adapter.get_info().device_type).collect()
}

/// wgpu's futures are ready at once outside of a browser.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::yield_now();
    }
}

fn window_error(error: &eframe::Error) -> Error {
    let message = error.to_string();
    let says = |what: &str| message.contains(what);
    if says("DISPLAY") || says("display") {
        // winit puts places in its own source before what it has to say.
        let said = message.rsplit(": ").next().unwrap_or(&message).trim_end_matches('.');
        Error::NoDisplay { message: said.to_owned() }
    } else if says("adapter") || says("CreateSurface") {
        Error::NoAdapter
    } else {
        Error::Window { message }
    }
}

impl fmt::Display for Renderer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Wgpu => "wgpu",
            Self::Glow => "glow",
        })
    }
}

impl FromStr for Renderer {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Auto, Self::Wgpu, Self::Glow]
            .into_iter()
            .find(|renderer| renderer.to_string() == name)
            .ok_or_else(|| Error::Name { name: name.to_owned(), expected: "`auto`, `wgpu`, `glow`" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renderers_round_trip() {
        for renderer in [Renderer::Auto, Renderer::Wgpu, Renderer::Glow] {
            assert_eq!(renderer.to_string().parse::<Renderer>().unwrap(), renderer);
        }
        assert!("metal".parse::<Renderer>().is_err());
    }
}
