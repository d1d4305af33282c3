//! Which threads do the work?
//!
//! Rows of a batch are independent, so each thread takes a block of rows from the encoder product to the residual while
//! they are in its cache. The product itself then runs on that one thread: libtorch's own threads would compete with ours
//! for the cores, and how they split a product would change the last bits.

use std::sync::Mutex;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// A pool of named threads, in each of which libtorch uses one thread.
pub struct Workers {
    pool: ThreadPool,
}

impl Workers {
    /// `threads` threads; 0 means one for every core.
    pub fn new(threads: usize) -> Result<Self> {
        /// libtorch's thread count is one global with a copy in each thread, so one pool is made at a time.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("scope-{index}"))
            .build()
            .map_err(|source| Error::Threads { threads, source })?;
        let before = tch::get_num_threads();
        pool.broadcast(|_| {
            tch::set_num_threads(1);
            // Reading makes the copy of this thread, which later changes of the global leave alone.
            tch::get_num_threads()
        });
        tch::set_num_threads(before);
        drop(guard);
        Ok(Self { pool })
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` in the pool: rayon's parallel iterators inside it use these threads.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_has_one_thread_inside_and_as_many_as_before_outside() {
        let before = tch::get_num_threads();
        let workers = Workers::new(2).unwrap();
        assert_eq!(workers.threads(), 2);
        assert_eq!(workers.install(tch::get_num_threads), 1);
        assert_eq!(tch::get_num_threads(), before);
    }
}
