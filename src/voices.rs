//! What each source says the time is, and what most of them say.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Arc;

use crate::clock::{TIME_BITS, low_bits};
use crate::estranged::Estranged;
use crate::segment::{Grid, Segment, difference, signed};

/// For so many turns of the window after a source was last heard, it is live.
const LIVE_TURNS: u64 = 2;
/// Batch of a source that has none in the current segment.
const NOWHERE: i64 = -1;
/// Before anybody was heard.
const NEVER: i64 = i64::MIN;

/// What the timeline asks about heaps that have been placed, without holding up those who place them.
///
/// Batches are counted from chunk 0, in chunk IDs.
pub trait Witness {
    /// Heaps of a source that all streams have placed so far.
    fn placed(&self, source: u64) -> u64;

    /// The newest batch of a source that any stream has placed; negative if there is none.
    fn newest(&self, source: u64) -> i64;

    /// All sources are about to be asked for. Whoever knows of them from hearsay may look again, and must if it is urgent.
    fn look(&self, _is_urgent: bool) {}

    /// Nanoseconds on a clock that never goes back; None if the heaps do not come as time passes.
    fn now(&self) -> Option<u64>;
}

/// A heap that is good in all but its time, of which nothing is known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its source.
    pub source: u64,
    /// Its timestamp.
    pub stamp: u64,
    /// Where it goes on the axes other than time: a copy of a heap has the same.
    pub slot: u64,
}

/// In what way a heap is not where the window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ahead of the window, or nowhere near it.
    Elsewhere,
    /// Between the steps of time. This counts only if its source says it twice, for if a layout has too long a step, no two
    /// heaps of a source agree.
    Askew,
    /// It came late. If its source was received in time before, this counts only if it does so twice, for single heaps come
    /// late on any network.
    Late,
    /// Likewise, but its source goes on from where it was.
    Lagging,
    /// It was there already, in the window. This counts only twice, too.
    Repeated,
}

/// What a source says against the window.
#[derive(Clone, Copy, Debug)]
struct Claim {
    stamp: u64,
    slot: u64,
    /// How many different heaps have said so in a row, the source not having gone on in the window in between.
    heaps: u64,
    /// The timestamp with which it was first said, and the one with which it was last new.
    first: u64,
    since: u64,
    /// By how many batches it has gone on since anybody was heard in the window: two for each heap at most.
    gone_on: i64,
    /// And how far from there it is, and was at most: who goes back and forth does not go on.
    at: i64,
    furthest: i64,
    /// Whether the last of them came right after the one before.
    is_steady: bool,
    /// Heaps of the source that had been placed before the last of them.
    placed: u64,
    /// By how many batches its source lagged at first.
    lag: i64,
    /// The newest batch of the source at the last of them.
    newest: i64,
    kind: Kind,
    /// Its source came late, and is in the window by now: if one window holds both, it is of one mind with who says so still.
    is_back: bool,
}

impl Claim {
    /// Whether its source has gone on since in the window, which begins with batch `first`, given its newest batch. Heaps that
    /// are repeated, or from before its newest, do not show that it is right again.
    fn is_over(&self, newest: i64, first: i64) -> bool {
        self.is_back || (newest > self.newest && newest >= first)
    }

    /// Whether its source, which has gone on to batch `newest` in the window, came there from where it said it was: at `batch`.
    fn is_near(&self, newest: i64, batch: i64, span: i64) -> bool {
        matches!(self.kind, Kind::Late | Kind::Lagging) && self.heaps >= 2 && newest.saturating_sub(batch) <= span
    }

    /// Whether its source has been in the window since, given how many heaps of it have been placed: the claim's own may be one.
    fn is_stale(&self, placed: u64) -> bool {
        self.kind == Kind::Elsewhere && placed.wrapping_sub(self.placed) > 1
    }

    /// Whether it counts, of a source that was received before in the segment or not.
    fn counts(&self, was_received: bool) -> bool {
        self.heaps >= 2 || self.kind == Kind::Elsewhere || (self.kind != Kind::Askew && !was_received)
    }
}

/// What is known of a source.
#[derive(Clone, Debug)]
struct Voice {
    claim: Option<Claim>,
    /// Heaps placed when they were last counted.
    placed: u64,
    /// The turn of the window in which it was last heard; None if it never was, or is known to be silent.
    turn: Option<u64>,
    /// [`Voices::looks`] when it was last heard.
    heard_at: i64,
    /// [`Voices::median`] when it was last heard.
    median: i64,
    /// It has been heard since it was last known whether it is slow: behind most others when it was heard.
    was_heard: bool,
    is_slow: bool,
    /// The newest chunk to which it has led, or would have; and of the last times, [`Voices::looks`] and `sent` before.
    led_to: i64,
    leads: VecDeque<(i64, u64)>,
    /// Who was heard no later than at this look is silent: see [`Voices::lead`].
    silent_since: i64,
    /// Heaps of it that were rejected; and how many have come in all, when it was last asked.
    rejected: u64,
    sent: u64,
    /// The newest batch of which it has a heap, counted from chunk 0, or [`NOWHERE`].
    batch: i64,
    /// How far it has come for certain: see [`Voice::go_on`].
    sure: i64,
    /// The heaps that had been placed when that was last asked, and its newest batch by then.
    asked: u64,
    newest: i64,
}

/// What a group of sources agrees on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreement {
    /// The newest timestamp of them.
    pub stamp: u64,
    /// And the oldest.
    pub oldest: u64,
    /// How many sources they are.
    pub sources: u64,
    /// How many agree on the time that most agree on.
    pub largest: u64,
}

/// The voices of all sources: each has one, however many heaps it sends.
#[derive(Debug)]
pub(crate) struct Voices {
    all: Box<[Voice]>,
    /// Ticks within which times agree: a window holds them, and a chunk before.
    span: i64,
    step: i64,
    batches: u64,
    /// So many chunks may a source lead, and leave nobody behind.
    room: usize,
    /// Bits of timestamps.
    bits: u32,
    /// Ticks that a claim may go on by before it may have come to where others are: with those that sources may be apart,
    /// they fit one window.
    stay: u64,
    estranged: Arc<Estranged>,
    /// Times to be sorted; never more than there are sources.
    times: Vec<i64>,
    /// The batch that half of the live sources had reached when last counted.
    median: i64,
    /// The first batch of the segment of which a heap came.
    began: i64,
    /// Whether a source has been heard in the segment for the first time since all were counted.
    is_anybody_new: bool,
    /// How often all sources were looked at.
    looks: i64,
    /// How often the window has moved on by its own length.
    turn: u64,
    /// Sources that are live, when last counted.
    live: u64,
    /// Claims there are, some of which may not hold any more.
    claims: u64,
    /// All heaps placed, when last counted.
    total: u64,
    /// So much news must come before another majority can have come about.
    wanting: u64,
}

impl Voice {
    fn new(leads: usize) -> Self {
        Self {
            claim: None,
            placed: 0,
            turn: None,
            heard_at: NOWHERE,
            median: 0,
            was_heard: false,
            is_slow: false,
            led_to: NOWHERE,
            leads: vec![(NEVER, 0); leads].into(),
            silent_since: NEVER,
            rejected: 0,
            sent: 0,
            batch: NOWHERE,
            sure: NOWHERE,
            asked: 0,
            newest: NOWHERE,
        }
    }

    /// So many heaps of it have been placed so far, up to this batch.
    ///
    /// If few are lost, a source goes on by no more than a batch with each heap. If it is further on, that may be garbage which
    /// the window holds, until it has come further than that.
    fn go_on(&mut self, placed: u64, newest: i64) {
        let heaps = signed(placed.wrapping_sub(self.asked));
        let reach = self.sure.saturating_add(heaps).saturating_add(heaps >> 3).saturating_add(2);
        let is_certain = self.sure == NOWHERE || (self.newest > self.sure && newest > self.newest);
        self.batch = self.batch.max(newest);
        self.sure = self.sure.max(if is_certain { newest } else { newest.min(reach) });
        (self.asked, self.newest) = (placed, newest);
    }

    /// It is known to be at this batch.
    fn be_at(&mut self, batch: i64) {
        (self.batch, self.sure) = (batch, batch);
    }

    /// What it claims, if that counts.
    fn counted(&self) -> Option<Claim> {
        self.said().filter(|claim| !claim.is_back)
    }

    /// The same, or what it claimed before it came into the window, if one window holds both.
    fn said(&self) -> Option<Claim> {
        self.claim.filter(|claim| claim.counts(self.batch != NOWHERE))
    }

    fn is_live(&self, turn: u64) -> bool {
        self.turn.is_some_and(|heard| turn.wrapping_sub(heard) <= LIVE_TURNS)
    }
}

impl Voices {
    /// Voices of sources that have not been heard.
    pub fn new(n_sources: u64, window: u64, room: i64, grid: &Grid) -> Self {
        let span = signed(window.saturating_sub(2).max(1)).saturating_mul(signed(grid.chunk_step));
        let room = room.max(1).unsigned_abs() as usize;
        // Where up to half of the heaps are lost, too.
        let leads = room.saturating_mul(2).saturating_add(1);
        Self {
            all: (0..n_sources).map(|_| Voice::new(leads)).collect(),
            room,
            span,
            step: signed(grid.step),
            batches: grid.batches,
            bits: grid.bits,
            stay: (span.unsigned_abs() >> 1).min(grid.chunk_step.saturating_mul(2)),
            estranged: Arc::new(Estranged::new(n_sources)),
            times: Vec::with_capacity(n_sources as usize),
            median: 0,
            began: 0,
            is_anybody_new: false,
            looks: 0,
            turn: 0,
            live: 0,
            claims: 0,
            total: 0,
            wanting: 0,
        }
    }

    /// Which sources disagree with the window, for anybody to read.
    pub fn estranged(&self) -> &Arc<Estranged> {
        &self.estranged
    }

    /// How many sources there are.
    pub fn len(&self) -> u64 {
        self.all.len() as u64
    }

    /// Timestamps have so many bits.
    pub fn set_bits(&mut self, bits: u32) {
        self.bits = bits;
    }

    /// The difference of two timestamps. One that is too large for their bits says that they have more.
    fn difference(&self, stamp: u64, from: u64) -> i64 {
        let fit = (stamp | from).wrapping_shr(self.bits) == 0;
        difference(stamp, from, if fit { self.bits } else { self.bits.max(TIME_BITS) })
    }

    /// Whether two timestamps are of one mind: a window holds both, and they are whole steps apart.
    pub fn agree(&self, stamp: u64, other: u64) -> bool {
        let ticks = self.difference(stamp, other);
        ticks.unsigned_abs() <= self.span.unsigned_abs() && ticks.checked_rem(self.step) == Some(0)
    }

    /// A heap of a source is in the window: who goes on there does not disagree any more. All else is found out when sources
    /// are counted, for the heap will have been placed by then.
    pub fn join(&self, source: u64, batch: i64) {
        let claim = self.all.get(source as usize).and_then(|voice| voice.claim);
        if claim.is_some_and(|claim| batch > claim.newest) {
            self.estranged.clear(source);
        }
    }

    /// A heap of a source is not where the window is, which begins with batch `first`, and lags by `lag` batches. How many
    /// different heaps have said so in a row.
    pub fn claim(&mut self, heap: Sighting, kind: Kind, (first, lag): (i64, i64), witness: &impl Witness) -> u64 {
        let newest = witness.newest(heap.source);
        let placed = witness.placed(heap.source);
        let stands = |claim: &Claim| {
            !claim.is_over(newest, first) && !claim.is_stale(placed) && self.agree(heap.stamp, claim.stamp)
        };
        let Some(voice) = self.all.get(heap.source as usize) else { return 0 };
        let standing = voice.claim.filter(stands);
        let heaps = standing.map_or(1, |claim| {
            let is_copy = (claim.stamp, claim.slot) == (heap.stamp, heap.slot);
            claim.heaps.saturating_add(u64::from(!is_copy))
        });
        // Said for the second time, it may count for more; and with time it comes to where others are.
        let since = standing.map_or(heap.stamp, |claim| claim.since);
        let has_moved = self.difference(heap.stamp, since).unsigned_abs() > self.stay;
        let is_news = standing.is_none_or(|standing| has_moved || (standing.heaps < heaps && heaps == 2));
        let since = if is_news { heap.stamp } else { since };
        let (gone_on, at, furthest) = standing.map_or((0, 0, 0), |claim| {
            let batches = self.difference(heap.stamp, claim.stamp).checked_div(self.step).unwrap_or(0);
            let at = claim.at.saturating_add(batches);
            let more = at.saturating_sub(claim.furthest).clamp(0, 2);
            (claim.gone_on.saturating_add(more), at, claim.furthest.max(at))
        });
        let is_steady = heaps >= 2
            && standing.is_some_and(|claim| {
                let ticks = self.difference(heap.stamp, claim.stamp);
                (0..=self.step.saturating_mul(2)).contains(&ticks)
            });
        let lag = standing.map_or(lag, |claim| claim.lag);
        let (stamp, slot) = (heap.stamp, heap.slot);
        let first_stamp = standing.map_or(stamp, |claim| claim.first);
        let claim = Claim {
            stamp,
            slot,
            heaps,
            first: first_stamp,
            since,
            gone_on,
            at,
            furthest,
            is_steady,
            placed,
            lag,
            newest,
            kind,
            is_back: false,
        };
        let turn = self.turn;
        let Some(voice) = self.all.get_mut(heap.source as usize) else { return 0 };
        let is_first = voice.claim.is_none_or(|claim| claim.is_over(newest, first));
        self.claims = self.claims.saturating_add(u64::from(voice.claim.is_none()));
        voice.claim = Some(claim);
        if heaps >= 2 {
            voice.turn = Some(turn);
        }
        // It has been wrong twice, though not in the same way; or it just lags.
        let is_copy = standing.is_some_and(|claim| claim.stamp == heap.stamp && claim.slot == heap.slot);
        if !is_first && (kind != Kind::Lagging || is_copy) {
            self.estranged.set(heap.source);
        }
        self.wanting = self.wanting.saturating_sub(u64::from(is_news));
        heaps
    }

    /// Find out who is slow, of those that were just heard; `times` has what batches sources are at.
    fn find_slow(&mut self, grid: &Grid, window: i64) {
        let half = self.times.len() >> 1;
        if half == 0 {
            return;
        }
        let before = self.median;
        self.median = *self.times.select_nth_unstable(half).1;
        // A chunk, but no more than half of what the window leaves.
        let close = window.saturating_sub(2).clamp(1, 2).saturating_mul(signed(grid.batches)) >> 1;
        for voice in self.all.iter_mut().filter(|voice| voice.was_heard) {
            voice.was_heard = false;
            // Who was last heard some time ago is judged by where the others were then: no further than it was itself.
            let before = before.min(self.median);
            let then = if voice.heard_at == self.looks { self.median } else { before };
            voice.median = voice.batch.clamp(before, then);
            voice.is_slow = voice.batch < then.saturating_sub(close);
        }
    }

    /// Whether it is worth while to count who agrees on something else than the window.
    pub fn may_differ(&self) -> bool {
        self.wanting == 0 && self.claims.saturating_mul(2) > self.live
    }

    /// The window has moved on by its own length: sources that are not heard any more cease to be live.
    pub fn turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        self.wanting = 0;
    }

    /// Note who has been heard since the last time. Whether that, or what came before, is somebody of whom it was not known
    /// when all were counted where in the segment they are.
    pub fn listen(&mut self, witness: &impl Witness) -> bool {
        witness.look(true);
        self.looks = self.looks.saturating_add(1);
        for (source, voice) in (0_u64..).zip(self.all.iter_mut()) {
            let placed = witness.placed(source);
            if placed != voice.placed {
                (voice.placed, voice.turn, voice.heard_at) = (placed, Some(self.turn), self.looks);
                voice.was_heard = true;
                self.is_anybody_new |= voice.batch == NOWHERE;
            }
        }
        self.is_anybody_new
    }

    /// Ask what has become of all sources on the fast path. The window may have come to where some claim to be.
    pub fn count(&mut self, current: &Segment, grid: &Grid, window: i64, witness: &impl Witness) {
        let here = |claim: &Claim| {
            let at = current.locate(grid, claim.stamp).ok().filter(|_| claim.kind == Kind::Elsewhere)?;
            let is_here = at.ahead <= 0 && at.ahead > window.wrapping_neg() && current.moment(&at).is_some();
            is_here.then_some(grid.batch_of(&at))
        };
        let span = self.span.checked_div(self.step).unwrap_or(0);
        let is_near = |claim: &Claim, newest: i64| {
            let at = current.locate(grid, claim.stamp).ok();
            at.is_some_and(|at| claim.is_near(newest, grid.batch_of(&at), span))
        };
        let first = signed(current.first).saturating_mul(signed(grid.batches));
        let start = current.window_start(grid, window);
        witness.look(false);
        self.times.clear();
        self.looks = self.looks.saturating_add(1);
        (self.live, self.claims, self.total) = (0, 0, 0);
        self.is_anybody_new = false;
        let mut is_anybody_heard = false;
        for (source, voice) in (0_u64..).zip(self.all.iter_mut()) {
            let (placed, newest) = (witness.placed(source), witness.newest(source));
            self.total = self.total.wrapping_add(placed);
            if placed != voice.placed {
                (voice.placed, voice.turn, voice.heard_at) = (placed, Some(self.turn), self.looks);
                voice.was_heard = true;
            }
            if voice.was_heard {
                // Who has only come late so far has not been received.
                let since = if voice.batch == NOWHERE { start } else { first };
                if newest >= since {
                    voice.go_on(placed, newest);
                }
                is_anybody_heard |= newest >= start;
            }
            let here = voice.claim.as_ref().and_then(here);
            if here.is_some() || voice.claim.is_some_and(|claim| claim.is_over(newest, start)) {
                let steady = here.filter(|_| voice.claim.is_some_and(|claim| claim.is_steady)).unwrap_or(NOWHERE);
                (voice.batch, voice.sure) = (voice.batch.max(steady), voice.sure.max(steady));
                voice.claim = voice.claim.filter(|claim| newest >= start && is_near(claim, newest));
                voice.claim.iter_mut().for_each(|claim| claim.is_back = true);
                self.estranged.clear(source);
            }
            self.claims = self.claims.saturating_add(u64::from(voice.claim.is_some()));
            if voice.is_live(self.turn) {
                self.live = self.live.saturating_add(1);
                self.times.extend(Some(voice.batch).filter(|&batch| batch != NOWHERE));
            }
        }
        self.find_slow(grid, window);
        if is_anybody_heard {
            let claims = self.all.iter_mut().filter_map(|voice| voice.claim.as_mut());
            claims.for_each(|claim| (claim.gone_on, claim.at, claim.furthest) = (0, 0, 0));
        }
    }

    /// The newest batch of a source, or the one that it has come to for certain. Who has not been heard since the segment began
    /// is where it began.
    pub fn place(&self, source: u64, for_certain: bool) -> i64 {
        let batch = |voice: &Voice| if for_certain { voice.sure } else { voice.batch };
        let place = self.all.get(source as usize).map_or(NOWHERE, batch);
        if place == NOWHERE { self.began } else { place }
    }

    /// A heap of a source is rejected.
    pub fn reject(&mut self, source: u64) {
        if let Some(voice) = self.all.get_mut(source as usize) {
            voice.rejected = voice.rejected.wrapping_add(1);
        }
    }

    /// How many heaps a source has sent since it was last asked, with the one that is in question.
    pub fn sent(&mut self, source: u64, witness: &impl Witness) -> u64 {
        let placed = witness.placed(source);
        let Some(voice) = self.all.get_mut(source as usize) else { return 0 };
        let before = std::mem::replace(&mut voice.sent, placed.wrapping_add(voice.rejected));
        voice.sent.wrapping_sub(before)
    }

    /// A source leads to a chunk, or would. Whether it is the first time, or shows that others are silent.
    ///
    /// Those are who have not been heard while it led to as many chunks as all could without leaving anybody behind, and sent as
    /// many heaps as these have batches: a clock that runs ahead is no measure of time.
    pub fn lead(&mut self, source: u64, chunk: i64) -> bool {
        let Some(voice) = self.all.get_mut(source as usize) else { return false };
        let is_first = chunk > voice.led_to;
        if is_first {
            voice.led_to = chunk;
            voice.leads.pop_front();
            voice.leads.push_back((self.looks, voice.sent));
        }
        let heaps = (self.room as u64).saturating_mul(self.batches);
        let mut before = voice.leads.iter().rev().skip(self.room);
        let since =
            before.find(|&&(_, sent)| voice.sent.wrapping_sub(sent) >= heaps).map_or(NEVER, |&(looks, _)| looks);
        let is_known = since <= voice.silent_since;
        voice.silent_since = voice.silent_since.max(since);
        is_first || !is_known
    }

    /// A source leads to where the window begins with batch `first`: who is silent, and behind, is not live any more.
    pub fn leave(&mut self, source: u64, first: i64) {
        let Some(since) = self.all.get(source as usize).map(|voice| voice.silent_since) else { return };
        for voice in self.all.iter_mut().filter(|voice| voice.heard_at <= since && voice.batch < first) {
            voice.turn = None;
        }
    }

    /// The batch that the slowest live source has reached, or claims to, of all but one, who would lead to batch `own`; and the
    /// one that half of the live sources, with this one, have reached, or claim to. If that one goes on from heap to heap, the
    /// others are taken at their word; else what they have reached for certain counts.
    ///
    /// Left out are those that are silent, for they were last heard before this one led to as many chunks as it may, or before
    /// half of the others went on by a window; those that claim times far from the window; and those that are late, unless
    /// they are more than half. The slowest is none of those that are slow, either.
    pub fn slowest(
        &mut self,
        source: u64,
        (own, goes_on): (i64, bool),
        current: &Segment,
        grid: &Grid,
        window: i64,
    ) -> (Option<i64>, Option<i64>) {
        // In a window of two chunks, nobody waits while others are read.
        let patience = window.saturating_sub(2).saturating_mul(signed(grid.batches));
        let patience = if patience > 0 { patience } else { signed(grid.batches).saturating_sub(1) };
        let since = self.all.get(source as usize).map_or(NEVER, |voice| voice.silent_since);
        let (mut late, mut slowest, mut slowest_late) = (0_u64, None, None);
        let slower = |than: Option<i64>, batch: i64| Some(than.map_or(batch, |than| than.min(batch)));
        self.times.clear();
        self.times.push(own);
        // Once any other has been heard, those that have not been are expected, too.
        let is_other = |&(other, voice): &(u64, &Voice)| other != source && voice.heard_at != NOWHERE;
        let is_first = !(0_u64..).zip(self.all.iter()).any(|voice| is_other(&voice));
        let may_come = |voice: &Voice| (voice.heard_at == NOWHERE && !is_first) || voice.is_live(self.turn);
        for (other, voice) in (0_u64..).zip(self.all.iter()).filter(|(_, voice)| may_come(voice)) {
            let is_silent = voice.heard_at <= since || self.median.saturating_sub(voice.median) > patience;
            if other == source || is_silent {
                continue;
            }
            // Who was placed in the window since, though with no newer heap, is not slow. (The claim's own heap may be one.)
            let stands = |claim: &Claim| voice.placed.wrapping_sub(claim.placed) <= 1;
            match voice.counted().filter(stands).map(|claim| current.locate(grid, claim.stamp)) {
                None => {
                    let batch = self.place(other, !goes_on);
                    self.times.push(batch);
                    if !voice.is_slow {
                        slowest = slower(slowest, batch);
                    }
                }
                Some(Ok(at)) if at.ahead > 0 && at.ahead <= window => {
                    self.times.push(grid.batch_of(&at));
                    slowest = slower(slowest, grid.batch_of(&at));
                }
                Some(Ok(at)) if at.ahead <= 0 && at.ahead > window.saturating_mul(-2) => {
                    late = late.saturating_add(1);
                    slowest_late = slower(slowest_late, grid.batch_of(&at));
                }
                _ => {}
            }
        }
        if late.saturating_mul(2) > self.live {
            return (slowest_late, None);
        }
        let half = self.times.len().saturating_sub(1) >> 1;
        let median = *self.times.select_nth_unstable(half).1;
        (slowest, Some(median))
    }

    /// All bits of timestamps like this one.
    fn low_bits(&self, stamp: u64) -> u64 {
        low_bits(if stamp.wrapping_shr(self.bits) == 0 { self.bits } else { TIME_BITS })
    }

    /// The claims that agree with a timestamp, as many as fit a window.
    pub fn agreement(&mut self, stamp: u64) -> Agreement {
        let mut times = std::mem::take(&mut self.times);
        times.clear();
        let (all, step, span) = (&self.all, self.step, &self.span);
        let counted = all.iter().filter_map(Voice::said);
        let ticks = counted.map(|claim| self.difference(claim.stamp, stamp));
        times.extend(ticks.filter(|ticks| ticks.checked_rem(step) == Some(0)));
        times.sort_unstable();
        let (mut best, mut largest) = ((0, 0, 0), 0);
        let mut first = 0;
        for (last, &end) in times.iter().enumerate() {
            while times.get(first).is_some_and(|&start| end.saturating_sub(start) > *span) {
                first = first.wrapping_add(1);
            }
            let sources = last.wrapping_sub(first).wrapping_add(1);
            largest = largest.max(sources);
            let start = times.get(first).copied().unwrap_or(end);
            if start <= 0 && end >= 0 && sources > best.0 {
                best = (sources, start, end);
            }
        }
        self.times = times;
        let (sources, start, end) = best;
        let low_bits = self.low_bits(stamp);
        Agreement {
            stamp: stamp.wrapping_add(end as u64) & low_bits,
            oldest: stamp.wrapping_add(start as u64) & low_bits,
            sources: sources as u64,
            largest: largest as u64,
        }
    }

    /// Whether a claim is part of what others agree on.
    fn is_of(&self, claim: &Claim, agreed: &Agreement) -> bool {
        let within =
            self.difference(claim.stamp, agreed.oldest) >= 0 && self.difference(agreed.stamp, claim.stamp) >= 0;
        within && self.agree(claim.stamp, agreed.stamp)
    }

    /// The timestamp to which the window should go, to be where most of those are that agree, and a heap, which is one of them.
    ///
    /// Half of them must be able to place what they have sent since they were there, or others would lose as much that are yet
    /// to be read.
    pub fn end(&self, agreed: &Agreement, stamp: u64) -> u64 {
        let room = signed(self.room as u64).saturating_mul(self.step).saturating_mul(signed(self.batches));
        let claims = self.all.iter().filter_map(Voice::said).filter(|claim| self.is_of(claim, agreed));
        let begins = claims.map(|claim| {
            let (first, last) = (self.difference(claim.first, stamp), self.difference(claim.stamp, stamp));
            first.max(last.saturating_sub(room))
        });
        let end = begins.min().unwrap_or(0).saturating_add(room).max(0).min(self.difference(agreed.stamp, stamp));
        stamp.wrapping_add(end as u64) & self.low_bits(stamp)
    }

    /// Of the sources that are live, or agree on this, whether more than half agree.
    ///
    /// A source that is the only one must say it twice.
    pub fn is_majority(&mut self, agreed: &Agreement) -> bool {
        let (mut for_it, mut asked, mut most) = (0_u64, 0_u64, 0_u64);
        for voice in &self.all {
            let is_of = voice.said().is_some_and(|claim| self.is_of(&claim, agreed));
            if is_of {
                for_it = for_it.saturating_add(1);
                most = most.max(voice.claim.map_or(0, |claim| claim.heaps));
            }
            asked = asked.saturating_add(u64::from(is_of || voice.is_live(self.turn)));
        }
        let has_won = for_it.saturating_mul(2) > asked && (for_it >= 2 || most >= 2);
        if !has_won {
            self.wanting = (asked >> 1).saturating_add(1).saturating_sub(agreed.largest).max(1);
        }
        has_won
    }

    /// By how many batches a source has gone on elsewhere since anybody was heard in the window, for all that is known.
    pub fn gone_on(&self, source: u64) -> i64 {
        self.all.get(source as usize).and_then(|voice| voice.claim).map_or(0, |claim| claim.gone_on)
    }

    /// Whether a source goes on elsewhere from heap to heap: garbage does not.
    pub fn is_steady(&self, source: u64) -> bool {
        self.all.get(source as usize).and_then(|voice| voice.claim).is_some_and(|claim| claim.is_steady)
    }

    /// By how many batches a source lagged at first, if that is why it is not in the window.
    pub fn lag(&self, source: u64) -> i64 {
        self.all.get(source as usize).and_then(|voice| voice.claim).map_or(0, |claim| claim.lag)
    }

    /// Whether all that agree have gone on by so many batches since anybody was heard in the window.
    pub fn has_gone_on(&self, agreed: &Agreement, batches: i64) -> bool {
        let claims = self.all.iter().filter_map(|voice| voice.claim);
        claims.filter(|claim| !claim.is_back && self.is_of(claim, agreed)).all(|claim| claim.gone_on >= batches)
    }

    /// Nothing comes of a majority: wait until as many claims have been made anew.
    pub fn wait(&mut self) {
        self.wanting = self.live.max(1);
    }

    /// Sources that have been received in the current segment.
    pub fn received(&self) -> u64 {
        self.all.iter().filter(|voice| voice.batch != NOWHERE).count() as u64
    }

    /// Sources that were live when last counted.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// All heaps placed, when last counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Time has gone to what these agree on; the others are nowhere in the segment until they are heard in it.
    ///
    /// If nobody was heard but those, the others are silent.
    pub fn follow(&mut self, agreed: &Agreement, segment: &Segment, grid: &Grid, others_are_silent: bool) {
        let began = segment.locate(grid, agreed.oldest).map_or(self.began, |at| grid.batch_of(&at));
        (self.began, self.median) = (began, began);
        let (turn, looks, median) = (self.turn, self.looks, self.median);
        for source in 0..self.len() {
            let Some(voice) = self.all.get(source as usize) else { continue };
            let claim = voice.claim.filter(|claim| self.is_of(claim, agreed));
            let Some(voice) = self.all.get_mut(source as usize) else { continue };
            let at = claim.and_then(|claim| segment.locate(grid, claim.stamp).ok());
            voice.be_at(at.map_or(NOWHERE, |at| grid.batch_of(&at)));
            voice.led_to = NOWHERE;
            if let Some(claim) = claim {
                voice.claim = None;
                voice.turn = Some(turn);
                if claim.is_back || voice.placed.wrapping_sub(claim.placed) <= 1 {
                    (voice.heard_at, voice.median) = (looks, voice.batch.max(median));
                }
                self.claims = self.claims.saturating_sub(1);
                self.estranged.clear(source);
            } else if others_are_silent {
                voice.turn = None;
            }
        }
        self.wanting = 0;
    }

    /// Time begins with a heap of this batch.
    pub fn begin(&mut self, batch: i64) {
        (self.began, self.median) = (batch, batch);
        self.all.iter_mut().for_each(|voice| voice.median = batch);
    }

    /// Chunk IDs have been skipped: everybody is where they were, so many batches later.
    pub fn skip(&mut self, batches: i64) {
        self.began = self.began.saturating_add(batches);
        for voice in self.all.iter_mut().filter(|voice| voice.batch != NOWHERE) {
            voice.led_to = NOWHERE;
            voice.batch = voice.batch.saturating_add(batches);
            voice.sure = voice.sure.saturating_add(batches);
        }
    }
}
