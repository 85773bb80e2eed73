//! What the streams of a group share: the timeline behind a lock that only the cold path takes, and control heaps.

use std::sync::PoisonError;
use std::time::Instant;

use crate::copies::Copies;
use crate::epochs::Epochs;
use crate::estranged::Estranged;
use crate::ledger::Ledger;
use crate::mark::Mark;
use crate::members::Members;
use crate::segment::Moment;
use crate::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, Release},
    fence,
};
use crate::sync::{Arc, Mutex, MutexGuard};
use crate::timeline::{Sighting, TimeRules, Timeline, Verdict, Witness};
use crate::window::{UNKNOWN, Window};

/// What streams that place heaps into the same chunks agree on; a single stream is a group of one.
#[derive(Debug)]
pub struct Group {
    state: Mutex<State>,
    copies: Mutex<Copies>,
    epochs: std::sync::Arc<Epochs>,
    estranged: std::sync::Arc<Estranged>,
    /// [`Timeline::refusals`], for those who do not want to wait for the lock.
    refusals: AtomicU64,
    /// [`Timeline::measured_rate`], likewise: the bits of a float, which is NaN if nothing is known.
    rate: AtomicU64,
    /// Whether heaps come as time passes, so that a clock can tell how far time has come.
    is_live: AtomicBool,
    /// Whether sources have begun again at a time that the window held.
    begins_again: AtomicBool,
    /// How many control heaps streams have done with.
    done: AtomicU64,
    chunk_step: u64,
    started: Instant,
}

/// What the lock protects. It is held for less than a microsecond, but for the first heap of each chunk of many sources.
#[derive(Debug)]
struct State {
    timeline: Timeline,
    members: Members,
    /// Chunk that control heaps are placed in.
    control: Option<u64>,
    /// What heaps have told of UTC at tick 0; and what one of them told that nobody else did.
    utc: Option<u64>,
    utc_doubt: Option<u64>,
    /// The newest chunk of all windows. A flush leaves it as it is until newer heaps come.
    newest: Option<Moment>,
    /// The first chunk that can still come out: those before a control heap have.
    floor: u64,
    /// How many members have ended.
    ended: usize,
}

impl Group {
    /// A group without members.
    #[must_use]
    pub fn new(rules: TimeRules) -> Arc<Self> {
        let chunk_step = rules.chunk_step();
        let timeline = Timeline::new(rules);
        let estranged = std::sync::Arc::clone(timeline.estranged());
        let epochs = std::sync::Arc::clone(timeline.epochs());
        let state = State {
            timeline,
            members: Members::default(),
            control: None,
            utc: None,
            utc_doubt: None,
            newest: None,
            floor: 0,
            ended: 0,
        };
        Arc::new(Self {
            epochs,
            state: Mutex::new(state),
            copies: Mutex::default(),
            estranged,
            refusals: AtomicU64::new(0),
            rate: AtomicU64::new(f64::NAN.to_bits()),
            is_live: AtomicBool::new(false),
            begins_again: AtomicBool::new(false),
            done: AtomicU64::new(0),
            chunk_step,
            started: Instant::now(),
        })
    }

    /// No panic can happen while the lock is held; were there one, the state would still be as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Add the ledger of a stream whose window has `window` chunks, and return the number of the member.
    pub fn join(&self, ledger: Ledger, window: u64) -> usize {
        self.lock().members.join(ledger);
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

    /// Ticks of a chunk.
    #[must_use]
    pub fn chunk_step(&self) -> u64 {
        self.chunk_step
    }

    /// Ticks by which the timestamps of each source differ from the steps of time, if that is known; empty if they do not.
    #[must_use]
    pub fn phases(&self) -> Vec<Option<i64>> {
        self.lock().timeline.phases().iter().map(|&phase| (phase != UNKNOWN).then_some(phase as i64)).collect()
    }

    /// Which sources disagree with the majority about the time.
    #[must_use]
    pub fn estranged(&self) -> &Estranged {
        &self.estranged
    }

    /// Ticks in a second that the streams show by the clock, once that is known.
    #[must_use]
    pub fn measured_rate(&self) -> Option<f64> {
        Some(f64::from_bits(self.rate.load(Relaxed))).filter(|rate| !rate.is_nan())
    }

    /// Heaps come as time passes, from a network: a clock can tell how far time has come.
    pub fn set_live(&self) {
        self.is_live.store(true, Relaxed);
    }

    /// Whether sources have begun again at a time that the window held.
    #[must_use]
    pub fn begins_again(&self) -> bool {
        self.begins_again.load(Relaxed)
    }

    fn started(&self) -> Option<Instant> {
        Some(self.started).filter(|_| self.is_live.load(Relaxed))
    }

    /// Judge a heap by its timestamp, and its mark if it has one, for the stream of which these are ledger, number and window.
    ///
    /// The window follows that of the group. Returns the verdict, and by how many chunks the window has moved, if it has.
    #[must_use]
    pub fn observe(
        &self,
        heap: Sighting,
        mark: Option<Mark>,
        (own, member): (&Ledger, usize),
        window: &mut Window,
    ) -> (Verdict, Option<u64>) {
        let mut state = self.lock();
        let State { timeline, members, newest, floor, .. } = &mut *state;
        let first = window.first_chunk;
        let cleared = floor.checked_sub(1).and_then(|control| window.clear(control));
        members.meet(own, member, heap.source);
        let verdict = timeline.observe_marked(heap, mark, &View { members, started: self.started() });
        if timeline.newest().is_some_and(|now| *newest != Some(now)) {
            *newest = timeline.newest();
            members.move_on();
            // What the others know of the window is out of date: they must ask before they go on.
            members.all().iter().for_each(Ledger::close);
        }
        self.publish(timeline);
        if let Some((phases, lessons)) = timeline.lessons() {
            window.learn(phases, lessons);
        }
        let followed = newest.and_then(|at| window.follow(&at));
        own.open(window);
        // Whoever sees a newest batch that is stored from now on sees the epoch that it belongs to: this thread has seen
        // it, because it has the lock.
        fence(Release);
        (verdict, cleared.or(followed).map(|_| window.first_chunk.wrapping_sub(first)))
    }

    /// A heap tells UTC at tick 0. Another than before is believed when it is told twice.
    pub fn note_utc(&self, seconds: u64) {
        let mut state = self.lock();
        let is_new = state.utc != Some(seconds);
        if is_new && state.utc.is_some() && state.utc_doubt != Some(seconds) {
            state.utc_doubt = Some(seconds);
            return;
        }
        (state.utc, state.utc_doubt) = (Some(seconds), None);
        self.epochs.set_utc(seconds);
    }

    /// Tell of a heap that came to a slot which has one: see [`Timeline::repeat`].
    pub fn repeat(&self, heap: Sighting, (own, member): (&Ledger, usize)) {
        let mut state = self.lock();
        let State { timeline, members, .. } = &mut *state;
        let before = timeline.newest();
        members.meet(own, member, heap.source);
        timeline.repeat(heap, &View { members, started: self.started() });
        if timeline.newest() != before {
            self.begins_again.store(true, Relaxed);
            members.move_on();
            members.all().iter().for_each(Ledger::close);
        }
    }

    /// A member places a control heap in a chunk: soon nothing can come out any more of the chunks up to it, of no member.
    ///
    /// The window of this one is empty from now on, and that of the others once they have asked. Returns by how many chunks
    /// it has moved; None if there is no need, because newer heaps have been placed, or another control heap. (In the chunk
    /// itself there are none: the epoch that begins with a flush begins behind it.)
    pub fn place_control(&self, control: u64, window: &mut Window) -> Option<u64> {
        let mut state = self.lock();
        if state.newest.is_some_and(|newest| newest.chunk > control) {
            return None;
        }
        let moved = window.clear(control)?;
        state.floor = state.floor.max(control.saturating_add(1));
        state.members.all().iter().for_each(Ledger::close);
        Some(moved)
    }

    /// Tell those who do not want to wait for the lock.
    fn publish(&self, timeline: &Timeline) {
        self.refusals.store(timeline.refusals(), Relaxed);
        self.rate.store(timeline.measured_rate().unwrap_or(f64::NAN).to_bits(), Relaxed);
    }

    /// Begin an epoch after all chunks in windows. They come out when each stream has had a control heap.
    ///
    /// False if no window has a chunk, so that there is no need for one.
    #[must_use]
    pub fn flush(&self) -> bool {
        let started = self.started();
        self.lock().flush(started)
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
    pub fn end(&self, own: &Ledger) -> Option<u64> {
        let mut state = self.lock();
        own.close();
        state.ended = state.ended.saturating_add(1);
        if state.ended < state.members.all().len() {
            return None;
        }
        let _ = state.flush(self.started());
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
    fn flush(&mut self, started: Option<Instant>) -> bool {
        let control = self.timeline.flush(&View { members: &self.members, started });
        self.control = control.or(self.control);
        control.is_some()
    }
}

/// The world as the timeline sees it.
struct View<'a> {
    members: &'a Members,
    /// When the clock began, if one can tell how far time has come.
    started: Option<Instant>,
}

impl Witness for View<'_> {
    fn placed(&self, source: u64) -> u64 {
        self.members.placed(source)
    }

    fn newest(&self, source: u64) -> i64 {
        self.members.newest(source)
    }

    fn look(&self, is_urgent: bool) {
        self.members.look(is_urgent);
    }

    fn now(&self) -> Option<u64> {
        self.started.map(|started| u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}
