//! IP fragments put together, in bounded memory.

use std::net::IpAddr;

use etherparse::defrag::{IpDefragBuf, IpFragRange};
use etherparse::{IpFragOffset, IpNumber};

/// Datagrams that may lack fragments at a time; the oldest goes first. Each has at most 64 KiB.
const MOST_UNFINISHED: usize = 256;
/// So many frames after its last fragment, a datagram is given up. Its number comes again after 65,536 datagrams at the
/// earliest, and must not get parts of another then.
const MOST_FRAMES: u64 = 32_768;

/// What fragments of one datagram have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub number: u32,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
}

/// A fragment of a datagram.
pub(super) struct Fragment<'a> {
    pub key: Key,
    pub offset: IpFragOffset,
    pub more: bool,
    pub payload: &'a [u8],
}

struct Unfinished {
    key: Key,
    buffer: IpDefragBuf,
    fragments: u64,
    newest: u64,
}

/// What became of a fragment.
pub(super) enum Joined {
    /// More are needed.
    Waits,
    /// It was the last that lacked: all bytes behind the IP header, and how many fragments they were.
    Whole(Vec<u8>, u64),
}

/// Datagrams of which fragments lack.
#[derive(Default)]
pub(super) struct Fragments {
    unfinished: Vec<Unfinished>,
    /// Fragments that were there already, and those of datagrams that were given up.
    pub lost: u64,
}

impl Fragments {
    /// Add a fragment; `frame` is the number of its frame.
    pub fn add(&mut self, fragment: &Fragment<'_>, frame: u64) -> Joined {
        let known = self.unfinished.iter().rposition(|unfinished| unfinished.key == fragment.key);
        if known.is_some_and(|at| self.has(at, fragment)) {
            self.lost += 1;
            return Joined::Waits;
        }
        let at = match known {
            Some(at) if self.goes_on(at, fragment, frame) => at,
            Some(at) => {
                self.give_up(at);
                self.begin(fragment.key)
            }
            None => self.begin(fragment.key),
        };
        let Some(unfinished) = self.unfinished.get_mut(at) else { return Joined::Waits };
        unfinished.fragments += 1;
        unfinished.newest = frame;
        if unfinished.buffer.add(fragment.offset, fragment.more, fragment.payload).is_err() {
            self.give_up(at);
        } else if unfinished.buffer.is_complete() {
            let whole = self.unfinished.remove(at);
            return Joined::Whole(whole.buffer.take_bufs().0, whole.fragments);
        }
        Joined::Waits
    }

    /// Whether the same fragment has come, as where a network is tapped in two places.
    fn has(&self, at: usize, fragment: &Fragment<'_>) -> bool {
        let start = usize::from(fragment.offset.byte_offset());
        let end = start + fragment.payload.len();
        self.unfinished.get(at).is_some_and(|Unfinished { buffer, .. }| {
            let is_there = |seen: &IpFragRange| usize::from(seen.start) <= start && end <= usize::from(seen.end);
            buffer.sections().iter().any(is_there) && buffer.data().get(start..end) == Some(fragment.payload)
        })
    }

    /// Whether a fragment belongs to what has come, and is not the first of another datagram with the same number.
    fn goes_on(&self, at: usize, fragment: &Fragment<'_>, frame: u64) -> bool {
        let start = usize::from(fragment.offset.byte_offset());
        let end = start + fragment.payload.len();
        self.unfinished.get(at).is_some_and(|unfinished| {
            let sections = unfinished.buffer.sections();
            let overlaps = sections.iter().any(|seen| usize::from(seen.start) < end && start < usize::from(seen.end));
            !overlaps && frame - unfinished.newest <= MOST_FRAMES
        })
    }

    fn begin(&mut self, key: Key) -> usize {
        if self.unfinished.len() >= MOST_UNFINISHED {
            self.give_up(0);
        }
        let buffer = IpDefragBuf::new(IpNumber(key.protocol), Vec::new(), Vec::new());
        self.unfinished.push(Unfinished { key, buffer, fragments: 0, newest: 0 });
        self.unfinished.len() - 1
    }

    fn give_up(&mut self, at: usize) {
        self.lost += self.unfinished.remove(at).fragments;
    }

    /// Give up all.
    pub fn finish(&mut self) {
        self.lost += self.unfinished.drain(..).map(|unfinished| unfinished.fragments).sum::<u64>();
    }
}
