//! The ledger of a stream: what became of every heap that the callback saw.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::fmt;
use std::sync::Arc;

use crate::epochs::Epochs;
use crate::examples::Examples;
use crate::filled::Filled;
use crate::layout::Layout;
use crate::sync::atomic::{
    AtomicU64,
    Ordering::{self, Acquire, Relaxed, Release},
};
use crate::window::Window;

/// Counts of one stream's heaps, readable by anyone at any time; clones share them.
///
/// Invariant: only the thread that runs the stream's callback writes (one at a time, ordered by spead2's own
/// locking), so an increment is a load and a store, and no counter ever falls. Readers take each counter by itself:
/// no counter's value says anything about memory other than itself, so relaxed ordering is enough, and a reader
/// can neither block nor be blocked. Two things are read with acquire, because they are read together with others: what
/// became of placed heaps, which is stored with release once they are counted as placed; and the newest batch, before the
/// epochs: the first heap of an epoch passes a release fence before it is counted (in `Group::observe`). Totals are sums
/// made by the reader, never stored; what a reader sees of one heap may be torn between counters, never above what was
/// received, and is exact once the stream is quiet.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// [`hot::FRONT`] lines for the callback, and then see [`hot`].
    hot: Arc<[Line]>,
    n_sources: u64,
    /// Of each source, heaps placed into a slot of the window that had one already.
    duplicates: Arc<[AtomicU64]>,
    /// Of each source, heaps placed that belong to a chunk older than the window.
    too_old: Arc<[AtomicU64]>,
    /// Placed heaps by how many chunks they are behind the newest, from 1 on; the last counts those older than the window.
    late_chunks: Arc<[AtomicU64]>,
    /// For each reason, rejected heaps of each source, and then those whose source is unknown.
    rejected: Arc<[AtomicU64]>,
    /// The same by cause, with an example of each.
    examples: Examples,
    /// Heaps of streams that the callback does not serve: the only counter that several threads write.
    strange: Arc<AtomicU64>,
    /// Heaps that came after the stream had ended.
    after_end: Arc<AtomicU64>,
    /// What times chunk IDs stand for.
    epochs: Arc<Epochs>,
    step: u64,
    batches: u64,
}

/// So many counters that no two streams write to lines that a processor fetches together.
#[derive(Default)]
#[cfg_attr(not(loom), repr(align(128)))]
pub(crate) struct Line([AtomicU64; hot::PER_LINE]);

impl fmt::Debug for Line {
    /// Says nothing of the counters: in their place, the callback may have something else.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

/// The counters that change with every placed heap: where each is among them.
///
/// They are in one allocation, and in front of them is what the callback reads for every heap. So it needs one pointer. And
/// none of its fields has the same place in a page as a counter that it stores to each time, which some processors take for
/// the same place, and wait.
pub(crate) mod hot {
    /// Lines of the allocation in front of the counters, which the ledger does not touch; loom has atomics of its own, which
    /// nothing else can replace.
    pub const FRONT: usize = if cfg!(loom) { 0 } else { 10 };
    #[cfg(not(loom))]
    pub const FRONT_BYTES: usize = FRONT * size_of::<super::Line>();

    /// How much of the newest chunk the fast path may use, in batches from its start. With nothing of that, it must not use
    /// the older ones either.
    pub const LIMIT: usize = 0;
    /// Placed heaps of the newest chunk, by how many batches they are behind the newest. Most are few batches late: each
    /// such number has a counter of its own, and only the reader takes logarithms of it.
    pub const NEAR: usize = PER_LINE;
    /// Those that are not near, by the number of bits.
    pub const FAR: usize = NEAR + NEAR_BATCHES;
    /// Two for each source, so that a thousand sources fit a first-level cache: heaps placed, duplicates and late ones
    /// included; and the newest batch placed, counted from chunk 0, as a signed number, −1 before the first.
    pub const SOURCES: usize = FAR + FAR_BATCHES;

    /// Few for loom, which follows every load of every counter.
    pub const NEAR_BATCHES: usize = if cfg!(loom) { 2 } else { 64 };
    /// As many as the highest bit of a number has positions, so that none needs a check.
    pub const FAR_BATCHES: usize = if cfg!(loom) { 2 } else { 64 };

    pub(super) const PER_LINE: usize = if cfg!(loom) { 2 } else { 16 };
    const _: () = assert!(size_of::<super::Line>() == PER_LINE * size_of::<super::AtomicU64>(), "no gaps");
}

/// A window has less than 2^31 batches: no heap gets into the buckets beyond.
const USED_LATE_BATCHES: usize = 33;

/// What [`Ledger::count`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// The first heap in its slot.
    New,
    /// A heap whose slot had one: [`Ledger::duplicate`] counts it.
    Again,
}

/// What a ledger held when it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Placed heaps of each source.
    pub placed: Vec<u64>,
    /// Duplicates of each source.
    pub duplicates: Vec<u64>,
    /// Heaps of each source that were too old.
    pub too_old: Vec<u64>,
    /// Newest timestamp of each source; −1 if there is none.
    pub newest: Vec<i64>,
    /// Index of the epoch of each of those: a later epoch is newer, whatever the timestamps.
    pub newest_epoch: Vec<u64>,
    /// Rejected heaps: for each reason those of each source, and then those whose source is unknown.
    pub rejected: Vec<Vec<u64>>,
    /// Placed heaps of the newest chunk, by how many batches behind the newest: bucket k > 0 is from 2^(k-1) on.
    pub late_batches: Vec<u64>,
    /// Placed heaps by how many chunks behind the newest, from 0 on; the last is of those older than the window.
    pub late_chunks: Vec<u64>,
    /// Heaps that came after the end, which count nowhere else.
    pub after_end: u64,
}

#[inline(always)]
pub(crate) fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Count what becomes of a heap that counts as placed already: who sees this, with acquire, sees that too.
fn increment_after(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Release);
}

fn zeros(n: u64) -> Arc<[AtomicU64]> {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}

fn get<T>(slice: &[T], index: u64) -> Option<&T> {
    slice.get(index as usize)
}

impl Ledger {
    /// An empty ledger, for a stream whose window has `window` chunks.
    #[must_use]
    pub fn new(layout: &Layout, window: u64, epochs: &Arc<Epochs>) -> Self {
        let n_sources = layout.n_sources();
        let n_lines = hot::SOURCES.wrapping_add(n_sources.wrapping_mul(2) as usize).div_ceil(hot::PER_LINE);
        let ledger = Self {
            hot: (0..hot::FRONT.wrapping_add(n_lines)).map(|_| Line::default()).collect(),
            n_sources,
            duplicates: zeros(layout.n_sources()),
            too_old: zeros(layout.n_sources()),
            late_chunks: zeros(window),
            rejected: zeros(layout.n_sources().wrapping_add(1).wrapping_mul(layout.reasons.len() as u64)),
            examples: Examples::new(layout.reasons.len()),
            strange: Arc::default(),
            after_end: Arc::default(),
            epochs: Arc::clone(epochs),
            step: layout.spec().time.step,
            batches: layout.spec().time.batches,
        };
        (0..n_sources).filter_map(|source| ledger.newest(source)).for_each(|newest| newest.store(NONE, Relaxed));
        ledger
    }

    /// Number of sources.
    pub(crate) fn n_sources(&self) -> u64 {
        self.n_sources
    }

    /// Where [`hot::FRONT`] begins, behind which are the counters. They stay where they are for as long as the ledger or a
    /// clone of it is there.
    pub(crate) fn front(&self) -> *const Line {
        self.hot.as_ptr()
    }

    /// One of [`hot`].
    #[inline(always)]
    fn counter(&self, index: usize) -> Option<&AtomicU64> {
        self.hot.get(hot::FRONT.wrapping_add(index / hot::PER_LINE))?.0.get(index % hot::PER_LINE)
    }

    #[inline(always)]
    fn placed_of(&self, source: u64) -> Option<&AtomicU64> {
        self.counter(hot::SOURCES.wrapping_add(source.wrapping_mul(2) as usize)).filter(|_| source < self.n_sources)
    }

    #[inline(always)]
    fn newest(&self, source: u64) -> Option<&AtomicU64> {
        self.counter(hot::SOURCES.wrapping_add(source.wrapping_mul(2).wrapping_add(1) as usize))
            .filter(|_| source < self.n_sources)
    }

    /// The newest batch placed of a source, counted from chunk 0; negative before the first.
    #[must_use]
    pub fn newest_batch(&self, source: u64) -> i64 {
        self.newest(source).map_or(-1, |newest| newest.load(Relaxed) as i64)
    }

    /// Heaps placed of a source, duplicates and late ones included.
    #[must_use]
    pub fn placed(&self, source: u64) -> u64 {
        self.placed_of(source).map_or(0, |placed| placed.load(Relaxed))
    }

    /// How many batches of its newest chunk the stream may use without asking where the window is by now.
    #[inline(always)]
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.counter(hot::LIMIT).map_or(0, |limit| limit.load(Relaxed))
    }

    /// Let the stream use its window. Only who holds the group's lock may.
    pub(crate) fn open(&self, window: &Window) {
        self.set_limit(window.newest_limit);
    }

    /// Have the stream ask where the window is before it places another heap. Only who holds the group's lock may.
    pub(crate) fn close(&self) {
        self.set_limit(0);
    }

    fn set_limit(&self, batches: u64) {
        self.counter(hot::LIMIT).into_iter().for_each(|limit| limit.store(batches, Relaxed));
    }

    /// Count a heap placed in the window: `batch` is counted from chunk 0, `chunk` from the start of the window.
    #[inline]
    #[must_use]
    pub fn count(&self, filled: &mut Filled, source: u64, batch: u64, chunk: u64, slot: u64) -> Counted {
        let (Some(placed), Some(newest)) = (self.placed_of(source), self.newest(source)) else { return Counted::New };
        increment(placed);
        newest.store((newest.load(Relaxed) as i64).max(batch as i64) as u64, Relaxed);
        let chunks = filled.newest().wrapping_sub(chunk);
        if chunks == 0 {
            count_lateness(&mut filled.newest_batch, batch, |index| self.counter(index));
        } else {
            self.late(chunks);
        }
        if filled.mark(chunk, slot) { Counted::Again } else { Counted::New }
    }

    /// Count a heap placed that belongs to a chunk so many behind the newest, at least one.
    #[inline]
    pub(crate) fn late(&self, chunks: u64) {
        let bucket = get(&self.late_chunks, chunks.wrapping_sub(1)).or(self.late_chunks.last());
        bucket.into_iter().for_each(increment);
    }

    /// Count a duplicate of a source.
    ///
    /// Returns whether a network that repeats heaps cannot be the reason for all its duplicates since a heap of it was
    /// last new: there are more of them than slots, so at least one heap has come three times. Or, once it is known that
    /// all begins again, whether there are two.
    #[cold]
    pub fn duplicate(&self, filled: &mut Filled, source: u64, begins_again: bool) -> bool {
        let Some(counter) = get(&self.duplicates, source) else { return false };
        increment_after(counter);
        let fresh = self.placed(source).wrapping_sub(counter.load(Relaxed));
        filled.repeats(source, fresh) || begins_again
    }

    /// Count a duplicate that has come through another stream of the group.
    pub fn copy(&self, source: u64) {
        get(&self.duplicates, source).into_iter().for_each(increment_after);
    }

    /// Count a heap placed in a chunk older than the window. Whether it is the first of its slot is not known any more.
    pub fn too_old(&self, source: u64, batch: u64) {
        let (Some(placed), Some(newest)) = (self.placed_of(source), self.newest(source)) else { return };
        increment(placed);
        newest.store((newest.load(Relaxed) as i64).max(batch as i64) as u64, Relaxed);
        self.late_chunks.last().into_iter().for_each(increment);
        get(&self.too_old, source).into_iter().for_each(increment_after);
    }

    /// Count a heap that came after the stream had ended.
    pub fn after_end(&self) {
        increment(&self.after_end);
    }

    /// Count a heap of a stream that the callback does not serve.
    pub fn strange(&self) {
        self.strange.fetch_add(1, Relaxed);
    }

    /// Count a rejected heap, of a source if that is known.
    pub fn rejected(&self, reason: usize, source: Option<u64>) {
        let row = self.n_sources.wrapping_add(1).wrapping_mul(reason as u64);
        if let Some(counter) = get(&self.rejected, row.wrapping_add(source.unwrap_or(self.n_sources))) {
            increment(counter);
        }
    }

    /// Rejected heaps by cause, with an example of each.
    #[must_use]
    pub fn examples(&self) -> &Examples {
        &self.examples
    }

    /// The epoch and the timestamp of a batch that is counted from chunk 0 and was loaded with acquire.
    fn timestamp(&self, batch: u64) -> (u64, i64) {
        let chunk = batch.checked_div(self.batches).unwrap_or(0);
        let Some((index, epoch)) = self.epochs.of_chunk(chunk).filter(|_| batch != NONE) else { return (0, -1) };
        let skipped = (epoch.offset as u64).wrapping_mul(self.batches);
        (index, batch.wrapping_sub(skipped).wrapping_mul(self.step).wrapping_add(epoch.origin) as i64)
    }

    /// Those of [`hot`] from an index on.
    fn hot_from(&self, index: usize) -> impl Iterator<Item = &AtomicU64> {
        let lines = self.hot.get(hot::FRONT.wrapping_add(index / hot::PER_LINE)..).unwrap_or_default();
        lines.iter().flat_map(|line| &line.0).skip(index % hot::PER_LINE)
    }

    /// Add the heaps of the newest chunk to sums by the number of bits that they are late, and return how many there are.
    ///
    /// None of them is later than a chunk has batches, so the counters beyond are not read: of a thousand streams, they
    /// would fill the caches.
    fn add_late_batches(&self, sums: &mut [u64]) -> u64 {
        let near = self.hot_from(hot::NEAR).zip(0..self.batches.min(hot::NEAR_BATCHES as u64));
        let near_total = near.fold(0_u64, |total, (counter, behind)| {
            let count = counter.load(Relaxed);
            if let Some(sum) = sums.get_mut(bits(behind)) {
                *sum = sum.wrapping_add(count);
            }
            total.wrapping_add(count)
        });
        if self.batches <= hot::NEAR_BATCHES as u64 {
            return near_total;
        }
        near_total.wrapping_add(add(sums, self.hot_from(hot::FAR).take(hot::FAR_BATCHES), Relaxed))
    }

    /// Read all counters.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let n_sources = self.n_sources as usize;
        let mut snapshot = Snapshot {
            placed: vec![0; n_sources],
            duplicates: vec![0; n_sources],
            too_old: vec![0; n_sources],
            newest: vec![-1; n_sources],
            newest_epoch: vec![0; n_sources],
            rejected: self.rejected.chunks(n_sources.wrapping_add(1)).map(|reason| vec![0; reason.len()]).collect(),
            late_batches: vec![0; USED_LATE_BATCHES],
            late_chunks: vec![0; self.late_chunks.len().wrapping_add(1)],
            after_end: 0,
        };
        snapshot.add(self);
        snapshot
    }
}

impl Snapshot {
    /// Add what a ledger of the same shape holds; of the newest timestamps, the newer one stays.
    ///
    /// A scrape sums hundreds of ledgers: nothing is allocated.
    pub fn add(&mut self, ledger: &Ledger) {
        // First what became of placed heaps, and then how many there are: so there are never too few.
        add(&mut self.duplicates, ledger.duplicates.iter(), Acquire);
        add(&mut self.too_old, ledger.too_old.iter(), Acquire);
        add(&mut self.placed, ledger.hot_from(hot::SOURCES).step_by(2), Relaxed);
        self.after_end = self.after_end.wrapping_add(ledger.after_end.load(Relaxed));
        let newest = self.newest_epoch.iter_mut().zip(self.newest.iter_mut());
        for ((epoch, timestamp), newest) in newest.zip(ledger.hot_from(hot::SOURCES.wrapping_add(1)).step_by(2)) {
            (*epoch, *timestamp) = (*epoch, *timestamp).max(ledger.timestamp(newest.load(Acquire)));
        }
        let row = (ledger.n_sources as usize).wrapping_add(1);
        for (sums, counters) in self.rejected.iter_mut().zip(ledger.rejected.chunks(row)) {
            add(sums, counters.iter(), Relaxed);
        }
        if let Some(unknown) = self.rejected.last_mut().and_then(|internal_error| internal_error.last_mut()) {
            *unknown = unknown.wrapping_add(ledger.strange.load(Relaxed));
        }
        let newest_chunk = ledger.add_late_batches(&mut self.late_batches);
        if let Some((sum, older)) = self.late_chunks.split_first_mut() {
            *sum = sum.wrapping_add(newest_chunk);
            add(older, ledger.late_chunks.iter(), Relaxed);
        }
    }
}

/// Count a heap of the newest chunk by its lateness; it may be the newest from now on. `counter` is to give that of an index
/// in [`hot`].
#[inline(always)]
pub(crate) fn count_lateness<'a>(newest_batch: &mut u64, batch: u64, counter: impl Fn(usize) -> Option<&'a AtomicU64>) {
    let behind = newest_batch.wrapping_sub(batch);
    if behind < hot::NEAR_BATCHES as u64 {
        counter(hot::NEAR.wrapping_add(behind as usize)).into_iter().for_each(increment);
    } else if (behind as i64) < 0 {
        unlikely();
        *newest_batch = batch;
        counter(hot::NEAR).into_iter().for_each(increment);
    } else {
        unlikely();
        counter(hot::FAR.wrapping_add(bits(behind) % hot::FAR_BATCHES)).into_iter().for_each(increment);
    }
}

/// Keeps what calls it out of the way of what does not.
#[cold]
fn unlikely() {}

/// The number of bits: that of the highest bit of twice the number and one, which is never 0.
#[inline(always)]
fn bits(number: u64) -> usize {
    (number.wrapping_mul(2) | 1).ilog2() as usize
}

/// Add counters to sums, and return what was added altogether. For [`crate::sync`], the ordering is the caller's.
#[cfg_attr(loom, track_caller)]
fn add<'a>(sums: &mut [u64], counters: impl Iterator<Item = &'a AtomicU64>, order: Ordering) -> u64 {
    let mut total = 0_u64;
    for (sum, counter) in sums.iter_mut().zip(counters) {
        let count = counter.load(order);
        *sum = sum.wrapping_add(count);
        total = total.wrapping_add(count);
    }
    total
}

/// No batch yet: −1 as a signed number.
const NONE: u64 = u64::MAX;
