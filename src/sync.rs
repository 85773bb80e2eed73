//! Atomics from the standard library, or from loom when its model checker runs (`--cfg loom`).

#[cfg(not(loom))]
pub use std::sync::{Arc, atomic};

#[cfg(loom)]
pub use loom::sync::{Arc, atomic};
