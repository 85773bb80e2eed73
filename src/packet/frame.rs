//! Finds the UDP datagram in a captured frame, behind the headers of its link layer and of IPv4 or IPv6.

use std::net::{IpAddr, SocketAddr};

use etherparse::err::ip::LaxHeaderSliceError;
use etherparse::{
    EtherType, Ipv6ExtensionSlice, Ipv6Header, LaxIpSlice, LenSource, UdpHeaderSlice, ether_type, ip_number,
};

use super::coalesced;
use super::fragments::{Fragment, Key};

/// Why a frame gives no datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    UnknownLink,
    NotIp,
    NotUdp,
    Fragment,
    BadUdpLength,
    NoWholeHeaders,
    CutShort,
}

impl Reason {
    pub const ALL: [Self; 7] = [
        Self::UnknownLink,
        Self::NotIp,
        Self::NotUdp,
        Self::Fragment,
        Self::BadUdpLength,
        Self::NoWholeHeaders,
        Self::CutShort,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownLink => "unknown link type",
            Self::NotIp => "not IP",
            Self::NotUdp => "not UDP",
            Self::Fragment => "IP fragment",
            Self::BadUdpLength => "bad UDP length",
            Self::NoWholeHeaders => "no whole headers",
            Self::CutShort => "cut short by the capture",
        }
    }
}

/// A datagram in a frame.
#[derive(Clone, Copy)]
pub(super) struct Udp {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Where its payload begins.
    pub start: usize,
    /// Bytes of payload that were sent, of which some may not have been captured.
    pub length: usize,
}

pub(super) enum Found<'a> {
    Whole(Udp),
    Part(Fragment<'a>),
}

/// Look into a frame; `sent` is how many bytes it had on the wire.
pub(super) fn look(frame: &[u8], link: u32, sent: usize) -> Result<Found<'_>, Reason> {
    let start = network(frame, link)?;
    let packet = frame.get(start..).ok_or(Reason::NoWholeHeaders)?;
    let ip = match LaxIpSlice::from_slice(packet) {
        Ok((ip, None)) => ip,
        Ok((_, Some(_))) | Err(LaxHeaderSliceError::Len(_)) => return Err(Reason::NoWholeHeaders),
        Err(LaxHeaderSliceError::Content(_)) => return Err(Reason::NotIp),
    };
    let payload = ip.payload();
    if payload.fragmented {
        let fragment = fragment(&ip)?;
        if !payload.incomplete {
            return Ok(Found::Part(fragment));
        }
        // The first has the header of the datagram. It cannot be put together, so it stands for all of it.
        if fragment.offset.value() != 0 {
            return Err(Reason::CutShort);
        }
    }
    if payload.ip_number != ip_number::UDP {
        return Err(Reason::NotUdp);
    }
    let start = payload.payload.as_ptr().addr() - frame.as_ptr().addr();
    let length = match payload.len_source {
        // Where the length is left to the network card, it is 0 here.
        LenSource::Slice if !payload.incomplete => sent.saturating_sub(start),
        LenSource::Slice => claimed(&ip, packet.len()).saturating_sub(start - (frame.len() - packet.len())),
        _ => payload.payload.len(),
    };
    let behind = frame.get(start..).unwrap_or_default();
    let udp = datagram(behind, length, ip.source_addr(), ip.destination_addr())?;
    Ok(Found::Whole(Udp { start: start + udp.start, ..udp }))
}

/// The offset of the IP header, behind the header of a link layer (<https://www.tcpdump.org/linktypes.html>).
fn network(frame: &[u8], link: u32) -> Result<usize, Reason> {
    // Where the Ethernet type is, and what follows the header.
    let (mut at, mut next) = match link {
        // BSD and OpenBSD loopback: the first bits of the packet tell IPv4 from IPv6, as they do in raw IP.
        0 | 108 => return Ok(4),
        12 | 14 | 101 | 228 | 229 => return Ok(0),
        1 => (12, 14),
        // Linux cooked, versions 1 and 2.
        113 => (14, 16),
        276 => (0, 20),
        _ => return Err(Reason::UnknownLink),
    };
    loop {
        let kind = frame.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Reason::NoWholeHeaders)?;
        match EtherType(u16::from_be_bytes(*kind)) {
            ether_type::IPV4 | ether_type::IPV6 => return Ok(next),
            ether_type::VLAN_TAGGED_FRAME | ether_type::PROVIDER_BRIDGING | ether_type::VLAN_DOUBLE_TAGGED_FRAME => {
                (at, next) = (next + 2, next + 4);
            }
            _ => return Err(Reason::NotIp),
        }
    }
}

/// Bytes of the packet, as its IP header says.
fn claimed(ip: &LaxIpSlice<'_>, captured: usize) -> usize {
    let claimed = match ip {
        LaxIpSlice::Ipv4(ip) => usize::from(ip.header().total_len()),
        LaxIpSlice::Ipv6(ip) => Ipv6Header::LEN + usize::from(ip.header().payload_length()),
    };
    claimed.max(captured)
}

fn fragment<'a>(ip: &LaxIpSlice<'a>) -> Result<Fragment<'a>, Reason> {
    let payload = ip.payload();
    let (number, offset, more) = match ip {
        LaxIpSlice::Ipv4(ip) => {
            // With IPv6, other headers may follow in the payload.
            if payload.ip_number != ip_number::UDP {
                return Err(Reason::NotUdp);
            }
            let header = ip.header();
            (header.identification().into(), header.fragments_offset(), header.more_fragments())
        }
        LaxIpSlice::Ipv6(ip) => {
            let header = ip.extensions().clone().into_iter().find_map(|extension| match extension {
                Ipv6ExtensionSlice::Fragment(header) => Some(header),
                _ => None,
            });
            let header = header.ok_or(Reason::Fragment)?;
            (header.identification(), header.fragment_offset(), header.more_fragments())
        }
    };
    let (source, destination) = (ip.source_addr(), ip.destination_addr());
    let key = Key { number, source, destination, protocol: payload.ip_number.0 };
    Ok(Fragment { key, offset, more, payload: payload.payload })
}

/// The datagram at the start of `packet`, of which IP says that it has `length` bytes.
pub(super) fn datagram(packet: &[u8], length: usize, source: IpAddr, destination: IpAddr) -> Result<Udp, Reason> {
    let header = UdpHeaderSlice::from_slice(packet).map_err(|_| Reason::NoWholeHeaders)?;
    let start = header.slice().len();
    let own = usize::from(header.length()).checked_sub(start).ok_or(Reason::BadUdpLength)?;
    let all = length.saturating_sub(start);
    // Segmentation offload may give the length of one segment in a packet that has several.
    let payload = packet.get(start..length.min(packet.len())).unwrap_or_default();
    let length = if all > own && coalesced::is_several(payload, all) { all } else { own };
    let source = SocketAddr::new(source, header.source_port());
    let destination = SocketAddr::new(destination, header.destination_port());
    Ok(Udp { source, destination, start, length })
}
