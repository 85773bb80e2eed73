//! The ledger of a stream: what became of every heap that the callback saw.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::sync::Arc;

use crate::epochs::Epochs;
use crate::examples::Examples;
use crate::layout::{Layout, Slot};
use crate::sync::atomic::{
    AtomicU64,
    Ordering::{self, Acquire, Relaxed, Release},
};

/// What changes with every placed heap of a source: small, so that a thousand sources fit a first-level cache.
#[derive(Debug)]
#[repr(align(16))]
struct Source {
    /// Heaps placed, duplicates and late ones included.
    placed: AtomicU64,
    /// Newest batch placed, counted from chunk 0, as a signed number; −1 before the first.
    newest: AtomicU64,
}

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
    sources: Arc<[Source]>,
    /// Of each source, heaps placed into a slot of the window that had one already.
    duplicates: Arc<[AtomicU64]>,
    common: Arc<Common>,
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

/// What every heap needs.
#[derive(Debug)]
struct Common {
    /// How much of the window the fast path may use, in batches from its start.
    limit: AtomicU64,
    late_batches: LateBatches,
}

/// Placed heaps of the newest chunk, by how many batches they are behind the newest. Most are few batches late: each such
/// number has a counter of its own, and only the reader takes logarithms of it.
#[derive(Debug)]
struct LateBatches {
    near: [AtomicU64; NEAR_BATCHES],
    /// Those that are not near, by the number of bits.
    far: [AtomicU64; LATE_BATCHES],
}

/// Few for loom, which follows every load of every counter.
const NEAR_BATCHES: usize = if cfg!(loom) { 2 } else { 64 };
/// As many as the highest bit of a number has positions, so that none needs a check.
const LATE_BATCHES: usize = if cfg!(loom) { 2 } else { 64 };
/// A window has less than 2^31 batches: no heap gets into the buckets beyond.
const USED_LATE_BATCHES: usize = 33;

/// Which slots of the chunks of the window are filled: a bit for each, set once a heap was placed there.
#[derive(Clone, Debug)]
pub struct Filled {
    /// The newest batch placed, counted from chunk 0.
    newest_batch: u64,
    /// The newest chunk, counted from the start of the window.
    newest: u64,
    /// Where in `bits` it begins.
    newest_row: u64,
    /// Where in `bits` each chunk of the window begins, oldest chunk first.
    rows: Box<[u64]>,
    bits: Box<[u64]>,
    /// Words of a chunk.
    words: u64,
    /// Slots that a window has for a source.
    slots_of_source: u64,
    /// Of each source, its duplicates in a row.
    runs: Box<[Run]>,
}

/// Duplicates of a source since a heap of it was new.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// How many heaps had been new by then.
    fresh: u64,
    duplicates: u64,
}

/// What [`Ledger::count`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// A heap of the newest chunk, the first in its slot.
    New,
    /// A heap of the newest chunk whose slot had one: [`Ledger::duplicate`] counts it.
    Again,
    /// A heap of another chunk: [`Ledger::count_late`] counts it.
    Late,
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

fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Count what becomes of a heap that counts as placed already: who sees this, with acquire, sees that too.
fn increment_after(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Release);
}

/// Note that a slot is filled: the one with this index, in the chunk that begins at `row`. Whether it was already.
#[inline(always)]
fn mark(filled: &mut Filled, row: u64, index: u64) -> bool {
    let Some(word) = filled.bits.get_mut(row.wrapping_add(index >> 6) as usize) else { return false };
    let before = *word;
    *word = before | 1_u64.wrapping_shl(index as u32);
    before & 1_u64.wrapping_shl(index as u32) != 0
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
        let source = |_| Source { placed: AtomicU64::new(0), newest: AtomicU64::new(NONE) };
        Self {
            sources: (0..layout.n_sources()).map(source).collect(),
            duplicates: zeros(layout.n_sources()),
            too_old: zeros(layout.n_sources()),
            common: Arc::new(Common { limit: AtomicU64::new(0), late_batches: LateBatches::new() }),
            late_chunks: zeros(window),
            rejected: zeros(layout.n_sources().wrapping_add(1).wrapping_mul(layout.reasons.len() as u64)),
            examples: Examples::new(layout.reasons.len()),
            strange: Arc::default(),
            after_end: Arc::default(),
            epochs: Arc::clone(epochs),
            step: layout.spec().time.step,
            batches: layout.spec().time.batches,
        }
    }

    /// Number of sources.
    #[must_use]
    pub fn n_sources(&self) -> u64 {
        self.sources.len() as u64
    }

    /// The newest batch placed of a source, counted from chunk 0; negative before the first.
    #[must_use]
    pub fn newest_batch(&self, source: u64) -> i64 {
        get(&self.sources, source).map_or(-1, |source| source.newest.load(Relaxed) as i64)
    }

    /// Heaps placed of a source, duplicates and late ones included.
    #[must_use]
    pub fn placed(&self, source: u64) -> u64 {
        get(&self.sources, source).map_or(0, |source| source.placed.load(Relaxed))
    }

    /// How many batches of its window the stream may use without asking where the window is by now.
    #[inline(always)]
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.common.limit.load(Relaxed)
    }

    /// Let the stream use so many batches of its window. Only who holds the group's lock may.
    pub(crate) fn set_limit(&self, batches: u64) {
        self.common.limit.store(batches, Relaxed);
    }

    /// Count a heap placed in the window: `batch` is counted from chunk 0, `chunk` from the start of the window.
    ///
    /// What is left to be done for a heap that is not simply a new one of the newest chunk is left to the caller, for whom
    /// that is the end of the way.
    #[inline(always)]
    #[must_use]
    pub fn count(&self, filled: &mut Filled, source: u64, batch: u64, chunk: u64, slot: Slot) -> Counted {
        let Some(counters) = get(&self.sources, source) else { return Counted::New };
        increment(&counters.placed);
        let newest_batch = (counters.newest.load(Relaxed) as i64).max(batch as i64);
        counters.newest.store(newest_batch as u64, Relaxed);
        if chunk != filled.newest {
            return Counted::Late;
        }
        let LateBatches { near, far } = &self.common.late_batches;
        let behind = filled.newest_batch.wrapping_sub(batch);
        if let Some(counter) = get(near, behind) {
            increment(counter);
        } else if (behind as i64) < 0 {
            unlikely();
            filled.newest_batch = batch;
            let [on_time, ..] = near;
            increment(on_time);
        } else {
            unlikely();
            far.get(bits(behind)).into_iter().for_each(increment);
        }
        let row = filled.newest_row;
        if mark(filled, row, slot.index) { Counted::Again } else { Counted::New }
    }

    /// Count by lateness what is not in the newest chunk. Returns whether its slot had a heap already.
    #[cold]
    #[must_use]
    pub fn count_late(&self, filled: &mut Filled, chunk: u64, index: u64) -> bool {
        let chunks = filled.newest.wrapping_sub(chunk);
        let bucket = get(&self.late_chunks, chunks.wrapping_sub(1)).or(self.late_chunks.last());
        bucket.into_iter().for_each(increment);
        get(&filled.rows, chunk).copied().is_some_and(|row| mark(filled, row, index))
    }

    /// Count a duplicate of a source.
    ///
    /// Returns whether a network that repeats heaps cannot be the reason for all its duplicates since a heap of it was
    /// last new: there are more of them than slots, so at least one heap has come three times. Or, once it is known that
    /// all begins again, whether there are two.
    #[cold]
    pub fn duplicate(&self, filled: &mut Filled, source: u64, begins_again: bool) -> bool {
        let (Some(counter), Some(counters)) = (get(&self.duplicates, source), get(&self.sources, source)) else {
            return false;
        };
        increment_after(counter);
        let fresh = counters.placed.load(Relaxed).wrapping_sub(counter.load(Relaxed));
        let slots = fresh.min(filled.slots_of_source);
        let Some(run) = filled.runs.get_mut(source as usize) else { return false };
        if run.fresh != fresh {
            *run = Run { fresh, duplicates: 0 };
        }
        run.duplicates = run.duplicates.saturating_add(1);
        begins_again || run.duplicates > slots
    }

    /// Count a duplicate that has come through another stream of the group.
    pub fn copy(&self, source: u64) {
        get(&self.duplicates, source).into_iter().for_each(increment_after);
    }

    /// Count a heap placed in a chunk older than the window. Whether it is the first of its slot is not known any more.
    pub fn too_old(&self, source: u64, batch: u64) {
        let Some(counters) = get(&self.sources, source) else { return };
        increment(&counters.placed);
        let newest = (counters.newest.load(Relaxed) as i64).max(batch as i64);
        counters.newest.store(newest as u64, Relaxed);
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
        let n_sources = self.sources.len() as u64;
        let row = n_sources.wrapping_add(1).wrapping_mul(reason as u64);
        if let Some(counter) = get(&self.rejected, row.wrapping_add(source.unwrap_or(n_sources))) {
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

    /// Read all counters.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let row = self.sources.len().wrapping_add(1);
        let mut snapshot = Snapshot {
            placed: vec![0; self.sources.len()],
            duplicates: vec![0; self.sources.len()],
            too_old: vec![0; self.sources.len()],
            newest: vec![-1; self.sources.len()],
            newest_epoch: vec![0; self.sources.len()],
            rejected: self.rejected.chunks(row).map(|reason| vec![0; reason.len()]).collect(),
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
        add(&mut self.placed, ledger.sources.iter().map(|source| &source.placed), Relaxed);
        self.after_end = self.after_end.wrapping_add(ledger.after_end.load(Relaxed));
        let newest = self.newest_epoch.iter_mut().zip(self.newest.iter_mut());
        for ((epoch, timestamp), source) in newest.zip(ledger.sources.iter()) {
            (*epoch, *timestamp) = (*epoch, *timestamp).max(ledger.timestamp(source.newest.load(Acquire)));
        }
        for (sums, counters) in
            self.rejected.iter_mut().zip(ledger.rejected.chunks(ledger.sources.len().wrapping_add(1)))
        {
            add(sums, counters.iter(), Relaxed);
        }
        if let Some(unknown) = self.rejected.last_mut().and_then(|internal_error| internal_error.last_mut()) {
            *unknown = unknown.wrapping_add(ledger.strange.load(Relaxed));
        }
        let newest_chunk = ledger.common.late_batches.add_to(&mut self.late_batches);
        if let Some((sum, older)) = self.late_chunks.split_first_mut() {
            *sum = sum.wrapping_add(newest_chunk);
            add(older, ledger.late_chunks.iter(), Relaxed);
        }
    }
}

impl LateBatches {
    fn new() -> Self {
        Self { near: std::array::from_fn(|_| AtomicU64::new(0)), far: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Add the counts to sums by the number of bits, and return what was added altogether.
    fn add_to(&self, sums: &mut [u64]) -> u64 {
        let near_total = self.near.iter().zip(0_u64..).fold(0_u64, |total, (counter, behind)| {
            let count = counter.load(Relaxed);
            if let Some(sum) = sums.get_mut(bits(behind)) {
                *sum = sum.wrapping_add(count);
            }
            total.wrapping_add(count)
        });
        near_total.wrapping_add(add(sums, self.far.iter(), Relaxed))
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

/// Add counters to sums, and return what was added altogether.
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

impl Filled {
    /// No slot filled, in `window` chunks.
    #[must_use]
    pub fn new(layout: &Layout, window: u64) -> Self {
        let words = layout.chunk_heaps().div_ceil(u64::BITS.into());
        Self {
            newest_batch: 0,
            newest: 0,
            newest_row: 0,
            rows: (0..window).map(|chunk| chunk.wrapping_mul(words)).collect(),
            bits: vec![0; window.wrapping_mul(words) as usize].into(),
            words,
            slots_of_source: window
                .wrapping_mul(layout.chunk_heaps())
                .checked_div(layout.n_sources())
                .unwrap_or(u64::MAX),
            runs: vec![Run::default(); layout.n_sources() as usize].into(),
        }
    }

    /// Follow the window, which has moved by `chunks` and ends with `newest` now.
    ///
    /// What leaves it is forgotten, after a call of `left` with the number of each chunk, counted from the former start of
    /// the window, and its bits.
    pub fn slide(&mut self, chunks: u64, newest: u64, mut left: impl FnMut(u64, &[u64])) {
        let moved = chunks.min(self.rows.len() as u64) as usize;
        for (chunk, &row) in (0..).zip(self.rows.iter().take(moved)) {
            let words = row as usize..row.wrapping_add(self.words) as usize;
            let Some(row) = self.bits.get_mut(words) else { continue };
            left(chunk, row);
            row.fill(0);
        }
        self.rows.rotate_left(moved);
        self.newest = newest;
        self.newest_row = get(&self.rows, newest).copied().unwrap_or(0);
    }
}
