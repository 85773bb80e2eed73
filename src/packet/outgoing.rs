//! Packets on their way out: through a socket, many with one call of the kernel, or into a capture file.
#![expect(unsafe_code, reason = "no library that is small has sendmmsg with UDP_SEGMENT")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Most packets that the kernel cuts one message into.
const MAX_SEGMENTS: usize = 64;
/// Most bytes of a UDP datagram over IPv4, also of one that is cut.
const MAX_BYTES: usize = 65507;
/// Messages that are handed to the kernel at a time.
const MESSAGES: usize = 64;
const IP_UDP_BYTES: usize = 28;
/// Header of a record in a capture, and the headers of Ethernet, IP and UDP.
const RECORD_BYTES: usize = 16 + 14 + IP_UDP_BYTES;
const UDP: u8 = 17;

/// Where a packet lies: its header, the part of the payload that follows, and its flow.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Place {
    header: u64,
    header_bytes: u64,
    payload: u64,
    payload_bytes: u64,
    flow: u64,
}

/// Packets, each of a header and a part of the payload.
#[derive(Clone, Copy, Debug)]
pub struct Packets<'a> {
    /// The headers.
    pub headers: &'a [u8],
    /// The payload, which packets may share.
    pub payload: &'a [u8],
    /// Where each packet is.
    pub places: &'a [Place],
}

impl<'a> Packets<'a> {
    /// Header and payload of a packet. What is not in memory is empty.
    fn parts(&self, place: &Place) -> [&'a [u8]; 2] {
        [part(self.headers, place.header, place.header_bytes), part(self.payload, place.payload, place.payload_bytes)]
    }
}

fn part(memory: &[u8], begin: u64, bytes: u64) -> &[u8] {
    let end = begin.saturating_add(bytes);
    memory.get(begin as usize..end as usize).unwrap_or_default()
}

/// The ancillary data that tell the kernel the size of packets.
#[repr(C)]
struct Segments {
    header: libc::cmsghdr,
    bytes: u16,
}

/// Neighbouring packets that go to one address as one message.
struct Message<'a> {
    address: &'a [u8],
    packets: usize,
    vectors: Vec<libc::iovec>,
    segments: Option<Segments>,
}

/// Send packets in order.
///
/// Addresses are as the kernel has them; flow *i* goes to number *i* modulo their number. Where `segment` is set, packets
/// of one size are given to the kernel together. It is cleared if a network card cannot do that, or a packet is longer
/// than the network allows.
///
/// # Errors
///
/// If the kernel refuses a packet. Those before it have been sent.
pub fn send(socket: BorrowedFd<'_>, addresses: &[&[u8]], packets: Packets<'_>, segment: &mut bool) -> io::Result<()> {
    let mut left = packets.places;
    while !left.is_empty() {
        let mut messages = Vec::with_capacity(MESSAGES);
        let mut rest = left;
        while let (Some(message), true) = (first(addresses, packets, rest, *segment), messages.len() < MESSAGES) {
            rest = rest.get(message.packets..).unwrap_or_default();
            messages.push(message);
        }
        if messages.is_empty() {
            break; // there are no addresses
        }
        match send_messages(socket, &messages) {
            Ok(sent) => left = left.get(messages.iter().take(sent).map(|m| m.packets).sum()..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if messages.first().is_some_and(|message| message.segments.is_some()) => *segment = false,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The first message of packets: one packet, or several of one size, of which the last may be shorter.
fn first<'a>(addresses: &[&'a [u8]], packets: Packets<'_>, places: &[Place], segment: bool) -> Option<Message<'a>> {
    let address_of = |place: &Place| addresses.get((place.flow % addresses.len().max(1) as u64) as usize).copied();
    let address = address_of(places.first()?)?;
    let (mut vectors, mut sizes) = (Vec::new(), Vec::new());
    let mut total = 0;
    for place in places {
        let parts = packets.parts(place);
        let size = parts[0].len() + parts[1].len();
        let fits = match (sizes.first(), sizes.last()) {
            (Some(first), Some(last)) => {
                segment && sizes.len() < MAX_SEGMENTS && last == first && size <= *first && total + size <= MAX_BYTES
            }
            _ => true,
        };
        if !fits || address_of(place) != Some(address) || (size == 0 && !sizes.is_empty()) {
            break;
        }
        total += size;
        sizes.push(size);
        let filled = parts.into_iter().filter(|part| !part.is_empty());
        vectors
            .extend(filled.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }));
    }
    let segments = (sizes.len() > 1).then(|| Segments {
        header: libc::cmsghdr {
            cmsg_len: mem::offset_of!(Segments, bytes) + size_of::<u16>(),
            cmsg_level: libc::SOL_UDP,
            cmsg_type: libc::UDP_SEGMENT,
        },
        bytes: sizes.first().map_or(0, |size| *size as u16),
    });
    Some(Message { address, packets: sizes.len(), vectors, segments })
}

/// Send messages; return how many were sent, at least one.
fn send_messages(socket: BorrowedFd<'_>, messages: &[Message<'_>]) -> io::Result<usize> {
    let mut headers: Vec<libc::mmsghdr> = messages.iter().map(header_of).collect();
    // SAFETY: each header points to the address, the vectors and the ancillary data of a message, with their lengths, and
    // its vectors to the memory of packets. All of them live until the call returns; the kernel only reads them.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as u32, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn header_of(message: &Message<'_>) -> libc::mmsghdr {
    // SAFETY: all zeros are a valid value of this C structure: null pointers and lengths of 0.
    let mut header = unsafe { mem::zeroed::<libc::mmsghdr>() };
    header.msg_hdr.msg_name = message.address.as_ptr().cast_mut().cast();
    header.msg_hdr.msg_namelen = message.address.len() as u32;
    header.msg_hdr.msg_iov = message.vectors.as_ptr().cast_mut();
    header.msg_hdr.msg_iovlen = message.vectors.len();
    if let Some(segments) = &message.segments {
        header.msg_hdr.msg_control = ptr::from_ref(segments).cast_mut().cast();
        header.msg_hdr.msg_controllen = size_of::<Segments>();
    }
    header
}

/// What stands before the packets of a flow in a capture: the Ethernet header, and the addresses and ports of IP and UDP,
/// each that of the source first.
pub type Prefix = [u8; 26];

/// The records of a classic pcap file that hold packets, as Ethernet frames with IPv4 and UDP headers and checksums.
///
/// `stamps` has a time for each, in microseconds, and `number` is that of the first in the IP headers.
///
/// # Errors
///
/// The length of the first packet that does not fit in a datagram.
pub fn frames(packets: Packets<'_>, prefixes: &[Prefix], stamps: &[u64], mut number: u16) -> Result<Vec<u8>, usize> {
    let bytes_of = |place: &Place| RECORD_BYTES + packets.parts(place).iter().map(|part| part.len()).sum::<usize>();
    let mut out = Vec::with_capacity(packets.places.iter().map(bytes_of).sum());
    for (place, stamp) in packets.places.iter().zip(stamps) {
        let Some(prefix) = prefixes.get((place.flow % prefixes.len().max(1) as u64) as usize) else { break };
        let parts = packets.parts(place);
        let bytes = parts[0].len() + parts[1].len();
        let ip_bytes = u16::try_from(IP_UDP_BYTES + bytes).map_err(|_| bytes)?;
        let frame_bytes = 14 + u32::from(ip_bytes);
        for word in [(stamp / 1_000_000) as u32, (stamp % 1_000_000) as u32, frame_bytes, frame_bytes] {
            out.extend(word.to_le_bytes());
        }
        frame(&mut out, prefix, parts, ip_bytes, number);
        number = number.wrapping_add(1);
    }
    Ok(out)
}

fn frame(out: &mut Vec<u8>, prefix: &Prefix, parts: [&[u8]; 2], ip_bytes: u16, number: u16) {
    let [ethernet @ .., s0, s1, s2, s3, d0, d1, d2, d3, p0, p1, q0, q1] = *prefix;
    let addresses = [s0, s1, s2, s3, d0, d1, d2, d3];
    let ([l0, l1], [n0, n1], [u0, u1]) = (ip_bytes.to_be_bytes(), number.to_be_bytes(), (ip_bytes - 20).to_be_bytes());
    // Version and header length, no service class, length, number, don't fragment, time to live, UDP.
    let ip = [0x45, 0, l0, l1, n0, n1, 0x40, 0, 64, UDP];
    out.extend::<[u8; 14]>(ethernet);
    out.extend(ip);
    out.extend(checksum(sum(&ip) + sum(&addresses)));
    out.extend(addresses);
    let udp = [p0, p1, q0, q1, u0, u1];
    out.extend(udp);
    let begin = out.len();
    out.extend([0, 0]);
    for part in parts {
        out.extend_from_slice(part);
    }
    let data = out.get_mut(begin..).unwrap_or_default();
    let total = sum(&addresses) + sum(&[0, UDP, u0, u1]) + sum(&udp) + sum(data);
    // A checksum of 0 is sent as all ones, because 0 means that there is no checksum.
    let checked = if checksum(total) == [0, 0] { [0xFF, 0xFF] } else { checksum(total) };
    data.iter_mut().zip(checked).for_each(|(to, from)| *to = from);
}

/// Add up big-endian words of 16 bits (RFC 1071), four bytes at a time.
fn sum(data: &[u8]) -> u64 {
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        u64::from(u32::from_be_bytes(word))
    };
    let words = data.chunks_exact(4);
    let rest = word(words.remainder());
    rest + words.map(word).sum::<u64>()
}

/// The complement of the ones' complement sum.
fn checksum(mut sum: u64) -> [u8; 2] {
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
