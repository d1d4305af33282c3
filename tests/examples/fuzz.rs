//! One reader of `tests/fuzz/targets.rs` under libFuzzer: the one that `POLARISCOPE_FUZZ` names.
//!
//! `cargo xtask soak` builds it with our crates instrumented, and starts it for each target.
#![no_main]
#![expect(clippy::expect_used, clippy::disallowed_methods, reason = "it is a harness")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

#[path = "../fuzz/targets.rs"]
#[expect(dead_code, reason = "what starts it gives it seeds")]
mod targets;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fuzz_target!(|bytes: &[u8]| {
    static SCRATCH: OnceLock<targets::Scratch> = OnceLock::new();
    let scratch = SCRATCH.get_or_init(|| {
        // libFuzzer's hook ends the process at a panic that we catch, too; one that nobody catches ends it all the same.
        drop(std::panic::take_hook());
        let name = std::env::var("POLARISCOPE_FUZZ").expect("a target is named");
        targets::TARGETS.iter().find(|target| target.name == name).expect("a row of `targets.rs`").scratch()
    });
    scratch.read(bytes);
});
