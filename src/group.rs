//! What the streams of a group share: the timeline behind a lock that only the cold path takes, and control heaps.

use std::sync::PoisonError;
use std::time::Instant;

use crate::copies::Copies;
use crate::epochs::Epochs;
use crate::ledger::Ledger;
use crate::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
    fence,
};
use crate::sync::{Arc, Mutex, MutexGuard};
use crate::timeline::{TimeRules, Timeline, Verdict, Witness};

/// What streams that place heaps into the same chunks agree on; a single stream is a group of one.
#[derive(Debug)]
pub struct Group {
    state: Mutex<State>,
    copies: Mutex<Copies>,
    epochs: std::sync::Arc<Epochs>,
    /// [`Timeline::refusals`], for those who do not want to wait for the lock.
    refusals: AtomicU64,
    /// How many control heaps streams have done with.
    done: AtomicU64,
    started: Instant,
}

/// What the lock protects. It is held for less than a microsecond, but for the first heap of each chunk of many sources.
#[derive(Debug)]
struct State {
    timeline: Timeline,
    members: Vec<Ledger>,
    /// Chunk that control heaps are placed in.
    control: Option<u64>,
    /// How many members have ended.
    ended: usize,
}

impl Group {
    /// A group without members.
    #[must_use]
    pub fn new(rules: TimeRules) -> Arc<Self> {
        let timeline = Timeline::new(rules);
        Arc::new(Self {
            epochs: std::sync::Arc::clone(timeline.epochs()),
            state: Mutex::new(State { timeline, members: Vec::new(), control: None, ended: 0 }),
            copies: Mutex::default(),
            refusals: AtomicU64::new(0),
            done: AtomicU64::new(0),
            started: Instant::now(),
        })
    }

    /// No panic can happen while the lock is held; were there one, the state would still be as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Add the ledger of a stream whose window has `window` chunks, and return the number of the member.
    pub fn join(&self, ledger: Ledger, window: u64) -> usize {
        self.lock().members.push(ledger);
        self.copies().join(window)
    }

    /// What the members have filled in chunks that have left their windows.
    pub fn copies(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epochs so far.
    #[must_use]
    pub fn epochs(&self) -> &std::sync::Arc<Epochs> {
        &self.epochs
    }

    /// How often time would have begun again at an earlier time, but must not.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Relaxed)
    }

    /// Whether a timestamp is a multiple of the step, after unwrapping.
    #[must_use]
    pub fn is_aligned(&self, stamp: u64) -> bool {
        self.lock().timeline.is_aligned(stamp)
    }

    /// Judge a heap of a source by its timestamp, for the stream whose ledger this is, and whose newest chunk.
    #[must_use]
    pub fn observe(&self, stamp: u64, source: u64, own: &Ledger, newest: Option<u64>) -> Verdict {
        let mut state = self.lock();
        let State { timeline, members, .. } = &mut *state;
        let verdict = timeline.observe(stamp, &View { members, own, source, newest, started: self.started });
        self.refusals.store(timeline.refusals(), Relaxed);
        // Whoever sees a newest batch that is stored from now on sees the epoch that it belongs to: this thread has seen
        // it, because it has the lock.
        fence(Release);
        verdict
    }

    /// Begin an epoch after all chunks in windows. They come out when each stream has had a control heap.
    ///
    /// False if no window has a chunk, so that there is no need for one.
    #[must_use]
    pub fn flush(&self) -> bool {
        self.lock().flush()
    }

    /// Where to place a control heap.
    #[must_use]
    pub fn control(&self) -> Option<u64> {
        self.lock().control
    }

    /// A stream has ended: it places nothing any more.
    ///
    /// For the last one, returns where to place a control heap, so that all chunks come out: before that, others have heaps
    /// that belong there.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        let mut state = self.lock();
        state.ended = state.ended.saturating_add(1);
        if state.ended < state.members.len() {
            return None;
        }
        let _ = state.flush();
        state.control
    }

    /// Note that a stream has done with all that came before a control heap.
    pub fn note_done(&self) {
        self.done.fetch_add(1, Relaxed);
    }

    /// How many control heaps streams have done with.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }
}

impl State {
    fn flush(&mut self) -> bool {
        let control = self.timeline.flush();
        self.control = control.or(self.control);
        control.is_some()
    }
}

/// The world as the timeline sees it.
struct View<'a> {
    members: &'a [Ledger],
    own: &'a Ledger,
    source: u64,
    newest: Option<u64>,
    started: Instant,
}

impl Witness for View<'_> {
    fn placed(&self) -> u64 {
        self.members.iter().fold(0, |sum, ledger| sum.wrapping_add(ledger.placed_in_window()))
    }

    fn source(&self) -> u64 {
        self.source
    }

    fn newest_of_source(&self) -> i64 {
        self.own.newest_batch(self.source)
    }

    fn newest_of_stream(&self) -> Option<u64> {
        self.newest
    }

    fn others(&self, since: u64, from: u64) -> (u64, u64) {
        let newest = |source| self.members.iter().map(|ledger| ledger.newest_batch(source)).max().unwrap_or(-1);
        let others = (0..self.own.n_sources()).filter(|&source| source != self.source);
        others.fold((0, 0), |(alive, reached), source| {
            let newest = u64::try_from(newest(source)).ok();
            let is_from = |batch| newest.is_some_and(|newest| newest >= batch);
            (alive + u64::from(is_from(since)), reached + u64::from(is_from(since.max(from))))
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
