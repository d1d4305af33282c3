//! End-to-end tests of the workspace and the fixtures that they share; see `tests/e2e/main.rs`.

pub mod soak;
