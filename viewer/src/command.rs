//! What can a person do here?
//!
//! Everything is one variant of [`Command`]. [`TABLE`] gives those that need no argument a title and a key;
//! the keyboard, the palette, the cheat sheet and the tests are all made from it.

use std::path::PathBuf;

use data::annotations::Annotation;
use egui::{Key, KeyboardShortcut, Modifiers};

use crate::layout::Preset;
use crate::state::{ColorBy, Item, Metric, Scope, SortBy, View};
use crate::theme::ThemeChoice;

/// Everything that a person can do. Drawing code emits these; [`crate::app::App::apply`] carries them out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    OpenRun(PathBuf),
    FollowLink(String),
    Show(View),
    /// Makes a pane that is on the screen the one that the keyboard goes to; no step of the history.
    Activate(View),
    /// An arrangement of panes.
    Arrange(Preset),
    /// Keeps what the pane shows beside it, while the focus moves on.
    Freeze,
    /// Goes to what another pane was frozen on.
    GoTo(Box<crate::state::Focus>),
    UndoLayout,
    RedoLayout,
    /// Pins what the view is about, or takes the pin out.
    Pin,
    PinItem(Item),
    ClearPins,
    OpenItem(Item),
    Back,
    Forward,
    /// Another feature table.
    UseTable(String),
    /// The page of a feature.
    OpenFeature(u32),
    /// Selects a feature where it stands, without leaving the view.
    SelectFeature(u32),
    /// A document, with the token to select, counted from its first.
    OpenDocument {
        doc: u64,
        token: Option<u64>,
    },
    /// Selects a token of the document that is shown.
    SelectToken(u64),
    NextFeature,
    PreviousFeature,
    NextDocument,
    PreviousDocument,
    /// Moves the cursor of the view: rows, or tokens.
    Move(Step),
    /// Opens what the cursor is on.
    Open,
    Sort(SortBy),
    NextSort,
    ReverseSort,
    Filter(String),
    FocusFilter,
    ColorBy(ColorBy),
    NextColor,
    /// The hook point whose norms color the tokens.
    UseHook(String),
    UseMetric(Metric),
    NextMetric,
    UseScope(Scope),
    UseLayer(usize),
    /// A token of the document at a layer, where it stands.
    SelectCell {
        token: u64,
        layer: usize,
    },
    /// The page of an expert.
    OpenExpert {
        layer: usize,
        expert: u16,
    },
    SelectExpert {
        layer: usize,
        expert: u16,
    },
    NextExpert,
    PreviousExpert,
    /// The embeddings of a token of the vocabulary.
    OpenRow(u32),
    /// Follows the selected token again.
    FollowToken,
    RunSql(String),
    /// Something that a person says of a feature, an expert, a row.
    Say(Box<Annotation>),
    /// How well the label of the feature holds.
    Rate(u8),
    FocusLabel,
    /// The coder whose training curves the overview shows.
    UseCoder(String),
    ToggleWhitespace,
    ToggleContext,
    CopyLink,
    /// Saves the window as a PNG that carries the link.
    SavePicture,
    /// Follows the link in a picture.
    OpenPicture(PathBuf),
    UseTheme(ThemeChoice),
    NextTheme,
    ZoomIn,
    ZoomOut,
    ZoomReset,
    Palette,
    CheatSheet,
    /// Closes what is open on top, else clears the filter, else dismisses the notice.
    Escape,
    /// Reads the run again: what failed, and what was added since.
    Reload,
    Quit,
}

/// A step of the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
}

/// Where a command makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    /// Needs an open run.
    Run,
    /// Needs a feature table.
    Table,
    In(View),
}

/// A command with its title and keys.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) command: Command,
    pub(crate) title: &'static str,
    pub(crate) group: &'static str,
    pub(crate) keys: &'static [KeyboardShortcut],
    pub(crate) when: When,
}

const fn key(key: Key) -> KeyboardShortcut {
    KeyboardShortcut::new(Modifiers::NONE, key)
}

const fn ctrl(key: Key) -> KeyboardShortcut {
    KeyboardShortcut::new(Modifiers::COMMAND, key)
}

const fn alt(key: Key) -> KeyboardShortcut {
    KeyboardShortcut::new(Modifiers::ALT, key)
}

const fn shift(key: Key) -> KeyboardShortcut {
    KeyboardShortcut::new(Modifiers::SHIFT, key)
}

const CTRL_SHIFT_Z: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND.plus(Modifiers::SHIFT), Key::Z);

const CTRL_SHIFT_C: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND.plus(Modifiers::SHIFT), Key::C);

const fn entry(
    group: &'static str,
    command: Command,
    title: &'static str,
    keys: &'static [KeyboardShortcut],
    when: When,
) -> Entry {
    Entry { command, title, group, keys, when }
}

/// Every command that needs no argument, in the order of the cheat sheet.
pub(crate) static TABLE: [Entry; 69] = {
    use Command as C;
    const GO: &str = "Go";
    const FEATURES: &str = "Features";
    const READ: &str = "Read";
    const MOVE: &str = "Move";
    const WINDOW: &str = "Window";
    [
        entry(GO, C::Show(View::Overview), "Overview of the run", &[ctrl(Key::Num1)], When::Run),
        entry(GO, C::Show(View::Features), "Table of features", &[ctrl(Key::Num2)], When::Run),
        entry(GO, C::Show(View::Feature), "Page of the feature", &[ctrl(Key::Num3)], When::Run),
        entry(GO, C::Show(View::Reader), "Reader", &[ctrl(Key::Num4)], When::Run),
        entry(GO, C::Show(View::Grid), "Tokens by layers", &[ctrl(Key::Num5)], When::Run),
        entry(GO, C::Show(View::Routing), "Routing", &[ctrl(Key::Num6)], When::Run),
        entry(GO, C::Show(View::Expert), "Page of the expert", &[ctrl(Key::Num7)], When::Run),
        entry(GO, C::Show(View::Rows), "Embedding lookups of the token", &[ctrl(Key::Num8)], When::Run),
        entry(GO, C::Show(View::Training), "Training curves", &[ctrl(Key::Num9)], When::Run),
        entry(GO, C::Show(View::Query), "Ask in SQL", &[key(Key::Q)], When::Run),
        entry(GO, C::Show(View::Pieces), "What the tokenizer makes of a text", &[key(Key::Y)], When::Run),
        entry(GO, C::Show(View::Diagnostics), "Diagnostics", &[ctrl(Key::D)], When::Run),
        entry(GO, C::Back, "Back", &[alt(Key::ArrowLeft)], When::Always),
        entry(GO, C::Forward, "Forward", &[alt(Key::ArrowRight)], When::Always),
        entry(GO, C::CopyLink, "Copy a link to this view", &[CTRL_SHIFT_C], When::Run),
        entry(GO, C::SavePicture, "Save a picture that carries the link", &[ctrl(Key::P)], When::Run),
        entry(GO, C::Palette, "Find a command, a feature, a link", &[ctrl(Key::K)], When::Always),
        entry(FEATURES, C::NextFeature, "Next feature in the list", &[key(Key::CloseBracket)], When::Table),
        entry(FEATURES, C::PreviousFeature, "Previous feature in the list", &[key(Key::OpenBracket)], When::Table),
        entry(FEATURES, C::FocusFilter, "Filter the table", &[key(Key::Slash)], When::Table),
        entry(FEATURES, C::NextSort, "Sort by the next column", &[key(Key::S)], When::Table),
        entry(FEATURES, C::ReverseSort, "Reverse the order", &[key(Key::R)], When::Table),
        entry(
            READ,
            C::NextDocument,
            "Next document",
            &[key(Key::CloseCurlyBracket), shift(Key::CloseBracket)],
            When::Run,
        ),
        entry(
            READ,
            C::PreviousDocument,
            "Previous document",
            &[key(Key::OpenCurlyBracket), shift(Key::OpenBracket)],
            When::Run,
        ),
        entry(READ, C::NextColor, "Color tokens by the next quantity", &[key(Key::C)], When::In(View::Reader)),
        entry(READ, C::ColorBy(ColorBy::Feature), "Color tokens by feature", &[], When::In(View::Reader)),
        entry(READ, C::ColorBy(ColorBy::Norm), "Color tokens by norm", &[], When::In(View::Reader)),
        entry(READ, C::ColorBy(ColorBy::Nll), "Color tokens by surprise", &[], When::In(View::Reader)),
        entry(FEATURES, C::ToggleContext, "Longer context in the examples", &[key(Key::E)], When::Table),
        entry(FEATURES, C::FocusLabel, "Label the feature", &[key(Key::N)], When::In(View::Feature)),
        entry(FEATURES, C::Rate(1), "The label says nothing", &[key(Key::Num1)], When::In(View::Feature)),
        entry(FEATURES, C::Rate(2), "The label holds seldom", &[key(Key::Num2)], When::In(View::Feature)),
        entry(FEATURES, C::Rate(3), "The label holds half of the time", &[key(Key::Num3)], When::In(View::Feature)),
        entry(FEATURES, C::Rate(4), "The label holds mostly", &[key(Key::Num4)], When::In(View::Feature)),
        entry(FEATURES, C::Rate(5), "The label holds always", &[key(Key::Num5)], When::In(View::Feature)),
        entry(READ, C::NextMetric, "Next quantity of tokens by layers", &[key(Key::M)], When::Run),
        entry(READ, C::UseScope(Scope::Document), "Load of experts: this document", &[], When::Run),
        entry(READ, C::UseScope(Scope::Corpus), "Load of experts: whole run", &[], When::Run),
        entry(READ, C::NextExpert, "Next expert of the layer", &[key(Key::Period)], When::Run),
        entry(READ, C::PreviousExpert, "Previous expert of the layer", &[key(Key::Comma)], When::Run),
        entry(READ, C::FollowToken, "Embeddings of the selected token", &[], When::Run),
        entry(READ, C::ToggleWhitespace, "Show spaces as dots", &[key(Key::W)], When::Run),
        entry(MOVE, C::Move(Step::Down), "Down", &[key(Key::ArrowDown), key(Key::J)], When::Run),
        entry(MOVE, C::Move(Step::Up), "Up", &[key(Key::ArrowUp), key(Key::K)], When::Run),
        entry(MOVE, C::Move(Step::Left), "Left", &[key(Key::ArrowLeft), key(Key::H)], When::Run),
        entry(MOVE, C::Move(Step::Right), "Right", &[key(Key::ArrowRight), key(Key::L)], When::Run),
        entry(MOVE, C::Move(Step::PageDown), "A page down", &[key(Key::PageDown)], When::Run),
        entry(MOVE, C::Move(Step::PageUp), "A page up", &[key(Key::PageUp)], When::Run),
        entry(MOVE, C::Move(Step::Home), "To the start", &[key(Key::Home)], When::Run),
        entry(MOVE, C::Move(Step::End), "To the end", &[key(Key::End)], When::Run),
        entry(MOVE, C::Open, "Open what is selected", &[key(Key::Enter)], When::Run),
        entry(WINDOW, C::Pin, "Pin, or take the pin out", &[key(Key::P)], When::Run),
        entry(WINDOW, C::ClearPins, "Take all pins out", &[key(Key::X)], When::Run),
        entry(WINDOW, C::Freeze, "Keep this beside, to compare", &[key(Key::F)], When::Run),
        entry(WINDOW, C::Arrange(Preset::Single), "Panes: one view at a time", &[alt(Key::Num1)], When::Run),
        entry(WINDOW, C::Arrange(Preset::Read), "Panes: read a text", &[alt(Key::Num2)], When::Run),
        entry(WINDOW, C::Arrange(Preset::Study), "Panes: study a feature", &[alt(Key::Num3)], When::Run),
        entry(WINDOW, C::Arrange(Preset::Routing), "Panes: experts", &[alt(Key::Num4)], When::Run),
        entry(WINDOW, C::Arrange(Preset::Embeddings), "Panes: embedding lookups", &[alt(Key::Num5)], When::Run),
        entry(WINDOW, C::UndoLayout, "Undo the change of panes", &[ctrl(Key::Z)], When::Run),
        entry(WINDOW, C::RedoLayout, "Redo the change of panes", &[CTRL_SHIFT_Z], When::Run),
        entry(WINDOW, C::NextTheme, "Dark, light, paper", &[key(Key::T)], When::Always),
        entry(WINDOW, C::ZoomIn, "Larger", &[ctrl(Key::Plus), ctrl(Key::Equals)], When::Always),
        entry(WINDOW, C::ZoomOut, "Smaller", &[ctrl(Key::Minus)], When::Always),
        entry(WINDOW, C::ZoomReset, "Normal size", &[ctrl(Key::Num0)], When::Always),
        entry(WINDOW, C::Reload, "Read the run again", &[key(Key::F5)], When::Always),
        entry(WINDOW, C::CheatSheet, "This list of keys", &[key(Key::Questionmark), shift(Key::Slash)], When::Always),
        entry(WINDOW, C::Escape, "Close, clear, dismiss", &[key(Key::Escape)], When::Always),
        entry(WINDOW, C::Quit, "Quit", &[ctrl(Key::Q)], When::Always),
    ]
};

/// What the keyboard is used for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keyboard {
    Free,
    /// A widget has the focus: arrows move on from it, Enter presses it.
    Widget,
    /// A text is being typed.
    Text,
}

/// The commands whose keys were pressed in this pass, taken out of the input.
///
/// While a text is typed only keys with Ctrl or Alt, and Escape, are commands.
pub(crate) fn pressed(ctx: &egui::Context, keyboard: Keyboard, allowed: impl Fn(When) -> bool) -> Vec<Command> {
    let works = |entry: &Entry, shortcut: KeyboardShortcut| match keyboard {
        Keyboard::Free => true,
        Keyboard::Widget => !matches!(entry.command, Command::Move(_) | Command::Open),
        Keyboard::Text => shortcut.modifiers.command || shortcut.modifiers.alt || shortcut.logical_key == Key::Escape,
    };
    let mut commands = Vec::new();
    ctx.input_mut(|input| {
        input.events.retain(|event| {
            let egui::Event::Key { key, pressed: true, modifiers, .. } = event else { return true };
            let hit = TABLE.iter().find(|entry| {
                allowed(entry.when)
                    && entry.keys.iter().any(|shortcut| {
                        shortcut.logical_key == *key && matches(*shortcut, *modifiers) && works(entry, *shortcut)
                    })
            });
            if let Some(entry) = hit {
                commands.push(entry.command.clone());
            }
            hit.is_none()
        });
    });
    commands
}

/// Exactly these modifiers, but a key that is itself reached with Shift may carry it.
fn matches(shortcut: KeyboardShortcut, held: Modifiers) -> bool {
    let wanted = shortcut.modifiers;
    let shifted_key =
        matches!(shortcut.logical_key, Key::Questionmark | Key::OpenCurlyBracket | Key::CloseCurlyBracket | Key::Plus);
    wanted.command == held.command
        && wanted.alt == held.alt
        && (wanted.shift == held.shift || (shifted_key && !wanted.shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_commands_share_a_key() {
        let mut seen: Vec<(KeyboardShortcut, &str)> = Vec::new();
        for entry in &TABLE {
            for key in entry.keys {
                if let Some((_, other)) = seen.iter().find(|(k, _)| k == key) {
                    panic!("{key:?} is both `{other}` and `{}`", entry.title);
                }
                seen.push((*key, entry.title));
            }
        }
    }

    #[test]
    fn every_title_is_its_own() {
        for (i, entry) in TABLE.iter().enumerate() {
            assert!(TABLE[..i].iter().all(|other| other.title != entry.title), "{}", entry.title);
        }
    }

    #[test]
    fn modifiers_must_match() {
        let plain = key(Key::C);
        assert!(matches(plain, Modifiers::NONE));
        assert!(!matches(plain, Modifiers::SHIFT));
        assert!(!matches(plain, Modifiers::COMMAND));
        assert!(matches(key(Key::Questionmark), Modifiers::SHIFT));
        assert!(matches(CTRL_SHIFT_C, Modifiers::COMMAND | Modifiers::SHIFT));
        assert!(!matches(ctrl(Key::C), Modifiers::COMMAND | Modifiers::SHIFT));
    }
}
