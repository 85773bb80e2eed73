//! The header and the item pointers of SPEAD packets of any flavour, read without a copy.
//!
//! The format is that of "SPEAD: Streaming Protocol for Exchanging Astronomical Data" (Manley, Welz, Parsons, Ratcliffe;
//! SKA SA SPD document): a header of 8 bytes, pointers of 8 bytes each, then payload.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::fmt;

/// Bytes of the header, and of each pointer.
pub const WORD: usize = 8;

/// ID of the heap counter.
pub const HEAP_COUNTER: u64 = 1;
/// ID of the heap length.
pub const HEAP_LENGTH: u64 = 2;
/// ID of the offset of a packet's payload in that of the heap.
pub const PAYLOAD_OFFSET: u64 = 3;
/// ID of the length of a packet's payload.
pub const PAYLOAD_LENGTH: u64 = 4;
/// ID of a descriptor, which says what an item is called and looks like.
pub const DESCRIPTOR: u64 = 5;
/// ID of stream control, such as the end of a stream.
pub const STREAM_CONTROL: u64 = 6;

const MAGIC: u8 = 0x53;
const VERSION: u8 = 4;

/// Why bytes are no packet that spead2 would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Too few bytes for a header.
    Short,
    /// Another protocol.
    NotSpead,
    /// Another version of SPEAD.
    Version(u8),
    /// IDs and addresses that do not make up 64 bits.
    Flavour,
    /// Fewer bytes than the pointers need.
    Pointers,
    /// The heap counter, the payload's offset or its length is absent.
    Specials,
    /// Fewer bytes than the payload needs.
    Payload,
    /// The payload leaves the heap.
    Heap,
    /// More bytes than header, pointers and payload have.
    Trailing,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "shorter than a header",
            Self::NotSpead => "not SPEAD",
            Self::Version(version) => return write!(f, "SPEAD version {version}"),
            Self::Flavour => "no flavour of 64 bits",
            Self::Pointers => "pointers beyond the end",
            Self::Specials => "no heap counter, payload offset or payload length",
            Self::Payload => "payload beyond the end",
            Self::Heap => "payload beyond the heap",
            Self::Trailing => "bytes after the payload",
        })
    }
}

/// An item pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// ID of the item.
    pub id: u64,
    /// Its value; or, if it is addressed, where in the heap's payload its bytes begin.
    pub value: u64,
    /// Whether `value` is the value itself.
    pub immediate: bool,
}

/// A packet whose header and pointers are whole. [`Packet::check`] says whether spead2 would take it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Bits of an immediate value or of an address.
    pub address_bits: u32,
    /// The pointers as they are in the packet.
    words: &'a [u8],
    /// What there is after the pointers. In a packet that was cut short, it is less than [`Packet::payload_bytes`] says.
    pub rest: &'a [u8],
    /// Bytes of the whole packet, of which some may have been cut off.
    pub packet_bytes: usize,
    /// Number of the heap.
    pub heap_counter: Option<u64>,
    /// Bytes of the heap's payload.
    pub heap_bytes: Option<u64>,
    /// Where the payload of the packet belongs in that of the heap.
    pub offset: Option<u64>,
    /// Bytes of payload in the packet.
    pub payload_bytes: Option<u64>,
}

impl<'a> Packet<'a> {
    /// Read the header and the pointers of a packet of `packet_bytes` bytes, of which the payload may have been cut off.
    ///
    /// # Errors
    ///
    /// Why these bytes are no SPEAD packet.
    #[inline]
    pub fn read(data: &'a [u8], packet_bytes: usize) -> Result<Self, Fault> {
        let Some((&[magic, version, id_bytes, address_bytes, _, _, high, low], body)) = data.split_first_chunk() else {
            return Err(Fault::Short);
        };
        if magic != MAGIC {
            return Err(Fault::NotSpead);
        }
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        if !(1..=7).contains(&id_bytes) || u32::from(id_bytes).wrapping_add(u32::from(address_bytes)) != 8 {
            return Err(Fault::Flavour);
        }
        let words = usize::from(u16::from_be_bytes([high, low])).wrapping_mul(WORD);
        let (words, rest) = body.split_at_checked(words).ok_or(Fault::Pointers)?;
        let mut packet = Self {
            address_bits: u32::from(address_bytes).wrapping_mul(8),
            words,
            rest,
            packet_bytes,
            heap_counter: None,
            heap_bytes: None,
            offset: None,
            payload_bytes: None,
        };
        for pointer in packet.pointers().filter(|pointer| pointer.immediate) {
            match pointer.id {
                HEAP_COUNTER => packet.heap_counter = Some(pointer.value),
                HEAP_LENGTH => packet.heap_bytes = Some(pointer.value),
                PAYLOAD_OFFSET => packet.offset = Some(pointer.value),
                PAYLOAD_LENGTH => packet.payload_bytes = Some(pointer.value),
                _ => {}
            }
        }
        Ok(packet)
    }

    /// The pointers in their order, among them those that this structure has as fields.
    #[inline]
    pub fn pointers(&self) -> impl Iterator<Item = Pointer> + use<'a> {
        let bits = self.address_bits;
        let low = 1_u64.wrapping_shl(bits).wrapping_sub(1);
        self.words.chunks_exact(WORD).map(move |word| {
            let word = word.first_chunk().map_or(0, |word| u64::from_be_bytes(*word));
            Pointer { id: (word & (u64::MAX >> 1)).wrapping_shr(bits), value: word & low, immediate: word >> 63 != 0 }
        })
    }

    /// Bytes before the payload.
    #[must_use]
    pub fn start(&self) -> usize {
        self.words.len().saturating_add(WORD)
    }

    /// Check by the rules of spead2, except that it wants no bytes after the payload: see [`Packet::check_end`].
    ///
    /// # Errors
    ///
    /// Why spead2 would drop the packet.
    #[inline]
    pub fn check(&self) -> Result<(), Fault> {
        let (Some(_), Some(offset), Some(bytes)) = (self.heap_counter, self.offset, self.payload_bytes) else {
            return Err(Fault::Specials);
        };
        if bytes > self.packet_bytes.saturating_sub(self.start()) as u64 {
            return Err(Fault::Payload);
        }
        if self.heap_bytes.is_some_and(|heap| offset.saturating_add(bytes) > heap) {
            return Err(Fault::Heap);
        }
        Ok(())
    }

    /// Check that there is nothing after the payload: spead2 drops such datagrams too.
    ///
    /// # Errors
    ///
    /// [`Fault::Trailing`].
    #[inline]
    pub fn check_end(&self) -> Result<(), Fault> {
        let rest = self.packet_bytes.saturating_sub(self.start()) as u64;
        if self.payload_bytes.is_some_and(|bytes| bytes < rest) { Err(Fault::Trailing) } else { Ok(()) }
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    /// A packet by hand: its pointers as they are, whatever they mean.
    fn packet(address_bytes: u8, pointers: &[u64], payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x53, 4, 8 - address_bytes, address_bytes, 0, 0, 0, u8::try_from(pointers.len()).unwrap()];
        bytes.extend(pointers.iter().flat_map(|pointer| pointer.to_be_bytes()));
        bytes.extend(payload);
        bytes
    }

    fn fault(data: &[u8]) -> Result<(), Fault> {
        let packet = Packet::read(data, data.len())?;
        packet.check()?;
        packet.check_end()
    }

    const IMMEDIATE: u64 = 1 << 63;

    #[test]
    fn reads_both_flavours() {
        for (bytes, bits) in [(6_u8, 48_u32), (5, 40)] {
            let word = |id: u64, value: u64| IMMEDIATE | id << bits | value;
            let data = packet(
                bytes,
                &[word(1, 7), word(2, 12), word(3, 8), word(4, 4), word(0x1600, 99), 0x4300 << bits | 5],
                b"abcd",
            );
            let packet = Packet::read(&data, data.len()).unwrap();
            assert_eq!(packet.address_bits, bits);
            assert_eq!((packet.heap_counter, packet.heap_bytes), (Some(7), Some(12)));
            assert_eq!((packet.offset, packet.payload_bytes), (Some(8), Some(4)));
            assert_eq!(packet.rest, b"abcd");
            let pointers: Vec<Pointer> = packet.pointers().skip(4).collect();
            assert_eq!(pointers[0], Pointer { id: 0x1600, value: 99, immediate: true });
            assert_eq!(pointers[1], Pointer { id: 0x4300, value: 5, immediate: false });
            assert_eq!(fault(&data), Ok(()));
        }
    }

    #[test]
    fn the_last_of_equal_pointers_counts_as_in_spead2() {
        let word = |id: u64, value: u64| IMMEDIATE | id << 48 | value;
        let data = packet(6, &[word(1, 7), word(1, 8)], b"");
        assert_eq!(Packet::read(&data, data.len()).unwrap().heap_counter, Some(8));
    }

    #[test]
    fn says_why_bytes_are_no_packet() {
        let word = |id: u64, value: u64| IMMEDIATE | id << 48 | value;
        let whole = packet(6, &[word(1, 7), word(2, 8), word(3, 4), word(4, 4)], b"abcd");
        assert_eq!(fault(&whole), Ok(()));
        let with = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(fault(&whole[..7]), Err(Fault::Short));
        assert_eq!(fault(&with(0, 0x54)), Err(Fault::NotSpead));
        assert_eq!(fault(&with(1, 3)), Err(Fault::Version(3)));
        assert_eq!(fault(&with(2, 3)), Err(Fault::Flavour));
        assert_eq!(fault(&packet(0, &[], b"")), Err(Fault::Flavour));
        assert_eq!(fault(&whole[..39]), Err(Fault::Pointers));
        assert_eq!(fault(&whole[..43]), Err(Fault::Payload));
        assert_eq!(fault(&packet(6, &[word(1, 7), word(2, 8), word(4, 4)], b"abcd")), Err(Fault::Specials));
        assert_eq!(fault(&packet(6, &[word(1, 7), word(2, 7), word(3, 4), word(4, 4)], b"abcd")), Err(Fault::Heap));
        assert_eq!(fault(&packet(6, &[word(1, 7), word(2, 8), word(3, 4), word(4, 3)], b"abcd")), Err(Fault::Trailing));
    }

    #[test]
    fn a_packet_may_have_been_cut_short() {
        let word = |id: u64, value: u64| IMMEDIATE | id << 48 | value;
        let data = packet(6, &[word(1, 7), word(2, 8), word(3, 0), word(4, 8)], b"abc");
        let packet = Packet::read(&data, data.len() + 5).unwrap();
        assert_eq!(packet.check(), Ok(()));
        assert_eq!(packet.rest.len(), 3);
    }
}
