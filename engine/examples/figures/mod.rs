//! How does a bench say what it measured?

use fs_err as fs;
use serde_json::{Value, json};

/// Prints one figure beside its limit.
pub(crate) fn figure(bench: &str, measured: f64, unit: &str, limit: f64, limit_is: &str, target: Value) {
    let mut line = json!({"bench": bench, "measured": measured, "unit": unit, "limit": limit, "limit_is": limit_is});
    if let (Some(line), Value::Object(target)) = (line.as_object_mut(), target) {
        line.extend(target);
    }
    println!("{line}");
}

/// The middle one; of an even number, the upper of the two.
pub(crate) fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A figure of `/proc/self/status` in bytes, where the system tells: `VmRSS:` is what is resident now, `VmHWM:` the most so
/// far.
pub(crate) fn memory(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
