//! Does a command that is killed at any moment go on to the same bytes?

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::work::{Ended, Fault};
use super::{Bench, Random, SUBJECTS};

/// A kill that should have landed and did not is tried again, but not for ever.
const ATTEMPTS_PER_KILL: usize = 20;

/// What became of a command that was killed.
#[derive(Debug, Default, Serialize)]
pub struct KillReport {
    pub command: &'static str,
    pub kills: usize,
    /// Kills by what they hit: `write`, `fsync`, `rename` and the like, or `any` for a moment by the clock.
    pub during: BTreeMap<String, usize>,
    /// Times it came to its end, and every byte was as in an undisturbed run.
    pub same: usize,
    /// Seconds of an undisturbed run.
    pub seconds: f64,
}

impl Bench {
    /// Kills a subject `kills` times at random moments, goes on after each, and compares whenever it is done.
    pub fn kill(&self, at: usize, kills: usize, random: &mut Random) -> Result<KillReport> {
        let mut report =
            KillReport { command: SUBJECTS[at].name, seconds: self.whole[at].seconds, ..KillReport::default() };
        let mut history = Vec::new();
        let mut work = self.work(at)?;
        for _ in 0..kills * ATTEMPTS_PER_KILL {
            if report.kills == kills {
                break;
            }
            let fault = self.moment(at, report.kills, random);
            let attempt = self.attempt(at, &work, !history.is_empty(), Some(&fault))?;
            let told = || format!("after {history:?} and `{fault}`");
            match attempt.ended {
                Ended::Killed => {
                    report.kills += 1;
                    let hit = attempt.struck.map_or_else(|| "any".to_owned(), |(call, _)| call);
                    *report.during.entry(hit).or_default() += 1;
                    history.push(fault.to_string());
                }
                Ended::Done => {
                    self.compare(at, &work).with_context(told)?;
                    report.same += 1;
                    history.clear();
                    work = self.work(at)?;
                }
                Ended::Failed(code) => bail!("exit code {code} {}:\n{}", told(), attempt.stderr),
            }
        }
        if !history.is_empty() {
            self.finish(at, &work).with_context(|| format!("after {history:?}"))?;
            report.same += 1;
        }
        Ok(report)
    }

    /// Half of the kills hit a write, an fsync or a rename in the middle or just behind it, in turn; the others come
    /// whenever the clock says, or at any other call.
    fn moment(&self, at: usize, n: usize, random: &mut Random) -> Fault {
        const CALLS: [&str; 9] = ["write", "", "fsync", "", "rename", "create", "", "mkdir", "truncate"];
        let whole = &self.whole[at];
        let call = CALLS[n % CALLS.len()];
        let calls = whole.calls.iter().filter(|(known, _)| known == call).count();
        if call.is_empty() || calls == 0 {
            return Fault::Killed(Duration::from_secs_f64(whole.seconds * (random.below(1000) as f64 / 1000.0)));
        }
        let action = if random.below(2) == 0 { "kill" } else { "kill-after" };
        Fault::Call { action, call: call.to_owned(), nth: 1 + random.below(calls), path: String::new() }
    }
}
