//! Time: it is where more than half of the live sources say it is.
//!
//! A state machine without threads or clocks of its own: what it must know of the world it asks a [`Witness`].

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::sync::Arc;

use crate::check::{non_zero, product};
use crate::clock::Clock;
use crate::epochs::{Cause, Epoch, Epochs};
use crate::error::LayoutError;
use crate::estranged::Estranged;
use crate::layout::Layout;
use crate::mark::Mark;
use crate::pace::Pace;
use crate::segment::{Grid, LocateError, Located, Moment, Segment, signed};
use crate::stamps::Stamps;
use crate::voices::{Agreement, Kind, Voices};
pub use crate::voices::{Sighting, Witness};

/// For so many windows must all who agree have gone on elsewhere, and nobody in the window, before those who were there are
/// silent. spead2 reads up to 64 packets of a socket in a row, but a window has to hold those.
const SILENCE: i64 = 2;
/// So often in a chunk may a source ask for more of the window than there seems to be.
const NEWS: u64 = 64;

/// What the timeline goes by.
#[derive(Clone, Debug)]
pub struct TimeRules {
    /// Chunks in the window.
    window: u64,
    /// How far ahead of the newest chunk a chunk must be to push all chunks out of all windows.
    reach: u64,
    /// How many chunks a heap may be ahead of the newest.
    max_jump: u64,
    /// Whether the window follows any heap so far ahead, whatever that does to others: the user says how far.
    trusts: bool,
    /// Chunks of the window that all sources must have left behind, or they could lose heaps.
    margin: i64,
    /// Whether time may begin again at an earlier time.
    resync: bool,
    /// Ticks in a second, if that is known.
    tick_rate: Option<f64>,
    n_sources: u64,
    grid: Grid,
    clock: Clock,
}

impl TimeRules {
    /// The rules of streams of a layout that share a window of `window` chunks, and `reach` chunks all together.
    ///
    /// `max_jump` is at least 1, and by default the window less one chunk.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`] if `max_jump` is 0, or so many chunks span too long a time.
    pub fn new(
        layout: &Layout,
        window: u64,
        reach: u64,
        max_jump: Option<u64>,
        resync: bool,
    ) -> Result<Self, LayoutError> {
        if let Some(chunks) = max_jump {
            non_zero("max_jump", chunks)?;
            product(
                "max_jump x ticks of a chunk",
                &[chunks, layout.chunk_step],
                1_u64.wrapping_shl(layout.clock.bits.wrapping_sub(1)), // half the range: how far unwrapping reaches
                "is the jump in ticks",
            )?;
        }
        Ok(Self {
            window,
            reach,
            trusts: max_jump.is_some(),
            max_jump: max_jump.unwrap_or(window.saturating_sub(1).max(1)),
            margin: i64::from(window > 2),
            resync,
            tick_rate: layout.spec().time.tick_rate,
            n_sources: layout.n_sources(),
            grid: Grid::new(layout),
            clock: layout.clock.clone(),
        })
    }

    /// Ticks of a chunk.
    pub(crate) fn chunk_step(&self) -> u64 {
        self.grid.chunk_step
    }

    /// How many chunks ahead of the slowest source another one may lead, so that the slowest loses nothing.
    fn room(&self) -> i64 {
        signed(self.window).saturating_sub(1).saturating_sub(self.margin)
    }
}

/// What becomes of a heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is placed. If its chunk is no longer in the window, spead2 finds it too old.
    Place(Moment),
    /// Its timestamp is not a multiple of the step, after unwrapping.
    Misaligned,
    /// Its time is too far from what is known.
    Implausible,
    /// It would be good if time began again at an earlier time, which it may not.
    Backward,
}

impl From<LocateError> for Verdict {
    fn from(error: LocateError) -> Self {
        match error {
            LocateError::Misaligned => Self::Misaligned,
            LocateError::OutOfRange => Self::Implausible,
        }
    }
}

/// The state machine: see [`Timeline::observe`].
#[derive(Debug)]
pub struct Timeline {
    rules: TimeRules,
    epochs: Arc<Epochs>,
    current: Option<Segment>,
    /// What was before the last restart or flush, for heaps that come from there.
    previous: Option<Segment>,
    voices: Voices,
    pace: Pace,
    stamps: Stamps,
    /// The newest chunk to which the window might go when the sources were last counted.
    lead: i64,
    /// How often sources may be counted for a heap that is news, until the next chunk.
    news: u64,
    /// How many heaps have paid for a count.
    budget: u64,
    /// The chunk from which on the window has turned over once more.
    turned: u64,
    /// [`Voices::total`] when the segment began.
    placed_before: u64,
    /// The newest timestamp that most say it is, but must not be.
    refused: Option<u64>,
    /// How often time would have begun again, but must not.
    refusals: u64,
    /// The last mark with which time began again, and the chunk to which it went.
    heeded: Option<(Mark, u64)>,
}

impl Timeline {
    /// A timeline on which nothing has come yet.
    #[must_use]
    pub fn new(rules: TimeRules) -> Self {
        let slack = signed(rules.window).saturating_mul(signed(rules.grid.chunk_step));
        Self {
            voices: Voices::new(rules.n_sources, rules.window, rules.room(), &rules.grid),
            pace: Pace::new(rules.tick_rate, slack),
            stamps: Stamps::new(&rules.clock, rules.n_sources, (rules.window, rules.max_jump), &rules.grid),
            rules,
            epochs: Arc::default(),
            current: None,
            previous: None,
            lead: 0,
            news: NEWS,
            budget: 0,
            turned: 0,
            placed_before: 0,
            refused: None,
            refusals: 0,
            heeded: None,
        }
    }

    /// The epochs so far; they can be read at any time.
    #[must_use]
    pub fn epochs(&self) -> &Arc<Epochs> {
        &self.epochs
    }

    /// Which sources disagree with the majority; that can be read at any time.
    #[must_use]
    pub fn estranged(&self) -> &Arc<Estranged> {
        self.voices.estranged()
    }

    /// How often time would have begun again at an earlier time, but must not.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Ticks in a second that the stream shows by the clock, once that is known.
    #[must_use]
    pub fn measured_rate(&self) -> Option<f64> {
        self.pace.measured().map(|rate| rate * 1e9)
    }

    /// The newest chunk, and the first and the offset of its epoch.
    #[must_use]
    pub fn newest(&self) -> Option<Moment> {
        let current = self.current.filter(|current| current.newest >= current.first)?;
        Some(current.at(current.newest, 0))
    }

    /// The phase of each source, as a window has it; empty if sources have none.
    #[must_use]
    pub fn phases(&self) -> &[u64] {
        self.stamps.phases()
    }

    /// The same, if phases are learnt; and how often more was learnt.
    pub(crate) fn lessons(&self) -> Option<(&[u64], u64)> {
        self.stamps.learnt()
    }

    /// Whether a timestamp is a multiple of the step, after unwrapping, whatever source it is of.
    #[must_use]
    pub fn is_aligned(&self, stamp: u64) -> bool {
        let grid = &self.rules.grid;
        match &self.current {
            _ if grid.rounds || !self.stamps.phases().is_empty() => true,
            None => grid.is_aligned((stamp as i64).wrapping_sub(grid.origin_of(stamp) as i64)),
            Some(current) => {
                let misaligned = matches!(current.locate(&self.rules.grid, stamp), Err(LocateError::Misaligned));
                !misaligned || self.in_previous(stamp).is_some()
            }
        }
    }

    /// Judge a heap by its timestamp, and learn from it.
    pub fn observe(&mut self, heap: Sighting, witness: &impl Witness) -> Verdict {
        self.observe_marked(heap, None, witness)
    }

    /// Judge a heap by its timestamp and its mark, if it has one.
    pub fn observe_marked(&mut self, heap: Sighting, mark: Option<Mark>, witness: &impl Witness) -> Verdict {
        let heap = self.understood(heap);
        let verdict = self.judge(heap, mark, witness);
        if !matches!(verdict, Verdict::Place(_)) {
            self.voices.reject(heap.source);
        }
        verdict
    }

    fn judge(&mut self, heap: Sighting, mark: Option<Mark>, witness: &impl Witness) -> Verdict {
        let Some(current) = self.current else { return self.begin(heap, mark.is_some(), witness) };
        if let Some(verdict) = mark.and_then(|mark| self.heed(heap, mark, &current, witness)) {
            return verdict;
        }
        let here = current.locate(&self.rules.grid, heap.stamp);
        if let Ok(at) = here {
            if at.ahead <= 0 && at.ahead > signed(self.rules.window).wrapping_neg() {
                if let Some(moment) = current.moment(&at) {
                    self.voices.join(heap.source, self.rules.grid.batch_of(&at));
                    return Verdict::Place(moment);
                }
                if let Some(verdict) = self.flushed(heap, &at, witness) {
                    return verdict;
                }
            }
            if at.ahead > 0 && at.ahead <= signed(self.rules.max_jump) && self.may_lead(heap, &at, &current, witness) {
                return self.advance(heap.source, at, witness);
            }
        }
        self.disagree(heap, &current, here, witness)
    }

    /// A heap of a source has come to a slot that has one, more often than a network repeats heaps.
    ///
    /// If that happens to most sources, they have begun again: a recording is played in a loop. Nothing is to be done about
    /// the heap itself.
    pub fn repeat(&mut self, heap: Sighting, witness: &impl Witness) {
        let heap = self.understood(heap);
        let Some(current) = self.current.filter(|_| self.rules.resync) else { return };
        self.claim(heap, Kind::Repeated, Some(&current), witness);
        if let Some((agreed, _)) = self.majority(heap, &current, witness) {
            self.restart(&current, agreed.stamp);
            self.settle(&agreed, false);
        }
    }

    /// The heap with the timestamp that it would have on the grid, given what is known of its source and of timestamps.
    fn understood(&mut self, heap: Sighting) -> Sighting {
        let found = self.current.and_then(|current| self.stamps.find_bits(heap, &current, &self.rules.grid));
        if let Some(bits) = found {
            self.set_bits(bits);
        }
        Sighting { stamp: self.stamps.on_grid(heap, self.current.as_ref(), &self.rules.grid), ..heap }
    }

    /// It is found that timestamps have so many bits.
    fn set_bits(&mut self, bits: u32) {
        self.current.iter_mut().chain(self.previous.iter_mut()).for_each(|segment| segment.bits = bits);
        self.voices.set_bits(bits);
    }

    /// Go to where a heap is whose mark says rightly what the time was so far: what becomes of the heap then.
    fn heed(&mut self, heap: Sighting, mark: Mark, current: &Segment, witness: &impl Witness) -> Option<Verdict> {
        let grid = &self.rules.grid;
        let newest = (current.newest_time(grid) as u64).wrapping_add(current.origin);
        // Some of what came before may have been lost, or may still come.
        let reach = self.rules.window.saturating_add(1).saturating_mul(grid.chunk_step);
        let is_right = mark.ticks_after(newest, grid.bits).unsigned_abs() <= reach;
        // Others of its heaps come through other streams, when some have gone on.
        let is_heeded = |(known, chunk)| known == mark && current.newest.saturating_sub(chunk) <= self.rules.window;
        if !is_right || self.heeded.is_some_and(is_heeded) {
            return None;
        }
        let agreed = Agreement { stamp: heap.stamp, oldest: heap.stamp, sources: 1, largest: 1 };
        match current.locate(grid, heap.stamp) {
            _ if mark.begins && self.rules.resync => self.restart(current, agreed.stamp),
            Ok(at) if at.ahead > 0 && !mark.begins => self.jump(&at, current),
            _ => return None,
        }
        self.settle(&agreed, false);
        let current = self.current?;
        self.heeded = Some((mark, current.newest)).filter(|_| mark.begins);
        let at = current.locate(&self.rules.grid, heap.stamp).ok()?;
        Some(self.advance(heap.source, at, witness))
    }

    /// Take the first heap at its word, unless its timestamp makes sense only if time has wrapped: then two must agree, or it
    /// is of a recording.
    fn begin(&mut self, heap: Sighting, is_marked: bool, witness: &impl Witness) -> Verdict {
        let Some(time) = self.rules.grid.age_of(heap.stamp) else { return Verdict::Misaligned };
        let Grid { bits, .. } = self.rules.grid;
        let is_wrapped = time >> bits != 0;
        if is_wrapped && !is_marked {
            let heaps = self.claim(heap, Kind::Elsewhere, None, witness);
            if heaps < 2 && self.voices.agreement(heap.stamp).sources < 2 {
                return Verdict::Misaligned;
            }
        }
        let origin = self.rules.grid.origin_of(heap.stamp);
        let segment = Segment { first: 0, offset: 0, newest: self.rules.grid.chunk_of(time) as u64, origin, bits };
        self.switch(segment, Cause::Start);
        match segment.locate_time(&self.rules.grid, time) {
            Ok(at) => {
                self.voices.begin(self.rules.grid.batch_of(&at));
                self.advance(heap.source, at, witness)
            }
            Err(error) => error.into(),
        }
    }

    fn claim(&mut self, heap: Sighting, kind: Kind, current: Option<&Segment>, witness: &impl Witness) -> u64 {
        let grid = &self.rules.grid;
        let start = current.map_or(0, |current| current.window_start(grid, signed(self.rules.window)));
        let at = current.and_then(|current| current.locate(grid, heap.stamp).ok());
        let lag = at.filter(|_| kind == Kind::Lagging).map_or(0, |at| start.saturating_sub(grid.batch_of(&at)));
        self.voices.claim(heap, kind, (start, lag), witness)
    }

    /// Make a segment the current one.
    fn switch(&mut self, segment: Segment, cause: Cause) {
        self.previous = self.current.replace(segment);
        self.lead = signed(segment.newest);
        self.turned = segment.newest.saturating_add(self.rules.window);
        let Segment { first, offset, origin, .. } = segment;
        self.epochs.push(Epoch { first, offset, origin, cause });
    }

    /// Accept a time of the current segment, which may be the newest.
    fn advance(&mut self, source: u64, at: Located, witness: &impl Witness) -> Verdict {
        let Some(current) = &mut self.current else { return Verdict::Implausible };
        let Some(moment) = current.moment(&at) else { return Verdict::Implausible };
        current.newest = moment.chunk.max(current.newest);
        if current.newest >= self.turned {
            self.turned = current.newest.saturating_add(self.rules.window);
            self.voices.turn();
        }
        self.voices.join(source, self.rules.grid.batch_of(&at));
        self.pace.note(at.time, witness.now());
        Verdict::Place(moment)
    }

    /// Ask what has become of all sources.
    fn count(&mut self, current: &Segment, witness: &impl Witness) {
        self.voices.count(current, &self.rules.grid, signed(self.rules.window), witness);
    }

    /// Whether the window may go to where a heap is: only if it then leaves no live source behind, or stays near most of them.
    ///
    /// Otherwise one clock that runs ahead would drag the window away from all others. If most are ahead, time goes to them
    /// all the same, as to any other majority.
    fn may_lead(&mut self, heap: Sighting, at: &Located, current: &Segment, witness: &impl Witness) -> bool {
        let n_sources = self.rules.n_sources;
        if n_sources <= 1 || self.rules.trusts {
            return true;
        }
        self.pay(heap.source, witness);
        let is_next = at.ahead == 1;
        if is_next && at.chunk <= self.lead && !self.voices.listen(witness) {
            self.voices.lead(heap.source, at.chunk);
            self.news = NEWS;
            return true;
        }
        let heaps = self.claim(heap, Kind::Elsewhere, Some(current), witness);
        let is_new_chunk = self.voices.lead(heap.source, at.chunk);
        if !self.may_count(heaps == 1 || is_new_chunk) {
            return false;
        }
        self.count(current, witness);
        let (window, grid) = (signed(self.rules.window), &self.rules.grid);
        let room = self.rules.room();
        let lead = |batch: i64, room: i64| {
            // A window of one chunk goes on when the last batch has come: nobody else can have reached the next chunk.
            let batch = batch.saturating_add(i64::from(window == 1));
            batch.checked_div(signed(grid.batches)).unwrap_or(0).saturating_add(room)
        };
        // A single heap may be wrong: its source is still where it was, unless it goes on from there.
        let (place, is_steady) = (self.voices.place(heap.source, false), self.voices.is_steady(heap.source));
        let goes_on = is_steady || at.chunk <= lead(place, 1);
        let (slowest, median) = self.voices.slowest(heap.source, (grid.batch_of(at), goes_on), current, grid, window);
        // Who is alone leads from chunk to chunk, until others are heard.
        let by_all = slowest.map_or(at.chunk, |batch| lead(batch, room));
        // If the window would leave that place, it waits for a second heap; and for one that does not go on, nobody is left behind.
        let is_bold = !is_next && !is_steady && slowest.is_some() && at.chunk > lead(place, room);
        let near_most = median.filter(|_| goes_on).map_or(0, |batch| lead(batch, window >> 1));
        let may_lead = at.chunk <= by_all.max(near_most) && !is_bold;
        // Nor may others leave this one behind.
        self.lead = by_all.min(at.chunk.saturating_add(room));
        if may_lead {
            self.news = NEWS;
            let first = at.chunk.saturating_sub(window.saturating_sub(1)).saturating_mul(signed(grid.batches));
            self.voices.leave(heap.source, first);
        }
        may_lead
    }

    /// Whether the sources may be counted, which takes as long as there are sources, to find out if one may lead that might
    /// not when they were last counted.
    ///
    /// A few times in a chunk it may be worth while, where a source had not said so before; else as many heaps must pay for it.
    fn may_count(&mut self, is_news: bool) -> bool {
        let cost = self.rules.n_sources;
        if is_news && self.news > 0 {
            self.news = self.news.saturating_sub(1);
        } else if self.budget >= cost {
            self.budget = self.budget.saturating_sub(cost);
        } else {
            return false;
        }
        true
    }

    /// All heaps pay for counts, placed or not.
    fn pay(&mut self, source: u64, witness: &impl Witness) {
        let heaps = self.voices.sent(source, witness);
        self.budget = self.budget.saturating_add(heaps).min(self.rules.n_sources.saturating_mul(2));
    }

    /// A heap from before a flush, of a time that the window would still hold: what was flushed has been handed over.
    ///
    /// A source that goes on there has not gone back.
    fn flushed(&self, heap: Sighting, here: &Located, witness: &impl Witness) -> Option<Verdict> {
        let previous = self.previous?;
        let at = previous.locate(&self.rules.grid, heap.stamp).ok()?;
        // After a restart the same timestamp was another time, perhaps one that never was.
        let at = Some(at).filter(|at| at.time == here.time && at.ahead <= 0)?;
        let moment = previous.moment(&at)?;
        let batch = moment.chunk.saturating_mul(self.rules.grid.batches).saturating_add(moment.batch);
        if signed(batch) <= witness.newest(heap.source) {
            return None;
        }
        Some(Verdict::Place(moment))
    }

    /// A heap that is not where the window is: its source says that time is elsewhere.
    fn disagree(
        &mut self,
        heap: Sighting,
        current: &Segment,
        here: Result<Located, LocateError>,
        witness: &impl Witness,
    ) -> Verdict {
        // If time began again there, the timestamp would have to make sense by itself, or as it does now.
        let makes_sense = here.as_ref().is_ok_and(|at| at.time >= 0) || self.rules.grid.age_of(heap.stamp).is_some();
        let late = self.late(current, &here);
        let was = self.in_previous(heap.stamp);
        let lagging = self.lagging(heap, current, &here, witness);
        let placed = late.map(Verdict::Place).or(was).or_else(|| lagging.map(Verdict::Place));
        let kind = match placed {
            _ if lagging.is_some() => Kind::Lagging,
            Some(Verdict::Place(_)) => Kind::Late,
            _ if matches!(here, Err(LocateError::Misaligned)) => Kind::Askew,
            _ => Kind::Elsewhere,
        };
        if makes_sense {
            self.claim(heap, kind, Some(current), witness);
            if let Some((agreed, others_are_silent)) = self.majority(heap, current, witness) {
                if let Some(verdict) = self.win(heap, current, &agreed, others_are_silent, witness) {
                    return verdict;
                }
            }
        }
        let is_refused = self.refused.is_some_and(|stamp| self.voices.agree(heap.stamp, stamp));
        match (placed, here) {
            (Some(verdict), _) => verdict,
            (None, Err(LocateError::Misaligned)) => Verdict::Misaligned,
            (None, _) if is_refused => {
                self.refused = Some(heap.stamp);
                Verdict::Backward
            }
            (None, _) => Verdict::Implausible,
        }
    }

    /// What becomes of a heap from around the end of the previous segment, whose time is not the current one.
    fn in_previous(&self, stamp: u64) -> Option<Verdict> {
        let previous = self.previous.as_ref()?;
        let at = previous.locate(&self.rules.grid, stamp).ok()?;
        let window = signed(self.rules.window);
        if at.ahead > window || at.ahead <= window.saturating_mul(-2) {
            return None;
        }
        if at.ahead > 0 {
            return Some(Verdict::Implausible);
        }
        previous.moment(&at).map(Verdict::Place)
    }

    /// A late heap, which spead2 is to find too old.
    fn late(&self, current: &Segment, here: &Result<Located, LocateError>) -> Option<Moment> {
        let oldest = signed(self.rules.window).saturating_mul(-2);
        let at = here.as_ref().ok().filter(|at| at.ahead <= 0 && at.ahead > oldest)?;
        current.moment(at)
    }

    /// A heap of a source that is far behind the window, but goes on from where it was: it is its stream that is late.
    fn lagging(
        &self,
        heap: Sighting,
        current: &Segment,
        here: &Result<Located, LocateError>,
        witness: &impl Witness,
    ) -> Option<Moment> {
        let at = here.as_ref().ok().filter(|at| at.ahead <= 0)?;
        let moment = current.moment(at)?;
        let newest = witness.newest(heap.source);
        let grid = &self.rules.grid;
        let window = signed(self.rules.window);
        // Its heaps may come in another order, too.
        let order = window.saturating_mul(signed(grid.batches));
        let is_behind = newest < current.window_start(grid, window);
        let goes_on = grid.batch_of(at) > newest.saturating_sub(if is_behind { order } else { 0 });
        (newest >= signed(current.first).saturating_mul(signed(grid.batches)) && goes_on).then_some(moment)
    }

    /// Where time goes if more than half of the live sources say what a heap says; and whether it is because the others are
    /// silent.
    fn majority(&mut self, heap: Sighting, current: &Segment, witness: &impl Witness) -> Option<(Agreement, bool)> {
        let Sighting { source, stamp, .. } = heap;
        self.pay(source, witness);
        // Sources that lag have come to the window by the time that others are known to be silent, or they never will.
        let silence = SILENCE.saturating_mul(signed(self.rules.window)).saturating_mul(signed(self.rules.grid.batches));
        let silence = silence.saturating_add(self.voices.lag(source));
        let may_be_silent = self.voices.gone_on(source) >= silence;
        if !may_be_silent && !self.voices.may_differ() {
            return None;
        }
        self.count(current, witness);
        let agreed = self.voices.agreement(stamp);
        if self.voices.is_majority(&agreed) {
            return Some((agreed, false));
        }
        let is_refused = self.refused.is_some_and(|refused| self.voices.agree(agreed.stamp, refused));
        let is_best = agreed.sources > 0 && agreed.sources == agreed.largest && !is_refused;
        (may_be_silent && is_best && self.voices.has_gone_on(&agreed, silence)).then_some((agreed, true))
    }

    /// Go to the time that the sources agree on, if that is allowed: what becomes of the heap then.
    fn win(
        &mut self,
        heap: Sighting,
        current: &Segment,
        agreed: &Agreement,
        others_are_silent: bool,
        witness: &impl Witness,
    ) -> Option<Verdict> {
        let clock = witness.now();
        let end = self.voices.end(agreed, heap.stamp);
        let newest = current.newest_time(&self.rules.grid);
        let near = current.locate(&self.rules.grid, end).ok();
        // After half the range of timestamps, the nearest time with this timestamp is in the past.
        let beyond = || {
            let time = current.time_near(end, self.pace.expected(clock)?)?;
            let at = current.locate_time(&self.rules.grid, time).ok().filter(|at| at.ahead > 0)?;
            self.pace.is_expected(newest, time, clock).then_some(at)
        };
        match near.filter(|at| at.ahead > 0).or_else(beyond) {
            // Sources fell silent that were in the majority, or the heaps in between were lost.
            Some(at) if at.ahead <= signed(self.rules.max_jump.max(self.rules.window)) => self.jump(&at, current),
            Some(at) if self.has_gone_on(current, &at, end, clock) => self.jump(&at, current),
            Some(at) if !self.rules.resync => {
                // Chunk IDs go on to tell the time, but what lies in between is not missing.
                let first = current.newest.saturating_add(1);
                let Segment { offset, origin, .. } = *current;
                self.epochs.push(Epoch { first, offset, origin, cause: Cause::Restart });
                self.begin_again();
                self.jump(&at, current);
            }
            // The first heap was not on the grid, so chunk IDs never told the time.
            None if self.rules.grid.origin.is_none() && !current.is_at_step(&self.rules.grid, end) => {
                self.restart(current, end);
            }
            _ if self.rules.resync => self.restart(current, end),
            // What is late will be back.
            _ if self.is_late(current, agreed.stamp) => {
                self.voices.wait();
                return None;
            }
            _ => {
                let is_known = self.refused.is_some_and(|stamp| self.voices.agree(agreed.stamp, stamp));
                self.refusals = self.refusals.saturating_add(u64::from(!is_known));
                self.refused = Some(agreed.stamp);
                return None;
            }
        }
        self.settle(agreed, others_are_silent);
        let current = self.current?;
        Some(match current.locate(&self.rules.grid, heap.stamp) {
            Ok(at) => self.advance(heap.source, at, witness),
            Err(error) => error.into(),
        })
    }

    fn is_late(&self, current: &Segment, stamp: u64) -> bool {
        self.late(current, &current.locate(&self.rules.grid, stamp)).is_some()
    }

    /// Whether a time ahead is that of the same senders, after a gap that nothing was received of.
    fn has_gone_on(&self, current: &Segment, at: &Located, stamp: u64, clock: Option<u64>) -> bool {
        // A restart from 0 looks like this too, and is far more likely than an outage across a wrap, if nothing can tell: the
        // clock can, and a timestamp that is no multiple of the step by itself.
        let (newest, bits) = (current.newest_time(&self.rules.grid), current.bits);
        let makes_sense = self.rules.grid.is_aligned((stamp as i64).wrapping_sub(current.origin as i64));
        let wraps = at.time >> bits != newest >> bits && makes_sense && !self.pace.can_tell();
        // Time so far may have been that of a single wrong heap, or of a few sources that were heard first.
        let is_proven = self.voices.total().wrapping_sub(self.placed_before) >= 2
            && self.voices.received().saturating_mul(2) > self.voices.live();
        is_proven && !(wraps && self.rules.resync) && self.pace.is_possible(newest, at.time, clock)
    }

    /// Forget what was known of the time so far.
    fn begin_again(&mut self) {
        self.placed_before = self.voices.total();
        self.pace.begin_again();
    }

    /// Begin time again where sources agree that it is.
    fn restart(&mut self, current: &Segment, stamp: u64) {
        let grid = &self.rules.grid;
        // As at the start, the timestamp stands for itself, unless it makes sense only as time was unwrapped so far.
        let itself = (stamp as i64).checked_sub_unsigned(current.origin);
        let itself = itself.filter(|&time| time >= 0 && grid.is_aligned(time));
        let unwrapped = || current.locate(grid, stamp).ok().map(|at| at.time).filter(|&time| time >= 0);
        let known = itself.or_else(unwrapped).map(|time| (time, current.origin));
        let shown = || Some((grid.age_of(stamp)?, grid.origin_of(stamp)));
        let Some((time, origin)) = known.or_else(shown) else { return };
        // Whatever the first heap is that a stream places there, its window has no chunk from before any more.
        let first = current.newest.saturating_add(self.rules.reach);
        let newest = first.saturating_add(self.rules.window.wrapping_sub(1));
        let offset = signed(newest).saturating_sub(grid.chunk_of(time));
        // Before time 0 there are no chunks.
        let first = u64::try_from(offset).unwrap_or(0).max(first);
        let Grid { bits, .. } = self.rules.grid;
        self.begin_again();
        self.switch(Segment { first, offset, newest, origin, bits }, Cause::Restart);
        self.voices.set_bits(bits);
        self.stamps.begin_again();
    }

    /// Go on in the current segment, further on.
    fn jump(&mut self, at: &Located, current: &Segment) {
        self.current = Some(Segment { newest: at.chunk as u64, ..*current });
        self.turned = self.turned.max(at.chunk as u64);
    }

    /// Time has gone to where these sources are.
    fn settle(&mut self, agreed: &Agreement, others_are_silent: bool) {
        let Some(current) = self.current else { return };
        self.voices.follow(agreed, &current, &self.rules.grid, others_are_silent);
        self.lead = signed(current.newest);
        self.news = NEWS;
        self.refused = None;
    }

    /// Begin an epoch after all chunks in windows, which come out when the control heap has been placed.
    ///
    /// Returns the chunk of the control heap; None if no window has a chunk.
    pub fn flush(&mut self, witness: &impl Witness) -> Option<u64> {
        let current = self.current.filter(|current| current.newest >= current.first)?;
        let control = self.control()?;
        let first = control.checked_add(1)?;
        let skipped = signed(control).saturating_sub(signed(current.newest));
        let offset = current.offset.saturating_add(skipped);
        self.count(&current, witness);
        self.voices.skip(skipped.saturating_mul(signed(self.rules.grid.batches)));
        self.switch(Segment { first, offset, newest: control, ..current }, Cause::Flush);
        Some(control)
    }

    /// A chunk so far ahead that a heap placed there pushes all others out of the windows.
    #[must_use]
    pub fn control(&self) -> Option<u64> {
        self.current?
            .newest
            .checked_add(self.rules.reach)
            .filter(|&chunk| signed(chunk) < self.rules.grid.chunk_of(i64::MAX))
    }
}
