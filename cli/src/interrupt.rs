//! Has the person pressed Ctrl-C?

use std::ops::ControlFlow;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static PRESSED: AtomicBool = AtomicBool::new(false);
static INSTALLED: Once = Once::new();

/// From now on Ctrl-C (or a polite kill) asks the job to end; a second one ends the program at once.
pub(crate) fn watch() {
    INSTALLED.call_once(|| {
        let handler = || {
            if PRESSED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        };
        if let Err(err) = ctrlc::set_handler(handler) {
            tracing::warn!("Ctrl-C cannot be caught: {err}");
        }
    });
}

/// Whether the job should end.
pub(crate) fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}

/// What was asked to end has ended; the program goes on.
pub(crate) fn heeded() {
    PRESSED.store(false, Ordering::SeqCst);
}

/// What a progress closure returns.
pub(crate) fn flow() -> ControlFlow<()> {
    if pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
