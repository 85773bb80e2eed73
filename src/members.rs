//! The streams of a group, and which of them carry which sources.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::cell::Cell;

use crate::ledger::Ledger;

/// So many counters may be looked at for each heap that leaves the fast path.
const PAID: u64 = 16;

/// The ledgers of a group's streams. What all have placed of a source is asked of those that have placed any of it: mostly
/// one, or two where paths are redundant, however many streams there are.
///
/// When the fast path places the first heap of a source in a stream, nobody hears of it: that costs instructions. So now and
/// then all are looked at; and a stream that leaves the fast path with a heap of a source says so itself.
#[derive(Debug, Default)]
pub(crate) struct Members {
    ledgers: Vec<Ledger>,
    /// A word of each source for each 64 streams, with a bit for each that carries the source.
    carriers: Vec<Box<[Cell<u64>]>>,
    /// How many counters have been paid for.
    credit: Cell<u64>,
}

impl Members {
    /// Add a stream.
    pub fn join(&mut self, ledger: Ledger) {
        if self.ledgers.len() % 64 == 0 {
            self.carriers.push((0..ledger.n_sources()).map(|_| Cell::new(0)).collect());
        }
        self.ledgers.push(ledger);
        self.look(self.ledgers.len() == 2);
    }

    /// All streams.
    pub fn all(&self) -> &[Ledger] {
        &self.ledgers
    }

    /// A stream has left the fast path with a heap of a source, which it may have placed before.
    pub fn meet(&self, own: &Ledger, member: usize, source: u64) {
        self.credit.set(self.credit.get().saturating_add(PAID));
        if own.placed(source) != 0 {
            if let Some(word) = self.carriers.get(member / 64).and_then(|words| words.get(source as usize)) {
                word.set(word.get() | bit(member));
            }
        }
    }

    /// The window has moved on: that pays for looking at all of them once.
    pub fn move_on(&self) {
        self.credit.set(u64::MAX);
    }

    /// Find out who carries which source, if that has been paid for, or is urgent. Of one stream nobody asks.
    pub fn look(&self, is_urgent: bool) {
        let cost = self.ledgers.iter().map(Ledger::n_sources).fold(0, u64::saturating_add);
        if self.ledgers.len() <= 1 || (!is_urgent && self.credit.get() < cost) {
            return;
        }
        self.credit.set(0);
        for (member, ledger) in self.ledgers.iter().enumerate() {
            for (source, word) in (0_u64..).zip(self.carriers.get(member / 64).into_iter().flatten()) {
                if ledger.placed(source) != 0 {
                    word.set(word.get() | bit(member));
                }
            }
        }
    }

    /// Ask all streams that carry a source, for all that is known.
    #[inline(always)]
    fn ask(&self, source: u64, mut ask: impl FnMut(&Ledger)) {
        if let [only] = self.ledgers.as_slice() {
            return ask(only);
        }
        for (ledgers, words) in self.ledgers.chunks(64).zip(&self.carriers) {
            let mut left = words.get(source as usize).map_or(0, Cell::get);
            while let Some(ledger) = ledgers.get(left.trailing_zeros() as usize) {
                ask(ledger);
                left &= left.wrapping_sub(1);
            }
        }
    }

    /// Heaps of a source that all streams have placed.
    #[inline]
    pub fn placed(&self, source: u64) -> u64 {
        let mut sum = 0_u64;
        self.ask(source, |ledger| sum = sum.wrapping_add(ledger.placed(source)));
        sum
    }

    /// The newest batch of a source that any stream has placed; negative if there is none.
    #[inline]
    pub fn newest(&self, source: u64) -> i64 {
        let mut newest = -1;
        self.ask(source, |ledger| newest = newest.max(ledger.newest_batch(source)));
        newest
    }
}

/// The bit of a stream in its word.
fn bit(member: usize) -> u64 {
    1_u64.wrapping_shl(member as u32)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may panic")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::epochs::Epochs;
    use crate::layout::Layout;
    use crate::spec::LayoutSpec;

    const SOURCES: u64 = 4;

    fn members(streams: usize) -> Members {
        let text = format!(
            "heap_bytes = 8\nsources = \"source\"\ntime = {{ item = 0x1600, step = 16, batches = 1 }}\n\
             axes = [{{ name = \"source\", item = 0x4101, size = {SOURCES} }}]"
        );
        let layout = Layout::new(LayoutSpec::from_toml(&text).unwrap()).unwrap();
        let mut members = Members::default();
        for _ in 0..streams {
            members.join(Ledger::new(&layout, 1, &Arc::<Epochs>::default()));
        }
        members
    }

    fn place(members: &Members, member: usize, source: u64, batch: u64) {
        members.all()[member].too_old(source, batch);
    }

    #[test]
    fn sums_are_of_all_streams_however_many() {
        for streams in [1, 2, 64, 65, 200] {
            let members = members(streams);
            for member in (0..streams).step_by(3) {
                place(&members, member, 1, 1000 + member as u64);
            }
            place(&members, streams - 1, 2, 7);
            members.look(true);
            assert_eq!(members.carriers.len(), streams.div_ceil(64));
            let of_source = |source| (members.placed(source), members.newest(source));
            let carriers = streams.div_ceil(3) as u64;
            assert_eq!(of_source(0), (0, -1));
            assert_eq!(of_source(1), (carriers, 1000 + 3 * (carriers as i64 - 1)));
            assert_eq!(of_source(2), (1, 7));
        }
    }

    #[test]
    fn stream_that_asks_is_known_at_once_and_others_when_that_is_paid_for() {
        let members = members(2);
        members.look(true);
        place(&members, 0, 1, 5);
        place(&members, 1, 1, 6);
        members.meet(&members.all()[1], 1, 1);
        assert_eq!((members.placed(1), members.newest(1)), (1, 6));
        // Who is known is counted to the last heap.
        place(&members, 1, 1, 8);
        assert_eq!((members.placed(1), members.newest(1)), (2, 8));
        // One heap has paid for more counters than these few.
        members.look(false);
        assert_eq!(members.placed(1), 3);
        place(&members, 0, 2, 5);
        members.look(false);
        assert_eq!(members.placed(2), 0);
        members.move_on();
        members.look(false);
        assert_eq!(members.placed(2), 1);
        place(&members, 0, 3, 5);
        members.look(true);
        assert_eq!(members.placed(3), 1);
    }

    #[test]
    fn all_are_looked_at_when_heaps_have_paid_for_each_counter() {
        for (streams, heaps) in [(4, 1), (5, 2), (8, 2), (9, 3)] {
            let members = members(streams);
            place(&members, 0, 1, 5);
            for heap in 0..heaps {
                assert_eq!(members.placed(1), 0, "{heap} of {heaps} heaps for {streams} streams");
                members.meet(&members.all()[0], 0, 0);
                members.look(false);
            }
            assert_eq!(members.placed(1), 1, "{streams} streams");
        }
    }

    #[test]
    fn stream_that_joins_late_hides_nobody() {
        let mut members = members(1);
        place(&members, 0, 1, 5);
        let late = members.all()[0].clone();
        members.join(late);
        assert_eq!(members.placed(1), 2, "the same ledger twice");
    }
}
