//! Heaps that came through several streams of a group: of each, all but one are duplicates.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::collections::BTreeMap;

use crate::filled::Line;

/// Which slots the streams of a group have filled, in chunks that have left the window of some of them.
///
/// A stream sees the duplicates among its own heaps at once, for it has a byte for each slot of its window. Those are
/// nobody else's business: they are compared with those of the other streams when the chunk leaves the window, which is
/// rare.
#[derive(Debug, Default)]
pub struct Copies {
    /// Chunks in the window of each stream, at most.
    window: u64,
    /// First chunk in the window of each member, if it has any.
    firsts: Vec<Option<u64>>,
    /// A byte for each slot of a chunk, in words, by the ID of the chunk.
    rows: BTreeMap<u64, Box<[u64]>>,
}

impl Copies {
    /// Add a member whose window has `window` chunks, and return its number.
    pub fn join(&mut self, window: u64) -> usize {
        self.window = self.window.max(window);
        self.firsts.push(None);
        self.firsts.len().wrapping_sub(1)
    }

    /// A chunk has left the window of a member, who had filled these slots: call `found` with each that another member had
    /// filled too.
    pub fn leave(&mut self, chunk: u64, row: &[Line], mut found: impl FnMut(u64)) {
        if self.firsts.len() <= 1 || row.iter().flat_map(Line::words).all(|word| word == 0) {
            return;
        }
        let none = || row.iter().flat_map(Line::words).map(|_| 0).collect();
        let filled = self.rows.entry(chunk).or_insert_with(none);
        for ((word, own), first_slot) in
            filled.iter_mut().zip(row.iter().flat_map(Line::words)).zip((0_u64..).step_by(8))
        {
            let mut both = *word & own;
            *word |= own;
            while both != 0 {
                found(first_slot.wrapping_add((both.trailing_zeros() / 8).into()));
                both &= both.wrapping_sub(1);
            }
        }
    }

    /// The window of a member begins with a chunk now; without one, it is over. What no window has any more is forgotten.
    pub fn follow(&mut self, member: usize, first: Option<u64>) {
        if let Some(own) = self.firsts.get_mut(member) {
            *own = first;
        }
        let Self { window, firsts, rows } = self;
        let has = |first: u64, chunk: u64| (first..first.saturating_add(*window)).contains(&chunk);
        rows.retain(|&chunk, _| firsts.iter().flatten().any(|&first| has(first, chunk)));
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::filled::Filled;
    use crate::layout::Layout;
    use crate::spec::LayoutSpec;

    /// A chunk of 200 slots leaves the window of a stream that has filled these.
    fn leave(copies: &mut Copies, chunk: u64, slots: &[u64]) -> Vec<u64> {
        let spec = "heap_bytes = 8\ntime = { item = 0x1600, step = 16, batches = 200 }";
        let layout = Layout::new(LayoutSpec::from_toml(spec).unwrap()).unwrap();
        let mut filled = Filled::new(&layout, 1);
        for &slot in slots {
            assert!(!filled.mark(0, slot));
        }
        let mut found = Vec::new();
        filled.slide(1, 0, |_, row| copies.leave(chunk, row, |slot| found.push(slot)));
        found
    }

    #[test]
    fn all_but_one_of_each_heap_are_found() {
        let mut copies = Copies::default();
        let members: Vec<_> = (0..3).map(|_| copies.join(2)).collect();
        for member in members {
            copies.follow(member, Some(7));
        }
        assert!(leave(&mut copies, 7, &[0, 1, 3, 127]).is_empty());
        assert_eq!(leave(&mut copies, 7, &[1, 2, 3, 127, 199]), [1, 3, 127]);
        assert_eq!(leave(&mut copies, 7, &[0, 1, 2, 3, 199]), [0, 1, 2, 3, 199]);
        // Another chunk has slots of its own.
        assert!(leave(&mut copies, 8, &[0, 1, 2, 3]).is_empty());
    }

    #[test]
    fn chunks_are_kept_while_a_window_has_them() {
        let mut copies = Copies::default();
        let (one, two) = (copies.join(2), copies.join(2));
        copies.follow(one, Some(7));
        copies.follow(two, Some(7));
        assert!(leave(&mut copies, 7, &[0]).is_empty() && leave(&mut copies, 8, &[0]).is_empty());
        copies.follow(one, Some(9));
        assert_eq!(copies.rows.len(), 2);
        copies.follow(two, Some(8));
        assert_eq!(copies.rows.len(), 1);
        assert_eq!(leave(&mut copies, 8, &[0]), [0]);
        copies.follow(two, None);
        assert!(copies.rows.is_empty());
    }

    #[test]
    fn single_stream_has_no_copies() {
        let mut copies = Copies::default();
        let one = copies.join(2);
        copies.follow(one, Some(7));
        assert!(leave(&mut copies, 7, &[0]).is_empty());
        assert!(copies.rows.is_empty());
    }
}
