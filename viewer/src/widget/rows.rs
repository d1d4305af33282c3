//! How are rows scrolled whose number does not fit into a screen, into memory, or into an `f32`?
//!
//! egui's scrollers keep the offset in points as `f32`, which starts to jump at a million rows. Here the position is
//! a row number in 64 bits and a fraction of one row; nothing multiplies a row number by a height.

use std::ops::Range;

use egui::{Id, Rect, Role, Sense, Ui, UiBuilder, WidgetInfo, pos2, vec2};

use crate::theme::Theme;

const BAR_WIDTH: f32 = 10.0;
const MIN_THUMB: f32 = 28.0;

/// Rows that are drawn only where they are seen. The scroll position lives in egui's memory under the id.
pub(crate) struct VirtualRows {
    pub(crate) id: Id,
    /// What the rows are, for screen readers and tests.
    pub(crate) name: &'static str,
    pub(crate) total: u64,
    pub(crate) row_height: f32,
    /// The row that stays in sight when it changes.
    pub(crate) cursor: Option<u64>,
}

/// Where the rows are scrolled to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Position {
    /// The first row that is at least partly seen.
    top: u64,
    /// How many points of it are scrolled out, below one row.
    hidden: f32,
}

#[derive(Clone, Copy, Default)]
struct State {
    position: Position,
    /// The cursor that was last brought into sight.
    revealed: Option<(Option<u64>, u64)>,
}

/// What does not change while scrolling.
#[derive(Debug, Clone, Copy)]
struct Extent {
    total: u64,
    row: f32,
    view: f32,
}

impl VirtualRows {
    /// Fills the space that is left, and calls `draw` for each row that is seen, with its rectangle.
    /// Returns the rows that were drawn.
    pub(crate) fn show(self, ui: &mut Ui, theme: &Theme, mut draw: impl FnMut(&mut Ui, u64, Rect)) -> Range<u64> {
        let outer = ui.available_rect_before_wrap();
        let response = ui.allocate_rect(outer, Sense::hover());
        response.widget_info(|| {
            WidgetInfo::labeled(Role::List, true, format!("{}, {} rows", self.name, super::grouped(self.total)))
        });
        let body = Rect::from_min_max(outer.min, pos2(outer.max.x - BAR_WIDTH - 2.0, outer.max.y));
        let extent = Extent { total: self.total, row: self.row_height, view: body.height() };
        let mut state: State = ui.data(|data| data.get_temp(self.id)).unwrap_or_default();

        if state.revealed != Some((self.cursor, self.total)) {
            if let Some(cursor) = self.cursor {
                state.position = extent.reveal(state.position, cursor);
            }
            state.revealed = Some((self.cursor, self.total));
        }
        if ui.rect_contains_pointer(outer) {
            let wheel = ui.input(|input| input.smooth_scroll_delta().y);
            state.position = extent.scroll(state.position, -wheel);
        }
        state.position = self.scroll_bar(ui, theme, outer, extent, state.position);
        state.position = extent.clamp(state.position);
        ui.data_mut(|data| data.insert_temp(self.id, state));

        let mut child = ui.new_child(UiBuilder::new().id_salt(self.id).max_rect(body));
        child.set_clip_rect(body.intersect(ui.clip_rect()));
        let rows = extent.seen(state.position);
        for (i, row) in rows.clone().enumerate() {
            let y = body.top() - state.position.hidden + i as f32 * self.row_height;
            draw(&mut child, row, Rect::from_min_size(pos2(body.left(), y), vec2(body.width(), self.row_height)));
        }
        rows
    }

    fn scroll_bar(&self, ui: &Ui, theme: &Theme, outer: Rect, extent: Extent, position: Position) -> Position {
        let track = Rect::from_min_max(pos2(outer.max.x - BAR_WIDTH, outer.min.y), outer.max);
        let last = extent.last();
        if last == Position::default() || track.height() < MIN_THUMB * 2.0 {
            return position;
        }
        let length = (extent.share_seen() as f32 * track.height()).max(MIN_THUMB);
        let room = track.height() - length;
        let response = ui.interact(track, self.id.with("bar"), Sense::click_and_drag());
        let mut position = position;
        if let Some(pointer) = response.interact_pointer_pos() {
            let share = (pointer.y - track.top() - length / 2.0) / room;
            position = extent.at(f64::from(share));
        }
        let top = track.top() + room * extent.share_of(position) as f32;
        let thumb = Rect::from_min_size(pos2(track.left() + 2.0, top), vec2(BAR_WIDTH - 4.0, length));
        let held = response.hovered() || response.dragged();
        ui.painter().rect_filled(thumb, 3.0, if held { theme.line_strong } else { theme.line });
        position
    }
}

impl Extent {
    /// The position at which the last row stands at the bottom.
    fn last(self) -> Position {
        let whole = (f64::from(self.view) / f64::from(self.row)).ceil().max(0.0) as u64;
        if self.total < whole {
            return Position::default();
        }
        Position { top: self.total - whole, hidden: whole as f32 * self.row - self.view }.normal(self)
    }

    fn clamp(self, position: Position) -> Position {
        let last = self.last();
        if (position.top, position.hidden) > (last.top, last.hidden) { last } else { position }
    }

    /// Scrolls down by so many points, or up where they are negative.
    fn scroll(self, position: Position, points: f32) -> Position {
        let moved = position.hidden + points;
        let rows = (moved / self.row).floor();
        let hidden = moved - rows * self.row;
        let top = if rows < 0.0 {
            let up = (-rows) as u64;
            if up > position.top {
                return Position::default();
            }
            position.top - up
        } else {
            position.top.saturating_add(rows as u64)
        };
        self.clamp(Position { top, hidden }.normal(self))
    }

    /// The nearest position in which the row is wholly seen.
    fn reveal(self, position: Position, row: u64) -> Position {
        let row = row.min(self.total.saturating_sub(1));
        if row < position.top || (row == position.top && position.hidden > 0.0) {
            return self.clamp(Position { top: row, hidden: 0.0 });
        }
        let fit = (self.view / self.row).floor().max(1.0) as u64;
        let below = (row - position.top) as f64 + 1.0;
        let fits = below * f64::from(self.row) - f64::from(position.hidden) <= f64::from(self.view);
        if fits { self.clamp(position) } else { self.clamp(Position { top: row - (fit - 1).min(row), hidden: 0.0 }) }
    }

    fn seen(self, position: Position) -> Range<u64> {
        let n = ((self.view + position.hidden) / self.row).ceil().max(0.0) as u64;
        position.top..self.total.min(position.top.saturating_add(n))
    }

    fn share_seen(self) -> f64 {
        f64::from(self.view) / f64::from(self.row) / (self.total.max(1) as f64)
    }

    /// How far down the position is, 0 to 1.
    fn share_of(self, position: Position) -> f64 {
        let rows = |p: Position| p.top as f64 + f64::from(p.hidden / self.row);
        (rows(position) / rows(self.last()).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0)
    }

    fn at(self, share: f64) -> Position {
        if share >= 1.0 {
            return self.last();
        }
        let top = (share.max(0.0) * self.last().top as f64) as u64;
        self.clamp(Position { top, hidden: 0.0 })
    }
}

impl Position {
    /// Rounding may leave a whole row in `hidden`.
    fn normal(self, extent: Extent) -> Self {
        if self.hidden >= extent.row {
            Self { top: self.top.saturating_add(1), hidden: (self.hidden - extent.row).max(0.0) }
        } else {
            Self { hidden: self.hidden.max(0.0), ..self }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TALL: Extent = Extent { total: u64::MAX, row: 18.0, view: 600.0 };

    #[test]
    fn scrolling_is_exact_at_any_row() {
        for top in [0, 1, 932_067, 1 << 40, u64::MAX - 100] {
            let start = Position { top, hidden: 0.0 };
            let mut at = start;
            for _ in 0..36 {
                at = TALL.scroll(at, 1.0);
            }
            assert_eq!(at, Position { top: top + 2, hidden: 0.0 });
            for _ in 0..12 {
                at = TALL.scroll(at, -3.0);
            }
            assert_eq!(at, start);
        }
    }

    #[test]
    fn the_ends_hold() {
        assert_eq!(TALL.scroll(Position { top: 3, hidden: 5.0 }, -1e9), Position::default());
        let last = TALL.last();
        assert_eq!(TALL.scroll(last, 1e6), last);
        assert_eq!(TALL.seen(last).end, u64::MAX);
        let short = Extent { total: 3, ..TALL };
        assert_eq!(short.last(), Position::default());
        assert_eq!(short.scroll(Position::default(), 500.0), Position::default());
        assert_eq!(short.seen(Position::default()), 0..3);
        let none = Extent { total: 0, ..TALL };
        assert_eq!(none.seen(none.reveal(Position::default(), 0)), 0..0);
    }

    #[test]
    fn the_last_row_ends_at_the_bottom() {
        let extent = Extent { total: 100, row: 18.0, view: 605.0 };
        let last = extent.last();
        let height = (100 - last.top) as f32 * 18.0 - last.hidden;
        assert!((height - 605.0).abs() < 0.01, "{height}");
    }

    #[test]
    fn a_revealed_row_is_wholly_seen() {
        for row in [0, 5, 32, 33, 34, 1_000, u64::MAX - 1] {
            for top in [0, 10, 990, u64::MAX - 60] {
                let at = TALL.reveal(Position { top, hidden: 7.0 }, row);
                let above = (row - at.top) as f32 * 18.0 - at.hidden;
                assert!(above >= 0.0 && above + 18.0 <= 600.01, "row {row} from {top}: {at:?}");
            }
        }
    }

    #[test]
    fn a_row_in_sight_does_not_move() {
        let at = Position { top: 100, hidden: 4.0 };
        assert_eq!(TALL.reveal(at, 110), at);
    }

    #[test]
    fn the_bar_reaches_both_ends() {
        assert_eq!(TALL.at(0.0), Position::default());
        assert_eq!(TALL.at(1.0), TALL.last());
        assert_eq!(TALL.at(-3.0), Position::default());
        let half = TALL.at(0.5);
        assert!((TALL.share_of(half) - 0.5).abs() < 1e-9);
    }
}
