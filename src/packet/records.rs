//! The packets of a file in the format pcap or pcapng, as they were captured.

use pcap_parser::nom::Err::Incomplete;
use pcap_parser::nom::{IResult, Needed};
use pcap_parser::pcapng::{
    OptionCode, parse_enhancedpacketblock_be, parse_enhancedpacketblock_le, parse_interfacedescriptionblock_be,
    parse_interfacedescriptionblock_le, parse_simplepacketblock_be, parse_simplepacketblock_le,
};
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{
    LegacyPcapBlock, PcapError, PcapNGOption, parse_pcap_frame, parse_pcap_frame_be, parse_pcap_frame_modified,
    parse_pcap_header,
};

use super::capture::Fault;
use super::source::Source;

/// The largest packet and the largest pcapng block that libpcap reads.
const MAX_PACKET: usize = 262_144;
const MAX_BLOCK: usize = 1 << 24;
/// A bound for the memory that they take.
const MAX_INTERFACES: usize = 65_536;
const NANOSECONDS: i64 = 1_000_000_000;

/// A packet of any kind.
#[derive(Clone, Copy)]
pub(super) struct Record {
    /// When it was captured, in nanoseconds.
    pub time: i64,
    /// Number of its link layer.
    pub link: u32,
    /// Where its bytes are in the memory of the source, and how many there are.
    pub at: usize,
    pub captured: usize,
    /// How many were on the wire.
    pub sent: usize,
}

type ParsePacket = fn(&[u8]) -> IResult<&[u8], LegacyPcapBlock<'_>, PcapError<&[u8]>>;

pub(super) enum Records {
    /// A pcap file whose header has not been read yet.
    PcapBegin,
    Pcap {
        link: u32,
        parse: ParsePacket,
        header: usize,
        /// Nanoseconds in the smallest unit of its times.
        unit: i64,
    },
    Pcapng {
        little: bool,
        interfaces: Vec<Interface>,
    },
}

impl Records {
    /// Tell by its first bytes which format a file has.
    pub fn new(source: &mut Source) -> Result<Self, Fault> {
        source.fill(4)?;
        let ready = source.ready();
        match ready.get(..4).unwrap_or(ready) {
            [] => Err(Fault::Empty),
            [0xD4, 0xC3, 0xB2, 0xA1]
            | [0x4D, 0x3C, 0xB2, 0xA1]
            | [0xA1, 0xB2, 0xC3, 0xD4]
            | [0xA1, 0xB2, 0x3C, 0x4D]
            | [0x34, 0xCD, 0xB2, 0xA1] => Ok(Self::PcapBegin),
            [0x0A, 0x0D, 0x0D, 0x0A] => Ok(Self::Pcapng { little: true, interfaces: Vec::new() }),
            other => Err(Fault::not_a_capture(other)),
        }
    }

    /// The next packet; None at the end.
    pub fn next(&mut self, source: &mut Source) -> Result<Option<Record>, Fault> {
        if matches!(self, Self::PcapBegin) {
            match begin_pcap(source)? {
                Some(begun) => *self = begun,
                None => return Ok(None),
            }
        }
        match self {
            Self::PcapBegin => Ok(None),
            Self::Pcap { link, parse, header, unit } => {
                let Some(mut record) = next_packet(source, *parse, *header, *unit)? else { return Ok(None) };
                record.link = *link;
                Ok(Some(record))
            }
            Self::Pcapng { little, interfaces } => next_in_blocks(source, little, interfaces),
        }
    }
}

fn begin_pcap(source: &mut Source) -> Result<Option<Records>, Fault> {
    if !source.fill(24)? {
        return Ok(None);
    }
    let Ok((_, header)) = parse_pcap_header(source.ready()) else { return Ok(None) };
    let parse: ParsePacket = match (header.is_modified_format(), header.is_bigendian()) {
        (true, _) => parse_pcap_frame_modified,
        (false, true) => parse_pcap_frame_be,
        (false, false) => parse_pcap_frame,
    };
    let begun = Records::Pcap {
        // Above are flags.
        link: header.network.0 as u32 & 0xFFFF,
        parse,
        header: if header.is_modified_format() { 24 } else { 16 },
        unit: if header.is_nanosecond_precision() { 1 } else { 1000 },
    };
    source.take(header.size());
    Ok(Some(begun))
}

fn next_packet(source: &mut Source, parse: ParsePacket, header: usize, unit: i64) -> Result<Option<Record>, Fault> {
    loop {
        let ready = source.ready();
        let wanted = match parse(ready) {
            Ok((_, packet)) if packet.data.len() <= MAX_PACKET => {
                let (captured, sent) = (packet.data.len(), packet.origlen as usize);
                let time = i64::from(packet.ts_sec) * NANOSECONDS + i64::from(packet.ts_usec) * unit;
                let at = source.take(header + captured) + header;
                return Ok(Some(Record { time, link: 0, at, captured, sent: sent.max(captured) }));
            }
            Ok((_, packet)) => header + packet.data.len(),
            Err(Incomplete(Needed::Size(lacking))) => ready.len() + lacking.get(),
            Err(_) => return Err(Fault::Damaged(format!("the packet at byte {} does not decode", source.offset()))),
        };
        if wanted > header + MAX_PACKET {
            let (place, length) = (source.offset() + header as u64, wanted - header);
            return Err(Fault::Damaged(format!("the header before byte {place} gives the length {length}")));
        }
        if !source.fill(wanted)? {
            return Ok(None);
        }
    }
}

/// What a pcapng file says about an interface.
pub(super) struct Interface {
    link: u32,
    snaplen: usize,
    /// The unit of its times: 10^-n s, or 2^-n s if the first bit is set.
    resolution: u8,
    /// Seconds.
    offset: i64,
}

impl Interface {
    fn decode(block: &[u8], little: bool) -> Option<Self> {
        let parse = if little { parse_interfacedescriptionblock_le } else { parse_interfacedescriptionblock_be };
        let (_, description) = parse(block).ok()?;
        // The crate takes it for little-endian in any file.
        let offset = description.options.iter().find(|option| option.code == OptionCode::IfTsoffset);
        let offset = match offset.map(PcapNGOption::value) {
            None => 0,
            Some(value) => {
                let bytes = *value.first_chunk()?;
                if little { i64::from_le_bytes(bytes) } else { i64::from_be_bytes(bytes) }
            }
        };
        Some(Self {
            link: description.linktype.0 as u32,
            snaplen: description.snaplen as usize,
            resolution: description.if_tsresol,
            offset,
        })
    }

    /// A time in nanoseconds.
    fn nanoseconds(&self, high: u32, low: u32) -> i64 {
        let ticks = u128::from(high) << 32 | u128::from(low);
        let exponent = u32::from(self.resolution & 0x7F);
        let time = if self.resolution & 0x80 != 0 {
            // 2^64 ticks of a nanosecond have 94 bits: there is room.
            (ticks * NANOSECONDS as u128) >> exponent
        } else if exponent <= 9 {
            ticks * 10_u128.pow(9 - exponent)
        } else {
            10_u128.checked_pow(exponent - 9).map_or(0, |divisor| ticks / divisor)
        };
        let time = i64::try_from(time).unwrap_or(i64::MAX);
        time.saturating_add(self.offset.saturating_mul(NANOSECONDS))
    }
}

/// The next packet in the blocks of a pcapng file (draft-ietf-opsawg-pcapng).
fn next_in_blocks(
    source: &mut Source,
    little: &mut bool,
    interfaces: &mut Vec<Interface>,
) -> Result<Option<Record>, Fault> {
    loop {
        if !source.fill(8)? {
            return Ok(None);
        }
        if source.ready().starts_with(&[0x0A, 0x0D, 0x0D, 0x0A]) {
            // A section: each has its own byte order and interfaces.
            if !source.fill(12)? {
                return Ok(None);
            }
            *little = source.ready().get(8..12) == Some(&[0x4D, 0x3C, 0x2B, 0x1A]);
            interfaces.clear();
        }
        let (kind, length) = (word(source.ready(), 0, *little), word(source.ready(), 4, *little) as usize);
        if !(12..=MAX_BLOCK).contains(&length) {
            let place = source.offset();
            return Err(Fault::Damaged(format!("the block at byte {place} has the length {length}")));
        }
        if !source.fill(length)? {
            return Ok(None);
        }
        let block = source.ready().get(..length).unwrap_or_default();
        let decoded = match kind {
            1 if interfaces.len() == MAX_INTERFACES => Err("it is one interface too many".to_owned()),
            1 => match Interface::decode(block, *little) {
                Some(interface) => {
                    interfaces.push(interface);
                    Ok(None)
                }
                None => Err("it describes no interface".to_owned()),
            },
            2 => obsolete_packet(block, *little, interfaces).map(Some),
            3 => simple_packet(block, *little, interfaces).map(Some),
            6 => enhanced_packet(block, *little, interfaces).map(Some),
            _ => Ok(None),
        };
        let decoded = decoded.map_err(|reason| {
            Fault::Damaged(format!("the block at byte {} does not decode: {reason}", source.offset()))
        })?;
        let at = source.take(length);
        if let Some(mut record) = decoded {
            record.at += at;
            return Ok(Some(record));
        }
    }
}

/// A number of 32 bits at an offset; 0 behind the end.
fn word(bytes: &[u8], at: usize, little: bool) -> u32 {
    let Some(&bytes) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else { return 0 };
    if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
}

/// The reason why the packet of a block does not decode.
fn too_long(block: &[u8], captured: u32) -> String {
    format!("its packet has {captured} bytes, but the whole block has {}", block.len())
}

fn no_interface(number: u32) -> String {
    format!("there is no interface {number}")
}

fn enhanced_packet(block: &[u8], little: bool, interfaces: &[Interface]) -> Result<Record, String> {
    const HEADER: usize = 28;
    let parse = if little { parse_enhancedpacketblock_le } else { parse_enhancedpacketblock_be };
    let (_, packet) = parse(block).map_err(|_| too_long(block, word(block, 20, little)))?;
    let interface = interfaces.get(packet.if_id as usize).ok_or_else(|| no_interface(packet.if_id))?;
    let captured = packet.packet_data().len();
    let time = interface.nanoseconds(packet.ts_high, packet.ts_low);
    let sent = captured.max(packet.origlen as usize);
    Ok(Record { time, link: interface.link, at: HEADER, captured, sent })
}

/// It has no time, and belongs to the first interface.
fn simple_packet(block: &[u8], little: bool, interfaces: &[Interface]) -> Result<Record, String> {
    const HEADER: usize = 12;
    let parse = if little { parse_simplepacketblock_le } else { parse_simplepacketblock_be };
    let (_, packet) = parse(block).map_err(|_| "it is too short".to_owned())?;
    let interface = interfaces.first().ok_or_else(|| no_interface(0))?;
    let sent = packet.origlen as usize;
    let snaplen = if interface.snaplen == 0 { sent } else { interface.snaplen };
    let captured = sent.min(snaplen).min(packet.raw_packet_data().len());
    Ok(Record { time: 0, link: interface.link, at: HEADER, captured, sent })
}

/// What there was before enhanced packets; the crate does not know it.
fn obsolete_packet(block: &[u8], little: bool, interfaces: &[Interface]) -> Result<Record, String> {
    const HEADER: usize = 28;
    let number: [u8; 2] = block.get(8..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
    let number = u32::from(if little { u16::from_le_bytes(number) } else { u16::from_be_bytes(number) });
    let captured = word(block, 20, little);
    if captured as usize + HEADER + 4 > block.len() {
        return Err(too_long(block, captured));
    }
    let interface = interfaces.get(number as usize).ok_or_else(|| no_interface(number))?;
    let time = interface.nanoseconds(word(block, 12, little), word(block, 16, little));
    let captured = captured as usize;
    let sent = captured.max(word(block, 24, little) as usize);
    Ok(Record { time, link: interface.link, at: HEADER, captured, sent })
}
