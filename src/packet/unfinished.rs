//! Heaps of which some packets have come, but not all, in bounded memory.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::collections::{BTreeSet, HashMap, VecDeque};

/// Heaps that may be unfinished at a time; the oldest goes first. The same for packets of such heaps.
const MOST_HEAPS: usize = 65_536;
const MOST_PACKETS: usize = 1 << 21;

/// Different numbers of bytes that heaps lacked.
const MOST_LACKED: usize = 1024;

/// What tells heaps apart: the numbers of two addresses, and the heap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Heap {
    pub sender: u32,
    pub destination: u32,
    pub counter: u64,
    /// The values of a heap that shares all this with one that came before it; 0 for all others.
    twin: u64,
}

impl Heap {
    pub fn new(sender: u32, destination: u32, counter: u64) -> Self {
        Self { sender, destination, counter, twin: 0 }
    }
}

/// A packet, as a part of its heap.
pub(super) struct Part {
    pub offset: u64,
    pub bytes: u64,
    /// A hash of its items, and one of their values: 0 if it has nothing but what SPEAD adds to every packet.
    pub items: u64,
    pub values: u64,
    /// Whether it has descriptors.
    pub describes: bool,
}

#[derive(Debug)]
struct Entry {
    items: u64,
    values: u64,
    describes: bool,
    lacking: u64,
    offsets: BTreeSet<u64>,
    /// Tells it from other heaps with the same counter.
    number: u64,
}

/// What became of a packet.
pub(super) enum Added {
    /// It is the first of its heap.
    First,
    /// It came before.
    Again,
    /// It is another one, and may be the one to know the heap by: the first with items, or the last without. If the heap
    /// is complete now, it had so many packets.
    More { same_items: bool, tells: bool, packets: Option<u64> },
}

/// Unfinished heaps.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    heaps: HashMap<Heap, Entry>,
    /// From the oldest on; those that are complete by now have another number, or are not there.
    order: VecDeque<(Heap, u64)>,
    packets: usize,
    /// Heaps that share sender and counter with another.
    twins: usize,
    begun: u64,
    /// Heaps that had to go.
    pub given_up: u64,
    /// How many of them lacked so many bytes.
    lacked: HashMap<u64, u64>,
}

impl Unfinished {
    pub fn len(&self) -> usize {
        self.heaps.len()
    }

    /// How many heaps, of those that are unfinished and those that had to go, lack so many bytes.
    pub fn lacking(&self) -> HashMap<u64, u64> {
        let mut all = self.lacked.clone();
        for entry in self.heaps.values() {
            let n = all.entry(entry.lacking).or_default();
            *n = n.saturating_add(1);
        }
        all
    }

    /// Whether a heap, if it is unfinished, has descriptors.
    pub fn describes(&self, heap: &Heap) -> Option<bool> {
        self.heaps.get(heap).map(|entry| entry.describes)
    }

    /// Add a packet that is not all of a heap of `heap_bytes`, or belongs to one that is unfinished.
    pub fn add(&mut self, heap: Heap, part: &Part, heap_bytes: u64) -> Added {
        let heap = self.which(heap, part);
        let Some(entry) = self.heaps.get_mut(&heap) else {
            if part.bytes < heap_bytes {
                self.begin(heap, part, heap_bytes);
            }
            return Added::First;
        };
        if !entry.offsets.insert(part.offset) {
            return Added::Again;
        }
        self.packets = self.packets.saturating_add(1);
        let same_items = entry.describes || part.items == entry.items;
        entry.lacking = entry.lacking.saturating_sub(part.bytes);
        let packets = entry.offsets.len();
        let is_complete = entry.lacking == 0;
        let tells = entry.values == 0 && (part.values != 0 || is_complete);
        if tells {
            (entry.items, entry.values) = (part.items, part.values);
        }
        if is_complete {
            self.remove(&heap);
        }
        self.make_room();
        Added::More { same_items, tells, packets: is_complete.then_some(packets as u64) }
    }

    /// Which of the heaps with the same sender and counter a packet is of: that with its values, if the same part came
    /// with others. Until there are two, other values may be those of a packet.
    fn which(&self, heap: Heap, part: &Part) -> Heap {
        let twin = Heap { twin: part.values, ..heap };
        let is_other = |entry: &Entry| {
            let are_others = entry.values != part.values && entry.items == part.items && !entry.describes;
            are_others && (self.twins > 0 || entry.offsets.contains(&part.offset))
        };
        let is_twin = self.twins > 0 && self.heaps.contains_key(&twin);
        if is_twin || self.heaps.get(&heap).is_some_and(is_other) { twin } else { heap }
    }

    fn begin(&mut self, heap: Heap, part: &Part, heap_bytes: u64) {
        self.begun = self.begun.wrapping_add(1);
        let entry = Entry {
            items: part.items,
            values: part.values,
            describes: part.describes,
            lacking: heap_bytes.saturating_sub(part.bytes),
            offsets: BTreeSet::from([part.offset]),
            number: self.begun,
        };
        self.heaps.insert(heap, entry);
        self.twins = self.twins.saturating_add(usize::from(heap.twin != 0));
        self.order.push_back((heap, self.begun));
        self.packets = self.packets.saturating_add(1);
        self.make_room();
        if self.order.len() > 2 * MOST_HEAPS {
            let heaps = &self.heaps;
            self.order.retain(|(heap, number)| heaps.get(heap).is_some_and(|entry| entry.number == *number));
        }
    }

    fn remove(&mut self, heap: &Heap) {
        if let Some(entry) = self.heaps.remove(heap) {
            self.packets = self.packets.saturating_sub(entry.offsets.len());
            self.twins = self.twins.saturating_sub(usize::from(heap.twin != 0));
        }
    }

    fn make_room(&mut self) {
        while self.heaps.len() > MOST_HEAPS || self.packets > MOST_PACKETS {
            let Some((heap, number)) = self.order.pop_front() else { return };
            let entry = self.heaps.get(&heap).filter(|entry| entry.number == number);
            let Some(lacking) = entry.map(|entry| entry.lacking) else { continue };
            self.remove(&heap);
            self.given_up = self.given_up.saturating_add(1);
            if self.lacked.len() < MOST_LACKED || self.lacked.contains_key(&lacking) {
                let n = self.lacked.entry(lacking).or_default();
                *n = n.saturating_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(counter: u64) -> Heap {
        Heap::new(1, 2, counter)
    }

    fn part(offset: u64) -> Part {
        Part { offset, bytes: 8, items: 0, values: 0, describes: false }
    }

    #[test]
    fn the_oldest_heaps_give_way() {
        let mut unfinished = Unfinished::default();
        for counter in 0..70_000 {
            assert!(matches!(unfinished.add(heap(counter), &part(0), 16), Added::First));
        }
        assert_eq!((unfinished.len(), unfinished.given_up), (MOST_HEAPS, 70_000 - MOST_HEAPS as u64));
        assert!(unfinished.describes(&heap(0)).is_none());
        assert!(matches!(
            unfinished.add(heap(69_999), &part(8), 16),
            Added::More { same_items: true, packets: Some(2), .. }
        ));
    }

    #[test]
    fn heaps_of_any_number_of_packets_take_bounded_memory() {
        let mut unfinished = Unfinished::default();
        for offset in 0..MOST_PACKETS as u64 {
            unfinished.add(heap(0), &part(offset), u64::MAX);
        }
        unfinished.add(heap(1), &part(0), u64::MAX);
        assert_eq!((unfinished.len(), unfinished.given_up, unfinished.packets), (1, 1, 1));
        assert!(unfinished.describes(&heap(0)).is_none());
    }

    #[test]
    fn a_counter_that_comes_again_is_a_new_heap() {
        let mut unfinished = Unfinished::default();
        for _ in 0..3 * MOST_HEAPS {
            assert!(matches!(unfinished.add(heap(5), &part(0), 16), Added::First));
            assert!(matches!(unfinished.add(heap(5), &part(0), 16), Added::Again));
            assert!(matches!(unfinished.add(heap(5), &part(8), 16), Added::More { packets: Some(2), .. }));
        }
        assert_eq!((unfinished.len(), unfinished.packets, unfinished.given_up), (0, 0, 0));
        assert!(unfinished.order.len() <= 2 * MOST_HEAPS);
    }

    #[test]
    fn heaps_with_the_same_counter_are_told_apart_by_their_values() {
        let mut unfinished = Unfinished::default();
        let mut add = |values: u64, offset| unfinished.add(heap(5), &Part { values, ..part(offset) }, 16);
        for values in [7, 8, 9] {
            assert!(matches!(add(values, 0), Added::First));
        }
        assert!(matches!(add(8, 0), Added::Again));
        for values in [9, 7, 8] {
            assert!(matches!(add(values, 8), Added::More { packets: Some(2), .. }));
        }
        assert_eq!((unfinished.len(), unfinished.packets, unfinished.twins), (0, 0, 0));
        // What is whole needs no place.
        let whole = Part { bytes: 16, values: 3, ..part(0) };
        unfinished.add(heap(5), &Part { values: 2, ..part(0) }, 16);
        assert!(matches!(unfinished.add(heap(5), &whole, 16), Added::First));
        assert_eq!((unfinished.len(), unfinished.twins), (1, 0));
    }

    #[test]
    fn items_may_come_behind_the_first_packet() {
        let mut unfinished = Unfinished::default();
        let mut add = |values: u64, offset| unfinished.add(heap(5), &Part { values, ..part(offset) }, 24);
        assert!(matches!(add(0, 8), Added::First));
        assert!(matches!(add(7, 0), Added::More { tells: true, packets: None, .. }));
        assert!(matches!(add(0, 16), Added::More { tells: false, packets: Some(3), .. }));
        // Or not at all.
        assert!(matches!(add(0, 8), Added::First));
        assert!(matches!(add(0, 0), Added::More { tells: false, packets: None, .. }));
        assert!(matches!(add(0, 16), Added::More { tells: true, packets: Some(3), .. }));
    }
}
