//! Packets made such that spead2 takes them, by what a layout says of them.
//!
//! A packet that spead2 would take, and to which nothing is to be done, stays as it is. Any other is written anew, in the
//! flavour 64-48, with the items that the layout uses and no others. A packet that cannot be used is counted by its reason.
//!
//! spead2 takes the items of a heap from the packet of it that comes first. So packets wait here until the packet with the
//! items has come.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::layout::Layout;
use crate::packet::declared::Synthetic;
use crate::packet::heaps::{Cut, Head, Heaps, Held, Key, OpenHeap};
use crate::packet::plan::{Counters, Part, Plan};
use crate::packet::spead::{
    DESCRIPTOR, HEAP_COUNTER, HEAP_LENGTH, PAYLOAD_LENGTH, PAYLOAD_OFFSET, Packet, STREAM_CONTROL,
};
use crate::packet::unused::{Counts, Unused};

/// Bits of a value in the packets that are written.
const VALUE_BITS: u32 = 48;
const LARGEST_VALUE: u64 = (1 << VALUE_BITS) - 1;
/// Stands for the value of an item that a packet does not have. No value has so many bits.
pub(super) const ABSENT: u64 = u64::MAX;
/// The value of stream control that ends a stream.
const STOP: u64 = 2;
/// Most senders or heaps whose last values are remembered.
const MOST_RECENT: usize = 1 << 16;

/// Where a packet came from, and when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// The sender: its IPv4 address, then 16 bits of port.
    pub sender: u64,
    /// When it came or was captured, in nanoseconds since 1970.
    pub time: i64,
}

/// What the pointers of a packet say, apart from its place in the heap.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Seen {
    /// Value of each item that is wanted.
    values: Vec<u64>,
    /// The items whose value is in the payload: ID and address.
    addressed: Vec<(u64, u64)>,
    /// Values to be read from there: which of the wanted, and the address.
    pending: Vec<(usize, u64)>,
    /// Whether there is any item that is wanted.
    any: bool,
    /// Whether an item that is required is addressed, which spead2 would take for absent.
    required_addressed: bool,
    /// Whether there is stream control; and whether it ends the stream.
    control: bool,
    stops: bool,
    descriptors: bool,
}

impl Seen {
    fn read(&mut self, plan: &Plan, packet: &Packet<'_>) {
        self.values.clear();
        self.values.resize(plan.wanted.len(), ABSENT);
        self.addressed.clear();
        self.pending.clear();
        (self.any, self.required_addressed, self.descriptors) = (false, false, false);
        (self.control, self.stops) = (false, false);
        for pointer in packet.pointers() {
            if !pointer.immediate {
                self.addressed.push((pointer.id, pointer.value));
                self.descriptors |= pointer.id == DESCRIPTOR;
            } else if pointer.id <= STREAM_CONTROL {
                self.control |= pointer.id == STREAM_CONTROL;
                self.stops |= pointer.id == STREAM_CONTROL && pointer.value == STOP;
                continue;
            }
            let Some(i) = plan.wanted.iter().position(|wanted| wanted.id == pointer.id) else { continue };
            let (Some(wanted), Some(value)) = (plan.wanted.get(i), self.values.get_mut(i)) else { continue };
            self.any = true;
            match (pointer.immediate, wanted.encoding) {
                (true, None) => *value = pointer.value,
                (true, Some(encoding)) => *value = encoding.of_immediate(pointer.value),
                // As many as are wanted at most, whatever the packet has.
                (false, Some(_)) => match self.pending.iter_mut().find(|(other, _)| *other == i) {
                    Some((_, at)) => *at = pointer.value,
                    None => self.pending.push((i, pointer.value)),
                },
                (false, None) if wanted.required => {
                    *value = pointer.value;
                    self.required_addressed = true;
                }
                (false, None) => {}
            }
        }
    }

    /// Whether a packet with these pointers has the items of its heap.
    fn has_items(&self, plan: &Plan) -> bool {
        let has_payload_item = |items: &[u64]| {
            self.addressed.iter().any(|(id, _)| if items.is_empty() { *id != DESCRIPTOR } else { items.contains(id) })
        };
        !plan.needs_items || (self.any && plan.payload_items.as_deref().is_none_or(has_payload_item))
    }

    /// What these pointers say of all of a heap.
    fn head(&self, plan: &Plan, heap_bytes: u64) -> Result<Head, Unused> {
        let (payload_item, cut) = self.payload_item(plan, heap_bytes)?;
        let stays = plan.keeps_packets && cut == Cut::whole(0, heap_bytes) && !self.required_addressed;
        Ok(Head { payload_item, cut, stops: self.stops, keeps_packets: stays || !plan.writable })
    }

    /// Stands for the values of some items, or for none if the packet has none of them.
    fn fingerprint(&self, items: &[usize]) -> Option<u64> {
        let values = || items.iter().map(|&i| self.values.get(i).copied().unwrap_or(ABSENT));
        values().any(|value| value != ABSENT).then(|| {
            let mut hasher = DefaultHasher::new();
            values().for_each(|value| value.hash(&mut hasher));
            hasher.finish() | 1 // 0 stands for none
        })
    }

    /// Read the values that are in the payload of a packet, if they are all there.
    fn resolve(&mut self, plan: &Plan, part: &Part<'_>) {
        let Self { pending, values, .. } = self;
        pending.retain(|&(i, at)| !resolve(plan, &[*part], i, at, values));
    }

    /// Whether a packet with these pointers ends the stream, and that is all that it does.
    fn only_stops(&self, plan: &Plan, packet: &Packet<'_>) -> bool {
        let has_no_data = packet.rest.is_empty() || (plan.needs_items && !self.any);
        self.stops && has_no_data && packet.offset.unwrap_or(0) == 0
    }

    /// What the payload item of the heap is, and where its bytes are.
    fn payload_item(&self, plan: &Plan, heap_bytes: u64) -> Result<(u64, Cut), Unused> {
        let Some(candidates) = &plan.payload_items else {
            return Ok((0, self.without_descriptors(heap_bytes).unwrap_or(Cut::whole(0, heap_bytes))));
        };
        let mut found = self
            .addressed
            .iter()
            .filter(|(id, _)| if candidates.is_empty() { *id != DESCRIPTOR } else { candidates.contains(id) });
        let Some(&(id, start)) = found.next() else {
            return Err(if self.control { Unused::StreamControl } else { Unused::NoPayloadItem });
        };
        if plan.tells_apart && !candidates.is_empty() && found.any(|(other, _)| *other != id) {
            return Err(Unused::SeveralPayloadItems);
        }
        let end = self.end_of(start, heap_bytes);
        if start < end { Ok((id, Cut::whole(start, end))) } else { Err(Unused::EmptyHeap) }
    }

    /// Where the bytes of an item end: where those of the next begin.
    fn end_of(&self, start: u64, heap_bytes: u64) -> u64 {
        self.addressed.iter().map(|(_, at)| *at).filter(|at| *at > start).fold(heap_bytes, u64::min)
    }

    /// Where the data are in a heap that has descriptors too.
    fn without_descriptors(&self, heap_bytes: u64) -> Option<Cut> {
        if !self.descriptors {
            return None;
        }
        let inside = self.addressed.iter().filter(|(_, at)| *at < heap_bytes);
        let mut starts: Vec<(u64, bool)> = inside.map(|&(id, at)| (at, id == DESCRIPTOR)).collect();
        starts.sort_unstable();
        // Of several at one place all but the last are empty, or all are the same bytes, which then are data.
        starts.dedup_by_key(|(at, _)| *at);
        let ends = starts.iter().skip(1).map(|(at, _)| *at).chain([heap_bytes]);
        let pieces = || starts.iter().zip(ends.clone()).map(|(&(at, described), end)| (at, end, described));
        let data = || pieces().filter(|(_, _, described)| !described);
        let (start, end) = (data().next()?.0, data().last()?.1);
        let between = pieces().filter(|&(at, _, described)| described && start < at && at < end);
        Some(Cut::with_holes(start, end, between.map(|(at, end, _)| (at, end)).collect()))
    }
}

/// Read a value that is in the payload, if all of it is in these packets. Returns whether it is.
fn resolve(plan: &Plan, parts: &[Part<'_>], i: usize, at: u64, values: &mut [u64]) -> bool {
    let Some(encoding) = plan.wanted.get(i).and_then(|wanted| wanted.encoding) else { return true };
    let mut bytes = [0; 8];
    for (byte, at) in bytes.iter_mut().take(encoding.bytes as usize).zip(at..=u64::MAX) {
        let Some(found) = parts.iter().find_map(|part| part.byte(at)) else { return false };
        *byte = found;
    }
    if let (Some(found), Some(value)) = (encoding.read(&bytes), values.get_mut(i)) {
        *value = if found <= LARGEST_VALUE { found } else { ABSENT };
    }
    true
}

/// Mends the packets of a stream.
#[derive(Debug)]
pub struct Mender {
    plan: Plan,
    heaps: Heaps,
    /// What stands for the values of the heap that last had a counter of a sender, where values tell heaps apart.
    recent: HashMap<(u64, u64), u64>,
    seen: Seen,
    serial: u64,
    counts: Arc<Counts>,
}

impl Mender {
    /// Mend packets for streams of a layout; without one, nothing is changed.
    #[must_use]
    pub fn new(layout: Option<&Layout>) -> Self {
        Self {
            plan: layout.map_or_else(Plan::plain, Plan::new),
            heaps: Heaps::default(),
            recent: HashMap::new(),
            seen: Seen::default(),
            serial: 0,
            counts: Arc::default(),
        }
    }

    /// What became of packets.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Bytes that are held, and heaps that are remembered. Both are bounded.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        self.heaps.size()
    }

    /// Take a packet of `packet_bytes` bytes, and append to `out` what is ready for spead2: any number of packets.
    pub fn take(&mut self, data: &[u8], packet_bytes: usize, arrival: Arrival, out: &mut Vec<u8>) {
        match self.mend(data, packet_bytes, arrival, out) {
            Ok(written) => self.counts.add_written(written),
            Err(unused) => self.counts.add(unused, 1),
        }
    }

    /// Give up the packets that are held: nothing more comes.
    pub fn finish(&mut self) {
        self.counts.add(self.plan.without_items(), self.heaps.close_all());
    }

    fn mend(&mut self, data: &[u8], length: usize, arrival: Arrival, out: &mut Vec<u8>) -> Result<u64, Unused> {
        let packet = Packet::read(data, length)?;
        self.seen.read(&self.plan, &packet);
        if self.seen.only_stops(&self.plan, &packet) {
            return self.stop(&packet, arrival, out);
        }
        let part = self.plan.part(&packet)?;
        if !part.is_whole() && !self.plan.has_no_parts() {
            return self.mend_part(&part, data, arrival, out);
        }
        let head = self.seen.head(&self.plan, part.heap_bytes)?;
        self.seen.resolve(&self.plan, &part);
        if head.keeps_packets {
            out.extend_from_slice(data);
            return Ok(1);
        }
        let counter = match self.plan.counters {
            Counters::Sent => part.counter,
            _ => next(&mut self.serial),
        };
        match write(&self.plan, &head, &self.seen.values, counter, &part, arrival, out) {
            0 => Err(Unused::OtherBytes),
            written => Ok(written),
        }
    }

    /// Pass on the end of the stream, in a heap of its own.
    fn stop(&mut self, packet: &Packet<'_>, arrival: Arrival, out: &mut Vec<u8>) -> Result<u64, Unused> {
        let counter = match self.plan.counters {
            Counters::Sent => packet.heap_counter.ok_or(Unused::NoHeapCounter)?,
            _ => next(&mut self.serial),
        };
        let head = Head { payload_item: 0, cut: Cut::whole(0, 1), stops: true, keeps_packets: false };
        let part = Part { counter, heap_bytes: 1, offset: 0, payload: &[0] };
        Ok(write(&self.plan, &head, &[], counter, &part, arrival, out))
    }

    /// Mend a packet of a heap of several.
    fn mend_part(&mut self, part: &Part<'_>, data: &[u8], arrival: Arrival, out: &mut Vec<u8>) -> Result<u64, Unused> {
        while let Some(held) = self.heaps.close_excess(arrival.time) {
            self.counts.add(self.plan.without_items(), held);
        }
        let (key, orphans) = self.key(part, arrival);
        let Self { plan, heaps, seen, serial, counts, .. } = self;
        if plan.counters == Counters::Sent && heaps.is_shared(&key, arrival.sender) {
            counts.add_shared();
        }
        counts.add(plan.without_items(), heaps.close_another(&key, plan, &seen.values));
        let counter = || if plan.counters == Counters::Sent { part.counter } else { next(serial) };
        let heap = heaps.open(key, arrival, counter);
        let mut more = heap.note(part.offset, part.payload.len() as u64);
        for orphan in orphans.iter().filter_map(|orphan| part_of(plan, orphan)) {
            more = more.saturating_add(heap.note(orphan.offset, orphan.payload.len() as u64));
        }
        more = more.saturating_add(heap.adopt(orphans));
        let mut is_first = false;
        if heap.head.is_none() && heap.unused.is_none() && (part.offset == 0 || seen.has_items(plan)) {
            match seen.head(plan, part.heap_bytes) {
                Ok(head) => {
                    more = more.saturating_add(heap.begin(head, &seen.values, &seen.pending));
                    is_first = true;
                }
                Err(why) => heap.unused = Some(why),
            }
        }
        let is_last = heap.received >= part.heap_bytes;
        if heap.unused.is_none() {
            let OpenHeap { held, pending, values, .. } = &mut *heap;
            // A value may begin in one packet and end in another.
            if (is_first && !pending.is_empty()) || pending.iter().any(|&(i, at)| part.touches(at, plan.value_bytes(i)))
            {
                let held = held.iter().filter_map(|held| part_of(plan, held));
                let parts: Vec<Part<'_>> = held.chain([*part]).collect();
                pending.retain(|&(i, at)| !resolve(plan, &parts, i, at, values));
            }
            if is_last {
                pending.clear();
            }
            if !heap.is_ready() && !is_last {
                heap.held.push(Held { data: data.into(), arrival });
                heaps.hold(more.saturating_add(data.len()));
                return Ok(0);
            }
        }
        let held = std::mem::take(&mut heap.held);
        let result = match (&heap.head, heap.unused) {
            (Some(head), None) => {
                let rest = Rest { plan, head, values: &heap.values, counter: heap.counter, counts };
                // A packet that stays as it is comes before those that were held for it: it has the items. Those that
                // are written anew all have them.
                let first = if head.keeps_packets { rest.write(part, data, arrival, out) } else { 0 };
                let held: u64 = held.iter().map(|packet| rest.write_held(packet, out)).sum();
                let last = if head.keeps_packets { 0 } else { rest.write(part, data, arrival, out) };
                Ok(first.saturating_add(held).saturating_add(last))
            }
            (_, unused) => {
                let why = unused.unwrap_or(plan.without_items());
                counts.add(why, held.len() as u64);
                Err(why)
            }
        };
        heaps.hold(more);
        heaps.release(&held);
        if is_last {
            heaps.close(&key);
        }
        result
    }

    /// What tells the heap of a packet apart; and the packets that wait for what tells theirs.
    fn key(&mut self, part: &Part<'_>, arrival: Arrival) -> (Key, Vec<Held>) {
        let plan = &self.plan;
        let sender = if plan.counters == Counters::Sent { 0 } else { arrival.sender };
        let mut key = Key { sender, counter: part.counter, items: 0 };
        let Counters::Items(items) = &plan.counters else { return (key, Vec::new()) };
        let place = (sender, part.counter);
        let Some(items) = self.seen.fingerprint(items) else {
            key.items = self.recent.get(&place).copied().unwrap_or(0);
            return (key, Vec::new());
        };
        if self.recent.len() >= MOST_RECENT {
            self.recent.clear();
        }
        let orphans = match self.recent.insert(place, items) {
            Some(before) if before == items => Vec::new(),
            _ => self.heaps.close(&key).map_or_else(Vec::new, |heap| heap.held),
        };
        key.items = items;
        (key, orphans)
    }
}

/// The next number of a heap.
fn next(serial: &mut u64) -> u64 {
    *serial = serial.wrapping_add(1) & LARGEST_VALUE;
    *serial
}

/// A heap of several packets, of which the first has come.
struct Rest<'a> {
    plan: &'a Plan,
    head: &'a Head,
    values: &'a [u64],
    counter: u64,
    counts: &'a Counts,
}

impl Rest<'_> {
    fn write(&self, part: &Part<'_>, data: &[u8], arrival: Arrival, out: &mut Vec<u8>) -> u64 {
        if self.head.keeps_packets {
            out.extend_from_slice(data);
            return 1;
        }
        let written = write(self.plan, self.head, self.values, self.counter, part, arrival, out);
        if written == 0 {
            self.counts.add(Unused::OtherBytes, 1);
        }
        written
    }

    /// Write a packet that was held: it was good when it came.
    fn write_held(&self, held: &Held, out: &mut Vec<u8>) -> u64 {
        part_of(self.plan, held).map_or(0, |part| self.write(&part, &held.data, held.arrival, out))
    }
}

/// What a packet that is held is of its heap: it was good when it came.
fn part_of<'a>(plan: &Plan, held: &'a Held) -> Option<Part<'a>> {
    plan.part(&Packet::read(&held.data, held.data.len()).ok()?).ok()
}

/// Append what of a packet belongs to the data, in the flavour 64-48: a packet for each piece. Returns how many.
fn write(
    plan: &Plan,
    head: &Head,
    values: &[u64],
    counter: u64,
    part: &Part<'_>,
    arrival: Arrival,
    out: &mut Vec<u8>,
) -> u64 {
    let end = part.offset.saturating_add(part.payload.len() as u64);
    let (mut written, mut before) = (0_u64, 0_u64);
    for (start, stop) in head.cut.pieces().take_while(|(start, _)| *start < end) {
        let from = start.max(part.offset);
        let bytes = stop.min(end).saturating_sub(from);
        let at = from.saturating_sub(part.offset) as usize;
        let payload = part.payload.get(at..at.saturating_add(bytes as usize)).unwrap_or_default();
        if !payload.is_empty() {
            let offset = before.saturating_add(from.saturating_sub(start));
            let piece = Part { counter, heap_bytes: head.cut.bytes, offset, payload };
            write_piece(plan, head, values, &piece, arrival, out);
            written = written.saturating_add(1);
        }
        before = before.saturating_add(stop.saturating_sub(start));
    }
    written
}

/// Append a packet of bytes that all belong to the data.
fn write_piece(plan: &Plan, head: &Head, values: &[u64], piece: &Part<'_>, arrival: Arrival, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(&[0x53, 4, 2, 6, 0, 0, 0, 0]);
    let mut pointers = 0_u16;
    let mut add = |id: u64, value: u64| {
        let word = 1 << 63 | (id & 0x7fff) << VALUE_BITS | (value & LARGEST_VALUE);
        out.extend_from_slice(&word.to_be_bytes());
        pointers = pointers.saturating_add(1);
    };
    add(HEAP_COUNTER, piece.counter);
    add(HEAP_LENGTH, piece.heap_bytes);
    add(PAYLOAD_OFFSET, piece.offset);
    add(PAYLOAD_LENGTH, piece.payload.len() as u64);
    for (wanted, &value) in plan.wanted.iter().zip(values) {
        if value != ABSENT {
            add(wanted.id, value);
        }
    }
    if head.stops {
        add(STREAM_CONTROL, STOP);
    }
    let time = u64::try_from(arrival.time).unwrap_or(0);
    for &synthetic in &plan.added {
        add(
            synthetic.id(),
            match synthetic {
                Synthetic::PayloadItem => head.payload_item,
                Synthetic::Sender => arrival.sender,
                Synthetic::PacketSeconds => time / 1_000_000_000,
                Synthetic::PacketNanoseconds => time % 1_000_000_000,
            },
        );
    }
    if let Some(count) = out.get_mut(begin.saturating_add(6)..begin.saturating_add(8)) {
        count.copy_from_slice(&pointers.to_be_bytes());
    }
    out.extend_from_slice(piece.payload);
}
