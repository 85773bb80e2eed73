//! Time: the window of chunks under construction, and what 48-bit timestamps stand for.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use crate::layout::{Layout, TIME_BITS};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What streams that belong together agree on: the newest time accepted so far.
///
/// Invariant: `newest` never falls. It is read and raised by cold calls only, from any thread; nothing else is
/// published through it, so relaxed ordering is enough.
#[derive(Debug)]
pub struct Timeline {
    /// One more than the start of the newest chunk, or [`Timeline::NONE`].
    newest: AtomicU64,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { newest: AtomicU64::new(Self::NONE) }
    }
}

impl Timeline {
    const NONE: u64 = 0;

    /// Whether any chunk was accepted.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.newest.load(Relaxed) != Self::NONE
    }

    /// The time nearest the newest chunk's start that agrees with `stamp` in its low 48 bits.
    ///
    /// It may be before 0. None if it is beyond 2^63, where time ends.
    #[must_use]
    pub fn unwrap(&self, stamp: u64) -> Option<i64> {
        let newest = self.newest.load(Relaxed);
        if newest == Self::NONE {
            return Some(stamp.cast_signed());
        }
        let newest = newest.wrapping_sub(1);
        // Sign-extends the 48-bit difference.
        let ahead = stamp.wrapping_sub(newest).wrapping_shl(SPARE).cast_signed().wrapping_shr(SPARE);
        newest.cast_signed().checked_add(ahead)
    }

    /// Accept the chunk that starts at `start` as the first of all; false if another stream has been faster, whose
    /// time must be reckoned with.
    pub fn begin(&self, start: u64) -> bool {
        self.newest.compare_exchange(Self::NONE, start.wrapping_add(1), Relaxed, Relaxed).is_ok()
    }

    /// Note that the chunk that starts at `start` is accepted.
    pub fn accept(&self, start: u64) {
        self.newest.fetch_max(start.wrapping_add(1), Relaxed);
    }
}

/// The chunks that a stream has under construction: as many as spead2 keeps, up to the newest.
///
/// `limit * step` is at most 2^47 and `base + limit * step` at most 2^48 + step, so a timestamp beyond 48 bits or
/// before the base is never within the limit.
#[derive(Clone, Debug)]
pub struct Window {
    /// Timestamp (48 bits) at which the window begins: a multiple of the step, unless time has wrapped.
    pub base: u64,
    /// Batches from there that the fast path may place: none before the first heap; cut off where timestamps wrap.
    pub limit: u64,
    /// The first chunk of the window, counted from time 0.
    pub first_chunk: u64,
    /// The first batch of the window, counted from time 0.
    pub first_batch: u64,
    /// The newest chunk, counted from the first of the window.
    newest: u64,
    chunks: u64,
    step: u64,
    batches: u64,
    chunk_step: u64,
}

impl Window {
    /// An empty window of up to `chunks` chunks.
    #[must_use]
    pub fn new(layout: &Layout, chunks: u64) -> Self {
        Self {
            base: 0,
            limit: 0,
            first_chunk: 0,
            first_batch: 0,
            newest: 0,
            chunks,
            step: layout.spec().time.step,
            batches: layout.spec().time.batches,
            chunk_step: layout.chunk_step,
        }
    }

    /// The newest chunk, counted from the first of the window.
    #[inline]
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Start time of a chunk.
    #[must_use]
    pub fn start(&self, chunk: u64) -> u64 {
        chunk.wrapping_mul(self.chunk_step)
    }

    /// Move the window so that it ends with `chunk`, if that is newer than its newest.
    ///
    /// Returns by how many chunks the beginning has moved, or None if the heap changes nothing. The window ends with the newest chunk even where it could
    /// hold more (before time has gone on for long enough), so that every newer chunk takes the cold path, which tells
    /// the timeline.
    pub fn follow(&mut self, chunk: u64) -> Option<u64> {
        let began = self.limit != 0;
        let old = self.first_chunk;
        if began && chunk <= old.wrapping_add(self.newest) {
            return None;
        }
        let first = chunk.saturating_sub(self.chunks.wrapping_sub(1));
        let batches = chunk.wrapping_sub(first).wrapping_add(1).wrapping_mul(self.batches);
        self.base = self.start(first) & LOW_BITS;
        // At a wrap the last batches of the window have small timestamps again: those take the cold path.
        let until_wrap = LOW_BITS.wrapping_sub(self.base).checked_div(self.step).unwrap_or(0).wrapping_add(1);
        self.limit = batches.min(until_wrap);
        self.first_chunk = first;
        self.first_batch = first.wrapping_mul(self.batches);
        self.newest = chunk.wrapping_sub(first);
        Some(first.wrapping_sub(old))
    }
}

const SPARE: u32 = u64::BITS.wrapping_sub(TIME_BITS);
const LOW_BITS: u64 = (1_u64 << TIME_BITS).wrapping_sub(1);

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "tests may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_timestamp_stands_for_itself() {
        let timeline = Timeline::default();
        assert_eq!(timeline.unwrap(LOW_BITS), Some(LOW_BITS.cast_signed()));
        timeline.accept(0);
        assert_eq!(timeline.unwrap(LOW_BITS), Some(-1));
    }

    #[test]
    fn newest_never_falls() {
        let timeline = Timeline::default();
        timeline.accept(3 << TIME_BITS);
        timeline.accept(5);
        assert_eq!(timeline.unwrap(7), Some((3 << TIME_BITS) + 7));
    }

    #[test]
    fn time_ends_at_63_bits() {
        let timeline = Timeline::default();
        timeline.accept((1 << 63) - 64);
        assert_eq!(timeline.unwrap(LOW_BITS - 63), Some(i64::MAX - 63));
        assert_eq!(timeline.unwrap(64), None);
    }

    #[test]
    fn only_one_stream_begins() {
        let timeline = Timeline::default();
        assert!(timeline.begin(LOW_BITS - 15));
        assert!(!timeline.begin(0));
        assert_eq!(timeline.unwrap(0), Some(1 << TIME_BITS));
    }

    proptest! {
        #[test]
        fn unwraps_to_the_nearest(newest in 0..1_u64 << 62, ahead in -(1_i64 << 47)..1 << 47) {
            let timeline = Timeline::default();
            timeline.accept(newest);
            let time = newest.cast_signed() + ahead;
            prop_assert_eq!(timeline.unwrap(time.cast_unsigned() & LOW_BITS), Some(time));
        }
    }
}
