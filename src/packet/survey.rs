//! Gathers packets into heaps, items, lengths and senders, without a layout. `speadrx.survey` in Python is made of it.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};

use super::addresses::{Address, Addresses};
use super::capture::Datagram;
use super::spead::{
    DESCRIPTOR, Fault, HEAP_COUNTER, HEAP_LENGTH, PAYLOAD_LENGTH, PAYLOAD_OFFSET, Packet, Pointer, STREAM_CONTROL,
};
use super::unfinished::{Added, Heap, Part, Unfinished};

/// Limits, so that garbage cannot fill the memory: kinds of heaps, incomplete heaps, packets of descriptors.
const MOST_KINDS: usize = 4096;
const MOST_UNSIZED: usize = 65_536;
const MOST_DESCRIPTOR_PACKETS: usize = 4096;
/// The longest heap of descriptors that is accepted, because it is put together in memory.
const MOST_DESCRIPTOR_BYTES: u64 = 1 << 20;
/// The value of stream control that ends a stream.
const STREAM_STOP: u64 = 2;

/// Heaps of one destination whose first packets have the same pointers in the same order.
#[derive(Debug)]
pub struct Kind {
    /// Number of the destination's address.
    pub destination: u32,
    /// Bits of an immediate value or of an address.
    pub address_bits: u32,
    /// The immediate bit and the ID of each pointer.
    pub keys: Box<[u64]>,
    /// Whether each is a packet that was taken as a whole heap, because spead2 drops it as it is.
    pub whole: bool,
    /// The value of each pointer: a row for each heap.
    pub values: Vec<u64>,
    /// Bytes of the payload of each heap.
    pub bytes: Vec<u64>,
    /// The position of each heap among all that were kept, from 1 on.
    pub numbers: Vec<u64>,
    /// Number of the sender's address of each heap.
    pub senders: Vec<u64>,
}

/// Plain counts; `speadrx.survey.Survey` says what they mean.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "see above")]
pub struct Counts {
    pub packets: u64,
    pub bytes: u64,
    pub heaps: u64,
    pub unsized_heaps: u64,
    pub empty: u64,
    pub stops: u64,
    pub descriptors: u64,
    pub duplicate_packets: u64,
    pub not_repeated: u64,
    pub late_items: u64,
    pub trailing: u64,
    pub unkept: u64,
    pub incomplete: u64,
}

/// What packets carry, in bounded memory.
#[derive(Debug)]
pub struct Survey {
    counts: Counts,
    /// When the first and the last packet came, in seconds.
    times: Option<(f64, f64)>,
    undecodable: BTreeMap<Fault, u64>,
    packets_per_heap: BTreeMap<u64, u64>,
    addresses: Addresses,
    kinds: Vec<Kind>,
    /// Where the kind of a heap is, by a hash of what makes it one.
    by_hash: HashMap<u64, Vec<usize>>,
    hasher: RandomState,
    /// The kind that was found last for each destination, by its number.
    newest: Vec<usize>,
    /// Values of items that may still be kept, and heaps that were.
    room: usize,
    kept: u64,
    unfinished: Unfinished,
    unsized_heaps: HashSet<Heap>,
    descriptor_packets: Vec<Box<[u8]>>,
}

/// A packet on its way, with the numbers of its addresses.
#[derive(Clone, Copy)]
struct Incoming<'a> {
    sender: u32,
    destination: u32,
    packet: Packet<'a>,
}

/// What a packet is to its heap: whether it is the first to come, and whether it tells the items of the heap.
#[derive(Clone, Copy, Default)]
struct Came {
    is_first: bool,
    tells: bool,
}

impl Survey {
    /// A survey that keeps at most so many values of items. Heaps after that are counted only.
    #[must_use]
    pub fn new(most_values: usize) -> Self {
        Self {
            counts: Counts::default(),
            times: None,
            undecodable: BTreeMap::new(),
            packets_per_heap: BTreeMap::new(),
            addresses: Addresses::default(),
            kinds: Vec::new(),
            by_hash: HashMap::new(),
            hasher: RandomState::new(),
            newest: Vec::new(),
            room: most_values,
            kept: 0,
            unfinished: Unfinished::default(),
            unsized_heaps: HashSet::new(),
            descriptor_packets: Vec::new(),
        }
    }

    /// Plain counts.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let incomplete = self.unfinished.given_up.saturating_add(self.unfinished.len() as u64);
        Counts { incomplete, ..self.counts }
    }

    /// Incomplete heaps, by the bytes that they lack.
    #[must_use]
    pub fn lacking(&self) -> HashMap<u64, u64> {
        self.unfinished.lacking()
    }

    /// When the first and the last packet came, in seconds.
    #[must_use]
    pub fn times(&self) -> Option<(f64, f64)> {
        self.times
    }

    /// Packets that spead2 would drop, by reason.
    #[must_use]
    pub fn undecodable(&self) -> &BTreeMap<Fault, u64> {
        &self.undecodable
    }

    /// Complete heaps, by their number of packets.
    #[must_use]
    pub fn packets_per_heap(&self) -> &BTreeMap<u64, u64> {
        &self.packets_per_heap
    }

    /// Addresses and their traffic.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The kinds of heaps that were kept.
    #[must_use]
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// Packets of heaps with descriptors.
    #[must_use]
    pub fn descriptor_packets(&self) -> &[Box<[u8]>] {
        &self.descriptor_packets
    }

    /// Add a datagram of a capture.
    #[expect(clippy::cast_precision_loss, reason = "as Python has times")]
    pub fn add_datagram(&mut self, datagram: &Datagram<'_>) {
        let sender = self.addresses.number(&Address::from(datagram.source));
        let destination = self.addresses.number(&Address::from(datagram.destination));
        self.add(datagram.time as f64 / 1e9, sender, destination, datagram.payload, datagram.length);
    }

    /// Add a packet that came at a time, in seconds, from one address to another.
    pub fn add_packet(&mut self, time: f64, sender: &Address, destination: &Address, data: &[u8], length: usize) {
        let (sender, destination) = (self.addresses.number(sender), self.addresses.number(destination));
        self.add(time, sender, destination, data, length);
    }

    fn add(&mut self, time: f64, sender: u32, destination: u32, data: &[u8], length: usize) {
        let first = self.times.map_or(time, |(first, _)| first);
        self.times = Some((first, time));
        count(&mut self.counts.packets);
        self.counts.bytes = self.counts.bytes.wrapping_add(length as u64);
        self.addresses.add_packet(sender, destination, length as u64);
        let read = Packet::read(data, length);
        let fault = match &read {
            Ok(packet) => packet.check().err(),
            Err(fault) => Some(*fault),
        };
        if let Some(fault) = fault {
            count(self.undecodable.entry(fault).or_default());
            self.addresses.add_undecodable(sender, destination);
        }
        let Ok(packet) = read else { return };
        let incoming = Incoming { sender, destination, packet };
        match fault {
            Some(Fault::Specials | Fault::Heap) => self.keep_whole(incoming),
            Some(_) => {}
            None => self.add_decoded(incoming, data),
        }
    }

    fn add_decoded(&mut self, incoming: Incoming<'_>, data: &[u8]) {
        let Incoming { sender, destination, packet } = incoming;
        if packet.check_end().is_err() {
            count(&mut self.counts.trailing);
        }
        let heap = Heap::new(sender, destination, packet.heap_counter.unwrap_or_default());
        let Some(heap_bytes) = packet.heap_bytes else {
            if !self.unsized_heaps.contains(&heap) {
                count(&mut self.counts.unsized_heaps);
                if self.unsized_heaps.len() < MOST_UNSIZED {
                    self.unsized_heaps.insert(heap);
                }
            }
            self.keep_whole(incoming);
            return;
        };
        let came = self.add_part(heap, heap_bytes, &packet, data);
        if came.is_first {
            count(&mut self.counts.heaps);
            self.addresses.add_heap(sender, destination);
        }
        if came.tells {
            self.add_heap(incoming, heap_bytes);
        }
    }

    /// Note that a packet came.
    fn add_part(&mut self, heap: Heap, heap_bytes: u64, packet: &Packet<'_>, data: &[u8]) -> Came {
        let payload = packet.payload_bytes.unwrap_or_default();
        let describes = heap_bytes <= MOST_DESCRIPTOR_BYTES && is_described(packet);
        // Nearly all heaps of one packet come where no heap is unfinished.
        let is_alone = payload == heap_bytes;
        let known = if self.unfinished.len() == 0 { None } else { self.unfinished.describes(&heap) };
        if known.unwrap_or(describes) && self.descriptor_packets.len() < MOST_DESCRIPTOR_PACKETS {
            self.descriptor_packets.push(data.into());
        }
        if known.is_none() && is_alone {
            count(self.packets_per_heap.entry(1).or_default());
            return Came { is_first: true, tells: true };
        }
        let part = Part {
            offset: packet.offset.unwrap_or_default(),
            bytes: payload,
            items: self.hash_items(packet),
            values: hash_values(packet),
            describes,
        };
        match self.unfinished.add(heap, &part, heap_bytes) {
            Added::First => {
                if is_alone {
                    count(self.packets_per_heap.entry(1).or_default());
                }
                Came { is_first: true, tells: is_alone || part.values != 0 }
            }
            Added::Again => {
                count(&mut self.counts.duplicate_packets);
                Came::default()
            }
            Added::More { same_items, tells, packets } => {
                self.counts.not_repeated = self.counts.not_repeated.wrapping_add(u64::from(!same_items));
                let late = tells && part.values != 0;
                self.counts.late_items = self.counts.late_items.wrapping_add(u64::from(late));
                if let Some(packets) = packets {
                    count(self.packets_per_heap.entry(packets).or_default());
                }
                Came { is_first: false, tells }
            }
        }
    }

    fn hash_items(&self, packet: &Packet<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        keys(packet).for_each(|key| hasher.write_u64(key));
        hasher.finish()
    }

    /// Add a heap by the packet that tells its items.
    fn add_heap(&mut self, incoming: Incoming<'_>, heap_bytes: u64) {
        let packet = &incoming.packet;
        let stops = |pointer: &Pointer| pointer.immediate && pointer.id == STREAM_CONTROL;
        if packet.pointers().filter(stops).last().is_some_and(|pointer| pointer.value == STREAM_STOP) {
            count(&mut self.counts.stops);
        } else if is_described(packet) && packet.pointers().all(|pointer| is_no_data(pointer.id)) {
            count(&mut self.counts.descriptors);
        } else if heap_bytes == 0 {
            count(&mut self.counts.empty);
        } else if !self.keep(incoming, heap_bytes, false) {
            count(&mut self.counts.unkept);
        }
    }

    /// Keep the values of a packet that spead2 drops, as those of a heap.
    fn keep_whole(&mut self, incoming: Incoming<'_>) {
        let packet = &incoming.packet;
        let room = packet.packet_bytes.saturating_sub(packet.start()) as u64;
        let bytes = packet.payload_bytes.unwrap_or(room).min(room);
        if bytes > 0 {
            self.keep(incoming, bytes, true);
        }
    }

    /// Keep the values of a heap, if there is room.
    fn keep(&mut self, incoming: Incoming<'_>, bytes: u64, whole: bool) -> bool {
        let Incoming { sender, destination, packet } = incoming;
        let is_of = |kind: &Kind| {
            (kind.destination, kind.address_bits, kind.whole) == (destination, packet.address_bits, whole)
                && kind.keys.iter().copied().eq(keys(&packet))
        };
        let index = destination as usize;
        if self.newest.len() <= index {
            self.newest.resize(index.saturating_add(1), 0);
        }
        let newest = self.newest.get(index).copied().unwrap_or_default();
        let known = self.kinds.get(newest).is_some_and(is_of).then_some(newest);
        let Some(at) = known.or_else(|| self.find_kind(&incoming, whole)) else { return false };
        let Some(kind) = self.kinds.get_mut(at) else { return false };
        let Some(room) = self.room.checked_sub(kind.keys.len()) else { return false };
        if let Some(newest) = self.newest.get_mut(index) {
            *newest = at;
        }
        self.room = room;
        count(&mut self.kept);
        let begin = kind.values.len();
        kind.values.extend(packet.pointers().map(|pointer| pointer.value));
        if kind.values.len().wrapping_sub(begin) != kind.keys.len() {
            // Some pointers came twice: the last value counts, in the first place.
            kind.values.truncate(begin);
            let last = |key: &u64| packet.pointers().filter(|pointer| self::key(&packet, pointer) == *key).last();
            kind.values.extend(kind.keys.iter().map(|key| last(key).map_or(0, |pointer| pointer.value)));
        }
        kind.bytes.push(bytes);
        kind.numbers.push(self.kept);
        kind.senders.push(sender.into());
        true
    }

    /// Find the kind of a heap, or make one if there is room.
    fn find_kind(&mut self, incoming: &Incoming<'_>, whole: bool) -> Option<usize> {
        let Incoming { destination, packet, .. } = incoming;
        let mut distinct: Vec<u64> = Vec::new();
        let mut seen = HashSet::new();
        distinct.extend(keys(packet).filter(|&key| seen.insert(key)));
        let hash = self.hasher.hash_one((destination, packet.address_bits, whole, &distinct));
        let is_it = |kind: &Kind| {
            (kind.destination, kind.address_bits, kind.whole) == (*destination, packet.address_bits, whole)
                && *kind.keys == *distinct
        };
        let found = self.by_hash.get(&hash).into_iter().flatten();
        let mut found = found.filter(|&&at| self.kinds.get(at).is_some_and(is_it));
        if let Some(&at) = found.next() {
            return Some(at);
        }
        if self.kinds.len() >= MOST_KINDS || self.room < distinct.len() {
            return None;
        }
        let at = self.kinds.len();
        self.by_hash.entry(hash).or_default().push(at);
        self.kinds.push(Kind {
            destination: *destination,
            address_bits: packet.address_bits,
            keys: distinct.into(),
            whole,
            values: Vec::new(),
            bytes: Vec::new(),
            numbers: Vec::new(),
            senders: Vec::new(),
        });
        Some(at)
    }
}

#[inline]
fn count(counter: &mut u64) {
    *counter = counter.wrapping_add(1);
}

/// The immediate bit and the ID of a pointer, as Python has them.
#[inline]
fn key(packet: &Packet<'_>, pointer: &Pointer) -> u64 {
    pointer.id | u64::from(pointer.immediate).wrapping_shl(63_u32.wrapping_sub(packet.address_bits))
}

fn keys<'a>(packet: &Packet<'a>) -> impl Iterator<Item = u64> + use<'a> {
    let packet = *packet;
    packet.pointers().map(move |pointer| key(&packet, &pointer))
}

/// A hash of the values of all items but those that SPEAD adds to every packet; 0 if there are no others.
fn hash_values(packet: &Packet<'_>) -> u64 {
    packet.pointers().filter(|pointer| !matches!(pointer.id, 0..=PAYLOAD_LENGTH)).fold(0, |hash: u64, pointer| {
        let word = key(packet, &pointer).rotate_left(48) ^ pointer.value;
        (hash.rotate_left(5) ^ word).wrapping_mul(0x517C_C1B7_2722_0A95).max(1)
    })
}

fn is_described(packet: &Packet<'_>) -> bool {
    packet.pointers().any(|pointer| !pointer.immediate && pointer.id == DESCRIPTOR)
}

/// Padding, descriptors, stream control, and the items that SPEAD adds to every packet.
fn is_no_data(id: u64) -> bool {
    matches!(id, 0 | HEAP_COUNTER | HEAP_LENGTH | PAYLOAD_OFFSET | PAYLOAD_LENGTH | DESCRIPTOR | STREAM_CONTROL)
}
