//! The heaps of which some packets came, and others may: a table of bounded size.

use std::collections::{HashMap, VecDeque};

use crate::packet::mend::{ABSENT, Arrival};
use crate::packet::plan::Plan;
use crate::packet::unused::Unused;

/// Most heaps in the table: twice as many as spead2 is given at most.
const MOST_HEAPS: usize = 1 << 14;
/// Most bytes of packets that are held.
const MOST_HELD: usize = 1 << 26;
/// Packets are held for so many nanoseconds of the packets' own clock.
const LONGEST: i64 = 1_000_000_000;

/// What tells heaps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The sender, where senders count by themselves.
    pub sender: u64,
    /// The counter that was sent.
    pub counter: u64,
    /// Stands for the values of items, where they tell heaps apart.
    pub items: u64,
}

/// The bytes of a heap's payload that are the data: from one place to another, but for the holes in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    start: u64,
    end: u64,
    /// Where other bytes begin and end, in order.
    holes: Box<[(u64, u64)]>,
    /// How many are the data.
    pub bytes: u64,
}

impl Cut {
    /// Bytes in one piece.
    pub fn whole(start: u64, end: u64) -> Self {
        Self::with_holes(start, end, Box::default())
    }

    /// All bytes from one place to another, but for the holes in between, which are in order.
    pub fn with_holes(start: u64, end: u64, holes: Box<[(u64, u64)]>) -> Self {
        let gone = holes.iter().map(|(from, to)| to.saturating_sub(*from)).fold(0, u64::saturating_add);
        Self { start, end, holes, bytes: end.saturating_sub(start).saturating_sub(gone) }
    }

    /// The pieces of the data, in order: where each begins and ends. Some may be empty.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let starts = std::iter::once(self.start).chain(self.holes.iter().map(|hole| hole.1));
        starts.zip(self.holes.iter().map(|hole| hole.0).chain(std::iter::once(self.end)))
    }
}

/// What the first packet of a heap says of all of it.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// The item whose bytes are the data.
    pub payload_item: u64,
    /// Where these bytes are in the payload of the heap.
    pub cut: Cut,
    /// Whether it ends the stream.
    pub stops: bool,
    /// Whether packets can stay as they are.
    pub keeps_packets: bool,
}

/// A packet that waits for the first of its heap.
#[derive(Debug)]
pub(super) struct Held {
    pub data: Box<[u8]>,
    pub arrival: Arrival,
}

/// A heap of which some packets came.
#[derive(Debug)]
pub(super) struct OpenHeap {
    /// Its number in what spead2 gets, if that is not the one that was sent.
    pub counter: u64,
    /// Who sent its first packet.
    sender: u64,
    pub head: Option<Head>,
    /// Values of the items that are wanted.
    pub values: Box<[u64]>,
    /// Items whose value is still to come: which of the wanted, and where in the heap.
    pub pending: Vec<(usize, u64)>,
    pub held: Vec<Held>,
    /// Bytes of payload that came.
    pub received: u64,
    /// Why the heap cannot be used.
    pub unused: Option<Unused>,
    /// Offsets of the packets that came, in order, so that none counts twice.
    offsets: Vec<u64>,
    /// Bytes of what its first packet has said.
    head_bytes: usize,
    since: i64,
    serial: u64,
}

impl OpenHeap {
    /// Whether its packets can be written.
    pub fn is_ready(&self) -> bool {
        self.head.is_some() && self.pending.is_empty()
    }

    /// Note what its first packet says. Returns how many bytes more are held now.
    pub fn begin(&mut self, head: Head, values: &[u64], pending: &[(usize, u64)]) -> usize {
        self.head = Some(head);
        self.values = values.into();
        self.pending = pending.into();
        let before = self.head_bytes;
        self.head_bytes = size_of_val(values).saturating_add(size_of_val(pending));
        self.head_bytes.saturating_sub(before)
    }

    /// Note that a packet came. Returns how many bytes more are held now.
    pub fn note(&mut self, offset: u64, bytes: u64) -> usize {
        let place = match self.offsets.last() {
            Some(last) if *last >= offset => self.offsets.binary_search(&offset),
            _ => Err(self.offsets.len()),
        };
        let Err(place) = place else { return 0 };
        self.offsets.insert(place, offset);
        self.received = self.received.saturating_add(bytes);
        size_of::<u64>()
    }

    /// Take over packets of the heap that were held elsewhere. Returns how many bytes more are held now.
    pub fn adopt(&mut self, packets: Vec<Held>) -> usize {
        let bytes = packets.iter().map(|packet| packet.data.len()).sum();
        self.held.extend(packets);
        bytes
    }
}

/// The heaps of which some packets came.
#[derive(Debug, Default)]
pub(super) struct Heaps {
    table: HashMap<Key, OpenHeap>,
    /// In the order in which they were opened, with their serial numbers; some are closed.
    order: VecDeque<(Key, u64)>,
    /// Likewise, without those at its front that hold no packets any more.
    waiting: VecDeque<(Key, u64)>,
    serial: u64,
    held_bytes: usize,
}

impl Heaps {
    /// Find a heap, or open it, if that needs be with the number that spead2 gets.
    pub fn open(&mut self, key: Key, arrival: Arrival, counter: impl FnOnce() -> u64) -> &mut OpenHeap {
        let serial = &mut self.serial;
        let (order, waiting) = (&mut self.order, &mut self.waiting);
        self.table.entry(key).or_insert_with(|| {
            *serial = serial.wrapping_add(1);
            order.push_back((key, *serial));
            waiting.push_back((key, *serial));
            OpenHeap {
                counter: counter(),
                sender: arrival.sender,
                head: None,
                values: Box::default(),
                offsets: Vec::new(),
                pending: Vec::new(),
                held: Vec::new(),
                received: 0,
                unused: None,
                head_bytes: 0,
                since: arrival.time,
                serial: *serial,
            }
        })
    }

    /// Whether there is a heap of this name that another sender has begun.
    pub fn is_shared(&self, key: &Key, sender: u64) -> bool {
        self.table.get(key).is_some_and(|heap| heap.sender != sender)
    }

    /// Note that so many bytes more are held now.
    pub fn hold(&mut self, bytes: usize) {
        self.held_bytes = self.held_bytes.saturating_add(bytes);
    }

    /// Note that packets are no longer held.
    pub fn release(&mut self, held: &[Held]) {
        let bytes: usize = held.iter().map(|packet| packet.data.len()).sum();
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
    }

    /// Close the heap of this name if other values of its items place it elsewhere: senders have come round to its counter
    /// while it lacked packets. Gives the number of packets that were held.
    pub fn close_another(&mut self, key: &Key, plan: &Plan, values: &[u64]) -> u64 {
        let differs = |heap: &OpenHeap| {
            let both = plan.wanted.iter().zip(heap.values.iter().zip(values)).filter(|(wanted, _)| wanted.places);
            both.into_iter().any(|(_, (&one, &other))| one != ABSENT && other != ABSENT && one != other)
        };
        if !self.table.get(key).is_some_and(differs) {
            return 0;
        }
        self.close(key).map_or(0, |heap| heap.held.len() as u64)
    }

    /// Close a heap, and give it.
    pub fn close(&mut self, key: &Key) -> Option<OpenHeap> {
        let heap = self.table.remove(key)?;
        self.release(&heap.held);
        let noted = size_of_val(heap.offsets.as_slice()).saturating_add(heap.head_bytes);
        self.held_bytes = self.held_bytes.saturating_sub(noted);
        Some(heap)
    }

    /// Close the oldest heap if there are too many, or too much is held, or packets are held for too long.
    ///
    /// Call it until there is none; it gives the number of packets that were held.
    pub fn close_excess(&mut self, now: i64) -> Option<u64> {
        while let Some(&(key, serial)) = self.waiting.front() {
            let waits = |heap: &&OpenHeap| heap.serial == serial && !heap.is_ready() && heap.unused.is_none();
            let Some(heap) = self.table.get(&key).filter(waits) else {
                self.waiting.pop_front();
                continue;
            };
            if now.saturating_sub(heap.since) <= LONGEST {
                break;
            }
            self.waiting.pop_front();
            return self.close(&key).map(|heap| heap.held.len() as u64);
        }
        while let Some(&(key, serial)) = self.order.front() {
            if self.table.get(&key).is_none_or(|heap| heap.serial != serial) {
                self.order.pop_front(); // it is closed already
                continue;
            }
            let many = self.table.len() > MOST_HEAPS || self.order.len() > 2 * MOST_HEAPS;
            if !many && self.held_bytes <= MOST_HELD {
                return None;
            }
            self.order.pop_front();
            return self.close(&key).map(|heap| heap.held.len() as u64);
        }
        None
    }

    /// Close all; gives the number of packets that were held.
    pub fn close_all(&mut self) -> u64 {
        self.order.clear();
        self.waiting.clear();
        self.held_bytes = 0;
        self.table.drain().map(|(_, heap)| heap.held.len() as u64).sum()
    }

    /// Bytes of packets that are held, and heaps in the table.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.held_bytes, self.table.len().max(self.order.len()))
    }
}
