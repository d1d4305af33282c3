//! One target under libFuzzer: the one that `POLARISCOPE_FUZZ` names.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

#[path = "targets.rs"]
mod targets;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

fuzz_target!(|bytes: &[u8]| {
    static SCRATCH: OnceLock<targets::Scratch> = OnceLock::new();
    let scratch = SCRATCH.get_or_init(|| {
        let name = std::env::var("POLARISCOPE_FUZZ").expect("a target is named");
        targets::TARGETS.iter().find(|target| target.name == name).expect("a row of `targets.rs`").scratch()
    });
    scratch.read(bytes);
});
