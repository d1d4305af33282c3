//! Is anything lost when a command is killed or the disk fails? A little of what `cargo xtask soak` does.

use tests::soak::{Bench, Random, SUBJECTS, full_disks};

/// Kills of each command: one in a write, an fsync and a rename each, and one by the clock.
const KILLS: usize = 5;
/// Faults below each command.
const FAULTS: usize = 4;

#[test]
fn every_command_survives_kills_and_a_disk_that_fails() {
    let bench = Bench::new().unwrap();
    let mut random = Random::new(1);
    for at in 0..SUBJECTS.len() {
        let report = bench.kill(at, KILLS, &mut random).unwrap();
        assert_eq!(report.kills, KILLS, "{report:?}");
        if !bench.has_faults() {
            eprintln!("left out: faults below `{}`, which cannot be loaded with a library here", report.command);
            continue;
        }
        for call in ["write", "fsync", "rename"] {
            assert!(report.during.contains_key(call), "{report:?}");
        }
        assert_eq!(bench.fail(at, Some(FAULTS), &mut random).unwrap().len(), FAULTS);
    }
    match full_disks(&bench) {
        Ok(reports) => assert_eq!(reports.len(), SUBJECTS.len()),
        Err(error) if format!("{error:?}").contains("mount") => eprintln!("left out: a disk that is full: {error:#}"),
        Err(error) => panic!("{error:?}"),
    }
}
