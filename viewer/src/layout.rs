//! Where do the panes of the window stand?
//!
//! A tree of splits and tabs, which one rearranges by dragging tabs. Links and workspaces spell it:
//! `h(t(reader,query):62,v(layers,routing):38)` is two columns, the first with tabs, the second cut in two.
//! A pane follows the focus, or is frozen on a focus of its own, to be compared with.

use std::fmt::Write as _;

use egui_tiles::{Container, Linear, LinearDir, SimplificationOptions, Tabs, Tile, TileId, Tiles, Tree};

use crate::link;
use crate::state::{Focus, View};

/// Containers within containers that are understood in a text.
const MAX_DEPTH: usize = 8;
/// Panes that are understood in a text.
const MAX_PANES: usize = 40;

/// What one tile shows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pane {
    pub(crate) view: View,
    /// A focus of its own; that of the window where there is none.
    pub(crate) frozen: Option<Box<Focus>>,
}

/// The arrangements that have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preset {
    /// One view at a time.
    Single,
    Read,
    Study,
    Routing,
    Embeddings,
}

impl Preset {
    pub(crate) const ALL: [Self; 5] = [Self::Single, Self::Read, Self::Study, Self::Routing, Self::Embeddings];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Single => "One view at a time",
            Self::Read => "Read a text",
            Self::Study => "Study a feature",
            Self::Routing => "Experts",
            Self::Embeddings => "Embedding lookups",
        }
    }

    /// The view that the keyboard goes to.
    pub(crate) fn main(self) -> View {
        match self {
            Self::Single => View::Overview,
            Self::Read => View::Reader,
            Self::Study => View::Features,
            Self::Routing => View::Routing,
            Self::Embeddings => View::Rows,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Single => {
                "t(overview,features,feature,reader,layers,routing,expert,embeddings,training,query,tokenizer,diagnostics)"
            }
            Self::Read => {
                "h(t(reader,overview,features,training,query,tokenizer,diagnostics):58,v(t(layers,embeddings),t(routing,expert,feature)):42)"
            }
            Self::Study => {
                "h(t(features,overview,reader,training,query,tokenizer,diagnostics):46,t(feature,routing,expert,layers,embeddings):54)"
            }
            Self::Routing => {
                "h(t(routing,layers,overview,training,query,tokenizer,diagnostics):58,\
                 v(t(expert,features,feature):60,t(reader,embeddings):40):42)"
            }
            Self::Embeddings => {
                "h(t(reader,overview,features,query,tokenizer,diagnostics):44,\
                 v(t(embeddings,feature,training):58,t(layers,routing,expert):42):56)"
            }
        }
    }
}

/// The panes of the window.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    pub(crate) tree: Tree<Pane>,
}

impl Default for Layout {
    fn default() -> Self {
        Self::preset(Preset::Single)
    }
}

impl Layout {
    pub(crate) fn preset(preset: Preset) -> Self {
        Self::parse(preset.text()).expect("the texts of presets are understood; a test reads all of them")
    }

    /// Which named arrangement this is, whatever tab is in front.
    pub(crate) fn is_preset(&self, preset: Preset) -> bool {
        let plain = |layout: &Self| layout.to_text().replace('*', "");
        plain(self) == plain(&Self::preset(preset))
    }

    /// Reads what [`Layout::to_text`] writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader { rest: text, tiles: Tiles::default(), panes: 0 };
        let root = reader.node(0)?;
        if !reader.rest.is_empty() {
            return None;
        }
        let mut tree = Tree::new(egui::Id::unique("layout"), root, reader.tiles);
        tree.simplify(&SIMPLIFY);
        tree.root.map(|_| Self { tree })
    }

    pub(crate) fn to_text(&self) -> String {
        let mut out = String::new();
        if let Some(root) = self.tree.root {
            self.write(root, &mut out);
        }
        out
    }

    fn write(&self, tile: TileId, out: &mut String) {
        let (sign, active) = match self.tree.tiles.get(tile) {
            Some(Tile::Pane(pane)) => {
                let _ = write!(out, "{}", pane.view);
                if let Some(focus) = &pane.frozen {
                    let _ = write!(out, "{{{}}}", link::format_focus(focus));
                }
                return;
            }
            Some(Tile::Container(Container::Tabs(tabs))) => ('t', tabs.active),
            Some(Tile::Container(Container::Linear(linear))) => {
                (if linear.dir == LinearDir::Horizontal { 'h' } else { 'v' }, None)
            }
            Some(Tile::Container(Container::Grid(_))) => ('g', None),
            None => return,
        };
        let Some(container) = self.tree.tiles.get_container(tile) else { return };
        out.push(sign);
        out.push('(');
        for (i, child) in container.children().enumerate() {
            if i > 0 {
                out.push(',');
            }
            self.write(*child, out);
            // The first tab is in front by itself.
            if i > 0 && active == Some(*child) {
                out.push('*');
            }
            if let Container::Linear(linear) = container {
                let all: f32 = linear.children.iter().map(|child| linear.shares[*child]).sum();
                let _ = write!(out, ":{:.0}", (linear.shares[*child] / all.max(f32::MIN_POSITIVE) * 100.0).max(1.0));
            }
        }
        out.push(')');
    }

    /// Brings the pane of a view that follows the focus to the front; makes one where there is none.
    pub(crate) fn show(&mut self, view: View) {
        let found = self.find(view);
        let wanted = found.unwrap_or_else(|| self.add(view));
        self.tree.make_active(|tile, _| tile == wanted);
    }

    /// Whether a pane of the view is in front.
    pub(crate) fn is_shown(&self, view: View) -> bool {
        self.find(view).is_some_and(|tile| self.tree.active_tiles().contains(&tile))
    }

    /// Puts a pane beside that of its view, which stays as it is while the focus moves on.
    pub(crate) fn freeze(&mut self, focus: &Focus) {
        let pane = Pane { view: focus.view, frozen: Some(Box::new(focus.clone())) };
        let new = self.tree.tiles.insert_pane(pane);
        let beside = self.find(focus.view).and_then(|tile| self.tabs_of(tile));
        let Some(beside) = beside.or(self.tree.root) else { return };
        let above = self.tree.tiles.parent_of(beside);
        let split = self
            .tree
            .tiles
            .insert_new(Tile::Container(Container::Linear(Linear::new(LinearDir::Horizontal, vec![beside, new]))));
        match above.and_then(|above| self.tree.tiles.get_mut(above)) {
            Some(Tile::Container(container)) => replace(container, beside, split),
            _ => self.tree.root = Some(split),
        }
        self.tree.simplify(&SIMPLIFY);
    }

    /// Takes a tile out of the window.
    pub(crate) fn close(&mut self, tile: TileId) {
        self.tree.remove_recursively(tile);
        self.tree.simplify(&SIMPLIFY);
        if self.tree.root.is_none() {
            *self = Self::default();
        }
    }

    fn find(&self, view: View) -> Option<TileId> {
        // By number, so that it is the same one every time.
        let follows = |tile: &Tile<Pane>| matches!(tile, Tile::Pane(p) if p.view == view && p.frozen.is_none());
        self.tree.tiles.iter().filter(|(_, tile)| follows(tile)).map(|(id, _)| *id).min_by_key(|id| id.0)
    }

    fn tabs_of(&self, tile: TileId) -> Option<TileId> {
        let parent = self.tree.tiles.parent_of(tile)?;
        matches!(self.tree.tiles.get_container(parent), Some(Container::Tabs(_))).then_some(parent)
    }

    /// A new tab, in the tabs that come first.
    fn add(&mut self, view: View) -> TileId {
        let new = self.tree.tiles.insert_pane(Pane { view, frozen: None });
        let tabs = |tile: &Tile<Pane>| matches!(tile, Tile::Container(Container::Tabs(_)));
        let first = self.tree.tiles.iter().filter(|(_, tile)| tabs(tile)).map(|(id, _)| *id).min_by_key(|id| id.0);
        match first.and_then(|first| self.tree.tiles.get_mut(first)) {
            Some(Tile::Container(container)) => container.add_child(new),
            _ => self.tree.root = Some(self.tree.tiles.insert_tab_tile(vec![new])),
        }
        new
    }
}

/// Every pane has a tab, so that it has a title and can be dragged.
pub(crate) const SIMPLIFY: SimplificationOptions = SimplificationOptions {
    prune_empty_tabs: true,
    prune_empty_containers: true,
    prune_single_child_tabs: true,
    prune_single_child_containers: true,
    all_panes_must_have_tabs: true,
    join_nested_linear_containers: true,
    flatten_tabs_in_tabs: true,
};

/// Puts a tile where another one was, with its share of the room.
fn replace(container: &mut Container, old: TileId, new: TileId) {
    match container {
        Container::Tabs(tabs) => {
            tabs.children.iter_mut().filter(|child| **child == old).for_each(|child| *child = new);
            if tabs.active == Some(old) {
                tabs.active = Some(new);
            }
        }
        Container::Linear(linear) => {
            linear.children.iter_mut().filter(|child| **child == old).for_each(|child| *child = new);
            linear.shares.replace_with(old, new);
        }
        Container::Grid(grid) => {
            let at = grid.children().position(|child| *child == old);
            if let Some(at) = at {
                let _ = grid.replace_at(at, new);
            }
        }
    }
}

/// Takes the text of a layout apart.
struct Reader<'a> {
    rest: &'a str,
    tiles: Tiles<Pane>,
    panes: usize,
}

impl Reader<'_> {
    fn node(&mut self, depth: usize) -> Option<TileId> {
        let kind = self.rest.get(..2).filter(|kind| kind.ends_with('('));
        let Some(kind) = kind.and_then(|kind| kind.chars().next()).filter(|kind| "thvg".contains(*kind)) else {
            return self.pane();
        };
        if depth >= MAX_DEPTH {
            return None;
        }
        self.rest = &self.rest[2..];
        let (mut children, mut shares, mut active) = (Vec::new(), Vec::new(), None);
        loop {
            let child = self.node(depth + 1)?;
            children.push(child);
            if self.takes('*') {
                active = Some(child);
            }
            shares.push(if self.takes(':') { self.share()? } else { 1.0 });
            if self.takes(')') {
                break;
            }
            if !self.takes(',') {
                return None;
            }
        }
        let container = match kind {
            't' => {
                let mut tabs = Tabs::new(children);
                tabs.active = active.or(tabs.active);
                Container::Tabs(tabs)
            }
            'g' => Container::new_grid(children),
            _ => {
                let dir = if kind == 'h' { LinearDir::Horizontal } else { LinearDir::Vertical };
                let mut linear = Linear::new(dir, children.clone());
                let all: f32 = shares.iter().sum();
                for (child, share) in children.iter().zip(&shares) {
                    linear.shares.set_share(*child, share / all * shares.len() as f32);
                }
                Container::Linear(linear)
            }
        };
        Some(self.tiles.insert_container(container))
    }

    fn pane(&mut self) -> Option<TileId> {
        self.panes += 1;
        if self.panes > MAX_PANES {
            return None;
        }
        let end = self.rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        let view = word.parse().ok()?;
        self.rest = rest;
        let frozen = if self.takes('{') {
            let (focus, rest) = self.rest.split_once('}')?;
            self.rest = rest;
            let focus = link::parse_focus(focus).ok()?;
            Some(Box::new(Focus { view, ..focus }))
        } else {
            None
        };
        Some(self.tiles.insert_pane(Pane { view, frozen }))
    }

    fn takes(&mut self, sign: char) -> bool {
        let rest = self.rest.strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn share(&mut self) -> Option<f32> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        digits.parse::<u16>().ok().filter(|share| (1..=1_000).contains(share)).map(f32::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_understood_and_has_every_view() {
        for preset in Preset::ALL {
            let layout = Layout::preset(preset);
            for view in View::ALL {
                assert!(layout.find(view).is_some(), "{preset:?} {view}");
            }
            assert!(layout.is_shown(preset.main()));
            assert!(layout.is_preset(preset));
        }
    }

    #[test]
    fn a_text_comes_back() {
        let focus = Focus { view: View::Feature, feature: Some(7), filter: "a,b}{*".into(), ..Focus::default() };
        let mut layout = Layout::preset(Preset::Read);
        layout.show(View::Query);
        layout.freeze(&focus);
        let text = layout.to_text();
        assert!(text.contains("query*") && text.contains("feature{"), "{text}");
        let back = Layout::parse(&text).unwrap();
        assert_eq!(back.to_text(), text);
        let frozen = back.tree.tiles.tiles().find_map(|tile| match tile {
            Tile::Pane(pane) => pane.frozen.clone(),
            Tile::Container(_) => None,
        });
        assert_eq!(frozen.as_deref(), Some(&focus));
    }

    #[test]
    fn a_view_without_a_pane_gets_one() {
        let mut layout = Layout::parse("t(overview)").unwrap();
        layout.show(View::Rows);
        assert!(layout.is_shown(View::Rows) && !layout.is_shown(View::Overview));
        layout.close(layout.find(View::Rows).unwrap());
        assert!(layout.is_shown(View::Overview));
        layout.close(layout.find(View::Overview).unwrap());
        assert!(layout.is_preset(Preset::Single));
    }

    #[test]
    fn what_is_no_layout_is_refused() {
        let deep = "h(".repeat(2_000);
        let many = format!("t({})", vec!["query"; 100].join(","));
        for junk in [
            "",
            "h(",
            "h()",
            "x(overview)",
            "t(overview",
            "t(overview))",
            "t(nothing)",
            "h(overview:0)",
            "t(feature{)",
            &deep,
            &many,
        ] {
            assert!(Layout::parse(junk).is_none(), "{junk:.40}");
        }
        let mut state = 7_u64;
        let parts = ["h(", "t(", "v(", "g(", ")", ",", "overview", "reader", ":3", "*", "{", "}", "feature=7", "é"];
        for _ in 0..5_000 {
            let text: String = (0..12)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    parts[(state >> 40) as usize % parts.len()]
                })
                .collect();
            if let Some(layout) = Layout::parse(&text) {
                let again = layout.to_text();
                assert_eq!(Layout::parse(&again).map(|layout| layout.to_text()), Some(again), "{text}");
            }
        }
    }
}
