//! The window of a stream, and what the fast path needs to know of the times of its chunks.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use crate::clock::{Differ, low_bits};
use crate::layout::Layout;
use crate::segment::Moment;

/// The chunks that heaps of a stream are placed in: as many as spead2 keeps at a time, up to the newest, all of one
/// epoch.
///
/// With timestamps of 48 bits, `limit * step` is at most 2^47 and `base + limit * step` at most 2^48 + step, so a timestamp
/// beyond 48 bits or before the base is never within the limit; likewise with those of other bits.
#[derive(Clone, Debug)]
pub struct Window {
    /// Timestamp at which the window begins.
    pub base: u64,
    /// The bits of a timestamp.
    pub low_bits: u64,
    /// Ticks by which the timestamps of each source differ from the steps of time, or [`UNKNOWN`]; empty if they do not.
    pub phases: Box<[u64]>,
    /// How often that was learnt.
    lessons: u64,
    /// Batches from there that the fast path may place: none before the first heap; cut off where timestamps wrap.
    pub limit: u64,
    /// ID of the first chunk of the window.
    pub first_chunk: u64,
    /// The first batch of the window, counted from chunk 0.
    pub first_batch: u64,
    /// The newest chunk, counted from the first of the window.
    newest: u64,
    /// Timestamp at which the newest chunk begins, where nearly all heaps belong.
    pub newest_base: u64,
    /// How many of its batches the fast path may place.
    pub newest_limit: u64,
    /// Its ID.
    pub newest_chunk: u64,
    /// Its first batch, counted from chunk 0.
    pub newest_first_batch: u64,
    /// ID of the first chunk that can still come out: those before a control heap have.
    floor: u64,
    chunks: u64,
    step: u64,
    batches: u64,
    chunk_step: u64,
}

/// The phase of a source is not known.
pub const UNKNOWN: u64 = 1 << 63;

impl Window {
    /// An empty window of up to `chunks` chunks.
    #[must_use]
    pub fn new(layout: &Layout, chunks: u64) -> Self {
        Self {
            base: 0,
            low_bits: low_bits(layout.clock.bits),
            phases: match &layout.clock.phases {
                Differ::Nowhere => Box::default(),
                Differ::Listed(listed) => listed.clone(),
                Differ::AsShown => vec![UNKNOWN; layout.n_sources() as usize].into(),
            },
            lessons: 0,
            limit: 0,
            first_chunk: 0,
            first_batch: 0,
            newest: 0,
            newest_base: 0,
            newest_limit: 0,
            newest_chunk: 0,
            newest_first_batch: 0,
            floor: 0,
            chunks,
            step: layout.spec().time.step,
            batches: layout.spec().time.batches,
            chunk_step: layout.chunk_step,
        }
    }

    /// The newest chunk, counted from the first of the window.
    #[inline]
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// How many of its batches may be placed, where so many of the newest chunk may be: without one of that, none, for the
    /// stream must ask where the window is.
    #[inline]
    #[must_use]
    pub fn usable(&self, of_newest: u64) -> u64 {
        if of_newest == 0 { 0 } else { self.limit }
    }

    /// Move the window so that it ends with the chunk of a moment, if that is newer than its newest.
    ///
    /// The epoch of the chunk begins with chunk `epoch_first`, and has chunk IDs that are `epoch_offset` more than the
    /// number of chunks from time 0. The first is at least the second, for no chunk lies before time 0.
    ///
    /// Returns by how many chunks the beginning has moved, or None if the heap changes nothing. The window ends with
    /// the newest chunk even where it could hold more (before time has gone on for long enough), so that every newer
    /// chunk takes the cold path, which asks the timeline.
    pub fn follow(&mut self, at: &Moment) -> Option<u64> {
        let began = self.limit != 0;
        let old = self.first_chunk;
        if at.chunk < self.floor {
            return None;
        }
        if began && at.chunk <= old.wrapping_add(self.newest) {
            // It has been found out how many bits timestamps have.
            if low_bits(at.bits) != self.low_bits && old >= at.epoch_first {
                self.span(at);
            }
            return None;
        }
        self.first_chunk = at.chunk.saturating_sub(self.chunks.wrapping_sub(1)).max(at.epoch_first).max(self.floor);
        self.first_batch = self.first_chunk.wrapping_mul(self.batches);
        self.newest = at.chunk.wrapping_sub(self.first_chunk);
        self.span(at);
        Some(self.first_chunk.wrapping_sub(old))
    }

    /// Work out which timestamps lie between the first chunk and the newest, of an epoch.
    fn span(&mut self, epoch: &Moment) {
        self.low_bits = low_bits(epoch.bits);
        let start = self.first_chunk.wrapping_sub(epoch.epoch_offset as u64).wrapping_mul(self.chunk_step);
        self.base = start.wrapping_add(epoch.origin) & self.low_bits;
        // At a wrap the last batches of the window have small timestamps again: those take the cold path.
        let until_wrap = self.low_bits.wrapping_sub(self.base).checked_div(self.step).unwrap_or(0).wrapping_add(1);
        self.limit = self.newest.wrapping_add(1).wrapping_mul(self.batches).min(until_wrap);
        let before = self.newest.wrapping_mul(self.batches);
        self.newest_base = self.base.wrapping_add(before.wrapping_mul(self.step));
        self.newest_limit = self.limit.saturating_sub(before);
        self.newest_chunk = self.first_chunk.wrapping_add(self.newest);
        self.newest_first_batch = self.first_batch.wrapping_add(before);
    }

    /// Note what was learnt of phases.
    pub(crate) fn learn(&mut self, phases: &[u64], lessons: u64) {
        if self.lessons != lessons && self.phases.len() == phases.len() {
            self.phases.copy_from_slice(phases);
            self.lessons = lessons;
        }
    }

    /// Empty the window: a control heap pushes out all chunks up to its own.
    ///
    /// Returns by how many chunks the beginning has moved; None if the window is beyond that chunk, and stays as it is.
    pub fn clear(&mut self, control: u64) -> Option<u64> {
        let old = self.first_chunk;
        if control < old {
            return None;
        }
        self.floor = control.saturating_add(1);
        (self.limit, self.newest_limit, self.first_chunk, self.newest) = (0, 0, self.floor, 0);
        Some(self.floor.wrapping_sub(old))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::spec::LayoutSpec;

    /// A window of 4 chunks of 2 batches of 16 ticks, of three sources.
    fn window(more: &str) -> Window {
        let spec = format!(
            "heap_bytes = 8\nsources = \"source\"\ntime = {{ item = 0x1600, step = 16, batches = 2{more} }}\n\
             axes = [{{ name = \"source\", item = 0x4101, size = 3 }}]"
        );
        Window::new(&Layout::new(LayoutSpec::from_toml(&spec).unwrap()).unwrap(), 4)
    }

    fn at(chunk: u64, bits: u32) -> Moment {
        Moment { chunk, batch: 0, epoch_first: 0, epoch_offset: 0, origin: 0, bits }
    }

    #[test]
    fn nothing_of_the_window_is_usable_without_its_newest_chunk() {
        let mut window = window("");
        window.follow(&at(9, 48));
        assert_eq!((window.usable(0), window.usable(1), window.limit), (0, 8, 8));
    }

    #[test]
    fn phases_are_learnt_once() {
        let mut window = window(", phases = \"first\"");
        assert_eq!(*window.phases, [UNKNOWN; 3]);
        window.learn(&[1, 2, UNKNOWN], 1);
        assert_eq!(*window.phases, [1, 2, UNKNOWN]);
        // Nothing was learnt since: the phases are not copied for every heap.
        window.learn(&[7, 7, 7], 1);
        assert_eq!(*window.phases, [1, 2, UNKNOWN]);
        window.learn(&[1, 2, 3], 2);
        assert_eq!(*window.phases, [1, 2, 3]);
    }

    #[test]
    fn window_without_phases_learns_none() {
        let mut window = window("");
        window.learn(&[1, 2, 3], 1);
        assert!(window.phases.is_empty());
    }

    #[test]
    fn window_knows_how_many_bits_timestamps_have_once_that_is_found() {
        let mut window = window("");
        window.follow(&at(9, 48));
        let (limit, base) = (window.limit, window.base);
        assert_eq!((window.follow(&at(9, 8)), window.low_bits), (None, 0xff));
        // 6 x 32 is where it begins, and 256 is beyond the bits: two chunks are left before the wrap.
        assert_eq!((base, limit, window.base, window.limit), (6 * 32, 8, 6 * 32, 4));
        // If the newest chunk is of another epoch, what the window has of the old one cannot be worked out from that.
        let later = Moment { epoch_first: 8, ..at(9, 48) };
        assert_eq!((window.follow(&later), window.low_bits), (None, 0xff));
    }

    #[test]
    fn window_is_emptied_unless_it_is_beyond_the_control_heap() {
        for (control, moved) in [(5, None), (6, Some(1)), (9, Some(4)), (20, Some(15))] {
            let mut window = window("");
            window.follow(&at(9, 48));
            assert_eq!((window.first_chunk, window.clear(control)), (6, moved), "{control}");
            assert_eq!(window.limit, if moved.is_some() { 0 } else { 8 }, "{control}");
        }
    }
}
