//! Do the examples of `scope` do what they say?
#![expect(dead_code, reason = "an example has a `main` of its own")]
#![expect(clippy::duplicate_mod, reason = "examples share what comes before them")]

#[path = "../../scope/examples/evaluate.rs"]
mod evaluate;
#[path = "../../scope/examples/import.rs"]
mod import;
#[path = "../../scope/examples/join.rs"]
mod join;

use crate::support::fixture;

#[test]
fn a_run_is_recorded_trained_on_encoded_measured_and_joined() {
    let dir = tempfile::tempdir().unwrap();
    // Each calls the one before it, and opens what that has left.
    let rows = join::join(dir.path()).unwrap();
    assert!(rows.first().is_some_and(|row| row.lift > 1.0 && row.n_both >= 10), "{rows:?}");
    let found = evaluate::evaluate(dir.path()).unwrap();
    let random = found.baselines.random_dictionary.unwrap();
    assert!(found.metrics.explained_variance > random.explained_variance + 0.1, "{:?} {random:?}", found.metrics);
}

#[test]
fn a_coder_of_another_tool_is_imported() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("dictionaries/sparsify/layers.5");
    let sae = import::import(&source, &dir.path().join("sae")).unwrap();
    assert_eq!((sae.architecture().as_str(), sae.hook_name()), ("topk", Some("blocks.5.hook_resid_post")));
}
