//! What threads share data with, from the standard library or from loom when its model checker runs (`--cfg loom`).

#[cfg(not(loom))]
pub use std::sync::{Arc, Mutex, MutexGuard, atomic};

#[cfg(loom)]
pub use loom::sync::{Arc, Mutex, MutexGuard};

/// Atomics of loom, any one of whose orderings a test can weaken, to see that some model fails then.
///
/// The environment variable `WEAKENED` names it, by file and line: `src/epochs.rs:94`. Those of atomics that are only ever
/// relaxed are loom's own.
#[cfg(loom)]
pub mod atomic {
    use std::panic::Location;
    use std::sync::LazyLock;

    use loom::sync::atomic;
    pub use loom::sync::atomic::{AtomicBool, Ordering};

    /// Whether the caller's ordering is to be relaxed.
    #[track_caller]
    fn is_weakened() -> bool {
        static PLACE: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("WEAKENED").ok());
        let here = Location::caller();
        PLACE.as_ref().is_some_and(|place| *place == format!("{}:{}", here.file(), here.line()))
    }

    #[track_caller]
    fn weakened(order: Ordering) -> Ordering {
        if is_weakened() { Ordering::Relaxed } else { order }
    }

    /// Loom's atomic number.
    #[derive(Debug, Default)]
    pub struct AtomicU64(atomic::AtomicU64);

    #[expect(missing_docs, reason = "as in the standard library")]
    impl AtomicU64 {
        #[track_caller]
        pub fn new(value: u64) -> Self {
            Self(atomic::AtomicU64::new(value))
        }

        #[track_caller]
        pub fn load(&self, order: Ordering) -> u64 {
            self.0.load(weakened(order))
        }

        #[track_caller]
        pub fn store(&self, value: u64, order: Ordering) {
            self.0.store(value, weakened(order));
        }

        #[track_caller]
        pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_add(value, weakened(order))
        }
    }

    /// Loom's fence. A relaxed one is none.
    #[track_caller]
    pub fn fence(order: Ordering) {
        if !is_weakened() {
            atomic::fence(order);
        }
    }
}
