//! What timestamps stand for: times and chunks, in runs of chunks whose IDs count time from the same point.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use crate::clock::low_bits;
use crate::layout::Layout;

/// Where on the time axis a heap goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// ID of the chunk.
    pub chunk: u64,
    /// Batch in the chunk.
    pub batch: u64,
    /// ID of the first chunk of its epoch.
    pub epoch_first: u64,
    /// By how much the chunk IDs of its epoch exceed the number of chunks from time 0.
    pub epoch_offset: i64,
    /// The timestamp of time 0 in its epoch: less than a step.
    pub origin: u64,
    /// Bits of timestamps.
    pub bits: u32,
}

/// The grid that all times of a layout lie on. Time 0 is the first step of time; its timestamp is the origin.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    /// Ticks of a step.
    pub step: u64,
    /// Steps of a chunk.
    pub batches: u64,
    /// Ticks of a chunk.
    pub chunk_step: u64,
    /// Bits of timestamps, as long as none shows that they are fewer.
    pub bits: u32,
    /// The origin; None if timestamps show it.
    pub origin: Option<u64>,
    /// Whether times between the steps are rounded down.
    pub rounds: bool,
    /// What was added to timestamps, so that rounding down gives the nearest step.
    bias: u64,
    /// The odd part of the step, and the inverse of its power of two as a part of the range of timestamps, modulo that.
    odd: u64,
    inverse: u64,
}

/// A run of chunks in which chunk IDs count time from the same point, and how far it has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// ID of its first chunk.
    pub first: u64,
    /// Chunk ID less the number of chunks from time 0.
    pub offset: i64,
    /// The newest chunk accepted.
    pub newest: u64,
    /// The timestamp of time 0.
    pub origin: u64,
    /// Bits of timestamps.
    pub bits: u32,
}

/// A time in a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located {
    /// Timestamp, unwrapped.
    pub time: i64,
    /// What the ID of its chunk would be, if it is one.
    pub chunk: i64,
    /// Batch in the chunk.
    pub batch: u64,
    /// Chunks ahead of the newest, or behind it.
    pub ahead: i64,
}

/// Why a timestamp has no time in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocateError {
    /// It is not a multiple of the step, after unwrapping.
    Misaligned,
    /// It is beyond the end of time.
    OutOfRange,
}

/// The difference of two timestamps of so many bits, sign-extended.
pub(crate) fn difference(stamp: u64, from: u64, bits: u32) -> i64 {
    let spare = u64::BITS.wrapping_sub(bits);
    (stamp.wrapping_sub(from).wrapping_shl(spare) as i64).wrapping_shr(spare)
}

/// The time nearest to another one that agrees with a timestamp in its low bits, where time 0 has timestamp 0.
///
/// It may be before 0. None if it is beyond 2^63, where time ends.
fn unwrap(stamp: u64, near: i64, bits: u32) -> Option<i64> {
    near.checked_add(difference(stamp, near as u64, bits))
}

/// A number of chunks or ticks as a signed number; the largest one for more than that.
pub(crate) fn signed(chunks: u64) -> i64 {
    i64::try_from(chunks).unwrap_or(i64::MAX)
}

/// A product modulo a number that is not 0.
fn multiply(a: u64, b: u64, modulus: u64) -> u64 {
    u128::from(a).wrapping_mul(u128::from(b)).checked_rem(u128::from(modulus)).unwrap_or(0) as u64
}

impl Grid {
    /// That of a layout.
    pub fn new(layout: &Layout) -> Self {
        let step = layout.spec().time.step.max(1);
        let twos = step.trailing_zeros();
        let odd = step.wrapping_shr(twos);
        // Halves of 1, as often as a wrap has more factors 2 than the step.
        let half = odd.wrapping_add(1) >> 1;
        let clock = &layout.clock;
        let inverse = (twos..clock.bits).fold(1, |inverse, _| multiply(inverse, half, odd));
        let batches = layout.spec().time.batches;
        let (bits, origin, rounds, bias) = (clock.bits, clock.origin, clock.rounds, clock.bias);
        Self { step, batches, chunk_step: layout.chunk_step, bits, origin, rounds, bias, odd, inverse }
    }

    /// The origin, if this timestamp is at a step.
    pub fn origin_of(&self, stamp: u64) -> u64 {
        let shown = || {
            let beyond = stamp.checked_rem(self.step)?.wrapping_add(self.step).wrapping_sub(self.bias);
            beyond.checked_rem(self.step)
        };
        self.origin.or_else(shown).unwrap_or(0)
    }

    /// The first time with this timestamp that is a multiple of the step.
    ///
    /// Where the step is no power of two, that tells how often timestamps have wrapped since time 0: after w wraps, the time
    /// is stamp + w 2^48. (If times are rounded, nothing tells.)
    pub fn age_of(&self, stamp: u64) -> Option<i64> {
        if self.rounds {
            let time = i64::try_from(stamp).ok()?.checked_sub_unsigned(self.origin_of(stamp))?;
            return Some(self.rounded(time)).filter(|&time| time >= 0);
        }
        let stamp = stamp.wrapping_sub(self.origin_of(stamp)) & low_bits(self.bits);
        let twos = self.step.trailing_zeros();
        if stamp.trailing_zeros() < twos && stamp != 0 {
            return None;
        }
        let short = self.odd.wrapping_sub(stamp.wrapping_shr(twos).checked_rem(self.odd)?);
        let wraps = multiply(short, self.inverse, self.odd);
        let time = wraps.checked_mul(1_u64.wrapping_shl(self.bits))?.checked_add(stamp)?;
        i64::try_from(time).ok()
    }

    /// A time on the grid: the last one up to this.
    fn rounded(&self, time: i64) -> i64 {
        time.saturating_sub(time.checked_rem_euclid(signed(self.step)).unwrap_or(0))
    }

    /// Chunks from time 0, rounded down.
    pub fn chunk_of(&self, time: i64) -> i64 {
        time.checked_div_euclid(signed(self.chunk_step)).unwrap_or(0)
    }

    /// The batch of a time in a segment, counted from chunk 0.
    pub fn batch_of(&self, at: &Located) -> i64 {
        at.chunk.saturating_mul(signed(self.batches)).saturating_add(signed(at.batch))
    }

    /// Whether a time is a multiple of the step.
    pub fn is_aligned(&self, time: i64) -> bool {
        time.checked_rem_euclid(signed(self.step)) == Some(0)
    }

    /// Start of a chunk.
    pub fn start(&self, true_chunk: i64) -> i64 {
        true_chunk.saturating_mul(signed(self.chunk_step))
    }
}

impl Segment {
    /// Start of the newest chunk.
    pub fn newest_time(&self, grid: &Grid) -> i64 {
        grid.start(signed(self.newest).wrapping_sub(self.offset))
    }

    /// The first batch of a window of so many chunks, counted from chunk 0.
    pub fn window_start(&self, grid: &Grid, window: i64) -> i64 {
        let chunk = signed(self.newest).saturating_sub(window.saturating_sub(1)).max(signed(self.first));
        chunk.saturating_mul(signed(grid.batches))
    }

    /// The time nearest to another that a timestamp stands for.
    pub fn time_near(&self, stamp: u64, near: i64) -> Option<i64> {
        let fits = stamp.wrapping_shr(self.bits) == 0;
        unwrap(stamp.wrapping_sub(self.origin), near, self.bits).filter(|_| fits)
    }

    /// Find the time that a timestamp stands for: the one nearest to the newest chunk.
    pub fn locate(&self, grid: &Grid, stamp: u64) -> Result<Located, LocateError> {
        let time = self.time_near(stamp, self.newest_time(grid)).ok_or(LocateError::OutOfRange)?;
        self.locate_time(grid, time)
    }

    /// A timestamp of so many bits that is one on the grid, if times are rounded: that of the last step up to this.
    pub fn rounded(&self, grid: &Grid, stamp: u64, bits: u32) -> u64 {
        let near = self.newest_time(grid);
        match unwrap(stamp.wrapping_sub(self.origin), near, bits).filter(|_| grid.rounds) {
            Some(time) => (grid.rounded(time) as u64).wrapping_add(self.origin) & low_bits(bits),
            None => stamp,
        }
    }

    /// Find the chunk and batch of a time.
    pub fn locate_time(&self, grid: &Grid, time: i64) -> Result<Located, LocateError> {
        if !grid.is_aligned(time) {
            return Err(LocateError::Misaligned);
        }
        let true_chunk = grid.chunk_of(time);
        // Beyond the end of time there are no chunk IDs either.
        let chunk = true_chunk.checked_add(self.offset).filter(|&chunk| chunk <= grid.chunk_of(i64::MAX));
        let chunk = chunk.ok_or(LocateError::OutOfRange)?;
        let batch = time.wrapping_sub(grid.start(true_chunk)).checked_div(signed(grid.step)).unwrap_or(0);
        Ok(Located { time, chunk, batch: batch as u64, ahead: chunk.saturating_sub(signed(self.newest)) })
    }

    /// Whether a timestamp is at a step of time.
    pub fn is_at_step(&self, grid: &Grid, stamp: u64) -> bool {
        !matches!(self.locate(grid, stamp), Err(LocateError::Misaligned))
    }

    /// The moment of a time, if it has one: not before time 0 or the segment.
    pub fn moment(&self, at: &Located) -> Option<Moment> {
        let chunk = u64::try_from(at.chunk).ok().filter(|&chunk| chunk >= self.first && at.time >= 0)?;
        Some(self.at(chunk, at.batch))
    }

    /// A moment of the segment.
    pub fn at(&self, chunk: u64, batch: u64) -> Moment {
        let Self { first: epoch_first, offset: epoch_offset, origin, bits, .. } = *self;
        Moment { chunk, batch, epoch_first, epoch_offset, origin, bits }
    }
}
