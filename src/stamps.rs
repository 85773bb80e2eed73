//! What the timestamps of a stream show of themselves: how many bits they have, and the phase of each source.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use crate::clock::{Clock, Differ, FEW_TIME_BITS, low_bits};
use crate::segment::{Grid, Segment, difference, signed};
use crate::voices::Sighting;
use crate::window::UNKNOWN;

/// How many ticks after the start of the newest chunk times make sense.
#[derive(Clone, Copy, Debug)]
struct Near {
    from: i64,
    /// Up to there if they have the usual number of bits, and if they have few.
    to: i64,
    to_if_few: i64,
}

/// What is known of the timestamps of a stream.
#[derive(Debug)]
pub(crate) struct Stamps {
    /// Where times make sense; None if nothing has to be found out: because the layout says how many bits timestamps have,
    /// or because that is too far for few bits.
    near: Option<Near>,
    bias: u64,
    /// Ticks by which the timestamps of each source differ from the steps of time, or [`UNKNOWN`]; empty if they do not.
    phases: Box<[u64]>,
    /// Of each source, if that is learnt, the last heap with another phase, and that phase.
    doubts: Box<[Option<(Sighting, u64)>]>,
    /// How often more was learnt.
    lessons: u64,
    /// Whether timestamps have wrapped after few bits since time last began.
    has_few_bits: bool,
}

impl Stamps {
    /// Nothing is known yet but what the layout says.
    pub fn new(clock: &Clock, n_sources: u64, (window, reach): (u64, u64), grid: &Grid) -> Self {
        let (phases, doubts) = match &clock.phases {
            Differ::Nowhere => (Box::default(), Box::default()),
            Differ::Listed(listed) => (listed.clone(), Box::default()),
            Differ::AsShown => {
                let n_sources = n_sources as usize;
                (vec![UNKNOWN; n_sources].into(), vec![None; n_sources].into())
            }
        };
        // From the first chunk of the window to the last that the window may go to.
        let ticks = |chunks: u64| signed(chunks).saturating_mul(signed(grid.chunk_step));
        let (from, to) = (ticks(window.saturating_sub(1)).saturating_neg(), ticks(reach.saturating_add(1)));
        let is_short =
            |to: i64| to.saturating_sub(from).unsigned_abs() < 1_u64.wrapping_shl(FEW_TIME_BITS.wrapping_sub(1));
        // Where the window follows a jump of any length, a single heap with time 0 must not look like a wrap long before one.
        let to_if_few = if is_short(to) { to } else { ticks(window) };
        let near = (!clock.is_sure && is_short(to_if_few)).then_some(Near { from, to, to_if_few });
        Self { near, bias: clock.bias, phases, doubts, lessons: 0, has_few_bits: false }
    }

    /// The phase of each source, or [`UNKNOWN`]; empty if sources have none.
    pub fn phases(&self) -> &[u64] {
        &self.phases
    }

    /// The phase of each source, if phases are learnt; and how often more was learnt.
    pub fn learnt(&self) -> Option<(&[u64], u64)> {
        (!self.doubts.is_empty()).then_some((&self.phases, self.lessons))
    }

    /// The timestamp that a heap would have on the grid: less the phase of its source, and rounded.
    pub fn on_grid(&mut self, heap: Sighting, current: Option<&Segment>, grid: &Grid) -> u64 {
        let few = current.map_or(grid.bits, |current| current.bits);
        let bits = if heap.stamp.wrapping_shr(few) == 0 { few } else { grid.bits };
        if !self.doubts.is_empty() {
            self.learn(heap, current, grid, bits);
        }
        let phase = self.phases.get(heap.source as usize).copied().filter(|&phase| phase != UNKNOWN).unwrap_or(0);
        let stamp = heap.stamp.wrapping_add(self.bias).wrapping_sub(phase) & low_bits(bits);
        current.map_or(stamp, |current| current.rounded(grid, stamp, bits))
    }

    /// Learn the phase of a source from a heap of it: at once, but another one later only from two heaps.
    fn learn(&mut self, heap: Sighting, current: Option<&Segment>, grid: &Grid, bits: u32) {
        let source = heap.source as usize;
        let (Some(known), Some(doubt)) = (self.phases.get_mut(source), self.doubts.get_mut(source)) else { return };
        let origin = current.map_or_else(|| grid.origin_of(heap.stamp), |current| current.origin);
        let step = signed(grid.step);
        let ahead = match current {
            Some(current) => difference(heap.stamp, (current.newest_time(grid) as u64).wrapping_add(origin), bits),
            // Time begins here, however large the timestamp is: none is before it.
            None => signed(heap.stamp).saturating_sub(signed(origin)),
        };
        // From the nearest step: half a step at most, before it or after it.
        let ticks = ahead.checked_rem_euclid(step).unwrap_or(0);
        let phase = if ticks > step >> 1 { ticks.saturating_sub(step) } else { ticks } as u64;
        if *known == phase {
            *doubt = None;
        } else if *known == UNKNOWN || doubt.is_some_and(|(last, ticks)| ticks == phase && last != heap) {
            (*known, *doubt) = (phase, None);
            self.lessons = self.lessons.wrapping_add(1);
        } else {
            *doubt = Some((heap, phase));
        }
    }

    /// How many bits timestamps have, if a heap shows that they have others than was known.
    ///
    /// Those of the flavour 64-40 have 40 bits. So where a stream has shown no larger one yet, and a timestamp makes sense only
    /// if it has wrapped there, it has. If a larger one makes sense, they have the usual number. From then on each heap tells
    /// by making sense one way or the other, so that a single wrong one does no harm.
    pub fn find_bits(&mut self, heap: Sighting, current: &Segment, grid: &Grid) -> Option<u32> {
        let Near { from, to, to_if_few } = self.near?;
        let Sighting { stamp, source, .. } = heap;
        let phase = self.phases.get(source as usize).copied().filter(|&phase| phase != UNKNOWN).unwrap_or(0);
        let newest = current.newest_time(grid);
        let start = (newest as u64).wrapping_add(current.origin);
        let near = |bits: u32| {
            let ahead = difference(stamp.wrapping_sub(phase), start, bits);
            let to = if bits == FEW_TIME_BITS { to_if_few } else { to };
            (ahead >= from && ahead < to).then(|| newest.saturating_add(ahead))
        };
        let is_large = |stamp: u64| stamp.wrapping_shr(FEW_TIME_BITS) != 0;
        if current.bits == FEW_TIME_BITS {
            return (is_large(stamp) && near(grid.bits).is_some()).then_some(grid.bits);
        }
        if is_large(stamp) || near(grid.bits).is_some() {
            return None;
        }
        let may_have_few = self.has_few_bits || !is_large(start & low_bits(grid.bits));
        let range = signed(low_bits(FEW_TIME_BITS)).saturating_add(1);
        let has_wrapped = |time: i64| time.checked_div_euclid(range) > newest.checked_div_euclid(range);
        let makes_sense = near(FEW_TIME_BITS).is_some_and(|time| self.has_few_bits || has_wrapped(time));
        let has_few = may_have_few && makes_sense;
        self.has_few_bits |= has_few;
        has_few.then_some(FEW_TIME_BITS)
    }

    /// Time begins again, perhaps with other senders.
    pub fn begin_again(&mut self) {
        self.has_few_bits = false;
    }
}
