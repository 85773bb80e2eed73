//! Packets that do not reach spead2: why, and how many.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::spead::Fault;

/// Why a packet is not used. [`Unused::words`] says what would help, where something would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unused {
    /// No SPEAD packet.
    NotSpead,
    /// Another version of SPEAD.
    Version,
    /// A flavour of SPEAD that is not one of 64 bits.
    Flavour,
    /// Its end is missing: it is shorter than its header says, or was captured in part.
    CutShort,
    /// There is more than its header says.
    Trailing,
    /// It does not say which heap it belongs to.
    NoHeapCounter,
    /// It does not say how long the heap is.
    NoHeapLength,
    /// It does not say where in the heap it belongs.
    NoPayloadOffset,
    /// It does not say how long its payload is.
    NoPayloadLength,
    /// The heap has no payload.
    EmptyHeap,
    /// It leaves its heap.
    BeyondHeap,
    /// The first packet of its heap, which has the items, did not come.
    NoFirstPacket,
    /// It lacks the items that tell heaps apart, and the packet that has them did not come.
    NotToldApart,
    /// Its heap does not have the payload item.
    NoPayloadItem,
    /// Its heap has several of the payload items that tell heaps apart.
    SeveralPayloadItems,
    /// Its bytes are none of the layout's data: a descriptor's, another item's, or beyond the length of its heap.
    OtherBytes,
    /// It controls the stream, and carries no data.
    StreamControl,
}

impl Unused {
    /// All there are, in their order.
    pub const ALL: [Self; 17] = [
        Self::NotSpead,
        Self::Version,
        Self::Flavour,
        Self::CutShort,
        Self::Trailing,
        Self::NoHeapCounter,
        Self::NoHeapLength,
        Self::NoPayloadOffset,
        Self::NoPayloadLength,
        Self::EmptyHeap,
        Self::BeyondHeap,
        Self::NoFirstPacket,
        Self::NotToldApart,
        Self::NoPayloadItem,
        Self::SeveralPayloadItems,
        Self::OtherBytes,
        Self::StreamControl,
    ];

    /// A name for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotSpead => "not_spead",
            Self::Version => "other_version",
            Self::Flavour => "other_flavour",
            Self::CutShort => "cut_short",
            Self::Trailing => "bytes_after_payload",
            Self::NoHeapCounter => "no_heap_counter",
            Self::NoHeapLength => "no_heap_length",
            Self::NoPayloadOffset => "no_payload_offset",
            Self::NoPayloadLength => "no_payload_length",
            Self::EmptyHeap => "empty_heap",
            Self::BeyondHeap => "beyond_heap",
            Self::NoFirstPacket => "no_first_packet",
            Self::NotToldApart => "not_told_apart",
            Self::NoPayloadItem => "no_payload_item",
            Self::SeveralPayloadItems => "several_payload_items",
            Self::OtherBytes => "other_bytes",
            Self::StreamControl => "stream_control",
        }
    }

    /// The reason in words, with the setting of the layout that would make such packets usable, if one would.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::NotSpead => "not SPEAD",
            Self::Version => "another version of SPEAD",
            Self::Flavour => "a flavour of SPEAD that is not one of 64 bits",
            Self::CutShort => "shorter than its header says",
            Self::Trailing => "longer than its header says ([packets] heap_length = \"payload\" takes all of it)",
            Self::NoHeapCounter => "no heap counter ([packets] heap_counter = \"packet\" makes each packet a heap)",
            Self::NoHeapLength => "no heap length ([packets] heap_length = \"payload\", or a number, gives one)",
            Self::NoPayloadOffset => "no payload offset ([packets] payload_offset = \"zero\" gives one)",
            Self::NoPayloadLength => "no payload length ([packets] heap_length = \"payload\" gives one)",
            Self::EmptyHeap => "a heap without payload",
            Self::BeyondHeap => "payload beyond the end of its heap ([packets] heap_length sets the length of heaps)",
            Self::NoFirstPacket => "the packet with the items of its heap did not come",
            Self::NotToldApart => "the packet with the items that tell heaps apart did not come",
            Self::NoPayloadItem => "a heap without the payload item of the layout",
            Self::SeveralPayloadItems => "a heap with several of the payload items that tell heaps apart",
            Self::OtherBytes => "bytes that are none of the layout's data",
            Self::StreamControl => "stream control, no data",
        }
    }
}

impl From<Fault> for Unused {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Short | Fault::NotSpead => Self::NotSpead,
            Fault::Version(_) => Self::Version,
            Fault::Flavour => Self::Flavour,
            Fault::Pointers | Fault::Payload => Self::CutShort,
            Fault::Specials => Self::NoHeapCounter,
            Fault::Heap => Self::BeyondHeap,
            Fault::Trailing => Self::Trailing,
        }
    }
}

/// What became of packets: counted by one thread, read by others.
#[derive(Debug, Default)]
pub struct Counts {
    unused: [AtomicU64; Unused::ALL.len()],
    written: AtomicU64,
    shared: AtomicU64,
}

impl Counts {
    /// Count packets that are not used. Only the thread that mends may call this.
    pub fn add(&self, why: Unused, packets: u64) {
        if let Some(count) = self.unused.get(why as usize) {
            // One thread writes, so that no addition gets lost.
            count.store(count.load(Ordering::Relaxed).wrapping_add(packets), Ordering::Relaxed);
        }
    }

    /// Count packets for spead2. Only the thread that mends may call this.
    pub fn add_written(&self, packets: u64) {
        self.written.store(self.written.load(Ordering::Relaxed).wrapping_add(packets), Ordering::Relaxed);
    }

    /// Packets for spead2 so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Count a packet of a heap whose counter a heap of another sender has that lacks packets. Only the thread that mends
    /// may call this.
    pub fn add_shared(&self) {
        self.shared.store(self.shared.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Such packets so far: spead2 mixes these heaps.
    #[must_use]
    pub fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }

    /// Packets that are not used so far, by reason.
    pub fn unused(&self) -> impl Iterator<Item = (Unused, u64)> + '_ {
        Unused::ALL.into_iter().zip(self.unused.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}
