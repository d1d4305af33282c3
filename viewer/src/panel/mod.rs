//! What does each part of the window draw?
//!
//! A panel reads the [`Focus`] and the loader, and emits [`Command`]s. It changes nothing else but [`UiState`],
//! which holds what is neither a place nor worth a link: half-typed text, open dialogs.

pub(crate) mod cheat_sheet;
pub(crate) mod feature;
pub(crate) mod features;
pub(crate) mod overview;
pub(crate) mod palette;
pub(crate) mod reader;
pub(crate) mod shell;
pub(crate) mod start;

use std::sync::Arc;

use crate::command::{Command, Step};
use crate::loader::Loader;
use crate::query::{OrderQuery, Source};
use crate::state::{Focus, View};
use crate::theme::Theme;
use crate::widget::Spaces;

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
    /// A step that the view must carry out, since only it knows where lines begin and how tall it is.
    pub(crate) step: Option<Step>,
}

/// A sentence in the status bar, until it is dismissed or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) text: String,
    pub(crate) warning: bool,
}

/// Draws the view that is in focus.
pub(crate) fn show(ui: &mut egui::Ui, cx: &mut Cx<'_>) {
    match cx.focus.view {
        View::Overview => overview::show(ui, cx),
        View::Features => features::show(ui, cx),
        View::Feature => feature::show(ui, cx),
        View::Reader => reader::show(ui, cx),
    }
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
