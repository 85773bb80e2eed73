//! The addresses that packets came from and went to, and the traffic of each, in bounded memory.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Addresses that are told apart at all.
const MOST_ADDRESSES: usize = 262_144;
/// Senders, and destinations, that have counts of their own; [`Address::others`] stands for the rest.
const MOST_COUNTED: usize = 65_536;

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// A host, as it was given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Its IP address.
    Ip(IpAddr),
    /// Any text.
    Name(Box<str>),
}

impl Address {
    /// What stands for all addresses that there is no room for.
    #[must_use]
    pub fn others() -> Self {
        Self { host: Host::Name("others".into()), port: 0 }
    }

    /// The address of a host that is given as text, and keeps that text.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        let host = match host.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) if ip.to_string() != host => Host::Name(host.into()),
            Ok(ip) => Host::Ip(ip),
            Err(_) => Host::Name(host.into()),
        };
        Self { host, port }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip()), port: address.port() }
    }
}

/// What came from an address, or went to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Heaps.
    pub heaps: u64,
    /// Bytes of packets.
    pub bytes: u64,
    /// Packets that do not decode.
    pub undecodable: u64,
}

/// The traffic of all addresses in one direction, in the order in which they were first seen.
#[derive(Debug, Default)]
struct Direction {
    /// Where the counts of an address are, by its number.
    at: Vec<Option<u32>>,
    counts: Vec<(u32, Traffic)>,
    others: Traffic,
}

impl Direction {
    fn of(&mut self, number: u32) -> &mut Traffic {
        let index = number as usize;
        if self.at.len() <= index {
            self.at.resize(index.saturating_add(1), None);
        }
        let next = self.counts.len();
        let slot = match self.at.get_mut(index) {
            Some(Some(slot)) => *slot as usize,
            Some(unset) if next < MOST_COUNTED => {
                *unset = Some(next as u32);
                self.counts.push((number, Traffic::default()));
                next
            }
            _ => MOST_COUNTED,
        };
        self.counts.get_mut(slot).map_or(&mut self.others, |(_, traffic)| traffic)
    }
}

/// Addresses by number, and their traffic.
#[derive(Debug)]
pub struct Addresses {
    list: Vec<Address>,
    numbers: HashMap<Address, u32>,
    /// The two that were asked for last: most packets in a row have the same.
    newest: [u32; 2],
    senders: Direction,
    destinations: Direction,
}

impl Default for Addresses {
    fn default() -> Self {
        let others = Address::others();
        Self {
            numbers: HashMap::from([(others.clone(), 0)]),
            list: vec![others],
            newest: [0; 2],
            senders: Direction::default(),
            destinations: Direction::default(),
        }
    }
}

impl Addresses {
    /// The number of an address.
    pub fn number(&mut self, address: &Address) -> u32 {
        for number in self.newest {
            if self.list.get(number as usize) == Some(address) {
                return number;
            }
        }
        let number = match self.numbers.get(address) {
            Some(&number) => number,
            None if self.list.len() >= MOST_ADDRESSES => 0,
            None => {
                let number = self.list.len() as u32;
                self.list.push(address.clone());
                self.numbers.insert(address.clone(), number);
                number
            }
        };
        self.newest = [number, self.newest[0]];
        number
    }

    /// All addresses, by their numbers.
    #[must_use]
    pub fn list(&self) -> &[Address] {
        &self.list
    }

    /// The traffic of each sender.
    pub fn senders(&self) -> impl Iterator<Item = (&Address, Traffic)> {
        self.traffic(&self.senders)
    }

    /// The traffic of each destination.
    pub fn destinations(&self) -> impl Iterator<Item = (&Address, Traffic)> {
        self.traffic(&self.destinations)
    }

    fn traffic<'a>(&'a self, direction: &'a Direction) -> impl Iterator<Item = (&'a Address, Traffic)> {
        let others = Some((0, direction.others)).filter(|(_, traffic)| traffic.packets > 0);
        let counts = direction.counts.iter().copied().chain(others);
        counts.filter_map(|(number, traffic)| Some((self.list.get(number as usize)?, traffic)))
    }

    pub(super) fn add_packet(&mut self, sender: u32, destination: u32, bytes: u64) {
        for traffic in [self.senders.of(sender), self.destinations.of(destination)] {
            traffic.packets = traffic.packets.wrapping_add(1);
            traffic.bytes = traffic.bytes.wrapping_add(bytes);
        }
    }

    pub(super) fn add_undecodable(&mut self, sender: u32, destination: u32) {
        for traffic in [self.senders.of(sender), self.destinations.of(destination)] {
            traffic.undecodable = traffic.undecodable.wrapping_add(1);
        }
    }

    pub(super) fn add_heap(&mut self, sender: u32, destination: u32) {
        for traffic in [self.senders.of(sender), self.destinations.of(destination)] {
            traffic.heaps = traffic.heaps.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_kept_as_it_is() {
        for host in ["10.0.0.1", "fe80::1", "FE80::1", "fe80::1%eth0", "somewhere", "010.0.0.1"] {
            let text = match Address::new(host, 1).host {
                Host::Ip(ip) => ip.to_string(),
                Host::Name(name) => name.to_string(),
            };
            assert_eq!(text, host);
        }
        let (as_text, as_bytes) = (Address::new("10.0.0.1", 7), Address::from(SocketAddr::from(([10, 0, 0, 1], 7))));
        assert_eq!(as_text, as_bytes);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted_together() {
        let mut addresses = Addresses::default();
        let destination = addresses.number(&Address::new("239.1.2.3", 7148));
        for n in 0..300_000_u32 {
            let sender = addresses.number(&Address::from(SocketAddr::from((n.to_be_bytes(), 7148))));
            addresses.add_packet(sender, destination, 10);
        }
        assert_eq!(addresses.list().len(), MOST_ADDRESSES);
        let senders: Vec<_> = addresses.senders().collect();
        assert_eq!(senders.len(), MOST_COUNTED + 1);
        assert!(senders.iter().rev().skip(1).all(|(_, traffic)| (traffic.packets, traffic.bytes) == (1, 10)));
        let (others, traffic) = *senders.last().expect("there are some");
        assert_eq!((others, traffic.packets), (&Address::others(), 300_000 - MOST_COUNTED as u64));
        assert_eq!(addresses.destinations().map(|(_, traffic)| traffic.packets).collect::<Vec<_>>(), [300_000]);
    }
}
