//! What 48-bit timestamps stand for: times and chunks, in runs of chunks whose IDs count time from the same point.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use crate::layout::{Layout, TIME_BITS};

/// The bits of a timestamp.
pub(crate) const LOW_BITS: u64 = (1_u64 << TIME_BITS).wrapping_sub(1);

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
}

/// The grid that all times of a layout lie on.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    /// Ticks of a step.
    pub step: u64,
    /// Steps of a chunk.
    pub batches: u64,
    /// Ticks of a chunk.
    pub chunk_step: u64,
    /// The odd part of the step, and the inverse of its power of two as a part of 2^48, modulo that.
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

/// The difference of two 48-bit timestamps, sign-extended.
pub(crate) fn difference(stamp: u64, from: u64) -> i64 {
    const SPARE: u32 = u64::BITS.wrapping_sub(TIME_BITS);
    (stamp.wrapping_sub(from).wrapping_shl(SPARE) as i64).wrapping_shr(SPARE)
}

/// The time nearest to another one that agrees with a timestamp in its low 48 bits.
///
/// It may be before 0. None if it is beyond 2^63, where time ends.
pub(crate) fn unwrap(stamp: u64, near: i64) -> Option<i64> {
    near.checked_add(difference(stamp, near as u64))
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
        let inverse = (twos..TIME_BITS).fold(1, |inverse, _| multiply(inverse, half, odd));
        Self { step, batches: layout.spec().time.batches, chunk_step: layout.chunk_step, odd, inverse }
    }

    /// The first time with this timestamp that is a multiple of the step.
    ///
    /// Where the step is no power of two, that tells how often timestamps have wrapped since time 0: after w wraps, the time
    /// is stamp + w 2^48.
    pub fn age_of(&self, stamp: u64) -> Option<i64> {
        let twos = self.step.trailing_zeros();
        if stamp.trailing_zeros() < twos && stamp != 0 {
            return None;
        }
        let short = self.odd.wrapping_sub(stamp.wrapping_shr(twos).checked_rem(self.odd)?);
        let wraps = multiply(short, self.inverse, self.odd);
        let time = wraps.checked_mul(1 << TIME_BITS)?.checked_add(stamp)?;
        i64::try_from(time).ok()
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

    /// Find the time that a timestamp stands for: the one nearest to the newest chunk.
    pub fn locate(&self, grid: &Grid, stamp: u64) -> Result<Located, LocateError> {
        let time = unwrap(stamp, self.newest_time(grid)).ok_or(LocateError::OutOfRange)?;
        self.locate_time(grid, time)
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

    /// The moment of a time, if it has one: not before time 0 or the segment.
    pub fn moment(&self, at: &Located) -> Option<Moment> {
        let chunk = u64::try_from(at.chunk).ok().filter(|&chunk| chunk >= self.first && at.time >= 0)?;
        Some(Moment { chunk, batch: at.batch, epoch_first: self.first, epoch_offset: self.offset })
    }
}
