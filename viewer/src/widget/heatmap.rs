//! How is a grid of numbers drawn that has more cells than the screen has pixels?
//!
//! As one texture (a quad costs 0.004 ms; as many rectangles would cost 10 ms), made again only when the values, the
//! colors or the size change. Where several cells share a pixel, it shows the strongest of them, so that a lone spike
//! does not vanish, or their mean. Cells are whole pixels wide. Values stay beside the texture: what is read under the
//! pointer is a number, not a color.

use std::hash::{DefaultHasher, Hash, Hasher};

use egui::{
    Align2, Color32, ColorImage, FontId, Id, Rect, Response, Role, Sense, Stroke, StrokeKind, TextureHandle,
    TextureOptions, Ui, WidgetInfo, pos2, vec2,
};

use crate::theme::Theme;

/// A cell: its row, counted from below, and its column.
pub(crate) type Cell = (usize, usize);

/// What a pixel shows of the cells that share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Pool {
    #[default]
    Strongest,
    Mean,
}

/// A grid of numbers. Row 0 is at the bottom.
pub(crate) struct Heatmap<'a> {
    pub(crate) theme: &'a Theme,
    /// For screen readers and tests.
    pub(crate) name: &'a str,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    /// By row; what is not a number is left empty.
    pub(crate) values: &'a [f32],
    /// Another number whenever the values are others.
    pub(crate) version: u64,
    /// The values that get the first and the last color.
    pub(crate) range: (f32, f32),
    pub(crate) pool: Pool,
    pub(crate) selected: Option<Cell>,
    /// What the pointer is on in another pane.
    pub(crate) hovered: Option<Cell>,
    pub(crate) row_title: &'a dyn Fn(usize) -> String,
    /// What a column is called, where it should be written under it.
    pub(crate) column_title: Option<&'a dyn Fn(usize) -> String>,
    /// Lines about a cell, the first of which screen readers get.
    pub(crate) about: &'a dyn Fn(Cell) -> Vec<String>,
    /// The tallest that it may be.
    pub(crate) height: f32,
}

/// What the pointer does.
pub(crate) struct HeatmapResponse {
    pub(crate) response: Response,
    pub(crate) hovered: Option<Cell>,
    /// Where the cells are.
    pub(crate) cells: Rect,
}

/// Room for the titles of rows.
const TITLES: f32 = 40.0;
/// Room for the titles of columns.
const UNDER: f32 = 16.0;
/// The largest side of a cell.
const MAX_CELL: f32 = 26.0;

#[derive(Clone)]
struct Drawn {
    key: u64,
    texture: TextureHandle,
}

/// How cells lie on the screen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Grid {
    rect: Rect,
    n_rows: usize,
    n_cols: usize,
    /// Pixels of the texture, which are cells where cells are at least a pixel.
    pixels: (usize, usize),
}

impl Heatmap<'_> {
    pub(crate) fn show(self, ui: &mut Ui) -> HeatmapResponse {
        let per_point = ui.pixels_per_point();
        let under = if self.column_title.is_some() { UNDER } else { 0.0 };
        let room = vec2((ui.available_width() - TITLES).max(20.0), (self.height - under).max(20.0));
        let (width, columns) = side(room.x, self.n_cols, per_point);
        let (height, rows) = side(room.y, self.n_rows, per_point);
        let (outer, response) = ui.allocate_exact_size(vec2(width + TITLES, height + under), Sense::click());
        let left = (outer.left() * per_point).round() / per_point;
        let top = (outer.top() * per_point).round() / per_point;
        let rect = Rect::from_min_size(pos2(left + TITLES, top), vec2(width, height));
        let grid = Grid { rect, n_rows: self.n_rows, n_cols: self.n_cols, pixels: (columns, rows) };
        let hovered = response.hover_pos().and_then(|pointer| grid.at(pointer));
        response.widget_info(|| {
            let about = hovered.or(self.selected).map(|cell| (self.about)(cell).join(", "));
            let about = about.filter(|about| !about.is_empty()).map(|about| format!(": {about}")).unwrap_or_default();
            WidgetInfo::labeled(Role::Image, true, format!("{}, {} × {}{about}", self.name, self.n_rows, self.n_cols))
        });
        if ui.is_rect_visible(outer) && self.n_rows > 0 && self.n_cols > 0 {
            let texture = self.texture(ui, response.id, grid.pixels);
            let uv = Rect::from_min_max(pos2(0.0, 0.0), pos2(1.0, 1.0));
            ui.painter().rect_filled(rect, 0.0, self.theme.inset);
            ui.painter().image(texture.id(), rect, uv, Color32::WHITE);
            self.titles(ui, grid);
            self.column_titles(ui, grid);
            let outline = |cell: Cell, width: f32, color: Color32| {
                let rect = grid.of(cell).expand(1.0);
                ui.painter().rect_stroke(rect, 1.0, Stroke::new(width, color), StrokeKind::Outside);
            };
            if let Some(cell) = hovered.or(self.hovered).filter(|cell| grid.holds(*cell)) {
                outline(cell, 1.0, self.theme.accent);
            }
            if let Some(cell) = self.selected.filter(|cell| grid.holds(*cell)) {
                let at = grid.of(cell).center();
                let thin = Stroke::new(1.0, self.theme.outline.gamma_multiply(0.35));
                ui.painter().hline(rect.x_range(), at.y, thin);
                ui.painter().vline(at.x, rect.y_range(), thin);
                outline(cell, 2.0, self.theme.outline);
            }
        }
        let response = match hovered {
            Some(cell) => {
                let lines = (self.about)(cell);
                let dim = self.theme.text_dim;
                response.on_hover_ui_at_pointer(|ui| {
                    for (i, line) in lines.iter().enumerate() {
                        let text = egui::RichText::new(line);
                        ui.label(if i == 0 { text } else { text.color(dim) });
                    }
                })
            }
            None => response,
        };
        HeatmapResponse { response, hovered, cells: rect }
    }

    fn titles(&self, ui: &Ui, grid: Grid) {
        let font = FontId::proportional(11.0);
        let step = grid.rect.height() / self.n_rows as f32;
        let every = (13.0 / step).ceil().max(1.0) as usize;
        for row in (0..self.n_rows).step_by(every) {
            let y = grid.rect.bottom() - (row as f32 + 0.5) * step;
            let color = if self.selected.is_some_and(|(selected, _)| selected == row) {
                self.theme.text
            } else {
                self.theme.text_dim
            };
            ui.painter().text(
                pos2(grid.rect.left() - 6.0, y),
                Align2::RIGHT_CENTER,
                (self.row_title)(row),
                font.clone(),
                color,
            );
        }
    }

    fn column_titles(&self, ui: &Ui, grid: Grid) {
        let Some(title) = self.column_title else { return };
        let step = grid.rect.width() / self.n_cols as f32;
        let every = (30.0 / step).ceil().max(1.0) as usize;
        for column in (0..self.n_cols).step_by(every) {
            let at = pos2(grid.rect.left() + (column as f32 + 0.5) * step, grid.rect.bottom() + 3.0);
            let font = FontId::proportional(11.0);
            ui.painter().text(at, Align2::CENTER_TOP, title(column), font, self.theme.text_dim);
        }
    }

    fn texture(&self, ui: &Ui, id: Id, pixels: (usize, usize)) -> TextureHandle {
        let mut hasher = DefaultHasher::new();
        let (low, high) = self.range;
        (self.version, self.theme.name, pixels, low.to_bits(), high.to_bits(), self.pool).hash(&mut hasher);
        let key = hasher.finish();
        let drawn: Option<Drawn> = ui.data(|data| data.get_temp(id));
        if let Some(drawn) = drawn.filter(|drawn| drawn.key == key) {
            return drawn.texture;
        }
        let values = pool(self.values, (self.n_cols, self.n_rows), pixels, self.pool);
        let span = (high - low).max(f32::MIN_POSITIVE);
        let colors = values
            .into_iter()
            .map(|value| if value.is_nan() { Color32::TRANSPARENT } else { self.theme.heat((value - low) / span) });
        let image = ColorImage::new([pixels.0, pixels.1], colors.collect());
        let texture = ui.load_texture(self.name, image, TextureOptions::NEAREST);
        ui.data_mut(|data| data.insert_temp(id, Drawn { key, texture: texture.clone() }));
        texture
    }
}

/// How long `n` cells are in `room` points, and of how many pixels of a texture.
fn side(room: f32, n: usize, per_point: f32) -> (f32, usize) {
    let pixels = (room * per_point).floor().max(1.0);
    let whole = (pixels / n.max(1) as f32).floor();
    if whole >= 1.0 {
        let cell = whole.min((MAX_CELL * per_point).floor());
        (cell * n as f32 / per_point, n)
    } else {
        (pixels / per_point, pixels as usize)
    }
}

/// The values of the pixels, from the top, where each has one cell or several.
fn pool(values: &[f32], (columns, rows): (usize, usize), (width, height): (usize, usize), how: Pool) -> Vec<f32> {
    let mut out = Vec::with_capacity(width * height);
    let part = |i: usize, pixels: usize, cells: usize| {
        let start = i * cells / pixels;
        start..((i + 1) * cells / pixels).max(start + 1).min(cells)
    };
    for y in 0..height {
        let of_rows = part(height - 1 - y, height, rows);
        for x in 0..width {
            let of_columns = part(x, width, columns);
            let (mut n, mut sum, mut most) = (0_u32, 0.0_f32, f32::NAN);
            for row in of_rows.clone() {
                for value in values.get(row * columns + of_columns.start..row * columns + of_columns.end).unwrap_or(&[])
                {
                    if !value.is_nan() {
                        n += 1;
                        sum += value;
                        most = most.max(*value);
                    }
                }
            }
            out.push(if how == Pool::Mean && n > 0 { sum / n as f32 } else { most });
        }
    }
    out
}

impl Grid {
    fn holds(&self, (row, column): Cell) -> bool {
        row < self.n_rows && column < self.n_cols
    }

    fn cell_size(&self) -> egui::Vec2 {
        vec2(self.rect.width() / self.n_cols.max(1) as f32, self.rect.height() / self.n_rows.max(1) as f32)
    }

    fn at(&self, point: egui::Pos2) -> Option<Cell> {
        if !self.rect.contains(point) {
            return None;
        }
        let size = self.cell_size();
        let row = ((self.rect.bottom() - point.y) / size.y) as usize;
        let column = ((point.x - self.rect.left()) / size.x) as usize;
        Some((row.min(self.n_rows.checked_sub(1)?), column.min(self.n_cols.checked_sub(1)?)))
    }

    /// Where a cell is; never thinner than can be seen.
    fn of(&self, (row, column): Cell) -> Rect {
        let size = self.cell_size();
        let min = pos2(self.rect.left() + column as f32 * size.x, self.rect.bottom() - (row + 1) as f32 * size.y);
        let rect = Rect::from_min_size(min, size);
        Rect::from_center_size(rect.center(), rect.size().max(vec2(3.0, 3.0)))
    }
}

/// The first and the 99th hundredth of what is finite, so that one outlier does not flatten the rest.
pub(crate) fn spread(values: impl Iterator<Item = f32>) -> Option<(f32, f32)> {
    let mut finite: Vec<f32> = values.filter(|value| value.is_finite()).collect();
    let last = finite.len().checked_sub(1)?;
    let mut at = |share: f64| *finite.select_nth_unstable_by((last as f64 * share) as usize, f32::total_cmp).1;
    let (low, high) = (at(0.01), at(0.99));
    Some(if low < high { (low, high) } else { (low.min(0.0), high.max(low.min(0.0) + f32::MIN_POSITIVE)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_spike_stays_and_the_mean_is_a_mean() {
        let mut values = vec![0.0; 4 * 1_000];
        values[2 * 1_000 + 777] = 9.0;
        let most = pool(&values, (1_000, 4), (100, 2), Pool::Strongest);
        // Rows 2 and 3 are the upper pixel; the column is the 78th of 100.
        assert_eq!(most[77], 9.0);
        assert_eq!(most.iter().filter(|v| **v > 0.0).count(), 1);
        let mean = pool(&values, (1_000, 4), (100, 2), Pool::Mean);
        assert!((mean[77] - 9.0 / 20.0).abs() < 1e-6);
    }

    #[test]
    fn cells_are_whole_pixels_and_gaps_stay_empty() {
        assert_eq!(side(1_000.0, 300, 1.0), (900.0, 300));
        assert_eq!(side(1_000.0, 2_048, 1.0), (1_000.0, 1_000));
        assert_eq!(side(1_000.0, 2, 2.0), (2.0 * MAX_CELL, 2));
        let values = pool(&[1.0, f32::NAN, 2.0, 3.0], (2, 2), (2, 2), Pool::Strongest);
        // From the top: the second row comes first.
        assert_eq!((values[0], values[1], values[2]), (2.0, 3.0, 1.0));
        assert!(values[3].is_nan());
    }

    #[test]
    fn what_is_pointed_at_is_where_it_is_drawn() {
        let rect = Rect::from_min_size(pos2(10.0, 20.0), vec2(300.0, 80.0));
        let grid = Grid { rect, n_rows: 8, n_cols: 30, pixels: (30, 8) };
        for cell in [(0, 0), (7, 29), (3, 11)] {
            assert_eq!(grid.at(grid.of(cell).center()), Some(cell));
        }
        assert_eq!(grid.at(pos2(0.0, 0.0)), None);
        let none = Grid { n_rows: 0, n_cols: 0, ..grid };
        assert_eq!(none.at(rect.center()), None);
    }

    #[test]
    fn a_spread_leaves_outliers_out() {
        let values = (0..1_000).map(|i| if i == 5 { 1e9 } else { i as f32 });
        assert_eq!(spread(values), Some((10.0, 990.0)));
        assert_eq!(spread([f32::NAN].into_iter()), None);
        let (low, high) = spread([3.0, 3.0].into_iter()).unwrap();
        assert!(low < high);
    }
}
