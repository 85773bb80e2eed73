//! The UDP datagrams of a capture: a pcap or pcapng file, compressed or not.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::coalesced;
use super::fragments::{Fragments, Joined};
use super::frame::{self, Found, Reason, Udp};
use super::records::{Record, Records};
use super::source::Source;

/// A UDP datagram, as it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// When it was captured, in nanoseconds. Most programs count them from 1970.
    pub time: i64,
    /// Who sent it.
    pub source: SocketAddr,
    /// Where it was sent to.
    pub destination: SocketAddr,
    /// Its payload, as far as it was captured.
    pub payload: &'a [u8],
    /// Bytes of payload that were sent: more than `payload` has, if the capture cut it short.
    pub length: usize,
}

/// What of a capture has been read so far.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Packets of any kind in the file.
    pub frames: u64,
    /// Datagrams that the capture has cut short, whether they were given or not.
    pub cut_short: u64,
    /// IP fragments that were put together, less one for each datagram that they made.
    pub joined: u64,
    /// Datagrams that were found behind others in one packet of the file.
    pub split: u64,
    skipped: [u64; Reason::ALL.len()],
    unknown_links: BTreeMap<u32, u64>,
}

impl Counts {
    /// Packets that gave no datagram: why, and how many.
    pub fn skipped(&self) -> impl Iterator<Item = (String, u64)> {
        let links = self.unknown_links.iter().map(|(link, &n)| (format!("{} {link}", Reason::UnknownLink.name()), n));
        let others = Reason::ALL.into_iter().zip(self.skipped).map(|(reason, n)| (reason.name().to_owned(), n));
        links.chain(others.filter(|&(_, n)| n > 0))
    }

    fn skip(&mut self, reason: Reason, n: u64) {
        if let Some(count) = self.skipped.get_mut(reason as usize) {
            *count += n;
        }
    }
}

/// Why a capture cannot be read, or not any further.
#[derive(Debug)]
pub struct CaptureError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a capture.
#[derive(Debug)]
pub enum Fault {
    /// The system does not read it.
    Io(io::Error),
    /// It has no bytes.
    Empty,
    /// It is something else; the text says how it begins.
    NotACapture(String),
    /// It is damaged; the text says where and how.
    Damaged(String),
}

impl Fault {
    pub(super) fn not_a_capture(bytes: &[u8]) -> Self {
        let text: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let packed = match bytes {
            [0xFD, b'7', b'z', b'X'] => " (it is compressed with xz: decompress it)",
            [b'B', b'Z', b'h', _] => " (it is compressed with bzip2: decompress it)",
            _ => "",
        };
        Self::NotACapture(format!("{}{packed}", text.join(" ")))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => {
                let text = error.to_string();
                write!(f, "cannot be read: {}", text.split(" (os error").next().unwrap_or_default())
            }
            Self::Empty => f.write_str("is empty: wanted a pcap or pcapng file"),
            Self::NotACapture(begins) => {
                write!(f, "is not a pcap or pcapng file: it starts with the bytes {begins}")
            }
            Self::Damaged(how) => write!(f, "is damaged: {how}"),
        }
    }
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.display(), self.fault)
    }
}

impl std::error::Error for CaptureError {}

/// The datagrams of a capture, in order.
///
/// The link layer may be Ethernet (with VLAN tags), Linux cooked, raw IP or loopback; the network IPv4 or IPv6. IP
/// fragments are put together. SPEAD packets that came as one datagram, because of segmentation or receive offload, are
/// given one by one. Checksums are not checked. The memory is bounded, whatever is in the file.
pub struct Capture {
    path: PathBuf,
    size: Option<u64>,
    cut: bool,
    source: Source,
    records: Records,
    counts: Counts,
    fragments: Fragments,
    /// The datagram that fragments have made.
    joined: Vec<u8>,
    rest: Option<Rest>,
    ended: bool,
    is_truncated: bool,
}

/// What has not been given yet of a frame.
#[derive(Clone)]
struct Rest {
    time: i64,
    udp: Udp,
    /// Whether its bytes are in `joined`; otherwise in the memory of the source.
    is_joined: bool,
    /// What was captured, and how much was sent.
    captured: Range<usize>,
    sent: usize,
    /// Whether it is several packets.
    is_several: bool,
}

impl Capture {
    /// Read a file, which may be a pipe; `path` is what errors call it.
    ///
    /// With `cut`, datagrams that the capture has cut short are given too, as far as they were captured.
    pub fn of_file(path: &Path, file: File, cut: bool) -> Result<Self, CaptureError> {
        let size = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
        let capture = Self::new(path, Box::new(file), cut)?;
        Ok(Self { size, ..capture })
    }

    /// Read what may come from anywhere; `path` is what errors call it.
    pub fn new(path: &Path, bytes: Box<dyn Read + Send>, cut: bool) -> Result<Self, CaptureError> {
        let fail = |fault| CaptureError { path: path.to_owned(), fault };
        let mut source = Source::new(bytes).map_err(fail)?;
        let records = Records::new(&mut source).map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            size: None,
            cut,
            source,
            records,
            counts: Counts::default(),
            fragments: Fragments::default(),
            joined: Vec::new(),
            rest: None,
            ended: false,
            is_truncated: false,
        })
    }

    /// Bytes of the file; None if that is not known (for a pipe).
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Bytes of the file that were read so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.source.position()
    }

    /// What was read so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// At the end: whether the last packet of the file is incomplete. It was left out.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// Close the file: there are no more datagrams.
    pub fn close(&mut self) {
        self.source.close();
        self.rest = None;
        self.finish();
    }

    /// The next datagram; None at the end.
    ///
    /// After an error there are no more. Everything before the damage was given.
    pub fn next_datagram(&mut self) -> Result<Option<Datagram<'_>>, CaptureError> {
        let found = self.find().map_err(|fault| {
            self.close();
            CaptureError { path: self.path.clone(), fault }
        })?;
        Ok(found.map(|found| {
            let memory = if found.is_joined { &self.joined } else { self.source.memory() };
            Datagram {
                time: found.time,
                source: found.udp.source,
                destination: found.udp.destination,
                payload: memory.get(found.captured).unwrap_or_default(),
                length: found.sent,
            }
        }))
    }

    fn find(&mut self) -> Result<Option<Rest>, Fault> {
        loop {
            if let Some(rest) = self.rest.take() {
                let found = self.split(rest);
                if found.captured.len() >= found.sent {
                    return Ok(Some(found));
                }
                self.counts.cut_short += 1;
                let is_there = !found.captured.is_empty() || !found.is_several;
                if self.cut && is_there {
                    return Ok(Some(found));
                }
                self.counts.skip(Reason::CutShort, 1);
            } else {
                if self.ended {
                    return Ok(None);
                }
                let Some(record) = self.records.next(&mut self.source)? else {
                    self.is_truncated = self.source.is_truncated();
                    self.close();
                    return Ok(None);
                };
                self.counts.frames += 1;
                self.look(&record);
            }
        }
    }

    /// See what is in a frame.
    fn look(&mut self, record: &Record) {
        let frame = self.source.memory().get(record.at..record.at + record.captured).unwrap_or_default();
        match frame::look(frame, record.link, record.sent) {
            Ok(Found::Whole(udp)) => {
                let end = record.captured.min(udp.start.saturating_add(udp.length));
                self.begin(record.time, udp, false, record.at + udp.start..record.at + end);
            }
            Ok(Found::Part(fragment)) => {
                let key = fragment.key;
                if let Joined::Whole(datagram, fragments) = self.fragments.add(&fragment, self.counts.frames) {
                    self.joined = datagram;
                    self.counts.joined += fragments - 1;
                    let joined = &self.joined;
                    let is_udp = etherparse::IpNumber(key.protocol) == etherparse::ip_number::UDP;
                    let udp = if is_udp {
                        frame::datagram(joined, joined.len(), key.source, key.destination)
                    } else {
                        Err(Reason::NotUdp)
                    };
                    match udp {
                        Ok(udp) => {
                            let end = joined.len().min(udp.start.saturating_add(udp.length));
                            self.begin(record.time, udp, true, udp.start..end);
                        }
                        Err(reason) => self.counts.skip(reason, 1),
                    }
                }
            }
            Err(Reason::UnknownLink) => *self.counts.unknown_links.entry(record.link).or_default() += 1,
            Err(reason) => self.counts.skip(reason, 1),
        }
        let lost = std::mem::take(&mut self.fragments.lost);
        self.counts.skip(Reason::Fragment, lost);
    }

    fn begin(&mut self, time: i64, udp: Udp, is_joined: bool, captured: Range<usize>) {
        let memory = if is_joined { &self.joined } else { self.source.memory() };
        let payload = memory.get(captured.clone()).unwrap_or_default();
        let is_several = coalesced::is_several(payload, udp.length);
        self.rest = Some(Rest { time, udp, is_joined, captured, sent: udp.length, is_several });
    }

    /// Take the first of several packets, and keep the rest.
    fn split(&mut self, all: Rest) -> Rest {
        if !all.is_several {
            return all;
        }
        let memory = if all.is_joined { &self.joined } else { self.source.memory() };
        let payload = memory.get(all.captured.clone()).unwrap_or_default();
        let Some(bytes) = coalesced::packet_bytes(payload).filter(|&bytes| bytes < all.sent) else { return all };
        let end = all.captured.end.min(all.captured.start + bytes);
        self.rest = Some(Rest { captured: end..all.captured.end, sent: all.sent - bytes, ..all.clone() });
        self.counts.split += 1;
        Rest { captured: all.captured.start..end, sent: bytes, ..all }
    }

    fn finish(&mut self) {
        self.ended = true;
        self.fragments.finish();
        let lost = std::mem::take(&mut self.fragments.lost);
        self.counts.skip(Reason::Fragment, lost);
    }
}
