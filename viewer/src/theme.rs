//! Which colors, sizes and fonts does everything have?
//!
//! One table of tokens, named by meaning. No other file names a color.

use std::fmt;
use std::str::FromStr;

use egui::epaint::Shadow;
use egui::{Color32, CornerRadius, FontDefinitions, FontFamily, FontId, Margin, Stroke, TextStyle, Visuals, vec2};

use crate::error::Error;

/// A map from 0–1 to a color.
type Gradient = fn(f64) -> colorous::Color;

/// The colors of one theme, by meaning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Theme {
    pub(crate) name: &'static str,
    pub(crate) dark: bool,
    /// Behind everything.
    pub(crate) bg: Color32,
    /// Top bar, status bar, side panels.
    pub(crate) panel: Color32,
    /// Cards, buttons.
    pub(crate) raised: Color32,
    /// Text fields, plots.
    pub(crate) inset: Color32,
    /// Hairlines between things.
    pub(crate) line: Color32,
    /// Edges that must be seen.
    pub(crate) line_strong: Color32,
    pub(crate) text: Color32,
    pub(crate) text_dim: Color32,
    /// Links, the current tab, the main series.
    pub(crate) accent: Color32,
    pub(crate) selection: Color32,
    pub(crate) hover: Color32,
    /// The outline of the selected token or row.
    pub(crate) outline: Color32,
    pub(crate) warning: Color32,
    pub(crate) error: Color32,
    /// Positive and negative, in lists of logits.
    pub(crate) positive: Color32,
    pub(crate) negative: Color32,
    /// Up to eight series in charts (Okabe–Ito, safe for color-blind readers).
    pub(crate) series: [Color32; 7],
    /// The part of the sequential map that stands out from the background, from low to high.
    heat: (f64, f64),
    /// How strong the lowest color is: below 1 it is mixed with the background, so that text stays pleasant to read.
    heat_floor: f32,
    gradient: Gradient,
}

const fn hex(rgb: u32) -> Color32 {
    Color32::from_rgb((rgb >> 16) as u8, (rgb >> 8) as u8, rgb as u8)
}

/// The three themes.
#[cfg(test)]
pub(crate) const THEMES: [Theme; 3] = [DARK, LIGHT, PAPER];

const DARK: Theme = Theme {
    name: "dark",
    dark: true,
    bg: hex(0x12_14_18),
    panel: hex(0x18_1b_20),
    raised: hex(0x22_26_2d),
    inset: hex(0x0d_0f_12),
    line: hex(0x2a_2f_37),
    line_strong: hex(0x4a_52_5e),
    text: hex(0xe4_e7_eb),
    text_dim: hex(0x9a_a3_af),
    accent: hex(0x6c_b6_ff),
    selection: hex(0x1d_3b_5c),
    hover: hex(0x2b_31_3a),
    outline: hex(0xff_ff_ff),
    warning: hex(0xe8_b3_4b),
    error: hex(0xff_7b_72),
    positive: hex(0xf2_a6_5a),
    negative: hex(0xa5_98_f0),
    series: [
        hex(0x6c_b6_ff),
        hex(0xe6_9f_00),
        hex(0x2f_c4_96),
        hex(0xcc_79_a7),
        hex(0xf0_e4_42),
        hex(0xe8_72_3c),
        hex(0xb0_b8_c2),
    ],
    heat: (0.22, 1.0),
    heat_floor: 0.75,
    gradient: viridis,
};

const LIGHT: Theme = Theme {
    name: "light",
    dark: false,
    bg: hex(0xfb_fb_fc),
    panel: hex(0xf1_f3_f5),
    raised: hex(0xff_ff_ff),
    inset: hex(0xff_ff_ff),
    line: hex(0xdd_e1_e6),
    line_strong: hex(0x8d_96_a3),
    text: hex(0x1c_20_26),
    text_dim: hex(0x5a_64_71),
    accent: hex(0x0a_5f_b8),
    selection: hex(0xcf_e4_fa),
    hover: hex(0xe6_ea_ef),
    outline: hex(0x10_12_18),
    warning: hex(0x8a_5a_00),
    error: hex(0xb4_23_18),
    positive: hex(0xa8_4a_00),
    negative: hex(0x5a_44_b8),
    series: [
        hex(0x00_72_b2),
        hex(0xb8_72_00),
        hex(0x00_80_5c),
        hex(0xb0_53_88),
        hex(0x8f_84_00),
        hex(0xc4_4e_00),
        hex(0x5a_64_71),
    ],
    heat: (0.02, 0.92),
    heat_floor: 0.35,
    gradient: cividis_reversed,
};

/// For figures: white, thin lines, no fills.
const PAPER: Theme = Theme {
    name: "paper",
    bg: hex(0xff_ff_ff),
    panel: hex(0xff_ff_ff),
    raised: hex(0xff_ff_ff),
    hover: hex(0xee_ee_ee),
    line: hex(0xc8_c8_c8),
    text: hex(0x00_00_00),
    text_dim: hex(0x44_44_44),
    ..LIGHT
};

fn viridis(t: f64) -> colorous::Color {
    colorous::VIRIDIS.eval_continuous(t)
}

fn cividis_reversed(t: f64) -> colorous::Color {
    colorous::CIVIDIS.eval_continuous(1.0 - t)
}

impl Theme {
    /// The color of a non-negative value, 0 (lowest) to 1 (highest).
    pub(crate) fn heat(&self, t: f32) -> Color32 {
        let (low, high) = self.heat;
        let t = t.clamp(0.0, 1.0);
        let c = (self.gradient)(low + (high - low) * f64::from(t));
        let strength = self.heat_floor + (1.0 - self.heat_floor) * t;
        self.bg.lerp_to_gamma(Color32::from_rgb(c.r, c.g, c.b), strength)
    }

    /// Hands every size and color to egui.
    pub(crate) fn apply(&self, ctx: &egui::Context) {
        ctx.all_styles_mut(|style| {
            let blink = style.visuals.text_cursor.blink;
            style.visuals = self.visuals();
            style.visuals.text_cursor.blink = blink;
            style.text_styles = [
                (TextStyle::Small, FontId::proportional(11.5)),
                (TextStyle::Body, FontId::proportional(13.5)),
                (TextStyle::Button, FontId::proportional(13.5)),
                (TextStyle::Monospace, FontId::monospace(12.5)),
                (TextStyle::Heading, FontId::proportional(19.0)),
            ]
            .into();
            let spacing = &mut style.spacing;
            spacing.item_spacing = vec2(8.0, 6.0);
            spacing.button_padding = vec2(8.0, 3.0);
            spacing.interact_size = vec2(28.0, 24.0);
            spacing.window_margin = Margin::same(14);
            spacing.menu_margin = Margin::same(8);
            style.interaction.selectable_labels = false;
        });
        ctx.options_mut(|options| options.zoom_with_keyboard = false);
    }

    fn visuals(&self) -> Visuals {
        let mut v = if self.dark { Visuals::dark() } else { Visuals::light() };
        v.panel_fill = self.bg;
        v.window_fill = self.panel;
        v.window_stroke = Stroke::new(1.0, self.line_strong);
        v.window_corner_radius = CornerRadius::same(8);
        v.menu_corner_radius = CornerRadius::same(6);
        let shadow = Shadow { offset: [0, 6], blur: 24, spread: 0, color: Color32::from_black_alpha(90) };
        v.window_shadow = shadow;
        v.popup_shadow = shadow;
        v.extreme_bg_color = self.inset;
        v.text_edit_bg_color = Some(self.inset);
        v.faint_bg_color = self.panel;
        v.code_bg_color = self.raised;
        v.hyperlink_color = self.accent;
        v.warn_fg_color = self.warning;
        v.error_fg_color = self.error;
        v.weak_text_color = Some(self.text_dim);
        v.selection.bg_fill = self.selection;
        v.selection.stroke = Stroke::new(1.0, self.accent);
        v.striped = false;
        let corner = CornerRadius::same(4);
        for (widget, fill, edge, text) in [
            (&mut v.widgets.noninteractive, self.bg, self.line, self.text),
            (&mut v.widgets.inactive, self.raised, self.line, self.text),
            (&mut v.widgets.hovered, self.hover, self.line_strong, self.text),
            (&mut v.widgets.active, self.selection, self.accent, self.text),
            (&mut v.widgets.open, self.hover, self.line_strong, self.text),
        ] {
            widget.bg_fill = fill;
            widget.weak_bg_fill = fill;
            widget.bg_stroke = Stroke::new(1.0, edge);
            widget.fg_stroke = Stroke::new(1.0, text);
            widget.corner_radius = corner;
            widget.expansion = 0.0;
        }
        v
    }
}

/// Text that can be read on `background`.
pub(crate) fn text_on(background: Color32) -> Color32 {
    let (black, white) = (hex(0x0a_0b_0d), hex(0xff_ff_ff));
    if contrast(black, background) >= contrast(white, background) { black } else { white }
}

/// The bundled fonts, with the monospace face behind the proportional one:
/// arrows, boxes and dots exist in the first only.
pub(crate) fn install_fonts(ctx: &egui::Context) {
    let mut fonts = FontDefinitions::default();
    let mono: Vec<String> = fonts.families.get(&FontFamily::Monospace).cloned().unwrap_or_default();
    let names = fonts.families.entry(FontFamily::Proportional).or_default();
    for name in mono {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    ctx.set_fonts(fonts);
}

/// What the person asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ThemeChoice {
    /// As the desktop says; dark where it says nothing.
    #[default]
    System,
    /// Light text on dark.
    Dark,
    /// Dark text on light.
    Light,
    /// White with thin lines, for figures.
    Paper,
}

impl ThemeChoice {
    /// The table to draw with.
    pub(crate) fn resolve(self, ctx: &egui::Context) -> &'static Theme {
        match self {
            Self::System if ctx.system_theme() == Some(egui::Theme::Light) => &LIGHT,
            Self::System | Self::Dark => &DARK,
            Self::Light => &LIGHT,
            Self::Paper => &PAPER,
        }
    }

    /// The one after this, for the key that goes round.
    pub(crate) fn next(self) -> Self {
        match self {
            Self::System | Self::Dark => Self::Light,
            Self::Light => Self::Paper,
            Self::Paper => Self::Dark,
        }
    }
}

impl fmt::Display for ThemeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "system",
            Self::Dark => "dark",
            Self::Light => "light",
            Self::Paper => "paper",
        })
    }
}

impl FromStr for ThemeChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::System, Self::Dark, Self::Light, Self::Paper]
            .into_iter()
            .find(|choice| choice.to_string() == name)
            .ok_or_else(|| Error::Name { name: name.to_owned(), expected: "`system`, `dark`, `light`, `paper`" })
    }
}

/// WCAG 2.1 contrast ratio of two opaque colors, 1 to 21.
pub(crate) fn contrast(a: Color32, b: Color32) -> f64 {
    let luminance = |c: Color32| {
        let channel = |v: u8| {
            let v = f64::from(v) / 255.0;
            if v <= 0.040_45 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(c.r()) + 0.7152 * channel(c.g()) + 0.0722 * channel(c.b())
    };
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_readable_on_every_surface() {
        for theme in THEMES {
            for (surface, bg) in [
                ("bg", theme.bg),
                ("panel", theme.panel),
                ("raised", theme.raised),
                ("inset", theme.inset),
                ("selection", theme.selection),
                ("hover", theme.hover),
            ] {
                for (what, fg) in [
                    ("text", theme.text),
                    ("text_dim", theme.text_dim),
                    ("accent", theme.accent),
                    ("warning", theme.warning),
                    ("error", theme.error),
                    ("positive", theme.positive),
                    ("negative", theme.negative),
                ] {
                    let ratio = contrast(fg, bg);
                    assert!(ratio >= 4.4, "{} {what} on {surface}: {ratio:.2}", theme.name);
                }
            }
        }
    }

    #[test]
    fn marks_stand_out() {
        for theme in THEMES {
            for (i, series) in theme.series.into_iter().enumerate() {
                let ratio = contrast(series, theme.inset);
                assert!(ratio >= 3.0, "{} series {i}: {ratio:.2}", theme.name);
            }
        }
    }

    #[test]
    fn colored_tokens_stay_readable_and_monotone() {
        for theme in THEMES {
            let mut last = None;
            for step in 0_u8..=20 {
                let color = theme.heat(f32::from(step) / 20.0);
                let ratio = contrast(text_on(color), color);
                assert!(ratio >= 4.4, "{} at {step}: {ratio:.2}", theme.name);
                let from_bg = contrast(color, theme.bg);
                if let Some(last) = last {
                    assert!(from_bg >= last - 0.02, "{} falls at {step}", theme.name);
                }
                last = Some(from_bg);
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for choice in [ThemeChoice::System, ThemeChoice::Dark, ThemeChoice::Light, ThemeChoice::Paper] {
            assert_eq!(choice.to_string().parse::<ThemeChoice>().unwrap(), choice);
        }
        assert!("sepia".parse::<ThemeChoice>().is_err());
    }
}
