//! Which slots of the window's chunks are filled: how duplicates are found.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::cell::Cell;

use crate::layout::Layout;

/// Which slots of the chunks of the window are filled: a byte for each, 1 once a heap was placed there.
///
/// spead2 keeps as many bytes for the same slots. In bits, each heap would have to wait for what the one before it has
/// written to the same word.
#[derive(Debug)]
pub struct Filled {
    /// The newest batch placed, counted from chunk 0.
    pub(crate) newest_batch: u64,
    /// The newest chunk, counted from the start of the window.
    newest: u64,
    /// The first slot of that chunk.
    newest_row: *const Cell<u8>,
    /// Where in `slots` each chunk of the window begins, oldest chunk first.
    rows: Box<[usize]>,
    /// Not in a box, whose content no other pointer may reach.
    slots: Vec<Line>,
    /// Lines of a chunk.
    lines: usize,
    /// Slots that a window has for a source.
    slots_of_source: u64,
    /// Of each source, its duplicates in a row.
    runs: Box<[Run]>,
}

/// So many slots that no two streams write to lines that a processor fetches together.
#[derive(Clone, Debug)]
#[repr(align(128))]
pub struct Line(Cell<[u8; Self::SLOTS]>);

impl Line {
    const SLOTS: usize = 128;

    /// The slots, eight in each word, the first of them in the lowest byte.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        let slots = self.0.get();
        (0..Self::SLOTS).step_by(8).map(move |first| {
            let eight = slots.get(first..).and_then(<[u8]>::first_chunk);
            eight.map_or(0, |&eight| u64::from_le_bytes(eight))
        })
    }
}

/// Duplicates of a source since a heap of it was new.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// How many heaps had been new by then.
    fresh: u64,
    duplicates: u64,
}

impl Filled {
    /// No slot filled, in `window` chunks.
    #[must_use]
    pub fn new(layout: &Layout, window: u64) -> Self {
        let lines = (layout.chunk_heaps() as usize).div_ceil(Line::SLOTS);
        let mut filled = Self {
            newest_batch: 0,
            newest: 0,
            newest_row: std::ptr::null(),
            rows: (0..window as usize).map(|chunk| chunk.wrapping_mul(lines)).collect(),
            slots: vec![Line(Cell::new([0; Line::SLOTS])); lines.wrapping_mul(window as usize)],
            lines,
            slots_of_source: window
                .wrapping_mul(layout.chunk_heaps())
                .checked_div(layout.n_sources())
                .unwrap_or(u64::MAX),
            runs: vec![Run::default(); layout.n_sources() as usize].into(),
        };
        filled.begin(0);
        filled
    }

    /// The newest chunk, counted from the start of the window.
    #[inline]
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// The first slot of the newest chunk, behind which are all others of it.
    #[inline(always)]
    pub(crate) fn newest_row(&self) -> *const Cell<u8> {
        self.newest_row
    }

    /// The first slot of a chunk, counted from the start of the window, that is older than the newest; None of any other.
    #[inline(always)]
    pub(crate) fn older_row(&self, chunk: u64) -> Option<*const Cell<u8>> {
        if chunk >= self.newest { None } else { Some(self.row(chunk).as_ptr().cast()) }
    }

    /// The lines of a chunk, counted from the start of the window; none if there is no such chunk.
    fn row(&self, chunk: u64) -> &[Line] {
        let lines = self.rows.get(chunk as usize).map(|&row| row..row.wrapping_add(self.lines));
        lines.and_then(|lines| self.slots.get(lines)).unwrap_or_default()
    }

    /// Note that a slot of a chunk is filled. Whether it was already.
    #[inline]
    #[must_use]
    pub fn mark(&mut self, chunk: u64, index: u64) -> bool {
        let index = index as usize;
        let Some(Line(line)) = self.row(chunk).get(index / Line::SLOTS) else { return false };
        let line: &Cell<[u8]> = line;
        let slot = line.as_slice_of_cells().get(index % Line::SLOTS);
        slot.is_some_and(|slot| slot.replace(1) != 0)
    }

    /// A duplicate of a source has come, of which so many heaps were new so far. Whether there are more of them in a row than
    /// slots, so that at least one heap has come three times.
    pub(crate) fn repeats(&mut self, source: u64, fresh: u64) -> bool {
        let Some(run) = self.runs.get_mut(source as usize) else { return false };
        if run.fresh != fresh {
            *run = Run { fresh, duplicates: 0 };
        }
        run.duplicates = run.duplicates.saturating_add(1);
        run.duplicates > fresh.min(self.slots_of_source)
    }

    /// Follow the window, which has moved by `chunks` and ends with `newest` now.
    ///
    /// What leaves it is forgotten, after a call of `left` with the number of each chunk, counted from the former start of
    /// the window, and its slots.
    pub fn slide(&mut self, chunks: u64, newest: u64, mut left: impl FnMut(u64, &[Line])) {
        let moved = chunks.min(self.rows.len() as u64);
        for chunk in 0..moved {
            let row = self.row(chunk);
            left(chunk, row);
            for line in row {
                line.0.set([0; Line::SLOTS]);
            }
        }
        self.rows.rotate_left(moved as usize);
        self.begin(newest);
    }

    fn begin(&mut self, newest: u64) {
        self.newest = newest;
        // There is always one: the pointer must be good, for nobody checks it.
        let row = self.row(newest);
        if !row.is_empty() {
            self.newest_row = row.as_ptr().cast();
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::spec::LayoutSpec;

    #[test]
    fn older_chunks_have_slots_of_their_own_for_who_asks_for_those() {
        let text = "heap_bytes = 8\ntime = { item = 0x1600, step = 16, batches = 2 }\naxes = []";
        let layout = Layout::new(LayoutSpec::from_toml(text).unwrap()).unwrap();
        let mut filled = Filled::new(&layout, 4);
        filled.slide(0, 2, |_, _| ());
        let rows = [0, 1].map(|chunk| filled.older_row(chunk));
        assert_eq!(rows, [0, 1].map(|chunk| Some(filled.row(chunk).as_ptr().cast())));
        assert_ne!(rows.first(), rows.last());
        // The newest is left to others, and there is nothing behind it.
        assert_eq!([2, 3, 4].map(|chunk| filled.older_row(chunk)), [None; 3]);
    }
}
