//! Which commands change what is looked at by what they say alone?

use crate::command::Command;
use crate::state::{Focus, Item, SortBy, View};

/// Changes the focus as the command says; gives the command back where it needs more than the focus.
pub(crate) fn goes(focus: &mut Focus, command: Command) -> Result<(), Command> {
    match command {
        Command::Show(view) => focus.view = view,
        Command::GoTo(other) => *focus = Focus { pins: std::mem::take(&mut focus.pins), ..*other },
        Command::ClearPins => focus.pins.clear(),
        Command::OpenItem(item) => open(focus, item),
        Command::SelectFeature(feature) => focus.feature = Some(feature),
        Command::OpenDocument { doc, token } => {
            focus.view = View::Reader;
            focus.doc = Some(doc);
            focus.token = token;
            focus.row = None;
        }
        Command::SelectToken(token) => {
            focus.token = Some(token);
            focus.row = None;
        }
        Command::SelectCell { token, layer } => {
            use_layer(focus, layer);
            focus.token = Some(token);
            focus.row = None;
        }
        Command::UseLayer(layer) => use_layer(focus, layer),
        Command::SelectExpert { layer, expert } => (focus.layer, focus.expert) = (Some(layer), Some(expert)),
        Command::OpenExpert { layer, expert } => open(focus, Item::Expert { layer, expert }),
        Command::OpenRow(id) => open(focus, Item::Row(id)),
        Command::FollowToken => {
            focus.row = None;
            focus.view = View::Rows;
        }
        Command::UseMetric(metric) => focus.metric = metric,
        Command::NextMetric => focus.metric = focus.metric.next(),
        Command::UseScope(scope) => focus.scope = scope,
        Command::Sort(by) => {
            focus.sort = by;
            focus.ascending = by == SortBy::Id;
        }
        Command::NextSort => focus.sort = focus.sort.next(),
        Command::ReverseSort => focus.ascending = !focus.ascending,
        Command::ColorBy(color) => focus.color = color,
        Command::NextColor => focus.color = focus.color.next(),
        Command::UseHook(hook) => focus.hook = Some(hook),
        Command::UseCoder(coder) => focus.coder = Some(coder),
        other => return Err(other),
    }
    Ok(())
}

/// Numbers of experts mean nothing from layer to layer.
pub(crate) fn use_layer(focus: &mut Focus, layer: usize) {
    if focus.layer != Some(layer) {
        focus.expert = None;
    }
    focus.layer = Some(layer);
}

fn open(focus: &mut Focus, item: Item) {
    match item {
        Item::Feature { table, feature } => {
            focus.table = Some(table);
            focus.feature = Some(feature);
            focus.view = View::Feature;
        }
        Item::Expert { layer, expert } => {
            (focus.layer, focus.expert) = (Some(layer), Some(expert));
            focus.view = View::Expert;
        }
        Item::Row(id) => {
            focus.row = Some(id);
            focus.view = View::Rows;
        }
        Item::Token { doc, token } => {
            focus.view = View::Reader;
            (focus.doc, focus.token, focus.row) = (Some(doc), Some(token), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_changes_and_the_others_stay() {
        let mut focus = Focus { feature: Some(7), token: Some(3), row: Some(9), ..Focus::default() };
        assert!(goes(&mut focus, Command::SelectExpert { layer: 2, expert: 5 }).is_ok());
        assert!(goes(&mut focus, Command::SelectToken(4)).is_ok());
        assert_eq!((focus.feature, focus.token, focus.row), (Some(7), Some(4), None));
        assert_eq!((focus.layer, focus.expert), (Some(2), Some(5)));
        assert!(goes(&mut focus, Command::SelectCell { token: 8, layer: 2 }).is_ok());
        assert_eq!(focus.expert, Some(5));
        assert!(goes(&mut focus, Command::UseLayer(3)).is_ok());
        assert_eq!(focus.expert, None);
    }

    #[test]
    fn what_is_pinned_is_opened_and_the_pins_stay() {
        let pins = vec![Item::Row(5), Item::Token { doc: 1, token: 2 }];
        let mut focus = Focus { pins: pins.clone(), ..Focus::default() };
        for (item, view) in [
            (Item::Feature { table: "main".into(), feature: 1 }, View::Feature),
            (Item::Expert { layer: 1, expert: 2 }, View::Expert),
            (Item::Row(5), View::Rows),
            (Item::Token { doc: 1, token: 2 }, View::Reader),
        ] {
            assert!(goes(&mut focus, Command::OpenItem(item)).is_ok());
            assert_eq!(focus.view, view);
        }
        assert!(goes(&mut focus, Command::GoTo(Box::default())).is_ok());
        assert_eq!((focus.view, &focus.pins), (View::Overview, &pins));
        assert_eq!(goes(&mut focus, Command::Pin), Err(Command::Pin));
    }
}
