//! Where does the arithmetic run, and on how many threads?
//!
//! The only module of this crate that may read the environment.

/// How many threads this machine offers to this process.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Lets libtorch use `threads` threads inside one operation; 0 means all that the machine offers.
///
/// Returns the number in force. Call it before the first forward pass: libtorch starts its pool then.
pub fn set_threads(threads: usize) -> usize {
    let threads = if threads == 0 { available_threads() } else { threads };
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_those_asked_for_or_all() {
        assert_eq!(set_threads(1), 1);
        assert_eq!(set_threads(0), available_threads());
    }
}
