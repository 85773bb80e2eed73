//! The ledger of a stream: what became of every heap that the callback saw.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use crate::layout::{Layout, Place};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of one source, together in half a cache line.
#[derive(Debug, Default)]
#[repr(align(32))]
struct Source {
    /// Heaps placed, duplicates and late ones included.
    placed: AtomicU64,
    /// One more than the newest batch placed, counted from time 0; 0 before the first.
    newest: AtomicU64,
    /// Heaps placed into a slot of the window that had one already.
    duplicates: AtomicU64,
}

/// Counts of one stream's heaps, readable by anyone at any time.
///
/// Invariant: only the thread that runs the stream's callback writes (one at a time, ordered by spead2's own
/// locking), so an increment is a load and a store, and no counter ever falls. Readers take each counter by itself:
/// no counter's value says anything about memory other than itself, so relaxed ordering is enough, and a reader
/// can neither block nor be blocked. Totals are sums made by the reader, never stored; what a reader sees
/// of one heap may be torn between counters, never above what was received, and is exact once the stream is quiet.
#[derive(Debug)]
pub struct Ledger {
    sources: Box<[Source]>,
    rejected: Box<[AtomicU64]>,
    seen: SeenSlots,
    step: u64,
}

/// A bit for each slot of each chunk of the window.
///
/// Invariant: used only by the thread that runs the callback; atomics for the same reason as in `Window`.
#[derive(Debug)]
struct SeenSlots {
    /// Where in `bits` each chunk of the window begins, oldest chunk first.
    rows: Box<[AtomicU64]>,
    bits: Box<[AtomicU64]>,
    words: u64,
}

/// What a ledger held when it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Placed heaps of each source.
    pub placed: Vec<u64>,
    /// Duplicates of each source.
    pub duplicates: Vec<u64>,
    /// Newest timestamp of each source; −1 if there is none.
    pub newest: Vec<i64>,
    /// Rejected heaps, for each reason.
    pub rejected: Vec<u64>,
}

impl Source {
    #[cold]
    fn duplicate(&self) {
        increment(&self.duplicates);
    }
}

fn zeros(n: u64) -> Box<[AtomicU64]> {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}

fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

fn get<T>(slice: &[T], index: u64) -> Option<&T> {
    slice.get(index as usize)
}

impl Ledger {
    /// An empty ledger, for a stream that has `window` chunks under construction.
    #[must_use]
    pub fn new(layout: &Layout, window: u64) -> Self {
        let words = layout.chunk_heaps().div_ceil(u64::BITS.into());
        Self {
            sources: (0..layout.n_sources()).map(|_| Source::default()).collect(),
            rejected: zeros(layout.reasons.len() as u64),
            seen: SeenSlots {
                rows: (0..window).map(|chunk| AtomicU64::new(chunk.wrapping_mul(words))).collect(),
                bits: zeros(window.wrapping_mul(words)),
                words,
            },
            step: layout.spec().time.step,
        }
    }

    /// Count a placed heap: `batch` is counted from time 0, `chunk` from the start of the window.
    ///
    /// In a chunk outside the window no slots are marked, so no duplicates are found there.
    #[inline(always)]
    pub fn count(&self, source: u64, batch: u64, chunk: u64, at: Place) {
        let Some(source) = get(&self.sources, source) else { return };
        increment(&source.placed);
        let newest = source.newest.load(Relaxed).max(batch.wrapping_add(1));
        source.newest.store(newest, Relaxed);
        let Some(row) = get(&self.seen.rows, chunk) else { return };
        let Some(word) = get(&self.seen.bits, row.load(Relaxed).wrapping_add(at.index >> 6)) else { return };
        let old = word.load(Relaxed);
        let new = old | 1_u64.wrapping_shl(at.index as u32);
        if new == old {
            return source.duplicate();
        }
        word.store(new, Relaxed);
    }

    /// Count a rejected heap.
    pub fn rejected(&self, reason: usize) {
        if let Some(counter) = self.rejected.get(reason) {
            increment(counter);
        }
    }

    /// Follow the window, which has moved by `chunks`: what leaves it is forgotten.
    pub fn slide(&self, chunks: u64) {
        let rows = &self.seen.rows;
        let n = rows.len() as u64;
        let moved = chunks.min(n);
        let starts: Vec<u64> = rows.iter().map(|row| row.load(Relaxed)).collect();
        for start in starts.iter().take(usize::try_from(moved).unwrap_or(usize::MAX)) {
            for word in 0..self.seen.words {
                if let Some(word) = get(&self.seen.bits, start.wrapping_add(word)) {
                    word.store(0, Relaxed);
                }
            }
        }
        let rotated = starts.iter().cycle().skip(usize::try_from(moved).unwrap_or(0));
        for (row, &start) in rows.iter().zip(rotated) {
            row.store(start, Relaxed);
        }
    }

    /// Read all counters.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        // A source's duplicates before its placed heaps: the writer counts in the other order, and so a reader that
        // is in step with it does not see more duplicates than heaps.
        let duplicates = self.sources.iter().map(|source| read(&source.duplicates)).collect();
        Snapshot {
            duplicates,
            placed: self.sources.iter().map(|source| read(&source.placed)).collect(),
            newest: self
                .sources
                .iter()
                .map(|source| match read(&source.newest) {
                    0 => -1,
                    batch => batch.wrapping_sub(1).wrapping_mul(self.step).cast_signed(),
                })
                .collect(),
            rejected: self.rejected.iter().map(read).collect(),
        }
    }
}
