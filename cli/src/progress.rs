//! What does a long job show while it runs?

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Result;
use data::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::failure::unless_interrupted;
use crate::interrupt;

/// How often a line of figures is written where nothing can be drawn.
const EVERY: Duration = Duration::from_secs(30);

/// A bar over bytes with rate and time left; nothing is drawn where standard error is no terminal.
pub(crate) fn bytes(total: u64, what: &str) -> ProgressBar {
    bar(total, what, "{msg}  {wide_bar}  {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
}

/// A bar over tokens with rate and time left.
pub(crate) fn tokens(total: u64, what: &str) -> ProgressBar {
    bar(total, what, "{msg}  {wide_bar}  {human_pos}/{human_len} tokens  {per_sec}  {eta} left")
}

/// A bar over steps, with room for figures in the message.
pub(crate) fn steps(total: u64, what: &str) -> ProgressBar {
    bar(total, what, "{msg}  {wide_bar}  {human_pos}/{human_len}  {eta} left")
}

/// A bar over the steps of many, and a line of figures for each.
pub(crate) fn steps_of_many(total: u64, what: &str, names: &[&str]) -> (ProgressBar, Vec<ProgressBar>) {
    let together = MultiProgress::new();
    let widest = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let style = ProgressStyle::with_template("{prefix}  {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    let line = |name: &&str| {
        let line = together.add(ProgressBar::new(1).with_style(style.clone()));
        line.set_prefix(format!("{name:widest$}"));
        line
    };
    let lines = names.iter().map(line).collect();
    (together.add(steps(total, what)), lines)
}

/// When a job whose figures matter writes a line of them because nothing is drawn, standard error being no terminal.
#[derive(Debug)]
pub(crate) struct Lines {
    drawn: bool,
    last: Option<Instant>,
}

impl Lines {
    pub(crate) fn beside(bar: &ProgressBar) -> Self {
        Self { drawn: !bar.is_hidden(), last: None }
    }

    /// Whether it is time: at first, then every [`EVERY`].
    pub(crate) fn due(&mut self) -> bool {
        let due = !self.drawn && self.last.is_none_or(|last| last.elapsed() >= EVERY);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

/// Does a job that leaves nothing behind if Ctrl-C ends it, so that the same command does it from the start.
pub(crate) fn watch<T>(
    bar: &ProgressBar,
    job: impl FnOnce(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> data::Result<T>,
) -> Result<T> {
    let result = job(&mut |at| {
        bar.set_length(at.total);
        bar.set_position(at.done);
        interrupt::flow()
    });
    bar.finish_and_clear();
    unless_interrupted(result, None)
}

fn bar(total: u64, what: &str, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style.progress_chars("━╸─"));
    bar.set_message(what.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_at_first_and_then_seldom() {
        let hidden = ProgressBar::hidden();
        let mut lines = Lines::beside(&hidden);
        assert!(lines.due() && !lines.due());
        lines.last = Instant::now().checked_sub(2 * EVERY);
        assert!(lines.due() && !lines.due());
        assert!(!Lines { drawn: true, last: None }.due());
    }
}
