//! What a layout asks of the packets on their way into spead2.

use crate::layout::{HEAP_LENGTH_ID, Layout};
use crate::packet::declared::{CounterWord, Encoding, HeapCounter, HeapLength, PacketsSpec, Synthetic};
use crate::packet::spead::{HEAP_COUNTER, Packet};
use crate::packet::unused::Unused;
use crate::spec::LayoutSpec;

/// An item that spead2 is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub id: u64,
    /// How its value is written, if that is not as SPEAD has it.
    pub encoding: Option<Encoding>,
    /// Whether it is enough that it is there.
    pub required: bool,
    /// Whether its value says where the heap belongs.
    pub places: bool,
}

/// How heaps are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Counters {
    /// By the counter alone.
    Sent,
    /// Each packet is a heap.
    Packet,
    /// By sender and counter.
    Sender,
    /// By the values of items too: which of those that are wanted.
    Items(Box<[usize]>),
}

/// What to do with packets.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Plan {
    pub wanted: Box<[Wanted]>,
    /// Whether packets of these items can be written in the flavour 64-48.
    pub writable: bool,
    /// The items that are added.
    pub added: Box<[Synthetic]>,
    /// Items whose bytes are the data, if other bytes are to be cut out; none in particular if there is none.
    pub payload_items: Option<Box<[u64]>>,
    /// Whether which of them a heap has tells heaps apart, so that it has only one.
    pub tells_apart: bool,
    pub heap_length: Option<HeapLength>,
    pub zero_offset: bool,
    pub counters: Counters,
    /// Whether a packet that spead2 takes can stay as it is, unless something is to be cut out of its heap.
    pub keeps_packets: bool,
    /// Whether the items of a heap matter.
    pub needs_items: bool,
}

impl Plan {
    /// Nothing but what spead2 wants of any packet.
    pub fn plain() -> Self {
        Self {
            wanted: Box::default(),
            writable: false,
            added: Box::default(),
            payload_items: None,
            tells_apart: false,
            heap_length: None,
            zero_offset: false,
            counters: Counters::Sent,
            keeps_packets: true,
            needs_items: false,
        }
    }

    /// What a layout asks for.
    pub fn new(layout: &Layout) -> Self {
        let spec = layout.spec();
        let default = PacketsSpec::default();
        let packets = spec.packets.as_ref().unwrap_or(&default);
        let added: Box<[Synthetic]> = Synthetic::ALL.into_iter().filter(|&item| uses(spec, item)).collect();
        let mut ids: Vec<u64> = layout.items().to_vec();
        let tell_apart = match &packets.heap_counter {
            Some(HeapCounter::Items(ids)) => ids.as_slice(),
            _ => &[],
        };
        ids.extend(tell_apart);
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|&id| id != HEAP_COUNTER && id != HEAP_LENGTH_ID && !added.iter().any(|item| item.id() == id));
        let wanted: Box<[Wanted]> = ids
            .iter()
            .map(|&id| Wanted {
                id,
                encoding: packets.items.get(&id).copied(),
                required: spec.required_items.contains(&id),
                places: spec.time.item.ids().contains(&id) || spec.axes.iter().any(|axis| axis.item == Some(id)),
            })
            .collect();
        let payload_items = payload_items(spec, &added);
        let counters = match &packets.heap_counter {
            None => Counters::Sent,
            Some(HeapCounter::By(CounterWord::Packet)) => Counters::Packet,
            Some(HeapCounter::By(CounterWord::Sender)) => Counters::Sender,
            Some(HeapCounter::Items(_)) => {
                let position = |id: &u64| wanted.iter().position(|wanted| wanted.id == *id);
                Counters::Items(tell_apart.iter().filter_map(position).collect())
            }
        };
        let keeps_packets = added.is_empty() && PacketsSpec { repeat_items: false, ..packets.clone() } == default;
        Self {
            writable: ids.last().is_none_or(|&id| id < Synthetic::FIRST_ID),
            needs_items: !wanted.is_empty() || payload_items.is_some(),
            wanted,
            tells_apart: added.contains(&Synthetic::PayloadItem),
            added,
            payload_items,
            heap_length: packets.heap_length,
            zero_offset: packets.payload_offset.is_some()
                || matches!(packets.heap_length, Some(HeapLength::Payload(_))),
            counters,
            keeps_packets,
        }
    }
}

/// What a packet is of its heap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub counter: u64,
    pub heap_bytes: u64,
    pub offset: u64,
    pub payload: &'a [u8],
}

impl Part<'_> {
    pub fn is_whole(&self) -> bool {
        self.offset == 0 && self.payload.len() as u64 == self.heap_bytes
    }

    /// A byte of the heap, if it is in this packet.
    pub fn byte(&self, at: u64) -> Option<u8> {
        self.payload.get(usize::try_from(at.checked_sub(self.offset)?).ok()?).copied()
    }

    /// Whether any of these bytes of the heap are in this packet.
    pub fn touches(&self, at: u64, bytes: u64) -> bool {
        at < self.offset.saturating_add(self.payload.len() as u64) && self.offset < at.saturating_add(bytes)
    }
}

impl Plan {
    /// Whether nothing is to be known of a heap but what each of its packets says.
    pub fn has_no_parts(&self) -> bool {
        self.counters == Counters::Packet || (!self.needs_items && !self.writable)
    }

    /// Bytes of the value of an item that is in the payload.
    pub fn value_bytes(&self, i: usize) -> u64 {
        self.wanted.get(i).and_then(|wanted| wanted.encoding).map_or(0, |encoding| encoding.bytes.into())
    }

    /// Why packets are not used that waited for the one that has the items.
    pub fn without_items(&self) -> Unused {
        match self.counters {
            Counters::Items(_) => Unused::NotToldApart,
            _ => Unused::NoFirstPacket,
        }
    }

    /// What a packet is of its heap, by what the layout says of that, or else by what the packet says.
    pub fn part<'a>(&self, packet: &Packet<'a>) -> Result<Part<'a>, Unused> {
        let all = packet.rest.len() as u64;
        let cut_short = packet.rest.len() < packet.packet_bytes.saturating_sub(packet.start());
        if cut_short || packet.payload_bytes.is_some_and(|said| said > all) {
            return Err(Unused::CutShort);
        }
        if !matches!(self.heap_length, Some(HeapLength::Payload(_)))
            && packet.payload_bytes.ok_or(Unused::NoPayloadLength)? < all
        {
            return Err(Unused::Trailing);
        }
        let offset = if self.zero_offset { 0 } else { packet.offset.ok_or(Unused::NoPayloadOffset)? };
        let heap_bytes = match self.heap_length {
            Some(HeapLength::Payload(_)) => all,
            Some(HeapLength::Bytes(bytes)) => bytes,
            None => packet.heap_bytes.ok_or(Unused::NoHeapLength)?,
        };
        let counter = match self.counters {
            Counters::Packet => 0,
            _ => packet.heap_counter.ok_or(Unused::NoHeapCounter)?,
        };
        if heap_bytes == 0 {
            return Err(Unused::EmptyHeap);
        }
        if offset.saturating_add(all) > heap_bytes {
            return Err(Unused::BeyondHeap);
        }
        Ok(Part { counter, heap_bytes, offset, payload: packet.rest })
    }
}

/// Whether a layout uses an item that is added.
pub(crate) fn uses(spec: &LayoutSpec, synthetic: Synthetic) -> bool {
    let item = synthetic.item();
    let on_axis = |axis: &crate::spec::AxisSpec| {
        axis.item == Some(item) || (synthetic == Synthetic::PayloadItem && axis.payload_items.is_some())
    };
    spec.axes.iter().any(on_axis) || spec.side_items.iter().any(|side| side.item == item)
}

/// The items of which each heap has its data, if the layout says anything of that.
fn payload_items(spec: &LayoutSpec, added: &[Synthetic]) -> Option<Box<[u64]>> {
    let mut ids: Vec<u64> = spec.payload_item.into_iter().collect();
    for axis in &spec.axes {
        ids.extend(axis.payload_items.iter().flatten());
        if axis.item == Some(Synthetic::PayloadItem.item()) {
            ids.extend(axis.values.iter().flatten());
        }
    }
    (!ids.is_empty() || added.contains(&Synthetic::PayloadItem)).then(|| ids.into_boxed_slice())
}
