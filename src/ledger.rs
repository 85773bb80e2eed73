//! The ledger of a stream: what became of every heap that the callback saw.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::sync::Arc;

use crate::layout::{Layout, Place};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What changes with every placed heap of a source: small, so that a thousand sources fit a first-level cache.
#[derive(Debug)]
#[repr(align(16))]
struct Source {
    /// Heaps placed, duplicates and late ones included.
    placed: AtomicU64,
    /// Newest batch placed, counted from time 0, as a signed number; −1 before the first.
    newest: AtomicU64,
}

/// Counts of one stream's heaps, readable by anyone at any time; clones share them.
///
/// Invariant: only the thread that runs the stream's callback writes (one at a time, ordered by spead2's own
/// locking), so an increment is a load and a store, and no counter ever falls. Readers take each counter by itself:
/// no counter's value says anything about memory other than itself, so relaxed ordering is enough, and a reader
/// can neither block nor be blocked. Totals are sums made by the reader, never stored; what a reader sees
/// of one heap may be torn between counters, never above what was received, and is exact once the stream is quiet.
#[derive(Clone, Debug)]
pub struct Ledger {
    sources: Arc<[Source]>,
    /// Of each source, heaps placed into a slot of the window that had one already.
    duplicates: Arc<[AtomicU64]>,
    rejected: Arc<[AtomicU64]>,
    step: u64,
}

/// A bit for each slot of each chunk of the window: set once a heap was placed there.
#[derive(Clone, Debug)]
pub struct Slots {
    /// Where in `bits` each chunk of the window begins, oldest chunk first.
    rows: Box<[u64]>,
    bits: Box<[u64]>,
    /// Words of a chunk.
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

fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

fn get<T>(slice: &[T], index: u64) -> Option<&T> {
    slice.get(index as usize)
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        let source = |_| Source { placed: AtomicU64::new(0), newest: AtomicU64::new(NONE) };
        Self {
            sources: (0..layout.n_sources()).map(source).collect(),
            duplicates: (0..layout.n_sources()).map(|_| AtomicU64::new(0)).collect(),
            rejected: layout.reasons.iter().map(|_| AtomicU64::new(0)).collect(),
            step: layout.spec().time.step,
        }
    }

    /// Count a placed heap: `batch` is counted from time 0, `chunk` from the start of the window.
    ///
    /// In a chunk outside the window no slots are marked, so no duplicates are found there.
    #[inline(always)]
    pub fn count(&self, slots: &mut Slots, source: u64, batch: u64, chunk: u64, at: Place) {
        let Some(counters) = get(&self.sources, source) else { return };
        increment(&counters.placed);
        let newest = counters.newest.load(Relaxed).cast_signed().max(batch.cast_signed());
        counters.newest.store(newest.cast_unsigned(), Relaxed);
        let Some(row) = get(&slots.rows, chunk) else { return };
        let Some(word) = slots.bits.get_mut(row.wrapping_add(at.index >> 6) as usize) else { return };
        let slot = 1_u64.wrapping_shl(at.index as u32);
        if *word & slot != 0 {
            return self.duplicate(source);
        }
        *word |= slot;
    }

    #[cold]
    fn duplicate(&self, source: u64) {
        if let Some(counter) = get(&self.duplicates, source) {
            increment(counter);
        }
    }

    /// Count a rejected heap.
    pub fn rejected(&self, reason: usize) {
        if let Some(counter) = self.rejected.get(reason) {
            increment(counter);
        }
    }

    /// Read all counters.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let time = |batch: u64| if batch == NONE { -1 } else { batch.wrapping_mul(self.step).cast_signed() };
        Snapshot {
            placed: self.sources.iter().map(|source| read(&source.placed)).collect(),
            duplicates: self.duplicates.iter().map(read).collect(),
            newest: self.sources.iter().map(|source| time(read(&source.newest))).collect(),
            rejected: self.rejected.iter().map(read).collect(),
        }
    }
}

/// No batch yet: −1 as a signed number.
const NONE: u64 = u64::MAX;

impl Slots {
    /// No slot filled, in `window` chunks.
    #[must_use]
    pub fn new(layout: &Layout, window: u64) -> Self {
        let words = layout.chunk_heaps().div_ceil(u64::BITS.into());
        Self {
            rows: (0..window).map(|chunk| chunk.wrapping_mul(words)).collect(),
            bits: vec![0; window.wrapping_mul(words) as usize].into(),
            words,
        }
    }

    /// Follow the window, which has moved by `chunks`: what leaves it is forgotten.
    pub fn slide(&mut self, chunks: u64) {
        let moved = chunks.min(self.rows.len() as u64) as usize;
        for row in self.rows.iter().take(moved) {
            self.bits.iter_mut().skip(*row as usize).take(self.words as usize).for_each(|word| *word = 0);
        }
        self.rows.rotate_left(moved);
    }
}
