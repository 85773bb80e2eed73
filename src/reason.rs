//! Reasons why heaps are rejected, as indices into `Layout::reasons`.
//!
//! These are those that every layout has. Those of its axes stand between [`BAD_TIMESTAMP`] and the last three.

/// Names of the first reasons.
pub(crate) const FIRST: [&str; 2] = ["metadata_heaps", "bad_timestamp_heaps"];
/// Names of the last reasons.
pub(crate) const LAST: [&str; 3] = ["implausible_timestamp_heaps", "backward_timestamp_heaps", "internal_error_heaps"];

/// The heap has the wrong length, or lacks an item.
pub const METADATA: usize = 0;
/// The timestamp has more than 48 bits, or is not a multiple of the step.
pub const BAD_TIMESTAMP: usize = 1;

/// The time is too far from what is known.
#[must_use]
pub const fn implausible(n_reasons: usize) -> usize {
    n_reasons - 3
}

/// Time has begun again at an earlier time, which it must not.
#[must_use]
pub const fn backward(n_reasons: usize) -> usize {
    n_reasons - 2
}

/// The callback panicked.
#[must_use]
pub const fn internal_error(n_reasons: usize) -> usize {
    n_reasons - 1
}
