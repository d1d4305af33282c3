//! How do commands change what is looked at, and what happens in one pass?

use std::collections::VecDeque;
use std::path::PathBuf;

use crossbeam_channel::{Receiver, Sender};
use data::annotations::Annotation;
use data::place::Stores;
use egui::{CentralPanel, Frame, Margin, PointerButton};
use fs_err as fs;

use crate::command::{self, Command, Keyboard, Step, When};
use crate::error::{Error, Result};
use crate::go;
use crate::layout::{Layout, Preset};
use crate::link;
use crate::loader::{Loader, Opening};
use crate::panel::{self, Cx, Notice, UiState, order_query};
use crate::query::{NoteQuery, PictureQuery, TOKENS_PER_PAGE};
use crate::session::Session;
use crate::state::{Focus, History, Item, MAX_PINS, View};
use crate::theme::{self, Theme, ThemeChoice};

/// How much larger or smaller one press makes everything.
const ZOOM_STEP: f32 = 1.1;
const ZOOM_RANGE: (f32, f32) = (0.5, 3.0);
/// Seconds between two writings of the session.
const KEEP_EVERY: f64 = 30.0;

/// The application: one focus, one history, one loader.
pub(crate) struct App {
    ctx: egui::Context,
    pub(crate) focus: Focus,
    history: History,
    pub(crate) layout: Layout,
    /// Arrangements before and after this one.
    layouts: (Vec<Layout>, Vec<Layout>),
    loader: Loader,
    choice: ThemeChoice,
    theme: &'static Theme,
    ui: UiState,
    /// A link that waits until its run is open.
    waiting: Option<String>,
    /// The run that the window's title names.
    titled: PathBuf,
    /// What was said and is not written yet, in order.
    saying: VecDeque<NoteQuery>,
    n_said: u64,
    /// A picture whose link is to be followed.
    picture: Option<PictureQuery>,
    session: Session,
    /// Where the session is kept, and how it was kept last.
    session_file: Option<PathBuf>,
    kept: String,
    kept_at: f64,
    /// Where pictures are saved, and what became of them.
    pictures: Option<PathBuf>,
    saved: (Sender<Result<PathBuf>>, Receiver<Result<PathBuf>>),
}

/// How an application begins.
#[derive(Debug, Default)]
pub(crate) struct Start {
    pub(crate) run: Option<PathBuf>,
    pub(crate) stores: Stores,
    pub(crate) link: Option<String>,
    pub(crate) theme: ThemeChoice,
    /// Whose notes are added.
    pub(crate) author: Option<String>,
    /// Where it is kept what was looked at; nowhere where there is none.
    pub(crate) session: Option<PathBuf>,
    /// Where pictures are saved; nowhere where there is none.
    pub(crate) pictures: Option<PathBuf>,
    /// Background threads; with none, questions are answered within the pass that asks them.
    pub(crate) threads: usize,
}

impl App {
    pub(crate) fn new(ctx: &egui::Context, start: Start) -> Result<Self> {
        theme::install_fonts(ctx);
        let kept = start.session.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let session = Session::parse(&kept);
        let choice = if start.theme == ThemeChoice::System { session.theme } else { start.theme };
        let theme = choice.resolve(ctx);
        theme.apply(ctx);
        ctx.set_zoom_factor(session.zoom.clamp(ZOOM_RANGE.0, ZOOM_RANGE.1));
        if let Some(link) = &start.link {
            // What cannot be understood is said now, not after a run has been opened.
            link::parse(link)?;
        }
        let repaint = ctx.clone();
        let mut loader = Loader::new(start.threads, crate::loader::CACHE_BYTES, move || repaint.request_repaint())
            .map_err(|error| Error::Window { message: error.to_string() })?
            .with_stores(start.stores)
            .with_author(start.author);
        if let Some(run) = start.run {
            loader.open(run);
        }
        Ok(Self {
            ctx: ctx.clone(),
            focus: Focus::default(),
            history: History::default(),
            layout: Layout::default(),
            layouts: Default::default(),
            loader,
            choice,
            theme,
            ui: UiState::default(),
            waiting: start.link,
            titled: PathBuf::new(),
            saying: VecDeque::new(),
            n_said: 0,
            picture: None,
            session,
            session_file: start.session,
            kept,
            kept_at: 0.0,
            pictures: start.pictures,
            saved: crossbeam_channel::unbounded(),
        })
    }

    /// Takes in what was loaded. Runs before every pass.
    pub(crate) fn logic(&mut self) {
        self.loader.drain();
        if let Some(source) = self.loader.source().cloned() {
            let opened = self.titled != source.path;
            if opened {
                self.titled.clone_from(&source.path);
                self.ctx.send_viewport_cmd(egui::ViewportCommand::Title(format!("{} – Polariscope", source.name)));
            }
            let fresh = self.focus == Focus::default();
            if let Some(link) = self.waiting.take() {
                self.follow(&link);
            } else if let (true, Some(link)) = (opened && fresh, self.session.link(&source.path)) {
                // Where one was when the window was last open.
                let link = link.to_owned();
                self.follow(&link);
            }
        }
        self.keep_session(KEEP_EVERY);
        self.write_notes();
        self.follow_picture();
        while let Ok(saved) = self.saved.1.try_recv() {
            match saved {
                Ok(path) => self.notify(format!("Saved {}", path.display()), false),
                Err(error) => self.notify(error.to_string().replace("\nhint: ", "; "), true),
            }
        }
        let theme = self.choice.resolve(&self.ctx);
        if theme.name != self.theme.name {
            self.theme = theme;
            theme.apply(&self.ctx);
        }
    }

    /// Writes down what is looked at, where that has changed, and not more often than every so many seconds.
    fn keep_session(&mut self, every: f64) {
        let Some(file) = self.session_file.clone() else { return };
        let now = self.ctx.input(|input| input.time);
        if now - self.kept_at < every {
            return;
        }
        self.kept_at = now;
        self.session.theme = self.choice;
        self.session.zoom = self.ctx.zoom_factor();
        if let (Some(link), Some(source)) = (self.link(), self.loader.source()) {
            let path = source.path.clone();
            self.session.visit(&path, link);
        }
        let text = self.session.to_text();
        if text != self.kept {
            self.kept.clone_from(&text);
            let write = move || {
                // Nothing is lost but where one was; there is nobody to tell.
                if let Some(folder) = file.parent() {
                    let _ = fs::create_dir_all(folder);
                }
                let _ = data::files::write_atomic(&file, text.as_bytes());
            };
            // At the end there is no later pass that could wait for a thread.
            if every > 0.0 {
                in_background("session", write);
            } else {
                write();
            }
        }
    }

    /// The window goes.
    pub(crate) fn close(&mut self) {
        self.keep_session(0.0);
    }

    /// Goes where a dropped picture was made.
    fn follow_picture(&mut self) {
        let Some(query) = &self.picture else { return };
        let got = self.loader.get(query);
        match (got.value, got.failure) {
            (_, Some(failure)) => {
                self.picture = None;
                self.notify(failure.message.clone(), true);
            }
            (Some(link), None) if !got.stale => {
                self.picture = None;
                self.follow(&link);
            }
            _ => {}
        }
    }

    /// Takes a picture of the window, which is encoded and written on a thread of its own.
    fn save_picture(&mut self) {
        let (Some(folder), Some(source)) = (self.pictures.clone(), self.loader.source()) else {
            return self.notify("Pictures are saved from a window; `--shot` draws one without".to_owned(), true);
        };
        let name = format!("{} {}", source.name, self.focus.view);
        let (link, saved, ctx) = (self.link(), self.saved.0.clone(), self.ctx.clone());
        self.ctx.request_screenshot(move |image| {
            in_background("picture", move || {
                let size = (image.size[0] as u32, image.size[1] as u32);
                let rgba: Vec<u8> = image.pixels.iter().flat_map(egui::Color32::to_array).collect();
                let png = crate::picture::encode(size, &rgba, link.as_deref());
                let path = folder.join(&name);
                let done = png
                    .map_err(|source| Error::Encode { path, source })
                    .and_then(|png| crate::picture::save(&folder, &name, &png));
                // The window may be gone by now.
                let _ = saved.send(done);
                ctx.request_repaint();
            });
        });
    }

    /// Has what was said written, one thing after the other.
    fn write_notes(&mut self) {
        while let Some(query) = self.saying.front() {
            let got = self.loader.get(query);
            match (got.value, got.failure) {
                (_, Some(failure)) => {
                    let text = format!("Not kept: {}", failure.message);
                    self.saying.pop_front();
                    self.notify(text, true);
                }
                (Some(_), None) => {
                    self.saying.pop_front();
                    self.loader.has_said();
                }
                (None, None) => return,
            }
        }
    }

    /// Draws everything, and carries out what was asked for while drawing.
    pub(crate) fn draw(&mut self, ui: &mut egui::Ui) {
        let mut out = Vec::new();
        self.input(&mut out);
        // Keys act before the pass, so that what they change is drawn in it.
        for command in std::mem::take(&mut out) {
            self.apply(command);
        }
        let open = self.loader.source().is_some();
        let allowed = self.allowed();
        let before = self.layout.clone();
        let mut cx =
            Cx { focus: &self.focus, theme: self.theme, loader: &mut self.loader, ui: &mut self.ui, out: &mut out };
        panel::shell::top_bar(ui, &mut cx, &self.history, &self.layout);
        panel::shell::status_bar(ui, &mut cx, self.choice);
        let frame = Frame::NONE.fill(self.theme.bg);
        CentralPanel::no_frame().frame(frame).show(ui, |ui| {
            if open {
                panel::panes::show(ui, &mut cx, &mut self.layout);
            } else {
                let runs = &self.session.runs;
                Frame::NONE
                    .inner_margin(Margin::symmetric(14, 10))
                    .show(ui, |ui| panel::start::show(ui, &mut cx, runs));
            }
        });
        panel::palette::show(ui, &mut cx, allowed);
        panel::cheat_sheet::show(ui, &mut cx);
        // A step that no panel took must not wait for another view.
        cx.ui.step = None;
        let hover = std::mem::take(&mut cx.ui.hovering);
        let moved = std::mem::replace(&mut cx.ui.hovered, hover) != cx.ui.hovered;
        let edited = cx.ui.panes.edited;
        self.remember_layout(before, edited);
        let acted = moved || !out.is_empty();
        for command in out {
            self.apply(command);
        }
        if acted {
            self.ctx.request_repaint();
        }
    }

    fn input(&mut self, out: &mut Vec<Command>) {
        let keyboard = if self.ctx.text_edit_focused() || self.ui.palette.is_some() {
            Keyboard::Text
        } else if self.ctx.egui_wants_keyboard_input() {
            Keyboard::Widget
        } else {
            Keyboard::Free
        };
        out.extend(command::pressed(&self.ctx, keyboard, self.allowed()));
        self.ctx.input(|input| {
            for (button, command) in [(PointerButton::Extra1, Command::Back), (PointerButton::Extra2, Command::Forward)]
            {
                if input.pointer.button_pressed(button) {
                    out.push(command);
                }
            }
            if let Some(path) = input.raw.dropped_files.first().map(|file| file.path().to_owned()) {
                let picture = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
                out.push(if picture { Command::OpenPicture(path) } else { Command::OpenRun(path) });
            }
        });
    }

    /// Which commands make sense now.
    fn allowed(&self) -> impl Fn(When) -> bool + use<> {
        let open = self.loader.source().is_some();
        let table = panel::table(&self.focus, &self.loader).is_some();
        let view = self.focus.view;
        move |when| match when {
            When::Always => true,
            When::Run => open,
            When::Table => table,
            When::In(wanted) => open && view == wanted,
        }
    }

    /// Carries out a command. This is the only place where the focus changes.
    pub(crate) fn apply(&mut self, command: Command) {
        tracing::debug!(?command, "apply");
        let mut next = self.focus.clone();
        match command {
            Command::OpenRun(path) => {
                self.loader.open(path);
                self.history = History::default();
                self.focus = Focus::default();
                self.layout = Layout::default();
                self.layouts = Default::default();
                self.ui = UiState::default();
                return;
            }
            Command::FollowLink(link) => return self.follow(&link),
            Command::Back => {
                self.history.back(&mut self.focus);
                return self.arrived();
            }
            Command::Forward => {
                self.history.forward(&mut self.focus);
                return self.arrived();
            }
            Command::Activate(view) => {
                self.focus.view = view;
                return;
            }
            Command::Pin => {
                if let Some(item) = self.focus.item(panel::table(&self.focus, &self.loader)) {
                    self.pin(item);
                }
                return;
            }
            Command::PinItem(item) => return self.pin(item),
            Command::Say(said) => {
                self.n_said += 1;
                self.saying.push_back(NoteQuery { said: *said, number: self.n_said });
                return;
            }
            Command::Rate(rating) => {
                if let Some(item) = self.focus.item(panel::table(&self.focus, &self.loader)) {
                    let said = Annotation::new(item.to_string(), self.loader.author());
                    self.apply(Command::Say(Box::new(Annotation { rating: Some(rating), ..said })));
                }
                return;
            }
            Command::FocusLabel => {
                self.ui.focus_label = Some(());
                return;
            }
            Command::UseTable(table) => {
                if Some(&table) != panel::table(&self.focus, &self.loader).as_ref() {
                    // Numbers mean other features in another table.
                    next.feature = None;
                }
                next.table = Some(table);
                next.view = View::Features;
            }
            Command::OpenFeature(feature) => {
                if self.focus.view == View::Features {
                    // The way back leads to the row from which it was opened.
                    self.focus.feature = Some(feature);
                }
                next.feature = Some(feature);
                next.view = View::Feature;
            }
            Command::NextExpert => self.expert_away(&mut next, 1),
            Command::PreviousExpert => self.expert_away(&mut next, -1),
            Command::NextFeature => next.feature = self.feature_away(1),
            Command::PreviousFeature => next.feature = self.feature_away(-1),
            Command::NextDocument => self.document_away(&mut next, 1),
            Command::PreviousDocument => self.document_away(&mut next, -1),
            Command::Move(step) => self.step(&mut next, step),
            Command::Open => {
                if let Some(command) = self.opened() {
                    self.apply(command);
                }
                return;
            }
            Command::RunSql(sql) => {
                self.ui.sql = Some(sql.clone());
                next.sql = sql;
                next.view = View::Query;
            }
            Command::Filter(filter) => {
                self.ui.filter.clone_from(&filter);
                next.filter = filter;
            }
            Command::FocusFilter => {
                next.view = View::Features;
                self.ui.focus_filter = true;
            }
            other => {
                if let Err(other) = go::goes(&mut next, other) {
                    return self.apply_to_window(&other);
                }
            }
        }
        self.go(next);
    }

    /// Goes somewhere, and brings the pane of its view to the front.
    fn go(&mut self, next: Focus) {
        let other = next.view != self.focus.view;
        self.history.visit(&mut self.focus, next);
        if other || !self.layout.is_shown(self.focus.view) {
            self.layout.show(self.focus.view);
        }
    }

    /// After a step of the history.
    fn arrived(&mut self) {
        self.ui.filter.clone_from(&self.focus.filter);
        self.ui.sql = Some(self.focus.sql.clone());
        self.layout.show(self.focus.view);
    }

    fn pin(&mut self, item: Item) {
        match self.focus.pinned(&item) {
            Some(at) => drop(self.focus.pins.remove(at)),
            None if self.focus.pins.len() < MAX_PINS => self.focus.pins.push(item),
            None => self.notify(format!("{MAX_PINS} things are pinned already: X takes the pins out"), true),
        }
    }

    fn expert_away(&self, next: &mut Focus, experts: i64) {
        let routing = self.loader.source().and_then(|source| source.run.routing_info().ok().cloned());
        let Some(routing) = routing.filter(|routing| routing.n_experts > 0) else { return };
        let layer =
            next.layer.filter(|layer| routing.layers.contains(layer)).or_else(|| routing.layers.first().copied());
        let now = next.expert.map_or(-1, i64::from).max(if experts < 0 { 0 } else { -1 });
        next.layer = layer;
        next.expert = Some((now + experts).rem_euclid(routing.n_experts as i64) as u16);
    }

    /// Remembers how the panes stood before a change that the person made, one step a drag.
    fn remember_layout(&mut self, before: Layout, edited: bool) {
        if edited {
            self.push_layout(before);
        }
        self.ui.panes.edited = false;
    }

    fn push_layout(&mut self, layout: Layout) {
        const CAPACITY: usize = 100;
        let (past, future) = &mut self.layouts;
        if past.last() != Some(&layout) {
            if past.len() == CAPACITY {
                past.remove(0);
            }
            past.push(layout);
        }
        future.clear();
    }

    fn arrange(&mut self, layout: Layout) {
        let before = std::mem::replace(&mut self.layout, layout);
        if before != self.layout {
            self.push_layout(before);
        }
    }

    fn undo_layout(&mut self, redo: bool) {
        let (past, future) = &mut self.layouts;
        let (from, to) = if redo { (future, past) } else { (past, future) };
        if let Some(layout) = from.pop() {
            to.push(std::mem::replace(&mut self.layout, layout));
            self.layout.show(self.focus.view);
        }
    }

    /// The commands that leave the focus as it is.
    fn apply_to_window(&mut self, command: &Command) {
        match command {
            Command::Arrange(preset) => {
                let mut layout = Layout::preset(*preset);
                if *preset == Preset::Single {
                    layout.show(self.focus.view);
                } else {
                    self.focus.view = preset.main();
                }
                self.arrange(layout);
            }
            Command::Freeze => {
                let mut layout = self.layout.clone();
                layout.freeze(&self.focus);
                self.arrange(layout);
            }
            Command::UndoLayout => self.undo_layout(false),
            Command::RedoLayout => self.undo_layout(true),
            Command::ToggleWhitespace => self.ui.spaces = self.ui.spaces.other(),
            Command::ToggleContext => self.ui.long_context = !self.ui.long_context,
            Command::CopyLink => {
                if let Some(link) = self.link() {
                    self.notify(format!("Copied: {link}"), false);
                    self.ctx.copy_text(link);
                }
            }
            Command::SavePicture => self.save_picture(),
            Command::OpenPicture(path) if self.loader.source().is_some() => {
                self.picture = Some(PictureQuery { path: path.clone() });
            }
            Command::OpenPicture(_) => {
                self.notify("Open the run first; then drop the picture again".to_owned(), true);
            }
            Command::UseTheme(choice) => self.choice = *choice,
            Command::NextTheme => self.choice = self.choice.next(),
            Command::ZoomIn => self.zoom(self.ctx.zoom_factor() * ZOOM_STEP),
            Command::ZoomOut => self.zoom(self.ctx.zoom_factor() / ZOOM_STEP),
            Command::ZoomReset => self.zoom(1.0),
            Command::Palette => {
                self.ui.cheat_sheet = false;
                self.ui.palette =
                    if self.ui.palette.is_some() { None } else { Some(panel::palette::Palette::default()) };
            }
            Command::CheatSheet => {
                self.ui.palette = None;
                self.ui.cheat_sheet = !self.ui.cheat_sheet;
            }
            Command::Escape => self.escape(),
            Command::Reload => self.loader.reopen(),
            Command::Quit => self.ctx.send_viewport_cmd(egui::ViewportCommand::Close),
            // All others change the focus.
            _ => {}
        }
    }

    /// The address of what is looked at.
    pub(crate) fn link(&self) -> Option<String> {
        let source = self.loader.source()?;
        let layout = Some(&self.layout).filter(|layout| !layout.is_preset(Preset::Single));
        Some(link::format(&source.name, &source.fingerprint, &self.focus, layout))
    }

    /// What the window shows is complete: nothing is being loaded.
    pub(crate) fn is_settled(&self) -> bool {
        self.loader.busy().is_empty() && self.waiting.is_none()
    }

    /// What the pointer is on.
    #[cfg(test)]
    pub(crate) fn hovered(&self) -> panel::Hover {
        self.ui.hovered
    }

    /// The answer to a question, if it is there.
    #[cfg(test)]
    pub(crate) fn peek<Q: crate::loader::Ask>(&self, question: &Q) -> Option<std::sync::Arc<Q::Answer>> {
        self.loader.peek(question)
    }

    /// Why the run could not be opened.
    pub(crate) fn opening(&self) -> &Opening {
        self.loader.opening()
    }

    fn follow(&mut self, text: &str) {
        let link = match link::parse(text) {
            Ok(link) => link,
            Err(error) => {
                let text = error.to_string().replace("\nhint: ", "; ");
                return self.notify(text, true);
            }
        };
        let Some(source) = self.loader.source().cloned() else {
            self.waiting = Some(text.to_owned());
            return self.notify("The link is followed when its run is open".to_owned(), false);
        };
        if let Some(fingerprint) = link.fingerprint.filter(|fingerprint| *fingerprint != source.fingerprint) {
            let text = format!(
                "This link was made on run {}@{fingerprint}; this is {}@{}, so its numbers may mean something else",
                link.run, source.name, source.fingerprint
            );
            self.notify(text, true);
        } else if !link.ignored.is_empty() {
            self.notify(format!("Not understood in the link: {}", link.ignored.join(", ")), true);
        }
        if let Some(layout) = link.layout {
            self.arrange(layout);
        }
        self.history.visit(&mut self.focus, link.focus);
        self.arrived();
    }

    fn notify(&mut self, text: String, warning: bool) {
        self.ui.notice = Some(Notice { text, warning });
    }

    fn zoom(&self, factor: f32) {
        self.ctx.set_zoom_factor(factor.clamp(ZOOM_RANGE.0, ZOOM_RANGE.1));
    }

    fn escape(&mut self) {
        if self.ui.palette.take().is_some() {
            return;
        }
        if std::mem::take(&mut self.ui.cheat_sheet) {
            return;
        }
        if let Some(focused) = self.ctx.memory(egui::Memory::focused) {
            // The first press leaves the field, the next one clears it.
            self.ctx.memory_mut(|memory| memory.surrender_focus(focused));
        } else if self.ui.notice.take().is_none() && self.focus.view == View::Features {
            self.apply(Command::Filter(String::new()));
        }
    }

    /// What Enter opens.
    fn opened(&self) -> Option<Command> {
        match self.focus.view {
            View::Overview => Some(Command::Show(View::Features)),
            View::Features => self.focus.feature.map(Command::OpenFeature),
            View::Feature => panel::feature::strongest(&self.focus, &self.loader),
            View::Reader => panel::reader::strongest(&self.focus, &self.loader),
            View::Grid => Some(Command::Show(View::Reader)),
            View::Routing => Some(Command::OpenExpert { layer: self.focus.layer?, expert: self.focus.expert? }),
            View::Expert | View::Rows | View::Training | View::Query | View::Pieces | View::Diagnostics => None,
        }
    }

    /// The feature that stands so many rows further in the list.
    fn feature_away(&self, rows: i64) -> Option<u32> {
        let order = order_query(&self.focus, &self.loader).and_then(|query| self.loader.peek(&query));
        let Some(order) = order.filter(|order| !order.features.is_empty()) else { return self.focus.feature };
        let last = order.features.len() as u64 - 1;
        let row = match self.focus.feature.and_then(|feature| order.row_of(feature)) {
            Some(row) => row.saturating_add_signed(rows).min(last),
            None if rows < 0 => last,
            None => 0,
        };
        order.features.get(row as usize).copied()
    }

    fn document_away(&self, next: &mut Focus, documents: i64) {
        let Some(source) = self.loader.source() else { return };
        let last = source.run.n_documents().saturating_sub(1);
        let here = self.focus.view == View::Reader;
        let now = self.focus.doc.unwrap_or(0);
        next.view = View::Reader;
        next.doc = Some(if here { now.saturating_add_signed(documents).min(last) } else { now });
        if next.doc != self.focus.doc {
            next.token = None;
        }
    }

    fn step(&mut self, next: &mut Focus, step: Step) {
        match (self.focus.view, step) {
            (View::Features, Step::Up | Step::Down | Step::PageUp | Step::PageDown | Step::Home | Step::End) => {
                next.feature = self.feature_away(match step {
                    Step::Up => -1,
                    Step::Down => 1,
                    Step::PageUp => -20,
                    Step::PageDown => 20,
                    Step::Home => i64::MIN / 2,
                    _ => i64::MAX / 2,
                });
            }
            (View::Feature, Step::Left) => next.feature = self.feature_away(-1),
            (View::Feature, Step::Right) => next.feature = self.feature_away(1),
            (View::Grid | View::Routing, Step::Up | Step::Down) => self.layer_away(next, step == Step::Up),
            (View::Expert, Step::Left) => self.expert_away(next, -1),
            (View::Expert, Step::Right) => self.expert_away(next, 1),
            (View::Reader | View::Grid | View::Routing, Step::Home) => next.token = Some(0),
            (View::Reader | View::Grid | View::Routing | View::Rows, Step::Left) => {
                // Also leads from the first token of a page to the one before it.
                next.token = Some(self.focus.token.map_or(0, |token| token.saturating_sub(1)));
            }
            (View::Reader | View::Grid | View::Routing | View::Rows, Step::Right) => {
                let end = self.tokens_of_document().unwrap_or(TOKENS_PER_PAGE);
                next.token = Some(self.focus.token.map_or(0, |token| (token + 1).min(end.saturating_sub(1))));
            }
            (View::Reader | View::Grid | View::Routing, Step::End) => {
                next.token = self.tokens_of_document().map(|end| end.saturating_sub(1));
            }
            _ => self.ui.step = Some(step),
        }
        if next.token != self.focus.token {
            next.row = None;
        }
    }

    /// The next layer above, or below, of those that the view shows.
    fn layer_away(&self, next: &mut Focus, up: bool) {
        let Some(source) = self.loader.source() else { return };
        let layers: Vec<usize> = match source.run.routing_info() {
            Ok(routing) if next.view == View::Routing => routing.layers.clone(),
            _ => (0..source.run.manifest().model.shape.n_layers).collect(),
        };
        let other = match next.layer {
            None => layers.last(),
            Some(now) if up => layers.iter().find(|layer| **layer > now),
            Some(now) => layers.iter().rev().find(|layer| **layer < now),
        };
        if let Some(other) = other {
            go::use_layer(next, *other);
        }
    }

    /// From what is loaded already: the length of the document on the screen.
    fn tokens_of_document(&self) -> Option<u64> {
        let query =
            crate::query::PassageQuery { doc: self.focus.doc.unwrap_or(0), page: panel::reader::page(&self.focus) };
        self.loader.peek(&query).map(|passage| passage.n_tokens)
    }
}

/// Does something that takes its time; where no thread can be had, it is left.
fn in_background(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::warn!(%error, name, "no thread");
    }
}

impl eframe::App for App {
    fn logic(&mut self, _: &egui::Context, _: &mut eframe::Frame) {
        Self::logic(self);
    }

    fn ui(&mut self, ui: &mut egui::Ui, _: &mut eframe::Frame) {
        self.draw(ui);
    }

    fn on_exit(&mut self, _: Option<&eframe::glow::Context>) {
        self.close();
    }

    fn clear_color(&self, _: &egui::Visuals) -> [f32; 4] {
        self.theme.bg.to_normalized_gamma_f32()
    }

    fn persist_egui_memory(&self) -> bool {
        // Stale widths and scroll positions are what makes windows look broken after an update.
        false
    }
}
