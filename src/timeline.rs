//! Time: which timestamps are plausible, and when time begins again.
//!
//! A state machine without threads or clocks of its own: what it must know of the world it asks a [`Witness`].

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]
#![expect(clippy::cast_precision_loss, reason = "what is compared with the clock has a tolerance of a tenth")]

use std::sync::Arc;

use crate::check::{non_zero, product};
use crate::epochs::{Cause, Epoch, Epochs};
use crate::error::LayoutError;
use crate::layout::{Layout, TIME_BITS};
use crate::segment::{Grid, LocateError, Located, Moment, Segment, difference, signed, unwrap};

/// Half the range of timestamps: how far unwrapping reaches.
const MAX_JUMP_TICKS: u64 = 1 << (TIME_BITS - 1);
/// Fewest heaps that must agree before time begins again. Where there are more sources, as many as those.
const MIN_QUORUM: u64 = 16;
/// One in 2^3 sources is enough to show that time has gone on, for of any of them many heaps may be lost.
const ENOUGH_SHIFT: u32 = 3;
/// Quorums of votes without any heap placed after which any time is better than none.
const BARREN_QUORUMS: u64 = 8;
/// By how much the clocks of senders and receiver may differ in rate.
const CLOCK_DRIFT: f64 = 1e-4;
/// How well a jump must agree with the time that has passed, as a part of it.
const OUTAGE_TOLERANCE: f64 = 0.1;
/// And in chunks: less than one, or the next chunk but one would always agree.
const OUTAGE_TOLERANCE_CHUNKS: f64 = 0.5;

/// What the timeline goes by.
#[derive(Clone, Debug)]
pub struct TimeRules {
    /// Chunks in the window of each stream.
    window: u64,
    /// How far ahead of the newest chunk a chunk must be to push all chunks out of all windows.
    reach: u64,
    /// How many chunks a heap may be ahead of the newest.
    max_jump: u64,
    /// Whether time may begin again at an earlier time.
    resync: bool,
    /// Ticks in a nanosecond, if that is known.
    tick_rate: Option<f64>,
    n_sources: u64,
    /// Net votes that make a new epoch.
    quorum: u64,
    grid: Grid,
}

impl TimeRules {
    /// The rules of streams of a layout whose windows have `window` chunks each, and `reach` chunks all together.
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
                MAX_JUMP_TICKS,
                "is the jump in ticks",
            )?;
        }
        let max_jump = max_jump.unwrap_or(window.saturating_sub(1).max(1));
        let n_sources = layout.n_sources();
        Ok(Self {
            window,
            reach,
            max_jump,
            resync,
            tick_rate: layout.spec().time.tick_rate.map(|rate| rate / 1e9),
            n_sources,
            quorum: n_sources.max(MIN_QUORUM),
            grid: Grid::new(layout),
        })
    }
}

/// What the timeline asks about the world when it needs to know.
///
/// Batches are counted from chunk 0, in chunk IDs.
pub trait Witness {
    /// Heaps that all streams have placed into their windows so far, late ones not counted.
    fn placed(&self) -> u64;

    /// The source of the heap.
    fn source(&self) -> u64;

    /// The newest batch that this stream has of the source of the heap; negative if it has none.
    fn newest_of_source(&self) -> i64;

    /// The newest chunk that this stream has accepted, if it has any.
    fn newest_of_stream(&self) -> Option<u64>;

    /// Of the sources other than that of the heap whose newest batch is `since` or later: how many there are, and of how
    /// many it is `from` or later.
    fn others(&self, since: u64, from: u64) -> (u64, u64);

    /// Nanoseconds on a clock that never goes back.
    fn now(&self) -> u64;
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

/// A time that heaps agree on that are outside of what is plausible.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// The newest timestamp (48 bits).
    stamp: u64,
    votes: u64,
    /// What [`Witness::placed`] said at the last vote.
    placed: u64,
    /// It has won already, but time must not begin again.
    refused: bool,
}

/// A reading of the clock, and the time that the stream had then.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    clock: u64,
    time: i64,
}

/// The state machine: see [`Timeline::observe`].
#[derive(Debug)]
pub struct Timeline {
    rules: TimeRules,
    epochs: Arc<Epochs>,
    current: Option<Segment>,
    /// What was before the last restart or flush, for heaps that come from there.
    previous: Option<Segment>,
    /// Whether time went on from there: it was a flush.
    is_flushed: bool,
    candidate: Option<Candidate>,
    /// Votes since a heap was last placed.
    barren: u64,
    /// What [`Witness::placed`] said when time last began again.
    placed_before: u64,
    /// Sources with nothing from this chunk on are no measure for others.
    alive_since: u64,
    /// When it was last asked.
    asked: Option<u64>,
    /// The last heap that had jumped to the time that it was: source and timestamp.
    sighting: Option<(u64, u64)>,
    /// The moment at which the stream was the least behind its senders.
    promptest: Option<Anchor>,
    /// How often time would have begun again, but must not.
    refusals: u64,
}

impl Timeline {
    /// A timeline on which nothing has come yet.
    #[must_use]
    pub fn new(rules: TimeRules) -> Self {
        Self {
            rules,
            epochs: Arc::default(),
            current: None,
            previous: None,
            is_flushed: false,
            candidate: None,
            barren: 0,
            placed_before: 0,
            alive_since: 0,
            asked: None,
            sighting: None,
            promptest: None,
            refusals: 0,
        }
    }

    /// The epochs so far; they can be read at any time.
    #[must_use]
    pub fn epochs(&self) -> &Arc<Epochs> {
        &self.epochs
    }

    /// How often time would have begun again at an earlier time, but must not.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Whether a timestamp is a multiple of the step, after unwrapping.
    #[must_use]
    pub fn is_aligned(&self, stamp: u64) -> bool {
        match &self.current {
            None => self.rules.grid.is_aligned(stamp as i64),
            Some(current) => {
                let misaligned = matches!(current.locate(&self.rules.grid, stamp), Err(LocateError::Misaligned));
                !misaligned || self.in_previous(stamp).is_some()
            }
        }
    }

    /// Judge a heap that is good in all else, by its timestamp (48 bits), and learn from it.
    pub fn observe(&mut self, stamp: u64, witness: &impl Witness) -> Verdict {
        let asked = self.asked;
        if self.rules.tick_rate.is_some() {
            self.asked = Some(witness.now());
        }
        let Some(current) = self.current else { return self.begin(stamp, witness) };
        let here = current.locate(&self.rules.grid, stamp);
        if let Ok(at) = &here {
            if at.ahead <= 0 && at.ahead > signed(self.rules.window).wrapping_neg() {
                if let Some(moment) = current.moment(at) {
                    return Verdict::Place(moment);
                }
            } else if at.ahead > 0
                && at.ahead <= signed(self.rules.max_jump)
                && self.keeps_others(&current, at, witness)
            {
                return self.advance(*at, witness);
            }
        }
        if let Some(at) = self.outage(&current, stamp, asked, witness) {
            self.forget_absent(at.chunk);
            return self.advance(at, witness);
        }
        if let Some(verdict) = self.in_previous(stamp) {
            return verdict;
        }
        let late = here.as_ref().ok().and_then(|at| self.late(&current, at));
        if let Some(moment) = late.or_else(|| self.lagging(&current, stamp, witness)) {
            return Verdict::Place(moment);
        }
        // If time began again there, the timestamp would have to make sense by itself, or as it does now.
        let may_vote = here.as_ref().is_ok_and(|at| at.time >= 0) || self.rules.grid.is_aligned(stamp as i64);
        if may_vote && self.vote(stamp, witness) {
            return self.win(stamp, witness);
        }
        let is_refused = |candidate: Candidate| candidate.refused && self.agrees(stamp, candidate.stamp);
        match here {
            Err(LocateError::Misaligned) => Verdict::Misaligned,
            _ if self.candidate.is_some_and(is_refused) => Verdict::Backward,
            _ => Verdict::Implausible,
        }
    }

    /// Take the first heap at its word.
    fn begin(&mut self, stamp: u64, witness: &impl Witness) -> Verdict {
        let time = stamp as i64;
        if !self.rules.grid.is_aligned(time) {
            return Verdict::Misaligned;
        }
        let segment = Segment { first: 0, offset: 0, newest: self.rules.grid.chunk_of(time) as u64 };
        self.begin_again(witness);
        self.switch(segment, Cause::Start);
        match segment.locate_time(&self.rules.grid, time) {
            Ok(at) => self.advance(at, witness),
            Err(error) => error.into(),
        }
    }

    /// Forget what was known of the time so far.
    fn begin_again(&mut self, witness: &impl Witness) {
        self.placed_before = witness.placed();
        self.candidate = None;
        self.barren = 0;
        self.promptest = None;
    }

    /// Make a segment the current one.
    fn switch(&mut self, segment: Segment, cause: Cause) {
        self.previous = self.current.replace(segment);
        self.is_flushed = cause == Cause::Flush;
        self.alive_since = segment.first;
        self.epochs.push(Epoch { first: segment.first, offset: segment.offset, cause });
    }

    /// Accept a time of the current segment as the newest.
    fn advance(&mut self, at: Located, witness: &impl Witness) -> Verdict {
        let Some(current) = &mut self.current else { return Verdict::Implausible };
        let Some(moment) = current.moment(&at) else { return Verdict::Implausible };
        current.newest = moment.chunk.max(current.newest);
        // A clock that runs ahead alone must not be what others are measured by.
        let rate = self.rules.tick_rate.filter(|_| self.others_have_reached(moment.chunk.saturating_sub(1), witness));
        if let Some(rate) = rate {
            let now = Anchor { clock: witness.now(), time: at.time };
            let expected = |then: Anchor| then.predict(now.clock, rate * (1.0 - CLOCK_DRIFT));
            if self.promptest.is_none_or(|then| now.time >= expected(then)) {
                self.promptest = Some(now);
            }
        }
        Verdict::Place(moment)
    }

    /// Whether the window may end with a chunk: not if it then leaves behind the newest times of nearly all other sources.
    ///
    /// Otherwise one clock that runs ahead would drag the window away from all others.
    fn keeps_others(&self, current: &Segment, at: &Located, witness: &impl Witness) -> bool {
        let start = (at.chunk as u64).saturating_sub(self.rules.window.wrapping_sub(1));
        // As long as most have gone back, and must not, the rest go on.
        let stands = |candidate: Candidate| candidate.votes > witness.placed().saturating_sub(candidate.placed);
        if self.candidate.is_some_and(|candidate| candidate.refused && stands(candidate)) {
            return true;
        }
        // A jump may be longer than the window: no source can have been beyond the newest chunk.
        self.others_have_reached(start.min(current.newest), witness)
    }

    /// Whether enough of the other sources that are heard of have their newest time in a chunk or later.
    fn others_have_reached(&self, chunk: u64, witness: &impl Witness) -> bool {
        let since = self.current.map_or(0, |current| current.first).max(self.alive_since);
        if self.rules.n_sources <= 1 || chunk <= since {
            return true;
        }
        let batches = self.rules.grid.batches;
        let (alive, reached) = witness.others(since.saturating_mul(batches), chunk.saturating_mul(batches));
        // One source against one cannot be judged.
        alive <= 1 || reached >= (alive >> ENOUGH_SHIFT).max(1)
    }

    /// Measure by those sources only that are heard from a chunk on.
    fn forget_absent(&mut self, chunk: i64) {
        let chunk = u64::try_from(chunk).unwrap_or(0);
        self.alive_since = chunk.saturating_sub(self.rules.window.wrapping_sub(1));
    }

    /// Where a heap lies if it has jumped ahead to the time that it is now, by the clock.
    ///
    /// If nothing came meanwhile, that is believed at once. Else the stream may have been held up, and then read what the
    /// kernel had kept first; or it may be slower than its clock, and one source wrong: two sources must agree.
    fn outage(&mut self, current: &Segment, stamp: u64, asked: Option<u64>, witness: &impl Witness) -> Option<Located> {
        let (rate, clock, asked) = (self.rules.tick_rate?, self.asked?, asked?);
        let ticks = |nanoseconds: u64| nanoseconds as f64 * rate;
        let chunk_step = self.rules.grid.chunk_step as f64;
        let newest = current.newest_time(&self.rules.grid);
        let expected = self.promptest?.predict(clock, rate);
        let time = unwrap(stamp, expected)?;
        let at = current.locate_time(&self.rules.grid, time).ok()?;
        let passed = expected.saturating_sub(newest).max(0) as f64;
        let tolerance = passed * OUTAGE_TOLERANCE + OUTAGE_TOLERANCE_CHUNKS * chunk_step;
        if at.ahead <= signed(self.rules.max_jump) || time.abs_diff(expected) as f64 > tolerance {
            return None;
        }
        // The newest heap may be newer than the start of its chunk, by as much as a chunk.
        let silence = ticks(clock.saturating_sub(asked)) * (1.0 + OUTAGE_TOLERANCE)
            + (1.0 + OUTAGE_TOLERANCE_CHUNKS) * chunk_step;
        let jumped = time.saturating_sub(newest) as f64;
        let source = witness.source();
        let is_second = self.sighting.is_some_and(|(first, seen)| first != source && self.agrees(stamp, seen));
        self.sighting = Some((source, stamp));
        (self.rules.n_sources <= 1 || jumped <= silence || is_second).then_some(at)
    }

    /// What becomes of a heap from around the end of the previous segment, whose time is not the current one.
    ///
    /// Senders do not restart in the same instant: such heaps never vote.
    fn in_previous(&self, stamp: u64) -> Option<Verdict> {
        let previous = self.previous.as_ref()?;
        let at = previous.locate(&self.rules.grid, stamp).ok()?;
        if at.ahead > signed(self.rules.window) || at.ahead <= self.oldest() {
            return None;
        }
        if at.ahead > 0 {
            return Some(Verdict::Implausible);
        }
        previous.moment(&at).map(Verdict::Place)
    }

    /// Chunks behind the newest from which on a heap is not just late.
    fn oldest(&self) -> i64 {
        signed(self.rules.window).saturating_mul(-2)
    }

    /// A late heap, which spead2 is to find too old.
    ///
    /// It does not vote: even if it comes from a restart, time will be back where it was after as many chunks.
    fn late(&self, current: &Segment, at: &Located) -> Option<Moment> {
        current.moment(at).filter(|_| at.ahead <= 0 && at.ahead > self.oldest())
    }

    /// A heap of a stream that is behind the window with all that it has, and that goes on there: it is the stream that is
    /// late.
    ///
    /// This is no sign of a restart, however many such heaps come when the stream catches up.
    fn lagging(&self, current: &Segment, stamp: u64, witness: &impl Witness) -> Option<Moment> {
        let oldest = current.newest.saturating_sub(self.rules.window.wrapping_sub(1));
        if witness.newest_of_stream()? >= oldest {
            return None;
        }
        let newest = u64::try_from(witness.newest_of_source()).ok()?;
        // What it has may have been flushed.
        let segments = [Some(*current), self.previous.filter(|_| self.is_flushed)];
        segments.into_iter().flatten().find_map(|segment| {
            let at = segment.locate(&self.rules.grid, stamp).ok().filter(|at| at.ahead <= 0)?;
            let moment = segment.moment(&at)?;
            let is_of_segment = newest >= segment.first.saturating_mul(self.rules.grid.batches);
            let batch = moment.chunk.saturating_mul(self.rules.grid.batches).saturating_add(moment.batch);
            (is_of_segment && batch > newest).then_some(moment)
        })
    }

    fn agrees(&self, stamp: u64, other: u64) -> bool {
        let ticks = self.rules.max_jump.saturating_mul(self.rules.grid.chunk_step);
        difference(stamp, other).unsigned_abs() <= ticks
    }

    /// Count a vote for the time of an outlier; true if that has won.
    ///
    /// This is the majority vote of Boyer and Moore ("MJRTY: a fast majority vote algorithm", 1991): a vote for another
    /// time cancels one, and so does each heap that was placed meanwhile, by any stream.
    fn vote(&mut self, stamp: u64, witness: &impl Witness) -> bool {
        let placed = witness.placed();
        let fresh = Candidate { stamp, votes: 1, placed, refused: false };
        let Some(mut candidate) = self.candidate else {
            self.candidate = Some(fresh);
            return false;
        };
        let against = placed.saturating_sub(candidate.placed);
        candidate.placed = placed;
        candidate.votes = candidate.votes.saturating_sub(against);
        self.barren = if against > 0 { 0 } else { self.barren.saturating_add(1) };
        if candidate.votes > 0 {
            if self.agrees(stamp, candidate.stamp) {
                candidate.votes = candidate.votes.saturating_add(1).min(self.rules.quorum);
                if difference(stamp, candidate.stamp) > 0 {
                    candidate.stamp = stamp;
                }
            } else {
                candidate.votes = candidate.votes.saturating_sub(1);
            }
        }
        let candidate = if candidate.votes > 0 { candidate } else { fresh };
        self.candidate = Some(candidate);
        if candidate.votes >= self.rules.quorum && !candidate.refused {
            return true;
        }
        // Where nobody has a majority and nothing is received, any time is better than none.
        let is_barren = self.barren >= self.rules.quorum.saturating_mul(BARREN_QUORUMS);
        if is_barren && !(candidate.refused && self.agrees(stamp, candidate.stamp)) {
            self.candidate = Some(fresh);
            return true;
        }
        false
    }

    /// Go to the time of the candidate, if that is allowed.
    fn win(&mut self, stamp: u64, witness: &impl Witness) -> Verdict {
        let (Some(current), Some(candidate)) = (self.current, self.candidate) else { return Verdict::Implausible };
        let there = current.locate(&self.rules.grid, candidate.stamp).ok().filter(|at| at.ahead > 0);
        match there {
            // Sources fell silent that were in the majority, or the heaps in between were lost.
            Some(at) if at.ahead <= signed(self.rules.max_jump) => self.jump(at, current),
            Some(at) if self.has_gone_on(&current, &at, witness) => self.jump(at, current),
            Some(at) if !self.rules.resync => {
                // Chunk IDs go on to tell the time, but what lies in between is not missing.
                self.begin_again(witness);
                let first = current.newest.saturating_add(1);
                self.epochs.push(Epoch { first, offset: current.offset, cause: Cause::Restart });
                self.jump(at, current);
            }
            _ if self.rules.resync => self.restart(&current, candidate.stamp, witness),
            _ => {
                self.refusals = self.refusals.saturating_add(1);
                self.candidate = Some(Candidate { refused: true, ..candidate });
                return Verdict::Backward;
            }
        }
        let Some(current) = self.current else { return Verdict::Implausible };
        match current.locate(&self.rules.grid, stamp) {
            // The heap itself need not be the newest of those that agree.
            Ok(at) if at.ahead <= 0 => self.advance(at, witness),
            Ok(_) => Verdict::Implausible,
            Err(error) => error.into(),
        }
    }

    /// Whether a time ahead is that of the same senders, after a gap that nothing was received of.
    fn has_gone_on(&self, current: &Segment, at: &Located, witness: &impl Witness) -> bool {
        let newest = current.newest_time(&self.rules.grid);
        // A restart from 0 looks like this too, and is far more likely than an outage across a wrap.
        let wraps = at.time as u64 >> TIME_BITS != newest as u64 >> TIME_BITS;
        // Time so far may have been that of a single wrong heap.
        let is_proven = witness.placed().saturating_sub(self.placed_before) >= self.rules.quorum;
        is_proven && self.rules.tick_rate.is_none() && !(wraps && self.rules.resync)
    }

    /// Begin time again where a timestamp says.
    fn restart(&mut self, current: &Segment, stamp: u64, witness: &impl Witness) {
        // As at the start, the timestamp stands for itself, unless it makes sense only as time was unwrapped so far.
        let itself = stamp as i64;
        let time = current.locate(&self.rules.grid, stamp).ok().filter(|_| !self.rules.grid.is_aligned(itself));
        let chunk = self.rules.grid.chunk_of(time.map_or(itself, |at| at.time));
        // Whatever the first heap is that a stream places there, its window has no chunk from before any more.
        let first = current.newest.saturating_add(self.rules.reach);
        let newest = first.saturating_add(self.rules.window.wrapping_sub(1));
        let offset = signed(newest).saturating_sub(chunk);
        // Before time 0 there are no chunks.
        let first = u64::try_from(offset).unwrap_or(0).max(first);
        self.begin_again(witness);
        self.switch(Segment { first, offset, newest }, Cause::Restart);
    }

    /// Go on in the current segment, further on.
    fn jump(&mut self, at: Located, current: Segment) {
        self.current = Some(Segment { newest: at.chunk as u64, ..current });
        self.candidate = None;
        self.barren = 0;
        self.forget_absent(at.chunk);
    }

    /// Begin an epoch after all chunks in windows, which come out when the control heap has been placed.
    ///
    /// Returns the chunk of the control heap; None if no window has a chunk.
    pub fn flush(&mut self) -> Option<u64> {
        let current = self.current.filter(|current| current.newest >= current.first)?;
        let control = self.control()?;
        let first = control.checked_add(1)?;
        let skipped = signed(control).saturating_sub(signed(current.newest));
        let offset = current.offset.saturating_add(skipped);
        self.switch(Segment { first, offset, newest: control }, Cause::Flush);
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

impl Anchor {
    /// The time to expect at a moment, given the ticks in a nanosecond.
    fn predict(&self, clock: u64, rate: f64) -> i64 {
        self.time.saturating_add((clock.saturating_sub(self.clock) as f64 * rate) as i64)
    }
}
