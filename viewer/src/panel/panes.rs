//! How do the panes get their tabs, their frames and their turn?

use egui::{Color32, Frame, Margin, Response, RichText, Stroke, Ui, Visuals, WidgetText};
use egui_tiles::{Behavior, EditAction, SimplificationOptions, TabState, Tile, TileId, Tiles, UiResponse};

use super::{Cx, shell};
use crate::command::Command;
use crate::layout::{Layout, Pane, SIMPLIFY};
use crate::theme::Theme;

/// Draws all panes that are in front.
pub(crate) fn show(ui: &mut Ui, cx: &mut Cx<'_>, layout: &mut Layout) {
    let mut panes = Panes { cx, close: None, resized: false };
    layout.tree.ui(&mut panes, ui);
    let (close, resized) = (panes.close, panes.resized);
    cx.ui.panes.edited |= resized && !cx.ui.panes.resizing;
    cx.ui.panes.resizing = resized;
    if let Some(tile) = close {
        cx.ui.panes.edited = true;
        layout.close(tile);
    }
}

struct Panes<'a, 'b> {
    cx: &'a mut Cx<'b>,
    /// A tile that is to be taken out when the pass is over.
    close: Option<TileId>,
    resized: bool,
}

impl Panes<'_, '_> {
    fn theme(&self) -> &'static Theme {
        self.cx.theme
    }

    /// Whether the keyboard goes to this tile.
    fn is_current(&self, tiles: &Tiles<Pane>, tile: TileId) -> bool {
        tiles.get_pane(&tile).is_some_and(|pane| pane.frozen.is_none() && pane.view == self.cx.focus.view)
    }
}

impl Behavior<Pane> for Panes<'_, '_> {
    fn pane_ui(&mut self, ui: &mut Ui, tile: TileId, pane: &mut Pane) -> UiResponse {
        let theme = self.theme();
        let current = pane.frozen.is_none() && pane.view == self.cx.focus.view;
        let pressed = ui.input(|input| input.pointer.any_pressed());
        if !current && pane.frozen.is_none() && pressed && ui.rect_contains_pointer(ui.max_rect()) {
            self.cx.emit(Command::Activate(pane.view));
        }
        // Steps of the keyboard are for the current pane alone.
        let step = if current { None } else { self.cx.ui.step.take() };
        Frame::NONE.fill(theme.bg).inner_margin(Margin::symmetric(12, 8)).show(ui, |ui| {
            if let Some(focus) = &pane.frozen {
                if frozen_bar(ui, self.cx, focus) {
                    self.close = Some(tile);
                }
                let mut cx =
                    Cx { focus, theme, loader: &mut *self.cx.loader, ui: &mut *self.cx.ui, out: &mut *self.cx.out };
                super::show(pane.view, ui, &mut cx);
            } else {
                super::show(pane.view, ui, self.cx);
            }
            ui.take_available_space();
        });
        if step.is_some() {
            self.cx.ui.step = step;
        }
        UiResponse::None
    }

    fn tab_title_for_pane(&mut self, pane: &Pane) -> WidgetText {
        match &pane.frozen {
            None => pane.view.title().into(),
            Some(_) => format!("■ {}", pane.view.title()).into(),
        }
    }

    /// A container is called by what is in it.
    fn tab_title_for_tile(&mut self, tiles: &Tiles<Pane>, tile: TileId) -> WidgetText {
        match tiles.get(tile) {
            Some(Tile::Pane(pane)) => self.tab_title_for_pane(pane),
            Some(Tile::Container(container)) => {
                let titles: Vec<&str> =
                    container.children().filter_map(|child| Some(tiles.get_pane(child)?.view.title())).collect();
                if titles.is_empty() { "Panes".into() } else { titles.join(" + ").into() }
            }
            None => "".into(),
        }
    }

    fn on_tab_button(&mut self, tiles: &mut Tiles<Pane>, tile: TileId, response: Response) -> Response {
        let Some(pane) = tiles.get_pane(&tile) else { return response };
        let command = Command::Show(pane.view);
        if response.clicked() && pane.frozen.is_none() && pane.view != self.cx.focus.view {
            self.cx.emit(command.clone());
        }
        if self.is_current(tiles, tile) {
            let under = response.rect;
            response.ctx.layer_painter(response.layer_id).with_clip_rect(under).hline(
                under.x_range(),
                under.bottom() - 1.0,
                Stroke::new(2.0, self.theme().accent),
            );
        }
        let tip = shell::with_keys(&response.ctx, pane.view.title(), &command);
        response.on_hover_text(format!("{tip}; drag it to put it elsewhere"))
    }

    fn is_tab_closable(&self, tiles: &Tiles<Pane>, tile: TileId) -> bool {
        tiles.get_pane(&tile).is_some_and(|pane| pane.frozen.is_some())
    }

    fn on_tab_close(&mut self, _: &mut Tiles<Pane>, tile: TileId) -> bool {
        self.close = Some(tile);
        false
    }

    fn on_edit(&mut self, action: EditAction) {
        match action {
            EditAction::TileResized => self.resized = true,
            EditAction::TileDropped => self.cx.ui.panes.edited = true,
            EditAction::TileDragged | EditAction::TabSelected => {}
        }
    }

    fn simplification_options(&self) -> SimplificationOptions {
        SIMPLIFY
    }

    /// Its keys are those of a browser's tabs, which fields and lists need for themselves.
    fn cycle_tabs_with_keyboard(&self) -> bool {
        false
    }

    fn tab_bar_height(&self, _: &egui::Style) -> f32 {
        28.0
    }

    fn gap_width(&self, _: &egui::Style) -> f32 {
        4.0
    }

    fn min_size(&self) -> f32 {
        120.0
    }

    fn tab_bar_color(&self, _: &Visuals) -> Color32 {
        self.theme().panel
    }

    fn tab_bg_color(&self, _: &Visuals, _: &Tiles<Pane>, _: TileId, state: &TabState) -> Color32 {
        if state.active { self.theme().bg } else { Color32::TRANSPARENT }
    }

    fn tab_outline_stroke(&self, _: &Visuals, _: &Tiles<Pane>, _: TileId, _: &TabState) -> Stroke {
        Stroke::NONE
    }

    fn tab_bar_hline_stroke(&self, _: &Visuals) -> Stroke {
        Stroke::new(1.0, self.theme().line)
    }

    fn tab_text_color(&self, _: &Visuals, _: &Tiles<Pane>, _: TileId, state: &TabState) -> Color32 {
        if state.active { self.theme().text } else { self.theme().text_dim }
    }
}

/// Says that a pane does not follow the focus, and of what it is about. True where it is to be closed.
fn frozen_bar(ui: &mut Ui, cx: &mut Cx<'_>, focus: &crate::state::Focus) -> bool {
    let theme = cx.theme;
    let mut close = false;
    ui.horizontal(|ui| {
        ui.label(RichText::new("■ Kept as it was").strong().color(theme.warning));
        if ui.small_button("Go there").on_hover_text("Let the other panes show this too").clicked() {
            cx.emit(Command::GoTo(Box::new(focus.clone())));
        }
        close = ui.small_button("Close pane").clicked();
    });
    ui.separator();
    close
}
