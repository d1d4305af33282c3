//! What does each part of the window draw?
//!
//! A panel reads the [`Focus`] and the loader, and emits [`Command`]s. It changes nothing else but [`UiState`],
//! which holds what is neither a place nor worth a link: half-typed text, open dialogs.

pub(crate) mod ask;
pub(crate) mod cheat_sheet;
pub(crate) mod diagnostics;
pub(crate) mod expert;
pub(crate) mod feature;
pub(crate) mod feature_more;
pub(crate) mod features;
pub(crate) mod grid;
pub(crate) mod notes;
pub(crate) mod overview;
pub(crate) mod palette;
pub(crate) mod panes;
pub(crate) mod pieces;
pub(crate) mod reader;
pub(crate) mod routing;
pub(crate) mod rows;
pub(crate) mod shell;
pub(crate) mod start;
pub(crate) mod training;

use std::collections::BTreeMap;
use std::sync::Arc;

use data::annotations::Annotations;

use crate::command::{Command, Step};
use crate::loader::Loader;
use crate::query::{NotesQuery, OrderQuery, Source};
use crate::state::{Focus, View};
use crate::theme::Theme;
use crate::widget::{Pool, Spaces};

/// What a panel has in hand.
pub(crate) struct Cx<'a> {
    pub(crate) focus: &'a Focus,
    pub(crate) theme: &'static Theme,
    pub(crate) loader: &'a mut Loader,
    pub(crate) ui: &'a mut UiState,
    pub(crate) out: &'a mut Vec<Command>,
}

impl Cx<'_> {
    pub(crate) fn emit(&mut self, command: Command) {
        self.out.push(command);
    }

    /// The open run; panels are drawn only with one.
    pub(crate) fn source(&self) -> Option<Arc<Source>> {
        self.loader.source().cloned()
    }

    /// What people said about the run, once it is read.
    pub(crate) fn notes(&mut self) -> Option<Arc<Annotations>> {
        let round = self.loader.said();
        self.loader.get(&NotesQuery { round }).value
    }

    /// The feature table that is looked at: the chosen one, else the first.
    pub(crate) fn table(&self) -> Option<String> {
        table(self.focus, self.loader)
    }
}

/// The feature table that is looked at.
pub(crate) fn table(focus: &Focus, loader: &Loader) -> Option<String> {
    let tables = &loader.source()?.tables;
    focus.table.clone().or_else(|| tables.first().cloned())
}

/// The question for the rows of the feature table, as the focus has them.
pub(crate) fn order_query(focus: &Focus, loader: &Loader) -> Option<OrderQuery> {
    Some(OrderQuery {
        table: table(focus, loader)?,
        sort: focus.sort,
        ascending: focus.ascending,
        filter: focus.filter.trim().to_owned(),
        notes: if focus.filter.contains("label:") { loader.said() } else { 0 },
    })
}

/// What is on the screen but not a place.
#[derive(Debug, Default)]
pub(crate) struct UiState {
    /// The filter as it is being typed.
    pub(crate) filter: String,
    pub(crate) focus_filter: bool,
    pub(crate) spaces: Spaces,
    /// Examples with all of their context.
    pub(crate) long_context: bool,
    /// The palette's text and chosen line, while it is open.
    pub(crate) palette: Option<palette::Palette>,
    pub(crate) cheat_sheet: bool,
    /// The path on the start screen.
    pub(crate) path: String,
    pub(crate) notice: Option<Notice>,
    /// Labels and notes as they are being typed, by what they are about.
    pub(crate) saying: BTreeMap<String, Saying>,
    /// The key for labelling was pressed.
    pub(crate) focus_label: Option<()>,
    /// The query as it is being typed; that of the focus where nothing was typed.
    pub(crate) sql: Option<String>,
    pub(crate) pool: Pool,
    /// The text that the tokenizer cuts, as it is being typed.
    pub(crate) pieces: Option<Typed>,
    /// What the pointer was on in the last pass, and is on in this one: marked in every pane.
    pub(crate) hovered: Hover,
    pub(crate) hovering: Hover,
    pub(crate) panes: PaneEdits,
    /// A step that the view must carry out, since only it knows where lines begin and how tall it is.
    pub(crate) step: Option<Step>,
}

/// What is being typed about something.
#[derive(Debug, Default)]
pub(crate) struct Saying {
    pub(crate) label: String,
    pub(crate) note: String,
}

/// A text for the tokenizer, and which tokenizer.
#[derive(Debug, Default)]
pub(crate) struct Typed {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// What the person does to the arrangement of panes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PaneEdits {
    /// It was changed in this pass.
    pub(crate) edited: bool,
    /// A border is being dragged, which is one change from the press to the release.
    pub(crate) resizing: bool,
}

/// What is under the pointer, by name. Never in the history, never asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hover {
    /// Counted from the first token of the document that is shown.
    pub(crate) token: Option<u64>,
    pub(crate) layer: Option<usize>,
    pub(crate) expert: Option<u16>,
}

/// A sentence in the status bar, until it is dismissed or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) text: String,
    pub(crate) warning: bool,
}

/// Draws a view.
pub(crate) fn show(view: View, ui: &mut egui::Ui, cx: &mut Cx<'_>) {
    match view {
        View::Overview => overview::show(ui, cx),
        View::Features => features::show(ui, cx),
        View::Feature => feature::show(ui, cx),
        View::Reader => reader::show(ui, cx),
        View::Grid => grid::show(ui, cx),
        View::Routing => routing::show(ui, cx),
        View::Expert => expert::show(ui, cx),
        View::Rows => rows::show(ui, cx),
        View::Training => training::show(ui, cx),
        View::Query => ask::show(ui, cx),
        View::Pieces => pieces::show(ui, cx),
        View::Diagnostics => diagnostics::show(ui, cx),
    }
}

/// A column of a pane with its own scroll bar, as wide as is pleasant to read.
pub(crate) fn scrolled(
    ui: &mut egui::Ui,
    cx: &mut Cx<'_>,
    id: impl egui::AsIdSalt,
    add: impl FnOnce(&mut egui::Ui, &mut Cx<'_>),
) {
    egui::ScrollArea::vertical().id_salt(id).auto_shrink(false).show(ui, |ui| {
        scroll_by_step(ui, cx);
        ui.set_max_width((ui.available_width() - 10.0).min(1_480.0));
        add(ui, cx);
        ui.add_space(16.0);
    });
}

/// Carries out a step in a scroll area.
pub(crate) fn scroll_by_step(ui: &egui::Ui, cx: &mut Cx<'_>) {
    let Some(step) = cx.ui.step.take() else { return };
    let page = ui.clip_rect().height() * 0.9;
    let down = match step {
        Step::Down => 56.0,
        Step::Up => -56.0,
        Step::PageDown => page,
        Step::PageUp => -page,
        Step::Home => -1e7,
        Step::End => 1e7,
        Step::Left | Step::Right => return,
    };
    ui.scroll_with_delta(egui::vec2(0.0, -down));
}

/// What a view without a feature table says.
fn no_features(ui: &mut egui::Ui, cx: &mut Cx<'_>) {
    let Some(source) = cx.source() else { return };
    let run = source.path.display().to_string();
    let overview = cx.loader.get(&crate::query::OverviewQuery).value;
    let (what, command) = match overview.as_ref().and_then(|overview| overview.coders.first()) {
        Some(coder) => (
            "This run has a coder, but no feature table yet. Encoding the run with it makes one: \
             which feature fires where, how strongly, and the passages that activate it most.",
            format!("polariscope encode {run} --sae {run}/saes/{}", coder.name),
        ),
        None => (
            "Features come from a sparse coder. Train one on a middle layer, then encode the run with it.",
            train_command(&source),
        ),
    };
    crate::widget::empty(ui, cx.theme, "No features yet", what, Some(&command));
}

/// The command that trains a coder on a middle layer, on the residual stream where it was recorded.
fn train_command(source: &Source) -> String {
    let hooks = source.run.hook_points();
    let stream: Vec<_> = hooks.iter().filter(|hook| hook.name.site == data::Site::ResidPost).collect();
    let middle = stream.get(stream.len() / 2).copied().or_else(|| hooks.get(hooks.len() / 2));
    let hook = middle.map_or_else(|| "HOOK_POINT".to_owned(), |hook| hook.name.to_string());
    let run = source.path.display();
    format!("polariscope train {run} --hook-point {hook} --out {run}/saes/main")
}
